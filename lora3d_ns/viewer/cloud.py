"""The points that the viewer shows, with all that they can be coloured by."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float32, Int64, UInt8
from torch import Tensor

from lora3d_ns.geometry.camera import points_from_depth
from lora3d_ns.scene_io.details import SceneDetails
from lora3d_ns.types import Cameras, Scene, Sim3

_SPACING_PIXELS = 10_000


@dataclass(frozen=True, eq=False, kw_only=True)
class ViewedCloud:
    """Points of one scene, those that weigh too little for the scene's own cloud among them.

    Attributes:
        points: In the finished scene's world.
        colors: sRGB, as photographed.
        weights: Calibrated weights.
        views: The photo that each is from.
        confidences: C = log(raw confidence), averaged over the pairs; None where nobody wrote it down.
        residual_shares: How far the pairs' points are off, as a share of the scene's depth; None as above.
        spacing: Typical distance between neighbours, in the world's unit.
        pixels: How many there were before some were left out to keep the browser quick.
    """

    points: Float32[Tensor, "points 3"]
    colors: UInt8[Tensor, "points 3"]
    weights: Float32[Tensor, " points"]
    views: Int64[Tensor, " points"]
    confidences: Float32[Tensor, " points"] | None
    residual_shares: Float32[Tensor, " points"] | None
    spacing: float
    pixels: int

    def __len__(self) -> int:
        return len(self.points)


def cloud_of_scene(scene: Scene, *, most_points: int) -> ViewedCloud:
    """The scene's own cloud, for a scene without details.

    Args:
        scene: The scene.
        most_points: Beyond these, points are left out at random.
    """
    finite = torch.isfinite(scene.points).all(dim=1)
    kept = _thinned(finite, most_points)
    points, views = scene.points[kept], scene.point_views[kept].long()
    unit = typical_depth(scene)
    pixels = max(1.0, len(scene.points) / max(1, len(scene.names)))
    return ViewedCloud(
        points=points,
        colors=scene.colors[kept],
        weights=scene.point_weights[kept],
        views=views,
        confidences=None,
        residual_shares=None,
        # As if the photos were square and saw a right angle.
        spacing=2.0 * unit / math.sqrt(pixels),
        pixels=len(scene.points),
    )


def cloud_of_details(scene: Scene, details: SceneDetails, *, most_points: int) -> ViewedCloud:
    """All static, unmasked pixels of the finished scene, whatever they weigh.

    Args:
        scene: Its cameras.
        details: Its maps.
        most_points: Beyond these, points are left out at random.
    """
    return _cloud(
        details,
        scene.cameras,
        details.depths,
        details.weights,
        details.moving,
        most_points=most_points,
        confidences=details.confidences,
        residual_shares=_shares(details.residuals, details.diagnosis.unit),
    )


def cloud_before(details: SceneDetails, after_from_before: Sim3, *, most_points: int) -> ViewedCloud | None:
    """The same pixels as they lay before the network learnt from them; None where it learnt nothing.

    Args:
        details: With what was before.
        after_from_before: Lays that scene over the finished one.
        most_points: As above; the same pixels are left out as long as the same count.
    """
    if details.learning is None:
        return None
    before = details.learning.before
    return _cloud(
        details,
        before.cameras,
        before.depths,
        before.weights,
        before.moving,
        most_points=most_points,
        moved=after_from_before,
    )


def visible(cloud: ViewedCloud, least_weight: float) -> Bool[Tensor, " points"]:
    """The points that weigh as much as this, or more; a weight of 0 is shown only when 0 is asked for."""
    return cloud.weights >= least_weight


def learning_changed(scene: Scene, details: SceneDetails | None) -> bool:
    """Whether there is a scene before learning that is another one than the finished scene."""
    if details is None or details.learning is None:
        return False
    before = details.learning.before
    return not torch.equal(before.cameras.T_world_camera, scene.cameras.T_world_camera) or not all(
        torch.equal(first, second) for first, second in zip(before.depths, details.depths, strict=True)
    )


def typical_depth(scene: Scene) -> float:
    """Median depth of the scene's points in the photos they are from; 1 where there is none."""
    poses = scene.cameras.T_world_camera.double()[scene.point_views.long()]
    depth = ((scene.points.double() - poses[:, :3, 3]) * poses[:, :3, 2]).sum(dim=1)
    depth = depth[torch.isfinite(depth) & (depth > 0)]
    return float(depth.median()) if len(depth) else 1.0


def _cloud(
    details: SceneDetails,
    cameras: Cameras,
    depths: Sequence[Float32[Tensor, "_ _"]],
    weights: Sequence[Float[Tensor, "_ _"]],
    moving: Sequence[Bool[Tensor, "_ _"]],
    *,
    most_points: int,
    moved: Sim3 | None = None,
    confidences: Sequence[Float[Tensor, "_ _"]] | None = None,
    residual_shares: Sequence[Float[Tensor, "_ _"]] | None = None,
) -> ViewedCloud:
    """Points of all pixels that count, thinned out before they are moved to where they lie."""
    counted = []
    for depth, moves, mask in zip(depths, moving, details.masks, strict=True):
        counts = torch.isfinite(depth) & (depth > 0) & ~moves
        counted.append((counts if mask is None else counts & mask).flatten())
    sizes = [len(counts) for counts in counted]
    kept = _thinned(torch.cat(counted), most_points).split(sizes)
    points, spacings, views = [], [], []
    for view, (depth, keep) in enumerate(zip(depths, kept, strict=True)):
        K = details.source_from_network[view].K_network_from_source(cameras.K[view]).float()
        T = cameras.T_world_camera[view].float()
        own = points_from_depth(depth, K).reshape(-1, 3)[keep]
        points.append(own @ T[:3, :3].T + T[:3, 3])
        spacings.append(own[:: max(1, len(own) * len(depths) // _SPACING_PIXELS), 2] / K[0, 0])
        views.append(torch.full((len(own),), view))
    world, spacing = torch.cat(points), torch.cat(spacings)
    length = float(spacing.median()) if len(spacing) else 1.0
    if moved is not None:
        world, length = moved.apply(world.double()).float(), length * float(moved.scale)

    def chosen(maps: Sequence[Tensor]) -> Tensor:
        return torch.cat([values.flatten(0, 1)[keep] for values, keep in zip(maps, kept, strict=True)])

    pixels, shown = int(sum(int(counts.sum()) for counts in counted)), max(1, len(world))
    return ViewedCloud(
        points=world,
        colors=chosen(details.images),
        weights=chosen(weights).float().nan_to_num(0.0),
        views=torch.cat(views),
        confidences=None if confidences is None else chosen(confidences).float(),
        residual_shares=None if residual_shares is None else chosen(residual_shares).float(),
        # Fewer points lie further apart.
        spacing=length * math.sqrt(max(1.0, pixels / shown)),
        pixels=pixels,
    )


def _shares(residuals: Sequence[Float[Tensor, "_ _"]], unit: float) -> tuple[Tensor, ...]:
    usable = 0 < unit < math.inf
    return tuple(residual.float() / unit if usable else torch.zeros_like(residual.float()) for residual in residuals)


def _thinned(counted: Bool[Tensor, " pixels"], most: int) -> Bool[Tensor, " pixels"]:
    """So many of those that count, the same ones each time."""
    count = int(counted.sum())
    if count <= most:
        return counted
    chosen = torch.randperm(count, generator=torch.Generator().manual_seed(0))[:most]
    kept = torch.zeros_like(counted)
    kept[counted.nonzero()[chosen, 0]] = True
    return kept
