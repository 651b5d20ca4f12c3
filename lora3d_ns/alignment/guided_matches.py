"""Matches where point maps say to look: for small photos, in which feature detectors find little.

The point map X^{i,j} of the pair (j, i) says where each pixel of photo i lies in camera j's frame, so projecting it
with the focal length of the same pair's X^{j,j} predicts where the pixel appears in photo j, and how the picture
around it is stretched there. The network errs by a few pixels; the pictures do not: around the prediction the patch is
searched by zero-mean normalised cross-correlation (ZNCC), and refined by Lucas and Kanade's method in its inverse
compositional form (Baker and Matthews, 2004) with an affine warp, gain and offset.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float32, Float64
from torch import Tensor

from lora3d_ns.conventions import pixel_centres
from lora3d_ns.errors import SettingsError
from lora3d_ns.geometry.camera import focal_from_points
from lora3d_ns.types import PairPrediction

_NEAREST_DEPTH = 1e-6
_DISPLAY_GAMMA = 2.2
_CORRECTION_REACH = 0.08
"""Distance, as a share of the photo's long side, to which errors of a point map are alike."""
_LONGEST_REFINEMENT_PX = 1.5
_ENLARGED = 2
"""Photos are enlarged so much (bicubic), since reading between pixels linearly would blur one of two patches."""


@dataclass(frozen=True, kw_only=True)
class GuidedSettings:
    """How the pictures are searched.

    Attributes:
        keypoints: Most places of a photo that are searched in others, best corners first.
        blur_px: Standard deviation of the blur against noise before anything else.
        half_patch_px: Patches have 2 * half_patch_px + 1 pixels a side.
        radius_px: How far from the prediction the first search goes.
        least_zncc: Correlation below which a match is refused.
        uniqueness: Refused where the second-best place lacks less than `1 / uniqueness` of what the best lacks to a
            correlation of 1.
        return_px: The way back from the match must end this close to the start.
        margin_px: Distance from the photo's edge within which nothing is matched.
        epipolar_px: Distance from the epipolar line within which the second search looks.
        least_noise: Only for pairs both of whose photos are at least so noisy, see `alignment.noise`: a long search in
            strongly blurred photos finds too much in clear ones.
    """

    keypoints: int = 400
    blur_px: float = 0.6
    half_patch_px: int = 4
    radius_px: int = 6
    least_zncc: float = 0.8
    uniqueness: float = 0.8
    return_px: float = 1.0
    margin_px: float = 2.0
    epipolar_px: float = 1.5
    least_noise: float = 0.0

    def __post_init__(self) -> None:
        for name in ("keypoints", "half_patch_px", "radius_px"):
            if getattr(self, name) < 1:
                raise SettingsError(f"{name} is {getattr(self, name)}", way_out="Use at least 1")
        for name in ("blur_px", "return_px", "epipolar_px"):
            if not getattr(self, name) > 0:
                raise SettingsError(f"{name} is {getattr(self, name)}", way_out="Use a positive number of pixels")
        if not self.margin_px >= 0:
            raise SettingsError(f"margin_px is {self.margin_px}", way_out="Use 0 or more pixels")
        if not self.least_noise >= 0:
            raise SettingsError(f"least_noise is {self.least_noise}", way_out="Use 0, or a share such as 0.25")
        for name in ("least_zncc", "uniqueness"):
            if not 0 < getattr(self, name) <= 1:
                raise SettingsError(f"{name} is {getattr(self, name)}", way_out="Use a number between 0 and 1")


@dataclass(frozen=True, eq=False, kw_only=True)
class SearchedPhoto:
    """A photo prepared for being searched.

    Attributes:
        enlarged: Blurred photo, enlarged `_ENLARGED` times.
        keypoints: Network pixels of its corners, best first; all are pixel centres.
        mask: True where a pixel counts.
    """

    enlarged: Float32[Tensor, "1 channels _ _"]
    keypoints: Float32[Tensor, "keypoints 2"]
    mask: Bool[Tensor, "height width"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Flow:
    """Where the pixels of one photo are predicted in another.

    Attributes:
        pixels: Network pixels of the other photo.
        weights: 0 where the point lies behind the other camera, larger where the network is more confident.
        depth: Along the other camera's axis.
    """

    pixels: Float32[Tensor, "height width 2"]
    weights: Float32[Tensor, "height width"]
    depth: Float32[Tensor, "height width"]


@dataclass(frozen=True, eq=False, kw_only=True)
class KnownGeometry:
    """What is known of two photos from matches between them.

    Attributes:
        F_target_source: Fundamental matrix in network pixels, `x_target^T F x_source = 0`.
        pixels_source, pixels_target: The matches.
    """

    F_target_source: Float64[Tensor, "3 3"]
    pixels_source: Float64[Tensor, "matches 2"]
    pixels_target: Float64[Tensor, "matches 2"]

    def reversed(self) -> "KnownGeometry":
        """The same with source and target exchanged."""
        return KnownGeometry(
            F_target_source=self.F_target_source.T.contiguous(),
            pixels_source=self.pixels_target,
            pixels_target=self.pixels_source,
        )


def prepare_photo(
    image: Float32[Tensor, "3 height width"], mask: Bool[Tensor, "height width"] | None, settings: GuidedSettings
) -> SearchedPhoto:
    """The photo blurred and enlarged, with the corners that are worth searching for.

    A corner is a pixel whose structure tensor's smaller eigenvalue is a maximum of its 3x3 neighbourhood (Shi and
    Tomasi, 1994).
    """
    height, width = image.shape[1:]
    counted = torch.ones(height, width, dtype=torch.bool) if mask is None else mask
    # Noise averages out in linear light, where a camera's read noise is the same in dark and bright parts.
    blurred = _blur(image[None].clamp(min=0.0).pow(_DISPLAY_GAMMA), settings.blur_px).pow(1.0 / _DISPLAY_GAMMA)
    response = corner_response(blurred)
    peak = response >= F.max_pool2d(response[None, None], 3, stride=1, padding=1)[0, 0]
    centres = pixel_centres(height, width)
    inside = _inside(centres, (height, width), settings.margin_px)
    # A constant picture has rounding errors for corners.
    usable = (peak & inside & counted & (response > 1e-8)).flatten()
    order = torch.argsort(torch.where(usable, response.flatten(), -1.0), descending=True, stable=True)
    chosen = order[: min(settings.keypoints, int(usable.sum()))]
    # With antialias the cubic is Catmull and Rom's; the other one moves edges by up to a twentieth of a pixel.
    size = (_ENLARGED * height, _ENLARGED * width)
    enlarged = F.interpolate(blurred, size=size, mode="bicubic", align_corners=False, antialias=True)
    return SearchedPhoto(enlarged=enlarged, keypoints=centres.reshape(-1, 2)[chosen], mask=counted)


def corner_response(image: Float32[Tensor, "1 channels height width"]) -> Float32[Tensor, "height width"]:
    """Smaller eigenvalue of the structure tensor at each pixel, all channels summed."""
    padded = F.pad(image, (1, 1, 1, 1), mode="replicate")
    dx = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) / 2
    dy = (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]) / 2
    tensor = torch.stack([(dx * dx).sum(dim=1), (dy * dy).sum(dim=1), (dx * dy).sum(dim=1)], dim=1)
    xx, yy, xy = _blur(tensor, 1.0)[0]
    return (xx + yy) / 2 - (((xx - yy) / 2).square() + xy.square()).sqrt()


def predicted_flow(prediction: PairPrediction) -> Flow:
    """Where the *second* photo's pixels appear in the *first*, for a pair as `PairPrediction` has it."""
    height, width = prediction.confidence_first.shape
    focal = focal_from_points(prediction.points_first, prediction.confidence_first + 1e-6)
    depth = prediction.points_second[..., 2]
    centre = depth.new_tensor([width / 2, height / 2])
    pixels = focal * prediction.points_second[..., :2] / depth.clamp(min=_NEAREST_DEPTH)[..., None] + centre
    usable = (depth > _NEAREST_DEPTH) & (pixels - centre).norm(dim=-1).lt(2.0 * (height + width))
    return Flow(
        pixels=torch.where(usable[..., None], pixels, -1e3),
        weights=torch.where(usable, prediction.confidence_second + 0.05, 0.0),
        depth=depth,
    )


def search_both_ways(
    first: SearchedPhoto,
    second: SearchedPhoto,
    flow_forward: Flow,
    flow_backward: Flow,
    settings: GuidedSettings,
    known: KnownGeometry | None = None,
) -> tuple[Float64[Tensor, "matches 2"], Float64[Tensor, "matches 2"]]:
    """The first photo's keypoints found in the second, from where the same search finds back to them.

    Args:
        first, second: The photos.
        flow_forward, flow_backward: From the first to the second, and back.
        settings: How to search.
        known: What an earlier search found. Predictions are then corrected by its matches nearby, and only places
            near the epipolar line are looked at.

    Returns:
        Network pixels in the first photo (pixel centres) and in the second.
    """
    start = first.keypoints
    found, good = _search(first, second, flow_forward, start, settings, known)
    start, found = start[good], found[good]
    back, returned = _search(second, first, flow_backward, found, settings, None if known is None else known.reversed())
    good = returned & ((back - start).norm(dim=1) < settings.return_px)
    return start[good].double(), found[good].double()


def refine(
    first: SearchedPhoto,
    second: SearchedPhoto,
    flow_forward: Flow,
    pixels_first: Float64[Tensor, "matches 2"],
    pixels_second: Float64[Tensor, "matches 2"],
    settings: GuidedSettings,
) -> tuple[Float64[Tensor, "matches 2"], Bool[Tensor, " matches"]]:
    """Matches found by other means, their second pixel refined; and where that succeeded.

    It did not where the pictures do not correlate or the pixel moved by more than 1.5: it is returned as it came then.
    """
    start, coarse = pixels_first.float(), pixels_second.float()
    stretch = _local_affine(flow_forward, start)[1]
    template = _sample(first.enlarged, start[:, None, None] + _grid(settings.half_patch_px))
    refined, score = _refined(template, second.enlarged, coarse, stretch, settings.half_patch_px)
    good = (score > settings.least_zncc) & ((refined - coarse).norm(dim=1) < _LONGEST_REFINEMENT_PX)
    return torch.where(good[:, None], refined.double(), pixels_second), good


def deviation_px(
    flow_forward: Flow,
    flow_backward: Flow,
    pixels_first: Float64[Tensor, "matches 2"],
    pixels_second: Float64[Tensor, "matches 2"],
) -> Float64[Tensor, " matches"]:
    """Distance of matches from what the point maps predict, forward or backward, whichever is nearer."""
    first, second = pixels_first.float(), pixels_second.float()
    forward = (_local_affine(flow_forward, first)[0] - second).norm(dim=1)
    backward = (_local_affine(flow_backward, second)[0] - first).norm(dim=1)
    return torch.minimum(forward, backward).double()


def _search(
    source: SearchedPhoto,
    target: SearchedPhoto,
    flow: Flow,
    start: Tensor,
    settings: GuidedSettings,
    known: KnownGeometry | None,
) -> tuple[Tensor, Tensor]:
    """Where pixels of the source are in the target, and which of them were found."""
    if len(start) == 0:
        return start, torch.zeros(0, dtype=torch.bool)
    shape = (target.mask.shape[0], target.mask.shape[1])
    predicted, stretch = _local_affine(flow, start)
    if known is not None:
        predicted = predicted + _correction(flow, start, known)
    half = settings.half_patch_px
    # Matches nearby make the prediction better.
    radius = settings.radius_px if known is None else (settings.radius_px + 1) // 2
    template = _sample(source.enlarged, start[:, None, None] + _grid(half))
    window = _sample(target.enlarged, _warped(predicted, stretch, _grid(half + radius)))
    score = _zncc(template, window)
    places = _warped(predicted, stretch, _grid(radius))
    refused = ~_inside(places, shape, settings.margin_px)
    if known is not None:
        lines = torch.cat([start, torch.ones_like(start[:, :1])], dim=1) @ known.F_target_source.T.to(start)
        lines = lines / lines[:, :2].norm(dim=1, keepdim=True).clamp(min=1e-12)
        distance = (places * lines[:, None, None, :2]).sum(dim=-1) + lines[:, None, None, 2]
        refused |= distance.abs() > settings.epipolar_px
    score = score.masked_fill(refused, -1.0)

    side = 2 * radius + 1
    best, at = score.flatten(1).max(dim=1)
    peak = torch.stack([at % side, at // side], dim=1)
    columns_rows = torch.stack(torch.meshgrid(torch.arange(side), torch.arange(side), indexing="xy"), dim=-1)
    near = (columns_rows - peak[:, None, None]).abs().amax(dim=-1) <= 2
    second_best = score.masked_fill(near, -1.0).flatten(1).amax(dim=1)
    good = (1.0 - best) < settings.uniqueness * (1.0 - second_best)
    good &= best > settings.least_zncc - 0.15

    found = predicted + (stretch @ (peak - radius).to(start)[..., None])[..., 0]
    kept = good.nonzero()[:, 0]
    refined, refined_score = _refined(template[kept], target.enlarged, found[kept], stretch[kept], half)
    moved = (refined - found[kept]).norm(dim=1)
    found[kept] = refined
    good[kept] = (refined_score > settings.least_zncc) & (moved < _LONGEST_REFINEMENT_PX)
    good &= _inside(found, shape, settings.margin_px)
    rows_columns = found.floor().long().flip(1).clamp(min=0)
    good &= target.mask[rows_columns[:, 0].clamp(max=shape[0] - 1), rows_columns[:, 1].clamp(max=shape[1] - 1)]
    return found, good


def _local_affine(flow: Flow, at: Tensor) -> tuple[Tensor, Tensor]:
    """Prediction and its derivative at some pixels: a plane fitted to the flow within three pixels.

    Pixels of another depth have little say, so that the plane does not mix fore- and background.
    """
    height, width = flow.weights.shape
    offsets = _grid(3).reshape(-1, 2).long()
    nearest = at.floor().long()
    x = (nearest[:, None, 0] + offsets[:, 0]).clamp(0, width - 1)
    y = (nearest[:, None, 1] + offsets[:, 1]).clamp(0, height - 1)
    pixels, depth = flow.pixels[y, x], flow.depth[y, x]
    own = flow.depth[nearest[:, 1].clamp(0, height - 1), nearest[:, 0].clamp(0, width - 1)][:, None]
    weights = flow.weights[y, x] / (1.0 + ((depth - own) / (0.1 * own.abs() + 1e-9)).square())
    relative = torch.stack([x, y], dim=-1) + 0.5 - at[:, None]
    design = torch.cat([torch.ones_like(relative[..., :1]), relative], dim=-1)
    weighted = design * weights[..., None]
    # A little weight on "as large as here" keeps the plane determined where few pixels count.
    floor = 1e-3 * weights.sum(dim=1).clamp(min=1e-6)[:, None, None] * torch.diag(at.new_tensor([0.0, 1.0, 1.0]))
    normal = weighted.mT @ design + floor + 1e-9 * torch.eye(3)
    right = weighted.mT @ pixels + floor[:, :, 1:]
    solved = torch.linalg.solve(normal, right)
    stretch = solved[:, 1:].mT
    singular = torch.linalg.svdvals(stretch)
    plausible = (singular[:, 0] < 3.0) & (singular[:, 1] > 0.33) & (torch.linalg.det(stretch) > 0)
    return solved[:, 0], torch.where(plausible[:, None, None], stretch, torch.eye(2))


def _correction(flow: Flow, at: Tensor, known: KnownGeometry) -> Tensor:
    """What the flow misses at some pixels, from matches nearby: a mean of theirs with Gaussian weights."""
    source = known.pixels_source.to(at)
    missed = known.pixels_target.to(at) - _local_affine(flow, source)[0]
    reach_px = _CORRECTION_REACH * max(flow.weights.shape)
    distance = torch.cdist(at, source)
    # Far from all matches the nearest ones still say the most.
    weights = torch.softmax(-0.5 * (distance / reach_px).square(), dim=1)
    return weights @ missed


def _refined(
    template: Tensor, enlarged: Tensor, coarse: Tensor, stretch: Tensor, half: int, iterations: int = 4
) -> tuple[Tensor, Tensor]:
    """Places to a fraction of a pixel, and the correlation there."""
    grid = _grid(half)[1:-1, 1:-1].reshape(-1, 2)
    dx = ((template[..., 1:-1, 2:] - template[..., 1:-1, :-2]) / 2).flatten(2)
    dy = ((template[..., 2:, 1:-1] - template[..., :-2, 1:-1]) / 2).flatten(2)
    inner = template[..., 1:-1, 1:-1].flatten(2)
    norm = _centred(inner).flatten(1).norm(dim=1).clamp(min=1e-9)[:, None, None]
    target = _centred(inner) / norm
    x, y = grid.unbind(dim=1)
    jacobian = torch.stack([dx, dy, dx * x, dx * y, dy * x, dy * y], dim=-1) / norm[..., None]
    jacobian = (jacobian - jacobian.mean(dim=2, keepdim=True)).flatten(1, 2)
    # Stretch is known better than place: its steps are held back.
    scale = jacobian[..., :2].square().sum(dim=(1, 2))[:, None]
    damping = torch.diag_embed(scale * template.new_tensor([1e-3, 1e-3, 1.0, 1.0, 1.0, 1.0]))
    gain = torch.linalg.solve(jacobian.mT @ jacobian + damping + 1e-9 * torch.eye(6), jacobian.mT)
    place, warp = coarse, stretch
    for _ in range(iterations):
        seen = _sample(enlarged, _warped(place, warp, grid)[:, None])[:, :, 0]
        seen = _centred(seen)
        seen = seen / seen.flatten(1).norm(dim=1).clamp(min=1e-9)[:, None, None]
        step = (gain @ (seen - target).flatten(1)[..., None])[..., 0].clamp(-1.0, 1.0)
        inverse = torch.linalg.inv(torch.eye(2) + (0.5 * step[:, 2:]).reshape(-1, 2, 2))
        place = place - (warp @ inverse @ step[:, :2, None])[..., 0]
        warp = warp @ inverse
    seen = _centred(_sample(enlarged, _warped(place, warp, grid)[:, None])[:, :, 0])
    seen = seen / seen.flatten(1).norm(dim=1).clamp(min=1e-9)[:, None, None]
    return place, (seen * target).sum(dim=(1, 2)).nan_to_num(-1.0)


def _zncc(template: Tensor, window: Tensor) -> Tensor:
    """Correlation of each template with every place of its window, channels taken together."""
    count, channels, side = template.shape[:3]
    centred = template - template.mean(dim=(2, 3), keepdim=True)
    norm = centred.flatten(1).norm(dim=1)[:, None, None]
    # Sums of squares lose digits where the values are far from zero.
    window = window - window.mean(dim=(2, 3), keepdim=True)
    across = F.conv2d(window.reshape(1, count * channels, *window.shape[2:]), centred, groups=count)[0]
    square = _box_sums(window.square().sum(dim=1), side)
    variance = (square - _box_sums(window, side).square().sum(dim=1) / side**2).clamp(min=0.0)
    # Flat patches correlate with nothing.
    return across / (norm * variance.sqrt()).clamp(min=1e-5)


def _box_sums(values: Tensor, side: int) -> Tensor:
    """Sums over all squares of this side in the last two axes."""
    rows = F.pad(values.cumsum(dim=-2), (0, 0, 1, 0))
    values = rows[..., side:, :] - rows[..., :-side, :]
    columns = F.pad(values.cumsum(dim=-1), (1, 0))
    return columns[..., side:] - columns[..., :-side]


def _sample(enlarged: Tensor, at: Tensor) -> Tensor:
    """Values at continuous network pixels: `count channels rows columns` for places `count rows columns 2`."""
    height, width = enlarged.shape[2] / _ENLARGED, enlarged.shape[3] / _ENLARGED
    normalized = at * at.new_tensor([2.0 / width, 2.0 / height]) - 1.0
    count, rows, columns = at.shape[:3]
    values = F.grid_sample(
        enlarged, normalized.reshape(1, count * rows, columns, 2), padding_mode="border", align_corners=False
    )
    return values.reshape(enlarged.shape[1], count, rows, columns).transpose(0, 1)


def _warped(centre: Tensor, stretch: Tensor, grid: Tensor) -> Tensor:
    """Places `centre + stretch @ grid` for each centre: the batch's axis before the grid's."""
    flat = grid.reshape(-1, 2) @ stretch.mT + centre[:, None]
    return flat.reshape(len(centre), *grid.shape)


def _grid(half: int) -> Tensor:
    """Offsets (x, y) from -half to half in steps of one pixel."""
    steps = torch.arange(-half, half + 1, dtype=torch.float32)
    return torch.stack(torch.meshgrid(steps, steps, indexing="xy"), dim=-1)


def _inside(pixels: Tensor, shape: tuple[int, int], margin_px: float) -> Tensor:
    height, width = shape
    x, y = pixels.unbind(dim=-1)
    return (x >= margin_px) & (x <= width - margin_px) & (y >= margin_px) & (y <= height - margin_px)


def _centred(values: Tensor) -> Tensor:
    return values - values.mean(dim=2, keepdim=True)


def _blur(image: Tensor, sigma_px: float) -> Tensor:
    """Gaussian blur of all channels, pixels at the edge repeated."""
    reach = max(1, int(3 * sigma_px + 0.5))
    steps = torch.arange(-reach, reach + 1, dtype=image.dtype)
    kernel = torch.exp(-0.5 * (steps / sigma_px).square())
    kernel = kernel / kernel.sum()
    channels = image.shape[1]
    padded = F.pad(image, (reach, reach, reach, reach), mode="replicate")
    rows = F.conv2d(padded, kernel.expand(channels, 1, 1, -1), groups=channels)
    return F.conv2d(rows, kernel[:, None].expand(channels, 1, -1, 1), groups=channels)
