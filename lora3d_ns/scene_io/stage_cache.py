"""Results of stages under a key of all that they depend on, so that interrupted work need not be repeated."""

import contextlib
import dataclasses
import hashlib
import logging
import re
import shutil
import struct
from collections.abc import Callable, Iterator, Mapping, Set
from pathlib import Path, PurePath
from typing import TypeVar

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from lora3d_ns.atomic_files import remove_leftovers
from lora3d_ns.errors import DamagedFileError, StorageError, StorageFullError
from lora3d_ns.scene_io.structures import read_result, write_result

_LOGGER = logging.getLogger(__name__)

IGNORED_FIELDS = frozenset({"show_progress", "source_paths"})
"""Fields of dataclasses that change no result: whether a bar is drawn, and where the photos lie."""

_FINGERPRINT_VERSION = "lora3d fingerprint 1"
_STAGE = re.compile(r"[a-z][a-z0-9_]*")
_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.]*")

T = TypeVar("T")


def fingerprint(*values: object) -> str:
    """32 hexadecimal digits that name the content of these values.

    Tensors count with type, shape and bytes, wherever they are; dataclasses with their type's name and their fields
    except `IGNORED_FIELDS`; tuples and lists alike; mappings and sets whatever their order; paths with their last part
    only, so what lies in a file that matters has to be among the values itself.

    Raises:
        TypeError: A value is of another kind, which is a defect of the caller.
    """
    return _digest((_FINGERPRINT_VERSION, values)).hex()


def _digest(value: object) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    # Each kind has its own beginning, and each part of a sequence has one length: no two values look alike.
    if value is None:
        digest.update(b"none")
    elif isinstance(value, bool):
        digest.update(b"bool 1" if value else b"bool 0")
    elif isinstance(value, int):
        digest.update(b"int %d" % value)
    elif isinstance(value, float):
        digest.update(b"float " + struct.pack("<d", value))
    elif isinstance(value, str):
        digest.update(b"str " + value.encode("utf-8", "surrogatepass"))
    elif isinstance(value, bytes):
        digest.update(b"bytes " + value)
    elif isinstance(value, PurePath):
        digest.update(b"path " + value.name.encode("utf-8", "surrogatepass"))
    elif isinstance(value, Tensor):
        values = value.detach().cpu().contiguous().reshape(-1)
        if values.stride() != (1,):
            # A single item taken from a larger tensor keeps that one's stride and still counts as contiguous.
            values = values.clone(memory_format=torch.contiguous_format)
        digest.update(f"tensor {value.dtype} {tuple(value.shape)} ".encode())
        if values.numel():
            digest.update(values.view(torch.uint8).numpy().data)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        digest.update(b"dataclass ")
        counted = sorted({field.name for field in dataclasses.fields(value)} - IGNORED_FIELDS)
        for part in (type(value).__name__, *counted, *(getattr(value, name) for name in counted)):
            digest.update(_digest(part))
    elif isinstance(value, (tuple, list)):
        digest.update(b"sequence ")
        for part in value:
            digest.update(_digest(part))
    elif isinstance(value, Mapping):
        digest.update(b"mapping ")
        for part in sorted(_digest(key) + _digest(entry) for key, entry in value.items()):
            digest.update(part)
    elif isinstance(value, Set):
        digest.update(b"set ")
        for part in sorted(map(_digest, value)):
            digest.update(part)
    else:
        raise TypeError(f"{type(value).__name__} has no fingerprint")
    return digest.digest()


class StageCache:
    """A folder with one file per result, `STAGE-KEY.safetensors`. It can be deleted at any time.

    Several processes may share the folder: each result is computed by one of them, and the others wait for it.

    Args:
        folder: Where results are kept; None keeps none, so that everything is computed.

    Attributes:
        root: That folder.
        reused: The stages whose results came from the folder, in the order of the calls.
    """

    def __init__(self, folder: Path | None) -> None:
        self.root = folder
        self.reused: list[str] = []

    @classmethod
    def none(cls) -> "StageCache":
        """A cache that keeps nothing."""
        return cls(None)

    def result(self, stage: str, key: str, expected_type: type[T], compute: Callable[[], T]) -> T:
        """The result of a stage: from the folder if it is there and whole, or else computed and put there.

        Args:
            stage: Name of the stage: small letters, digits, underscores.
            key: The `fingerprint` of everything that the result depends on.
            expected_type: What it must be; see `structures.READABLE_TYPES`.
            compute: Makes it.

        Raises:
            StorageFullError: The disk has no room for the result.
            StorageError: The folder cannot be written to, or the file not read.
        """
        path = self._path(stage, key, ".safetensors")
        if path is None:
            return compute()
        # Without the lock, so that a folder that may only be read serves as well.
        found = _read_whole(path, expected_type)
        if found is None:
            with self._only_we(stage, path):
                # Another process may have made it while this one waited.
                found = _read_whole(path, expected_type, and_remove_damaged=True)
                if found is None:
                    value = compute()
                    self._keep(stage, path, value)
                    return value
        self.reused.append(stage)
        return found[0]

    def folder(self, stage: str, key: str) -> Path | None:
        """A folder, made if missing, for what a stage writes on its way; None if nothing is kept.

        Ask for it inside `compute`: there no other process uses it.

        Raises:
            StorageError: It cannot be made.
        """
        path = self._path(stage, key, "")
        if path is not None:
            with _folder_errors(path):
                path.mkdir(parents=True, exist_ok=True)
        return path

    def clear_partial(self, stage: str, key: str) -> None:
        """Removes the folder of what a stage wrote on its way, once its result is there."""
        path = self._path(stage, key, "")
        if path is not None:
            shutil.rmtree(path, ignore_errors=True)

    def _path(self, stage: str, key: str, ending: str) -> Path | None:
        # Either is part of a file's name.
        if not _STAGE.fullmatch(stage) or not _KEY.fullmatch(key):
            raise ValueError(f"{stage!r} and {key!r} do not name a result")
        return None if self.root is None else self.root / f"{stage}-{key}{ending}"

    def _keep(self, stage: str, path: Path, value: object) -> None:
        remove_leftovers(path.parent)
        try:
            write_result(path, value)
        except StorageFullError as error:
            raise StorageFullError(
                f"the disk has no room for the result of stage {stage} (nothing half-written was left)",
                way_out="Free some room, for which this folder of intermediate results can be deleted as a whole, "
                "or choose a folder on another disk, then run the same again",
                path=path.parent,
            ) from error

    @contextlib.contextmanager
    def _only_we(self, stage: str, path: Path) -> Iterator[None]:
        """Holds the lock of one result; the system releases it if this process dies."""
        with _folder_errors(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(str(path.with_suffix(".lock")))
            try:
                lock.acquire(timeout=0)
            except Timeout:
                _LOGGER.info("waiting for another process, which computes stage %s in %s", stage, path.parent)
                lock.acquire()
            except NotImplementedError:
                # At worst two processes compute the same, and each puts it there as a whole.
                _LOGGER.warning("%s cannot be locked; let no other run use it meanwhile", path.parent)
        try:
            yield
        finally:
            lock.release()


def _read_whole(path: Path, expected_type: type[T], *, and_remove_damaged: bool = False) -> tuple[T] | None:
    """The result in a tuple of its own (it may be None); or None if there is none, or a damaged one."""
    try:
        return (read_result(path, expected_type),)
    except DamagedFileError as error:
        if and_remove_damaged:
            _LOGGER.warning("%s: %s; it is removed and computed anew", path, error.problem)
            with _folder_errors(path):
                path.unlink(missing_ok=True)
        return None
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise


@contextlib.contextmanager
def _folder_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"the folder of intermediate results cannot be used ({error.strerror or error})",
            way_out="Choose a folder that you may write to, or turn the keeping of results off",
            path=path,
        ) from error
