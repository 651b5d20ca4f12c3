"""Decoding photos: upright, 8-bit, sRGB, whatever the file holds."""

import io
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, TiffImagePlugin

from lora3d_ns.errors import MissingPackageError, NotAPhotoError, TruncatedPhotoError
from lora3d_ns.photos.exif import TAG_ORIENTATION
from lora3d_ns.photos.files import (
    DEFAULT_MAX_MEGAPIXELS,
    PhotoHeader,
    decoder_errors_named,
    open_file,
    open_image,
    read_header,
)

logger = logging.getLogger(__name__)

# What turns stored pixels upright, by EXIF orientation.
_UPRIGHT_TRANSPOSE: dict[int, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_MID_GREY = (128, 128, 128)


@dataclass(frozen=True, eq=False, kw_only=True)
class DecodedPhoto:
    """Upright pixels of a photo.

    Attributes:
        color: sRGB, mode RGB. Transparent pixels are laid over mid-grey.
        alpha: Opacity, mode L; None where the photo is opaque.
    """

    color: Image.Image
    alpha: Image.Image | None


def load_source_image(
    path: Path, *, max_megapixels: float = DEFAULT_MAX_MEGAPIXELS
) -> UInt8[np.ndarray, "height width 3"]:
    """Upright sRGB pixels of a photo at its own resolution, exactly as `load_views` decodes it before resizing.

    Raises:
        PhotoError: As `read_header` and `decode_photo` do.
    """
    return np.asarray(decode_photo(read_header(path, max_megapixels=max_megapixels)).color)


def decode_photo(header: PhotoHeader) -> DecodedPhoto:
    """All pixels of a photo: upright, 8-bit sRGB.

    16-bit values are rounded to 8 bits, colours are converted by the photo's own profile if it has a usable one, and
    pixels that are not opaque are laid over mid-grey. Of several frames the first is taken.

    Raises:
        TruncatedPhotoError: The pixel data are damaged or end too early.
        NotAPhotoError: A kind of pixel without an agreed range (floating-point, 32-bit), or no decoder has it.
        MissingPackageError: The decoder's package is not installed.
    """
    path = header.path
    with open_file(path) as file, decoder_errors_named(path):
        image, orientation = _decode_stored(file, header)
        color, alpha = _split_alpha(image, header)
        color = _to_srgb(color, header)
        if alpha is not None:
            color = Image.composite(color, Image.new("RGB", color.size, _MID_GREY), alpha)
        color = upright(color, orientation)
        alpha = None if alpha is None else upright(alpha, orientation)
        if color.size != header.upright_size:
            raise TruncatedPhotoError(
                f"the header says {header.upright_size} pixels and the content {color.size}",
                way_out="Export the photo again, or leave it out",
                path=path,
            )
    return DecodedPhoto(color=color, alpha=alpha)


def upright(stored: Image.Image, orientation: int) -> Image.Image:
    """Stored pixels turned and mirrored as their EXIF orientation says."""
    transpose = _UPRIGHT_TRANSPOSE.get(orientation)
    return stored if transpose is None else stored.transpose(transpose)


def _decode_stored(file: IO[bytes], header: PhotoHeader) -> tuple[Image.Image, int]:
    """Decoded pixels in the file's own mode, and the EXIF orientation that still has to be applied."""
    if header.kind != "tiff":
        image = open_image(file, header.kind)
        image.load()
        return image, header.orientation
    width, height = header.stored_size
    # Above this global limit Pillow warns or refuses, for TIFF even when its class is called directly.
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and width * height > limit:
        return _decode_tiff_with_opencv(header), 1
    try:
        image = TiffImagePlugin.TiffImageFile(file)
    except SyntaxError:
        # Valid TIFFs with kinds of pixels that Pillow does not know, 16-bit colour in particular.
        return _decode_tiff_with_opencv(header), 1
    image.load()
    # Recent Pillow turns TIFFs upright while loading and drops the tag; older leaves both to us.
    turned_already = header.orientation != 1 and TAG_ORIENTATION not in image.getexif()
    return image, 1 if turned_already else header.orientation


def _decode_tiff_with_opencv(header: PhotoHeader) -> Image.Image:
    """Pixels of a TIFF, upright: OpenCV obeys the orientation of a TIFF even when asked to leave it."""
    try:
        import cv2
    except ImportError as error:
        raise MissingPackageError(
            "this kind of TIFF needs OpenCV", way_out="Install it with `pip install opencv-python-headless`"
        ) from error
    unsupported = NotAPhotoError(
        "a TIFF with a kind of pixels that no decoder here knows",
        way_out="Save it as an 8- or 16-bit RGB TIFF, or as PNG",
        path=header.path,
    )
    try:
        pixels = cv2.imread(str(header.path), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise unsupported from error
    if pixels is None or pixels.dtype not in (np.uint8, np.uint16):
        raise unsupported
    if pixels.dtype == np.uint16:
        pixels = _eight_bits(pixels)
    if pixels.ndim == 2:
        return Image.fromarray(pixels)
    to_rgb = {3: cv2.COLOR_BGR2RGB, 4: cv2.COLOR_BGRA2RGBA}.get(pixels.shape[2])
    if to_rgb is None:
        raise unsupported
    return Image.fromarray(cv2.cvtColor(pixels, to_rgb))


def _eight_bits(values: np.ndarray) -> np.ndarray:
    """16-bit values in 8 bits: 65535 is 255."""
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _split_alpha(image: Image.Image, header: PhotoHeader) -> tuple[Image.Image, Image.Image | None]:
    """Colour in mode L, RGB, CMYK or LAB, and opacity in mode L where there is one."""
    mode = image.mode
    if mode.startswith("I;16") or (mode == "I" and header.kind == "png"):
        # Older Pillow opens 16-bit grey PNGs as 32-bit integers.
        return Image.fromarray(_eight_bits(np.asarray(image).clip(0, 65535))), None
    if mode in ("I", "F"):
        raise NotAPhotoError(
            f"{'floating-point' if mode == 'F' else '32-bit integer'} pixels, which have no agreed white",
            way_out="Save it with 8 or 16 bits per colour",
            path=header.path,
        )
    if mode in ("LA", "La", "RGBA", "RGBa", "PA") or "transparency" in image.info:
        # Premultiplied modes have no direct way to another mode than their own plain one.
        image = image.convert({"La": "LA", "RGBa": "RGBA"}.get(mode, "RGBA")).convert("RGBA")
        return image.convert("RGB"), image.getchannel("A")
    if mode in ("L", "RGB", "CMYK", "LAB"):
        return image, None
    return image.convert("L" if mode == "1" else "RGB"), None


_PROFILE_SPACES = {"RGB": "RGB ", "L": "GRAY", "CMYK": "CMYK", "LAB": "Lab "}


def _to_srgb(image: Image.Image, header: PhotoHeader) -> Image.Image:
    converted = None if header.icc_profile is None else _convert_by_profile(image, header.icc_profile, header.path)
    if converted is not None:
        return converted
    if image.mode == "LAB":
        raise NotAPhotoError(
            "LAB colours without a usable profile", way_out="Save it as RGB, 8 or 16 bits", path=header.path
        )
    return image.convert("RGB")


def _convert_by_profile(image: Image.Image, icc_profile: bytes, path: Path) -> Image.Image | None:
    """The image in sRGB, or None where its profile is sRGB already or unusable."""
    try:
        from PIL import ImageCms

        profile = ImageCms.ImageCmsProfile(io.BytesIO(icc_profile))
        # Pillow's stubs give this attribute the wrong type.
        core: Any = profile.profile
        description = core.profile_description or ""
        if image.mode == "RGB" and re.search(r"\bsRGB\b", description):
            return None
        space = core.xcolor_space
        if space == "RGB " and image.mode == "L":
            # Grey pixels under an RGB profile: equal channels.
            image = image.convert("RGB")
        if _PROFILE_SPACES.get(image.mode) != space:
            raise ImageCms.PyCMSError(f"a profile for {space} on {image.mode} pixels")
        srgb = ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(
            image, profile, srgb, renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC, outputMode="RGB"
        )
    except Exception as error:  # noqa: BLE001 (a damaged profile is no reason to refuse the photo)
        logger.warning("%s: colour profile not usable, colours taken as sRGB (%s)", path, error)
        return None
