"""From a loader's batches to the network's inputs, and to the truth its predictions are compared with."""

from collections.abc import Generator, Iterator
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from dsgen.store.arena import Batch
from dsgen.store.batch import as_floats
from dsgen.training.ranks import Ranks

Prepared = tuple[Tensor, Tensor, Tensor, Tensor | None]  # background, image, mask, depth_m


class Batches(Protocol):
    """What training needs of a loader; batches and states are those of `dsgen.store.loader.Loader`."""

    rows: int
    size: int
    fields: tuple[str, ...]
    sha256: str | None

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next pass, which starts at the first sample."""

    def state_dict(self) -> dict[str, Any]:
        """Return the position of the current pass."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Make the next pass resume from a position."""

    def __iter__(self) -> Iterator[Batch]: ...


def take(
    batches: Batches,
    samples: int | None,
    ranks: Ranks = Ranks(),  # noqa: B008 - it is frozen
) -> Generator[tuple[Batch, int], None, None]:
    """Yield this rank's batches of an epoch's first `samples` samples, all if None; cut the last batch if need be.

    With each batch comes how many samples of the epoch all ranks together have had by its end. A pass that the loader
    resumes counts from where it was.
    """
    start = batches.state_dict()["samples"]
    limit = batches.rows if samples is None else samples
    if start >= limit:
        return
    for batch in batches:
        end = min(batches.state_dict()["samples"], limit)
        # sample k of the whole batch is at rank k % world_size
        kept = len(range(start + ranks.rank, end, ranks.world_size))
        if kept:
            yield {name: values[:kept] for name, values in batch.items()}, end
        start = end
        if start >= limit:
            return


def prepare(batch: Batch, size: int, device: torch.device) -> Prepared:
    """Turn a batch into background and image (B,3,S,S) in 0..1, mask (B,1,S,S) 0 or 1, depth (B,1,S,S) in metres.

    S is `size`. Images and masks are reduced by antialiased averaging; a mask pixel is then 1 from one half up. Depth
    takes the nearest pixel: the average of two surfaces would be the depth of neither, and 0 keeps marking a missing
    depth. A batch without backgrounds or masks gets zeros for them, one without depth gets None.
    """
    arrays = as_floats({name: _signed(values).to(device) for name, values in batch.items() if name != "row"})

    def shrink(images: Tensor) -> Tensor:
        if images.shape[-1] == size:
            return images
        shrunk = F.interpolate(images, size=(size, size), mode="bilinear", antialias=True)
        return shrunk.contiguous(memory_format=torch.channels_last)

    image = shrink(arrays["image"])
    background = shrink(arrays["background"]) if "background" in arrays else torch.zeros_like(image)
    mask = shrink_mask(arrays["mask"], size) if "mask" in arrays else torch.zeros_like(image[:, :1])
    return background, image, mask, shrink_depth(arrays["depth"], size) if "depth" in arrays else None


def _signed(values: Tensor) -> Tensor:
    """Return u2 as the i2 of the same bits, which `as_floats` takes for the same and every device supports."""
    return values.view(torch.int16) if values.dtype == torch.uint16 else values


def shrink_mask(mask: Tensor, size: int) -> Tensor:
    """Reduce masks (B,1,H,W) of 0 and 1 to (B,1,size,size) as `prepare` does."""
    if mask.shape[-1] == size:
        return mask
    return (F.interpolate(mask, size=(size, size), mode="bilinear", antialias=True) >= 0.5).float()


def shrink_depth(depth_m: Tensor, size: int) -> Tensor:
    """Reduce depth maps (B,1,H,W) to (B,1,size,size) as `prepare` does."""
    return depth_m if depth_m.shape[-1] == size else F.interpolate(depth_m, size=(size, size), mode="nearest-exact")
