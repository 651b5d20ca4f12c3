"""The scene at a glance: its points and cameras, seen from behind and above the first camera."""

import math
from dataclasses import dataclass
from io import BytesIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lora3d_ns.report.pictures import data_address
from lora3d_ns.types import Scene

_WIDTH = 1200
_HEIGHTS = (360, 600)
"""Between which the picture's height follows what is in it."""
_OVERSAMPLED = 2
_MOST_POINTS = 120_000
_TILT_DEG, _TURN_DEG = 28.0, 24.0
_DISTANCE = 1.9
"""Of the viewer from the middle of the scene, in radii of the scene."""
_MARGIN_PX = 34
_KEPT = (0.02, 0.98)
"""Quantiles of the points that are made to fit: a few stray ones would make a dot of the rest."""
_FRUSTUM_SHARE = 0.08
_LABEL_PX = 24
"""A camera nearer than this to one with a lower number goes without its own."""
_TOP, _BOTTOM = (27, 36, 48), (12, 16, 23)
_BRIGHTENED = 0.75


@dataclass(frozen=True, kw_only=True)
class CameraMark:
    """One camera in the picture.

    Attributes:
        number: Of its photo.
        centre: (x, y) in the picture's pixels.
        corners: Where the rays through the photo's corners end, in turn.
        labelled: Whether there is room for its number.
    """

    number: int
    centre: tuple[float, float]
    corners: tuple[tuple[float, float], ...]
    labelled: bool


@dataclass(frozen=True, kw_only=True)
class Cloud:
    """A picture of the points, and where the cameras stand in it.

    Attributes:
        picture: As a `data:` address.
        width, height: In pixels.
        cameras: To be drawn over it.
    """

    picture: str
    width: int
    height: int
    cameras: tuple[CameraMark, ...]


def cloud_of(scene: Scene) -> Cloud | None:
    """The points in their colours and the cameras; None where there is nothing to see.

    The first camera's frame is upright, as far as its photo is.
    """
    every = max(1, math.ceil(len(scene.points) / _MOST_POINTS))
    world, colours = scene.points[::every].double(), scene.colors[::every]
    if not len(world) or not bool(torch.isfinite(world).all()):
        return None
    T_first_world = torch.linalg.inv(scene.cameras.T_world_camera[0].double())
    poses = T_first_world @ scene.cameras.T_world_camera.double()
    points, centres = world @ T_first_world[:3, :3].T + T_first_world[:3, 3], poses[:, :3, 3]
    low, high = (torch.quantile(points, share, dim=0) for share in _KEPT)
    low, high = torch.minimum(low, centres.amin(dim=0)), torch.maximum(high, centres.amax(dim=0))
    middle, radius = (low + high) / 2, float((high - low).norm()) / 2
    if not radius > 0:
        return None
    corners = _corners(scene, poses, _FRUSTUM_SHARE * 2 * radius)
    seen, depth = _seen(points, middle, radius)
    seen_centres, _ = _seen(centres, middle, radius)
    seen_corners, _ = _seen(corners.flatten(0, 1), middle, radius)
    # All of the cameras and nearly all of the points shall be in the picture.
    fitted = torch.cat([torch.quantile(seen, torch.tensor(_KEPT).double(), dim=0), seen_centres, seen_corners])
    low, high = fitted.amin(dim=0), fitted.amax(dim=0)
    extent = (high - low).clamp(min=1e-12)
    height = round(min(max(_WIDTH * float(extent[1] / extent[0]), _HEIGHTS[0]), _HEIGHTS[1]))
    size = torch.tensor([_WIDTH, height], dtype=torch.float64)
    scale = float(((size - 2 * _MARGIN_PX) / extent).min())

    def placed(plane: Tensor) -> Tensor:
        return (plane - (low + high) / 2) * scale + size / 2

    shown = depth > 0
    picture = _painted(placed(seen)[shown], depth[shown], colours[shown], height)
    frusta, marked = placed(seen_corners).view(-1, 4, 2), placed(seen_centres)
    return Cloud(
        picture=picture,
        width=_WIDTH,
        height=height,
        cameras=tuple(
            CameraMark(
                number=view + 1,
                centre=_pair(centre),
                corners=tuple(_pair(corner) for corner in frusta[view]),
                labelled=not bool(((marked[:view] - centre).norm(dim=1) < _LABEL_PX).any()),
            )
            for view, centre in enumerate(marked)
        ),
    )


def _seen(points: Tensor, middle: Tensor, radius: float) -> tuple[Tensor, Tensor]:
    """Points of the first camera's frame in perspective, from behind and above, and how far they are."""
    tilt, turn = math.radians(_TILT_DEG), math.radians(_TURN_DEG)
    about_y = torch.tensor(
        [[math.cos(turn), 0.0, -math.sin(turn)], [0.0, 1.0, 0.0], [math.sin(turn), 0.0, math.cos(turn)]]
    ).double()
    about_x = torch.tensor(
        [[1.0, 0.0, 0.0], [0.0, math.cos(tilt), -math.sin(tilt)], [0.0, math.sin(tilt), math.cos(tilt)]]
    ).double()
    x, y, z = ((points - middle) @ (about_x @ about_y).T / radius).unbind(dim=1)
    depth = z + _DISTANCE
    ahead = depth.clamp(min=0.3)
    return torch.stack([x / ahead, y / ahead], dim=1), torch.where(depth > 0.3, depth, 0.0)


def _corners(scene: Scene, poses: Tensor, length: float) -> Tensor:
    """(views, 4, 3): the ends of the rays through each photo's corners, at this depth."""
    found = []
    for view, (width, height) in enumerate(scene.cameras.sizes):
        pixels = torch.tensor([[0, 0, 1], [width, 0, 1], [width, height, 1], [0, height, 1]]).double()
        rays = pixels @ torch.linalg.inv(scene.cameras.K[view].double()).T
        # As long for every focal length, so that a telephoto lens does not make a needle.
        rays = rays * (length / rays.norm(dim=1).mean())
        found.append(rays @ poses[view, :3, :3].T + poses[view, :3, 3])
    return torch.stack(found)


def _painted(places: Tensor, depth: Tensor, colours: Tensor, height_px: int) -> str:
    """Squares of the points' colours over a dark ground, the nearer over the farther."""
    width, height = _OVERSAMPLED * _WIDTH, _OVERSAMPLED * height_px
    share = np.linspace(0.0, 1.0, height)[:, None, None]
    ground = (1 - share) * np.array(_TOP) + share * np.array(_BOTTOM)
    picture = np.broadcast_to(ground, (height, width, 3)).astype(np.uint8).copy()
    order = torch.argsort(depth, descending=True)
    x, y = (_OVERSAMPLED * places[order]).floor().long().numpy().T
    painted = (255.0 * (colours[order].float() / 255.0) ** _BRIGHTENED).round().to(torch.uint8).numpy()
    side = int(np.clip(math.sqrt(0.3 * width * height / max(1, len(order))), 2, 12))
    for row in range(side):
        for column in range(side):
            inside = (x + column >= 0) & (x + column < width) & (y + row >= 0) & (y + row < height)
            picture[(y + row)[inside], (x + column)[inside]] = painted[inside]
    file = BytesIO()
    Image.fromarray(picture).resize((_WIDTH, height_px), Image.Resampling.BOX).save(
        file, "JPEG", quality=80, optimize=True
    )
    return data_address(file.getvalue(), "image/jpeg")


def _pair(place: Tensor) -> tuple[float, float]:
    x, y = (round(float(value), 1) for value in place)
    return x, y
