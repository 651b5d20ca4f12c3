"""Scene, export, known cameras: the same K and poses to a millionth, whatever the photos' files are like."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pycolmap
import pytest
import torch
import trimesh
from export.export_samples import CROPPED, NAMES, VIEWS, made, write_photos, write_refined
from reference.colmap_model import read_images, read_points

from lora3d_ns.cli import main
from lora3d_ns.conventions import opencv_from_opengl
from lora3d_ns.errors import InvalidDataError, KnownCameraError, SettingsError
from lora3d_ns.export.cameras import refined_cameras
from lora3d_ns.export.formats import Format, export_scene
from lora3d_ns.export.tracks import own_pixels
from lora3d_ns.images import PhotoSettings, load_views
from lora3d_ns.scene_io.scenes import save_scene
from lora3d_ns.types import Cameras, Views


@pytest.fixture(name="photos")
def _photos(tmp_path: Path) -> Path:
    return write_photos(tmp_path / "photos", made())


def assert_known(views: Views, cameras: Cameras, *, of_view: Callable[[str], int] = NAMES.index) -> None:
    """All photos have the cameras, in upright source pixels, to a millionth."""
    assert len(views) == VIEWS
    for name, size, K, T in zip(
        views.names, views.source_sizes, views.known_K, views.known_T_world_camera, strict=True
    ):
        view = of_view(name)
        assert size == cameras.sizes[view]
        assert K is not None
        assert T is not None
        torch.testing.assert_close(K, cameras.K[view].double(), atol=1e-6, rtol=0.0)
        torch.testing.assert_close(T, cameras.T_world_camera[view].double(), atol=1e-6, rtol=0.0)


EXPORTS: list[tuple[Format, bool, str]] = [
    ("nerfstudio", True, "transforms.json"),
    ("nerfstudio", True, "."),
    ("colmap", False, "."),
    ("colmap-text", False, "."),
    ("colmap", True, "."),
    ("colmap-text", True, "sparse/0"),
]


@pytest.mark.parametrize(("to", "with_photos", "known"), EXPORTS)
def test_exports_are_known_cameras_of_the_photos(
    photos: Path, tmp_path: Path, to: Format, with_photos: bool, known: str
) -> None:
    scene = made()
    export_scene(scene, tmp_path / "data", to, photos=photos if with_photos else None)
    settings = PhotoSettings(size=32, known_cameras=tmp_path / "data" / known)
    views = load_views(photos, settings)
    assert_known(views, scene.cameras)
    # The cropped photo's camera is not centred: what the network saw of it would be.
    K = views.known_K[CROPPED]
    assert K is not None
    assert abs(float(K[0, 2]) - views.source_sizes[CROPPED][0] / 2) == 1.0
    if to == "colmap" and with_photos:
        # And of the upright copies, which EXIF turns no more.
        copies = load_views(tmp_path / "data", settings)
        stems = [Path(name).stem for name in NAMES]
        assert_known(copies, scene.cameras, of_view=lambda name: stems.index(Path(name).stem))


@pytest.mark.parametrize("known", ["scene", "scene/cameras.json", "around"])
def test_a_finished_scene_is_known_cameras_of_its_photos(photos: Path, tmp_path: Path, known: str) -> None:
    save_scene(made(), tmp_path / ("around/scene" if known == "around" else "scene"))
    assert_known(
        load_views(photos, PhotoSettings(size=32, known_cameras=tmp_path / known)),
        made().cameras,
    )


# --- refined cameras ------------------------------------------------------------------------------


def moved(cameras: Cameras) -> Cameras:
    """The cameras a little turned, shifted and zoomed, all but the first."""
    turned = cameras.T_world_camera.double().clone()
    for view in range(1, len(cameras)):
        angle = torch.tensor(np.radians(0.3 * view), dtype=torch.float64)
        rotation = torch.eye(3, dtype=torch.float64)
        rotation[0, 0] = rotation[2, 2] = torch.cos(angle)
        rotation[0, 2], rotation[2, 0] = torch.sin(angle), -torch.sin(angle)
        turned[view, :3, :3] = turned[view, :3, :3] @ rotation
        turned[view, :3, 3] += 0.01 * view
    K = cameras.K.double().clone()
    K[:, [0, 1], [0, 1]] *= 1.01
    return Cameras(T_world_camera=turned, K=K, sizes=cameras.sizes)


@pytest.fixture(name="run")
def _run(tmp_path: Path) -> Path:
    """The folder of a training of splats."""
    run = tmp_path / "lora3d-splat" / "2026-01-01_000000"
    write_refined(run / "refined_cameras.json", made(), moved(made().cameras))
    return run


def test_refined_cameras_are_read_and_are_known_cameras(photos: Path, run: Path) -> None:
    expected = moved(made().cameras)
    read = refined_cameras(made(), run)
    torch.testing.assert_close(read.K, expected.K, atol=1e-9, rtol=0.0)
    torch.testing.assert_close(read.T_world_camera, expected.T_world_camera, atol=1e-6, rtol=0.0)
    assert_known(load_views(photos, PhotoSettings(size=32, known_cameras=run)), expected)


@pytest.mark.parametrize("to", ["nerfstudio", "colmap"])
def test_refined_cameras_come_back_from_exports(photos: Path, tmp_path: Path, run: Path, to: Format) -> None:
    export_scene(made(), tmp_path / "data", to, photos=photos, cameras=run / "refined_cameras.json")
    views = load_views(photos, PhotoSettings(size=32, known_cameras=tmp_path / "data"))
    assert_known(views, moved(made().cameras))


def test_points_and_the_pixels_that_show_them_stay_where_cameras_move(tmp_path: Path, run: Path) -> None:
    scene = made()
    export_scene(scene, tmp_path / "before", "colmap")
    export_scene(scene, tmp_path / "after", "colmap", cameras=run)
    before, after = (read_points(tmp_path / name) for name in ("before", "after"))
    assert [point.position for point in before.values()] == [point.position for point in after.values()]
    assert [point.track for point in before.values()] == [point.track for point in after.values()]
    images = [read_images(tmp_path / name) for name in ("before", "after")]
    assert [image.pixels for image in images[0].values()] == [image.pixels for image in images[1].values()]
    # The pixels are what the photos show: with cameras that were moved away on purpose they fit worse.
    errors_px = [
        pycolmap.Reconstruction(tmp_path / name).compute_mean_reprojection_error() for name in ("before", "after")
    ]
    assert errors_px[1] > 1.5 * errors_px[0]


def test_glb_draws_refined_cameras(tmp_path: Path, run: Path) -> None:
    export_scene(made(), tmp_path / "scene.glb", "glb", cameras=run)
    loaded = trimesh.load(tmp_path / "scene.glb")
    assert isinstance(loaded, trimesh.Scene)
    for name, T in zip(NAMES, moved(made().cameras).T_world_camera, strict=True):
        lines = np.asarray(loaded.geometry[f"camera {name}"].vertices) * [1.0, -1.0, -1.0]
        assert np.linalg.norm(lines - T[:3, 3].numpy(), axis=1).min() < 1e-4


def test_the_command_takes_the_folder_of_a_training(photos: Path, tmp_path: Path, run: Path) -> None:
    # The folder around the scene, as a training leaves it.
    save_scene(made(), tmp_path / "lora3d-scene-0123456789" / "scene")
    main(
        [
            *("export", str(tmp_path / "lora3d-scene-0123456789"), "--to", "nerfstudio", "-o", str(tmp_path / "data")),
            *("--photos", str(photos), "--cameras", str(run)),
        ]
    )
    frames = json.loads((tmp_path / "data" / "transforms.json").read_text())["frames"]
    T = opencv_from_opengl(torch.tensor([frame["transform_matrix"] for frame in frames], dtype=torch.float64))
    torch.testing.assert_close(T, moved(made().cameras).T_world_camera, atol=1e-6, rtol=0.0)


def test_cameras_that_belong_elsewhere_are_refused(photos: Path, tmp_path: Path, run: Path) -> None:
    scene = made()
    cameras = scene.cameras
    _, depths = own_pixels(scene)
    away = cameras.T_world_camera.clone()
    away[1:, :3, 3] += 0.2 * float(depths.median())
    other_size = dataclasses.replace(cameras, sizes=((10, 20), *cameras.sizes[1:]))
    for wrong, problem in (
        (dataclasses.replace(cameras, T_world_camera=away), "of the scene's depth away"),
        (other_size, "64x48"),
    ):
        path = write_refined(tmp_path / "wrong.json", scene, wrong)
        with pytest.raises(InvalidDataError, match=problem) as caught:
            refined_cameras(scene, path)
        assert str(path) in str(caught.value)
    other = dataclasses.replace(scene, names=("x.png", *NAMES[1:]))
    with pytest.raises(InvalidDataError, match=r"photo_0\.png"):
        refined_cameras(scene, write_refined(tmp_path / "other.json", other, cameras))
    # transforms.json of another program may mean photos as they are stored.
    export_scene(scene, tmp_path / "data", "nerfstudio", photos=photos)
    content = json.loads((tmp_path / "data" / "transforms.json").read_text())
    del content["lora3d_pixels"]
    (tmp_path / "theirs.json").write_text(json.dumps(content))
    with pytest.raises(KnownCameraError, match=r"theirs\.json.*stored"):
        refined_cameras(scene, tmp_path / "theirs.json")
    with pytest.raises(SettingsError, match="no cameras"):
        export_scene(scene, tmp_path / "cloud.ply", "ply", cameras=run)
