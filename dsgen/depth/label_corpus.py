"""Stage two: label every row of a corpus with depth in millimetres.

The labels are `depth.zarr`, see `dsgen.corpus.labels`. A block of rows is one file, written whole or not at all, so a
killed run resumes with the blocks that are missing; of an unfinished block most rows are kept, see
`dsgen.corpus.saved_rows`. Drawing, network and writing overlap, each a few batches ahead of
the next. Several devices, several parts and the workers of a cluster take different blocks of the same labels:
whichever comes first creates the group, whichever ends last marks it complete.
"""

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from types import TracebackType

import numpy as np
from torch import Tensor

from dsgen.camera import focal_px
from dsgen.corpus import layout
from dsgen.corpus.corpus import Corpus
from dsgen.corpus.depth_views import draw_missing_views
from dsgen.corpus.labels import (
    EXACT,
    METRIC,
    Block,
    LabelAttributes,
    Labels,
    count_rows,
    create_or_resume_labels,
    resume_labels,
)
from dsgen.corpus.manifest import view_of
from dsgen.corpus.saved_rows import RowLabels, count_saved_rows, join_rows, load_rows, remove_rows, save_rows
from dsgen.depth.alignment import BackgroundAlignment
from dsgen.depth.forecast import Forecast
from dsgen.depth.labellers import (
    BUNDLED_REFERENCE,
    Answer,
    DepthFunction,
    Labeller,
    LabelOptions,
    PendingAnswer,
    check_fov_is_used,
    default_batch_size,
    make_labellers,
    round_to_millimetres,
)
from dsgen.errors import DsgenError, InvalidValueError
from dsgen.io.atomic import name_in_errors
from dsgen.io.cameras import ASSUMED
from dsgen.parallel.backlog import Backlog
from dsgen.parallel.dask_cluster import ask_worker, count_workers
from dsgen.parallel.devices import pick_devices
from dsgen.parallel.parts import Part, lock_setup, lock_stage, select_part
from dsgen.parallel.pool import available_cores, run_blocks, worker_count
from dsgen.parallel.prefetch import prefetch
from dsgen.parallel.progress import progress

log = logging.getLogger("dsgen")
_TASKS_PER_WORKER = 8
_BATCHES_AHEAD, _AHEAD_BYTES = 3, 2**27  # of drawn batches, whichever is reached first
_WRITERS, _WRITTEN_BYTES = 4, 2**28  # threads that write blocks, and the labels that wait for them
_SAVE_INTERVAL_S = 30.0  # between two saves of an unfinished block


@dataclass(frozen=True)
class LabelResult:
    """What a call of `label_corpus` did.

    `labelled` and `already_there` count the rows of this part, or of the corpus without parts; `left` counts the rows
    of the whole corpus that still have no label. `pictures_per_second` is None if nothing was left to do. `kind` is
    that of the labels, "metric" or "inverse"; `device` lists the devices, or is the address of the cluster.
    `fov_assumed` counts the backgrounds whose field of view had to be assumed, 0 without a canonical camera.
    """

    corpus: Path
    rows: int
    labelled: int
    already_there: int
    left: int
    pictures_per_second: float | None
    model: str
    kind: str
    device: str
    fov_assumed: int


@dataclass(frozen=True)
class _Networks:
    """The networks on one device: the labeller, and the metric network to which its answers are fitted, if any."""

    labeller: Labeller
    reference: Labeller | None

    @property
    def all(self) -> list[Labeller]:
        """The networks, one or two."""
        return [self.labeller, *([] if self.reference is None else [self.reference])]


def label_corpus(
    path: Path = Path("corpus"),
    *,
    weights: Path | None = None,
    model: str | DepthFunction | None = None,
    kind: str | None = None,
    max_depth_m: float | None = None,
    metric_reference: str | None = None,
    device: str = "auto",
    batch_size: int | None = None,
    compile_network: bool = False,
    precision: str = "auto",
    check_flip: bool = False,
    average_flip: bool = False,
    fov_deg: float | None = None,
    pictures: bool = False,
    jobs: int | None = None,
    part: Part | None = None,
    cluster: str | None = None,
) -> LabelResult:
    """Label every row of a corpus that has no label yet.

    Rows are drawn at the label size, or at the stored size where the network is fed no more; labels have the stored
    size. `model` may be a Python function, see `labellers.FunctionLabeller`. `metric_reference` ("bundled" or a
    weights file) names a metric network to which a relative model's answers are fitted. Where a network has a canonical
    camera, the fields of view of the square backgrounds are those that the corpus records; `fov_deg` is that of others.
    `pictures` also draws 8-bit views of the labels. With `part` only that part of the blocks is labelled; parts may run
    at the same time. `cluster` is the address of a dask scheduler whose workers label, each on its own `device`; a
    function must then be one that pickle or cloudpickle can send.

    Raises `ConflictError` for a corpus labelled with another network, `InvalidValueError` for options that do not fit
    together, and `DsgenError` for a depth that is not finite, naming the row.

    >>> from dsgen import label_corpus
    >>> label_corpus(Path("corpus"), device="cuda").labelled  # doctest: +SKIP
    8640
    """
    options = LabelOptions(
        model=model,
        weights=weights,
        kind=kind,
        max_depth_m=max_depth_m,
        metric_reference=metric_reference,
        device=device,
        batch_size=batch_size,
        compile_network=compile_network,
        precision=precision,
        check_flip=check_flip,
        average_flip=average_flip,
        fov_deg=fov_deg,
    )
    corpus, workers = Corpus(path), worker_count(jobs)
    if pictures and part is not None:
        raise InvalidValueError("--pictures", "not with --part", "run dsgen depth --pictures once all parts have ended")
    # with a cluster, this process loads the networks only to know the attributes of the labels
    networks = _load_networks(options if cluster is None else replace(options, device="cpu"))
    labeller = networks[0].labeller
    check_fov_is_used(fov_deg, networks[0].all)
    if corpus.people and corpus.rooms is not None and corpus.labels is None:
        log.warning(
            "%s: the depth of its rows is known already, composed of the rooms' and of where people stand; a network's "
            "labels are packed in its place, unless dsgen pack --composed is used",
            path,
        )
    options = replace(options, precision=_settle_precision(corpus, options, labeller, cluster))
    _set_precision(networks, options.precision)
    attributes = _describe(corpus, networks[0], fov_deg)
    if pictures and attributes.units != "mm":
        raise InvalidValueError("--pictures", f"{labeller.name} answers no metres", "use --metric-reference as well")
    with lock_stage(corpus.path, "depth", part):
        with lock_setup(corpus.path, part):
            labels = create_or_resume_labels(
                corpus.path / layout.DEPTH, len(corpus), corpus.size, corpus.positions, attributes
            )
        missing, done = labels.find_work(part)
        saved = sum(count_saved_rows(labels, block) for block in missing)
        started = time.monotonic()
        if cluster is None:
            with progress("depth", done + count_rows(missing), done + saved) as advance:
                _label_blocks(corpus, labels, networks, missing, batch_size, advance)
        elif missing:
            _label_on_cluster(corpus, options, attributes, missing, done, workers, cluster)
        seconds = time.monotonic() - started
        with lock_setup(corpus.path, part):
            left = labels.finish()
        if pictures:
            draw_missing_views(corpus, workers, cluster)
    made = count_rows(missing) - saved
    return LabelResult(
        corpus=path,
        rows=len(corpus),
        labelled=made,
        already_there=done + saved,
        left=left,
        pictures_per_second=round(made / seconds, 1) if made else None,
        model=labeller.name,
        kind=labels.kind,
        device=cluster or ", ".join(str(each.labeller.device) for each in networks),
        fov_assumed=(attributes.fov_from or {}).get(ASSUMED, 0),
    )


def _settle_precision(corpus: Corpus, options: LabelOptions, labeller: Labeller, cluster: str | None) -> str:
    """Return the precision to use: for "auto" that of the labels to resume, or what it stands for where work is done.

    All rows have one precision, whatever devices take part and wherever the labels are resumed. Labels of earlier
    versions that say "auto" stay so, and are resumed by the rule of those versions.
    """
    if options.precision != "auto":
        return options.precision
    path = corpus.path / layout.DEPTH
    recorded: str | None = Labels(path, len(corpus)).attributes.get("precision", "auto") if path.is_dir() else None
    if recorded == "auto":
        return recorded
    if cluster is None:
        here = _pick_precision(corpus, labeller)
    else:
        here = recorded or ask_worker(cluster, pick_on_worker, str(corpus.path.absolute()), options.absolute())
    if recorded not in (None, here, EXACT):
        log.warning("%s: labelled with --precision %s, continuing with it (auto is %s here)", path, recorded, here)
    return recorded or here


def _pick_precision(corpus: Corpus, labeller: Labeller) -> str:
    drawn = drawn_size(corpus, labeller)
    return labeller.pick_precision(drawn, drawn)


def pick_on_worker(path: str, options: LabelOptions) -> str:
    """Return what the precision "auto" stands for on the first device of a worker of a cluster."""
    return _pick_precision(Corpus(path), _load_networks(options)[0].labeller)


def _set_precision(networks: list[_Networks], precision: str) -> None:
    for each in networks:
        each.labeller.precision = precision
        if each.reference is not None:
            each.reference.precision = precision


def _load_networks(options: LabelOptions) -> list[_Networks]:
    """Load the networks onto every device of the options."""
    devices = pick_devices(options.device)
    labellers = make_labellers(options, devices)
    reference = options.metric_reference
    if reference is None:
        return [_Networks(labeller, None) for labeller in labellers]
    if labellers[0].kind == METRIC:
        raise InvalidValueError("--metric-reference", f"{labellers[0].name} answers metres already", "leave it out")
    weights = None if reference == BUNDLED_REFERENCE else Path(reference)
    references = make_labellers(LabelOptions(weights=weights, precision=options.precision), devices)
    return [_Networks(*pair) for pair in zip(labellers, references, strict=True)]


def drawn_size(corpus: Corpus, labeller: Labeller) -> int:
    """Return the size at which rows are drawn: the stored size if the network is fed no more, else the label size."""
    fed = max(labeller.feed_shape(corpus.label_size, corpus.label_size))
    return corpus.size if fed <= corpus.size else corpus.label_size


def _describe(corpus: Corpus, networks: _Networks, fov_deg: float | None) -> LabelAttributes:
    """Return what the labels depend on; `fov_deg` is the `--fov`."""
    labeller, reference = networks.labeller, networks.reference
    canonical_px = next((each.focal_px for each in networks.all if each.focal_px is not None), None)
    views = [] if canonical_px is None else [view_of(record, fov_deg) for record in corpus.manifest["backgrounds"]]
    return LabelAttributes(
        model=labeller.name,
        weights_sha256=labeller.sha256,
        kind=labeller.kind,
        metric_reference=None if reference is None else f"{reference.name} {reference.sha256}",
        label_size=corpus.label_size,
        drawn_size=drawn_size(corpus, labeller),
        network_input=labeller.feed_shape(corpus.label_size, corpus.label_size),
        precision=labeller.precision,
        flip_checked=labeller.check_flip,
        flip_averaged=labeller.average_flip,
        units="mm" if labeller.kind == METRIC or reference is not None else "1",
        focal_px=canonical_px,
        fov_deg=tuple(degrees for degrees, _ in views) or None,
        fov_from=dict(sorted(Counter(source for _, source in views).items())) or None,
    )


def _focal_lengths(labels: Labels) -> np.ndarray | None:
    """Return the focal lengths of the backgrounds in sides of a picture, (b,), None without a canonical camera."""
    degrees = labels.attributes.get("fov_deg")
    return None if degrees is None else np.array([focal_px(each, 1.0) for each in degrees])


# --- on a cluster


def _label_on_cluster(
    corpus: Corpus,
    options: LabelOptions,
    attributes: LabelAttributes,
    missing: list[Block],
    done: int,
    workers: int,
    cluster: str,
) -> None:
    """Label blocks on the workers of a dask cluster, in tasks of several blocks."""
    count = min(len(missing), _TASKS_PER_WORKER * count_workers(cluster))
    common = str(corpus.path.absolute()), options.absolute(), attributes
    run_blocks(
        label_on_worker,
        [(*common, select_part(missing, Part(number + 1, count))) for number in range(count)],
        jobs=workers,
        title="depth",
        total=done + count_rows(missing),
        done=done,
        cluster=cluster,
        shared=(corpus.path,),
    )


_one_task_at_a_time = threading.Lock()


def label_on_worker(path: str, options: LabelOptions, attributes: LabelAttributes, blocks: list[Block]) -> int:
    """Label those of the blocks that have no label, on a worker of a cluster; return the rows of all of them.

    A worker with several threads still runs one task at a time. Another worker may have died at the same task, so
    some of its blocks may be labelled already.
    """
    with _one_task_at_a_time:
        corpus = Corpus(path)
        networks = _load_once(options, attributes.weights_sha256, attributes.metric_reference)
        labels = resume_labels(corpus.path / layout.DEPTH, len(corpus), _describe(corpus, networks[0], options.fov_deg))
        unlabelled = set(labels.missing_blocks())
        missing = [block for block in blocks if block in unlabelled]
        _label_blocks(corpus, labels, networks, missing, options.batch_size, lambda _: None)
    return count_rows(blocks)


@lru_cache(maxsize=1)
def _load_once(
    options: LabelOptions,
    sha256: str,
    reference: str | None,  # noqa: ARG001
) -> list[_Networks]:
    """Load the networks once per worker, and again when a weights file has changed, as the hashes tell."""
    networks = _load_networks(options)
    if callable(options.model):  # its code came with the task, without the source that was hashed
        for each in networks:
            each.labeller.sha256 = sha256
    return networks


# --- on this machine


def _label_blocks(
    corpus: Corpus,
    labels: Labels,
    networks: list[_Networks],
    blocks: list[Block],
    batch_size: int | None,
    advance: Callable[[int], None],
) -> None:
    """Label blocks: every device takes the next one that is left; the first error stops them all."""
    left, stop = deque(blocks), threading.Event()
    unsaved = count_rows(blocks) - sum(count_saved_rows(labels, block) for block in blocks)
    forecast = Forecast(labels.array, labels.path, unsaved)
    if len(networks) == 1:
        for rows in _label_until_empty(corpus, labels, networks[0], left, batch_size, stop, forecast):
            advance(rows)
        return
    lock = threading.Lock()

    def work(device_networks: _Networks) -> None:
        try:
            for rows in _label_until_empty(corpus, labels, device_networks, left, batch_size, stop, forecast):
                with lock:
                    advance(rows)
        except BaseException:
            stop.set()
            raise

    with ThreadPoolExecutor(len(networks)) as pool:
        futures = [pool.submit(work, each) for each in networks]
        try:
            for future in futures:
                future.result()
        except BaseException:
            stop.set()
            raise


def _label_until_empty(
    corpus: Corpus,
    labels: Labels,
    networks: _Networks,
    left: deque[Block],
    batch_size: int | None,
    stop: threading.Event,
    forecast: Forecast,
) -> Iterator[int]:
    """Label blocks on one device until none is left, or until `stop`; yield the number of rows after every batch."""
    labeller = networks.labeller
    drawn = drawn_size(corpus, labeller)
    batches = _draw_batches(corpus, labels, labeller, left, batch_size or default_batch_size(labeller.device), drawn)
    ahead = prefetch(batches, _BATCHES_AHEAD, limit_bytes=_AHEAD_BYTES, size=lambda batch: batch.prepared.nbytes)
    with _BlockWriter(labels) as writer, closing(ahead) as drawn_batches:
        for batch, answer in _answer_batches(corpus, labels, networks, drawn_batches, drawn):
            _check_finite(answer.finite, batch.first)
            forecast.add(answer.labels)
            writer.add(batch, RowLabels(answer.labels, answer.flip_error))
            yield batch.last - batch.first
            if stop.is_set():
                return


def _answer_batches(
    corpus: Corpus, labels: Labels, networks: _Networks, batches: Iterator["_Batch"], drawn: int
) -> Iterator[tuple["_Batch", Answer]]:
    """Yield the batches with their answers, in order; a device that works by itself has the next batch meanwhile."""
    labeller, reference = networks.labeller, networks.reference
    lengths = _focal_lengths(labels)
    align = None if reference is None else BackgroundAlignment(corpus, labeller, reference, lengths)

    def label(backgrounds: np.ndarray, depth: Tensor) -> Tensor:
        """Make the labels (n,S,S), u2 or f4, of the depth f4 that the network answered for rows of backgrounds (n,)."""
        if align is not None:
            depth = align(backgrounds, depth)
        return round_to_millimetres(depth) if labels.metric else depth

    shape, source = (corpus.size, corpus.size), (drawn, drawn)
    pending: deque[tuple[_Batch, PendingAnswer]] = deque()
    for batch in batches:
        backgrounds = corpus.plan["background"][batch.first : batch.last]
        focal = None if lengths is None else lengths[backgrounds] * drawn  # (n,)
        answer = labeller.submit(batch.prepared, source, shape, focal, partial(label, backgrounds))
        pending.append((batch, answer))
        if len(pending) > labeller.batches_ahead:
            earlier, answer = pending.popleft()
            yield earlier, answer.result()
    for earlier, answer in pending:
        yield earlier, answer.result()


@dataclass(frozen=True)
class _Batch:
    """Rows `first` to `last`, exclusive, of a block, as `Labeller.prepare` returns them.

    The first batch of a block has with it the rows `before` it, if an interrupted run labelled some.
    """

    block: Block
    first: int
    last: int
    prepared: Tensor
    before: RowLabels | None


def _draw_batches(
    corpus: Corpus, labels: Labels, labeller: Labeller, left: deque[Block], batch_size: int, size: int
) -> Iterator[_Batch]:
    """Draw the rows of the blocks that are left, in batches that never straddle blocks."""
    while True:
        try:
            block = left.popleft()
        except IndexError:
            return
        before = load_rows(labels, block)
        start, stop = block[0] + (0 if before is None else len(before.labels)), block[1]
        for first in range(start, stop, batch_size):
            last = min(first + batch_size, stop)
            image, _ = corpus.render(corpus.plan[first:last], size)  # (n,size,size,3) u1
            prepared = labeller.pin(labeller.prepare(image))
            yield _Batch(block, first, last, prepared, before if first == start else None)


class _BlockWriter:
    """Collects the batches of a block and writes it, in one of a few threads, while the next blocks are labelled.

    What a block has so far is saved every `_SAVE_INTERVAL_S` seconds, and when the `with` block ends before the block
    does, as by Ctrl-C. Leaving the `with` block waits for what is written.
    """

    def __init__(self, labels: Labels):
        self._labels = labels
        self._writes: Backlog[None] = Backlog(min(_WRITERS, available_cores()), _WRITTEN_BYTES)
        self._parts: list[RowLabels] = []
        self._first_unsaved: int | None = None  # row
        self._saved_parts = 0
        self._saved_at = time.monotonic()

    def __enter__(self) -> "_BlockWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None or not issubclass(kind, Exception):
                self._save()
            if kind is None:
                for _ in self._writes.finish():
                    pass
        finally:
            self._writes.close()

    def add(self, batch: _Batch, rows: RowLabels) -> None:
        """Take the labels of a batch; write the block if it is the last of it."""
        if self._first_unsaved is None:
            self._parts = [] if batch.before is None else [batch.before]
            self._saved_parts, self._first_unsaved = len(self._parts), batch.first
        if batch.last < batch.block[1]:
            self._parts.append(rows)
            if time.monotonic() - self._saved_at >= _SAVE_INTERVAL_S:
                self._save()
            return
        parts, self._parts = [*self._parts, rows], []
        self._first_unsaved, self._saved_at = None, time.monotonic()
        self._writes.add(sum(part.labels.nbytes for part in parts), self._write, batch.block, parts)

    def _write(self, block: Block, parts: list[RowLabels]) -> None:
        with name_in_errors(self._labels.path):
            self._labels.write_block(block[0], *join_rows(parts))
        remove_rows(self._labels, block)

    def _save(self) -> None:
        """Save what the unfinished block has so far and is not saved yet."""
        parts = self._parts[self._saved_parts :]
        if self._first_unsaved is None or not parts:
            return
        rows = join_rows(parts)
        save_rows(self._labels, self._first_unsaved, rows)
        self._saved_parts += len(parts)
        self._first_unsaved += len(rows.labels)
        self._saved_at = time.monotonic()


def _check_finite(finite: np.ndarray, first_row: int) -> None:
    bad = np.flatnonzero(~finite)
    if len(bad):
        raise DsgenError(
            f"row {first_row + int(bad[0])}",
            "the network's depth is not finite",
            "the weights do not suit these pictures; its block of rows was not written",
        )
