"""Rooms with simulated predictions, and how far an alignment of them is from the truth."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lora3d_ns.alignment.settings import AlignmentSettings
from lora3d_ns.evaluation.metrics import absolute_trajectory_error, relative_pose_errors_deg
from lora3d_ns.pair_graph import CompleteGraph, build_pair_graph
from lora3d_ns.rooms.benchmark_scenes import RoomPhotos
from lora3d_ns.rooms.noisy_map import NoiseSettings
from lora3d_ns.rooms.simulated import SimulatedTruth, exact_predictions, noisy_predictions, photograph_rooms
from lora3d_ns.types import AlignedScene, PairGraph, PairPrediction, PairPredictions, Views

OFF = AlignmentSettings(matches="off", show_progress=False)
SMALL = (48, 64)


@functools.cache
def room(count: int, *, shapes: tuple[tuple[int, int], ...] = (SMALL,), seed: int = 0, **others) -> RoomPhotos:
    return photograph_rooms(count, shapes=shapes, seed=seed, **others)


def complete(count: int) -> PairGraph:
    return build_pair_graph(CompleteGraph(), count)


@functools.cache
def exact(count: int, *, shapes: tuple[tuple[int, int], ...] = (SMALL,), seed: int = 0) -> PairPredictions:
    return exact_predictions(room(count, shapes=shapes, seed=seed), complete(count))


@functools.cache
def noisy(
    count: int,
    *,
    shapes: tuple[tuple[int, int], ...] = (SMALL,),
    seed: int = 0,
    wrong_edges: int = 2,
    floater_share: float = 0.2,
) -> tuple[PairPredictions, SimulatedTruth]:
    noise = NoiseSettings(wrong_edges=wrong_edges, floater_share=floater_share)
    return noisy_predictions(room(count, shapes=shapes, seed=seed), complete(count), noise, seed=seed)


def with_maps(predictions: PairPredictions, change) -> PairPredictions:
    """The predictions with `change(index, pair)` for each pair."""
    pairs = tuple(change(index, pair) for index, pair in enumerate(predictions.pairs))
    return PairPredictions(graph=predictions.graph, pairs=pairs)


def scaled(pair: PairPrediction, factor: float) -> PairPrediction:
    return dataclasses.replace(pair, points_first=factor * pair.points_first, points_second=factor * pair.points_second)


def replaced(views: Views, **fields: Mapping[int, object]) -> Views:
    """The views with entries of some fields changed: `known_K={0: K}`."""
    changed = {
        name: tuple(entries.get(view, old) for view, old in enumerate(getattr(views, name)))
        for name, entries in fields.items()
    }
    return dataclasses.replace(views, **changed)


def reordered(photos: RoomPhotos, predictions: PairPredictions, order: Sequence[int]) -> tuple[Views, PairPredictions]:
    """The same photos and pairs with view `order[k]` as view k."""
    place = {old: new for new, old in enumerate(order)}
    pairs = {
        (place[i], place[j]): pair for (i, j), pair in zip(predictions.graph.edges, predictions.pairs, strict=True)
    }
    edges = tuple(sorted(pairs))
    graph = PairGraph(view_count=predictions.graph.view_count, edges=edges)
    return photos.views.select(order), PairPredictions(graph=graph, pairs=tuple(pairs[edge] for edge in edges))


def ate_m(scene: AlignedScene, photos: RoomPhotos) -> float:
    return absolute_trajectory_error(scene.cameras.T_world_camera, photos.cameras.T_world_camera)


def camera_differences(T_world_camera: Tensor, T_true: Tensor) -> tuple[float, float]:
    """Largest relative rotation in degrees, and largest distance of centres after the best similarity, as a share of
    the largest distance between two true ones."""
    rotation_deg = float(relative_pose_errors_deg(T_world_camera, T_true).rotation_deg.max())
    ours, true = (torch.linalg.inv(T[0].double()) @ T.double() for T in (T_world_camera, T_true))
    a, b = ours[:, :3, 3], true[:, :3, 3]
    scale = (a * b).sum() / (a * a).sum()
    size = float(torch.cdist(b, b).max())
    return rotation_deg, float((scale * a - b).norm(dim=1).max()) / size


def focal_errors_percent(scene: AlignedScene, photos: RoomPhotos) -> Tensor:
    ours, true = scene.cameras.K[:, 0, 0].double(), photos.cameras.K[:, 0, 0].double()
    return 100.0 * (ours - true).abs() / true
