"""The benchmark of the CPU rasterizer: both programs draw the same, and the record says what is promised."""

import json
from pathlib import Path
from typing import Any

import pytest
import reference.rasterize
import torch

from lora3d_ns import benchmark_rasterizer
from lora3d_ns.benchmark_rasterizer import make_cloud, run_rasterizer_benchmark
from lora3d_ns.errors import SettingsError


def test_the_plain_program_draws_what_the_tests_twin_draws() -> None:
    cloud = make_cloud(200, (40, 30), seed=1)
    # Wider than a tile, so that the tiles that a Gaussian misses matter; some behind the camera.
    cloud.gaussians["scales"] *= 8
    cloud.gaussians["means"][:20, 2] *= -1
    inputs = {**cloud.gaussians, "viewmats": cloud.viewmats, "Ks": cloud.Ks}
    inputs = {name: tensor.double() for name, tensor in inputs.items()}
    plain: Any = benchmark_rasterizer.plain_rasterization
    default = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        image, alpha, _ = plain(**inputs, width=40, height=30)
    finally:
        torch.set_default_dtype(default)
    twin: Any = reference.rasterize.rasterization
    expected, expected_alpha, _ = twin(**inputs, width=40, height=30, sh_degree=3, render_mode="RGB+ED")
    assert float(expected_alpha.mean()) > 0.3
    torch.testing.assert_close(alpha, expected_alpha, rtol=0, atol=1e-10)
    # Its harmonics have eight digits.
    torch.testing.assert_close(image, expected, rtol=1e-6, atol=1e-7)


def test_the_scene_fills_the_picture_with_small_gaussians() -> None:
    record = run_rasterizer_benchmark(gaussians=20_000, repeats=1, plain=False, compilation=False)
    figures: dict[str, Any] = record
    assert figures["visible"] > 0.9 * 20_000
    assert 3 <= figures["median_radius_px"] <= 6
    # Each Gaussian in one to two tiles.
    assert 1 < figures["tile_entries"] / figures["visible"] < 3


def test_the_record_has_what_is_promised(tmp_path: Path) -> None:
    record: dict[str, Any] = run_rasterizer_benchmark(
        gaussians=500, size=(64, 48), repeats=3, json_path=tmp_path / "rasterizer.json"
    )
    promised = {"command", "version", "device", "threads", "seed", "gaussians", "size", "median_ms", "naive_median_ms"}
    assert promised | {"forward_ms", "backward_ms", "first_call_s", "compile_s", "ratio"} <= record.keys()
    assert json.loads((tmp_path / "rasterizer.json").read_text()) == record
    assert record["ratio"] == record["naive_median_ms"] / record["median_ms"]
    assert record["compile_s"] > 1.0
    differences = {key: value for key, value in record.items() if key.startswith("difference_")}
    assert len(differences) == 7
    # Where alpha is 1 / 255 up to rounding, up to 4e-3 of a weight.
    assert all(value < 4e-3 for value in differences.values())


@pytest.mark.parametrize("settings", [{"gaussians": 0}, {"size": (0, 5)}, {"repeats": 0}], ids=str)
def test_impossible_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(SettingsError):
        run_rasterizer_benchmark(**settings)
