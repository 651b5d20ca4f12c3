"""`rooms-v1`: the fixed scenes on which everything is judged, and the table of it.

24 scenes that no training and no validation ever sees: six each of `nominal`, `dark`, `sparse` and `tele`, each with
ten photos to calibrate on and ten others, from the same path, to be tested on. `clutter` and `moving` are extra lists
of six. A seed offset moves all of them to scenes of the same kind that nobody has looked at.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

import torch

from lora3d_ns.benchmark_record import machine_record, write_record
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
from lora3d_ns.evaluation.tables import bootstrap_interval, count_changes, markdown_table, mean_and_median
from lora3d_ns.geometry.similarity import weighted_scale
from lora3d_ns.network.dust3r import Dust3r
from lora3d_ns.progress import progress_bar
from lora3d_ns.rooms.benchmark_arms import ARMS, ArmResult
from lora3d_ns.rooms.benchmark_scenes import MAIN_DOMAINS, SCENES_PER_DOMAIN, BenchmarkScene, RoomPhotos, make_scene
from lora3d_ns.rooms.cloud_pictures import Cloud, cloud_of, draw_clouds, true_cloud
from lora3d_ns.types import PairPredictions

METRICS = ("point_error", "ate", "afe_percent", "auc30", "confidence_rank_correlation", "ause")
"""Columns of the table. `point_error` and `ate` are in metres. Lower is better, but for `auc30`."""


_ON_CALIBRATION_PHOTOS = ("prediction_error", "label_error")
"""What labels were made of, and what they were, in metres; None for arms without labels."""


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
    `gt_finetuned` or where that one is no better than `pretrained`. Arms beside `pretrained` also hold
    `worse_than_2_percent`, the number of scenes whose point error is more than 2 % above that arm's, and
    `point_error_change`: the mean difference from it with the ends of its 95 % bootstrap interval, None for one scene.
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
            for metric in (*METRICS, *_ON_CALIBRATION_PHOTOS):
                entry[metric] = mean_and_median([_number(row.get(metric)) for row in chosen])
            if "pretrained" in errors:
                entry["improved"], entry["worse"] = count_changes(errors["pretrained"], errors[arm])
                if arm != "pretrained":
                    pairs = list(zip(errors["pretrained"], errors[arm], strict=True))
                    entry["worse_than_2_percent"] = sum(new > 1.02 * old for old, new in pairs)
                    entry["point_error_change"] = _change([new - old for old, new in pairs])
            entry["gap_closure"] = _gap_closure(means, arm)
            summary[domain][arm] = entry
    return summary


def _number(value: object) -> float | None:
    return None if value is None else float(str(value))


def _change(differences: Sequence[float]) -> dict[str, float] | None:
    if len(differences) < 2:
        return None
    low, high = bootstrap_interval(differences)
    return {"mean": fmean(differences), "low": low, "high": high}


def _gap_closure(means: Mapping[str, float | None], arm: str) -> float | None:
    before, after, bound = means.get("pretrained"), means.get(arm), means.get("gt_finetuned")
    if before is None or after is None or bound is None or before <= bound:
        return None
    return gap_closure(before, after, bound)


def run_rooms_benchmark(
    network: Dust3r,
    *,
    network_name: str,
    image_size: int,
    arms: Sequence[str] = ("pretrained",),
    domains: Sequence[str] = MAIN_DOMAINS,
    scenes: int = SCENES_PER_DOMAIN,
    seed_offset: int = 0,
    json_path: Path | None = None,
    picture: Path | None = None,
    show_progress: bool = True,
) -> dict[str, object]:
    """Runs arms on the scenes of the benchmark; test photos are seen by no calibration.

    Args:
        network: The base of all arms.
        network_name: What to call it in the record.
        image_size: Side of the square photos in pixels.
        arms: Names of arms, see `ARMS`.
        domains: Names of domains; by default the four main ones.
        scenes: Scenes per domain.
        seed_offset: See `make_scene`.
        json_path: Where the record goes too.
        picture: File for a picture of the clouds of every domain's first scene.
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
    clouds: dict[str, dict[str, Cloud]] = {}
    with progress_bar("Benchmark rooms-v1", len(domains) * scenes * len(arms), shown=show_progress) as advance:
        for domain in domains:
            for index in range(scenes):
                scene = make_scene(domain, index, size=(image_size, image_size), seed_offset=seed_offset)
                for arm in arms:
                    result = ARMS[arm](network, scene)
                    rows.append(_row(result, scene, arm))
                    if picture is not None and index == 0 and result.aligned is not None:
                        clouds.setdefault(scene.name, {})[arm] = cloud_of(result, scene.test)
                    advance(1)
                if scene.name in clouds:
                    clouds[scene.name]["truth"] = true_cloud(scene.test)
    record = machine_record(command="benchmark rooms", device=network.device, seed=seed_offset)
    record |= {"network": network_name, "image_size": image_size, "list": "rooms-v1", "seed_offset": seed_offset}
    record |= {"rows": rows, "summary": summarize(rows)}
    write_record(record, json_path)
    if picture is not None:
        draw_clouds(clouds, picture)
    return record


def _row(result: ArmResult, scene: BenchmarkScene, arm: str) -> dict[str, object]:
    row: dict[str, object] = {"scene": scene.name, "domain": scene.domain, "arm": arm}
    refused = None if result.refused is None else mean_point_error(result.refused, scene.test)
    learnt = {"prediction_error": result.prediction_error_m, "label_error": result.label_error_m}
    return row | measure(result, scene.test) | learnt | {"accepted": result.accepted, "refused_point_error": refused}


def mean_point_error(predictions: PairPredictions, truth: RoomPhotos) -> float:
    """Mean over the ordered pairs of their point error over what does not move, metres."""
    errors = [
        point_error(
            (pair.points_first, pair.points_second), truth.true_points(edge), [truth.static[view] for view in edge]
        )
        for edge, pair in predictions
    ]
    return sum(errors) / len(errors)


def benchmark_markdown(record: Mapping[str, object]) -> str:
    """The summary of a record as a Markdown table: one line per domain and arm, mean and median of each metric.

    Below it, for each arm with labels how the error goes from predictions to labels to what was learnt, and for each
    arm that can be compared with `pretrained` how its point error differs.
    """
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
    table = markdown_table(lines, ["domain", "arm", "scenes", *METRICS, "improved", "worse", "gap_closure"])
    changes = []
    for arm, entry in summary["all"].items():
        if entry["label_error"]["mean"] is not None:
            figures = (entry[name]["mean"] for name in (*_ON_CALIBRATION_PHOTOS, "point_error"))
            predicted, labelled, after = (f"{figure:.3f}" for figure in figures)
            changes.append(
                f"{arm}: predictions of the calibration photos {predicted} m off, labels made of them {labelled} m, "
                f"predictions of the test photos afterwards {after} m"
            )
        change = entry.get("point_error_change")
        if change is not None:
            mean, low, high = (f"{change[key]:+.3f}" for key in ("mean", "low", "high"))
            changes.append(
                f"{arm} - pretrained: {mean} m point error, 95 % of bootstrap samples between {low} and {high}; "
                f"{entry['worse_than_2_percent']} of {entry['scenes']} scenes more than 2 % worse"
            )
    return "\n".join([table, "", *changes]) if changes else table
