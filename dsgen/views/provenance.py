"""Where the pictures of a store are from: which of them are bundled with dsgen, by whom those are, under which licence.

A picture is bundled if its file has the bytes of a bundled one, whatever folder it was read from.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from dsgen.corpus.plan import SPLITS, UNUSED
from dsgen.errors import DsgenError
from dsgen.io.assets import asset
from dsgen.io.csv_files import read_csv
from dsgen.store.reader import Store
from dsgen.views.survey import Use

_FOLDERS = {"backgrounds": ("backgrounds", "rooms"), "foregrounds": ("foregrounds",)}
_DEPTH_NETWORK = "depth/depth.safetensors"
_AUTHORS = "# 3D models, by library"  # the heading in ATTRIBUTION.md from which on authors are listed


@dataclass(frozen=True)
class Picture:
    """A background or foreground: its name, its file and that file's SHA-256, and whether it is bundled."""

    name: str
    file: str
    sha256: str
    bundled: bool


@dataclass(frozen=True)
class Provenance:
    """Where the pictures of a store are from.

    `backgrounds` and `foregrounds` are in the order of their numbers. `pictures` are the names of pictures that were
    packed without a corpus. `attribution` says whose the bundled pictures are, in paragraphs; it is empty where none of
    them is used.
    `two_people` counts the bundled foregrounds that show two people, who count as one, and `poses` those of validation
    and test whose figure training shows in another pose.
    """

    backgrounds: tuple[Picture, ...]
    foregrounds: tuple[Picture, ...]
    pictures: tuple[str, ...]
    attribution: tuple[str, ...]
    two_people: int
    poses: int

    @property
    def bundled(self) -> int:
        """Count the bundled pictures."""
        return sum(picture.bundled for picture in (*self.backgrounds, *self.foregrounds))

    @property
    def own(self) -> int:
        """Count the pictures that are not bundled."""
        return len(self.backgrounds) + len(self.foregrounds) + len(self.pictures) - self.bundled


def find_provenance(store: Store, foregrounds: Use | None) -> Provenance:
    """Find out where the pictures of a store are from; `foregrounds` says how often each is used."""
    attributes = store.shards[0].attributes
    kinds = {kind: tuple(_describe(kind, record) for record in attributes.get(kind, [])) for kind in _FOLDERS}
    bundled = any(picture.bundled for pictures in kinds.values() for picture in pictures)
    two_people, poses = _compare_figures(kinds["foregrounds"], foregrounds)
    return Provenance(
        **kinds,
        pictures=tuple(str(name) for name in attributes.get("pictures", [])),
        attribution=_read_attribution() if bundled else (),
        two_people=two_people,
        poses=poses,
    )


def is_bundled_network(sha256: str) -> bool:
    """Return whether depth was estimated with the bundled weights."""
    try:
        return _hash(asset(_DEPTH_NETWORK)) == sha256
    except DsgenError:
        return False


def _describe(kind: str, record: Mapping[str, Any]) -> Picture:
    file, sha256 = str(record.get("file", "")), str(record.get("sha256", ""))
    return Picture(str(record["name"]), file, sha256, _is_bundled(kind, Path(file).name, sha256))


def _is_bundled(kind: str, name: str, sha256: str) -> bool:
    for folder in _FOLDERS[kind]:
        try:
            path = asset(folder) / name
        except DsgenError:
            continue
        if name and path.is_file() and _hash(path) == sha256:
            return True
    return False


@cache
def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _read_attribution() -> tuple[str, ...]:
    """Return what `ATTRIBUTION.md` says of authors, a paragraph, heading or list a string, without its marks."""
    text = asset("ATTRIBUTION.md").read_text(encoding="utf-8")
    listed = text[text.index(_AUTHORS) + len(_AUTHORS) :] if _AUTHORS in text else text
    paragraphs = (paragraph.strip() for paragraph in re.split(r"\n\s*\n", listed))
    return tuple(re.sub(r"^#+\s*|`|^- ", "", paragraph, flags=re.M) for paragraph in paragraphs if paragraph)


def _compare_figures(pictures: tuple[Picture, ...], use: Use | None) -> tuple[int, int]:
    """Count the bundled foregrounds of two people, and those held out of which training shows a figure."""
    names = {picture.name for picture in pictures if picture.bundled}
    if not names or use is None:
        return 0, 0
    table = {row["name"]: row for row in read_csv(asset("people.csv"), "reinstall dsgen") if row["name"] in names}
    training, held_out = set[str](), list[set[str]]()
    for picture, rows in zip(pictures, use.rows, strict=True):
        if picture.name not in table or not picture.bundled:
            continue
        figures = set(table[picture.name]["bodies"].split("+"))
        if rows[SPLITS.index("train")]:
            training |= figures
        elif rows[:UNUSED].any():
            held_out.append(figures)
    two = sum(table[picture.name]["people"] == "2" for picture in pictures if picture.bundled)
    return two, sum(bool(figures & training) for figures in held_out)
