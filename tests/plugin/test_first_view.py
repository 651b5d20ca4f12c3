"""Where the viewer begins, for cameras that can be thought through."""

import contextlib
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.configs.base_config import ViewerConfig

from lora3d_ns.plugin.first_view import FirstView, first_view, frustum_size


def cameras_at(*places: tuple[float, float, float], turned: tuple[int, ...] = ()) -> Cameras:
    """Cameras of 120x80 pixels that look along +z with y down as photos do; those turned lie on their side."""
    poses = torch.diag(torch.tensor([1.0, -1.0, -1.0]))[None].repeat(len(places), 1, 1)
    quarter = torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    for view in turned:
        poses[view] = poses[view] @ quarter
    c2w = torch.cat([poses, torch.tensor(places)[:, :, None]], dim=2)
    return Cameras(c2w, fx=100.0, fy=100.0, cx=60.0, cy=40.0, width=120, height=80)


def test_behind_and_above_the_camera_in_the_middle() -> None:
    view = first_view(cameras_at((-2.0, 0.0, 0.0), (0.1, 0.0, 0.0), (2.0, 0.0, 0.0)), 10.0)
    assert torch.allclose(view.position, torch.tensor([0.1, -0.6, -1.5], dtype=torch.float64), atol=1e-6)
    assert torch.allclose(view.look_at, torch.tensor([0.1, 0.0, 10.0], dtype=torch.float64), atol=1e-6)
    assert torch.allclose(view.up, torch.tensor([0.0, -1.0, 0.0], dtype=torch.float64), atol=1e-6)
    assert view.fov == pytest.approx(2.0 * math.atan(1.15 * 0.6))


def test_a_photo_on_its_side_does_not_turn_the_scene() -> None:
    places = tuple((float(x), 0.0, 0.0) for x in range(-3, 4))
    view = first_view(cameras_at(*places, turned=(3,)), 1.0)
    assert float(view.up @ torch.tensor([0.0, -1.0, 0.0], dtype=torch.float64)) > 0.98
    # Half of them: no direction is up for all, but one is chosen that can be looked along.
    half = first_view(cameras_at((0.0, 0.0, 0.0), (1.0, 0.0, 0.0), turned=(0,)), 1.0)
    assert float(half.up.norm()) == pytest.approx(1.0)
    assert abs(float(half.up[2])) < 1e-6


def test_no_direction_is_up_for_all_photos() -> None:
    cameras = cameras_at((0.0, 0.0, 0.0), (1.0, 0.0, 0.0))
    cameras.camera_to_worlds[1, :, :2] *= -1.0
    assert first_view(cameras, 1.0).up.tolist() == pytest.approx([0.0, -1.0, 0.0])


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        (((0.0, 0.0, 0.0),), 0.2),
        (((0.0, 0.0, 0.0), (0.0, 0.0, 0.0)), 0.2),
        (((0.0, 0.0, 0.0), (5.0, 0.0, 0.0), (10.0, 0.0, 0.0)), 0.2),
        (((0.0, 0.0, 0.0), (0.4, 0.0, 0.0), (0.8, 0.0, 0.0)), 0.1),
    ],
)
def test_drawn_cameras_do_not_hide_each_other(places: tuple[tuple[float, float, float], ...], expected: float) -> None:
    assert frustum_size(cameras_at(*places), 10.0) == pytest.approx(expected)


@pytest.mark.parametrize("chosen", [None, 0.7])
def test_a_browser_that_connects_is_taken_there(chosen: float | None) -> None:
    """nerfstudio's viewer shows ten times the scene's unit."""
    pipeline = SimpleNamespace(
        model=SimpleNamespace(unit=torch.tensor(10.0)),
        datamanager=SimpleNamespace(train_dataset=SimpleNamespace(cameras=cameras_at((0.0, 0.0, 0.0)))),
    )
    connected: list[Any] = []
    config = ViewerConfig() if chosen is None else ViewerConfig(camera_frustum_scale=chosen)
    viewer: Any = SimpleNamespace(config=config, viser_server=SimpleNamespace(on_client_connect=connected.append))
    FirstView(pipeline)._setup(viewer)
    assert viewer.config.camera_frustum_scale == pytest.approx(2.0 if chosen is None else chosen)
    assert config.camera_frustum_scale == (0.1 if chosen is None else chosen)
    client: Any = SimpleNamespace(camera=SimpleNamespace(), atomic=contextlib.nullcontext)
    (take_there,) = connected
    take_there(client)
    assert np.allclose(client.camera.position, [0.0, -6.0, -15.0])
    assert np.allclose(client.camera.look_at, [0.0, 0.0, 100.0])
    assert np.allclose(client.camera.up_direction, [0.0, -1.0, 0.0])
    assert 0.5 < client.camera.fov < 2.0
