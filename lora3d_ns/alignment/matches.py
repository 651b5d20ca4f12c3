"""Which pixels of two photos show the same point.

Candidates come from SIFT on the photos themselves, and, where that finds too little, from a search where the point
maps say to look (`lora3d_ns.alignment.guided_matches`). What does not fit one rigid motion between the two photos is
dropped. Nothing here is random.
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from lora3d_ns.alignment.guided_matches import (
    Flow,
    GuidedSettings,
    KnownGeometry,
    SearchedPhoto,
    deviation_px,
    predicted_flow,
    prepare_photo,
    refine,
    search_both_ways,
)
from lora3d_ns.alignment.noise import noise_share
from lora3d_ns.alignment.verification import PairMatches, Verified, verify
from lora3d_ns.conventions import PixelAffine
from lora3d_ns.errors import InvalidDataError, SettingsError
from lora3d_ns.geometry.camera import focal_from_points
from lora3d_ns.photos.decoding import load_source_image
from lora3d_ns.progress import progress_bar
from lora3d_ns.types import PairPrediction, PairPredictions, Views


@dataclass(frozen=True, kw_only=True)
class MatchSettings:
    """How photos are matched.

    Attributes:
        sift: Whether SIFT looks for candidates.
        guided: How the search around the point maps' prediction works: one try after the other, while a pair has less
            than `enough`; the later ones for noisy photos. Empty for SIFT alone.
        long_side_px: Photos are shrunk to this long side for SIFT; those below an eighth are enlarged.
        features: Most SIFT features of a photo.
        ratio: A SIFT match must be so much nearer (in descriptors) than the second nearest.
        epipolar_px: Network pixels from the epipolar line (Sampson) at most.
        most_log10_chance: SIFT matches whose agreement is less likely to be chance than this (`Verified.log10_chance`)
            are believed even where the point maps contradict.
        deviation_share: Distance from the point maps' prediction, as a share of the photo's long side, at which other
            SIFT matches are refused.
        least_matches: A pair with fewer is left out.
        enough: A pair with so many verified SIFT matches is not searched any further.
        few: A pair with fewer matches after a search is searched again with the next settings of `guided`.
    """

    sift: bool = True
    guided: tuple[GuidedSettings, ...] = (
        GuidedSettings(),
        GuidedSettings(blur_px=1.2, half_patch_px=6, radius_px=8, least_zncc=0.75),
        GuidedSettings(blur_px=1.4, half_patch_px=5, radius_px=10, least_zncc=0.65, least_noise=0.25),
        GuidedSettings(blur_px=2.0, half_patch_px=6, radius_px=14, least_zncc=0.65, least_noise=0.25),
    )
    long_side_px: int = 1600
    features: int = 4096
    ratio: float = 0.8
    epipolar_px: float = 1.0
    most_log10_chance: float = -10.0
    deviation_share: float = 0.08
    least_matches: int = 12
    enough: int = 150
    few: int = 40

    def __post_init__(self) -> None:
        for name in ("long_side_px", "features", "least_matches", "enough", "few"):
            if getattr(self, name) < 1:
                raise SettingsError(f"{name} is {getattr(self, name)}", way_out="Use at least 1")
        if not 0 < self.ratio <= 1:
            raise SettingsError(f"ratio is {self.ratio}", way_out="Use a number between 0 and 1 such as 0.8")
        if not self.epipolar_px > 0:
            raise SettingsError(f"epipolar_px is {self.epipolar_px}", way_out="Use a positive number such as 1.0")


@dataclass(frozen=True, eq=False, kw_only=True)
class Matches:
    """Matches of all pairs that have enough.

    Attributes:
        pairs: By (i, j) with i < j.
        candidates: How many there were before verification, for each pair that was looked at.
        verified: How many of them passed, for the same pairs.
    """

    pairs: Mapping[tuple[int, int], PairMatches]
    candidates: Mapping[tuple[int, int], int] = field(default_factory=dict)
    verified: Mapping[tuple[int, int], int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for i, j in self.pairs:
            if not 0 <= i < j:
                raise InvalidDataError(f"matches of ({i}, {j})", way_out="Give each pair once, the smaller view first")


def match_views(
    views: Views,
    predictions: PairPredictions,
    settings: MatchSettings | None = None,
    *,
    show_progress: bool = True,
) -> Matches:
    """Matches of every pair of the graph, verified.

    Pairs are matched side by side, each in one thread, as many as torch uses; their number does not change the result.

    Args:
        views: Photos; read again at their own resolution where they are files.
        predictions: Point maps of the pairs to be matched.
        settings: How.
        show_progress: Whether to draw a bar.

    Raises:
        InvalidDataError: The predictions belong to other views.
        PhotoError: A photo's file can no longer be read.
    """
    settings = settings or MatchSettings()
    if predictions.graph.view_count != len(views):
        raise InvalidDataError(
            f"predictions of {predictions.graph.view_count} views for {len(views)} photos",
            way_out="Predict with these views",
        )
    maps = {edge: pair.to(torch.float32) for edge, pair in zip(predictions.graph.edges, predictions.pairs, strict=True)}
    everything = range(len(views))
    chosen = sorted({(min(edge), max(edge)) for edge in maps})

    def matched(pair: tuple[int, int]) -> Verified:
        i, j = pair
        sift = None if not settings.sift else _match_features(features[i], features[j], settings.ratio)
        flows = (predicted_flow(maps[j, i]), predicted_flow(maps[i, j])) if {(i, j), (j, i)} <= set(maps) else None
        photos = []
        for level, prepared in levels:
            first, second = prepared[i], prepared[j]
            if first is not None and second is not None:
                photos.append((level, first, second))
        refined = views.source_from_network[j].scale_x < 2.0
        return _match_pair(sift, flows, photos, (K_network[i], K_network[j]), settings, refined)

    pairs, candidate_counts, verified_counts = {}, {}, {}
    steps = len(chosen) + (len(views) if settings.sift else 0)
    with progress_bar("Matching photos", steps, shown=show_progress) as advance, _one_thread_each() as pool:
        K_network = list(pool.map(lambda view: _intrinsics(views, view, maps), everything))
        noise = list(pool.map(noise_share, views.images))
        levels = [
            (level, list(pool.map(lambda view, level=level: _prepared(views, view, level, noise), everything)))
            for level in settings.guided
        ]
        features: list[_Features] = []
        if settings.sift:
            for found in pool.map(lambda view: _sift_features(views, view, settings), everything):
                features.append(found)
                advance(1)
        for pair, verified in zip(chosen, pool.map(matched, chosen), strict=True):
            candidate_counts[pair], verified_counts[pair] = verified.candidates, len(verified.inliers)
            if len(verified.inliers) >= settings.least_matches:
                pairs[pair] = verified.inliers
            advance(1)
    return Matches(pairs=pairs, candidates=candidate_counts, verified=verified_counts)


@contextmanager
def _one_thread_each() -> Iterator[ThreadPoolExecutor]:
    """As many threads as torch uses, in each of which its operations use one."""
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(threads, initializer=lambda: torch.set_num_threads(1))
    try:
        yield pool
    finally:
        # What has not begun is not begun any more, after an error or an interruption.
        pool.shutdown(cancel_futures=True)
        # New threads would take over what the last ones set.
        torch.set_num_threads(threads)


def _prepared(views: Views, view: int, level: GuidedSettings, noise: Sequence[float]) -> SearchedPhoto | None:
    """A photo as a search wants it; None if it is too clear for it."""
    if noise[view] < level.least_noise:
        return None
    return prepare_photo(views.images[view], views.masks[view], level)


def _match_pair(
    sift: tuple[Tensor, Tensor] | None,
    flows: tuple[Flow, Flow] | None,
    photos: list[tuple[GuidedSettings, SearchedPhoto, SearchedPhoto]],
    K: tuple[Tensor, Tensor],
    settings: MatchSettings,
    refined: bool,
) -> Verified:
    def check() -> Verified:
        return verify(_joined(found), K, settings.epipolar_px)

    found: list[tuple[Tensor, Tensor]] = []
    verified = check()
    if sift is not None:
        found = [sift]
        verified = check()
        trusted = verified.log10_chance < settings.most_log10_chance
        if trusted:
            found = [(verified.inliers.pixels_first, verified.inliers.pixels_second)]
        if flows is not None:
            # Repeated patterns match in step with each other; the point maps know which of them it was.
            deviation = deviation_px(*flows, *found[0])
            limit = settings.deviation_share * max(flows[0].weights.shape)
            if trusted:
                limit = max(limit, 3.0 * float(deviation.median()))
            found = [(found[0][0][deviation < limit], found[0][1][deviation < limit])]
            if photos and refined:
                # SIFT's places are exact to a fraction of its own blur only, which is large for enlarged photos.
                level, first, second = photos[0]
                at, good = refine(first, second, flows[0], *found[0], level)
                found = [(found[0][0][good], at[good])]
        elif not trusted:
            found = []
        verified = check()
    if flows is None:
        return verified
    for index, (level, first, second) in enumerate(photos):
        if len(verified.inliers) >= (settings.enough if index == 0 else settings.few):
            break
        if len(verified.inliers) < 2 * settings.least_matches:
            found = _guided(first, second, flows, level, None) + found
            verified = check()
        if len(verified.inliers) >= settings.least_matches and verified.F_second_first is not None:
            known = KnownGeometry(
                F_target_source=verified.F_second_first,
                pixels_source=verified.inliers.pixels_first,
                pixels_target=verified.inliers.pixels_second,
            )
            found = _guided(first, second, flows, level, known) + found
            verified = check()
    return verified


def _guided(
    first: SearchedPhoto,
    second: SearchedPhoto,
    flows: tuple[Flow, Flow],
    settings: GuidedSettings,
    known: KnownGeometry | None,
) -> list[tuple[Tensor, Tensor]]:
    """Matches of the first photo's keypoints, and of the second's."""
    of_first = search_both_ways(first, second, flows[0], flows[1], settings, known)
    reverse = None if known is None else known.reversed()
    of_second = search_both_ways(second, first, flows[1], flows[0], settings, reverse)
    return [of_first, (of_second[1], of_second[0])]


def _joined(found: list[tuple[Tensor, Tensor]]) -> PairMatches:
    """All of them, without those that say the same as an earlier one (both ends within half a pixel)."""
    empty = torch.zeros(0, 2, dtype=torch.float64)
    first = torch.cat([empty, *(pixels for pixels, _ in found)])
    second = torch.cat([empty, *(pixels for _, pixels in found)])
    ends = torch.cat([first, second], dim=1)
    same = (ends[:, None] - ends[None]).abs().amax(dim=2) < 0.5
    new = ~torch.tril(same, diagonal=-1).any(dim=1)
    return PairMatches(pixels_first=first[new], pixels_second=second[new])


def _intrinsics(views: Views, view: int, maps: Mapping[tuple[int, int], PairPrediction]) -> Tensor:
    """Intrinsics in network pixels: what is known, else the median focal length of the view's own point maps."""
    height, width = views.shapes[view]
    known = views.known_K[view]
    if known is not None:
        return views.source_from_network[view].K_network_from_source(known).double()
    focals = [
        focal_from_points(pair.points_first, pair.confidence_first + 1e-6) for (i, _), pair in maps.items() if i == view
    ]
    usable = [float(focal) for focal in focals if bool(torch.isfinite(focal)) and float(focal) > 0]
    focal = float(np.median(usable)) if usable else 1.2 * max(height, width)
    return torch.tensor([[focal, 0.0, width / 2], [0.0, focal, height / 2], [0.0, 0.0, 1.0]], dtype=torch.float64)


# --- SIFT ---------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, kw_only=True)
class _Features:
    """Network pixels and descriptors of unit length."""

    pixels: Tensor
    descriptors: Tensor


def _sift_features(views: Views, view: int, settings: MatchSettings) -> _Features:
    import cv2

    path = views.source_paths[view]
    network_size = (views.shapes[view][1], views.shapes[view][0])
    if path is not None and path.exists():
        color, affine = load_source_image(path), views.source_from_network[view]
    else:
        pixels = (views.images[view].clamp(0.0, 1.0) * 255.0).round().to(torch.uint8)
        color = pixels.permute(1, 2, 0).contiguous().numpy()
        affine = PixelAffine(scale_x=1.0, scale_y=1.0, offset_x_px=0.0, offset_y_px=0.0)
    grey = cv2.cvtColor(np.ascontiguousarray(color), cv2.COLOR_RGB2GRAY)
    height, width = grey.shape
    small = max(height, width) < 256
    factor = (
        4.0 if max(height, width) <= 128 else 2.0 if small else min(1.0, settings.long_side_px / max(height, width))
    )
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    if size != (width, height):
        grey = cv2.resize(grey, size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC)
    sift = cv2.SIFT.create(
        nfeatures=settings.features,
        contrastThreshold=0.01 if small else 0.03,
        # Without it OpenCV's positions are a quarter pixel off.
        enable_precise_upscale=True,
    )
    keypoints, descriptors = sift.detectAndCompute(grey, np.full(grey.shape, 255, dtype=np.uint8))
    if not keypoints or descriptors is None:
        return _Features(pixels=torch.zeros(0, 2, dtype=torch.float64), descriptors=torch.zeros(0, 128))
    # OpenCV's first pixel centre is at 0.
    at = torch.tensor([keypoint.pt for keypoint in keypoints], dtype=torch.float64) + 0.5
    at = at * torch.tensor([width / size[0], height / size[1]], dtype=torch.float64)
    at = affine.network_from_source(at)
    # RootSIFT (Arandjelovic and Zisserman, 2012): Hellinger's distance instead of Euclid's.
    values = torch.from_numpy(descriptors)
    values = (values / values.sum(dim=1, keepdim=True).clamp(min=1e-12)).sqrt()
    inside = ((at >= 0) & (at < torch.tensor(network_size))).all(dim=1)
    mask = views.masks[view]
    if mask is not None:
        columns, rows = at.floor().long().clamp(min=0).unbind(dim=1)
        inside &= mask[rows.clamp(max=network_size[1] - 1), columns.clamp(max=network_size[0] - 1)]
    # Photos' own order of features is by octave; several orientations at one place are kept, the matches joined later.
    return _Features(pixels=at[inside], descriptors=values[inside])


def _match_features(first: _Features, second: _Features, ratio: float) -> tuple[Tensor, Tensor]:
    """Mutually nearest features that are clearly nearer than the second nearest."""
    if len(first.pixels) < 2 or len(second.pixels) < 2:
        return first.pixels[:0], second.pixels[:0]
    similarity = first.descriptors @ second.descriptors.T
    (best, second_best), nearest = similarity.topk(2, dim=1).values.T, similarity.argmax(dim=1)
    mutual = similarity.argmax(dim=0)[nearest] == torch.arange(len(nearest))
    # Squared distances of unit vectors.
    clear = (2.0 - 2.0 * best).clamp(min=0.0) < ratio**2 * (2.0 - 2.0 * second_best)
    kept = mutual & clear
    return first.pixels[kept], second.pixels[nearest[kept]]
