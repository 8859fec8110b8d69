"""How the data in `tests/data/earlier` was made, with the version before; run as a program, it makes such a folder."""

import shutil
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from support.corpora import draw_background, draw_cutout

from dsgen.corpus.build import Parameters, composite
from dsgen.depth.label_corpus import label_corpus
from dsgen.store.packing import pack

PARAMETERS = Parameters(
    positions=2, size=32, label_size=64, fg_height=12, quality=80, validation_share=0.34, test_share=0.0
)
STORES: dict[str, dict[str, bool]] = {"store": {}, "recipe": {"recipe": True}}


def wall(pictures: np.ndarray) -> np.ndarray:
    """The depth of a wall that recedes to the right, nearer where a picture is bright; its labels note this source."""
    across = np.linspace(1.5, 6, pictures.shape[2], dtype=np.float32)
    return across - pictures[..., 0].astype(np.float32) / 512


def make(folder: Path) -> None:
    """Draw pictures, and make a corpus of them, its labels, and two stores."""
    for kind in ("backgrounds", "foregrounds"):
        (folder / "pictures" / kind).mkdir(parents=True)
    for n in range(3):
        backgrounds, foregrounds = folder / "pictures/backgrounds", folder / "pictures/foregrounds"
        Image.fromarray(draw_background(n, 40, 44)).save(backgrounds / f"room{n}.png")
        Image.fromarray(draw_cutout(n, 24, 14 + 2 * n)).save(foregrounds / f"person{n}.png")
    composite(folder / "corpus", backgrounds, foregrounds, PARAMETERS, jobs=1, fov_deg=60)
    label_corpus(folder / "corpus", model=wall, device="cpu", check_flip=True, jobs=1)
    for name, options in STORES.items():
        pack(folder / "corpus", folder / name, shards=2, jobs=1, **options)
    for lock in folder.rglob(".dsgen.lock*"):
        lock.unlink()


if __name__ == "__main__":
    from support.earlier import make as make_by_name  # so that the labels name the module as tests do

    target = Path(sys.argv[1])
    shutil.rmtree(target, ignore_errors=True)
    make_by_name(target)
