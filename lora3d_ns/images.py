"""Files -> Views: photos upright, at network resolution, with masks, EXIF and known cameras.

Each photo keeps its own shape. Its long side becomes `PhotoSettings.size`; the short side follows with the same scale
and is then cropped or padded to a multiple of the patch. `Views.source_from_network` says exactly which part of the
source each network pixel shows, and `Views.cropped_fractions` what was lost.

All headers, masks and known cameras are checked before the first photo is decoded.
"""

import hashlib
import logging
import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float32
from PIL import Image
from torch import Tensor

from lora3d_ns.conventions import PixelAffine
from lora3d_ns.errors import DuplicatePhotoError, MaskError, PhotoShapeError, SettingsError, TooFewPhotosError
from lora3d_ns.photos.camera_files import read_known_cameras
from lora3d_ns.photos.decoding import decode_photo, load_source_image
from lora3d_ns.photos.files import (
    DEFAULT_MAX_MEGAPIXELS,
    PhotoFile,
    PhotoHeader,
    find_photos,
    read_header,
)
from lora3d_ns.photos.known_cameras import PhotoPixels, cameras_of_photos, listed_photos
from lora3d_ns.photos.masks import MaskFile, MaskMeaning, find_masks, load_mask, network_mask
from lora3d_ns.types import Views

__all__ = ["PhotoSettings", "SourcePhoto", "chosen_photos", "load_source_image", "load_source_photo", "load_views"]

logger = logging.getLogger(__name__)

# Above this share of lost pixels the log says so.
_NOTABLE_CROP = 0.01
# Decoded photos are large: more threads would cost memory rather than save time.
_MAX_DECODE_THREADS = 4


@dataclass(frozen=True, kw_only=True)
class PhotoSettings:
    """How photos are read.

    Attributes:
        size: Long side at network resolution in pixels; a multiple of `patch_size`.
        patch_size: Both sides at network resolution are multiples of it.
        fit: What happens to the short side, which is no multiple of the patch in general. "crop" takes the largest
            centred part and loses less than one patch; "pad" keeps all pixels, repeats those at the edge, and masks
            what was added.
        alpha_as_mask: Pixels less than half opaque do not count. Either way, what is not opaque is laid over
            mid-grey.
        mask_means: What white says in mask files: "keep" these pixels or "ignore" them.
        known_cameras: A COLMAP model folder, a nerfstudio transforms.json or a JSON file of ours with intrinsics
            and poses of some photos; see `lora3d_ns.photos.known_cameras`. None: nothing is known.
        only_listed: Take the photos that `known_cameras` lists, and no others.
        every: Take each n-th photo only, the first among them (frames of a video).
        at_most: Take this many at most, evenly spread, the first and the last among them; applied after `every`.
        max_megapixels: Refuse photos whose header announces more.
        at_least: Refuse fewer photos.
    """

    size: int = 512
    patch_size: int = 16
    fit: Literal["crop", "pad"] = "crop"
    alpha_as_mask: bool = True
    mask_means: MaskMeaning = "keep"
    known_cameras: Path | None = None
    only_listed: bool = False
    every: int = 1
    at_most: int | None = None
    max_megapixels: float = DEFAULT_MAX_MEGAPIXELS
    at_least: int = 2

    def __post_init__(self) -> None:
        _check(
            not self.only_listed or self.known_cameras is not None,
            "only listed photos are wanted, of no list",
            "Name known_cameras, which lists them",
        )
        _check(self.patch_size >= 1, f"patch_size is {self.patch_size}", "Use 16, as the DUSt3R family does")
        _check(
            self.size >= self.patch_size and self.size % self.patch_size == 0,
            f"size {self.size} is no positive multiple of patch_size {self.patch_size}",
            f"Use for example {max(1, round(self.size / self.patch_size)) * self.patch_size}",
        )
        _check(self.fit in ("crop", "pad"), f"fit is {self.fit!r}", 'Use "crop" or "pad"')
        _check(self.mask_means in ("keep", "ignore"), f"mask_means is {self.mask_means!r}", 'Use "keep" or "ignore"')
        _check(self.every >= 1, f"every is {self.every}", "Use 1 to take all photos")
        _check(
            self.at_most is None or self.at_most >= 2,
            f"at_most is {self.at_most}",
            "Use at least 2, or None to take all photos",
        )
        _check(
            1 <= self.at_least <= (self.at_most or self.at_least),
            f"at_least is {self.at_least}, at_most {self.at_most}",
            "Use 1 or more, and not more than at_most",
        )
        _check(
            math.isfinite(self.max_megapixels) and self.max_megapixels > 0,
            f"max_megapixels is {self.max_megapixels}",
            f"Use a positive number such as {DEFAULT_MAX_MEGAPIXELS:g}",
        )


def _check(condition: bool, problem: str, way_out: str) -> None:
    if not condition:
        raise SettingsError(problem, way_out=way_out)


def load_views(source: Path | Sequence[Path], settings: PhotoSettings = PhotoSettings()) -> Views:
    """Photos as the network sees them, with everything needed to go back to the files.

    Args:
        source: A folder (its photos in natural order; those of its `images` folder where it has none itself), or a
            list of files (in this order).
        settings: How to read them.

    Raises:
        PhotoFolderError: The folder or a listed file is missing or cannot be read.
        NoPhotosError, TooFewPhotosError: None, or only one.
        EmptyPhotoError, NotAPhotoError, TruncatedPhotoError, PhotoTooLargeError, PhotoShapeError: A photo is broken,
            in no supported format, too large, or too elongated.
        DuplicatePhotoError: Two of them are the same.
        MaskError: A mask does not fit its photo or leaves nothing of it.
        KnownCameraError: The file with known cameras is broken or contradicts the photos.
        MissingPackageError: A package for this format is not installed.
    """
    photos = chosen_photos(source, settings)
    headers = [read_header(photo.path, max_megapixels=settings.max_megapixels) for photo in photos]
    plans = [plan_resize(header.upright_size, settings, path=header.path) for header in headers]
    _require_different_contents(photos)
    masks = find_masks(photos, headers, max_megapixels=settings.max_megapixels)
    known_K, known_T_world_camera = (None,) * len(photos), (None,) * len(photos)
    if settings.known_cameras is not None:
        known_K, known_T_world_camera = cameras_of_photos(
            read_known_cameras(settings.known_cameras),
            [
                PhotoPixels(
                    name=photo.name,
                    path=photo.path,
                    stored_size=header.stored_size,
                    orientation=header.orientation,
                )
                for photo, header in zip(photos, headers, strict=True)
            ],
        )

    with ThreadPoolExecutor(min(_MAX_DECODE_THREADS, os.cpu_count() or 1)) as threads:
        # Results, and the first error, come in the photos' order whichever thread is faster.
        pixels = list(threads.map(partial(_load_photo, settings=settings), headers, masks, plans))

    views = Views(
        names=tuple(photo.name for photo in photos),
        images=tuple(image for image, _ in pixels),
        masks=tuple(mask for _, mask in pixels),
        source_from_network=tuple(plan.source_from_network for plan in plans),
        source_sizes=tuple(header.upright_size for header in headers),
        source_paths=tuple(photo.path for photo in photos),
        focal_exif_px=tuple(header.exif.focal_px for header in headers),
        lens_groups=tuple(header.exif.lens_group for header in headers),
        known_K=known_K,
        known_T_world_camera=known_T_world_camera,
    )
    _log_what_was_cropped(views)
    return views


def chosen_photos(source: Path | Sequence[Path], settings: PhotoSettings) -> tuple[PhotoFile, ...]:
    """The files that `load_views` takes, none of them opened.

    Raises:
        PhotoFolderError, NoPhotosError, TooFewPhotosError, DuplicatePhotoError: As `load_views` does.
        KnownCameraError: Only listed photos are wanted, and none is listed, or the list cannot be read.
    """
    photos = find_photos(source)
    if settings.only_listed and settings.known_cameras is not None:
        photos = listed_photos(read_known_cameras(settings.known_cameras), photos)
    chosen = photos[:: settings.every]
    if settings.at_most is not None and len(chosen) > settings.at_most:
        last, steps = len(chosen) - 1, settings.at_most - 1
        # Rounded in integers: the first and the last exactly, no index twice.
        chosen = tuple(chosen[(2 * step * last + steps) // (2 * steps)] for step in range(settings.at_most))
    if len(chosen) < settings.at_least:
        photo_count = len(photos)
        if photo_count >= settings.at_least:
            raise TooFewPhotosError(
                f"every={settings.every} leaves {len(chosen)} of {photo_count} photos",
                way_out="Use a smaller value for every",
            )
        if photo_count > 1:
            raise TooFewPhotosError(
                f"there are {photo_count} photos, and {settings.at_least} are wanted",
                way_out="Add more",
                path=source if isinstance(source, Path) else None,
            )
        raise TooFewPhotosError(
            "there is one photo only",
            way_out="Add at least one more of the same scene, from another place",
            path=photos[0].path,
        )
    return chosen


def _require_different_contents(photos: Sequence[PhotoFile]) -> None:
    by_size: dict[int, list[Path]] = {}
    for photo in photos:
        by_size.setdefault(photo.path.stat().st_size, []).append(photo.path)
    for paths in by_size.values():
        if len(paths) < 2:
            continue
        first_with: dict[bytes, Path] = {}
        for path in paths:
            earlier = first_with.setdefault(hashlib.sha256(path.read_bytes()).digest(), path)
            if earlier is not path:
                raise DuplicatePhotoError(
                    f"the same photo as {earlier}, byte for byte", way_out="Remove one of the two", path=path
                )


# --- resizing -----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ResizePlan:
    """Shape of a photo at network resolution.

    Attributes:
        network_size: (width, height) of the network image.
        source_from_network: Where its pixels lie in the source photo.
    """

    network_size: tuple[int, int]
    source_from_network: PixelAffine


def plan_resize(source_size: tuple[int, int], settings: PhotoSettings, *, path: Path | None = None) -> ResizePlan:
    """Shape and affine of a photo of this size: the same scale in x and y, centred in both.

    Args:
        source_size: (width, height) of the upright source photo in pixels.
        settings: Size, patch and fit.
        path: Named in errors.

    Raises:
        PhotoShapeError: So elongated that its short side would be less than one patch.
    """
    size, patch = settings.size, settings.patch_size
    longest = max(source_size)
    scale = longest / size
    # In integers, so that a photo which fits exactly is neither cropped nor padded by a rounding error.
    round_up = longest * patch - 1 if settings.fit == "pad" else 0
    width, height = [(side * size + round_up) // (longest * patch) * patch for side in source_size]
    if min(source_size) * size < longest * patch:
        raise PhotoShapeError(
            f"a photo of {source_size[0]}x{source_size[1]} pixels is too elongated: at size {size} its short side "
            f"would be less than one patch of {patch}",
            way_out="Cut the panorama into overlapping photos, or leave it out",
            path=path,
        )
    return ResizePlan(
        network_size=(width, height),
        source_from_network=PixelAffine(
            scale_x=scale,
            scale_y=scale,
            offset_x_px=(source_size[0] - width * scale) / 2,
            offset_y_px=(source_size[1] - height * scale) / 2,
        ),
    )


def resize_to_network(color: Image.Image, plan: ResizePlan) -> Float32[Tensor, "3 height width"]:
    """The part of an RGB photo that the plan says, in 0 to 1; beyond its edge the outermost pixels are repeated.

    Shrinking filters with Lanczos' kernel stretched to the scale (no aliasing), enlarging is bicubic.
    """
    affine, (width, height) = plan.source_from_network, plan.network_size
    left, top = affine.offset_x_px, affine.offset_y_px
    right, bottom = left + width * affine.scale_x, top + height * affine.scale_y
    pad_x, pad_y = max(0, math.ceil(-left - 1e-6)), max(0, math.ceil(-top - 1e-6))
    if pad_x or pad_y:
        color = Image.fromarray(np.pad(np.asarray(color), ((pad_y, pad_y), (pad_x, pad_x), (0, 0)), mode="edge"))
    # Rounding must not carry the box over the edge, which Pillow refuses.
    box = (
        max(0.0, left + pad_x),
        max(0.0, top + pad_y),
        min(right + pad_x, color.width),
        min(bottom + pad_y, color.height),
    )
    resample = Image.Resampling.LANCZOS if affine.scale_x > 1 else Image.Resampling.BICUBIC
    resized = np.asarray(color.resize((width, height), resample=resample, box=box))
    return torch.from_numpy(resized.copy()).permute(2, 0, 1).to(torch.float32).contiguous() / 255.0


@dataclass(frozen=True, eq=False, kw_only=True)
class SourcePhoto:
    """An upright photo at its own resolution.

    Attributes:
        color: sRGB, mode RGB.
        counts: Pixels that count, by mask file and transparency; None where all do.
    """

    color: Image.Image
    counts: Bool[np.ndarray, "height width"] | None


def load_source_photo(header: PhotoHeader, mask_file: MaskFile | None, settings: PhotoSettings) -> SourcePhoto:
    """A photo exactly as `load_views` decodes it before resizing.

    Raises:
        MaskError: Its mask leaves nothing.
        PhotoError: As `decode_photo` does.
    """
    decoded = decode_photo(header)
    counts = None if mask_file is None else load_mask(mask_file, header, settings.mask_means)
    if decoded.alpha is not None and settings.alpha_as_mask:
        opaque = np.asarray(decoded.alpha) >= 128
        counts = opaque if counts is None else counts & opaque
    return SourcePhoto(color=decoded.color, counts=None if counts is None or counts.all() else counts)


def _load_photo(
    header: PhotoHeader, mask_file: MaskFile | None, plan: ResizePlan, settings: PhotoSettings
) -> tuple[Float32[Tensor, "3 height width"], Bool[Tensor, "height width"] | None]:
    source = load_source_photo(header, mask_file, settings)
    mask = network_mask(source.counts, header.upright_size, plan.source_from_network, plan.network_size)
    if not mask.any():
        raise MaskError(
            "its mask and transparency leave no pixel at network resolution",
            way_out="Leave the photo out, or set alpha_as_mask=False or mask_means the other way round",
            path=header.path,
        )
    return resize_to_network(source.color, plan), None if mask.all() else torch.from_numpy(mask)


def _log_what_was_cropped(views: Views) -> None:
    worst = max(range(len(views)), key=lambda view: views.cropped_fractions[view])
    fraction = views.cropped_fractions[worst]
    if fraction > _NOTABLE_CROP:
        count = sum(fraction > _NOTABLE_CROP for fraction in views.cropped_fractions)
        logger.warning(
            '%d of %d photos lose more than 1 %% of their pixels at the edges, %s most (%.1f %%); fit="pad" keeps all',
            count,
            len(views),
            views.names[worst],
            100 * fraction,
        )
