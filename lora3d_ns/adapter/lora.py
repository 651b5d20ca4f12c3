"""LoRA (arXiv 2106.09685) on a DUSt3R network, as LoRA3D (arXiv 2412.07746) uses it: W' = W + (alpha / rank) B A.

    network = load_network("512_dpt")
    student = adapted(network, LoraSettings(), seed=0)            # says what `network` says, bit for bit
    ...                                                           # optimise `trainable_parameters(student)`
    adapter = adapter_of(student, base_name="512_dpt", base_fingerprint=network_fingerprint(network), provenance={})
    with_adapter(network, adapter)                                # what `student` has become

Nothing here changes the network it is given: every function returns another one, which shares the base's weights, so
that many adapters cost one base.
"""

import contextlib
import copy
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lora3d_ns.adapter.adapter import (
    Adapter,
    LoraSettings,
    carries_adapter,
    matrices_of,
    require_base,
    require_same_layers,
    target_layers,
)
from lora3d_ns.adapter.lora_files import load_adapter, require_adapter_folder, save_adapter
from lora3d_ns.errors import AdapterError, SettingsError
from lora3d_ns.network.dust3r import Dust3r

__all__ = [
    "Adapter",
    "LoraSettings",
    "adapted",
    "adapter_of",
    "base_disabled",
    "load_adapter",
    "merged",
    "require_adapter_folder",
    "require_base",
    "save_adapter",
    "trainable_parameters",
    "unmerged",
    "with_adapter",
]

# Where an adapted network keeps the settings of its adapters, by their names.
_SETTINGS = "_lora_settings"


# --- networks that learn --------------------------------------------------------------------------


def adapted(network: Dust3r, settings: LoraSettings, *, seed: int, name: str = "adapter") -> Dust3r:
    """A network that shares the weights of `network` and has fresh LoRA matrices beside them.

    A is uniform in +-1/sqrt(in), drawn from `seed` alone; B is zero, so that the outputs are those of `network` bit
    for bit. Both are float32 whatever the base's type is, and the only parameters that ask for gradients.

    Args:
        network: The base; neither its weights nor its flags are touched. On torch's meta device the matrices are too.
        settings: Rank, alpha and layers.
        seed: Of A; torch's global random numbers are not used.
        name: Of the adapter within the network, for `adapter_of`.

    Raises:
        AdapterError: The network already carries an adapter.
        SettingsError: A target names no linear layer of the network, or the name is no word.
    """
    if not name.isidentifier() or hasattr(nn.ModuleDict, name):
        raise SettingsError(f"an adapter cannot be called {name!a}", way_out="Use a word such as 'adapter'")
    layers = target_layers(network, settings.targets)
    copied = _sharing_copy(network)
    _inject(copied, settings, name)
    generator = torch.Generator().manual_seed(seed)
    for layer_name, layer in layers.items():
        bound = 1 / math.sqrt(layer.in_features)
        a = torch.empty(settings.rank, layer.in_features)
        a.uniform_(-bound, bound, generator=generator)
        _set_matrices(copied, layer_name, name, a, torch.zeros(layer.out_features, settings.rank))
    return copied


def adapter_of(
    adapted_network: Dust3r,
    *,
    base_name: str,
    base_fingerprint: str,
    provenance: Mapping[str, object],
    name: str = "adapter",
) -> Adapter:
    """The matrices that a network carries now, copied; later training does not change them.

    Args:
        adapted_network: From `adapted` or `with_adapter`. A weight given there is in the result's alpha.
        base_name, base_fingerprint, provenance: See `Adapter`.
        name: Which of the network's adapters.

    Raises:
        AdapterError: The network has no adapter of that name, or it is no longer finite.
    """
    settings = getattr(adapted_network, _SETTINGS, {}).get(name)
    if settings is None:
        raise AdapterError(
            f"the network has no adapter called {name!a}", way_out="Pass a network from `adapted` or `with_adapter`"
        )
    tensors, alpha = {}, settings.alpha
    for layer_name, module in adapted_network.named_modules():
        if hasattr(module, "lora_A") and name in (layer := _lora(module)).lora_A:
            alpha = float(layer.lora_alpha[name])
            for kind, matrices in (("A", layer.lora_A), ("B", layer.lora_B)):
                weight = matrices[name].weight.detach()
                tensors[f"{layer_name}.lora_{kind}.weight"] = weight.to(device="cpu", dtype=torch.float32, copy=True)
    return Adapter(
        settings=dataclasses.replace(settings, alpha=alpha),
        tensors=tensors,
        base_name=base_name,
        base_fingerprint=base_fingerprint,
        provenance=provenance,
    )


def trainable_parameters(network: Dust3r) -> list[nn.Parameter]:
    """The LoRA matrices of a network that ask for gradients, in the order of its layers; none of a plain network."""
    return [parameter for name, parameter in network.named_parameters() if ".lora_" in name and parameter.requires_grad]


@contextlib.contextmanager
def base_disabled(network: Dust3r) -> Iterator[None]:
    """Within it the network computes what its base computes, bit for bit: its adapters are switched off.

    Afterwards they are as before, trainable or not. A plain network is left alone.
    """
    if not carries_adapter(network):
        yield
        return
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in network.modules() if isinstance(module, BaseTunerLayer)]
    before = [layer.disable_adapters for layer in layers]
    # peft also takes the gradients away when it switches off, and hands them to all when it switches on.
    parameters = [(parameter, parameter.requires_grad) for parameter in network.parameters()]
    try:
        for layer in layers:
            layer.enable_adapters(False)
        yield
    finally:
        for layer, disabled in zip(layers, before, strict=True):
            layer.enable_adapters(not disabled)
        for parameter, requires_grad in parameters:
            parameter.requires_grad_(requires_grad)


# --- networks with what was learned ---------------------------------------------------------------


def with_adapter(
    network: Dust3r,
    *adapters: Adapter | Sequence[Adapter],
    weights: Sequence[float] | None = None,
    fingerprint: str | None = None,
) -> Dust3r:
    """A network that shares the weights of `network` and adds what the adapters have learned.

    W' = W + sum_i weight_i (alpha_i / rank_i) B_i A_i. The matrices are copies and can be trained further.

    Args:
        network: The base; it is not touched.
        adapters: One or several, or sequences of them. In the network they are called `adapter`, `adapter_2`, ...
        weights: One factor per adapter; 1 if None.
        fingerprint: `network_fingerprint(network)` where it is known already, which saves reading all weights.

    Raises:
        AdapterBaseError: An adapter was made for another network.
        AdapterError: The network already carries an adapter.
        SettingsError: No adapter, or not one finite weight for each.
    """
    together = [one for given in adapters for one in ((given,) if isinstance(given, Adapter) else given)]
    factors = [1.0] * len(together) if weights is None else [float(weight) for weight in weights]
    if not together or len(factors) != len(together) or not all(math.isfinite(factor) for factor in factors):
        raise SettingsError(
            f"{len(together)} adapters with weights {factors}",
            way_out="Give one adapter or more, and a number for each",
        )
    require_base(network, together, fingerprint=fingerprint)
    copied = _sharing_copy(network)
    names = ["adapter", *(f"adapter_{number}" for number in range(2, len(together) + 1))]
    for name, adapter, factor in zip(names, together, factors, strict=True):
        _inject(copied, adapter.settings, name, alpha=adapter.settings.alpha * factor)
        for layer_name in adapter.layers:
            _set_matrices(copied, layer_name, name, *matrices_of(adapter, layer_name))
    _activate(copied, names)
    return copied


def merged(network: Dust3r, adapter: Adapter, *, fingerprint: str | None = None) -> Dust3r:
    """A plain network with the adapter worked into its weights: W' = W + (alpha / rank) B A.

    Args:
        network: The base; it is not touched. What the adapter does not change is shared with it.
        adapter: Made for this base.
        fingerprint: `network_fingerprint(network)` where it is known already.

    Raises:
        AdapterBaseError: The adapter was made for another network.
        AdapterError: The network carries an adapter that is not merged.
    """
    require_base(network, (adapter,), fingerprint=fingerprint)
    return _with_added(network, adapter, sign=1.0)


def unmerged(network: Dust3r, adapter: Adapter) -> Dust3r:
    """`merged` undone: W = W' - (alpha / rank) B A, up to the rounding of the weights' type.

    Nothing can tell whether the adapter really is in the weights; only names and shapes are compared.

    Raises:
        AdapterBaseError: The adapter does not fit the network's layers.
        AdapterError: The network carries an adapter that is not merged.
    """
    require_same_layers(network, adapter)
    return _with_added(network, adapter, sign=-1.0)


# --- inner workings -------------------------------------------------------------------------------


def _sharing_copy(network: Dust3r) -> Dust3r:
    """New modules and frozen new parameters over the same memory."""
    memo: dict[int, Any] = {}
    for parameter in network.parameters():
        memo[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=False)
    for buffer in network.buffers():
        memo[id(buffer)] = buffer.detach()
    copied = copy.deepcopy(network, memo)
    setattr(copied, _SETTINGS, {})
    return copied


def _inject(copied: Dust3r, settings: LoraSettings, name: str, *, alpha: float | None = None) -> None:
    """Puts peft's layers around the targets; the matrices themselves stay without memory."""
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(
        r=settings.rank,
        # Annotated as a whole number, used as a factor.
        lora_alpha=settings.alpha if alpha is None else alpha,  # pyright: ignore[reportArgumentType]
        target_modules=list(settings.targets),
    )
    # On the meta device peft's own initialisation neither costs time nor draws from the global random numbers.
    others = vars(copied).pop("peft_config", {})  # peft warns of them, and adds to what it finds in the layers anyway
    inject_adapter_in_model(config, copied, adapter_name=name, low_cpu_mem_usage=True)
    vars(copied)["peft_config"].update(others)
    getattr(copied, _SETTINGS)[name] = settings


def _lora(module: nn.Module) -> Any:
    """A layer of peft's, whose attributes the type checker cannot know."""
    return module


def _set_matrices(copied: Dust3r, layer_name: str, name: str, a: Tensor, b: Tensor) -> None:
    layer = _lora(copied.get_submodule(layer_name))
    for matrices, values in ((layer.lora_A, a), (layer.lora_B, b)):
        matrices[name].weight = nn.Parameter(values.to(device=layer.weight.device, copy=True))


def _activate(copied: Dust3r, names: Sequence[str]) -> None:
    for module in copied.modules():
        if hasattr(module, "lora_A"):
            _lora(module).set_adapter(list(names))


def _with_added(network: Dust3r, adapter: Adapter, *, sign: float) -> Dust3r:
    copied = _sharing_copy(network)
    for layer_name in adapter.layers:
        layer = copied.get_submodule(layer_name)
        assert isinstance(layer, nn.Linear)
        a, b = (matrix.to(layer.weight.device) for matrix in matrices_of(adapter, layer_name))
        change = (sign * adapter.settings.scaling) * (b @ a)
        weight = (layer.weight.detach().float() + change).to(layer.weight.dtype)
        layer.weight = nn.Parameter(weight, requires_grad=False)
    return copied
