"""The scene as nerfstudio sees it: the same world, the same pixels, made once."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import lora3d_ns.photo_scene as photo_scene_module
from lora3d_ns.errors import NoPhotosError, SettingsError
from lora3d_ns.pair_graph import WindowGraph
from lora3d_ns.plugin.dataparser import (
    Lora3dDataParser,
    Lora3dDataParserConfig,
    nerfstudio_cameras,
    scene_folder,
    scene_poses,
    settings_of,
)
from lora3d_ns.reconstruct import ReconstructSettings


def config(photos: Path, **changes: Any) -> Lora3dDataParserConfig:
    scene = photos.parent / "parsed"
    ours: dict[str, Any] = {"network": "rooms", "arm": "robust", "device": "cpu", **changes}
    return dataclasses.replace(Lora3dDataParserConfig(), data=photos, scene=scene, **ours)


@pytest.fixture(scope="module")
def parser(photos: Path) -> Lora3dDataParser:
    made = Lora3dDataParser(config(photos))
    assert made.photo_scene.folder == photos.parent / "parsed"
    return made


def test_every_setting_of_the_method_arrives(photos: Path) -> None:
    given = dataclasses.replace(config(photos), arm="self_calibrated", graph="window", matches="off", rounds=2, seed=7)
    settings = settings_of(given)
    assert (settings.arm, settings.rounds, settings.finetune.seed) == ("self_calibrated", 2, 7)
    assert settings.graph == WindowGraph()
    assert settings.alignment.matches == "off"
    assert settings_of(config(photos, arm="self_calibrated")) == ReconstructSettings()
    with pytest.raises(SettingsError, match="0 rounds"):
        settings_of(config(photos, rounds=0))


def test_splits(parser: Lora3dDataParser) -> None:
    train = parser.get_dataparser_outputs("train")
    assert [path.name for path in train.image_filenames] == ["0.png", "1.png", "3.png", "4.png"]
    for split in ("val", "test"):
        held_out = parser.get_dataparser_outputs(split)
        assert [path.name for path in held_out.image_filenames] == ["2.png"]
        assert held_out.metadata == {"held_out": True}


def test_a_point_of_the_scene_is_seen_by_nerfstudios_cameras_where_ours_see_it(parser: Lora3dDataParser) -> None:
    """nerfstudio's ray through our projection of a point passes through the point, for every camera."""
    scene = parser.photo_scene
    outputs = parser.get_dataparser_outputs("train")
    points = outputs.metadata["points3D_xyz"][::97].double()
    for index, photo in enumerate(scene.training):
        T_camera_world = torch.linalg.inv(photo.T_world_camera)
        seen = points @ T_camera_world[:3, :3].T + T_camera_world[:3, 3]
        seen, world = seen[seen[:, 2] > 0], points[seen[:, 2] > 0]
        pixels = (seen @ photo.K.T)[:, :2] / seen[:, 2:]
        rays = outputs.cameras.generate_rays(torch.full((len(world), 1), index), coords=pixels.flip(-1).float())
        towards = world.float() - rays.origins
        along = (towards * rays.directions).sum(dim=-1, keepdim=True)
        assert bool((along > 0).all())
        distance = (towards - along * rays.directions).norm(dim=-1) / along[:, 0]
        # In radians; a pixel is 0.01. Single precision: 4e-7 measured.
        assert float(distance.max()) < 5e-6


def test_world_unit_and_resolution_are_the_scenes_own(parser: Lora3dDataParser) -> None:
    outputs = parser.get_dataparser_outputs("train")
    scene = parser.photo_scene
    assert torch.equal(outputs.dataparser_transform, torch.eye(4)[:3])
    assert outputs.dataparser_scale == 1.0
    assert outputs.cameras.width[:, 0].tolist() == [96] * 4
    assert outputs.cameras.height[:, 0].tolist() == [64] * 4
    back = scene_poses(outputs.cameras.camera_to_worlds)
    assert torch.allclose(back, torch.stack([photo.T_world_camera for photo in scene.training]).float(), atol=1e-6)
    assert torch.allclose(back[0], torch.eye(4), atol=1e-6)
    for name, values in (
        ("xyz", scene.scene.points),
        ("rgb", scene.scene.colors),
        ("weights", scene.scene.point_weights),
    ):
        assert torch.equal(outputs.metadata[f"points3D_{name}"], values)
    low, high = outputs.scene_box.aabb
    inside = ((scene.scene.points >= low) & (scene.scene.points <= high)).all(dim=1).float().mean()
    assert 0.9 < float(inside) <= 1.0


def test_every_photo_has_a_mask_where_one_has(parser: Lora3dDataParser) -> None:
    outputs = parser.get_dataparser_outputs("train")
    assert outputs.mask_filenames is not None
    masks = [np.asarray(Image.open(path)) for path in outputs.mask_filenames]
    assert [mask.shape for mask in masks] == [(64, 96)] * 4
    assert not masks[2][:, :30].any()
    assert masks[2][:, 30:].all()
    assert all(mask.all() for number, mask in enumerate(masks) if number != 2)


def test_the_finished_scene_is_found_without_the_network(
    photos: Path, parser: Lora3dDataParser, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("the network was asked for")

    monkeypatch.setattr(photo_scene_module, "open_source", never)
    monkeypatch.setattr(photo_scene_module, "reconstruct", never)
    again = Lora3dDataParser(config(photos))
    for split in ("train", "test"):
        first, second = (one.get_dataparser_outputs(split) for one in (parser, again))
        assert first.image_filenames == second.image_filenames
        assert torch.equal(first.cameras.camera_to_worlds, second.cameras.camera_to_worlds)


def test_without_a_folder_the_scene_is_named_by_its_content(photos: Path, parser: Lora3dDataParser) -> None:
    assert scene_folder(parser.config, Path("elsewhere")) == photos.parent / "parsed"
    named = [
        scene_folder(dataclasses.replace(config(photos, **change), scene=None), Path("outputs"))
        for change in ({}, {}, {"split": "all"}, {"at_most": 4}, {"seed": 1})
    ]
    assert named[0] == named[1]
    assert len(set(named)) == 4
    assert all(folder.parent == Path("outputs").absolute() for folder in named)


def test_bad_input_is_named_before_any_work(tmp_path: Path) -> None:
    tmp_path.joinpath("empty").mkdir()
    with pytest.raises(NoPhotosError, match="empty"):
        scene_folder(dataclasses.replace(Lora3dDataParserConfig(), data=tmp_path / "empty"), tmp_path)
    with pytest.raises(SettingsError, match="interval of 1"):
        Lora3dDataParser(config(tmp_path, eval_interval=1)).get_dataparser_outputs("train")


def test_cameras_of_mixed_shapes(parser: Lora3dDataParser) -> None:
    first, second = parser.photo_scene.training[:2]
    mixed = nerfstudio_cameras((first, dataclasses.replace(second, size=(64, 96))))
    assert mixed.width[:, 0].tolist() == [96, 64]
    assert mixed.height[:, 0].tolist() == [64, 96]
