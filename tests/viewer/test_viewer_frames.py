"""What is shown is upright and of one size, and one looks at it from where one shall."""

import math

import pytest
import torch
from report.report_samples import ring, scene_and_details
from torch import Tensor

from lora3d_ns.geometry.camera import project
from lora3d_ns.types import Cameras, Sim3
from lora3d_ns.viewer.frames import (
    SHOWN_UNIT,
    Look,
    first_look,
    flight,
    laid_over,
    moved_poses,
    photo_look,
    quaternion_wxyz,
    shown_from_world,
    upright,
)


def turned(axis: int, angle_deg: float) -> Tensor:
    """A rotation about an axis."""
    angle = math.radians(angle_deg)
    first, second = [other for other in range(3) if other != axis]
    R = torch.eye(3).double()
    sign = -1.0 if axis == 1 else 1.0
    R[first, first] = R[second, second] = math.cos(angle)
    R[second, first], R[first, second] = sign * math.sin(angle), -sign * math.sin(angle)
    return R


def poses(rotations: list[Tensor], centres: list[list[float]]) -> Tensor:
    T = torch.eye(4).double().repeat(len(rotations), 1, 1)
    for view, (R, centre) in enumerate(zip(rotations, centres, strict=True)):
        T[view, :3, :3], T[view, :3, 3] = R, torch.tensor(centre).double()
    return T


def cameras_of(T: Tensor, size: tuple[int, int] = (640, 480), focal: float = 500.0) -> Cameras:
    K = torch.tensor([[focal, 0.0, size[0] / 2], [0.0, focal, size[1] / 2], [0.0, 0.0, 1.0]]).double()
    return Cameras(T_world_camera=T, K=K.repeat(len(T), 1, 1), sizes=(size,) * len(T))


def seen_at(look: Look, point: Tensor, aspect: float) -> tuple[float, float, float]:
    """Where a point is in a window from -1 to 1 (right, up), and how far before the eye."""
    forward = torch.nn.functional.normalize(look.target - look.position, dim=0)
    right = torch.nn.functional.normalize(torch.linalg.cross(forward, look.up), dim=0)
    apart = point.double() - look.position
    depth = float(apart @ forward)
    half = math.tan(look.fov_rad / 2) * depth
    return float(apart @ right) / (half * aspect), float(apart @ torch.linalg.cross(right, forward)) / half, depth


def test_up_is_up_though_all_photos_look_down() -> None:
    # In a world whose y points down, cameras on a circle look to its middle and 30 degrees down.
    level = [turned(1, yaw) @ turned(0, -30.0) for yaw in (0.0, 60.0, 140.0, 250.0)]
    world = turned(2, 35.0) @ turned(0, 20.0)
    up = upright(poses([world @ R for R in level], [[0.0, 0.0, 0.0]] * 4))
    assert torch.allclose(up, world @ torch.tensor([0.0, -1.0, 0.0]).double(), atol=1e-9)
    # One photo says no more than its own upper edge.
    single = upright(poses([level[0]], [[0.0, 0.0, 0.0]]))
    assert torch.allclose(single, -level[0][:, 1], atol=1e-12)
    assert float(upright(ring(6, (8, 8))[0].cameras.T_world_camera) @ torch.tensor([0.0, -1.0, 0.0]).double()) > 0.999


def test_what_is_shown_is_upright_and_of_one_size() -> None:
    T = poses([turned(1, yaw) for yaw in (30.0, 80.0, 120.0)], [[1.0, 2.0, 3.0], [2.0, 2.0, 3.0], [3.0, 2.0, 4.0]])
    middle = torch.tensor([4.0, 1.0, 8.0])
    for unit in (0.01, 5.0, 3000.0):
        shown = shown_from_world(cameras_of(T), middle, unit)
        assert torch.allclose(shown.apply(middle.double()), torch.zeros(3).double(), atol=1e-9)
        R = shown.rotation
        assert torch.allclose(R @ R.T, torch.eye(3).double(), atol=1e-12)
        assert float(torch.linalg.det(R)) == pytest.approx(1.0)
        # Up is up, and the first photo looks along y.
        assert torch.allclose(R @ torch.tensor([0.0, -1.0, 0.0]).double(), torch.tensor([0.0, 0.0, 1.0]).double())
        assert torch.allclose(R @ T[0, :3, 2], torch.tensor([0.0, 1.0, 0.0]).double(), atol=1e-12)
        assert float(shown.scale) * unit == pytest.approx(SHOWN_UNIT)
    assert float(shown_from_world(cameras_of(T), middle, math.nan).scale) == SHOWN_UNIT


def test_a_camera_that_looks_straight_down_has_a_way_forward_too() -> None:
    T = poses([turned(1, yaw) @ turned(0, -90.0) for yaw in (0.0, 90.0)], [[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    shown = shown_from_world(cameras_of(T), torch.zeros(3), 1.0)
    assert bool(torch.isfinite(shown.rotation).all())
    assert float(torch.linalg.det(shown.rotation)) == pytest.approx(1.0)


def test_the_scene_before_is_laid_over_the_other_even_for_cameras_on_one_spot() -> None:
    R, t, scale = turned(0, 50.0) @ turned(2, 20.0), torch.tensor([3.0, -1.0, 2.0]).double(), 2.5
    for centres in ([[0.0, 0.0, 0.0]] * 3, [[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [2.0, 0.0, 0.0]]):
        after = poses([turned(1, yaw) for yaw in (0.0, 20.0, 40.0)], centres)
        before = moved_poses(after, Sim3(scale=torch.tensor(scale, dtype=torch.float64), rotation=R, translation=t))
        over = laid_over(cameras_of(before), scale * 4.0, cameras_of(after), 4.0)
        assert torch.allclose(moved_poses(before, over), after, atol=1e-9)
        assert float(over.scale) == pytest.approx(1.0 / scale)


def test_the_first_look_has_the_cameras_in_view_and_is_taken_from_behind_them() -> None:
    scene, _ = scene_and_details(3)
    shown = shown_from_world(scene.cameras, scene.points.double().median(dim=0).values, 2.0)
    T, points = moved_poses(scene.cameras.T_world_camera, shown), shown.apply(scene.points.double())
    for aspect in (0.6, 1.0, 1.8):
        look = first_look(T, points, aspect)
        towards = torch.nn.functional.normalize(look.target - look.position, dim=0)
        for centre in T[:, :3, 3]:
            x, y, depth = seen_at(look, centre, aspect)
            assert abs(x) < 1.0
            assert abs(y) < 1.0
            assert depth > 0.2
            assert float(centre @ towards) > float(look.position @ towards)
        inside = [max(abs(x), abs(y)) < 1.0 and d > 0 for x, y, d in (seen_at(look, p, aspect) for p in points)]
        assert sum(inside) >= 0.84 * len(points)
        assert float(look.position[2]) > 0.0, "from above"


def test_photos_from_all_around_are_seen_from_behind_the_first() -> None:
    scene, _ = ring(8, (8, 8))
    shown = shown_from_world(scene.cameras, torch.zeros(3), 3.0)
    T = moved_poses(scene.cameras.T_world_camera, shown)
    look = first_look(T, torch.zeros(0, 3).double(), 1.5)
    first = T[0, :3, 3]
    assert float(look.position[:2] @ first[:2]) > float(first[:2] @ first[:2])


def test_from_a_photos_place_one_sees_its_frame_fill_the_window() -> None:
    T = poses([turned(2, 20.0) @ turned(0, 75.0) @ turned(2, 8.0)], [[1.0, 2.0, 3.0]])
    for size in ((640, 480), (480, 640)):
        cameras = cameras_of(T, size)
        for aspect in (0.5, 1.0, 2.0):
            look = photo_look(T[0], cameras.K[0], size, aspect)
            found = []
            for x, y in ((0, 0), (size[0], size[1])):
                ray = torch.linalg.inv(cameras.K[0]) @ torch.tensor([x, y, 1.0]).double()
                found.append(seen_at(look, T[0, :3, :3] @ ray + T[0, :3, 3], aspect))
            (left, top, _), (right, bottom, _) = found
            # Not turned, not shifted, and one of the two sides is full.
            assert left == pytest.approx(-right, abs=1e-9)
            assert top == pytest.approx(-bottom, abs=1e-9)
            assert max(right, top) == pytest.approx(1.0, abs=1e-9)
            assert right / top * aspect == pytest.approx(size[0] / size[1], abs=1e-9)
            # What lies in the photo's middle lies in the middle of the window.
            ahead = T[0, :3, 3] + 2.0 * T[0, :3, 2]
            assert project(torch.tensor([0.0, 0.0, 2.0]).double(), cameras.K[0]).tolist() == [size[0] / 2, size[1] / 2]
            assert seen_at(look, ahead, aspect)[:2] == pytest.approx((0.0, 0.0), abs=1e-9)


def test_a_flight_begins_softly_and_ends_where_it_shall() -> None:
    def at(x: float, fov_rad: float, up: list[float]) -> Look:
        place = torch.tensor([x, 0.0, 0.0]).double()
        return Look(position=place, target=place + 1.0, up=torch.tensor(up).double(), fov_rad=fov_rad)

    start, end = at(0.0, 1.0, [0.0, 0.0, 1.0]), at(10.0, 0.5, [0.0, 1.0, 0.0])
    looks = flight(start, end, 20)
    way = [float(look.position[0]) for look in looks]
    steps = [b - a for a, b in zip([0.0, *way], way, strict=False)]
    assert len(looks) == 20
    assert min(steps) > 0
    assert steps[0] < 0.2 * max(steps)
    assert steps[-1] < 0.2 * max(steps)
    assert torch.equal(looks[-1].position, end.position)
    assert torch.equal(looks[-1].up, end.up)
    assert looks[-1].fov_rad == end.fov_rad
    assert all(float(look.up.norm()) == pytest.approx(1.0) for look in looks)


def test_quaternions_turn_as_their_matrices_do() -> None:
    for R in (
        torch.eye(3).double(),
        turned(0, 180.0),
        turned(1, 180.0),
        turned(2, 180.0),
        turned(0, 40.0) @ turned(1, -70.0) @ turned(2, 130.0),
    ):
        w, *xyz = quaternion_wxyz(R)
        v = torch.tensor(xyz).double()
        assert w >= 0
        for axis in torch.eye(3).double():
            rotated = axis + 2.0 * torch.linalg.cross(v, torch.linalg.cross(v, axis) + w * axis)
            assert torch.allclose(rotated, R @ axis, atol=1e-12)
