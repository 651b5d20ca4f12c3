"""`lora3d benchmark alignment`: our multi-view alignment against the peer's, on the same predictions in one run.

The peer is mini-dust3r's point cloud optimiser: Adam on Eq. 6 of LoRA3D, the confidences as they are. Ours is set to
the same problem: plain objective, no matches, one focal length per view, the peer's principal points. Neither program's
own account decides: `eq6_objective` evaluates the peer's formula from the arrays that each of them returns.
"""

import contextlib
import io
import logging
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from lora3d_ns.alignment.align import align
from lora3d_ns.alignment.settings import AlignmentSettings
from lora3d_ns.benchmark_record import PeakMemory, machine_record, write_record
from lora3d_ns.conventions import K_from_integer_centres
from lora3d_ns.errors import MissingPackageError, SettingsError
from lora3d_ns.evaluation.metrics import absolute_focal_error_percent, absolute_trajectory_error
from lora3d_ns.network.checkpoints import load_network
from lora3d_ns.pair_graph import CompleteGraph, build_pair_graph
from lora3d_ns.predict import PredictionSettings, predict_pairs
from lora3d_ns.rooms.benchmark_scenes import PHOTOS, RoomPhotos, make_scene
from lora3d_ns.rooms.simulated import NoiseSettings, noisy_predictions, photograph_rooms
from lora3d_ns.types import Cameras, PairPredictions, Sim3, Views

logger = logging.getLogger(__name__)

Case = Literal["full", "bundled"]

PEER_PRINCIPAL_POINT_OFFSET_PX = (0.5, 0.5)
"""The peer numbers pixels from 0 and puts the principal point at (width / 2, height / 2): half a pixel beyond the
image's middle where the first pixel's centre is at 0.5."""

_SIZES: dict[Case, tuple[int, int]] = {"full": (512, 384), "bundled": (64, 64)}
_PEER_LEARNING_RATE = 0.01
_PEER_MEAN_SCALE = 0.5
_OTHER_SCENES = 500
"""Seed offset of the rooms: the scenes on which methods are judged are not looked at here."""
EQ6_NOISE = NoiseSettings(wrong_edges=0, floater_share=0.05)
"""Eq. 6 has no answer to wholly wrong pairs, which is what our other objective is for; here both minimise Eq. 6."""


@dataclass(frozen=True, eq=False, kw_only=True)
class AlignedArrays:
    """The answer of one program as plain arrays: what `eq6_objective` needs, whoever made it.

    Attributes:
        T_world_camera: Poses.
        K_network: Intrinsics in network pixels, the first pixel's centre at 0.5.
        depths: Depth of each view's pixels along the viewing axis.
        world_from_edge: sigma_e T_e of all edges.
    """

    T_world_camera: Float[Tensor, "views 4 4"]
    K_network: Float[Tensor, "views 3 3"]
    depths: tuple[Float[Tensor, "_ _"], ...]
    world_from_edge: Sim3


@dataclass(frozen=True, eq=False, kw_only=True)
class AlignmentRun:
    """One program's answer and what it took.

    Attributes:
        arrays: The answer.
        seconds: Wall-clock time from predictions to answer, initialisation included.
        peak_mib: Highest memory above what was held at the beginning; on the CPU that of the whole process, so what was
            freed before and is used again does not show, and small problems read low.
        curve: (seconds, objective) by the program's own account; the last entry is the answer's.
    """

    arrays: AlignedArrays
    seconds: float
    peak_mib: float
    curve: tuple[tuple[float, float], ...]


def eq6_objective(predictions: PairPredictions, arrays: AlignedArrays) -> float:
    """The peer's form of LoRA3D's Eq. 6 (arXiv 2412.07746), from nothing but the arrays.

    `sum_e sum_p C |y_p - x_p|` over the first views' pixels divided by their number, and the same of the second views,
    added. Here `x = T_v D_p K_v^-1 (u, v, 1)` is where a view has its pixel, with centres at +0.5, and
    `y = sigma_e T_e X_p` where the edge puts it. The sum grows with the scene, so the geometric mean of the sigma_e is
    brought to 0.5 as the peer has it: all lengths are multiplied by one number, and so is the sum.

    Point maps are evaluated in float32 one by one, sums are float64.
    """
    points = [
        _world_points(depth, K, T)
        for depth, K, T in zip(arrays.depths, arrays.K_network, arrays.T_world_camera, strict=True)
    ]
    edges = arrays.world_from_edge
    sums, pixels = [0.0, 0.0], [0, 0]
    for row, ((i, j), pair) in enumerate(predictions):
        maps = ((i, pair.points_first, pair.confidence_first), (j, pair.points_second, pair.confidence_second))
        scaled_rotation = (edges.scale[row] * edges.rotation[row]).float()
        translation = edges.translation[row].float()
        for role, (view, points_edge, confidence) in enumerate(maps):
            distance = (points_edge @ scaled_rotation.T + translation - points[view]).norm(dim=-1)
            sums[role] += float((confidence * distance).sum(dtype=torch.float64))
            pixels[role] += confidence.numel()
    mean_scale = float(edges.scale.double().log().mean().exp())
    return (sums[0] / pixels[0] + sums[1] / pixels[1]) * _PEER_MEAN_SCALE / mean_scale


def _world_points(depth: Tensor, K: Tensor, T_world_camera: Tensor) -> Tensor:
    """Written out here, so that a defect of ours elsewhere cannot cancel itself."""
    height, width = depth.shape
    v, u = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    x, y = (u - float(K[0, 2])) / float(K[0, 0]), (v - float(K[1, 2])) / float(K[1, 1])
    points = torch.stack([x * depth, y * depth, depth], dim=-1).float()
    return points @ T_world_camera[:3, :3].float().T + T_world_camera[:3, 3].float()


AlignmentProblem = tuple[RoomPhotos, PairPredictions]
"""Photos with their truth, and what a network says of their pairs."""


def run_alignment_benchmark(
    *,
    case: Case = "full",
    views: int = 10,
    size: tuple[int, int] | None = None,
    problem: AlignmentProblem | None = None,
    iterations: int = 300,
    device: str = "cpu",
    seed: int = 0,
    peer: bool = True,
    json_path: Path | None = None,
    picture: Path | None = None,
) -> dict[str, object]:
    """Aligns the same predictions, of a complete pair graph by default, with our program and with the peer's.

    Args:
        case: `full` has simulated predictions of full size: true points with errors like a network's, no pair wholly
            wrong. `bundled` has the bundled network's predictions of a room.
        views: Number of photos.
        size: (width, height); by default 512 x 384 for `full` and 64 x 64 for `bundled`.
        problem: Photos and predictions of any connected graph, instead of `case`, `views` and `size`.
        iterations: Of the peer; its default is 300. Ours stops by itself.
        device: `cpu` or `cuda`, for both.
        seed: Of the room, of the errors and of the peer's random start (which its initialisation overwrites).
        peer: Whether to run the peer at all.
        json_path: Where the record goes too.
        picture: Where a PNG of both objectives over time goes.

    Returns:
        The record: `ours_s`, `peer_s`, `ratio` (peer / ours); `ours_objective` and `peer_objective` by
        `eq6_objective`, and for each how far its own account is off (`*_own_difference`, relative); `*_peak_mib`;
        `*_ate` and `*_afe_percent` against the truth (ATE in metres; None for fewer than three views); `*_curve`, pairs
        of seconds and objective by the program's own account, `start_objective` being the peer's after its
        initialisation.

    Raises:
        SettingsError: Fewer than two views, more than the room has photos (`bundled`), or no iteration.
        MissingPackageError: The peer is wanted and not installed.
    """
    if case not in _SIZES or views < 2 or iterations < 1 or (case == "bundled" and views > PHOTOS):
        raise SettingsError(
            f"case {case}, {views} views, {iterations} iterations",
            way_out=f"Use the case full or bundled, 2 views or more (at most {PHOTOS} with bundled), and 1 iteration "
            "or more",
        )
    run_peer = peer_runner() if peer else None
    photos, predictions = problem or _predictions(case, views, size or _SIZES[case], device=device, seed=seed)
    height, width = photos.views.shapes[0]
    record = machine_record(command="benchmark alignment", device=torch.device(device), seed=seed)
    record |= {"case": "given" if problem else case, "views": len(photos.views)}
    record |= {"size": [width, height], "pairs": len(predictions)}

    logger.info("aligning %d pairs with our program", len(predictions))
    ours = _run_ours(photos.views, predictions, torch.device(device))
    record |= _of_run("ours", ours, predictions, photos)
    if run_peer is not None:
        logger.info("aligning them with the peer, %d iterations", iterations)
        theirs = run_peer(predictions, torch.device(device), iterations, seed)
        record |= {"peer": "mini-dust3r 0.1.2", "peer_iterations": iterations}
        record |= _of_run("peer", theirs, predictions, photos)
        record |= {"ratio": theirs.seconds / ours.seconds, "start_objective": theirs.curve[0][1]}
    write_record(record, json_path)
    if picture is not None:
        draw_objectives(record, picture)
    return record


def _predictions(case: Case, views: int, size: tuple[int, int], *, device: str, seed: int) -> AlignmentProblem:
    graph = build_pair_graph(CompleteGraph(), views)
    if case == "bundled":
        room = make_scene("nominal", seed, size=size, seed_offset=_OTHER_SCENES).calibration
        photos = _first_photos(room, views)
        network = load_network("rooms", device=device)
        return photos, predict_pairs(photos.views, graph, network, PredictionSettings(show_progress=False))
    width, height = size
    photos = photograph_rooms(views, shapes=[(height, width)], seed=seed)
    predictions, _ = noisy_predictions(photos, graph, EQ6_NOISE, seed=seed)
    return photos, predictions


def _first_photos(room: RoomPhotos, count: int) -> RoomPhotos:
    cameras = room.cameras
    return RoomPhotos(
        views=room.views.select(range(count)),
        depths_m=room.depths_m[:count],
        static=room.static[:count],
        cameras=Cameras(
            T_world_camera=cameras.T_world_camera[:count], K=cameras.K[:count], sizes=cameras.sizes[:count]
        ),
    )


def _of_run(name: str, run: AlignmentRun, predictions: PairPredictions, photos: RoomPhotos) -> dict[str, object]:
    """What the record says of one program's run."""
    objective = eq6_objective(predictions, run.arrays)
    true = photos.cameras
    K_true = torch.stack(
        [affine.K_network_from_source(K) for affine, K in zip(photos.views.source_from_network, true.K, strict=True)]
    )
    ate = None
    if len(true) >= 3:
        ate = absolute_trajectory_error(run.arrays.T_world_camera.double(), true.T_world_camera.double())
    return {
        f"{name}_s": run.seconds,
        f"{name}_objective": objective,
        f"{name}_own_difference": run.curve[-1][1] / objective - 1.0,
        f"{name}_peak_mib": run.peak_mib,
        f"{name}_ate": ate,
        f"{name}_afe_percent": absolute_focal_error_percent(run.arrays.K_network, K_true),
        f"{name}_curve": [list(entry) for entry in run.curve],
    }


def _run_ours(views: Views, predictions: PairPredictions, device: torch.device) -> AlignmentRun:
    settings = AlignmentSettings(
        objective="plain",
        matches="off",
        focal="per_image",
        principal_point_offset_px=PEER_PRINCIPAL_POINT_OFFSET_PX,
        show_progress=False,
    )
    with PeakMemory(device) as watched:
        scene = align(views, predictions, settings, device=device)
    affines = views.source_from_network
    K_network = [affine.K_network_from_source(K) for affine, K in zip(affines, scene.cameras.K, strict=True)]
    return AlignmentRun(
        arrays=AlignedArrays(
            T_world_camera=scene.cameras.T_world_camera,
            K_network=torch.stack(K_network),
            depths=scene.depths,
            world_from_edge=scene.world_from_edge,
        ),
        seconds=watched.seconds,
        peak_mib=watched.peak_bytes / 2**20,
        curve=tuple(zip(scene.history_seconds, scene.loss_history, strict=True)),
    )


# --- the peer -------------------------------------------------------------------------------------


PeerRunner = Callable[[PairPredictions, torch.device, int, int], AlignmentRun]


def peer_runner() -> PeerRunner:
    """A function that aligns predictions with mini-dust3r: predictions, device, iterations and seed to a run.

    Raises:
        MissingPackageError: It, or a package that it needs, is not installed.
    """
    allow_tf32 = torch.backends.cuda.matmul.allow_tf32
    try:
        # Importing it prints, warns, and switches TF32 on for the whole process.
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from mini_dust3r.cloud_opt import PointCloudOptimizer
    except ImportError as error:
        raise MissingPackageError(
            f"the peer mini-dust3r cannot be used ({error})",
            way_out="Run `pip install --no-deps mini-dust3r==0.1.2 beartype einops roma`, install what else it says is "
            "missing, or benchmark with --no-peer",
        ) from error
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allow_tf32

    def run(predictions: PairPredictions, device: torch.device, iterations: int, seed: int) -> AlignmentRun:
        edges = predictions.graph.edges
        pairs = [pair for _, pair in predictions]
        # Raw confidences, as its own network would hand them over.
        said = (
            {"idx": [i for i, _ in edges]},
            {"idx": [j for _, j in edges]},
            {
                "pts3d": [pair.points_first for pair in pairs],
                "conf": [pair.confidence_first.exp() for pair in pairs],
            },
            {
                "pts3d_in_other_view": [pair.points_second for pair in pairs],
                "conf": [pair.confidence_second.exp() for pair in pairs],
            },
        )
        states: list[tuple[float, Tensor]] = []
        devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), PeakMemory(device) as watched:
            torch.manual_seed(seed)
            start = time.perf_counter()
            optimizer: Any = PointCloudOptimizer(*said, verbose=False).to(device)
            # Each iteration begins by evaluating the loss of the state it starts from.
            hook = optimizer.register_forward_hook(
                lambda _module, _inputs, loss: states.append((time.perf_counter() - start, loss.detach()))
            )
            with warnings.catch_warnings():
                # It turns a loss with gradient into a number, once per iteration.
                warnings.simplefilter("ignore", UserWarning)
                optimizer.compute_global_alignment(
                    init="mst", niter=iterations, schedule="cosine", lr=_PEER_LEARNING_RATE
                )
        hook.remove()
        with torch.no_grad():
            final = float(optimizer())
        curve = [(seconds, float(loss)) for seconds, loss in states]
        return AlignmentRun(
            arrays=_peer_arrays(optimizer),
            seconds=watched.seconds,
            peak_mib=watched.peak_bytes / 2**20,
            curve=(*curve, (watched.seconds, final)),
        )

    return run


@torch.no_grad()
def _peer_arrays(optimizer: Any) -> AlignedArrays:
    K = optimizer.get_intrinsics().cpu()
    scale = optimizer.get_pw_scale().cpu()
    # Its matrices hold the scaled rotation and the scaled translation.
    T_world_edge = optimizer.get_pw_poses().cpu()
    return AlignedArrays(
        T_world_camera=optimizer.get_im_poses().cpu(),
        K_network=K_from_integer_centres(K),
        depths=tuple(depth.cpu() for depth in optimizer.get_depthmaps()),
        world_from_edge=Sim3(
            scale=scale, rotation=T_world_edge[:, :3, :3] / scale[:, None, None], translation=T_world_edge[:, :3, 3]
        ),
    )


# --- the picture ----------------------------------------------------------------------------------


def draw_objectives(record: Mapping[str, Any], path: Path) -> None:
    """Writes a PNG of both programs' objectives over time, and of how far each is above the lowest that any reached.

    The curves are the programs' own accounts; a ring marks each answer as `eq6_objective` evaluates it.

    Args:
        record: What `run_alignment_benchmark` returned.
        path: Where to; its folder is made if need be.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 5), layout="constrained")
    width, height = record["size"]
    figure.suptitle(
        f"Eq. 6 on the same predictions: {record['views']} views, {width} x {height}, {record['pairs']} pairs, "
        f"{record['device'].split(':')[0]}, threads: {record['threads']}"
    )
    axes, above = figure.subplots(1, 2)
    names = [name for name in ("ours", "peer") if f"{name}_curve" in record]
    lowest = min(record[f"{name}_objective"] for name in names)
    for name, color in zip(names, ("tab:blue", "tab:orange"), strict=False):
        seconds, objectives = zip(*record[f"{name}_curve"], strict=True)
        end_s, end = record[f"{name}_s"], record[f"{name}_objective"]
        label = "ours" if name == "ours" else f"{record['peer']}, {record['peer_iterations']} iterations"
        label = f"{label}: {end:.5g} after {end_s:.3g} s"
        axes.plot(seconds, objectives, color=color, label=label)
        axes.plot(end_s, end, "o", color=color, fillstyle="none")
        higher = [(s, o - lowest) for s, o in zip(seconds, objectives, strict=True) if o > lowest]
        if higher:
            above.plot(*zip(*higher, strict=True), color=color)
        if end > lowest:
            above.plot(end_s, end - lowest, "o", color=color, fillstyle="none")
    axes.set(xscale="log", xlabel="seconds from the predictions, initialisation included", ylabel="objective")
    axes.set_title("by each program's own account (ours: on a coarse grid first); rings: evaluated alike", fontsize=9)
    axes.legend()
    above.set(xscale="log", yscale="log", xlabel="seconds", ylabel=f"objective - {lowest:.6g}")
    above.set_title("above the lowest answer (what lies below it, on the coarse grid, is not drawn)", fontsize=9)
    for panel in (axes, above):
        panel.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
