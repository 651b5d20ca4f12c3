"""The unknowns of an alignment, and how a step changes them."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from lora3d_ns.alignment.objective import gauge_scale
from lora3d_ns.types import Sim3

POSE, INTRINSICS, SIMILARITY = 6, 3, 7
"""Numbers a step has for each view (rotation and translation; log focal length and principal point) and edge."""
PER_VIEW = POSE + INTRINSICS


@dataclass(frozen=True, eq=False, kw_only=True)
class AlignmentState:
    """A whole scene but for the depths: float64, on the CPU.

    Attributes:
        T_world_camera: Poses.
        focal_px: Focal lengths along x and y in network pixels.
        principal_point_px: Principal points in network pixels.
        world_from_edge: sigma_e T_e of all edges.
    """

    T_world_camera: Float64[Tensor, "views 4 4"]
    focal_px: Float64[Tensor, "views 2"]
    principal_point_px: Float64[Tensor, "views 2"]
    world_from_edge: Sim3

    def K(self, view: int) -> Float64[Tensor, "3 3"]:
        """Intrinsics of a view in network pixels."""
        K = torch.eye(3, dtype=torch.float64)
        K[[0, 1], [0, 1]] = self.focal_px[view]
        K[:2, 2] = self.principal_point_px[view]
        return K

    def moved(self, similarity: Sim3) -> "AlignmentState":
        """The same scene in another world: every pose and edge moved, the intrinsics as they are."""
        T = self.T_world_camera.clone()
        T[:, :3, :3] = similarity.rotation @ T[:, :3, :3]
        T[:, :3, 3] = similarity.apply(T[:, :3, 3])
        count = len(self.world_from_edge.scale)
        batched = Sim3(
            scale=similarity.scale.expand(count),
            rotation=similarity.rotation.expand(count, 3, 3),
            translation=similarity.translation.expand(count, 3),
        )
        return AlignmentState(
            T_world_camera=T,
            focal_px=self.focal_px,
            principal_point_px=self.principal_point_px,
            world_from_edge=batched.compose(self.world_from_edge),
        )

    def stepped(self, step: Float64[Tensor, " numbers"], centre: Float64[Tensor, "3"]) -> "AlignmentState":
        """The state after a step: `PER_VIEW` numbers of each view, then `SIMILARITY` of each edge.

        Rotations turn the world about `centre` before anything else: `T <- exp(step) T`, likewise for edges.
        """
        views = len(self.T_world_camera)
        of_views = step[: views * PER_VIEW].view(views, PER_VIEW)
        of_edges = step[views * PER_VIEW :].view(-1, SIMILARITY)
        turn = rotation_from_vector(of_views[:, :3])
        T = self.T_world_camera.clone()
        T[:, :3, :3] = orthonormal(turn @ T[:, :3, :3])
        T[:, :3, 3] = (turn @ (T[:, :3, 3] - centre)[..., None])[..., 0] + centre + of_views[:, 3:6]
        edge, grow, turn = self.world_from_edge, of_edges[:, 6].exp(), rotation_from_vector(of_edges[:, :3])
        moved = grow[:, None] * (turn @ (edge.translation - centre)[..., None])[..., 0] + centre + of_edges[:, 3:6]
        return AlignmentState(
            T_world_camera=T,
            focal_px=self.focal_px * of_views[:, 6:7].exp(),
            principal_point_px=self.principal_point_px + of_views[:, 7:9],
            world_from_edge=Sim3(
                scale=grow * edge.scale, rotation=orthonormal(turn @ edge.rotation), translation=moved
            ),
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class Freedom:
    """Which numbers of a step are free, and which are one and the same.

    Attributes:
        index: For each number of a step its place among the free ones; -1 where it is held fixed. Equal places are
            shared, as one focal length of several views is.
        edges: Which edges take part; the others stay where they are.
        scale_is_gauge: Whether the product of their sigma_e is held, because nothing else fixes the scale.
    """

    index: Int64[Tensor, " numbers"]
    edges: Int64[Tensor, " edges"]
    scale_is_gauge: bool

    @property
    def count(self) -> int:
        """How many free numbers there are."""
        return int(self.index.max()) + 1

    def gauge(self, state: AlignmentState) -> float:
        """Geometric mean of the sigma_e that take part: the state's unit in the gauge's own."""
        return float(gauge_scale(state.world_from_edge.scale[self.edges]))


def freedom(
    view_count: int,
    edge_count: int,
    *,
    focal_groups: Sequence[int | None],
    principal_point: Sequence[bool],
    fixed_poses: Sequence[int],
    dropped_edges: Collection[int],
    scale_is_gauge: bool,
) -> Freedom:
    """The free numbers of an alignment.

    Args:
        view_count, edge_count: Sizes of the problem.
        focal_groups: Views of one number share a relative change of focal length; None holds it fixed.
        principal_point: Which views' principal point is estimated.
        fixed_poses: Views whose pose is held; at least one, which fixes the frame of the world.
        dropped_edges: Edges that take no part.
        scale_is_gauge: See `Freedom`.
    """
    index = torch.full((view_count * PER_VIEW + edge_count * SIMILARITY,), -1, dtype=torch.int64)
    free = 0
    place_of_group: dict[int, int] = {}
    for view in range(view_count):
        start = view * PER_VIEW
        if view not in fixed_poses:
            index[start : start + POSE] = torch.arange(free, free + POSE)
            free += POSE
        group = focal_groups[view]
        if group is not None:
            if group not in place_of_group:
                place_of_group[group] = free
                free += 1
            index[start + POSE] = place_of_group[group]
        if principal_point[view]:
            index[start + POSE + 1 : start + PER_VIEW] = torch.arange(free, free + 2)
            free += 2
    edges = torch.tensor([edge for edge in range(edge_count) if edge not in dropped_edges], dtype=torch.int64)
    places = torch.arange(free, free + len(edges) * SIMILARITY).view(-1, SIMILARITY)
    index[view_count * PER_VIEW :].view(-1, SIMILARITY)[edges] = places
    return Freedom(index=index, edges=edges, scale_is_gauge=scale_is_gauge)


def rotation_from_vector(vector: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3 3"]:
    """exp of the cross product matrix: the turn about a vector by its length in radians."""
    return torch.linalg.matrix_exp(cross_matrix(vector))


def cross_matrix(vector: Float[Tensor, "*batch 3"]) -> Float[Tensor, "*batch 3 3"]:
    """[v]x with `[v]x a = v x a`."""
    x, y, z = vector.unbind(dim=-1)
    zero = torch.zeros_like(x)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1).reshape(*vector.shape[:-1], 3, 3)


def orthonormal(rotation: Float[Tensor, "*batch 3 3"]) -> Float[Tensor, "*batch 3 3"]:
    """The nearest rotation: takes out what rounding adds over many steps."""
    U, _, Vh = torch.linalg.svd(rotation)
    return U @ Vh
