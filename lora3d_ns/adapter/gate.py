"""Whether an adapter is used: pairs that it never learnt must agree better among themselves than before.

Three things are measured on the pairs held out from fine-tuning, before and after, each as a share of the pair's mean
distance: how far the predictions lie from the labels, how far the two orders of a pair lie from each other, and how far
the two 3D points of matched pixels do. The last two know nothing of the labels, so wrong labels do not please them. But
the orders of a pair can agree on what is wrong: where the matches of the pairs held out are too few to be asked, every
photo has to be matched with others, for only then has image evidence had a say in all labels.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lora3d_ns.adapter.loss import LabelBatch, mean_label_error
from lora3d_ns.alignment.matches import Matches
from lora3d_ns.errors import SettingsError
from lora3d_ns.geometry.similarity import weighted_similarity
from lora3d_ns.network.base import PairOutput
from lora3d_ns.pseudo_labels import label_points
from lora3d_ns.types import PairPrediction, PairPredictions, PseudoLabels

Edge = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class GateSettings:
    """When an adapter is accepted. The numbers were fitted on validation rooms only (BENCHMARKS.md).

    Attributes:
        most_label_error: Held-out distance from the labels after over before, at most.
        most_match_error: The same of matched points; it does not count with fewer than `least_matches` matches.
        most_order_error: The same of the disagreement of the two orders. It counts only where matches do not: a network
            that was trained to be alike in both orders may have to give some of that up for better maps.
        least_matches: See above.
        least_of_photo: Where matches do not count: matches that every photo must have with all others together. On few
            photos with little overlap, labels of cameras that no match has confirmed are often worse than what the
            network says by itself.
    """

    most_label_error: float = 1.0
    most_order_error: float = 2.2
    most_match_error: float = 2.2
    least_matches: int = 50
    least_of_photo: int = 20

    def __post_init__(self) -> None:
        limits = (self.most_label_error, self.most_order_error, self.most_match_error)
        if not all(limit > 0 for limit in limits) or min(self.least_matches, self.least_of_photo) < 0:
            raise SettingsError(f"limits of the gate {limits}", way_out="Use positive ratios; 1 asks for no loss")


@dataclass(frozen=True, kw_only=True)
class Consistency:
    """How well predictions of held-out pairs agree, each as a share of the pairs' mean distance; lower is better.

    Attributes:
        label_error: Distance from the labels; None where there are none.
        order_error: Distance between the two orders of a pair, after the similarity that fits them best; None without
            a pair in both orders.
        match_error: Median distance between the points of matched pixels, averaged over the pairs; None without
            matches.
        matches: Number of matches it is over.
    """

    label_error: float | None
    order_error: float | None
    match_error: float | None
    matches: int


@dataclass(frozen=True, kw_only=True)
class GateDecision:
    """What the gate found.

    Attributes:
        accepted: Whether the adapter is used.
        reason: Why, in words, with the numbers.
        before, after: Without and with the adapter.
    """

    accepted: bool
    reason: str
    before: Consistency
    after: Consistency


def consistency(predictions: PairPredictions, matches: Matches | None, *, label_error: float | None) -> Consistency:
    """How well the predictions of some pairs agree.

    Args:
        predictions: Of the held-out pairs.
        matches: 2D correspondences of the photos.
        label_error: Mean distance of these predictions from their labels, found elsewhere.
    """
    by_edge = dict(predictions)
    orders = [
        _order_error(by_edge[i, j], by_edge[j, i]) for i, j in predictions.graph.edges if i < j and (j, i) in by_edge
    ]
    matched, count = _match_errors(by_edge, matches)
    return Consistency(
        label_error=label_error,
        order_error=sum(orders) / len(orders) if orders else None,
        match_error=sum(matched) / len(matched) if matched else None,
        matches=count,
    )


def label_error(predictions: PairPredictions, labels: PseudoLabels) -> float | None:
    """Mean over pairs of the normalised distance from the labels; None where none of them has a label."""
    index = {edge: k for k, edge in enumerate(labels.graph.edges)}
    errors = []
    for edge, pair in predictions:
        k = index[edge]
        if not bool(labels.valid_first[k].any() or labels.valid_second[k].any()):
            continue
        first, second = label_points(labels, edge)
        batch = LabelBatch(
            points_first=first[None],
            points_second=second[None],
            valid_first=labels.valid_first[k][None],
            valid_second=labels.valid_second[k][None],
        )
        output = PairOutput(**{f.name: getattr(pair, f.name)[None] for f in dataclasses.fields(pair)})
        errors.append(float(mean_label_error(output, batch)))
    return sum(errors) / len(errors) if errors else None


def least_matched_photo(names: Sequence[str], matches: Matches | None) -> tuple[str, int] | None:
    """The photo with the fewest matches with all others together, and how many; None where matches are not used."""
    if matches is None:
        return None
    counts = [0] * len(names)
    for pair, found in matches.pairs.items():
        for view in pair:
            counts[view] += len(found)
    fewest = min(range(len(names)), key=counts.__getitem__)
    return names[fewest], counts[fewest]


def decide(
    before: Consistency,
    after: Consistency,
    settings: GateSettings | None = None,
    *,
    least_matched: tuple[str, int] | None = None,
) -> GateDecision:
    """Whether the pairs held out are the better for the adapter.

    Args:
        before, after: How well they agree without and with it.
        settings: Limits.
        least_matched: What `least_matched_photo` says.
    """
    settings = settings or GateSettings()
    compared = [("distance from the labels", before.label_error, after.label_error, settings.most_label_error)]
    if before.matches >= settings.least_matches:
        compared.append(("error of matches", before.match_error, after.match_error, settings.most_match_error))
    else:
        compared.append(
            ("disagreement of the two orders", before.order_error, after.order_error, settings.most_order_error)
        )
    said, refused, seen = [], [], 0
    for name, first, second, limit in compared:
        if first is None or second is None:
            continue
        seen += 1
        ratio = second / first if first > 0 else (1.0 if second == 0 else float("inf"))
        said.append(f"{name} {first:.3f} -> {second:.3f}")
        if not ratio <= limit:
            refused.append(f"{name} grew to {ratio:.2f} times (at most {limit:.2f})")
    if seen == 0:
        return GateDecision(
            accepted=False, reason="no pair was held out, so nothing speaks for it", before=before, after=after
        )
    if before.matches < settings.least_matches and least_matched is not None:
        name, count = least_matched
        if count < settings.least_of_photo:
            refused.append(
                f"they have {before.matches} matches (it takes {settings.least_matches} to ask these), and {name} has "
                f"{count} with all other photos (at least {settings.least_of_photo}), so nothing but the network "
                "vouches for the labels; photos that overlap more would"
            )
    reason = "held-out pairs: " + ", ".join(refused or said)
    return GateDecision(accepted=not refused, reason=reason, before=before, after=after)


def _order_error(forward: PairPrediction, backward: PairPrediction) -> float:
    """Mean distance of the points of (i, j) from those of (j, i), laid over them by the best similarity."""
    first = torch.cat([forward.points_first.reshape(-1, 3), forward.points_second.reshape(-1, 3)])
    second = torch.cat([backward.points_second.reshape(-1, 3), backward.points_first.reshape(-1, 3)])
    fitted = weighted_similarity(second, first, torch.ones(len(first)))
    return float((fitted.apply(second) - first).norm(dim=1).mean() / first.norm(dim=1).mean().clamp_min(1e-12))


def _match_errors(by_edge: Mapping[Edge, PairPrediction], matches: Matches | None) -> tuple[list[float], int]:
    errors, count = [], 0
    for (i, j), pair in by_edge.items():
        found = None if matches is None else matches.pairs.get((min(i, j), max(i, j)))
        if found is None or len(found) == 0:
            continue
        pixels = (found.pixels_first, found.pixels_second) if i < j else (found.pixels_second, found.pixels_first)
        first, second = _at(pair.points_first, pixels[0]), _at(pair.points_second, pixels[1])
        distance = torch.cat([pair.points_first.reshape(-1, 3), pair.points_second.reshape(-1, 3)]).norm(dim=1).mean()
        errors.append(float((first - second).norm(dim=1).median() / distance.clamp_min(1e-12)))
        count += len(found)
    return errors, count


def _at(points: Tensor, pixels: Tensor) -> Tensor:
    """The points of the pixels that hold these positions."""
    height, width = points.shape[:2]
    x, y = pixels.floor().long().unbind(dim=1)
    return points[y.clamp(0, height - 1), x.clamp(0, width - 1)]
