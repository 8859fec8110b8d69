"""Composed depth: labels that follow from what a picture is composed of, instead of a network's estimate.

The depth of a composite is that of its background, and where a person is seen (the mask) the distance they stand at. A
person at a random place stands nowhere; their depth is what their height implies,

    Z = f H / h

with the focal length f and the drawn height h in pixels and H metres, but always before what they cover: at most 0.95
times the 10th percentile of the room's known depth there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from dsgen.corpus import layout
from dsgen.corpus.corpus import Corpus, open_cached
from dsgen.corpus.depth_views import draw_missing_views
from dsgen.corpus.figures import UNIT
from dsgen.corpus.labels import (
    COMPOSED,
    EXACT,
    METRIC,
    LabelAttributes,
    count_rows,
    create_or_resume_labels,
    resume_labels,
)
from dsgen.corpus.manifest import PictureRecord, view_of
from dsgen.corpus.render import Pictures
from dsgen.corpus.rooms import DepthSource, Estimator, write_rooms
from dsgen.corpus.sources import SourceFile, SourceFolder, hash_files
from dsgen.errors import ConflictError, Difference, InvalidValueError
from dsgen.io.assets import asset
from dsgen.io.cameras import check_fov
from dsgen.io.folders import list_pictures
from dsgen.io.people import STANDING_M
from dsgen.parallel.parts import Part, lock_setup, lock_stage
from dsgen.parallel.pool import run_blocks, worker_count

_MOST_MM = 65534
_DRAWN_ROWS = 20  # at once


@dataclass(frozen=True)
class ComposedResult:
    """What a call of `label_composed` did; counts are those of rows, as in `LabelResult` of the network's labels.

    Where a network has labelled the corpus, `beside` is its name. Its labels stay, and composed depth is only known, to
    be drawn when it is asked for.
    """

    corpus: Path
    rows: int
    labelled: int
    already_there: int
    left: int
    beside: str | None = None
    model: str = COMPOSED
    kind: str = METRIC


def label_composed(
    path: Path = Path("corpus"),
    *,
    background_depths: Path | None = None,
    estimate_depth: Estimator | None = None,
    fov_deg: float | None = None,
    pictures: bool = False,
    jobs: int | None = None,
    part: Part | None = None,
    cluster: str | None = None,
) -> ComposedResult:
    """Label every row of a corpus with its composed depth.

    Depth of backgrounds that is not known yet is read from the folder `background_depths`, is bundled, or comes from
    `estimate_depth`; `fov_deg` is the field of view of backgrounds that do not say theirs. The other arguments are
    those of `label_corpus`.

    Labels of a network stay as they are; composed depth is then drawn when it is compared or packed.

    Raises `ConflictError` for a corpus composed with other depth or fields of view, and `DsgenError` as `DepthSource`.

    >>> from dsgen import label_composed
    >>> label_composed(Path("corpus")).labelled  # doctest: +SKIP
    8640
    """
    check_fov(fov_deg)
    corpus, workers = Corpus(path), worker_count(jobs)
    if pictures and part is not None:
        raise InvalidValueError("--pictures", "not with --part", "run dsgen depth --pictures once all parts have ended")
    with lock_stage(corpus.path, "depth", part):
        with lock_setup(corpus.path, part):
            corpus = _know_rooms(corpus, background_depths, estimate_depth, fov_deg, workers)
            attributes = _describe(corpus)
            if corpus.labels is not None and corpus.labels.attributes["model"] != COMPOSED:
                beside = str(corpus.labels.attributes["model"])
                return ComposedResult(path, len(corpus), 0, len(corpus), 0, beside)
            labels = create_or_resume_labels(
                corpus.path / layout.DEPTH, len(corpus), corpus.size, corpus.positions, attributes
            )
        missing, done = labels.find_work(part)
        run_blocks(
            compose_block,
            [(str(corpus.path.absolute()), *block, corpus.sha256) for block in missing],
            jobs=workers,
            title="depth",
            total=done + count_rows(missing),
            done=done,
            cluster=cluster,
            shared=(corpus.path,),
        )
        with lock_setup(corpus.path, part):
            left = labels.finish()
        if pictures:
            draw_missing_views(corpus, workers, cluster)
    return ComposedResult(path, len(corpus), count_rows(missing), done, left)


def compose_block(path: str, first: int, last: int, corpus_sha256: str) -> int:
    """Write the composed labels of a block of rows; return how many rows it has."""
    corpus = open_cached(path, corpus_sha256)
    labels = resume_labels(corpus.path / layout.DEPTH, len(corpus), _describe(corpus))
    labels.write_block(first, compose_rows(corpus, first, last))
    return last - first


def compose_rows(corpus: Corpus, first: int, last: int) -> np.ndarray:
    """Return the composed depth (n,S,S) u2 of rows `first` to `last`, exclusive, drawing a few at a time."""
    depth = np.empty((last - first, corpus.size, corpus.size), np.uint16)
    for start in range(first, last, _DRAWN_ROWS):
        stop = min(start + _DRAWN_ROWS, last)
        depth[start - first : stop - first] = composed_depth(corpus, corpus.plan[start:stop])
    return depth


def composed_depth(corpus: Corpus, rows: np.ndarray) -> np.ndarray:
    """Return the composed depth (n,S,S) u2 in millimetres, 0 = not known, of rows of a corpus with rooms."""
    if corpus.people:
        return corpus.draw(rows, ("depth",), depths=person_depths(corpus, rows))["depth"]
    _, mask = corpus.render(rows)
    return compose(room_depths(corpus, rows), mask, implied_depths(corpus, rows, mask))


def compose(rooms: Sequence[np.ndarray], masks: Pictures, depths: np.ndarray, out: Pictures | None = None) -> Any:
    """Return the depth (n,S,S) u2 of rows with one person: `depths` (n,) u2 within the mask, else that of the room.

    It is drawn into `out`, if that is passed: an array or, as `rooms` and `masks` may be, a list with one for each row.
    """
    drawn = np.empty((len(rooms), *rooms[0].shape), np.uint16) if out is None else out
    for into, room, mask, depth in zip(drawn, rooms, masks, depths, strict=True):
        into[...] = room
        left, top, width, height = cv2.boundingRect(mask)
        window = slice(top, top + height), slice(left, left + width)
        np.copyto(into[window], depth, where=mask[window] > 0)
    return drawn


def find_boxes(instance: np.ndarray, slots: int) -> np.ndarray:
    """Return the boxes (n,slots,4) u2 of what is seen of people: left, top, width and height in pixels, or 0.

    `instance` is (n,S,S) u1, 1 + the slot where a person is seen; with one slot a mask will do.
    """
    boxes = np.zeros((len(instance), slots, 4), np.uint16)
    for picture, row in zip(instance, boxes, strict=True):
        for slot in range(slots):
            row[slot] = cv2.boundingRect(picture if slots == 1 else (picture == slot + 1).view(np.uint8))
    return boxes


def room_depths(corpus: Corpus, rows: np.ndarray) -> list[np.ndarray]:
    """Return the depth (S,S) u2 of the background of every row; rows with the same one share an array."""
    depths = {number: _room_depth(corpus, number) for number in np.unique(rows["background"]).tolist()}
    return [depths[number] for number in rows["background"].tolist()]


def person_depths(corpus: Corpus, rows: np.ndarray) -> np.ndarray:
    """Return the depth label (n, slots) u2 in millimetres of the column `people` of rows; 0 = nobody.

    It is the distance of those who stand on a floor, and what their height implies of others.
    """
    people = rows["people"]
    depths = np.where(people["height"] > 0, people["distance"], np.uint16(0))
    floating = (people["height"] > 0) & (people["distance"] == 0)
    which = np.flatnonzero(floating.any(axis=1))
    if len(which):
        instance = corpus.draw(rows[which], ("instance",))["instance"]
        for i, shown in zip(which.tolist(), instance, strict=True):
            for slot in np.flatnonzero(floating[i]).tolist():
                person = people[i, slot]
                height_px = int(person["height"]) / UNIT
                seen = shown == slot + 1
                number = int(rows["background"][i])
                depths[i, slot] = _implied(corpus, number, int(person["foreground"]), height_px, seen)
    return depths


def implied_depths(corpus: Corpus, rows: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the depth label (n,) u2 in mm of rows without `people`, whose foregrounds fill masks (n,S,S)."""
    depths = np.empty(len(rows), np.uint16)
    for i, row in enumerate(rows):
        number, foreground = int(row["background"]), int(row["foreground"])
        height_px = float(corpus.foreground(foreground).shape[0])
        depths[i] = _implied(corpus, number, foreground, height_px, mask[i] > 0)
    return depths


def _implied(corpus: Corpus, background: int, foreground: int, height_px: float, seen: np.ndarray) -> int:
    """Return the depth in millimetres of a person at a random place, `seen` (S,S) bool."""
    assert corpus.rooms is not None
    focal = corpus.rooms.focal_px(background, corpus.size)
    pinhole = min(_MOST_MM, round(1000 * focal * corpus.heights_m[foreground] / height_px))
    covered = _room_depth(corpus, background)[seen]
    covered = covered[covered > 0]
    if not len(covered):
        return max(1, pinhole)
    tenth = (len(covered) - 1) // 10
    return max(1, min(pinhole, int(np.partition(covered, tenth)[tenth]) * 95 // 100))


def _room_depth(corpus: Corpus, background: int) -> np.ndarray:
    depth = corpus.room(background).depth
    assert depth is not None
    return depth


def _describe(corpus: Corpus) -> LabelAttributes:
    """Return what composed labels depend on: the rooms, in place of a network."""
    assert corpus.rooms is not None
    return LabelAttributes(
        model=COMPOSED,
        weights_sha256=corpus.rooms.sha256,
        kind=METRIC,
        metric_reference=None,
        label_size=corpus.label_size,
        drawn_size=corpus.size,
        network_input=(corpus.size, corpus.size),
        precision=EXACT,
        flip_checked=False,
        flip_averaged=False,
        units="mm",
    )


def describe_composed(corpus: Corpus) -> dict[str, object]:
    """Return what a store says of composed depth that was not written as labels before."""
    from dsgen import __version__

    left_out = ("units", "fov_deg")
    stored = _describe(corpus).as_dict() | {"dsgen": __version__}
    return {name: value for name, value in stored.items() if name not in left_out}


def _know_rooms(
    corpus: Corpus, folder: Path | None, estimate: Estimator | None, fov_deg: float | None, workers: int
) -> Corpus:
    """Return the corpus with what is known of its rooms: make it if it is not there, and compare it if it is."""
    if corpus.rooms is not None:
        if folder is not None:
            corpus.rooms.check_same_depth(folder)
        if fov_deg is not None:
            _check_same_views(corpus, fov_deg)
        return corpus
    views = [view_of(record, fov_deg) for record in corpus.manifest["backgrounds"]]
    write_composed_rooms(corpus, corpus.path / layout.ROOMS, views, folder, estimate, workers)
    return Corpus(corpus.path)


def _check_same_views(corpus: Corpus, fov_deg: float) -> None:
    """Raise `ConflictError` unless the backgrounds without a field of view of their own have this one."""
    assert corpus.rooms is not None
    differences = []
    for record, room in zip(corpus.manifest["backgrounds"], corpus.rooms.records, strict=True):
        now, _ = view_of(record, fov_deg)
        if now != room["fov_deg"]:
            was = f"{room['fov_deg']:g} ({room['fov_from']})"
            differences.append(Difference(f"field of view of {room['name']}", f"{now:g}", was))
    if differences:
        remedy = f"leave out --fov, or remove {corpus.rooms.path} if people do not stand in it"
        raise ConflictError(corpus.path, "its backgrounds have other fields of view", remedy, differences[:3], "corpus")


def write_composed_rooms(
    corpus: Corpus,
    path: Path,
    views: Sequence[tuple[float, str]],
    folder: Path | None,
    estimate: Estimator | None,
    workers: int,
) -> None:
    """Write what is known of the rooms of a corpus whose people do not stand in them to `path`.

    `views` are the backgrounds' fields of view and where these are from. Raises as `DepthSource`.
    """
    records = corpus.manifest["backgrounds"]
    files = [SourceFile(record["name"], record["file"], record["sha256"]) for record in records]
    source = DepthSource(
        files, views, lambda number: corpus.background(number, corpus.label_size), folder, estimate, square=True
    )
    names = [record["name"] for record in records]
    heights_m = None if corpus.people else _bundled_heights(corpus.manifest["foregrounds"], workers)
    write_rooms(path, names, views, sorted({corpus.size, corpus.label_size}), source.read, heights_m)


def _bundled_heights(records: Sequence[PictureRecord], workers: int) -> list[float]:
    """Return the heights of foregrounds: of those that are bundled what is known, of others that of who stands."""
    folder = asset("foregrounds")
    paths = list_pictures(folder, "foregrounds")
    bundled = SourceFolder(folder, paths, hash_files(folder, paths, workers)).with_people()
    known = {file.sha256: person.height_m for file, person in zip(bundled.files, bundled.people, strict=True)}
    return [known.get(record["sha256"], STANDING_M) for record in records]
