"""How a command behaves: what it says and where, and in what words it fails."""

import contextlib
import errno
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lora3d_ns.cli_parsing import UsageError
from lora3d_ns.errors import Lora3dError
from lora3d_ns.progress import no_progress_bars

EVERYWHERE = """With every command, anywhere: --quiet prints nothing but errors, --verbose everything and where an
error came from, --config FILE takes the settings that a run has left beside its result; what stands on the line goes
first.
"""


@dataclass(frozen=True, kw_only=True)
class Conduct:
    """What holds for every command.

    Attributes:
        quiet: Say nothing but errors.
        verbose: Say everything, and show where an error came from.
        config: File with settings.
    """

    quiet: bool = False
    verbose: bool = False
    config: Path | None = None


def split(words: Sequence[str]) -> tuple[Conduct, list[str]]:
    """What holds for every command, wherever it stands on the line, and the rest of the line.

    Raises:
        UsageError: Both quiet and verbose, or `--config` without a file.
    """
    quiet = verbose = False
    config: Path | None = None
    rest: list[str] = []
    left = iter(words)
    for word in left:
        if word == "--quiet":
            quiet = True
        elif word == "--verbose":
            verbose = True
        elif word == "--config" or word.startswith("--config="):
            file = word.partition("=")[2] if "=" in word else next(left, "")
            if not file or config is not None:
                said = "--config names no file" if not file else "--config stands twice"
                raise UsageError(said, way_out="Name one that `lora3d` left beside a result")
            config = Path(file)
        else:
            rest.append(word)
    if quiet and verbose:
        raise UsageError("--quiet and --verbose at once", way_out="Choose one")
    return Conduct(quiet=quiet, verbose=verbose, config=config), rest


def say(line: str) -> None:
    """Says why a job was not done, on standard error."""
    # Who reads it may have gone.
    with contextlib.suppress(OSError):
        print(f"lora3d: {' '.join(line.split())}", file=sys.stderr)


def told(error: Exception) -> str | None:
    """What the user can do about an error; None for a defect of ours."""
    if isinstance(error, Lora3dError):
        return str(error)
    # Torch has its own.
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return "there is not enough memory. Take fewer photos or points, or another machine"
    if isinstance(error, OSError) and error.errno in _OF_THE_MACHINE:
        where = "" if error.filename is None else f"{error.filename}: "
        return f"{where}{error.strerror}. Choose a place that you may read and write, with room on its disk"
    return None


_OF_THE_MACHINE = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE),
    *(errno.ENAMETOOLONG, errno.ELOOP, errno.EISDIR, errno.ENOTDIR, errno.EEXIST),
)
"""Errors of files that have their cause where the files are."""


def reader_has_gone() -> bool:
    """Whether nobody reads what is printed (`| head`); then nothing more is tried."""
    # A program may be started with it closed, for all that the type says.
    if sys.stdout is None:
        return False
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        with Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        return True
    return False


@contextlib.contextmanager
def logging_from(level: int) -> Iterator[None]:
    """What our modules log from this level on goes to standard error."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    ours = logging.getLogger("lora3d_ns")
    before = ours.level
    ours.setLevel(level)
    try:
        yield
    finally:
        ours.setLevel(before)


@contextlib.contextmanager
def nothing_printed() -> Iterator[None]:
    """Within, nothing but errors is said: not by us, not by libraries, not by programs that we start."""
    silent = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "TQDM_DISABLE": "1"}
    before = {name: os.environ.get(name) for name in silent}
    sys.stdout.flush()
    kept = os.dup(1)
    with (
        Path(os.devnull).open("w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        no_progress_bars(),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        os.environ.update(silent)
        os.dup2(nowhere.fileno(), 1)
        try:
            yield
        finally:
            os.dup2(kept, 1)
            os.close(kept)
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value
