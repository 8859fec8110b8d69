"""Serve trees of files on this machine: HTTP with ranges, entity tags and HEAD, for reading only.

The server listens on 127.0.0.1 and answers requests for that name only, so that no page of another site can read what
is served by pointing a name of its own at this address.
"""

import mimetypes
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from dsgen.errors import DsgenError, InvalidValueError, check_rules, reason_of
from dsgen.views.trees import Content, Tree

HOST = "127.0.0.1"
_HOSTS = [HOST, "localhost"]
_PIECE_BYTES = 2**22  # what is longer is read and sent in pieces
_RANGE = re.compile(r"bytes=(\d*)-(\d*)", re.ASCII)
_TYPES = {".js": "text/javascript", ".json": "application/json", ".css": "text/css", ".html": "text/html"}
_TEXT = {"text/javascript", "text/css", "text/html", "text/csv", "text/plain"}
_POLICY = (
    "default-src 'none'; script-src 'self'; worker-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "cache-control": "no-cache",
    "x-content-type-options": "nosniff",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "content-security-policy": _POLICY,
}
# the codecs, which only the workers load, are WebAssembly and make functions of text
_WORKERS = {"page/worker.js"}
_WORKER_POLICY = _POLICY.replace("script-src 'self'", "script-src 'self' 'unsafe-eval'")


def make_app(trees: Mapping[str, Tree]) -> Starlette:
    """Return the web application that serves trees, each below its prefix, such as `data/`; "" is for the rest."""

    def answer(request: Request) -> Response:
        name = request.path_params["name"] or "index.html"
        prefix = next((each for each in trees if each and name.startswith(each)), "")
        try:
            content = trees[prefix].find(name.removeprefix(prefix)) if prefix in trees else None
            return _missing(name) if content is None else _respond(request, name, content)
        except FileNotFoundError:
            return _missing(name)
        except (DsgenError, OSError) as error:
            text = str(error) if isinstance(error, DsgenError) else reason_of(error)
            return PlainTextResponse(text, 500, _HEADERS)

    return Starlette(
        routes=[Route("/{name:path}", answer, methods=["GET", "HEAD"])],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=_HOSTS, www_redirect=False)],
    )


def _missing(name: str) -> Response:
    return PlainTextResponse(f"{name}: no such file", 404, _HEADERS)


def _respond(request: Request, name: str, content: Content) -> Response:
    """Answer with a file, with the part of it that is asked for, or that the browser has it already."""
    tag = f'"{content.tag}"'
    headers = _HEADERS | {"etag": tag, "accept-ranges": "bytes", "content-type": _type_of(name)}
    if name in _WORKERS:
        headers["content-security-policy"] = _WORKER_POLICY
    known = request.headers.get("if-none-match")
    if known is not None and (
        known.strip() == "*" or tag in [each.strip().removeprefix("W/") for each in known.split(",")]
    ):
        return Response(status_code=304, headers=headers)
    asked = request.headers.get("range") if request.headers.get("if-range", tag) == tag else None
    start, stop, status = 0, content.size, 200
    part = None if asked is None or request.method != "GET" else _parse_range(asked, content.size)
    if part is not None:
        start, stop = part
        if start >= stop:
            return Response(status_code=416, headers=headers | {"content-range": f"bytes */{content.size}"})
        status, headers = 206, headers | {"content-range": f"bytes {start}-{stop - 1}/{content.size}"}
    headers["content-length"] = str(stop - start)
    if request.method == "HEAD":
        return Response(status_code=status, headers=headers)
    if stop - start <= _PIECE_BYTES:
        return Response(content.read(start, stop - start), status, headers)
    return StreamingResponse(_pieces(content, start, stop), status, headers)


def _type_of(name: str) -> str:
    suffix = "." + name.rpartition(".")[2]
    kind = _TYPES.get(suffix) or mimetypes.types_map.get(suffix, "application/octet-stream")
    return f"{kind}; charset=utf-8" if kind in _TEXT else kind


def _pieces(content: Content, start: int, stop: int) -> Iterator[bytes]:
    for first in range(start, stop, _PIECE_BYTES):
        yield content.read(first, min(_PIECE_BYTES, stop - first))


def _parse_range(text: str, size: int) -> tuple[int, int] | None:
    """Return first and last byte, exclusive, of a range; an empty one cannot be satisfied, and None is no single range.

    Servers may ignore what is no single range of bytes (RFC 9110, 14.2).
    """
    found = _RANGE.fullmatch(text.strip())
    if found is None or not (found[1] or found[2]):
        return None
    if not found[1]:
        return size - min(int(found[2]), size), size
    first, last = int(found[1]), int(found[2] or size)
    return None if last < first else (min(first, size), min(last + 1, size))


def listen(port: int) -> socket.socket:
    """Return a socket that listens on this machine, on a free port for 0.

    Raises `InvalidValueError` for a port that cannot be, or that another program uses.
    """
    check_rules([(0 <= port <= 65535, "port", port, "0 to 65535")])
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((HOST, port))
        listening.listen(128)
    except OSError as error:
        listening.close()
        remedy = "choose another, or leave it out for a free one"
        raise InvalidValueError("--port", f"got {port}, which cannot be used ({reason_of(error)})", remedy) from error
    return listening


def serve(trees: Mapping[str, Tree], listening: socket.socket, ready: Callable[[str], None]) -> None:
    """Serve until Ctrl-C or SIGTERM, either of which raises `KeyboardInterrupt` where dsgen handles signals.

    `ready` is called with the address once requests are answered.
    """
    config = uvicorn.Config(
        make_app(trees), log_level="warning", access_log=False, lifespan="off", ws="none", timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    address = f"http://{HOST}:{listening.getsockname()[1]}/"

    def announce() -> None:
        while not (server.started or server.should_exit):
            time.sleep(0.01)
        if server.started:
            ready(address)

    waiting = threading.Thread(target=announce, daemon=True)
    waiting.start()
    try:
        server.run(sockets=[listening])
    finally:
        server.should_exit = True
        waiting.join(timeout=5)
        listening.close()
