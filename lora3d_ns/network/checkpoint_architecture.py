"""What a checkpoint says about its network: the configuration, and which tensor has which name and shape.

Nothing here reads a file or allocates weights: shapes come from a network on torch's meta device.
"""

import ast
import dataclasses
import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import cast, get_args

import torch
from torch import Tensor

from lora3d_ns.errors import CheckpointArchitectureError, CheckpointKeysError, SettingsError
from lora3d_ns.network.configuration import Dust3rConfig
from lora3d_ns.network.dust3r import Dust3r

OFFICIAL_CLASS = "AsymmetricCroCo3DStereo"
"""Name of the official network class, as the `.pth` files spell it."""

# What the official class assumes for an argument that a checkpoint leaves out.
_OFFICIAL_DEFAULTS: Mapping[str, object] = {
    "output_mode": "pts3d",
    "head_type": "linear",
    "depth_mode": ("exp", -math.inf, math.inf),
    "conf_mode": ("exp", 1, math.inf),
    "patch_embed_cls": "PatchEmbedDust3R",
    "img_size": 224,
    "patch_size": 16,
    "enc_embed_dim": 768,
    "enc_depth": 12,
    "enc_num_heads": 12,
    "dec_embed_dim": 512,
    "dec_depth": 8,
    "dec_num_heads": 16,
    "mlp_ratio": 4,
    "norm_im2_in_dec": True,
    "pos_embed": "cosine",
}

# Arguments that say how the network was trained or fed, and nothing about its weights or its function.
_ARGUMENTS_WITHOUT_EFFECT = frozenset({"landscape_only", "freeze", "mask_ratio"})

_CONFIG_FROM_OFFICIAL = {
    "patch_size": "patch_size",
    "encoder_width": "enc_embed_dim",
    "encoder_depth": "enc_depth",
    "encoder_heads": "enc_num_heads",
    "decoder_width": "dec_embed_dim",
    "decoder_depth": "dec_depth",
    "decoder_heads": "dec_num_heads",
}

# The largest ViTs stay well below the upper bounds; beyond them is a damaged or hostile file, and is refused before
# anything is built. (smallest, largest)
_BOUNDS: Mapping[str, tuple[int, int]] = {
    "patch_size": (1, 64),
    "encoder_width": (1, 16384),
    "encoder_depth": (0, 128),
    "encoder_heads": (1, 256),
    "decoder_width": (1, 16384),
    "decoder_depth": (1, 128),
    "decoder_heads": (1, 256),
    "dpt_features": (2, 16384),
    "descriptor_width": (0, 16384),
    "image_size": (1, 65536),
}
_LARGEST_DPT_CHANNELS = 16384
_LARGEST_MLP_RATIO = 64.0
_LARGEST_ROPE_BASE = 1e9
_LONGEST_MODEL_STRING = 4000
_LARGEST_JSON = 1_000_000

_OTHER_NETWORK = "Only DUSt3R networks are supported: use one of the official DUSt3R checkpoints or one saved by lora3d"


def _unsupported(problem: str, path: Path | str | None) -> CheckpointArchitectureError:
    return CheckpointArchitectureError(problem, way_out=_OTHER_NETWORK, path=path)


# --- configuration ------------------------------------------------------------------------------


def parse_model_string(text: str, *, path: Path | str | None = None) -> dict[str, object]:
    """Arguments of the constructor call that official `.pth` files carry as a string.

    The string is parsed, never evaluated: one call of the official class with keyword arguments that are literals,
    `inf`, or tuples and lists of those.

    Raises:
        CheckpointArchitectureError: The string is anything else.
    """
    if len(text) > _LONGEST_MODEL_STRING:
        raise _unsupported(f"the model string has {len(text)} characters", path)
    try:
        call = ast.parse(text.strip(), mode="eval").body
    # Python's parser reports over-deep nesting as either of the last two.
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise _unsupported(f"the model string {text[:80]!a} is no constructor call", path) from error
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
        raise _unsupported(f"the model string {text[:80]!a} is no constructor call", path)
    if call.func.id != OFFICIAL_CLASS:
        raise _unsupported(f"the checkpoint is of a {call.func.id[:80]!a}, not of a {OFFICIAL_CLASS}", path)
    if call.args:
        raise _unsupported("the model string has arguments without names", path)
    arguments: dict[str, object] = {}
    for keyword in call.keywords:
        if keyword.arg is None:
            raise _unsupported("the model string has arguments without names", path)
        arguments[keyword.arg] = _literal(keyword.value, argument=keyword.arg, path=path)
    return arguments


def _literal(node: ast.expr, *, argument: str, path: Path | str | None) -> object:
    match node:
        case ast.Constant(value=bool() | int() | float() | str() | None):
            return node.value
        case ast.Name(id="inf"):
            return math.inf
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
            return -value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Name(id="inf")):
            return -math.inf
        case ast.Tuple(elts=elements) | ast.List(elts=elements):
            return tuple(_literal(element, argument=argument, path=path) for element in elements)
        case _:
            raise _unsupported(f"argument {argument[:80]!a} of the model string is no plain value", path)


def config_from_official_arguments(arguments: Mapping[str, object], *, path: Path | str | None = None) -> Dust3rConfig:
    """The configuration that arguments of the official class describe.

    Args:
        arguments: As in the hub's `config.json` or from `parse_model_string`; what is left out has the official
            class's default.
        path: The file they came from, for error messages.

    Raises:
        CheckpointArchitectureError: An argument is unknown, or has a value that this package does not support.
    """
    for name in arguments:
        if name not in _OFFICIAL_DEFAULTS and name not in _ARGUMENTS_WITHOUT_EFFECT:
            raise _unsupported(f"argument {str(name)[:80]!a} is not supported", path)
    given = {**_OFFICIAL_DEFAULTS, **arguments}

    def require(name: str, supported: bool) -> None:
        if not supported:
            raise _unsupported(f"{name}={_shown(given[name])} is not supported", path)

    require("output_mode", given["output_mode"] == "pts3d")
    require("head_type", given["head_type"] in get_args(Dust3rConfig.__annotations__["head"]))
    require("conf_mode", _same_values(given["conf_mode"], ("exp", 1, math.inf)))
    require(
        "depth_mode",
        any(
            _same_values(given["depth_mode"], (mode, -math.inf, math.inf))
            for mode in get_args(Dust3rConfig.__annotations__["depth_mode"])
        ),
    )
    require("patch_embed_cls", given["patch_embed_cls"] in ("PatchEmbedDust3R", "ManyAR_PatchEmbed"))
    require("norm_im2_in_dec", given["norm_im2_in_dec"] is True)
    rope = re.fullmatch(r"RoPE(\d{1,9}(?:\.\d{1,9})?)", str(given["pos_embed"]), re.ASCII)
    require("pos_embed", rope is not None)
    assert rope is not None
    sizes = given["img_size"] if isinstance(given["img_size"], tuple | list) else (given["img_size"],)
    require("img_size", 1 <= len(sizes) <= 2 and all(type(size) is int for size in sizes))
    fields: dict[str, object] = {ours: given[theirs] for ours, theirs in _CONFIG_FROM_OFFICIAL.items()}
    fields |= {
        "mlp_ratio": given["mlp_ratio"],
        "rope_base": float(rope[1]),
        "head": given["head_type"],
        "depth_mode": cast(Sequence[object], given["depth_mode"])[0],
        "image_size": max(cast(Sequence[int], sizes)),
    }
    return _checked_config(fields, names=_CONFIG_FROM_OFFICIAL, path=path)


def official_arguments(config: Dust3rConfig) -> dict[str, object]:
    """Keyword arguments with which the official class builds the same network.

    Raises:
        CheckpointArchitectureError: The official class has no such network: its DPT head has fixed widths and needs
            more than nine decoder blocks, and it has no descriptor head.
    """
    official_head = (Dust3rConfig.dpt_channels, Dust3rConfig.dpt_features)
    if config.descriptor_width:
        raise _unsupported("the official class has no descriptor head", None)
    if config.head == "dpt" and ((config.dpt_channels, config.dpt_features) != official_head):
        raise _unsupported(f"the official class has no DPT head of channels {config.dpt_channels}", None)
    if config.head == "dpt" and config.decoder_depth <= 9:
        raise _unsupported(
            f"the official DPT head needs more than nine decoder blocks, not {config.decoder_depth}", None
        )
    base = config.rope_base
    arguments: dict[str, object] = {theirs: getattr(config, ours) for ours, theirs in _CONFIG_FROM_OFFICIAL.items()}
    return arguments | {
        "mlp_ratio": config.mlp_ratio,
        "pos_embed": f"RoPE{int(base) if base.is_integer() else base}",
        "head_type": config.head,
        "output_mode": "pts3d",
        "depth_mode": (config.depth_mode, -math.inf, math.inf),
        "conf_mode": ("exp", 1, math.inf),
        "patch_embed_cls": "PatchEmbedDust3R",
        # The official class insists on whole patches.
        "img_size": 2 * (max(1, config.image_size // config.patch_size) * config.patch_size,),
        "landscape_only": False,
    }


def json_from_config(config: Dust3rConfig) -> str:
    """The configuration as JSON, one entry per field of `Dust3rConfig`."""
    return json.dumps(dataclasses.asdict(config), sort_keys=True)


def config_from_json(text: str, *, path: Path | str | None = None) -> Dust3rConfig:
    """The configuration in a JSON text: fields of `Dust3rConfig`, or arguments of the official class.

    Raises:
        CheckpointArchitectureError: The text is no JSON object, or describes no supported network.
    """
    if len(text) > _LARGEST_JSON:
        raise _unsupported(f"the configuration has {len(text)} characters", path)
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointArchitectureError(
            "the configuration is no valid JSON",
            way_out="Download the file again, or save the network again",
            path=path,
        ) from error
    if not isinstance(values, dict):
        raise _unsupported("the configuration is no JSON object", path)
    ours = {field.name for field in dataclasses.fields(Dust3rConfig)}
    # The two dialects share `patch_size`, `mlp_ratio` and `depth_mode`; every file of ours also has the widths.
    if not ours.intersection(values) - {"patch_size", "mlp_ratio", "depth_mode"}:
        return config_from_official_arguments(values, path=path)
    for name in values:
        if name not in ours:
            raise _unsupported(f"the configuration's {name[:80]!a} is not supported", path)
    defaults = {field.name: field.default for field in dataclasses.fields(Dust3rConfig)}
    return _checked_config(defaults | values, names={}, path=path)


def _shown(value: object) -> str:
    """A value from a file, fit for one line of an error."""
    try:
        return ascii(value)[:80]
    # Python writes out no integers of thousands of digits.
    except ValueError:
        return f"a {type(value).__name__}"


def _same_values(value: object, wanted: tuple[object, ...]) -> bool:
    return isinstance(value, tuple | list) and tuple(value) == wanted


def _checked_config(fields: Mapping[str, object], *, names: Mapping[str, str], path: Path | str | None) -> Dust3rConfig:
    """A configuration of checked types and sane sizes; `names` are the file's names of our fields."""

    def refuse(name: str, value: object) -> CheckpointArchitectureError:
        return _unsupported(f"{names.get(name, name)}={_shown(value)} is not supported", path)

    checked = dict(fields)
    for name, (smallest, largest) in _BOUNDS.items():
        value = fields.get(name, smallest)
        if type(value) is not int or not smallest <= value <= largest:
            raise refuse(name, value)
    for name, largest in (("mlp_ratio", _LARGEST_MLP_RATIO), ("rope_base", _LARGEST_ROPE_BASE)):
        value = fields[name]
        if type(value) not in (int, float) or not 0 < cast(float, value) <= largest:
            raise refuse(name, value)
        checked[name] = float(cast(float, value))
    for name in ("head", "depth_mode"):
        if fields[name] not in get_args(Dust3rConfig.__annotations__[name]):
            raise refuse(name, fields[name])
    if "dpt_channels" in fields:
        channels = fields["dpt_channels"]
        if (
            not isinstance(channels, tuple | list)
            or len(channels) != 4
            or not all(type(channel) is int and 0 < channel <= _LARGEST_DPT_CHANNELS for channel in channels)
        ):
            raise refuse("dpt_channels", channels)
        checked["dpt_channels"] = tuple(channels)
    try:
        return Dust3rConfig(**checked)  # pyright: ignore[reportArgumentType]  # types checked above
    except SettingsError as error:
        raise _unsupported(error.problem, path) from error


# --- names and shapes ---------------------------------------------------------------------------

# The official DPT head registers these four convolutions a second time, in a list, so its state dict has them twice;
# safetensors keeps either name.
_LISTED_NAME = re.compile(r"^(downstream_head[12]\.dpt\.scratch\.)layer_rn\.([0-3])\.weight$")
_OWN_NAME = re.compile(r"^(downstream_head[12]\.dpt\.scratch\.)layer([1-4])_rn\.weight$")


def _own_name(name: str) -> str:
    match = _LISTED_NAME.match(name)
    return name if match is None else f"{match[1]}layer{int(match[2]) + 1}_rn.weight"


def _listed_name(name: str) -> str | None:
    match = _OWN_NAME.match(name)
    return None if match is None else f"{match[1]}layer_rn.{int(match[2]) - 1}.weight"


def meta_network(config: Dust3rConfig) -> Dust3r:
    """The network without memory for its weights (torch's meta device)."""
    with torch.device("meta"):
        return Dust3r(config)


def official_state_dict(network: Dust3r) -> dict[str, Tensor]:
    """The weights under every name that the official class's state dict has, ready for its strict `load_state_dict`.

    The tensors are those of the network, not copies. The optional descriptor head has no official counterpart and is
    left out.
    """
    official: dict[str, Tensor] = {}
    for name, tensor in network.state_dict().items():
        if ".descriptor." in name:
            continue
        official[name] = tensor
        listed = _listed_name(name)
        if listed is not None:
            official[listed] = tensor
    return official


def state_dict_from_official(
    mapping: Mapping[str, Tensor], config: Dust3rConfig, *, path: Path | str | None = None
) -> dict[str, Tensor]:
    """The weights under the names of `Dust3r(config)`, ready for its strict `load_state_dict`.

    Either name of a tensor that the official state dict has twice will do. A checkpoint without a second decoder
    (CroCo's) has the first one's weights copied, as the official class does.

    Args:
        mapping: Official names and tensors; the tensors are not copied.
        config: The network they belong to.
        path: The file they came from, for error messages.

    Raises:
        CheckpointKeysError: Tensors are missing, superfluous, misshapen, not of floating point, or differ under their
            two names.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in meta_network(config).state_dict().items()}
    state: dict[str, Tensor] = {}
    contradictory: list[str] = []
    for name, tensor in mapping.items():
        own = _own_name(name)
        if own in state and not (state[own].shape == tensor.shape and torch.equal(state[own], tensor)):
            contradictory.append(own)
        state[own] = tensor
    if not any(name.startswith("dec_blocks2.") for name in state):
        for name in [name for name in state if name.startswith("dec_blocks.")]:
            # A copy: the two decoders must be free to part when they are trained.
            state[name.replace("dec_blocks.", "dec_blocks2.", 1)] = state[name].clone()

    missing = [name for name in expected if name not in state]
    superfluous = [name for name in state if name not in expected]
    shared = [name for name in state if name in expected]
    misshapen = [
        f"{name} is {'x'.join(map(str, state[name].shape))} instead of {'x'.join(map(str, expected[name]))}"
        for name in shared
        if tuple(state[name].shape) != expected[name]
    ]
    integral = [f"{name} is {state[name].dtype}" for name in shared if not state[name].dtype.is_floating_point]
    problems = [
        _listing(title, entries)
        for title, entries in (
            ("missing", missing),
            ("not part of the network", superfluous),
            ("of the wrong shape", misshapen),
            ("not of floating point", integral),
            ("with two different values", contradictory),
        )
        if entries
    ]
    if problems:
        raise CheckpointKeysError(
            f"the tensors do not fit the configuration: {'; '.join(problems)}",
            way_out="Check that the weights and the configuration are of the same checkpoint, or download both again",
            path=path,
        )
    return {name: state[name] for name in expected}


def _listing(title: str, entries: Collection[str], shown: int = 3) -> str:
    first = ", ".join(ascii(entry[:120])[1:-1] for entry in list(entries)[:shown])
    return f"{len(entries)} {title} ({first}{', ...' if len(entries) > shown else ''})"
