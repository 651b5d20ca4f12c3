"""Charts as shapes with attributes, which the page's template writes as SVG; colours are classes of its style sheet."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from lora3d_ns.report.facts import Histogram, PhotoFacts

_WIDTH, _HEIGHT = 420.0, 220.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 48.0, 12.0, 24.0, 36.0
_MOST_POINTS_OF_A_CURVE = 400
_LEAST_ROW = 13.0
"""Words in rows nearer than this would touch."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """One SVG element.

    Attributes:
        tag: `line`, `path`, `rect`, `circle`, `text`.
        attributes: Its attributes; values are escaped when written.
        text: What it says, for `text`.
        title: What a pointer over it shows.
    """

    tag: str
    attributes: Mapping[str, str | float]
    text: str = ""
    title: str = ""


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """An SVG picture.

    Attributes:
        label: What it shows, for those who cannot see it.
        width, height: Of its own coordinates.
        shapes: In the order they are drawn.
    """

    label: str
    width: float
    height: float
    shapes: tuple[Shape, ...] = field(default=())


def line(x1: float, y1: float, x2: float, y2: float, style: str) -> Shape:
    """A straight line."""
    return Shape(tag="line", attributes={"x1": _n(x1), "y1": _n(y1), "x2": _n(x2), "y2": _n(y2), "class": style})


def text(x: float, y: float, words: str, style: str = "", *, anchor: str = "middle") -> Shape:
    """Words, by default centred about x; y is their base line."""
    attributes = {"x": _n(x), "y": _n(y), "text-anchor": anchor, "class": f"t {style}".strip()}
    return Shape(tag="text", attributes=attributes, text=words)


def rectangle(x: float, y: float, width: float, height: float, style: str, title: str = "") -> Shape:
    """A filled rectangle."""
    attributes = {"x": _n(x), "y": _n(y), "width": _n(width), "height": _n(height), "class": style}
    return Shape(tag="rect", attributes=attributes, title=title)


def circle(x: float, y: float, radius: float, style: str, title: str = "") -> Shape:
    """A filled circle."""
    return Shape(tag="circle", attributes={"cx": _n(x), "cy": _n(y), "r": _n(radius), "class": style}, title=title)


def path(points: Sequence[tuple[float, float]], style: str) -> Shape:
    """A line through these points."""
    return Shape(tag="path", attributes={"d": "M" + "L".join(f"{_n(x)} {_n(y)}" for x, y in points), "class": style})


# --- charts -------------------------------------------------------------------------------------------


def histogram_chart(shown: Histogram, label: str, *, behind: Histogram | None = None) -> Drawing:
    """Bars over a logarithmic axis in percent, with the median marked; another histogram behind as an outline.

    Each is drawn as shares of its own total, so that two of different totals can be compared.
    """
    frame = _Frame()
    most = max(max(_heights(one), default=0.0) for one in (shown, behind or shown)) or 1.0
    first, last = math.log10(shown.bounds[0]), math.log10(shown.bounds[-1])
    place = _Scale(first, last, frame.left, frame.right)
    shapes = list(_log_ticks(frame, place, first, last, lambda value: f"{100 * value:g} %"))
    for low, high, height, count in zip(shown.bounds, shown.bounds[1:], _heights(shown), shown.counts, strict=False):
        left, right = place(math.log10(low)), place(math.log10(high))
        top = frame.bottom - (frame.bottom - frame.top) * height / most
        if count:
            title = f"{100 * low:.2g} to {100 * high:.2g} %: {count}"
            shapes.append(rectangle(left + 0.5, top, right - left - 1.0, frame.bottom - top, "bar", title))
    if behind is not None:
        outline: list[tuple[float, float]] = [(place(first), frame.bottom)]
        for low, high, height in zip(behind.bounds, behind.bounds[1:], _heights(behind), strict=False):
            top = frame.bottom - (frame.bottom - frame.top) * height / most
            outline += [(place(math.log10(low)), top), (place(math.log10(high)), top)]
        shapes.append(path([*outline, (place(last), frame.bottom)], "outline"))
    shapes.append(line(frame.left, frame.bottom, frame.right, frame.bottom, "axis"))
    for one, style in ((behind, "median-before"), (shown, "median")):
        if one is not None and one.median is not None and one.median > 0:
            x = min(max(place(math.log10(one.median)), frame.left), frame.right)
            shapes.append(line(x, frame.top - 14, x, frame.bottom, style))
            anchor, shift = ("end", -4.0) if x > (frame.left + frame.right) / 2 else ("start", 4.0)
            if one is shown or _far(place, shown, one):
                shapes.append(
                    text(x + shift, frame.top - 6, f"median {100 * one.median:.2g} %", "small", anchor=anchor)
                )
    return Drawing(label=label, width=_WIDTH, height=_HEIGHT, shapes=tuple(shapes))


def small_histogram(shown: Histogram, label: str) -> Drawing:
    """Bars alone, for a line of text."""
    width, height = 96.0, 22.0
    most = max(shown.counts, default=0) or 1
    step = width / max(1, len(shown.counts))
    bars = [
        rectangle(k * step, height - height * count / most, step - 0.8, height * count / most, "bar")
        for k, count in enumerate(shown.counts)
        if count
    ]
    return Drawing(
        label=label,
        width=width,
        height=height + 1,
        shapes=(*bars, line(0.0, height + 0.5, width, height + 0.5, "axis")),
    )


def curve_chart(
    x: Sequence[float],
    y: Sequence[float],
    label: str,
    *,
    x_name: str,
    marks: Sequence[tuple[float, float, str]] = (),
    best: int | None = None,
    jump: float = math.inf,
) -> Drawing | None:
    """A curve over a logarithmic axis; None where there is nothing to draw.

    Args:
        x, y: Points of the curve; those that are not positive and finite in y are left out.
        label: See `Drawing`.
        x_name: Of the horizontal axis.
        marks: Points of a second series, joined by a line of their own, with what a pointer over each shows.
        best: Which of the marks counts.
        jump: Where the curve rises by more than this factor from one point to the next, another curve begins.
    """
    curve = [(a, b) for a, b in zip(x, y, strict=False) if math.isfinite(a) and math.isfinite(b) and b > 0]
    dots = [(a, b, title) for a, b, title in marks if math.isfinite(b) and b > 0]
    if len(curve) + len(dots) < 2:
        return None
    frame = _Frame()
    heights = [math.log10(b) for _, b in curve] + [math.log10(b) for _, b, _ in dots]
    low, high = min(heights), max(heights)
    room = max(0.05, 0.05 * (high - low))
    across = [a for a, _ in curve] + [a for a, _, _ in dots]
    place_x = _Scale(min(across), max(across), frame.left, frame.right)
    place_y = _Scale(low - room, high + room, frame.bottom, frame.top)
    shapes = []
    for value in _nice_logs(low - room, high + room):
        y_here = place_y(math.log10(value))
        shapes.append(line(frame.left, y_here, frame.right, y_here, "grid"))
        shapes.append(text(frame.left - 5, y_here + 3.5, f"{value:.3g}", "small", anchor="end"))
    for value in _nice(min(across), max(across)):
        shapes.append(text(place_x(value), frame.bottom + 14, f"{value:g}", "small"))
    shapes.append(line(frame.left, frame.bottom, frame.right, frame.bottom, "axis"))
    shapes.append(text((frame.left + frame.right) / 2, frame.bottom + 29, x_name, "small soft"))
    for part in _parts(curve, jump):
        every = max(1, math.ceil(len(part) / _MOST_POINTS_OF_A_CURVE))
        kept = [*part[:-1:every], part[-1]]
        placed = [(place_x(a), place_y(math.log10(b))) for a, b in kept]
        shapes.append(path(placed, "curve") if len(placed) > 1 else circle(*placed[0], 2.5, "dot"))
    if dots:
        shapes.append(path([(place_x(a), place_y(math.log10(b))) for a, b, _ in dots], "curve second"))
    for index, (a, b, title) in enumerate(dots):
        style = "dot best" if index == best else "dot second"
        shapes.append(circle(place_x(a), place_y(math.log10(b)), 5.5 if index == best else 3.5, style, title))
    return Drawing(label=label, width=_WIDTH, height=_HEIGHT, shapes=tuple(shapes))


def focal_chart(photos: Sequence[PhotoFacts], label: str) -> Drawing:
    """One row per photo: its focal length and how far the pairs' spread about it."""
    row, top = min(30.0, max(9.0, 170.0 / len(photos))), 8.0
    labelled = math.ceil(_LEAST_ROW / row)
    left, right = 42.0, _WIDTH - _RIGHT
    spans = [
        (photo.focal_mm * (1 - share), photo.focal_mm * (1 + share))
        for photo in photos
        for share in [(photo.focal_spread_percent or 0.0) / 100.0]
    ]
    low, high = min(span[0] for span in spans), max(span[1] for span in spans)
    # Differences of a hundredth are not blown up to the whole width.
    room = max(0.08 * (high - low), 0.04 * high)
    place = _Scale(low - room, high + room, left, right)
    bottom = top + row * len(photos)
    shapes = []
    for value in _nice(low - room, high + room):
        shapes.append(line(place(value), top, place(value), bottom, "grid"))
        shapes.append(text(place(value), bottom + 14, f"{value:g} mm", "small"))
    for index, (photo, span) in enumerate(zip(photos, spans, strict=True)):
        y = top + row * (index + 0.5)
        spread = photo.focal_spread_percent
        title = f"{photo.number} {photo.name}: {photo.focal_mm:.1f} mm"
        if index % labelled == 0:
            shapes.append(text(left - 8, y + 4, str(photo.number), "small", anchor="end"))
        if spread is not None:
            title += f", pairs spread by {spread:.1f} %"
            thick = min(6.0, 0.55 * row)
            shapes.append(rectangle(place(span[0]), y - thick / 2, place(span[1]) - place(span[0]), thick, "span"))
        shapes.append(circle(place(photo.focal_mm), y, min(4.0, 0.36 * row), "dot", title))
    shapes.append(line(left, bottom, right, bottom, "axis"))
    return Drawing(label=label, width=_WIDTH, height=bottom + 22, shapes=tuple(shapes))


@dataclass(frozen=True, kw_only=True)
class _Frame:
    """Where a chart's axes lie."""

    left: float = _LEFT
    right: float = _WIDTH - _RIGHT
    top: float = _TOP
    bottom: float = _HEIGHT - _BOTTOM


@dataclass(frozen=True)
class _Scale:
    """Values to places, linearly."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low) if self.high > self.low else 0.5
        return self.start + share * (self.end - self.start)


def _log_ticks(frame: _Frame, place: _Scale, first: float, last: float, words: Callable[[float], str]) -> list[Shape]:
    shapes = []
    for decade in range(math.ceil(first - 1e-9), math.floor(last + 1e-9) + 1):
        x = place(float(decade))
        anchor = "end" if decade == round(last) else "start" if decade == round(first) else "middle"
        shapes.append(line(x, frame.top, x, frame.bottom, "grid"))
        shapes.append(text(x, frame.bottom + 14, words(10.0**decade), "small", anchor=anchor))
    return shapes


def _parts(curve: Sequence[tuple[float, float]], jump: float) -> list[list[tuple[float, float]]]:
    """The curve, cut where it jumps upwards."""
    parts: list[list[tuple[float, float]]] = []
    for point in curve:
        if parts and point[1] <= jump * parts[-1][-1][1]:
            parts[-1].append(point)
        else:
            parts.append([point])
    return parts


def _far(place: _Scale, first: Histogram, second: Histogram) -> bool:
    """Whether the words at two medians do not run into each other."""
    if not first.median or not second.median:
        return True
    return abs(place(math.log10(first.median)) - place(math.log10(second.median))) > 95


def _heights(shown: Histogram) -> list[float]:
    total = sum(shown.counts) or 1
    return [count / total for count in shown.counts]


def _nice(low: float, high: float, *, most: int = 6) -> list[float]:
    """Round numbers between two."""
    if not high > low:
        return [low]
    step = 10.0 ** math.floor(math.log10((high - low) / most))
    while (high - low) / step > most:
        step *= 2.5 if round(step / 10.0 ** math.floor(math.log10(step) + 1e-9), 6) == 2.0 else 2.0
    return [step * k for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _nice_logs(low: float, high: float) -> list[float]:
    """Round numbers between two powers of ten, fewer where there are more decades."""
    decades = high - low
    steps = (1.0,) if decades > 3 else (1.0, 3.0) if decades > 1.2 else (1.0, 2.0, 5.0)
    found = [
        step * 10.0**decade
        for decade in range(math.floor(low), math.ceil(high) + 1)
        for step in steps
        if low <= math.log10(step) + decade <= high
    ]
    if len(found) >= 2:
        return found
    return _nice(10.0**low, 10.0**high, most=4)


def _n(value: float) -> str:
    """A coordinate to a tenth of a unit."""
    return f"{value:.1f}".removesuffix(".0")
