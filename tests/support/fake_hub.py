"""A hub of Hugging Face, as far as uploads to dataset repositories need one: files in a folder, served on 127.0.0.1."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

TOKEN = "hf_S3CRETtoken"


class FakeHub:
    """What the hub has and does.

    `repositories` is by name whether each is private; the files of one are in `folder / name`. `objects` are the large
    files that were received, by hash. `requests` are method and path of all requests. `refuse` has the status to answer
    with instead, by the beginning of method and path; `refuse_after` how many such requests are let through before.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.repositories: dict[str, bool] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.refuse: dict[str, int] = {}
        self.refuse_after = 0
        self.commits = 0
        self.endpoint = ""

    def files(self, name: str) -> dict[str, bytes]:
        """The files of a repository, by name."""
        root = self.folder / name
        return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}

    def count(self, beginning: str) -> int:
        """How many requests began so."""
        return sum(request.startswith(beginning) for request in self.requests)


@contextmanager
def serve(folder: Path) -> Iterator[FakeHub]:
    """Serve an empty hub, with its files in a folder."""
    hub = FakeHub(folder)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub

    def log_message(self, *_: Any) -> None:
        """Print nothing."""

    def do_GET(self) -> None:
        """Answer."""
        self._work()

    do_POST = do_PUT = do_GET

    def _work(self) -> None:
        hub, request = self.hub, f"{self.command} {self.path}"
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        hub.requests.append(request)
        for beginning, status in hub.refuse.items():
            if request.startswith(beginning) and hub.count(beginning) > hub.refuse_after:
                return self._answer(status, {"error": "so it was asked for"})
        large = self.command == "PUT"
        if not large and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._answer(401, {"error": "Invalid credentials"})
        if large:
            oid = self.path.rpartition("/")[2]
            assert hashlib.sha256(body).hexdigest() == oid
            hub.objects[oid] = body
            return self._answer(200, {})
        if self.path == "/api/whoami-v2":
            return self._answer(200, {"name": "me", "type": "user"})
        if self.path == "/api/validate-yaml":
            card = json.loads(body)["content"]
            assert isinstance(yaml.safe_load(card.split("---")[1]), dict)
            return self._answer(200, {"errors": [], "warnings": []})
        if self.path == "/api/repos/create":
            return self._create(json.loads(body))
        return self._of_a_repository(body)

    def _create(self, asked: dict[str, Any]) -> None:
        assert asked["type"] == "dataset"
        name = f"{asked['organization']}/{asked['name']}"
        url = f"{self.hub.endpoint}/datasets/{name}"
        if name in self.hub.repositories:
            return self._answer(409, {"error": "it exists", "url": url})
        self.hub.repositories[name] = asked["private"] if "private" in asked else asked["visibility"] == "private"
        return self._answer(200, {"url": url})

    def _of_a_repository(self, body: bytes) -> None:
        path = self.path.partition("?")[0].removeprefix("/api").removeprefix("/datasets/")
        owner, name, *rest = path.split("/")
        repository = f"{owner}/{name.removesuffix('.git')}"
        if repository not in self.hub.repositories:
            return self._answer(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        files = self.hub.files(repository)
        if not rest or rest[0] == "revision":
            about = {"id": repository, "private": self.hub.repositories[repository], "sha": str(self.hub.commits)}
            return self._answer(200, about | {"siblings": [{"rfilename": name} for name in files]})
        if rest[0] == "preupload":
            return self._answer(200, {"files": [_mode(file["path"], files) for file in json.loads(body)["files"]]})
        if rest[-1] == "batch":
            return self._answer(200, {"objects": [self._where_to(each) for each in json.loads(body)["objects"]]})
        if rest[0] != "commit":
            return self._answer(404, {"error": f"no {self.path} here"})
        for line in map(json.loads, body.splitlines()):
            if line["key"] != "header":
                self._write(self.hub.folder / repository / line["value"]["path"], line)
        self.hub.commits += 1
        url = f"{self.hub.endpoint}/datasets/{repository}/commit/{'1' * 40}"
        return self._answer(200, {"commitUrl": url, "commitOid": "1" * 40})

    def _where_to(self, asked: dict[str, Any]) -> dict[str, Any]:
        oid = asked["oid"]
        to = {"upload": {"href": f"{self.hub.endpoint}/objects/{oid}"}}
        return {"oid": oid, "size": asked["size"]} | ({} if oid in self.hub.objects else {"actions": to})

    def _write(self, path: Path, line: dict[str, Any]) -> None:
        value = line["value"]
        content = self.hub.objects[value["oid"]] if line["key"] == "lfsFile" else base64.b64decode(value["content"])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    def _answer(self, status: int, values: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        content = json.dumps(values).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


def _mode(path: str, files: dict[str, bytes]) -> dict[str, Any]:
    """Say how a file is to be uploaded, and the hash that git or LFS has of the one that is there."""
    large = path.endswith(".parquet")
    found: dict[str, Any] = {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
    if path in files:
        content = files[path]
        blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        found["oid"] = hashlib.sha256(content).hexdigest() if large else blob
    return found
