"""The commands that train the two-headed U-Net, score it, and predict with it."""

from pathlib import Path
from typing import Annotated, Any

import typer

from dsgen.cli.command import Command
from dsgen.cli.options import Checkpoint, Device, Workers
from dsgen.cli.results import Reply, as_dict
from dsgen.cli.settings_options import FieldsOf


def train(
    store: Annotated[str, typer.Argument(metavar="STORE", help="The store to train on, a folder or a URL.")] = "shards",
    run: Annotated[Path, typer.Option(help="The folder for checkpoints, curves and predictions.")] = Path("run"),
    epochs: Annotated[int, typer.Option(help="Number of epochs; each ends with a checkpoint.")] = 10,
    settings: Annotated[Any, FieldsOf("dsgen.training.settings:Settings")] = None,
    init: Annotated[
        Path | None,
        typer.Option(help="A run (its best epoch) or checkpoint with the first weights; random by default."),
    ] = None,
    device: Device = "auto",
    workers: Workers = 2,
    save_every: Annotated[float, typer.Option(help="Minutes between checkpoints within an epoch.")] = 5.0,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write TensorBoard events too.")] = False,
) -> Reply | None:
    """Train the two-headed U-Net on a store.

    Run it again to resume it, also with more epochs. If no masks are learnt, that is a warning, not an error. Several
    processes share the batches when started by: torchrun --nproc-per-node 2 -m dsgen -- train
    """
    from dsgen.parallel.devices import tune_for_training
    from dsgen.training.fit import train as fit
    from dsgen.training.ranks import is_first

    tune_for_training()
    result = fit(
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
    return Reply(_trained_text(run, result.best), as_dict(result)) if is_first() else None


def _trained_text(run: Path, best: dict[str, float]) -> str:
    scores = []
    if "iou" in best:
        zero = f"(all-zero {best['zero_iou']:.3f})"
        scores.append(f"mask IoU {best['iou']:.3f} {zero}, Dice {best['dice']:.3f}, BCE {best['bce']:.4f}")
    if "abs_rel" in best:
        mean = f" (mean depth {best['mean_depth_delta1']:.3f})" if "mean_depth_delta1" in best else ""
        errors = f"AbsRel {best['abs_rel']:.3f}, RMSE {best['rmse_m']:.2f} m"
        scores.append(f"depth {errors}, delta1 {best['delta1']:.3f}{mean}, SSIM {best['ssim']:.3f}")
    where = f"unseen backgrounds and foregrounds at {best['size']:.0f} px"
    return f"{run}: best epoch {best['epoch']:.0f}, {where}: {'; '.join(scores)}"


def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a training run.")] = Path("run"),
    store: Annotated[str, typer.Argument(metavar="STORE", help="The store to score on, a folder or a URL.")] = "shards",
    split: Annotated[str, typer.Option(help="train, validation, test, unused, or all of them.")] = "validation",
    size: Annotated[
        int | None,
        typer.Option(help="Side at which images are fed, in pixels; the largest trained on by default."),
    ] = None,
    checkpoint: Checkpoint = "best",
    out: Annotated[Path | None, typer.Option(help="The folder to write; RUN/evaluation-SPLIT-SIZE by default.")] = None,
    samples: Annotated[
        int | None, typer.Option(help="Score only N rows, always the same ones; all by default.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Samples per batch.")] = 16,
    device: Device = "auto",
    workers: Workers = 2,
) -> Reply:
    """Score a trained network on a store, and show its worst rows.

    Its scores are shown beside those of trivial answers. The exit code is 1 if its masks are no better than empty ones.
    """
    from dsgen.evaluation.evaluate import evaluate as score

    result = score(
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
    files = "scores.json, rows.csv, backgrounds.csv, foregrounds.csv, worst.png"
    return Reply(f"{result.table()}\n{result.out}: {files}", as_dict(result), failed=result.blank)


def predict(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a training run.")],
    pictures: Annotated[
        Path, typer.Argument(metavar="PICTURES", help="A composite, or a folder of them, of any sizes.")
    ],
    backgrounds: Annotated[
        Path | None,
        typer.Option(
            help="One clean background for all, or a folder of them named like the composites or their folders."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The folder to write; PICTURES_predictions by default.")] = None,
    size: Annotated[
        int | None,
        typer.Option(help="Longer side at which pictures are fed, in pixels; the largest trained on by default."),
    ] = None,
    checkpoint: Checkpoint = "best",
    file_format: Annotated[
        str, typer.Option("--format", help="Format of the depth: png (uint16 mm) or npy (float32 m).")
    ] = "png",
    views: Annotated[
        bool, typer.Option("--pictures", help="Draw views too: the foreground found in the composite, and the depth.")
    ] = False,
    device: Device = "auto",
) -> Reply:
    """Predict masks and depth of composites with a trained network.

    Run it again to resume it.
    """
    from dsgen.evaluation.predict import predict as work

    result = work(
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
    text = (
        f"{result.out}: {' and '.join(result.answers)} of {result.predicted:,} pictures predicted at "
        f"{result.size} px, {result.already_there:,} already existed, {len(result.failed):,} failed "
        f"({result.checkpoint})"
    )
    return Reply(text, as_dict(result), problems=result.failed, failed=bool(result.failed))


TRAIN = Command(
    "train",
    train,
    (
        "dsgen train",
        "dsgen train shards --epochs 8 --epoch-samples 500",
        "dsgen train --run other --config run/config.json",
        "dsgen train --run polished --init run --augment 0",
    ),
    endpoint=True,
    config="settings",
)
EVALUATE = Command("evaluate", evaluate, ("dsgen evaluate", "dsgen evaluate run shards --split test"), endpoint=True)
PREDICT = Command("predict", predict, ("dsgen predict run shots --backgrounds room.jpg",))
