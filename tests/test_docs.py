"""What docs/ say: settings as the code has them, commands that exist, links that lead somewhere."""

import dataclasses
import importlib
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from lora3d_ns.cli import Job
from lora3d_ns.cli_parsing import parsed
from lora3d_ns.plugin.dataparser import Lora3dDataParserConfig
from lora3d_ns.plugin.model import Lora3dSplatModelConfig
from lora3d_ns.plugin.pipeline import Lora3dDataManagerConfig

DOCS = Path(__file__).parents[1] / "docs"
PAGES = sorted(DOCS.glob("*.md"))
NERFSTUDIO = {kind.__name__: kind for kind in (Lora3dDataParserConfig, Lora3dDataManagerConfig, Lora3dSplatModelConfig)}


def sections() -> dict[str, tuple[str, dict[str, str]]]:
    """By class: what stands in the first backquotes below its heading, and the default of every field in its table."""
    found = {}
    for part in re.split(r"^### ", (DOCS / "settings.md").read_text(), flags=re.MULTILINE)[1:]:
        name, _, body = part.partition("\n")
        place = re.search(r"^`([^`]+)` · ", body, flags=re.MULTILINE)
        assert place is not None, name
        rows = re.findall(r"^\| `(\w+)` \| (.*?) \| ", body, flags=re.MULTILINE)
        assert len(dict(rows)) == len(rows), f"{name}: a field twice"
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
    kind = NERFSTUDIO[name]
    own = {field for field in kind.__annotations__ if field != "_target"}
    assert own <= set(rows), own - set(rows)
    made = kind()
    assert rows == {field: shown(getattr(made, field)) for field in rows}


def test_every_setting_of_a_stage_has_a_table() -> None:
    from lora3d_ns.reconstruct import ReconstructSettings

    made = ReconstructSettings()
    stages = {type(getattr(made, field.name)).__name__ for field in dataclasses.fields(made)}
    assert {name for name in stages if name.endswith(("Settings", "Graph"))} <= set(sections())


# --- links and commands ---------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
        if not link.startswith("http"):
            assert (page.parent / link).exists(), f"{page.name} links to {link}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_sections_that_are_linked_exist(page: Path) -> None:
    for link, anchor in re.findall(r"\]\(([^)#\s]*)#([^)]+)\)", page.read_text()):
        if link.startswith("http"):
            continue
        target = page if not link else page.parent / link
        headings = re.findall(r"^#+ +(.+)$", target.read_text(), flags=re.MULTILINE)
        anchors = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
        assert anchor in anchors, f"{page.name} links to #{anchor} of {target.name}"


def commands(program: str) -> list[Any]:
    """Every line in a block of shell that calls the program."""
    found = []
    for page in PAGES:
        for block in re.findall(r"```(?:bash|sh|console)\n(.*?)```", page.read_text(), flags=re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line.removeprefix("$ "), comments=True)
                if words and words[0] == program:
                    found.append(pytest.param(words[1:], id=f"{page.name}: {' '.join(words)}"))
    return found


@pytest.mark.parametrize("words", commands("lora3d"))
def test_commands_are_understood(words: list[str]) -> None:
    if "--help" in words or words[0].startswith(("--tyro-print", "--config")):
        return
    words = [word for word in words if word not in ("--quiet", "--verbose")]
    if "--config" in words:
        at = words.index("--config")
        words = words[:at] + words[at + 2 :]
        words = words if len(words) > 2 else [*words, "photos", "-o", "scene"]
    assert parsed(Job, words, "lora3d") is not None


def test_there_are_commands_to_test() -> None:
    assert len(commands("lora3d")) >= 5


def test_the_table_of_contents_has_every_page() -> None:
    index = (DOCS / "index.md").read_text()
    missing = [page.name for page in PAGES if page.name != "index.md" and f"({page.name})" not in index]
    assert not missing
