"""One call for every format: what `lora3d export` does."""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from lora3d_ns.errors import SettingsError, StorageError
from lora3d_ns.export.colmap import write_colmap
from lora3d_ns.export.crop import CropSettings, cropped
from lora3d_ns.export.nerfstudio import CLOUD_FILE, IMAGES_FOLDER, TRANSFORMS_FILE, write_nerfstudio
from lora3d_ns.export.pointcloud import write_glb, write_ply
from lora3d_ns.export.tracks import TrackSettings
from lora3d_ns.types import Scene

Format = Literal["nerfstudio", "colmap", "colmap-text", "ply", "glb"]

_MODEL_NAMES = ("cameras", "images", "points3D", "rigs", "frames")
_MODEL_FILES = frozenset(f"{name}.{ending}" for name in _MODEL_NAMES for ending in ("bin", "txt"))
_FOLDERS: Mapping[str, frozenset[str]] = {
    "nerfstudio": frozenset({TRANSFORMS_FILE, CLOUD_FILE, IMAGES_FOLDER}),
    "colmap": _MODEL_FILES,
    "colmap-text": _MODEL_FILES,
}
"""What an export of a format leaves in its folder, for those that are folders."""


def export_scene(
    scene: Scene,
    output: Path,
    to: Format,
    *,
    photos: Path | None = None,
    crop: CropSettings | None = None,
    tracks: TrackSettings | None = None,
) -> int:
    """Writes a scene in another program's format.

    Args:
        scene: What to write.
        output: A file for `ply` and `glb`, else a folder. An earlier export of the same kind is replaced.
        to: The format.
        photos: Folder of the photos; `nerfstudio` needs it.
        crop: Which points.
        tracks: For COLMAP: how many points, and which pixels show one.

    Returns:
        The number of points written.

    Raises:
        SettingsError: The photos are needed and not given.
        StorageError: The output cannot be written, or is a folder with other files.
        Lora3dError: The format's own errors.
    """
    if to == "nerfstudio" and photos is None:
        raise SettingsError("nerfstudio needs the photos too", way_out="Name their folder with --photos")
    if to in _FOLDERS:
        _require_no_others(output, _FOLDERS[to])
    elif output.is_dir():
        raise StorageError("this is a folder", way_out=f"Name a file such as scene.{to}", path=output)
    scene = cropped(scene, crop or CropSettings())
    if to in ("colmap", "colmap-text"):
        return write_colmap(scene, output, model_format="binary" if to == "colmap" else "text", tracks=tracks)
    if to == "nerfstudio":
        assert photos is not None
        write_nerfstudio(scene, output, photos)
    else:
        (write_ply if to == "ply" else write_glb)(scene, output)
    return len(scene.points)


def _require_no_others(folder: Path, ours: frozenset[str]) -> None:
    """Refuses a folder with other files, since the export would replace it."""
    try:
        others = sorted({path.name for path in folder.iterdir()} - ours)
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise StorageError(
            f"the folder cannot be read ({error.strerror or error})", way_out="Choose another folder", path=folder
        ) from error
    if others:
        raise StorageError(
            f"the folder holds {len(others)} files that belong to no export (such as {others[0]})",
            way_out="Choose a new folder",
            path=folder,
        )
