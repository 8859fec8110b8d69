"""The commands that make a corpus, and those that show what a corpus or a store holds."""

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
from dsgen.cli.settings_options import FieldsOf
from dsgen.errors import InvalidValueError

if TYPE_CHECKING:
    from dsgen.corpus.build import CompositeResult


def composite(
    context: typer.Context,
    corpus: Corpus = Path("corpus"),
    corpus_option: Annotated[Path | None, typer.Option("--corpus", hidden=True, help="The same as CORPUS.")] = None,
    backgrounds: Annotated[
        Path | None, typer.Option(help="Folder of backgrounds; the bundled ones by default.")
    ] = None,
    foregrounds: Annotated[
        Path | None,
        typer.Option(
            help="Folder of cut-outs with an alpha channel, or with a sub-folder of them for each class; the bundled "
            "ones by default."
        ),
    ] = None,
    parameters: Annotated[Any, FieldsOf("dsgen.corpus.build:Parameters")] = None,
    max_backgrounds: Annotated[
        int | None, typer.Option(help="Use only the first N backgrounds; all by default.")
    ] = None,
    max_foregrounds: Annotated[
        int | None, typer.Option(help="Use only the first N foregrounds; all by default.")
    ] = None,
    fov: Annotated[
        float | None,
        typer.Option(
            help="Field of view in degrees, along the width, of backgrounds that do not say theirs in a CSV file or by "
            "EXIF. With --place floor 63 is assumed; else none is recorded by default."
        ),
    ] = None,
    background_depths: Annotated[
        Path | None,
        typer.Option(
            help="With --place floor: folder of the backgrounds' depth maps, NAME.png (16 bits, mm) or NAME.npy (m). "
            "Without it, bundled backgrounds have their exact depth, and that of others is estimated."
        ),
    ] = None,
    depth_weights: Annotated[
        Path | None,
        typer.Option(help="With --place floor: weights of the network that estimates depth; bundled by default."),
    ] = None,
    depth_model: Annotated[
        str | None,
        typer.Option(help="With --place floor: a metric Hugging Face model, hf:NAME, that estimates depth instead."),
    ] = None,
    pictures: Annotated[
        bool, typer.Option("--pictures/--no-pictures", help="Write picture files; later stages do not need them.")
    ] = True,
    part: PartOf = None,
    backend: Backend = "local",
    scheduler: Scheduler = None,
    jobs: Jobs = None,
) -> Reply:
    """Make a corpus: paste every foreground on every background.

    CORPUS then holds the plan, the sources, the composites and their masks. Run it again to resume it.
    """
    from dsgen.corpus.build import composite as make
    from dsgen.depth.rooms import estimate_depth_with

    if not pictures:
        refuse_ignored(context, "no pictures are written (--no-pictures)", "part", "backend", "scheduler")
    if parameters.place != "floor":
        unused = ("background_depths", "depth_weights", "depth_model")
        refuse_ignored(context, "people are put at random places (--place random)", *unused)
    work, cluster = parse_part_of(part), dask_address(context, backend, scheduler)
    result = make(
        _choose_corpus(context, corpus, corpus_option),
        backgrounds,
        foregrounds,
        parameters,
        max_backgrounds=max_backgrounds,
        max_foregrounds=max_foregrounds,
        jobs=jobs,
        pictures=pictures,
        part=work,
        cluster=cluster,
        fov_deg=fov,
        background_depths=background_depths,
        estimate_depth=estimate_depth_with(depth_weights, depth_model),
    )
    drawn = "no picture files drawn (--no-pictures)"
    if pictures:
        drawn = f"{result.drawn:,} drawn now, {result.already_there:,} already existed"
    text = (
        f"{result.corpus}: {result.rows:,} composites of {plural(result.backgrounds, 'background')} and "
        f"{plural(result.foregrounds, 'foreground')} ({counts(result.splits)}{_explain_unused(result.splits)}); "
        f"{drawn}{left_to_others(result.left, part)}{_explain_rooms(result)}"
    )
    return Reply(text, as_dict(result))


def _explain_rooms(result: "CompositeResult") -> str:
    """Say where the depth is from that people were placed by, and whether their sizes rest on assumed cameras."""
    if result.depth_from is None:
        return ""
    sources = ", ".join(f"{count:,} {source}" for source, count in result.depth_from.items())
    assumed = f", field of view of {result.fov_assumed:,} assumed, see --fov" if result.fov_assumed else ""
    return f"; depth of backgrounds: {sources}{assumed}"


def _explain_unused(splits: dict[str, int]) -> str:
    """Say how large a share of the rows is unused and why, if any is."""
    if not splits["unused"]:
        return ""
    share = splits["unused"] / sum(splits.values())
    return f", {share:.0%} of all: their two pictures are in different splits, see --skip-unused and --split-by"


def _choose_corpus(context: typer.Context, corpus: Path, alias: Path | None) -> Path:
    """Return the folder that was named, by the argument or by its older spelling `--corpus`."""
    if alias is None:
        return corpus
    if is_given(context, "corpus") and alias != corpus:
        raise InvalidValueError("--corpus", f"got {alias}, but CORPUS is {corpus}", "leave out --corpus")
    return alias


def left_to_others(rows: int, part: str | None) -> str:
    """Say after a part how many rows are left to the others."""
    return "" if part is None else f" in part {part}, {rows:,} left to other parts"


def info(path: CorpusOrStore = "corpus") -> Reply:
    """Describe a corpus or a store: completeness, sizes, splits, statistics."""
    from dsgen.views.info import describe

    described = describe(path)
    return Reply(described.table(), as_dict(described))


def preview(
    path: CorpusOrStore = "corpus",
    out: Annotated[Path, typer.Option(help="The PNG file to write.")] = Path("preview.png"),
    count: Annotated[int, typer.Option(help="Number of rows to show.")] = 12,
    seed: Annotated[int, typer.Option(help="Seed of the choice of rows.")] = 0,
) -> Reply:
    """Draw a contact sheet: composite, mask, and depth with a scale in metres."""
    from dsgen.views.preview import preview as draw

    result = draw(path, out, count=count, seed=seed)
    return Reply(str(result.out), as_dict(result))


def report(
    store: Annotated[str, typer.Argument(metavar="STORE", help="A store in a folder or at a URL.")] = "shards",
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The HTML file to write.")] = Path("report.html"),
) -> Reply:
    """Write a data sheet for a store: one HTML file with counts, samples, charts, origin and licences.

    It says what the data set holds, how it was made, what it suits and what not. It loads nothing else, so it can be
    sent by mail. Of a large store, pixels are counted in up to 1,000 rows, all else in all of them.
    """
    from dsgen.views.report import report as write

    result = write(store, out)
    text = (
        f"{result.out}: {plural(result.rows, 'row')} of {result.store}, pixels of {result.sampled_rows:,} counted, "
        f"{megabytes(result.bytes)}"
    )
    return Reply(text, as_dict(result))


COMPOSITE = Command(
    "composite",
    composite,
    (
        "dsgen composite",
        "dsgen composite small --positions 2 --max-backgrounds 5",
        "dsgen composite mine --backgrounds rooms",
        "dsgen composite office --place floor --people 1-3",
        "dsgen composite again --config corpus/corpus.json",
    ),
    config="parameters",
)
INFO = Command("info", info, ("dsgen info", "dsgen info shards --json"), endpoint=True)
PREVIEW = Command("preview", preview, ("dsgen preview", "dsgen preview shards --out shards.png"), endpoint=True)
REPORT = Command("report", report, ("dsgen report", "dsgen report shards shards.html"), endpoint=True)
