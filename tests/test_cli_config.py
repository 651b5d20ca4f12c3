"""Settings files: what a run leaves, and that it repeats the run."""

import dataclasses
import string
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from lora3d_ns.cli import REPEATABLE, Demo, Pretrain, main
from lora3d_ns.cli_config import read_settings, settings_beside, settings_text, write_settings
from lora3d_ns.cli_export import Export
from lora3d_ns.cli_photos import (
    Calibrate,
    CalibrationOptions,
    NetworkOptions,
    PhotoOptions,
    Reconstruct,
    ReconstructionOptions,
    ResultOptions,
)
from lora3d_ns.errors import SettingsError

WORDS = st.text(string.ascii_letters + string.digits + "_ äß.'\"#:{}[]&*", min_size=1, max_size=20).filter(
    lambda word: word.strip() == word and word not in ("None", ".", "..")
)
PATHS = WORDS.map(Path)
COUNTS = st.integers(0, 10**6)


def maybe(values: st.SearchStrategy) -> st.SearchStrategy:
    return st.none() | values


FROM_PHOTOS: dict[str, Any] = {
    "photos": PATHS,
    "output": PATHS,
    "photo": st.builds(PhotoOptions, every=COUNTS, at_most=maybe(COUNTS), known_cameras=maybe(PATHS)),
    "network": st.builds(NetworkOptions, network=WORDS, device=st.sampled_from(["auto", "cpu", "cuda"])),
    "result": st.builds(ResultOptions, cache=maybe(PATHS), json=maybe(PATHS)),
}
METHOD: dict[str, Any] = {
    "matches": st.sampled_from(["auto", "off"]),
    "epochs": maybe(COUNTS),
    "rounds": COUNTS,
    "seed": COUNTS,
}
JOBS = st.one_of(
    st.builds(Calibrate, **FROM_PHOTOS, method=st.builds(CalibrationOptions, **METHOD, keep_refused=st.booleans())),
    st.builds(
        Reconstruct,
        **FROM_PHOTOS,
        method=st.builds(
            ReconstructionOptions,
            **METHOD,
            adapter=maybe(PATHS),
            arm=st.sampled_from(["self_calibrated", "robust", "pretrained"]),
        ),
    ),
    st.builds(
        Export,
        scene=PATHS,
        to=st.sampled_from(["nerfstudio", "ply", "glb"]),
        output=PATHS,
        photos=maybe(PATHS),
        least_weight=st.floats(0.0, 1e3),
        box=maybe(st.tuples(*[st.floats(-1e3, 1e3)] * 6)),
    ),
    st.builds(Demo, output=PATHS, photos=maybe(PATHS), network=maybe(WORDS), splat_steps=maybe(COUNTS)),
    st.builds(
        Pretrain, folder=PATHS, steps=COUNTS, minutes=maybe(st.floats(0.1, 1e3)), learning_rate=st.floats(1e-6, 1.0)
    ),
)


@settings(deadline=None, max_examples=60)
@given(job=JOBS)
def test_what_is_written_is_read_again(job: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    command = next(name for name, kind in REPEATABLE.items() if kind is type(job))
    file = tmp_path_factory.getbasetemp() / "any.yaml"
    file.write_text(settings_text(command, job), encoding="utf-8")
    assert read_settings(file, REPEATABLE) == (command, job)


def test_the_file_is_plain_and_says_how_to_use_it(tmp_path: Path) -> None:
    job = Reconstruct(photos=Path("my photos"), output=tmp_path / "scene", method=ReconstructionOptions(epochs=3))
    write_settings("reconstruct", job)
    file = tmp_path / "scene.settings.yaml"
    assert settings_beside(tmp_path / "scene") == file
    text = file.read_text()
    assert text.startswith("# lora3d --config THIS_FILE does it again")
    content = yaml.safe_load(text)
    assert content["command"] == "reconstruct"
    assert content["settings"]["photos"] == "my photos"
    assert content["settings"]["epochs"] == 3
    assert content["settings"]["device"] == "auto"
    assert content["settings"]["adapter"] is None


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[Reconstruct]:
    """Jobs that ran, instead of running."""
    jobs: list[Reconstruct] = []
    monkeypatch.setattr(Reconstruct, "run", lambda self: jobs.append(self))
    return jobs


def test_a_run_leaves_its_settings_and_they_repeat_it(ran: list[Reconstruct], tmp_path: Path) -> None:
    output = tmp_path / "scene"
    main(["reconstruct", "photos", "-o", str(output), "--epochs", "4", "--network", "rooms"])
    file = tmp_path / "scene.settings.yaml"
    main(["--config", str(file)])
    main(["reconstruct", f"--config={file}"])
    assert ran[0] == ran[1] == ran[2]
    assert ran[0].method.epochs == 4
    main(["--config", str(file), "--epochs", "None", "--output", str(tmp_path / "other")])
    main(["reconstruct", "elsewhere", "--config", str(file), "--seed", "7"])
    assert ran[3] == dataclasses.replace(
        ran[0], output=tmp_path / "other", method=dataclasses.replace(ran[0].method, epochs=None)
    )
    assert (ran[4].photos, ran[4].method.seed, ran[4].method.epochs) == (Path("elsewhere"), 7, 4)
    assert (tmp_path / "other.settings.yaml").is_file()


def test_what_is_interrupted_leaves_them_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def interrupted(_: Reconstruct) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Reconstruct, "run", interrupted)
    with pytest.raises(SystemExit) as stopped:
        main(["reconstruct", "photos", "-o", str(tmp_path / "scene")])
    assert stopped.value.code == 130
    assert (tmp_path / "scene.settings.yaml").is_file()


def test_a_file_may_leave_out_what_the_line_says(
    ran: list[Reconstruct], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("command: reconstruct\nsettings:\n  network: rooms\n  at-most: 9\n")
    main(["--config", str(file), "photos", "-o", str(tmp_path / "scene")])
    assert ran[0] == Reconstruct(
        photos=Path("photos"),
        output=tmp_path / "scene",
        network=NetworkOptions(network="rooms"),
        photo=PhotoOptions(at_most=9),
    )
    with pytest.raises(SystemExit) as stopped:
        main(["--config", str(file), "photos"])
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("lora3d: Missing from lora3d reconstruct: ")
    assert "--output" in said


WRONG = {
    "not there": (None, "cannot be read"),
    "binary": (b"\xff\xfe\x00\x01", "no YAML"),
    "broken": (b"settings: [1, {", "no YAML"),
    "python": (b"command: demo\nsettings: !!python/object/apply:os.system ['touch ran']\n", "no YAML"),
    "empty": (b"", "no `settings`"),
    "a list": (b"- 1\n- 2\n", "no `settings`"),
    "unknown command": (b"command: fly\nsettings: {}\n", "'fly'"),
    "no command": (b"settings: {}\n", "command: None"),
    "unknown setting": (b"command: demo\nsettings: {colour: red}\n", "no setting 'colour'"),
    "wrong type": (b"command: reconstruct\nsettings: {epochs: many}\n", "epochs cannot be 'many'"),
    "wrong choice": (b"command: reconstruct\nsettings: {photos: a, output: b, arm: leg}\n", "arm cannot be 'leg'"),
    "a table for a number": (b"command: reconstruct\nsettings: {seed: {a: 1}}\n", "seed cannot be"),
    "a list for a path": (b"command: demo\nsettings: {output: [a, b]}\n", "output cannot be"),
}


@pytest.mark.parametrize(("content", "says"), WRONG.values(), ids=WRONG)
def test_wrong_files_are_named_and_explained(
    content: bytes | None, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "settings.yaml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(SettingsError) as raised:
        read_settings(file, REPEATABLE)
    assert str(raised.value).startswith(f"{file}: ")
    assert says in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "ran").exists()
