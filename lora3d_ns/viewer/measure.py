"""Two points and the true distance between them: the scene's scale."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from lora3d_ns.errors import SettingsError, StorageError
from lora3d_ns.photo_scene import PHOTOS_FILE, SCENE_SUBFOLDER
from lora3d_ns.scene_io.details import BeforeLearning, LearningDetails, SceneDetails
from lora3d_ns.scene_io.scenes import DETAILS_FILE, PICTURE_FILE, SCENE_FILE, save_scene
from lora3d_ns.types import Cameras, Scene

_NEAR_RAY_DEG, _FAR_RAY_DEG = 0.5, 3.0
_SAME_SURFACE = 1.05
_HALF_PRECISION = (1e-2, 6e4)
"""Between these the largest value of a map must lie for float16 to hold it, see `lora3d_ns.scene_details`."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A length that somebody knows.

    Attributes:
        length: Between two points, in the unit that the scene shall have.
        shown_length: The same in the unit that it has.
    """

    length: float
    shown_length: float

    def __post_init__(self) -> None:
        for length in (self.length, self.shown_length):
            if not 0 < length < math.inf:
                raise SettingsError(
                    f"a length of {length:g} sets no scale",
                    way_out="Pick two points that are apart, and type their true distance",
                )

    @property
    def factor(self) -> float:
        """By which all lengths of the scene grow."""
        return self.length / self.shown_length


def point_on_ray(
    points: Float[Tensor, "points 3"], origin: Float[Tensor, "3"], direction: Float[Tensor, "3"]
) -> int | None:
    """The point that somebody means who clicks: on the nearest surface within half a degree, the one next to the ray.

    Args:
        points: The points that are visible.
        origin: Of the ray.
        direction: Its direction, of any length.

    Returns:
        Its index. Where nothing is within half a degree, that of the point with the smallest angle; None if that is
        more than three degrees, or all points lie behind.
    """
    apart = points.double() - origin.double()
    ray = direction.double() / direction.double().norm()
    along = apart @ ray
    off = (apart - along[:, None] * ray).norm(dim=1)
    angle = torch.rad2deg(torch.atan2(off, along))
    angle = torch.where((along > 0) & torch.isfinite(angle), angle, torch.inf)
    if not len(points) or not bool((angle <= _FAR_RAY_DEG).any()):
        return None
    near = angle <= _NEAR_RAY_DEG
    if bool(near.any()):
        nearest = float(along[near].min())
        angle = torch.where(near & (along <= _SAME_SURFACE * nearest), angle, torch.inf)
    return int(angle.argmin())


def rescaled_scene(scene: Scene, measured: Measured) -> Scene:
    """The scene with all lengths multiplied, and in its provenance under `scale` how they became known."""
    known = {
        "known": True,
        "by": "two points picked in the viewer",
        "length": measured.length,
        "length_before": measured.shown_length,
    }
    return dataclasses.replace(
        scene,
        cameras=_rescaled_cameras(scene.cameras, measured.factor),
        points=scene.points * measured.factor,
        provenance={**scene.provenance, "scale": known},
    )


def rescaled_details(details: SceneDetails, factor: float) -> SceneDetails:
    """The details with all lengths multiplied; from now on the unit is a known one."""
    before = None if details.learning is None else details.learning.before
    # What both scenes share is held once, here and in the file.
    shared: dict[int, Tensor] = {}

    def longer(maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        for values in maps:
            if id(values) not in shared:
                shared[id(values)] = _rescaled_map(values, factor)
        return tuple(shared[id(values)] for values in maps)

    learning: LearningDetails | None = details.learning
    if learning is not None and before is not None:
        moved: BeforeLearning = dataclasses.replace(
            before,
            cameras=_rescaled_cameras(before.cameras, factor),
            depths=longer(before.depths),
            diagnosis=dataclasses.replace(before.diagnosis, unit=before.diagnosis.unit * factor),
        )
        learning = dataclasses.replace(learning, before=moved)
    return dataclasses.replace(
        details,
        depths=longer(details.depths),
        residuals=longer(details.residuals),
        diagnosis=dataclasses.replace(details.diagnosis, unit=details.diagnosis.unit * factor, scale_known=True),
        learning=learning,
    )


def scale_known(scene: Scene, details: SceneDetails | None) -> bool:
    """Whether the scene's unit is a given one: by the alignment, or by two points picked here."""
    said = scene.provenance.get("scale")
    measured = isinstance(said, Mapping) and said.get("known") is True
    return measured or (details is not None and details.diagnosis.scale_known)


@dataclass(frozen=True, kw_only=True)
class Stamp:
    """How a scene's files looked when they were read: what else was written since would be lost.

    Attributes:
        files: Time in nanoseconds and size of each file.
    """

    files: tuple[tuple[int, int] | None, ...]


def stamp_of(folder: Path) -> Stamp:
    """The stamp of a scene as it lies there now."""
    found: list[tuple[int, int] | None] = []
    for name in (SCENE_FILE, DETAILS_FILE):
        try:
            status = (folder / name).stat()
            found.append((status.st_mtime_ns, status.st_size))
        except OSError:
            found.append(None)
    return Stamp(files=tuple(found))


def write_scale(
    folder: Path, scene: Scene, details: SceneDetails | None, measured: Measured, *, stamp: Stamp
) -> tuple[Scene, SceneDetails | None, Stamp]:
    """Writes the scene with its new scale over the old one, all at once; its picture, which has no scale, stays.

    Args:
        folder: Of the scene.
        scene: As it was read.
        details: As they were read.
        measured: The length that is known.
        stamp: Of the folder when it was read.

    Returns:
        What lies there now, and its stamp.

    Raises:
        StorageError: The folder cannot be written, holds other files, or another scene by now; or the scene is part of
            a folder of photos, where splats hang on its scale.
    """
    if folder.resolve().name == SCENE_SUBFOLDER and (folder.resolve().parent / PHOTOS_FILE).exists():
        raise StorageError(
            "this scene is part of a folder of photos for training: held-out cameras and splats hang on its scale",
            way_out="Reconstruct the photos by `lora3d reconstruct` and set the scale of that scene",
            path=folder,
        )
    if stamp_of(folder) != stamp:
        raise StorageError(
            "another scene was written here since this one was opened", way_out="Open the viewer again", path=folder
        )
    new_scene = rescaled_scene(scene, measured)
    new_details = None if details is None else rescaled_details(details, measured.factor)
    picture = folder / PICTURE_FILE
    drawn = picture.read_bytes() if picture.is_file() else None
    save_scene(
        new_scene,
        folder,
        draw=None if drawn is None else lambda path: path.write_bytes(drawn),
        details=new_details,
    )
    return new_scene, new_details, stamp_of(folder)


def _rescaled_cameras(cameras: Cameras, factor: float) -> Cameras:
    T = cameras.T_world_camera.clone()
    T[:, :3, 3] *= factor
    return dataclasses.replace(cameras, T_world_camera=T)


def _rescaled_map(values: Tensor, factor: float) -> Tensor:
    """In the same precision, but where float16 would not hold it any more."""
    longer = values.float() * factor
    if values.dtype != torch.float16:
        return longer.to(values.dtype)
    least, most = _HALF_PRECISION
    largest = float(longer.abs().nan_to_num(0.0).max()) if longer.numel() else 0.0
    return longer.half() if largest == 0.0 or least <= largest <= most else longer
