"""Reading and writing checkpoint files without trusting them.

Two formats: safetensors, and the zip of `torch.save` (`.pth`), whose pickle is scanned for what it asks for before
torch's restricted unpickler reads it. No code of a file is ever run.
"""

import argparse
import contextlib
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from lora3d_ns.atomic_files import replace_file
from lora3d_ns.errors import (
    CheckpointArchitectureError,
    CheckpointNotFoundError,
    CheckpointWriteError,
    CorruptCheckpointError,
    DiskSpaceError,
    StorageError,
    StorageFullError,
)
from lora3d_ns.network.checkpoint_pickles import refuse_unsafe_pickle

_MIB = 2**20
# A directory of tensors needs no more; the official checkpoint's has about 0.2 MiB.
_LARGEST_PICKLE = 8 * _MIB
# Left free on the disk after a write.
DISK_MARGIN = 64 * _MIB

_SAVED_AGAIN = "Load it where it was made and save it again with `torch.save`"
_DOWNLOAD_AGAIN = "Delete the file and download or copy it again"


@dataclass(frozen=True, eq=False, kw_only=True)
class CheckpointContents:
    """What a file holds, unchecked against any network.

    Attributes:
        tensors: Names and tensors, on the CPU; they may be mapped from the file.
        own_config: JSON of our configuration in the file itself, if it has one.
        model_string: Constructor call of the official class in the file itself, if it has one.
    """

    tensors: Mapping[str, Tensor]
    own_config: str | None = None
    model_string: str | None = None


def read_text(path: Path) -> str:
    """The text of a small file.

    Raises:
        CheckpointNotFoundError: It cannot be opened.
        CorruptCheckpointError: It is no text.
    """
    with _opening(path):
        raw = path.read_bytes()
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CorruptCheckpointError("the file is no text", way_out=_DOWNLOAD_AGAIN, path=path) from error


# --- safetensors --------------------------------------------------------------------------------

CONFIG_ENTRY = "lora3d_config"
"""Name of the metadata entry that holds the configuration."""


def read_safetensors(path: Path) -> CheckpointContents:
    """The contents of a safetensors file.

    Raises:
        CheckpointNotFoundError: The file cannot be opened.
        CorruptCheckpointError: It is damaged.
    """
    from safetensors import safe_open

    with _opening(path), path.open("rb"):
        pass
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
    # The reader raises its own error, and for types that torch lacks whatever torch raises.
    except Exception as error:
        raise CorruptCheckpointError(
            f"the file is damaged or no safetensors file ({_cause(error)})", way_out=_DOWNLOAD_AGAIN, path=path
        ) from error
    return CheckpointContents(tensors=tensors, own_config=metadata.get(CONFIG_ENTRY))


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes a safetensors file all at once: either the whole file is there afterwards, or what was there before.

    Raises:
        DiskSpaceError: Not enough free space.
        CheckpointWriteError: The folder cannot be written to.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    needed = sum(tensor.nbytes for tensor in tensors.values())
    try:
        require_disk_space(path.parent, needed)
        with replace_file(path) as temporary:
            save_file(dict(tensors), temporary, metadata=dict(metadata))
    except StorageFullError as error:
        raise _disk_space_error(path.parent, needed) from error
    except (StorageError, SafetensorError, OSError) as error:
        raise CheckpointWriteError(
            f"the weights cannot be written ({_cause(error.__cause__ or error)})",
            way_out="Choose a folder that you may write to",
            path=path,
        ) from error


def require_disk_space(folder: Path, needed_bytes: int) -> None:
    """Checks that a folder, existing or not, has room for so many bytes.

    Raises:
        DiskSpaceError: It has not.
    """
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    if shutil.disk_usage(existing).free < needed_bytes + DISK_MARGIN:
        raise _disk_space_error(folder, needed_bytes)


def _disk_space_error(folder: Path, needed_bytes: int) -> DiskSpaceError:
    return DiskSpaceError(
        f"the weights need {max(1, round(needed_bytes / 1e6))} MB and the disk has no room for them",
        way_out="Free some space, or choose another folder (for downloads: set HF_HOME or pass `cache_folder`)",
        path=folder,
    )


# --- the zip of torch.save ----------------------------------------------------------------------


def read_pth(path: Path) -> CheckpointContents:
    """The contents of an official `.pth`: a dict with `model` (tensors) and `args.model` (the constructor call).

    Raises:
        CheckpointNotFoundError: The file cannot be opened.
        CorruptCheckpointError: It is damaged, or no zip of `torch.save`.
        UnsafeCheckpointError: Its pickle asks for something other than tensors and plain values.
        CheckpointArchitectureError: It holds something other than an official checkpoint.
    """
    with _opening(path), path.open("rb") as file:
        is_zip = file.read(4) == b"PK\x03\x04"
        file.seek(0)
        start = b"" if is_zip else file.read(_LARGEST_PICKLE)
    if not is_zip:
        # Either a bare pickle or torch's format before 1.6: not read at all, but a hostile one is called by its name.
        refuse_unsafe_pickle(start, path)
        raise CorruptCheckpointError(
            "the file is damaged, or in torch's format from before version 1.6", way_out=_SAVED_AGAIN, path=path
        )
    refuse_unsafe_pickle(_checked_pickle_of_zip(path), path)
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    # Torch raises whatever its unpickler stumbles over, from KeyError to RuntimeError.
    except Exception as error:
        raise CorruptCheckpointError(
            f"the file is damaged ({_cause(error)})", way_out=_DOWNLOAD_AGAIN, path=path
        ) from error
    return _official_contents(checkpoint, path)


def _official_contents(checkpoint: object, path: Path) -> CheckpointContents:
    # `dict.get` and `dict.items`, unbound: the file may have given its mappings attributes of the same names.
    weights = dict.get(checkpoint, "model") if isinstance(checkpoint, dict) else None
    if not isinstance(checkpoint, dict) or not isinstance(weights, dict):
        raise CheckpointArchitectureError(
            "the file has no entry `model` with the weights",
            way_out="Use an official DUSt3R `.pth`, or save the network with `save_network`",
            path=path,
        )
    tensors = dict(dict.items(weights))
    if not all(
        isinstance(name, str) and type(tensor) in (Tensor, torch.nn.Parameter) for name, tensor in tensors.items()
    ):
        raise CorruptCheckpointError("the weights are no plain tensors", way_out=_DOWNLOAD_AGAIN, path=path)
    args = dict.get(checkpoint, "args")
    model_string = vars(args).get("model") if isinstance(args, argparse.Namespace) else None
    if not isinstance(model_string, str):
        raise CheckpointArchitectureError(
            "the file does not say what network it is of (no `args.model`)",
            way_out="Use an official DUSt3R `.pth`, or save the network with `save_network`",
            path=path,
        )
    return CheckpointContents(
        tensors={name: tensor.detach() for name, tensor in tensors.items()}, model_string=model_string
    )


def _checked_pickle_of_zip(path: Path) -> bytes:
    """The pickle in the zip, after a check of the whole archive.

    Torch's reader is C++ and maps the tensors straight from the file, so nothing but a sound archive of plainly stored
    records may get there: no compression, no duplicate names, checksums right.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
            names = [record.filename for record in records]
            pickles = [record for record in records if record.filename.count("/") == 1 and _ends_in_pickle(record)]
            sound = (
                len(pickles) == 1
                and pickles[0].file_size <= _LARGEST_PICKLE
                and len(set(names)) == len(names)
                and all(_is_plainly_stored(record) for record in records)
                and archive.testzip() is None
            )
            if sound:
                return archive.read(pickles[0])
    # zipfile raises half a dozen kinds of errors on damaged archives.
    except Exception as error:
        raise CorruptCheckpointError(
            f"the file is damaged ({_cause(error)})", way_out=_DOWNLOAD_AGAIN, path=path
        ) from error
    raise CorruptCheckpointError("the file is damaged, or no checkpoint", way_out=_DOWNLOAD_AGAIN, path=path)


def _ends_in_pickle(record: zipfile.ZipInfo) -> bool:
    return record.filename.endswith("/data.pkl")


def _is_plainly_stored(record: zipfile.ZipInfo) -> bool:
    encrypted = bool(record.flag_bits & 0x1)
    return record.compress_type == zipfile.ZIP_STORED and record.file_size == record.compress_size and not encrypted


@contextlib.contextmanager
def _opening(path: Path) -> Iterator[None]:
    """Turns what opening a file raises into a named error."""
    try:
        yield
    except FileNotFoundError as error:
        raise CheckpointNotFoundError("there is no such file", way_out="Check the path", path=path) from error
    except OSError as error:
        raise CheckpointNotFoundError(
            f"the file cannot be read ({error.strerror})", way_out="Check the path and the permissions", path=path
        ) from error


def _cause(error: BaseException) -> str:
    """The first line of an error's text, short; or its kind where it has none."""
    lines = str(error).strip().splitlines()
    return ascii(lines[0][:160])[1:-1] if lines else type(error).__name__


def require_finite(name: str, tensor: Tensor, *, way_out: str, path: Path | None) -> None:
    """Checks that weights are numbers.

    Raises:
        CorruptCheckpointError: NaN or infinity, also from conversion to a narrower type.
    """
    if not bool(torch.isfinite(tensor).all()):
        raise CorruptCheckpointError(
            f"{name} holds NaN or infinite values as {str(tensor.dtype).removeprefix('torch.')}",
            way_out=way_out,
            path=path,
        )
