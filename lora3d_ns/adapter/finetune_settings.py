"""How an adapter is trained: our default, and the paper's recipe."""

import math
from dataclasses import dataclass, replace
from typing import Literal

from lora3d_ns.adapter.adapter import LoraSettings
from lora3d_ns.errors import SettingsError


@dataclass(frozen=True, kw_only=True)
class FineTuneSettings:
    """How an adapter is trained.

    Attributes:
        lora: Rank, alpha and layers of the adapter.
        epochs: Times that every pair is seen, at most.
        pairs_per_step: Ordered pairs of one step.
        learning_rate, final_learning_rate: Ends of the cosine.
        further_epochs, further_learning_rate: The same of a round that goes on from an adapter: fewer and smaller steps
            (BENCHMARKS.md).
        weight_decay: Of AdamW.
        confidence_alpha: Of Eq. 12.
        triplet_weight: Of a further term: pairs of a step that share their first photo agree on its points, where these
            have labels (Test3R, arXiv 2506.13750). 0 leaves it out.
        share_encodings: Whether a step keeps both orders of a pair together and encodes each image once.
        held_out_share: Share of the pairs that are kept back to see when to stop, and for the gate.
        patience: Epochs without a gain on the pairs held out after which training ends; the best epoch counts.
        precision: Of matrix products; `auto` is bfloat16 on GPUs that have it, else float32.
        recompute_activations: Whether activations are computed again for the gradient instead of kept; `auto` does so
            where memory would not suffice, or runs out.
        seed: Of the adapter's first matrices, of the order of the pairs and of which are held out.
        show_progress: Whether to draw a bar.
    """

    lora: LoraSettings = LoraSettings()  # noqa: RUF009 (frozen)
    epochs: int = 10
    pairs_per_step: int = 6
    learning_rate: float = 3e-3
    final_learning_rate: float = 1e-5
    further_epochs: int = 5
    further_learning_rate: float = 1e-3
    weight_decay: float = 0.01
    confidence_alpha: float = 0.2
    triplet_weight: float = 0.0
    share_encodings: bool = True
    held_out_share: float = 0.1
    patience: int = 3
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    recompute_activations: Literal["auto", "on", "off"] = "auto"
    seed: int = 0
    show_progress: bool = True

    def __post_init__(self) -> None:
        if min(self.epochs, self.further_epochs, self.pairs_per_step, self.patience) < 1:
            raise SettingsError(
                f"epochs {self.epochs}, further_epochs {self.further_epochs}, pairs_per_step {self.pairs_per_step}, "
                f"patience {self.patience}",
                way_out="Use 1 or more of each",
            )
        if not 0 < self.final_learning_rate <= self.learning_rate < math.inf:
            raise SettingsError(
                f"learning_rate {self.learning_rate}, final_learning_rate {self.final_learning_rate}",
                way_out="Use positive numbers, the final one not above the first",
            )
        if not 0 < self.further_learning_rate < math.inf:
            raise SettingsError(f"further_learning_rate {self.further_learning_rate}", way_out="Use a positive number")
        if not 0 <= self.triplet_weight < math.inf:
            raise SettingsError(f"triplet_weight {self.triplet_weight}", way_out="Use 0 or a positive number")
        if not (0 <= self.weight_decay < 1 and self.confidence_alpha > 0 and 0 <= self.held_out_share <= 0.5):
            raise SettingsError(
                f"weight_decay {self.weight_decay}, confidence_alpha {self.confidence_alpha}, "
                f"held_out_share {self.held_out_share}",
                way_out="Use a decay of 0 to 1, a positive alpha, and a share of 0 to 0.5",
            )

    def further(self) -> "FineTuneSettings":
        """Those of a round that goes on from an adapter; never more epochs or larger steps than in the first."""
        rate = min(self.learning_rate, self.further_learning_rate)
        return replace(
            self,
            epochs=min(self.epochs, self.further_epochs),
            learning_rate=rate,
            final_learning_rate=min(rate, self.final_learning_rate),
        )

    @classmethod
    def paper(cls, **changes: object) -> "FineTuneSettings":
        """LoRA3D's recipe: 10 epochs, 2 ordered pairs per step, each encoded by itself, cosine 1e-3 to 1e-5."""
        published = cls(
            lora=LoraSettings(rank=16, alpha=16.0),
            epochs=10,
            pairs_per_step=2,
            learning_rate=1e-3,
            final_learning_rate=1e-5,
            confidence_alpha=0.2,
            share_encodings=False,
            held_out_share=0.0,
        )
        return replace(published, **changes)  # pyright: ignore[reportArgumentType]
