"""The page in a real browser: no error, no request, nothing that runs, readable on a desk, on a phone and on paper.

The pictures are left in `outputs/report/`.
"""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from browser import require_chromium, screenshot
from report.report_samples import HOSTILE, scene_and_details

from lora3d_ns.report.write import report_on_scene
from lora3d_ns.scene_io.scenes import save_scene

if TYPE_CHECKING:
    from playwright.sync_api import Page

ARTEFACTS = Path(__file__).parents[2] / "outputs" / "report"


@pytest.fixture(name="page_file", scope="module")
def _page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of three photos with hostile names, all of whose sections are there."""
    require_chromium()
    folder = tmp_path_factory.mktemp("report") / "scene"
    scene, details = scene_and_details(3, names=HOSTILE, shapes=((96, 128), (128, 96)))
    warning = f"the network is hardly sure of anything in {HOSTILE[0]}"
    details = dataclasses.replace(
        details,
        dropped={(0, 1): "far off"},
        diagnosis=dataclasses.replace(
            details.diagnosis, warnings=(warning,), uncut_views=(0,), near_static=True, baseline=0.01
        ),
    )
    save_scene(scene, folder, details=details)
    ARTEFACTS.mkdir(parents=True, exist_ok=True)
    return report_on_scene(folder)[0]


def look(page_file: Path, name: str, size: tuple[int, int], *, media: dict[str, Any] | None = None) -> dict[str, Any]:
    """Opens the page, takes its picture, and asks it what it holds."""
    asked: dict[str, Any] = {}

    def ask(page: "Page") -> None:
        if media:
            page.emulate_media(**media)
        asked.update(
            page.evaluate(
                """() => ({
                    hacked: window.hacked === undefined ? null : window.hacked,
                    title: document.title,
                    names: [...document.querySelectorAll('article h3')].map(e => e.textContent),
                    warnings: [...document.querySelectorAll('.warnings > li')].map(e => e.textContent),
                    advice: [...document.querySelectorAll('.advice li')].map(e => e.textContent),
                    sections: [...document.querySelectorAll('section')].map(e => e.id),
                    pictures: [...document.images].map(e => e.naturalWidth),
                    charts: [...document.querySelectorAll('svg.chart')].map(e => e.getBoundingClientRect().width),
                    scripts: document.scripts.length,
                    width: document.documentElement.scrollWidth,
                    window: window.innerWidth,
                    ground: getComputedStyle(document.body).backgroundColor,
                    unfolded: [...document.querySelectorAll('details td')].filter(e => e.checkVisibility()).length,
                    cells: document.querySelectorAll('details td').length,
                    small: Math.min(...[...document.querySelectorAll('p, li, td')].map(
                        e => parseFloat(getComputedStyle(e).fontSize))),
                })"""
            )
        )

    shown = screenshot(page_file.as_uri(), ARTEFACTS / f"{name}.png", wait_s=0.2, size=size, act=ask)
    assert shown.errors == ()
    assert shown.warnings == ()
    assert shown.refused == ()
    # Not one colour: there is something to see, everywhere on the way down.
    assert all(part.std() > 3.0 for part in np.array_split(shown.pixels, 4))
    assert asked["hacked"] is None
    assert asked["scripts"] == 0
    assert asked["width"] <= asked["window"], "the page is wider than the window"
    return asked


def test_on_a_desk(page_file: Path) -> None:
    asked = look(page_file, "desktop", (1200, 2600))
    assert asked["sections"] == ["warnings", "next", "learning", "photos", "pairs", "residuals", "focals", "about"]
    assert asked["names"] == list(HOSTILE)
    assert HOSTILE[0] in asked["warnings"][0]
    assert "Look at those photos" in asked["warnings"][0]
    assert asked["advice"][0].startswith("Needed: Step aside")
    assert len(asked["pictures"]) == 1 + 3 + 5 * 3
    assert min(asked["pictures"]) > 0
    assert len(asked["charts"]) == 6
    assert min(asked["charts"]) > 400
    assert asked["ground"] == "rgb(244, 246, 248)"
    assert asked["unfolded"] == 0
    assert asked["title"] == "scene: 3 photos, all connected, and the cameras hardly moved."


def test_on_a_phone(page_file: Path) -> None:
    asked = look(page_file, "phone", (360, 2600))
    assert asked["window"] == 360
    assert min(asked["charts"]) > 250
    assert asked["small"] >= 12.0


def test_in_the_dark(page_file: Path) -> None:
    asked = look(page_file, "dark", (1200, 2600), media={"color_scheme": "dark"})
    assert asked["ground"] == "rgb(13, 18, 25)"


def test_on_paper_everything_is_unfolded(page_file: Path) -> None:
    asked = look(page_file, "paper", (800, 2600), media={"media": "print"})
    assert asked["ground"] == "rgb(255, 255, 255)"
    assert asked["unfolded"] == asked["cells"] > 10
