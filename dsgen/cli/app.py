"""The command line: parse, call one function, print one result.

Results go to stdout, progress and notices to stderr. Exit codes: 0, 1 error, 2 usage, 130 interrupted.
"""

import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from dsgen import __version__
from dsgen.errors import DsgenError, InvalidValueError

INTERRUPTED = 130

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Manufacture pictures labelled with masks and depth, pack them into Zarr, and train a network on them.",
    epilog="The whole job, with the bundled pictures: dsgen composite; dsgen depth; dsgen pack; dsgen train",
)

Jobs = Annotated[int | None, typer.Option("--jobs", help="Worker processes; one per core unless given.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:N or mps.")]

Endpoint = Annotated[
    str | None, typer.Option(help="Address of the object store; AWS_ENDPOINT_URL or the profile's unless given.")
]
PartOf = Annotated[
    str | None, typer.Option("--part", help="Do a share of the work, like 3/8; the part that ends last ends it.")
]
Backend = Annotated[str, typer.Option(help="local processes, or dask.")]
Scheduler = Annotated[str | None, typer.Option(help="With --backend dask: its address, like tcp://host:8786.")]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"dsgen {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")] = False,
) -> None:
    pass


@app.command()
def composite(
    corpus: Annotated[Path, typer.Option(help="The folder to make.")] = Path("corpus"),
    backgrounds: Annotated[Path | None, typer.Option(help="Folder of backgrounds; bundled unless given.")] = None,
    foregrounds: Annotated[
        Path | None, typer.Option(help="Folder of cut-outs with an alpha channel; bundled unless given.")
    ] = None,
    positions: Annotated[int, typer.Option(help="Places per background, foreground and flip.")] = 20,
    size: Annotated[int, typer.Option(help="Side of the stored pictures, in pixels.")] = 224,
    label_size: Annotated[int, typer.Option(help="Side at which depth is labelled, a multiple of --size.")] = 448,
    fg_height: Annotated[int, typer.Option(help="Height of the foregrounds in the stored pictures, in pixels.")] = 110,
    flip: Annotated[bool, typer.Option("--flip/--no-flip", help="Paste mirror images too.")] = True,
    seed: Annotated[int, typer.Option(help="Decides places and splits.")] = 0,
    quality: Annotated[int, typer.Option(help="JPEG quality of the picture files.")] = 95,
    validation_share: Annotated[float, typer.Option(help="Share of pictures held out for validation.")] = 0.1,
    test_share: Annotated[float, typer.Option(help="Share of pictures held out for testing.")] = 0.1,
    max_backgrounds: Annotated[int | None, typer.Option(help="Use only the first so many.")] = None,
    max_foregrounds: Annotated[int | None, typer.Option(help="Use only the first so many.")] = None,
    jobs: Jobs = None,
    pictures: Annotated[
        bool, typer.Option("--pictures/--no-pictures", help="Write picture files; later stages do not need them.")
    ] = True,
    part: PartOf = None,
    backend: Backend = "local",
    scheduler: Scheduler = None,
) -> None:
    """Paste every foreground on every background: plan, composites and masks."""
    from dsgen.corpus.build import Parameters
    from dsgen.corpus.build import composite as run
    from dsgen.parallel.dask_cluster import scheduler_address
    from dsgen.parallel.parts import parse_part

    result = run(
        corpus,
        backgrounds,
        foregrounds,
        Parameters(
            positions=positions,
            size=size,
            label_size=label_size,
            fg_height=fg_height,
            flip=flip,
            seed=seed,
            quality=quality,
            validation_share=validation_share,
            test_share=test_share,
        ),
        max_backgrounds=max_backgrounds,
        max_foregrounds=max_foregrounds,
        jobs=jobs,
        pictures=pictures,
        part=None if part is None else parse_part(part),
        cluster=scheduler_address(backend, scheduler),
    )
    splits = ", ".join(f"{count:,} {name}" for name, count in result["splits"].items())
    typer.echo(
        f"{result['corpus']}: {result['rows']:,} composites of {result['backgrounds']} backgrounds and "
        f"{result['foregrounds']} foregrounds ({splits}); {result['drawn']:,} drawn now, "
        f"{result['already_there']:,} were there{_left(result, part)}"
    )


def _left(result: dict[str, Any], part: str | None) -> str:
    """Say after a part how much others have still to do."""
    return "" if part is None else f" of part {part}, {result['left']:,} are left to other parts"


@app.command()
def depth(
    path: Annotated[Path, typer.Argument(help="A corpus, or any folder of pictures.")] = Path("corpus"),
    weights: Annotated[
        Path | None, typer.Option(help="Weights: safetensors, or DenseDepth's Keras .h5; bundled unless given.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="hf:NAME_OR_FOLDER, or the timm encoder of --weights that do not say it.")
    ] = None,
    kind: Annotated[
        str | None, typer.Option(help="What an hf: model answers, metric or inverse, where it does not say.")
    ] = None,
    metric_reference: Annotated[
        str | None,
        typer.Option(help="Metric weights, or 'bundled', to fit a relative model to, background by background."),
    ] = None,
    max_depth: Annotated[
        float | None, typer.Option(help="Metres a Keras file was trained to: 80 if named kitti, else 10, unless given.")
    ] = None,
    device: Annotated[
        str, typer.Option("--device", help="auto, cpu, cuda, cuda:N or mps; several for a corpus: cuda:0,cuda:1.")
    ] = "auto",
    batch_size: Annotated[
        int | None, typer.Option(help="Pictures at once; 16 on a CPU and 64 elsewhere, or what fits, unless given.")
    ] = None,
    compile_network: Annotated[bool, typer.Option("--compile", help="Run the network through torch.compile.")] = False,
    precision: Annotated[
        str, typer.Option(help="float32, bf16, fp16, or auto: bf16 on CUDA and on processors with AMX.")
    ] = "auto",
    average_flip: Annotated[
        bool, typer.Option("--average-flip", help="Average with the mirror image's depth; takes twice as long.")
    ] = False,
    check_flip: Annotated[
        bool, typer.Option("--check-flip", help="Store how far each depth and its mirror image's disagree.")
    ] = False,
    pictures: Annotated[
        bool, typer.Option("--pictures", help="Draw views too: 8-bit, 0 to 10 m; of a folder in colour, with a scale.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Where a folder's labels go; FOLDER_depth unless given.")] = None,
    file_format: Annotated[
        str | None, typer.Option("--format", help="A folder's labels: png (uint16 mm) or npy (float32 m).")
    ] = None,
    jobs: Jobs = None,
    part: PartOf = None,
    backend: Backend = "local",
    scheduler: Scheduler = None,
) -> None:
    """Label every picture of a corpus, or of any folder, with depth."""
    from dsgen.corpus import layout

    options: dict[str, Any] = {
        "weights": weights,
        "model": model,
        "kind": kind,
        "max_depth_m": max_depth,
        "device": device,
        "batch_size": batch_size,
        "compile_network": compile_network,
        "precision": precision,
        "average_flip": average_flip,
    }
    if path.is_dir() and not (path / layout.CORPUS_JSON).exists() and not (path / layout.PLAN).exists():
        from dsgen.depth.label_folder import label_folder

        if check_flip or metric_reference:
            raise InvalidValueError(
                "--check-flip, --metric-reference", f"for a corpus, {path} is a folder", "leave them out"
            )
        if part or scheduler or backend != "local":
            raise InvalidValueError(
                "--part, --backend, --scheduler", f"for a corpus, {path} is a folder", "leave them out"
            )
        done = label_folder(path, out, file_format=file_format, previews=pictures, **options)
        for reason in done["failed"]:
            typer.echo(f"error: {reason}", err=True)
        typer.echo(
            f"{done['out']}: {done['labelled']:,} pictures labelled, {done['already_there']:,} were there, "
            f"{len(done['failed'])} failed ({done['model']})"
        )
        if done["failed"]:
            raise typer.Exit(1)
        return
    if out is not None or file_format is not None:
        raise InvalidValueError("--out, --format", f"{path} is a corpus and keeps its labels inside", "leave them out")
    from dsgen.depth.label_corpus import label_corpus
    from dsgen.parallel.dask_cluster import scheduler_address
    from dsgen.parallel.parts import parse_part

    result = label_corpus(
        path,
        metric_reference=metric_reference,
        check_flip=check_flip,
        pictures=pictures,
        jobs=jobs,
        part=None if part is None else parse_part(part),
        cluster=scheduler_address(backend, scheduler),
        **options,
    )
    rate = f" at {result['pictures_per_second']:,} a second" if result["labelled"] else ""
    what = "depth labels" if result["kind"] == "metric" else "relative labels (inverse depth, no metres)"
    typer.echo(
        f"{result['corpus']}: {result['rows']:,} {what}; {result['labelled']:,} made now{rate} by "
        f"{result['model']} on {result['device']}, {result['already_there']:,} were there{_left(result, part)}"
    )


@app.command("evaluate-depth")
def evaluate_depth(
    predictions: Annotated[Path, typer.Argument(help="Folder of depth maps: 16-bit PNG (mm) or npy (m).")],
    ground_truth: Annotated[Path, typer.Argument(help="Folder of true depth maps of the same names.")],
    out: Annotated[Path | None, typer.Option(help="Where to write all of it as JSON.")] = None,
    min_depth: Annotated[float, typer.Option(help="Metres; nearer true depths do not count.")] = 0.1,
    max_depth: Annotated[float, typer.Option(help="Metres; farther true depths do not count.")] = 10.0,
    crop: Annotated[
        str | None, typer.Option(help="eigen, or top,bottom,left,right in pixels; none unless given.")
    ] = None,
    png_unit: Annotated[float, typer.Option(help="Metres that 1 in a PNG stands for.")] = 0.001,
) -> None:
    """Score depth maps against true ones: AbsRel, SqRel, RMSE, RMSE log, log10, delta1 to 3, metric and scaled."""
    from dsgen.depth.score import evaluate_depth as work
    from dsgen.depth.score import table

    typer.echo(
        table(
            work(
                predictions,
                ground_truth,
                out=out,
                min_depth_m=min_depth,
                max_depth_m=max_depth,
                crop=crop,
                png_unit_m=png_unit,
            )
        )
    )


@app.command()
def pack(
    corpus: Annotated[Path, typer.Argument(help="The corpus to pack.")] = Path("corpus"),
    out: Annotated[str, typer.Option(help="The folder to make, or a URL like s3://bucket/prefix.")] = "shards",
    shards: Annotated[int, typer.Option(help="How many shards.")] = 6,
    recipe: Annotated[
        bool, typer.Option("--recipe", help="Store foregrounds in place of composites, which are drawn when read.")
    ] = False,
    zipped: Annotated[bool, typer.Option("--zip", help="Make every shard one zip file, read as it is.")] = False,
    max_flip_error: Annotated[
        float | None, typer.Option(help="Leave rows out of every split whose flip error is above; needs --check-flip.")
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(help="Pack a folder of pictures in place of a corpus; the next ones are by its names."),
    ] = None,
    masks: Annotated[Path | None, typer.Option(help="With --images: masks, 128 and more is foreground.")] = None,
    depths: Annotated[
        Path | None, typer.Option(help="With --images: depth, 16-bit PNG (see --png-unit) or npy (m).")
    ] = None,
    backgrounds: Annotated[
        Path | None, typer.Option(help="With --images: each picture without its foreground.")
    ] = None,
    size: Annotated[int, typer.Option(help="With --images: side of the stored pictures, in pixels.")] = 224,
    png_unit: Annotated[float, typer.Option(help="With --depths: metres that 1 in a PNG stands for.")] = 0.001,
    validation_share: Annotated[float, typer.Option(help="With --images: share held out for validation.")] = 0.1,
    test_share: Annotated[float, typer.Option(help="With --images: share held out for testing.")] = 0.1,
    seed: Annotated[int, typer.Option(help="With --images: decides splits.")] = 0,
    endpoint: Endpoint = None,
    part: PartOf = None,
    backend: Backend = "local",
    scheduler: Scheduler = None,
    jobs: Jobs = None,
) -> None:
    """Pack a corpus, or any pictures, into self-contained Zarr shards."""
    from dsgen.parallel.dask_cluster import scheduler_address
    from dsgen.parallel.parts import parse_part
    from dsgen.store.corpus_source import CorpusSource
    from dsgen.store.packing import pack_source

    _use_endpoint(endpoint)
    options: dict[str, Any] = {
        "shards": shards,
        "recipe": recipe,
        "zipped": zipped,
        "part": part and parse_part(part),
        "cluster": scheduler_address(backend, scheduler),
        "jobs": jobs,
    }
    if images is None:
        if masks or depths or backgrounds:
            raise InvalidValueError(
                "--masks, --depths, --backgrounds", "belong to --images", "give that too, or leave them out"
            )
        result = pack_source(CorpusSource(corpus, max_flip_error), out, **options)
    else:
        from dsgen.store.picture_source import Pictures

        if max_flip_error is not None or recipe:
            raise InvalidValueError(
                "--max-flip-error, --recipe", "for a corpus, --images gives pictures", "leave them out"
            )
        shares = validation_share, test_share
        source = Pictures(images, masks, depths, backgrounds, size, png_unit, *shares, seed)
        result = pack_source(source, out, **options)
    if not result.finished:
        typer.echo(f"{result.store}: {result.packed:,} rows packed now; other parts still have work to do")
        return
    left_out = "" if max_flip_error is None else f", {result.left_out:,} left out of the splits"
    drawn = f"{result.image_bytes_per_row:,} image bytes a row" if not recipe else "a recipe"
    typer.echo(
        f"{result.store}: {result.rows:,} rows in {result.shards} shards, "
        f"{'with' if result.depth else 'without'} depth, {(result.bytes or 0) / 1e6:,.1f} MB "
        f"({drawn}){left_out}; {result.packed:,} packed now, {result.already_there:,} were there"
    )


@app.command()
def export(
    source: Annotated[str, typer.Argument(help="A store; for a network the folder of a training run.")],
    out: Annotated[Path, typer.Argument(help="The folder to make; a name that ends in .onnx for a network.")],
    file_format: Annotated[str, typer.Option("--format", help="webdataset (tar files) or parquet.")] = "webdataset",
    split: Annotated[
        str | None, typer.Option(help="train, validation, test, unused, or all four; the first three unless given.")
    ] = None,
    image_format: Annotated[str, typer.Option(help="png, lossless, or jpeg of quality 95.")] = "png",
    backgrounds: Annotated[
        bool, typer.Option("--backgrounds/--no-backgrounds", help="Give every sample its background too.")
    ] = False,
    rows_per_file: Annotated[int, typer.Option(help="Most samples in a file.")] = 1000,
    jobs: Jobs = None,
) -> None:
    """Write a store out as WebDataset or Hugging Face parquet files, or a trained network as ONNX."""
    if out.suffix == ".onnx":
        from dsgen.evaluation.onnx import export_onnx

        typer.echo(f"{out}: " + _line(export_onnx(Path(source), out)))
        return
    from dsgen.store.export import export_store

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
    splits = ", ".join(f"{count:,} {name}" for name, count in result.splits.items())
    typer.echo(
        f"{result.out}: {result.rows:,} rows ({splits}) in {result.files:,} {result.format} files, "
        f"{result.bytes / 1e6:,.1f} MB; {result.exported:,} exported now, "
        f"{result.already_there:,} were there"
    )


@app.command()
def train(
    store: Annotated[str, typer.Argument(help="The packed corpus, a folder or a URL.")] = "shards",
    run: Annotated[Path, typer.Option(help="The folder for checkpoints, curves and predictions.")] = Path("run"),
    epochs: Annotated[int, typer.Option(help="How many epochs; a checkpoint is written after each.")] = 10,
    epoch_samples: Annotated[
        int, typer.Option(help="Most samples an epoch trains on, drawn anew each time; 0 for all.")
    ] = 20_000,
    validation_samples: Annotated[
        int, typer.Option(help="Most samples to score on, the same each time; 0: all.")
    ] = 1000,
    sizes: Annotated[str, typer.Option(help="Picture sizes to grow through, in pixels.")] = "96,192",
    batch_size: Annotated[
        str, typer.Option(help="Samples a step, over all processes; or one for each size: 16,8.")
    ] = "8",
    width: Annotated[int, typer.Option(help="Channels of the U-Net's first block.")] = 16,
    dropout: Annotated[float, typer.Option(help="Share of channels dropped in every block.")] = 0.0,
    colour: Annotated[str, typer.Option(help="What the U-Net sees: rgb or grey.")] = "rgb",
    output: Annotated[str, typer.Option(help="Its answers' size: full, or half of the pictures'.")] = "full",
    blocks: Annotated[
        str, typer.Option(help="Its first blocks: shared, or separate for background and composite.")
    ] = "shared",
    encoder: Annotated[str | None, typer.Option(help="A timm feature encoder in place of its levels down.")] = None,
    mask_loss: Annotated[str, typer.Option(help="bce-dice, bce or iou.")] = "bce-dice",
    depth_loss: Annotated[str, typer.Option(help="l1-ssim or ssim.")] = "l1-ssim",
    optimizer: Annotated[str, typer.Option(help="adam, adamw or sgd (momentum 0.9).")] = "adam",
    learning_rate: Annotated[float, typer.Option(help="The highest.")] = 5e-3,
    schedule: Annotated[str, typer.Option(help="Of the rate: plateau (halve on one), cosine or constant.")] = "plateau",
    warm_up: Annotated[float, typer.Option(help="Epochs, or part of one, over which the rate rises.")] = 0.0,
    weight_decay: Annotated[float, typer.Option(help="Of convolutions; with adam it is an L2 penalty.")] = 0.0,
    clip: Annotated[float | None, typer.Option(help="Highest norm of the gradient; any unless given.")] = None,
    early_stop: Annotated[
        int | None, typer.Option(help="Stop after so many epochs without gain at the last size; never unless given.")
    ] = None,
    augment: Annotated[float, typer.Option(help="Strength of augmentation; 0 mirrors only.")] = 1.0,
    average: Annotated[
        bool, typer.Option("--average/--no-average", help="Keep a moving average of the weights, the result.")
    ] = True,
    precision: Annotated[
        str, typer.Option(help="float32, bf16, fp16, or auto: bf16 on CUDA and on processors with AMX.")
    ] = "auto",
    compile_network: Annotated[bool, typer.Option("--compile", help="Run the network through torch.compile.")] = False,
    device: Device = "auto",
    workers: Annotated[int, typer.Option(help="Threads that read ahead.")] = 2,
    save_every: Annotated[float, typer.Option(help="Minutes between checkpoints in mid-epoch.")] = 5.0,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write TensorBoard events too.")] = False,
    seed: Annotated[int, typer.Option(help="Decides first weights, order and augmentation.")] = 0,
    init: Annotated[
        Path | None, typer.Option(help="A run (its best epoch) or checkpoint to take the first weights from.")
    ] = None,
    endpoint: Endpoint = None,
) -> None:
    """Train the two-headed U-Net on a store; several processes: torchrun --nproc-per-node 2 -m dsgen -- train."""
    from dsgen.parallel.devices import tune_for_training
    from dsgen.training.fit import is_blank
    from dsgen.training.fit import train as work
    from dsgen.training.ranks import is_first
    from dsgen.training.settings import Settings

    tune_for_training()
    _use_endpoint(endpoint)
    settings = Settings(
        seed=seed,
        sizes=_numbers(sizes),
        batch_size=_numbers(batch_size),
        epoch_samples=epoch_samples or None,
        validation_samples=validation_samples or None,
        width=width,
        dropout=dropout,
        colour=colour,
        output=output,
        blocks=blocks,
        encoder=encoder,
        mask_loss=mask_loss,
        depth_loss=depth_loss,
        optimizer=optimizer,
        learning_rate=learning_rate,
        schedule=schedule,
        warm_up=warm_up,
        weight_decay=weight_decay,
        clip=clip,
        early_stop=early_stop,
        augment=augment,
        average=average,
        precision=precision,
        compile=compile_network,
    )
    best = work(
        store,
        run,
        settings,
        epochs=epochs,
        init=init,
        device=device,
        workers=workers,
        save_every=save_every,
        show_in_tensorboard=tensorboard,
    )
    if is_first():
        scores = []
        if "iou" in best:
            zero = f"(all-zero {best['zero_iou']:.3f})"
            scores.append(f"mask IoU {best['iou']:.3f} {zero}, Dice {best['dice']:.3f}, BCE {best['bce']:.4f}")
        if "abs_rel" in best:
            mean = f" (mean depth {best['mean_depth_delta1']:.3f})" if "mean_depth_delta1" in best else ""
            errors = f"AbsRel {best['abs_rel']:.3f}, RMSE {best['rmse_m']:.2f} m"
            scores.append(f"depth {errors}, delta1 {best['delta1']:.3f}{mean}, SSIM {best['ssim']:.3f}")
        where = f"unseen backgrounds and foregrounds at {best['size']:.0f} px"
        typer.echo(f"{run}: best epoch {best['epoch']:.0f}, {where}: {'; '.join(scores)}")
    if is_blank(best):
        raise typer.Exit(1)


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="The folder of a training run.")] = Path("run"),
    store: Annotated[str, typer.Argument(help="The packed corpus to score on.")] = "shards",
    split: Annotated[str, typer.Option(help="train, validation, test, unused, or all of them.")] = "validation",
    size: Annotated[
        int | None, typer.Option(help="Side at which pictures are fed, in pixels; the largest trained on unless given.")
    ] = None,
    checkpoint: Annotated[str, typer.Option(help="Which of the run's: best, last, epoch-003, ...")] = "best",
    out: Annotated[
        Path | None, typer.Option(help="The folder to write; RUN/evaluation-SPLIT-SIZE unless given.")
    ] = None,
    samples: Annotated[
        int | None, typer.Option(help="Score on so many rows, the same each time; all unless given.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Samples at once.")] = 16,
    device: Device = "auto",
    workers: Annotated[int, typer.Option(help="Threads that read ahead.")] = 2,
) -> None:
    """Score a trained network on a store, beside trivial answers, and show where it is worst."""
    from dsgen.evaluation.evaluate import evaluate as work
    from dsgen.evaluation.evaluate import table

    result = work(
        run,
        store,
        split=split,
        size=size,
        checkpoint=checkpoint,
        out=out,
        samples=samples,
        batch_size=batch_size,
        device=device,
        workers=workers,
    )
    typer.echo(table(result))
    typer.echo(f"{result['out']}: scores.json, rows.csv, backgrounds.csv, foregrounds.csv, worst.png")
    if result["blank"]:
        raise typer.Exit(1)


@app.command()
def predict(
    run: Annotated[Path, typer.Argument(help="The folder of a training run.")],
    pictures: Annotated[Path, typer.Argument(help="A composite, or a folder of them; any sizes.")],
    backgrounds: Annotated[
        Path | None,
        typer.Option(help="One clean background for all, or a folder of them with the names of composites or folders."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The folder to write; PICTURES_predictions unless given.")] = None,
    size: Annotated[
        int | None, typer.Option(help="Longer side of what is fed, in pixels; the largest trained on unless given.")
    ] = None,
    checkpoint: Annotated[str, typer.Option(help="Which of the run's: best, last, epoch-003, ...")] = "best",
    file_format: Annotated[str, typer.Option("--format", help="Depth as png (uint16 mm) or npy (float32 m).")] = "png",
    views: Annotated[
        bool, typer.Option("--pictures", help="Draw views too: what was found in the composite, and the depth.")
    ] = False,
    device: Device = "auto",
) -> None:
    """Find masks and depth in composites with a trained network."""
    from dsgen.evaluation.predict import predict as work

    done = work(
        run,
        pictures,
        backgrounds,
        out,
        size=size,
        checkpoint=checkpoint,
        device=device,
        file_format=file_format,
        views=views,
    )
    for reason in done["failed"]:
        typer.echo(f"error: {reason}", err=True)
    typer.echo(
        f"{done['out']}: {' and '.join(done['answers'])} of {done['predicted']:,} pictures predicted at "
        f"{done['size']} px, {done['already_there']:,} were there, {len(done['failed'])} failed ({done['checkpoint']})"
    )
    if done["failed"]:
        raise typer.Exit(1)


@app.command()
def info(
    path: Annotated[str, typer.Argument(help="A corpus, or a store in a folder or at a URL.")] = "corpus",
    endpoint: Endpoint = None,
) -> None:
    """Say what a corpus or store is: whether complete, sizes, counts, splits, statistics."""
    from dsgen.views.info import describe

    _use_endpoint(endpoint)
    typer.echo(describe(path))


@app.command()
def preview(
    path: Annotated[str, typer.Argument(help="A corpus, or a store in a folder or at a URL.")] = "corpus",
    out: Annotated[Path, typer.Option(help="The picture to write.")] = Path("preview.png"),
    count: Annotated[int, typer.Option(help="How many rows to show.")] = 12,
    seed: Annotated[int, typer.Option(help="Decides which rows.")] = 0,
    endpoint: Endpoint = None,
) -> None:
    """Write a contact sheet: composite, mask, and depth with a metre scale."""
    from dsgen.views.preview import preview as work

    _use_endpoint(endpoint)
    typer.echo(f"{work(path, out, count=count, seed=seed)}")


@app.command()
def verify(
    path: Annotated[str, typer.Argument(help="A corpus, or a store in a folder or at a URL.")] = "corpus",
    corpus: Annotated[
        Path | None, typer.Option(help="Compare a store's pixels with this corpus; decoded only unless given.")
    ] = None,
    fast: Annotated[bool, typer.Option("--fast", help="Hashes, names and counts only.")] = False,
    jobs: Jobs = None,
    endpoint: Endpoint = None,
) -> None:
    """Check a corpus or store completely, list all that is wrong; exit code 1 where anything is."""
    from dsgen.integrity.verify import verify as work

    _use_endpoint(endpoint)
    report = work(path, corpus, fast=fast, jobs=jobs)
    if report.findings:
        typer.echo(report.table())
    for note in report.notes:
        typer.echo(f"note: {note}", err=True)
    typer.echo(report.summary())
    if report.findings:
        raise typer.Exit(1)


@app.command()
def repair(
    path: Annotated[str, typer.Argument(help="A corpus, or a store in a folder or at a URL.")],
    corpus: Annotated[Path, typer.Option(help="The corpus a store was packed from.")] = Path("corpus"),
    backgrounds: Annotated[
        Path | None, typer.Option(help="A corpus' backgrounds, for damaged sources; bundled unless given.")
    ] = None,
    foregrounds: Annotated[
        Path | None, typer.Option(help="A corpus' cut-outs, for damaged sources; bundled unless given.")
    ] = None,
    jobs: Jobs = None,
    endpoint: Endpoint = None,
) -> None:
    """Make what is damaged in a corpus or store again, and only that, with the hashes it had."""
    from dsgen.integrity.repair import repair as work

    _use_endpoint(endpoint)
    done = work(path, corpus, backgrounds, foregrounds, jobs=jobs)
    for note in done.notes:
        typer.echo(f"note: {note}", err=True)
    if done.after is not None and done.left:
        typer.echo(done.after.table())
    typer.echo(done.summary())
    if done.left:
        raise typer.Exit(1)


weights_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Look after depth networks' weights.")
app.add_typer(weights_app, name="weights")


@weights_app.command("convert")
def convert(
    source: Annotated[Path, typer.Argument(help="A Keras 2 .h5 file of DenseDepth, such as nyu.h5.")],
    out: Annotated[Path, typer.Argument(help="The safetensors file to write.")],
    max_depth: Annotated[
        float | None, typer.Option(help="Metres it was trained to: 80 if named kitti, else 10, unless given.")
    ] = None,
) -> None:
    """Turn the published Keras weights into a safetensors file for --weights."""
    from dsgen.depth.weights import convert_weights

    typer.echo(f"{out}: " + _line(convert_weights(source, out, max_depth)))


@app.command("train-depth")
def train_depth(
    frames: Annotated[Path, typer.Argument(help="Folder with rgb/, depth/ (16-bit PNG, mm) and frames.csv.")],
    out: Annotated[Path, typer.Option(help="The weights to write.")] = Path("depth.safetensors"),
    people: Annotated[Path | None, typer.Option(help="Folder of cut-outs to paste in.")] = None,
    init: Annotated[Path | None, typer.Option(help="Weights to start from; random unless given.")] = None,
    encoder: Annotated[str, typer.Option(help="Any timm feature encoder.")] = "mobilenetv4_conv_small",
    width: Annotated[int, typer.Option(help="Channels of the decoder's deepest block.")] = 256,
    sizes: Annotated[str, typer.Option(help="Picture sizes to grow through, in pixels.")] = "128,192,256",
    epochs: Annotated[str, typer.Option(help="Epochs at each size.")] = "16,8,4",
    batch_size: Annotated[int, typer.Option(help="Frames per step.")] = 16,
    learning_rate: Annotated[float, typer.Option(help="The highest learning rate.")] = 2e-3,
    seed: Annotated[int, typer.Option(help="Decides first weights, order and augmentation.")] = 0,
) -> None:
    """Train a depth network on a folder of RGB-D frames."""
    from dsgen.depth.fit import train_depth as work
    from dsgen.parallel.devices import tune_for_training

    tune_for_training()
    scores = work(
        frames,
        out,
        people,
        init,
        encoder=encoder,
        width=width,
        sizes=_numbers(sizes),
        epochs=_numbers(epochs),
        batch_size=batch_size,
        learning_rate=learning_rate,
        seed=seed,
    )
    typer.echo(f"{out}: " + _line(scores))


def _use_endpoint(endpoint: str | None) -> None:
    """Say where the object store is to this process and to those it starts."""
    if endpoint is not None:
        os.environ["AWS_ENDPOINT_URL"] = endpoint


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise typer.BadParameter(f"got {text!r}, expected whole numbers with commas between, like 96,192") from error


def _line(result: dict[str, Any]) -> str:
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in result.items()
    )


def main() -> None:
    """Run the command line; turn what a user can put right into one line and an exit code."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    logging.addLevelName(logging.WARNING, "note")
    logging.addLevelName(logging.ERROR, "ERROR")
    logger = logging.getLogger("dsgen")
    logger.addHandler(handler)
    logger.propagate = False
    try:
        app()
    except SystemExit as leaving:
        if leaving.code == INTERRUPTED:
            typer.echo("interrupted; run the same command again to go on", err=True)
        raise
    except DsgenError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(1)
    except ImportError as error:
        if "lib" not in str(error):
            raise
        remedy = "on Debian or Ubuntu: apt-get install libgl1 libglib2.0-0"
        typer.echo(f"error: a system library is missing ({error}), OpenCV needs it; {remedy}", err=True)
        sys.exit(1)
    except OSError as error:
        typer.echo(f"error: {error.filename or 'system'}: {error.strerror or error}", err=True)
        sys.exit(1)
