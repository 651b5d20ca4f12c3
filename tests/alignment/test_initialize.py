import dataclasses

import pytest
import torch

from lora3d_ns.alignment.initialize import chain_cameras
from lora3d_ns.conventions import PixelAffine
from lora3d_ns.errors import DisconnectedViewsError, InvalidDataError
from lora3d_ns.evaluation.metrics import (
    absolute_focal_error_percent,
    absolute_trajectory_error,
    relative_pose_errors_deg,
)
from lora3d_ns.geometry.camera import points_from_depth
from lora3d_ns.pair_graph import CompleteGraph, WindowGraph, build_pair_graph, symmetric_graph
from lora3d_ns.types import Cameras, PairGraph, PairPrediction, PairPredictions, Views


def exact_scene(make_views, graph: PairGraph, *, seed: int = 0) -> tuple[Views, PairPredictions, Cameras]:
    """Cameras around a bumpy surface, and exact predictions, each pair in a unit of its own."""
    generator = torch.Generator().manual_seed(seed)
    count = graph.view_count
    shapes = [(30, 40) if view % 3 else (40, 30) for view in range(count)]
    views = make_views(shapes)
    focal_px = 45.0
    T = torch.eye(4, dtype=torch.float64).repeat(count, 1, 1)
    skew = 0.2 * torch.randn(count, 3, 3, dtype=torch.float64, generator=generator)
    T[:, :3, :3] = torch.linalg.matrix_exp(skew - skew.mT)
    T[:, :3, 3] = torch.randn(count, 3, dtype=torch.float64, generator=generator)
    T = torch.linalg.inv(T[0]) @ T
    K = torch.stack(
        [torch.tensor([[focal_px, 0, w / 2], [0, focal_px, h / 2], [0, 0, 1]], dtype=torch.float64) for h, w in shapes]
    )
    own = [
        points_from_depth(torch.rand(h, w, dtype=torch.float64, generator=generator) + 1.0, K[view])
        for view, (h, w) in enumerate(shapes)
    ]
    pairs = []
    for i, j in graph.edges:
        unit = float(torch.rand((), generator=generator)) + 0.5
        T_i_j = torch.linalg.inv(T[i]) @ T[j]
        second = own[j] @ T_i_j[:3, :3].T + T_i_j[:3, 3]
        pairs.append(
            PairPrediction(
                points_first=(unit * own[i]).float(),
                points_second=(unit * second).float(),
                confidence_first=torch.ones(shapes[i]),
                confidence_second=torch.ones(shapes[j]),
            )
        )
    true = Cameras(T_world_camera=T, K=K, sizes=views.source_sizes)
    return views, PairPredictions(graph=graph, pairs=tuple(pairs)), true


@pytest.mark.parametrize("count", [3, 10])
@pytest.mark.parametrize("graph", [CompleteGraph(), WindowGraph(size=1)], ids=["complete", "chain"])
def test_exact_predictions_give_the_cameras_back(make_views, count: int, graph) -> None:
    views, predictions, true = exact_scene(make_views, build_pair_graph(graph, count))
    cameras = chain_cameras(views, predictions)
    errors = relative_pose_errors_deg(cameras.T_world_camera, true.T_world_camera)
    # float32 point maps along chains of up to nine links: 3e-4 degrees and 5e-6 measured.
    assert float(errors.rotation_deg.max()) < 0.01
    assert absolute_trajectory_error(cameras.T_world_camera, true.T_world_camera) < 1e-4
    assert absolute_focal_error_percent(cameras.K, true.K) < 0.02
    assert torch.equal(cameras.T_world_camera[0], torch.eye(4))


def test_two_views(make_views) -> None:
    views, predictions, true = exact_scene(make_views, build_pair_graph(CompleteGraph(), 2))
    errors = relative_pose_errors_deg(chain_cameras(views, predictions).T_world_camera, true.T_world_camera)
    assert float(errors.rotation_deg) < 0.01
    assert float(errors.translation_deg) < 0.01


def test_a_quarter_of_wild_points_does_little_harm(make_views) -> None:
    views, predictions, true = exact_scene(make_views, build_pair_graph(CompleteGraph(), 5))
    for pair in predictions.pairs:
        pair.points_second[:8] = 5.0 * torch.randn(8, pair.points_second.shape[1], 3)
    cameras = chain_cameras(views, predictions)
    assert float(relative_pose_errors_deg(cameras.T_world_camera, true.T_world_camera).rotation_deg.max()) < 0.1


def test_intrinsics_are_in_source_pixels(make_views) -> None:
    views, predictions, _ = exact_scene(make_views, build_pair_graph(CompleteGraph(), 2))
    affine = PixelAffine(scale_x=4.0, scale_y=4.0, offset_x_px=8.0, offset_y_px=0.0)
    larger = dataclasses.replace(views, source_from_network=(affine,) * 2)
    K, K_larger = chain_cameras(views, predictions).K[0], chain_cameras(larger, predictions).K[0]
    torch.testing.assert_close(K_larger[:2, :2], 4.0 * K[:2, :2])
    torch.testing.assert_close(K_larger[:2, 2], 4.0 * K[:2, 2] + torch.tensor([8.0, 0.0]))


def test_views_that_do_not_connect_are_named(make_views) -> None:
    views, predictions, _ = exact_scene(make_views, symmetric_graph(4, [(0, 1), (2, 3)]))
    with pytest.raises(DisconnectedViewsError, match="2 groups"):
        chain_cameras(views, predictions)


def test_one_order_alone_is_refused(make_views) -> None:
    views, predictions, _ = exact_scene(make_views, PairGraph(view_count=2, edges=((0, 1),)))
    with pytest.raises(InvalidDataError, match=r"\(1, 0\) is missing"):
        chain_cameras(views, predictions)


def test_a_view_without_a_point_before_its_camera_is_named(make_views) -> None:
    views, predictions, _ = exact_scene(make_views, build_pair_graph(CompleteGraph(), 2))
    predictions.pairs[0].points_first[..., 2] = -1.0
    with pytest.raises(InvalidDataError, match=r"no point of 0\.png"):
        chain_cameras(views, predictions)
