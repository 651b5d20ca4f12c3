"""One pass over the observations of a view: best depths, objective, and the equations of a step without the depths.

The objective is minimised by iterative re-weighting: with the weights `omega = w / |e|` of the last residuals held, it
is a sum of squares `1/2 sum omega |e|^2` whose gradient is the true one. Of those squares

- the depth of a pixel is closed form. Along the pixel's ray d (unit length) an observation sits at `a = d . z`, z being
  its point in the view's camera frame, so the best distance is `sum omega a / sum omega`;
- a step moves the observations by `B xi` (a similarity about the camera) and the ray by the view's pose and intrinsics.
  Across the ray these are plain squares. Along it, with the depth eliminated, what remains is the weighted variance of
  the moved `a`, to which the view contributes nothing. B is taken at the pixel's fused point, not at each observation:
  that changes the curvature a little and the gradient not at all, and lets one 9 x 9 and one 4 x 4 table per pixel
  serve all observations.

Everything is computed in the camera's frame, in float32 but for the sums, and carried to the world's by one 7 x 7 map.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float32, Float64, Int64
from torch import Tensor

from lora3d_ns.alignment.objective import calibrated_weight, robust_loss
from lora3d_ns.alignment.observations import ViewObservations
from lora3d_ns.alignment.state import PER_VIEW, POSE, SIMILARITY, AlignmentState, cross_matrix

_NEAREST_SHARE = 1e-3
"""Least distance of a point along its ray, as a share of the usual one: nothing is at or behind the camera."""
_USUAL_PIXELS = 256
"""Pixels of a view that say what distance is usual."""
_CHUNK_NUMBERS = 2**19
"""Floats of one point array handled at once, so that the arrays of a chunk stay in the processor's caches."""
_TABLE = [(0, 0), (0, 1), (0, 2), (0, 3), (1, 1), (1, 2), (1, 3), (2, 2), (2, 3), (3, 3)]


@dataclass(frozen=True, eq=False, kw_only=True)
class Block:
    """Part of the equations of a step, `H step = -g` summed over blocks.

    Attributes:
        index: Which numbers of the step the rows belong to: `PER_VIEW` of each of some views, then `SIMILARITY` of each
            of some edges.
        edges: Which edges those are; empty for equations of views alone.
        H: Curvature, positive semi-definite.
        g: Gradient of the objective.
    """

    index: Int64[Tensor, " rows"]
    edges: Int64[Tensor, " edges"]
    H: Float64[Tensor, "rows rows"]
    g: Float64[Tensor, " rows"]


@dataclass(frozen=True, eq=False, kw_only=True)
class ViewPass:
    """What one pass over a view's observations gives.

    Attributes:
        objective: Sum of the view's losses.
        influence: Sum of w |e|: by how much the objective grows with the scale of all residuals, mu held.
        distances: Best distance along each pixel's ray.
        block: Equations of a step; None where not asked for.
        residual: |e| of every observation; None where not asked for.
    """

    objective: float
    influence: float
    distances: Float32[Tensor, " pixels"]
    block: Block | None
    residual: Float32[Tensor, "observations pixels"] | None


def pass_over_view(
    observations: ViewObservations,
    state: AlignmentState,
    distances: Float32[Tensor, " pixels"] | None,
    *,
    mu: float | None,
    smoothing: float,
    inner_iterations: int = 8,
    system_centre: Float64[Tensor, "3"] | None = None,
    keep_residual: bool = False,
) -> ViewPass:
    """Depths, objective and equations of one view at a state.

    Args:
        observations: Of the view.
        state: Poses, intrinsics and edge similarities.
        distances: Where the depths were; None to start from the observations' weighted mean.
        mu: Of the robust loss, world unit; None for Eq. 6.
        smoothing: Residuals are `sqrt(|e|^2 + smoothing^2)`, world unit.
        inner_iterations: Re-weighted steps of the depths.
        system_centre: Point about which a step turns the world; None if no equations are wanted.
        keep_residual: Whether to return the residuals' lengths.
    """
    view, device = observations.view, observations.points.device
    R = state.T_world_camera[view, :3, :3]
    edge = state.world_from_edge
    at = observations.edges.cpu()
    A = (R.mT @ (edge.scale[at, None, None] * edge.rotation[at])).float().to(device)
    b = ((edge.translation[at] - state.T_world_camera[view, :3, 3]) @ R).float().to(device)
    slopes = (observations.pixels - state.principal_point_px[view, :, None].float().to(device)) / state.focal_px[
        view, :, None
    ].float().to(device)
    rays = torch.cat([slopes, torch.ones_like(slopes[:1])])
    rays = rays / rays.norm(dim=0)

    count, pixel_count = observations.confidence.shape
    chunk = max(256, _CHUNK_NUMBERS // (3 * max(count, 1)))
    nearest = _NEAREST_SHARE * _usual_distance(observations.points, A, b, rays)
    totals = _Totals(count, device)
    new_distances = torch.empty(pixel_count, device=device)
    residual = torch.empty(count, pixel_count, device=device) if keep_residual else None
    for start in range(0, pixel_count, chunk):
        part = slice(start, start + chunk)
        C, ray = observations.confidence[:, part], rays[:, part]
        z = torch.baddbmm(b[:, :, None], A, observations.points[:, :, part])
        along = torch.einsum("kip,ip->kp", z, ray)
        across = z.addcmul_(along[:, None], ray, value=-1.0)
        across_square = across.square().sum(dim=1).add_(smoothing**2)
        if distances is None:
            t = (C * along).sum(dim=0) / C.sum(dim=0).clamp(min=1e-12)
            t = torch.where(C.sum(dim=0) > 0, t, along.mean(dim=0))
            iterations = inner_iterations + 12
        else:
            t, iterations = distances[part], inner_iterations
        for _ in range(iterations):
            length = (across_square + (along - t).square()).sqrt()
            omega = calibrated_weight(C, length, mu) / length
            weight = omega.sum(dim=0)
            t = torch.where(weight > 0, (omega * along).sum(dim=0) / weight.clamp(min=1e-30), t).clamp(min=nearest)
        off = along - t
        length = (across_square + off.square()).sqrt()
        w = calibrated_weight(C, length, mu)
        new_distances[part] = t
        totals.objective += robust_loss(C, length, mu).sum(dtype=torch.float64)
        totals.influence += (w * length).sum(dtype=torch.float64)
        if residual is not None:
            residual[:, part] = length
        if system_centre is not None:
            e = across.addcmul_(off[:, None], ray)
            totals.add(w / length, e, length.square() - smoothing**2, ray, t, state.focal_px[view])
    return ViewPass(
        objective=float(totals.objective),
        influence=float(totals.influence),
        distances=new_distances,
        block=None if system_centre is None else totals.block(observations, state, system_centre),
        residual=residual,
    )


def _usual_distance(points: Tensor, A: Tensor, b: Tensor, rays: Tensor) -> Tensor:
    """Median distance of a view's observations along their rays, whatever chunks they are handled in."""
    some = slice(None, None, max(1, points.shape[2] // _USUAL_PIXELS))
    along = torch.einsum("kip,ip->kp", torch.baddbmm(b[:, :, None], A, points[:, :, some]), rays[:, some])
    return along.abs().median().clamp(min=1e-12)


class _Totals:
    """Sums over the pixels of a view, camera frame."""

    def __init__(self, count: int, device: torch.device) -> None:
        self.count = count
        self.objective = torch.zeros((), dtype=torch.float64, device=device)
        self.influence = torch.zeros((), dtype=torch.float64, device=device)
        self.moments = torch.zeros(count, 3, 4, dtype=torch.float64, device=device)
        self.squares = torch.zeros(count, dtype=torch.float64, device=device)
        self.across = torch.zeros(count, PER_VIEW, PER_VIEW, dtype=torch.float64, device=device)
        self.own = torch.zeros(count, 10, dtype=torch.float64, device=device)
        self.shared = torch.zeros(10, count, count, dtype=torch.float64, device=device)

    def add(self, omega: Tensor, e: Tensor, square: Tensor, ray: Tensor, t: Tensor, focal_px: Tensor) -> None:
        """Adds the pixels of a chunk; `square` is |e|^2."""
        count = self.count
        x = t * ray
        pull = (omega[:, None] * e).reshape(3 * count, -1)
        self.moments += (pull @ torch.cat([x, torch.ones_like(t)[None]]).T).view(count, 3, 4).double()
        self.squares += (omega * square).sum(dim=1, dtype=torch.float64)

        moves = _moves(x, focal_px)
        moves = moves - (moves * ray.T[:, None]).sum(dim=-1, keepdim=True) * ray.T[:, None]
        table = (moves @ moves.mT).flatten(1)
        self.across += (omega @ table).view(count, PER_VIEW, PER_VIEW).double()

        slide = torch.cat([ray, t[None]])
        table = torch.stack([slide[a] * slide[b] for a, b in _TABLE])
        self.own += (omega @ table.T).double()
        share = omega / omega.sum(dim=0).clamp(min=1e-30)
        self.shared += torch.matmul(share * table[:, None], omega.T).double()

    def block(self, observations: ViewObservations, state: AlignmentState, centre: Tensor) -> Block:
        """The equations with the view's `PER_VIEW` numbers first and each edge's `SIMILARITY` after them."""
        count, view = self.count, observations.view
        moments, squares, across = self.moments.cpu(), self.squares.cpu(), self.across.cpu()
        own, shared = self.own.cpu(), self.shared.cpu()
        size = PER_VIEW + count * SIMILARITY
        H, g = torch.zeros(size, size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64)

        pull = moments[:, :, 3]
        # Components of sum x cross pull, from the table of sums of pull times x.
        turns = [moments[:, (c + 2) % 3, (c + 1) % 3] - moments[:, (c + 1) % 3, (c + 2) % 3] for c in range(3)]
        torque = torch.stack(turns, dim=1)
        grow = moments[:, 0, 0] + moments[:, 1, 1] + moments[:, 2, 2] + squares
        of_edges = g[PER_VIEW:].view(count, SIMILARITY)
        of_edges[:, :3], of_edges[:, 3:6], of_edges[:, 6] = torque, pull, grow
        g[:3], g[3:6] = -torque.sum(dim=0), -pull.sum(dim=0)
        focal_px = state.focal_px[view]
        g[POSE] = (moments[:, 0, 0] + moments[:, 1, 1]).sum()
        g[POSE + 1] = moments[:, 0, 2].sum() / focal_px[0]
        g[POSE + 2] = moments[:, 1, 2].sum() / focal_px[1]

        H[:PER_VIEW, :PER_VIEW] = across.sum(dim=0)
        edges = H[PER_VIEW:, PER_VIEW:].view(count, SIMILARITY, count, SIMILARITY)
        with_view = H[PER_VIEW:, :PER_VIEW].view(count, SIMILARITY, PER_VIEW)
        with_view[:, :POSE] = -across[:, :POSE]
        H[:PER_VIEW, PER_VIEW:] = H[PER_VIEW:, :PER_VIEW].T
        each = torch.arange(count)
        edges[each, :POSE, each, :POSE] += across[:, :POSE, :POSE]
        for row, (a, b) in enumerate(_TABLE):
            for first, second in {(a, b), (b, a)}:
                edges[:, 3 + first, :, 3 + second] -= shared[row]
                edges[each, 3 + first, each, 3 + second] += own[:, row]

        to_camera = _world_to_camera(state, view, centre)
        pose = to_camera[:POSE, :POSE]
        turned = torch.eye(PER_VIEW, dtype=torch.float64)
        turned[:POSE, :POSE] = pose
        change = torch.block_diag(turned, *([to_camera] * count))
        first_edge = len(state.T_world_camera) * PER_VIEW
        index = torch.cat(
            [
                torch.arange(view * PER_VIEW, (view + 1) * PER_VIEW),
                (first_edge + observations.edges.cpu()[:, None] * SIMILARITY + torch.arange(SIMILARITY)).flatten(),
            ]
        )
        return Block(index=index, edges=observations.edges.cpu(), H=change.T @ H @ change, g=change.T @ g)


def _moves(x: Tensor, focal_px: Tensor) -> Tensor:
    """How a camera-frame point moves with each of a view's numbers, (pixels, PER_VIEW, 3)."""
    X, Y, Z = x
    zero = torch.zeros_like(X)
    one = torch.ones_like(X)
    fx, fy = float(focal_px[0]), float(focal_px[1])
    columns = [
        (zero, -Z, Y), (Z, zero, -X), (-Y, X, zero),
        (one, zero, zero), (zero, one, zero), (zero, zero, one),
        (-X, -Y, zero), (-Z / fx, zero, zero), (zero, -Z / fy, zero),
    ]  # fmt: skip
    return torch.stack([torch.stack(column, dim=-1) for column in columns], dim=1)


def _world_to_camera(state: AlignmentState, view: int, centre: Tensor) -> Tensor:
    """The 7 numbers of a similarity about the camera's centre, camera axes, from those of one about `centre`, world."""
    R, c = state.T_world_camera[view, :3, :3], state.T_world_camera[view, :3, 3] - centre
    change = torch.zeros(SIMILARITY, SIMILARITY, dtype=torch.float64)
    change[:3, :3] = R.T
    change[3:6, :3] = -R.T @ cross_matrix(c)
    change[3:6, 3:6] = R.T
    change[3:6, 6] = R.T @ c
    change[6, 6] = 1.0
    return change
