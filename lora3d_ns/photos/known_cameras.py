"""Cameras that the user knows already, given to the photos they belong to.

`lora3d_ns.photos.camera_files` reads the files and says which pixels their cameras mean; here they are matched by name,
brought to the photo's own resolution, and turned upright with it.
"""

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float64
from torch import Tensor

from lora3d_ns.conventions import ExifOrientation, upright_camera_from_stored
from lora3d_ns.errors import KnownCameraError
from lora3d_ns.photos.camera_entries import KnownCamera, KnownCameras, pinhole
from lora3d_ns.photos.files import PhotoFile


@dataclass(frozen=True, kw_only=True)
class PhotoPixels:
    """What has to be known of a photo to give it its camera.

    Attributes:
        name: Its name among the views.
        path: The file.
        stored_size: (width, height) as stored.
        orientation: EXIF orientation of the stored pixels.
    """

    name: str
    path: Path
    stored_size: tuple[int, int]
    orientation: ExifOrientation


def cameras_of_photos(
    known: KnownCameras, photos: Sequence[PhotoPixels]
) -> tuple[tuple[Float64[Tensor, "3 3"] | None, ...], tuple[Float64[Tensor, "4 4"] | None, ...]]:
    """Intrinsics in upright source pixels and poses of upright cameras; None where the file does not tell.

    An entry belongs to a photo by its path relative to the file, else by its name among the views, else by its file
    name alone; where no photo has an entry's name, also by the name without ending: a photo may have been converted.

    Raises:
        KnownCameraError: An entry fits several photos or the other way round, declares a size of another shape, or
            belongs to a mirrored photo; or no entry fits any photo.
    """
    matched = _matching_cameras(known, photos)
    photo_of_entry: dict[str, PhotoPixels] = {}
    for photo, camera in zip(photos, matched, strict=True):
        if camera is not None and photo_of_entry.setdefault(camera.entry, photo) is not photo:
            raise KnownCameraError(
                f"entry {camera.entry!r} fits both {photo_of_entry[camera.entry].path} and {photo.path}",
                way_out="Write the entries with their folders",
                path=known.path,
            )
    _require_any(known, photo_of_entry, photos[0].name)
    upright = [
        (None, None) if camera is None else _upright_camera(known, camera, photo)
        for photo, camera in zip(photos, matched, strict=True)
    ]
    return tuple(K for K, _ in upright), tuple(T_world_camera for _, T_world_camera in upright)


def listed_photos(known: KnownCameras, photos: Sequence[PhotoFile]) -> tuple[PhotoFile, ...]:
    """Those of the photos that have an entry, in their order: for whoever wants the images of a file and no others.

    Raises:
        KnownCameraError: Several entries fit one photo; or no entry fits any.
    """
    listed = [
        photo for photo, camera in zip(photos, _matching_cameras(known, photos), strict=True) if camera is not None
    ]
    _require_any(known, listed, photos[0].name)
    return tuple(listed)


def _require_any(known: KnownCameras, found: object, example_name: str) -> None:
    if not found:
        example = f" (an entry here: {known.cameras[0].entry!r})" if known.cameras else ""
        raise KnownCameraError(
            f"no entry has the name of a photo such as {example_name!r}{example}",
            way_out="Give the cameras of these photos, under their file names",
            path=known.path,
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class _Entry:
    camera: KnownCamera
    name: str
    path: str | None

    @property
    def stem(self) -> str:
        return os.path.splitext(self.name)[0]  # noqa: PTH122 (also of names that are no paths)


@dataclass(frozen=True, kw_only=True)
class _Photo:
    """A photo's names, each also without its ending."""

    path: str
    name: str
    file: str

    @property
    def bare(self) -> tuple[str, str, str]:
        path, name, file = (os.path.splitext(text)[0] for text in (self.path, self.name, self.file))  # noqa: PTH122
        return path, name, file


_Way = Callable[[_Entry, _Photo], bool]

_BY_NAME: tuple[_Way, ...] = (
    lambda entry, photo: entry.path == photo.path,
    lambda entry, photo: entry.name == photo.name,
    lambda entry, photo: entry.name.endswith(f"/{photo.name}"),
    # Some transforms.json leave the ending out.
    lambda entry, photo: entry.path == photo.bare[0],
    lambda entry, photo: entry.name.rsplit("/", 1)[-1] in (photo.file, photo.bare[2]),
)
"""How an entry can be meant for a photo, the surest way first."""

_CONVERTED: tuple[_Way, ...] = (
    lambda entry, photo: entry.stem in (photo.name, photo.bare[1]),
    lambda entry, photo: entry.stem.endswith((f"/{photo.name}", f"/{photo.bare[1]}")),
    lambda entry, photo: entry.stem.rsplit("/", 1)[-1] in (photo.file, photo.bare[2]),
)
"""The same for a photo that was converted: `IMG_1.HEIC` to `IMG_1.jpg` or `IMG_1.HEIC.png`."""


def _matching_cameras(
    known: KnownCameras, photos: Sequence[PhotoPixels] | Sequence[PhotoFile]
) -> list[KnownCamera | None]:
    entries = []
    for camera in known.cameras:
        name = camera.entry.replace("\\", "/").removeprefix("./")
        path = None if known.root is None else _absolute(os.path.join(_absolute(known.root), name))  # noqa: PTH118
        entries.append(_Entry(camera=camera, name=name, path=path))
    named = [_Photo(path=_absolute(photo.path), name=photo.name, file=photo.path.name) for photo in photos]
    matched = [_match(known, entries, photo, _BY_NAME) for photo in named]
    left = [entry for entry in entries if entry.camera not in matched]
    return [
        _match(known, left, photo, _CONVERTED) if camera is None else camera
        for camera, photo in zip(matched, named, strict=True)
    ]


def _match(known: KnownCameras, entries: Sequence[_Entry], photo: _Photo, ways: Sequence[_Way]) -> KnownCamera | None:
    for fits in ways:
        candidates = [entry.camera for entry in entries if fits(entry, photo)]
        if len(candidates) > 1:
            raise KnownCameraError(
                f"entries {candidates[0].entry!r} and {candidates[1].entry!r} both fit the photo {photo.name}",
                way_out="Remove one of them, or write them with their folders",
                path=known.path,
            )
        if candidates:
            return candidates[0]
    return None


def _absolute(path: Path | str) -> str:
    return os.path.abspath(path)  # noqa: PTH100 (by name, links not followed)


def _upright_camera(
    known: KnownCameras, camera: KnownCamera, photo: PhotoPixels
) -> tuple[Float64[Tensor, "3 3"] | None, Float64[Tensor, "4 4"] | None]:
    width, height = photo.stored_size
    upright_size = (height, width) if photo.orientation >= 5 else (width, height)
    K, T_world_camera, pixels = camera.K, camera.T_world_camera, known.pixels
    if camera.angle_x_rad is not None:
        size = photo.stored_size if pixels == "stored" else upright_size
        focal_px = size[0] / 2 / math.tan(camera.angle_x_rad / 2)
        K = pinhole(focal_px, focal_px, size[0] / 2, size[1] / 2)
    if camera.size is not None:
        if pixels == "stored" and not _same_shape(camera.size, photo.stored_size):
            pixels = "upright"
        size = photo.stored_size if pixels == "stored" else upright_size
        if not _same_shape(camera.size, size):
            raise KnownCameraError(
                f"entry {camera.entry!r} is for {camera.size[0]}x{camera.size[1]} pixels and the photo {photo.path} "
                f"has {size[0]}x{size[1]}, another shape",
                way_out="Give the cameras of these very photos; crops have cameras of their own",
                path=known.path,
            )
        if K is not None:
            K = torch.diag(K.new_tensor([size[0] / camera.size[0], size[1] / camera.size[1], 1.0])) @ K
    if pixels == "upright":
        return K, T_world_camera
    # Without intrinsics the pose alone turns; any K serves.
    turned_K, T_world_camera = upright_camera_from_stored(
        torch.eye(3, dtype=torch.float64) if K is None else K, T_world_camera, photo.orientation, photo.stored_size
    )
    return None if K is None else turned_K, T_world_camera


def _same_shape(size: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether one size is the other scaled, up to a pixel of rounding in the smaller one."""
    (small_width, small_height), (large_width, large_height) = sorted((size, other))
    return (
        abs(small_height - large_height * small_width / large_width) <= 1
        or abs(small_width - large_width * small_height / large_height) <= 1
    )
