"""Parts of a scene: by weight, by a box, by masks."""

from pathlib import Path

import numpy as np
import pytest
import torch
from export.export_samples import CROPPED, made
from PIL import Image
from plyfile import PlyData

from lora3d_ns.cli import main
from lora3d_ns.errors import InvalidDataError, MaskError, SettingsError
from lora3d_ns.export.crop import CropSettings, cropped
from lora3d_ns.export.tracks import own_pixels
from lora3d_ns.scene_io.scenes import save_scene


def test_cropping_by_weight_and_box() -> None:
    scene = made()
    low = torch.quantile(scene.points, 0.25, dim=0)
    high = torch.quantile(scene.points, 0.75, dim=0)
    box = (tuple(low.tolist()), tuple(high.tolist()))
    kept = cropped(scene, CropSettings(least_weight=0.6, box=box))
    expected = (scene.point_weights >= 0.6) & (scene.points >= low).all(dim=1) & (scene.points <= high).all(dim=1)
    assert 0 < int(expected.sum()) < 0.5 * len(scene.points)
    assert torch.equal(kept.points, scene.points[expected])
    assert torch.equal(kept.point_views, scene.point_views[expected])
    with pytest.raises(InvalidDataError):
        cropped(scene, CropSettings(least_weight=100.0))
    with pytest.raises(SettingsError):
        CropSettings(box=((0.0, 0.0, 0.0), (1.0, -1.0, 1.0)))
    with pytest.raises(SettingsError):
        CropSettings(least_weight=-1.0)


def test_cropping_by_masks(tmp_path: Path) -> None:
    scene = made()
    folder = tmp_path / "cut"
    folder.mkdir()
    # One mask by the whole name and one by the bare one; the cropped photo's has its size, not the network's.
    for view, name in ((1, "photo_1.jpg.png"), (CROPPED, "photo_3.png")):
        width, height = scene.cameras.sizes[view]
        white = np.zeros((height, width), dtype=np.uint8)
        white[: height // 3] = 255
        Image.fromarray(white).save(folder / name)
    pixels, _ = own_pixels(scene)
    masked = (scene.point_views == 1) | (scene.point_views == CROPPED)
    heights = torch.tensor([height // 3 for _, height in scene.cameras.sizes])[scene.point_views.long()]
    upper = pixels[:, 1] < heights
    assert 0 < int((masked & upper).sum()) < int(masked.sum())
    kept = cropped(scene, CropSettings(masks=folder))
    assert torch.equal(kept.points, scene.points[~masked | upper])
    kept = cropped(scene, CropSettings(masks=folder, mask_means="ignore"))
    assert torch.equal(kept.points, scene.points[~masked | ~upper])


@pytest.mark.parametrize(
    ("name", "size", "white", "problem"),
    [
        ("other.png", (64, 48), 255, "no mask has the name"),
        ("photo_0.png", (48, 64), 255, r"48x64.*64x48"),
        ("photo_0.png", (64, 48), 1, "0 and 1"),
        (None, (1, 1), 255, "no such folder"),
    ],
)
def test_wrong_masks_are_named(
    tmp_path: Path, name: str | None, size: tuple[int, int], white: int, problem: str
) -> None:
    folder = tmp_path / "masks"
    if name is not None:
        folder.mkdir()
        Image.new("L", size, white).save(folder / name)
    with pytest.raises(MaskError, match=problem) as caught:
        cropped(made(), CropSettings(masks=folder))
    assert str(folder) in str(caught.value)


def test_the_command_crops(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    scene = made()
    save_scene(scene, tmp_path / "scene")
    (tmp_path / "masks").mkdir()
    Image.new("L", scene.cameras.sizes[0], 255).save(tmp_path / "masks" / "photo_0.png")
    options = ["--masks", str(tmp_path / "masks"), "--mask-means", "ignore", "--least-weight", "0.6"]
    main(["export", str(tmp_path / "scene"), "--to", "ply", "-o", str(tmp_path / "cloud.ply"), *options])
    kept = (scene.point_views != 0) & (scene.point_weights >= 0.6)
    assert f"Points:   {int(kept.sum())}\n" in capsys.readouterr().out
    vertices = PlyData.read(str(tmp_path / "cloud.ply"))["vertex"]
    np.testing.assert_array_equal(vertices["view"], scene.point_views[kept].numpy())
