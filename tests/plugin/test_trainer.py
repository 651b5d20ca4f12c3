"""Runs that are interrupted, resumed, evaluated; and what a person sees when something is wrong."""

import copy
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from nerfstudio.utils.eval_utils import eval_setup

import lora3d_ns.photo_scene as photo_scene_module
from lora3d_ns.photo_scene import PhotoScene
from lora3d_ns.plugin.method import lora3d_splat
from lora3d_ns.plugin.trainer import (
    REFINED_CAMERAS_FILE,
    STATE_FILE,
    Lora3dTrainerConfig,
    one_line_errors,
    plain_numbers,
)
from lora3d_ns.plugin.training import TrainedSplats

Train = Callable[..., TrainedSplats]


def checkpoints(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "nerfstudio_models").iterdir())


def state_of(run: Path) -> dict[str, Any]:
    return json.loads((run / STATE_FILE).read_text())


@pytest.fixture(scope="module")
def trained(train: Train, tmp_path_factory: pytest.TempPathFactory) -> TrainedSplats:
    return train(tmp_path_factory.mktemp("trained"), 15)


def test_a_checkpoint_holds_tensors_and_plain_numbers(trained: TrainedSplats) -> None:
    run = trained.config_file.parent
    assert checkpoints(run) == ["step-000000014.ckpt"]
    loaded = torch.load(run / "nerfstudio_models" / "step-000000014.ckpt", weights_only=True)
    assert loaded["step"] == 14
    assert set(loaded["optimizers"]) == {*lora3d_splat.config.optimizers}
    assert "camera_opt" in loaded["schedulers"]
    assert state_of(run)["state"] == "finished"


def test_a_checkpoint_is_not_beside_the_others_before_it_is_whole(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """nerfstudio's own loading ends at anything there that is no checkpoint, and so would a run after a kill."""
    from lora3d_ns.plugin import trainer

    beside: list[list[str]] = []
    whole = torch.save

    def noting(content: Any, path: Path) -> None:
        beside.append(sorted(other.name for other in tmp_path.rglob("nerfstudio_models/*")))
        whole(content, path)

    def every_five(config: Any) -> None:
        config.steps_per_save = 5

    monkeypatch.setattr(trainer.torch, "save", noting)
    trained = train(tmp_path, 11, change=every_five)
    assert len(beside) >= 2
    assert beside[0] == []
    assert all(name.endswith(".ckpt") for names in beside for name in names)
    assert checkpoints(trained.config_file.parent) == ["step-000000010.ckpt"]
    assert not list(trained.config_file.parent.glob("*.ckpt"))


def test_numbers_of_numpy_become_pythons() -> None:
    content = {"a": np.float64(0.5), "b": [np.int64(3), (np.float32(1.5), "x", None)], "c": torch.ones(2)}
    plain = plain_numbers(content)
    assert plain["a"] == 0.5
    assert type(plain["a"]) is float
    assert type(plain["b"][0]) is int
    assert type(plain["b"][1][0]) is float
    assert plain["b"][1][1:] == ("x", None)
    assert plain["c"] is content["c"]


def test_evaluation_finds_scene_and_cameras_without_the_network(
    trained: TrainedSplats, scene: PhotoScene, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("the network was asked for")

    monkeypatch.setattr(photo_scene_module, "open_source", never)
    monkeypatch.setattr(photo_scene_module, "reconstruct", never)
    # From another folder, as users do.
    monkeypatch.chdir(tmp_path)
    _, pipeline, _, step = eval_setup(trained.config_file, test_mode="test")
    assert step == 14
    found: Any = pipeline.get_average_eval_image_metrics()
    for name in ("psnr", "ssim", "psnr_pose_optimized", "held_out", "gaussians"):
        assert found[name] == pytest.approx(trained.metrics[name], rel=1e-4), name
    refined = json.loads((trained.config_file.parent / REFINED_CAMERAS_FILE).read_text())["cameras"]
    assert [camera["name"] for camera in refined] == [photo.name for photo in scene.training]
    datamanager: Any = pipeline.datamanager
    shown = datamanager.train_dataset.cameras.camera_to_worlds
    for camera, c2w, photo in zip(refined, shown, scene.training, strict=True):
        T_world_camera = torch.tensor(camera["T_world_camera"])
        assert torch.allclose(T_world_camera[:3, 3], c2w[:, 3], atol=1e-5)
        assert torch.allclose(T_world_camera[:3, 1], -c2w[:, 1], atol=1e-5)
        assert camera["K"] == photo.K.tolist()


def test_refinement_moved_the_cameras_but_the_first(trained: TrainedSplats, scene: PhotoScene) -> None:
    refined = json.loads((trained.config_file.parent / REFINED_CAMERAS_FILE).read_text())["cameras"]
    moved = [
        float((torch.tensor(camera["T_world_camera"]) - photo.T_world_camera.float()).abs().max())
        for camera, photo in zip(refined, scene.training, strict=True)
    ]
    assert moved[0] < 1e-6
    assert min(moved[1:]) > 1e-6


def test_an_interrupted_run_goes_on_to_its_end(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C at step 8 of 15: code 130, a checkpoint, and the same call trains the rest in the same folder."""
    from lora3d_ns.plugin.model import Lora3dSplatModel

    whole = Lora3dSplatModel.step_cb
    stepped: list[int] = []

    def interrupted(self: Lora3dSplatModel, optimizers: Any, step: int) -> None:
        stepped.append(step)
        if step == 8:
            raise KeyboardInterrupt
        whole(self, optimizers, step)

    monkeypatch.setattr(Lora3dSplatModel, "step_cb", interrupted)
    with pytest.raises(SystemExit) as ended:
        train(tmp_path, 15)
    assert ended.value.code == 130
    (run,) = (tmp_path / "photos" / "lora3d-splat").iterdir()
    assert checkpoints(run) == ["step-000000007.ckpt"]

    # nerfstudio looks for an argument of the name `step`.
    def counted(self: Lora3dSplatModel, optimizers: Any, step: int) -> None:
        stepped.append(step)
        whole(self, optimizers, step)

    monkeypatch.setattr(Lora3dSplatModel, "step_cb", counted)
    # A process that lives is at work on its run; this one is only between two calls.
    _pretend_dead(run)
    stepped.clear()
    done = train(tmp_path, 15)
    assert done.config_file.parent == run
    assert stepped == list(range(8, 15))
    assert checkpoints(run) == ["step-000000014.ckpt"]
    assert state_of(run)["state"] == "finished"
    # A finished run is not gone on with.
    time.sleep(1.1)
    assert train(tmp_path, 15).config_file.parent != run


def test_other_settings_are_another_run(train: Train, tmp_path: Path) -> None:
    first = train(tmp_path, 3).config_file.parent
    content = state_of(first)
    (first / STATE_FILE).write_text(json.dumps({**content, "state": "begun"}))
    _pretend_dead(first)
    time.sleep(1.1)
    assert train(tmp_path, 4).config_file.parent != first


def _pretend_dead(run: Path) -> None:
    content = state_of(run)
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    (run / STATE_FILE).write_text(json.dumps({**content, "pid": process.pid}))


def test_nobody_takes_the_run_of_a_living_process(train: Train, tmp_path: Path) -> None:
    run = train(tmp_path, 3).config_file.parent
    (run / STATE_FILE).write_text(json.dumps({**state_of(run), "state": "begun"}))
    time.sleep(1.1)
    assert train(tmp_path, 3).config_file.parent != run


def test_killed_in_the_middle_and_run_again(photos: Path, scene: PhotoScene, tmp_path: Path) -> None:
    """kill -9 during training by `ns-train`'s own entry: the same command goes on after the last checkpoint."""
    program = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
import copy
from nerfstudio.scripts.train import main
from lora3d_ns.plugin.method import lora3d_splat
config = copy.deepcopy(lora3d_splat.config)
config.vis, config.output_dir, config.data = "tensorboard", Path({str(tmp_path)!r}), Path({str(photos)!r})
config.pipeline.datamanager.dataparser.scene = Path({str(scene.folder)!r})
config.pipeline.datamanager.longest_side_px = 48
config.pipeline.model.lpips = False
config.steps_per_save, config.max_num_iterations = 5, 60
config.steps_per_eval_image = 0
main(config)
"""
    environment = {**os.environ, "COLUMNS": "200"}
    first = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.DEVNULL, env=environment)
    runs = tmp_path / "photos" / "lora3d-splat"
    for _ in range(1200):
        time.sleep(0.1)
        if any(runs.glob("*/nerfstudio_models/step-*.ckpt")):
            break
        assert first.poll() is None, "it ended before its first checkpoint"
    first.send_signal(signal.SIGKILL)
    first.wait()
    (run,) = runs.iterdir()
    assert state_of(run)["state"] == "begun"
    again = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=False
    )
    assert again.returncode == 0, again.stdout[-3000:] + again.stderr[-3000:]
    assert "Going on with the interrupted run" in again.stdout
    assert list(runs.iterdir()) == [run]
    assert checkpoints(run) == ["step-000000059.ckpt"]
    assert state_of(run)["state"] == "finished"


# --- words ----------------------------------------------------------------------------------------


def config_for(data: Path | None, output: Path, **parser: Any) -> Lora3dTrainerConfig:
    config: Any = copy.deepcopy(lora3d_splat.config)
    config.output_dir = output
    config.pipeline.datamanager.data = data
    for name, value in parser.items():
        setattr(config.pipeline.datamanager.dataparser, name, value)
    return config


@pytest.mark.parametrize("wrong", ["nothing", "missing", "empty", "interval"])
def test_bad_input_is_one_line_and_code_2(
    wrong: str, tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    data = {"nothing": None, "missing": tmp_path / "missing", "empty": tmp_path / "empty", "interval": photos}[wrong]
    config = config_for(data, tmp_path / "out", **({"eval_interval": 1} if wrong == "interval" else {}))
    with pytest.raises(SystemExit) as ended:
        config.set_timestamp()
    assert ended.value.code == 2
    said = capsys.readouterr().out
    (line,) = [line for line in said.splitlines() if line.startswith("lora3d: ")]
    expected = {
        "nothing": "no photos were named. Add --data",
        "missing": str(tmp_path / "missing"),
        "empty": "no photos in this folder",
        "interval": "an interval of 1",
    }[wrong]
    assert expected in line
    assert not (tmp_path / "out").exists()


def test_errors_of_others_pass() -> None:
    with pytest.raises(ZeroDivisionError), one_line_errors():
        raise ZeroDivisionError


def test_the_configuration_is_completed(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(photos.parent)
    config: Any = config_for(Path("photos"), Path("out"))
    config.max_num_iterations = 77
    config.set_timestamp()
    parser = config.pipeline.datamanager.dataparser
    assert parser.data == photos
    assert parser.scene.parent == photos.parent / "out" / "photos"
    assert config.output_dir == photos.parent / "out"
    assert config.viewer.quit_on_train_completion
    assert config.optimizers["means"]["scheduler"].max_steps == 77
    if not torch.cuda.is_available():
        assert config.machine.device_type == "cpu"
    # What is written can be read.
    again = yaml.load(yaml.dump(config), Loader=yaml.Loader)
    assert again.request() == config.request()


def test_the_method_is_registered() -> None:
    from nerfstudio.configs.dataparser_configs import all_dataparsers
    from nerfstudio.configs.method_configs import all_methods

    assert isinstance(all_methods["lora3d-splat"], Lora3dTrainerConfig)
    assert all_methods["lora3d-splat"].vis == "viewer+tensorboard"
    assert "lora3d" in all_dataparsers


@pytest.mark.parametrize("count", [1, 2, 3, 9, 10, pytest.param(40, marks=pytest.mark.slow)])
def test_any_number_of_photos_trains_and_evaluates(
    count: int, train: Train, photos_and_scene: Callable[..., tuple[Path, PhotoScene]], tmp_path: Path
) -> None:
    folder, made = photos_and_scene(tmp_path, count)
    assert len(made.held_out) == {1: 0, 2: 0, 3: 1, 9: 1, 10: 1, 40: 5}[count]
    done = train(tmp_path / "out", 4, scene=made, photos=folder)
    assert done.metrics["held_out"] == (1.0 if count >= 3 else 0.0)
    assert done.metrics["psnr"] > 8.0


def test_portrait_and_landscape_train_together(
    train: Train, photos_and_scene: Callable[..., tuple[Path, PhotoScene]], tmp_path: Path
) -> None:
    folder, made = photos_and_scene(tmp_path, 4, portrait=(1, 2))
    assert [photo.size for photo in made.photos] == [(96, 64), (64, 96), (64, 96), (96, 64)]
    assert [photo.size for photo in made.held_out] == [(64, 96)]
    done = train(tmp_path / "out", 8, scene=made, photos=folder, renders=tmp_path / "renders")
    assert done.metrics["psnr"] > 8.0
