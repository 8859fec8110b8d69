"""Label every picture of a folder with depth, whatever the sizes and formats.

Beside the pictures' folder a folder of the same tree is made: `NAME.png` (uint16 millimetres, 0 = none) or `NAME.npy`
(float32 metres, or a relative model's inverse depth), at the picture's own size, each written whole or not at all;
`depth.csv`, a line for each picture; `depth.json`, what the labels were made with. What was made with the same is not
made again. Memory depends on the largest picture, not on their number.
"""

import csv
import io
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dsgen import __version__
from dsgen.corpus.labels import METRIC
from dsgen.depth.labellers import DepthFunction, Labeller, check_batch_size, default_batch_size, make_labellers
from dsgen.errors import DsgenError, InvalidValueError, NotFoundError
from dsgen.io import images
from dsgen.io.atomic import write_bytes, write_json
from dsgen.io.folders import FORMATS, attempt, output_names
from dsgen.io.json_files import read_json
from dsgen.parallel.devices import pick_device
from dsgen.parallel.locks import exclusive_lock
from dsgen.parallel.pool import available_cores
from dsgen.parallel.prefetch import prefetch
from dsgen.parallel.progress import progress
from dsgen.units import to_millimetres

DEPTH_CSV = "depth.csv"
DEPTH_JSON = "depth.json"
_BATCH_PIXELS = 8_000_000  # at once; of a CPU, which gains nothing by more, a quarter
_TURNED = range(5, 9)  # EXIF orientations that swap height and width


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
) -> dict[str, Any]:
    """Label every picture under a folder and return the counts; `failed` lists an error for every bad picture.

    Good pictures are labelled whatever the bad ones are. Pictures of one size are fed in batches. `previews` adds
    `NAME.view.jpg`, the picture and its depth in colours with their scale.
    """
    if not folder.is_dir():
        raise NotFoundError(folder, "no such folder, expected a corpus or a folder of pictures")
    out = out or folder.with_name(folder.name + "_depth")
    if out.resolve() == folder.resolve():
        raise InvalidValueError("--out", f"{out} is the folder of pictures itself", "choose another")
    if file_format not in (None, *FORMATS):
        raise InvalidValueError("--format", f"got {file_format!r}, expected one of {', '.join(FORMATS)}")
    if "," in device:
        raise InvalidValueError(
            "--device", f"got {device}, expected one device for a folder", "several are for a corpus"
        )
    check_batch_size(batch_size)
    paths = sorted(
        p for p in folder.rglob("*") if p.suffix.lower() in images.SUFFIXES and p.is_file() and out not in p.parents
    )
    if not paths:
        raise DsgenError(folder, f"neither a corpus nor a folder with pictures ({' '.join(sorted(images.SUFFIXES))})")
    where = pick_device(device)
    labeller = make_labellers(
        model,
        [where],
        weights=weights,
        kind=kind,
        max_depth_m=max_depth_m,
        compile_network=compile_network,
        precision=precision,
        average_flip=average_flip,
    )[0]
    ending = file_format or ("png" if labeller.kind == METRIC else "npy")
    if ending == "png" and labeller.kind != METRIC:
        raise InvalidValueError("--format", f"got png, but {labeller.name} answers no metres", "take npy")
    pictures = [path.relative_to(folder) for path in paths]
    names = dict(zip(paths, output_names(pictures, f".{ending}"), strict=True))
    with exclusive_lock(out):
        _settle_parameters(out, labeller, ending)
        before = _read_table(out / DEPTH_CSV)
        missing = [path for path in paths if not _is_there(path, out, names[path], previews)]
        table: dict[Path, dict[str, Any]] = {}
        for path in set(paths).difference(missing):
            picture = str(path.relative_to(folder))
            table[path] = before.get(picture) or _describe(picture, names[path], _load(out / names[path]), labeller)
        with progress("depth", len(paths), len(paths) - len(missing)) as advance:
            for path, entry in _label_all(folder, missing, out, names, labeller, batch_size, previews):
                table[path] = entry
                advance(1)
        _write_table(out / DEPTH_CSV, [table[path] for path in paths], labeller)
    failed = [entry["error"] for path in paths if (entry := table[path]).get("error")]
    return {
        "folder": str(folder),
        "out": str(out),
        "labelled": len(missing) - len(failed),
        "already_there": len(paths) - len(missing),
        "failed": failed,
        "model": labeller.name,
        "device": str(where),
    }


def _settle_parameters(out: Path, labeller: Labeller, ending: str) -> None:
    """Write down what the labels are made with; a new `depth.json` makes every older label out of date."""
    parameters = {
        "dsgen": __version__,
        "model": labeller.name,
        "weights_sha256": labeller.sha256,
        "kind": labeller.kind,
        "precision": labeller.precision,
        "flip_averaged": labeller.average_flip,
        "max_depth_m": labeller.max_depth_m,
        "format": ending,
        "units": {"png": "mm", "npy": "m"}[ending] if labeller.kind == METRIC else "1",
    }
    path = out / DEPTH_JSON
    if not path.is_file() or read_json(path) != parameters:
        write_json(path, parameters)


def _is_there(picture: Path, out: Path, name: Path, previews: bool) -> bool:
    """Say whether a picture's label is there, newer than the picture and than the parameters."""
    wanted = [out / name] + [out / _view_name(name)] * previews
    if not all(path.is_file() for path in wanted):
        return False
    newest = max(picture.stat().st_mtime_ns, (out / DEPTH_JSON).stat().st_mtime_ns)
    return min(path.stat().st_mtime_ns for path in wanted) >= newest


def _label_all(
    folder: Path,
    paths: list[Path],
    out: Path,
    names: dict[Path, Path],
    labeller: Labeller,
    batch_size: int | None,
    previews: bool,
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Label pictures; yield what the table says of each. Decoding, network and writing overlap."""
    most = batch_size or default_batch_size(labeller.device)
    pixels = _BATCH_PIXELS // 4 if labeller.device.type == "cpu" else _BATCH_PIXELS
    pending: list[tuple[Path, Future[dict[str, Any]]]] = []
    with ThreadPoolExecutor(available_cores()) as pool, ThreadPoolExecutor(1) as writer:
        for group, decoded in prefetch(_decoded(paths, most, pixels, pool), 2):
            good = [
                (path, picture) for path, picture in zip(group, decoded, strict=True) if isinstance(picture, np.ndarray)
            ]
            for path, failure in zip(group, decoded, strict=True):
                if isinstance(failure, DsgenError):
                    yield path, {"picture": str(path.relative_to(folder)), "error": str(failure)}
            if not good:
                continue
            image = np.stack([picture for _, picture in good])
            shape = image.shape[1:3]
            started = time.monotonic()
            depth, _ = labeller(labeller.prepare(image), shape, shape)
            seconds = round((time.monotonic() - started) / len(good), 4)
            for (path, picture), answer in zip(good, depth, strict=True):
                work = (folder, path, out, names[path], picture, answer, labeller, seconds, previews)
                pending.append((path, writer.submit(_keep, *work)))
            while len(pending) > len(good):
                path, future = pending.pop(0)
                yield path, future.result()
        for path, future in pending:
            yield path, future.result()


def _decoded(
    paths: list[Path], most: int, pixels: int, pool: ThreadPoolExecutor
) -> Iterator[tuple[list[Path], list[np.ndarray | DsgenError]]]:
    """Decode pictures in groups of one size, as the headers say it, so that they can be fed together.

    A group has at most `most` pictures and, unless it has but one, `pixels` pixels.
    """
    sizes = dict(zip(paths, pool.map(_header_size, paths), strict=True))
    for (height, width), same in groupby(sorted(paths, key=lambda path: (sizes[path], path)), key=sizes.__getitem__):
        alike = list(same)
        at_once = max(1, min(most, pixels // max(1, height * width)))
        for start in range(0, len(alike), at_once):
            group = alike[start : start + at_once]
            decoded = list(pool.map(attempt, group))
            shapes = {picture.shape for picture in decoded if isinstance(picture, np.ndarray)}
            if len(shapes) > 1:  # a header that lies
                yield from (([path], [picture]) for path, picture in zip(group, decoded, strict=True))
            else:
                yield group, decoded


def _header_size(path: Path) -> tuple[int, int]:
    """Read a picture's height and width as shown; (0, 0) where even the header is bad."""
    try:
        with Image.open(path) as image:
            turned = image.getexif().get(0x0112) in _TURNED
            return image.size if turned else image.size[::-1]
    except Exception:  # what is wrong with it is said when it is decoded
        return 0, 0


def _keep(
    folder: Path,
    path: Path,
    out: Path,
    name: Path,
    picture: np.ndarray,
    depth: np.ndarray,
    labeller: Labeller,
    seconds: float,
    previews: bool,
) -> dict[str, Any]:
    """Write one picture's label and say what the table says of it."""
    title = str(path.relative_to(folder))
    if not np.isfinite(depth).all():
        return {"picture": title, "error": f"{path}: the network's depth is not finite; nothing was stored"}
    (out / name).parent.mkdir(parents=True, exist_ok=True)
    if previews:
        from dsgen.io.colours import draw_depth

        draw_depth(out / _view_name(name), picture, depth, title, metric=labeller.kind == METRIC)
    if name.suffix == ".png":
        stored = to_millimetres(depth)
        write_bytes(out / name, images.encode_png(stored))
        depth = stored.astype(np.float32) / 1000
    else:
        content = io.BytesIO()
        np.save(content, depth.astype(np.float32))
        write_bytes(out / name, content.getvalue())
    return _describe(title, name, depth, labeller) | {"seconds": seconds}


def _view_name(name: Path) -> Path:
    return name.with_suffix(".view.jpg")


def _load(path: Path) -> np.ndarray:
    """Read a label back: metres, or a relative model's answer."""
    if path.suffix == ".npy":
        return np.load(path)
    return images.read_depth_png(path).astype(np.float32) / 1000


def _describe(picture: str, name: Path, depth: np.ndarray, labeller: Labeller) -> dict[str, Any]:
    height, width = depth.shape
    numbers = (float(depth.min()), float(np.median(depth)), float(depth.max()))
    return {"picture": picture, "depth": str(name), "width": width, "height": height} | dict(
        zip(_columns(labeller)[4:7], (round(number, 4) for number in numbers), strict=True)
    )


def _columns(labeller: Labeller) -> tuple[str, ...]:
    unit = "_m" if labeller.kind == METRIC else "_relative"
    return ("picture", "depth", "width", "height", f"min{unit}", f"median{unit}", f"max{unit}", "seconds", "error")


def _read_table(path: Path) -> dict[str, dict[str, Any]]:
    """What an earlier run wrote of pictures that went well."""
    if not path.is_file():
        return {}
    with path.open(newline="") as file:
        return {row["picture"]: dict(row) for row in csv.DictReader(file) if not row.get("error")}


def _write_table(path: Path, table: list[dict[str, Any]], labeller: Labeller) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, _columns(labeller), lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    writer.writerows(table)
    write_bytes(path, text.getvalue().encode())
