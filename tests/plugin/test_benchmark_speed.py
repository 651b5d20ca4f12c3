"""Speed of training: both methods do the same work, and the clock counts what it should."""

import contextlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from simulated_cuda import CudaTensor, simulated_cuda
from torch import Tensor

from lora3d_ns.errors import SettingsError
from lora3d_ns.photo_scene import PhotoScene
from lora3d_ns.plugin import benchmark_speed
from lora3d_ns.plugin.benchmark_speed import measured_speed, our_config, stock_config
from lora3d_ns.splat import rasterizer
from lora3d_ns.splat.rasterize_cpu import rasterization


def on_cuda(**given: Any) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Our rasterizer in gsplat's place on the simulated device."""
    tensors = {name: value for name, value in given.items() if isinstance(value, Tensor)}
    assert all(isinstance(value, CudaTensor) for value in tensors.values())
    calls.append((given["width"], given["height"], len(tensors["means"])))
    image, alpha, info = rasterization(
        **{name: value.cpu() if name in tensors else value for name, value in given.items()}
    )
    there = {name: value.to("cuda") if isinstance(value, Tensor) else value for name, value in info.items()}
    return image.to("cuda"), alpha.to("cuda"), there


calls: list[tuple[int, int, int]] = []


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A simulated device for both methods; stock Splatfacto compiles a function, which needs a real one."""
    import nerfstudio.models.splatfacto

    monkeypatch.setattr(nerfstudio.models.splatfacto, "rasterization", on_cuda)
    monkeypatch.setattr(rasterizer, "_gsplat_on_cuda", lambda: on_cuda)
    calls.clear()
    # Not by monkeypatch: what that takes back, torch's settings hide from whoever comes next.
    with torch._dynamo.config.patch(disable=True), simulated_cuda():
        yield


@pytest.mark.usefixtures("cuda")
def test_both_methods_do_the_same_work(scene: PhotoScene, photos: Path, tmp_path: Path) -> None:
    found, drawn = [], []
    for config in (
        our_config(scene, photos, tmp_path, start="points", device="cuda"),
        stock_config(scene, photos, tmp_path, device="cuda"),
    ):
        calls.clear()
        found.append(measured_speed(config, iterations=5, warm_up=2, limit_s=60.0))
        drawn.append(list(calls))
    count = len(scene.scene.points)
    for speed, drawings in zip(found, drawn, strict=True):
        assert (speed.gaussians, speed.steps) == (count, 5)
        assert math.isfinite(speed.loss)
        # Training alone: nothing is evaluated in between, and every picture is of full size.
        assert drawings == [(96, 64, count)] * 5
    assert type(stock_config(scene, photos, tmp_path, device="cuda").pipeline.model).__name__ == "SplatfactoModelConfig"


def test_our_seeds_are_another_start(scene: PhotoScene, photos: Path, tmp_path: Path) -> None:
    config = our_config(scene, photos, tmp_path, start="seeds", device="cpu")
    speed = measured_speed(config, iterations=3, warm_up=0, limit_s=60.0)
    assert 0 < speed.gaussians < len(scene.scene.points)
    assert speed.seconds == pytest.approx(3 / speed.steps_per_second, rel=0.01)
    # No checkpoint: it would be measured too.
    assert not list(tmp_path.rglob("*.ckpt"))


def test_the_methods_are_otherwise_as_users_have_them(scene: PhotoScene, photos: Path, tmp_path: Path) -> None:
    from nerfstudio.configs.method_configs import method_configs

    from lora3d_ns.plugin.method import lora3d_splat

    def changed(config: Any, plain: Any) -> set[str]:
        return {name for name, value in vars(config.pipeline.model).items()
                if value != getattr(plain.pipeline.model, name)}  # fmt: skip

    ours = our_config(scene, photos, tmp_path, start="points", device="cuda")
    stock = stock_config(scene, photos, tmp_path, device="cuda")
    assert changed(ours, lora3d_splat.config) == {"seeding", "lpips"}
    assert changed(stock, method_configs["splatfacto"]) == {"stop_split_at", "num_downscales"}
    assert not ours.pipeline.model.densify
    assert stock.pipeline.datamanager.cache_images_type == ours.pipeline.datamanager.cache_images_type
    assert stock.logging.steps_per_log == ours.logging.steps_per_log


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """A trainer whose steps take as long as is said, without waiting for them."""
    now = [100.0]
    monkeypatch.setattr(benchmark_speed.time, "perf_counter", lambda: now[0])

    class Trainer:
        device = "cpu"

        def __init__(self, seconds: list[float]) -> None:
            self.seconds = seconds

        def train_iteration(self, step: int) -> tuple[Tensor, None, None]:
            now[0] += self.seconds[step]
            return torch.tensor(0.5), None, None

    def run(seconds: list[float], **given: Any) -> Any:
        trainer: Any = Trainer(seconds)
        clock = benchmark_speed._Clock(trainer, **given)
        with contextlib.suppress(benchmark_speed._EnoughError):
            for step in range(len(seconds)):
                trainer.train_iteration(step)
            pytest.fail("it went on")
        return clock

    return run


def test_the_clock_leaves_out_the_warm_up(clock: Callable[..., Any]) -> None:
    found = clock([60.0, 1.0, 0.5, 0.5, 0.5, 0.5], iterations=6, warm_up=2, limit_s=1000.0)
    assert (found.steps, found.loss) == (6, 0.5)
    assert (found.warm - found.begun, found.ended - found.warm) == (61.0, 2.0)


def test_the_clock_stops_when_time_is_up(clock: Callable[..., Any]) -> None:
    # Not during the warm-up: there would be nothing to measure.
    found = clock([60.0, 60.0, *[10.0] * 20], iterations=22, warm_up=2, limit_s=100.0)
    assert found.steps == 4
    assert found.ended - found.warm == 20.0


def test_nothing_left_after_the_warm_up_is_refused(scene: PhotoScene, photos: Path, tmp_path: Path) -> None:
    config = our_config(scene, photos, tmp_path, start="points", device="cpu")
    with pytest.raises(SettingsError, match="warm up"):
        measured_speed(config, iterations=5, warm_up=5, limit_s=60.0)
