"""LoRA3D's pseudo labels (arXiv 2412.07746, Eq. 9), written down one pixel at a time."""

from collections.abc import Sequence

import torch
from torch import Tensor


def naive_label_points(T_world_camera: Tensor, K: Tensor, depth: Tensor, *, reference: int, view: int) -> Tensor:
    """`T_i^-1 T_v D_p K_v^-1 (u, v, 1)_p` for each pixel of view v, i being the reference view; in float64.

    Args:
        T_world_camera: Poses, (views, 4, 4).
        K: Intrinsics in network pixels, (views, 3, 3); the first pixel's centre is at (0.5, 0.5).
        depth: Of view v along its z axis, (H, W).
        reference: i.
        view: v.
    """
    T, K = T_world_camera.double(), K.double()
    height, width = depth.shape
    points = torch.zeros(height, width, 3, dtype=torch.float64)
    for row in range(height):
        for column in range(width):
            pixel = torch.tensor([column + 0.5, row + 0.5, 1.0], dtype=torch.float64)
            in_camera = float(depth[row, column]) * torch.linalg.solve(K[view], pixel)
            in_world = T[view, :3, :3] @ in_camera + T[view, :3, 3]
            points[row, column] = torch.linalg.solve(T[reference], torch.cat([in_world, torch.ones(1).double()]))[:3]
    return points


def naive_valid(weight: Tensor, *, cutoff: float, mask: Tensor | None, moving: Tensor) -> list[list[bool]]:
    """Which pixels have a label: `w_p > cutoff`, not masked and not moving."""
    height, width = weight.shape
    return [
        [
            float(weight[row, column]) > cutoff
            and (mask is None or bool(mask[row, column]))
            and not bool(moving[row, column])
            for column in range(width)
        ]
        for row in range(height)
    ]


def naive_cutoff(weights: Sequence[float], *, cutoff: float, aimed_coverage: float, lowest: float) -> float:
    """The highest cut-off, not above `cutoff` and not below `lowest`, that leaves the share aimed for.

    Returns:
        `cutoff`, `lowest`, or the least of the weights that are to be in: whatever lies just below it will do.
    """
    if sum(weight > cutoff for weight in weights) >= aimed_coverage * len(weights):
        return cutoff
    for candidate in sorted(weights, reverse=True):
        if candidate <= lowest:
            return lowest
        if sum(weight >= candidate for weight in weights) >= aimed_coverage * len(weights) - 1e-6:
            return min(cutoff, candidate)
    return lowest
