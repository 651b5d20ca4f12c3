"""What an alignment must bear: other units and orders, bad input, masks, motion, wrong pairs, many views, matches."""

import dataclasses
from typing import Any

import pytest
import torch
from aligned_rooms import (
    OFF,
    SMALL,
    ate_m,
    camera_differences,
    complete,
    exact,
    noisy,
    reordered,
    replaced,
    room,
    scaled,
    with_maps,
)

from lora3d_ns.alignment import align as align_module
from lora3d_ns.alignment.align import align
from lora3d_ns.alignment.settings import AlignmentSettings
from lora3d_ns.errors import DisconnectedViewsError, InvalidDataError, NonFinitePredictionError, SettingsError
from lora3d_ns.pair_graph import WindowGraph, build_pair_graph, connected_groups, symmetric_graph
from lora3d_ns.rooms.benchmark_scenes import RoomPhotos
from lora3d_ns.rooms.noisy_map import NoiseSettings
from lora3d_ns.rooms.simulated import exact_predictions, noisy_predictions
from lora3d_ns.types import AlignedScene, PairGraph, PairPrediction, PairPredictions, Views

# --- invariance -----------------------------------------------------------------------------------


@pytest.mark.parametrize("known_poses", [None, "fixed", "prior"])
def test_the_unit_of_the_predictions_does_not_matter(known_poses) -> None:
    photos, (predictions, _) = room(5), noisy(5)
    settings = OFF if known_poses is None else dataclasses.replace(OFF, known_poses=known_poses)
    poses = photos.cameras.T_world_camera
    views = photos.views
    if known_poses is not None:
        views = replaced(views, known_T_world_camera={0: poses[0], 3: poses[3]})
    # All in another unit, and each edge in one of its own.
    factors = 1000.0 * torch.linspace(-0.7, 0.7, len(predictions)).exp()
    other = with_maps(predictions, lambda index, pair: scaled(pair, float(factors[index])))
    first, second = (align(views, each, settings) for each in (predictions, other))
    assert first.dropped_edges.keys() == second.dropped_edges.keys()
    rotation_deg, translation = camera_differences(second.cameras.T_world_camera, first.cameras.T_world_camera)
    # The last steps gain 1e-4 of the objective: that much is left of where they began.
    assert rotation_deg < 0.02
    assert translation < 1e-3
    for (a, _), (b, _) in zip(first.weights, second.weights, strict=True):
        # A pixel whose maps fall into two groups may go with either: 0.1 % of them do.
        assert float(((a - b).abs() < 0.02 + 0.02 * b).float().mean()) > 0.995


def test_the_order_of_the_views_does_not_matter() -> None:
    photos, (predictions, _) = room(6), noisy(6)
    order = [3, 0, 5, 1, 4, 2]
    views, permuted = reordered(photos, predictions, order)
    first, second = align(photos.views, predictions, OFF), align(views, permuted, OFF)
    place = {old: new for new, old in enumerate(order)}
    assert {(place[i], place[j]) for i, j in first.dropped_edges} == set(second.dropped_edges)
    rotation_deg, translation = camera_differences(
        second.cameras.T_world_camera, first.cameras.T_world_camera[torch.tensor(order)]
    )
    assert rotation_deg < 0.02
    assert translation < 1e-3


def test_a_second_run_gives_the_same_numbers() -> None:
    photos, (predictions, _) = room(4), noisy(4)
    first, second = (align(photos.views, predictions, OFF) for _ in range(2))
    assert torch.equal(first.cameras.T_world_camera, second.cameras.T_world_camera)
    assert first.loss_history == second.loss_history


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("field", ["points_second", "confidence_first"])
def test_predictions_that_are_not_finite_are_refused(value: float, field: str) -> None:
    def spoilt(index: int, pair: PairPrediction) -> PairPrediction:
        if index != 3:
            return pair
        values = getattr(pair, field).clone()
        values[5, 7] = value
        return dataclasses.replace(pair, **{field: values})

    with pytest.raises(NonFinitePredictionError, match="simulated-01 and simulated-02"):
        align(room(3).views, with_maps(exact(3), spoilt), OFF)


def test_a_photo_without_confidence_is_refused() -> None:
    def silent(index: int, pair: PairPrediction) -> PairPrediction:
        i, j = complete(4).edges[index]
        changed = {
            name: torch.zeros_like(getattr(pair, name))
            for name, view in (("confidence_first", i), ("confidence_second", j))
            if view == 2
        }
        return dataclasses.replace(pair, **changed)

    with pytest.raises(InvalidDataError, match="no confidence in a single pixel of simulated-02"):
        align(room(4).views, with_maps(exact(4), silent), OFF)


def test_a_photo_of_low_confidence_is_used_without_the_cutoff() -> None:
    def unsure(index: int, pair: PairPrediction) -> PairPrediction:
        i, j = complete(4).edges[index]
        factors = [0.3 if view == 2 else 1.0 for view in (i, j)]
        return dataclasses.replace(
            pair,
            confidence_first=factors[0] * pair.confidence_first,
            confidence_second=factors[1] * pair.confidence_second,
        )

    photos = room(4)
    scene = align(photos.views, with_maps(exact(4), unsure), OFF)
    assert scene.diagnosis.uncut_views == (2,)
    assert any("hardly sure of anything in simulated-02" in warning for warning in scene.diagnosis.warnings)
    rotation_deg, translation = camera_differences(scene.cameras.T_world_camera, photos.cameras.T_world_camera)
    assert rotation_deg < 0.01
    assert translation < 1e-4


def test_one_pair_without_confidence_is_left_out() -> None:
    def silent(index: int, pair: PairPrediction) -> PairPrediction:
        if complete(4).edges[index] != (1, 3):
            return pair
        zero = torch.zeros_like(pair.confidence_first)
        return dataclasses.replace(pair, confidence_first=zero, confidence_second=zero)

    scene = align(room(4).views, with_maps(exact(4), silent), OFF)
    assert set(scene.dropped_edges) == {(1, 3)}
    assert "sure of next to nothing" in scene.dropped_edges[1, 3]
    assert scene.diagnosis.uncut_views == ()


def test_groups_that_do_not_connect_are_named() -> None:
    photos, graph = room(4), symmetric_graph(4, [(0, 1), (2, 3)])
    with pytest.raises(DisconnectedViewsError, match=r"simulated-00, simulated-01 \| simulated-02, simulated-03"):
        align(photos.views, exact_predictions(photos, graph), OFF)


def test_one_order_of_a_pair_alone_is_refused() -> None:
    photos, graph = room(3), PairGraph(view_count=3, edges=((0, 1), (0, 2), (1, 0), (1, 2), (2, 0)))
    with pytest.raises(InvalidDataError, match=r"\(2, 1\) is missing"):
        align(photos.views, exact_predictions(photos, graph), OFF)


def test_predictions_of_other_views_are_refused() -> None:
    with pytest.raises(InvalidDataError):
        align(room(4).views, exact(3), OFF)
    with pytest.raises(InvalidDataError, match="has \\(24, 32\\) pixels"):
        align(room(3, shapes=((24, 32),)).views, exact(3), OFF)


def test_a_mask_that_leaves_nothing_is_refused() -> None:
    views = replaced(room(3).views, masks={1: torch.zeros(SMALL, dtype=torch.bool)})
    with pytest.raises(InvalidDataError, match="mask of simulated-01"):
        align(views, exact(3), OFF)


def test_the_papers_solver_takes_no_matches() -> None:
    with pytest.raises(SettingsError, match="point maps only"):
        AlignmentSettings(solver="adam")


# --- cameras that do not move ---------------------------------------------------------------------


def _standing_still(*, turning: bool) -> tuple[RoomPhotos, PairPredictions]:
    """Photos from one place: the same one again and again, or turned on the spot."""
    photos = room(4)
    T = photos.cameras.T_world_camera.clone()
    T[:, :3, 3] = T[0, :3, 3]
    if turning:
        still = dataclasses.replace(photos, cameras=dataclasses.replace(photos.cameras, T_world_camera=T))
        return still, exact_predictions(still, complete(4))
    first = [0] * 4
    cameras = dataclasses.replace(photos.cameras, T_world_camera=T[first], K=photos.cameras.K[first])
    repeated: dict[str, Any] = {
        field.name: getattr(photos.views, field.name)[:1] * 4
        for field in dataclasses.fields(Views)
        if field.name != "names"
    }
    views = Views(names=photos.views.names, **repeated)
    depths, static = (photos.depths_m[0],) * 4, (photos.static[0],) * 4
    still = RoomPhotos(views=views, depths_m=depths, static=static, cameras=cameras)
    return still, exact_predictions(still, complete(4))


@pytest.mark.parametrize("turning", [True, False], ids=["pure rotation", "one photo repeated"])
@pytest.mark.parametrize("matches", ["off", "auto"])
def test_cameras_in_one_place_are_flagged(turning: bool, matches) -> None:
    photos, predictions = _standing_still(turning=turning)
    scene = align(photos.views, predictions, dataclasses.replace(OFF, matches=matches))
    assert scene.diagnosis.near_static
    assert any("cameras moved by only" in warning for warning in scene.diagnosis.warnings)
    T, T_true = (each.cameras.T_world_camera.double() for each in (scene, photos))
    turned = (torch.linalg.inv(T_true[0]) @ T_true)[:, :3, :3]
    torch.testing.assert_close(T[:, :3, :3], turned, atol=2e-3, rtol=0.0)
    for depth, true in zip(scene.depths, photos.depths_m, strict=True):
        ratio = depth / true
        assert float((ratio / ratio.median() - 1.0).abs().max()) < 0.01


# --- masks and motion -----------------------------------------------------------------------------


def _spoilt(predictions: PairPredictions, block: tuple[slice, slice], shift: float, *, seed: int) -> PairPredictions:
    """A block of pixels of every map moved by a vector of its own for each map, as long as `shift` of the depth."""
    generator = torch.Generator().manual_seed(seed)

    def moved(_index: int, pair: PairPrediction) -> PairPrediction:
        maps = []
        for points in (pair.points_first, pair.points_second):
            direction = torch.randn(3, generator=generator)
            points = points.clone()
            points[block] += shift * float(pair.points_first[..., 2].median()) * direction / direction.norm()
            maps.append(points)
        return dataclasses.replace(pair, points_first=maps[0], points_second=maps[1])

    return with_maps(predictions, moved)


def test_masked_pixels_have_no_say_and_no_weight() -> None:
    photos, block = room(4), (slice(8, 40), slice(16, 60))
    spoilt = _spoilt(exact(4), block, 5.0, seed=1)
    mask = torch.ones(SMALL, dtype=torch.bool)
    mask[block] = False
    views = replaced(photos.views, masks=dict.fromkeys(range(4), mask))
    scene = align(views, spoilt, OFF)
    rotation_deg, translation = camera_differences(scene.cameras.T_world_camera, photos.cameras.T_world_camera)
    assert rotation_deg < 0.01
    assert translation < 1e-4
    for first, second in scene.weights:
        for weight in (first, second):
            assert float(weight[~mask].max()) == 0.0
            assert float(weight[mask].min()) > 0.0
    assert all(float(weights[~mask].max()) == 0.0 for weights in scene.view_weights)


def test_moving_pixels_are_found_and_lose_their_say() -> None:
    photos, block = room(6), (slice(10, 30), slice(20, 44))
    clean, _ = noisy(6, wrong_edges=0, floater_share=0.0)
    spoilt = _spoilt(clean, block, 0.8, seed=2)
    scene = align(photos.views, spoilt, dataclasses.replace(OFF, mask_moving=True))
    inside = torch.zeros(SMALL, dtype=torch.bool)
    inside[block] = True
    found = torch.stack([moving[inside].float().mean() for moving in scene.moving])
    falsely = torch.stack([moving[~inside].float().mean() for moving in scene.moving])
    assert float(found.mean()) > 0.8
    assert float(falsely.mean()) < 0.02
    without_mask = align(photos.views, spoilt, OFF)
    untouched = align(photos.views, clean, OFF)
    assert ate_m(scene, photos) < 1.05 * ate_m(without_mask, photos)
    assert ate_m(scene, photos) < 1.5 * ate_m(untouched, photos)


# --- wrong pairs ----------------------------------------------------------------------------------


def test_wrong_pairs_are_left_out_with_a_reason() -> None:
    found, wrong, in_error = 0, 0, 0
    for seed in range(3):
        photos, (predictions, truth) = room(8, seed=seed), noisy(8, seed=seed, wrong_edges=3)
        scene = align(photos.views, predictions, OFF)
        wrong += len(truth.wrong_edges)
        found += len(set(truth.wrong_edges) & set(scene.dropped_edges))
        in_error += len(set(scene.dropped_edges) - set(truth.wrong_edges))
        for (i, j), reason in scene.dropped_edges.items():
            assert "%" in reason
            names = f"the pair simulated-{i:02d}, simulated-{j:02d} was left out: {reason}"
            assert names in scene.diagnosis.warnings
            index = scene.graph.edges.index((i, j))
            # Far from where the scene puts its pixels, it keeps little of its second map's confidence.
            share = scene.weights[index][1].sum() / predictions.pairs[index].confidence_second.sum()
            assert float(share) < 0.25
        others = [residual for residual in scene.diagnosis.edge_residuals.tolist() if residual == residual]
        assert max(others) < 10.0
    assert found == wrong
    assert in_error == 0


def test_a_dropped_pair_lies_where_its_first_photo_is() -> None:
    photos, (predictions, truth) = room(8), noisy(8, wrong_edges=3)
    scene = align(photos.views, predictions, OFF)
    for index, (i, j) in enumerate(scene.graph.edges):
        if (i, j) not in truth.wrong_edges:
            continue
        edge, T = scene.world_from_edge, scene.cameras.T_world_camera[i].double()
        torch.testing.assert_close(edge.rotation[index], T[:3, :3], atol=0.1, rtol=0.0)
        origin = (edge.translation[index] - T[:3, 3]).norm() / scene.diagnosis.unit
        assert float(origin) < 0.1


def test_leaving_out_never_disconnects() -> None:
    """A chain has no pair to spare: two wrong ones stay, and the views beyond them are called contested."""
    photos = room(5)
    graph = build_pair_graph(WindowGraph(size=1), 5)
    noise = NoiseSettings(wrong_edges=2, floater_share=0.0)
    predictions, _ = noisy_predictions(photos, graph, noise, seed=3)
    scene = align(photos.views, predictions, OFF)
    left = [edge for edge in graph.edges if edge not in scene.dropped_edges]
    assert len(connected_groups(PairGraph(view_count=5, edges=tuple(left)))) == 1
    assert {i for i, _ in left} == set(range(5))
    assert torch.isfinite(scene.cameras.T_world_camera).all()


def test_a_view_that_hangs_on_wrong_pairs_is_contested() -> None:
    """Every pair of one view puts it elsewhere: something must hold it, and it is said that nothing does well."""
    photos = room(5)
    generator = torch.Generator().manual_seed(0)

    def wrong(index: int, pair: PairPrediction) -> PairPrediction:
        i, j = complete(5).edges[index]
        if 4 not in (i, j):
            return pair
        turn = torch.linalg.qr(torch.randn(3, 3, generator=generator))[0]
        turn = turn * torch.linalg.det(turn)
        return dataclasses.replace(pair, points_second=pair.points_second @ turn.T + 2.0)

    scene = align(photos.views, with_maps(exact(5), wrong), OFF)
    assert scene.diagnosis.contested_views == (4,)
    assert any(warning.startswith("simulated-04: no pair") for warning in scene.diagnosis.warnings)
    rotation_deg, translation = camera_differences(scene.cameras.T_world_camera[:4], photos.cameras.T_world_camera[:4])
    assert rotation_deg < 0.1
    assert translation < 1e-3


# --- what is in the result ------------------------------------------------------------------------


def _expect_sound(scene: AlignedScene, views: Views) -> None:
    assert len(scene.loss_history) == len(scene.history_seconds) > 2
    assert all(after > before for before, after in zip(scene.history_seconds, scene.history_seconds[1:], strict=False))
    for depth, weight, moving, shape in zip(scene.depths, scene.view_weights, scene.moving, views.shapes, strict=True):
        assert depth.shape == weight.shape == moving.shape == shape
        assert float(depth.min()) > 0
        assert torch.isfinite(depth).all()
        assert torch.isfinite(weight).all()
    for values in (scene.cameras.T_world_camera, scene.cameras.K, scene.diagnosis.weighted_share):
        assert torch.isfinite(values).all()
    for values in (scene.world_from_edge.scale, scene.world_from_edge.rotation, scene.world_from_edge.translation):
        assert torch.isfinite(values).all()
    assert float(scene.world_from_edge.scale.min()) > 0
    assert torch.isfinite(scene.diagnosis.focal_spread_percent).all()
    assert torch.isfinite(scene.diagnosis.edge_residuals).all()
    assert scene.diagnosis.unit > 0
    assert scene.diagnosis.baseline > 0


@pytest.mark.parametrize("objective", ["robust", "plain"])
def test_a_result_is_sound(objective) -> None:
    photos, (predictions, _) = room(5), noisy(5)
    scene = align(photos.views, predictions, dataclasses.replace(OFF, objective=objective))
    _expect_sound(scene, photos.views)
    assert scene.diagnosis.converged
    assert scene.diagnosis.match_error_px is None
    assert scene.diagnosis.match_count == 0
    assert not scene.diagnosis.near_static
    depth = torch.stack([map_.median() for map_ in scene.depths]).median()
    assert scene.diagnosis.unit == pytest.approx(float(depth), rel=0.15)
    if objective == "plain":
        assert scene.dropped_edges == {}


def test_too_few_steps_are_not_called_converged() -> None:
    photos, (predictions, _) = room(5), noisy(5)
    settings = dataclasses.replace(OFF, coarse_iterations=2, full_iterations=1, tolerance=1e-6)
    assert not align(photos.views, predictions, settings).diagnosis.converged


def test_robust_alignment_beats_the_plain_one() -> None:
    ates: dict[str, float] = {"robust": 0.0, "plain": 0.0}
    for seed in range(2):
        photos, (predictions, _) = room(6, seed=seed), noisy(6, seed=seed, wrong_edges=3)
        for objective in ates:
            scene = align(photos.views, predictions, dataclasses.replace(OFF, objective=objective))
            ates[objective] += ate_m(scene, photos)
    assert ates["robust"] < 0.8 * ates["plain"]


def test_the_bar_ends_full(monkeypatch: pytest.MonkeyPatch) -> None:
    import contextlib

    advanced: list[int] = []
    totals: list[int] = []

    @contextlib.contextmanager
    def counted(_description: str, total: int, *, shown: bool):
        totals.append(total)
        assert not shown
        yield advanced.append

    monkeypatch.setattr(align_module, "progress_bar", counted)
    align(room(4).views, noisy(4)[0], OFF)
    assert sum(advanced) == totals[0]


def test_the_papers_solver_ends_near_the_fast_one() -> None:
    photos, (predictions, _) = room(3, shapes=((16, 24),)), noisy(3, shapes=((16, 24),), wrong_edges=0)
    for objective in ("robust", "plain"):
        fast = align(photos.views, predictions, dataclasses.replace(OFF, objective=objective))
        settings = dataclasses.replace(OFF, objective=objective, solver="adam")
        adam = align(photos.views, predictions, settings)
        assert adam.loss_history[-1] == pytest.approx(fast.loss_history[-1], rel=0.01)
        rotation_deg, translation = camera_differences(adam.cameras.T_world_camera, fast.cameras.T_world_camera)
        assert rotation_deg < 0.3
        assert translation < 0.03


def test_sixty_views_in_half_precision() -> None:
    photos = room(60, shapes=((16, 24),))
    graph = build_pair_graph(WindowGraph(size=3), 60)
    noise = NoiseSettings(wrong_edges=3, depth_warp_grid=(2, 4))
    predictions, _ = noisy_predictions(photos, graph, noise, seed=0)
    half = PairPredictions(graph=graph, pairs=tuple(pair.to(torch.float16) for pair in predictions.pairs))
    scene = align(photos.views, half, dataclasses.replace(OFF, coarse_iterations=8, full_iterations=2))
    _expect_sound(scene, photos.views)
    assert {weight.dtype for pair in scene.weights for weight in pair} == {torch.float16}
    _, translation = camera_differences(scene.cameras.T_world_camera, photos.cameras.T_world_camera)
    # A chain of 57 links drifts: 0.12 measured, in single precision as well.
    assert translation < 0.2


# --- matches --------------------------------------------------------------------------------------


def test_matches_improve_the_cameras() -> None:
    shape = (96, 128)
    ates = {"off": 0.0, "auto": 0.0}
    for seed in range(3):
        photos, (predictions, _) = room(4, shapes=(shape,), seed=seed), noisy(4, shapes=(shape,), seed=seed)
        ates["off"] += ate_m(align(photos.views, predictions, OFF), photos)
        scene = align(photos.views, predictions, dataclasses.replace(OFF, matches="auto"))
        ates["auto"] += ate_m(scene, photos)
        assert scene.diagnosis.match_count > 100
        assert scene.diagnosis.match_error_px is not None
        assert scene.diagnosis.match_error_px < 1.0
    assert ates["auto"] < 0.7 * ates["off"]


def test_photos_of_noise_are_aligned_by_their_point_maps() -> None:
    photos, (predictions, _) = room(4), noisy(4)
    generator = torch.Generator().manual_seed(0)
    noise = tuple(torch.rand(image.shape, generator=generator) for image in photos.views.images)
    views = dataclasses.replace(photos.views, images=noise)
    scene = align(views, predictions, dataclasses.replace(OFF, matches="auto"))
    assert any("too few matches" in warning for warning in scene.diagnosis.warnings)
    plain = align(views, predictions, OFF)
    assert torch.equal(scene.cameras.T_world_camera, plain.cameras.T_world_camera)
    assert not any("too few matches" in warning for warning in plain.diagnosis.warnings)
