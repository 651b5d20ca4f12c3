"""The whole round on a machine without CUDA: train, evaluate, render, export and view by nerfstudio's own commands.

ns-train, ns-eval and ns-viewer run as processes of their own, the others by their entry points in this one: a process
takes ten seconds to start.
"""

import contextlib
import functools
import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tyro
from browser import VISER_SAYS_ALWAYS, require_chromium, screenshot
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.configs.method_configs import AnnotatedBaseConfigUnion
from nerfstudio.scripts import render
from nerfstudio.utils.eval_utils import eval_setup
from PIL import Image
from plyfile import PlyData
from system_packages import ns_export
from test_browser import free_port

import lora3d_ns.photo_scene as photo_scene_module
from lora3d_ns.geometry.similarity import weighted_similarity
from lora3d_ns.photo_scene import PhotoScene, load_photo_scene
from lora3d_ns.plugin.first_view import first_view
from lora3d_ns.splat.seed import seed_gaussians

STEPS = 30
WIDTH, HEIGHT = 96, 64
"""Of the photos."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Round:
    """A training by the real command.

    Attributes:
        config_file: For all other commands.
        scene_folder: Made by the training.
        said: Its whole output.
        port: Of its viewer.
    """

    config_file: Path
    scene_folder: Path
    said: str
    port: int


def command(name: str) -> str:
    return str(Path(sysconfig.get_path("scripts")) / name)


def run_command(*words: str, folder: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    """One of nerfstudio's commands, with nobody at the keyboard."""
    return subprocess.run(
        [command(words[0]), *words[1:]],
        cwd=folder,
        env={**os.environ, "COLUMNS": "250", **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def files_in(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        + str(path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def trained(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Round:
    output, port = tmp_path_factory.mktemp("round"), free_port()
    done = run_command(
        *("ns-train", "lora3d-splat", "--data", os.path.relpath(photos, output), "--output-dir", "out"),
        *("--max-num-iterations", str(STEPS), "--viewer.websocket-port", str(port)),
        *("--pipeline.model.lpips", "False", "--pipeline.model.test-pose-steps", "10"),
        *("lora3d", "--network", "rooms", "--arm", "robust"),
        folder=output,
        SSH_CONNECTION="192.0.2.1 50000 192.0.2.2 22",
        USER="ada",
    )
    assert done.returncode == 0, done.stdout[-4000:]
    place = output / "out" / photos.name
    (config_file,) = place.glob("lora3d-splat/*/config.yml")
    (scene_folder,) = place.glob("lora3d-scene-*")
    # Whoever asked the network from now on would make it anew.
    shutil.rmtree(place / ".lora3d-cache")
    return Round(config_file=config_file, scene_folder=scene_folder, said=done.stdout, port=port)


@pytest.fixture
def finished(trained: Round, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Round]:
    """The run, used from another folder; nothing may ask the network or touch the scene."""

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("the network was asked for")

    monkeypatch.setattr(photo_scene_module, "open_source", never)
    monkeypatch.setattr(photo_scene_module, "reconstruct", never)
    monkeypatch.chdir(tmp_path)
    before = files_in(trained.scene_folder)
    yield trained
    assert files_in(trained.scene_folder) == before
    assert not (trained.scene_folder.parent / ".lora3d-cache").exists()


@pytest.fixture(scope="module")
def scene(trained: Round, photos: Path) -> PhotoScene:
    return load_photo_scene(trained.scene_folder, photos)


@pytest.fixture
def entry(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Runs an entry point as its command does."""

    def call(module: Any, *words: str) -> None:
        monkeypatch.setattr(sys, "argv", [module.__name__, *words])
        module.entrypoint()

    return call


# --- ns-train -------------------------------------------------------------------------------------


def test_training_says_where_to_look_and_ends_by_itself(trained: Round, scene: PhotoScene) -> None:
    assert f"Viewer: http://localhost:{trained.port}\n" in trained.said
    assert f"ssh -L {trained.port}:localhost:{trained.port} ada@" in trained.said
    assert "No CUDA device" in trained.said or torch.cuda.is_available()
    (held_out,) = scene.held_out
    assert f"Held out for evaluation: {held_out.name}\n" in trained.said
    assert "Training Finished" in trained.said
    assert "Traceback" not in trained.said
    run = trained.config_file.parent
    assert json.loads((run / "state.json").read_text())["state"] == "finished"
    assert [path.name for path in (run / "nerfstudio_models").iterdir()] == [f"step-{STEPS - 1:09d}.ckpt"]
    assert any(run.glob("events.out.tfevents.*")), "nothing for TensorBoard"


def test_a_wrong_folder_is_one_line_and_code_2(tmp_path: Path) -> None:
    done = run_command("ns-train", "lora3d-splat", "--data", "fotos", folder=tmp_path)
    assert done.returncode == 2
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("lora3d: ")]
    assert line == f"lora3d: {tmp_path / 'fotos'}: no such folder. Check the path"
    assert "Traceback" not in done.stdout
    assert list(tmp_path.iterdir()) == []


# --- ns-eval --------------------------------------------------------------------------------------


def test_ns_eval_writes_both_protocols_as_json(finished: Round, tmp_path: Path) -> None:
    done = run_command(
        *("ns-eval", "--load-config", str(finished.config_file), "--output-path", "eval/metrics.json"),
        *("--render-output-path", "eval/pictures"),
        folder=tmp_path,
    )
    assert done.returncode == 0, done.stdout[-4000:]

    def no_number(word: str) -> Any:
        raise AssertionError(f"{word} is no JSON")

    content = json.loads((tmp_path / "eval" / "metrics.json").read_text(), parse_constant=no_number)
    results = content["results"]
    assert content["method_name"] == "lora3d-splat"
    assert results["held_out"] == 1.0
    # Measured: 21.3; one colour everywhere has 17.8 on this photo.
    assert results["psnr"] > 19.5
    assert results["psnr_pose_optimized"] >= results["psnr"] - 0.2
    assert 0.0 < results["ssim"] <= 1.0
    assert results["gaussians"] > 1000
    (picture,) = (tmp_path / "eval" / "pictures").glob("*.png")
    with Image.open(picture) as image:
        assert image.size == (3 * WIDTH, HEIGHT)


# --- ns-render ------------------------------------------------------------------------------------


@pytest.fixture
def ffmpeg(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """ns-render asks whether ffmpeg is there even if it makes no video."""
    if shutil.which("ffmpeg") is None:
        (tmp_path / "bin").mkdir()
        (tmp_path / "bin" / "ffmpeg").write_text("#!/bin/sh\nexit 1\n")
        (tmp_path / "bin" / "ffmpeg").chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")


def pictures_in(folder: Path) -> list[np.ndarray]:
    loaded = []
    for path in sorted(folder.iterdir()):
        with Image.open(path) as image:
            loaded.append(np.asarray(image.convert("RGB")).astype(float))
    return loaded


@pytest.mark.usefixtures("ffmpeg")
def test_ns_render_interpolates_between_the_photos(
    finished: Round, scene: PhotoScene, entry: Callable[..., None], tmp_path: Path
) -> None:
    entry(
        render,
        *("interpolate", "--load-config", str(finished.config_file), "--output-path", "path"),
        *("--output-format", "images", "--image-format", "png", "--pose-source", "train", "--interpolation-steps", "3"),
    )
    pictures = pictures_in(tmp_path / "path")
    assert len(pictures) == 3 * (len(scene.training) - 1)
    assert {picture.shape for picture in pictures} == {(HEIGHT, WIDTH, 3)}
    assert min(picture.std() for picture in pictures) > 20.0
    # It begins at the first photo and ends at the last. Measured: 19.9 and 20.9 dB; 17.1 with the wrong photo, 18.2
    # with one colour.
    for picture, photo in ((pictures[0], scene.training[0]), (pictures[-1], scene.training[-1])):
        assert psnr(picture, photo_pixels(photo.image)) > 19.0
    assert np.abs(pictures[0] - pictures[-1]).mean() > 5.0


@pytest.mark.usefixtures("ffmpeg")
def test_ns_render_follows_a_camera_path(
    finished: Round, scene: PhotoScene, entry: Callable[..., None], tmp_path: Path
) -> None:
    photo = scene.held_out[0]
    cameras = json.loads((finished.config_file.parent / "refined_cameras.json").read_text())["cameras"]
    poses = [np.array(camera["T_world_camera"]) @ np.diag([1.0, -1.0, -1.0, 1.0]) for camera in cameras[:2]]
    fov = np.degrees(2.0 * np.arctan(0.5 * HEIGHT / float(photo.K[1, 1])))
    path = {
        "camera_type": "perspective",
        "render_height": 2 * HEIGHT,
        "render_width": 2 * WIDTH,
        "seconds": 1,
        "camera_path": [{"camera_to_world": pose.ravel().tolist(), "fov": fov, "aspect": 1.5} for pose in poses],
    }
    (tmp_path / "path.json").write_text(json.dumps(path))
    entry(
        render,
        *("camera-path", "--load-config", str(finished.config_file), "--camera-path-filename", "path.json"),
        *("--output-path", "frames", "--output-format", "images"),
    )
    pictures = pictures_in(tmp_path / "frames")
    assert [picture.shape for picture in pictures] == [(2 * HEIGHT, 2 * WIDTH, 3)] * 2
    assert min(picture.std() for picture in pictures) > 20.0
    # Poses in the world of refined_cameras.json show what the photos there show.
    for picture, of_photo in zip(pictures, scene.training, strict=False):
        small = picture.reshape(HEIGHT, 2, WIDTH, 2, 3).mean(axis=(1, 3))
        assert psnr(small, photo_pixels(of_photo.image)) > 19.0


def psnr(first: np.ndarray, second: np.ndarray) -> float:
    return float(10.0 * np.log10(255.0**2 / np.square(first - second).mean()))


def photo_pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(float)


# --- ns-export ------------------------------------------------------------------------------------


def test_ns_export_writes_the_splats_where_the_scene_is(
    finished: Round, scene: PhotoScene, entry: Callable[..., None], tmp_path: Path
) -> None:
    entry(
        ns_export(),
        *("gaussian-splat", "--load-config", str(finished.config_file), "--output-dir", "export"),
    )
    vertices: Any = PlyData.read(str(tmp_path / "export" / "splat.ply"))["vertex"]
    means = np.stack([vertices[name] for name in "xyz"], axis=1).astype(float)
    assert np.isfinite(means).all()
    assert len(means) > 1000
    names = {element.name for element in vertices.properties}
    assert {"opacity", "scale_0", "rot_3", "f_dc_0", "f_rest_0"} <= names
    # Nothing is densified, and nothing fades in so few steps: each Gaussian is near the place of its own seed.
    seeds = seed_gaussians(scene.scene).points.double()
    assert len(means) == len(seeds)
    found = weighted_similarity(seeds, torch.from_numpy(means), torch.ones(len(seeds), dtype=torch.float64))
    first = torch.linalg.inv(scene.training[0].T_world_camera.double())
    depth = float((seeds @ first[:3, :3].T + first[:3, 3])[:, 2].median())
    angle_deg = math.degrees(math.acos(min(1.0, (float(found.rotation.trace()) - 1) / 2)))
    offset = float((seeds.mean(dim=0) - torch.from_numpy(means).mean(dim=0)).norm()) / depth
    # Measured: 1.0035, 0.21 degrees, 0.0016.
    assert float(found.scale) == pytest.approx(1.0, abs=0.01)
    assert angle_deg < 0.5
    assert offset < 0.01


def test_ns_export_writes_the_cameras_as_refined(finished: Round, entry: Callable[..., None], tmp_path: Path) -> None:
    entry(ns_export(), "cameras", "--load-config", str(finished.config_file), "--output-dir", "export")
    refined = json.loads((finished.config_file.parent / "refined_cameras.json").read_text())["cameras"]
    exported = json.loads((tmp_path / "export" / "transforms_train.json").read_text())
    assert [Path(frame["file_path"]).name for frame in exported] == [camera["name"] for camera in refined]
    for frame, camera in zip(exported, refined, strict=True):
        T_world_camera = np.array(camera["T_world_camera"]) @ np.diag([1.0, -1.0, -1.0, 1.0])
        assert np.allclose(frame["transform"], T_world_camera[:3], atol=1e-5)
    (held_out,) = json.loads((tmp_path / "export" / "transforms_eval.json").read_text())
    assert Path(held_out["file_path"]).name == "2.png"


# --- ns-viewer ------------------------------------------------------------------------------------


@contextlib.contextmanager
def viewer(config_file: Path, folder: Path) -> Iterator[str]:
    """The address of a running ns-viewer."""
    port = free_port()
    with (folder / "viewer.log").open("w") as log:
        process = subprocess.Popen(
            [
                *(command("ns-viewer"), "--load-config", str(config_file)),
                *("--viewer.websocket-port", str(port), "--viewer.websocket-host", "127.0.0.1"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=folder,
        )
    try:
        deadline = time.monotonic() + 120.0
        while "(viser)" not in (said := (folder / "viewer.log").read_text()) and "HTTP" not in said:
            assert process.poll() is None, said[-4000:]
            assert time.monotonic() < deadline, said[-4000:]
            time.sleep(0.3)
        yield f"http://127.0.0.1:{port}"
        assert process.poll() is None, (folder / "viewer.log").read_text()[-4000:]
    finally:
        process.terminate()
        process.wait(timeout=30.0)


def test_ns_viewer_shows_the_splats(finished: Round, tmp_path: Path) -> None:
    """What the browser shows is what the model renders from the viewer's first camera."""
    require_chromium()
    _, pipeline, _, _ = eval_setup(finished.config_file)
    cameras: Any = pipeline.datamanager.train_dataset.cameras  # type: ignore[union-attr]
    box: dict[str, float] = {}

    def act(page: Any) -> None:
        # The panel slides in, and the scene, drawn in the last canvas, gives way to it. A click before that scrolls the
        # page.
        boxes: list[dict[str, float]] = []
        while len(boxes) < 4 or boxes[-1] != boxes[-4] or boxes[-1]["width"] >= page.viewport_size["width"]:
            assert len(boxes) < 120, boxes[-1]
            page.wait_for_timeout(500)
            boxes.append(page.locator("canvas").last.bounding_box())
        # The photos themselves are drawn as well: without them all colours are the splats'.
        page.get_by_text("Hide Train Cams").click(timeout=30_000)
        box.update(page.locator("canvas").last.bounding_box())
        assert box == boxes[-1]

    def canvas(pixels: np.ndarray) -> np.ndarray:
        left, top = round(box["x"]), round(box["y"])
        # The corner with viser's axes is left out.
        return pixels[top : top + round(box["height"]) - 80, left : left + round(box["width"])].astype(float)

    @functools.cache
    def expected() -> np.ndarray:
        width, height = round(box["width"]), round(box["height"])
        pose = first_view(cameras, float(pipeline.model.unit))  # type: ignore[arg-type]
        backward = torch.nn.functional.normalize(pose.position - pose.look_at, dim=0)
        right = torch.nn.functional.normalize(torch.linalg.cross(pose.up, backward), dim=0)
        axes = [right, torch.linalg.cross(backward, right), backward, pose.position]
        focal = 0.5 * height / np.tan(0.5 * pose.fov)
        camera = Cameras(
            torch.stack(axes, dim=1)[None].float(), focal, focal, 0.5 * width, 0.5 * height, width, height
        )  # fmt: skip
        rgb = pipeline.model.get_outputs_for_camera(camera)["rgb"]
        return (rgb.cpu().numpy() * 255.0)[:-80]

    def complete(pixels: np.ndarray) -> bool:
        # Measured: 43 dB; below 30 while the viewer still shows the small picture of a camera that moves.
        return psnr(canvas(pixels), expected()) > 30.0

    with viewer(finished.config_file, tmp_path) as url:
        page = screenshot(
            url, tmp_path / "viewer.png", wait_s=60.0, until=complete, act=act, expected=VISER_SAYS_ALWAYS
        )
    shown = canvas(page.pixels)
    assert page.satisfied, f"{psnr(shown, expected()):.1f} dB in {box}"
    assert page.errors == ()
    background = np.array([38.0, 42.0, 55.0])
    covered = np.abs(shown - background).max(axis=2) > 20.0
    assert covered.mean() > 0.25
    # An empty page is far from that.
    assert psnr(np.broadcast_to(background, shown.shape), expected()) < 20.0
    # Its colours are those of the photos.
    mean_photo = np.mean([photo_pixels(path) for path in photo_files(pipeline)], axis=(0, 1, 2))
    assert np.abs(shown[covered].mean(axis=0) - mean_photo).max() < 25.0


def photo_files(pipeline: Any) -> list[Path]:
    return pipeline.datamanager.train_dataset.image_filenames


# --- stock methods on our dataparser --------------------------------------------------------------


def test_splatfacto_finds_cameras_and_cloud(finished: Round, scene: PhotoScene, photos: Path) -> None:
    """Up to its model, which asks for CUDA."""
    words = ["splatfacto", "--machine.device-type", "cpu", "--data", str(photos)]
    words += ["lora3d", "--network", "rooms", "--arm", "robust", "--scene", str(finished.scene_folder)]
    config: Any = tyro.cli(AnnotatedBaseConfigUnion, args=words)
    config.pipeline.datamanager.data = config.data
    datamanager = config.pipeline.datamanager.setup(device="cpu", test_mode="val", world_size=1, local_rank=0)
    camera, batch = datamanager.next_train(0)
    photo = scene.training[int(batch["image_idx"])]
    assert batch["image"].shape == (HEIGHT, WIDTH, 3)
    assert batch["mask"].shape == (HEIGHT, WIDTH, 1)
    assert np.array_equal(batch["image"].numpy(), photo_pixels(photo.image))
    assert torch.allclose(camera.camera_to_worlds[0, :, 3], photo.T_world_camera[:3, 3].float())
    metadata = datamanager.train_dataparser_outputs.metadata
    assert len(metadata["points3D_xyz"]) == len(metadata["points3D_rgb"]) == len(scene.scene.points)
    held_out, _ = datamanager.next_eval_image(0)
    assert torch.allclose(held_out.camera_to_worlds[0, :, 3], scene.held_out[0].T_world_camera[:3, 3].float())


@pytest.mark.slow
def test_nerfacto_trains_on_the_cpu(finished: Round, photos: Path, tmp_path: Path) -> None:
    program = """
import sys
import torch
import torchmetrics.image.lpip as lpip
from nerfstudio.scripts.train import entrypoint

class Without(torch.nn.Module):
    "LPIPS, whose weights are not on every machine."

lpip.LearnedPerceptualImagePatchSimilarity = lambda **_: Without()
if __name__ == "__main__":
    entrypoint()
"""
    (tmp_path / "train.py").write_text(program)
    words = ["nerfacto", "--data", str(photos), "--max-num-iterations", "3", "--vis", "tensorboard"]
    words += ["--machine.device-type", "cpu", "--pipeline.datamanager.train-num-rays-per-batch", "64"]
    words += ["lora3d", "--network", "rooms", "--arm", "robust", "--scene", str(finished.scene_folder)]
    done = subprocess.run(
        [sys.executable, "train.py", *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        # Compiling takes longer than training.
        env={**os.environ, "TORCHDYNAMO_DISABLE": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert len(list(tmp_path.glob("outputs/photos/nerfacto/*/nerfstudio_models/*.ckpt"))) == 1
