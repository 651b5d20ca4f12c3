"""Runs the parts of the check one after another, each in a process of its own that has eight minutes."""

import contextlib
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from lora3d_ns.benchmark_record import machine_record, write_record
from lora3d_ns.errors import SettingsError
from lora3d_ns.gpu_check.parts import PARTS
from lora3d_ns.gpu_check.rows import Row, row_of_json
from lora3d_ns.progress import progress_bar

logger = logging.getLogger(__name__)

_PART_S = 480.0
_CHILD = "lora3d_ns.gpu_check.child"
_NOTE_CHARACTERS = 300


@dataclass(frozen=True, kw_only=True)
class GpuCheckSettings:
    """Settings of `run_gpu_check`."""

    parts: tuple[str, ...] = tuple(PARTS)
    """Which parts of `lora3d_ns.gpu_check.parts.PARTS`; they run in this order."""
    device: str = "cuda"
    """`cuda`; or `cpu` together with `tiny`, to try the check itself."""
    tiny: bool = False
    """Everything so small that a CPU is through in seconds; says nothing of speed."""
    peer: bool = True
    """Whether to run mini-dust3r too, where it is installed."""
    limit_s: float = _PART_S
    """Seconds that a part has; then it is stopped, and what it had found stays."""
    seed: int = 0
    """Of weights, images and rooms."""
    json_file: Path | None = None
    """File for the record, written again after every part."""
    folder: Path | None = None
    """Folder that keeps what the parts wrote, with a log of each; by default nothing is kept."""

    def __post_init__(self) -> None:
        unknown = sorted(set(self.parts) - set(PARTS))
        if unknown or not self.parts:
            which = f"there is no part {unknown[0]!r}" if unknown else "no part is chosen"
            raise SettingsError(which, way_out=f"Use some of {', '.join(PARTS)}")
        if self.device.split(":")[0] not in ("cuda", "cpu"):
            raise SettingsError(f"device is {self.device!r}", way_out="Use cuda or cpu")
        if self.device == "cpu" and not self.tiny:
            raise SettingsError(
                "the check of the CUDA path cannot run on the CPU at full size",
                way_out="Run it on a machine with an NVIDIA GPU, or try its logic with `--device cpu --tiny`",
            )
        if not self.limit_s > 0:
            raise SettingsError(f"limit_s is {self.limit_s}", way_out="Use a positive number of seconds")


def run_gpu_check(settings: GpuCheckSettings) -> dict[str, Any]:
    """Runs the parts and gathers their rows; a part that fails, hangs or crashes leaves a row that says so.

    Args:
        settings: Which parts, where, how large.

    Returns:
        The record that is also written as JSON: `rows` (`part`, `name`, `value`, `unit`, `goal`, `met`, `peer`,
        `note`, `failed`), `seconds` by part, `failed` (rows that failed), `missed` (rows whose goal was not met) and
        `not_run`, why nothing ran, where there is no GPU.
    """
    here = torch.device(settings.device)
    missing = None
    if here.type == "cuda" and not torch.cuda.is_available():
        missing = f"torch {torch.__version__} finds no CUDA device: nothing was run (`lora3d doctor` says why)"
        here = torch.device("cpu")
    record: dict[str, Any] = machine_record(command="benchmark gpu", device=here, seed=settings.seed)
    record |= {"parts": list(settings.parts), "tiny": settings.tiny, "not_run": missing}
    rows: list[dict[str, Any]] = []
    seconds: dict[str, float] = {}

    def gathered() -> dict[str, Any]:
        failed = [f"{row['part']}: {row['name']}" for row in rows if row["failed"]]
        missed = [f"{row['part']}: {row['name']}" for row in rows if row["met"] is False and not row["failed"]]
        return {**record, "rows": rows, "seconds": seconds, "failed": failed, "missed": missed}

    if missing is not None:
        rows += [Row(name=what, note="not run").record(part) for part, what in PARTS.items() if part in settings.parts]
        write_record(gathered(), settings.json_file)
        return gathered()
    with _folder(settings.folder) as folder, progress_bar("GPU check", len(settings.parts)) as advance:
        for part in (name for name in PARTS if name in settings.parts):
            logger.info("%s: %s", part, PARTS[part])
            begun = time.perf_counter()
            found = _run_part(part, settings, folder / part)
            seconds[part] = time.perf_counter() - begun
            rows += [row.record(part) for row in found]
            write_record(gathered(), settings.json_file)
            advance(1)
    return gathered()


@contextlib.contextmanager
def _folder(folder: Path | None) -> Iterator[Path]:
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder.resolve()
        return
    with tempfile.TemporaryDirectory() as temporary:
        yield Path(temporary)


def _run_part(part: str, settings: GpuCheckSettings, folder: Path) -> list[Row]:
    """The rows that a part wrote before it ended, and one more if it did not end well."""
    with tempfile.TemporaryDirectory() as temporary:
        rows_file, log_file = Path(temporary) / "rows.jsonl", folder.with_suffix(".log")
        rows_file.touch()
        command = [sys.executable, "-m", _CHILD, part, "--device", settings.device]
        command += ["--seed", str(settings.seed), "--folder", str(folder), "--rows", str(rows_file)]
        command += ["--tiny"] * settings.tiny + ["--no-peer"] * (not settings.peer)
        folder.mkdir(parents=True, exist_ok=True)
        with log_file.open("wb") as log:
            # A session of its own: what the part started goes with it.
            process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, env=environment(), start_new_session=True
            )
            try:
                code: int | None = process.wait(timeout=settings.limit_s)
            except subprocess.TimeoutExpired:
                code = None
            finally:
                _end(process)
        rows = [row_of_json(line) for line in rows_file.read_text().splitlines()]
        if code is None:
            rows.append(Row(name=f"{part} stopped", note=f"not done after {settings.limit_s:.0f} s", failed=True))
        elif code != 0 and not any(row.failed for row in rows):
            rows.append(Row(name=f"{part} stopped", note=f"code {code}; {_last_words(log_file)}", failed=True))
        return rows


def environment(given: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment of a part: the package, its commands and its nerfstudio method are found, installed or not.

    Args:
        given: The variables of this process; what they set already stays.
    """
    import lora3d_ns

    package = str(Path(lora3d_ns.__file__).parents[1])
    paths = [package, *given.get("PYTHONPATH", "").split(os.pathsep)]
    programs = [str(Path(sys.executable).parent), given.get("PATH", os.defpath)]
    return {
        "NERFSTUDIO_METHOD_CONFIGS": "lora3d-splat=lora3d_ns.plugin.method:lora3d_splat",
        "NERFSTUDIO_DATAPARSER_CONFIGS": "lora3d=lora3d_ns.plugin.dataparser:lora3d",
        **given,
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "PATH": os.pathsep.join(programs),
        "PYTHONUNBUFFERED": "1",
    }


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Ends the part and whatever it left running; compilers that ninja started are not in the part's group."""
    try:
        family = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        family = []
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    process.wait()


def _last_words(log_file: Path) -> str:
    lines = [line for line in log_file.read_text(errors="replace").splitlines() if line.strip()]
    return " / ".join(lines[-3:])[-_NOTE_CHARACTERS:]


def exit_code(record: Mapping[str, Any]) -> int:
    """0 if every part worked and met its goals, 1 if something failed or missed its goal, 2 if nothing ran."""
    if record["not_run"]:
        return 2
    return 1 if record["failed"] or record["missed"] else 0
