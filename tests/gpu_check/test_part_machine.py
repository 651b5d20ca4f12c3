"""The parts `machine` and `network`, tiny, on the CPU and on a simulated CUDA device."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from part_runs import assert_measured, figure, rows_of
from simulated_cuda import simulated_cuda

from lora3d_ns.gpu_check import part_machine, part_network
from lora3d_ns.gpu_check.part_machine import matrix_rate_tflops
from lora3d_ns.network.dust3r import Dust3r

PRODUCTS = {f"{name} products" for name in ("bfloat16", "float16", "float32", "float32 with TF32")}
SENT = {f"{way}, {kind} memory" for way in ("host to device", "device to host") for kind in ("ordinary", "pinned")}


# --- machine ----------------------------------------------------------------------------------------


def test_the_machine_on_the_cpu() -> None:
    rows = rows_of("machine")
    assert rows.keys() == {"memory", "copies on the device"} | PRODUCTS | SENT
    assert torch.__version__ in rows["memory"].note
    assert all(rows[name].note == "needs CUDA" and rows[name].value is None for name in SENT)
    assert_measured({name: row for name, row in rows.items() if name not in SENT})


def test_the_machine_on_a_simulated_device() -> None:
    with simulated_cuda():
        rows = rows_of("machine", device="cuda")
    assert_measured(rows)
    assert "simulated" in rows["memory"].note
    assert rows["memory"].value == 140.0


def test_a_rate_is_operations_over_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(part_machine, "_seconds_per_call", lambda *_, **__: 0.5)
    assert matrix_rate_tflops(torch.device("cpu"), torch.float32, 16) == 2 * 16**3 / 0.5 / 1e12


def test_tf32_is_as_it_was_afterwards(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []

    def rate(*_: Any) -> float:
        seen.append(bool(torch.backends.cuda.matmul.allow_tf32))
        return 1.0

    monkeypatch.setattr(part_machine, "matrix_rate_tflops", rate)
    before = torch.backends.cuda.matmul.allow_tf32
    rows_of("machine")
    assert seen == [False, False, False, True]
    assert torch.backends.cuda.matmul.allow_tf32 == before


def test_one_rate_that_fails_leaves_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def rate(_device: object, dtype: torch.dtype, _size: int) -> float:
        if dtype == torch.bfloat16:
            raise RuntimeError("no bfloat16 here")
        return 1.0

    monkeypatch.setattr(part_machine, "matrix_rate_tflops", rate)
    rows = rows_of("machine")
    assert [name for name, row in rows.items() if row.failed] == ["bfloat16 products"]
    assert "no bfloat16 here" in rows["bfloat16 products"].note
    assert rows["copies on the device"].value is not None


# --- network ----------------------------------------------------------------------------------------


@pytest.fixture
def no_tf32() -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.usefixtures("no_tf32")
def test_the_network_on_a_simulated_device() -> None:
    with simulated_cuda():
        rows = rows_of("network", device="cuda")
    assert_measured(rows)
    for label in ("small network", "bundled network"):
        exact, rough, finer = (rows[f"{label}, {precision}"] for precision in ("float32", "bfloat16", "float16"))
        assert exact.goal == part_network.FLOAT32_GOAL
        assert exact.met
        # bfloat16 keeps two to three digits, float16 three to four.
        assert 1e-4 < figure(rows, rough.name) < 0.1
        assert 1e-5 < figure(rows, finer.name) < figure(rows, rough.name)
        assert rough.goal is None
        # Convolutions may use TF32 unless they are told not to.
        assert f"{label}, float32, convolutions without TF32" in rows
    assert torch.backends.cudnn.allow_tf32
    assert rows["float32 matrix products use TF32"].met


@pytest.mark.usefixtures("no_tf32")
def test_a_network_that_says_something_else_misses_the_goal(monkeypatch: pytest.MonkeyPatch) -> None:
    to = Dust3r.to

    def worse(self: Dust3r, *given: Any, **named: Any) -> Dust3r:
        moved = to(self, *given, **named)
        with torch.no_grad():
            moved.decoder_embed.weight[0] *= 1.05
        return moved

    monkeypatch.setattr(Dust3r, "to", worse)
    rows = rows_of("network")
    assert rows["small network, float32"].met is False
    assert rows["bundled network, float32"].met is False
    assert not any(row.failed for row in rows.values())


@pytest.mark.usefixtures("no_tf32")
def test_tf32_that_something_switched_on_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(part_network, "_full_size", lambda _: [])
    torch.backends.cuda.matmul.allow_tf32 = True
    rows = rows_of("network")
    assert rows["float32 matrix products use TF32"].met is False
    assert rows["bundled network, float32"].met
