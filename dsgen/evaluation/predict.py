"""Find masks and depth of composites of any size with a trained network, from pairs of a background and a composite.

The output folder holds, in the tree of the pictures' folder and each written atomically,

    mask/NAME.png          u1, 255 where the foreground is, else 0
    depth/NAME.png         u2 millimetres; as .npy float32 metres
    view/NAME.jpg          with `views`: the foreground in the composite, and the depth in colours with its scale
    predictions.csv        a line per picture
    predictions.json       what the answers were made with

at each picture's own size. Answers made with the same parameters and newer than their pictures are kept. Memory
depends on the largest picture, not on the number of pictures.
"""

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dsgen.errors import DsgenError, InvalidValueError, NotFoundError, check_rules, raise_all
from dsgen.evaluation.pairs import Pair, list_pictures, pair_pictures
from dsgen.evaluation.predictions import (
    VIEW,
    Entry,
    describe_answers,
    is_current,
    read_table,
    update_parameters,
    write_answers,
    write_table,
)
from dsgen.io.folders import FORMATS, PREDICTIONS_JSON, attempt, beside, check_answers_folder, check_name
from dsgen.parallel.devices import picture_failure
from dsgen.parallel.locks import exclusive_lock
from dsgen.parallel.prefetch import prefetch
from dsgen.parallel.progress import progress
from dsgen.training.checkpoint import DEPTH, MASK, Trained, open_trained

log = logging.getLogger("dsgen")

ASPECT_TOLERANCE = 0.02  # by which the proportions of a background and a composite may differ
MIN_SIZE = 32
_PREFETCHED = 2  # pairs decoded ahead
_TABLE_SECONDS = 30  # between two writes of the table


@dataclass(frozen=True)
class PredictResult:
    """The result of `predict`.

    `answers` are those of `mask` and `depth` that the network gives, `predicted` the number of pictures answered now,
    `already_there` of those whose answers were up to date, `failed` an error per bad picture. `size` is the longer
    side in pixels at which pictures were fed.
    """

    out: Path
    answers: tuple[str, ...]
    predicted: int
    already_there: int
    failed: tuple[str, ...]
    checkpoint: Path
    size: int
    device: str


def predict(
    run: Path,
    pictures: Path,
    backgrounds: Path | None = None,
    out: Path | None = None,
    *,
    size: int | None = None,
    checkpoint: str = "best",
    device: str = "auto",
    file_format: str = "png",
    views: bool = False,
) -> PredictResult:
    """Find the foreground and the depth of a composite, or of all composites below a folder.

    `backgrounds` is one picture for all, as of a fixed camera, or a folder: the background of a composite `a/b/c.jpg`
    is `a/b/c`, or else `a/b`, or else `a`, with any ending. Without it backgrounds are black, which only makes sense
    for a network trained on a store without backgrounds. A pair is scaled so that its longer side is `size` pixels, by
    default the side of the largest pictures the network was trained on; a background of another size is scaled to the
    composite's. Answers are enlarged bilinearly, masks as logits. `out` is by default a folder beside the pictures.
    `file_format` of the depth is png (uint16 millimetres) or npy (float32 metres).

    Bad pictures are listed in the result; the others are answered. Raises `NotFoundError` where there are no pictures
    or no run, `InvalidValueError` for an option value that cannot be, `BusyError` while another dsgen writes to `out`,
    and the errors of all pictures where none can be answered.

    >>> result = predict(Path("run"), Path("photos"), Path("room.jpg"))  # doctest: +SKIP
    >>> result.predicted, result.failed  # doctest: +SKIP
    (12, ())
    """
    check_rules(
        [
            (file_format in FORMATS, "format", file_format, f"one of {', '.join(FORMATS)}"),
            (size is None or size >= MIN_SIZE, "size", size, f"{MIN_SIZE} or more"),
        ]
    )
    if backgrounds is not None:
        if not backgrounds.exists():
            raise NotFoundError("--backgrounds", f"{backgrounds}: no such folder or picture", "check the path")
        check_name(backgrounds)
    folder = pictures if pictures.is_dir() else pictures.parent
    out = _choose_out(out, pictures, (folder, backgrounds))
    paths = list_pictures(pictures, skip=(out,) if backgrounds is None else (out, backgrounds))
    trained = open_trained(run, checkpoint, device)
    if backgrounds is None:
        log.warning("no backgrounds given: they are black, as in training on a store without backgrounds")
    fed = size or trained.size
    all_endings = {MASK: ".png", DEPTH: f".{file_format}", VIEW: ".jpg"}
    kinds = (*trained.answers, *([VIEW] if views else []))
    endings = {kind: ending for kind, ending in all_endings.items() if kind in kinds}
    pairing = pair_pictures(paths, folder, backgrounds, out, endings)
    pairs, failed = pairing.pairs, pairing.failed
    if not pairs:
        raise_all(failed.values())
    with exclusive_lock(out):
        update_parameters(out, trained, fed, file_format)
        before = read_table(out)
        current = [pair for pair in pairs if is_current(pair, before.get(pair.title), out)]
        entries = {title: {"picture": title, "error": str(error)} for title, error in failed.items()}
        entries |= {pair.title: before[pair.title] for pair in current}
        missing = [pair for pair in pairs if pair.title not in entries]
        _answer_all(trained, missing, fed, out, entries, len(pairs))
    errors = [entries[title]["error"] for title in sorted(entries) if entries[title].get("error")]
    return PredictResult(
        out=out,
        answers=trained.answers,
        predicted=len(missing) - (len(errors) - len(failed)),
        already_there=len(current),
        failed=tuple(errors),
        checkpoint=trained.path,
        size=fed,
        device=str(trained.device),
    )


def _choose_out(out: Path | None, pictures: Path, inputs: tuple[Path | None, ...]) -> Path:
    """Return the output folder, by default one beside the pictures; it must not be a folder of pictures itself."""
    if out is None:
        out = beside(pictures, "_predictions")
    if out.resolve() in [path.resolve() for path in inputs if path is not None]:
        raise InvalidValueError("--out", f"{out} is a folder of pictures itself", "choose another")
    check_answers_folder(out, PREDICTIONS_JSON)
    return out


def _answer_all(
    trained: Trained, missing: list[Pair], size: int, out: Path, entries: dict[str, Entry], total: int
) -> None:
    """Answer pairs, add their entries, and write the table at the end and from time to time before."""
    written = time.monotonic()
    try:
        with progress("predict", total, total - len(missing)) as advance:
            for pair, picture, background in prefetch(_decode(missing), _PREFETCHED):
                known = {"picture": pair.title, "background": str(pair.background or "")}
                try:
                    entries[pair.title] = known | _answer(trained, pair, picture, background, size)
                except DsgenError as error:
                    entries[pair.title] = known | {"error": str(error)}
                except (RuntimeError, MemoryError, ValueError) as error:  # of the network, such as memory that ran out
                    log.debug("%s", pair.picture, exc_info=error)
                    failure = picture_failure(pair.picture, error, trained.device)
                    entries[pair.title] = known | {"error": str(failure)}
                advance(1)
                if time.monotonic() - written > _TABLE_SECONDS:  # a killed run has its finished pictures in the table
                    write_table(out, entries)
                    written = time.monotonic()
    finally:
        write_table(out, entries)


def _decode(pairs: list[Pair]) -> Iterator[tuple[Pair, np.ndarray | DsgenError, np.ndarray | DsgenError]]:
    """Decode the picture and the background of every pair; either may be an error."""
    read_background = lru_cache(maxsize=1)(attempt)  # one that serves all, or a folder, is decoded once
    for pair in pairs:
        picture = attempt(pair.picture)
        if pair.background is not None:
            yield pair, picture, read_background(pair.background)
        else:
            yield pair, picture, picture if isinstance(picture, DsgenError) else np.zeros_like(picture)


def _answer(
    trained: Trained, pair: Pair, picture: np.ndarray | DsgenError, background: np.ndarray | DsgenError, size: int
) -> Entry:
    """Answer a pair, write its files, and return its entry; raise what is wrong with it."""
    if isinstance(picture, DsgenError):
        raise picture
    if isinstance(background, DsgenError):
        raise background
    (height, width), (high, wide) = picture.shape[:2], background.shape[:2]
    if abs(wide * height - high * width) > ASPECT_TOLERANCE * high * width:
        raise DsgenError(
            pair.background,
            f"{wide}x{high} pixels, expected the proportions of {pair.picture}'s {width}x{height} to "
            f"{ASPECT_TOLERANCE:.0%}",
            "crop one like the other",
        )
    started = time.monotonic()
    mask, depth_m = answer_pair(trained, background, picture, size)
    seconds = time.monotonic() - started
    if not np.isfinite(depth_m).all():
        reason = "the network's answer is not finite, so nothing was written"
        raise DsgenError(pair.picture, reason, "leave it out, or predict with another --checkpoint")
    write_answers(pair, picture, mask, depth_m)
    fed_height, fed_width = fed_size(height, width, size)
    sizes = {"width": width, "height": height, "fed_width": fed_width, "fed_height": fed_height}
    entry = {name: str(pixels) for name, pixels in sizes.items()}
    return entry | describe_answers(pair, mask, depth_m) | {"seconds": f"{seconds:.4f}"}


def answer_pair(
    trained: Trained, background: np.ndarray, picture: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Answer a background (H,W,3) and a composite (h,w,3) u1, fed at `size` pixels, at the composite's own size.

    Returns the mask, (h,w) u1 of 0 or 255, and depth, (h,w) float32 metres within 0.1..10.
    """
    height, width = picture.shape[:2]
    fed = fed_size(height, width, size)
    logits, depth_m = trained.answer(
        _scale(background, fed).to(trained.device), _scale(picture, fed).to(trained.device)
    )
    logits, depth_m = (
        F.interpolate(maps, size=(height, width), mode="bilinear", align_corners=False)[0, 0].cpu()
        for maps in (logits, depth_m)
    )
    return np.where(logits.numpy() > 0, np.uint8(255), np.uint8(0)), depth_m.numpy()


def fed_size(height: int, width: int, size: int) -> tuple[int, int]:
    """Scale a height and width so that the longer of them is `size`; both are rounded, and at least 1.

    >>> fed_size(1080, 1920, 192)
    (108, 192)
    """
    longer = max(height, width)
    return max(1, round(height * size / longer)), max(1, round(width * size / longer))


def _scale(picture: np.ndarray, shape: tuple[int, int]) -> Tensor:
    """Scale a picture (h,w,3) u1 as training does, by antialiased averaging, to (1,3,H,W) float32 in 0..1."""
    pixels = torch.tensor(picture).permute(2, 0, 1)[None]
    if picture.shape[:2] != shape:
        pixels = F.interpolate(pixels, size=shape, mode="bilinear", antialias=True)
    return pixels.float() / 255
