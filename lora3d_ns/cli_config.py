"""Settings of a run as a YAML file that repeats it.

    command: reconstruct
    version: 0.1.0
    settings:
      photos: photos
      output: scene
      network: rooms

Names are those of the options without the dashes in front. Values are read by the same parser as the command line.
"""

import copy
import dataclasses
import logging
import os
import reprlib
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro
from tyro.conf import Positional

from lora3d_ns import __version__
from lora3d_ns.atomic_files import write_text_atomically
from lora3d_ns.cli_parsing import UsageError, parsed
from lora3d_ns.errors import SettingsError

logger = logging.getLogger(__name__)

SETTINGS_FILE = "settings.yaml"
"""In a folder that is only ours."""
_SUFFIX = f".{SETTINGS_FILE}"


def settings_beside(output: Path) -> Path:
    """The file beside a result that repeats how it was made: in a folder that is replaced it would get lost."""
    # `.` and `..` have a name, too.
    place = output if output.name not in ("", "..") else Path(os.path.abspath(output))  # noqa: PTH100
    return place.with_name(f"{place.name}{_SUFFIX}")


@dataclass(frozen=True, kw_only=True)
class _Option:
    """One option of a job: its name, value, whether it is positional, whether it must be given, and its type."""

    name: str
    value: object
    positional: bool
    required: bool
    hint: Any


def settings_text(command: str, job: object) -> str:
    """The file's text: everything that the run depended on, defaults included."""
    import yaml

    settings = {option.name: _plain(option.value) for option in _options(type(job), job)}
    content = {"command": command, "version": __version__, "settings": settings}
    return "# lora3d --config THIS_FILE does it again; what is given beside it goes first.\n" + yaml.safe_dump(
        content, sort_keys=False, allow_unicode=True
    )


def write_settings(command: str, job: Any) -> Path:
    """Keeps the settings of a job where it says, by default beside its output, see `settings_text`; returns the file.

    Raises:
        StorageError: The file cannot be written.
    """
    file = job.settings_file() if hasattr(job, "settings_file") else settings_beside(job.output)
    write_text_atomically(file, settings_text(command, job))
    return file


def read_settings(file: Path, jobs: Mapping[str, type]) -> tuple[str, Any]:
    """The command of a settings file, and the job with all it says; what it must be told and is not is `tyro.MISSING`.

    Args:
        file: As `settings_text` writes it; `settings` may leave out whatever has a default or is given elsewhere.
        jobs: The class of each command.

    Raises:
        SettingsError: There is no such file, it is damaged, or a name or value in it is wrong.
    """
    command, settings = _content(file, jobs)
    job = jobs[command]
    options = {option.name: option for option in _options(job, None)}
    for name in settings:
        if name not in options:
            raise _wrong(file, f"`lora3d {command}` has no setting {name!r}", f"Use some of {', '.join(options)}")
    required = [option for option in options.values() if option.required]
    missing = [option for option in required if option.name not in settings]

    def read(some: Mapping[str, object]) -> Any:
        # Something to parse where something must be given.
        given = {**{option.name: _example(option.hint) for option in required}, **some}
        return parsed(job, _tokens(options, given), "lora3d")

    try:
        made = read(settings)
    except UsageError:
        for name, value in settings.items():
            try:
                read({name: value})
            except UsageError as error:
                said = error.problem.removeprefix("--") if " cannot be " in error.problem else _cannot_be(name, value)
                raise _wrong(file, said, _explained(command)) from None
        raise
    for option in _options(job, made):
        if option.name in settings and not _is_said_by(option.value, settings[option.name]):
            raise _wrong(file, _cannot_be(option.name, settings[option.name]), _explained(command))
    job_read = copy.copy(made)
    for option in missing:
        # No value that its class would take: tyro asks for it.
        object.__setattr__(job_read, option.name, tyro.MISSING)
    return command, job_read


def _content(file: Path, jobs: Mapping[str, type]) -> tuple[str, dict[str, object]]:
    """The command that a file names, and its settings: single values and lists of them by name."""
    import yaml

    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        said = f"the file cannot be read ({error.strerror or error})"
        raise _wrong(file, said, "Name one that `lora3d` left beside a result") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark, said = getattr(error, "problem_mark", None), getattr(error, "problem", None) or str(error)
        place = "" if mark is None else f"line {mark.line + 1}: "
        said = f"this is no YAML of plain values ({place}{' '.join(said.split())})"
        raise _wrong(file, said, "Mend it, or take one of another run") from error
    if not isinstance(content, dict) or not isinstance(content.get("settings"), dict):
        raise _wrong(file, "it has no `settings`", "Take a file that `lora3d` left beside a result")
    command = content.get("command")
    if not isinstance(command, str) or command not in jobs:
        said = f"it holds settings of no command that reads them (command: {_shown(command)})"
        raise _wrong(file, said, f"Write `command: ` and one of {', '.join(jobs)}")
    settings = {str(name).replace("-", "_"): value for name, value in content["settings"].items()}
    for name, value in settings.items():
        if not all(isinstance(part, _SINGLE) for part in (value if isinstance(value, list) else [value])):
            said = f"{name} cannot be a {type(value).__name__} of this kind"
            raise _wrong(file, said, "Write a number, a text in quotes, or a list of them")
    version = content.get("version")
    if version not in (None, __version__):
        logger.warning("%s was written by version %s, this is %s: defaults may differ", file, version, __version__)
    return command, settings


_SINGLE = (str, int, float, type(None))


def _is_said_by(read: object, given: object) -> bool:
    """Whether a file means the value that was read from its words: a number is no text, and truth is no number."""
    if isinstance(read, Path):
        return isinstance(given, str) and given != ""
    if isinstance(read, tuple):
        return isinstance(given, list) and all(map(_is_said_by, read, given))
    if isinstance(read, float):
        # YAML takes 1e-3 for a text.
        return isinstance(given, (int, float, str)) and not isinstance(given, bool) and read == float(given)
    return type(read) is type(given) and read == given


def _cannot_be(name: str, value: object) -> str:
    return f"{name} cannot be {_shown(value)}"


def _shown(value: object) -> str:
    return reprlib.repr(value)


def _explained(command: str) -> str:
    return f"`lora3d {command} --help` says what it can be"


def _wrong(file: Path, problem: str, way_out: str) -> SettingsError:
    return SettingsError(problem, way_out=way_out, path=file)


def _options(job: type, instance: object | None) -> Iterator[_Option]:
    """Every option of a job, those of its groups included."""
    hints = typing.get_type_hints(job, include_extras=True)
    for field in dataclasses.fields(job):
        hint, markers = _bare(hints[field.name])
        value = None if instance is None else getattr(instance, field.name)
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            yield from _options(hint, value)
            continue
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        yield _Option(name=field.name, value=value, positional=Positional in markers, required=required, hint=hint)


def _bare(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """A type without what `Annotated` says of it, and that."""
    if typing.get_origin(hint) is typing.Annotated:
        bare, *markers = typing.get_args(hint)
        return bare, tuple(markers)
    return hint, ()


def _plain(value: object) -> object:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return value


def _tokens(options: Mapping[str, _Option], settings: Mapping[str, object]) -> list[str]:
    """The settings as they would be typed."""
    named: list[str] = []
    places: list[str] = []
    for name, value in settings.items():
        option = f"--{name.replace('_', '-')}"
        if options[name].positional:
            places.append(str(value))
        elif isinstance(value, bool):
            named.append(option if value else f"--no-{option[2:]}")
        elif isinstance(value, list):
            named += [option, *(str(part) for part in value)]
        else:
            # In one word, since it may begin with a dash.
            named.append(f"{option}={value}")
    return [*places, *named]


def _example(hint: Any) -> object:
    """Some value of a required option's type."""
    if typing.get_origin(hint) is Literal:
        return typing.get_args(hint)[0]
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return _example(typing.get_args(hint)[0])
    return 1 if hint in (int, float) else "example"
