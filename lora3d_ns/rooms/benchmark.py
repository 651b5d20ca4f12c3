"""`rooms-v1`: the fixed scenes on which everything is judged, and the table of it.

24 scenes that no training and no validation ever sees: six each of `nominal`, `dark`, `sparse` and `tele`, each with
ten photos to calibrate on and ten others, from the same path, to be tested on. `clutter` and `moving` are extra lists
of six. A seed offset moves all of them to scenes of the same kind that nobody has looked at.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float32
from torch import Tensor

from lora3d_ns.alignment.settings import AlignmentSettings
from lora3d_ns.benchmark_record import machine_record, write_record
from lora3d_ns.conventions import PixelAffine, pixel_centres
from lora3d_ns.errors import InvalidDataError, SettingsError
from lora3d_ns.evaluation.metrics import (
    absolute_focal_error_percent,
    absolute_trajectory_error,
    gap_closure,
    point_error,
    rank_correlation,
    relative_pose_errors_deg,
    sparsification_error,
)
from lora3d_ns.evaluation.tables import count_changes, markdown_table, mean_and_median
from lora3d_ns.geometry.camera import points_from_depth
from lora3d_ns.geometry.similarity import weighted_scale
from lora3d_ns.network.base import PairNetwork
from lora3d_ns.pair_graph import CompleteGraph, build_pair_graph
from lora3d_ns.predict import PredictionSettings, predict_pairs
from lora3d_ns.progress import progress_bar
from lora3d_ns.rooms.cameras import sample_views
from lora3d_ns.rooms.disk import PhotographedRoom
from lora3d_ns.rooms.domains import domain_by_name
from lora3d_ns.rooms.render import render
from lora3d_ns.rooms.scenes import sample_scenes
from lora3d_ns.types import AlignedScene, Cameras, PairPredictions, Views

MAIN_DOMAINS = ("nominal", "dark", "sparse", "tele")
EXTRA_DOMAINS = ("clutter", "moving")
SCENES_PER_DOMAIN = 6
PHOTOS = 10

# Each domain has a seed of its own: equal seeds would make dark room 3 the nominal room 3 by night.
_FIRST_SEED = 90_000_000
_SEEDS_PER_OFFSET = 1_000

METRICS = ("point_error", "ate", "afe_percent", "auc30", "confidence_rank_correlation", "ause")
"""Columns of the table. `point_error` and `ate` are in metres. Lower is better, but for `auc30`."""


@dataclass(frozen=True, eq=False, kw_only=True)
class RoomPhotos:
    """Photos of one room with their truth.

    Attributes:
        views: The photos.
        depths_m: Depth along the viewing axis at network resolution.
        static: False where something moves between the photos, at network resolution.
        cameras: The true cameras, metres; intrinsics in source pixels.
    """

    views: Views
    depths_m: tuple[Float32[Tensor, "_ _"], ...]
    static: tuple[Bool[Tensor, "_ _"], ...]
    cameras: Cameras

    def true_points(self, edge: tuple[int, int]) -> tuple[Float32[Tensor, "_ _ 3"], Float32[Tensor, "_ _ 3"]]:
        """X̄^{i,i} and X̄^{j,i}: the true points of both photos' pixels in camera i's frame, metres."""
        i, j = edge
        own_first, own_second = (
            points_from_depth(
                self.depths_m[view], self.views.source_from_network[view].K_network_from_source(self.cameras.K[view])
            )
            for view in edge
        )
        T_world_camera = self.cameras.T_world_camera.double()
        T_i_j = (torch.linalg.inv(T_world_camera[i]) @ T_world_camera[j]).float()
        return own_first, own_second @ T_i_j[:3, :3].T + T_i_j[:3, 3]


def truth_for_views(views: Views, room: PhotographedRoom) -> RoomPhotos:
    """The truth of a photographed room for its photos as they were loaded from disk.

    A network pixel has the depth of the source pixel in which its centre lies.

    Raises:
        InvalidDataError: The views are not this room's photos.
    """
    if [Path(name).stem for name in views.names] != list(room.names):
        raise InvalidDataError("the views are not the photos of this room", way_out="Load them from its own folder")
    depths_m, static = [], []
    for view, (height, width) in enumerate(views.shapes):
        pixels = views.source_from_network[view].source_from_network(pixel_centres(height, width))
        x, y = pixels.floor().long().unbind(dim=-1)
        source_height, source_width = room.depths_m[view].shape
        at = (y.clamp(0, source_height - 1), x.clamp(0, source_width - 1))
        depths_m.append(room.depths_m[view][at])
        static.append(~room.moving[view][at])
    return RoomPhotos(
        views=views,
        depths_m=tuple(depths_m),
        static=tuple(static),
        cameras=Cameras(
            T_world_camera=torch.stack(room.T_world_camera), K=torch.stack(room.K), sizes=views.source_sizes
        ),
    )


@dataclass(frozen=True, eq=False, kw_only=True)
class BenchmarkScene:
    """One room of the benchmark: photos to calibrate on, and photos of the same room to be tested on."""

    name: str
    domain: str
    calibration: RoomPhotos
    test: RoomPhotos


@dataclass(frozen=True, eq=False, kw_only=True)
class ArmResult:
    """What an arm makes of a scene's test photos.

    Attributes:
        predictions: Point maps of all ordered pairs.
        cameras: Of all photos.
        aligned: The scene they were aligned to, for arms that align.
        accepted: What the gate decided, for arms that have one.
    """

    predictions: PairPredictions
    cameras: Cameras
    aligned: AlignedScene | None = None
    accepted: bool | None = None


Arm = Callable[[PairNetwork, BenchmarkScene], ArmResult]


def pretrained_arm(network: PairNetwork, scene: BenchmarkScene) -> ArmResult:
    """The network as it is, aligned by Eq. 6: what DUSt3R itself does."""
    return _aligned(network, scene, AlignmentSettings(objective="plain", matches="off", show_progress=False))


def robust_arm(network: PairNetwork, scene: BenchmarkScene) -> ArmResult:
    """The network as it is, aligned by Eq. 7 with whatever 2D matches there are: the method without fine-tuning."""
    return _aligned(network, scene, AlignmentSettings(show_progress=False))


def _aligned(network: PairNetwork, scene: BenchmarkScene, settings: AlignmentSettings) -> ArmResult:
    from lora3d_ns.alignment.align import align

    views = scene.test.views
    graph = build_pair_graph(CompleteGraph(), len(views))
    predictions = predict_pairs(views, graph, network, PredictionSettings(show_progress=False))
    aligned = align(views, predictions, settings)
    return ArmResult(predictions=predictions, cameras=aligned.cameras, aligned=aligned)


ARMS: Mapping[str, Arm] = {"pretrained": pretrained_arm, "robust": robust_arm}
"""All arms by name."""


def make_scene(domain: str, index: int, *, size: tuple[int, int], seed_offset: int = 0) -> BenchmarkScene:
    """One scene of the benchmark, rendered.

    Args:
        domain: Name of the domain.
        index: 0 to 5 for the fixed list.
        size: (width, height) of the photos in pixels.
        seed_offset: 0 for the fixed list; another number for other scenes of the same kind.

    Raises:
        SettingsError: Unknown domain, or a negative offset or index.
    """
    known = (*MAIN_DOMAINS, *EXTRA_DOMAINS)
    if domain not in known:
        raise SettingsError(f"the benchmark has no domain {domain!r}", way_out=f"Use one of {', '.join(known)}")
    if index < 0 or seed_offset < 0:
        raise SettingsError(f"scene {index} at seed offset {seed_offset}", way_out="Use numbers from 0")
    seed = _FIRST_SEED + _SEEDS_PER_OFFSET * seed_offset + known.index(domain)
    scenes = sample_scenes(domain_by_name(domain), seed=seed, indices=[index])
    splits = []
    for split in ("calibration", "test"):
        cameras = sample_views(scenes, PHOTOS, size=size, split=split)
        made = render(scenes, cameras, supersample=2)
        splits.append(
            _room_photos(split, made.rgb[0], made.depth_m[0], ~made.moving[0], made.K[0], made.T_world_camera[0])
        )
    suffix = f"+{seed_offset}" if seed_offset else ""
    return BenchmarkScene(name=f"{domain}-{index}{suffix}", domain=domain, calibration=splits[0], test=splits[1])


def _room_photos(
    split: str, rgb: Tensor, depth_m: Tensor, static: Tensor, K: Tensor, T_world_camera: Tensor
) -> RoomPhotos:
    count, height, width = depth_m.shape
    sizes = ((width, height),) * count
    nothing = (None,) * count
    # Photos are stored with eight bits, as files would be.
    images = (rgb.permute(0, 3, 1, 2) * 255.0).round() / 255.0
    views = Views(
        names=tuple(f"{split}-{view:02d}" for view in range(count)),
        images=tuple(images.contiguous()),
        masks=nothing,
        source_from_network=(PixelAffine(scale_x=1.0, scale_y=1.0, offset_x_px=0.0, offset_y_px=0.0),) * count,
        source_sizes=sizes,
        source_paths=nothing,
        focal_exif_px=nothing,
        lens_groups=("rooms",) * count,
        known_K=nothing,
        known_T_world_camera=nothing,
    )
    return RoomPhotos(
        views=views,
        depths_m=tuple(depth_m),
        static=tuple(static),
        cameras=Cameras(T_world_camera=T_world_camera, K=K, sizes=sizes),
    )


def measure(result: ArmResult, truth: RoomPhotos) -> dict[str, float | None]:
    """The metrics of one arm on one scene, see `METRICS`; None where one is not defined.

    Point error, rank correlation and AUSE are of each ordered pair, over the pixels of what does not move, and
    averaged over the pairs.
    """
    point_errors, correlations, sparsifications = [], [], []
    for edge, pair in result.predictions:
        points, true_points = (pair.points_first, pair.points_second), truth.true_points(edge)
        static = [truth.static[view] for view in edge]
        point_errors.append(point_error(points, true_points, static))
        estimated, true, confidence = (
            torch.cat([map_[mask] for map_, mask in zip(maps, static, strict=True)])
            for maps in (points, true_points, (pair.confidence_first, pair.confidence_second))
        )
        error = (weighted_scale(estimated, true, torch.ones(len(true))) * estimated - true).norm(dim=1)
        if confidence.max() > confidence.min():
            correlations.append(rank_correlation(confidence, error))
        sparsifications.append(sparsification_error(confidence, error))
    poses = relative_pose_errors_deg(result.cameras.T_world_camera, truth.cameras.T_world_camera)
    return {
        "point_error": mean_and_median(point_errors)["mean"],
        "ate": absolute_trajectory_error(result.cameras.T_world_camera, truth.cameras.T_world_camera),
        "afe_percent": absolute_focal_error_percent(result.cameras.K, truth.cameras.K),
        "auc30": poses.area_under_curve(30.0),
        "confidence_rank_correlation": mean_and_median(correlations)["mean"],
        "ause": mean_and_median(sparsifications)["mean"],
    }


def summarize(rows: Sequence[Mapping[str, object]]) -> dict[str, dict[str, dict[str, object]]]:
    """`summary.{domain}.{arm}` and `summary.all.{arm}`.

    Each holds mean and median of every metric; `improved` and `worse`, the numbers of scenes whose point error is
    below and above the `pretrained` arm's; and `gap_closure` of the mean point errors, None without the arm
    `gt_finetuned` or where that one is no better than `pretrained`.
    """
    arms = list(dict.fromkeys(str(row["arm"]) for row in rows))
    domains = list(dict.fromkeys(str(row["domain"]) for row in rows))
    summary: dict[str, dict[str, dict[str, object]]] = {}
    for domain in (*domains, "all"):
        by_arm = {arm: [row for row in rows if row["arm"] == arm and domain in (row["domain"], "all")] for arm in arms}
        errors = {arm: [float(str(row["point_error"])) for row in chosen] for arm, chosen in by_arm.items()}
        means = {arm: mean_and_median(values)["mean"] for arm, values in errors.items()}
        summary[domain] = {}
        for arm, chosen in by_arm.items():
            entry: dict[str, object] = {"scenes": len(chosen)}
            for metric in METRICS:
                entry[metric] = mean_and_median([_number(row[metric]) for row in chosen])
            if "pretrained" in errors:
                entry["improved"], entry["worse"] = count_changes(errors["pretrained"], errors[arm])
            entry["gap_closure"] = _gap_closure(means, arm)
            summary[domain][arm] = entry
    return summary


def _number(value: object) -> float | None:
    return None if value is None else float(str(value))


def _gap_closure(means: Mapping[str, float | None], arm: str) -> float | None:
    before, after, bound = means.get("pretrained"), means.get(arm), means.get("gt_finetuned")
    if before is None or after is None or bound is None or before <= bound:
        return None
    return gap_closure(before, after, bound)


def run_rooms_benchmark(
    network: PairNetwork,
    *,
    network_name: str,
    image_size: int,
    arms: Sequence[str] = ("pretrained",),
    domains: Sequence[str] = MAIN_DOMAINS,
    scenes: int = SCENES_PER_DOMAIN,
    seed_offset: int = 0,
    json_path: Path | None = None,
    show_progress: bool = True,
) -> dict[str, object]:
    """Runs arms on the scenes of the benchmark; test photos are seen by no calibration.

    Args:
        network: Any two-view network.
        network_name: What to call it in the record.
        image_size: Side of the square photos in pixels.
        arms: Names of arms, see `ARMS`.
        domains: Names of domains; by default the four main ones.
        scenes: Scenes per domain.
        seed_offset: See `make_scene`.
        json_path: Where the record goes too.
        show_progress: Whether to draw a bar.

    Returns:
        The record: `rows` and `summary` beside what every record says of the machine.

    Raises:
        SettingsError: An arm or domain is unknown, or there is nothing to run.
    """
    unknown = [arm for arm in arms if arm not in ARMS]
    if unknown or not arms or not domains or scenes < 1:
        raise SettingsError(
            f"arms {list(arms)}, domains {list(domains)}, {scenes} scenes each",
            way_out=f"Use arms out of {', '.join(ARMS)}, and one domain and one scene or more",
        )
    rows: list[dict[str, object]] = []
    with progress_bar("Benchmark rooms-v1", len(domains) * scenes * len(arms), shown=show_progress) as advance:
        for domain in domains:
            for index in range(scenes):
                scene = make_scene(domain, index, size=(image_size, image_size), seed_offset=seed_offset)
                for arm in arms:
                    rows.append(_row(network, scene, arm))
                    advance(1)
    record = machine_record(command="benchmark rooms", device=network.device, seed=seed_offset)
    record |= {"network": network_name, "image_size": image_size, "list": "rooms-v1", "seed_offset": seed_offset}
    record |= {"rows": rows, "summary": summarize(rows)}
    write_record(record, json_path)
    return record


def _row(network: PairNetwork, scene: BenchmarkScene, arm: str) -> dict[str, object]:
    row: dict[str, object] = {"scene": scene.name, "domain": scene.domain, "arm": arm}
    result = ARMS[arm](network, scene)
    return row | measure(result, scene.test) | {"accepted": result.accepted}


def benchmark_markdown(record: Mapping[str, object]) -> str:
    """The summary of a record as a Markdown table: one line per domain and arm, mean and median of each metric."""
    summary = record["summary"]
    if not isinstance(summary, Mapping):
        raise InvalidDataError("the record has no summary", way_out="Give a record of `run_rooms_benchmark`")
    lines = []
    for domain, by_arm in summary.items():
        for arm, entry in by_arm.items():
            line: dict[str, object] = {"domain": domain, "arm": arm, "scenes": entry["scenes"]}
            for metric in METRICS:
                mean, median = (entry[metric][key] for key in ("mean", "median"))
                line[metric] = "-" if mean is None else f"{mean:.3g} / {median:.3g}"
            line |= {key: entry.get(key) for key in ("improved", "worse", "gap_closure")}
            lines.append(line)
    return markdown_table(lines, ["domain", "arm", "scenes", *METRICS, "improved", "worse", "gap_closure"])
