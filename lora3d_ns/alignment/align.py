"""Pair predictions -> AlignedScene: the alignment from beginning to end.

Relations between the pairs say which of them contradict the rest and give a first placement; the solver refines it on a
coarse grid, then on all pixels; residuals become weights; and everything that speaks for or against the result is
written down with it.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import networkx as nx
import torch
from jaxtyping import Bool
from torch import Tensor

from lora3d_ns.alignment.adam import minimise_with_adam
from lora3d_ns.alignment.calibrate import CalibratedMaps, calibrated_maps
from lora3d_ns.alignment.checkpoint import AlignmentCheckpoint
from lora3d_ns.alignment.initialize import (
    FocalEstimates,
    cameras_of,
    contradicting_edges,
    focal_estimates,
    initial_state,
    principal_points,
    scaling,
    without_disconnecting,
    world_from_shapes,
)
from lora3d_ns.alignment.known import (
    KnownPoses,
    focal_groups,
    intrinsics_to_begin_with,
    known_poses,
    moved_to_known_poses,
    scale_from_distances,
)
from lora3d_ns.alignment.matches import Matches, match_views
from lora3d_ns.alignment.normal_equations import pass_over_view
from lora3d_ns.alignment.observations import ObservationGrid, ObservationSettings, stride_for
from lora3d_ns.alignment.priors import edge_scale_spring, focal_prior, pose_prior
from lora3d_ns.alignment.relations import check_predictions, edge_relations, view_shapes
from lora3d_ns.alignment.reprojection import SCALES_PX, ReprojectionTerm, reprojection_term
from lora3d_ns.alignment.settings import AlignmentSettings
from lora3d_ns.alignment.solve import ExtraTerm, Solution, SolverSettings, minimise
from lora3d_ns.alignment.state import AlignmentState, Freedom, freedom
from lora3d_ns.errors import InvalidDataError
from lora3d_ns.pair_graph import check_connected
from lora3d_ns.progress import progress_bar
from lora3d_ns.types import AlignedScene, AlignmentDiagnosis, PairPredictions, Views

_WIDE = 4.0
"""The first solution is made with mu times this: a narrow one would lock in what the beginning got wrong."""
_ROUNDS = 5
_LEAST_HEARD_SHARE = 0.02
"""Edges of which less than this share of either map passes the cut-off are not heard."""
_RESIDUAL_FACTOR, _RESIDUAL_FLOOR = 4.0, 0.15
"""Edges are dropped after a solution whose residual is above both: times the median edge's, and share of depth."""
_NEAR_STATIC_SHARE = 0.02
_SMOOTHING = 1e-5


@dataclass(frozen=True, eq=False, kw_only=True)
class _Problem:
    """Everything that stays the same while one alignment is solved."""

    views: Views
    predictions: PairPredictions
    settings: AlignmentSettings
    focal_groups: Sequence[int | None]
    principal_point: Sequence[bool]
    fixed_poses: Sequence[int]
    metric: bool
    uncut: frozenset[int]
    extra: tuple[ExtraTerm, ...]
    matches: Matches | None
    device: torch.device
    advance: Callable[[int], None]
    checkpoint: AlignmentCheckpoint | None

    def grid(
        self,
        stride: int,
        dropped: Mapping[tuple[int, int], str],
        masks: Sequence[Tensor | None] | None = None,
        *,
        cut: bool = True,
    ) -> ObservationGrid:
        edges = self.predictions.graph.edges
        return ObservationGrid(
            self.views,
            self.predictions,
            ObservationSettings(
                cutoff=self.settings.cutoff if cut and self.settings.objective == "robust" else 0.0,
                dropped=frozenset(index for index, edge in enumerate(edges) if edge in dropped),
                uncut=self.uncut,
            ),
            stride=stride,
            masks=masks,
            device=self.device,
        )

    def freedom(self, dropped: Mapping[tuple[int, int], str]) -> Freedom:
        edges = self.predictions.graph.edges
        return freedom(
            len(self.views),
            len(edges),
            focal_groups=self.focal_groups,
            principal_point=self.principal_point,
            fixed_poses=self.fixed_poses,
            dropped_edges=[index for index, edge in enumerate(edges) if edge in dropped],
            scale_is_gauge=not self.metric,
        )

    def unit_at(self, state: AlignmentState, unit: float, dropped: Mapping[tuple[int, int], str]) -> float:
        """The typical depth at a state, from that in the gauge's unit."""
        return unit * self.freedom(dropped).gauge(state)

    @property
    def mu(self) -> float | None:
        return self.settings.mu if self.settings.objective == "robust" else None


@dataclass(frozen=True, eq=False, kw_only=True)
class _Solved:
    """What the stages end with."""

    solution: Solution
    full: ObservationGrid
    dropped: dict[tuple[int, int], str]
    masks: list[Bool[Tensor, "_ _"]] | None
    matched: ReprojectionTerm | None


class _History:
    """Objective and time over all stages."""

    def __init__(self) -> None:
        self._begun = time.perf_counter()
        self.losses: list[float] = []
        self.seconds: list[float] = []

    def add(self, solution: Solution, begun: float) -> None:
        self.losses += solution.history
        self.seconds += [begun - self._begun + seconds for seconds in solution.seconds]


def align(
    views: Views,
    predictions: PairPredictions,
    settings: AlignmentSettings | None = None,
    *,
    matches: Matches | None = None,
    checkpoint: Path | None = None,
    device: torch.device | None = None,
) -> AlignedScene:
    """One scene from pair predictions: cameras, depths, and the weight each predicted point deserves.

    The world is the first view's camera, unless known poses say otherwise. Its unit is arbitrary (the gauge of
    `alignment.objective`), unless known poses or a known distance give one.

    Args:
        views: Photos with masks and whatever is known of their cameras.
        predictions: Point maps of both orders of every pair.
        settings: How to align.
        matches: 2D correspondences, if they were made before; else `settings.matches` decides.
        checkpoint: File in which the solver leaves its state after every step; if it holds that of the same views,
            predictions and settings, an interrupted alignment goes on from there.
        device: Where the passes over the observations run; by default the CPU.

    Raises:
        DisconnectedViewsError: The pairs leave the photos in groups.
        InvalidDataError: Predictions and views contradict each other, or nothing holds a view.
        NonFinitePredictionError: A prediction is NaN or infinite.
        KnownCameraError: What is known of a camera cannot be.
        SettingsError: A known distance cannot be measured.
    """
    settings = settings or AlignmentSettings()
    check_connected(predictions.graph, views.names)
    check_predictions(views, predictions)
    history = _History()
    graph = predictions.graph
    robust = settings.objective == "robust"
    unheard, uncut_edges, uncut_views = _unheard(views, predictions, settings)

    if matches is None and settings.matches == "auto":
        matches = match_views(views, predictions)
    match_counts = {} if matches is None else {pair: len(found.pixels_first) for pair, found in matches.pairs.items()}
    shapes = view_shapes(views, predictions)
    relations = edge_relations(predictions, shapes)
    dropped = {**unheard, **contradicting_edges(graph, relations, unheard)} if robust else {}
    centres = principal_points(views, settings.principal_point_offset_px)
    estimates = focal_estimates(views, shapes, centres)
    groups = focal_groups(views, settings.focal)
    intrinsics = intrinsics_to_begin_with(views, estimates.focal_px, groups)
    state, unit = initial_state(
        graph,
        relations,
        world_from_shapes(graph, relations, dropped, match_counts),
        intrinsics.focal_px,
        centres,
        dropped,
    )
    poses = known_poses(views)
    state, unit, metric = moved_to_known_poses(state, unit, poses)
    held = settings.known_poses == "fixed"

    extra: list[ExtraTerm] = []
    if poses.T_world_camera and not held:
        extra.append(pose_prior(poses, settings, unit, weight=1.0 / len(views)))
    steps = _ROUNDS * settings.coarse_iterations + settings.full_iterations
    with progress_bar("Aligning", steps, shown=settings.show_progress) as advance:
        problem = _Problem(
            views=views,
            predictions=predictions,
            settings=settings,
            focal_groups=[None if view in intrinsics.known else group for view, group in enumerate(groups)],
            principal_point=[settings.principal_point and view not in intrinsics.known for view in range(len(views))],
            fixed_poses=list(poses.T_world_camera) if poses.T_world_camera and held else _frame(poses),
            metric=metric,
            uncut=uncut_edges,
            extra=tuple(extra),
            matches=matches,
            device=device or torch.device("cpu"),
            advance=advance,
            checkpoint=None if checkpoint is None else AlignmentCheckpoint(checkpoint, views, predictions, settings),
        )
        unit_in_gauge = unit / problem.freedom(dropped).gauge(state)
        solved = _solve(problem, state, unit_in_gauge, dropped, history)
    state = solved.solution.state
    unit_now = problem.unit_at(state, unit_in_gauge, solved.dropped)
    maps = calibrated_maps(
        solved.full,
        problem.grid(1, solved.dropped, solved.masks, cut=False),
        predictions,
        state,
        solved.solution.distances,
        loss_mu=None if problem.mu is None else problem.mu * unit_now,
        weight_mu=settings.mu * unit_now,
        smoothing=_SMOOTHING * unit_now,
        cutoff=settings.cutoff,
    )
    return _scene(problem, solved, maps, unit_now, metric, estimates, uncut_views, intrinsics.warnings, history)


def _frame(poses: KnownPoses) -> list[int]:
    """Views whose pose is held because nothing else fixes the world's frame: none where a prior does."""
    return [] if poses.T_world_camera else [0]


def _solve(
    problem: _Problem,
    state: AlignmentState,
    unit: float,
    dropped: dict[tuple[int, int], str],
    history: _History,
) -> _Solved:
    """The stages: coarse grid with mu narrowing, contradicting edges out, moving pixels out, all pixels."""
    settings = problem.settings
    stride = stride_for(problem.views, settings.coarse_pixels)
    coarse = SolverSettings(iterations=settings.coarse_iterations, tolerance=settings.tolerance, smoothing=_SMOOTHING)
    if problem.checkpoint is not None:
        state, dropped = problem.checkpoint.resumed(state, dropped)
    grid = problem.grid(stride, dropped)
    wide = None if problem.mu is None else _WIDE * problem.mu
    if problem.mu is not None:
        begin = _minimise(problem, grid, state, replace(coarse, iterations=1), wide, unit, history, dropped)
        free = [view for view, group in enumerate(problem.focal_groups) if group is not None]
        taking_part = problem.freedom(dropped).edges.tolist()
        springs = [edge_scale_spring(state.world_from_edge.scale, taking_part, begin.objective)]
        if free:
            springs.append(focal_prior(state.focal_px, free, begin.objective))
        problem = replace(problem, extra=(*problem.extra, *springs))
    solution = _minimise(problem, grid, state, coarse, wide, unit, history, dropped)
    matched = None
    if problem.matches is not None:
        matched = reprojection_term(
            problem.matches,
            len(problem.views),
            weight=settings.match_weight,
            objective=solution.objective,
            edge_count=len(problem.predictions),
            unit=unit,
        )
    for scale_px in SCALES_PX if matched is not None else ():
        assert matched is not None
        matched = replace(matched, scale_px=scale_px)
        together = replace(problem, extra=(*problem.extra, matched))
        solution = _minimise(together, grid, solution.state, coarse, problem.mu, unit, history, dropped)
    if matched is not None:
        problem = replace(problem, extra=(*problem.extra, matched))
    elif problem.mu is not None:
        solution = _minimise(problem, grid, solution.state, coarse, problem.mu, unit, history, dropped)
    state = solution.state
    masks = None
    if problem.mu is not None:
        also = _badly_fitting(problem, grid, solution, unit, dropped)
        if also:
            dropped = {**dropped, **also}
            grid = problem.grid(stride, dropped)
            solution = _minimise(problem, grid, state, coarse, problem.mu, unit, history, dropped)
            state = solution.state
        if settings.mask_moving:
            masks = _static_masks(problem, solution, unit, dropped)
    full = grid if stride == 1 and masks is None else problem.grid(1, dropped, masks)
    if full is not grid:
        fine = replace(coarse, iterations=settings.full_iterations)
        solution = _minimise(problem, full, state, fine, problem.mu, unit, history, dropped)
    return _Solved(solution=solution, full=full, dropped=dropped, masks=masks, matched=matched)


def _minimise(
    problem: _Problem,
    grid: ObservationGrid,
    state: AlignmentState,
    solver: SolverSettings,
    mu: float | None,
    unit: float,
    history: _History,
    dropped: Mapping[tuple[int, int], str],
) -> Solution:
    def on_step(now: AlignmentState, _objective: float) -> None:
        problem.advance(1)
        if problem.checkpoint is not None:
            problem.checkpoint.save(now, dropped)

    begun = time.perf_counter()
    run = minimise if problem.settings.solver == "fast" else minimise_with_adam
    solution = run(
        grid, state, problem.freedom(dropped), solver, mu=mu, unit=unit, extra=problem.extra, on_step=on_step
    )
    history.add(solution, begun)
    return solution


def _unheard(
    views: Views, predictions: PairPredictions, settings: AlignmentSettings
) -> tuple[dict[tuple[int, int], str], frozenset[int], tuple[int, ...]]:
    """Edges of which the confidence cut-off leaves too little to tie their views, as far as the graph can spare them.

    Returns:
        Those edges with the reason; edges that cannot be spared, for which the cut-off does not hold; and their views.

    Raises:
        InvalidDataError: The network is not confident of a single pixel of a photo.
    """
    graph = predictions.graph
    most = torch.zeros(len(views))
    heard_share = torch.empty(len(graph))
    for index, edge in enumerate(graph.edges):
        pair, shares = predictions.pairs[index], []
        for view, confidence in zip(edge, (pair.confidence_first, pair.confidence_second), strict=True):
            mask = views.masks[view]
            counted = (confidence if mask is None else confidence[mask]).float()
            shares.append((counted >= settings.cutoff).float().mean())
            most[view] = torch.maximum(most[view], counted.max())
        heard_share[index] = torch.stack(shares).min()
    for view, name in enumerate(views.names):
        if not float(most[view]) > 0:
            raise InvalidDataError(
                f"the network has no confidence in a single pixel of {name}", way_out="Leave the photo out"
            )
    if settings.objective != "robust":
        return {}, frozenset(), ()
    least_first = torch.argsort(heard_share).tolist()
    wanted = {
        graph.edges[index]: "the network is sure of next to nothing in it"
        for index in least_first
        if float(heard_share[index]) < _LEAST_HEARD_SHARE
    }
    unheard = without_disconnecting(graph, wanted, {})
    needed = [edge for edge in wanted if edge not in unheard]
    uncut = frozenset(index for index, edge in enumerate(graph.edges) if edge in needed)
    return unheard, uncut, tuple(sorted({view for edge in needed for view in edge}))


def _badly_fitting(
    problem: _Problem, grid: ObservationGrid, solution: Solution, unit: float, dropped: Mapping[tuple[int, int], str]
) -> dict[tuple[int, int], str]:
    """Edges that no similarity brings near the rest's solution, worst first, as far as the graph can spare them."""
    residuals = _edge_medians(problem, grid, solution, unit, dropped)
    typical = float(residuals.nanmedian())
    limit = max(_RESIDUAL_FACTOR * typical, _RESIDUAL_FLOOR)
    graph = problem.predictions.graph
    worst_first = torch.argsort(residuals.nan_to_num(nan=-1.0), descending=True).tolist()
    wanted = {
        graph.edges[index]: f"its points lie {100 * float(residuals[index]):.0f} % of the depth off the other pairs'"
        for index in worst_first
        if float(residuals[index]) > limit and graph.edges[index] not in dropped
    }
    return without_disconnecting(graph, wanted, dropped)


def _edge_medians(
    problem: _Problem, grid: ObservationGrid, solution: Solution, unit: float, dropped: Mapping[tuple[int, int], str]
) -> Tensor:
    """Per edge the median |e| of the points that count, as a share of depth: the worse of its two point maps."""
    now = problem.unit_at(solution.state, unit, dropped)
    worst = torch.full((len(problem.predictions),), torch.nan)
    for observations in grid:
        result = pass_over_view(
            observations,
            solution.state,
            solution.distances[observations.view],
            mu=None if problem.mu is None else problem.mu * now,
            smoothing=_SMOOTHING * now,
            keep_residual=True,
        )
        assert result.residual is not None
        counted = torch.where(observations.confidence > 0, result.residual, torch.nan)
        medians = counted.nanmedian(dim=1).values.cpu() / now
        at = observations.edges.cpu()
        worst[at] = torch.fmax(worst[at], medians)
    return worst


def _static_masks(
    problem: _Problem, solution: Solution, unit: float, dropped: Mapping[tuple[int, int], str]
) -> list[Tensor]:
    now = problem.unit_at(solution.state, unit, dropped)
    assert problem.mu is not None
    full, everything = problem.grid(1, dropped), problem.grid(1, dropped, cut=False)
    fresh = [
        pass_over_view(block, solution.state, None, mu=problem.mu * now, smoothing=_SMOOTHING * now).distances
        for block in full
    ]
    maps = calibrated_maps(
        full,
        everything,
        problem.predictions,
        solution.state,
        fresh,
        loss_mu=problem.mu * now,
        weight_mu=problem.mu * now,
        smoothing=_SMOOTHING * now,
        cutoff=problem.settings.cutoff,
    )
    return [~moving for moving in maps.moving]


def _scene(
    problem: _Problem,
    solved: _Solved,
    maps: CalibratedMaps,
    unit: float,
    metric: bool,
    estimates: FocalEstimates,
    uncut_views: tuple[int, ...],
    warnings: Sequence[str],
    history: _History,
) -> AlignedScene:
    views, settings = problem.views, problem.settings
    state, dropped, matched = solved.solution.state, solved.dropped, solved.matched
    match_error_px = None if matched is None else matched.median_error_px(state)
    depths = maps.depths
    factor = scale_from_distances(settings.known_distances, views, cameras_of(state, views), depths)
    if factor is not None:
        state = state.moved(scaling(torch.tensor(factor, dtype=torch.float64)))
        depths, unit = tuple(depth * factor for depth in depths), unit * factor
    centres = state.T_world_camera[:, :3, 3]
    baseline = float(torch.cdist(centres, centres).max()) / unit
    contested = _contested(problem.predictions, maps, unit / (factor or 1.0), dropped)
    notes = list(warnings)
    names = views.names
    if baseline < _NEAR_STATIC_SHARE:
        notes.append(
            f"the cameras moved by only {100 * baseline:.1f} % of the depth: how far things are is the network's guess"
        )
    if uncut_views:
        notes.append(f"the network is hardly sure of anything in {', '.join(names[view] for view in uncut_views)}")
    if contested:
        notes.append(f"{', '.join(names[view] for view in contested)}: no pair that the others confirm holds them")
    notes += [f"the pair {names[i]}, {names[j]} was left out: {reason}" for (i, j), reason in dropped.items()]
    if settings.matches == "auto" and matched is None:
        notes.append("too few matches between the photos: the point maps alone decided the cameras")
    return AlignedScene(
        graph=problem.predictions.graph,
        cameras=cameras_of(state, views),
        depths=depths,
        world_from_edge=state.world_from_edge,
        weights=maps.weights,
        view_weights=maps.view_weights,
        moving=maps.moving,
        loss_history=tuple(history.losses),
        history_seconds=tuple(history.seconds),
        dropped_edges=dropped,
        diagnosis=AlignmentDiagnosis(
            unit=unit,
            edge_residuals=maps.edge_residuals / (unit / (factor or 1.0)),
            focal_spread_percent=estimates.spread_percent,
            weighted_share=torch.stack([(weight >= settings.cutoff).float().mean() for weight in maps.view_weights]),
            baseline=baseline,
            near_static=baseline < _NEAR_STATIC_SHARE,
            uncut_views=uncut_views,
            contested_views=contested,
            scale_known=metric or factor is not None,
            match_count=0 if matched is None else matched.observation_count,
            match_error_px=match_error_px,
            converged=solved.solution.converged,
            warnings=tuple(notes),
        ),
    )


def _contested(
    predictions: PairPredictions, maps: CalibratedMaps, unit: float, dropped: Mapping[tuple[int, int], str]
) -> tuple[int, ...]:
    """Views outside the largest group that edges below the residual limit join."""
    residuals = maps.edge_residuals / unit
    limit = max(_RESIDUAL_FACTOR * float(residuals.nanmedian()), _RESIDUAL_FLOOR)
    good = nx.Graph()
    good.add_nodes_from(range(predictions.graph.view_count))
    good.add_edges_from(
        edge
        for index, edge in enumerate(predictions.graph.edges)
        if edge not in dropped and float(residuals[index]) <= limit
    )
    largest = max(nx.connected_components(good), key=len)
    return tuple(view for view in range(predictions.graph.view_count) if view not in largest)
