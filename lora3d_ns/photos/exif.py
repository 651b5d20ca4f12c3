"""What EXIF says of a photo's camera: orientation, focal length, lens."""

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from lora3d_ns.conventions import ExifOrientation

logger = logging.getLogger(__name__)

# Diagonal of the 36 x 24 mm frame that "35 mm equivalent" refers to.
_DIAGONAL_35MM_MM = math.hypot(36.0, 24.0)
# From extreme wide-angle to extreme telephoto lenses, as 35 mm equivalents; anything else is a writing error.
_PLAUSIBLE_35MM_MM = (5.0, 1500.0)
# A photo whose sides disagree with the size in its EXIF by more than this was cropped.
_ASPECT_TOLERANCE = 0.02

TAG_ORIENTATION, TAG_EXIF_IFD = 0x0112, 0x8769
_MAKE, _MODEL = 0x010F, 0x0110
_FOCAL_LENGTH, _FOCAL_LENGTH_35MM, _LENS_MODEL = 0x920A, 0xA405, 0xA434
_PIXEL_WIDTH, _PIXEL_HEIGHT = 0xA002, 0xA003
_FOCAL_PLANE_X_RESOLUTION, _FOCAL_PLANE_UNIT = 0xA20E, 0xA210
_UNIT_MM = {2: 25.4, 3: 10.0, 4: 1.0, 5: 0.001}


@dataclass(frozen=True, eq=False, kw_only=True)
class ExifTags:
    """Raw EXIF values by tag number.

    Attributes:
        main: The image's own directory (orientation, make, model).
        details: The EXIF directory that it points to (focal length, lens, size).
    """

    main: Mapping[int, object]
    details: Mapping[int, object]


@dataclass(frozen=True, kw_only=True)
class PhotoExif:
    """Camera and lens of a photo.

    Attributes:
        focal_px: Focal length in source pixels; None where EXIF does not tell or tells nonsense. Turning a photo does
            not change it.
        lens_group: Equal for photos that share make, model, lens, focal length and size (sides sorted, so the same
            phone held upright and sideways is one group). The size alone where there is no EXIF.
    """

    focal_px: float | None
    lens_group: str


def parse_exif(
    read: Callable[[], ExifTags], stored_size: tuple[int, int], path: Path
) -> tuple[PhotoExif, ExifOrientation]:
    """Camera, lens and orientation from the EXIF that `read` gives.

    EXIF that cannot be parsed counts as absent, with a warning: the pixels may well be sound.

    Args:
        read: Reads the photo's EXIF; may raise anything on damaged data.
        stored_size: (width, height) of the photo in pixels.
        path: Of the photo, for the warning.
    """
    try:
        tags = read()
    except Exception as error:  # noqa: BLE001 (Pillow's parser raises nearly anything on damaged EXIF)
        logger.warning("%s: EXIF cannot be read and is ignored (%s)", path, error)
        tags = ExifTags(main={}, details={})
    orientation = int(_number(tags.main.get(TAG_ORIENTATION)) or 1)
    return (
        PhotoExif(
            focal_px=_focal_px(tags.details, stored_size),
            lens_group=_lens_group(tags, stored_size),
        ),
        cast(ExifOrientation, orientation) if orientation in range(1, 9) else 1,
    )


def _focal_px(details: Mapping[int, object], stored_size: tuple[int, int]) -> float | None:
    width, height = stored_size
    diagonal_px = math.hypot(width, height)
    exif_sides = sorted(_number(details.get(tag)) or 0.0 for tag in (_PIXEL_WIDTH, _PIXEL_HEIGHT))
    shrunk_by = 1.0
    if exif_sides[0] > 0:
        sides = sorted(stored_size)
        if abs(sides[1] / sides[0] * exif_sides[0] / exif_sides[1] - 1.0) > _ASPECT_TOLERANCE:
            # Cropped after the shot: neither the diagonal nor the centre is the camera's any more.
            return None
        shrunk_by = sides[1] / exif_sides[1]

    focal_35mm_mm = _number(details.get(_FOCAL_LENGTH_35MM))
    focal_mm = _number(details.get(_FOCAL_LENGTH))
    resolution = _number(details.get(_FOCAL_PLANE_X_RESOLUTION))
    unit_mm = _UNIT_MM.get(int(_number(details.get(_FOCAL_PLANE_UNIT)) or 2))
    if focal_35mm_mm:
        focal_px = focal_35mm_mm * diagonal_px / _DIAGONAL_35MM_MM
    elif focal_mm and resolution and unit_mm:
        focal_px = focal_mm * resolution / unit_mm * shrunk_by
    else:
        return None
    shortest_mm, longest_mm = _PLAUSIBLE_35MM_MM
    plausible = shortest_mm <= focal_px * _DIAGONAL_35MM_MM / diagonal_px <= longest_mm
    return focal_px if plausible else None


def _lens_group(tags: ExifTags, stored_size: tuple[int, int]) -> str:
    long_px, short_px = max(stored_size), min(stored_size)
    size = f"{long_px}x{short_px}"
    texts = [_text(tags.main.get(_MAKE)), _text(tags.main.get(_MODEL)), _text(tags.details.get(_LENS_MODEL))]
    focal_mm = _number(tags.details.get(_FOCAL_LENGTH))
    focal_35mm_mm = _number(tags.details.get(_FOCAL_LENGTH_35MM))
    focals = [
        f"{focal_mm:.2f} mm" if focal_mm else "",
        f"{focal_35mm_mm:g} mm equivalent" if focal_35mm_mm else "",
    ]
    return " | ".join([part for part in [*texts, *focals] if part] + [size])


def _number(value: object) -> float | None:
    """A finite, positive number, or None; cameras write 0 and 0/0 for what they do not know."""
    if isinstance(value, tuple) and len(value) == 1:
        value = value[0]
    if not isinstance(value, (int, float)) and not hasattr(value, "__float__"):
        return None
    try:
        number = float(value)  # pyright: ignore[reportArgumentType] (rationals of Pillow have __float__)
    except (ZeroDivisionError, OverflowError, ValueError, TypeError):
        return None
    return number if math.isfinite(number) and number > 0 else None


def _text(value: object) -> str:
    if isinstance(value, bytes):
        value = value.decode("latin-1")
    return value.replace("\0", " ").strip() if isinstance(value, str) else ""
