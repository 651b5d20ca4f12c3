"""Photographed rooms on disk: as plain photos with truth, or laid out like the data sets that others read."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64, UInt8
from PIL import Image
from torch import Tensor

from lora3d_ns.conventions import K_to_integer_centres
from lora3d_ns.errors import SettingsError
from lora3d_ns.rooms.render import RoomRenders

Layout = Literal["photos", "replica", "tum"]
PhotoFormat = Literal["png", "jpg"]

MILLIMETRES_PER_METRE = 1000.0
REPLICA_DEPTH_SCALE = 6553.5
TUM_DEPTH_SCALE = 5000.0
_JPEG_QUALITY = 95
_TUM_SECONDS_PER_PHOTO = 0.1


@dataclass(frozen=True, eq=False, kw_only=True)
class PhotographedRoom:
    """Photos of one room with their truth; shapes may differ from photo to photo.

    Attributes:
        names: File names without ending, in order.
        photos: sRGB.
        depths_m: Depth along the viewing axis at pixel centres.
        object_ids: What each pixel sees, as in `RoomRenders`.
        moving: Pixels of what moves between the photos.
        K: Intrinsics, pixel centres at +0.5.
        T_world_camera: Poses, OpenCV axes; world in metres, z up.
    """

    names: tuple[str, ...]
    photos: tuple[UInt8[Tensor, "_ _ 3"], ...]
    depths_m: tuple[Float32[Tensor, "_ _"], ...]
    object_ids: tuple[Int64[Tensor, "_ _"], ...]
    moving: tuple[Bool[Tensor, "_ _"], ...]
    K: tuple[Float32[Tensor, "3 3"], ...]
    T_world_camera: tuple[Float32[Tensor, "4 4"], ...]

    def __len__(self) -> int:
        return len(self.names)


def photographed_room(renders: Sequence[RoomRenders], *, scene: int = 0) -> PhotographedRoom:
    """One scene's photos out of one or several renders, which may differ in size, named 000, 001, ...

    Args:
        renders: Renders of the same scenes; their views follow one another.
        scene: Which scene of the batch.
    """
    views = [(render, view) for render in renders for view in range(render.rgb.shape[1])]
    return PhotographedRoom(
        names=tuple(f"{number:03d}" for number in range(len(views))),
        photos=tuple((render.rgb[scene, view] * 255.0).round().to(torch.uint8).cpu() for render, view in views),
        depths_m=tuple(render.depth_m[scene, view].cpu() for render, view in views),
        object_ids=tuple(render.object_ids[scene, view].cpu() for render, view in views),
        moving=tuple(render.moving[scene, view].cpu() for render, view in views),
        K=tuple(render.K[scene, view].cpu() for render, view in views),
        T_world_camera=tuple(render.T_world_camera[scene, view].cpu() for render, view in views),
    )


def write_scene(
    folder: Path, room: PhotographedRoom, *, layout: Layout = "photos", photo_format: PhotoFormat = "png"
) -> None:
    """Write a photographed room, over what is there.

    `photos`
        `images/NAME.png` (or .jpg), and the truth: `cameras.json` in the project's format, keyed by file name;
        `depth/NAME.png` in whole millimetres (16 bits), `depth.npz` in float32 metres, `object_ids.npz`, and, where
        something moves, `masks/NAME.png` with 255 where the pixel counts (is static).
    `replica`
        As NICE-SLAM lays out Replica: `results/frame000000.jpg`, `results/depth000000.png` (16 bits, 6553.5 per metre),
        `traj.txt` with one row-major T_world_camera per line, and `cam_params.json`.
    `tum`
        As TUM RGB-D: `rgb/`, `depth/` (16 bits, 5000 per metre), `rgb.txt`, `depth.txt`, `associations.txt` and
        `groundtruth.txt` with `timestamp tx ty tz qx qy qz qw` of the camera in the world. The intrinsics, which that
        data set keeps elsewhere, are in `calibration.txt`: fx fy cx cy.

    Replica and TUM count pixels from 0 at the first centre, so cx and cy written there are 0.5 less than ours.

    Args:
        folder: Created if missing.
        room: What to write.
        layout: One of the three above.
        photo_format: For `photos` only; Replica is always JPEG, TUM always PNG.

    Raises:
        SettingsError: Photos differ in shape or intrinsics where the layout has one of each, or the layout is unknown.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if layout == "photos":
        _write_photos(folder, room, photo_format)
    elif layout == "replica":
        _write_replica(folder, room)
    elif layout == "tum":
        _write_tum(folder, room)
    else:
        raise SettingsError(f"there is no layout {layout!r}", way_out="Choose photos, replica or tum")


def _write_photos(folder: Path, room: PhotographedRoom, photo_format: PhotoFormat) -> None:
    for name in ("images", "depth"):
        (folder / name).mkdir(exist_ok=True)
    cameras = {}
    for i, name in enumerate(room.names):
        file_name = f"{name}.{photo_format}"
        _save_photo(folder / "images" / file_name, room.photos[i])
        _save_depth(folder / "depth" / f"{name}.png", room.depths_m[i], MILLIMETRES_PER_METRE)
        cameras[file_name] = {
            "K": room.K[i].double().tolist(),
            "T_world_camera": room.T_world_camera[i].double().tolist(),
        }
        if any(bool(mask.any()) for mask in room.moving):
            (folder / "masks").mkdir(exist_ok=True)
            static = (~room.moving[i]).to(torch.uint8) * 255
            Image.fromarray(static.numpy()).save(folder / "masks" / f"{name}.png")
    text = json.dumps({"cameras": cameras, "pixel_centres": "half"}, indent=1)
    (folder / "cameras.json").write_text(text + "\n", encoding="utf-8")
    depths = {name: depth.numpy() for name, depth in zip(room.names, room.depths_m, strict=True)}
    np.savez_compressed(folder / "depth.npz", allow_pickle=False, **depths)
    ids = {name: image.to(torch.int16).numpy() for name, image in zip(room.names, room.object_ids, strict=True)}
    np.savez_compressed(folder / "object_ids.npz", allow_pickle=False, **ids)


def _write_replica(folder: Path, room: PhotographedRoom) -> None:
    K = _shared_K(room, "replica")
    (folder / "results").mkdir(exist_ok=True)
    lines = []
    for i in range(len(room)):
        _save_photo(folder / "results" / f"frame{i:06d}.jpg", room.photos[i])
        _save_depth(folder / "results" / f"depth{i:06d}.png", room.depths_m[i], REPLICA_DEPTH_SCALE)
        lines.append(" ".join(f"{value:.9g}" for value in room.T_world_camera[i].flatten().tolist()))
    (folder / "traj.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    height, width = room.depths_m[0].shape
    camera = {
        "w": width, "h": height, "fx": float(K[0, 0]), "fy": float(K[1, 1]), "cx": float(K[0, 2]),
        "cy": float(K[1, 2]), "scale": REPLICA_DEPTH_SCALE,
    }  # fmt: skip
    (folder / "cam_params.json").write_text(json.dumps({"camera": camera}, indent=1) + "\n", encoding="utf-8")


def _write_tum(folder: Path, room: PhotographedRoom) -> None:
    K = _shared_K(room, "tum")
    for name in ("rgb", "depth"):
        (folder / name).mkdir(exist_ok=True)
    photos, depths, pairs = ["# color images", "# timestamp filename"], ["# depth maps", "# timestamp filename"], []
    poses = ["# ground truth trajectory", "# timestamp tx ty tz qx qy qz qw"]
    for i in range(len(room)):
        stamp = f"{_TUM_SECONDS_PER_PHOTO * i:.6f}"
        _save_photo(folder / "rgb" / f"{stamp}.png", room.photos[i])
        _save_depth(folder / "depth" / f"{stamp}.png", room.depths_m[i], TUM_DEPTH_SCALE)
        photos.append(f"{stamp} rgb/{stamp}.png")
        depths.append(f"{stamp} depth/{stamp}.png")
        pairs.append(f"{stamp} rgb/{stamp}.png {stamp} depth/{stamp}.png")
        T = room.T_world_camera[i].double().numpy()
        numbers = [*T[:3, 3].tolist(), *quaternion_xyzw(T[:3, :3]).tolist()]
        poses.append(f"{stamp} " + " ".join(f"{value:.9f}" for value in numbers))
    for name, lines in (("rgb", photos), ("depth", depths), ("associations", pairs), ("groundtruth", poses)):
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    calibration = f"{K[0, 0]:.9g} {K[1, 1]:.9g} {K[0, 2]:.9g} {K[1, 2]:.9g}\n"
    (folder / "calibration.txt").write_text(calibration, encoding="utf-8")


def quaternion_xyzw(R: np.ndarray) -> np.ndarray:
    """Unit quaternion (x, y, z, w) with w >= 0 of a rotation matrix [3, 3]."""
    # The eigenvector of Bar-Itzhack's matrix: accurate for every rotation, without a case for each octant.
    xx, xy, xz = R[0]
    yx, yy, yz = R[1]
    zx, zy, zz = R[2]
    matrix = np.array(
        [
            [xx - yy - zz, yx + xy, zx + xz, zy - yz],
            [yx + xy, yy - xx - zz, zy + yz, xz - zx],
            [zx + xz, zy + yz, zz - xx - yy, yx - xy],
            [zy - yz, xz - zx, yx - xy, xx + yy + zz],
        ]
    )
    quaternion = np.linalg.eigh(matrix / 3.0).eigenvectors[:, -1]
    return -quaternion if quaternion[3] < 0 else quaternion


def _shared_K(room: PhotographedRoom, layout: str) -> Tensor:
    """The one K of all photos, with the first pixel's centre at 0."""
    same = all(
        torch.equal(K, room.K[0]) and depth.shape == room.depths_m[0].shape
        for K, depth in zip(room.K, room.depths_m, strict=True)
    )
    if not same:
        raise SettingsError(
            f"the {layout} layout has one camera for all photos, and these differ in shape or intrinsics",
            way_out="Render all views at one size, or use the photos layout",
        )
    return K_to_integer_centres(room.K[0].double())


def _save_photo(path: Path, photo: Tensor) -> None:
    Image.fromarray(photo.numpy()).save(path, quality=_JPEG_QUALITY)


def _save_depth(path: Path, depth_m: Tensor, units_per_metre: float) -> None:
    units = (depth_m.double() * units_per_metre).round().clamp(0, 65535).numpy().astype(np.uint16)
    Image.fromarray(units).save(path)
