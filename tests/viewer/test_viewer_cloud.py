"""The points that are shown, what they are coloured by, and the lines between cameras."""

import dataclasses
import math
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image
from report.report_samples import scene_and_details
from torch import Tensor

from lora3d_ns.reconstruct import scene_of
from lora3d_ns.report.assemble import report_of
from lora3d_ns.scene_io.details import SceneDetails
from lora3d_ns.types import AlignedScene, PairGraph, Scene, Sim3, Views
from lora3d_ns.viewer.cloud import cloud_of_scene, visible
from lora3d_ns.viewer.colours import (
    FIRST_OF_PAIR,
    SECOND_OF_PAIR,
    ColourBy,
    colours_by,
    kinds_of,
    legend_of,
    photo_hue,
    ramp_png,
)
from lora3d_ns.viewer.pairs import ViewedPair, pairs_of, tubes
from lora3d_ns.viewer.state import viewed_scene

MANY = 10**9


@pytest.fixture(name="sample", scope="module")
def _sample() -> tuple[Scene, SceneDetails]:
    return scene_and_details(3)


def test_above_the_scenes_own_cutoff_one_sees_the_scenes_own_cloud(sample: tuple[Scene, SceneDetails]) -> None:
    _, details = sample
    moving = torch.zeros_like(details.moving[1])
    moving[3:9, 5:20] = True
    mask = torch.ones_like(details.moving[2])
    mask[:, :7] = False
    details = dataclasses.replace(
        details,
        moving=(details.moving[0], moving, details.moving[2]),
        masks=(None, None, mask),
    )
    scene = scene_as_reconstructed(sample[0], details)
    viewed = viewed_scene(scene, details, most_points=MANY)
    chosen = visible(viewed.cloud, viewed.cutoff)
    assert viewed.cutoff == 0.1
    assert torch.equal(viewed.cloud.points[chosen], scene.points)
    assert torch.equal(viewed.cloud.colors[chosen], scene.colors)
    assert torch.equal(viewed.cloud.weights[chosen], scene.point_weights)
    assert torch.equal(viewed.cloud.views[chosen], scene.point_views.long())
    # With 0 those that weigh too little come too, and nothing moving or masked.
    everything = sum(depth.numel() for depth in details.depths) - int(moving.sum()) - int((~mask).sum())
    assert int(visible(viewed.cloud, 0.0).sum()) == len(viewed.cloud) == viewed.cloud.pixels == everything
    assert int(visible(viewed.cloud, 1.01).sum()) == 0


def test_the_scene_before_learning_lies_over_the_other(sample: tuple[Scene, SceneDetails]) -> None:
    scene, details = sample
    viewed = viewed_scene(scene, details, most_points=MANY)
    # The sample's world before had twice the unit and lay elsewhere; its last camera stood 0.2 of a unit off.
    assert viewed.before is not None
    assert viewed.T_shown_before is not None
    off = (viewed.before.points - viewed.cloud.points).norm(dim=1)
    unit = details.diagnosis.unit
    assert float(off[viewed.cloud.views < 2].max()) < 1e-4 * unit
    assert torch.allclose(off[viewed.cloud.views == 2], torch.tensor(0.2 * unit), rtol=1e-3)
    assert torch.allclose(viewed.T_shown_before[:2], viewed.T_shown_camera[:2], atol=1e-5)
    assert viewed.before.confidences is None
    assert viewed.before.residual_shares is None
    same, _ = scene_and_details(3, accepted=False)
    assert viewed_scene(same, scene_and_details(3, accepted=False)[1], most_points=MANY).before is None
    assert viewed_scene(same, scene_and_details(3, learnt=False)[1], most_points=MANY).before is None


def test_a_large_cloud_is_thinned_out_evenly_and_each_time_alike(sample: tuple[Scene, SceneDetails]) -> None:
    scene, details = sample
    whole = viewed_scene(scene, details, most_points=MANY).cloud
    thin = viewed_scene(scene, details, most_points=2000).cloud
    assert len(thin) == 2000
    assert thin.pixels == len(whole)
    assert thin.spacing == pytest.approx(whole.spacing * math.sqrt(len(whole) / 2000), rel=0.05)
    counts = torch.bincount(thin.views, minlength=3).double()
    assert float((counts / counts.sum() - 1 / 3).abs().max()) < 0.05
    again = viewed_scene(scene, details, most_points=2000).cloud
    assert torch.equal(thin.points, again.points)
    assert len(cloud_of_scene(scene, most_points=40)) == 40


def test_a_scene_without_details_has_colour_photo_and_weight_only(sample: tuple[Scene, SceneDetails]) -> None:
    scene, details = sample
    viewed = viewed_scene(scene, None, most_points=MANY)
    assert len(viewed.cloud) == len(scene.points)
    assert viewed.before is None
    assert viewed.pairs == ()
    assert kinds_of(viewed.cloud, pairs=False) == ("photo", "which_photo", "weight")
    full = viewed_scene(scene, details, most_points=MANY)
    assert kinds_of(full.cloud, pairs=True) == ("photo", "which_photo", "weight", "confidence", "residual", "pair")
    nothing = dataclasses.replace(
        scene,
        points=scene.points[:0],
        colors=scene.colors[:0],
        point_weights=scene.point_weights[:0],
        point_views=scene.point_views[:0],
    )
    empty = viewed_scene(nothing, None, most_points=MANY)
    assert len(empty.cloud) == 0
    assert legend_of(empty.cloud, "weight") is None
    assert colours_by(empty.cloud, "which_photo").shape == (0, 3)
    assert bool(torch.isfinite(empty.T_shown_camera).all())


def test_a_ramp_rises_with_what_it_shows_and_its_legend_says_how_far(sample: tuple[Scene, SceneDetails]) -> None:
    scene, details = sample
    residuals = tuple(
        0.002 + 0.8 * torch.linspace(0.0, 1.0, depth.shape[1]).expand(depth.shape) for depth in details.depths
    )
    cloud = viewed_scene(scene, dataclasses.replace(details, residuals=residuals), most_points=MANY).cloud
    values: dict[ColourBy, Tensor | None] = {
        "weight": cloud.weights,
        "confidence": cloud.confidences,
        "residual": cloud.residual_shares,
    }
    for by, of_points in values.items():
        assert of_points is not None
        legend = legend_of(cloud, by)
        assert legend is not None
        colours = colours_by(cloud, by)
        order = of_points.argsort()
        assert tuple(colours[order[0]].tolist()) == legend.ramp[0]
        assert tuple(colours[order[-1]].tolist()) == legend.ramp[-1]
        # What is equal has one colour, and there are many colours.
        assert len(torch.unique(colours, dim=0)) > 20
        middle = (of_points - of_points.median()).abs().argmin()
        assert tuple(colours[middle].tolist()) not in (legend.ramp[0], legend.ramp[-1])
    # The weights are 0 to 1 from left to right, C twice as much: the network said 1 to e^2 at the ends.
    weight, confidence, residual = (legend_of(cloud, by) for by in ("weight", "confidence", "residual"))
    assert weight is not None
    assert confidence is not None
    assert residual is not None
    assert weight.low_value == pytest.approx(0.02, abs=0.02)
    assert weight.high_value == pytest.approx(0.98, abs=0.02)
    assert float(confidence.high) == pytest.approx(math.exp(2 * 0.98), rel=0.05)
    # The unit is 2: 0.8 of it are 40 percent.
    assert float(residual.high.removesuffix(" %")) == pytest.approx(40.0, rel=0.05)


def test_colours_by_photo_and_by_pair(sample: tuple[Scene, SceneDetails]) -> None:
    scene, details = sample
    cloud = viewed_scene(scene, details, most_points=MANY).cloud
    assert torch.equal(colours_by(cloud, "photo"), cloud.colors)
    hues = colours_by(cloud, "which_photo")
    for view in range(3):
        assert torch.unique(hues[cloud.views == view], dim=0).tolist() == [list(photo_hue(view))]
    assert len({photo_hue(view) for view in range(200)}) == 200
    pair = colours_by(cloud, "pair", pair=(0, 2))
    assert torch.unique(pair[cloud.views == 0], dim=0).tolist() == [list(FIRST_OF_PAIR)]
    assert torch.unique(pair[cloud.views == 2], dim=0).tolist() == [list(SECOND_OF_PAIR)]
    rest = torch.unique(pair[cloud.views == 1], dim=0)
    assert len(rest) == 1
    assert rest.double().std() < 10, "grey"
    with Image.open(BytesIO(ramp_png(((0, 0, 0), (255, 255, 255))))) as picture:
        pixels = np.asarray(picture)
    assert pixels[0, 0].tolist() == [0, 0, 0]
    assert pixels[-1, -1].tolist() == [255, 255, 255]
    assert bool((np.diff(pixels[0, :, 0].astype(int)) >= 0).all())


# --- pairs --------------------------------------------------------------------------------------------


def test_bad_pairs_come_first_and_are_those_of_the_report() -> None:
    scene, details = scene_and_details(4)
    residuals = torch.full((12,), 0.05)
    for index, edge in enumerate(details.edges):
        residuals[index] = {(0, 1): 0.9, (1, 0): 0.8, (0, 2): 0.9, (2, 0): 0.04, (1, 3): math.nan}.get(edge, 0.05)
    overlap = details.overlap.clone()
    for index, edge in enumerate(details.edges):
        if set(edge) == {2, 3}:
            overlap[index] = 0.03
    details = dataclasses.replace(
        details,
        overlap=overlap,
        dropped={(1, 3): "far off", (3, 1): "far off", (0, 3): "unheard"},
        diagnosis=dataclasses.replace(details.diagnosis, edge_residuals=residuals),
    )
    pairs = pairs_of(details)
    by_views = {pair.views: pair for pair in pairs}
    assert len(pairs) == 6
    assert {pair.views for pair in pairs if pair.kind == "bad"} == {(0, 1), (1, 3)}
    assert by_views[2, 3].kind == "thin"
    assert by_views[0, 2].kind == "good", "the other order holds it"
    assert by_views[0, 3].reasons == ("unheard",)
    assert by_views[1, 3].residual is None
    assert by_views[0, 1].residual == pytest.approx(0.8)
    assert [pair.kind for pair in pairs[:2]] == ["bad", "bad"]
    assert pairs_of(None) == ()
    # One opinion in the whole package.
    states = {"good": "good", "little_overlap": "thin", "contradicts": "bad", "left_out": "bad"}
    told = {(pair.numbers[0] - 1, pair.numbers[1] - 1): states[pair.state] for pair in report_of(scene, details).pairs}
    assert told == {pair.views: pair.kind for pair in pairs}


def test_tubes_join_the_cameras() -> None:
    centres = torch.tensor([[0.0, 0.0, 0.0], [3.0, 0.0, 0.0], [0.0, 0.0, -2.0], [0.0, 0.0, 0.0]])
    pairs = [
        ViewedPair(views=views, overlap=0.5, residual=0.1, kind="good", reasons=())
        for views in ((0, 1), (0, 2), (0, 3))
    ]
    mesh = tubes(centres, pairs, 0.1)
    assert mesh is not None
    # The third pair has no length.
    assert mesh.vertices.shape == (12, 3)
    assert mesh.faces.shape == (12, 3)
    for tube, (start, end) in enumerate(((0, 1), (0, 2))):
        vertices = mesh.vertices[6 * tube : 6 * tube + 6]
        assert torch.allclose(vertices[:3].mean(dim=0), centres[start].double(), atol=1e-12)
        assert torch.allclose(vertices[3:].mean(dim=0), centres[end].double(), atol=1e-12)
        assert torch.allclose((vertices[:3] - vertices[:3].mean(dim=0)).norm(dim=1), torch.full((3,), 0.1).double())
        faces = mesh.faces[6 * tube : 6 * tube + 6]
        corners = mesh.vertices[faces]
        normals = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        outwards = corners.mean(dim=1) - vertices.mean(dim=0)
        assert bool(((normals * outwards).sum(dim=1) > 0).all()), "seen from outside"
    short = tubes(centres, pairs[:1], 0.1, gap=0.5)
    assert short is not None
    assert float(short.vertices[:, 0].min()) == pytest.approx(0.5)
    assert float(short.vertices[:, 0].max()) == pytest.approx(2.5)
    assert tubes(centres, pairs[2:], 0.1) is None
    assert tubes(centres, [], 0.1) is None


def scene_as_reconstructed(scene: Scene, details: SceneDetails) -> Scene:
    """The scene that `reconstruct` makes of an alignment with these maps."""
    views = Views(
        names=details.names,
        images=tuple(image.permute(2, 0, 1).float() / 255.0 for image in details.images),
        masks=details.masks,
        source_from_network=details.source_from_network,
        source_sizes=scene.cameras.sizes,
        source_paths=(None,) * 3,
        focal_exif_px=(None,) * 3,
        lens_groups=("",) * 3,
        known_K=(None,) * 3,
        known_T_world_camera=(None,) * 3,
    )
    aligned = AlignedScene(
        graph=PairGraph(view_count=3, edges=()),
        cameras=scene.cameras,
        depths=details.depths,
        world_from_edge=Sim3(scale=torch.ones(0), rotation=torch.ones(0, 3, 3), translation=torch.ones(0, 3)),
        weights=(),
        view_weights=details.weights,
        moving=details.moving,
        loss_history=(),
        history_seconds=(),
        dropped_edges={},
        diagnosis=details.diagnosis,
    )
    return scene_of(views, aligned, cutoff=0.1, provenance=scene.provenance)
