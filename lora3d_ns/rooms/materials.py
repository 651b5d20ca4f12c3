"""What surfaces look like: parameters of the solid textures, by family.

A texture is a function of the point in the surface's own frame, in metres; see `lora3d_ns.rooms.textures` for how the
parameters make a colour.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from lora3d_ns.rooms.random_numbers import FloatArray

# Columns of a row of parameters. Colours are linear RGB; "cells" are the repeating unit of the pattern.
COLUMNS: Sequence[str] = (
    "color_a_r", "color_a_g", "color_a_b",  # one end of the palette
    "color_b_r", "color_b_g", "color_b_b",  # its other end
    "color_line_r", "color_line_g", "color_line_b",  # lines between cells, and dots
    "color_accent_r", "color_accent_g", "color_accent_b",  # cells out of the palette
    "cells_per_m_x", "cells_per_m_y", "cells_per_m_z",  # 0: no cells along this axis
    "offset_x", "offset_y", "offset_z",  # of the pattern, in cells
    "parity",  # 1: cells alternate between a and b; 0: each cell has a colour of its own between them
    "accent_share",  # share of cells in the accent colour
    "sub_cells",  # a share of the cells is divided into this many along each axis; 0: none
    "brick_shift",  # how far every second row (y) is shifted along x, in cells
    "line_width_m",
    "dot_radius",  # in cells of x and y; 0: no dots
    "noise_per_m_x", "noise_per_m_y", "noise_per_m_z",  # frequency of the first octave
    "noise_contrast",
    "wave_strength", "wave_rings", "wave_per_m", "wave_warp",  # marble (0) and rings (1)
    "emission",
    "salt",  # makes two surfaces of the same family differ
)  # fmt: skip
COLUMN_INDEX = {name: index for index, name in enumerate(COLUMNS)}
DRAWS_PER_MATERIAL = 24

MaterialTable = Float32[Tensor, "scenes surfaces columns"]


def _hsv(hue: FloatArray, saturation: FloatArray, value: FloatArray) -> FloatArray:
    """Linear RGB [n, 3] of hue (in turns), saturation and value, given as sRGB."""
    offsets = np.array([5.0, 3.0, 1.0]) / 6.0
    # Paint and cloth in rooms are rarely as saturated as a screen can be.
    saturation = 0.8 * saturation
    k = np.mod(offsets[None, :] + hue[:, None], 1.0) * 6.0
    srgb = value[:, None] * (1.0 - saturation[:, None] * np.clip(np.minimum(k, 4.0 - k), 0.0, 1.0))
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def _room_hue(draw: FloatArray) -> FloatArray:
    """Hues as rooms have them: half of them warm, a quarter blue, the rest anything."""
    warm, blue, other = 0.3 * draw, 0.5 + 0.6 * (draw - 0.5), 4.0 * (draw - 0.75)
    return np.where(draw < 0.5, warm, np.where(draw < 0.75, blue, other))


class _MaterialDraft:
    """Rows of parameters being filled in, [materials, columns]."""

    def __init__(self, draws: FloatArray, contrast: float) -> None:
        self.rows = np.zeros((len(draws), len(COLUMNS)))
        self._draws, self._contrast = draws, contrast

    def between(self, column: int, low: float, high: float) -> FloatArray:
        """A uniform draw scaled to a range."""
        return low + (high - low) * self._draws[:, column]

    def put(self, name: str, value: FloatArray | float) -> None:
        self.rows[:, COLUMN_INDEX[name]] = value

    def put_color(self, name: str, hue: FloatArray, saturation: FloatArray, value: FloatArray) -> None:
        start = COLUMN_INDEX[f"color_{name}_r"]
        self.rows[:, start : start + 3] = _hsv(hue, saturation, value)

    def put_cells(self, x: FloatArray | float, y: FloatArray | float, z: FloatArray | float) -> None:
        for axis, value in zip("xyz", (x, y, z), strict=True):
            self.put(f"cells_per_m_{axis}", value)

    def put_noise(
        self, x: FloatArray | float, y: FloatArray | float, z: FloatArray | float, strength: FloatArray
    ) -> None:
        for axis, value in zip("xyz", (x, y, z), strict=True):
            self.put(f"noise_per_m_{axis}", value)
        self.put("noise_contrast", strength * self._contrast)


def material_rows(family: str, draws: FloatArray, contrast: float) -> FloatArray:
    """Parameters of n materials of one family, [n, columns], from uniform draws [n, DRAWS_PER_MATERIAL]."""
    draft = _MaterialDraft(draws, contrast)
    hue = _room_hue(draws[:, 0])
    other_hue = _room_hue(np.mod(draws[:, 0] + draft.between(1, 0.25, 0.75), 1.0))
    for axis, column in zip("xyz", (2, 3, 4), strict=True):
        draft.put(f"offset_{axis}", draws[:, column])
    draft.put("salt", np.floor(draws[:, 5] * 2.0**22))
    frequency = draft.between(6, 1.6, 3.2)
    draft.put_noise(frequency, frequency, frequency, draft.between(7, 0.35, 0.7))
    # A quiet surface of one colour; what follows departs from it.
    draft.put_color("a", hue, draft.between(8, 0.25, 0.7), draft.between(9, 0.5, 0.85))
    draft.put_color(
        "b", hue + draft.between(10, -0.08, 0.08), draft.between(11, 0.3, 0.75), draft.between(12, 0.25, 0.6)
    )
    draft.put_color("line", other_hue, draft.between(13, 0.3, 0.7), draft.between(14, 0.15, 0.4))
    draft.put_color("accent", other_hue, draft.between(15, 0.5, 0.9), draft.between(16, 0.6, 0.95))

    if family == "plaster":
        draft.put_color("a", draft.between(0, 0.02, 0.65), draft.between(8, 0.05, 0.35), draft.between(9, 0.72, 0.92))
        draft.put_color("b", draft.between(1, 0.02, 0.65), draft.between(11, 0.1, 0.4), draft.between(12, 0.45, 0.72))
        draft.put_noise(frequency * 0.8, frequency * 0.8, frequency * 0.8, draft.between(7, 0.55, 0.95))
    elif family in ("dots", "stripes"):
        draft.put_color("a", hue, draft.between(8, 0.08, 0.4), draft.between(9, 0.75, 0.92))
        draft.put_color("b", hue + 0.1, draft.between(8, 0.15, 0.45), draft.between(12, 0.5, 0.75))
        if family == "dots":
            cells = draft.between(17, 1.4, 3.2)
            draft.put_cells(cells, cells, 0.0)
            draft.put("dot_radius", draft.between(18, 0.2, 0.38))
            draft.put("brick_shift", 0.5)
        else:
            draft.put_cells(draft.between(17, 1.6, 4.0), 0.0, 0.0)
            draft.put("line_width_m", draft.between(18, 0.0, 0.03))
        draft.put("parity", 0.75)
    elif family == "brick":
        draft.put_color("a", draft.between(0, 0.0, 0.08), draft.between(8, 0.3, 0.6), draft.between(9, 0.55, 0.8))
        draft.put_color("b", draft.between(0, 0.0, 0.08), draft.between(11, 0.4, 0.65), draft.between(12, 0.3, 0.5))
        draft.put_color("line", hue, draft.between(13, 0.0, 0.1), draft.between(14, 0.6, 0.8))
        draft.put_cells(draft.between(17, 2.0, 3.4), draft.between(18, 4.5, 8.0), 0.0)
        draft.put("brick_shift", 0.5)
        draft.put("line_width_m", 0.022)
    elif family in ("planks", "wood"):
        wood_hue = draft.between(0, 0.05, 0.11)
        draft.put_color("a", wood_hue, draft.between(8, 0.35, 0.6), draft.between(9, 0.6, 0.88))
        draft.put_color("b", wood_hue - 0.01, draft.between(11, 0.5, 0.7), draft.between(12, 0.28, 0.5))
        draft.put_color("line", wood_hue, draft.between(13, 0.5, 0.7), draft.between(14, 0.1, 0.22))
        if family == "planks":
            draft.put_cells(draft.between(17, 0.6, 1.1), draft.between(18, 4.0, 8.0), 0.0)
            draft.put("brick_shift", draft.between(19, 0.3, 0.6))
            draft.put("line_width_m", 0.012)
            draft.put_noise(frequency, frequency * 4.5, frequency, draft.between(7, 0.55, 0.95))
        else:
            draft.put_cells(draft.between(17, 0.5, 1.5), draft.between(18, 1.5, 4.0), draft.between(18, 1.5, 4.0))
            draft.put("line_width_m", 0.008)
            draft.put_noise(frequency, frequency * 3.5, frequency * 3.5, draft.between(7, 0.6, 1.0))
    elif family == "tiles":
        cells = draft.between(17, 1.6, 4.0)
        draft.put_cells(cells, cells, 0.0)
        draft.put("parity", np.round(draws[:, 18]) * 0.8)
        draft.put("line_width_m", draft.between(19, 0.012, 0.025))
        draft.put("accent_share", draft.between(20, 0.0, 0.2))
        draft.put_color("line", hue, draft.between(13, 0.0, 0.15), draft.between(14, 0.25, 0.7))
    elif family == "carpet":
        cells = draft.between(17, 1.2, 2.4)
        draft.put_cells(cells, cells * draft.between(18, 0.8, 1.6), 0.0)
        draft.put("accent_share", 0.25)
        draft.put("sub_cells", 3.0)
        draft.put("line_width_m", draft.between(19, 0.02, 0.05))
        draft.put("dot_radius", draft.between(20, 0.0, 0.35))
    elif family == "fabric":
        draft.put_cells(draft.between(17, 3.0, 7.0), draft.between(18, 3.0, 7.0), draft.between(19, 3.0, 7.0))
        draft.put("accent_share", 0.15)
        draft.put("line_width_m", draft.between(20, 0.01, 0.03))
    elif family == "paint":
        draft.put_color("a", hue, draft.between(8, 0.3, 0.85), draft.between(9, 0.6, 0.95))
        draft.put("noise_contrast", draft.between(7, 0.4, 0.7) * contrast)
    elif family == "checker":
        cells = draft.between(17, 3.5, 8.0)
        draft.put_cells(cells, cells, cells)
        draft.put("parity", 1.0)
        draft.put_color("b", other_hue, draft.between(11, 0.3, 0.8), draft.between(12, 0.2, 0.9))
    elif family == "books":
        draft.put_color("a", hue, draft.between(8, 0.4, 0.9), draft.between(9, 0.65, 0.95))
        draft.put_color("b", other_hue, draft.between(11, 0.4, 0.9), draft.between(12, 0.15, 0.45))
        draft.put_cells(draft.between(17, 18.0, 30.0), 0.0, draft.between(18, 3.0, 5.0))
        draft.put("brick_shift", 0.0)
        draft.put("accent_share", 0.3)
        draft.put("line_width_m", 0.005)
        draft.put_color("line", hue, 0.1 * draws[:, 13], draft.between(14, 0.03, 0.08))
    elif family == "poster":
        draft.put_color("a", hue, draft.between(8, 0.3, 0.9), draft.between(9, 0.75, 0.98))
        draft.put_color("b", other_hue, draft.between(11, 0.4, 0.9), draft.between(12, 0.15, 0.5))
        draft.put_color("line", hue + 0.5, 0.5 * draws[:, 13], np.round(draws[:, 14]) * 0.9 + 0.03)
        draft.put_cells(draft.between(17, 1.8, 4.0), draft.between(18, 1.8, 4.0), 0.0)
        draft.put("accent_share", 0.3)
        draft.put("sub_cells", np.floor(draft.between(19, 2.0, 4.99)))
        draft.put("dot_radius", np.maximum(draft.between(20, -0.15, 0.48), 0.0))
        draft.put("line_width_m", np.maximum(draft.between(21, -0.02, 0.025), 0.0))
    elif family == "leaf":
        draft.put_color("a", draft.between(0, 0.2, 0.36), draft.between(8, 0.5, 0.85), draft.between(9, 0.6, 0.85))
        draft.put_color("b", draft.between(0, 0.22, 0.4), draft.between(11, 0.5, 0.8), draft.between(12, 0.12, 0.3))
        draft.put_cells(draft.between(17, 9.0, 14.0), draft.between(18, 9.0, 14.0), draft.between(19, 9.0, 14.0))
        draft.put_noise(6.0, 6.0, 6.0, draft.between(7, 0.8, 1.2))
    elif family == "metal":
        draft.put_color("a", hue, 0.1 * draws[:, 8], draft.between(9, 0.4, 0.6))
        draft.put_color("b", hue, 0.1 * draws[:, 8], draft.between(12, 0.2, 0.4))
    elif family == "lamp":
        draft.put_color("a", draft.between(0, 0.08, 0.16), draft.between(8, 0.15, 0.45), draft.between(9, 0.9, 1.0))
        draft.put_cells(0.0, 0.0, draft.between(17, 10.0, 20.0))
        draft.put("parity", 0.5)
        draft.put("emission", 0.8)
    elif family in ("marble", "rings"):
        draft.put_color("b", other_hue, draft.between(11, 0.3, 0.8), draft.between(12, 0.15, 0.5))
        draft.put("noise_contrast", 0.6 * draft.between(7, 0.35, 0.7) * contrast)
        draft.put("wave_strength", draft.between(17, 0.6, 1.0))
        draft.put("wave_rings", 1.0 if family == "rings" else 0.0)
        draft.put("wave_per_m", draft.between(18, 1.2, 2.8))
        draft.put("wave_warp", draft.between(19, 0.35, 0.8) if family == "marble" else draft.between(19, 0.03, 0.1))
    else:
        raise ValueError(f"unknown material family {family!r}")
    return draft.rows


def to_table(rows: FloatArray) -> MaterialTable:
    """The rows of all surfaces of all scenes as a float32 tensor."""
    return torch.from_numpy(rows.astype(np.float32))
