"""Where the alignment begins: closed-form cameras along the best spanning tree of the pairs.

Each view hangs on one other by one similarity. A pair is a good branch when both its point maps are confident, when the
shape it gives its second view is the one that view has elsewhere, and when other ways around end in the same place.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import networkx as nx
import torch
from jaxtyping import Float64
from torch import Tensor

from lora3d_ns.alignment.objective import gauge_scale
from lora3d_ns.alignment.relations import EdgeRelations, ViewShape
from lora3d_ns.alignment.state import AlignmentState
from lora3d_ns.errors import InvalidDataError
from lora3d_ns.geometry.camera import focal_from_samples
from lora3d_ns.types import Cameras, PairGraph, Sim3, Views

_CONTRADICTION_FACTOR = 5.0
_CONTRADICTION_FLOOR = 0.3
_MISFIT_FLOOR = 0.02
_CONFIDENCE_FLOOR = 1e-6
_MATCHES_THAT_DOUBLE = 20.0
_FOCAL_RANGE = (0.4, 4.0)
"""Times the photo's longer side: fields of view of 103 to 14 degrees. Point maps that say otherwise are wrong."""


@dataclass(frozen=True, eq=False, kw_only=True)
class FocalEstimates:
    """Focal lengths from point maps alone.

    Attributes:
        focal_px: One per view, network pixels: the median over the pairs it is first in.
        spread_percent: Half the distance of the quartiles of those estimates, relative to their median.
    """

    focal_px: Float64[Tensor, " views"]
    spread_percent: Float64[Tensor, " views"]


def principal_points(views: Views, offset_px: tuple[float, float] = (0.0, 0.0)) -> Float64[Tensor, "views 2"]:
    """The centres of the source photos in network pixels, or as known, plus an offset in network pixels."""
    centres = []
    for K, affine, (width, height) in zip(views.known_K, views.source_from_network, views.source_sizes, strict=True):
        source = torch.tensor([width / 2, height / 2], dtype=torch.float64) if K is None else K[:2, 2].double()
        centres.append(affine.network_from_source(source))
    return torch.stack(centres) + torch.tensor(offset_px, dtype=torch.float64)


def focal_estimates(
    views: Views, shapes: Sequence[ViewShape], principal_point_px: Float64[Tensor, "views 2"]
) -> FocalEstimates:
    """Weiszfeld's estimate (`geometry.camera.focal_from_points`) of each pair, and per view their median and spread.

    Raises:
        InvalidDataError: No pair gives a view a focal length.
    """
    focals, spreads = [], []
    for name, (height, width), shape, centre in zip(views.names, views.shapes, shapes, principal_point_px, strict=True):
        pixels = shape.pixels.flip(dims=[1]).double() + 0.5 - centre
        focal = focal_from_samples(shape.edge_points, pixels, shape.edge_confidence + _CONFIDENCE_FLOOR)
        focal = focal[torch.isfinite(focal) & (focal > 0)]
        if len(focal) == 0:
            raise InvalidDataError(
                f"the point maps give {name} no focal length",
                way_out="Give its intrinsics (known cameras), or leave the photo out",
            )
        low, middle, high = torch.quantile(focal, torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64))
        focals.append(middle.clamp(*(factor * max(height, width) for factor in _FOCAL_RANGE)))
        spreads.append(50.0 * (high - low) / middle)
    return FocalEstimates(focal_px=torch.stack(focals), spread_percent=torch.stack(spreads))


def contradicting_edges(
    graph: PairGraph, relations: EdgeRelations, already: Mapping[tuple[int, int], str]
) -> Mapping[tuple[int, int], str]:
    """`denied_edges`, but for those that the graph cannot spare."""
    return without_disconnecting(graph, denied_edges(graph, relations, already), already)


def denied_edges(
    graph: PairGraph, relations: EdgeRelations, already: Mapping[tuple[int, int], str]
) -> dict[tuple[int, int], str]:
    """Edges that the others deny, worst first, with the reason.

    An edge contradicts the rest when even the better quarter of the cycles through it miss it by more than
    `max(0.3, 5 x the median of all edges)` of the depth, or when the shape it gives its second view is as far from
    that view's own. Two views alone have no third that could say which order is wrong.
    """
    if graph.view_count < 3:
        return {}
    reasons: dict[int, str] = {}
    for name, values in (("place", relations.disagreement), ("shape", relations.misfit)):
        known = values[torch.isfinite(values)]
        if len(known) == 0:
            continue
        limit = max(_CONTRADICTION_FLOOR, _CONTRADICTION_FACTOR * float(known.median()))
        for index in torch.nonzero(values > limit).flatten().tolist():
            if graph.edges[index] in already:
                continue
            reasons.setdefault(
                index,
                f"its second photo's {name} is {100 * float(values[index]):.0f} % of the depth off what others say",
            )
    worst_first = sorted(reasons, key=lambda index: -float(relations.disagreement[index].nan_to_num(1e9)))
    return {graph.edges[index]: reasons[index] for index in worst_first}


def without_disconnecting(
    graph: PairGraph, wanted: Mapping[tuple[int, int], str], already: Mapping[tuple[int, int], str]
) -> dict[tuple[int, int], str]:
    """Those of the wanted edges, in their order, that can go while every view stays connected and first of a pair."""
    left = nx.MultiGraph()
    left.add_nodes_from(range(graph.view_count))
    for i, j in graph.edges:
        if (i, j) not in already:
            left.add_edge(i, j, key=(i, j))
    firsts = [sum(i == view and (i, j) not in already for i, j in graph.edges) for view in range(graph.view_count)]
    gone: dict[tuple[int, int], str] = {}
    for (i, j), reason in wanted.items():
        left.remove_edge(i, j, key=(i, j))
        if nx.is_connected(left) and firsts[i] > 1:
            gone[i, j] = reason
            firsts[i] -= 1
        else:
            left.add_edge(i, j, key=(i, j))
    return gone


def world_from_shapes(
    graph: PairGraph,
    relations: EdgeRelations,
    dropped: Mapping[tuple[int, int], str],
    match_counts: Mapping[tuple[int, int], int],
) -> Sim3:
    """Where the own shape of every view lies, in the frame and unit of the first one's: the best spanning tree.

    The cost of an edge is `(misfit + disagreement + 0.02) / (strength * (1 + matches / 20))`; of both orders the
    cheaper one counts. Photos with verified matches do overlap, whatever the network thinks of them.

    Args:
        graph: The pairs.
        relations: What they say.
        dropped: Pairs without a say.
        match_counts: Verified matches of (i, j), i < j; empty if none were sought.
    """
    disagreement = relations.disagreement.nan_to_num(nan=float(relations.misfit.max()))
    cost = (relations.misfit + disagreement + _MISFIT_FLOOR) / relations.strength.clamp(min=1e-9)
    joined = nx.Graph()
    joined.add_nodes_from(range(graph.view_count))
    for index, (i, j) in enumerate(graph.edges):
        if (i, j) in dropped:
            continue
        matches = match_counts.get((min(i, j), max(i, j)), 0)
        here = float(cost[index]) / (1.0 + matches / _MATCHES_THAT_DOUBLE)
        if not joined.has_edge(i, j) or here < joined.edges[i, j]["cost"]:
            joined.add_edge(i, j, cost=here, index=index)
    tree = nx.minimum_spanning_tree(joined, weight="cost")
    placed: dict[int, Sim3] = {
        0: Sim3(
            scale=torch.ones((), dtype=torch.float64),
            rotation=torch.eye(3, dtype=torch.float64),
            translation=torch.zeros(3, dtype=torch.float64),
        )
    }
    for parent, child in nx.bfs_edges(tree, 0):
        index = tree.edges[parent, child]["index"]
        step = Sim3(
            scale=relations.first_from_second.scale[index],
            rotation=relations.first_from_second.rotation[index],
            translation=relations.first_from_second.translation[index],
        )
        placed[child] = placed[parent].compose(step if graph.edges[index] == (parent, child) else step.inverse())
    ordered = [placed[view] for view in range(graph.view_count)]
    return Sim3(
        scale=torch.stack([similarity.scale for similarity in ordered]),
        rotation=torch.stack([similarity.rotation for similarity in ordered]),
        translation=torch.stack([similarity.translation for similarity in ordered]),
    )


def initial_state(
    graph: PairGraph,
    relations: EdgeRelations,
    world_from_shape: Sim3,
    focal_px: Float64[Tensor, "views 2"],
    principal_point_px: Float64[Tensor, "views 2"],
    dropped: Mapping[tuple[int, int], str],
) -> tuple[AlignmentState, float]:
    """Poses and edge similarities from placed shapes in the gauge's scale, and a typical depth in that unit."""
    first = torch.tensor([i for i, _ in graph.edges], dtype=torch.int64)
    T_world_camera = torch.eye(4, dtype=torch.float64).repeat(graph.view_count, 1, 1)
    T_world_camera[:, :3, :3] = world_from_shape.rotation
    T_world_camera[:, :3, 3] = world_from_shape.translation
    state = AlignmentState(
        T_world_camera=T_world_camera,
        focal_px=focal_px,
        principal_point_px=principal_point_px,
        world_from_edge=Sim3(
            scale=world_from_shape.scale[first] / relations.edge_scale,
            rotation=world_from_shape.rotation[first],
            translation=world_from_shape.translation[first],
        ),
    )
    taking_part = torch.tensor([edge not in dropped for edge in graph.edges])
    gauge = 1.0 / gauge_scale(state.world_from_edge.scale[taking_part])
    return state.moved(scaling(gauge)), float(gauge * world_from_shape.scale.median())


def scaling(factor: Float64[Tensor, ""]) -> Sim3:
    """The similarity that only changes the unit."""
    return Sim3(
        scale=factor,
        rotation=torch.eye(3, dtype=torch.float64),
        translation=torch.zeros(3, dtype=torch.float64),
    )


def cameras_of(state: AlignmentState, views: Views) -> Cameras:
    """The state's cameras with intrinsics in source pixels."""
    K = [affine.K_source_from_network(state.K(view)) for view, affine in enumerate(views.source_from_network)]
    return Cameras(T_world_camera=state.T_world_camera.float(), K=torch.stack(K).float(), sizes=views.source_sizes)
