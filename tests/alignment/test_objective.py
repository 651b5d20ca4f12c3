import pytest
import torch
from alignment_samples import (
    Generic,
    depths_of,
    generic_problem,
    naive_after,
    objective_after,
    one,
    random_similarity,
)
from reference.alignment_naive import naive_eq7, naive_weight
from torch import Tensor

from lora3d_ns.alignment.objective import (
    calibrated_weight,
    gauge_scale,
    residuals,
    robust_loss,
    view_points,
    weighted_loss,
)
from lora3d_ns.pair_graph import symmetric_graph

MU = 0.05
ORIGIN = torch.zeros(3, dtype=torch.float64)


def distances_and_confidences() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    distance = 10.0 ** torch.empty(200, dtype=torch.float64).uniform_(-3, 1, generator=generator)
    confidence = torch.empty(200, dtype=torch.float64).uniform_(0.05, 3, generator=generator)
    return distance, confidence


def test_the_weight_minimises_equation_7() -> None:
    distance, confidence = distances_and_confidences()
    weight = calibrated_weight(confidence, distance, MU)
    grid = torch.linspace(0.0, 3.0, 3001, dtype=torch.float64)[:, None].expand(-1, len(distance))
    everywhere = weighted_loss(confidence.expand_as(grid), grid, distance.expand_as(grid), MU)
    least = weighted_loss(confidence, weight, distance, MU)
    # The grid has a step of 1e-3: near a minimum w the loss is above the least by at most curvature * step^2 / 2.
    nearest = (grid - weight).abs().argmin(dim=0)
    assert bool((everywhere >= least - 1e-12).all())
    assert bool(((everywhere.argmin(dim=0) - nearest).abs() <= 1).all())


def test_equation_7_at_the_best_weight_is_the_robust_loss() -> None:
    distance, confidence = distances_and_confidences()
    weight = calibrated_weight(confidence, distance, MU)
    torch.testing.assert_close(
        weighted_loss(confidence, weight, distance, MU), robust_loss(confidence, distance, MU), rtol=1e-12, atol=0
    )


@pytest.mark.parametrize("mu", [MU, None])
def test_the_weight_is_the_slope_of_the_robust_loss(mu: float | None) -> None:
    distance, confidence = distances_and_confidences()
    distance.requires_grad_()
    (slope,) = torch.autograd.grad(robust_loss(confidence, distance, mu).sum(), distance)
    torch.testing.assert_close(slope, calibrated_weight(confidence, distance.detach(), mu), rtol=1e-12, atol=0)


def test_a_large_mu_is_equation_6() -> None:
    distance, confidence = distances_and_confidences()
    plain = robust_loss(confidence, distance, None)
    torch.testing.assert_close(plain, confidence * distance, rtol=0, atol=0)
    for mu in (1e3, 1e6):
        # C mu e / (mu + e) falls short of C e by the share e / (mu + e) <= 10 / mu.
        relative = (1.0 - robust_loss(confidence, distance, mu) / plain).abs().max()
        assert 1e-1 / mu < float(relative) < 10.1 / mu
        relative = (1.0 - calibrated_weight(confidence, distance, mu) / confidence).abs().max()
        assert 1e-1 / mu < float(relative) < 20.1 / mu


def test_weight_and_loss_are_those_of_the_naive_twin() -> None:
    distance, confidence = distances_and_confidences()
    weight = calibrated_weight(confidence, distance, MU)
    other = 0.5 * weight + 0.1
    for e, C, w, v in zip(distance, confidence, weight, other, strict=True):
        assert float(w) == pytest.approx(float(naive_weight(C, e, MU)), rel=1e-12)
        assert float(weighted_loss(C, v, e, MU)) == pytest.approx(float(naive_eq7(C, v, e, MU)), rel=1e-12)


def random_depths(problem: Generic) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    return depths_of(
        problem.grid,
        problem.state,
        [1.0 + torch.rand(block.pixels.shape[1], generator=generator) for block in problem.grid],
    )


@pytest.mark.parametrize("mu", [MU, None])
def test_residuals_and_loss_sum_up_to_the_naive_objective(mu: float | None) -> None:
    problem = generic_problem()
    depths = random_depths(problem)
    generator = torch.Generator().manual_seed(1)
    numbers = 0.1 * torch.randn(3 * 9 + 6 * 7, dtype=torch.float64, generator=generator)
    ours = objective_after(problem, numbers, ORIGIN, depths, mu=mu)
    # Both in float64: 4e-16 measured.
    assert float(ours) == pytest.approx(float(naive_after(problem, numbers, ORIGIN, depths, mu=mu)), rel=1e-13)


@pytest.mark.parametrize("mu", [MU, None])
def test_the_naive_objective_has_the_gradient_that_autograd_says(mu: float | None) -> None:
    problem = generic_problem(symmetric_graph(2, [(0, 1)]), shape=(2, 2))
    numbers = 0.01 * torch.arange(2 * 9 + 2 * 7, dtype=torch.float64)
    depths = [depth.requires_grad_() for depth in random_depths(problem)]
    assert torch.autograd.gradcheck(
        lambda numbers, *depths: naive_after(problem, numbers, ORIGIN, list(depths), mu=mu),
        (numbers.requires_grad_(), *depths),
    )


def test_residuals_have_the_gradient_that_autograd_says() -> None:
    generator = torch.Generator().manual_seed(2)
    similarity = one(random_similarity(1, generator), 0)
    points = torch.randn(2, 3, 3, dtype=torch.float64, generator=generator).requires_grad_()
    depth = (1.0 + torch.rand(2, 3, dtype=torch.float64, generator=generator)).requires_grad_()
    K = torch.tensor([[8.0, 0.0, 1.4], [0.0, 9.0, 1.1], [0.0, 0.0, 1.0]], dtype=torch.float64).requires_grad_()
    T = torch.eye(4, dtype=torch.float64) + 0.1 * torch.randn(4, 4, dtype=torch.float64, generator=generator)
    assert torch.autograd.gradcheck(
        lambda points, depth, K, T: residuals(points, similarity, depth, K, T), (points, depth, K, T.requires_grad_())
    )


def test_view_points_project_back_onto_their_pixels() -> None:
    problem = generic_problem()
    depth = random_depths(problem)[1]
    K, T = problem.state.K(1), problem.state.T_world_camera[1]
    camera = (view_points(depth, K, T) - T[:3, 3]) @ T[:3, :3]
    torch.testing.assert_close(camera[..., 2], depth, rtol=0, atol=1e-12)
    seen = (camera @ K.T)[..., :2] / depth[..., None]
    assert seen[0, 0].tolist() == pytest.approx([0.5, 0.5], abs=1e-12)
    assert seen[-1, -1].tolist() == pytest.approx([7.5, 5.5], abs=1e-12)


def test_the_gauge_scale_is_the_geometric_mean() -> None:
    assert float(gauge_scale(torch.tensor([0.5, 2.0, 8.0], dtype=torch.float64))) == pytest.approx(2.0, rel=1e-12)
