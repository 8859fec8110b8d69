"""The picture files of a corpus: composites and masks in a folder per background, and the normalised sources.

Picture files are views of the plan and the sources. A folder gets its name once every picture in it is written, so a
folder that exists is complete, and the missing ones can be drawn at any time.
"""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dsgen.corpus import layout
from dsgen.corpus.corpus import Corpus, open_cached
from dsgen.corpus.encoders import JpegPatcher, MaskEncoder
from dsgen.errors import DsgenError
from dsgen.io.atomic import clear_unfinished, write_folder
from dsgen.io.images import encode_jpeg, encode_png
from dsgen.parallel.parts import Part, select_part
from dsgen.parallel.pool import run_blocks

_DISK_BLOCK_BYTES = 4096
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
    missing = [b for b in backgrounds if not has_composites(corpus.path, b)]
    total, to_draw = (sum(len(corpus.rows_of(b)) for b in some) for some in (backgrounds, missing))
    if missing:
        names = {layout.background_name(background) for background in missing}
        for folder in layout.COMPOSITE_FOLDERS:
            clear_unfinished(corpus.path / folder, names)
        _check_space(corpus, to_draw)
        path = corpus.path if cluster is None else corpus.path.absolute()
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
        for folder in layout.COMPOSITE_FOLDERS:  # a worker of the cluster may have died while drawing
            clear_unfinished(corpus.path / folder, names)
    left = sum(len(corpus.rows_of(b)) for b in everything if not has_composites(corpus.path, b))
    return DrawnRows(to_draw, total - to_draw, left)


def has_composites(path: Path, background: int) -> bool:
    """Return whether all composites and masks of a background are drawn."""
    return all((path / folder / layout.background_name(background)).is_dir() for folder in layout.COMPOSITE_FOLDERS)


def draw_composites(path: str, background: int, corpus_sha256: str | None = None) -> int:
    """Draw all composites and masks of one background, a block of work; return the number of rows.

    `corpus_sha256` is the hash of the corpus to draw, in case another one was made at the same path.
    """
    corpus = open_cached(path, corpus_sha256)
    if has_composites(corpus.path, background):  # another worker of a cluster was faster
        return len(corpus.rows_of(background))
    folder = layout.background_name(background)
    with (
        write_folder(corpus.path / "bg_fg_mask" / folder, apart=True) as mask_folder,
        write_folder(corpus.path / "bg_fg" / folder, apart=True) as image_folder,
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
    for _, foreground, flip, position, top, left, _ in corpus.plan[rows.start : rows.stop].tolist():
        cutout = corpus.cutout(foreground, flip)
        name = layout.composite_name(background, foreground, flip, position)
        yield name, jpeg.encode(cutout, top, left), png.encode(cutout.mask, top, left)


def draw_missing_sources(corpus: Corpus) -> None:
    """Write those of the folders `bg`, `fg` and `fg_mask` that do not exist."""
    for folder in layout.SOURCE_FOLDERS:
        if not (corpus.path / folder).is_dir():
            with write_folder(corpus.path / folder) as unfinished:
                for name, content in encode_sources(corpus, folder):
                    (unfinished / name).write_bytes(content)


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
        if written != len(content):
            raise OSError(f"{path}: {written} of {len(content)} bytes written; is the disk full?")
    finally:
        os.close(descriptor)
