"""The wrapped official network says exactly what the official network says."""

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_samples import random_network, write_pth

from lora3d_ns.errors import CheckpointArchitectureError, MissingPackageError
from lora3d_ns.network.base import PairNetwork, PairOutput
from lora3d_ns.network.checkpoint_architecture import official_arguments
from lora3d_ns.network.checkpoints import load_network, save_network
from lora3d_ns.network.configuration import Dust3rConfig
from lora3d_ns.network.official import OfficialDust3r, load_official, official_class

LINEAR = Dust3rConfig(
    encoder_width=64,
    encoder_depth=2,
    encoder_heads=2,
    decoder_width=64,
    decoder_depth=2,
    decoder_heads=2,
    head="linear",
)
DPT = Dust3rConfig(
    encoder_width=64, encoder_depth=2, encoder_heads=2, decoder_width=64, decoder_depth=12, decoder_heads=2, head="dpt"
)
# The official forward pass says so about its own use of autocast.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


def _official_model(config: Dust3rConfig, **changes: object) -> Any:
    pytest.importorskip("mini_dust3r", reason="compares with the official class")
    torch.manual_seed(0)
    return official_class()(**(official_arguments(config) | changes)).eval()


def _their_forward(model: Any, first: torch.Tensor, second: torch.Tensor) -> PairOutput:
    """The official forward pass on pictures in 0 to 1."""
    views = [
        {
            "img": images * 2.0 - 1.0,
            "true_shape": torch.tensor([images.shape[-2:]]).repeat(len(images), 1),
            # Pairs that are no two orders of the same.
            "instance": [f"{role}{b}" for b in range(len(images))],
        }
        for role, images in (("first", first), ("second", second))
    ]
    result_first, result_second = model(*views)
    return PairOutput(
        points_first=result_first["pts3d"],
        points_second=result_second["pts3d_in_other_view"],
        confidence_first=result_first["conf"].log(),
        confidence_second=result_second["conf"].log(),
    )


def _assert_close(output: PairOutput, expected: PairOutput) -> None:
    for name in ("points_first", "points_second", "confidence_first", "confidence_second"):
        # The pictures are normalised by another formula, which differs in the last bit.
        torch.testing.assert_close(getattr(output, name), getattr(expected, name), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("config", [LINEAR, DPT])
@pytest.mark.parametrize("shape", [(32, 48), (48, 32)])
@torch.no_grad()
def test_same_as_their_own_forward_pass(config: Dust3rConfig, shape: tuple[int, int]) -> None:
    model = _official_model(config)
    network = OfficialDust3r(model)
    assert isinstance(network, PairNetwork)
    assert (network.patch_size, network.device) == (16, torch.device("cpu"))
    first, second = torch.rand(2, 3, *shape), torch.rand(2, 3, 32, 32)
    output = network.decode(network.encode(first), network.encode(second))
    assert output.points_first.shape == (2, *shape, 3)
    assert output.confidence_second.shape == (2, 32, 32)
    _assert_close(output, _their_forward(model, first, second))


@torch.no_grad()
def test_a_model_built_for_lying_pictures_gives_upright_portraits() -> None:
    upright = _official_model(LINEAR)
    lying = _official_model(LINEAR, landscape_only=True, patch_embed_cls="ManyAR_PatchEmbed")
    lying.load_state_dict(upright.state_dict(), strict=True)
    first, second = torch.rand(1, 3, 48, 32), torch.rand(1, 3, 32, 48)
    network = OfficialDust3r(lying)
    output = network.decode(network.encode(first), network.encode(second))
    assert output.points_first.shape == (1, 48, 32, 3)
    _assert_close(output, _their_forward(upright, first, second))


@torch.no_grad()
def test_load_official_and_load_network_agree(tmp_path: Path) -> None:
    pytest.importorskip("mini_dust3r", reason="compares with the official class")
    allow_tf32 = torch.backends.cuda.matmul.allow_tf32
    torch.manual_seed(0)
    from lora3d_ns.network.dust3r import Dust3r

    network = Dust3r(DPT).eval()
    save_network(network, tmp_path / "network.safetensors")
    first, second = torch.rand(1, 3, 32, 48), torch.rand(1, 3, 48, 32)
    official = load_official(tmp_path / "network.safetensors")
    assert not official.model.training
    output = official.decode(official.encode(first), official.encode(second))
    _assert_close(load_network(tmp_path / "network.safetensors")(first, second), output)
    # Importing their package switches it on.
    assert torch.backends.cuda.matmul.allow_tf32 == allow_tf32


def test_networks_that_the_official_class_does_not_have(tmp_path: Path) -> None:
    pytest.importorskip("mini_dust3r", reason="compares with the official class")
    small_dpt = Dust3rConfig(
        encoder_width=8,
        encoder_depth=1,
        encoder_heads=1,
        decoder_width=8,
        decoder_depth=4,
        decoder_heads=1,
        dpt_channels=(4, 4, 4, 4),
        dpt_features=4,
    )
    save_network(random_network(small_dpt), tmp_path / "network.safetensors")
    with pytest.raises(CheckpointArchitectureError, match="no DPT head of channels"):
        load_official(tmp_path / "network.safetensors")


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_pth(random_network(), tmp_path / "network.pth")
    for name in [name for name in sys.modules if name.partition(".")[0] in ("dust3r", "mini_dust3r")]:
        monkeypatch.delitem(sys.modules, name)

    def hide(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name.partition(".")[0])

    monkeypatch.setattr(importlib, "import_module", hide)
    with pytest.raises(MissingPackageError, match="mini-dust3r"):
        load_official(path)

    def lack(_: str) -> Any:
        raise ModuleNotFoundError("No module named 'einops'", name="einops")

    monkeypatch.setattr(importlib, "import_module", lack)
    with pytest.raises(MissingPackageError, match="einops"):
        load_official(path)
