"""One call for every format: what `lora3d export` does."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

from lora3d_ns.errors import SettingsError, StorageError
from lora3d_ns.export.cameras import refined_cameras
from lora3d_ns.export.colmap import IMAGES_FOLDER, SPARSE_FOLDER, write_colmap
from lora3d_ns.export.crop import CropSettings, cropped
from lora3d_ns.export.depth import DEPTH_FOLDER, DEPTH_JSON, WEIGHT_FOLDER, DepthKind, DepthSettings, write_depth
from lora3d_ns.export.folders import require_replaceable
from lora3d_ns.export.nerfstudio import CLOUD_FILE, TRANSFORMS_FILE, write_nerfstudio
from lora3d_ns.export.pointcloud import write_glb, write_ply
from lora3d_ns.export.tracks import TrackSettings
from lora3d_ns.scene_io.details import SceneDetails
from lora3d_ns.scene_io.scenes import SCENE_FILE
from lora3d_ns.types import Scene

Format = Literal["nerfstudio", "colmap", "colmap-text", "ply", "glb", "depth-png", "depth-exr", "depth-npz"]

_DEPTH_KINDS: Mapping[str, DepthKind] = {"depth-png": "png", "depth-exr": "exr", "depth-npz": "npz"}
_MODEL_NAMES = ("cameras", "images", "points3D", "rigs", "frames")
_MODEL_FILES = {f"{name}.{ending}" for name in _MODEL_NAMES for ending in ("bin", "txt")}
_COLMAP_FILES = frozenset({*_MODEL_FILES, IMAGES_FOLDER, SPARSE_FOLDER})
_DEPTH_FILES = frozenset({DEPTH_JSON, DEPTH_FOLDER, WEIGHT_FOLDER})
_FOLDERS: Mapping[str, frozenset[str]] = {
    "nerfstudio": frozenset({TRANSFORMS_FILE, CLOUD_FILE, IMAGES_FOLDER}),
    "colmap": _COLMAP_FILES,
    "colmap-text": _COLMAP_FILES,
    **dict.fromkeys(_DEPTH_KINDS, _DEPTH_FILES),
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
    cameras: Path | None = None,
    details: SceneDetails | None = None,
    depth: DepthSettings | None = None,
) -> int:
    """Writes a scene in another program's format.

    Args:
        scene: What to write.
        output: A file for `ply` and `glb`, else a folder. An earlier export of the same kind is replaced.
        to: The format.
        photos: Folder of the photos; `nerfstudio` needs it, and COLMAP's formats copy them beside the model.
        crop: Which points, and which pixels of depth maps.
        tracks: For COLMAP: how many points, and which pixels show one.
        cameras: Cameras that were refined since, see `export.cameras`; for `nerfstudio`, COLMAP and `glb`.
        details: Of the scene; the depth maps are in there.
        depth: How depth maps are written; `to` says which files.

    Returns:
        The number of points written, of depth maps that of the photos.

    Raises:
        SettingsError: Photos or details are needed and not given, or cameras where there are none to write.
        StorageError: The output cannot be written, or is a folder with other files.
        Lora3dError: The format's own errors.
    """
    kind = _DEPTH_KINDS.get(to)
    if to == "nerfstudio" and photos is None:
        raise SettingsError("nerfstudio needs the photos too", way_out="Name their folder with --photos")
    if cameras is not None and (to == "ply" or kind is not None):
        reason = "holds no cameras" if to == "ply" else "belongs to the cameras that the scene was made with"
        raise SettingsError(f"{to} {reason}", way_out="Leave --cameras out")
    if to in _FOLDERS:
        require_replaceable(output, _FOLDERS[to])
    elif output.is_dir():
        raise StorageError("this is a folder", way_out=f"Name a file such as scene.{to}", path=output)
    refined = None if cameras is None else refined_cameras(scene, cameras)
    crop = crop or CropSettings()
    if kind is not None:
        if details is None:
            raise SettingsError(
                "the scene was saved without the details that hold its depth maps", way_out="Reconstruct it again"
            )
        return write_depth(scene, details, output, kind, settings=depth, crop=crop)
    scene = cropped(scene, crop)
    if to in ("colmap", "colmap-text"):
        model_format = "binary" if to == "colmap" else "text"
        return write_colmap(scene, output, model_format=model_format, tracks=tracks, cameras=refined, photos=photos)
    if refined is not None:
        scene = replace(scene, cameras=refined)
    if to == "nerfstudio":
        assert photos is not None
        write_nerfstudio(scene, output, photos)
    else:
        (write_ply if to == "ply" else write_glb)(scene, output)
    return len(scene.points)


def scene_folder(folder: Path) -> Path:
    """The folder of a scene, also where it is named by the one around it that `ns-train lora3d-splat` makes."""
    inside = folder / "scene"
    return inside if not (folder / SCENE_FILE).exists() and (inside / SCENE_FILE).exists() else folder
