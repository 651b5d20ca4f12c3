"""Scenes in other programs' formats: read back by those programs, the same cameras, points and pixels."""

import dataclasses
import functools
import json
from pathlib import Path

import numpy as np
import pycolmap
import pytest
import torch
import trimesh
from alignment.aligned_rooms import OFF, exact, room
from PIL import Image
from plyfile import PlyData

from lora3d_ns.alignment.align import align
from lora3d_ns.cli import main
from lora3d_ns.conventions import opencv_from_opengl
from lora3d_ns.errors import InvalidDataError, SettingsError, StorageError
from lora3d_ns.export.crop import CropSettings, cropped
from lora3d_ns.export.formats import export_scene
from lora3d_ns.export.tracks import TrackSettings, own_pixels, project, tracks_of
from lora3d_ns.photos.camera_files import read_known_cameras
from lora3d_ns.reconstruct import scene_of
from lora3d_ns.scene_io.scenes import save_scene
from lora3d_ns.types import Scene

VIEWS = 4
SHAPES = ((24, 32), (32, 24))


@functools.cache
def made() -> Scene:
    """A room in landscape and portrait, two source pixels to one of the network's, with weights of all sizes."""
    photos = room(VIEWS, shapes=SHAPES, source_scale=2.0, seed=2)
    aligned = align(photos.views, exact(VIEWS, shapes=SHAPES, seed=2), OFF)
    cameras = dataclasses.replace(
        photos.cameras, T_world_camera=photos.cameras.T_world_camera, sizes=photos.views.source_sizes
    )
    generator = torch.Generator().manual_seed(0)
    weights = tuple(0.2 + torch.rand(depth.shape, generator=generator) for depth in photos.depths_m)
    aligned = dataclasses.replace(aligned, cameras=cameras, depths=photos.depths_m, view_weights=weights)
    scene = scene_of(photos.views, aligned, cutoff=0.1, provenance={})
    return dataclasses.replace(scene, names=tuple(f"photo {view}.png" for view in range(VIEWS)))


@pytest.fixture(name="photos")
def _photos(tmp_path: Path) -> Path:
    """Files of the scene's photos; the second is stored on its side, with a note in its EXIF data."""
    folder = tmp_path / "photos"
    folder.mkdir()
    scene = made()
    for view, (name, (width, height)) in enumerate(zip(scene.names, scene.cameras.sizes, strict=True)):
        pixels = np.full((height, width, 3), 40 * view, dtype=np.uint8)
        pixels[: height // 2] = 255
        if view != 1:
            Image.fromarray(pixels).save(folder / name)
            continue
        exif = Image.Exif()
        exif[0x0112] = 6  # to be turned clockwise by a quarter
        Image.fromarray(np.rot90(pixels).copy()).save(folder / name, exif=exif)
    return folder


# --- tracks ---------------------------------------------------------------------------------------


def test_every_point_is_in_one_track_and_shown_where_it_is() -> None:
    scene = made()
    tracks = tracks_of(scene, TrackSettings(most_points=10**9, least_photos=1))
    # Each pixel either begins a track or joins one.
    assert len(tracks.views) == len(scene.points)
    pixels, _ = own_pixels(scene)
    ours = {(int(view), *pixel) for view, pixel in zip(scene.point_views, pixels.tolist(), strict=True)}
    theirs = {(int(view), *pixel) for view, pixel in zip(tracks.views, tracks.pixels.tolist(), strict=True)}
    assert ours == theirs
    # A photo shows a point once.
    shown = list(zip(tracks.of_point.tolist(), tracks.views.tolist(), strict=True))
    assert len(set(shown)) == len(shown)
    assert tracks.of_point.tolist() == sorted(tracks.of_point.tolist())
    # The photos overlap: most points are seen by more than one.
    assert len(scene.points) / len(tracks.points) > 1.5
    several = tracks_of(scene)
    length = torch.bincount(tracks.of_point)
    assert torch.equal(several.points, tracks.points[length > 1])
    assert float(tracks.weights.sum()) == pytest.approx(float(scene.point_weights.sum()), rel=1e-4)


def test_the_pixels_of_a_track_show_its_point() -> None:
    scene = made()
    tracks = tracks_of(scene)
    errors = []
    for view in range(VIEWS):
        own = tracks.views == view
        pixels, depth = project(tracks.points[tracks.of_point[own]], scene.cameras, view)
        assert bool((depth > 0).all())
        errors.append((pixels - tracks.pixels[own]).norm(dim=1))
    # A network pixel is two source pixels wide; what joins lies within one of them, at a depth alike.
    errors_px = torch.cat(errors)
    assert float(errors_px.median()) < 1.0
    assert float(errors_px.max()) < 6.0


def test_fewer_points_are_whole_tracks_and_the_same_every_time() -> None:
    scene = made()
    everything, some, again = (tracks_of(scene, TrackSettings(most_points=most)) for most in (10**9, 200, 200))
    assert len(some.points) == 200
    assert torch.equal(some.points, again.points)
    all_points = {
        tuple(point): int((everything.of_point == k).sum()) for k, point in enumerate(everything.points.tolist())
    }
    for k, point in enumerate(some.points.tolist()):
        assert all_points[tuple(point)] == int((some.of_point == k).sum())


# --- COLMAP ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("to", ["colmap", "colmap-text"])
def test_colmap_reads_the_same_cameras_points_and_pixels(tmp_path: Path, to) -> None:
    scene = made()
    if to == "colmap-text":
        with pytest.raises(InvalidDataError, match=r"photo 0\.png"):
            export_scene(scene, tmp_path / "model", to)
        scene = dataclasses.replace(scene, names=tuple(f"{view}.png" for view in range(VIEWS)))
    count = export_scene(scene, tmp_path / "model", to)
    model = pycolmap.Reconstruction(str(tmp_path / "model"))
    tracks = tracks_of(scene)
    assert len(model.points3D) == count == len(tracks.points)
    positions = np.array([point.xyz for _, point in sorted(model.points3D.items())])
    np.testing.assert_allclose(positions, tracks.points.numpy(), atol=1e-6)
    by_name = {image.name: image for image in model.images.values()}
    assert set(by_name) == set(scene.names)
    for view, name in enumerate(scene.names):
        image = by_name[name]
        assert image.num_points3D > 100
        camera = model.cameras[image.camera_id]
        assert (camera.width, camera.height) == scene.cameras.sizes[view]
        np.testing.assert_allclose(camera.calibration_matrix(), scene.cameras.K[view].double().numpy(), atol=1e-5)
        # One 3D point through their camera and through ours, in source pixels.
        own = tracks.points[tracks.of_point[tracks.views == view]]
        ours, _ = project(own, scene.cameras, view)
        theirs = np.array([image.project_point(point) for point in own.numpy()])
        assert float(np.abs(theirs - ours.numpy()).max()) < 0.01


def test_our_own_reader_takes_the_model_for_known_cameras(tmp_path: Path) -> None:
    scene = made()
    export_scene(scene, tmp_path / "model", "colmap")
    known = {camera.entry: camera for camera in read_known_cameras(tmp_path / "model").cameras}
    for view, name in enumerate(scene.names):
        K, T_world_camera = known[name].K, known[name].T_world_camera
        assert K is not None
        assert T_world_camera is not None
        torch.testing.assert_close(K.double(), scene.cameras.K[view].double(), atol=1e-5, rtol=0.0)
        torch.testing.assert_close(
            T_world_camera.double(), scene.cameras.T_world_camera[view].double(), atol=1e-6, rtol=0.0
        )


def test_bundle_adjustment_runs_on_the_model_and_lowers_its_error(tmp_path: Path) -> None:
    export_scene(made(), tmp_path / "model", "colmap")
    model = pycolmap.Reconstruction(str(tmp_path / "model"))
    before = model.compute_mean_reprojection_error()
    pycolmap.bundle_adjustment(model)
    model.update_point_3d_errors()
    assert 0 < model.compute_mean_reprojection_error() < 0.95 * before


# --- nerfstudio -----------------------------------------------------------------------------------


def test_nerfstudios_own_dataparser_reads_the_same_cameras(photos: Path, tmp_path: Path) -> None:
    from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig

    scene = made()
    export_scene(scene, tmp_path / "data", "nerfstudio", photos=photos)
    parser = NerfstudioDataParserConfig(
        data=tmp_path / "data",
        orientation_method="none",
        center_method="none",
        auto_scale_poses=False,
        eval_mode="all",
        downscale_factor=1,
        load_3D_points=True,
    ).setup()
    parsed = parser.get_dataparser_outputs("train")
    torch.testing.assert_close(parsed.metadata["points3D_xyz"], scene.points)
    torch.testing.assert_close(parsed.metadata["points3D_rgb"], scene.colors)
    order = [scene.names.index(path.name) if path.name in scene.names else 1 for path in parsed.image_filenames]
    assert sorted(order) == list(range(VIEWS))
    for index, view in enumerate(order):
        with Image.open(parsed.image_filenames[index]) as image:
            assert image.size == scene.cameras.sizes[view]
            # Upright: the upper half is white, whatever the file said.
            assert image.convert("L").getpixel((5, 3)) == 255
        # A pixel's ray through their camera passes through the point that ours projects there.
        chosen = torch.nonzero(scene.point_views == view).flatten()[::37]
        pixels, _ = project(scene.points[chosen].double(), scene.cameras, view)
        rays = parsed.cameras.generate_rays(camera_indices=index, coords=pixels.float().flip(1))
        towards = scene.points[chosen] - rays.origins
        towards = towards / towards.norm(dim=1, keepdim=True)
        angle = torch.linalg.cross(towards, rays.directions).norm(dim=1)
        # 0.01 source pixels.
        assert float(angle.max()) < 0.01 / float(scene.cameras.K[view, 0, 0])


def test_transforms_come_back_as_known_cameras(photos: Path, tmp_path: Path) -> None:
    scene = made()
    export_scene(scene, tmp_path / "data", "nerfstudio", photos=photos)
    content = json.loads((tmp_path / "data" / "transforms.json").read_text())
    for view, frame in enumerate(content["frames"]):
        T = opencv_from_opengl(torch.tensor(frame["transform_matrix"], dtype=torch.float64))
        torch.testing.assert_close(T, scene.cameras.T_world_camera[view].double(), atol=1e-6, rtol=0.0)
        assert (frame["w"], frame["h"]) == scene.cameras.sizes[view]
    known = read_known_cameras(tmp_path / "data" / "transforms.json")
    assert len(known.cameras) == VIEWS
    # The one on its side has an upright copy.
    assert [path.name for path in (tmp_path / "data" / "images").iterdir()] == ["0001_photo 1.png"]


@pytest.mark.parametrize("why", ["no folder", "missing", "other"])
def test_photos_that_are_not_the_scenes_are_refused(photos: Path, tmp_path: Path, why: str) -> None:
    if why == "missing":
        (photos / made().names[2]).unlink()
    elif why == "other":
        Image.new("RGB", (10, 10)).save(photos / made().names[2])
    expected = {"no folder": SettingsError, "missing": StorageError, "other": InvalidDataError}[why]
    with pytest.raises(expected, match="photo"):
        export_scene(made(), tmp_path / "data", "nerfstudio", photos=None if why == "no folder" else photos)
    assert not (tmp_path / "data").exists()


# --- clouds ---------------------------------------------------------------------------------------


def test_ply_holds_points_colours_weights_and_views(tmp_path: Path) -> None:
    scene = made()
    export_scene(scene, tmp_path / "cloud.ply", "ply")
    vertices = PlyData.read(str(tmp_path / "cloud.ply"))["vertex"]
    read = np.stack([vertices[axis] for axis in "xyz"], axis=1)
    np.testing.assert_array_equal(read, scene.points.numpy())
    np.testing.assert_array_equal(
        np.stack([vertices[name] for name in ("red", "green", "blue")], axis=1), scene.colors.numpy()
    )
    np.testing.assert_array_equal(vertices["weight"], scene.point_weights.numpy())
    np.testing.assert_array_equal(vertices["view"], scene.point_views.numpy())


def test_glb_holds_the_cloud_and_a_frustum_for_each_camera(tmp_path: Path) -> None:
    scene = made()
    export_scene(scene, tmp_path / "scene.glb", "glb")
    loaded = trimesh.load(tmp_path / "scene.glb")
    assert isinstance(loaded, trimesh.Scene)
    points = np.asarray(loaded.geometry["points"].vertices)
    # glTF has y up: ours has it down.
    np.testing.assert_allclose(points * [1.0, -1.0, -1.0], scene.points.numpy(), atol=1e-5)
    frusta = [name for name in loaded.geometry if name.startswith("camera")]
    assert len(frusta) == VIEWS
    for view, name in enumerate(scene.names):
        lines = np.asarray(loaded.geometry[f"camera {name}"].vertices) * [1.0, -1.0, -1.0]
        centre = scene.cameras.T_world_camera[view, :3, 3].numpy()
        assert np.linalg.norm(lines - centre, axis=1).min() < 1e-4


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


# --- the command ----------------------------------------------------------------------------------


def test_the_command_writes_and_replaces_its_own(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    save_scene(made(), tmp_path / "scene")
    for _ in range(2):
        main(
            ["export", str(tmp_path / "scene"), "--to", "colmap", "-o", str(tmp_path / "model"), "--most-points", "50"]
        )
    assert "Points:   50" in capsys.readouterr().out
    assert (tmp_path / "model" / "points3D.bin").is_file()


@pytest.mark.parametrize("wrong", ["other files", "no scene", "a folder for a file", "no photos", "a bad box"])
def test_wrong_input_is_one_line_and_code_2(tmp_path: Path, capsys: pytest.CaptureFixture, wrong: str) -> None:
    save_scene(made(), tmp_path / "scene")
    output = tmp_path / "out"
    output.mkdir()
    arguments = [str(tmp_path / "scene"), "--to", "colmap", "-o", str(output)]
    if wrong == "other files":
        (output / "thesis.txt").write_text("years of work")
    elif wrong == "no scene":
        arguments[0] = str(tmp_path / "nothing")
    elif wrong == "a folder for a file":
        arguments[2] = "ply"
    elif wrong == "no photos":
        arguments[2] = "nerfstudio"
    else:
        arguments += ["--box", "0", "0", "0", "1", "1", "-1"]
    with pytest.raises(SystemExit) as left:
        main(["export", *arguments])
    assert left.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("lora3d: ")
    assert len(said.strip().splitlines()) == 1
    if wrong == "other files":
        assert (output / "thesis.txt").read_text() == "years of work"
