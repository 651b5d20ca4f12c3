"""The pair graph: which pairs tie their photos, and lines between cameras."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from lora3d_ns.alignment.dropping import residual_limit
from lora3d_ns.report.assemble import LEAST_JOINING_OVERLAP
from lora3d_ns.scene_io.details import SceneDetails

PairKind = Literal["good", "thin", "bad"]
"""`bad`: left out, or it contradicts the others. `thin`: its photos share too little to be tied by it."""


@dataclass(frozen=True, kw_only=True)
class ViewedPair:
    """Two photos that the network looked at together, in one order or both.

    Attributes:
        views: Their indices, the smaller one first.
        overlap: Share of both photos' pixels that the other one sees.
        residual: Median distance of its points from the scene's, as a share of depth, of the better order that was not
            left out; None where nothing counted.
        kind: What it is good for.
        reasons: Why orders of it were left out.
    """

    views: tuple[int, int]
    overlap: float
    residual: float | None
    kind: PairKind
    reasons: tuple[str, ...]


@dataclass(frozen=True, eq=False, kw_only=True)
class Tubes:
    """Straight tubes of three sides, as one mesh.

    Attributes:
        vertices: Six per tube.
        faces: Six triangles per tube, seen from outside.
    """

    vertices: Float[Tensor, "vertices 3"]
    faces: Int64[Tensor, "faces 3"]


def pairs_of(details: SceneDetails | None) -> tuple[ViewedPair, ...]:
    """All pairs, both orders in one, worst first: bad ones, then by residual. None without details.

    The limits are those of the report.
    """
    if details is None:
        return ()
    residuals, contested = details.diagnosis.edge_residuals, details.diagnosis.contested_views
    limit = residual_limit(residuals) if len(residuals) else math.nan
    orders: dict[tuple[int, int], list[int]] = {}
    for index, (i, j) in enumerate(details.edges):
        orders.setdefault((min(i, j), max(i, j)), []).append(index)
    found = []
    for (i, j), indices in orders.items():
        kept = [index for index in indices if details.edges[index] not in details.dropped]
        known = [float(residuals[index]) for index in kept if not math.isnan(float(residuals[index]))]
        residual = min(known, default=None)
        overlap = float(details.overlap[indices[0]])
        kind: PairKind = "good"
        if residual is None or not residual <= limit or (i in contested) != (j in contested):
            kind = "bad"
        elif overlap < LEAST_JOINING_OVERLAP:
            kind = "thin"
        reasons = tuple(details.dropped[details.edges[index]] for index in indices if index not in kept)
        found.append(ViewedPair(views=(i, j), overlap=overlap, residual=residual, kind=kind, reasons=reasons))
    return tuple(
        sorted(
            found,
            key=lambda pair: (
                pair.kind != "bad",
                -math.inf if pair.residual is None else -pair.residual,
                pair.views,
            ),
        )
    )


def tubes(
    centres: Float[Tensor, "views 3"], pairs: Sequence[ViewedPair], radius: float, *, gap: float = 0.0
) -> Tubes | None:
    """Lines between the cameras of pairs, thick enough to be seen; None without any pair that has a length.

    Args:
        centres: Of the cameras.
        pairs: Which to draw.
        radius: Of the tubes.
        gap: How much is left free at either end, where there is room for it.
    """
    ends = torch.tensor([pair.views for pair in pairs], dtype=torch.int64).reshape(-1, 2)
    start, end = centres[ends[:, 0]].double(), centres[ends[:, 1]].double()
    length = (end - start).norm(dim=1, keepdim=True)
    some = length[:, 0] > 1e-9
    if not bool(some.any()):
        return None
    start, end, length = start[some], end[some], length[some]
    along = (end - start) / length
    cut = torch.minimum(torch.full_like(length, gap), 0.3 * length)
    start, end = start + cut * along, end - cut * along
    # Any direction that is not the tube's own gives two at right angles to it.
    other = torch.nn.functional.one_hot(along.abs().argmin(dim=1), 3).double()
    u = torch.nn.functional.normalize(torch.linalg.cross(along, other), dim=1)
    v = torch.linalg.cross(along, u)
    angles = torch.arange(3).double() * (2.0 * math.pi / 3.0)
    ring = radius * (torch.cos(angles)[None, :, None] * u[:, None] + torch.sin(angles)[None, :, None] * v[:, None])
    vertices = torch.cat([start[:, None] + ring, end[:, None] + ring], dim=1)
    side = torch.tensor(
        [[k, (k + 1) % 3, k + 3] for k in range(3)] + [[(k + 1) % 3, (k + 1) % 3 + 3, k + 3] for k in range(3)]
    )
    faces = side[None] + 6 * torch.arange(len(vertices))[:, None, None]
    return Tubes(vertices=vertices.reshape(-1, 3), faces=faces.reshape(-1, 3))
