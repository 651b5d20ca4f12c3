"""The gate: what it measures on pairs that were held out, and when it refuses."""

import dataclasses

import pytest
import torch

from lora3d_ns.adapter.gate import (
    Consistency,
    GateSettings,
    consistency,
    decide,
    label_error,
    least_matched_photo,
)
from lora3d_ns.alignment.matches import Matches
from lora3d_ns.alignment.verification import PairMatches
from lora3d_ns.errors import SettingsError
from lora3d_ns.pair_graph import CompleteGraph, build_pair_graph
from lora3d_ns.pseudo_labels import labels_from_depths
from lora3d_ns.rooms.benchmark_scenes import RoomPhotos, make_scene
from lora3d_ns.types import PairPrediction, PairPredictions

GOOD = Consistency(label_error=0.1, order_error=0.05, match_error=0.04, matches=500)


@pytest.fixture(scope="module")
def room() -> RoomPhotos:
    return make_scene("nominal", 0, size=(32, 32), seed_offset=700).calibration


def predictions_of(room: RoomPhotos, *, noise_m: float = 0.0) -> PairPredictions:
    """The truth of three photos, each pair in a unit of its own, with noise."""
    graph = build_pair_graph(CompleteGraph(), 3)
    generator = torch.Generator().manual_seed(3)
    pairs = []
    for k, edge in enumerate(graph.edges):
        first, second = (
            (1.0 + 0.5 * k) * (points + noise_m * torch.randn(points.shape, generator=generator))
            for points in room.true_points(edge)
        )
        pairs.append(
            PairPrediction(
                points_first=first,
                points_second=second,
                confidence_first=torch.ones(32, 32),
                confidence_second=torch.ones(32, 32),
            )
        )
    return PairPredictions(graph=graph, pairs=tuple(pairs))


def true_matches(room: RoomPhotos) -> Matches:
    """Pixels of photo 0 and where the same points fall in photo 1, to the nearest pixel centre that shows them."""
    from lora3d_ns.geometry.camera import project

    first = room.true_points((1, 0))[1]
    pixels = project(first.reshape(-1, 3), room.cameras.K[1]).floor() + 0.5
    rows = torch.arange(32 * 32)
    own = torch.stack([rows % 32 + 0.5, rows // 32 + 0.5], dim=1)
    inside = (pixels > 0).all(dim=1) & (pixels < 32).all(dim=1) & (first.reshape(-1, 3)[:, 2] > 0)
    seen = room.depths_m[1][pixels[:, 1].long().clamp(0, 31), pixels[:, 0].long().clamp(0, 31)]
    visible = inside & ((seen / first.reshape(-1, 3)[:, 2] - 1).abs() < 0.05)
    assert int(visible.sum()) > 50
    return Matches(
        pairs={(0, 1): PairMatches(pixels_first=own[visible].double(), pixels_second=pixels[visible].double())}
    )


def test_the_truth_is_consistent_and_noise_is_measured_in_every_way(room: RoomPhotos) -> None:
    matches = true_matches(room)
    exact = consistency(predictions_of(room), matches, label_error=None)
    noisy = consistency(predictions_of(room, noise_m=0.5), matches, label_error=None)
    assert exact.order_error is not None
    assert exact.order_error < 1e-5
    # Matched pixels are whole ones, so their points lie up to a pixel's footprint apart: some percent of the distance.
    assert exact.match_error is not None
    assert exact.match_error < 0.05
    assert exact.matches == 2 * len(matches.pairs[0, 1])
    assert noisy.order_error is not None
    assert noisy.match_error is not None
    distance = torch.cat([points.reshape(-1, 3) for points in room.true_points((0, 1))]).norm(dim=1).mean()
    # Two independent errors of 0.5 m in each axis: their mean length is 0.5 * sqrt(2) * 1.596.
    assert noisy.order_error == pytest.approx(0.5 * 2**0.5 * 1.596 / float(distance), rel=0.15)
    assert noisy.match_error > 3 * exact.match_error


def test_label_error_is_the_normalised_distance_over_the_labels_only(room: RoomPhotos) -> None:
    views = room.views.select([0, 1, 2])
    depths = [depth.clone() for depth in room.depths_m[:3]]
    labels = labels_from_depths(
        views,
        build_pair_graph(CompleteGraph(), 3),
        T_world_camera=room.cameras.T_world_camera[:3],
        K=room.cameras.K[:3],
        depths=depths,
    )
    assert label_error(predictions_of(room), labels) == pytest.approx(0.0, abs=1e-5)
    noisy = label_error(predictions_of(room, noise_m=0.3), labels)
    assert noisy is not None
    assert noisy > 0.02
    nothing = labels_from_depths(
        views,
        build_pair_graph(CompleteGraph(), 3),
        T_world_camera=room.cameras.T_world_camera[:3],
        K=room.cameras.K[:3],
        depths=[torch.zeros_like(depth) for depth in depths],
    )
    assert label_error(predictions_of(room), nothing) is None


@pytest.mark.parametrize(
    ("change", "accepted", "says"),
    [
        ({"label_error": 0.05}, True, "0.100 -> 0.050"),
        ({"label_error": 0.11}, False, "labels grew"),
        ({"label_error": 0.05, "order_error": 0.2}, True, "error of matches 0.040 -> 0.040"),
        ({"label_error": 0.05, "order_error": 0.2, "matches": 10}, False, "two orders grew to 4.00 times"),
        ({"label_error": 0.05, "match_error": 0.2}, False, "matches grew to 5.00 times"),
        ({"label_error": 0.05, "match_error": float("nan")}, False, "matches grew"),
    ],
)
def test_any_measure_that_got_worse_refuses(change: dict, accepted: bool, says: str) -> None:
    before = dataclasses.replace(GOOD, matches=change.get("matches", GOOD.matches))
    decision = decide(before, dataclasses.replace(GOOD, **change))
    assert decision.accepted is accepted
    assert says in decision.reason


def test_few_matches_have_no_say_and_missing_measures_neither() -> None:
    few = dataclasses.replace(GOOD, matches=10)
    after = dataclasses.replace(few, label_error=0.05, match_error=1.0)
    assert decide(few, after).accepted
    alone = Consistency(label_error=0.1, order_error=None, match_error=None, matches=0)
    assert decide(alone, dataclasses.replace(alone, label_error=0.09)).accepted
    nothing = Consistency(label_error=None, order_error=None, match_error=None, matches=0)
    refused = decide(nothing, nothing)
    assert not refused.accepted
    assert "no pair was held out" in refused.reason


@pytest.mark.parametrize(
    ("held_out_matches", "of_photo", "accepted"), [(0, 19, False), (0, 20, True), (49, 0, False), (50, 0, True)]
)
def test_where_matches_cannot_be_asked_every_photo_must_have_some(
    held_out_matches: int, of_photo: int, accepted: bool
) -> None:
    before = dataclasses.replace(GOOD, matches=held_out_matches)
    after = dataclasses.replace(before, label_error=0.05)
    decision = decide(before, after, least_matched=("left.jpg", of_photo))
    assert decision.accepted is accepted
    assert ("left.jpg has" in decision.reason) is not accepted
    # Nothing is asked of matches where they are not used.
    assert decide(before, after).accepted


def test_the_least_matched_photo_is_found() -> None:
    def some(count: int) -> PairMatches:
        pixels = torch.rand(count, 2, dtype=torch.float64)
        return PairMatches(pixels_first=pixels, pixels_second=pixels)

    matches = Matches(pairs={(0, 1): some(30), (1, 2): some(12), (0, 3): some(15)})
    assert least_matched_photo(("a", "b", "c", "d"), matches) == ("c", 12)
    assert least_matched_photo(("a", "b", "c", "d", "e"), matches) == ("e", 0)
    assert least_matched_photo(("a", "b"), None) is None


def test_limits_must_be_positive() -> None:
    with pytest.raises(SettingsError):
        GateSettings(most_match_error=0.0)
