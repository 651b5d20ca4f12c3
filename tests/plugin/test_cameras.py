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
    carried_along,
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


def moved_rigidly(T: Tensor) -> Tensor:
    turn, shift = rotations(1, 9)[0], torch.tensor([0.4, -1.0, 2.0], dtype=torch.float64)
    return torch.cat([turn @ T[..., :3], (T[..., 3] @ turn.T + shift)[..., None]], dim=-1)


def test_others_follow_a_motion_of_all() -> None:
    before, others = (opengl_from_opencv(poses(count, seed))[:, :3] for count, seed in ((6, 0), (4, 5)))
    assert torch.allclose(carried_along(before, before, others, unit=2.0), others, atol=1e-12)
    found = carried_along(before, moved_rigidly(before), others, unit=2.0)
    assert torch.allclose(found, moved_rigidly(others), atol=1e-10)


def test_a_camera_in_the_place_of_another_moves_as_that_one() -> None:
    before = opengl_from_opencv(poses(6))[:, :3]
    after = opengl_from_opencv(poses(6, seed=20))[:, :3]
    found = carried_along(before, after, before[2:3], unit=1.0)
    assert torch.allclose(found, after[2:3], atol=1e-6)


def test_nearer_cameras_have_more_to_say_and_rotations_stay_rotations() -> None:
    before = torch.eye(4, dtype=torch.float64)[:3].repeat(3, 1, 1)
    before[:, 0, 3] = torch.tensor([0.0, 1.0, 9.0])
    after = before.clone()
    after[1, 1, 3] += 0.3
    other = before[:1].clone()
    other[0, 0, 3] = 0.9
    # Distances 0.9, 0.1 and 8.1: weights 1/0.81, 1/0.01 and 1/65.61.
    share = 100.0 / (1 / 0.81 + 100.0 + 1 / 65.61)
    assert float(carried_along(before, after, other, unit=1.0)[0, 1, 3]) == pytest.approx(0.3 * share, rel=1e-6)
    wild = carried_along(before, opengl_from_opencv(poses(3, seed=3))[:, :3], other, unit=1.0)
    assert torch.allclose(wild[0, :, :3] @ wild[0, :, :3].T, torch.eye(3, dtype=torch.float64), atol=1e-12)
    assert float(torch.linalg.det(wild[0, :, :3])) == pytest.approx(1.0)


@pytest.mark.parametrize("count", [1, 2])
def test_few_cameras_are_enough(count: int) -> None:
    before, others = (opengl_from_opencv(poses(number, seed))[:, :3] for number, seed in ((count, 0), (2, 5)))
    found = carried_along(before, moved_rigidly(before), others, unit=1.0)
    assert torch.allclose(found, moved_rigidly(others), atol=1e-10)
