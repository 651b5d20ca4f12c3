"""How much memory the gradient of a pair takes, found without computing anything, and what to do about it.

Where memory runs out on a CPU, the system kills the process instead of raising an error: it has to be known before.
"""

from dataclasses import dataclass

import psutil
import torch
from torch import Tensor

from lora3d_ns.adapter.adapter import LoraSettings
from lora3d_ns.adapter.lora import adapted
from lora3d_ns.network.checkpoint_architecture import meta_network
from lora3d_ns.network.configuration import Dust3rConfig

RECOMPUTED_SHARE = 0.4
"""What is left of it where activations are computed again: 2.9 of 8.1 GiB measured on the full-size network at 512x384
(`lora3d benchmark finetune`), rounded up."""


_SPENT_SHARE = 0.6
"""Of the free memory."""

_MOST_BYTES_PER_PIXEL = 40_000
"""More than any network of the family keeps: the full-size one with DPT heads keeps 35,000."""


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """How a step is made to fit.

    Attributes:
        recompute_activations: Whether activations are computed again for the gradient.
        pairs_at_once: Ordered pairs whose gradient is taken together.
    """

    recompute_activations: bool
    pairs_at_once: int


def planned_memory(
    config: Dust3rConfig, lora: LoraSettings, shape: tuple[int, int], *, pairs: int, free: int, may_recompute: bool
) -> MemoryPlan:
    """The plan that recomputes nothing if it can, and takes as many of a step's pairs together as fit.

    Args:
        config, lora: Of the network and its adapter.
        shape: (height, width) of the largest photo.
        pairs: Ordered pairs of a step.
        free: Free memory in bytes; six tenths of it are spent.
        may_recompute: Whether recomputing is allowed.
    """
    spent = _SPENT_SHARE * free
    if _MOST_BYTES_PER_PIXEL * shape[0] * shape[1] * pairs <= spent:
        return MemoryPlan(recompute_activations=False, pairs_at_once=pairs)
    needed = activation_bytes(config, lora, shape)
    recompute = may_recompute and needed * pairs > spent
    fitting = int(spent / (needed * (RECOMPUTED_SHARE if recompute else 1.0)))
    return MemoryPlan(recompute_activations=recompute, pairs_at_once=max(1, min(pairs, fitting)))


def activation_bytes(config: Dust3rConfig, lora: LoraSettings, shape: tuple[int, int]) -> int:
    """Bytes that a backward pass keeps of one ordered pair whose images are both encoded for it, in float32.

    The network runs on torch's meta device, which has shapes and no numbers; what autograd would save is counted once
    per storage, and without the weights. Attention has no fast kernel there, so this is more than is kept in truth.

    Args:
        config: Of the network.
        lora: Of the adapter that learns.
        shape: (height, width) of the images.
    """
    network = adapted(meta_network(config), lora, seed=0)
    weights = {tensor.untyped_storage()._cdata for tensor in (*network.parameters(), *network.buffers())}
    sizes: dict[int, int] = {}
    # A storage that is gone may lend its address to the next: they are held while they are counted.
    held: list[Tensor] = []

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            sizes[storage._cdata] = storage.nbytes()
            held.append(tensor)
        return tensor

    image = torch.empty((1, 3, *shape), device="meta")
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        network.decode(network.encode(image), network.encode(image))
    return sum(sizes.values())


def free_bytes(device: torch.device) -> int:
    """Memory that is free where the network is."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available
