"""What is known beforehand, before anything is solved."""

import dataclasses

import pytest
import torch
from aligned_rooms import replaced, room
from alignment_samples import generic_problem

from lora3d_ns.alignment.known import (
    check_distances,
    focal_groups,
    intrinsics_to_begin_with,
    known_poses,
    moved_to_known_poses,
    scaled_about_known_poses,
)
from lora3d_ns.alignment.settings import AlignmentSettings, KnownDistance
from lora3d_ns.alignment.state import rotation_from_vector
from lora3d_ns.conventions import PixelAffine
from lora3d_ns.errors import SettingsError
from lora3d_ns.types import Views


def _views_of_three(make_views) -> Views:
    views = make_views([(24, 32), (24, 32), (12, 16)])
    # The third photo is seen at half the resolution.
    half = PixelAffine(scale_x=2.0, scale_y=2.0, offset_x_px=0.0, offset_y_px=0.0)
    return dataclasses.replace(views, source_from_network=(*views.source_from_network[:2], half))


def _K(focal_px: float) -> torch.Tensor:
    return torch.tensor([[focal_px, 0.0, 16.0], [0.0, focal_px, 12.0], [0.0, 0.0, 1.0]])


def test_photos_of_one_lens_share_a_focal_length_in_source_pixels(make_views) -> None:
    views = _views_of_three(make_views)
    estimated = torch.tensor([30.0, 40.0, 18.0], dtype=torch.float64)
    shared = intrinsics_to_begin_with(views, estimated, (0, 0, 0))
    # In source pixels 30, 40 and 36.
    assert shared.focal_px[:, 0].tolist() == [36.0, 36.0, 18.0]
    assert shared.known == frozenset()
    each = intrinsics_to_begin_with(views, estimated, (0, 1, 2))
    assert each.focal_px[:, 1].tolist() == [30.0, 40.0, 18.0]


def test_a_known_focal_length_holds_for_its_group_to_begin_with(make_views) -> None:
    views = replaced(_views_of_three(make_views), known_K={1: _K(33.0)})
    estimated = torch.tensor([30.0, 40.0, 18.0], dtype=torch.float64)
    found = intrinsics_to_begin_with(views, estimated, (0, 0, 0))
    assert found.focal_px[:, 0].tolist() == [33.0, 33.0, 16.5]
    assert found.known == frozenset({1})
    assert found.warnings == ()


@pytest.mark.parametrize(("focal_px", "flagged"), [(60.0, True), (24.0, True), (30.0, False), (50.0, False)])
def test_a_known_focal_length_is_compared_with_the_estimate(make_views, focal_px: float, flagged: bool) -> None:
    views = replaced(_views_of_three(make_views), known_K={1: _K(focal_px)})
    found = intrinsics_to_begin_with(views, torch.tensor([40.0, 40.0, 20.0], dtype=torch.float64), (0, 1, 2))
    assert any("1.png" in warning for warning in found.warnings) == (flagged and not 0.625 < focal_px / 40.0 < 1.6)
    assert float(found.focal_px[1, 0]) == focal_px


def test_groups_of_one_focal_length(make_views) -> None:
    views = dataclasses.replace(make_views([(6, 8)] * 4), lens_groups=("wide", "tele", "wide", "tele"))
    assert focal_groups(views, "auto") == (0, 1, 0, 1)
    assert focal_groups(views, "shared") == (0, 0, 0, 0)
    assert focal_groups(views, "per_image") == (0, 1, 2, 3)


def test_known_poses_are_met_and_everything_else_comes_along() -> None:
    problem = generic_problem()
    state = problem.state
    turn = rotation_from_vector(torch.tensor([0.3, -1.2, 0.5], dtype=torch.float64))
    there = state.T_world_camera.clone()
    there[:, :3, :3] = turn @ there[:, :3, :3]
    there[:, :3, 3] = 7.0 * there[:, :3, 3] @ turn.T + torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    views = replaced(problem.views, known_T_world_camera={0: there[0], 2: there[2]})
    moved, unit, metric = moved_to_known_poses(state, 1.5, known_poses(views))
    assert metric
    assert unit == pytest.approx(7.0 * 1.5)
    torch.testing.assert_close(moved.T_world_camera, there)
    torch.testing.assert_close(moved.world_from_edge.scale, 7.0 * state.world_from_edge.scale)


def test_one_pose_and_poses_in_one_place_fix_no_scale() -> None:
    problem = generic_problem()
    T = problem.state.T_world_camera
    for known in ({1: T[1]}, {0: T[0], 1: torch.cat([torch.cat([T[1, :3, :3], T[0, :3, 3:]], dim=1), T[0, 3:]])}):
        poses = known_poses(replaced(problem.views, known_T_world_camera=known))
        assert not poses.fix_scale
        moved, unit, metric = moved_to_known_poses(problem.state, 1.5, poses)
        assert not metric
        assert unit == pytest.approx(1.5)
        for view, pose in known.items():
            torch.testing.assert_close(moved.T_world_camera[view], pose)


def test_nothing_known_changes_nothing() -> None:
    problem = generic_problem()
    moved, unit, metric = moved_to_known_poses(problem.state, 1.5, known_poses(problem.views))
    assert moved is problem.state
    assert (unit, metric) == (1.5, False)


def test_another_unit_leaves_the_known_camera_where_it_is() -> None:
    problem = generic_problem()
    T = problem.state.T_world_camera
    poses = known_poses(replaced(problem.views, known_T_world_camera={1: T[1]}))
    scaled = scaled_about_known_poses(problem.state, 3.0, poses).T_world_camera
    torch.testing.assert_close(scaled[1], T[1])
    torch.testing.assert_close(scaled[0, :3, 3] - scaled[2, :3, 3], 3.0 * (T[0, :3, 3] - T[2, :3, 3]))
    about_origin = scaled_about_known_poses(problem.state, 3.0, known_poses(problem.views)).T_world_camera
    torch.testing.assert_close(about_origin[:, :3, 3], 3.0 * T[:, :3, 3])


@pytest.mark.parametrize("distance", [0.0, -1.0, float("nan"), float("inf")])
def test_a_length_must_be_positive(distance: float) -> None:
    with pytest.raises(SettingsError, match="a known distance of"):
        KnownDistance(first="a", second="b", distance=distance)


def test_a_pixel_outside_the_photo_is_named_before_anything_is_solved() -> None:
    photos = room(3, source_scale=2.0)
    known = KnownDistance(first="simulated-00", second="simulated-02", first_px=(127.9, 95.9), distance=1.0)
    check_distances([known], photos.views, known_poses(photos.views))
    outside = dataclasses.replace(known, first_px=(127.9, 96.1))
    with pytest.raises(SettingsError, match="outside what is used of simulated-00"):
        check_distances([outside], photos.views, known_poses(photos.views))


@pytest.mark.parametrize(
    "wrong",
    [
        {"mu": 0.0},
        {"mu": float("nan")},
        {"tolerance": float("inf")},
        {"cutoff": -0.1},
        {"match_weight": -1.0},
        {"coarse_pixels": 0},
        {"coarse_iterations": 0},
        {"full_iterations": 0},
        {"pose_prior_deg": 0.0},
        {"pose_prior_share": -1.0},
    ],
)
def test_settings_out_of_range_are_refused(wrong) -> None:
    with pytest.raises(SettingsError, match=next(iter(wrong))):
        AlignmentSettings(**wrong)
