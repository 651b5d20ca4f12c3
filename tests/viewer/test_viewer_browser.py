"""The viewer in a real browser: every control is tried, nothing goes wrong on the page, nothing is loaded from afar.

The pictures are left in `outputs/viewer/`.
"""

import dataclasses
import math
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from browser import VISER_SAYS_ALWAYS, BrowserPage, require_chromium, screenshot
from PIL import Image
from report.report_samples import scene_and_details
from viewer.test_viewer_server import free_port

from lora3d_ns.scene_io.scenes import load_details, load_scene, save_scene
from lora3d_ns.viewer.colours import FIRST_OF_PAIR, SECOND_OF_PAIR
from lora3d_ns.viewer.live import LiveViewer
from lora3d_ns.viewer.state import ViewState

if TYPE_CHECKING:
    from playwright.sync_api import Page

ARTEFACTS = Path(__file__).parents[2] / "outputs" / "viewer"
HOSTILE = ("{window.hacked=1}.jpg", "<img src=x onerror=window.hacked=2>.jpg", "![a](https://example.invalid/b.png)")
PATIENCE_MS = 60_000


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Visit:
    """What was seen.

    Attributes:
        page: At the end.
        notes: By name, on the way.
        states: Of the viewer, on the way.
        folder: Of the scene.
        length: Between the two points, before the scale was set.
    """

    page: BrowserPage
    notes: dict[str, Any]
    states: dict[str, ViewState]
    folder: Path
    length: float


def near(pixels: np.ndarray, colour: tuple[int, int, int]) -> int:
    """How many pixels are of about this colour."""
    return int((np.abs(pixels.astype(int) - np.array(colour)) < 45).all(axis=2).sum())


def red(pixels: np.ndarray) -> int:
    """How many pixels are clearly red, as nothing is that is coloured by weight."""
    r, g, b = pixels.astype(int).transpose(2, 0, 1)
    return int(((r > 150) & (r - g > 80) & (r - b > 80)).sum())


@pytest.fixture(name="visit", scope="module")
def _visit(tmp_path_factory: pytest.TempPathFactory) -> Visit:
    """One visit, in which all is tried, of three photos with hostile names and one bad pair."""
    require_chromium()
    folder = tmp_path_factory.mktemp("viewer") / "room"
    scene, details = scene_and_details(3, names=HOSTILE, shapes=((48, 64), (64, 48)))
    residuals = details.diagnosis.edge_residuals.clone()
    residuals[[details.edges.index((0, 1)), details.edges.index((1, 0))]] = 0.9
    diagnosis = dataclasses.replace(details.diagnosis, edge_residuals=residuals, warnings=(f"look at {HOSTILE[0]}",))
    save_scene(scene, folder, details=dataclasses.replace(details, diagnosis=diagnosis))
    ARTEFACTS.mkdir(parents=True, exist_ok=True)

    port = free_port()
    notes: dict[str, Any] = {}
    states: dict[str, ViewState] = {}
    viewer = LiveViewer(
        folder, load_scene(folder), load_details(folder), host="127.0.0.1", port=port, most_points=100_000
    )
    running = threading.Thread(target=viewer.run, daemon=True)
    running.start()

    def act(page: "Page") -> None:
        page.set_default_timeout(PATIENCE_MS)
        explore(page, viewer, notes, states)

    try:
        page = screenshot(
            f"http://localhost:{port}",
            ARTEFACTS / "viewer.png",
            wait_s=0.5,
            size=(860, 640),
            act=act,
            expected=VISER_SAYS_ALWAYS,
        )
    finally:
        viewer.close()
        running.join(10.0)
    notes["ended"] = not running.is_alive()
    return Visit(page=page, notes=notes, states=states, folder=folder, length=notes["length"])


def explore(page: "Page", viewer: LiveViewer, notes: dict[str, Any], states: dict[str, ViewState]) -> None:
    def look(name: str, *, enough: Callable[[np.ndarray], bool]) -> None:
        """Waits for a picture that is as it shall be, or for the last one."""
        deadline = time.monotonic() + PATIENCE_MS / 1000
        while True:
            page.screenshot(path=ARTEFACTS / f"{name}.png", timeout=PATIENCE_MS)
            with Image.open(ARTEFACTS / f"{name}.png") as picture:
                pixels = np.asarray(picture.convert("RGB"))[:, : int(canvas()["width"])]
            if enough(pixels) or time.monotonic() > deadline:
                notes[name] = pixels
                states[name] = viewer.state
                return

    def canvas() -> Any:
        return page.locator("canvas[data-engine]").bounding_box()

    def choose(label: str, option: str) -> None:
        page.get_by_label(label, exact=True).click()
        page.get_by_role("option", name=option).first.click()

    def click_on(place: torch.Tensor) -> None:
        x, y = on_screen(viewer, place, canvas())
        page.mouse.click(x, y)

    page.get_by_text("3 photos").wait_for()
    page.wait_for_function("document.querySelectorAll('input').length > 10")
    look("start", enough=lambda pixels: pixels.std() > 15)
    notes["labels"] = page.locator("label").all_text_contents()
    notes["text"] = page.locator("#root").inner_text()
    notes["share"] = page.locator("button:has(svg.tabler-icon-share):visible").count()

    choose("Colour", "Edge")
    look("edge", enough=lambda pixels: near(pixels, FIRST_OF_PAIR) > 300 and near(pixels, SECOND_OF_PAIR) > 300)
    choose("Colour", "Weight")
    page.get_by_label("Show photos").uncheck()
    look("bad_pair", enough=lambda pixels: red(pixels) > 20)
    page.get_by_label("Show pairs").uncheck()
    look("weight", enough=lambda pixels: red(pixels) == 0)
    # The weights rise from left to right: half of them are above one half.
    slider = page.locator("input[inputmode=numeric], input[inputmode=decimal]").first
    slider.fill("0.5")
    slider.press("Enter")
    notes["half"] = count_of(page, lambda: viewer.state.least_weight == 0.5)
    slider.fill("0")
    slider.press("Enter")
    notes["all"] = count_of(page, lambda: viewer.state.least_weight == 0.0)
    page.get_by_label("Before learning").check()
    notes["before"] = count_of(page, lambda: viewer.state.before)
    page.get_by_label("Before learning").uncheck()
    until(page, lambda: not viewer.state.before)
    choose("Colour", "Photo")
    page.get_by_label("Show photos").check()
    page.get_by_label("Show pairs").check()

    # A click into the middle of a photo, which hangs a little before the eye of its camera.
    T = viewer.viewed.T_shown_camera[1]
    until(page, lambda: viewer.state.photos and viewer.state.pairs)
    size = 0.22 if len(viewer.viewed.T_shown_camera) < 2 else 0.05
    page.wait_for_timeout(800)
    click_on(T[:3, 3] + size * T[:3, 2])
    until(page, lambda: viewer.state.photo is not None)
    page.wait_for_timeout(800)
    look("photo", enough=lambda pixels: pixels.std() > 15)
    notes["eye"] = torch.from_numpy(np.array(client_of(viewer).camera.position)) - T[:3, 3]
    notes["facts"] = page.locator("#root").inner_text()
    page.get_by_role("button", name="Back to the start").click()
    until(page, lambda: viewer.state.photo is None)
    choose("Fly to", "3")
    until(page, lambda: viewer.state.photo == 2)
    page.get_by_role("button", name="Back to the start").click()
    until(page, lambda: viewer.state.photo is None)
    page.wait_for_timeout(800)

    page.get_by_role("button", name="Pick two points").click()
    page.get_by_text("Click on the first point").wait_for()
    shown = viewer.viewed.shown.apply(viewer.viewed.cloud.points.double())
    box = canvas()
    inside = [
        place
        for place in shown[::97]
        if 0.1 * box["width"] < on_screen(viewer, place, box)[0] < 0.9 * box["width"]
        and 0.1 * box["height"] < on_screen(viewer, place, box)[1] < 0.9 * box["height"]
    ]
    left = min(inside, key=lambda place: on_screen(viewer, place, box)[0])
    right = max(inside, key=lambda place: on_screen(viewer, place, box)[0])
    click_on(left)
    page.get_by_text("Click on the second point").wait_for()
    click_on(right)
    length = page.get_by_label("True length")
    length.wait_for()
    states["picked"] = viewer.state
    notes["off_px"] = [
        math.dist(on_screen(viewer, clicked, box), on_screen(viewer, torch.tensor(picked).double(), box))
        for clicked, picked in zip((left, right), viewer.state.picks, strict=True)
    ]
    notes["length"] = math.dist(*viewer.state.picks) / float(viewer.viewed.shown.scale)
    length.fill("2.5")
    length.press("Enter")
    page.wait_for_timeout(300)
    page.get_by_role("button", name="Set the scale").click()
    page.get_by_text("The scale is set").wait_for()
    page.get_by_text("scale known").wait_for()
    notes["measured"] = page.locator("#root").inner_text()

    with page.expect_download() as download:
        page.get_by_role("button", name="Screenshot").click()
    download.value.save_as(ARTEFACTS / "downloaded.png")
    notes["file"] = download.value.suggested_filename
    notes["hacked"] = page.evaluate("window.hacked === undefined ? null : window.hacked")


def until(page: "Page", done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_MS / 1000
    while not done():
        assert time.monotonic() < deadline, "nothing happened"
        page.wait_for_timeout(100)


def count_of(page: "Page", done: Callable[[], bool]) -> str:
    """What is said of the number of points, once the viewer has done what was asked for."""
    until(page, done)
    page.wait_for_timeout(400)
    return page.get_by_text(re.compile(r"^[\d\s]+ of [\d\s]+ points")).inner_text()


def client_of(viewer: LiveViewer) -> Any:
    return next(iter(viewer._server.get_clients().values()))


def on_screen(viewer: LiveViewer, place: torch.Tensor, box: Any) -> tuple[float, float]:
    """The pixel of the page at which a point appears."""
    camera = client_of(viewer).camera
    w, x, y, z = camera.wxyz
    R = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )
    right, down, ahead = R.T @ (place.numpy() - camera.position)
    focal = box["height"] / 2 / math.tan(camera.fov / 2)
    return (
        box["x"] + box["width"] / 2 + focal * right / ahead,
        box["y"] + box["height"] / 2 + focal * down / ahead,
    )


def test_nothing_goes_wrong_and_nothing_is_loaded_from_afar(visit: Visit) -> None:
    assert visit.page.errors == ()
    assert visit.page.refused == ()
    assert visit.page.renderer, "no WebGL 2"
    assert visit.notes["hacked"] is None
    assert visit.notes["share"] == 0
    assert visit.notes["ended"]


def test_all_controls_are_there(visit: Visit) -> None:
    assert {
        "Colour",
        "Least weight",
        "Point size",
        "Before learning",
        "Fly to",
        "Show photos",
        "Names",
        "Size",
        "Show pairs",
        "Only bad ones",
    } <= set(visit.notes["labels"])
    for words in (
        "room",
        "3 photos",
        "1 bad",
        "scale arbitrary",
        "Bad: 1-2 (of 3).",
        "Warnings (1)",
        "Pick two points",
    ):
        assert words in visit.notes["text"]


def test_the_scene_is_seen_with_its_bad_pair_in_red(visit: Visit) -> None:
    # There is much to see, and not only dark ground.
    assert (visit.notes["start"].max(axis=2) > 80).mean() > 0.1
    assert near(visit.notes["edge"], FIRST_OF_PAIR) > near(visit.notes["start"], FIRST_OF_PAIR) + 300
    assert near(visit.notes["edge"], SECOND_OF_PAIR) > near(visit.notes["start"], SECOND_OF_PAIR) + 300
    assert red(visit.notes["bad_pair"]) > 20
    assert red(visit.notes["weight"]) == 0, "pairs are switched off"


def test_the_threshold_hides_points_and_before_shows_others(visit: Visit) -> None:
    total = 3 * 48 * 64
    spaced = f"{total:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")
    assert visit.notes["all"] == f"{spaced} of {spaced} points"
    half = int(visit.notes["half"].split(" of ")[0].replace("\N{NARROW NO-BREAK SPACE}", ""))
    assert half == pytest.approx(total / 2, rel=0.05)
    assert visit.notes["before"].endswith("before learning")


def test_a_click_on_a_photo_leads_to_its_place(visit: Visit) -> None:
    assert visit.states["photo"].photo == 1
    assert float(visit.notes["eye"].norm()) < 1e-3
    assert HOSTILE[1] in visit.notes["facts"]
    # viser's yellow highlight does not stay at the photo that the mouse was over.
    assert near(visit.page.pixels, (232, 224, 104)) < 500


def test_two_clicks_measure_and_set_the_scale_on_disk(visit: Visit) -> None:
    # Something nearer may lie before the point that was aimed at, but within half a degree.
    assert max(visit.notes["off_px"]) < 8.0
    assert len(visit.states["picked"].picks) == 2
    assert "2.50 in the scene's unit" in visit.notes["measured"]
    scene, details = load_scene(visit.folder), load_details(visit.folder)
    original, _ = scene_and_details(3)
    assert scene.provenance["scale"] == {
        "known": True,
        "by": "two points picked in the viewer",
        "length": 2.5,
        "length_before": pytest.approx(visit.length),
    }
    assert torch.allclose(scene.points, original.points * 2.5 / visit.length, rtol=1e-5)
    assert details is not None
    assert details.diagnosis.scale_known


def test_a_screenshot_is_saved(visit: Visit) -> None:
    assert visit.notes["file"] == "room.png"
    with Image.open(ARTEFACTS / "downloaded.png") as picture:
        pixels = np.asarray(picture)
        assert picture.mode == "RGB"
    assert pixels.shape[0] == 1080
    assert pixels.std() > 15
    # Where nothing is, it is as dark as the viewer.
    assert pixels[:5, :5].max() < 40
