"""Damaged photos: whatever the bytes, there are views or a named error, never anything else.

`LORA3D_FUZZ_EXAMPLES` raises the number of inputs for a longer private run; `LORA3D_FUZZ_RANDOM=1` lets them vary.
"""

import io
import json
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from PIL import Image

from lora3d_ns.camera_files import read_known_cameras
from lora3d_ns.errors import KnownCameraError, Lora3dError
from lora3d_ns.images import PhotoSettings, load_views
from lora3d_ns.known_cameras import PhotoPixels, cameras_of_photos

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
            max_size=3,
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

numbers = st.one_of(
    st.floats(),
    st.integers(-(10**6), 10**6),
    st.just(10**400),
    st.sampled_from([0, 1, -1, 640, 480, 500.0, None, True, "500", [], {}]),
)
pose_rows = st.sampled_from([[1, 0, 0, 2], [0, 1, 0, 3], [0, 0, 1, 4], [0, 0, 0, 1], [0, -1, 0, 5]])
matrices = st.one_of(
    st.just([[1, 0, 0, 2], [0, 1, 0, 3], [0, 0, 1, 4], [0, 0, 0, 1]]),
    st.just([[500, 0, 320], [0, 500, 240], [0, 0, 1]]),
    st.lists(pose_rows, max_size=5),
    st.lists(st.lists(numbers, max_size=4), max_size=4),
    numbers,
)
names = st.one_of(
    st.sampled_from(
        ["IMG_0.jpg", "images/IMG_1.jpg", "./IMG_2.jpg", "/photos/IMG_0.jpg", "IMG_1", "..\\IMG_2.jpg", ""]
    ),
    st.text(max_size=6),
    st.just("\0"),
    st.just("\ud800.jpg"),
)
own_files = st.fixed_dictionaries(
    {
        "cameras": st.dictionaries(
            names, st.one_of(numbers, st.fixed_dictionaries({}, optional={"K": matrices, "T_world_camera": matrices}))
        )
    },
    optional={"pixel_centres": st.sampled_from(["half", "integer", "centre", 1])},
)
intrinsic_values = dict.fromkeys(("fl_x", "fl_y", "cx", "cy", "w", "h", "k1", "p2", "camera_angle_x"), numbers)
models = st.sampled_from(["OPENCV", "PINHOLE", "SIMPLE_PINHOLE", "OPENCV_FISHEYE", 3, None])
transforms = st.fixed_dictionaries(
    {
        "frames": st.one_of(
            numbers,
            st.lists(
                st.one_of(
                    numbers,
                    st.fixed_dictionaries(
                        {"file_path": st.one_of(names, numbers)},
                        optional={**intrinsic_values, "transform_matrix": matrices},
                    ),
                ),
                max_size=4,
            ),
        )
    },
    optional={**intrinsic_values, "camera_model": models},
)
anything = st.recursive(
    numbers, lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=4), inner), max_leaves=8
)


@settings(fuzz, max_examples=max(400, PHOTO_EXAMPLES // 4))
@given(content=st.one_of(own_files, transforms, anything), flips=st.lists(st.integers(0, 255), max_size=2))
def test_broken_camera_files_give_cameras_or_a_named_error(folder: Path, content: object, flips: list[int]) -> None:
    encoded = bytearray(json.dumps(content).encode())
    for flip in flips:
        encoded[flip % len(encoded)] ^= flip or 1
    (folder / "cameras.json").write_bytes(encoded)
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
