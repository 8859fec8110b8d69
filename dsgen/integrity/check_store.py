"""Check a store: every file against its hash, then every row against its corpus.

Two records vouch for a shard: its files' hashes in `SHA256SUMS`, and the hash of these lines in `index.json`. A shard
is whole if either agrees; what the files beside the shards should hold then follows from the shards.
"""

import contextlib
import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from dsgen.corpus.corpus import Corpus
from dsgen.errors import (
    ConflictError,
    DamagedError,
    DsgenError,
    InvalidValueError,
    find_differences,
    is_system_error,
)
from dsgen.integrity.check_rows import check_rows
from dsgen.integrity.findings import EXTRA, FOREIGN, MISSING, ReportBuilder, damage_of, shard_damage
from dsgen.io.atomic import final_name, is_unfinished
from dsgen.io.filesystem import LocalFiles, UrlFiles, hash_tree, is_url, open_files
from dsgen.io.json_files import encode_json, parse_json
from dsgen.io.places import not_a_store, recognise_names
from dsgen.parallel.locks import LOCK
from dsgen.parallel.progress import progress
from dsgen.store import schema
from dsgen.store.corpus_source import CorpusSource
from dsgen.store.layout import INDEX_JSON, PACKING, SHA256SUMS, shard_name
from dsgen.store.reader import Shard
from dsgen.store.records import FileEntry
from dsgen.store.sealing import ZIP_SUFFIX, open_shard, store_files
from dsgen.store.source import comparable

_SHARD = re.compile(r"(shard-\d+-of-(\d{1,6})\.zarr(?:\.zip)?)(?:/|$)")
_OURS = re.compile(rf"(?:shard-\d+-of-\d+\.zarr(?:\.zip)?|{INDEX_JSON}|{SHA256SUMS}|{re.escape(schema.ROOT)})")


@dataclass
class Inspection:
    """A store whose files were hashed.

    `names` are the shards the store should have. `sizes` and `digests` are those of the files found, a digest of None
    for a file that cannot be read. `listed` has, by shard, the hashes that `SHA256SUMS` records, `vouched` the hash
    that `index.json` records, and `index` is what that file says, None where it cannot be relied on.

    `bad` are the shards that differ from what was recorded, `unknown` those of which nothing is recorded.
    `expected` are the files that should be beside the shards, by name, None while a shard is bad. `lines` are all
    hashes that `SHA256SUMS` records, by file. `leftovers` are what killed runs have left beside the shards, `source`
    the corpus the store is compared with.
    """

    files: LocalFiles | UrlFiles
    names: list[str]
    sizes: dict[str, int]
    listed: dict[str, dict[str, str]]
    vouched: dict[str, str]
    index: dict[str, Any] | None
    lines: dict[str, str]
    digests: dict[str, str | None] = field(default_factory=dict)
    bad: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    expected: dict[str, bytes] | None = None
    leftovers: list[str] = field(default_factory=list)
    source: CorpusSource | None = None

    @cached_property
    def tops(self) -> dict[str, list[str]]:
        """Every file found, in order, by the file or folder at the top that it is or lies in."""
        return _group_by_top(self.sizes)

    def own(self, name: str) -> dict[str, str | None]:
        """Return name and hash of every file found of a shard."""
        return {file: self.digests[file] for file in self.tops.get(name, [])}

    def is_listed_whole(self, name: str) -> bool:
        """Return whether `SHA256SUMS` lists all files of a shard, and no others, as `index.json` vouches."""
        return shard_digest(dict(self.listed[name])) == self.vouched.get(name)

    def made_from(self) -> dict[str, Any]:
        """Return what the store was made from, as most of its index and shards say, the index first.

        Raises `DamagedError` where none of them can be read.
        """
        said = [] if self.index is None else [dict(self.index["made_from"])]
        for name in self.names:
            with contextlib.suppress(DsgenError):
                said.append(dict(open_shard(self.files, name).attributes["made_from"]))
            if len(said) == 2 and said[0] == said[1]:
                break
        if not said:
            what = f"neither {INDEX_JSON} nor a shard can be read"
            raise DamagedError(self.files, what, "remove the store and pack it")
        return max(said, key=said.count)


def check_store(path: Path | str, corpus: Path | None, fast: bool, jobs: int, report: ReportBuilder) -> None:
    """Check a store and add the findings to `report`; `fast` hashes the files and decodes nothing."""
    inspection = inspect_store(path, jobs, report, corpus)
    if fast:
        report.notes.append("files hashed, chunks not decoded (--fast)")
    else:
        check_pixels(inspection, jobs, report)


def inspect_store(path: Path | str, jobs: int, report: ReportBuilder, corpus: Path | None = None) -> Inspection:
    """Hash every file of a store and add the findings to `report`.

    Raises `NotFoundError` where there is neither index nor hashes, hence no finished store; and, before anything is
    hashed, `InvalidValueError` or `ConflictError` where `corpus` is not the one the store was packed from.
    """
    files = open_files(path)
    sizes = list_sizes(files)
    if INDEX_JSON not in sizes and SHA256SUMS not in sizes:
        raise not_a_store(path, recognise_names({name.partition("/")[0] for name in sizes}) if is_url(path) else None)
    index, index_damage = _read_index(files, sizes)
    lines, sums_damage = _read_sums(files, sizes)
    shards = index["shards"] if index else []
    names = [shard["name"] for shard in shards] if index else _guess_names([*lines, *sizes])
    listed = _group_by_top(lines)
    inspection = Inspection(
        files=files,
        names=names,
        sizes=sizes,
        listed={name: {file: lines[file] for file in listed.get(name, [])} for name in names},
        vouched={shard["name"]: shard["sha256"] for shard in shards},
        index=index,
        lines=lines,
    )
    if corpus is not None:
        inspection.source = open_source(corpus, inspection.made_from())
    with progress("verify bytes", sum(sizes.values())) as advance:
        for name, digest in hash_tree(files, sizes, jobs):
            inspection.digests[name] = digest
            advance(sizes[name])
    report.files, report.bytes = len(sizes), sum(sizes.values())
    for name in names:
        _check_shard(inspection, name, report)
    if not inspection.bad:
        expect_records(inspection)
    _check_records(inspection, index_damage, sums_damage, report)
    _check_strangers(inspection, report)
    return inspection


def list_sizes(files: LocalFiles | UrlFiles) -> dict[str, int]:
    """Return the size of every file in a store except locks."""
    return {name: size for name, size in files.sizes().items() if not name.startswith(LOCK)}


def _group_by_top(files: Iterable[str]) -> dict[str, list[str]]:
    tops: dict[str, list[str]] = defaultdict(list)
    for file in files:
        tops[file.partition("/")[0]].append(file)
    return dict(tops)


def shard_digest(table: dict[str, str | None]) -> str:
    """Hash a shard's lines of `SHA256SUMS`, as the index records it."""
    lines = "".join(schema.sums_line(file, str(table[file])) for file in sorted(table))
    return hashlib.sha256(lines.encode(errors="surrogateescape")).hexdigest()


def _read_index(files: LocalFiles | UrlFiles, sizes: dict[str, int]) -> tuple[dict[str, Any] | None, str | None]:
    """Return the index if it can be relied on, and what is wrong with it."""
    if INDEX_JSON not in sizes:
        return None, MISSING
    try:
        index: dict[str, Any] = dict(schema.parse_index(files.read(INDEX_JSON), INDEX_JSON))
        names = [shard["name"] for shard in index["shards"]]
        ending = ZIP_SUFFIX if names[0].endswith(ZIP_SUFFIX) else ""
        if names != [shard_name(k, len(names)) + ending for k in range(len(names))]:
            return None, "damaged: names of shards"
    except (DsgenError, OSError) as error:
        if is_system_error(error):
            raise
        return None, f"cannot be read ({damage_of(error, INDEX_JSON)})"
    return index, None


def _read_sums(files: LocalFiles | UrlFiles, sizes: dict[str, int]) -> tuple[dict[str, str], str | None]:
    """Return the hash of every file as far as `SHA256SUMS` can be read, and what is wrong with it."""
    if SHA256SUMS not in sizes:
        return {}, MISSING
    try:
        lines = files.read(SHA256SUMS).decode(errors="replace").splitlines()
    except OSError as error:
        if is_system_error(error):
            raise
        return {}, f"cannot be read ({damage_of(error, SHA256SUMS)})"
    pairs = [line.split("  ", 1) for line in lines]
    whole = all(len(pair) == 2 for pair in pairs)
    return {pair[1]: pair[0] for pair in pairs if len(pair) == 2}, None if whole else "damaged: not a list of hashes"


def _guess_names(files: list[str]) -> list[str]:
    """Name the shards of a store without an index: the number and ending that most file names agree on."""
    matches = [match for match in map(_SHARD.match, files) if match]
    if not matches:
        return []
    count = int(Counter(match[2] for match in matches).most_common(1)[0][0])
    endings = Counter(ZIP_SUFFIX if match[1].endswith(ZIP_SUFFIX) else "" for match in matches)
    ending = endings.most_common(1)[0][0]
    return [shard_name(k, count) + ending for k in range(count)]


def _check_shard(inspection: Inspection, name: str, report: ReportBuilder) -> None:
    """Compare the hashes of a shard's files with those recorded; note it as bad or unknown where they differ."""
    own, listed = inspection.own(name), inspection.listed[name]
    if not own:
        inspection.bad.append(name)
        report.find(name, MISSING)
        return
    if not listed and name not in inspection.vouched:
        inspection.unknown.append(name)
        report.notes.append(f"{name}: no record of its hashes")
        return
    if own == listed or shard_digest(own) == inspection.vouched.get(name):
        return
    inspection.bad.append(name)
    before = len(report.findings)
    if listed:
        for file in sorted(listed.keys() - own.keys()):
            report.find(file, MISSING)
        for file in sorted(own.keys() - listed.keys()):
            report.find(file, EXTRA if inspection.is_listed_whole(name) else f"not in {SHA256SUMS}")
        for file in sorted(own.keys() & listed.keys()):
            if own[file] is None:
                report.find(file, "cannot be read")
            elif own[file] != listed[file]:
                report.find(file, f"its hash differs ({inspection.sizes[file]:,} bytes)")
    if len(report.findings) == before:
        report.find(name, f"its hash differs; {SHA256SUMS} does not tell which file")


def expect_records(inspection: Inspection) -> None:
    """Work out from shards that are whole which files should be beside them."""
    try:
        shards = {name: open_shard(inspection.files, name) for name in inspection.names}
        plan = _join_plan(list(shards.values()))
        tables = {
            name: {
                file: FileEntry(inspection.sizes[file], str(digest)) for file, digest in inspection.own(name).items()
            }
            for name in inspection.names
        }
        versions = [shard.attributes["dsgen"] for shard in shards.values()]
        recorded = (inspection.index or {}).get("dsgen")
        version = str(recorded if recorded in versions else versions[-1])
        inspection.expected = store_files(plan, shards, tables, version)
    except (DsgenError, KeyError, TypeError):
        if not inspection.unknown:  # shards with the right hashes can be read
            raise


def _join_plan(shards: list[Shard]) -> np.ndarray:
    """Join the plan of a store from the columns of its shards."""
    return np.concatenate([shard.plan_rows() for shard in shards])


def _check_records(
    inspection: Inspection, index_damage: str | None, sums_damage: str | None, report: ReportBuilder
) -> None:
    """Compare the files beside the shards with what they should hold, or, while that is unknown, with each other."""
    files, index = inspection.files, inspection.index
    expected = inspection.expected or {}
    sums, expected_index = expected.get(SHA256SUMS), expected.get(INDEX_JSON)
    if sums_damage is None and sums is not None and files.read(SHA256SUMS) != sums:
        sums_damage = "damaged: differs from the hashes of the files"
    if index_damage is None and expected_index is not None and files.read(INDEX_JSON) != expected_index:
        index_damage = "damaged: differs from what the shards say"
    elif (
        index is not None
        and sums is None
        and sums_damage is None
        and inspection.digests[SHA256SUMS] != index.get("sums_sha256")
    ):
        sums_damage = f"its hash differs from the one in {INDEX_JSON}: one of the two is damaged"
    for name, damage in ((INDEX_JSON, index_damage), (SHA256SUMS, sums_damage)):
        if damage:
            report.find(name, damage)
    for name, digest in _tree_digests(inspection).items():
        if name not in inspection.sizes:
            report.find(name, MISSING)
        elif inspection.digests[name] != digest:
            report.find(name, "damaged: differs from what the shards say")


def _tree_digests(inspection: Inspection) -> dict[str, str]:
    """Return the hashes that the files of the store's own group should have, as far as they are known."""
    if inspection.expected is None:
        return {name: inspection.lines[name] for name in schema.TREE_FILES if name in inspection.lines}
    contents = {name: inspection.expected[name] for name in schema.TREE_FILES if name in inspection.expected}
    return {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}


def _check_strangers(inspection: Inspection, report: ReportBuilder) -> None:
    """Report what lies in the store's folder and is not part of it."""
    tree = set(_tree_digests(inspection)) or set(schema.TREE_FILES if inspection.expected is None else ())
    in_tree = {name.partition("/")[0] for name in tree}
    for top in in_tree & inspection.tops.keys():
        for name in set(inspection.tops[top]) - tree:
            report.find(name, EXTRA)
            inspection.leftovers.append(name)
    for top in inspection.tops.keys() - {INDEX_JSON, SHA256SUMS, *inspection.names} - in_tree:
        files = inspection.tops[top]
        what = _classify_stranger(top, files)
        if what == EXTRA:
            inspection.leftovers.append(top)
        report.find(top, what + (f", files in it: {len(files):,}" if files != [top] else ""))


def _classify_stranger(top: str, files: list[str]) -> str:
    """Say what a file or folder at the top is that is not the store's: `EXTRA` where a killed run left it."""
    if top == PACKING or (is_unfinished(top) and _OURS.fullmatch(final_name(top))):
        return EXTRA
    if _SHARD.match(top):
        return "a shard of another store" if top in files or f"{top}/{schema.ROOT}" in files else EXTRA
    return FOREIGN


def open_source(corpus: Path, made_from: dict[str, Any]) -> CorpusSource:
    """Open the corpus a store was packed from, as it was then.

    `made_from` is what the store says of it. Raises `InvalidValueError` where the store was packed from pictures or
    from another corpus, `ConflictError` where the corpus has changed since.
    """
    if "corpus_sha256" not in made_from:
        raise InvalidValueError(
            "--corpus",
            "the store was packed from pictures (--images), expected one packed from a corpus",
            "leave it out; to rebuild the store, remove it and run the same dsgen pack",
        )
    opened = Corpus(corpus)
    if opened.sha256 != made_from["corpus_sha256"]:
        raise InvalidValueError("--corpus", f"{corpus} is not the corpus the store was packed from", "pass that one")
    depth = made_from["depth"] is not None
    source = CorpusSource(
        corpus, made_from.get("max_flip_error"), opened.sha256, depth, bool(made_from.get("composed"))
    )
    now = comparable(parse_json(encode_json(source.made_from), "the corpus"))
    was = comparable(made_from)
    differences = find_differences(now, {name: was.get(name) for name in now})
    if differences:
        raise ConflictError(corpus, "has changed since the store was packed", "restore it", differences, "store")
    return source


def check_pixels(inspection: Inspection, jobs: int, report: ReportBuilder) -> None:
    """Decode every chunk of every shard that can be opened; compare everything with the corpus, if there is one."""
    if inspection.source is None:
        report.notes.append("pixels decoded, not compared with a corpus; use --corpus to compare them")
    shards: dict[str, Shard] = {}
    next_row: int | None = 0  # None where the shard before cannot be opened
    for name in inspection.names:
        root = name if name.endswith(ZIP_SUFFIX) else f"{name}/{schema.ROOT}"
        try:
            shard = _open_checked(inspection, name, root)
        except DsgenError as error:
            why = shard_damage(error)
            if name in inspection.bad:
                report.notes.append(f"{name}: no pixels checked ({why})")
            else:
                report.find(root, f"cannot be opened ({why})")
            next_row = None
            continue
        first = int(shard.attributes["first_row"])
        if next_row not in (None, first):
            report.find(name, f"starts at row {first:,}, expected {next_row:,}")
        next_row = first + shard.rows
        shards[name] = shard
    check_rows(shards, inspection.source, set(inspection.bad), jobs, report)


def _open_checked(inspection: Inspection, name: str, root: str) -> Shard:
    """Open a shard; raise, in one of several classes, where its metadata are missing, damaged or make no sense."""
    own, listed = inspection.own(name), inspection.listed[name]
    if root not in own or (root != name and own[root] != listed.get(root, own[root])):
        raise DamagedError(root, "its zarr.json is missing or damaged")
    shard = open_shard(inspection.files, name)
    names = [file.removeprefix(f"{name}/") for file in own] if root != name else list(shard.files.sizes())
    missing = shard.missing_files(dict.fromkeys(names, 0))
    if len(missing) > 2 * len(names) + 100:  # nothing else bounds the rows that a damaged zarr.json can claim
        raise DamagedError(root, f"more than {len(missing):,} of the files of {shard.rows:,} rows are missing")
    return shard
