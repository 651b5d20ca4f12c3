"""Pair metrics: known answers, and poses from point maps."""

import math

import pytest
import torch

from lora3d_ns.errors import InvalidDataError, SettingsError
from lora3d_ns.network.base import Encoding, PairOutput
from lora3d_ns.rooms.validation import (
    ValidationPairs,
    constant_errors,
    direction_errors_deg,
    headline,
    pair_errors,
    relative_poses,
    rotation_errors_deg,
    sample_validation_pairs,
    validate,
)


def rotation(axis: list[float], angle_deg: float) -> torch.Tensor:
    x, y, z = (torch.tensor(axis, dtype=torch.float64) / math.hypot(*axis)).tolist()
    skew = torch.tensor([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]], dtype=torch.float64)
    return torch.linalg.matrix_exp(math.radians(angle_deg) * skew)


@pytest.fixture(scope="module")
def pairs() -> ValidationPairs:
    return sample_validation_pairs("nominal", 6, image_size_px=32)


class Oracle:
    """Knows the truth of some pairs by their images; implements `PairNetwork`."""

    patch_size = 8
    device = torch.device("cpu")

    def __init__(self, pairs: ValidationPairs, *, scale: float = 1.0) -> None:
        self.pairs, self.scale = pairs, scale
        self.images = torch.cat([pairs.images_first, pairs.images_second])

    def encode(self, images: torch.Tensor) -> Encoding:
        names = (images[:, None] - self.images[None]).abs().flatten(2).sum(dim=-1).argmin(dim=1)
        return Encoding(tokens=names[:, None, None].float(), height=images.shape[2], width=images.shape[3])

    def decode(self, first: Encoding, second: Encoding) -> PairOutput:
        T = self.pairs.T_first_second
        count = len(self.pairs)
        in_first, in_second = [], []
        for i, j in zip(first.tokens.flatten().long().tolist(), second.tokens.flatten().long().tolist(), strict=True):
            own = [self.own(k) for k in (i, j)]
            pose = T[i] if i < count else torch.linalg.inv(T[i - count])
            pose = torch.eye(4) if i == j else pose
            in_first.append(own[0])
            in_second.append(own[1] @ pose[:3, :3].T + pose[:3, 3])
        points_first, points_second = torch.stack(in_first) * self.scale, torch.stack(in_second) * self.scale
        return PairOutput(
            points_first=points_first,
            points_second=points_second,
            confidence_first=1.0 + torch.rand(points_first.shape[:3]),
            confidence_second=1.0 + torch.rand(points_first.shape[:3]),
        )

    def own(self, k: int) -> torch.Tensor:
        """Points of a photo in its own camera."""
        count = len(self.pairs)
        if k < count:
            return self.pairs.points_first[k]
        T = torch.linalg.inv(self.pairs.T_first_second[k - count])
        return self.pairs.points_second[k - count] @ T[:3, :3].T + T[:3, 3]


def test_the_pairs_are_what_they_claim_to_be(pairs: ValidationPairs):
    assert len(pairs) == 6
    assert pairs.overlap.min() > 0.4
    again = sample_validation_pairs("nominal", 6, image_size_px=32)
    assert torch.equal(again.images_first, pairs.images_first)
    other = sample_validation_pairs("nominal", 6, image_size_px=32, seed=5)
    assert not torch.equal(other.images_first, pairs.images_first)


def test_sparse_pairs_share_little():
    assert sample_validation_pairs("sparse", 4, image_size_px=32).overlap.max() < 0.3


def test_the_truth_has_no_error_at_any_scale(pairs: ValidationPairs):
    metrics = validate(Oracle(pairs, scale=3.0), pairs)
    # Worst seen: 0.005 degrees, from float32 point maps.
    assert metrics["rotation_deg_median"] < 0.02
    assert metrics["translation_deg_median"] < 0.2
    assert metrics["point_error_median"] < 1e-4
    assert metrics["single_view"]["rotation_deg_median"] == pytest.approx(metrics["rotation_true_deg_median"])
    assert metrics["single_view"]["translation_deg_median"] == pytest.approx(90.0)
    assert metrics["single_view"]["point_error_median"] > 0.02
    assert "constant" not in metrics
    assert "rotation" in headline(metrics)


def test_the_constant_answer_is_worse_than_the_truth_and_of_one_size(pairs: ValidationPairs):
    errors = constant_errors(sample_validation_pairs("nominal", 6, image_size_px=32, seed=5), pairs)
    assert errors.point_error.min() > 0.05
    torch.testing.assert_close(errors.translation_deg, torch.full((6,), 90.0))
    with pytest.raises(InvalidDataError, match="another size"):
        constant_errors(sample_validation_pairs("nominal", 2, image_size_px=16, seed=5), pairs)


def test_point_error_of_points_moved_by_a_tenth_of_the_depth(pairs: ValidationPairs):
    moved = pairs.points_second.clone()
    moved[..., 0] += 0.1 * pairs.mean_depth_m[:, None, None]
    errors = pair_errors(pairs.points_first, moved, pairs.T_first_second, pairs)
    # Half of the points are off by a tenth of the depth. The sum of distances (not of squares) is smallest where the
    # other half is exact, so the scale stays 1.
    torch.testing.assert_close(errors.point_error, torch.full((6,), 0.05), rtol=1e-2, atol=0.0)
    assert errors.rotation_deg.max() < 1e-3


def test_points_of_low_confidence_hardly_count_for_poses(pairs: ValidationPairs):
    oracle = Oracle(pairs)
    first, second = oracle.encode(pairs.images_first), oracle.encode(pairs.images_second)
    forward, backward = oracle.decode(first, second), oracle.decode(second, first)
    generator = torch.Generator().manual_seed(0)
    wild = torch.rand(forward.points_second.shape[:3], generator=generator) < 0.2
    forward.points_second[wild] = torch.randn(int(wild.sum()), 3, generator=generator)
    disturbed = relative_poses(forward, backward)
    assert rotation_errors_deg(disturbed[:, :3, :3], pairs.T_first_second[:, :3, :3]).median() > 1.0
    forward.confidence_second[wild] = 0.0
    poses = relative_poses(forward, backward)
    assert rotation_errors_deg(poses[:, :3, :3], pairs.T_first_second[:, :3, :3]).max() < 0.1


def test_angles_of_rotations_and_directions():
    R = rotation([0.3, -1.0, 2.0], 25.0)
    other = R @ rotation([1.0, 1.0, 0.0], 7.0)
    assert rotation_errors_deg(other, R).item() == pytest.approx(7.0)
    assert rotation_errors_deg(rotation([0.0, 0.0, 1.0], 180.0), torch.eye(3).double()).item() == pytest.approx(180.0)
    a, b = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.0, 5.0, 0.0])
    assert direction_errors_deg(a, b).item() == pytest.approx(90.0)
    assert direction_errors_deg(2 * a, a).item() == 0.0
    assert direction_errors_deg(-a, a).item() == pytest.approx(180.0)
    assert direction_errors_deg(0 * a, b).item() == pytest.approx(90.0)


def test_impossible_validation_is_refused():
    with pytest.raises(SettingsError):
        sample_validation_pairs("nominal", 0, image_size_px=32)
    with pytest.raises(SettingsError, match="moon"):
        sample_validation_pairs("moon", 1, image_size_px=32)
