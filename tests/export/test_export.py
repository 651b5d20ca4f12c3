"""Scenes in other programs' formats: read back by those programs, the same cameras, points and pixels."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pycolmap
import pytest
import torch
import trimesh
from export.export_samples import NAMES, VIEWS, made, write_photos
from PIL import Image
from plyfile import PlyData
from reference.colmap_model import NO_POINT, read_cameras, read_images, read_points
from system_packages import require_open3d

from lora3d_ns.cli import main
from lora3d_ns.conventions import opencv_from_opengl
from lora3d_ns.errors import InvalidDataError, SettingsError, StorageError
from lora3d_ns.export.formats import export_scene
from lora3d_ns.export.tracks import TrackSettings, own_pixels, project, tracks_of
from lora3d_ns.scene_io.scenes import save_scene


@pytest.fixture(name="photos")
def _photos(tmp_path: Path) -> Path:
    return write_photos(tmp_path / "photos", made())


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


def test_no_photo_is_left_without_points_however_few_are_drawn() -> None:
    scene = made()
    # Points of the last photo alone, but for few: chance would leave it out of a small draw.
    rare = torch.nonzero(scene.point_views == 0).flatten()[::40]
    kept = torch.cat([rare, torch.nonzero(scene.point_views != 0).flatten()])
    scene = dataclasses.replace(
        scene,
        points=scene.points[kept],
        colors=scene.colors[kept],
        point_weights=scene.point_weights[kept],
        point_views=scene.point_views[kept],
    )
    everything = torch.bincount(tracks_of(scene).views, minlength=VIEWS)
    drawn = tracks_of(scene, TrackSettings(most_points=40))
    assert len(drawn.points) == 40
    # Of each photo its share, or all that there is.
    shown = torch.bincount(drawn.views, minlength=VIEWS)
    assert bool((shown >= everything.clamp(max=40 // (2 * VIEWS))).all())
    assert 0 < int(everything[0]) < 0.05 * int(everything[1])


def test_photos_without_a_point_in_common_are_named(caplog: pytest.LogCaptureFixture) -> None:
    scene = made()
    poses = scene.cameras.T_world_camera.clone()
    # It looks away, and takes its points with it.
    turned = poses[2] @ torch.diag(torch.tensor([-1.0, 1.0, -1.0, 1.0]))
    own = scene.point_views == 2
    points = scene.points.clone()
    points[own] = (points[own] - poses[2, :3, 3]) @ poses[2, :3, :3] @ turned[:3, :3].T + poses[2, :3, 3]
    poses[2] = turned
    scene = dataclasses.replace(scene, points=points, cameras=dataclasses.replace(scene.cameras, T_world_camera=poses))
    assert 2 not in tracks_of(scene).views
    assert NAMES[2] in caplog.text
    assert int((tracks_of(scene, TrackSettings(least_photos=1)).views == 2).sum()) == int(own.sum())


# --- COLMAP ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("to", ["colmap", "colmap-text"])
def test_colmap_reads_the_same_cameras_points_and_pixels(tmp_path: Path, to) -> None:
    scene = made()
    if to == "colmap-text":
        spaced = dataclasses.replace(scene, names=("photo 0.png", *NAMES[1:]))
        with pytest.raises(InvalidDataError, match=r"photo 0\.png"):
            export_scene(spaced, tmp_path / "model", to)
        assert not (tmp_path / "model").exists()
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
        np.testing.assert_allclose(camera.calibration_matrix(), scene.cameras.K[view].double().numpy(), atol=1e-6)
        # One 3D point through their camera and through ours, in source pixels.
        own = tracks.points[tracks.of_point[tracks.views == view]]
        ours, _ = project(own, scene.cameras, view)
        theirs = np.array([image.project_point(point) for point in own.numpy()])
        assert float(np.abs(theirs - ours.numpy()).max()) < 0.01


def test_a_loader_of_another_hand_finds_points_for_every_image(photos: Path, tmp_path: Path) -> None:
    scene = made()
    export_scene(scene, tmp_path / "data", "colmap", photos=photos)
    model = tmp_path / "data" / "sparse" / "0"
    cameras, images, points = read_cameras(model), read_images(model), read_points(model)
    tracks = tracks_of(scene)
    assert len(images) == VIEWS
    assert len(points) == len(tracks.points)
    shown = 0
    for number, image in images.items():
        view = [Path(name).stem for name in NAMES].index(Path(image.name).stem)
        kind, *size, parameters = cameras[image.camera]
        assert (kind, tuple(size)) == (1, scene.cameras.sizes[view])
        # The image lies where the loader looks for it, upright whatever the photo's file said.
        with Image.open(tmp_path / "data" / "images" / image.name) as picture:
            assert picture.size == scene.cameras.sizes[view]
            assert picture.getexif().get(0x0112, 1) == 1
            assert picture.convert("L").getpixel((5, 3)) > 250
        assert len(image.points) == int((tracks.views == view).sum()) > 100
        w, x, y, z = image.quaternion_wxyz
        rotation = np.array(
            [
                [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
                [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
                [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
            ]
        )
        errors_px = []
        for place, (pixel, point) in enumerate(zip(image.pixels, image.points, strict=True)):
            assert point != NO_POINT
            # Both sides name each other.
            assert (number, place) in points[point].track
            seen = rotation @ points[point].position + image.translation
            projected = np.array(parameters[:2]) * seen[:2] / seen[2] + parameters[2:]
            errors_px.append(float(np.linalg.norm(projected - pixel)))
        assert np.median(errors_px) < 1.0
        shown += len(image.points)
    assert shown == sum(len(point.track) for point in points.values())
    assert min(len({number for number, _ in point.track}) for point in points.values()) >= 2


def test_a_model_without_its_photos_keeps_their_names(tmp_path: Path) -> None:
    export_scene(made(), tmp_path / "model", "colmap")
    assert {image.name for image in read_images(tmp_path / "model").values()} == set(NAMES)


def test_photos_that_differ_in_their_ending_only_keep_apart(tmp_path: Path) -> None:
    scene = dataclasses.replace(made(), names=("a.png", "a.jpg", "b.jpg", "c.png"))
    photos = write_photos(tmp_path / "photos", scene)
    export_scene(scene, tmp_path / "data", "colmap", photos=photos)
    names = {image.name for image in read_images(tmp_path / "data" / "sparse" / "0").values()}
    assert names == {"a.png", "a.jpg.png", "b.png", "c.png"}
    assert names == {path.name for path in (tmp_path / "data" / "images").iterdir()}


def test_bundle_adjustment_runs_on_the_model_and_lowers_its_error(tmp_path: Path) -> None:
    export_scene(made(), tmp_path / "model", "colmap")
    model = pycolmap.Reconstruction(str(tmp_path / "model"))
    before = model.compute_mean_reprojection_error()
    pycolmap.bundle_adjustment(model)
    model.update_point_3d_errors()
    assert 0 < model.compute_mean_reprojection_error() < 0.95 * before


# --- nerfstudio -----------------------------------------------------------------------------------


def test_nerfstudios_own_dataparser_reads_the_same_cameras(photos: Path, tmp_path: Path) -> None:
    require_open3d()
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
    order = [[Path(name).stem for name in NAMES].index(path.stem) for path in parsed.image_filenames]
    assert sorted(order) == list(range(VIEWS))
    for index, view in enumerate(order):
        with Image.open(parsed.image_filenames[index]) as image:
            assert image.size == scene.cameras.sizes[view]
            # Upright: the upper half is white, whatever the file said.
            assert image.convert("L").getpixel((5, 3)) > 250
        # A pixel's ray through their camera passes through the point that ours projects there.
        chosen = torch.nonzero(scene.point_views == view).flatten()[::37]
        pixels, _ = project(scene.points[chosen].double(), scene.cameras, view)
        rays = parsed.cameras.generate_rays(camera_indices=index, coords=pixels.float().flip(1))
        towards = scene.points[chosen] - rays.origins
        towards = towards / towards.norm(dim=1, keepdim=True)
        angle = torch.linalg.cross(towards, rays.directions).norm(dim=1)
        # 0.01 source pixels.
        assert float(angle.max()) < 0.01 / float(scene.cameras.K[view, 0, 0])


def test_transforms_hold_the_cameras_to_a_millionth(photos: Path, tmp_path: Path) -> None:
    scene = made()
    export_scene(scene, tmp_path / "data", "nerfstudio", photos=photos)
    content = json.loads((tmp_path / "data" / "transforms.json").read_text())
    for view, frame in enumerate(content["frames"]):
        T = opencv_from_opengl(torch.tensor(frame["transform_matrix"], dtype=torch.float64))
        torch.testing.assert_close(T, scene.cameras.T_world_camera[view].double(), atol=1e-6, rtol=0.0)
        assert (frame["w"], frame["h"]) == scene.cameras.sizes[view]
    # Those that EXIF turns have upright copies.
    assert sorted(path.name for path in (tmp_path / "data" / "images").iterdir()) == ["photo_1.png", "photo_2.png"]


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


# --- the command ----------------------------------------------------------------------------------


def test_the_command_writes_and_replaces_its_own(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    save_scene(made(), tmp_path / "scene")
    for _ in range(2):
        main(
            ["export", str(tmp_path / "scene"), "--to", "colmap", "-o", str(tmp_path / "model"), "--most-points", "50"]
        )
    assert "Points:   50" in capsys.readouterr().out
    assert (tmp_path / "model" / "points3D.bin").is_file()


@pytest.mark.parametrize("to", ["colmap", "nerfstudio"])
@pytest.mark.parametrize("beside", ["sparse/0/cameras.bin", "transforms.json"])
def test_somebodys_own_project_is_never_replaced(photos: Path, tmp_path: Path, to, beside: str) -> None:
    """Its folder may hold the very names that an export has."""
    own = tmp_path / "project"
    for name in (beside, "images/original.jpg"):
        (own / name).parent.mkdir(parents=True, exist_ok=True)
        (own / name).write_bytes(b"years of work")
    with pytest.raises(StorageError, match="belong to no export"):
        export_scene(made(), own, to, photos=photos)
    assert (own / "images" / "original.jpg").read_bytes() == b"years of work"


@pytest.mark.parametrize(
    "wrong", ["other files", "no scene", "a folder for a file", "no photos", "a bad box", "no masks"]
)
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
    elif wrong == "no masks":
        arguments += ["--masks", str(tmp_path / "nowhere")]
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
