"""Write the page as static files, which work from any web server or bucket that answers Range requests.

A store goes along as a whole, in `data/0/`, so that other tools can open it there too: its files are linked where the
disk allows it and take no space, and copied otherwise. Every file appears whole or not at all; `view.json` is written
last. The same command continues what was interrupted. Files that are not the page's own are refused and left alone.
"""

import contextlib
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsgen.errors import DsgenError, InvalidValueError
from dsgen.io.atomic import final_name, is_unfinished, unfinished_path, write_bytes, write_file
from dsgen.io.filesystem import Files, LocalFiles, is_url, open_files
from dsgen.io.json_files import encode_json
from dsgen.parallel.locks import LOCK, exclusive_lock
from dsgen.parallel.progress import progress
from dsgen.store.schema import read_sums
from dsgen.views.trees import FilesTree
from dsgen.views.view import VIEW_JSON, Shown, look_at, page_files

_PIECE_BYTES = 2**23
_MARK = b'content="dsgen view"'  # of the page's index.html


@dataclass(frozen=True)
class StaticPage:
    """The result of `export_page`: the folder, its files and their bytes, and how many files earlier calls wrote."""

    out: Path
    files: int
    bytes: int
    already_there: int


def export_page(path: Path | str, out: Path, *, data_url: str | None = None) -> StaticPage:
    """Write the page for a store or a run to a folder, with its data; with `data_url`, where the store is, without.

    Raises `DsgenError` for a recipe or a corpus, whose rows only a server can draw, and for a folder that has other
    files in it, and what `look_at` raises.
    """
    _check_out(path, out)
    shown = look_at(path)
    if shown.view["kind"] in ("recipe", "corpus"):
        kind, source = shown.view["kind"], "CORPUS" if shown.view["kind"] == "recipe" else path
        reason = f"a {kind} has no pictures, dsgen draws them when they are asked for; a web server of files cannot"
        raise DsgenError(
            path, reason, f"run dsgen pack {source} --out STORE, and export that, or look at it with dsgen view"
        )
    if data_url is not None:
        shown = _point_to(shown, data_url)
    elif shown.view["kind"] == "run":
        shown = _without_stores(shown)
    return _write(path, out, shown)


def _check_out(path: Path | str, out: Path) -> None:
    """Refuse a folder that lies in what is exported, or the other way round."""
    if is_url(out):
        raise InvalidValueError(
            "--export", f"got {out}, expected a folder", "export to a folder, and copy that to the URL"
        )
    if is_url(path):
        return
    source, target = Path(path).resolve(), out.resolve()
    if target.is_relative_to(source) or source.is_relative_to(target):
        raise InvalidValueError(
            "--export", f"got {out}, which is or lies in {path}, or holds it", "choose another folder"
        )


def _point_to(shown: Shown, data_url: str) -> Shown:
    if shown.view["kind"] == "run":
        raise InvalidValueError("--data-url", "not used when a run is exported", "leave it out")
    if not data_url.startswith(("http://", "https://")):
        raise InvalidValueError.expected("--data-url", data_url, "an address that begins with https:// or http://")
    (store,) = shown.view["stores"]
    return Shown(shown.view | {"stores": [store | {"data": f"{data_url.rstrip('/')}/"}]}, {})


def _without_stores(shown: Shown) -> Shown:
    """Leave the stores of a run's evaluations where they are; their rows are not shown then."""
    problem = "the store that was scored is not exported with the run; look at both with dsgen view"
    evaluations = [each | {"store": None, "problem": problem} for each in shown.view["run"]["evaluations"]]
    run = shown.view["run"] | {"evaluations": evaluations}
    return Shown(shown.view | {"stores": [], "run": run}, {"run/": shown.trees["run/"]})


@dataclass(frozen=True)
class _Source:
    """A file to be written: its content, or where it is, with its SHA-256 if that is known.

    What is `kept` is there for good once it is written; others may have changed since.
    """

    content: bytes | None = None
    files: Files | None = None
    name: str = ""
    sha256: str | None = None
    kept: bool = False


def _write(path: Path | str, out: Path, shown: Shown) -> StaticPage:
    sources = dict(_sources(path, shown))
    if out.exists() and not out.is_dir():
        raise DsgenError(out, "a file, expected a folder", "choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    with exclusive_lock(out):
        _check_files(out, sources)
        kept, nbytes = 0, 0
        with progress("view", len(sources)) as advance:
            for name, source in sources.items():
                target = out / name
                if _is_there(target, source):
                    kept += 1
                else:
                    target.parent.mkdir(parents=True, exist_ok=True)
                    _write_one(target, source)
                nbytes += target.stat().st_size
                advance(1)
    return StaticPage(out, len(sources), nbytes, kept)


def _sources(path: Path | str, shown: Shown) -> Iterator[tuple[str, _Source]]:
    """Yield all files by name, `view.json` last."""
    for name, content in page_files().items():
        yield name, _Source(content)
    for prefix, tree in shown.trees.items():
        assert isinstance(tree, FilesTree)
        files = open_files(path)
        sums = read_sums(files) if prefix != "run/" else {}
        for name in tree.names:
            yield f"{prefix}{name}", _Source(None, files, name, sums.get(name), kept=bool(sums))
    yield VIEW_JSON, _Source(encode_json(shown.view))


def _check_files(out: Path, sources: dict[str, Any]) -> None:
    """Refuse a folder in which there is what this export does not write; remove what killed ones left."""
    for path in sorted(out.rglob("*")):
        name = path.relative_to(out).as_posix()
        if path.is_dir() or (path.parent == out and path.name.startswith(LOCK)):
            continue
        ours = path.with_name(final_name(path.name)).relative_to(out).as_posix() in sources
        if name == "index.html" and _MARK not in path.read_bytes():
            ours = False
        if not ours:
            raise DsgenError(out, f"has other files in it, the first {name}", "choose an empty or a new folder")
        if is_unfinished(path.name):
            path.unlink()


def _is_there(target: Path, source: _Source) -> bool:
    """Return whether a file has its content already; refuse one of another store."""
    if not target.is_file():
        return False
    if source.content is not None:
        return target.read_bytes() == source.content
    assert source.files is not None
    if isinstance(source.files, LocalFiles) and os.path.samefile(target, source.files.path / source.name):
        return True
    if source.sha256 is None:  # a small file: an index, or one of a run
        same = target.read_bytes() == source.files.read(source.name)
    else:
        same = _hash(target) == source.sha256
    if same or not source.kept:
        return same
    raise DsgenError(target, "a file of another store, or damaged", "remove the folder, or choose another")


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_one(target: Path, source: _Source) -> None:
    if source.content is not None:
        write_bytes(target, source.content)
        return
    assert source.files is not None
    if source.sha256 is not None and isinstance(source.files, LocalFiles):
        linked = unfinished_path(target)
        with contextlib.suppress(OSError):  # another disk, or one that has no links
            os.link(source.files.path / source.name, linked)
            linked.replace(target)
            return
    with write_file(target) as file:
        start = 0
        while piece := source.files.read_range(source.name, start, _PIECE_BYTES):
            file.write(piece)
            start += len(piece)
