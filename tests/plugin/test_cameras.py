"""Refined cameras: conventions, laws, and what happens to the others."""

import pytest
import torch
from nerfstudio.cameras.cameras import Cameras
from torch import Tensor

from lora3d_ns.conventions import opengl_from_opencv
from lora3d_ns.plugin.cameras import (
    SceneCameraOptimizer,
    SceneCameraOptimizerConfig,
    T_camera_world_of,
    gauge_correction,
)


def rotations(count: int, seed: int = 0) -> Tensor:
    random = torch.randn(count, 3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    q, _ = torch.linalg.qr(random)
    return q * torch.linalg.det(q)[:, None, None]


def poses(count: int, seed: int = 0) -> Tensor:
    """OpenCV T_world_camera, 4x4."""
    T = torch.eye(4, dtype=torch.float64).repeat(count, 1, 1)
    T[:, :3, :3] = rotations(count, seed)
    T[:, :3, 3] = torch.randn(count, 3, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    return T


def optimizer(count: int, *, unit: float = 1.0, mode: str = "SO3xR3") -> SceneCameraOptimizer:
    made = SceneCameraOptimizerConfig(mode=mode).setup(num_cameras=count, device="cpu")  # pyright: ignore
    made.unit = unit
    return made


def test_world_to_camera_is_the_inverse_of_the_opencv_pose() -> None:
    T = poses(5)
    for one in T:
        found = T_camera_world_of(opengl_from_opencv(one)[None, :3])
        assert torch.allclose(found, torch.linalg.inv(one), atol=1e-12)


def test_untouched_cameras_stay_and_the_first_one_always() -> None:
    T = opengl_from_opencv(poses(4))[:, :3].float()
    moving = optimizer(4)
    assert torch.equal(moving.moved(T, torch.arange(4)), T)
    torch.nn.init.normal_(moving.pose_adjustment, std=0.1)
    moved = moving.moved(T, torch.arange(4))
    assert torch.equal(moved[0], T[0])
    assert bool(((moved[1:] - T[1:]).abs().amax(dim=(1, 2)) > 1e-3).all())


def test_a_camera_turns_about_itself_and_moves_in_units_of_the_scene() -> None:
    T = opengl_from_opencv(poses(2))[:, :3].float()
    moving = optimizer(2, unit=7.0)
    with torch.no_grad():
        moving.pose_adjustment[1, 3:] = torch.tensor([0.0, 0.0, 0.3])
    turned = moving.moved(T, torch.arange(2))[1]
    assert torch.allclose(turned[:, 3], T[1, :, 3])
    angle = torch.arccos(((T[1, :, :3].T @ turned[:, :3]).trace() - 1) / 2)
    assert float(angle) == pytest.approx(0.3, abs=1e-5)
    with torch.no_grad():
        moving.pose_adjustment[1] = torch.tensor([0.1, 0.0, 0.0, 0.0, 0.0, 0.0])
    shifted = moving.moved(T, torch.arange(2))[1]
    assert torch.allclose(shifted[:, :3], T[1, :, :3])
    # Along the camera's own x axis.
    assert torch.allclose(shifted[:, 3], T[1, :, 3] + 0.7 * T[1, :, 0], atol=1e-6)


def test_the_viewer_finds_the_same_motion() -> None:
    """nerfstudio's viewer shows `c2w @ delta` with the optimizer's own delta."""
    T = opengl_from_opencv(poses(3))[:, :3].float()
    moving = optimizer(3, unit=2.0)
    torch.nn.init.normal_(moving.pose_adjustment, std=0.1)
    bottom = torch.tensor([[[0.0, 0.0, 0.0, 1.0]]]).repeat(3, 1, 1)
    delta = torch.cat([moving(torch.arange(3)), bottom], dim=1)
    shown = (torch.cat([T, bottom], dim=1) @ delta)[:, :3]
    assert torch.allclose(shown, moving.moved(T, torch.arange(3)), atol=1e-6)


def test_only_training_cameras_are_moved() -> None:
    T = opengl_from_opencv(poses(3))[:, :3].float()
    moving = optimizer(3)
    torch.nn.init.normal_(moving.pose_adjustment, std=0.1)

    def camera(**metadata: int) -> Cameras:
        one = Cameras(camera_to_worlds=T[2:], fx=10.0, fy=10.0, cx=5.0, cy=5.0, width=10, height=10)
        one.metadata = dict(metadata)
        return one

    assert torch.equal(moving.apply_to_camera(camera()), T[2:])
    assert torch.equal(moving.apply_to_camera(camera(cam_idx=2)), moving.moved(T[2:], torch.tensor([2])))
    assert torch.equal(optimizer(3, mode="off").apply_to_camera(camera(cam_idx=2)), T[2:])


def test_gradients_reach_the_pose() -> None:
    T = opengl_from_opencv(poses(2))[:, :3].float()
    moving = optimizer(2, unit=3.0)
    point = torch.tensor([0.3, -0.2, 4.0, 1.0])
    view = T_camera_world_of(moving.moved(T[1:], torch.tensor([1])))
    (view @ point)[0].backward()
    gradient = moving.pose_adjustment.grad
    assert gradient is not None
    assert bool((gradient[0] == 0).all())
    assert bool((gradient[1] != 0).any())
    # A step to the right moves what is seen to the left, by the unit.
    assert float(gradient[1, 0]) == pytest.approx(-3.0, abs=1e-5)


def test_others_follow_a_similarity_of_the_training_cameras() -> None:
    before, others = (opengl_from_opencv(poses(count, seed))[:, :3] for count, seed in ((6, 0), (4, 5)))
    turn, shift, scale = rotations(1, 9)[0], torch.tensor([0.4, -1.0, 2.0], dtype=torch.float64), 1.3

    def moved(T: Tensor) -> Tensor:
        centres = scale * T[..., 3] @ turn.T + shift
        return torch.cat([turn @ T[..., :3], centres[..., None]], dim=-1)

    # The axes' ends scale with the world, as the points they stand for do.
    found = gauge_correction(before, before, others, unit=2.0)
    assert torch.allclose(found, others, atol=1e-12)
    rigid = torch.cat([turn @ before[..., :3], (before[..., 3] @ turn.T + shift)[..., None]], dim=-1)
    expected = torch.cat([turn @ others[..., :3], (others[..., 3] @ turn.T + shift)[..., None]], dim=-1)
    assert torch.allclose(gauge_correction(before, rigid, others, unit=2.0), expected, atol=1e-10)
    # Axes of negligible length: the centres alone decide, the scale too.
    found = gauge_correction(before, moved(before), others, unit=1e-9)
    assert torch.allclose(found, moved(others), atol=1e-6)


def test_one_camera_is_enough() -> None:
    before, others = (opengl_from_opencv(poses(count, seed))[:, :3] for count, seed in ((1, 0), (2, 5)))
    after = before.clone()
    after[..., 3] += 1.0
    found = gauge_correction(before, after, others, unit=1.0)
    assert torch.allclose(found[..., :3], others[..., :3], atol=1e-12)
    assert torch.allclose(found[..., 3], others[..., 3] + 1.0, atol=1e-12)
