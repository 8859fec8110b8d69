"""Flip single bits of a corpus: is each one seen, and mended; and what is packed in spite of it."""

import contextlib
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dsgen.corpus import layout
from dsgen.corpus.build import Parameters, composite
from dsgen.errors import DsgenError
from dsgen.integrity.repair import repair
from dsgen.integrity.verify import verify
from dsgen.io.assets import asset
from dsgen.parallel.locks import LOCK
from dsgen.store.packing import pack

if TYPE_CHECKING:
    from dsgen.depth.labellers import DepthFunction

_PARAMETERS = Parameters(positions=2, size=48, label_size=48, fg_height=24, validation_share=0, test_share=0.4)


@dataclass
class Outcomes:
    """What became of flips: how many `tried`, and in `counts` how many of each kind of file ended in which way.

    `failures` describes each flip that was not seen, or not mended, or packed silently.
    """

    tried: int = 0
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def note(self, kind: str, outcome: str) -> None:
        """Count a flip."""
        self.tried += 1
        self.counts[kind, outcome] += 1

    def of(self, outcome: str) -> int:
        """Return how many flips ended in this way."""
        return sum(count for (_, found), count in self.counts.items() if found == outcome)

    def table(self) -> list[str]:
        """Return a line of a Markdown table for each kind of file, with a column for each outcome."""
        outcomes = sorted({outcome for _, outcome in self.counts})
        kinds = sorted({kind for kind, _ in self.counts})
        lines = [f"| | flips | {' | '.join(outcomes)} |", "|---" * (len(outcomes) + 2) + "|"]
        for kind in kinds:
            counts = [self.counts[kind, outcome] for outcome in outcomes]
            lines.append(f"| {kind} | {sum(counts):,} | {' | '.join(f'{count:,}' for count in counts)} |")
        return lines


def make_whole(path: Path, *, network: bool = True) -> None:
    """Make a corpus of 16 rows with pictures, labels, flip errors and views.

    Without `network` the labels are brightness, which takes less time, but `repair` cannot make them again.
    """
    with _quietly():
        _composite(path)
        _label(path, pictures=True, model=None if network else brightness)


def brightness(images: np.ndarray) -> np.ndarray:
    """Answer 1 to 4 m, (n,H,W) f4, for pictures (n,H,W,3) u1."""
    return (1 + images.mean(axis=3) / 85).astype(np.float32)


def _composite(path: Path) -> None:
    folders = asset("backgrounds"), asset("foregrounds")
    composite(path, *folders, _PARAMETERS, max_backgrounds=2, max_foregrounds=2, jobs=1)


def _label(path: Path, *, pictures: bool = False, model: "DepthFunction | None" = None) -> None:
    from dsgen.depth.label_corpus import label_corpus

    label_corpus(path, model=model, pictures=pictures, check_flip=True, device="cpu", jobs=1)


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Work without lines of progress."""
    before = os.environ.get("DSGEN_PROGRESS")
    os.environ["DSGEN_PROGRESS"] = "0"
    try:
        yield
    finally:
        if before is None:
            del os.environ["DSGEN_PROGRESS"]
        else:
            os.environ["DSGEN_PROGRESS"] = before


def _contents(path: Path) -> dict[str, bytes]:
    found = (p for p in sorted(path.rglob("*")) if p.is_file() and not p.name.startswith(LOCK))
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in found}


def _kind(name: str) -> str:
    """Name the kind of a file: `depth.zarr/depth`, `depth.zarr metadata`, `bg_fg`."""
    top, _, below = name.partition("/")
    if not top.endswith(".zarr"):
        return top
    return f"{top} metadata" if below.endswith("zarr.json") else f"{top}/{below.partition('/')[0]}"


def _flips(
    path: Path, whole: dict[str, bytes], count: int, rng: np.random.Generator, kinds: set[str] | None = None
) -> Iterator[tuple[str, str]]:
    """Flip one bit after the other, each of a random file of a random kind; yield the kind and a description.

    After each the corpus is put right again.
    """
    by_kind: dict[str, list[str]] = {}
    for name in whole:
        if kinds is None or name.partition("/")[0] in kinds:
            by_kind.setdefault(_kind(name), []).append(name)
    for _ in range(count):
        kind = sorted(by_kind)[rng.integers(len(by_kind))]
        name = by_kind[kind][rng.integers(len(by_kind[kind]))]
        content = bytearray(whole[name])
        byte, bit = int(rng.integers(len(content))), int(rng.integers(8))
        content[byte] ^= 1 << bit
        (path / name).write_bytes(content)
        yield kind, f"{name}, bit {bit} of byte {byte}"
        _restore(path, whole)


def _restore(path: Path, whole: dict[str, bytes]) -> None:
    now = _contents(path)
    for name in now.keys() - whole.keys():
        (path / name).unlink()
    for name, content in whole.items():
        if now.get(name) != content:
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(content)


def flip_and_repair(path: Path, flips: int, seed: int, repairs: bool = True) -> Outcomes:
    """Flip bits anywhere in the corpus at `path`: `verify` must name the file, and what it or `repair` says must mend.

    A flip counts as mended if every file of the corpus has its original bytes again: after `repair`, or after the
    remedy that `repair` states. Without `repairs` only `verify` is tried.
    """
    whole, outcomes = _contents(path), Outcomes()
    with _quietly():
        for kind, flipped in _flips(path, whole, flips, np.random.default_rng(seed)):
            name = flipped.partition(",")[0]
            findings = verify(path, jobs=1).findings
            if name not in {finding.file for finding in findings}:
                outcomes.failures.append(f"{flipped}: verify finds {findings}")
                outcomes.note(kind, "not seen")
            elif not repairs:
                outcomes.note(kind, "seen")
            else:
                outcome, said = _mend(path, whole)
                outcomes.note(kind, outcome)
                if outcome == "not mended":
                    outcomes.failures.append(f"{flipped}: {said}")
    return outcomes


def _mend(path: Path, whole: dict[str, bytes]) -> tuple[str, str]:
    """Repair, then do what the message says; return the outcome and the message."""
    try:
        said = " ".join(repair(path, jobs=1).notes)
    except DsgenError as error:
        said = str(error)
    if _contents(path) == whole:
        return "mended by repair", said
    if re.search(rf"{layout.CORPUS_JSON}: .*; remove it and run dsgen composite with the same", said):
        (path / layout.CORPUS_JSON).unlink()
        _composite(path)
    elif f"remove {path / layout.DEPTH} and run dsgen depth" in said:
        shutil.rmtree(path / layout.DEPTH)
        _label(path)
    return ("mended by the stated remedy" if _contents(path) == whole else "not mended"), said


def flip_and_pack(path: Path, folder: Path, flips: int, seed: int) -> Outcomes:
    """Flip bits in what `pack` reads of the corpus at `path`: it must refuse, or make the store of the whole corpus.

    Stores are made in `folder`.
    """

    def packed() -> dict[str, bytes]:
        shutil.rmtree(folder, ignore_errors=True)
        pack(path, folder, max_flip_error=0.2, shards=1, jobs=1)
        return _contents(folder)

    whole, outcomes = _contents(path), Outcomes()
    kinds = {layout.CORPUS_JSON, layout.PLAN, layout.SOURCES, layout.DEPTH}
    with _quietly():
        expected = packed()
        for kind, flipped in _flips(path, whole, flips, np.random.default_rng(seed), kinds):
            try:
                same = packed() == expected
            except DsgenError:
                outcomes.note(kind, "refused")
                continue
            outcomes.note(kind, "packed, the same bytes" if same else "packed silently")
            if not same:
                outcomes.failures.append(f"{flipped}: packed")
    return outcomes
