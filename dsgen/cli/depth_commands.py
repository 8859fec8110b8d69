"""The commands that label with depth, score depth maps, and make and convert weights of depth networks."""

from pathlib import Path
from typing import Annotated, Any

import typer

from dsgen.cli.command import Command
from dsgen.cli.corpus_commands import left_to_others
from dsgen.cli.options import (
    Backend,
    Device,
    Jobs,
    PartOf,
    Scheduler,
    dask_address,
    is_given,
    parse_numbers,
    parse_part_of,
    refuse_ignored,
)
from dsgen.cli.results import Reply, as_dict

HUGGING_FACE = "hf:"


def depth(
    context: typer.Context,
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A corpus, or any folder of pictures.")] = Path("corpus"),
    weights: Annotated[
        Path | None, typer.Option(help="Weights: safetensors, or DenseDepth's Keras .h5; bundled by default.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="hf:NAME_OR_FOLDER, or the timm encoder of --weights if the file does not name it."),
    ] = None,
    kind: Annotated[
        str | None, typer.Option(help="What an hf: model predicts, metric or inverse, if that is not known.")
    ] = None,
    metric_reference: Annotated[
        str | None,
        typer.Option(
            help="Metric weights, or 'bundled', to which a relative model is fitted, background by background."
        ),
    ] = None,
    max_depth: Annotated[
        float | None,
        typer.Option(help="Depth range in metres of a Keras file; 80 if its name says kitti, else 10, by default."),
    ] = None,
    device: Annotated[
        str,
        typer.Option(
            "--device", help="auto (CUDA, else the CPU), cpu, cuda, cuda:N or mps; for a corpus several: cuda:0,cuda:1."
        ),
    ] = "auto",
    batch_size: Annotated[
        int | None,
        typer.Option(help="Images per batch; 16 on a CPU, 64 elsewhere, or as many as fit, by default."),
    ] = None,
    compile_network: Annotated[bool, typer.Option("--compile", help="Run the network through torch.compile.")] = False,
    precision: Annotated[
        str,
        typer.Option(
            help="float32, bf16, fp16, or auto: that of labels to resume, else bf16 on CUDA, the faster one on a CPU."
        ),
    ] = "auto",
    average_flip: Annotated[
        bool, typer.Option("--average-flip", help="Average with the mirror image's depth; takes twice as long.")
    ] = False,
    check_flip: Annotated[
        bool, typer.Option("--check-flip", help="Store how much the depth of each image and its mirror image differ.")
    ] = False,
    fov: Annotated[
        float | None,
        typer.Option(
            help="Field of view in degrees, along the width, of pictures (of a corpus: of its square backgrounds) that "
            "do not say theirs; 63 along the longer side by default. For networks with a canonical camera."
        ),
    ] = None,
    composed: Annotated[
        bool,
        typer.Option(
            "--composed",
            help="Label with composed depth: the background's own, and each person's distance. The network is run only "
            "on backgrounds whose depth is not known.",
        ),
    ] = False,
    background_depths: Annotated[
        Path | None,
        typer.Option(help="With --composed: folder of the backgrounds' depth, NAME.png (16 bits, mm) or NAME.npy (m)."),
    ] = None,
    pictures: Annotated[
        bool, typer.Option("--pictures", help="Draw views too: 8-bit, 0 to 10 m; for a folder in colour, with a scale.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Where the labels of a folder go; FOLDER_depth by default.")] = None,
    file_format: Annotated[
        str | None, typer.Option("--format", help="Format of a folder's labels: png (uint16 mm) or npy (float32 m).")
    ] = None,
    part: PartOf = None,
    backend: Backend = "local",
    scheduler: Scheduler = None,
    jobs: Jobs = None,
) -> Reply:
    """Label a corpus, or any folder of pictures, with depth.

    Run it again to resume it.
    """
    if (model or "").startswith(HUGGING_FACE):
        refuse_ignored(context, "--model is hf:NAME", "weights", "max_depth", "compile_network")
    else:
        refuse_ignored(context, "--model is not hf:NAME", "kind")
    network: dict[str, Any] = {
        "weights": weights,
        "model": model,
        "kind": kind,
        "max_depth_m": max_depth,
        "device": device,
        "batch_size": batch_size,
        "compile_network": compile_network,
        "precision": precision,
        "average_flip": average_flip,
        "fov_deg": fov,
    }
    if _is_folder_of_pictures(path):
        unused = (
            "part",
            "backend",
            "scheduler",
            "jobs",
            "check_flip",
            "metric_reference",
            "composed",
            "background_depths",
        )
        refuse_ignored(context, "a folder of pictures is labelled", *unused)
        return _label_folder(path, out, file_format, pictures, network)
    from dsgen.io.places import not_a_corpus

    if not composed:
        refuse_ignored(context, "a network labels (no --composed)", "background_depths")
    if path.is_file() or (is_given(context, "path") and not path.exists()):
        raise not_a_corpus(path, "a folder of pictures")
    refuse_ignored(context, "a corpus is labelled", "out", "file_format")
    if composed:
        networks_only = (
            "batch_size",
            "compile_network",
            "precision",
            "average_flip",
            "check_flip",
            "metric_reference",
            "kind",
        )
        refuse_ignored(context, "depth is composed (--composed)", *networks_only, "max_depth")
        return _compose(
            context, path, weights, model, device, fov, background_depths, pictures, part, backend, scheduler, jobs
        )
    from dsgen.depth.label_corpus import label_corpus

    work, cluster = parse_part_of(part), dask_address(context, backend, scheduler)
    result = label_corpus(
        path,
        metric_reference=metric_reference,
        check_flip=check_flip,
        pictures=pictures,
        jobs=jobs,
        part=work,
        cluster=cluster,
        **network,
    )
    rate = f" at {result.pictures_per_second:,} images/s" if result.labelled else ""
    what = "depth labels" if result.kind == "metric" else "relative labels (inverse depth, not in metres)"
    text = (
        f"{result.corpus}: {result.rows:,} {what}; {result.labelled:,} labelled now{rate} by {result.model} on "
        f"{result.device}, {result.already_there:,} already existed{left_to_others(result.left, part)}"
        f"{_assumed(result.fov_assumed, ' backgrounds')}"
    )
    return Reply(text, as_dict(result))


def _compose(
    context: typer.Context,
    path: Path,
    weights: Path | None,
    model: str | None,
    device: str,
    fov: float | None,
    background_depths: Path | None,
    pictures: bool,
    part: str | None,
    backend: str,
    scheduler: str | None,
    jobs: int | None,
) -> Reply:
    from dsgen.corpus.composed import label_composed
    from dsgen.depth.rooms import estimate_depth_with

    result = label_composed(
        path,
        background_depths=background_depths,
        estimate_depth=estimate_depth_with(weights, model, device),
        fov_deg=fov,
        pictures=pictures,
        jobs=jobs,
        part=parse_part_of(part),
        cluster=dask_address(context, backend, scheduler),
    )
    if result.beside is not None:
        text = (
            f"{result.corpus}: composed depth of {result.rows:,} rows is known and drawn when needed; the labels of "
            f"{result.beside} stay; dsgen info compares both, dsgen pack --composed packs it"
        )
        return Reply(text, as_dict(result))
    text = (
        f"{result.corpus}: {result.rows:,} depth labels; {result.labelled:,} composed now, {result.already_there:,} "
        f"already existed{left_to_others(result.left, part)}"
    )
    return Reply(text, as_dict(result))


def _is_folder_of_pictures(path: Path) -> bool:
    """Tell a folder of pictures from a corpus; raise `NotFoundError` for what is clearly something else."""
    from dsgen.io.places import CORPORA, Kind, not_a_corpus, recognise

    kind = recognise(path)
    if kind in (*CORPORA, Kind.MISSING):
        return False
    if kind not in (Kind.EMPTY, Kind.PICTURES, Kind.OTHER):
        raise not_a_corpus(path, "a folder of pictures")
    return True


def _label_folder(
    folder: Path, out: Path | None, file_format: str | None, pictures: bool, network: dict[str, Any]
) -> Reply:
    from dsgen.depth.label_folder import label_folder

    result = label_folder(folder, out, file_format=file_format, previews=pictures, **network)
    text = (
        f"{result.out}: {result.labelled:,} pictures labelled now by {result.model}, "
        f"{result.already_there:,} already existed, {len(result.failed):,} failed{_assumed(result.fov_assumed)}"
    )
    return Reply(text, as_dict(result), problems=result.failed, failed=bool(result.failed))


def _assumed(pictures: int, of: str = "") -> str:
    """Say how many pictures were taken to have the usual field of view, since nothing says theirs."""
    from dsgen.camera import ASSUMED_FOV_DEG

    return f"; field of view of {pictures:,}{of} assumed, {ASSUMED_FOV_DEG:g} degrees, see --fov" if pictures else ""


def evaluate_depth(
    predictions: Annotated[
        Path, typer.Argument(metavar="PREDICTIONS", help="Folder of depth maps: 16-bit PNG (mm) or npy (m).")
    ],
    ground_truth: Annotated[
        Path, typer.Argument(metavar="TRUTH", help="Folder of true depth maps with the same names.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="JSON file to write the scores of all pictures to; none by default.")
    ] = None,
    min_depth: Annotated[float, typer.Option(help="Ignore pixels whose true depth is below this, in metres.")] = 0.1,
    max_depth: Annotated[float, typer.Option(help="Ignore pixels whose true depth is above this, in metres.")] = 10.0,
    crop: Annotated[
        str | None, typer.Option(help="eigen, or top,bottom,left,right in pixels; no crop by default.")
    ] = None,
    png_unit: Annotated[float, typer.Option(help="Metres that 1 in a PNG stands for.")] = 0.001,
) -> Reply:
    """Score depth maps against true ones.

    The scores are AbsRel, SqRel, RMSE, RMSE log, log10 and delta1 to delta3, in metres and after median scaling.
    """
    from dsgen.depth.score import evaluate_depth as score

    result = score(
        predictions,
        ground_truth,
        out=out,
        min_depth_m=min_depth,
        max_depth_m=max_depth,
        crop=crop,
        png_unit_m=png_unit,
    )
    return Reply(result.table(), as_dict(result))


def train_depth(
    frames: Annotated[
        list[str],
        typer.Argument(
            metavar="FRAMES[:SHARE]...",
            help="Folders with rgb/, depth/ (16-bit PNG, mm) and frames.csv; how much of each is drawn, if not evenly.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="The weights to write.")] = Path("depth.safetensors"),
    validation: Annotated[
        Path | None, typer.Option(help="Folder of frames that choose the epoch; the last one without.")
    ] = None,
    people: Annotated[Path | None, typer.Option(help="Folder of cut-outs to paste in; none by default.")] = None,
    styles: Annotated[
        Path | None, typer.Option(help="Folder of photographs whose colours frames are given; none by default.")
    ] = None,
    init: Annotated[Path | None, typer.Option(help="Weights to start from; random by default.")] = None,
    encoder: Annotated[str, typer.Option(help="Any timm feature encoder.")] = "mobilenetv4_conv_small",
    encoder_weights: Annotated[
        str | None,
        typer.Option(help="Its weights: a file, or 'pretrained' for timm's own, from the internet; random by default."),
    ] = None,
    width: Annotated[int, typer.Option(help="Channels of the decoder's deepest block.")] = 256,
    focal_px: Annotated[
        float, typer.Option(help="Focal length in pixels at which the network will be fed (canonical camera).")
    ] = 192.0,
    full_size: Annotated[
        bool, typer.Option("--full-size/--half-size", help="Size of the answers: that of the picture, or half of it.")
    ] = True,
    sizes: Annotated[str, typer.Option(help="Image sizes to grow through, in pixels.")] = "128,192,224",
    epochs: Annotated[str, typer.Option(help="Number of epochs at each size.")] = "16,8,4",
    batch_size: Annotated[int, typer.Option(help="Frames per step.")] = 16,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate.")] = 2e-3,
    seed: Annotated[int, typer.Option(help="Seed of the first weights, the order and the augmentation.")] = 0,
    device: Device = "auto",
) -> Reply:
    """Train a depth network on a folder of RGB-D frames."""
    from dsgen.depth.fit import train_depth as fit
    from dsgen.depth.frames import parse_shares
    from dsgen.parallel.devices import tune_for_training

    size_numbers, epoch_numbers = parse_numbers("sizes", sizes), parse_numbers("epochs", epochs)
    folders, shares = parse_shares(frames)
    tune_for_training()
    result = fit(
        folders,
        out,
        people,
        init,
        shares=shares,
        validation_folder=validation,
        styles_folder=styles,
        focal_px=focal_px,
        full_size=full_size,
        encoder=encoder,
        encoder_weights=encoder_weights,
        width=width,
        sizes=size_numbers,
        epochs=epoch_numbers,
        batch_size=batch_size,
        learning_rate=learning_rate,
        seed=seed,
        device=device,
    )
    scores = ", ".join(f"{name} {value:.4g}" for name, value in result.scores.items())
    return Reply(f"{out}: scores on held-out rooms: {scores}", as_dict(result))


def convert(
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="A Keras 2 .h5 file of DenseDepth, such as nyu.h5; or any weights.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The safetensors file to write.")],
    max_depth: Annotated[
        float | None,
        typer.Option(help="Depth range in metres; 80 if the name says kitti, else 10, by default."),
    ] = None,
    half: Annotated[bool, typer.Option("--half", help="Write kernels as float16: half the bytes.")] = False,
) -> Reply:
    """Convert DenseDepth's published Keras weights to safetensors, or halve the bytes of any weights."""
    from dsgen.depth.weights import convert_weights

    result = convert_weights(source, out, max_depth, half)
    text = (
        f"{out}: {result.parameters:,} parameters in {result.arrays:,} arrays, for depths up to "
        f"{result.max_depth_m:g} m, SHA-256 {result.sha256[:12]}"
    )
    return Reply(text, as_dict(result))


DEPTH = Command(
    "depth",
    depth,
    (
        "dsgen depth",
        "dsgen depth corpus --device cuda --compile",
        "dsgen depth corpus --part 3/8",
        "dsgen depth corpus --composed",
        "dsgen depth holiday-pictures --pictures --format npy",
    ),
)
EVALUATE_DEPTH = Command(
    "evaluate-depth",
    evaluate_depth,
    ("dsgen evaluate-depth predicted truth --crop eigen",),
)
TRAIN_DEPTH = Command("train-depth", train_depth, ("dsgen train-depth frames --out mine.safetensors",))
CONVERT = Command("convert", convert, ("dsgen weights convert nyu.h5 nyu.safetensors",))
