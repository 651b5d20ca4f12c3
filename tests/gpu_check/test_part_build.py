"""Building gsplat: what an interrupted build has finished stays, and nothing of it goes on running."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from lora3d_ns.doctor.machine import Machine
from lora3d_ns.errors import RasterizerError
from lora3d_ns.gpu_check import part_build
from lora3d_ns.gpu_check.part_build import Build, ensure_gsplat, one_gaussian, run, run_until
from lora3d_ns.gpu_check.parts import PartSettings
from lora3d_ns.gpu_check.rows import Row


def test_on_a_cpu_everything_but_the_build_is_there(tmp_path: Path) -> None:
    rows = {row.name: row for row in run(PartSettings(device="cpu", tiny=True, folder=tmp_path))}
    assert list(rows) == ["gsplat 1.4.0", "compiling and loading", "one Gaussian on cpu"]
    assert not any(row.failed for row in rows.values())
    assert rows["compiling and loading"].note == "needs CUDA"
    assert rows["one Gaussian on cpu"].met


def test_another_version_is_not_accepted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(part_build, "GSPLAT_VERSION", "1.5.0")
    first = next(run(PartSettings(device="cpu", tiny=True, folder=tmp_path)))
    assert first == Row(name="gsplat 1.4.0", note="goal: 1.5.0", failed=True)


def test_a_wrong_picture_misses_the_goal(monkeypatch: pytest.MonkeyPatch) -> None:
    from lora3d_ns.splat import rasterizer

    chosen = rasterizer.choose_rasterizer

    def disturbed(device: torch.device):
        def rasterize(**given):
            image, alpha, info = chosen(device)(**given)
            return image * 1.001, alpha, info

        return rasterize

    monkeypatch.setattr(rasterizer, "choose_rasterizer", disturbed)
    row = one_gaussian(torch.device("cpu"))
    assert row.value == pytest.approx(1e-3, rel=0.01)
    assert row.met is False


def lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_what_ran_too_long_is_ended_with_what_it_had_started(tmp_path: Path) -> None:
    # In a process group of its own, as ninja's compilers are.
    program = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
print(child.pid, flush=True)
time.sleep(600)
"""
    assert run_until([sys.executable, "-c", program], tmp_path / "log", limit_s=5.0) is None
    child = int((tmp_path / "log").read_text())
    deadline = time.monotonic() + 10.0
    while lives(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not lives(child)
    assert run_until([sys.executable, "-c", "raise SystemExit(5)"], tmp_path / "log", limit_s=60.0) == 5


@pytest.fixture
def half_a_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which one file was compiled before, for gsplat's own code, with an nvcc that compiles nothing."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for name, words in (("nvcc", "Cuda compilation tools, release 13.2, V13.2.0"), ("ninja", "1.11.0")):
        program = programs / name
        refuse = f'case "$*" in *version*) echo "{words}"; exit 0;; *) echo refused by the test; exit 9;; esac'
        program.write_text(f"#!/bin/sh\n{refuse}\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))
    # Without a device torch would not know for what to compile.
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0+PTX")
    place = Machine().gsplat_folder()
    assert place.is_relative_to(tmp_path)
    (place / "finished.cuda.o").write_text("compiled before")
    (place / "lock").touch()
    return place


def test_a_build_that_fails_says_why_and_keeps_what_was_compiled(half_a_build: Path, tmp_path: Path) -> None:
    with pytest.raises(RasterizerError, match="cannot be compiled"):
        ensure_gsplat(tmp_path, limit_s=120.0)
    # gsplat got as far as starting ninja, which refused; it would have removed this file on its own.
    assert "refused by the test" in (tmp_path / "gsplat_build.log").read_text()
    assert (half_a_build / "finished.cuda.o").exists()
    assert (half_a_build / "build.ninja").exists()


def test_without_our_change_gsplat_would_begin_anew(half_a_build: Path) -> None:
    # The reason for that change; if this fails, gsplat has mended it.
    subprocess.run([sys.executable, "-c", "from gsplat.cuda import _backend"], capture_output=True, check=False)
    assert (half_a_build / "build.ninja").exists()
    assert not (half_a_build / "finished.cuda.o").exists()


def test_a_build_that_takes_too_long_says_how_far_it_is(half_a_build: Path, tmp_path: Path) -> None:
    assert half_a_build.is_dir()
    with pytest.raises(RasterizerError, match=r"not compiled after 0 s with \d+ jobs \(1 files are\).*again"):
        ensure_gsplat(tmp_path, limit_s=0.3)


def test_what_is_there_is_not_compiled_again(half_a_build: Path, tmp_path: Path) -> None:
    (half_a_build / "gsplat_cuda.so").touch()
    build = ensure_gsplat(tmp_path)
    assert (build.binary, build.seconds) == (half_a_build / "gsplat_cuda.so", None)
    assert not (tmp_path / "gsplat_build.log").exists()


def test_rows_of_a_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAX_JOBS", "16")
    settings = PartSettings(device="cuda", folder=tmp_path)
    built = Build(binary=tmp_path / "gsplat_cuda.so", seconds=200.0, found_objects=3, jobs=16)
    monkeypatch.setattr(part_build, "ensure_gsplat", lambda _folder: built)
    (row,) = part_build._compiled(settings)
    assert (row.value, row.unit, row.failed) == (200.0, "s", False)
    assert "16 jobs, 3 files from an earlier build" in row.note
    monkeypatch.setattr(Machine, "gsplat_binary", lambda _machine: None)
    (row,) = part_build._loaded()
    assert (row.failed, row.note) == (True, "not compiled")
    assert one_gaussian(torch.device("cuda")).failed
