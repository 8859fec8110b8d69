"""Open a corpus: its plan, sources and depth labels.

What is read is compared with what `corpus.json` records: the plan when the corpus is opened, every file of the sources
when it is read.
"""

import hashlib
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Mapping
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from dsgen.corpus import layout
from dsgen.corpus.figures import Figure
from dsgen.corpus.labels import Block, Labels, count_rows
from dsgen.corpus.manifest import parse_manifest, people_slots, plan_hash, source_hashes, source_layouts
from dsgen.corpus.plan import SPLITS, load_plan
from dsgen.corpus.render import Cutout, render
from dsgen.corpus.rooms import Rooms
from dsgen.corpus.scene import DRAWN, Looks, Room, draw_scenes
from dsgen.corpus.vouched import named_damage, open_array, open_vouched
from dsgen.errors import DamagedError, DsgenError, InvalidValueError
from dsgen.io.cache import Cache
from dsgen.io.places import not_a_corpus

_CACHE_BYTES = 192 * 2**20


class Corpus:
    """A corpus on disk, opened read-only; opening is cheap, since only the plan is read, and pixels when needed.

    `plan` is the table of all rows (see `dsgen.corpus.plan`), `manifest` the content of `corpus.json` and `sha256` its
    hash. `size` and `label_size` are the sizes in pixels of the stored images and of those that are labelled,
    `positions` the number of positions per (background, foreground, flip). `people` is the number of slots for people
    in a row, 0 where the plan has no column `people`. Raises `NotFoundError` if there is no corpus at `path`,
    `DamagedError` if it cannot be read or is not what its hashes say; so do all methods that read.

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
        self.manifest = parse_manifest(content, manifest)
        self.people = people_slots(self.manifest)
        plan = self.path / layout.PLAN
        self.plan = load_plan(plan, self.manifest["rows"], plan_hash(self.manifest), self.people)
        parameters = self.manifest["parameters"]
        self.size: int = parameters["size"]
        self.label_size: int = parameters["label_size"]
        self.positions: int = parameters["positions"]
        self._check_plan()
        self._looks = Looks.of(parameters)
        self._arrays: dict[str, zarr.Array] = {}

    def __len__(self) -> int:
        return len(self.plan)

    def rows_of(self, background: int) -> range:
        """Return the numbers of the rows of a background, which are consecutive; none if all are skipped."""
        numbers = self.plan["background"]  # ascending
        return range(bisect_left(numbers, background), bisect_right(numbers, background))

    def _check_plan(self) -> None:
        """Raise `DamagedError` for a number in the plan that is out of range."""
        manifest = self.manifest
        bounds = {
            "background": len(manifest["backgrounds"]),
            "foreground": len(manifest["foregrounds"]),
            "flip": 2,
            "position": self.positions,
            "top": self.size,
            "left": self.size,
            "split": len(SPLITS),
        }
        for name, bound in bounds.items():
            found = int(self.plan[name].max())
            if found >= bound:
                raise DamagedError(
                    self.path / layout.PLAN, f"damaged, {name} {found:,}, expected below {bound:,}", self._remedy
                )
        if self.people and int(self.plan["people"]["foreground"].max()) >= bounds["foreground"]:
            raise DamagedError(self.path / layout.PLAN, "damaged, a person is no foreground", self._remedy)

    @property
    def _remedy(self) -> str:
        return f"run dsgen repair {self.path}"

    @property
    def _sources_remedy(self) -> str:
        return f"{self._remedy}, with --backgrounds and --foregrounds if they are not the bundled ones"

    @cached_property
    def _sources(self) -> zarr.Group:
        hashes = {name.partition("/")[2]: digest for name, digest in source_hashes(self.manifest).items()}
        return open_vouched(self.path / layout.SOURCES, hashes, self._sources_remedy)

    def _source_array(self, name: str) -> zarr.Array:
        if name not in self._arrays:
            folder, layouts = self.path / layout.SOURCES, source_layouts(self.manifest)
            self._arrays[name] = open_array(self._sources, name, folder, self._sources_remedy, layouts[name])
        return self._arrays[name]

    @cached_property
    def _foreground_shapes(self) -> np.ndarray:
        """The foregrounds' heights and widths, (f,2) i8; every row of the plan lies inside the image with them."""
        array = self._source_array("foreground_shape")
        with named_damage(self.path / layout.SOURCES / "foreground_shape", self._sources_remedy):
            shapes = np.asarray(array[:], np.int64)
        ends = shapes[self.plan["foreground"]] + np.stack([self.plan["top"], self.plan["left"]], axis=1)
        if (ends.max() > self.size and not self.people) or shapes.min() < 1:
            raise DamagedError(
                self.path / layout.PLAN, "damaged, a foreground lies partly outside its image", self._remedy
            )
        return shapes

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
        """Return an image of the sources; a whole chunk is read, compared with its hash, and cached."""
        array = self._source_array(f"{kind}_{self.size * scale}")
        length = array.chunks[0]
        start = number - number % length

        def read() -> np.ndarray:
            with named_damage(self.path / layout.SOURCES / array.basename, self._sources_remedy):
                return np.asarray(array[start : start + length])

        return self._cache.get((kind, scale, start), read)[number - start]

    def cutout(self, number: int, flip: int = 0, size: int | None = None) -> Cutout:
        """Return a foreground prepared for pasting; `size` as for `background`."""
        scale = self._scale(size)
        key = ("cutout", number, flip, scale)
        return self._cache.get(key, lambda: Cutout.from_rgba(self.foreground(number, bool(flip), self.size * scale)))

    def cutouts(self) -> list[np.ndarray]:
        """Return all foregrounds, (h,w,4) u1: as they are drawn, or as large as kept if they are drawn at any size."""
        numbers = range(len(self.manifest["foregrounds"]))
        return [self._figure_pixels(n) if self.people else self.foreground(n) for n in numbers]

    def _figure_pixels(self, number: int) -> np.ndarray:
        array = self._source_array("figure")
        height, width = self._figure_shapes[number].tolist()
        with named_damage(self.path / layout.SOURCES / "figure", self._sources_remedy):
            return np.asarray(array[number, :height, :width])

    def figure(self, number: int, flip: int = 0) -> Figure:
        """Return a foreground prepared to be drawn at any size; only where the plan has the column `people`."""

        def make() -> Figure:
            rgba = self._figure_pixels(number)
            return Figure(np.ascontiguousarray(rgba[:, ::-1]) if flip else rgba)

        return self._cache.get(("figure", number, flip), make)

    @cached_property
    def _figure_shapes(self) -> np.ndarray:
        array = self._source_array("figure_shape")
        with named_damage(self.path / layout.SOURCES / "figure_shape", self._sources_remedy):
            return np.asarray(array[:], np.int64)

    @cached_property
    def rooms(self) -> Rooms | None:
        """What is known of the backgrounds as rooms, their depth above all, or None."""
        path, recorded = self.path / layout.ROOMS, self.manifest.get("rooms_sha256")
        if recorded is None and not path.is_dir():
            return None
        return Rooms(path, len(self.manifest["backgrounds"]), recorded)

    @cached_property
    def heights_m(self) -> list[float]:
        """The heights of the foregrounds in metres, where people have places of their own or rooms are known."""
        recorded = None if self.rooms is None else self.rooms.heights_m
        if recorded is not None:
            return recorded
        return [record["height_m"] for record in self.manifest["foregrounds"]]

    def room(self, number: int, size: int | None = None) -> Room:
        """Return a background as a room that people are drawn into; `size` as for `background`."""
        scale = self._scale(size)
        image = self.background(number, self.size * scale)
        if self.rooms is None:
            return Room(image)
        rooms = self.rooms
        return self._cache.get(("room", number, scale), lambda: rooms.room(number, image))

    def draw(
        self,
        rows: np.ndarray,
        fields: Collection[str] = ("image", "mask"),
        size: int | None = None,
        *,
        depths: np.ndarray | None = None,
        out: Mapping[str, np.ndarray] | None = None,
    ) -> dict[str, np.ndarray]:
        """Draw fields of rows of a plan with the column `people`: image, mask, instance, and depth, as composed.

        Returns (n,S,S,3) u1, (n,S,S) u1, (n,S,S) u1 and (n,S,S) u2 millimetres, by name; see
        `dsgen.corpus.scene.draw_scenes` for `depths` and `out`, and `background` for `size`. Raises
        `InvalidValueError` for other fields, and for a corpus whose rows have no such column: see `render`.
        """
        if not self.people:
            raise InvalidValueError(self.path, "its rows have no people of their own", "use Corpus.render")
        for field in fields:
            if field not in DRAWN:
                raise InvalidValueError.expected("fields", field, ", ".join(DRAWN))
        scale = self._scale(size)
        rooms = {b: self.room(b, self.size * scale) for b in np.unique(rows["background"]).tolist()}
        people = rows["people"][rows["people"]["height"] > 0]
        figures = {(f, m): self.figure(f, m) for f, m in np.unique(people[["foreground", "flip"]]).tolist()}
        return draw_scenes(
            rows, rooms, figures, self.size, scale, fields=fields, depths=depths, looks=self._looks, out=out
        )

    def render(
        self, rows: np.ndarray, size: int | None = None, out: Mapping[str, np.ndarray] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Render rows of the plan: images (n,S,S,3) u1 RGB, masks (n,S,S) u1, 0 or 255; `size` as for `background`.

        They are drawn into the arrays `image` and `mask` of `out`, if it has them.
        """
        if self.people:
            drawn = self.draw(rows, ("image", "mask"), size, out=out)
            return drawn["image"], drawn["mask"]
        scale = self._scale(size)
        backgrounds = {b: self.background(b, self.size * scale) for b in np.unique(rows["background"]).tolist()}
        pairs = np.unique(rows[["foreground", "flip"]])
        cutouts = {(f, m): self.cutout(f, m, self.size * scale) for f, m in pairs.tolist()}
        return render(rows, backgrounds, cutouts, self.size, scale, out)

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
        return None if self.labels is None else self.labels.read_flip_errors()

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
