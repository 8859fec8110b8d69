"""Score a trained network on a split of a store, beside trivial answers, and show where it is worst.

The output folder holds these files, each written atomically:

    scores.json       protocol, mean scores, breakdowns, the worst rows; written last
    rows.csv          every row with its scores, in order; numbers as in the plan, from 0
    backgrounds.csv   mean scores of the rows on every background, the worst first
    foregrounds.csv   the same by foreground
    worst.png         the worst rows: pictures, masks and depths, true and predicted
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsgen.corpus.plan import SPLITS
from dsgen.errors import DsgenError, InvalidValueError, check_rules
from dsgen.evaluation.protocol import ALL, describe_protocol
from dsgen.evaluation.scores import RowScores, score_rows
from dsgen.evaluation.summary import GROUPINGS, group_means, summarise
from dsgen.evaluation.tables import format_scores, groups_csv, rows_csv
from dsgen.evaluation.worst import draw_worst
from dsgen.io.atomic import write_bytes, write_json
from dsgen.io.filesystem import is_url
from dsgen.io.places import Kind, not_a_run, recognise
from dsgen.store.loader import Loader
from dsgen.store.reader import Store
from dsgen.training.checkpoint import Trained, open_trained

MIN_SIZE = 32
_SPLITS = (*SPLITS, ALL)


@dataclass(frozen=True)
class EvaluationResult:
    """The result of `evaluate`: where it was written, what was scored, and the scores.

    `size` is the side in pixels at which pictures were fed, `rows` the number of rows scored, `scores` what
    `scores.json` says. `blank` says that the masks are no better than all-zero ones.
    """

    out: Path
    run: Path
    store: Path | str
    split: str
    size: int
    rows: int
    scores: dict[str, Any]
    blank: bool

    def table(self) -> str:
        """Format the scores as text: means of all answers, means by mask share, warnings, the protocol."""
        return format_scores(self.scores)


def evaluate(
    run: Path = Path("run"),
    store: Path | str = Path("shards"),
    *,
    split: str = "validation",
    size: int | None = None,
    checkpoint: str = "best",
    out: Path | None = None,
    samples: int | None = None,
    batch_size: int = 16,
    device: str = "auto",
    workers: int = 2,
) -> EvaluationResult:
    """Score a run's network on a split of a store and write the scores to a folder.

    `split` is train, validation, test, unused or all. `size` is the side in pixels at which pictures are fed, by
    default that of the largest pictures of the run. `checkpoint` is the name of one of the run's. `out` is by default
    a folder of the run. `samples` is the number of rows, drawn at random with a fixed seed, by default all. `workers`
    is the number of threads that read ahead. Scores of what the store has no truth for, or the network was not trained
    to answer, are left out.

    Raises `NotFoundError` for a run without checkpoints, `InvalidValueError` for a checkpoint, split, size or number
    of samples that cannot be, and `DsgenError` for an unfinished store, a split without rows, and a store without
    truth for anything the network answers.

    >>> result = evaluate(Path("run"), "shards", split="test")  # doctest: +SKIP
    >>> result.scores["scores"]["network"]["iou"]  # doctest: +SKIP
    0.874
    """
    check_rules(
        [
            (split in _SPLITS, "split", split, f"one of {', '.join(_SPLITS)}"),
            (samples is None or samples >= 1, "samples", samples, "1 or more"),
        ]
    )
    if not is_url(store) and (recognise(run), recognise(store)) == (Kind.STORE, Kind.RUN):
        raise not_a_run(run, {Kind.STORE: f"the run comes first: dsgen evaluate {store} {run}"})
    trained = open_trained(run, checkpoint, device)
    opened = Store(store)
    fed_size = _check_size(size, trained, opened)
    chosen = None if split == ALL else split
    loader = Loader(store, chosen, batch_size, shuffle=samples is not None, workers=workers, seed=0)
    scored = score_rows(trained, opened, loader, fed_size, min(samples or loader.rows, loader.rows))
    if not scored.network:
        answers = " and ".join(trained.answers)
        raise DsgenError(
            store,
            f"nothing to score: the network answers {answers}, and the store has no truth for that",
            "use another store or run",
        )
    if out is None:
        name = f"evaluation-{split}-{fed_size}" + ("" if checkpoint == "best" else f"-{trained.path.stem}")
        out = run / name
    protocol = describe_protocol(trained, opened, split, fed_size, scored)
    scores = {"protocol": protocol, **summarise(opened.plan[scored.rows], scored)}
    _write(out, trained, opened, scored, scores, fed_size)
    return EvaluationResult(
        out=out,
        run=run,
        store=store,
        split=split,
        size=fed_size,
        rows=len(scored.rows),
        scores=scores,
        blank=scores["blank"],
    )


def _check_size(size: int | None, trained: Trained, store: Store) -> int:
    """Return the side at which pictures are fed, which the store's pictures must reach."""
    chosen = trained.size if size is None else size
    if not MIN_SIZE <= chosen <= store.size:
        origin = ", the run's," if size is None else ","
        raise InvalidValueError(
            "--size",
            f"got {chosen}{origin} expected {MIN_SIZE} to {store.size}, the side of the pictures in {store.path}",
            "choose another",
        )
    return chosen


def _write(out: Path, trained: Trained, store: Store, scored: RowScores, scores: dict[str, Any], size: int) -> None:
    """Write the files of an evaluation, `scores.json` last."""
    out.mkdir(parents=True, exist_ok=True)
    plan = store.plan[scored.rows]
    write_bytes(out / "rows.csv", rows_csv(plan, scored))
    for kind in GROUPINGS:
        write_bytes(out / f"{kind}s.csv", groups_csv(kind, group_means(kind, plan, scored.network)))
    draw_worst(out / "worst.png", trained, store, scores["worst"], size)
    write_json(out / "scores.json", scores)
