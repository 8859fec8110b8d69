"""What a training run shows: a table and curves of its scores, sheets of predictions, TensorBoard events."""

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
from dsgen.io.csv_files import encode_csv
from dsgen.store.arena import Batch
from dsgen.training.batches import Batches, prepare, take
from dsgen.training.ranks import Ranks
from dsgen.training.schedule import History
from dsgen.training.unet import UNet, unet_metres
from dsgen.training.validation import DEPTH_SCORES, MASK_SCORES, SCORES
from dsgen.units import MAX_DEPTH_M

COLUMNS = ("epoch", "size", "samples", "seconds", "images_per_second", "learning_rate", "train_loss", *SCORES)
_SHEET_SAMPLES = 6
_PANELS = {
    "loss": ("train_loss", "validation_loss"),
    "mask": ("iou", "dice", "zero_iou"),
    "cross-entropy": ("bce", "blind_bce"),
    "depth error": ("abs_rel", "mean_depth_abs_rel", "rmse_m"),
    "depth agreement": ("delta1", "mean_depth_delta1", "ssim"),
}


def write_metrics(path: Path, history: History) -> None:
    """Write a CSV file with one line per epoch; a score without a truth is empty."""
    lines = (["" if math.isnan(entry[name]) else f"{entry[name]:.6g}" for name in COLUMNS] for entry in history)
    write_bytes(path, encode_csv(COLUMNS, lines))


def draw_curves(path: Path, history: History) -> None:
    """Draw losses and scores by epoch as a PNG; a dotted line marks where the image size grows."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(_PANELS), 3.4))
    figure.subplots_adjust(left=0.03, right=0.99, bottom=0.15, top=0.9, wspace=0.2)
    epochs = [entry["epoch"] for entry in history]
    for axes, (title, names) in zip(figure.subplots(1, len(_PANELS)), _PANELS.items(), strict=True):
        for name in names:
            trivial = name.split("_")[0] in ("zero", "blind", "mean")
            line = ":" if trivial else "-"
            axes.plot(epochs, [entry[name] for entry in history], line, marker="o", markersize=3, label=name)
        for before, after in pairwise(history):
            if before["size"] != after["size"]:
                axes.axvline(after["epoch"] - 0.5, color="grey", linestyle=":")
        axes.set_title(title)
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend(fontsize="small")
    write_bytes(path, _encode(figure))


class Predictions:
    """The predictions for the first few validation samples, the same ones after every epoch."""

    def __init__(self, validation: Batches, fields: tuple[str, ...], device: torch.device, ranks: Ranks):
        self._validation, self._fields, self._device, self._ranks = validation, fields, device, ranks
        self._samples: Batch | None = None

    @torch.no_grad()
    def draw(self, path: Path, network: UNet, size: int) -> None:
        """Draw images, truth and predictions at an image size as a PNG, see `draw_sheet`."""
        if self._samples is None:
            self._samples = self._read()
        background, image, mask, depth_m = prepare(self._samples, size, self._device)
        logits, raw = network.eval()(background, image)
        has_mask = "mask" in self._fields
        columns = {
            "background": background if "background" in self._fields else None,
            "composite": image,
            "mask": mask if has_mask else None,
            "predicted mask": logits.sigmoid() if has_mask else None,
            "depth": depth_m,
            "predicted depth": unet_metres(raw) if depth_m is not None else None,
        }
        draw_sheet(path, {title: maps for title, maps in columns.items() if maps is not None})

    def _read(self) -> Batch:
        self._validation.set_epoch(0)
        stream = take(self._validation, _SHEET_SAMPLES * self._ranks.world_size, self._ranks)
        batches = [batch for batch, _ in stream]
        return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


def draw_sheet(path: Path, columns: dict[str, Tensor]) -> None:
    """Draw a sheet with a row for each sample as a PNG.

    `columns` has images and masks (B,C,H,W) in 0..1 and depth maps (B,1,H,W) in metres by title; depth is what has
    "depth" in its title.
    """
    from matplotlib.figure import Figure

    size = next(iter(columns.values())).shape[-2:]
    pixels = np.concatenate([_colour(title, F.interpolate(maps, size)) for title, maps in columns.items()], axis=2)
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


def _colour(title: str, maps: Tensor) -> np.ndarray:
    """Turn maps (B,C,H,W) into RGB (B,H+2,W+2,3) in 0..1 with a white edge at the right and below; nan becomes 0."""
    from matplotlib import colormaps

    rgb = np.nan_to_num(maps.detach().float().permute(0, 2, 3, 1).cpu().numpy())
    if "depth" in title:
        rgb = colormaps["turbo"](rgb[..., 0] / MAX_DEPTH_M)[..., :3]
    # averaging may leave white a rounding error above 1
    rgb = np.repeat(rgb, 3 // rgb.shape[3], axis=3).clip(0, 1)
    return np.pad(rgb, ((0, 0), (0, 2), (0, 2), (0, 0)), constant_values=1)


def _encode(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()


def save_batch(path: Path, batch: Batch) -> None:
    """Write a loader's batch as an npz file with an array for each field."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **{name: values.cpu().numpy() for name, values in batch.items()})  # type: ignore[arg-type]
    write_bytes(path, buffer.getvalue())


@contextmanager
def tensorboard_writer(
    folder: Path, enabled: bool, epochs_done: int
) -> Iterator[Callable[[dict[str, float], Path], None]]:
    """Yield a function that writes an epoch's history entry and sheet as TensorBoard events, or does nothing.

    It does nothing unless `enabled`. Events of epochs after `epochs_done`, which a killed run may have left, are
    hidden.
    """
    if not enabled:
        yield lambda *_: None
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MissingPackageError("tensorboard", "not installed", "pip install 'dsgen[tensorboard]'") from error
    from dsgen.io.images import read_picture

    def write(entry: dict[str, float], sheet: Path) -> None:
        epoch = int(entry["epoch"])
        for name in ("learning_rate", "images_per_second", "train_loss", *SCORES):
            if not math.isnan(entry[name]):
                group = "mask" if name in MASK_SCORES else "depth" if name in DEPTH_SCORES else "training"
                writer.add_scalar(f"{group}/{name}", entry[name], epoch)
        writer.add_image("predictions", torch.from_numpy(read_picture(sheet)), epoch, dataformats="HWC")
        writer.flush()

    with SummaryWriter(str(folder), purge_step=epochs_done + 1) as writer:
        yield write
