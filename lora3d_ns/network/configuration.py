"""The numbers that tell one member of the DUSt3R family from another."""

from dataclasses import dataclass
from typing import Literal

from lora3d_ns.errors import SettingsError


@dataclass(frozen=True, kw_only=True)
class Dust3rConfig:
    """Architecture of a DUSt3R network; the defaults are the official ViT-Large / Base-decoder one.

    Attributes:
        patch_size: Side of a patch in pixels. With the DPT head a multiple of 8.
        encoder_width, encoder_depth, encoder_heads: The image encoder.
        decoder_width, decoder_depth, decoder_heads: Each of the two decoders.
        mlp_ratio: Hidden width of the blocks' MLPs over their width.
        rope_base: Base b of the rotary position embedding: axis frequencies are b^(-2k/d), d = half the head width.
        head: `linear` (one projection per token) or `dpt` (multi-scale convolutions).
        depth_mode: How a predicted vector x becomes a point: `exp`: x/|x| (e^|x| - 1); `square`: x |x|; `linear`: x.
        dpt_channels: Channels of the four scales of the DPT head.
        dpt_features: Channels of its fusion blocks.
        descriptor_width: Width of the optional matching descriptor per token (0: no such head).
        image_size: Long side in pixels of the photos it was trained on: the size to load photos at.
    """

    patch_size: int = 16
    encoder_width: int = 1024
    encoder_depth: int = 24
    encoder_heads: int = 16
    decoder_width: int = 768
    decoder_depth: int = 12
    decoder_heads: int = 12
    mlp_ratio: float = 4.0
    rope_base: float = 100.0
    head: Literal["linear", "dpt"] = "dpt"
    depth_mode: Literal["exp", "square", "linear"] = "exp"
    dpt_channels: tuple[int, int, int, int] = (96, 192, 384, 768)
    dpt_features: int = 256
    descriptor_width: int = 0
    image_size: int = 512

    def __post_init__(self) -> None:
        for name in (
            "patch_size",
            "encoder_width",
            "encoder_heads",
            "decoder_width",
            "decoder_heads",
            "decoder_depth",
            "image_size",
        ):
            self._check(getattr(self, name) > 0, f"{name} must be positive, not {getattr(self, name)}")
        for name in ("encoder_depth", "descriptor_width"):
            self._check(getattr(self, name) >= 0, f"{name} must not be negative, not {getattr(self, name)}")
        for part in ("encoder", "decoder"):
            width, heads = getattr(self, f"{part}_width"), getattr(self, f"{part}_heads")
            self._check(
                width % (4 * heads) == 0,
                f"{part}_width {width} must be a multiple of 4 x {part}_heads {heads} (rotary pairs for two axes)",
            )
        if self.head == "dpt":
            self._check(
                self.patch_size % 8 == 0, f"the DPT head needs a patch_size of 8, 16, ..., not {self.patch_size}"
            )
            self._check(self.decoder_depth >= 4, f"the DPT head needs decoder_depth >= 4, not {self.decoder_depth}")

    @staticmethod
    def _check(condition: bool, problem: str) -> None:
        if not condition:
            raise SettingsError(problem, way_out="Change the network configuration")
