"""Depth and weight maps: back in space they are the scene's points, and nothing lies between the sides of an edge."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from export.export_samples import CROPPED, CUTOFF, LOST_PX, NAMES, VIEWS, made, made_details, parts
from PIL import Image

from lora3d_ns.cli import main
from lora3d_ns.conventions import PixelAffine
from lora3d_ns.errors import InvalidDataError, SettingsError
from lora3d_ns.export.crop import CropSettings
from lora3d_ns.export.depth import DepthSettings, depth_map
from lora3d_ns.export.exr import exr_bytes
from lora3d_ns.export.formats import Format, export_scene
from lora3d_ns.export.resample import at_photo_size
from lora3d_ns.scene_io.scenes import save_scene

NETWORK = DepthSettings(pixels="network")


def read_exr(path: Path, tmp_path: Path) -> np.ndarray:
    """By OpenCV's own OpenEXR, which has to be asked for before the process begins."""
    program = "import sys, cv2, numpy; numpy.save(sys.argv[2], cv2.imread(sys.argv[1], cv2.IMREAD_UNCHANGED))"
    subprocess.run(
        [sys.executable, "-c", program, str(path), str(tmp_path / "read.npy")],
        env={**os.environ, "OPENCV_IO_ENABLE_OPENEXR": "1"},
        check=True,
    )
    return np.load(tmp_path / "read.npy")


def read_map(folder: Path, entry: dict, what: str, tmp_path: Path) -> np.ndarray:
    path = folder / entry[what]
    step = json.loads((folder / "depth.json").read_text())[f"{what}_step"]
    if path.suffix == ".npz":
        return np.load(path)[what]
    if path.suffix == ".exr":
        return read_exr(path, tmp_path)
    values = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert values.dtype == np.uint16
    return (values * step).astype(np.float32)


def in_world(depth: np.ndarray, entry: dict) -> np.ndarray:
    """As the JSON says it."""
    height, width = depth.shape
    rows, columns = np.mgrid[:height, :width]
    rays = np.stack([columns + 0.5, rows + 0.5, np.ones_like(rows)], axis=-1) @ np.linalg.inv(entry["K"]).T
    T = np.array(entry["T_world_camera"])
    return (depth[..., None] * rays) @ T[:3, :3].T + T[:3, 3]


@pytest.mark.parametrize("to", ["depth-png", "depth-exr", "depth-npz"])
def test_maps_of_the_network_are_the_scenes_points(tmp_path: Path, to: Format) -> None:
    scene, details = made(), made_details()
    count = export_scene(scene, tmp_path / "maps", to, details=details, depth=NETWORK)
    assert count == VIEWS
    content = json.loads((tmp_path / "maps" / "depth.json").read_text())
    assert [entry["name"] for entry in content["maps"]] == list(NAMES)
    for view, entry in enumerate(content["maps"]):
        depth, weight = (read_map(tmp_path / "maps", entry, what, tmp_path) for what in ("depth", "weight"))
        assert depth.shape == (entry["height"], entry["width"]) == tuple(details.depths[view].shape)
        believed = (details.weights[view] >= CUTOFF) & ~details.moving[view]
        points = in_world(depth, entry)[believed.numpy()]
        # The scene's points are those of its photos in order, and their pixels in order.
        own = scene.points[scene.point_views == view].double().numpy()
        # 16 bits: half a step, along a ray.
        tolerance = content["depth_step"] if to == "depth-png" else 1e-5
        np.testing.assert_allclose(points, own, atol=tolerance)
        tolerance = content["weight_step"] if to == "depth-png" else 1e-6
        weights = scene.point_weights[scene.point_views == view].numpy()
        np.testing.assert_allclose(weight[believed.numpy()], weights, atol=tolerance)
        assert not weight[details.moving[view].numpy()].any()
        assert entry["pixels_beyond"] == 0
    # Steps so small that nobody minds.
    if to == "depth-png":
        assert content["depth_step"] < 1e-4 * float(details.depths[0].median())


def test_maps_of_the_photo_hold_the_same_points_where_pixels_meet() -> None:
    # Of three source pixels to one of the network's, the middle one shares its centre.
    scene, details = made(3.0), made_details(3.0)
    for view in range(VIEWS):
        whole = depth_map(scene, details, view, DepthSettings(), CropSettings())
        coarse = depth_map(scene, details, view, NETWORK, CropSettings())
        width, height = scene.cameras.sizes[view]
        assert whole.depth.shape == (height, width)
        torch.testing.assert_close(whole.K, scene.cameras.K[view].double())
        left, top = (LOST_PX["left"], LOST_PX["top"]) if view == CROPPED else (0, 0)
        rows, columns = coarse.depth.shape
        middle = whole.depth[top : top + 3 * rows, left : left + 3 * columns][1::3, 1::3]
        np.testing.assert_allclose(middle, coarse.depth, rtol=1e-6)
        weights = whole.weight[top : top + 3 * rows, left : left + 3 * columns][1::3, 1::3]
        np.testing.assert_allclose(weights, coarse.weight, rtol=1e-5, atol=1e-7)
        # What the network did not see is unknown.
        seen = np.zeros((height, width), dtype=bool)
        seen[top : top + 3 * rows, left : left + 3 * columns] = True
        assert np.array_equal(whole.depth > 0, seen)
        assert not whole.weight[~seen].any()


def test_planes_are_exact_between_pixels_and_edges_stay_sharp() -> None:
    affine = PixelAffine(scale_x=2.5, scale_y=2.5, offset_x_px=3.0, offset_y_px=-1.0)
    size = (70, 38)

    def plane(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Depth of an inclined plane at places of the network's image."""
        return 1.0 / (0.4 + 0.004 * x + 0.01 * y)

    rows, columns = np.mgrid[:16, :24] + 0.5
    near, far = plane(columns, rows).astype(np.float32), (3.0 * plane(columns, rows)).astype(np.float32)
    depth = np.where(columns < 12, near, far).astype(np.float32)
    depth[5, 4] = 0.0
    weight = np.where(columns < 12, 1.0, 2.0).astype(np.float32)
    weight[5, 4] = 0.0
    sampled, sampled_weight = at_photo_size(depth, weight, affine, size, edge_share=0.05)
    assert sampled.shape == (38, 70)
    y, x = np.mgrid[: size[1], : size[0]] + 0.5
    x, y = (x - affine.offset_x_px) / affine.scale_x, (y - affine.offset_y_px) / affine.scale_y
    inside = (x >= 0) & (x < 24) & (y >= 0) & (y < 16)
    assert np.array_equal(sampled[~inside], np.zeros((~inside).sum(), dtype=np.float32))
    truth = np.where(x < 12, 1.0, 3.0) * plane(x, y)
    # Away from the edge and from the hole four pixels are alike, and the plane is exact, at the border too.
    smooth = inside & (np.abs(x - 12) > 0.5) & ~((np.abs(x - 4.5) < 1) & (np.abs(y - 5.5) < 1))
    assert smooth.sum() > 0.9 * inside.sum()
    np.testing.assert_allclose(sampled[smooth], truth[smooth], rtol=1e-6)
    # At the edge every value is of the one side or of the other.
    known = inside & (sampled > 0)
    assert float(np.abs(sampled / truth - 1.0)[known].max()) < 0.02
    assert np.array_equal(sampled == 0, ~inside | ((np.floor(x) == 4) & (np.floor(y) == 5)))
    assert set(np.unique(sampled_weight[inside])) == {0.0, 1.0, 2.0}


def test_large_photos_are_made_in_bands() -> None:
    generator = np.random.default_rng(0)
    depth = generator.uniform(1.0, 1.02, (40, 30)).astype(np.float32)
    affine = PixelAffine(scale_x=16.0, scale_y=16.0, offset_x_px=0.0, offset_y_px=0.0)
    whole, _ = at_photo_size(depth, depth, affine, (480, 640), edge_share=0.05)
    lower = dataclasses.replace(affine, offset_y_px=-300.0)
    part, _ = at_photo_size(depth, depth, lower, (480, 340), edge_share=0.05)
    assert np.array_equal(whole[300:], part)


def test_png_saturates_and_never_wraps(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    scene, details = made(), made_details()
    far = details.depths[0].clone()
    far[0, 0], far[0, 1] = 1e6, 1e-7
    details = dataclasses.replace(details, depths=(far, *details.depths[1:]))
    export_scene(scene, tmp_path / "maps", "depth-png", details=details, depth=NETWORK)
    content = json.loads((tmp_path / "maps" / "depth.json").read_text())
    grey = np.asarray(Image.open(tmp_path / "maps" / content["maps"][0]["depth"]))
    # Too deep is the deepest; too near is not unknown.
    assert (grey[0, 0], grey[0, 1]) == (65535, 1)
    assert [entry["pixels_beyond"] for entry in content["maps"]] == [1, 0, 0, 0]
    assert "1 pixels are deeper" in caplog.text
    # The one pixel does not take the others' steps away.
    assert np.median(grey) >= 900
    export_scene(
        scene, tmp_path / "maps", "depth-png", details=details, depth=DepthSettings(pixels="network", png_step=0.001)
    )
    content = json.loads((tmp_path / "maps" / "depth.json").read_text())
    assert content["depth_step"] == 0.001
    grey = np.asarray(Image.open(tmp_path / "maps" / content["maps"][1]["depth"]))
    np.testing.assert_allclose(grey * 0.001, details.depths[1].numpy(), atol=0.0005 + 1e-6)


def test_maps_are_cropped_as_points_are(tmp_path: Path) -> None:
    scene, details = made(), made_details()
    views, _ = parts()
    # Walls are planes of points that share a coordinate: the box's sides lie beside them.
    low = (torch.quantile(scene.points, 0.2, dim=0) + 0.01).tolist()
    high = (torch.quantile(scene.points, 0.8, dim=0) - 0.01).tolist()
    box = ((low[0], low[1], low[2]), (high[0], high[1], high[2]))
    crop = CropSettings(least_weight=0.6, box=box)
    count = 0
    for view in range(VIEWS):
        known = depth_map(scene, details, view, NETWORK, crop).depth > 0
        count += int((known & ~details.moving[view].numpy()).sum())
    inside = ((scene.points >= torch.tensor(low)) & (scene.points <= torch.tensor(high))).all(dim=1)
    assert count == int((inside & (scene.point_weights >= 0.6)).sum()) > 100
    # A mask of the photo holds to its own pixels.
    width, height = scene.cameras.sizes[0]
    white = np.zeros((height, width), dtype=np.uint8)
    white[:, : width // 2 + 1] = 255
    (tmp_path / "cut").mkdir()
    Image.fromarray(white).save(tmp_path / "cut" / "photo_0.png")
    for settings, columns in ((DepthSettings(), width // 2 + 1), (NETWORK, width // 4)):
        made_map = depth_map(
            scene, details, 0, settings, CropSettings(masks=tmp_path / "cut"), mask=tmp_path / "cut" / "photo_0.png"
        )
        assert np.array_equal((made_map.depth > 0).all(axis=0), np.arange(made_map.depth.shape[1]) < columns)
    # What was masked in the reconstruction is unknown.
    mask = torch.ones(views.shapes[0], dtype=torch.bool)
    mask[:5] = False
    masked = depth_map(
        scene, dataclasses.replace(details, masks=(mask, *details.masks[1:])), 0, NETWORK, CropSettings()
    )
    assert np.array_equal(masked.depth > 0, mask.numpy())


def test_exr_is_what_openexr_reads(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for height, width in ((37, 51), (16, 8), (1, 1)):
        values = generator.standard_normal((height, width)).astype(np.float32)
        values[: height // 2] = 2.5
        (tmp_path / "image.exr").write_bytes(exr_bytes(values))
        assert np.array_equal(read_exr(tmp_path / "image.exr", tmp_path).reshape(height, width), values)


def test_the_command_writes_maps_of_a_scene_with_details(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    save_scene(made(), tmp_path / "scene", details=made_details())
    for to in ("depth-exr", "depth-npz"):
        main(["export", str(tmp_path / "scene"), "--to", to, "-o", str(tmp_path / "maps")])
    assert "Photos:   4" in capsys.readouterr().out
    names = sorted(path.relative_to(tmp_path / "maps").as_posix() for path in (tmp_path / "maps").rglob("*.*"))
    assert names == sorted(["depth.json", "lora3d.json", *(f"depth/photo_{view}.npz" for view in range(VIEWS))])
    arrays = np.load(tmp_path / "maps" / "depth" / "photo_1.npz")
    np.testing.assert_allclose(arrays["K"], made().cameras.K[1].double().numpy())
    np.testing.assert_allclose(arrays["T_world_camera"], made().cameras.T_world_camera[1].double().numpy())
    # A scene that was saved without them says so.
    save_scene(made(), tmp_path / "bare")
    with pytest.raises(SystemExit) as left:
        main(["export", str(tmp_path / "bare"), "--to", "depth-png", "-o", str(tmp_path / "png")])
    assert left.value.code == 2
    assert "saved without the details" in capsys.readouterr().err


def test_wrong_settings_and_foreign_details_are_refused(tmp_path: Path) -> None:
    scene, details = made(), made_details()
    with pytest.raises(SettingsError, match="--cameras"):
        export_scene(scene, tmp_path / "maps", "depth-png", details=details, cameras=tmp_path / "refined.json")
    with pytest.raises(SettingsError):
        DepthSettings(png_step=0.0)
    other = dataclasses.replace(details, names=("x.png", *NAMES[1:]))
    with pytest.raises(InvalidDataError, match="another scene"):
        export_scene(scene, tmp_path / "maps", "depth-png", details=other)
    outside = ("../out.png", *NAMES[1:])
    with pytest.raises(InvalidDataError, match="points out of its folder"):
        export_scene(
            dataclasses.replace(scene, names=outside),
            tmp_path / "maps",
            "depth-png",
            details=dataclasses.replace(details, names=outside),
        )
    with pytest.raises(InvalidDataError, match="no pixel"):
        export_scene(scene, tmp_path / "maps", "depth-png", details=details, crop=CropSettings(least_weight=100.0))
    assert not (tmp_path / "maps").exists()
