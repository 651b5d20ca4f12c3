"""A reader of binary COLMAP models in the way of gsplat's and 3DGS's loaders, written from the format's documentation.

https://colmap.github.io/format.html#binary-file-format: little endian; counts are uint64, image numbers uint32, point
numbers uint64 with the largest one for "no point".
"""

import struct
from dataclasses import dataclass
from pathlib import Path

NO_POINT = 2**64 - 1
_PARAMETERS = {0: 3, 1: 4, 2: 4, 3: 5, 4: 8}


@dataclass(frozen=True, kw_only=True)
class ModelImage:
    name: str
    quaternion_wxyz: tuple[float, ...]
    translation: tuple[float, ...]
    camera: int
    pixels: list[tuple[float, float]]
    points: list[int]


@dataclass(frozen=True, kw_only=True)
class ModelPoint:
    position: tuple[float, ...]
    color: tuple[int, ...]
    error_px: float
    track: list[tuple[int, int]]


class _Bytes:
    def __init__(self, path: Path) -> None:
        self.content, self.place = path.read_bytes(), 0

    def take(self, layout: str) -> tuple:
        values = struct.unpack_from("<" + layout, self.content, self.place)
        self.place += struct.calcsize("<" + layout)
        return values

    def text(self) -> str:
        end = self.content.index(b"\0", self.place)
        text, self.place = self.content[self.place : end].decode(), end + 1
        return text

    def done(self) -> bool:
        return self.place == len(self.content)


def read_cameras(folder: Path) -> dict[int, tuple[int, int, int, tuple[float, ...]]]:
    """Model, width, height and parameters by the camera's number."""
    data = _Bytes(folder / "cameras.bin")
    cameras = {}
    for _ in range(data.take("Q")[0]):
        number, model, width, height = data.take("iiQQ")
        cameras[number] = (model, width, height, data.take(f"{_PARAMETERS[model]}d"))
    assert data.done()
    return cameras


def read_images(folder: Path) -> dict[int, ModelImage]:
    data = _Bytes(folder / "images.bin")
    images = {}
    for _ in range(data.take("Q")[0]):
        (number,), rotation, translation, (camera,) = data.take("I"), data.take("4d"), data.take("3d"), data.take("I")
        name = data.text()
        shown = [data.take("ddQ") for _ in range(data.take("Q")[0])]
        images[number] = ModelImage(
            name=name,
            quaternion_wxyz=rotation,
            translation=translation,
            camera=camera,
            pixels=[(x, y) for x, y, _ in shown],
            points=[point for _, _, point in shown],
        )
    assert data.done()
    return images


def read_points(folder: Path) -> dict[int, ModelPoint]:
    data = _Bytes(folder / "points3D.bin")
    points = {}
    for _ in range(data.take("Q")[0]):
        (number,), position, color, (error,) = data.take("Q"), data.take("3d"), data.take("3B"), data.take("d")
        track = [data.take("II") for _ in range(data.take("Q")[0])]
        points[number] = ModelPoint(position=position, color=color, error_px=error, track=track)
    assert data.done()
    return points
