"""The commands that pack stores, export them, check them and repair them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dsgen.cli.command import Command
from dsgen.cli.options import (
    Backend,
    Corpus,
    CorpusOrStore,
    Jobs,
    PartOf,
    Scheduler,
    dask_address,
    is_given,
    parse_part_of,
    refuse_ignored,
)
from dsgen.cli.results import Reply, as_dict, counts, megabytes, plural

if TYPE_CHECKING:
    from dsgen.store.export.export import ExportResult

_OF_PICTURES = ("masks", "depths", "backgrounds", "size", "png_unit", "validation_share", "test_share", "seed")
_OF_CORPORA = ("corpus", "recipe", "max_flip_error", "composed")
_OF_STORES = ("file_format", "split", "image_format", "backgrounds", "rows_per_file", "jobs", "endpoint")


def pack(
    context: typer.Context,
    corpus: Corpus = Path("corpus"),
    out: Annotated[str, typer.Option(help="The folder to make, or a URL such as s3://bucket/prefix.")] = "shards",
    shards: Annotated[
        int | None, typer.Option(help="Number of shards; 6 by default, or fewer if there are few rows.")
    ] = None,
    recipe: Annotated[
        bool, typer.Option("--recipe", help="Store foregrounds instead of composites, which are drawn when read.")
    ] = False,
    composed: Annotated[
        bool,
        typer.Option(
            "--composed", help="Pack composed depth, though a network has labelled the corpus; see dsgen depth."
        ),
    ] = False,
    compact: Annotated[
        bool,
        typer.Option(
            "--compact", help="Store the same arrays in fewer bytes; fewer programs besides dsgen read their depth."
        ),
    ] = False,
    zipped: Annotated[
        bool, typer.Option("--zip", help="Make every shard one zip file, read without unpacking.")
    ] = False,
    max_flip_error: Annotated[
        float | None,
        typer.Option(help="Leave rows with a larger flip error out of the splits; needs depth --check-flip."),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(help="Pack this folder of pictures instead of a corpus; other folders pair with it by file name."),
    ] = None,
    masks: Annotated[
        Path | None, typer.Option(help="With --images: folder of masks: 0 and 255 or 1, one colour on black, or alpha.")
    ] = None,
    depths: Annotated[
        Path | None, typer.Option(help="With --images: folder of depth, 16-bit PNG (see --png-unit) or npy (m).")
    ] = None,
    backgrounds: Annotated[
        Path | None, typer.Option(help="With --images: folder of the same pictures without their foregrounds.")
    ] = None,
    size: Annotated[int, typer.Option(help="With --images: side of the stored images, in pixels.")] = 224,
    png_unit: Annotated[float, typer.Option(help="With --depths: metres that 1 in a PNG stands for.")] = 0.001,
    validation_share: Annotated[float, typer.Option(help="With --images: share held out for validation.")] = 0.1,
    test_share: Annotated[float, typer.Option(help="With --images: share held out for testing.")] = 0.1,
    seed: Annotated[int, typer.Option(help="With --images: seed of the splits.")] = 0,
    part: PartOf = None,
    backend: Backend = "local",
    scheduler: Scheduler = None,
    jobs: Jobs = None,
) -> Reply:
    """Pack a corpus, or any pictures, into a store of Zarr shards.

    Run it again to resume it.
    """
    from dsgen.store.packing import DEFAULT_SHARDS, pack_source

    if images is None:
        refuse_ignored(context, "a corpus is packed", *_OF_PICTURES, remedy="leave it out, or add --images FOLDER")
    else:
        refuse_ignored(context, "pictures are packed (--images)", *_OF_CORPORA)
        if depths is None:
            refuse_ignored(context, "no --depths are packed", "png_unit", remedy="leave it out, or add --depths FOLDER")
    work, cluster = parse_part_of(part), dask_address(context, backend, scheduler)
    source: Any
    if images is None:
        from dsgen.store.corpus_source import CorpusSource

        source = CorpusSource(corpus, max_flip_error, composed=composed)
    else:
        from dsgen.store.picture_source import Pictures

        shares = validation_share, test_share
        source = Pictures(images, masks, depths, backgrounds, size, png_unit, *shares, seed)
    result = pack_source(
        source,
        out,
        shards=shards,
        recipe=recipe,
        compact=compact,
        zipped=zipped,
        part=work,
        cluster=cluster,
        jobs=jobs,
    )
    few = shards is None and result.shards is not None and result.shards < DEFAULT_SHARDS
    return Reply(_packed_text(as_dict(result), recipe, max_flip_error is not None, few), as_dict(result))


def _packed_text(packed: dict[str, Any], recipe: bool, limited: bool, few: bool) -> str:
    if not packed["finished"]:
        return f"{packed['store']}: {packed['packed']:,} rows packed now; other parts are not finished yet"
    left_out = f", {packed['left_out']:,} left out of the splits" if limited else ""
    depth = "with depth" if packed["depth"] else "without depth"
    if packed.get("depth_from"):
        depth += f" by {packed['depth_from']}"
    kind = "a recipe" if recipe else f"{packed['image_bytes_per_row']:,} image bytes a row"
    return (
        f"{packed['store']}: {packed['rows']:,} rows in {plural(packed['shards'], 'shard')}"
        f"{' (as many as the rows can fill)' if few else ''}, "
        f"{depth}, {megabytes(packed['bytes'])} ({kind}){left_out}; "
        f"{packed['packed']:,} packed now, {packed['already_there']:,} already existed"
    )


def export(
    context: typer.Context,
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A store; for ONNX the folder of a training run.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to make; for ONNX a file, NAME.onnx.")],
    file_format: Annotated[
        str,
        typer.Option(
            "--format", help="Format of a store's export: webdataset (tar files), parquet, coco or yolo (instances)."
        ),
    ] = "webdataset",
    split: Annotated[
        str | None, typer.Option(help="train, validation, test, unused, or all four; the first three by default.")
    ] = None,
    image_format: Annotated[str, typer.Option(help="png, which is lossless, or jpeg of quality 95.")] = "png",
    backgrounds: Annotated[
        bool,
        typer.Option(
            "--backgrounds/--no-backgrounds", help="Add its background to every sample of webdataset or parquet."
        ),
    ] = False,
    rows_per_file: Annotated[
        int, typer.Option(help="Largest number of samples in a file; of coco and yolo, written together.")
    ] = 1000,
    jobs: Jobs = None,
) -> Reply:
    """Export a store as WebDataset, parquet, COCO or YOLO, or a network as ONNX.

    A store goes into a folder: of files for WebDataset or Hugging Face datasets, or of pictures with the instances in
    them as COCO annotations or as the polygons of ultralytics. Run it again to resume it. The network of a training run
    goes into one file when OUT ends in .onnx; that takes none of the options for stores.
    """
    from dsgen.io.filesystem import is_url
    from dsgen.io.places import STORES, Kind, not_a_run, not_a_store, recognise

    if out.suffix == ".onnx":
        refuse_ignored(context, "a network is exported", *_OF_STORES)
        if recognise(source) in STORES:
            raise not_a_run(
                source, {Kind.STORE: f"to export its samples, name a folder: dsgen export {source} {out.stem}"}
            )
        return _export_network(Path(source), out)
    from dsgen.store.export.export import export_store

    if not is_url(source) and recognise(source) == Kind.RUN:
        raise not_a_store(source, remedies={Kind.RUN: f"to export its network: dsgen export {source} {out}.onnx"})
    result = export_store(
        source,
        out,
        file_format,
        split=split,
        image_format=image_format,
        backgrounds=backgrounds,
        rows_per_file=rows_per_file,
        jobs=jobs,
    )
    text = (
        f"{result.out}: {result.rows:,} rows ({counts(result.splits)}) in "
        f"{plural(result.files, result.format + ' file')}, {megabytes(result.bytes)}{_instances_text(result)}; "
        f"{result.exported:,} exported now, {result.already_there:,} already existed"
    )
    return Reply(text, as_dict(result))


def _instances_text(result: "ExportResult") -> str:
    if result.instances is None:
        return ""
    told = [
        f"{plural(result.rows_without, 'row')} without any" if result.rows_without else "",
        f"{result.tiny_instances:,} smaller than 16 pixels" if result.tiny_instances else "",
    ]
    more = ", ".join(filter(None, told))
    return f", {plural(result.instances, 'instance')}{f' ({more})' if more else ''}"


def _export_network(run: Path, out: Path) -> Reply:
    from dsgen.evaluation.onnx import export_onnx

    result = export_onnx(run, out)
    return Reply(result.summary(), as_dict(result))


def verify(
    context: typer.Context,
    path: CorpusOrStore = "corpus",
    corpus: Annotated[
        Path | None, typer.Option(help="Compare a store's pixels with this corpus; by default they are only decoded.")
    ] = None,
    fast: Annotated[bool, typer.Option("--fast", help="Check hashes, names and counts only.")] = False,
    jobs: Jobs = None,
) -> Reply:
    """Check a corpus or a store completely, and list what is wrong.

    The exit code is 1 if anything is wrong.
    """
    from dsgen.integrity.verify import is_store
    from dsgen.integrity.verify import verify as check

    if is_given(context, "corpus") and not is_store(path):
        refuse_ignored(context, "a corpus is verified", "corpus")
    report = check(path, corpus, fast=fast, jobs=jobs)
    text = f"{report.table()}\n{report.summary()}" if report.findings else report.summary()
    return Reply(text, as_dict(report), notes=tuple(report.notes), failed=bool(report.findings))


def repair(
    context: typer.Context,
    path: CorpusOrStore,
    corpus: Annotated[Path, typer.Option(help="For a store: the corpus it was packed from.")] = Path("corpus"),
    backgrounds: Annotated[
        Path | None, typer.Option(help="For a corpus: its backgrounds, should sources be damaged; bundled by default.")
    ] = None,
    foregrounds: Annotated[
        Path | None, typer.Option(help="For a corpus: its cut-outs, should sources be damaged; bundled by default.")
    ] = None,
    background_depths: Annotated[
        Path | None,
        typer.Option(
            help="For a corpus with people on floors: the folder of depth maps that it was made with, if any."
        ),
    ] = None,
    jobs: Jobs = None,
) -> Reply:
    """Rebuild what is damaged in a corpus or a store, and only that.

    Rebuilt files have their original hashes. The exit code is 1 if anything is still wrong.
    """
    from dsgen.integrity.repair import repair as rebuild
    from dsgen.integrity.verify import is_store

    if is_store(path):
        refuse_ignored(context, "a store is repaired", "backgrounds", "foregrounds", "background_depths")
    else:
        refuse_ignored(context, "a corpus is repaired", "corpus")
    done = rebuild(path, corpus, backgrounds, foregrounds, background_depths, jobs=jobs)
    changes = done.changes()
    table = f"{changes}\n" if changes else ""
    if done.after is not None and done.remaining:
        table += f"{done.after.table()}\n"
    values = as_dict(done) | {"remaining": [as_dict(finding) for finding in done.remaining]}
    return Reply(table + done.summary(), values, notes=tuple(done.notes), failed=bool(done.remaining))


PACK = Command(
    "pack",
    pack,
    (
        "dsgen pack",
        "dsgen pack corpus --out s3://bucket/shards --shards 64",
        "dsgen pack --images rgb --depths depth --size 256",
        "dsgen pack corpus --part 3/8",
    ),
    endpoint=True,
)
EXPORT = Command(
    "export",
    export,
    (
        "dsgen export shards tars",
        "dsgen export shards table --format parquet --split all",
        "dsgen export shards coco --format coco",
        "dsgen export run model.onnx",
    ),
    endpoint=True,
)
VERIFY = Command("verify", verify, ("dsgen verify", "dsgen verify shards --corpus corpus"), endpoint=True)
REPAIR = Command("repair", repair, ("dsgen repair corpus", "dsgen repair shards --corpus corpus"), endpoint=True)
