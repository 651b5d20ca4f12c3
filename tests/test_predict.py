import dataclasses
import types
from collections.abc import Callable

import psutil
import pytest
import torch

from lora3d_ns.errors import InsufficientMemoryError, InvalidDataError, NonFinitePredictionError, SettingsError
from lora3d_ns.network.base import Encoding, PairOutput
from lora3d_ns.network.configuration import Dust3rConfig
from lora3d_ns.network.dust3r import Dust3r
from lora3d_ns.pair_graph import CompleteGraph, RetrievalGraph, StarGraph, build_pair_graph
from lora3d_ns.predict import PredictionSettings, encode_views, image_features, predict_pairs
from lora3d_ns.types import PairPrediction, PairPredictions

QUIET = PredictionSettings(show_progress=False)
FIELDS = [field.name for field in dataclasses.fields(PairPrediction)]


def small_network() -> Dust3r:
    torch.manual_seed(0)
    config = Dust3rConfig(
        encoder_width=32,
        encoder_depth=2,
        encoder_heads=2,
        decoder_width=32,
        decoder_depth=4,
        decoder_heads=2,
        dpt_channels=(8, 8, 8, 8),
        dpt_features=8,
    )
    return Dust3r(config).eval()


class BrightnessNetwork:
    """A network whose answer can be computed by hand: points hold the mean brightness of first and second image."""

    patch_size = 16
    device = torch.device("cpu")

    def __init__(self, before_decode: Callable[[int], None] = lambda _batch: None, factor: float = 1.0) -> None:
        self.encoded = 0
        self.batches: list[int] = []
        self._before_decode = before_decode
        self._factor = factor

    def encode(self, images: torch.Tensor) -> Encoding:
        self.encoded += len(images)
        tokens = images.mean(dim=(1, 2, 3))[:, None, None].expand(-1, 1, 4)
        return Encoding(tokens=tokens, height=images.shape[2], width=images.shape[3])

    def decode(self, first: Encoding, second: Encoding) -> PairOutput:
        batch = len(first.tokens)
        self._before_decode(batch)
        self.batches.append(batch)
        means = torch.stack([first.tokens[:, 0, 0], second.tokens[:, 0, 0], torch.ones(batch)], dim=-1) * self._factor
        maps = [
            means[:, None, None].expand(batch, encoding.height, encoding.width, 3).clone()
            for encoding in (first, second)
        ]
        return PairOutput(
            points_first=maps[0],
            points_second=maps[1],
            confidence_first=maps[0][..., 0].clone(),
            confidence_second=maps[1][..., 1].clone(),
        )


def assert_equal(a: PairPredictions, b: PairPredictions) -> None:
    assert a.graph.edges == b.graph.edges
    for one, other in zip(a.pairs, b.pairs, strict=True):
        for name in FIELDS:
            assert torch.equal(getattr(one, name), getattr(other, name)), name


def test_every_edge_gets_its_own_answer_whatever_the_shapes_and_batches(make_views) -> None:
    views = make_views([(16, 32), (32, 16), (16, 32), (32, 32)])
    graph = build_pair_graph(CompleteGraph(), 4)
    for batch_size in (None, 1, 3):
        network = BrightnessNetwork()
        settings = dataclasses.replace(QUIET, batch_size=batch_size)
        predictions = predict_pairs(views, graph, network, settings)
        assert network.encoded == 4, "each photo is encoded once"
        for (i, j), pair in predictions:
            expected = torch.stack([views.images[i].mean(), views.images[j].mean(), torch.tensor(1.0)])
            assert pair.points_first.shape == (*views.shapes[i], 3)
            assert pair.points_second.shape == (*views.shapes[j], 3)
            torch.testing.assert_close(pair.points_first[3, 5], expected)
            torch.testing.assert_close(pair.points_second[-1, -1], expected)


def test_batched_predictions_equal_pair_by_pair_forward_passes(make_views) -> None:
    network = small_network()
    views = make_views([(32, 48), (48, 32), (32, 48)])
    predictions = predict_pairs(views, build_pair_graph(CompleteGraph(), 3), network, QUIET)
    for (i, j), pair in predictions:
        with torch.no_grad():
            alone = network(views.images[i][None], views.images[j][None])
        for name in FIELDS:
            theirs = getattr(alone, name)[0]
            assert (getattr(pair, name) - theirs).abs().max() <= 1e-5 * theirs.abs().max()


def test_it_is_deterministic_to_the_bit(make_views) -> None:
    views, network = make_views([(32, 48), (48, 32), (32, 48)]), small_network()
    graph = build_pair_graph(CompleteGraph(), 3)
    assert_equal(predict_pairs(views, graph, network, QUIET), predict_pairs(views, graph, network, QUIET))


def test_encodings_can_be_shared_with_the_retrieval_graph(make_views) -> None:
    views, network = make_views([(32, 32)] * 4), small_network()
    encodings = encode_views(views, network, QUIET)
    features = image_features(encodings)
    assert features.shape == (4, 32)
    graph = build_pair_graph(RetrievalGraph(neighbours=1), 4, features=features)
    assert_equal(
        predict_pairs(views, graph, network, QUIET, encodings=encodings), predict_pairs(views, graph, network, QUIET)
    )


def test_results_carry_no_gradient_and_can_take_part_in_one(make_views) -> None:
    views = make_views([(32, 32)] * 2)
    predictions = predict_pairs(views, build_pair_graph(CompleteGraph(), 2), small_network(), QUIET)
    points = predictions.pairs[0].points_first
    assert not points.requires_grad
    scale = torch.ones((), requires_grad=True)
    (scale * points).square().sum().backward()
    assert scale.grad is not None


@pytest.mark.parametrize("failure", [RuntimeError("DefaultCPUAllocator: not enough memory"), torch.OutOfMemoryError()])
def test_batches_are_halved_until_they_fit(make_views, failure: RuntimeError) -> None:
    def fail_above_two(batch: int) -> None:
        if batch > 2:
            raise failure

    views = make_views([(16, 16)] * 4)
    network = BrightnessNetwork(fail_above_two)
    graph = build_pair_graph(CompleteGraph(), 4)
    predictions = predict_pairs(views, graph, network, dataclasses.replace(QUIET, batch_size=8))
    assert network.batches == [2] * 6
    assert_equal(predictions, predict_pairs(views, graph, BrightnessNetwork(), QUIET))


def test_a_pair_that_does_not_fit_alone_is_a_named_error(make_views) -> None:
    def fail(_batch: int) -> None:
        raise torch.OutOfMemoryError

    with pytest.raises(InsufficientMemoryError, match="smaller photo size"):
        predict_pairs(make_views([(16, 16)] * 2), build_pair_graph(CompleteGraph(), 2), BrightnessNetwork(fail), QUIET)


def test_other_errors_are_not_mistaken_for_memory(make_views) -> None:
    def fail(_batch: int) -> None:
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        predict_pairs(make_views([(16, 16)] * 2), build_pair_graph(CompleteGraph(), 2), BrightnessNetwork(fail), QUIET)


def test_results_that_cannot_fit_are_refused_before_any_work(make_views, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: types.SimpleNamespace(available=2**17))
    network = BrightnessNetwork()
    with pytest.raises(InsufficientMemoryError, match="storage float16"):
        predict_pairs(make_views([(64, 64)] * 4), build_pair_graph(CompleteGraph(), 4), network, QUIET)
    assert network.encoded == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_answers_that_are_not_finite_name_the_photos(make_views, value: float) -> None:
    with pytest.raises(NonFinitePredictionError, match=r"photos 0\.png and 1\.png"):
        predict_pairs(
            make_views([(16, 16)] * 2), build_pair_graph(StarGraph(), 2), BrightnessNetwork(factor=value), QUIET
        )


def test_half_storage_halves_memory_and_keeps_eleven_bits(make_views) -> None:
    views, network, graph = make_views([(32, 32)] * 3), small_network(), build_pair_graph(CompleteGraph(), 3)
    full = predict_pairs(views, graph, network, QUIET)
    half = predict_pairs(views, graph, network, dataclasses.replace(QUIET, storage="float16"))
    assert half.nbytes * 2 == full.nbytes
    for (_, one), (_, other) in zip(full, half, strict=True):
        torch.testing.assert_close(other.points_first, one.points_first, rtol=2**-11, atol=1e-7)


def test_what_half_storage_cannot_hold_stays_float32(make_views) -> None:
    views, graph = make_views([(16, 16)] * 2), build_pair_graph(CompleteGraph(), 2)
    settings = dataclasses.replace(QUIET, storage="float16")
    predictions = predict_pairs(views, graph, BrightnessNetwork(factor=1e6), settings)
    assert predictions.pairs[0].points_first.dtype == torch.float32
    assert float(predictions.pairs[0].points_first[0, 0, 2]) == 1e6


def test_lower_precision_is_close_and_really_lower(make_views) -> None:
    views, network, graph = make_views([(32, 48)] * 2), small_network(), build_pair_graph(CompleteGraph(), 2)
    exact = predict_pairs(views, graph, network, QUIET).pairs[0]
    lower = predict_pairs(views, graph, network, dataclasses.replace(QUIET, precision="bfloat16")).pairs[0]
    difference = (lower.points_first - exact.points_first).abs().max() / exact.points_first.abs().max()
    # Eight bits of mantissa through four blocks and the head: 1.1 % measured.
    assert 0 < difference < 0.03
    assert lower.points_first.dtype == torch.float32


def test_graph_and_encodings_of_other_views_are_refused(make_views) -> None:
    views, network = make_views([(16, 16)] * 3), BrightnessNetwork()
    with pytest.raises(InvalidDataError, match="graph of 2 views for 3 photos"):
        predict_pairs(views, build_pair_graph(CompleteGraph(), 2), network, QUIET)
    graph, encodings = build_pair_graph(CompleteGraph(), 3), encode_views(views, network, QUIET)[:1]
    with pytest.raises(InvalidDataError, match="1 encodings for 3 photos"):
        predict_pairs(views, graph, network, QUIET, encodings=encodings)


def test_a_batch_size_of_zero_is_refused() -> None:
    with pytest.raises(SettingsError):
        PredictionSettings(batch_size=0)
