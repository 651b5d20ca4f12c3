"""One point map as a DUSt3R-like network might predict it, made from the true one."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor
from torch.nn import functional

from lora3d_ns.conventions import pixel_centres
from lora3d_ns.errors import SettingsError

# Log-confidence of the bundled network on its validation pairs; the two ends are ours.
_CONFIDENCE_SHARES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
_CONFIDENCE_QUANTILES = (0.05, 0.18, 0.58, 0.84, 1.06, 1.33, 1.6)
# Wrong second maps are as confident as the better part of right ones.
_WRONG_LOWEST_SHARE = 0.3
# Floaters are confident: mean and spread of their score, in standard deviations of the other pixels' score.
_FLOATER_SCORE = (0.8, 0.7)

_CONFIDENCE_KNOTS = (5, 9)
_BLOBS = 24
_BLOB_ALONG_RAY_SHARE = 0.6
_WRONG_SCALE = (0.7, 1.4)
_WRONG_TRANSLATION = (0.3, 1.0)


@dataclass(frozen=True, eq=False, kw_only=True)
class NoiseSettings:
    """What is wrong with simulated predictions. Shares of depth are of each pixel's own depth unless said otherwise.

    Attributes:
        depth_warp: Standard deviation of a smooth factor `exp(.)` on depth, drawn for each edge and role; its
            logarithm has mean 0 over each map.
        depth_warp_grid: Least and most knots along each axis of the grid that the warp is interpolated from.
        rotation_deg: Root mean square angle of the error of the relative pose that moves the second map.
        translation: Root mean square length of its translation, as a share of the second view's median depth.
        pixel_noise: Standard deviation along each axis of independent noise, as a share of depth.
        focal_error: Standard deviation of the logarithm of a factor on x and y of both maps in their own cameras, drawn
            for each edge. 0 by default: the rays of first maps then are true but for `pixel_noise` and floaters.
        confidence_agreement: Weight, 0 to 1, of the true error in the score by which confidence is ranked; what is left
            to 1 is noise, half of it smooth.
        floater_share: Share of each map's pixels that are over-confident floaters, in blobs.
        floater_shift: Least and largest displacement of a blob as a share of depth: along the ray, towards or away from
            the camera, for most blobs, and parallel to the image for the others.
        wrong_edges: How many directed edges have a wholly wrong second map; never both orders of a pair.
        wrong_rotation_deg: Least and largest angle by which such a map is turned about its centre. It is scaled by 0.7
            to 1.4 and moved by 0.3 to 1 of its median depth besides.
    """

    depth_warp: float = 0.06
    depth_warp_grid: tuple[int, int] = (4, 6)
    rotation_deg: float = 1.5
    translation: float = 0.03
    pixel_noise: float = 0.005
    focal_error: float = 0.0
    confidence_agreement: float = 0.6
    floater_share: float = 0.2
    floater_shift: tuple[float, float] = (0.2, 0.6)
    wrong_edges: int = 2
    wrong_rotation_deg: tuple[float, float] = (60.0, 150.0)

    def __post_init__(self) -> None:
        for name in ("depth_warp", "rotation_deg", "translation", "pixel_noise", "focal_error", "wrong_edges"):
            self._check(getattr(self, name) >= 0, f"{name} must not be negative, not {getattr(self, name)}")
        for name in ("confidence_agreement", "floater_share"):
            self._check(0 <= getattr(self, name) <= 1, f"{name} must lie within 0 and 1, not {getattr(self, name)}")
        for name, lowest, highest in (
            ("depth_warp_grid", 2, 64),
            ("floater_shift", 0.0, 0.95),
            ("wrong_rotation_deg", 0.0, 180.0),
        ):
            low, high = getattr(self, name)
            self._check(
                lowest <= low <= high <= highest, f"{name} {(low, high)} must be (low, high) in {lowest} to {highest}"
            )

    def _check(self, condition: bool, problem: str) -> None:
        if not condition:
            raise SettingsError(f"simulated noise: {problem}", way_out="Change the setting")


@dataclass(frozen=True, eq=False, kw_only=True)
class NoisyMap:
    """A point map with its faults known.

    Attributes:
        points_m: In the first camera's frame.
        confidence: Log-confidence.
        error_m: Distance from the true points.
        floaters: Over-confident pixels that were displaced.
    """

    points_m: Float64[Tensor, "height width 3"]
    confidence: Float64[Tensor, "height width"]
    error_m: Float64[Tensor, "height width"]
    floaters: Bool[Tensor, "height width"]


def noisy_map(
    true_own_m: Float64[Tensor, "height width 3"],
    T_first_own: Float64[Tensor, "4 4"],
    settings: NoiseSettings,
    *,
    key: tuple[int, int, int],
    role: int,
    wrong: bool,
) -> NoisyMap:
    """One map of an edge.

    Args:
        true_own_m: True points of the pixels in their own camera's frame.
        T_first_own: True pose of that camera in the frame of the edge's first one.
        settings: Kind and amount of what is wrong.
        key: Seed and edge: all draws depend on them, on the role and on nothing else.
        role: 0 for the edge's first map, 1 for its second, whose relative pose is wrong too.
        wrong: Whether the whole map is put elsewhere. Its confidence stays that of the map in its place, but raised.
    """
    shape = (true_own_m.shape[0], true_own_m.shape[1])
    true_m = moved(true_own_m, T_first_own)
    median_depth_m = float(true_own_m[..., 2].median())
    depth_m = true_own_m[..., 2:]
    floaters, shift_along, shift_across = _draw_floaters(settings, shape, random_for("floaters", *key, role))

    warp = _smooth_field(random_for("warp", *key, role), shape, settings.depth_warp_grid)
    own_m = true_own_m * torch.exp(settings.depth_warp * warp)[..., None]
    lens = math.exp(settings.focal_error * float(random_for("focal error", *key).normal()))
    own_m = own_m * own_m.new_tensor([lens, lens, 1.0])
    noise = torch.from_numpy(random_for("pixel", *key, role).normal(size=(*shape, 3)))
    own_m = own_m + settings.pixel_noise * depth_m * noise
    own_m = own_m * (1.0 + shift_along)[..., None] + depth_m * shift_across
    if role == 1:
        T_first_own = T_first_own @ _pose_error(settings, median_depth_m, random_for("pose", *key))
    points_m = moved(own_m, T_first_own)

    share = _confidence_share(
        (points_m - true_m).norm(dim=-1), floaters, settings, random_for("confidence", *key, role)
    )
    if wrong:
        share = _WRONG_LOWEST_SHARE + (1.0 - _WRONG_LOWEST_SHARE) * share
        points_m = _elsewhere(points_m, median_depth_m, settings, random_for("wrong place", *key))
    return NoisyMap(
        points_m=points_m,
        confidence=torch.from_numpy(np.interp(share.numpy(), _CONFIDENCE_SHARES, _CONFIDENCE_QUANTILES)),
        error_m=(points_m - true_m).norm(dim=-1),
        floaters=floaters,
    )


def random_for(purpose: str, *key: int) -> np.random.Generator:
    """Draws that depend on what they are for, never on what was drawn before."""
    return np.random.default_rng([*purpose.encode(), *key])


def moved(points: Float[Tensor, "*batch 3"], T: Float[Tensor, "4 4"]) -> Float[Tensor, "*batch 3"]:
    """The points moved by a rigid transformation."""
    return points @ T[:3, :3].T + T[:3, 3]


def _confidence_share(
    error_m: Tensor, floaters: Tensor, settings: NoiseSettings, random: np.random.Generator
) -> Tensor:
    """Share of the map's pixels that each is more confident than: by a score that the true error has a say in."""
    shape = (error_m.shape[0], error_m.shape[1])
    noise = _smooth_field(random, shape, _CONFIDENCE_KNOTS) + torch.from_numpy(random.normal(size=shape))
    noise = noise / math.sqrt(2.0)
    score = _FLOATER_SCORE[0] + _FLOATER_SCORE[1] * noise
    agreement = settings.confidence_agreement
    ordinary = ~floaters
    score[ordinary] = -agreement * _normal_scores(error_m[ordinary]) + math.sqrt(1.0 - agreement**2) * noise[ordinary]
    return _shares(score)


def _elsewhere(points_m: Tensor, median_depth_m: float, settings: NoiseSettings, random: np.random.Generator) -> Tensor:
    """The whole map turned and scaled about its centre, and moved, by a lot."""
    low, high = np.radians(settings.wrong_rotation_deg)
    R = _rotation(random.normal(size=3), float(random.uniform(low, high)))
    scale = float(np.exp(random.uniform(*np.log(_WRONG_SCALE))))
    direction = torch.from_numpy(_unit(random.normal(size=3)))
    step_m = float(random.uniform(*_WRONG_TRANSLATION)) * median_depth_m
    centre_m = points_m.flatten(0, 1).median(dim=0).values
    return scale * (points_m - centre_m) @ R.T + centre_m + step_m * direction


def _pose_error(settings: NoiseSettings, median_depth_m: float, random: np.random.Generator) -> Tensor:
    turn, step = random.normal(size=3) / math.sqrt(3.0), random.normal(size=3) / math.sqrt(3.0)
    T = torch.eye(4, dtype=torch.float64)
    T[:3, :3] = _rotation(turn, math.radians(settings.rotation_deg) * float(np.linalg.norm(turn)))
    T[:3, 3] = settings.translation * median_depth_m * torch.from_numpy(step)
    return T


def _draw_floaters(
    settings: NoiseSettings, shape: tuple[int, int], random: np.random.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Which pixels float, their shift along the ray (share of it), and across (vector, share of depth)."""
    height, width = shape
    count = round(settings.floater_share * height * width)
    centres = torch.from_numpy(random.uniform(size=(_BLOBS, 2)) * (width, height))
    size = torch.from_numpy(random.uniform(0.5, 1.5, size=_BLOBS))
    pixels = pixel_centres(height, width, dtype=torch.float64).reshape(-1, 2)
    # Pixels nearest to a blob's centre, by that blob's size, until there are enough of them.
    distance, blob = (torch.cdist(pixels, centres) / size).min(dim=1)
    floaters = torch.zeros(height * width, dtype=torch.bool)
    floaters[distance.argsort(stable=True)[:count]] = True

    magnitude = random.uniform(*settings.floater_shift, size=_BLOBS)
    along = random.uniform(size=_BLOBS) < _BLOB_ALONG_RAY_SHARE
    angle = random.uniform(0.0, 2.0 * np.pi, size=_BLOBS)
    across = np.stack([np.cos(angle), np.sin(angle), np.zeros(_BLOBS)], axis=-1)
    shift_along = torch.from_numpy(np.where(along, magnitude * np.where(angle < np.pi, 1.0, -1.0), 0.0))
    shift_across = torch.from_numpy(np.where(along[:, None], 0.0, magnitude[:, None] * across))
    return (
        floaters.reshape(shape),
        torch.where(floaters, shift_along[blob], 0.0).reshape(shape),
        torch.where(floaters[:, None], shift_across[blob], 0.0).reshape(*shape, 3),
    )


def _smooth_field(random: np.random.Generator, shape: tuple[int, int], knots: tuple[int, int]) -> Tensor:
    """A smooth random field of mean 0 and standard deviation 1."""
    rows, columns = random.integers(knots[0], knots[1] + 1, size=2).tolist()
    grid = torch.from_numpy(random.normal(size=(1, 1, rows, columns)))
    field = functional.interpolate(grid, size=shape, mode="bicubic", align_corners=True)[0, 0]
    return (field - field.mean()) / field.std(correction=0)


def _shares(values: Tensor) -> Tensor:
    """Share of the others that each value exceeds, within 0 and 1."""
    shares = torch.empty(values.numel(), dtype=torch.float64)
    shares[values.flatten().argsort(stable=True)] = (torch.arange(values.numel()) + 0.5).double() / values.numel()
    return shares.reshape(values.shape)


def _normal_scores(values: Tensor) -> Tensor:
    """The values replaced, in their order, by those of a normal distribution."""
    return torch.special.ndtri(_shares(values))


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def _rotation(axis: np.ndarray, angle_rad: float) -> Float64[Tensor, "3 3"]:
    x, y, z = _unit(axis).tolist()
    cross = torch.tensor([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]], dtype=torch.float64)
    return torch.linalg.matrix_exp(angle_rad * cross)
