"""Stage three: pack a corpus into the shards of a store.

The unit of work is a block, whole chunks of consecutive rows, one file of every picture array: a pure function of the
corpus and the rows. A shard is filled under its name plus `.partial`; a record beside each finished block says that
it is there and what it adds to the statistics. Sealing a shard moves the records' sum into its attributes and gives
it its name. `index.json` comes last and holds nothing that the shards do not tell, so a lost shard can be made again.
"""

import hashlib
import logging
import math
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import zarr

from dsgen import __version__, layout, store
from dsgen.corpus import Corpus
from dsgen.errors import DsgenError
from dsgen.jobs import check_jobs, run_blocks
from dsgen.plan import SPLITS, split_counts

log = logging.getLogger("dsgen")

_RECORDS = "blocks"
_SHARD = re.compile(r"shard-\d+-of-(\d+)\.zarr(\.partial)*")


def pack(
    corpus: Path = Path("corpus"),
    out: Path = Path("shards"),
    *,
    shards: int = 6,
    max_flip_error: float | None = None,
    jobs: int | None = None,
) -> dict[str, Any]:
    """Pack a corpus into `shards` shards, or go on with them, and return the counts.

    Depth is packed when the corpus is labelled and left out with a warning when it is not. Rows whose depth and that
    of their mirror image disagree by more than `max_flip_error` keep their place and leave their split: they become
    `unused`, and the index counts them as `left_out`. Raises `DsgenError` for half labelled corpora, and for a folder
    that holds anything else than an unfinished or finished store of the same corpus and number of shards.
    """
    workers = check_jobs(jobs)
    opened = Corpus(corpus)
    chunk = store.chunk_rows(opened.positions, opened.size)
    bounds = shard_bounds(len(opened), chunk, shards)
    made_from = _made_from(opened, shards, chunk) | _leave_out(opened, max_flip_error)
    _check_out(out, made_from)
    with layout.lock(out):
        index = out / layout.INDEX
        names = [layout.shard_name(k, shards) for k in range(shards)]
        if index.exists() and all((out / name).is_dir() for name in names):
            return _summary(store.Store(out), packed=0)
        # no index while anything is missing: it vouches for the whole
        index.unlink(missing_ok=True)
        packed = _fill(opened, out, names, bounds, made_from, workers)
        layout.write_json(index, _make_index(opened, out, names, bounds, made_from, workers))
        return _summary(store.Store(out), packed)


def shard_bounds(rows: int, chunk: int, shards: int) -> list[tuple[int, int]]:
    """Divide rows into shards of as many whole chunks each, give or take one: first and last row, exclusive."""
    chunks = -(-rows // chunk)
    if not 1 <= shards <= chunks:
        raise DsgenError(
            f"--shards: got {shards}, expected 1 to {chunks}, since {rows:,} rows make {chunks:,} chunks of {chunk}"
        )
    edges = [min(k * chunks // shards * chunk, rows) for k in range(shards + 1)]
    return list(pairwise(edges))


def _made_from(corpus: Corpus, shards: int, chunk: int) -> dict[str, Any]:
    """Everything a store's bytes depend on, checked: what a later run has to bring again to go on."""
    return {
        "format": store.FORMAT,
        "corpus_sha256": hashlib.sha256((corpus.path / layout.CORPUS_JSON).read_bytes()).hexdigest(),
        "parameters": corpus.manifest["parameters"],
        "rows": len(corpus),
        "shards": shards,
        "chunk_rows": chunk,
        "block_rows": store.block_rows(chunk, corpus.size),
        "depth": _depth_labels(corpus),
    }


def _leave_out(corpus: Corpus, max_flip_error: float | None) -> dict[str, Any]:
    """Take the rows with doubtful depth out of their splits, in the plan of the corpus as opened; say how many."""
    if max_flip_error is None:
        return {}
    if not max_flip_error > 0:
        raise DsgenError(f"--max-flip-error: got {max_flip_error}, expected more than 0, such as 0.2")
    if corpus.flip_error is None:
        raise DsgenError(
            f"--max-flip-error: {corpus.path / layout.DEPTH} holds no flip errors; remove it and run "
            "dsgen depth --check-flip"
        )
    doubtful = corpus.flip_error > max_flip_error
    left_out = int((doubtful & (corpus.plan["split"] != SPLITS.index("unused"))).sum())
    corpus.plan = corpus.plan.copy()
    corpus.plan["split"][doubtful] = SPLITS.index("unused")
    return {"max_flip_error": max_flip_error, "left_out": left_out}


def _depth_labels(corpus: Corpus) -> dict[str, Any] | None:
    """Return how the depth labels were made, or None, with a warning, where there are none."""
    path = corpus.path / layout.DEPTH
    if corpus.relative is not None:
        raise DsgenError(
            f"{path}: labelled by {corpus.depth_attributes['model']}, which answers no metres; remove it and label "
            "with --metric-reference, or with a metric model"
        )
    if corpus.depth is None:
        log.warning(
            "%s: no depth labels, packed without; run dsgen depth %s first to have them", corpus.path, corpus.path
        )
        return None
    attributes = corpus.depth_attributes
    expected = (len(corpus), corpus.size, corpus.size)
    if corpus.depth.shape != expected or corpus.depth.dtype != np.uint16:
        raise DsgenError(
            f"{path}: got depth of {corpus.depth.dtype} {corpus.depth.shape}, expected uint16 {expected}; "
            "remove it and run dsgen depth again"
        )
    lacking = len(corpus) - corpus.labelled_rows()
    if lacking or not attributes.get("complete"):
        raise DsgenError(
            f"{path}: labels unfinished, {lacking:,} of {len(corpus):,} rows lack depth; run dsgen depth {corpus.path} "
            f"to go on, or remove {path} to pack without"
        )
    return {name: value for name, value in attributes.items() if name != "complete"}


def _check_out(out: Path, made_from: dict[str, Any]) -> None:
    """Refuse a folder that is something else, and a store made from anything else."""
    if out.exists() and not out.is_dir():
        raise DsgenError(f"--out: {out} is a file, expected a folder or nothing; choose another name")
    entries = sorted(p.name for p in out.iterdir()) if out.is_dir() else []
    known = {layout.INDEX, layout.partial(Path(layout.INDEX)).name, layout.LOCK}
    others = [name for name in entries if name not in known and not _SHARD.fullmatch(name)]
    if others:
        raise DsgenError(f"--out: {out} holds other files ({', '.join(others[:5])}); choose another name")
    found = [name for name in entries if _SHARD.fullmatch(name) and not name.endswith(".partial.partial")]
    before = [store.shard_attributes(out / name).get("made_from", {}) for name in found]
    if (out / layout.INDEX).is_file():
        before.append(layout.read_json(out / layout.INDEX).get("made_from", {}))
    now = _flat(made_from)
    for was in map(_flat, before):
        differences = [
            f"{name.replace('_', ' ')} {now.get(name, 'none')} (the store has {was.get(name, 'none')})"
            for name in dict.fromkeys([*now, *was])
            if now.get(name) != was.get(name)
        ]
        if differences:
            raise DsgenError(
                f"{out}: packed from other inputs: got {'; '.join(differences)}; use the same, or another --out, "
                "or remove this one"
            )


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name} ") if isinstance(value, dict) else {prefix + name: value}
    return flat


def _fill(
    corpus: Corpus,
    out: Path,
    names: list[str],
    bounds: list[tuple[int, int]],
    made_from: dict[str, Any],
    workers: int,
) -> int:
    """Write every shard that is not there; return the rows packed now."""
    block = made_from["block_rows"]
    tasks: list[tuple[Any, ...]] = []
    waiting: list[Path] = []
    done = 0
    for name, (first, last) in zip(names, bounds, strict=True):
        if (out / name).is_dir():
            done += last - first
            continue
        unfinished = layout.partial(out / name)
        if not unfinished.is_dir():
            _create(corpus, unfinished, first, last, made_from)
        waiting.append(out / name)
        sealed = "sums" in store.shard_attributes(unfinished)
        for start in range(first, last, block):
            stop = min(start + block, last)
            if sealed or _record(unfinished, start - first).exists():
                done += stop - start
            else:
                tasks.append((str(corpus.path), made_from["corpus_sha256"], str(unfinished), first, start, stop))
    packed = run_blocks(pack_block, tasks, jobs=workers, title="pack", total=len(corpus), done=done) if tasks else 0
    for shard in waiting:
        _seal(shard)
    return packed


def _create(corpus: Corpus, path: Path, first: int, last: int, made_from: dict[str, Any]) -> None:
    rows = corpus.plan[first:last]
    numbers, counts = np.unique(rows["background"], return_counts=True)
    background_sums: dict[str, Any] = {"count": 0, "sum": [0] * 3, "squares": [0] * 3}
    for number, times in zip(numbers.tolist(), counts.tolist(), strict=True):
        background_sums = _total([background_sums, _scaled(_sums(corpus.background(number)[None]), times)])
    attributes = {
        "dsgen": __version__,
        "made_from": made_from,
        "first_row": first,
        "splits": list(SPLITS),
        "backgrounds": corpus.manifest["backgrounds"],
        "foregrounds": corpus.manifest["foregrounds"],
        "background_sums": background_sums,
    }
    with layout.write_folder(path) as unfinished:
        store.create_shard(
            unfinished,
            first,
            rows,
            corpus.background,
            size=corpus.size,
            chunk=made_from["chunk_rows"],
            block=made_from["block_rows"],
            depth=made_from["depth"] is not None,
            attributes=attributes,
        )
        (unfinished / _RECORDS).mkdir()


def _record(shard: Path, first: int) -> Path:
    return shard / _RECORDS / f"{first:09d}.json"


@lru_cache(maxsize=1)
def _open(path: str, _sha256: str) -> Corpus:
    return Corpus(path)


def pack_block(corpus: str, sha256: str, shard: str, shard_first: int, start: int, stop: int) -> int:
    """Pack rows `start` to `stop`, exclusive, of a corpus into a shard that begins at row `shard_first`."""
    opened = _open(corpus, sha256)
    image, mask = opened.render(opened.plan[start:stop])
    pictures = {"image": image, "mask": mask}
    sums = {"image": _sums(image), "mask": {"count": mask.size, "sum": [int(np.count_nonzero(mask))]}}
    if "depth" in zarr.open_group(shard, mode="r", use_consolidated=False):
        assert opened.depth is not None
        pictures["depth"] = opened.depth[start:stop]  # type: ignore[assignment]
        sums["depth"] = _depth_sums(pictures["depth"])
    store.write_block(Path(shard), start - shard_first, pictures)
    layout.write_json(_record(Path(shard), start - shard_first), sums)
    return stop - start


def _seal(final: Path) -> None:
    """Give a shard whose blocks are all there its statistics and its name."""
    unfinished = layout.partial(final)
    attributes = store.shard_attributes(unfinished)
    if "sums" not in attributes:
        paths = sorted(path for path in (unfinished / _RECORDS).iterdir() if path.suffix == ".json")
        records = [layout.read_json(path) for path in paths]
        sums = {part: _total([record[part] for record in records]) for part in records[0]}
        store.add_attributes(unfinished, {"sums": sums | {"background": attributes["background_sums"]}})
    shutil.rmtree(unfinished / _RECORDS, ignore_errors=True)
    store.seal_shard(unfinished)
    unfinished.rename(final)


def _sums(image: np.ndarray) -> dict[str, Any]:
    """Count pixels and add up values and squares of every channel of (n,S,S,3) u1, exactly."""
    side = image.shape[2]
    lines = image.reshape(-1, side, 3)
    step = max(1, 2**24 // side)  # calcHist counts in float32, which holds whole numbers up to 2**24
    histogram = np.zeros((3, 256), np.int64)
    for first in range(0, len(lines), step):
        for channel in range(3):
            counts = cv2.calcHist([lines[first : first + step]], [channel], None, [256], [0, 256])
            histogram[channel] += counts.ravel().astype(np.int64)
    values = np.arange(256)
    return {
        "count": lines.shape[0] * side,
        "sum": (histogram @ values).tolist(),
        "squares": (histogram @ values**2).tolist(),
    }


def _depth_sums(depth_mm: np.ndarray) -> dict[str, Any]:
    """Count valid pixels and add up values and squares of (n,S,S) u2, exactly."""
    count = total = squares = 0
    for one in depth_mm:
        wide = one.astype(np.uint32)
        count += int(np.count_nonzero(wide))
        total += int(wide.sum(dtype=np.uint64))
        squares += int(np.square(wide, out=wide).sum(dtype=np.uint64))
    return {"count": count, "sum": [total], "squares": [squares]}


def _scaled(sums: dict[str, Any], times: int) -> dict[str, Any]:
    return {
        name: [v * times for v in value] if isinstance(value, list) else value * times for name, value in sums.items()
    }


def _total(parts: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        name: [sum(values) for values in zip(*(part[name] for part in parts), strict=True)]
        if isinstance(parts[0][name], list)
        else sum(part[name] for part in parts)
        for name in parts[0]
    }


def _statistics(sums: dict[str, Any], scale: float) -> dict[str, list[float] | None]:
    """Mean and standard deviation of whole-number sums, divided by `scale`; None where nothing was counted."""
    count = sums["count"]
    if not count:
        return {"mean": None, "std": None}
    squares = sums.get("squares", sums["sum"])  # of zeros and ones the sum is the sum of squares
    return {
        "mean": [total / count / scale for total in sums["sum"]],
        "std": [
            math.sqrt((count * square - total * total) / (count * count)) / scale
            for total, square in zip(sums["sum"], squares, strict=True)
        ],
    }


def _make_index(
    corpus: Corpus,
    out: Path,
    names: list[str],
    bounds: list[tuple[int, int]],
    made_from: dict[str, Any],
    workers: int,
) -> dict[str, Any]:
    """Gather what the shards say; hash each."""
    with ThreadPoolExecutor(workers) as pool:
        hashes = list(pool.map(lambda name: store.hash_shard(out / name), names))
    sums = [store.shard_attributes(out / name)["sums"] for name in names]
    scales = {"image": 255, "background": 255, "mask": 1, "depth": 1000}
    return {
        "format": store.FORMAT,
        "dsgen": __version__,
        "rows": len(corpus),
        "size": corpus.size,
        "splits": split_counts(corpus.plan),
        "depth": made_from["depth"],
        "left_out": made_from.get("left_out", 0),
        "statistics": {
            part: _statistics(_total([s[part] for s in sums]), scale)
            for part, scale in scales.items()
            if part in sums[0]
        },
        "made_from": made_from,
        "shards": [
            {
                "name": name,
                "first_row": first,
                "rows": last - first,
                "splits": split_counts(corpus.plan[first:last]),
                "bytes": store.shard_bytes(out / name),
                "image_bytes": store.shard_bytes(out / name, "image"),
                "sha256": digest,
            }
            for name, (first, last), digest in zip(names, bounds, hashes, strict=True)
        ],
    }


def _summary(packed_store: store.Store, packed: int) -> dict[str, Any]:
    shards = packed_store.index["shards"]
    return {
        "store": str(packed_store.path),
        "rows": packed_store.rows,
        "shards": len(shards),
        "packed": packed,
        "already_there": packed_store.rows - packed,
        "depth": packed_store.has_depth,
        "left_out": packed_store.index.get("left_out", 0),
        "bytes": sum(shard["bytes"] for shard in shards),
        "image_bytes_per_row": round(sum(shard["image_bytes"] for shard in shards) / packed_store.rows),
        "splits": packed_store.splits,
    }
