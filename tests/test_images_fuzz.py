"""Damaged photos: whatever the bytes, there are views or a named error, never anything else.

`LORA3D_FUZZ_EXAMPLES` raises the number of inputs for a longer private run; `LORA3D_FUZZ_RANDOM=1` lets them vary.
"""

import copy
import io
import json
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from PIL import Image

from lora3d_ns.errors import KnownCameraError, Lora3dError
from lora3d_ns.images import PhotoSettings, load_views
from lora3d_ns.photos.camera_files import read_known_cameras
from lora3d_ns.photos.known_cameras import PhotoPixels, cameras_of_photos

PHOTO_EXAMPLES = int(os.environ.get("LORA3D_FUZZ_EXAMPLES", "1400"))
# A flipped bit may well ask for gigabytes; 4 megapixels are plenty for photos of 48 x 40.
SETTINGS = PhotoSettings(size=32, patch_size=8, max_megapixels=4.0)

fuzz = settings(
    deadline=None,
    derandomize=not os.environ.get("LORA3D_FUZZ_RANDOM"),
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large],
)


def _photo(seed: int) -> Image.Image:
    """Smooth enough to compress well, rich enough to fill every part of a format."""
    generator = np.random.default_rng(seed)
    rough = Image.fromarray(generator.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    return rough.resize((48, 40), Image.Resampling.BICUBIC)


def _encoded(image: Image.Image, image_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=image_format, **options)
    return buffer.getvalue()


def _exif() -> bytes:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "Maker"
    exif.get_ifd(0x8769).update({0x920A: 4.2, 0xA405: 26, 0xA434: "Lens"})
    return exif.tobytes()


def _seeds() -> dict[str, bytes]:
    photo = _photo(0)
    transparent = photo.copy()
    transparent.putalpha(photo.convert("L"))
    deep = Image.fromarray(np.asarray(photo.convert("L")).astype(np.uint16) * 257)
    seeds = {
        "jpeg": _encoded(photo, "JPEG", exif=_exif()),
        "jpeg progressive": _encoded(photo, "JPEG", progressive=True),
        "jpeg cmyk": _encoded(photo.convert("CMYK"), "JPEG"),
        "png": _encoded(photo, "PNG", exif=_exif()),
        "png rgba": _encoded(transparent, "PNG"),
        "png palette": _encoded(photo.quantize(16), "PNG", transparency=3),
        "png 16 bits": _encoded(deep, "PNG"),
        "webp": _encoded(photo, "WEBP", exif=_exif()),
        "webp lossless": _encoded(transparent, "WEBP", lossless=True),
        "tiff": _encoded(photo, "TIFF", exif=_exif()),
        "tiff lzw": _encoded(photo, "TIFF", compression="tiff_lzw"),
        "tiff deflate": _encoded(deep, "TIFF", compression="tiff_adobe_deflate"),
        "tiff jpeg": _encoded(photo, "TIFF", compression="jpeg"),
        "tiff floating point": _encoded(photo.convert("F"), "TIFF"),
        "gif": _encoded(photo, "GIF"),
        "bmp": _encoded(photo, "BMP"),
    }
    try:
        import pillow_heif
    except ImportError:
        return seeds
    buffer = io.BytesIO()
    pillow_heif.from_pillow(photo).save(buffer, quality=60, exif=_exif())
    return {**seeds, "heic": buffer.getvalue(), "heic again": buffer.getvalue()}


SEEDS = _seeds()
MAGICS = [
    b"\xff\xd8\xff\xe0",
    b"\x89PNG\r\n\x1a\n",
    b"RIFF\x40\x00\x00\x00WEBPVP8 ",
    b"II*\0\x08\0\0\0",
    b"MM\0*\0\0\0\x08",
    b"II+\0\x08\0\0\0\x10\0\0\0\0\0\0\0",
    b"\0\0\0\x18ftypheic",
]


@st.composite
def damaged_photos(draw: st.DrawFn) -> bytes:
    """A valid file, damaged in one or several ways."""
    content = bytearray(SEEDS[draw(st.sampled_from(sorted(SEEDS)))])
    for kind in draw(
        st.lists(
            st.sampled_from(["flip", "flip early", "truncate", "splice", "drop", "random", "magic"]),
            min_size=1,
            max_size=2,
        )
    ):
        position = draw(st.integers(0, max(0, len(content) - 1)))
        if kind in ("flip", "flip early"):
            # Most of what a decoder decides it decides at the beginning.
            reach = min(len(content), 200) if kind == "flip early" else len(content)
            for _ in range(draw(st.integers(1, 8))):
                if reach:
                    content[draw(st.integers(0, reach - 1))] ^= draw(st.integers(1, 255))
        elif kind == "truncate":
            del content[position:]
        elif kind == "splice":
            other = SEEDS[draw(st.sampled_from(sorted(SEEDS)))]
            content[position:] = other[min(position, len(other)) :]
        elif kind == "drop":
            del content[position : position + draw(st.integers(1, 64))]
        elif kind == "random":
            content[position : position + 16] = draw(st.binary(min_size=1, max_size=48))
        else:
            magic = draw(st.sampled_from(MAGICS))
            content[: len(magic)] = magic
    return bytes(content)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz")
    _photo(1).save(folder / "sound.png")
    return folder


@settings(fuzz, max_examples=PHOTO_EXAMPLES)
@given(content=damaged_photos())
def test_damaged_photos_give_views_or_a_named_error(folder: Path, content: bytes) -> None:
    (folder / "damaged.png").write_bytes(content)
    problem = views = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            views = load_views([folder / "sound.png", folder / "damaged.png"], SETTINGS)
        except Lora3dError as error:
            problem = error
    event("loaded" if problem is None else type(problem).__name__)
    if views is None:
        assert "damaged.png" in str(problem)
        return
    image, mask = views.images[1], views.masks[1]
    width, height = views.source_sizes[1]
    assert width * height <= 4e6
    assert max(image.shape) == 32
    assert torch.isfinite(image).all()
    assert image.min() >= 0
    assert image.max() <= 1
    assert mask is None or mask.any()
    assert 0 <= views.cropped_fractions[1] < 1


# --- known cameras ------------------------------------------------------------------------------

PHOTOS = [
    PhotoPixels(name=f"IMG_{index}.jpg", path=Path(f"/photos/IMG_{index}.jpg"), stored_size=(640, 480), orientation=6)
    for index in range(3)
]

_SOUND_K = [[500, 0, 320], [0, 500, 240], [0, 0, 1]]
_SOUND_POSE = [[1, 0, 0, 2], [0, 0, -1, 3], [0, 1, 0, 4], [0, 0, 0, 1]]
SOUND_FILES = [
    {
        "pixel_centres": "integer",
        "cameras": {
            "IMG_0.jpg": {"K": _SOUND_K, "T_world_camera": _SOUND_POSE},
            "images/IMG_1.jpg": {"K": _SOUND_K},
            "./IMG_2.jpg": {"T_world_camera": _SOUND_POSE},
        },
    },
    {
        "camera_model": "OPENCV",
        "fl_x": 500.0,
        "fl_y": 510,
        "cx": 320,
        "cy": 240,
        "w": 640,
        "h": 480,
        "k1": 0,
        "frames": [
            {"file_path": "/photos/IMG_0.jpg", "transform_matrix": _SOUND_POSE},
            {"file_path": "images/IMG_1", "transform_matrix": _SOUND_POSE, "fl_x": 600},
            {"file_path": "IMG_2.jpg", "w": 320, "h": 240, "p2": 0.0},
        ],
    },
    {"camera_angle_x": 1.0, "w": 640, "h": 480, "frames": [{"file_path": "IMG_0.jpg"}]},
]
junk = st.one_of(
    st.floats(),
    st.integers(-1000, 1000),
    st.text(max_size=4),
    st.sampled_from([10**400, -1, 1e-300, 1e300, None, True, [], {}, [[]], "\0", "\ud800.jpg", "..\\IMG_2.jpg"]),
    st.sampled_from([_SOUND_K, _SOUND_POSE, _SOUND_POSE[:3]]),
)


@st.composite
def damaged_camera_files(draw: st.DrawFn) -> bytes:
    """A sound file with up to three values replaced, removed or renamed, and now and then a flipped byte."""
    content: object = copy.deepcopy(draw(st.sampled_from(SOUND_FILES)))
    for _ in range(draw(st.integers(0, 3))):
        parent: object = content
        while isinstance(parent, (dict, list)) and parent:
            key: Any = draw(st.sampled_from(sorted(parent) if isinstance(parent, dict) else range(len(parent))))
            inner = parent[key]
            if not isinstance(inner, (dict, list)) or not inner or draw(st.integers(0, 4)) == 0:
                change = draw(st.sampled_from(["replace", "replace", "remove", "rename"]))
                if change == "remove":
                    del parent[key]
                elif change == "rename" and isinstance(parent, dict):
                    parent[draw(st.text(max_size=4))] = parent.pop(key)
                else:
                    parent[key] = copy.deepcopy(draw(junk))
                break
            parent = inner
    encoded = bytearray(json.dumps(content).encode())
    if draw(st.integers(0, 9)) == 0:
        encoded[draw(st.integers(0, len(encoded) - 1))] ^= draw(st.integers(1, 255))
    return bytes(encoded)


@settings(fuzz, max_examples=max(400, PHOTO_EXAMPLES // 4))
@given(content=damaged_camera_files())
def test_broken_camera_files_give_cameras_or_a_named_error(folder: Path, content: bytes) -> None:
    (folder / "cameras.json").write_bytes(content)
    problem = cameras = None
    try:
        cameras = cameras_of_photos(read_known_cameras(folder / "cameras.json"), PHOTOS)
    except KnownCameraError as error:
        problem = error
    event("read" if problem is None else type(problem).__name__)
    if cameras is None:
        assert "cameras.json" in str(problem)
        return
    all_K, all_poses = cameras
    assert len(all_K) == len(all_poses) == len(PHOTOS)
    for K in all_K:
        assert K is None or (torch.isfinite(K).all() and K[0, 0] > 0 and K[1, 1] > 0)
    for pose in all_poses:
        if pose is not None:
            identity = torch.eye(3, dtype=torch.float64)
            torch.testing.assert_close(pose[:3, :3] @ pose[:3, :3].T, identity)
            assert torch.linalg.det(pose[:3, :3]) > 0


@pytest.mark.parametrize("content", [b"", b"[" * 100000, b"\xff\xfe\x00", b'{"cameras": {"a": {}, "a": {}}}', b"null"])
def test_camera_files_that_are_no_json_of_ours(folder: Path, content: bytes) -> None:
    (folder / "cameras.json").write_bytes(content)
    with pytest.raises(KnownCameraError, match=r"cameras\.json"):
        read_known_cameras(folder / "cameras.json")
