"""View a corpus, a store or a run: as a page in the browser, served on this machine or exported as static files.

The page is `dsgen/views/page`. It reads `view.json`, which says what there is to see, and Zarr:

    index.html, page/        the page
    view.json                what is shown, `format` 1: `kind`, `title`, `stores`, `run`
    data/0/                  the first of `stores`: shards of Zarr v3
    run/                     the files of a run

Every store has `rows`, `size`, `chunk` (rows that are decoded together), `fields`, `splits`, `depth_by`, `far_m` (up to
where depth is coloured), `data` (where its shards are, relative to `view.json`, or a URL) and `shards` with `name`,
`first_row` and `rows`. A run has `predictions`, the names of its sheets, and `evaluations`, each with its folder, the
index of its store or None, and why that is None.
"""

import math
import os
import socket
import sys
import webbrowser
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dsgen import __version__
from dsgen.corpus.corpus import Corpus
from dsgen.errors import DsgenError
from dsgen.io.filesystem import is_url
from dsgen.io.json_files import encode_json, read_json
from dsgen.io.places import CORPORA, STORES, Kind, not_viewable, recognise
from dsgen.secrets import hide_secrets
from dsgen.store.layout import shard_name
from dsgen.store.reader import Store
from dsgen.store.schema import describe_depth
from dsgen.units import MAX_DEPTH_M
from dsgen.views.trees import Content, CorpusRows, Tree, corpus_tree, recipe_tree, run_tree, store_tree

FORMAT = 1
PAGE = Path(__file__).parent / "page"
VIEW_JSON = "view.json"
_SAMPLED_ROWS = 16  # of a corpus, for the scale of depth
_DEVIATIONS = 2.5  # above the mean depth is where its colours end


@dataclass(frozen=True)
class Shown:
    """What there is to see: `view` is the content of `view.json`, `trees` what it refers to, by prefix."""

    view: dict[str, Any]
    trees: dict[str, Tree]


class PageTree:
    """The page, and a `view.json`."""

    def __init__(self, view: dict[str, Any]):
        self._files = page_files() | {VIEW_JSON: encode_json(view)}

    def find(self, name: str) -> Content | None:
        """Return a file."""
        return Content.of(self._files[name]) if name in self._files else None


def page_files() -> dict[str, bytes]:
    """Return the files of the page by name, without those that only make the bundle of zarrita."""
    shown = [path for path in PAGE.rglob("*") if path.suffix in (".html", ".js", ".css", ".txt") and path.is_file()]
    names = {path: path.relative_to(PAGE).as_posix() for path in sorted(shown)}
    return {
        name if name == "index.html" else f"page/{name}": path.read_bytes()
        for path, name in names.items()
        if name != "vendor/entry.js"
    }


def look_at(path: Path | str) -> Shown:
    """Open a corpus, a store or a run to be shown.

    Raises `NotFoundError` where there is none, and another `DsgenError` where it is unfinished or damaged.
    """
    kind = Kind.STORE if is_url(path) else recognise(path)
    view: dict[str, Any] = {"format": FORMAT, "dsgen": __version__, "title": hide_secrets(_title(path))}
    if kind == Kind.RUN:
        return _look_at_run(Path(path), view)
    if kind not in (*CORPORA, *STORES):
        raise not_viewable(path)
    found, tree = _open_corpus(Path(path)) if kind in CORPORA else _open_store(path)
    return Shown(view | {"kind": found["kind"], "stores": [found], "run": None}, {found["data"]: tree})


def _title(path: Path | str) -> str:
    return str(path) if is_url(path) else Path(path).absolute().name


def _open_store(path: Path | str, number: int = 0) -> tuple[dict[str, Any], Tree]:
    store = Store(path)
    recipe = store.shards[0].recipe
    described = {
        "kind": "recipe" if recipe else "store",
        "data": f"data/{number}/",
        "rows": store.rows,
        "size": store.size,
        "chunk": store.shards[0].chunk if not recipe else 1,
        "fields": list(store.fields),
        "splits": store.splits,
        "depth_by": describe_depth(store.index["made_from"]),
        "far_m": _far(store.index["statistics"].get("depth")),
        "sha256": store.sha256,
        "shards": [{name: shard[name] for name in ("name", "first_row", "rows")} for shard in store.index["shards"]],
    }
    return described, recipe_tree(store) if recipe else store_tree(store)


def _far(statistics: dict[str, Any] | None) -> float:
    """Return up to how many metres depth is coloured, from its mean and deviation in metres."""
    mean, std = ((statistics or {}).get(name) for name in ("mean", "std"))
    if not mean or not std:
        return MAX_DEPTH_M
    return max(0.5, math.ceil(2 * (mean[0] + _DEVIATIONS * std[0])) / 2)


def _open_corpus(path: Path) -> tuple[dict[str, Any], Tree]:
    corpus = Corpus(path)
    rows = CorpusRows(corpus)
    statistics = None
    if "depth" in rows.fields:
        some = np.random.default_rng(0).choice(len(corpus), min(_SAMPLED_ROWS, len(corpus)), replace=False)
        depths = np.stack([rows.draw("depth", row) for row in np.sort(some).tolist()])
        known = depths[depths > 0] / 1000
        statistics = {"mean": [float(known.mean())], "std": [float(known.std())]} if known.size else None
    labels = corpus.labels
    described = {
        "kind": "corpus",
        "data": "data/0/",
        "rows": len(corpus),
        "size": corpus.size,
        "chunk": 1,
        "fields": list(rows.fields),
        "splits": corpus.manifest["splits"],
        "depth_by": None
        if "depth" not in rows.fields
        else "composed"
        if labels is None
        else labels.attributes["model"],
        "far_m": _far(statistics),
        "sha256": corpus.sha256,
        "shards": [{"name": shard_name(0, 1), "first_row": 0, "rows": len(corpus)}],
    }
    return described, corpus_tree(corpus)


def _look_at_run(run: Path, view: dict[str, Any]) -> Shown:
    tree = run_tree(run)
    stores: list[dict[str, Any]] = []
    trees: dict[str, Tree] = {"run/": tree}
    evaluations = []
    for name in [name for name in tree.names if name.endswith("/scores.json")]:
        folder = name.partition("/")[0]
        protocol = read_json(run / name).get("protocol", {})
        number, problem = None, ""
        known = [k for k, store in enumerate(stores) if store["sha256"] == protocol.get("store_sha256")]
        if known:
            number = known[0]
        else:
            try:
                described, store_files = _open_scored_store(run, protocol, len(stores))
                trees[described["data"]] = store_files
                number = len(stores)
                stores.append(described)
            except DsgenError as error:
                problem = str(error)
        evaluations.append(
            {
                "name": folder,
                "files": [name for name in tree.names if name.startswith(f"{folder}/")],
                "store": number,
                "problem": problem,
            }
        )
    described_run = {
        "data": "run/",
        "files": [name for name in tree.names if "/" not in name],
        "predictions": [name for name in tree.names if name.startswith("predictions/")],
        "evaluations": evaluations,
    }
    return Shown(view | {"kind": "run", "stores": stores, "run": described_run}, trees)


def _open_scored_store(run: Path, protocol: dict[str, Any], number: int) -> tuple[dict[str, Any], Tree]:
    """Open the store that an evaluation names, as seen from here or from beside the run; raise a `DsgenError`."""
    named = str(protocol.get("store", ""))
    places: list[Path | str] = [named] if is_url(named) else [Path(named), run.absolute().parent / named]
    for place in places if named else []:
        if is_url(place) or recognise(place) == Kind.STORE:
            described, tree = _open_store(place, number)
            if described["sha256"] != protocol.get("store_sha256"):
                reason = "not the store that was scored, it has been packed anew"
                raise DsgenError(place, reason, "run dsgen evaluate again")
            return described, tree
    reason = "the store that was scored is not here"
    raise DsgenError(named or run, reason, "run dsgen view where dsgen evaluate was run")


def open_browser(address: str) -> bool:
    """Open the page in a browser; False where there is no screen, on which a browser in the terminal would start."""
    if sys.platform.startswith("linux") and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return False
    try:
        return webbrowser.open(address)
    except webbrowser.Error:
        return False


def view(path: Path | str, ready: Callable[[str], None], *, port: int = 0) -> None:
    """Serve the page for a corpus, a store or a run on 127.0.0.1, until Ctrl-C.

    `ready` is called with the address once it answers. `port` 0 is a free one. Raises `InvalidValueError` for a port
    that cannot be used, and what `look_at` raises.
    """
    from dsgen.views.server import listen, serve

    shown = look_at(path)
    listening: socket.socket = listen(port)
    serve({"": PageTree(shown.view), **shown.trees}, listening, ready)
