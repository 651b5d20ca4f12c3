"""What stays the same while one alignment is solved, and where it stands."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool
from torch import Tensor

from lora3d_ns.alignment.observations import ObservationGrid, ObservationSettings, stride_for
from lora3d_ns.alignment.reprojection import ReprojectionTerm
from lora3d_ns.alignment.settings import AlignmentSettings
from lora3d_ns.alignment.solve import ExtraTerm
from lora3d_ns.alignment.state import AlignmentState, Freedom, freedom
from lora3d_ns.types import PairPredictions, Views

SMOOTHING_SHARE = 1e-5
"""Residuals are smoothed over this share of the typical depth."""

Reasons = Mapping[tuple[int, int], str]
"""Dropped edges, each with why."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Standing:
    """Where an alignment stands, between stages and within them.

    Attributes:
        stage: How many stages lie behind.
        state: The scene.
        unit: Its typical depth in the gauge's unit.
        dropped: Edges without a say.
        match_objective: Mean loss of the point maps when the matches came in; None before.
        static: Pixels that do not belong to moving things, where those were looked for.
        settled: Whether the last stage met its tolerance.
    """

    stage: int
    state: AlignmentState
    unit: float
    dropped: Reasons
    match_objective: float | None = None
    static: tuple[Bool[Tensor, "_ _"], ...] | None = None
    settled: bool = False


@dataclass(frozen=True, eq=False, kw_only=True)
class Problem:
    """An alignment to be solved.

    Attributes:
        views: The photos.
        predictions: Their point maps.
        settings: How to align.
        focal_groups: Views of one number share a change of focal length; None holds it.
        principal_point: Which views' principal point is estimated.
        fixed_poses: Views whose pose is held.
        metric: Whether known poses fix the world's unit.
        uncut: Edges (by index) for which the confidence cut-off does not hold.
        extra: Further terms of the objective, without the matches'.
        matched: The matches' term, its weight for an objective of 1; None without.
        device: Where the passes over the observations run.
    """

    views: Views
    predictions: PairPredictions
    settings: AlignmentSettings
    focal_groups: Sequence[int | None]
    principal_point: Sequence[bool]
    fixed_poses: Sequence[int]
    metric: bool
    uncut: frozenset[int]
    extra: tuple[ExtraTerm, ...]
    matched: ReprojectionTerm | None
    device: torch.device

    @property
    def mu(self) -> float | None:
        """Of the robust loss, as a share of depth; None for Eq. 6."""
        return self.settings.mu if self.settings.objective == "robust" else None

    @property
    def coarse_stride(self) -> int:
        """Distance of the pixels on the coarse grid."""
        return stride_for(self.views, self.settings.coarse_pixels)

    def grid(self, stride: int, now: Standing, *, cut: bool = True) -> ObservationGrid:
        """The observations that have a say; with `cut` False also those below the confidence cut-off."""
        return ObservationGrid(
            self.views,
            self.predictions,
            ObservationSettings(
                cutoff=self.settings.cutoff if cut and self.mu is not None else 0.0,
                dropped=self._indices(now.dropped),
                uncut=self.uncut,
            ),
            stride=stride,
            masks=now.static,
            device=self.device,
        )

    def freedom(self, dropped: Collection[tuple[int, int]]) -> Freedom:
        """What may change where these edges take no part."""
        return freedom(
            len(self.views),
            len(self.predictions),
            focal_groups=self.focal_groups,
            principal_point=self.principal_point,
            fixed_poses=self.fixed_poses,
            dropped_edges=self._indices(dropped),
            scale_is_gauge=not self.metric,
        )

    def typical_depth(self, now: Standing) -> float:
        """In the world's unit."""
        return now.unit * (self.freedom(now.dropped).gauge(now.state) if self.metric else 1.0)

    def without(self, now: Standing, also: Reasons) -> Standing:
        """The same scene with further edges dropped. The gauge is the other edges' then, the typical depth the same."""
        dropped = {**now.dropped, **also}
        gauge = self.freedom(dropped).gauge(now.state) if self.metric else 1.0
        return replace(now, dropped=dropped, unit=self.typical_depth(now) / gauge)

    def _indices(self, edges: Collection[tuple[int, int]]) -> frozenset[int]:
        return frozenset(index for index, edge in enumerate(self.predictions.graph.edges) if edge in edges)
