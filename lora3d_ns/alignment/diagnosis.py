"""What speaks for an alignment and what against it, in numbers and in words."""

from collections.abc import Collection, Sequence

import networkx as nx
import torch
from jaxtyping import Float
from torch import Tensor

from lora3d_ns.alignment.calibrate import CalibratedMaps
from lora3d_ns.alignment.dropping import residual_limit
from lora3d_ns.alignment.problem import Problem
from lora3d_ns.alignment.stages import Solved
from lora3d_ns.types import AlignmentDiagnosis, PairGraph

_NEAR_STATIC_SHARE = 0.02


def diagnose(
    problem: Problem,
    solved: Solved,
    maps: CalibratedMaps,
    *,
    focal_spread_percent: Float[Tensor, " views"],
    uncut_views: tuple[int, ...],
    denied: Collection[tuple[int, int]],
    scale_known: bool,
    unit_factor: float,
    warnings: Sequence[str],
) -> AlignmentDiagnosis:
    """The diagnosis of a solution.

    Args:
        problem: What was solved.
        solved: How.
        maps: Depths, weights and residuals at the solution.
        focal_spread_percent: Of the single pairs' focal lengths.
        uncut_views: See `alignment.dropping.Unheard`.
        denied: Edges that contradict others, whether they could be spared or not.
        scale_known: Whether anything known gives the unit.
        unit_factor: Of the unit that the scene is given afterwards.
        warnings: What was noted before.
    """
    now, names = solved.now, problem.views.names
    unit = problem.typical_depth(now)
    centres = now.state.T_world_camera[:, :3, 3]
    baseline = float(torch.cdist(centres, centres).max()) / unit
    residuals = maps.edge_residuals / unit
    contested = contested_views(problem.predictions.graph, residuals, {*now.dropped, *denied})
    near_static = baseline < _NEAR_STATIC_SHARE
    notes = list(warnings)
    if near_static:
        notes.append(
            f"the cameras moved by only {100 * baseline:.1f} % of the depth: how far things are is the network's guess"
        )
    if uncut_views:
        notes.append(f"the network is hardly sure of anything in {', '.join(names[view] for view in uncut_views)}")
    if contested:
        notes.append(f"{', '.join(names[view] for view in contested)}: no pair that the others confirm holds them")
    notes += [f"the pair {names[i]}, {names[j]} was left out: {reason}" for (i, j), reason in now.dropped.items()]
    return AlignmentDiagnosis(
        unit=unit_factor * unit,
        edge_residuals=residuals,
        focal_spread_percent=focal_spread_percent,
        weighted_share=torch.stack(
            [(weight >= problem.settings.cutoff).float().mean() for weight in maps.view_weights]
        ),
        baseline=baseline,
        near_static=near_static,
        uncut_views=uncut_views,
        contested_views=contested,
        scale_known=scale_known,
        match_count=0 if solved.matched is None else solved.matched.observation_count,
        match_error_px=None if solved.matched is None else solved.matched.median_error_px(now.state),
        converged=now.settled,
        warnings=tuple(notes),
    )


def contested_views(
    graph: PairGraph, residuals: Float[Tensor, " edges"], bad: Collection[tuple[int, int]]
) -> tuple[int, ...]:
    """Views outside the largest group that good edges with residuals below the limit join.

    An edge that alone holds a view fits it whatever it says, so its residual does not tell; `bad` does.

    Args:
        graph: The pairs.
        residuals: Of each edge, as a share of depth; NaN where nothing of it counted.
        bad: Edges that were dropped, or would have been.
    """
    limit = residual_limit(residuals)
    good = nx.Graph()
    good.add_nodes_from(range(graph.view_count))
    good.add_edges_from(
        edge for index, edge in enumerate(graph.edges) if edge not in bad and float(residuals[index]) <= limit
    )
    largest = max(nx.connected_components(good), key=len)
    return tuple(view for view in range(graph.view_count) if view not in largest)
