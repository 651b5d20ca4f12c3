import dataclasses
import errno
import json
import os
from pathlib import Path

import pytest
import torch
from stored_samples import assert_same, finished_scene, samples

from lora3d_ns.errors import DamagedFileError, InvalidDataError, StorageError, StorageFullError
from lora3d_ns.scene_io.scenes import load_scene, save_scene
from lora3d_ns.scene_io.structures import write_result


def test_a_scene_comes_back_bit_for_bit(tmp_path: Path) -> None:
    for seed in (0, 1):
        scene = finished_scene(seed)
        save_scene(scene, tmp_path / "deep" / "scene")
        assert_same(load_scene(tmp_path / "deep" / "scene"), scene)
    assert sorted(path.name for path in (tmp_path / "deep").rglob("*")) == [
        "cameras.json",
        "scene",
        "scene.safetensors",
    ]


def test_the_cameras_can_be_read_by_people(tmp_path: Path) -> None:
    scene = finished_scene()
    save_scene(scene, tmp_path / "scene")
    content = json.loads((tmp_path / "scene/cameras.json").read_text(encoding="utf-8"))
    assert "camera coordinates to world coordinates" in content["convention"]
    assert [camera["name"] for camera in content["cameras"]] == ["a/1.png", "ü 2.png"]
    for view, camera in enumerate(content["cameras"]):
        assert (camera["width"], camera["height"]) == scene.cameras.sizes[view]
        assert torch.equal(torch.tensor(camera["T_world_camera"]), scene.cameras.T_world_camera[view])
        assert torch.equal(torch.tensor(camera["K"], dtype=torch.float64), scene.cameras.K[view])


def test_other_files_are_not_deleted(tmp_path: Path) -> None:
    """Somebody may name the folder of their photos."""
    save_scene(finished_scene(), tmp_path)
    (tmp_path / "photo.jpg").write_bytes(b"precious")
    before = (tmp_path / "scene.safetensors").read_bytes()
    with pytest.raises(StorageError, match=r"belong to no scene \(such as photo.jpg\)"):
        save_scene(finished_scene(1), tmp_path)
    assert (tmp_path / "photo.jpg").read_bytes() == b"precious"
    assert (tmp_path / "scene.safetensors").read_bytes() == before
    with pytest.raises(StorageError, match="Not a directory"):
        save_scene(finished_scene(), tmp_path / "photo.jpg")


def test_what_is_no_scene(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="No such file"):
        load_scene(tmp_path / "missing")
    write_result(tmp_path / "other" / "scene.safetensors", samples()["Cameras"])
    with pytest.raises(DamagedFileError, match="holds Cameras, not Scene"):
        load_scene(tmp_path / "other")
    of_the_future = dataclasses.replace(finished_scene(), format_version=2)
    with pytest.raises(InvalidDataError, match="format version 2"):
        save_scene(of_the_future, tmp_path / "scene")
    write_result(tmp_path / "scene" / "scene.safetensors", of_the_future)
    with pytest.raises(DamagedFileError, match="format version 2"):
        load_scene(tmp_path / "scene")


def test_a_full_disk_leaves_the_old_scene_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_scene(finished_scene(), tmp_path / "scene")

    def full(_handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StorageFullError) as caught:
            save_scene(finished_scene(1), tmp_path / "scene")
    assert caught.value.path == tmp_path / "scene" / "scene.safetensors"
    assert [path.name for path in tmp_path.iterdir()] == ["scene"]
    assert_same(load_scene(tmp_path / "scene"), finished_scene())
