"""One pass over the observations of a view: best depths, objective, and the equations of a step without the depths.

The objective is minimised by iterative re-weighting: with the weights `omega = w / |e|` of the last residuals held, it
is a sum of squares `1/2 sum omega |e|^2` whose gradient is the true one. Of those squares

- the depth of a pixel is closed form. Along the pixel's ray d (unit length) an observation sits at `a = d . z`, z being
  its point in the view's camera frame, so the best distance is `sum omega a / sum omega`;
- a step moves the observations by `B xi` (a similarity about the camera) and the ray by the view's pose and intrinsics.
  Across the ray these are plain squares. Along it, with the depth eliminated, what remains is the weighted variance of
  the moved `a`, to which the view contributes nothing. B is taken at the pixel's fused point, not at each observation:
  that changes the curvature a little and the gradient not at all, and lets a few sums over the pixels (`_Totals`)
  stand for all products of two moves.

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
_USUAL_PIXELS = 64
"""Pixels of a view that say what distance is usual."""
_CHUNK_NUMBERS = 2**19
"""Floats of one point array handled at once, so that the arrays of a chunk stay in the processor's caches."""
_CUDA_CHUNK_NUMBERS = 2**24
"""The same on a GPU, which wants few and large operations: 64 MiB an array."""
_SLIDE = 4
"""What moves an observation along its ray: a translation (3) and the growth of the edge."""


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
    chunk = chunk_pixels(count, device)
    nearest = _NEAREST_SHARE * _usual_distance(observations.points, A, b, rays)
    totals = _Totals(count, device)
    new_distances = torch.empty(pixel_count, device=device)
    residual = torch.empty(count, pixel_count, device=device) if keep_residual else None
    for start in range(0, pixel_count, chunk):
        part = slice(start, start + chunk)
        C, ray = observations.confidence[:, part], rays[:, part]
        z = torch.baddbmm(b[:, :, None], A, observations.points[:, :, part])
        along = _along(z, ray)
        across = z.addcmul_(along[:, None], ray, value=-1.0)
        across_square = across.square().sum(dim=1).add_(smoothing**2)
        if distances is None:
            t = (C * along).sum(dim=0) / C.sum(dim=0).clamp(min=1e-12)
            t = torch.where(C.sum(dim=0) > 0, t, along.mean(dim=0))
            iterations = inner_iterations + 12
        else:
            t, iterations = distances[part], inner_iterations
        for _ in range(iterations):
            off = along - t
            length = torch.addcmul(across_square, off, off).sqrt_()
            omega = calibrated_weight(C, length, mu) / length
            weight = omega.sum(dim=0)
            best = omega.mul_(along).sum(dim=0) / weight.clamp(min=1e-30)
            t = torch.where(weight > 0, best, t).clamp(min=nearest)
        off = along - t
        length = torch.addcmul(across_square, off, off).sqrt_()
        w = calibrated_weight(C, length, mu)
        new_distances[part] = t
        totals.objective += robust_loss(C, length, mu).sum(dim=0).sum(dtype=torch.float64)
        totals.influence += (w * length).sum(dim=0).sum(dtype=torch.float64)
        if residual is not None:
            residual[:, part] = length
        if system_centre is not None:
            e = across.addcmul_(off[:, None], ray)
            totals.add(w / length, e, length.square() - smoothing**2, ray, t)
    return ViewPass(
        objective=float(totals.objective),
        influence=float(totals.influence),
        distances=new_distances,
        block=None if system_centre is None else totals.block(observations, state, system_centre),
        residual=residual,
    )


def chunk_pixels(observations: int, device: torch.device) -> int:
    """How many pixels of a view are handled at once."""
    numbers = _CUDA_CHUNK_NUMBERS if device.type == "cuda" else _CHUNK_NUMBERS
    return max(256, numbers // (3 * max(observations, 1)))


def _usual_distance(points: Tensor, A: Tensor, b: Tensor, rays: Tensor) -> Tensor:
    """Median distance of a view's observations along their rays, whatever chunks they are handled in."""
    some = slice(None, None, max(1, points.shape[2] // _USUAL_PIXELS))
    along = _along(torch.baddbmm(b[:, :, None], A, points[:, :, some]), rays[:, some])
    return along.abs().median().clamp(min=1e-12)


def _along(points: Tensor, rays: Tensor) -> Tensor:
    """Where points lie along the rays of their pixels, (observations, pixels)."""
    return (points[:, 0] * rays[0]).addcmul_(points[:, 1], rays[1]).addcmul_(points[:, 2], rays[2])


class _Totals:
    """Sums over the pixels of a view, camera frame.

    A view's numbers move the point x of a pixel across its ray r by what `P = I - r r^T` leaves of it: a rotation by
    `[r]x` times the distance t, a translation by P, and the intrinsics by `Z P` times a constant matrix (a larger focal
    length takes the point away from the optical axis by `-(X, Y, 0) = Z (0, 0, 1) - x`, and P x = 0). So P with the
    factors 1, Z, Z^2, t^2 and x with the factors 1, Z hold all products of two such moves.
    """

    def __init__(self, count: int, device: torch.device) -> None:
        self.count = count
        self.objective = torch.zeros((), dtype=torch.float64, device=device)
        self.influence = torch.zeros((), dtype=torch.float64, device=device)
        self.moments = torch.zeros(count, 3, 4, dtype=torch.float64, device=device)
        self.squares = torch.zeros(count, dtype=torch.float64, device=device)
        self.projections = torch.zeros(count, 4, 3, 3, dtype=torch.float64, device=device)
        self.positions = torch.zeros(count, 2, 3, dtype=torch.float64, device=device)
        self.own = torch.zeros(count, _SLIDE, _SLIDE, dtype=torch.float64, device=device)
        self.shared = torch.zeros(count, _SLIDE, count, _SLIDE, dtype=torch.float64, device=device)

    def add(self, omega: Tensor, e: Tensor, square: Tensor, ray: Tensor, t: Tensor) -> None:
        """Adds the pixels of a chunk; `square` is |e|^2."""
        count = self.count
        x, one = t * ray, torch.ones_like(t)
        pull = (omega[:, None] * e).flatten(0, 1)
        self.moments += (pull @ torch.cat([x, one[None]]).T).view(count, 3, 4).double()
        self.squares += (omega * square).sum(dim=1).double()

        projection = torch.eye(3, device=t.device)[:, :, None] - ray[:, None] * ray
        projections = torch.stack([one, x[2], x[2].square(), t.square()])[:, None, None] * projection
        positions = torch.stack([x, x[2] * x])
        slide = torch.cat([ray, t[None]])
        own = slide[:, None] * slide
        table = torch.cat([projections.flatten(0, 2), positions.flatten(0, 1), own.flatten(0, 1)])
        sums = (omega @ table.T).double()
        self.projections += sums[:, :36].view(count, 4, 3, 3)
        self.positions += sums[:, 36:42].view(count, 2, 3)
        self.own += sums[:, 42:].view(count, _SLIDE, _SLIDE)
        share = omega * omega.sum(dim=0).clamp(min=1e-30).rsqrt()
        share = (share[:, None] * slide).flatten(0, 1)
        self.shared += (share @ share.T).view(count, _SLIDE, count, _SLIDE).double()

    def block(self, observations: ViewObservations, state: AlignmentState, centre: Tensor) -> Block:
        """The equations with the view's `PER_VIEW` numbers first and each edge's `SIMILARITY` after them."""
        count, view = self.count, observations.view
        moments, across = self.moments.cpu(), self._across(state.focal_px[view])
        # Sum of x cross pull, from the table of sums of pull times x.
        skew = moments[:, :, :3] - moments[:, :, :3].mT
        torque = torch.stack([skew[:, 2, 1], skew[:, 0, 2], skew[:, 1, 0]], dim=1)
        grow = moments.diagonal(dim1=1, dim2=2).sum(dim=1) + self.squares.cpu()
        of_edges = torch.cat([torque, moments[:, :, 3], grow[:, None]], dim=1)
        total = moments.sum(dim=0)
        of_intrinsics = torch.stack([total[0, 0] + total[1, 1], *(total[:2, 2] / state.focal_px[view])])
        g = torch.cat([-of_edges[:, :POSE].sum(dim=0), of_intrinsics, of_edges.flatten()])

        size = PER_VIEW + count * SIMILARITY
        H = torch.zeros(size, size, dtype=torch.float64)
        H[:PER_VIEW, :PER_VIEW] = across.sum(dim=0)
        edges = H[PER_VIEW:, PER_VIEW:].view(count, SIMILARITY, count, SIMILARITY)
        with_view = H[PER_VIEW:, :PER_VIEW].view(count, SIMILARITY, PER_VIEW)
        with_view[:, :POSE] = -across[:, :POSE]
        H[:PER_VIEW, PER_VIEW:] = H[PER_VIEW:, :PER_VIEW].T
        edges[:, 3:, :, 3:] = -self.shared.cpu()
        of_one = edges.diagonal(dim1=0, dim2=2).permute(2, 0, 1)
        of_one[:, :POSE, :POSE] += across[:, :POSE, :POSE]
        of_one[:, 3:, 3:] += self.own.cpu()

        to_camera = _world_to_camera(state, view, centre)
        turned = torch.eye(PER_VIEW, dtype=torch.float64)
        turned[:POSE, :POSE] = to_camera[:POSE, :POSE]
        first_edge = len(state.T_world_camera) * PER_VIEW
        index = torch.cat(
            [
                torch.arange(view * PER_VIEW, (view + 1) * PER_VIEW),
                (first_edge + observations.edges.cpu()[:, None] * SIMILARITY + torch.arange(SIMILARITY)).flatten(),
            ]
        )
        half = _times_change(H, turned, to_camera).T.contiguous()
        return Block(
            index=index,
            edges=observations.edges.cpu(),
            H=_times_change(half, turned, to_camera),
            g=_times_change(g[None], turned, to_camera)[0],
        )

    def _across(self, focal_px: Tensor) -> Tensor:
        """Per edge the curvature of a view's numbers across the rays, (edges, PER_VIEW, PER_VIEW)."""
        still, by_z, by_z_square, by_t_square = self.projections.cpu().unbind(dim=1)
        turn, turn_by_z = cross_matrix(self.positions.cpu()).unbind(dim=1)
        rotation, translation, intrinsics = slice(3), slice(3, POSE), slice(POSE, PER_VIEW)
        fx, fy = focal_px.tolist()
        # Of the intrinsics' moves, by Z P: along z by the focal length, along x and y by the principal point.
        zoom = torch.tensor([[0.0, -1.0 / fx, 0.0], [0.0, 0.0, -1.0 / fy], [1.0, 0.0, 0.0]], dtype=torch.float64)
        across = torch.empty(self.count, PER_VIEW, PER_VIEW, dtype=torch.float64)
        across[:, rotation, rotation] = by_t_square
        across[:, rotation, translation] = turn
        across[:, translation, rotation] = turn.mT
        across[:, translation, translation] = still
        across[:, :POSE, intrinsics] = torch.cat([turn_by_z, by_z], dim=1) @ zoom
        across[:, intrinsics, :POSE] = across[:, :POSE, intrinsics].mT
        across[:, intrinsics, intrinsics] = zoom.T @ by_z_square @ zoom
        return across


def _times_change(rows: Tensor, of_view: Tensor, of_edge: Tensor) -> Tensor:
    """Rows times the block diagonal matrix of the change of a view's numbers and of each edge's."""
    edges = rows[:, PER_VIEW:].unflatten(1, (-1, SIMILARITY)) @ of_edge
    return torch.cat([rows[:, :PER_VIEW] @ of_view, edges.flatten(1)], dim=1)


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
