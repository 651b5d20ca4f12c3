"""A scene's folder -> report.html and report.json."""

import json as json_format
from pathlib import Path

from lora3d_ns.atomic_files import write_bytes_atomically
from lora3d_ns.report.assemble import report_of
from lora3d_ns.report.cloud import cloud_of
from lora3d_ns.report.facts import plain
from lora3d_ns.report.page import page_of
from lora3d_ns.report.pictures import maps_of
from lora3d_ns.scene_io.scenes import load_details, load_scene

HTML_FILE = "report.html"
JSON_FILE = "report.json"


def report_on_scene(folder: Path, *, html: Path | None = None, json: Path | None = None) -> tuple[Path, Path]:
    """Writes what became of some photos, for people and for programs.

    A scene that was saved without details gives a report of what there is, which says what is missing.

    Args:
        folder: Of the scene.
        html: Where to write the page, which needs no other file; `report.html` in the folder by default.
        json: Where to write the same facts; `report.json` in the folder by default.

    Returns:
        The two files.

    Raises:
        DamagedFileError: The scene or its details are damaged or of another format version.
        StorageError: There is no scene, or a file cannot be written.
    """
    scene, details = load_scene(folder), load_details(folder)
    report = report_of(scene, details, name=folder.resolve().name or "scene")
    maps = None
    if details is not None and report.aligned is not None:
        maps = maps_of(details, scene.cameras, thin_cutoff=report.aligned.thin_cutoff)
    page = page_of(report, maps, cloud_of(scene))
    facts = json_format.dumps(plain(report), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    written = (html or folder / HTML_FILE, json or folder / JSON_FILE)
    for path, content in zip(written, (page, facts), strict=True):
        # A photo's name may hold bytes that are no text.
        write_bytes_atomically(path, content.encode("utf-8", errors="replace"))
    return written
