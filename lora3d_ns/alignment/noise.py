"""How noisy a photo is, to decide how hard to look for matches in it."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float32
from torch import Tensor

_LAPLACIANS = ((1.0, -2.0, 1.0), (-2.0, 4.0, -2.0), (1.0, -2.0, 1.0))
"""Difference of two Laplacians: blind to edges, not to noise."""


def noise_share(image: Float32[Tensor, "3 height width"]) -> float:
    """Standard deviation of a photo's noise as a share of that of the photo itself; 0 for a photo of one colour.

    `sqrt(pi / 2) / 6 * mean |N * I|` of the grey photo I with the mask N (Immerkaer, Computer Vision and Image
    Understanding 64, 1996), which is exact for Gaussian noise on a flat photo.
    """
    grey = image.mean(dim=0)
    if min(grey.shape) < 3:
        return 0.0
    contrast = float(image.std())
    mask = torch.tensor(_LAPLACIANS, dtype=grey.dtype, device=grey.device)
    response = F.conv2d(grey[None, None], mask[None, None]).abs().mean()
    return math.sqrt(math.pi / 2.0) / 6.0 * float(response) / contrast if contrast > 0 else 0.0
