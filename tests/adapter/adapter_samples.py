"""Small networks and adapters that really change them."""

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from lora3d_ns.adapter.lora import Adapter, LoraSettings, adapted, adapter_of
from lora3d_ns.network.base import PairOutput
from lora3d_ns.network.checkpoints import network_fingerprint
from lora3d_ns.network.configuration import Dust3rConfig
from lora3d_ns.network.dust3r import Dust3r

LINEAR = Dust3rConfig(
    encoder_width=64,
    encoder_depth=2,
    encoder_heads=2,
    decoder_width=48,
    decoder_depth=2,
    decoder_heads=2,
    head="linear",
)
DPT = dataclasses.replace(LINEAR, decoder_depth=12, head="dpt")


def small_network(config: Dust3rConfig = LINEAR, seed: int = 0) -> Dust3r:
    """Random weights, the same for the same seed; torch's global random numbers are as before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Dust3r(config).eval()


def random_adapter(network: Dust3r, *, settings: LoraSettings | None = None, seed: int = 0) -> Adapter:
    """An adapter neither of whose matrices is zero, as after training."""
    fresh = adapter_of(
        adapted(network, settings or LoraSettings(rank=4, alpha=6.0), seed=seed),
        base_name="small",
        base_fingerprint=network_fingerprint(network),
        provenance={"scene": "kitchen", "epochs": 10},
    )
    generator = torch.Generator().manual_seed(1000 + seed)
    tensors = {
        name: 0.1 * torch.randn(tensor.shape, generator=generator) if ".lora_B." in name else tensor
        for name, tensor in fresh.tensors.items()
    }
    return dataclasses.replace(fresh, tensors=tensors)


def pictures(seed: int = 0, shape: tuple[int, int] = (32, 48)) -> tuple[Tensor, Tensor]:
    """Two batches of two images."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(2, 3, *shape, generator=generator), torch.rand(2, 3, *shape, generator=generator)


def numbers(output: PairOutput) -> Tensor:
    """All that a network says, in one row."""
    parts = (output.points_first, output.points_second, output.confidence_first, output.confidence_second)
    return torch.cat([part.flatten() for part in parts])


@torch.no_grad()
def said(network: Dust3r) -> Tensor:
    """What a network says about `pictures()`."""
    return numbers(network(*pictures()))


def relative_difference(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference over the largest value."""
    return float((ours - theirs).abs().max() / theirs.abs().max())


def attention_parameter_count(config: Dust3rConfig, rank: int) -> int:
    """Numbers in an adapter of all that makes queries, keys and values: rank x (in + out) per layer."""
    self_attention = lambda width: rank * (width + 3 * width)  # noqa: E731
    cross_attention = 3 * rank * (config.decoder_width + config.decoder_width)
    decoders = 2 * config.decoder_depth * (self_attention(config.decoder_width) + cross_attention)
    return config.encoder_depth * self_attention(config.encoder_width) + decoders


def same_tensors(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> bool:
    """Whether all are equal bit for bit."""
    return len(ours) == len(theirs) and all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
