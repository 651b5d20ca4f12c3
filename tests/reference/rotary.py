"""Rotary positions as complex numbers, one patch and one plane at a time."""

import cmath

import torch
from torch import Tensor


def rotate_naively(tokens: Tensor, rows: int, columns: int, base: float) -> Tensor:
    """Tokens (batch, patches, heads, width) turned by their row (first half) and column (second half)."""
    turned = tokens.clone()
    axis_width = tokens.shape[-1] // 2
    for patch in range(rows * columns):
        for axis, position in enumerate((patch // columns, patch % columns)):
            for k in range(axis_width // 2):
                turn = cmath.exp(1j * position * base ** (-2 * k / axis_width))
                first, second = axis * axis_width + k, axis * axis_width + k + axis_width // 2
                plane = torch.complex(tokens[:, patch, :, first], tokens[:, patch, :, second]) * turn
                turned[:, patch, :, first], turned[:, patch, :, second] = plane.real, plane.imag
    return turned
