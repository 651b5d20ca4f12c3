"""Photos at a bearable size: cameras, pixels and masks go together."""

from pathlib import Path

import numpy as np
import pytest
import torch
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs
from PIL import Image

from lora3d_ns.plugin.pipeline import Lora3dDataset

SIZES = ((403, 302), (302, 403), (64, 48), (4032, 3024), (1000, 333))


def outputs(folder: Path, *, masks: bool = False, mode: str = "RGB") -> DataparserOutputs:
    """A photo of each size with its camera; masks that keep the left half."""
    files, mask_files = [], []
    for number, (width, height) in enumerate(SIZES):
        files.append(folder / f"{number}.png")
        Image.new(mode, (width, height), 128 if mode == "L" else (200, 100, 50)).save(files[-1])
        mask_files.append(folder / f"mask{number}.png")
        mask = np.zeros((height, width), dtype=np.uint8)
        mask[:, : width // 2] = 255
        Image.fromarray(mask).save(mask_files[-1])
    width, height = (torch.tensor([size[axis] for size in SIZES]) for axis in (0, 1))
    cameras = Cameras(
        camera_to_worlds=torch.eye(4)[None, :3].repeat(len(SIZES), 1, 1),
        fx=width * 0.8,
        fy=width * 0.8,
        cx=width * 0.5,
        cy=height * 0.5,
        width=width,
        height=height,
        camera_type=CameraType.PERSPECTIVE,
    )
    return DataparserOutputs(image_filenames=files, cameras=cameras, mask_filenames=mask_files if masks else None)


@pytest.mark.parametrize("longest", [None, 1600, 256, 101, 7])
def test_photos_and_cameras_have_one_size(tmp_path: Path, longest: int | None) -> None:
    dataset = Lora3dDataset(outputs(tmp_path, masks=True), 1.0, longest)
    for number, (width, height) in enumerate(SIZES):
        data = dataset.get_data(number, "uint8")
        camera = dataset.cameras[number]
        shape = (int(camera.height), int(camera.width))
        assert data["image"].shape == (*shape, 3)
        assert data["mask"].shape == (*shape, 1)
        limit = min(max(width, height), longest or 10_000)
        assert max(shape) == limit
        # The same rays: intrinsics in shares of the picture's sides do not change.
        for value, side, source in (
            (camera.cx, shape[1], 0.5),
            (camera.cy, shape[0], 0.5),
            (camera.fx, shape[1], 0.8),
            (camera.fy, shape[0], 0.8 * width / height),
        ):
            assert float(value) / side == pytest.approx(source, rel=1e-5)


def test_a_photo_that_fits_is_read_as_it_is(tmp_path: Path) -> None:
    made = outputs(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(made.image_filenames[2])
    assert np.array_equal(Lora3dDataset(made, 1.0, 64).get_numpy_image(2), pixels)


def test_scale_factor_and_limit_together(tmp_path: Path) -> None:
    dataset = Lora3dDataset(outputs(tmp_path), 0.5, 256)
    assert [int(width) for width in dataset.cameras.width] == [202, 151, 32, 256, 256]


def test_grey_photos_and_float_pixels(tmp_path: Path) -> None:
    data = Lora3dDataset(outputs(tmp_path, mode="L"), 1.0, 32).get_data(0)
    assert data["image"].dtype == torch.float32
    assert torch.allclose(data["image"], torch.full_like(data["image"], 128 / 255))


def test_a_pixel_counts_only_if_all_of_it_does(tmp_path: Path) -> None:
    dataset = Lora3dDataset(outputs(tmp_path, masks=True), 1.0, 101)
    for number in range(len(SIZES)):
        mask = dataset.get_data(number)["mask"][..., 0]
        share = SIZES[number][0] // 2 / SIZES[number][0]
        columns = int(np.floor(share * mask.shape[1] + 1e-9))
        assert bool(mask[:, :columns].all())
        assert not bool(mask[:, columns + 1 :].any())
