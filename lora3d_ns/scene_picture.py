"""A scene to look at: its cloud from above and from the side, with the cameras in it."""

from pathlib import Path

import torch
from torch import Tensor

from lora3d_ns.types import Scene

_MAX_POINTS = 40_000
_KEPT = (0.02, 0.98)
"""Quantiles of the cloud that the picture shows: a few stray points would make a dot of the rest."""


def draw_scene(scene: Scene, path: Path, *, title: str) -> None:
    """Writes a PNG of the scene, upright as the first camera is: from above, from the side, and each point's weight.

    Args:
        scene: What to draw.
        path: Where to; its folder must exist.
        title: Heading of the picture.
    """
    from matplotlib.figure import Figure

    every = max(1, len(scene.points) // _MAX_POINTS)
    points, colors = scene.points[::every], scene.colors[::every].float() / 255.0
    weights = scene.point_weights[::every]
    # The frame of the first camera: x right, y down, z forward.
    to_first = torch.linalg.inv(scene.cameras.T_world_camera[0].double()).float()
    points = points @ to_first[:3, :3].T + to_first[:3, 3]
    T_first_camera = to_first @ scene.cameras.T_world_camera.float()
    centres, forward = T_first_camera[:, :3, 3], T_first_camera[:, :3, 2]
    shown = torch.cat([points, centres]) if len(points) else centres
    low, high = (torch.quantile(shown[:: max(1, len(shown) // 100_000)], share, dim=0) for share in _KEPT)
    low, high = torch.minimum(low, centres.amin(dim=0)), torch.maximum(high, centres.amax(dim=0))
    length = 0.12 * float((high - low).max())

    figure = Figure(figsize=(18, 6.4), layout="constrained")
    figure.suptitle(title)
    above, side, weight = figure.subplots(1, 3)
    for axes, (x, y), values, name in (
        (above, (0, 2), colors.numpy(), "from above (z forward)"),
        (side, (2, 1), colors.numpy(), "from the side (y down)"),
        (weight, (0, 2), weights.numpy(), "weight of each point, from above"),
    ):
        # What is nearer to the one who looks is drawn last.
        order = torch.argsort(points[:, 3 - x - y], descending=True) if len(points) else torch.arange(0)
        drawn = axes.scatter(points[order, x], points[order, y], c=values[order.numpy()], s=1.5, linewidths=0)
        _draw_cameras(axes, centres[:, [x, y]], forward[:, [x, y]], length)
        axes.set(title=name, aspect="equal", xlim=_margin(low[x], high[x], length), xticks=[], yticks=[])
        axes.set_ylim(*_margin(low[y], high[y], length))
        if y == 1:
            axes.invert_yaxis()
        if axes is weight and len(points):
            figure.colorbar(drawn, ax=axes, shrink=0.8)
    figure.savefig(path, dpi=90)


def _draw_cameras(axes, centres: Tensor, forward: Tensor, length: float) -> None:
    """Arrows where the cameras stand, the way they look; the first in red."""
    colors = ["tab:red"] + ["black"] * (len(centres) - 1)
    axes.quiver(
        centres[:, 0],
        centres[:, 1],
        length * forward[:, 0],
        length * forward[:, 1],
        angles="xy",
        scale_units="xy",
        scale=1.0,
        width=0.004,
        color=colors,
        zorder=3,
    )


def _margin(low: Tensor, high: Tensor, length: float) -> tuple[float, float]:
    return float(low) - length, float(high) + length
