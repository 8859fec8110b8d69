"""Stage two: label every row of a corpus with depth in millimetres.

A corpus' labels are `depth.zarr`, a group with the array `depth` (rows,S,S) u2: millimetres, 0 = no label, one scale
for all. A block of rows is one zarr shard, a file written whole or not at all, so the files that are there say how
far the work is. Drawing, network and writing overlap, each a few batches ahead of the next. A model that answers no
metres fills the array `relative` (rows,S,S) f4 instead. `flip_error` (rows,) f4 is there with --check-flip. Several
machines may share the blocks: whichever comes first begins the group, whichever ends last marks it complete.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from torch import Tensor
from zarr.codecs import BloscCodec, Crc32cCodec

from dsgen import __version__
from dsgen.corpus import layout
from dsgen.corpus.corpus import Corpus
from dsgen.corpus.depth_views import draw_missing_views
from dsgen.corpus.labels import INVERSE, METRIC, open_array
from dsgen.depth.alignment import BackgroundAlignment
from dsgen.depth.labellers import DepthFunction, Labeller, check_batch_size, default_batch_size, make_labellers
from dsgen.errors import ConflictError, DsgenError, InvalidValueError, find_differences
from dsgen.io.atomic import write_folder
from dsgen.parallel.dask_cluster import count_workers
from dsgen.parallel.devices import pick_devices
from dsgen.parallel.parts import Part, lock_setup, lock_stage, select_part
from dsgen.parallel.pool import run_blocks, worker_count
from dsgen.parallel.prefetch import prefetch
from dsgen.parallel.progress import progress
from dsgen.units import to_millimetres

_BLOCK_ROWS = 480
_TASKS_PER_WORKER = 8
# what the labels of an earlier dsgen, which do not say, are
_BEFORE = {
    "kind": METRIC,
    "precision": "auto",
    "flip_checked": False,
    "flip_averaged": False,
    "metric_reference": None,
}


@dataclass(frozen=True)
class _Wanted:
    """Which network is to label, and how."""

    weights: Path | None
    model: str | DepthFunction | None
    kind: str | None
    max_depth_m: float | None
    compile_network: bool
    precision: str
    check_flip: bool
    average_flip: bool
    metric_reference: str | None

    def load(self, devices: list[torch.device]) -> tuple[list[Labeller], list[Labeller | None]]:
        """Make one labeller for each device, and one metric network to fit relative answers to, or None."""
        options = {name: value for name, value in vars(self).items() if name not in ("model", "metric_reference")}
        labellers = make_labellers(self.model, devices, **options)
        reference = self.metric_reference
        if reference is None:
            return labellers, [None for _ in devices]
        if labellers[0].kind == METRIC:
            raise InvalidValueError("--metric-reference", f"{labellers[0].name} answers metres already", "leave it out")
        weights = None if reference == "bundled" else Path(reference)
        return labellers, [*make_labellers(None, devices, weights=weights, precision=self.precision)]

    def absolute(self) -> "_Wanted":
        """The same for a process that runs in another folder."""
        reference = self.metric_reference
        if reference not in (None, "bundled"):
            reference = str(Path(str(reference)).absolute())
        return replace(self, weights=self.weights and self.weights.absolute(), metric_reference=reference)


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
    pictures: bool = False,
    jobs: int | None = None,
    part: Part | None = None,
    cluster: str | None = None,
) -> dict[str, Any]:
    """Label every row of a corpus that has no label yet and return the counts.

    Rows are drawn at the label size, or at the stored size where the network is fed no more; labels have the stored
    size. `model` may be a Python function, see `labellers.FunctionLabeller`. `metric_reference` ("bundled" or a
    weights file) names a metric network to which a relative model's answers are fitted. With `part` only a share of
    the corpus' blocks is labelled; parts may run at the same time. `cluster` is the address of a dask scheduler, whose
    workers label, each on the `device` it has; a function must be one that pickle or cloudpickle can send. Raises
    `DsgenError` for a corpus labelled with another network, and for a depth that is not a number, naming the row.
    """
    corpus = Corpus(path)
    workers = worker_count(jobs)
    devices = pick_devices(device if cluster is None else "cpu")
    check_batch_size(batch_size)
    if pictures and part is not None:
        raise InvalidValueError("--pictures", "not with --part", "run dsgen depth --pictures once all parts have ended")
    wanted = _Wanted(
        weights, model, kind, max_depth_m, compile_network, precision, check_flip, average_flip, metric_reference
    )
    labellers, references = wanted.load(devices)
    attributes = _attributes(corpus, labellers[0], references[0])
    with lock_stage(corpus.path, "depth", part):
        with lock_setup(corpus.path, part):
            if not (corpus.path / layout.DEPTH).is_dir():
                _begin_labels(corpus, attributes)
            group = _open_labels(corpus, attributes)
        if pictures and "depth" not in group:
            raise InvalidValueError(
                "--pictures", f"{labellers[0].name} answers no metres", "give --metric-reference as well"
            )
        unlabelled = set(Corpus(path).unlabelled_blocks())
        blocks = Corpus(path).label_blocks()
        ours = blocks if part is None else select_part(blocks, part)
        missing = [block for block in ours if block in unlabelled]
        done = _rows(ours) - _rows(missing)
        started = time.monotonic()
        if cluster is None:
            with progress("depth", _rows(ours), done) as advance:
                _label_blocks(path, labellers, references, missing, batch_size, advance)
        elif missing:
            count = min(len(missing), _TASKS_PER_WORKER * count_workers(cluster))
            shares = [select_part(missing, Part(number + 1, count)) for number in range(count)]
            task = str(corpus.path.absolute()), wanted.absolute(), attributes, device, batch_size
            run_blocks(
                label_share,
                [(*task, blocks) for blocks in shares],
                jobs=workers,
                title="depth",
                total=_rows(ours),
                done=done,
                cluster=cluster,
                shared=(corpus.path,),
            )
        seconds = time.monotonic() - started
        with lock_setup(corpus.path, part):
            left = _finish(path)
        if pictures:
            draw_missing_views(Corpus(path), workers, cluster)
    return {
        "corpus": str(path),
        "rows": len(corpus),
        "labelled": _rows(missing),
        "already_there": done,
        "left": left,
        "pictures_per_second": round(_rows(missing) / seconds, 1) if missing else None,
        "model": labellers[0].name,
        "kind": METRIC if "depth" in group else INVERSE,
        "device": ", ".join(map(str, devices)) if cluster is None else cluster,
    }


def _rows(blocks: Iterable[tuple[int, int]]) -> int:
    return sum(stop - start for start, stop in blocks)


def _finish(path: Path) -> int:
    """Mark the labels complete if they are; return how many rows have none yet."""
    left = _rows(Corpus(path).unlabelled_blocks())
    group = zarr.open_group(path / layout.DEPTH, mode="r+")
    if not left and not group.attrs.get("complete"):
        for leftover in (path / layout.DEPTH).rglob("*.partial"):  # what a kill left of zarr's writing
            leftover.unlink(missing_ok=True)
        group.attrs["complete"] = True
    return left


_on_this_worker = threading.Lock()


def label_share(
    path: str,
    wanted: _Wanted,
    attributes: dict[str, Any],
    device: str,
    batch_size: int | None,
    blocks: list[tuple[int, int]],
) -> int:
    """Label those of the blocks that have no label, on a worker of a cluster, one share at a time; return all rows."""
    with _on_this_worker:
        corpus = Corpus(path)
        labellers, references = _load_once(wanted, device, attributes["weights_sha256"], attributes["metric_reference"])
        _open_labels(corpus, _attributes(corpus, labellers[0], references[0]))
        unlabelled = set(corpus.unlabelled_blocks())  # another worker may have died at this share
        missing = [block for block in blocks if block in unlabelled]
        _label_blocks(corpus.path, labellers, references, missing, batch_size, lambda _: None)
    return _rows(blocks)


@lru_cache(maxsize=1)
def _load_once(
    wanted: _Wanted,
    device: str,
    sha256: str,
    reference: str | None,  # noqa: ARG001
) -> tuple[list[Labeller], list[Labeller | None]]:
    """Load the networks once in every worker, anew when a file of weights has changed, as the hashes tell."""
    labellers, references = wanted.load(pick_devices(device))
    if callable(wanted.model):  # its code came with the task, the source that was hashed did not
        for labeller in labellers:
            labeller.sha256 = sha256
    return labellers, references


def drawn_size(corpus: Corpus, labeller: Labeller) -> int:
    """The side at which rows are drawn: the stored size where that is all the network is fed, else the label size."""
    fed = max(labeller.feed_shape(corpus.label_size, corpus.label_size))
    return corpus.size if fed <= corpus.size else corpus.label_size


def _attributes(corpus: Corpus, labeller: Labeller, reference: Labeller | None) -> dict[str, Any]:
    """Say what the labels hang on."""
    return {
        "model": labeller.name,
        "weights_sha256": labeller.sha256,
        "kind": labeller.kind,
        "metric_reference": reference and f"{reference.name} {reference.sha256}",
        "label_size": corpus.label_size,
        "drawn_size": drawn_size(corpus, labeller),
        "network_input": list(labeller.feed_shape(corpus.label_size, corpus.label_size)),
        "precision": labeller.precision,
        "flip_checked": labeller.check_flip,
        "flip_averaged": labeller.average_flip,
        "units": "mm" if labeller.kind == METRIC or reference is not None else "1",
    }


def _open_labels(corpus: Corpus, attributes: dict[str, Any]) -> zarr.Group:
    """Open the labels to go on with them; those of another network are refused."""
    path = corpus.path / layout.DEPTH
    group = zarr.open_group(path, mode="r+")
    there = _BEFORE | dict(group.attrs)
    differences = find_differences(attributes, {name: there[name] for name in attributes if name in there})
    if differences:
        remedy = "use the same, or remove the folder to label again"
        raise ConflictError(path, "labelled with another network", remedy, differences, "corpus")
    return group


def _begin_labels(corpus: Corpus, attributes: dict[str, Any]) -> None:
    """Make the labels' group, without any labels."""
    chunk = corpus.positions * max(1, 20 // corpus.positions)
    chunk = min(chunk, len(corpus))
    block = chunk * max(1, min(_BLOCK_ROWS // chunk, math.ceil(len(corpus) / chunk)))
    common: dict[str, Any] = {
        "shape": (len(corpus), corpus.size, corpus.size),
        "chunks": (chunk, corpus.size, corpus.size),
        "shards": (block, corpus.size, corpus.size),
        "fill_value": 0,
        "dimension_names": ("sample", "y", "x"),
    }
    with write_folder(corpus.path / layout.DEPTH) as unfinished:
        group = zarr.create_group(unfinished, attributes=attributes | {"dsgen": __version__, "complete": False})
        if attributes["units"] == "mm":
            group.create_array(
                "depth",
                dtype="uint16",
                compressors=(BloscCodec(cname="zstd", clevel=3, shuffle="bitshuffle", typesize=2), Crc32cCodec()),
                attributes={"units": "m", "scale_factor": 0.001, "_FillValue": 0, "long_name": "planar depth"},
                **common,
            )
        else:
            group.create_array(
                "relative",
                dtype="float32",
                compressors=(BloscCodec(cname="zstd", clevel=5, shuffle="bitshuffle", typesize=4), Crc32cCodec()),
                attributes={"units": "1", "long_name": "inverse depth up to an unknown scale and shift"},
                **common,
            )
        if attributes["flip_checked"]:
            group.create_array(
                "flip_error",
                shape=(len(corpus),),
                chunks=(block,),
                dtype="float32",
                fill_value=float("nan"),
                dimension_names=("sample",),
                attributes={"units": "1", "long_name": "mean relative disagreement with the mirror image's depth"},
            )


def _label_blocks(
    path: Path,
    labellers: list[Labeller],
    references: list[Labeller | None],
    blocks: list[tuple[int, int]],
    batch_size: int | None,
    advance: Callable[[int], None],
) -> None:
    """Label blocks, every device taking the next one that is left; the first error stops them all."""
    left = deque(blocks)
    if len(labellers) == 1:
        for rows in _label_some(Corpus(path), labellers[0], references[0], left, batch_size):
            advance(rows)
        return
    lock = threading.Lock()

    def work(labeller: Labeller, reference: Labeller | None) -> None:
        try:
            for rows in _label_some(Corpus(path), labeller, reference, left, batch_size):
                with lock:
                    advance(rows)
        except BaseException:
            left.clear()
            raise

    with ThreadPoolExecutor(len(labellers)) as pool:
        futures = [pool.submit(work, *pair) for pair in zip(labellers, references, strict=True)]
        try:
            for future in futures:
                future.result()
        except BaseException:
            left.clear()
            raise


def _label_some(
    corpus: Corpus, labeller: Labeller, reference: Labeller | None, left: deque[tuple[int, int]], batch_size: int | None
) -> Iterator[int]:
    """Label blocks until none is left; yield the rows of every batch done. Batches never straddle blocks."""
    group = zarr.open_group(corpus.path / layout.DEPTH, mode="r+")
    metric = "depth" in group
    array = open_array(group, "depth" if metric else "relative")
    flip_error = open_array(group, "flip_error") if labeller.check_flip else None
    fit = reference and BackgroundAlignment(Corpus(corpus.path), labeller, reference)
    batch = batch_size or default_batch_size(labeller.device)
    drawn_at = drawn_size(corpus, labeller)
    shape, source = (corpus.size, corpus.size), (drawn_at, drawn_at)

    def drawn() -> Iterator[tuple[int, int, int, Tensor]]:
        while True:
            try:
                start, stop = left.popleft()
            except IndexError:
                return
            for first in range(start, stop, batch):
                last = min(first + batch, stop)
                image, _ = corpus.render(corpus.plan[first:last], drawn_at)
                yield first, last, stop, labeller.prepare(image)

    def write(start: int, labels: np.ndarray, errors: np.ndarray | None) -> None:
        if flip_error is not None and errors is not None:  # before the labels, whose file says that the block is done
            flip_error[start : start + len(labels)] = errors
        array[start : start + len(labels)] = labels

    pending: list[Future[None]] = []
    labels: list[np.ndarray] = []
    errors: list[np.ndarray] = []
    with ThreadPoolExecutor(1) as writer:
        for first, last, stop, prepared in prefetch(drawn(), 3):
            depth, disagreement = labeller(prepared, source, shape)
            if fit:
                depth = fit(corpus.plan["background"][first:last], depth)
            _check_finite(depth, first)
            labels.append(to_millimetres(depth) if metric else depth)
            if disagreement is not None:
                errors.append(disagreement)
            if last == stop:
                block = np.concatenate(labels)
                while pending:  # one block is written while the next is labelled
                    pending.pop().result()
                block_errors = np.concatenate(errors) if errors else None
                pending.append(writer.submit(write, stop - len(block), block, block_errors))
                labels, errors = [], []
            yield last - first
        while pending:
            pending.pop().result()


def _check_finite(depth: np.ndarray, first_row: int) -> None:
    bad = np.flatnonzero(~np.isfinite(depth).all(axis=(1, 2)))
    if len(bad):
        raise DsgenError(
            f"row {first_row + int(bad[0])}",
            "the network's depth is not finite",
            "the weights do not suit these pictures, nothing was stored for its block",
        )
