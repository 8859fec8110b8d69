"""The 8-bit views of a corpus' depth labels, `bg_fg_depth/`."""

import numpy as np

from dsgen.corpus import layout
from dsgen.corpus.corpus import Corpus
from dsgen.corpus.pictures import clear_pictures, fill_pictures, has_pictures
from dsgen.io import images
from dsgen.io.atomic import name_in_errors
from dsgen.parallel.pool import run_blocks

VIEWS = "bg_fg_depth"
VIEW_MAX_MM = 10_000


def draw_missing_views(corpus: Corpus, workers: int, cluster: str | None) -> None:
    """Draw the 8-bit views of the labels that are missing."""
    count = len(corpus.manifest["backgrounds"])
    missing = [b for b in range(count) if not has_pictures(corpus, VIEWS, b)]
    clear_pictures(corpus, [VIEWS], missing)
    path = corpus.path if cluster is None else corpus.path.absolute()
    try:
        run_blocks(
            draw_views,
            [(str(path), b) for b in missing],
            jobs=workers,
            title="depth views",
            total=len(corpus),
            done=len(corpus) - sum(len(corpus.rows_of(b)) for b in missing),
            cluster=cluster,
            shared=(path,),
        )
    finally:  # a worker may have been killed while drawing
        clear_pictures(corpus, [VIEWS], missing)


def draw_views(path: str, background: int) -> int:
    """Write the 8-bit depth views of one background: 0 is 0 m and 255 is 10 m, in every picture."""
    corpus = Corpus(path)
    assert corpus.labels is not None
    rows = corpus.rows_of(background)
    with fill_pictures(corpus, VIEWS, background) as unfinished:
        for start in rows[::200]:
            stop = min(start + 200, rows.stop)
            views = view_8bit(corpus.labels.read(start, stop))
            for (_, foreground, flip, position, *_), view in zip(corpus.plan[start:stop].tolist(), views, strict=True):
                name = layout.depth_picture_name(background, foreground, flip, position)
                with name_in_errors(unfinished / f"{name}.jpeg"):
                    (unfinished / f"{name}.jpeg").write_bytes(images.encode_jpeg(view))
    return len(rows)


def view_8bit(millimetres: np.ndarray) -> np.ndarray:
    """Scale millimetres u2 to 0..255 u1: one scale for all, 255 = 10 m."""
    near = np.minimum(millimetres, VIEW_MAX_MM).astype(np.uint32)
    return ((near * 255 + VIEW_MAX_MM // 2) // VIEW_MAX_MM).astype(np.uint8)
