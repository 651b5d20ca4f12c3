"""Fine-tuning's objective: hand-computed values, laws, masks, and slow twins."""

import math

import pytest
import torch
from reference import pretrain_loss as reference

from lora3d_ns.adapter.loss import LabelBatch, confidence_loss, label_loss, mean_label_error, point_errors
from lora3d_ns.network.base import PairOutput


def random_points(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, 3, generator=generator, dtype=torch.float64) + torch.tensor([0.0, 0.0, 3.0])


def test_point_errors_of_a_pair_computed_by_hand():
    # Distances 1 and 3 (mean 2) against 2 and 2 (mean 2): (0,0,.5) to (0,0,1), and (0,0,1.5) to (1,0,0).
    first, second = point_errors(
        torch.tensor([[[[0.0, 0.0, 1.0]]]]),
        torch.tensor([[[[0.0, 0.0, 3.0]]]]),
        torch.tensor([[[[0.0, 0.0, 2.0]]]]),
        torch.tensor([[[[2.0, 0.0, 0.0]]]]),
    )
    assert first.item() == pytest.approx(0.5)
    assert second.item() == pytest.approx(math.hypot(1.0, 1.5))


@pytest.mark.parametrize("scale", [1e-3, 0.5, 40.0])
def test_point_errors_do_not_depend_on_either_scale(scale: float):
    points = [random_points(2, 3, 4, seed=seed) for seed in range(4)]
    plain = point_errors(points[0], points[1], points[2], points[3])
    of_prediction = point_errors(scale * points[0], scale * points[1], points[2], points[3])
    of_truth = point_errors(points[0], points[1], scale * points[2], scale * points[3])
    for k in range(2):
        torch.testing.assert_close(of_prediction[k], plain[k])
        torch.testing.assert_close(of_truth[k], plain[k])


def test_point_errors_are_zero_for_the_truth_at_another_scale():
    first, second = random_points(1, 2, 2), random_points(1, 2, 2, seed=1)
    errors = point_errors(7.0 * first, 7.0 * second, first, second)
    # 1e-6 is the smoothing of the norm at zero.
    assert max(error.max().item() for error in errors) <= 1.01e-6


def test_point_errors_scale_is_joint_so_a_relative_scale_between_the_photos_costs():
    first, second = random_points(1, 2, 2), random_points(1, 2, 2, seed=1)
    errors = point_errors(first, 1.5 * second, first, second)
    assert min(error.min().item() for error in errors) > 0.05


def test_point_errors_and_confidence_agree_with_the_slow_twins_in_value_and_gradient():
    leaves = [random_points(2, 2, 3, seed=seed).requires_grad_(seed < 2) for seed in range(4)]
    logits = torch.randn(2, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(9)).requires_grad_()

    def total(errors_of, loss_of) -> torch.Tensor:
        errors = errors_of(*leaves)
        return sum((loss_of(error) for error in errors), torch.zeros((), dtype=torch.float64))

    fast = total(point_errors, lambda e: confidence_loss(e, torch.nn.functional.softplus(logits), 0.2))
    slow = total(reference.point_errors, lambda e: reference.confidence_loss(e, 1 + logits.exp(), 0.2))
    torch.testing.assert_close(fast, slow)
    inputs = [leaves[0], leaves[1], logits]
    for a, b in zip(torch.autograd.grad(fast, inputs), torch.autograd.grad(slow, inputs), strict=True):
        torch.testing.assert_close(a, b)


def test_confidence_loss_by_hand_and_its_minimum():
    errors = torch.tensor([0.05, 0.4], dtype=torch.float64)
    raw = torch.tensor([2.0, 1.0], dtype=torch.float64)
    expected = (2.0 * 0.05 - 0.2 * math.log(2.0) + 0.4) / 2
    assert confidence_loss(errors, raw.log(), 0.2).item() == pytest.approx(expected)
    # The best raw confidence of an error l is max(1, alpha / l).
    best = (0.2 / errors).clamp_min(1.0)
    least = confidence_loss(errors, best.log(), 0.2)
    for factor in (0.9, 1.1):
        other = (best * factor).clamp_min(1.0)
        assert least <= confidence_loss(errors, other.log(), 0.2)


def masked_batch(seed: int) -> tuple[PairOutput, LabelBatch]:
    generator = torch.Generator().manual_seed(seed)
    output = PairOutput(
        points_first=random_points(3, 4, 5, seed=seed),
        points_second=random_points(3, 2, 6, seed=seed + 1),
        confidence_first=torch.rand(3, 4, 5, generator=generator, dtype=torch.float64),
        confidence_second=torch.rand(3, 2, 6, generator=generator, dtype=torch.float64),
    )
    labels = LabelBatch(
        points_first=random_points(3, 4, 5, seed=seed + 2),
        points_second=random_points(3, 2, 6, seed=seed + 3),
        valid_first=torch.rand(3, 4, 5, generator=generator) > 0.4,
        valid_second=torch.rand(3, 2, 6, generator=generator) > 0.4,
    )
    return output, labels


def test_label_loss_and_error_are_loops_over_the_labels():
    output, labels = masked_batch(0)
    errors, objective = [], [[], []]
    for pair in range(3):
        sides = [
            (output.points_first, labels.points_first, labels.valid_first, output.confidence_first),
            (output.points_second, labels.points_second, labels.valid_second, output.confidence_second),
        ]
        chosen = [[value[pair][side[2][pair]] for value in side] for side in sides]
        z = torch.cat([points.norm(dim=1) for points, _, _, _ in chosen]).mean()
        z_label = torch.cat([label.norm(dim=1) for _, label, _, _ in chosen]).mean()
        of_pair = []
        for side, (points, label, _, confidence) in enumerate(chosen):
            for p in range(len(points)):
                error = (points[p] / z - label[p] / z_label).norm()
                objective[side].append(confidence[p].exp() * error - 0.2 * confidence[p])
                of_pair.append(error)
        errors.append(torch.stack(of_pair).mean())
    torch.testing.assert_close(mean_label_error(output, labels), torch.stack(errors))
    expected = 0.5 * (torch.stack(objective[0]).mean() + torch.stack(objective[1]).mean())
    torch.testing.assert_close(label_loss(output, labels, confidence_alpha=0.2), expected)


def test_what_is_no_label_does_not_count_whatever_it_is():
    output, labels = masked_batch(5)
    before = label_loss(output, labels, confidence_alpha=0.2)
    far = torch.where(labels.valid_second[..., None], labels.points_second, 1e6)
    changed = LabelBatch(
        points_first=labels.points_first,
        points_second=far,
        valid_first=labels.valid_first,
        valid_second=labels.valid_second,
    )
    torch.testing.assert_close(label_loss(output, changed, confidence_alpha=0.2), before)


def test_a_batch_without_a_label_costs_nothing_and_has_a_gradient_of_zero():
    output, labels = masked_batch(7)
    output.points_first.requires_grad_()
    nothing = LabelBatch(
        points_first=labels.points_first,
        points_second=labels.points_second,
        valid_first=torch.zeros_like(labels.valid_first),
        valid_second=torch.zeros_like(labels.valid_second),
    )
    loss = label_loss(output, nothing, confidence_alpha=0.2)
    assert loss.item() == 0.0
    (gradient,) = torch.autograd.grad(loss, [output.points_first])
    assert bool((gradient == 0).all())
