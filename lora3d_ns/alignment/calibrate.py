"""Confidence becomes a weight: what the network said, by how well the finished geometry bears it out.

LoRA3D's Eq. 8, `w = C / (1 + |e| / mu)^2`, at the solution. A point of one pair whose place no other pair confirms loses
its weight however sure the network was; a point that all agree on keeps the confidence it had.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor

from lora3d_ns.alignment.normal_equations import pass_over_view
from lora3d_ns.alignment.objective import calibrated_weight
from lora3d_ns.alignment.observations import ObservationGrid
from lora3d_ns.alignment.state import AlignmentState
from lora3d_ns.types import PairPredictions

_SMOOTHING_PX = 2
"""Moving things are found on averages over windows of 2 * 2 + 1 pixels: single pixels are noise."""


@dataclass(frozen=True, eq=False, kw_only=True)
class CalibratedMaps:
    """Full-resolution maps at a solution.

    Attributes:
        depths: Depth along z of every view, world unit.
        weights: Per edge the weights of its first and its second view's pixels.
        view_weights: Mean weight of each pixel over the edges that hold its view.
        edge_residuals: Per edge the median |e| over points that count, world unit; NaN where none does.
        moving: Pixels that no static geometry explains.
    """

    depths: tuple[Float32[Tensor, "_ _"], ...]
    weights: tuple[tuple[Float[Tensor, "_ _"], Float[Tensor, "_ _"]], ...]
    view_weights: tuple[Float32[Tensor, "_ _"], ...]
    edge_residuals: Float[Tensor, " edges"]
    moving: tuple[Bool[Tensor, "_ _"], ...]


def calibrated_maps(
    counted: ObservationGrid,
    everything: ObservationGrid,
    predictions: PairPredictions,
    state: AlignmentState,
    distances: Sequence[Float32[Tensor, " pixels"]],
    *,
    loss_mu: float | None,
    weight_mu: float,
    smoothing: float,
) -> CalibratedMaps:
    """Depths, weights, residuals and moving pixels at a solution.

    Pixels below the cut-off had no say in the solution; their weight is given all the same, since a map with holes
    ranks worse than one without, and no cut-off for labels or splats is below it.

    Args:
        counted: All pixels, with the confidences that had a say.
        everything: All pixels, with confidences as the network said them, masks and dropped edges taken out.
        predictions: What they come from; its storage type is that of the weights.
        state: The solution.
        distances: Along the rays, at the solution.
        loss_mu: Of the objective that the depths minimise, world unit; None for Eq. 6.
        weight_mu: Of Eq. 8, world unit.
        smoothing: Of the residuals, world unit.
    """
    edges = predictions.graph.edges
    depths, view_weights, moving = [], [], []
    weights: list[list[Tensor | None]] = [[None, None] for _ in edges]
    residuals: list[list[Tensor]] = [[] for _ in edges]
    for view in range(len(counted)):
        said = everything.block(view)
        result = pass_over_view(
            counted.block(view),
            state,
            distances[view],
            mu=loss_mu,
            smoothing=smoothing,
            inner_iterations=10,
            keep_residual=True,
        )
        assert result.residual is not None
        height, width = len(counted.rows(view)), len(counted.columns(view))
        K_inverse = torch.linalg.inv(state.K(view)).float()
        rays = K_inverse @ torch.cat([said.pixels.cpu(), torch.ones(1, height * width)])
        depths.append((result.distances.cpu() / rays.norm(dim=0)).view(height, width))
        w = calibrated_weight(said.confidence, result.residual, weight_mu)
        heard = counted.block(view).confidence > 0
        for row, (edge, role) in enumerate(counted.roles_of(view)):
            pair = predictions.pairs[edge]
            weights[edge][role] = w[row].view(height, width).to("cpu", pair.confidence_first.dtype)
            residuals[edge].append(result.residual[row][heard[row]].cpu())
        used = (said.confidence > 0).any(dim=1).sum().clamp(min=1)
        view_weights.append((w.sum(dim=0) / used).view(height, width).cpu())
        moving.append(_moving(result.residual, said.confidence, height, width, weight_mu))
    medians = [torch.cat(parts).median() if sum(map(len, parts)) else torch.tensor(torch.nan) for parts in residuals]
    return CalibratedMaps(
        depths=tuple(depths),
        weights=tuple((_present(first), _present(second)) for first, second in weights),
        view_weights=tuple(view_weights),
        edge_residuals=torch.stack(medians),
        moving=tuple(moving),
    )


def _present(weight: Tensor | None) -> Tensor:
    assert weight is not None
    return weight


def _moving(residual: Tensor, confidence: Tensor, height: int, width: int, mu: float) -> Tensor:
    """Pixels where confident observations mostly stay unexplained, judged on averages over a small window.

    The share of confidence that the weights leave, `sum w / sum C`, is near one where all agree. Where it is both below
    a quarter (residuals beyond mu) and less than half the view's median, the static scene does not explain the pixel.
    """
    total = confidence.sum(dim=0).view(1, 1, height, width)
    left = calibrated_weight(confidence, residual, mu).sum(dim=0).view(1, 1, height, width)
    window = 2 * _SMOOTHING_PX + 1
    total, left = (
        torch.nn.functional.avg_pool2d(values, window, stride=1, padding=_SMOOTHING_PX, count_include_pad=False)
        for values in (total, left)
    )
    share = torch.where(total > 0, left / total.clamp(min=1e-9), 1.0)[0, 0]
    return ((share < 0.25) & (share < 0.5 * share.median())).cpu()
