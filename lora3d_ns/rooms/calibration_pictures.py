"""Confidence beside weight beside true error, and how well each sorts the error, one scene per row."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, eq=False, kw_only=True)
class CalibrationExample:
    """One point map of one edge, and the sorting of all edges' errors of its scene.

    Attributes:
        label: Of the row.
        image: The photo.
        confidence, weight: What the network said of each pixel, and what the alignment made of it.
        error: True distance of each point, as a share of depth.
        kept: Shares of pixels kept, 1 downwards.
        by_confidence, by_weight, by_error: Mean error of what is kept when the least confident, the lightest or the
            worst go first, relative to the mean of all; averaged over the edges.
    """

    label: str
    image: Float[Tensor, "3 height width"]
    confidence: Float[Tensor, "height width"]
    weight: Float[Tensor, "height width"]
    error: Float[Tensor, "height width"]
    kept: Float[Tensor, " steps"]
    by_confidence: Float[Tensor, " steps"]
    by_weight: Float[Tensor, " steps"]
    by_error: Float[Tensor, " steps"]


def sparsification_curve(
    value: Float[Tensor, " pixels"], error: Float[Tensor, " pixels"], kept: Float[Tensor, " steps"]
) -> Float[Tensor, " steps"]:
    """Mean error of the given shares of pixels with the highest values, relative to the mean of all."""
    ordered = error[torch.argsort(value, descending=True)].double().cumsum(dim=0)
    counts = (kept * len(error)).round().long().clamp(min=1)
    return ordered[counts - 1] / counts / error.double().mean()


def draw_calibration(examples: Sequence[CalibrationExample], path: Path, *, title: str) -> None:
    """Writes a PNG with one row per example."""
    from matplotlib.figure import Figure

    path.parent.mkdir(parents=True, exist_ok=True)
    figure = Figure(figsize=(15, 2.7 * len(examples) + 0.5), layout="constrained")
    figure.suptitle(title)
    axes = figure.subplots(len(examples), 5, squeeze=False)
    for row, example in zip(axes, examples, strict=True):
        panels = [
            (example.image.permute(1, 2, 0).clamp(0.0, 1.0), f"{example.label}: photo", None),
            (example.confidence, "confidence C", "viridis"),
            (example.weight, "calibrated weight w", "viridis"),
            (example.error, "true error / depth", "magma"),
        ]
        highest = float(example.confidence.max())
        for axis, (values, label, colormap) in zip(row, panels, strict=False):
            axis.set_title(label, fontsize=9)
            axis.set_axis_off()
            if colormap is None:
                axis.imshow(values.numpy())
                continue
            top = highest if colormap == "viridis" else float(torch.quantile(values, 0.98))
            figure.colorbar(axis.imshow(values.numpy(), cmap=colormap, vmin=0.0, vmax=top), ax=axis, shrink=0.8)
        curves = row[4]
        curves.plot(example.kept, example.by_confidence, label="by confidence")
        curves.plot(example.kept, example.by_weight, label="by weight")
        curves.plot(example.kept, example.by_error, label="by the error itself", color="0.6")
        curves.set_xlim(1.0, 0.0)
        curves.set_ylim(0.0, 1.1)
        curves.set_xlabel("share of pixels kept", fontsize=8)
        curves.set_title("mean error of what is kept, all pairs", fontsize=9)
        curves.legend(fontsize=7)
    figure.savefig(path, dpi=70)
