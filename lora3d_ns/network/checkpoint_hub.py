"""The official weights: their names, their licence, and fetching them from the Hugging Face hub."""

import logging
import os
from pathlib import Path

from lora3d_ns.atomic_files import is_disk_full
from lora3d_ns.errors import CheckpointDownloadError, CheckpointError, CheckpointNotFoundError, DiskSpaceError
from lora3d_ns.network.checkpoint_files import require_disk_space

_log = logging.getLogger(__name__)

OFFICIAL_NETWORKS = {
    "512_dpt": "naver/DUSt3R_ViTLarge_BaseDecoder_512_dpt",
    "512_linear": "naver/DUSt3R_ViTLarge_BaseDecoder_512_linear",
    "224_linear": "naver/DUSt3R_ViTLarge_BaseDecoder_224_linear",
}
"""Hub names of the official networks by their short names."""

BUNDLED_NETWORK = "rooms"
"""Name of the small network that comes with this package; for synthetic rooms, not for photos."""

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"

_OFFICIAL_LICENCE = (
    "The official DUSt3R weights are (c) Naver Corporation, under CC BY-NC-SA 4.0: no commercial use, name the "
    "authors, share adaptations alike (https://creativecommons.org/licenses/by-nc-sa/4.0/). Adapters and "
    "reconstructions made with them may be bound by it too."
)
_BUNDLED_LICENCE = "The bundled network is part of lora3d-ns, under Apache-2.0."


def hub_name(name: str) -> str | None:
    """The hub's name of an official network, from that name or the short one; None for any other name."""
    return OFFICIAL_NETWORKS.get(name, name if name in OFFICIAL_NETWORKS.values() else None)


def weights_licence(name: str) -> str:
    """The licence of the weights with a known name, in a sentence or two.

    Raises:
        CheckpointNotFoundError: The name is not known (weights in a file have the licence of whoever made them).
    """
    if hub_name(name) is not None:
        return _OFFICIAL_LICENCE
    if name == BUNDLED_NETWORK:
        return _BUNDLED_LICENCE
    raise unknown_name(name)


def unknown_name(name: str) -> CheckpointNotFoundError:
    """The error for a name that is neither known nor a path."""
    known = ", ".join([*OFFICIAL_NETWORKS, BUNDLED_NETWORK])
    return CheckpointNotFoundError(
        f"{name[:200]!a} is no file or folder and no known network",
        way_out=f"Check the path, or use one of {known}",
    )


def show_licence_once(repository: str) -> None:
    """Logs the licence of the official weights, the first time on this machine that they are used.

    The marker is an empty file in `$XDG_CACHE_HOME/lora3d_ns` (`~/.cache/lora3d_ns`).
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
    marker = cache / "lora3d_ns" / f"licence-shown-{repository.replace('/', '--')}"
    if marker.exists():
        return
    _log.warning("%s", weights_licence(repository))
    try:
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.touch()
    except OSError as error:
        # A read-only home is no reason to refuse the weights; the licence is shown again next time.
        _log.info("%s cannot be written (%s): the licence will be shown again", marker, error.strerror)


def download_official(repository: str, cache_folder: Path | None = None) -> tuple[Path, Path]:
    """Configuration and weights of an official network, fetched unless they are in the cache.

    Progress bar, resuming after a dropped connection, and the cache are those of `huggingface_hub`, and so are its
    settings (HF_HOME, HF_ENDPOINT, HF_HUB_OFFLINE). What is in the cache is used without asking the hub.

    Args:
        repository: Name at the hub.
        cache_folder: Where to keep the files; the hub's own cache if None.

    Returns:
        The paths of the configuration and of the weights.

    Raises:
        CheckpointDownloadError: The hub does not answer, refuses, or the connection broke.
        CheckpointNotFoundError: The hub has no such repository or file.
        DiskSpaceError: Not enough room in the cache.
    """
    return _fetch(repository, CONFIG_FILE, cache_folder), _fetch(repository, WEIGHTS_FILE, cache_folder)


def _fetch(repository: str, file: str, cache_folder: Path | None) -> Path:
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache

    folder = Path(constants.HF_HUB_CACHE) if cache_folder is None else cache_folder
    cached = try_to_load_from_cache(repository, file, cache_dir=folder)
    if isinstance(cached, str):
        return Path(cached)
    # Read now, not when huggingface_hub was imported.
    endpoint = os.environ.get("HF_ENDPOINT") or None
    try:
        size = get_hf_file_metadata(hf_hub_url(repository, file, endpoint=endpoint)).size
        if size is not None:
            require_disk_space(folder, size)
        return Path(hf_hub_download(repository, file, cache_dir=folder, endpoint=endpoint))
    except CheckpointError:
        raise
    # huggingface_hub raises its own errors, those of its HTTP library (another one in each major version) and OSError.
    except Exception as error:
        raise _download_error(error, repository, file, folder) from error


def _download_error(error: Exception, repository: str, file: str, folder: Path) -> CheckpointError:
    from huggingface_hub import errors

    by_hand = (
        f"Or download {CONFIG_FILE} and {WEIGHTS_FILE} of https://huggingface.co/{repository} on another machine, put "
        "both into one folder, and pass that folder's path instead of the name"
    )
    if is_disk_full(error):
        return DiskSpaceError(
            f"the disk became full while {file} of {repository} was downloaded",
            way_out="Free some space, or choose another folder (set HF_HOME or pass `cache_folder`)",
            path=folder,
        )
    if isinstance(error, errors.GatedRepoError | errors.DisabledRepoError) or _status(error) == 403:
        return CheckpointDownloadError(
            f"the hub refuses {file} of {repository}",
            way_out=f"Log in with `hf auth login`, with an account that may read it. {by_hand}",
        )
    # `LocalEntryNotFoundError` is a kind of `EntryNotFoundError`, and means that the hub did not answer.
    missing = errors.RepositoryNotFoundError | errors.RevisionNotFoundError | errors.EntryNotFoundError
    if isinstance(error, missing) and not isinstance(error, errors.LocalEntryNotFoundError):
        return CheckpointNotFoundError(
            f"the hub has no {file} of {repository}", way_out=f"Check HF_ENDPOINT and your login. {by_hand}"
        )
    first_line = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    return CheckpointDownloadError(
        f"{file} of {repository} cannot be downloaded ({first_line})",
        way_out="Check the connection (proxy, firewall, HF_ENDPOINT, HF_HUB_OFFLINE) and try again; the files go to "
        f"{folder}, which HF_HOME or `cache_folder` moves. {by_hand}",
    )


def _status(error: Exception) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)
