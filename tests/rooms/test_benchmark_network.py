"""The bundled network: it fits the package, loads by its name, and understands rooms as its card says."""

import json
from pathlib import Path

import pytest

import lora3d_ns
from lora3d_ns.errors import InvalidDataError, SettingsError
from lora3d_ns.network.checkpoints import load_network
from lora3d_ns.rooms.benchmark_network import NetworkBenchmarkSettings, run_network_benchmark, validation_table
from lora3d_ns.rooms.pretrain import ROOMS_CONFIG
from lora3d_ns.rooms.validation import sample_validation_pairs
from lora3d_ns.rooms.validation_pictures import draw_validation_pairs

WEIGHTS = Path(lora3d_ns.__file__).parent / "weights" / "rooms.safetensors"
FIGURES = ("rotation_deg_median", "translation_deg_median", "point_error_median")


def test_the_bundled_weights_are_small_and_have_a_card():
    assert WEIGHTS.stat().st_size <= 20e6
    assert "Validation" in (WEIGHTS.parent / "README.md").read_text()
    assert load_network("rooms").config == ROOMS_CONFIG


def test_the_bundled_network_beats_both_baselines(tmp_path: Path):
    settings = NetworkBenchmarkSettings(
        domains=("nominal", "dark"), pairs=24, json_file=tmp_path / "network.json", show_progress=False
    )
    record = run_network_benchmark(settings)
    assert json.loads((tmp_path / "network.json").read_text()) == record
    assert {"command", "version", "device", "threads", "seed"} <= record.keys()
    validation = record["validation"]
    assert isinstance(validation, dict)
    for metrics in validation.values():
        for baseline in ("constant", "single_view"):
            for name in FIGURES:
                assert metrics[name] < metrics[baseline][name]
        assert metrics["confidence_rank_correlation"] < -0.2
    assert validation["nominal"]["rotation_deg_median"] < 6.0
    assert "| nominal | network |" in validation_table(record)


@pytest.mark.slow
def test_the_bundled_network_keeps_what_was_promised():
    record = run_network_benchmark(
        NetworkBenchmarkSettings(domains=("nominal", "dark", "tele"), pairs=200, show_progress=False)
    )
    validation = record["validation"]
    assert isinstance(validation, dict)
    nominal = validation["nominal"]
    assert nominal["pairs"] == 200
    assert nominal["rotation_true_deg_median"] >= 12.0
    assert nominal["rotation_deg_median"] <= 4.0
    assert nominal["translation_deg_median"] <= 20.0
    assert nominal["point_error_median"] <= 0.12
    assert nominal["confidence_rank_correlation"] < -0.4
    for harder in ("dark", "tele"):
        assert validation[harder]["point_error_median"] > nominal["point_error_median"]


def test_pictures_of_pairs(tmp_path: Path):
    pairs = sample_validation_pairs("nominal", 2, image_size_px=64)
    draw_validation_pairs(load_network("rooms"), pairs, [1], tmp_path / "pairs.png")
    assert (tmp_path / "pairs.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(InvalidDataError, match="are not among the 2"):
        draw_validation_pairs(load_network("rooms"), pairs, [2], tmp_path / "pairs.png")


def test_impossible_benchmarks_are_refused():
    with pytest.raises(SettingsError, match="moon"):
        NetworkBenchmarkSettings(domains=("moon",))
    with pytest.raises(SettingsError, match="nothing to validate"):
        NetworkBenchmarkSettings(domains=())
    with pytest.raises(SettingsError, match="constant baseline"):
        NetworkBenchmarkSettings(seed=7_600_001)
