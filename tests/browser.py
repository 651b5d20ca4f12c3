"""A headless browser for tests of pages with WebGL, on machines without a screen and without a GPU.

    page = screenshot("http://localhost:7007", Path("page.png"), wait_s=20, until=lambda pixels: pixels.std() > 10)
    assert page.errors == ()

It drives the system's Chromium (`make system-packages`); no browser is downloaded. Requests to other hosts are
refused and listed.
"""

import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

if TYPE_CHECKING:
    from playwright.sync_api import ConsoleMessage, Page, Route

_PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_FLAGS = (
    # WebGL by SwiftShader, Chromium's rasterizer for the CPU.
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--ignore-gpu-blocklist",
    # Containers have a small /dev/shm.
    "--disable-dev-shm-usage",
)
_HARMLESS = ("GL Driver Message", "GPU stall due to ReadPixels")
"""SwiftShader's remarks on speed."""
VISER_SAYS_ALWAYS = ("computeBoundingSphere(): Computed radius is NaN",)
"""Errors that viser 0.2.7 logs on an empty scene too: its renderer of splats begins without any."""
_BETWEEN_LOOKS_S = 0.5


@dataclass(frozen=True, kw_only=True, eq=False)
class BrowserPage:
    """What a page looked like, and what it said.

    Attributes:
        pixels: (height, width, 3), uint8: the last screenshot.
        satisfied: Whether `until` found what it looked for.
        errors: Errors of the console, and exceptions nobody caught.
        warnings: Warnings of the console, without those on the speed of WebGL.
        refused: Addresses on other hosts that the page asked for.
        renderer: What WebGL says of its renderer; empty without WebGL 2.
        seconds: From the start of the browser to the last screenshot.
    """

    pixels: np.ndarray
    satisfied: bool
    errors: tuple[str, ...]
    warnings: tuple[str, ...]
    refused: tuple[str, ...]
    renderer: str
    seconds: float


def chromium() -> str | None:
    """The system's Chromium, or the one that LORA3D_CHROMIUM names."""
    named = os.environ.get("LORA3D_CHROMIUM")
    return named or next((found for found in map(shutil.which, _PROGRAMS) if found is not None), None)


def require_chromium() -> str:
    """The path of Chromium; skips the test where there is none."""
    pytest.importorskip("playwright.sync_api")
    program = chromium()
    if program is None:
        pytest.skip("no Chromium on this machine (make system-packages)")
    return program


def screenshot(
    url: str,
    path: Path | None = None,
    *,
    wait_s: float = 20.0,
    until: Callable[[np.ndarray], bool] | None = None,
    size: tuple[int, int] = (800, 600),
    act: Callable[["Page"], None] | None = None,
    expected: Sequence[str] = (),
) -> BrowserPage:
    """Opens a page, waits, and takes its picture.

    Args:
        url: Of the page.
        path: Where to write the picture as PNG.
        wait_s: How long to wait. With `until`, at most so long.
        until: Looks at the pixels twice a second, and ends the waiting by returning True.
        size: (width, height) of the window in pixels.
        expected: Messages of the console that contain one of these are left out.
        act: Called with playwright's page when it is loaded, for instance to click.
    """
    from playwright.sync_api import sync_playwright

    start = time.monotonic()
    errors: list[str] = []
    warnings: list[str] = []
    refused: list[str] = []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=require_chromium(), args=list(_FLAGS))
        try:
            page = browser.new_page(viewport={"width": size[0], "height": size[1]})
            page.on("pageerror", lambda error: errors.append(f"uncaught: {error}"))

            def note(message: "ConsoleMessage") -> None:
                if (
                    any(words in message.text for words in (*_HARMLESS, *expected))
                    or message.location["url"] in refused
                ):
                    return
                if message.type == "error":
                    errors.append(message.text)
                elif message.type == "warning":
                    warnings.append(message.text)

            page.on("console", note)
            host = urlsplit(url).hostname

            def pass_on(route: "Route") -> None:
                address = urlsplit(route.request.url)
                if address.scheme in ("http", "https") and address.hostname != host:
                    refused.append(route.request.url)
                    route.abort()
                else:
                    route.continue_()

            page.route("**/*", pass_on)
            page.goto(url, wait_until="domcontentloaded")
            renderer = page.evaluate(
                """() => {
                    const gl = document.createElement("canvas").getContext("webgl2");
                    if (gl === null) return "";
                    const names = gl.getExtension("WEBGL_debug_renderer_info");
                    return gl.getParameter(names === null ? gl.RENDERER : names.UNMASKED_RENDERER_WEBGL);
                }"""
            )
            if act is not None:
                act(page)
            deadline = time.monotonic() + wait_s
            while True:
                page.wait_for_timeout(1000 * (wait_s if until is None else _BETWEEN_LOOKS_S))
                picture = page.screenshot(timeout=60_000)
                pixels = np.asarray(Image.open(BytesIO(picture)).convert("RGB"))
                satisfied = until is not None and until(pixels)
                if satisfied or until is None or time.monotonic() > deadline:
                    break
        finally:
            browser.close()
    if path is not None:
        path.write_bytes(picture)
    return BrowserPage(
        pixels=pixels,
        satisfied=satisfied,
        errors=tuple(errors),
        warnings=tuple(warnings),
        refused=tuple(refused),
        renderer=renderer,
        seconds=time.monotonic() - start,
    )
