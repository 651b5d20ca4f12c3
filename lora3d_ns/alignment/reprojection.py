"""2D matches as a further part of the objective: robust reprojection errors of triangulated tracks.

Point maps are smooth and their errors are, too: thousands of pixels err together, so their number says little. Matched
pixels err on their own and by fractions of a pixel. The term is

    weight * L / (2 E S)  *  sum_observations  s^2 rho(|pi(T_v^-1 X_t) - u| / s),      rho(r) = r^2 / (1 + r^2)

with the track's point X_t eliminated (Schur complement, as in every bundle adjustment). The scale s is lowered to one
network pixel in steps: cameras from point maps are off by several pixels, and a narrow kernel would take that for
outliers. L is the objective of the point maps before matches, E the number of edges and S = 8: a point map counts as so
many independent measurements, each off by what L says. With `weight` 1 both kinds of evidence then weigh as their
errors deserve.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from lora3d_ns.alignment.matches import Matches
from lora3d_ns.alignment.normal_equations import Block
from lora3d_ns.alignment.state import PER_VIEW, AlignmentState, cross_matrix
from lora3d_ns.alignment.tracks import build_tracks

SCALES_PX = (8.0, 3.0, 1.0)
"""Of the robust kernel, one after the other."""
_INDEPENDENT_PER_MAP = 8.0
_POINT_STEPS = 4
_LEAST_TRACKS_PER_VIEW = 8
_PARALLEL = 1e-4
"""Share by which a track's point is held at typical depth: decides only where its rays are parallel."""
_NEAREST_SHARE = 0.02
_TRACKS_AT_ONCE = 4096


@dataclass(frozen=True, eq=False, kw_only=True)
class ReprojectionTerm:
    """Robust reprojection errors of tracks as a function of the cameras; one `ExtraTerm` of the solver.

    Attributes:
        view, track, pixel: Of each observation: the view, the track, and where the view sees it, network pixels.
        track_count: Number of tracks.
        weight: Factor on the sum.
        unit: Typical depth in the gauge's unit.
        scale_px: s, of the robust kernel.
    """

    view: Int64[Tensor, " observations"]
    track: Int64[Tensor, " observations"]
    pixel: Float64[Tensor, "observations 2"]
    track_count: int
    weight: float
    unit: float
    scale_px: float

    @property
    def observation_count(self) -> int:
        """Matched pixels in all tracks."""
        return len(self.view)

    def __call__(self, state: AlignmentState, with_block: bool) -> tuple[float, Block | None]:
        """The term's value and its equations."""
        points = self._triangulated(state)
        error_px, camera, before = self._errors(state, points)
        square = error_px.square().sum(dim=1) / self.scale_px**2
        value = self.weight * self.scale_px**2 * float(torch.where(before, square / (1.0 + square), 1.0).sum())
        if not with_block:
            return value, None
        return value, self._block(state, points, error_px, camera, before)

    def median_error_px(self, state: AlignmentState) -> float:
        """Median reprojection error in network pixels."""
        error_px, _, _ = self._errors(state, self._triangulated(state))
        return float(error_px.norm(dim=1).median())

    def inliers(self, state: AlignmentState, threshold_px: float) -> Tensor:
        """Which observations lie within a distance of where the state sees them."""
        error_px, _, before = self._errors(state, self._triangulated(state))
        return before & (error_px.norm(dim=1) < threshold_px)

    def _errors(self, state: AlignmentState, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Reprojection errors, camera-frame points, and which of them lie before their camera."""
        R, c = state.T_world_camera[self.view, :3, :3], state.T_world_camera[self.view, :3, 3]
        camera = (R.mT @ (points[self.track] - c)[..., None])[..., 0]
        before = camera[:, 2] > _NEAREST_SHARE * self.unit
        depth = torch.where(before, camera[:, 2], self.unit)
        seen = state.focal_px[self.view] * camera[:, :2] / depth[:, None] + state.principal_point_px[self.view]
        return seen - self.pixel, torch.cat([camera[:, :2], depth[:, None]], dim=1), before

    def _triangulated(self, state: AlignmentState) -> Tensor:
        """The tracks' points: nearest to all rays, then a few robust steps on the pixels."""
        R, c = state.T_world_camera[self.view, :3, :3], state.T_world_camera[self.view, :3, 3]
        slopes = (self.pixel - state.principal_point_px[self.view]) / state.focal_px[self.view]
        rays = (R @ torch.cat([slopes, torch.ones_like(slopes[:, :1])], dim=1)[..., None])[..., 0]
        typical = self._sum(c + self.unit * rays) / self._sum(torch.ones_like(c))
        rays = rays / rays.norm(dim=1, keepdim=True)
        across = torch.eye(3, dtype=torch.float64) - rays[:, :, None] * rays[:, None]
        A, b = self._sum(across), self._sum((across @ c[..., None])[..., 0])
        hold = _PARALLEL * torch.eye(3, dtype=torch.float64)
        points = torch.linalg.solve(A + hold, b + _PARALLEL * typical)
        for _ in range(_POINT_STEPS):
            error_px, camera, before = self._errors(state, points)
            J = -self._towards_points(state, camera)
            omega = self._omega(error_px, before)
            H = self._sum(omega[:, None, None] * J.mT @ J)
            g = self._sum((omega[:, None, None] * J.mT @ error_px[..., None])[..., 0])
            damping = 1e-3 * H.diagonal(dim1=1, dim2=2).sum(dim=1)[:, None, None] + 1e-12
            step = torch.linalg.solve(H + damping * torch.eye(3, dtype=torch.float64), g)
            longest = 0.3 * self.unit
            length = step.norm(dim=1, keepdim=True).clamp(min=1e-12)
            points = points + step * (longest / length).clamp(max=1.0)
        return points

    def _omega(self, error_px: Tensor, before: Tensor) -> Tensor:
        """Weights of the re-weighted squares, `rho'(r) / (2 r)`."""
        square = error_px.square().sum(dim=1) / self.scale_px**2
        return torch.where(before, 1.0 / (1.0 + square).square(), 0.0)

    def _towards_points(self, state: AlignmentState, camera: Tensor) -> Tensor:
        """How the error changes with the world point, (observations, 2, 3)."""
        R = state.T_world_camera[self.view, :3, :3]
        return self._pinhole(state, camera) @ R.mT

    def _pinhole(self, state: AlignmentState, camera: Tensor) -> Tensor:
        x, y, depth = camera.unbind(dim=1)
        fx, fy = state.focal_px[self.view].unbind(dim=1)
        zero = torch.zeros_like(x)
        rows = [torch.stack([fx / depth, zero, -fx * x / depth**2], dim=1)]
        rows.append(torch.stack([zero, fy / depth, -fy * y / depth**2], dim=1))
        return torch.stack(rows, dim=1)

    def _block(self, state: AlignmentState, points: Tensor, error_px: Tensor, camera: Tensor, before: Tensor) -> Block:
        views = len(state.T_world_camera)
        centre = state.T_world_camera[:, :3, 3].mean(dim=0)
        of_point = self._towards_points(state, camera)
        J = torch.zeros(len(self.view), 2, PER_VIEW, dtype=torch.float64)
        # The world turned about `centre` with the camera: seen from it, the point moves the other way.
        J[:, :, :3] = of_point @ cross_matrix(points[self.track] - centre)
        J[:, :, 3:6] = -of_point
        J[:, :, 6] = error_px + self.pixel - state.principal_point_px[self.view]
        J[:, 0, 7] = J[:, 1, 8] = 1.0
        omega = 2.0 * self.weight * self._omega(error_px, before)
        weighted = omega[:, None, None] * J

        H = torch.zeros(views, PER_VIEW, views, PER_VIEW, dtype=torch.float64)
        each = torch.zeros(views, PER_VIEW, PER_VIEW, dtype=torch.float64)
        each.index_add_(0, self.view, weighted.mT @ J)
        every = torch.arange(views)
        H[every, :, every] += each
        g = torch.zeros(views, PER_VIEW, dtype=torch.float64)
        g.index_add_(0, self.view, (weighted.mT @ error_px[..., None])[..., 0])

        of_points = self._sum(omega[:, None, None] * of_point.mT @ of_point)
        of_points = of_points + (1e-9 * of_points.diagonal(dim1=1, dim2=2).sum(dim=1) + 1e-30)[
            :, None, None
        ] * torch.eye(3, dtype=torch.float64)
        pull = self._sum((omega[:, None, None] * of_point.mT @ error_px[..., None])[..., 0])
        inverse = torch.linalg.inv(of_points)
        flat = H.view(views * PER_VIEW, views * PER_VIEW)
        order = torch.argsort(self.track, stable=True)
        track = self.track[order]
        mixed = (weighted.mT @ of_point)[order]
        for start in range(0, self.track_count, _TRACKS_AT_ONCE):
            stop = min(start + _TRACKS_AT_ONCE, self.track_count)
            first, last = torch.searchsorted(track, torch.tensor([start, stop])).tolist()
            table = torch.zeros((stop - start) * views, PER_VIEW, 3, dtype=torch.float64)
            table.index_add_(0, (track[first:last] - start) * views + self.view[order[first:last]], mixed[first:last])
            table = table.view(stop - start, views * PER_VIEW, 3)
            solved = table @ inverse[start:stop]
            across = table.permute(1, 0, 2).reshape(views * PER_VIEW, -1)
            flat -= solved.permute(1, 0, 2).reshape(views * PER_VIEW, -1) @ across.T
            g.view(-1).sub_((solved @ pull[start:stop, :, None])[..., 0].sum(dim=0))
        return Block(
            index=torch.arange(views * PER_VIEW),
            edges=torch.zeros(0, dtype=torch.int64),
            H=0.5 * (flat + flat.T),
            g=g.flatten(),
        )

    def _sum(self, values: Tensor) -> Tensor:
        """Sums over the observations of each track."""
        total = torch.zeros(self.track_count, *values.shape[1:], dtype=torch.float64)
        return total.index_add_(0, self.track, values)


def reprojection_term(
    matches: Matches, view_count: int, *, weight: float, objective: float, edge_count: int, unit: float
) -> ReprojectionTerm | None:
    """The term of some matches; None where they are too few to say anything.

    Args:
        matches: Verified matches.
        view_count: Number of views.
        weight: Factor on what the matches' number and accuracy deserve.
        objective: L, the mean loss of the point maps' observations without matches.
        edge_count: E.
        unit: Typical depth in the gauge's unit.
    """
    tracks = build_tracks(matches, view_count)
    if len(tracks.view) < _LEAST_TRACKS_PER_VIEW * view_count or weight == 0:
        return None
    return ReprojectionTerm(
        view=tracks.view,
        track=tracks.track,
        pixel=tracks.pixel,
        track_count=int(tracks.track.max()) + 1,
        weight=weight * objective / (2.0 * edge_count * _INDEPENDENT_PER_MAP),
        unit=unit,
        scale_px=SCALES_PX[0],
    )
