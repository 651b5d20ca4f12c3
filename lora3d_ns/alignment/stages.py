"""The stages of an alignment: a coarse grid with a wide kernel, a narrow one, misfits out, then all pixels."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from lora3d_ns.alignment.adam import minimise_with_adam
from lora3d_ns.alignment.calibrate import calibrated_maps
from lora3d_ns.alignment.checkpoint import AlignmentCheckpoint
from lora3d_ns.alignment.dropping import badly_fitting_edges
from lora3d_ns.alignment.normal_equations import pass_over_view
from lora3d_ns.alignment.observations import ObservationGrid
from lora3d_ns.alignment.priors import edge_scale_spring, focal_prior
from lora3d_ns.alignment.problem import SMOOTHING_SHARE, Problem, Standing
from lora3d_ns.alignment.reprojection import SCALES_PX, ReprojectionTerm
from lora3d_ns.alignment.solve import ExtraTerm, Solution, SolverSettings, minimise
from lora3d_ns.alignment.state import AlignmentState

_WIDE = 4.0
"""The first solution is made with mu times this: a narrow one would lock in what the beginning got wrong."""
_SETTLED = 10.0
"""All pixels get few steps; they have settled when the last one gained less than this many tolerances."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Stage:
    """One run of the solver.

    Attributes:
        kind: "coarse" is the first; "matches" brings in 2D matches; "narrow" lowers mu; "again" follows only if edges
            were dropped; "full" has all pixels.
        mu: Of the robust loss, as a share of depth.
        iterations: Most steps.
        match_scale_px: Of the matches' kernel; None before they come in.
    """

    kind: str
    mu: float | None
    iterations: int
    match_scale_px: float | None = None


@dataclass(frozen=True, eq=False, kw_only=True)
class Solved:
    """What the stages end with.

    Attributes:
        now: The scene and what was left out of it; `settled` if the solver met its tolerance.
        solution: Of the last stage.
        full: All pixels, with the confidences that had a say.
        matched: The matches' term as it was at the end.
        losses, seconds: The objective after every accepted step of all stages, and when.
    """

    now: Standing
    solution: Solution
    full: ObservationGrid
    matched: ReprojectionTerm | None
    losses: tuple[float, ...]
    seconds: tuple[float, ...]


def planned_stages(problem: Problem) -> tuple[Stage, ...]:
    """The stages in their order."""
    settings, mu = problem.settings, problem.mu
    scales_px = () if problem.matched is None else SCALES_PX
    last_px = scales_px[-1] if scales_px else None
    coarse = settings.coarse_iterations
    stages = [Stage(kind="coarse", mu=None if mu is None else _WIDE * mu, iterations=coarse)]
    stages += [Stage(kind="matches", mu=mu, iterations=coarse, match_scale_px=scale_px) for scale_px in scales_px]
    if mu is not None:
        stages += [] if scales_px else [Stage(kind="narrow", mu=mu, iterations=coarse)]
        stages.append(Stage(kind="again", mu=mu, iterations=coarse, match_scale_px=last_px))
    stages.append(Stage(kind="full", mu=mu, iterations=settings.full_iterations, match_scale_px=last_px))
    return tuple(stages)


def solve_in_stages(
    problem: Problem,
    begin: Standing,
    *,
    begun: float,
    checkpoint: AlignmentCheckpoint | None,
    advance: Callable[[int], None],
) -> Solved:
    """All stages from a first placement, or from where a checkpoint left them.

    Args:
        problem: What to solve.
        begin: The first placement.
        begun: `time.perf_counter()` when the alignment began.
        checkpoint: Where the standing is kept after every step.
        advance: Called with a number of steps; over all stages with the sum of their `iterations`.
    """
    stages = planned_stages(problem)
    grid = problem.grid(problem.coarse_stride, begin)
    springs = _springs(problem, begin, grid, stages[0])
    now = begin if checkpoint is None else checkpoint.resumed(begin)
    if now is not begin:
        grid = problem.grid(problem.coarse_stride, now)
    advance(sum(stage.iterations for stage in stages[: now.stage]))
    losses: list[float] = []
    seconds: list[float] = []
    while True:
        stage = stages[now.stage]
        if stage.kind == "full":
            grid = problem.grid(1, now)
        matched = _matches_at(problem, stage, now)
        extra = (*problem.extra, *springs, *(() if matched is None else (matched,)))
        stage_begun = time.perf_counter()
        solution = _solve_stage(problem, stage, now, grid, extra, checkpoint, advance)
        losses += solution.history
        seconds += [stage_begun - begun + after for after in solution.seconds]
        settled = solution.converged if stage.kind != "full" else now.settled and _settled(problem, solution)
        now = replace(now, state=solution.state, settled=settled)
        if stage.kind == "full":
            return Solved(
                now=now,
                solution=solution,
                full=grid,
                matched=matched,
                losses=tuple(losses),
                seconds=tuple(seconds),
            )
        following = _next_standing(problem, stages, now, grid, solution)
        advance(sum(skipped.iterations for skipped in stages[now.stage + 1 : following.stage]))
        if following.dropped != now.dropped:
            grid = problem.grid(problem.coarse_stride, following)
        now = following


def _springs(problem: Problem, begin: Standing, grid: ObservationGrid, first: Stage) -> tuple[ExtraTerm, ...]:
    """What holds numbers that the evidence may leave loose, in proportion to the objective after one step.

    The paper's solver knows point maps only, and Eq. 6 is left as published.
    """
    if problem.mu is None or problem.settings.solver == "adam":
        return ()
    once = _solve_stage(problem, replace(first, iterations=1), begin, grid, problem.extra, None, lambda _: None)
    free = [view for view, group in enumerate(problem.focal_groups) if group is not None]
    taking_part = problem.freedom(begin.dropped).edges.tolist()
    springs = [edge_scale_spring(begin.state.world_from_edge.scale, taking_part, once.objective)]
    if free:
        springs.append(focal_prior(begin.state.focal_px, free, once.objective))
    return tuple(springs)


def _matches_at(problem: Problem, stage: Stage, now: Standing) -> ReprojectionTerm | None:
    if problem.matched is None or stage.match_scale_px is None or now.match_objective is None:
        return None
    weight = problem.matched.weight * now.match_objective
    return replace(problem.matched, weight=weight, scale_px=stage.match_scale_px)


def _solve_stage(
    problem: Problem,
    stage: Stage,
    now: Standing,
    grid: ObservationGrid,
    extra: tuple[ExtraTerm, ...],
    checkpoint: AlignmentCheckpoint | None,
    advance: Callable[[int], None],
) -> Solution:
    left = stage.iterations

    def on_step(state: AlignmentState, _objective: float) -> None:
        nonlocal left
        if left:
            left -= 1
            advance(1)
        if checkpoint is not None:
            checkpoint.save(replace(now, state=state))

    run = minimise if problem.settings.solver == "fast" else minimise_with_adam
    solution = run(
        grid,
        now.state,
        problem.freedom(now.dropped),
        SolverSettings(iterations=stage.iterations, tolerance=problem.settings.tolerance, smoothing=SMOOTHING_SHARE),
        mu=stage.mu,
        unit=now.unit,
        extra=extra,
        on_step=on_step,
    )
    advance(left)
    return solution


def _settled(problem: Problem, solution: Solution) -> bool:
    if solution.converged or len(solution.history) < 2:
        return solution.converged
    before, last = solution.history[-2:]
    return before - last < _SETTLED * problem.settings.tolerance * last


def _next_standing(
    problem: Problem, stages: tuple[Stage, ...], now: Standing, grid: ObservationGrid, solution: Solution
) -> Standing:
    """Where the next stage begins."""
    if stages[now.stage].kind == "coarse":
        now = replace(now, match_objective=solution.objective)
    stage = now.stage + 1
    if stages[stage].kind == "again":
        misfits = badly_fitting_edges(problem, now, grid, solution.distances)
        if misfits:
            return replace(problem.without(now, misfits), stage=stage)
        stage += 1
    if stages[stage].kind == "full" and problem.mu is not None and problem.settings.mask_moving:
        now = replace(now, static=_static_pixels(problem, now))
    return replace(now, stage=stage)


def _static_pixels(problem: Problem, now: Standing) -> tuple:
    """All pixels but those that no static geometry explains."""
    depth = problem.typical_depth(now)
    assert problem.mu is not None
    mu, smoothing = problem.mu * depth, SMOOTHING_SHARE * depth
    full = problem.grid(1, now)
    maps = calibrated_maps(
        full,
        problem.grid(1, now, cut=False),
        problem.predictions,
        now.state,
        [pass_over_view(block, now.state, None, mu=mu, smoothing=smoothing).distances for block in full],
        loss_mu=mu,
        weight_mu=mu,
        smoothing=smoothing,
        cutoff=problem.settings.cutoff,
    )
    return tuple(~moving for moving in maps.moving)
