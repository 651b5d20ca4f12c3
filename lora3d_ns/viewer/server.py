"""viser's server, made to talk to nobody but who is meant: it binds where we say, and its page loads nothing remote.

viser 0.2.7 as it is hands out any file that a request names by `..`, takes commands from any web page that is open in
the same browser, moves on to another port without a word, and has a page that asks googletagmanager.com for a script.
"""

import contextlib
import errno
import gzip
import importlib
import io
import logging
import re
import socket
from collections.abc import Callable, Iterator, Mapping
from http import HTTPStatus
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from lora3d_ns.errors import MissingPackageError, SettingsError

if TYPE_CHECKING:
    import viser

_LOCAL = re.compile(r"localhost|127(\.[0-9]{1,3}){3}|::1")
_SCRIPTS_NOT_OURS = re.compile(
    rb"<script\b(?![^>]*\bsrc=[\"']/)[^>]*>.*?</script\s*>|<link\b[^>]*\bhref=[\"'](https?:)?//[^>]*>",
    re.DOTALL | re.IGNORECASE,
)
_STYLE = b"<style>button:has(svg.tabler-icon-share){display:none}</style>"


def is_local(host: str) -> bool:
    """Whether only this machine reaches a server that is bound to this host."""
    return _LOCAL.fullmatch(host) is not None


def refusal(path: str, headers: Mapping[str, str], *, local: bool) -> str | None:
    """Why a request is not answered; None for one that is.

    Args:
        path: As it was asked for, with its query.
        headers: `Host` and `Origin` are looked at.
        local: Whether the server is bound to this machine only. It then goes by a name of this machine: a name that
            somebody made point here (DNS rebinding) is not one.
    """
    asked = path.partition("?")[0]
    if not asked.startswith("/") or asked.startswith("//") or "\\" in asked or ".." in PurePosixPath(asked).parts:
        return "no such file"
    host, origin = headers.get("Host", ""), headers.get("Origin")
    if local and not is_local(_hostname(host)):
        return "not asked for by a name of this machine"
    if origin is not None and urlsplit(origin).netloc != host:
        return "asked for by another page"
    return None


def own_page(html: bytes) -> bytes:
    """viser's page without what it would load from elsewhere, and without its button that opens a tunnel to the world.

    viser can leave out that button too, but its page then breaks (React error 300).
    """
    return _SCRIPTS_NOT_OURS.sub(b"", html).replace(b"</head>", _STYLE + b"</head>")


def content_policy(host: str) -> str:
    """What the browser may load for the page: nothing but what this server sends, and what the page makes itself."""
    ours = f" ws://{host} wss://{host}" if re.fullmatch(r"[\w.:\[\]-]+", host) else ""
    return (
        "default-src 'none'; script-src 'self' 'unsafe-eval' blob:; worker-src 'self' blob:; "
        f"style-src 'self' 'unsafe-inline'; connect-src 'self' data: blob:{ours}; img-src 'self' data: blob:; "
        "font-src 'self' data:; manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def start_server(host: str, port: int, *, label: str) -> "viser.ViserServer":
    """A server of viser's that answers at this port and no other.

    Raises:
        SettingsError: The port is in use, or the host is none of this machine's.
        MissingPackageError: There is no viser, or one that starts in another way.
    """
    try:
        import viser
    except ImportError as error:
        raise MissingPackageError("the viewer needs viser", way_out="Install it: pip install viser==0.2.7") from error
    _require_free(host, port)
    # It tells of every file that is handed out.
    logging.getLogger("websockets.server").setLevel(logging.WARNING)
    with _guarded(local=is_local(host)) as guards, contextlib.redirect_stdout(io.StringIO()):
        server = viser.ViserServer(host=host, port=port, label=label, verbose=False)
    if not guards:
        server.stop()
        raise MissingPackageError(
            "this version of viser starts its server in another way than the one we know",
            way_out="Install the one that nerfstudio wants: pip install viser==0.2.7",
        )
    if server.get_port() != port:
        # Somebody took it since we looked.
        server.stop()
        raise _in_use(host, port)
    # A message of any client would open a tunnel to the world otherwise.
    server.request_share_url = _no_tunnel
    return server


@contextlib.contextmanager
def _guarded(*, local: bool) -> Iterator[list[object]]:
    """While a server of viser's is started: what it answers goes through `refusal` and `own_page`.

    viser gives no way in between: the one function of `websockets` that it starts with is exchanged for the moment.

    Yields:
        One entry for each server that was started.
    """
    module: Any = importlib.import_module("websockets.server")
    started: list[object] = []
    serve = module.serve

    def serve_guarded(*positional: Any, process_request: Any = None, **named: Any) -> object:
        started.append(True)
        return serve(*positional, process_request=_answering(process_request, local=local), **named)

    module.serve = serve_guarded
    try:
        yield started
    finally:
        module.serve = serve


def _no_tunnel(verbose: bool = True) -> str | None:  # noqa: ARG001
    """In place of viser's own: no address, since nothing was opened."""
    return None


def _answering(answer: Callable[..., Any], *, local: bool) -> Callable[..., Any]:
    async def answered(path: str, headers: Mapping[str, str]) -> object:
        why_not = refusal(path, headers, local=local)
        if why_not is not None:
            return HTTPStatus.FORBIDDEN, {"Content-Type": "text/plain"}, why_not.encode()
        found = await answer(path, headers)
        if found is None:
            return None
        status, given, body = found
        given = {**dict(given), "X-Content-Type-Options": "nosniff"}
        if given.get("Content-Type") == "text/html":
            zipped = given.get("Content-Encoding") == "gzip"
            page = own_page(gzip.decompress(body) if zipped else body)
            body = gzip.compress(page) if zipped else page
            given["Content-Security-Policy"] = content_policy(headers.get("Host", ""))
        return status, given, body

    return answered


def _hostname(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _require_free(host: str, port: int) -> None:
    try:
        places = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise _no_such_host(host) from error
    for family, kind, protocol, _, address in places:
        with socket.socket(family, kind, protocol) as probe:
            # As asyncio binds: a server that has ended leaves the port to the next one.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(address)
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    raise _in_use(host, port) from error
                if error.errno in (errno.EACCES, errno.EPERM):
                    raise SettingsError(
                        f"port {port} is not for you to take", way_out="Choose one from 1024 on"
                    ) from error
                raise _no_such_host(host) from error


def _in_use(host: str, port: int) -> SettingsError:
    other = port + 1 if port < 65535 else port - 1
    return SettingsError(
        f"port {port} of {host} is in use",
        way_out=f"End what listens there (another viewer?), or choose another port: --port {other}",
    )


def _no_such_host(host: str) -> SettingsError:
    return SettingsError(
        f"{host!r} is no address of this machine", way_out="Use 127.0.0.1, or 0.0.0.0 for everybody in its network"
    )
