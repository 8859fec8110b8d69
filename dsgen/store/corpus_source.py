"""A corpus as a source of a store."""

import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from dsgen.corpus import layout
from dsgen.corpus.chunks import chunk_rows
from dsgen.corpus.composed import compose, describe_composed, find_boxes, implied_depths, person_depths, room_depths
from dsgen.corpus.corpus import Corpus
from dsgen.corpus.labels import COMPOSED
from dsgen.corpus.plan import SPLITS
from dsgen.errors import DsgenError, InvalidValueError, check_rules
from dsgen.io.filesystem import LocalFiles
from dsgen.io.json_files import read_json
from dsgen.store import codecs, schema
from dsgen.store.source import RoomParts, SourceKey

log = logging.getLogger("dsgen")


class CorpusSource:
    """The rows of a corpus, checked; a `Source`.

    With `max_flip_error`, rows whose depth is doubtful leave their split. `corpus_sha256` is the hash that the corpus
    must have. Without `depth` its labels are ignored, and with `composed` those of a network.
    """

    def __init__(
        self,
        path: Path,
        max_flip_error: float | None = None,
        corpus_sha256: str | None = None,
        depth: bool = True,
        composed: bool = False,
    ):
        self._corpus = corpus = Corpus(path)
        if corpus_sha256 not in (None, corpus.sha256):
            raise DsgenError(path, "the corpus changed while it was being packed", "run dsgen pack again")
        self.size = corpus.size
        self.chunk = chunk_rows(corpus.positions, corpus.size)
        labels = _depth_labels(corpus, composed, quiet=corpus_sha256 is not None) if depth else None
        self._composed = labels is not None and labels["model"] == COMPOSED
        self._written = corpus.labels is not None and (corpus.labels.attributes["model"] == COMPOSED or not composed)
        self.people = corpus.people
        classes = {record.get("class") for record in corpus.manifest["foregrounds"]}
        several = ("instance",) if corpus.people > 1 or len(classes) > 1 else ()
        self.fields: tuple[str, ...] = (
            "image",
            "mask",
            *(("depth",) if labels is not None else ()),
            *several,
            "background",
        )
        self.drawn: tuple[str, ...] = ("image", "mask", *several, *(("depth",) if self._composed else ()))
        self.rooms = self._composed or (bool(corpus.people) and corpus.rooms is not None)
        self.made_from = {
            "format": schema.FORMAT,
            "corpus_sha256": corpus.sha256,
            "parameters": corpus.manifest["parameters"],
            "rows": len(corpus),
            "chunk_rows": self.chunk,
            "block_rows": schema.block_rows(self.chunk, corpus.size),
            "depth": labels,
        } | _leave_out(corpus, max_flip_error)
        if corpus.people:
            self.made_from["people"] = corpus.people
        if several:
            self.made_from["instance"] = True
        if self._composed:
            assert corpus.rooms is not None
            self.made_from |= {"composed": True, "rooms": corpus.rooms.depth_sources()}
        self.plan = corpus.plan
        self.attributes = {name: corpus.manifest[name] for name in ("backgrounds", "foregrounds")}
        self.folders = [corpus.path]
        self._labels = LocalFiles(corpus.path / layout.DEPTH)
        arguments = str(Path(path).absolute()), max_flip_error, corpus.sha256, depth, composed
        self.key = SourceKey(CorpusSource, arguments, repr((labels, self._written)))

    def pictures(self, first: int, last: int, out: Mapping[str, np.ndarray] | None = None) -> dict[str, np.ndarray]:
        """Draw rows `first` to `last`, exclusive, and read their depth."""
        corpus, rows = self._corpus, self.plan[first:last]
        found: dict[str, np.ndarray] = {}
        if self._composed and corpus.people:
            found["person_depth"] = person_depths(corpus, rows)
        draws_depth = self._composed and not self._written
        if corpus.people:
            several = ("instance",) if corpus.people > 1 else ()
            fields = ("image", "mask", *several, *(("depth",) if draws_depth else ()))
            found = corpus.draw(rows, fields, depths=found.get("person_depth"), out=out) | found
            found["person_box"] = find_boxes(found["instance" if several else "mask"], corpus.people)
        else:
            found["image"], found["mask"] = corpus.render(rows, out=out)
            if self._composed:
                found["person_depth"] = implied_depths(corpus, rows, found["mask"])[:, None]
            if draws_depth:
                into = None if out is None else out.get("depth")
                found["depth"] = compose(room_depths(corpus, rows), found["mask"], found["person_depth"][:, 0], into)
        if "instance" in self.fields and "instance" not in found:
            found["instance"] = found["mask"] & 1
        if draws_depth:
            return found
        if "depth" in self.fields:
            assert self._corpus.labels is not None
            codes = self.coded_depth(first, last)
            if codes is None:
                found["depth"] = self._corpus.labels.read(first, last)
            else:
                shape = (self.chunk, self.size, self.size)
                with self._damage_of_rows(first):
                    chunks = [codecs.decode_depth(code, shape, "<u2") for code in codes]
                found["depth"] = np.concatenate(chunks)[: last - first]
        return found

    @cached_property
    def _label_layout(self) -> schema.ArrayLayout | None:
        """How the labels are encoded, if it is as a store encodes depth, in the same chunks; else None."""
        try:
            found = schema.ArrayLayout.parse("depth", read_json(self._labels.path / f"depth/{schema.ROOT}"))
        except (ValueError, DsgenError):
            return None
        return found if found.is_depth and found.chunk == self.chunk else None

    def coded_depth(self, first: int, last: int) -> list[bytes] | None:
        """Return the labels' own chunks if they fit: copying them takes half the time of encoding them again."""
        labels = self._label_layout if self._written else None
        if labels is None or first % self.chunk:
            return None
        codes: list[bytes] = []
        for number in range(first // labels.each, -(-last // labels.each)):
            start = number * labels.each
            with self._damage_of_rows(start):
                content = self._labels.read(labels.file(number))
                chunks = codecs.split_block(content, labels.chunk, labels.each)
                chunks = chunks[max(first - start, 0) // self.chunk : -(-(last - start) // self.chunk)]
                if "crc32c" in labels.codecs:
                    for code in chunks:
                        codecs.check_checksum(code)
                else:  # labels of earlier versions have no checksum
                    chunks = [codecs.with_checksum(code) for code in chunks]
            codes += chunks
        return codes

    def _damage_of_rows(self, first: int) -> AbstractContextManager[None]:
        """Name the file of the labels that has row `first` if it cannot be decoded."""
        labels = self._corpus.labels
        assert labels is not None
        return labels.named_damage(first)

    def background(self, number: int) -> np.ndarray:
        """Return a background, (S,S,3) u1."""
        return self._corpus.background(number)

    def room(self, number: int) -> RoomParts:
        """Return a background as a room."""
        rooms = self._corpus.rooms
        assert rooms is not None
        depth, floor = (rooms.read(kind, number, self.size) for kind in ("depth", "floor"))
        return depth, floor, *rooms.geometry(number)

    def cutouts(self) -> tuple[np.ndarray, np.ndarray]:
        """Return all foregrounds, each in the corner of an equally large frame, and their heights and widths.

        Those of people with sizes of their own are as large as the corpus has them.
        """
        cutouts = self._corpus.cutouts()
        shapes = np.array([cutout.shape[:2] for cutout in cutouts])
        frames = np.zeros((len(cutouts), *shapes.max(axis=0).tolist(), 4), np.uint8)
        for frame, cutout in zip(frames, cutouts, strict=True):
            frame[: cutout.shape[0], : cutout.shape[1]] = cutout
        return frames, shapes


def _leave_out(corpus: Corpus, max_flip_error: float | None) -> dict[str, Any]:
    """Take the rows with doubtful depth out of their splits, in the plan of the open corpus; say how many."""
    if max_flip_error is None:
        return {}
    check_rules([(max_flip_error > 0, "max_flip_error", max_flip_error, "more than 0, such as 0.2")])
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


def _depth_labels(corpus: Corpus, composed: bool, quiet: bool = False) -> dict[str, Any] | None:
    """Return how the depth labels were made; None if there are none, with a warning unless `quiet`.

    With `composed` those of a network are passed by.
    """
    labels = corpus.labels
    if labels is not None and (not composed or labels.attributes["model"] == COMPOSED):
        return labels.check_for_packing(corpus.size)
    if corpus.rooms is not None:
        return describe_composed(corpus)
    if composed:
        raise InvalidValueError(
            "--composed",
            f"the depth of the backgrounds of {corpus.path} is not known",
            "run dsgen depth --composed first",
        )
    if not quiet:
        log.warning(
            "%s: no depth labels, packing without depth; to have it, run dsgen depth %s first", corpus.path, corpus.path
        )
    return None
