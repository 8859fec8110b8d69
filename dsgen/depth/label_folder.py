"""Label every picture of a folder with depth, whatever the sizes and formats.

The labels go to a folder with the same tree: `NAME.png` (uint16 millimetres, 0 = none) or `NAME.npy` (float32 metres,
or a relative model's inverse depth), at the picture's own size, each written whole or not at all; `depth.csv`, a line
for each picture; `depth.json`, what the labels were made with. A label that is newer than its picture, made with the
same settings, is kept. Memory depends on the largest picture, not on their number.
"""

import csv
import io
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import astuple, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dsgen import __version__
from dsgen.corpus.labels import METRIC
from dsgen.depth.labellers import DepthFunction, Labeller, LabelOptions, default_batch_size, make_labellers
from dsgen.errors import DamagedError, DsgenError, InvalidValueError, NotFoundError
from dsgen.io import images
from dsgen.io.atomic import write_bytes, write_json
from dsgen.io.csv_files import read_csv
from dsgen.io.folders import FORMATS, attempt, output_names
from dsgen.io.json_files import read_as
from dsgen.io.npy_files import read_npy
from dsgen.parallel.devices import pick_device
from dsgen.parallel.locks import exclusive_lock
from dsgen.parallel.pool import available_cores
from dsgen.parallel.prefetch import prefetch
from dsgen.parallel.progress import progress
from dsgen.units import to_millimetres

DEPTH_CSV = "depth.csv"
DEPTH_JSON = "depth.json"
_BATCH_PIXELS = 8_000_000  # in a batch; a quarter of it on a CPU, which gains nothing from more
_ROTATED = range(5, 9)  # EXIF orientations that swap height and width


@dataclass(frozen=True)
class FolderLabelResult:
    """What a call of `label_folder` did; `failed` has the error of every bad picture, the other numbers count."""

    folder: Path
    out: Path
    labelled: int
    already_there: int
    failed: tuple[str, ...]
    model: str
    device: str


@dataclass(frozen=True)
class _Line:
    """A line of `depth.csv`, as text: depth is empty where there is an error, and the error where there is none."""

    picture: str
    depth: str = ""
    width: str = ""
    height: str = ""
    minimum: str = ""
    median: str = ""
    maximum: str = ""
    seconds: str = ""
    error: str = ""


@dataclass(frozen=True)
class _Job:
    """A folder of pictures, the folder of its labels, and how these are made; `names` are relative to `out`."""

    folder: Path
    out: Path
    names: dict[Path, Path]
    labeller: Labeller
    batch_size: int
    previews: bool

    def title(self, path: Path) -> str:
        """Return a picture's path relative to the folder."""
        return str(path.relative_to(self.folder))

    def view(self, path: Path) -> Path:
        """Return where a picture's coloured view is written."""
        return self.out / self.names[path].with_suffix(".view.jpg")


def label_folder(
    folder: Path,
    out: Path | None = None,
    *,
    weights: Path | None = None,
    model: str | DepthFunction | None = None,
    kind: str | None = None,
    max_depth_m: float | None = None,
    device: str = "auto",
    batch_size: int | None = None,
    compile_network: bool = False,
    precision: str = "auto",
    average_flip: bool = False,
    file_format: str | None = None,
    previews: bool = False,
) -> FolderLabelResult:
    """Label every picture under a folder; bad pictures are listed under `failed` and do not stop the others.

    Labels go to `out`, by default `FOLDER_depth` beside the folder, as `file_format` "png" (uint16 millimetres) or
    "npy" (float32), by default PNG for metres. Pictures of one size are fed in batches. `previews` adds
    `NAME.view.jpg`, the picture and its depth in colours with their scale.

    Raises `NotFoundError` for a folder that does not exist, `InvalidValueError` for options that do not fit together,
    and `DsgenError` for a folder without pictures.

    >>> from dsgen import label_folder
    >>> label_folder(Path("holiday-pictures"), previews=True).labelled  # doctest: +SKIP
    120
    """
    options = LabelOptions(
        model=model,
        weights=weights,
        kind=kind,
        max_depth_m=max_depth_m,
        device=device,
        batch_size=batch_size,
        compile_network=compile_network,
        precision=precision,
        average_flip=average_flip,
    )
    out = out or folder.with_name(folder.name + "_depth")
    _check_options(folder, out, options, file_format)
    paths = _find_pictures(folder, out)
    labeller = make_labellers(options, [pick_device(device)])[0]
    suffix = _choose_format(file_format, labeller)
    pictures = [path.relative_to(folder) for path in paths]
    names = dict(zip(paths, output_names(pictures, f".{suffix}"), strict=True))
    job = _Job(folder, out, names, labeller, batch_size or default_batch_size(labeller.device), previews)
    with exclusive_lock(out):
        _write_parameters(job, suffix)
        before = _read_table(out / DEPTH_CSV, labeller)
        missing = [path for path in paths if not _is_labelled(path, job)]
        lines: dict[Path, _Line] = {}
        for path in set(paths).difference(missing):
            lines[path] = before.get(job.title(path)) or _describe(path, _read_label(out / names[path]), job)
        with progress("depth", len(paths), len(paths) - len(missing)) as advance:
            for path, line in _label_pictures(missing, job):
                lines[path] = line
                advance(1)
        _write_table(out / DEPTH_CSV, [lines[path] for path in paths], labeller)
    failed = tuple(lines[path].error for path in paths if lines[path].error)
    return FolderLabelResult(
        folder=folder,
        out=out,
        labelled=len(missing) - len(failed),
        already_there=len(paths) - len(missing),
        failed=failed,
        model=labeller.name,
        device=str(labeller.device),
    )


def _check_options(folder: Path, out: Path, options: LabelOptions, file_format: str | None) -> None:
    if not folder.is_dir():
        raise NotFoundError(folder, "no such folder, expected a corpus or a folder of pictures")
    if out.resolve() == folder.resolve():
        raise InvalidValueError("--out", f"{out} is the folder of pictures itself", "choose another")
    if file_format not in (None, *FORMATS):
        raise InvalidValueError("--format", f"got {file_format!r}, expected one of {', '.join(FORMATS)}")
    if "," in options.device:
        raise InvalidValueError.expected(
            "device", options.device, "one device for a folder", "several are for a corpus"
        )
    options.check()


def _find_pictures(folder: Path, out: Path) -> list[Path]:
    """Return the pictures below a folder, sorted, without those below `out`."""
    paths = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in images.SUFFIXES and path.is_file() and out not in path.parents
    )
    if not paths:
        raise DsgenError(folder, f"neither a corpus nor a folder with pictures ({' '.join(sorted(images.SUFFIXES))})")
    return paths


def _choose_format(file_format: str | None, labeller: Labeller) -> str:
    """Return the format of the labels: as requested, else PNG for metres and npy for relative answers."""
    if file_format == "png" and labeller.kind != METRIC:
        raise InvalidValueError("--format", f"got png, but {labeller.name} answers no metres", "use npy")
    return file_format or ("png" if labeller.kind == METRIC else "npy")


def _write_parameters(job: _Job, suffix: str) -> None:
    """Write what the labels are made with to `depth.json`; a change makes every older label out of date."""
    labeller = job.labeller
    parameters = {
        "dsgen": __version__,
        "model": labeller.name,
        "weights_sha256": labeller.sha256,
        "kind": labeller.kind,
        "precision": labeller.precision,
        "flip_averaged": labeller.average_flip,
        "max_depth_m": labeller.max_depth_m,
        "format": suffix,
        "units": {"png": "mm", "npy": "m"}[suffix] if labeller.kind == METRIC else "1",
    }
    path = job.out / DEPTH_JSON
    if not path.is_file() or read_as(dict[str, Any], path, "remove it to label all pictures again") != parameters:
        write_json(path, parameters)


def _is_labelled(path: Path, job: _Job) -> bool:
    """Whether a picture's label exists, newer than the picture and than the parameters."""
    expected = [job.out / job.names[path], *([job.view(path)] if job.previews else [])]
    if not all(file.is_file() for file in expected):
        return False
    newest_input = max(path.stat().st_mtime_ns, (job.out / DEPTH_JSON).stat().st_mtime_ns)
    return min(file.stat().st_mtime_ns for file in expected) >= newest_input


def _label_pictures(paths: list[Path], job: _Job) -> Iterator[tuple[Path, _Line]]:
    """Label pictures; yield each with its line of the table. Decoding, network and writing overlap."""
    labeller = job.labeller
    pending: list[tuple[Path, Future[_Line]]] = []
    with ThreadPoolExecutor(available_cores()) as decoders, ThreadPoolExecutor(1) as writer:
        for group, decoded in prefetch(_decode_groups(paths, job, decoders), 2):
            good: list[tuple[Path, np.ndarray]] = []
            for path, image in zip(group, decoded, strict=True):
                if isinstance(image, DsgenError):
                    yield path, _Line(job.title(path), error=str(image))
                else:
                    good.append((path, image))
            if not good:
                continue
            batch = np.stack([image for _, image in good])  # (n,H,W,3) u1
            size = batch.shape[1:3]
            started = time.monotonic()
            depths, _ = labeller(labeller.prepare(batch), size, size)  # (n,H,W) f4
            seconds = round((time.monotonic() - started) / len(good), 4)
            for (path, image), depth in zip(good, depths, strict=True):
                pending.append((path, writer.submit(_write_label, path, image, depth, seconds, job)))
            while len(pending) > len(good):  # this batch is written while the next is labelled
                path, future = pending.pop(0)
                yield path, future.result()
        for path, future in pending:
            yield path, future.result()


def _decode_groups(
    paths: list[Path], job: _Job, decoders: ThreadPoolExecutor
) -> Iterator[tuple[list[Path], list[np.ndarray | DsgenError]]]:
    """Decode pictures in groups of one size, read from the headers, so that a group can be fed as one batch.

    A group has at most `job.batch_size` pictures and, unless it is a single one, `_BATCH_PIXELS` pixels.
    """
    most_pixels = _BATCH_PIXELS // 4 if job.labeller.device.type == "cpu" else _BATCH_PIXELS
    sizes = dict(zip(paths, decoders.map(_header_size, paths), strict=True))
    by_size = sorted(paths, key=lambda path: (sizes[path], path))
    for (height, width), same_size in groupby(by_size, key=sizes.__getitem__):
        alike = list(same_size)
        length = max(1, min(job.batch_size, most_pixels // max(1, height * width)))
        for start in range(0, len(alike), length):
            group = alike[start : start + length]
            decoded = list(decoders.map(attempt, group))
            if len({image.shape for image in decoded if isinstance(image, np.ndarray)}) > 1:  # a header was wrong
                yield from (([path], [image]) for path, image in zip(group, decoded, strict=True))
            else:
                yield group, decoded


def _header_size(path: Path) -> tuple[int, int]:
    """Read a picture's height and width as displayed; (0, 0) where even the header is bad."""
    try:
        with Image.open(path) as image:
            rotated = image.getexif().get(0x0112) in _ROTATED
            return image.size if rotated else image.size[::-1]
    except Exception:  # decoding the picture raises the error to report
        return 0, 0


def _write_label(path: Path, image: np.ndarray, depth: np.ndarray, seconds: float, job: _Job) -> _Line:
    """Write one picture's label (H,W) f4, and its view; return its line of the table."""
    title, file = job.title(path), job.out / job.names[path]
    if not np.isfinite(depth).all():
        return _Line(title, error=f"{path}: the network's depth is not finite; nothing was stored")
    file.parent.mkdir(parents=True, exist_ok=True)
    if job.previews:
        from dsgen.io.colours import draw_depth

        draw_depth(job.view(path), image, depth, title, metric=job.labeller.kind == METRIC)
    if file.suffix == ".png":
        stored = to_millimetres(depth)
        write_bytes(file, images.encode_png(stored))
        depth = stored.astype(np.float32) / 1000
    else:
        content = io.BytesIO()
        np.save(content, depth.astype(np.float32))
        write_bytes(file, content.getvalue())
    return _describe(path, depth, job, seconds)


def _read_label(path: Path) -> np.ndarray:
    """Read a label back, (H,W) f4: metres, or a relative model's answer."""
    if path.suffix == ".npy":
        depth = read_npy(path, "remove it to label the picture again")
        if depth.ndim != 2 or depth.dtype.kind != "f" or not depth.size:
            reason = f"got {depth.dtype} {depth.shape}, expected (height, width) of floats"
            raise DamagedError(path, reason, "remove it to label the picture again")
        return depth.astype(np.float32, copy=False)
    return images.read_depth_png(path).astype(np.float32) / 1000


def _describe(path: Path, depth: np.ndarray, job: _Job, seconds: float | None = None) -> _Line:
    """Return the line of the table for a label (H,W) f4."""
    height, width = depth.shape
    minimum, median, maximum = (str(round(float(value), 4)) for value in (depth.min(), np.median(depth), depth.max()))
    return _Line(
        picture=job.title(path),
        depth=str(job.names[path]),
        width=str(width),
        height=str(height),
        minimum=minimum,
        median=median,
        maximum=maximum,
        seconds="" if seconds is None else str(seconds),
    )


def _columns(labeller: Labeller) -> tuple[str, ...]:
    """Return the header of `depth.csv`: the fields of `_Line`, with the unit of depth in the name."""
    unit = "_m" if labeller.kind == METRIC else "_relative"
    return ("picture", "depth", "width", "height", f"min{unit}", f"median{unit}", f"max{unit}", "seconds", "error")


def _read_table(path: Path, labeller: Labeller) -> dict[str, _Line]:
    """Read the lines of an earlier run, by picture, of those pictures that were labelled."""
    if not path.is_file():
        return {}
    columns = _columns(labeller)
    rows = read_csv(path, remedy="remove it to describe all labels again")
    lines = [_Line(*(row.get(column) or "" for column in columns)) for row in rows]
    return {line.picture: line for line in lines if not line.error}


def _write_table(path: Path, lines: list[_Line], labeller: Labeller) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_columns(labeller))
    writer.writerows(astuple(line) for line in lines)
    write_bytes(path, text.getvalue().encode())
