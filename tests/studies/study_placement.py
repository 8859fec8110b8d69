"""Do people on the floor teach better than people at random places? Train the same U-Net on both, score it on both.

    python tests/studies/study_placement.py --interiors frames rgb depth --out placement.md

There are four corpora of the same backgrounds and people, so that the same of them are unseen:

- random: one person of fixed height at a random place, the original's recipe
- sizes: one person at a random place, of random height: what of the difference is that of sizes alone
- floor: one person, `--place floor`
- scenes: 1 to 3 people, `--place floor`, with contact shadows and matched colours

All have composed depth as their labels. A network of the same settings and first weights is trained on each, with the
same number of samples, and scored on pictures whose people and rooms no corpus trains with:

- random, floor and scenes: the test split of each corpus
- rooms: unseen people on the floors of assets/rooms, whose depth a network estimates
- what --interiors names: unseen people on the floors of photographs, by the depth that is given; those without a floor
  are left out. Measure there only: nothing is trained on them

Interiors are scored twice, as "floor" and as "scenes" draw people.

The U-Net is given the background beside the composite, so it can find people by what has changed, wherever they are.
So there are networks that see the composite alone, too (`--alone`; zeros take the place of the background): they have
to know people by their looks and by where they are.

Everything is kept in --work, and a study that was stopped continues.

Results at 64 px, 4,000 samples a network (500 steps of 8, on a CPU); two seeds where there are two numbers. Mask IoU:

    trained on    on random     on floor      rooms, floor  frames        photographs
    random        0.799 0.801   0.634 0.622   0.727 0.727   0.697 0.665   0.745 0.751
    sizes         0.780         0.646         0.748         0.701         0.763
    floor         0.765 0.742   0.682 0.661   0.735 0.715   0.691 0.682   0.734 0.712
    scenes        0.753         0.668         0.729         0.670         0.729

delta1 of the depth on people:

    random        0.408 0.466   0.381 0.427   0.331 0.293   0.415 0.543   0.186 0.126
    sizes         0.381         0.428         0.315         0.396         0.156
    floor         0.252 0.234   0.519 0.567   0.481 0.566   0.379 0.308   0.387 0.525
    scenes        0.358         0.561         0.465         0.468         0.383

Of 15 RGB-D frames of several sets 4 had room for a whole person, of 30 other photographs 4 of one hall: too few for
more than a hint. Rows: 192, 192, 456, 76, 128; all but the first with one cut-out on a floor, as "floor" draws it.
Depth over the whole picture differs little, and not to one side.

- Each corpus teaches its own test split best. On the bundled floors the floor corpus is better by 0.04 to 0.05 of IoU
  (seed 0: 0.048, 95 % of a bootstrap over the 12 rooms 0.020 to 0.072); on random places it is worse by 0.03 to 0.06.
- On floors of other rooms the masks are alike (seed 0: +0.007, -0.001 to 0.016 over 57 rooms; seed 1: -0.012); random
  places with random sizes do best there. On real pictures masks are alike or slightly worse.
- How far away people are is learnt better from floors: delta1 on people is higher by 0.14 to 0.27 on rendered floors,
  by 0.20 to 0.40 in the hall, but lower by 0.04 to 0.24 in the four frames. Random sizes alone do not teach it.

Networks that saw the composite alone (one seed; random, floor): IoU 0.589, 0.315 on random places, 0.293, 0.317 on the
bundled floors, 0.419, 0.405 in other rooms, 0.382, 0.197 on frames, 0.528, 0.177 on photographs. After so few samples
none has learnt well what a person is, and people of the random corpus are larger, which may teach it faster.
"""

import argparse
import csv
import logging
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dsgen.corpus.build import Parameters, composite
from dsgen.corpus.composed import label_composed
from dsgen.corpus.plan import SPLITS
from dsgen.depth.rooms import estimate_depth_with
from dsgen.evaluation.scores import depth_scores, mask_scores
from dsgen.io.atomic import write_bytes
from dsgen.io.images import encode_png
from dsgen.parallel.devices import pick_device
from dsgen.store.arena import Batch
from dsgen.store.loader import Loader
from dsgen.store.packing import pack
from dsgen.store.reader import Store
from dsgen.training.batches import prepare
from dsgen.training.checkpoint import open_trained
from dsgen.training.fit import fit
from dsgen.training.settings import Settings

ASSETS = Path(__file__).resolve().parent.parent.parent / "assets"
PERSON_SHARE = 110 / 224  # height of a person at a random place, of the picture's: the original's
EPOCHS = 2
SCENES: dict[str, Any] = {"place": "floor", "people": "1-3", "shadow": 0.6, "match_colours": 0.4}
SIZES = (12 / 64, 48 / 64)  # about the heights that people have on the floors of the bundled rooms
SCORED = ("random", "floor", "scenes")
COLUMNS = {
    "mask IoU": "iou",
    "boundary IoU": "boundary_iou",
    "AbsRel": "abs_rel",
    "delta1": "delta1",
    "AbsRel on people": "foreground_abs_rel",
    "delta1 on people": "foreground_delta1",
}
Scores = dict[str, float]  # by the names of `dsgen.evaluation.scores`


@dataclass(frozen=True)
class Scored:
    """A store that networks are scored on, and which split of it."""

    name: str
    store: Path
    split: str | None


class WithoutBackgrounds(Loader):
    """A loader whose batches lack the backgrounds, as if the store had none."""

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self.fields = tuple(name for name in self.fields if name != "background")

    def __iter__(self) -> Iterator[Batch]:
        for batch in super().__iter__():
            yield {name: values for name, values in batch.items() if name != "background"}


def arms(size: int) -> dict[str, dict[str, Any]]:
    """Return how the corpora differ, by name, for pictures of a size in pixels."""
    heights = "-".join(str(round(share * size)) for share in SIZES)
    return {"random": {}, "sizes": {"fg_height": heights}, "floor": {"place": "floor"}, "scenes": SCENES}


def make_store(work: Path, name: str, parameters: Parameters, **options: Any) -> Path:
    """Make a corpus, label it with composed depth, and pack it; return the store."""
    corpus, store = work / name, work / f"{name}-store"
    estimate = estimate_depth_with()
    composite(corpus, parameters=parameters, pictures=False, estimate_depth=estimate, **options)
    if parameters.place == "random":
        label_composed(corpus, estimate_depth=estimate)
    pack(corpus, store, recipe=True)
    return store


def copy_unseen_people(work: Path, store: Path) -> Path:
    """Copy the bundled people of the test split, and what is known of them, to a folder; return it."""
    plan, folder = Store(store).plan, work / "people"
    folder.mkdir(parents=True, exist_ok=True)
    paths = sorted((ASSETS / "foregrounds").glob("*.png"))
    unseen = {paths[number] for number in np.unique(plan["foreground"][plan["split"] == SPLITS.index("test")]).tolist()}
    with (ASSETS / "people.csv").open(encoding="utf-8") as file:
        first, *lines = csv.reader(file)
    names = {path.stem for path in unseen}
    with (work / "people.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([first, *(line for line in lines if line[first.index("name")] in names)])
    for path in unseen:
        shutil.copy(path, folder)
    return folder


def train(store: Path, run: Path, settings: Settings, loader: type[Loader]) -> None:
    """Train a run, or continue it."""

    def open_batches(split: str, batch_size: int) -> Loader:
        return loader(store, split, batch_size, seed=settings.seed, workers=1)

    fit(open_batches, run, settings, epochs=EPOCHS, device=pick_device("auto"))


def score(runs: dict[Path, bool], scored: Scored) -> tuple[int, dict[Path, Scores]]:
    """Score runs as `dsgen evaluate` does, all of them on the same batches; return the rows and the means by run.

    Rows that show nobody do not count: on a small floor there may be no place where enough of a person is seen. `runs`
    say whether the network sees the background.
    """
    networks = {run: open_trained(run) for run in runs}
    pieces: dict[Path, list[dict[str, torch.Tensor]]] = {run: [] for run in runs}
    for batch in Loader(scored.store, scored.split, 16, shuffle=False, workers=1):
        shown = (batch["mask"] > 0).flatten(1).any(1)
        if not shown.any():
            continue
        some = {name: values[shown] for name, values in batch.items()}
        for run, sees in runs.items():
            network = networks[run]
            background, image, mask, depth_m = prepare(some, network.size, network.device)
            assert depth_m is not None
            logits, answer_m = network.answer(background if sees else torch.zeros_like(background), image)
            pieces[run].append(mask_scores(logits, mask) | depth_scores(answer_m, depth_m, mask))
    rows = {run: {name: torch.cat([piece[name] for piece in pieces[run]]) for name in pieces[run][0]} for run in runs}
    means = {run: {name: values.nanmean().item() for name, values in rows[run].items()} for run in runs}
    return len(next(iter(rows.values()))["iou"]), means


def as_line(*cells: str) -> str:
    """Return a line of a table."""
    return "| " + " | ".join(cells) + " |"


def numbers(scores: Scores) -> list[str]:
    """Return the cells of the columns."""
    return [f"{scores[key]:.3f}" for key in COLUMNS.values()]


def pick_example(scored: Scored) -> int:
    """Return the first row, from the middle on, whose people cover 3 % of the picture; the very first if none do."""
    store = Store(scored.store)
    rows = store.rows_of(scored.split).tolist()
    large = (row for row in rows[len(rows) // 2 :] if (store.read(row, row + 1)["mask"] > 0).mean() >= 0.03)
    return next(large, rows[0])


def draw_examples(out: Path, sets: list[tuple[Scored, int]], runs: list[tuple[Path, bool]]) -> None:
    """Draw rows, a line each: background, composite, true mask, the runs' masks, true depth, the runs' depths.

    `sets` are stores with the numbers of their rows, `runs` say whether they see backgrounds.
    """
    from matplotlib import colormaps
    from PIL import Image

    def shown(picture: np.ndarray) -> np.ndarray:
        tile = Image.fromarray(picture).resize((128, 128), Image.Resampling.NEAREST)
        return np.pad(np.asarray(tile), ((0, 4), (0, 4), (0, 0)), constant_values=255)

    def depth(metres: torch.Tensor) -> np.ndarray:
        values = metres[0, 0].numpy()
        return np.where(values[..., None] > 0, colormaps["turbo_r"](values / 7)[..., :3] * 255, 255).astype(np.uint8)

    def grey(mask: torch.Tensor) -> np.ndarray:
        return np.repeat((mask[0, 0].numpy() * 255).astype(np.uint8)[..., None], 3, 2)

    lines = []
    for scored, row in sets:
        read = Store(scored.store).read(row, row + 1)
        sample = {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in read.items()}
        masks, depths = [], []
        size = open_trained(runs[0][0]).size
        background, image, mask, depth_m = prepare(sample, size, torch.device("cpu"))
        assert depth_m is not None
        for run, sees in runs:
            logits, metres = open_trained(run).answer(background if sees else torch.zeros_like(background), image)
            masks.append(grey((logits > 0).float()))
            depths.append(depth(metres))
        pictures = [(each[0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8) for each in (background, image)]
        panels = [*pictures, grey(mask), *masks, depth(depth_m), *depths]
        lines.append(np.concatenate([shown(panel) for panel in panels], axis=1))
    write_bytes(out, encode_png(np.concatenate(lines)))


def make_interiors(work: Path, name: str, parameters: Parameters, people: Path, **options: Any) -> list[Scored]:
    """Put unseen people on the floors of a folder of pictures, as "floor" and as "scenes" draw them."""
    sets = []
    for arm in ("floor", "scenes"):
        # the split is not used; without shares of their own all pictures belong to training
        wanted = replace(
            parameters, **arms(parameters.size)[arm], without_floor="leave-out", validation_share=0.0, test_share=0.0
        )
        sets.append(
            Scored(f"{name}, {arm}", make_store(work, f"{name}-{arm}", wanted, foregrounds=people, **options), None)
        )
    return sets


def main() -> None:
    """Make the corpora, train, score, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--samples", type=int, default=4000, help="of every network")
    parser.add_argument("--seeds", type=int, default=1, help="networks of every kind")
    parser.add_argument("--rooms", type=int, default=60, help="how many of assets/rooms")
    parser.add_argument(
        "--interiors",
        nargs=3,
        action="append",
        default=[],
        metavar=("NAME", "PICTURES", "DEPTHS"),
        help="folders of photographs and of their depth; fields of view as for dsgen composite",
    )
    parser.add_argument("--alone", action="store_true", help="train networks too that see the composite alone")
    parser.add_argument("--work", type=Path, default=Path("bench/placement"))
    parser.add_argument("--out", type=Path, default=Path("placement.md"))
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    work = arguments.work
    common = Parameters(
        positions=1,
        size=arguments.size,
        label_size=2 * arguments.size,
        fg_height=round(PERSON_SHARE * arguments.size),
        skip_unused=True,
    )
    stores = {arm: make_store(work, arm, replace(common, **changes)) for arm, changes in arms(common.size).items()}
    sets = [Scored(arm, stores[arm], "test") for arm in SCORED]
    people = copy_unseen_people(work, stores["random"])
    once = replace(common, flip=False)
    sets += make_interiors(work, "rooms", once, people, backgrounds=ASSETS / "rooms", max_backgrounds=arguments.rooms)
    for name, pictures, depths in arguments.interiors:
        places = replace(common, positions=2)
        sets += make_interiors(
            work, name, places, people, backgrounds=Path(pictures), background_depths=Path(depths), fov_deg=60.0
        )
    settings = Settings(
        sizes=(arguments.size,),
        batch_size=(8,),
        schedule="cosine",
        epoch_samples=arguments.samples // EPOCHS,
        validation_samples=100,
    )
    title = ["scored on", "rows", "the network sees", "trained on", *COLUMNS]
    lines = [as_line(*title), "|---" * len(title) + "|"]
    loaders = {"both pictures": Loader} | ({"the composite alone": WithoutBackgrounds} if arguments.alone else {})
    runs: dict[tuple[str, str, int], Path] = {}
    for seed in range(arguments.seeds):
        for sees, loader in loaders.items():
            for arm, store in stores.items():
                suffix = ("" if loader is Loader else "-alone") + (f"-{seed}" if seed else "")
                runs[sees, arm, seed] = work / f"run-{arm}{suffix}"
                train(store, runs[sees, arm, seed], replace(settings, seed=seed), loader)
    for scored in sets:
        rows, means = score({run: sees == "both pictures" for (sees, _, _), run in runs.items()}, scored)
        for (sees, arm, seed), run in runs.items():
            trained_on = arm if arguments.seeds == 1 else f"{arm}, seed {seed}"
            lines.append(as_line(scored.name, f"{rows:,}", sees, trained_on, *numbers(means[run])))
            print(lines[-1], flush=True)
    write_bytes(arguments.out, ("\n".join(lines) + "\n").encode())
    chosen = [(scored, pick_example(scored)) for scored in sets]
    draw_examples(work / "examples.png", chosen, [(run, sees == "both pictures") for (sees, _, _), run in runs.items()])


if __name__ == "__main__":
    main()
