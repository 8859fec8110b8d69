"""Label every picture of a folder with depth, whatever the sizes and formats.

The labels go to a folder with the same tree: `NAME.png` (uint16 millimetres, 0 = none) or `NAME.npy` (float32 metres,
or a relative model's inverse depth), at the picture's own size, each written whole or not at all; `depth.csv`, a line
for each picture; `depth.json`, what the labels were made with. A label that is newer than its picture, made with the
same settings, is kept. Memory depends on the largest picture, not on their number.
"""

import contextlib
import errno
import io
import logging
import math
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from dsgen import __version__
from dsgen.camera import focal_px
from dsgen.corpus.labels import METRIC
from dsgen.depth.labellers import (
    DepthFunction,
    Labeller,
    LabelOptions,
    PictureError,
    check_fov_is_used,
    default_batch_size,
    make_labellers,
)
from dsgen.errors import DamagedError, DsgenError, InvalidValueError, NotFoundError, reason_of
from dsgen.io import images
from dsgen.io.atomic import write_bytes, write_json
from dsgen.io.cameras import ASSUMED, Camera, read_cameras
from dsgen.io.csv_files import encode_csv, read_csv
from dsgen.io.folders import (
    DEPTH_JSON,
    FORMATS,
    attempt,
    beside,
    check_answers_folder,
    endings_in_words,
    list_files,
    output_names,
)
from dsgen.io.json_files import read_as
from dsgen.io.npy_files import read_npy
from dsgen.io.picture_files import read_size
from dsgen.parallel.arithmetic import FLOAT32
from dsgen.parallel.devices import PRECISIONS, pick_device, picture_failure
from dsgen.parallel.locks import exclusive_lock
from dsgen.parallel.pool import available_cores
from dsgen.parallel.prefetch import prefetch
from dsgen.parallel.progress import progress
from dsgen.units import to_millimetres

DEPTH_CSV = "depth.csv"
_ERRORS_OF_NAMES = (errno.ENAMETOOLONG, errno.EILSEQ, errno.EINVAL)
_BATCH_PIXELS = 8_000_000  # in a batch; a quarter of it on a CPU, which gains nothing from more

log = logging.getLogger("dsgen")


@dataclass(frozen=True)
class FolderLabelResult:
    """What a call of `label_folder` did; `failed` has the error of every bad picture, the other numbers count.

    `fov_assumed` counts the pictures whose field of view had to be assumed, 0 for a network without canonical camera.
    """

    folder: Path
    out: Path
    labelled: int
    already_there: int
    failed: tuple[str, ...]
    model: str
    device: str
    fov_assumed: int


@dataclass(frozen=True)
class _Line:
    """A line of `depth.csv`, as text: depth is empty where there is an error, and the error where there is none.

    Both are empty for a picture that is to be labelled with this field of view by a run that has not ended.
    """

    picture: str
    depth: str = ""
    width: str = ""
    height: str = ""
    minimum: str = ""
    median: str = ""
    maximum: str = ""
    seconds: str = ""
    fov_deg: str = ""
    fov_from: str = ""
    error: str = ""


@dataclass(frozen=True)
class _Job:
    """A folder of pictures, the folder of its labels, and how these are made; `names` are relative to `out`.

    `cameras` is empty for a network without a canonical camera.
    """

    folder: Path
    out: Path
    names: dict[Path, Path]
    labeller: Labeller
    batch_size: int
    previews: bool
    cameras: dict[Path, Camera | None]

    def title(self, path: Path) -> str:
        """Return a picture's path relative to the folder."""
        return path.relative_to(self.folder).as_posix()

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
    fov_deg: float | None = None,
    file_format: str | None = None,
    previews: bool = False,
) -> FolderLabelResult:
    """Label every picture under a folder; pictures that fail are listed under `failed` and do not stop the others.

    Labels go to `out`, by default `FOLDER_depth` beside the folder, as `file_format` "png" (uint16 millimetres) or
    "npy" (float32), by default PNG for metres. Pictures of one size are fed in batches. `previews` adds
    `NAME.view.jpg`, the picture and its depth in colours with their scale.

    Where the network has a canonical camera, the pictures' fields of view are found as `dsgen.io.cameras` tells;
    `fov_deg` is that of pictures that do not say theirs, along their width. A label made with another is made again.

    A picture fails that cannot be decoded, is too thin to be fed, or on which the network fails or runs out of memory.
    Hidden files, and folders that dsgen wrote, are passed by, see `dsgen.io.folders`.

    Raises `NotFoundError` for a folder that does not exist, `InvalidValueError` for options that do not fit together
    and for an `out` that holds files of others, and `DsgenError` for a folder without pictures.

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
        fov_deg=fov_deg,
    )
    if not folder.is_dir():
        raise NotFoundError(folder, "no such folder, expected a corpus or a folder of pictures", "check the path")
    out = out or beside(folder, "_depth")
    _check_options(folder, out, options, file_format)
    paths = _find_pictures(folder, out)
    labeller = make_labellers(options, [pick_device(device)])[0]
    check_fov_is_used(fov_deg, [labeller])
    suffix = _choose_format(file_format, labeller)
    labeller.precision = _settle_precision(out, labeller, suffix, paths)
    pictures = [path.relative_to(folder) for path in paths]
    names = dict(zip(paths, output_names(pictures, f".{suffix}"), strict=True))
    cameras: dict[Path, Camera | None] = {}
    if labeller.focal_px is not None:
        cameras = dict(zip(paths, read_cameras(folder, paths, fov_deg, available_cores()), strict=True))
    job = _Job(folder, out, names, labeller, batch_size or default_batch_size(labeller.device), previews, cameras)
    with exclusive_lock(out):
        _write_parameters(job, suffix)
        before = _read_table(out / DEPTH_CSV, labeller)
        found = {path: _describe_again(path, before, job) for path in paths}
        lines = {path: line for path, line in found.items() if line is not None}
        missing = [path for path in paths if path not in lines]
        if cameras and missing:  # so that whatever ends this run, the next one knows what its labels were made with
            _write_table(out / DEPTH_CSV, [lines.get(path) or _begin_line(path, job) for path in paths], labeller)
        try:
            with progress("depth", len(paths), len(lines)) as advance:
                for path, line in _label_pictures(missing, job):
                    lines[path] = line
                    advance(1)
        finally:
            _write_table(out / DEPTH_CSV, [lines[path] for path in paths if path in lines], labeller)
    failed = tuple(lines[path].error for path in paths if lines[path].error)
    return FolderLabelResult(
        folder=folder,
        out=out,
        labelled=len(missing) - len(failed),
        already_there=len(paths) - len(missing),
        failed=failed,
        model=labeller.name,
        device=str(labeller.device),
        fov_assumed=sum(camera is not None and camera.fov_from == ASSUMED for camera in cameras.values()),
    )


def _check_options(folder: Path, out: Path, options: LabelOptions, file_format: str | None) -> None:
    if out.resolve() == folder.resolve():
        raise InvalidValueError("--out", f"{out} is the folder of pictures itself", "choose another")
    if file_format not in (None, *FORMATS):
        raise InvalidValueError("--format", f"got {file_format!r}, expected one of {', '.join(FORMATS)}")
    if "," in options.device:
        raise InvalidValueError.expected(
            "device", options.device, "one device for a folder", "several are for a corpus"
        )
    check_answers_folder(out, DEPTH_JSON)
    options.check()


def _find_pictures(folder: Path, out: Path) -> list[Path]:
    """Return the pictures below a folder, sorted, without those below `out`."""
    paths = list_files(folder, below=True, skip=(out,))
    if not paths:
        reason = f"neither a corpus nor a folder with pictures ({endings_in_words()})"
        raise DsgenError(folder, reason, "check the path")
    return paths


def _choose_format(file_format: str | None, labeller: Labeller) -> str:
    """Return the format of the labels: as requested, else PNG for metres and npy for relative answers."""
    if file_format == "png" and labeller.kind != METRIC:
        raise InvalidValueError("--format", f"got png, but {labeller.name} answers no metres", "use npy")
    return file_format or ("png" if labeller.kind == METRIC else "npy")


def _settle_precision(out: Path, labeller: Labeller, suffix: str, paths: list[Path]) -> str:
    """Return the precision to use: for "auto" that of labels that are there and else alike, or what is faster here.

    Labels of earlier versions may say "auto"; they stay so, and are resumed by the rule of those versions.
    """
    if labeller.precision != "auto":
        return labeller.precision
    recorded = _read_parameters(out / DEPTH_JSON)
    before = recorded.get("precision")
    alike = before in PRECISIONS and recorded == _parameters(labeller, suffix) | {"precision": before}
    if alike and before == "auto":
        return "auto"
    here = _pick_precision(labeller, paths)
    if alike and before != here:
        log.warning("%s: labelled with --precision %s, continuing with it (auto is %s here)", out, before, here)
    return str(before) if alike else here


def _pick_precision(labeller: Labeller, paths: list[Path]) -> str:
    """Measure for pictures of the size of the first that can be fed; float32 if there is none."""
    for path in paths:
        with contextlib.suppress(DsgenError):
            return labeller.pick_precision(*read_size(path))
    return FLOAT32


def _parameters(labeller: Labeller, suffix: str) -> dict[str, Any]:
    """Return what labels are made with, as `depth.json` has it."""
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
    return parameters if labeller.focal_px is None else parameters | {"focal_px": labeller.focal_px}


def _read_parameters(path: Path) -> dict[str, Any]:
    """Read `depth.json`; return nothing where there is none."""
    return read_as(dict[str, Any], path, "remove it to label all pictures again") if path.is_file() else {}


def _write_parameters(job: _Job, suffix: str) -> None:
    """Write what the labels are made with to `depth.json`; a change makes every older label out of date."""
    parameters, path = _parameters(job.labeller, suffix), job.out / DEPTH_JSON
    if _read_parameters(path) != parameters:
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
            started = time.monotonic()
            depths = _estimate(good, job)
            seconds = round((time.monotonic() - started) / len(good), 4)
            for (path, image), depth in zip(good, depths, strict=True):
                if isinstance(depth, DsgenError):
                    yield path, _Line(job.title(path), error=str(depth))
                else:
                    pending.append((path, writer.submit(_write_label, path, image, depth, seconds, job)))
            while len(pending) > len(good):  # this batch is written while the next is labelled
                path, future = pending.pop(0)
                yield path, future.result()
        for path, future in pending:
            yield path, future.result()


def _estimate(pictures: list[tuple[Path, np.ndarray]], job: _Job) -> list[np.ndarray | DsgenError]:
    """Estimate the depth (H,W) f4 of pictures of one size; where a batch fails, each alone, with an error for each bad.

    Raises `DsgenError` for what is no picture's fault, such as a device that is lost.
    """
    labeller = job.labeller
    try:
        batch = np.stack([image for _, image in pictures])  # (n,H,W,3) u1
        size = batch.shape[1:3]
        focal_lengths = [_focal_px(path, size[1], job) for path, _ in pictures]
        fed = labeller.feed_shape(size[0], size[1], focal_lengths[0])
        known = None if labeller.focal_px is None else np.array(focal_lengths)  # (n,)
        depths, _ = labeller(labeller.prepare(batch, fed), size, size, known)  # (n,H,W) f4
    except Exception as error:  # networks and functions raise errors of any class
        if isinstance(error, DsgenError) and not isinstance(error, PictureError):
            raise
        if len(pictures) == 1:
            log.debug("%s", pictures[0][0], exc_info=error)
            return [picture_failure(pictures[0][0], error, labeller.device)]
        return [depth for picture in pictures for depth in _estimate([picture], job)]
    return list(depths)


def _decode_groups(
    paths: list[Path], job: _Job, decoders: ThreadPoolExecutor
) -> Iterator[tuple[list[Path], list[np.ndarray | DsgenError]]]:
    """Decode pictures in groups of one size, read from the headers, and fed at one, so that a group can be a batch.

    A group has at most `job.batch_size` pictures and, unless it is a single one, `_BATCH_PIXELS` pixels, both as they
    are and as they are fed.
    """
    most_pixels = _BATCH_PIXELS // 4 if job.labeller.device.type == "cpu" else _BATCH_PIXELS
    sizes = dict(zip(paths, decoders.map(_header_size, paths), strict=True))
    shapes = {path: (*sizes[path], *_fed_shape(path, *sizes[path], job)) for path in paths}
    by_shape = sorted(paths, key=lambda path: (shapes[path], path))
    for (height, width, *fed), same_shape in groupby(by_shape, key=shapes.__getitem__):
        alike = list(same_shape)
        length = max(1, min(job.batch_size, most_pixels // max(1, height * width, math.prod(fed))))
        for start in range(0, len(alike), length):
            group = alike[start : start + length]
            decoded = list(decoders.map(attempt, group))
            if len({image.shape for image in decoded if isinstance(image, np.ndarray)}) > 1:  # a header was wrong
                yield from (([path], [image]) for path, image in zip(group, decoded, strict=True))
            else:
                yield group, decoded


def _fed_shape(path: Path, height: int, width: int, job: _Job) -> tuple[int, int]:
    if not height or not width:
        return 0, 0
    try:
        return job.labeller.feed_shape(height, width, _focal_px(path, width, job))
    except PictureError:
        return 0, 0


def _focal_px(path: Path, width: int, job: _Job) -> float | None:
    """Return the focal length in pixels of a picture so wide, None for a network without a canonical camera."""
    camera = job.cameras.get(path)
    return None if camera is None else focal_px(camera.fov_deg, width)


def _header_size(path: Path) -> tuple[int, int]:
    """Read a picture's height and width as displayed; (0, 0) where even the header is bad."""
    try:
        return read_size(path)
    except DsgenError:  # decoding the picture raises the error to report
        return 0, 0


def _write_label(path: Path, image: np.ndarray, depth: np.ndarray, seconds: float, job: _Job) -> _Line:
    """Write one picture's label (H,W) f4, and its view; return its line of the table, with the error if there is one.

    Raises `OSError` for what would stop every label, such as a full disk.
    """
    if not np.isfinite(depth).all():
        error = DsgenError(path, "the network's depth is not finite, so nothing was stored", "try --precision float32")
        return _Line(job.title(path), error=str(error))
    try:
        return _store_label(path, image, depth, seconds, job)
    except OSError as failed:
        if failed.errno not in _ERRORS_OF_NAMES:
            raise
        named = DsgenError(path, f"its label cannot be written ({reason_of(failed)})", "rename the picture")
        return _Line(job.title(path), error=str(named))


def _store_label(path: Path, image: np.ndarray, depth: np.ndarray, seconds: float, job: _Job) -> _Line:
    title, file = job.title(path), job.out / job.names[path]
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


def _describe_again(path: Path, before: dict[str, _Line], job: _Job) -> _Line | None:
    """Return the line of the table for a label that is there, up to date and whole; None where there is none."""
    line, begun = before.get(job.title(path)), _begin_line(path, job)
    if not _is_labelled(path, job) or (job.cameras and (line is None or line.fov_deg != begun.fov_deg)):
        return None
    file = job.out / job.names[path]
    try:
        if line is not None and line.depth:
            return replace(line, fov_from=begun.fov_from)
        if line is not None and file.stat().st_mtime_ns < (job.out / DEPTH_CSV).stat().st_mtime_ns:
            return None  # the run that began this line did not come to it
        return _describe(path, _read_label(file), job)
    except (DsgenError, ValueError, EOFError):  # a damaged label
        return None


def _describe(path: Path, depth: np.ndarray, job: _Job, seconds: float | None = None) -> _Line:
    """Return the line of the table for a label (H,W) f4."""
    height, width = depth.shape
    begun = _begin_line(path, job)
    minimum, median, maximum = (str(round(float(value), 4)) for value in (depth.min(), np.median(depth), depth.max()))
    return replace(
        begun,
        depth=job.names[path].as_posix(),
        width=str(width),
        height=str(height),
        minimum=minimum,
        median=median,
        maximum=maximum,
        seconds="" if seconds is None else str(seconds),
    )


def _begin_line(path: Path, job: _Job) -> _Line:
    """Return the line of the table for a picture that has no label yet."""
    camera = job.cameras.get(path)
    if camera is None:
        return _Line(job.title(path))
    return _Line(job.title(path), fov_deg=str(camera.fov_deg), fov_from=camera.fov_from)


def _columns(labeller: Labeller) -> dict[str, str]:
    """Return the columns of `depth.csv` by field of `_Line`, with the unit of depth in the name."""
    unit = "_m" if labeller.kind == METRIC else "_relative"
    units = {"minimum": f"min{unit}", "median": f"median{unit}", "maximum": f"max{unit}"}
    left_out = ("fov_deg", "fov_from") if labeller.focal_px is None else ()
    return {field.name: units.get(field.name, field.name) for field in fields(_Line) if field.name not in left_out}


def _read_table(path: Path, labeller: Labeller) -> dict[str, _Line]:
    """Read the lines of an earlier run, by picture, of those pictures that were labelled."""
    if not path.is_file():
        return {}
    columns = _columns(labeller)
    rows = read_csv(path, "remove it; dsgen depth writes it again", ("picture", "error"))
    lines = [_Line(**{field: row.get(column, "") for field, column in columns.items()}) for row in rows]
    return {line.picture: line for line in lines if not line.error}


def _write_table(path: Path, lines: list[_Line], labeller: Labeller) -> None:
    columns = _columns(labeller)
    write_bytes(path, encode_csv(list(columns.values()), ([getattr(line, name) for name in columns] for line in lines)))
