"""Naive twin of the rooms' ray casting: one ray and one solid at a time, in float64, surface by surface.

Where the fast code clips intervals of lines inside convex solids, this one meets every face and every curved side apart
and keeps the hits that lie on the solid.
"""

import math
from dataclasses import dataclass

import numpy as np

from lora3d_ns.rooms.primitives import BOX, CONE, CYLINDER, PRISM, SPHERE

_EDGE = 1e-9


@dataclass(frozen=True)
class Hit:
    """Parameter of the ray at the hit, and the outward normal there (unit length, world)."""

    t: float
    normal: np.ndarray


def _plane(origin, direction, normal, offset):
    """t where normal . x = offset, or None."""
    along = float(np.dot(normal, direction))
    if along == 0.0:
        return None
    return (offset - float(np.dot(normal, origin))) / along


def _roots(a, b, c):
    """Real roots of a t^2 + b t + c."""
    if a == 0.0:
        return [] if b == 0.0 else [-c / b]
    square = b * b - 4 * a * c
    if square < 0:
        return []
    root = math.sqrt(square)
    return [(-b - root) / (2 * a), (-b + root) / (2 * a)]


def unit_hits(kind, origin, direction, taper=1.0):
    """All hits (t, normal of any length) of a line with a unit solid."""
    hits = []
    at = lambda t: origin + t * direction  # noqa: E731
    if kind == BOX:
        for axis in range(3):
            for side in (-1.0, 1.0):
                normal = np.zeros(3)
                normal[axis] = side
                t = _plane(origin, direction, normal, 1.0)
                if t is not None and all(abs(at(t)[k]) <= 1 + _EDGE for k in range(3) if k != axis):
                    hits.append((t, normal))
    elif kind == SPHERE:
        a, b, c = direction @ direction, 2 * origin @ direction, origin @ origin - 1
        hits = [(t, at(t)) for t in _roots(a, b, c)]
    elif kind in (CYLINDER, CONE):
        upper = taper if kind == CONE else 1.0
        slope, level = (upper - 1) / 2, (upper + 1) / 2
        radius = level + slope * origin[2]
        a = direction[0] ** 2 + direction[1] ** 2 - slope**2 * direction[2] ** 2
        b = 2 * (origin[0] * direction[0] + origin[1] * direction[1] - slope * direction[2] * radius)
        c = origin[0] ** 2 + origin[1] ** 2 - radius**2
        for t in _roots(a, b, c):
            x, y, z = at(t)
            if abs(z) <= 1:
                hits.append((t, np.array([x, y, -slope * math.hypot(x, y)])))
        for side, limit in ((-1.0, 1.0), (1.0, upper)):
            normal = np.array([0.0, 0.0, side])
            t = _plane(origin, direction, normal, 1.0)
            if t is not None and math.hypot(*at(t)[:2]) <= limit:
                hits.append((t, normal))
    elif kind == PRISM:
        normals = [np.array([math.cos(a), math.sin(a), 0.0]) for a in np.radians(np.arange(30, 390, 60))]
        apothem = math.cos(math.radians(30))
        faces = [(normal, apothem) for normal in normals] + [(np.array([0, 0, s]), 1.0) for s in (-1.0, 1.0)]
        for number, (normal, offset) in enumerate(faces):
            t = _plane(origin, direction, normal, offset)
            others = [face for other, face in enumerate(faces) if other != number]
            if t is not None and all(float(n @ at(t)) <= o + _EDGE for n, o in others):
                hits.append((t, normal))
    return hits


def first_hit(kind, center, R_world_object, half_size, taper, origin, direction):
    """Nearest hit in front of the origin with a solid in the world, or None."""
    local_origin = R_world_object.T @ (origin - center) / half_size
    local_direction = R_world_object.T @ direction / half_size
    hits = [hit for hit in unit_hits(kind, local_origin, local_direction, taper) if hit[0] > 0]
    if not hits:
        return None
    t, normal = min(hits, key=lambda hit: hit[0])
    world_normal = R_world_object @ (normal / half_size)
    return Hit(t, world_normal / np.linalg.norm(world_normal))


def room_hit(room_size, origin, direction):
    """Hit with the inside of the room and the number of the face: west, east, south, north, floor, ceiling."""
    width, depth, height = room_size
    planes = [
        (np.array([-1.0, 0, 0]), width / 2), (np.array([1.0, 0, 0]), width / 2),
        (np.array([0, -1.0, 0]), depth / 2), (np.array([0, 1.0, 0]), depth / 2),
        (np.array([0, 0, -1.0]), 0.0), (np.array([0, 0, 1.0]), height),
    ]  # fmt: skip
    best = None
    for face, (outward, offset) in enumerate(planes):
        t = _plane(origin, direction, outward, offset)
        if t is not None and t > 0 and (best is None or t < best[0].t):
            best = (Hit(t, -outward), face)
    assert best is not None
    return best


def cast(scenes, scene, T_world_camera, K, time, pixel):
    """Depth along z, normal and surface number seen by one pixel (column, row) of one camera, one ray at a time."""
    direction_camera = np.array(
        [(pixel[0] + 0.5 - K[0, 2]) / K[0, 0], (pixel[1] + 0.5 - K[1, 2]) / K[1, 1], 1.0], dtype=np.float64
    )
    origin, direction = T_world_camera[:3, 3], T_world_camera[:3, :3] @ direction_camera
    best, surface = room_hit(scenes.room_size_m[scene].double().numpy(), origin, direction)
    for number in range(6, scenes.kind.shape[1]):
        if not bool(scenes.valid[scene, number]):
            continue
        center = scenes.center_world_m[scene, number].double().numpy()
        if bool(scenes.moving[scene, number]):
            center = center + scenes.displacement_m[scene].double().numpy() * (time - 0.5)
        hit = first_hit(
            int(scenes.kind[scene, number]),
            center,
            scenes.R_world_object[scene, number].double().numpy(),
            scenes.half_size_m[scene, number].double().numpy(),
            float(scenes.taper[scene, number]),
            origin,
            direction,
        )
        if hit is not None and hit.t < best.t:
            best, surface = hit, number
    return best.t, best.normal, surface
