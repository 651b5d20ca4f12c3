import json
from pathlib import Path

import pytest
import torch

from lora3d_ns.conventions import pixel_centres
from lora3d_ns.errors import InvalidDataError, SettingsError
from lora3d_ns.geometry.camera import project
from lora3d_ns.images import PhotoSettings, load_views
from lora3d_ns.network.configuration import Dust3rConfig
from lora3d_ns.network.dust3r import Dust3r
from lora3d_ns.pair_graph import CompleteGraph, build_pair_graph
from lora3d_ns.rooms import benchmark, benchmark_arms, benchmark_scenes
from lora3d_ns.rooms.benchmark import (
    METRICS,
    benchmark_markdown,
    mean_point_error,
    measure,
    run_rooms_benchmark,
    summarize,
)
from lora3d_ns.rooms.benchmark_arms import ARMS, ArmResult
from lora3d_ns.rooms.benchmark_scenes import EXTRA_DOMAINS, MAIN_DOMAINS, BenchmarkScene, make_scene, truth_for_views
from lora3d_ns.rooms.generator import demo_room, write_scene
from lora3d_ns.rooms.pretrain_data import RoomViewSettings
from lora3d_ns.rooms.validation import VALIDATION_SEED
from lora3d_ns.types import PairPrediction, PairPredictions

SIZE = (32, 32)


def true_predictions(scene: BenchmarkScene, *, noise_m: float = 0.0) -> PairPredictions:
    """What a perfect network would say, with noise that the confidence knows of."""
    graph = build_pair_graph(CompleteGraph(), len(scene.test.views))
    generator = torch.Generator().manual_seed(0)
    pairs = []
    for edge in graph.edges:
        noisy, confidences = [], []
        for points in scene.test.true_points(edge):
            error = noise_m * torch.randn(points.shape, generator=generator)
            noisy.append(points + error)
            confidences.append(1.0 / (1e-3 + error.norm(dim=-1)))
        pairs.append(
            PairPrediction(
                points_first=noisy[0],
                points_second=noisy[1],
                confidence_first=confidences[0],
                confidence_second=confidences[1],
            )
        )
    return PairPredictions(graph=graph, pairs=tuple(pairs))


NO_NETWORK = Dust3r(
    Dust3rConfig(
        encoder_width=32, encoder_depth=1, encoder_heads=1, decoder_width=32, decoder_depth=1, decoder_heads=1,
        head="linear", image_size=32,
    )
)  # fmt: skip
"""Stands where a network is asked for and none is used."""


def arm_with_noise(noise_m: float) -> benchmark_arms.Arm:
    def arm(_network: object, scene: BenchmarkScene) -> ArmResult:
        return ArmResult(predictions=true_predictions(scene, noise_m=noise_m), cameras=scene.test.cameras)

    return arm


@pytest.mark.parametrize("domain", [*MAIN_DOMAINS, *EXTRA_DOMAINS])
def test_truth_has_no_error_on_any_domain(domain: str) -> None:
    scene = make_scene(domain, 0, size=SIZE)
    result = ArmResult(predictions=true_predictions(scene, noise_m=1e-4), cameras=scene.test.cameras)
    measured = measure(result, scene.test)
    assert set(measured) == set(METRICS)
    # The mean length of three normal deviates of 1e-4 is 1.6e-4.
    assert measured["point_error"] == pytest.approx(1.6e-4, rel=0.05)
    assert measured["ate"] == pytest.approx(0.0, abs=1e-5)
    assert measured["afe_percent"] == 0.0
    # float32 poses: a relative rotation is exact to about 0.01 degrees.
    assert measured["auc30"] == pytest.approx(1.0, abs=2e-3)
    assert measured["confidence_rank_correlation"] == pytest.approx(-1.0, abs=0.01)
    assert measured["ause"] == pytest.approx(0.0, abs=0.01)


def test_scenes_are_fixed_apart_from_each_other_and_move_with_the_offset() -> None:
    scene, again = make_scene("nominal", 1, size=SIZE), make_scene("nominal", 1, size=SIZE)
    assert all(torch.equal(a, b) for a, b in zip(scene.test.views.images, again.test.views.images, strict=True))
    others = [make_scene("nominal", 2, size=SIZE), make_scene("dark", 1, size=SIZE)]
    others.append(make_scene("nominal", 1, size=SIZE, seed_offset=1))
    for other in others:
        difference = (other.test.depths_m[0] - scene.test.depths_m[0]).abs().mean()
        assert difference > 0.05, other.name
    assert len({scene.name, *(other.name for other in others)}) == 4


def test_calibration_and_test_photos_differ_and_are_ten_each() -> None:
    scene = make_scene("tele", 0, size=SIZE)
    assert len(scene.calibration.views) == len(scene.test.views) == 10
    poses = torch.cat([scene.calibration.cameras.T_world_camera, scene.test.cameras.T_world_camera])
    distances = torch.cdist(poses[:, :3, 3], poses[:, :3, 3]) + torch.eye(20)
    assert distances.min() > 1e-3


def test_training_and_validation_use_other_rooms() -> None:
    first, last = benchmark_scenes._FIRST_SEED, benchmark_scenes._FIRST_SEED + 1000 * benchmark_scenes._SEEDS_PER_OFFSET
    for seed in (VALIDATION_SEED, RoomViewSettings().seed):
        assert not first <= seed < last


def test_moving_things_are_left_out_of_the_truth() -> None:
    scene = make_scene("moving", 0, size=SIZE)
    assert not all(static.all() for static in scene.test.static)
    predictions = true_predictions(scene)
    for (i, _), pair in zip(predictions.graph.edges, predictions.pairs, strict=True):
        pair.points_first[~scene.test.static[i]] += 100.0
        # Some error there must be, or there would be nothing for the confidence to rank.
        pair.points_second[0, 0] += 0.01
    measured = measure(ArmResult(predictions=predictions, cameras=scene.test.cameras), scene.test)
    assert measured["point_error"] is not None
    assert measured["point_error"] < 0.01


def test_the_command_writes_rows_and_summary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        benchmark,
        "ARMS",
        {"pretrained": arm_with_noise(0.1), "better": arm_with_noise(0.04), "gt_finetuned": arm_with_noise(0.02)},
    )
    record = run_rooms_benchmark(
        NO_NETWORK,
        network_name="none",
        image_size=32,
        arms=["pretrained", "better", "gt_finetuned"],
        domains=["nominal", "sparse"],
        scenes=2,
        json_path=tmp_path / "rooms.json",
        show_progress=False,
    )
    written = json.loads((tmp_path / "rooms.json").read_text())
    assert written["rows"] == record["rows"]
    assert len(written["rows"]) == 2 * 2 * 3
    assert set(written["rows"][0]) >= {
        "scene",
        "domain",
        "arm",
        "point_error",
        "ate",
        "afe_percent",
        "auc30",
        "accepted",
    }
    entry = written["summary"]["all"]["better"]
    assert entry["scenes"] == 4
    assert (entry["improved"], entry["worse"]) == (4, 0)
    # (0.1 - 0.04) / (0.1 - 0.02)
    assert entry["gap_closure"] == pytest.approx(0.75, abs=0.02)
    assert set(written["summary"]) == {"nominal", "sparse", "all"}
    table = benchmark_markdown(record)
    assert len(table.splitlines()) == 2 + 3 * 3 + 1 + 2
    assert "better - pretrained: -0.0" in table
    change = entry["point_error_change"]
    assert change["low"] <= change["mean"] <= change["high"] < 0
    assert entry["worse_than_2_percent"] == 0
    assert "| all | better | 4 |" in table


def test_a_refused_adapter_is_measured_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def refusing(_network: object, scene: BenchmarkScene) -> ArmResult:
        predictions, refused = (true_predictions(scene, noise_m=noise_m) for noise_m in (0.01, 0.1))
        return ArmResult(predictions=predictions, cameras=scene.test.cameras, accepted=False, refused=refused)

    monkeypatch.setattr(benchmark, "ARMS", {"self_calibrated": refusing})
    record = run_rooms_benchmark(
        NO_NETWORK,
        network_name="none",
        image_size=32,
        arms=["self_calibrated"],
        domains=["nominal"],
        scenes=1,
        show_progress=False,
    )
    rows = record["rows"]
    assert isinstance(rows, list)
    # Mean lengths of three normal numbers of 0.01 and 0.1.
    assert rows[0]["point_error"] == pytest.approx(0.016, abs=0.001)
    assert rows[0]["refused_point_error"] == pytest.approx(0.16, abs=0.01)
    scene = make_scene("nominal", 0, size=SIZE)
    refused = mean_point_error(true_predictions(scene, noise_m=0.1), scene.test)
    assert rows[0]["refused_point_error"] == refused
    accepted = arm_with_noise(0.01)(NO_NETWORK, scene)
    assert benchmark._row(accepted, scene, "self_calibrated")["refused_point_error"] is None


def test_errors_of_labels_stand_in_rows_summary_and_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def learning(_network: object, scene: BenchmarkScene) -> ArmResult:
        predictions = true_predictions(scene, noise_m=0.01)
        return ArmResult(
            predictions=predictions, cameras=scene.test.cameras, prediction_error_m=0.8, label_error_m=0.25
        )

    monkeypatch.setattr(benchmark, "ARMS", {"pretrained": arm_with_noise(0.1), "self_calibrated": learning})
    record = run_rooms_benchmark(
        NO_NETWORK, network_name="none", image_size=32, arms=["pretrained", "self_calibrated"], domains=["nominal"],
        scenes=2, show_progress=False,
    )  # fmt: skip
    rows, summary = record["rows"], record["summary"]
    assert isinstance(rows, list)
    assert isinstance(summary, dict)
    assert [(row["prediction_error"], row["label_error"]) for row in rows] == [(None, None), (0.8, 0.25)] * 2
    assert summary["all"]["self_calibrated"]["label_error"] == {"mean": 0.25, "median": 0.25}
    assert summary["nominal"]["pretrained"]["prediction_error"] == {"mean": None, "median": None}
    said = "self_calibrated: predictions of the calibration photos 0.800 m off, labels made of them 0.250 m, "
    assert benchmark_markdown(record).count(said + "predictions of the test photos afterwards 0.01") == 1


def test_more_photos_to_calibrate_on_leave_the_test_photos_as_they_are() -> None:
    usual, few = (make_scene("nominal", 0, size=SIZE, calibration_photos=count) for count in (10, 3))
    assert len(few.calibration.views) == len(few.calibration.depths_m) == len(few.calibration.cameras) == 3
    places = few.calibration.cameras.T_world_camera[:, :3, 3]
    assert float((torch.cdist(places, places) + torch.eye(3)).min()) > 0.05
    for name in ("depths_m", "static"):
        assert all(map(torch.equal, getattr(few.test, name), getattr(usual.test, name)))
    assert all(map(torch.equal, few.test.views.images, usual.test.views.images))
    assert torch.equal(few.test.cameras.T_world_camera, usual.test.cameras.T_world_camera)
    assert torch.equal(few.test.cameras.K, usual.test.cameras.K)


def test_every_arm_of_the_design_that_exists_is_named() -> None:
    assert set(ARMS) == {"pretrained", "robust", "self_calibrated", "gt_finetuned", "depth_calibrated"}


@pytest.mark.parametrize("wrong", [{"arms": ["nonsense"]}, {"arms": []}, {"domains": ["attic"]}, {"scenes": 0}])
def test_unknown_arms_and_domains_are_refused(wrong: dict) -> None:
    with pytest.raises(SettingsError):
        run_rooms_benchmark(NO_NETWORK, network_name="none", image_size=32, show_progress=False, **wrong)


@pytest.mark.parametrize("wrong", [{"index": -1}, {"index": 0, "seed_offset": -1}])
def test_impossible_scenes_are_refused(wrong: dict) -> None:
    with pytest.raises(SettingsError):
        make_scene("nominal", size=SIZE, **wrong)


def test_summaries_by_hand() -> None:
    rows = [
        {"domain": "nominal", "arm": arm, **dict.fromkeys(METRICS, 0.0), "point_error": error}
        for arm, errors in {"pretrained": [4.0, 2.0, 3.0], "robust": [3.0, 2.0, 4.0]}.items()
        for error in errors
    ]
    summary = summarize(rows)["nominal"]
    assert summary["robust"]["point_error"] == {"mean": 3.0, "median": 3.0}
    assert (summary["robust"]["improved"], summary["robust"]["worse"]) == (1, 1)
    assert summary["robust"]["gap_closure"] is None


def rows_of(errors: dict[str, list[float]], domain: str = "nominal") -> list[dict[str, object]]:
    return [
        {"domain": domain, "arm": arm, **dict.fromkeys(METRICS, 0.0), "point_error": error}
        for arm, of_arm in errors.items()
        for error in of_arm
    ]


def test_changes_against_the_pretrained_arm_by_hand() -> None:
    rows = rows_of({"pretrained": [1.0, 2.0, 4.0], "robust": [0.71, 2.03, 4.2], "same": [0.8, 1.8, 3.8]})
    rows += rows_of({"pretrained": [1.0], "robust": [1.5], "same": [0.8]}, "dark")
    summary = summarize(rows)
    robust = summary["nominal"]["robust"]
    # 2.03 is 1.5 % above 2, 4.2 is 5 % above 4.
    assert (robust["improved"], robust["worse"], robust["worse_than_2_percent"]) == (1, 2, 1)
    change = robust["point_error_change"]
    assert isinstance(change, dict)
    assert change["mean"] == pytest.approx((-0.29 + 0.03 + 0.2) / 3)
    # Of 27 equally likely samples of three, one is three times the least and one three times the most difference.
    assert change["low"] == pytest.approx(-0.29)
    assert change["high"] == pytest.approx(0.2)
    assert summary["all"]["robust"]["worse_than_2_percent"] == 2
    # A single scene has no interval.
    assert summary["dark"]["robust"]["point_error_change"] is None
    assert summary["dark"]["robust"]["worse_than_2_percent"] == 1
    for domain in ("nominal", "dark", "all"):
        assert not {"point_error_change", "worse_than_2_percent"} & set(summary[domain]["pretrained"])

    lines = benchmark_markdown({"summary": summary}).splitlines()
    assert len(lines) == 2 + 3 * 3 + 1 + 2
    assert lines[-3] == ""
    assert lines[-2].startswith("robust - pretrained: +0.110 m point error, 95 % of bootstrap samples between -0.")
    assert lines[-2].endswith("; 2 of 4 scenes more than 2 % worse")
    assert lines[-1] == (
        "same - pretrained: -0.200 m point error, 95 % of bootstrap samples between -0.200 and -0.200; "
        "0 of 4 scenes more than 2 % worse"
    )


def test_without_the_pretrained_arm_or_with_one_scene_there_is_no_line_of_changes() -> None:
    without = summarize(rows_of({"robust": [1.0, 2.0], "same": [1.0, 2.0]}))
    assert not {"point_error_change", "worse_than_2_percent"} & set(without["all"]["robust"])
    one = summarize(rows_of({"pretrained": [1.0], "robust": [2.0]}))
    for summary in (without, one):
        assert "bootstrap" not in benchmark_markdown({"summary": summary})


def test_truth_of_photos_loaded_from_disk_is_that_of_their_network_pixels(tmp_path: Path) -> None:
    room = demo_room(photo_count=2, size=(160, 120))
    write_scene(tmp_path, room)
    views = load_views(tmp_path, PhotoSettings(size=64, patch_size=8))
    truth = truth_for_views(views, room)
    assert views.shapes == ((48, 64), (64, 48)), "the second demo photo is portrait"
    for view in range(2):
        own, _ = truth.true_points((view, 1 - view))
        K_network = views.source_from_network[view].K_network_from_source(room.K[view])
        pixels = project(own, K_network)
        torch.testing.assert_close(pixels, pixel_centres(*views.shapes[view]), rtol=0, atol=1e-3)
        # Nearest source pixel: half a pixel of a wall's depth, and edges of objects.
        source = views.source_from_network[view].source_from_network(pixel_centres(*views.shapes[view])).long()
        assert torch.equal(own[..., 2], room.depths_m[view][source[..., 1], source[..., 0]])
    with pytest.raises(InvalidDataError, match="not the photos of this room"):
        truth_for_views(views.select([1, 0]), room)
