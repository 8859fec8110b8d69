"""Kill every stage at random moments, run it again at once, and compare every byte with an undisturbed run.

Each stage runs on a small corpus of the bundled pictures. A kill goes to the main process alone or to its whole group.
The same command is then run again immediately, while what the kill left behind may still be alive; it must succeed, and
leave the same files with the same bytes as a run that nothing disturbed. The differences are printed as a table.

    python tests/benchmarks/kills.py --kills 20                     # everything; hours on two cores
    python tests/benchmarks/kills.py --kills 3 --stages composite   # one stage
"""

import argparse
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

SIGNALS = {"KILL": signal.SIGKILL, "TERM": signal.SIGTERM, "INT": signal.SIGINT}
TARGETS = ("main", "group")
TIMEOUT_S = 300
_CORPUS = "--max-backgrounds 4 --max-foregrounds 8 --positions 4 --size 64 --label-size 64 --fg-height 30 --jobs 2"
_IGNORED = (".dsgen.lock",)  # locks; an old one holds nobody up


@dataclass(frozen=True)
class Stage:
    """A command that makes the folder `out` from the folders `needs`.

    `damages` are files of `out`, as glob patterns, that are damaged before the command runs, for a repair.
    """

    command: str
    needs: tuple[str, ...]
    out: str
    damages: tuple[str, ...] = ()


STAGES = {
    "composite": Stage(f"composite corpus {_CORPUS}", (), "corpus"),
    "depth": Stage("depth corpus --check-flip --pictures --jobs 2 --device cpu", ("corpus",), "corpus"),
    "pack": Stage("pack labelled --out shards --shards 3 --jobs 2", ("labelled",), "shards"),
    "pack-zip": Stage("pack labelled --out zipped --shards 3 --zip --jobs 2", ("labelled",), "zipped"),
    "repair": Stage(
        "repair shards --corpus labelled --jobs 2", ("labelled",), "shards", ("image/c/*/0/0/0", "depth/c/*")
    ),
    "repair-corpus": Stage(
        "repair corpus --jobs 2", (), "corpus", ("plan.npy", "bg_fg/bg00[12]/*_001.jpeg", "bg_fg_mask/bg003/*.png")
    ),
    "export": Stage("export shards out --rows-per-file 40 --jobs 2", ("shards",), "out"),
    "export-parquet": Stage(
        "export shards out-parquet --format parquet --rows-per-file 40 --jobs 2", ("shards",), "out-parquet"
    ),
}


@dataclass
class Tally:
    """What came of the kills of one stage with one signal: how many, and what went wrong."""

    kills: int = 0
    too_late: int = 0  # the command had ended before
    faults: list[str] = field(default_factory=list)


class Campaign:
    """Runs stages in a folder `work`, with the undisturbed results below `whole`; see the module."""

    def __init__(self, work: Path, seed: int):
        self._work, self._whole, self._random = work, work / "whole", random.Random(seed)
        self._seconds: dict[str, float] = {}
        self._whole.mkdir(parents=True)

    def prepare(self, names: Sequence[str]) -> None:
        """Run stages, and those they build on, undisturbed, and measure how long each takes."""
        for name in STAGES:
            if name not in with_earlier(names):
                continue
            self._lay_out(name)
            started = time.monotonic()
            process = self._start(name)
            _, said = process.communicate(timeout=TIMEOUT_S)
            self._seconds[name] = time.monotonic() - started
            if process.returncode:
                sys.exit(f"{name} failed undisturbed: {said}")
            if not (self._whole / result_of(name)).exists():
                shutil.copytree(self._here / STAGES[name].out, self._whole / result_of(name))

    def kill(self, name: str, number: signal.Signals, target: str, tally: Tally) -> None:
        """Kill a stage at a random moment, run it again at once, and note what differs."""
        self._lay_out(name)
        process = self._start(name)
        moment = self._random.uniform(0.05, 1.0) * self._seconds[name]
        try:
            process.wait(moment)
            tally.too_late += 1
        except subprocess.TimeoutExpired:
            tally.kills += 1
            (os.killpg if target == "group" else os.kill)(process.pid, number)
        code, when = process.wait(TIMEOUT_S), f"{target}, {moment:.2f} s"
        again = self._start(name)
        try:
            _, said = process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            said = ""
            tally.faults.append(f"{when}: processes it started outlive it by 10 s, and hold its stderr")
        allowed = {0, 1, -number} if number == signal.SIGKILL else {0, 1, 128 + number}
        if code not in allowed:
            tally.faults.append(f"{when}: exit code {code}")
        if "Traceback" in said:
            tally.faults.append(f"{when}: a traceback:\n{said.strip()}")
        _, said = again.communicate(timeout=TIMEOUT_S)
        if again.returncode:
            tally.faults.append(f"{when}: run again: exit code {again.returncode}: {said.strip()[-300:]}")
        tally.faults += [f"{when}: {difference}" for difference in self._differences(name)]

    @property
    def _here(self) -> Path:
        return self._work / "here"

    def _lay_out(self, name: str) -> None:
        """Fill the folder in which a stage runs with what it needs, damaged where it is to be repaired."""
        stage = STAGES[name]
        shutil.rmtree(self._here, ignore_errors=True)
        self._here.mkdir()
        for need in needed_by(name):
            shutil.copytree(self._whole / need, self._here / need)
        for pattern in stage.damages:
            for path in (self._here / stage.out).rglob(pattern):
                if path.is_file():
                    path.write_bytes(path.read_bytes() + b"x")

    def _start(self, name: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-m", "dsgen", *STAGES[name].command.split()],
            cwd=self._here,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"},
        )

    def _differences(self, name: str) -> list[str]:
        """Compare what a stage made with the undisturbed result."""
        made, expected = hash_files(self._here / STAGES[name].out), hash_files(self._whole / result_of(name))
        return [
            f"{file}: {'missing' if file not in made else 'left over' if file not in expected else 'other bytes'}"
            for file in sorted(made.keys() | expected.keys())
            if made.get(file) != expected.get(file)
        ]


def result_of(name: str) -> str:
    """Return the name under which the undisturbed result of a stage is kept."""
    return "labelled" if name == "depth" else STAGES[name].out


def needed_by(name: str) -> list[str]:
    """List the results that a stage begins with."""
    stage = STAGES[name]
    return [*stage.needs, *([stage.out] if stage.damages else [])]


def with_earlier(names: Sequence[str]) -> set[str]:
    """Return stages, and those whose results they need."""
    makers: dict[str, str] = {}
    for name in STAGES:
        makers.setdefault(result_of(name), name)
    found, left = set(), list(names)
    while left:
        name = left.pop()
        found.add(name)
        left += [makers[need] for need in needed_by(name)]
    return found


def hash_files(folder: Path) -> dict[str, str]:
    """Return the hash of every file below a folder, and an empty one for every empty folder, but for locks."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in folder.rglob("*")
        if not path.name.startswith(_IGNORED) and (path.is_file() or not any(path.iterdir()))
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the campaign; return 1 if anything went wrong."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20, help="kills of every stage, signal and target")
    parser.add_argument("--stages", default=",".join(STAGES), help="stages to kill, with commas between them")
    parser.add_argument("--signals", default=",".join(SIGNALS), help="signals, with commas between them")
    parser.add_argument("--targets", default=",".join(TARGETS), help="the main process alone, or its whole group")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments")
    options = parser.parse_args(arguments)
    stages, numbers, targets = (getattr(options, name).split(",") for name in ("stages", "signals", "targets"))
    for given, known in ((stages, STAGES), (numbers, SIGNALS), (targets, TARGETS)):
        if unknown := set(given) - set(known):
            parser.error(f"unknown: {', '.join(sorted(unknown))}; choose from {', '.join(known)}")

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job hands on that it is ignored
    failed = False
    with tempfile.TemporaryDirectory(prefix="kills-") as folder:
        campaign = Campaign(Path(folder), options.seed)
        campaign.prepare(stages)
        print("| stage | signal | target | kills | too late | differences |\n|---|---|---|---|---|---|", flush=True)
        for name in stages:
            for number in numbers:
                for target in targets:
                    tally = Tally()
                    for _ in range(options.kills):
                        campaign.kill(name, SIGNALS[number], target, tally)
                    failed |= bool(tally.faults)
                    cells = (name, f"SIG{number}", target, tally.kills, tally.too_late, len(tally.faults))
                    print(f"| {' | '.join(map(str, cells))} |", flush=True)
                    for fault in tally.faults:
                        print(f"  {fault}", file=sys.stderr, flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
