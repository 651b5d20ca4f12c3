import dataclasses
import errno
import json
import os
from pathlib import Path

import pytest
import torch
from stored_samples import assert_same, finished_details, finished_scene, samples

from lora3d_ns.errors import DamagedFileError, InvalidDataError, StorageError, StorageFullError
from lora3d_ns.scene_io.scenes import load_details, load_scene, save_scene
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


def test_details_lie_beside_the_scene_and_go_with_it(tmp_path: Path) -> None:
    folder = tmp_path / "scene"
    for seed in (0, 1):
        scene = finished_scene(seed)
        save_scene(scene, folder, details=finished_details(scene, seed))
        assert_same(load_scene(folder), scene)
        assert_same(load_details(folder), finished_details(scene, seed))
    assert {path.name for path in folder.iterdir()} == {"scene.safetensors", "details.safetensors", "cameras.json"}
    # The file of the scene is the same with details and without, and a scene without leaves none of another.
    with_details = (folder / "scene.safetensors").read_bytes()
    save_scene(finished_scene(1), folder)
    assert (folder / "scene.safetensors").read_bytes() == with_details
    assert load_details(folder) is None
    assert not (folder / "details.safetensors").exists()


def test_damaged_details_are_named_and_the_scene_is_not_lost(tmp_path: Path) -> None:
    scene = finished_scene()
    save_scene(scene, tmp_path, details=finished_details(scene))
    path = tmp_path / "details.safetensors"
    content = path.read_bytes()
    for damaged in (content[:-1], content[:100], b"", content[:-1] + bytes([content[-1] ^ 1])):
        path.write_bytes(damaged)
        with pytest.raises(DamagedFileError, match=r"details\.safetensors") as caught:
            load_details(tmp_path)
        assert caught.value.path == path
        assert_same(load_scene(tmp_path), scene)
    write_result(path, dataclasses.replace(finished_details(scene), format_version=2))
    with pytest.raises(DamagedFileError, match="format version 2"):
        load_details(tmp_path)
    write_result(path, scene)
    with pytest.raises(DamagedFileError, match="holds Scene, not SceneDetails"):
        load_details(tmp_path)
    # Such a folder can be replaced as any other.
    save_scene(scene, tmp_path, details=finished_details(scene))
    assert_same(load_details(tmp_path), finished_details(scene))


def test_details_of_another_scene_are_refused(tmp_path: Path) -> None:
    scene = finished_scene()
    for wrong in (
        dataclasses.replace(finished_details(scene), names=("other.png", "one.png")),
        dataclasses.replace(finished_details(scene), format_version=2),
    ):
        with pytest.raises(InvalidDataError, match="the details are"):
            save_scene(scene, tmp_path / "scene", details=wrong)
    assert not (tmp_path / "scene").exists()
    with pytest.raises(StorageError, match="there is no scene"):
        load_details(tmp_path / "scene")


@pytest.mark.parametrize("field", ["images", "masks", "moving", "focal_px", "overlap", "edges", "residuals"])
def test_details_that_contradict_themselves_are_refused(field: str) -> None:
    details = finished_details(finished_scene())
    with pytest.raises(InvalidDataError, match="entries for"):
        dataclasses.replace(details, **{field: getattr(details, field)[:1]})
    if isinstance(getattr(details, field), tuple) and field != "edges":
        with pytest.raises(InvalidDataError, match=f"{field} of .* have not the shape"):
            dataclasses.replace(details, **{field: getattr(details, field)[::-1]})


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
