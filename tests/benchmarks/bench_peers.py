"""dsgen beside what people use to keep and feed pictures: `make bench-peers`.

Every peer packs the same rows (composite u1, mask u1, depth u2 millimetres) with the writer its documentation
recommends, in two processes, and feeds them to PyTorch as shuffled batches of 64 with the settings it recommends. Every
packing and every reading has a process of its own; peers alternate within a round. A peer that is not installed is
left out by name. Results go to `bench/peers.md` and `bench/peers.json`.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from record import processor, replace_section, versions
from torch.utils.data import DataLoader, Dataset, default_collate

from dsgen.corpus.composed import composed_depth
from dsgen.corpus.corpus import Corpus

BATCH = 64
BACKGROUNDS, FLIPS, POSITIONS = 10, 2, 20
PROCESSES = 2
SHARD_ROWS = 1000
QUALITY = 95
PARTS = ("image", "mask", "depth")
LIMIT_S = 3600

Batch = dict[str, torch.Tensor]
Sample = dict[str, Any]
Epoch = Callable[[], Iterable[Batch]]


class Samples(Dataset):
    """The rows of a corpus as arrays: what every peer is given. Rows asked for in order are drawn a block at a time.

    Depth is that of the network, or composed.
    """

    def __init__(self, corpus: Path, composed: bool = False):
        self.path, self.composed = corpus, composed
        self._first, self._block = 0, dict[str, np.ndarray]()

    @cached_property
    def corpus(self) -> Corpus:
        """The corpus, opened in the process that reads it."""
        return Corpus(self.path)

    def __len__(self) -> int:
        return len(self.corpus)

    def __getitem__(self, row: int) -> Sample:
        if not self._block or not self._first <= row < self._first + len(self._block["image"]):
            self._first = row - row % 100
            rows = slice(self._first, self._first + 100)
            image, mask = self.corpus.render(self.corpus.plan[rows])
            assert self.corpus.depth is not None
            drawn = self.composed
            depth = composed_depth(self.corpus, self.corpus.plan[rows]) if drawn else self.corpus.depth[rows]
            self._block = {"image": image, "mask": mask, "depth": np.asarray(depth)}
        return {"row": row} | {part: values[row - self._first] for part, values in self._block.items()}

    def shares(self, length: int | None = None) -> list[range]:
        """The rows in runs of `length`, or in one run for each process."""
        length = length or -(-len(self) // PROCESSES)
        return [range(first, min(first + length, len(self))) for first in range(0, len(self), length)]


def in_processes(work: Callable[..., None], calls: list[tuple]) -> None:
    """Call `work` with every tuple of arguments, in two processes."""
    with ProcessPoolExecutor(PROCESSES) as pool:
        for future in [pool.submit(work, *call) for call in calls]:
            future.result()


def encode(picture: np.ndarray, form: str) -> bytes:
    """Encode a picture as `jpg` or `png` with OpenCV at its own settings: five times as fast as Pillow's PNG."""
    if picture.ndim == 3:
        picture = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    options = [cv2.IMWRITE_JPEG_QUALITY, QUALITY] if form == "jpg" else []
    done, code = cv2.imencode(f".{form}", picture, options)
    assert done
    return code.tobytes()


def encoded(sample: Sample, form: str) -> dict[str, bytes]:
    """A sample's three pictures as files: the composite in `form`, mask and 16-bit depth as PNG."""
    return {part: encode(sample[part], form if part == "image" else "png") for part in PARTS}


def decode(code: bytes | memoryview) -> torch.Tensor:
    """Decode a picture file with OpenCV, which took no longer than Pillow or torchvision on any of the three parts."""
    picture = cv2.imdecode(np.frombuffer(code, np.uint8), cv2.IMREAD_UNCHANGED)
    assert picture is not None
    return torch.from_numpy(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB) if picture.ndim == 3 else picture)


def decoded(row: int, codes: dict[str, Any]) -> Sample:
    """A sample from its three picture files."""
    return {"row": row} | {part: decode(codes[part]) for part in PARTS}


def feed(dataset: Any, cores: int, loader: Any = DataLoader, **options: Any) -> Any:
    """A DataLoader with a worker for each core; on one core it reads in its own process, which is faster there."""
    workers = cores if cores > 1 else 0
    return loader(dataset, num_workers=workers, persistent_workers=workers > 0, **options)


# A folder of files


def write_files(samples: Samples, out: Path, rows: range, form: str) -> None:
    """Write a share of the rows as three files each."""
    for row in rows:
        for part, code in encoded(samples[row], form).items():
            (out / part / f"{row:06d}.{form if part == 'image' else 'png'}").write_bytes(code)


def pack_folder(samples: Samples, out: Path, form: str) -> None:
    """Write a folder of images, one of masks, one of depths."""
    for part in PARTS:
        (out / part).mkdir(parents=True)
    in_processes(write_files, [(samples, out, rows, form) for rows in samples.shares()])


class Files(Dataset):
    """The plain PyTorch dataset over three folders."""

    def __init__(self, folder: Path):
        self.parts = {part: sorted(str(path) for path in (folder / part).iterdir()) for part in PARTS}

    def __len__(self) -> int:
        return len(self.parts["image"])

    def __getitem__(self, row: int) -> Sample:
        return decoded(row, {part: Path(paths[row]).read_bytes() for part, paths in self.parts.items()})


def open_folder(packed: Path, scratch: Path, cores: int, form: str) -> Epoch:
    """Read files in a random order."""
    loader = feed(Files(packed), cores, batch_size=BATCH, shuffle=True)
    return lambda: loader


# WebDataset


def write_tar(samples: Samples, out: Path, rows: range, form: str) -> None:
    """Write one tar file."""
    import webdataset

    with webdataset.TarWriter(str(out / f"{rows.start // SHARD_ROWS:06d}.tar")) as writer:
        for row in rows:
            codes = encoded(samples[row], form)
            names = {"image": f"image.{form}", "mask": "mask.png", "depth": "depth.png"}
            writer.write({"__key__": f"{row:06d}"} | {names[part]: code for part, code in codes.items()})


def pack_webdataset(samples: Samples, out: Path, form: str) -> None:
    """Write a tar file for every 1,000 rows."""
    out.mkdir()
    in_processes(write_tar, [(samples, out, rows, form) for rows in samples.shares(SHARD_ROWS)])


def from_tar(form: str, sample: dict[str, Any]) -> Sample:
    """Decode what WebDataset found in a tar file."""
    names = {"image": f"image.{form}", "mask": "mask.png", "depth": "depth.png"}
    return decoded(int(sample["__key__"]), {part: sample[name] for part, name in names.items()})


def open_webdataset(packed: Path, scratch: Path, cores: int, form: str) -> Epoch:
    """Shuffle tar files and, in a buffer of 1,000, what comes out of them; batches are made in the workers."""
    import webdataset

    tars = sorted(str(path) for path in packed.iterdir())
    dataset = webdataset.WebDataset(tars, shardshuffle=len(tars), detshuffle=True, seed=0)
    dataset = dataset.shuffle(SHARD_ROWS).map(partial(from_tar, form)).batched(BATCH, collation_fn=default_collate)
    loader = feed(dataset, cores, webdataset.WebLoader, batch_size=None)
    return lambda: loader


# LitData


def samples_of_block(rows: range, samples: Samples, form: str) -> Iterator[Sample]:
    """Yield the samples of a block as LitData is to store them."""
    import litdata

    for row in rows:
        sample = samples[row]
        if form == "jpg":
            yield {
                "row": row,
                "image": litdata.Image(array=sample["image"], quality=QUALITY, format="jpeg"),
                "mask": litdata.Image(bytes=encode(sample["mask"], "png")),
                "depth": encode(sample["depth"], "png"),
            }
        else:
            yield {"row": row} | {part: torch.from_numpy(sample[part].copy()) for part in PARTS}


def pack_litdata(samples: Samples, out: Path, form: str) -> None:
    """Let `optimize` write chunks of 64 MB, in the order of the rows so that compression finds the background again."""
    import litdata

    litdata.optimize(
        fn=partial(samples_of_block, samples=samples, form=form),
        inputs=samples.shares(100),
        output_dir=str(out),
        chunk_bytes="64MB",
        num_workers=PROCESSES,
        compression="zstd" if form == "zstd" else None,
        keep_data_ordered=True,
        reorder_files=False,
        verbose=False,
    )


def from_litdata(sample: Sample) -> Sample:
    """LitData decodes pictures itself, to (C,H,W); only 16-bit PNG it does not."""
    if not torch.is_tensor(sample["depth"]):
        return sample | {"depth": decode(sample["depth"]), "mask": sample["mask"][0]}
    return sample


def open_litdata(packed: Path, scratch: Path, cores: int, form: str) -> Epoch:
    """Stream with LitData's own shuffling and settings."""
    import litdata

    dataset = litdata.StreamingDataset(str(packed), cache_dir=str(scratch), shuffle=True, transform=from_litdata)
    loader = feed(dataset, cores, litdata.StreamingDataLoader, batch_size=BATCH)
    return lambda: loader


# MosaicML streaming


def write_mds(samples: Samples, out: Path, rows: range, form: str) -> None:
    """Write the MDS shards of one process."""
    from streaming import MDSWriter

    size = samples.corpus.size
    columns = {"row": "int", "image": "bytes", "mask": "bytes", "depth": "bytes"}
    if form == "zstd":
        arrays = {"image": f"ndarray:uint8:{size},{size},3", "mask": f"ndarray:uint8:{size},{size}"}
        columns |= arrays | {"depth": f"ndarray:uint16:{size},{size}"}
    compression = "zstd" if form == "zstd" else None
    with MDSWriter(out=str(out / str(rows.start)), columns=columns, compression=compression) as writer:
        for row in rows:
            writer.write(samples[row] if form == "zstd" else {"row": row} | encoded(samples[row], form))


def pack_mds(samples: Samples, out: Path, form: str) -> None:
    """Write a folder of shards in each process, then one index for all."""
    from streaming.base.util import merge_index

    out.mkdir()
    in_processes(write_mds, [(samples, out, rows, form) for rows in samples.shares()])
    merge_index(str(out))


def open_mds(packed: Path, scratch: Path, cores: int, form: str) -> Epoch:
    """Stream with its own shuffling; compressed shards are unpacked into a cache folder, once."""
    from streaming import StreamingDataset

    class Rows(StreamingDataset):
        """Decodes what is stored as files."""

        def __getitem__(self, at: Any) -> Any:
            sample = super().__getitem__(at)
            return sample if form == "zstd" else decoded(sample["row"], sample)

    where = {"remote": str(packed), "local": str(scratch / "mds")} if form == "zstd" else {"local": str(packed)}
    dataset = Rows(**where, shuffle=True, batch_size=BATCH)
    loader = feed(dataset, cores, batch_size=BATCH)
    return lambda: loader


# Hugging Face datasets


def write_parquet(samples: Samples, out: Path, rows: range, form: str) -> None:
    """Write one parquet file."""
    import datasets

    columns: dict[str, list] = {"row": list(rows)} | {part: [] for part in PARTS}
    for row in rows:
        for part, code in encoded(samples[row], form).items():
            columns[part].append({"bytes": code, "path": None})
    kinds = {"row": datasets.Value("int64")} | {part: datasets.Image() for part in PARTS}
    table = datasets.Dataset.from_dict(columns, features=datasets.Features(kinds))
    table.to_parquet(str(out / f"train-{rows.start // SHARD_ROWS:05d}.parquet"))


def pack_parquet(samples: Samples, out: Path, form: str) -> None:
    """Write a parquet file for every 1,000 rows."""
    out.mkdir()
    in_processes(write_parquet, [(samples, out, rows, form) for rows in samples.shares(SHARD_ROWS)])


def from_parquet(columns: dict[str, list]) -> dict[str, list]:
    """Decode the picture files of some rows."""
    pictures = {part: [decode(picture["bytes"]) for picture in columns[part]] for part in PARTS}
    return {"row": columns["row"]} | pictures


def open_parquet(packed: Path, scratch: Path, cores: int, form: str) -> Epoch:
    """Load as a map-style dataset, which converts parquet to Arrow once, and let the DataLoader shuffle."""
    import datasets

    files = sorted(str(path) for path in packed.iterdir())
    table = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(scratch))
    for part in PARTS:
        table = table.cast_column(part, datasets.Image(decode=False))
    loader = feed(table.with_transform(from_parquet), cores, batch_size=BATCH, shuffle=True)
    return lambda: loader


# FFCV


class Tuples(Dataset):
    """Samples in the order of FFCV's fields; depth as int16, as FFCV recommends."""

    def __init__(self, samples: Samples):
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, row: int) -> tuple:
        sample = self.samples[row]
        arrays = (np.ascontiguousarray(sample[part]) for part in ("image", "mask"))
        return row, *arrays, np.ascontiguousarray(sample["depth"]).view(np.int16)


def pack_ffcv(samples: Samples, out: Path, form: str) -> None:
    """Write one .beton file."""
    from ffcv.fields import IntField, NDArrayField, RGBImageField
    from ffcv.writer import DatasetWriter

    out.mkdir()
    square = (samples.corpus.size, samples.corpus.size)
    fields = {
        "row": IntField(),
        "image": RGBImageField(write_mode=form, jpeg_quality=QUALITY),
        "mask": NDArrayField(np.dtype(np.uint8), square),
        "depth": NDArrayField(np.dtype(np.int16), square),
    }
    writer = DatasetWriter(str(out / "rows.beton"), fields, num_workers=PROCESSES)
    writer.from_indexed_dataset(Tuples(Samples(samples.path)))


def open_ffcv(packed: Path, scratch: Path, cores: int, form: str) -> Epoch:
    """Read in a random order through the page cache, decoding in FFCV's threads."""
    from ffcv.fields.decoders import IntDecoder, NDArrayDecoder, SimpleRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import ToTensor

    decoders = {"row": IntDecoder, "image": SimpleRGBImageDecoder, "mask": NDArrayDecoder, "depth": NDArrayDecoder}
    loader = Loader(
        str(packed / "rows.beton"),
        batch_size=BATCH,
        num_workers=cores,
        os_cache=True,
        order=OrderOption.RANDOM,
        drop_last=False,
        seed=0,
        pipelines={name: [decoder(), ToTensor()] for name, decoder in decoders.items()},
    )

    def epoch() -> Iterator[Batch]:
        for row, image, mask, depth in loader:
            yield {"row": row[:, 0], "image": image, "mask": mask, "depth": depth.view(torch.uint16)}

    return epoch


# dsgen


FORMS: dict[str, dict[str, bool]] = {
    "packed": {},
    "compact": {"compact": True},
    "recipe": {"recipe": True},
    "composed": {"recipe": True, "composed": True},
}


def pack_dsgen(samples: Samples, out: Path, form: str) -> None:
    """Pack the pixels, in a compact store or not, or as a recipe the sources from which they are drawn."""
    from dsgen.store.packing import pack

    pack(samples.path, out, shards=6, jobs=PROCESSES, **FORMS[form])


def open_dsgen(packed: Path, scratch: Path, cores: int, form: str) -> Epoch:
    """Load with the defaults, a thread for each core, what the peers deliver: not the backgrounds."""
    from dsgen.store.loader import Loader

    loader = Loader(packed, split=None, batch_size=BATCH, workers=cores, fields=PARTS)
    epochs = iter(range(2**31))

    def epoch() -> Iterable[Batch]:
        loader.set_epoch(next(epochs))
        return loader

    return epoch


@dataclass(frozen=True)
class Peer:
    """One way to keep and feed the rows: `pack(samples, out, form)` writes, `open(packed, scratch, cores, form)` feeds.

    `modules` are imported before any clock starts.
    """

    name: str
    package: str
    form: str
    pack: Callable[[Samples, Path, str], None]
    open: Callable[[Path, Path, int, str], Epoch]
    modules: tuple[str, ...]

    @property
    def installed(self) -> bool:
        """Whether it can be measured here."""
        return importlib.util.find_spec(self.modules[0].split(".")[0]) is not None

    @property
    def ours(self) -> bool:
        """Whether it is dsgen itself."""
        return self.package == "dsgen"

    @property
    def composed(self) -> bool:
        """Whether its depth is composed, and not the network's, which all others keep."""
        return self.form == "composed"


_FILES = ("torch", pack_folder, open_folder, ("torch",))
_TAR = ("webdataset", pack_webdataset, open_webdataset, ("webdataset",))
_LIT = ("litdata", pack_litdata, open_litdata, ("litdata",))
_MDS = ("mosaicml-streaming", pack_mds, open_mds, ("streaming",))
_PARQUET = ("datasets", pack_parquet, open_parquet, ("datasets",))
_FFCV = ("ffcv", pack_ffcv, open_ffcv, ("ffcv.loader", "ffcv.writer"))
_DSGEN = ("dsgen", pack_dsgen, open_dsgen, ("dsgen.store.packing", "dsgen.store.loader"))


def _peer(name: str, form: str, library: tuple) -> Peer:
    """Put a library's form into the table."""
    package, pack, opens, modules = library
    return Peer(name, package, form, pack, opens, modules)


PEERS = {
    "folder-jpg": _peer("files, JPEG + PNG", "jpg", _FILES),
    "folder-png": _peer("files, PNG", "png", _FILES),
    "webdataset-jpg": _peer("WebDataset, JPEG + PNG", "jpg", _TAR),
    "webdataset-png": _peer("WebDataset, PNG", "png", _TAR),
    "litdata-jpg": _peer("LitData, JPEG + PNG", "jpg", _LIT),
    "litdata-zstd": _peer("LitData, zstd", "zstd", _LIT),
    "mds-jpg": _peer("MosaicML MDS, JPEG + PNG", "jpg", _MDS),
    "mds-zstd": _peer("MosaicML MDS, zstd", "zstd", _MDS),
    "parquet-jpg": _peer("HF parquet, JPEG + PNG", "jpg", _PARQUET),
    "parquet-png": _peer("HF parquet, PNG", "png", _PARQUET),
    "ffcv-jpg": _peer("FFCV, JPEG + raw", "jpg", _FFCV),
    "ffcv-raw": _peer("FFCV, raw", "raw", _FFCV),
    "dsgen": _peer("**dsgen**", "packed", _DSGEN),
    "dsgen-compact": _peer("**dsgen**, compact", "compact", _DSGEN),
    "dsgen-recipe": _peer("**dsgen**, recipe", "recipe", _DSGEN),
    "dsgen-composed": _peer("**dsgen**, recipe, composed depth", "composed", _DSGEN),
}


# What runs in a process of its own


def measure_pack(peer: Peer, samples: Samples, packed: Path, scratch: Path, cores: int) -> dict[str, Any]:
    """Pack all rows and return the seconds it took, up to the data being on the disk."""
    begun = time.perf_counter()
    peer.pack(samples, packed, peer.form)
    os.sync()
    return {"seconds": time.perf_counter() - begun}


def measure_read(peer: Peer, samples: Samples, packed: Path, scratch: Path, cores: int) -> dict[str, Any]:
    """Feed two epochs and return their seconds, the first's from before opening, and those up to the first batch."""
    began = time.perf_counter()
    epoch = peer.open(packed, scratch, cores, peer.form)
    seconds, start_s = [], 0.0
    rows: list[torch.Tensor] = []
    for number in range(2):
        begun = time.perf_counter() if number else began
        rows = []
        for batch in epoch():
            start_s = start_s or time.perf_counter() - began
            rows.append(batch["row"])
        seconds.append(time.perf_counter() - begun)
        assert sum(map(len, rows)) == len(samples), f"{sum(map(len, rows))} rows of {len(samples)}"
    pairs = [pairs_in(samples.corpus, batch.numpy()) for batch in rows if len(batch) == BATCH]
    return {"first": seconds[0], "cached": seconds[1], "start": start_s, "pairs": float(np.mean(pairs))}


def check_rows(peer: Peer, samples: Samples, packed: Path, scratch: Path, cores: int) -> dict[str, Any]:
    """Compare what one epoch delivers with the rows themselves; masks and depths are to be equal everywhere.

    Returns the mean absolute error of the images. Raises `AssertionError` for a row that is wrong, missing or doubled.
    """
    seen: list[int] = []
    errors = []
    for batch in peer.open(packed, scratch, cores, peer.form)():
        rows = batch["row"].tolist()
        seen += rows
        for at in (0, len(rows) // 2):
            sample = samples[rows[at]]
            tensor = batch["image"][at]
            image = (tensor.movedim(0, 2) if tensor.shape[0] == 3 else tensor).numpy()
            assert image.dtype == np.uint8, image.dtype
            errors.append(np.abs(image.astype(np.int16) - sample["image"]).mean())
            for part in ("mask", "depth"):
                assert np.array_equal(batch[part][at].numpy(), sample[part]), f"row {rows[at]}: another {part}"
    assert sorted(seen) == list(range(len(samples))), f"{len(seen)} rows, {len(set(seen))} of them different"
    return {"image_error": float(np.mean(errors)), "lossless": not any(errors)}


def pairs_in(corpus: Corpus, rows: np.ndarray) -> int:
    """How many different (background, foreground) pairs are among some rows: the better they are shuffled, the more."""
    return len(np.unique(corpus.plan[rows][["background", "foreground"]]))


def measure_copy(peer: Peer, samples: Samples, packed: Path, scratch: Path, cores: int) -> dict[str, Any]:
    """Copy decoded chunks, which are in the processor's cache, to memory: no loader hands out rows faster than that."""
    size = samples.corpus.size
    row_bytes = size * size * (3 + 1 + 2)
    chunk, memory = np.ones((20, row_bytes), np.uint8), [np.ones((600, row_bytes), np.uint8) for _ in range(cores)]

    def fill(into: np.ndarray) -> None:
        for _ in range(10):
            for start in range(0, len(into), len(chunk)):
                np.copyto(into[start : start + len(chunk)], chunk)

    with ThreadPoolExecutor(cores) as pool:
        begun = time.perf_counter()
        list(pool.map(fill, memory))
        seconds = time.perf_counter() - begun
    rows = 10 * cores * len(memory[0])
    return {"rows_s": rows / seconds, "gb_s": 2 * rows * row_bytes / seconds / 1e9}


STEPS = {"pack": measure_pack, "read": measure_read, "check": check_rows, "copy": measure_copy}


def child(arguments: argparse.Namespace) -> None:
    """Run one step in this process, on as many cores as it may use, and leave its result in a file."""
    peer = PEERS[arguments.peer]
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.cores])
    torch.set_num_threads(arguments.cores)
    cv2.setNumThreads(0)
    warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
    for module in peer.modules:
        importlib.import_module(module)
    samples = Samples(arguments.folder / f"corpus-{arguments.rows}", peer.composed)
    scratch = Path(os.environ["TMPDIR"])
    result = STEPS[arguments.step](peer, samples, arguments.folder / "packed", scratch, arguments.cores)
    arguments.result.write_text(json.dumps(result))


# What runs them


def memory_mb(session: int) -> tuple[float, float]:
    """Memory of all processes of a session: their own, and with the files they map. Shared pages count once (PSS)."""
    own = mapped = 0
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdigit() and os.getsid(int(process.name)) == session:
                lines = (process / "smaps_rollup").read_text().splitlines()[1:]
                kb = {line.split(":")[0]: int(line.split()[1]) for line in lines}
                own += kb["Pss_Anon"] + kb["Pss_Shmem"]
                mapped += kb["Pss"]
        except (OSError, ProcessLookupError):
            continue  # it has ended
    return own / 1000, mapped / 1000


def run_step(step: str, name: str, rows: int, folder: Path, cores: int) -> dict[str, Any]:
    """Run a step in a process of its own and return its result with its peak memory; or why there is none."""
    scratch, log, result = folder / "scratch", folder / "log.txt", folder / "result.json"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    result.unlink(missing_ok=True)
    caches = ("HF_HOME", "HF_DATASETS_CACHE", "DATA_OPTIMIZER_CACHE_FOLDER", "DATA_OPTIMIZER_DATA_CACHE_FOLDER")
    environment = os.environ | {cache: str(scratch / "cache") for cache in caches}
    environment |= {"TMPDIR": str(scratch), "OMP_NUM_THREADS": str(cores)}
    environment |= {"HF_HUB_OFFLINE": "1", "LITDATA_DISABLE_VERSION_CHECK": "1", "TQDM_DISABLE": "1"}
    command = [sys.executable, "-W", "ignore", __file__, "--step", step, "--peer", name, "--cores", str(cores)]
    command += ["--rows", str(rows), "--folder", str(folder), "--result", str(result)]
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment, start_new_session=True)
    peak, begun = (0.0, 0.0), time.monotonic()
    try:
        while process.poll() is None and time.monotonic() - begun < LIMIT_S:
            now = memory_mb(process.pid)
            peak = (max(peak[0], now[0]), max(peak[1], now[1]))
            time.sleep(0.3)
        if process.poll() is None or process.returncode or not result.is_file():
            lines = log.read_text().strip().splitlines()
            ended = f"stopped after {LIMIT_S} s" if process.poll() is None else f"exit code {process.returncode}"
            return {"failed": f"{ended}: {lines[-1] if lines else 'no output'}"}
        return json.loads(result.read_text()) | {
            "memory_mb": round(peak[0]),
            "mapped_mb": round(peak[1]),
            "scratch_bytes": folder_bytes(scratch),
        }
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        shutil.rmtree(scratch, ignore_errors=True)


def folder_bytes(folder: Path) -> int:
    """The bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def forget_pages(folder: Path) -> None:
    """Ask the kernel to drop the files of a folder from its page cache."""
    os.sync()
    for path in folder.rglob("*"):
        if path.is_file():
            handle = os.open(path, os.O_RDONLY)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(handle)


def make_corpus(path: Path, rows: int) -> None:
    """Make the rows from bundled pictures and label them with the bundled network, unless it has been done."""
    from dsgen.corpus.build import Parameters, composite
    from dsgen.corpus.composed import label_composed
    from dsgen.depth.label_corpus import label_corpus

    foregrounds = rows // (BACKGROUNDS * FLIPS * POSITIONS)
    parameters = Parameters(positions=POSITIONS, label_size=224)
    if not (path / "corpus.json").is_file():
        composite(path, parameters=parameters, max_backgrounds=BACKGROUNDS, max_foregrounds=foregrounds, pictures=False)
    if Corpus(path).labelled_rows() < rows:
        label_corpus(path)
    label_composed(path)  # known beside the network's labels


def run_rounds(names: list[str], rows: int, rounds: int, folder: Path) -> dict[str, dict[str, Any]]:
    """Pack, check and read with every peer, `rounds` times, every other round in reverse order."""
    found: dict[str, dict[str, Any]] = {name: {"pack": [], "read": {"1": [], "2": []}} for name in names}
    packed = folder / "packed"
    for number in range(rounds):
        for name in names if number % 2 == 0 else names[::-1]:
            of = found[name]
            if "failed" in of:
                continue
            shutil.rmtree(packed, ignore_errors=True)
            check = [("check", 2)] if number == 0 else []
            for step, cores in [("pack", PROCESSES), *check, ("read", 1), ("read", 2)]:
                if step == "read":
                    forget_pages(packed)
                result = run_step(step, name, rows, folder, cores)
                say(f"round {number + 1}, {name}, {step} on {cores}: {told(result, rows)}")
                if "failed" in result:
                    of["failed"] = f"{step}: {result['failed']}"
                    break
                if step == "pack":
                    of["bytes"] = folder_bytes(packed)
                    of["pack"].append(result)
                elif step == "read":
                    of["read"][str(cores)].append(result)
                else:
                    of["check"] = result
    shutil.rmtree(packed, ignore_errors=True)
    return found


def told(result: dict[str, Any], rows: int) -> str:
    """One step's result in a line."""
    if "failed" in result:
        return result["failed"]
    rates = [f"{key} {rows / result[key]:,.0f}/s" for key in ("seconds", "first", "cached") if key in result]
    return ", ".join(rates or [f"image error {result['image_error']:.3f}"])


def say(line: str) -> None:
    """Report progress."""
    print(line, file=sys.stderr, flush=True)


# The table


def summary(of: dict[str, Any], rows: int) -> dict[str, Any]:
    """Medians over the rounds of one peer: rows a second, bytes a row, megabytes."""

    def median(results: list[dict[str, Any]], key: str) -> float:
        return statistics.median(result[key] for result in results)

    rates = {
        f"{key}_{cores}": rows / median(of["read"][cores], key) for key in ("first", "cached") for cores in ("1", "2")
    }
    return rates | {
        "bytes": of["bytes"] / rows,
        "lossless": of["check"]["lossless"],
        "image_error": of["check"]["image_error"],
        "pack": rows / median(of["pack"], "seconds"),
        "start_s": median(of["read"]["2"], "start"),
        "pairs": median(of["read"]["2"], "pairs"),
        "memory_mb": max(result["memory_mb"] for result in of["read"]["2"]),
        "mapped_mb": max(result["mapped_mb"] for result in of["read"]["2"]),
        "cache_bytes": max(result["scratch_bytes"] for result in of["read"]["2"]) / rows,
    }


def table(summaries: dict[str, dict[str, Any]]) -> list[str]:
    """The results as Markdown."""
    head = ["", "lossless", "bytes a sample", "packed/s", "first pass/s, 1 core", "2 cores", "cached/s, 1 core"]
    head += ["2 cores", "first batch after", "pairs in a batch", "memory, MB"]
    lines = [head, ["---"] * 2 + ["---:"] * (len(head) - 2)]
    for name, of in summaries.items():
        cells = [PEERS[name].name, "yes" if of["lossless"] else "no"]
        cells += [f"{of[key]:,.0f}" for key in ("bytes", "pack", "first_1", "first_2", "cached_1", "cached_2")]
        lines.append([*cells, f"{of['start_s']:.1f} s", f"{of['pairs']:.1f}", f"{of['memory_mb']:,}"])
    return ["| " + " | ".join(cells) + " |" for cells in lines]


def targets(summaries: dict[str, dict[str, Any]], copied: dict[str, dict[str, float]]) -> list[str]:
    """Every target of the comparison as a row of a table, with the peer it was measured against."""
    others = {name: of for name, of in summaries.items() if not PEERS[name].ours}
    lossless = {name: of for name, of in others.items() if of["lossless"]}
    raw = {name: of for name, of in lossless.items() if name == "ffcv-raw"}
    compressed = {name: of for name, of in others.items() if name not in raw}
    files = {name: of for name, of in others.items() if name == "folder-jpg"}
    litdata = {name: of for name, of in others.items() if name == "litdata-zstd"}
    lines = ["| | dsgen | of | ratio | wanted |", "|---|---:|---|---:|---|"]

    def compare(what: str, name: str, key: str, against: dict[str, dict[str, Any]], target: float, most: bool) -> None:
        if name not in summaries or not against:
            return
        best = (min if most else max)(against, key=lambda peer: against[peer][key])
        ours, theirs = summaries[name][key], against[best][key]
        reached = ours / theirs <= target if most else ours / theirs >= target
        bound = f"at {'most' if most else 'least'} {target:g}: {'reached' if reached else 'missed'}"
        who = f"{PEERS[best].name} {theirs:,.0f}"
        lines.append(f"| {what}, {PEERS[name].name} | {ours:,.0f} | {who} | **{ours / theirs:.2f}** | {bound} |")

    for name in ("dsgen-compact", "dsgen"):
        for cores in ("1", "2"):
            compare(f"first pass, rows/s on {cores}", name, f"first_{cores}", compressed, 2.5, most=False)
    for cores in ("1", "2"):
        compare(f"cached, rows/s on {cores}", "dsgen-compact", f"cached_{cores}", compressed, 2.5, most=False)
    compare("cached, rows/s on 2", "dsgen-composed", "cached_2", raw, 1, most=False)
    for name in ("dsgen-compact", "dsgen"):
        compare("bytes a row", name, "bytes", lossless, 0.6, most=True)
        compare("bytes a row", name, "bytes", files, 0.7, most=True)
        compare("packed a second", name, "pack", others, 1, most=False)
        compare("memory, MB", name, "memory_mb", litdata, 1, most=True)
    lines += ["", "| copied from cache to memory | rows/s | GB/s moved | " + " | ".join(_ROOFED.values()) + " |"]
    lines.append("|---|---:|---:|" + "---:|" * len(_ROOFED))
    for cores, limit in copied.items():
        shares = [
            f"{summaries[name][f'cached_{cores}'] / limit['rows_s']:.0%}" if name in summaries else ""
            for name in _ROOFED
        ]
        lines.append(
            f"| on {cores} core{'s' * (cores != '1')} | {limit['rows_s']:,.0f} | {limit['gb_s']:.1f} | "
            + " | ".join(shares)
            + " |"
        )
    return lines


_ROOFED = {
    "dsgen": "dsgen reaches, cached",
    "dsgen-compact": "compact",
    "dsgen-composed": "recipe, composed depth",
    "ffcv-raw": "FFCV, raw",
}


def won(summaries: dict[str, dict[str, Any]]) -> list[str]:
    """For every measure, the peers that do better than dsgen."""
    ours = summaries.get("dsgen-compact") or summaries.get("dsgen")
    if not ours:
        return []
    lines = []
    for key, what, most in (
        ("cached_2", "cached samples a second, 2 cores", False),
        ("first_2", "first-pass samples a second, 2 cores", False),
        ("cached_1", "cached samples a second, 1 core", False),
        ("first_1", "first-pass samples a second, 1 core", False),
        ("pack", "samples packed a second", False),
        ("bytes", "bytes a sample", True),
        ("memory_mb", "megabytes of memory", True),
    ):
        better = [
            f"{PEERS[name].name} ({of[key]:,.0f}, {of['bytes'] / ours['bytes']:.1f} times the bytes)"
            if key.startswith(("first", "cached"))
            else f"{PEERS[name].name} ({of[key]:,.0f})"
            for name, of in summaries.items()
            if not PEERS[name].ours and (of[key] < ours[key] if most else of[key] > ours[key])
        ]
        if better:
            lines.append(f"Better than dsgen, compact ({ours[key]:,.0f}) in {what}: {', '.join(better)}.")
    return lines


def report(results: dict[str, Any]) -> str:
    """The whole of `peers.md`."""
    rows, found = results["rows"], results["peers"]
    summaries = {name: summary(of, rows) for name, of in found.items() if "failed" not in of}
    ideal = results["ideal_pairs"]
    error = max((of["image_error"] for of in summaries.values()), default=0)
    caches = [
        f"{PEERS[name].name} {of['cache_bytes']:,.0f}" for name, of in summaries.items() if of["cache_bytes"] > 1000
    ]
    mapping = [
        f"{PEERS[name].name} {of['mapped_mb']:,}"
        for name, of in summaries.items()
        if of["mapped_mb"] > of["memory_mb"] + 300
    ]
    notes = [
        f"{rows:,} samples of 224x224: composite, mask, uint16 depth. {results['rounds']} rounds, medians; {PROCESSES} "
        f"processes write. Python {results['python']} on {results['processor']}, {results['cores']} cores.",
        "First pass: opening, converting and compiling included; the kernel was asked to drop the files' pages. "
        "Cached: the pass after it, in the same process.",
        f"Shuffled batches of {BATCH}. Pairs: different (background, foreground) pairs in a batch; drawn evenly from "
        f"all rows it would be {ideal:.1f}.",
        "Memory: peak of all processes on 2 cores, shared pages once, mapped files not counted"
        + (f" (with them: {', '.join(mapping)})." if mapping else "."),
        f"JPEG has quality {QUALITY} and a mean error of up to {error:.2f} of 255; masks and depths are equal.",
        "Composed depth is another depth than the others', see the README of the corpus.",
    ]
    if caches:
        notes.append(f"Bytes a sample that readers keep in a cache folder of their own besides: {', '.join(caches)}.")
    notes += [f"{PEERS[name].name} failed: {of['failed']}" for name, of in found.items() if "failed" in of]
    if results["not_installed"]:
        notes.append(f"Not installed, not measured: {', '.join(results['not_installed'])}.")
    notes.append(", ".join(f"{package} {version}" for package, version in results["versions"].items()) + ".")
    listed = [f"- {line}" for line in (*won(summaries), *notes)]
    return "\n".join([*table(summaries), "", *targets(summaries, results["copied"]), "", *listed, ""])


def main() -> None:
    """Measure, and write what was found; or run the one step that a parent asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=20000, help="samples, a multiple of 400")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path("bench/peers"), help="for the corpus and what is packed")
    parser.add_argument("--out", type=Path, default=Path("bench"), help="for peers.md and peers.json")
    parser.add_argument("--peers", default=",".join(PEERS), help="names, with commas between")
    parser.add_argument("--keep", action="store_true", help="keep the labelled corpus for the next run")
    parser.add_argument("--write", action="store_true", help="put the results into the README beside this file")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--peer", help=argparse.SUPPRESS)
    parser.add_argument("--cores", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        child(arguments)
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the step that is running is ended too
    chosen = arguments.peers.split(",")
    if unknown := [name for name in chosen if name not in PEERS]:
        parser.error(f"--peers: got {', '.join(unknown)}, expected some of {', '.join(PEERS)}")
    if arguments.rows < 400 or arguments.rows % 400:
        parser.error(f"--rows: got {arguments.rows}, expected a multiple of 400")
    folder = arguments.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    corpus = folder / f"corpus-{arguments.rows}"
    make_corpus(corpus, arguments.rows)
    opened = Corpus(corpus)
    shuffled = np.random.default_rng(0).permutation(len(opened))[: len(opened) // BATCH * BATCH].reshape(-1, BATCH)
    names = [name for name in chosen if PEERS[name].installed]
    results = {
        "rows": arguments.rows,
        "rounds": arguments.rounds,
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "versions": versions({PEERS[name].package for name in names} | {"torch", "numpy", "opencv-python", "zarr"}),
        "not_installed": [name for name in chosen if name not in names],
        "ideal_pairs": float(np.mean([pairs_in(opened, rows) for rows in shuffled])),
        "copied": {str(cores): run_step("copy", "dsgen", arguments.rows, folder, cores) for cores in (1, 2)},
        "peers": run_rounds(names, arguments.rows, arguments.rounds, folder),
    }
    (arguments.out / "peers.json").write_text(json.dumps(results, indent=1) + "\n")
    text = report(results)
    (arguments.out / "peers.md").write_text(text)
    print(text)
    if arguments.write:
        replace_section("peers-run", text.splitlines())
    if not arguments.keep:
        shutil.rmtree(corpus)


if __name__ == "__main__":
    main()
