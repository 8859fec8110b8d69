"""The picture files of a corpus: composites and masks in a folder per background, and the normalised sources.

Picture files are views of the plan and the sources, and those that are missing can be drawn at any time. A folder gets
its name once every picture in it is written, and counts as done while it has as many pictures as there are rows.
"""

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dsgen.corpus import layout
from dsgen.corpus.corpus import Corpus, open_cached
from dsgen.corpus.encoders import JpegPatcher, MaskEncoder
from dsgen.errors import DsgenError
from dsgen.io.atomic import clear_unfinished, fill_folder
from dsgen.io.images import encode_jpeg, encode_png
from dsgen.parallel.parts import Part, select_part
from dsgen.parallel.pool import run_blocks

_DISK_BLOCK_BYTES = 4096
_DRAWN_ROWS = 20  # at once, of those with the column `people`
_SPACE_SAMPLES = 8  # rows from which the space that all take is estimated


@dataclass(frozen=True)
class DrawnRows:
    """Rows whose composite and mask are drawn: by this call, before it, and those left to other parts."""

    drawn: int = 0
    already_there: int = 0
    left: int = 0


def draw_missing_composites(corpus: Corpus, workers: int, part: Part | None, cluster: str | None) -> DrawnRows:
    """Draw the missing composites and masks, those of a `part` only, in local processes or on a dask cluster.

    Raises `DsgenError`, before any is drawn, if the disk has too little space.
    """
    everything = list(range(len(corpus.manifest["backgrounds"])))
    backgrounds = everything if part is None else select_part(everything, part)
    missing = [b for b in backgrounds if not has_composites(corpus, b)]
    total, to_draw = (sum(len(corpus.rows_of(b)) for b in some) for some in (backgrounds, missing))
    if missing:
        clear_pictures(corpus, layout.COMPOSITE_FOLDERS, missing)
        _check_space(corpus, to_draw)
        path = corpus.path if cluster is None else corpus.path.absolute()
        try:
            run_blocks(
                draw_composites,
                [(str(path), background, corpus.sha256) for background in missing],
                jobs=workers,
                title="composite",
                total=total,
                done=total - to_draw,
                cluster=cluster,
                shared=(path,),
            )
        finally:  # a worker may have been killed while drawing
            clear_pictures(corpus, layout.COMPOSITE_FOLDERS, missing)
    left = sum(len(corpus.rows_of(b)) for b in everything if not has_composites(corpus, b))
    return DrawnRows(to_draw, total - to_draw, left)


def has_composites(corpus: Corpus, background: int) -> bool:
    """Return whether all composites and masks of a background are drawn."""
    return all(has_pictures(corpus, folder, background) for folder in layout.COMPOSITE_FOLDERS)


def has_pictures(corpus: Corpus, folder: str, background: int) -> bool:
    """Return whether one of the folders of pictures has as many of a background as there are rows."""
    path = corpus.path / folder / layout.background_name(background)
    suffix = layout.PICTURE_SUFFIXES[folder]
    return path.is_dir() and sum(name.endswith(suffix) for name in os.listdir(path)) >= len(corpus.rows_of(background))


def clear_pictures(corpus: Corpus, folders: Iterable[str], backgrounds: Iterable[int]) -> None:
    """Remove what killed processes left of the picture folders of backgrounds that no process is drawing."""
    names = {layout.background_name(background) for background in backgrounds}
    for folder in folders:
        clear_unfinished(corpus.path / folder, names)


@contextmanager
def fill_pictures(corpus: Corpus, folder: str, background: int) -> Iterator[Path]:
    """Yield an empty folder for all pictures of a background; they appear in the corpus together, once all are there.

    Pictures of a folder that lacks some are replaced. Raises `DsgenError` where the block left fewer than there are
    rows.
    """
    with fill_folder(corpus.path / folder / layout.background_name(background)) as unfinished:
        yield unfinished
        count, expected = len(os.listdir(unfinished)), len(corpus.rows_of(background))
        if count != expected:
            raise DsgenError(
                unfinished,
                f"{count:,} of {expected:,} pictures are there after they were drawn",
                "let nothing else write to the corpus, and run the same command again",
            )


def draw_composites(path: str, background: int, corpus_sha256: str | None = None) -> int:
    """Draw all composites and masks of one background, a block of work; return the number of rows.

    `corpus_sha256` is the hash of the corpus to draw, in case another one was made at the same path.
    """
    corpus = open_cached(path, corpus_sha256)
    if has_composites(corpus, background):  # another worker of a cluster was faster
        return len(corpus.rows_of(background))
    with (
        fill_pictures(corpus, "bg_fg_mask", background) as mask_folder,
        fill_pictures(corpus, "bg_fg", background) as image_folder,
    ):
        image_prefix, mask_prefix = f"{image_folder}{os.sep}", f"{mask_folder}{os.sep}"
        for name, image, mask in encode_composites(corpus, background):
            _write(f"{image_prefix}{name}.jpeg", image)
            _write(f"{mask_prefix}{name}_mask.png", mask)
    return len(corpus.rows_of(background))


def encode_composites(corpus: Corpus, background: int) -> Iterator[tuple[str, bytes, bytes]]:
    """Yield the name without ending, the composite's JPEG and the mask's PNG of every row of a background."""
    rows = corpus.rows_of(background)
    jpeg = JpegPatcher(corpus.background(background), corpus.manifest["parameters"]["quality"])
    png = MaskEncoder(corpus.size)
    if corpus.people:
        yield from _encode_scenes(corpus, background, jpeg, png)
        return
    for _, foreground, flip, position, top, left, _ in corpus.plan[rows.start : rows.stop].tolist():
        cutout = corpus.cutout(foreground, flip)
        name = layout.composite_name(background, foreground, flip, position)
        yield name, jpeg.encode(cutout, top, left), png.encode(cutout.mask, top, left)


def _encode_scenes(
    corpus: Corpus, background: int, jpeg: JpegPatcher, png: MaskEncoder
) -> Iterator[tuple[str, bytes, bytes]]:
    """Do what `encode_composites` does for rows with the column `people`."""
    numbers, below = corpus.rows_of(background), corpus.background(background)
    for start in range(numbers.start, numbers.stop, _DRAWN_ROWS):
        rows = corpus.plan[start : min(start + _DRAWN_ROWS, numbers.stop)]
        for row, image, mask in zip(rows, *corpus.render(rows), strict=True):
            name = layout.composite_name(background, int(row["foreground"]), bool(row["flip"]), int(row["position"]))
            changed, inside = _window(image ^ below), _window(mask)
            yield (
                name,
                jpeg.encode_changed(image[changed], changed[0].start, changed[1].start),
                png.encode(mask[inside], inside[0].start, inside[1].start),
            )


def _window(pixels: np.ndarray) -> tuple[slice, slice]:
    """Return the smallest window of a picture (h,w,...) u1 with all pixels that are not 0; empty if there are none."""
    lines = pixels.reshape(len(pixels), -1)
    rows = np.flatnonzero(lines.max(axis=1))
    if not len(rows):
        return slice(0, 0), slice(0, 0)
    columns = np.flatnonzero(lines.max(axis=0)) * pixels.shape[1] // lines.shape[1]
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def draw_missing_sources(corpus: Corpus) -> None:
    """Draw the pictures that are missing from the folders `bg`, `fg` and `fg_mask`."""
    for folder in layout.SOURCE_FOLDERS:
        path = corpus.path / folder
        present = set(os.listdir(path)) if path.is_dir() else set()
        names = {name for name, _ in encode_sources(corpus, folder, names_only=True)}
        if not path.is_dir() or names - present:
            clear_unfinished(corpus.path, {folder})
            with fill_folder(path) as unfinished:
                for name, content in encode_sources(corpus, folder):
                    if name not in present:
                        _write(str(unfinished / name), content)


def encode_sources(corpus: Corpus, folder: str, *, names_only: bool = False) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of the files of `bg`, `fg` or `fg_mask`, the normalised sources.

    With `names_only` the content is empty.
    """
    if folder == "bg":
        quality = corpus.manifest["parameters"]["quality"]
        for number in range(len(corpus.manifest["backgrounds"])):
            content = b"" if names_only else encode_jpeg(corpus.background(number), quality)
            yield f"{layout.background_name(number)}.jpeg", content
        return
    name_of = layout.foreground_name if folder == "fg" else layout.foreground_mask_name
    for number in range(len(corpus.manifest["foregrounds"])):
        for flip in (False, True) if corpus.manifest["parameters"]["flip"] else (False,):
            content = b"" if names_only else _encode_foreground(corpus.foreground(number, flip), folder)
            yield f"{name_of(number, flip)}.png", content


def _encode_foreground(rgba: np.ndarray, folder: str) -> bytes:
    """Encode a cut-out (h,w,4), or its mask for `fg_mask`, as PNG."""
    if folder == "fg":
        return encode_png(rgba)
    return encode_png(np.where(rgba[..., 3] >= 128, 255, 0).astype(np.uint8), runs=True)


def _check_space(corpus: Corpus, rows: int) -> None:
    """Raise `DsgenError` unless the disk has space for `rows` more, estimated from a few."""
    some = corpus.plan[np.linspace(0, len(corpus) - 1, _SPACE_SAMPLES).astype(int)]
    images, masks = corpus.render(some)
    quality = corpus.manifest["parameters"]["quality"]
    codes = [encode_jpeg(image, quality) for image in images] + [encode_png(mask, runs=True) for mask in masks]
    needed = rows * sum(-(-len(code) // _DISK_BLOCK_BYTES) * _DISK_BLOCK_BYTES for code in codes) // len(some)
    free = shutil.disk_usage(corpus.path).free
    if needed > free:
        raise DsgenError(
            corpus.path,
            f"{rows:,} pictures with masks need about {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free",
            "free some space, choose another folder, or leave the pictures out with --no-pictures",
        )
    free_files = os.statvfs(corpus.path).f_favail if hasattr(os, "statvfs") else 0
    if 0 < free_files < 2 * rows:
        raise DsgenError(
            corpus.path,
            f"{2 * rows:,} files needed, the file system has space for {free_files:,}",
            "choose another folder, or leave the pictures out with --no-pictures",
        )


def _write(path: str, content: bytes) -> None:
    """Write a file of an unfinished folder: without Python's file object, in a quarter of the time."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0), 0o666)
    try:
        written = os.write(descriptor, content)
        while written < len(content):  # the disk may be full, which the next write says
            written += os.write(descriptor, content[written:])
    finally:
        os.close(descriptor)
