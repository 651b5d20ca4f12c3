"""Pictures to look at where numbers would be read past."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lora3d_ns.errors import InvalidDataError
from lora3d_ns.geometry.similarity import weighted_scale
from lora3d_ns.types import PairPrediction, PairPredictions, Views

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.gridspec import GridSpec
    from mpl_toolkits.mplot3d import Axes3D

_MAX_SCATTER_POINTS = 20_000


def draw_pair_predictions(
    views: Views, predictions: PairPredictions, edges: Sequence[tuple[int, int]], path: Path, *, title: str
) -> None:
    """Writes a PNG with one row per edge: both photos, both depths, both confidences, and the points in 3D.

    Depths and points of both photos are in the first camera's frame; confidences are C = log(raw).

    Args:
        edges: Which edges to draw; each must be one of the predictions'.
        path: Where to; its folder must exist.
        title: Heading of the picture.

    Raises:
        InvalidDataError: An edge has no prediction.
    """
    from matplotlib.figure import Figure

    by_edge = _predictions_of(predictions, edges)
    figure = Figure(figsize=(21, 3.1 * len(edges) + 0.6), layout="constrained")
    figure.suptitle(title)
    grid = figure.add_gridspec(len(edges), 7, width_ratios=[1, 1, 1, 1, 1, 1, 1.4])
    for row, (i, j) in enumerate(edges):
        pair = by_edge[i, j]
        depths = _limits([pair.points_first[..., 2], pair.points_second[..., 2]])
        confidences = _limits([pair.confidence_first, pair.confidence_second])
        _draw_panels(
            figure,
            grid,
            row,
            (
                _Panel(views.images[i].permute(1, 2, 0), f"photo {views.names[i]}"),
                _Panel(views.images[j].permute(1, 2, 0), f"photo {views.names[j]}"),
                _Panel(pair.points_first[..., 2], "depth of the first", "turbo", depths),
                _Panel(pair.points_second[..., 2], "depth of the second, first's frame", "turbo", depths),
                _Panel(pair.confidence_first, "confidence of the first", "viridis", confidences),
                _Panel(pair.confidence_second, "confidence of the second", "viridis", confidences),
            ),
        )
        _draw_points(figure.add_subplot(grid[row, 6], projection="3d"), views, (i, j), pair)
    figure.savefig(path, dpi=80)


def draw_against_truth(
    views: Views,
    predictions: PairPredictions,
    truth: Mapping[tuple[int, int], tuple[Float[Tensor, "_ _ 3"], Float[Tensor, "_ _ 3"]]],
    path: Path,
    *,
    title: str,
) -> None:
    """Writes a PNG with one row per edge: predicted beside true depth of both photos, confidence beside true error.

    Depths are in the first camera's frame, predictions after one scale for the pair. Errors are distances to the true
    points; confidence is of the second photo, whose points are the harder ones.

    Args:
        truth: For each edge to draw the true points of its first and its second photo in the first camera's frame.
        path: Where to; its folder must exist.
        title: Heading of the picture.

    Raises:
        InvalidDataError: An edge has no prediction, or there is none to draw.
    """
    from matplotlib.figure import Figure

    by_edge = _predictions_of(predictions, list(truth))
    figure = Figure(figsize=(24, 2.7 * len(truth) + 0.6), layout="constrained")
    figure.suptitle(title)
    grid = figure.add_gridspec(len(truth), 8)
    for row, ((i, j), (true_first, true_second)) in enumerate(truth.items()):
        pair = by_edge[i, j]
        estimated = torch.cat([pair.points_first.flatten(0, 1), pair.points_second.flatten(0, 1)])
        true = torch.cat([true_first.flatten(0, 1), true_second.flatten(0, 1)])
        scale = weighted_scale(estimated, true, torch.ones(len(true)))
        error = (scale * pair.points_second - true_second).norm(dim=-1)
        depths = _limits([true_first[..., 2], true_second[..., 2]])
        _draw_panels(
            figure,
            grid,
            row,
            (
                _Panel(views.images[i].permute(1, 2, 0), f"photo {views.names[i]}"),
                _Panel(views.images[j].permute(1, 2, 0), f"photo {views.names[j]}"),
                _Panel(scale * pair.points_first[..., 2], "depth of the first", "turbo", depths),
                _Panel(true_first[..., 2], "truth", "turbo", depths),
                _Panel(scale * pair.points_second[..., 2], "depth of the second, first's frame", "turbo", depths),
                _Panel(true_second[..., 2], "truth", "turbo", depths),
                _Panel(pair.confidence_second, "confidence of the second", "viridis"),
                _Panel(error, "its true error", "magma"),
            ),
        )
    figure.savefig(path, dpi=70)


@dataclass(frozen=True, eq=False)
class _Panel:
    """One image of a row: a photo, or a map with its colours and limits."""

    values: Tensor
    label: str
    colormap: str | None = None
    limits: tuple[float, float] | None = None


def _draw_panels(figure: "Figure", grid: "GridSpec", row: int, panels: Sequence[_Panel]) -> None:
    for column, panel in enumerate(panels):
        axes = figure.add_subplot(grid[row, column])
        axes.set_title(panel.label, fontsize=8)
        axes.set_axis_off()
        if panel.colormap is None:
            axes.imshow(panel.values.numpy().clip(0.0, 1.0))
        else:
            low, high = panel.limits or _limits([panel.values])
            image = axes.imshow(panel.values.numpy(), cmap=panel.colormap, vmin=low, vmax=high)
            figure.colorbar(image, ax=axes, shrink=0.8)


def _predictions_of(
    predictions: PairPredictions, edges: Sequence[tuple[int, int]]
) -> dict[tuple[int, int], PairPrediction]:
    by_edge = dict(zip(predictions.graph.edges, predictions.pairs, strict=True))
    missing = [edge for edge in edges if edge not in by_edge]
    if missing or not edges:
        raise InvalidDataError(f"no predictions for the edges {missing}", way_out="Draw edges of the graph")
    return {edge: by_edge[edge].to(torch.float32) for edge in edges}


def _draw_points(axes: "Axes3D", views: Views, edge: tuple[int, int], pair: PairPrediction) -> None:
    points = torch.cat([pair.points_first.flatten(0, 1), pair.points_second.flatten(0, 1)]).numpy()
    colors = torch.cat([views.images[view].flatten(1).T for view in edge]).numpy().clip(0.0, 1.0)
    # A few far-off points would shrink the room to a dot.
    low, high = np.percentile(points, [1, 99], axis=0)
    inside = np.flatnonzero(((points >= low) & (points <= high)).all(axis=1))
    shown = inside[:: max(1, len(inside) // _MAX_SCATTER_POINTS)]
    x, y, z = points[shown].T
    # Drawn with depth to the back and y, which points down in the camera, downwards.
    axes.scatter(x, z, -y, c=colors[shown], s=1, linewidths=0)
    axes.set_aspect("equal")
    axes.view_init(elev=25, azim=-75)
    axes.set_title("both in the first camera's frame", fontsize=8)
    axes.tick_params(labelsize=5)


def _limits(tensors: Sequence[torch.Tensor]) -> tuple[float, float]:
    """Range that leaves out the most extreme hundredth on either side."""
    low, high = np.percentile(np.concatenate([tensor.numpy().ravel() for tensor in tensors]), [1, 99])
    return float(low), float(high)
