"""Does augmentation make the U-Net good at real pictures? Score runs on unseen people in photographs of rooms.

    dsgen train shards --run with --sizes 96 --batch-size 16 --schedule cosine --epochs 2 --epoch-samples 4000
    dsgen train shards --run without --augment 0 ...                   # other options the same
    python tests/studies/study_real_interiors.py shards rooms with without --size 96

The people are those of the store's test split; make the store from the bundled people. Every picture is scored twice:

- as pasted: it differs from its background in the mask only
- as two shots: the background is shifted by up to a pixel, the picture is up to 10 % lighter or darker, and both have
  noise of 4 grey levels and JPEG compression of quality 80

The second shares no code with the augmentation of training.
"""

import argparse
import logging
import shutil
from pathlib import Path

import cv2
import numpy as np

from dsgen.corpus.build import Parameters, composite
from dsgen.corpus.plan import SPLITS
from dsgen.depth.label_corpus import label_corpus
from dsgen.evaluation.evaluate import evaluate
from dsgen.io.atomic import write_bytes
from dsgen.store.packing import pack, pack_source
from dsgen.store.picture_source import Pictures
from dsgen.store.reader import Store

PEOPLE = Path(__file__).resolve().parent.parent.parent / "assets/foregrounds"
NOISE, LIGHTER, QUALITY = 4, 0.1, 80


def make_stores(store: Path, rooms: Path, work: Path) -> dict[str, Path]:
    """Paste the unseen people on the rooms; return the stores of what was pasted and of what two shots would be."""
    plan = Store(store).plan
    unseen = np.unique(plan["foreground"][plan["split"] == SPLITS.index("test")])
    names = sorted(path.name for path in PEOPLE.glob("*.png"))
    (work / "people").mkdir(parents=True, exist_ok=True)
    for number in unseen.tolist():
        shutil.copy(PEOPLE / names[number], work / "people")
    corpus = work / "corpus"
    composite(corpus, rooms, work / "people", parameters=Parameters(positions=1), pictures=False)
    label_corpus(corpus)
    pack(corpus, work / "pasted", shards=1)
    pasted = Store(work / "pasted")
    rows = pasted.read(0, pasted.rows)
    rng = np.random.default_rng(0)
    folders = {part: work / "shots" / part for part in ("image", "mask", "depth", "background")}
    for folder in folders.values():
        folder.mkdir(parents=True, exist_ok=True)
    for row in range(pasted.rows):
        moved = np.roll(rows["background"][row], tuple(rng.integers(-1, 2, 2).tolist()), (0, 1))
        found = {part: rows[part][row] for part in ("mask", "depth")}
        found["image"] = _shot(rows["image"][row] * rng.uniform(1 - LIGHTER, 1 + LIGHTER), rng)
        found["background"] = _shot(moved, rng)
        for part, folder in folders.items():
            cv2.imwrite(str(folder / f"{row:05d}.png"), found[part])
    shots = Pictures(folders["image"], folders["mask"], folders["depth"], folders["background"])
    pack_source(shots, work / "two-shots", shards=1)
    return {"as pasted": work / "pasted", "two shots": work / "two-shots"}


def _shot(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Record (S,S,3) RGB as a camera would: with noise and as JPEG; return BGR."""
    noisy = np.clip(picture + rng.normal(0, NOISE, picture.shape), 0, 255).astype(np.uint8)
    code = cv2.imencode(".jpg", noisy[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1]
    decoded = cv2.imdecode(code, cv2.IMREAD_COLOR)
    assert decoded is not None
    return decoded


def main() -> None:
    """Score every run on both stores and write a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("store", type=Path, help="what the runs were trained on")
    parser.add_argument("rooms", type=Path, help="a folder of photographs")
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--size", type=int, default=192)
    parser.add_argument("--work", type=Path, default=Path("bench/real"))
    parser.add_argument("--out", type=Path, default=Path("real.md"))
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    stores = make_stores(arguments.store, arguments.rooms, arguments.work)
    lines = ["| run | " + " | ".join(f"mask IoU, {name}" for name in stores) + " |", "|---" * (len(stores) + 1) + "|"]
    for run in arguments.runs:
        ious = []
        for name, store in stores.items():
            out = arguments.work / f"{run.name}-{name.replace(' ', '-')}"
            result = evaluate(run, store, split="all", size=arguments.size, out=out)
            ious.append(result.scores["scores"]["network"]["iou"])
        lines.append(f"| {run.name} | " + " | ".join(f"{iou:.3f}" for iou in ious) + " |")
    table = "\n".join(lines) + "\n"
    write_bytes(arguments.out, table.encode())
    print(table)


if __name__ == "__main__":
    main()
