"""`lora3d calibrate` and `lora3d reconstruct` on photos of a room on disk, with the bundled network."""

import json
from pathlib import Path

import pytest
from PIL import Image

from lora3d_ns.adapter.gate import Consistency, GateDecision
from lora3d_ns.adapter.lora import load_adapter
from lora3d_ns.cli import main
from lora3d_ns.commands import CACHE_FOLDER, Source, open_source, photo_settings
from lora3d_ns.errors import CheckpointNotFoundError, NotAPhotoError, SettingsError, TooFewPhotosError
from lora3d_ns.network.checkpoints import load_network
from lora3d_ns.rooms.benchmark_scenes import make_scene
from lora3d_ns.scene_io.scenes import load_details, load_scene

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
    assert set(report["seconds"]) == {"predict", "match", "align", "stereo", "finetune", "gate"}
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
    # Predictions, matches, alignment and corrected depths with the adapter are new.
    assert len(after) == len(before) + 4
    scene = load_scene(calibrated / "scene")
    assert scene.names == tuple(f"{view}.png" for view in range(5))
    details = load_details(calibrated / "scene")
    assert details is not None
    assert details.names == scene.names
    assert details.learning is not None
    assert details.learning.gate == scene.provenance["gate"]
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
    details = load_details(output)
    assert details is not None
    assert details.learning is None
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


def test_a_source_is_opened_at_the_networks_resolution(photos: Path) -> None:
    views, network = open_source(Source(photos=photos, network="rooms", device="cpu", every=2))
    assert views.names == ("0.png", "2.png", "4.png")
    assert views.shapes == ((network.config.image_size,) * 2,) * 3
    assert next(network.parameters()).device.type == "cpu"
    settings = photo_settings(
        Source(photos=photos, network="rooms", known_cameras=photos, every=3, at_most=7), size=224, at_least=2
    )
    assert (settings.size, settings.patch_size, settings.every, settings.at_most, settings.at_least) == (
        224,
        16,
        3,
        7,
        2,
    )
    assert settings.known_cameras == photos


def test_one_photo_is_a_source_only_where_that_is_enough(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "one.png").write_bytes((photos / "0.png").read_bytes())
    source = Source(photos=tmp_path, network="rooms", device="cpu")
    views, _ = open_source(source, at_least=1)
    assert views.names == ("one.png",)
    with monkeypatch.context() as patched:
        patched.setattr("lora3d_ns.commands.load_network", lambda *_args, **_kwargs: pytest.fail("long work began"))
        with pytest.raises(TooFewPhotosError, match=r"one\.png"):
            open_source(source)
        patched.setattr("torch.cuda.is_available", lambda: False)
        with pytest.raises(SettingsError, match="no CUDA device"):
            open_source(Source(photos=photos, network="rooms", device="cuda"))
    with pytest.raises(CheckpointNotFoundError):
        open_source(Source(photos=photos, network=str(tmp_path / "absent.safetensors"), device="cpu"))
    (tmp_path / "two.png").write_bytes(b"no photo")
    with pytest.raises(NotAPhotoError, match=r"two\.png"):
        open_source(source)


def test_a_refused_adapter_is_not_written_unless_asked_for(
    calibrated: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    nothing = Consistency(label_error=None, order_error=None, match_error=None, matches=0)
    refusal = GateDecision(accepted=False, reason="it was told to", before=nothing, after=nothing)
    monkeypatch.setattr("lora3d_ns.stages.stages.decide", lambda *_args, **_options: refusal)
    output = calibrated / "refused"
    with pytest.raises(SystemExit) as stopped:
        main(["calibrate", str(photos), "-o", str(output), *QUICK])
    assert stopped.value.code == 2
    assert "the gate refused the adapter (it was told to)" in capsys.readouterr().err
    assert not output.exists()
    main(["calibrate", str(photos), "-o", str(output), *QUICK, "--keep-refused"])
    assert "REFUSED" in capsys.readouterr().out
    assert load_adapter(output).parameter_count > 0
