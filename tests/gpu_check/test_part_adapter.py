"""The part that carries an adapter from the GPU to the CPU."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from simulated_cuda import simulated_cuda

from lora3d_ns.adapter.adapter import LoraSettings
from lora3d_ns.adapter.lora import Adapter, adapted, adapter_of, load_adapter, save_adapter
from lora3d_ns.gpu_check import part_adapter
from lora3d_ns.gpu_check.part_adapter import accepted, elsewhere, run
from lora3d_ns.gpu_check.parts import PartSettings
from lora3d_ns.gpu_check.rows import Row
from lora3d_ns.network.checkpoints import load_network, network_fingerprint
from lora3d_ns.network.dust3r import Dust3r

NAMES = [
    "learning",
    "adapter's tensors that are not float32 in host memory",
    "loading where no GPU is seen",
    "fingerprint of the base, on the CPU",
    "predictions with the adapter, CPU and {}",
    "what the adapter changes",
]


def checked(rows: list[Row], device: str) -> None:
    assert [row.name for row in rows] == [name.format(device) for name in NAMES]
    assert not any(row.failed for row in rows), rows
    assert [row.met for row in rows] == [None, True, None, None, True, True]
    assert "2 photos" in rows[0].note


def test_on_the_cpu(tmp_path: Path) -> None:
    checked(list(run(PartSettings(device="cpu", tiny=True, folder=tmp_path))), "cpu")
    # It stays, for those who look.
    assert load_adapter(tmp_path / "adapter").base_name == "rooms"


def test_on_a_simulated_device(tmp_path: Path) -> None:
    with simulated_cuda() as transfers:
        rows = list(run(PartSettings(device="cuda", tiny=True, folder=tmp_path)))
    checked(rows, "cuda")
    assert transfers["to cuda"] > 100
    assert transfers["to host"] > 56
    assert not torch.cuda.is_available()


def test_learning_that_fails_is_left_to_the_frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_given: object, **_named: object) -> None:
        raise RuntimeError("no device")

    monkeypatch.setattr(part_adapter, "finetune", broken)
    with pytest.raises(RuntimeError, match="no device"):
        list(run(PartSettings(device="cpu", tiny=True, folder=tmp_path)))


@pytest.fixture(scope="module")
def network() -> Dust3r:
    return load_network("rooms")


@pytest.fixture(scope="module")
def adapter(network: Dust3r) -> Adapter:
    student = adapted(network, LoraSettings(), seed=0)
    return adapter_of(student, base_name="rooms", base_fingerprint=network_fingerprint(network), provenance={})


def test_tensors_elsewhere_are_counted(adapter: Adapter) -> None:
    assert elsewhere(adapter).met
    name = next(iter(adapter.tensors))
    for other in (adapter.tensors[name].half(), adapter.tensors[name].to("meta")):
        # Not through its constructor, which might refuse it.
        wrong = object.__new__(Adapter)
        vars(wrong).update(vars(adapter))
        vars(wrong)["tensors"] = {**adapter.tensors, name: other}
        row = elsewhere(wrong)
        assert (row.value, row.met) == (1.0, False)
        assert name in row.note


def test_another_base_and_damaged_files_fail(adapter: Adapter, network: Dust3r, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    save_adapter(adapter, folder)
    assert not accepted(folder, network).failed
    own = json.loads((folder / "lora3d.json").read_text())
    own["base_fingerprint"] = "0" * len(own["base_fingerprint"])
    (folder / "lora3d.json").write_text(json.dumps(own))
    row = accepted(folder, network)
    assert row.failed
    assert row.note
    (folder / "adapter_model.safetensors").write_bytes(b"damaged")
    row = part_adapter._loaded_without_a_gpu(folder)
    assert row.failed
    assert "Error" in row.note


def test_a_device_that_computes_something_else_misses_the_goal(
    adapter: Adapter, network: Dust3r, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lora3d_ns import predict

    decoded = predict._to_host

    def wrong(output, *rest):
        off = 1.01 if output.points_first.device.type == "cuda" else 1.0
        return decoded(dataclasses.replace(output, points_first=output.points_first * off), *rest)

    monkeypatch.setattr(predict, "_to_host", wrong)
    save_adapter(adapter, tmp_path / "adapter")
    room = part_adapter._room(PartSettings(device="cuda", tiny=True, folder=tmp_path), network)
    with simulated_cuda():
        there = load_network("rooms", device="cuda")
        rows = list(part_adapter._predictions(room, tmp_path / "adapter", network, there))
    assert [row.name for row in rows] == [NAMES[4].format("cuda"), NAMES[5]]
    assert rows[0].value == pytest.approx(0.01, rel=0.05)
    assert rows[0].met is False
    # It never learnt anything.
    assert rows[1].met is False
