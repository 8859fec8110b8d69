"""Stage one: make a corpus from two folders of pictures, and draw its picture files.

The plan and the sources are the corpus; `corpus.json`, the manifest, is written last. Picture files are views of them
(see `dsgen.corpus.pictures`), and running the stage again draws the missing ones. Several machines may work in one
folder at the same time, each on a part: the first makes the corpus, then each draws its slice of the backgrounds.
"""

import logging
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, Self, cast

import numpy as np
import zarr

from dsgen import __version__
from dsgen.corpus import layout
from dsgen.corpus.corpus import Corpus
from dsgen.corpus.looks import BLENDS, FEATHER_RADII
from dsgen.corpus.manifest import (
    FORMAT,
    MAX_POSITIONS,
    MAX_SIZE,
    MIN_SIZE,
    SCENE_FORMAT,
    Manifest,
    PictureRecord,
    parse_manifest,
    parse_range,
    picture_records,
    record_heights,
    write_manifest,
)
from dsgen.corpus.pictures import DrawnRows, draw_missing_composites, draw_missing_sources
from dsgen.corpus.placement import FLOOR, PLACES, RANDOM, SPREADS
from dsgen.corpus.plan import (
    MAX_PEOPLE,
    SPLIT_BY,
    SPLITS,
    assign_splits,
    planned_splits,
    save_plan,
    split_counts,
    split_pairs,
)
from dsgen.corpus.planning import LEAVE_OUT, plan_rows
from dsgen.corpus.rooms import DepthSource, Estimator, Rooms, write_rooms
from dsgen.corpus.sources import SourceFolder, read_figures, write_sources
from dsgen.errors import (
    ConflictError,
    DamagedError,
    Difference,
    InvalidValueError,
    check_rules,
    find_differences,
    option,
)
from dsgen.io.assets import asset
from dsgen.io.atomic import final_name, write_folder
from dsgen.io.cameras import check_fov
from dsgen.io.filesystem import LocalFiles, hash_tree
from dsgen.io.images import read_picture
from dsgen.io.regular_files import regular
from dsgen.parallel.locks import LOCK
from dsgen.parallel.parts import Part, lock_setup, lock_stage
from dsgen.parallel.pool import worker_count

log = logging.getLogger("dsgen")


@dataclass(frozen=True)
class Parameters:
    """Everything a corpus depends on besides the pictures; the metadata of each field holds its help text.

    >>> Parameters(positions=2, size=96, label_size=192, fg_height=48).flip
    True
    """

    positions: int = field(
        default=20, metadata={"help": "Rows of every background, foreground and mirror image: so many positions."}
    )
    size: int = field(default=224, metadata={"help": "Side of the stored images, in pixels."})
    label_size: int = field(
        default=448, metadata={"help": "Side at which depth is labelled, in pixels; a multiple of --size."}
    )
    fg_height: int | str = field(
        default=110,
        metadata={
            "help": "Height of the foregrounds in the stored images, in pixels; or a range, such as 80-160, from which "
            "every row draws its own. On a floor the distance decides."
        },
    )
    flip: bool = field(default=True, metadata={"help": "Paste mirror images too."})
    seed: int = field(default=0, metadata={"help": "Seed of the positions and splits."})
    quality: int = field(default=95, metadata={"help": "JPEG quality of the picture files."})
    validation_share: float = field(
        default=0.1, metadata={"help": "Share of the backgrounds, and of the foregrounds, held out for validation."}
    )
    test_share: float = field(
        default=0.1, metadata={"help": "Share of the backgrounds, and of the foregrounds, held out for testing."}
    )

    split_by: str = field(
        default="both",
        metadata={
            "help": "What decides a row's split: both pictures (no picture is in two splits; rows whose pictures are "
            "in different splits are unused), or the background or the foreground alone (no row is unused)."
        },
    )
    skip_unused: bool = field(
        default=False, metadata={"help": "Leave out the rows that are in no split, instead of drawing them as unused."}
    )

    place: str = field(
        default=RANDOM,
        metadata={
            "help": "Where people are put: random, anywhere in the picture; or floor, on the floor of the room, as "
            "large as their distance makes them, behind what is nearer."
        },
    )
    people: int | str = field(
        default=1,
        metadata={
            "help": "People in a picture: a number, or a range such as 1-3. The further ones are of the same split; "
            "there are fewer where there is no room for them. A cut-out of two people counts as one."
        },
    )
    spread: str = field(
        default="area",
        metadata={
            "help": "How people are spread over a floor: area, evenly over its square metres, or pixels, evenly over "
            "its pixels."
        },
    )
    min_visible: float = field(
        default=0.5,
        metadata={
            "help": "Smallest share of a person on a floor that must be in view, 0 to 1; with less, another place is "
            "tried."
        },
    )
    truncate: bool = field(default=False, metadata={"help": "Let people on a floor stick out of the picture."})
    without_floor: str = field(
        default=RANDOM,
        metadata={
            "help": "What to do with backgrounds in which no floor is found: random (people anywhere), or leave-out "
            "(no rows)."
        },
    )
    tilt: float = field(default=0.0, metadata={"help": "Tilt people by up to this many degrees to either side."})
    height_jitter: float = field(
        default=0.0, metadata={"help": "Vary the height of people on a floor by up to this share, such as 0.05."}
    )

    shadow: float = field(
        default=0.0, metadata={"help": "Strength, 0 to 1, of the shadow on the floor where people stand; try 0.6."}
    )
    match_colours: float = field(
        default=0.0,
        metadata={"help": "How strongly, 0 to 1, people are recoloured to match their surroundings; try 0.3."},
    )
    feather: int = field(default=0, metadata={"help": "Soften people's edges over this many pixels, 0 to 3."})
    blend: str = field(
        default="alpha",
        metadata={"help": "How people are blended in: alpha, gaussian or poisson, or several, such as alpha,gaussian."},
    )

    @property
    def fg_heights(self) -> tuple[int, int]:
        """The least and the largest height of the foregrounds in the stored images, in pixels."""
        return parse_range(self.fg_height)

    @property
    def scenes(self) -> bool:
        """Whether people have sizes and places of their own, so that rows have the column `people`."""
        return any(getattr(self, name) != getattr(type(self), name) for name in _OF_SCENES) or (
            self.fg_heights[0] != self.fg_heights[1]
        )

    def as_record(self) -> dict[str, Any]:
        """Return the parameters as `corpus.json` records them: those of scenes only where there are any."""
        values = asdict(self)
        return values if self.scenes else {name: values[name] for name in values if name not in _OF_SCENES}

    @classmethod
    def recorded(cls, values: Mapping[str, Any]) -> Self:
        """Return the parameters that a `corpus.json` records; those that earlier versions lack have their defaults."""
        values = {name: getattr(cls, name) for name in _ADDED} | dict(values)
        wrong = sorted(values.keys() ^ {each.name for each in fields(cls)})
        if wrong:
            reason = f"parameters that are missing, or unknown to dsgen {__version__}: {', '.join(wrong)}"
            raise DamagedError(layout.CORPUS_JSON, reason, "use the dsgen that made the corpus")
        return cls(**values)

    def check(self) -> None:
        """Raise `InvalidValueError` for an invalid value, `SeveralErrors` for several."""
        sized = MIN_SIZE <= self.size <= MAX_SIZE  # what depends on a value is checked only if that value is right
        heights = _valid_range(self.fg_height, self.size if sized else MAX_SIZE)
        multiple = not sized or (self.size <= self.label_size <= 2 * MAX_SIZE and self.label_size % self.size == 0)
        shared = 0 <= self.validation_share < 1
        rest = 1 - self.validation_share if shared else 1
        shaded = 0 <= self.shadow <= 1
        rules = (
            (1 <= self.positions <= MAX_POSITIONS, "positions", f"1 to {MAX_POSITIONS}"),
            (sized, "size", f"{MIN_SIZE} to {MAX_SIZE} pixels"),
            (multiple, "label_size", f"a multiple of --size {self.size}, at most {2 * MAX_SIZE}"),
            (heights or not sized, "fg_height", f"1 to --size {self.size} pixels, or a range such as 80-160"),
            (1 <= self.quality <= 100, "quality", "1 to 100"),
            (shared, "validation_share", "0 to below 1"),
            (0 <= self.test_share < rest, "test_share", f"0 to below {rest:g}, 1 less --validation-share"),
            (self.split_by in SPLIT_BY, "split_by", "both, background or foreground"),
            (self.place in PLACES, "place", " or ".join(PLACES)),
            (_valid_range(self.people, MAX_PEOPLE), "people", f"1 to {MAX_PEOPLE}, or a range such as 1-3"),
            (self.spread in SPREADS, "spread", " or ".join(SPREADS)),
            (0 <= self.min_visible < 1, "min_visible", "a share of 0 to below 1"),
            (self.without_floor in WITHOUT_FLOOR, "without_floor", " or ".join(WITHOUT_FLOOR)),
            (0 <= self.tilt <= 180, "tilt", "0 to 180 degrees"),
            (0 <= self.height_jitter < 1, "height_jitter", "a share of 0 to below 1"),
            (shaded, "shadow", "0 to 1"),
            (
                not shaded or self.shadow == 0 or self.place == FLOOR,
                "shadow",
                "0 without --place floor",
            ),
            (0 <= self.match_colours <= 1, "match_colours", "0 to 1"),
            (self.feather in (0, *FEATHER_RADII), "feather", "0 to 3 pixels"),
            (set(self.blend.split(",")) <= set(BLENDS), "blend", f"one or several of {','.join(BLENDS)}"),
        )
        check_rules((holds, name, self._told(name), rule) for holds, name, rule in rules)

    def _told(self, name: str) -> str:
        """Write a value for an error, so that nobody is told they gave what they did not give."""
        value = getattr(self, name)
        return f"{value}, the default" if value == getattr(type(self), name) else str(value)


def _valid_range(value: int | str, most: int) -> bool:
    """Whether a value is a number, or a range such as "1-3", within 1 to `most`."""
    if not re.fullmatch(r"[1-9]\d{0,6}(-[1-9]\d{0,6})?", str(value)):
        return False
    low, high = parse_range(value)
    return low <= high <= most


WITHOUT_FLOOR = (RANDOM, LEAVE_OUT)
# parameters of corpora whose people have sizes and places of their own
_OF_SCENES = (
    "place",
    "people",
    "spread",
    "min_visible",
    "truncate",
    "without_floor",
    "tilt",
    "height_jitter",
    "shadow",
    "match_colours",
    "feather",
    "blend",
)
_ADDED = ("split_by", "skip_unused", *_OF_SCENES)  # parameters that earlier versions did not have
MAX_ROWS = 100_000_000  # a plan of 1.6 GB


@dataclass(frozen=True)
class CompositeResult:
    """What `composite` made; `drawn`, `already_there` and `left` count rows whose picture files are drawn.

    With a part, `drawn` and `already_there` count its rows, `left` those of all parts. All three are 0 without
    pictures. Where people stand on floors, `depth_from` counts backgrounds by where their depth is from, and
    `fov_assumed` those whose field of view had to be assumed.
    """

    corpus: Path
    rows: int
    backgrounds: int
    foregrounds: int
    drawn: int
    already_there: int
    left: int
    splits: dict[str, int]
    depth_from: dict[str, int] | None = None
    fov_assumed: int = 0


def composite(
    corpus: Path | str = Path("corpus"),
    backgrounds: Path | None = None,
    foregrounds: Path | None = None,
    parameters: Parameters | None = None,
    *,
    max_backgrounds: int | None = None,
    max_foregrounds: int | None = None,
    jobs: int | None = None,
    pictures: bool = True,
    part: Part | None = None,
    cluster: str | None = None,
    fov_deg: float | None = None,
    background_depths: Path | None = None,
    estimate_depth: Estimator | None = None,
) -> CompositeResult:
    """Make a corpus of composites with masks, or resume an unfinished one.

    `backgrounds` and `foregrounds` are folders of pictures; the bundled ones are used by default, and at most the first
    `max_backgrounds` and `max_foregrounds` pictures in order of name. `jobs` is the number of processes, by default one
    per core. Without `pictures` only plan and sources are made, which all later stages can work from.

    The backgrounds' fields of view are recorded where they are known, see `dsgen.io.cameras`; `fov_deg` is that of
    backgrounds that do not say theirs, along their width.

    With the parameter `place` "floor" the depth of the backgrounds is needed. It is read from `background_depths`, a
    folder with NAME.png (16 bits, millimetres) or NAME.npy (metres) for every background; that of bundled backgrounds
    is bundled. `estimate_depth` is called for others, such as `dsgen.estimate_depth_with()`.

    With `part` only that part of the backgrounds is drawn; parts may run at the same time in one folder on a shared
    file system. `cluster` is the address of a dask scheduler whose workers draw instead of local processes.

    Raises, before anything is written, `InvalidValueError` and `SeveralErrors` for parameters or pictures that cannot
    be used, `ConflictError` for a corpus that was made from others, `BusyError` while another dsgen works in the
    folder.

    >>> from dsgen.corpus.build import Parameters, composite
    >>> result = composite("corpus", parameters=Parameters(positions=3), max_backgrounds=2, max_foregrounds=5)
    >>> result.rows  # 2 backgrounds x 5 foregrounds x 2 flips x 3 positions
    60
    """
    corpus = Path(corpus)
    parameters = parameters or Parameters()
    parameters.check()
    check_fov(fov_deg)
    workers = worker_count(jobs)
    rooms = SourceFolder.read(backgrounds or asset("backgrounds"), "backgrounds", max_backgrounds, workers)
    people = SourceFolder.read(foregrounds or asset("foregrounds"), "foregrounds", max_foregrounds, workers)
    sources = (rooms.with_cameras(fov_deg, workers), people.with_people() if parameters.scenes else people)
    _check_existing(corpus, parameters, *sources)
    _check_rows(corpus, parameters, *sources)
    depths = None
    if parameters.place == FLOOR:
        depths = DepthSource(
            sources[0].files,
            sources[0].views(),
            lambda number: read_picture(sources[0].paths[number]),
            background_depths,
            estimate_depth,
        )
    elif background_depths is not None:
        raise InvalidValueError("--background-depths", "only used with --place floor", "leave it out")
    with lock_stage(corpus, "composite", part):
        with lock_setup(corpus, part):
            _check_existing(corpus, parameters, *sources)
            if not (corpus / layout.CORPUS_JSON).exists():
                _make(corpus, parameters, *sources, depths, workers)
            opened = Corpus(corpus)
            if background_depths is not None and opened.rooms is not None:
                opened.rooms.check_same_depth(background_depths)
            if parameters.place == FLOOR and opened.rooms is not None:
                opened.rooms.check_same_views(sources[0].views())
            elif sources[0].fields_of_view() and not _recorded_views(opened.manifest):
                log.warning(
                    "%s: does not record the fields of view of its backgrounds, though they are known; to have them, "
                    "make it again under another name",
                    corpus,
                )
            draw_missing_sources(opened)
        rows = draw_missing_composites(opened, workers, part, cluster) if pictures else DrawnRows()
    return CompositeResult(
        corpus=opened.path,
        rows=len(opened),
        backgrounds=len(opened.manifest["backgrounds"]),
        foregrounds=len(opened.manifest["foregrounds"]),
        drawn=rows.drawn,
        already_there=rows.already_there,
        left=rows.left,
        splits=opened.manifest["splits"],
        depth_from=None if opened.rooms is None else opened.rooms.depth_sources(),
        fov_assumed=0 if opened.rooms is None else opened.rooms.assumed_views(),
    )


def _check_existing(path: Path, parameters: Parameters, backgrounds: SourceFolder, foregrounds: SourceFolder) -> None:
    """Raise for a folder that is something else, and for a corpus made from other parameters or pictures."""
    if path.exists() and not path.is_dir():
        raise InvalidValueError(path, "a file, expected a folder or nothing", "choose another name for the corpus")
    if not (path / layout.CORPUS_JSON).exists():
        own = {layout.CORPUS_JSON, layout.SOURCES, layout.PLAN, layout.DEPTH, layout.ROOMS, *layout.FOLDERS}
        names = [p.name for p in path.iterdir() if not p.name.startswith(LOCK)] if path.is_dir() else []
        others = [name for name in names if final_name(name) not in own]
        if others:
            reason = f"holds other files ({', '.join(sorted(others)[:5])})"
            raise InvalidValueError(path, reason, "move them, or choose another name for the corpus")
        return
    manifest = parse_manifest(regular(path / layout.CORPUS_JSON).read_bytes(), path / layout.CORPUS_JSON)
    now, was = asdict(parameters), asdict(Parameters.recorded(manifest["parameters"]))
    differences = find_differences(
        {option(name): value for name, value in now.items()},
        {option(name): value for name, value in was.items()},
    )
    for kind, folder in (("backgrounds", backgrounds), ("foregrounds", foregrounds)):
        recorded = {entry["file"]: entry["sha256"] for entry in picture_records(manifest, kind)}
        given = {file.file: file.sha256 for file in folder.files}
        changed = sorted(name for name in recorded.keys() | given.keys() if recorded.get(name) != given.get(name))
        if changed:
            shown = ", ".join(changed[:3]) + (", ..." if len(changed) > 3 else "")
            differences.append(Difference(kind, len(given), f"{len(recorded)}; different: {shown}"))
    heights = {file.file: person.height_m for file, person in zip(foregrounds.files, foregrounds.people, strict=False)}
    for record in manifest["foregrounds"]:
        was_m, now_m = record.get("height_m"), heights.get(record["file"])
        if was_m is not None and now_m is not None and was_m != now_m:
            differences.append(Difference(f"height of {record['file']}", now_m, was_m))
    recorded_views, views = _recorded_views(manifest), {n: v for n, (v, _) in backgrounds.fields_of_view().items()}
    if recorded_views and recorded_views != views:  # corpora of earlier versions have none
        name = min(n for n in recorded_views.keys() | views.keys() if recorded_views.get(n) != views.get(n))
        differences.append(Difference(f"field of view of {name}", views.get(name), recorded_views.get(name)))
    if differences:
        remedy = "use the same, or another folder for the corpus, or remove this one"
        raise ConflictError(path, "made with other inputs", remedy, differences, "corpus")


def _recorded_views(manifest: Manifest) -> dict[str, float]:
    """Return the fields of view that a manifest records, by file."""
    return {entry["file"]: entry["fov_deg"] for entry in manifest["backgrounds"] if "fov_deg" in entry}


def count_rows(parameters: Parameters, backgrounds: list[str], foregrounds: list[str]) -> dict[str, int]:
    """Return the number of rows of every split that a corpus of these pictures, by name, has; no row is drawn."""
    shares = parameters.validation_share, parameters.test_share
    pairs = split_pairs(backgrounds, foregrounds, parameters.seed, *shares, parameters.split_by)
    return planned_splits(pairs, parameters.positions * (2 if parameters.flip else 1), parameters.skip_unused)


def _check_rows(path: Path, parameters: Parameters, backgrounds: SourceFolder, foregrounds: SourceFolder) -> None:
    """Refuse more rows than a plan can have, and none; warn if there is none to train on or to validate with."""
    names = backgrounds.names, foregrounds.names
    counts = count_rows(parameters, *names)
    rows = sum(counts.values())
    pictures = f"{len(names[0]):,} backgrounds x {len(names[1]):,} foregrounds"
    if rows > MAX_ROWS:
        each = f"{' x 2 (mirrored too)' if parameters.flip else ''} x {parameters.positions:,} positions"
        reason = f"{pictures}{each} make {rows:,} rows, expected at most {MAX_ROWS:,}"
        raise InvalidValueError("--positions", reason, "use fewer positions or pictures")
    lacking = [
        purpose
        for split, purpose, wanted in (
            ("train", "train on", True),
            ("validation", "validate with", parameters.validation_share > 0),
        )
        if wanted and not counts[split]
    ]
    if not lacking:
        return
    others = [each for each in SPLIT_BY if all(_counts_by(each, parameters, names)[s] for s in ("train", "validation"))]
    remedy = "use more pictures, or other values of --validation-share and --test-share"
    if others:
        remedy = f"use more pictures, or --split-by {' or '.join(others)}"
    if not rows:
        raise InvalidValueError("--skip-unused", f"{pictures} have no row in any split", remedy)
    log.warning(
        "%s: no row to %s (%s); %s",
        path,
        " or to ".join(lacking),
        ", ".join(f"{count:,} {name}" for name, count in counts.items()),
        remedy,
    )


def _counts_by(split_by: str, parameters: Parameters, names: tuple[list[str], list[str]]) -> dict[str, int]:
    return count_rows(replace(parameters, split_by=split_by), *names)


def _make(
    path: Path,
    parameters: Parameters,
    backgrounds: SourceFolder,
    foregrounds: SourceFolder,
    depths: DepthSource | None,
    workers: int,
) -> None:
    """Write the sources, the rooms if people stand in them, the plan, and last the manifest."""
    scale = parameters.label_size // parameters.size
    with write_folder(path / layout.SOURCES) as unfinished:
        write_sources(
            unfinished,
            backgrounds.paths,
            foregrounds.paths,
            size=parameters.size,
            scales=tuple(sorted({1, scale})),
            fg_height=parameters.fg_heights[1],
            errors=[*backgrounds.name_errors(), *foregrounds.name_errors()],
            workers=workers,
            figures=parameters.scenes,
        )
    rooms = None
    if depths is not None:
        sizes = sorted({parameters.size, parameters.label_size})
        write_rooms(path / layout.ROOMS, backgrounds.names, backgrounds.views(), sizes, depths.read)
        rooms = Rooms(path / layout.ROOMS, len(backgrounds.files))
    records = {
        "backgrounds": _records(backgrounds, "background", parameters),
        "foregrounds": _records(foregrounds, "foreground", parameters),
    }
    sources = zarr.open_group(path / layout.SOURCES, mode="r")
    shapes = cast(zarr.Array, sources["foreground_shape"])
    plan = plan_rows(
        asdict(parameters),
        records["backgrounds"],
        records["foregrounds"],
        np.asarray(shapes[:], np.int64),
        read_figures(sources) if parameters.scenes else None,
        rooms,
    )
    save_plan(path / layout.PLAN, plan)
    manifest = {
        "format": SCENE_FORMAT if parameters.scenes else FORMAT,
        "dsgen": __version__,
        "rows": len(plan),
        "splits": split_counts(plan),
        "parameters": parameters.as_record(),
        "sha256": _hash_corpus(path, workers),
    }
    if rooms is not None:
        manifest["rooms_sha256"] = rooms.sha256
    if parameters.scenes:
        manifest["figure_frame"] = list(cast(zarr.Array, sources["figure"]).shape[1:3])
    write_manifest(path / layout.CORPUS_JSON, cast(Manifest, manifest | records))


def _records(folder: SourceFolder, kind: str, parameters: Parameters) -> list[PictureRecord]:
    """Return the manifest's entries of a source folder: name, file, hash and split of every picture."""
    shares = parameters.validation_share, parameters.test_share
    splits = assign_splits(folder.names, kind, parameters.seed, *shares)
    records = [
        PictureRecord(name=file.name, file=file.file, sha256=file.sha256, split=SPLITS[split])
        for file, split in zip(folder.files, splits, strict=True)
    ]
    views = folder.fields_of_view()
    for record, file in zip(records, folder.files, strict=True):
        if file.label is not None:
            record["class"] = file.label
        if record["file"] in views:
            record["fov_deg"], source = views[record["file"]]
            record["fov_from"] = cast(Literal["csv", "exif", "option"], source)
    if folder.people:
        record_heights(records, folder.people)
    return records


def _hash_corpus(path: Path, workers: int) -> dict[str, str]:
    """Return the SHA-256 of the plan and of every file of the sources, by name within the corpus, in order."""
    sources = LocalFiles(path / layout.SOURCES).sizes()
    sizes = {f"{layout.SOURCES}/{name}": size for name, size in sources.items()}
    sizes[layout.PLAN] = (path / layout.PLAN).stat().st_size
    return {name: str(digest) for name, digest in hash_tree(LocalFiles(path), dict(sorted(sizes.items())), workers)}
