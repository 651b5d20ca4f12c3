"""Rows that fail alone, simulated pairs made in threads, and the network that says what it is told."""

import copy
import dataclasses
from collections.abc import Iterator

import pytest
import torch
from simulated_cuda import simulated_cuda

from lora3d_ns.adapter.lora import LoraSettings, adapted
from lora3d_ns.errors import InvalidDataError, MissingPackageError
from lora3d_ns.gpu_check.common import TINY_NETWORK, independent, number
from lora3d_ns.gpu_check.rows import Row
from lora3d_ns.gpu_check.simulation import TellingDust3r, ToldAnswers, print_of, simulated_predictions
from lora3d_ns.pair_graph import CompleteGraph, build_pair_graph
from lora3d_ns.predict import PredictionSettings, predict_pairs
from lora3d_ns.rooms.noisy_map import NoiseSettings
from lora3d_ns.rooms.simulated import RoomPhotos, noisy_predictions, photograph_rooms
from lora3d_ns.types import PairPredictions

CPU = torch.device("cpu")
QUIET = PredictionSettings(show_progress=False)
GRAPH = build_pair_graph(CompleteGraph(), 3)


@pytest.fixture(name="photos", scope="module")
def _photos() -> RoomPhotos:
    return photograph_rooms(3, shapes=[(32, 48), (48, 32)], seed=0)


def test_what_fails_leaves_a_row_and_what_came_before() -> None:
    def rows(error: Exception) -> Iterator[Row]:
        yield Row(name="first", value=1.0)
        raise error

    assert list(independent("both", lambda: [Row(name="first"), Row(name="second")]))[1].name == "second"
    broken = list(independent("both", lambda: rows(ZeroDivisionError("by zero"))))
    assert broken == [
        Row(name="first", value=1.0),
        Row(name="both", note="ZeroDivisionError: by zero", failed=True),
    ]
    # What is not installed is no failure.
    missing = list(independent("peer", lambda: rows(MissingPackageError("it is not there", way_out="Install it"))))
    assert missing[1] == Row(name="peer", note="it is not there. Install it")
    assert missing[1].met is None


def test_only_a_number_is_a_figure() -> None:
    assert number({"a": 3}, "a") == 3.0
    with pytest.raises(AssertionError):
        number({"a": None}, "a")


def test_pairs_simulated_in_threads_are_the_same(photos: RoomPhotos) -> None:
    noise = NoiseSettings(wrong_edges=2)
    wanted, _ = noisy_predictions(photos, GRAPH, dataclasses.replace(noise, wrong_edges=0), seed=3)
    threads = torch.get_num_threads()
    found = simulated_predictions(photos, GRAPH, noise, seed=3)
    assert torch.get_num_threads() == threads
    assert_same(found, wanted)


def assert_same(found: PairPredictions, wanted: PairPredictions) -> None:
    for (edge, ours), (_, theirs) in zip(found, wanted, strict=True):
        for field in dataclasses.fields(ours):
            assert torch.equal(getattr(ours, field.name), getattr(theirs, field.name)), (edge, field.name)


def test_the_network_works_in_earnest_and_says_what_it_is_told(photos: RoomPhotos) -> None:
    plain, after = (
        simulated_predictions(photos, GRAPH, NoiseSettings(depth_warp=warp, wrong_edges=0), seed=0)
        for warp in (0.1, 0.01)
    )
    network = TellingDust3r(TINY_NETWORK).eval()
    own = predict_pairs(photos.views, GRAPH, network, QUIET)
    network.told = ToldAnswers(photos.views, plain, after, CPU)
    # Turned and upright photos, in batches of several.
    assert_same(predict_pairs(photos.views, GRAPH, network, QUIET), plain)
    student = adapted(network, LoraSettings(), seed=0)
    assert isinstance(student, TellingDust3r)
    assert student.told is network.told
    assert copy.deepcopy(network).told is network.told
    assert_same(predict_pairs(photos.views, GRAPH, student, QUIET), after)
    assert network.told.answered == 2 * len(GRAPH)
    # It learns from its own answers.
    images = [photos.views.images[view][None] for view in (0, 1)]
    output = student(*images)
    assert output.points_first.requires_grad
    expected = dict(own)[0, 1]
    torch.testing.assert_close(output.points_first[0].detach(), expected.points_first)
    assert network.told.answered == 2 * len(GRAPH)


def test_what_it_is_told_comes_from_its_device(photos: RoomPhotos) -> None:
    plain, _ = noisy_predictions(photos, GRAPH, NoiseSettings(wrong_edges=0), seed=0)
    with simulated_cuda():
        network = TellingDust3r(TINY_NETWORK).to("cuda").eval()
        network.told = ToldAnswers(photos.views, plain, plain, network.device)
        with torch.no_grad():
            first, second = (network.encode(photos.views.images[view][None].to(network.device)) for view in (0, 1))
            output = network.decode(first, second)
        assert output.points_first.device.type == "cuda"
        found = predict_pairs(photos.views, GRAPH, network, QUIET)
    assert_same(found, plain)


def test_photos_that_look_alike_are_refused(photos: RoomPhotos) -> None:
    first, _, third = photos.views.images
    twice = dataclasses.replace(photos.views, images=(first, first, third))
    plain, _ = noisy_predictions(photos, GRAPH, NoiseSettings(wrong_edges=0), seed=0)
    with pytest.raises(InvalidDataError, match="alike"):
        ToldAnswers(twice, plain, plain, CPU)
    assert torch.equal(print_of(twice.images[0][None]), print_of(twice.images[1][None]))
