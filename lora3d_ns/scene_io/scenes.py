"""A finished scene on disk: `scene.safetensors` for programs, `cameras.json` beside it for people.

Optional are `details.safetensors`, for viewer and report, and `scene.png`.
"""

import json
from collections.abc import Callable
from pathlib import Path

from lora3d_ns.atomic_files import replace_folder, settle_folder
from lora3d_ns.errors import DamagedFileError, InvalidDataError, StorageError
from lora3d_ns.scene_io.details import DETAILS_FORMAT_VERSION, SceneDetails
from lora3d_ns.scene_io.structures import read_result, write_result
from lora3d_ns.types import Scene

SCENE_FORMAT_VERSION = 1
"""What `Scene.format_version` must be: the meaning of a scene's fields, apart from how files hold them."""

SCENE_FILE = "scene.safetensors"
DETAILS_FILE = "details.safetensors"
CAMERAS_FILE = "cameras.json"
PICTURE_FILE = "scene.png"
REPORT_FILES = ("report.html", "report.json")
"""What `lora3d_ns.report` leaves there by default; a new scene makes them outdated."""
_FILES = {SCENE_FILE, DETAILS_FILE, CAMERAS_FILE, PICTURE_FILE, *REPORT_FILES}

_CONVENTION = (
    "T_world_camera (4x4) maps camera coordinates to world coordinates; the camera looks along +z, x points right and "
    "y down (OpenCV). K (3x3) is in pixels of the upright photo of the given width and height, the first pixel "
    "covering 0 to 1, its centre at 0.5 (COLMAP). The world's unit is arbitrary unless a scale was given."
)


def save_scene(
    scene: Scene,
    folder: Path,
    *,
    draw: Callable[[Path], object] | None = None,
    details: SceneDetails | None = None,
) -> None:
    """Writes a scene into a folder of its own, as a whole: afterwards the folder holds this scene or what it held.

    Args:
        scene: What to write.
        folder: Made if missing; a scene that is there is replaced.
        draw: Draws the scene into the file that it is given, which will be `scene.png` in the folder.
        details: What else there is to look at; those of a scene that is replaced do not stay.

    Raises:
        StorageFullError: The disk is full.
        StorageError: The folder cannot be written, or holds other files.
        InvalidDataError: The scene is not of `SCENE_FORMAT_VERSION`, or the details are not of this scene.
    """
    if scene.format_version != SCENE_FORMAT_VERSION:
        raise InvalidDataError(
            f"the scene is of format version {scene.format_version}, not {SCENE_FORMAT_VERSION}",
            way_out="Build it with SCENE_FORMAT_VERSION",
        )
    if details is not None and (details.names, details.format_version) != (scene.names, DETAILS_FORMAT_VERSION):
        raise InvalidDataError(
            f"the details are of format version {details.format_version} and of {len(details.names)} views, not of "
            "this scene's",
            way_out="Make them by scene_details, of the same photos",
        )
    require_scene_folder(folder)
    with replace_folder(folder) as new:
        write_result(new / SCENE_FILE, scene)
        if details is not None:
            write_result(new / DETAILS_FILE, details)
        (new / CAMERAS_FILE).write_text(_cameras_text(scene), encoding="utf-8", errors="replace")
        if draw is not None:
            draw(new / PICTURE_FILE)


def load_scene(folder: Path) -> Scene:
    """The scene in a folder, bit for bit as it was saved. `cameras.json` is not looked at.

    Raises:
        DamagedFileError: The file is damaged or of another format version.
        StorageError: There is no scene, or it cannot be read.
    """
    settle_folder(folder)
    path = folder / SCENE_FILE
    scene = read_result(path, Scene)
    if scene.format_version != SCENE_FORMAT_VERSION:
        raise DamagedFileError(
            f"the scene is of format version {scene.format_version}, and this version of the package reads "
            f"{SCENE_FORMAT_VERSION}",
            way_out="Reconstruct the scene again",
            path=path,
        )
    return scene


def load_details(folder: Path) -> SceneDetails | None:
    """What there is to look at of the scene in a folder; None for a scene that was saved without.

    Raises:
        DamagedFileError: The file is damaged or of another format version.
        StorageError: There is no scene, or the file cannot be read.
    """
    settle_folder(folder)
    path = folder / DETAILS_FILE
    if not path.exists():
        if not (folder / SCENE_FILE).exists():
            raise StorageError("there is no scene here", way_out="Name the folder of a scene", path=folder)
        return None
    details = read_result(path, SceneDetails)
    if details.format_version != DETAILS_FORMAT_VERSION:
        raise DamagedFileError(
            f"the details are of format version {details.format_version}, and this version of the package reads "
            f"{DETAILS_FORMAT_VERSION}",
            way_out="Reconstruct the scene again",
            path=path,
        )
    return details


def require_scene_folder(folder: Path) -> None:
    """Refuses a folder with anything but a scene in it, since replacing it would delete that.

    Raises:
        StorageError: The folder holds other files, or cannot be read.
    """
    settle_folder(folder)
    try:
        others = sorted({path.name for path in folder.iterdir()} - _FILES)
    except (FileNotFoundError, NotADirectoryError):
        # Nothing to lose; what is wrong with the place shows when it is written.
        return
    except OSError as error:
        raise StorageError(
            f"the folder cannot be read ({error.strerror or error})", way_out="Choose another folder", path=folder
        ) from error
    if others:
        raise StorageError(
            f"the folder holds {len(others)} files that belong to no scene (such as {others[0]})",
            way_out="Choose a new folder for the scene",
            path=folder,
        )


def _cameras_text(scene: Scene) -> str:
    cameras = [
        {
            "name": name,
            "width": size[0],
            "height": size[1],
            "K": K.tolist(),
            "T_world_camera": T_world_camera.tolist(),
        }
        for name, size, K, T_world_camera in zip(
            scene.names, scene.cameras.sizes, scene.cameras.K, scene.cameras.T_world_camera, strict=True
        )
    ]
    content = {"convention": _CONVENTION, "format_version": scene.format_version, "cameras": cameras}
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"
