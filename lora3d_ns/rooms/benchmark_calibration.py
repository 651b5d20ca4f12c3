"""`lora3d benchmark calibration`: what each part of the alignment does, on the same predictions of the same rooms.

One row per scene and variant: cameras, cloud, how well weights order the true errors, and the error of the labels that
LoRA3D's Eq. 9 would teach the network. The fixed list is `rooms-v1`; settings were chosen at the seed offset of the
validation rooms and nowhere else.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from lora3d_ns.alignment.align import align
from lora3d_ns.alignment.matches import Matches, match_views
from lora3d_ns.alignment.relations import robust_similarity
from lora3d_ns.alignment.settings import AlignmentSettings
from lora3d_ns.benchmark_record import machine_record, write_record
from lora3d_ns.errors import InvalidDataError, SettingsError
from lora3d_ns.evaluation.metrics import (
    absolute_focal_error_percent,
    absolute_trajectory_error,
    accuracy_completeness,
    best_scale,
    rank_correlation,
    relative_pose_errors_deg,
    sparsification_error,
)
from lora3d_ns.evaluation.tables import count_changes, markdown_table, mean_and_median
from lora3d_ns.geometry.camera import points_from_depth
from lora3d_ns.network.base import PairNetwork
from lora3d_ns.pair_graph import CompleteGraph, build_pair_graph
from lora3d_ns.predict import PredictionSettings, predict_pairs
from lora3d_ns.progress import progress_bar
from lora3d_ns.pseudo_labels import label_points, labels_from_depths
from lora3d_ns.rooms.benchmark_scenes import MAIN_DOMAINS, PHOTOS, SCENES_PER_DOMAIN, RoomPhotos, make_scene
from lora3d_ns.rooms.bundle_adjustment_peer import bundle_adjusted_cameras
from lora3d_ns.rooms.calibration_pictures import CalibrationExample, draw_calibration, sparsification_curve
from lora3d_ns.types import AlignedScene, Cameras, PairPredictions, Views

VALIDATION_OFFSET = 500
"""Seed offset of the rooms on which settings were chosen."""

Variant = Literal["plain", "point_maps", "matches", "bundle_adjustment", "true_intrinsics", "true_cameras"]
VARIANTS: tuple[Variant, ...] = (
    "plain",
    "point_maps",
    "matches",
    "bundle_adjustment",
    "true_intrinsics",
    "true_cameras",
)

METRICS = (
    "ate",
    "afe_percent",
    "auc30",
    "accuracy",
    "completeness",
    "ause_confidence",
    "ause_weight",
    "correlation_confidence",
    "correlation_weight",
    "label_error",
    "label_share",
    "prediction_error",
    "common_label_error",
    "common_prediction_error",
)
"""ATE, accuracy and completeness in metres; the `error` ones as a share of the mean distance of the pair's points.

`label_error` is over the pixels whose view weight is above the cut-off, `label_share` of all, and `prediction_error`
the network's own over the same pixels; the `common` ones are over the pixels whose confidence is, the same in all
variants. The variant `bundle_adjustment` yields cameras only: all but the first three are None for it.
"""


_MATCHED = ("matches", "true_intrinsics")


def variant_settings(variant: Variant, base: AlignmentSettings) -> AlignmentSettings:
    """Settings of a variant: Eq. 6; Eq. 7; Eq. 7 with matches, as it is and with true intrinsics; with true cameras.

    Those of `bundle_adjustment` are of the alignment it starts from, `point_maps`.
    """
    base = replace(base, show_progress=False)
    if variant == "plain":
        return replace(base, objective="plain", matches="off")
    return base if variant in _MATCHED else replace(base, matches="off")


def variant_views(variant: Variant, photos: RoomPhotos) -> Views:
    """The photos, with what the variant is told of their cameras."""
    views, count = photos.views, len(photos.views)
    if variant in ("true_intrinsics", "true_cameras"):
        views = replace(views, known_K=tuple(photos.cameras.K[view] for view in range(count)))
    if variant == "true_cameras":
        views = replace(views, known_T_world_camera=tuple(photos.cameras.T_world_camera[view] for view in range(count)))
    return views


def measure_alignment(
    aligned: AlignedScene, predictions: PairPredictions, photos: RoomPhotos, *, cutoff: float
) -> dict[str, float | None]:
    """The metrics of one alignment, see `METRICS`; None where one is not defined.

    Args:
        aligned: The scene.
        predictions: What it was made from.
        photos: With the truth.
        cutoff: Of confidence and weight, for the labels.
    """
    collected: dict[str, list[float | None]] = {metric: [] for metric in METRICS}
    # Every pixel as a label: which of them count is decided below.
    labels = labels_from_depths(
        photos.views,
        aligned.graph,
        T_world_camera=aligned.cameras.T_world_camera,
        K=aligned.cameras.K,
        depths=aligned.depths,
    )
    for index, (edge, pair) in enumerate(predictions):
        static = torch.cat([photos.static[view].flatten() for view in edge])
        true = _flat(photos.true_points(edge))[static]
        predicted = _flat((pair.points_first, pair.points_second))[static]
        confidence = torch.cat([pair.confidence_first.flatten(), pair.confidence_second.flatten()])[static]
        weight = torch.cat([map_.flatten() for map_ in aligned.weights[index]])[static].float()
        error = _error_after_scale(predicted, true)
        collected["ause_confidence"].append(sparsification_error(confidence, error))
        collected["ause_weight"].append(sparsification_error(weight, error))
        collected["correlation_confidence"].append(_correlation(confidence, error))
        collected["correlation_weight"].append(_correlation(weight, error))
        labelled = _flat(label_points(labels, edge))[static]
        believed = torch.cat([aligned.view_weights[view].flatten() for view in edge])[static] >= cutoff
        for prefix, chosen in (("", believed), ("common_", confidence >= cutoff)):
            enough = int(chosen.sum()) >= _LEAST_LABELS
            collected[f"{prefix}label_error"].append(_share_error(labelled, true, chosen) if enough else None)
            collected[f"{prefix}prediction_error"].append(_share_error(predicted, true, chosen) if enough else None)
        collected["label_share"].append(float(believed.float().mean()))
    measured = {metric: mean_and_median(values)["mean"] for metric, values in collected.items()}
    accuracy, completeness = _cloud_errors(aligned, photos, cutoff=cutoff)
    return measured | measure_cameras(aligned.cameras, photos) | {"accuracy": accuracy, "completeness": completeness}


def measure_cameras(cameras: Cameras, photos: RoomPhotos) -> dict[str, float | None]:
    """The metrics of cameras without a scene: the first three of `METRICS`."""
    poses = relative_pose_errors_deg(cameras.T_world_camera, photos.cameras.T_world_camera)
    return {
        "ate": absolute_trajectory_error(cameras.T_world_camera, photos.cameras.T_world_camera),
        "afe_percent": absolute_focal_error_percent(cameras.K, photos.cameras.K),
        "auc30": poses.area_under_curve(30.0),
    }


_LEAST_LABELS = 50
_CLOUD_POINTS = 6000


def _flat(maps: Sequence[Tensor]) -> Tensor:
    return torch.cat([map_.reshape(-1, 3) for map_ in maps])


def _error_after_scale(points: Tensor, true: Tensor) -> Tensor:
    """Distance of each point from the truth, after the one scale that fits them best."""
    return (best_scale(points, true) * points - true).norm(dim=1)


def _share_error(points: Tensor, true: Tensor, chosen: Tensor) -> float:
    points, true = points[chosen], true[chosen]
    return float(_error_after_scale(points, true).mean() / true.norm(dim=1).mean())


def _correlation(confidence: Tensor, error: Tensor) -> float | None:
    return rank_correlation(confidence, error) if bool(confidence.max() > confidence.min()) else None


def _cloud_errors(aligned: AlignedScene, photos: RoomPhotos, *, cutoff: float) -> tuple[float | None, float | None]:
    """Accuracy and completeness in metres of the points above the cut-off, laid over the truth pixel by pixel."""
    views = photos.views
    clouds, truths, weights = [], [], []
    for view in range(len(views)):
        for cameras, depth, cloud in (
            (aligned.cameras, aligned.depths[view], clouds),
            (photos.cameras, photos.depths_m[view], truths),
        ):
            K = views.source_from_network[view].K_network_from_source(cameras.K[view])
            T = cameras.T_world_camera[view].float()
            cloud.append((points_from_depth(depth, K) @ T[:3, :3].T + T[:3, 3]).reshape(-1, 3))
        weights.append((aligned.view_weights[view] * photos.static[view]).flatten())
    cloud, truth, weight = torch.cat(clouds).double(), torch.cat(truths).double(), torch.cat(weights).double()
    every = max(1, len(cloud) // _CLOUD_POINTS)
    similarity, _ = robust_similarity(cloud[::every], truth[::every], weight[::every] + 1e-6)
    chosen = cloud[weight >= cutoff]
    if len(chosen) < _LEAST_LABELS:
        return None, None
    chosen = chosen[:: max(1, len(chosen) // _CLOUD_POINTS)]
    return accuracy_completeness(similarity.apply(chosen), truth[::every])


@dataclass(frozen=True, kw_only=True)
class CalibrationBenchmarkSettings:
    """What is measured on what.

    Attributes:
        variants: See `VARIANTS`.
        domains: Of rooms.
        scenes: Per domain.
        seed_offset: 0 for the fixed list; `VALIDATION_OFFSET` for the rooms settings are chosen on.
        alignment: Settings that the variants start from.
        json_file: Where the record goes.
        picture: Where a picture of the first scene of each domain goes, by the variant `matches`.
    """

    variants: tuple[Variant, ...] = VARIANTS
    domains: tuple[str, ...] = MAIN_DOMAINS
    scenes: int = SCENES_PER_DOMAIN
    seed_offset: int = 0
    alignment: AlignmentSettings = AlignmentSettings()  # noqa: RUF009 (frozen)
    json_file: Path | None = None
    picture: Path | None = None

    def __post_init__(self) -> None:
        unknown = [variant for variant in self.variants if variant not in VARIANTS]
        if unknown or not self.variants or not self.domains or self.scenes < 1:
            raise SettingsError(
                f"variants {list(self.variants)}, domains {list(self.domains)}, {self.scenes} scenes each",
                way_out=f"Use variants out of {', '.join(VARIANTS)}, and one domain and one scene or more",
            )


def run_calibration_benchmark(
    network: PairNetwork, settings: CalibrationBenchmarkSettings, *, image_size: int, show_progress: bool = True
) -> dict[str, object]:
    """Aligns every scene in every variant and measures it.

    Returns:
        The record, with `rows` and `summary.{domain}.{variant}`: mean and median of each metric, and the number of
        scenes whose ATE is lower (`improved`) and higher (`worse`) than the variant `plain`'s.
    """
    rows: list[dict[str, object]] = []
    examples: list[CalibrationExample] = []
    total = len(settings.domains) * settings.scenes
    with progress_bar("Benchmark calibration", total, shown=show_progress) as advance:
        for domain in settings.domains:
            for index in range(settings.scenes):
                scene = make_scene(domain, index, size=(image_size, image_size), seed_offset=settings.seed_offset)
                photos = scene.test
                graph = build_pair_graph(CompleteGraph(), PHOTOS)
                predictions = predict_pairs(photos.views, graph, network, PredictionSettings(show_progress=False))
                matches: Matches | None = None
                if not {*_MATCHED, "bundle_adjustment"}.isdisjoint(settings.variants):
                    matches = match_views(photos.views, predictions, show_progress=False)
                point_maps: AlignedScene | None = None
                for variant in settings.variants:
                    row: dict[str, object] = {"scene": scene.name, "domain": domain, "variant": variant}
                    if variant == "bundle_adjustment":
                        assert matches is not None
                        point_maps = point_maps or align(
                            photos.views, predictions, variant_settings(variant, settings.alignment)
                        )
                        adjusted = bundle_adjusted_cameras(photos.views, point_maps.cameras, matches)
                        rows.append(row | dict.fromkeys(METRICS) | measure_cameras(adjusted.cameras, photos))
                        continue
                    aligned = align(
                        variant_views(variant, photos),
                        predictions,
                        variant_settings(variant, settings.alignment),
                        # With true intrinsics the photos are matched anew: they say what fits one rigid motion.
                        matches=matches if variant == "matches" else None,
                    )
                    measured = measure_alignment(aligned, predictions, photos, cutoff=settings.alignment.cutoff)
                    rows.append(row | measured)
                    point_maps = aligned if variant == "point_maps" else point_maps
                    if variant == "matches" and index == 0:
                        examples.append(_example(scene.name, aligned, predictions, photos))
                advance(1)
    record = machine_record(command="benchmark calibration", device=network.device, seed=settings.seed_offset)
    record |= {"seed_offset": settings.seed_offset, "mu": settings.alignment.mu, "cutoff": settings.alignment.cutoff}
    record |= {"rows": rows, "summary": summarize_calibration(rows)}
    write_record(record, settings.json_file)
    if settings.picture is not None and examples:
        draw_calibration(examples, settings.picture, title="What the network said, what the alignment made of it")
    return record


def _example(name: str, aligned: AlignedScene, predictions: PairPredictions, photos: RoomPhotos) -> CalibrationExample:
    """The second map of the scene's first edge, and curves over all edges."""
    kept = torch.linspace(1.0, 0.05, 20)
    curves: list[list[Tensor]] = [[], [], []]
    shown: tuple[Tensor, ...] | None = None
    for index, (edge, pair) in enumerate(predictions):
        true, predicted = _flat(photos.true_points(edge)), _flat((pair.points_first, pair.points_second))
        error = _error_after_scale(predicted, true)
        confidence = torch.cat([pair.confidence_first.flatten(), pair.confidence_second.flatten()])
        weight = torch.cat([map_.flatten() for map_ in aligned.weights[index]]).float()
        for curve, value in zip(curves, (confidence, weight, -error), strict=True):
            curve.append(sparsification_curve(value, error, kept))
        if shown is None:
            height, width = pair.confidence_second.shape
            of_second = error[-height * width :].view(height, width)
            share = of_second / true[-height * width :].norm(dim=1).view(height, width)
            shown = (photos.views.images[edge[1]], pair.confidence_second, aligned.weights[index][1].float(), share)
    assert shown is not None
    by_confidence, by_weight, by_error = (torch.stack(curve).mean(dim=0) for curve in curves)
    return CalibrationExample(
        label=name,
        image=shown[0],
        confidence=shown[1],
        weight=shown[2],
        error=shown[3],
        kept=kept,
        by_confidence=by_confidence,
        by_weight=by_weight,
        by_error=by_error,
    )


def summarize_calibration(rows: Sequence[Mapping[str, object]]) -> dict[str, dict[str, dict[str, object]]]:
    """Mean and median of each metric by domain and variant, `improved` and `worse` by ATE against `plain`."""
    variants = list(dict.fromkeys(str(row["variant"]) for row in rows))
    domains = list(dict.fromkeys(str(row["domain"]) for row in rows))
    summary: dict[str, dict[str, dict[str, object]]] = {}
    for domain in (*domains, "all"):
        chosen = {
            variant: [row for row in rows if row["variant"] == variant and domain in (row["domain"], "all")]
            for variant in variants
        }
        summary[domain] = {}
        for variant, some in chosen.items():
            entry: dict[str, object] = {"scenes": len(some)}
            for metric in METRICS:
                entry[metric] = mean_and_median([_number(row[metric]) for row in some])
            if "plain" in chosen:
                before, after = ([float(str(row["ate"])) for row in side] for side in (chosen["plain"], some))
                entry["improved"], entry["worse"] = count_changes(before, after)
            summary[domain][variant] = entry
    return summary


def _number(value: object) -> float | None:
    return None if value is None else float(str(value))


def calibration_markdown(record: Mapping[str, object]) -> str:
    """The summary as a Markdown table, mean / median."""
    summary = record["summary"]
    if not isinstance(summary, Mapping):
        raise InvalidDataError("the record has no summary", way_out="Give a record of `run_calibration_benchmark`")
    lines = []
    for domain, by_variant in summary.items():
        for variant, entry in by_variant.items():
            line: dict[str, object] = {"domain": domain, "variant": variant, "scenes": entry["scenes"]}
            for metric in METRICS:
                mean, median = (entry[metric][key] for key in ("mean", "median"))
                line[metric] = "-" if mean is None else f"{mean:.3g} / {median:.3g}"
            lines.append(line | {key: entry.get(key) for key in ("improved", "worse")})
    return markdown_table(lines, ["domain", "variant", "scenes", *METRICS, "improved", "worse"])
