"""Training and evaluation of splats from Python, as `ns-train` and `ns-eval` do it."""

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora3d_ns.photo_scene import PhotoScene
from lora3d_ns.plugin.trainer import Lora3dTrainerConfig


@dataclass(frozen=True, eq=False, kw_only=True)
class TrainedSplats:
    """What a training left.

    Attributes:
        config_file: `config.yml` of the run, for all ns-* commands.
        metrics: Means over the photos of the evaluation, see `Lora3dSplatModel.get_image_metrics_and_images`.
        gaussians: How many.
        iterations: Steps in all.
        renders: Folder with photo, rendering, and rendering from the optimised pose side by side; None if not wanted.
    """

    config_file: Path
    metrics: dict[str, float]
    gaussians: int
    iterations: int
    renders: Path | None


def train_splats(
    scene: PhotoScene,
    photos: Path,
    output: Path,
    *,
    iterations: int | None = None,
    change: Callable[[Lora3dTrainerConfig], None] | None = None,
    renders: Path | None = None,
    quiet: bool = False,
) -> TrainedSplats:
    """Gaussian splats of a finished scene, by the method `lora3d-splat` without a viewer.

    Args:
        scene: The scene.
        photos: Folder of its photos.
        output: nerfstudio's output folder.
        iterations: Steps; by default the method's.
        change: Makes further changes to the configuration.
        renders: Where photos beside renderings go.
        quiet: Without nerfstudio's table of steps.

    Raises:
        Lora3dError: The scene cannot be read.
    """
    from nerfstudio.scripts.train import _set_random_seed as set_random_seed

    from lora3d_ns.plugin.method import lora3d_splat

    config: Any = copy.deepcopy(lora3d_splat.config)
    config.output_dir = output
    config.vis = "tensorboard"
    config.viewer.quit_on_train_completion = True
    config.pipeline.datamanager.data = photos
    config.pipeline.datamanager.dataparser.data = photos
    config.pipeline.datamanager.dataparser.scene = scene.folder
    if iterations is not None:
        config.max_num_iterations = iterations
    if quiet:
        config.logging.local_writer.enable = False
    config.logging.profiler = "none"
    if change is not None:
        change(config)
    config.set_timestamp()
    config.save_config()
    _forget_earlier_runs()
    set_random_seed(config.machine.seed)
    trainer = config.setup(local_rank=0, world_size=1)
    trainer.setup()
    trainer.train()
    metrics = trainer.pipeline.get_average_eval_image_metrics(output_path=renders)
    (trainer.base_dir / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n")
    return TrainedSplats(
        config_file=trainer.base_dir / "config.yml",
        metrics=metrics,
        gaussians=trainer.pipeline.model.num_points,
        iterations=config.max_num_iterations,
        renders=renders,
    )


def _forget_earlier_runs() -> None:
    """nerfstudio keeps the writers of every run of a process, whose folders may be gone."""
    from nerfstudio.utils import writer

    writer.EVENT_WRITERS.clear()
    writer.EVENT_STORAGE.clear()
    writer.GLOBAL_BUFFER.clear()
