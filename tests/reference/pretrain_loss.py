"""Slow, obvious twins of `lora3d_ns.rooms.pretrain_loss`: one pixel, one patch at a time."""

import math

import torch
from torch import Tensor


def point_errors(predicted_first: Tensor, predicted_second: Tensor, true_first: Tensor, true_second: Tensor):
    """Errors of each pixel after dividing prediction and truth by their mean distance over both photos."""

    def mean_distance(first: Tensor, second: Tensor) -> Tensor:
        points = [point for image in (first, second) for row in image for point in row]
        return torch.stack([point.dot(point).sqrt() for point in points]).mean()

    results = []
    for pair in range(len(predicted_first)):
        z = mean_distance(predicted_first[pair], predicted_second[pair])
        z_true = mean_distance(true_first[pair], true_second[pair])
        results.append(
            [
                torch.stack(
                    [
                        torch.stack([(p / z - t / z_true).pow(2).sum().sqrt() for p, t in zip(ps, ts, strict=True)])
                        for ps, ts in zip(predicted[pair], true[pair], strict=True)
                    ]
                )
                for predicted, true in ((predicted_first, true_first), (predicted_second, true_second))
            ]
        )
    return torch.stack([first for first, _ in results]), torch.stack([second for _, second in results])


def confidence_loss(errors: Tensor, raw_confidence: Tensor, alpha: float) -> Tensor:
    """Mean over pixels of C l - alpha log C, with the raw confidence."""
    terms = [c * e - alpha * torch.log(c) for c, e in zip(raw_confidence.flatten(), errors.flatten(), strict=True)]
    return torch.stack(terms).mean()


def matching_loss(first: Tensor, second: Tensor, matches_first: Tensor, matches_second: Tensor, temperature: float):
    """Cross-entropy of the patches that have a match, over both directions and all pairs."""
    terms, weight = [], 0.0
    for pair in range(len(first)):
        for own, other, matches in (
            (first[pair], second[pair], matches_first[pair]),
            (second[pair], first[pair], matches_second[pair]),
        ):
            for p, row in zip(own, matches, strict=True):
                scores = [p.dot(q) / (p.norm() * q.norm()) / temperature for q in other]
                total = torch.stack([score.exp() for score in scores]).sum()
                for score, w in zip(scores, row.tolist(), strict=True):
                    if w:
                        terms.append(-w * torch.log(score.exp() / total))
                weight += float(row.sum())
    return torch.stack(terms).sum() / weight


def match_of_point(point_j: list[float], focal_px: float, size_px: int, patch_size: int) -> list[float]:
    """Bilinear weights of a point in camera j over its patches, by hand, for a point well inside the photo."""
    count = size_px // patch_size
    u = focal_px * point_j[0] / point_j[2] + size_px / 2
    v = focal_px * point_j[1] / point_j[2] + size_px / 2
    column, row = u / patch_size - 0.5, v / patch_size - 0.5
    weights = [0.0] * count * count
    for r in (math.floor(row), math.floor(row) + 1):
        for c in (math.floor(column), math.floor(column) + 1):
            if 0 <= r < count and 0 <= c < count:
                weights[r * count + c] = (1 - abs(row - r)) * (1 - abs(column - c))
    return weights
