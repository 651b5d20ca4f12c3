"""Small alignment problems: rooms brought as far as the solver's start, and hand-made ones in a generic state."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from reference.alignment_naive import naive_objective
from torch import Tensor

from lora3d_ns.alignment.initialize import focal_estimates, initial_state, principal_points, world_from_shapes
from lora3d_ns.alignment.objective import residuals, robust_loss
from lora3d_ns.alignment.observations import ObservationGrid, ObservationSettings
from lora3d_ns.alignment.relations import edge_relations, view_shapes
from lora3d_ns.alignment.state import AlignmentState, Freedom, freedom, rotation_from_vector
from lora3d_ns.conventions import PixelAffine
from lora3d_ns.geometry.camera import points_from_depth
from lora3d_ns.pair_graph import CompleteGraph, build_pair_graph
from lora3d_ns.rooms.benchmark_scenes import RoomPhotos
from lora3d_ns.rooms.simulated import photograph_rooms
from lora3d_ns.types import PairGraph, PairPrediction, PairPredictions, Sim3, Views


@functools.cache
def rooms(count: int, *, shapes: tuple[tuple[int, int], ...] = ((24, 32),), seed: int = 3) -> RoomPhotos:
    return photograph_rooms(count, shapes=shapes, seed=seed)


def plain_views(shapes: Sequence[tuple[int, int]]) -> Views:
    """Black photos of these (height, width), of which nothing is known."""
    nothing = (None,) * len(shapes)
    return Views(
        names=tuple(f"plain-{view}" for view in range(len(shapes))),
        images=tuple(torch.zeros(3, *shape) for shape in shapes),
        masks=nothing,
        source_from_network=(PixelAffine(scale_x=1.0, scale_y=1.0, offset_x_px=0.0, offset_y_px=0.0),) * len(shapes),
        source_sizes=tuple((width, height) for height, width in shapes),
        source_paths=nothing,
        focal_exif_px=nothing,
        lens_groups=("lens",) * len(shapes),
        known_K=nothing,
        known_T_world_camera=nothing,
    )


def grid_of(views: Views, predictions: PairPredictions, *, stride: int = 1) -> ObservationGrid:
    return ObservationGrid(views, predictions, ObservationSettings(cutoff=0.0), stride=stride)


def free_numbers(
    views: int,
    edges: int,
    *,
    scale_is_gauge: bool = True,
    dropped: tuple[int, ...] = (),
    groups: tuple[int | None, ...] | None = None,
    principal_point: bool = False,
) -> Freedom:
    """All poses but the first, one focal length, all edges, unless said otherwise."""
    return freedom(
        views,
        edges,
        focal_groups=(0,) * views if groups is None else groups,
        principal_point=(principal_point,) * views,
        fixed_poses=(0,),
        dropped_edges=dropped,
        scale_is_gauge=scale_is_gauge,
    )


def start_of(views: Views, predictions: PairPredictions) -> tuple[AlignmentState, float]:
    """Where the solver begins, and a typical depth."""
    shapes = view_shapes(views, predictions)
    relations = edge_relations(predictions, shapes)
    centres = principal_points(views)
    focal = focal_estimates(views, shapes, centres).focal_px.mean().expand(len(views), 2).clone()
    placed = world_from_shapes(predictions.graph, relations, {}, {})
    return initial_state(predictions.graph, relations, placed, focal, centres, {})


def random_similarity(count: int, generator: torch.Generator, *, turn: float = 0.3) -> Sim3:
    return Sim3(
        scale=(0.3 * torch.randn(count, dtype=torch.float64, generator=generator)).exp(),
        rotation=rotation_from_vector(turn * torch.randn(count, 3, dtype=torch.float64, generator=generator)),
        translation=torch.randn(count, 3, dtype=torch.float64, generator=generator),
    )


@dataclass(frozen=True, eq=False, kw_only=True)
class Generic:
    """A problem with nothing special about it, in a state that does not solve it."""

    views: Views
    predictions: PairPredictions
    state: AlignmentState
    grid: ObservationGrid


def generic_problem(
    graph: PairGraph | None = None,
    *,
    shape: tuple[int, int] = (6, 8),
    square_pixels: bool = True,
    error: float = 0.05,
    seed: int = 0,
) -> Generic:
    """Random depths of 1 to 2, cameras, edge frames and confidences (some of them 0), and errors of the points."""
    generator = torch.Generator().manual_seed(seed)
    graph = graph or build_pair_graph(CompleteGraph(), 3)
    count, (height, width) = graph.view_count, shape
    focal = 8.0 + 2.0 * torch.rand(count, 2, dtype=torch.float64, generator=generator)
    if square_pixels:
        focal = focal[:, :1].expand(count, 2).clone()
    centre = torch.tensor([width / 2, height / 2], dtype=torch.float64)
    T = torch.eye(4, dtype=torch.float64).repeat(count, 1, 1)
    T[:, :3, :3] = rotation_from_vector(0.3 * torch.randn(count, 3, dtype=torch.float64, generator=generator))
    T[:, :3, 3] = torch.randn(count, 3, dtype=torch.float64, generator=generator)
    state = AlignmentState(
        T_world_camera=T,
        focal_px=focal,
        principal_point_px=centre + 0.3 * torch.randn(count, 2, dtype=torch.float64, generator=generator),
        world_from_edge=random_similarity(len(graph), generator),
    )
    worlds = []
    for view in range(count):
        depth = 1.0 + torch.rand(shape, dtype=torch.float64, generator=generator)
        worlds.append(points_from_depth(depth, state.K(view)) @ T[view, :3, :3].T + T[view, :3, 3])
    pairs = []
    for index, edge in enumerate(graph.edges):
        edge_from_world = one(state.world_from_edge, index).inverse()
        maps = [
            edge_from_world.apply(
                worlds[view] + error * torch.randn(*shape, 3, dtype=torch.float64, generator=generator)
            ).float()
            for view in edge
        ]
        said = [torch.rand(shape, generator=generator) + 0.2 for _ in edge]
        for confidence in said:
            confidence[torch.rand(shape, generator=generator) < 0.1] = 0.0
        pairs.append(
            PairPrediction(
                points_first=maps[0], points_second=maps[1], confidence_first=said[0], confidence_second=said[1]
            )
        )
    views = plain_views([shape] * count)
    predictions = PairPredictions(graph=graph, pairs=tuple(pairs))
    return Generic(views=views, predictions=predictions, state=state, grid=grid_of(views, predictions))


def one(similarity: Sim3, index: int) -> Sim3:
    """One of a batch."""
    return Sim3(
        scale=similarity.scale[index], rotation=similarity.rotation[index], translation=similarity.translation[index]
    )


def depths_of(grid: ObservationGrid, state: AlignmentState, distances: list[Tensor]) -> list[Tensor]:
    """Depth maps along z, float64, from distances along the pixels' rays; of a grid of all pixels."""
    depths = []
    for block, distance in zip(grid, distances, strict=True):
        slopes = (block.pixels - state.principal_point_px[block.view, :, None]) / state.focal_px[block.view, :, None]
        depth = distance.double() / (1.0 + slopes.square().sum(dim=0)).sqrt()
        depths.append(depth.view(len(grid.rows(block.view)), len(grid.columns(block.view))))
    return depths


def turned_and_moved(
    state: AlignmentState, numbers: Tensor, centre: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """A step written down anew, so that gradients flow to its numbers.

    Returns:
        T_world_camera, focal_px, principal_point_px, and the edges' scale, R, t.
    """
    views = len(state.T_world_camera)
    of_views, of_edges = numbers[: 9 * views].view(views, 9), numbers[9 * views :].view(-1, 7)
    T, R, t = [], [], []
    for view in range(views):
        w, shift = of_views[view, :3], of_views[view, 3:6]
        turn = torch.linalg.matrix_exp(hat(w))
        old = state.T_world_camera[view]
        upper = torch.cat([turn @ old[:3, :3], (turn @ (old[:3, 3] - centre) + centre + shift)[:, None]], dim=1)
        T.append(torch.cat([upper, old[3:]]))
    for edge in range(len(of_edges)):
        w, shift, grow = of_edges[edge, :3], of_edges[edge, 3:6], of_edges[edge, 6].exp()
        turn, old = torch.linalg.matrix_exp(hat(w)), one(state.world_from_edge, edge)
        R.append(turn @ old.rotation)
        t.append(grow * (turn @ (old.translation - centre)) + centre + shift)
    return (
        torch.stack(T),
        state.focal_px * of_views[:, 6:7].exp(),
        state.principal_point_px + of_views[:, 7:],
        state.world_from_edge.scale * of_edges[:, 6].exp(),
        torch.stack(R),
        torch.stack(t),
    )


def hat(w: Tensor) -> Tensor:
    zero = torch.zeros((), dtype=w.dtype)
    return torch.stack(
        [torch.stack([zero, -w[2], w[1]]), torch.stack([w[2], zero, -w[0]]), torch.stack([-w[1], w[0], zero])]
    )


def objective_after(
    problem: Generic,
    numbers: Tensor,
    centre: Tensor,
    depths: list[Tensor],
    *,
    mu: float | None,
    smoothing: float = 0.0,
) -> Tensor:
    """Sum of all losses after a step at given depths, map by map from `objective.residuals`."""
    T, focal, principal_point, scale, R, t = turned_and_moved(problem.state, numbers, centre)
    total = torch.zeros((), dtype=torch.float64)
    for index, (edge, pair) in enumerate(problem.predictions):
        world_from_edge = Sim3(scale=scale[index], rotation=R[index], translation=t[index])
        for view, points, confidence in (
            (edge[0], pair.points_first, pair.confidence_first),
            (edge[1], pair.points_second, pair.confidence_second),
        ):
            K = torch.diag(torch.cat([focal[view], torch.ones(1, dtype=torch.float64)]))
            K = K + torch.nn.functional.pad(principal_point[view][:, None], (2, 0, 0, 1))
            e = residuals(points.double(), world_from_edge, depths[view], K, T[view])
            length = (e.square().sum(dim=-1) + smoothing**2).sqrt()
            total = total + robust_loss(confidence.double(), length, mu).sum()
    return total


def naive_after(problem: Generic, numbers: Tensor, centre: Tensor, depths: list[Tensor], *, mu: float | None) -> Tensor:
    """The naive twin after a step at given depths; of square pixels."""
    T, focal, principal_point, scale, R, t = turned_and_moved(problem.state, numbers, centre)
    pairs = problem.predictions.pairs
    return naive_objective(
        T_world_camera=T,
        focal=focal[:, 0],
        principal_point=principal_point,
        depths=depths,
        scale=scale,
        R=R,
        t=t,
        edges=problem.predictions.graph.edges,
        points=[(pair.points_first, pair.points_second) for pair in pairs],
        confidence=[(pair.confidence_first, pair.confidence_second) for pair in pairs],
        mu=mu,
    )
