"""What a store is packed from, and the corpus as such a source."""

import json
import logging
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from dsgen.corpus import layout
from dsgen.corpus.corpus import Corpus
from dsgen.corpus.plan import SPLITS
from dsgen.errors import DsgenError, InvalidValueError
from dsgen.io.filesystem import LocalFiles
from dsgen.store import codecs, schema

log = logging.getLogger("dsgen")


class Source(Protocol):
    """What a store can be packed from: rows of the plan, and their pixels."""

    plan: np.ndarray
    size: int
    chunk: int
    parts: tuple[str, ...]
    made_from: dict[str, Any]
    attributes: dict[str, Any]
    key: tuple[Any, ...]
    folders: list[Path]

    def pictures(self, first: int, last: int) -> dict[str, np.ndarray]:
        """Return `image`, and `mask` and `depth` where `parts` has them, of rows `first` to `last`, exclusive."""

    def background(self, number: int) -> np.ndarray:
        """Return a background, (S,S,3) u1."""

    def coded_depth(self, first: int, last: int) -> list[bytes] | None:
        """Return the chunks of depth of these rows as they are to be stored, where they are there in that form."""

    def cutouts(self) -> tuple[np.ndarray, np.ndarray]:
        """Return all foregrounds, (f,H,W,4) u1, and their heights and widths, (f,2), for a recipe."""


class CorpusSource:
    """The rows of a corpus, checked; `corpus_sha256`, if given, is the corpus meant; its depth unless not `depth`."""

    def __init__(
        self,
        path: Path,
        max_flip_error: float | None = None,
        corpus_sha256: str | None = None,
        depth: bool = True,
    ):
        self._corpus = corpus = Corpus(path)
        if corpus_sha256 not in (None, corpus.sha256):
            raise DsgenError(path, "changed while it was packed", "run dsgen pack again")
        self.size = corpus.size
        self.chunk = schema.chunk_rows(corpus.positions, corpus.size)
        labels = _depth_labels(corpus, quiet=corpus_sha256 is not None) if depth else None
        self.parts: tuple[str, ...] = ("image", "mask", *(["depth"] if labels is not None else []), "background")
        self.made_from = {
            "format": schema.FORMAT,
            "corpus_sha256": corpus.sha256,
            "parameters": corpus.manifest["parameters"],
            "rows": len(corpus),
            "chunk_rows": self.chunk,
            "block_rows": schema.block_rows(self.chunk, corpus.size),
            "depth": labels,
        } | _leave_out(corpus, max_flip_error)
        self.plan = corpus.plan
        self.attributes = {name: corpus.manifest[name] for name in ("backgrounds", "foregrounds")}
        self.folders = [corpus.path]
        self._labels = LocalFiles(corpus.path / layout.DEPTH)
        self.key = (CorpusSource, str(Path(path).absolute()), max_flip_error, corpus.sha256, depth)

    def pictures(self, first: int, last: int) -> dict[str, np.ndarray]:
        """Draw rows and read their depth."""
        image, mask = self._corpus.render(self.plan[first:last])
        found = {"image": image, "mask": mask}
        if "depth" in self.parts:
            assert self._corpus.depth is not None
            codes = self.coded_depth(first, last)
            if codes is None:
                found["depth"] = np.asarray(self._corpus.depth[first:last])
            else:
                shape = (self.chunk, self.size, self.size)
                chunks = [codecs.decode_depth(code, np.empty(shape, "<u2")) for code in codes]
                found["depth"] = np.concatenate(chunks)[: last - first]
        return found

    @cached_property
    def _label_layout(self) -> schema.ArrayLayout | None:
        """How the labels are coded, where that is as a store codes depth, in the same chunks."""
        try:
            found = schema.ArrayLayout.parse("depth", json.loads(self._labels.read(f"depth/{schema.ROOT}")))
        except (ValueError, KeyError):
            return None
        return found if found.is_depth and found.chunk == self.chunk else None

    def coded_depth(self, first: int, last: int) -> list[bytes] | None:
        """Return the labels' own chunks: taking them over takes half the time of coding them anew."""
        labels = self._label_layout
        if labels is None or first % self.chunk:
            return None
        codes: list[bytes] = []
        for number in range(first // labels.each, -(-last // labels.each)):
            content = self._labels.read(labels.file(number))
            chunks = codecs.split_block(content, labels.chunk, labels.each)
            start = number * labels.each
            codes += chunks[max(first - start, 0) // self.chunk : -(-(last - start) // self.chunk)]
        # labels of an earlier dsgen have no checksum
        return codes if "crc32c" in labels.codecs else [codecs.with_checksum(code) for code in codes]

    def background(self, number: int) -> np.ndarray:
        """Return a background, (S,S,3) u1."""
        return self._corpus.background(number)

    def cutouts(self) -> tuple[np.ndarray, np.ndarray]:
        """Return all foregrounds in the corners of frames just large enough, and their heights and widths."""
        pictures = [self._corpus.foreground(number) for number in range(len(self.attributes["foregrounds"]))]
        shapes = np.array([picture.shape[:2] for picture in pictures])
        frames = np.zeros((len(pictures), *shapes.max(axis=0).tolist(), 4), np.uint8)
        for frame, picture in zip(frames, pictures, strict=True):
            frame[: picture.shape[0], : picture.shape[1]] = picture
        return frames, shapes


def _leave_out(corpus: Corpus, max_flip_error: float | None) -> dict[str, Any]:
    """Take the rows with doubtful depth out of their splits, in the plan of the corpus as opened; say how many."""
    if max_flip_error is None:
        return {}
    if not max_flip_error > 0:
        raise InvalidValueError("--max-flip-error", f"got {max_flip_error}, expected more than 0, such as 0.2")
    if corpus.flip_error is None:
        raise InvalidValueError(
            "--max-flip-error",
            f"{corpus.path / layout.DEPTH} holds no flip errors",
            "remove it and run dsgen depth --check-flip",
        )
    doubtful = corpus.flip_error > max_flip_error
    left_out = int((doubtful & (corpus.plan["split"] != SPLITS.index("unused"))).sum())
    corpus.plan = corpus.plan.copy()
    corpus.plan["split"][doubtful] = SPLITS.index("unused")
    return {"max_flip_error": max_flip_error, "left_out": left_out}


def _depth_labels(corpus: Corpus, quiet: bool = False) -> dict[str, Any] | None:
    """Return how the depth labels were made, or None, with a warning, where there are none."""
    path = corpus.path / layout.DEPTH
    if corpus.relative is not None:
        raise DsgenError(
            path,
            f"labelled by {corpus.depth_attributes['model']}, which answers no metres",
            "remove it and label with --metric-reference, or with a metric model",
        )
    if corpus.depth is None:
        if not quiet:
            log.warning(
                "%s: no depth labels, packed without; run dsgen depth %s first to have them", corpus.path, corpus.path
            )
        return None
    attributes = corpus.depth_attributes
    expected = (len(corpus), corpus.size, corpus.size)
    if corpus.depth.shape != expected or corpus.depth.dtype != np.uint16:
        raise DsgenError(
            path,
            f"got depth of {corpus.depth.dtype} {corpus.depth.shape}, expected uint16 {expected}",
            "remove it and run dsgen depth again",
        )
    lacking = len(corpus) - corpus.labelled_rows()
    if lacking or not attributes.get("complete"):
        raise DsgenError(
            path,
            f"labels unfinished, {lacking:,} of {len(corpus):,} rows lack depth",
            f"run dsgen depth {corpus.path} to go on, or remove {path} to pack without",
        )
    return {name: value for name, value in attributes.items() if name != "complete"}
