"""Stage one: make a corpus from two folders of pictures, and draw its picture files.

The plan and the sources are the corpus; `corpus.json`, the manifest, is written last. Picture files are views of them
(see `dsgen.corpus.pictures`), and running the stage again draws the missing ones. Several machines may work in one
folder at the same time, each on a part: the first makes the corpus, then each draws its slice of the backgrounds.
"""

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, Self, cast

from dsgen import __version__
from dsgen.corpus import layout
from dsgen.corpus.corpus import Corpus
from dsgen.corpus.manifest import (
    FORMAT,
    MAX_POSITIONS,
    MAX_SIZE,
    MIN_SIZE,
    Manifest,
    ParameterRecord,
    PictureRecord,
    parse_manifest,
    picture_records,
    write_manifest,
)
from dsgen.corpus.pictures import DrawnRows, draw_missing_composites, draw_missing_sources
from dsgen.corpus.plan import (
    SPLIT_BY,
    SPLITS,
    assign_splits,
    make_plan,
    planned_splits,
    save_plan,
    split_counts,
    split_pairs,
)
from dsgen.corpus.sources import SourceFolder, write_sources
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

    positions: int = field(default=20, metadata={"help": "Positions per background, foreground and flip."})
    size: int = field(default=224, metadata={"help": "Side of the stored images, in pixels."})
    label_size: int = field(
        default=448, metadata={"help": "Side at which depth is labelled, in pixels; a multiple of --size."}
    )
    fg_height: int = field(default=110, metadata={"help": "Height of the foregrounds in the stored images, in pixels."})
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
        multiple = not sized or (self.size <= self.label_size <= 2 * MAX_SIZE and self.label_size % self.size == 0)
        shared = 0 <= self.validation_share < 1
        rest = 1 - self.validation_share if shared else 1
        rules = (
            (1 <= self.positions <= MAX_POSITIONS, "positions", f"1 to {MAX_POSITIONS}"),
            (sized, "size", f"{MIN_SIZE} to {MAX_SIZE} pixels"),
            (multiple, "label_size", f"a multiple of --size {self.size}, at most {2 * MAX_SIZE}"),
            (1 <= self.fg_height <= self.size or not sized, "fg_height", f"1 to --size {self.size} pixels"),
            (1 <= self.quality <= 100, "quality", "1 to 100"),
            (shared, "validation_share", "0 to below 1"),
            (0 <= self.test_share < rest, "test_share", f"0 to below {rest:g}, 1 less --validation-share"),
            (self.split_by in SPLIT_BY, "split_by", "both, background or foreground"),
        )
        check_rules((holds, name, self._told(name), rule) for holds, name, rule in rules)

    def _told(self, name: str) -> str:
        """Write a value for an error, so that nobody is told they gave what they did not give."""
        value = getattr(self, name)
        return f"{value}, the default" if value == getattr(type(self), name) else str(value)


_ADDED = ("split_by", "skip_unused")  # parameters that earlier versions did not have
MAX_ROWS = 100_000_000  # a plan of 1.6 GB


@dataclass(frozen=True)
class CompositeResult:
    """What `composite` made; `drawn`, `already_there` and `left` count rows whose picture files are drawn.

    With a part, `drawn` and `already_there` count its rows, `left` those of all parts. All three are 0 without
    pictures.
    """

    corpus: Path
    rows: int
    backgrounds: int
    foregrounds: int
    drawn: int
    already_there: int
    left: int
    splits: dict[str, int]


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
) -> CompositeResult:
    """Make a corpus of composites with masks, or resume an unfinished one.

    `backgrounds` and `foregrounds` are folders of pictures; the bundled ones are used by default, and at most the first
    `max_backgrounds` and `max_foregrounds` pictures in order of name. `jobs` is the number of processes, by default one
    per core. Without `pictures` only plan and sources are made, which all later stages can work from.

    The backgrounds' fields of view are recorded where they are known, see `dsgen.io.cameras`; `fov_deg` is that of
    backgrounds that do not say theirs, along their width.

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
    sources = (
        rooms.with_cameras(fov_deg, workers),
        SourceFolder.read(foregrounds or asset("foregrounds"), "foregrounds", max_foregrounds, workers),
    )
    _check_existing(corpus, parameters, *sources)
    _check_rows(corpus, parameters, *sources)
    with lock_stage(corpus, "composite", part):
        with lock_setup(corpus, part):
            _check_existing(corpus, parameters, *sources)
            if not (corpus / layout.CORPUS_JSON).exists():
                _make(corpus, parameters, *sources, workers)
            opened = Corpus(corpus)
            if sources[0].fields_of_view() and not _recorded_views(opened.manifest):
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
    )


def _check_existing(path: Path, parameters: Parameters, backgrounds: SourceFolder, foregrounds: SourceFolder) -> None:
    """Raise for a folder that is something else, and for a corpus made from other parameters or pictures."""
    if path.exists() and not path.is_dir():
        raise InvalidValueError(path, "a file, expected a folder or nothing", "choose another name for the corpus")
    if not (path / layout.CORPUS_JSON).exists():
        own = {layout.CORPUS_JSON, layout.SOURCES, layout.PLAN, layout.DEPTH, *layout.FOLDERS}
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
    path: Path, parameters: Parameters, backgrounds: SourceFolder, foregrounds: SourceFolder, workers: int
) -> None:
    """Write the sources, the plan, and last the manifest."""
    with write_folder(path / layout.SOURCES) as unfinished:
        shapes = write_sources(
            unfinished,
            backgrounds.paths,
            foregrounds.paths,
            size=parameters.size,
            scales=tuple(sorted({1, parameters.label_size // parameters.size})),
            fg_height=parameters.fg_height,
            errors=[*backgrounds.name_errors(), *foregrounds.name_errors()],
            workers=workers,
        )
    plan = make_plan(
        backgrounds.names,
        foregrounds.names,
        shapes,
        size=parameters.size,
        positions=parameters.positions,
        flip=parameters.flip,
        seed=parameters.seed,
        validation_share=parameters.validation_share,
        test_share=parameters.test_share,
        split_by=parameters.split_by,
        skip_unused=parameters.skip_unused,
    )
    save_plan(path / layout.PLAN, plan)
    write_manifest(
        path / layout.CORPUS_JSON,
        {
            "format": FORMAT,
            "dsgen": __version__,
            "rows": len(plan),
            "splits": split_counts(plan),
            "parameters": cast(ParameterRecord, asdict(parameters)),
            "sha256": _hash_corpus(path, workers),
            "backgrounds": _records(backgrounds, "background", parameters),
            "foregrounds": _records(foregrounds, "foreground", parameters),
        },
    )


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
    return records


def _hash_corpus(path: Path, workers: int) -> dict[str, str]:
    """Return the SHA-256 of the plan and of every file of the sources, by name within the corpus, in order."""
    sources = LocalFiles(path / layout.SOURCES).sizes()
    sizes = {f"{layout.SOURCES}/{name}": size for name, size in sources.items()}
    sizes[layout.PLAN] = (path / layout.PLAN).stat().st_size
    return {name: str(digest) for name, digest in hash_tree(LocalFiles(path), dict(sorted(sizes.items())), workers)}
