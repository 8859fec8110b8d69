"""Labels for ultralytics: one polygon an instance, in a text file a picture.

    images/train/000000123.png    a picture, by its row; folders train, val, test and, if asked for, unused
    labels/train/000000123.txt    a line an instance: its class, from 0, then x and y of every point, 0 to 1
    data.yaml                     the folders, relative to this file, and the names of the classes

A polygon has the mask's pixels, see `dsgen.store.export.outlines`. A picture without an instance has an empty file.
"""

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from dsgen.io.atomic import write_bytes
from dsgen.store.export.instances import Instance
from dsgen.store.export.outlines import outline

DATA_YAML = "data.yaml"
FOLDERS = {"train": "train", "validation": "val", "test": "test", "unused": "unused"}  # of every split


def describe_instances(instances: Iterable[Instance], size: int) -> bytes:
    """Return the label file of a picture of `size` x `size` pixels."""
    return "".join(f"{_line(instance, size)}\n" for instance in instances).encode()


def _line(instance: Instance, size: int) -> str:
    left, top, width, height = instance.box
    points = outline(instance.mask[top : top + height, left : left + width])
    shares = (points + np.array([left, top])) / size
    return f"{instance.category} {' '.join(f'{share:.6f}' for share in shares.ravel().tolist())}"


def write_data_yaml(path: Path, splits: Iterable[str], classes: Iterable[str]) -> None:
    """Write `data.yaml`. Without the key `path`, ultralytics looks for the folders beside it, wherever it is."""
    lines = [f"{FOLDERS[split]}: images/{FOLDERS[split]}" for split in splits]
    names = [f"  {number}: {json.dumps(name)}" for number, name in enumerate(classes)]
    write_bytes(path, "\n".join([*lines, "names:", *names, ""]).encode())
