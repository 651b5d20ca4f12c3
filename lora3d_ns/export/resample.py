"""Depth maps of the network's resolution at that of the photos, without values in between at the edges of things."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

from lora3d_ns.conventions import PixelAffine

_ROWS_AT_ONCE = 256


def at_photo_size(
    depth: Float32[np.ndarray, "height width"],
    weight: Float32[np.ndarray, "height width"],
    affine: PixelAffine,
    size: tuple[int, int],
    *,
    edge_share: float,
) -> tuple[Float32[np.ndarray, "photo_height photo_width"], Float32[np.ndarray, "photo_height photo_width"]]:
    """Maps at network resolution as maps at the photo's own, 0 beyond what the network saw.

    Where the four network pixels around a pixel have depths alike, 1 / depth is interpolated between them, linearly in
    both directions, which is exact for planes; elsewhere the nearest network pixel counts alone. So no value lies
    between the two sides of an edge.

    Args:
        depth: Depth along z; 0 where it is unknown.
        weight: Its weight.
        affine: Where network pixels lie in the photo.
        size: (width, height) of the photo.
        edge_share: Depths that differ by no more than this share of the nearest one are alike.
    """
    columns = _Neighbours.along(depth.shape[1], size[0], affine.scale_x, affine.offset_x_px)
    rows = _Neighbours.along(depth.shape[0], size[1], affine.scale_y, affine.offset_y_px)
    sampled_depth = np.zeros((size[1], size[0]), dtype=np.float32)
    sampled_weight = np.zeros_like(sampled_depth)
    inverse = np.divide(1.0, depth, out=np.zeros(depth.shape), where=depth > 0)
    # In bands: photos are large.
    for begin in range(0, size[1], _ROWS_AT_ONCE):
        band = rows.part(slice(begin, begin + _ROWS_AT_ONCE))
        corners = [depth[y][:, x] for y in (band.low, band.high) for x in (columns.low, columns.high)]
        nearest_corner, furthest = np.minimum.reduce(corners), np.maximum.reduce(corners)
        alike = (nearest_corner > 0) & (furthest <= (1.0 + edge_share) * nearest_corner)
        between = _bilinear(inverse, band, columns, band.share, columns.share)
        nearest = depth[band.nearest][:, columns.nearest]
        values = np.where(alike, 1.0 / np.where(alike, between, 1.0), nearest)
        blended = _bilinear(weight, band, columns, band.share.clip(0, 1), columns.share.clip(0, 1))
        nearest_weight = weight[band.nearest][:, columns.nearest]
        weights = np.where(alike & (nearest_weight > 0), blended, nearest_weight)
        seen = band.inside[:, None] & columns.inside
        sampled_depth[begin : begin + _ROWS_AT_ONCE] = np.where(seen, values, 0.0)
        sampled_weight[begin : begin + _ROWS_AT_ONCE] = np.where(seen, weights, 0.0)
    return sampled_depth, sampled_weight


@dataclass(frozen=True, eq=False, kw_only=True)
class _Neighbours:
    """For each pixel of a photo's row or column: the network's pixels before and after it, and the nearest one.

    `share` is how far it lies from the one's centre to the other's; a little outside of 0 to 1 at the ends.
    """

    low: np.ndarray
    high: np.ndarray
    nearest: np.ndarray
    share: np.ndarray
    inside: np.ndarray

    @staticmethod
    def along(network_length: int, length: int, scale: float, offset_px: float) -> "_Neighbours":
        place = (np.arange(length) + 0.5 - offset_px) / scale
        low = np.floor(place - 0.5).clip(0, max(0, network_length - 2)).astype(int)
        inside = (place >= 0) & (place < network_length)
        return _Neighbours(
            low=low,
            high=(low + 1).clip(0, network_length - 1),
            nearest=np.floor(place).clip(0, network_length - 1).astype(int),
            share=np.where(inside, place - 0.5 - low, 0.0),
            inside=inside,
        )

    def part(self, chosen: slice) -> "_Neighbours":
        return _Neighbours(**{name: values[chosen] for name, values in vars(self).items()})


def _bilinear(
    values: np.ndarray, rows: _Neighbours, columns: _Neighbours, row_share: np.ndarray, column_share: np.ndarray
) -> np.ndarray:
    def along_columns(y: np.ndarray) -> np.ndarray:
        return (1.0 - column_share) * values[y][:, columns.low] + column_share * values[y][:, columns.high]

    return (1.0 - row_share)[:, None] * along_columns(rows.low) + row_share[:, None] * along_columns(rows.high)
