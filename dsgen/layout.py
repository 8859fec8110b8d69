"""Every path and file name of a corpus and of a store, and the one way a file or folder comes into being.

Numbers in names start at 1; indices in tables start at 0. The part names are those of the original data set.
A file or folder is written under its name plus `.partial` and then renamed, so what has its final name is whole.
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dsgen.errors import DsgenError

CORPUS_JSON = "corpus.json"
PLAN = "plan.npy"
SOURCES = "sources.zarr"
DEPTH = "depth.zarr"
DEPTH_CSV = "depth.csv"
DEPTH_JSON = "depth.json"
INDEX = "index.json"
SUMS = "SHA256SUMS"
PACKING = "packing"
LOCK = ".dsgen.lock"
PICTURE_PARTS = ("bg_fg", "bg_fg_mask")
PARTS = ("bg", "fg", "fg_mask", "bg_fg", "bg_fg_mask", "bg_fg_depth")


def background_name(background: int) -> str:
    """Return `bg001` for background 0."""
    return f"bg{background + 1:03d}"


def foreground_name(foreground: int, flip: bool) -> str:
    """Return `fg001`, or `fg001_01` for the mirror image, for foreground 0."""
    return f"fg{foreground + 1:03d}" + ("_01" if flip else "")


def foreground_mask_name(foreground: int, flip: bool) -> str:
    """Return `frg001` or `frg001_01` for foreground 0."""
    return "fr" + foreground_name(foreground, flip)[1:]


def composite_name(background: int, foreground: int, flip: bool, position: int) -> str:
    """Return `bg001_fg001_001`, or `bg001_fg001_01_001` for the mirror image: a composite's name without ending."""
    return f"{background_name(background)}_{foreground_name(foreground, flip)}_{position + 1:03d}"


def depth_picture_name(background: int, foreground: int, flip: bool, position: int) -> str:
    """Return `bg_001_fg_001_001_depth_map_001`: the original's name of a depth view, without ending."""
    mirrored = "_01" if flip else ""
    return f"bg_{background + 1:03d}_fg_{foreground + 1:03d}{mirrored}_{position + 1:03d}_depth_map_001"


def shard_name(shard: int, shards: int) -> str:
    """Return `shard-00000-of-00006.zarr` for shard 0 of 6."""
    return f"shard-{shard:05d}-of-{shards:05d}.zarr"


def partial(path: Path) -> Path:
    """Return where `path` is written until it is whole."""
    return path.with_name(path.name + ".partial")


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically: readers see the old file or the new one, never a part."""
    unfinished = partial(path)
    try:
        with unfinished.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, indented, keys in the order given."""
    write_bytes(path, encode_json(value))


def encode_json(value: Any) -> bytes:
    """Encode JSON as all of a corpus and a store is: indented, keys in the order given."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def read_json(path: Path) -> Any:
    """Read JSON; a file that does not parse is a `DsgenError`."""
    return parse_json(path.read_bytes(), path)


def parse_json(content: bytes, name: Path | str) -> Any:
    """Parse JSON; what does not parse is a `DsgenError` that names it."""
    try:
        return json.loads(content.decode("utf-8"))
    except ValueError as error:
        raise DsgenError(f"{name}: damaged, expected JSON ({error}); restore it or make it again") from error


@contextmanager
def lock(folder: Path, name: str = LOCK, wait: bool = False) -> Iterator[None]:
    """Keep a second dsgen from writing to the folder, which is made if need be; a killed process holds no lock.

    Another `name`, which begins with `LOCK`, is a lock of its own. With `wait` the second waits for the first.
    """
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / name, timeout=-1 if wait else 0):
            yield
    except DsgenError:
        if [path.name for path in folder.iterdir()] == [name]:  # refused before anything was written
            shutil.rmtree(folder)
        raise
    except Timeout as error:
        raise DsgenError(f"{folder}: another dsgen is writing here; wait for it or stop it") from error


@contextmanager
def write_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder to fill; it takes its final name, replacing what had it, when the block ends well."""
    unfinished = partial(path)
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        shutil.rmtree(path, ignore_errors=True)
        unfinished.rename(path)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def asset(name: str) -> Path:
    """Return a bundled file or folder: inside the package when installed from a wheel, else in the checkout."""
    package = Path(__file__).parent
    for root in (package / "assets", package.parent / "assets"):
        if (root / name).exists():
            return root / name
    raise DsgenError(f"bundled {name!r}: not part of this installation, expected it in {package / 'assets'}; reinstall")
