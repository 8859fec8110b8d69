"""Damage to files of a corpus or a store, for tests of verify and repair."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from dsgen.integrity.findings import VerifyReport

KINDS: dict[str, dict[str, bool]] = {
    "folder": {},
    "zip": {"zipped": True},
    "recipe": {"recipe": True},
    "compact": {"compact": True},
}


def linked(source: Path, target: Path) -> Path:
    """Copy a folder as hard links, whose files must not be written to but only be replaced, as `put` does."""
    return Path(shutil.copytree(source, target, copy_function=os.link))


def put(path: Path, content: bytes) -> None:
    """Replace a file, which others may share."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def flip(path: Path) -> None:
    """Change one bit in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    put(path, content)


def truncate(path: Path) -> None:
    """Cut off the second half."""
    put(path, path.read_bytes()[: path.stat().st_size // 2])


def delete(path: Path) -> None:
    """Remove a file."""
    path.unlink()


def add(path: Path) -> None:
    """Put another file beside one."""
    path.with_name(path.name + ".copy").write_bytes(b"more")


DAMAGES: list[Callable[[Path], None]] = [flip, truncate, delete, add]


def named(report: VerifyReport) -> set[str]:
    """The files that are said to be wrong."""
    return {finding.file for finding in report.findings}


def picked(names: list[str]) -> list[str]:
    """One file of every array and part, by the name without its numbers."""
    return list({"/".join(part for part in name.split("/") if not part.isdecimal()): name for name in names}.values())
