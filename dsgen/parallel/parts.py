"""Divide the work of a stage among jobs of a batch system: `--part K/N`, and the locks that keep them apart."""

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from dsgen.errors import BusyError, InvalidValueError
from dsgen.parallel.locks import LOCK, exclusive_lock, held_locks

T = TypeVar("T")


@dataclass(frozen=True)
class Part:
    """A share of the work: `number` of `count`, from 1 on."""

    number: int
    count: int

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


def parse_part(text: str) -> Part:
    """Read `3/8`, the third of eight shares."""
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise InvalidValueError("--part", f"got {text!r}, expected K/N with K from 1 to N, like 3/8")
    return Part(int(number), int(count))


def select_part(blocks: list[T], part: Part) -> list[T]:
    """Return a part's consecutive blocks; the parts' shares are disjoint, cover all, and differ by one at most."""
    first, last = ((part.number - 1 + k) * len(blocks) // part.count for k in (0, 1))
    return blocks[first:last]


@contextmanager
def lock_stage(folder: Path, stage: str, part: Part | None) -> Iterator[None]:
    """Keep others from doing the same: a second run without parts, the same part twice, or parts of another division.

    A run without parts holds the folder's lock throughout. A part holds one of its own, and takes the folder's only
    for what is done once, see `once`: until it gets that it waits. Lock files stay, after a part that was refused as
    the only ones: another part may wait for them. They are empty, keep nobody out, and make no corpus of the folder.
    """
    ours = rf"{re.escape(LOCK)}-{stage}-\d+-of-\d+"
    if part is None:
        with exclusive_lock(folder):
            busy = held_locks(folder, ours)
            if busy:
                raise BusyError(folder, f"dsgen {_in_words(busy[0])} is at work here", "wait for it or stop it")
            yield
        return
    name = f"{LOCK}-{stage}-{part.number}-of-{part.count}"
    with exclusive_lock(folder, name, doing=f"running {_in_words(name)}"):
        with lock_setup(folder, part):
            busy = [name for name in held_locks(folder, ours) if not name.endswith(f"-of-{part.count}")]
        if busy:
            raise BusyError(
                folder,
                f"dsgen {_in_words(busy[0])} is at work here, which divides the work differently from --part {part}",
                "wait for it or stop it",
            )
        yield


def _in_words(lock: str) -> str:
    """Turn `.dsgen.lock-depth-3-of-8` into `depth --part 3/8`."""
    stage, number, _, count = lock.removeprefix(f"{LOCK}-").rsplit("-", 3)
    return f"{stage} --part {number}/{count}"


def lock_setup(folder: Path, part: Part | None) -> AbstractContextManager[None]:
    """Hold the folder's lock, for which a part waits; a run without parts holds it already."""
    return nullcontext() if part is None else exclusive_lock(folder, wait=True)
