"""Known cameras: what the files say lands, in the right pixels and axes, on the right photos."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lora3d_ns.conventions import ExifOrientation, opengl_from_opencv
from lora3d_ns.errors import KnownCameraError, SettingsError
from lora3d_ns.images import PhotoSettings, load_views
from lora3d_ns.photos.camera_files import read_known_cameras
from lora3d_ns.photos.known_cameras import PhotoPixels, cameras_of_photos

WIDTH, HEIGHT = 64, 48
K = torch.tensor([[50.0, 0.0, 30.0], [0.0, 52.0, 25.0], [0.0, 0.0, 1.0]], dtype=torch.float64)


def pose(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    rotation, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))
    T_world_camera = torch.eye(4, dtype=torch.float64)
    T_world_camera[:3, :3] = rotation * torch.linalg.det(rotation)
    T_world_camera[:3, 3] = torch.randn(3, generator=generator, dtype=torch.float64)
    return T_world_camera


def photo(name: str, orientation: ExifOrientation = 1, size: tuple[int, int] = (WIDTH, HEIGHT)) -> PhotoPixels:
    return PhotoPixels(name=name, path=Path("/photos") / name, stored_size=size, orientation=orientation)


def write(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def own_json(tmp_path: Path, cameras: object, **more: object) -> Path:
    return write(tmp_path / "cameras.json", {"cameras": cameras, **more})


def transforms(tmp_path: Path, frames: list[dict[str, Any]], **more: object) -> Path:
    return write(tmp_path / "transforms.json", {"frames": frames, **more})


def intrinsics(**changed: object) -> dict[str, object]:
    return {"fl_x": 50.0, "fl_y": 52.0, "cx": 30.0, "cy": 25.0, "w": WIDTH, "h": HEIGHT, **changed}


def cameras(path: Path, *photos: PhotoPixels) -> tuple[list[Any], list[Any]]:
    all_K, all_poses = cameras_of_photos(read_known_cameras(path), photos)
    return list(all_K), list(all_poses)


def assert_projects_alike(K: torch.Tensor, T: torch.Tensor, expected: Callable[[np.ndarray], np.ndarray]) -> None:
    """A camera of the turned photo sees points where turning the stored photo's pixels puts them."""
    points = (
        torch.tensor([[0.2, -0.1, 2.0], [-0.3, 0.2, 3.0]], dtype=torch.float64) @ pose(1)[:3, :3].T + pose(1)[:3, 3]
    )
    in_camera = (points - T[:3, 3]) @ T[:3, :3]
    pixels = (in_camera @ K.T)[:, :2] / in_camera[:, 2:]
    stored = (points - pose(1)[:3, 3]) @ pose(1)[:3, :3]
    stored_pixels = ((stored @ STORED_K.T)[:, :2] / stored[:, 2:]).numpy()
    np.testing.assert_allclose(pixels.numpy(), expected(stored_pixels), atol=1e-9)


STORED_K = K


# --- our JSON -----------------------------------------------------------------------------------


def test_own_json_may_be_partial(tmp_path: Path) -> None:
    path = own_json(
        tmp_path,
        {
            "a.jpg": {"K": K.tolist(), "T_world_camera": pose(0).tolist()},
            "b.jpg": {"K": K.tolist()},
            "c.jpg": {"T_world_camera": pose(2)[:3].tolist()},
            "elsewhere.jpg": {},
        },
    )
    all_K, all_poses = cameras(path, photo("a.jpg"), photo("b.jpg"), photo("c.jpg"), photo("d.jpg"))
    assert torch.equal(all_K[0], K)
    assert torch.equal(all_K[1], K)
    assert all_K[2:] == [None, None]
    torch.testing.assert_close(all_poses[0], pose(0))
    torch.testing.assert_close(all_poses[2], pose(2))
    assert all_poses[1] is None
    assert all_poses[3] is None


def test_own_json_says_where_pixel_centres_are(tmp_path: Path) -> None:
    entry = {"a.jpg": {"K": K.tolist()}}
    for pixel_centres, shift in (("half", 0.0), ("integer", 0.5)):
        all_K, _ = cameras(own_json(tmp_path, entry, pixel_centres=pixel_centres), photo("a.jpg"))
        assert all_K[0][:2, 2].tolist() == [30.0 + shift, 25.0 + shift]


def test_own_json_describes_the_upright_photo(tmp_path: Path) -> None:
    path = own_json(tmp_path, {"a.jpg": {"K": K.tolist(), "T_world_camera": pose(0).tolist()}})
    all_K, all_poses = cameras(path, photo("a.jpg", orientation=6))
    assert torch.equal(all_K[0], K)
    torch.testing.assert_close(all_poses[0], pose(0))


def test_rounded_rotations_become_exact(tmp_path: Path) -> None:
    rounded = [[round(value, 4) for value in row] for row in pose(0).tolist()]
    _, all_poses = cameras(own_json(tmp_path, {"a.jpg": {"T_world_camera": rounded}}), photo("a.jpg"))
    rotation = all_poses[0][:3, :3]
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(3, dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(all_poses[0], pose(0), atol=2e-4, rtol=0)


# --- transforms.json ----------------------------------------------------------------------------


def test_transforms_json(tmp_path: Path) -> None:
    path = transforms(
        tmp_path,
        [
            {"file_path": "images/a.jpg", "transform_matrix": opengl_from_opencv(pose(0)).tolist()},
            {"file_path": "images/b.jpg", "transform_matrix": opengl_from_opencv(pose(1)).tolist(), "fl_x": 60.0},
            {"file_path": "./images/c"},
        ],
        camera_model="OPENCV",
        k1=0,
        k2=0.0,
        **intrinsics(),
    )
    all_K, all_poses = cameras(path, photo("a.jpg"), photo("b.jpg"), photo("c.jpg"))
    torch.testing.assert_close(all_K[0], K)
    assert all_K[1][0, 0] == 60.0
    torch.testing.assert_close(all_K[2], K)
    torch.testing.assert_close(all_poses[0], pose(0))
    torch.testing.assert_close(all_poses[1], pose(1))
    assert all_poses[2] is None


def test_transforms_json_with_an_angle_only(tmp_path: Path) -> None:
    angle = 2 * math.atan(WIDTH / 2 / 50.0)
    path = transforms(tmp_path, [{"file_path": "a.jpg"}], camera_angle_x=angle, w=WIDTH, h=HEIGHT)
    expected = torch.tensor([[50.0, 0.0, 32.0], [0.0, 50.0, 24.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(cameras(path, photo("a.jpg"))[0][0], expected)


TURNED: list[tuple[ExifOrientation, Callable[[np.ndarray], np.ndarray]]] = [
    (1, lambda xy: xy),
    (3, lambda xy: np.stack([WIDTH - xy[:, 0], HEIGHT - xy[:, 1]], axis=1)),
    (6, lambda xy: np.stack([HEIGHT - xy[:, 1], xy[:, 0]], axis=1)),
    (8, lambda xy: np.stack([xy[:, 1], WIDTH - xy[:, 0]], axis=1)),
]


@pytest.mark.parametrize(("orientation", "upright_pixels"), TURNED)
def test_transforms_json_describes_the_stored_photo(
    tmp_path: Path, orientation: ExifOrientation, upright_pixels: Callable[[np.ndarray], np.ndarray]
) -> None:
    frame = {"file_path": "a.jpg", "transform_matrix": opengl_from_opencv(pose(1)).tolist(), **intrinsics()}
    all_K, all_poses = cameras(transforms(tmp_path, [frame]), photo("a.jpg", orientation=orientation))
    assert_projects_alike(all_K[0], all_poses[0], upright_pixels)


def test_declared_size_tells_that_upright_pixels_are_meant(tmp_path: Path) -> None:
    # Stored 64x48 and turned by EXIF; the file says 48x64, so it was made from an upright copy.
    frame = {"file_path": "a.jpg", **intrinsics(w=HEIGHT, h=WIDTH)}
    all_K, _ = cameras(transforms(tmp_path, [frame]), photo("a.jpg", orientation=6))
    torch.testing.assert_close(all_K[0], K)


def test_mirrored_photos_have_no_camera(tmp_path: Path) -> None:
    path = transforms(tmp_path, [{"file_path": "a.jpg", **intrinsics()}])
    with pytest.raises(KnownCameraError, match="mirrors"):
        cameras(path, photo("a.jpg", orientation=2))


def test_K_is_rescaled_to_the_photo(tmp_path: Path) -> None:
    path = transforms(tmp_path, [{"file_path": "a.jpg", **intrinsics()}])
    all_K, _ = cameras(path, photo("a.jpg", size=(32, 24)))
    torch.testing.assert_close(all_K[0], torch.diag(torch.tensor([0.5, 0.5, 1.0], dtype=torch.float64)) @ K)
    # 64x48 at 37 pixels is 27.75 high, which the photo had to round: each axis has its own exact scale.
    all_K, _ = cameras(path, photo("a.jpg", size=(37, 28)))
    scale = torch.diag(torch.tensor([37 / 64, 28 / 48, 1.0], dtype=torch.float64))
    torch.testing.assert_close(all_K[0], scale @ K)
    with pytest.raises(KnownCameraError, match=r"64x48.*64x64"):
        cameras(path, photo("a.jpg", size=(64, 64)))


# --- COLMAP -------------------------------------------------------------------------------------


def write_colmap(
    folder: Path, *, model: str = "PINHOLE", params: list[float] | None = None, text: bool = False
) -> Path:
    pycolmap = pytest.importorskip("pycolmap")
    folder.mkdir(parents=True, exist_ok=True)
    reconstruction = pycolmap.Reconstruction()
    camera = pycolmap.Camera.create_from_model_name(1, model, 50.0, WIDTH, HEIGHT)
    camera.params = [50.0, 52.0, 30.0, 25.0] if params is None else params
    reconstruction.add_camera_with_trivial_rig(camera)
    for number, name in ((1, "a.jpg"), (2, "sub/b.jpg")):
        T_camera_world = torch.linalg.inv(pose(number)).numpy()[:3]
        image = pycolmap.Image(name=name, camera_id=1, image_id=number)
        reconstruction.add_image_with_trivial_frame(image, pycolmap.Rigid3d(T_camera_world))
    (reconstruction.write_text if text else reconstruction.write_binary)(str(folder))
    return folder


@pytest.mark.parametrize("text", [True, False])
@pytest.mark.parametrize("place", [".", "sparse/0", "sparse"])
def test_colmap_model(tmp_path: Path, text: bool, place: str) -> None:
    write_colmap(tmp_path / place, text=text)
    all_K, all_poses = cameras(tmp_path, photo("a.jpg"), photo("sub/b.jpg"), photo("c.jpg"))
    torch.testing.assert_close(all_K[0], K)
    torch.testing.assert_close(all_poses[0], pose(1), atol=1e-9, rtol=0)
    torch.testing.assert_close(all_poses[1], pose(2), atol=1e-9, rtol=0)
    assert all_K[2] is None
    assert all_poses[2] is None


@pytest.mark.parametrize(("orientation", "upright_pixels"), TURNED)
def test_colmap_describes_the_stored_photo(
    tmp_path: Path, orientation: ExifOrientation, upright_pixels: Callable[[np.ndarray], np.ndarray]
) -> None:
    all_K, all_poses = cameras(write_colmap(tmp_path), photo("a.jpg", orientation=orientation))
    assert_projects_alike(all_K[0], all_poses[0], upright_pixels)


def test_colmap_distortion_is_refused_unless_zero(tmp_path: Path) -> None:
    write_colmap(tmp_path / "zero", model="SIMPLE_RADIAL", params=[50.0, 30.0, 25.0, 0.0])
    assert cameras(tmp_path / "zero", photo("a.jpg"))[0][0][1, 1] == 50.0
    write_colmap(tmp_path / "some", model="SIMPLE_RADIAL", params=[50.0, 30.0, 25.0, 0.01])
    with pytest.raises(KnownCameraError, match=r"a\.jpg.*image_undistorter"):
        read_known_cameras(tmp_path / "some")
    write_colmap(tmp_path / "fisheye", model="SIMPLE_RADIAL_FISHEYE", params=[50.0, 30.0, 25.0, 0.0])
    with pytest.raises(KnownCameraError, match="FISHEYE"):
        read_known_cameras(tmp_path / "fisheye")


@pytest.mark.parametrize("name", ["cameras.bin", "images.bin", "points3D.bin"])
@pytest.mark.parametrize("kept", [0, 7, 8, 40, -1])
def test_truncated_colmap_models_end_in_a_named_error(tmp_path: Path, name: str, kept: int) -> None:
    path = write_colmap(tmp_path) / name
    content = path.read_bytes()
    if len(content[:kept]) == len(content):
        return
    path.write_bytes(content[:kept])
    with pytest.raises(KnownCameraError):
        read_known_cameras(tmp_path)


# --- matching -----------------------------------------------------------------------------------


def test_paths_go_before_names(tmp_path: Path) -> None:
    path = transforms(
        tmp_path, [{"file_path": f"{side}/1.jpg", **intrinsics(fl_x=f)} for side, f in (("l", 10.0), ("r", 20.0))]
    )
    photos = [
        PhotoPixels(name=f"{side}.1.jpg", path=tmp_path / side / "1.jpg", stored_size=(WIDTH, HEIGHT), orientation=1)
        for side in ("r", "l")
    ]
    all_K, _ = cameras(path, *photos)
    assert [float(K[0, 0]) for K in all_K] == [20.0, 10.0]


def test_ambiguous_names_are_refused(tmp_path: Path) -> None:
    entry = {"K": K.tolist()}
    with pytest.raises(KnownCameraError, match=r"'l/1\.jpg' and 'r/1\.jpg' both fit"):
        cameras(own_json(tmp_path, {"l/1.jpg": entry, "r/1.jpg": entry}), photo("1.jpg"))
    with pytest.raises(KnownCameraError, match=r"'1\.jpg' fits both"):
        cameras(own_json(tmp_path, {"1.jpg": entry}), photo("l/1.jpg"), photo("r/1.jpg"))
    with pytest.raises(KnownCameraError, match=r"no entry has the name.*'2\.jpg'"):
        cameras(own_json(tmp_path, {"2.jpg": entry}), photo("1.jpg"))


# --- what can be wrong --------------------------------------------------------------------------


def changed(matrix: torch.Tensor, row: int, column: int, value: float) -> list[list[float]]:
    matrix = matrix.clone()
    matrix[row, column] = value
    return matrix.tolist()


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ({"K": changed(K, 0, 0, math.nan)}, "finite"),
        ({"K": changed(K, 0, 0, math.inf)}, "finite"),
        ({"K": changed(K, 0, 0, -50.0)}, "not positive"),
        ({"K": changed(K, 1, 1, 0.0)}, "not positive"),
        ({"K": changed(K, 0, 1, 3.0)}, "K is not"),
        ({"K": changed(K, 2, 2, 2.0)}, "K is not"),
        ({"K": K[:2].tolist()}, "3x3"),
        ({"K": 50.0}, "3x3"),
        ({"K": [["50", 0, 30], [0, 52, 25], [0, 0, 1]]}, "finite number"),
        ({"T_world_camera": (2 * pose(0)).tolist()}, "T_world_camera"),
        (
            {"T_world_camera": (torch.diag(torch.tensor([-1.0, 1, 1, 1], dtype=torch.float64)) @ pose(0)).tolist()},
            "mirrors",
        ),
        ({"T_world_camera": changed(pose(0), 0, 3, math.nan)}, "finite"),
        ({"T_world_camera": changed(pose(0), 3, 0, 1.0)}, "0 0 0 1"),
        ({"T_world_camera": pose(0)[:2].tolist()}, "4x4"),
        ({"k": K.tolist()}, "unknown key 'k'"),
        ([], "no JSON object"),
    ],
)
def test_wrong_entries_are_named(tmp_path: Path, entry: object, problem: str) -> None:
    with pytest.raises(KnownCameraError, match=rf"cameras\.json: entry 'a\.jpg'.*{problem}"):
        read_known_cameras(own_json(tmp_path, {"a.jpg": entry}))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"k1": 0.1}, "image_undistorter"),
        ({"camera_model": "OPENCV_FISHEYE"}, "not supported"),
        ({"w": 0}, "w is 0"),
        ({"h": 48.5}, "h is 48.5"),
        ({"fl_x": 0}, "not positive"),
        ({"cx": "30"}, "cx"),
        ({"transform_matrix": [[1, 0], [0, 1]]}, "4x4"),
    ],
)
def test_wrong_frames_are_named(tmp_path: Path, change: dict[str, object], problem: str) -> None:
    path = transforms(tmp_path, [{"file_path": "a.jpg", **intrinsics(**change)}])
    with pytest.raises(KnownCameraError, match=rf"transforms\.json: entry 'a\.jpg'.*{problem}"):
        read_known_cameras(path)


def test_wrong_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for path, problem in (
        (tmp_path / "absent.json", "cannot be read"),
        (tmp_path / "empty", "no COLMAP model"),
        (write(tmp_path / "other.json", {"views": []}), "neither"),
        (write(tmp_path / "list.json", []), "neither"),
        (own_json(tmp_path, [], pixel_centres="half"), "no JSON object"),
        (own_json(tmp_path / "x", {}, pixel_centres="corner"), "pixel_centres"),
    ):
        with pytest.raises(KnownCameraError, match=problem) as caught:
            read_known_cameras(path)
        assert str(path) in str(caught.value)


def test_known_cameras_reach_the_views_before_photos_are_decoded(tmp_path: Path) -> None:
    for index in range(3):
        pixels = np.random.default_rng(index).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
    path = own_json(tmp_path, {"1.png": {"K": K.tolist(), "T_world_camera": pose(0).tolist()}})
    views = load_views(tmp_path, PhotoSettings(size=64, known_cameras=path))
    assert views.known_K[0] is None
    assert views.known_K[1] is not None
    assert torch.equal(views.known_K[1], K)
    assert views.known_T_world_camera[2] is None
    (tmp_path / "2.png").write_bytes((tmp_path / "2.png").read_bytes()[:200])
    with pytest.raises(KnownCameraError, match="broken"):
        load_views(tmp_path, PhotoSettings(size=64, known_cameras=own_json(tmp_path, {"broken": 1})))


REAL = Path(__file__).resolve().parents[3] / "shared" / "real"


@pytest.mark.skipif(not REAL.is_dir(), reason="the real photo sets are not on this machine")
@pytest.mark.parametrize("name", ["hololens_kitchen", "strecha_herzjesu_p8", "tum_fr3_office"])
def test_cameras_of_real_photos(tmp_path: Path, name: str) -> None:
    entries = json.loads((REAL / name / "cameras.json").read_text())["images"]
    given = {entry["file"]: {"K": entry["K"], "T_world_camera": entry["c2w"]} for entry in entries}
    path = own_json(tmp_path, given, pixel_centres="integer")
    views = load_views(REAL / name, PhotoSettings(known_cameras=path))
    for index, entry in enumerate(entries):
        assert entry["file"] == f"images/{views.names[index]}"
        assert views.source_sizes[index] == (entry["width"], entry["height"])
        known_K, known_pose = views.known_K[index], views.known_T_world_camera[index]
        assert known_K is not None
        assert known_pose is not None
        expected_K = torch.tensor(entry["K"], dtype=torch.float64)
        expected_K[:2, 2] += 0.5
        torch.testing.assert_close(known_K, expected_K)
        torch.testing.assert_close(known_pose, torch.tensor(entry["c2w"], dtype=torch.float64), atol=1e-3, rtol=1e-6)
        # At network resolution the centre of view is near the middle of the image.
        K_network = views.source_from_network[index].K_network_from_source(known_K)
        height, width = views.shapes[index]
        assert abs(K_network[0, 2] - width / 2) < 0.08 * width
        assert abs(K_network[1, 2] - height / 2) < 0.08 * height


def test_only_listed_photos_are_taken_where_that_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for number in range(4):
        pixels = np.random.default_rng(number).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{number}.png")
    path = transforms(
        tmp_path,
        [{"file_path": f"{number}.png", "transform_matrix": pose(number).tolist()} for number in (3, 1)],
        **intrinsics(),
    )
    every = load_views(tmp_path / "photos", PhotoSettings(size=64, known_cameras=path))
    assert every.names == ("0.png", "1.png", "2.png", "3.png")
    listed = load_views(tmp_path / "photos", PhotoSettings(size=64, known_cameras=path, only_listed=True))
    assert listed.names == ("1.png", "3.png")
    assert all(known is not None for known in listed.known_T_world_camera)
    fewer = load_views(
        tmp_path / "photos", PhotoSettings(size=64, known_cameras=path, only_listed=True, every=2, at_least=1)
    )
    assert fewer.names == ("1.png",)
    with pytest.raises(SettingsError, match="of no list"):
        PhotoSettings(only_listed=True)
    nothing = transforms(tmp_path / "x", [{"file_path": "z.png", "transform_matrix": pose(0).tolist()}], **intrinsics())
    with pytest.raises(KnownCameraError):
        load_views(tmp_path / "photos", PhotoSettings(size=64, known_cameras=nothing, only_listed=True))
