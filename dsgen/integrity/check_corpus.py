"""Check a corpus: the plan and the sources against the manifest, pictures against what is drawn, labels chunk by chunk.

The plan is made again from the manifest, which records its hash and those of the sources' files. Every picture is
encoded again and compared byte for byte.
"""

import hashlib
import io
import os
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import zarr

from dsgen.corpus import layout
from dsgen.corpus.build import SMALL_PARTS, Parameters, composites, small_pictures
from dsgen.corpus.corpus import FORMAT, Corpus
from dsgen.corpus.plan import make_plan, split_counts
from dsgen.errors import DsgenError
from dsgen.integrity.findings import EXTRA, FOREIGN, MISSING, UNLIKE, Checked, Finding, Report, each, reason
from dsgen.io import images
from dsgen.io.filesystem import LocalFiles, hash_tree
from dsgen.io.json_files import encode_json, parse_json, read_json
from dsgen.parallel.locks import LOCK
from dsgen.parallel.progress import progress

NO_FOLDER = "not a folder"
_SHAPES = "foreground_shape"


def check_corpus(path: Path, fast: bool, jobs: int, report: Report) -> None:
    """Check a corpus and put what is wrong into `report`; `fast` looks at pictures' names and sizes only."""
    manifest = read_manifest(path, report)
    check_top(path, report)
    if manifest is None:
        why = f"nothing else was checked, since {layout.CORPUS_JSON} cannot be read"
        if not (path / layout.CORPUS_JSON).exists():
            why += ": it is lost, or the corpus unfinished; the same dsgen composite makes it"
        report.notes.append(why)
        return
    before = len(report.findings)
    check_sources(path, manifest, jobs, report)
    check_plan(path, manifest, report)
    damaged = {finding.part for finding in report.findings[before:] if finding.what != EXTRA}
    if damaged - {layout.SOURCES}:
        report.notes.append("pictures and labels were not checked, since the plan is damaged")
        return
    try:
        corpus = Corpus(path)
    except DsgenError as error:  # a plan of which no hash was recorded
        report.find(layout.PLAN, f"damaged ({reason(error)})")
        return
    if damaged:
        report.notes.append("pictures were not compared with the plan, since the sources are damaged")
    _check_pictures(corpus, fast or bool(damaged), jobs, report)
    if fast:
        report.notes.append("pictures not compared with the plan, labels not decoded (--fast)")
    elif all_unlike(corpus, report.findings):
        report.notes.append(
            f"every composite is unlike what is drawn: {layout.CORPUS_JSON} says another quality than they were drawn "
            "with, or another OpenCV drew them"
        )
    check_labels(corpus, fast, jobs, report)


def all_unlike(corpus: Corpus, findings: list[Finding]) -> bool:
    """Whether all of `bg_fg` differs from what is drawn: then it is not the pictures that are damaged."""
    return sum(finding.part == "bg_fg" and finding.what.startswith(UNLIKE) for finding in findings) == len(corpus)


def read_manifest(path: Path, report: Report) -> dict[str, Any] | None:
    """Return what `corpus.json` says, or None, with a finding, where it is damaged."""
    report.files += 1
    try:
        content = (path / layout.CORPUS_JSON).read_bytes()
        report.bytes += len(content)
        manifest: dict[str, Any] = parse_json(content, layout.CORPUS_JSON)
        if manifest["format"] != FORMAT:
            raise ValueError(f"format {manifest['format']}, expected {FORMAT}")
        Parameters(**manifest["parameters"]).check()
        expected_plan(manifest, np.ones((len(manifest["foregrounds"]), 2), np.int64))
        if content != encode_json(manifest):
            raise ValueError("not as dsgen writes it")
    except FileNotFoundError:
        report.find(layout.CORPUS_JSON, MISSING)
    except OSError as error:
        report.find(layout.CORPUS_JSON, f"cannot be read ({reason(error)})")
    except (DsgenError, KeyError, TypeError, ValueError, AttributeError) as error:
        why = reason(error).removeprefix(f"{layout.CORPUS_JSON}: ").partition("; restore")[0]
        report.find(layout.CORPUS_JSON, f"damaged ({type(error).__name__} {why})")
    else:
        return manifest
    return None


def check_top(path: Path, report: Report) -> None:
    """Find what lies in the corpus' folder and is no part of it."""
    known = {layout.CORPUS_JSON, layout.PLAN, layout.SOURCES, layout.DEPTH, *layout.PARTS}
    for entry in sorted(path.iterdir(), key=lambda entry: entry.name):
        if entry.name not in known and not entry.name.startswith(LOCK):
            stem = entry.name.removesuffix(".partial")
            ours = stem != entry.name and not known.isdisjoint((stem, stem.rpartition(".")[0]))
            report.find(entry.name, EXTRA if ours else FOREIGN)


def expected_plan(manifest: dict[str, Any], shapes: np.ndarray) -> np.ndarray:
    """Make the plan again; `shapes` are the foregrounds' heights and widths, (f,2)."""
    options = manifest["parameters"]
    names = ("size", "positions", "flip", "seed", "validation_share", "test_share")
    backgrounds, foregrounds = ([p["name"] for p in manifest[kind]] for kind in ("backgrounds", "foregrounds"))
    return make_plan(backgrounds, foregrounds, shapes, **{name: options[name] for name in names})


def encode_plan(plan: np.ndarray) -> bytes:
    """Encode a plan as `plan.npy`."""
    buffer = io.BytesIO()
    np.save(buffer, plan, allow_pickle=False)
    return buffer.getvalue()


def check_plan(path: Path, manifest: dict[str, Any], report: Report) -> None:
    """Compare the plan with one made again from the manifest and the foregrounds' shapes, and with its hash."""
    arrays = [name.split("/")[1] for name in manifest.get("sha256", {}) if name.startswith(layout.SOURCES)]
    sizes = {name for name in arrays if name.startswith("background_")}
    if sizes and sizes != {f"background_{manifest['parameters'][name]}" for name in ("size", "label_size")}:
        report.find(layout.CORPUS_JSON, "sizes are not those of the sources")
        return
    try:
        content = (path / layout.PLAN).read_bytes()
    except FileNotFoundError:
        report.find(layout.PLAN, MISSING)
        return
    except OSError as error:
        report.find(layout.PLAN, f"cannot be read ({reason(error)})")
        return
    report.files += 1
    report.bytes += len(content)
    recorded = manifest.get("sha256", {}).get(layout.PLAN)
    if recorded not in (None, hashlib.sha256(content).hexdigest()):
        report.find(layout.PLAN, f"another hash than {layout.CORPUS_JSON} records ({len(content):,} bytes)")
        return
    if any(finding.part == layout.SOURCES and finding.what != EXTRA for finding in report.findings):
        return
    plan = expected_plan(manifest, read_shapes(path))
    if encode_plan(plan) != content:
        if recorded is None:
            report.find(layout.PLAN, f"not the plan that {layout.CORPUS_JSON} gives")
        else:
            report.find(layout.CORPUS_JSON, "names or parameters are not those the plan was made with")
    elif manifest.get("splits") != split_counts(plan) or manifest.get("rows") != len(plan):
        report.find(layout.CORPUS_JSON, "counts of rows are not those of the plan")


def read_shapes(path: Path) -> np.ndarray:
    """Read the foregrounds' heights and widths from the sources."""
    return np.asarray(zarr.open_group(path / layout.SOURCES, mode="r")[_SHAPES][:], np.int64)  # type: ignore[index]


def check_sources(path: Path, manifest: dict[str, Any], jobs: int, report: Report) -> None:
    """Compare every file of the sources with its hash; decode them all where none was recorded."""
    folder = path / layout.SOURCES
    if not folder.is_dir():
        report.find(layout.SOURCES, MISSING)
        return
    sizes = {f"{layout.SOURCES}/{name}": size for name, size in LocalFiles(folder).sizes().items()}
    recorded = {name: digest for name, digest in manifest.get("sha256", {}).items() if name != layout.PLAN}
    report.files += len(sizes)
    report.bytes += sum(sizes.values())
    if not recorded:
        report.notes.append(f"{layout.SOURCES}: no hash recorded, as an earlier dsgen made it; decoded only")
        _decode_sources(path, manifest, report)
        return
    digests = dict(hash_tree(LocalFiles(path), sizes, jobs))
    for name in sorted(recorded.keys() | digests.keys()):
        if name not in digests:
            report.find(name, MISSING)
        elif name not in recorded:
            report.find(name, EXTRA)
        elif digests[name] != recorded[name]:
            report.find(name, f"another hash than {layout.CORPUS_JSON} records ({sizes[name]:,} bytes)")


def _decode_sources(path: Path, manifest: dict[str, Any], report: Report) -> None:
    sizes = {manifest["parameters"][name] for name in ("size", "label_size")}
    counts = {kind: len(manifest[f"{kind}s"]) for kind in ("background", "foreground")}
    wanted = {f"{kind}_{size}": count for size in sizes for kind, count in counts.items()}
    for name, count in (wanted | {_SHAPES: counts["foreground"]}).items():
        at = f"{layout.SOURCES}/{name}"
        try:
            array = zarr.open_array(path / at, mode="r")
            if array.shape[0] != count:
                report.find(at, f"{array.shape[0]} pictures, expected {count}")
            for start in range(0, array.shape[0], array.chunks[0]):
                # what is not there zarr would read as zeros
                file = f"{at}/c/{start // array.chunks[0]}" + "/0" * (array.ndim - 1)
                if not (path / file).is_file():
                    report.find(file, MISSING)
                array[start : start + array.chunks[0]]
        except Exception as error:  # zarr and codecs raise what they please on damaged files
            report.find(at, f"cannot be read ({reason(error)})")


def _check_pictures(corpus: Corpus, fast: bool, jobs: int, report: Report) -> None:
    """Check `bg`, `fg`, `fg_mask`, and as many of the others as there are."""
    count = len(corpus.manifest["backgrounds"])
    folders = [layout.background_name(background) for background in range(count)]
    blocks: list[tuple[Any, ...]] = []
    run = uuid4().hex
    for part in SMALL_PARTS:
        if (corpus.path / part).is_dir():
            blocks.append((run, str(corpus.path), part, None, fast))
        elif (corpus.path / part).exists():
            report.find(part, NO_FOLDER)
        else:
            report.find(part, MISSING)
    drawn = {part for part in layout.PICTURE_PARTS if (corpus.path / part).is_dir()}
    if not drawn:
        report.notes.append("no composites drawn, none checked")
    if (corpus.path / "bg_fg_depth").is_dir() and not fast and lacking_labels(corpus):
        report.notes.append("views of depth not compared where there are no labels")
    views = {"bg_fg_depth"} if (corpus.path / "bg_fg_depth").is_dir() else set()
    for part in [*layout.PICTURE_PARTS, *sorted(views)]:
        if part not in drawn | views:
            if drawn and part in layout.PICTURE_PARTS:
                report.find(part, NO_FOLDER if (corpus.path / part).exists() else MISSING)
            continue
        there = {entry.name for entry in os.scandir(corpus.path / part)}
        for name in sorted(there - set(folders)):
            report.find(f"{part}/{name}", EXTRA)
        for background, name in enumerate(folders):
            if not (corpus.path / part / name).is_dir():
                report.find(f"{part}/{name}", NO_FOLDER if name in there else MISSING)
            elif part in views:
                blocks.append((run, str(corpus.path), part, background, fast))
    for background, name in enumerate(folders):
        parts = [part for part in layout.PICTURE_PARTS if (corpus.path / part / name).is_dir()]
        if parts:
            blocks.append((run, str(corpus.path), " ".join(parts), background, fast))
    rows = corpus.rows_per_background
    with progress("verify pictures", rows * sum(block[3] is not None for block in blocks)) as advance:
        for checked in each(check_pictures, blocks, 1 if fast else jobs):
            report.add(checked)
            advance(checked.rows)
    if fast:
        report.rows = 0


# opened once a process and run of verify: files may have changed since an earlier one
@lru_cache(maxsize=1)
def _open(run: str, path: str) -> Corpus:  # noqa: ARG001
    return Corpus(path)


def check_pictures(run: str, path: str, parts: str, background: int | None, fast: bool) -> Checked:
    """Check the files of a folder of `bg`, `fg` or `fg_mask`, or those of one background in each of `parts`."""
    corpus = _open(run, path)
    if background is None:
        small = small_pictures(corpus, parts, names_only=fast)
        return _compare(corpus.path, [parts], ((f"{parts}/{name}", code) for name, code in small), fast)
    name = layout.background_name(background)
    folders = [f"{part}/{name}" for part in parts.split()]
    expected = drawn_files(corpus, background, parts.split(), names_only=fast)
    checked = _compare(corpus.path, folders, expected, fast)
    checked.rows = corpus.rows_per_background
    return checked


def drawn_files(
    corpus: Corpus, background: int, parts: list[str], *, names_only: bool = False
) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of every picture of one background in each of `parts`.

    Content is empty with `names_only`, and for views of labels that cannot be read.
    """
    each_background = corpus.rows_per_background
    first = background * each_background
    folder = layout.background_name(background)
    views = "bg_fg_depth" in parts
    unlabelled = lacking_labels(corpus) if views and not names_only else []
    if names_only or views:
        for start in range(first, first + each_background, 200):
            stop = min(start + 200, first + each_background)
            lacking = names_only or not views or any(a < stop and start < b for a, b in unlabelled)
            shades = None if lacking else _depth_views(corpus, start, stop)
            for k, (_, foreground, flip, position, *_) in enumerate(corpus.plan[start:stop].tolist()):
                if views:
                    name = layout.depth_picture_name(background, foreground, flip, position)
                    content = b"" if shades is None else images.encode_jpeg(shades[k])
                    yield f"bg_fg_depth/{folder}/{name}.jpeg", content
                    continue
                name = layout.composite_name(background, foreground, flip, position)
                if "bg_fg" in parts:
                    yield f"bg_fg/{folder}/{name}.jpeg", b""
                if "bg_fg_mask" in parts:
                    yield f"bg_fg_mask/{folder}/{name}_mask.png", b""
        return
    for name, image, mask in composites(corpus, background):
        if "bg_fg" in parts:
            yield f"bg_fg/{folder}/{name}.jpeg", image
        if "bg_fg_mask" in parts:
            yield f"bg_fg_mask/{folder}/{name}_mask.png", mask


def lacking_labels(corpus: Corpus) -> list[tuple[int, int]]:
    """The blocks of rows without a depth to draw: all where the labels cannot be opened or are no metres."""
    try:
        return [(0, len(corpus))] if corpus.depth is None else corpus.unlabelled_blocks()
    except Exception:  # whatever zarr raises: the labels' own check says so
        return [(0, len(corpus))]


def _depth_views(corpus: Corpus, start: int, stop: int) -> np.ndarray | None:
    """Return the 8-bit views of rows, or None where their labels cannot be read."""
    from dsgen.corpus.depth_views import view_8bit

    try:
        assert corpus.depth is not None
        return view_8bit(np.asarray(corpus.depth[start:stop]))
    except Exception:  # whatever zarr and codecs raise: the labels' own check says so
        return None


def _compare(root: Path, folders: list[str], expected: Iterable[tuple[str, bytes]], fast: bool) -> Checked:
    """Compare the files of folders with what they should hold; empty content is not compared."""
    checked = Checked()
    there: dict[str, int] = {}
    for folder in folders:
        for entry in os.scandir(root / folder):
            there[f"{folder}/{entry.name}"] = entry.stat().st_size if entry.is_file() else -1
    for name, content in expected:
        size = there.pop(name, None)
        checked.files += size is not None
        if size is None:
            checked.findings.append(Finding(name, MISSING))
        elif size <= 0:
            checked.findings.append(Finding(name, "empty" if size == 0 else "a folder, expected a file"))
        elif not fast and content:
            try:
                found = (root / name).read_bytes()
            except OSError as error:
                checked.findings.append(Finding(name, f"cannot be read ({reason(error)})"))
                continue
            checked.bytes += len(found)
            if found != content:
                what = f"{UNLIKE} ({len(found):,} bytes, expected {len(content):,})"
                checked.findings.append(Finding(name, what))
    checked.findings += [Finding(name, EXTRA) for name in there]
    return checked


def check_labels(corpus: Corpus, fast: bool, jobs: int, report: Report) -> None:
    """Check that every block of depth labels is there, and, unless `fast`, that every chunk can be decoded."""
    folder = corpus.path / layout.DEPTH
    if not folder.is_dir():
        report.notes.append("no depth labels, none checked")
        return
    try:
        labels = corpus.relative if corpus.depth is None else corpus.depth
        assert labels is not None
        arrays = {labels.basename: labels, **_flip_errors(folder)}
        blocks = corpus.label_blocks()
        attributes = corpus.depth_attributes
    except Exception as error:  # zarr raises what it pleases on damaged metadata
        wrong = _bad_metadata(folder)
        for file, what in wrong.items() or [(layout.DEPTH, f"cannot be opened ({reason(error)})")]:
            report.find(file, what)
        report.notes.append("labels were not checked, since they cannot be opened")
        return
    wanted = (len(corpus), corpus.size, corpus.size)
    if labels.shape != wanted or labels.dtype not in (np.uint16, np.float32):
        report.find(f"{layout.DEPTH}/{labels.basename}", f"{labels.dtype} {labels.shape}, expected {wanted}")
        return
    expected = {"zarr.json", *(f"{name}/zarr.json" for name in arrays)}
    for name, array in arrays.items():
        expected |= {f"{name}/c/{number}" + "/0" * (array.ndim - 1) for number in range(len(blocks))}
    sizes = LocalFiles(folder).sizes()
    report.files += len(sizes)
    missing = sorted(expected - sizes.keys())
    if attributes.get("complete"):
        for file in missing:
            report.find(f"{layout.DEPTH}/{file}", MISSING)
    elif missing:
        report.notes.append(f"labels unfinished, {len(corpus) - corpus.labelled_rows():,} rows to go; run dsgen depth")
    for file in sorted(sizes.keys() - expected):
        report.find(f"{layout.DEPTH}/{file}", EXTRA)
    if fast:
        return
    report.bytes += sum(sizes.values())
    if "Crc32c" not in str(labels.compressors):
        report.notes.append("labels of an earlier dsgen have no checksums: a changed byte may go unseen")
    run = uuid4().hex
    with progress("verify depth", len(corpus)) as advance:
        tasks = [
            (run, str(corpus.path), name, number, *block)
            for name in arrays
            for number, block in enumerate(blocks)
            if f"{name}/c/{number}" + "/0" * (arrays[name].ndim - 1) in sizes
        ]
        for checked in each(check_label_block, tasks, jobs):
            report.add(checked)
            advance(checked.rows)


def _bad_metadata(folder: Path) -> dict[str, str]:
    """Say which of the labels' `zarr.json` is missing or no JSON."""
    wrong = {}
    there = [name for name in ("depth", "relative", "flip_error") if (folder / name).is_dir()]
    for file in (f"{layout.DEPTH}/{name}zarr.json" for name in ("", *(f"{name}/" for name in there))):
        try:
            read_json(folder.parent / file)
        except FileNotFoundError:
            wrong[file] = MISSING
        except (DsgenError, OSError) as error:
            wrong[file] = f"damaged ({reason(error).partition('; restore')[0].rpartition(': damaged, ')[2]})"
    return wrong


def _flip_errors(folder: Path) -> dict[str, zarr.Array]:
    if not (folder / "flip_error").is_dir():
        return {}
    return {"flip_error": zarr.open_array(folder / "flip_error", mode="r")}


def check_label_block(run: str, path: str, name: str, number: int, first: int, last: int) -> Checked:
    """Decode the block of rows `first` to `last`, exclusive, of an array of labels."""
    corpus = _open(run, path)
    rows = f"rows {first:,} to {last - 1:,}"
    try:
        if name == "flip_error":
            array = zarr.open_array(corpus.path / layout.DEPTH / name, mode="r")
            wrong = None if np.isfinite(array[first:last]).all() else "without a value"
            tail = ""
        else:
            labels = corpus.relative if name == "relative" else corpus.depth
            assert labels is not None
            labels[first:last]
            wrong, tail = None, "/0/0"
    except Exception as error:  # zarr and codecs raise what they please on damaged files
        wrong = f"cannot be read ({reason(error)})"
        tail = "" if name == "flip_error" else "/0/0"
    findings = [Finding(f"{layout.DEPTH}/{name}/c/{number}{tail}", f"{rows} {wrong}")] if wrong else []
    return Checked(findings, rows=last - first if name != "flip_error" else 0)
