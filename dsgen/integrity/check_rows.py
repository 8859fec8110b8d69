"""Decode every row of a store's shards, and compare them with the corpus the store was packed from."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dsgen.corpus.plan import DTYPE, PERSON
from dsgen.errors import DamagedError, DsgenError, is_system_error, reason_of
from dsgen.integrity.findings import Checked, Finding, ReportBuilder, shard_damage
from dsgen.parallel.pool import map_unordered
from dsgen.parallel.progress import progress
from dsgen.store import schema
from dsgen.store.corpus_source import CorpusSource
from dsgen.store.reader import Shard
from dsgen.store.sealing import ZIP_SUFFIX


@dataclass(frozen=True)
class RowTask:
    """Rows to check: `first` to `last`, exclusive, of a shard.

    `damaged` says that the shard's hashes are wrong: whatever error it causes is a finding then.
    """

    shard: Shard
    name: str
    source: CorpusSource | None
    damaged: bool
    first: int
    last: int

    @property
    def first_row(self) -> int:
        """The number within the store of the shard's first row."""
        return int(self.shard.attributes["first_row"])

    def file_of(self, array: str, chunk: str = "") -> str:
        """Name an array of the shard, or the file of a chunk of it; a zipped shard is one file."""
        return self.name if self.name.endswith(ZIP_SUFFIX) else f"{self.name}/{array}{chunk}"

    def block_file(self, field: str) -> str:
        """Name the file that holds these rows of a field; a recipe draws images and masks from several."""
        if not self.shard.stores(field):
            return self.name
        block = self.shard.attributes["made_from"]["block_rows"]
        return self.file_of(schema.block_name(field, self.first // block))

    def describe_rows(self, first: int, last: int) -> str:
        """Name rows `first` to `last`, exclusive, of the shard by their numbers within the store."""
        return f"rows {self.first_row + first:,} to {self.first_row + last - 1:,}"


Check = Callable[[RowTask, Checked], None]


def check_rows(
    shards: dict[str, Shard], source: CorpusSource | None, damaged: set[str], jobs: int, report: ReportBuilder
) -> None:
    """Check all rows of shards, given by name, block by block in threads: decoding and comparing release the GIL."""
    work: list[tuple[Check, RowTask]] = []
    for name, shard in shards.items():
        block = int(shard.attributes["made_from"]["block_rows"])
        work.append((check_columns, RowTask(shard, name, source, name in damaged, 0, shard.rows)))
        for first in range(0, shard.rows, block):
            last = min(first + block, shard.rows)
            work.append((check_pixels, RowTask(shard, name, source, name in damaged, first, last)))
    report.compared = source is not None
    with progress("verify rows", sum(shard.rows for shard in shards.values())) as advance:
        for checked in map_unordered(run_check, work, jobs, threads=True):
            report.add(checked)
            advance(checked.rows)


def run_check(check: Check, task: RowTask) -> Checked:
    """Check a task; whatever error a shard with wrong hashes causes is a finding, any other error is raised."""
    checked = Checked()
    try:
        check(task, checked)
    except DsgenError:
        raise
    except Exception as error:
        if not task.damaged or is_system_error(error):
            raise
        why = f"{type(error).__name__} {reason_of(error)}"
        what = "columns" if check is check_columns else task.describe_rows(task.first, task.last)
        checked.findings.append(Finding(task.name, f"{what} cannot be checked ({why})"))
    return checked


def check_pixels(task: RowTask, checked: Checked) -> None:
    """Decode the rows of a task chunk by chunk, and compare them with the corpus."""
    shard, source = task.shard, task.source
    fields = tuple(field for field in shard.fields if field != "background")
    fields += tuple(field for field in schema.PERSON_FIELDS if shard.stores(field))
    unread = _UnreadRows(task, checked)
    memory: dict[str, np.ndarray] = {}
    for start in range(task.first, task.last, shard.chunk):
        stop = min(start + shard.chunk, task.last)
        truth = {} if source is None else _read_truth(source, task.first_row + start, task.first_row + stop)
        decoded = _decode(shard, start, stop, fields, memory, unread)
        for field, values in decoded.items():
            checked.pixel_bytes += values.nbytes
            if source is None:
                damage = _mask_damage(task, field, values, start, stop)
            else:
                damage = _difference(task, field, values, truth[field], start)
            if damage:
                checked.findings.append(Finding(task.block_file(field), damage))
        if stop - start == shard.chunk:  # the next chunk is decoded into the same memory
            memory = decoded
    unread.report()
    checked.rows = task.last - task.first


class _UnreadRows:
    """Rows that cannot be read, in runs: a lost file is one finding, though it holds several chunks."""

    def __init__(self, task: RowTask, checked: Checked):
        self._task, self._checked = task, checked
        self._runs: dict[tuple[str, str], tuple[int, int]] = {}  # by field and reason

    def add(self, field: str, reason: str, start: int, stop: int) -> None:
        """Add rows `start` to `stop`, exclusive, which may continue the run before."""
        first, last = self._runs.get((field, reason), (start, start))
        if last != start:
            self._report(field, reason, first, last)
            first = start
        self._runs[field, reason] = first, stop

    def report(self) -> None:
        """Add the findings of the runs not yet reported."""
        for (field, reason), run in self._runs.items():
            self._report(field, reason, *run)

    def _report(self, field: str, reason: str, first: int, last: int) -> None:
        what = f"{self._task.describe_rows(first, last)}: {field} cannot be read ({reason})"
        self._checked.findings.append(Finding(self._task.block_file(field), what))


def _decode(
    shard: Shard, start: int, stop: int, fields: tuple[str, ...], memory: dict[str, np.ndarray], unread: _UnreadRows
) -> dict[str, np.ndarray]:
    """Decode a chunk of all fields into `memory`; where that fails, the fields that can be decoded."""
    try:
        return shard.samples(start, stop, fields, memory)
    except DsgenError:  # of which field, and why?
        decoded = {}
        for field in fields:
            try:
                decoded[field] = shard.read(field, start, stop)
            except DsgenError as error:
                unread.add(field, shard_damage(error), start, stop)
        return decoded


def _mask_damage(task: RowTask, field: str, values: np.ndarray, start: int, stop: int) -> str | None:
    if field != "mask" or _only_0_and_255(values):
        return None
    return f"{task.describe_rows(start, stop)}: mask holds other values than 0 and 255"


def _difference(task: RowTask, field: str, values: np.ndarray, truth: np.ndarray, start: int) -> str | None:
    """Say which rows of a field, from `start` of the shard on, differ from those of the corpus; None where none do."""
    if _equal(values, truth):
        return None
    differing = np.flatnonzero((values != truth).reshape(len(values), -1).any(axis=1))
    row = f"row {task.first_row + start + int(differing[0]):,}"
    if len(differing) > 1:
        row += f" and {len(differing) - 1} more"
    return f"{row}: {field} differs from the corpus"


def _equal(one: np.ndarray, other: np.ndarray) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and bool((_as_words(one) == _as_words(other)).all())


def _as_words(values: np.ndarray) -> np.ndarray:
    """View an array as 8-byte words, or as bytes where their number is no multiple of 8."""
    flat = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
    return flat.view(np.uint64) if flat.size % 8 == 0 else flat


def _only_0_and_255(mask: np.ndarray) -> bool:
    signed = mask.view(np.int8)  # 255 is -1; seven times as fast as comparing
    return bool(signed.min() >= -1 and signed.max() <= 0)


def _read_truth(source: CorpusSource, first: int, last: int) -> dict[str, np.ndarray]:
    try:
        return source.pictures(first, last)
    except Exception as error:  # zarr and codecs raise errors of any class on damaged files
        if is_system_error(error):
            raise
        folder = source.folders[0]
        raise DamagedError(folder, f"cannot be read ({reason_of(error)})", f"run dsgen verify {folder}") from error


def check_columns(task: RowTask, checked: Checked) -> None:
    """Check the columns and backgrounds of a shard."""
    shard, source, first = task.shard, task.source, task.first_row

    def find(array: str, what: str, chunk: str = "") -> None:
        checked.findings.append(Finding(task.file_of(array, chunk), what))

    plan_columns = {name: "background_number" if name == "background" else name for name in DTYPE.names or ()}
    person_columns = [f"person_{name}" for name in PERSON.names or ()] if shard.people else []
    columns: dict[str, np.ndarray] = {}
    names = ("row", "background_index", *plan_columns.values(), *person_columns)
    for name in names:
        try:
            columns[name] = shard.column(name)
        except DsgenError as error:
            find(name, f"column cannot be read ({shard_damage(error)})")
            if task.name.endswith(ZIP_SUFFIX):  # one file, one finding
                return
    if len(columns) < len(names):
        return
    numbers, index = np.unique(columns["background_number"], return_inverse=True)
    if not np.array_equal(columns["row"], np.arange(first, first + shard.rows)):
        find("row", f"does not count the rows from {first:,} on")
    for name, expected in (("sample", columns["row"]), ("picture", numbers)):
        if shard.has_column(name):
            try:
                differs = not np.array_equal(shard.column(name), expected)
            except DsgenError as error:
                find(name, f"column cannot be read ({shard_damage(error)})")
                continue
            if differs:
                find(name, "differs from the rows" if name == "sample" else "differs from the rows' backgrounds")
    if not np.array_equal(columns["background_index"], index):
        find("background_index", "does not match the numbers of the backgrounds")
    if source is not None:
        expected = source.plan[first : first + shard.rows]
        for name, column in plan_columns.items():
            if not np.array_equal(columns[column], expected[name]):
                find(column, "differs from the plan of the corpus")
        for column in person_columns:
            if not np.array_equal(columns[column], expected["people"][column.removeprefix("person_")]):
                find(column, "differs from the plan of the corpus")
    for i, number in enumerate(numbers.tolist() if "background" in shard.fields else ()):
        chunk = f"/c/{i}/0/0/0"
        try:
            picture = shard.background(i)
        except DsgenError as error:
            find("background", f"cannot be read ({shard_damage(error)})", chunk)
            continue
        if source is not None and not np.array_equal(picture, source.background(number)):
            find("background", f"differs from background {number} of the corpus", chunk)
    for i, number in enumerate(numbers.tolist() if shard.stores("room_depth") else ()):
        try:
            parts = shard.room_parts(i)
        except DsgenError as error:
            find("room_depth", f"cannot be read ({shard_damage(error)})", f"/c/{i}/0/0")
            continue
        truths = parts if source is None else source.room(number)
        for k, name in enumerate(("room_depth", "room_floor", "room_margin", "room_camera", "room_lean")):
            if not np.array_equal(np.asarray(parts[k]), np.asarray(truths[k])):
                find(name, f"differs from that of background {number} of the corpus", f"/c/{i}/0/0" if k < 2 else "")
