"""Training data: the same for the same step, the same from the cache as rendered, and true in a mirror."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lora3d_ns.errors import InvalidDataError, SettingsError
from lora3d_ns.rooms import pretrain_data
from lora3d_ns.rooms.pretrain_data import (
    CachedRooms,
    GroupSampling,
    RenderedRooms,
    RoomViewGroups,
    RoomViewSettings,
    cache_rooms,
    mirror_groups,
    photos_and_pairs,
)
from lora3d_ns.rooms.pretrain_loss import PairTruth, pair_truth, points_from_depth

SMALL = RoomViewSettings(view_count=4, image_size_px=32, supersample=1)
SAMPLING = GroupSampling(scene_count=64, rooms_per_step=4, views_per_room=3, first_window=3, window_steps=10)


@pytest.fixture(scope="module")
def cached(tmp_path_factory: pytest.TempPathFactory) -> CachedRooms:
    return cache_rooms(SMALL, 64, tmp_path_factory.mktemp("photos"))


def test_cached_photos_are_those_that_would_be_rendered(cached: CachedRooms):
    views = np.array([[0, 2, 3], [3, 1, 0]])
    rendered = RenderedRooms(settings=SMALL, device=torch.device("cpu")).load([5, 17], views)
    loaded = cached.load([5, 17], views)
    assert (loaded.rgb - rendered.rgb).abs().max() <= 0.5 / 255 + 1e-6
    torch.testing.assert_close(loaded.depth_m, rendered.depth_m, rtol=5e-4, atol=0.0)
    torch.testing.assert_close(loaded.K, rendered.K)
    torch.testing.assert_close(loaded.T_world_camera, rendered.T_world_camera)


def test_caching_goes_on_where_it_was_and_refuses_another_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pretrain_data, "_SCENES_PER_CHUNK", 2)
    cache_rooms(SMALL, 2, tmp_path)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.npy")}
    assert cache_rooms(SMALL, 3, tmp_path).scene_count == 4
    assert {name: (tmp_path / name).stat().st_mtime_ns for name in before} == before
    with pytest.raises(SettingsError, match="other rooms"):
        cache_rooms(RoomViewSettings(view_count=5, image_size_px=32, supersample=1), 2, tmp_path)
    assert json.loads((tmp_path / "manifest.json").read_text())["view_count"] == 4


def test_rooms_that_are_not_cached_are_refused(cached: CachedRooms):
    with pytest.raises(InvalidDataError, match="Cache more rooms"):
        cached.load([64], np.array([[0, 1]]))


def test_a_step_sees_the_same_again_and_another_step_something_else(cached: CachedRooms):
    first, again, other = (SAMPLING.draw(cached, step) for step in (7, 7, 8))
    assert torch.equal(first.rgb, again.rgb)
    assert torch.equal(first.depth_m, again.depth_m)
    assert not torch.equal(first.depth_m, other.depth_m)


def test_each_pass_goes_through_all_rooms_once_in_its_own_order():
    passes = [
        [index for step in range(16 * number, 16 * (number + 1)) for index in SAMPLING.scene_indices(step)]
        for number in range(2)
    ]
    assert [sorted(seen) for seen in passes] == [list(range(64))] * 2
    assert passes[0] != passes[1]


def test_the_window_grows_from_near_views_to_the_whole_path():
    assert [SAMPLING.window(step, 8) for step in (0, 5, 9, 10, 1000)] == [3, 5, 7, 8, 8]
    assert SAMPLING.pairs_per_step == 24


def _truth(groups: RoomViewGroups, views: tuple[int, int]) -> PairTruth:
    return pair_truth(groups.photos(views[0]), groups.photos(views[1]), 8)


def test_mirrored_truth_is_the_truth_mirrored(cached: CachedRooms):
    groups = cached.load([1, 2], np.array([[0, 1], [2, 3]]))
    mirrored = mirror_groups(groups, torch.tensor([True, False]))
    plain, seen = (_truth(made, (0, 1)) for made in (groups, mirrored))
    for name in ("points_first", "points_second"):
        expected = getattr(plain, name)[:1].flip(2) * torch.tensor([-1.0, 1.0, 1.0])
        torch.testing.assert_close(getattr(seen, name)[:1], expected, rtol=1e-4, atol=1e-4)
        assert torch.equal(getattr(seen, name)[1:], getattr(plain, name)[1:])
    determinants = torch.linalg.det(mirrored.T_world_camera[..., :3, :3])
    torch.testing.assert_close(determinants, torch.ones_like(determinants))
    assert torch.equal(mirrored.rgb[0], groups.rgb[0].flip(-1))


def test_all_ordered_pairs_within_rooms_by_size(cached: CachedRooms):
    square = cached.load([1, 2], np.array([[0, 1, 2], [0, 1, 2]]))
    landscape, portrait = (24, 32), (32, 24)
    groups = replace(square, sizes=(landscape, portrait, landscape))
    photos, batches = photos_and_pairs(groups)
    assert {size: len(made.rgb) for size, made in photos.items()} == {landscape: 4, portrait: 2}
    found = set()
    for batch in batches:
        first, second = photos[batch.first_size].select(batch.first), photos[batch.second_size].select(batch.second)
        assert (first.size, second.size) == (batch.first_size, batch.second_size)
        for one, other in zip(first.T_world_camera, second.T_world_camera, strict=True):
            places = [
                next((r, v) for r in range(2) for v in range(3) if torch.equal(groups.T_world_camera[r, v], T))
                for T in (one, other)
            ]
            found.add((places[0], places[1]))
    assert found == {((r, i), (r, j)) for r in range(2) for i in range(3) for j in range(3) if i != j}


def test_a_cropped_photo_keeps_its_points(cached: CachedRooms):
    photos = cached.load([3], np.array([[0, 1]])).photos(0)
    cropped = photos.crop((24, 32))
    points = points_from_depth(photos.depth_m, photos.K)
    torch.testing.assert_close(points_from_depth(cropped.depth_m, cropped.K), points[:, 4:28])


def test_half_of_the_steps_have_photos_of_a_phone(cached: CachedRooms):
    sizes = [SAMPLING.draw(cached, step).sizes for step in range(40)]
    assert {size for step in sizes for size in step} == {(32, 32), (24, 32), (32, 24)}
    square = sum(step == ((32, 32),) * 3 for step in sizes)
    assert 10 <= square <= 30


def test_photos_of_a_group_are_changed_alike(cached: CachedRooms):
    plain_sampling = GroupSampling(
        scene_count=64, rooms_per_step=4, gain_range=(1.0, 1.0), gamma_range=(1.0, 1.0), tint=0.0, mirror=False
    )
    changed_sampling = GroupSampling(
        scene_count=64, rooms_per_step=4, gain_range=(0.5, 0.6), gamma_range=(1.0, 1.0), tint=0.0, mirror=False
    )
    ratio = changed_sampling.draw(cached, 3).rgb / plain_sampling.draw(cached, 3).rgb.clamp_min(1e-3)
    per_view = ratio.flatten(2).median(dim=2).values
    torch.testing.assert_close(per_view, per_view[:, :1].expand_as(per_view))
    assert ((per_view >= 0.5) & (per_view <= 0.6)).all()


@pytest.mark.parametrize(
    "change",
    [
        {"scene_count": 0}, {"rooms_per_step": 65}, {"views_per_room": 1}, {"first_window": 2}, {"window_steps": -1},
        {"gain_range": (0.0, 1.0)}, {"gamma_range": (2.0, 1.0)}, {"tint": 1.0},
        {"phone_share": 1.1}, {"landscape_share": -0.1},
    ],
)  # fmt: skip
def test_sampling_that_makes_no_sense_is_refused(change: dict):
    with pytest.raises(SettingsError):
        GroupSampling(**{"scene_count": 64, **change})


@pytest.mark.parametrize(
    "change", [{"domain": "moon"}, {"view_count": 1}, {"image_size_px": 4}, {"supersample": 0}, {"seed": -1}]
)
def test_photos_that_make_no_sense_are_refused(change: dict):
    with pytest.raises(SettingsError):
        RoomViewSettings(**change)
