"""Files with known cameras that other programs and we ourselves write: what is read of them, and on which photos."""

import json
import math
from pathlib import Path

import pytest
import torch
from PIL import Image

from lora3d_ns.conventions import ExifOrientation, opengl_from_opencv
from lora3d_ns.errors import KnownCameraError
from lora3d_ns.photos.camera_files import read_known_cameras
from lora3d_ns.photos.files import PhotoFile, find_photos
from lora3d_ns.photos.known_cameras import PhotoPixels, cameras_of_photos, listed_photos

WIDTH, HEIGHT = 64, 48
LENS = {"fl_x": 50.0, "fl_y": 52.0, "cx": 30.0, "cy": 25.0, "w": WIDTH, "h": HEIGHT}
IDENTITY = torch.eye(4, dtype=torch.float64)
K = torch.tensor([[50.0, 0.0, 30.0], [0.0, 52.0, 25.0], [0.0, 0.0, 1.0]], dtype=torch.float64)


def photo(name: str, *, folder: str = "/photos", orientation: ExifOrientation = 1) -> PhotoPixels:
    return PhotoPixels(name=name, path=Path(folder) / name, stored_size=(WIDTH, HEIGHT), orientation=orientation)


def write(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def frame(name: str, **more: object) -> dict[str, object]:
    return {"file_path": name, "transform_matrix": opengl_from_opencv(IDENTITY).tolist(), **more}


def entry(name: str, **changed: object) -> dict[str, object]:
    known = {"width": WIDTH, "height": HEIGHT, "K": K.tolist(), "T_world_camera": IDENTITY.tolist()}
    return {"name": name, **known, **changed}


# --- what is read ---------------------------------------------------------------------------------


def test_cameras_of_our_scenes_and_trainings(tmp_path: Path) -> None:
    for name in ("cameras.json", "refined_cameras.json"):
        path = write(tmp_path / name / name, {"convention": "words", "cameras": [entry("a.jpg"), entry("b.jpg")]})
        for given in (path, path.parent):
            known = read_known_cameras(given)
            assert (known.path, known.pixels) == (path, "upright")
            assert [camera.entry for camera in known.cameras] == ["a.jpg", "b.jpg"]
            # Stored on its side; the file's 64x48 would be 48x64 upright.
            with pytest.raises(KnownCameraError, match="another shape"):
                cameras_of_photos(known, [photo("a.jpg", orientation=6)])
            all_K, poses = cameras_of_photos(known, [photo("a.jpg", orientation=3)])
            torch.testing.assert_close(all_K[0], K, atol=0.0, rtol=0.0)
            torch.testing.assert_close(poses[0], IDENTITY, atol=0.0, rtol=0.0)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"K": None}, "3x3"),
        ({"T_world_camera": (2 * IDENTITY).tolist()}, "T_world_camera"),
        ({"width": 0}, "width is 0"),
        ({"height": None}, "height is no finite number"),
        ({}, "name is missing"),
    ],
)
def test_wrong_cameras_of_ours_are_named(tmp_path: Path, change: dict[str, object], problem: str) -> None:
    written = entry("a.jpg", **change) if change else {"K": K.tolist()}
    path = write(tmp_path / "cameras.json", {"convention": "words", "cameras": [written]})
    where = r"a\.jpg" if change else r"cameras\[0\]"
    with pytest.raises(KnownCameraError, match=rf"cameras\.json: entry '{where}'.*{problem}"):
        read_known_cameras(path)


def test_the_world_is_the_one_the_frames_are_written_in(tmp_path: Path) -> None:
    """nerfstudio's applied_transform tells how it came about; its sparse cloud lies in it too."""
    turned = [[0.0, 1.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0], [0.0, 0.0, -1.0, 0.0]]
    path = write(tmp_path / "transforms.json", {"applied_transform": turned, **LENS, "frames": [frame("a.jpg")]})
    all_K, poses = cameras_of_photos(read_known_cameras(path), [photo("a.jpg")])
    torch.testing.assert_close(poses[0], IDENTITY, atol=0.0, rtol=0.0)
    torch.testing.assert_close(all_K[0], K, atol=0.0, rtol=0.0)


def test_what_a_frame_says_itself_goes_before_what_is_said_of_all(tmp_path: Path) -> None:
    path = write(
        tmp_path / "transforms.json",
        {**LENS, "k1": 0.0, "frames": [frame("a.jpg"), frame("b.jpg", fl_x=60.0, fl_y=61.0), frame("c.jpg", k1=0.1)]},
    )
    with pytest.raises(KnownCameraError, match=r"entry 'c\.jpg'.*k1.*Undistort"):
        read_known_cameras(path)
    content = json.loads(path.read_text())
    path = write(path, {**content, "frames": content["frames"][:2]})
    all_K, _ = cameras_of_photos(read_known_cameras(path), [photo("a.jpg"), photo("b.jpg")])
    assert [float(K[0, 0]) for K in all_K if K is not None] == [50.0, 60.0]
    assert [float(K[1, 1]) for K in all_K if K is not None] == [52.0, 61.0]


def test_an_angle_of_view_alone_is_that_of_the_photos_width(tmp_path: Path) -> None:
    """As Blender's synthetic scenes have it: no size, and names without ending."""
    angle = 2 * math.atan(WIDTH / 2 / 50.0)
    path = write(tmp_path / "transforms.json", {"camera_angle_x": angle, "frames": [frame("./train/r_0")]})
    all_K, _ = cameras_of_photos(read_known_cameras(path), [photo("r_0.png")])
    expected = torch.tensor([[50.0, 0.0, 32.0], [0.0, 50.0, 24.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(all_K[0], expected)
    path = write(path, {"camera_angle_x": 4.0, "frames": [frame("r_0")]})
    with pytest.raises(KnownCameraError, match="camera_angle_x"):
        read_known_cameras(path)


def test_the_angle_is_along_the_rows_as_they_are_stored(tmp_path: Path) -> None:
    angle = 2 * math.atan(WIDTH / 2 / 50.0)
    path = write(tmp_path / "transforms.json", {"camera_angle_x": angle, "frames": [frame("a.jpg")]})
    all_K, _ = cameras_of_photos(read_known_cameras(path), [photo("a.jpg", orientation=6)])
    # Turned upright the focal length is the same, and the middle is that of 48x64.
    expected = torch.tensor([[50.0, 0.0, 24.0], [0.0, 50.0, 32.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(all_K[0], expected)


# --- whose they are -------------------------------------------------------------------------------


def named(tmp_path: Path, entries: list[str], photos: list[str]) -> list[float | None]:
    """Focal lengths that photos get from entries, the first entry having 1, the second 2."""
    frames = [frame(name, **{**LENS, "fl_x": float(number)}) for number, name in enumerate(entries, start=1)]
    path = write(tmp_path / "transforms.json", {"frames": frames})
    all_K, _ = cameras_of_photos(read_known_cameras(path), [photo(name) for name in photos])
    return [None if K is None else float(K[0, 0]) for K in all_K]


def test_converted_photos_are_known_by_their_names_without_ending(tmp_path: Path) -> None:
    assert named(tmp_path, ["images/IMG_1.jpg", "IMG_2.HEIC.png"], ["IMG_1.HEIC", "IMG_2.HEIC"]) == [1.0, 2.0]
    # An entry that is a photo's by its whole name is no other's.
    assert named(tmp_path, ["a.jpg"], ["a.png", "a.jpg"]) == [None, 1.0]
    assert named(tmp_path, ["a.png", "a.jpg"], ["a.jpg", "a.png"]) == [2.0, 1.0]
    # Below folders, too.
    assert named(tmp_path, ["images/l/1.png", "images/r/1.png"], ["r/1.jpg", "l/1.jpg"]) == [2.0, 1.0]
    with pytest.raises(KnownCameraError, match="both fit"):
        named(tmp_path, ["l/1.png", "r/1.png"], ["1.jpg"])
    with pytest.raises(KnownCameraError, match="fits both"):
        named(tmp_path, ["1.png"], ["l/1.jpg", "r/1.jpg"])


def test_the_images_that_a_file_lists(tmp_path: Path) -> None:
    for name in ("0.png", "1.png", "2.png", "10.png"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    photos = find_photos(tmp_path)
    frames = [frame(name, **LENS) for name in ("images/10.png", "0.jpg", "elsewhere.png")]
    known = read_known_cameras(write(tmp_path / "transforms.json", {"frames": frames}))
    listed = listed_photos(known, photos)
    assert [chosen.name for chosen in listed] == ["0.png", "10.png"]
    assert all(isinstance(chosen, PhotoFile) for chosen in listed)
    nothing = read_known_cameras(write(tmp_path / "none.json", {"frames": [frame("x.png", **LENS)]}))
    with pytest.raises(KnownCameraError, match=r"none\.json: no entry has the name of a photo such as '0\.png'"):
        listed_photos(nothing, photos)
