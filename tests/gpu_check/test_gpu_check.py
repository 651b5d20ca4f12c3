"""The frame of `lora3d benchmark gpu`: rows, parts, processes; not what the parts measure."""

import dataclasses
import json
import math
import time
from pathlib import Path

import psutil
import pytest
import torch

from lora3d_ns.cli import main
from lora3d_ns.errors import SettingsError
from lora3d_ns.gpu_check import runner
from lora3d_ns.gpu_check.parts import PARTS, part_function
from lora3d_ns.gpu_check.rows import Goal, Row, json_of_row, row_of_json, table
from lora3d_ns.gpu_check.runner import GpuCheckSettings, environment, exit_code, run_gpu_check


@pytest.mark.parametrize(
    ("row", "met"),
    [
        (Row(name="x", value=1.0), None),
        (Row(name="x", value=1.0, goal=Goal(limit=1.0)), True),
        (Row(name="x", value=1.1, goal=Goal(limit=1.0)), False),
        (Row(name="x", value=0.9, goal=Goal(limit=1.0, sense="at least")), False),
        (Row(name="x", value=math.nan, goal=Goal(limit=1.0)), False),
        (Row(name="x", goal=Goal(limit=1.0)), False),
        (Row(name="x", failed=True), False),
    ],
)
def test_goals_are_judged(row: Row, met: bool | None) -> None:
    assert row.met is met
    assert row.record("part")["met"] is met


def test_rows_survive_the_way_between_processes() -> None:
    rows = [
        Row(name="all", value=0.5, unit="s", goal=Goal(limit=0.6), peer=2.0, note='words\nand "marks"'),
        Row(name="nothing", note="needs CUDA", failed=True),
    ]
    for row in rows:
        assert row_of_json(json_of_row(row)) == row
        assert "\n" not in json_of_row(row)


def test_the_table_shows_every_row_in_one_line() -> None:
    rows = [
        Row(name="speed", value=12.345, unit="s", goal=Goal(limit=2.0), peer=61.7, note="a | b\nc"),
        Row(name="memory", value=3.0, unit="GiB"),
        Row(name="none", note="needs CUDA"),
    ]
    lines = table([row.record("inference") for row in rows]).splitlines()
    assert lines[2:] == [
        "| inference | speed | 12.35 s | <= 2 | **no** | 61.7 | a / b c |",
        "| inference | memory | 3 GiB |  |  |  |  |",
        "| inference | none | - |  |  |  | needs CUDA |",
    ]


@pytest.mark.parametrize("part", PARTS)
def test_every_part_can_be_loaded(part: str) -> None:
    assert callable(part_function(part))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"parts": ("inferrence",)}, "inferrence"),
        ({"parts": ()}, "no part"),
        ({"device": "cpu"}, "--tiny"),
        ({"device": "tpu"}, "tpu"),
        ({"limit_s": 0.0}, "limit_s"),
    ],
)
def test_wrong_settings_are_refused(wrong: dict, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        GpuCheckSettings(**wrong)


@pytest.fixture
def stubs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "_CHILD", "stub_child")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))


@pytest.mark.usefixtures("stubs")
def test_what_fails_crashes_or_hangs_does_not_stop_the_others(tmp_path: Path) -> None:
    settings = GpuCheckSettings(
        parts=("network", "machine", "build", "tests", "rasterizer"),
        device="cpu",
        tiny=True,
        limit_s=10.0,
        json_file=tmp_path / "gpu.json",
        folder=tmp_path / "kept",
    )
    record = run_gpu_check(settings)
    assert json.loads((tmp_path / "gpu.json").read_text()) == record
    # In their own order, whatever order they were asked for in.
    assert list(record["seconds"]) == ["machine", "build", "tests", "rasterizer", "network"]
    rows = {part: [row for row in record["rows"] if row["part"] == part] for part in record["seconds"]}
    # What was found before the end is kept.
    assert all(of_part[0]["name"] == "a figure" and of_part[0]["met"] for of_part in rows.values())
    assert len(rows["machine"]) == 1
    assert record["missed"] == ["build: too slow"]
    assert record["failed"] == ["tests: tests stopped", "rasterizer: rasterizer stopped", "network: network stopped"]
    notes = {part: rows[part][1]["note"] for part in ("tests", "rasterizer", "network")}
    assert notes["tests"] == "RuntimeError: it broke"
    assert "code 7" in notes["rasterizer"]
    assert "the last words" in notes["rasterizer"]
    assert notes["network"] == "not done after 10 s"
    assert "Traceback" in (tmp_path / "kept" / "tests.log").read_text()
    sleeper = int((tmp_path / "kept" / "network" / "pid").read_text())
    for _ in range(100):
        if not psutil.pid_exists(sleeper) or psutil.Process(sleeper).status() == psutil.STATUS_ZOMBIE:
            break
        time.sleep(0.1)
    else:
        pytest.fail("what a part started outlived it")
    assert exit_code(record) == 1


def test_exit_codes() -> None:
    assert exit_code({"not_run": None, "failed": [], "missed": []}) == 0
    assert exit_code({"not_run": None, "failed": ["x"], "missed": []}) == 1
    assert exit_code({"not_run": None, "failed": [], "missed": ["x"]}) == 1
    assert exit_code({"not_run": "no GPU", "failed": [], "missed": []}) == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_nothing_is_run_and_that_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(["benchmark", "gpu", "--parts", "machine", "inference", "--json", str(tmp_path / "gpu.json")])
    assert exit_info.value.code == 2
    assert "finds no CUDA device: nothing was run" in capsys.readouterr().out
    record = json.loads((tmp_path / "gpu.json").read_text())
    assert [(row["part"], row["value"], row["note"]) for row in record["rows"]] == [
        ("machine", None, "not run"),
        ("inference", None, "not run"),
    ]


def test_the_command_has_the_settings_of_the_check() -> None:
    from lora3d_ns.cli_benchmarks_gpu import BenchmarkGpu

    command = {field.name: field.default for field in dataclasses.fields(BenchmarkGpu)}
    check = {field.name: field.default for field in dataclasses.fields(GpuCheckSettings)}
    assert command.pop("json") is check.pop("json_file")
    assert command == check


def test_a_part_finds_the_package_its_programs_and_its_method() -> None:
    found = environment({"PATH": "somewhere", "PYTHONPATH": "elsewhere", "NERFSTUDIO_METHOD_CONFIGS": "mine=a:b"})
    package = Path(runner.__file__).parents[2]
    assert found["PYTHONPATH"].split(":") == [str(package), "elsewhere"]
    assert found["PATH"].endswith(":somewhere")
    assert found["NERFSTUDIO_METHOD_CONFIGS"] == "mine=a:b"
    assert found["NERFSTUDIO_DATAPARSER_CONFIGS"] == "lora3d=lora3d_ns.plugin.dataparser:lora3d"
