"""LoRA3D's robust alignment (arXiv 2412.07746, Eq. 6 to 8), written down one edge, role and pixel at a time."""

from collections.abc import Sequence

import torch
from torch import Tensor


def naive_objective(
    *,
    T_world_camera: Tensor,
    focal: Tensor,
    principal_point: Tensor,
    depths: Sequence[Tensor],
    scale: Tensor,
    R: Tensor,
    t: Tensor,
    edges: Sequence[tuple[int, int]],
    points: Sequence[tuple[Tensor, Tensor]],
    confidence: Sequence[tuple[Tensor, Tensor]],
    mu: float | None,
) -> Tensor:
    """Sum over edges, their two maps and pixels of `C rho(|T_v D_p K_v^-1 (u, v, 1) - (scale_e R_e X_p + t_e)|)`.

    Works in float64, and gradients flow to all that is a tensor. Where a residual is exactly 0, its gradient is 0.

    Args:
        T_world_camera: Poses, (views, 4, 4).
        focal: Of square pixels, (views,), in the pixels of the maps.
        principal_point: (views, 2), x and y, likewise; the first pixel's centre is at (0.5, 0.5).
        depths: Depth along the z axis of each view, (H, W).
        scale, R, t: From each edge's frame to the world, (edges,), (edges, 3, 3) and (edges, 3).
        edges: (i, j): the first map is of view i's pixels, the second of view j's.
        points: Per edge both maps, (H, W, 3).
        confidence: Per edge C of both maps, (H, W).
        mu: `rho(e) = e` (Eq. 6) for None, else `mu e / (mu + e)`, which is Eq. 7 with the weights of Eq. 8 put in.
    """
    total = torch.zeros((), dtype=torch.float64)
    for e, edge in enumerate(edges):
        for role, view in enumerate(edge):
            height, width = depths[view].shape
            for row in range(height):
                for column in range(width):
                    u, v = column + 0.5, row + 0.5
                    depth = depths[view][row, column].double()
                    x = depth * (u - principal_point[view, 0].double()) / focal[view].double()
                    y = depth * (v - principal_point[view, 1].double()) / focal[view].double()
                    T = T_world_camera[view].double()
                    ours = T[:3, :3] @ torch.stack([x, y, depth]) + T[:3, 3]
                    X = points[e][role][row, column].double()
                    theirs = scale[e].double() * (R[e].double() @ X) + t[e].double()
                    error = torch.linalg.vector_norm(ours - theirs)
                    rho = error if mu is None else mu * error / (mu + error)
                    total = total + confidence[e][role][row, column].double() * rho
    return total


def naive_weight(C: Tensor, e: Tensor, mu: float) -> Tensor:
    """Eq. 8: the weight that minimises Eq. 7 for a residual of length e."""
    return C / (1 + e / mu) ** 2


def naive_eq7(C: Tensor, w: Tensor, e: Tensor, mu: float) -> Tensor:
    """One pixel's part of Eq. 7: weighted residual, and what it costs to depart from the confidence."""
    return w * e + mu * (torch.sqrt(w) - torch.sqrt(C)) ** 2
