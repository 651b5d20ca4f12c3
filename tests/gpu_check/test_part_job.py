"""The part that runs nerfstudio's commands: with programs that stand in for them, and once in earnest."""

import itertools
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tyro
from plyfile import PlyData, PlyElement

from lora3d_ns.errors import DamagedFileError, RasterizerError, SplatTrainingError
from lora3d_ns.gpu_check import part_build, part_job
from lora3d_ns.gpu_check.part_job import (
    PSNR_GOAL,
    UNUSED_BY_EXPORT,
    ran,
    rows_of_metrics,
    run,
    steps_per_second,
    train_command,
    vertices,
    with_stand_ins,
)
from lora3d_ns.gpu_check.parts import PartSettings
from lora3d_ns.gpu_check.rows import Row

NAMES = [
    *("ns-train", "device", "steps per second", "ns-eval", "PSNR", "Gaussians"),
    *("ns-export", "Gaussians in the file", "whole job"),
]
METRICS = {"psnr": 25.7, "ssim": 0.8, "psnr_pose_optimized": 26.0, "held_out": 1.0, "gaussians": 3.0}


def write_ply(file: Path, places: list[list[float]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    vertex = np.array([tuple(place) for place in places], dtype=[(axis, "f4") for axis in "xyz"])
    PlyData([PlyElement.describe(vertex, "vertex")]).write(str(file))


def write_events(folder: Path, steps: list[int], seconds: list[float]) -> None:
    from tensorboard.compat.proto import event_pb2, summary_pb2
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    # Made at run time, out of descriptions.
    Event: Any = event_pb2.Event
    Summary: Any = summary_pb2.Summary
    folder.mkdir(parents=True, exist_ok=True)
    writer = EventFileWriter(str(folder))
    for step, second in zip(steps, seconds, strict=True):
        value = Summary(value=[Summary.Value(tag="Train Loss", simple_value=0.1)])
        writer.add_event(Event(step=step, wall_time=second, summary=value))
    writer.close()


# --- pieces -----------------------------------------------------------------------------------------


def test_the_command_is_what_a_user_types(tmp_path: Path) -> None:
    command = train_command(PartSettings(device="cuda", folder=tmp_path), Path("photos"))
    start = ["ns-train", "lora3d-splat", "--data", "photos", "--output-dir", str(tmp_path / "outputs")]
    assert command == [*start, "--vis", "tensorboard", "lora3d", "--network", "rooms"]


@pytest.mark.slow
@pytest.mark.parametrize(("device", "tiny"), [("cuda", False), ("cpu", True)])
def test_nerfstudio_understands_the_command(device: str, tiny: bool, tmp_path: Path) -> None:
    from nerfstudio.configs.method_configs import AnnotatedBaseConfigUnion

    command = train_command(PartSettings(device=device, tiny=tiny, folder=tmp_path), tmp_path / "photos")
    config: Any = tyro.cli(AnnotatedBaseConfigUnion, args=command[1:])
    assert config.method_name == "lora3d-splat"
    assert config.machine.device_type == device
    assert config.pipeline.datamanager.dataparser.network == "rooms"
    assert (config.max_num_iterations == 1500) is not tiny


def test_steps_per_second_leave_out_the_beginning(tmp_path: Path) -> None:
    # 20 steps per second, but for the first ones.
    steps = list(range(0, 1001, 10))
    seconds = [100.0 + step * 0.05 + (0.0 if step == 0 else 60.0) for step in steps]
    write_events(tmp_path, steps, seconds)
    rate, first, last = steps_per_second(tmp_path)
    assert rate == pytest.approx(20.0, rel=1e-3)
    assert (first, last) == (200, 1000)


def test_a_log_without_steps_is_said(tmp_path: Path) -> None:
    write_events(tmp_path / "one", [0], [1.0])
    with pytest.raises(DamagedFileError, match="1 steps"):
        steps_per_second(tmp_path / "one")
    (tmp_path / "none").mkdir()
    with pytest.raises(DamagedFileError, match="0 steps"):
        steps_per_second(tmp_path / "none")


def test_files_that_are_no_gaussians_are_refused(tmp_path: Path) -> None:
    write_ply(tmp_path / "good.ply", [[0.0, 1.0, 2.0]] * 5)
    assert vertices(tmp_path / "good.ply") == 5
    write_ply(tmp_path / "nan.ply", [[0.0, float("nan"), 2.0]])
    with pytest.raises(DamagedFileError, match="not finite"):
        vertices(tmp_path / "nan.ply")
    (tmp_path / "cut.ply").write_bytes((tmp_path / "good.ply").read_bytes()[:-7])
    (tmp_path / "words.ply").write_text("no ply")
    for name in ("cut.ply", "words.ply", "missing.ply"):
        with pytest.raises(DamagedFileError, match="no PLY"):
            vertices(tmp_path / name)


def test_new_views_are_judged() -> None:
    checkpoint = Path("step-000001499.ckpt")
    quality, count = rows_of_metrics(METRICS, checkpoint, goal=PSNR_GOAL)
    assert (quality.value, quality.met) == (25.7, True)
    assert "ssim 0.8" in quality.note
    assert (count.value, count.note) == (3.0, "after 1500 steps")
    assert next(rows_of_metrics(METRICS | {"psnr": 19.9}, checkpoint, goal=PSNR_GOAL)).met is False
    assert next(rows_of_metrics(METRICS | {"held_out": 0.0}, checkpoint, goal=None)).failed
    assert PSNR_GOAL.limit == 20.0


def test_programs_that_are_missing_or_fail_or_hang(tmp_path: Path) -> None:
    with pytest.raises(SplatTrainingError, match="ns-nothing is not on PATH"):
        ran(["ns-nothing"], tmp_path)
    name = Path(sys.executable).name
    here = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    with pytest.raises(SplatTrainingError, match=r"ended with code 3: \.\.\.the last words"):
        ran([name, "-c", "print('the last words'); raise SystemExit(3)"], tmp_path, environment=here)
    with pytest.raises(SplatTrainingError, match="not done after"):
        ran([name, "-c", "import time; time.sleep(600)"], tmp_path, environment=here, limit_s=1.0)


def test_stand_ins_are_modules_without_anything(tmp_path: Path) -> None:
    found = with_stand_ins(tmp_path / "here", ["open3d"], {"PYTHONPATH": "elsewhere"})
    assert found["PYTHONPATH"] == f"{tmp_path / 'here'}{os.pathsep}elsewhere"
    assert (tmp_path / "here" / "open3d.py").is_file()
    assert with_stand_ins(tmp_path / "there", [], {})["PYTHONPATH"] == str(tmp_path / "there")


# --- the whole part -----------------------------------------------------------------------------------


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Commands that leave what nerfstudio's would; `broken` names those that fail."""
    state = SimpleNamespace(broken=set(), device="cpu", metrics=dict(METRICS), places=[[0.0, 0.0, 1.0]] * 3, calls=[])

    def ran(command: list[str], folder: Path, **_given: object) -> float:
        state.calls.append(command)
        name = command[0]
        if name in state.broken:
            raise SplatTrainingError(f"{name} ended with code 1", way_out="Look")
        given = dict(itertools.pairwise(command))
        if name == "ns-train":
            run_folder = Path(given["--output-dir"]) / "photos" / "lora3d-splat" / "now"
            write_events(run_folder, list(range(0, 101, 10)), [float(step) for step in range(0, 101, 10)])
            (run_folder / "config.yml").write_text(f"machine:\n  device_type: {state.device}\n")
        elif name == "ns-eval":
            evaluated = {"results": state.metrics, "checkpoint": "models/step-000000100.ckpt"}
            Path(given["--output-path"]).write_text(json.dumps(evaluated))
        else:
            write_ply(Path(given["--output-dir"]) / "splat.ply", state.places)
        assert folder == tmp_path
        return 2.0

    monkeypatch.setattr(part_job, "ran", ran)
    return state


def rows_of(folder: Path) -> dict[str, Row]:
    return {row.name: row for row in run(PartSettings(device="cpu", tiny=True, folder=folder))}


def test_a_job_has_all_its_rows(programs: SimpleNamespace, tmp_path: Path) -> None:
    rows = rows_of(tmp_path)
    assert list(rows) == NAMES
    assert not any(row.failed or row.met is False for row in rows.values())
    assert rows["steps per second"].value == pytest.approx(1.0)
    # So few steps prove nothing.
    assert rows["PSNR"].goal is None
    assert [command[0] for command in programs.calls] == ["ns-train", "ns-eval", "ns-export"]
    assert len(list((tmp_path / "photos" / "images").glob("*.png"))) == 4


def test_what_the_export_does_not_need_is_stood_in_for(
    programs: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(part_job, "missing_modules", lambda: ["open3d"])
    assert rows_of(tmp_path)["ns-export"].note == "empty modules stand in for open3d"
    assert programs.calls


@pytest.mark.parametrize(
    ("change", "failed"),
    [
        ({"broken": {"ns-eval"}}, ["ns-eval", "Gaussians in the file"]),
        ({"broken": {"ns-export"}}, ["ns-export"]),
        ({"device": "cuda"}, ["device"]),
        ({"places": [[0.0, 0.0, 1.0]] * 2}, ["Gaussians in the file"]),
        ({"metrics": METRICS | {"held_out": 0.0}}, ["PSNR"]),
    ],
)
def test_what_goes_wrong_fails_alone(
    programs: SimpleNamespace, tmp_path: Path, change: dict[str, Any], failed: list[str]
) -> None:
    vars(programs).update(change)
    rows = rows_of(tmp_path)
    assert [name for name, row in rows.items() if row.failed] == failed
    assert "whole job" in rows


def test_a_training_that_fails_ends_the_part(programs: SimpleNamespace, tmp_path: Path) -> None:
    programs.broken = {"ns-train"}
    with pytest.raises(SplatTrainingError, match="ns-train ended"):
        rows_of(tmp_path)


def test_no_training_before_gsplat_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_folder: Path) -> None:
        raise RasterizerError("no compiler", way_out="Get one")

    monkeypatch.setattr(part_build, "ensure_gsplat", refused)
    rows = list(run(PartSettings(device="cuda", tiny=True, folder=tmp_path)))
    assert [(row.name, row.failed) for row in rows] == [("gsplat", True)]


@pytest.mark.slow
def test_in_earnest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """nerfstudio's own commands, the export with modules that stand in for what it does not need."""
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(part_job, "missing_modules", lambda: list(UNUSED_BY_EXPORT))
    rows = rows_of(tmp_path)
    assert list(rows) == NAMES
    assert not any(row.failed for row in rows.values()), rows
    assert rows["ns-export"].note == f"empty modules stand in for {', '.join(UNUSED_BY_EXPORT)}"
    assert rows["Gaussians in the file"].value == rows["Gaussians"].value
    for name in NAMES:
        value = rows[name].value
        assert name == "device" or (value is not None and value > 0), name
