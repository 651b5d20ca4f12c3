"""What a cloud can be coloured by."""

import colorsys
import math
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Literal, get_args

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from lora3d_ns.viewer.cloud import ViewedCloud

ColourBy = Literal["photo", "which_photo", "weight", "confidence", "residual", "pair"]
"""`photo`: as photographed. `which_photo`: one hue for each. `pair`: the two photos of a pair, the rest grey."""

Rgb = tuple[int, int, int]

FIRST_OF_PAIR: Rgb = (77, 171, 247)
SECOND_OF_PAIR: Rgb = (255, 146, 43)
_OF_NO_PAIR: Rgb = (73, 80, 87)
_WEIGHT_RAMP: tuple[Rgb, ...] = ((86, 42, 132), (70, 98, 160), (41, 146, 148), (92, 196, 110), (250, 230, 70))
_RESIDUAL_RAMP: tuple[Rgb, ...] = ((38, 78, 150), (74, 160, 190), (232, 226, 178), (240, 140, 60), (205, 30, 50))
_RAMPS: Mapping[str, tuple[Rgb, ...]] = {
    "weight": _WEIGHT_RAMP,
    "confidence": _WEIGHT_RAMP,
    "residual": _RESIDUAL_RAMP,
}
_QUANTILES = (0.02, 0.98)
_MOST_FOR_QUANTILES = 200_000
_LEAST_SHARE = 1e-4
_LEGEND_PX = (240, 12)


@dataclass(frozen=True, kw_only=True)
class Legend:
    """What the ends of a ramp stand for.

    Attributes:
        low, high: In words.
        low_value, high_value: Of what is coloured: the weight, C, or the logarithm of the share.
        ramp: Colours from low to high.
    """

    low: str
    high: str
    low_value: float
    high_value: float
    ramp: tuple[Rgb, ...]


def kinds_of(cloud: ViewedCloud, *, pairs: bool) -> tuple[ColourBy, ...]:
    """What this cloud can be coloured by.

    Args:
        cloud: The cloud.
        pairs: Whether any pair is known.
    """
    missing = {
        "confidence": cloud.confidences is None,
        "residual": cloud.residual_shares is None,
        "pair": not pairs,
    }
    return tuple(kind for kind in get_args(ColourBy) if not missing.get(kind, False))


def legend_of(cloud: ViewedCloud, by: ColourBy) -> Legend | None:
    """The ramp's ends: nearly the least and nearly the largest value of the whole cloud. None for plain colours."""
    values = _values(cloud, by)
    if values is None:
        return None
    sample = values[:: max(1, len(values) // _MOST_FOR_QUANTILES)]
    if not len(sample):
        return None
    low, high = (float(torch.quantile(sample, share)) for share in _QUANTILES)
    high = max(high, low + 1e-6)
    words = {
        "weight": lambda value: f"{value:.2g}",
        # What the network says is at least 1; C is its logarithm.
        "confidence": lambda value: f"{math.exp(min(value, 80.0)):.3g}",
        "residual": lambda value: f"{100.0 * 10.0**value:.2g} %",
    }[by]
    return Legend(low=words(low), high=words(high), low_value=low, high_value=high, ramp=_RAMPS[by])


def colours_by(
    cloud: ViewedCloud, by: ColourBy, *, legend: Legend | None = None, pair: tuple[int, int] | None = None
) -> UInt8[Tensor, "points 3"]:
    """One colour per point.

    Args:
        cloud: The points; what it does not have leaves them as photographed.
        by: By what.
        legend: Of this cloud or of another, to compare the two; its own by default.
        pair: For `pair`: indices of the two photos.
    """
    if by == "which_photo":
        return torch.tensor([photo_hue(view) for view in range(_count(cloud))], dtype=torch.uint8)[cloud.views]
    if by == "pair" and pair is not None:
        table = torch.tensor([_OF_NO_PAIR] * max(_count(cloud), *(view + 1 for view in pair)), dtype=torch.uint8)
        table[pair[0]], table[pair[1]] = torch.tensor([FIRST_OF_PAIR, SECOND_OF_PAIR], dtype=torch.uint8)
        return table[cloud.views]
    values = _values(cloud, by)
    legend = legend or legend_of(cloud, by)
    if values is None or legend is None:
        return cloud.colors
    share = (values - legend.low_value) / (legend.high_value - legend.low_value)
    return _on_ramp(share.clamp(0.0, 1.0), legend.ramp)


def photo_hue(view: int) -> Rgb:
    """The colour of a photo: neighbours are far apart in hue, by the golden ratio."""
    hue = (0.58 + view * 0.6180339887) % 1.0
    red, green, blue = colorsys.hls_to_rgb(hue, 0.62 if view % 2 == 0 else 0.5, 0.75)
    return round(255 * red), round(255 * green), round(255 * blue)


def ramp_png(ramp: tuple[Rgb, ...]) -> bytes:
    """A picture of a ramp, from left to right."""
    from PIL import Image

    width, height = _LEGEND_PX
    row = _on_ramp(torch.linspace(0.0, 1.0, width), ramp)
    file = BytesIO()
    Image.fromarray(row.expand(height, width, 3).contiguous().numpy()).save(file, "PNG")
    return file.getvalue()


def _values(cloud: ViewedCloud, by: ColourBy) -> Float[Tensor, " points"] | None:
    if by == "weight":
        return cloud.weights
    if by == "confidence":
        return cloud.confidences
    if by == "residual" and cloud.residual_shares is not None:
        return cloud.residual_shares.nan_to_num(1.0).clamp(_LEAST_SHARE, 1.0).log10()
    return None


def _on_ramp(share: Float[Tensor, " values"], ramp: tuple[Rgb, ...]) -> UInt8[Tensor, "values 3"]:
    table = torch.tensor(ramp, dtype=torch.float32)
    place = share.float() * (len(ramp) - 1)
    low = place.floor().long().clamp(max=len(ramp) - 2)
    return torch.lerp(table[low], table[low + 1], (place - low)[:, None]).round().to(torch.uint8)


def _count(cloud: ViewedCloud) -> int:
    return int(cloud.views.max()) + 1 if len(cloud) else 1
