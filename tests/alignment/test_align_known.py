"""Alignments whose answer is known, and alignments that are told a part of it."""

import dataclasses

import pytest
import torch
from aligned_rooms import (
    OFF,
    SMALL,
    ate_m,
    camera_differences,
    complete,
    exact,
    focal_errors_percent,
    noisy,
    replaced,
    room,
)

from lora3d_ns.alignment.align import align
from lora3d_ns.alignment.settings import KnownDistance
from lora3d_ns.errors import KnownCameraError, SettingsError
from lora3d_ns.pair_graph import WindowGraph, build_pair_graph
from lora3d_ns.rooms.simulated import exact_predictions
from lora3d_ns.types import AlignedScene, Views

PORTRAIT_AND_OTHERS = ((48, 64), (64, 48), (40, 64))


def _expect_truth(scene: AlignedScene, photos) -> None:
    rotation_deg, translation = camera_differences(scene.cameras.T_world_camera, photos.cameras.T_world_camera)
    assert rotation_deg < 0.01
    assert translation < 1e-4
    assert float(focal_errors_percent(scene, photos).max()) < 0.02


@pytest.mark.parametrize("count", [2, 3, 10])
def test_exact_predictions_give_the_cameras_back(count: int) -> None:
    photos = room(count)
    scene = align(photos.views, exact(count), OFF)
    _expect_truth(scene, photos)
    assert torch.equal(scene.cameras.T_world_camera[0], torch.eye(4))
    assert scene.dropped_edges == {}
    assert scene.diagnosis.converged
    assert scene.diagnosis.warnings == ()
    for depth, true in zip(scene.depths, photos.depths_m, strict=True):
        ratio = depth / true
        assert float((ratio / ratio.median() - 1.0).abs().max()) < 1e-3


def test_forty_views_in_a_window() -> None:
    photos = room(40)
    graph = build_pair_graph(WindowGraph(size=3), 40)
    _expect_truth(align(photos.views, exact_predictions(photos, graph), OFF), photos)


@pytest.mark.parametrize("objective", ["robust", "plain"])
@pytest.mark.parametrize("focal_spread", [0.0, 0.1])
def test_mixed_shapes_and_focal_lengths_in_source_pixels(focal_spread: float, objective) -> None:
    photos = room(5, shapes=PORTRAIT_AND_OTHERS, focal_spread=focal_spread, source_scale=3.5)
    settings = dataclasses.replace(OFF, objective=objective)
    scene = align(photos.views, exact_predictions(photos, complete(5)), settings)
    _expect_truth(scene, photos)
    assert scene.cameras.sizes == photos.views.source_sizes
    torch.testing.assert_close(scene.cameras.K[:, :2, 2], photos.cameras.K[:, :2, 2])


@pytest.mark.parametrize("focal", ["shared", "per_image"])
def test_focal_models(focal) -> None:
    photos = room(4)
    predictions, _ = noisy(4, wrong_edges=0)
    scene = align(photos.views, predictions, dataclasses.replace(OFF, focal=focal))
    focals = scene.cameras.K[:, 0, 0]
    assert (float(focals.max() - focals.min()) < 1e-4 * float(focals.mean())) == (focal == "shared")


def test_the_principal_point_is_found() -> None:
    """All photos seen through a lens whose centre is elsewhere: the maps say so, and the matrix follows."""
    photos = room(4)
    K = photos.cameras.K.clone()
    K[:, :2, 2] += torch.tensor([2.0, -1.5])
    shifted = dataclasses.replace(photos, cameras=dataclasses.replace(photos.cameras, K=K))
    predictions = exact_predictions(shifted, complete(4))
    scene = align(photos.views, predictions, dataclasses.replace(OFF, principal_point=True))
    torch.testing.assert_close(scene.cameras.K[:, :2, 2], K[:, :2, 2], atol=0.02, rtol=0.0)


# --- intrinsics -----------------------------------------------------------------------------------


def test_known_intrinsics_are_kept_and_do_not_hurt() -> None:
    without, for_some, for_all = [], [], []
    for seed in range(4):
        photos = room(5, seed=seed)
        predictions, _ = noisy(5, seed=seed)
        without.append(ate_m(align(photos.views, predictions, OFF), photos))
        for views_known, ates in (((1, 4), for_some), ((0, 1, 2, 3, 4), for_all)):
            views = replaced(photos.views, known_K={view: photos.cameras.K[view] for view in views_known})
            scene = align(views, predictions, OFF)
            for view in views_known:
                torch.testing.assert_close(scene.cameras.K[view], photos.cameras.K[view], rtol=1e-5, atol=1e-4)
            ates.append(ate_m(scene, photos))
    # Simulated maps hold the focal length to 0.1 % anyway: what knowing it changes is chance. Measured over these seeds
    # +2.5 % for some and +0.8 % for all, over eight seeds +0.8 % and +0.6 %.
    assert sum(for_all) < 1.03 * sum(without)
    assert sum(for_some) < 1.03 * sum(without)


def test_intrinsics_that_the_maps_deny_are_flagged() -> None:
    photos = room(4)
    K = photos.cameras.K[1] * torch.tensor([[4.0, 1.0, 1.0], [1.0, 4.0, 1.0], [1.0, 1.0, 1.0]])
    scene = align(replaced(photos.views, known_K={1: K}), exact(4), OFF)
    assert any("simulated-01 is 4 times" in warning for warning in scene.diagnosis.warnings)
    assert torch.isfinite(scene.cameras.T_world_camera).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0, -50.0])
def test_intrinsics_that_cannot_be_are_refused(value: float) -> None:
    photos = room(3)
    K = photos.cameras.K[0].clone()
    K[1, 1] = value
    with pytest.raises(KnownCameraError, match="simulated-00"):
        align(replaced(photos.views, known_K={0: K}), exact(3), OFF)


# --- poses ----------------------------------------------------------------------------------------


def _with_poses(count: int, views_known: tuple[int, ...], *, unit: float = 1.0, seed: int = 0) -> Views:
    photos = room(count, seed=seed)
    poses = photos.cameras.T_world_camera.clone()
    poses[:, :3, 3] *= unit
    return replaced(photos.views, known_T_world_camera={view: poses[view] for view in views_known})


def test_three_known_poses_of_ten_fix_the_scale() -> None:
    unit, ratios = 1000.0, []
    for seed in range(3):
        photos, known = room(10, seed=seed), (0, 4, 9)
        predictions, _ = noisy(10, seed=seed)
        scene = align(_with_poses(10, known, unit=unit, seed=seed), predictions, OFF)
        assert scene.diagnosis.scale_known
        T, T_true = scene.cameras.T_world_camera, photos.cameras.T_world_camera.clone()
        T_true[:, :3, 3] *= unit
        for view in known:
            torch.testing.assert_close(T[view], T_true[view], rtol=1e-6, atol=1e-6 * unit)
        depth = torch.stack([map_.median() for map_ in scene.depths]).median()
        true_depth = unit * torch.stack([map_.median() for map_ in photos.depths_m]).median()
        others = [view for view in range(10) if view not in known]
        far = (
            torch.cdist(T[others, :3, 3], T[others, :3, 3]).sum()
            / torch.cdist(T_true[others, :3, 3], T_true[others, :3, 3]).sum()
        )
        ratios.append(float(far))
        assert abs(float(depth / true_depth) - 1.0) < 0.05
        assert camera_differences(T, T_true)[1] < 0.05
    assert abs(sum(ratios) / len(ratios) - 1.0) < 0.01


def test_the_unit_of_known_poses_does_not_matter() -> None:
    predictions, _ = noisy(5)
    metres, millimetres = (align(_with_poses(5, (0, 3), unit=unit), predictions, OFF) for unit in (1.0, 1000.0))
    assert len(metres.loss_history) == len(millimetres.loss_history)
    torch.testing.assert_close(
        torch.tensor(metres.loss_history), torch.tensor(millimetres.loss_history), rtol=1e-3, atol=0
    )
    T = millimetres.cameras.T_world_camera.clone()
    T[:, :3, 3] /= 1000.0
    torch.testing.assert_close(T, metres.cameras.T_world_camera, atol=1e-3, rtol=1e-3)


def test_all_poses_known() -> None:
    photos = room(4)
    scene = align(_with_poses(4, (0, 1, 2, 3)), noisy(4, wrong_edges=0)[0], OFF)
    torch.testing.assert_close(scene.cameras.T_world_camera, photos.cameras.T_world_camera, rtol=1e-6, atol=1e-6)


def test_one_known_pose_fixes_the_frame_only() -> None:
    photos = room(4)
    scene = align(_with_poses(4, (2,)), exact(4), OFF)
    assert not scene.diagnosis.scale_known
    torch.testing.assert_close(scene.cameras.T_world_camera[2], photos.cameras.T_world_camera[2])
    rotation_deg, translation = camera_differences(scene.cameras.T_world_camera, photos.cameras.T_world_camera)
    assert rotation_deg < 0.01
    assert translation < 1e-4


@pytest.mark.parametrize("unit", [1.0, 1000.0], ids=["metres", "millimetres"])
def test_poses_as_a_prior_are_nearly_kept(unit: float) -> None:
    photos = room(6)
    predictions, _ = noisy(6)
    scene = align(_with_poses(6, (0, 2, 5), unit=unit), predictions, dataclasses.replace(OFF, known_poses="prior"))
    T, T_true = scene.cameras.T_world_camera, photos.cameras.T_world_camera.clone()
    T_true[:, :3, 3] *= unit
    near = torch.tensor([0, 2, 5])
    assert scene.diagnosis.scale_known
    distance = (T[near, :3, 3] - T_true[near, :3, 3]).norm(dim=1) / scene.diagnosis.unit
    assert 0.0 < float(distance.max()) < 0.02
    assert camera_differences(T[near], T_true[near])[0] < 1.0
    assert camera_differences(T, T_true)[1] < 0.1


@pytest.mark.parametrize("kind", ["scaled", "mirrored", "nan"])
def test_poses_that_are_no_rigid_motion_are_refused(kind: str) -> None:
    photos = room(3)
    T = photos.cameras.T_world_camera[1].clone()
    if kind == "scaled":
        T[:3, :3] *= 1.5
    elif kind == "mirrored":
        T[:3, 0] *= -1.0
    else:
        T[0, 3] = float("nan")
    with pytest.raises(KnownCameraError, match="simulated-01"):
        align(replaced(photos.views, known_T_world_camera={1: T}), exact(3), OFF)


# --- distances ------------------------------------------------------------------------------------


@pytest.mark.parametrize("known_view", [None, 2])
def test_a_known_distance_between_cameras(known_view: int | None) -> None:
    photos = room(4)
    views = photos.views if known_view is None else _with_poses(4, (known_view,))
    known = KnownDistance(first="simulated-00", second="simulated-03", distance=7.5)
    plain = align(views, exact(4), OFF)
    scene = align(views, exact(4), dataclasses.replace(OFF, known_distances=(known,)))
    T = scene.cameras.T_world_camera
    assert float((T[0, :3, 3] - T[3, :3, 3]).norm()) == pytest.approx(7.5, rel=1e-5)
    assert scene.diagnosis.scale_known
    if known_view is not None:
        torch.testing.assert_close(T[known_view], photos.cameras.T_world_camera[known_view])
    factor = scene.diagnosis.unit / plain.diagnosis.unit
    for depth, before in zip(scene.depths, plain.depths, strict=True):
        torch.testing.assert_close(depth, factor * before, rtol=1e-4, atol=0.0)
    torch.testing.assert_close(scene.world_from_edge.scale, factor * plain.world_from_edge.scale, rtol=1e-4, atol=0.0)
    torch.testing.assert_close(scene.diagnosis.edge_residuals, plain.diagnosis.edge_residuals, equal_nan=True)


def test_a_known_distance_between_pixels() -> None:
    photos = room(4, shapes=(SMALL,), source_scale=2.0)
    ends = []
    for view, (x, y) in ((0, (20.5, 40.5)), (3, (100.5, 60.5))):
        ray = torch.linalg.inv(photos.cameras.K[view].double()) @ torch.tensor([x, y, 1.0], dtype=torch.float64)
        T = photos.cameras.T_world_camera[view].double()
        ends.append(T[:3, :3] @ (photos.depths_m[view][int(y / 2), int(x / 2)] * ray) + T[:3, 3])
    known = KnownDistance(
        first="simulated-00",
        second="simulated-03",
        first_px=(20.5, 40.5),
        second_px=(100.5, 60.5),
        distance=float((ends[0] - ends[1]).norm()),
    )
    scene = align(
        photos.views, exact_predictions(photos, complete(4)), dataclasses.replace(OFF, known_distances=(known,))
    )
    # The truth is in metres and the predictions are exact, so the scene now is in metres.
    T, T_true = scene.cameras.T_world_camera, photos.cameras.T_world_camera
    ratio = torch.cdist(T[:, :3, 3], T[:, :3, 3]).sum() / torch.cdist(T_true[:, :3, 3], T_true[:, :3, 3]).sum()
    assert float(ratio) == pytest.approx(1.0, rel=1e-4)


@pytest.mark.parametrize(
    ("known", "problem"),
    [
        (KnownDistance(first="nobody", second="simulated-01", distance=1.0), "names the photo 'nobody'"),
        (
            KnownDistance(first="simulated-00", second="simulated-01", first_px=(64.0, 3.0), distance=1.0),
            "outside what is used of simulated-00",
        ),
        (KnownDistance(first="simulated-01", second="simulated-01", distance=1.0), "one and the same point"),
    ],
)
def test_distances_that_cannot_be_measured_are_refused(known: KnownDistance, problem: str) -> None:
    with pytest.raises(SettingsError, match=problem):
        align(room(3).views, exact(3), dataclasses.replace(OFF, known_distances=(known,)))


def test_poses_and_distances_do_not_both_give_the_unit() -> None:
    known = KnownDistance(first="simulated-00", second="simulated-01", distance=1.0)
    with pytest.raises(SettingsError, match="both give"):
        align(_with_poses(3, (0, 1)), exact(3), dataclasses.replace(OFF, known_distances=(known,)))
