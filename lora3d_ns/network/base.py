"""What the rest of the package asks of a two-view network, and nothing more.

Anything that encodes images one by one and decodes encoded pairs into point maps can take part: our own DUSt3R, the
official one, or a network of the user's. See `examples/`.
"""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, eq=False, kw_only=True)
class Encoding:
    """A batch of encoded images of one shape.

    Attributes:
        tokens: Encoder output, one row per patch, patches in row-major order.
        height, width: Shape of the images in pixels.
        extras: Further tensors with the batch first, that the network derived from the image alone and wants back in
            `decode`; empty where it needs none.
    """

    tokens: Float[Tensor, "batch patches channels"]
    height: int
    width: int
    extras: tuple[Tensor, ...] = ()

    def select(self, rows: Any) -> "Encoding":
        """The encodings of some images of the batch (any index that a tensor's first axis takes)."""
        return Encoding(
            tokens=self.tokens[rows],
            height=self.height,
            width=self.width,
            extras=tuple(extra[rows] for extra in self.extras),
        )

    def to(self, device: torch.device) -> "Encoding":
        """The same encodings on another device."""
        return Encoding(
            tokens=self.tokens.to(device),
            height=self.height,
            width=self.width,
            extras=tuple(extra.to(device) for extra in self.extras),
        )

    @property
    def nbytes(self) -> int:
        """Bytes held by all tensors."""
        return sum(tensor.nbytes for tensor in (self.tokens, *self.extras))


@dataclass(frozen=True, eq=False, kw_only=True)
class PairOutput:
    """Point maps and log-confidences of a batch of ordered pairs; see `lora3d_ns.types.PairPrediction`.

    Attributes:
        descriptors_first, descriptors_second: Matching descriptors per patch, of networks that have them.
    """

    points_first: Float[Tensor, "batch height_first width_first 3"]
    points_second: Float[Tensor, "batch height_second width_second 3"]
    confidence_first: Float[Tensor, "batch height_first width_first"]
    confidence_second: Float[Tensor, "batch height_second width_second"]
    descriptors_first: Float[Tensor, "batch _ _"] | None = None
    descriptors_second: Float[Tensor, "batch _ _"] | None = None


@runtime_checkable
class PairNetwork(Protocol):
    """A two-view network.

    Attributes:
        patch_size: Image heights and widths must be multiples of it.
    """

    @property
    def patch_size(self) -> int:
        """Side of a patch in network pixels."""
        ...

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        ...

    def encode(self, images: Float[Tensor, "batch 3 height width"]) -> Encoding:
        """Encodings of images in sRGB 0 to 1 (any normalisation is the network's own business)."""
        ...

    def decode(self, first: Encoding, second: Encoding) -> PairOutput:
        """Predictions for the pairs (first[b], second[b]); the two may differ in shape."""
        ...
