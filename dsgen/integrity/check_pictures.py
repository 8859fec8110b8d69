"""Check the picture files of a corpus: every one is encoded again and compared byte for byte."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from uuid import uuid4

import numpy as np

from dsgen.corpus import layout
from dsgen.corpus.corpus import Corpus
from dsgen.corpus.pictures import encode_composites, encode_sources
from dsgen.errors import is_system_error, reason_of
from dsgen.integrity.findings import MISSING, UNLIKE, Checked, Finding, ReportBuilder, classify_extra
from dsgen.io import images
from dsgen.io.regular_files import regular
from dsgen.parallel.pool import map_unordered
from dsgen.parallel.progress import progress

NOT_A_FOLDER = "not a folder"
VIEWS = "bg_fg_depth"
_VIEW_ROWS = 200  # rows whose views are drawn at once


@dataclass(frozen=True)
class PictureTask:
    """Picture files to check: those of `folders[0]`, or those of one background in each of `folders`.

    `run` identifies the call of `verify`, so that a worker process does not use a corpus opened by an earlier one.
    """

    run: str
    corpus: str
    folders: tuple[str, ...]
    background: int | None
    names_only: bool


def check_pictures(corpus: Corpus, names_only: bool, jobs: int, report: ReportBuilder) -> None:
    """Check `bg`, `fg`, `fg_mask`, and the composites, masks and depth views as far as they have been drawn."""
    tasks = _list_tasks(corpus, names_only, report)
    total = sum(len(corpus.rows_of(task.background)) for task in tasks if task.background is not None)
    with progress("verify pictures", total) as advance:
        for checked in map_unordered(check_folder, [(task,) for task in tasks], 1 if names_only else jobs):
            report.add(checked)
            advance(checked.steps)
    report.compared = not names_only


def all_unlike(corpus: Corpus, findings: list[Finding]) -> bool:
    """Return whether every composite differs from what the plan draws: then the cause is not in the pictures."""
    return sum(f.component == "bg_fg" and f.what.startswith(UNLIKE) for f in findings) == len(corpus)


def _list_tasks(corpus: Corpus, names_only: bool, report: ReportBuilder) -> list[PictureTask]:
    """List the folders to check, and report those that are missing, are no folders, or should not exist."""
    run, path = uuid4().hex, str(corpus.path)
    tasks = []
    for folder in layout.SOURCE_FOLDERS:
        if (corpus.path / folder).is_dir():
            tasks.append(PictureTask(run, path, (folder,), None, names_only))
        else:
            report.find(folder, _no_folder(corpus.path / folder))
    drawn = [folder for folder in layout.COMPOSITE_FOLDERS if (corpus.path / folder).is_dir()]
    if not drawn:
        report.notes.append("no composites drawn, none checked")
    views = [VIEWS] if (corpus.path / VIEWS).is_dir() else []
    if views and not names_only and unlabelled_rows(corpus):
        report.notes.append("views of depth not compared where there are no labels")
    for folder in layout.COMPOSITE_FOLDERS if drawn else ():
        if folder not in drawn:
            report.find(folder, _no_folder(corpus.path / folder))
    found = {folder: _find_backgrounds(corpus, folder, report) for folder in [*drawn, *views]}
    for group in (drawn, views):
        for background in range(len(corpus.manifest["backgrounds"])):
            folders = tuple(folder for folder in group if background in found[folder])
            if folders:
                tasks.append(PictureTask(run, path, folders, background, names_only))
    return tasks


def _find_backgrounds(corpus: Corpus, folder: str, report: ReportBuilder) -> set[int]:
    """Return the backgrounds that have a folder below this one; report what is missing and what is extra."""
    names = [layout.background_name(background) for background in range(len(corpus.manifest["backgrounds"]))]
    for name in sorted({entry.name for entry in os.scandir(corpus.path / folder)} - set(names)):
        report.find(f"{folder}/{name}", classify_extra(name))
    found = set()
    for background, name in enumerate(names):
        if (corpus.path / folder / name).is_dir():
            found.add(background)
        else:
            report.find(f"{folder}/{name}", _no_folder(corpus.path / folder / name))
    return found


def _no_folder(path: Path) -> str:
    return NOT_A_FOLDER if path.exists() else MISSING


@lru_cache(maxsize=1)
def open_once(run: str, path: str) -> Corpus:  # noqa: ARG001
    """Open a corpus once per process and call of `verify`; `run` identifies the call, as files change between calls."""
    return Corpus(path)


def check_folder(task: PictureTask) -> Checked:
    """Check the picture files of a task."""
    corpus = open_once(task.run, task.corpus)
    if task.background is None:
        (folder,) = task.folders
        small = encode_sources(corpus, folder, names_only=task.names_only)
        expected: Iterable[tuple[str, bytes]] = ((f"{folder}/{name}", content) for name, content in small)
        return _compare(corpus.path, [folder], expected, task.names_only)
    name = layout.background_name(task.background)
    expected = drawn_files(corpus, task.background, task.folders, names_only=task.names_only)
    checked = _compare(corpus.path, [f"{folder}/{name}" for folder in task.folders], expected, task.names_only)
    checked.steps = len(corpus.rows_of(task.background))
    if not task.names_only and VIEWS not in task.folders:
        checked.rows = checked.steps
    return checked


def drawn_files(
    corpus: Corpus, background: int, folders: Iterable[str], *, names_only: bool = False
) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of every picture of one background: in `bg_fg`, `bg_fg_mask` or both, or the depth views.

    The content is empty with `names_only`, and for views of labels that cannot be read.
    """
    chosen = set(folders)
    if VIEWS in chosen:
        yield from _drawn_views(corpus, background, names_only)
        return
    pictures = _composite_names(corpus, background) if names_only else encode_composites(corpus, background)
    folder = layout.background_name(background)
    for name, image, mask in pictures:
        if "bg_fg" in chosen:
            yield f"bg_fg/{folder}/{name}.jpeg", image
        if "bg_fg_mask" in chosen:
            yield f"bg_fg_mask/{folder}/{name}_mask.png", mask


def _composite_names(corpus: Corpus, background: int) -> Iterator[tuple[str, bytes, bytes]]:
    """Yield what `composites` yields, without contents."""
    rows = corpus.rows_of(background)
    for _, foreground, flip, position, *_ in corpus.plan[rows.start : rows.stop].tolist():
        yield layout.composite_name(background, foreground, flip, position), b"", b""


def _drawn_views(corpus: Corpus, background: int, names_only: bool) -> Iterator[tuple[str, bytes]]:
    rows = corpus.rows_of(background)
    folder = layout.background_name(background)
    unlabelled = [] if names_only else unlabelled_rows(corpus)
    for start in rows[::_VIEW_ROWS]:
        stop = min(start + _VIEW_ROWS, rows.stop)
        no_content = names_only or any(a < stop and start < b for a, b in unlabelled)
        views = None if no_content else _read_views(corpus, start, stop)
        for k, (_, foreground, flip, position, *_) in enumerate(corpus.plan[start:stop].tolist()):
            name = layout.depth_picture_name(background, foreground, flip, position)
            yield f"{VIEWS}/{folder}/{name}.jpeg", b"" if views is None else images.encode_jpeg(views[k])


def unlabelled_rows(corpus: Corpus) -> list[tuple[int, int]]:
    """Return the ranges of rows without depth to draw: all rows where the labels cannot be opened or are not metric."""
    try:
        return [(0, len(corpus))] if corpus.depth is None else corpus.unlabelled_blocks()
    except Exception as error:  # zarr raises errors of any class; the check of the labels reports them
        if is_system_error(error):
            raise
        return [(0, len(corpus))]


def _read_views(corpus: Corpus, start: int, stop: int) -> np.ndarray | None:
    """Return the 8-bit views (n,S,S) u1 of rows, or None where their labels cannot be read."""
    from dsgen.corpus.depth_views import view_8bit

    try:
        assert corpus.labels is not None
        return view_8bit(corpus.labels.read(start, stop))
    except Exception as error:  # zarr and codecs raise errors of any class; the check of the labels reports them
        if is_system_error(error):
            raise
        return None


def _file_size(entry: os.DirEntry[str]) -> int:
    """Return the bytes of a file, -1 for what is none."""
    try:
        return regular(Path(entry.path)).stat().st_size
    except FileNotFoundError:
        return -1


def _compare(root: Path, folders: list[str], expected: Iterable[tuple[str, bytes]], names_only: bool) -> Checked:
    """Compare the files of folders with those expected; where the expected content is empty, only names and sizes."""
    checked = Checked()
    sizes: dict[str, int] = {}
    for folder in folders:
        for entry in os.scandir(root / folder):
            sizes[f"{folder}/{entry.name}"] = _file_size(entry)
    for name, content in expected:
        size = sizes.pop(name, None)
        checked.files += size is not None
        if size is None:
            checked.findings.append(Finding(name, MISSING))
        elif size <= 0:
            checked.findings.append(Finding(name, "empty" if size == 0 else "not a file"))
        elif not names_only and content:
            try:
                found = (root / name).read_bytes()
            except OSError as error:
                checked.findings.append(Finding(name, f"cannot be read ({reason_of(error)})"))
                continue
            checked.bytes += len(found)
            if found != content:
                what = f"{UNLIKE} ({len(found):,} bytes, expected {len(content):,})"
                checked.findings.append(Finding(name, what))
    checked.findings += [Finding(name, classify_extra(name)) for name in sizes]
    return checked
