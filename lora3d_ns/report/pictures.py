"""Photos and maps as small pictures that stand in the page itself."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from lora3d_ns.report.coverage import coverage
from lora3d_ns.scene_io.details import SceneDetails
from lora3d_ns.types import Cameras

COVERAGE_COLOURS = ("#d55e00", "#bcd9ec", "#5aa0cf", "#0b4f8a")
"""Of pixels that 0, 1, 2, and 3 or more other photos see; told apart with any colour vision, and in grey."""
NOT_COUNTED = "#8a8f98"
"""Of pixels that a mask takes out, that move, or that have no depth."""
_SIZES = ((12, 480, 320), (24, 360, 260), (60, 300, 200))
"""Up to so many photos: longest sides of photos and of maps in pixels."""
_LEAST_SIZES = (180, 140)
_SHOWN = (0.01, 0.98)
"""Quantiles between which a map has its colours."""
_MAP_GAMMA = 0.5
"""Of confidence and weight: most of a scene lies far below its best pixels, and would be one dark patch."""
_LEGEND_SIZE = (256, 1)


@dataclass(frozen=True, kw_only=True)
class PhotoPictures:
    """Of one photo, each as a `data:` address.

    Attributes:
        photo: The photo itself.
        depth: Of the scene.
        confidence: What the network said.
        weight: What is left of it.
        coverage: How many other photos see it.
        width, height: Of the photo as the network saw it.
    """

    photo: str
    depth: str
    confidence: str
    weight: str
    coverage: str
    width: int
    height: int


@dataclass(frozen=True, kw_only=True)
class Legend:
    """What the colours of a map mean.

    Attributes:
        picture: Its colours from left to right, as a `data:` address.
        ticks: Values at the left end, in the middle and at the right end.
    """

    picture: str
    ticks: tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class Maps:
    """The pictures of all photos, and how to read them.

    Attributes:
        photos: One per photo.
        depth, confidence, weight: Legends; one scale holds for all photos.
    """

    photos: tuple[PhotoPictures, ...]
    depth: Legend
    confidence: Legend
    weight: Legend


def maps_of(details: SceneDetails, cameras: Cameras, *, thin_cutoff: float) -> Maps:
    """Pictures of all photos, the smaller the more there are.

    Args:
        details: Of the scene.
        cameras: Of the scene.
        thin_cutoff: See `coverage`.
    """
    photo_px, map_px = next(
        ((photo, smaller) for most, photo, smaller in _SIZES if len(details.names) <= most), _LEAST_SIZES
    )
    covers = coverage(details, cameras, thin_cutoff=thin_cutoff)
    sequential, depths = _colours("cividis"), _colours("viridis")[::-1]
    depth_limits = _limits([depth[depth > 0] for depth in details.depths])
    most_said = _limits(details.confidences)[1]
    most_weighed = _limits(details.weights)[1]
    found = []
    for view, image in enumerate(details.images):
        mask = details.masks[view]
        counted = torch.ones(image.shape[:2], dtype=torch.bool) if mask is None else mask
        photo = Image.fromarray(image.numpy())
        found.append(
            PhotoPictures(
                photo=_jpeg(_fitted(photo, photo_px), quality=84),
                depth=_coloured(details.depths[view], counted, depth_limits, 1.0, depths, map_px),
                confidence=_coloured(
                    details.confidences[view], counted, (0.0, most_said), _MAP_GAMMA, sequential, map_px
                ),
                weight=_coloured(details.weights[view], counted, (0.0, most_weighed), _MAP_GAMMA, sequential, map_px),
                coverage=_counts(covers[view].seen_by, covers[view].counted),
                width=photo.width,
                height=photo.height,
            )
        )
    return Maps(
        photos=tuple(found),
        depth=_legend(depths, depth_limits, 1.0),
        confidence=_legend(sequential, (0.0, most_said), _MAP_GAMMA),
        weight=_legend(sequential, (0.0, most_weighed), _MAP_GAMMA),
    )


def data_address(content: bytes, media_type: str) -> str:
    """The content as a `data:` address."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}"


def _coloured(
    values: Float[Tensor, "height width"],
    counted: Tensor,
    limits: tuple[float, float],
    gamma: float,
    colours: UInt8[np.ndarray, "256 3"],
    longest_px: int,
) -> str:
    """A map in colours; grey where a pixel does not count."""
    place = _place(values.float().numpy(), limits, gamma)
    picture = colours[(255.0 * place).round().astype(np.uint8)]
    picture[~counted.numpy()] = _rgb(NOT_COUNTED)
    return _jpeg(_fitted(Image.fromarray(picture), longest_px), quality=80)


def _counts(seen_by: Tensor, counted: Tensor) -> str:
    """How many other photos see each pixel, as a picture of few colours."""
    palette = [channel for colour in (*COVERAGE_COLOURS, NOT_COUNTED) for channel in _rgb(colour)]
    most = len(COVERAGE_COLOURS) - 1
    indices = torch.where(counted, seen_by.clamp(max=most), most + 1).to(torch.uint8)
    picture = Image.fromarray(indices.numpy(), mode="P")
    picture.putpalette(palette)
    file = BytesIO()
    picture.save(file, "PNG", optimize=True)
    return data_address(file.getvalue(), "image/png")


def _legend(colours: UInt8[np.ndarray, "256 3"], limits: tuple[float, float], gamma: float) -> Legend:
    file = BytesIO()
    Image.fromarray(colours[None]).resize(_LEGEND_SIZE).save(file, "PNG", optimize=True)
    low, high = limits
    return Legend(
        picture=data_address(file.getvalue(), "image/png"),
        ticks=(low, low + 0.5 ** (1.0 / gamma) * (high - low), high),
    )


def _place(values: np.ndarray, limits: tuple[float, float], gamma: float) -> np.ndarray:
    """Where values lie on a scale from 0 to 1; what is no number lies at 0."""
    low, high = limits
    return np.nan_to_num(((values - low) / max(high - low, 1e-30)).clip(0.0, 1.0)) ** gamma


def _limits(values: Sequence[Tensor]) -> tuple[float, float]:
    """Between which the colours of all photos' maps change."""
    every = np.concatenate([part.float().numpy().ravel() for part in values])
    every = every[np.isfinite(every)]
    if not len(every):
        return 0.0, 1.0
    low, high = np.quantile(every, _SHOWN)
    return float(low), float(high) if high > low else float(low) + 1.0


def _colours(name: str) -> UInt8[np.ndarray, "256 3"]:
    """A colour map that is read right with any colour vision."""
    import matplotlib

    return (255.0 * matplotlib.colormaps[name](np.arange(256))[:, :3]).round().astype(np.uint8)


def _fitted(picture: Image.Image, longest_px: int) -> Image.Image:
    """Made smaller where it is larger."""
    factor = longest_px / max(picture.size)
    if factor >= 1.0:
        return picture
    size = (max(1, round(factor * picture.width)), max(1, round(factor * picture.height)))
    return picture.resize(size, Image.Resampling.BOX if factor <= 0.5 else Image.Resampling.BICUBIC)


def _jpeg(picture: Image.Image, *, quality: int) -> str:
    file = BytesIO()
    picture.save(file, "JPEG", quality=quality, optimize=True)
    return data_address(file.getvalue(), "image/jpeg")


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)
