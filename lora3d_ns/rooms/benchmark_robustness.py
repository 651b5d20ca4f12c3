"""`lora3d benchmark robustness`: plain and robust alignment of predictions whose every fault is known.

Rooms have exact truth; the faults are those of `rooms.noisy_map`: smooth warps of depth, over-confident floaters on a
fifth of the pixels, and edges that are wholly wrong. With `pose_noise` the pairs' relative poses err as
well, which no re-weighting of points can mend: there only matches help.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

from lora3d_ns.alignment.align import align
from lora3d_ns.alignment.settings import AlignmentSettings
from lora3d_ns.benchmark_record import machine_record, write_record
from lora3d_ns.errors import SettingsError
from lora3d_ns.evaluation.metrics import (
    absolute_trajectory_error,
    rank_correlation,
    sparsification_error,
)
from lora3d_ns.evaluation.tables import markdown_table
from lora3d_ns.pair_graph import CompleteGraph, build_pair_graph
from lora3d_ns.progress import progress_bar
from lora3d_ns.rooms.noisy_map import NoiseSettings
from lora3d_ns.rooms.simulated import SimulatedTruth, noisy_predictions, photograph_rooms
from lora3d_ns.types import AlignedScene, PairPredictions

_WORSE = 1.05
_POSE_NOISE_DEG, _POSE_NOISE_SHARE = 1.5, 0.03


@dataclass(frozen=True, kw_only=True)
class RobustnessSettings:
    """What is simulated.

    Attributes:
        seeds: So many rooms, each with faults of its own.
        views: Photos of each.
        size: Width and height of the photos in pixels.
        pose_noise: Whether the relative pose of each pair errs too, by 1.5 degrees and 3 % of the depth.
        matches: Whether a third alignment with 2D matches is made.
        json_file: Where the record goes.
    """

    seeds: int = 20
    views: int = 10
    size: tuple[int, int] = (64, 48)
    pose_noise: bool = False
    matches: bool = False
    json_file: Path | None = None

    def __post_init__(self) -> None:
        if self.seeds < 1 or self.views < 3:
            raise SettingsError(
                f"{self.seeds} seeds of {self.views} views", way_out="Use one seed or more, of three views or more"
            )


def run_robustness_benchmark(settings: RobustnessSettings, *, show_progress: bool = True) -> dict[str, object]:
    """One row per seed, and what must hold over all of them.

    Returns:
        The record: `rows` of ATE in metres of each alignment, wrong edges found, AUSE and rank correlation of
        confidence and weight; `summary` with `ate_ratio` (median of robust over median of plain), `worse` (seeds whose
        robust ATE is more than 5 % above plain), `wrong_edges` and `wrong_edges_found`, `edges_dropped_in_error`.
    """
    noise = NoiseSettings(
        rotation_deg=_POSE_NOISE_DEG if settings.pose_noise else 0.0,
        translation=_POSE_NOISE_SHARE if settings.pose_noise else 0.0,
    )
    arms = {
        "plain": AlignmentSettings(objective="plain", matches="off", show_progress=False),
        "robust": AlignmentSettings(matches="off", show_progress=False),
    }
    if settings.matches:
        arms["matches"] = AlignmentSettings(show_progress=False)
    rows: list[dict[str, object]] = []
    width, height = settings.size
    with progress_bar("Benchmark robustness", settings.seeds, shown=show_progress) as advance:
        for seed in range(settings.seeds):
            photos = photograph_rooms(settings.views, shapes=[(height, width)], seed=seed)
            graph = build_pair_graph(CompleteGraph(), settings.views)
            predictions, truth = noisy_predictions(photos, graph, noise, seed=seed)
            row: dict[str, object] = {"seed": seed}
            for arm, alignment in arms.items():
                aligned = align(photos.views, predictions, alignment)
                row[f"ate_{arm}"] = absolute_trajectory_error(
                    aligned.cameras.T_world_camera, photos.cameras.T_world_camera
                )
                if arm == "robust":
                    row |= _weights_and_edges(aligned, predictions, truth)
            rows.append(row)
            advance(1)
    record = machine_record(command="benchmark robustness", device=torch.device("cpu"), seed=0)
    record |= {"views": settings.views, "size": list(settings.size), "pose_noise": settings.pose_noise}
    record |= {"rows": rows, "summary": _summary(rows, list(arms))}
    write_record(record, settings.json_file)
    return record


def _weights_and_edges(aligned: AlignedScene, predictions: PairPredictions, truth: SimulatedTruth) -> dict[str, object]:
    names = ("ause_confidence", "ause_weight", "correlation_confidence", "correlation_weight")
    sums: dict[str, float] = dict.fromkeys(names, 0.0)
    for index, (_, pair) in enumerate(predictions):
        error = torch.cat([map_.flatten() for map_ in truth.errors_m[index]])
        confidence = torch.cat([pair.confidence_first.flatten(), pair.confidence_second.flatten()])
        weight = torch.cat([map_.flatten() for map_ in aligned.weights[index]])
        for name, values in (("confidence", confidence), ("weight", weight)):
            sums[f"ause_{name}"] += sparsification_error(values, error) / len(predictions)
            sums[f"correlation_{name}"] += rank_correlation(values, error) / len(predictions)
    found = [edge for edge in truth.wrong_edges if edge in aligned.dropped_edges]
    return {
        **sums,
        "wrong_edges": len(truth.wrong_edges),
        "wrong_edges_found": len(found),
        "edges_dropped_in_error": len(aligned.dropped_edges) - len(found),
    }


def _summary(rows: Sequence[Mapping[str, object]], arms: Sequence[str]) -> dict[str, object]:
    def values(key: str) -> list[float]:
        return [float(str(row[key])) for row in rows]

    medians = {arm: median(values(f"ate_{arm}")) for arm in arms}
    summary: dict[str, object] = {f"ate_{arm}_median": value for arm, value in medians.items()}
    summary["ate_ratio"] = medians["robust"] / medians["plain"]
    summary["worse"] = sum(
        robust > _WORSE * plain for robust, plain in zip(values("ate_robust"), values("ate_plain"), strict=True)
    )
    for key in ("wrong_edges", "wrong_edges_found", "edges_dropped_in_error"):
        summary[key] = int(sum(values(key)))
    for key in ("ause_confidence", "ause_weight", "correlation_confidence", "correlation_weight"):
        summary[key] = sum(values(key)) / len(rows)
    return summary


def robustness_markdown(record: Mapping[str, object]) -> str:
    """The summary of a record as a Markdown table."""
    summary = record["summary"]
    assert isinstance(summary, Mapping)
    return markdown_table([dict(summary)], list(summary))
