"""Pictures of what a network says of validation pairs, beside the truth."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from lora3d_ns.errors import InvalidDataError
from lora3d_ns.network.base import PairNetwork
from lora3d_ns.rooms.validation import ValidationPairs, predict_pairs, scaled_point_distances


def draw_validation_pairs(network: PairNetwork, pairs: ValidationPairs, rows: Sequence[int], path: Path) -> None:
    """Writes a PNG with two rows per pair, one per photo, all in the first camera's frame.

    From left to right: the photo; the true and the predicted distance from the first camera, in metres, the prediction
    after its one scale; the error over the mean depth; the log-confidence; and, seen from above (x to the right, z
    upwards), the true points in grey under the predicted ones in the photo's colours.

    Args:
        network: In evaluation mode.
        pairs: On the host.
        rows: Which pairs to draw.
        path: The picture; its folder must exist.

    Raises:
        InvalidDataError: There is no such pair, or rows is empty.
    """
    from matplotlib.figure import Figure

    if not rows or not all(0 <= row < len(pairs) for row in rows):
        raise InvalidDataError(
            f"pairs {list(rows)} are not among the {len(pairs)}", way_out=f"Choose among 0 to {len(pairs) - 1}"
        )
    chosen = pairs.select(torch.tensor(rows))
    output = predict_pairs(network, chosen).forward
    errors = scaled_point_distances(output.points_first, output.points_second, chosen)
    scales = _scales(output.points_first, output.points_second, chosen)
    figure = Figure(figsize=(19, 5.6 * len(rows)), layout="constrained")
    axes = figure.subplots(2 * len(rows), 6, squeeze=False)
    for k, row in enumerate(rows):
        for role, (image, true, predicted, error, confidence) in enumerate(
            (
                (
                    chosen.images_first[k],
                    chosen.points_first[k],
                    output.points_first[k],
                    errors[0][k],
                    output.confidence_first[k],
                ),
                (
                    chosen.images_second[k],
                    chosen.points_second[k],
                    output.points_second[k],
                    errors[1][k],
                    output.confidence_second[k],
                ),
            )
        ):
            panels = axes[2 * k + role]
            scaled = predicted * scales[k]
            distances = true.norm(dim=-1), scaled.norm(dim=-1)
            nearest, farthest = float(distances[0].min()), float(distances[0].max())
            panels[0].imshow(image.permute(1, 2, 0).numpy())
            panels[0].set_title(f"pair {row}, {('first', 'second')[role]} photo")
            for panel, values, title, colormap, limits in (
                (panels[1], distances[0], "true distance, m", "turbo", (nearest, farthest)),
                (panels[2], distances[1], "predicted distance, m", "turbo", (nearest, farthest)),
                (panels[3], error / chosen.mean_depth_m[k], "error / mean depth", "magma", (0.0, 0.4)),
                (panels[4], confidence, "log-confidence", "viridis", (None, None)),
            ):
                drawn = panel.imshow(values.numpy(), cmap=colormap, vmin=limits[0], vmax=limits[1])
                figure.colorbar(drawn, ax=panel, shrink=0.8)
                panel.set_title(title)
            for panel in panels[:5]:
                panel.set_axis_off()
            flat, colors = true.reshape(-1, 3).numpy(), image.permute(1, 2, 0).reshape(-1, 3).numpy()
            above = scaled.reshape(-1, 3).numpy()
            panels[5].scatter(flat[:, 0], flat[:, 2], c="0.8", s=2, linewidths=0)
            panels[5].scatter(above[:, 0], above[:, 2], c=np.clip(colors, 0.0, 1.0), s=2, linewidths=0)
            panels[5].set_aspect("equal")
            panels[5].set_title("from above: true (grey), predicted")
    figure.savefig(path, dpi=60)


def _scales(points_first: torch.Tensor, points_second: torch.Tensor, pairs: ValidationPairs) -> torch.Tensor:
    """The scale of each pair by medians: robust, and good enough to look at."""
    predicted = torch.cat([points_first.flatten(1, 2), points_second.flatten(1, 2)], dim=1).norm(dim=-1)
    true = torch.cat([pairs.points_first.flatten(1, 2), pairs.points_second.flatten(1, 2)], dim=1).norm(dim=-1)
    return (true / predicted.clamp_min(1e-6)).median(dim=1).values
