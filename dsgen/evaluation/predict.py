"""Masks and depth of composites of any size, with a trained network: pairs of a background and a composite in.

The folder written holds, in the tree of the pictures' folder and each file whole or not at all,

    mask/NAME.png          u1, 255 where the foreground is, else 0
    depth/NAME.png         u2 millimetres; as .npy float32 metres
    view/NAME.jpg          with `views`: the foreground in the composite, and the depth in colours with its scale
    predictions.csv        a line for each picture
    predictions.json       what the answers were made with

at each picture's own size. What was made with the same, and is newer than its pictures, is not made again. Memory
depends on the largest picture, not on their number.
"""

import csv
import io
import logging
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dsgen import __version__
from dsgen.errors import DsgenError, InvalidValueError, NotFoundError, raise_all
from dsgen.io import images
from dsgen.io.atomic import write_bytes, write_json
from dsgen.io.folders import FORMATS, attempt, output_names
from dsgen.io.json_files import read_json
from dsgen.parallel.locks import exclusive_lock
from dsgen.parallel.prefetch import prefetch
from dsgen.parallel.progress import progress
from dsgen.training.checkpoint import DEPTH, MASK, Trained, open_trained
from dsgen.units import MAX_DEPTH_M, MIN_DEPTH_M

log = logging.getLogger("dsgen")

CSV, JSON = "predictions.csv", "predictions.json"
PROPORTIONS = 0.02  # most by which those of a background and a composite may differ
SMALLEST = 32
_AHEAD = 2  # pairs decoded before they are wanted
_TABLE_SECONDS = 30
_COLUMNS = (
    "picture",
    "background",
    "width",
    "height",
    "fed_width",
    "fed_height",
    "foreground_share",
    "min_m",
    "median_m",
    "max_m",
    "foreground_median_m",
    "seconds",
    "error",
)


@dataclass(frozen=True)
class _Pair:
    picture: Path
    background: Path | None
    title: str  # the picture's path in its folder
    files: dict[str, Path]  # where its mask, depth and view go


def predict(
    run: Path,
    pictures: Path,
    backgrounds: Path | None = None,
    out: Path | None = None,
    *,
    size: int | None = None,
    checkpoint: str = "best",
    device: str = "auto",
    file_format: str = "png",
    views: bool = False,
) -> dict[str, Any]:
    """Find the foreground and the depth of a composite, or of all below a folder, and return the counts.

    `backgrounds` is one picture for all, as of a fixed camera, or a folder: a composite `a/b/c.jpg` is paired with
    the background `a/b/c`, else `a/b`, else `a`, of any ending; without it backgrounds are black, of which only a
    network makes sense that was trained on a store without backgrounds. A pair is fed scaled so that its longer side is
    `size` pixels, by default the side of the largest pictures the network was trained on; a background of another
    size is scaled to the composite's. Answers are enlarged bilinearly, masks as logits. `out` is by default a folder
    beside the pictures. `failed` in the result lists an error for every bad picture, the others are done; raises
    `DsgenError` where there is none to do.
    """
    if file_format not in FORMATS:
        raise InvalidValueError("--format", f"got {file_format!r}, expected one of {', '.join(FORMATS)}")
    if size is not None and size < SMALLEST:
        raise InvalidValueError("--size", f"got {size}, expected {SMALLEST} or more")
    folder = pictures if pictures.is_dir() else pictures.parent
    if out is None:
        out = pictures.with_name((pictures.name if pictures.is_dir() else pictures.stem) + "_predictions")
    taken = [place.resolve() for place in (folder, backgrounds) if place is not None]
    if out.resolve() in taken:
        raise InvalidValueError("--out", f"{out} is a folder of pictures itself", "choose another")
    paths = _list_pictures(pictures, skip=(out,) if backgrounds is None else (out, backgrounds))
    trained = open_trained(run, checkpoint, device)
    if backgrounds is None:
        log.warning("no backgrounds given: they are black, as in training on a store without backgrounds")
    fed = size or trained.size
    pairs, failed = _pair(folder, paths, backgrounds, out, trained.answers, file_format, views)
    if not pairs:
        raise_all(failed.values())
    with exclusive_lock(out):
        _settle_parameters(out, trained, fed, file_format)
        before = _read_table(out / CSV)
        missing = [pair for pair in pairs if not _is_there(pair, before, out)]
        entries: dict[str, dict[str, Any]] = {
            title: {"picture": title, "error": str(why)} for title, why in failed.items()
        }
        to_do = {pair.title for pair in missing}
        entries |= {pair.title: before[pair.title] for pair in pairs if pair.title not in to_do}
        _do(trained, missing, fed, out / CSV, entries, len(pairs))
    errors = [entries[title]["error"] for title in sorted(entries) if entries[title].get("error")]
    return {
        "out": str(out),
        "answers": trained.answers,
        "predicted": len(missing) - len(errors) + len(failed),
        "already_there": len(pairs) - len(missing),
        "failed": errors,
        "checkpoint": str(trained.path),
        "size": fed,
        "device": str(trained.device),
    }


def _do(
    trained: Trained, missing: list[_Pair], size: int, table: Path, entries: dict[str, dict[str, Any]], total: int
) -> None:
    """Answer pairs, add what the table says of them to `entries`, and write it, now and then before the end too."""
    written = time.monotonic()
    try:
        with progress("predict", total, total - len(missing)) as advance:
            for pair, picture, background in prefetch(_decoded(missing), _AHEAD):
                entries[pair.title] = _answer(trained, pair, picture, background, size)
                advance(1)
                if time.monotonic() - written > _TABLE_SECONDS:  # what a killed run has done stands in its table
                    _write_table(table, entries)
                    written = time.monotonic()
    finally:
        _write_table(table, entries)


def _list_pictures(place: Path, skip: tuple[Path, ...] = ()) -> list[Path]:
    """List the pictures below a folder, in order, without those below others; a picture is a list of itself."""
    if place.is_file():
        return [place]
    if not place.is_dir():
        raise NotFoundError(place, "no such folder or picture", "check the path")
    inside = [other for other in skip if other != place]
    found = sorted(
        path
        for path in place.rglob("*")
        if path.suffix.lower() in images.SUFFIXES and path.is_file() and not any(o in path.parents for o in inside)
    )
    if not found:
        raise NotFoundError(
            place, f"no pictures ({' '.join(sorted(images.SUFFIXES))}) in it or below", "check the path"
        )
    return found


def _pair(
    folder: Path,
    paths: list[Path],
    backgrounds: Path | None,
    out: Path,
    answers: tuple[str, ...],
    file_format: str,
    views: bool,
) -> tuple[list[_Pair], dict[str, DsgenError]]:
    """Give every picture its background and its files; say, by picture, what is wrong with the others."""
    named: defaultdict[str, list[Path]] = defaultdict(list)
    if backgrounds is not None and not backgrounds.is_file():
        for path in _list_pictures(backgrounds, skip=(out,)):
            named[path.relative_to(backgrounds).with_suffix("").as_posix()].append(path)
    inside = [path.relative_to(folder) for path in paths]
    endings = {MASK: ".png", DEPTH: f".{file_format}"} | ({"view": ".jpg"} if views else {})
    kinds = [kind for kind in endings if kind in (*answers, "view")]
    names = {kind: [out / kind / name for name in output_names(inside, endings[kind])] for kind in kinds}
    pairs: list[_Pair] = []
    failed: dict[str, DsgenError] = {}
    for k, (path, relative) in enumerate(zip(paths, inside, strict=True)):
        own = relative.with_suffix("").as_posix()
        above = [parent.as_posix() for parent in relative.parents][:-1]
        found = next((named[name] for name in (own, *above) if name in named), [])
        same = [background for background in found if background.suffix == path.suffix]
        if len(found) > 1 and len(same) == 1:
            found = same
        if len(found) == 1 or not named:
            files = {kind: names[kind][k] for kind in kinds}
            pairs.append(_Pair(path, found[0] if named else backgrounds, relative.as_posix(), files))
        elif found:
            several = ", ".join(background.name for background in found)
            failed[relative.as_posix()] = DsgenError(
                path, f"{len(found)} backgrounds ({several}), expected 1", "remove one"
            )
        else:
            nor = f", nor {' or '.join(above)}" if above else ""
            failed[relative.as_posix()] = NotFoundError(
                path, f"no background {own} in {backgrounds}, of any ending{nor}", "add it, or give one picture for all"
            )
    return pairs, failed


def _settle_parameters(out: Path, trained: Trained, size: int, file_format: str) -> None:
    """Write down what the answers are made with; a new `predictions.json` makes every older answer out of date."""
    parameters = {
        "dsgen": __version__,
        "checkpoint_sha256": trained.sha256,
        "size": size,
        "answers": list(trained.answers),
        "mask_threshold": 0.5,
        "depth_format": file_format,
        "depth_units": {"png": "mm", "npy": "m"}[file_format],
        "depth_range_m": [MIN_DEPTH_M, MAX_DEPTH_M],
    }
    path = out / JSON
    if not path.is_file() or read_json(path) != parameters:
        write_json(path, parameters)


def _is_there(pair: _Pair, before: dict[str, dict[str, Any]], out: Path) -> bool:
    """Say whether a pair's answers are there, of the same background, and newer than pictures and parameters."""
    entry = before.get(pair.title)
    if entry is None or entry["background"] != str(pair.background or ""):
        return False
    if not all(path.is_file() for path in pair.files.values()):
        return False
    sources = [path for path in (pair.picture, pair.background, out / JSON) if path is not None]
    newest = max(path.stat().st_mtime_ns for path in sources)
    return min(path.stat().st_mtime_ns for path in pair.files.values()) >= newest


def _decoded(pairs: list[_Pair]) -> Iterator[tuple[_Pair, np.ndarray | DsgenError, np.ndarray | DsgenError]]:
    read_background = lru_cache(maxsize=1)(attempt)  # one for all, or for a folder, is decoded once
    for pair in pairs:
        picture = attempt(pair.picture)
        if pair.background is not None:
            yield pair, picture, read_background(pair.background)
        else:
            yield pair, picture, picture if isinstance(picture, DsgenError) else np.zeros_like(picture)


def fed_size(height: int, width: int, size: int) -> tuple[int, int]:
    """Scale a height and width so that the longer of them is `size`, rounded, 1 at least.

    >>> fed_size(1080, 1920, 192)
    (108, 192)
    """
    longer = max(height, width)
    return max(1, round(height * size / longer)), max(1, round(width * size / longer))


def answer_pair(
    trained: Trained, background: np.ndarray, picture: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Answer a background (H,W,3) and a composite (h,w,3) u1, fed at `size` pixels, at the composite's own size.

    Returns the mask, (h,w) u1 of 0 or 255, and depth, (h,w) float32 metres within 0.1..10.
    """
    height, width = picture.shape[:2]
    fed = fed_size(height, width, size)
    logits, depth_m = trained.answer(
        _scaled(background, fed).to(trained.device), _scaled(picture, fed).to(trained.device)
    )
    logits, depth_m = (
        F.interpolate(maps, size=(height, width), mode="bilinear", align_corners=False)[0, 0].cpu()
        for maps in (logits, depth_m)
    )
    return np.where(logits.numpy() > 0, np.uint8(255), np.uint8(0)), depth_m.numpy()


def _scaled(picture: np.ndarray, shape: tuple[int, int]) -> Tensor:
    """Scale a picture (h,w,3) u1 as training does, by antialiased averaging, to (1,3,H,W) float32 in 0..1."""
    pixels = torch.tensor(picture).permute(2, 0, 1)[None]
    if picture.shape[:2] != shape:
        pixels = F.interpolate(pixels, size=shape, mode="bilinear", antialias=True)
    return pixels.float() / 255


def _answer(
    trained: Trained, pair: _Pair, picture: np.ndarray | DsgenError, background: np.ndarray | DsgenError, size: int
) -> dict[str, Any]:
    """Answer a pair, write its files, and say what the table says of it."""
    known = {"picture": pair.title, "background": str(pair.background or "")}
    for read in (picture, background):
        if isinstance(read, DsgenError):
            return known | {"error": str(read)}
    assert isinstance(picture, np.ndarray)
    assert isinstance(background, np.ndarray)
    (height, width), (high, wide) = picture.shape[:2], background.shape[:2]
    if abs(wide * height - high * width) > PROPORTIONS * high * width:
        return known | {
            "error": f"{pair.background}: {wide}x{high} pixels, expected the proportions of {pair.picture}'s "
            f"{width}x{height} to {PROPORTIONS:.0%}; crop one like the other"
        }
    started = time.monotonic()
    mask, depth_m = answer_pair(trained, background, picture, size)
    seconds = time.monotonic() - started
    if not np.isfinite(depth_m).all():
        return known | {"error": f"{pair.picture}: the network's answer is not finite; nothing was stored"}
    for path in pair.files.values():
        path.parent.mkdir(parents=True, exist_ok=True)
    if MASK in pair.files:
        write_bytes(pair.files[MASK], images.encode_png(mask, runs=True))
    if DEPTH in pair.files:
        write_bytes(pair.files[DEPTH], _encode_depth(depth_m, pair.files[DEPTH].suffix))
    if "view" in pair.files:
        shown = {MASK: mask, DEPTH: depth_m}
        draw_view(pair.files["view"], picture, pair.title, **{k: v for k, v in shown.items() if k in pair.files})
    fed_height, fed_width = fed_size(height, width, size)
    entry = known | {"width": width, "height": height, "fed_width": fed_width, "fed_height": fed_height}
    if MASK in pair.files:
        entry["foreground_share"] = f"{(mask > 0).mean():.6f}"
    if DEPTH in pair.files:
        for name, value in (("min_m", depth_m.min()), ("median_m", np.median(depth_m)), ("max_m", depth_m.max())):
            entry[name] = f"{value:.4f}"
    if MASK in pair.files and DEPTH in pair.files and mask.any():
        entry["foreground_median_m"] = f"{np.median(depth_m[mask > 0]):.4f}"
    return entry | {"seconds": f"{seconds:.4f}"}


def _encode_depth(depth_m: np.ndarray, ending: str) -> bytes:
    if ending == ".png":
        return images.encode_png(np.rint(depth_m * 1000).astype(np.uint16))
    content = io.BytesIO()
    np.save(content, depth_m)
    return content.getvalue()


def draw_view(
    out: Path, picture: np.ndarray, title: str, mask: np.ndarray | None = None, depth: np.ndarray | None = None
) -> None:
    """Draw a picture (h,w,3) with the mask's (h,w) outside greyed and its edge outlined, and depth (h,w) in metres."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    height, width = picture.shape[:2]
    step = max(1, round(max(height, width) / 640))  # a view, not a copy
    picture = picture[::step, ::step]
    panels = 1 + (depth is not None)
    figure = Figure(figsize=(4.5 * panels, max(1.5, 3.9 * height / width) + 0.4), dpi=100, layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)[0]
    for axis in axes:
        axis.set_axis_off()
    if mask is not None:
        inside = mask[::step, ::step] > 0
        grey = picture.mean(axis=2, keepdims=True) * 0.5
        axes[0].imshow(np.where(inside[..., None], picture, grey).astype(np.uint8))
        if inside.any() and not inside.all():
            axes[0].contour(inside, levels=[0.5], colors="magenta", linewidths=0.8)
    else:
        axes[0].imshow(picture)
    axes[0].set_title(title, fontsize=8, loc="left", parse_math=False)
    if depth is not None:
        far = max(MIN_DEPTH_M, float(np.percentile(depth, 99.5)))
        shown = axes[1].imshow(depth[::step, ::step], cmap="turbo_r", vmin=0, vmax=far)
        figure.colorbar(shown, ax=axes[1], label="depth, m", fraction=0.05)
    content = io.BytesIO()
    FigureCanvasAgg(figure).print_jpg(content)
    write_bytes(out, content.getvalue())


def _read_table(path: Path) -> dict[str, dict[str, Any]]:
    """What an earlier run wrote of pictures that went well."""
    if not path.is_file():
        return {}
    with path.open(newline="") as file:
        return {row["picture"]: dict(row) for row in csv.DictReader(file) if not row.get("error")}


def _write_table(path: Path, entries: dict[str, dict[str, Any]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(entries[title] for title in sorted(entries))
    write_bytes(path, text.getvalue().encode())
