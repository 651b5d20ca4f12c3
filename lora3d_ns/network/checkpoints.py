"""Networks from names and files, and back to files.

    network = load_network("512_dpt")             # official weights, from the hub or its cache
    network = load_network("folder/")             # config.json + model.safetensors, as the hub has them
    network = load_network("DUSt3R_ViTLarge_BaseDecoder_512_dpt.pth")
    save_network(network, "network.safetensors")

No file is trusted: no code of it runs, and sizes and shapes are compared before a network is built.
"""

import hashlib
import struct
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from lora3d_ns.errors import CheckpointArchitectureError, CheckpointNotFoundError, SettingsError
from lora3d_ns.network.checkpoint_architecture import (
    config_from_json,
    config_from_official_arguments,
    json_from_config,
    meta_network,
    official_state_dict,
    parse_model_string,
    state_dict_from_official,
)
from lora3d_ns.network.checkpoint_files import (
    CONFIG_ENTRY,
    CheckpointContents,
    read_pth,
    read_safetensors,
    read_text,
    require_finite,
    write_safetensors,
)
from lora3d_ns.network.checkpoint_hub import (
    BUNDLED_NETWORK,
    CONFIG_FILE,
    OFFICIAL_NETWORKS,
    WEIGHTS_FILE,
    download_official,
    hub_name,
    show_licence_once,
    unknown_name,
    weights_licence,
)
from lora3d_ns.network.configuration import Dust3rConfig
from lora3d_ns.network.dust3r import Dust3r

__all__ = [
    "BUNDLED_NETWORK",
    "DEFAULT_NETWORK",
    "OFFICIAL_NETWORKS",
    "load_network",
    "network_fingerprint",
    "official_state_dict",
    "save_network",
    "state_dict_from_official",
    "weights_licence",
]

DEFAULT_NETWORK = OFFICIAL_NETWORKS["512_dpt"]
"""The network for photos."""

_BUNDLED_WEIGHTS = Path(__file__).resolve().parents[1] / "weights" / "rooms.safetensors"


def load_network(
    name_or_path: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    cache_folder: Path | None = None,
) -> Dust3r:
    """A DUSt3R network with its weights.

    Args:
        name_or_path: `512_dpt`, `512_linear`, `224_linear` (official), `rooms` (bundled), or an official network's
            full name at the hub. Or a folder with `config.json` and `model.safetensors`, a `.safetensors` file (that
            `save_network` wrote, or with a `config.json` beside it), or an official `.pth`. Short names always mean
            the network; to load from a folder of the same name, pass a `Path`.
        device: Where to put the weights.
        dtype: Floating-point type of the weights.
        cache_folder: Where downloads are kept; the hub's own cache if None.

    Returns:
        The network in evaluation mode. Its weights may be mapped from the file, which must not be changed in place.

    Raises:
        CheckpointNotFoundError: No such file, folder or name.
        CheckpointDownloadError: The weights have to be fetched, and that failed.
        DiskSpaceError: Not enough room for the download.
        CorruptCheckpointError: A file is damaged, or holds NaN.
        UnsafeCheckpointError: The pickle in a file asks for more than tensors and plain values.
        CheckpointArchitectureError: The configuration is of no supported network.
        CheckpointKeysError: The tensors do not fit the configuration.
    """
    if not dtype.is_floating_point:
        raise SettingsError(f"weights cannot be {dtype}", way_out="Use torch.float32, torch.float16 or torch.bfloat16")
    path, config, contents = _contents_of(name_or_path, cache_folder)
    state = state_dict_from_official(contents.tensors, config, path=path)
    for name, tensor in state.items():
        state[name] = tensor.to(device=device, dtype=dtype).contiguous()
        require_finite(
            name,
            state[name],
            way_out="Delete the file and download or copy it again; half precision may also be too narrow: use float32",
            path=path,
        )
    network = meta_network(config)
    # The tensors become the parameters themselves: no second copy, and nothing was allocated on their behalf.
    network.load_state_dict(state, strict=True, assign=True)
    return network.eval()


def _contents_of(name_or_path: str | Path, cache_folder: Path | None) -> tuple[Path, Dust3rConfig, CheckpointContents]:
    """The file with the weights, the configuration, and what is in the file."""
    if name_or_path == BUNDLED_NETWORK:
        if not _BUNDLED_WEIGHTS.is_file():
            raise CheckpointNotFoundError(
                "the bundled network is not in this version of the package",
                way_out=f"Install a version that has it, or use one of {', '.join(OFFICIAL_NETWORKS)}",
                path=_BUNDLED_WEIGHTS,
            )
        return _from_file(_BUNDLED_WEIGHTS)
    if isinstance(name_or_path, str):
        repository = hub_name(name_or_path)
        # A folder that somebody filled by hand may have the full name of the repository.
        if repository is not None and not (name_or_path == repository and Path(name_or_path).exists()):
            show_licence_once(repository)
            config_file, weights_file = download_official(repository, cache_folder)
            config = config_from_json(read_text(config_file), path=config_file)
            return weights_file, config, read_safetensors(weights_file)
    path = Path(name_or_path)
    try:
        path = path.expanduser()
        is_folder, exists = path.is_dir(), path.exists()
    # Texts that can be no path: too long, with a null character, or of an unknown user's home.
    except (OSError, ValueError, RuntimeError) as error:
        raise unknown_name(str(name_or_path)) from error
    if not exists:
        raise unknown_name(str(name_or_path))
    if not is_folder:
        return _from_file(path)
    weights_file = path / WEIGHTS_FILE
    if not weights_file.is_file():
        raise CheckpointNotFoundError(
            f"the folder has no {WEIGHTS_FILE}",
            way_out=f"Put {CONFIG_FILE} and {WEIGHTS_FILE} into it, or pass the file with the weights",
            path=path,
        )
    return _from_file(weights_file)


def _from_file(path: Path) -> tuple[Path, Dust3rConfig, CheckpointContents]:
    match path.suffix.lower():
        case ".safetensors":
            contents = read_safetensors(path)
            if contents.own_config is not None:
                return path, config_from_json(contents.own_config, path=path), contents
            config_file = path.parent / CONFIG_FILE
            if not config_file.is_file():
                raise CheckpointNotFoundError(
                    "the file does not say what network it is of",
                    way_out=f"Put the {CONFIG_FILE} that belongs to it beside it",
                    path=path,
                )
            return path, config_from_json(read_text(config_file), path=config_file), contents
        case ".pth" | ".pt":
            contents = read_pth(path)
            assert contents.model_string is not None
            arguments = parse_model_string(contents.model_string, path=path)
            return path, config_from_official_arguments(arguments, path=path), contents
        case suffix:
            raise CheckpointArchitectureError(
                f"files that end in {suffix[:20]!a} are no checkpoints",
                way_out="Use a .safetensors or an official .pth file, or a folder with both files of the hub",
                path=path,
            )


def save_network(
    network: Dust3r,
    path: str | Path,
    *,
    metadata: Mapping[str, str] | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Writes a network as one safetensors file with its configuration inside, all at once or not at all.

    Args:
        network: Whose weights to write; they are unchanged.
        path: The file, ending in `.safetensors`; its folder is made if need be.
        metadata: Further entries for the file's header.
        dtype: Floating-point type to write, for example `torch.float16`; the network's own if None.

    Raises:
        SettingsError: The path has another ending, or `metadata` has an entry `lora3d_config`.
        CorruptCheckpointError: The weights are NaN or infinite, or become so in `dtype`.
        DiskSpaceError: Not enough room.
        CheckpointWriteError: The folder cannot be written to.
    """
    path = Path(path).expanduser()
    if path.suffix.lower() != ".safetensors":
        raise SettingsError(f"{path.name} does not end in .safetensors", way_out="Choose a name that does")
    if metadata is not None and CONFIG_ENTRY in metadata:
        raise SettingsError(f"the metadata entry {CONFIG_ENTRY} is taken", way_out="Choose another name for the entry")
    tensors: dict[str, Tensor] = {}
    for name, tensor in network.state_dict().items():
        tensors[name] = tensor.detach().to(device="cpu", dtype=dtype or tensor.dtype).contiguous()
        require_finite(
            name,
            tensors[name],
            way_out="Save the network from before it diverged, or in a wider type",
            path=path,
        )
    header = {"format": "pt", **(metadata or {}), CONFIG_ENTRY: json_from_config(network.config)}
    write_safetensors(path, tensors, header)


def network_fingerprint(network: Dust3r) -> str:
    """SHA-256 (hex) over names, shapes and float32 bytes of all weights, to recognise the base of an adapter.

    Independent of device, of the order of names and of whether a value is stored in a wider type; a network rounded to
    half precision is another one.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        encoded = name.encode()
        digest.update(struct.pack(f"<I{len(encoded)}sI", len(encoded), encoded, tensor.dim()))
        digest.update(struct.pack(f"<{tensor.dim()}Q", *tensor.shape))
        values = tensor.detach().to(device="cpu", dtype=torch.float32).contiguous()
        digest.update(values.numpy().astype("<f4", copy=False).data)
    return digest.hexdigest()
