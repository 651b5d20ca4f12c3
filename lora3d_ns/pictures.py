"""Pictures to look at where numbers would be read past."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from lora3d_ns.errors import InvalidDataError
from lora3d_ns.types import PairPrediction, PairPredictions, Views

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

    by_edge = dict(zip(predictions.graph.edges, predictions.pairs, strict=True))
    missing = [edge for edge in edges if edge not in by_edge]
    if missing or not edges:
        raise InvalidDataError(f"no predictions for the edges {missing}", way_out="Draw edges of the graph")

    figure = Figure(figsize=(21, 3.1 * len(edges) + 0.6), layout="constrained")
    figure.suptitle(title)
    grid = figure.add_gridspec(len(edges), 7, width_ratios=[1, 1, 1, 1, 1, 1, 1.4])
    for row, (i, j) in enumerate(edges):
        pair = by_edge[i, j].to(torch.float32)
        depth_limits = _limits([pair.points_first[..., 2], pair.points_second[..., 2]])
        confidence_limits = _limits([pair.confidence_first, pair.confidence_second])
        panels = (
            (views.images[i].permute(1, 2, 0), f"photo {views.names[i]}", None),
            (views.images[j].permute(1, 2, 0), f"photo {views.names[j]}", None),
            (pair.points_first[..., 2], "depth of the first", ("turbo", depth_limits)),
            (pair.points_second[..., 2], "depth of the second, first's frame", ("turbo", depth_limits)),
            (pair.confidence_first, "confidence of the first", ("viridis", confidence_limits)),
            (pair.confidence_second, "confidence of the second", ("viridis", confidence_limits)),
        )
        for column, (values, label, coloring) in enumerate(panels):
            axes = figure.add_subplot(grid[row, column])
            axes.set_title(label, fontsize=8)
            axes.set_axis_off()
            if coloring is None:
                axes.imshow(values.numpy().clip(0.0, 1.0))
            else:
                colormap, (low, high) = coloring
                image = axes.imshow(values.numpy(), cmap=colormap, vmin=low, vmax=high)
                figure.colorbar(image, ax=axes, shrink=0.8)
        _draw_points(figure.add_subplot(grid[row, 6], projection="3d"), views, (i, j), pair)
    figure.savefig(path, dpi=80)


def _draw_points(axes, views: Views, edge: tuple[int, int], pair: PairPrediction) -> None:
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
