"""Fetching official weights, from a stand-in for the hub on this machine."""

import errno
import hashlib
import logging
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest
from checkpoint_samples import assert_same_weights, random_network, write_hub_folder

from lora3d_ns.errors import (
    CheckpointArchitectureError,
    CheckpointDownloadError,
    CheckpointNotFoundError,
    CorruptCheckpointError,
    DiskSpaceError,
)
from lora3d_ns.network.checkpoints import load_network
from lora3d_ns.network.dust3r import Dust3r

REPOSITORY = "naver/DUSt3R_ViTLarge_BaseDecoder_512_linear"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class _Hub(ThreadingHTTPServer):
    """Answers HEAD and GET of `/{repository}/resolve/main/{file}` as the hub does."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.refusal: tuple[int, str] | None = None
        self.bytes_until_drop: int | None = None
        self.requests: list[tuple[str, str, str | None]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Broken connections are part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    server: _Hub  # pyright: ignore[reportIncompatibleVariableOverride]
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, *, with_body: bool) -> None:
        hub, file, wanted = self.server, self.path.rpartition("/")[2], self.headers.get("Range")
        hub.requests.append((self.command, file, wanted))
        refusal = hub.refusal
        if refusal is None and not self.path.startswith(f"/{REPOSITORY}/resolve/"):
            refusal = (404, "RepoNotFound")
        if refusal is None and file not in hub.files:
            refusal = (404, "EntryNotFound")
        if refusal is not None:
            self.send_response(refusal[0])
            self.send_header("X-Error-Code", refusal[1])
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        body = hub.files[file]
        start = int(wanted.removeprefix("bytes=").partition("-")[0]) if wanted else 0
        self.send_response(206 if wanted else 200)
        self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(body) - start))
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.end_headers()
        if not with_body:
            return
        if file == "model.safetensors" and hub.bytes_until_drop is not None:
            self.wfile.write(body[start : start + hub.bytes_until_drop])
            self.wfile.flush()
            self.close_connection = True
            self.connection.close()
            return
        self.wfile.write(body[start:])


@pytest.fixture
def network() -> Dust3r:
    return random_network()


@pytest.fixture
def hub(network: Dust3r, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[_Hub]:
    server = _Hub()
    folder = write_hub_folder(network, tmp_path / "origin")
    server.files = {path.name: path.read_bytes() for path in folder.iterdir()}
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    # The pauses between attempts are theirs; nobody has to wait for them here.
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def _shut_down(hub: _Hub) -> None:
    hub.shutdown()
    hub.server_close()


def test_download_then_cache_without_the_hub(hub: _Hub, network: Dust3r, tmp_path: Path) -> None:
    assert_same_weights(load_network("512_linear", cache_folder=tmp_path / "hub"), network)
    assert {file for _, file, _ in hub.requests} == {"config.json", "model.safetensors"}
    hub.requests.clear()
    _shut_down(hub)
    assert_same_weights(load_network("512_linear", cache_folder=tmp_path / "hub"), network)
    assert_same_weights(load_network(REPOSITORY, cache_folder=tmp_path / "hub"), network)
    assert hub.requests == []


def test_the_licence_is_shown_once_per_machine(
    hub: _Hub, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert hub.files
    for shown in (1, 1):
        load_network("512_linear", cache_folder=tmp_path / "hub")
        assert [record.levelno for record in caplog.records if "CC BY-NC-SA" in record.message] == (
            [logging.WARNING] * shown
        )
    # Where the marker cannot be kept, the licence is shown again, and the network loads all the same.
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    load_network("512_linear", cache_folder=tmp_path / "hub")
    assert sum("CC BY-NC-SA" in record.message for record in caplog.records) == 2


def test_no_answer(hub: _Hub, tmp_path: Path) -> None:
    _shut_down(hub)
    with pytest.raises(CheckpointDownloadError) as caught:
        load_network("512_linear", cache_folder=tmp_path / "hub")
    message = str(caught.value)
    for instruction in ("on another machine", REPOSITORY, "pass that folder's path", "HF_HOME", "proxy"):
        assert instruction in message


def test_offline_mode_of_the_hub(hub: _Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointDownloadError, match="HF_HUB_OFFLINE"):
        load_network("512_linear", cache_folder=tmp_path / "hub")
    assert hub.requests == []


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (404, "RepoNotFound", CheckpointNotFoundError),
        (404, "EntryNotFound", CheckpointNotFoundError),
        (404, "RevisionNotFound", CheckpointNotFoundError),
        (403, "GatedRepo", CheckpointDownloadError),
        (403, "", CheckpointDownloadError),
        (500, "", CheckpointDownloadError),
        (503, "", CheckpointDownloadError),
    ],
)
def test_refusals(hub: _Hub, tmp_path: Path, status: int, code: str, expected: type[Exception]) -> None:
    hub.refusal = (status, code)
    with pytest.raises(expected, match=r"Or download config\.json and model.safetensors of") as caught:
        load_network("512_linear", cache_folder=tmp_path / "hub")
    assert ("hub refuses" in str(caught.value)) == (status == 403)


def test_weights_that_the_hub_lacks(hub: _Hub, tmp_path: Path) -> None:
    del hub.files["model.safetensors"]
    with pytest.raises(CheckpointNotFoundError, match=r"no model\.safetensors"):
        load_network("512_linear", cache_folder=tmp_path / "hub")


def test_dropped_connections(hub: _Hub, network: Dust3r, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.bytes_until_drop = 0
    with pytest.raises(CheckpointDownloadError, match="try again"):
        load_network("512_linear", cache_folder=tmp_path / "hub")
    assert not list((tmp_path / "hub").rglob("model.safetensors"))
    # From now on each connection carries some bytes before it drops, and the download goes on where it was. (Theirs
    # keeps whole chunks, of 10 MB.)
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000)
    hub.bytes_until_drop = 8000
    hub.requests.clear()
    assert_same_weights(load_network("512_linear", cache_folder=tmp_path / "hub"), network)
    resumed = [wanted for command, _, wanted in hub.requests if command == "GET" and wanted is not None]
    assert "bytes=8000-" in resumed


def test_a_disk_without_room_is_noticed_before_the_download(
    hub: _Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(DiskSpaceError, match="HF_HOME"):
        load_network("512_linear", cache_folder=tmp_path / "hub")
    assert not any(command == "GET" for command, _, _ in hub.requests)


def test_a_disk_that_fills_up_during_the_download(hub: _Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    assert hub.files
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", full)
    with pytest.raises(DiskSpaceError, match="became full"):
        load_network("512_linear", cache_folder=tmp_path / "hub")


def test_what_the_hub_sends_is_not_trusted_either(hub: _Hub, tmp_path: Path) -> None:
    sound = hub.files["model.safetensors"]
    hub.files["model.safetensors"] = sound[:-100]
    with pytest.raises(CorruptCheckpointError, match="Delete the file"):
        load_network("512_linear", cache_folder=tmp_path / "first")
    hub.files["config.json"] = b"<html>Please log in to the hotel's network</html>"
    with pytest.raises(CheckpointArchitectureError, match="no valid JSON"):
        load_network("512_linear", cache_folder=tmp_path / "second")
