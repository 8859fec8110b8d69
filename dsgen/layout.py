"""Every path and file name of a corpus and of a store, and the one way a file or folder comes into being.

Numbers in names start at 1; indices in tables start at 0. The part names are those of the original data set.
A file or folder is written under its name plus `.partial` and then renamed, so what has its final name is whole.
"""

import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from dsgen.errors import DsgenError

log = logging.getLogger("dsgen")

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


def write_bytes(path: Path, content: bytes, *, apart: bool = False) -> None:
    """Write a file atomically: readers see the old file or the new one, never a part.

    With `apart` several may write the same file at once, each under a name of its own: the last stays.
    """
    unfinished = partial(path.with_name(f"{path.name}.{uuid4().hex[:12]}") if apart else path)
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
def lock(folder: Path, name: str = LOCK, wait: bool = False, doing: str = "writing here") -> Iterator[None]:
    """Keep a second dsgen from writing to the folder, which is made if need be; a killed process holds no lock.

    Another `name`, which begins with `LOCK`, is a lock of its own. With `wait` the second waits for the first, and
    says so. `doing` says in the error what the other is doing.
    """
    from filelock import FileLock, Timeout

    folder.mkdir(parents=True, exist_ok=True)
    held = FileLock(folder / name, timeout=1 if wait else 0)
    try:
        held.acquire()
    except Timeout as error:
        if not wait:
            raise DsgenError(f"{folder}: another dsgen is {doing}; wait for it or stop it") from error
        log.warning("%s: another dsgen is %s, waiting for it", folder, doing)
        held.acquire(timeout=-1)
    try:
        yield
    except DsgenError:
        if [path.name for path in folder.iterdir()] == [name]:  # refused before anything was written
            shutil.rmtree(folder)
        raise
    finally:
        held.release()


def held_locks(folder: Path, pattern: str) -> list[str]:
    """Return the names of locks, matched by a regular expression, that another process holds."""
    from filelock import FileLock, Timeout

    held = []
    for name in sorted(path.name for path in folder.iterdir() if re.fullmatch(pattern, path.name)):
        try:
            with FileLock(folder / name, timeout=0):
                pass
        except Timeout:
            held.append(name)
    return held


@contextmanager
def write_folder(path: Path, *, apart: bool = False) -> Iterator[Path]:
    """Yield an empty folder to fill; it takes its final name, replacing what had it, when the block ends well.

    With `apart` several may make the same folder at once, each under a name of its own: the first stays.
    """
    unfinished = partial(path.with_name(f"{path.name}.{uuid4().hex[:12]}") if apart else path)
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        if not apart:
            shutil.rmtree(path, ignore_errors=True)
        try:
            unfinished.rename(path)
        except OSError:
            if not (apart and path.is_dir()):
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def clear_unfinished(parent: Path, names: set[str]) -> None:
    """Remove what killed processes left of folders of these names."""
    for unfinished in parent.glob("*.partial"):
        if unfinished.name.split(".")[0] in names:
            shutil.rmtree(unfinished, ignore_errors=True)


def asset(name: str) -> Path:
    """Return a bundled file or folder: inside the package when installed from a wheel, else in the checkout."""
    package = Path(__file__).parent
    for root in (package / "assets", package.parent / "assets"):
        if (root / name).exists():
            return root / name
    raise DsgenError(f"bundled {name!r}: not part of this installation, expected it in {package / 'assets'}; reinstall")
