"""The fast solver: damped Gauss-Newton on poses, focal lengths and edge similarities, the depths eliminated.

Each iteration is one pass over the observations (`normal_equations`) and one small linear system (`linear_step`). A
step that does not lower the objective is taken back and the damping raised. The fixed points are those of the objective
itself: re-weighting keeps its gradient.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float32
from torch import Tensor

from lora3d_ns.alignment.linear_step import damped_step
from lora3d_ns.alignment.normal_equations import Block, pass_over_view
from lora3d_ns.alignment.observations import ObservationGrid
from lora3d_ns.alignment.state import PER_VIEW, SIMILARITY, AlignmentState, Freedom
from lora3d_ns.errors import SettingsError

_LEAST_DAMPING, _MOST_DAMPING = 1e-9, 1e9
_REFUSALS = 8
_NO_PROMISE = 0.1
"""A step that promises less than this share of the tolerance is not tried: the gradient is zero for our purpose."""
_CERTAIN = 0.25
"""One step that gains less than this share of the tolerance is enough to stop; of Eq. 6 only, since under Eq. 7 a point
that changes sides can make the next step a larger one."""


@dataclass(frozen=True, kw_only=True)
class SolverSettings:
    """When the solver stops.

    Attributes:
        iterations: At most so many passes over the observations.
        tolerance: Converged when two steps in a row lower the objective by less than this share, or one by less than a
            quarter of it (Eq. 6), or a step promises less than a tenth of it.
        smoothing: Residuals are `sqrt(|e|^2 + smoothing^2)`, as a share of the scene's unit, see `minimise`.
        inner_iterations: Re-weighted steps of the depths in each pass.
    """

    iterations: int = 60
    tolerance: float = 1e-5
    smoothing: float = 1e-5
    inner_iterations: int = 8

    def __post_init__(self) -> None:
        for name in ("iterations", "inner_iterations"):
            if getattr(self, name) < 1:
                raise SettingsError(f"{name} must be at least 1, not {getattr(self, name)}", way_out="Leave it out")
        if not self.tolerance > 0 or not self.smoothing > 0:
            raise SettingsError(
                f"tolerance {self.tolerance} and smoothing {self.smoothing} must be positive", way_out="Leave them out"
            )


ExtraTerm = Callable[[AlignmentState, bool], tuple[float, Block | None]]
"""A further part of the objective: its value at a state and, if asked for, its equations."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Solution:
    """Where the solver stopped.

    Attributes:
        state: Poses, intrinsics, similarities.
        distances: Along each sampled pixel's ray.
        objective: Mean loss of an observation, in the gauge's unit, with all further terms.
        history: The objective after every accepted step, the start first.
        seconds: When each entry of the history was reached, from the beginning.
        converged: Whether the tolerance was met.
    """

    state: AlignmentState
    distances: tuple[Float32[Tensor, " _"], ...]
    objective: float
    history: tuple[float, ...]
    seconds: tuple[float, ...]
    converged: bool


@dataclass(frozen=True, eq=False, kw_only=True)
class _Evaluation:
    objective: float
    distances: list[Tensor]
    blocks: list[Block]


def minimise(
    grid: ObservationGrid,
    state: AlignmentState,
    freedom: Freedom,
    settings: SolverSettings,
    *,
    mu: float | None,
    unit: float,
    distances: Sequence[Float32[Tensor, " _"]] | None = None,
    extra: Sequence[ExtraTerm] = (),
    on_step: Callable[[AlignmentState, float], None] = lambda _state, _objective: None,
) -> Solution:
    """A local minimum of Eq. 6 (mu None) or Eq. 7 near the given state.

    Args:
        grid: The observations.
        state: Where to begin.
        freedom: What may change.
        settings: When to stop.
        mu: As a share of `unit`; None for Eq. 6.
        unit: A typical depth of the scene in the gauge's unit.
        distances: Depths to begin with.
        extra: Further terms, in units of the mean loss of an observation.
        on_step: Called with the state and the objective after each accepted step.
    """
    begun = time.perf_counter()
    now = _evaluate(grid, state, distances, mu, unit, settings, extra, freedom)
    history, seconds = [now.objective], [time.perf_counter() - begun]
    damping, growth, small_steps, refused, converged = 1e-3, 2.0, 0, 0, False
    for _ in range(settings.iterations):
        step = damped_step(now.blocks, freedom, damping=damping, view_count=len(grid))
        promised = -0.5 * sum(float(block.g @ step[block.index]) for block in now.blocks)
        if promised < _NO_PROMISE * settings.tolerance * now.objective:
            converged = True
            break
        depth = unit * (1.0 if freedom.scale_is_gauge else freedom.gauge(state))
        moved = state.stepped(_limited(step, len(grid), depth), _centre(state))
        then = _evaluate(grid, moved, now.distances, mu, unit, settings, extra, freedom)
        gain = now.objective - then.objective
        if not gain >= 0:
            # Not lower, or not a number: back, and closer to the gradient.
            damping, growth, refused = min(damping * growth, _MOST_DAMPING), 2.0 * growth, refused + 1
            if refused >= _REFUSALS:
                # No step along the gradient helps any more: float32 has no lower value.
                converged = True
                break
            continue
        small_steps = small_steps + 1 if gain < settings.tolerance * now.objective else 0
        certain = mu is None and gain < _CERTAIN * settings.tolerance * now.objective
        state, now, refused = moved, then, 0
        damping, growth = max(damping / 3.0, _LEAST_DAMPING), 2.0
        history.append(now.objective)
        seconds.append(time.perf_counter() - begun)
        on_step(state, now.objective)
        if small_steps >= 2 or certain:
            converged = True
            break
    return Solution(
        state=state,
        distances=tuple(now.distances),
        objective=now.objective,
        history=tuple(history),
        seconds=tuple(seconds),
        converged=converged,
    )


def _limited(step: Tensor, view_count: int, depth: float) -> Tensor:
    """The step, shortened as a whole where any number in it is beyond what a linear model can be trusted with.

    Args:
        step: Of all views and edges.
        view_count: Number of views.
        depth: A typical one in the world's unit.
    """
    limits_of_view = torch.tensor([1.0, 1.0, 1.0, depth, depth, depth, 0.5, 1e9, 1e9], dtype=torch.float64)
    limits_of_edge = torch.tensor([1.0, 1.0, 1.0, depth, depth, depth, 0.5], dtype=torch.float64)
    edge_count = (len(step) - view_count * PER_VIEW) // SIMILARITY
    limits = torch.cat([limits_of_view.repeat(view_count), limits_of_edge.repeat(edge_count)])
    return step / (step.abs() / limits).max().clamp(min=1.0)


def _centre(state: AlignmentState) -> Tensor:
    return state.T_world_camera[:, :3, 3].mean(dim=0)


def _evaluate(
    grid: ObservationGrid,
    state: AlignmentState,
    distances: Sequence[Tensor] | None,
    mu: float | None,
    unit: float,
    settings: SolverSettings,
    extra: Sequence[ExtraTerm],
    freedom: Freedom,
) -> _Evaluation:
    scale = 1.0 if freedom.scale_is_gauge else freedom.gauge(state)
    share = 1.0 / (grid.observation_count * scale)
    objective, influence, found, blocks = 0.0, 0.0, [], []
    for observations in grid:
        result = pass_over_view(
            observations,
            state,
            None if distances is None else distances[observations.view],
            mu=None if mu is None else mu * unit * scale,
            smoothing=settings.smoothing * unit * scale,
            inner_iterations=settings.inner_iterations,
            system_centre=_centre(state),
        )
        assert result.block is not None
        objective += share * result.objective
        influence += share * result.influence
        found.append(result.distances)
        blocks.append(
            Block(
                index=result.block.index,
                edges=result.block.edges,
                H=share * result.block.H,
                g=share * result.block.g,
            )
        )
    if not freedom.scale_is_gauge:
        blocks.append(_scale_gradient(len(grid), freedom, influence))
    for term in extra:
        value, block = term(state, True)
        objective += value
        if block is not None:
            blocks.append(block)
    return _Evaluation(objective=objective, distances=found, blocks=blocks)


def _scale_gradient(view_count: int, freedom: Freedom, influence: float) -> Block:
    """What dividing by the geometric mean of the sigma_e (and mu growing with it) adds to the gradient."""
    count = len(freedom.edges)
    return Block(
        index=view_count * PER_VIEW + freedom.edges * SIMILARITY + SIMILARITY - 1,
        edges=freedom.edges[:0],
        H=torch.zeros(count, count, dtype=torch.float64),
        g=torch.full((count,), -influence / count, dtype=torch.float64),
    )
