"""Confidence becomes a weight: what the network said, by how well the finished geometry bears it out.

LoRA3D's Eq. 8, `w = C / (1 + |e| / mu)^2`, at the solution. While the scene is being solved, e is taken after the edge
was laid over it by a similarity of its own, since nothing yet says where its first camera really stands. The finished
scene says so, and a pair is only right if it is right *there*: for the weights that are handed on, e is the distance
between the pair's points and the scene's in the first camera's own frame, the pair's free scale fitted,

    e_p = | s X_p - T_i^-1 x_p |,

which is how far the network is from the label that Eq. 9 will give it. A whole second map in the wrong place has no
large e by its own similarity, and a very large one here. On validation rooms these weights order the true errors better
than the confidences do in every domain, and those with the edge's own similarity do not (BENCHMARKS.md).

The weight of a *view's* pixel answers another question, how far the scene itself can be believed there. For it every
pair is laid over the scene by its own similarity again and the weights are averaged: pairs that agree on a shape
support it even where each has put it elsewhere.
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
from lora3d_ns.geometry.camera import points_from_depth
from lora3d_ns.geometry.similarity import weighted_scale
from lora3d_ns.types import PairPrediction, PairPredictions

_SCALE_POINTS = 4_000
_SMOOTHING_PX = 2
"""Moving things are found on averages over windows of 2 * 2 + 1 pixels: single pixels are noise."""


@dataclass(frozen=True, eq=False, kw_only=True)
class CalibratedMaps:
    """Full-resolution maps at a solution.

    Attributes:
        depths: Depth along z of every view, world unit.
        weights: Per edge the weights of its first and its second view's pixels.
        view_weights: Per view the mean of Eq. 8 over the edges that hold it, each by its own similarity.
        edge_residuals: Per edge the median e over points that count, of the worse of its two maps, world unit; NaN
            where none counts.
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
    distances: Sequence[Float32[Tensor, " _"]],
    *,
    loss_mu: float | None,
    weight_mu: float,
    smoothing: float,
    cutoff: float,
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
        cutoff: Confidence above which a point counts for `edge_residuals`.
    """
    depths, moving, view_weights = [], [], []
    for view in range(len(counted)):
        observations, said = counted.block(view), everything.confidence(view)
        result = pass_over_view(
            observations,
            state,
            distances[view],
            mu=loss_mu,
            smoothing=smoothing,
            keep_residual=True,
        )
        assert result.residual is not None
        height, width = len(counted.rows(view)), len(counted.columns(view))
        K_inverse = torch.linalg.inv(state.K(view)).float()
        rays = K_inverse @ torch.cat([observations.pixels.cpu(), torch.ones(1, height * width)])
        depths.append((result.distances.cpu() / rays.norm(dim=0)).view(height, width))
        moving.append(_moving(result.residual, said, height, width, weight_mu))
        taking_part = (said > 0).any(dim=1).sum().clamp(min=1)
        agreed = calibrated_weight(said, result.residual, weight_mu).sum(dim=0) / taking_part
        view_weights.append(agreed.view(height, width).cpu())

    own = [points_from_depth(depth, state.K(view).float()) for view, depth in enumerate(depths)]
    T_camera_world = torch.linalg.inv(state.T_world_camera)
    weights: list[tuple[Tensor, Tensor]] = []
    medians: list[Tensor] = []
    for edge, pair in predictions:
        maps = []
        i, j = edge
        T_i_j = (T_camera_world[i] @ state.T_world_camera[j]).float()
        lengths = pair_residuals(pair, own[i], _moved(own[j], T_i_j))
        heard = []
        for view, length, confidence in zip(
            edge, lengths, (pair.confidence_first, pair.confidence_second), strict=True
        ):
            mask = everything.mask(view)
            C = confidence if mask is None else confidence * mask
            maps.append(calibrated_weight(C, length, weight_mu))
            believed = length[(cutoff <= C) & (C > 0)]
            heard.append(believed.median() if len(believed) else torch.tensor(torch.nan))
        stored = predictions.pairs[len(weights)].confidence_first.dtype
        weights.append((maps[0].to(stored), maps[1].to(stored)))
        medians.append(torch.fmax(*heard))
    return CalibratedMaps(
        depths=tuple(depths),
        weights=tuple(weights),
        view_weights=tuple(view_weights),
        edge_residuals=torch.stack(medians),
        moving=tuple(moving),
    )


def pair_residuals(
    pair: PairPrediction,
    first: Float[Tensor, "height_first width_first 3"],
    second: Float[Tensor, "height_second width_second 3"],
) -> tuple[Float[Tensor, "height_first width_first"], Float[Tensor, "height_second width_second"]]:
    """`|s X - x|` of both maps, s being the one scale that fits the pair to the scene best (confidence-weighted, L1).

    Args:
        pair: The prediction.
        first, second: The scene's points of the same pixels, in the first camera's frame.
    """
    predicted = torch.cat([pair.points_first.flatten(0, 1), pair.points_second.flatten(0, 1)])
    found = torch.cat([first.flatten(0, 1), second.flatten(0, 1)])
    confidence = torch.cat([pair.confidence_first.flatten(), pair.confidence_second.flatten()])
    every = max(1, len(found) // _SCALE_POINTS)
    scale = weighted_scale(predicted[::every], found[::every], confidence[::every] + 1e-6)
    distance = (scale * predicted - found).norm(dim=1)
    count = pair.confidence_first.numel()
    return distance[:count].view_as(pair.confidence_first), distance[count:].view_as(pair.confidence_second)


def _moved(points: Tensor, T: Tensor) -> Tensor:
    return points @ T[:3, :3].T + T[:3, 3]


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
