import json
from pathlib import Path

import pytest

from lora3d_ns.errors import SettingsError
from lora3d_ns.rooms.benchmark_robustness import RobustnessSettings, robustness_markdown, run_robustness_benchmark


def test_what_must_hold_holds_on_two_small_rooms(tmp_path: Path) -> None:
    settings = RobustnessSettings(seeds=2, views=6, size=(48, 32), json_file=tmp_path / "record.json")
    record = run_robustness_benchmark(settings, show_progress=False)
    summary = record["summary"]
    assert isinstance(summary, dict)
    # All twenty seeds of ten views: BENCHMARKS.md.
    assert summary["ate_ratio"] < 0.75
    assert summary["worse"] == 0
    assert summary["wrong_edges_found"] == summary["wrong_edges"] == 4
    assert summary["edges_dropped_in_error"] == 0
    assert summary["ause_weight"] < 0.2 * summary["ause_confidence"]
    assert summary["correlation_weight"] < -0.7 < summary["correlation_confidence"]
    assert json.loads((tmp_path / "record.json").read_text())["summary"] == summary
    assert robustness_markdown(record).count("\n") == 2


def test_settings_are_checked() -> None:
    with pytest.raises(SettingsError):
        RobustnessSettings(seeds=0)
    with pytest.raises(SettingsError):
        RobustnessSettings(views=2)
