"""Masks beside photos: finding them, checking that they fit, and bringing them to network resolution."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float

from lora3d_ns.conventions import PixelAffine
from lora3d_ns.errors import MaskError
from lora3d_ns.photos.decoding import decode_photo, upright
from lora3d_ns.photos.files import PHOTO_ENDINGS, PhotoFile, PhotoHeader, read_header

logger = logging.getLogger(__name__)

MaskMeaning = Literal["keep", "ignore"]


@dataclass(frozen=True, kw_only=True)
class MaskFile:
    """A mask that fits its photo.

    Attributes:
        header: Header of the mask's file.
        as_stored: The mask is in the photo's stored pixels and turns with it.
    """

    header: PhotoHeader
    as_stored: bool


def find_masks(
    photos: Sequence[PhotoFile], headers: Sequence[PhotoHeader], *, max_megapixels: float
) -> tuple[MaskFile | None, ...]:
    """The mask of each photo, from a `masks` folder in the photo's folder or next to its `images` folder.

    The mask of `IMG_1.jpg` is called `IMG_1.jpg.png` or `IMG_1.png` (or any other photo ending); the first wins.

    Raises:
        MaskError: Two masks for one photo, or a mask of another size than its photo.
        PhotoError: A mask is damaged, as `read_header` says.
    """
    listings: dict[Path, dict[str, list[Path]]] = {}
    masks = []
    for photo, header in zip(photos, headers, strict=True):
        path = _mask_path(photo.path, listings)
        masks.append(None if path is None else _fitting_mask(path, header, max_megapixels))
    if listings and not any(masks) and any(listings.values()):
        logger.warning(
            "%s: no mask has the name of a photo; the mask of IMG_1.jpg is called IMG_1.png or IMG_1.jpg.png",
            next(folder for folder, listing in listings.items() if listing),
        )
    return tuple(masks)


def _mask_path(photo: Path, listings: dict[Path, dict[str, list[Path]]]) -> Path | None:
    folders = [photo.parent / "masks"]
    if photo.parent.name == "images":
        folders.append(photo.parent.parent / "masks")
    for folder in folders:
        if folder not in listings:
            listings[folder] = {}
            for path in sorted(folder.iterdir()) if folder.is_dir() else []:
                if path.suffix.lower() in PHOTO_ENDINGS and not path.name.startswith("."):
                    listings[folder].setdefault(path.stem, []).append(path)
        for stem in (photo.name, photo.stem):
            candidates = listings[folder].get(stem, [])
            if len(candidates) > 1:
                raise MaskError(
                    f"two masks for one photo, {candidates[0].name} and {candidates[1].name}",
                    way_out="Keep one of them",
                    path=photo,
                )
            if candidates:
                return candidates[0]
    return None


def _fitting_mask(path: Path, photo: PhotoHeader, max_megapixels: float) -> MaskFile:
    header = read_header(path, max_megapixels=max_megapixels)
    if header.upright_size == photo.upright_size:
        return MaskFile(header=header, as_stored=False)
    if header.upright_size == photo.stored_size:
        return MaskFile(header=header, as_stored=True)
    mask_size, photo_size = ("{}x{}".format(*size) for size in (header.upright_size, photo.upright_size))
    raise MaskError(
        f"the mask has {mask_size} pixels and its photo {photo.path} has {photo_size}",
        way_out="Save the mask at the photo's size",
        path=path,
    )


def load_mask(mask: MaskFile, photo: PhotoHeader, mask_means: MaskMeaning) -> Bool[np.ndarray, "height width"]:
    """True where the upright source photo counts.

    Raises:
        MaskError: The mask leaves nothing.
        PhotoError: Its file is damaged.
    """
    decoded = decode_photo(mask.header)
    grey, alpha = decoded.color.convert("L"), decoded.alpha
    if mask.as_stored:
        grey = upright(grey, photo.orientation)
        alpha = None if alpha is None else upright(alpha, photo.orientation)
    values = np.asarray(grey)
    white = values >= 128
    if alpha is not None:
        white &= np.asarray(alpha) >= 128
    counts = white if mask_means == "keep" else ~white
    if not counts.any():
        hint = "Leave the photo out, or set mask_means the other way round"
        if mask_means == "keep" and 0 < values.max() <= 1:
            hint = "Its values are 0 and 1: save it with 255 for white"
        raise MaskError(f"the mask leaves nothing of {photo.path}", way_out=hint, path=mask.header.path)
    return counts


def network_mask(
    counts: Bool[np.ndarray, "source_height source_width"] | None,
    source_size: tuple[int, int],
    affine: PixelAffine,
    network_size: tuple[int, int],
) -> Bool[np.ndarray, "height width"]:
    """True where the majority of a network pixel's area counts; what lies outside the photo does not.

    The area is exact: each network pixel is the rectangle of source pixels that it covers, fractions included.

    Args:
        counts: Source pixels that count; None where all do.
        source_size: (width, height) of the upright source photo.
        affine: Where network pixels lie in it.
        network_size: (width, height) of the network image.
    """
    width, height = network_size
    edges_x = affine.offset_x_px + affine.scale_x * np.arange(width + 1)
    edges_y = affine.offset_y_px + affine.scale_y * np.arange(height + 1)
    if counts is None:
        covered_x = np.diff(edges_x.clip(0, source_size[0]))
        covered_y = np.diff(edges_y.clip(0, source_size[1]))
        area = covered_y[:, None] * covered_x
    else:
        rows = _integrals(counts, edges_y)
        area = _integrals(rows.T, edges_x).T
    # Rounding must not tip a pixel whose half counts exactly.
    return area > (0.5 + 1e-9) * affine.scale_x * affine.scale_y


def _integrals(
    values: Bool[np.ndarray, "length other"] | Float[np.ndarray, "length other"], edges: Float[np.ndarray, " edges"]
) -> Float[np.ndarray, "pixels other"]:
    """Integral of piecewise constant values between successive edges, along the first axis; zero outside."""
    # Counts at source resolution are whole numbers, and large.
    cumulative = np.zeros(
        (values.shape[0] + 1, values.shape[1]), dtype=np.int32 if values.dtype == np.bool_ else np.float64
    )
    np.cumsum(values, axis=0, out=cumulative[1:])
    edges = edges.clip(0, values.shape[0])
    below = np.minimum(edges.astype(int), values.shape[0] - 1)
    fraction = (edges - below)[:, None]
    return np.diff(cumulative[below] + fraction * (cumulative[below + 1] - cumulative[below]), axis=0)
