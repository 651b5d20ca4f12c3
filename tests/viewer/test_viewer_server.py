"""The server answers who is meant, and hands out nothing but its page, which asks for nothing elsewhere."""

import http.client
import re
import socket
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
import viser

from lora3d_ns.errors import SettingsError
from lora3d_ns.viewer.server import content_policy, is_local, own_page, refusal, start_server

VISER_PAGE = Path(viser.__file__).parent / "client" / "build" / "index.html"
UPGRADE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}


def free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return opened.getsockname()[1]


@pytest.fixture(name="port", scope="module")
def _port() -> Iterator[int]:
    port = free_port()
    server = start_server("127.0.0.1", port, label="scene")
    yield port
    server.stop()
    server.flush()


def ask(port: int, path: str, **headers: str) -> tuple[int, http.client.HTTPMessage, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request("GET", path, headers=headers)
    answer = connection.getresponse()
    found = answer.status, answer.headers, b"" if answer.status == 101 else answer.read()
    connection.close()
    return found


class Addresses(HTMLParser):
    """All that a page names."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.found: list[str] = []
        self.inline_scripts = 0
        self.feed(page.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.found += [value for name, value in values.items() if name in ("src", "href") and value]
        self.inline_scripts += tag == "script" and "src" not in values


def test_the_page_asks_nobody_else_and_is_told_not_to(port: int) -> None:
    original = Addresses(VISER_PAGE.read_bytes())
    assert any("googletagmanager" in address for address in original.found), "viser has changed: look again"
    status, headers, page = ask(port, "/")
    assert status == 200
    shown = Addresses(page)
    assert shown.inline_scripts == 0
    assert shown.found
    assert all(address.startswith("/") and not address.startswith("//") for address in shown.found)
    # All the rest is there: the program and its style among it.
    assert set(shown.found) == {address for address in original.found if address.startswith("/")}
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")
    assert f"ws://127.0.0.1:{port}" in policy
    assert "https:" not in policy
    assert not re.search(r"\*|https?://|'unsafe-inline'", policy.partition("style-src")[0])
    # Packed as browsers ask for it, it is the same page.
    import gzip

    packed = ask(port, "/", **{"Accept-Encoding": "gzip"})
    assert packed[1]["Content-Encoding"] == "gzip"
    assert gzip.decompress(packed[2]) == page
    assert own_page(b"<head><script src='/ours.js'></script></head>").count(b"ours.js") == 1


def test_no_file_beside_its_own_is_handed_out(port: int) -> None:
    up = "/.." * 20
    for path in (
        f"{up}/etc/passwd",
        "//etc/passwd",
        f"/assets{up}/etc/passwd",
        "/../src/App.tsx",
        f"{up}/etc/passwd?x",
    ):
        status, _, body = ask(port, path)
        assert status == 403
        assert b"root" not in body
    assert ask(port, "/%2e%2e/src/App.tsx")[0] == 404
    assert ask(port, "/logo.svg")[0] == 200
    assert ask(port, "/logo.svg?version=1")[0] == 200


def test_other_pages_and_other_names_are_not_answered(port: int) -> None:
    own = {"Host": f"localhost:{port}", "Origin": f"http://localhost:{port}"}
    assert ask(port, "/", **UPGRADE, **own)[0] == 101
    # Through a tunnel the machine has another port.
    assert ask(port, "/", **UPGRADE, Host="localhost:9000", Origin="http://localhost:9000")[0] == 101
    for origin in ("http://evil.example", "null", f"http://evil.example:{port}", "http://localhost:1"):
        assert ask(port, "/", **UPGRADE, **{**own, "Origin": origin})[0] == 403
    # A name that somebody made point here.
    assert ask(port, "/", Host=f"evil.example:{port}")[0] == 403
    assert ask(port, "/", **UPGRADE, Host="evil.example", Origin="http://evil.example")[0] == 403


def test_what_is_refused() -> None:
    local = {"Host": "127.0.0.1:8765"}
    assert refusal("/", local, local=True) is None
    assert refusal("/assets/a.js?x=..", local, local=True) is None
    assert refusal("/", {"Host": "[::1]:8765", "Origin": "http://[::1]:8765"}, local=True) is None
    for path in ("", "a", "//a", "/a/../b", "/..", "/a\\..\\b"):
        assert refusal(path, local, local=True) is not None
    for host in ("", "example.com", "127.0.0.1.example.com", "localhost.example.com", "[", "1270.0.0.1"):
        assert refusal("/", {"Host": host}, local=True) is not None
    # For everybody in the network it goes by any name, and still not for other pages.
    assert refusal("/", {"Host": "machine:80"}, local=False) is None
    assert refusal("/", {"Host": "machine:80", "Origin": "http://machine:80"}, local=False) is None
    assert refusal("/", {"Host": "machine:80", "Origin": "http://other:80"}, local=False) is not None
    assert [is_local(host) for host in ("127.0.0.1", "localhost", "::1", "0.0.0.0", "10.0.0.1")] == [True] * 3 + [
        False
    ] * 2
    assert "evil" not in content_policy("a; script-src evil")


def test_a_port_in_use_is_named_with_the_way_out(port: int) -> None:
    with pytest.raises(SettingsError, match=rf"port {port} .* in use.*--port {port + 1}"):
        start_server("127.0.0.1", port, label="second")
    with pytest.raises(SettingsError, match="no address of this machine"):
        start_server("192.0.2.1", free_port(), label="elsewhere")
    with pytest.raises(SettingsError, match="no address of this machine"):
        start_server("no such host", free_port(), label="nowhere")


def test_nobody_opens_a_tunnel_and_the_port_is_free_again() -> None:
    port = free_port()
    for _ in range(2):
        server = start_server("127.0.0.1", port, label="scene")
        assert server.get_port() == port
        assert server.request_share_url() is None
        assert server._share_tunnel is None
        server.stop()
        server.flush()
        ended = threading.Event()
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) != 0:
                    ended.set()
                    break
            ended.wait(0.05)
        assert ended.is_set()
