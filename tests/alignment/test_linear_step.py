import pytest
import torch
from alignment_samples import Generic, free_numbers, generic_problem
from torch import Tensor

from lora3d_ns.alignment import linear_step
from lora3d_ns.alignment.linear_step import damped_step
from lora3d_ns.alignment.normal_equations import Block, pass_over_view
from lora3d_ns.alignment.state import PER_VIEW, SIMILARITY, Freedom
from lora3d_ns.pair_graph import CompleteGraph, build_pair_graph

VIEWS, EDGES = 4, 12


def problem() -> Generic:
    return generic_problem(build_pair_graph(CompleteGraph(), VIEWS))


def blocks_of(problem: Generic) -> list[Block]:
    blocks = []
    for observations in problem.grid:
        result = pass_over_view(
            observations,
            problem.state,
            None,
            mu=0.05,
            smoothing=1e-5,
            system_centre=problem.state.T_world_camera[:, :3, 3].mean(dim=0),
        )
        assert result.block is not None
        blocks.append(result.block)
    return blocks


def scale_steps(step: Tensor) -> Tensor:
    return step[VIEWS * PER_VIEW :].view(EDGES, SIMILARITY)[:, 6]


def whole_system(blocks: list[Block], freedom: Freedom) -> tuple[Tensor, Tensor]:
    """H and g over the free numbers, one entry at a time."""
    H = torch.zeros(freedom.count, freedom.count, dtype=torch.float64)
    g = torch.zeros(freedom.count, dtype=torch.float64)
    for block in blocks:
        places = freedom.index[block.index].tolist()
        for row, place in enumerate(places):
            if place < 0:
                continue
            g[place] += block.g[row]
            for column, other in enumerate(places):
                if other >= 0:
                    H[place, other] += block.H[row, column]
    return H, g


def free_of(step: Tensor, freedom: Freedom) -> Tensor:
    out = torch.zeros(freedom.count, dtype=torch.float64)
    free = freedom.index >= 0
    out[freedom.index[free]] = step[free]
    return out


@pytest.mark.parametrize("damping", [1e-4, 1e-2])
def test_without_a_gauge_the_step_solves_the_damped_equations(damping: float) -> None:
    """Known poses fix the scale: nothing is held but what they hold."""
    blocks = blocks_of(problem())
    freedom = free_numbers(VIEWS, EDGES, scale_is_gauge=False, principal_point=True)
    step = free_of(damped_step(blocks, freedom, damping=damping, view_count=VIEWS), freedom)
    H, g = whole_system(blocks, freedom)
    # Edges alike in confidence stay above the floors of the damping. 1e-5 measured: H is symmetric up to float32, and
    # without a gauge hardly anything holds the size of the world, which makes that much more of it.
    expected = torch.linalg.solve(H + damping * torch.diag(H.diagonal()), -g)
    assert float((step - expected).norm() / expected.norm()) < 1e-4


def test_in_the_gauge_the_step_is_the_best_one_that_holds_the_mean_scale() -> None:
    """Lagrange: what is left of the equations is a push on all scales alike."""
    blocks = blocks_of(problem())
    freedom = free_numbers(VIEWS, EDGES)
    step = damped_step(blocks, freedom, damping=1e-3, view_count=VIEWS)
    H, g = whole_system(blocks, freedom)
    left = (H + 1e-3 * torch.diag(H.diagonal())) @ free_of(step, freedom) + g
    held = freedom.index[VIEWS * PER_VIEW + 6 :: SIMILARITY]
    others = torch.ones(freedom.count, dtype=torch.bool)
    others[held] = False
    size = float(g.abs().max())
    assert float(left[others].abs().max()) < 1e-6 * size
    assert float((left[held] - left[held].mean()).abs().max()) < 1e-6 * size
    assert float(left[held].mean().abs()) > 1e-3 * size
    assert float(scale_steps(step).abs().max()) > 1e-3


@pytest.mark.parametrize("scale_is_gauge", [True, False])
@pytest.mark.parametrize("damping", [1e-2, 1e-4])
def test_conjugate_gradients_and_factorisation_give_the_same_step(
    monkeypatch: pytest.MonkeyPatch, damping: float, scale_is_gauge: bool
) -> None:
    blocks = blocks_of(problem())
    freedom = free_numbers(VIEWS, EDGES, principal_point=True, scale_is_gauge=scale_is_gauge)
    factorised = damped_step(blocks, freedom, damping=damping, view_count=VIEWS)
    monkeypatch.setattr(linear_step, "_DENSE_LIMIT", 0)
    iterated = damped_step(blocks, freedom, damping=damping, view_count=VIEWS)
    assert not torch.equal(factorised, iterated)
    H, g = whole_system(blocks, freedom)
    H = H + damping * torch.diag(H.diagonal())

    def promised(step: Tensor) -> float:
        step = free_of(step, freedom)
        return -float(g @ step + 0.5 * step @ H @ step)

    # An inexact step is worth as much: 4e-8 and 7e-8 less at the larger damping, 0.14 % and 1.3 % at the smaller one.
    less = 1.0 - promised(iterated) / promised(factorised)
    assert -1e-9 < less < (1e-6 if damping == 1e-2 else 0.03)
    monkeypatch.setattr(linear_step, "_CG_TOLERANCE", 1e-10)
    monkeypatch.setattr(linear_step, "_CG_ITERATIONS", 2000)
    solved = damped_step(blocks, freedom, damping=damping, view_count=VIEWS)
    # 2e-7 measured in the gauge, 1e-5 without it.
    assert float((solved - factorised).norm() / factorised.norm()) < (2e-6 if scale_is_gauge else 1e-4)


@pytest.mark.parametrize("dense_limit", [0, 10_000], ids=["iterated", "factorised"])
def test_what_is_held_shared_or_dropped(monkeypatch: pytest.MonkeyPatch, dense_limit: int) -> None:
    monkeypatch.setattr(linear_step, "_DENSE_LIMIT", dense_limit)
    blocks = blocks_of(problem())
    freedom = free_numbers(VIEWS, EDGES, groups=(5, None, 5, 7), dropped=(2, 11))
    step = damped_step(blocks, freedom, damping=1e-3, view_count=VIEWS)
    of_views = step[: VIEWS * PER_VIEW].view(VIEWS, PER_VIEW)
    of_edges = step[VIEWS * PER_VIEW :].view(EDGES, SIMILARITY)
    assert of_views[0, :6].tolist() == [0.0] * 6
    assert bool((of_views[1:, :6] != 0).all())
    focal = of_views[:, 6].tolist()
    assert focal[0] == focal[2] != 0.0
    assert focal[1] == 0.0
    assert focal[3] not in (0.0, focal[0])
    assert of_views[:, 7:].abs().max() == 0
    assert of_edges[[2, 11]].abs().max() == 0
    taking_part = [edge for edge in range(EDGES) if edge not in (2, 11)]
    assert bool((of_edges[taking_part] != 0).all())
    scales = of_edges[taking_part, 6]
    assert float(scales.sum().abs()) < 1e-12
    assert float(scales.abs().max()) > 1e-3


def test_scales_are_not_held_where_something_fixes_them() -> None:
    step = damped_step(
        blocks_of(problem()), free_numbers(VIEWS, EDGES, scale_is_gauge=False), damping=1e-3, view_count=VIEWS
    )
    assert float(scale_steps(step).mean().abs()) > 1e-3


def test_more_damping_is_a_shorter_step_downhill() -> None:
    blocks = blocks_of(problem())
    freedom = free_numbers(VIEWS, EDGES)
    lengths, slopes = [], []
    for damping in (1e-3, 1.0, 1e3):
        step = damped_step(blocks, freedom, damping=damping, view_count=VIEWS)
        lengths.append(float(step.norm()))
        slopes.append(sum(float(block.g @ step[block.index]) for block in blocks))
    assert lengths[0] > lengths[1] > lengths[2]
    assert max(slopes) < 0


@pytest.mark.parametrize("dense_limit", [0, 10_000], ids=["iterated", "factorised"])
def test_an_edge_without_a_say_does_not_run_away(monkeypatch: pytest.MonkeyPatch, dense_limit: int) -> None:
    """Hardly a point of an edge counts: its curvature is nearly nothing, and so must its step be."""
    monkeypatch.setattr(linear_step, "_DENSE_LIMIT", dense_limit)
    blocks = []
    for block in blocks_of(problem()):
        keep = torch.ones(len(block.index), dtype=torch.float64)
        keep[block.index >= VIEWS * PER_VIEW + (EDGES - 1) * SIMILARITY] = 1e-8
        blocks.append(Block(index=block.index, edges=block.edges, H=keep[:, None] * block.H * keep, g=keep * block.g))
    step = damped_step(blocks, free_numbers(VIEWS, EDGES), damping=1e-3, view_count=VIEWS)
    of_edges = step[VIEWS * PER_VIEW :].view(EDGES, SIMILARITY)
    assert float(of_edges[-1, :6].abs().max()) < 1e-3 * float(of_edges[:-1].abs().max())
