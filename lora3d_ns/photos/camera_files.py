"""Reading files with cameras that the user knows already: intrinsics and poses of some or all photos.

Three formats are read:

COLMAP
    A model folder (`cameras`, `images`, `points3D` as .bin or .txt), or one that holds it as `sparse/0` or `sparse`.
transforms.json
    As nerfstudio writes it: intrinsics for all frames or for each, poses with OpenGL axes.
JSON of ours
    `{"pixel_centres": "half", "cameras": {"IMG_1.jpg": {"K": [[...]], "T_world_camera": [[...]]}}}`. K and
    T_world_camera (4x4 or 3x4, OpenCV axes) may each be absent. `pixel_centres` says where the first pixel's centre
    lies: "half" at 0.5 (the default), "integer" at 0 as OpenCV and many data sets have it.

Which pixels do they mean? COLMAP and nerfstudio ignore EXIF orientation, so theirs are the stored pixels; ours are the
upright ones. Where a file declares its size and only the upright photo has that shape, upright is what it means. A
size that differs from the photo's is taken as the same picture at another resolution if the shape agrees, and K is
rescaled. The world frame is the file's own.

Lens distortion is refused rather than corrected: the photos on disk would no longer be those that the result is about.
"""

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float64
from torch import Tensor

from lora3d_ns.conventions import K_from_integer_centres, opencv_from_opengl
from lora3d_ns.errors import KnownCameraError, MissingPackageError

# Poses are often written with few digits; larger deviations are no rounding.
_ROTATION_TOLERANCE = 1e-3
_COLMAP_MODELS = ("SIMPLE_PINHOLE", "PINHOLE", "SIMPLE_RADIAL", "RADIAL", "OPENCV", "FULL_OPENCV")
_NERFSTUDIO_MODELS = ("SIMPLE_PINHOLE", "PINHOLE", "SIMPLE_RADIAL", "RADIAL", "OPENCV")
_NERFSTUDIO_DISTORTION = ("k1", "k2", "k3", "k4", "k5", "k6", "p1", "p2")


@dataclass(frozen=True, eq=False, kw_only=True)
class KnownCamera:
    """What a file says of one photo.

    Attributes:
        entry: The photo's name as the file writes it.
        K: Intrinsics in the pixels of `size`, pixel centres at 0.5; None where unknown.
        T_world_camera: Pose with OpenCV axes; None where unknown.
        size: (width, height) that K belongs to; None: the photo's own.
    """

    entry: str
    K: Float64[Tensor, "3 3"] | None
    T_world_camera: Float64[Tensor, "4 4"] | None
    size: tuple[int, int] | None


@dataclass(frozen=True, eq=False, kw_only=True)
class KnownCameras:
    """What a file says of all its photos.

    Attributes:
        path: The file or folder.
        root: The folder that its entries are relative to; None where it does not say.
        pixels: Whether its cameras are those of the photos as stored or of the upright ones.
        cameras: Its entries.
    """

    path: Path
    root: Path | None
    pixels: Literal["stored", "upright"]
    cameras: tuple[KnownCamera, ...]


def read_known_cameras(path: Path) -> KnownCameras:
    """Cameras of a COLMAP folder, a transforms.json or a JSON file of ours.

    Raises:
        KnownCameraError: The file is missing or broken, or an entry is no camera that we support.
        MissingPackageError: A COLMAP folder without pycolmap installed.
    """
    if path.is_dir():
        return _read_colmap(path)
    try:
        # Some editors put a byte order mark first.
        content = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_unique_keys)
    except OSError as error:
        raise KnownCameraError(
            f"the file with known cameras cannot be read ({error.strerror})", way_out="Check the path", path=path
        ) from error
    except (ValueError, RecursionError) as error:
        raise KnownCameraError(f"not valid JSON ({error})", way_out="Mend or export it again", path=path) from error
    reader = _EntryReader(path=path, entry=None)
    if isinstance(content, dict) and "frames" in content:
        return _read_transforms(content, reader)
    if isinstance(content, dict) and "cameras" in content:
        return _read_own_json(content, reader)
    raise reader.error(
        'neither a transforms.json (no "frames") nor a JSON file of ours (no "cameras")',
        "See the formats in lora3d_ns.photos.known_cameras",
    )


def _unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    if len(content := dict(pairs)) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} occurs twice")
    return content


@dataclass(frozen=True, kw_only=True)
class _EntryReader:
    """Reads values of one entry; whatever is wrong with them, the error names file and entry."""

    path: Path
    entry: str | None

    def error(self, problem: str, way_out: str = "Mend this entry, or remove it") -> KnownCameraError:
        where = "" if self.entry is None else f"entry {self.entry!r}: "
        return KnownCameraError(where + problem, way_out=way_out, path=self.path)

    def mapping(self, value: object, name: str) -> Mapping[str, object]:
        if not isinstance(value, dict):
            raise self.error(f"{name} is no JSON object")
        return value

    def number(self, value: object, name: str) -> float:
        try:
            if (
                isinstance(value, bool)
                or not isinstance(value, (int, float))
                or not math.isfinite(number := float(value))
            ):
                raise self.error(f"{name} is no finite number")
        except OverflowError as error:
            raise self.error(f"{name} is no finite number") from error
        return number

    def positive_integer(self, value: object, name: str) -> int:
        number = self.number(value, name)
        if number < 1 or number != int(number):
            raise self.error(f"{name} is {number:g}, no positive whole number")
        return int(number)

    def matrix(self, value: object, name: str, shapes: Sequence[tuple[int, int]]) -> Float64[Tensor, "rows columns"]:
        named_shapes = " or ".join(f"{rows}x{columns}" for rows, columns in shapes)
        if not isinstance(value, list) or not all(isinstance(row, list) for row in value):
            raise self.error(f"{name} is no {named_shapes} matrix")
        if not any(len(value) == rows and all(len(row) == columns for row in value) for rows, columns in shapes):
            raise self.error(f"{name} is no {named_shapes} matrix")
        return torch.tensor([[self.number(item, name) for item in row] for row in value], dtype=torch.float64)

    def intrinsics(self, K: Float64[Tensor, "3 3"]) -> Float64[Tensor, "3 3"]:
        fixed = K[[0, 1, 2, 2, 2], [1, 0, 0, 1, 2]]
        if not bool(torch.isfinite(K).all()):
            raise self.error("K holds NaN or infinity")
        if not (K[0, 0] > 0 and K[1, 1] > 0):
            raise self.error(f"the focal lengths {K[0, 0]:g}, {K[1, 1]:g} are not positive")
        if not torch.allclose(fixed, fixed.new_tensor([0, 0, 0, 0, 1]), atol=1e-6, rtol=0):
            raise self.error("K is not [[fx, 0, cx], [0, fy, cy], [0, 0, 1]]")
        return K

    def pose(self, T: Float64[Tensor, "rows 4"], name: str) -> Float64[Tensor, "4 4"]:
        """A rigid 4x4 pose; the rotation, which may have been rounded, is replaced by the nearest exact one."""
        if not bool(torch.isfinite(T).all()):
            raise self.error(f"{name} holds NaN or infinity")
        rotation = T[:3, :3]
        identity = torch.eye(4, dtype=torch.float64)
        if len(T) == 4 and not torch.allclose(T[3], identity[3], atol=1e-6, rtol=0):
            raise self.error(f"the last row of {name} is not 0 0 0 1")
        deviation = float((rotation @ rotation.T - identity[:3, :3]).abs().max())
        if not (deviation <= _ROTATION_TOLERANCE and torch.linalg.det(rotation) > 0):
            raise self.error(f"{name} holds no rotation: it stretches or mirrors")
        U, _, Vh = torch.linalg.svd(rotation)
        rigid = identity.clone()
        rigid[:3, :3] = U @ Vh
        rigid[:3, 3] = T[:3, 3]
        return rigid


def _read_own_json(content: Mapping[str, object], reader: _EntryReader) -> KnownCameras:
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


def _refuse_unknown_keys(content: Mapping[str, object], known: Sequence[str], reader: _EntryReader) -> None:
    for key in content:
        if key not in known:
            raise reader.error(f"unknown key {key!r}", f"The keys are {', '.join(known)}")


def _read_transforms(content: Mapping[str, object], reader: _EntryReader) -> KnownCameras:
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
                raise _distortion_error(entry_reader, key)
        T_world_camera = None
        if frame.get("transform_matrix") is not None:
            matrix = entry_reader.matrix(frame["transform_matrix"], "transform_matrix", [(4, 4), (3, 4)])
            T_world_camera = opencv_from_opengl(entry_reader.pose(matrix, "transform_matrix"))
        size = None
        if values.get("w") is not None and values.get("h") is not None:
            size = entry_reader.positive_integer(values["w"], "w"), entry_reader.positive_integer(values["h"], "h")
        K = _intrinsics_of_transforms(values, size, entry_reader)
        cameras.append(KnownCamera(entry=name, K=K, T_world_camera=T_world_camera, size=size))
    return KnownCameras(path=reader.path, root=reader.path.parent, pixels="stored", cameras=tuple(cameras))


def _intrinsics_of_transforms(
    values: Mapping[str, object], size: tuple[int, int] | None, reader: _EntryReader
) -> Float64[Tensor, "3 3"] | None:
    if values.get("fl_x") is not None:
        focal_x_px = reader.number(values["fl_x"], "fl_x")
    elif values.get("camera_angle_x") is not None and size is not None:
        half_angle = reader.number(values["camera_angle_x"], "camera_angle_x") / 2
        if not 0 < half_angle < math.pi / 2:
            raise reader.error("camera_angle_x is no angle between 0 and pi")
        focal_x_px = size[0] / 2 / math.tan(half_angle)
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
    return reader.intrinsics(_pinhole(focal_x_px, focal_y_px, *centre_px))


def _pinhole(focal_x_px: float, focal_y_px: float, centre_x_px: float, centre_y_px: float) -> Float64[Tensor, "3 3"]:
    return torch.tensor(
        [[focal_x_px, 0.0, centre_x_px], [0.0, focal_y_px, centre_y_px], [0.0, 0.0, 1.0]], dtype=torch.float64
    )


def _distortion_error(reader: _EntryReader, coefficient: str) -> KnownCameraError:
    return reader.error(
        f"the lens distortion {coefficient} is not zero",
        "Undistort the photos first (for example with `colmap image_undistorter`) and give the cameras it writes",
    )


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


def _read_colmap(folder: Path) -> KnownCameras:
    try:
        import pycolmap
    except ImportError as error:
        raise MissingPackageError(
            "reading COLMAP models needs pycolmap", way_out="Install it with `pip install pycolmap`"
        ) from error
    candidates = [folder, folder / "sparse" / "0", folder / "sparse"]
    model = next((c for c in candidates if (c / "cameras.bin").is_file() or (c / "cameras.txt").is_file()), None)
    if model is None:
        raise KnownCameraError(
            "no COLMAP model here (no cameras.bin or cameras.txt)",
            way_out="Give the folder that holds cameras, images and points3D",
            path=folder,
        )
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
        reader = _EntryReader(path=model, entry=image.name)
        camera = reconstruction.cameras[image.camera_id]
        if camera.model_name not in _COLMAP_MODELS:
            raise reader.error(
                f"the camera model {camera.model_name} is not supported",
                "Undistort the photos first with `colmap image_undistorter`",
            )
        extra_names = camera.params_info.replace(" ", "").split(",")
        for index in camera.extra_params_idxs():
            if camera.params[index] != 0:
                raise _distortion_error(reader, extra_names[index])
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
    return KnownCameras(path=model, root=None, pixels="stored", cameras=tuple(cameras))
