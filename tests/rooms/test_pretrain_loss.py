"""The pretraining objective: hand-computed values, laws, and slow twins."""

import math

import pytest
import torch
from reference import pretrain_loss as reference

from lora3d_ns.errors import InvalidDataError
from lora3d_ns.network.base import PairOutput
from lora3d_ns.rooms.pretrain_data import Photos
from lora3d_ns.rooms.pretrain_loss import (
    matching_loss,
    pair_truth,
    patch_matches,
    points_from_depth,
    pretrain_loss,
)


def random_points(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, 3, generator=generator, dtype=torch.float64) + torch.tensor([0.0, 0.0, 3.0])


def random_weights(*shape: int, seed: int = 0) -> torch.Tensor:
    """Rows that sum to one, some of them zero."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(*shape, generator=generator, dtype=torch.float64)
    visible = torch.rand(*shape[:-1], 1, generator=generator) > 0.4
    return weights / weights.sum(dim=-1, keepdim=True) * visible


def test_matching_loss_of_equal_descriptors_is_the_logarithm_of_their_number():
    descriptors = torch.ones(2, 5, 3)
    matches = torch.eye(5).repeat(2, 1, 1)
    assert matching_loss(descriptors, descriptors, matches, matches, 0.07).item() == pytest.approx(math.log(5))


def test_matching_loss_of_orthogonal_descriptors_in_the_right_and_in_the_wrong_order():
    descriptors = torch.eye(4)[None]
    right, wrong = torch.eye(4)[None], torch.eye(4)[None].roll(1, dims=1)
    # Logits are 1 / temperature for the same patch and 0 for the three others.
    expected = math.log(math.exp(2.0) + 3.0)
    assert matching_loss(descriptors, descriptors, right, right, 0.5).item() == pytest.approx(expected - 2.0)
    assert matching_loss(descriptors, descriptors, wrong, wrong.mT, 0.5).item() == pytest.approx(expected)


def test_matching_loss_ignores_lengths_and_patches_without_a_match():
    first, second = torch.randn(1, 4, 3), torch.randn(1, 4, 3)
    matches = torch.zeros(1, 4, 4)
    assert matching_loss(first, second, matches, matches, 0.1).item() == 0.0
    matches[0, 1, 2] = 1.0
    nothing = torch.zeros(1, 4, 4)
    plain = matching_loss(first, second, matches, nothing, 0.1)
    torch.testing.assert_close(matching_loss(5.0 * first, 0.2 * second, matches, nothing, 0.1), plain)
    changed = first.clone()
    changed[0, 3] += 1.0
    torch.testing.assert_close(matching_loss(changed, second, matches, nothing, 0.1), plain)


def test_matching_loss_agrees_with_the_slow_twin_in_value_and_gradient():
    generator = torch.Generator().manual_seed(3)
    first = torch.randn(2, 4, 6, generator=generator).requires_grad_()
    second = torch.randn(2, 5, 6, generator=generator).requires_grad_()
    matches_first, matches_second = (
        random_weights(2, 4, 5, seed=1).float(),
        random_weights(2, 5, 4, seed=2).float(),
    )
    fast = matching_loss(first, second, matches_first, matches_second, 0.3)
    slow = reference.matching_loss(first, second, matches_first, matches_second, 0.3)
    torch.testing.assert_close(fast, slow)
    for a, b in zip(
        torch.autograd.grad(fast, [first, second]), torch.autograd.grad(slow, [first, second]), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


# --- truth of pairs -----------------------------------------------------------------------------

SIZE, PATCH, FOCAL = 32, 8, 32.0


def facing_wall(distance_m: float, shift_m: float = 0.0, *, height_px: int = SIZE, width_px: int = SIZE) -> Photos:
    """A camera that looks straight at a wall from a distance, moved to the right by `shift_m`."""
    K = torch.tensor([[FOCAL, 0.0, width_px / 2], [0.0, FOCAL, height_px / 2], [0.0, 0.0, 1.0]])
    T = torch.eye(4)
    T[0, 3], T[2, 3] = shift_m, -distance_m
    return Photos(
        rgb=torch.zeros(1, 3, height_px, width_px),
        depth_m=torch.full((1, height_px, width_px), distance_m),
        K=K[None],
        T_world_camera=T[None],
    )


def test_truth_of_both_photos_is_in_the_first_camera():
    first, second = facing_wall(2.0), facing_wall(3.0, 0.5)
    truth = pair_truth(first, second, PATCH)
    torch.testing.assert_close(truth.points_first[..., 2], torch.full((1, SIZE, SIZE), 2.0))
    # The wall is where it is, whoever looks.
    torch.testing.assert_close(truth.points_second[..., 2], torch.full((1, SIZE, SIZE), 2.0))
    expected = points_from_depth(second.depth_m, second.K) + torch.tensor([0.5, 0.0, -1.0])
    torch.testing.assert_close(truth.points_second, expected)


def test_matches_of_a_photo_with_itself_are_the_patches_themselves():
    matches = patch_matches(facing_wall(2.0), facing_wall(2.0), PATCH)
    # The middle pixel's centre is half a pixel beside the middle of an even patch.
    assert matches.diagonal(dim1=-2, dim2=-1).min() >= (1 - 0.5 / PATCH) ** 2 - 1e-6
    torch.testing.assert_close(matches.sum(dim=-1), torch.ones(1, (SIZE // PATCH) ** 2))


def test_matches_agree_with_weights_computed_by_hand_and_end_at_the_border():
    truth = pair_truth(facing_wall(2.0), facing_wall(2.0, 0.35), PATCH)
    row, column = 1, 2
    u, v = PATCH * column + PATCH // 2 + 0.5, PATCH * row + PATCH // 2 + 0.5
    point_j = [(u - SIZE / 2) / FOCAL * 2.0 - 0.35, (v - SIZE / 2) / FOCAL * 2.0, 2.0]
    expected = reference.match_of_point(point_j, FOCAL, SIZE, PATCH)
    torch.testing.assert_close(truth.matches_first[0, row * 4 + column], torch.tensor(expected))
    # 0.35 m are 5.6 px: the first column of patches, in the middle at 4.5 px, leaves the photo on the left.
    assert truth.matches_first[0, 0::4].sum() == 0
    assert truth.matches_second[0, 3::4].sum() == 0


def test_matches_of_landscape_and_portrait_meet_in_the_middle():
    truth = pair_truth(
        facing_wall(2.0, height_px=16, width_px=SIZE), facing_wall(2.0, height_px=SIZE, width_px=16), PATCH
    )
    assert truth.matches_first.shape == (1, 8, 8)
    seen = truth.matches_first[0].sum(dim=-1).reshape(2, 4)
    torch.testing.assert_close(seen, torch.tensor([[0.0, 1.0, 1.0, 0.0]]).expand(2, 4))
    # Patch (0, 1) of the landscape lies on patch (1, 0) of the portrait.
    assert truth.matches_first[0, 1].argmax() == 2


def test_matches_stop_at_what_stands_in_front():
    second = facing_wall(2.0)
    second.depth_m[:, :, : SIZE // 2] = 1.0
    seen = patch_matches(facing_wall(2.0), second, PATCH)[0].sum(dim=-1).reshape(4, 4)
    assert seen[:, :2].sum() == 0
    torch.testing.assert_close(seen[:, 2:], torch.ones(4, 2))


def test_matching_without_descriptors_says_what_to_do():
    points, confidence = torch.rand(1, SIZE, SIZE, 3) + 1.0, torch.zeros(1, SIZE, SIZE)
    output = PairOutput(
        points_first=points, points_second=points, confidence_first=confidence, confidence_second=confidence
    )
    truth = pair_truth(facing_wall(2.0), facing_wall(2.0, 0.1), PATCH)
    with pytest.raises(InvalidDataError, match="descriptor_width"):
        pretrain_loss(output, truth, confidence_alpha=0.2, matching_weight=0.3, temperature=0.07)
    without = pretrain_loss(output, truth, confidence_alpha=0.2, matching_weight=0.0, temperature=0.07)
    torch.testing.assert_close(without.total, without.confidence)
