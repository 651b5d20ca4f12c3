"""Results that are no type of `lora3d_ns.types`, as the plain mappings that `scene_io` writes."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from lora3d_ns.adapter.finetune import FineTuned, FineTuneSettings
from lora3d_ns.adapter.lora import Adapter
from lora3d_ns.alignment.matches import Matches
from lora3d_ns.alignment.verification import PairMatches


def packed_matches(matches: Matches) -> dict[str, object]:
    """Matches as a mapping of tensors and numbers."""
    return {
        "pairs": {pair: (found.pixels_first, found.pixels_second) for pair, found in matches.pairs.items()},
        "candidates": dict(matches.candidates),
        "verified": dict(matches.verified),
    }


def unpacked_matches(packed: Mapping[str, Any]) -> Matches:
    """The matches that were packed."""
    return Matches(
        pairs={
            pair: PairMatches(pixels_first=first, pixels_second=second)
            for pair, (first, second) in packed["pairs"].items()
        },
        candidates=packed["candidates"],
        verified=packed["verified"],
    )


def packed_finetuned(tuned: FineTuned) -> dict[str, object]:
    """An adapter and how it came about, as a mapping of tensors and plain values."""
    adapter = tuned.adapter
    packed: dict[str, object] = {
        f.name: getattr(tuned, f.name) for f in dataclasses.fields(tuned) if f.name != "adapter"
    }
    packed["adapter"] = {
        "tensors": dict(adapter.tensors),
        "base_name": adapter.base_name,
        "base_fingerprint": adapter.base_fingerprint,
        "provenance": dict(adapter.provenance),
    }
    return packed


def unpacked_finetuned(packed: Mapping[str, Any], settings: FineTuneSettings) -> FineTuned:
    """What was packed; the adapter's settings are not in the file, they are part of its key."""
    return FineTuned(**{**packed, "adapter": Adapter(settings=settings.lora, **packed["adapter"])})
