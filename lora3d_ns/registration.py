"""Cameras of photos that the scene was made without: found in the finished scene, which stays as it is."""

import dataclasses
from collections.abc import Sequence

import torch

from lora3d_ns.adapter.lora import with_adapter
from lora3d_ns.alignment.align import align
from lora3d_ns.errors import DisconnectedViewsError, InvalidDataError
from lora3d_ns.network.dust3r import Dust3r
from lora3d_ns.pair_graph import CompleteGraph, RetrievalGraph, StarGraph, build_pair_graph, check_connected
from lora3d_ns.predict import encode_views, image_features, predict_pairs
from lora3d_ns.reconstruct import Reconstruction
from lora3d_ns.stages.settings import ReconstructSettings
from lora3d_ns.types import Cameras, PairGraph, PairPredictions, Views

_FULLY_JOINED = 20
"""Up to so many photos in the scene, each new one is paired with all of them."""


def registered_cameras(
    views: Views,
    held_out: Sequence[int],
    made: Reconstruction,
    network: Dust3r,
    settings: ReconstructSettings,
) -> Cameras:
    """Cameras of all photos: those of the scene as they are, those held out registered to them.

    The network looks at pairs of a held-out photo with one of the scene (and with other held-out ones); the alignment
    then holds the scene's cameras fixed. A held-out photo whose lens and size are those of the scene's photos takes
    over their intrinsics. Nothing flows back: neither adapter nor cameras nor points of the scene change.

    Args:
        views: All photos.
        held_out: Indices of those that the scene was made without, ascending.
        made: The scene of all others, in the order of `views`.
        network: The base network; the scene's adapter is used where it has one.
        settings: Those the scene was made with.

    Raises:
        InvalidDataError: The scene is not that of the other photos.
        DisconnectedViewsError: A held-out photo is paired with none of the scene.
        Lora3dError: Prediction's and alignment's own errors.
    """
    kept = [view for view in range(len(views)) if view not in set(held_out)]
    if made.scene.names != tuple(views.names[view] for view in kept):
        raise InvalidDataError("the scene is not that of the other photos", way_out="Reconstruct it from them")
    if made.adapter is not None:
        network = with_adapter(network, made.adapter)
    graph = _graph(views, kept, held_out, network, settings)
    new = PairGraph(
        view_count=len(views), edges=tuple(edge for edge in graph.edges if edge[0] in held_out or edge[1] in held_out)
    )
    predictions = _joined(made.understood.predictions, kept, predict_pairs(views, new, network, settings.prediction))
    # The scene's unit and principal points hold already what distances and offset say.
    alignment = dataclasses.replace(
        settings.alignment, known_poses="fixed", known_distances=(), principal_point_offset_px=(0.0, 0.0)
    )
    if settings.arm == "pretrained":
        alignment = dataclasses.replace(alignment, objective="plain", matches="off")
    known = _with_known_cameras(views, kept, made)
    found = align(known, predictions, alignment, device=network.device).cameras
    # What was held fixed has gone through network pixels and back: the scene's own, to the last bit.
    K, T_world_camera = found.K.clone(), found.T_world_camera.clone()
    K[kept], T_world_camera[kept] = made.scene.cameras.K.to(K), made.scene.cameras.T_world_camera.to(T_world_camera)
    return dataclasses.replace(found, K=K, T_world_camera=T_world_camera)


def _graph(
    views: Views, kept: Sequence[int], held_out: Sequence[int], network: Dust3r, settings: ReconstructSettings
) -> PairGraph:
    """Pairs of all photos, in which each held-out one meets the scene."""
    kind = settings.graph
    if len(kept) <= _FULLY_JOINED:
        kind = CompleteGraph()
    elif isinstance(kind, StarGraph):
        # Its number is one among the scene's photos.
        kind = StarGraph(centre=kept[kind.centre])
    features = None
    if isinstance(kind, RetrievalGraph):
        features = image_features(encode_views(views, network, settings.prediction))
    graph = build_pair_graph(kind, len(views), features=features)
    check_connected(graph, views.names)
    for view in held_out:
        if all(view not in edge or set(edge) <= set(held_out) for edge in graph.edges):
            others = [name for other, name in enumerate(views.names) if other != view]
            raise DisconnectedViewsError([others, [views.names[view]]])
    return graph


def _joined(old: PairPredictions, kept: Sequence[int], new: PairPredictions) -> PairPredictions:
    """Predictions of the scene's own pairs, under their numbers among all photos, and the new ones."""
    pairs = {(kept[i], kept[j]): pair for (i, j), pair in zip(old.graph.edges, old.pairs, strict=True)}
    pairs |= dict(zip(new.graph.edges, new.pairs, strict=True))
    edges = tuple(sorted(pairs))
    return PairPredictions(
        graph=PairGraph(view_count=new.graph.view_count, edges=edges), pairs=tuple(pairs[edge] for edge in edges)
    )


def _with_known_cameras(views: Views, kept: Sequence[int], made: Reconstruction) -> Views:
    """The photos with what the scene knows of their cameras."""
    cameras = made.scene.cameras
    known_K, known_T = list(views.known_K), list(views.known_T_world_camera)
    by_lens: dict[tuple[str, tuple[int, int]], list[torch.Tensor]] = {}
    for index, view in enumerate(kept):
        known_K[view], known_T[view] = cameras.K[index], cameras.T_world_camera[index]
        by_lens.setdefault((views.lens_groups[view], views.source_sizes[view]), []).append(cameras.K[index])
    for view in set(range(len(views))) - set(kept):
        same = by_lens.get((views.lens_groups[view], views.source_sizes[view]), [])
        if known_K[view] is None and same and all(torch.equal(K, same[0]) for K in same):
            known_K[view] = same[0]
        # A pose that was given is of the world that was given; the scene may have moved a little from it.
        known_T[view] = None
    return dataclasses.replace(views, known_K=tuple(known_K), known_T_world_camera=tuple(known_T))
