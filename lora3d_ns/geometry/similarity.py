"""Similarities between point sets."""

import torch
from jaxtyping import Float
from torch import Tensor

from lora3d_ns.types import Sim3

_FLOOR = 1e-30


def weighted_similarity(
    source: Float[Tensor, "*batch points 3"],
    target: Float[Tensor, "*batch points 3"],
    weights: Float[Tensor, "*batch points"],
) -> Sim3:
    """The similarities that minimise `sum_p w_p |s R x_p + t - y_p|^2` (Umeyama, 1991), in closed form.

    Works in float64 and returns the source's type. Points on a line leave the turn about it undetermined, and a single
    point all of the rotation: one of the best similarities is returned all the same.

    Args:
        source: The points x.
        target: The points y.
        weights: Not negative; only their ratios count.
    """
    x, y = source.double(), target.double()
    share = weights.double()[..., None]
    share = share / share.sum(dim=-2, keepdim=True).clamp(min=_FLOOR)
    mean_x, mean_y = (share * x).sum(dim=-2), (share * y).sum(dim=-2)
    centred_x, centred_y = x - mean_x[..., None, :], y - mean_y[..., None, :]
    similarity = similarity_from_moments(
        mean_x, mean_y, (share * centred_y).mT @ centred_x, (share * centred_x.square()).sum(dim=(-2, -1))
    )
    dtype = source.dtype
    return Sim3(
        scale=similarity.scale.to(dtype),
        rotation=similarity.rotation.to(dtype),
        translation=similarity.translation.to(dtype),
    )


def similarity_from_moments(
    mean_x: Float[Tensor, "*batch 3"],
    mean_y: Float[Tensor, "*batch 3"],
    covariance: Float[Tensor, "*batch 3 3"],
    variance: Float[Tensor, "*batch"],
) -> Sim3:
    """The best similarities of weighted points x to y, from their moments (Umeyama, 1991).

    Args:
        mean_x, mean_y: Weighted means.
        covariance: Weighted mean of `(y - mean_y) (x - mean_x)^T`.
        variance: Weighted mean of `|x - mean_x|^2`.
    """
    U, singular, Vh = torch.linalg.svd(covariance)
    # A reflection would fit better than any rotation: turn the least certain axis.
    signs = torch.ones_like(singular)
    signs[..., 2] = torch.linalg.det(U @ Vh)
    rotation = U @ (signs[..., None] * Vh)
    scale = (singular * signs).sum(dim=-1) / variance.clamp(min=_FLOOR)
    translation = mean_y - scale[..., None] * (rotation @ mean_x[..., None])[..., 0]
    return Sim3(scale=scale, rotation=rotation, translation=translation)


def weighted_scale(
    source: Float[Tensor, "points 3"], target: Float[Tensor, "points 3"], weights: Float[Tensor, " points"]
) -> Float[Tensor, ""]:
    """The scale s that minimises `sum_p w_p |s x_p - y_p|` (Weiszfeld: re-weighted least squares, 10 times)."""
    x, y, w = source.double(), target.double(), weights.double()
    # |s x - y|^2 = s^2 x.x - 2 s x.y + y.y: no pass over the points is needed again. Float64 bears the cancellation.
    dot, square, target_square = (x * y).sum(dim=-1), x.square().sum(dim=-1), y.square().sum(dim=-1)
    scale = (w * dot).sum() / (w * square).sum().clamp(min=_FLOOR)
    for _ in range(10):
        distance_square = scale.square() * square - 2.0 * scale * dot + target_square
        robust = w / distance_square.clamp(min=1e-18).sqrt()
        scale = (robust * dot).sum() / (robust * square).sum().clamp(min=_FLOOR)
    return scale.to(source.dtype)
