"""What a LoRA adapter is apart from any network, and whether it fits one."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import torch
from jaxtyping import Float32
from torch import Tensor, nn

from lora3d_ns.errors import AdapterBaseError, AdapterError, SettingsError
from lora3d_ns.network.checkpoints import network_fingerprint
from lora3d_ns.network.dust3r import Dust3r

_SHOWN_DIGITS = 12


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """Where the adapter sits and how large it is.

    Attributes:
        rank: Rank r of the change of each weight; 16 in LoRA3D.
        alpha: The change is (alpha / rank) B A. Not published for LoRA3D; chosen on validation rooms (BENCHMARKS.md).
        targets: Names of the linear layers that are adapted: the last part of a layer's name, or several with dots
            between them (`attn.proj`). The default is all that makes queries, keys and values: the fused projection
            of every self-attention, and the three of every cross-attention.
    """

    rank: int = 16
    alpha: float = 64.0
    targets: tuple[str, ...] = ("qkv", "projq", "projk", "projv")

    def __post_init__(self) -> None:
        if type(self.rank) is not int or self.rank < 1:
            raise SettingsError(f"rank must be a whole number of at least 1, not {self.rank!r}", way_out="Use 16")
        if not (math.isfinite(self.alpha) and self.alpha > 0):
            raise SettingsError(f"alpha must be positive and finite, not {self.alpha!r}", way_out="Use the rank")
        if not self.targets or not all(self.targets) or len(set(self.targets)) < len(self.targets):
            raise SettingsError(
                f"targets must be one or more different names, not {self.targets!r}",
                way_out=f"Use {LoraSettings.targets!r}",
            )

    @property
    def scaling(self) -> float:
        """alpha / rank."""
        return self.alpha / self.rank


@dataclass(frozen=True, eq=False, kw_only=True)
class Adapter:
    """The low-rank matrices of one adapter, apart from any network.

    Attributes:
        settings: Of all layers alike.
        tensors: A (rank, in) and B (out, rank) of each adapted layer, on the CPU, under the layer's name in the
            network: `enc_blocks.0.attn.qkv.lora_A.weight`, `enc_blocks.0.attn.qkv.lora_B.weight`.
        base_name: What the base network is called; for people.
        base_fingerprint: `network_fingerprint` of the base network; empty where it is not known, as in files that
            peft itself wrote.
        provenance: Where the adapter comes from, in plain JSON values.

    Raises:
        AdapterError: The matrices contradict each other or the rank, are not finite, or the provenance is no JSON.
    """

    settings: LoraSettings
    tensors: Mapping[str, Float32[Tensor, "_ _"]]
    base_name: str
    base_fingerprint: str
    provenance: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "tensors", MappingProxyType(dict(sorted(self.tensors.items()))))
        problem = self._problem()
        if problem is not None:
            raise AdapterError(problem, way_out="Take adapters from `adapter_of` or `load_adapter`")

    def _problem(self) -> str | None:
        if not self.tensors:
            return "the adapter is empty"
        for name, tensor in self.tensors.items():
            layer, _, kind = name.partition(".lora_")
            # (name of the other matrix, which of its own axes is the rank)
            other, rank_axis = {"A.weight": ("B.weight", 0), "B.weight": ("A.weight", 1)}.get(kind, ("", 0))
            if not layer or not other:
                return f"{name[:100]!a} is no LoRA matrix of a linear layer"
            if f"{layer}.lora_{other}" not in self.tensors:
                return f"{name} has no counterpart lora_{other}"
            if tensor.ndim != 2 or tensor.shape[rank_axis] != self.settings.rank:
                return f"{name} is of shape {tuple(tensor.shape)}, which does not fit rank {self.settings.rank}"
            if tensor.dtype != torch.float32 or tensor.device.type != "cpu":
                return f"{name} is {tensor.dtype} on {tensor.device}, not float32 on the CPU"
            if not bool(torch.isfinite(tensor).all()):
                return f"{name} holds NaN or infinite values"
        try:
            json.dumps(dict(self.provenance), allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            return f"the provenance is no plain JSON ({error})"
        return None

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the adapted layers."""
        return tuple(name.removesuffix(".lora_A.weight") for name in self.tensors if name.endswith(".lora_A.weight"))

    @property
    def parameter_count(self) -> int:
        """Numbers in all matrices."""
        return sum(tensor.numel() for tensor in self.tensors.values())

    @property
    def nbytes(self) -> int:
        """Bytes of all matrices."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


def require_base(network: Dust3r, adapters: Sequence[Adapter], *, fingerprint: str | None = None) -> None:
    """Checks that adapters were made for this network: by fingerprint, where they have one, by layers and by shapes.

    Args:
        network: The supposed base.
        adapters: What is to be put on it.
        fingerprint: `network_fingerprint(network)` where it is known already; else it is computed, once.

    Raises:
        AdapterBaseError: One was made for another network.
        AdapterError: The network carries an adapter, so it is no base.
    """
    for adapter in adapters:
        require_same_layers(network, adapter)
    for adapter in adapters:
        if not adapter.base_fingerprint:
            continue
        fingerprint = fingerprint or network_fingerprint(network)
        if adapter.base_fingerprint != fingerprint:
            raise AdapterBaseError(
                f"the adapter was made for {adapter.base_name!a} with weights "
                f"{adapter.base_fingerprint[:_SHOWN_DIGITS]!a}, and this network has {fingerprint[:_SHOWN_DIGITS]!a}",
                way_out="Load the network that it was made for, in the same number type, or calibrate this one",
            )


def carries_adapter(network: Dust3r) -> bool:
    """Whether LoRA matrices are beside the network's weights."""
    return any(".lora_" in name for name, _ in network.named_parameters())


def target_layers(network: Dust3r, targets: Sequence[str]) -> dict[str, nn.Linear]:
    """The layers of a plain network that are meant, in the network's order; matched as peft does.

    Raises:
        AdapterError: The network carries an adapter.
        SettingsError: A target means no layer, or one that is not linear.
    """
    if carries_adapter(network):
        raise AdapterError("the network already carries an adapter", way_out="Pass the base network itself")
    layers: dict[str, nn.Linear] = {}
    unused = set(targets)
    for name, module in network.named_modules():
        matching = {target for target in targets if f".{name}".endswith(f".{target}")}
        if not matching:
            continue
        if not isinstance(module, nn.Linear):
            raise SettingsError(
                f"{sorted(matching)[0]!a} also means {name}, which is no linear layer",
                way_out="Name the layers with more of their path, for example 'attn.proj'",
            )
        layers[name] = module
        unused -= matching
    if unused:
        raise SettingsError(
            f"the network has no layer called {sorted(unused)[0]!a}", way_out=f"Use {LoraSettings.targets!r}"
        )
    return layers


def require_same_layers(network: Dust3r, adapter: Adapter) -> None:
    """Checks that an adapter's layers are those of the network, and of their shapes.

    Raises:
        AdapterBaseError: They are not.
        AdapterError: The network carries an adapter.
    """
    try:
        layers = target_layers(network, adapter.settings.targets)
    except SettingsError as error:
        raise _other_layers(adapter, error.problem) from error
    if set(layers) != set(adapter.layers):
        layer_name = min(set(layers) ^ set(adapter.layers))
        place = "the network" if layer_name in layers else "the adapter"
        raise _other_layers(adapter, f"{layer_name} is to be adapted, but only {place} has it")
    for layer_name, layer in layers.items():
        a, b = matrices_of(adapter, layer_name)
        if (b.shape[0], a.shape[1]) != tuple(layer.weight.shape):
            raise _other_layers(
                adapter,
                f"{layer_name} maps {a.shape[1]} to {b.shape[0]} values in the adapter and {layer.in_features} to "
                f"{layer.out_features} in the network",
            )


def _other_layers(adapter: Adapter, problem: str) -> AdapterBaseError:
    return AdapterBaseError(
        f"the adapter was made for another network, called {adapter.base_name!a}: {problem}",
        way_out="Load the network that it was made for, or calibrate this one",
    )


def matrices_of(adapter: Adapter, layer_name: str) -> tuple[Tensor, Tensor]:
    """A and B of a layer."""
    return adapter.tensors[f"{layer_name}.lora_A.weight"], adapter.tensors[f"{layer_name}.lora_B.weight"]
