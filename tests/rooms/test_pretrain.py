"""The training loop: it learns, it can be killed, and it goes on as if it had not been."""

import json
import logging
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lora3d_ns.errors import SettingsError
from lora3d_ns.network.checkpoints import load_network, save_network
from lora3d_ns.network.configuration import Dust3rConfig
from lora3d_ns.rooms.pretrain import PretrainSettings, load_averaged_network, run_pretraining
from lora3d_ns.rooms.pretrain_checkpoints import (
    TrainingLog,
    UnusableTrainingError,
    checkpoint_files,
    read_log,
    write_checkpoint,
)
from lora3d_ns.rooms.pretrain_data import GroupSampling, RoomViewSettings, cache_rooms

PHOTOS = RoomViewSettings(view_count=4, image_size_px=32, supersample=1)
TINY = Dust3rConfig(
    patch_size=8, encoder_width=32, encoder_depth=1, encoder_heads=2, decoder_width=32, decoder_depth=1,
    decoder_heads=2, head="linear", descriptor_width=16, image_size=32,
)  # fmt: skip


@pytest.fixture(scope="module")
def photo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    cache_rooms(PHOTOS, 64, folder)
    return folder


def tiny_settings(folder: Path, photo_folder: Path, **changes) -> PretrainSettings:
    settings = PretrainSettings(
        folder=folder, photo_folder=photo_folder, network=TINY, photos=PHOTOS,
        sampling=GroupSampling(scene_count=64, rooms_per_step=2, views_per_room=2, window_steps=10),
        steps=8, warmup_steps=2, learning_rate=2e-3, threads=2, checkpoint_every=3, log_every=1, validate_every=1000,
        validation_pairs=2, show_progress=False,
    )  # fmt: skip
    return replace(settings, **changes)


def loss_rows(folder: Path) -> list[dict]:
    """Rows of the loss curve, without what depends on the clock."""
    return [
        {name: value for name, value in row.items() if name != "seconds"}
        for row in read_log(folder / "log.jsonl")
        if "loss" in row
    ]


def assert_same_weights(first: torch.nn.Module, second: torch.nn.Module) -> None:
    for (name, a), b in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_an_interrupted_training_ends_where_an_uninterrupted_one_does(tmp_path: Path, photo_folder: Path):
    # The whole of it is stable phase, so that the shorter run's schedule is a beginning of the longer one's.
    whole = run_pretraining(tiny_settings(tmp_path / "whole", photo_folder, decay_share=0.0))
    run_pretraining(tiny_settings(tmp_path / "parts", photo_folder, decay_share=0.0, steps=5))
    parts = run_pretraining(tiny_settings(tmp_path / "parts", photo_folder, decay_share=0.0))
    assert (parts.step, parts.pairs) == (whole.step, whole.pairs) == (8, 8 * 4)
    assert_same_weights(parts.network, whole.network)
    assert loss_rows(tmp_path / "parts") == loss_rows(tmp_path / "whole")
    assert_same_weights(load_averaged_network(tmp_path / "parts"), whole.network)
    assert (tmp_path / "whole" / "curves.png").read_bytes()[:4] == b"\x89PNG"
    assert len(checkpoint_files(tmp_path / "parts")) == 2


_ENDLESS = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from rooms.test_pretrain import run_pretraining, tiny_settings
run_pretraining(tiny_settings(Path(sys.argv[1]), Path(sys.argv[2]), decay_share=0.0, steps=10**6, checkpoint_every=4))
"""


def test_a_killed_training_loses_no_more_than_the_steps_since_its_last_checkpoint(tmp_path: Path, photo_folder: Path):
    folder = tmp_path / "killed"
    tests = str(Path(__file__).resolve().parents[1])
    process = subprocess.Popen([sys.executable, "-c", _ENDLESS, str(folder), str(photo_folder), tests])
    try:
        deadline = time.monotonic() + 300
        while len(loss_rows(folder)) < 10:
            assert process.poll() is None, "the training ended by itself"
            assert time.monotonic() < deadline, "the training does not get anywhere"
            time.sleep(0.05)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    done, kept = loss_rows(folder)[-1]["step"], int(checkpoint_files(folder)[0].stem.split("-")[1])
    # The kill may fall between a row of the log and the checkpoint of the same step.
    assert done - kept <= 4 + 1
    steps = done + 3
    resumed = run_pretraining(tiny_settings(folder, photo_folder, decay_share=0.0, steps=steps))
    whole = run_pretraining(tiny_settings(tmp_path / "whole", photo_folder, decay_share=0.0, steps=steps))
    assert loss_rows(folder) == loss_rows(tmp_path / "whole")
    assert_same_weights(resumed.network, whole.network)


def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, photo_folder: Path, caplog: pytest.LogCaptureFixture):
    settings = tiny_settings(tmp_path, photo_folder, decay_share=0.0)
    whole = run_pretraining(settings)
    newest = checkpoint_files(tmp_path)[0]
    newest.write_bytes(newest.read_bytes()[: newest.stat().st_size // 2])
    with caplog.at_level(logging.WARNING):
        again = run_pretraining(settings)
    assert "is damaged" in caplog.text
    assert_same_weights(again.network, whole.network)
    for path in checkpoint_files(tmp_path):
        path.write_bytes(b"nothing")
    with pytest.raises(UnusableTrainingError, match="none of the checkpoints"):
        run_pretraining(settings)


def test_the_training_of_another_network_is_refused(tmp_path: Path, photo_folder: Path):
    write_checkpoint(tmp_path, 1, {"step": 1, "format": 1, "config": json.dumps({"encoder_width": 64})})
    with pytest.raises(UnusableTrainingError, match="another network"):
        run_pretraining(tiny_settings(tmp_path, photo_folder))


def test_a_training_can_begin_with_given_weights(tmp_path: Path, photo_folder: Path):
    first = run_pretraining(tiny_settings(tmp_path / "first", photo_folder, steps=3))
    save_network(first.network, tmp_path / "given.safetensors")
    settings = tiny_settings(
        tmp_path / "second", photo_folder, start_from=tmp_path / "given.safetensors", steps=1, learning_rate=1e-12
    )
    second = run_pretraining(settings)
    for a, b in zip(first.network.state_dict().values(), second.network.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=0.0, atol=1e-9)
    with pytest.raises(SettingsError, match="another network"):
        run_pretraining(replace(settings, folder=tmp_path / "third", network=replace(TINY, decoder_depth=2)))


def test_the_log_is_cut_back_to_the_checkpoint(tmp_path: Path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"ste')
    TrainingLog(path, resumed_step=2).append({"step": 3, "again": True})
    assert read_log(path) == [{"step": 1}, {"step": 2}, {"step": 3, "again": True}]


def test_only_the_last_checkpoints_are_kept(tmp_path: Path):
    for step in range(4):
        write_checkpoint(tmp_path, step, {"step": step})
    assert [path.name for path in checkpoint_files(tmp_path)] == ["checkpoint-000000003.pt", "checkpoint-000000002.pt"]


def test_learning_rate_warms_up_stays_and_decays(tmp_path: Path):
    settings = PretrainSettings(
        folder=tmp_path, steps=1000, warmup_steps=99, learning_rate=1e-3, decay_share=0.2, threads=1
    )
    rates = [settings.learning_rate_at(step, 0.0) for step in (0, 49, 99, 500, 799, 900, 1000)]
    assert rates == pytest.approx([1e-5, 5e-4, 1e-3, 1e-3, 1e-3, 5e-4, 1e-5])
    # By time where that is further; an extended training goes back to the stable rate.
    assert replace(settings, minutes=10.0).learning_rate_at(500, 540.0) == pytest.approx(5e-4)
    assert replace(settings, steps=2000).learning_rate_at(1000, 0.0) == pytest.approx(1e-3)
    assert replace(settings, matching_half_life_steps=100).matching_weight_at(200) == pytest.approx(0.3 / 4)


def test_the_time_budget_ends_a_training(tmp_path: Path, photo_folder: Path):
    result = run_pretraining(tiny_settings(tmp_path, photo_folder, steps=10**6, minutes=0.01))
    assert 1 <= result.step < 1000
    assert result.seconds >= 0.6


@pytest.mark.parametrize(
    "change",
    [
        {"steps": 0}, {"learning_rate": 0.0}, {"warmup_steps": -1}, {"decay_share": 1.5}, {"ema_decay": 1.0},
        {"betas": (0.9, 1.0)}, {"minutes": 0.0}, {"confidence_alpha": 0.0}, {"matching_half_life_steps": 0},
        {"threads": 3}, {"photos": RoomViewSettings(image_size_px=36)}, {"validation_domains": ()},
        {"network": replace(TINY, descriptor_width=0)},
    ],
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused(tmp_path: Path, change: dict):
    with pytest.raises(SettingsError):
        PretrainSettings(**{"folder": tmp_path, "threads": 1, **change})


def _validation_before_and_after(folder: Path, settings: PretrainSettings) -> tuple[dict, dict]:
    """Metrics of the untrained network (after one step with hardly any learning rate) and of the trained one."""
    before = run_pretraining(replace(settings, folder=folder / "before", steps=1, minutes=None, learning_rate=1e-9))
    after = run_pretraining(replace(settings, folder=folder / "after"))
    save_network(after.network, folder / "network.safetensors", dtype=torch.float16)
    assert load_network(folder / "network.safetensors").config == settings.network
    return before.validation["nominal"], after.validation["nominal"]


def test_a_few_seconds_of_training_lower_the_validation_error(tmp_path: Path, photo_folder: Path):
    settings = tiny_settings(
        tmp_path, photo_folder,
        network=replace(TINY, encoder_width=64, decoder_width=64, encoder_depth=2),
        sampling=GroupSampling(scene_count=64, rooms_per_step=8, views_per_room=3, window_steps=0),
        steps=60, warmup_steps=10, ema_decay=0.9, validation_pairs=16, log_every=20, checkpoint_every=1000,
    )  # fmt: skip
    before, after = _validation_before_and_after(tmp_path, settings)
    assert after["point_error_median"] < 0.6 * before["point_error_median"]
    rows = loss_rows(tmp_path / "after")
    assert rows[-1]["loss"] < 0.7 * rows[0]["loss"]


def test_two_minutes_of_training_from_scratch_lower_the_validation_error(tmp_path: Path):
    settings = PretrainSettings(
        folder=tmp_path, photo_folder=tmp_path / "photos",
        sampling=GroupSampling(scene_count=256, rooms_per_step=4, window_steps=1000),
        steps=10**6, minutes=2.0, threads=2, validation_pairs=50, show_progress=False,
    )  # fmt: skip
    before, after = _validation_before_and_after(tmp_path, settings)
    assert after["point_error_median"] < 0.5 * before["point_error_median"]
    assert after["confidence_rank_correlation"] < 0.0
