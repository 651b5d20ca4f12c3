"""Scene and details -> Report."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from lora3d_ns import __version__
from lora3d_ns.alignment.dropping import residual_limit
from lora3d_ns.errors import InvalidDataError
from lora3d_ns.report.advice import connected_groups, good_graph, nothing_lacking, what_to_shoot_next
from lora3d_ns.report.comparison import cameras_moved, compared, gate_of
from lora3d_ns.report.coverage import Coverage, coverage, median_weight, thin_regions
from lora3d_ns.report.facts import (
    Aligned,
    Histogram,
    Learning,
    Motion,
    PairFacts,
    PairState,
    Partner,
    PhotoFacts,
    Report,
)
from lora3d_ns.report.verdict import headline, level_of, sentence, warned
from lora3d_ns.scene_io.details import SceneDetails
from lora3d_ns.types import Scene

LEAST_JOINING_OVERLAP = 0.1
"""Pairs that share less do not tie their photos, whatever the network makes of them."""
_DEFAULT_WEIGHT_CUTOFF = 0.1
_FILM_DIAGONAL_MM = math.hypot(36.0, 24.0)
_DECADES, _PER_DECADE = (-3, 0), 8
_SURE_QUANTILE = 0.5
_LEFT_OF_CONFIDENCE = 0.25
"""What Eq. 8 leaves of a confidence at a distance of mu."""

WITHOUT_DETAILS = (
    "Maps, pairs, residuals, focal spread, losses, before and after, and what to shoot next are not told: this scene "
    "was saved without its details (details.safetensors). Reconstruct the photos again to have them."
)


def report_of(scene: Scene, details: SceneDetails | None, *, name: str = "scene") -> Report:
    """All facts of a scene that a person needs to judge it.

    Args:
        scene: The scene.
        details: What lies beside it; None for a scene saved without: then the report says what is missing.
        name: What to call it.

    Raises:
        InvalidDataError: The details are of another scene.
    """
    if details is not None and details.names != scene.names:
        raise InvalidDataError("the details are of another scene", way_out="Load both from one folder")
    provenance = scene.provenance
    settings = provenance.get("settings")
    settings = settings if isinstance(settings, Mapping) else {}
    gate = gate_of(provenance.get("gate"))
    arm = str(provenance.get("arm", ""))
    adapter_used = provenance.get("adapter") is not None
    seconds = provenance.get("seconds")
    missing = []
    if not isinstance(seconds, Mapping):
        seconds = {}
        missing.append("Times are not told: the scene does not hold them.")
    cutoff = settings.get("point_cutoff", _DEFAULT_WEIGHT_CUTOFF)
    weight_cutoff = float(cutoff) if isinstance(cutoff, (int, float)) else _DEFAULT_WEIGHT_CUTOFF
    said = provenance.get("warnings")
    texts = tuple(str(text) for text in said) if isinstance(said, (list, tuple)) else ()

    pairs: tuple[PairFacts, ...] = ()
    aligned = learning = None
    covers: tuple[Coverage, ...] | None = None
    dropped: Mapping[tuple[int, int], str] = {}
    if details is None:
        missing.insert(0, WITHOUT_DETAILS)
    else:
        texts, dropped = details.diagnosis.warnings, details.dropped
        thin_cutoff = min(weight_cutoff, median_weight(details.weights, details.masks))
        covers = coverage(details, scene.cameras, thin_cutoff=thin_cutoff)
        pairs = _pairs(details)
        learning = _learning(scene, details, weight_cutoff)
        aligned = _aligned(details, pairs, learning, weight_cutoff=weight_cutoff, thin_cutoff=thin_cutoff)
    photos = _photos(scene, details, covers, pairs)
    advice = () if aligned is None else what_to_shoot_next(photos, pairs, aligned.motion)
    none = "" if advice else nothing_lacking(photos) if aligned is not None else "It needs the details of the scene."
    return Report(
        name=name,
        level=level_of(aligned, gate, advice),
        headline=headline(len(photos), aligned, learning, gate, arm=arm, adapter_used=adapter_used),
        missing=tuple(missing),
        warnings=warned(texts, scene.names, dropped, converged=aligned is None or aligned.converged),
        advice=advice,
        advice_none=none,
        photos=photos,
        pairs=pairs,
        points=len(scene.points),
        aligned=aligned,
        learning=learning,
        gate=gate,
        seconds={str(stage): float(time) for stage, time in seconds.items() if isinstance(time, (int, float))},
        settings=flat(settings),
        versions=_versions(provenance),
    )


def histogram(values: Tensor, *, decades: tuple[int, int] = _DECADES, per_decade: int = _PER_DECADE) -> Histogram:
    """Counts of the finite values between powers of ten; what lies outside is counted in the outermost bins."""
    first, last = decades
    count = (last - first) * per_decade
    finite = values.flatten()[torch.isfinite(values.flatten())].double()
    place = ((finite.clamp(min=10.0 ** (first - 1)).log10() - first) * per_decade).floor().clamp(0, count - 1)
    return Histogram(
        bounds=tuple(10.0 ** (first + step / per_decade) for step in range(count + 1)),
        counts=tuple(torch.bincount(place.long(), minlength=count).tolist()),
        median=float(finite.median()) if len(finite) else None,
    )


def flat(settings: Mapping[Any, object], before: str = "") -> dict[str, str]:
    """Nested settings by dotted name, as text; the kinds of structures stay only where they are a choice."""
    found: dict[str, str] = {}
    for key, value in settings.items():
        name = f"{before}{key}"
        if key == "show_progress" or (key == "kind" and str(value).endswith("Settings")):
            continue
        if isinstance(value, Mapping):
            found |= flat(value, f"{name}.")
        elif isinstance(value, (list, tuple)):
            found[name] = ", ".join(str(part) for part in value) or "none"
        else:
            found[name] = str(value)
    return found


def _versions(provenance: Mapping[str, object]) -> dict[str, str]:
    found = {
        key: str(provenance[given])
        for key, given in (
            ("lora3d_ns", "version"),
            ("arm", "arm"),
            ("network", "network"),
            ("network_fingerprint", "network_fingerprint"),
        )
        if provenance.get(given) is not None
    }
    adapter = provenance.get("adapter")
    if isinstance(adapter, Mapping):
        found |= flat(adapter, "adapter.")
    return {**found, "report_by": f"lora3d_ns {__version__}"}


# --- photos and pairs --------------------------------------------------------------------------------


def _photos(
    scene: Scene, details: SceneDetails | None, covers: Sequence[Coverage] | None, pairs: Sequence[PairFacts]
) -> tuple[PhotoFacts, ...]:
    points = torch.bincount(scene.point_views.long(), minlength=len(scene.names)).tolist()
    poses = scene.cameras.T_world_camera.double()
    T_first_camera = torch.linalg.inv(poses[0]) @ poses
    sure = 0.0
    if details is not None:
        sure = median_weight(details.confidences, details.masks)
    return tuple(
        PhotoFacts(
            name=name,
            number=view + 1,
            width_px=size[0],
            height_px=size[1],
            focal_px=float(scene.cameras.K[view, 0, 0]),
            focal_mm=float(scene.cameras.K[view, 0, 0]) * _FILM_DIAGONAL_MM / math.hypot(*size),
            position=_triple(T_first_camera[view, :3, 3]),
            looks_along=_triple(T_first_camera[view, :3, 2]),
            points=points[view],
            partners=_partners(view + 1, pairs),
            **(_nothing_more() if details is None or covers is None else _more(details, covers[view], view, sure)),
        )
        for view, (name, size) in enumerate(zip(scene.names, scene.cameras.sizes, strict=True))
    )


def _more(details: SceneDetails, cover: Coverage, view: int, sure: float) -> dict[str, Any]:
    """What the details say of one photo."""
    mask = details.masks[view]
    counted = torch.ones_like(details.moving[view]) if mask is None else mask
    weight, said = details.weights[view][counted].float(), details.confidences[view][counted].float()
    diagnosis = details.diagnosis
    unborne = (weight < _LEFT_OF_CONFIDENCE * said)[said >= sure]
    some = bool(counted.any())
    return {
        "focal_spread_percent": _finite(diagnosis.focal_spread_percent[view]),
        "weight_median": float(weight.median()) if some else None,
        "weighted_share": _finite(diagnosis.weighted_share[view]),
        "unborne_share": float(unborne.float().mean()) if len(unborne) else None,
        "label_coverage": None if details.learning is None else _finite(details.learning.label_coverage[view]),
        "seen_share": cover.seen_share,
        "thin_share": cover.thin_share,
        "thin_regions": thin_regions(cover),
        "moving_share": float(details.moving[view][counted].float().mean()) if some else None,
        "masked_share": float((~counted).float().mean()),
        "brightness": float(details.images[view][counted].float().mean()) / 255.0 if some else None,
        "residual": histogram(_shares(details.residuals[view], counted, diagnosis.unit)),
        "hardly_sure": view in diagnosis.uncut_views,
        "contested": view in diagnosis.contested_views,
    }


def _nothing_more() -> dict[str, Any]:
    unknown = ("focal_spread_percent", "weight_median", "weighted_share", "unborne_share", "label_coverage")
    unknown += ("seen_share", "thin_share", "moving_share", "masked_share", "brightness", "residual")
    return {**dict.fromkeys(unknown), "thin_regions": (), "hardly_sure": False, "contested": False}


def _partners(number: int, pairs: Sequence[PairFacts]) -> tuple[Partner, ...]:
    """The two photos that share most with this one; of equals those with lower numbers."""
    found = []
    for pair in pairs:
        if number in pair.numbers:
            other = 1 - pair.numbers.index(number)
            found.append(Partner(name=pair.names[other], number=pair.numbers[other], overlap=pair.overlap))
    return tuple(sorted(found, key=lambda partner: (-partner.overlap, partner.number))[:2])


def _pairs(details: SceneDetails) -> tuple[PairFacts, ...]:
    """Both orders of a pair in one, in the order of their first edge."""
    diagnosis, names = details.diagnosis, details.names
    limit = residual_limit(diagnosis.edge_residuals)
    orders: dict[tuple[int, int], list[int]] = {}
    for index, (i, j) in enumerate(details.edges):
        orders.setdefault((min(i, j), max(i, j)), []).append(index)
    found = []
    for (i, j), indices in sorted(orders.items()):
        kept = [index for index in indices if details.edges[index] not in details.dropped]
        residuals = [float(diagnosis.edge_residuals[index]) for index in kept]
        residuals = [residual for residual in residuals if not math.isnan(residual)]
        residual = min(residuals, default=None)
        overlap = float(details.overlap[indices[0]])
        reasons = [details.dropped[details.edges[index]] for index in indices if index not in kept]
        if kept and residual is None:
            reasons.append("nothing in it counted")
        state: PairState = "good"
        if residual is None:
            state = "left_out"
        elif not residual <= limit or (i in diagnosis.contested_views) != (j in diagnosis.contested_views):
            state = "contradicts"
        elif overlap < LEAST_JOINING_OVERLAP:
            state = "little_overlap"
        found.append(
            PairFacts(
                names=(names[i], names[j]),
                numbers=(i + 1, j + 1),
                overlap=overlap,
                residual=residual,
                state=state,
                left_out=tuple(sentence(reason) for reason in reasons),
            )
        )
    return tuple(found)


# --- the whole ------------------------------------------------------------------------------------------


def _aligned(
    details: SceneDetails,
    pairs: Sequence[PairFacts],
    learning: Learning | None,
    *,
    weight_cutoff: float,
    thin_cutoff: float,
) -> Aligned:
    diagnosis, names = details.diagnosis, details.names
    groups = connected_groups(good_graph(len(names), pairs))
    before = None
    if learning is not None and learning.changed and details.learning is not None:
        before = histogram(details.learning.before.diagnosis.edge_residuals)
    every = [
        _shares(residual, torch.ones_like(residual, dtype=torch.bool) if mask is None else mask, diagnosis.unit)
        for residual, mask in zip(details.residuals, details.masks, strict=True)
    ]
    return Aligned(
        motion=Motion(baseline=float(diagnosis.baseline), near_static=diagnosis.near_static),
        groups=tuple(tuple(names[number - 1] for number in group) for group in groups),
        unit=float(diagnosis.unit),
        scale_known=diagnosis.scale_known,
        matches=diagnosis.match_count,
        match_error_px=diagnosis.match_error_px,
        converged=diagnosis.converged,
        weight_cutoff=weight_cutoff,
        thin_cutoff=thin_cutoff,
        losses=details.losses,
        seconds=details.seconds,
        residual=histogram(torch.cat(every)),
        edge_residual=histogram(diagnosis.edge_residuals),
        edge_residual_before=before,
    )


def _learning(scene: Scene, details: SceneDetails, weight_cutoff: float) -> Learning | None:
    learning, names = details.learning, details.names
    if learning is None:
        return None
    before = learning.before
    changed = not torch.equal(before.cameras.T_world_camera, scene.cameras.T_world_camera) or not all(
        torch.equal(first, second) for first, second in zip(before.depths, details.depths, strict=True)
    )
    moved = cameras_moved(names, before.cameras, before.diagnosis, scene.cameras, details.diagnosis) if changed else ()
    return Learning(
        losses=learning.losses,
        held_out=tuple((names[i], names[j]) for i, j in learning.held_out),
        held_out_errors=learning.held_out_errors,
        best_epoch=learning.best_epoch,
        label_cutoff=learning.label_cutoff,
        changed=changed,
        compared=compared(details, learning, moved, weight_cutoff=weight_cutoff) if changed else (),
        moved=moved,
    )


def _shares(residual: Tensor, counted: Bool[Tensor, "height width"], unit: float) -> Tensor:
    """Residuals of the pixels that count, as shares of the scene's depth; none where the unit is no length."""
    return residual[counted].float() / unit if 0 < unit < math.inf else residual.new_zeros(0).float()


def _finite(value: Tensor) -> float | None:
    return float(value) if bool(torch.isfinite(value)) else None


def _triple(vector: Tensor) -> tuple[float, float, float]:
    x, y, z = (float(value) for value in vector)
    return x, y, z
