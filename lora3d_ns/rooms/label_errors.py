"""How far predictions and the labels made of them are from the truth of the photos they were made on."""

from jaxtyping import Bool, Float
from torch import Tensor

from lora3d_ns.evaluation.metrics import point_error
from lora3d_ns.pseudo_labels import label_points
from lora3d_ns.rooms.benchmark_scenes import RoomPhotos
from lora3d_ns.types import PairPredictions, PseudoLabels

_LEAST_PIXELS = 20
"""Pairs with fewer labels say little."""


def prediction_error_m(predictions: PairPredictions, photos: RoomPhotos) -> float:
    """Point error of the predictions over what does not move, mean over the pairs."""
    errors = [
        point_error((pair.points_first, pair.points_second), *truth_of_pair(photos, edge)) for edge, pair in predictions
    ]
    return sum(errors) / len(errors)


def label_error_m(labels: PseudoLabels, photos: RoomPhotos) -> float | None:
    """Point error that the labels themselves have, over the pixels that have one; mean over the pairs.

    None where no pair has enough of them.
    """
    errors = []
    for k, edge in enumerate(labels.graph.edges):
        true, static = truth_of_pair(photos, edge)
        valid = (labels.valid_first[k], labels.valid_second[k])
        chosen = [mask & labelled for mask, labelled in zip(static, valid, strict=True)]
        if int(sum(mask.sum() for mask in chosen)) >= _LEAST_PIXELS:
            errors.append(point_error(label_points(labels, edge), true, chosen))
    return sum(errors) / len(errors) if errors else None


def truth_of_pair(
    photos: RoomPhotos, edge: tuple[int, int]
) -> tuple[tuple[Float[Tensor, "_ _ 3"], Float[Tensor, "_ _ 3"]], list[Bool[Tensor, "_ _"]]]:
    """True points of both photos in the first one's frame, and what does not move in them."""
    return photos.true_points(edge), [photos.static[view] for view in edge]
