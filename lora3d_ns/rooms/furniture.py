"""Furniture put together from solids, for many places in many rooms at once.

A piece stands in its own frame: x along the wall, y into the room, z up, the origin on the floor in the middle of its
place. Every builder takes one row per piece and returns at most `MAXIMUM_PARTS` parts.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from lora3d_ns.rooms.primitives import BOX, CONE, CYLINDER, PRISM, SPHERE
from lora3d_ns.rooms.random_numbers import FloatArray

MAXIMUM_PARTS = 10
DRAWS_PER_PIECE = 12

Scalar = FloatArray | float


@dataclass(frozen=True, eq=False, kw_only=True)
class Part:
    """One solid of a piece of furniture, for n pieces.

    Attributes:
        kind: Which solid.
        center_m: [n, 3] in the piece's frame.
        half_m: [n, 3] half sizes along the part's own axes.
        yaw_rad: [n] turn about z.
        pitch_rad: [n] turn about the part's x axis, before the yaw.
        taper: [n] upper radius of a cone.
        surface: What the part is made of: `body`, `accent`, or a family such as `books`.
        present: [n] False where this piece has no such part.
    """

    kind: int
    center_m: FloatArray
    half_m: FloatArray
    yaw_rad: FloatArray
    pitch_rad: FloatArray
    taper: FloatArray
    surface: str
    present: np.ndarray


def _full(count: int, value: Scalar) -> FloatArray:
    return np.broadcast_to(np.asarray(value, dtype=np.float64), (count,)).copy()


def _part(
    count: int,
    kind: int,
    center: tuple[Scalar, Scalar, Scalar],
    half: tuple[Scalar, Scalar, Scalar],
    surface: str = "body",
    *,
    yaw: Scalar = 0.0,
    pitch: Scalar = 0.0,
    taper: Scalar = 1.0,
    present: np.ndarray | bool = True,
) -> Part:
    return Part(
        kind=kind,
        center_m=np.stack([_full(count, value) for value in center], axis=-1),
        half_m=np.stack([_full(count, value) for value in half], axis=-1),
        yaw_rad=_full(count, yaw),
        pitch_rad=_full(count, pitch),
        taper=_full(count, taper),
        surface=surface,
        present=np.broadcast_to(np.asarray(present, dtype=bool), (count,)).copy(),
    )


# Each builder: half width and half depth of the place in metres [n], and uniform draws [n, DRAWS_PER_PIECE].
Builder = Callable[[FloatArray, FloatArray, FloatArray], list[Part]]


def _between(draw: FloatArray, low: float, high: float) -> FloatArray:
    return low + (high - low) * draw


def _table(width: FloatArray, depth: FloatArray, draws: FloatArray) -> list[Part]:
    count = len(width)
    height = _between(draws[:, 0], 0.42, 0.78)
    half_x, half_y = width * _between(draws[:, 1], 0.75, 0.95), depth * _between(draws[:, 2], 0.8, 1.0)
    thick = 0.025
    leg = _between(draws[:, 3], 0.025, 0.045)
    parts = [_part(count, BOX, (0.0, 0.0, height - thick), (half_x, half_y, thick))]
    leg_kind = CYLINDER
    for side_x in (-1.0, 1.0):
        for side_y in (-1.0, 1.0):
            center = (side_x * (half_x - 0.07), side_y * (half_y - 0.07), 0.5 * (height - 2 * thick))
            parts.append(_part(count, leg_kind, center, (leg, leg, 0.5 * (height - 2 * thick)), "accent"))
    vase, bowl = _between(draws[:, 4], 0.05, 0.1), _between(draws[:, 5], 0.06, 0.12)
    parts.append(
        _part(count, CYLINDER, (half_x * (draws[:, 6] - 0.8), 0.0, height + 0.14), (vase, vase, 0.14), "vivid")
    )
    parts.append(_part(count, SPHERE, (half_x * draws[:, 7] * 0.7, 0.05, height + bowl), (bowl, bowl, bowl), "vivid"))
    parts.append(
        _part(
            count, BOX, (half_x * (draws[:, 8] - 0.5), -0.4 * half_y, height + 0.03), (0.14, 0.1, 0.03), "books",
            yaw=_between(draws[:, 9], -0.6, 0.6),
        )
    )  # fmt: skip
    return parts


def _shelf(width: FloatArray, depth: FloatArray, draws: FloatArray) -> list[Part]:
    count = len(width)
    height = _between(draws[:, 0], 1.3, 2.05)
    half_x, half_y, thick = width * 0.9, np.minimum(depth, 0.19), 0.018
    back_y = half_y - depth
    parts = [_part(count, BOX, (0.0, back_y - half_y + 0.01, 0.5 * height), (half_x, 0.01, 0.5 * height), "accent")]
    for side in (-1.0, 1.0):
        parts.append(_part(count, BOX, (side * half_x, back_y, 0.5 * height), (thick, half_y, 0.5 * height)))
    levels = (0.08, 0.38, 0.68, 0.985)
    for level in levels:
        parts.append(_part(count, BOX, (0.0, back_y, level * height), (half_x - thick, half_y, thick)))
    for row, level in enumerate(levels[:3]):
        tall = _between(draws[:, 1 + row], 0.55, 0.85) * 0.5 * 0.27 * height
        share = _between(draws[:, 4 + row], 0.55, 0.95)
        side = np.sign(draws[:, 7 + row] - 0.5) * (1.0 - share)
        center = (side * half_x * 0.95, back_y - 0.02, level * height + thick + tall)
        parts.append(_part(count, BOX, center, (share * (half_x - 0.04), half_y * 0.75, tall), "books"))
    return parts


def _cabinet(width: FloatArray, depth: FloatArray, draws: FloatArray) -> list[Part]:
    count = len(width)
    height = _between(draws[:, 0], 0.7, 1.25)
    half_x, half_y = width * 0.85, np.minimum(depth, 0.26)
    y = half_y - depth
    parts = [
        _part(count, BOX, (0.0, y, 0.5 * height), (half_x, half_y, 0.5 * height)),
        _part(count, BOX, (0.0, y, height + 0.015), (half_x + 0.02, half_y + 0.02, 0.015), "accent"),
    ]
    for side in (-0.5, 0.5):
        door = (half_x * 0.44, 0.01, height * 0.4)
        parts.append(_part(count, BOX, (side * half_x, y + half_y + 0.01, height * 0.5), door, "accent"))
    knob = (0.02, 0.02, 0.02)
    for side in (-0.12, 0.12):
        parts.append(_part(count, SPHERE, (side * half_x, y + half_y + 0.04, height * 0.55), knob, "metal"))
    ball, can = _between(draws[:, 1], 0.08, 0.15), _between(draws[:, 2], 0.05, 0.09)
    parts.append(
        _part(count, SPHERE, (half_x * (draws[:, 3] - 0.9) * 0.7, y, height + 0.03 + ball), (ball, ball, ball), "vivid")
    )
    parts.append(
        _part(count, CYLINDER, (half_x * draws[:, 4] * 0.7, y, height + 0.03 + 0.15), (can, can, 0.15), "vivid")
    )
    parts.append(_part(count, BOX, (half_x * 0.05, y, height + 0.08), (0.09, 0.1, 0.05), "books"))
    return parts


def _sofa(width: FloatArray, depth: FloatArray, draws: FloatArray) -> list[Part]:
    count = len(width)
    half_x, half_y = width * 0.98, depth
    seat = _between(draws[:, 0], 0.36, 0.46)
    back = _between(draws[:, 1], 0.72, 0.95)
    parts = [
        _part(count, BOX, (0.0, 0.0, 0.5 * seat), (half_x, half_y, 0.5 * seat), "soft"),
        _part(count, BOX, (0.0, 0.12 - half_y, 0.5 * back), (half_x, 0.12, 0.5 * back), "soft"),
    ]
    for side in (-1.0, 1.0):
        parts.append(_part(count, BOX, (side * (half_x - 0.08), 0.0, 0.3), (0.09, half_y + 0.02, 0.3), "soft"))
    for side in (-0.5, 0.45):
        pillow = (0.2, 0.08, 0.19)
        parts.append(
            _part(count, SPHERE, (side * half_x, 0.33 - half_y, seat + 0.17), pillow, "vivid",
                  yaw=_between(draws[:, 2], -0.3, 0.3), pitch=-0.3)
        )  # fmt: skip
    return parts


def _turned(yaw: FloatArray, x: Scalar, y: Scalar, z: Scalar) -> tuple[Scalar, Scalar, Scalar]:
    """A position in a piece that is turned in its place."""
    return np.cos(yaw) * x - np.sin(yaw) * y, np.sin(yaw) * x + np.cos(yaw) * y, z


def _chair(width: FloatArray, depth: FloatArray, draws: FloatArray) -> list[Part]:
    count = len(width)
    yaw = _between(draws[:, 0], -0.7, 0.7)
    half = np.minimum(np.minimum(width, depth), 0.24)

    parts = [
        _part(count, BOX, (0.0, 0.0, 0.45), (half, half, 0.025), "soft", yaw=yaw),
        _part(count, BOX, _turned(yaw, 0.0, -half + 0.02, 0.8), (half, 0.02, 0.2), "body", yaw=yaw),
    ]
    for side_x in (-1.0, 1.0):
        for side_y in (-1.0, 1.0):
            tall = 0.33 if side_y < 0 else 0.215
            center = _turned(yaw, side_x * (half - 0.03), side_y * (half - 0.03), tall)
            parts.append(_part(count, BOX, center, (0.02, 0.02, tall), "accent", yaw=yaw))
    return parts


def _bed(width: FloatArray, depth: FloatArray, draws: FloatArray) -> list[Part]:
    count = len(width)
    top = _between(draws[:, 0], 0.42, 0.55)
    board = _between(draws[:, 1], 0.8, 1.15)
    return [
        _part(count, BOX, (0.0, 0.0, 0.16), (width, depth, 0.1)),
        _part(count, BOX, (0.0, 0.0, 0.5 * (0.26 + top)), (width * 0.97, depth * 0.97, 0.5 * (top - 0.26)), "soft"),
        _part(count, BOX, (-width + 0.03, 0.0, 0.5 * board), (0.03, depth, 0.5 * board), "accent"),
        _part(count, BOX, (0.25 * width, 0.0, top + 0.02), (0.7 * width, depth * 0.99, 0.03), "soft"),
        _part(count, SPHERE, (-width + 0.3, 0.0, top + 0.07), (0.2, depth * 0.75, 0.11), "vivid"),
    ]


def _lamp(width: FloatArray, depth: FloatArray, draws: FloatArray) -> list[Part]:
    count = len(width)
    height, shade = _between(draws[:, 0], 1.2, 1.7), _between(draws[:, 1], 0.14, 0.22)
    stool = np.minimum(np.minimum(width, depth), 0.25)
    return [
        _part(count, CYLINDER, (-0.3 * width, 0.0, 0.02), (0.15, 0.15, 0.02), "metal"),
        _part(count, CYLINDER, (-0.3 * width, 0.0, 0.5 * height), (0.018, 0.018, 0.5 * height), "metal"),
        _part(count, CYLINDER, (-0.3 * width, 0.0, height), (shade, shade, 0.14), "lamp"),
        _part(count, CYLINDER, (0.5 * width, 0.0, 0.22), (stool, stool, 0.22), "body"),
        _part(count, SPHERE, (0.5 * width, 0.0, 0.46), (stool, stool, 0.07), "soft"),
    ]


def _plant(width: FloatArray, depth: FloatArray, draws: FloatArray) -> list[Part]:
    count = len(width)
    pot, tall = _between(draws[:, 0], 0.14, 0.22), _between(draws[:, 1], 0.18, 0.3)
    bush = np.minimum(np.minimum(width, depth), _between(draws[:, 2], 0.22, 0.34))
    trunk = _between(draws[:, 3], 0.15, 0.35)
    base = 2 * tall + 2 * trunk
    return [
        _part(count, CYLINDER, (0.0, 0.0, tall), (pot, pot, tall), "vivid"),
        _part(count, CYLINDER, (0.0, 0.0, 2 * tall + trunk), (0.025, 0.025, trunk), "wood"),
        _part(count, SPHERE, (0.0, 0.0, base + 0.5 * bush), (bush, bush, bush * 0.9), "leaf"),
        _part(count, SPHERE, (0.4 * bush, 0.2 * bush, base + 1.2 * bush), (0.7 * bush, 0.7 * bush, 0.6 * bush), "leaf"),
        _part(count, SPHERE, (-0.5 * bush, -0.1 * bush, base + bush), (0.6 * bush, 0.6 * bush, 0.7 * bush), "leaf"),
    ]


def _crates(width: FloatArray, depth: FloatArray, draws: FloatArray) -> list[Part]:
    count = len(width)
    fit = np.minimum(width, depth)
    first, second, third = (
        np.minimum(fit * 0.75, _between(draws[:, column], low, high))
        for column, low, high in ((0, 0.2, 0.34), (1, 0.16, 0.26), (2, 0.1, 0.18))
    )
    aside = np.minimum(width - 0.7 * second, first + 1.1 * second)
    return [
        _part(count, BOX, (-0.2 * first, 0.0, first), (first, first, first), yaw=_between(draws[:, 3], -0.4, 0.4)),
        _part(count, BOX, (aside, 0.05, second), (second, second * 0.8, second), "vivid", yaw=draws[:, 4] - 0.5),
        _part(count, BOX, (-0.2 * first, 0.0, 2 * first + third), (third, third * 1.3, third), "vivid",
              yaw=3 * draws[:, 5]),
        _part(count, BOX, (-0.1 * first, 0.0, 2 * first + 2 * third + 0.03), (0.13, 0.1, 0.03), "books",
              yaw=3 * draws[:, 6]),
    ]  # fmt: skip


def _ball(width: FloatArray, depth: FloatArray, draws: FloatArray) -> list[Part]:
    count = len(width)
    big = np.minimum(np.minimum(width, depth) * 0.9, _between(draws[:, 0], 0.22, 0.36))
    small = _between(draws[:, 1], 0.08, 0.14)
    return [
        _part(count, SPHERE, (0.0, 0.0, big), (big, big, big), "vivid", yaw=6 * draws[:, 2], pitch=6 * draws[:, 3]),
        _part(count, SPHERE, (big + 0.8 * small, -0.1, small), (small, small, small), "body", pitch=6 * draws[:, 4]),
    ]


def _cones(width: FloatArray, depth: FloatArray, draws: FloatArray) -> list[Part]:
    count = len(width)
    fit = np.minimum(width, depth)
    parts = []
    for number, (x, y) in enumerate(((-0.6, 0.0), (0.15, 0.25), (0.7, -0.25))):
        radius = fit * _between(draws[:, 3 * number], 0.3, 0.5)
        tall = _between(draws[:, 3 * number + 1], 0.25, 0.65)
        taper = _between(draws[:, 3 * number + 2], 0.05, 0.7)
        center = (x * width, y * depth, tall)
        parts.append(_part(count, CONE, center, (radius, radius, tall), "vivid", taper=taper))
    ball = fit * 0.2
    parts.append(_part(count, CONE, (-0.6 * width, 0.0, 1.5), (ball, ball, 0.15), "body", taper=0.2, pitch=np.pi))
    return parts


def _capsules(width: FloatArray, depth: FloatArray, draws: FloatArray) -> list[Part]:
    count = len(width)
    fit = np.minimum(width, depth)
    parts = []
    for number, (x, y) in enumerate(((-0.5, 0.1), (0.4, -0.1))):
        radius = fit * _between(draws[:, 3 * number], 0.3, 0.45)
        tall = _between(draws[:, 3 * number + 1], 0.2, 0.55)
        surface = "vivid" if number else "body"
        size = (radius, radius, tall)
        parts.append(_part(count, CYLINDER, (x * width, y * depth, radius + tall), size, surface))
        for end in (radius, radius + 2 * tall):
            parts.append(_part(count, SPHERE, (x * width, y * depth, end), (radius, radius, radius), surface))
    return parts


def _prisms(width: FloatArray, depth: FloatArray, draws: FloatArray) -> list[Part]:
    count = len(width)
    fit = np.minimum(width, depth)
    parts = []
    for number, (x, y) in enumerate(((-0.6, -0.1), (0.0, 0.3), (0.65, -0.1))):
        radius = fit * _between(draws[:, 3 * number], 0.28, 0.45)
        tall = _between(draws[:, 3 * number + 1], 0.2, 0.8)
        yaw = 3 * draws[:, 3 * number + 2]
        parts.append(_part(count, PRISM, (x * width, y * depth, tall), (radius, radius, tall), "vivid", yaw=yaw))
    lying = fit * 0.25
    parts.append(_part(count, PRISM, (0.3 * width, -0.5 * depth, lying), (lying, lying, 0.3 * width), pitch=np.pi / 2))
    return parts


FURNITURE_BUILDERS: Mapping[str, Builder] = MappingProxyType(
    {
        "table": _table, "shelf": _shelf, "cabinet": _cabinet, "sofa": _sofa, "chair": _chair, "bed": _bed,
        "lamp": _lamp, "plant": _plant, "crates": _crates, "ball": _ball, "cones": _cones, "capsules": _capsules,
        "prisms": _prisms,
    }
)  # fmt: skip
