from dataclasses import replace

import pytest
import torch
from alignment_samples import depths_of, free_numbers, grid_of, rooms, start_of
from torch import Tensor

from lora3d_ns.alignment.initialize import (
    cameras_of,
    focal_estimates,
    initial_state,
    principal_points,
    world_from_shapes,
)
from lora3d_ns.alignment.relations import EdgeRelations, edge_relations, view_shapes
from lora3d_ns.alignment.solve import SolverSettings, minimise
from lora3d_ns.alignment.state import AlignmentState
from lora3d_ns.errors import InvalidDataError
from lora3d_ns.evaluation.metrics import absolute_trajectory_error, relative_pose_errors_deg
from lora3d_ns.pair_graph import CompleteGraph, WindowGraph, build_pair_graph
from lora3d_ns.rooms.benchmark_scenes import RoomPhotos
from lora3d_ns.rooms.simulated import NoiseSettings, exact_predictions, noisy_predictions
from lora3d_ns.types import Cameras, PairGraph, PairPredictions, Sim3

MIXED = ((24, 32), (32, 24))


def complete(count: int) -> PairGraph:
    return build_pair_graph(CompleteGraph(), count)


def with_poses(photos: RoomPhotos, T_world_camera: Tensor) -> RoomPhotos:
    """The same depth maps seen from other places: point maps stay consistent, since every point has one owner."""
    cameras = Cameras(T_world_camera=T_world_camera, K=photos.cameras.K, sizes=photos.cameras.sizes)
    return replace(photos, cameras=cameras)


def check_cameras(photos: RoomPhotos, state: AlignmentState) -> None:
    cameras = cameras_of(state, photos.views)
    errors = relative_pose_errors_deg(cameras.T_world_camera, photos.cameras.T_world_camera)
    # Float32 point maps along chains of up to nine links: 2e-5 degrees, 2e-6 of a metre and 2e-6 of focal measured.
    assert float(errors.rotation_deg.max()) < 1e-3
    first, second = torch.triu_indices(len(cameras), len(cameras), offset=1)
    centres = photos.cameras.T_world_camera[:, :3, 3]
    # Between two photos from one place there is no direction.
    apart = (centres[first] - centres[second]).norm(dim=1) > 1e-6
    assert not bool((errors.translation_deg[apart] > 1e-2).any())
    if len(cameras) > 2:
        assert absolute_trajectory_error(cameras.T_world_camera, photos.cameras.T_world_camera) < 1e-4
    torch.testing.assert_close(cameras.K, photos.cameras.K, rtol=1e-4, atol=1e-4)
    assert torch.equal(cameras.T_world_camera[0], torch.eye(4))


@pytest.mark.parametrize("count", [2, 3, 10])
@pytest.mark.parametrize("graph", [CompleteGraph(), WindowGraph(size=1)], ids=["complete", "chain"])
def test_exact_predictions_give_the_cameras_back(count: int, graph: CompleteGraph | WindowGraph) -> None:
    photos = rooms(count, shapes=MIXED)
    predictions = exact_predictions(photos, build_pair_graph(graph, count))
    state, unit = start_of(photos.views, predictions)
    check_cameras(photos, state)
    assert float(state.world_from_edge.scale.log().mean()) == pytest.approx(0.0, abs=1e-12)
    # The unit is a typical depth: the true one, times what the world is larger than metres.
    baselines = [
        float((T[:3, 3] - T0[:3, 3]).norm())
        for T, T0 in (
            (state.T_world_camera[1], state.T_world_camera[0]),
            (photos.cameras.T_world_camera[1], photos.cameras.T_world_camera[0]),
        )
    ]
    depths = torch.stack([depth.median() for depth in photos.depths_m])
    assert unit * baselines[1] / baselines[0] == pytest.approx(float(depths.median()), rel=0.1)


def test_pure_rotation() -> None:
    """All photos from one place: a panorama. Exact predictions leave nothing open."""
    photos = rooms(4)
    T = photos.cameras.T_world_camera.clone()
    T[:, :3, 3] = T[0, :3, 3]
    photos = with_poses(photos, T)
    predictions = exact_predictions(photos, complete(4))
    state, unit = start_of(photos.views, predictions)
    errors = relative_pose_errors_deg(cameras_of(state, photos.views).T_world_camera, T)
    assert float(errors.rotation_deg.max()) < 1e-3
    assert float(state.T_world_camera[:, :3, 3].norm(dim=1).max()) < 1e-5 * unit
    grid = grid_of(photos.views, predictions)
    solution = minimise(grid, state, free_numbers(4, 12), SolverSettings(), mu=0.05, unit=unit)
    assert float(solution.state.T_world_camera[:, :3, 3].norm(dim=1).max()) < 1e-4 * unit


def test_repeated_photos() -> None:
    """Photos 1 and 2 are one and the same."""
    photos = rooms(4)
    order = [0, 1, 1, 3]
    T = photos.cameras.T_world_camera[order]
    photos = replace(
        with_poses(photos, T),
        depths_m=tuple(photos.depths_m[view] for view in order),
    )
    predictions = exact_predictions(photos, complete(4))
    state, unit = start_of(photos.views, predictions)
    check_cameras(photos, state)
    solution = minimise(
        grid_of(photos.views, predictions), state, free_numbers(4, 12), SolverSettings(), mu=0.05, unit=unit
    )
    check_cameras(photos, solution.state)
    depths = depths_of(grid_of(photos.views, predictions), solution.state, list(solution.distances))
    torch.testing.assert_close(depths[1], depths[2], rtol=1e-3, atol=0)


@pytest.mark.parametrize("seed", range(3))
def test_the_tree_goes_around_wrong_edges(seed: int) -> None:
    photos = rooms(6, shapes=MIXED)
    predictions, truth = noisy_predictions(photos, complete(6), NoiseSettings(wrong_edges=3), seed=seed)
    assert len(truth.wrong_edges) == 3
    state, _ = start_of(photos.views, predictions)
    errors = relative_pose_errors_deg(cameras_of(state, photos.views).T_world_camera, photos.cameras.T_world_camera)
    # Each pair is off by 1.5 degrees, a wrong one by 60 or more: 4.3 measured at most.
    assert float(errors.rotation_deg.max()) < 8.0


def relations_of(graph: PairGraph, misfit: list[float], disagreement: list[float]) -> EdgeRelations:
    count = len(graph)
    shifts = torch.arange(1.0, count + 1.0, dtype=torch.float64)
    return EdgeRelations(
        first_from_second=Sim3(
            scale=torch.ones(count, dtype=torch.float64),
            rotation=torch.eye(3, dtype=torch.float64).repeat(count, 1, 1),
            translation=torch.stack([shifts, 0 * shifts, 0 * shifts], dim=1),
        ),
        edge_scale=torch.ones(count, dtype=torch.float64),
        misfit=torch.tensor(misfit, dtype=torch.float64),
        disagreement=torch.tensor(disagreement, dtype=torch.float64),
        strength=torch.ones(count, dtype=torch.float64),
    )


def test_the_tree_takes_the_better_order_what_is_not_dropped_and_what_is_matched() -> None:
    """Every edge shifts by its own number: where a view ends up tells which edges it hangs on."""
    graph = complete(3)  # (0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1) shift by 1 to 6
    nothing = [0.0] * 6
    placed = world_from_shapes(graph, relations_of(graph, [0.1, 0.5, 0.2, 0.1, 0.5, 0.2], nothing), {}, {})
    assert placed.translation[:, 0].tolist() == [0.0, 1.0, 1.0 + 4.0]
    placed = world_from_shapes(graph, relations_of(graph, [0.1, 0.5, 0.2, 0.1, 0.5, 0.2], nothing), {(0, 1): "bad"}, {})
    assert placed.translation[:, 0].tolist() == [0.0, -3.0, -3.0 + 4.0]
    placed = world_from_shapes(graph, relations_of(graph, [0.1, 0.5, 0.2, 0.1, 0.5, 0.2], nothing), {}, {(0, 2): 400})
    assert placed.translation[2, 0] == 2.0
    placed = world_from_shapes(graph, relations_of(graph, nothing, [0.5, 0.1, 0.5, 0.5, 0.2, 0.1]), {}, {})
    assert placed.translation[:, 0].tolist() == [0.0, 2.0 + 6.0, 2.0]


def test_dropped_edges_have_no_part_in_the_gauge() -> None:
    photos = rooms(3)
    predictions = exact_predictions(photos, complete(3))
    relations = edge_relations(predictions, view_shapes(photos.views, predictions))
    focal = torch.full((3, 2), 20.0, dtype=torch.float64)
    placed = world_from_shapes(predictions.graph, relations, {}, {})
    state, _ = initial_state(
        predictions.graph, relations, placed, focal, principal_points(photos.views), {(0, 1): "left out"}
    )
    assert float(state.world_from_edge.scale[1:].log().mean()) == pytest.approx(0.0, abs=1e-12)
    assert abs(float(state.world_from_edge.scale.log().mean())) > 1e-3


def test_principal_points_are_the_source_photos_centres_or_known() -> None:
    photos = rooms(3, shapes=MIXED)
    K = torch.tensor([[30.0, 0.0, 13.0], [0.0, 30.0, 11.0], [0.0, 0.0, 1.0]])
    views = replace(photos.views, known_K=(None, K, None))
    assert principal_points(views).tolist() == [[16.0, 12.0], [13.0, 11.0], [16.0, 12.0]]
    assert principal_points(views, (1.5, -2.0)).tolist() == [[17.5, 10.0], [14.5, 9.0], [17.5, 10.0]]


def scaled_depth(predictions: PairPredictions, factors: dict[int, float]) -> PairPredictions:
    """First maps with x and y multiplied: the focal length they say is divided."""
    pairs = list(predictions.pairs)
    for edge, factor in factors.items():
        stretched = pairs[edge].points_first * torch.tensor([factor, factor, 1.0])
        pairs[edge] = replace(pairs[edge], points_first=stretched)
    return PairPredictions(graph=predictions.graph, pairs=tuple(pairs))


def test_the_focal_length_is_the_median_over_pairs_with_their_spread() -> None:
    photos = rooms(4)
    predictions = scaled_depth(exact_predictions(photos, complete(4)), {0: 1.0 / 0.9, 2: 1.0 / 1.3})
    estimates = focal_estimates(photos.views, view_shapes(photos.views, predictions), principal_points(photos.views))
    true = photos.cameras.K[:, 0, 0].double()
    # Of view 0 the three pairs say 0.9, 1 and 1.3 of the truth; quartiles 0.95 and 1.15.
    torch.testing.assert_close(estimates.focal_px, true, rtol=1e-5, atol=0)
    assert float(estimates.spread_percent[0]) == pytest.approx(10.0, rel=1e-3)
    assert float(estimates.spread_percent[1:].max()) < 1e-3


@pytest.mark.parametrize(("factor", "limit"), [(0.01, 4.0), (100.0, 0.4)])
def test_impossible_focal_lengths_are_clamped(factor: float, limit: float) -> None:
    photos = rooms(2)
    predictions = scaled_depth(exact_predictions(photos, complete(2)), {0: factor})
    estimates = focal_estimates(photos.views, view_shapes(photos.views, predictions), principal_points(photos.views))
    assert float(estimates.focal_px[0]) == pytest.approx(limit * 32.0)
    assert float(estimates.focal_px[1]) == pytest.approx(float(photos.cameras.K[1, 0, 0]), rel=1e-5)


def test_no_focal_length_at_all_is_named() -> None:
    """Beyond 80 degrees from the axis no point counts."""
    photos = rooms(2)
    predictions = scaled_depth(exact_predictions(photos, complete(2)), {1: 1e5})
    with pytest.raises(InvalidDataError, match="simulated-01 no focal length"):
        focal_estimates(photos.views, view_shapes(photos.views, predictions), principal_points(photos.views))
