"""What a check finds, and how it is shown."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import starmap
from typing import Any, TypeVar

T = TypeVar("T")

MISSING, EXTRA, FOREIGN = "missing", "extra, not one of its files", "not dsgen's"
UNLIKE = "not what the plan draws"
_SHOWN = 200


@dataclass(frozen=True, order=True)
class Finding:
    """One thing that is wrong: the file, by its name within the corpus or store, and what."""

    file: str
    what: str

    @property
    def part(self) -> str:
        """The first folder of its name: a shard, or a part of a corpus."""
        return self.file.partition("/")[0]


@dataclass
class Report:
    """What was looked at, what is wrong with it, and in `notes` what could not be or was not to be checked.

    `bytes` are those of the files read, `rows` those whose pixels were checked, `pixel_bytes` what these decode to.
    """

    place: str
    kind: str
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    files: int = 0
    bytes: int = 0
    rows: int = 0
    pixel_bytes: int = 0
    seconds: float = 0.0

    def find(self, file: str, what: str) -> None:
        """Add a finding."""
        self.findings.append(Finding(file, what))

    def add(self, checked: "Checked") -> None:
        """Add what a block of work has found."""
        self.files += checked.files
        self.bytes += checked.bytes
        self.rows += checked.rows
        self.pixel_bytes += checked.pixel_bytes
        self.findings += checked.findings

    def table(self) -> str:
        """Show the findings, a line each, in order of name; the first 200 of many."""
        shown = sorted(self.findings)[:_SHOWN]
        lines = [("part", "file", "what is wrong"), *((f.part, f.file, f.what) for f in shown)]
        widths = [max(len(line[k]) for line in lines) for k in range(2)]
        text = "\n".join(f"{part:<{widths[0]}}  {file:<{widths[1]}}  {what}" for part, file, what in lines)
        more = len(self.findings) - len(shown)
        return text + (f"\n... and {more:,} more" if more else "")

    def summary(self) -> str:
        """Say in a line what was checked, how fast, and whether all is well."""
        wrong = f"{len(self.findings):,} wrong" if self.findings else "nothing wrong"
        seconds = max(self.seconds, 1e-9)
        rows = f", {self.rows:,} rows checked" if self.rows else ""
        if self.pixel_bytes:
            rows += f" ({self.pixel_bytes / 1e9 / seconds:.2f} GB/s of pixels)"
        rate = f"{self.bytes / 1e9 / seconds:.2f} GB/s"
        return (
            f"{self.place}: {wrong}; {self.files:,} files, {self.bytes / 1e6:,.1f} MB read in {self.seconds:.1f} s "
            f"({rate}){rows}"
        )


@dataclass
class Checked:
    """What a block of work looked at and found."""

    findings: list[Finding] = field(default_factory=list)
    files: int = 0
    bytes: int = 0
    rows: int = 0
    pixel_bytes: int = 0


def reason(error: Exception) -> str:
    """Say why something cannot be read, in a line."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def each(work: Callable[..., T], blocks: list[tuple[Any, ...]], jobs: int, *, threads: bool = False) -> Iterable[T]:
    """Yield the result of `work(*block)` for every block, as they come, from `jobs` processes or threads."""
    if min(jobs, len(blocks)) <= 1:
        return starmap(work, blocks)
    from joblib import Parallel, delayed

    prefer = "threads" if threads else "processes"
    calls: Iterator[Any] = (delayed(work)(*block) for block in blocks)
    parallel = Parallel(n_jobs=jobs, prefer=prefer, return_as="generator_unordered", pre_dispatch="2*n_jobs")
    results: Iterable[T] = parallel(calls)
    return results
