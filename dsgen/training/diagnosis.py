"""The errors that stop a training run, with what the user needs to act on them: the bad batch, a batch size that fits.

The functions return the error for the caller to raise.
"""

from typing import TYPE_CHECKING

import numpy as np
import torch

from dsgen.errors import DsgenError, InvalidValueError, in_words
from dsgen.store.arena import Batch
from dsgen.training.report import draw_sheet, save_batch

if TYPE_CHECKING:
    from dsgen.training.trainer import StartedStep, Trainer


def diagnose_bad_loss(trainer: "Trainer", started: "StartedStep", loss: float) -> DsgenError:
    """Save the batch of a step whose loss is not a number, of all ranks, and return the error that names it."""
    # as numpy arrays, since PyTorch cannot gather tensors of all types
    shares = trainer.ranks.gather({name: values.cpu().numpy() for name, values in started.batch.items()})
    batch = {name: torch.from_numpy(np.concatenate([share[name] for share in shares])) for name in shares[0]}
    saved = trainer.run / "bad-batch.npz"
    if trainer.ranks.first:
        save_batch(saved, batch)
        background, image, mask, depth_m = started.inputs
        columns = {"background": background, "composite": image, "mask": mask, "depth": depth_m}
        draw_sheet(saved.with_suffix(".png"), {name: values for name, values in columns.items() if values is not None})
    rows = ", ".join(map(str, batch["row"].tolist()))
    assert trainer.position is not None
    return DsgenError(
        "training",
        f"the loss is {loss} in epoch {trainer.epoch + 1}, step {trainer.position.step + 1}, rows {rows}",
        f"look at this batch in {saved} and .png, or lower --learning-rate",
    )


def is_out_of_memory(error: RuntimeError) -> bool:
    """Tell a failed allocation from other errors; the CPU's allocator raises a bare `RuntimeError`."""
    texts = "not enough memory", "can't allocate memory", "Cannot allocate memory"
    return isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in texts)


def diagnose_out_of_memory(trainer: "Trainer", batch: Batch, size: int, reason: str) -> InvalidValueError:
    """Find out which batch size fits, and return the error that says it; the trainer cannot be used afterwards."""
    batch_size = len(batch["row"]) * trainer.ranks.world_size
    what = "--batch-size"
    text = (
        f"got {in_words(trainer.settings.batch_size)}, too large at {size} px for the memory of {trainer.device} "
        f"({reason})"
    )
    if trainer.ranks.world_size > 1:  # only all ranks together could try
        return InvalidValueError(what, text, f"try {max(trainer.ranks.world_size, batch_size // 2)}")
    while batch_size > 1:
        batch_size //= 2
        if _fits(trainer, {name: values[:batch_size] for name, values in batch.items()}, size):
            return InvalidValueError(what, text, f"a step of {batch_size} fits")
    return InvalidValueError(what, text, "not even one sample fits, use smaller --sizes or --width, or another device")


def _fits(trainer: "Trainer", batch: Batch, size: int) -> bool:
    """Try a forward and backward pass."""
    trainer.optimizer.zero_grad(set_to_none=True)
    if trainer.device.type == "cuda":
        torch.cuda.empty_cache()
    try:
        loss, _ = trainer.forward(trainer.augmented(batch, size, torch.Generator().manual_seed(0)))
        loss.backward()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return False
    return True
