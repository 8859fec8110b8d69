"""Split a stage among the jobs of a batch system, `--part K/N`, and lock its folder against conflicting runs.

- The *folder lock*, `.dsgen.lock`, is exclusive: its holder is the only process that writes shared files.
- The *stage lock* (`lock_stage`) is held while a stage runs. Without parts it is the folder lock. A part holds a lock
  of its own, `.dsgen.lock-STAGE-K-of-N`, so that other parts can run at the same time but the same one cannot.
- The *set-up lock* (`lock_setup`) is the folder lock again, held by a part for the steps that all parts share, such as
  making the corpus; the other parts wait for it.
"""

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
    """One job's slice of a stage: part `number`, counted from 1, of `count`."""

    number: int
    count: int

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


def parse_part(text: str) -> Part:
    """Parse `3/8`, part 3 of 8; raise `InvalidValueError` for anything else.

    >>> parse_part("3/8")
    Part(number=3, count=8)
    """
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise InvalidValueError("--part", f"got {text!r}, expected K/N with K from 1 to N, like 3/8")
    return Part(int(number), int(count))


def select_part(blocks: list[T], part: Part) -> list[T]:
    """Return the consecutive blocks of a part.

    The parts are disjoint, cover all blocks, and differ in length by at most one.
    """
    first, last = ((part.number - 1 + k) * len(blocks) // part.count for k in (0, 1))
    return blocks[first:last]


@contextmanager
def lock_stage(folder: Path, stage: str, part: Part | None) -> Iterator[None]:
    """Hold the stage lock; raise `BusyError` for a conflicting run.

    Conflicting are a run without parts and any other, the same part twice, and parts of different counts.

    The lock files of parts are never removed, not even after a part that was refused and wrote nothing: another part
    may be waiting for them. They are empty, keep nobody out once released, and do not make a corpus of the folder.
    """
    part_locks = rf"{re.escape(LOCK)}-{stage}-\d+-of-\d+"
    if part is None:
        with exclusive_lock(folder):
            busy = held_locks(folder, part_locks)
            if busy:
                raise BusyError(folder, f"dsgen {_describe_lock(busy[0])} is at work here", "wait for it or stop it")
            yield
        return
    name = f"{LOCK}-{stage}-{part.number}-of-{part.count}"
    with exclusive_lock(folder, name, activity=f"running {_describe_lock(name)}"):
        with lock_setup(folder, part):
            busy = [held for held in held_locks(folder, part_locks) if not held.endswith(f"-of-{part.count}")]
        if busy:
            raise BusyError(
                folder,
                f"dsgen {_describe_lock(busy[0])} is at work here, which divides the work differently from "
                f"--part {part}",
                "wait for it or stop it",
            )
        yield


def lock_setup(folder: Path, part: Part | None) -> AbstractContextManager[None]:
    """Hold the set-up lock: a part waits for the folder lock; a run without parts has it already."""
    return nullcontext() if part is None else exclusive_lock(folder, wait=True)


def _describe_lock(name: str) -> str:
    """Turn `.dsgen.lock-depth-3-of-8` into `depth --part 3/8`."""
    stage, number, _, count = name.removeprefix(f"{LOCK}-").rsplit("-", 3)
    return f"{stage} --part {number}/{count}"
