"""What is being looked at: one frozen value, from which all that is drawn follows."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lora3d_ns.scene_io.details import SceneDetails
from lora3d_ns.types import Scene, Sim3
from lora3d_ns.viewer.cloud import (
    ViewedCloud,
    cloud_before,
    cloud_of_details,
    cloud_of_scene,
    learning_changed,
    typical_depth,
)
from lora3d_ns.viewer.colours import ColourBy
from lora3d_ns.viewer.frames import laid_over, moved_poses, shown_from_world
from lora3d_ns.viewer.pairs import ViewedPair, pairs_of

_DEFAULT_CUTOFF = 0.1
_SLIDER_QUANTILE = 0.99


@dataclass(frozen=True, eq=False, kw_only=True)
class Viewed:
    """A scene, made ready to be looked at. Nothing of it changes while one looks, until a scale is set.

    Attributes:
        scene: As it lies on disk.
        details: Beside it; None for a scene without.
        cloud: Of the finished scene, in its world.
        before: Of the scene before learning, laid over the other; None where there is none or it is the same.
        pairs: Worst first.
        shown: From the world to what is shown.
        T_shown_camera: Poses of the finished cameras in what is shown.
        T_shown_before: Those before learning, laid over the others.
        cutoff: The least weight of the scene's own cloud.
        most_weight: The largest one worth asking for.
    """

    scene: Scene
    details: SceneDetails | None
    cloud: ViewedCloud
    before: ViewedCloud | None
    pairs: tuple[ViewedPair, ...]
    shown: Sim3
    T_shown_camera: Float[Tensor, "views 4 4"]
    T_shown_before: Float[Tensor, "views 4 4"] | None
    cutoff: float
    most_weight: float


@dataclass(frozen=True, kw_only=True)
class ViewState:
    """What is switched on.

    Attributes:
        colour: What the cloud is coloured by.
        pair: Index of the pair that is coloured, in `Viewed.pairs`.
        least_weight: Points that weigh less are hidden.
        point_size: Of the points, in shares of what closes the gaps.
        before: Whether the scene before learning is shown.
        photos, names, pairs, only_bad: Whether photos, their names, pairs, and no good pairs are shown.
        photo_size: Of the photos, in shares of the usual size.
        photo: The photo from whose place one looks; photos and pairs are not drawn then.
        picking: Whether a click picks a point.
        picks: The points that were picked, in what is shown.
    """

    colour: ColourBy = "photo"
    pair: int = 0
    least_weight: float = 0.0
    point_size: float = 1.0
    before: bool = False
    photos: bool = True
    names: bool = False
    pairs: bool = True
    only_bad: bool = False
    photo_size: float = 1.0
    photo: int | None = None
    picking: bool = False
    picks: tuple[tuple[float, float, float], ...] = ()


def viewed_scene(scene: Scene, details: SceneDetails | None, *, most_points: int) -> Viewed:
    """All that can be shown of a scene.

    Args:
        scene: The scene.
        details: What lies beside it.
        most_points: In either cloud.
    """
    unit = typical_depth(scene) if details is None else details.diagnosis.unit
    before = T_before = None
    if details is None:
        cloud = cloud_of_scene(scene, most_points=most_points)
    else:
        cloud = cloud_of_details(scene, details, most_points=most_points)
    cutoff = _cutoff(scene) if details is not None else 0.0
    believed = cloud.points[cloud.weights >= cutoff]
    believed = believed if len(believed) else cloud.points
    centre = believed.double().median(dim=0).values if len(believed) else torch.zeros(3).double()
    shown = shown_from_world(scene.cameras, centre, unit)
    if details is not None and details.learning is not None and learning_changed(scene, details):
        earlier = details.learning.before
        over = laid_over(earlier.cameras, earlier.diagnosis.unit, scene.cameras, unit)
        before = cloud_before(details, over, most_points=most_points)
        T_before = moved_poses(earlier.cameras.T_world_camera, shown.compose(over))
    sample = cloud.weights[:: max(1, len(cloud) // 100_000)]
    most = float(torch.quantile(sample, _SLIDER_QUANTILE)) if len(sample) else 1.0
    return Viewed(
        scene=scene,
        details=details,
        cloud=cloud,
        before=before,
        pairs=pairs_of(details),
        shown=shown,
        T_shown_camera=moved_poses(scene.cameras.T_world_camera, shown),
        T_shown_before=T_before,
        cutoff=cutoff,
        most_weight=max(most, cutoff, 0.01),
    )


def picked_length(viewed: Viewed, state: ViewState) -> float | None:
    """Between the two picked points, in the scene's unit; None before there are two, or where they are one."""
    if len(state.picks) < 2:
        return None
    first, second = state.picks
    length = math.dist(first, second) / float(viewed.shown.scale)
    return length if length > 0 else None


def _cutoff(scene: Scene) -> float:
    settings = scene.provenance.get("settings")
    cutoff = settings.get("point_cutoff") if isinstance(settings, Mapping) else None
    if isinstance(cutoff, (int, float)) and math.isfinite(cutoff) and cutoff >= 0:
        return float(cutoff)
    return _DEFAULT_CUTOFF
