import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lora3d_ns.alignment.align import align
from lora3d_ns.alignment.settings import AlignmentSettings
from lora3d_ns.errors import InvalidDataError
from lora3d_ns.network.configuration import Dust3rConfig
from lora3d_ns.network.dust3r import Dust3r
from lora3d_ns.pair_graph import CompleteGraph, build_pair_graph
from lora3d_ns.rooms import benchmark
from lora3d_ns.rooms.benchmark import run_rooms_benchmark
from lora3d_ns.rooms.benchmark_arms import ArmResult
from lora3d_ns.rooms.benchmark_scenes import BenchmarkScene, make_scene
from lora3d_ns.rooms.cloud_pictures import Cloud, cloud_of, draw_clouds, true_cloud
from lora3d_ns.types import PairPrediction, PairPredictions

SCENE = make_scene("nominal", 0, size=(32, 32))


def exact(scene: BenchmarkScene, *, unit: float = 1.0) -> ArmResult:
    """The truth in another unit, aligned by Eq. 7."""
    graph = build_pair_graph(CompleteGraph(), len(scene.test.views))
    pairs = []
    for edge in graph.edges:
        first, second = (points / unit for points in scene.test.true_points(edge))
        sure = torch.full(first.shape[:2], 5.0)
        pairs.append(
            PairPrediction(points_first=first, points_second=second, confidence_first=sure, confidence_second=sure)
        )
    predictions = PairPredictions(graph=graph, pairs=tuple(pairs))
    aligned = align(scene.test.views, predictions, AlignmentSettings(matches="off", show_progress=False))
    return ArmResult(predictions=predictions, cameras=aligned.cameras, aligned=aligned)


@pytest.fixture(scope="module")
def result() -> ArmResult:
    return exact(SCENE, unit=3.0)


def test_an_exact_scene_lies_on_the_truth(result: ArmResult) -> None:
    cloud, truth = cloud_of(result, SCENE.test), true_cloud(SCENE.test)
    assert cloud.error_m < 2e-3
    assert (cloud.centres_m - truth.centres_m).norm(dim=1).max() < 5e-3
    assert len(truth.points_m) == len(truth.colors) == 10 * 32 * 32
    assert len(cloud.points_m) == len(cloud.colors) > 0.9 * len(truth.points_m)
    # A pixel's true point, by hand: depth times ray, moved into the world.
    camera = SCENE.test.cameras
    ray = torch.linalg.inv(camera.K[2].double()) @ torch.tensor([5.5, 7.5, 1.0], dtype=torch.float64)
    at = camera.T_world_camera[2].double() @ torch.cat([ray * SCENE.test.depths_m[2][7, 5], torch.ones(1)]).double()
    assert truth.points_m[2 * 32 * 32 + 7 * 32 + 5].tolist() == pytest.approx(at[:3].tolist(), abs=1e-4)


def test_what_is_off_is_off(result: ArmResult) -> None:
    assert result.aligned is not None
    depths = list(result.aligned.depths)
    depths[:6] = [depth * 1.3 for depth in depths[:6]]
    bent = dataclasses.replace(result, aligned=dataclasses.replace(result.aligned, depths=tuple(depths)))
    assert cloud_of(bent, SCENE.test).error_m > 0.1
    with pytest.raises(InvalidDataError, match="no scene"):
        cloud_of(dataclasses.replace(result, aligned=None), SCENE.test)


def test_the_picture_has_a_panel_for_every_cloud(result: ArmResult, tmp_path: Path) -> None:
    clouds = {"ours": cloud_of(result, SCENE.test), "truth": true_cloud(SCENE.test)}
    path = draw_clouds({"one": clouds, "two": clouds}, tmp_path / "clouds.png")
    pixels = np.array(Image.open(path).convert("RGB")).astype(int)
    height, width = pixels.shape[:2]
    quarters = [
        pixels[row * height // 2 : (row + 1) * height // 2, column * width // 2 : (column + 1) * width // 2]
        for row in (0, 1)
        for column in (0, 1)
    ]
    for quarter in quarters:
        assert ((quarter.max(axis=2) - quarter.min(axis=2)) > 20).mean() > 0.02, "no coloured points"


def test_the_benchmark_draws_the_first_scene_of_every_domain(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(benchmark, "ARMS", {"robust": lambda _, scene: exact(scene, unit=3.0)})
    drawn: list[dict[str, list[str]]] = []

    def noted(rooms: dict[str, dict[str, Cloud]], path: Path) -> Path:
        drawn.append({room: [*clouds] for room, clouds in rooms.items()})
        return path

    monkeypatch.setattr(benchmark, "draw_clouds", noted)
    network = Dust3r(
        Dust3rConfig(
            encoder_width=32, encoder_depth=1, encoder_heads=1, decoder_width=32, decoder_depth=1, decoder_heads=1,
            head="linear", image_size=32,
        )
    )  # fmt: skip
    run_rooms_benchmark(
        network, network_name="none", image_size=32, arms=["robust"], domains=["nominal", "dark"], scenes=1,
        picture=tmp_path / "clouds.png", show_progress=False,
    )  # fmt: skip
    assert drawn == [{"nominal-0": ["robust", "truth"], "dark-0": ["robust", "truth"]}]
