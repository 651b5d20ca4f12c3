"""The DUSt3R family (arXiv 2312.14132): a shared encoder, two decoders that look at each other, a head for each.

Our own code, from the paper and the facts of the official architecture; every official tensor has its place here under
its official name, so `load_state_dict` needs no translation (see `checkpoints.py` for the two exceptions).
"""

from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lora3d_ns.errors import InvalidDataError
from lora3d_ns.network.base import Encoding, PairOutput
from lora3d_ns.network.configuration import Dust3rConfig
from lora3d_ns.network.heads import DptHead, LinearHead, log_confidence_from_raw, points_from_raw
from lora3d_ns.network.layers import LAYER_NORM_EPSILON, DecoderBlock, EncoderBlock, RotaryGrid


class PatchEmbedding(nn.Module):
    """Patches of pixels as tokens."""

    def __init__(self, patch_size: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, kernel_size=patch_size, stride=patch_size)

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch patches channels"]:
        """One token per patch, row-major."""
        return self.proj(images).flatten(2).mT


class Dust3r(nn.Module):
    """A DUSt3R network; implements `PairNetwork`.

    `encode` does all that depends on one image alone, once: the encoder, the decoders' embedding, the self-attention
    of both decoders' first blocks and, with the DPT head, its finest scale for either role. `decode` does the rest
    per ordered pair.

    Attributes:
        recompute_activations: Whether a backward pass computes the activations of each block anew instead of keeping
            them: a third more work for a fraction of the memory.
    """

    mask_token: Tensor
    recompute_activations: bool = False

    def __init__(self, config: Dust3rConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbedding(config.patch_size, config.encoder_width)
        self.enc_blocks = nn.ModuleList(
            EncoderBlock(config.encoder_width, config.encoder_heads, config.mlp_ratio)
            for _ in range(config.encoder_depth)
        )
        self.enc_norm = nn.LayerNorm(config.encoder_width, eps=LAYER_NORM_EPSILON)
        # CroCo's pre-training token: part of every official checkpoint, used by none of our computations.
        self.register_buffer("mask_token", torch.zeros(1, 1, config.decoder_width))
        self.decoder_embed = nn.Linear(config.encoder_width, config.decoder_width)
        self.dec_blocks = self._decoder_blocks()
        self.dec_blocks2 = self._decoder_blocks()
        self.dec_norm = nn.LayerNorm(config.decoder_width, eps=LAYER_NORM_EPSILON)
        self.downstream_head1 = self._head()
        self.downstream_head2 = self._head()
        self.apply(_initialize)

    def _decoder_blocks(self) -> nn.ModuleList:
        config = self.config
        return nn.ModuleList(
            DecoderBlock(config.decoder_width, config.decoder_heads, config.mlp_ratio)
            for _ in range(config.decoder_depth)
        )

    def _head(self) -> LinearHead | DptHead:
        head = DptHead(self.config) if self.config.head == "dpt" else LinearHead(self.config)
        if self.config.descriptor_width:
            head.add_module("descriptor", nn.Linear(self.config.decoder_width, self.config.descriptor_width))
        return head

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels."""
        return self.config.patch_size

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.decoder_embed.weight.device

    def encode(self, images: Float[Tensor, "batch 3 height width"]) -> Encoding:
        """Everything that depends on one image alone.

        Args:
            images: sRGB in 0 to 1, heights and widths multiples of the patch size.

        Returns:
            The encoder's tokens; as extras the embedded tokens, the same after the self-attention of either decoder's
            first block, and with the DPT head its finest scale for either role.

        Raises:
            InvalidDataError: The shape is no multiple of the patch size.
        """
        height, width = images.shape[-2:]
        if height % self.patch_size or width % self.patch_size:
            raise InvalidDataError(
                f"images of {width}x{height} pixels do not divide into patches of {self.patch_size}",
                way_out="Load them with `load_views`, which chooses a fitting shape",
            )
        grid = self._grid(height, width, self.config.encoder_width // self.config.encoder_heads)
        tokens = self.patch_embed((2.0 * images - 1.0).to(self.decoder_embed.weight.dtype))
        for block in self.enc_blocks:
            tokens = self._run(block, tokens, grid)
        tokens = self.enc_norm(tokens)

        embedded = self.decoder_embed(tokens)
        extras = [embedded]
        grid = self._grid(height, width, self.config.decoder_width // self.config.decoder_heads)
        for blocks in (self.dec_blocks, self.dec_blocks2):
            extras.append(self._run(cast(DecoderBlock, blocks[0]).look_at_self, embedded, grid))
        for head in (self.downstream_head1, self.downstream_head2):
            if isinstance(head, DptHead):
                rows, columns = height // self.patch_size, width // self.patch_size
                extras.append(self._run(head.finest_scale, tokens, rows, columns))
        return Encoding(tokens=tokens, height=height, width=width, extras=tuple(extras))

    def decode(self, first: Encoding, second: Encoding) -> PairOutput:
        """Point maps and log-confidences of the ordered pairs (first[b], second[b]), in the first camera's frame."""
        head_width = self.config.decoder_width // self.config.decoder_heads
        first_grid = self._grid(first.height, first.width, head_width)
        second_grid = self._grid(second.height, second.width, head_width)
        keep = self.downstream_head1.decoder_layers if isinstance(self.downstream_head1, DptHead) else ()
        kept: dict[int, tuple[Tensor, Tensor]] = {}

        x_first, x_second = first.extras[0], second.extras[0]
        blocks = cast(Iterable[tuple[DecoderBlock, DecoderBlock]], zip(self.dec_blocks, self.dec_blocks2, strict=True))
        for layer, (block_first, block_second) in enumerate(blocks):
            if layer == 0:
                own_first, own_second = first.extras[1], second.extras[2]
            else:
                own_first = self._run(block_first.look_at_self, x_first, first_grid)
                own_second = self._run(block_second.look_at_self, x_second, second_grid)
            # Both look at the other as it was before this block.
            x_first, x_second = (
                self._run(block_first.look_at_other, own_first, x_second, first_grid, second_grid),
                self._run(block_second.look_at_other, own_second, x_first, second_grid, first_grid),
            )
            if layer + 1 in keep:
                kept[layer + 1] = (x_first, x_second)
        last = self.config.decoder_depth
        kept[last] = (self.dec_norm(x_first), self.dec_norm(x_second))

        predictions = []
        for role, (head, encoding) in enumerate(((self.downstream_head1, first), (self.downstream_head2, second))):
            rows, columns = encoding.height // self.patch_size, encoding.width // self.patch_size
            if isinstance(head, DptHead):
                layers = [kept[layer][role] for layer in head.decoder_layers]
                raw = self._run(head, encoding.extras[3 + role], layers, rows, columns)
            else:
                raw = head(kept[last][role], rows, columns)
            raw = raw.permute(0, 2, 3, 1).float()
            descriptors = None
            if self.config.descriptor_width:
                descriptors = head.get_submodule("descriptor")(kept[last][role])
            points = points_from_raw(raw[..., :3], self.config.depth_mode)
            predictions.append((points, log_confidence_from_raw(raw[..., 3]), descriptors))
        (points_first, confidence_first, descriptors_first) = predictions[0]
        (points_second, confidence_second, descriptors_second) = predictions[1]
        return PairOutput(
            points_first=points_first,
            points_second=points_second,
            confidence_first=confidence_first,
            confidence_second=confidence_second,
            descriptors_first=descriptors_first,
            descriptors_second=descriptors_second,
        )

    def forward(
        self, images_first: Float[Tensor, "batch 3 _ _"], images_second: Float[Tensor, "batch 3 _ _"]
    ) -> PairOutput:
        """Encode and decode the pairs (images_first[b], images_second[b])."""
        return self.decode(self.encode(images_first), self.encode(images_second))

    def _run(self, part: Callable[..., Tensor], *arguments: Any) -> Tensor:
        """A part of the network, applied; of its activations only the input is kept where that is asked for."""
        if self.recompute_activations and torch.is_grad_enabled():
            # Nothing in a part is random, so there is no random state to put back.
            return cast(Tensor, checkpoint(part, *arguments, use_reentrant=False, preserve_rng_state=False))
        return part(*arguments)

    def _grid(self, height: int, width: int, head_width: int) -> RotaryGrid:
        return RotaryGrid(
            height // self.patch_size,
            width // self.patch_size,
            head_width=head_width,
            base=self.config.rope_base,
            device=self.device,
            dtype=torch.float32,
        )


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
