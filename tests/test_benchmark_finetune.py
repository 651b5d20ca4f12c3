"""The comparison of fine-tuning with a plain loop of peft and the peer: both do the same, and the record is whole."""

import dataclasses
import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

from lora3d_ns.benchmark_finetune import random_labels, run_finetune_benchmark
from lora3d_ns.benchmark_inference import random_views
from lora3d_ns.errors import MissingPackageError, SettingsError
from lora3d_ns.network.configuration import Dust3rConfig

LINEAR = Dust3rConfig(
    encoder_width=64,
    encoder_depth=2,
    encoder_heads=2,
    decoder_width=48,
    decoder_depth=2,
    decoder_heads=2,
    head="linear",
)
DPT = dataclasses.replace(LINEAR, decoder_depth=12, head="dpt")

needs_peer = pytest.mark.skipif(importlib.util.find_spec("mini_dust3r") is None, reason="mini-dust3r is not installed")


@needs_peer
@pytest.mark.parametrize("config", [LINEAR, DPT], ids=["linear", "dpt"])
def test_the_record_has_what_is_promised_and_both_minimise_the_same(config: Dust3rConfig, tmp_path: Path) -> None:
    path = tmp_path / "finetune.json"
    # Whatever it was (the peer's import turns it on, for the first test that needs it), it is so again afterwards.
    allow_tf32 = torch.backends.cuda.matmul.allow_tf32
    record = run_finetune_benchmark(photos=3, size=(64, 48), steps=2, pairs_per_step=4, config=config, json_path=path)
    promised = {"command", "version", "device", "threads", "seed", "photos", "size", "ours_s", "paper_recipe_s"}
    promised |= {"peer_s", "ratio", "peak_mib", "parameters", "adapter_bytes", "pairs_timed", "training_s"}
    assert promised <= record.keys()
    assert json.loads(path.read_text()) == record
    figures = {key: float(value) for key, value in record.items() if isinstance(value, (int, float))}
    assert figures["ratio"] == figures["peer_s"] / figures["ours_s"]
    # Rank 16: 4 widths for each self-attention, 6 for each cross-attention.
    depth = config.decoder_depth
    assert figures["parameters"] == 16 * (2 * 4 * 64 + 2 * depth * 10 * 48)
    assert figures["adapter_bytes"] == 4 * figures["parameters"]
    # Two steps of two unordered pairs, each in both orders; three pairs in ten epochs.
    assert figures["pairs_timed"] == 4
    assert figures["training_s"] == pytest.approx(30 * figures["ours_s"])
    # The same weights, images and labels have the same loss; the worst seen is 1e-7.
    assert figures["loss_difference"] < 1e-5
    assert torch.backends.cuda.matmul.allow_tf32 == allow_tf32


def test_without_the_peer_a_whole_training_of_the_bundled_network() -> None:
    record = run_finetune_benchmark(
        photos=2, size=(64, 64), steps=1, network="bundled", peer=False, complete=True, low_memory=True
    )
    assert "peer_s" not in record
    assert "ratio" not in record
    # One step holds both orders of the only pair.
    assert record["complete_steps"] == 10
    assert record["size"] == [64, 64]


def test_without_the_peer_installed_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mini_dust3r.model", None)
    monkeypatch.setitem(sys.modules, "mini_dust3r", None)
    with pytest.raises(MissingPackageError, match="--no-peer"):
        run_finetune_benchmark(photos=2, size=(32, 32), steps=1, config=LINEAR)


@pytest.mark.parametrize("settings", [{"photos": 1}, {"steps": 0}, {"pairs_per_step": 1}], ids=str)
def test_impossible_settings_are_refused(settings: dict) -> None:
    with pytest.raises(SettingsError):
        run_finetune_benchmark(**settings)


def test_random_labels_are_whole_and_before_every_camera() -> None:
    labels = random_labels(random_views(3, 48, 64, seed=0), seed=0)
    assert len(labels.graph) == 6
    assert all(bool(mask.all()) for mask in (*labels.valid_first, *labels.valid_second))
    assert min(float(depth.min()) for depth in labels.depths) >= 1.0
