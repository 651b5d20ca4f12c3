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

from lora3d_ns.alignment.objective import calibrated_weight
from lora3d_ns.errors import InvalidDataError, SettingsError, TooFewLabelsError
from lora3d_ns.geometry.camera import points_from_depth
from lora3d_ns.geometry.similarity import weighted_similarity
from lora3d_ns.types import AlignedScene, PairGraph, PairPrediction, PairPredictions, PseudoLabels, Views

PAPER_CUTOFF = 1.5


@dataclass(frozen=True, kw_only=True)
class PseudoLabelSettings:
    """Which pixels become labels.

    Attributes:
        weight_cutoff: A pixel is a label where its weight is above this (units of log-confidence).
        aimed_coverage: Where fewer pixels than this share are, the cut-off is lowered until so many are. 0 keeps it.
        lowest_cutoff: But never below this: what weighs less is believed by no pair.
        least_coverage: Fewer labels than this share of all pixels are too few to learn from.
        weights: What decides: the weight of the `view`, all its pairs together; as in the paper the `pair`'s own; the
            pair's raw `confidence`, which is what the paper argues against; or the pair's `orders`: confidence by how
            far its two orders agree, `C / (1 + e / mu)^2` with the distance e between them.
        moving: Whether pixels that no static geometry explains may be labels.
        orders_mu: Of the last, as a share of the pair's mean distance.
    """

    weight_cutoff: float = PAPER_CUTOFF
    aimed_coverage: float = 0.9
    lowest_cutoff: float = 0.05
    least_coverage: float = 0.1
    weights: Literal["view", "pair", "confidence", "orders"] = "view"
    moving: bool = False
    orders_mu: float = 0.1

    def __post_init__(self) -> None:
        if not self.weight_cutoff >= self.lowest_cutoff > 0:
            raise SettingsError(
                f"weight_cutoff {self.weight_cutoff} and lowest_cutoff {self.lowest_cutoff}",
                way_out="Use positive numbers, the lowest not above the other",
            )
        if not self.orders_mu > 0:
            raise SettingsError(f"orders_mu {self.orders_mu}", way_out="Use a positive share")
        if not (0 <= self.aimed_coverage <= 1 and 0 < self.least_coverage <= 1):
            raise SettingsError(
                f"aimed_coverage {self.aimed_coverage} and least_coverage {self.least_coverage}",
                way_out="Use shares between 0 and 1; least_coverage above 0",
            )


def pseudo_labels(
    views: Views,
    aligned: AlignedScene,
    settings: PseudoLabelSettings | None = None,
    *,
    predictions: PairPredictions | None = None,
) -> PseudoLabels:
    """Labels of all pairs of the scene, those that the alignment dropped included: they have most to learn.

    `X̃^{v,i}_p = T_i^-1 T_v D_v,p K_v^-1 (u, v, 1)_p where w_p > w_cutoff` (LoRA3D, Eq. 9). Masked pixels have
    none, and moving ones only if the settings say so.

    Args:
        views: The photos.
        aligned: The scene of these photos.
        settings: Which pixels.
        predictions: What the scene was made from, where `settings.weights` is about them.

    Raises:
        InvalidDataError: The scene is of other views, or predictions are needed and missing.
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
    allowed = unmasked
    if not settings.moving:
        allowed = [mask & ~moving for mask, moving in zip(unmasked, aligned.moving, strict=True)]
    pairs = [
        (weight.float(), view)
        for edge, weights in zip(aligned.graph.edges, _pair_weights(aligned, predictions, settings), strict=True)
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


def _pair_weights(
    aligned: AlignedScene, predictions: PairPredictions | None, settings: PseudoLabelSettings
) -> Sequence[tuple[Tensor, Tensor]]:
    """What decides about the pixels of each pair's two photos."""
    if settings.weights in ("view", "pair"):
        return aligned.weights
    if predictions is None or predictions.graph.edges != aligned.graph.edges:
        raise InvalidDataError(
            f"weights {settings.weights!r} without the predictions of the scene", way_out="Hand them in"
        )
    if settings.weights == "confidence":
        return [(pair.confidence_first, pair.confidence_second) for _, pair in predictions]
    by_edge = dict(predictions)
    found = []
    for (i, j), pair in predictions:
        other = by_edge.get((j, i))
        found.append(
            (pair.confidence_first, pair.confidence_second)
            if other is None
            else _agreement_of_orders(pair, other, settings.orders_mu)
        )
    return found


def _agreement_of_orders(pair: PairPrediction, other: PairPrediction, mu_share: float) -> tuple[Tensor, Tensor]:
    """`C / (1 + e / mu)^2` of a pair's two maps, e being their distance from the other order's, laid over them."""
    own = torch.cat([pair.points_first.reshape(-1, 3), pair.points_second.reshape(-1, 3)]).float()
    others = torch.cat([other.points_second.reshape(-1, 3), other.points_first.reshape(-1, 3)]).float()
    C = torch.cat([pair.confidence_first.flatten(), pair.confidence_second.flatten()]).float()
    distance = (weighted_similarity(others, own, C + 1e-6).apply(others) - own).norm(dim=1)
    weight = calibrated_weight(C, distance, mu_share * float(own.norm(dim=1).mean()))
    count = pair.confidence_first.numel()
    return weight[:count].view_as(pair.confidence_first), weight[count:].view_as(pair.confidence_second)


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
