"""From the scene's world to what the viewer shows, upright and always of the same size, and how one moves in it.

viser draws nothing nearer than 0.05 and lets nobody further off than 200 of its units, whatever unit the scene has.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lora3d_ns.geometry.similarity import weighted_similarity
from lora3d_ns.types import Cameras, Sim3

SHOWN_UNIT = 4.0
"""The scene's typical depth, in units of what is shown."""
FREE_FOV_DEG = 60.0
"""Vertical field of view of who looks from nowhere in particular."""
_LEAST_TURN = 0.02
"""Of the cameras' horizontal axes: if they spread less than this, they do not say where up is."""
_TILT_DEG = 20.0
"""Of the first look, downwards."""
_SHARE_TO_FIT, _MOST_TO_FIT, _MARGIN = 0.85, 20_000, 1.12


@dataclass(frozen=True, eq=False, kw_only=True)
class Look:
    """Where one stands and what one sees, in what is shown (z up).

    Attributes:
        position: Of the eye.
        target: What it looks at, and turns around.
        up: Upwards in the picture.
        fov_rad: Vertical field of view.
    """

    position: Float[Tensor, "3"]
    target: Float[Tensor, "3"]
    up: Float[Tensor, "3"]
    fov_rad: float


def upright(T_world_camera: Float[Tensor, "views 4 4"]) -> Float[Tensor, "3"]:
    """The direction in the world that is up for who took the photos, of length 1.

    Whoever holds a camera level, however far up or down it looks, has its x axis horizontal: up is at right angles to
    all of them. Where the cameras hardly turned, it is the mean of what is up in the photos.
    """
    rotations = T_world_camera[:, :3, :3].double()
    mean = -rotations[:, :, 1].mean(dim=0)
    across = rotations[:, :, 0]
    spread, axes = torch.linalg.eigh(across.T @ across / len(across))
    up = axes[:, 0] * torch.sign(axes[:, 0] @ mean)
    # The mean of what is up in photos that look down leans by as much; further off than half a right angle it is none.
    if float(spread[1] - spread[0]) < _LEAST_TURN or float(up @ mean) < 0.7 * float(mean.norm()):
        up = mean if float(mean.norm()) > 1e-6 else -rotations[0, :, 1]
    return up / up.norm()


def shown_from_world(cameras: Cameras, centre: Float[Tensor, "3"], unit: float) -> Sim3:
    """The similarity from the world to what is shown: z up, y the way the first photo looks, `centre` at the origin.

    Args:
        cameras: Of all photos.
        centre: A point of the world in the middle of the scene.
        unit: The scene's typical depth; what is no length counts as 1.
    """
    up = upright(cameras.T_world_camera)
    first = cameras.T_world_camera[0, :3, :3].double()
    # A camera that looks straight down goes forward where the top of its photo is.
    ahead = max((first[:, 2], -first[:, 1]), key=lambda axis: float(_across(axis, up).norm()))
    forward = _across(ahead, up)
    forward = forward / forward.norm()
    R = torch.stack([torch.linalg.cross(forward, up), forward, up])
    scale = SHOWN_UNIT / unit if 0 < unit < math.inf else SHOWN_UNIT
    return Sim3(scale=torch.tensor(scale, dtype=torch.float64), rotation=R, translation=-scale * (R @ centre.double()))


def moved_poses(T: Float[Tensor, "views 4 4"], similarity: Sim3) -> Float[Tensor, "views 4 4"]:
    """Poses in the frame that the similarity leads to; cameras keep their size."""
    moved = T.double().clone()
    moved[:, :3, :3] = similarity.rotation.double() @ moved[:, :3, :3]
    moved[:, :3, 3] = similarity.apply(T[:, :3, 3].double())
    return moved


def laid_over(before: Cameras, before_unit: float, after: Cameras, after_unit: float) -> Sim3:
    """The similarity that lays the scene before learning over the finished one.

    Typical depths give the scale, the cameras' axes the rotation and the middle one of their shifts the rest: that
    holds for cameras on a line or on one spot too, and where learning moved one of them far.

    Args:
        before, after: Cameras of the same photos.
        before_unit, after_unit: Typical depth of either scene.
    """
    scale = after_unit / before_unit if 0 < before_unit < math.inf and 0 < after_unit < math.inf else 1.0
    first, second = before.T_world_camera.double(), after.T_world_camera.double()
    # Axes both ways, so that their mean is no direction.
    source, target = (torch.cat([sign * T[:, :3, :3].mT.flatten(0, 1) for sign in (1, -1)]) for T in (first, second))
    R = weighted_similarity(source, target, torch.ones(len(source)).double()).rotation
    shifts = second[:, :3, 3] - scale * first[:, :3, 3] @ R.T
    return Sim3(
        scale=torch.tensor(scale, dtype=torch.float64), rotation=R, translation=torch.quantile(shifts, 0.5, dim=0)
    )


def first_look(T_shown_camera: Float[Tensor, "views 4 4"], points: Float[Tensor, "points 3"], aspect: float) -> Look:
    """From behind and above the photos to the middle of the scene, so far back that the scene fits in the window.

    All cameras fit, and nearly all points: a few stray ones would make a dot of the rest. Where photos were taken from
    all around, one begins behind the first.

    Args:
        T_shown_camera: Poses in what is shown.
        points: Of the cloud, in what is shown; its middle is the origin.
        aspect: Width of the window over its height.
    """
    centres = T_shown_camera[:, :3, 3].double()
    vertical = torch.tensor([0.0, 0.0, 1.0]).double()
    towards = _across(-centres.mean(dim=0), vertical)
    # Among the points, or in the middle of all cameras: behind which of them?
    if float(towards.norm()) < max(0.1 * SHOWN_UNIT, 0.4 * float(centres.norm(dim=1).mean())):
        towards = _across(-centres[0], vertical)
    if float(towards.norm()) < 0.1 * SHOWN_UNIT:
        towards = _across(T_shown_camera[0, :3, 2].double(), vertical)
    if float(towards.norm()) < 1e-6:
        towards = torch.tensor([0.0, 1.0, 0.0]).double()
    tilt = math.radians(_TILT_DEG)
    forward = math.cos(tilt) * towards / towards.norm() - math.sin(tilt) * vertical
    right = torch.linalg.cross(forward, vertical)
    right = right / right.norm()
    axes = torch.stack([right, torch.linalg.cross(right, forward), forward])
    half = math.tan(math.radians(FREE_FOV_DEG) / 2)
    needed = [_needed_distance(centres @ axes.T, half, aspect, 1.0)]
    if len(points):
        sample = points[:: max(1, len(points) // _MOST_TO_FIT)].double()
        needed.append(_needed_distance(sample @ axes.T, half, aspect, _SHARE_TO_FIT))
    distance = min(max(_MARGIN * max(needed), 0.2 * SHOWN_UNIT), 10.0 * SHOWN_UNIT)
    return Look(
        position=-distance * forward,
        target=torch.zeros(3).double(),
        up=vertical,
        fov_rad=math.radians(FREE_FOV_DEG),
    )


def photo_look(
    T_shown_camera: Float[Tensor, "4 4"],
    K: Float[Tensor, "3 3"],
    size: tuple[int, int],
    aspect: float,
    *,
    distance: float = SHOWN_UNIT,
) -> Look:
    """From where a photo was taken, so that all of the photo fits into the window.

    Args:
        T_shown_camera: Its pose in what is shown.
        K: Its intrinsics.
        size: (width, height) of the photo in the same pixels.
        aspect: Width of the window over its height.
        distance: Of what one turns around afterwards.
    """
    T = T_shown_camera.double()
    position, right, forward = T[:3, 3], T[:3, 0], T[:3, 2]
    # As near to the vertical as the photo's own axes allow: later turns go about it.
    up = torch.tensor([0.0, 0.0, 1.0]).double()
    up = _across(up, right)
    if float(up.norm()) < 0.2 or float(up @ -T[:3, 1]) < 0.2:
        up = -T[:3, 1]
    half = max(size[1] / 2 / float(K[1, 1]), size[0] / 2 / float(K[0, 0]) / aspect)
    return Look(
        position=position, target=position + distance * forward, up=up / up.norm(), fov_rad=2.0 * math.atan(half)
    )


def flight(start: Look, end: Look, steps: int) -> tuple[Look, ...]:
    """Looks on the way from one to the other, slow at both ends; the last one is the end itself."""
    looks = []
    for step in range(1, steps + 1):
        share = 0.5 - 0.5 * math.cos(math.pi * step / steps)
        up = torch.lerp(start.up.double(), end.up.double(), share)
        looks.append(
            Look(
                position=torch.lerp(start.position.double(), end.position.double(), share),
                target=torch.lerp(start.target.double(), end.target.double(), share),
                up=end.up if step == steps or float(up.norm()) < 1e-3 else up / up.norm(),
                fov_rad=(1.0 - share) * start.fov_rad + share * end.fov_rad,
            )
        )
    return tuple(looks)


def quaternion_wxyz(R: Float[Tensor, "3 3"]) -> tuple[float, float, float, float]:
    """The rotation as a unit quaternion with w first and w >= 0."""
    m = R.double()
    # Shepperd's method: of four candidates for 4 q q^T the row with the largest diagonal entry.
    t = float(m.trace())
    diagonal = [t, *(2.0 * float(m[k, k]) - t for k in range(3))]
    best = diagonal.index(max(diagonal))
    a, b, c = float(m[2, 1] - m[1, 2]), float(m[0, 2] - m[2, 0]), float(m[1, 0] - m[0, 1])
    d, e, f = float(m[1, 0] + m[0, 1]), float(m[2, 0] + m[0, 2]), float(m[2, 1] + m[1, 2])
    row = [
        [1.0 + diagonal[0], a, b, c],
        [a, 1.0 + diagonal[1], d, e],
        [b, d, 1.0 + diagonal[2], f],
        [c, e, f, 1.0 + diagonal[3]],
    ][best]
    length = math.copysign(math.hypot(*row), row[0])
    w, x, y, z = (value / length for value in row)
    return w, x, y, z


def _needed_distance(places: Tensor, half: float, aspect: float, share: float) -> float:
    """How far back one has to stand to see this share of some places.

    Args:
        places: To the right, upwards and forward, from what one looks at.
        half: Tangent of half the vertical field of view.
        aspect: Width over height.
        share: Of the places.
    """
    needed = torch.maximum(places[:, 0].abs() / aspect, places[:, 1].abs()) / half - places[:, 2]
    return float(torch.quantile(needed, share))


def _across(direction: Tensor, axis: Tensor) -> Tensor:
    """The part of a direction that is at right angles to an axis of length 1."""
    return direction - (direction @ axis) * axis
