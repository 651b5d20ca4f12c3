"""The facts of a report in plain values: what `report.json` holds, and all that the page's words and charts say."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

REPORT_FORMAT_VERSION = 1
"""The meaning of the fields of `Report`."""

PairState = Literal["good", "little_overlap", "contradicts", "left_out"]
"""`good`: it ties its photos. `little_overlap`: too little of either photo is in the other. `contradicts`: its points
lie off the other pairs'. `left_out`: the alignment went without it."""

Level = Literal["good", "fair", "poor", "unknown"]


@dataclass(frozen=True, kw_only=True)
class Partner:
    """Another photo and how much the two share.

    Attributes:
        name: Of the other photo.
        number: Its number.
        overlap: Share of both photos' pixels that the other one sees.
    """

    name: str
    number: int
    overlap: float


@dataclass(frozen=True, kw_only=True)
class Histogram:
    """Counts between logarithmic bounds.

    Attributes:
        bounds: One more than there are counts; what lies outside is counted in the first or the last.
        counts: How many lie between neighbouring bounds.
        median: Of all values.
    """

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    median: float | None


@dataclass(frozen=True, kw_only=True)
class PhotoFacts:
    """One photo. What needs details of the scene is None without them; shares are of the pixels that a mask leaves.

    Attributes:
        name: As in the scene.
        number: From 1 on, in the scene's order.
        width_px, height_px: Of the upright photo.
        focal_px: Along x.
        focal_mm: The same as if the photo were 36 x 24 mm, by its diagonal.
        focal_spread_percent: Half the distance of the quartiles of single pairs' focal lengths.
        position: Of the camera, in the frame of the first: x to the right, y down, z forward.
        looks_along: Its direction of view in the same frame.
        points: How many points of the cloud come from it.
        weight_median: Of its pixels.
        weighted_share: Share of pixels that weigh more than the alignment's cut-off.
        unborne_share: Share of the pixels the network was rather sure of (upper half of the scene) that less than a
            quarter of that confidence is left of: there the other pairs contradict it.
        label_coverage: Share of pixels that had a label; None where nothing was learnt.
        seen_share: Share of pixels that another photo sees too.
        thin_share: Share of pixels that no other photo sees and that weigh little.
        thin_regions: Where most of them are: "upper left", "right third", "most of it".
        moving_share: Share of pixels that no static geometry explains.
        masked_share: Share of all pixels that the mask takes out.
        brightness: Mean of its sRGB values, 0 to 1.
        partners: The photos that share most with it, at most two, best first.
        residual: Distances between pairs' points and the scene's, as shares of the scene's depth.
        hardly_sure: Whether the network was sure of next to nothing in it.
        contested: Whether no pair that the others confirm holds it.
    """

    name: str
    number: int
    width_px: int
    height_px: int
    focal_px: float
    focal_mm: float
    focal_spread_percent: float | None
    position: tuple[float, float, float]
    looks_along: tuple[float, float, float]
    points: int
    weight_median: float | None
    weighted_share: float | None
    unborne_share: float | None
    label_coverage: float | None
    seen_share: float | None
    thin_share: float | None
    thin_regions: tuple[str, ...]
    moving_share: float | None
    masked_share: float | None
    brightness: float | None
    partners: tuple[Partner, ...]
    residual: Histogram | None
    hardly_sure: bool
    contested: bool


@dataclass(frozen=True, kw_only=True)
class PairFacts:
    """Two photos that the network looked at together, in one order or both.

    Attributes:
        names: Of the two.
        numbers: Theirs.
        overlap: Share of both photos' pixels that the other one sees.
        residual: Median distance of its points from the scene's as a share of depth, of the better order that was not
            left out; None where nothing counted.
        state: What it is good for.
        left_out: Why orders of it were left out; empty where none was.
    """

    names: tuple[str, str]
    numbers: tuple[int, int]
    overlap: float
    residual: float | None
    state: PairState
    left_out: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Motion:
    """How far the cameras are apart.

    Attributes:
        baseline: Largest distance between two, as a share of the scene's depth.
        near_static: Whether that is too little to measure depth.
    """

    baseline: float
    near_static: bool


@dataclass(frozen=True, kw_only=True)
class Advice:
    """One thing to do when photos are taken again.

    Attributes:
        kind: A word for programs, such as `weakly_connected`.
        urgency: `needed` where the scene does not hold without it.
        photos: Names of those concerned.
        text: What to do and why, in a sentence or two.
    """

    kind: str
    urgency: Literal["needed", "helpful"]
    photos: tuple[str, ...]
    text: str


@dataclass(frozen=True, kw_only=True)
class Warned:
    """Something a person should know.

    Attributes:
        text: What it is.
        way_out: What to do about it; empty where there is nothing to do.
        single: The single cases, where the text sums up several.
    """

    text: str
    way_out: str
    single: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One measure before and after learning.

    Attributes:
        key: For programs.
        what: For people.
        unit: "%" for shares, which are given from 0 to 100; "px"; or empty.
        before, after: Its values; None where there is none.
        lower_is_better: None where neither direction is better by itself.
        note: How to read it.
    """

    key: str
    what: str
    unit: str
    before: float | None
    after: float | None
    lower_is_better: bool | None
    note: str


@dataclass(frozen=True, kw_only=True)
class Moved:
    """How far learning moved one camera, after the two scenes were laid over each other.

    Attributes:
        name: Of the photo.
        distance_percent: Of the scene's depth.
        angle_deg: Between the two orientations.
        focal_percent: Change of the focal length; negative where it is shorter now.
    """

    name: str
    distance_percent: float
    angle_deg: float
    focal_percent: float


@dataclass(frozen=True, kw_only=True)
class Learning:
    """How the network learnt from the scene.

    Attributes:
        losses: Of each step of fine-tuning.
        held_out: Names of the pairs that no step saw.
        held_out_errors: Their error before any step and after each epoch.
        best_epoch: The epoch that counts; 0 is the network as it was.
        label_cutoff: Weight above which a pixel was learnt from.
        changed: Whether the scene was made with what was learnt.
        compared: Measures before and after; empty where nothing changed.
        moved: The cameras before and after; empty where nothing changed.
    """

    losses: tuple[float, ...]
    held_out: tuple[tuple[str, str], ...]
    held_out_errors: tuple[float, ...]
    best_epoch: int
    label_cutoff: float
    changed: bool
    compared: tuple[Compared, ...]
    moved: tuple[Moved, ...]


@dataclass(frozen=True, kw_only=True)
class Gate:
    """Whether what was learnt was accepted.

    Attributes:
        accepted: The decision.
        reason: In the gate's own words.
        compared: What it looked at: pairs held out from learning.
    """

    accepted: bool
    reason: str
    compared: tuple[Compared, ...]


@dataclass(frozen=True, kw_only=True)
class Aligned:
    """The alignment as a whole.

    Attributes:
        motion: Of the cameras.
        groups: Photos that good pairs join, largest group first.
        unit: The scene's typical depth, in the world's unit.
        scale_known: Whether that unit is a given one.
        matches: Matched pixels that were used.
        match_error_px: Their median reprojection error in network pixels.
        converged: Whether the solver met its tolerance.
        weight_cutoff: Weight from which on a pixel is a point of the cloud.
        thin_cutoff: Weight below which a pixel is thinly covered: that cut-off, or the scene's median where it is less.
        losses: Objective after each step.
        seconds: When each was reached.
        residual: Of all pixels of all photos.
        edge_residual: Medians of all pairs in both orders, those left out too.
        edge_residual_before: The same before learning; None where nothing changed.
    """

    motion: Motion
    groups: tuple[tuple[str, ...], ...]
    unit: float
    scale_known: bool
    matches: int
    match_error_px: float | None
    converged: bool
    weight_cutoff: float
    thin_cutoff: float
    losses: tuple[float, ...]
    seconds: tuple[float, ...]
    residual: Histogram
    edge_residual: Histogram
    edge_residual_before: Histogram | None


@dataclass(frozen=True, kw_only=True)
class Report:
    """All that is told of a scene. What needs details of the scene is None or empty without them.

    Attributes:
        name: What the scene is called.
        level: `good`, `fair` (weak spots), `poor` (it does not hold together), `unknown` (no details).
        headline: The verdict in a sentence or two.
        missing: What is not told, and why.
        warnings: What a person should know.
        advice: What to shoot next, most important first.
        advice_none: Why there is none, where there is none.
        photos: The photos.
        pairs: The pairs, both orders in one.
        points: Number of points of the cloud.
        aligned: The alignment.
        learning: How the network learnt from the scene; None where it did not, or where details are missing.
        gate: Whether that was accepted.
        seconds: Time of each stage.
        settings: Of all stages, by dotted name.
        versions: Of package and network, by name.
        format_version: `REPORT_FORMAT_VERSION`.
    """

    name: str
    level: Level
    headline: tuple[str, ...]
    missing: tuple[str, ...]
    warnings: tuple[Warned, ...]
    advice: tuple[Advice, ...]
    advice_none: str
    photos: tuple[PhotoFacts, ...]
    pairs: tuple[PairFacts, ...]
    points: int
    aligned: Aligned | None
    learning: Learning | None
    gate: Gate | None
    seconds: Mapping[str, float]
    settings: Mapping[str, str]
    versions: Mapping[str, str]
    format_version: int = REPORT_FORMAT_VERSION


def plain(value: object) -> object:
    """The value as JSON holds it: mappings, lists, and None for what is no finite number."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {part.name: plain(getattr(value, part.name)) for part in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
