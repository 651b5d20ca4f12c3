"""`view_scene`: what it says, when it ends, and what it refuses."""

import dataclasses
import math
import socket
import threading
import time
import urllib.request
from pathlib import Path

import pytest
from report.report_samples import scene_and_details
from viewer.test_viewer_server import free_port

from lora3d_ns.errors import DamagedFileError, InvalidDataError, SettingsError, StorageError
from lora3d_ns.scene_io.scenes import DETAILS_FILE, SCENE_FILE, save_scene
from lora3d_ns.viewer.live import LiveViewer
from lora3d_ns.viewer.panel import with_before
from lora3d_ns.viewer.show import ViewerSettings, view_scene
from lora3d_ns.viewer.state import ViewState


def test_settings_that_make_no_sense_are_refused() -> None:
    settings = ViewerSettings()
    assert (settings.host, settings.port, settings.most_points, settings.open_for_s) == (
        "127.0.0.1",
        8765,
        500_000,
        None,
    )
    for wrong in (
        {"host": ""},
        {"host": "local host"},
        {"port": 0},
        {"port": 65536},
        {"most_points": 0},
        {"open_for_s": 0.0},
        {"open_for_s": math.nan},
        {"open_for_s": math.inf},
    ):
        with pytest.raises(SettingsError):
            dataclasses.replace(settings, **wrong)


def test_it_says_where_to_look_and_ends_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("SSH_CONNECTION", raising=False)
    scene, details = scene_and_details(3)
    save_scene(scene, tmp_path / "scene", details=details)
    port, said, answers = free_port(), [], []

    def say(line: str) -> None:
        said.append(line)
        if line.startswith("Viewer:"):
            # As soon as it is said it is so.
            with urllib.request.urlopen(line.split()[-1], timeout=20) as page:
                answers.append(page.status)

    start = time.monotonic()
    view_scene(tmp_path / "scene", ViewerSettings(port=port, open_for_s=1.0), say=say)
    assert 1.0 <= time.monotonic() - start < 20.0
    assert said == [f"Viewer:   http://localhost:{port}", "It ends after 1 s."]
    assert answers == [200]
    # viser's own banner would name another address, and is not for a program's output.
    assert capfd.readouterr().out == ""


def test_a_scene_without_details_is_shown_and_says_what_is_missing(tmp_path: Path) -> None:
    scene, _ = scene_and_details(3)
    save_scene(scene, tmp_path / "scene")
    said: list[str] = []
    view_scene(tmp_path / "scene", ViewerSettings(port=free_port(), open_for_s=0.2), say=said.append)
    assert "without its details" in said[0]


def test_ctrl_c_is_the_usual_end(tmp_path: Path) -> None:
    scene, details = scene_and_details(3)
    save_scene(scene, tmp_path / "scene", details=details)

    def interrupt(line: str) -> None:
        if line.startswith("Ctrl-C"):
            raise KeyboardInterrupt

    port = free_port()
    view_scene(tmp_path / "scene", ViewerSettings(port=port), say=interrupt)
    deadline = time.monotonic() + 20.0
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return
        time.sleep(0.05)
    raise AssertionError("somebody still listens")


def test_what_is_no_scene_is_named(tmp_path: Path) -> None:
    settings, said = ViewerSettings(port=free_port(), open_for_s=0.2), []
    with pytest.raises(StorageError):
        view_scene(tmp_path / "nothing", settings, say=said.append)
    scene, details = scene_and_details(3)
    folder = tmp_path / "scene"
    save_scene(scene, folder, details=details)
    (folder / DETAILS_FILE).write_bytes(b"short")
    with pytest.raises(DamagedFileError):
        view_scene(folder, settings, say=said.append)
    other, other_details = scene_and_details(3, names=("x.png", "y.png", "z.png"))
    save_scene(other, tmp_path / "other", details=other_details)
    (folder / SCENE_FILE).write_bytes((tmp_path / "other" / SCENE_FILE).read_bytes())
    (folder / DETAILS_FILE).unlink()
    save_scene(scene, tmp_path / "third", details=details)
    (folder / DETAILS_FILE).write_bytes((tmp_path / "third" / DETAILS_FILE).read_bytes())
    with pytest.raises(InvalidDataError, match="different photos"):
        view_scene(folder, settings, say=said.append)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", settings.port))
        taken.listen()
        with pytest.raises(SettingsError, match=rf"port {settings.port} .* in use"):
            view_scene(tmp_path / "other", settings, say=said.append)
    assert said == []


def test_one_photo_alone_is_shown(tmp_path: Path) -> None:
    scene, details = scene_and_details(1, learnt=False)
    with LiveViewer(tmp_path, scene, details, host="127.0.0.1", port=free_port(), most_points=1000) as viewer:
        viewer.run(0.1)
        assert viewer.viewed.pairs == ()
        assert len(viewer.viewed.cloud) == 1000


def test_many_changes_at_once_end_in_the_last_one(tmp_path: Path) -> None:
    scene, details = scene_and_details(3)
    with LiveViewer(tmp_path, scene, details, host="127.0.0.1", port=free_port(), most_points=1000) as viewer:
        actions = viewer._actions()
        for weight in range(50):
            actions.change(lambda now, weight=weight: dataclasses.replace(now, least_weight=weight / 100))
        closing = threading.Timer(0.5, viewer.close)
        closing.start()
        viewer.run()
        assert viewer.state.least_weight == 0.49
        # Nobody is there to fly, to be told, or to have a picture taken: nothing happens.
        for ask in (
            lambda: viewer._fly(7, 1),
            lambda: viewer._fly(None, None),
            lambda: viewer._take_picture(7),
            lambda: viewer._set_scale(7, 1.0),
        ):
            ask()
        assert viewer.state == ViewState(least_weight=0.49)


def test_whoever_turns_to_the_scene_before_leaves_picks_and_photo() -> None:
    state = ViewState(photo=1, picking=True, picks=((0.0, 0.0, 0.0),), least_weight=0.3)
    assert with_before(state, before=True) == ViewState(before=True, least_weight=0.3)
