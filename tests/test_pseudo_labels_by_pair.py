"""Labels chosen by what the network said of each pair: its confidence, and whether its two orders agree."""

import dataclasses

import pytest
import torch
from alignment.aligned_rooms import OFF, noisy, room
from torch import Tensor

from lora3d_ns.alignment.align import align
from lora3d_ns.errors import InvalidDataError, SettingsError
from lora3d_ns.geometry.similarity import weighted_similarity
from lora3d_ns.pseudo_labels import PseudoLabelSettings, pseudo_labels
from lora3d_ns.types import AlignedScene, PairGraph, PairPrediction, PairPredictions

SHAPES = ((24, 32), (32, 24))
CUTOFF = 0.6


def settings(weights: str, **others: float) -> PseudoLabelSettings:
    return PseudoLabelSettings(
        weights=weights,  # pyright: ignore[reportArgumentType]
        weight_cutoff=CUTOFF,
        aimed_coverage=0.0,
        least_coverage=1e-9,
        **others,  # pyright: ignore[reportArgumentType]
    )


@pytest.fixture(scope="module", name="scene")
def _scene() -> tuple[AlignedScene, PairPredictions]:
    """A room as an alignment of faulty predictions left it, nothing of which moves."""
    predictions = noisy(4, shapes=SHAPES)[0]
    scene = align(room(4, shapes=SHAPES).views, predictions, OFF)
    return dataclasses.replace(scene, moving=tuple(torch.zeros_like(one) for one in scene.moving)), predictions


def naive_weights(pair: PairPrediction, other: PairPrediction, mu: float) -> tuple[list[float], list[float]]:
    """`C / (1 + e / mu)^2`, pixel by pixel, the other order laid over this one by the best similarity."""
    own = torch.cat([pair.points_first.reshape(-1, 3), pair.points_second.reshape(-1, 3)])
    others = torch.cat([other.points_second.reshape(-1, 3), other.points_first.reshape(-1, 3)])
    C = torch.cat([pair.confidence_first.flatten(), pair.confidence_second.flatten()])
    fitted = weighted_similarity(others, own, C + 1e-6)
    unit = mu * sum(float(point.norm()) for point in own) / len(own)
    weights = []
    for point, moved, confidence in zip(own, fitted.apply(others), C.tolist(), strict=True):
        weights.append(confidence / (1.0 + float((moved - point).norm()) / unit) ** 2)
    count = pair.confidence_first.numel()
    return weights[:count], weights[count:]


def test_confidence_decides_for_itself(scene: tuple[AlignedScene, PairPredictions]) -> None:
    aligned, predictions = scene
    labels = pseudo_labels(room(4, shapes=SHAPES).views, aligned, settings("confidence"), predictions=predictions)
    for (_, pair), first, second in zip(predictions, labels.valid_first, labels.valid_second, strict=True):
        assert torch.equal(first, pair.confidence_first > CUTOFF)
        assert torch.equal(second, pair.confidence_second > CUTOFF)


def test_orders_decide_as_in_the_loops(scene: tuple[AlignedScene, PairPredictions]) -> None:
    aligned, predictions = scene
    labels = pseudo_labels(
        room(4, shapes=SHAPES).views, aligned, settings("orders", orders_mu=0.05), predictions=predictions
    )
    by_edge = dict(predictions)
    chosen = 0
    for index, ((i, j), pair) in enumerate(predictions):
        for mask, naive in zip(
            (labels.valid_first[index], labels.valid_second[index]),
            naive_weights(pair, by_edge[j, i], 0.05),
            strict=True,
        ):
            near = (torch.tensor(naive) - CUTOFF).abs() < 1e-4
            expected = torch.tensor(naive) > CUTOFF
            assert bool(((mask.flatten() == expected) | near).all())
            chosen += int(mask.sum())
    confident = sum(
        int((pair.confidence_first > CUTOFF).sum() + (pair.confidence_second > CUTOFF).sum())
        for pair in predictions.pairs
    )
    assert 0 < chosen < 0.9 * confident


def mirrored(pair: PairPrediction) -> PairPrediction:
    """What a network that is the same in both orders would say of the pair in the other one, in a unit of its own."""
    return PairPrediction(
        points_first=2.0 * pair.points_second,
        points_second=2.0 * pair.points_first,
        confidence_first=pair.confidence_second,
        confidence_second=pair.confidence_first,
    )


def test_orders_that_agree_leave_the_confidence_and_so_does_a_pair_without_its_other_order(
    scene: tuple[AlignedScene, PairPredictions],
) -> None:
    aligned, predictions = scene
    by_edge = dict(predictions)
    agreeing = PairPredictions(
        graph=predictions.graph,
        pairs=tuple(by_edge[i, j] if i < j else mirrored(by_edge[j, i]) for i, j in predictions.graph.edges),
    )
    views = room(4, shapes=SHAPES).views
    by_orders, by_confidence = (
        pseudo_labels(views, aligned, settings(weights), predictions=agreeing) for weights in ("orders", "confidence")
    )

    def joined(masks: tuple[Tensor, ...]) -> Tensor:
        return torch.cat([mask.flatten() for mask in masks])

    # Only pixels whose confidence is the cut-off up to rounding may differ.
    assert (joined(by_orders.valid_first) != joined(by_confidence.valid_first)).float().mean() < 1e-3
    assert (joined(by_orders.valid_second) != joined(by_confidence.valid_second)).float().mean() < 1e-3

    some = [k for k, (i, j) in enumerate(predictions.graph.edges) if i < j]
    graph = PairGraph(view_count=4, edges=tuple(predictions.graph.edges[k] for k in some))
    alone = PairPredictions(graph=graph, pairs=tuple(predictions.pairs[k] for k in some))
    one_way = dataclasses.replace(
        aligned, graph=graph, weights=tuple(aligned.weights[k] for k in some), world_from_edge=aligned.world_from_edge
    )
    labels = pseudo_labels(views, one_way, settings("orders"), predictions=alone)
    for first, second, pair in zip(labels.valid_first, labels.valid_second, alone.pairs, strict=True):
        assert torch.equal(first, pair.confidence_first > CUTOFF)
        assert torch.equal(second, pair.confidence_second > CUTOFF)


@pytest.mark.parametrize("weights", ["confidence", "orders"])
def test_without_the_predictions_of_the_scene_nothing_can_be_said(
    scene: tuple[AlignedScene, PairPredictions], weights: str
) -> None:
    aligned, predictions = scene
    views = room(4, shapes=SHAPES).views
    with pytest.raises(InvalidDataError):
        pseudo_labels(views, aligned, settings(weights))
    fewer = PairGraph(view_count=4, edges=predictions.graph.edges[1:])
    other = PairPredictions(graph=fewer, pairs=predictions.pairs[1:])
    with pytest.raises(InvalidDataError):
        pseudo_labels(views, aligned, settings(weights), predictions=other)


def test_an_impossible_mu_is_refused() -> None:
    with pytest.raises(SettingsError):
        PseudoLabelSettings(orders_mu=0.0)
