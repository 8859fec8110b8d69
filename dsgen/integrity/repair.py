"""Make what is damaged in a corpus or a store again from the plan, and nothing else.

Bad shards are packed beside the store and compared with the hashes it was finished with before any of its files is
touched; then only the files that differ are replaced, each whole or not at all. A repair that is killed is repeated.
"""

import os
import re
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dsgen.corpus import layout
from dsgen.errors import BusyError, DamagedError, DsgenError, NotFoundError
from dsgen.integrity.findings import EXTRA, Finding, Report
from dsgen.integrity.verify import is_store, verify
from dsgen.io.assets import asset
from dsgen.io.atomic import partial_path, write_bytes, write_folder
from dsgen.io.filesystem import LocalFiles, UrlFiles, hash_tree, is_url
from dsgen.parallel.locks import LOCK, held_locks
from dsgen.parallel.parts import lock_stage
from dsgen.parallel.pool import run_blocks, worker_count
from dsgen.store.layout import INDEX_JSON, PACKING, SHA256SUMS


@dataclass
class Repaired:
    """What was wrong, what of it was made again or removed, and what is still wrong."""

    place: str
    wrong: int
    replaced: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    after: Report | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def left(self) -> list[Finding]:
        """What is still wrong."""
        return [] if self.after is None else self.after.findings

    def summary(self) -> str:
        """Say in a line what was done."""
        if not self.wrong:
            return f"{self.place}: nothing wrong, nothing done"
        left = f"{len(self.left):,} still wrong" if self.left else "nothing wrong is left"
        return (
            f"{self.place}: {self.wrong:,} wrong; {len(self.replaced):,} made again, "
            f"{len(self.removed):,} removed; {left}"
        )


def repair(
    place: Path | str,
    corpus: Path = Path("corpus"),
    backgrounds: Path | None = None,
    foregrounds: Path | None = None,
    *,
    jobs: int | None = None,
) -> Repaired:
    """Make the damaged files of a store or corpus again, remove what does not belong to it, and check it once more.

    A store is made again from `corpus`, and only if that gives the hashes the store was finished with: else a
    `DsgenError` is raised and the store left as it is. A corpus draws its pictures and its plan itself; its sources
    are normalised again from the pictures in `backgrounds` and `foregrounds`, the bundled ones unless given. Damaged
    labels are removed and made again where the bundled network made them. Files that are not dsgen's, beside the
    corpus' or store's own, are left alone.
    """
    workers = worker_count(jobs)
    if is_store(place):
        return _repair_store(place, corpus, workers)
    return _repair_corpus(Path(place), backgrounds, foregrounds, workers)


def _repair_store(place: Path | str, corpus: Path, workers: int) -> Repaired:
    from dsgen.integrity.check_store import inspect_store

    with _alone(place):
        report = Report(str(place), "store")
        found = inspect_store(place, workers, report)
        done = Repaired(str(place), len(report.findings))
        if not report.findings:
            return done
        files = found.files
        extra, again = list(found.leftovers), list(found.unknown)
        for name in found.bad:
            listed, own = found.listed[name], found.own(name)
            if found.sure(name) and listed.items() <= own.items():  # all there, and something beside it
                extra += own.keys() - listed.keys()
            else:
                again.append(name)
        made: dict[str, dict[str, str]] = {}
        if again:
            with _room(files) as scratch:
                made = _remake(_open_source(corpus, found), scratch, sorted(again), found, workers)
                for name, table in made.items():
                    own = found.own(name)
                    extra += own.keys() - table.keys()
                    wrong = sorted(file for file in table if own.get(file) != table[file])
                    if wrong and name in found.unknown:
                        done.notes.append(f"{name}: nothing said what its hashes were; what differed was made again")
                    for file in wrong:
                        _move(scratch / file, files, file)
                        done.replaced.append(file)
        for file in sorted(extra):
            files.remove(file)
            done.removed.append(file)
        _write_sums_and_index(found, made, done)
        _remove_empty(files, found.names)
        done.after = verify(place, fast=True, jobs=workers)
    return done


def _open_source(corpus: Path, found: Any) -> Any:
    """Open the corpus a store is made again from."""
    from dsgen.integrity.check_store import corpus_source

    made_from = found.made_from()
    bad = len({*found.bad, *found.unknown})
    if "corpus_sha256" not in made_from:
        raise DsgenError(
            found.files,
            f"{bad} bad shards, and packed from pictures (--images), which repair does not do",
            "remove the store and run the same dsgen pack",
        )
    if not (corpus / layout.CORPUS_JSON).is_file():
        raise NotFoundError(
            corpus,
            f"no corpus, expected the one that {found.files} was packed from, to make {bad} bad shards again",
            "give it with --corpus",
        )
    return corpus_source(corpus, made_from)


def _remake(source: Any, scratch: Path, names: list[str], found: Any, workers: int) -> dict[str, dict[str, str]]:
    """Pack shards again and return the hashes of their files, which must be those they were finished with."""
    from dsgen.integrity.check_store import shard_digest
    from dsgen.store.packing import pack_shards

    tables = pack_shards(source, scratch, [found.names.index(name) for name in names], found.made_from(), workers)
    made = {name: {file: entry.sha256 for file, entry in table.items()} for name, table in tables.items()}
    for name, table in made.items():
        # where SHA256SUMS is damaged too, the bytes that are there vouch for a file as well
        listed, own = found.listed[name], found.own(name)
        seen = all(digest in (listed.get(file), own.get(file)) for file, digest in table.items())
        if not seen and shard_digest(dict(table)) != found.vouched.get(name) and name not in found.unknown:
            raise DsgenError(
                f"{found.files}/{name}",
                "made again it has other hashes than it had",
                (
                    f"nothing was changed. Is the corpus whole (dsgen verify {source.folders[0]}), and dsgen "
                    f"{_version(found)} installed?"
                ),
            )
    return made


def _version(found: Any) -> str:
    """Say which dsgen made a store."""
    return str((found.index_there or {}).get("dsgen", "of the same version"))


def _write_sums_and_index(found: Any, made: dict[str, dict[str, str]], done: Repaired) -> None:
    """Write the two files at the top of a store anew where they are not what its shards, made again or not, say."""
    from dsgen.integrity.check_store import expect, sizes_there

    sizes = sizes_there(found.files)
    digests = found.digests | {file: digest for table in made.values() for file, digest in table.items()}
    now = replace(found, sizes=sizes, digests={file: digests[file] for file in sizes}, bad=[])
    expect(now)
    for name, content in ((SHA256SUMS, now.sums), (INDEX_JSON, now.index)):
        if content is not None and (name not in sizes or now.files.read(name) != content):
            now.files.write(name, content)
            done.replaced.append(name)


def _alone(place: Path | str) -> AbstractContextManager[Any]:
    """Keep others from writing to a store, and refuse while they do; in an object store there are no locks."""
    return nullcontext() if is_url(place) else lock_stage(Path(place), "pack", None)


@contextmanager
def _room(files: LocalFiles | UrlFiles) -> Iterator[Path]:
    """Yield an empty folder, on the same file system where that is a local one."""
    if not isinstance(files, LocalFiles):
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
        return
    room = files.path / PACKING / "repair"
    files.remove(PACKING)
    room.mkdir(parents=True)
    try:
        yield room
    finally:
        files.remove(PACKING)


def _move(path: Path, files: LocalFiles | UrlFiles, name: str) -> None:
    """Put a file in its place; into an object store a piece at a time, as a zip may be larger than memory."""
    if isinstance(files, LocalFiles):
        target = files.path / name
        if target.is_dir():
            files.remove(name)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.replace(target)
    elif name.endswith(".zip"):
        import fsspec

        fs, target = fsspec.core.url_to_fs(f"{files}/{name}")
        fs.put_file(str(path), target)
    else:
        files.write(name, path.read_bytes())


def _remove_empty(files: LocalFiles | UrlFiles, shards: list[str]) -> None:
    """Remove folders of shards that hold nothing, which removed files have left."""
    if isinstance(files, LocalFiles):
        for name in shards:
            for folder, _, _ in os.walk(files.path / name, topdown=False):
                if not os.listdir(folder):
                    os.rmdir(folder)


@contextmanager
def _at_corpus(path: Path) -> Iterator[None]:
    """Keep others from writing to a corpus, and refuse while they do, be it parts of its pictures or labels."""
    with lock_stage(path, "composite", None):
        busy = held_locks(path, rf"{re.escape(LOCK)}-depth-.*")
        if busy:
            raise BusyError(path, "dsgen depth --part is at work here", "wait for it or stop it")
        yield


def _repair_corpus(path: Path, backgrounds: Path | None, foregrounds: Path | None, workers: int) -> Repaired:
    from dsgen.integrity.check_corpus import check_plan, check_sources, read_manifest

    done = Repaired(str(path), 0)
    with _at_corpus(path):
        # what the others are drawn from comes first
        report = Report(str(path), "corpus")
        manifest = read_manifest(path, report)
        if manifest is None:
            raise DsgenError(
                f"{path}/{layout.CORPUS_JSON}",
                f"{report.findings[0].what}",
                "remove it and run dsgen composite with the same pictures and options, which makes it again",
            )
        check_sources(path, manifest, workers, report)
        if report.findings:
            _repair_sources(path, manifest, report.findings, backgrounds, foregrounds, workers, done)
        done.wrong += len(report.findings)
        report = Report(str(path), "corpus")
        check_plan(path, manifest, report)
        if report.findings:
            _repair_plan(path, manifest, report.findings, done)
        done.wrong += len(report.findings)
    report = verify(path, jobs=workers)
    done.wrong += len(report.findings)
    if not done.wrong:
        done.notes += report.notes
        return done
    _refuse_all_unlike(path, report.findings)
    with _at_corpus(path):
        again = _remove_labels(path, report.findings, done)
    if again:
        done.notes.append("labels were made again; they are as before where the same device made them, no hash tells")
        _label_again(path, done)
        report = verify(path, jobs=workers)  # views of labels that could not be read were not compared
    with _at_corpus(path):
        _repair_pictures(path, report.findings, workers, done)
    done.after = verify(path, jobs=workers)
    done.notes += [note for note in done.after.notes if note not in done.notes]
    left = {finding.file for finding in done.left}
    done.replaced = [name for name in done.replaced if name not in left]
    return done


def _refuse_all_unlike(path: Path, findings: list[Finding]) -> None:
    from dsgen.corpus.corpus import Corpus
    from dsgen.integrity.check_corpus import all_unlike

    if findings and all_unlike(Corpus(path), findings):
        raise DsgenError(
            path,
            (
                f"every composite is unlike what is drawn, so {layout.CORPUS_JSON} (its quality) has changed, or "
                "another OpenCV drew them"
            ),
            "no picture was changed: restore it, or remove bg and bg_fg to draw them anew",
        )


def _repair_sources(
    path: Path,
    manifest: dict[str, Any],
    findings: list[Finding],
    backgrounds: Path | None,
    foregrounds: Path | None,
    workers: int,
    done: Repaired,
) -> None:
    """Normalise the source pictures again and replace the files that differ."""
    from dsgen.corpus.sources import hash_files, list_pictures, write_sources

    extra = [finding.file for finding in findings if finding.what == EXTRA]
    if len(extra) < len(findings):
        parameters = manifest["parameters"]
        paths = []
        for kind, folder in (("backgrounds", backgrounds), ("foregrounds", foregrounds)):
            wanted = {picture["file"]: picture["sha256"] for picture in manifest[kind]}
            place = folder or asset(kind)
            chosen = [picture for picture in list_pictures(place, kind) if picture.name in wanted]
            there = {file.file: file.sha256 for file in hash_files(chosen, workers)}
            wrong = sorted(name for name in wanted if there.get(name) != wanted[name])
            if wrong:
                raise DamagedError(
                    path / layout.SOURCES,
                    f"damaged, and {len(wrong)} of the {len(wanted)} {kind} it was made from are not in {place} "
                    f"(the first {wrong[0]})",
                    f"give the folder with --{kind}",
                )
            paths.append(sorted(chosen, key=lambda picture: list(wanted).index(picture.name)))
        unfinished = partial_path(path / layout.SOURCES)
        with write_folder(unfinished) as scratch:
            write_sources(
                scratch,
                *paths,
                size=parameters["size"],
                scales=tuple(sorted({1, parameters["label_size"] // parameters["size"]})),
                fg_height=parameters["fg_height"],
                errors=[],
                workers=workers,
            )
        try:
            _replace_sources(path, unfinished, manifest, workers, done)
        finally:
            LocalFiles(path).remove(unfinished.name)
    for file in extra:
        LocalFiles(path).remove(file)
        done.removed.append(file)


def _replace_sources(path: Path, made: Path, manifest: dict[str, Any], workers: int, done: Repaired) -> None:
    sizes = LocalFiles(made).sizes()
    fresh = {f"{layout.SOURCES}/{name}": digest for name, digest in hash_tree(LocalFiles(made), sizes, workers)}
    recorded = {name: digest for name, digest in manifest.get("sha256", {}).items() if name != layout.PLAN}
    if recorded and fresh != recorded:
        raise DsgenError(
            path / layout.SOURCES,
            f"made again it has other hashes than {layout.CORPUS_JSON} records",
            f"nothing was changed. Is dsgen {manifest['dsgen']} installed, with the zarr it had?",
        )
    there = {f"{layout.SOURCES}/{name}": size for name, size in LocalFiles(path / layout.SOURCES).sizes().items()}
    was = dict(hash_tree(LocalFiles(path), there, workers))
    for name, digest in fresh.items():
        if was.get(name) != digest:
            _move(made / name.partition("/")[2], LocalFiles(path), name)
            done.replaced.append(name)


def _repair_plan(path: Path, manifest: dict[str, Any], findings: list[Finding], done: Repaired) -> None:
    """Make the plan again, which needs the manifest and the foregrounds' shapes alone."""
    import hashlib

    from dsgen.integrity.check_corpus import encode_plan, expected_plan, read_shapes

    content = encode_plan(expected_plan(manifest, read_shapes(path)))
    recorded = manifest.get("sha256", {}).get(layout.PLAN)
    if findings[0].file != layout.PLAN or recorded not in (None, hashlib.sha256(content).hexdigest()):
        raise DsgenError(
            f"{path}/{layout.CORPUS_JSON}",
            "names or parameters are not those the plan was made with",
            "remove it and run dsgen composite with the same pictures and options, which makes it again",
        )
    write_bytes(path / layout.PLAN, content)
    done.replaced.append(layout.PLAN)


def _repair_pictures(path: Path, findings: list[Finding], workers: int, done: Repaired) -> None:
    """Draw bad pictures again and remove what does not belong to the picture folders."""
    from dsgen.corpus.build import SMALL_PARTS, draw_background, draw_small_parts, small_pictures
    from dsgen.corpus.corpus import Corpus
    from dsgen.integrity.check_corpus import NO_FOLDER, lacking_labels

    files = LocalFiles(path)
    wrong: dict[str, set[str]] = defaultdict(set)
    whole: set[int] = set()
    corpus = Corpus(path)
    numbers = {layout.background_name(b): b for b in range(len(corpus.manifest["backgrounds"]))}
    for finding in findings:
        part, _, rest = finding.file.partition("/")
        if finding.what == EXTRA and (part in layout.PARTS or part.endswith(".partial")):
            files.remove(finding.file)
            done.removed.append(finding.file)
        elif part in SMALL_PARTS:
            wrong[part].add(finding.file)
        elif part in layout.PARTS:
            folder = rest.partition("/")[0]
            if folder == "":
                whole |= set(numbers.values())
            elif "/" not in rest:
                whole.add(numbers[folder])
            else:
                wrong[folder].add(finding.file)
            if "/" not in rest:
                done.replaced.append(finding.file)
        if finding.what == NO_FOLDER:
            files.remove(finding.file)
    draw_small_parts(corpus)
    for part in SMALL_PARTS:
        for name, content in small_pictures(corpus, part) if wrong[part] - {part} else ():
            if f"{part}/{name}" in wrong[part]:
                _write(path, f"{part}/{name}", content)
        done.replaced += sorted(wrong[part])
    views = {b for b in whole if not (path / "bg_fg_depth" / layout.background_name(b)).is_dir()}
    tasks = [(str(path), b, corpus.sha256) for b in sorted(whole)]
    each = corpus.rows_per_background
    if tasks:
        run_blocks(draw_background, tasks, jobs=workers, title="draw", total=len(tasks) * each)
    if views and (path / "bg_fg_depth").is_dir() and not lacking_labels(corpus):
        from dsgen.corpus.depth_views import draw_views

        blocks = [(str(path), b) for b in sorted(views)]
        run_blocks(draw_views, blocks, jobs=workers, title="draw views", total=len(blocks) * each)
    drawn = [(str(path), numbers[folder], sorted(names)) for folder, names in wrong.items() if folder in numbers]
    if drawn:
        run_blocks(draw_again, drawn, jobs=workers, title="draw", total=sum(len(names) for *_, names in drawn))
        done.replaced += [name for *_, names in drawn for name in names]


def _write(path: Path, name: str, content: bytes) -> None:
    if (path / name).is_dir():
        LocalFiles(path).remove(name)
    write_bytes(path / name, content)


def draw_again(path: str, background: int, names: list[str]) -> int:
    """Write some pictures of one background again, by their names within the corpus; return how many."""
    from dsgen.corpus.corpus import Corpus
    from dsgen.integrity.check_corpus import drawn_files

    corpus, wanted, made = Corpus(path), set(names), 0
    parts = {name.partition("/")[0] for name in names}
    for some in (parts - {"bg_fg_depth"}, parts & {"bg_fg_depth"}):
        for name, content in drawn_files(corpus, background, sorted(some)) if some else ():
            if name in wanted and content:
                _write(Path(path), name, content)
                made += 1
    return made


def _remove_labels(path: Path, findings: list[Finding], done: Repaired) -> bool:
    """Remove damaged blocks of labels, each with its flip errors; say whether any is to be made again now.

    Of unfinished labels none is: labelling goes on with those blocks, and would with all the others.
    """
    from dsgen.corpus.corpus import Corpus

    files, again, complete = LocalFiles(path), False, True
    if any(finding.file.startswith(f"{layout.DEPTH}/") and "/c/" in finding.file for finding in findings):
        complete = bool(Corpus(path).depth_attributes.get("complete"))
    for finding in findings:
        names = finding.file.split("/")
        if names[0] != layout.DEPTH:
            continue
        if finding.what == EXTRA:
            files.remove(finding.file)
            done.removed.append(finding.file)
        elif len(names) > 3 and names[2] == "c":
            for file in (f"depth/c/{names[3]}/0/0", f"relative/c/{names[3]}/0/0", f"flip_error/c/{names[3]}"):
                files.remove(f"{layout.DEPTH}/{file}")
            again = complete
            if complete:
                done.replaced.append(finding.file)
            else:
                done.removed.append(finding.file)
                done.notes.append(f"{finding.file}: removed; dsgen depth, which has not finished, labels it again")
        else:
            done.notes.append(f"{finding.file}: not made again; remove {path / layout.DEPTH} and run dsgen depth")
    return again


def _label_again(path: Path, done: Repaired) -> None:
    """Label the blocks that were removed, where the bundled network made the labels."""
    from dsgen.corpus.corpus import Corpus
    from dsgen.depth.label_corpus import label_corpus

    attributes = Corpus(path).depth_attributes
    check_flip, average_flip = (bool(attributes.get(name)) for name in ("flip_checked", "flip_averaged"))
    try:
        label_corpus(
            path,
            precision=attributes.get("precision", "auto"),
            check_flip=check_flip,
            average_flip=average_flip,
        )
    except DsgenError as error:
        done.notes[-1] = (
            f"damaged labels were removed; run dsgen depth as before, with {attributes.get('model')}, to make them "
            f"again ({error})"
        )
