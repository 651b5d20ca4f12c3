"""Reading files with cameras that the user knows already: intrinsics and poses of some or all photos.

These formats are read:

COLMAP
    A model folder (`cameras`, `images`, `points3D` as .bin or .txt), or one that holds it as `sparse/0` or `sparse`.
transforms.json
    As nerfstudio writes it, or a folder with one: intrinsics for all frames or for each, poses with OpenGL axes.
cameras.json, refined_cameras.json
    As we write them beside a scene and a training of splats, or the folder of either.
JSON by hand
    `{"pixel_centres": "half", "cameras": {"IMG_1.jpg": {"K": [[...]], "T_world_camera": [[...]]}}}`. K and
    T_world_camera (4x4 or 3x4, OpenCV axes) may each be absent. `pixel_centres` says where the first pixel's centre
    lies: "half" at 0.5 (the default), "integer" at 0 as OpenCV and many data sets have it.

Which pixels do they mean? COLMAP and nerfstudio ignore EXIF orientation, so theirs are the stored pixels; ours are the
upright ones, also in the models and transforms.json that we export, which say so. Where a file declares its size and
only the upright photo has that shape, upright is what it means. A size that differs from the photo's is taken as the
same picture at another resolution if the shape agrees, and K is rescaled.

The world frame is the file's own, in which it writes its poses: nerfstudio's `applied_transform`, which tells how that
frame came about, is not undone.

Lens distortion is refused rather than corrected: the photos on disk would no longer be those that the result is about.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from jaxtyping import Float64
from torch import Tensor

from lora3d_ns.conventions import K_from_integer_centres, opencv_from_opengl
from lora3d_ns.errors import KnownCameraError
from lora3d_ns.photos.camera_entries import EntryReader, KnownCamera, KnownCameras, distortion_error, pinhole
from lora3d_ns.photos.colmap_files import model_folder, read_colmap

UPRIGHT_KEY = "lora3d_pixels"
"""In a transforms.json of ours `"upright"`: its cameras are those of upright photos. Others do not know it."""

_NERFSTUDIO_MODELS = ("SIMPLE_PINHOLE", "PINHOLE", "SIMPLE_RADIAL", "RADIAL", "OPENCV")
_NERFSTUDIO_DISTORTION = ("k1", "k2", "k3", "k4", "k5", "k6", "p1", "p2")
_FILES_IN_FOLDERS = ("transforms.json", "refined_cameras.json", "cameras.json", "scene/cameras.json")


def read_known_cameras(path: Path) -> KnownCameras:
    """Cameras of a file, or of a folder with one: see above.

    Raises:
        KnownCameraError: The file is missing or broken, or an entry is no camera that we support.
        MissingPackageError: A COLMAP folder without pycolmap installed.
    """
    if path.is_dir():
        model = model_folder(path)
        if model is not None:
            return read_colmap(model)
        inside = next((path / name for name in _FILES_IN_FOLDERS if (path / name).is_file()), None)
        if inside is None:
            raise KnownCameraError(
                f"no COLMAP model here (no cameras.bin or cameras.txt), and no {' or '.join(_FILES_IN_FOLDERS[:3])}",
                way_out="Give the folder that holds cameras, images and points3D, or a file",
                path=path,
            )
        path = inside
    try:
        # Some editors put a byte order mark first.
        content = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_unique_keys)
    except OSError as error:
        raise KnownCameraError(
            f"the file with known cameras cannot be read ({error.strerror})", way_out="Check the path", path=path
        ) from error
    except (ValueError, RecursionError) as error:
        raise KnownCameraError(f"not valid JSON ({error})", way_out="Mend or export it again", path=path) from error
    reader = EntryReader(path=path, entry=None)
    if isinstance(content, dict) and "frames" in content:
        return _read_transforms(content, reader)
    if isinstance(content, dict) and isinstance(content.get("cameras"), list) and "convention" in content:
        return _read_camera_list(content["cameras"], reader)
    if isinstance(content, dict) and "cameras" in content:
        return _read_own_json(content, reader)
    raise reader.error(
        'neither a transforms.json (no "frames") nor a JSON file of ours (no "cameras")',
        "See the formats in lora3d_ns.photos.camera_files",
    )


def _unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    if len(content := dict(pairs)) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} occurs twice")
    return content


def _read_camera_list(entries: Sequence[object], reader: EntryReader) -> KnownCameras:
    """What `scene_io.scenes` and the trainer of splats write."""
    cameras = []
    for index, entry in enumerate(entries):
        in_list = replace(reader, entry=f"cameras[{index}]")
        entry = in_list.mapping(entry, "the camera")
        name = entry.get("name")
        if not isinstance(name, str):
            raise in_list.error("its name is missing")
        named = replace(reader, entry=name)
        cameras.append(
            KnownCamera(
                entry=name,
                K=named.intrinsics(named.matrix(entry.get("K"), "K", [(3, 3)])),
                T_world_camera=named.pose(
                    named.matrix(entry.get("T_world_camera"), "T_world_camera", [(4, 4)]), "T_world_camera"
                ),
                size=(
                    named.positive_integer(entry.get("width"), "width"),
                    named.positive_integer(entry.get("height"), "height"),
                ),
            )
        )
    return KnownCameras(path=reader.path, root=None, pixels="upright", cameras=tuple(cameras))


def _read_own_json(content: Mapping[str, object], reader: EntryReader) -> KnownCameras:
    reader = replace(reader, entry=None)
    _refuse_unknown_keys(content, ("cameras", "pixel_centres"), reader)
    pixel_centres = content.get("pixel_centres", "half")
    if pixel_centres not in ("half", "integer"):
        raise reader.error('pixel_centres is neither "half" nor "integer"', "Say where the first pixel's centre lies")
    cameras = []
    for name, value in reader.mapping(content["cameras"], "cameras").items():
        entry_reader = replace(reader, entry=name)
        entry = entry_reader.mapping(value, "the camera")
        _refuse_unknown_keys(entry, ("K", "T_world_camera"), entry_reader)
        K = T_world_camera = None
        if entry.get("K") is not None:
            K = entry_reader.intrinsics(entry_reader.matrix(entry["K"], "K", [(3, 3)]))
            K = K_from_integer_centres(K) if pixel_centres == "integer" else K
        if entry.get("T_world_camera") is not None:
            matrix = entry_reader.matrix(entry["T_world_camera"], "T_world_camera", [(4, 4), (3, 4)])
            T_world_camera = entry_reader.pose(matrix, "T_world_camera")
        cameras.append(KnownCamera(entry=name, K=K, T_world_camera=T_world_camera, size=None))
    return KnownCameras(path=reader.path, root=None, pixels="upright", cameras=tuple(cameras))


def _refuse_unknown_keys(content: Mapping[str, object], known: Sequence[str], reader: EntryReader) -> None:
    for key in content:
        if key not in known:
            raise reader.error(f"unknown key {key!r}", f"The keys are {', '.join(known)}")


def _read_transforms(content: Mapping[str, object], reader: EntryReader) -> KnownCameras:
    frames = content["frames"]
    if not isinstance(frames, list):
        raise reader.error("frames is no list", "Export it again")
    cameras = []
    for index, frame in enumerate(frames):
        frame = replace(reader, entry=f"frames[{index}]").mapping(frame, "the frame")
        name = frame.get("file_path")
        if not isinstance(name, str):
            raise replace(reader, entry=f"frames[{index}]").error("file_path is missing")
        entry_reader = replace(reader, entry=name)
        # What a frame says itself goes before what is said of all.
        values = {**content, **frame}
        model = values.get("camera_model", "OPENCV")
        if model not in _NERFSTUDIO_MODELS:
            raise entry_reader.error(
                f"camera_model {model!r} is not supported", f"Undistort the photos to {', '.join(_NERFSTUDIO_MODELS)}"
            )
        for key in _NERFSTUDIO_DISTORTION:
            if values.get(key) is not None and entry_reader.number(values[key], key) != 0:
                raise distortion_error(entry_reader, key)
        T_world_camera = None
        if frame.get("transform_matrix") is not None:
            matrix = entry_reader.matrix(frame["transform_matrix"], "transform_matrix", [(4, 4), (3, 4)])
            T_world_camera = opencv_from_opengl(entry_reader.pose(matrix, "transform_matrix"))
        size = None
        if values.get("w") is not None and values.get("h") is not None:
            size = entry_reader.positive_integer(values["w"], "w"), entry_reader.positive_integer(values["h"], "h")
        K = _intrinsics_of_transforms(values, size, entry_reader)
        angle_x_rad = None
        if K is None and values.get("camera_angle_x") is not None:
            angle_x_rad = _angle_of_view(values["camera_angle_x"], entry_reader)
        cameras.append(KnownCamera(entry=name, K=K, T_world_camera=T_world_camera, size=size, angle_x_rad=angle_x_rad))
    pixels: Literal["stored", "upright"] = "upright" if content.get(UPRIGHT_KEY) == "upright" else "stored"
    return KnownCameras(path=reader.path, root=reader.path.parent, pixels=pixels, cameras=tuple(cameras))


def _angle_of_view(value: object, reader: EntryReader) -> float:
    angle_rad = reader.number(value, "camera_angle_x")
    if not 0 < angle_rad < math.pi:
        raise reader.error("camera_angle_x is no angle between 0 and pi")
    return angle_rad


def _intrinsics_of_transforms(
    values: Mapping[str, object], size: tuple[int, int] | None, reader: EntryReader
) -> Float64[Tensor, "3 3"] | None:
    if values.get("fl_x") is not None:
        focal_x_px = reader.number(values["fl_x"], "fl_x")
    elif values.get("camera_angle_x") is not None and size is not None:
        focal_x_px = size[0] / 2 / math.tan(_angle_of_view(values["camera_angle_x"], reader) / 2)
    else:
        return None
    focal_y_px = focal_x_px if values.get("fl_y") is None else reader.number(values["fl_y"], "fl_y")
    centre_px = []
    for axis, key in enumerate(("cx", "cy")):
        if values.get(key) is not None:
            centre_px.append(reader.number(values[key], key))
        elif size is not None:
            centre_px.append(size[axis] / 2)
        else:
            raise reader.error(f"there is fl_x and no {key}", "Add cx and cy, or w and h")
    return reader.intrinsics(pinhole(focal_x_px, focal_y_px, *centre_px))
