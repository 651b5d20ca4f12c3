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

SETTINGS_FILE = "settings.yaml"
"""In a folder that is only ours."""
_SUFFIX = f".{SETTINGS_FILE}"


def settings_beside(output: Path) -> Path:
    """The file beside a result that repeats how it was made."""
    place = output.absolute()
    return output.parent / f"{place.name}{_SUFFIX}"


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


def write_settings(command: str, job: Any) -> None:
    """Keeps the settings of a job that says where, see `settings_text`.

    Raises:
        StorageError: The file cannot be written.
    """
    if hasattr(job, "settings_file"):
        write_text_atomically(job.settings_file(), settings_text(command, job))


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
    missing = [option for option in options.values() if option.required and option.name not in settings]
    # Something to parse in their place.
    given = {**settings, **{option.name: _example(option.hint) for option in missing}}
    try:
        made = parsed(job, _tokens(options, given), "lora3d")
    except UsageError:
        for name in settings:
            alone = {other.name: _example(other.hint) for other in options.values() if other.required}
            try:
                parsed(job, _tokens(options, {**alone, name: settings[name]}), "lora3d")
            except UsageError as error:
                said = f"{name} cannot be {settings[name]!r} ({error.problem})"
                raise _wrong(file, said, f"`lora3d {command} --help` says what it can be") from None
        raise
    job_read = copy.copy(made)
    for option in missing:
        # No value that its class would take: tyro asks for it.
        object.__setattr__(job_read, option.name, tyro.MISSING)
    return command, job_read


def _content(file: Path, jobs: Mapping[str, type]) -> tuple[str, dict[str, object]]:
    import yaml

    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        said = f"the file cannot be read ({error.strerror or error})"
        raise _wrong(file, said, "Name one that `lora3d` left beside a result") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        said = f"this is no YAML ({' '.join(str(error).split())})"
        raise _wrong(file, said, "Mend it, or take one of another run") from error
    if not isinstance(content, dict) or not isinstance(content.get("settings"), dict):
        raise _wrong(file, "it has no `settings`", "Take a file that `lora3d` left beside a result")
    command = str(content.get("command"))
    if command not in jobs:
        raise _wrong(file, f"no settings of a command {command!r} are read", f"Use one of {', '.join(jobs)}")
    return command, {str(name).replace("-", "_"): value for name, value in content["settings"].items()}


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
            named += [option, str(value)]
    return [*places, *named]


def _example(hint: Any) -> object:
    """Some value of a required option's type."""
    if typing.get_origin(hint) is Literal:
        return typing.get_args(hint)[0]
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return _example(typing.get_args(hint)[0])
    return 1 if hint in (int, float) else "example"
