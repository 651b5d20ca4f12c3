"""What files say of cameras that the user knows already, and how their entries are read with errors that name them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float64
from torch import Tensor

from lora3d_ns.errors import KnownCameraError

# Poses are often written with few digits; larger deviations are no rounding.
_ROTATION_TOLERANCE = 1e-3


@dataclass(frozen=True, eq=False, kw_only=True)
class KnownCamera:
    """What a file says of one photo.

    Attributes:
        entry: The photo's name as the file writes it.
        K: Intrinsics in the pixels of `size`, pixel centres at 0.5; None where unknown.
        T_world_camera: Pose with OpenCV axes; None where unknown.
        size: (width, height) that K belongs to; None: the photo's own.
        angle_x_rad: Horizontal angle of view, of files that say nothing else of the lens and nothing of its size.
    """

    entry: str
    K: Float64[Tensor, "3 3"] | None
    T_world_camera: Float64[Tensor, "4 4"] | None
    size: tuple[int, int] | None
    angle_x_rad: float | None = None


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


@dataclass(frozen=True, kw_only=True)
class EntryReader:
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


def pinhole(focal_x_px: float, focal_y_px: float, centre_x_px: float, centre_y_px: float) -> Float64[Tensor, "3 3"]:
    """Intrinsics of these numbers."""
    return torch.tensor(
        [[focal_x_px, 0.0, centre_x_px], [0.0, focal_y_px, centre_y_px], [0.0, 0.0, 1.0]], dtype=torch.float64
    )


def distortion_error(reader: EntryReader, coefficient: str) -> KnownCameraError:
    """The refusal of a lens that bends lines: what we would make of its photos would not fit them."""
    return reader.error(
        f"the lens distortion {coefficient} is not zero",
        "Undistort the photos first (for example with `colmap image_undistorter`) and give the cameras it writes",
    )
