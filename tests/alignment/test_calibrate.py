"""Weights from residuals: Eq. 8 by hand, and whether weights order the true errors better than confidences do."""

import dataclasses

import pytest
import torch
from aligned_rooms import OFF, complete, exact, noisy, replaced, room

from lora3d_ns.alignment.align import align
from lora3d_ns.alignment.calibrate import calibrated_maps, pair_residuals
from lora3d_ns.alignment.observations import ObservationGrid, ObservationSettings
from lora3d_ns.alignment.state import AlignmentState
from lora3d_ns.evaluation.metrics import rank_correlation, sparsification_error
from lora3d_ns.types import PairGraph, PairPrediction, PairPredictions, Sim3, Views


def _two_flat_walls(make_views, confidence: torch.Tensor) -> tuple[Views, PairPredictions, AlignmentState]:
    """Two cameras in one place before a wall at depth 2, in units of 1 and of 5; the second edge's second map is moved
    0.3 towards the camera at its first pixel."""
    height, width = 2, 3
    views = make_views([(height, width)] * 2)
    focal_px = 4.0
    v, u = torch.meshgrid(torch.arange(2) + 0.5, torch.arange(3) + 0.5, indexing="ij")
    wall = 2.0 * torch.stack([(u - 1.5) / focal_px, (v - 1.0) / focal_px, torch.ones(2, 3)], dim=-1)
    off = wall.clone()
    off[0, 0] *= 1.0 - 0.3 / float(wall[0, 0].norm())
    pairs = (
        PairPrediction(
            points_first=wall, points_second=wall, confidence_first=confidence, confidence_second=confidence
        ),
        PairPrediction(
            points_first=5.0 * wall,
            points_second=5.0 * off,
            confidence_first=confidence,
            confidence_second=confidence,
        ),
    )
    state = AlignmentState(
        T_world_camera=torch.eye(4, dtype=torch.float64).repeat(2, 1, 1),
        focal_px=torch.full((2, 2), focal_px, dtype=torch.float64),
        principal_point_px=torch.tensor([[1.5, 1.0]] * 2, dtype=torch.float64),
        world_from_edge=Sim3(
            scale=torch.tensor([1.0, 0.2], dtype=torch.float64),
            rotation=torch.eye(3, dtype=torch.float64).repeat(2, 1, 1),
            translation=torch.zeros(2, 3, dtype=torch.float64),
        ),
    )
    graph = PairGraph(view_count=2, edges=((0, 1), (1, 0)))
    return views, PairPredictions(graph=graph, pairs=pairs), state


def _maps(views: Views, predictions: PairPredictions, state: AlignmentState, *, cutoff: float = 0.5):
    counted, everything = (
        ObservationGrid(views, predictions, ObservationSettings(cutoff=least), stride=1) for least in (cutoff, 0.0)
    )
    distances = [predictions.pairs[0].points_first.norm(dim=-1).flatten()] * 2
    return calibrated_maps(
        counted,
        everything,
        predictions,
        state,
        distances,
        loss_mu=0.1,
        weight_mu=0.1,
        smoothing=1e-6,
        cutoff=cutoff,
    )


def test_equation_8_by_hand(make_views) -> None:
    confidence = torch.tensor([[1.0, 2.0, 0.2], [1.0, 1.0, 1.0]])
    # View 0's first pixel is said to be at the wall by edge (0, 1) and 0.3 before it by edge (1, 0): more confidence
    # for the first of the two decides.
    views, predictions, state = _two_flat_walls(make_views, confidence)
    sure = dataclasses.replace(predictions.pairs[0], confidence_first=4.0 * confidence)
    predictions = PairPredictions(graph=predictions.graph, pairs=(sure, predictions.pairs[1]))
    maps = _maps(views, predictions, state)
    for depth in maps.depths:
        torch.testing.assert_close(depth, torch.full((2, 3), 2.0), atol=1e-3, rtol=0.0)
    # e = 0 but at that pixel, where e = 0.3 = 3 mu and w = C / (1 + 3)^2; also below the cut-off.
    expected = confidence.clone()
    torch.testing.assert_close(maps.weights[0][0], 4.0 * expected, rtol=2e-3, atol=1e-3)
    torch.testing.assert_close(maps.weights[0][1], expected, rtol=2e-3, atol=1e-3)
    torch.testing.assert_close(maps.weights[1][0], expected, rtol=2e-3, atol=1e-3)
    expected[0, 0] = 1.0 / 16.0
    torch.testing.assert_close(maps.weights[1][1], expected, rtol=5e-3, atol=1e-3)
    # Fused: the mean over both edges of view 0.
    fused = (4.0 * confidence + expected) / 2.0
    torch.testing.assert_close(maps.view_weights[0], fused, rtol=5e-3, atol=1e-3)
    assert float(maps.edge_residuals.max()) < 1e-3


def test_the_scale_of_a_pair_is_fitted_without_its_outlier(make_views) -> None:
    confidence = torch.ones(2, 3)
    _, predictions, _ = _two_flat_walls(make_views, confidence)
    wall = predictions.pairs[0].points_first
    first, second = pair_residuals(predictions.pairs[1], wall, wall)
    assert float(first.max()) < 1e-3
    assert float(second[0, 0]) == pytest.approx(0.3, abs=1e-3)
    assert float(second.flatten()[1:].max()) < 1e-3


def test_masked_pixels_count_for_nothing(make_views) -> None:
    views, predictions, state = _two_flat_walls(make_views, torch.ones(2, 3))
    mask = torch.ones(2, 3, dtype=torch.bool)
    mask[0, 0] = False
    maps = _maps(replaced(views, masks={0: mask}), predictions, state, cutoff=0.0)
    assert float(maps.weights[0][0][0, 0]) == 0.0
    assert float(maps.weights[1][1][0, 0]) == 0.0
    assert float(maps.view_weights[0][0, 0]) == 0.0
    assert float(maps.weights[0][1][0, 0]) == pytest.approx(1.0, abs=1e-3)


def test_an_edge_of_which_nothing_counts_has_no_residual(make_views) -> None:
    views, predictions, state = _two_flat_walls(make_views, torch.ones(2, 3))
    zero = torch.zeros(2, 3)
    silent = dataclasses.replace(predictions.pairs[1], confidence_first=zero, confidence_second=zero)
    predictions = PairPredictions(graph=predictions.graph, pairs=(predictions.pairs[0], silent))
    residuals = _maps(views, predictions, state).edge_residuals
    assert float(residuals[0]) < 1e-3
    assert bool(residuals[1].isnan())


def test_exact_predictions_keep_their_confidence() -> None:
    scene = align(room(3).views, exact(3), OFF)
    for index, pair in enumerate(exact(3).pairs):
        torch.testing.assert_close(scene.weights[index][0], pair.confidence_first, atol=0.01, rtol=0.0)
        torch.testing.assert_close(scene.weights[index][1], pair.confidence_second, atol=0.01, rtol=0.0)
    assert not any(bool(moving.any()) for moving in scene.moving)
    assert float(scene.diagnosis.edge_residuals.max()) < 1e-3
    assert float(scene.diagnosis.weighted_share.min()) == 1.0


def test_weights_order_the_true_errors_better_than_confidences() -> None:
    totals: dict[str, float] = dict.fromkeys(("ause_confidence", "ause_weight", "rank_confidence", "rank_weight"), 0.0)
    for seed in range(4):
        photos, (predictions, truth) = room(6, seed=seed), noisy(6, seed=seed)
        scene = align(photos.views, predictions, OFF)
        here: dict[str, float] = dict.fromkeys(totals, 0.0)
        for index in range(len(complete(6))):
            pair = predictions.pairs[index]
            error = torch.cat([map_.flatten() for map_ in truth.errors_m[index]])
            confidence = torch.cat([pair.confidence_first.flatten(), pair.confidence_second.flatten()])
            weight = torch.cat([map_.flatten() for map_ in scene.weights[index]])
            for name, values in (("confidence", confidence), ("weight", weight)):
                here[f"ause_{name}"] += sparsification_error(values, error) / len(complete(6))
                here[f"rank_{name}"] += rank_correlation(values, error) / len(complete(6))
        # In each room, not only on the mean.
        assert here["ause_weight"] < here["ause_confidence"]
        assert here["rank_weight"] < here["rank_confidence"]
        for name, value in here.items():
            totals[name] += value / 4
    assert totals["ause_weight"] < 0.75 * totals["ause_confidence"]
    assert totals["rank_weight"] < totals["rank_confidence"] - 0.1
