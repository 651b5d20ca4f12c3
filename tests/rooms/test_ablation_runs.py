"""Runs of studies on small rooms: whose figures a row holds, what the cache tells apart, one adapter for many rooms.

Calibration is replaced by labels of the true depths, learnt in one epoch by a tiny network.
"""

import copy
import dataclasses
import functools
from pathlib import Path

import pytest
import torch
from alignment.aligned_rooms import OFF

from lora3d_ns.adapter.adapter import Adapter
from lora3d_ns.adapter.finetune import FineTuned, FineTuneSettings, finetune
from lora3d_ns.adapter.gate import Consistency, GateDecision
from lora3d_ns.adapter.lora import with_adapter
from lora3d_ns.alignment.align import align
from lora3d_ns.network.configuration import Dust3rConfig
from lora3d_ns.network.dust3r import Dust3r
from lora3d_ns.pair_graph import CompleteGraph, build_pair_graph
from lora3d_ns.pseudo_labels import labels_from_depths
from lora3d_ns.reconstruct import Calibration, ReconstructSettings
from lora3d_ns.rooms import benchmark_ablations, benchmark_scenes
from lora3d_ns.rooms.ablations import Study, Variant, changed
from lora3d_ns.rooms.benchmark_ablations import AblationSettings, pair_point_errors, run_ablations
from lora3d_ns.rooms.benchmark_scenes import RoomPhotos
from lora3d_ns.rooms.simulated import exact_predictions
from lora3d_ns.scene_io.stage_cache import StageCache
from lora3d_ns.stages.stages import Understood
from lora3d_ns.types import PairGraph, PseudoLabels, Views

make_scene = functools.cache(benchmark_scenes.make_scene)
ROOMS = ("nominal-0", "tele-0", "dark-0")
OFFSET = 800
TEST_PHOTOS = 4
PAIRS = TEST_PHOTOS * (TEST_PHOTOS - 1)
SIDE = 32
QUICK = changed(finetune={"epochs": 1, "held_out_share": 0.0}, lora={"rank": 2})


def tiny(seed: int = 0) -> Dust3r:
    config = Dust3rConfig(
        patch_size=16, encoder_width=32, encoder_depth=1, encoder_heads=2, decoder_width=32, decoder_depth=1,
        decoder_heads=2, head="linear", image_size=SIDE,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Dust3r(config).eval()


@dataclasses.dataclass
class Counted:
    """What was computed, in the order of the calls."""

    calibrated: list[int] = dataclasses.field(default_factory=list)
    tuned: list[FineTuned] = dataclasses.field(default_factory=list)
    lessons: list[tuple[Views, PseudoLabels]] = dataclasses.field(default_factory=list)


def quickly_tuned(views: Views, labels: PseudoLabels, network: Dust3r, settings: FineTuneSettings) -> FineTuned:
    quick = dataclasses.replace(settings, epochs=1, held_out_share=0.0)
    return finetune(views, labels, network, quick, base_name="tiny")


@pytest.fixture(name="counted")
def _counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    counted = Counted()

    def calibrated(
        photos: RoomPhotos, network: Dust3r, settings: ReconstructSettings, cache: StageCache
    ) -> Calibration:
        del cache
        count = len(photos.views)
        counted.calibrated.append(count)
        graph = build_pair_graph(CompleteGraph(), count)
        # Neighbours only: the alignment is not what is looked at.
        path = PairGraph(view_count=count, edges=tuple((i, j) for i, j in graph.edges if abs(i - j) == 1))
        predictions = exact_predictions(photos, path)
        few = dataclasses.replace(OFF, coarse_iterations=1, full_iterations=1)
        aligned = align(photos.views, predictions, few)
        cameras = photos.cameras
        labels = labels_from_depths(
            photos.views, graph, T_world_camera=cameras.T_world_camera, K=cameras.K, depths=photos.depths_m
        )
        counted.tuned.append(quickly_tuned(photos.views, labels, network, settings.finetune))
        before, after = (
            Consistency(label_error=error, order_error=2.0 * error, match_error=None, matches=0) for error in (0.4, 0.1)
        )
        return Calibration(
            adapter=None,
            refused=counted.tuned[-1].adapter,
            gate=GateDecision(accepted=False, reason="to see what is done then", before=before, after=after),
            before=Understood(predictions=predictions, matches=None, aligned=aligned),
            labels=labels,
            finetuned=counted.tuned[-1],
            seconds={},
        )

    def tuned(
        views: Views, labels: PseudoLabels, network: Dust3r, settings: FineTuneSettings, *, base_name: str
    ) -> FineTuned:
        del base_name
        counted.lessons.append((views, labels))
        counted.tuned.append(quickly_tuned(views, labels, network, settings))
        return counted.tuned[-1]

    monkeypatch.setattr(benchmark_ablations, "_calibrated", calibrated)
    monkeypatch.setattr(benchmark_ablations, "finetune", tuned)
    monkeypatch.setattr(benchmark_ablations, "make_scene", make_scene)
    monkeypatch.setattr(benchmark_scenes, "PHOTOS", TEST_PHOTOS)
    return counted


def run(
    monkeypatch: pytest.MonkeyPatch,
    network: Dust3r,
    *variants: Variant,
    rooms: tuple[str, ...] = ROOMS[:1],
    cache: Path | None = None,
) -> list[dict]:
    monkeypatch.setattr(benchmark_ablations, "STUDIES", {"quick": Study(question="?", variants=variants)})
    settings = AblationSettings(studies=("quick",), rooms=rooms, seed_offset=OFFSET, cache=cache, show_progress=False)
    rows = run_ablations(network, settings)["rows"]
    assert isinstance(rows, list)
    return rows


def mean_error(network: Dust3r, room: str) -> float:
    domain, _, index = room.rpartition("-")
    scene = make_scene(domain, int(index), size=(SIDE, SIDE), seed_offset=OFFSET)
    errors = pair_point_errors(network, scene.test)
    return sum(errors.values()) / len(errors)


def adapted_error(network: Dust3r, adapter: Adapter, room: str) -> float:
    return mean_error(with_adapter(network, adapter), room)


def test_a_variant_is_measured_with_what_it_learnt_even_if_the_gate_refused_it(
    monkeypatch: pytest.MonkeyPatch, counted: Counted
) -> None:
    network = tiny()
    rows = run(monkeypatch, network, Variant(name="a", settings=QUICK, photos=3, chosen_from=3), rooms=ROOMS[:2])
    assert [row["scene"] for row in rows] == list(ROOMS[:2])
    for row, tuned, other in zip(rows, counted.tuned, reversed(ROOMS[:2]), strict=True):
        assert row["point_error_before"] == pytest.approx(mean_error(network, row["scene"]))
        assert row["point_error"] == pytest.approx(adapted_error(network, tuned.adapter, row["scene"]))
        assert row["point_error"] != row["point_error_before"]
        assert row["elsewhere_before"] == pytest.approx(mean_error(network, other))
        assert row["elsewhere"] == pytest.approx(adapted_error(network, tuned.adapter, other))
        assert row["accepted"] is False
        assert row["gate_label_error"] == pytest.approx(0.25)
        assert row["gate_match_error"] is None
        assert row["best_epoch"] == tuned.best_epoch
        assert row["parameters"] == tuned.adapter.parameter_count
        assert row["photos"] == 3
        # Labels and predictions are true here.
        assert row["label_error"] < 1e-4
        assert row["prediction_error"] < 1e-4
        little = row["little_overlap_pairs"]
        parts = [(little, row["little_overlap"]), (PAIRS - little, row["much_overlap"])]
        assert row["point_error"] == pytest.approx(sum(count * error for count, error in parts if count) / PAIRS)


def test_what_learns_without_an_adapter_has_no_gate_and_leaves_the_network_alone(
    monkeypatch: pytest.MonkeyPatch, counted: Counted
) -> None:
    network = tiny()
    before = copy.deepcopy(network.state_dict())
    usual = Variant(name="adapter", settings=QUICK, photos=3, chosen_from=3)
    rows = run(
        monkeypatch,
        network,
        usual,
        dataclasses.replace(usual, name="norms", learner="norm_preserving"),
        dataclasses.replace(usual, name="all", learner="all_weights"),
        dataclasses.replace(usual, name="qkv", layers="qkv"),
    )
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    adapter, norms, every, qkv = rows
    assert len({row["point_error"] for row in rows}) == 4
    assert [row["accepted"] for row in rows] == [False, None, None, False]
    assert [row["best_epoch"] for row in rows] == [1, None, None, 1]
    assert ["gate_label_error" in row for row in rows] == [True, False, False, True]
    # Rank 2 on qkv of one encoder and two decoder blocks, and on three projections of the latter; 32 wide.
    assert norms["parameters"] == adapter["parameters"] == 2 * (3 * (32 + 96) + 2 * 3 * (32 + 32))
    assert qkv["parameters"] == 2 * 3 * (32 + 96)
    assert every["parameters"] == sum(parameter.numel() for parameter in network.parameters())
    assert counted.tuned[3].adapter.settings.targets == ("qkv",)


def test_a_single_room_has_no_other_to_be_forgotten(monkeypatch: pytest.MonkeyPatch, counted: Counted) -> None:
    (row,) = run(monkeypatch, tiny(), Variant(name="a", settings=QUICK, photos=3, chosen_from=3))
    assert row["elsewhere_before"] is None
    assert row["elsewhere"] is None
    assert counted.calibrated == [3]


def test_the_cache_tells_networks_rooms_and_variants_apart_but_not_names(
    monkeypatch: pytest.MonkeyPatch, counted: Counted, tmp_path: Path
) -> None:
    usual = Variant(name="a", settings=QUICK, photos=3, chosen_from=3)
    first = run(monkeypatch, tiny(), usual, cache=tmp_path)
    assert len(counted.calibrated) == 1
    renamed = run(monkeypatch, tiny(), dataclasses.replace(usual, name="b"), cache=tmp_path)
    assert len(counted.calibrated) == 1
    assert renamed == [{**first[0], "variant": "b"}]
    of_other = run(monkeypatch, tiny(seed=1), usual, cache=tmp_path)
    assert len(counted.calibrated) == 2
    assert of_other[0]["point_error_before"] != first[0]["point_error_before"]
    run(monkeypatch, tiny(), dataclasses.replace(usual, photos=4, chosen_from=4), cache=tmp_path)
    run(monkeypatch, tiny(), usual, rooms=ROOMS[1:2], cache=tmp_path)
    assert counted.calibrated == [3, 3, 4, 3]


def test_one_adapter_learns_all_rooms_but_the_last(counted: Counted, tmp_path: Path) -> None:
    network = tiny()
    settings = AblationSettings(
        studies=("reuse",), rooms=ROOMS, seed_offset=OFFSET, cache=tmp_path, show_progress=False
    )
    record = run_ablations(network, settings)
    rows = record["rows"]
    assert isinstance(rows, list)
    assert [row["scene"] for row in rows] == list(ROOMS)
    assert [row["taught"] for row in rows] == [True, True, False]
    # Once, for all of them: two rooms of ten photos. Each is calibrated for that, and all three for themselves.
    assert counted.calibrated == [10] * 5
    ((views, labels),) = counted.lessons
    assert len(views) == 20
    assert len(labels.graph) == 2 * 90
    together = [tuned for tuned in counted.tuned if len(tuned.losses) == 2 * 15]
    assert len(together) == 1
    for row in rows:
        assert row["point_error"] == pytest.approx(adapted_error(network, together[0].adapter, row["scene"]))
        assert row["own_adapter"] != row["point_error"]
        assert row["parameters"] == together[0].adapter.parameter_count
    assert set(record["studies"]) == {"reuse"}  # pyright: ignore[reportArgumentType]
    calls = len(counted.tuned)
    assert run_ablations(network, settings)["rows"] == rows
    assert len(counted.tuned) == calls
