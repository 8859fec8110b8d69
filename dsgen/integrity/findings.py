"""What a check finds and what a repair does: the results, and how they are worded."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TypeVar

from dsgen.errors import DsgenError, SeveralErrors, reason_of
from dsgen.io.atomic import is_unfinished

T = TypeVar("T")

MISSING, EXTRA, FOREIGN = "missing", "extra, not one of its files", "not written by dsgen"
UNLIKE = "differs from what the plan draws"
KEPT = (EXTRA, FOREIGN)  # findings beside which nothing is missing or damaged
_SHOWN = 200
# what dsgen and zarr call their files and folders: pictures, parts of arrays
_OWN_NAME = re.compile(r"(bg|fg|frg)_?\d{3,}[_\da-z]*(\.(png|jpeg))?|zarr\.json|c|\d+|[a-z_]+(_\d+)?")


def classify_extra(file: str) -> str:
    """Say what a file is that does not belong where it lies: `EXTRA` if its name is one that dsgen gives, which repair
    then removes, else `FOREIGN`, which it leaves alone.

    >>> classify_extra("bg_fg/bg001/bg001_fg001_001.jpeg.7-0123456789ab.partial"), classify_extra("bg/authors.txt")
    ('extra, not one of its files', 'not written by dsgen')
    """
    name = file.rpartition("/")[2]
    return EXTRA if is_unfinished(name) or _OWN_NAME.fullmatch(name) else FOREIGN


@dataclass(frozen=True, order=True)
class Finding:
    """One thing that is wrong: the file, by its name within the corpus or store, and what is wrong with it."""

    file: str
    what: str

    @property
    def component(self) -> str:
        """The first element of the file's name: a shard of a store, a folder or file of a corpus."""
        return self.file.partition("/")[0]


@dataclass(frozen=True)
class VerifyReport:
    """The result of `verify`: what was read, what is wrong, and what could not or was not to be checked.

    `path` is that of the corpus or store and `kind` says which it is. `notes` says what was not checked and why.
    `files` and `bytes` count what was read, `rows` the rows whose pixels were decoded, `pixel_bytes` what these decode
    to. `compared` says whether these rows were also compared with what they should be.
    """

    path: str
    kind: str
    findings: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()
    files: int = 0
    bytes: int = 0
    rows: int = 0
    pixel_bytes: int = 0
    seconds: float = 0.0
    compared: bool = False

    def table(self) -> str:
        """Format the findings as a table, one per line in order of name; of many only the first 200."""
        shown = sorted(self.findings)[:_SHOWN]
        lines = [("component", "file", "finding"), *((f.component, f.file, f.what) for f in shown)]
        widths = [max(len(line[k]) for line in lines) for k in range(2)]
        text = "\n".join(f"{first:<{widths[0]}}  {file:<{widths[1]}}  {what}" for first, file, what in lines)
        more = len(self.findings) - len(shown)
        return text + (f"\n... and {more:,} more" if more else "")

    def summary(self) -> str:
        """Say in one line how many findings there are, what was read, and how fast."""
        seconds = max(self.seconds, 1e-9)
        rows = f", {self.rows:,} rows {'compared' if self.compared else 'decoded'}" if self.rows else ""
        if self.pixel_bytes:
            rows += f" ({self.pixel_bytes / 1e9 / seconds:.2f} GB/s of pixels)"
        rate = f"{self.bytes / 1e9 / seconds:.2f} GB/s"
        return (
            f"{self.path}: {count_findings(self.findings)}; {self.files:,} files, {self.bytes / 1e6:,.1f} MB read in "
            f"{self.seconds:.1f} s ({rate}){rows}"
        )


@dataclass(frozen=True)
class RepairResult:
    """The result of `repair`.

    `found` is the number of findings before the repair, `replaced` and `removed` name the files and folders recreated
    and removed, `after` is the report of the check afterwards, None where there was nothing to repair.
    """

    path: str
    found: int
    replaced: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    after: VerifyReport | None = None

    @property
    def remaining(self) -> tuple[Finding, ...]:
        """What is still wrong after the repair."""
        return () if self.after is None else self.after.findings

    def changes(self) -> str:
        """List the files that were recreated and removed, one per line in order of name; of many only the first 200."""
        lines = sorted([(name, "recreated") for name in self.replaced] + [(name, "removed") for name in self.removed])
        width = max((len(name) for name, _ in lines[:_SHOWN]), default=0)
        more = [f"... and {len(lines) - _SHOWN:,} more"] if len(lines) > _SHOWN else []
        return "\n".join([*(f"{name:<{width}}  {what}" for name, what in lines[:_SHOWN]), *more])

    def summary(self) -> str:
        """Say in one line what was found, what was done, and what remains."""
        if not self.found:
            return f"{self.path}: no findings, nothing to repair"
        return (
            f"{self.path}: {plural(self.found, 'finding')}; {len(self.replaced):,} recreated, "
            f"{len(self.removed):,} removed; {count_findings(self.remaining)} left"
        )


@dataclass
class ReportBuilder:
    """A `VerifyReport` while the check runs."""

    path: str
    kind: str
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    files: int = 0
    bytes: int = 0
    rows: int = 0
    pixel_bytes: int = 0
    compared: bool = False

    def find(self, file: str, what: str) -> None:
        """Add a finding."""
        self.findings.append(Finding(file, what))

    def add(self, checked: "Checked") -> None:
        """Add the result of a block of work."""
        self.files += checked.files
        self.bytes += checked.bytes
        self.rows += checked.rows
        self.pixel_bytes += checked.pixel_bytes
        self.findings += checked.findings

    def build(self, seconds: float) -> VerifyReport:
        """Return the finished report of a check that took this long."""
        return VerifyReport(
            path=self.path,
            kind=self.kind,
            findings=tuple(self.findings),
            notes=tuple(self.notes),
            files=self.files,
            bytes=self.bytes,
            rows=self.rows,
            pixel_bytes=self.pixel_bytes,
            seconds=seconds,
            compared=self.compared,
        )


@dataclass
class RepairLog:
    """A `RepairResult` while the repair runs."""

    path: str
    found: int = 0
    replaced: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def build(self, after: VerifyReport | None = None) -> RepairResult:
        """Return the result; what `after` still finds wrong does not count as replaced."""
        remaining = set() if after is None else {finding.file for finding in after.findings}
        return RepairResult(
            path=self.path,
            found=self.found,
            replaced=tuple(name for name in self.replaced if name not in remaining),
            removed=tuple(self.removed),
            notes=tuple(self.notes),
            after=after,
        )


@dataclass
class Checked:
    """What one block of work read and found; `rows` are those whose pixels were decoded, `steps` those of progress."""

    findings: list[Finding] = field(default_factory=list)
    files: int = 0
    bytes: int = 0
    rows: int = 0
    pixel_bytes: int = 0
    steps: int = 0


def count_findings(findings: Iterable[Finding]) -> str:
    """Count findings in words: `no findings`, `3 findings (1 file or folder missing)`."""
    whats = [finding.what for finding in findings]
    missing = whats.count(MISSING)
    if not whats:
        return "no findings"
    text = plural(len(whats), "finding")
    return (
        f"{text} ({missing:,} {'file or folder' if missing == 1 else 'files or folders'} missing)" if missing else text
    )


def plural(count: int, noun: str) -> str:
    """Return a count with its noun.

    >>> plural(1, "finding"), plural(1200, "finding")
    ('1 finding', '1,200 findings')
    """
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def damage_of(error: Exception, file: str) -> str:
    """Say in one line why a file cannot be used: without its name, which the finding has, and without a remedy."""
    if isinstance(error, SeveralErrors):
        return "; ".join(damage_of(each, file) for each in error.errors)
    if isinstance(error, DsgenError):
        return error.reason if error.what == file else f"{error.what}: {error.reason}"
    return reason_of(error) if isinstance(error, OSError) else f"{type(error).__name__} {reason_of(error)}"


def shard_damage(error: Exception) -> str:
    """Say in one line why a shard cannot be read: the cause behind the store's error, which is about all of it."""
    cause = error.__cause__ or error
    if isinstance(cause, FileNotFoundError):
        return "its file is missing"
    return cause.reason if isinstance(cause, DsgenError) else reason_of(cause)
