"""The part `calibration`, tiny: the whole method with a network that is told its answers."""

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import pytest
from part_runs import assert_measured, figure, rows_of
from simulated_cuda import simulated_cuda

from lora3d_ns.gpu_check import part_calibration
from lora3d_ns.gpu_check.parts import PartSettings
from lora3d_ns.gpu_check.rows import Row
from lora3d_ns.reconstruct import ReconstructSettings

STAGES = {
    "predict, before and after learning",
    "match, before and after learning",
    "align, before and after learning",
    "stereo, before and after learning",
    "finetune",
    "gate",
}
REST = "labels, fingerprints, points and all else"
LOADING = "loading what learning needs"


@pytest.fixture(name="measured", scope="module", params=["cpu", pytest.param("cuda", marks=pytest.mark.slow)])
def _measured(request: pytest.FixtureRequest) -> tuple[dict[str, Row], list[Any]]:
    """Rows of one run, and what was measured."""
    kept: list[Any] = []
    simulated = simulated_cuda() if request.param == "cuda" else contextlib.nullcontext()
    with pytest.MonkeyPatch.context() as patch, simulated:
        measure = part_calibration._measured

        def keeping(*given: Any) -> Any:
            kept.append((measure(*given), given[1].told))
            return kept[-1][0]

        patch.setattr(part_calibration, "_measured", keeping)
        patch.setattr(part_calibration, "_MOST_REPEATED_S", 0.0)
        rows = rows_of("calibration", device=request.param)
    return rows, kept


def test_every_stage_has_its_row(measured: tuple[dict[str, Row], list[Any]]) -> None:
    rows, _ = measured
    assert_measured(rows)
    assert rows.keys() == STAGES | {LOADING, "4 photos, everything", REST, "peak memory beyond the weights"}
    total = rows["4 photos, everything"]
    assert total.goal == part_calibration.TIME_GOAL
    assert figure(rows, total.name) == pytest.approx(sum(figure(rows, name) for name in STAGES | {REST}))
    assert all(figure(rows, name) > 0 for name in STAGES)
    assert "1 epochs" in rows["finetune"].note


def test_the_whole_method_ran_on_what_the_network_was_told(measured: tuple[dict[str, Row], list[Any]]) -> None:
    _, ((one, told),) = measured
    calibration = one.reconstruction.calibration
    held_out = len(calibration.finetuned.held_out)
    # One pair of photos to warm up; all pairs before and after; those held out before and after the epoch, and twice in
    # the gate.
    assert told.answered == 2 + 2 * 12 + 2 * held_out + 2 * held_out
    assert calibration.gate.accepted
    assert calibration.gate.after.label_error < calibration.gate.before.label_error
    assert one.reconstruction.adapter is not None


def test_an_adapter_that_the_gate_refuses_is_a_failure(measured: tuple[dict[str, Row], list[Any]]) -> None:
    _, ((one, _),) = measured
    refused = dataclasses.replace(one, reconstruction=dataclasses.replace(one.reconstruction, adapter=None))
    rows = {row.name: row for row in part_calibration._of_run(refused, "", None)}
    assert rows["adapter"].failed
    assert "did not run a second time" in rows["adapter"].note


def test_it_is_done_again_only_where_there_is_time(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[str] = []
    monkeypatch.setattr(part_calibration, "_measured", lambda *_: type("", (), {"seconds": 100.0})())
    monkeypatch.setattr(part_calibration, "_of_run", lambda _one, which, _goal: runs.append(which) or [])
    rows_of("calibration")
    monkeypatch.setattr(part_calibration, "_measured", lambda *_: type("", (), {"seconds": 200.0})())
    rows_of("calibration")
    assert runs == ["", ", again in the same process", ""]


def test_at_full_size_the_settings_are_the_defaults_but_for_the_learning_rate() -> None:

    chosen = part_calibration.settings_of(PartSettings(folder=Path()))
    default = ReconstructSettings().silent()
    assert chosen.finetune.learning_rate < default.finetune.learning_rate
    as_fast = dataclasses.replace(chosen.finetune, learning_rate=default.finetune.learning_rate)
    assert dataclasses.replace(chosen, finetune=as_fast) == default
