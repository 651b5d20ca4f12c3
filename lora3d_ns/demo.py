"""`lora3d demo`: the main job, as far as it goes, on what is bundled."""

import json
import logging
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from lora3d_ns import __version__
from lora3d_ns.adapter.lora import save_adapter
from lora3d_ns.errors import CheckpointNotFoundError, SplatTrainingError
from lora3d_ns.images import PhotoSettings, load_views
from lora3d_ns.network.checkpoints import BUNDLED_NETWORK, load_network
from lora3d_ns.network.configuration import Dust3rConfig
from lora3d_ns.network.dust3r import Dust3r
from lora3d_ns.pair_graph import CompleteGraph, build_pair_graph, check_connected
from lora3d_ns.pictures import draw_against_truth, draw_pair_predictions
from lora3d_ns.predict import PredictionSettings, predict_pairs
from lora3d_ns.reconstruct import Arm, ReconstructSettings, reconstruct
from lora3d_ns.rooms.benchmark import measure
from lora3d_ns.rooms.benchmark_arms import ArmResult
from lora3d_ns.rooms.benchmark_scenes import RoomPhotos, truth_for_views
from lora3d_ns.rooms.generator import demo_room, write_scene
from lora3d_ns.scene_details import scene_details
from lora3d_ns.scene_io.scenes import PICTURE_FILE, save_scene
from lora3d_ns.scene_io.stage_cache import StageCache
from lora3d_ns.scene_picture import draw_scene
from lora3d_ns.splat_picture import draw_held_out
from lora3d_ns.types import Views

logger = logging.getLogger(__name__)

_SHOWN_PAIRS = 3

UNTRAINED = Dust3rConfig(
    encoder_width=192,
    encoder_depth=4,
    encoder_heads=3,
    decoder_width=192,
    decoder_depth=4,
    decoder_heads=3,
    dpt_channels=(24, 48, 96, 192),
    dpt_features=32,
    image_size=256,
)
"""What the demo runs while no trained network is bundled: the real computation, without knowledge."""


DEMO_ARMS: tuple[Arm, ...] = ("pretrained", "robust", "self_calibrated")
"""What the demo makes of the bundled room, each arm on the photos themselves."""


def run_demo(
    *, output: Path, photos: Path | None = None, network: str | None = None, splat_steps: int | None = None
) -> dict:
    """The whole method on the bundled room, against its truth; of other photos, pair predictions and a picture of them.

    Args:
        output: Folder for the photos, the scene, the adapter, the pictures and `report.json`.
        photos: Folder of photos; None renders the demo room into `output`.
        network: Name or path of a network; None takes the bundled one and, in versions that bundle none, an untrained
            one, and says so in log, picture and report.
        splat_steps: Steps of training Gaussians; None for the method's own number, 0 for no Gaussians.

    Returns:
        What `report.json` holds: `scene`, `device`, `network`, `trained`, `photos`, `pairs`, `seconds`, `pictures`,
        and for the demo room and a trained network `arms` with the benchmark's metrics of each, `gate`, `adapter` and
        `splat`.

    Raises:
        Lora3dError: Photos or network cannot be read; the error says which and why.
        SplatTrainingError: One of nerfstudio's commands failed.
    """
    start = time.perf_counter()
    seconds: dict[str, float] = {}
    output.mkdir(parents=True, exist_ok=True)
    model, label, trained = _choose_network(network)
    scene = "demo room" if photos is None else str(photos)
    room = None
    if photos is None:
        room, photos = demo_room(), output / "photos"
        write_scene(photos, room)
    seconds["photos"] = time.perf_counter() - start

    stage = time.perf_counter()
    views = load_views(photos, PhotoSettings(size=model.config.image_size, patch_size=model.patch_size))
    graph = build_pair_graph(CompleteGraph(), len(views))
    check_connected(graph, views.names)
    seconds["load"] = time.perf_counter() - stage

    stage = time.perf_counter()
    predictions = predict_pairs(views, graph, model, PredictionSettings())
    seconds["predict"] = time.perf_counter() - stage

    stage = time.perf_counter()
    picture = output / "pair_predictions.png"
    shown = [(0, other) for other in range(1, len(views))][:_SHOWN_PAIRS]
    draw_pair_predictions(views, predictions, shown, picture, title=f"{scene}: pair predictions of {label}")
    pictures = [picture]
    seconds["picture"] = time.perf_counter() - stage
    learnt: dict[str, object] = {}
    if room is not None and trained:
        learnt = _arms(output, views, model, truth_for_views(views, room), shown, scene, seconds, pictures)
        if splat_steps != 0:
            stage = time.perf_counter()
            learnt["splat"] = _splats(output, photos, pictures, splat_steps)
            seconds["splat"] = time.perf_counter() - stage
    seconds["total"] = time.perf_counter() - start

    report = {
        "scene": scene,
        "version": __version__,
        "device": str(model.device),
        "network": label,
        "trained": trained,
        "photos": len(views),
        "pairs": len(graph),
        "confidence_median": float(torch.cat([pair.confidence_first.flatten() for _, pair in predictions]).median()),
        "arms": {},
        **learnt,
        "seconds": seconds,
        "pictures": [str(path) for path in pictures],
    }
    (output / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    return report


def _arms(
    output: Path,
    views: Views,
    network: Dust3r,
    truth: RoomPhotos,
    shown: Sequence[tuple[int, int]],
    scene: str,
    seconds: dict[str, float],
    pictures: list[Path],
) -> dict[str, object]:
    """Every arm on the photos, measured against the truth; scene, adapter and pictures of the last one."""
    # The arms share their stages; what is kept is in the output.
    with tempfile.TemporaryDirectory() as folder:
        by_arm = {
            arm: reconstruct(
                views, network, ReconstructSettings(arm=arm), base_name=BUNDLED_NETWORK, cache=StageCache(Path(folder))
            )
            for arm in DEMO_ARMS
        }
    measured: dict[str, object] = {}
    for arm, made in by_arm.items():
        understood = made.understood
        measured[arm] = measure(
            ArmResult(predictions=understood.predictions, cameras=understood.aligned.cameras), truth
        )
    seconds["align"] = sum(by_arm["robust"].seconds.get(stage, 0.0) for stage in ("match", "align", "stereo"))
    made = by_arm["self_calibrated"]
    calibration = made.calibration
    assert calibration is not None
    assert calibration.gate is not None
    seconds["calibrate"] = made.seconds["finetune"] + made.seconds["gate"]
    save_scene(
        made.scene,
        output / "scene",
        draw=lambda path: draw_scene(made.scene, path, title=f"{scene}: self-calibrated"),
        details=scene_details(views, made),
    )
    adapter = calibration.adapter or calibration.refused
    assert adapter is not None
    save_adapter(adapter, output / "adapter")
    before, after = calibration.before.predictions, made.understood.predictions
    for name, predictions, word in (
        ("against_truth.png", before, "as trained"),
        ("against_truth_self_calibrated.png", after, "self-calibrated"),
    ):
        pictures.append(output / name)
        draw_against_truth(
            views,
            predictions,
            {edge: truth.true_points(edge) for edge in shown},
            pictures[-1],
            title=f"{scene}: the bundled network, {word}, against the truth",
        )
    pictures.append(output / "scene" / PICTURE_FILE)
    return {
        "arms": measured,
        "gate": {"accepted": calibration.gate.accepted, "reason": calibration.gate.reason},
        "adapter": {"parameters": adapter.parameter_count, "bytes": adapter.nbytes},
    }


def _splats(output: Path, photos: Path, pictures: list[Path], steps: int | None) -> dict[str, object]:
    """Gaussian splats of the photos and their evaluation, by the very commands that a user types."""
    folder = output / "splats"
    options = ["--data", str(photos), "--output-dir", str(folder), "--vis", "tensorboard"]
    if steps is not None:
        options += ["--max-num-iterations", str(steps)]
    run_nerfstudio(["ns-train", "lora3d-splat", *options, "lora3d", "--network", BUNDLED_NETWORK])
    # Runs are named by their time.
    config = max((folder / photos.stem / "lora3d-splat").glob("*/config.yml"))
    metrics_file, renders = output / "eval.json", output / "renders"
    written = ["--output-path", str(metrics_file), "--render-output-path", str(renders)]
    run_nerfstudio(["ns-eval", "--load-config", str(config), *written])
    evaluated = json.loads(metrics_file.read_text())
    metrics = evaluated["results"]
    held_out = sorted(renders.glob("*.png"))
    pictures.append(output / "splats.png")
    draw_held_out(held_out, metrics, pictures[-1], title="Gaussian splats of the demo room, from where no photo was")
    return {
        "iterations": int(Path(evaluated["checkpoint"]).stem.removeprefix("step-")) + 1,
        "gaussians": round(metrics["gaussians"]),
        "held_out_views": len(held_out) if metrics["held_out"] > 0 else 0,
        "config": str(config),
        **{name: value for name, value in metrics.items() if name.startswith(("psnr", "ssim", "lpips"))},
    }


def run_nerfstudio(command: Sequence[str]) -> None:
    """Runs one of nerfstudio's commands from this environment, its output going where ours goes.

    Raises:
        SplatTrainingError: It failed.
    """
    program = Path(sys.executable).with_name(command[0])
    logger.info("$ %s", shlex.join(command))
    code = subprocess.run([str(program), *command[1:]], check=False).returncode
    if code != 0:
        raise SplatTrainingError(
            f"{command[0]} ended with code {code}",
            way_out=f"Its own words stand above; to go on, run it again: {shlex.join(command)}",
        )


def _choose_network(name: str | None) -> tuple[Dust3r, str, bool]:
    """The network, what to call it, and whether it was ever trained."""
    if name is not None:
        return load_network(name), name, True
    try:
        return load_network(BUNDLED_NETWORK), f"the bundled network `{BUNDLED_NETWORK}`", True
    except CheckpointNotFoundError:
        logger.warning(
            "This version bundles no trained network: the demo runs an untrained one, its points mean nothing."
        )
        torch.manual_seed(0)
        return Dust3r(UNTRAINED).eval(), "an UNTRAINED network (this version bundles no weights)", False
