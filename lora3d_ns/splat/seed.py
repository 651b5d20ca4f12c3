"""Scene -> initial Gaussians: one for each pixel that is believed and that no better view has said already."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float32, Int, Int32, UInt8
from torch import Tensor

from lora3d_ns.errors import InvalidDataError, SettingsError
from lora3d_ns.types import Cameras, Scene

COARSER_BY = 1.5
"""A point may take the place of another of pixels finer than its own by this factor at most."""


@dataclass(frozen=True, kw_only=True)
class SeedSettings:
    """Which points become Gaussians, and with what size and opacity.

    Attributes:
        weight_cutoff: Points below this calibrated weight make none.
        redundancy: A point is left out where a point that stays, of a view that comes before its own, lies on the same
            surface: relative difference of depth there. 0 keeps all. Views come in the order of their mean weight.
        at_most: Number of Gaussians; the points of the largest weight are taken.
        footprint: Standard deviation of a Gaussian in pixel spacings of its view: sigma = footprint * s z / f with
            the spacing s in source pixels, depth z and focal length f.
        opacity_low, opacity_high: Opacity of a point without any weight, and of one with a large one.
        half_weight: Weight at which half the way from low to high is made: o = low + (high - low) w / (w + half).
        slowest_rate: Learning rate of a point of large weight as a share of that of a point without:
            r = slowest + (1 - slowest) half / (w + half).
    """

    weight_cutoff: float = 0.1
    redundancy: float = 0.02
    at_most: int = 1_000_000
    footprint: float = 0.7
    opacity_low: float = 0.1
    opacity_high: float = 0.8
    half_weight: float = 0.5
    slowest_rate: float = 0.5

    def __post_init__(self) -> None:
        if not (self.weight_cutoff >= 0 and self.redundancy >= 0 and self.at_most >= 1):
            raise SettingsError(
                f"weight_cutoff {self.weight_cutoff}, redundancy {self.redundancy}, at_most {self.at_most}",
                way_out="Use numbers that are not negative, and one Gaussian at least",
            )
        if not (0 < self.footprint < math.inf and 0 < self.half_weight < math.inf and 0 < self.slowest_rate <= 1):
            raise SettingsError(
                f"footprint {self.footprint}, half_weight {self.half_weight}, slowest_rate {self.slowest_rate}",
                way_out="Use positive numbers, and a slowest rate of 1 at most",
            )
        if not 0 < self.opacity_low <= self.opacity_high < 1:
            raise SettingsError(
                f"opacities {self.opacity_low} to {self.opacity_high}", way_out="Use 0 < low <= high < 1"
            )


@dataclass(frozen=True, eq=False, kw_only=True)
class SeedGaussians:
    """Isotropic Gaussians to begin with, in the scene's world.

    Attributes:
        points: Centres.
        colors: sRGB.
        sigmas: Standard deviations, world unit.
        opacities: Between 0 and 1.
        rates: Share of the learning rate that each centre deserves.
        chosen: Indices of the scene's points they came from.
    """

    points: Float32[Tensor, "gaussians 3"]
    colors: UInt8[Tensor, "gaussians 3"]
    sigmas: Float32[Tensor, " gaussians"]
    opacities: Float32[Tensor, " gaussians"]
    rates: Float32[Tensor, " gaussians"]
    chosen: Int[Tensor, " gaussians"]


def seed_gaussians(scene: Scene, settings: SeedSettings | None = None) -> SeedGaussians:
    """Gaussians to begin with.

    Raises:
        InvalidDataError: No point of the scene has enough weight.
    """
    settings = settings or SeedSettings()
    believed = (scene.point_weights >= settings.weight_cutoff).nonzero()[:, 0]
    if len(believed) == 0:
        raise InvalidDataError(
            f"no point of the scene has a weight of {settings.weight_cutoff} or more",
            way_out="Lower the weight cut-off, or take photos that overlap more",
        )
    views = scene.point_views[believed].long()
    pixels, depths = project_to_own_views(scene.points[believed], views, scene.cameras)
    spacings_px = torch.tensor([pixel_spacing_px(pixels[views == view]) for view in range(len(scene.names))])
    weights = scene.point_weights[believed]
    kept = torch.ones(len(believed), dtype=torch.bool)
    if settings.redundancy > 0:
        kept = ~redundant_points(
            scene.points[believed], views, weights, pixels, depths, scene.cameras, spacings_px, settings.redundancy
        )
    chosen = kept.nonzero()[:, 0]
    if len(chosen) > settings.at_most:
        # Stable, so that equal weights keep the points' order.
        order = torch.argsort(weights[chosen], descending=True, stable=True)[: settings.at_most]
        chosen = chosen[order].sort().values
    focal = scene.cameras.K[:, [0, 1], [0, 1]].mean(dim=1).float()[views[chosen]]
    weight = weights[chosen]
    nearness = weight / (weight + settings.half_weight)
    return SeedGaussians(
        points=scene.points[believed][chosen],
        colors=scene.colors[believed][chosen],
        sigmas=settings.footprint * spacings_px[views[chosen]] * depths[chosen] / focal,
        opacities=settings.opacity_low + (settings.opacity_high - settings.opacity_low) * nearness,
        rates=settings.slowest_rate + (1.0 - settings.slowest_rate) * (1.0 - nearness),
        chosen=believed[chosen],
    )


def project_to_own_views(
    points: Float[Tensor, "points 3"], views: Int[Tensor, " points"], cameras: Cameras
) -> tuple[Float32[Tensor, "points 2"], Float32[Tensor, " points"]]:
    """Source pixel and depth of each point in the view it was seen in."""
    pixels = torch.empty(len(points), 2)
    depths = torch.empty(len(points))
    for view in range(len(cameras)):
        own = views == view
        pixels[own], depths[own] = project(points[own], cameras, view)
    return pixels, depths


def project(
    points: Float[Tensor, "points 3"], cameras: Cameras, view: int
) -> tuple[Float32[Tensor, "points 2"], Float32[Tensor, " points"]]:
    """Source pixel and depth of points in one view; pixels are meaningless where the depth is not positive."""
    T_camera_world = torch.linalg.inv(cameras.T_world_camera[view].double()).float()
    seen = points.float() @ T_camera_world[:3, :3].T + T_camera_world[:3, 3]
    depth = seen[:, 2]
    K = cameras.K[view].float()
    safe = torch.where(depth > 0, depth, torch.ones_like(depth))
    return (seen @ K.T)[:, :2] / safe[:, None], depth


def pixel_spacing_px(pixels: Float32[Tensor, "points 2"]) -> float:
    """Source pixels between neighbouring points of one view, which lie on a grid with holes: the median distance to
    the nearest neighbour. 1 where there are fewer than two."""
    from scipy.spatial import KDTree

    if len(pixels) < 2:
        return 1.0
    distances, _ = KDTree(pixels.numpy()).query(pixels.numpy(), k=2)
    return max(float(torch.from_numpy(distances[:, 1]).median()), 1e-3)


def redundant_points(
    points: Float32[Tensor, "points 3"],
    views: Int[Tensor, " points"],
    weights: Float32[Tensor, " points"],
    pixels: Float32[Tensor, "points 2"],
    depths: Float32[Tensor, " points"],
    cameras: Cameras,
    spacings_px: Float32[Tensor, " views"],
    tolerance: float,
) -> Tensor:
    """True for points on a surface that a view with more weight sees too, about as finely.

    A point of view j falls onto a cell of view i's grid, whose own point there has depth d; it is redundant where
    `|z - d| < tolerance * d`, and where i's pixels are not much coarser there: a close-up keeps its detail. A point
    that is redundant itself makes no other redundant, so that errors do not add up from view to view.

    Args:
        points, views, weights: The points, the view each was seen in, and its weight.
        pixels, depths: Their projections into their own views.
        cameras: Of all views.
        spacings_px: Distance of neighbouring points in each view's pixels.
        tolerance: Relative difference of depth.
    """
    count = len(cameras)
    mean_weight = torch.tensor(
        [float(weights[views == v].mean()) if bool((views == v).any()) else 0.0 for v in range(count)]
    )
    order = torch.argsort(mean_weight, descending=True, stable=True).tolist()
    focal = cameras.K[:, [0, 1], [0, 1]].mean(dim=1).float()
    fineness = depths * spacings_px[views] / focal[views]
    redundant = torch.zeros(len(points), dtype=torch.bool)
    grids: list[tuple[int, _Grid]] = []
    for view in order:
        own = (views == view).nonzero()[:, 0]
        for other, grid in grids:
            own = own[~redundant[own]]
            if len(own) == 0:
                break
            pixel, depth = project(points[own], cameras, other)
            index = _points_under(grid, pixel, depth > 0)
            hit = index >= 0
            d = depths[index.clamp_min(0)]
            fine = fineness[index.clamp_min(0)] <= COARSER_BY * fineness[own]
            redundant[own] |= hit & fine & ((depth - d).abs() < tolerance * d)
        own = own[~redundant[own]]
        if len(own) > 0:
            grids.append((view, _grid(pixels, own, float(spacings_px[view]))))
    return redundant


@dataclass(frozen=True, eq=False, kw_only=True)
class _Grid:
    """The points of one view by cells, whose middles are where network pixels are.

    Attributes:
        points: For each cell the point that lies in it, -1 where none does.
        corner_px: The middle of the first cell.
        spacing_px: Side of a cell.
    """

    points: Int32[Tensor, "rows columns"]
    corner_px: Float32[Tensor, "2"]
    spacing_px: float

    def cells(self, pixels: Float32[Tensor, "points 2"]) -> Int[Tensor, "points 2"]:
        """Column and row of each pixel."""
        return ((pixels - self.corner_px) / self.spacing_px).nan_to_num(-1.0).clamp(-1.0, 1e6).round().long()


def _grid(pixels: Float32[Tensor, "points 2"], own: Int[Tensor, " own"], spacing_px: float) -> _Grid:
    corner_px = pixels[own].amin(dim=0)
    columns, rows = ((pixels[own].amax(dim=0) - corner_px) / spacing_px).round().int().tolist()
    points = torch.full((rows + 1, columns + 1), -1, dtype=torch.int32)
    grid = _Grid(points=points, corner_px=corner_px, spacing_px=spacing_px)
    column, row = grid.cells(pixels[own]).unbind(dim=1)
    points[row, column] = own.int()
    return grid


def _points_under(
    grid: _Grid, pixels: Float32[Tensor, "points 2"], in_front: Bool[Tensor, " points"]
) -> Int[Tensor, " points"]:
    """The point of the grid under each pixel, -1 where there is none."""
    rows, columns = grid.points.shape
    column, row = grid.cells(pixels).unbind(dim=1)
    inside = in_front & (column >= 0) & (row >= 0) & (column < columns) & (row < rows)
    found = torch.full((len(pixels),), -1, dtype=torch.long)
    found[inside] = grid.points[row[inside], column[inside]].long()
    return found
