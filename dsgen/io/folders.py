"""Folders of pictures that are turned into folders of the same tree: names of the outputs, unreadable pictures."""

from collections import Counter
from pathlib import Path

import numpy as np

from dsgen.errors import DsgenError, reason_of
from dsgen.io import images

FORMATS = ("png", "npy")  # of depth maps: uint16 millimetres, float32 metres


def attempt(path: Path) -> np.ndarray | DsgenError:
    """Decode a picture to (h,w,3) u1 RGB; return the error, so that the other pictures can still be processed."""
    try:
        return images.read_picture(path)
    except DsgenError as error:
        return error
    except OSError as error:
        return DsgenError(path, reason_of(error, path))


def output_names(pictures: list[Path], ending: str = ".png") -> list[Path]:
    """Name the output of every picture, in order: with `ending` in place of the picture's own.

    Where several pictures would share a name, `ending` is appended instead: `a.jpg.png` and `a.png.png`.
    """
    replaced = [path.with_suffix(ending) for path in pictures]
    uses = Counter(replaced)
    names = [
        path.with_name(path.name + ending) if uses[name] > 1 else name
        for path, name in zip(pictures, replaced, strict=True)
    ]
    if len(set(names)) < len(names):  # as with a.jpg, a.png and a.jpg.jpg
        names = [path.with_name(path.name + ending) for path in pictures]
    return names
