"""Part of a scene: by weight, and by a box."""

from dataclasses import dataclass, replace

import torch

from lora3d_ns.errors import InvalidDataError, SettingsError
from lora3d_ns.types import Scene

Corner = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class CropSettings:
    """Which points are kept.

    Attributes:
        least_weight: Points that weigh less go.
        box: Two opposite corners in the world's frame and unit; points outside go. None keeps all.
    """

    least_weight: float = 0.0
    box: tuple[Corner, Corner] | None = None

    def __post_init__(self) -> None:
        if not self.least_weight >= 0:
            raise SettingsError(f"a least weight of {self.least_weight}", way_out="Use 0 or a positive number")
        if self.box is not None and not all(low < high for low, high in zip(*self.box, strict=True)):
            raise SettingsError(
                f"a box from {self.box[0]} to {self.box[1]}",
                way_out="Give the corner with the smaller coordinates first, each smaller than the other corner's",
            )


def cropped(scene: Scene, settings: CropSettings) -> Scene:
    """The scene with the points that are kept; cameras stay.

    Raises:
        InvalidDataError: No point is left.
    """
    kept = scene.point_weights >= settings.least_weight
    if settings.box is not None:
        low, high = (torch.tensor(corner, dtype=scene.points.dtype) for corner in settings.box)
        kept &= ((scene.points >= low) & (scene.points <= high)).all(dim=1)
    if not bool(kept.any()):
        raise InvalidDataError(
            f"none of the scene's {len(scene.points)} points is left", way_out="Lower the weight or widen the box"
        )
    return replace(
        scene,
        points=scene.points[kept],
        colors=scene.colors[kept],
        point_weights=scene.point_weights[kept],
        point_views=scene.point_views[kept],
    )
