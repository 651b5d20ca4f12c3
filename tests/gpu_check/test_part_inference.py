"""The parts `inference` and `finetune`, tiny, on the CPU with the peer and on a simulated CUDA device without."""

import importlib.util
import sys
from collections.abc import Callable
from typing import Any

import pytest
from part_runs import assert_measured, figure, rows_of
from simulated_cuda import simulated_cuda

from lora3d_ns.benchmark_inference import run_inference_benchmark
from lora3d_ns.gpu_check import part_finetune, part_inference

needs_peer = pytest.mark.skipif(importlib.util.find_spec("mini_dust3r") is None, reason="mini-dust3r is not installed")


@pytest.fixture
def no_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("mini_dust3r", "mini_dust3r.model"):
        monkeypatch.setitem(sys.modules, name, None)


def pretended(**given: Any) -> dict[str, object]:
    """A record of fine-tuning; its peer breaks."""
    if given["peer"]:
        raise RuntimeError("the peer broke")
    keys = ["ours_s", "paper_recipe_s", "training_s", "complete_s", "pair_steps_of_training", "parameters"]
    keys += ["adapter_bytes", "peak_mib", "paper_peak_mib", "complete_peak_mib", "weights_mib"]
    return {**dict.fromkeys(keys, 1000.0), "photos": 3, "pairs_per_step": 6, "complete_steps": 10}


def failing_with_peer(**given: Any) -> dict[str, object]:
    """Inference; its peer breaks."""
    if given["peer"]:
        raise RuntimeError("the peer broke")
    return run_inference_benchmark(**given)


# --- inference --------------------------------------------------------------------------------------


@needs_peer
def test_inference_with_the_peer() -> None:
    rows = rows_of("inference", peer=True)
    assert_measured(rows)
    assert len(rows) == 16
    assert [name for name, row in rows.items() if row.goal] == ["3 photos, all 6 pairs"]
    assert rows["3 photos, all 6 pairs"].goal == part_inference.TIME_GOAL
    for photos in (3, 4):
        beside = rows[f"{photos} photos, all pairs, with mini-dust3r beside"]
        assert beside.peer is not None
        ratio = figure(rows, f"{photos} photos, mini-dust3r's time over ours")
        assert ratio == pytest.approx(beside.peer / figure(rows, beside.name))
        # In float32 both say the same; the worst seen is 9e-7.
        assert figure(rows, f"{photos} photos, largest difference from mini-dust3r") < 1e-5


def test_the_share_of_the_floor_is_the_rate_over_that_of_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(part_inference, "matrix_rate_tflops", lambda *_: 0.5)
    rows = rows_of("inference")
    assert_measured(rows)
    assert len(rows) == 8
    for photos in (3, 4):
        assert figure(rows, f"{photos} photos, share of the floor") == pytest.approx(
            figure(rows, f"{photos} photos, rate") / 0.5
        )


@needs_peer
def test_a_slow_peer_is_estimated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(part_inference, "_LAST_END_S", 0.0)
    rows = rows_of("inference", peer=True)
    few, many = (rows[f"{photos} photos, all pairs, with mini-dust3r beside"] for photos in (3, 4))
    assert few.peer is not None
    assert few.value is not None
    # Six pairs, and twelve.
    assert many.peer == pytest.approx(2 * few.peer)
    assert (many.value, many.failed, "not run" in many.note) == (None, False, True)


@pytest.mark.usefixtures("no_peer")
@pytest.mark.parametrize(
    ("part", "row"), [("inference", "3 photos, mini-dust3r"), ("finetune", "default, with mini-dust3r in peft beside")]
)
def test_a_peer_that_is_not_installed_is_no_failure(part: str, row: str) -> None:
    rows = rows_of(part, peer=True)
    missing = rows.pop(row)
    assert (missing.value, missing.failed, missing.met) == (None, False, None)
    assert "cannot be used" in missing.note
    assert_measured(rows)
    assert len(rows) >= 8


@pytest.mark.parametrize(
    ("part", "name", "function", "row"),
    [
        ("inference", "run_inference_benchmark", failing_with_peer, "3 photos, mini-dust3r"),
        ("finetune", "run_finetune_benchmark", pretended, "default, with mini-dust3r in peft beside"),
    ],
)
def test_a_peer_that_fails_takes_nothing_along(
    part: str, name: str, function: Callable[..., Any], row: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"lora3d_ns.gpu_check.part_{part}.{name}", function)
    rows = rows_of(part, peer=True)
    broken = rows.pop(row)
    assert broken.failed
    assert "the peer broke" in broken.note
    assert_measured(rows)


def test_inference_on_a_simulated_device() -> None:
    with simulated_cuda():
        rows = rows_of("inference", device="cuda")
    # The simulated allocator counts nothing.
    assert_measured(rows)
    assert len(rows) == 8


# --- fine-tuning ------------------------------------------------------------------------------------


@needs_peer
def test_fine_tuning_with_the_peer() -> None:
    rows = rows_of("finetune", peer=True)
    assert_measured(rows)
    goals = {name: row.goal for name, row in rows.items() if row.goal}
    assert goals == {
        "default, 3 photos, a whole training": part_finetune.TIME_GOAL,
        "paper's recipe, peak memory": part_finetune.PAPER_MEMORY_GOAL,
        "low memory, peak memory": part_finetune.LOW_MEMORY_GOAL,
    }
    beside = rows["both orders of a pair, with mini-dust3r in peft beside"]
    assert beside.peer is not None
    assert figure(rows, "mini-dust3r's time over ours") == pytest.approx(beside.peer / figure(rows, beside.name))
    # Before the first step both have the same loss; the worst seen is 1e-7.
    assert figure(rows, "first loss, difference from mini-dust3r") < 1e-5
    # Rank 16 on two encoder blocks (4 widths each) and two by two decoder blocks (10 widths each), in float32.
    assert figure(rows, "adapter") == pytest.approx(4e-6 * 16 * 48 * (2 * 4 + 4 * 10))


@pytest.mark.slow
def test_fine_tuning_on_a_simulated_device() -> None:
    with simulated_cuda():
        rows = rows_of("finetune", device="cuda")
    assert_measured(rows)
    # Nothing but the weights is counted there: 48 * (4 + 8) * 48 for each block, and some more.
    assert figure(rows, "paper's recipe, peak memory") == figure(rows, "low memory, peak memory") > 1e-4


def test_memory_is_beyond_the_weights_and_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        part_finetune, "run_finetune_benchmark", lambda **given: pretended(**given) | {"paper_peak_mib": 18_500.0}
    )
    rows = rows_of("finetune")
    # 18,500 and 1,000 MiB are 19.04 GiB and 20.4 GB.
    assert figure(rows, "paper's recipe, peak memory") == pytest.approx(20.447, abs=1e-3)
    assert rows["paper's recipe, peak memory"].met is False
    assert figure(rows, "low memory, peak memory") == pytest.approx(2.097, abs=1e-3)
    assert rows["low memory, peak memory"].met
