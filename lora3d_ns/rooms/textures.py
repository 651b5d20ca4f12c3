"""Solid textures: the colour of a surface as a function of the point in its own frame.

Every texture is made of cells (tiles, bricks, stripes, book spines), lines and dots on them, and value noise of several
octaves. What is finer than a pixel fades into its mean, so that photos from different distances agree without aliasing.
The lattice hash uses 32-bit integers only and gives the same on every device.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lora3d_ns.rooms.materials import COLUMN_INDEX

_OCTAVE_COUNT = 6
_OCTAVE_RATIO = 2.3
_OCTAVE_GAIN = 0.68
# Large odd numbers, as signed 32-bit.
_PRIME_X, _PRIME_Y, _PRIME_Z, _PRIME_MIX = 0x2C1B3C6D, 0x297A2D39, 0x5BD1E995, 0x1B873593
_EVERYWHERE = 1.0e6


@dataclass(frozen=True, eq=False, kw_only=True)
class SurfacePoints:
    """Where to evaluate textures, one entry per point.

    Attributes:
        materials: Parameter columns, [columns, points].
        object_m: x, y, z in the surface's own frame, metres.
        footprint_m: Size of a pixel on the surface.
    """

    materials: Tensor
    object_m: tuple[Tensor, Tensor, Tensor]
    footprint_m: Tensor

    def column(self, name: str) -> Tensor:
        """One parameter of all points."""
        return self.materials[COLUMN_INDEX[name]]


def albedo(points: SurfacePoints, *, with_waves: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Linear RGB reflectance of surface points.

    Args:
        points: Where.
        with_waves: False promises that no material among them has waves (marble or rings), which saves time.

    Returns:
        Red, green and blue in 0 to 1.
    """
    salt = points.column("salt").to(torch.int32)
    noise = _fractal_noise(points, salt)
    palette, accent, lines = _cells(points, salt)
    if with_waves:
        strength = points.column("wave_strength")
        palette = palette + strength * (_waves(points, noise) - palette)
    # Steeper in the middle: blotches with edges that can be located.
    roughness = points.column("noise_contrast") * (1.5 * noise).clamp(-1.2, 1.2)
    palette = (palette + 0.45 * roughness).clamp(0.0, 1.0)
    brightness = (1.0 + 0.4 * roughness).clamp(0.3, 1.6)
    channels = []
    for channel in "rgb":
        a, b = points.column(f"color_a_{channel}"), points.column(f"color_b_{channel}")
        color = a + palette * (b - a)
        color = color + accent * (points.column(f"color_accent_{channel}") - color)
        color = color + lines * (points.column(f"color_line_{channel}") - color)
        channels.append((color * brightness).clamp(0.0, 1.0))
    return channels[0], channels[1], channels[2]


def value_noise(x: Tensor, y: Tensor, z: Tensor, salt: Tensor) -> Tensor:
    """Smooth noise in [-1, 1] between random values at the points of the integer lattice."""
    floor_x, floor_y, floor_z = x.floor(), y.floor(), z.floor()
    weight_x, weight_y, weight_z = _smooth(x - floor_x), _smooth(y - floor_y), _smooth(z - floor_z)
    x0 = floor_x.to(torch.int32) * _PRIME_X
    y0 = floor_y.to(torch.int32) * _PRIME_Y
    z0 = floor_z.to(torch.int32) * _PRIME_Z + salt
    x1, y1, z1 = x0 + _PRIME_X, y0 + _PRIME_Y, z0 + _PRIME_Z
    planes = []
    for plane in (z0, z1):
        rows = []
        for row in (y0, y1):
            both = row ^ plane
            first, second = _lattice_value(x0 ^ both), _lattice_value(x1 ^ both)
            rows.append(first + weight_x * (second - first))
        planes.append(rows[0] + weight_y * (rows[1] - rows[0]))
    return (planes[0] + weight_z * (planes[1] - planes[0])) * 2.0**-31


def _smooth(fraction: Tensor) -> Tensor:
    return fraction * fraction * (3.0 - 2.0 * fraction)


def _scramble(word: Tensor) -> Tensor:
    """Mix a 32-bit word so that its upper bits depend on all of it; multiplication wraps around."""
    return (word ^ (word >> 15)) * _PRIME_MIX


def _lattice_value(word: Tensor) -> Tensor:
    """A number in [-2^31, 2^31); its low bits are poor, but they are its last decimals."""
    return _scramble(word).to(torch.float32)


def _fractal_noise(points: SurfacePoints, salt: Tensor) -> Tensor:
    x, y, z = (
        coordinate * points.column(f"noise_per_m_{axis}")
        for axis, coordinate in zip("xyz", points.object_m, strict=True)
    )
    finest = torch.maximum(
        torch.maximum(points.column("noise_per_m_x"), points.column("noise_per_m_y")), points.column("noise_per_m_z")
    )
    lattice_per_pixel = finest * points.footprint_m
    total = torch.zeros_like(x)
    amplitude = 1.0
    for octave in range(_OCTAVE_COUNT):
        # An octave fades out between 0.4 and 1 lattice cells per pixel.
        weight = ((1.0 - lattice_per_pixel) * (amplitude / 0.6)).clamp(0.0, amplitude)
        if octave > 1 and not bool((weight > 0).any()):
            break
        total = total + weight * value_noise(x, y, z, salt + 0x3C6EF3 * (octave + 1))
        shift = 0.37 * (octave + 1)
        x, y, z = x * _OCTAVE_RATIO + shift, y * _OCTAVE_RATIO + shift, z * _OCTAVE_RATIO + shift
        lattice_per_pixel = lattice_per_pixel * _OCTAVE_RATIO
        amplitude *= _OCTAVE_GAIN
    return total


def _cells(points: SurfacePoints, salt: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Place in the palette, share of the accent colour, share of lines and dots; each in 0 to 1."""
    cells_per_m = [points.column(f"cells_per_m_{axis}") for axis in "xyz"]
    u, v, w = (
        coordinate * per_m + points.column(f"offset_{axis}")
        for axis, coordinate, per_m in zip("xyz", points.object_m, cells_per_m, strict=True)
    )
    row = v.floor()
    u = u + points.column("brick_shift") * row.remainder(2.0)
    cell_u, cell_w = u.floor(), w.floor()
    first, second, third = _cell_values(cell_u, row, cell_w, salt)
    parity = points.column("parity")
    alternate = (cell_u + row + cell_w).remainder(2.0)
    palette = first + parity * (alternate - first)
    accent_share = points.column("accent_share")
    accent = (second < accent_share).to(u.dtype)

    sub_cells = points.column("sub_cells")
    sub_first, sub_second, _ = _cell_values((u * sub_cells).floor(), (v * sub_cells).floor(), cell_w, salt + 0x51ED27)
    divided = ((third < 0.45) & (sub_cells > 0)).to(u.dtype)
    palette = palette + divided * (sub_first - palette)
    accent = accent + divided * ((sub_second < accent_share).to(u.dtype) - accent)

    coarsest = torch.maximum(torch.maximum(cells_per_m[0], cells_per_m[1]), cells_per_m[2])
    resolved = ((1.0 - points.footprint_m * coarsest) * 2.0).clamp(0.0, 1.0)
    palette = 0.5 + resolved * (palette - 0.5)
    accent = accent_share + resolved * (accent - accent_share)

    # Distance to the nearest border between cells, in metres.
    border_m = torch.full_like(u, _EVERYWHERE)
    for position, floor, per_m in ((u, cell_u, cells_per_m[0]), (v, row, cells_per_m[1]), (w, cell_w, cells_per_m[2])):
        fraction = position - floor
        distance = torch.minimum(fraction, 1.0 - fraction) / per_m.clamp_min(1.0 / _EVERYWHERE)
        border_m = torch.minimum(border_m, distance + (per_m <= 0) * _EVERYWHERE)
    line_width_m = points.column("line_width_m")
    line = ((0.5 * line_width_m - border_m) / points.footprint_m + 0.5).clamp(0.0, 1.0)
    line = line * (line_width_m / points.footprint_m).clamp_max(1.0)

    dot_radius = points.column("dot_radius")
    from_middle = ((u - cell_u - 0.5).square() + (v - row - 0.5).square()).sqrt()
    softness = points.footprint_m * coarsest + 1e-4
    dot = ((dot_radius * (0.6 + 0.4 * third) - from_middle) / softness + 0.5).clamp(0.0, 1.0)
    dot = dot * (dot_radius > 0) * resolved
    return palette, accent, torch.maximum(line, dot)


def _cell_values(u: Tensor, v: Tensor, w: Tensor, salt: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Three random numbers in [0, 1) of each cell."""
    word = u.to(torch.int32) * _PRIME_X ^ v.to(torch.int32) * _PRIME_Y ^ (w.to(torch.int32) * _PRIME_Z + salt)
    word = _scramble(word)
    word = _scramble(word)
    word = word ^ (word >> 13)
    bits = 2.0**-10
    return (
        (word & 0x3FF).to(torch.float32) * bits,
        ((word >> 10) & 0x3FF).to(torch.float32) * bits,
        ((word >> 20) & 0x3FF).to(torch.float32) * bits,
    )


def _waves(points: SurfacePoints, noise: Tensor) -> Tensor:
    """Veins of marble, or rings about the z axis, in 0 to 1."""
    x, y, z = points.object_m
    rings = points.column("wave_rings")
    per_m = points.column("wave_per_m")
    distance = (x * x + y * y).sqrt()
    along = 0.6 * x + 0.5 * y + 0.62 * z
    phase = (along + rings * (distance - along)) * per_m + points.column("wave_warp") * noise
    resolved = ((1.0 - 1.2 * points.footprint_m * per_m) * 2.0).clamp(0.0, 1.0)
    # Triangle wave, sharpened: its edges can be located, a sine's cannot.
    triangle = 4.0 * (phase - phase.floor() - 0.5).abs() - 1.0
    return 0.5 + 0.5 * resolved * (2.5 * triangle).clamp(-1.0, 1.0)
