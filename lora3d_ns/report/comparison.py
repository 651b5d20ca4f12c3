"""Before and after learning, as far as it can be measured without knowing the truth."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lora3d_ns.report.facts import Compared, Gate, Moved
from lora3d_ns.scene_io.details import LearningDetails, SceneDetails
from lora3d_ns.types import AlignmentDiagnosis, Cameras

_LEARNT_WEIGHTS = (
    "Weights are in units of the network's own confidence, which learning changes as well: neither direction is "
    "better by itself."
)


def compared(
    details: SceneDetails, learning: LearningDetails, moved: Sequence[Moved], *, weight_cutoff: float
) -> tuple[Compared, ...]:
    """Measures of the scene before learning beside those of the finished one.

    Args:
        details: Of the finished scene.
        learning: Of how it was learnt.
        moved: See `cameras_moved`.
        weight_cutoff: Weight from which on a pixel is a point of the cloud.
    """
    before, after = learning.before.diagnosis, details.diagnosis
    rows = [
        Compared(
            key="edge_residual_percent",
            what="Disagreement of the pairs with the scene",
            unit="%",
            before=_median_percent(before.edge_residuals),
            after=_median_percent(after.edge_residuals),
            lower_is_better=True,
            note="How far the points of the middle one of all pairs lie from the scene's, in percent of its depth.",
        ),
        _held_out(learning),
        Compared(
            key="match_error_px",
            what="Reprojection error of matched points",
            unit="px",
            before=before.match_error_px,
            after=after.match_error_px,
            lower_is_better=None,
            note=f"Median, in the network's pixels, over {before.match_count} and {after.match_count} of them. "
            "Cameras follow matches in either scene: it says little of what was learnt.",
        ),
        Compared(
            key="focal_spread_percent",
            what="Spread of the pairs' focal lengths",
            unit="%",
            before=_median(before.focal_spread_percent),
            after=_median(after.focal_spread_percent),
            lower_is_better=True,
            note="Half the distance of the quartiles; the middle one of all photos.",
        ),
        Compared(
            key="point_share_percent",
            what=f"Pixels that weigh {weight_cutoff:g} or more",
            unit="%",
            before=_point_percent(learning.before.weights, details.masks, weight_cutoff),
            after=_point_percent(details.weights, details.masks, weight_cutoff),
            lower_is_better=None,
            note=f"They are the points of the cloud. {_LEARNT_WEIGHTS}",
        ),
    ]
    if moved:
        distances = torch.tensor([one.distance_percent for one in moved])
        angles = torch.tensor([one.angle_deg for one in moved])
        rows += [
            Compared(
                key="cameras_moved_percent",
                what="Cameras moved by",
                unit="%",
                before=None,
                after=float(distances.median()),
                lower_is_better=None,
                note=f"Of the scene's depth, after both scenes were laid over each other: median, at most "
                f"{float(distances.max()):.1f} %.",
            ),
            Compared(
                key="cameras_turned_deg",
                what="Cameras turned by",
                unit="°",
                before=None,
                after=float(angles.median()),
                lower_is_better=None,
                note=f"Median, at most {float(angles.max()):.1f}°.",
            ),
        ]
    return tuple(row for row in rows if row.before is not None or row.after is not None)


def cameras_moved(
    names: Sequence[str],
    before: Cameras,
    before_diagnosis: AlignmentDiagnosis,
    after: Cameras,
    after_diagnosis: AlignmentDiagnosis,
) -> tuple[Moved, ...]:
    """How far learning moved each camera.

    The scene before is laid over the other by the ratio of their typical depths, by the rotation that turns its
    cameras nearest to the others', and by the centre of all cameras. That holds for cameras on a line or on one spot,
    where their centres alone would not say how to turn it.

    Args:
        names: Of the photos.
        before, after: Their cameras.
        before_diagnosis, after_diagnosis: For the unit of either scene.
    """
    first, second = before.T_world_camera.double(), after.T_world_camera.double()
    U, _, Vh = torch.linalg.svd((second[:, :3, :3] @ first[:, :3, :3].mT).sum(dim=0))
    sign = torch.diag(torch.tensor([1.0, 1.0, float(torch.linalg.det(U @ Vh).sign())], dtype=torch.float64))
    R = U @ sign @ Vh
    centres = first[:, :3, 3] @ R.T / before_diagnosis.unit
    wanted = second[:, :3, 3] / after_diagnosis.unit
    distances = ((centres - centres.mean(dim=0)) - (wanted - wanted.mean(dim=0))).norm(dim=1)
    relative = (R @ first[:, :3, :3]).mT @ second[:, :3, :3]
    # Exact for small angles too, where the arc cosine of the trace is not.
    axis = torch.stack(
        [
            relative[:, 2, 1] - relative[:, 1, 2],
            relative[:, 0, 2] - relative[:, 2, 0],
            relative[:, 1, 0] - relative[:, 0, 1],
        ],
        dim=1,
    ).norm(dim=1)
    angles = torch.rad2deg(torch.atan2(axis, relative.diagonal(dim1=1, dim2=2).sum(dim=1) - 1.0))
    focal = 100.0 * (after.K[:, 0, 0] / before.K[:, 0, 0] - 1.0)
    return tuple(
        Moved(name=name, distance_percent=100.0 * float(d), angle_deg=float(a), focal_percent=float(f))
        for name, d, a, f in zip(names, distances, angles, focal, strict=True)
    )


def gate_of(decision: object) -> Gate | None:
    """The gate's decision from the plain values that a scene keeps of it; None where there is none."""
    if not isinstance(decision, Mapping) or "accepted" not in decision:
        return None
    before, after = decision.get("before"), decision.get("after")
    before = before if isinstance(before, Mapping) else {}
    after = after if isinstance(after, Mapping) else {}
    matches = after.get("matches")
    rows = [
        ("label_error", "Distance from the labels", "Of all points, as a share of their mean distance."),
        (
            "match_error",
            "Distance of matched points",
            f"Between the two 3D points of one thing in two photos, over {matches} matches: it knows no labels.",
        ),
        ("order_error", "Disagreement of the two orders", "Between a pair and the same pair the other way round."),
    ]
    return Gate(
        accepted=bool(decision["accepted"]),
        reason=str(decision.get("reason", "")),
        compared=tuple(
            Compared(
                key=key,
                what=what,
                unit="",
                before=_number(before.get(key)),
                after=_number(after.get(key)),
                lower_is_better=True,
                note=note,
            )
            for key, what, note in rows
            if _number(before.get(key)) is not None or _number(after.get(key)) is not None
        ),
    )


def _held_out(learning: LearningDetails) -> Compared:
    errors = learning.held_out_errors
    after = errors[learning.best_epoch] if learning.best_epoch < len(errors) else None
    return Compared(
        key="held_out_error",
        what="Error of held-out pairs",
        unit="",
        before=errors[0] if errors else None,
        after=after,
        lower_is_better=True,
        note=f"Mean distance from the labels, as a share of depth, over {len(learning.held_out)} pairs that no step "
        "of learning saw.",
    )


def _point_percent(
    weights: Sequence[Float[Tensor, "_ _"]], masks: Sequence[Bool[Tensor, "_ _"] | None], cutoff: float
) -> float | None:
    chosen = counted = 0
    for weight, mask in zip(weights, masks, strict=True):
        kept = weight if mask is None else weight[mask]
        chosen += int(((kept >= cutoff) & (kept > 0)).sum())
        counted += kept.numel()
    return 100.0 * chosen / counted if counted else None


def _median(values: Float[Tensor, " values"]) -> float | None:
    finite = values[torch.isfinite(values)]
    return float(finite.median()) if len(finite) else None


def _median_percent(shares: Float[Tensor, " values"]) -> float | None:
    median = _median(shares)
    return None if median is None else 100.0 * median


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
