import warnings
from collections.abc import Callable

import pytest
import torch

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from mini_dust3r.model import AsymmetricCroCo3DStereo

from lora3d_ns.network.checkpoint_architecture import official_arguments
from lora3d_ns.network.configuration import Dust3rConfig
from lora3d_ns.network.dust3r import Dust3r

TINY = {
    "encoder_width": 64,
    "encoder_depth": 3,
    "encoder_heads": 2,
    "decoder_width": 48,
    # The peer's DPT head wants more than 9 blocks.
    "decoder_depth": 12,
    "decoder_heads": 2,
}


def tiny_network(head: str, *, seed: int = 0, **changes: object) -> Dust3r:
    """A small network in which no bias is zero and no normalisation's weight is one, so that none can hide."""
    torch.manual_seed(seed)
    network = Dust3r(Dust3rConfig(**{**TINY, "head": head, **changes})).eval()  # pyright: ignore[reportArgumentType]
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.05 * torch.randn_like(parameter))
    return network


def peer_like(config: Dust3rConfig) -> AsymmetricCroCo3DStereo:
    """mini-dust3r's model of the same configuration, with its own random weights."""
    return AsymmetricCroCo3DStereo(**official_arguments(config)).eval()  # pyright: ignore[reportArgumentType]


@pytest.fixture(name="tiny_network")
def _tiny_network() -> Callable[..., Dust3r]:
    return tiny_network


@pytest.fixture(name="peer_like")
def _peer_like() -> Callable[[Dust3rConfig], AsymmetricCroCo3DStereo]:
    return peer_like
