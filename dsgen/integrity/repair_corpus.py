"""Restore a corpus: its sources, its plan, its labels and its pictures, in this order.

Sources are normalised again from the pictures they were made from, and replaced only if all have the recorded hashes.
The plan and the pictures follow from manifest and sources. Labels can only be recreated by the network that made them.
"""

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from dsgen.corpus import layout
from dsgen.corpus.composed import label_composed, write_composed_rooms
from dsgen.corpus.corpus import Corpus
from dsgen.corpus.labels import COMPOSED, DEPTH, FLIP_ERROR, RELATIVE, block_file, restored_metadata
from dsgen.corpus.manifest import (
    REMEDY,
    SCENE_FORMAT,
    Manifest,
    parse_range,
    picture_records,
    plan_hash,
    source_hashes,
    view_of,
)
from dsgen.corpus.pictures import draw_composites, draw_missing_sources, encode_sources
from dsgen.corpus.plan import encode_plan
from dsgen.corpus.rooms import DepthSource, Rooms, write_rooms
from dsgen.corpus.sources import SourceFile, hash_files, write_sources
from dsgen.errors import BusyError, DamagedError, DsgenError
from dsgen.integrity.check_corpus import (
    check_plan,
    check_rooms,
    check_sources,
    expected_plan,
    read_manifest,
)
from dsgen.integrity.check_pictures import NOT_A_FOLDER, VIEWS, all_unlike, drawn_files, unlabelled_rows
from dsgen.integrity.findings import EXTRA, FOREIGN, KEPT, Finding, RepairLog, RepairResult, ReportBuilder
from dsgen.integrity.verify import verify
from dsgen.io.assets import asset
from dsgen.io.atomic import is_unfinished, unfinished_path, write_bytes, write_folder
from dsgen.io.filesystem import LocalFiles, hash_tree
from dsgen.io.folders import list_pictures, match_key
from dsgen.io.images import read_picture
from dsgen.parallel.locks import LOCK, held_locks
from dsgen.parallel.parts import lock_stage
from dsgen.parallel.pool import run_blocks


def repair_corpus(
    path: Path,
    backgrounds: Path | None,
    foregrounds: Path | None,
    workers: int,
    background_depths: Path | None = None,
) -> RepairResult:
    """Restore the damaged files of a corpus; see `repair`."""
    log = RepairLog(str(path))
    with _lock(path):
        folders = {"backgrounds": backgrounds, "foregrounds": foregrounds}
        _repair_foundation(path, folders, background_depths, workers, log)
    report = verify(path, jobs=workers)
    log.found += len(report.findings)
    if not log.found:
        log.notes += report.notes
        return log.build()
    _refuse_all_unlike(path, report.findings)
    with _lock(path):
        if _repair_label_metadata(path, report.findings, log):
            report = verify(path, jobs=workers)  # labels that could not be opened were not checked
        relabel = _remove_labels(path, report.findings, log)
    if relabel:
        log.notes.append("labels were recreated; no hash was recorded, but the same device gives the same labels")
        _relabel(path, log)
        report = verify(path, jobs=workers)  # views of labels that could not be read were not compared
    with _lock(path):
        _repair_pictures(path, report.findings, workers, log)
    after = verify(path, jobs=workers)
    log.notes += [note for note in after.notes if note not in log.notes]
    return log.build(after)


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Keep others from writing to a corpus; refuse while they do, even if they write only parts of it."""
    with lock_stage(path, "composite", None):
        if held_locks(path, rf"{re.escape(LOCK)}-depth-.*"):
            raise BusyError(path, "dsgen depth --part is at work here", "wait for it or stop it")
        yield


def _repair_foundation(
    path: Path, folders: dict[str, Path | None], depths: Path | None, workers: int, log: RepairLog
) -> None:
    """Restore what everything else is drawn from: the sources, from pictures in `folders`, the rooms, and the plan."""
    report = ReportBuilder(str(path), "corpus")
    manifest = read_manifest(path, report)
    if manifest is None:
        raise DamagedError(path / layout.CORPUS_JSON, report.findings[0].what, REMEDY)
    check_sources(path, manifest, workers, report)
    if report.findings:
        _repair_sources(path, manifest, report.findings, folders, workers, log)
    log.found += len(report.findings)
    report = ReportBuilder(str(path), "corpus")
    stand_in_them = "rooms_sha256" in manifest  # then the plan is made from the rooms
    if stand_in_them:
        check_rooms(path, manifest, report)
        if report.findings:
            _repair_rooms(path, manifest, report.findings, folders["backgrounds"], depths, workers, log)
        log.found += len(report.findings)
        report = ReportBuilder(str(path), "corpus")
    check_plan(path, manifest, report)
    if report.findings:
        _repair_plan(path, manifest, report.findings, log)
    log.found += len(report.findings)
    if not stand_in_them:
        report = ReportBuilder(str(path), "corpus")
        check_rooms(path, manifest, report)
        if report.findings:
            _repair_composed_rooms(path, report.findings, depths, workers, log)
        log.found += len(report.findings)


def _refuse_all_unlike(path: Path, findings: Iterable[Finding]) -> None:
    found = list(findings)
    if found and all_unlike(Corpus(path), found):
        raise DsgenError(
            path,
            f"every composite differs from what the plan draws, so the quality in {layout.CORPUS_JSON} has changed, or "
            "another OpenCV drew them; no picture was changed",
            f"restore {layout.CORPUS_JSON}, or remove bg and bg_fg to draw them anew",
        )


def _repair_sources(
    path: Path,
    manifest: Manifest,
    findings: list[Finding],
    folders: dict[str, Path | None],
    workers: int,
    log: RepairLog,
) -> None:
    """Normalise the source pictures again and replace the files that differ."""
    if _is_damaged(findings):
        parameters = manifest["parameters"]
        paths = [_find_originals(path, manifest, kind, folder, workers) for kind, folder in folders.items()]
        unfinished = unfinished_path(path / layout.SOURCES)
        with write_folder(unfinished) as scratch:
            write_sources(
                scratch,
                *paths,
                size=parameters["size"],
                scales=tuple(sorted({1, parameters["label_size"] // parameters["size"]})),
                fg_height=parse_range(parameters["fg_height"])[1],
                errors=[],
                workers=workers,
                figures=manifest["format"] == SCENE_FORMAT,
            )
        try:
            _replace_sources(path, unfinished, manifest, workers, log)
        finally:
            LocalFiles(path).remove(unfinished.name)
    _remove_extra(path, findings, log)


def _repair_rooms(
    path: Path,
    manifest: Manifest,
    findings: list[Finding],
    backgrounds: Path | None,
    depths: Path | None,
    workers: int,
    log: RepairLog,
) -> None:
    """Make the rooms that people stand in again from the depth of the backgrounds, if any of them is damaged."""
    if not _is_damaged(findings):
        _remove_extra(path, findings, log)
        return
    from dsgen.depth.rooms import estimate_depth_with

    paths = _find_originals(path, manifest, "backgrounds", backgrounds, workers)
    records, parameters = manifest["backgrounds"], manifest["parameters"]
    views = [view_of(record) for record in records]
    files = [SourceFile(record["name"], record["file"], record["sha256"]) for record in records]
    source = DepthSource(files, views, lambda number: read_picture(paths[number]), depths, estimate_depth_with())
    sizes = sorted({parameters["size"], parameters["label_size"]})
    names = [record["name"] for record in records]
    with _made_again(path, len(records), manifest.get("rooms_sha256"), log) as unfinished:
        write_rooms(unfinished, names, views, sizes, source.read)


def _repair_composed_rooms(
    path: Path, findings: list[Finding], depths: Path | None, workers: int, log: RepairLog
) -> None:
    """Make the rooms of composed depth again, if any of them is damaged.

    Fields of view may be from an option, which only their metadata records. What vouches for that is its own hash, or
    the labels that were composed. Without either, the rooms are removed.
    """
    if not _is_damaged(findings):
        _remove_extra(path, findings, log)
        return
    from dsgen.depth.rooms import estimate_depth_with

    corpus = Corpus(path)
    records = corpus.manifest["backgrounds"]
    views = [view_of(record) for record in records]
    try:
        recorded = Rooms(path / layout.ROOMS, len(records))
        views = [(record["fov_deg"], record["fov_from"]) for record in recorded.records]
        sha256: str | None = recorded.sha256
    except DsgenError:
        sha256 = _rooms_of_labels(corpus)
    if sha256 is None:
        LocalFiles(path).remove(layout.ROOMS)
        log.removed.append(layout.ROOMS)
        log.notes.append(f"{layout.ROOMS}: removed; dsgen depth --composed makes it again, with the same options")
        return
    remedy = f", or remove {layout.ROOMS} and run dsgen depth --composed with the options it had"
    with _made_again(path, len(records), sha256, log, remedy) as unfinished:
        write_composed_rooms(corpus, unfinished, views, depths, estimate_depth_with(), workers)


def _rooms_of_labels(corpus: Corpus) -> str | None:
    """Return the hash of the rooms that the labels were composed with, None where they were not or cannot be read."""
    try:
        attributes = corpus.depth_attributes
    except DsgenError:
        return None
    return str(attributes["weights_sha256"]) if attributes.get("model") == COMPOSED else None


@contextmanager
def _made_again(path: Path, backgrounds: int, sha256: str | None, log: RepairLog, remedy: str = "") -> Iterator[Path]:
    """Put the rooms that are made in the folder given in the place of damaged ones, if they are the same."""
    unfinished = unfinished_path(path / layout.ROOMS)
    try:
        yield unfinished
        if sha256 not in (None, Rooms(unfinished, backgrounds).sha256):
            raise DamagedError(
                path / layout.ROOMS,
                "damaged, and made again it is another: its depth or fields of view came from elsewhere",
                f"pass the folder of depth maps with --background-depths{remedy}",
            )
        _clear(path / layout.ROOMS)
        unfinished.rename(path / layout.ROOMS)
    finally:
        LocalFiles(path).remove(unfinished.name)
    log.replaced.append(layout.ROOMS)


def _is_damaged(findings: Iterable[Finding]) -> bool:
    return any(finding.what not in KEPT for finding in findings)


def _remove_extra(path: Path, findings: Iterable[Finding], log: RepairLog) -> None:
    for finding in findings:
        if finding.what == EXTRA:
            LocalFiles(path).remove(finding.file)
            log.removed.append(finding.file)


def _find_originals(path: Path, manifest: Manifest, kind: str, folder: Path | None, workers: int) -> list[Path]:
    """Find the backgrounds or foregrounds a corpus was made from, by name and hash; return them in its order."""
    records = picture_records(manifest, kind)
    hashes = {match_key(record["file"]): record["sha256"] for record in records}
    folder = folder or asset(kind)
    listed = list_pictures(folder, kind, in_classes=any("class" in record for record in records))
    paths = {match_key(path.relative_to(folder).as_posix()): path for path in listed}
    chosen = {name: path for name, path in paths.items() if name in hashes}
    found = {match_key(file.file): file.sha256 for file in hash_files(folder, list(chosen.values()), workers)}
    missing = sorted(name for name in hashes if found.get(name) != hashes[name])
    if missing:
        raise DamagedError(
            path / layout.SOURCES,
            f"damaged, and {len(missing)} of the {len(hashes)} {kind} it was made from are not in {folder} (the first "
            f"is {missing[0]})",
            f"pass the folder they are in with --{kind}",
        )
    return [chosen[name] for name in hashes]


def _replace_sources(path: Path, rebuilt: Path, manifest: Manifest, workers: int, log: RepairLog) -> None:
    """Replace the files of the sources that differ from the rebuilt ones, which must have the recorded hashes."""
    fresh = _hash_sources(rebuilt, workers)
    recorded = source_hashes(manifest)
    if recorded and fresh != recorded:
        raise DsgenError(
            path / layout.SOURCES,
            f"rebuilt with other hashes than {layout.CORPUS_JSON} records; nothing was changed",
            f"check that dsgen {manifest['dsgen']} is installed, with the zarr it had",
        )
    current = _hash_sources(path / layout.SOURCES, workers)
    for name, digest in fresh.items():
        if current.get(name) != digest:
            target = path / name
            _clear(target)
            target.parent.mkdir(parents=True, exist_ok=True)
            (rebuilt / name.partition("/")[2]).replace(target)
            log.replaced.append(name)


def _hash_sources(folder: Path, workers: int) -> dict[str, str | None]:
    """Hash every file below a folder of sources; names begin with that of the sources."""
    files = LocalFiles(folder)
    return {f"{layout.SOURCES}/{name}": digest for name, digest in hash_tree(files, files.sizes(), workers)}


def _clear(path: Path) -> None:
    """Remove a folder where a file belongs."""
    if path.is_dir():
        LocalFiles(path.parent).remove(path.name)


def _repair_plan(path: Path, manifest: Manifest, findings: list[Finding], log: RepairLog) -> None:
    """Write the plan again, which needs only the manifest, the sources and the rooms."""
    content = encode_plan(expected_plan(path, manifest))
    recorded = plan_hash(manifest)
    if findings[0].file != layout.PLAN or recorded not in (None, hashlib.sha256(content).hexdigest()):
        raise DamagedError(
            path / layout.CORPUS_JSON, "names or parameters differ from those the plan was made with", REMEDY
        )
    plan = path / layout.PLAN
    if plan.is_dir() and not plan.is_symlink():
        plan.rmdir()  # only an empty folder: what others put there is theirs
    write_bytes(plan, content)
    log.replaced.append(layout.PLAN)


@dataclass
class _BadPictures:
    """The findings about pictures, sorted by what restores them.

    `small` are files of `bg`, `fg` and `fg_mask`, by folder, or such a folder itself; `files` are those of composites,
    masks and views by background; `whole` are the backgrounds with a missing folder, all of whose pictures are drawn.
    """

    small: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    files: dict[int, set[str]] = field(default_factory=lambda: defaultdict(set))
    whole: set[int] = field(default_factory=set)


def _repair_pictures(path: Path, findings: Iterable[Finding], workers: int, log: RepairLog) -> None:
    """Draw bad pictures again and remove what does not belong to the picture folders."""
    corpus = Corpus(path)
    bad = _sort_pictures(corpus, findings, log)
    draw_missing_sources(corpus)
    for folder, names in bad.small.items():
        for name, content in encode_sources(corpus, folder) if names - {folder} else ():
            if f"{folder}/{name}" in names:
                _write(path / folder / name, content)
        log.replaced += sorted(names)
    _draw_backgrounds(corpus, sorted(bad.whole), workers)
    tasks = [(str(path), background, sorted(names)) for background, names in bad.files.items()]
    if tasks:
        run_blocks(draw_files, tasks, jobs=workers, title="draw", total=sum(len(names) for *_, names in tasks))
        log.replaced += [name for *_, names in tasks for name in names]


def _sort_pictures(corpus: Corpus, findings: Iterable[Finding], log: RepairLog) -> _BadPictures:
    """Sort the findings about pictures by what restores them; remove what is extra or lies where a folder belongs."""
    files = LocalFiles(corpus.path)
    numbers = {layout.background_name(b): b for b in range(len(corpus.manifest["backgrounds"]))}
    bad = _BadPictures()
    for finding in findings:
        top, _, below = finding.file.partition("/")
        if finding.what == FOREIGN:
            continue
        if finding.what == EXTRA and (top in layout.FOLDERS or is_unfinished(top)):
            files.remove(finding.file)
            log.removed.append(finding.file)
        elif top in layout.SOURCE_FOLDERS:
            bad.small[top].add(finding.file)
        elif top in layout.FOLDERS:
            folder, _, file = below.partition("/")
            if file:
                bad.files[numbers[folder]].add(finding.file)
            else:
                bad.whole |= {numbers[folder]} if folder else set(numbers.values())
                log.replaced.append(finding.file)
        if finding.what == NOT_A_FOLDER:
            files.remove(finding.file)
    return bad


def _draw_backgrounds(corpus: Corpus, backgrounds: list[int], workers: int) -> None:
    """Draw all composites and masks of backgrounds, and their views where these are missing and can be drawn."""
    path = str(corpus.path)
    if not backgrounds:
        return
    views = [b for b in backgrounds if not (corpus.path / VIEWS / layout.background_name(b)).is_dir()]
    tasks = [(path, b, corpus.sha256) for b in backgrounds]
    run_blocks(draw_composites, tasks, jobs=workers, title="draw", total=_count_rows(corpus, backgrounds))
    if views and (corpus.path / VIEWS).is_dir() and not unlabelled_rows(corpus):
        from dsgen.corpus.depth_views import draw_views

        blocks = [(path, b) for b in views]
        run_blocks(draw_views, blocks, jobs=workers, title="draw views", total=_count_rows(corpus, views))


def _count_rows(corpus: Corpus, backgrounds: list[int]) -> int:
    return sum(len(corpus.rows_of(background)) for background in backgrounds)


def draw_files(path: str, background: int, names: list[str]) -> int:
    """Draw some pictures of one background again, by their names within the corpus; return how many were written."""
    corpus, chosen, written = Corpus(path), set(names), 0
    folders = {name.partition("/")[0] for name in names}
    for group in (folders - {VIEWS}, folders & {VIEWS}):
        for name, content in drawn_files(corpus, background, group) if group else ():
            if name in chosen and content:
                _write(Path(path) / name, content)
                written += 1
    return written


def _write(path: Path, content: bytes) -> None:
    _clear(path)
    write_bytes(path, content)


def _repair_label_metadata(path: Path, findings: Iterable[Finding], log: RepairLog) -> bool:
    """Write damaged metadata of the labels' arrays again, which follows from the group's; return whether any was."""
    damaged = {finding.file.partition("/")[2] for finding in findings if finding.component == layout.DEPTH}
    arrays = {name for name in damaged if name.count("/") == 1 and name.endswith("/zarr.json")}
    if not arrays or "zarr.json" in damaged:
        return False
    corpus = Corpus(path)
    restored = restored_metadata(path / layout.DEPTH, len(corpus), corpus.size, corpus.positions)
    mended = sorted(arrays & restored.keys())
    for name in mended:
        _write(path / layout.DEPTH / name, restored[name])
        log.replaced.append(f"{layout.DEPTH}/{name}")
    return bool(mended)


def _remove_labels(path: Path, findings: Iterable[Finding], log: RepairLog) -> bool:
    """Remove damaged blocks of labels, each with its flip errors; return whether to label them again now.

    Blocks of unfinished labels are left to the next dsgen depth: labelling now would also label all the other rows.
    """
    labels = [finding for finding in findings if finding.component == layout.DEPTH]
    files = LocalFiles(path)
    complete = True
    if any("/c/" in finding.file for finding in labels):
        complete = bool(Corpus(path).depth_attributes.get("complete"))
    relabel = False
    for finding in labels:
        names = finding.file.split("/")
        if finding.what == FOREIGN:
            continue
        if finding.what == EXTRA:
            files.remove(finding.file)
            log.removed.append(finding.file)
        elif len(names) > 3 and names[2] == "c":
            for array in (DEPTH, RELATIVE, FLIP_ERROR):
                files.remove(f"{layout.DEPTH}/{block_file(array, int(names[3]))}")
            relabel = complete
            if complete:
                log.replaced.append(finding.file)
            else:
                log.removed.append(finding.file)
                log.notes.append(f"{finding.file}: removed; dsgen depth, which has not finished, labels it again")
        else:
            log.notes.append(f"{finding.file}: not restored; remove {path / layout.DEPTH} and run dsgen depth")
    return relabel


def _relabel(path: Path, log: RepairLog) -> None:
    """Label the removed blocks again, where the bundled network made the labels; otherwise replace the last note."""
    from dsgen.depth.label_corpus import label_corpus

    attributes = Corpus(path).depth_attributes
    if attributes.get("model") == COMPOSED:
        label_composed(path)
        return
    try:
        label_corpus(
            path,
            precision=attributes.get("precision", "auto"),
            check_flip=bool(attributes.get("flip_checked")),
            average_flip=bool(attributes.get("flip_averaged")),
        )
    except DsgenError as error:
        log.notes[-1] = (
            f"damaged labels were removed; run dsgen depth as before, with {attributes.get('model')}, to recreate "
            f"them ({error})"
        )
