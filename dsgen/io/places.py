"""What a folder is, told from the names in it; and what to do where a command expected something else.

Every stage that opens a folder asks here, so that all say the same, and no remedy leads to another refusal.
"""

import os
from collections.abc import Iterable, Mapping
from enum import StrEnum
from pathlib import Path

from dsgen.errors import NotFoundError


class Kind(StrEnum):
    """What a path is, in words for an error."""

    MISSING = "no such folder"
    EMPTY = "an empty folder"
    FILE = "a file"
    CORPUS = "a corpus"
    UNFINISHED_CORPUS = "an unfinished corpus"
    STORE = "a store"
    UNFINISHED_STORE = "an unfinished store"
    SHARD = "one shard of a store"
    RUN = "a training run"
    EXPORT = "an exported set"
    LABELS = "depth labels of a folder of pictures"
    PREDICTIONS = "predictions of a network"
    EVALUATION = "an evaluation of a network"
    PICTURES = "a folder of pictures"
    OTHER = "a folder of other files"


CORPORA = (Kind.CORPUS, Kind.UNFINISHED_CORPUS)
STORES = (Kind.STORE, Kind.UNFINISHED_STORE)
_NOTHING = (Kind.MISSING, Kind.EMPTY)
# the first whose name is in the folder decides; a name ending in * stands for all that begin so
_MARKS = (
    ("corpus.json", Kind.CORPUS),
    ("plan.npy", Kind.UNFINISHED_CORPUS),
    ("sources.zarr*", Kind.UNFINISHED_CORPUS),
    ("export.json", Kind.EXPORT),
    ("index.json", Kind.STORE),
    ("SHA256SUMS", Kind.UNFINISHED_STORE),
    ("packing", Kind.UNFINISHED_STORE),
    ("shard-*", Kind.UNFINISHED_STORE),
    ("checkpoints", Kind.RUN),
    ("predictions.json", Kind.PREDICTIONS),
    ("scores.json", Kind.EVALUATION),
    ("depth.json", Kind.LABELS),
)


def recognise(path: Path | str) -> Kind:
    """Return what is at a path, finished or not; only names are looked at."""
    path = Path(path)
    shard = path.name.startswith("shard-") and path.name.endswith((".zarr", ".zarr.zip"))
    if not path.is_dir():
        if not path.exists():
            return Kind.MISSING
        return Kind.SHARD if shard else Kind.FILE
    names = os.listdir(path)
    return Kind.SHARD if shard and "zarr.json" in names and "index.json" not in names else recognise_names(names)


def recognise_names(names: Iterable[str]) -> Kind:
    """Return what a folder with these names in it is."""
    seen = [name for name in names if not name.startswith(".")]
    for mark, kind in _MARKS:
        stem = mark.removesuffix("*")
        if any(name.startswith(stem) if stem != mark else name == mark for name in seen):
            return kind
    if not seen:
        return Kind.EMPTY
    from dsgen.io.images import SUFFIXES

    return Kind.PICTURES if any(Path(name).suffix.lower() in SUFFIXES for name in seen) else Kind.OTHER


def not_a_corpus(path: Path | str, other: str = "") -> NotFoundError:
    """Return the error for a path where a corpus is expected, or `other`, such as a folder of pictures."""
    kind = recognise(path)
    if kind == Kind.CORPUS:
        return NotFoundError(Path(path) / "corpus.json", "not a file", f"remove it, then run dsgen composite {path}")
    if kind == Kind.UNFINISHED_CORPUS:
        return NotFoundError(path, str(kind), f"run dsgen composite {path}")
    remedies = {
        **dict.fromkeys(_NOTHING, f"{'check the path, or ' if other else ''}run dsgen composite {path}"),
        **dict.fromkeys(STORES, f"pass the corpus it was packed from; dsgen info {path} shows the store"),
        Kind.PICTURES: f"run dsgen composite to make one, or dsgen pack --images {path} to pack the pictures",
    }
    if other:
        remedies[Kind.FILE] = "pass the folder it is in"
    expected = f"a corpus or {other}" if other else "a corpus"
    return _wrong(expected, path, kind, remedies, f"pass {expected}; dsgen composite makes a corpus")


def not_a_store(
    path: Path | str, kind: Kind | None = None, remedies: Mapping[Kind, str] | None = None
) -> NotFoundError:
    """Return the error for a path where a finished store is expected; `kind` is what it is, for a URL."""
    kind = recognise(path) if kind is None else kind
    if kind in STORES:
        return NotFoundError(path, f"{Kind.UNFINISHED_STORE} (no index.json)", f"run dsgen pack --out {path}")
    known = {
        **dict.fromkeys(_NOTHING, f"run dsgen pack --out {path}"),
        Kind.CORPUS: f"run dsgen pack {path}, and pass the store that it makes",
        Kind.UNFINISHED_CORPUS: f"run dsgen composite {path}, then dsgen pack {path}, and pass the store that it makes",
        Kind.EXPORT: "pass the store it was exported from",
        Kind.PICTURES: f"run dsgen pack --images {path}, and pass the store that it makes",
    }
    return _wrong("a store", path, kind, known | dict(remedies or {}), "pass a store; dsgen pack makes one")


def not_a_run(path: Path | str, remedies: Mapping[Kind, str] | None = None) -> NotFoundError:
    """Return the error for a path where a training run with checkpoints is expected."""
    kind = recognise(path)
    if kind == Kind.RUN:
        return NotFoundError(path, "a run without checkpoints", f"run dsgen train --run {path}")
    known = {
        **dict.fromkeys(_NOTHING, f"run dsgen train --run {path}"),
        Kind.STORE: f"run dsgen train {path}, and pass the run that it makes",
        Kind.CORPUS: f"run dsgen pack {path}, then dsgen train, and pass the run that it makes",
        Kind.EVALUATION: f"pass {Path(path).parent}",
    }
    return _wrong("a run", path, kind, known | dict(remedies or {}), "pass a run; dsgen train makes one")


def not_a_corpus_or_store(path: Path | str) -> NotFoundError:
    """Return the error for a path where a corpus or a store is expected."""
    kind = recognise(path)
    remedies = {
        **dict.fromkeys(_NOTHING, f"run dsgen composite {path} for a corpus, or dsgen pack --out {path} for a store"),
        Kind.RUN: f"dsgen evaluate {path} scores a run",
        Kind.EXPORT: "pass the store it was exported from",
    }
    default = "run dsgen composite for a corpus, or dsgen pack for a store"
    return _wrong("a corpus or a store", path, kind, remedies, default)


def not_viewable(path: Path | str) -> NotFoundError:
    """Return the error for a path where a corpus, a store or a run is expected."""
    kind = recognise(path)
    remedies = {
        **dict.fromkeys(_NOTHING, f"run dsgen composite {path} for a corpus, or dsgen pack --out {path} for a store"),
        Kind.EXPORT: "pass the store it was exported from",
        Kind.EVALUATION: f"pass {Path(path).absolute().parent}",
        Kind.PICTURES: f"run dsgen pack --images {path}, and pass the store that it makes",
    }
    default = "run dsgen composite for a corpus, or dsgen pack for a store"
    return _wrong("a corpus, a store or a run", path, kind, remedies, default)


def _wrong(expected: str, path: Path | str, kind: Kind, remedies: Mapping[Kind, str], default: str) -> NotFoundError:
    remedy = remedies.get(kind, default)
    inside = _holder(Path(path))
    if kind == Kind.SHARD or (kind == Kind.FILE and inside is not None):
        remedy = f"pass {inside or Path(path).parent}"
    return NotFoundError(path, f"{kind}, expected {expected}", remedy)


def _holder(path: Path) -> Path | None:
    """Return the corpus, store or run that a path lies in, up to two levels above."""
    known = (*CORPORA, *STORES, Kind.RUN)
    return next((above for above in list(path.absolute().parents)[:2] if recognise(above) in known), None)
