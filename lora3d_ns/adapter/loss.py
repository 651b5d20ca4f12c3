"""What fine-tuning minimises: DUSt3R's confidence-weighted regression (arXiv 2312.14132, Eqs. 2 to 4), which is
LoRA3D's Eq. 12 (arXiv 2412.07746), over the pixels that have a label."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lora3d_ns.network.base import PairOutput

_LEAST_DISTANCE = 1e-8


@dataclass(frozen=True, eq=False, kw_only=True)
class LabelBatch:
    """Labels of a batch of ordered pairs (i, j).

    Attributes:
        points_first, points_second: The points of view i's and view j's pixels, both in camera i's frame, any unit.
        valid_first, valid_second: Which of them are labels.
    """

    points_first: Float[Tensor, "pairs height width 3"]
    points_second: Float[Tensor, "pairs height_second width_second 3"]
    valid_first: Bool[Tensor, "pairs height width"]
    valid_second: Bool[Tensor, "pairs height_second width_second"]


def mean_distance(
    points_first: Float[Tensor, "pairs height width 3"],
    points_second: Float[Tensor, "pairs height_second width_second 3"],
    valid_first: Bool[Tensor, "pairs height width"] | None = None,
    valid_second: Bool[Tensor, "pairs height_second width_second"] | None = None,
) -> Float[Tensor, " pairs"]:
    """z: mean distance of a pair's points from the first camera, over the valid ones if masks are given."""
    distances = torch.cat([points_first.norm(dim=-1).flatten(1), points_second.norm(dim=-1).flatten(1)], dim=1)
    if valid_first is None or valid_second is None:
        return distances.mean(dim=1)
    valid = torch.cat([valid_first.flatten(1), valid_second.flatten(1)], dim=1)
    return (distances * valid).sum(dim=1) / valid.sum(dim=1).clamp_min(1)


def point_errors(
    predicted_first: Float[Tensor, "pairs height width 3"],
    predicted_second: Float[Tensor, "pairs height_second width_second 3"],
    true_first: Float[Tensor, "pairs height width 3"],
    true_second: Float[Tensor, "pairs height_second width_second 3"],
    valid_first: Bool[Tensor, "pairs height width"] | None = None,
    valid_second: Bool[Tensor, "pairs height_second width_second"] | None = None,
) -> tuple[Float[Tensor, "pairs height width"], Float[Tensor, "pairs height_second width_second"]]:
    """`l = ||X / z - X_true / z_true||` of each pixel of both photos; z is joint over the pair (DUSt3R, Eqs. 2, 3).

    Unchanged if predictions or truth are scaled by a positive factor. Both z are over the valid pixels.
    """
    z = mean_distance(predicted_first, predicted_second, valid_first, valid_second)
    true_z = mean_distance(true_first, true_second, valid_first, valid_second)
    inverse = 1.0 / z[:, None, None, None].clamp_min(_LEAST_DISTANCE)
    true_inverse = 1.0 / true_z[:, None, None, None].clamp_min(_LEAST_DISTANCE)
    errors = [
        # Smooth at zero, where the gradient of the norm is undefined.
        ((predicted * inverse - true * true_inverse).square().sum(dim=-1) + 1e-12).sqrt()
        for predicted, true in ((predicted_first, true_first), (predicted_second, true_second))
    ]
    return errors[0], errors[1]


def confidence_loss(
    errors: Float[Tensor, "*batch"],
    log_confidence: Float[Tensor, "*batch"],
    confidence_alpha: float,
    valid: Bool[Tensor, "*batch"] | None = None,
) -> Float[Tensor, ""]:
    """Mean of `C l - alpha log C` with the raw confidence `C = exp(log_confidence) >= 1` (DUSt3R, Eq. 4).

    For a fixed error the best confidence is `max(1, alpha / l)`. The mean is over the valid pixels, 0 if there is none.
    """
    terms = log_confidence.exp() * errors - confidence_alpha * log_confidence
    if valid is None:
        return terms.mean()
    return (terms * valid).sum() / valid.sum().clamp_min(1)


def _label_errors(output: PairOutput, labels: LabelBatch) -> tuple[Tensor, Tensor]:
    return point_errors(
        output.points_first,
        output.points_second,
        labels.points_first,
        labels.points_second,
        labels.valid_first,
        labels.valid_second,
    )


def label_loss(output: PairOutput, labels: LabelBatch, *, confidence_alpha: float) -> Float[Tensor, ""]:
    """LoRA3D's Eq. 12 of a batch: `mean_p (C_p l_p - alpha log C_p)` over the labels, both photos counting alike."""
    errors_first, errors_second = _label_errors(output, labels)
    return 0.5 * (
        confidence_loss(errors_first, output.confidence_first, confidence_alpha, labels.valid_first)
        + confidence_loss(errors_second, output.confidence_second, confidence_alpha, labels.valid_second)
    )


def mean_label_error(output: PairOutput, labels: LabelBatch) -> Float[Tensor, " pairs"]:
    """Mean normalised distance of each pair's predictions from its labels: the error of Eq. 12 without confidence."""
    errors_first, errors_second = _label_errors(output, labels)
    errors = torch.cat([errors_first.flatten(1), errors_second.flatten(1)], dim=1)
    valid = torch.cat([labels.valid_first.flatten(1), labels.valid_second.flatten(1)], dim=1)
    return (errors * valid).sum(dim=1) / valid.sum(dim=1).clamp_min(1)
