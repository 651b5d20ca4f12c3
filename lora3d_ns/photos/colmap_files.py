"""Reading COLMAP models, binary or text, for the cameras in them."""

import json
import struct
from pathlib import Path
from typing import Any, Literal

import torch

from lora3d_ns.errors import KnownCameraError, MissingPackageError
from lora3d_ns.photos.camera_entries import EntryReader, KnownCamera, KnownCameras, distortion_error

MARK_FILE = "lora3d.json"
"""Beside a model of ours: says that its cameras are those of upright photos, which COLMAP's own files cannot say."""

_COLMAP_MODELS = ("SIMPLE_PINHOLE", "PINHOLE", "SIMPLE_RADIAL", "RADIAL", "OPENCV", "FULL_OPENCV")

# Bytes that one record of each binary file takes at least.
_COLMAP_SMALLEST_RECORD = {"cameras.bin": 48, "rigs.bin": 8, "frames.bin": 8, "images.bin": 73, "points3D.bin": 51}

# Number of parameters by COLMAP's number of the model, for `_COLMAP_MODELS`.
_COLMAP_PARAMETERS = {0: 3, 1: 4, 2: 4, 3: 5, 4: 8, 6: 12}


def _require_whole_binary(path: Path) -> None:
    """Refuse a truncated binary file: pycolmap reads on past its end, with random counts, and may never return."""
    if not path.is_file():
        return
    content = path.read_bytes()
    truncated = KnownCameraError("the file is truncated", way_out="Copy or export the model again", path=path)
    try:
        (count,) = struct.unpack_from("<Q", content)
        if 8 + count * _COLMAP_SMALLEST_RECORD[path.name] > len(content):
            raise truncated
        offset = 8
        if path.name == "cameras.bin":
            for _ in range(count):
                # Number and model, size; then the parameters, whose count is the model's. Models that we do not know
                # are refused later.
                offset += 24 + 8 * _COLMAP_PARAMETERS.get(struct.unpack_from("<i", content, offset + 4)[0], 3)
        elif path.name == "images.bin":
            for _ in range(count):
                # Number, pose and camera; then the name, ended by a zero; then the observations.
                offset = content.index(b"\0", offset + 64) + 1
                offset += 8 + 24 * struct.unpack_from("<Q", content, offset)[0]
        elif path.name == "points3D.bin":
            for _ in range(count):
                # Number, position, colour and error; then the track.
                offset += 51 + 8 * struct.unpack_from("<Q", content, offset + 43)[0]
    except (struct.error, ValueError) as error:
        raise truncated from error
    if offset > len(content):
        raise truncated


def model_folder(folder: Path) -> Path | None:
    """Where a COLMAP model lies: in the folder, or below it as `sparse/0` or `sparse`; None if nowhere."""
    candidates = [folder, folder / "sparse" / "0", folder / "sparse"]
    return next((c for c in candidates if (c / "cameras.bin").is_file() or (c / "cameras.txt").is_file()), None)


def read_colmap(model: Path) -> KnownCameras:
    """Cameras of the model in a folder.

    Raises:
        KnownCameraError: It is damaged, or a lens distorts.
        MissingPackageError: pycolmap is not installed.
    """
    try:
        import pycolmap
    except ImportError as error:
        raise MissingPackageError(
            "reading COLMAP models needs pycolmap", way_out="Install it with `pip install pycolmap`"
        ) from error
    for file_name in _COLMAP_SMALLEST_RECORD:
        _require_whole_binary(model / file_name)
    try:
        reconstruction = pycolmap.Reconstruction(str(model))
        images = sorted(reconstruction.images.values(), key=lambda image: image.name)
    except Exception as error:
        # pycolmap raises whatever its C++ does.
        raise KnownCameraError(
            f"not a readable COLMAP model ({error})", way_out="Export it again with COLMAP", path=model
        ) from error
    cameras = []
    for image in images:
        reader = EntryReader(path=model, entry=image.name)
        camera = reconstruction.cameras[image.camera_id]
        if camera.model_name not in _COLMAP_MODELS:
            raise reader.error(
                f"the camera model {camera.model_name} is not supported",
                "Undistort the photos first with `colmap image_undistorter`",
            )
        extra_names = camera.params_info.replace(" ", "").split(",")
        for index in camera.extra_params_idxs():
            if camera.params[index] != 0:
                raise distortion_error(reader, extra_names[index])
        K = reader.intrinsics(torch.tensor(camera.calibration_matrix(), dtype=torch.float64))
        T_world_camera = None
        if image.has_pose:
            # A method from pycolmap 3.12 on, a property before.
            T_camera_world: Any = image.cam_from_world
            if callable(T_camera_world):
                T_camera_world = T_camera_world()
            matrix = torch.tensor(T_camera_world.inverse().matrix(), dtype=torch.float64)
            T_world_camera = reader.pose(matrix, "the pose")
        cameras.append(
            KnownCamera(entry=image.name, K=K, T_world_camera=T_world_camera, size=(camera.width, camera.height))
        )
    return KnownCameras(path=model, root=None, pixels=_pixels_of(model), cameras=tuple(cameras))


def _pixels_of(model: Path) -> Literal["stored", "upright"]:
    try:
        content = json.loads((model / MARK_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        # Any other program's model.
        return "stored"
    return "upright" if isinstance(content, dict) and content.get("pixels") == "upright" else "stored"
