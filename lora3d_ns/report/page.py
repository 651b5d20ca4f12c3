"""Report -> one HTML file that needs nothing else: no script, no request, every name escaped."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lora3d_ns.report.advice import WEAK_OVERLAP
from lora3d_ns.report.cloud import CameraMark, Cloud
from lora3d_ns.report.drawings import (
    Drawing,
    curve_chart,
    focal_chart,
    histogram_chart,
    small_histogram,
)
from lora3d_ns.report.facts import Compared, PairFacts, PhotoFacts, Report
from lora3d_ns.report.pair_drawing import pair_map
from lora3d_ns.report.pictures import COVERAGE_COLOURS, NOT_COUNTED, Maps
from lora3d_ns.report.style import STYLE
from lora3d_ns.report.template import TEMPLATE
from lora3d_ns.report.verdict import two_digits

CONTENT_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
_LISTED_PAIRS, _LISTED_ADVICE = 10, 8
_LEVEL_WORDS = {
    "good": "✓ Holds together",
    "fair": "! Usable, with weak spots",
    "poor": "✗ Not to be trusted",
    "unknown": "? Not known",
}
_PAIR_WORDS = {
    "good": "good",
    "little_overlap": "too little overlap",
    "contradicts": "contradicts the others",
    "left_out": "left out",
}
_PAIR_STYLES = {"good": "good", "little_overlap": "little", "contradicts": "contradicts", "left_out": "left-out"}
_COVERAGE_WORDS = ("by none", "1", "2", "3 or more", "masked or moving")
_STATES_WORST_FIRST = ("contradicts", "left_out", "little_overlap", "good")
_ANOTHER_OBJECTIVE = 1.02
"""No step raises the objective: where it rises all the same, it has become another one."""
_NO_BREAK = "\u00a0"
_SAME = 0.02
"""A change by less than this share is none."""


@dataclass(frozen=True, kw_only=True)
class _Tile:
    value: str
    words: str


@dataclass(frozen=True, kw_only=True)
class _Change:
    words: str
    style: str


def page_of(report: Report, maps: Maps | None, cloud: Cloud | None) -> str:
    """The report as HTML.

    Args:
        report: The facts.
        maps: Pictures of the photos; None without details.
        cloud: The points at a glance; None where there are none.
    """
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=False)
    environment.filters |= {
        "percent": percent,
        "seconds": seconds_words,
        "short": short,
        "value": _value,
        "change": _change,
        "badges": _badges,
        "frustum": _frustum,
        "capital": _capital,
    }
    charts = _charts(report)
    return environment.from_string(TEMPLATE).render(
        r=report,
        maps=maps,
        cloud=cloud,
        # The one text that is not escaped: it is a constant of ours.
        style=Markup(STYLE),
        policy=CONTENT_POLICY,
        most_advice=_LISTED_ADVICE,
        level_words=_LEVEL_WORDS[report.level],
        tiles=_tiles(report),
        contents=_contents(report),
        charts=charts,
        small=[
            None if photo.residual is None else small_histogram(photo.residual, "Residuals of its pixels")
            for photo in report.photos
        ],
        pair_map=pair_map(report.photos, report.pairs) if report.pairs else None,
        pair_words=_PAIR_WORDS,
        pair_keys=_pair_keys(report.pairs),
        weakest=_weakest(report.pairs),
        coverage_keys=list(zip((*COVERAGE_COLOURS, NOT_COUNTED), _COVERAGE_WORDS, strict=True)),
        total=sum(report.seconds.values()),
        longest=max(report.seconds.values(), default=0.0) or 1.0,
        folded=(("Settings", report.settings), ("Versions", report.versions)),
    )


def percent(share: float | None) -> str:
    """A share in percent, with a decimal below ten."""
    if share is None or not math.isfinite(share):
        return "-"
    words = f"{100 * share:.1f} %" if 0 < share < 0.0995 else f"{100 * share:.0f} %"
    return words.replace(" ", _NO_BREAK)


def seconds_words(seconds: float) -> str:
    """A time as people say it."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def short(value: float) -> str:
    """A number in about two digits."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.2g}"


def _charts(report: Report) -> Mapping[str, Drawing | None]:
    aligned, learning = report.aligned, report.learning
    if aligned is None:
        return {"residual": None}
    learnt = None
    if learning is not None and learning.losses:
        epochs = max(1, len(learning.held_out_errors) - 1)
        learnt = curve_chart(
            [float(step) for step in range(1, len(learning.losses) + 1)],
            learning.losses,
            "Loss of each step of fine-tuning, and error of held-out pairs",
            x_name="step",
            marks=[
                (epoch * len(learning.losses) / epochs, error, f"epoch {epoch}: {error:.3f}")
                for epoch, error in enumerate(learning.held_out_errors)
            ],
            best=learning.best_epoch,
        )
    return {
        "residual": histogram_chart(aligned.residual, "Histogram of the residuals of all pixels"),
        "edges": histogram_chart(
            aligned.edge_residual, "Histogram of the residuals of all pairs", behind=aligned.edge_residual_before
        )
        if report.pairs
        else None,
        "focals": focal_chart(report.photos, "Focal length of each photo"),
        "alignment": curve_chart(
            aligned.seconds,
            aligned.losses,
            "Objective of the alignment after each step",
            x_name="seconds",
            jump=_ANOTHER_OBJECTIVE,
        ),
        "learning": learnt,
    }


def _tiles(report: Report) -> list[_Tile]:
    aligned, learning = report.aligned, report.learning
    tiles = [
        _Tile(value=f"{report.points:,}", words=f"points from {len(report.photos)} photos"),
    ]
    if aligned is not None and aligned.edge_residual.median is not None:
        before = aligned.edge_residual_before
        was = f", was {percent(before.median)}" if before is not None and before.median is not None else ""
        tiles.append(_Tile(value=percent(aligned.edge_residual.median), words=f"disagreement of the pairs{was}"))
    if learning is not None and learning.best_epoch < len(learning.held_out_errors):
        errors = learning.held_out_errors
        words = "error of held-out pairs"
        words += f", was {two_digits(errors[0])}" if learning.changed else ", refused"
        tiles.append(_Tile(value=two_digits(errors[learning.best_epoch]), words=words))
    best = [photo.partners[0].overlap for photo in report.photos if photo.partners]
    if best:
        tiles.append(_Tile(value=percent(min(best)), words="the least that a photo shares with its best partner"))
    if aligned is not None and len(report.photos) > 1:
        tiles.append(
            _Tile(value=percent(aligned.motion.baseline), words="of the depth: largest distance of two cameras")
        )
    focals = [photo.focal_mm for photo in report.photos]
    low, high = f"{min(focals):.0f}", f"{max(focals):.0f}"
    tiles.append(
        _Tile(value=f"{low if low == high else f'{low} to {high}'} mm", words="focal length, as on 35 mm film")
    )
    return tiles


def _contents(report: Report) -> list[tuple[str, str]]:
    found = []
    if report.warnings:
        found.append(("warnings", "Warnings"))
    if report.aligned is not None:
        found.append(("next", "What to shoot next"))
    if report.learning is not None or report.gate is not None:
        found.append(("learning", "Before and after"))
    found.append(("photos", "Photos"))
    if report.pairs:
        found.append(("pairs", "Pairs"))
    if report.aligned is not None:
        found += [("residuals", "Residuals"), ("focals", "Focal lengths and losses")]
    return [*found, ("about", "How it was made")]


def _weakest(pairs: Sequence[PairFacts]) -> list[PairFacts]:
    """Those that tie least, worst first."""
    return sorted(pairs, key=lambda pair: (_STATES_WORST_FIRST.index(pair.state), pair.overlap))[:_LISTED_PAIRS]


def _pair_keys(pairs: Sequence[PairFacts]) -> list[tuple[str, str, int]]:
    """Style, words and number of the pairs of each state that there is."""
    counts = {state: sum(pair.state == state for pair in pairs) for state in reversed(_STATES_WORST_FIRST)}
    return [(_PAIR_STYLES[state], _PAIR_WORDS[state], count) for state, count in counts.items() if count]


def _badges(photo: PhotoFacts) -> list[tuple[str, str]]:
    """What is wrong with a photo, each with its style."""
    found = []
    if photo.contested:
        found.append(("camera not to be trusted", "poor"))
    if photo.partners and photo.partners[0].overlap < WEAK_OVERLAP:
        found.append(("weakly connected", "fair"))
    if photo.hardly_sure:
        found.append(("network hardly sure", "fair"))
    return found


def _value(row: Compared, which: str) -> str:
    """One side of a row; nothing on either where there is a change alone."""
    if row.before is None:
        return ""
    return _with_unit(row, row.before if which == "before" else row.after)


def _with_unit(row: Compared, value: float | None) -> str:
    if value is None:
        return "-"
    if row.unit == "%":
        return percent(value / 100.0)
    if row.unit == "°":
        return f"{value:.1f}°"
    digits = 3 if abs(value) < 1 else 2
    return f"{value:.{digits}f}{_NO_BREAK + row.unit if row.unit else ''}"


def _change(row: Compared) -> _Change:
    """In words and with an arrow, so that nothing hangs on a colour."""
    before, after = row.before, row.after
    if before is None:
        return _Change(words=_with_unit(row, after), style="")
    if after is None or not before > 0:
        return _Change(words="", style="")
    ratio = after / before - 1.0
    if abs(ratio) < _SAME:
        return _Change(words="same", style="soft")
    arrow = "▼" if ratio < 0 else "▲"
    if row.lower_is_better is None:
        return _Change(words=f"{arrow} {100 * abs(ratio):.0f} %", style="soft")
    better = (ratio < 0) == row.lower_is_better
    return _Change(
        words=f"{arrow} {100 * abs(ratio):.0f} % {'better' if better else 'worse'}",
        style="better" if better else "worse",
    )


def _capital(words: str) -> str:
    """The gate's words as a sentence of the page."""
    return f"{words[:1].upper()}{words[1:]}".replace("->", "→")


def _frustum(camera: CameraMark) -> str:
    """The path of a camera: its four corners, and from each a line to its centre."""
    (x, y), corners = camera.centre, camera.corners
    around = "L".join(f"{a} {b}" for a, b in corners)
    rays = "".join(f"M{x} {y}L{a} {b}" for a, b in corners)
    return f"M{around}Z{rays}"
