"""Photos at a bearable size: cameras, pixels and masks go together."""

from pathlib import Path

import numpy as np
import pytest
import torch
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs
from PIL import Image

from lora3d_ns.conventions import PixelAffine
from lora3d_ns.errors import StorageError
from lora3d_ns.photo_scene import SCENE_SUBFOLDER, PhotoScene
from lora3d_ns.plugin.motion import StillMaps, still_maps
from lora3d_ns.plugin.pipeline import Lora3dDataset
from lora3d_ns.scene_io.scenes import load_details

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


def test_pixels_that_move_do_not_count(tmp_path: Path) -> None:
    """A photo of 400 x 300 whose middle 300 x 300 the network saw as 6 x 6, something moving in one of these pixels."""
    Image.new("RGB", (400, 300), (200, 100, 50)).save(tmp_path / "0.png")
    moving = torch.zeros(6, 6, dtype=torch.bool)
    moving[1, 4] = True
    still = StillMaps(
        moving=[moving],
        source_from_network=[PixelAffine(scale_x=50.0, scale_y=50.0, offset_x_px=50.0, offset_y_px=0.0)],
        source_sizes=[(400, 300)],
    )
    expected = np.ones((300, 400, 1), dtype=bool)
    expected[50:100, 250:300] = False
    assert (still.at_size(0, (400, 300)).numpy() == expected).all()
    assert (still.at_size(0, (80, 60)).numpy() == expected[2::5, 2::5]).all()

    made = outputs(tmp_path, masks=True)
    width, height = SIZES[0]
    left = still.at_size(0, (width, height)).numpy()
    left[:, width // 2 :] = False
    whole = StillMaps(
        moving=[moving, *[torch.zeros(6, 6, dtype=torch.bool)] * (len(SIZES) - 1)],
        source_from_network=[PixelAffine(scale_x=50.0, scale_y=50.0, offset_x_px=50.0, offset_y_px=0.0)] * len(SIZES),
        source_sizes=[(400, 300), *SIZES[1:]],
    )
    assert (Lora3dDataset(made, still=whole).get_data(0, "uint8")["mask"].numpy() == left).all()
    made = outputs(tmp_path)
    masks = [Lora3dDataset(made, still=whole).get_data(number, "uint8")["mask"] for number in (0, 1)]
    assert not bool(masks[0].all())
    assert bool(masks[1].all())


def test_what_moves_is_read_from_the_scene(scene: PhotoScene) -> None:
    folder = scene.folder / SCENE_SUBFOLDER
    details = load_details(folder)
    assert details is not None
    names, sizes = [photo.name for photo in scene.training][::-1], [photo.size for photo in scene.training][::-1]
    found = still_maps(folder, names, sizes)
    for number, name in enumerate(names):
        moving = details.moving[details.names.index(name)]
        share = float((~found.at_size(number, sizes[number])).float().mean())
        assert share == pytest.approx(float(moving.float().mean()), abs=0.02)
    with pytest.raises(StorageError, match="was not kept"):
        still_maps(folder, ["another.png"], [(96, 64)])
