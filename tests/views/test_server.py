"""The server of `dsgen view`: ranges, entity tags, what it serves and what it refuses; rows that are drawn, as Zarr."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import zarr
from support.runs import make_run
from support.web import ask, served, serving_files

from dsgen.errors import DsgenError, NotFoundError
from dsgen.io.filesystem import open_files
from dsgen.store.packing import pack
from dsgen.store.reader import Store
from dsgen.views.server import listen
from dsgen.views.trees import FilesTree
from dsgen.views.view import look_at


@pytest.fixture(scope="module")
def address(store: Path) -> Iterator[str]:
    """The address of the store."""
    with served(store) as address:
        yield address


def image_file(store: Path) -> tuple[str, bytes]:
    """Name and content of a sharded file of the store, as it is served."""
    path = sorted(store.glob("*.zarr/image/c/0/0/0/0"))[0]
    return f"data/0/{path.relative_to(store).as_posix()}", path.read_bytes()


def test_files_of_a_store_are_served_as_they_are(store: Path, address: str):
    """Whole, to HEAD without a body, and not again to who has them."""
    name, content = image_file(store)
    status, headers, body = ask(address, name)
    assert (status, body) == (200, content)
    assert headers["accept-ranges"] == "bytes"
    assert headers["content-length"] == str(len(content))
    status, head, body = ask(address, name, "HEAD")
    assert (status, body) == (200, b"")
    assert {key: value for key, value in head.items() if key != "date"} == {
        key: value for key, value in headers.items() if key != "date"
    }
    for known in (headers["etag"], f'"other", {headers["etag"]}', "*"):
        assert ask(address, name, If_None_Match=known)[0::2] == (304, b"")
    assert ask(address, name, If_None_Match='"other"')[0] == 200


@pytest.mark.parametrize(
    ("asked", "first", "last"),
    [("bytes=0-0", 0, 1), ("bytes=5-104", 5, 105), ("bytes=100-", 100, None), ("bytes=-36", -36, None)],
)
def test_ranges(asked: str, first: int, last: int | None, store: Path, address: str):
    """A part from the start, in the middle, to the end, and from the end."""
    name, content = image_file(store)
    status, headers, body = ask(address, name, Range=asked)
    assert (status, body) == (206, content[first:last])
    start = first % len(content)
    assert headers["content-range"] == f"bytes {start}-{start + len(body) - 1}/{len(content)}"
    assert headers["content-length"] == str(len(body))


def test_ranges_that_cannot_be(store: Path, address: str):
    """Past the end: 416 with the size. Too long: what there is. No single range: the whole file, as HTTP allows."""
    name, content = image_file(store)
    for asked in (f"bytes={len(content)}-", f"bytes={len(content) + 5}-{len(content) + 9}", "bytes=-0"):
        status, headers, _ = ask(address, name, Range=asked)
        assert (status, headers["content-range"]) == (416, f"bytes */{len(content)}")
    assert ask(address, name, Range=f"bytes=10-{10**9}")[2] == content[10:]
    assert ask(address, name, Range=f"bytes=-{10**9}")[0::2] == (206, content)
    for asked in (
        "bytes=0-1,3-4",
        "bytes=9-2",
        "bytes=-",
        "lines=1-2",
        "bytes=a-b",
        "bytes=\xb2-\xb3",
    ):
        assert ask(address, name, Range=asked)[0::2] == (200, content)
    tag = ask(address, name, "HEAD")[1]["etag"]
    assert ask(address, name, Range="bytes=0-3", If_Range=tag)[0::2] == (206, content[:4])
    assert ask(address, name, Range="bytes=0-3", If_Range='"other"')[0::2] == (200, content)


def test_large_files_are_sent_in_pieces(store: Path, monkeypatch: pytest.MonkeyPatch):
    """They are not read into memory as a whole."""
    monkeypatch.setattr("dsgen.views.server._PIECE_BYTES", 1000)
    name, content = image_file(store)
    assert len(content) > 3000
    with served(store) as address:
        assert ask(address, name)[2] == content
        assert ask(address, name, Range="bytes=7-2999")[0::2] == (206, content[7:3000])


OUTSIDE = (
    "../secret",
    "data/0/../secret",
    "data/0/../../secret",
    "data/0/%2e%2e/secret",
    "data/0/..%2fsecret",
    "data/0/shard-00000-of-00002.zarr/../../secret",
    "data/0/stray.txt",
    "data/0/shard-00000-of-00002.zarr/link",
    "data/0//etc/passwd",
    "page/../view.py",
    "page/vendor/build.sh",
    "data/0",
    "data/0/shard-00000-of-00002.zarr",
    "data/0/shard-00000-of-00002.zarr/image/c/999/0/0/0",
    "no%00where",
)


def test_nothing_else_is_served(store: Path):
    """Not what lies beside the store, nor strays in it, nor what links lead to, however it is spelt."""
    secret, stray = store.parent / "secret", store / "stray.txt"
    link = sorted(store.glob("*.zarr"))[0] / "link"
    for path in (secret, stray):
        path.write_text("not for others")
    link.symlink_to(secret)
    with served(store) as address:
        for name in OUTSIDE:
            status, _, body = ask(address, name)
            assert status == 404, name
            assert b"not for others" not in body
    for path in (link, stray, secret):
        path.unlink()


def test_only_this_machine_is_answered(address: str):
    """A name that another site has pointed at this address is refused, and nothing can be written."""
    port = address.rstrip("/").rpartition(":")[2]
    assert ask(address, "view.json", Host=f"evil.example:{port}")[0] == 400
    assert ask(address, "view.json", Host=f"localhost:{port}")[0] == 200
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        assert ask(address, "view.json", method)[0] == 405
    headers = ask(address, "view.json")[1]
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert "access-control-allow-origin" not in headers


def test_the_policy_lets_the_workers_alone_make_code(address: str):
    """The codecs need it; the page, which shows names from files, has no need."""
    assert "unsafe-eval" not in ask(address, "")[1]["content-security-policy"]
    assert "'unsafe-eval'" in ask(address, "page/worker.js")[1]["content-security-policy"]
    assert ask(address, "page/worker.js")[1]["content-type"] == "text/javascript; charset=utf-8"


PIXELS = ("image", "mask", "depth", "instance")


def drawn_rows(address: str, pictures: int = 6) -> list[dict[str, np.ndarray]]:
    """All arrays of all shards that are served, read by zarr; of `pictures` as many as that."""
    view = json.loads(ask(address, "view.json")[2])
    shards = [f"{address}{view['stores'][0]['data']}{shard['name']}" for shard in view["stores"][0]["shards"]]
    groups = [zarr.open_group(shard, mode="r") for shard in shards]
    return [
        {name: np.asarray(array[: pictures if name in PIXELS else None]) for name, array in group.arrays()}
        for group in groups
    ]


def test_a_recipe_is_drawn(recipe: Path):
    """Plain zarr reads what `Store.read` does, and every column as it is."""
    store = Store(recipe)
    with served(recipe) as address:
        shards = drawn_rows(address)
    expected = store.read(0, store.rows)
    assert set(PIXELS) <= expected.keys()
    for first, shard in zip(store.first_rows.tolist(), shards, strict=False):
        for name in PIXELS:
            assert np.array_equal(shard[name], expected[name][first : first + 6]), name
    backgrounds = [shard["background"][shard["background_index"]] for shard in shards]
    assert np.array_equal(np.concatenate(backgrounds), expected["background"])
    assert np.array_equal(np.concatenate([shard["person_box"] for shard in shards]), store.boxes)


@pytest.mark.parametrize("kind", ["corpus", "labelled_corpus", "floor_corpus"])
def test_a_corpus_is_drawn(kind: str, request: pytest.FixtureRequest, tmp_path: Path):
    """Plain zarr reads what a store of it has, of one shard."""
    path = request.getfixturevalue(kind)
    pack(path, tmp_path / "s", shards=1, jobs=1)
    packed = zarr.open_group(next((tmp_path / "s").glob("*.zarr")), mode="r")
    with served(path) as address:
        (shard,) = drawn_rows(address)
    names = {name for name, _ in packed.arrays()} - {"person_box", "person_depth"}
    assert shard.keys() == names
    for name in names:
        expected = np.asarray(packed[name][:])
        assert np.array_equal(shard[name], expected[:6] if name in PIXELS else expected), name


@pytest.mark.slow
def test_a_zipped_recipe_is_drawn(floor_corpus: Path, tmp_path: Path):
    """From its zip files."""
    pack(floor_corpus, tmp_path / "z", shards=1, recipe=True, zipped=True, jobs=1)
    with served(tmp_path / "z") as address:
        shards = drawn_rows(address)
    expected = Store(tmp_path / "z").read(0, 5)
    for name in PIXELS:
        assert np.array_equal(shards[0][name][:5], expected[name])


def test_unfinished_labels_are_no_depth(labelled_corpus: Path, tmp_path: Path):
    """Rows without a label yet have depth 0, and can be looked at."""

    shutil.copytree(labelled_corpus, tmp_path / "c")
    attributes = json.loads((tmp_path / "c/depth.zarr/zarr.json").read_text())
    attributes["attributes"]["complete"] = False
    (tmp_path / "c/depth.zarr/zarr.json").write_text(json.dumps(attributes))
    (tmp_path / "c/depth.zarr/depth/c/1/0/0").unlink()
    with served(tmp_path / "c") as address:
        (shard,) = drawn_rows(address, pictures=30)
    assert not shard["depth"][24:30].any()
    assert shard["depth"][:24].all()


def test_damage_is_said(recipe: Path, tmp_path: Path):
    """With what, why and the remedy, for the page to show."""

    shutil.copytree(recipe, tmp_path / "r")
    with served(tmp_path / "r") as address:
        for path in (tmp_path / "r").glob("*.zarr/background/c/0/0/0/0"):
            path.write_bytes(path.read_bytes()[:-9] + b"damaged!!")
        status, _, body = ask(address, "data/0/shard-00000-of-00002.zarr/image/c/0/0/0/0")
        assert status == 500
        assert b"the shard is damaged; run dsgen repair" in body
        assert ask(address, "data/0/shard-00000-of-00002.zarr/image/c/99999/0/0/0")[0] == 404


def test_a_run_shows_its_scores_and_no_checkpoint(tmp_path: Path):
    """Files of other kinds stay where they are."""
    run = make_run(tmp_path / "run")
    (run / "metrics.csv").write_text("epoch\n1\n")
    (run / "predictions").mkdir()
    (run / "predictions/epoch-001.png").write_bytes(b"png")
    (run / "notes.txt").write_text("private")
    with served(run) as address:
        assert ask(address, "run/metrics.csv")[2] == b"epoch\n1\n"
        assert ask(address, "run/predictions/epoch-001.png")[1]["content-type"] == "image/png"
        for name in ("run/checkpoints/best.pt", "run/notes.txt", "run/config.json"):
            assert ask(address, name)[0] == 404


def test_what_cannot_be_viewed_is_refused(tmp_path: Path):
    """With what it is, and what to do."""
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation/scores.json").write_text("{}")
    with pytest.raises(
        NotFoundError, match=r"an evaluation of a network, expected a corpus, a store or a run; pass .*"
    ):
        look_at(tmp_path / "evaluation")
    with pytest.raises(NotFoundError, match="no such folder, expected a corpus, a store or a run; run dsgen composite"):
        look_at(tmp_path / "nowhere")


def test_ports(tmp_path: Path):
    """One that is used, and one that cannot be."""
    with listen(0) as listening:
        port = listening.getsockname()[1]
        with pytest.raises(DsgenError, match=f"--port: got {port}, which cannot be used .*; choose another"):
            listen(port)
    with pytest.raises(DsgenError, match="--port: got 65536, expected 0 to 65535"):
        listen(65536)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 143)])
def test_signals_end_it(number: int, code: int, store: Path):
    """Ctrl-C is how one ends a server, so it is no failure. SIGTERM has the exit code that it has for every command.

    Neither says more: there is nothing to resume, and the one JSON object on stdout is the address.
    """
    command = [sys.executable, "-m", "dsgen", "view", str(store), "--no-browser", "--json"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as program:
        told = json.loads(program.stdout.readline())
        assert ask(told["url"], "view.json")[0] == 200
        program.send_signal(number)
        said, errors = program.communicate(timeout=60)
    assert (program.returncode, said, errors) == (code, b"", b"")


def test_a_store_at_a_url(labelled_corpus: Path):
    """Its files are handed on, with ranges."""
    pack(labelled_corpus, "memory://viewed/shards", shards=1, jobs=1)
    files = open_files("memory://viewed/shards")
    with served("memory://viewed/shards") as address:
        (shard,) = json.loads(ask(address, "view.json")[2])["stores"][0]["shards"]
        name = f"{shard['name']}/image/c/0/0/0/0"
        content = files.read(name)
        assert ask(address, f"data/0/{name}")[0::2] == (200, content)
        assert ask(address, f"data/0/{name}", Range="bytes=-36")[0::2] == (206, content[-36:])
        assert ask(address, f"data/0/{name}", Range="bytes=9-40")[0::2] == (206, content[9:41])
        assert ask(address, f"data/0/{name}x")[0] == 404
    files.remove("")


def test_files_of_unknown_size(tmp_path: Path):
    """As web servers list them: read as a whole."""
    (tmp_path / "a").write_bytes(b"content")
    with serving_files(tmp_path) as remote:
        tree = FilesTree(open_files(remote), {"a": None})
        content = tree.find("a")
    assert (content.size, content.read(2, 3), tree.find("b")) == (7, b"nte", None)
