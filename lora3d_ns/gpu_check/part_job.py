"""The commands that a user types, on the demo's room with the bundled network: train, evaluate, export."""

import importlib.util
import json
import logging
import math
import os
import shlex
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lora3d_ns.errors import DamagedFileError, SplatTrainingError
from lora3d_ns.gpu_check.common import independent
from lora3d_ns.gpu_check.part_build import gsplat_first, run_until
from lora3d_ns.gpu_check.parts import PartSettings
from lora3d_ns.gpu_check.rows import Goal, Row
from lora3d_ns.network.checkpoints import BUNDLED_NETWORK
from lora3d_ns.rooms.generator import demo_room, write_scene

logger = logging.getLogger(__name__)

PSNR_GOAL = Goal(limit=20.0, sense="at least")
"""New views that are right at all: the same job on a CPU, at 256 pixels, has 25.7 dB."""

UNUSED_BY_EXPORT = ("open3d", "pymeshlab", "xatlas")
"""What `ns-export` imports for meshes and point clouds, whatever it exports: half a gigabyte that Gaussians do not
need. Where one is missing an empty module stands in for it."""

_NOTE_CHARACTERS = 400
_COMMAND_S = 300.0
_TINY_STEPS = 31
_LOSS = "Train Loss"
_WARM_UP_SHARE = 0.2


def run(settings: PartSettings) -> Iterator[Row]:
    """Seconds of the job and of each command, quality of new views, Gaussians, steps per second, the exported file."""
    if settings.device == "cuda" and not (yield from gsplat_first(settings)):
        return
    folder = settings.folder
    photos = folder / "photos"
    count, size = (4, (96, 72)) if settings.tiny else (6, (512, 384))
    write_scene(photos, demo_room(photo_count=count, size=size))
    begun = time.perf_counter()
    # Without a trained scene there is nothing to go on with.
    seconds = ran(train_command(settings, photos), folder)
    config = newest_config(folder)
    yield Row(name="ns-train", value=seconds, unit="s", note=f"{count} photos of {size[0]}x{size[1]}, scene included")
    yield from independent("training", lambda: _training(settings, config))
    gaussians: list[int] = []
    for name, rows in (
        ("ns-eval", lambda: _evaluated(settings, config, gaussians)),
        ("ns-export", lambda: _exported(settings, config, gaussians)),
    ):
        yield from independent(name, rows)
    yield Row(name="whole job", value=time.perf_counter() - begun, unit="s", note="photos to an exported file")


def train_command(settings: PartSettings, photos: Path) -> list[str]:
    """As a user types it; what is more is for a device that was asked for, and for tiny."""
    command = ["ns-train", "lora3d-splat", "--data", str(photos), "--output-dir", str(settings.folder / "outputs")]
    command += ["--vis", "tensorboard"]
    small = ["--max-num-iterations", str(_TINY_STEPS), "--pipeline.model.test-pose-steps", "2"]
    # Its weights would have to be fetched.
    small += ["--pipeline.model.lpips", "False"]
    command += small if settings.tiny else []
    on_cpu = settings.device == "cpu"
    command += ["--machine.device-type", "cpu"] if on_cpu else []
    command += ["lora3d", "--network", BUNDLED_NETWORK, *(["--arm", "robust"] if settings.tiny else [])]
    return [*command, *(["--device", "cpu"] if on_cpu else [])]


def ran(
    command: Sequence[str],
    folder: Path,
    *,
    environment: Mapping[str, str] = os.environ,
    limit_s: float = _COMMAND_S,
) -> float:
    """Seconds that a command took.

    Args:
        command: A program that is found on PATH, which need not lie beside this Python, and its words.
        folder: For its log.
        environment: Of the program.
        limit_s: Then it is ended.

    Raises:
        SplatTrainingError: There is no such program, it fails, or it is not done in time.
    """
    program = shutil.which(command[0])
    if program is None:
        raise SplatTrainingError(f"{command[0]} is not on PATH", way_out="Put nerfstudio's programs there")
    logger.info("$ %s", shlex.join(command))
    log = folder / f"{command[0]}.log"
    begun = time.perf_counter()
    code = run_until([program, *command[1:]], log, limit_s=limit_s, environment=environment)
    seconds = time.perf_counter() - begun
    if code != 0:
        words = " ".join(log.read_text(errors="replace").split())[-_NOTE_CHARACTERS:]
        ended = f"is not done after {limit_s:.0f} s" if code is None else f"ended with code {code}"
        raise SplatTrainingError(f"{command[0]} {ended}: ...{words}", way_out=f"Run it alone: {shlex.join(command)}")
    return seconds


def newest_config(folder: Path) -> Path:
    """`config.yml` of the last run; runs are named by their time.

    Raises:
        SplatTrainingError: There is none.
    """
    found = sorted((folder / "outputs").glob("*/lora3d-splat/*/config.yml"))
    if not found:
        raise SplatTrainingError("ns-train left no config.yml", way_out="Its own words are in ns-train.log")
    return found[-1]


def steps_per_second(run_folder: Path) -> tuple[float, int, int]:
    """Steps per second of a training as its log for TensorBoard has it, and from which step to which that is.

    Raises:
        DamagedFileError: The log does not hold two steps after the warm-up.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log: Any = EventAccumulator(str(run_folder), size_guidance={"scalars": 0})
    log.Reload()
    events = log.Scalars(_LOSS) if _LOSS in log.Tags()["scalars"] else []
    last = events[-1].step if events else 0
    late = [event for event in events if event.step >= _WARM_UP_SHARE * last]
    if len(late) < 2 or late[-1].wall_time <= late[0].wall_time:
        raise DamagedFileError(f"there are {len(events)} steps in it", way_out="Train for longer", path=run_folder)
    rate = (late[-1].step - late[0].step) / (late[-1].wall_time - late[0].wall_time)
    return rate, late[0].step, last


def with_stand_ins(folder: Path, names: Sequence[str], environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The environment in which modules of these names can be imported, and are empty."""
    for name in names:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.py").write_text('"""Empty: stands in for a package that is not installed."""\n')
    paths = [str(folder), *environment.get("PYTHONPATH", "").split(os.pathsep)]
    return {**environment, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}


def missing_modules() -> list[str]:
    """Those of `UNUSED_BY_EXPORT` that are not installed."""
    return [name for name in UNUSED_BY_EXPORT if importlib.util.find_spec(name) is None]


def vertices(file: Path) -> int:
    """Number of Gaussians in a PLY file, all of them at finite places.

    Raises:
        DamagedFileError: It cannot be read, or a place is not finite.
    """
    import numpy as np
    from plyfile import PlyData, PlyParseError

    try:
        vertex = PlyData.read(str(file))["vertex"]
        places = np.stack([np.asarray(vertex[axis]) for axis in "xyz"])
    except (PlyParseError, OSError, KeyError, ValueError) as error:
        raise DamagedFileError(f"no PLY file of Gaussians ({error})", way_out="Export again", path=file) from error
    if not np.isfinite(places).all():
        raise DamagedFileError("a Gaussian's place is not finite", way_out="Train again", path=file)
    return places.shape[1]


def _training(settings: PartSettings, config: Path) -> Iterator[Row]:
    on_device = f"device_type: {settings.device}" in config.read_text()
    yield Row(
        name="device", note=settings.device if on_device else "another one, says config.yml", failed=not on_device
    )
    rate, first, last = steps_per_second(config.parent)
    note = f"from step {first} to {last}, with what is saved and evaluated in between"
    yield Row(name="steps per second", value=rate, unit="1/s", note=note)


def _evaluated(settings: PartSettings, config: Path, gaussians: list[int]) -> Iterator[Row]:
    file = settings.folder / "eval.json"
    file.unlink(missing_ok=True)
    seconds = ran(["ns-eval", "--load-config", str(config), "--output-path", str(file)], settings.folder)
    yield Row(name="ns-eval", value=seconds, unit="s")
    evaluated = json.loads(file.read_text())
    goal = None if settings.tiny else PSNR_GOAL
    yield from rows_of_metrics(evaluated["results"], Path(evaluated["checkpoint"]), goal=goal)
    gaussians.append(round(evaluated["results"]["gaussians"]))


def rows_of_metrics(metrics: Mapping[str, float], checkpoint: Path, *, goal: Goal | None) -> Iterator[Row]:
    """Rows of what `ns-eval` wrote."""
    others = {name: metrics[name] for name in ("ssim", "lpips", "psnr_pose_optimized") if name in metrics}
    words = ", ".join(f"{name} {value:.3g}" for name, value in others.items())
    held_out = metrics["held_out"] > 0
    note = f"{words}; a photo that nothing had seen" if held_out else "no photo was held out"
    yield Row(name="PSNR", value=metrics["psnr"], unit="dB", goal=goal, note=note, failed=not held_out)
    steps = int(checkpoint.stem.removeprefix("step-")) + 1
    yield Row(name="Gaussians", value=metrics["gaussians"], note=f"after {steps} steps")


def _exported(settings: PartSettings, config: Path, gaussians: Sequence[int]) -> Iterator[Row]:
    missing = missing_modules()
    environment = with_stand_ins(settings.folder / "stand_ins", missing)
    folder = settings.folder / "export"
    command = ["ns-export", "gaussian-splat", "--load-config", str(config), "--output-dir", str(folder)]
    note = f"empty modules stand in for {', '.join(missing)}" if missing else ""
    seconds = ran(command, settings.folder, environment=environment)
    yield Row(name="ns-export", value=seconds, unit="s", note=note)
    found = vertices(folder / "splat.ply")
    expected = gaussians[0] if gaussians else math.nan
    same = found == expected
    note = "as many as were trained" if same else f"{expected} were trained"
    yield Row(name="Gaussians in the file", value=float(found), note=note, failed=not same)
