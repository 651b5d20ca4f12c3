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
_HELP = re.compile(r"For full helptext, (?:run|see):? +(lora3d[\w -]*?) --help")
_VALUE = re.compile(r"^Error parsing (?P<option>.+?): .*?(?:\[(?P<several>.*?)\]|(?P<one>'[^']*'))")
_CHOICE = re.compile(
    r"^invalid choice (?P<given>.+) for argument '(?P<option>.+)'\. Expected one of \((?P<choices>.*)\)"
)
_SHORT_NAME = re.compile(r"(?<![\w-])-\w(?: [^\s,]+)?, (?=--)")
"""`-o PATH, ` before `--output PATH`."""


class UsageError(SettingsError):
    """What was typed is no command of ours."""


def parsed(
    job: Any,
    arguments: Sequence[str],
    prog: str,
    *,
    default: Any = None,
    description: str | None = None,
    explained_by: str | None = None,
) -> Any:
    """What was typed as a job; `--help` prints and exits with 0, as tyro does.

    Args:
        job: A dataclass, or a union of them for subcommands.
        arguments: What was typed.
        prog: Name of the program.
        default: A job whose values hold for what is not typed.
        description: For `--help`.
        explained_by: The command whose help to name where tyro names only that of the program.

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
    raise _usage_error(said.getvalue(), explained_by or prog)


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


def _usage_error(box: str, explained_by: str) -> UsageError:
    """Tyro's box in one line: what is wrong and what may have been meant, without explanations of options."""
    sections: list[list[str]] = [[]]
    # The heading is a line of its frame, or, where the frame's characters cannot be printed, one above a rule.
    lines = box.splitlines()[1:] if "│" in box else box.splitlines()[2:]
    for line in lines:
        text = line[2:].rstrip(" │")
        if _RULE.match(text.strip()):
            sections.append([])
        elif text.strip() and not text.startswith(("        ", "─")):
            sections[-1].append(_SHORT_NAME.sub("", text.strip()))
    said = [section for section in sections if section] or [["this cannot be read"]]
    by_heading = {section[0]: section[1:] for section in said}
    helps = _HELP.search(" ".join(" ".join(section) for section in said))
    if helps is not None and helps[1] != "lora3d":
        explained_by = helps[1]
    problem = _reworded(said[0], by_heading.get("Argument helptext:", []))
    meant = [entry.split(" ")[0] for entry in by_heading.get("Perhaps you meant:", []) if entry.startswith("-")]
    # What was typed rightly in the wrong place is no suggestion.
    meant = [option for option in dict.fromkeys(meant) if option not in re.split(r"[\s,]", problem)]
    if meant:
        problem += f"; perhaps you meant {' or '.join(meant[:3])}"
    others = [section for section in said[1:] if section[0].startswith(("Unrecognized options", "Available"))]
    problem = "; ".join([problem, *(_joined(section) for section in others)])
    return UsageError(problem.rstrip("."), way_out=f"`{explained_by} --help` explains it")


def _reworded(lines: Sequence[str], about_option: Sequence[str]) -> str:
    """What is wrong, in words about what was typed and not about tyro's types.

    Args:
        lines: What tyro says.
        about_option: Its explanation of the option concerned: name and type, then words.
    """
    value, choice = _VALUE.match(lines[0]), _CHOICE.match(lines[0])
    if value is not None:
        problem = f"{value['option']} cannot be {value['several'] or value['one']}"
        kind = about_option[0].partition(" ")[2] if about_option else ""
        return f"{problem}; expected {_readable(kind)}" if kind else problem
    if choice is not None:
        choices = choice["choices"].rstrip(",").replace("'", "")
        return f"{choice['option']} cannot be {choice['given']}; expected one of {choices}"
    return _joined(lines).replace("'. Expected", "'; expected")


def _readable(kind: str) -> str:
    """Tyro's name of a type: `{None}|INT` is `INT or None`."""
    choices = [choice.strip("{}") for choice in kind.split("|")]
    return " or ".join(sorted(choices, key=lambda choice: choice == "None"))


def _joined(lines: Sequence[str]) -> str:
    head, *rest = lines
    # What is said of orders of subcommands is true of programs that have several in one line.
    rest = [line.replace("(applied to", "(in") for line in rest if not line.startswith("Arguments are applied")]
    return f"{head} {', '.join(rest)}" if rest else head
