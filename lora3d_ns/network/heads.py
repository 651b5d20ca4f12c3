"""From decoder tokens to point maps: the linear head and the multi-scale convolutional one (DPT, arXiv 2103.13413).

Parameter names are those of the official checkpoints. Two things are done elsewhere than in the original, without
changing a value beyond rounding:

- The finest scale of the DPT head reads the *encoder's* tokens only, so it is the same for every pair an image takes
  part in. `DptHead.finest_scale` computes it once per image.
- A 1x1 convolution and a bilinear up-sampling commute (the interpolation weights sum to one), so the 1x1 convolution
  after each fusion runs at the low resolution, a quarter of the work.
"""

from collections.abc import Sequence
from typing import Literal, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from lora3d_ns.network.configuration import Dust3rConfig

CHANNELS_OUT = 4
"""x, y, z and the confidence's logit."""


def points_from_raw(
    raw: Float[Tensor, "batch height width 3"], mode: Literal["exp", "square", "linear"]
) -> Float[Tensor, "batch height width 3"]:
    """3D points from the head's raw vectors x: `exp`: x/|x| (e^|x| - 1); `square`: x |x|; `linear`: x."""
    if mode == "linear":
        return raw
    distance = raw.norm(dim=-1, keepdim=True)
    direction = raw / distance.clamp(min=1e-8)
    return direction * (torch.expm1(distance) if mode == "exp" else distance.square())


def log_confidence_from_raw(raw: Float[Tensor, "batch height width"]) -> Float[Tensor, "batch height width"]:
    """C = log(1 + e^x): the logarithm of the raw confidence 1 + e^x, without overflow."""
    return F.softplus(raw)


class LinearHead(nn.Module):
    """One projection per token, rearranged into the token's patch of pixels."""

    def __init__(self, config: Dust3rConfig) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        self.proj = nn.Linear(config.decoder_width, CHANNELS_OUT * config.patch_size**2)

    def forward(
        self, tokens: Float[Tensor, "batch patches channels"], rows: int, columns: int
    ) -> Float[Tensor, "batch 4 height width"]:
        """Raw vectors and confidence logits for each pixel."""
        values = self.proj(tokens).float()
        return F.pixel_shuffle(values.mT.unflatten(-1, (rows, columns)), self.patch_size)


class _ResidualUnit(nn.Module):
    def __init__(self, features: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(features, features, 3, padding=1)
        self.conv2 = nn.Conv2d(features, features, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu_(self.conv1(F.relu(x))))


class _FusionBlock(nn.Module):
    """Adds the next finer scale, refines, and doubles the resolution.

    `resConfUnit1`, which refines the finer scale before it is added, is run by the caller: its input may be the same
    for many pairs. The official coarsest block carries one too, and never uses it.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.out_conv = nn.Conv2d(features, features, 1)
        self.resConfUnit1 = _ResidualUnit(features)
        self.resConfUnit2 = _ResidualUnit(features)

    def forward(self, x: Tensor) -> Tensor:
        return _upsample(self.out_conv(self.resConfUnit2(x)), 2)


def _upsample(x: Tensor, factor: int) -> Tensor:
    return F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=True)


def _regress(path: Tensor, convolution: nn.Conv2d) -> Tensor:
    """The last convolution, in float32: eight bits of mantissa would be half a percent of depth."""
    assert convolution.bias is not None
    arguments = (path.float(), convolution.weight.float(), convolution.bias.float())
    if path.dtype == torch.float32:
        return F.conv2d(*arguments)
    with torch.autocast(path.device.type, enabled=False):
        return F.conv2d(*arguments)


class _Dpt(nn.Module):
    def __init__(self, config: Dust3rConfig) -> None:
        super().__init__()
        channels, features = config.dpt_channels, config.dpt_features
        widths = (config.encoder_width, config.decoder_width, config.decoder_width, config.decoder_width)
        to_channels = [nn.Conv2d(width, channel, 1) for width, channel in zip(widths, channels, strict=True)]
        self.act_postprocess = nn.ModuleList(
            [
                nn.Sequential(to_channels[0], nn.ConvTranspose2d(channels[0], channels[0], 4, stride=4)),
                nn.Sequential(to_channels[1], nn.ConvTranspose2d(channels[1], channels[1], 2, stride=2)),
                nn.Sequential(to_channels[2]),
                nn.Sequential(to_channels[3], nn.Conv2d(channels[3], channels[3], 3, stride=2, padding=1)),
            ]
        )
        self.scratch = nn.Module()
        for scale, channel in enumerate(channels, start=1):
            self.scratch.add_module(f"layer{scale}_rn", nn.Conv2d(channel, features, 3, padding=1, bias=False))
            self.scratch.add_module(f"refinenet{scale}", _FusionBlock(features))
        # The official head is a sequence whose odd members hold no parameters.
        self.head = nn.ModuleDict(
            {
                "0": nn.Conv2d(features, features // 2, 3, padding=1),
                "2": nn.Conv2d(features // 2, features // 2, 3, padding=1),
                "4": nn.Conv2d(features // 2, CHANNELS_OUT, 1),
            }
        )

    def project(self, scale: int, tokens: Tensor, rows: int, columns: int) -> Tensor:
        """Tokens as the feature map of one scale (1 finest to 4 coarsest)."""
        # Tokens lie in memory as the pixels of a channels-last image, the layout in which all that follows is fastest.
        image = tokens.unflatten(1, (rows, columns)).permute(0, 3, 1, 2)
        return self.scratch.get_submodule(f"layer{scale}_rn")(self.act_postprocess[scale - 1](image))

    def fusion(self, scale: int) -> _FusionBlock:
        """The fusion block of one scale."""
        return cast(_FusionBlock, self.scratch.get_submodule(f"refinenet{scale}"))


class DptHead(nn.Module):
    """Four scales of tokens, fused from coarse to fine by convolutions.

    Scale 1 reads the encoder's tokens, scales 2 to 4 the decoder's after 1/2, 3/4 and all of its blocks.
    """

    def __init__(self, config: Dust3rConfig) -> None:
        super().__init__()
        self.dpt = _Dpt(config)
        self.output_factor = config.patch_size // 8
        depth = config.decoder_depth
        self.decoder_layers = (depth // 2, depth * 3 // 4, depth)

    def finest_scale(
        self, encoder_tokens: Float[Tensor, "batch patches channels"], rows: int, columns: int
    ) -> Float[Tensor, "batch features rows_4 columns_4"]:
        """Scale 1, ready to be added: depends on the image alone."""
        return self.dpt.fusion(1).resConfUnit1(self.dpt.project(1, encoder_tokens, rows, columns))

    def forward(
        self,
        finest: Float[Tensor, "batch features rows_4 columns_4"],
        decoder_tokens: Sequence[Float[Tensor, "batch patches channels"]],
        rows: int,
        columns: int,
    ) -> Float[Tensor, "batch 4 height width"]:
        """Raw vectors and confidence logits for each pixel.

        Args:
            finest: What `finest_scale` gave for these images.
            decoder_tokens: Tokens after the blocks named by `decoder_layers`, in that order.
            rows, columns: Grid of patches.
        """
        scale_2, scale_3, scale_4 = (
            self.dpt.project(scale, tokens, rows, columns)
            for scale, tokens in zip((2, 3, 4), decoder_tokens, strict=True)
        )
        # An odd grid is halved upwards and doubled again: cut back to the grid.
        path = self.dpt.fusion(4)(scale_4)[:, :, :rows, :columns]
        path = self.dpt.fusion(3)(path + self.dpt.fusion(3).resConfUnit1(scale_3))
        path = self.dpt.fusion(2)(path + self.dpt.fusion(2).resConfUnit1(scale_2))
        path = self.dpt.fusion(1)(path + finest)
        head = self.dpt.head
        path = head["0"](path)
        if self.output_factor != 1:
            path = _upsample(path, self.output_factor)
        path = F.relu_(head["2"](path))
        return _regress(path, cast(nn.Conv2d, head["4"]))
