"""AlignedScene -> PseudoLabels: what of the scene is believed well enough to teach it to the network.

LoRA3D's Eq. 9 (arXiv 2412.07746) takes a pixel where the calibrated weight of its pair is above 1.5. Two things differ
here, both measured on validation rooms (BENCHMARKS.md). The weight is the view's, not the pair's: a pair's own weight
is high where its prediction is right already, and what a pair gets wrong is what it has to learn. And where a network
is less sure of itself than the official one, so that 1.5 would leave next to nothing, the cut-off is lowered.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lora3d_ns.errors import InvalidDataError, SettingsError, TooFewLabelsError
from lora3d_ns.geometry.camera import points_from_depth
from lora3d_ns.types import AlignedScene, PairGraph, PseudoLabels, Views

PAPER_CUTOFF = 1.5


@dataclass(frozen=True, kw_only=True)
class PseudoLabelSettings:
    """Which pixels become labels.

    Attributes:
        weight_cutoff: A pixel is a label where its weight is above this (units of log-confidence).
        aimed_coverage: Where fewer pixels than this share are, the cut-off is lowered until so many are. 0 keeps it.
        lowest_cutoff: But never below this: what weighs less is believed by no pair.
        least_coverage: Fewer labels than this share of all pixels are too few to learn from.
        weights: Whose weight decides: the `view`'s, all its pairs together, or as in the paper the `pair`'s own.
    """

    weight_cutoff: float = PAPER_CUTOFF
    aimed_coverage: float = 0.9
    lowest_cutoff: float = 0.05
    least_coverage: float = 0.1
    weights: Literal["view", "pair"] = "view"

    def __post_init__(self) -> None:
        if not self.weight_cutoff >= self.lowest_cutoff > 0:
            raise SettingsError(
                f"weight_cutoff {self.weight_cutoff} and lowest_cutoff {self.lowest_cutoff}",
                way_out="Use positive numbers, the lowest not above the other",
            )
        if not (0 <= self.aimed_coverage <= 1 and 0 < self.least_coverage <= 1):
            raise SettingsError(
                f"aimed_coverage {self.aimed_coverage} and least_coverage {self.least_coverage}",
                way_out="Use shares between 0 and 1; least_coverage above 0",
            )


def pseudo_labels(views: Views, aligned: AlignedScene, settings: PseudoLabelSettings | None = None) -> PseudoLabels:
    """Labels of all pairs of the scene, those that the alignment dropped included: they have most to learn.

    `X̃^{v,i}_p = T_i^-1 T_v D_v,p K_v^-1 (u, v, 1)_p where w_p > w_cutoff` (LoRA3D, Eq. 9). Masked and moving pixels
    have none.

    Raises:
        InvalidDataError: The scene is of other views.
        TooFewLabelsError: Hardly anything of the scene is believed.
    """
    settings = settings or PseudoLabelSettings()
    if aligned.graph.view_count != len(views):
        raise InvalidDataError(
            f"a scene of {aligned.graph.view_count} views for {len(views)} photos", way_out="Align these photos"
        )
    unmasked = [
        torch.ones_like(moving) if mask is None else mask
        for mask, moving in zip(views.masks, aligned.moving, strict=True)
    ]
    allowed = [mask & ~moving for mask, moving in zip(unmasked, aligned.moving, strict=True)]
    pairs = [
        (weight.float(), view)
        for edge, weights in zip(aligned.graph.edges, aligned.weights, strict=True)
        for weight, view in zip(weights, edge, strict=True)
    ]
    per_view = [(weight, view) for view, weight in enumerate(aligned.view_weights)]
    deciding = per_view if settings.weights == "view" else pairs
    cutoff = _cutoff([weight[allowed[view]] for weight, view in deciding], settings)
    valid = [(weight > cutoff) & allowed[view] for weight, view in deciding]
    edges = aligned.graph.edges
    if settings.weights == "view":
        valid_first, valid_second = tuple(valid[i] for i, _ in edges), tuple(valid[j] for _, j in edges)
    else:
        valid_first, valid_second = tuple(valid[0::2]), tuple(valid[1::2])
    coverage = _coverage(aligned.graph, valid_first, valid_second, unmasked)
    _require_enough(coverage, cutoff, views, settings)
    return PseudoLabels(
        graph=aligned.graph,
        T_world_camera=aligned.cameras.T_world_camera.float(),
        K_network=_K_network(views, aligned.cameras.K),
        depths=aligned.depths,
        valid_first=valid_first,
        valid_second=valid_second,
        cutoff=cutoff,
        coverage=coverage,
    )


def labels_from_depths(
    views: Views,
    graph: PairGraph,
    *,
    T_world_camera: Float[Tensor, "views 4 4"],
    K: Float[Tensor, "views 3 3"],
    depths: Sequence[Float[Tensor, "_ _"]],
) -> PseudoLabels:
    """Labels from depth that is known, by a sensor or as truth: every unmasked pixel with a finite positive depth.

    Args:
        views: The photos.
        graph: The pairs to learn.
        T_world_camera: Poses, in the unit of the depths.
        K: Intrinsics in source pixels.
        depths: Depth along each view's z axis at network resolution; 0 or NaN where there is none.
    """
    known = [torch.isfinite(depth) & (depth > 0) for depth in depths]
    allowed = [torch.ones_like(seen) if mask is None else mask for mask, seen in zip(views.masks, known, strict=True)]
    valid = [seen & mask for seen, mask in zip(known, allowed, strict=True)]
    valid_first, valid_second = tuple(valid[i] for i, _ in graph.edges), tuple(valid[j] for _, j in graph.edges)
    return PseudoLabels(
        graph=graph,
        T_world_camera=T_world_camera.float(),
        K_network=_K_network(views, K),
        depths=tuple(torch.where(seen, depth, 1.0).float() for seen, depth in zip(known, depths, strict=True)),
        valid_first=valid_first,
        valid_second=valid_second,
        cutoff=0.0,
        coverage=_coverage(graph, valid_first, valid_second, allowed),
    )


def label_points(labels: PseudoLabels, edge: tuple[int, int]) -> tuple[Float[Tensor, "_ _ 3"], Float[Tensor, "_ _ 3"]]:
    """`T_i^-1 T_v D_v K_v^-1 (u, v, 1)` for both views v of an edge (i, j): the points of LoRA3D's Eq. 9."""
    first, second = (points_from_depth(labels.depths[view], labels.K_network[view]) for view in edge)
    T = labels.T_world_camera.double()
    T_i_j = (torch.linalg.inv(T[edge[0]]) @ T[edge[1]]).float()
    return first, second @ T_i_j[:3, :3].T + T_i_j[:3, 3]


def _K_network(views: Views, K: Tensor) -> Tensor:
    affines = views.source_from_network
    return torch.stack([affine.K_network_from_source(K[view]) for view, affine in enumerate(affines)]).float()


def _cutoff(weights: Sequence[Tensor], settings: PseudoLabelSettings) -> float:
    """The cut-off of the settings, or the lower one that leaves the share aimed for."""
    joined = torch.cat([weight.flatten() for weight in weights])
    # Rounded first: 0.9 of ten pixels are nine, whatever the binary digits say.
    wanted = math.ceil(round(settings.aimed_coverage * len(joined), 6))
    if wanted == 0:
        return settings.weight_cutoff
    last_wanted = joined.kthvalue(len(joined) - wanted + 1).values
    # A label weighs more than the cut-off: just below, so that the last one wanted and all that weigh as much are in.
    leaves_enough = float(torch.nextafter(last_wanted, torch.zeros_like(last_wanted)))
    return min(settings.weight_cutoff, max(settings.lowest_cutoff, leaves_enough))


def _coverage(
    graph: PairGraph,
    valid_first: Sequence[Bool[Tensor, "_ _"]],
    valid_second: Sequence[Bool[Tensor, "_ _"]],
    unmasked: Sequence[Bool[Tensor, "_ _"]],
) -> Tensor:
    labelled = [torch.zeros_like(mask) for mask in unmasked]
    for (i, j), first, second in zip(graph.edges, valid_first, valid_second, strict=True):
        labelled[i] |= first
        labelled[j] |= second
    shares = [float(seen.sum()) / max(1, int(mask.sum())) for seen, mask in zip(labelled, unmasked, strict=True)]
    return torch.tensor(shares, dtype=torch.float32)


def _require_enough(coverage: Tensor, cutoff: float, views: Views, settings: PseudoLabelSettings) -> None:
    mean = float(coverage.mean())
    if mean >= settings.least_coverage:
        return
    worst = ", ".join(f"{views.names[view]} {float(coverage[view]):.0%}" for view in coverage.argsort()[:3].tolist())
    raise TooFewLabelsError(
        f"the alignment believes only {mean:.0%} of the pixels (weight above {cutoff:.2g}; least in {worst}), "
        f"and {settings.least_coverage:.0%} are needed to learn from",
        way_out="Use the robust alignment as it is (arm `robust`), or add photos that overlap those of the scene more, "
        "from other places instead of turned on the spot",
    )
