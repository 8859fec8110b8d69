"""Stage two: label every row of a corpus, or every picture of a folder, with depth in millimetres.

A corpus' labels are `depth.zarr`, a group with the array `depth` (rows,S,S) u2: millimetres, 0 = no label, one scale
for all. A block of rows is one zarr shard, a file written whole or not at all, so the files that are there say how
far the work is. Drawing, network and writing overlap, each a few batches ahead of the next.
"""

import csv
import io
import math
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import zarr
from torch import Tensor
from zarr.codecs import BloscCodec

from dsgen import __version__, images, layout
from dsgen.corpus import Corpus, open_array
from dsgen.devices import pick_device
from dsgen.errors import DsgenError
from dsgen.jobs import ahead, check_jobs, progress, run_blocks
from dsgen.networks import to_metres
from dsgen.weights import DepthModel, load_depth_model

VIEW_MAX_MM = 10_000
_BLOCK_ROWS = 480


class Labeller:
    """A depth network on a device: batches of pictures in, millimetres out."""

    def __init__(self, model: DepthModel, device: torch.device):
        self.device = device
        self.network = model.network.to(device).to(memory_format=torch.channels_last)
        self.output: str = self.network.config["output"]
        self.input_size: int | None = self.network.config["input_size"]

    def feed_shape(self, height: int, width: int) -> tuple[int, int]:
        """The size, multiples of 32, at which pictures of a size are fed: proportions kept as far as that allows."""
        scale = self.input_size / min(height, width) if self.input_size else 1.0
        return max(32, round(height * scale / 32) * 32), max(32, round(width * scale / 32) * 32)

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """Scale pictures (n,H,W,3) u1 to the size they are fed at."""
        height, width = self.feed_shape(*image.shape[1:3])
        if (height, width) == image.shape[1:3]:
            return image
        return np.stack([images.resize(picture, height, width) for picture in image])

    @torch.inference_mode()
    def __call__(self, image: np.ndarray, shape: tuple[int, int]) -> Tensor:
        """Estimate the depth of prepared pictures, in millimetres as float32 (n,*shape) on the CPU, NaN kept."""
        batch = torch.from_numpy(image)
        if self.device.type == "cuda":
            batch = batch.pin_memory().to(self.device, non_blocking=True)
        else:
            batch = batch.to(self.device)
        batch = batch.permute(0, 3, 1, 2).float().div_(255)  # HWC memory read as CHW is channels-last already
        try:
            with torch.autocast("cuda", torch.bfloat16, enabled=self.device.type == "cuda"):
                raw = self.network(batch)
        except torch.OutOfMemoryError as error:
            raise DsgenError(
                f"--batch-size: {len(image)} pictures of {image.shape[2]}x{image.shape[1]} do not fit the memory of "
                f"{self.device}; try {max(1, len(image) // 2)}"
            ) from error
        raw = raw.float()
        shrink = raw.shape[-2] > shape[0] or raw.shape[-1] > shape[1]
        raw = F.interpolate(raw, size=shape, mode="bilinear", antialias=shrink)
        # exp and clip would make an infinity a depth
        metres = torch.where(raw.isfinite(), to_metres(raw, self.output), torch.nan)
        return (metres * 1000).round()[:, 0].cpu()


def default_batch_size(device: torch.device) -> int:
    """How many pictures a device is given at once unless told otherwise."""
    return 16 if device.type == "cpu" else 64


def label_corpus(
    path: Path = Path("corpus"),
    *,
    weights: Path | None = None,
    model: str | None = None,
    device: str = "auto",
    batch_size: int | None = None,
    pictures: bool = False,
    jobs: int | None = None,
) -> dict[str, Any]:
    """Label every row of a corpus that has no label yet and return the counts.

    Rows are drawn at the label size and fed at the network's own; labels are stored at the stored size. Raises
    `DsgenError` for a corpus labelled with another network, and for a depth that is not a number, naming the row.
    """
    corpus = Corpus(path)
    workers = check_jobs(jobs)
    where = pick_device(device)
    batch = _check_batch_size(batch_size, where)
    chosen = load_depth_model(weights, model)
    labeller = Labeller(chosen, where)
    with layout.lock(corpus.path):
        array = _open_labels(corpus, chosen, labeller)
        missing = Corpus(path).unlabelled_blocks()
        done = len(corpus) - sum(stop - start for start, stop in missing)
        started = time.monotonic()
        with progress("depth", len(corpus), done) as advance:
            for rows in _label_blocks(corpus, labeller, array, missing, batch):
                advance(rows)
        seconds = time.monotonic() - started
        group = zarr.open_group(corpus.path / layout.DEPTH, mode="r+")
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
        "model": chosen.name,
        "device": str(where),
    }


def _check_batch_size(batch_size: int | None, device: torch.device) -> int:
    if batch_size is not None and batch_size < 1:
        raise DsgenError(f"--batch-size: got {batch_size}, expected 1 or more")
    return batch_size or default_batch_size(device)


def _open_labels(corpus: Corpus, model: DepthModel, labeller: Labeller) -> zarr.Array:
    """Open the labels to go on with them, refusing those of another network, or begin them."""
    path = corpus.path / layout.DEPTH
    side = labeller.feed_shape(corpus.label_size, corpus.label_size)
    attributes = {
        "model": model.name,
        "weights_sha256": model.sha256,
        "label_size": corpus.label_size,
        "network_input": list(side),
        "units": "mm",
    }
    if path.is_dir():
        group = zarr.open_group(path, mode="r+")
        differences = [
            f"{name} {value} (the labels have {group.attrs.get(name)})"
            for name, value in attributes.items()
            if group.attrs.get(name) != value
        ]
        if differences:
            raise DsgenError(
                f"{path}: labelled with another network: got {'; '.join(differences)}; "
                "use the same, or remove the folder to label again"
            )
        return open_array(group, "depth")
    chunk = corpus.positions * max(1, 20 // corpus.positions)
    chunk = min(chunk, len(corpus))
    block = chunk * max(1, min(_BLOCK_ROWS // chunk, math.ceil(len(corpus) / chunk)))
    with layout.write_folder(path) as unfinished:
        group = zarr.create_group(unfinished, attributes=attributes | {"dsgen": __version__, "complete": False})
        group.create_array(
            "depth",
            shape=(len(corpus), corpus.size, corpus.size),
            chunks=(chunk, corpus.size, corpus.size),
            shards=(block, corpus.size, corpus.size),
            dtype="uint16",
            compressors=BloscCodec(cname="zstd", clevel=5, shuffle="bitshuffle", typesize=2),
            fill_value=0,
            dimension_names=("sample", "y", "x"),
            attributes={"units": "m", "scale_factor": 0.001, "_FillValue": 0, "long_name": "planar depth"},
        )
    return open_array(zarr.open_group(path, mode="r+"), "depth")


def _label_blocks(
    corpus: Corpus, labeller: Labeller, array: zarr.Array, blocks: list[tuple[int, int]], batch_size: int
) -> Iterator[int]:
    """Label blocks in order; yield the rows of every batch done. Batches never straddle blocks."""

    def drawn() -> Iterator[tuple[int, int, np.ndarray]]:
        for start, stop in blocks:
            for first in range(start, stop, batch_size):
                last = min(first + batch_size, stop)
                image, _ = corpus.render(corpus.plan[first:last], corpus.label_size)
                yield first, stop, labeller.prepare(image)

    def write(start: int, labels: np.ndarray) -> None:
        array[start : start + len(labels)] = labels

    shape = (corpus.size, corpus.size)
    pending: list[Future[None]] = []
    labels: list[np.ndarray] = []
    with ThreadPoolExecutor(1) as writer:
        for first, stop, image in ahead(drawn(), 3):
            labels.append(_check_labels(labeller(image, shape), first))
            if first + len(image) == stop:
                block = np.concatenate(labels)
                labels = []
                while pending:  # one block is written while the next is labelled
                    pending.pop().result()
                pending.append(writer.submit(write, stop - len(block), block))
            yield len(image)
        while pending:
            pending.pop().result()


def _check_labels(millimetres: Tensor, first_row: int) -> np.ndarray:
    bad = (~millimetres.isfinite()).flatten(1).any(1).nonzero()
    if len(bad):
        raise DsgenError(
            f"row {first_row + int(bad[0])}: the network's depth is not finite; "
            "the weights do not suit these pictures, nothing was stored for its block"
        )
    return millimetres.numpy().astype(np.uint16)


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


def label_folder(
    folder: Path,
    out: Path | None = None,
    *,
    weights: Path | None = None,
    model: str | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """Label every picture under a folder: a 16-bit PNG of millimetres each, at the picture's own size, and a CSV.

    Subfolders are kept. The CSV, `depth.csv`, gives minimum, median and maximum in metres and the network's seconds
    for every picture. Files that cannot be read are listed in the result under `failed` and in the CSV.
    """
    if not folder.is_dir():
        raise DsgenError(f"{folder}: no such folder, expected a corpus or a folder of pictures")
    out = out or folder.with_name(folder.name + "_depth")
    if out.resolve() == folder.resolve():
        raise DsgenError(f"--out: {out} is the folder of pictures itself; choose another")
    paths = sorted(
        p for p in folder.rglob("*") if p.suffix.lower() in images.SUFFIXES and p.is_file() and out not in p.parents
    )
    if not paths:
        raise DsgenError(f"{folder}: neither a corpus nor a folder with pictures ({' '.join(sorted(images.SUFFIXES))})")
    where = pick_device(device)
    chosen = load_depth_model(weights, model)
    labeller = Labeller(chosen, where)
    names = output_names([path.relative_to(folder) for path in paths])
    table: list[dict[str, Any]] = []
    with layout.lock(out), progress("depth", len(paths)) as advance:
        for path, name, picture in ahead(((p, n, _attempt(p)) for p, n in zip(paths, names, strict=True)), 8):
            started = time.monotonic()
            entry: dict[str, Any] = {"picture": str(path.relative_to(folder))}
            if isinstance(picture, np.ndarray):
                millimetres = labeller(labeller.prepare(picture[None]), picture.shape[:2])[0]
                if millimetres.isfinite().all():
                    depth = millimetres.numpy().astype(np.uint16)
                    (out / name).parent.mkdir(parents=True, exist_ok=True)
                    layout.write_bytes(out / name, images.encode_png(depth))
                    entry |= _describe(depth) | {"depth": str(name)}
                else:
                    entry["error"] = f"{path}: the network's depth is not finite"
            else:
                entry["error"] = str(picture)
            table.append(entry | {"seconds": round(time.monotonic() - started, 4)})
            advance(1)
        _write_table(out / "depth.csv", table)
    failed = [entry["error"] for entry in table if "error" in entry]
    return {
        "folder": str(folder),
        "out": str(out),
        "labelled": len(paths) - len(failed),
        "failed": failed,
        "model": chosen.name,
        "device": str(where),
    }


def output_names(pictures: list[Path]) -> list[Path]:
    """Name the depth PNG of every picture: its own name ending in .png, or, where several would share it, added."""
    plain = [path.with_suffix(".png") for path in pictures]
    taken = Counter(plain)
    return [
        path.with_name(path.name + ".png") if taken[name] > 1 else name
        for path, name in zip(pictures, plain, strict=True)
    ]


def _attempt(path: Path) -> np.ndarray | DsgenError:
    try:
        return images.read_picture(path)
    except DsgenError as error:
        return error


def _describe(millimetres: np.ndarray) -> dict[str, Any]:
    height, width = millimetres.shape
    return {
        "width": width,
        "height": height,
        "min_m": millimetres.min() / 1000,
        "median_m": float(np.median(millimetres)) / 1000,
        "max_m": millimetres.max() / 1000,
    }


def _write_table(path: Path, table: list[dict[str, Any]]) -> None:
    columns = ("picture", "depth", "width", "height", "min_m", "median_m", "max_m", "seconds", "error")
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    layout.write_bytes(path, text.getvalue().encode())
