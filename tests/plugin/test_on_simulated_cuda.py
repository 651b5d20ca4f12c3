"""Splats on a simulated CUDA device: everything but gsplat's own kernels, for which our rasterizer stands in."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from simulated_cuda import CudaTensor, simulated_cuda
from torch import Tensor

from lora3d_ns.photo_scene import PhotoScene
from lora3d_ns.plugin.training import TrainedSplats, train_splats
from lora3d_ns.splat import rasterizer
from lora3d_ns.splat.rasterize_cpu import rasterization


def stand_in() -> Callable[..., Any]:
    """Takes tensors of the device and returns such, as gsplat's function does."""

    def rasterize(**given: Any) -> tuple[Tensor, Tensor, dict[str, Any]]:
        tensors = {name: value for name, value in given.items() if isinstance(value, Tensor)}
        # gsplat refuses everything else.
        assert all(isinstance(value, CudaTensor) for value in tensors.values())
        here: dict[str, Any] = {
            name: value.cpu() if isinstance(value, Tensor) else value for name, value in given.items()
        }
        image, alpha, info = rasterization(**here)
        there = {name: value.to("cuda") if isinstance(value, Tensor) else value for name, value in info.items()}
        return image.to("cuda"), alpha.to("cuda"), there

    return rasterize


def quick(config: Any) -> None:
    config.pipeline.model.lpips = False
    config.logging.local_writer.enable = False
    config.steps_per_eval_image = config.steps_per_eval_batch = config.steps_per_eval_all_images = 10_000


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rasterizer, "_gsplat_on_cuda", stand_in)


@pytest.mark.usefixtures("cuda")
def test_training_and_evaluation_are_those_of_the_cpu(scene: PhotoScene, photos: Path, tmp_path: Path) -> None:
    def trained(folder: str) -> TrainedSplats:
        return train_splats(scene, photos, tmp_path / folder, iterations=6, change=quick, quiet=True)

    wanted = trained("cpu")
    with simulated_cuda() as transfers:
        found = trained("cuda")
    assert transfers["to cuda"] > 0
    assert not torch.cuda.is_available()
    assert "device_type: cuda" in found.config_file.read_text()
    assert "device_type: cpu" in wanted.config_file.read_text()
    assert found.gaussians == wanted.gaussians
    assert found.metrics["held_out"] == 1.0
    for name in ("psnr", "psnr_pose_optimized"):
        assert found.metrics[name] == pytest.approx(wanted.metrics[name], abs=0.05)
