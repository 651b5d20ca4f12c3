"""Cameras from pair predictions in closed form, along the best spanning tree of the pairs.

No iteration over the whole scene: each view hangs on one other. Good enough to start an alignment from, and as the
simplest answer to compare one with.
"""

import networkx as nx
import torch
from torch import Tensor

from lora3d_ns.errors import DisconnectedViewsError, InvalidDataError
from lora3d_ns.geometry.camera import focal_from_points
from lora3d_ns.geometry.similarity import weighted_scale, weighted_similarity
from lora3d_ns.pair_graph import connected_groups
from lora3d_ns.types import Cameras, PairPrediction, PairPredictions, Views

_WEIGHT_FLOOR = 1e-6
_ROBUST_ITERATIONS = 20


def chain_cameras(views: Views, predictions: PairPredictions) -> Cameras:
    """Cameras of all views, the first one's frame being the world.

    - Focal length of a view: median, over the pairs it is first in, of Weiszfeld's estimate.
    - Tree: maximum spanning tree of the pairs by the product of both photos' mean log-confidence, both orders summed.
    - A child c of a parent p: the pair (p, c) says where c's points are in p's frame, the pair (c, p) where they are in
      c's own. The similarity between the two (weighted Procrustes, re-weighted against outliers) is c's pose in p's
      frame. The pair's scale is fitted to the parent's own point map first, so one scale holds for the whole tree.

    Args:
        views: Photos; their affines carry intrinsics to source pixels.
        predictions: Both orders of every pair of a connected graph.

    Raises:
        DisconnectedViewsError: The pairs do not connect all views.
        InvalidDataError: The graph has a pair in one order only, or of a view no point lies before its camera.
    """
    graph = predictions.graph
    groups = connected_groups(graph)
    if len(groups) > 1:
        raise DisconnectedViewsError([[views.names[view] for view in group] for group in groups])
    pairs = dict(predictions)
    missing = [(j, i) for i, j in graph.edges if (j, i) not in pairs]
    if missing:
        raise InvalidDataError(
            f"{len(missing)} pairs have one order only, {missing[0]} is missing",
            way_out="Predict with a graph of `build_pair_graph`, which has both orders",
        )
    K_network = [_intrinsics(view, views, predictions) for view in range(len(views))]

    tree = nx.maximum_spanning_tree(_scored(pairs))
    T_world_camera: dict[int, Tensor] = {0: torch.eye(4)}
    own_points: dict[int, Tensor] = {}
    for parent, child in nx.bfs_edges(tree, 0):
        forward, backward = pairs[parent, child], pairs[child, parent]
        if parent not in own_points:
            own_points[parent] = forward.points_first
        scale = weighted_scale(
            forward.points_first.flatten(0, 1), own_points[parent].flatten(0, 1), forward.confidence_first.flatten()
        )
        T_parent_child, child_scale = _pose_of_second(forward, backward)
        T_parent_child[:3, 3] *= scale
        own_points[child] = scale * child_scale * backward.points_first
        T_world_camera[child] = T_world_camera[parent] @ T_parent_child

    return Cameras(
        T_world_camera=torch.stack([T_world_camera[view] for view in range(len(views))]),
        K=torch.stack(
            [affine.K_source_from_network(K) for affine, K in zip(views.source_from_network, K_network, strict=True)]
        ),
        sizes=views.source_sizes,
    )


def _scored(pairs: dict[tuple[int, int], PairPrediction]) -> nx.Graph:
    scores = nx.Graph()
    for (i, j), pair in pairs.items():
        score = float(pair.confidence_first.mean() * pair.confidence_second.mean())
        before = scores.edges[i, j]["weight"] if scores.has_edge(i, j) else 0.0
        scores.add_edge(i, j, weight=before + score)
    return scores


def _intrinsics(view: int, views: Views, predictions: PairPredictions) -> Tensor:
    focals = torch.stack(
        [
            focal_from_points(pair.points_first, pair.confidence_first + _WEIGHT_FLOOR)
            for (i, _), pair in predictions
            if i == view
        ]
    )
    focal = focals[torch.isfinite(focals) & (focals > 0)].median() if bool((focals > 0).any()) else None
    if focal is None:
        raise InvalidDataError(
            f"no point of {views.names[view]} lies before its camera",
            way_out="Leave the photo out, or use a network that was trained for such photos",
        )
    height, width = views.shapes[view]
    return torch.tensor([[focal, 0.0, width / 2], [0.0, focal, height / 2], [0.0, 0.0, 1.0]])


def _pose_of_second(forward: PairPrediction, backward: PairPrediction) -> tuple[Tensor, Tensor]:
    """Pose of the second camera in the first one's frame, and the second's scale over the first's."""
    source = torch.cat([backward.points_first.flatten(0, 1), backward.points_second.flatten(0, 1)])
    target = torch.cat([forward.points_second.flatten(0, 1), forward.points_first.flatten(0, 1)])
    confidence = torch.cat(
        [
            (backward.confidence_first * forward.confidence_second).flatten(),
            (backward.confidence_second * forward.confidence_first).flatten(),
        ]
    )
    prior = confidence + _WEIGHT_FLOOR
    similarity = weighted_similarity(source, target, prior)
    for _ in range(_ROBUST_ITERATIONS):
        residual = (similarity.apply(source) - target).norm(dim=-1)
        typical = residual.median().clamp(min=1e-12)
        similarity = weighted_similarity(source, target, prior / (1.0 + (residual / typical).square()).square())
    T_first_second = torch.eye(4)
    T_first_second[:3, :3], T_first_second[:3, 3] = similarity.rotation, similarity.translation
    return T_first_second, similarity.scale
