"""The comparison with the peer's alignment: the common yardstick is right, and both programs are measured by it."""

import dataclasses
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lora3d_ns.benchmark_alignment import (
    AlignedArrays,
    eq6_objective,
    peer_runner,
    run_alignment_benchmark,
)
from lora3d_ns.errors import MissingPackageError, SettingsError
from lora3d_ns.pair_graph import CompleteGraph, build_pair_graph
from lora3d_ns.rooms.simulated import (
    NoiseSettings,
    RoomPhotos,
    edge_units,
    exact_predictions,
    noisy_predictions,
    photograph_rooms,
)
from lora3d_ns.types import PairPredictions, Sim3

SHAPE = (24, 32)
GRAPH = build_pair_graph(CompleteGraph(), 3)
CPU = torch.device("cpu")

needs_peer = pytest.mark.skipif(importlib.util.find_spec("mini_dust3r") is None, reason="mini-dust3r is not installed")


@pytest.fixture(name="photos", scope="module")
def _photos() -> RoomPhotos:
    return photograph_rooms(3, shapes=[SHAPE], seed=0, source_scale=2.0)


def true_arrays(photos: RoomPhotos) -> AlignedArrays:
    """The truth as an answer to `exact_predictions`."""
    T = photos.cameras.T_world_camera.double()
    first = torch.tensor([i for i, _ in GRAPH.edges])
    affines = photos.views.source_from_network
    return AlignedArrays(
        T_world_camera=T,
        K_network=torch.stack(
            [affine.K_network_from_source(K) for affine, K in zip(affines, photos.cameras.K.double(), strict=True)]
        ),
        depths=photos.depths_m,
        world_from_edge=Sim3(
            scale=1.0 / edge_units(GRAPH, seed=0), rotation=T[first, :3, :3], translation=T[first, :3, 3]
        ),
    )


def changed(arrays: AlignedArrays, **edge_values: torch.Tensor) -> AlignedArrays:
    return dataclasses.replace(arrays, world_from_edge=dataclasses.replace(arrays.world_from_edge, **edge_values))


# --- the yardstick --------------------------------------------------------------------------------


def test_the_truth_of_exact_predictions_has_objective_zero(photos: RoomPhotos) -> None:
    predictions, arrays = exact_predictions(photos, GRAPH), true_arrays(photos)
    # Depths are a few metres, in float32: 1e-7 of them.
    assert eq6_objective(predictions, arrays) < 3e-6
    half_a_pixel = arrays.K_network.clone()
    half_a_pixel[:, :2, 2] += 0.5
    assert eq6_objective(predictions, dataclasses.replace(arrays, K_network=half_a_pixel)) > 1e-3


def test_a_known_displacement_counts_as_much_as_it_should(photos: RoomPhotos) -> None:
    predictions, arrays = exact_predictions(photos, GRAPH), true_arrays(photos)
    translation = arrays.world_from_edge.translation.clone()
    translation[2] += torch.tensor([0.3, 0.0, 0.4])
    # One edge of six is off by half a metre, in both maps, at confidence 1; the mean scale goes to 0.5.
    mean_scale = float(arrays.world_from_edge.scale.log().mean().exp())
    expected = 2 * (0.5 / len(GRAPH)) * 0.5 / mean_scale
    assert eq6_objective(predictions, changed(arrays, translation=translation)) == pytest.approx(expected, rel=1e-5)
    less_sure = dataclasses.replace(
        predictions.pairs[2], confidence_second=0.25 * predictions.pairs[2].confidence_second
    )
    pairs = (*predictions.pairs[:2], less_sure, *predictions.pairs[3:])
    found = eq6_objective(PairPredictions(graph=GRAPH, pairs=pairs), changed(arrays, translation=translation))
    assert found == pytest.approx(expected * 1.25 / 2, rel=1e-5)


def test_the_world_and_its_unit_do_not_matter(photos: RoomPhotos) -> None:
    predictions, _ = noisy_predictions(photos, GRAPH, NoiseSettings(wrong_edges=0), seed=0)
    arrays = true_arrays(photos)
    turn = torch.linalg.matrix_exp(
        torch.tensor([[0.0, -0.4, 0.1], [0.4, 0.0, 0.2], [-0.1, -0.2, 0.0]], dtype=torch.float64)
    )
    moved = Sim3(scale=torch.tensor(3.0).double(), rotation=turn, translation=torch.tensor([1.0, 2.0, -1.0]).double())
    T = arrays.T_world_camera.clone()
    T[:, :3, :3] = turn @ T[:, :3, :3]
    T[:, :3, 3] = torch.stack([moved.apply(centre) for centre in T[:, :3, 3]])
    edges = arrays.world_from_edge
    elsewhere = AlignedArrays(
        T_world_camera=T,
        K_network=arrays.K_network,
        depths=tuple(3.0 * depth for depth in arrays.depths),
        world_from_edge=Sim3(
            scale=3.0 * edges.scale,
            rotation=turn @ edges.rotation,
            translation=torch.stack([moved.apply(translation) for translation in edges.translation]),
        ),
    )
    here = eq6_objective(predictions, arrays)
    assert here > 1e-3
    assert eq6_objective(predictions, elsewhere) == pytest.approx(here, rel=1e-5)


# --- the peer -------------------------------------------------------------------------------------


@needs_peer
@pytest.mark.parametrize("shapes", [[(32, 32)], [(24, 32), (32, 24)]], ids=["one shape", "two shapes"])
def test_the_yardstick_equals_the_peers_own_loss(shapes: list[tuple[int, int]]) -> None:
    photos = photograph_rooms(4, shapes=shapes, seed=1)
    predictions, _ = noisy_predictions(photos, build_pair_graph(CompleteGraph(), 4), NoiseSettings(), seed=1)
    before = [pair.points_first.clone() for pair in predictions.pairs]
    random_state = torch.get_rng_state()
    run = peer_runner()(predictions, CPU, 20, 0)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(pair.points_first, map_) for pair, map_ in zip(predictions.pairs, before, strict=True))
    # One entry at the start of each iteration, and the answer.
    assert len(run.curve) == 21
    seconds = [entry[0] for entry in run.curve]
    assert seconds == sorted(seconds)
    assert run.curve[-1][1] < run.curve[0][1]
    # The worst seen is 1.4e-7; without the half pixel it would be 3e-3.
    assert eq6_objective(predictions, run.arrays) == pytest.approx(run.curve[-1][1], rel=1e-5)


@needs_peer
def test_importing_the_peer_is_silent_and_leaves_tf32_off() -> None:
    program = """
import torch
from lora3d_ns.benchmark_alignment import peer_runner
peer_runner()
assert not torch.backends.cuda.matmul.allow_tf32
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout == ""


def test_without_the_peer_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mini_dust3r.cloud_opt", None)
    monkeypatch.setitem(sys.modules, "mini_dust3r", None)
    with pytest.raises(MissingPackageError, match="--no-peer"):
        run_alignment_benchmark(views=3, size=(32, 32), iterations=1)


# --- the benchmark --------------------------------------------------------------------------------


@needs_peer
def test_the_record_has_what_is_promised(tmp_path: Path) -> None:
    record = run_alignment_benchmark(
        views=4,
        size=(32, 24),
        iterations=20,
        json_path=tmp_path / "alignment.json",
        picture=tmp_path / "alignment.png",
    )
    promised = {"command", "version", "device", "threads", "seed", "views", "size", "ours_s", "peer_s", "ratio"}
    assert promised | {"ours_objective", "peer_objective", "ours_curve", "peer_curve"} <= record.keys()
    assert json.loads((tmp_path / "alignment.json").read_text()) == record
    assert (tmp_path / "alignment.png").read_bytes()[1:4] == b"PNG"
    figures = {key: value for key, value in record.items() if isinstance(value, float)}
    assert figures["ratio"] == figures["peer_s"] / figures["ours_s"]
    assert abs(figures["peer_own_difference"]) < 1e-5
    # Ours smooths |e| at zero by a hundred-thousandth of the depth.
    assert abs(figures["ours_own_difference"]) < 1e-4
    # Twenty iterations of Adam have not arrived; ours, minimising the same, must have.
    assert figures["ours_objective"] < figures["peer_objective"]


def test_the_bundled_networks_predictions_without_the_peer() -> None:
    record = run_alignment_benchmark(case="bundled", views=3, peer=False)
    assert record["size"] == [64, 64]
    assert record["pairs"] == 6
    assert "peer_s" not in record
    assert "ratio" not in record
    curve = record["ours_curve"]
    assert isinstance(curve, list)
    assert curve[-1][1] < curve[0][1]


@pytest.mark.parametrize(
    "settings",
    [
        {"views": 1},
        {"iterations": 0},
        {"case": "bundled", "views": 11},
    ],
    ids=str,
)
def test_impossible_settings_are_refused(settings: dict) -> None:
    with pytest.raises(SettingsError):
        run_alignment_benchmark(**settings)
