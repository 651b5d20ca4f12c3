"""Small further terms of the objective: known poses that may be off, and springs on what evidence may leave loose."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float64
from torch import Tensor

from lora3d_ns.alignment.known import KnownPoses
from lora3d_ns.alignment.normal_equations import Block
from lora3d_ns.alignment.settings import AlignmentSettings
from lora3d_ns.alignment.solve import ExtraTerm
from lora3d_ns.alignment.state import PER_VIEW, POSE, SIMILARITY, AlignmentState, cross_matrix

_FOCAL_WEIGHT, _FOCAL_LOG = 0.02, 0.5


def focal_prior(focal_px: Float64[Tensor, "views 2"], free: Sequence[int], objective: float) -> ExtraTerm:
    """`0.02 L / N * sum_v (log(f_v / f0_v) / 0.5)^2 / 2`: holds a focal length that nothing else does.

    A focal length off by 65 % costs one percent of the objective, which any real evidence outweighs.

    Args:
        focal_px: f0, the focal lengths to begin with.
        free: The N views whose focal length is estimated.
        objective: L, the objective so far.
    """
    weight = _FOCAL_WEIGHT * objective / max(len(free), 1) / _FOCAL_LOG**2
    index = torch.tensor(list(free), dtype=torch.int64)

    def term(state: AlignmentState, with_block: bool) -> tuple[float, Block | None]:
        del with_block
        off = (state.focal_px[index, 0] / focal_px[index, 0]).log()
        block = Block(
            index=index * PER_VIEW + POSE,
            edges=index[:0],
            H=weight * torch.eye(len(index), dtype=torch.float64),
            g=weight * off,
        )
        return 0.5 * weight * float(off.square().sum()), block

    return term


def edge_scale_spring(edge_scale: Float64[Tensor, " edges"], edges: Sequence[int], objective: float) -> ExtraTerm:
    """`L / (2 E) * sum_e (log(sigma_e / sigma0_e))^2`, the mean over edges taken out.

    The gauge fixes the product of the sigma_e, and the robust loss of an edge is bounded: without a spring an edge that
    nothing confirms could grow for ever and let all others shrink. An edge that is confirmed is held by its points
    about `(depth / |e|)^2`, some thousand times, more stiffly.

    Args:
        edge_scale: sigma0 of all edges.
        edges: The E edges that take part.
        objective: L, the objective so far.
    """
    index = torch.tensor(list(edges), dtype=torch.int64)
    weight = objective / len(index)
    H = weight * (torch.eye(len(index), dtype=torch.float64) - 1.0 / len(index))

    def term(state: AlignmentState, with_block: bool) -> tuple[float, Block | None]:
        del with_block
        off = (state.world_from_edge.scale[index] / edge_scale[index]).log()
        off = off - off.mean()
        first = len(state.T_world_camera) * PER_VIEW
        block = Block(index=first + index * SIMILARITY + SIMILARITY - 1, edges=index[:0], H=H, g=weight * off)
        return 0.5 * weight * float(off.square().sum()), block

    return term


def pose_prior(poses: KnownPoses, settings: AlignmentSettings, *, unit: float, weight: float) -> ExtraTerm:
    """`weight / 2 * sum_v (angle_v / pose_prior_deg)^2 + (|centre_v - known_v| / (pose_prior_share unit))^2`.

    Args:
        poses: The known poses v.
        settings: How far they may be off.
        unit: Typical depth, world unit.
        weight: In the unit of the objective, which is a length of the gauge.
    """
    angle_rad = math.radians(settings.pose_prior_deg)
    length = settings.pose_prior_share * unit

    def term(state: AlignmentState, with_block: bool) -> tuple[float, Block | None]:
        del with_block
        value, views, H, g = 0.0, [], [], []
        centre = state.T_world_camera[:, :3, 3].mean(dim=0)
        for view, T in poses.T_world_camera.items():
            R, c = state.T_world_camera[view, :3, :3], state.T_world_camera[view, :3, 3]
            turn = R @ T[:3, :3].T
            skew = 0.5 * torch.stack([turn[2, 1] - turn[1, 2], turn[0, 2] - turn[2, 0], turn[1, 0] - turn[0, 1]])
            J = torch.zeros(6, PER_VIEW, dtype=torch.float64)
            J[:3, :3] = torch.eye(3).double() / angle_rad
            J[3:, :3] = -cross_matrix(c - centre) / length
            J[3:, 3:6] = torch.eye(3).double() / length
            r = torch.cat([skew / angle_rad, (c - T[:3, 3]) / length])
            value += 0.5 * weight * float(r @ r)
            views.append(torch.arange(view * PER_VIEW, (view + 1) * PER_VIEW))
            H.append(weight * J.T @ J)
            g.append(weight * J.T @ r)
        block = Block(
            index=torch.cat(views), edges=torch.zeros(0, dtype=torch.int64), H=torch.block_diag(*H), g=torch.cat(g)
        )
        return value, block

    return term
