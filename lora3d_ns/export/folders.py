"""Folders that exports leave: marked as ours, so that a later export replaces them and nothing else."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from lora3d_ns import __version__
from lora3d_ns.errors import InvalidDataError, StorageError
from lora3d_ns.photos.colmap_files import MARK_FILE


def write_mark(folder: Path) -> None:
    """Says that the folder is an export of ours, and that its cameras are those of upright photos."""
    content = {"made_by": f"lora3d_ns {__version__}", "pixels": "upright"}
    (folder / MARK_FILE).write_text(json.dumps(content) + "\n", encoding="utf-8")


def require_replaceable(folder: Path, ours: frozenset[str]) -> None:
    """Refuses a folder with anything but an earlier export in it, since the export would replace it.

    Args:
        folder: May be missing.
        ours: Names that an export leaves there, apart from its mark.

    Raises:
        StorageError: There is something else.
    """
    try:
        there = {path.name for path in folder.iterdir()}
    except (FileNotFoundError, NotADirectoryError):
        # What is wrong with the place shows when it is written.
        return
    except OSError as error:
        raise StorageError(
            f"the folder cannot be read ({error.strerror or error})", way_out="Choose another folder", path=folder
        ) from error
    # Without the mark even the same names may be somebody's own photos and cameras.
    others = sorted(there - ours - {MARK_FILE} if MARK_FILE in there else there)
    if others:
        raise StorageError(
            f"the folder holds {len(others)} files that belong to no export (such as {others[0]})",
            way_out="Choose a new folder",
            path=folder,
        )


def bare_names(names: Sequence[str]) -> tuple[str, ...]:
    """Names without their ending, for files made of them; with it where several would be called the same."""
    bare = [str(PurePosixPath(name).with_suffix("")) for name in names]
    # Some file systems do not tell large from small letters.
    count = Counter(name.lower() for name in bare)
    return tuple(short if count[short.lower()] == 1 else name for name, short in zip(names, bare, strict=True))


def path_below(folder: Path, name: str) -> Path:
    """Where a file of this name lies in the folder, made ready for it.

    Raises:
        InvalidDataError: The name points out of the folder.
        StorageError: Its folder cannot be made.
    """
    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or "\\" in name:
        raise InvalidDataError(
            f"the photo's name {name!r} points out of its folder", way_out="Reconstruct from a folder of photos"
        )
    path = folder / name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"the folder cannot be made ({error.strerror or error})", way_out="Choose another folder", path=path.parent
        ) from error
    return path
