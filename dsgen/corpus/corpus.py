"""Open a corpus: its plan, sources and depth labels."""

import hashlib
from bisect import bisect_left, bisect_right
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from dsgen.corpus import layout
from dsgen.corpus.labels import Block, Labels, count_rows, open_array
from dsgen.corpus.plan import load_plan
from dsgen.corpus.render import Cutout, render
from dsgen.errors import DamagedError, DsgenError, NotFoundError, reason_of
from dsgen.io.cache import Cache
from dsgen.io.json_files import parse_json
from dsgen.io.places import not_a_corpus

FORMAT = 1
_CACHE_BYTES = 192 * 2**20


class Corpus:
    """A corpus on disk, opened read-only; opening is cheap, since pixels are only read when needed.

    `plan` is the table of all rows (see `dsgen.corpus.plan`), `manifest` the content of `corpus.json` and `sha256` its
    hash. `size` and `label_size` are the sizes in pixels of the stored images and of those that are labelled,
    `positions` the number of positions per (background, foreground, flip). Raises `NotFoundError` if there is no
    corpus at `path`, `DamagedError` if it cannot be read.

    >>> corpus = Corpus("corpus")  # doctest: +SKIP
    >>> images, masks = corpus.render(corpus.plan[:8])  # doctest: +SKIP
    """

    def __init__(self, path: Path | str):
        self.path = Path(path)
        manifest = self.path / layout.CORPUS_JSON
        if not manifest.is_file():
            raise not_a_corpus(self.path)
        content = manifest.read_bytes()
        self.sha256 = hashlib.sha256(content).hexdigest()
        self.manifest: dict[str, Any] = parse_json(content, manifest)
        if self.manifest.get("format") != FORMAT:
            reason = f"format {self.manifest.get('format')}, expected {FORMAT}"
            raise DsgenError(manifest, reason, "use the dsgen that made it")
        self.plan = load_plan(self.path / layout.PLAN)
        if len(self.plan) != self.manifest["rows"]:
            raise DamagedError(
                self.path / layout.PLAN,
                f"{len(self.plan)} rows, expected {self.manifest['rows']} as {layout.CORPUS_JSON} says",
                "run dsgen composite again",
            )
        parameters = self.manifest["parameters"]
        self.size: int = parameters["size"]
        self.label_size: int = parameters["label_size"]
        self.positions: int = parameters["positions"]
        self._arrays: dict[str, zarr.Array] = {}

    def __len__(self) -> int:
        return len(self.plan)

    def rows_of(self, background: int) -> range:
        """Return the numbers of the rows of a background, which are consecutive; none if all are skipped."""
        numbers = self.plan["background"]  # ascending
        return range(bisect_left(numbers, background), bisect_right(numbers, background))

    @cached_property
    def _sources(self) -> zarr.Group:
        try:
            return zarr.open_group(self.path / layout.SOURCES, mode="r")
        except FileNotFoundError as error:
            raise NotFoundError(self.path / layout.SOURCES, "missing", "run dsgen composite again") from error
        except ValueError as error:
            reason = f"damaged ({reason_of(error)})"
            raise DamagedError(self.path / layout.SOURCES, reason, "run dsgen composite again") from error

    def _source_array(self, name: str) -> zarr.Array:
        if name not in self._arrays:
            self._arrays[name] = open_array(self._sources, name)
        return self._arrays[name]

    @cached_property
    def _foreground_shapes(self) -> np.ndarray:
        return np.asarray(self._source_array("foreground_shape")[:], np.int64)

    @cached_property
    def _cache(self) -> Cache:
        return Cache(_CACHE_BYTES)

    def _scale(self, size: int | None) -> int:
        """Return how many times as large as stored `size` is."""
        size = size or self.size
        if size not in (self.size, self.label_size):
            reason = f"cannot draw at {size} pixels, its sources are kept at {self.size} and {self.label_size}"
            raise DsgenError(self.path, reason)
        return size // self.size

    def background(self, number: int, size: int | None = None) -> np.ndarray:
        """Return a background, (S,S,3) u1 RGB; `size` is the stored size (the default) or the label size."""
        scale = self._scale(size)
        return self._source("background", number, scale)

    def foreground(self, number: int, flip: bool = False, size: int | None = None) -> np.ndarray:
        """Return a foreground, (h,w,4) u1 RGBA with straight alpha, mirrored if `flip`; `size` as for `background`."""
        scale = self._scale(size)
        height, width = self._foreground_shapes[number] * scale
        rgba = self._source("foreground", number, scale)[:height, :width]
        return rgba[:, ::-1] if flip else rgba

    def _source(self, kind: str, number: int, scale: int) -> np.ndarray:
        """Return an image of the sources; a whole chunk is read and cached."""
        array = self._source_array(f"{kind}_{self.size * scale}")
        length = array.chunks[0]
        start = number - number % length
        chunk = self._cache.get((kind, scale, start), lambda: array[start : start + length])
        return chunk[number - start]

    def cutout(self, number: int, flip: int = 0, size: int | None = None) -> Cutout:
        """Return a foreground prepared for pasting; `size` as for `background`."""
        scale = self._scale(size)
        key = ("cutout", number, flip, scale)
        return self._cache.get(key, lambda: Cutout.from_rgba(self.foreground(number, bool(flip), self.size * scale)))

    def render(self, rows: np.ndarray, size: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Render rows of the plan: images (n,S,S,3) u1 RGB, masks (n,S,S) u1, 0 or 255; `size` as for `background`."""
        scale = self._scale(size)
        backgrounds = {b: self.background(b, self.size * scale) for b in np.unique(rows["background"]).tolist()}
        pairs = np.unique(rows[["foreground", "flip"]])
        cutouts = {(f, m): self.cutout(f, m, self.size * scale) for f, m in pairs.tolist()}
        return render(rows, backgrounds, cutouts, self.size, scale)

    @cached_property
    def labels(self) -> Labels | None:
        """The depth labels, or None if there were none when they were first asked for."""
        path = self.path / layout.DEPTH
        return Labels(path, len(self)) if path.is_dir() else None

    @property
    def depth_attributes(self) -> dict[str, Any]:
        """What the labels say about themselves: model, hash of its weights, input size; empty without labels."""
        return {} if self.labels is None else self.labels.attributes

    @property
    def depth(self) -> zarr.Array | None:
        """The depth labels, (rows,S,S) u2 millimetres, or None without such; see `unlabelled_blocks`."""
        return self.labels.array if self.labels is not None and self.labels.metric else None

    @property
    def relative(self) -> zarr.Array | None:
        """Labels by a model without metres, (rows,S,S) f4 inverse depth of unknown scale and shift, or None."""
        return self.labels.array if self.labels is not None and not self.labels.metric else None

    @cached_property
    def flip_error(self) -> np.ndarray | None:
        """How far every row's depth and that of its mirror image disagree, (rows,) f4, NaN: not labelled; or None."""
        if self.labels is None or self.labels.flip_error is None:
            return None
        return np.asarray(self.labels.flip_error[:])

    def label_blocks(self) -> list[Block]:
        """List all blocks of rows that are labelled at once; without labels, one block of all rows."""
        return [(0, len(self))] if self.labels is None else self.labels.blocks()

    def unlabelled_blocks(self) -> list[Block]:
        """List the blocks that have no labels yet."""
        return self.label_blocks() if self.labels is None else self.labels.missing_blocks()

    def labelled_rows(self) -> int:
        """Count the rows that have a label."""
        return len(self) - count_rows(self.unlabelled_blocks())


@lru_cache(maxsize=1)
def open_cached(path: str, sha256: str | None = None) -> Corpus:
    """Return a corpus, opened once per process; raise `DsgenError` if the manifest's hash is not `sha256`.

    A process may outlive the corpus: a worker of a cluster may later find another one at the same path.
    """
    corpus = Corpus(path)
    if sha256 not in (None, corpus.sha256):
        raise DsgenError(path, "changed while at work on it", "run the same command again")
    return corpus
