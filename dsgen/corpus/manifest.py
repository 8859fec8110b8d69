"""The schema of `corpus.json`, the manifest of a corpus, which is written last and vouches for everything else.

It holds the parameters, the counts, the SHA-256 of the plan and of every file of the sources, and, for every picture
the corpus was made from, its name, file, hash and split. The last key, `manifest_sha256`, is the SHA-256 of the file
itself with an empty string in its place:

    sed 's/"manifest_sha256": ".*"/"manifest_sha256": ""/' corpus.json | sha256sum

Corpora of earlier versions lack that key, and the oldest `sha256` too; of these, only the schema and the counts are
checked.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, cast

from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen
from pydantic import StringConstraints
from typing_extensions import TypedDict

from dsgen.camera import ASSUMED_FOV_DEG
from dsgen.corpus import layout
from dsgen.corpus.plan import MAX_PEOPLE, SPLITS
from dsgen.errors import DamagedError, DsgenError
from dsgen.io.atomic import write_bytes
from dsgen.io.cameras import ASSUMED, OPTION
from dsgen.io.json_files import encode_json, parse_as
from dsgen.io.people import HIGHEST_M, LOWEST_M, Person

FORMAT, SCENE_FORMAT = 1, 2  # the second of a corpus whose rows have the column `people`
MAX_POSITIONS = 65535
MIN_SIZE, MAX_SIZE = 16, 8192  # of the stored images, in pixels
_MAX_SCALE = 64  # of the label size to the stored size
REMEDY = "remove it and run dsgen composite with the same pictures and options, which writes it again"
_OWN_HASH = "manifest_sha256"

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
_Share = Annotated[int | float, Ge(0), Lt(1)]
FovDegrees = Annotated[int | float, Gt(0), Lt(180)]
_Range = Annotated[str, StringConstraints(pattern=r"^[1-9]\d{0,4}-[1-9]\d{0,4}$")]
_Side = Annotated[int, Ge(MIN_SIZE), Le(MAX_SIZE)]


class ParameterRecord(TypedDict):
    """What a corpus depends on besides the pictures; see `dsgen.corpus.build.Parameters`."""

    positions: Annotated[int, Ge(1), Le(MAX_POSITIONS)]
    size: _Side
    label_size: Annotated[int, Ge(MIN_SIZE), Le(MAX_SIZE * _MAX_SCALE)]
    fg_height: Annotated[int, Ge(1), Le(MAX_SIZE)] | _Range
    flip: bool
    seed: int
    quality: Annotated[int, Ge(1), Le(100)]
    validation_share: _Share
    test_share: _Share
    split_by: NotRequired[Literal["both", "background", "foreground"]]
    skip_unused: NotRequired[bool]
    place: NotRequired[Literal["random", "floor"]]
    people: NotRequired[Annotated[int, Ge(1), Le(MAX_PEOPLE)] | _Range]
    spread: NotRequired[Literal["area", "pixels"]]
    min_visible: NotRequired[_Share]
    truncate: NotRequired[bool]
    without_floor: NotRequired[Literal["random", "leave-out"]]
    tilt: NotRequired[Annotated[int | float, Ge(0), Le(180)]]
    height_jitter: NotRequired[_Share]
    shadow: NotRequired[Annotated[int | float, Ge(0), Le(1)]]
    match_colours: NotRequired[Annotated[int | float, Ge(0), Le(1)]]
    feather: NotRequired[Annotated[int, Ge(0), Le(3)]]
    blend: NotRequired[
        Annotated[str, StringConstraints(pattern=r"^(alpha|gaussian|poisson)(,(alpha|gaussian|poisson)){0,9}$")]
    ]


_Classed = TypedDict("_Classed", {"class": NotRequired[Annotated[str, MinLen(1)]]})


class PictureRecord(_Classed):
    """A picture that a corpus was made from: `name` is the name of `file` without its ending.

    Both are names within the folder it was in. A foreground from a sub-folder has the name of that as its `class`; the
    others have none, which stands for `dsgen.io.people.PERSON`.

    `fov_deg` is the field of view of a background's centre square, which the corpus holds, and `fov_from` where it is
    from, see `dsgen.io.cameras`. A background that does not say it has neither; nor have those of earlier versions.
    `height_m` is the height of a foreground, and `height_from` where that is from, see `dsgen.io.people`; only corpora
    that need it have it.
    """

    name: str
    file: str
    sha256: Sha256
    split: str
    fov_deg: NotRequired[FovDegrees]
    fov_from: NotRequired[Literal["csv", "exif", "option"]]
    height_m: NotRequired[Annotated[int | float, Ge(LOWEST_M), Le(HIGHEST_M)]]
    height_from: NotRequired[Literal["csv", "assumed"]]


class Manifest(TypedDict):
    """The content of `corpus.json`; keys that it does not name are kept.

    Where people have sizes of their own, `figure_frame` is height and width of the array `figure` of the sources.
    Where they stand on floors, `rooms_sha256` vouches for `rooms.zarr`.
    """

    format: int
    dsgen: str
    rows: Annotated[int, Gt(0)]
    splits: dict[str, Annotated[int, Ge(0)]]
    parameters: ParameterRecord
    sha256: NotRequired[dict[str, Sha256]]
    rooms_sha256: NotRequired[Sha256]
    figure_frame: NotRequired[Annotated[list[Annotated[int, Ge(1), Le(MAX_SIZE)]], MinLen(2), MaxLen(2)]]
    backgrounds: Annotated[list[PictureRecord], MinLen(1)]
    foregrounds: Annotated[list[PictureRecord], MinLen(1)]
    manifest_sha256: NotRequired[Sha256]


class _Format(TypedDict):
    format: int


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write `corpus.json` atomically, with the hash of itself as its last key."""
    write_bytes(path, encode_manifest(manifest))


def encode_manifest(manifest: Manifest) -> bytes:
    """Encode a manifest with the hash of itself as its last key."""
    content = {name: value for name, value in manifest.items() if name != _OWN_HASH}
    digest = hashlib.sha256(encode_json(content | {_OWN_HASH: ""})).hexdigest()
    return encode_json(content | {_OWN_HASH: digest})


def parse_manifest(content: bytes, name: Path | str) -> Manifest:
    """Parse the content of `corpus.json`, a file called `name` in errors.

    Raises `DamagedError` if it does not fit the schema, its own hash, or its counts, and `DsgenError` for a format
    that this version does not read.
    """
    found = parse_as(_Format, content, name, REMEDY)["format"]
    if found not in (FORMAT, SCENE_FORMAT):
        raise DsgenError(name, f"format {found}, expected {FORMAT} or {SCENE_FORMAT}", "use the dsgen that made it")
    manifest = parse_as(Manifest, content, name, REMEDY)
    reason = _find_other_hash(manifest, content) or _find_contradiction(manifest)
    if reason:
        raise DamagedError(name, reason, REMEDY)
    return manifest


def is_vouched(manifest: Manifest) -> bool:
    """Return whether a manifest holds the hash of itself; those of earlier versions do not."""
    return _OWN_HASH in manifest


def picture_records(manifest: Manifest, kind: str) -> list[PictureRecord]:
    """Return the entries of the pictures of a kind, "backgrounds" or "foregrounds"."""
    return manifest["backgrounds"] if kind == "backgrounds" else manifest["foregrounds"]


def record_heights(records: list[PictureRecord], people: Sequence[Person]) -> None:
    """Write the heights of the subjects of foregrounds, in the same order, into their entries."""
    for record, person in zip(records, people, strict=True):
        record["height_m"] = person.height_m
        record["height_from"] = cast(Literal["csv", "assumed"], person.height_from)


def picture_names(manifest: Manifest) -> tuple[list[str], list[str]]:
    """Return the names of the backgrounds and of the foregrounds, in order."""
    backgrounds, foregrounds = manifest["backgrounds"], manifest["foregrounds"]
    return [picture["name"] for picture in backgrounds], [picture["name"] for picture in foregrounds]


def source_hashes(manifest: Manifest) -> dict[str, str]:
    """Return the SHA-256 of every file of the sources, by its name within the corpus; empty where none was recorded."""
    return {name: digest for name, digest in manifest.get("sha256", {}).items() if name != layout.PLAN}


def source_layouts(manifest: Manifest) -> dict[str, tuple[tuple[int, ...], str]]:
    """Return shape and dtype of every array of the sources, by name."""
    parameters, size = manifest["parameters"], manifest["parameters"]["size"]
    backgrounds, foregrounds = len(manifest["backgrounds"]), len(manifest["foregrounds"])
    layouts: dict[str, tuple[tuple[int, ...], str]] = {"foreground_shape": ((foregrounds, 2), "uint16")}
    if "figure_frame" in manifest:
        layouts["figure"] = (foregrounds, *manifest["figure_frame"], 4), "uint8"
        layouts["figure_shape"] = (foregrounds, 2), "uint16"
    for side in (size, parameters["label_size"]):
        height = parse_range(parameters["fg_height"])[1] * (side // size)
        layouts[f"background_{side}"] = (backgrounds, side, side, 3), "uint8"
        layouts[f"foreground_{side}"] = (foregrounds, height, side, 4), "uint8"
    return layouts


def parse_range(value: int | str) -> tuple[int, int]:
    """Return the least and the most of a range such as "1-3"; a number is both.

    >>> parse_range("80-160"), parse_range(3)
    ((80, 160), (3, 3))
    """
    least, _, most = str(value).partition("-")
    return int(least), int(most or least)


def view_of(record: PictureRecord, fov_deg: float | None = None) -> tuple[float, str]:
    """Return the field of view of a background and where it is from; `fov_deg` is that of those without their own."""
    if "fov_deg" in record and "fov_from" in record:
        return float(record["fov_deg"]), record["fov_from"]
    return (ASSUMED_FOV_DEG, ASSUMED) if fov_deg is None else (float(fov_deg), OPTION)


def people_slots(manifest: Manifest) -> int:
    """Return how many people the rows of a corpus have slots for, 0 where rows have no column `people`."""
    if manifest["format"] != SCENE_FORMAT:
        return 0
    return parse_range(manifest["parameters"].get("people", 1))[1]


def plan_hash(manifest: Manifest) -> str | None:
    """Return the SHA-256 of the plan, or None where none was recorded."""
    return manifest.get("sha256", {}).get(layout.PLAN)


def _find_other_hash(manifest: Manifest, content: bytes) -> str:
    """Say that the content differs from its own hash, or return an empty string."""
    if not is_vouched(manifest):
        # one bit can turn the name of the key into another: no version wrote other keys and no hash
        unknown = sorted(manifest.keys() - Manifest.__annotations__.keys())
        return f"damaged, holds {unknown[0]!r}, which no dsgen writes without {_OWN_HASH}" if unknown else ""
    head, _, tail = content.rpartition(manifest["manifest_sha256"].encode())
    if hashlib.sha256(head + tail).hexdigest() != manifest["manifest_sha256"]:
        return "changed or damaged, its content differs from the hash in its last line"
    return ""


def _find_contradiction(manifest: Manifest) -> str:
    """Say which values do not go together, or return an empty string."""
    parameters = cast(dict[str, Any], manifest["parameters"])
    size = parameters["size"]
    flips = 2 if parameters["flip"] else 1
    rows = len(manifest["backgrounds"]) * len(manifest["foregrounds"]) * flips * parameters["positions"]
    given = manifest["rows"]
    rules = (
        (
            set(manifest["splits"]) == set(SPLITS),
            f"splits {', '.join(manifest['splits'])}, expected {', '.join(SPLITS)}",
        ),
        (
            sum(manifest["splits"].values()) == given,
            f"{sum(manifest['splits'].values()):,} rows in splits of {given:,}",
        ),
        (
            given <= rows if parameters.get("skip_unused") or manifest["format"] != FORMAT else given == rows,
            f"{given:,} rows, expected {rows:,} as pictures and parameters say",
        ),
        (
            parameters["label_size"] % size == 0,
            f"label_size {parameters['label_size']}, expected a multiple of size {size}",
        ),
        (
            parse_range(parameters["fg_height"])[1] <= size,
            f"fg_height {parameters['fg_height']}, expected at most size {size}",
        ),
        (
            (manifest["format"] == SCENE_FORMAT) == ("figure_frame" in manifest),
            f"format {manifest['format']} and figure_frame do not go together",
        ),
        (
            (parameters.get("place") == "floor") == ("rooms_sha256" in manifest),
            "place and rooms_sha256 do not go together",
        ),
        (
            parameters["validation_share"] + parameters["test_share"] < 1,
            "validation_share and test_share are 1 or more together",
        ),
    )
    return next((f"damaged, {reason}" for holds, reason in rules if not holds), "")
