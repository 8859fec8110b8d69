"""Who else reads a store: every reader and array, every kind of store, and the table in the README that says so."""

import json
import re
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image
from support.corpora import draw_background

from dsgen.corpus.composed import label_composed
from dsgen.store.packing import pack, pack_source
from dsgen.store.picture_source import Pictures
from dsgen.store.reader import Shard, Store

CHECKOUT = Path(__file__).parents[2]
SUPPORT = CHECKOUT / "tests" / "support"
README = CHECKOUT / "dsgen" / "store" / "README.md"
BUNDLE = CHECKOUT / "dsgen" / "views" / "page" / "vendor" / "zarrita.js"
PYTHON_READERS = ("zarr-python", "xarray", "dask", "tensorstore", "zarrs alone", "zarrs")
PACKED: dict[str, dict[str, bool]] = {
    "pixels": {},
    "compact": {"compact": True},
    "recipe": {"recipe": True},
    "zip": {"zipped": True},
    "compact zip": {"compact": True, "zipped": True},
}
NAMES = ("background_name", "foreground_name", "picture_name")

Wanted = dict[str, tuple[Path, str]]
Result = np.ndarray | str  # what was read, or why it was not


class Kind(NamedTuple):
    """The arrays of a kind of store: by key the group, which is a folder or a zip file, and the name; the truth."""

    wanted: Wanted
    truth: dict[str, np.ndarray]


def shard_arrays(shard: Shard) -> dict[str, np.ndarray]:
    """Every array of a shard, as dsgen decodes it."""
    found = {}
    for name, array in shard._arrays.items():
        starts = range(0, array.shape[0], array.chunk)
        found[name] = np.concatenate([shard._decode(array, start) for start in starts])[: array.shape[0]]
    return found


def arrays_of(kind: str, paths: list[Path]) -> Kind:
    """Everything that stores of a kind have."""
    wanted, truth = {}, {}
    for path in paths:
        for entry, shard in zip(Store(path).index["shards"], Store(path).shards, strict=True):
            for name, values in shard_arrays(shard).items():
                key = f"{kind}.{path.name}.{entry['name']}.{name}"
                wanted[key], truth[key] = (path / entry["name"], name), values
            for name in NAMES:
                pictures = shard.attributes.get(f"{name.removesuffix('_name')}s")
                if pictures:
                    key = f"{kind}.{path.name}.{name}"
                    names = [picture if isinstance(picture, str) else picture["name"] for picture in pictures]
                    wanted[key], truth[key] = (path, name), np.array(names)
    return Kind(wanted, truth)


def picture_source(folder: Path, count: int) -> Pictures:
    """Pictures of one's own with depth; one has a name beyond ASCII."""
    for name in ("rgb", "depth"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for n, name in enumerate(("ö", "a", "z")[:count]):
        Image.fromarray(draw_background(n)).save(folder / "rgb" / f"{name}.png")
        depth = np.random.default_rng(n).integers(1000, 9000, (110, 130)).astype(np.uint16)
        Image.fromarray(depth).save(folder / "depth" / f"{name}.png")
    return Pictures(folder / "rgb", depth_folder=folder / "depth", size=32, validation_share=0, test_share=0)


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory, floor_corpus: Path) -> dict[str, Kind]:
    """Stores of every kind: people in rooms, and pictures of one's own in chunks of few."""
    folder = tmp_path_factory.mktemp("readers")
    corpus = Path(shutil.copytree(floor_corpus, folder / "corpus"))
    label_composed(corpus, jobs=1)
    stores: dict[str, list[Path]] = {}
    for kind, options in PACKED.items():
        pack(corpus, folder / kind, shards=1, jobs=1, **options)
        stores[kind] = [folder / kind]
    for count in (1, 2, 3):  # all in one chunk
        for kind in ("pixels", "compact"):
            out = folder / f"{kind}-pictures{count}"
            pack_source(picture_source(folder / f"{count}", count), out, shards=1, jobs=1, **PACKED[kind])
            stores[kind].append(out)
    return {kind: arrays_of(kind, paths) for kind, paths in stores.items()}


def write_wanted(kinds: dict[str, Kind], file: Path) -> Wanted:
    """Write what is to be read for the programs that read it."""
    wanted = {key: place for kind in kinds.values() for key, place in kind.wanted.items()}
    file.write_text(json.dumps({key: [str(group), name] for key, (group, name) in wanted.items()}))
    return wanted


@pytest.fixture(scope="module")
def read_by_python(kinds: dict[str, Kind], tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Result]]:
    """What every reader for Python makes of every array."""
    folder = tmp_path_factory.mktemp("python")
    wanted = write_wanted(kinds, folder / "wanted.json")
    command = [sys.executable, "-W", "ignore", SUPPORT / "read_arrays.py", folder / "wanted.json", folder]
    subprocess.run(command, check=True, timeout=200)
    refused = json.loads((folder / "results.json").read_text())
    return {
        reader: {key: refused[reader][key] or np.load(folder / reader / f"{key}.npy") for key in wanted}
        for reader in refused
    }


def read_by_zarrita(module: Path, kinds: dict[str, Kind], folder: Path) -> dict[str, Result]:
    """What zarrita makes of every array, in node."""
    wanted = write_wanted(kinds, folder / "wanted.json")
    command = ["node", SUPPORT / "read_arrays.mjs", module, folder / "wanted.json", folder / "zarrita"]
    subprocess.run(command, check=True, timeout=200)
    found: dict[str, Result] = {}
    for key, about in json.loads((folder / "zarrita" / "results.json").read_text()).items():
        if "refuses" in about:
            found[key] = about["refuses"]
        elif about["type"] == "string":
            found[key] = np.array(json.loads((folder / "zarrita" / key).read_text()))
        else:
            dtype = about["type"].removesuffix("Array").removeprefix("Big").lower()
            found[key] = np.fromfile(folder / "zarrita" / key, dtype).reshape(about["shape"])
    assert found.keys() == wanted.keys()
    return found


def refusals(kind: Kind, found: dict[str, Result]) -> set[str]:
    """What of a kind a reader refuses, the arrays of names as one; everything else it reads exactly."""
    refused = set()
    for key, (_, name) in kind.wanted.items():
        values, truth = found[key], kind.truth[key]
        if isinstance(values, str):
            assert re.match(r"\w+(Error|Exception)\b", values), f"{key}: {values}"
            refused.add("names" if name in NAMES else name)
        else:
            assert (values.dtype.kind, values.shape) == (truth.dtype.kind, truth.shape), key
            np.testing.assert_array_equal(values, truth, err_msg=key)
    return refused


def contents(kind: Kind) -> set[str]:
    """What a kind has, the arrays of names as one."""
    return {"names" if name in NAMES else name for _, name in kind.wanted.values()}


def cell(refused: set[str], handed_on: set[str], kind: Kind) -> str:
    """What the table says of a reader and a kind."""
    if refused:
        return f"all but {', '.join(sorted(refused))}"
    if handed_on == contents(kind):
        return "all, by zarr-python"
    return f"all; {', '.join(sorted(handed_on))} by zarr-python" if handed_on else "all"


def table() -> dict[str, dict[str, str]]:
    """The table of the README: by reader and kind."""
    section = README.read_text().partition("## Who reads what\n")[2].partition("\n#")[0]
    lines = [[text.strip() for text in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"]
    kinds = lines[0][1:]
    return {line[0].strip("`"): dict(zip(kinds, line[1:], strict=True)) for line in lines[2:]}


def test_what_the_readme_says_of_python(kinds: dict[str, Kind], read_by_python: dict[str, dict[str, Result]]) -> None:
    """Every array is what dsgen reads, or is refused; and the table names what is."""
    assert set(read_by_python) == set(PYTHON_READERS)
    found = {
        reader: {kind: refusals(kinds[kind], read_by_python[reader]) for kind in kinds} for reader in PYTHON_READERS
    }
    told = table()
    assert set(told) == {*PYTHON_READERS, "zarrita"} - {"zarrs alone"}
    for reader in told.keys() - {"zarrita"}:
        handed_on = found["zarrs alone"] if reader == "zarrs" else {kind: set() for kind in kinds}
        expected = {kind: cell(found[reader][kind], handed_on[kind], kinds[kind]) for kind in kinds}
        assert told[reader] == expected, reader


def test_what_the_readme_says_of_zarrita(kinds: dict[str, Kind], tmp_path: Path) -> None:
    """By the zarrita that `dsgen view` uses, which has no store for zip files."""
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    if not BUNDLE.exists():
        pytest.skip(f"{BUNDLE.name} is missing")
    folders = {kind: kinds[kind] for kind in kinds if "zipped" not in PACKED[kind]}
    found = read_by_zarrita(BUNDLE, folders, tmp_path)
    told = table()["zarrita"]
    assert {kind: told[kind] for kind in folders} == {
        kind: cell(refusals(folders[kind], found), set(), folders[kind]) for kind in folders
    }


@pytest.fixture(scope="module")
def node_modules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which node finds zarrita as npm installs it."""
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    folder = tmp_path_factory.mktemp("node")
    command = ["npm", "install", "--no-audit", "--no-fund", "--silent", "zarrita@0.7.5"]
    if subprocess.run(command, cwd=folder, capture_output=True, timeout=120, check=False).returncode:
        pytest.skip("npm cannot install zarrita here")
    return folder


@pytest.mark.slow
def test_what_the_readme_says_of_zarrita_from_npm(kinds: dict[str, Kind], node_modules: Path, tmp_path: Path) -> None:
    """With its store for zip files too."""
    module = node_modules / "both.mjs"
    module.write_text('export * from "zarrita";\nexport { ZipFileStore } from "@zarrita/storage";\n')
    found = read_by_zarrita(module, kinds, tmp_path)
    assert table()["zarrita"] == {kind: cell(refusals(kinds[kind], found), set(), kinds[kind]) for kind in kinds}


class RangeServer(ThreadingHTTPServer):
    """A web server for the files below a folder that answers ranges."""

    def __init__(self, folder: Path):
        super().__init__(("127.0.0.1", 0), RangeHandler)
        self.folder = folder


class RangeHandler(BaseHTTPRequestHandler):
    """What it answers."""

    server: RangeServer

    def do_HEAD(self) -> None:
        """Answer as to GET, without the content."""
        self.answer()

    def do_GET(self) -> None:
        """Answer with a file, or with a range of it."""
        self.wfile.write(self.answer())

    def answer(self) -> bytes:
        """Answer but for the content, and return that."""
        path = self.server.folder / self.path.strip("/")
        content = path.read_bytes() if path.is_file() else b""
        whole = slice(0, len(content))
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if asked:
            first, last = asked.groups()
            whole = slice(int(first), int(last) + 1 if last else None) if first else slice(-int(last), None)
        self.send_response(404 if not path.is_file() else 206 if asked else 200)
        self.send_header("Content-Length", str(len(content[whole])))
        self.end_headers()
        return content[whole]

    def log_message(self, *_: object) -> None:
        """Keep the log of the tests clean."""


@pytest.mark.slow
def test_the_snippet_for_zarrita_runs(labelled_corpus: Path, node_modules: Path, tmp_path: Path) -> None:
    """That of the README, from a web server that answers ranges."""
    pack(labelled_corpus, tmp_path / "shards", shards=2, jobs=1)
    snippets = re.findall(r"^```js\n(.*?)^```$", README.read_text(), flags=re.M | re.S)
    with RangeServer(tmp_path) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}"
        (node_modules / "snippet.mjs").write_text("".join(snippets).replace("http://localhost:8000", address))
        done = subprocess.run(["node", node_modules / "snippet.mjs"], capture_output=True, text=True, timeout=60)
        server.shutdown()
    assert done.returncode == 0, done.stderr
    deepest = Store(tmp_path / "shards").read(0, 8)["depth"].max() / 1000
    assert done.stdout == f"[ 8, 48, 48 ] {deepest:g} metres\n"
