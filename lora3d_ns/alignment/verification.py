"""Which matches of two photos fit one rigid motion between their cameras."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

_SEED = 0


@dataclass(frozen=True, eq=False, kw_only=True)
class PairMatches:
    """Corresponding pixels of two photos, in continuous network pixels."""

    pixels_first: Float64[Tensor, "matches 2"]
    pixels_second: Float64[Tensor, "matches 2"]

    def __len__(self) -> int:
        """Number of matches."""
        return len(self.pixels_first)


@dataclass(frozen=True, eq=False, kw_only=True)
class Verified:
    """Matches that fit one rigid motion.

    Attributes:
        inliers: The matches.
        candidates: How many there were to choose from.
        F_second_first: Fundamental matrix of the motion, `x_second^T F x_first = 0` in network pixels; None where
            nothing was found.
        log10_chance: Logarithm of the number of motions that so many of so many unrelated matches are expected to fit
            by chance (Moisan and Stival, 2004).
    """

    inliers: PairMatches
    candidates: int
    F_second_first: Float64[Tensor, "3 3"] | None
    log10_chance: float = 0.0


def verify(
    matches: PairMatches, K: tuple[Float64[Tensor, "3 3"], Float64[Tensor, "3 3"]], threshold_px: float
) -> Verified:
    """Which matches fit one rigid motion, and the fundamental matrix of it (`x_second^T F x_first = 0`).

    The best of MAGSAC++ (Barath et al., 2020) with an essential matrix, whose focal lengths are those of the point
    maps, and with a fundamental matrix, which has to explain a tenth more. Matches of the best homography stay too:
    they are all there is where the camera only turned or the scene is flat.
    """
    import cv2

    count = len(matches)
    none = torch.zeros(count, dtype=torch.bool)
    if count < 8:
        return Verified(inliers=_chosen(matches, none), candidates=count, F_second_first=None)
    first, second = matches.pixels_first.numpy(), matches.pixels_second.numpy()
    parameters = cv2.UsacParams()
    parameters.threshold = threshold_px
    parameters.confidence = 0.9999
    parameters.maxIterations = 2000
    parameters.score = cv2.SCORE_METHOD_MAGSAC
    parameters.loMethod = cv2.LOCAL_OPTIM_SIGMA
    parameters.sampler = cv2.SAMPLING_UNIFORM
    parameters.randomGeneratorState = _SEED
    parameters.isParallel = False

    no_distortion = np.zeros(5)
    best, best_score, F_best = none, 0.0, None
    for kind, handicap in (("essential", 1.0), ("fundamental", 1.1)):
        try:
            if kind == "essential":
                found, _ = cv2.findEssentialMat(
                    first, second, K[0].numpy(), K[1].numpy(), no_distortion, no_distortion, parameters
                )
            else:
                found, _ = cv2.findFundamentalMat(first, second, parameters)
        except cv2.error:
            continue
        if found is None or found.shape != (3, 3) or not np.isfinite(found).all():
            continue
        F_found = torch.from_numpy(found.astype(np.float64))
        if kind == "essential":
            F_found = torch.linalg.inv(K[1]).T @ F_found @ torch.linalg.inv(K[0])
        inliers = sampson_px(F_found, matches) < threshold_px
        score = float(inliers.sum()) / handicap
        if score > best_score:
            best, best_score, F_best = inliers, score, F_found
    # Of a photo's area the band around an epipolar line has about this share.
    width, height = 2.0 * float(K[1][0, 2]), 2.0 * float(K[1][1, 2])
    return Verified(
        inliers=_chosen(matches, best),
        candidates=count,
        F_second_first=F_best,
        log10_chance=log10_chance(
            int(best.sum()), count, 2.0 * threshold_px * math.hypot(width, height) / (width * height)
        ),
    )


def log10_chance(inliers: int, count: int, share: float) -> float:
    """Logarithm of the expected number of essential matrices that so many of `count` unrelated matches fit by chance.

    `10 (n - 5) C(n, k) C(k, 5) share^(k - 5)`, ten being the solutions of five matches (Moisan and Stival, 2004).
    """
    if inliers <= 5:
        return 0.0
    return (
        math.log10(10 * (count - 5))
        + math.log10(math.comb(count, inliers))
        + math.log10(math.comb(inliers, 5))
        + (inliers - 5) * math.log10(min(share, 1.0))
    )


def _chosen(matches: PairMatches, mask: Tensor) -> PairMatches:
    return PairMatches(pixels_first=matches.pixels_first[mask], pixels_second=matches.pixels_second[mask])


def sampson_px(F_second_first: Float64[Tensor, "3 3"], matches: PairMatches) -> Float64[Tensor, " matches"]:
    """Distance to the epipolar geometry to first order: `|x'^T F x| / |((F x)_1, (F x)_2, (F^T x')_1, (F^T x')_2)|`."""
    one = torch.ones(len(matches), 1, dtype=torch.float64)
    x, y = torch.cat([matches.pixels_first, one], dim=1), torch.cat([matches.pixels_second, one], dim=1)
    forward, backward = x @ F_second_first.T, y @ F_second_first
    gradient = (forward[:, :2].square().sum(dim=1) + backward[:, :2].square().sum(dim=1)).sqrt()
    return (y * forward).sum(dim=1).abs() / gradient.clamp(min=1e-12)
