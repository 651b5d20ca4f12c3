"""What is told of a scene, against slow twins and against rooms whose truth is known."""

import dataclasses
import math
from collections.abc import Sequence

import pytest
import torch
from alignment.aligned_rooms import OFF, exact, noisy, room
from torch import Tensor

from lora3d_ns.alignment.align import align
from lora3d_ns.conventions import PixelAffine
from lora3d_ns.geometry.camera import points_from_depth
from lora3d_ns.geometry.similarity import weighted_scale
from lora3d_ns.reconstruct import Reconstruction, scene_of
from lora3d_ns.scene_details import _compact, edge_overlap, scene_details, sees
from lora3d_ns.stages.stages import Understood
from lora3d_ns.types import PairPredictions, Views

PHOTOS = 3
SHAPES = ((48, 64), (64, 48))


def reconstruction(views: Views, predictions: PairPredictions) -> Reconstruction:
    aligned = align(views, predictions, OFF)
    return Reconstruction(
        scene=scene_of(views, aligned, cutoff=0.1, provenance={}),
        understood=Understood(predictions=predictions, matches=None, aligned=aligned),
        calibration=None,
        adapter=None,
        seconds={},
    )


@pytest.fixture(name="views", scope="module")
def _views() -> Views:
    """Photos of two shapes, one masked; the network sees a third of their pixels' number, without the borders."""
    views = room(PHOTOS, shapes=SHAPES).views
    affine = PixelAffine(scale_x=3.0, scale_y=3.0, offset_x_px=6.0, offset_y_px=0.0)
    mask = torch.ones(views.shapes[1], dtype=torch.bool)
    mask[:, :10] = False
    return dataclasses.replace(
        views,
        masks=(None, mask, None),
        source_from_network=(affine,) * PHOTOS,
        source_sizes=tuple((3 * width + 12, 3 * height) for height, width in views.shapes),
    )


@pytest.fixture(name="disturbed", scope="module")
def _disturbed(views: Views) -> Reconstruction:
    """Of noisy predictions; one edge is called dropped afterwards."""
    made = reconstruction(views, noisy(PHOTOS, shapes=SHAPES)[0])
    aligned = dataclasses.replace(made.understood.aligned, dropped_edges={(2, 0): "for the test"})
    return dataclasses.replace(made, understood=dataclasses.replace(made.understood, aligned=aligned))


# --- overlap ------------------------------------------------------------------------------------


def overlap_of_two(
    depths: Sequence[Tensor],
    K: Sequence[Tensor],
    T: Tensor,
    masks: Sequence[Tensor | None],
    tolerance: float,
    *,
    step: int = 1,
) -> float:
    """The definition, pixel by pixel."""
    counted, seen = 0, 0
    for own, other in ((0, 1), (1, 0)):
        T_other_own = torch.linalg.inv(T[other].double()) @ T[own].double()
        mask, other_mask = masks[own], masks[other]
        for row in range(step // 2, depths[own].shape[0], step):
            for column in range(step // 2, depths[own].shape[1], step):
                if mask is not None and not bool(mask[row, column]):
                    continue
                counted += 1
                ray = torch.linalg.inv(K[own].double()) @ torch.tensor([column + 0.5, row + 0.5, 1.0]).double()
                point = T_other_own[:3, :3] @ (float(depths[own][row, column]) * ray) + T_other_own[:3, 3]
                if point[2] <= 0:
                    continue
                x, y, w = (K[other].double() @ point).tolist()
                across, down = math.floor(x / w), math.floor(y / w)
                if not (0 <= down < depths[other].shape[0] and 0 <= across < depths[other].shape[1]):
                    continue
                if other_mask is not None and not bool(other_mask[down, across]):
                    continue
                there = float(depths[other][down, across])
                seen += abs(float(point[2]) - there) <= tolerance * there
    return seen / counted


@pytest.mark.parametrize(("step", "points_per_view"), [(1, 192), (2, 60)])
def test_overlap_is_that_of_a_loop_over_pixels(step: int, points_per_view: int) -> None:
    """Wavy surfaces, so that some points pass the depth test, some do not, and some fall outside."""
    generator = torch.Generator().manual_seed(3)
    shapes = ((12, 16), (16, 11), (12, 16))
    depths = [2.0 + 0.3 * torch.rand(*shape, generator=generator) for shape in shapes]
    K = [torch.tensor([[14.0, 0.0, 7.5], [0.0, 15.0, 6.5], [0.0, 0.0, 1.0]])] * 3
    T = torch.eye(4).repeat(3, 1, 1)
    T[1, :3, 3], T[2, :3, 3] = torch.tensor([0.4, 0.1, 0.1]), torch.tensor([-0.3, 0.2, 0.1])
    T[2, :3, :3] = torch.linalg.matrix_exp(torch.tensor([[0.0, -0.1, 0.2], [0.1, 0.0, 0.0], [-0.2, 0.0, 0.0]]))
    masks = [None, torch.rand(*shapes[1], generator=generator) > 0.3, None]
    edges = [(0, 1), (0, 2), (1, 0), (1, 2)]
    found = edge_overlap(edges, depths, K, T, masks, tolerance=0.08, points_per_view=points_per_view)
    for edge, share in zip(edges, found.tolist(), strict=True):
        first, second = edge
        wanted = overlap_of_two(
            [depths[first], depths[second]],
            [K[first], K[second]],
            T[[first, second]],
            [masks[first], masks[second]],
            0.08,
            step=step,
        )
        assert share == pytest.approx(wanted, abs=1e-6)
        assert 0.1 < share < 0.9


def test_overlap_at_its_ends() -> None:
    depth, K = torch.full((8, 8), 2.0), torch.tensor([[8.0, 0.0, 4.0], [0.0, 8.0, 4.0], [0.0, 0.0, 1.0]])
    turned = torch.diag(torch.tensor([-1.0, 1.0, -1.0, 1.0]))
    nothing = torch.zeros(8, 8, dtype=torch.bool)

    def share(T: Tensor, mask: Tensor | None = None) -> float:
        return float(edge_overlap([(0, 1)], [depth] * 2, [K] * 2, torch.stack([torch.eye(4), T]), [mask, mask])[0])

    assert share(torch.eye(4)) == 1.0
    assert share(turned) == 0.0
    assert share(torch.eye(4), nothing) == 0.0


def test_what_lies_before_or_behind_the_surface_is_not_seen() -> None:
    depth, K = torch.full((8, 8), 2.0), torch.tensor([[8.0, 0.0, 4.0], [0.0, 8.0, 4.0], [0.0, 0.0, 1.0]])
    z = torch.tensor([1.85, 1.95, 2.0, 2.05, 2.15, -2.0, 0.0])
    points = torch.stack([torch.zeros_like(z), torch.zeros_like(z), z], dim=1)
    assert sees(points, depth, K, 0.05).tolist() == [False, True, True, True, False, False, False]


# --- maps ---------------------------------------------------------------------------------------


def test_exact_predictions_leave_no_residual(views: Views) -> None:
    made = reconstruction(views, exact(PHOTOS, shapes=SHAPES))
    details = scene_details(views, made)
    unit = made.understood.aligned.diagnosis.unit
    for view, residual in enumerate(details.residuals):
        mask = views.masks[view]
        counted = residual if mask is None else residual[mask]
        # Measured: 2.8e-7 at most.
        assert float(counted.float().quantile(0.99)) < 1e-5 * unit


def test_maps_are_means_over_the_pairs(views: Views, disturbed: Reconstruction) -> None:
    """Confidence over all pairs; residuals in world coordinates, over all but the dropped one."""
    details = scene_details(views, disturbed)
    aligned, predictions = disturbed.understood.aligned, disturbed.understood.predictions
    T = aligned.cameras.T_world_camera
    world = []
    for view, depth in enumerate(aligned.depths):
        K = views.source_from_network[view].K_network_from_source(aligned.cameras.K[view])
        world.append(points_from_depth(depth.double(), K.double()) @ T[view, :3, :3].T.double() + T[view, :3, 3])
    said: list[list[Tensor]] = [[] for _ in views.names]
    residuals: list[list[tuple[Tensor, Tensor]]] = [[] for _ in views.names]
    for (i, j), pair in predictions:
        maps = ((i, pair.points_first, pair.confidence_first), (j, pair.points_second, pair.confidence_second))
        for view, _, C in maps:
            said[view].append(C)
        if (i, j) == (2, 0):
            continue
        R, t = T[i, :3, :3].double(), T[i, :3, 3]
        found = torch.cat([((world[view] - t) @ R).flatten(0, 1) for view, *_ in maps])
        predicted = torch.cat([points.flatten(0, 1) for _, points, _ in maps]).double()
        scale = weighted_scale(predicted, found, torch.cat([C.flatten() for *_, C in maps]) + 1e-6)
        for view, points, C in maps:
            laid = scale * points.double() @ R.T + t
            residuals[view].append((C, (laid - world[view]).norm(dim=2)))
    for view in range(PHOTOS):
        torch.testing.assert_close(
            details.confidences[view].float(), torch.stack(said[view]).mean(dim=0), rtol=1e-3, atol=1e-4
        )
        C = torch.stack([C for C, _ in residuals[view]]) + 1e-6
        wanted = (C * torch.stack([length for _, length in residuals[view]])).sum(dim=0) / C.sum(dim=0)
        # Half a unit in the last place of float16 is 1/2048; and here is float64 instead of float32.
        torch.testing.assert_close(details.residuals[view].double(), wanted, rtol=1e-3, atol=1e-4)
        assert float(wanted.median()) > 1e-3


def test_the_rest_is_as_it_was(views: Views, disturbed: Reconstruction) -> None:
    details, aligned = scene_details(views, disturbed), disturbed.understood.aligned
    assert details.names == views.names
    assert details.edges == aligned.graph.edges
    assert details.dropped == {(2, 0): "for the test"}
    assert details.source_from_network == views.source_from_network
    assert (details.losses, details.seconds) == (aligned.loss_history, aligned.history_seconds)
    assert details.diagnosis is aligned.diagnosis
    assert details.learning is None
    assert torch.equal(details.focal_px, aligned.cameras.K[:, 0, 0].float())
    scene = disturbed.scene
    for view, image in enumerate(details.images):
        # The scene's own points are found in the maps again.
        chosen = (aligned.view_weights[view] >= 0.1) & ~aligned.moving[view]
        mask = details.masks[view]
        chosen = chosen if mask is None else chosen & mask
        assert torch.equal(image[chosen], scene.colors[scene.point_views == view])
        torch.testing.assert_close(details.weights[view].float(), aligned.view_weights[view], rtol=1e-3, atol=1e-4)
        assert details.weights[view].dtype == details.confidences[view].dtype == torch.float16
        assert details.depths[view] is aligned.depths[view]
        assert details.moving[view] is aligned.moving[view]
    # Each pair and its reverse have one number.
    by_edge = dict(zip(details.edges, details.overlap.tolist(), strict=True))
    assert all(by_edge[i, j] == by_edge[j, i] for i, j in by_edge)


@pytest.mark.parametrize("unit", [1e-6, 1.0, 1e6])
def test_small_maps_hold_their_values_in_any_unit(unit: float) -> None:
    values = unit * torch.rand(50, 50, generator=torch.Generator().manual_seed(0))
    kept = _compact(values)
    assert kept.dtype == (torch.float16 if unit == 1.0 else torch.float32)
    assert float((kept.double() - values.double()).abs().max()) <= unit / 2048
    assert torch.equal(_compact(torch.zeros(2, 2)), torch.zeros(2, 2, dtype=torch.float16))
