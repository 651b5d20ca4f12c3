"""A scene as nerfstudio's own data: `transforms.json` with its photos and a sparse cloud."""

import json
from collections.abc import Sequence
from pathlib import Path

from lora3d_ns.atomic_files import replace_folder
from lora3d_ns.conventions import opengl_from_opencv
from lora3d_ns.export.folders import write_mark
from lora3d_ns.export.photos import photo_headers, upright_files
from lora3d_ns.export.pointcloud import write_ply
from lora3d_ns.photos.camera_files import UPRIGHT_KEY
from lora3d_ns.types import Scene

CLOUD_FILE = "sparse_pc.ply"
TRANSFORMS_FILE = "transforms.json"
IMAGES_FOLDER = "images"


def write_nerfstudio(scene: Scene, folder: Path, photos: Path) -> None:
    """Writes `transforms.json` and `sparse_pc.ply`; nothing is rescaled, centred or turned.

    Cameras look along -z with y up (OpenGL), as nerfstudio has them; the world and the points are ours. nerfstudio's
    own dataparser turns and scales scenes by default: `--orientation-method none --center-method none
    --auto-scale-poses False` keeps them.

    Args:
        scene: What to write.
        folder: Replaced as a whole.
        photos: Folder of the photos. The file names them by their absolute paths; those that are not plain upright
            sRGB get a copy in `images/` beside it.

    Raises:
        InvalidDataError: A photo is not the one the scene was made from.
        StorageError: A photo is not there, or the folder cannot be written.
        PhotoError: A photo cannot be read.
    """
    headers = photo_headers(scene, photos)
    with replace_folder(folder) as new:
        files = upright_files(scene.names, headers, new / IMAGES_FOLDER)
        own = [file.relative_to(new).as_posix() if file.is_relative_to(new) else str(file) for file in files]
        content = {
            "camera_model": "PINHOLE",
            "ply_file_path": CLOUD_FILE,
            UPRIGHT_KEY: "upright",
            "frames": _frames(scene, own),
        }
        write_mark(new)
        (new / TRANSFORMS_FILE).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        write_ply(scene, new / CLOUD_FILE, with_weights=False)


def _frames(scene: Scene, files: Sequence[str]) -> list[dict[str, object]]:
    T_opengl = opengl_from_opencv(scene.cameras.T_world_camera.double())
    frames: list[dict[str, object]] = []
    for view, file in enumerate(files):
        K = scene.cameras.K[view].double()
        width, height = scene.cameras.sizes[view]
        frames.append(
            {
                "file_path": file,
                "fl_x": float(K[0, 0]),
                "fl_y": float(K[1, 1]),
                "cx": float(K[0, 2]),
                "cy": float(K[1, 2]),
                "w": width,
                "h": height,
                "transform_matrix": T_opengl[view].tolist(),
            }
        )
    return frames
