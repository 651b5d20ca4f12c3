from dataclasses import replace

import pytest
import torch
from alignment_samples import one, plain_views, rooms
from torch import Tensor

from lora3d_ns.alignment.initialize import contradicting_edges, without_disconnecting
from lora3d_ns.alignment.relations import (
    _weighted_similarity,
    check_predictions,
    edge_relations,
    robust_similarity,
    view_shapes,
)
from lora3d_ns.alignment.state import rotation_from_vector
from lora3d_ns.errors import InvalidDataError, NonFinitePredictionError
from lora3d_ns.geometry.similarity import weighted_similarity
from lora3d_ns.pair_graph import CompleteGraph, WindowGraph, build_pair_graph
from lora3d_ns.rooms.simulated import NoiseSettings, edge_units, exact_predictions, noisy_predictions
from lora3d_ns.types import PairGraph, PairPrediction, PairPredictions, Sim3

MIXED = ((24, 32), (32, 24))


def complete(count: int) -> PairGraph:
    return build_pair_graph(CompleteGraph(), count)


def changed(predictions: PairPredictions, edge: int, **fields: Tensor) -> PairPredictions:
    pairs = list(predictions.pairs)
    pairs[edge] = replace(pairs[edge], **fields)
    return PairPredictions(graph=predictions.graph, pairs=tuple(pairs))


def test_own_shapes_and_edge_scales_of_exact_predictions() -> None:
    photos = rooms(4, shapes=MIXED)
    predictions = exact_predictions(photos, complete(4), seed=2)
    units = edge_units(predictions.graph, seed=2)
    for view, shape in enumerate(view_shapes(photos.views, predictions)):
        rows, columns = shape.pixels.unbind(dim=1)
        depth = photos.depths_m[view][rows, columns].double()
        typical = depth.median()
        # Float32 points: 3e-7 measured.
        torch.testing.assert_close(shape.points[:, 2], depth / typical, rtol=1e-5, atol=0)
        assert float(shape.points[:, 2].median()) == pytest.approx(1.0, rel=1e-12)
        assert [predictions.graph.edges[edge][0] for edge in shape.edges] == [view] * 3
        torch.testing.assert_close(shape.edge_scale, units[shape.edges] * typical, rtol=1e-5, atol=0)
        assert len({(int(row), int(column)) for row, column in shape.pixels}) > 700


def test_relations_of_exact_predictions_are_the_true_ones() -> None:
    photos = rooms(4, shapes=MIXED)
    predictions = exact_predictions(photos, complete(4))
    shapes = view_shapes(photos.views, predictions)
    relations = edge_relations(predictions, shapes)
    T = photos.cameras.T_world_camera.double()
    typical = [
        float(photos.depths_m[view][shape.pixels[:, 0], shape.pixels[:, 1]].median())
        for view, shape in enumerate(shapes)
    ]
    for index, (i, j) in enumerate(predictions.graph.edges):
        T_i_j = torch.linalg.inv(T[i]) @ T[j]
        here = one(relations.first_from_second, index)
        assert float(here.scale) == pytest.approx(typical[j] / typical[i], rel=1e-5)
        torch.testing.assert_close(here.rotation, T_i_j[:3, :3], rtol=0, atol=1e-5)
        torch.testing.assert_close(here.translation, T_i_j[:3, 3] / typical[i], rtol=0, atol=1e-5)
    assert float(relations.misfit.max()) < 1e-5
    assert float(relations.disagreement.max()) < 1e-5
    torch.testing.assert_close(relations.strength, torch.ones(12, dtype=torch.float64), rtol=1e-6, atol=0)


def test_a_masked_pixel_is_no_sample() -> None:
    photos = rooms(3)
    mask = torch.zeros(24, 32, dtype=torch.bool)
    mask[5:9, 10:30] = True
    views = replace(photos.views, masks=(None, mask, None))
    shape = view_shapes(views, exact_predictions(photos, complete(3)))[1]
    assert bool(mask[shape.pixels[:, 0], shape.pixels[:, 1]].all())
    assert len(torch.unique(shape.pixels, dim=0)) == int(mask.sum())


def test_a_mask_that_leaves_nothing_is_named() -> None:
    photos = rooms(3)
    views = replace(photos.views, masks=(None, torch.zeros(24, 32, dtype=torch.bool), None))
    with pytest.raises(InvalidDataError, match=r"simulated-01"):
        view_shapes(views, exact_predictions(photos, complete(3)))


def test_points_behind_the_camera_are_named() -> None:
    photos = rooms(2)
    predictions = exact_predictions(photos, complete(2))
    behind = changed(predictions, 1, points_first=-predictions.pairs[1].points_first)
    with pytest.raises(InvalidDataError, match=r"simulated-01 lies before"):
        view_shapes(photos.views, behind)


def test_an_outlier_map_does_not_change_the_own_shape() -> None:
    """One of four first maps is wild in a third of its pixels."""
    photos = rooms(5)
    predictions = exact_predictions(photos, complete(5))
    before = view_shapes(photos.views, predictions)[0]
    points = predictions.pairs[0].points_first.clone()
    points[:8] = 5.0 * torch.randn(8, 32, 3, generator=torch.Generator().manual_seed(0))
    after = view_shapes(photos.views, changed(predictions, 0, points_first=points))[0]
    assert float((after.points - before.points).norm(dim=1).max()) < 0.05
    assert float((after.edge_scale / before.edge_scale - 1).abs().max()) < 0.05


def test_the_similarity_by_matrix_products_is_the_one_of_centred_points() -> None:
    generator = torch.Generator().manual_seed(3)
    # Far from the origin for their extent, so that means which are taken out of sums cost digits.
    x, y = torch.randn(2, 5, 200, 3, dtype=torch.float64, generator=generator) + 100.0
    weights = torch.rand(5, 200, dtype=torch.float64, generator=generator)
    expected = weighted_similarity(x, y, weights)
    found = _weighted_similarity(x.mT, y.mT, weights)
    # 5e-12, 3e-10 and, 170 from the origin, 6e-9 measured.
    torch.testing.assert_close(found.scale, expected.scale, rtol=1e-9, atol=0)
    torch.testing.assert_close(found.rotation, expected.rotation, rtol=0, atol=1e-9)
    torch.testing.assert_close(found.translation, expected.translation, rtol=0, atol=1e-7)


def test_points_all_in_one_place_have_a_finite_similarity() -> None:
    source = torch.tensor([0.3, 0.1, 2.7], dtype=torch.float64).expand(50, 3)
    target = torch.randn(50, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    similarity, residual = robust_similarity(source, target, torch.ones(50, dtype=torch.float64))
    assert float(similarity.scale) < 0.1
    assert bool(torch.isfinite(similarity.translation).all())
    # One point can do no better than to lie amid the others: 1.32 measured.
    assert float(residual) < 2.0


@pytest.mark.parametrize("seed", range(3))
def test_a_third_of_outliers_hardly_moves_a_similarity(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    source = torch.randn(500, 3, dtype=torch.float64, generator=generator)
    true = Sim3(
        scale=torch.tensor(1.7, dtype=torch.float64),
        rotation=rotation_from_vector(torch.randn(3, dtype=torch.float64, generator=generator)),
        translation=torch.randn(3, dtype=torch.float64, generator=generator),
    )
    target = true.apply(source)
    noisy = target + 0.01 * torch.randn(500, 3, dtype=torch.float64, generator=generator)
    noisy[:150] = 6.0 * torch.randn(150, 3, dtype=torch.float64, generator=generator) + 3.0
    found, residual = robust_similarity(source, noisy, torch.ones(500, dtype=torch.float64))
    # Noise of 0.01 in 350 points: 0.0015 measured at most.
    assert float((found.apply(source) - target).norm(dim=1).max()) < 0.01
    assert 0.01 < float(residual) < 0.04


def test_similarities_of_a_batch_are_those_one_by_one() -> None:
    generator = torch.Generator().manual_seed(0)
    source, target = torch.randn(2, 3, 40, 3, dtype=torch.float64, generator=generator)
    weights = torch.rand(3, 40, dtype=torch.float64, generator=generator)
    together, residual = robust_similarity(source, target, weights)
    for index in range(3):
        alone, left = robust_similarity(source[index], target[index], weights[index])
        torch.testing.assert_close(one(together, index).rotation, alone.rotation, rtol=0, atol=1e-9)
        assert float(residual[index]) == pytest.approx(float(left), rel=1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_wrong_edges_disagree_most_and_are_exactly_those_left_out(seed: int) -> None:
    photos = rooms(6, shapes=MIXED)
    predictions, truth = noisy_predictions(photos, complete(6), NoiseSettings(wrong_edges=3), seed=seed)
    relations = edge_relations(predictions, view_shapes(photos.views, predictions))
    edges = predictions.graph.edges
    worst = torch.argsort(relations.disagreement, descending=True)[:3].tolist()
    assert sorted(edges[index] for index in worst) == sorted(truth.wrong_edges)
    assert sorted(contradicting_edges(predictions.graph, relations, {})) == sorted(truth.wrong_edges)


def test_edges_of_good_predictions_are_all_kept() -> None:
    photos = rooms(6, shapes=MIXED)
    for seed in range(3):
        predictions, _ = noisy_predictions(photos, complete(6), NoiseSettings(wrong_edges=0), seed=seed)
        relations = edge_relations(predictions, view_shapes(photos.views, predictions))
        assert contradicting_edges(predictions.graph, relations, {}) == {}


def test_what_is_left_out_already_is_not_named_again() -> None:
    photos = rooms(6)
    predictions, truth = noisy_predictions(photos, complete(6), NoiseSettings(wrong_edges=2), seed=0)
    relations = edge_relations(predictions, view_shapes(photos.views, predictions))
    first, second = truth.wrong_edges
    assert list(contradicting_edges(predictions.graph, relations, {first: "known"})) == [second]


def test_two_views_contradict_nothing() -> None:
    photos = rooms(2)
    predictions, _ = noisy_predictions(photos, complete(2), NoiseSettings(wrong_edges=1), seed=0)
    relations = edge_relations(predictions, view_shapes(photos.views, predictions))
    assert float(relations.disagreement.max()) > 0.3
    assert contradicting_edges(predictions.graph, relations, {}) == {}


def test_nothing_is_ever_disconnected() -> None:
    graph = build_pair_graph(WindowGraph(size=1), 4)
    everything = dict.fromkeys(graph.edges, "unwanted")
    gone = without_disconnecting(graph, everything, {})
    left = [edge for edge in graph.edges if edge not in gone]
    # A chain of four: each view must stay first in a pair, and each link in one order at least.
    assert {i for i, _ in left} == {0, 1, 2, 3}
    assert {frozenset(edge) for edge in left} == {frozenset(edge) for edge in ((0, 1), (1, 2), (2, 3))}
    assert len(gone) == 2
    assert list(gone) == [edge for edge in everything if edge in gone]


def test_what_is_gone_already_counts() -> None:
    graph = complete(3)
    already = {(0, 1): "before", (1, 0): "before"}
    gone = without_disconnecting(graph, {(0, 2): "now", (2, 0): "now", (2, 1): "now"}, already)
    # View 0 is first in (0, 2) only, and the link 0-2 is its last: (0, 2) stays. Of (2, 0) and (2, 1) one may go.
    assert gone == {(2, 0): "now"}


def test_predictions_of_other_views_are_named() -> None:
    photos = rooms(3)
    with pytest.raises(InvalidDataError, match="predictions of 2 views for 3"):
        check_predictions(photos.views, exact_predictions(rooms(2), complete(2)))
    with pytest.raises(InvalidDataError, match=r"simulated-00 has \(24, 32\)"):
        check_predictions(photos.views, exact_predictions(rooms(3, shapes=((32, 24),)), complete(3)))


@pytest.mark.parametrize("field", ["points_first", "points_second", "confidence_first", "confidence_second"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_value_that_is_not_finite_is_named(field: str, value: float) -> None:
    photos = rooms(3)
    predictions = exact_predictions(photos, complete(3))
    check_predictions(photos.views, predictions)
    broken = getattr(predictions.pairs[3], field).clone()
    broken.view(-1)[100] = value
    with pytest.raises(NonFinitePredictionError, match="simulated-01 and simulated-02"):
        check_predictions(photos.views, changed(predictions, 3, **{field: broken}))


def test_one_order_alone_is_named() -> None:
    views = plain_views([(9, 12)] * 3)
    graph = PairGraph(view_count=3, edges=((0, 1), (1, 0), (1, 2)))
    pair = PairPrediction(
        points_first=torch.ones(9, 12, 3),
        points_second=torch.ones(9, 12, 3),
        confidence_first=torch.ones(9, 12),
        confidence_second=torch.ones(9, 12),
    )
    with pytest.raises(InvalidDataError, match=r"1 pairs have one order only, \(2, 1\) is missing"):
        check_predictions(views, PairPredictions(graph=graph, pairs=(pair,) * 3))
