"""Comparing photos along rays, written down one pixel at a time: matching costs and semi-global paths, in float64."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_SHARE = 0.9


def naive_costs(
    images: Sequence[Tensor],
    counts: Sequence[Tensor],
    K: Sequence[Tensor],
    T_world_camera: Sequence[Tensor],
    depth: Tensor,
    factors: Sequence[float],
    *,
    window_px: float,
    contrast: float,
    kept_share: float,
) -> Tensor:
    """Mean of 1 - NCC over the better photos, for every factor on the depth of photo 0; (factors, H, W).

    Args:
        images: The photo and the others, (3, H, W).
        counts: False where a pixel is masked.
        K, T_world_camera: Their cameras.
        depth: Of the first photo.
        factors: On its depth.
        window_px: Standard deviation of the Gaussian window, which ends at 2.5 times that, rounded up.
        contrast: Added to the standard deviations, as a variance.
        kept_share: Share of the photos that count.
    """
    height, width = depth.shape
    costs = torch.ones(len(factors), height, width, dtype=torch.float64)
    for k, factor in enumerate(factors):
        warped = [_warped(depth.double() * factor, K, T_world_camera, images, counts, u) for u in _others(K)]
        for row in range(height):
            for column in range(width):
                found = []
                for values, inside, masked in warped:
                    window = _window(row, column, height, width, window_px)
                    share = sum(g for (y, x), g in window.items() if inside[y][x])
                    if not inside[row][column] or share <= _SHARE or any(masked[y][x] for y, x in window):
                        continue
                    whole = all(bool(counts[0][y, x]) for y, x in window)
                    found.append(1.0 - (_correlation(images[0].double(), values, window, contrast) if whole else 0.0))
                if found:
                    kept = math.ceil(kept_share * len(found))
                    costs[k, row, column] = sum(sorted(found)[:kept]) / kept
    return costs


def naive_path_costs(costs: Tensor, step_cost: float, most_jump: float) -> Tensor:
    """`L(p, k) = c(p, k) + min_l [L(q, l) + min(step_cost |k - l|, most_jump)] - min_l L(q, l)` from the four sides."""
    hypotheses, height, width = costs.shape
    total = torch.zeros_like(costs)
    for step_row, step_column in ((1, 0), (-1, 0), (0, 1), (0, -1)):
        paths = torch.zeros_like(costs)
        rows = range(height) if step_row >= 0 else range(height - 1, -1, -1)
        columns = range(width) if step_column >= 0 else range(width - 1, -1, -1)
        for row in rows:
            for column in columns:
                y, x = row - step_row, column - step_column
                for k in range(hypotheses):
                    best = 0.0
                    if 0 <= y < height and 0 <= x < width:
                        before = [float(paths[l_, y, x]) for l_ in range(hypotheses)]
                        reached = [before[l_] + min(step_cost * abs(k - l_), most_jump) for l_ in range(hypotheses)]
                        best = min(reached) - min(before)
                    paths[k, row, column] = costs[k, row, column] + best
        total += paths
    return total


def _others(K: Sequence[Tensor]) -> range:
    return range(1, len(K))


def _window(row: int, column: int, height: int, width: int, sigma_px: float) -> dict[tuple[int, int], float]:
    radius = math.ceil(2.5 * sigma_px)
    weights = {
        (y, x): math.exp(-((y - row) ** 2 + (x - column) ** 2) / (2.0 * sigma_px**2))
        for y in range(max(0, row - radius), min(height, row + radius + 1))
        for x in range(max(0, column - radius), min(width, column + radius + 1))
    }
    total = sum(weights.values())
    return {place: weight / total for place, weight in weights.items()}


def _correlation(image: Tensor, other: Tensor, window: dict[tuple[int, int], float], contrast: float) -> float:
    covariance = variance = other_variance = 0.0
    for channel in range(3):
        a = {place: float(image[channel][place]) for place in window}
        b = {place: float(other[channel][place]) for place in window}
        mean_a = sum(window[place] * a[place] for place in window)
        mean_b = sum(window[place] * b[place] for place in window)
        covariance += sum(window[place] * (a[place] - mean_a) * (b[place] - mean_b) for place in window)
        variance += sum(window[place] * (a[place] - mean_a) ** 2 for place in window)
        other_variance += sum(window[place] * (b[place] - mean_b) ** 2 for place in window)
    return covariance / math.sqrt((variance + contrast**2) * (other_variance + contrast**2))


def _warped(
    depth: Tensor,
    K: Sequence[Tensor],
    T_world_camera: Sequence[Tensor],
    images: Sequence[Tensor],
    counts: Sequence[Tensor],
    other: int,
) -> tuple[Tensor, list[list[bool]], list[list[bool]]]:
    """The other photo's colours at each pixel of the first, whether it shows it, and whether a mask hides it there."""
    height, width = depth.shape
    other_height, other_width = images[other].shape[1:]
    values = torch.zeros(3, height, width, dtype=torch.float64)
    inside = [[False] * width for _ in range(height)]
    masked = [[False] * width for _ in range(height)]
    T = torch.linalg.inv(T_world_camera[other].double()) @ T_world_camera[0].double()
    for row in range(height):
        for column in range(width):
            pixel = torch.tensor([column + 0.5, row + 0.5, 1.0], dtype=torch.float64)
            point = T[:3, :3] @ (depth[row, column] * torch.linalg.solve(K[0].double(), pixel)) + T[:3, 3]
            x, y, z = (K[other].double() @ point).tolist()
            u, v = x / max(z, 1e-6), y / max(z, 1e-6)
            layers = torch.cat([images[other], counts[other][None].to(images[other].dtype)]).double()
            sampled = _bilinear(layers, u, v)
            values[:, row, column] = sampled[:3]
            inside[row][column] = z > 1e-6 and 0 < u < other_width and 0 < v < other_height
            masked[row][column] = float(sampled[3]) < 0.999
    return values, inside, masked


def _bilinear(layers: Tensor, u: float, v: float) -> Tensor:
    """The value at (u, v), pixel centres at halves; beyond the border that of the border."""
    height, width = layers.shape[1:]
    u, v = min(max(u, 0.5), width - 0.5) - 0.5, min(max(v, 0.5), height - 0.5) - 0.5
    left, top = min(int(u), max(0, width - 2)), min(int(v), max(0, height - 2))
    right, bottom = min(left + 1, width - 1), min(top + 1, height - 1)
    a, b = u - left, v - top
    return (
        (1 - a) * (1 - b) * layers[:, top, left]
        + a * (1 - b) * layers[:, top, right]
        + (1 - a) * b * layers[:, bottom, left]
        + a * b * layers[:, bottom, right]
    )
