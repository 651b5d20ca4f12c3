"""Pair predictions -> AlignedScene: the alignment from beginning to end.

Relations between the pairs say which of them contradict the rest and give a first placement; the solver refines it in
stages (`alignment.stages`); residuals become weights; and everything that speaks for or against the result is written
down with it.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from lora3d_ns.alignment.calibrate import CalibratedMaps, calibrated_maps
from lora3d_ns.alignment.checkpoint import AlignmentCheckpoint
from lora3d_ns.alignment.diagnosis import diagnose
from lora3d_ns.alignment.dropping import Unheard, unheard_edges, with_dropped_edges_placed
from lora3d_ns.alignment.initialize import (
    FocalEstimates,
    cameras_of,
    denied_edges,
    focal_estimates,
    initial_state,
    principal_points,
    without_disconnecting,
    world_from_shapes,
)
from lora3d_ns.alignment.known import (
    KnownPoses,
    check_distances,
    focal_groups,
    intrinsics_to_begin_with,
    known_poses,
    moved_to_known_poses,
    scale_from_distances,
    scaled_about_known_poses,
)
from lora3d_ns.alignment.matches import Matches, match_views
from lora3d_ns.alignment.priors import pose_prior
from lora3d_ns.alignment.problem import SMOOTHING_SHARE, Problem, Standing
from lora3d_ns.alignment.relations import check_predictions, edge_relations, view_shapes
from lora3d_ns.alignment.reprojection import reprojection_term
from lora3d_ns.alignment.settings import AlignmentSettings
from lora3d_ns.alignment.stages import Solved, planned_stages, solve_in_stages
from lora3d_ns.pair_graph import check_connected
from lora3d_ns.progress import progress_bar
from lora3d_ns.types import AlignedScene, PairPredictions, Views


@dataclass(frozen=True, eq=False, kw_only=True)
class _Beginning:
    """A first placement, and what was learnt on the way to it: `denied` are edges that contradict others."""

    problem: Problem
    standing: Standing
    poses: KnownPoses
    unheard: Unheard
    denied: frozenset[tuple[int, int]]
    estimates: FocalEstimates
    warnings: tuple[str, ...]


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
            predictions, settings and matches, an interrupted alignment goes on from there. Its history begins anew.
        device: Where the passes over the observations run; by default the CPU.

    Raises:
        DisconnectedViewsError: The pairs leave the photos in groups.
        InvalidDataError: Predictions and views contradict each other, or nothing holds a view.
        NonFinitePredictionError: A prediction is NaN or infinite.
        KnownCameraError: What is known of a camera cannot be.
        SettingsError: A known distance cannot be measured, or the solver does not know what it is asked for.
    """
    begun = time.perf_counter()
    settings = settings or AlignmentSettings()
    check_connected(predictions.graph, views.names)
    check_predictions(views, predictions)
    check_distances(settings.known_distances, views, known_poses(views))
    given = matches
    if matches is None and settings.matches == "auto":
        matches = match_views(views, predictions, show_progress=settings.show_progress)
    beginning = _begin(views, predictions, settings, matches, device or torch.device("cpu"))
    problem = beginning.problem
    kept = None if checkpoint is None else AlignmentCheckpoint(checkpoint, views, predictions, settings, given)
    steps = sum(stage.iterations for stage in planned_stages(problem))
    with progress_bar("Aligning", steps, shown=settings.show_progress) as advance:
        solved = solve_in_stages(problem, beginning.standing, begun=begun, checkpoint=kept, advance=advance)
    depth = problem.typical_depth(solved.now)
    maps = calibrated_maps(
        solved.full,
        problem.grid(1, solved.now, cut=False),
        predictions,
        solved.now.state,
        solved.solution.distances,
        loss_mu=None if problem.mu is None else problem.mu * depth,
        weight_mu=settings.mu * depth,
        smoothing=SMOOTHING_SHARE * depth,
        cutoff=settings.cutoff,
    )
    return _scene(beginning, solved, maps)


def _begin(
    views: Views,
    predictions: PairPredictions,
    settings: AlignmentSettings,
    matches: Matches | None,
    device: torch.device,
) -> _Beginning:
    """Cameras without any optimisation, laid over what is known of them."""
    graph = predictions.graph
    unheard = unheard_edges(views, predictions, settings)
    shapes = view_shapes(views, predictions)
    relations = edge_relations(predictions, shapes)
    denied = denied_edges(graph, relations, unheard.dropped)
    dropped = dict(unheard.dropped)
    if settings.objective == "robust":
        dropped |= without_disconnecting(graph, denied, unheard.dropped)
    centres = principal_points(views, settings.principal_point_offset_px)
    estimates = focal_estimates(views, shapes, centres)
    groups = focal_groups(views, settings.focal)
    intrinsics = intrinsics_to_begin_with(views, estimates.focal_px, groups)
    match_counts = {} if matches is None else {pair: len(found) for pair, found in matches.pairs.items()}
    placed = world_from_shapes(graph, relations, dropped, match_counts)
    state, depth_in_gauge = initial_state(graph, relations, placed, intrinsics.focal_px, centres, dropped)
    poses = known_poses(views)
    state, depth, metric = moved_to_known_poses(state, depth_in_gauge, poses)
    held = settings.known_poses == "fixed"
    extra = ()
    if poses.T_world_camera and not held:
        extra = (pose_prior(poses, settings, unit=depth, weight=depth_in_gauge / len(views)),)
    matched = None
    if matches is not None:
        matched = reprojection_term(
            matches, len(views), weight=settings.match_weight, objective=1.0, edge_count=len(graph), unit=depth
        )
    warnings = list(intrinsics.warnings)
    if matches is not None and matched is None:
        warnings.append("too few matches between the photos: the point maps alone decided the cameras")
    free = [view not in intrinsics.known for view in range(len(views))]
    return _Beginning(
        problem=Problem(
            views=views,
            predictions=predictions,
            settings=settings,
            focal_groups=[group if free[view] else None for view, group in enumerate(groups)],
            principal_point=[settings.principal_point and free[view] for view in range(len(views))],
            fixed_poses=_held_poses(poses, held),
            metric=metric,
            uncut=unheard.uncut,
            extra=extra,
            matched=matched,
            device=device,
        ),
        standing=Standing(stage=0, state=state, unit=depth_in_gauge, dropped=dropped),
        poses=poses,
        unheard=unheard,
        denied=frozenset(denied),
        estimates=estimates,
        warnings=tuple(warnings),
    )


def _held_poses(poses: KnownPoses, held: bool) -> Sequence[int]:
    """Views whose pose is held: the known ones, none where a prior fixes the world's frame, else the first."""
    if not poses.T_world_camera:
        return [0]
    return list(poses.T_world_camera) if held else []


def _scene(beginning: _Beginning, solved: Solved, maps: CalibratedMaps) -> AlignedScene:
    """The result, in the unit of the known distances where there are any."""
    problem, now = beginning.problem, solved.now
    views, predictions = problem.views, problem.predictions
    state = with_dropped_edges_placed(now.state, maps.depths, views, predictions, now.dropped)
    depths, moving = maps.depths, maps.moving
    if now.static is not None:
        # What lost its say cannot be found anew by how badly it fits.
        moving = tuple(also | ~static for also, static in zip(moving, now.static, strict=True))
    factor = scale_from_distances(problem.settings.known_distances, views, cameras_of(state, views), depths)
    diagnosis = diagnose(
        problem,
        solved,
        maps,
        focal_spread_percent=beginning.estimates.spread_percent,
        uncut_views=beginning.unheard.uncut_views,
        denied=beginning.denied,
        scale_known=problem.metric or factor is not None,
        unit_factor=factor or 1.0,
        warnings=beginning.warnings,
    )
    if factor is not None:
        state = scaled_about_known_poses(state, factor, beginning.poses)
        depths = tuple(depth * factor for depth in depths)
    return AlignedScene(
        graph=predictions.graph,
        cameras=cameras_of(state, views),
        depths=depths,
        world_from_edge=state.world_from_edge,
        weights=maps.weights,
        view_weights=maps.view_weights,
        moving=moving,
        loss_history=solved.losses,
        history_seconds=solved.seconds,
        dropped_edges=now.dropped,
        diagnosis=diagnosis,
    )
