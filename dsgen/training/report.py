"""What a training run shows of itself: a table, curves, sheets of pictures, TensorBoard events."""

import csv
import io
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dsgen.errors import MissingPackageError
from dsgen.io.atomic import write_bytes
from dsgen.training.schedule import History
from dsgen.units import MAX_DEPTH_M

MASK_SCORES = ("iou", "zero_iou", "dice", "zero_dice", "bce", "blind_bce")
DEPTH_SCORES = ("abs_rel", "mean_depth_abs_rel", "rmse_m", "delta1", "mean_depth_delta1", "ssim")
SCORES = ("validation_loss", *MASK_SCORES, *DEPTH_SCORES)
COLUMNS = ("epoch", "size", "samples", "seconds", "images_per_second", "learning_rate", "train_loss", *SCORES)
_PANELS = {
    "loss": ("train_loss", "validation_loss"),
    "mask": ("iou", "dice", "zero_iou"),
    "cross-entropy": ("bce", "blind_bce"),
    "depth error": ("abs_rel", "mean_depth_abs_rel", "rmse_m"),
    "depth agreement": ("delta1", "mean_depth_delta1", "ssim"),
}


def write_metrics(path: Path, history: History) -> None:
    """Write one line an epoch; a score there is none of is empty."""
    text = io.StringIO(newline="")
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    for past in history:
        table.writerow("" if math.isnan(past[name]) else f"{past[name]:.6g}" for name in COLUMNS)
    write_bytes(path, text.getvalue().encode())


def draw_curves(path: Path, history: History) -> None:
    """Draw losses and scores by epoch as a PNG; a dotted line marks where the pictures grow."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(_PANELS), 3.4))
    figure.subplots_adjust(left=0.03, right=0.99, bottom=0.15, top=0.9, wspace=0.2)
    epochs = [past["epoch"] for past in history]
    for axes, (title, names) in zip(figure.subplots(1, len(_PANELS)), _PANELS.items(), strict=True):
        for name in names:
            trivial = name.split("_")[0] in ("zero", "blind", "mean")
            line = ":" if trivial else "-"
            axes.plot(epochs, [past[name] for past in history], line, marker="o", markersize=3, label=name)
        for before, after in pairwise(history):
            if before["size"] != after["size"]:
                axes.axvline(after["epoch"] - 0.5, color="grey", linestyle=":")
        axes.set_title(title)
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend(fontsize="small")
    write_bytes(path, _encode(figure))


def draw_sheet(path: Path, columns: dict[str, Tensor]) -> None:
    """Draw pictures and masks (B,C,H,W) in 0..1, and depths in metres, as a PNG with a row for each sample."""
    from matplotlib.figure import Figure

    size = next(iter(columns.values())).shape[-2:]
    pixels = np.concatenate([_shown(title, F.interpolate(maps, size)) for title, maps in columns.items()], axis=2)
    height = 2 * len(pixels)
    figure = Figure(figsize=(2 * len(columns), height + 0.4))
    axes = figure.add_axes((0, 0, 1, height / (height + 0.4)))
    axes.imshow(pixels.reshape(-1, *pixels.shape[2:]), aspect="auto")
    axes.axis("off")
    for k, title in enumerate(columns):
        name = f"{title}, 0 to {MAX_DEPTH_M:.0f} m" if title == "depth" else title
        axes.text((k + 0.5) / len(columns), 1.02 ** (2 / height), name, transform=axes.transAxes, ha="center")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, _encode(figure))


def _shown(title: str, maps: Tensor) -> np.ndarray:
    """Colour maps for people to look at: (B,H,W,3) in 0..1 with a white edge on two sides; what is no number is 0."""
    from matplotlib import colormaps

    shown = np.nan_to_num(maps.detach().float().permute(0, 2, 3, 1).cpu().numpy())
    if "depth" in title:
        shown = colormaps["turbo"](shown[..., 0] / MAX_DEPTH_M)[..., :3]
    # averaging may leave a picture's white a rounding error above 1
    shown = np.repeat(shown, 3 // shown.shape[3], axis=3).clip(0, 1)
    return np.pad(shown, ((0, 0), (0, 2), (0, 2), (0, 0)), constant_values=1)


def _encode(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()


def save_batch(path: Path, batch: dict[str, Tensor]) -> None:
    """Write a loader's batch as an npz file with an array for every part."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **{name: values.cpu().numpy() for name, values in batch.items()})  # type: ignore[arg-type]
    write_bytes(path, buffer.getvalue())


@contextmanager
def tensorboard(folder: Path, wanted: bool, epochs_done: int) -> Iterator[Callable[[dict[str, float], Path], None]]:
    """Yield what writes an epoch's numbers and its sheet as TensorBoard events, or does nothing unless `wanted`.

    Events of epochs after `epochs_done`, which a killed run may have left, no longer show.
    """
    if not wanted:
        yield lambda *_: None
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingPackageError("tensorboard", "not installed", "pip install 'dsgen[tensorboard]'") from error
    from dsgen.io.images import read_picture

    def write(past: dict[str, float], sheet: Path) -> None:
        epoch = int(past["epoch"])
        for name in ("learning_rate", "images_per_second", "train_loss", *SCORES):
            if not math.isnan(past[name]):
                group = "mask" if name in MASK_SCORES else "depth" if name in DEPTH_SCORES else "training"
                writer.add_scalar(f"{group}/{name}", past[name], epoch)
        writer.add_image("predictions", torch.from_numpy(read_picture(sheet)), epoch, dataformats="HWC")
        writer.flush()

    with SummaryWriter(str(folder), purge_step=epochs_done + 1) as writer:
        yield write
