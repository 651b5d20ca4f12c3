import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from lora3d_ns.alignment.matches import Matches
from lora3d_ns.alignment.verification import PairMatches
from lora3d_ns.conventions import pixel_centres
from lora3d_ns.errors import InvalidDataError
from lora3d_ns.evaluation.metrics import absolute_focal_error_percent, absolute_trajectory_error
from lora3d_ns.geometry.camera import points_from_depth, project
from lora3d_ns.network.checkpoints import load_network
from lora3d_ns.pair_graph import CompleteGraph, build_pair_graph
from lora3d_ns.rooms import benchmark_calibration, bundle_adjustment_peer
from lora3d_ns.rooms.benchmark_calibration import (
    METRICS,
    CalibrationBenchmarkSettings,
    calibration_markdown,
    run_calibration_benchmark,
)
from lora3d_ns.rooms.benchmark_scenes import RoomPhotos
from lora3d_ns.rooms.bundle_adjustment_peer import bundle_adjusted_cameras
from lora3d_ns.rooms.simulated import NoiseSettings, noisy_predictions, photograph_rooms
from lora3d_ns.types import Cameras

SHAPE = (48, 64)
NOISE_PX = 0.05


def exact_matches(photos: RoomPhotos, *, noise_px: float = NOISE_PX, wrong_share: float = 0.0) -> Matches:
    """Every fourth pixel of each photo, where it is visible in the others, with noise and some wrong ones."""
    generator = torch.Generator().manual_seed(4)
    T, pairs, world, K = photos.cameras.T_world_camera.double(), {}, [], []
    for view, affine in enumerate(photos.views.source_from_network):
        K.append(affine.K_network_from_source(photos.cameras.K[view].double()))
        points = points_from_depth(photos.depths_m[view].double(), K[view])[::4, ::4].reshape(-1, 3)
        world.append(points @ T[view, :3, :3].T + T[view, :3, 3])
    height, width = SHAPE
    for i in range(len(T)):
        own = pixel_centres(height, width, dtype=torch.float64)[::4, ::4].reshape(-1, 2)
        for j in range(i + 1, len(T)):
            camera = (world[i] - T[j, :3, 3]) @ T[j, :3, :3]
            pixel = project(camera, K[j])
            inside = (camera[:, 2] > 0.1) & (pixel >= 0).all(dim=1) & (pixel < torch.tensor([width, height])).all(dim=1)
            x, y = pixel[inside].floor().long().unbind(dim=1)
            nearest_m = photos.depths_m[j].double()[y, x]
            visible = inside.clone()
            visible[inside] = (camera[inside, 2] - nearest_m).abs() < 0.05 * nearest_m
            second = pixel[visible]
            second = second + noise_px * torch.randn(second.shape, generator=generator, dtype=torch.float64)
            wrong = torch.rand(len(second), generator=generator) < wrong_share
            anywhere = torch.rand(len(second), 2, generator=generator).double() * torch.tensor([width, height])
            second = torch.where(wrong[:, None], anywhere, second)
            pairs[i, j] = PairMatches(pixels_first=own[visible], pixels_second=second)
    return Matches(pairs=pairs)


def turned(T: Tensor, angle_deg: float, generator: torch.Generator) -> Tensor:
    axis = torch.randn(3, generator=generator, dtype=torch.float64)
    x, y, z = (math.radians(angle_deg) * axis / axis.norm()).tolist()
    cross = torch.tensor([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]], dtype=torch.float64)
    changed = T.clone()
    changed[:3, :3] = T[:3, :3] @ torch.linalg.matrix_exp(cross)
    return changed


def perturbed(photos: RoomPhotos) -> Cameras:
    """Cameras off by 2 degrees, 5 % of the typical depth, and 5 % of focal length."""
    generator = torch.Generator().manual_seed(2)
    T = photos.cameras.T_world_camera.double()
    depth_m = float(torch.cat([depth.flatten() for depth in photos.depths_m]).median())
    T = torch.stack([turned(pose, 2.0, generator) for pose in T])
    shift = torch.randn(len(T), 3, generator=generator, dtype=torch.float64)
    T[:, :3, 3] += 0.05 * depth_m * shift / shift.norm(dim=1, keepdim=True)
    K = photos.cameras.K.clone()
    K[:, [0, 1], [0, 1]] *= 1.05
    return replace(photos.cameras, T_world_camera=T.to(photos.cameras.T_world_camera), K=K)


def errors(cameras: Cameras, photos: RoomPhotos) -> tuple[float, float]:
    return (
        absolute_trajectory_error(cameras.T_world_camera, photos.cameras.T_world_camera),
        absolute_focal_error_percent(cameras.K, photos.cameras.K),
    )


@pytest.mark.parametrize(("source_scale", "wrong_share"), [(1.0, 0.0), (3.0, 0.0), (1.0, 0.05)])
def test_perturbed_cameras_are_recovered(source_scale: float, wrong_share: float) -> None:
    photos = photograph_rooms(8, shapes=[SHAPE], seed=1, source_scale=source_scale)
    start = perturbed(photos)
    ate_before_m, afe_before = errors(start, photos)
    made = bundle_adjusted_cameras(photos.views, start, exact_matches(photos, wrong_share=wrong_share))
    ate_after_m, afe_after = errors(made.cameras, photos)
    assert ate_after_m < 0.1 * ate_before_m
    assert afe_after < 0.1 * afe_before
    assert made.seconds < 20.0
    assert made.mean_error_before_px is not None
    assert made.mean_error_after_px is not None
    assert made.mean_error_before_px > 1.0
    # The mean length of the noise of one pixel; the other pixel of each match is exact, so less is left.
    assert made.mean_error_after_px < math.sqrt(math.pi / 2) * NOISE_PX
    np.testing.assert_allclose(made.cameras.T_world_camera[0], start.T_world_camera[0], atol=1e-6)
    torch.testing.assert_close(made.cameras.K[:, :2, 2], start.K[:, :2, 2], rtol=0.0, atol=0.0)


def test_each_lens_group_has_one_focal_length() -> None:
    photos = photograph_rooms(6, shapes=[SHAPE], seed=2)
    photos = replace(photos, views=replace(photos.views, lens_groups=("a", "a", "a", "b", "b", "b")))
    made = bundle_adjusted_cameras(photos.views, perturbed(photos), exact_matches(photos))
    focal = made.cameras.K[:, 0, 0]
    assert len(focal[:3].unique()) == len(focal[3:].unique()) == 1
    assert focal[0] != focal[5]


def test_without_matches_nothing_changes() -> None:
    photos = photograph_rooms(3, shapes=[SHAPE], seed=2)
    made = bundle_adjusted_cameras(photos.views, photos.cameras, Matches(pairs={}))
    assert made.cameras is photos.cameras
    assert (made.observations, made.mean_error_before_px, made.mean_error_after_px) == (0, None, None)


def test_an_adjustment_that_ran_away_leaves_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    photos = photograph_rooms(4, shapes=[SHAPE], seed=2)
    monkeypatch.setattr(bundle_adjustment_peer, "FOCAL_RANGE", (20.0, 30.0))
    start = perturbed(photos)
    made = bundle_adjusted_cameras(photos.views, start, exact_matches(photos))
    assert made.cameras is start
    assert made.observations == 0


def test_cameras_of_other_photos_are_refused() -> None:
    photos = photograph_rooms(3, shapes=[SHAPE], seed=2)
    with pytest.raises(InvalidDataError, match="3 cameras for 2 photos"):
        bundle_adjusted_cameras(photos.views.select([0, 1]), photos.cameras, Matches(pairs={}))


def test_the_benchmark_has_it_as_a_variant_of_cameras_only(monkeypatch: pytest.MonkeyPatch) -> None:
    photos = photograph_rooms(4, shapes=[SHAPE], seed=1)
    graph = build_pair_graph(CompleteGraph(), 4)
    predictions, _ = noisy_predictions(photos, graph, NoiseSettings(wrong_edges=0), seed=2)
    matches = exact_matches(photos)

    class Scene:
        name = "nominal-0"
        test = photos

    monkeypatch.setattr(benchmark_calibration, "PHOTOS", 4)
    monkeypatch.setattr(benchmark_calibration, "make_scene", lambda *_args, **_options: Scene())
    monkeypatch.setattr(benchmark_calibration, "predict_pairs", lambda *_args, **_options: predictions)
    monkeypatch.setattr(benchmark_calibration, "match_views", lambda *_args, **_options: matches)
    settings = CalibrationBenchmarkSettings(
        variants=("plain", "point_maps", "bundle_adjustment"), domains=("nominal",), scenes=1
    )
    record = run_calibration_benchmark(load_network("rooms"), settings, image_size=48, show_progress=False)
    rows = record["rows"]
    assert isinstance(rows, list)
    by_variant = {row["variant"]: row for row in rows}
    adjusted = by_variant["bundle_adjustment"]
    assert adjusted["ate"] < 0.2 * by_variant["point_maps"]["ate"]
    assert {metric for metric in METRICS if adjusted[metric] is not None} == {"ate", "afe_percent", "auc30"}
    summary = record["summary"]
    assert isinstance(summary, dict)
    assert summary["all"]["bundle_adjustment"]["accuracy"] == {"mean": None, "median": None}
    assert summary["all"]["bundle_adjustment"]["improved"] == 1
    line = next(line for line in calibration_markdown(record).splitlines() if "bundle_adjustment" in line)
    assert line.count(" - ") == len(METRICS) - 3
