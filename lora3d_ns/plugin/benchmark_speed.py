"""How fast splats are trained, against stock Splatfacto: the same scene and photos, nerfstudio's own loop for both."""

import copy
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import torch

from lora3d_ns.errors import SettingsError
from lora3d_ns.photo_scene import PhotoScene

Start = Literal["points", "seeds"]


@dataclass(frozen=True, kw_only=True)
class TrainingSpeed:
    """What a training took. Building the model and loading photos do not count.

    Attributes:
        steps_per_second: After the warm-up.
        seconds: From the first step to the last that was asked for.
        steps: How many were really taken; fewer than asked for where time ran out, and then `seconds` is extrapolated.
        gaussians: In the end.
        loss: Of the last step.
    """

    steps_per_second: float
    seconds: float
    steps: int
    gaussians: int
    loss: float


def our_config(scene: PhotoScene, photos: Path, output: Path, *, start: Start, device: str) -> Any:
    """The method `lora3d-splat` as it is, without the measurements in between.

    Args:
        scene: The scene.
        photos: Folder of its photos.
        output: nerfstudio's output folder.
        start: `seeds` of ours, or all `points` with Splatfacto's sizes and opacities, as stock Splatfacto begins.
        device: `cuda` or `cpu`.
    """
    from lora3d_ns.plugin.method import lora3d_splat

    config: Any = copy.deepcopy(lora3d_splat.config)
    config.pipeline.datamanager.data = photos
    config.pipeline.model.seeding = "weighted" if start == "seeds" else "stock"
    config.pipeline.model.lpips = False
    return _for_timing(config, scene, photos, output, device)


def stock_config(scene: PhotoScene, photos: Path, output: Path, *, device: str) -> Any:
    """nerfstudio's `splatfacto` as it is, on our scene, but for what would make the work another.

    No Gaussian is split or removed, and photos are of full size from the first step (its own schedule reaches that
    after 6000).
    """
    from nerfstudio.configs.method_configs import method_configs

    from lora3d_ns.plugin.dataparser import Lora3dDataParserConfig

    config: Any = copy.deepcopy(method_configs["splatfacto"])
    config.pipeline.datamanager.dataparser = Lora3dDataParserConfig()
    config.pipeline.model.stop_split_at = 0
    config.pipeline.model.num_downscales = 0
    return _for_timing(config, scene, photos, output, device)


def measured_speed(config: Any, *, iterations: int, warm_up: int, limit_s: float) -> TrainingSpeed:
    """Trains and looks at the clock.

    Args:
        config: From `our_config` or `stock_config`.
        iterations: Steps that are asked for.
        warm_up: Of these, the first ones, which do not count for the rate.
        limit_s: Seconds after which it is enough.

    Raises:
        SettingsError: Nothing would be left after the warm-up.
        Lora3dError: The scene cannot be read.
    """
    if not 0 <= warm_up < iterations:
        raise SettingsError(f"{iterations} steps, {warm_up} of them to warm up", way_out="Use more steps")
    import torch._dynamo as dynamo
    from nerfstudio.scripts.train import _set_random_seed as set_random_seed

    from lora3d_ns.plugin.training import _forget_earlier_runs as forget_earlier_runs

    config.max_num_iterations = iterations
    config.set_timestamp()
    config.save_config()
    forget_earlier_runs()
    set_random_seed(config.machine.seed)
    with _without_perceptual_metric():
        trainer = config.setup(local_rank=0, world_size=1)
        trainer.setup()
    clock = _Clock(trainer, iterations=iterations, warm_up=warm_up, limit_s=limit_s)
    try:
        # Splatfacto compiles a small function, and goes without that where there is no compiler for it.
        with dynamo.config.patch(suppress_errors=True), suppress(_EnoughError):
            trainer.train()
    finally:
        forget_earlier_runs()
    rate = (clock.steps - warm_up) / (clock.ended - clock.warm)
    return TrainingSpeed(
        steps_per_second=rate,
        seconds=clock.ended - clock.begun + (iterations - clock.steps) / rate,
        steps=clock.steps,
        gaussians=int(trainer.pipeline.model.num_points),
        loss=clock.loss,
    )


class _EnoughError(Exception):
    """Ends nerfstudio's loop, which would save and evaluate at its end."""


class _Clock:
    """Takes the place of a trainer's steps."""

    def __init__(self, trainer: Any, *, iterations: int, warm_up: int, limit_s: float) -> None:
        self._step = trainer.train_iteration
        self._device = torch.device(trainer.device)
        self._iterations, self._warm_up, self._limit_s = iterations, warm_up, limit_s
        self.begun = self.warm = self.ended = 0.0
        self.steps, self.loss = 0, float("nan")
        trainer.train_iteration = self

    def __call__(self, step: int) -> Any:
        if step == 0:
            self.begun = self._now()
        if step == self._warm_up:
            self.warm = self._now()
        result = self._step(step)
        # Two steps at least, so that there is something to divide by. This clock does not wait for the device.
        out_of_time = step > self._warm_up and time.perf_counter() - self.begun > self._limit_s
        if step + 1 == self._iterations or out_of_time:
            self.ended = self._now()
            self.steps, self.loss = step + 1, float(result[0])
            raise _EnoughError
        return result

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


def _for_timing(config: Any, scene: PhotoScene, photos: Path, output: Path, device: str) -> Any:
    """What both have in common."""
    config.output_dir = output
    config.experiment_name = "speed"
    config.vis = "tensorboard"
    config.viewer.quit_on_train_completion = True
    config.machine.device_type = device
    config.pipeline.datamanager.dataparser.data = photos
    config.pipeline.datamanager.dataparser.scene = scene.folder
    # Never.
    config.steps_per_eval_batch = config.steps_per_eval_image = config.steps_per_eval_all_images = 0
    config.steps_per_save = 0
    config.logging.local_writer.enable = False
    config.logging.profiler = "none"
    if hasattr(config, "go_on"):
        config.go_on = False
    return config


@contextmanager
def _without_perceptual_metric() -> Iterator[None]:
    """Splatfacto builds LPIPS, which is not asked for here, and fetches its weights for that."""
    with mock.patch("torchmetrics.image.lpip.LearnedPerceptualImagePatchSimilarity", _NoMetric):
        yield


class _NoMetric(torch.nn.Module):
    def __init__(self, **_: Any) -> None:
        super().__init__()
