"""The whole method on a few photos of a room with the bundled network: stages, cache, arms, gate."""

import dataclasses
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import lora3d_ns.stages.stages as stages_module
from lora3d_ns.adapter.finetune import FineTuned, FineTuneSettings, finetune
from lora3d_ns.adapter.gate import Consistency, GateDecision, GateSettings
from lora3d_ns.adapter.lora import with_adapter
from lora3d_ns.errors import AdapterBaseError, SettingsError, StorageFullError, TooFewLabelsError
from lora3d_ns.evaluation.metrics import point_error
from lora3d_ns.network.checkpoints import load_network
from lora3d_ns.network.dust3r import Dust3r
from lora3d_ns.pair_graph import CompleteGraph, build_pair_graph
from lora3d_ns.predict import PredictionSettings, predict_pairs
from lora3d_ns.reconstruct import (
    Measured,
    Reconstruction,
    ReconstructSettings,
    reconstruct,
    scene_of,
    self_calibrate,
)
from lora3d_ns.rooms.benchmark_scenes import BenchmarkScene, make_scene
from lora3d_ns.scene_details import scene_details
from lora3d_ns.scene_io.stage_cache import StageCache
from lora3d_ns.scene_io.structures import write_result
from lora3d_ns.types import PseudoLabels, Views

PHOTOS = 5


def quick(**changes: object) -> ReconstructSettings:
    """Two epochs instead of ten."""
    settings = ReconstructSettings(**changes)  # pyright: ignore[reportArgumentType]
    return dataclasses.replace(settings, finetune=dataclasses.replace(settings.finetune, epochs=2)).silent()


@pytest.fixture(scope="module")
def network() -> Dust3r:
    return load_network("rooms")


@pytest.fixture(scope="module")
def scene() -> BenchmarkScene:
    return make_scene("tele", 1, size=(64, 64), seed_offset=700)


@pytest.fixture(scope="module")
def views(scene: BenchmarkScene) -> Views:
    return scene.calibration.views.select(range(PHOTOS))


@pytest.fixture(scope="module")
def measured(scene: BenchmarkScene) -> Measured:
    photos = scene.calibration
    cameras = dataclasses.replace(
        photos.cameras,
        T_world_camera=photos.cameras.T_world_camera[:PHOTOS],
        K=photos.cameras.K[:PHOTOS],
        sizes=photos.cameras.sizes[:PHOTOS],
    )
    return Measured(depths=photos.depths_m[:PHOTOS], cameras=cameras)


@pytest.fixture(scope="module")
def cached(views: Views, network: Dust3r, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Reconstruction]:
    """A reconstruction, and the folder with all its stages."""
    folder = tmp_path_factory.mktemp("cache")
    return folder, reconstruct(views, network, quick(), base_name="rooms", cache=StageCache(folder))


def mean_error(network: Dust3r, scene: BenchmarkScene) -> float:
    """Mean point error of all pairs of the test photos, in metres."""
    graph = build_pair_graph(CompleteGraph(), len(scene.test.views))
    predictions = predict_pairs(scene.test.views, graph, network, PredictionSettings(show_progress=False))
    errors = [
        point_error(
            (pair.points_first, pair.points_second),
            scene.test.true_points(edge),
            [scene.test.static[view] for view in edge],
        )
        for edge, pair in predictions
    ]
    return sum(errors) / len(errors)


def same_scene(first: Reconstruction, second: Reconstruction) -> bool:
    names = ("points", "colors", "point_weights", "point_views")
    return all(torch.equal(getattr(first.scene, name), getattr(second.scene, name)) for name in names) and torch.equal(
        first.scene.cameras.T_world_camera, second.scene.cameras.T_world_camera
    )


def test_self_calibration_makes_photos_it_never_saw_better(
    cached: tuple[Path, Reconstruction], network: Dust3r, scene: BenchmarkScene
) -> None:
    made = cached[1]
    assert made.calibration is not None
    assert made.calibration.gate is not None
    assert made.calibration.gate.accepted, made.calibration.gate.reason
    assert made.adapter is not None
    assert mean_error(with_adapter(network, made.adapter), scene) < 0.9 * mean_error(network, scene)


def test_the_scene_says_how_it_was_made(cached: tuple[Path, Reconstruction], views: Views) -> None:
    scene = cached[1].scene
    assert scene.names == views.names
    assert len(scene.points) > 1000
    assert scene.provenance["arm"] == "self_calibrated"
    gate = scene.provenance["gate"]
    assert isinstance(gate, dict)
    assert gate["accepted"] is True
    assert set(scene.provenance["seconds"]) == {"predict", "match", "align", "stereo", "finetune", "gate"}  # type: ignore[arg-type]


def test_points_of_the_scene_project_into_their_own_pixels(cached: tuple[Path, Reconstruction], views: Views) -> None:
    made = cached[1]
    scene = made.scene
    for view in range(PHOTOS):
        chosen = scene.point_views == view
        T_camera_world = torch.linalg.inv(scene.cameras.T_world_camera[view].double())
        in_camera = scene.points[chosen].double() @ T_camera_world[:3, :3].T + T_camera_world[:3, 3]
        homogeneous = in_camera @ scene.cameras.K[view].double().T
        pixels = homogeneous[:, :2] / homogeneous[:, 2:]
        x, y = pixels.floor().long().unbind(dim=1)
        torch.testing.assert_close(pixels, torch.stack([x, y], dim=1).double() + 0.5, atol=1e-2, rtol=0.0)
        expected = (views.images[view][:, y, x].T * 255.0).round().to(torch.uint8)
        assert torch.equal(scene.colors[chosen], expected)
        assert torch.equal(scene.point_weights[chosen], made.understood.aligned.view_weights[view][y, x])


def test_details_tell_of_the_scene_before_it_was_learnt_from(cached: tuple[Path, Reconstruction], views: Views) -> None:
    made = cached[1]
    details = scene_details(views, made)
    calibration, learning = made.calibration, details.learning
    assert calibration is not None
    assert learning is not None
    before = calibration.before.aligned
    assert learning.before.cameras is before.cameras
    assert learning.before.diagnosis is before.diagnosis
    for view in range(PHOTOS):
        assert torch.equal(details.depths[view], made.understood.aligned.depths[view])
        assert torch.equal(learning.before.depths[view], before.depths[view])
        assert not torch.equal(learning.before.depths[view], details.depths[view])
        assert torch.equal(learning.before.weights[view], before.view_weights[view].half())
        assert torch.equal(learning.before.moving[view], before.moving[view])
    assert learning.gate == made.scene.provenance["gate"]
    tuned = calibration.finetuned
    assert learning.losses == tuned.losses
    assert learning.held_out == tuned.held_out
    assert learning.held_out_errors == tuned.held_out_errors
    assert learning.best_epoch == tuned.best_epoch
    assert learning.label_cutoff == calibration.labels.cutoff
    assert torch.equal(learning.label_coverage, calibration.labels.coverage)
    assert details.losses == made.understood.aligned.loss_history


def test_masked_pixels_are_no_points(cached: tuple[Path, Reconstruction], views: Views) -> None:
    mask = torch.zeros(64, 64, dtype=torch.bool)
    masked = dataclasses.replace(views, masks=(mask, *views.masks[1:]))
    scene = scene_of(masked, cached[1].understood.aligned, cutoff=0.1, provenance={})
    assert not bool((scene.point_views == 0).any())
    assert bool((scene.point_views == 1).any())


def test_a_second_run_computes_nothing_and_says_the_same(
    cached: tuple[Path, Reconstruction], views: Views, network: Dust3r, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, first = cached
    for name in ("match_views", "align", "with_stereo_depths", "finetune"):
        monkeypatch.setattr(stages_module, name, lambda *_args, **_kwargs: pytest.fail("computed again"))
    cache = StageCache(folder)
    again = reconstruct(views, network, quick(), base_name="rooms", cache=cache)
    assert cache.reused == ["predict", "match", "align", "stereo", "finetune", "predict", "match", "align", "stereo"]
    assert same_scene(first, again)


def test_without_a_cache_it_is_the_same_scene(
    cached: tuple[Path, Reconstruction], views: Views, network: Dust3r
) -> None:
    assert same_scene(cached[1], reconstruct(views, network, quick(), base_name="rooms"))


def test_a_damaged_stage_is_computed_again_with_a_warning(
    cached: tuple[Path, Reconstruction], views: Views, network: Dust3r, caplog: pytest.LogCaptureFixture
) -> None:
    folder, first = cached
    damaged = sorted(folder.glob("finetune-*.safetensors"))[0]
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 0x10
    damaged.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        again = reconstruct(views, network, quick(), base_name="rooms", cache=StageCache(folder))
    assert damaged.name in caplog.text
    assert same_scene(first, again)


def test_other_settings_are_other_stages(cached: tuple[Path, Reconstruction], views: Views, network: Dust3r) -> None:
    cache = StageCache(cached[0])
    settings = quick()
    other = dataclasses.replace(settings, finetune=dataclasses.replace(settings.finetune, seed=1, epochs=1))
    self_calibrate(views, network, other, base_name="rooms", cache=cache)
    assert cache.reused == ["predict", "match", "align", "stereo"]


def test_a_full_disk_is_said_and_nothing_half_written_is_believed(
    views: Views, network: Dust3r, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_handle: int) -> None:
        raise OSError(28, "No space left on device")

    settings = quick(arm="robust")
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(StorageFullError, match="predict"):
            reconstruct(views, network, settings, base_name="rooms", cache=StageCache(tmp_path))
    assert not list(tmp_path.glob("*.safetensors"))
    cache = StageCache(tmp_path)
    reconstruct(views, network, settings, base_name="rooms", cache=cache)
    assert cache.reused == []


PROGRAM = """
import sys
from pathlib import Path
import torch
sys.path[:0] = [sys.argv[2]]
from test_reconstruct import PHOTOS, quick
from lora3d_ns.network.checkpoints import load_network
from lora3d_ns.reconstruct import reconstruct
from lora3d_ns.rooms.benchmark_scenes import make_scene
from lora3d_ns.scene_io.stage_cache import StageCache
torch.set_num_threads(1)
views = make_scene("tele", 1, size=(64, 64), seed_offset=700).calibration.views.select(range(PHOTOS))
made = reconstruct(views, load_network("rooms"), quick(), base_name="rooms", cache=StageCache(Path(sys.argv[1])))
torch.save(made.scene.points, sys.argv[3])
"""


def test_runs_that_are_killed_go_on_and_two_at_once_agree(tmp_path: Path) -> None:
    """Two runs on one folder; one is killed while it learns; a third run finishes what is left."""
    folder, here = tmp_path / "cache", str(Path(__file__).parent)

    def start(name: str) -> subprocess.Popen:
        return subprocess.Popen([sys.executable, "-c", PROGRAM, str(folder), here, str(tmp_path / name)])

    victim, other = start("victim.pt"), start("other.pt")
    limit = time.monotonic() + 240
    while not list(folder.glob("align-*.safetensors")) and time.monotonic() < limit:
        time.sleep(0.05)
    victim.send_signal(signal.SIGKILL)
    assert victim.wait() == -signal.SIGKILL
    assert other.wait(timeout=240) == 0
    last = start("last.pt")
    assert last.wait(timeout=240) == 0
    assert torch.equal(torch.load(tmp_path / "other.pt"), torch.load(tmp_path / "last.pt"))
    assert not list(folder.glob("*.partial"))


def test_a_refused_adapter_leaves_the_robust_alignment(
    cached: tuple[Path, Reconstruction], views: Views, network: Dust3r, tmp_path: Path
) -> None:
    strict = dataclasses.replace(quick(), gate=GateSettings(most_label_error=1e-9))
    made = reconstruct(views, network, strict, base_name="rooms", cache=StageCache(cached[0]))
    assert made.adapter is None
    assert made.calibration is not None
    assert made.calibration.refused is not None
    robust = reconstruct(views, network, quick(arm="robust"), base_name="rooms", cache=StageCache(cached[0]))
    assert same_scene(made, robust)
    gate = made.scene.provenance["gate"]
    assert isinstance(gate, dict)
    assert gate["accepted"] is False
    # Before is after: on disk it takes next to nothing.
    details, of_robust = scene_details(views, made), scene_details(views, robust)
    assert of_robust.learning is None
    assert details.learning is not None
    assert details.learning.gate == gate
    for name, value in (("with", details), ("without", of_robust)):
        write_result(tmp_path / name, value)
    sizes = [(tmp_path / name).stat().st_size for name in ("with", "without")]
    assert sizes[0] - sizes[1] < 0.1 * sizes[1]


def test_a_given_adapter_is_used_and_nothing_learnt(
    cached: tuple[Path, Reconstruction], views: Views, network: Dust3r
) -> None:
    folder, first = cached
    made = reconstruct(
        views, network, quick(arm="robust"), base_name="rooms", adapter=first.adapter, cache=StageCache(folder)
    )
    assert made.calibration is None
    assert same_scene(made, first)
    assert first.adapter is not None
    wrong = dataclasses.replace(first.adapter, base_fingerprint="0" * 64)
    with pytest.raises(AdapterBaseError):
        reconstruct(views, network, quick(arm="robust"), base_name="rooms", adapter=wrong)


def test_learning_from_measurements_needs_and_uses_them(
    cached: tuple[Path, Reconstruction], views: Views, network: Dust3r, measured: Measured
) -> None:
    cache = StageCache(cached[0])
    for arm in ("gt_finetuned", "depth_calibrated"):
        with pytest.raises(SettingsError, match="measured"):
            self_calibrate(views, network, quick(arm=arm), base_name="rooms", cache=cache)
    truth = self_calibrate(views, network, quick(arm="gt_finetuned"), base_name="rooms", measured=measured, cache=cache)
    assert truth.gate is None
    assert truth.adapter is not None
    torch.testing.assert_close(truth.labels.T_world_camera, measured.cameras.T_world_camera)  # type: ignore[union-attr]
    # A sensor in millimetres teaches the same as one in metres: its unit is found from the alignment.
    in_mm = Measured(depths=tuple(1000.0 * depth for depth in measured.depths))
    settings = quick(arm="depth_calibrated")
    of_mm, of_m = (
        self_calibrate(views, network, settings, base_name="rooms", measured=given, cache=cache).labels
        for given in (in_mm, Measured(depths=measured.depths))
    )
    for first, second in zip(of_mm.depths, of_m.depths, strict=True):
        torch.testing.assert_close(first, second)
    torch.testing.assert_close(of_m.T_world_camera, cached[1].calibration.before.aligned.cameras.T_world_camera.float())  # type: ignore[union-attr]


def test_rounds_go_on_from_the_adapter_before(
    views: Views, network: Dust3r, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    used: list[object] = []
    learnt: list[tuple[FineTuneSettings, object]] = []
    nothing = Consistency(label_error=None, order_error=None, match_error=None, matches=0)

    def decided(_self: object, _tuned: object, used_before: object, *_rest: object) -> GateDecision:
        used.append(used_before)
        return GateDecision(accepted=len(used) == 1, reason="", before=nothing, after=nothing)

    def learning(
        views: Views, labels: PseudoLabels, network: Dust3r, settings: FineTuneSettings, **others: Any
    ) -> FineTuned:
        tuned = finetune(views, labels, network, settings, **others)
        learnt.append((settings, others["begun_from"]))
        return tuned

    monkeypatch.setattr(stages_module.Stages, "decided", decided)
    monkeypatch.setattr(stages_module, "finetune", learning)
    settings = dataclasses.replace(quick(rounds=3), alignment=dataclasses.replace(quick().alignment, matches="off"))
    settings = dataclasses.replace(settings, finetune=dataclasses.replace(settings.finetune, epochs=1))
    calibration = self_calibrate(views, network, settings, base_name="rooms", cache=StageCache(tmp_path))
    # The second round was refused: no third one, and the first round's adapter stays.
    assert len(used) == 2
    assert used[0] is None
    assert calibration.adapter is used[1]
    assert calibration.refused is not None
    assert calibration.gate is not None
    assert calibration.gate.reason == "round 2 is left out, the adapter of the round before stays: "
    # The second goes on from the first, with its pairs held out, and by the settings for that.
    (first, begun_first), (second, begun_second) = learnt
    assert (first, begun_first) == (settings.finetune, None)
    assert second == settings.finetune.further()
    assert isinstance(begun_second, FineTuned)
    assert begun_second.adapter is used[1]
    assert calibration.finetuned.held_out == begun_second.held_out
    assert len(calibration.finetuned.held_out) > 0


def test_too_few_labels_stop_before_learning(views: Views, network: Dust3r) -> None:
    settings = quick()
    strict = dataclasses.replace(
        settings,
        alignment=dataclasses.replace(settings.alignment, matches="off"),
        labels=dataclasses.replace(settings.labels, weight_cutoff=1e6, aimed_coverage=0.0),
    )
    with pytest.raises(TooFewLabelsError, match="robust"):
        self_calibrate(views, network, strict, base_name="rooms")


def test_arms_that_learn_nothing_make_no_adapter(views: Views, network: Dust3r) -> None:
    with pytest.raises(SettingsError, match="learns nothing"):
        self_calibrate(views, network, quick(arm="robust"), base_name="rooms")
    with pytest.raises(SettingsError):
        ReconstructSettings(rounds=0)
