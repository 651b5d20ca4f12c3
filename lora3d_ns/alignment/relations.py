"""What the pairs say of each other: one similarity per edge between its two views, and how far the others deny it.

Each view has one *own shape*: its point maps `X^{v,v}` of all pairs it is first in, brought to one scale and fused. An
edge (i, j) then says where the own shape of j lies beside that of i, `first_from_second`. Edges that are right agree
around every cycle, so an edge can be judged without knowing any camera.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from lora3d_ns.errors import InvalidDataError, NonFinitePredictionError
from lora3d_ns.geometry.similarity import similarity_from_moments
from lora3d_ns.types import PairPredictions, Sim3, Views

_SAMPLES = 1024
"""Pixels of each view from which relations are computed."""
_CYCLE_POINTS = 24
_CONFIDENCE_FLOOR = 1e-6
_ROBUST_ITERATIONS = 15
_FLOOR = 1e-30
_BELIEVED_SHARE = 0.25
"""An edge is judged by the best quarter of the cycles through it: the others may hold a wrong edge themselves."""


@dataclass(frozen=True, eq=False, kw_only=True)
class ViewShape:
    """A view's points in its own camera's frame, fused over the pairs it is first in; median depth 1.

    Attributes:
        pixels: Rows and columns of the sampled pixels.
        points: Their points.
        confidence: Mean C of them.
        edge_points: The same pixels' points as each edge has them, in the edge's unit.
        edge_confidence: And their C.
        edges: Which edges those are.
        edge_scale: Scale of each edge: `edge_scale * points` fits `edge_points`.
    """

    pixels: Int64[Tensor, "samples 2"]
    points: Float64[Tensor, "samples 3"]
    confidence: Float64[Tensor, " samples"]
    edge_points: Float64[Tensor, "first_edges samples 3"]
    edge_confidence: Float64[Tensor, "first_edges samples"]
    edges: Int64[Tensor, " first_edges"]
    edge_scale: Float64[Tensor, " first_edges"]


@dataclass(frozen=True, eq=False, kw_only=True)
class EdgeRelations:
    """What every edge says, in units of the own shapes' median depths.

    Attributes:
        first_from_second: From the own shape of the second view to that of the first.
        edge_scale: From the own shape of the first view to the edge's frame.
        misfit: Median distance of the second view's points from its own shape put in place: a wrong shape.
        disagreement: Distance by which the better cycles through an edge miss it: a wrong place. NaN where no other
            way leads from one of its views to the other.
        strength: Product of the mean C of both point maps.
    """

    first_from_second: Sim3
    edge_scale: Float64[Tensor, " edges"]
    misfit: Float64[Tensor, " edges"]
    disagreement: Float64[Tensor, " edges"]
    strength: Float64[Tensor, " edges"]


def check_predictions(views: Views, predictions: PairPredictions) -> None:
    """Nothing, if the predictions can be aligned.

    Raises:
        InvalidDataError: They are of other views, or a pair has one order only.
        NonFinitePredictionError: A point or a confidence is NaN or infinite.
    """
    graph = predictions.graph
    if graph.view_count != len(views):
        raise InvalidDataError(
            f"predictions of {graph.view_count} views for {len(views)} photos",
            way_out="Predict with a graph of these views",
        )
    for index, (i, j) in enumerate(graph.edges):
        pair = predictions.pairs[index]
        for view, points in ((i, pair.points_first), (j, pair.points_second)):
            if tuple(points.shape[:2]) != views.shapes[view]:
                raise InvalidDataError(
                    f"{views.names[view]} has {views.shapes[view]} pixels and its point map {tuple(points.shape[:2])}",
                    way_out="Predict from these views",
                )
        # One sum per tensor: it is finite only if every value is.
        for values in (pair.points_first, pair.points_second, pair.confidence_first, pair.confidence_second):
            if not bool(torch.isfinite(values.sum(dtype=torch.float64))):
                raise NonFinitePredictionError(
                    f"the prediction for the photos {views.names[i]} and {views.names[j]} is not finite",
                    way_out="Predict again in float32; if it stays, the weights are damaged",
                )
    edges = set(graph.edges)
    missing = [(j, i) for i, j in graph.edges if (j, i) not in edges]
    if missing:
        raise InvalidDataError(
            f"{len(missing)} pairs have one order only, {missing[0]} is missing",
            way_out="Predict with a graph of `build_pair_graph`, which has both orders",
        )


def view_shapes(views: Views, predictions: PairPredictions) -> tuple[ViewShape, ...]:
    """The own shapes of all views.

    Raises:
        InvalidDataError: Of a view no point lies before its camera, or its mask leaves nothing.
    """
    firsts: list[list[int]] = [[] for _ in views.names]
    for index, (i, _) in enumerate(predictions.graph.edges):
        firsts[i].append(index)
    return tuple(_view_shape(view, firsts[view], views, predictions) for view in range(len(views)))


def _view_shape(view: int, edges: Sequence[int], views: Views, predictions: PairPredictions) -> ViewShape:
    mask = views.masks[view]
    if mask is not None and not bool(mask.any()):
        raise InvalidDataError(
            f"the mask of {views.names[view]} leaves nothing of it", way_out="Leave the photo out, or correct its mask"
        )
    pixels = _sampled_pixels(views.shapes[view], mask)
    rows, columns = pixels.unbind(dim=1)
    # Component before pixel while computing: sums over a last axis of three are slow.
    points = torch.stack([predictions.pairs[edge].points_first[rows, columns].T for edge in edges]).double()
    confidence = torch.stack([predictions.pairs[edge].confidence_first[rows, columns].double() for edge in edges])
    weight = confidence + _CONFIDENCE_FLOOR
    before = points[:, 2] > 0
    if not bool(before.any()):
        raise InvalidDataError(
            f"no point of {views.names[view]} lies before its camera",
            way_out="Leave the photo out, or use a network that was trained for such photos",
        )
    typical = torch.where(before, points[:, 2], torch.nan).nanmedian(dim=1).values
    scale = torch.where(typical > 0, typical, torch.ones_like(typical))
    scaled = points / scale[:, None, None]
    fused = (weight[:, None] * scaled).sum(dim=0) / weight.sum(dim=0)
    for step in range(16):
        robust = weight / ((scaled - fused).square().sum(dim=1).sqrt() + 0.02)
        fused = (robust[:, None] * scaled).sum(dim=0) / robust.sum(dim=0)
        if step % 4 == 3:
            # The fused map is fitted to the edge's; the other way round an outlier's square would weigh most.
            dot = (robust * (points * fused).sum(dim=1)).sum(dim=1)
            scale = (dot / (robust * fused.square().sum(dim=0)).sum(dim=1)).clamp(min=1e-9)
            scaled = points / scale[:, None, None]
    fused = fused.T
    unit = fused[:, 2][fused[:, 2] > 0].median() if bool((fused[:, 2] > 0).any()) else fused.norm(dim=1).median()
    return ViewShape(
        pixels=pixels,
        points=fused / unit,
        confidence=confidence.mean(dim=0),
        edge_points=points.mT.contiguous(),
        edge_confidence=confidence,
        edges=torch.tensor(edges, dtype=torch.int64),
        edge_scale=scale * unit,
    )


def _sampled_pixels(shape: tuple[int, int], mask: Tensor | None) -> Tensor:
    """`_SAMPLES` pixels (rows, columns) spread evenly over those that count, the same number in every view."""
    counted = torch.ones(shape, dtype=torch.bool) if mask is None else mask
    # Along a diagonal order neighbours in the list are far apart in the photo, so an even choice is an even spread.
    rows, columns = torch.nonzero(counted, as_tuple=True)
    order = torch.argsort((rows * 0.7548776662 + columns * 0.5698402910) % 1.0, stable=True)
    chosen = order[torch.linspace(0, len(order) - 1, _SAMPLES).round().long()]
    return torch.stack([rows[chosen], columns[chosen]], dim=1)


def edge_relations(predictions: PairPredictions, shapes: Sequence[ViewShape]) -> EdgeRelations:
    """What every edge says of its two views, and how far the others deny it."""
    edges = predictions.graph.edges
    edge_scale = torch.empty(len(edges), dtype=torch.float64)
    strength = torch.empty(len(edges), dtype=torch.float64)
    for shape in shapes:
        edge_scale[shape.edges] = shape.edge_scale
        strength[shape.edges] = shape.edge_confidence.mean(dim=1)
    source, target, weight = [], [], []
    for index, (_, j) in enumerate(edges):
        rows, columns = shapes[j].pixels.unbind(dim=1)
        pair = predictions.pairs[index]
        said = pair.confidence_second[rows, columns].double()
        strength[index] *= said.mean()
        source.append(shapes[j].points)
        target.append(pair.points_second[rows, columns].double() / edge_scale[index])
        weight.append(shapes[j].confidence * said + _CONFIDENCE_FLOOR)
    first_from_second, misfit = robust_similarity(torch.stack(source), torch.stack(target), torch.stack(weight))
    return EdgeRelations(
        first_from_second=first_from_second,
        edge_scale=edge_scale,
        misfit=misfit,
        disagreement=_disagreement(edges, first_from_second, shapes),
        strength=strength,
    )


def robust_similarity(
    source: Float64[Tensor, "*batch points 3"],
    target: Float64[Tensor, "*batch points 3"],
    weights: Float64[Tensor, "*batch points"],
) -> tuple[Sim3, Float64[Tensor, "*batch"]]:
    """Similarities that outliers hardly move, with the median distance they leave.

    Weighted Procrustes, re-weighted by `1 / (1 + (|e| / median |e|)^2)^2`.
    """
    # Component before point: sums over a last axis of three are slow.
    x, y = source.mT.contiguous(), target.mT.contiguous()
    similarity = _weighted_similarity(x, y, weights)
    residual = _distance(_applied(similarity, x), y)
    for _ in range(_ROBUST_ITERATIONS):
        typical = residual.median(dim=-1, keepdim=True).values.clamp(min=1e-12)
        similarity = _weighted_similarity(x, y, weights / (1.0 + (residual / typical).square()).square())
        residual = _distance(_applied(similarity, x), y)
    return similarity, residual.median(dim=-1).values


def _weighted_similarity(x: Tensor, y: Tensor, weights: Tensor) -> Sim3:
    """`geometry.similarity.weighted_similarity` of points (*batch, 3, points) from sums that are matrix products.

    The means are taken out of the sums, not of the points, which costs digits that float64 has to spare.
    """
    total = weights.sum(dim=-1).clamp(min=_FLOOR)
    weighted_x = weights[..., None, :] * x
    mean_x = weighted_x.sum(dim=-1) / total[..., None]
    mean_y = (y @ weights[..., None])[..., 0] / total[..., None]
    covariance = y @ weighted_x.mT / total[..., None, None] - mean_y[..., :, None] * mean_x[..., None, :]
    mean_square = (weighted_x * x).sum(dim=(-2, -1)) / total
    # All points in one place have no variance, and the digits lost shall not pass for one.
    variance = (mean_square - mean_x.square().sum(dim=-1)).clamp(min=1e-12 * mean_square + _FLOOR)
    return similarity_from_moments(mean_x, mean_y, covariance, variance)


def _applied(similarity: Sim3, points: Tensor) -> Tensor:
    """Each similarity applied to points of its own, (*batch, 3, points)."""
    turned = (similarity.scale[..., None, None] * similarity.rotation) @ points
    return turned.add_(similarity.translation[..., None])


def _distance(first: Tensor, second: Tensor) -> Tensor:
    return (first - second).square_().sum(dim=-2).sqrt_()


def _disagreement(
    edges: Sequence[tuple[int, int]], first_from_second: Sim3, shapes: Sequence[ViewShape]
) -> Float64[Tensor, " edges"]:
    """For each edge (i, j): how far (j, i) backwards, and (i, k) after (k, j) for every k, put j's points elsewhere."""
    count = len(shapes)
    first, second = torch.tensor(edges, dtype=torch.int64).T
    index = torch.full((count, count), -1, dtype=torch.int64)
    index[first, second] = torch.arange(len(edges))
    every = _SAMPLES // _CYCLE_POINTS
    points = torch.stack([shape.points[::every].T for shape in shapes])[second]
    here = _applied(first_from_second, points)

    misses = torch.full((len(edges), count + 1), torch.nan, dtype=torch.float64)
    back = index[second, first]
    there = _applied(_select(first_from_second, back).inverse(), points)
    misses[:, count] = _distance(here, there).median(dim=1).values
    for k in range(count):
        out, on = index[first, k], index[k, second]
        use = (out >= 0) & (on >= 0)
        if bool(use.any()):
            around = _select(first_from_second, out[use]).compose(_select(first_from_second, on[use]))
            there = _applied(around, points[use])
            misses[use, k] = _distance(here[use], there).median(dim=1).values
    return misses.nanquantile(_BELIEVED_SHARE, dim=1)


def _select(similarity: Sim3, index: Int64[Tensor, " chosen"]) -> Sim3:
    return Sim3(
        scale=similarity.scale[index], rotation=similarity.rotation[index], translation=similarity.translation[index]
    )
