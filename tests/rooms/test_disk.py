"""What is written is what was rendered, in the conventions of each layout's readers."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lora3d_ns.errors import SettingsError
from lora3d_ns.rooms.disk import PhotographedRoom, photographed_room, quaternion_xyzw, write_scene
from lora3d_ns.rooms.generator import (
    MOVING,
    NOMINAL,
    RoomDomain,
    demo_room,
    render,
    sample_scenes,
    sample_views,
    write_contact_sheet,
)


def small_room(domain: RoomDomain = NOMINAL, *, mixed: bool = False) -> PhotographedRoom:
    scenes = sample_scenes(domain, seed=5, indices=[1])
    renders = [render(scenes, sample_views(scenes, 3, size=(48, 32)))]
    if mixed:
        renders.append(render(scenes, sample_views(scenes, 2, size=(32, 48))))
    return photographed_room(renders)


def test_photos_layout(tmp_path: Path) -> None:
    room = small_room(MOVING, mixed=True)
    write_scene(tmp_path, room)
    truth = json.loads((tmp_path / "cameras.json").read_text())
    assert truth["pixel_centres"] == "half"
    assert list(truth["cameras"]) == ["000.png", "001.png", "002.png", "003.png", "004.png"]
    depths = np.load(tmp_path / "depth.npz")
    ids = np.load(tmp_path / "object_ids.npz")
    for i, name in enumerate(room.names):
        entry = truth["cameras"][f"{name}.png"]
        assert torch.equal(torch.tensor(entry["K"]), room.K[i])
        assert torch.equal(torch.tensor(entry["T_world_camera"]), room.T_world_camera[i])
        assert np.array_equal(np.asarray(Image.open(tmp_path / "images" / f"{name}.png")), room.photos[i].numpy())
        millimetres = np.asarray(Image.open(tmp_path / "depth" / f"{name}.png"))
        assert millimetres.dtype == np.uint16
        assert np.abs(millimetres / 1000.0 - room.depths_m[i].numpy()).max() <= 0.00051
        assert np.array_equal(depths[name], room.depths_m[i].numpy())
        assert np.array_equal(ids[name], room.object_ids[i].numpy())
        mask = np.asarray(Image.open(tmp_path / "masks" / f"{name}.png"))
        assert np.array_equal(mask == 0, room.moving[i].numpy())
    assert Image.open(tmp_path / "images" / "004.png").size == (32, 48)


def test_static_photos_as_jpeg_have_no_masks(tmp_path: Path) -> None:
    room = small_room()
    write_scene(tmp_path / "new" / "folder", room, photo_format="jpg")
    photo = np.asarray(Image.open(tmp_path / "new" / "folder" / "images" / "001.jpg")).astype(int)
    assert np.abs(photo - room.photos[1].numpy()).mean() < 8
    assert not (tmp_path / "new" / "folder" / "masks").exists()
    assert "001.jpg" in json.loads((tmp_path / "new" / "folder" / "cameras.json").read_text())["cameras"]


def test_replica_layout(tmp_path: Path) -> None:
    room = small_room()
    write_scene(tmp_path, room, layout="replica")
    trajectory = np.loadtxt(tmp_path / "traj.txt").reshape(-1, 4, 4)
    camera = json.loads((tmp_path / "cam_params.json").read_text())["camera"]
    assert (camera["w"], camera["h"], camera["scale"]) == (48, 32, 6553.5)
    assert camera["fx"] == float(room.K[0][0, 0])
    assert camera["cx"] == 23.5
    for i in range(3):
        assert np.allclose(trajectory[i], room.T_world_camera[i].numpy(), atol=1e-7)
        depth = np.asarray(Image.open(tmp_path / "results" / f"depth{i:06d}.png")) / camera["scale"]
        assert np.abs(depth - room.depths_m[i].numpy()).max() < 1e-4
        assert Image.open(tmp_path / "results" / f"frame{i:06d}.jpg").size == (48, 32)


def test_tum_layout(tmp_path: Path) -> None:
    room = small_room()
    write_scene(tmp_path, room, layout="tum")
    poses = np.loadtxt(tmp_path / "groundtruth.txt")
    assert np.loadtxt(tmp_path / "calibration.txt")[2] == 23.5
    rows = [line.split() for line in (tmp_path / "associations.txt").read_text().splitlines()]
    assert len(rows) == 3
    for i, (stamp, photo, depth_stamp, depth) in enumerate(rows):
        assert float(stamp) == float(depth_stamp) == poses[i, 0]
        assert np.array_equal(np.asarray(Image.open(tmp_path / photo)), room.photos[i].numpy())
        metres = np.asarray(Image.open(tmp_path / depth)) / 5000.0
        assert np.abs(metres - room.depths_m[i].numpy()).max() < 2e-4
        x, y, z, w = poses[i, 4:]
        R = np.array(
            [
                [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
                [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
                [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
            ]
        )
        assert np.allclose(R, room.T_world_camera[i][:3, :3].numpy(), atol=1e-6)
        assert np.allclose(poses[i, 1:4], room.T_world_camera[i][:3, 3].numpy(), atol=1e-6)
    for name in ("rgb", "depth"):
        listed = [line for line in (tmp_path / f"{name}.txt").read_text().splitlines() if not line.startswith("#")]
        assert [line.split()[0] for line in listed] == [row[0] for row in rows]


@pytest.mark.parametrize("axis", range(3))
def test_quaternions_of_half_turns(axis: int) -> None:
    """Half turns have w = 0, where formulas that divide by w fail."""
    R = -np.eye(3)
    R[axis, axis] = 1.0
    assert np.allclose(np.abs(quaternion_xyzw(R)), np.eye(4)[axis])


@pytest.mark.parametrize("layout", ["replica", "tum"])
def test_layouts_with_one_camera_refuse_mixed_shapes(tmp_path: Path, layout) -> None:
    with pytest.raises(SettingsError, match="one camera"):
        write_scene(tmp_path, small_room(mixed=True), layout=layout)


def test_demo_room_has_portraits() -> None:
    room = demo_room(size=(64, 48))
    assert [tuple(photo.shape[:2]) for photo in room.photos] == [
        (48, 64),
        (64, 48),
        (48, 64),
        (48, 64),
        (64, 48),
        (48, 64),
    ]
    assert room.names == ("000", "001", "002", "003", "004", "005")


def test_contact_sheet(tmp_path: Path) -> None:
    path = tmp_path / "sheets" / "all.png"
    write_contact_sheet(path, [NOMINAL, MOVING], photo_count=2, size=(32, 24))
    assert Image.open(path).size == (64, 4 * 24)
