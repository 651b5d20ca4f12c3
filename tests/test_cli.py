import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from lora3d_ns.adapter.lora import load_adapter
from lora3d_ns.cli import main
from lora3d_ns.network.checkpoints import load_network
from lora3d_ns.network.configuration import Dust3rConfig
from lora3d_ns.scene_io.scenes import load_scene

COMMANDS = [
    ["--help"],
    ["demo", "--help"],
    ["pretrain", "--help"],
    ["calibrate", "--help"],
    ["reconstruct", "--help"],
    ["benchmark", "inference", "--help"],
    ["benchmark", "memory", "--help"],
    ["benchmark", "finetune", "--help"],
    ["benchmark", "network", "--help"],
    ["benchmark", "rooms", "--help"],
]


def exit_code(arguments: list[str]) -> int | str | None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    return stopped.value.code


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_every_command_explains_itself(arguments: list[str], capsys: pytest.CaptureFixture) -> None:
    assert exit_code(arguments) == 0
    assert "usage: lora3d" in capsys.readouterr().out


def test_the_installed_command_answers() -> None:
    result = subprocess.run(
        [Path(sys.executable).with_name("lora3d"), "--help"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "demo" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["demo", "--photos", "no_such_folder"], "no_such_folder"),
        (["demo", "--network", "no_such_network"], "no_such_network"),
        (["benchmark", "inference", "--photos", "1"], "2 photos or more"),
        (["benchmark", "memory", "--photos", "1"], "at least two"),
        (["benchmark", "network", "--network", "no_such_network"], "no_such_network"),
        (["benchmark", "network", "--domains", "attic"], "attic"),
        (["benchmark", "rooms", "--arms", "nonsense"], "nonsense"),
        (["benchmark", "rooms", "--domains", "attic"], "attic"),
        (["pretrain", "--steps", "0"], "steps"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_wrong_input_is_one_line_and_exit_code_2(
    arguments: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert exit_code(arguments) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("lora3d: ")
    assert says in message


@pytest.mark.parametrize("arguments", [[], ["nonsense"], ["demo", "--nonsense"], ["benchmark"]], ids=str)
def test_unknown_commands_and_options_are_exit_code_2(arguments: list[str], capsys: pytest.CaptureFixture) -> None:
    assert exit_code(arguments) == 2
    captured = capsys.readouterr()
    assert "Traceback" not in captured.out + captured.err


def test_the_demo_leaves_a_picture_and_a_report(tmp_path: Path) -> None:
    main(["demo", "--output", str(tmp_path / "demo"), "--splat-steps", "20"])
    report = json.loads((tmp_path / "demo" / "report.json").read_text())
    assert report["photos"] >= 5
    assert report["pairs"] == report["photos"] * (report["photos"] - 1)
    assert set(report["seconds"]) >= {"predict", "align", "calibrate", "total"}
    assert set(report["arms"]) == {"pretrained", "robust", "self_calibrated"}
    for measured in report["arms"].values():
        assert set(measured) >= {"point_error", "ate", "afe_percent", "auc30"}
    assert report["arms"]["self_calibrated"]["point_error"] < 0.9 * report["arms"]["pretrained"]["point_error"]
    assert report["gate"]["accepted"] is True
    adapter = load_adapter(tmp_path / "demo" / "adapter", load_network("rooms"))
    assert report["adapter"] == {"parameters": adapter.parameter_count, "bytes": adapter.nbytes}
    assert len(load_scene(tmp_path / "demo" / "scene").names) == report["photos"]
    splat = report["splat"]
    assert splat["iterations"] == 20
    assert splat["held_out_views"] == 1
    assert splat["gaussians"] > 3000
    assert splat["psnr"] > 12.0
    assert {"ssim", "psnr_pose_optimized", "ssim_pose_optimized", "config"} <= set(splat)
    assert report["seconds"]["splat"] > 0
    for picture in report["pictures"]:
        with Image.open(picture) as image:
            assert image.width > 1000
            image.load()


def test_the_inference_benchmark_measures_the_same_computation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The command itself, at a size that fits a test.
    def small(**changes: object) -> Dust3rConfig:
        return Dust3rConfig(
            encoder_width=32,
            encoder_depth=2,
            encoder_heads=2,
            decoder_width=32,
            decoder_depth=12,
            decoder_heads=2,
            **changes,  # pyright: ignore[reportArgumentType]
        )

    monkeypatch.setattr("lora3d_ns.benchmark_inference.Dust3rConfig", small)
    record_file = tmp_path / "record.json"
    main(["benchmark", "inference", "--photos", "3", "--size", "64", "48", "--json", str(record_file)])
    record = json.loads(record_file.read_text())
    assert record.keys() >= {"command", "version", "device", "threads", "seed"}
    assert record.keys() >= {"photos", "size", "ours_s", "peer_s", "ratio", "peak_mib"}
    assert record["pairs"] == 6
    assert record["ratio"] == pytest.approx(record["peer_s"] / record["ours_s"])
    assert record["max_relative_difference"] <= 1e-4
    assert record["ours_tflop"] > 0

    main(
        ["benchmark", "memory", "--photos", "4", "--size", "64", "48", "--real-pairs", "2", "--json", str(record_file)]
    )
    record = json.loads(record_file.read_text())
    assert record["stored_mib"] == pytest.approx(12 * 2 * 64 * 48 * 4 * 2 / 2**20)
    assert record["peak_mib"] > 0
