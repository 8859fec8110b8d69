"""Flip random single bits of a corpus: does `verify` see each, does `repair` or its advice mend it, what is packed?

    python tests/benchmarks/flip_bits.py --flips 1000 --pack-flips 180

Makes a corpus of 16 rows in a temporary folder. With --write the figures go into the README of `dsgen/integrity`.
Exit code 1 if a bit went unseen, was not mended, or was packed silently.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from record import circumstances, replace_section

sys.path.insert(0, str(Path(__file__).parent.parent))
from support.flips import Outcomes, flip_and_pack, flip_and_repair, make_whole

README = Path(__file__).parents[2] / "dsgen/integrity/README.md"


def main() -> int:
    """Run both campaigns and print, and perhaps write, the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flips", type=int, default=1000, help="bits of any file, for verify and repair (1000)")
    parser.add_argument("--pack-flips", type=int, default=180, help="bits of what pack reads (180)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the bits (0)")
    parser.add_argument("--no-repair", action="store_true", help="only verify, several times faster")
    parser.add_argument("--write", action="store_true", help=f"put the tables into {README.name} of dsgen/integrity")
    options = parser.parse_args()
    lines = [circumstances(["dsgen", "numpy", "zarr"]) + f"; seed {options.seed}.", ""]
    failures: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "corpus"
        make_whole(corpus)
        started = time.monotonic()
        seen = flip_and_repair(corpus, options.flips, options.seed, not options.no_repair)
        lines += describe("`verify` and `repair`", seen, started)
        started = time.monotonic()
        packed = flip_and_pack(corpus, Path(folder) / "shards", options.pack_flips, options.seed)
        lines += ["", *describe("`pack`", packed, started)]
        failures = seen.failures + packed.failures
    print("\n".join(lines))
    if options.write:
        replace_section("flips", lines, README)
    for failure in failures:
        print(failure, file=sys.stderr)
    return 1 if failures else 0


def describe(title: str, outcomes: Outcomes, started: float) -> list[str]:
    """Return the table of a campaign, with a sentence before it."""
    bad = len(outcomes.failures)
    text = f"{title}: {outcomes.tried:,} bits in {time.monotonic() - started:.0f} s, {bad:,} of them not as promised."
    return [text, "", *outcomes.table()]


if __name__ == "__main__":
    sys.exit(main())
