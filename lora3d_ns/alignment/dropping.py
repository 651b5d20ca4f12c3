"""Edges without a say: which the cut-off silences, which the solution denies, and where they lie all the same."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float32
from torch import Tensor

from lora3d_ns.alignment.initialize import without_disconnecting
from lora3d_ns.alignment.normal_equations import pass_over_view
from lora3d_ns.alignment.observations import ObservationGrid
from lora3d_ns.alignment.problem import SMOOTHING_SHARE, Problem, Reasons, Standing
from lora3d_ns.alignment.relations import robust_similarity
from lora3d_ns.alignment.settings import AlignmentSettings
from lora3d_ns.alignment.state import AlignmentState
from lora3d_ns.errors import InvalidDataError
from lora3d_ns.geometry.camera import points_from_depth
from lora3d_ns.types import PairPredictions, Sim3, Views

_LEAST_HEARD_SHARE = 0.02
"""Edges of which less than this share of either map passes the cut-off are not heard."""
_RESIDUAL_FACTOR, _RESIDUAL_FLOOR = 4.0, 0.15
_FITTED_PIXELS = 2000
_CONFIDENCE_FLOOR = 1e-6


@dataclass(frozen=True, eq=False, kw_only=True)
class Unheard:
    """What the confidence cut-off leaves too little of.

    Attributes:
        dropped: Edges left out for it, with the reason.
        uncut: Indices of edges that the graph cannot spare: the cut-off does not hold for them.
        uncut_views: Views that are next to nothing above the cut-off in those edges.
    """

    dropped: Reasons
    uncut: frozenset[int]
    uncut_views: tuple[int, ...]


def unheard_edges(views: Views, predictions: PairPredictions, settings: AlignmentSettings) -> Unheard:
    """Edges of which the cut-off leaves too little to tie their views.

    Raises:
        InvalidDataError: A mask leaves nothing of a photo, or the network is not confident of a single pixel of it.
    """
    graph = predictions.graph
    most = torch.zeros(len(views))
    heard = torch.empty(len(graph), 2)
    for index, edge in enumerate(graph.edges):
        pair = predictions.pairs[index]
        for role, (view, said) in enumerate(zip(edge, (pair.confidence_first, pair.confidence_second), strict=True)):
            mask = views.masks[view]
            counted = (said if mask is None else said[mask]).float()
            if not len(counted):
                raise InvalidDataError(f"the mask of {views.names[view]} leaves nothing", way_out="Correct the mask")
            heard[index, role] = (counted >= settings.cutoff).float().mean()
            most[view] = torch.maximum(most[view], counted.max())
    for view, name in enumerate(views.names):
        if not float(most[view]) > 0:
            raise InvalidDataError(
                f"the network has no confidence in a single pixel of {name}", way_out="Leave the photo out"
            )
    if settings.objective != "robust":
        return Unheard(dropped={}, uncut=frozenset(), uncut_views=())
    share = heard.min(dim=1).values
    least_first = [index for index in torch.argsort(share).tolist() if float(share[index]) < _LEAST_HEARD_SHARE]
    wanted = {graph.edges[index]: "the network is sure of next to nothing in it" for index in least_first}
    dropped = without_disconnecting(graph, wanted, {})
    uncut = [index for index in least_first if graph.edges[index] not in dropped]
    silent = {
        view
        for index in uncut
        for role, view in enumerate(graph.edges[index])
        if float(heard[index, role]) < _LEAST_HEARD_SHARE
    }
    return Unheard(dropped=dropped, uncut=frozenset(uncut), uncut_views=tuple(sorted(silent)))


def badly_fitting_edges(
    problem: Problem, now: Standing, grid: ObservationGrid, distances: Sequence[Float32[Tensor, " _"]]
) -> dict[tuple[int, int], str]:
    """Edges that no similarity brings near the rest's solution, worst first, as far as the graph can spare them."""
    residuals = _edge_residuals(problem, now, grid, distances)
    limit = residual_limit(residuals)
    graph = problem.predictions.graph
    worst_first = torch.argsort(residuals.nan_to_num(nan=-1.0), descending=True).tolist()
    wanted = {
        graph.edges[index]: f"its points lie {100 * float(residuals[index]):.0f} % of the depth off the other pairs'"
        for index in worst_first
        if float(residuals[index]) > limit and graph.edges[index] not in now.dropped
    }
    return without_disconnecting(graph, wanted, now.dropped)


def residual_limit(residuals: Tensor) -> float:
    """Residual, as a share of depth, above which an edge contradicts the rest: 15 %, and four times the median edge's.

    NaN where no edge has a residual.
    """
    return float((_RESIDUAL_FACTOR * residuals.nanmedian()).clamp(min=_RESIDUAL_FLOOR))


def _edge_residuals(
    problem: Problem, now: Standing, grid: ObservationGrid, distances: Sequence[Tensor]
) -> Float32[Tensor, " edges"]:
    """Per edge the median |e| of the points that count, as a share of depth: the worse of its two point maps."""
    depth = problem.typical_depth(now)
    worst = torch.full((len(problem.predictions),), torch.nan)
    for observations in grid:
        result = pass_over_view(
            observations,
            now.state,
            distances[observations.view],
            mu=None if problem.mu is None else problem.mu * depth,
            smoothing=SMOOTHING_SHARE * depth,
            keep_residual=True,
        )
        assert result.residual is not None
        counted = torch.where(observations.confidence > 0, result.residual, torch.nan)
        medians = counted.nanmedian(dim=1).values.cpu() / depth
        at = observations.edges.cpu()
        worst[at] = torch.fmax(worst[at], medians)
    return worst


def with_dropped_edges_placed(
    state: AlignmentState,
    depths: Sequence[Float32[Tensor, "_ _"]],
    views: Views,
    predictions: PairPredictions,
    dropped: Reasons,
) -> AlignmentState:
    """The state with each dropped edge where its first map lies best on its first view's final points.

    The solver does not touch dropped edges, so their similarities would be those of the first placement.
    """
    edge = state.world_from_edge
    scale, rotation, translation = edge.scale.clone(), edge.rotation.clone(), edge.translation.clone()
    for index, (i, j) in enumerate(predictions.graph.edges):
        if (i, j) not in dropped:
            continue
        T = state.T_world_camera[i]
        world = points_from_depth(depths[i].double(), state.K(i)) @ T[:3, :3].T + T[:3, 3]
        pair, mask = predictions.pairs[index], views.masks[i]
        counted = torch.ones_like(depths[i], dtype=torch.bool) if mask is None else mask
        every = max(1, int(counted.sum()) // _FITTED_PIXELS)
        fitted, _ = robust_similarity(
            pair.points_first[counted][::every].double(),
            world[counted][::every],
            pair.confidence_first[counted][::every].double() + _CONFIDENCE_FLOOR,
        )
        if float(fitted.scale) > 0:
            scale[index], rotation[index], translation[index] = fitted.scale, fitted.rotation, fitted.translation
    return AlignmentState(
        T_world_camera=state.T_world_camera,
        focal_px=state.focal_px,
        principal_point_px=state.principal_point_px,
        world_from_edge=Sim3(scale=scale, rotation=rotation, translation=translation),
    )
