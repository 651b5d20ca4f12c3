"""The pinhole camera: between points in its frame, depth, and pixels."""

import torch
from jaxtyping import Float
from torch import Tensor

from lora3d_ns.conventions import pixel_centres

_NEAREST_DEPTH = 1e-6
_STEEPEST_SLOPE = 5.67
"""Tangent of 80 degrees: no photo without strong distortion sees further to the side."""


def project(points_camera: Float[Tensor, "*batch 3"], K: Float[Tensor, "3 3"]) -> Float[Tensor, "*batch 2"]:
    """Pixels (x, y) at which points in the camera's frame appear: `K X / Z`. Points behind give pixels too."""
    homogeneous = points_camera @ K.T
    return homogeneous[..., :2] / homogeneous[..., 2:]


def points_from_depth(depth: Float[Tensor, "height width"], K: Float[Tensor, "3 3"]) -> Float[Tensor, "height width 3"]:
    """Points in the camera's frame: `D K^-1 (u, v, 1)` at each pixel's centre, D being depth along the z axis."""
    pixels = pixel_centres(depth.shape[0], depth.shape[1], dtype=depth.dtype).to(depth.device)
    rays = torch.cat([pixels, torch.ones_like(pixels[..., :1])], dim=-1) @ torch.linalg.inv(K).T
    return depth[..., None] * rays


def focal_from_points(
    points_camera: Float[Tensor, "height width 3"],
    weights: Float[Tensor, "height width"],
    *,
    iterations: int = 20,
) -> Float[Tensor, ""]:
    """Focal length in pixels of a point map in its own camera, for square pixels and a centred principal point.

    `f* = argmin_f sum_p w_p |(u', v')_p - f (X, Y)_p / Z_p|` with pixels counted from the image's centre (DUSt3R, arXiv
    2312.14132, Sec. 3.3), by Weiszfeld's iteration: least squares, re-weighted by the inverse residual, from the median
    of the single pixels' estimates. Points behind the camera, or more than 80 degrees from its axis, do not count: one
    of them would outweigh all others.

    Returns:
        The focal length; NaN where no point lies before the camera.
    """
    height, width = weights.shape
    centre = points_camera.new_tensor([width / 2, height / 2])
    pixels = pixel_centres(height, width, dtype=points_camera.dtype).to(points_camera.device) - centre
    return focal_from_samples(
        points_camera.reshape(-1, 3), pixels.reshape(-1, 2), weights.flatten(), iterations=iterations
    )


def focal_from_samples(
    points_camera: Float[Tensor, "*batch pixels 3"],
    pixels_from_centre: Float[Tensor, "pixels 2"],
    weights: Float[Tensor, "*batch pixels"],
    *,
    iterations: int = 20,
) -> Float[Tensor, "*batch"]:
    """`focal_from_points` of some pixels of one photo, for any number of point maps of it at once.

    Args:
        points_camera: The points of these pixels.
        pixels_from_centre: The pixels, counted from the principal point.
        weights: Their weights.
        iterations: Re-weighted steps.
    """
    depth = points_camera[..., 2]
    slopes = points_camera[..., :2] / depth.clamp(min=_NEAREST_DEPTH)[..., None]
    visible = (depth > _NEAREST_DEPTH) & (slopes.norm(dim=-1) < _STEEPEST_SLOPE)
    w = torch.where(visible, weights, 0.0)
    dot, square = (pixels_from_centre * slopes).sum(dim=-1), slopes.square().sum(dim=-1)
    single = pixels_from_centre.norm(dim=-1) / slopes.norm(dim=-1).clamp(min=1e-9)
    focal = torch.where(visible & (weights > 0), single, torch.nan).nanmedian(dim=-1).values
    for _ in range(iterations):
        distance = (pixels_from_centre - focal[..., None, None] * slopes).norm(dim=-1)
        robust = w / distance.clamp(min=1e-6)
        focal = (robust * dot).sum(dim=-1) / (robust * square).sum(dim=-1)
    return focal
