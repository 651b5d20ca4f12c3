"""The headless browser: it renders what nerfstudio's viewer is made of, and notices what goes wrong on a page."""

import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from browser import VISER_SAYS_ALWAYS, require_chromium, screenshot
from PIL import Image

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


def free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return opened.getsockname()[1]


def of_colour(pixels: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """(n, 2): row and column of the pixels of about this colour."""
    return np.argwhere((np.abs(pixels.astype(int) - np.array(colour)) < 40).all(axis=2))


@pytest.fixture
def viser_url() -> Iterator[str]:
    """Three balls of points, red, green and blue from left to right, before a grey picture: what nerfstudio shows."""
    require_chromium()
    import viser

    port = free_port()
    server = viser.ViserServer(host="127.0.0.1", port=port, verbose=False)
    random = np.random.default_rng(0)
    for place, (name, colour) in enumerate(COLOURS.items()):
        points = random.normal(size=(800, 3)) * 0.1 + np.array([0.8 * (place - 1) - 0.8, 0.0, 0.0])
        server.scene.add_point_cloud(name, points=points, colors=colour, point_size=0.04)
    server.scene.set_background_image(np.full((60, 80, 3), 128, dtype=np.uint8))

    def look(client: viser.ClientHandle) -> None:
        client.camera.up_direction = (0.0, 0.0, 1.0)
        client.camera.position = (0.0, -4.0, 0.0)
        client.camera.look_at = (0.0, 0.0, 0.0)

    server.on_client_connect(look)
    yield f"http://127.0.0.1:{port}"
    server.stop()


def test_a_scene_of_viser_is_rendered_without_a_gpu(viser_url: str, tmp_path: Path) -> None:
    def complete(pixels: np.ndarray) -> bool:
        return all(len(of_colour(pixels, colour)) > 500 for colour in COLOURS.values())

    page = screenshot(viser_url, tmp_path / "page.png", wait_s=30.0, until=complete, expected=VISER_SAYS_ALWAYS)
    assert page.renderer, "no WebGL 2"
    assert page.satisfied
    assert page.errors == ()
    # The median: viser draws small red, green and blue axes in a corner.
    rows, columns = np.array([np.median(of_colour(page.pixels, colour), axis=0) for colour in COLOURS.values()]).T
    # The horizon is the middle row. Vertically 75 degrees are seen: 0.8 at a distance of 4 are 78 pixels.
    height, width = page.pixels.shape[:2]
    step = 0.8 / 4.0 * (height / 2) / np.tan(np.deg2rad(75.0) / 2)
    assert np.abs(rows - height / 2).max() < 5.0
    assert np.abs(columns - (width / 2 + step * np.array([-2.0, -1.0, 0.0]))).max() < 5.0
    assert len(of_colour(page.pixels, (128, 128, 128))) > 100_000
    with Image.open(tmp_path / "page.png") as written:
        assert np.array_equal(np.asarray(written.convert("RGB")), page.pixels)


def test_errors_and_requests_to_other_hosts_are_noticed() -> None:
    require_chromium()
    html = (
        "<body style='background: rgb(10,200,30)'><script src='https://example.invalid/spy.js'></script>"
        "<script>console.error('first'); console.warn('careful'); "
        "setTimeout(() => { throw Error('second') }, 0)</script>"
    )
    page = screenshot(f"data:text/html,{html}", wait_s=1.0, size=(64, 48))
    assert any("first" in error for error in page.errors)
    assert any("uncaught" in error and "second" in error for error in page.errors)
    assert len(page.errors) == 2
    assert page.warnings == ("careful",)
    assert page.refused == ("https://example.invalid/spy.js",)
    assert page.pixels.shape == (48, 64, 3)
    assert (page.pixels == (10, 200, 30)).all()
    assert not page.satisfied


def test_waiting_ends_when_nothing_comes() -> None:
    require_chromium()
    looks: list[int] = []

    def never(pixels: np.ndarray) -> bool:
        looks.append(pixels.shape[1])
        return False

    page = screenshot("data:text/html,<p>empty", wait_s=1.2, until=never, size=(64, 48))
    assert not page.satisfied
    assert len(looks) >= 2
    assert page.errors == ()
