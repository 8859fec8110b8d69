"""Stage one: make the corpus from two folders of pictures, and draw its pictures.

Plan and sources are the corpus; `corpus.json` is written once both are there. The pictures are a view of them: one
folder a background, which gets its name when every picture in it is written. So a folder that is there is whole, and
running again draws the missing ones. Several machines may share the work on one folder: whichever comes first makes
the corpus, then each draws its part of the backgrounds.
"""

import logging
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dsgen import __version__
from dsgen.corpus import encoders, layout
from dsgen.corpus.corpus import FORMAT, Corpus, open_cached
from dsgen.corpus.plan import SPLITS, assign_splits, make_plan, save_plan, split_counts
from dsgen.corpus.sources import SourceFile, hash_files, list_pictures, name_errors, write_sources
from dsgen.errors import ConflictError, Difference, DsgenError, InvalidValueError, check_rules, find_differences, option
from dsgen.io import images
from dsgen.io.assets import asset
from dsgen.io.atomic import clear_unfinished, write_folder, write_json
from dsgen.io.filesystem import LocalFiles, hash_tree
from dsgen.io.json_files import read_json
from dsgen.parallel.locks import LOCK
from dsgen.parallel.parts import Part, lock_setup, lock_stage, select_part
from dsgen.parallel.pool import run_blocks, worker_count

log = logging.getLogger("dsgen")

SMALL_PARTS = ("bg", "fg", "fg_mask")


@dataclass(frozen=True)
class Parameters:
    """What, besides the pictures, a corpus depends on; sizes and height in pixels."""

    positions: int = 20
    size: int = 224
    label_size: int = 448
    fg_height: int = 110
    flip: bool = True
    seed: int = 0
    quality: int = 95
    validation_share: float = 0.1
    test_share: float = 0.1

    def check(self) -> None:
        """Raise a `DsgenError` that lists every value that cannot be."""
        rules = (
            (1 <= self.positions <= 65535, "positions", "1 to 65535"),
            (16 <= self.size <= 8192, "size", "16 to 8192 pixels"),
            (
                self.label_size >= self.size and self.label_size % self.size == 0,
                "label_size",
                f"a multiple of --size {self.size}",
            ),
            (1 <= self.fg_height <= self.size, "fg_height", f"1 to --size {self.size} pixels"),
            (1 <= self.quality <= 100, "quality", "1 to 100"),
            (0 <= self.validation_share < 1, "validation_share", "0 to below 1"),
            (0 <= self.test_share < 1 - self.validation_share, "test_share", "0 to below 1 less --validation-share"),
        )
        check_rules((holds, name, getattr(self, name), rule) for holds, name, rule in rules)


def composite(
    corpus: Path = Path("corpus"),
    backgrounds: Path | None = None,
    foregrounds: Path | None = None,
    parameters: Parameters | None = None,
    *,
    max_backgrounds: int | None = None,
    max_foregrounds: int | None = None,
    jobs: int | None = None,
    pictures: bool = True,
    part: Part | None = None,
    cluster: str | None = None,
) -> dict[str, Any]:
    """Make a corpus, or go on with one, and return its counts.

    Without folders the bundled pictures are used. With `part` only a share of the backgrounds is drawn; parts may run
    at the same time in one folder on a shared file system. `cluster` is the address of a dask scheduler whose workers
    draw. Raises `DsgenError`, before anything is written, for parameters or pictures that cannot be used, and for a
    corpus that was made with others.
    """
    parameters = parameters or Parameters()
    parameters.check()
    workers = worker_count(jobs)
    background_folder = backgrounds or asset("backgrounds")
    foreground_folder = foregrounds or asset("foregrounds")
    background_paths = list_pictures(background_folder, "backgrounds", max_backgrounds)
    foreground_paths = list_pictures(foreground_folder, "foregrounds", max_foregrounds)
    background_files = hash_files(background_paths, workers)
    foreground_files = hash_files(foreground_paths, workers)
    errors = name_errors(background_files, background_folder) + name_errors(foreground_files, foreground_folder)
    _check_existing(corpus, parameters, background_files, foreground_files)
    with lock_stage(corpus, "composite", part):
        with lock_setup(corpus, part):
            _check_existing(corpus, parameters, background_files, foreground_files)
            if not (corpus / layout.CORPUS_JSON).exists():
                paths = background_paths, foreground_paths
                _make(corpus, parameters, paths, (background_files, foreground_files), errors, workers)
            opened = Corpus(corpus)
            draw_small_parts(opened)
        return _draw(opened, workers, pictures, part, cluster)


def _check_existing(
    path: Path, parameters: Parameters, backgrounds: list[SourceFile], foregrounds: list[SourceFile]
) -> None:
    """Refuse a folder that is something else, and a corpus of other parameters or pictures."""
    ours = {layout.CORPUS_JSON, layout.SOURCES, layout.PLAN, layout.DEPTH, *layout.PARTS}
    if path.exists() and not path.is_dir():
        raise InvalidValueError("--corpus", f"{path} is a file, expected a folder or nothing", "choose another name")
    if not (path / layout.CORPUS_JSON).exists():
        names = [p.name for p in path.iterdir() if not p.name.startswith(LOCK)] if path.is_dir() else []
        others = [name for name in names if name.removesuffix(".partial") not in ours]
        if others:
            raise InvalidValueError(
                "--corpus", f"{path} holds other files ({', '.join(sorted(others)[:5])})", "choose another name"
            )
        return
    manifest = read_json(path / layout.CORPUS_JSON)
    now, was = asdict(parameters), manifest["parameters"]
    differences = find_differences(
        {option(name): value for name, value in now.items()},
        {option(name): value for name, value in was.items() if name in now},
    )
    for kind, files in (("backgrounds", backgrounds), ("foregrounds", foregrounds)):
        there = {entry["file"]: entry["sha256"] for entry in manifest[kind]}
        given = {file.file: file.sha256 for file in files}
        changed = sorted(name for name in there.keys() | given.keys() if there.get(name) != given.get(name))
        if changed:
            shown = ", ".join(changed[:3]) + (", ..." if len(changed) > 3 else "")
            differences.append(Difference(kind, len(given), f"{len(there)}; different: {shown}"))
    if differences:
        remedy = "use the same, or another --corpus, or remove this one"
        raise ConflictError(path, "made with other inputs", remedy, differences, "corpus")


def _make(
    path: Path,
    parameters: Parameters,
    paths: tuple[list[Path], list[Path]],
    files: tuple[list[SourceFile], list[SourceFile]],
    errors: list[DsgenError],
    workers: int,
) -> None:
    """Write sources, plan, and last the manifest; `errors` are those already found with the pictures."""
    scales = sorted({1, parameters.label_size // parameters.size})
    with write_folder(path / layout.SOURCES) as unfinished:
        shapes = write_sources(
            unfinished,
            *paths,
            size=parameters.size,
            scales=tuple(scales),
            fg_height=parameters.fg_height,
            errors=errors,
            workers=workers,
        )
    names = [file.name for file in files[0]], [file.name for file in files[1]]
    shares = parameters.validation_share, parameters.test_share
    plan = make_plan(
        *names,
        shapes,
        size=parameters.size,
        positions=parameters.positions,
        flip=parameters.flip,
        seed=parameters.seed,
        validation_share=shares[0],
        test_share=shares[1],
    )
    save_plan(path / layout.PLAN, plan)
    records = {
        kind: [
            file.record | {"split": SPLITS[side]}
            for file, side in zip(
                part, assign_splits(kept, kind.removesuffix("s"), parameters.seed, *shares), strict=True
            )
        ]
        for kind, part, kept in zip(("backgrounds", "foregrounds"), files, names, strict=True)
    }
    write_json(
        path / layout.CORPUS_JSON,
        {
            "format": FORMAT,
            "dsgen": __version__,
            "rows": len(plan),
            "splits": split_counts(plan),
            "parameters": asdict(parameters),
            "sha256": source_hashes(path, workers),
            **records,
        },
    )


def source_hashes(path: Path, workers: int) -> dict[str, str]:
    """Hash the plan and every file of the sources: by names within the corpus, in order."""
    below = LocalFiles(path / layout.SOURCES).sizes()
    sizes = {f"{layout.SOURCES}/{name}": size for name, size in below.items()}
    sizes[layout.PLAN] = (path / layout.PLAN).stat().st_size
    return {name: str(digest) for name, digest in hash_tree(LocalFiles(path), dict(sorted(sizes.items())), workers)}


def _draw(corpus: Corpus, workers: int, pictures: bool, part: Part | None, cluster: str | None) -> dict[str, Any]:
    """Draw what is missing of the picture files, or of a part of them; count what was there, was made, and is left."""
    backgrounds = list(range(len(corpus.manifest["backgrounds"])))
    ours = (backgrounds if part is None else select_part(backgrounds, part)) if pictures else []
    rows_each = corpus.rows_per_background
    missing = [b for b in ours if not picture_folders_done(corpus.path, b)]
    if missing:
        names = {layout.background_name(background) for background in missing}
        for folder in layout.PICTURE_PARTS:
            clear_unfinished(corpus.path / folder, names)
        _check_space(corpus, len(missing) * rows_each)
        path = corpus.path if cluster is None else corpus.path.absolute()
        run_blocks(
            draw_background,
            [(str(path), background, corpus.sha256) for background in missing],
            jobs=workers,
            title="composite",
            total=len(ours) * rows_each,
            done=(len(ours) - len(missing)) * rows_each,
            cluster=cluster,
            shared=(path,),
        )
        for folder in layout.PICTURE_PARTS:  # a worker of a cluster may have died in the middle of one
            clear_unfinished(corpus.path / folder, names)
    left = sum(not picture_folders_done(corpus.path, b) for b in backgrounds) if pictures else 0
    return {
        "corpus": str(corpus.path),
        "rows": len(corpus),
        "backgrounds": len(backgrounds),
        "foregrounds": len(corpus.manifest["foregrounds"]),
        "drawn": len(missing) * rows_each,
        "already_there": (len(ours) - len(missing)) * rows_each,
        "left": left * rows_each,
        "splits": corpus.manifest["splits"],
    }


def picture_folders_done(path: Path, background: int) -> bool:
    """Whether every composite and mask of a background is there."""
    return all((path / part / layout.background_name(background)).is_dir() for part in layout.PICTURE_PARTS)


def draw_small_parts(corpus: Corpus) -> None:
    """Write those of `bg`, `fg` and `fg_mask` that are not there."""
    for part in SMALL_PARTS:
        if not (corpus.path / part).is_dir():
            with write_folder(corpus.path / part) as folder:
                for name, content in small_pictures(corpus, part):
                    (folder / name).write_bytes(content)


def small_pictures(corpus: Corpus, part: str, *, names_only: bool = False) -> Iterator[tuple[str, bytes]]:
    """Yield name and content, or b"", of the files of `bg`, `fg` or `fg_mask`: the normalised pictures themselves."""
    if part == "bg":
        quality = corpus.manifest["parameters"]["quality"]
        for number in range(len(corpus.manifest["backgrounds"])):
            content = b"" if names_only else images.encode_jpeg(corpus.background(number), quality)
            yield f"{layout.background_name(number)}.jpeg", content
        return
    name_of = layout.foreground_name if part == "fg" else layout.foreground_mask_name
    for number in range(len(corpus.manifest["foregrounds"])):
        for flip in (False, True) if corpus.manifest["parameters"]["flip"] else (False,):
            content = b"" if names_only else _foreground_png(corpus.foreground(number, flip), part)
            yield f"{name_of(number, flip)}.png", content


def _foreground_png(rgba: np.ndarray, part: str) -> bytes:
    """Encode a cut-out (H,W,4), for `fg_mask` its mask."""
    if part == "fg":
        return images.encode_png(rgba)
    return images.encode_png(np.where(rgba[..., 3] >= 128, 255, 0).astype(np.uint8), runs=True)


def _check_space(corpus: Corpus, rows: int) -> None:
    """Refuse to start what the disk cannot hold, judged by a few rows."""
    some = corpus.plan[np.linspace(0, len(corpus) - 1, 8).astype(int)]
    image, mask = corpus.render(some)
    quality = corpus.manifest["parameters"]["quality"]
    block = 4096
    codes = [images.encode_jpeg(i, quality) for i in image] + [images.encode_png(m, runs=True) for m in mask]
    need = rows * sum(-(-len(code) // block) * block for code in codes) // len(some)
    free = shutil.disk_usage(corpus.path).free
    if need > free:
        raise DsgenError(
            corpus.path,
            (f"{rows:,} pictures with masks need about {need / 1e9:.1f} GB, {free / 1e9:.1f} GB are free"),
            "make room, choose another --corpus, or leave them out with --no-pictures",
        )
    files = os.statvfs(corpus.path).f_favail if hasattr(os, "statvfs") else 0
    if 0 < files < 2 * rows:
        raise DsgenError(
            corpus.path,
            f"{2 * rows:,} files needed, the file system has room for {files:,}",
            "choose another --corpus, or leave the pictures out with --no-pictures",
        )


def draw_background(path: str, background: int, corpus_sha256: str | None = None) -> int:
    """Write every composite and mask of one background, then give both folders their names; return the rows.

    `corpus_sha256` says which corpus is meant, where another may come to lie under the same name.
    """
    corpus = open_cached(path, corpus_sha256)
    if picture_folders_done(corpus.path, background):  # another worker of a cluster was first
        return corpus.rows_per_background
    folder = layout.background_name(background)
    with (
        write_folder(corpus.path / "bg_fg_mask" / folder, apart=True) as mask_folder,
        write_folder(corpus.path / "bg_fg" / folder, apart=True) as image_folder,
    ):
        images_at, masks_at = f"{image_folder}{os.sep}", f"{mask_folder}{os.sep}"
        for name, image, mask in composites(corpus, background):
            _write(f"{images_at}{name}.jpeg", image)
            _write(f"{masks_at}{name}_mask.png", mask)
    return corpus.rows_per_background


def composites(corpus: Corpus, background: int) -> Iterator[tuple[str, bytes, bytes]]:
    """Yield the name without ending, the JPEG and the mask's PNG of every row of one background."""
    each = corpus.rows_per_background
    jpeg = encoders.JpegPatcher(corpus.background(background), corpus.manifest["parameters"]["quality"])
    png = encoders.MaskEncoder(corpus.size)
    for _, foreground, flip, position, top, left, _ in corpus.plan[background * each :][:each].tolist():
        cutout = corpus.cutout(foreground, flip)
        name = layout.composite_name(background, foreground, flip, position)
        yield name, jpeg.encode(cutout, top, left), png.encode(cutout.mask, top, left)


def _write(path: str, content: bytes) -> None:
    """Write a file of a folder that is not yet whole: without Python's file object, a quarter of the time."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0), 0o666)
    try:
        written = os.write(descriptor, content)
        if written != len(content):
            raise OSError(f"{path}: {written} of {len(content)} bytes written; is the disk full?")
    finally:
        os.close(descriptor)
