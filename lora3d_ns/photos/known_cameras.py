"""Cameras that the user knows already, given to the photos they belong to.

`lora3d_ns.photos.camera_files` reads the files and says which pixels their cameras mean; here they are matched by name,
brought to the photo's own resolution, and turned upright with it.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float64
from torch import Tensor

from lora3d_ns.conventions import ExifOrientation, upright_camera_from_stored
from lora3d_ns.errors import KnownCameraError
from lora3d_ns.photos.camera_files import KnownCamera, KnownCameras


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
    name alone.

    Raises:
        KnownCameraError: An entry fits several photos or the other way round, declares a size of another shape, or
            belongs to a mirrored photo; or no entry fits any photo.
    """
    matched = [_matching_camera(known, photo) for photo in photos]
    photo_of_entry: dict[str, PhotoPixels] = {}
    for photo, camera in zip(photos, matched, strict=True):
        if camera is not None and photo_of_entry.setdefault(camera.entry, photo) is not photo:
            raise KnownCameraError(
                f"entry {camera.entry!r} fits both {photo_of_entry[camera.entry].path} and {photo.path}",
                way_out="Write the entries with their folders",
                path=known.path,
            )
    if not photo_of_entry:
        example = f" (an entry here: {known.cameras[0].entry!r})" if known.cameras else ""
        raise KnownCameraError(
            f"no entry has the name of a photo such as {photos[0].name!r}{example}",
            way_out="Give the cameras of these photos, under their file names",
            path=known.path,
        )
    upright = [
        (None, None) if camera is None else _upright_camera(known, camera, photo)
        for photo, camera in zip(photos, matched, strict=True)
    ]
    return tuple(K for K, _ in upright), tuple(T_world_camera for _, T_world_camera in upright)


def _matching_camera(known: KnownCameras, photo: PhotoPixels) -> KnownCamera | None:
    photo_path = os.path.abspath(photo.path)  # noqa: PTH100 (by name, links not followed)
    entries = [(camera, camera.entry.replace("\\", "/")) for camera in known.cameras]
    by_path = [] if known.root is None else [c for c, entry in entries if _joined(known.root, entry) == photo_path]
    by_name = [camera for camera, entry in entries if entry.removeprefix("./") == photo.name]
    # Some transforms.json leave the ending out.
    names = (photo.path.name, photo.path.stem)
    by_file_name = [camera for camera, entry in entries if entry.rsplit("/", 1)[-1] in names]
    for candidates in (by_path, by_name, by_file_name):
        if len(candidates) > 1:
            raise KnownCameraError(
                f"entries {candidates[0].entry!r} and {candidates[1].entry!r} both fit the photo {photo.name}",
                way_out="Remove one of them, or write them with their folders",
                path=known.path,
            )
        if candidates:
            return candidates[0]
    return None


def _joined(root: Path, entry: str) -> str:
    return os.path.normpath(os.path.join(os.path.abspath(root), entry))  # noqa: PTH100, PTH118 (by name only)


def _upright_camera(
    known: KnownCameras, camera: KnownCamera, photo: PhotoPixels
) -> tuple[Float64[Tensor, "3 3"] | None, Float64[Tensor, "4 4"] | None]:
    width, height = photo.stored_size
    upright_size = (height, width) if photo.orientation >= 5 else (width, height)
    K, T_world_camera, pixels = camera.K, camera.T_world_camera, known.pixels
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
