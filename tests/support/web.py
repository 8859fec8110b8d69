"""Web servers for tests of the page: dsgen's own, plain ones of files, and a browser."""

import http.client
import http.server
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn

from dsgen.views.server import listen, make_app
from dsgen.views.view import PageTree, look_at

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
BROWSER_OPTIONS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@contextmanager
def served(path: Path | str) -> Iterator[str]:
    """Serve a corpus, a store or a run as `dsgen view` does; yield the address."""
    shown = look_at(path)
    app = make_app({"": PageTree(shown.view), **shown.trees})
    listening = listen(0)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off", ws="none"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
    finally:
        server.should_exit = True
        thread.join()
        listening.close()


class PlainHandler(http.server.SimpleHTTPRequestHandler):
    """The server of `python -m http.server`, which ignores Range; it says nothing."""

    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *arguments: Any) -> None:
        """Say nothing."""


class RangeHandler(PlainHandler):
    """The same with single ranges."""

    def do_GET(self) -> None:
        """Answer with the range that is asked for, or with the file."""
        path = Path(self.translate_path(self.path))
        found = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if found is None or not path.is_file():
            super().do_GET()
            return
        content = path.read_bytes()
        first = len(content) - int(found[2]) if not found[1] else int(found[1])
        first, last = max(0, first), min(len(content), int(found[2]) + 1 if found[1] and found[2] else len(content))
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{last - 1}/{len(content)}")
        self.send_header("Content-Length", str(last - first))
        self.end_headers()
        self.wfile.write(content[first:last])


@contextmanager
def serving_files(folder: Path, handler: type[PlainHandler] = RangeHandler) -> Iterator[str]:
    """Serve the files of a folder; yield the address."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def ask(address: str, name: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
    """Send a request as it is, with nothing of its path normalised; return status, headers and body."""
    host = address.removeprefix("http://").rstrip("/")
    connection = http.client.HTTPConnection(host, timeout=30)
    try:
        connection.request(method, f"/{name}", headers={key.replace("_", "-"): value for key, value in headers.items()})
        answer = connection.getresponse()
        return answer.status, {key.lower(): value for key, value in answer.getheaders()}, answer.read()
    finally:
        connection.close()
