"""Damage every metadata file at random and tell how what reads it ends: a table for dsgen/integrity/README.md.

python tests/benchmarks/fuzz_metadata.py --cases 1000
"""

import argparse
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from PIL import Image
from support.corpora import draw_background, draw_cutout, make_corpus
from support.fuzz import run_cases
from support.fuzz_targets import corpus_targets, make_targets

from dsgen.depth.label_corpus import label_corpus


def main() -> None:
    """Run the cases and print the table; what fails goes to stderr."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1000, help="cases for each file (default: 1000)")
    parser.add_argument("--only", nargs="+", default=[""], help="only files whose name contains one of these texts")
    parser.add_argument("--corpus", action="store_true", help="the files of a corpus and its labels too")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for kind in ("backgrounds", "foregrounds"):
            (root / "pictures" / kind).mkdir(parents=True)
        for n in range(2):
            Image.fromarray(draw_background(n)).save(root / f"pictures/backgrounds/room{n}.png")
            Image.fromarray(draw_cutout(n)).save(root / f"pictures/foregrounds/person{n}.png")
        labelled = make_corpus(root / "labelled", root / "pictures", pictures=False)
        from support.fuzz_targets import flat_depth

        label_corpus(labelled, model=flat_depth, kind="metric")
        targets = make_targets(root / "made", labelled)
        if options.corpus:
            targets += corpus_targets(root / "corpora", root / "pictures", labelled)
        print("| file | cases | read | refused | else | longest, s | most memory, MB |", flush=True)
        print("|---|---|---|---|---|---|---|", flush=True)
        for target in targets:
            if any(text in target.name for text in options.only):
                _report(target.name, run_cases(target, range(options.cases), root / "scratch"))


def _report(name: str, cases: list) -> None:
    counts = Counter(case.outcome if case.outcome in ("read", "refused") else "else" for case in cases)
    longest, most = max(case.seconds for case in cases), max(case.peak_bytes for case in cases) / 1e6
    columns = [f"`{name}`", f"{len(cases):,}", *(f"{counts[key]:,}" for key in ("read", "refused", "else"))]
    print(f"| {' | '.join([*columns, f'{longest:.1f}', f'{most:.0f}'])} |", flush=True)
    for case in cases:
        if case.outcome not in ("read", "refused"):
            print(f"{case.target} {case.number}: {case.outcome}\n{case.detail}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
