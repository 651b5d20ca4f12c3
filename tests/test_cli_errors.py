"""Whatever is typed wrong: one line that says the way out, exit code 2, no traceback; over all commands."""

import dataclasses
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from lora3d_ns.cli import Demo, main
from lora3d_ns.progress import progress_bar
from lora3d_ns.scene_io.scenes import SCENE_FILE, save_scene
from lora3d_ns.types import Cameras, Scene

PHOTO_COMMANDS = {
    "reconstruct": ["reconstruct", "{}", "-o", "out", "--network", "rooms"],
    "calibrate": ["calibrate", "{}", "-o", "out", "--network", "rooms"],
    "demo": ["demo", "--photos", "{}", "--output", "out", "--network", "rooms"],
}
SCENE_COMMANDS = {
    "view": ["view", "{}"],
    "report": ["report", "{}"],
    "export to colmap": ["export", "{}", "--to", "colmap", "-o", "out"],
    "export to nerfstudio": ["export", "{}", "--to", "nerfstudio", "-o", "out"],
    "export to ply": ["export", "{}", "--to", "ply", "-o", "out.ply"],
    "export to glb": ["export", "{}", "--to", "glb", "-o", "out.glb"],
}
OTHERS = {
    "doctor": ["doctor"],
    "pretrain": ["pretrain", "--folder", "out"],
    "benchmark rooms": ["benchmark", "rooms"],
    "benchmark splats": ["benchmark", "splats"],
    "benchmark ablations": ["benchmark", "ablations"],
}


def scene() -> Scene:
    return Scene(
        names=("a.png",),
        cameras=Cameras(
            T_world_camera=torch.eye(4, dtype=torch.float64)[None],
            K=torch.tensor([[[50.0, 0.0, 32.0], [0.0, 50.0, 24.0], [0.0, 0.0, 1.0]]], dtype=torch.float64),
            sizes=((64, 48),),
        ),
        points=torch.rand(20, 3) + 1.0,
        colors=torch.zeros(20, 3, dtype=torch.uint8),
        point_weights=torch.ones(20),
        point_views=torch.zeros(20, dtype=torch.int32),
        provenance={},
        format_version=1,
    )


def nothing(_: Path) -> None:
    pass


def empty_folder(place: Path) -> None:
    place.mkdir()


def file_instead(place: Path) -> None:
    place.write_text("no folder")


def one_photo(place: Path) -> None:
    place.mkdir()
    Image.new("RGB", (64, 48), (90, 120, 30)).save(place / "a.png")


def damaged_photos(place: Path) -> None:
    one_photo(place)
    (place / "b.png").write_bytes((place / "a.png").read_bytes()[:60])


def damaged_scene(place: Path) -> None:
    save_scene(scene(), place)
    file = place / SCENE_FILE
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def newer_scene(place: Path) -> None:
    """A scene in a file of a later format."""
    save_scene(scene(), place)
    file = place / SCENE_FILE
    with safe_open(file, "pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        header = dict(opened.metadata())
    assert header["version"] == "1"
    save_file(tensors, file, {**header, "version": "99"})


WRONG_PHOTOS = {
    "missing": nothing,
    "empty": empty_folder,
    "a file": file_instead,
    "damaged": damaged_photos,
}
WRONG_SCENES = {
    "missing": nothing,
    "empty": empty_folder,
    "a file": file_instead,
    "damaged": damaged_scene,
    "newer": newer_scene,
}
TABLE = [
    pytest.param(line, make, id=f"{command}: {wrong}")
    for commands, faults in ((PHOTO_COMMANDS, WRONG_PHOTOS), (SCENE_COMMANDS, WRONG_SCENES))
    for command, line in commands.items()
    for wrong, make in faults.items()
]


def one_line(arguments: list[str], capsys: pytest.CaptureFixture) -> str:
    """Runs a command that must fail, and returns the one line it says."""
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    captured = capsys.readouterr()
    said = [line for line in captured.err.splitlines() if line.startswith("lora3d: ")]
    assert stopped.value.code == 2, captured.err
    assert len(said) == 1, captured.err
    assert "Traceback" not in captured.out + captured.err
    # A problem, and after it what to do.
    assert ". " in said[0]
    assert len(said[0]) < 600
    return said[0]


@pytest.mark.parametrize(("line", "make"), TABLE)
def test_wrong_folders(
    line: list[str],
    make: Callable[[Path], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "place")
    message = one_line([word.format("place") for word in line], capsys)
    assert "place" in message
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())


@pytest.mark.parametrize("line", [*PHOTO_COMMANDS.values(), *SCENE_COMMANDS.values(), *OTHERS.values()], ids=" ".join)
def test_unknown_options(line: list[str], capsys: pytest.CaptureFixture) -> None:
    message = one_line([*line, "--no-such-option", "3"], capsys)
    assert "--no-such-option" in message
    assert "--help` explains it" in message


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (["reconstruct", "a", "-o", "b", "--epochs", "many"], "--epochs"),
        (["reconstruct", "a", "-o", "b", "--arm", "leg"], "--arm"),
        (["reconstruct", "a", "-o", "b", "--epoch", "3"], "perhaps you meant --epochs"),
        (["calibrate", "a"], "--output"),
        (["view"], "SCENE"),
        (["view", "a", "--port", "x"], "--port"),
        (["report"], "SCENE"),
        (["export", "a", "--to", "zip", "-o", "b"], "'zip'"),
        (["demo", "--splat-steps", "x"], "--splat-steps"),
        (["pretrain", "--steps", "0"], "steps"),
        (["doctor", "--json"], "--json"),
        (["benchmark"], "rooms"),
        (["benchmark", "rooms", "--arms", "leg"], "leg"),
        (["benchmark", "splats", "--scenes", "attic-0"], "attic-0"),
        (["benchmark", "ablations", "--studies", "nonsense"], "nonsense"),
        (["nonsense"], "nonsense"),
        ([], "reconstruct"),
        (["doctor", "--config"], "--config"),
        (["--config", "no_such.yaml"], "no_such.yaml"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_wrong_words(
    line: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert says in one_line(line, capsys)


def test_settings_of_another_command(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("command: calibrate\nsettings: {}\n")
    message = one_line(["reconstruct", "--config", str(file)], capsys)
    assert f"lora3d calibrate --config {file}" in message


# --- how runs behave ------------------------------------------------------------------------------


def test_a_defect_is_said_to_be_one(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    def broken(_: Demo) -> None:
        raise TypeError("two\nlines")

    monkeypatch.setattr(Demo, "run", broken)
    with pytest.raises(SystemExit) as stopped:
        main(["demo"])
    assert stopped.value.code == 1
    said = capsys.readouterr().err
    assert said.startswith("lora3d: this is a defect of lora3d (TypeError: two lines). ")
    assert said.count("\n") == 1
    assert "--verbose" in said
    with pytest.raises(SystemExit) as stopped:
        main(["demo", "--verbose"])
    assert stopped.value.code == 1
    assert "Traceback" in capsys.readouterr().err


def test_quiet_and_verbose_at_once_are_refused(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--quiet", "--verbose", "doctor"])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1] == "lora3d: --quiet and --verbose at once. Choose one"


def test_quiet_and_verbose(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logger = logging.getLogger("lora3d_ns.test")

    def talks(_: Demo) -> None:
        sys.stdout.write("result\n")
        logger.debug("detail")
        logger.info("step")
        logger.error("trouble")
        with progress_bar("Working", 2) as advance:
            advance(2)

    monkeypatch.setattr(Demo, "run", talks)
    said = {}
    for words in ((), ("--quiet",), ("--verbose",)):
        caplog.clear()
        main(["demo", *words, "--output", str(tmp_path / "out")])
        captured = capsys.readouterr()
        printed = captured.out.splitlines()
        said[words] = (printed[:1], [record.message for record in caplog.records], "Working" in captured.err)
    # A log wants no bars: there is no terminal here.
    assert said[()] == (["result"], ["step", "trouble"], False)
    assert said["--quiet",] == ([], ["trouble"], False)
    assert said["--verbose",] == (["result"], ["detail", "step", "trouble"], False)


def test_a_reader_who_leaves_is_no_error() -> None:
    program = [Path(sys.executable).with_name("lora3d"), "doctor"]
    process = subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.close()
    _, said = process.communicate(timeout=120)
    assert "Traceback" not in said
    assert "Broken pipe" not in said


def test_completion_is_offered_by_tyro() -> None:
    program = [Path(sys.executable).with_name("lora3d"), "--tyro-print-completion", "bash"]
    printed = subprocess.run(program, capture_output=True, text=True, check=True, env={**os.environ, "COLUMNS": "80"})
    for command in ("reconstruct", "view", "report", "export", "calibrate", "demo", "doctor", "benchmark", "pretrain"):
        assert command in printed.stdout
    assert "lora3d" in printed.stdout


def test_settings_are_dataclasses_all_the_way() -> None:
    from lora3d_ns.cli import REPEATABLE

    assert all(dataclasses.is_dataclass(job) for job in REPEATABLE.values())
    assert json.dumps(sorted(REPEATABLE)) == '["calibrate", "demo", "export", "pretrain", "reconstruct"]'
