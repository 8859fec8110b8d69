"""Check a corpus: its manifest, its plan and its sources; then its pictures and its labels.

The plan is computed again from the manifest, which records its hash and those of the sources' files.
"""

import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import numpy as np

from dsgen.corpus import layout
from dsgen.corpus.build import MAX_ROWS, Parameters, count_rows
from dsgen.corpus.corpus import Corpus
from dsgen.corpus.manifest import (
    SCENE_FORMAT,
    Manifest,
    is_vouched,
    parse_manifest,
    people_slots,
    picture_names,
    plan_hash,
    source_hashes,
    source_layouts,
)
from dsgen.corpus.placement import RANDOM
from dsgen.corpus.plan import encode_plan, plan_dtype, split_counts
from dsgen.corpus.planning import plan_rows
from dsgen.corpus.rooms import Rooms
from dsgen.corpus.sources import read_figures
from dsgen.corpus.vouched import named_damage, open_array, open_vouched
from dsgen.errors import DamagedError, DsgenError, is_system_error, reason_of
from dsgen.integrity.check_labels import check_labels
from dsgen.integrity.check_pictures import all_unlike, check_pictures
from dsgen.integrity.findings import EXTRA, FOREIGN, KEPT, MISSING, ReportBuilder, classify_extra, damage_of
from dsgen.io.atomic import final_name
from dsgen.io.filesystem import LocalFiles, hash_tree
from dsgen.io.json_files import encode_json
from dsgen.io.regular_files import regular
from dsgen.parallel.locks import LOCK

_SHAPES = "foreground_shape"
_HEADER_BYTES = 4096  # more than the header of a plan has


def check_corpus(path: Path, fast: bool, jobs: int, report: ReportBuilder) -> None:
    """Check a corpus and add the findings to `report`; `fast` looks at names and sizes of pictures and labels only."""
    manifest = read_manifest(path, report)
    check_top(path, report)
    if manifest is None:
        note = f"nothing else was checked, since {layout.CORPUS_JSON} cannot be read"
        if not (path / layout.CORPUS_JSON).exists():
            note += ": it is lost, or the corpus is unfinished; the same dsgen composite writes it"
        report.notes.append(note)
        return
    before = len(report.findings)
    check_sources(path, manifest, jobs, report)
    check_rooms(path, manifest, report)
    check_plan(path, manifest, report)
    damaged = {finding.component for finding in report.findings[before:] if finding.what not in KEPT}
    if damaged - {layout.SOURCES, layout.ROOMS}:
        report.notes.append("pictures and labels were not checked, since the plan is damaged")
        return
    try:
        corpus = Corpus(path)
    except DsgenError as error:  # a plan without a recorded hash
        report.find(layout.PLAN, f"damaged ({error.reason})")
        return
    if damaged:
        what = "sources" if layout.SOURCES in damaged else "rooms"
        report.notes.append(f"pictures were not compared with the plan, since the {what} are damaged")
    check_pictures(corpus, fast or bool(damaged), jobs, report)
    if fast:
        report.notes.append("pictures not compared with the plan, labels not decoded (--fast)")
    elif all_unlike(corpus, report.findings):
        report.notes.append(
            f"every composite differs from what the plan draws: {layout.CORPUS_JSON} records another quality than they "
            "were drawn with, or another OpenCV drew them"
        )
    check_labels(corpus, fast, jobs, report)


def read_manifest(path: Path, report: ReportBuilder) -> Manifest | None:
    """Return what `corpus.json` says, or None, with a finding, where it is missing, damaged or changed."""
    report.files += 1
    try:
        content = regular(path / layout.CORPUS_JSON).read_bytes()
    except FileNotFoundError:
        report.find(layout.CORPUS_JSON, MISSING)
        return None
    except OSError as error:
        report.find(layout.CORPUS_JSON, f"cannot be read ({reason_of(error)})")
        return None
    report.bytes += len(content)
    try:
        manifest = parse_manifest(content, layout.CORPUS_JSON)
        check_counts(manifest)
        if not is_vouched(manifest):
            report.notes.append(
                f"{layout.CORPUS_JSON} of an earlier dsgen has no hash of itself: a changed name may go unnoticed"
            )
            if content != encode_json(manifest):
                raise DamagedError(layout.CORPUS_JSON, "formatted differently than dsgen writes it")
    except DsgenError as error:
        report.find(layout.CORPUS_JSON, damage_of(error, layout.CORPUS_JSON))
        return None
    return manifest


def check_counts(manifest: Manifest) -> None:
    """Raise `DsgenError` unless the parameters are valid and make as many rows of each split as are recorded."""
    parameters = Parameters.recorded(cast(dict[str, Any], manifest["parameters"]))
    parameters.check()
    counts = count_rows(parameters, *picture_names(manifest))
    rows = sum(counts.values())
    if rows > MAX_ROWS:
        raise DamagedError(layout.CORPUS_JSON, f"its parameters make {rows:,} rows, expected at most {MAX_ROWS:,}")
    if parameters.without_floor != RANDOM and manifest["rows"] <= rows:
        return  # which rows there are depends on the rooms: the plan is computed again anyway
    if (manifest["rows"], manifest["splits"]) != (rows, counts):
        raise DamagedError(layout.CORPUS_JSON, f"its row counts are not those of its parameters, {rows:,} rows")


def check_top(path: Path, report: ReportBuilder) -> None:
    """Find what lies in the folder of a corpus and is not part of it."""
    known = {layout.CORPUS_JSON, layout.PLAN, layout.SOURCES, layout.ROOMS, layout.DEPTH, *layout.FOLDERS}
    for entry in sorted(path.iterdir(), key=lambda entry: entry.name):
        if entry.name not in known and not entry.name.startswith(LOCK):
            report.find(entry.name, EXTRA if final_name(entry.name) in known else FOREIGN)


def expected_plan(path: Path, manifest: Manifest) -> np.ndarray:
    """Compute the plan again, from the manifest, the foregrounds' shapes, and the rooms where people stand in them."""
    options = asdict(Parameters.recorded(cast(dict[str, Any], manifest["parameters"])))
    shapes = read_shapes(path, manifest)
    figures = rooms = None
    if manifest["format"] == SCENE_FORMAT:
        hashes = {name.partition("/")[2]: digest for name, digest in source_hashes(manifest).items()}
        figures = read_figures(open_vouched(path / layout.SOURCES, hashes, f"run dsgen repair {path}"))
    if "rooms_sha256" in manifest:
        rooms = Rooms(path / layout.ROOMS, len(manifest["backgrounds"]), manifest["rooms_sha256"])
    return plan_rows(options, manifest["backgrounds"], manifest["foregrounds"], shapes, figures, rooms, quiet=True)


def check_rooms(path: Path, manifest: Manifest, report: ReportBuilder) -> None:
    """Compare what is known of the backgrounds as rooms with its hashes, where there is any."""
    recorded, folder = manifest.get("rooms_sha256"), path / layout.ROOMS
    if recorded is None and not folder.exists():
        return
    if not folder.is_dir():
        report.find(layout.ROOMS, MISSING)
        return
    sizes = LocalFiles(folder).sizes()
    report.files += len(sizes)
    report.bytes += sum(sizes.values())
    try:
        rooms = Rooms(folder, len(manifest["backgrounds"]), recorded)
    except DsgenError as error:
        report.find(_relative(error, path), error.reason)
        return
    for name in sorted(rooms.files.keys() | sizes.keys()):
        if name not in sizes:
            report.find(f"{layout.ROOMS}/{name}", MISSING)
        elif name not in rooms.files:
            if name != "zarr.json":
                report.find(f"{layout.ROOMS}/{name}", classify_extra(name))
        elif hashlib.sha256((folder / name).read_bytes()).hexdigest() != rooms.files[name]:
            report.find(f"{layout.ROOMS}/{name}", _other_hash(sizes[name]))


def check_plan(path: Path, manifest: Manifest, report: ReportBuilder) -> None:
    """Compare the plan with its hash, and with one computed from the manifest and the foregrounds' shapes."""
    parameters = manifest["parameters"]
    arrays = [name.split("/")[1] for name in source_hashes(manifest) if name.count("/") > 1]
    sizes = {name for name in arrays if name.startswith("background_")}
    if sizes and sizes != {f"background_{size}" for size in (parameters["size"], parameters["label_size"])}:
        report.find(layout.CORPUS_JSON, "sizes differ from those of the sources")
        return
    try:
        content = regular(path / layout.PLAN).read_bytes()
    except FileNotFoundError:
        report.find(layout.PLAN, MISSING)
        return
    except OSError as error:
        report.find(layout.PLAN, f"cannot be read ({reason_of(error)})")
        return
    report.files += 1
    report.bytes += len(content)
    recorded = plan_hash(manifest)
    if recorded not in (None, hashlib.sha256(content).hexdigest()):
        report.find(layout.PLAN, _other_hash(len(content)))
        return
    from_them = (layout.SOURCES, layout.ROOMS)
    if any(finding.component in from_them and finding.what not in KEPT for finding in report.findings):
        return  # what the plan is made from cannot be relied on
    if (
        not 0 < len(content) - manifest["rows"] * plan_dtype(people_slots(manifest)).itemsize < _HEADER_BYTES
    ):  # before any row is drawn
        report.find(layout.PLAN, f"{len(content):,} bytes do not hold {manifest['rows']:,} rows")
        return
    try:
        plan = expected_plan(path, manifest)
    except DsgenError as error:
        report.find(_relative(error, path), error.reason)
        return
    if encode_plan(plan) != content:
        if recorded is None:
            report.find(layout.PLAN, f"differs from the plan that follows from {layout.CORPUS_JSON}")
        else:
            report.find(layout.CORPUS_JSON, "names or parameters differ from those the plan was made with")
    elif manifest.get("splits") != split_counts(plan) or manifest.get("rows") != len(plan):
        report.find(layout.CORPUS_JSON, "row counts differ from those of the plan")


def _other_hash(nbytes: int) -> str:
    return f"its hash differs from the one in {layout.CORPUS_JSON} ({nbytes:,} bytes)"


def read_shapes(path: Path, manifest: Manifest) -> np.ndarray:
    """Read the foregrounds' heights and widths, (f,2), from the sources; raise `DamagedError` if that cannot be."""
    folder = path / layout.SOURCES
    hashes = {name.partition("/")[2]: digest for name, digest in source_hashes(manifest).items()}
    remedy = f"run dsgen repair {path}"
    array = open_array(open_vouched(folder, hashes, remedy), _SHAPES, folder, remedy, source_layouts(manifest)[_SHAPES])
    with named_damage(folder / _SHAPES, remedy):
        shapes = np.asarray(array[:], np.int64)
    if shapes.min() < 1 or shapes.max() > manifest["parameters"]["size"]:
        reason = f"damaged, sides of {shapes.min()} to {shapes.max()} pixels, expected 1 to the size of the images"
        raise DamagedError(folder / _SHAPES, reason, remedy)
    return shapes


def check_sources(path: Path, manifest: Manifest, jobs: int, report: ReportBuilder) -> None:
    """Compare every file of the sources with its hash; where no hashes were recorded, decode the sources instead."""
    folder = path / layout.SOURCES
    if not folder.is_dir():
        report.find(layout.SOURCES, MISSING)
        return
    sizes = {f"{layout.SOURCES}/{name}": size for name, size in LocalFiles(folder).sizes().items()}
    recorded = source_hashes(manifest)
    report.files += len(sizes)
    report.bytes += sum(sizes.values())
    if not recorded:
        report.notes.append(f"{layout.SOURCES}: no hash recorded, since an earlier dsgen wrote it; decoded only")
        _decode_sources(path, manifest, report)
        return
    digests = dict(hash_tree(LocalFiles(path), sizes, jobs))
    for name in sorted(recorded.keys() | digests.keys()):
        if name not in digests:
            report.find(name, MISSING)
        elif name not in recorded:
            report.find(name, classify_extra(name))
        elif digests[name] != recorded[name]:
            report.find(name, _other_hash(sizes[name]))


def _decode_sources(path: Path, manifest: Manifest, report: ReportBuilder) -> None:
    folder = path / layout.SOURCES
    try:
        group = open_vouched(folder, {}, "")
    except DsgenError as error:
        report.find(_relative(error, path), error.reason)
        return
    for name, shape_and_dtype in source_layouts(manifest).items():
        try:
            array = open_array(group, name, folder, "", shape_and_dtype)
            for start in range(0, array.shape[0], array.chunks[0]):
                with named_damage(folder / name, ""):
                    array[start : start + array.chunks[0]]
        except DsgenError as error:
            report.find(_relative(error, path), error.reason)
        except OSError as error:
            if is_system_error(error):
                raise
            report.find(f"{layout.SOURCES}/{name}", f"cannot be read ({reason_of(error)})")


def _relative(error: DsgenError, path: Path) -> str:
    """Return the file that an error is about by its name within the corpus."""
    return Path(error.what).relative_to(path).as_posix()
