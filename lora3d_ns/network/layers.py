"""Transformer parts of the DUSt3R family: rotary positions on a grid, self- and cross-attention, the two blocks.

Parameter names are those of the official checkpoints (`norm1`, `attn.qkv`, `cross_attn.projq`, `mlp.fc1`, ...), so
that weights and adapters travel between the two without a table.
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

LAYER_NORM_EPSILON = 1e-6
"""DUSt3R's; PyTorch's own default of 1e-5 would cost the parity with its checkpoints."""


@lru_cache(maxsize=64)
def _rotary_table(
    rows: int, columns: int, head_width: int, base: float, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    axis_width = head_width // 2
    exponents = torch.arange(0, axis_width, 2, dtype=torch.float32, device=device) / axis_width
    frequencies = base**-exponents
    y, x = torch.meshgrid(
        torch.arange(rows, dtype=torch.float32, device=device),
        torch.arange(columns, dtype=torch.float32, device=device),
        indexing="ij",
    )
    positions = torch.stack([y.flatten(), x.flatten()], dim=-1)
    angles = (positions[:, :, None] * frequencies).to(dtype)
    return angles.cos()[:, None], angles.sin()[:, None]


class RotaryGrid:
    """Cosines and sines of 2D rotary position embedding (RoPE) for one grid of patches.

    Of each head's channels the first half turns with the patch's row, the second with its column. Within each half of
    width d, channels k and k + d/2 form a plane that turns by `position * base^(-2k/d)`.

    Args:
        rows, columns: Grid of patches, row-major.
        head_width: Channels per attention head, a multiple of 4.
        base: The b above.
        device, dtype: Of the tokens to be turned.
    """

    def __init__(
        self, rows: int, columns: int, *, head_width: int, base: float, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.cosine, self.sine = _rotary_table(rows, columns, head_width, base, device, dtype)

    def rotate(
        self, tokens: Float[Tensor, "batch patches *heads width"]
    ) -> Float[Tensor, "batch patches *heads width"]:
        """Tokens turned by their positions; any number of axes may stand between patches and channels."""
        planes = tokens.unflatten(-1, (2, 2, -1))
        between = tokens.ndim - 3
        cosine, sine = (
            table.reshape(table.shape[0], *[1] * between, 2, table.shape[-1]).to(tokens.dtype)
            for table in (self.cosine, self.sine)
        )
        first, second = planes[..., 0, :], planes[..., 1, :]
        turned_first = torch.addcmul(first * cosine, second, sine, value=-1)
        turned_second = torch.addcmul(second * cosine, first, sine)
        return torch.stack([turned_first, turned_second], dim=-2).flatten(-3)


def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Softmax attention over (batch, patches, heads, channels) -> (batch, patches, heads * channels)."""
    attended = F.scaled_dot_product_attention(query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2))
    return attended.transpose(1, 2).flatten(2)


class SelfAttention(nn.Module):
    """Multi-head self-attention with one fused projection."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(
        self, x: Float[Tensor, "batch patches width"], grid: RotaryGrid
    ) -> Float[Tensor, "batch patches width"]:
        """Attended tokens."""
        query_key_value = self.qkv(x).unflatten(-1, (3, self.heads, -1))
        query, key = grid.rotate(query_key_value[:, :, :2]).unbind(2)
        return self.proj(_attend(query, key, query_key_value[:, :, 2]))


class CrossAttention(nn.Module):
    """Multi-head attention from one image's tokens to the other's."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.projq = nn.Linear(width, width)
        self.projk = nn.Linear(width, width)
        self.projv = nn.Linear(width, width)
        self.proj = nn.Linear(width, width)

    def forward(
        self,
        x: Float[Tensor, "batch patches width"],
        memory: Float[Tensor, "batch other_patches width"],
        grid: RotaryGrid,
        memory_grid: RotaryGrid,
    ) -> Float[Tensor, "batch patches width"]:
        """Tokens `x` after looking at `memory`."""
        split = (self.heads, -1)
        query = grid.rotate(self.projq(x).unflatten(-1, split))
        key = memory_grid.rotate(self.projk(memory).unflatten(-1, split))
        return self.proj(_attend(query, key, self.projv(memory).unflatten(-1, split)))


class Mlp(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, width: int, hidden_width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden_width)
        self.fc2 = nn.Linear(hidden_width, width)

    def forward(self, x: Float[Tensor, "batch patches width"]) -> Float[Tensor, "batch patches width"]:
        """Transformed tokens."""
        return self.fc2(F.gelu(self.fc1(x)))


class EncoderBlock(nn.Module):
    """Pre-norm transformer block."""

    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=LAYER_NORM_EPSILON)
        self.attn = SelfAttention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=LAYER_NORM_EPSILON)
        self.mlp = Mlp(width, int(width * mlp_ratio))

    def forward(
        self, x: Float[Tensor, "batch patches width"], grid: RotaryGrid
    ) -> Float[Tensor, "batch patches width"]:
        """Tokens after attention and MLP."""
        x = x + self.attn(self.norm1(x), grid)
        return x + self.mlp(self.norm2(x))


class DecoderBlock(nn.Module):
    """Pre-norm block that looks at its own tokens, then at the other image's."""

    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=LAYER_NORM_EPSILON)
        self.attn = SelfAttention(width, heads)
        self.cross_attn = CrossAttention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=LAYER_NORM_EPSILON)
        self.norm3 = nn.LayerNorm(width, eps=LAYER_NORM_EPSILON)
        self.mlp = Mlp(width, int(width * mlp_ratio))
        self.norm_y = nn.LayerNorm(width, eps=LAYER_NORM_EPSILON)

    def look_at_self(
        self, x: Float[Tensor, "batch patches width"], grid: RotaryGrid
    ) -> Float[Tensor, "batch patches width"]:
        """The block's first part, which knows nothing of the other image."""
        return x + self.attn(self.norm1(x), grid)

    def look_at_other(
        self,
        x: Float[Tensor, "batch patches width"],
        other: Float[Tensor, "batch other_patches width"],
        grid: RotaryGrid,
        other_grid: RotaryGrid,
    ) -> Float[Tensor, "batch patches width"]:
        """The block's second part: cross-attention to `other` (as it was before this block), then the MLP."""
        x = x + self.cross_attn(self.norm2(x), self.norm_y(other), grid, other_grid)
        return x + self.mlp(self.norm3(x))
