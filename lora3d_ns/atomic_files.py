"""The one place that writes files: a kill, a power cut or a full disk leaves the old file or the new one, never half.

What is new is first written beside its place under a temporary name, `.lora3d-HOST-PID-RANDOM.partial`, flushed to the
disk, and then renamed. A failure removes it. A kill leaves it, and `remove_leftovers` knows it by its name.

A file is replaced by one rename, which is atomic. A folder that holds something cannot be renamed over, so
`replace_folder` needs two renames: the old one to `.NAME.lora3d-old`, the new one to its place. A kill between the two
leaves the old folder whole under that name, and `settle_folder` puts it back: readers call it before they read, and
`replace_folder` before it writes. Both hold a lock of the parent folder while they rename, so a reader never takes a
living writer for a dead one.
"""

import contextlib
import errno
import hashlib
import os
import platform
import re
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import psutil

from lora3d_ns.errors import Lora3dError, StorageError, StorageFullError

_TEMPORARY = re.compile(r"\.lora3d-(?P<host>[0-9a-f]{6})-(?P<pid>[0-9]{1,10})-[0-9a-f]{16}\.partial")
_FULL = (errno.ENOSPC, errno.EDQUOT)
_DAY_S = 86_400.0


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Writes a file all at once: afterwards either the whole new file is there, or what was there before.

    Args:
        path: The file; its folder is made. A symbolic link keeps pointing where it does.
        write: Writes the content into the open file it is given.

    Raises:
        StorageFullError: The disk is full or the quota exhausted.
        StorageError: The file cannot be written for another reason.
    """
    with replace_file(path) as temporary, temporary.open("wb") as file:
        write(file)


def write_bytes_atomically(path: Path, data: bytes) -> None:
    """Writes these bytes as `write_atomically` does."""
    write_atomically(path, lambda file: file.write(data))


def write_text_atomically(path: Path, text: str) -> None:
    """Writes this text in UTF-8 as `write_atomically` does, line ends as they are."""
    write_bytes_atomically(path, text.encode())


@contextlib.contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """A temporary file beside `path`, empty, that takes its place when the block ends.

    For libraries that want a path and not an open file. If the block raises, the temporary file is removed and `path`
    is as it was.

    Raises:
        StorageFullError: The disk is full or the quota exhausted, in the block or at its end.
        StorageError: Any other error of the file system, in the block or at its end.
    """
    with _storage_errors(path):
        path = _link_target(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _temporary_sibling(path)
        try:
            # As readable as any new file is, which a library that makes its own may not respect.
            temporary.touch(exist_ok=False)
            mode = temporary.stat().st_mode
            yield temporary
            if temporary.stat().st_mode != mode:
                temporary.chmod(mode)
            _flush(temporary)
            temporary.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        _flush(path.parent)


@contextlib.contextmanager
def replace_folder(folder: Path) -> Iterator[Path]:
    """A new, empty folder beside `folder`, that takes its place with all that the block puts there when it ends.

    If the block raises, the new folder is removed and `folder` is as it was. If the process dies, `folder` holds the
    old content or the new, or does not exist: the old content then is put back by `settle_folder`.

    Raises:
        StorageFullError: The disk is full or the quota exhausted, in the block or at its end.
        StorageError: Any other error of the file system, in the block or at its end; or `folder` is a file.
    """
    with _storage_errors(folder):
        folder = _link_target(folder)
        settle_folder(folder)
        if _is_other_than_folder(folder):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = _temporary_sibling(folder)
        try:
            temporary.mkdir()
            try:
                yield temporary
            except StorageError as error:
                if error.path is None or not error.path.is_relative_to(temporary):
                    raise
                # Under the name that the user knows.
                place = folder / error.path.relative_to(temporary)
                raise type(error)(error.problem, way_out=error.way_out, path=place) from error
            _flush_tree(temporary)
            with _locked(folder.parent):
                _settle(folder)
                if folder.exists():
                    folder.rename(_set_aside(folder))
                try:
                    temporary.rename(folder)
                finally:
                    # The old one comes back if the new one could not take its place, and goes if it could.
                    _settle(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        _flush(folder.parent)


def settle_folder(folder: Path) -> None:
    """Ends what a `replace_folder` that was killed left undone: if `folder` is missing, its old content comes back.

    Raises:
        StorageError: The old content is there and cannot be put back.
    """
    with _storage_errors(folder):
        folder = _link_target(folder)
        if not _set_aside(folder).exists():
            return
        with _locked(folder.parent):
            _settle(folder)


def remove_leftovers(folder: Path, older_than_s: float = _DAY_S) -> tuple[Path, ...]:
    """Removes the temporary files and folders that dead runs left in a folder, and says which.

    Args:
        folder: Looked through without its subfolders; it may be missing.
        older_than_s: Those of a process that lives on this machine, and of any process of another machine, are
            removed only if they were not written to for so long.
    """
    removed = []
    with contextlib.suppress(OSError):
        for path in sorted(folder.iterdir()):
            if _is_leftover(path, older_than_s):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)
                removed.append(path)
    return tuple(removed)


def is_disk_full(error: BaseException) -> bool:
    """Whether the error, or one that led to it, is a full disk or an exhausted quota."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in _FULL:
            return True
        # safetensors writes in Rust and leaves the number in the text only.
        if any(f"os error {number})" in str(cause) for number in _FULL):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def _is_leftover(path: Path, older_than_s: float) -> bool:
    name = _TEMPORARY.fullmatch(path.name)
    if name is None:
        return False
    if name["host"] == _host() and not psutil.pid_exists(int(name["pid"])):
        return True
    try:
        return time.time() - path.lstat().st_mtime > older_than_s
    except OSError:
        # Its writer has just finished.
        return False


def _temporary_sibling(path: Path) -> Path:
    # Without the file's own name, which may be as long as the file system allows.
    return path.parent / f".lora3d-{_host()}-{os.getpid()}-{secrets.token_hex(8)}.partial"


def _host() -> str:
    # A process number means something on one machine only; folders may be shared between several.
    return hashlib.blake2b(platform.node().encode(), digest_size=3).hexdigest()


def _link_target(path: Path) -> Path:
    return Path(os.path.realpath(path)) if path.is_symlink() else path


def _is_other_than_folder(path: Path) -> bool:
    # Asked once: between two questions another writer may take the folder away and bring its own.
    try:
        return not stat.S_ISDIR(path.stat().st_mode)
    except FileNotFoundError:
        return False


def _set_aside(folder: Path) -> Path:
    return folder.absolute().parent / f".{folder.absolute().name}.lora3d-old"


def _settle(folder: Path) -> None:
    """Puts the old content back if the folder is missing, and removes it otherwise; the lock must be held."""
    old = _set_aside(folder)
    if old.exists() and folder.exists():
        # Renamed first: half of it must never be taken for the old content.
        outdated = _temporary_sibling(folder)
        old.rename(outdated)
        shutil.rmtree(outdated, ignore_errors=True)
    elif old.exists():
        old.rename(folder)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Holds a lock of the folder itself, which leaves no lock file; the system releases it if the process dies."""
    if os.name == "nt":
        # No such lock there: two processes that replace one folder at the same moment are not kept apart.
        yield
        return
    import fcntl

    handle = os.open(folder, os.O_RDONLY)
    try:
        # Some network file systems lock no folders.
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _flush(path: Path) -> None:
    is_folder = path.is_dir()
    # Windows can open no folder; there the rename alone has to do.
    if os.name == "nt" and is_folder:
        return
    handle = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some file systems cannot flush a folder.
        if not (is_folder and error.errno in (errno.EINVAL, errno.ENOTSUP)):
            raise
    finally:
        os.close(handle)


def _flush_tree(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_symlink():
            continue
        if path.is_dir():
            _flush_tree(path)
        else:
            _flush(path)
    _flush(folder)


@contextlib.contextmanager
def _storage_errors(path: Path) -> Iterator[None]:
    """Turns the file system's errors into ours; `path` is what the user knows."""
    try:
        yield
    except Lora3dError:
        raise
    except Exception as error:
        # Torch and safetensors hide a full disk behind errors of their own.
        if is_disk_full(error):
            raise StorageFullError(
                "the disk is full (nothing half-written was left)",
                way_out="Free some room or choose a folder on another disk, then run the same again",
                path=path,
            ) from error
        if isinstance(error, OSError):
            raise StorageError(
                f"it cannot be written ({error.strerror or error})",
                way_out="Choose a place that you may write to",
                path=path,
            ) from error
        raise
