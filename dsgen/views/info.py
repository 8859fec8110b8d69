"""Say what a corpus or a store is, in words and numbers."""

from pathlib import Path

import numpy as np

from dsgen.corpus.build import picture_folders_done
from dsgen.corpus.corpus import Corpus
from dsgen.errors import NotFoundError
from dsgen.io.filesystem import is_url
from dsgen.store.layout import INDEX_JSON, PACKING


def describe(place: Path | str) -> str:
    """Describe the corpus or store at a folder or URL, a line per fact; raise `DsgenError` where there is neither."""
    path = Path(place)
    begun = (INDEX_JSON, PACKING)
    if is_url(place) or any((path / name).exists() for name in begun) or any(path.glob("shard-*")):
        return describe_store(place)
    if not path.is_dir():
        raise NotFoundError(path, "no such folder, expected a corpus or a store", "run dsgen composite")
    return describe_corpus(path)


def describe_corpus(path: Path) -> str:
    """Describe a corpus: what it was made from, how far its pictures and labels are, its splits."""
    corpus = Corpus(path)
    manifest, parameters = corpus.manifest, corpus.manifest["parameters"]
    backgrounds = len(manifest["backgrounds"])
    drawn = sum(picture_folders_done(path, b) for b in range(backgrounds)) * corpus.rows_per_background
    lines = {
        "corpus": f"{path} (format {manifest['format']}, dsgen {manifest['dsgen']})",
        "rows": f"{len(corpus):,} = {backgrounds} backgrounds x {len(manifest['foregrounds'])} foregrounds"
        f"{' x 2 (mirrored too)' if parameters['flip'] else ''} x {parameters['positions']} positions",
        "size": f"{corpus.size} px stored, {corpus.label_size} px labelled, "
        f"foregrounds {parameters['fg_height']} px high",
        "splits": _splits(manifest["splits"]),
        "seed": str(parameters["seed"]),
        "pictures": _share(drawn, len(corpus), "drawn", "none; everything downstream works without"),
        "depth": _depth_line(corpus),
    }
    if corpus.flip_error is not None:
        lines["flip error"] = _flip_line(corpus.flip_error)
    return _table(lines)


def _depth_line(corpus: Corpus) -> str:
    if not corpus.depth_attributes:
        return "not labelled; run dsgen depth"
    attributes = corpus.depth_attributes
    made = corpus.labelled_rows()
    text = _share(made, len(corpus), "labelled", "not labelled")
    text += f", by {attributes['model']}, weights {attributes['weights_sha256'][:12]}"
    if corpus.depth is None:
        return text + "; relative inverse depth, no metres"
    if made:
        some = np.sort(np.random.default_rng(0).choice(len(corpus), min(64, len(corpus)), replace=False))
        depth = np.stack([corpus.depth[int(row)] for row in some])
        depth = depth[depth > 0] / 1000
        low, middle, high = np.percentile(depth, [1, 50, 99])
        text += f"; 1st, 50th, 99th percentile {low:.2f}, {middle:.2f}, {high:.2f} m ({len(some)} rows looked at)"
    return text


def _flip_line(errors: np.ndarray) -> str:
    errors = errors[np.isfinite(errors)]
    if not errors.size:
        return "none measured yet"
    shares = np.percentile(errors, [5, 50, 95, 99])
    worst = ", ".join(f"{(errors > limit).mean():.1%} above {limit}" for limit in (0.1, 0.2, 0.4))
    return "5th, 50th, 95th, 99th percentile {:.3f}, {:.3f}, {:.3f}, {:.3f}; ".format(*shares) + worst


def describe_store(place: Path | str) -> str:
    """Describe a store: shards, bytes, splits and the statistics its index holds."""
    from dsgen.store.reader import Store

    store = Store(place)
    index = store.index
    size = sum(store.files.sizes().values())
    kind = "pictures" if "parameters" not in index["made_from"] else "recipe" if store.shards[0].recipe else "pixels"
    ending = ", zipped" if index["shards"][0]["name"].endswith(".zip") else ""
    lines = {
        "store": f"{place}, complete, {len(index['shards'])} shards ({kind}{ending})",
        "rows": f"{store.rows:,}",
        "size": f"{store.size} px, {size / 1e6:,.1f} MB in all, {size / store.rows / 1e3:,.1f} kB a row",
        "parts": ", ".join(store.parts) + ("" if store.has_depth else "; no depth"),
        "splits": _splits(index["splits"]),
    }
    if index.get("left_out"):
        lines["left out"] = f"{index['left_out']:,} rows with a flip error above {index['made_from']['max_flip_error']}"
    for part, numbers in index["statistics"].items():
        lines[part] = ", ".join(f"{name} {_number(value)}" for name, value in numbers.items())
    return _table(lines)


def _number(value: object) -> str:
    if isinstance(value, list):
        return " ".join(_number(v) for v in value)
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _splits(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.items())


def _share(done: int, total: int, verb: str, none: str) -> str:
    if done == 0:
        return none
    return f"complete, {total:,} {verb}" if done == total else f"incomplete, {done:,} of {total:,} {verb}"


def _table(lines: dict[str, str]) -> str:
    width = max(map(len, lines)) + 2
    return "\n".join(f"{name:<{width}}{text}" for name, text in lines.items())
