"""Where rays meet the solids that rooms are made of, and the surface normal there.

Each solid is convex and fills a unit shape inside [-1, 1]^3 of its own frame, scaled by its half size:

    box       the cube
    cylinder  radius 1 about z
    sphere    radius 1; unequal half sizes make it an ellipsoid
    cone      a frustum about z: radius 1 at z = -1, radius `taper` (> 0) at z = 1
    prism     a regular hexagon with vertices at radius 1, extruded along z

Rays are `origin + t * direction`. Scaling space leaves t alone, so t found in the unit frame is the caller's t.
"""

import math

import torch
from torch import Tensor

BOX, CYLINDER, SPHERE, CONE, PRISM = range(5)
SOLID_KINDS = (BOX, CYLINDER, SPHERE, CONE, PRISM)
# The walls, the floor and the ceiling: no solid, but surfaces with a frame whose z axis points into the room.
ROOM_FACE = 5

# What stands for infinity: large against any room and safe to calculate with (0 * inf is not).
FAR = 1.0e9

_TINY = 1.0e-20
_HEXAGON_APOTHEM = math.sqrt(0.75)
_HEXAGON_NORMALS = tuple((math.cos(math.radians(angle)), math.sin(math.radians(angle))) for angle in (30, 90, 150))

Components = tuple[Tensor, Tensor, Tensor]
Interval = tuple[Tensor, Tensor]


def intersect(kind: int, origin: Components, direction: Components, taper: Tensor) -> Interval:
    """Where lines enter and leave a unit solid of this kind.

    Args:
        kind: One of `SOLID_KINDS`.
        origin: x, y, z of the rays' origins in the unit frame; broadcast against the directions.
        direction: x, y, z of the rays' directions in the unit frame, any length.
        taper: Radius of a cone's upper end; broadcasts likewise.

    Returns:
        t of entry and exit. The line misses the solid where entry > exit; the numbers mean nothing there.
    """
    ox, oy, oz = origin
    dx, dy, dz = direction
    if kind == BOX:
        return _meet(_meet(_slab(ox, dx), _slab(oy, dy)), _slab(oz, dz))
    # Start next to the solid: far origins would cancel in the quadratic.
    start = -(ox * dx + oy * dy + oz * dz) / (dx * dx + dy * dy + dz * dz)
    ox, oy, oz = ox + start * dx, oy + start * dy, oz + start * dz
    if kind == SPHERE:
        enter, leave = _inside_quadric(
            dx * dx + dy * dy + dz * dz, ox * dx + oy * dy + oz * dz, ox * ox + oy * oy + oz * oz - 1.0
        )
    elif kind == CYLINDER:
        side = _inside_quadric(dx * dx + dy * dy + 1e-12, ox * dx + oy * dy, ox * ox + oy * oy - 1.0)
        enter, leave = _meet(side, _slab(oz, dz))
    elif kind == CONE:
        enter, leave = _inside_frustum((ox, oy, oz), (dx, dy, dz), taper)
    elif kind == PRISM:
        enter, leave = _slab(oz, dz)
        for nx, ny in _HEXAGON_NORMALS:
            scaled_origin = (ox * nx + oy * ny) / _HEXAGON_APOTHEM
            scaled_direction = (dx * nx + dy * ny) / _HEXAGON_APOTHEM
            enter, leave = _meet((enter, leave), _slab(scaled_origin, scaled_direction))
    else:
        raise ValueError(f"unknown solid {kind}")
    return enter + start, leave + start


def _slab(origin: Tensor, direction: Tensor) -> Interval:
    """Interval of t with |origin + t direction| <= 1."""
    inverse = 1.0 / (direction + (direction == 0) * _TINY)
    middle, half = -origin * inverse, inverse.abs()
    return middle - half, middle + half


def _meet(first: Interval, second: Interval) -> Interval:
    return torch.maximum(first[0], second[0]), torch.minimum(first[1], second[1])


def _inside_quadric(a: Tensor, b: Tensor, c: Tensor) -> Interval:
    """Interval of t with a t^2 + 2 b t + c <= 0, for a > 0; empty where there is none."""
    middle = -b / a
    square = (b * b - a * c) / (a * a)
    half = square.clamp_min(0.0).sqrt()
    return middle - half + (square < 0) * FAR, middle + half


def _inside_frustum(origin: Components, direction: Components, taper: Tensor) -> Interval:
    ox, oy, oz = origin
    dx, dy, dz = direction
    # Radius at height z: r(z) = level + slope z. The quadric x^2 + y^2 = r(z)^2 is a double cone.
    level, slope = 0.5 * (1.0 + taper), 0.5 * (taper - 1.0)
    radius = level + slope * oz
    a = dx * dx + dy * dy - slope * slope * dz * dz
    a = a + (a.abs() < 1e-12) * 1e-12
    b = ox * dx + oy * dy - slope * dz * radius
    c = ox * ox + oy * oy - radius * radius
    middle = -b / a
    square = (b * b - a * c) / (a * a)
    half = square.clamp_min(0.0).sqrt()
    low, high = middle - half, middle + half
    slab_enter, slab_leave = _slab(oz, dz)
    # a > 0: inside between the roots. a < 0: inside before the first and after the second, on two different nappes, of
    # which the slab -1 <= z <= 1 holds one only, so that at most one of the two intervals is not empty.
    steep = (a < 0).to(a.dtype)
    missed = ((square < 0) * (1.0 - steep)) * FAR
    between_enter, between_leave = torch.maximum(slab_enter, low), torch.minimum(slab_leave, high)
    before_leave, after_enter = torch.minimum(slab_leave, low), torch.maximum(slab_enter, high)
    before = (slab_enter <= before_leave).to(a.dtype)
    outer_enter = before * slab_enter + (1.0 - before) * after_enter
    outer_leave = before * before_leave + (1.0 - before) * slab_leave
    enter = steep * outer_enter + (1.0 - steep) * between_enter
    leave = steep * outer_leave + (1.0 - steep) * between_leave
    return enter + missed, leave


def unit_normals(kind: int, point: Components, taper: Tensor) -> Components:
    """Outward normal of the surface of a unit solid, in the unit frame and of any length.

    Args:
        kind: One of `SOLID_KINDS`, or `ROOM_FACE`, whose normal is +z.
        point: x, y, z of points on the surface, up to rounding.
        taper: Radius of a cone's upper end at each point.

    Returns:
        x, y, z. Divide by the half size to bring a normal into the object's frame, then normalise it.
    """
    x, y, z = point
    zero = torch.zeros_like(x)
    if kind == ROOM_FACE:
        return zero, zero, torch.ones_like(x)
    if kind == SPHERE:
        return x, y, z
    if kind == BOX:
        largest = torch.maximum(torch.maximum(x.abs(), y.abs()), z.abs())
        return _signed(x, x.abs() >= largest), _signed(y, y.abs() >= largest), _signed(z, z.abs() >= largest)
    if kind in (CYLINDER, CONE):
        taper = taper if kind == CONE else torch.ones_like(x)
        slope = 0.5 * (taper - 1.0)
        from_side = ((x * x + y * y).sqrt() - (0.5 * (1.0 + taper) + slope * z)).abs()
        on_cap = (z.abs() - 1.0).abs() < from_side
        on_side = (~on_cap).to(x.dtype)
        radius = (x * x + y * y).sqrt()
        return x * on_side, y * on_side, _signed(z, on_cap) - slope * radius * on_side
    if kind == PRISM:
        along = [(x * nx + y * ny) / _HEXAGON_APOTHEM for nx, ny in _HEXAGON_NORMALS]
        largest = torch.stack([*along, z]).abs().amax(dim=0)
        sides = [_signed(value, value.abs() >= largest) for value in along]
        normal_x = sum((side * nx for side, (nx, _) in zip(sides, _HEXAGON_NORMALS, strict=True)), zero)
        normal_y = sum((side * ny for side, (_, ny) in zip(sides, _HEXAGON_NORMALS, strict=True)), zero)
        return normal_x, normal_y, _signed(z, z.abs() >= largest)
    raise ValueError(f"unknown solid {kind}")


def _signed(value: Tensor, where: Tensor) -> Tensor:
    return value.sign() * where
