"""The command line read by tyro, and what is wrong with it said in one line."""

import contextlib
import io
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

import tyro

from lora3d_ns.errors import SettingsError

_RULE = re.compile(r"^[─-]{8,}$")
_HELP = re.compile(r"run:? +(lora3d[\w -]*--help)|see (lora3d[\w -]*--help)")


class UsageError(SettingsError):
    """What was typed is no command of ours."""


def parsed(
    job: Any, arguments: Sequence[str], prog: str, *, default: Any = None, description: str | None = None
) -> Any:
    """What was typed as a job; `--help` prints and exits with 0, as tyro does.

    Args:
        job: A dataclass, or a union of them for subcommands.
        arguments: What was typed.
        prog: Name of the program.
        default: A job whose values hold for what is not typed.
        description: For `--help`.

    Raises:
        UsageError: It cannot be read.
    """
    options: dict[str, Any] = {"prog": prog, "args": [*arguments], "description": description}
    if default is not None:
        options["default"] = default
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(job, **options)
    except SystemExit as stopped:
        if stopped.code in (0, None):
            raise
    # Once more, for a message without line breaks.
    said = io.StringIO()
    with _wide(), contextlib.redirect_stderr(said), contextlib.suppress(SystemExit):
        tyro.cli(job, **options)
    raise _usage_error(said.getvalue(), prog)


@contextlib.contextmanager
def _wide() -> Iterator[None]:
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "2000"
    try:
        yield
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before


def _usage_error(box: str, prog: str) -> UsageError:
    """Tyro's box in one line: what is wrong and what may have been meant, without explanations of options."""
    sections: list[list[str]] = [[]]
    # The heading is a line of its frame, or, where the frame's characters cannot be printed, one above a rule.
    lines = box.splitlines()[1:] if "│" in box else box.splitlines()[2:]
    for line in lines:
        text = line[2:].rstrip(" │")
        if _RULE.match(text.strip()):
            sections.append([])
        elif text.strip() and not text.startswith(("        ", "─")):
            sections[-1].append(text.strip())
    said = [section for section in sections if section]
    helps = _HELP.search(" ".join(" ".join(section) for section in said))
    about = f"`{(helps[1] or helps[2]).strip()}`" if helps else f"`{prog} --help`"
    problem = _joined(said[0]) if said else "this cannot be read"
    meant = next((section[1:] for section in said if section[0].startswith("Perhaps you meant")), [])
    if meant:
        problem += f"; perhaps you meant {' or '.join(entry.split(' ')[0] for entry in meant[:3] if entry[0] == '-')}"
    others = [section for section in said[1:] if section[0].startswith(("Unrecognized options", "Available"))]
    problem = "; ".join([problem, *(_joined(section) for section in others)])
    return UsageError(problem.rstrip("."), way_out=f"{about} explains it")


def _joined(lines: Sequence[str]) -> str:
    head, *rest = lines
    # What parsers of the single types had to say is about types, not about what was typed.
    rest = [line for line in rest if not line.startswith(("- <class", "Got errors"))]
    return f"{head} {', '.join(rest)}" if rest else head
