"""The part `alignment`, tiny, on the CPU with the peer and on a simulated CUDA device without."""

import importlib.util
import sys
from typing import Any

import pytest
from part_runs import assert_measured, figure, rows_of
from simulated_cuda import simulated_cuda

from lora3d_ns.gpu_check import part_alignment
from lora3d_ns.gpu_check.part_alignment import size_of
from lora3d_ns.gpu_check.rows import Row

needs_peer = pytest.mark.skipif(importlib.util.find_spec("mini_dust3r") is None, reason="mini-dust3r is not installed")

FEW, MANY = "3 views, 32 x 24, complete (6 pairs)", "4 views, 32 x 24, each with the next 2 (10 pairs)"
OURS = {f"{FEW}, first in the process"} | {
    f"{name}{what}" for name in (FEW, MANY) for what in ("", ", peak memory", ", our own objective")
}


@needs_peer
def test_with_the_peer() -> None:
    rows = rows_of("alignment", peer=True)
    assert_measured(rows)
    # Ours first.
    assert set(list(rows)[: len(OURS)]) == OURS
    assert {name for name, row in rows.items() if row.goal} == {FEW, f"{FEW}, our own objective"}
    for name in (FEW, MANY):
        beside = rows[f"{name}, with mini-dust3r beside"]
        assert beside.peer is not None
        ratio = figure(rows, f"{name}, mini-dust3r's time over ours")
        assert ratio == pytest.approx(beside.peer / figure(rows, beside.name))
        objective = rows[f"{name}, objective of Eq. 6"]
        # Twenty iterations of Adam have not arrived; ours must have.
        assert objective.peer is not None
        assert figure(rows, objective.name) < objective.peer


@pytest.mark.slow
def test_on_a_simulated_device() -> None:
    with simulated_cuda():
        rows = rows_of("alignment", device="cuda")
    assert_measured(rows)
    assert rows.keys() == OURS


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours is not run: what is tested is what comes after."""

    def ours(settings: Any, case: Any, _goal: object, made: list) -> list[Row]:
        made.append(part_alignment._make(settings, case, 0.0))
        return [Row(name=f"{case.views} views")]

    monkeypatch.setattr(part_alignment, "_ours", ours)


@pytest.mark.usefixtures("quick")
def test_a_peer_that_is_not_installed_is_no_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("mini_dust3r", "mini_dust3r.cloud_opt"):
        monkeypatch.setitem(sys.modules, name, None)
    rows = rows_of("alignment", peer=True)
    # It is said once.
    assert list(rows) == ["3 views", "4 views", f"{FEW}, with mini-dust3r beside"]
    assert "cannot be used" in rows[f"{FEW}, with mini-dust3r beside"].note
    assert not any(row.failed for row in rows.values())


def pretended(**given: Any) -> dict[str, object]:
    """The record of a peer that takes a minute for each pair."""
    pairs = len(given["problem"][1])
    figures = {f"{name}_{what}": 1.0 for name in ("ours", "peer") for what in ("objective", "peak_mib", "ate")}
    figures |= {"ours_afe_percent": 1.0, "peer_afe_percent": 1.0, "start_objective": 2.0, "ratio": 60.0 * pairs}
    return {**figures, "ours_s": 1.0, "peer_s": 60.0 * pairs, "peer": "slow", "peer_iterations": 300}


@pytest.mark.usefixtures("quick")
def test_a_slow_peer_is_estimated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(part_alignment, "run_alignment_benchmark", pretended)
    rows = rows_of("alignment", peer=True)
    assert rows[f"{FEW}, with mini-dust3r beside"].peer == 360.0
    estimated = rows[f"{MANY}, with mini-dust3r beside"]
    assert (estimated.value, estimated.failed) == (None, False)
    assert estimated.peer == pytest.approx(60.0 * 10)
    assert "not run" in estimated.note


def test_one_case_that_fails_leaves_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(**given: Any) -> dict[str, object]:
        if len(given["problem"][1]) == 6:
            raise RuntimeError("it broke")
        return pretended(**given)

    monkeypatch.setattr(part_alignment, "run_alignment_benchmark", failing)
    monkeypatch.setattr(part_alignment, "align", lambda *_, **__: None)
    rows = rows_of("alignment")
    assert [name for name, row in rows.items() if row.failed] == ["3 views"]
    assert figure(rows, MANY) == 1.0


def test_maps_are_smaller_where_simulating_them_would_take_too_long() -> None:
    assert size_of(1560, 0.0) == size_of(1560, 0.06) == (512, 384)
    assert size_of(1560, 0.07) == (256, 192)
