"""Depth from the pixels themselves: with the cameras known, photos are compared along every ray.

An alignment of point maps gives each photo the depth that its pairs agree on, and pairs of one network agree on that
network's mistakes. Cameras that rest on 2D matches are far more accurate than those depths, so that the photos can
correct them: a plane sweep around the depth that is there, with a smooth solution by semi-global matching
(Hirschmueller, PAMI 2008). In log depth, with hypotheses s around the depth D that the alignment found,

    minimise  sum_p [ c_p(s_p) + prior s_p^2 ] + sum_{p, q neighbours} min(smoothness |s_p - s_q|, most_jump),
    c_p(s) = mean over the better photos u of 1 - NCC(photo v around p, photo u warped by D exp(s)).

NCC is the normalised cross-correlation over Gaussian windows, damped where there is no texture. So the network keeps
its word where the photos say nothing, and detail of its depth survives: only a smooth factor is estimated.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import networkx as nx
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float32
from torch import Tensor

from lora3d_ns.alignment.matches import Matches
from lora3d_ns.errors import InvalidDataError, SettingsError
from lora3d_ns.geometry.camera import points_from_depth
from lora3d_ns.types import AlignedScene, Views

_COST_WITHOUT_EVIDENCE = 1.0
"""Of a pixel that no photo shows: what an uncorrelated one costs."""
_COST_OF_ABSENCE = 4.0
"""Sorts photos that do not show a pixel behind all that do; any cost is at most 2."""
_SURE_SHARE = 0.9
"""A window counts if so much of it lies within the other photo."""
_LEAST_SCORE = 1e-4
"""Of a neighbour: less is rounding."""
_UNMASKED = 0.999
"""Mask of a pixel between others, all of which count."""
_WIDE_ANGLE_DEG = 5.0
"""Parallax from which on a photo is as good a neighbour as any."""


@dataclass(frozen=True, kw_only=True)
class StereoSettings:
    """How depths are corrected. The numbers were chosen on validation rooms (BENCHMARKS.md).

    Attributes:
        use: "auto" corrects every photo whose camera rests on 2D matches; "off" none.
        neighbours: Other photos that one is compared with, at most.
        kept_share: Of those that show a point, this share, the better ones, count: the others may be occluded.
        span: Largest change, in log depth, either way.
        hypotheses: Depths to try, evenly spread over the span.
        windows_px: Standard deviations of the windows that are compared; costs are averaged over them.
        contrast: Standard deviation of sRGB (0 to 1) below which a window says little.
        prior: Cost of a change, per squared log depth.
        smoothness: Cost of a difference between neighbouring pixels, per unit of log depth.
        most_jump: What a difference costs at most: depth may jump.
        longest_side_px: Larger photos are compared at this size. The correction is smooth, and detail is the network's.
    """

    use: Literal["auto", "off"] = "auto"
    neighbours: int = 9
    kept_share: float = 0.8
    span: float = 0.5
    hypotheses: int = 25
    windows_px: tuple[float, ...] = (0.75, 2.0)
    contrast: float = 0.014
    prior: float = 1.2
    smoothness: float = 3.6
    most_jump: float = 1.0
    longest_side_px: int = 256

    def __post_init__(self) -> None:
        if self.neighbours < 1 or self.hypotheses < 3 or self.longest_side_px < 16:
            raise SettingsError(
                f"neighbours {self.neighbours}, hypotheses {self.hypotheses}, longest_side_px {self.longest_side_px}",
                way_out="Use one neighbour, 3 hypotheses and 16 pixels, or more",
            )
        if not (0 < self.kept_share <= 1 and 0 < self.span < math.inf and self.contrast > 0):
            raise SettingsError(
                f"kept_share {self.kept_share}, span {self.span}, contrast {self.contrast}",
                way_out="Use a share of 0 to 1, and positive numbers",
            )
        if not self.windows_px or min(self.windows_px) <= 0:
            raise SettingsError(f"windows_px {self.windows_px}", way_out="Name one positive window or more")
        if min(self.prior, self.smoothness, self.most_jump) < 0:
            raise SettingsError(
                f"prior {self.prior}, smoothness {self.smoothness}, most_jump {self.most_jump}",
                way_out="Use numbers that are not negative",
            )


@dataclass(frozen=True, eq=False, kw_only=True)
class PosedImage:
    """A photo with its camera at the size at which photos are compared.

    Attributes:
        image: sRGB in 0 to 1.
        counts: False where it is masked.
        depth: Along the z axis, world unit.
        K: Intrinsics in pixels of `image`.
        T_world_camera: Pose.
    """

    image: Float32[Tensor, "3 height width"]
    counts: Bool[Tensor, "height width"]
    depth: Float32[Tensor, "height width"]
    K: Float32[Tensor, "3 3"]
    T_world_camera: Float32[Tensor, "4 4"]


def with_stereo_depths(
    views: Views,
    aligned: AlignedScene,
    matches: Matches | None,
    settings: StereoSettings | None = None,
    *,
    device: torch.device | None = None,
) -> AlignedScene:
    """The scene with depths corrected by comparing photos, and `refined_views` naming those that were.

    A photo is compared with those that a chain of verified matches links it to. One without matches is left as it is:
    its camera is the network's word, and a wrong camera makes the photos agree on wrong depths.

    Args:
        views: The photos.
        aligned: The scene of these photos.
        matches: 2D correspondences that the alignment rested on.
        settings: How.
        device: Where to compute; by default the CPU.

    Raises:
        InvalidDataError: The scene is of other photos.
    """
    settings = settings or StereoSettings()
    if aligned.graph.view_count != len(views):
        raise InvalidDataError(
            f"a scene of {aligned.graph.view_count} views for {len(views)} photos", way_out="Align these photos"
        )
    if settings.use == "off" or matches is None or aligned.diagnosis.match_count == 0:
        return aligned
    posed = [_posed(views, aligned, view, settings, device or torch.device("cpu")) for view in range(len(views))]
    depths, refined = list(aligned.depths), []
    for together in nx.connected_components(nx.Graph([pair for pair, found in matches.pairs.items() if len(found)])):
        for view in sorted(together):
            candidates = [posed[other] for other in sorted(together - {view})]
            others = best_neighbours(posed[view], candidates, settings.neighbours)
            if not others:
                continue
            change = log_depth_change(posed[view], others, settings)
            shape = (depths[view].shape[0], depths[view].shape[1])
            resized = F.interpolate(change[None, None], size=shape, mode="bilinear", align_corners=False)[0, 0]
            depths[view] = depths[view] * resized.exp().to(depths[view].device)
            refined.append(view)
    refined.sort()
    return dataclasses.replace(aligned, depths=tuple(depths), refined_views=tuple(refined))


def _posed(
    views: Views, aligned: AlignedScene, view: int, settings: StereoSettings, device: torch.device
) -> PosedImage:
    image, depth, mask = views.images[view], aligned.depths[view], views.masks[view]
    # What the alignment takes for moving is as often what the network has got wrong: that is to be mended here.
    counts = torch.ones_like(depth, dtype=torch.bool) if mask is None else mask
    K = views.source_from_network[view].K_network_from_source(aligned.cameras.K[view]).float()
    height, width = depth.shape
    factor = min(1.0, settings.longest_side_px / max(height, width))
    if factor < 1.0:
        size = (max(1, round(height * factor)), max(1, round(width * factor)))
        image = F.interpolate(image[None], size=size, mode="area")[0]
        depth = F.interpolate(depth[None, None], size=size, mode="area")[0, 0]
        counts = F.interpolate(counts[None, None].float(), size=size, mode="area")[0, 0] > _SURE_SHARE
        K = torch.diag(torch.tensor([size[1] / width, size[0] / height, 1.0])) @ K
    return PosedImage(
        image=image.to(device),
        counts=counts.to(device),
        depth=depth.to(device),
        K=K.to(device),
        T_world_camera=aligned.cameras.T_world_camera[view].float().to(device),
    )


def best_neighbours(image: PosedImage, candidates: Sequence[PosedImage], most: int) -> list[PosedImage]:
    """The photos to compare one with: those that show most of it, from somewhere else.

    A candidate counts by the share of pixels that it shows times its parallax, up to 5 degrees; 0 is left out.
    """
    every = max(1, image.depth.numel() // 400)
    points = points_from_depth(image.depth, image.K).reshape(-1, 3)[::every]
    counts = image.counts.flatten()[::every]
    scored = []
    for index, other in enumerate(candidates):
        T = _T_other_image(image, other)
        pixels, in_front = _projected(points @ T[:3, :3].T + T[:3, 3], other.K)
        seen = in_front & _inside(pixels, other.depth.shape) & counts
        centre = torch.linalg.inv(T)[:3, 3]
        # Not by the cosine, which cannot tell a small angle from none.
        rays = (points, points - centre)
        sine = torch.linalg.cross(*rays).norm(dim=-1)
        angle_deg = torch.rad2deg(torch.atan2(sine, (rays[0] * rays[1]).sum(dim=-1)))
        score = float((seen * (angle_deg / _WIDE_ANGLE_DEG).clamp(max=1.0)).mean())
        if score > _LEAST_SCORE:
            scored.append((-score, index))
    return [candidates[index] for _, index in sorted(scored)[:most]]


def log_depth_change(
    image: PosedImage, others: Sequence[PosedImage], settings: StereoSettings
) -> Float32[Tensor, "height width"]:
    """The s of the module's objective: log of the factor by which each pixel's depth is wrong."""
    changes = torch.linspace(-settings.span, settings.span, settings.hypotheses, device=image.depth.device)
    volumes = [matching_costs(image, others, changes, window_px, settings) for window_px in settings.windows_px]
    costs = torch.stack(volumes).mean(dim=0) + settings.prior * changes.square()[:, None, None]
    step = 2.0 * settings.span / (settings.hypotheses - 1)
    summed = path_costs(costs, settings.smoothness * step, settings.most_jump)
    # The vertex of the parabola through the best hypothesis and its neighbours.
    best = summed.argmin(dim=0).clamp(1, settings.hypotheses - 2)
    before, at, after = (summed.gather(0, (best + offset)[None])[0] for offset in (-1, 0, 1))
    curvature = (before - 2.0 * at + after).clamp_min(1e-6)
    vertex = (0.5 * (before - after) / curvature).clamp(-0.5, 0.5)
    return changes[best] + step * vertex


def matching_costs(
    image: PosedImage,
    others: Sequence[PosedImage],
    log_changes: Float32[Tensor, " hypotheses"],
    window_px: float,
    settings: StereoSettings,
) -> Float32[Tensor, "hypotheses height width"]:
    """c of the module's objective with one window, between 0 and 2; 1 where no photo shows the pixel."""
    own = _Windowed(image.image[None], window_px)
    own_unmasked = _whole_windows(image.counts[None], window_px)
    points = points_from_depth(image.depth, image.K) * log_changes.exp()[:, None, None, None]
    costs = []
    for other in others:
        T = _T_other_image(image, other)
        pixels, in_front = _projected(points @ T[:3, :3].T + T[:3, 3], other.K)
        height, width = other.depth.shape
        grid = pixels / torch.tensor([width, height], device=pixels.device) * 2.0 - 1.0
        count = len(log_changes)
        # Masked pixels of the other photo are marked by a fourth channel.
        layers = torch.cat([other.image, other.counts[None].float()])[None].expand(count, -1, -1, -1)
        warped = F.grid_sample(layers, grid, mode="bilinear", padding_mode="border", align_corners=False)
        inside = in_front & _inside(pixels, other.depth.shape)
        unmasked = _whole_windows(warped[:, 3] > _UNMASKED, window_px)
        shown = inside & (_share_of_window(inside, window_px) > _SURE_SHARE) & unmasked
        similarity = own.correlation(_Windowed(warped[:, :3], window_px), settings.contrast)
        similarity = torch.where(own_unmasked, similarity, 0.0)
        costs.append(torch.where(shown, 1.0 - similarity, _COST_OF_ABSENCE))
    ordered = torch.stack(costs).sort(dim=0).values
    showing = (ordered < _COST_OF_ABSENCE).sum(dim=0)
    kept = (showing * settings.kept_share).ceil()
    rank = torch.arange(len(others), device=ordered.device)[:, None, None, None]
    mean = torch.where(rank < kept, ordered, 0.0).sum(dim=0) / kept.clamp(min=1)
    return torch.where(showing > 0, mean, _COST_WITHOUT_EVIDENCE)


def path_costs(
    costs: Float32[Tensor, "hypotheses height width"], step_cost: float, most_jump: float
) -> Float32[Tensor, "hypotheses height width"]:
    """Semi-global matching: each pixel's cost of every hypothesis summed over the best paths from four directions.

    `L_r(p, k) = c(p, k) + min_l [L_r(p - r, l) + min(step_cost |k - l|, most_jump)] - min_l L_r(p - r, l)`.

    Args:
        costs: Of every hypothesis.
        step_cost: Of one step to the next hypothesis between neighbouring pixels.
        most_jump: Of any difference, at most.
    """
    hypotheses = torch.arange(len(costs), device=costs.device, dtype=costs.dtype)
    jumps = (step_cost * (hypotheses[:, None] - hypotheses).abs()).clamp(max=most_jump)[:, :, None]
    total = torch.zeros_like(costs)
    for along_rows in (False, True):
        swept = costs.transpose(1, 2) if along_rows else costs
        for backwards in (False, True):
            paths = _swept(swept.flip(1) if backwards else swept, jumps)
            paths = paths.flip(1) if backwards else paths
            total = total + (paths.transpose(1, 2) if along_rows else paths)
    return total


def _swept(costs: Tensor, jumps: Tensor) -> Tensor:
    """Paths from the first line to the last."""
    lines = [costs[:, 0]]
    for line in range(1, costs.shape[1]):
        before = lines[-1]
        lines.append(costs[:, line] + (before[None] + jumps).amin(dim=1) - before.amin(dim=0))
    return torch.stack(lines, dim=1)


class _Windowed:
    """Means and variances of images over Gaussian windows, summed over the colours."""

    def __init__(self, images: Float[Tensor, "n 3 height width"], window_px: float) -> None:
        self.images = images
        self.window_px = window_px
        self.mean = _blurred(images, window_px)
        self.variance = (_blurred(images.square(), window_px) - self.mean.square()).clamp_min(0.0).sum(dim=1)

    def correlation(self, other: "_Windowed", contrast: float) -> Float[Tensor, "n height width"]:
        """Normalised cross-correlation, nearer to 0 the less contrast there is."""
        covariance = (_blurred(self.images * other.images, self.window_px) - self.mean * other.mean).sum(dim=1)
        noise = contrast**2
        return covariance / ((self.variance + noise) * (other.variance + noise)).sqrt()


def _blurred(images: Tensor, sigma_px: float) -> Tensor:
    """Means over Gaussian windows, cut off at the border and there normalised anew."""
    radius = _radius(sigma_px)
    offsets = torch.arange(-radius, radius + 1, device=images.device, dtype=images.dtype)
    kernel = (-0.5 * (offsets / sigma_px).square()).exp()
    channels = images.shape[1]
    ones = torch.ones_like(images[:1, :1])
    summed, weight = images, ones
    for shape, padding in (((1, 1, 1, -1), (0, radius)), ((1, 1, -1, 1), (radius, 0))):
        taps = kernel.view(shape)
        summed = F.conv2d(summed, taps.expand(channels, -1, -1, -1), padding=padding, groups=channels)
        weight = F.conv2d(weight, taps, padding=padding)
    return summed / weight


def _radius(sigma_px: float) -> int:
    return math.ceil(2.5 * sigma_px)


def _whole_windows(chosen: Tensor, sigma_px: float) -> Tensor:
    """Whether all of each pixel's window is chosen, as far as it lies within the image."""
    radius = _radius(sigma_px)
    return F.max_pool2d((~chosen).float()[:, None], 2 * radius + 1, stride=1, padding=radius)[:, 0] == 0


def _share_of_window(chosen: Tensor, sigma_px: float) -> Tensor:
    """How much of each pixel's window is chosen."""
    return _blurred(chosen[:, None].float(), sigma_px)[:, 0]


def _T_other_image(image: PosedImage, other: PosedImage) -> Tensor:
    T = torch.linalg.inv(other.T_world_camera.double()) @ image.T_world_camera.double()
    return T.float()


def _projected(points: Tensor, K: Tensor) -> tuple[Tensor, Tensor]:
    """(pixels, whether in front of the camera)."""
    z = points[..., 2]
    homogeneous = points @ K.T
    return homogeneous[..., :2] / z.clamp_min(1e-6)[..., None], z > 1e-6


def _inside(pixels: Tensor, shape: Sequence[int]) -> Tensor:
    height, width = shape
    x, y = pixels.unbind(dim=-1)
    return (x > 0) & (x < width) & (y > 0) & (y < height)
