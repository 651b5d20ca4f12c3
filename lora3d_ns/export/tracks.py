"""Which pixels of which photos show the same point: tracks, from points that every photo has of its own."""

import logging
from dataclasses import dataclass

import torch
from jaxtyping import Float32, Float64, Int64, UInt8
from torch import Tensor

from lora3d_ns.errors import InvalidDataError, SettingsError
from lora3d_ns.types import Cameras, Scene

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrackSettings:
    """Which pixels belong together.

    Attributes:
        most_points: So many tracks are kept, drawn at random; each is kept or dropped as a whole. Half of them are
            shared out among the photos, so that none is left without.
        least_photos: Points that fewer photos show are left out: bundle adjustment refuses points of one photo.
        depth_share: Two photos show the same point where their depths differ by no more than this share.
        seed: Of the draw.
    """

    most_points: int = 100_000
    least_photos: int = 2
    depth_share: float = 0.03
    seed: int = 0

    def __post_init__(self) -> None:
        if self.most_points < 1 or self.least_photos < 1 or not self.depth_share > 0:
            raise SettingsError(
                f"{self.most_points} points of {self.least_photos} photos, depths alike up to {self.depth_share}",
                way_out="Use one or more of each, and a positive share",
            )


@dataclass(frozen=True, eq=False, kw_only=True)
class Tracks:
    """Points, each with the pixels that show it.

    Attributes:
        points: In the world: of a track the weighted mean of what its photos say.
        colors: Of the photo that began it.
        weights: Sum over the photos.
        of_point: For each observation, which point it is of; in increasing order.
        views, pixels: And which photo shows it where, in source pixels.
    """

    points: Float64[Tensor, "points 3"]
    colors: UInt8[Tensor, "points 3"]
    weights: Float32[Tensor, " points"]
    of_point: Int64[Tensor, " observations"]
    views: Int64[Tensor, " observations"]
    pixels: Float64[Tensor, "observations 2"]


def tracks_of(scene: Scene, settings: TrackSettings | None = None) -> Tracks:
    """Tracks over the photos, begun in their order: a pixel that is part of an earlier track begins none.

    A point joins what another photo has nearest to where it appears there, if that is no further away than the photo's
    own points are from each other, and as deep.

    Raises:
        InvalidDataError: No point is seen by so many photos.
    """
    settings = settings or TrackSettings()
    pixels, depths = own_pixels(scene)
    of_view = [torch.nonzero(scene.point_views == view).flatten() for view in range(len(scene.cameras))]
    spacing = [_spacing_px(pixels[own]) for own in of_view]
    taken = torch.zeros(len(scene.points), dtype=torch.bool)
    members: list[tuple[Tensor, Tensor]] = []  # (which point began the track, which one joined it)
    for view in range(len(scene.cameras)):
        begun = of_view[view][~taken[of_view[view]]]
        taken[begun] = True
        members.append((begun, begun))
        for other in range(view + 1, len(scene.cameras)):
            if len(begun) == 0 or len(of_view[other]) == 0:
                continue
            seen, depth = project(scene.points[begun].double(), scene.cameras, other)
            near_px, nearest = _nearest(pixels[of_view[other]], seen)
            joining = of_view[other][nearest]
            alike = (depth > 0) & (near_px <= spacing[other])
            alike &= (depths[joining] - depth).abs() <= settings.depth_share * depth
            alike &= ~taken[joining]
            first, joined = begun[alike], joining[alike]
            # Of several points that land on one pixel the first is taken.
            joined, order = joined.sort(stable=True)
            new = torch.ones(len(joined), dtype=torch.bool)
            new[1:] = joined[1:] != joined[:-1]
            members.append((first[order][new], joined[new]))
            taken[joined[new]] = True
    return _tracks(scene, pixels, torch.cat([a for a, _ in members]), torch.cat([b for _, b in members]), settings)


def _tracks(scene: Scene, pixels: Tensor, first: Tensor, joined: Tensor, settings: TrackSettings) -> Tracks:
    beginnings, length = torch.unique(first, return_counts=True)
    beginnings = beginnings[length >= settings.least_photos]
    if len(beginnings) == 0:
        raise InvalidDataError(
            f"no point is seen by {settings.least_photos} photos",
            way_out="Export the cloud as ply, or crop less",
        )
    _say_who_has_none(scene, first, joined, beginnings)
    if len(beginnings) > settings.most_points:
        beginnings = _drawn(scene, first, joined, beginnings, settings)
    place = torch.full((len(scene.points),), -1, dtype=torch.int64)
    place[beginnings] = torch.arange(len(beginnings))
    kept = place[first] >= 0
    of_point, joined = place[first][kept], joined[kept]
    # In order of points, within one in order of photos.
    order = torch.argsort(of_point * len(scene.cameras) + scene.point_views[joined].long())
    of_point, joined = of_point[order], joined[order]
    weights = scene.point_weights[joined].double().clamp(min=1e-6)
    total = torch.zeros(len(beginnings), dtype=torch.float64).index_add(0, of_point, weights)
    points = torch.zeros(len(beginnings), 3, dtype=torch.float64)
    points = points.index_add(0, of_point, weights[:, None] * scene.points[joined].double()) / total[:, None]
    return Tracks(
        points=points,
        colors=scene.colors[beginnings],
        weights=total.float(),
        of_point=of_point,
        views=scene.point_views[joined].long(),
        pixels=pixels[joined],
    )


def _drawn(scene: Scene, first: Tensor, joined: Tensor, beginnings: Tensor, settings: TrackSettings) -> Tensor:
    """Some of the tracks, by the points that began them: of each photo its share, the rest as chance has it."""
    generator = torch.Generator().manual_seed(settings.seed)
    order = torch.randperm(len(beginnings), generator=generator)
    rank = torch.full((len(scene.points),), len(beginnings), dtype=torch.int64)
    rank[beginnings[order]] = torch.arange(len(beginnings))
    share = max(1, settings.most_points // (2 * len(scene.cameras)))
    wanted = torch.zeros(len(beginnings), dtype=torch.bool)
    for view in range(len(scene.cameras)):
        own = rank[first[scene.point_views[joined] == view]]
        wanted[own[own < len(beginnings)].sort().values[:share]] = True
    # Those of some photo's share first, each group in the order of the draw.
    chosen = torch.argsort(~wanted, stable=True)[: settings.most_points]
    return beginnings[order[chosen]].sort().values


def _say_who_has_none(scene: Scene, first: Tensor, joined: Tensor, beginnings: Tensor) -> None:
    of_tracks = torch.isin(first, beginnings)
    count = torch.bincount(scene.point_views[joined[of_tracks]].long(), minlength=len(scene.cameras))
    without = [name for name, points in zip(scene.names, count.tolist(), strict=True) if points == 0]
    if without:
        logger.warning(
            "%d photos have no point in common with another and get none (such as %s); --least-photos 1 gives them "
            "points of their own, which bundle adjustment refuses",
            len(without),
            without[0],
        )


def own_pixels(scene: Scene) -> tuple[Float64[Tensor, "points 2"], Float64[Tensor, " points"]]:
    """Source pixel and depth of each point in the photo that it comes from."""
    pixels = torch.empty(len(scene.points), 2, dtype=torch.float64)
    depths = torch.empty(len(scene.points), dtype=torch.float64)
    for view in range(len(scene.cameras)):
        own = scene.point_views == view
        pixels[own], depths[own] = project(scene.points[own].double(), scene.cameras, view)
    return pixels, depths


def project(
    points: Float64[Tensor, "points 3"], cameras: Cameras, view: int
) -> tuple[Float64[Tensor, "points 2"], Float64[Tensor, " points"]]:
    """Source pixels and depths of world points in a photo; pixels mean nothing where the depth is not positive."""
    T_camera_world = torch.linalg.inv(cameras.T_world_camera[view].double())
    seen = points @ T_camera_world[:3, :3].T + T_camera_world[:3, 3]
    depth = seen[:, 2]
    return (seen @ cameras.K[view].double().T)[:, :2] / torch.where(depth > 0, depth, 1.0)[:, None], depth


def _nearest(pixels: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """(distance in pixels, which one) of the nearest of some pixels to each wanted place."""
    from scipy.spatial import KDTree

    distance, index = KDTree(pixels.numpy()).query(wanted.numpy())
    return torch.from_numpy(distance), torch.from_numpy(index).long()


def _spacing_px(pixels: Tensor) -> float:
    """Median distance from one of a photo's points to the next; 0 for one point alone."""
    from scipy.spatial import KDTree

    if len(pixels) < 2:
        return 0.0
    distances, _ = KDTree(pixels.numpy()).query(pixels.numpy(), k=2)
    return float(torch.from_numpy(distances[:, 1]).median())
