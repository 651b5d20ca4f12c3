"""nerfstudio's trainer, for people: the right device by itself, one-line errors, and nothing lost when interrupted."""

import copy
import hashlib
import json
import logging
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import psutil
import torch
import yaml
from nerfstudio.engine.schedulers import ExponentialDecaySchedulerConfig
from nerfstudio.engine.trainer import Trainer, TrainerConfig
from nerfstudio.utils.rich_utils import CONSOLE

from lora3d_ns.atomic_files import remove_leftovers, replace_file, write_text_atomically
from lora3d_ns.errors import Lora3dError, SettingsError
from lora3d_ns.plugin.dataparser import Lora3dDataParserConfig, scene_folder
from lora3d_ns.plugin.pipeline import Lora3dDataManagerConfig, default_longest_side_px

logger = logging.getLogger(__name__)

DEFAULT_ITERATIONS = 1500
STATE_FILE = "state.json"
REFINED_CAMERAS_FILE = "refined_cameras.json"
_INTERRUPTED, _NOT_DONE = 130, 2


@dataclass
class Lora3dTrainerConfig(TrainerConfig):
    """Trainer of `lora3d-splat`."""

    _target: type = field(default_factory=lambda: Lora3dTrainer)
    go_on: bool = True
    """Go on with the last run of the same settings if it was interrupted, instead of beginning another."""

    def set_timestamp(self) -> None:
        """Completes the configuration: device, where the scene lies, and which run this is.

        nerfstudio calls this before anything else, so what is wrong with the photos shows here, in one line.
        """
        show_log()
        with one_line_errors():
            self._choose_device()
            self._complete_scene()
        for group in self.optimizers.values():
            scheduler = group["scheduler"]
            if isinstance(scheduler, ExponentialDecaySchedulerConfig) and scheduler.max_steps == DEFAULT_ITERATIONS:
                scheduler.max_steps = self.max_num_iterations
        if not (sys.stdin is not None and sys.stdin.isatty()):
            # Nobody is there to stop the viewer.
            self.viewer.quit_on_train_completion = True
        if self.timestamp == "{timestamp}" and self.go_on and self.load_dir is None and self.load_checkpoint is None:
            earlier = self._interrupted_run()
            if earlier is not None:
                self.timestamp = earlier.name
                if any(self.get_checkpoint_dir().glob("step-*.ckpt")):
                    self.load_dir = self.get_checkpoint_dir()
                CONSOLE.log(f"Going on with the interrupted run {earlier} (--go-on False begins another)")
        super().set_timestamp()

    def _choose_device(self) -> None:
        if self.machine.device_type == "cuda" and not torch.cuda.is_available():
            CONSOLE.log("No CUDA device: training on the CPU, at a smaller size. `lora3d doctor` says what is missing")
            self.machine.device_type = "cpu"

    def _complete_scene(self) -> None:
        datamanager: Any = self.pipeline.datamanager
        parser = datamanager.dataparser
        if not isinstance(parser, Lora3dDataParserConfig):
            return
        data = datamanager.data or parser.data
        if data == Path():
            raise SettingsError("no photos were named", way_out="Add --data with a folder of photos")
        if isinstance(datamanager, Lora3dDataManagerConfig) and datamanager.longest_side_px is None:
            # Later commands may run on another machine, and are to measure the same.
            datamanager.longest_side_px = default_longest_side_px(self.machine.device_type)
        # Later commands run from other folders.
        data = data.absolute()
        datamanager.data = parser.data = data
        if self.data is not None:
            self.data = data
        self.output_dir = self.output_dir.absolute()
        self.set_experiment_name()
        parser.scene = scene_folder(parser, self.output_dir / str(self.experiment_name)).absolute()

    def request(self) -> str:
        """Digits that name what was asked for, whatever run it is."""
        plain = copy.deepcopy(self)
        plain.timestamp, plain.load_dir, plain.viewer.quit_on_train_completion = "", None, False
        return hashlib.sha256(yaml.dump(plain).encode()).hexdigest()[:16]

    def _interrupted_run(self) -> Path | None:
        """Folder of the newest run that was asked for the same, if it did not finish and nobody is at it."""
        runs = self.get_base_dir().parent
        request = self.request()
        for folder in sorted(runs.iterdir(), reverse=True) if runs.is_dir() else []:
            state = _read_state(folder)
            if state.get("request") != request:
                continue
            if state.get("state") == "finished" or _lives(state):
                return None
            return folder
        return None


class Lora3dTrainer(Trainer):
    """Trains, leaves checkpoints that any torch loads, and says how to go on."""

    config: Lora3dTrainerConfig

    def __init__(self, config: Lora3dTrainerConfig, local_rank: int = 0, world_size: int = 1) -> None:
        super().__init__(config, local_rank, world_size)
        # Once: training changes its configuration here and there.
        self._request = config.request()

    def setup(self, test_mode: Literal["test", "val", "inference"] = "val") -> None:
        """Scene, model, optimizers, viewer, checkpoint."""
        self._write_state("begun")
        # What a run that was killed here left unfinished.
        remove_leftovers(self.base_dir)
        for unfinished in self.base_dir.glob("step-*.ckpt"):
            unfinished.unlink()
        with one_line_errors(), self._interruptible("the scene"):
            super().setup(test_mode=test_mode)
        self._say_where_to_look()

    def train(self) -> None:
        """Trains to the end, or until it is interrupted."""
        resumed = self.config.load_dir == self.config.get_checkpoint_dir()
        total = self.config.max_num_iterations
        if resumed:
            # nerfstudio would train the whole number once more.
            self.config.max_num_iterations = max(0, total - self._start_step)
            self.step = self._start_step - 1
        try:
            with self._interruptible("the training"):
                super().train()
        finally:
            self.config.max_num_iterations = total

    def save_checkpoint(self, step: int) -> None:
        """A checkpoint, whole or not at all, of tensors and plain numbers; beside it the refined cameras."""
        self.checkpoint_dir.mkdir(parents=True, exist_ok=True)
        path = self.checkpoint_dir / f"step-{step:09d}.ckpt"
        content = {
            "step": step,
            "pipeline": self.pipeline.state_dict(),
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.optimizers.items()},
            "schedulers": {name: scheduler.state_dict() for name, scheduler in self.optimizers.schedulers.items()},
            "scalers": self.grad_scaler.state_dict(),
        }
        # Written outside: nerfstudio reads a step out of the name of whatever lies beside its checkpoints, and would
        # end at the unfinished file of a run that was killed here.
        written = self.base_dir / path.name
        with replace_file(written) as temporary:
            torch.save(plain_numbers(content), temporary)
        written.replace(path)
        if self.config.save_only_latest_checkpoint:
            for other in self.checkpoint_dir.glob("*.ckpt"):
                if other != path:
                    other.unlink()
        self._write_refined_cameras()
        self._write_state("begun", step=step)

    def _after_train(self) -> None:
        super()._after_train()
        self._write_final_state()

    def _train_complete_viewer(self) -> None:
        # Before the viewer waits: whoever kills it then kills a finished run.
        self._write_final_state()
        super()._train_complete_viewer()

    def _write_final_state(self) -> None:
        # The viewer can stop a training before its end.
        if self.step + 1 >= self._start_step + self.config.max_num_iterations:
            self._write_state("finished", step=self.step)

    # --- what remains -------------------------------------------------------------------------------

    def _write_refined_cameras(self) -> None:
        """Cameras of all training photos after refinement, in the scene's world and the photos' own pixels."""
        model: Any = self.pipeline.model
        scene = getattr(model, "photo_scene", None)
        if scene is None or not hasattr(model, "refined_cameras"):
            return
        from lora3d_ns.plugin.dataparser import nerfstudio_cameras, scene_poses

        with torch.no_grad():
            moved = model.refined_cameras(nerfstudio_cameras(scene.training).camera_to_worlds, training=True)
        cameras = [
            {
                "name": photo.name,
                "width": photo.size[0],
                "height": photo.size[1],
                "K": photo.K.tolist(),
                "T_world_camera": T_world_camera.tolist(),
            }
            for photo, T_world_camera in zip(scene.training, scene_poses(moved), strict=True)
        ]
        text = json.dumps({"convention": _CONVENTION, "cameras": cameras}, indent=1)
        write_text_atomically(self.base_dir / REFINED_CAMERAS_FILE, text + "\n")

    def _write_state(self, state: str, *, step: int | None = None) -> None:
        self.base_dir.mkdir(parents=True, exist_ok=True)
        content = {
            "state": state,
            "step": step,
            "request": self._request,
            "host": platform.node(),
            "pid": os.getpid(),
            "process_begun": psutil.Process().create_time(),
        }
        write_text_atomically(self.base_dir / STATE_FILE, json.dumps(content) + "\n")

    # --- words --------------------------------------------------------------------------------------

    def _say_where_to_look(self) -> None:
        server = getattr(self.viewer_state, "viser_server", None)
        if server is None:
            return
        port = server.get_port()
        CONSOLE.print(f"Viewer: http://localhost:{port}")
        if "SSH_CONNECTION" in os.environ or not os.environ.get("DISPLAY"):
            user, host = os.environ.get("USER", "user"), platform.node()
            CONSOLE.print(f"From another machine: ssh -L {port}:localhost:{port} {user}@{host}")

    @contextmanager
    def _interruptible(self, what: str) -> Iterator[None]:
        try:
            yield
        except KeyboardInterrupt:
            if self.training_state == "completed":
                # The viewer was closed after the training: the job is done.
                return
            if what == "the training" and self.step > self._start_step:
                # The current step may be half done: it is taken again.
                self.save_checkpoint(self.step - 1)
            CONSOLE.print(
                f"Interrupted; {what} is kept as far as it went. Run the same command again to go on.", markup=False
            )
            raise SystemExit(_INTERRUPTED) from None


_CONVENTION = (
    "T_world_camera (4x4) maps camera coordinates to world coordinates of the scene; OpenCV axes. K (3x3) is in pixels "
    "of the upright photo, the first pixel's centre at 0.5."
)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Ends the process with code 2 and one line for errors that are the user's to mend; all others pass."""
    try:
        yield
    except Lora3dError as error:
        CONSOLE.print(f"lora3d: {error}", style="bold red", markup=False, highlight=False, soft_wrap=True)
        raise SystemExit(_NOT_DONE) from error


def show_log() -> None:
    """Shows what our modules report: nerfstudio sets up no logging."""
    ours = logging.getLogger("lora3d_ns")
    if not ours.handlers and not logging.getLogger().handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(message)s"))
        ours.addHandler(handler)
        ours.setLevel(logging.INFO)


def plain_numbers(content: Any) -> Any:
    """The same nested content with Python's numbers for numpy's, which `torch.load` refuses by default."""
    if isinstance(content, dict):
        return type(content)((key, plain_numbers(value)) for key, value in content.items())
    if isinstance(content, (list, tuple)):
        return type(content)(plain_numbers(value) for value in content)
    return content.item() if isinstance(content, np.generic) else content


def _read_state(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / STATE_FILE).read_text())
    except (OSError, ValueError):
        # No run of ours, or one that died before it wrote anything.
        return {}


def _lives(state: dict[str, Any]) -> bool:
    if state.get("host") != platform.node():
        return False
    try:
        return abs(psutil.Process(int(state["pid"])).create_time() - float(state["process_begun"])) < 1.0
    except (psutil.Error, KeyError, TypeError, ValueError):
        return False
