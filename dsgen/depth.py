"""Stage two: label every row of a corpus with depth in millimetres.

A corpus' labels are `depth.zarr`, a group with the array `depth` (rows,S,S) u2: millimetres, 0 = no label, one scale
for all. A block of rows is one zarr shard, a file written whole or not at all, so the files that are there say how
far the work is. Drawing, network and writing overlap, each a few batches ahead of the next. A model that answers no
metres fills the array `relative` (rows,S,S) f4 instead. `flip_error` (rows,) f4 is there with --check-flip.
"""

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from torch import Tensor
from zarr.codecs import BloscCodec

from dsgen import __version__, images, layout
from dsgen.corpus import Corpus, open_array
from dsgen.devices import pick_devices
from dsgen.errors import DsgenError
from dsgen.jobs import ahead, check_jobs, progress, run_blocks
from dsgen.labellers import INVERSE, METRIC, DepthFunction, Labeller, make_labellers
from dsgen.networks import MAX_DEPTH_M, MIN_DEPTH_M

VIEW_MAX_MM = 10_000
MOST_MM = 65_535
_BLOCK_ROWS = 480
# what the labels of an earlier dsgen, which do not say, are
_BEFORE = {"kind": METRIC, "flip_checked": False, "flip_averaged": False, "metric_reference": None}


def default_batch_size(device: torch.device) -> int:
    """How many pictures a device is given at once unless told otherwise."""
    return 16 if device.type == "cpu" else 64


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
    check_flip: bool = False,
    average_flip: bool = False,
    pictures: bool = False,
    jobs: int | None = None,
) -> dict[str, Any]:
    """Label every row of a corpus that has no label yet and return the counts.

    Rows are drawn at the label size, or at the stored size where the network is fed no more; labels have the stored
    size. `model` may be a Python function, see `labellers.FunctionLabeller`. `metric_reference` ("bundled" or a
    weights file) names a metric network to which a relative model's answers are fitted. Raises `DsgenError` for a
    corpus labelled with another network, and for a depth that is not a number, naming the row.
    """
    corpus = Corpus(path)
    workers = check_jobs(jobs)
    devices = pick_devices(device)
    check_batch_size(batch_size)
    labellers = make_labellers(
        model,
        devices,
        weights=weights,
        kind=kind,
        max_depth_m=max_depth_m,
        compile_network=compile_network,
        check_flip=check_flip,
        average_flip=average_flip,
    )
    references = _references(labellers[0], metric_reference, devices)
    with layout.lock(corpus.path):
        group = _open_labels(corpus, labellers[0], references[0])
        if pictures and "depth" not in group:
            raise DsgenError(f"--pictures: {labellers[0].name} answers no metres; give --metric-reference as well")
        missing = Corpus(path).unlabelled_blocks()
        done = len(corpus) - sum(stop - start for start, stop in missing)
        started = time.monotonic()
        with progress("depth", len(corpus), done) as advance:
            _label_blocks(path, labellers, references, missing, batch_size, advance)
        seconds = time.monotonic() - started
        if not group.attrs.get("complete"):
            for leftover in (corpus.path / layout.DEPTH).rglob("*.partial"):  # what a kill left of zarr's writing
                leftover.unlink()
            group.attrs["complete"] = True
        if pictures:
            _draw_views(Corpus(path), workers)
    return {
        "corpus": str(path),
        "rows": len(corpus),
        "labelled": len(corpus) - done,
        "already_there": done,
        "pictures_per_second": round((len(corpus) - done) / seconds, 1) if missing else None,
        "model": labellers[0].name,
        "kind": METRIC if "depth" in group else INVERSE,
        "device": ", ".join(map(str, devices)),
    }


def check_batch_size(batch_size: int | None) -> None:
    """Refuse a batch of nothing."""
    if batch_size is not None and batch_size < 1:
        raise DsgenError(f"--batch-size: got {batch_size}, expected 1 or more")


def drawn_size(corpus: Corpus, labeller: Labeller) -> int:
    """The side at which rows are drawn: the stored size where that is all the network is fed, else the label size."""
    fed = max(labeller.feed_shape(corpus.label_size, corpus.label_size))
    return corpus.size if fed <= corpus.size else corpus.label_size


def _references(labeller: Labeller, reference: str | None, devices: list[torch.device]) -> list[Labeller | None]:
    """One metric network for each device to fit relative answers to, or none."""
    if reference is None:
        return [None for _ in devices]
    if labeller.kind == METRIC:
        raise DsgenError(f"--metric-reference: {labeller.name} answers metres already; leave it out")
    return [*make_labellers(None, devices, weights=None if reference == "bundled" else Path(reference))]


def _open_labels(corpus: Corpus, labeller: Labeller, reference: Labeller | None) -> zarr.Group:
    """Open the labels to go on with them, refusing those of another network, or begin them."""
    path = corpus.path / layout.DEPTH
    metric = labeller.kind == METRIC or reference is not None
    attributes = {
        "model": labeller.name,
        "weights_sha256": labeller.sha256,
        "kind": labeller.kind,
        "metric_reference": reference and f"{reference.name} {reference.sha256}",
        "label_size": corpus.label_size,
        "drawn_size": drawn_size(corpus, labeller),
        "network_input": list(labeller.feed_shape(corpus.label_size, corpus.label_size)),
        "flip_checked": labeller.check_flip,
        "flip_averaged": labeller.average_flip,
        "units": "mm" if metric else "1",
    }
    if path.is_dir():
        group = zarr.open_group(path, mode="r+")
        there = _BEFORE | dict(group.attrs)
        differences = [
            f"{name} {value} (the labels have {there.get(name)})"
            for name, value in attributes.items()
            if there.get(name) != value
        ]
        if differences:
            raise DsgenError(
                f"{path}: labelled with another network: got {'; '.join(differences)}; "
                "use the same, or remove the folder to label again"
            )
        return group
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
    with layout.write_folder(path) as unfinished:
        group = zarr.create_group(unfinished, attributes=attributes | {"dsgen": __version__, "complete": False})
        if metric:
            group.create_array(
                "depth",
                dtype="uint16",
                compressors=BloscCodec(cname="zstd", clevel=5, shuffle="bitshuffle", typesize=2),
                attributes={"units": "m", "scale_factor": 0.001, "_FillValue": 0, "long_name": "planar depth"},
                **common,
            )
        else:
            group.create_array(
                "relative",
                dtype="float32",
                compressors=BloscCodec(cname="zstd", clevel=5, shuffle="bitshuffle", typesize=4),
                attributes={"units": "1", "long_name": "inverse depth up to an unknown scale and shift"},
                **common,
            )
        if labeller.check_flip:
            group.create_array(
                "flip_error",
                shape=(len(corpus),),
                chunks=(block,),
                dtype="float32",
                fill_value=float("nan"),
                dimension_names=("sample",),
                attributes={"units": "1", "long_name": "mean relative disagreement with the mirror image's depth"},
            )
    return zarr.open_group(path, mode="r+")


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
    fit = reference and _Fit(Corpus(corpus.path), labeller, reference)
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
        for first, last, stop, prepared in ahead(drawn(), 3):
            depth, disagreement = labeller(prepared, source, shape)
            if fit:
                depth = fit(corpus.plan["background"][first:last], depth)
            _check_finite(depth, first)
            labels.append(millimetres(depth) if metric else depth)
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


class _Fit:
    """Metres from relative answers: for every background the scale and shift that bring its own inverse depth closest.

    For the background without anything pasted on, s and t minimise the sum of (s r + t - 1 / m)^2 over its pixels,
    r the relative model's answer and m the reference's metres; a row's depth is 1 / (s r + t), within 0.1 m and the
    reference's farthest. Least squares in inverse depth are how MiDaS aligns (Ranftl et al., arXiv 1907.01341, eq. 4).
    """

    def __init__(self, corpus: Corpus, labeller: Labeller, reference: Labeller):
        self._corpus, self._labeller, self._reference = corpus, labeller, reference
        self._most_m = reference.max_depth_m or MAX_DEPTH_M
        self._known: dict[int, tuple[float, float]] = {}

    def _fitted(self, background: int) -> tuple[float, float]:
        if background not in self._known:
            image = self._corpus.background(background, self._corpus.label_size)[None]
            source, shape = image.shape[1:3], (self._corpus.size, self._corpus.size)
            relative, _ = self._labeller(self._labeller.prepare(image), source, shape)
            metres, _ = self._reference(self._reference.prepare(image), source, shape)
            r, inverse = relative.ravel().astype(float), 1 / metres.ravel().astype(float)
            good = np.isfinite(r) & np.isfinite(inverse)
            r, inverse = r[good], inverse[good]
            spread = r.var() if r.size else 0.0
            scale = ((r - r.mean()) * (inverse - inverse.mean())).mean() / spread if spread > 0 else 0.0
            if scale <= 0:
                raise DsgenError(
                    f"--metric-reference: background {background}: {self._labeller.name} and {self._reference.name} "
                    "disagree about what is near, no scale can be fitted; use another reference, or none"
                )
            self._known[background] = scale, inverse.mean() - scale * r.mean()
        return self._known[background]

    def __call__(self, backgrounds: np.ndarray, relative: np.ndarray) -> np.ndarray:
        """Turn relative answers (n,S,S) of rows with these backgrounds into metres."""
        scale, shift = np.array([self._fitted(b) for b in backgrounds.tolist()], np.float32).T[..., None, None]
        return 1 / (relative * scale + shift).clip(1 / self._most_m, 1 / MIN_DEPTH_M)


def _check_finite(depth: np.ndarray, first_row: int) -> None:
    bad = np.flatnonzero(~np.isfinite(depth).all(axis=(1, 2)))
    if len(bad):
        raise DsgenError(
            f"row {first_row + int(bad[0])}: the network's depth is not finite; "
            "the weights do not suit these pictures, nothing was stored for its block"
        )


def millimetres(depth_m: np.ndarray) -> np.ndarray:
    """Round metres to uint16 millimetres, at most 65.535 m; 0 stays the mark of no depth, so the least is 1."""
    return np.rint(depth_m * 1000).clip(1, MOST_MM).astype(np.uint16)


def _draw_views(corpus: Corpus, workers: int) -> None:
    """Draw the 8-bit views of the labels that are missing."""
    count = len(corpus.manifest["backgrounds"])
    each = corpus.rows_per_background
    missing = [b for b in range(count) if not (corpus.path / "bg_fg_depth" / layout.background_name(b)).is_dir()]
    run_blocks(
        draw_views,
        [(str(corpus.path), b) for b in missing],
        jobs=workers,
        title="depth views",
        total=len(corpus),
        done=(count - len(missing)) * each,
    )


@lru_cache(maxsize=1)
def _open(path: str) -> Corpus:
    return Corpus(path)


def draw_views(path: str, background: int) -> int:
    """Write the 8-bit depth views of one background: 0 is 0 m and 255 is 10 m, in every picture."""
    corpus = _open(path)
    assert corpus.depth is not None
    folder = layout.background_name(background)
    each = corpus.rows_per_background
    with layout.write_folder(corpus.path / "bg_fg_depth" / folder) as unfinished:
        for start in range(background * each, (background + 1) * each, 200):
            stop = min(start + 200, (background + 1) * each)
            views = view_8bit(np.asarray(corpus.depth[start:stop]))
            for (_, foreground, flip, position, *_), view in zip(corpus.plan[start:stop].tolist(), views, strict=True):
                name = layout.depth_picture_name(background, foreground, flip, position)
                (unfinished / f"{name}.jpeg").write_bytes(images.encode_jpeg(view))
    return each


def view_8bit(millimetres: np.ndarray) -> np.ndarray:
    """Scale millimetres u2 to 0..255 u1: one scale for all, 255 = 10 m."""
    near = np.minimum(millimetres, VIEW_MAX_MM).astype(np.uint32)
    return ((near * 255 + VIEW_MAX_MM // 2) // VIEW_MAX_MM).astype(np.uint8)
