"""The pair graph as a map: each photo where its camera stands, seen from above, joined by its pairs."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from lora3d_ns.report.drawings import Drawing, Shape, circle, text
from lora3d_ns.report.facts import PairFacts, PhotoFacts

_WIDTH, _HEIGHT, _MARGIN = 460.0, 340.0, 38.0
_LEAST_HEIGHT = 150.0
_ALL_DRAWN_UP_TO = 12
"""With more photos, pairs that tie little are drawn only where they are among a photo's best."""
_SIZES = (
    (_ALL_DRAWN_UP_TO, 13.0, "number", 5.0),
    (24, 9.0, "number tiny", 3.0),
    (math.inf, 6.5, "number least", 1.6),
)
"""Up to so many photos: radius of their dots, style of their numbers, width of the line of a pair that shares all."""
_BENT = 0.14
"""How far a pair's line is bent, as a share of its length: cameras on a line would hide it otherwise."""
_LEAST_DRAWN_OVERLAP = 0.3
_STYLES: Mapping[str, str] = {
    "good": "pair good",
    "little_overlap": "pair little",
    "contradicts": "pair contradicts",
    "left_out": "pair left-out",
}
_WORDS: Mapping[str, str] = {
    "good": "good",
    "little_overlap": "too little overlap",
    "contradicts": "contradicts the others",
    "left_out": "left out",
}
_FLAT = 1e-3


def pair_map(photos: Sequence[PhotoFacts], pairs: Sequence[PairFacts]) -> Drawing:
    """Photos as numbered dots with a nose the way they look, pairs as lines the thicker the more they share.

    Args:
        photos: All of them.
        pairs: Both orders in one.
    """
    radius, style, thickest = next(size[1:] for size in _SIZES if len(photos) <= size[0])
    places = places_of([photo.position for photo in photos], 3.1 * radius)
    top = max(0.0, min(y for _, y in places) - _MARGIN)
    height = max(_LEAST_HEIGHT, max(y for _, y in places) + _MARGIN - top)
    top -= (height - (max(y for _, y in places) + _MARGIN - top)) / 2
    places = tuple((x, y - top) for x, y in places)
    shapes: list[Shape] = []
    for pair in sorted(_drawn(photos, pairs), key=lambda pair: (pair.state == "good", pair.overlap)):
        start, end = places[pair.numbers[0] - 1], places[pair.numbers[1] - 1]
        shapes.append(_pair_line(start, end, pair, thickest))
    for photo, (x, y) in zip(photos, places, strict=True):
        partners = ", ".join(f"{partner.number} ({100 * partner.overlap:.0f} %)" for partner in photo.partners)
        title = f"{photo.number} {photo.name}: shares most with {partners}" if partners else photo.name
        shapes.append(_nose(x, y, photo.looks_along[0], -photo.looks_along[2], radius))
        shapes.append(circle(x, y, radius, "photo doubtful" if photo.contested else "photo", title))
        shapes.append(text(x, y + 0.36 * radius, str(photo.number), style))
    return Drawing(
        label="Cameras from above, joined by the pairs the network looked at",
        width=_WIDTH,
        height=height,
        shapes=tuple(shapes),
    )


def places_of(
    positions: Sequence[tuple[float, float, float]], least_distance: float
) -> tuple[tuple[float, float], ...]:
    """Where to draw cameras: from above (x to the right, z upwards), pushed apart where they would hide each other.

    Args:
        positions: In the first camera's frame, or one that is as upright.
        least_distance: Between two, as far as there is room.
    """
    ground = np.array([[x, -z] for x, _, z in positions], dtype=np.float64)
    extent = np.ptp(ground, axis=0) if len(ground) else np.zeros(2)
    room = np.array([_WIDTH - 2 * _MARGIN, _HEIGHT - 2 * _MARGIN])
    middle = np.array([_WIDTH, _HEIGHT]) / 2
    if not extent.max() > 0:
        angles = np.linspace(0.0, 2 * math.pi, len(ground), endpoint=False) - math.pi / 2
        size = 0.0 if len(ground) == 1 else 0.42 * room.min()
        placed = middle + size * np.stack([1.3 * np.cos(angles), np.sin(angles)], axis=1)
        return tuple((float(x), float(y)) for x, y in placed)
    centred = ground - (ground.max(axis=0) + ground.min(axis=0)) / 2
    placed = middle + centred * float((room / np.maximum(extent, _FLAT * extent.max())).min())
    low, high = middle - room / 2, middle + room / 2
    for _ in range(300):
        apart = placed[:, None] - placed[None]
        distance = np.linalg.norm(apart, axis=2)
        # Those on one spot are told apart by their order.
        same = distance < 1e-6
        order = np.arange(len(placed))
        apart[same] = np.stack([np.cos(order[None] - order[:, None]), np.sin(order[:, None] - order[None])], axis=2)[
            same
        ]
        lacking = np.clip(least_distance - distance, 0.0, None)
        np.fill_diagonal(lacking, 0.0)
        if lacking.max(initial=0.0) < 0.5:
            break
        unit = apart / np.maximum(np.linalg.norm(apart, axis=2, keepdims=True), 1e-9)
        placed = np.clip(placed + 0.35 * (unit * lacking[..., None]).sum(axis=1), low, high)
    return tuple((float(x), float(y)) for x, y in placed)


def _drawn(photos: Sequence[PhotoFacts], pairs: Sequence[PairFacts]) -> list[PairFacts]:
    if len(photos) <= _ALL_DRAWN_UP_TO:
        return list(pairs)
    best = {frozenset((photo.number, partner.number)) for photo in photos for partner in photo.partners}
    return [
        pair
        for pair in pairs
        if frozenset(pair.numbers) in best or (pair.state == "good" and pair.overlap >= _LEAST_DRAWN_OVERLAP)
    ]


def _pair_line(start: tuple[float, float], end: tuple[float, float], pair: PairFacts, thickest: float) -> Shape:
    (x1, y1), (x2, y2) = start, end
    bend_x, bend_y = (x1 + x2) / 2 - _BENT * (y2 - y1), (y1 + y2) / 2 + _BENT * (x2 - x1)
    residual = "" if pair.residual is None else f", {100 * pair.residual:.0f} % off"
    title = (
        f"{pair.numbers[0]} {pair.names[0]}, {pair.numbers[1]} {pair.names[1]}: share {100 * pair.overlap:.0f} %"
        f"{residual}, {_WORDS[pair.state]}"
    )
    return Shape(
        tag="path",
        attributes={
            "d": f"M{x1:.1f} {y1:.1f}Q{bend_x:.1f} {bend_y:.1f} {x2:.1f} {y2:.1f}",
            "class": _STYLES[pair.state],
            "style": f"stroke-width:{0.6 + thickest * pair.overlap:.1f};--o:{0.12 + 0.7 * min(1.0, pair.overlap):.2f}",
        },
        title=title,
    )


def _nose(x: float, y: float, right: float, down: float, radius: float) -> Shape:
    """A triangle that sticks out of a photo's dot the way it looks."""
    length = math.hypot(right, down)
    if length < 1e-9:
        return Shape(tag="path", attributes={"d": "M0 0", "class": "nose"})
    u, v = right / length, down / length
    tip = (x + 2.0 * radius * u, y + 2.0 * radius * v)
    sides = [(x + radius * (0.7 * u - s * 0.75 * v), y + radius * (0.7 * v + s * 0.75 * u)) for s in (1, -1)]
    corners = " ".join(f"{a:.1f} {b:.1f}" for a, b in (sides[0], tip, sides[1]))
    return Shape(tag="path", attributes={"d": f"M{corners}Z", "class": "nose"})
