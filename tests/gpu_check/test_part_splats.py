"""The part that races stock Splatfacto; the race itself is tested in `tests/plugin/test_benchmark_speed.py`."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lora3d_ns.errors import RasterizerError
from lora3d_ns.gpu_check import part_build, part_splats
from lora3d_ns.gpu_check.part_splats import RATIO_GOAL, comparison, run, speed_row, true_scene
from lora3d_ns.gpu_check.parts import PartSettings
from lora3d_ns.gpu_check.rows import Row
from lora3d_ns.plugin.benchmark_speed import TrainingSpeed
from lora3d_ns.splat.seed import project_to_own_views

SPEED = TrainingSpeed(steps_per_second=100.0, seconds=70.0, steps=7000, gaussians=150_000, loss=0.1)


def changed(**values: Any) -> TrainingSpeed:
    return dataclasses.replace(SPEED, **values)


def compared(ours: TrainingSpeed | None, stock: TrainingSpeed | None) -> list[Row]:
    return list(comparison(ours, stock, 7000))


def test_the_ratio_is_ours_to_theirs_and_has_the_goal() -> None:
    ratio, seconds = compared(changed(steps_per_second=96.0, seconds=73.0), SPEED)
    assert (ratio.value, ratio.met, ratio.failed) == (0.96, True, False)
    assert ratio.note == "150000 Gaussians in both, none added or removed"
    assert (seconds.name, seconds.value, seconds.peer, seconds.note) == ("7,000 steps", 73.0, 70.0, "peer: splatfacto")
    slow, _ = compared(changed(steps_per_second=90.0), SPEED)
    assert slow.met is False
    assert RATIO_GOAL.limit == 0.95


def test_other_numbers_of_gaussians_are_no_comparison() -> None:
    ratio, _ = compared(changed(gaussians=149_999), SPEED)
    assert ratio.failed
    assert "149999 Gaussians against 150000" in ratio.note


def test_what_was_extrapolated_is_said() -> None:
    _, seconds = compared(SPEED, changed(steps=3000))
    assert seconds.note == "peer: splatfacto; extrapolated: splatfacto's"
    assert "stopped after 3000 steps" in speed_row("splatfacto", changed(steps=3000), 7000).note
    assert "stopped" not in speed_row("splatfacto", SPEED, 7000).note


@pytest.mark.parametrize(("ours", "stock"), [(None, SPEED), (SPEED, None), (None, None)])
def test_without_both_the_goal_is_missed(ours: TrainingSpeed | None, stock: TrainingSpeed | None) -> None:
    (row,) = compared(ours, stock)
    assert (row.value, row.met) == (None, False)


def test_the_points_lie_where_the_photos_show_them(tmp_path: Path) -> None:
    scene = true_scene(tmp_path / "scene", tmp_path / "photos", photo_count=3, size=(96, 64), points=1500)
    cloud = scene.scene
    assert 1000 < len(cloud.points) < 2000
    assert [photo.size for photo in scene.photos] == [(96, 64), (64, 96), (96, 64)]
    assert not scene.held_out
    owners = cloud.point_views.long()
    pixels, depths = project_to_own_views(cloud.points, owners, cloud.cameras)
    assert float(depths.min()) > 0
    for view, photo in enumerate(scene.photos):
        own = pixels[owners == view]
        # Every few pixels, at their centres, from the first one on.
        assert float((own - own.floor() - 0.5).abs().max()) < 1e-3
        assert own.amin(dim=0).tolist() == pytest.approx([0.5, 0.5], abs=1e-3)
        assert bool((own < torch.tensor(photo.size)).all())


@pytest.fixture
def race(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Trainings that take no time; `wrong` names the method that fails."""
    state = SimpleNamespace(limits=[], wrong=None, trained=[])

    def measured(config: Any, *, iterations: int, warm_up: int, limit_s: float) -> TrainingSpeed:
        state.trained.append((config.method_name, getattr(config.pipeline.model, "seeding", None)))
        state.limits.append(limit_s)
        assert warm_up < iterations
        if config.method_name == state.wrong:
            raise RuntimeError("CUDA out of memory")
        return changed(steps=iterations)

    monkeypatch.setattr(part_splats, "measured_speed", measured)
    monkeypatch.setattr(part_build, "ensure_gsplat", lambda _folder: SimpleNamespace(seconds=200.0))
    return state


def rows_of(folder: Path, device: str) -> list[Row]:
    return list(run(PartSettings(device=device, tiny=True, folder=folder)))


def test_on_cuda_both_are_trained_ours_first(race: SimpleNamespace, tmp_path: Path) -> None:
    rows = rows_of(tmp_path, "cuda")
    assert [row.name for row in rows] == [
        "compiling gsplat",
        "the start",
        "lora3d-splat, steps per second",
        "splatfacto, steps per second",
        "speed against splatfacto",
        "8 steps",
        "lora3d-splat from its own seeds, steps per second",
    ]
    assert race.trained == [("lora3d-splat", "stock"), ("splatfacto", None), ("lora3d-splat", "weighted")]
    assert max(race.limits) <= 110.0
    assert not any(row.failed for row in rows)
    assert rows[4].value == 1.0


@pytest.mark.parametrize("wrong", ["splatfacto", "lora3d-splat"])
def test_one_that_fails_does_not_take_the_others_along(race: SimpleNamespace, tmp_path: Path, wrong: str) -> None:
    race.wrong = wrong
    rows = rows_of(tmp_path, "cuda")
    failed = [row.name for row in rows if row.failed]
    assert failed == [wrong] + (["from its own seeds"] if wrong == "lora3d-splat" else [])
    (ratio,) = (row for row in rows if row.name == "speed against splatfacto")
    assert ratio.met is False
    assert len(race.trained) == 3


def test_nothing_is_trained_before_gsplat_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_folder: Path) -> None:
        raise RasterizerError("no compiler", way_out="Get one")

    monkeypatch.setattr(part_build, "ensure_gsplat", refused)
    assert [(row.name, row.failed) for row in rows_of(tmp_path, "cuda")] == [("gsplat", True)]


def test_on_the_cpu_ours_is_trained_in_earnest(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, "cpu")
    assert not any(row.failed for row in rows)
    assert [row.note for row in rows if row.name == "splatfacto"] == ["needs CUDA"]
    speeds = [row.value for row in rows if row.name.endswith("steps per second")]
    assert len(speeds) == 2
    assert all(speed is not None and speed > 0 for speed in speeds)
