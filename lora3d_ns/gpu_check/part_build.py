"""gsplat's CUDA code: compiled once, kept if interrupted, loaded, and seen to draw."""

import importlib.metadata
import logging
import os
import subprocess
import sys
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from lora3d_ns.errors import RasterizerError
from lora3d_ns.gpu_check.common import independent
from lora3d_ns.gpu_check.parts import PartSettings
from lora3d_ns.gpu_check.rows import Goal, Row

logger = logging.getLogger(__name__)

GSPLAT_VERSION = "1.4.0"
VALUES_GOAL = Goal(limit=1e-4)
"""The issue's goal for values of gsplat on CUDA, relative to the largest."""

LIMIT_S = 420.0
"""Of compiling: a part has 480 s, and an end of our own keeps what was compiled and leaves no compiler running."""

_COMPILE = """
import shutil
# gsplat 1.4.0 removes the folder of a build that was interrupted; ninja would go on from what is there.
shutil.rmtree = lambda *_, **__: None
from gsplat.cuda import _backend
raise SystemExit(0 if _backend._C is not None else "gsplat finds no nvcc")
"""
"""gsplat's own build, with its own flags: any others would make its first use compile everything again. It removes a
lock that was left behind by itself."""

_LAST_CHARACTERS = 400


@dataclass(frozen=True, kw_only=True)
class Build:
    """gsplat's code as it lies on this machine.

    Attributes:
        binary: The file.
        seconds: What compiling it took now; None where it was there already.
        found_objects: Compiled files of an earlier, interrupted build.
        jobs: Compilers at once.
    """

    binary: Path
    seconds: float | None
    found_objects: int
    jobs: int


def run(settings: PartSettings) -> Iterator[Row]:
    """The version, the seconds of compiling and of loading, and one Gaussian on the device."""
    yield from independent("gsplat", _version)
    if settings.device == "cuda":
        yield from independent("compiling", lambda: _compiled(settings))
        yield from independent("loading", _loaded)
    else:
        yield Row(name="compiling and loading", note="needs CUDA")
    yield from independent("one Gaussian", lambda: [one_gaussian(torch.device(settings.device))])


def ensure_gsplat(folder: Path, *, limit_s: float = LIMIT_S) -> Build:
    """gsplat's CUDA code, compiled if it is not there; what is compiled stays for the next try if time runs out.

    Architectures are torch's own choice unless TORCH_CUDA_ARCH_LIST is set: ninja compiles everything again for
    whoever asks with other flags, and `ns-train` asks with none.

    Args:
        folder: For the compilers' words, `gsplat_build.log`.
        limit_s: Seconds that compiling may take.

    Raises:
        RasterizerError: It cannot be compiled, or not within this time.
    """
    from lora3d_ns.doctor.accelerator import build_jobs
    from lora3d_ns.doctor.machine import Machine

    machine = Machine()
    jobs = int(os.environ.get("MAX_JOBS") or build_jobs(machine.cores(), machine.memory().available))
    place = machine.gsplat_folder()
    before = machine.gsplat_binary()
    found = len(list(place.glob("*.o")))
    if before is not None:
        return Build(binary=before, seconds=None, found_objects=found, jobs=jobs)
    log = folder / "gsplat_build.log"
    logger.info("compiling gsplat in %s with %d jobs: minutes; %d files were compiled before", place, jobs, found)
    begun = time.perf_counter()
    code = run_until(
        [sys.executable, "-c", _COMPILE], log, limit_s=limit_s, environment=os.environ | {"MAX_JOBS": str(jobs)}
    )
    seconds = time.perf_counter() - begun
    if code is None:
        raise RasterizerError(
            f"gsplat is not compiled after {limit_s:.0f} s with {jobs} jobs ({len(list(place.glob('*.o')))} files are)",
            way_out="Run the part `build` again: it goes on from there",
        )
    binary = machine.gsplat_binary()
    if code != 0 or binary is None:
        words = " ".join(log.read_text(errors="replace").split())[-_LAST_CHARACTERS:]
        raise RasterizerError(
            f"gsplat cannot be compiled (code {code}): ...{words}", way_out="`lora3d doctor` says what it needs"
        )
    return Build(binary=binary, seconds=seconds, found_objects=found, jobs=jobs)


def run_until(
    command: Sequence[str], log_file: Path, *, limit_s: float, environment: Mapping[str, str] = os.environ
) -> int | None:
    """Runs a program, its words going into a file; its code, or None if it was ended, with all that it had started.

    Ninja puts compilers into process groups of their own, so that ending the program's group would not end them.
    """
    log_file.parent.mkdir(parents=True, exist_ok=True)
    with log_file.open("wb") as log:
        process = subprocess.Popen(list(command), stdout=log, stderr=subprocess.STDOUT, env=dict(environment))
        try:
            return process.wait(timeout=limit_s)
        except subprocess.TimeoutExpired:
            return None
        finally:
            _end(process)


def _end(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is not None:
        return
    with suppress(psutil.NoSuchProcess):
        own = psutil.Process(process.pid)
        started: list[psutil.Process] = []
        # Twice, as one that was not yet stopped may have started another.
        for _ in range(2):
            started = own.children(recursive=True)
            for child in started:
                with suppress(psutil.NoSuchProcess):
                    child.suspend()
        for child in started:
            with suppress(psutil.NoSuchProcess):
                child.kill()
    process.kill()
    process.wait()


def gsplat_first(settings: PartSettings, *, say_where: bool = False) -> Generator[Row, None, bool]:
    """Rows of the build, for a part that needs gsplat; returns whether it can be used.

    Whatever uses it without would begin the build from nothing.

    Args:
        settings: Of the part.
        say_where: Whether there is a row too where gsplat was compiled already.
    """
    ready = True
    for row in independent("gsplat", lambda: _built(settings, say_where=say_where)):
        ready &= not row.failed
        yield row
    return ready


def _built(settings: PartSettings, *, say_where: bool) -> Iterator[Row]:
    build = ensure_gsplat(settings.folder)
    if build.seconds is not None:
        yield Row(name="compiling gsplat", value=build.seconds, unit="s", note="it was not there yet")
    elif say_where:
        yield Row(name="gsplat", note=f"compiled: {build.binary}")


def _version() -> Iterator[Row]:
    found = importlib.metadata.version("gsplat")
    yield Row(name=f"gsplat {found}", note=f"goal: {GSPLAT_VERSION}", failed=found != GSPLAT_VERSION)


def _compiled(settings: PartSettings) -> Iterator[Row]:
    build = ensure_gsplat(settings.folder)
    where = f"{build.binary}, for {os.environ.get('TORCH_CUDA_ARCH_LIST') or 'the visible devices (+PTX)'}"
    if build.seconds is None:
        yield Row(name="compiling", note=f"was there already: {where}")
        return
    before = f", {build.found_objects} files from an earlier build" if build.found_objects else ""
    yield Row(name="compiling", value=build.seconds, unit="s", note=f"{build.jobs} jobs{before}; {where}")


def _loaded() -> Iterator[Row]:
    from lora3d_ns.doctor.machine import Machine

    if Machine().gsplat_binary() is None:
        # Importing it would begin the build once more, from nothing.
        yield Row(name="loading", note="not compiled", failed=True)
        return
    begun = time.perf_counter()
    from gsplat.cuda import _backend

    seconds = time.perf_counter() - begun
    failed = _backend._C is None
    yield Row(name="loading", value=seconds, unit="s", note="`from gsplat.cuda._backend import _C`", failed=failed)


def one_gaussian(device: torch.device) -> Row:
    """One Gaussian in the middle of a pixel: that pixel shows its colour, dimmed by its opacity."""
    from lora3d_ns.doctor.machine import Machine
    from lora3d_ns.splat.rasterizer import choose_rasterizer

    name = f"one Gaussian on {device.type}"
    if device.type == "cuda" and Machine().gsplat_binary() is None:
        return Row(name=name, note="not compiled", failed=True)
    colour, opacity = torch.tensor([[0.9, 0.5, 0.2]], device=device), torch.tensor([0.6], device=device)
    image, _, _ = choose_rasterizer(device)(
        means=torch.tensor([[0.0, 0.0, 2.0]], device=device),
        quats=torch.tensor([[1.0, 0.0, 0.0, 0.0]], device=device),
        scales=torch.full((1, 3), 0.2, device=device),
        opacities=opacity,
        colors=colour,
        viewmats=torch.eye(4, device=device)[None],
        Ks=torch.tensor([[[20.0, 0.0, 8.5], [0.0, 20.0, 8.5], [0.0, 0.0, 1.0]]], device=device),
        width=17,
        height=17,
        packed=False,
    )
    expected = (opacity * colour[0]).cpu()
    difference = float((image[0, 8, 8].cpu() - expected).abs().max() / expected.max())
    return Row(name=name, value=difference, goal=VALUES_GOAL, note="relative error of the pixel in its middle")
