"""`lora3d calibrate` and `lora3d reconstruct` on photos of a room on disk, with the bundled network."""

import json
from pathlib import Path

import pytest
from PIL import Image

from lora3d_ns.adapter.gate import Consistency, GateDecision
from lora3d_ns.adapter.lora import load_adapter
from lora3d_ns.cli import main
from lora3d_ns.commands import CACHE_FOLDER
from lora3d_ns.network.checkpoints import load_network
from lora3d_ns.rooms.benchmark_scenes import make_scene
from lora3d_ns.scene_io.scenes import load_scene

QUICK = ["--network", "rooms", "--device", "cpu", "--epochs", "2"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five photos of a room as files."""
    folder = tmp_path_factory.mktemp("room") / "photos"
    folder.mkdir()
    views = make_scene("tele", 1, size=(64, 64), seed_offset=700).calibration.views
    for view in range(5):
        pixels = (views.images[view].permute(1, 2, 0) * 255.0).round().byte().numpy()
        Image.fromarray(pixels).save(folder / f"{view}.png")
    return folder


@pytest.fixture(scope="module")
def calibrated(photos: Path) -> Path:
    """The folder in which `lora3d calibrate` left an adapter and its stages."""
    output = photos.parent / "outputs"
    arguments = [str(photos), "-o", str(output / "adapter"), *QUICK, "--json", str(output / "adapter.json")]
    main(["calibrate", *arguments])
    return output


def test_calibrate_leaves_an_adapter_and_a_report(calibrated: Path) -> None:
    adapter = load_adapter(calibrated / "adapter", load_network("rooms"))
    report = json.loads((calibrated / "adapter.json").read_text())
    assert report["adapter"] == {"parameters": adapter.parameter_count, "bytes": adapter.nbytes}
    assert report["gate"]["accepted"] is True
    assert len(report["labels"]["coverage"]) == 5
    assert set(report["seconds"]) == {"predict", "match", "align", "finetune", "gate"}
    assert adapter.provenance["photos"] == 5


def test_reconstruct_goes_on_from_what_calibrate_left(
    calibrated: Path, photos: Path, capsys: pytest.CaptureFixture
) -> None:
    cache = calibrated / CACHE_FOLDER
    before = {path.name: path.stat().st_mtime_ns for path in cache.glob("*.safetensors")}
    main(
        ["reconstruct", str(photos), "-o", str(calibrated / "scene"), *QUICK, "--json", str(calibrated / "scene.json")]
    )
    after = {path.name: path.stat().st_mtime_ns for path in cache.glob("*.safetensors")}
    assert {name: after[name] for name in before} == before
    # Predictions, matches and alignment with the adapter are new.
    assert len(after) == len(before) + 3
    scene = load_scene(calibrated / "scene")
    assert scene.names == tuple(f"{view}.png" for view in range(5))
    report = json.loads((calibrated / "scene.json").read_text())
    assert report["points"] == len(scene.points)
    assert report["arm"] == "self_calibrated"
    assert report["adapter"]["provenance"]["photos"] == 5
    with Image.open(calibrated / "scene" / "scene.png") as picture:
        assert picture.width > 1000
    said = capsys.readouterr().out
    assert "Gate:     accepted" in said
    assert f"Scene:    {calibrated / 'scene'}" in said


def test_a_given_adapter_makes_the_same_scene(calibrated: Path, photos: Path) -> None:
    output = calibrated / "again"
    main(["reconstruct", str(photos), "-o", str(output), "--adapter", str(calibrated / "adapter"), *QUICK])
    first, again = (load_scene(folder) for folder in (calibrated / "scene", output))
    assert (first.points == again.points).all()
    assert (first.cameras.T_world_camera == again.cameras.T_world_camera).all()


def test_what_would_fail_at_the_end_fails_at_the_beginning(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("lora3d_ns.commands.load_network", lambda *_args, **_kwargs: pytest.fail("long work began"))
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "holiday.jpg").write_bytes(b"precious")
    for command in ("calibrate", "reconstruct"):
        with pytest.raises(SystemExit) as stopped:
            main([command, str(photos), "-o", str(taken), *QUICK])
        assert stopped.value.code == 2
        assert "holiday.jpg" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        main(["reconstruct", str(photos), "-o", str(tmp_path / "new"), "--adapter", str(tmp_path / "none"), *QUICK])
    assert stopped.value.code == 2
    assert (taken / "holiday.jpg").read_bytes() == b"precious"


def test_a_refused_adapter_is_not_written_unless_asked_for(
    calibrated: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    nothing = Consistency(label_error=None, order_error=None, match_error=None, matches=0)
    refusal = GateDecision(accepted=False, reason="it was told to", before=nothing, after=nothing)
    monkeypatch.setattr("lora3d_ns.stages.stages.decide", lambda *_args: refusal)
    output = calibrated / "refused"
    with pytest.raises(SystemExit) as stopped:
        main(["calibrate", str(photos), "-o", str(output), *QUICK])
    assert stopped.value.code == 2
    assert "the gate refused the adapter (it was told to)" in capsys.readouterr().err
    assert not output.exists()
    main(["calibrate", str(photos), "-o", str(output), *QUICK, "--keep-refused"])
    assert "REFUSED" in capsys.readouterr().out
    assert load_adapter(output).parameter_count > 0
