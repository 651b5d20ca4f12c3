"""Tiny networks in every file format that `load_network` reads."""

import argparse
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from lora3d_ns.network.checkpoint_architecture import official_arguments, official_state_dict
from lora3d_ns.network.configuration import Dust3rConfig
from lora3d_ns.network.dust3r import Dust3r

TINY = Dust3rConfig(
    patch_size=4,
    encoder_width=8,
    encoder_depth=1,
    encoder_heads=1,
    decoder_width=8,
    decoder_depth=1,
    decoder_heads=1,
    mlp_ratio=1.0,
    head="linear",
)
"""About 3,000 parameters."""

TINY_DPT = Dust3rConfig(
    patch_size=8,
    encoder_width=8,
    encoder_depth=1,
    encoder_heads=1,
    decoder_width=8,
    decoder_depth=4,
    decoder_heads=1,
    mlp_ratio=1.0,
    head="dpt",
    dpt_channels=(4, 4, 4, 4),
    dpt_features=4,
)


def random_network(config: Dust3rConfig = TINY, seed: int = 0) -> Dust3r:
    """A network none of whose tensors is constant."""
    network = Dust3r(config)
    generator = torch.Generator().manual_seed(seed)
    for tensor in network.state_dict().values():
        tensor.copy_(torch.randn(tensor.shape, generator=generator))
    return network.eval()


def model_string(config: Dust3rConfig, **changes: object) -> str:
    """The constructor call as official `.pth` files have it."""
    arguments = official_arguments(config) | changes
    return f"AsymmetricCroCo3DStereo({', '.join(f'{name}={value!r}' for name, value in arguments.items())})"


def hub_config(config: Dust3rConfig, **changes: object) -> str:
    """`config.json` as the hub has it."""
    return json.dumps(official_arguments(config) | changes)


def write_pth(network: Dust3r, path: Path, *, model: str | None = None, state: Mapping[str, Any] | None = None) -> Path:
    """An official `.pth`."""
    args = argparse.Namespace(model=model or model_string(network.config), lr=1e-4, betas=(0.9, math.inf), name=None)
    torch.save({"args": args, "model": state or official_state_dict(network)}, path)
    return path


def write_hub_folder(network: Dust3r, folder: Path, state: Mapping[str, Tensor] | None = None) -> Path:
    """A folder with the two files of the hub, without the second names of tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.joinpath("config.json").write_text(hub_config(network.config))
    save_file(dict(state or network.state_dict()), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def assert_same_weights(network: Dust3r, other: Dust3r) -> None:
    """Same names, and bit for bit the same values."""
    ours, theirs = network.state_dict(), other.state_dict()
    assert list(ours) == list(theirs)
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name
