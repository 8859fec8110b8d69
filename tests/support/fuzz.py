"""Damage metadata files at random, and see how what reads them ends.

A `Target` is a file below a folder and what reads it. `run_cases` damages it once a case, in a process of its own with
a limit on time and memory: the reader must end well or with a `DsgenError`. What a case does follows from its number.
"""

import contextlib
import copy
import json
import os
import pickle
import random
import re
import resource
import shutil
import signal
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsgen.errors import DsgenError

SECONDS = 30  # that a case may take
MEMORY = 2**30  # bytes that a process may take more than before its first case

Reader = Callable[[Path], Any]


@dataclass(frozen=True)
class Target:
    """A file, by its name below `folder`, and the readers that open it; each gets a copy of the folder.

    Every tenth case is opened by the `slow` readers too.

    `edit` damages what a file that is no text holds: it gets the content and a source of random numbers.
    """

    name: str
    folder: Path
    file: str
    readers: tuple[Reader, ...]
    edit: Callable[[bytes, random.Random], bytes] | None = None
    slow: tuple[Reader, ...] = ()


@dataclass(frozen=True)
class Case:
    """How a case ended: "read", "refused", or what else happened, with the end of the traceback."""

    target: str
    number: int
    outcome: str
    seconds: float
    peak_bytes: int
    detail: str = ""


def damage(content: bytes, rng: random.Random, edit: Callable[[bytes, random.Random], bytes] | None = None) -> bytes:
    """Return the content with one kind of damage: bits, pieces, numbers, or the values of JSON."""
    kinds: list[Callable[[bytes, random.Random], bytes]] = [_flip, _cut, _splice, _numbers]
    kinds += [edit] * 4 if edit is not None else []
    with contextlib.suppress(ValueError):
        json.loads(content)
        kinds += [edit_json] * 6
    try:
        return rng.choice(kinds)(content, rng)
    except (ValueError, TypeError, RecursionError, RuntimeError, OverflowError):  # values that cannot be written
        return _flip(content, rng)


def _flip(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8))):
        if changed:
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _cut(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.choice((0, 1, len(content) - 1, rng.randrange(len(content) + 1)))]


def _splice(content: bytes, rng: random.Random) -> bytes:
    """Remove a piece, repeat one, zero one, or put random bytes in."""
    first, last = sorted(rng.randrange(len(content) + 1) for _ in range(2))
    piece = content[first:last]
    middle = rng.choice((b"", piece * 2, bytes(len(piece)), rng.randbytes(rng.choice((1, 4, 40)))))
    return content[:first] + middle + content[last:]


def _numbers(content: bytes, rng: random.Random) -> bytes:
    """Replace one of the numbers in a text."""
    found = list(re.finditer(rb"\d+", content[: 2**16]))
    if not found:
        return _flip(content, rng)
    match = rng.choice(found)
    value = rng.choice((b"0", b"-1", b"1" + b"0" * 11, b"9" * 30, b"1e308", b"0.5", b"", b"x", b"9" * len(match[0])))
    return content[: match.start()] + value + content[match.end() :]


STRANGE: list[Any] = [None, True, [], {}, "", "x", "../../x", "\0", "x" * 1000, 0, -1, 1, 3, 10**11, 2**63, 10**30, 0.5]
STRANGE += [1e308, float("nan"), float("inf"), -0.0, [1], [[]], {"a": 1}, [10**11, 10**11], "hf-hub:a/b", "local-dir:/"]


def edit_json(content: bytes, rng: random.Random) -> bytes:
    """Change a value of a JSON file."""
    return json.dumps(edit_value(json.loads(content), rng)).encode()


def edit_value(value: Any, rng: random.Random) -> Any:
    """Change one or two of the values anywhere in dictionaries and lists."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 2))):
        places = [(parent, key) for parent, key in _places(value)]
        if not places:
            return rng.choice(STRANGE)
        parent, key = rng.choice(places)
        kind = rng.choice(("remove", "replace", "replace", "replace", "swap", "nest", "rename"))
        if kind == "remove":
            del parent[key]
        elif kind == "replace":
            parent[key] = rng.choice(STRANGE)
        elif kind == "swap":
            other, other_key = rng.choice(places)
            with contextlib.suppress(KeyError, IndexError):
                parent[key], other[other_key] = other[other_key], parent[key]
        elif kind == "nest":
            for _ in range(rng.choice((1, 2, 300))):
                parent[key] = [parent[key]] if rng.random() < 0.5 else {"a": parent[key]}
        elif isinstance(parent, dict):
            parent[rng.choice(("", "x", "../x", str(key) + " "))] = parent.pop(key)
        if _depth(value) > 400:
            break
    return value if rng.random() < 0.97 else rng.choice(STRANGE)


def _places(value: Any, depth: int = 0) -> list[tuple[Any, Any]]:
    """List the places of all values, as (container, key)."""
    if depth > 50 or not isinstance(value, dict | list):
        return []
    keys: list[Any] = list(value) if isinstance(value, dict) else list(range(len(value)))
    return [place for key in keys[:200] for place in [(value, key), *_places(value[key], depth + 1)]]


def _depth(value: Any) -> int:
    depth = 0
    while isinstance(value, dict | list) and value:
        value, depth = next(iter(value.values())) if isinstance(value, dict) else value[0], depth + 1
    return depth


class _TooLong(BaseException):
    """A case took longer than it may."""


def run_cases(target: Target, numbers: Sequence[int], scratch: Path, seconds: float = SECONDS) -> list[Case]:
    """Run cases of a target, all in one child process; one that dies ends with the case that killed it."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if not child:
        os.close(read_end)
        try:
            with open(write_end, "wb") as out:
                _run_in_child(target, numbers, scratch, seconds, out)
        finally:
            os._exit(0)
    os.close(write_end)
    cases = []
    with open(read_end, "rb") as results, contextlib.suppress(EOFError, pickle.UnpicklingError):
        while True:
            cases.append(pickle.load(results))
    _, status = os.waitpid(child, 0)
    if len(cases) < len(numbers):
        died = Case(target.name, numbers[len(cases)], f"process died ({status})", 0, 0)
        return [*cases, died, *run_cases(target, numbers[len(cases) + 1 :], scratch, seconds)]
    return cases


def _run_in_child(target: Target, numbers: Sequence[int], scratch: Path, seconds: float, out: Any) -> None:
    os.setpgid(0, 0)
    quiet = os.open(os.devnull, os.O_RDWR)
    for stream in (1, 2):
        os.dup2(quiet, stream)
    now = _memory("VmSize")
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY, now + MEMORY))
    signal.signal(signal.SIGALRM, _stop)
    before = _memory("VmRSS")
    for number in numbers:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew
        started = time.monotonic()
        outcome, detail = _run_case(target, number, scratch / "case", seconds)
        taken = time.monotonic() - started
        pickle.dump(Case(target.name, number, outcome, taken, max(0, _memory("VmHWM") - before), detail), out)
        out.flush()


def _stop(*_: object) -> None:
    raise _TooLong


def _run_case(target: Target, number: int, folder: Path, seconds: float) -> tuple[str, str]:
    rng = random.Random(f"{target.name} {number}")
    content = damage((target.folder / target.file).read_bytes(), rng, target.edit)
    outcome = "read"
    for reader in (*target.readers, *(target.slow if number % 10 == 0 else ())):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(target.folder, folder, copy_function=os.link)
        (folder / target.file).unlink()
        (folder / target.file).write_bytes(content)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            reader(folder)
        except DsgenError as error:
            outcome = "refused"
            lines = str(error).splitlines()
            if len(str(error)) > 2000 or (
                len(lines) > 1 and not hasattr(error, "errors") and not lines[1].startswith("  ")
            ):
                return "long message", str(error)[:500]
        except BaseException as error:
            return type(error).__name__, "".join(traceback.format_exception(error)[-4:])[-1500:]
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    return outcome, ""


def _memory(name: str) -> int:
    """Return a figure of this process' memory in bytes, as Linux tells it."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return 0
