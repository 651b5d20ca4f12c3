import functools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from lora3d_ns.conventions import pixel_centres
from lora3d_ns.errors import InvalidDataError, SettingsError
from lora3d_ns.evaluation.metrics import rank_correlation
from lora3d_ns.geometry.camera import focal_from_points, points_from_depth, project
from lora3d_ns.geometry.similarity import weighted_similarity
from lora3d_ns.pair_graph import CompleteGraph, WindowGraph, build_pair_graph
from lora3d_ns.rooms.benchmark_scenes import RoomPhotos
from lora3d_ns.rooms.cameras import pairwise_overlap
from lora3d_ns.rooms.simulated import (
    NoiseSettings,
    edge_units,
    exact_predictions,
    noisy_predictions,
    photograph_rooms,
)
from lora3d_ns.types import PairGraph, PairPredictions

MIXED = ((48, 64), (64, 48), (36, 64))
NO_NOISE: dict[str, Any] = {
    "depth_warp": 0.0,
    "rotation_deg": 0.0,
    "translation": 0.0,
    "pixel_noise": 0.0,
    "floater_share": 0.0,
    "wrong_edges": 0,
}


def only(**changed: Any) -> NoiseSettings:
    """One kind of noise and no other."""
    return NoiseSettings(**{**NO_NOISE, **changed})


@functools.cache
def photos_of(count: int, *, shapes: tuple[tuple[int, int], ...] = MIXED, scale: float = 2.5) -> RoomPhotos:
    return photograph_rooms(count, shapes=shapes, seed=1, focal_spread=0.1, source_scale=scale)


def graph_of(count: int) -> PairGraph:
    return build_pair_graph(CompleteGraph() if count <= 10 else WindowGraph(size=3), count)


def small_forty() -> tuple[RoomPhotos, PairGraph]:
    """Many edges of few pixels, for statistics over edges."""
    return photos_of(40, shapes=((12, 16),)), graph_of(40)


def network_K(photos: RoomPhotos, view: int) -> Tensor:
    return photos.views.source_from_network[view].K_network_from_source(photos.cameras.K[view].double())


def own_points_m(photos: RoomPhotos, view: int) -> Tensor:
    return points_from_depth(photos.depths_m[view].double(), network_K(photos, view))


def first_points_m(graph: PairGraph, predictions: PairPredictions, seed: int) -> list[Tensor]:
    return [
        pair.points_first.double() / unit
        for pair, unit in zip(predictions.pairs, edge_units(graph, seed=seed), strict=True)
    ]


def same(left: PairPredictions, right: PairPredictions, number: int, other: int) -> bool:
    a, b = left.pairs[number], right.pairs[other]
    names = ("points_first", "points_second", "confidence_first", "confidence_second")
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in names)


@pytest.mark.parametrize("count", [2, 3, 10, 40])
def test_photos_have_the_shapes_asked_for_and_overlap(count: int) -> None:
    photos = photos_of(count)
    wanted = tuple(MIXED[view % 3] for view in range(count))
    assert photos.views.shapes == wanted
    assert tuple(tuple(depth.shape) for depth in photos.depths_m) == wanted
    assert photos.cameras.sizes == tuple((round(2.5 * width), round(2.5 * height)) for height, width in wanted)
    assert len(set(photos.cameras.K[:, 0, 0].tolist())) == count
    assert all(float(image.min()) >= 0 and float(image.std()) > 0.02 for image in photos.views.images)
    # Overlap is measured between views of one shape: of photos that differ in nothing but the crop.
    alike = photos_of(count, shapes=((24, 32),), scale=1.0)
    overlap = pairwise_overlap(
        torch.stack(alike.depths_m)[None], alike.cameras.K[None], alike.cameras.T_world_camera[None]
    )[0]
    assert float(overlap.min()) > 0.2
    assert all(float(overlap[view, view + 1]) > 0.4 for view in range(count - 1))


def test_photos_of_one_lens() -> None:
    photos = photograph_rooms(3, shapes=((24, 32), (32, 24)), seed=1)
    assert photos.views.lens_groups == ("24x32",) * 3
    assert len(set(photos.cameras.K[:, 0, 0].tolist())) == 1
    assert photos.cameras.K[1, :2, 2].tolist() == [12.0, 16.0]
    other = photograph_rooms(3, shapes=((24, 32), (32, 24)), seed=2)
    assert not torch.equal(photos.cameras.T_world_camera, other.cameras.T_world_camera)
    again = photograph_rooms(3, shapes=((24, 32), (32, 24)), seed=1)
    assert all(torch.equal(a, b) for a, b in zip(photos.views.images, again.views.images, strict=True))


@pytest.mark.parametrize("count", [2, 3, 10, 40])
def test_exact_predictions_project_to_their_own_pixels(count: int) -> None:
    photos, graph = photos_of(count), graph_of(count)
    T = photos.cameras.T_world_camera.double()
    for (i, j), pair in exact_predictions(photos, graph, seed=5):
        unit = float(edge_units(PairGraph(view_count=count, edges=((i, j),)), seed=5))
        T_j_i = torch.linalg.inv(T[j]) @ T[i]
        second_m = (pair.points_second.double() / unit) @ T_j_i[:3, :3].T + T_j_i[:3, 3]
        for view, points in ((i, pair.points_first.double()), (j, second_m)):
            height, width = photos.views.shapes[view]
            pixels = project(points, network_K(photos, view))
            error_px = (pixels - pixel_centres(height, width, dtype=torch.float64)).norm(dim=-1)
            assert float(error_px.max()) < 1e-3
        depth_m = photos.depths_m[j].double()
        assert float(((second_m[..., 2] - depth_m) / depth_m).abs().max()) < 1e-5


def test_exact_predictions_agree_with_the_truth_of_the_benchmark() -> None:
    photos, graph = photos_of(3, scale=1.0), graph_of(3)
    predictions = exact_predictions(photos, graph, seed=0, dtype=torch.float64)
    units = edge_units(graph, seed=0)
    assert float(units.min()) >= 0.5
    assert float(units.max()) <= 2.0
    assert len(set(units.tolist())) == len(graph)
    for edge, pair, unit in zip(graph.edges, predictions.pairs, units, strict=True):
        for points, true_m in zip((pair.points_first, pair.points_second), photos.true_points(edge), strict=True):
            assert points.dtype == torch.float64
            torch.testing.assert_close((points / unit).float(), true_m, rtol=1e-5, atol=1e-5)
        assert bool((pair.confidence_first == 1).all())
        assert bool((pair.confidence_second == 1).all())
    assert not torch.equal(edge_units(graph, seed=1), units)


def test_no_noise_is_exact_but_for_the_confidence() -> None:
    photos, graph = photos_of(3), graph_of(3)
    noisy, truth = noisy_predictions(photos, graph, only(), seed=4)
    for pair, exact in zip(noisy.pairs, exact_predictions(photos, graph, seed=4).pairs, strict=True):
        torch.testing.assert_close(pair.points_first, exact.points_first)
        torch.testing.assert_close(pair.points_second, exact.points_second)
    assert truth.wrong_edges == ()
    assert torch.equal(truth.units, edge_units(graph, seed=4))
    assert max(float(error.max()) for errors in truth.errors_m for error in errors) < 1e-12


@pytest.mark.parametrize("count", [2, 3, 10, 40])
def test_one_wrong_edge_or_two_of_different_pairs(count: int) -> None:
    photos, graph = photos_of(count), graph_of(count)
    wanted = 1 if count == 2 else 2
    settings = NoiseSettings(wrong_edges=wanted)
    noisy, truth = noisy_predictions(photos, graph, settings, seed=7)
    again, truth_again = noisy_predictions(photos, graph, settings, seed=7)
    right, _ = noisy_predictions(photos, graph, NoiseSettings(wrong_edges=0), seed=7)
    assert len(truth.wrong_edges) == wanted == len({frozenset(edge) for edge in truth.wrong_edges})
    assert truth.wrong_edges == truth_again.wrong_edges
    assert set(truth.wrong_edges) <= set(graph.edges)
    for number, edge in enumerate(graph.edges):
        assert same(noisy, again, number, number)
        wrong = edge in truth.wrong_edges
        assert same(noisy, right, number, number) == (not wrong)
        # Even of a wrong edge, the first map is what it would be.
        assert torch.equal(noisy.pairs[number].points_first, right.pairs[number].points_first)
        assert torch.equal(truth.outliers[number][0], truth.floaters[number][0])
        assert bool(truth.outliers[number][1].all()) == wrong
        if wrong:
            depth_m = float(photos.depths_m[edge[1]].median())
            assert float(truth.errors_m[number][1].median()) > 0.25 * depth_m
            confidence = noisy.pairs[number].confidence_second
            assert float(confidence.median()) > 0.75
            assert float(confidence.quantile(0.05)) > 0.4


def test_wrong_maps_are_moved_by_the_similarity_described() -> None:
    photos, graph = small_forty()
    noisy, truth = noisy_predictions(photos, graph, only(wrong_edges=60), seed=0)
    exact = exact_predictions(photos, graph, seed=0)
    assert len(truth.wrong_edges) == 60
    for edge in truth.wrong_edges:
        number = graph.edges.index(edge)
        true = exact.pairs[number].points_second.double().reshape(-1, 3)
        moved = noisy.pairs[number].points_second.double().reshape(-1, 3)
        found = weighted_similarity(true, moved, torch.ones(len(true), dtype=torch.float64))
        assert 0.7 - 1e-4 < float(found.scale) < 1.4 + 1e-4
        angle_deg = math.degrees(math.acos((float(found.rotation.trace()) - 1) / 2))
        assert 59.9 < angle_deg < 150.1
        torch.testing.assert_close(found.apply(true), moved, rtol=1e-4, atol=1e-4)


def test_seeds_differ_and_a_sparser_graph_says_the_same() -> None:
    photos, graph = photos_of(10), graph_of(10)
    settings = NoiseSettings(wrong_edges=0)
    noisy, _ = noisy_predictions(photos, graph, settings, seed=0)
    other, _ = noisy_predictions(photos, graph, settings, seed=1)
    assert not any(same(noisy, other, number, number) for number in range(len(graph)))
    window = build_pair_graph(WindowGraph(size=1), 10)
    sparse, _ = noisy_predictions(photos, window, settings, seed=0)
    assert all(same(noisy, sparse, graph.edges.index(edge), k) for k, edge in enumerate(window.edges))
    chosen = {noisy_predictions(photos, window, only(wrong_edges=2), seed=seed)[1].wrong_edges for seed in range(6)}
    assert len(chosen) >= 5


def test_depth_warp_is_smooth_and_of_the_size_documented() -> None:
    photos, graph = photos_of(3), graph_of(3)
    predictions, _ = noisy_predictions(photos, graph, only(depth_warp=0.06), seed=2)
    warps = []
    for edge, points_m in zip(graph.edges, first_points_m(graph, predictions, 2), strict=True):
        true_m = own_points_m(photos, edge[0])
        torch.testing.assert_close(points_m[..., :2] / points_m[..., 2:], true_m[..., :2] / true_m[..., 2:])
        warp = torch.log(points_m[..., 2] / true_m[..., 2])
        assert float(warp.mean()) == pytest.approx(0.0, abs=1e-6)
        assert float(warp.std(correction=0)) == pytest.approx(0.06, rel=1e-4)
        # Knots are 7 pixels apart or more: a step from pixel to pixel is a fraction of the whole range.
        assert float(warp.diff(dim=1).abs().max()) < 0.2 * float(warp.max() - warp.min())
        warps.append(warp)
    # The same view in two edges is warped differently.
    assert graph.edges[0][0] == graph.edges[1][0]
    assert abs(float(torch.corrcoef(torch.stack([warps[0].flatten(), warps[1].flatten()]))[0, 1])) < 0.9


def test_pose_errors_are_of_the_size_documented() -> None:
    photos, graph = small_forty()
    predictions, _ = noisy_predictions(photos, graph, only(rotation_deg=1.5, translation=0.03), seed=3)
    exact = exact_predictions(photos, graph, seed=3)
    T = photos.cameras.T_world_camera.double()
    angles_deg, steps = [], []
    units = edge_units(graph, seed=3)
    for (i, j), pair, true, unit in zip(graph.edges, predictions.pairs, exact.pairs, units, strict=True):
        torch.testing.assert_close(pair.points_first, true.points_first)
        own_m = own_points_m(photos, j).reshape(-1, 3)
        found = weighted_similarity(
            own_m, pair.points_second.double().reshape(-1, 3) / unit, torch.ones(len(own_m), dtype=torch.float64)
        )
        assert float(found.scale) == pytest.approx(1.0, abs=1e-5)
        T_i_j = torch.linalg.inv(T[i]) @ T[j]
        R = T_i_j[:3, :3].T @ found.rotation
        angles_deg.append(math.degrees(math.acos(min(1.0, (float(R.trace()) - 1) / 2))))
        steps.append(float((found.translation - T_i_j[:3, 3]).norm() / photos.depths_m[j].median()))
    # 228 edges: the root mean squares are known to 3 %.
    assert math.sqrt(sum(angle**2 for angle in angles_deg) / len(graph)) == pytest.approx(1.5, rel=0.12)
    assert math.sqrt(sum(step**2 for step in steps) / len(graph)) == pytest.approx(0.03, rel=0.12)


def test_pixel_noise_is_of_the_size_documented() -> None:
    photos, graph = photos_of(3), graph_of(3)
    predictions, truth = noisy_predictions(photos, graph, only(pixel_noise=0.005), seed=2)
    for number, points_m in enumerate(first_points_m(graph, predictions, 2)):
        true_m = own_points_m(photos, graph.edges[number][0])
        share = (points_m - true_m) / true_m[..., 2:]
        for axis in range(3):
            assert float(share[..., axis].std()) == pytest.approx(0.005, rel=0.06)
        assert abs(float((share[:, 1:] * share[:, :-1]).mean())) < 0.1 * 0.005**2
        torch.testing.assert_close(
            truth.errors_m[number][0].double(), (points_m - true_m).norm(dim=-1), rtol=1e-2, atol=1e-5
        )


def test_focal_error_changes_the_focal_length_of_first_maps() -> None:
    photos, graph = photos_of(3), graph_of(3)
    predictions, _ = noisy_predictions(photos, graph, only(focal_error=0.05), seed=2)
    ratios = [
        float(
            focal_from_points(pair.points_first, torch.ones(pair.points_first.shape[:2])) / network_K(photos, i)[0, 0]
        )
        for (i, _), pair in predictions
    ]
    assert len({round(ratio, 5) for ratio in ratios}) == len(graph)
    assert 0.015 < torch.tensor(ratios).log().std().item() < 0.12


def test_floaters_are_a_fifth_of_each_map_in_blobs_far_off() -> None:
    photos, graph = photos_of(10), graph_of(10)
    _, truth = noisy_predictions(photos, graph, NoiseSettings(), seed=1)
    for masks in truth.floaters:
        for mask in masks:
            assert float(mask.float().mean()) == pytest.approx(0.2, abs=0.02)
            # Blobs: most neighbours of a floater float too; of scattered ones, a fifth would.
            assert float(mask[:, 1:][mask[:, :-1]].float().mean()) > 0.6
    predictions, truth = noisy_predictions(photos, graph, only(floater_share=0.2), seed=1)
    along_share = []
    for number, points_m in enumerate(first_points_m(graph, predictions, 1)):
        true_m, mask = own_points_m(photos, graph.edges[number][0]), truth.floaters[number][0]
        shift_m = points_m - true_m
        assert float(shift_m[~mask].norm(dim=-1).max()) < 1e-5
        shift_m, true_m = shift_m[mask], true_m[mask]
        along = shift_m[:, 2].abs() > 1e-3
        shares = torch.where(along, shift_m[:, 2].abs(), shift_m.norm(dim=-1)) / true_m[:, 2]
        assert float(shares.min()) > 0.2 - 1e-4
        assert float(shares.max()) < 0.6 + 1e-4
        assert float(torch.linalg.cross(shift_m[along], true_m[along]).norm(dim=-1).max()) < 1e-4
        along_share.append(float(along.float().mean()))
    assert 0.4 < sum(along_share) / len(along_share) < 0.8


def test_confidence_looks_like_the_networks() -> None:
    photos, graph = photos_of(10), graph_of(10)
    predictions, truth = noisy_predictions(photos, graph, NoiseSettings(wrong_edges=0), seed=1)
    pooled, medians, all_pixels = [], [], []
    for number, (_, pair) in enumerate(predictions):
        for role, confidence in enumerate((pair.confidence_first, pair.confidence_second)):
            error_m, floating = truth.errors_m[number][role], truth.floaters[number][role]
            assert -0.8 < rank_correlation(confidence[~floating], error_m[~floating]) < -0.3
            all_pixels.append(rank_correlation(confidence.flatten(), error_m.flatten()))
            assert float(confidence[floating].median()) > float(confidence[~floating].median())
            pooled.append(confidence.flatten())
        medians.append(float(pair.confidence_first.median()))
    # Over-confident floaters spoil much of what confidence says, but not all of it.
    assert -0.5 < sum(all_pixels) / len(all_pixels) < -0.05
    quantiles = torch.cat(pooled).quantile(torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95]))
    torch.testing.assert_close(quantiles, torch.tensor([0.18, 0.58, 0.84, 1.06, 1.33]), rtol=0.0, atol=0.05)
    assert len(set(medians)) == len(graph)


def test_errors_are_those_of_the_points() -> None:
    photos, graph = photos_of(3), graph_of(3)
    predictions, truth = noisy_predictions(photos, graph, NoiseSettings(focal_error=0.02), seed=9)
    exact = exact_predictions(photos, graph, seed=9)
    for number, (pair, true) in enumerate(zip(predictions.pairs, exact.pairs, strict=True)):
        unit = truth.units[number]
        for role, name in enumerate(("points_first", "points_second")):
            error_m = (getattr(pair, name) - getattr(true, name)).norm(dim=-1) / unit
            torch.testing.assert_close(truth.errors_m[number][role], error_m.float(), rtol=1e-4, atol=1e-5)
    ordinary = [error[~out] for errors, outs in zip(truth.errors_m, truth.outliers, strict=True)
                for error, out in zip(errors, outs, strict=True)]  # fmt: skip
    assert 0.05 < float(torch.cat(ordinary).median()) < 0.35


@pytest.mark.parametrize(
    "changed",
    [
        {"depth_warp": -0.1},
        {"floater_share": 1.2},
        {"confidence_agreement": -0.5},
        {"floater_shift": (0.6, 0.2)},
        {"depth_warp_grid": (1, 6)},
        {"wrong_rotation_deg": (60.0, 200.0)},
        {"wrong_edges": -1},
    ],
)
def test_settings_out_of_range(changed: dict[str, Any]) -> None:
    with pytest.raises(SettingsError):
        NoiseSettings(**changed)


def test_what_does_not_fit_is_refused() -> None:
    photos = photos_of(2)
    with pytest.raises(SettingsError, match="wrong edges among 1 pairs"):
        noisy_predictions(photos, graph_of(2), NoiseSettings(), seed=0)
    with pytest.raises(InvalidDataError):
        exact_predictions(photos, graph_of(3))
    with pytest.raises(SettingsError):
        photograph_rooms(2, shapes=(), seed=0)
    with pytest.raises(SettingsError):
        photograph_rooms(0, shapes=((24, 32),), seed=0)
