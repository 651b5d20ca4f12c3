"""Losses and metrics over the pixels that count."""

import logging
import math
import socket

import torch
from jaxtyping import Bool, Float
from pytorch_msssim import SSIM
from torch import Tensor

logger = logging.getLogger(__name__)

_PATIENCE_S = 10.0
"""How long the download of LPIPS' weights may be silent."""

_ssim = SSIM(data_range=1.0, size_average=True, channel=3)


_LEAST_SHARE = 1e-12


def masked_loss(
    rendered: Float[Tensor, "height width 3"],
    image: Float[Tensor, "height width 3"],
    mask: Bool[Tensor, "height width 1"] | None,
    *,
    ssim_share: float,
) -> Float[Tensor, ""]:
    """`(1 - s) L1 + s (1 - SSIM)` over the pixels that count.

    Masked pixels of the rendering are replaced by the photo's, so that windows of SSIM which reach into the mask find
    no difference there; both terms are then means over the rest.
    """
    share = torch.ones((), device=rendered.device)
    if mask is not None:
        rendered = torch.where(mask, rendered, image)
        # With nothing left both terms are nought, and so are their gradients. No branch: it would wait for the GPU.
        share = mask.float().mean().clamp_min(_LEAST_SHARE)
    l1 = (rendered - image).abs().mean()
    dissimilarity = 1.0 - structural_similarity(rendered, image)
    return ((1.0 - ssim_share) * l1 + ssim_share * dissimilarity) / share


def structural_similarity(
    rendered: Float[Tensor, "height width 3"], image: Float[Tensor, "height width 3"]
) -> Float[Tensor, ""]:
    """SSIM as nerfstudio measures it (11x11 Gaussian window)."""
    return _ssim(rendered.permute(2, 0, 1)[None], image.permute(2, 0, 1)[None])


class PerceptualMetric:
    """LPIPS, built when it is first needed; left out, with a word, where its weights cannot be had."""

    def __init__(self) -> None:
        self._network: torch.nn.Module | None = None
        self._missing = False

    def __call__(
        self, rendered: Float[Tensor, "height width 3"], image: Float[Tensor, "height width 3"]
    ) -> float | None:
        """LPIPS (AlexNet) of two images, or None."""
        if self._network is None and not self._missing:
            self._build()
        if self._network is None:
            return None
        with torch.no_grad():
            pair = (picture.permute(2, 0, 1)[None].clamp(0.0, 1.0) for picture in (rendered, image))
            return float(self._network.to(rendered.device)(*pair))

    def _build(self) -> None:
        patience = socket.getdefaulttimeout()
        socket.setdefaulttimeout(_PATIENCE_S)
        try:
            from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

            self._network = LearnedPerceptualImagePatchSimilarity(normalize=True).eval()
        except Exception as error:  # noqa: BLE001 (whatever stands in the way: the other metrics are there)
            self._missing = True
            logger.warning(
                "LPIPS is left out of the metrics: its weights cannot be had (%s: %s). `lora3d doctor` says where to "
                "put them",
                type(error).__name__,
                error,
            )
        finally:
            socket.setdefaulttimeout(patience)


def image_metrics(
    rendered: Float[Tensor, "height width 3"],
    image: Float[Tensor, "height width 3"],
    mask: Bool[Tensor, "height width 1"] | None,
    perceptual: PerceptualMetric | None,
) -> dict[str, float]:
    """PSNR and SSIM (and LPIPS) over the pixels that count: the same for every photo of a run."""
    share = 1.0
    if mask is not None:
        rendered = torch.where(mask > 0.5, rendered, image)
        share = max(float((mask > 0.5).float().mean()), 1e-6)
    error = float((rendered - image).square().mean()) / share
    metrics = {
        "psnr": -10.0 * math.log10(max(error, 1e-12)),
        "ssim": 1.0 - (1.0 - float(structural_similarity(rendered, image))) / share,
    }
    distance = None if perceptual is None else perceptual(rendered, image)
    if distance is not None:
        metrics["lpips"] = distance
    return metrics
