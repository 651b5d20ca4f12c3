"""Predictions that no network made: a perfect one's and a faulty one's, with the truth, to judge alignments by.

The photos are of rendered rooms, so depth and cameras are exact. The faults are those that DUSt3R-like networks show:
see `NoiseSettings`. But for the choice of wrong edges, everything about an edge depends on the seed and the edge alone,
so that a sparser graph of the same photos has the same predictions.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64
from torch import Tensor

from lora3d_ns.conventions import PixelAffine
from lora3d_ns.errors import InvalidDataError, SettingsError
from lora3d_ns.geometry.camera import points_from_depth
from lora3d_ns.rooms.benchmark_scenes import RoomPhotos
from lora3d_ns.rooms.cameras import sample_views
from lora3d_ns.rooms.domains import domain_by_name
from lora3d_ns.rooms.noisy_map import NoiseSettings, moved, noisy_map, random_for
from lora3d_ns.rooms.render import RoomCameras, render
from lora3d_ns.rooms.scenes import sample_scenes
from lora3d_ns.types import Cameras, PairGraph, PairPrediction, PairPredictions, Views

# Rooms that neither the bundled network nor any benchmark has seen.
_ROOMS_SEED = 80_000_000
_UNIT_RANGE = (0.5, 2.0)

# Edges differ a little in confidence as a whole: a spanning tree must not be a matter of ties.
_EDGE_CONFIDENCE_SPREAD = 0.05


@dataclass(frozen=True, eq=False, kw_only=True)
class SimulatedTruth:
    """What is known of simulated predictions. Of each edge, in the graph's order, the first and the second map.

    Attributes:
        wrong_edges: The edges whose second map is wholly wrong, sorted.
        units: Metres are an edge's points divided by its unit.
        errors_m: Distance of each point from the true one, once the edge's unit is taken out.
        floaters: Over-confident pixels that were displaced.
        outliers: Pixels whose point is of no use: floaters, and all of a wrong second map.
    """

    wrong_edges: tuple[tuple[int, int], ...]
    units: Float64[Tensor, " edges"]
    errors_m: tuple[tuple[Float32[Tensor, "_ _"], Float32[Tensor, "_ _"]], ...]
    floaters: tuple[tuple[Bool[Tensor, "_ _"], Bool[Tensor, "_ _"]], ...]
    outliers: tuple[tuple[Bool[Tensor, "_ _"], Bool[Tensor, "_ _"]], ...]


def photograph_rooms(
    count: int,
    *,
    shapes: Sequence[tuple[int, int]],
    seed: int,
    domain: str = "nominal",
    focal_spread: float = 0.0,
    source_scale: float = 1.0,
    supersample: int = 1,
) -> RoomPhotos:
    """Photos of one room along one hand-held path, which overlap all.

    Args:
        count: How many photos.
        shapes: (height, width) at network resolution, taken in turns by the views. All have the same field of view
            along their longer side, so a turned shape is a turned camera.
        seed: Which room, and which path in it.
        domain: Kind of room.
        focal_spread: Each view's focal length is drawn within this share of the room's own.
        source_scale: Source pixels per network pixel.
        supersample: As in `lora3d_ns.rooms.render.render`; the truth does not depend on it.

    Returns:
        Photos with exact depth and cameras, in float32; nothing known of them is in `views`.

    Raises:
        SettingsError: No shape is given, or a number is out of its range.
    """
    if not shapes or seed < 0 or not 0 <= focal_spread < 0.5 or source_scale <= 0:
        raise SettingsError(
            f"{len(shapes)} shapes, seed {seed}, focal spread {focal_spread}, source scale {source_scale}",
            way_out="Use one shape or more, a seed from 0, a spread in 0 to 0.5 and a positive scale",
        )
    scenes = sample_scenes(domain_by_name(domain), seed=_ROOMS_SEED, indices=[seed])
    view_shapes = [shapes[view % len(shapes)] for view in range(count)]
    longest = max(max(shape) for shape in shapes)
    path = sample_views(scenes, count, size=(longest, longest))
    factors = 1.0 + focal_spread * random_for("focal", seed).uniform(-1.0, 1.0, count)
    images: list[Tensor] = [torch.empty(0)] * count
    depths_m, static, K = list(images), list(images), list(images)
    # Cameras of one call share a size: one call for each.
    for height, width in dict.fromkeys(view_shapes):
        chosen = [view for view, shape in enumerate(view_shapes) if shape == (height, width)]
        focal = path.K[:, chosen, 0, 0].double() * (max(height, width) / longest) * torch.from_numpy(factors[chosen])
        K_chosen = torch.zeros((1, len(chosen), 3, 3), dtype=torch.float64)
        K_chosen[..., 0, 0] = K_chosen[..., 1, 1] = focal
        K_chosen[..., 0, 2], K_chosen[..., 1, 2], K_chosen[..., 2, 2] = 0.5 * width, 0.5 * height, 1.0
        cameras = RoomCameras(
            **{**vars(path.select_views(chosen)), "K": K_chosen.float(), "width": width, "height": height}
        )
        made = render(scenes, cameras, supersample=supersample)
        for row, view in enumerate(chosen):
            images[view] = (made.rgb[0, row].permute(2, 0, 1) * 255.0).round() / 255.0
            depths_m[view], static[view], K[view] = made.depth_m[0, row], ~made.moving[0, row], made.K[0, row]
    affine = PixelAffine(scale_x=source_scale, scale_y=source_scale, offset_x_px=0.0, offset_y_px=0.0)
    sizes = tuple((round(source_scale * width), round(source_scale * height)) for height, width in view_shapes)
    nothing = (None,) * count
    views = Views(
        names=tuple(f"simulated-{view:02d}" for view in range(count)),
        images=tuple(image.contiguous() for image in images),
        masks=nothing,
        source_from_network=(affine,) * count,
        source_sizes=sizes,
        source_paths=nothing,
        focal_exif_px=nothing,
        lens_groups=tuple(
            # Which photos share a lens is known from EXIF, which names the size with its sides sorted.
            f"{min(size)}x{max(size)}" + (f" {view}" if focal_spread > 0 else "")
            for view, size in enumerate(sizes)
        ),
        known_K=nothing,
        known_T_world_camera=nothing,
    )
    return RoomPhotos(
        views=views,
        depths_m=tuple(depths_m),
        static=tuple(static),
        cameras=Cameras(
            T_world_camera=path.T_world_camera[0], K=affine.K_source_from_network(torch.stack(K)), sizes=sizes
        ),
    )


def edge_units(graph: PairGraph, *, seed: int) -> Float64[Tensor, " edges"]:
    """The unit that each edge's predictions are in: its points are metres times this, 0.5 to 2, log-uniform."""
    low, high = np.log(_UNIT_RANGE)
    draws = [math.exp(random_for("unit", seed, *edge).uniform(low, high)) for edge in graph.edges]
    return torch.tensor(draws, dtype=torch.float64)


def exact_predictions(
    photos: RoomPhotos, graph: PairGraph, *, seed: int = 0, dtype: torch.dtype = torch.float32
) -> PairPredictions:
    """What a perfect network would say: true points, each edge in its own unit, and confidence 1 everywhere.

    Args:
        photos: Photos with their truth.
        graph: Which pairs.
        seed: For the units, see `edge_units`.
        dtype: Of the predictions; they are computed in float64.

    Raises:
        InvalidDataError: The graph is of another number of views.
    """
    _check_views(photos, graph)
    pairs = []
    for (i, j), unit in zip(graph.edges, edge_units(graph, seed=seed), strict=True):
        first = (unit * _own_points_m(photos, i)).to(dtype)
        second = (unit * moved(_own_points_m(photos, j), _T_first_second(photos, i, j))).to(dtype)
        pairs.append(
            PairPrediction(
                points_first=first,
                points_second=second,
                confidence_first=torch.ones_like(first[..., 0]),
                confidence_second=torch.ones_like(second[..., 0]),
            )
        )
    return PairPredictions(graph=graph, pairs=tuple(pairs))


def noisy_predictions(
    photos: RoomPhotos, graph: PairGraph, settings: NoiseSettings, *, seed: int
) -> tuple[PairPredictions, SimulatedTruth]:
    """What a DUSt3R-like network might say, in float32, and all that is wrong with it.

    Args:
        photos: Photos with their truth.
        graph: Which pairs.
        settings: Kind and amount of what is wrong.
        seed: The same seed gives the same predictions; an edge that is not wrong has the same ones whatever the number
            of wrong edges is.

    Raises:
        InvalidDataError: The graph is of another number of views.
        SettingsError: More wrong edges are asked for than the graph has pairs.
    """
    _check_views(photos, graph)
    wrong = _choose_wrong_edges(graph, settings.wrong_edges, seed)
    units = edge_units(graph, seed=seed)
    pairs, errors_m, floaters, outliers = [], [], [], []
    for edge, unit in zip(graph.edges, units, strict=True):
        first, second = (
            noisy_map(
                _own_points_m(photos, view),
                _T_first_second(photos, edge[0], view),
                settings,
                key=(seed, *edge),
                role=role,
                wrong=role == 1 and edge in wrong,
            )
            for role, view in enumerate(edge)
        )
        level = math.exp(_EDGE_CONFIDENCE_SPREAD * float(random_for("edge confidence", seed, *edge).normal()))
        pairs.append(
            PairPrediction(
                points_first=(unit * first.points_m).float(),
                points_second=(unit * second.points_m).float(),
                confidence_first=(level * first.confidence).float(),
                confidence_second=(level * second.confidence).float(),
            )
        )
        errors_m.append((first.error_m.float(), second.error_m.float()))
        floaters.append((first.floaters, second.floaters))
        outliers.append((first.floaters, second.floaters | (edge in wrong)))
    truth = SimulatedTruth(
        wrong_edges=wrong,
        units=units,
        errors_m=tuple(errors_m),
        floaters=tuple(floaters),
        outliers=tuple(outliers),
    )
    return PairPredictions(graph=graph, pairs=tuple(pairs)), truth


def _check_views(photos: RoomPhotos, graph: PairGraph) -> None:
    if len(photos.views) != graph.view_count:
        raise InvalidDataError(
            f"a graph of {graph.view_count} views for {len(photos.views)} photos", way_out="Build it for these photos"
        )


def _choose_wrong_edges(graph: PairGraph, count: int, seed: int) -> tuple[tuple[int, int], ...]:
    pairs = sorted({(min(edge), max(edge)) for edge in graph.edges})
    if count > len(pairs):
        raise SettingsError(
            f"{count} wrong edges among {len(pairs)} pairs", way_out="Ask for fewer, or give a graph with more pairs"
        )
    random = random_for("wrong edges", seed)
    chosen = []
    for number in random.permutation(len(pairs))[:count].tolist():
        i, j = pairs[number]
        orders = [edge for edge in ((i, j), (j, i)) if edge in graph.edges]
        chosen.append(orders[int(random.integers(len(orders)))])
    return tuple(sorted(chosen))


def _own_points_m(photos: RoomPhotos, view: int) -> Float64[Tensor, "height width 3"]:
    affine = photos.views.source_from_network[view]
    K_network = affine.K_network_from_source(photos.cameras.K[view].double())
    return points_from_depth(photos.depths_m[view].double(), K_network)


def _T_first_second(photos: RoomPhotos, first: int, second: int) -> Float64[Tensor, "4 4"]:
    T_world_camera = photos.cameras.T_world_camera.double()
    return torch.linalg.inv(T_world_camera[first]) @ T_world_camera[second]
