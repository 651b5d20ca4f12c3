"""Adapters on disk, in the format of the library peft: its `PeftModel.from_pretrained` reads them, and we read its own.

    adapter_config.json         peft's; only entries that every version of it knows
    adapter_model.safetensors   the matrices
    lora3d.json                 ours: fingerprint of the base, provenance, checksum of the matrices

No file is trusted: nothing of a file is executed, and everything is compared before it is used.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lora3d_ns.adapter.adapter import Adapter, LoraSettings, require_base
from lora3d_ns.atomic_files import replace_folder, settle_folder
from lora3d_ns.errors import (
    AdapterError,
    AdapterNotFoundError,
    CorruptAdapterError,
    SettingsError,
    StorageError,
)
from lora3d_ns.network.dust3r import Dust3r

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
OWN_FILE = "lora3d.json"

_VERSION = 1
# What peft puts before the names of a model that it wraps.
_PREFIX = "base_model.model."
_LARGEST_JSON = 64 * 2**20
_LARGEST_WEIGHTS = 8 * 2**30

_COPY_AGAIN = "Copy the folder again, or calibrate again"

# Entries of peft's configuration that change nothing in what a trained adapter of linear layers computes.
_WITHOUT_EFFECT = frozenset(
    {
        *("peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
        *("inference_mode", "r", "target_modules", "exclude_modules", "lora_alpha", "lora_dropout", "use_rslora"),
        *("layers_to_transform", "layers_pattern", "megatron_core", "eva_config", "qalora_group_size"),
        *("init_lora_weights", "ensure_weight_tying"),
    }
)
# Entries by which peft leaves out some of the layers that `target_modules` names.
_SELECTIONS = ("exclude_modules", "layers_to_transform", "layers_pattern")
# Ways to begin that leave the base's weights alone; the others give adapters of a changed base.
_HARMLESS_BEGINNINGS = (True, False, "gaussian", "eva", "orthogonal")
_NOTHING = (None, False, "", "none", [], {})


# --- writing --------------------------------------------------------------------------------------


def save_adapter(adapter: Adapter, folder: str | Path) -> None:
    """Writes an adapter as a folder, all of it or nothing; an adapter that is there already is replaced.

    Args:
        adapter: What to write.
        folder: Made if need be, with the folders above it.

    Raises:
        StorageFullError: No room; what was there before still is, and nothing half-written.
        StorageError: The folder holds files that are not ours, or cannot be written to.
    """
    from safetensors.torch import save

    folder = Path(folder).expanduser()
    tensors = {f"{_PREFIX}{name}": tensor.contiguous() for name, tensor in adapter.tensors.items()}
    weights = save(tensors, metadata={"format": "pt"})
    own = {
        "version": _VERSION,
        "base_fingerprint": adapter.base_fingerprint,
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "provenance": dict(adapter.provenance),
    }
    with replace_folder(folder) as temporary:
        require_adapter_folder(folder)
        temporary.joinpath(WEIGHTS_FILE).write_bytes(weights)
        temporary.joinpath(CONFIG_FILE).write_text(_json(_peft_config(adapter)), encoding="utf-8")
        temporary.joinpath(OWN_FILE).write_text(_json(own), encoding="utf-8")


def require_adapter_folder(folder: Path) -> None:
    """Refuses a folder with anything but an adapter of ours in it, since replacing it would delete that.

    Raises:
        StorageError: It holds other files.
    """
    if not folder.exists():
        return
    found = {path.name for path in folder.iterdir()}
    foreign = found if OWN_FILE not in found else found - {CONFIG_FILE, WEIGHTS_FILE, OWN_FILE}
    if foreign:
        raise StorageError(
            f"the folder holds files that are no adapter of ours, such as {min(foreign)!a}",
            way_out="Choose a new or empty folder",
            path=folder,
        )


def _peft_config(adapter: Adapter) -> dict[str, object]:
    settings = adapter.settings
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": adapter.base_name,
        "inference_mode": True,
        "r": settings.rank,
        # A whole number is what peft itself would write.
        "lora_alpha": int(settings.alpha) if settings.alpha.is_integer() else settings.alpha,
        "lora_dropout": 0.0,
        "target_modules": list(settings.targets),
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "init_lora_weights": True,
        "modules_to_save": None,
    }


def _json(values: Mapping[str, object]) -> str:
    return json.dumps(values, indent=2, allow_nan=False) + "\n"


# --- reading --------------------------------------------------------------------------------------


def load_adapter(folder: str | Path, network: Dust3r | None = None, *, fingerprint: str | None = None) -> Adapter:
    """An adapter that `save_adapter` or peft's `save_pretrained` wrote.

    Args:
        folder: Where it lies.
        network: Its base; if given, it is checked that it is. peft's own files have no fingerprint: of them only names
            and shapes are compared.
        fingerprint: `network_fingerprint(network)` where it is known already.

    Returns:
        The adapter. With peft's own files `base_fingerprint` is empty, and so is `provenance`.

    Raises:
        AdapterNotFoundError: There is no adapter in the folder.
        CorruptAdapterError: Its files are damaged or contradict each other.
        AdapterError: It uses something of peft's beyond plain LoRA.
        AdapterBaseError: It was made for another network.
        StorageError: An interrupted `save_adapter` left the folder half replaced, and it cannot be put back.
    """
    folder = Path(folder).expanduser()
    settle_folder(folder)
    config = _read_json(folder / CONFIG_FILE)
    weights = _read(folder / WEIGHTS_FILE, largest=_LARGEST_WEIGHTS)
    own = _read_json(folder / OWN_FILE) if folder.joinpath(OWN_FILE).exists() else {}
    fingerprint_of_base, provenance = _checked_own(own, weights, folder)
    tensors = _tensors(weights, folder / WEIGHTS_FILE)
    settings = _settings(config, tensors, folder / CONFIG_FILE, ours=bool(own))
    base_name = config.get("base_model_name_or_path") or ""
    if not isinstance(base_name, str):
        raise _corrupt("base_model_name_or_path is no text", folder / CONFIG_FILE)
    try:
        adapter = Adapter(
            settings=settings,
            tensors=tensors,
            base_name=base_name,
            base_fingerprint=fingerprint_of_base,
            provenance=provenance,
        )
    except AdapterError as error:
        raise _corrupt(error.problem, folder / WEIGHTS_FILE) from error
    if network is not None:
        require_base(network, (adapter,), fingerprint=fingerprint)
    return adapter


def _checked_own(own: Mapping[str, Any], weights: bytes, folder: Path) -> tuple[str, dict[str, object]]:
    """Fingerprint and provenance."""
    if not own:
        return "", {}
    path = folder / OWN_FILE
    if own.get("version") != _VERSION:
        raise AdapterError(
            f"the adapter is of format version {ascii(own.get('version'))[:40]}, and this package reads {_VERSION}",
            way_out="Update lora3d-ns",
            path=path,
        )
    fingerprint, provenance = own.get("base_fingerprint"), own.get("provenance")
    if not isinstance(fingerprint, str) or not isinstance(provenance, dict):
        raise _corrupt("base_fingerprint or provenance is missing or of the wrong type", path)
    if own.get("weights_sha256") != hashlib.sha256(weights).hexdigest():
        raise CorruptAdapterError(
            f"the matrices are not those that {OWN_FILE} has the checksum of",
            way_out=f"{_COPY_AGAIN}; if peft has saved another adapter here on purpose, delete {OWN_FILE}",
            path=folder / WEIGHTS_FILE,
        )
    return fingerprint, provenance


def _tensors(weights: bytes, path: Path) -> dict[str, Tensor]:
    """The matrices in float32, under their names in the network."""
    from safetensors.torch import load

    try:
        read = load(weights)
    # The reader raises its own error, and for types that torch lacks whatever torch raises.
    except Exception as error:
        raise _corrupt("the file is damaged or no safetensors file", path) from error
    tensors = {}
    for name, tensor in read.items():
        if not tensor.is_floating_point():
            raise _corrupt(f"{name[:100]!a} is of type {tensor.dtype}", path)
        # A copy: as read they may be views of one buffer.
        tensors[name.removeprefix(_PREFIX)] = tensor.to(torch.float32, copy=True)
    if len(tensors) < len(read):
        raise _corrupt("a matrix is there twice, with and without peft's prefix", path)
    return tensors


def _settings(config: Mapping[str, Any], tensors: Mapping[str, Tensor], path: Path, *, ours: bool) -> LoraSettings:
    _refuse_beyond_plain_lora(config, path)
    rank, alpha, targets = config.get("r"), config.get("lora_alpha"), config.get("target_modules")
    if type(rank) is not int or not isinstance(alpha, int | float) or isinstance(alpha, bool):
        raise _corrupt(f"r={ascii(rank)[:40]} and lora_alpha={ascii(alpha)[:40]} are no numbers", path)
    layers = sorted({name.partition(".lora_")[0] for name in tensors})
    if isinstance(targets, list) and not any(config.get(name) for name in _SELECTIONS):
        if not all(isinstance(target, str) for target in targets):
            raise _corrupt("target_modules are no names", path)
        for layer in layers:
            if not any(f".{layer}".endswith(f".{target}") for target in targets):
                raise _corrupt(f"{layer[:100]!a} is adapted, but not among the target_modules", path)
        # peft writes them in an order that differs from run to run.
        chosen = tuple(targets) if ours else tuple(sorted(targets))
    elif isinstance(targets, str | list):
        # An expression, or names with exceptions: the matrices themselves say which layers are meant.
        chosen = tuple(layers)
    else:
        raise _corrupt(f"target_modules={ascii(targets)[:40]} are no names", path)
    if config.get("use_rslora"):
        alpha = alpha * math.sqrt(max(rank, 0))
    try:
        return LoraSettings(rank=rank, alpha=float(alpha), targets=chosen)
    except OverflowError as error:
        raise _corrupt("lora_alpha is out of range", path) from error
    except SettingsError as error:
        raise _corrupt(error.problem, path) from error


def _refuse_beyond_plain_lora(config: Mapping[str, Any], path: Path) -> None:
    if config.get("peft_type") != "LORA":
        raise _unsupported(f"its type is {ascii(config.get('peft_type'))[:40]}", path)
    for name, value in config.items():
        if name not in _WITHOUT_EFFECT and value not in _NOTHING:
            raise _unsupported(f"it uses {name[:80]!a}", path)
    if config.get("init_lora_weights", True) not in _HARMLESS_BEGINNINGS:
        raise _unsupported(f"it began as {ascii(config['init_lora_weights'])[:40]}, which changes the base", path)


def _read(path: Path, *, largest: int) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(largest + 1)
    except FileNotFoundError as error:
        way_out = "Check the path"
        if path.name == WEIGHTS_FILE and path.with_name("adapter_model.bin").exists():
            way_out = "adapter_model.bin is a pickle and is not read: save the adapter with safe_serialization=True"
        raise AdapterNotFoundError(f"there is no {path.name}", way_out=way_out, path=path.parent) from error
    except (OSError, ValueError) as error:
        raise AdapterNotFoundError(
            f"{path.name} cannot be read ({error})", way_out="Check the path and the permissions", path=path.parent
        ) from error
    if len(content) > largest:
        raise _corrupt(f"the file is larger than {largest // 2**20} MiB", path)
    return content


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(_read(path, largest=_LARGEST_JSON))
    except (ValueError, RecursionError) as error:
        raise _corrupt("the file is no valid JSON", path) from error
    if not isinstance(values, dict) or not values:
        raise _corrupt("the file is no JSON object with entries", path)
    return values


def _corrupt(problem: str, path: Path) -> CorruptAdapterError:
    return CorruptAdapterError(problem, way_out=_COPY_AGAIN, path=path)


def _unsupported(problem: str, path: Path) -> AdapterError:
    return AdapterError(
        f"the adapter is no plain LoRA: {problem}",
        way_out="Use an adapter of this package, or one that peft trained with the defaults of its LoraConfig",
        path=path,
    )
