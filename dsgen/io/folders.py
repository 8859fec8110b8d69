"""A folder of pictures answered by a folder of the same tree: how the answers are named, and pictures that are bad."""

from collections import Counter
from pathlib import Path

import numpy as np

from dsgen.errors import DsgenError
from dsgen.io import images

FORMATS = ("png", "npy")  # of depth: uint16 millimetres, float32 metres


def attempt(path: Path) -> np.ndarray | DsgenError:
    """Decode a picture; return what is wrong with a bad one, so that the others can go on."""
    try:
        return images.read_picture(path)
    except (DsgenError, OSError) as error:
        return error if isinstance(error, DsgenError) else DsgenError(path, f"{error.strerror or error}")


def output_names(pictures: list[Path], ending: str = ".png") -> list[Path]:
    """Name the label of every picture: its own name with the ending, or, where several would share it, added to it."""
    plain = [path.with_suffix(ending) for path in pictures]
    taken = Counter(plain)
    names = [
        path.with_name(path.name + ending) if taken[name] > 1 else name
        for path, name in zip(pictures, plain, strict=True)
    ]
    if len(set(names)) < len(names):  # as for a.jpg, a.png and a.jpg.jpg
        names = [path.with_name(path.name + ending) for path in pictures]
    return names
