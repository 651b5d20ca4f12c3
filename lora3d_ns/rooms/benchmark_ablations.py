"""Runs the studies of `rooms.ablations` on validation rooms."""

import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Bool
from torch import Tensor

from lora3d_ns.adapter.adapter import Adapter, target_layers
from lora3d_ns.adapter.finetune import finetune
from lora3d_ns.adapter.lora import LoraSettings, with_adapter
from lora3d_ns.benchmark_record import machine_record, write_record
from lora3d_ns.errors import SettingsError, TooFewLabelsError
from lora3d_ns.evaluation.metrics import absolute_trajectory_error, point_error
from lora3d_ns.network.checkpoints import network_fingerprint
from lora3d_ns.network.dust3r import Dust3r
from lora3d_ns.pair_graph import CompleteGraph, build_pair_graph
from lora3d_ns.predict import PredictionSettings, predict_pairs
from lora3d_ns.progress import progress_bar
from lora3d_ns.reconstruct import Calibration, Measured, ReconstructSettings, self_calibrate
from lora3d_ns.rooms.ablation_tables import chosen_by_gate, summarize_ablations
from lora3d_ns.rooms.ablations import ABLATION_ROOMS, STUDIES, VALIDATION_OFFSET, Variant
from lora3d_ns.rooms.benchmark_arms import BENCHMARK_NETWORK_NAME
from lora3d_ns.rooms.benchmark_scenes import BenchmarkScene, RoomPhotos, make_scene
from lora3d_ns.rooms.label_errors import label_error_m, prediction_error_m, truth_of_pair
from lora3d_ns.rooms.learners import joined, learnt_norm_preserving, learnt_with_all_weights
from lora3d_ns.scene_io.stage_cache import StageCache, fingerprint
from lora3d_ns.types import PseudoLabels

Edge = tuple[int, int]

LITTLE_OVERLAP = 0.3
"""Pairs whose second photo shows less of the first count as having little in common."""
_VERSION = 2
_SAME_DEPTH = 0.1
_REUSE = "reuse"
_EPOCHS = "epochs"
"""The study in which stopping early is asked for."""


@dataclass(frozen=True, kw_only=True)
class AblationSettings:
    """What is run on what.

    Attributes:
        studies: Out of `STUDIES`, or `reuse` (one adapter for several rooms).
        rooms: Domain and index of each room.
        seed_offset: Of the rooms.
        cache: Folder for results, so that an interrupted run goes on; nowhere by default.
        json_file: Where the record goes.
        show_progress: Whether to draw a bar.
    """

    studies: tuple[str, ...]
    rooms: tuple[str, ...] = ABLATION_ROOMS
    seed_offset: int = VALIDATION_OFFSET
    cache: Path | None = None
    json_file: Path | None = None
    show_progress: bool = True

    def __post_init__(self) -> None:
        unknown = [study for study in self.studies if study not in STUDIES and study != _REUSE]
        if unknown or not self.studies or not self.rooms:
            raise SettingsError(
                f"studies {list(self.studies)} on {len(self.rooms)} rooms",
                way_out=f"Use studies out of {', '.join((*STUDIES, _REUSE))}, and one room or more",
            )
        if _REUSE in self.studies and len(self.rooms) < 2:
            raise SettingsError("one adapter for several rooms, of one room", way_out="Name two rooms or more")
        for room in self.rooms:
            domain, _, index = room.rpartition("-")
            if not domain or not index.isdigit():
                raise SettingsError(f"no room is called {room!r}", way_out="Use names such as nominal-1")


def run_ablations(network: Dust3r, settings: AblationSettings) -> dict[str, object]:
    """Calibrates every room in every variant of the studies.

    Every variant is measured with its adapter whether the gate accepts it or not; `accepted` says what the gate did,
    None where something else than an adapter learnt. `seconds` are those of learning; what the cache has takes none.

    Returns:
        The record, with `rows` and `studies.{study}.{variant}`.
    """
    cache = StageCache.none() if settings.cache is None else StageCache(settings.cache)
    bench = _Bench(network, settings, cache)
    rows: list[dict[str, object]] = []
    planned = [(study, variant) for study in settings.studies for variant in _variants(study)]
    with progress_bar("Ablations", len(planned) * len(settings.rooms), shown=settings.show_progress) as advance:
        for room in settings.rooms:
            for study, variant in planned:
                row = bench.reused(room) if study == _REUSE else bench.row(room, variant)
                rows.append({"study": study, "variant": variant.name, "scene": room, **row})
                advance(1)
    rows += chosen_by_gate([row for row in rows if row["study"] == _EPOCHS])
    record = machine_record(command="benchmark ablations", device=network.device, seed=settings.seed_offset)
    record |= {"seed_offset": settings.seed_offset, "rooms": list(settings.rooms)}
    record |= {"rows": rows, "studies": summarize_ablations(rows)}
    write_record(record, settings.json_file)
    return record


def _variants(study: str) -> tuple[Variant, ...]:
    return (Variant(name="one adapter for all rooms"),) if study == _REUSE else STUDIES[study].variants


class _Bench:
    """The network, the rooms rendered so far, and what was measured of them without any learning."""

    def __init__(self, network: Dust3r, settings: AblationSettings, cache: StageCache) -> None:
        self.network = network
        self.settings = settings
        self.cache = cache
        self.of_network = network_fingerprint(network)
        self.size = (network.config.image_size, network.config.image_size)
        self._scenes: dict[tuple[str, int], BenchmarkScene] = {}
        self._errors: dict[tuple[int, str], dict[Edge, float]] = {}

    def scene(self, room: str, photos: int) -> BenchmarkScene:
        """A room with so many calibration photos."""
        if (room, photos) not in self._scenes:
            domain, _, index = room.rpartition("-")
            self._scenes[room, photos] = make_scene(
                domain,
                int(index),
                size=self.size,
                seed_offset=self.settings.seed_offset,
                calibration_photos=photos,
            )
        return self._scenes[room, photos]

    def elsewhere(self, room: str) -> str | None:
        """Another room of the list, to see what was forgotten; None if there is no other."""
        rooms = self.settings.rooms
        other = rooms[(rooms.index(room) + 1) % len(rooms)]
        return None if other == room else other

    def row(self, room: str, variant: Variant) -> dict[str, object]:
        """What a variant came to in a room."""
        of_room = (room, self.settings.seed_offset, self.elsewhere(room))
        key = fingerprint(_VERSION, self.of_network, of_room, _key_of(variant))
        return self.cache.result("ablation", key, dict, lambda: self._measured(room, variant))

    def _measured(self, room: str, variant: Variant) -> dict[str, object]:
        scene = self.scene(room, variant.chosen_from)
        photos = _chosen(scene.calibration, variant)
        settings = _with_layers(variant, self.network).silent()
        begun = time.perf_counter()
        try:
            made = _calibrated(photos, self.network, settings, self.cache)
        except TooFewLabelsError:
            return {**self._compared(self.network, room), "too_few_labels": True}
        learnt, parameters = self._learnt(variant, made, photos, settings)
        seconds = time.perf_counter() - begun
        # The gate and the best epoch are the adapter's, which is made for its labels here.
        gate = made.gate if variant.learner == "adapter" else None
        found = {
            **self._compared(learnt, room),
            "photos": variant.photos,
            "parameters": parameters,
            "best_epoch": made.finetuned.best_epoch if variant.learner == "adapter" else None,
            "accepted": None if gate is None else gate.accepted,
            "coverage": float(made.labels.coverage.mean()),
            "prediction_error": prediction_error_m(made.before.predictions, photos),
            "label_error": label_error_m(made.labels, photos),
            "ate": absolute_trajectory_error(made.before.aligned.cameras.T_world_camera, photos.cameras.T_world_camera),
            **moving_shares(
                made.labels,
                photos,
                [
                    (weight >= settings.point_cutoff) & ~moving
                    for weight, moving in zip(made.before.aligned.view_weights, made.before.aligned.moving, strict=True)
                ],
            ),
            "seconds": seconds,
        }
        if gate is not None:
            for name in ("label_error", "order_error", "match_error"):
                before, after = getattr(gate.before, name), getattr(gate.after, name)
                found[f"gate_{name}"] = None if before is None or after is None else after / max(before, 1e-12)
        return found

    def _learnt(
        self, variant: Variant, made: Calibration, photos: RoomPhotos, settings: ReconstructSettings
    ) -> tuple[Dust3r, int]:
        if variant.learner != "adapter":
            learn = learnt_with_all_weights if variant.learner == "all_weights" else learnt_norm_preserving
            return learn(self.network, photos.views, made.labels, settings.finetune)
        adapter = made.adapter or made.refused
        assert adapter is not None
        return with_adapter(self.network, adapter), adapter.parameter_count

    def _compared(self, learnt: Dust3r, room: str) -> dict[str, object]:
        """Point errors on the test photos, and on those of another room, without and with what was learnt."""
        photos = self.scene(room, _ANY).test
        overlaps = true_overlaps(photos)
        before, after = self._base_errors(room), pair_point_errors(learnt, photos)
        little = [edge for edge, overlap in overlaps.items() if overlap < LITTLE_OVERLAP]
        other = self.elsewhere(room)
        return {
            "point_error_before": _mean(before),
            "point_error": _mean(after),
            "little_overlap_pairs": len(little),
            "little_overlap_before": _mean({edge: before[edge] for edge in little}),
            "little_overlap": _mean({edge: after[edge] for edge in little}),
            "much_overlap_before": _mean({edge: error for edge, error in before.items() if edge not in little}),
            "much_overlap": _mean({edge: error for edge, error in after.items() if edge not in little}),
            "elsewhere_before": None if other is None else _mean(self._base_errors(other)),
            "elsewhere": None if other is None else _mean(pair_point_errors(learnt, self.scene(other, _ANY).test)),
        }

    def _base_errors(self, room: str) -> dict[Edge, float]:
        if (0, room) not in self._errors:
            self._errors[0, room] = pair_point_errors(self.network, self.scene(room, _ANY).test)
        return self._errors[0, room]

    def reused(self, room: str) -> dict[str, object]:
        """One adapter that learnt all rooms but the last at once; the last one it never saw (LoRA3D, App. A.7)."""
        key = fingerprint(_VERSION, self.of_network, _REUSE, self.settings.rooms, self.settings.seed_offset, room)
        return self.cache.result("ablation", key, dict, lambda: self._reused(room))

    def _reused(self, room: str) -> dict[str, object]:
        own = self.row(room, Variant(name="default"))
        return {
            **self._compared(with_adapter(self.network, self._together), room),
            "own_adapter": own["point_error"],
            "taught": room in self.settings.rooms[:-1],
            "parameters": self._together.parameter_count,
        }

    @cached_property
    def _together(self) -> Adapter:
        """The adapter of all rooms but the last, learnt once."""
        settings = ReconstructSettings().silent()
        taught = self.settings.rooms[:-1]

        def learn() -> dict[str, Mapping[str, Tensor]]:
            lessons = []
            for room in taught:
                photos = self.scene(room, _ANY).calibration
                lessons.append((photos.views, _calibrated(photos, self.network, settings, self.cache).labels))
            tuned = finetune(*joined(lessons), self.network, settings.finetune, base_name=BENCHMARK_NETWORK_NAME)
            return {"adapter": tuned.adapter.tensors}

        key = fingerprint(_VERSION, self.of_network, taught, self.settings.seed_offset)
        return Adapter(
            settings=settings.finetune.lora,
            tensors=self.cache.result("together", key, dict, learn)["adapter"],
            base_name=BENCHMARK_NETWORK_NAME,
            base_fingerprint=self.of_network,
        )


_ANY = 10
"""Calibration photos of the rooms whose test photos are used: these do not depend on it."""


def _calibrated(photos: RoomPhotos, network: Dust3r, settings: ReconstructSettings, cache: StageCache) -> Calibration:
    depths = tuple(
        torch.where(static, depth, 0.0) for depth, static in zip(photos.depths_m, photos.static, strict=True)
    )
    measured = None if settings.arm == "self_calibrated" else Measured(depths=depths, cameras=photos.cameras)
    return self_calibrate(
        photos.views, network, settings, base_name=BENCHMARK_NETWORK_NAME, measured=measured, cache=cache
    )


def _chosen(photos: RoomPhotos, variant: Variant) -> RoomPhotos:
    """The photos that a variant calibrates on."""
    count = len(photos.views)
    if variant.photos == count:
        return photos
    if variant.choice_seed is None:
        chosen = [round(k * (count - 1) / (variant.photos - 1)) for k in range(variant.photos)]
    else:
        chosen = sorted(random.Random(variant.choice_seed).sample(range(count), variant.photos))
    cameras = photos.cameras
    return replace(
        photos,
        views=photos.views.select(chosen),
        depths_m=tuple(photos.depths_m[view] for view in chosen),
        static=tuple(photos.static[view] for view in chosen),
        cameras=replace(
            cameras,
            T_world_camera=cameras.T_world_camera[chosen],
            K=cameras.K[chosen],
            sizes=tuple(cameras.sizes[view] for view in chosen),
        ),
    )


def layers_of(network: Dust3r, layers: str) -> tuple[str, ...]:
    """Target names of `LoraSettings` for what a variant calls its layers.

    Raises:
        SettingsError: There are none of that name.
    """
    attention = LoraSettings().targets
    if layers == "decoders":
        return tuple(name for name in target_layers(network, attention) if name.startswith("dec_blocks"))
    known = {
        "attention": attention,
        "qkv": ("qkv",),
        "attention_and_outputs": (*attention, "attn.proj", "cross_attn.proj"),
        "attention_and_mlps": (*attention, "mlp.fc1", "mlp.fc2"),
    }
    if layers not in known:
        raise SettingsError(f"no layers are called {layers!r}", way_out=f"Use decoders, {', '.join(known)}")
    return known[layers]


def _with_layers(variant: Variant, network: Dust3r) -> ReconstructSettings:
    if variant.layers == "attention":
        return variant.settings
    tuned = variant.settings.finetune
    lora = replace(tuned.lora, targets=layers_of(network, variant.layers))
    return replace(variant.settings, finetune=replace(tuned, lora=lora))


def _key_of(variant: Variant) -> object:
    return replace(variant, name="-")


def pair_point_errors(network: Dust3r, photos: RoomPhotos) -> dict[Edge, float]:
    """Point error of every ordered pair of some photos, metres."""
    graph = build_pair_graph(CompleteGraph(), len(photos.views))
    predictions = predict_pairs(photos.views, graph, network, PredictionSettings(show_progress=False))
    return {
        edge: point_error((pair.points_first, pair.points_second), *truth_of_pair(photos, edge))
        for edge, pair in predictions
    }


def moving_shares(
    labels: PseudoLabels, photos: RoomPhotos, in_cloud: Sequence[Bool[Tensor, "_ _"]]
) -> dict[str, float | None]:
    """Share of what truly moves, and of what does not, that got into the labels and into the cloud.

    Args:
        labels: Of these photos.
        photos: With the truth.
        in_cloud: Per photo, which pixels are points of the scene.
    """
    labelled = [torch.zeros_like(static) for static in photos.static]
    for (i, j), first, second in zip(labels.graph.edges, labels.valid_first, labels.valid_second, strict=True):
        labelled[i] |= first
        labelled[j] |= second
    static = torch.cat([mask.flatten() for mask in photos.static])
    shares: dict[str, float | None] = {}
    for name, masks in (("labelled", labelled), ("in_cloud", in_cloud)):
        chosen = torch.cat([mask.flatten() for mask in masks]).float()
        shares[f"moving_{name}"] = float(chosen[~static].mean()) if bool((~static).any()) else None
        shares[f"static_{name}"] = float(chosen[static].mean())
    return shares


def true_overlaps(photos: RoomPhotos) -> dict[Edge, float]:
    """Share of photo i's pixels that photo j truly shows, for every ordered pair."""
    count = len(photos.views)
    found = {}
    for i, j in build_pair_graph(CompleteGraph(), count).edges:
        points = photos.true_points((j, i))[1].reshape(-1, 3)
        K = photos.views.source_from_network[j].K_network_from_source(photos.cameras.K[j]).float()
        z = points[:, 2]
        pixels = (points @ K.T)[:, :2] / z.clamp_min(1e-6)[:, None]
        height, width = photos.depths_m[j].shape
        x, y = pixels.floor().long().unbind(dim=1)
        inside = (z > 0) & (x >= 0) & (x < width) & (y >= 0) & (y < height)
        there = photos.depths_m[j][y.clamp(0, height - 1), x.clamp(0, width - 1)]
        found[i, j] = float((inside & ((z - there).abs() < _SAME_DEPTH * there)).float().mean())
    return found


def _mean(errors: Mapping[Edge, float]) -> float | None:
    return sum(errors.values()) / len(errors) if errors else None
