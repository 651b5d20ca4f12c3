from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from lora3d_ns.alignment.align import align
from lora3d_ns.alignment.settings import AlignmentSettings
from lora3d_ns.errors import SettingsError
from lora3d_ns.network.checkpoints import load_network
from lora3d_ns.pair_graph import CompleteGraph, build_pair_graph
from lora3d_ns.rooms import benchmark_calibration
from lora3d_ns.rooms.benchmark_calibration import (
    METRICS,
    CalibrationBenchmarkSettings,
    calibration_markdown,
    measure_alignment,
    run_calibration_benchmark,
    variant_settings,
    variant_views,
)
from lora3d_ns.rooms.calibration_pictures import sparsification_curve
from lora3d_ns.rooms.simulated import NoiseSettings, exact_predictions, noisy_predictions, photograph_rooms

QUIET = AlignmentSettings(matches="off", show_progress=False)


@pytest.fixture(name="photos", scope="module")
def _photos():
    return photograph_rooms(4, shapes=[(32, 48)], seed=3)


def test_labels_of_exact_predictions_are_the_truth(photos) -> None:
    predictions = exact_predictions(photos, build_pair_graph(CompleteGraph(), 4))
    aligned = align(photos.views, predictions, QUIET)
    measured = measure_alignment(aligned, predictions, photos, cutoff=0.5)
    assert set(measured) == set(METRICS)
    for metric in ("label_error", "common_label_error", "prediction_error", "common_prediction_error"):
        assert measured[metric] == pytest.approx(0.0, abs=1e-4)
    assert measured["ate"] == pytest.approx(0.0, abs=1e-3)
    assert measured["label_share"] == 1.0
    # The sampled truth is a subset of the pixels, so distances to it are those between neighbouring samples.
    assert measured["accuracy"] is not None
    assert measured["accuracy"] < 0.05


def test_weights_order_errors_better_than_confidence_and_labels_beat_predictions(photos) -> None:
    graph = build_pair_graph(CompleteGraph(), 4)
    predictions, _ = noisy_predictions(photos, graph, NoiseSettings(wrong_edges=1), seed=1)
    aligned = align(photos.views, predictions, QUIET)
    measured = {
        name: float(value or 0.0) for name, value in measure_alignment(aligned, predictions, photos, cutoff=0.5).items()
    }
    assert measured["ause_weight"] < 0.5 * measured["ause_confidence"]
    assert measured["correlation_weight"] < measured["correlation_confidence"] - 0.2
    assert measured["common_label_error"] < measured["common_prediction_error"]


def test_variants_are_told_what_they_are_named_after(photos) -> None:
    assert variant_settings("plain", AlignmentSettings()).objective == "plain"
    assert variant_settings("point_maps", AlignmentSettings()).matches == "off"
    assert variant_settings("matches", AlignmentSettings()).matches == "auto"
    assert variant_views("matches", photos).known_K == (None,) * 4
    known = variant_views("true_cameras", photos)
    for view in range(4):
        pose, K = known.known_T_world_camera[view], known.known_K[view]
        assert pose is not None
        assert K is not None
        assert torch.equal(pose, photos.cameras.T_world_camera[view])
        assert torch.equal(K, photos.cameras.K[view])
    assert variant_views("true_intrinsics", photos).known_T_world_camera == (None,) * 4


def test_a_small_run_has_rows_summary_table_and_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = photograph_rooms(3, shapes=[(32, 32)], seed=5)
    predictions, _ = noisy_predictions(
        photos, build_pair_graph(CompleteGraph(), 3), NoiseSettings(wrong_edges=0), seed=2
    )

    class Scene:
        name = "nominal-0"
        test = photos

    monkeypatch.setattr(benchmark_calibration, "PHOTOS", 3)
    monkeypatch.setattr(benchmark_calibration, "make_scene", lambda *_args, **_options: Scene())
    monkeypatch.setattr(benchmark_calibration, "predict_pairs", lambda *_args, **_options: predictions)
    settings = CalibrationBenchmarkSettings(
        variants=("plain", "matches", "true_cameras"),
        domains=("nominal",),
        scenes=1,
        json_file=tmp_path / "record.json",
        picture=tmp_path / "picture.png",
    )
    record = run_calibration_benchmark(
        load_network("rooms"),
        settings,
        image_size=32,
        show_progress=False,
    )
    rows = record["rows"]
    assert isinstance(rows, list)
    assert [row["variant"] for row in rows] == ["plain", "matches", "true_cameras"]
    assert rows[2]["ate"] == pytest.approx(0.0, abs=1e-5)
    assert rows[2]["afe_percent"] == pytest.approx(0.0, abs=1e-4)
    table = calibration_markdown(record)
    assert table.count("\n") == 1 + 2 * 3
    assert (tmp_path / "record.json").exists()
    with Image.open(tmp_path / "picture.png") as picture:
        assert picture.width > 500


def test_the_sparsification_curve_by_hand() -> None:
    error = torch.tensor([4.0, 1.0, 3.0, 2.0])
    curve = sparsification_curve(-error, error, torch.tensor([1.0, 0.5, 0.25]))
    torch.testing.assert_close(curve, torch.tensor([1.0, 1.5 / 2.5, 1.0 / 2.5], dtype=torch.float64))


def test_settings_are_checked() -> None:
    good = CalibrationBenchmarkSettings()
    with pytest.raises(SettingsError):
        replace(good, variants=())
    with pytest.raises(SettingsError):
        replace(good, scenes=0)
