"""From a loader's batches to what a network is fed, and what its answers are compared with."""

from collections.abc import Generator, Iterator
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from dsgen.store.arena import Batch
from dsgen.store.loader import as_floats
from dsgen.training.ranks import Ranks

Prepared = tuple[Tensor, Tensor, Tensor, Tensor | None]


class Batches(Protocol):
    """What training needs of a loader; batches and states are as `loader.Loader` says."""

    rows: int
    size: int
    parts: tuple[str, ...]
    sha256: str | None

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next pass, which begins at its beginning."""

    def state_dict(self) -> dict[str, Any]:
        """Say where the newest pass is."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Make the next pass go on from there."""

    def __iter__(self) -> Iterator[Batch]: ...


def take(
    batches: Batches,
    samples: int | None,
    ranks: Ranks = Ranks(),  # noqa: B008
) -> Generator[tuple[Batch, int], None, None]:
    """Yield batches, and how many samples of the epoch there were then over all ranks, until there have been `samples`.

    The last batch is cut; None means all.
    """
    begin = batches.state_dict()["samples"]
    most = batches.rows if samples is None else samples
    if begin >= most:
        return
    for batch in batches:
        end = min(batches.state_dict()["samples"], most)
        kept = len(range(begin + ranks.rank, end, ranks.count))
        if kept:
            yield {name: values[:kept] for name, values in batch.items()}, end
        begin = end
        if begin >= most:
            return


def prepare(batch: Batch, size: int, device: torch.device) -> Prepared:
    """Turn a loader's batch into background and image (B,3,S,S) in 0..1, mask (B,1,S,S) 0 or 1, depth (B,1,S,S) metres.

    Pictures and masks shrink by antialiased averaging, after which a mask pixel counts from one half on. Depth takes
    the nearest pixel: an average of two surfaces would be the depth of neither, and 0 stays the mark of none. A batch
    without backgrounds or masks gets zeros, one without depth None.
    """
    maps = as_floats({name: values.to(device) for name, values in batch.items() if name != "row"})

    def shrink(pictures: Tensor) -> Tensor:
        if pictures.shape[-1] == size:
            return pictures
        shrunk = F.interpolate(pictures, size=(size, size), mode="bilinear", antialias=True)
        return shrunk.contiguous(memory_format=torch.channels_last)

    image = shrink(maps["image"])
    background = shrink(maps["background"]) if "background" in maps else torch.zeros_like(image)
    mask = shrink_mask(maps["mask"], size) if "mask" in maps else torch.zeros_like(image[:, :1])
    return background, image, mask, shrink_depth(maps["depth"], size) if "depth" in maps else None


def shrink_mask(mask: Tensor, size: int) -> Tensor:
    """Shrink masks (B,1,H,W) of 0 and 1, as `prepare` says."""
    if mask.shape[-1] == size:
        return mask
    return (F.interpolate(mask, size=(size, size), mode="bilinear", antialias=True) >= 0.5).float()


def shrink_depth(depth_m: Tensor, size: int) -> Tensor:
    """Shrink depth maps (B,1,H,W), as `prepare` says."""
    return depth_m if depth_m.shape[-1] == size else F.interpolate(depth_m, size=(size, size), mode="nearest-exact")
