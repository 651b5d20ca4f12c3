"""Metrics on hand-computed answers, and the invariances their definitions promise."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lora3d_ns.errors import InvalidDataError
from lora3d_ns.evaluation.metrics import (
    RelativePoseErrors,
    absolute_focal_error_percent,
    absolute_trajectory_error,
    accuracy_completeness,
    best_scale,
    gap_closure,
    point_error,
    rank_correlation,
    relative_pose_errors_deg,
    rotation_angle_deg,
    sparsification_error,
)


def turn_about_z(angle_deg: float) -> torch.Tensor:
    c, s = math.cos(math.radians(angle_deg)), math.sin(math.radians(angle_deg))
    return torch.tensor([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)


def random_poses(count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    T = torch.eye(4, dtype=torch.float64).repeat(count, 1, 1)
    rotation = torch.linalg.qr(torch.randn(count, 3, 3, dtype=torch.float64, generator=generator)).Q
    T[:, :3, :3] = rotation * torch.linalg.det(rotation)[:, None, None]
    T[:, :3, 3] = torch.randn(count, 3, dtype=torch.float64, generator=generator)
    return T


def moved(T_world_camera: torch.Tensor, scale: float, T_new_world: torch.Tensor) -> torch.Tensor:
    """The same cameras in a world that was scaled, then moved."""
    scaled = T_world_camera.clone()
    scaled[:, :3, 3] *= scale
    return T_new_world @ scaled


# --- point maps


def test_point_error_by_hand() -> None:
    truth = torch.tensor([[[0.0, 0.0, 1.0], [0.0, 0.0, 2.0], [0.0, 0.0, 3.0]]])
    # Twice the truth, but one pixel off by (0, 3, 4) after the scale of 1/2, which the other two outvote.
    points = 2.0 * truth + torch.tensor([[[0.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 6.0, 8.0]]])
    points, truth = torch.cat([points, 2.0 * truth]), torch.cat([truth, truth])
    assert float(best_scale(points.flatten(0, 1).double(), truth.flatten(0, 1).double())) == pytest.approx(
        0.5, abs=1e-3
    )
    assert point_error([points], [truth]) == pytest.approx(5.0 / 6.0, abs=2e-3)
    valid = torch.ones(2, 3, dtype=torch.bool)
    valid[0, 2] = False
    assert point_error([points], [truth], [valid]) == pytest.approx(0.0, abs=1e-9)


@given(scale=st.floats(0.01, 100.0), seed=st.integers(0, 5))
def test_point_error_is_free_of_the_predictions_scale(scale: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    truth = [torch.randn(4, 5, 3, generator=generator).double() for _ in range(2)]
    points = [map_ + 0.1 * torch.randn(4, 5, 3, generator=generator).double() for map_ in truth]
    expected = point_error(points, truth)
    assert expected > 0
    assert point_error([scale * map_ for map_ in points], truth) == pytest.approx(expected, rel=1e-6)
    assert point_error(points, [scale * map_ for map_ in truth]) == pytest.approx(scale * expected, rel=1e-6)


def test_point_error_of_photos_that_differ_in_shape_weighs_every_pixel_alike() -> None:
    truth = [torch.ones(2, 3, 3), torch.ones(4, 6, 3)]
    points = [truth[0] + torch.tensor([0.0, 0.0, 0.5]), truth[1]]
    assert point_error(points, truth) == pytest.approx(0.5 * 6 / 30, rel=1e-3)


def test_the_scale_minimises_the_mean_distance() -> None:
    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(200, 3, generator=generator).double()
    points = 3.0 * truth + torch.randn(200, 3, generator=generator).double()
    best = best_scale(points, truth)
    at_best = (best * points - truth).norm(dim=1).mean()
    for factor in (0.999, 1.001):
        assert (factor * best * points - truth).norm(dim=1).mean() > at_best


# --- cameras


def test_ate_by_hand() -> None:
    # A unit square of centres; the estimate has one corner lifted by 4 d: the best fit leaves d at each corner.
    truth = torch.eye(4, dtype=torch.float64).repeat(4, 1, 1)
    truth[:, :3, 3] = torch.tensor([[0.0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], dtype=torch.float64)
    estimate = truth.clone()
    lift = 0.01
    estimate[2, 2, 3] += 4 * lift
    assert absolute_trajectory_error(truth, truth) == pytest.approx(0.0, abs=1e-12)
    # Tilt and height absorb three quarters; scale changes only in second order.
    assert absolute_trajectory_error(estimate, truth) == pytest.approx(lift, rel=2e-3)


@given(scale=st.floats(0.1, 10.0), seed=st.integers(0, 5))
def test_ate_is_free_of_frame_and_scale_of_the_estimate(scale: float, seed: int) -> None:
    truth = random_poses(6, seed)
    estimate = truth.clone()
    estimate[:, :3, 3] += 0.05 * random_poses(6, seed + 100)[:, :3, 3]
    expected = absolute_trajectory_error(estimate, truth)
    assert expected > 0
    changed = moved(estimate, scale, random_poses(1, seed + 200)[0])
    assert absolute_trajectory_error(changed, truth) == pytest.approx(expected, rel=1e-6)


def test_ate_refuses_what_fixes_no_similarity() -> None:
    line = torch.eye(4, dtype=torch.float64).repeat(4, 1, 1)
    line[:, 0, 3] = torch.arange(4)
    with pytest.raises(InvalidDataError, match="one line"):
        absolute_trajectory_error(line, line)
    with pytest.raises(InvalidDataError, match="at least 3"):
        absolute_trajectory_error(random_poses(2), random_poses(2))
    with pytest.raises(InvalidDataError, match="4 poses for 3"):
        absolute_trajectory_error(random_poses(4), random_poses(3))


def test_focal_error_by_hand() -> None:
    def K(*focals: float) -> torch.Tensor:
        return torch.diag_embed(torch.tensor([[focal, focal, 1.0] for focal in focals]))

    assert absolute_focal_error_percent(K(110.0, 190.0), K(100.0, 200.0)) == pytest.approx(7.5)


@pytest.mark.parametrize("angle_deg", [1e-7, 0.5, 90.0, 179.0])
def test_rotation_angles(angle_deg: float) -> None:
    # 1e-9 relative even where the cosine is 1 to the last bit.
    assert float(rotation_angle_deg(turn_about_z(angle_deg))) == pytest.approx(angle_deg, rel=1e-7)


def test_relative_pose_errors_by_hand() -> None:
    truth = torch.eye(4, dtype=torch.float64).repeat(3, 1, 1)
    truth[1, 0, 3], truth[2, 1, 3] = 1.0, 1.0
    estimate = truth.clone()
    estimate[2, :3, :3] = turn_about_z(10.0)
    estimate[1, :3, 3] = turn_about_z(30.0) @ truth[1, :3, 3]
    errors = relative_pose_errors_deg(estimate, truth)
    # Pairs (0, 1), (0, 2), (1, 2).
    torch.testing.assert_close(errors.rotation_deg, torch.tensor([0.0, 10.0, 10.0], dtype=torch.float64))
    assert errors.translation_deg[:2].tolist() == pytest.approx([30.0, 0.0])
    # From (1, 0) to (0, 1) turned into from (cos 30, sin 30) to (0, 1): the directions differ by 15 degrees.
    assert float(errors.translation_deg[2]) == pytest.approx(15.0)


@given(scale=st.floats(0.1, 10.0), seed=st.integers(0, 5))
def test_relative_pose_errors_are_free_of_frame_and_scale(scale: float, seed: int) -> None:
    truth, estimate = random_poses(4, seed), random_poses(4, seed + 50)
    expected = relative_pose_errors_deg(estimate, truth)
    changed = relative_pose_errors_deg(moved(estimate, scale, random_poses(1, seed + 99)[0]), truth)
    torch.testing.assert_close(changed.rotation_deg, expected.rotation_deg)
    torch.testing.assert_close(changed.translation_deg, expected.translation_deg)


def test_translations_of_cameras_that_do_not_move() -> None:
    still = torch.eye(4, dtype=torch.float64).repeat(2, 1, 1)
    moving = still.clone()
    moving[1, 0, 3] = 1.0
    assert relative_pose_errors_deg(still, still).translation_deg.tolist() == [0.0]
    assert relative_pose_errors_deg(moving, still).translation_deg.tolist() == [180.0]


def test_accuracies_and_area_by_hand() -> None:
    errors = RelativePoseErrors(
        rotation_deg=torch.tensor([1.0, 10.0, 40.0, 2.0]), translation_deg=torch.tensor([3.0, 20.0, 1.0, 2.0])
    )
    assert errors.rotation_accuracy(15.0) == 0.75
    assert errors.translation_accuracy(15.0) == 0.75
    # Worse of the two: 3, 20, 40, 2 degrees.
    assert errors.area_under_curve(30.0) == pytest.approx((27 / 30 + 10 / 30 + 0 + 28 / 30) / 4)
    assert errors.area_under_curve(5.0) == pytest.approx((2 / 5 + 0 + 0 + 3 / 5) / 4)


# --- clouds


def test_accuracy_and_completeness_by_hand() -> None:
    truth = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [5.0, 0.0, 0.0]])
    points = torch.tensor([[0.0, 0.3, 0.0], [1.0, 0.0, 0.5]])
    accuracy, completeness = accuracy_completeness(points, truth)
    assert accuracy == pytest.approx(0.4)
    assert completeness == pytest.approx((0.3 + 0.5 + math.hypot(4.0, 0.5)) / 3)
    assert accuracy_completeness(truth, points) == pytest.approx((completeness, accuracy))


def test_empty_clouds_are_refused() -> None:
    with pytest.raises(InvalidDataError):
        accuracy_completeness(torch.zeros(0, 3), torch.zeros(2, 3))


# --- confidence


def test_perfect_and_reversed_confidence() -> None:
    error = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    assert rank_correlation(-error, error) == pytest.approx(-1.0)
    assert rank_correlation(error, error) == pytest.approx(1.0)
    assert sparsification_error(-error, error) == pytest.approx(0.0, abs=1e-12)
    assert sparsification_error(error, error) > sparsification_error(torch.rand(1000), error) > 0.1


@given(power=st.floats(0.2, 5.0))
def test_only_the_order_of_confidences_counts(power: float) -> None:
    generator = torch.Generator().manual_seed(1)
    error = torch.rand(300, generator=generator, dtype=torch.float64)
    confidence = torch.rand(300, generator=generator, dtype=torch.float64) + 0.5
    for metric in (rank_correlation, sparsification_error):
        assert metric(confidence**power, error) == pytest.approx(metric(confidence, error), rel=1e-9)
        assert metric(confidence, 3.0 * error) == pytest.approx(metric(confidence, error), rel=1e-9)


def test_sparsification_by_hand() -> None:
    # Errors 1 and 3, the wrong one trusted more. Mean 2; steps x = 0 and 1/2.
    # Curve: 2, 3 against the oracle's 2, 1, over the mean of 2: (0 + 1) / 2.
    assert sparsification_error(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 3.0]), steps=2) == pytest.approx(0.5)
    # Equal confidences claim no order: 2, 2 against 2, 1.
    assert sparsification_error(torch.tensor([1.0, 1.0]), torch.tensor([1.0, 3.0]), steps=2) == pytest.approx(0.25)


def test_confidences_without_ranks_are_refused() -> None:
    with pytest.raises(InvalidDataError, match="confidence is constant"):
        rank_correlation(torch.ones(5), torch.rand(5))
    with pytest.raises(InvalidDataError, match="zero everywhere"):
        sparsification_error(torch.rand(5), torch.zeros(5))


# --- self-calibration


def test_gap_closure_of_the_papers_means() -> None:
    # Replica, means of the eight scenes: 15.96, 13.02 and 11.26 cm; the paper's digest says 62 %.
    assert gap_closure(15.96, 13.02, 11.26) == pytest.approx(0.62, abs=0.01)
    with pytest.raises(InvalidDataError, match="no gap"):
        gap_closure(1.0, 0.5, 1.0)
