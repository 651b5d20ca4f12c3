"""What docs/ say: settings as the code has them, commands that exist, equations that can be set, links that lead
somewhere, figures that BENCHMARKS.md has too."""

import ast
import dataclasses
import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tyro

from lora3d_ns.cli import Job
from lora3d_ns.cli_parsing import UsageError, parsed
from lora3d_ns.plugin.method import lora3d_splat

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = {page.name: page.read_text() for page in sorted(DOCS.glob("*.md"))}

METHOD: Any = lora3d_splat.config
NERFSTUDIO = {
    type(config).__name__: config
    for config in (
        METHOD,
        METHOD.pipeline.datamanager,
        METHOD.pipeline.datamanager.dataparser,
        METHOD.pipeline.model,
        METHOD.pipeline.model.camera_optimizer,
    )
}
"""What `ns-train lora3d-splat` begins with."""


# --- settings -------------------------------------------------------------------------------------


def sections() -> dict[str, tuple[str, dict[str, str]]]:
    """By class: what stands in the first backquotes below its heading, and the default of every field in its table."""
    found = {}
    for part in re.split(r"^### ", PAGES["settings.md"], flags=re.MULTILINE)[1:]:
        name, _, body = part.partition("\n")
        place = re.search(r"^`([^`]+)` · ", body, flags=re.MULTILINE)
        assert place is not None, name
        rows = re.findall(r"^\| `(\w+)` \| (.*?) \| .*\w.* \|$", body, flags=re.MULTILINE)
        assert len(dict(rows)) == len(rows), f"{name}: a field twice"
        assert len(rows) == len(re.findall(r"^\| `", body, flags=re.MULTILINE)), f"{name}: a row without words"
        found[name] = (place[1], dict(rows))
    return found


def shown(value: Any) -> str:
    """A default as the tables write it."""
    if dataclasses.is_dataclass(value):
        return f"`{type(value).__name__}()`"
    if isinstance(value, tuple) and value and dataclasses.is_dataclass(value[0]):
        return f"{len(value)} of `{type(value[0]).__name__}`"
    return f"`{value.as_posix() if isinstance(value, Path) else value!r}`"


@pytest.mark.parametrize("name", [name for name in sections() if name not in NERFSTUDIO])
def test_tables_of_settings_are_the_code(name: str) -> None:
    module, rows = sections()[name]
    kind = getattr(importlib.import_module(module), name)
    made = kind()
    assert rows == {field.name: shown(getattr(made, field.name)) for field in dataclasses.fields(kind)}


@pytest.mark.parametrize("name", NERFSTUDIO)
def test_tables_of_nerfstudios_options_are_the_code(name: str) -> None:
    _, rows = sections()[name]
    config = NERFSTUDIO[name]
    own = {field for field in type(config).__annotations__ if field != "_target"}
    assert own <= set(rows), own - set(rows)
    assert rows == {field: shown(getattr(config, field)) for field in rows}


def test_every_setting_within_a_setting_has_a_table() -> None:
    """Whoever follows a default that is a dataclass finds its fields."""
    from lora3d_ns.alignment.matches import MatchSettings
    from lora3d_ns.reconstruct import ReconstructSettings

    inner = [MatchSettings()]
    seen = {"ReconstructSettings"}
    inner += [getattr(ReconstructSettings(), field.name) for field in dataclasses.fields(ReconstructSettings)]
    while inner:
        value = inner.pop()
        inner += list(value) if isinstance(value, tuple) else []
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            seen.add(type(value).__name__)
            inner += [getattr(value, field.name) for field in dataclasses.fields(value)]
    assert {"FineTuneSettings", "LoraSettings", "GuidedSettings"} <= seen
    assert seen <= set(sections()), seen - set(sections())


# --- links, files and figures -----------------------------------------------------------------------


def prose(text: str) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("name", PAGES)
def test_links_and_pictures_lead_somewhere(name: str) -> None:
    for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", prose(PAGES[name])):
        if not link.startswith("http"):
            assert (DOCS / link).exists(), f"{name} links to {link}"


@pytest.mark.parametrize("name", PAGES)
def test_sections_that_are_linked_exist(name: str) -> None:
    for link, anchor in re.findall(r"\]\(([^)#\s]*)#([^)]+)\)", prose(PAGES[name])):
        if link.startswith("http"):
            continue
        target = (DOCS / link).read_text() if link else PAGES[name]
        headings = re.findall(r"^#+ +(.+)$", prose(target), flags=re.MULTILINE)
        anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
        assert anchor in anchors, f"{name} links to #{anchor} of {link or name}"


def test_the_table_of_contents_has_every_page() -> None:
    index = PAGES["index.md"]
    missing = [name for name in PAGES if name != "index.md" and f"({name})" not in index]
    assert not missing


@pytest.mark.parametrize("name", PAGES)
def test_modules_that_are_named_exist(name: str) -> None:
    """`alignment/stereo.py`, and `calibrate.py` after it or after `alignment/` on the line: one in the same folder."""
    for line in PAGES[name].splitlines():
        folder = Path()
        for named in re.findall(r"`([\w/]+(?:\.py|/))`", line):
            below = Path(named.removeprefix("lora3d_ns/"))
            found = [place for place in (Path(), folder) if (ROOT / "lora3d_ns" / place / below).exists()]
            if named.endswith(".py"):
                assert found, f"{name} names {named}"
            if found:
                folder = (found[0] / below).parent if named.endswith(".py") else below


def test_figures_of_the_method_stand_in_the_benchmarks() -> None:
    measured = (ROOT / "BENCHMARKS.md").read_text()
    figures = re.findall(r"(?<![\w.])-?\d+\.\d{2,}(?![\w.]*\d)", re.sub(r"arXiv [\d.]+", "", PAGES["method.md"]))
    assert len(figures) > 15
    for figure in figures:
        assert re.search(rf"(?<![\d.]){re.escape(figure)}(?!\d)", measured), figure


# --- equations and programs -------------------------------------------------------------------------


def test_equations_can_be_set() -> None:
    """They are understood by a typesetter, and hold nothing that Markdown would change before KaTeX sees it."""
    from matplotlib.mathtext import MathTextParser

    equations = re.findall(r"^\$\$ (.+) \$\$$", PAGES["method.md"], flags=re.MULTILINE)
    assert len(equations) >= 10
    assert PAGES["method.md"].count("$") == 4 * len(equations)
    for equation in equations:
        assert not re.search(r"\\[^A-Za-z]", equation), equation
        MathTextParser("path").parse(f"${equation}$")


def python_blocks() -> Iterator[Any]:
    for name, text in PAGES.items():
        for number, block in enumerate(re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)):
            yield pytest.param(block, id=f"{name}: {number}")


@pytest.mark.parametrize("block", python_blocks())
def test_programs_import_what_exists(block: str) -> None:
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lora3d_ns"):
            module = importlib.import_module(node.module or "")
            assert all(hasattr(module, alias.name) for alias in node.names)


@pytest.mark.parametrize("name", ["conventions.md", "settings.md", "troubleshooting.md"])
def test_programs_that_need_no_photos_run(name: str) -> None:
    for block in re.findall(r"^```python\n(.*?)^```", PAGES[name], flags=re.MULTILINE | re.DOTALL):
        names: dict[str, Any] = {}
        exec(compile(block, name, "exec"), names)
        if name == "conventions.md":
            assert [round(float(value), 3) for value in names["pixel"]] == [360.0, 160.0]
            assert names["opencv_from_opengl"](names["camera_to_world"]).equal(names["T_world_camera"])
            assert names["K_from_integer_centres"](names["K_opencv"]).equal(names["K"])
            assert float(names["K_opencv"][0, 2]) == 319.5


# --- commands ---------------------------------------------------------------------------------------

STANDS_FOR = {"SCENE": "scene", "PHOTOS": "photos", "FOLDER": "folder", "FORMAT": "ply", "OUTPUT": "cloud.ply"}
"""Words of ours for what the reader puts there."""
REST = {
    "reconstruct": ["photos", "-o", "scene"],
    "calibrate": ["photos", "-o", "adapter"],
    "export": ["scene", "--to", "ply", "-o", "cloud.ply"],
    "view": ["scene"],
    "report": ["scene"],
}
"""What a command in the middle of a sentence may leave out."""


def lines_of(text: str) -> Iterator[tuple[str, bool]]:
    """Commands in blocks of shell, and with True those in backquotes within sentences."""
    for block in re.findall(r"^```(?:bash|sh|console)\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            yield line.removeprefix("$ "), False
    for words in re.findall(r"`([^`]+)`", prose(text)):
        yield " ".join(words.split()), True


def commands(*programs: str, within_sentences: bool = True) -> list[Any]:
    """Every line that calls one of the programs, as its words."""
    found = []
    for name, text in PAGES.items():
        for line, within in lines_of(text):
            if within and (not within_sentences or not line.startswith(programs)):
                continue
            words = shlex.split(line, comments=True)
            while words and re.match(r"[A-Z_]+=", words[0]):
                words = words[1:]
            # In a sentence `lora3d` is also a dataparser, and the name of a program alone is no line.
            if words and words[0] in programs and len(words) > 1:
                words = [STANDS_FOR.get(word, word) for word in words]
                found.append(pytest.param(words, within, id=f"{name}: {' '.join(words)}"))
    return found


@pytest.mark.parametrize(("words", "within"), commands("lora3d"))
def test_commands_are_understood(words: list[str], within: bool) -> None:
    words = words[1:]
    if words[0] in ("--help", "--tyro-print-completion"):
        return
    words = [word for word in words if word not in ("--quiet", "--verbose")]
    if "--config" in words:
        # It holds what is needed: the settings of some `reconstruct`, unless the line says of what.
        at = words.index("--config")
        words = words[:at] + words[at + 2 :]
        if words[:1] != ["reconstruct"]:
            words = ["reconstruct", "photos", *words]
        words = words if "-o" in words else [*words, "-o", "scene"]
    rest = REST.get(words[0], []) if within else []
    tries = [words, *([words[0], *rest[left_out:], *words[1:]] for left_out in range(2) if rest)]
    for number, attempt in enumerate(tries, start=1):
        try:
            assert parsed(Job, attempt, "lora3d") is not None
            return
        except UsageError:
            if number == len(tries):
                raise


@pytest.mark.parametrize(("words", "within"), commands("ns-train", within_sentences=False))
def test_nerfstudios_commands_are_understood(words: list[str], within: bool) -> None:
    """The other ns-* commands stand in nerfstudio.md alone, see `plugin/test_nerfstudio_page.py`."""
    from nerfstudio.configs.method_configs import AnnotatedBaseConfigUnion

    assert not within
    config: Any = tyro.cli(AnnotatedBaseConfigUnion, args=words[1:])
    assert config.method_name == words[1]


def test_there_are_commands_to_test() -> None:
    assert len(commands("lora3d")) >= 40
    assert len(commands("ns-train", within_sentences=False)) >= 20


def test_commands_that_this_file_does_not_parse_stand_where_another_does() -> None:
    for name, text in PAGES.items():
        for line, within in lines_of(text):
            if not within and re.match(r"ns-(?!train)", line):
                assert name == "nerfstudio.md", f"{name}: {line}"
