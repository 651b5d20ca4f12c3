"""The whole method on a simulated CUDA device: what a real one would refuse raises, and results are the CPU's."""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from simulated_cuda import CudaTensor, WrongDeviceError, simulated_cuda
from torch import Tensor, nn

from lora3d_ns.adapter.finetune import finetune
from lora3d_ns.adapter.lora import load_adapter, save_adapter, with_adapter
from lora3d_ns.alignment.align import align
from lora3d_ns.alignment.normal_equations import chunk_pixels
from lora3d_ns.alignment.observations import ObservationGrid, ObservationSettings
from lora3d_ns.alignment.settings import AlignmentSettings
from lora3d_ns.benchmark_finetune import random_labels
from lora3d_ns.network.checkpoints import load_network
from lora3d_ns.pair_graph import CompleteGraph, build_pair_graph
from lora3d_ns.predict import Precision, PredictionSettings, autocast_of, predict_pairs
from lora3d_ns.reconstruct import Reconstruction, ReconstructSettings, reconstruct
from lora3d_ns.registration import registered_cameras
from lora3d_ns.rooms.benchmark_scenes import make_scene
from lora3d_ns.types import PairPredictions, Views

PHOTOS = 4
FLOAT32 = PredictionSettings(precision="float32", show_progress=False)


def settings(**finetune: Any) -> ReconstructSettings:
    # Few steps: what is compared is compared at any of them.
    alignment = AlignmentSettings(coarse_iterations=4, full_iterations=2)
    whole = ReconstructSettings(prediction=FLOAT32, alignment=alignment)
    learning = dataclasses.replace(whole.finetune, **{"epochs": 2, "precision": "float32", **finetune})
    return dataclasses.replace(whole, finetune=learning).silent()


@pytest.fixture(scope="module")
def views() -> Views:
    return make_scene("tele", 1, size=(64, 64), seed_offset=700).calibration.views.select(range(PHOTOS))


@pytest.fixture(scope="module")
def predictions(views: Views) -> PairPredictions:
    return predict_pairs(views, build_pair_graph(CompleteGraph(), PHOTOS), load_network("rooms"), FLOAT32)


@pytest.fixture(scope="module")
def on_the_cpu(views: Views) -> Reconstruction:
    return reconstruct(views, load_network("rooms"), settings(), base_name="rooms")


def assert_in_host_memory(tensors: Any) -> None:
    for tensor in tensors:
        assert type(tensor) is Tensor


def of_two(predictions: PairPredictions) -> PairPredictions:
    """Those of the first two views."""
    graph = build_pair_graph(CompleteGraph(), 2)
    pairs = dict(predictions)
    return PairPredictions(graph=graph, pairs=tuple(pairs[edge] for edge in graph.edges))


def relative_difference(first: Tensor, second: Tensor) -> float:
    return float((first - second).abs().max() / second.abs().max())


@pytest.mark.parametrize(
    "mistake",
    [
        lambda here, there: here + there,
        lambda here, there: torch.cat([here, there]),
        lambda here, there: there.index_put((torch.tensor([0]),), here[0]),
        lambda _, there: there.numpy(),
        lambda here, there: nn.functional.linear(there, here),
        lambda *_: torch.rand(3, device="cuda", generator=torch.Generator()),
    ],
)
def test_the_simulated_device_refuses_what_a_real_one_would(mistake: Any) -> None:
    with simulated_cuda():
        here = torch.ones(3, 3)
        there = here.to("cuda")
        with pytest.raises(WrongDeviceError):
            mistake(here, there)


def test_the_simulated_device_allows_and_computes_what_a_real_one_does() -> None:
    weight, images = torch.randn(4, 3), torch.randn(5, 3)
    with simulated_cuda() as transfers:
        layer = nn.Linear(3, 4, bias=False)
        layer.weight.data.copy_(weight)
        layer.to("cuda")
        twin = copy.deepcopy(layer)
        assert all(isinstance(each.weight, CudaTensor) for each in (layer, twin))
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
        layer(images.to("cuda")).square().sum().backward()
        optimizer.step()
        learnt, kept = layer.weight.detach().cpu(), twin.weight.detach().cpu()
        device_of = [torch.zeros_like(layer.weight), layer.weight[torch.tensor([0])], 2.0 * layer.weight[0]]
        assert [tensor.device.type for tensor in device_of] == ["cuda"] * 3
        assert float(layer.weight.detach().sum()) == pytest.approx(float(learnt.sum()))
        assert transfers == {"to cuda": 2, "to host": 2, "_local_scalar_dense": 1}
    assert_in_host_memory([learnt, kept])
    assert torch.equal(kept, weight)
    torch.testing.assert_close(learnt, weight - 0.1 * 2.0 * weight @ images.mT @ images)
    assert not torch.cuda.is_available()


def test_predictions(views: Views, predictions: PairPredictions) -> None:
    with simulated_cuda() as transfers:
        network = load_network("rooms", device="cuda")
        transfers.clear()
        found = predict_pairs(views, predictions.graph, network, FLOAT32)
        # Four fields of each pair, and one look for each batch whether they are finite.
        assert transfers["to host"] <= 4 * len(predictions) + 2
        assert transfers["_local_scalar_dense"] + transfers["tolist"] <= 2
        mixed = predict_pairs(views, predictions.graph, network, PredictionSettings(show_progress=False))
    for (_, pair), (_, wanted), (_, rough) in zip(found, predictions, mixed, strict=True):
        for field in dataclasses.fields(pair):
            here = getattr(pair, field.name)
            assert_in_host_memory([here, getattr(rough, field.name)])
            assert relative_difference(here, getattr(wanted, field.name)) < 1e-5
            # What bfloat16 keeps is two to three digits.
            assert 0 < relative_difference(getattr(rough, field.name), getattr(wanted, field.name)) < 0.1


@pytest.mark.parametrize("native", [True, False])
def test_a_gpu_without_bfloat16_gets_float32(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    with simulated_cuda():
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation or native)
        network = load_network("rooms", device="cuda")
        with autocast_of(network, "auto"):
            assert torch.is_autocast_enabled("cpu") == native


def test_float32_is_not_rounded_to_tf32() -> None:
    before = torch.backends.cudnn.allow_tf32
    cases: tuple[tuple[Precision, bool], ...] = (("float32", False), ("bfloat16", before))
    with simulated_cuda():
        network = load_network("rooms", device="cuda")
        for precision, rounded in cases:
            with autocast_of(network, precision):
                assert torch.backends.cudnn.allow_tf32 == rounded
            assert torch.backends.cudnn.allow_tf32 == before


@pytest.mark.parametrize(
    ("objective", "solver"),
    [("plain", "fast"), ("robust", "fast"), pytest.param("robust", "adam", marks=pytest.mark.slow)],
)
def test_alignment(views: Views, predictions: PairPredictions, objective: Any, solver: Any) -> None:
    matches = "auto" if solver == "fast" and objective == "robust" else "off"
    chosen = AlignmentSettings(objective=objective, solver=solver, matches=matches, show_progress=False)
    if solver == "adam":
        views, predictions = views.select(range(2)), of_two(predictions)
    wanted = align(views, predictions, chosen)
    with simulated_cuda() as transfers:
        found = align(views, predictions, chosen, device=torch.device("cuda"))
    assert transfers["to cuda"] > 0
    assert_in_host_memory([found.cameras.T_world_camera, found.cameras.K, *found.depths])
    assert_in_host_memory(weights for of_edge in found.weights for weights in of_edge)
    assert relative_difference(found.cameras.T_world_camera, wanted.cameras.T_world_camera) < 1e-3
    assert relative_difference(found.cameras.K, wanted.cameras.K) < 1e-3


def test_a_gpu_gets_large_chunks_and_keeps_what_it_has_room_for(predictions: PairPredictions, views: Views) -> None:
    # 10 photos of 512x384 in one go there, and in twenty here.
    assert chunk_pixels(18, torch.device("cuda")) >= 512 * 384
    assert chunk_pixels(18, torch.device("cpu")) < 10_000
    chosen = ObservationSettings(cutoff=0.0)
    with simulated_cuda() as transfers, pytest.MonkeyPatch.context() as patch:
        for free_bytes, moved in ((10**9, 0), (10**3, 4 * len(views))):
            patch.setattr(torch.cuda, "mem_get_info", lambda *_, free=free_bytes: (free, 10**12))
            grid = ObservationGrid(views, predictions, chosen, stride=4, device=torch.device("cuda"))
            assert sum(len(block.edges) for block in grid) == 2 * len(predictions)
            transfers.clear()
            assert sum(len(block.edges) for block in grid) == 2 * len(predictions)
            assert transfers["to cuda"] == moved


def test_self_calibration(views: Views, on_the_cpu: Reconstruction, tmp_path: Path) -> None:
    chosen = settings()
    kept, held_out = (0, 1, 3), (2,)
    with simulated_cuda():
        network = load_network("rooms", device="cuda")
        made = reconstruct(views, network, chosen, base_name="rooms")
        assert made.calibration is not None
        adapter = made.calibration.adapter or made.calibration.refused
        assert adapter is not None
        save_adapter(adapter, tmp_path / "adapter")
        smaller = dataclasses.replace(chosen, arm="robust")
        fewer = reconstruct(views.select(kept), network, smaller, base_name="rooms")
        cameras = registered_cameras(views, held_out, fewer, network, smaller)
    assert_in_host_memory([made.scene.points, made.scene.cameras.T_world_camera, cameras.T_world_camera])
    assert_in_host_memory(adapter.tensors.values())

    calibration = on_the_cpu.calibration
    assert calibration is not None
    assert relative_difference(made.scene.cameras.T_world_camera, on_the_cpu.scene.cameras.T_world_camera) < 0.02
    assert made.calibration.gate is not None
    assert calibration.gate is not None
    assert made.calibration.gate.accepted == calibration.gate.accepted
    # An adapter that was learnt there serves here.
    base = load_network("rooms")
    adapted = predict_pairs(
        views, made.understood.predictions.graph, with_adapter(base, load_adapter(tmp_path / "adapter")), FLOAT32
    )
    with simulated_cuda():
        there = predict_pairs(
            views,
            made.understood.predictions.graph,
            with_adapter(load_network("rooms", device="cuda"), adapter),
            FLOAT32,
        )
    for (_, pair), (_, wanted) in zip(adapted, there, strict=True):
        assert relative_difference(pair.points_first, wanted.points_first) < 1e-4


@pytest.mark.parametrize("low_memory", ["off", "on"])
def test_a_step_of_learning_waits_once(views: Views, low_memory: Any) -> None:
    labels = random_labels(views, seed=0)
    learning = settings(held_out_share=0.0, recompute_activations=low_memory).finetune
    with simulated_cuda() as transfers:
        network = load_network("rooms", device="cuda")
        counts = []
        for epochs in (1, 3):
            transfers.clear()
            tuned = finetune(
                views,
                labels,
                network,
                dataclasses.replace(learning, epochs=epochs),
                base_name="r",
                base_fingerprint="r",
            )
            counts.append(
                (len(tuned.losses), transfers["tolist"], transfers["_local_scalar_dense"], transfers["to cuda"])
            )
    (steps, *first), (more_steps, *second) = counts
    assert more_steps == 3 * steps
    # The loss with the length of the gradient, and nothing else, is read; images and labels are there from the start.
    assert second[0] - first[0] == more_steps - steps
    assert second[1:] == first[1:]
