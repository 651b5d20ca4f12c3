"""An interrupted alignment goes on where it was; files of anything else are ignored."""

import dataclasses
import errno
import os
from pathlib import Path

import pytest
import torch
from aligned_rooms import OFF, camera_differences, noisy, replaced, room, scaled, with_maps

from lora3d_ns.alignment.align import align
from lora3d_ns.alignment.checkpoint import AlignmentCheckpoint
from lora3d_ns.alignment.problem import Standing
from lora3d_ns.alignment.state import AlignmentState
from lora3d_ns.errors import StorageFullError
from lora3d_ns.types import Sim3

SETTINGS = dataclasses.replace(OFF, mask_moving=True)


class _InterruptedError(Exception):
    pass


def _interrupted(monkeypatch: pytest.MonkeyPatch, path: Path, *, at: int, settings=SETTINGS) -> list[int]:
    """An alignment that stops after so many saves, or runs to its end; the stages that were saved."""
    stages: list[int] = []
    save = AlignmentCheckpoint.save

    def counted(self: AlignmentCheckpoint, now: Standing) -> None:
        save(self, now)
        stages.append(now.stage)
        if len(stages) == at:
            raise _InterruptedError

    with monkeypatch.context() as patched:
        patched.setattr(AlignmentCheckpoint, "save", counted)
        try:
            align(room(5).views, noisy(5)[0], settings, checkpoint=path)
        except _InterruptedError:
            assert len(stages) == at
    return stages


def test_an_interrupted_alignment_ends_where_an_uninterrupted_one_does(tmp_path: Path, monkeypatch) -> None:
    views, predictions = room(5).views, noisy(5)[0]
    whole = align(views, predictions, SETTINGS)
    stages = _interrupted(monkeypatch, tmp_path / "all", at=10**6)
    # In the middle of the first stage, and in each stage once.
    moments = {1, len(stages) // 3, *(stages.index(stage) + 1 for stage in set(stages)), len(stages)}
    assert len(set(stages)) >= 3
    for at in sorted(moments):
        path = tmp_path / f"{at}"
        _interrupted(monkeypatch, path, at=at)
        after = align(views, predictions, SETTINGS, checkpoint=path)
        assert after.loss_history[-1] == pytest.approx(whole.loss_history[-1], rel=1e-4)
        assert after.dropped_edges == whole.dropped_edges
        assert after.diagnosis.converged == whole.diagnosis.converged
        rotation_deg, translation = camera_differences(after.cameras.T_world_camera, whole.cameras.T_world_camera)
        assert rotation_deg < 0.05
        assert translation < 2e-3
        assert len(after.loss_history) <= len(whole.loss_history)
    assert not list(tmp_path.glob(".*"))


def test_a_finished_alignment_is_not_done_again(tmp_path: Path) -> None:
    views, predictions = room(5).views, noisy(5)[0]
    path = tmp_path / "state"
    first = align(views, predictions, OFF, checkpoint=path)
    again = align(views, predictions, OFF, checkpoint=path)
    assert len(again.loss_history) < 0.5 * len(first.loss_history)
    assert again.loss_history[-1] == pytest.approx(first.loss_history[-1], rel=1e-4)


@pytest.mark.parametrize("changed", ["settings", "points", "confidence", "mask", "known_K", "damaged", "empty"])
def test_a_file_of_something_else_is_ignored(tmp_path: Path, changed: str) -> None:
    photos, predictions = room(3), noisy(3)[0]
    views, settings, path = photos.views, OFF, tmp_path / "state"
    align(views, predictions, settings, checkpoint=path)
    if changed == "settings":
        settings = dataclasses.replace(OFF, mu=0.05)
    elif changed == "points":
        predictions = with_maps(predictions, lambda index, pair: scaled(pair, 1.01) if index == 2 else pair)
    elif changed == "confidence":
        predictions = with_maps(
            predictions,
            # The same values in another order: no sum tells them apart.
            lambda _, pair: dataclasses.replace(pair, confidence_first=pair.confidence_first.flip(dims=[0])),
        )
    elif changed == "mask":
        mask = torch.ones(48, 64, dtype=torch.bool)
        mask[:20] = False
        views = replaced(views, masks={0: mask})
    elif changed == "known_K":
        views = replaced(views, known_K={1: photos.cameras.K[1]})
    elif changed == "damaged":
        path.write_bytes(path.read_bytes()[:-200])
    else:
        path.write_bytes(b"")
    before = path.read_bytes()
    anew = align(views, predictions, settings, checkpoint=path)
    without = align(views, predictions, settings)
    assert anew.loss_history == without.loss_history
    assert path.read_bytes() != before


def test_whether_a_bar_is_drawn_is_not_part_of_the_problem(tmp_path: Path) -> None:
    views, predictions, path = room(3).views, noisy(3)[0], tmp_path / "state"
    first = align(views, predictions, OFF, checkpoint=path)
    shown = dataclasses.replace(OFF, show_progress=True)
    assert len(align(views, predictions, shown, checkpoint=path).loss_history) < len(first.loss_history)


def _standing() -> Standing:
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.rand(shape, dtype=torch.float64, generator=generator)

    return Standing(
        stage=2,
        state=AlignmentState(
            T_world_camera=random(4, 4, 4),
            focal_px=random(4, 2),
            principal_point_px=random(4, 2),
            world_from_edge=Sim3(scale=random(12), rotation=random(12, 3, 3), translation=random(12, 3)),
        ),
        unit=0.7,
        dropped={(0, 1): "for a reason", (2, 3): "and another, with % and ü"},
        match_objective=0.25,
        static=tuple(random(48, 64) > 0.5 for _ in range(4)),
        settled=True,
    )


def test_a_standing_comes_back_as_it_was(tmp_path: Path) -> None:
    checkpoint = AlignmentCheckpoint(tmp_path / "deep" / "state", room(4).views, noisy(4)[0], OFF, None)
    saved, begin = _standing(), dataclasses.replace(_standing(), stage=0)
    assert checkpoint.resumed(begin) is begin
    checkpoint.save(saved)
    back = checkpoint.resumed(begin)
    for name in ("stage", "unit", "dropped", "match_objective", "settled"):
        assert getattr(back, name) == getattr(saved, name)
    assert torch.equal(back.state.T_world_camera, saved.state.T_world_camera)
    assert torch.equal(back.state.focal_px, saved.state.focal_px)
    assert torch.equal(back.state.principal_point_px, saved.state.principal_point_px)
    for name in ("scale", "rotation", "translation"):
        assert torch.equal(getattr(back.state.world_from_edge, name), getattr(saved.state.world_from_edge, name))
    assert back.static is not None
    assert saved.static is not None
    assert all(torch.equal(a, b) for a, b in zip(back.static, saved.static, strict=True))


def test_a_save_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "state"
    checkpoint = AlignmentCheckpoint(path, room(4).views, noisy(4)[0], OFF, None)
    checkpoint.save(_standing())
    before = path.read_bytes()

    def full_disk(_handle: int) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(StorageFullError, match="full"):
        checkpoint.save(dataclasses.replace(_standing(), stage=3))
    assert path.read_bytes() == before
    assert checkpoint.resumed(dataclasses.replace(_standing(), stage=0)).stage == 2
