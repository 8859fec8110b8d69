"""Check a store: every file against its hash, then every row against its corpus.

Two things vouch for a shard, its files' hashes in `SHA256SUMS` and the hash of these lines in `index.json`. A shard is
whole if either agrees; then what `SHA256SUMS` and `index.json` should hold follows from the shards.
"""

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
from dsgen.corpus.plan import DTYPE
from dsgen.errors import DamagedError, DsgenError, InvalidValueError, find_differences
from dsgen.integrity.findings import EXTRA, FOREIGN, MISSING, Checked, Finding, Report, each, reason
from dsgen.io.filesystem import LocalFiles, UrlFiles, hash_tree, open_files
from dsgen.io.json_files import encode_json, parse_json
from dsgen.parallel.locks import LOCK
from dsgen.parallel.progress import progress
from dsgen.store import schema
from dsgen.store.corpus_source import CorpusSource
from dsgen.store.layout import INDEX_JSON, PACKING, SHA256SUMS, shard_name
from dsgen.store.reader import Shard
from dsgen.store.records import FileEntry
from dsgen.store.sealing import open_shard, sums_and_index

_ZIP = ".zip"
_SHARD = re.compile(r"(shard-\d+-of-(\d+)\.zarr(?:\.zip)?)(?:/|$)")
_OURS = re.compile(rf"(?:shard-\d+-of-\d+\.zarr|{INDEX_JSON}|{SHA256SUMS})")


@dataclass
class Inspected:
    """A store whose files were hashed.

    `sizes` and `digests` are of the files there are; `listed`, by shard, what `SHA256SUMS` says and `vouched` what
    `index.json` says. `names` are the shards there should be, `bad` those that are not what they were, `unknown` those
    of which nothing says what they were. `sums` and `index` are what these two files should hold, None while a shard
    is bad. `leftovers` are what killed runs have left beside the shards, `source` the corpus it is compared with.
    """

    files: LocalFiles | UrlFiles
    names: list[str]
    sizes: dict[str, int]
    digests: dict[str, str | None]
    listed: dict[str, dict[str, str]]
    vouched: dict[str, str]
    index_there: dict[str, Any] | None
    bad: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    sums: bytes | None = None
    index: bytes | None = None
    leftovers: list[str] = field(default_factory=list)
    source: CorpusSource | None = None

    @cached_property
    def tops(self) -> dict[str, list[str]]:
        """Every file there is, in order, by the file or folder at the top that it is or is in."""
        return _by_top(self.sizes)

    def own(self, name: str) -> dict[str, str | None]:
        """Name and hash of every file a shard has."""
        return {file: self.digests[file] for file in self.tops.get(name, [])}

    def sure(self, name: str) -> bool:
        """Whether `SHA256SUMS` lists all files of a shard, and no others, as `index.json` vouches."""
        return shard_digest(dict(self.listed[name])) == self.vouched.get(name)

    def made_from(self) -> dict[str, Any]:
        """What the store was made from, as its index says, or else a shard; `DsgenError` where nothing does."""
        if self.index_there is not None:
            return dict(self.index_there["made_from"])
        for name in self.names:
            try:
                return dict(open_shard(self.files, name).attributes["made_from"])
            except DsgenError:
                continue
        raise DsgenError(self.files, f"neither {INDEX_JSON} nor a shard can be read", "remove the store and pack it")


def sizes_there(files: LocalFiles | UrlFiles) -> dict[str, int]:
    """The size of every file there is in a store, but for locks."""
    return {name: size for name, size in files.sizes().items() if not name.startswith(LOCK)}


def _by_top(files: Iterable[str]) -> dict[str, list[str]]:
    tops: dict[str, list[str]] = defaultdict(list)
    for file in files:
        tops[file.partition("/")[0]].append(file)
    return dict(tops)


def shard_digest(table: dict[str, str | None]) -> str:
    """Hash a shard's lines of `SHA256SUMS`, as the index has it."""
    return hashlib.sha256(_lines(table)).hexdigest()


def _lines(table: dict[str, str | None]) -> bytes:
    return "".join(schema.sums_line(file, str(table[file])) for file in sorted(table)).encode()


def inspect_store(place: Path | str, jobs: int, report: Report, corpus: Path | None = None) -> Inspected:
    """Hash every file of a store and put what is wrong into `report`.

    Raises `DsgenError` where there is no finished store, of which neither index nor hashes are there, and, before
    anything is hashed, where `corpus` is given and not the one it was packed from.
    """
    files = open_files(place)
    sizes = sizes_there(files)
    if INDEX_JSON not in sizes and SHA256SUMS not in sizes:
        begun = any(name.startswith(("shard-", PACKING)) for name in sizes)
        what = "an unfinished store" if begun else "no store"
        raise DsgenError(place, f"{what} (no {INDEX_JSON})", f"run dsgen pack --out {place}")
    index, index_wrong = _read_index(files, sizes)
    lines, sums_wrong = _read_sums(files, sizes)
    names = [shard["name"] for shard in index["shards"]] if index else _guess_names([*lines, *sizes])
    listed = _by_top(lines)
    found = Inspected(
        files,
        names,
        sizes,
        {},
        {name: {file: lines[file] for file in listed.get(name, [])} for name in names},
        {shard["name"]: shard["sha256"] for shard in index["shards"]} if index else {},
        index,
    )
    if corpus is not None:
        found.source = corpus_source(corpus, found.made_from())
    with progress("verify", sum(sizes.values())) as advance:
        for name, digest in hash_tree(files, sizes, jobs):
            found.digests[name] = digest
            advance(sizes[name])
    report.files, report.bytes = len(sizes), sum(sizes.values())
    _check_shards(found, report)
    if not found.bad:
        expect(found)
    if sums_wrong is None and found.sums is not None and files.read(SHA256SUMS) != found.sums:
        sums_wrong = "damaged: not the hashes of the files"
    if index_wrong is None and found.index is not None and files.read(INDEX_JSON) != found.index:
        index_wrong = "damaged: not what the shards say"
    elif index is not None and found.sums is None and sums_wrong is None:
        sums_wrong = (
            f"{INDEX_JSON} has another hash of it: one of the two is damaged"
            if found.digests[SHA256SUMS] != index.get("sums_sha256")
            else None
        )
    for name, wrong in ((INDEX_JSON, index_wrong), (SHA256SUMS, sums_wrong)):
        if wrong:
            report.find(name, wrong)
    for top in found.tops.keys() - {INDEX_JSON, SHA256SUMS, *names}:
        below = found.tops[top]
        what = _stranger(top, below)
        if what == EXTRA:
            found.leftovers.append(top)
        report.find(top, what + (f", files in it: {len(below):,}" if below != [top] else ""))
    return found


def _stranger(top: str, below: list[str]) -> str:
    """Say what a file or folder at the top is that is none of the store's: `EXTRA` if left there by a killed run."""
    if top == PACKING or (top.endswith(".partial") and _OURS.match(top)):
        return EXTRA
    if _SHARD.match(top):
        return "a shard of another store" if top in below or f"{top}/{schema.ROOT}" in below else EXTRA
    return FOREIGN


def _read_index(files: LocalFiles | UrlFiles, sizes: dict[str, int]) -> tuple[dict[str, Any] | None, str | None]:
    """Return the index if it can be relied on, and what is wrong with it."""
    if INDEX_JSON not in sizes:
        return None, MISSING
    try:
        index = parse_json(files.read(INDEX_JSON), INDEX_JSON)
        if index["format"] != schema.FORMAT:
            return None, f"format {index['format']}, expected {schema.FORMAT}: damaged, or of another dsgen"
        names = [shard["name"] for shard in index["shards"]]
        ending = _ZIP if names[0].endswith(_ZIP) else ""
        if names != [shard_name(k, len(names)) + ending for k in range(len(names))]:
            return None, "damaged: names of shards"
        if not all(isinstance(shard["sha256"], str) for shard in index["shards"]) or not dict(index["made_from"]):
            return None, "damaged"
    except DsgenError as error:
        return None, str(error).removeprefix(f"{INDEX_JSON}: ").partition(";")[0]
    except OSError as error:
        return None, f"cannot be read ({reason(error)})"
    except (KeyError, IndexError, TypeError, AttributeError, ValueError):
        return None, "damaged: entries missing"
    return index, None


def _read_sums(files: LocalFiles | UrlFiles, sizes: dict[str, int]) -> tuple[dict[str, str], str | None]:
    """Return the hash of every file as far as `SHA256SUMS` can be read, and what is wrong with it."""
    if SHA256SUMS not in sizes:
        return {}, MISSING
    try:
        lines = files.read(SHA256SUMS).decode(errors="replace").splitlines()
    except OSError as error:
        return {}, f"cannot be read ({reason(error)})"
    pairs = [line.split("  ", 1) for line in lines]
    whole = all(len(pair) == 2 for pair in pairs)
    return {pair[1]: pair[0] for pair in pairs if len(pair) == 2}, None if whole else "damaged: no list of hashes"


def _guess_names(files: list[str]) -> list[str]:
    """Name the shards of a store without an index: as many as most of its files' names say."""
    matches = [match for match in map(_SHARD.match, files) if match]
    if not matches:
        return []
    count = int(Counter(match[2] for match in matches).most_common(1)[0][0])
    ending = Counter(_ZIP if match[1].endswith(_ZIP) else "" for match in matches).most_common(1)[0][0]
    return [shard_name(k, count) + ending for k in range(count)]


def _check_shards(found: Inspected, report: Report) -> None:
    for name in found.names:
        own, listed = found.own(name), found.listed[name]
        if not own:
            found.bad.append(name)
            report.find(name, MISSING)
        elif not listed and name not in found.vouched:
            found.unknown.append(name)
            report.notes.append(f"{name}: nothing says what its hashes were")
        elif own != listed and shard_digest(own) != found.vouched.get(name):
            found.bad.append(name)
            before = len(report.findings)
            if listed:
                for file in sorted(listed.keys() - own.keys()):
                    report.find(file, MISSING)
                for file in sorted(own.keys() - listed.keys()):
                    report.find(file, EXTRA if found.sure(name) else f"not in {SHA256SUMS}")
                for file in sorted(own.keys() & listed.keys()):
                    if own[file] != listed[file]:
                        size = found.sizes[file]
                        what = "cannot be read" if own[file] is None else f"another hash ({size:,} bytes)"
                        report.find(file, what)
            if len(report.findings) == before:
                report.find(name, f"another hash; {SHA256SUMS} cannot say of which file")


def expect(found: Inspected) -> None:
    """Work out what `SHA256SUMS` and `index.json` should hold from shards that are whole."""
    try:
        shards = {name: open_shard(found.files, name) for name in found.names}
        plan = plan_of(list(shards.values()))
        tables = {
            name: {file: FileEntry(found.sizes[file], str(digest)) for file, digest in found.own(name).items()}
            for name in found.names
        }
        versions = [shard.attributes["dsgen"] for shard in shards.values()]
        said = (found.index_there or {}).get("dsgen")
        found.sums, found.index = sums_and_index(plan, shards, tables, str(said if said in versions else versions[-1]))
    except (DsgenError, KeyError, TypeError):
        if not found.unknown:  # their hashes are right, so they can be read
            raise


def plan_of(shards: list[Shard]) -> np.ndarray:
    """Put the plan of a store together from its shards' columns."""
    plan = np.empty(sum(shard.rows for shard in shards), DTYPE)
    first = 0
    for shard in shards:
        for name in DTYPE.names or ():
            plan[name][first : first + shard.rows] = shard.column("background_number" if name == "background" else name)
        first += shard.rows
    return plan


def corpus_source(corpus: Path, made_from: dict[str, Any]) -> CorpusSource:
    """Open the corpus a store was made from; `DsgenError` where it is another one, or the store is of pictures."""
    if "corpus_sha256" not in made_from:
        raise InvalidValueError(
            "--corpus",
            "the store was packed from pictures (--images), expected one of a corpus",
            "leave it out, and to make it again remove it and run the same dsgen pack",
        )
    opened = Corpus(corpus)
    if opened.sha256 != made_from["corpus_sha256"]:
        raise InvalidValueError("--corpus", f"{corpus} is not the corpus the store was packed from", "give that one")
    depth = made_from["depth"] is not None
    source = CorpusSource(corpus, made_from.get("max_flip_error"), opened.sha256, depth)
    said = parse_json(encode_json(source.made_from), "the corpus")
    wanted = {name: made_from.get(name) for name in said}
    if said != wanted:
        shown = "; ".join(difference.describe("store") for difference in find_differences(said, wanted))
        raise InvalidValueError(
            "--corpus", f"{corpus} is not as the store was packed from it: {shown}", "give that corpus"
        )
    return source


def check_pixels(found: Inspected, jobs: int, report: Report) -> None:
    """Decode every chunk of every shard that can be opened; compare all with the corpus, if there is one."""
    if found.source is None:
        report.notes.append("pixels decoded, not compared with a corpus; give --corpus to compare them")
    blocks: list[tuple[Any, ...]] = []
    total = 0
    expected: int | None = 0
    for name in found.names:
        own, listed = found.own(name), found.listed[name]
        root = name if name.endswith(_ZIP) else f"{name}/{schema.ROOT}"
        try:
            if root not in own or (root != name and own[root] != listed.get(root, own[root])):
                raise ValueError("its zarr.json is missing or damaged")
            shard = open_shard(found.files, name)
            first = int(shard.attributes["first_row"])
            block = int(shard.attributes["made_from"]["block_rows"])
            if min(block, shard.chunk, shard.rows) < 1:
                raise ValueError(f"{shard.rows} rows in blocks of {block} and chunks of {shard.chunk}")
        except (DsgenError, KeyError, TypeError, ValueError) as error:
            if name in found.bad:
                report.notes.append(f"{name}: no pixels checked ({_why(error)})")
            else:
                report.find(root, f"cannot be opened ({_why(error)})")
            expected = None
            continue
        if expected not in (None, first):
            report.find(name, f"begins at row {first:,}, expected {expected:,}")
        expected = first + shard.rows
        total += shard.rows
        damaged = name in found.bad
        edges = [(None, None), *((row, min(row + block, shard.rows)) for row in range(0, shard.rows, block))]
        blocks += [(shard, name, found.source, damaged, *edge) for edge in edges]
    with progress("verify rows", total) as advance:
        for checked in each(check_block, blocks, jobs, threads=True):  # decoding and comparing leave Python's lock
            report.add(checked)
            advance(checked.rows)


def check_block(
    shard: Shard, name: str, source: CorpusSource | None, damaged: bool, first: int | None, last: int | None
) -> Checked:
    """Check rows `first` to `last`, exclusive, of a shard, or, where they are None, its columns and backgrounds.

    What a `damaged` shard, whose hashes are not right, makes fail in any way is a finding.
    """
    try:
        if first is None or last is None:
            return _check_small(shard, name, source)
        return _check_rows(shard, name, source, first, last)
    except DsgenError:
        raise
    except Exception as error:
        if not damaged:
            raise
        what = "columns" if first is None or last is None else f"rows {first:,} to {last - 1:,} of the shard"
        return Checked([Finding(name, f"{what} cannot be checked ({type(error).__name__} {reason(error)})")])


def _check_rows(shard: Shard, name: str, source: CorpusSource | None, first: int, last: int) -> Checked:
    checked = Checked(rows=last - first)
    block = shard.attributes["made_from"]["block_rows"]
    start_row = shard.attributes["first_row"]
    parts = tuple(part for part in shard.parts if part != "background")
    decoded: dict[str, np.ndarray] = {}
    unread: dict[tuple[str, str], list[int]] = {}  # runs of rows, by part and why

    def file_of(part: str) -> str:
        whole = name.endswith(_ZIP) or (shard.recipe and part in ("image", "mask"))
        return name if whole else f"{name}/{schema.block_name(part, first // block)}"

    def tell_unread(part: str, why: str, run: list[int]) -> None:
        rows = f"rows {start_row + run[0]:,} to {start_row + run[1] - 1:,}"
        checked.findings.append(Finding(file_of(part), f"{rows}: {part} cannot be read ({why})"))

    for start in range(first, last, shard.chunk):
        stop = min(start + shard.chunk, last)
        truth = {} if source is None else _truth(source, start_row + start, start_row + stop)
        found: dict[str, np.ndarray] = {}
        try:
            found = shard.samples(start, stop, parts, decoded)
        except DsgenError:  # of which part, and why
            for part in parts:
                try:
                    found[part] = shard.read(part, start, stop)
                except DsgenError as error:
                    why = _why(error)
                    run = unread.get((part, why))
                    if run is not None and run[1] == start:
                        run[1] = stop
                        continue
                    if run is not None:
                        tell_unread(part, why, run)
                    unread[part, why] = [start, stop]
        for part, values in found.items():
            checked.pixel_bytes += values.nbytes
            if part == "mask" and source is None and not _only_0_and_255(values):
                rows = f"rows {start_row + start:,} to {start_row + stop - 1:,}"
                checked.findings.append(Finding(file_of(part), f"{rows}: mask holds other values than 0 and 255"))
            if source is not None and not _same(values, truth[part]):
                wrong = np.flatnonzero((values != truth[part]).reshape(stop - start, -1).any(axis=1))
                row = f"row {start_row + start + int(wrong[0]):,}" + (f" and {len(wrong) - 1} more" * (len(wrong) > 1))
                checked.findings.append(Finding(file_of(part), f"{row}: {part} is not that of the corpus"))
        if stop - start == shard.chunk:  # the next chunk is decoded into the same memory
            decoded = found
    for (part, why), run in unread.items():
        tell_unread(part, why, run)
    return checked


def _wide(values: np.ndarray) -> np.ndarray:
    """See bytes eight at a time, if they can be."""
    flat = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    return flat.view(np.uint64) if flat.size % 8 == 0 else flat


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and bool((_wide(one) == _wide(other)).all())


def _only_0_and_255(mask: np.ndarray) -> bool:
    signed = mask.view(np.int8)  # 255 is -1; seven times as fast as comparing
    return bool(signed.min() >= -1 and signed.max() <= 0)


def _truth(source: CorpusSource, first: int, last: int) -> dict[str, np.ndarray]:
    try:
        return source.pictures(first, last)
    except Exception as error:  # zarr and codecs raise what they please on damaged files
        folder = source.folders[0]
        raise DamagedError(folder, f"cannot be read ({reason(error)})", f"run dsgen verify {folder}") from error


def _check_small(shard: Shard, name: str, source: CorpusSource | None) -> Checked:
    """Check the columns and backgrounds of a shard."""
    checked = Checked()

    def find(array: str, what: str) -> None:
        checked.findings.append(Finding(name if name.endswith(_ZIP) else f"{name}/{array}".rstrip("/"), what))

    first = shard.attributes["first_row"]
    try:
        plan = plan_of([shard])
        numbers, index = np.unique(plan["background"], return_inverse=True)
        if not np.array_equal(shard.column("row"), np.arange(first, first + shard.rows)):
            find("row", f"not the rows from {first:,} on")
        if not np.array_equal(shard.column("background_index"), index):
            find("background_index", "does not fit the numbers of the backgrounds")
    except DsgenError as error:
        named = re.search(r"cannot read (\w+) ", reason(error))
        find(named[1] if named else "", f"column cannot be read ({_why(error)})")
        return checked
    if source is not None:
        wanted = source.plan[first : first + shard.rows]
        for column in DTYPE.names or ():
            if len(wanted) != len(plan) or not np.array_equal(plan[column], wanted[column]):
                find(column if column != "background" else "background_number", "not that of the corpus' plan")
    if "background" in shard.parts:
        for i, number in enumerate(numbers.tolist()):
            file = f"background/c/{i}/0/0/0"
            try:
                picture = shard.background(i)
            except DsgenError as error:
                find(file, f"cannot be read ({_why(error)})")
                continue
            if source is not None and not np.array_equal(picture, source.background(number)):
                find(file, f"not background {number} of the corpus")
    return checked


def _why(error: Exception) -> str:
    """The reason within the store's message about a damaged shard."""
    text = reason(error)
    found = re.search(r"\((.*)\), the shard is damaged", text)
    why = found[1] if found else text
    return "its file is missing" if "No such file" in why else why
