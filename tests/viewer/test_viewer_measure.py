"""Two points and their true distance: the whole scene gets the scale, on disk too, or stays as it was."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from report.report_samples import scene_and_details

from lora3d_ns.errors import SettingsError, StorageError
from lora3d_ns.geometry.camera import points_from_depth
from lora3d_ns.scene_io.details import SceneDetails
from lora3d_ns.scene_io.scenes import DETAILS_FILE, PICTURE_FILE, SCENE_FILE, load_details, load_scene, save_scene
from lora3d_ns.types import Scene
from lora3d_ns.viewer.measure import (
    Measured,
    point_on_ray,
    rescaled_details,
    rescaled_scene,
    scale_known,
    stamp_of,
    write_scale,
)
from lora3d_ns.viewer.state import ViewState, picked_length, viewed_scene

ORIGIN, AHEAD = torch.zeros(3).double(), torch.tensor([0.0, 0.0, 1.0]).double()


def test_a_click_picks_the_point_on_the_nearest_surface() -> None:
    wall = torch.tensor([[x / 100, y / 100, 10.0] for x in range(-5, 6) for y in range(-5, 6)])
    table = torch.tensor([[0.004, 0.0, 2.0], [0.016, 0.0, 2.02], [0.0, 0.2, 2.0]])
    points = torch.cat([wall, table])
    # The wall has a point right on the ray, the table before it one beside it.
    assert point_on_ray(points, ORIGIN, AHEAD) == len(wall)
    assert point_on_ray(points, ORIGIN, 7.0 * AHEAD) == len(wall)
    assert point_on_ray(points, ORIGIN, torch.tensor([0.008, 0.0, 1.0]).double()) == len(wall) + 1
    assert point_on_ray(wall, ORIGIN, AHEAD) == 60
    # Behind the eye there is nothing to click on.
    assert point_on_ray(-points, ORIGIN, AHEAD) is None
    assert point_on_ray(points[:0], ORIGIN, AHEAD) is None
    # Two degrees beside the only point it is meant, four degrees beside it is not.
    for angle_deg, found in ((2.0, 0), (4.0, None)):
        angle = math.radians(angle_deg)
        ray = torch.tensor([math.sin(angle), 0.0, math.cos(angle)]).double()
        assert point_on_ray(torch.tensor([[0.0, 0.0, 5.0]]), ORIGIN, ray) == found
    broken = torch.tensor([[math.nan, 0.0, 1.0], [0.0, 0.0, 3.0]])
    assert point_on_ray(broken, ORIGIN, AHEAD) == 1


def test_what_is_no_length_sets_no_scale() -> None:
    assert Measured(length=3.0, shown_length=1.5).factor == 2.0
    for length, shown in ((0.0, 1.0), (-1.0, 1.0), (1.0, 0.0), (math.nan, 1.0), (math.inf, 1.0)):
        with pytest.raises(SettingsError, match="true distance"):
            Measured(length=length, shown_length=shown)


def test_all_lengths_grow_and_nothing_else() -> None:
    scene, details = scene_and_details(3)
    new_scene, new = rescaled_scene(scene, Measured(length=5.0, shown_length=2.0)), rescaled_details(details, 2.5)
    assert torch.allclose(new_scene.points, 2.5 * scene.points)
    old_T, new_T = scene.cameras.T_world_camera, new_scene.cameras.T_world_camera
    assert torch.allclose(new_T[:, :3, 3], 2.5 * old_T[:, :3, 3])
    assert torch.equal(new_T[:, :3, :3], old_T[:, :3, :3])
    assert torch.equal(new_scene.cameras.K, scene.cameras.K)
    assert new_scene.provenance["scale"] == {
        "known": True,
        "by": "two points picked in the viewer",
        "length": 5.0,
        "length_before": 2.0,
    }
    assert new_scene.provenance["settings"] == scene.provenance["settings"]
    # Points of the depths lie where the scene's cameras now see them.
    for view in range(3):
        K = details.source_from_network[view].K_network_from_source(scene.cameras.K[view]).float()
        old, grown = points_from_depth(details.depths[view], K), points_from_depth(new.depths[view], K)
        assert torch.allclose(grown, 2.5 * old)
        assert torch.allclose(new.residuals[view], 2.5 * details.residuals[view])
    assert new.diagnosis.unit == 2.5 * details.diagnosis.unit
    assert new.diagnosis.scale_known
    assert torch.equal(new.diagnosis.edge_residuals, details.diagnosis.edge_residuals)
    assert new.diagnosis.baseline == details.diagnosis.baseline
    assert new.weights is details.weights
    assert new.learning is not None
    assert details.learning is not None
    assert new.learning.before.diagnosis.unit == 2.5 * details.learning.before.diagnosis.unit
    assert torch.allclose(new.learning.before.depths[0], 2.5 * details.learning.before.depths[0])
    assert not scale_known(scene, details)
    assert scale_known(new_scene, None)
    assert scale_known(scene, new)


def test_half_precision_stays_where_it_holds_the_values() -> None:
    _, details = scene_and_details(3)
    half = dataclasses.replace(details, residuals=tuple(residual.half() for residual in details.residuals))
    assert all(residual.dtype == torch.float16 for residual in rescaled_details(half, 3.0).residuals)
    for factor in (1e7, 1e-4):
        grown = rescaled_details(half, factor).residuals
        assert all(residual.dtype == torch.float32 for residual in grown)
        assert float(grown[0].mean()) == pytest.approx(0.1 * factor, rel=1e-3)


def test_maps_that_both_scenes_share_are_shared_afterwards() -> None:
    _, details = scene_and_details(3, accepted=False)
    assert details.learning is not None
    assert details.learning.before.depths[0] is details.depths[0]
    new = rescaled_details(details, 2.0)
    assert new.learning is not None
    assert all(a is b for a, b in zip(new.learning.before.depths, new.depths, strict=True))


def test_the_picked_points_have_the_distance_that_was_typed(tmp_path: Path) -> None:
    scene, details, folder = saved(tmp_path)
    viewed = viewed_scene(scene, details, most_points=10**9)
    first, second = viewed.cloud.points[100], viewed.cloud.points[-100]
    places = viewed.shown.apply(torch.stack([first, second]).double()).tolist()
    state = ViewState(picks=tuple((x, y, z) for x, y, z in places))
    shown = picked_length(viewed, state)
    assert shown == pytest.approx(float((first - second).norm()), rel=1e-5)
    assert shown is not None
    assert picked_length(viewed, ViewState(picks=state.picks[:1])) is None
    assert picked_length(viewed, ViewState(picks=(state.picks[0],) * 2)) is None

    measured = Measured(length=1.2, shown_length=shown)
    written, new_details, stamp = write_scale(folder, scene, details, measured, stamp=stamp_of(folder))
    again = viewed_scene(load_scene(folder), load_details(folder), most_points=10**9)
    # What is shown has not moved; its lengths are others.
    assert picked_length(again, state) == pytest.approx(1.2, rel=1e-5)
    assert float((again.cloud.points[100] - again.cloud.points[-100]).norm()) == pytest.approx(1.2, rel=1e-5)
    assert torch.equal(written.points, again.scene.points)
    assert new_details is not None
    assert stamp == stamp_of(folder)
    # A second one follows on the first.
    write_scale(folder, written, new_details, Measured(length=3.0, shown_length=1.2), stamp=stamp)
    last = load_scene(folder)
    assert torch.allclose(last.points, scene.points * 3.0 / shown, rtol=1e-5)
    assert (folder / PICTURE_FILE).read_bytes() == b"a picture"


def test_a_scene_without_details_gets_a_scale_too(tmp_path: Path) -> None:
    scene, _ = scene_and_details(3)
    folder = tmp_path / "scene"
    save_scene(scene, folder)
    _, details, _ = write_scale(folder, scene, None, Measured(length=2.0, shown_length=1.0), stamp=stamp_of(folder))
    assert details is None
    assert sorted(path.name for path in folder.iterdir()) == ["cameras.json", SCENE_FILE]
    assert torch.equal(load_scene(folder).points, 2.0 * scene.points)


def test_nothing_is_written_over_another_scene_or_other_files(tmp_path: Path) -> None:
    scene, details, folder = saved(tmp_path)
    stamp, measured = stamp_of(folder), Measured(length=2.0, shown_length=1.0)
    other, _ = scene_and_details(3, learnt=False)
    save_scene(other, folder)
    with pytest.raises(StorageError, match="another scene was written here"):
        write_scale(folder, scene, details, measured, stamp=stamp)
    assert torch.equal(load_scene(folder).points, other.points)
    assert load_scene(folder).provenance["arm"] == "robust"

    (folder / "notes.txt").write_text("mine")
    with pytest.raises(StorageError, match=r"notes\.txt"):
        write_scale(folder, other, None, measured, stamp=stamp_of(folder))
    assert (folder / "notes.txt").read_text() == "mine"
    assert "scale" not in load_scene(folder).provenance


def test_a_scene_that_splats_hang_on_keeps_its_scale(tmp_path: Path) -> None:
    scene, details, folder = saved(tmp_path)
    (tmp_path / "photos.json").write_text("{}")
    before = {name: (folder / name).read_bytes() for name in (SCENE_FILE, DETAILS_FILE)}
    with pytest.raises(StorageError, match="splats hang on its scale"):
        write_scale(folder, scene, details, Measured(length=2.0, shown_length=1.0), stamp=stamp_of(folder))
    assert before == {name: (folder / name).read_bytes() for name in (SCENE_FILE, DETAILS_FILE)}


def saved(tmp_path: Path) -> tuple[Scene, SceneDetails, Path]:
    scene, details = scene_and_details(3)
    folder = tmp_path / "scene"
    save_scene(scene, folder, details=details, draw=lambda path: path.write_bytes(b"a picture"))
    return scene, details, folder
