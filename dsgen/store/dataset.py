"""A store as a map-style PyTorch dataset: one sample by its index.

This is the interface that torchvision, `transforms.v2` and most training frameworks expect. The fast path is
`dsgen.store.loader.Loader`: see `StoreDataset` for why.
"""

import operator
import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from dsgen.errors import MissingPackageError, check_rules
from dsgen.io.cache import Cache
from dsgen.store.reader import StoreHandle

Sample = dict[str, Any]

_TORCH, _TV_TENSORS = "torch", "tv_tensors"


class StoreDataset(Dataset[Any]):
    """The samples of a split of a store, or of the whole store (`split=None`), in the order of their rows.

    >>> dataset = StoreDataset("shards", "train")  # doctest: +SKIP
    >>> sample = dataset[0]  # doctest: +SKIP
    >>> loader = DataLoader(dataset, batch_size=32, shuffle=True, num_workers=2)  # doctest: +SKIP

    A sample is a dict:

        image        (3,S,S) uint8    composite, RGB, 0..255
        background   (3,S,S) uint8    the background alone, RGB, 0..255
        mask         (1,S,S) uint8    1 where the foreground is, else 0
        depth        (1,S,S) float32  planar depth in metres, 0 = no depth
        row          int              the row of the plan

    A field that the store does not have is absent. `default_collate` stacks samples to (B,3,S,S), (B,1,S,S) and (B,).

    With `tensors="tv_tensors"`, `image` and `background` are `torchvision.tv_tensors.Image`, `mask` and `depth` are
    `tv_tensors.Mask`. Then `torchvision.transforms.v2` treats them together: geometric transforms move all four
    alike, mask and depth without interpolating between pixels, and colour transforms and `Normalize` change the two
    images only. Depth is a `Mask` for that reason. With plain tensors, `transforms.v2` takes the first one for the
    image and leaves the others as they are.

    >>> flip_and_crop = v2.Compose([v2.RandomHorizontalFlip(), v2.RandomCrop(192), v2.ColorJitter(0.2)])
    ... # doctest: +SKIP
    >>> dataset = StoreDataset("shards", "train", flip_and_crop, tensors="tv_tensors")  # doctest: +SKIP

    `transform` is called with the whole dict, and what it returns is returned.

    **Speed.** A store is compressed in chunks of about 20 samples, and reading a sample decodes its whole chunk. In
    order, that happens once a chunk: each process caches up to `cache_mb` of decoded chunks. With `shuffle=True` it
    happens for nearly every sample, unless the store fits into the cache. `Loader` shuffles as well, decodes every
    chunk once an epoch, and is an order of magnitude faster.

    **Processes.** The dataset can be pickled. Every process opens the store, a folder or a URL, for itself, so
    DataLoader workers may be forked or spawned.

    Raises `NotFoundError` or `DamagedError` for a store that cannot be read, `InvalidValueError` for a bad argument,
    and `MissingPackageError` for `tv_tensors` without torchvision.
    """

    def __init__(
        self,
        store: Path | str,
        split: str | None = "train",
        transform: Callable[[Sample], Any] | None = None,
        *,
        tensors: str = _TORCH,
        cache_mb: int = 64,
    ):
        check_rules(
            [
                (tensors in (_TORCH, _TV_TENSORS), "tensors", tensors, f"{_TORCH} or {_TV_TENSORS}"),
                (cache_mb >= 0, "cache_mb", cache_mb, "0 or more"),
            ]
        )
        if tensors == _TV_TENSORS:
            _import_tv_tensors()
        self.path, self.split, self.transform, self.tensors, self.cache_mb = store, split, transform, tensors, cache_mb
        self._handle = StoreHandle(store)
        opened = self._handle.open()
        self.size, self.fields = opened.size, opened.fields
        self.rows = opened.rows_of(split)  # (n,) i8, the row of every sample
        self._cache = Cache(cache_mb * 10**6)
        self._process = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_cache": None, "_process": None}

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        """Return sample `index`; a negative one counts from the end. Raises `IndexError` outside the split."""
        position = operator.index(index)
        if not -len(self) <= position < len(self):
            raise IndexError(f"sample {position} of a split with {len(self)} samples")
        sample = self._sample(int(self.rows[position]))
        return sample if self.transform is None else self.transform(sample)

    def _sample(self, row: int) -> Sample:
        store = self._handle.open()
        k, within = store.locate(row)
        number, offset = divmod(within, store.shards[k].chunk)
        arrays = {name: values[offset] for name, values in self._chunk(k, number).fields.items()}
        if "background" in self.fields:
            arrays["background"] = store.backgrounds(np.array([row]))[0]
        sample: Sample = {name: _to_tensor(name, arrays[name]) for name in self.fields}
        if self.tensors == _TV_TENSORS:
            tv_tensors = _import_tv_tensors()
            sample = {
                name: (tv_tensors.Image if name in ("image", "background") else tv_tensors.Mask)(values)
                for name, values in sample.items()
            }
        return sample | {"row": row}

    def _chunk(self, shard: int, number: int) -> "_Chunk":
        """Return a decoded chunk of a shard, from the cache of this process if it is there."""
        if self._process != os.getpid():  # a lock of the parent's may have been held while it forked
            self._cache, self._process = Cache(self.cache_mb * 10**6), os.getpid()

        def decode() -> _Chunk:
            opened = self._handle.open().shards[shard]
            first = number * opened.chunk
            return _Chunk(opened.samples(first, min(first + opened.chunk, opened.rows)))

        chunk: _Chunk = self._cache.get((shard, number), decode)
        return chunk


@dataclass(frozen=True)
class _Chunk:
    """A decoded chunk, by field."""

    fields: dict[str, np.ndarray]

    @property
    def nbytes(self) -> int:
        """The bytes of its arrays."""
        return sum(values.nbytes for values in self.fields.values())


def _to_tensor(name: str, values: np.ndarray) -> torch.Tensor:
    """Turn a field of a sample into a tensor of its own, channels first, in the units of `StoreDataset`."""
    if name == "mask":
        return torch.from_numpy((values[None] > 0).view(np.uint8))
    if name == "instance":
        return torch.from_numpy(values[None].copy())
    if name == "depth":
        return torch.from_numpy(values[None].astype(np.float32)).div_(1000)
    return torch.from_numpy(values.transpose(2, 0, 1).copy())


def _import_tv_tensors() -> Any:
    try:
        return import_module("torchvision.tv_tensors")
    except ImportError as error:
        raise MissingPackageError("torchvision", "not installed", "pip install torchvision") from error
