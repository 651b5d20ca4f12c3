from dataclasses import replace

import pytest
import torch
from alignment_samples import (
    Generic,
    depths_of,
    generic_problem,
    grid_of,
    naive_after,
    objective_after,
    one,
    random_similarity,
    turned_and_moved,
)
from torch import Tensor

from lora3d_ns.alignment import normal_equations
from lora3d_ns.alignment.normal_equations import ViewPass, pass_over_view
from lora3d_ns.alignment.observations import ObservationGrid
from lora3d_ns.alignment.state import PER_VIEW, SIMILARITY, AlignmentState
from lora3d_ns.types import PairPrediction, PairPredictions

MU = 0.05
TINY = 1e-6
KINDS = {
    "rotation": range(3),
    "translation": range(3, 6),
    "focal": range(6, 7),
    "principal point": range(7, 9),
    "edge rotation": range(3),
    "edge translation": range(3, 6),
    "edge scale": range(6, 7),
}


def centre_of(state: AlignmentState) -> Tensor:
    return state.T_world_camera[:, :3, 3].mean(dim=0)


def passes(
    grid: ObservationGrid, state: AlignmentState, mu: float | None, *, smoothing: float = TINY, iterations: int = 300
) -> list[ViewPass]:
    """All views with their depths solved to the end."""
    return [
        pass_over_view(
            block,
            state,
            None,
            mu=mu,
            smoothing=smoothing,
            inner_iterations=iterations,
            system_centre=centre_of(state),
        )
        for block in grid
    ]


def gathered(results: list[ViewPass], numbers: int) -> tuple[Tensor, Tensor]:
    g, H = torch.zeros(numbers, dtype=torch.float64), torch.zeros(numbers, numbers, dtype=torch.float64)
    for result in results:
        assert result.block is not None
        g[result.block.index] += result.block.g
        H[result.block.index[:, None], result.block.index] += result.block.H
    return g, H


def numbers_of(kind: str, views: int, edges: int) -> Tensor:
    starts = (
        [views * PER_VIEW + edge * SIMILARITY for edge in range(edges)]
        if kind.startswith("edge")
        else [view * PER_VIEW for view in range(views)]
    )
    return torch.tensor([start + number for start in starts for number in KINDS[kind]])


def best_depths(problem: Generic, results: list[ViewPass]) -> list[Tensor]:
    return depths_of(problem.grid, problem.state, [result.distances for result in results])


@pytest.mark.parametrize("mu", [MU, None])
def test_objective_and_gradient_are_those_of_the_naive_objective_at_the_best_depths(mu: float | None) -> None:
    """At the best depths the gradient is that with the depths held (envelope theorem)."""
    problem = generic_problem()
    results = passes(problem.grid, problem.state, mu)
    depths = best_depths(problem, results)
    numbers = torch.zeros(3 * PER_VIEW + 6 * SIMILARITY, dtype=torch.float64, requires_grad=True)
    value = naive_after(problem, numbers, centre_of(problem.state), depths, mu=mu)
    # Points in float32 against float64: 1e-7 measured.
    assert sum(result.objective for result in results) == pytest.approx(value.item(), rel=1e-6)
    (gradient,) = torch.autograd.grad(value, numbers)
    g, _ = gathered(results, len(numbers))
    for kind in KINDS:
        rows = numbers_of(kind, 3, 6)
        # Relative to the largest of its kind: 6e-5 measured.
        assert float((g - gradient)[rows].abs().max()) < 3e-4 * float(gradient[rows].abs().max()), kind


@pytest.mark.parametrize("mu", [MU, None])
def test_the_depths_are_the_best_ones(mu: float | None) -> None:
    problem = generic_problem(square_pixels=False)
    depths = best_depths(problem, passes(problem.grid, problem.state, mu))
    zero = torch.zeros(3 * PER_VIEW + 6 * SIMILARITY, dtype=torch.float64)
    at = objective_after(problem, zero, centre_of(problem.state), depths, mu=mu)
    for factor in (0.999, 1.001):
        for view in range(3):
            moved = [depth * factor if view == other else depth for other, depth in enumerate(depths)]
            assert objective_after(problem, zero, centre_of(problem.state), moved, mu=mu) > at


@pytest.mark.parametrize("smoothing", [TINY, 0.1], ids=["hardly smoothed", "smoothed"])
@pytest.mark.parametrize("mu", [MU, None])
def test_the_gradient_with_pixels_that_are_not_square(mu: float | None, smoothing: float) -> None:
    problem = generic_problem(square_pixels=False)
    results = passes(problem.grid, problem.state, mu, smoothing=smoothing)
    depths = best_depths(problem, results)
    numbers = torch.zeros(3 * PER_VIEW + 6 * SIMILARITY, dtype=torch.float64, requires_grad=True)
    value = objective_after(problem, numbers, centre_of(problem.state), depths, mu=mu, smoothing=smoothing)
    assert sum(result.objective for result in results) == pytest.approx(value.item(), rel=1e-6)
    (gradient,) = torch.autograd.grad(value, numbers)
    g, _ = gathered(results, len(numbers))
    for kind in KINDS:
        rows = numbers_of(kind, 3, 6)
        # 7e-5 measured.
        assert float((g - gradient)[rows].abs().max()) < 3e-4 * float(gradient[rows].abs().max()), kind


@pytest.mark.parametrize("mu", [0.5, None])
def test_the_curvature_is_exact_where_residuals_vanish(mu: float | None) -> None:
    """Where e = 0 the smoothed loss has the Hessian of its re-weighted squares; the depths leave a Schur complement."""
    smoothing = 0.1
    problem = generic_problem(shape=(4, 5), square_pixels=False, error=0.0)
    results = passes(problem.grid, problem.state, mu, smoothing=smoothing)
    depths = best_depths(problem, results)
    count = 3 * PER_VIEW + 6 * SIMILARITY
    flat = torch.cat([depth.flatten() for depth in depths])

    def value(numbers: Tensor, flat: Tensor) -> Tensor:
        maps = [part.view(4, 5) for part in flat.split(20)]
        return objective_after(problem, numbers, centre_of(problem.state), maps, mu=mu, smoothing=smoothing)

    hessian = torch.autograd.functional.hessian(value, (torch.zeros(count, dtype=torch.float64), flat))
    (A, B), (_, C) = hessian[0], hessian[1]
    seen = C.diagonal() > 1e-9
    expected = A - B[:, seen] @ torch.linalg.solve(C[seen][:, seen], B[:, seen].T)
    _, H = gathered(results, count)
    # Float32 against float64: 4e-7 measured.
    assert float((H - expected).abs().max()) < 1e-5 * float(expected.abs().max())


@pytest.mark.parametrize("mu", [MU, None])
def test_the_curvature_is_symmetric_and_positive_semi_definite(mu: float | None) -> None:
    for seed in range(3):
        problem = generic_problem(seed=seed, square_pixels=False)
        for result in passes(problem.grid, problem.state, mu):
            assert result.block is not None
            H = result.block.H
            assert float((H - H.T).abs().max()) < 1e-6 * float(H.abs().max())
            eigenvalues = torch.linalg.eigvalsh(H)
            # Sums in float32: the least is -1e-8 of the largest.
            assert float(eigenvalues[0]) > -1e-7 * float(eigenvalues[-1])
            # All can be moved together (7 numbers), and along each edge nothing else is free.
            assert int((eigenvalues > 1e-6 * eigenvalues[-1]).sum()) >= len(H) - 7 - PER_VIEW


def with_points(predictions: PairPredictions, edge: int, pair: PairPrediction) -> PairPredictions:
    pairs = [pair if index == edge else other for index, other in enumerate(predictions.pairs)]
    return PairPredictions(graph=predictions.graph, pairs=tuple(pairs))


def test_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = generic_problem(shape=(24, 32))
    # Some pixels lie behind their camera in all maps: they are held at the least distance.
    pairs = []
    for edge, (i, _) in enumerate(problem.predictions.graph.edges):
        pair = problem.predictions.pairs[edge]
        if i == 0:
            first = pair.points_first.clone()
            view, similarity = problem.state.T_world_camera[0], one(problem.state.world_from_edge, edge)
            behind = view[:3, :3] @ torch.tensor([0.1, 0.2, -1.0], dtype=torch.float64) + view[:3, 3]
            first[:2] = similarity.inverse().apply(behind).float()
            pair = replace(pair, points_first=first)
        pairs.append(pair)
    predictions = PairPredictions(graph=problem.predictions.graph, pairs=tuple(pairs))
    grid = grid_of(problem.views, predictions)
    whole = passes(grid, problem.state, MU, iterations=20)
    monkeypatch.setattr(normal_equations, "_CHUNK_NUMBERS", 1)
    in_parts = passes(grid, problem.state, MU, iterations=20)
    for one_, other in zip(whole, in_parts, strict=True):
        assert one_.block is not None
        assert other.block is not None
        torch.testing.assert_close(one_.distances, other.distances, rtol=1e-5, atol=0)
        assert one_.objective == pytest.approx(other.objective, rel=1e-6)
        assert float((one_.block.g - other.block.g).abs().max()) < 1e-5 * float(one_.block.g.abs().max())
        assert float((one_.block.H - other.block.H).abs().max()) < 1e-5 * float(one_.block.H.abs().max())


def test_points_without_confidence_have_no_say() -> None:
    problem = generic_problem()
    before = passes(problem.grid, problem.state, MU, iterations=50)
    pairs = []
    for pair in problem.predictions.pairs:
        first, second = pair.points_first.clone(), pair.points_second.clone()
        assert bool((pair.confidence_first == 0).any())
        first[pair.confidence_first == 0] = 7.0
        second[pair.confidence_second == 0] = -3.0
        pairs.append(replace(pair, points_first=first, points_second=second))
    changed = PairPredictions(graph=problem.predictions.graph, pairs=tuple(pairs))
    after = passes(grid_of(problem.views, changed), problem.state, MU, iterations=50)
    for one_, other in zip(before, after, strict=True):
        assert one_.block is not None
        assert other.block is not None
        assert other.objective == pytest.approx(one_.objective, rel=1e-6)
        # A weight of 0 is exact: what is left is the order of sums.
        assert float((one_.block.g - other.block.g).abs().max()) < 1e-5 * float(one_.block.g.abs().max())
        assert float((one_.block.H - other.block.H).abs().max()) < 1e-5 * float(one_.block.H.abs().max())


def test_a_pixel_of_which_nothing_counts_has_a_depth_and_no_say() -> None:
    problem = generic_problem()
    pairs = []
    for (i, j), pair in problem.predictions:
        first, second = pair.confidence_first.clone(), pair.confidence_second.clone()
        if i == 1:
            first[2, 3] = 0.0
        if j == 1:
            second[2, 3] = 0.0
        pairs.append(replace(pair, confidence_first=first, confidence_second=second))
    grid = grid_of(problem.views, PairPredictions(graph=problem.predictions.graph, pairs=tuple(pairs)))
    result = pass_over_view(
        grid.block(1), problem.state, None, mu=MU, smoothing=TINY, system_centre=centre_of(problem.state)
    )
    pixel = 2 * 8 + 3
    assert 0.5 < float(result.distances[pixel]) < 4.0
    assert result.block is not None
    assert bool(torch.isfinite(result.block.H).all())
    assert bool(torch.isfinite(result.block.g).all())


def test_the_warm_start_ends_at_the_same_depths_and_residuals() -> None:
    problem = generic_problem()
    block = problem.grid.block(0)
    cold = pass_over_view(block, problem.state, None, mu=MU, smoothing=1e-3, inner_iterations=200, keep_residual=True)
    warm = pass_over_view(
        block, problem.state, 1.02 * cold.distances, mu=MU, smoothing=1e-3, inner_iterations=200, keep_residual=True
    )
    assert cold.block is None
    torch.testing.assert_close(warm.distances, cold.distances, rtol=1e-4, atol=0)
    assert cold.residual is not None
    assert warm.residual is not None
    expected = (block.confidence * (MU * cold.residual / (MU + cold.residual))).sum()
    assert cold.objective == pytest.approx(float(expected), rel=1e-5)
    influence = (block.confidence / (1 + cold.residual / MU).square() * cold.residual).sum()
    assert cold.influence == pytest.approx(float(influence), rel=1e-5)


@pytest.mark.parametrize("mu", [MU, None])
def test_another_world_leaves_the_objective_per_scale_alike(mu: float | None) -> None:
    problem = generic_problem()
    similarity = one(random_similarity(1, torch.Generator().manual_seed(4), turn=1.0), 0)
    factor = float(similarity.scale)
    assert abs(factor - 1.0) > 0.05
    before = passes(problem.grid, problem.state, mu, iterations=50)
    moved = problem.state.moved(similarity)
    after = passes(problem.grid, moved, None if mu is None else mu * factor, smoothing=TINY * factor, iterations=50)
    for one_, other in zip(before, after, strict=True):
        assert other.objective / factor == pytest.approx(one_.objective, rel=1e-5)
        assert other.influence / factor == pytest.approx(one_.influence, rel=1e-4)
        torch.testing.assert_close(other.distances / factor, one_.distances, rtol=1e-4, atol=0)
    # The gradient turns with the world: the forces on an edge do, and the pull on its scale is alike per scale.
    count = 3 * PER_VIEW + 6 * SIMILARITY
    (g, _), (g_moved, _) = gathered(before, count), gathered(after, count)
    of_edges, of_moved = g[27:].view(6, 7), g_moved[27:].view(6, 7)
    limit = 1e-3 * float(of_edges.abs().max())
    assert float((of_moved[:, 3:6] - of_edges[:, 3:6] @ similarity.rotation.T).abs().max()) < limit
    assert float((of_moved[:, 6] / factor - of_edges[:, 6]).abs().max()) < limit


def test_a_step_of_the_state_is_the_one_written_down_anew() -> None:
    problem = generic_problem()
    numbers = 0.1 * torch.randn(69, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    centre = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64)
    stepped = problem.state.stepped(numbers, centre)
    T, focal, principal_point, scale, R, t = turned_and_moved(problem.state, numbers, centre)
    for ours, expected in (
        (stepped.T_world_camera, T),
        (stepped.focal_px, focal),
        (stepped.principal_point_px, principal_point),
        (stepped.world_from_edge.scale, scale),
        (stepped.world_from_edge.rotation, R),
        (stepped.world_from_edge.translation, t),
    ):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)
