"""Describe a corpus or a store: as fields, and as text."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dsgen.corpus.composed import composed_depth
from dsgen.corpus.corpus import Corpus
from dsgen.corpus.labels import COMPOSED
from dsgen.corpus.pictures import has_composites
from dsgen.corpus.placement import FLOOR
from dsgen.store.kind import is_store
from dsgen.store.schema import describe_depth

_SAMPLED_ROWS = 64  # of which depth percentiles are taken
_DEPTH_PERCENTILES = (1, 50, 99)
_NEAR = 1.25  # ratio of two depths that are close
_FLIP_PERCENTILES = (5, 50, 95, 99)
_FLIP_LIMITS = (0.1, 0.2, 0.4)


@dataclass(frozen=True)
class DepthInfo:
    """The depth labels of a corpus.

    `metric` is False for relative inverse depth. `percentiles_m` are the 1st, 50th and 99th in metres, of
    `sampled_rows` rows chosen at random with a fixed seed; None where there is no metric depth yet.
    """

    labelled_rows: int
    model: str
    weights_sha256: str
    metric: bool
    percentiles_m: tuple[float, ...] | None
    sampled_rows: int


@dataclass(frozen=True)
class PeopleInfo:
    """How people are placed: `place` is random or floor, `per_row` how many are in a row at least and at most.

    `distances_m` are the 1st, 50th and 99th percentile of how far those on floors stand, None where none does.
    `without_floor` names the backgrounds in which no floor was found.
    """

    place: str
    per_row: tuple[int, int]
    distances_m: tuple[float, ...] | None
    without_floor: tuple[str, ...]


@dataclass(frozen=True)
class ComposedInfo:
    """How far a network's labels are from composed depth, over `sampled_rows` rows.

    `abs_rel` is the mean of |network - composed| / composed, `delta1` the share of pixels whose ratio is below 1.25, of
    all pixels and of those of people; None without labels of a network.
    """

    depth_from: dict[str, int]
    sampled_rows: int
    abs_rel: float | None
    delta1: float | None
    people_abs_rel: float | None
    people_delta1: float | None


@dataclass(frozen=True)
class FlipErrorInfo:
    """How far the depth of rows and of their mirror images disagree.

    `percentiles` are the 5th, 50th, 95th and 99th, None while nothing was measured; `above` has the share of rows
    above each of some limits.
    """

    percentiles: tuple[float, ...] | None
    above: dict[str, float]


@dataclass(frozen=True)
class CorpusInfo:
    """What a corpus holds: sizes in pixels, numbers of rows; `dsgen` is the version that made it.

    `drawn_rows` counts the rows whose picture files were drawn. `depth` is None before labelling, `flip_error` where
    it was not measured, `people` where all have one size and random places, `composed` where the depth of the
    backgrounds is not known.
    """

    path: str
    format: int
    dsgen: str
    rows: int
    backgrounds: int
    foregrounds: int
    positions: int
    flip: bool
    size: int
    label_size: int
    fg_height: int | str
    seed: int
    splits: dict[str, int]
    drawn_rows: int
    depth: DepthInfo | None
    flip_error: FlipErrorInfo | None
    kind: str = "corpus"
    skip_unused: bool = False
    people: PeopleInfo | None = None
    composed: ComposedInfo | None = None

    def table(self) -> str:
        """Format the fields as text, a line per fact."""
        return _render_corpus(self)


@dataclass(frozen=True)
class StoreInfo:
    """What a store holds.

    `content` is pixels, recipe (drawn when read) or pictures (packed from picture files). `fields` are those of
    image, mask, depth and background that it has, `bytes` the size of all its files. `left_out` counts the rows left
    out of the splits for a flip error above `max_flip_error`. `statistics` has mean and standard deviation per field.
    """

    path: str
    content: str
    zipped: bool
    compact: bool
    shards: int
    rows: int
    size: int
    bytes: int
    fields: tuple[str, ...]
    splits: dict[str, int]
    left_out: int
    max_flip_error: float | None
    depth_from: str | None
    statistics: dict[str, dict[str, Any]]
    kind: str = "store"

    def table(self) -> str:
        """Format the fields as text, a line per fact."""
        return _render_store(self)


def describe(path: Path | str) -> CorpusInfo | StoreInfo:
    """Describe the corpus or store in a folder or at a URL.

    Raises `NotFoundError` where there is neither, and another `DsgenError` where it is unfinished or damaged.

    >>> print(describe("shards").table())  # doctest: +SKIP
    store     shards, complete, 6 shards (pixels)
    rows      6,400
    """
    return describe_store(path) if is_store(path) else describe_corpus(Path(path))


def describe_corpus(path: Path) -> CorpusInfo:
    """Describe a corpus: what it was made from, how far its pictures and labels are, its splits."""
    corpus = Corpus(path)
    manifest, parameters = corpus.manifest, corpus.manifest["parameters"]
    backgrounds = len(manifest["backgrounds"])
    return CorpusInfo(
        path=str(path),
        format=manifest["format"],
        dsgen=manifest["dsgen"],
        rows=len(corpus),
        backgrounds=backgrounds,
        foregrounds=len(manifest["foregrounds"]),
        positions=parameters["positions"],
        flip=parameters["flip"],
        skip_unused=parameters.get("skip_unused", False),
        size=corpus.size,
        label_size=corpus.label_size,
        fg_height=parameters["fg_height"],
        seed=parameters["seed"],
        splits=manifest["splits"],
        drawn_rows=sum(len(corpus.rows_of(b)) for b in range(backgrounds) if has_composites(corpus, b)),
        depth=_describe_depth(corpus),
        flip_error=None if corpus.flip_error is None else _describe_flip_error(corpus.flip_error),
        people=_describe_people(corpus) if corpus.people else None,
        composed=_describe_composed(corpus),
    )


def _describe_people(corpus: Corpus) -> PeopleInfo:
    parameters, people = corpus.manifest["parameters"], corpus.plan["people"]
    distances = people["distance"][(people["height"] > 0) & (people["distance"] > 0)]
    count = (people["height"] > 0).sum(axis=1)
    return PeopleInfo(
        place=parameters.get("place", "random"),
        per_row=(int(count.min()), int(count.max())),
        distances_m=tuple((np.percentile(distances, _DEPTH_PERCENTILES) / 1000).tolist()) if len(distances) else None,
        without_floor=tuple(corpus.rooms.without_floor()) if corpus.rooms is not None else (),
    )


def _describe_composed(corpus: Corpus) -> ComposedInfo | None:
    """Say where the depth of backgrounds is from, and compare a network's finished labels with composed depth."""
    if corpus.rooms is None:
        return None
    sources = corpus.rooms.depth_sources()
    labels = corpus.labels
    if labels is None or not labels.metric or labels.attributes["model"] == COMPOSED or labels.missing_rows():
        return ComposedInfo(sources, 0, None, None, None, None)
    rows = np.sort(np.random.default_rng(0).choice(len(corpus), min(_SAMPLED_ROWS, len(corpus)), replace=False))
    composed, network = composed_depth(corpus, corpus.plan[rows]) / 1000, labels.read_rows(rows) / 1000
    _, mask = corpus.render(corpus.plan[rows])
    known = (composed > 0) & (network > 0)
    ratio = np.maximum(composed, network)[known] / np.minimum(composed, network)[known]
    error = np.abs(composed - network)[known] / composed[known]
    of_people = mask[known] > 0

    def mean(values: np.ndarray) -> float | None:
        return float(values.mean()) if len(values) else None

    near = ratio < _NEAR
    return ComposedInfo(sources, len(rows), mean(error), mean(near), mean(error[of_people]), mean(near[of_people]))


def _describe_depth(corpus: Corpus) -> DepthInfo | None:
    if corpus.labels is None:
        return None
    attributes = corpus.labels.attributes
    labelled = corpus.labelled_rows()
    percentiles_m, sampled = None, 0
    if corpus.labels.metric and labelled:
        sampled = min(_SAMPLED_ROWS, len(corpus))
        rows = np.sort(np.random.default_rng(0).choice(len(corpus), sampled, replace=False))
        depth_m = corpus.labels.read_rows(rows)
        depth_m = depth_m[depth_m > 0] / 1000
        percentiles_m = tuple(np.percentile(depth_m, _DEPTH_PERCENTILES).tolist()) if depth_m.size else None
    return DepthInfo(
        labelled_rows=labelled,
        model=attributes["model"],
        weights_sha256=attributes["weights_sha256"],
        metric=corpus.labels.metric,
        percentiles_m=percentiles_m,
        sampled_rows=sampled,
    )


def _describe_flip_error(errors: np.ndarray) -> FlipErrorInfo:
    errors = errors[np.isfinite(errors)]
    if not errors.size:
        return FlipErrorInfo(None, {})
    return FlipErrorInfo(
        percentiles=tuple(np.percentile(errors, _FLIP_PERCENTILES).tolist()),
        above={str(limit): float((errors > limit).mean()) for limit in _FLIP_LIMITS},
    )


def describe_store(path: Path | str) -> StoreInfo:
    """Describe a store: shards, bytes, splits, and the statistics that its index holds."""
    from dsgen.store.reader import Store

    store = Store(path)
    index = store.index
    packed_from_corpus = "parameters" in index["made_from"]
    kind_of_shards = "recipe" if store.shards[0].recipe else "pixels"
    return StoreInfo(
        path=str(path),
        content=kind_of_shards if packed_from_corpus else "pictures",
        zipped=index["shards"][0]["name"].endswith(".zip"),
        compact=bool(index["made_from"].get("compact")),
        shards=len(index["shards"]),
        rows=store.rows,
        size=store.size,
        bytes=sum(store.files.sizes().values()),
        fields=tuple(store.fields),
        splits=index["splits"],
        left_out=index.get("left_out") or 0,
        max_flip_error=index["made_from"].get("max_flip_error"),
        depth_from=describe_depth(index["made_from"]),
        statistics=index["statistics"],
    )


def _render_corpus(info: CorpusInfo) -> str:
    skipped = "; unused ones left out" if info.skip_unused else ""
    made = "of" if info.skip_unused else "="
    mirrored = " x 2 (mirrored too)" if info.flip else ""
    lines = {
        "corpus": f"{info.path} (format {info.format}, dsgen {info.dsgen})",
        "rows": f"{info.rows:,} {made} {info.backgrounds} backgrounds x {info.foregrounds} foregrounds{mirrored} x "
        f"{info.positions} positions{skipped}",
        "size": f"{info.size} px stored, {info.label_size} px labelled{_render_height(info)}",
        "splits": _render_splits(info.splits),
        "seed": str(info.seed),
        "pictures": _render_progress(info.drawn_rows, info.rows, "drawn", "none; everything downstream works without"),
        "depth": _render_depth(info),
    }
    if info.people is not None:
        lines["people"] = _render_people(info.people)
    if info.composed is not None:
        lines["composed"] = _render_composed(info.composed)
    if info.flip_error is not None:
        lines["flip error"] = _render_flip_error(info.flip_error)
    return _align(lines)


def _render_depth(info: CorpusInfo) -> str:
    depth = info.depth
    if depth is None and info.composed is not None:
        return "composed when it is read, see below; no labels are needed"
    if depth is None:
        return "not labelled; run dsgen depth"
    text = _render_progress(depth.labelled_rows, info.rows, "labelled", "not labelled")
    text += f", by {depth.model}, weights {depth.weights_sha256[:12]}"
    if not depth.metric:
        return text + "; relative inverse depth, no metres"
    if depth.percentiles_m is not None:
        low, middle, high = depth.percentiles_m
        text += (
            f"; 1st, 50th, 99th percentile {low:.2f}, {middle:.2f}, {high:.2f} m ({depth.sampled_rows} rows sampled)"
        )
    return text


def _render_height(info: CorpusInfo) -> str:
    on_floors = info.people is not None and info.people.place == FLOOR
    return "" if on_floors else f", foregrounds {info.fg_height} px high"


def _render_people(people: PeopleInfo) -> str:
    least, most = people.per_row
    text = f"{least} a row" if least == most else f"{least} to {most} a row"
    if people.place != FLOOR:
        return f"{text}, at random places"
    if people.distances_m is not None:
        low, middle, high = people.distances_m
        text += f", on the floor, 1st, 50th, 99th percentile {low:.2f}, {middle:.2f}, {high:.2f} m away"
    if people.without_floor:
        text += f"; no floor found in {', '.join(people.without_floor)}"
    return text


def _render_composed(composed: ComposedInfo) -> str:
    text = "depth of backgrounds: " + ", ".join(f"{count:,} {source}" for source, count in composed.depth_from.items())
    if composed.abs_rel is None:
        return text
    text += f"; the labels differ from it by {composed.abs_rel:.1%} on average, {composed.delta1:.1%} within 25 %"
    if composed.people_abs_rel is not None:
        text += f"; on people {composed.people_abs_rel:.1%}, {composed.people_delta1:.1%}"
    return text + f" ({composed.sampled_rows} rows sampled)"


def _render_flip_error(info: FlipErrorInfo) -> str:
    if info.percentiles is None:
        return "none measured yet"
    above = ", ".join(f"{share:.1%} above {limit}" for limit, share in info.above.items())
    return "5th, 50th, 95th, 99th percentile {:.3f}, {:.3f}, {:.3f}, {:.3f}; ".format(*info.percentiles) + above


def _render_store(info: StoreInfo) -> str:
    zipped = (", compact" if info.compact else "") + (", zipped" if info.zipped else "")
    megabytes, kilobytes_per_row = info.bytes / 1e6, info.bytes / info.rows / 1e3
    lines = {
        "store": f"{info.path}, complete, {info.shards} shards ({info.content}{zipped})",
        "rows": f"{info.rows:,}",
        "size": f"{info.size} px, {megabytes:,.1f} MB in all, {kilobytes_per_row:,.1f} kB a row",
        "fields": ", ".join(info.fields) + ("" if "depth" in info.fields else "; no depth"),
        **({} if info.depth_from is None else {"depth by": info.depth_from}),
        "splits": _render_splits(info.splits),
    }
    if info.left_out:
        lines["left out"] = f"{info.left_out:,} rows with a flip error above {info.max_flip_error}"
    for field, numbers in info.statistics.items():
        lines[field] = ", ".join(f"{name} {_render_number(value)}" for name, value in numbers.items())
    return _align(lines)


def _render_number(value: object) -> str:
    if isinstance(value, list):
        return " ".join(_render_number(v) for v in value)
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def _render_splits(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.items())


def _render_progress(done: int, total: int, verb: str, none: str) -> str:
    if done == 0:
        return none
    return f"complete, {total:,} {verb}" if done == total else f"incomplete, {done:,} of {total:,} {verb}"


def _align(lines: dict[str, str]) -> str:
    width = max(map(len, lines)) + 2
    return "\n".join(f"{name:<{width}}{text}" for name, text in lines.items())
