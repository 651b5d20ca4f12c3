"""Which pixels become labels and where they say the points are, against loops, truth and laws."""

import dataclasses
import functools

import pytest
import torch
from alignment.aligned_rooms import OFF, complete, exact, noisy, replaced, room
from reference.pseudo_labels import naive_cutoff, naive_label_points, naive_valid
from torch import Tensor

from lora3d_ns.alignment.align import align
from lora3d_ns.errors import InvalidDataError, SettingsError, TooFewLabelsError
from lora3d_ns.pseudo_labels import PseudoLabelSettings, label_points, labels_from_depths, pseudo_labels
from lora3d_ns.rooms.benchmark_scenes import RoomPhotos
from lora3d_ns.types import AlignedScene, PseudoLabels

SHAPES = ((24, 32), (32, 24))
ANY = PseudoLabelSettings(least_coverage=1e-9)
"""Settings under which no number of labels is too few."""


@functools.cache
def aligned_room() -> tuple[RoomPhotos, AlignedScene]:
    """A small room as an alignment of faulty predictions left it, with moving pixels and weights of all sizes."""
    photos = room(4, shapes=SHAPES)
    scene = align(photos.views, noisy(4, shapes=SHAPES)[0], OFF)
    generator = torch.Generator().manual_seed(3)
    moving = tuple(torch.rand(depth.shape, generator=generator) < 0.1 for depth in scene.depths)
    return photos, dataclasses.replace(scene, moving=moving)


def masked_room() -> tuple[RoomPhotos, AlignedScene]:
    photos, scene = aligned_room()
    generator = torch.Generator().manual_seed(4)
    masks = {view: torch.rand(photos.views.shapes[view], generator=generator) < 0.7 for view in (0, 3)}
    return dataclasses.replace(photos, views=replaced(photos.views, masks=masks)), scene


def with_weights(scene: AlignedScene, weights: list[Tensor]) -> AlignedScene:
    """The scene with these weights of its views."""
    return dataclasses.replace(scene, view_weights=tuple(weights))


def uniform_weights(scene: AlignedScene, seed: int = 0, highest: float = 3.0) -> AlignedScene:
    generator = torch.Generator().manual_seed(seed)
    weights = [highest * torch.rand(depth.shape, generator=generator) for depth in scene.depths]
    return with_weights(scene, weights)


def all_weights(photos: RoomPhotos, scene: AlignedScene) -> list[float]:
    """Of the pixels that may become labels."""
    found = []
    for weight, moving, mask in zip(scene.view_weights, scene.moving, photos.views.masks, strict=True):
        allowed = ~moving if mask is None else mask & ~moving
        found += weight[allowed].tolist()
    return found


def distinct_masks(labels: PseudoLabels) -> int:
    return len({id(mask) for mask in (*labels.valid_first, *labels.valid_second)})


# --- Eq. 9 ----------------------------------------------------------------------------------------


def test_label_points_are_those_of_the_naive_twin() -> None:
    photos, scene = aligned_room()
    labels = pseudo_labels(photos.views, scene, ANY)
    K_network = torch.stack(
        [
            affine.K_network_from_source(K)
            for affine, K in zip(photos.views.source_from_network, scene.cameras.K, strict=True)
        ]
    )
    for edge in ((0, 1), (2, 1), (3, 0)):
        for view, points in zip(edge, label_points(labels, edge), strict=True):
            naive = naive_label_points(
                scene.cameras.T_world_camera, K_network, scene.depths[view], reference=edge[0], view=view
            )
            # float32 poses, intrinsics and depths; the worst seen is 1.3e-7 of the largest coordinate.
            assert float((points - naive).abs().max() / naive.abs().max()) < 1e-6


@pytest.mark.parametrize("weights", ["view", "pair"])
@pytest.mark.parametrize("aimed_coverage", [0.0, 0.5, 0.9, 1.0])
def test_labelled_pixels_are_those_of_the_naive_twin(weights, aimed_coverage: float) -> None:
    photos, scene = masked_room()
    settings = dataclasses.replace(ANY, weights=weights, aimed_coverage=aimed_coverage, weight_cutoff=1.0)
    labels = pseudo_labels(photos.views, scene, settings)
    for k, edge in enumerate(scene.graph.edges):
        for role, (view, valid) in enumerate(zip(edge, (labels.valid_first[k], labels.valid_second[k]), strict=True)):
            weight = scene.view_weights[view] if weights == "view" else scene.weights[k][role]
            naive = naive_valid(weight, cutoff=labels.cutoff, mask=photos.views.masks[view], moving=scene.moving[view])
            assert valid.tolist() == naive


def test_labels_of_exact_predictions_are_the_truth() -> None:
    photos = room(4)
    scene = align(photos.views, exact(4), OFF)
    # All weigh 0.9998, less than the cut-off, and the same but for rounding.
    labels = pseudo_labels(photos.views, scene, PseudoLabelSettings(aimed_coverage=1.0))
    assert labels.coverage.tolist() == [1.0] * 4
    for edge in scene.graph.edges:
        points, truth = (
            torch.cat([part.reshape(-1, 3) for part in both])
            for both in (label_points(labels, edge), photos.true_points(edge))
        )
        scale = truth.norm(dim=1).mean() / points.norm(dim=1).mean()
        error = (scale * points - truth).norm(dim=1) / truth.norm(dim=1).mean()
        # The worst seen is 2.3e-7.
        assert float(error.mean()) < 2e-6


def test_labels_know_of_no_frame_or_unit_but_their_own() -> None:
    photos, scene = aligned_room()
    labels = pseudo_labels(photos.views, scene, ANY)
    turn = torch.linalg.matrix_exp(torch.tensor([[0.0, -0.4, 0.1], [0.4, 0.0, 0.2], [-0.1, -0.2, 0.0]]))
    moved = torch.eye(4)
    moved[:3, :3], moved[:3, 3] = turn, torch.tensor([1.0, 2.0, -1.0])
    T = (moved @ scene.cameras.T_world_camera.float()).to(scene.cameras.T_world_camera)
    elsewhere = dataclasses.replace(scene, cameras=dataclasses.replace(scene.cameras, T_world_camera=T))
    other = pseudo_labels(photos.views, elsewhere, ANY)
    for ours, theirs in zip(label_points(labels, (1, 2)), label_points(other, (1, 2)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


# --- the cut-off ----------------------------------------------------------------------------------


def test_the_cut_off_stays_where_enough_is_above_it() -> None:
    photos, scene = masked_room()
    scene = uniform_weights(scene)
    labels = pseudo_labels(photos.views, scene, dataclasses.replace(ANY, weight_cutoff=1.5, aimed_coverage=0.4))
    assert labels.cutoff == 1.5
    for view, (weight, mask) in enumerate(zip(scene.view_weights, labels_of_views(labels), strict=True)):
        assert float(weight[mask].min()) > 1.5, view


@pytest.mark.parametrize("aimed_coverage", [0.6, 0.9, 1.0])
def test_the_cut_off_is_lowered_to_the_coverage_aimed_for_and_no_further(aimed_coverage: float) -> None:
    photos, scene = masked_room()
    scene = uniform_weights(scene)
    settings = dataclasses.replace(ANY, weight_cutoff=1.5, aimed_coverage=aimed_coverage, lowest_cutoff=1e-9)
    labels = pseudo_labels(photos.views, scene, settings)
    weights = all_weights(photos, scene)
    naive = naive_cutoff(weights, cutoff=1.5, aimed_coverage=aimed_coverage, lowest=1e-9)
    assert labels.cutoff == pytest.approx(naive, rel=1e-6)
    assert labels.cutoff < 1.5
    labelled = sum(int(mask.sum()) for mask in labels_of_views(labels))
    assert aimed_coverage * len(weights) - 1e-6 <= labelled < aimed_coverage * len(weights) + 1


def test_the_cut_off_is_never_lowered_below_the_lowest() -> None:
    photos, scene = masked_room()
    settings = dataclasses.replace(ANY, weight_cutoff=1.5, aimed_coverage=1.0, lowest_cutoff=1.2)
    labels = pseudo_labels(photos.views, uniform_weights(scene), settings)
    assert labels.cutoff == 1.2
    faint = uniform_weights(scene, highest=0.04)
    with pytest.raises(TooFewLabelsError):
        pseudo_labels(photos.views, faint, PseudoLabelSettings(aimed_coverage=1.0, lowest_cutoff=0.05))


@pytest.mark.parametrize("weight", [0.3, 1.0, 1.5])
def test_where_all_pixels_weigh_the_same_all_are_labels(weight: float) -> None:
    photos, scene = aligned_room()
    scene = with_weights(scene, [torch.full_like(depth, weight) for depth in scene.depths])
    labels = pseudo_labels(photos.views, scene, PseudoLabelSettings(weight_cutoff=1.5, lowest_cutoff=0.05))
    assert all(torch.equal(mask, ~moving) for mask, moving in zip(labels_of_views(labels), scene.moving, strict=True))
    assert labels.cutoff < weight


@pytest.mark.parametrize("highest", [1.6, 6.0], ids=["hardly anything above", "most above"])
def test_aiming_at_nothing_is_the_papers_rule(highest: float) -> None:
    photos, scene = aligned_room()
    largest = max(float(weight.max()) for both in scene.weights for weight in both)
    weights = tuple((a * (highest / largest), b * (highest / largest)) for a, b in scene.weights)
    settings = dataclasses.replace(ANY, weight_cutoff=1.5, aimed_coverage=0.0, weights="pair")
    labels = pseudo_labels(photos.views, dataclasses.replace(scene, weights=weights), settings)
    assert labels.cutoff == 1.5
    for k, (i, j) in enumerate(scene.graph.edges):
        assert torch.equal(labels.valid_first[k], (weights[k][0] > 1.5) & ~scene.moving[i])
        assert torch.equal(labels.valid_second[k], (weights[k][1] > 1.5) & ~scene.moving[j])


def labels_of_views(labels: PseudoLabels) -> list[Tensor]:
    """Which pixels of each view have a label in any pair."""
    found = [torch.zeros_like(depth, dtype=torch.bool) for depth in labels.depths]
    for (i, j), first, second in zip(labels.graph.edges, labels.valid_first, labels.valid_second, strict=True):
        found[i] |= first
        found[j] |= second
    return found


# --- whose weight ---------------------------------------------------------------------------------


def test_a_views_own_weight_decides_alike_in_all_its_pairs_and_a_pairs_weight_for_itself() -> None:
    photos, scene = aligned_room()
    k = scene.graph.edges.index((1, 2))
    weights = list(scene.weights)
    weights[k] = (torch.zeros_like(weights[k][0]), torch.zeros_like(weights[k][1]))
    distrusted = dataclasses.replace(scene, weights=tuple(weights))
    of_view = pseudo_labels(photos.views, distrusted, ANY)
    of_pair = pseudo_labels(photos.views, distrusted, dataclasses.replace(ANY, weights="pair"))
    assert bool(of_view.valid_first[k].any())
    assert not bool(of_pair.valid_first[k].any() or of_pair.valid_second[k].any())
    # One mask per view, whatever the number of pairs; or one for each end of each pair.
    assert distinct_masks(of_view) == len(photos.views)
    assert of_view.valid_first[k] is of_view.valid_second[scene.graph.edges.index((0, 1))]
    assert distinct_masks(of_pair) == 2 * len(scene.graph)


@pytest.mark.parametrize("weights", ["view", "pair"])
def test_nothing_masked_or_moving_is_labelled_however_much_it_weighs(weights) -> None:
    photos, scene = masked_room()
    heavy = dataclasses.replace(
        scene,
        view_weights=tuple(torch.full_like(depth, 9.0) for depth in scene.depths),
        weights=tuple((torch.full_like(a, 9.0), torch.full_like(b, 9.0)) for a, b in scene.weights),
    )
    labels = pseudo_labels(photos.views, heavy, dataclasses.replace(ANY, weights=weights, aimed_coverage=1.0))
    for view, (labelled, moving, mask) in enumerate(
        zip(labels_of_views(labels), scene.moving, photos.views.masks, strict=True)
    ):
        unmasked = torch.ones_like(moving) if mask is None else mask
        assert torch.equal(labelled, unmasked & ~moving)
        # Of all unmasked pixels, moving ones included.
        assert float(labels.coverage[view]) == pytest.approx(float(labelled.sum() / unmasked.sum()))
    everything = pseudo_labels(
        photos.views, heavy, dataclasses.replace(ANY, weights=weights, aimed_coverage=1.0, moving=True)
    )
    for labelled, mask in zip(labels_of_views(everything), photos.views.masks, strict=True):
        assert torch.equal(labelled, torch.ones_like(labelled) if mask is None else mask)


def test_dropped_pairs_have_labels_too() -> None:
    photos = room(5)
    scene = align(photos.views, noisy(5, wrong_edges=3)[0], OFF)
    assert scene.dropped_edges
    labels = pseudo_labels(photos.views, scene, PseudoLabelSettings())
    assert labels.graph.edges == scene.graph.edges
    for edge in scene.dropped_edges:
        assert bool(labels.valid_second[scene.graph.edges.index(edge)].any())


# --- too little, and what is refused --------------------------------------------------------------


def test_too_few_labels_are_refused_by_the_names_of_the_worst_views() -> None:
    photos, scene = aligned_room()
    weights = [torch.zeros_like(depth) for depth in scene.depths]
    weights[2][:1, :4] = 2.0
    with pytest.raises(TooFewLabelsError) as caught:
        pseudo_labels(photos.views, with_weights(scene, weights), PseudoLabelSettings())
    message = str(caught.value)
    assert all(photos.views.names[view] in message for view in (0, 1, 3))
    assert "robust" in caught.value.way_out
    assert photos.views.names[2] not in message


def test_a_scene_without_a_single_pixel_that_counts_is_refused_and_not_a_crash() -> None:
    photos, scene = aligned_room()
    masks = {view: torch.zeros(shape, dtype=torch.bool) for view, shape in enumerate(photos.views.shapes)}
    with pytest.raises(TooFewLabelsError):
        pseudo_labels(replaced(photos.views, masks=masks), scene)


def test_a_scene_of_other_views_is_refused() -> None:
    photos, scene = aligned_room()
    with pytest.raises(InvalidDataError, match="4 views for 3 photos"):
        pseudo_labels(photos.views.select([0, 1, 2]), scene)


@pytest.mark.parametrize(
    "wrong",
    [
        {"weight_cutoff": 0.01, "lowest_cutoff": 0.05},
        {"lowest_cutoff": 0.0},
        {"weight_cutoff": float("nan")},
        {"aimed_coverage": 1.1},
        {"aimed_coverage": -0.1},
        {"least_coverage": 0.0},
        {"least_coverage": 1.5},
    ],
    ids=str,
)
def test_impossible_settings_are_refused(wrong: dict) -> None:
    with pytest.raises(SettingsError):
        PseudoLabelSettings(**wrong)


# --- known depth ----------------------------------------------------------------------------------


def test_labels_from_true_depth_are_the_truth_and_nothing_where_depth_is_unknown() -> None:
    photos = room(3, shapes=SHAPES, source_scale=2.0)
    mask = torch.ones(photos.views.shapes[1], dtype=torch.bool)
    mask[:5] = False
    views = replaced(photos.views, masks={1: mask})
    depths = [depth.clone() for depth in photos.depths_m]
    depths[0][2, 3], depths[0][4, 5], depths[0][6, 7], depths[0][8, 9] = 0.0, float("nan"), -1.0, float("inf")
    graph = complete(3)
    labels = labels_from_depths(
        views, graph, T_world_camera=photos.cameras.T_world_camera, K=photos.cameras.K, depths=depths
    )
    unknown = [(2, 3), (4, 5), (6, 7), (8, 9)]
    first = labels.valid_first[0]
    assert {tuple(pixel) for pixel in (~first).nonzero().tolist()} == set(unknown)
    assert torch.equal(labels.valid_second[0], mask)
    assert distinct_masks(labels) == 3
    assert labels.cutoff == 0.0
    assert float(labels.coverage[1]) == 1.0
    assert float(labels.coverage[0]) == pytest.approx(1.0 - len(unknown) / first.numel())
    for edge in graph.edges:
        k = graph.edges.index(edge)
        for points, truth, valid in zip(
            label_points(labels, edge),
            photos.true_points(edge),
            (labels.valid_first[k], labels.valid_second[k]),
            strict=True,
        ):
            assert bool(torch.isfinite(points).all())
            torch.testing.assert_close(points[valid], truth[valid], rtol=1e-5, atol=1e-5)
