"""Small pictures and small corpora that every test may read; none may be written to."""

import logging
import math
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr
from PIL import Image
from support.corpora import ENCODER, draw_background, draw_cutout, make_corpus, write_weights
from support.rooms import STANDING, make_room_corpus, write_room_pictures

from dsgen.compiled import find_loops

# tiny networks gain nothing from threads, and lose much where cores are shared; before torch is first imported
os.environ.setdefault("OMP_NUM_THREADS", "1")
# dask and numpy silence warnings with `warnings.catch_warnings`, which threads undo for each other, and a warning is an
# error here; before dask is first imported
os.environ.setdefault("DASK_SCHEDULER", "synchronous")
# a shell hands on to what it starts in the background that Ctrl-C is ignored; tests that send it need it
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def empty_user_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what tests measure out of the user's cache folder, and what was measured there out of the tests."""
    before = os.environ.get("XDG_CACHE_HOME")
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
    yield
    del os.environ["XDG_CACHE_HOME"]
    if before is not None:
        os.environ["XDG_CACHE_HOME"] = before


@pytest.fixture(autouse=True, scope="session")
def no_waiting_for_the_disk() -> Iterator[None]:
    """Do not wait for the disk after every file: no test cuts the power, and a busy disk takes minutes for them all."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(autouse=True)
def plain_logger() -> None:
    """Let records of dsgen reach caplog, whatever a test or library before did to its logger.

    `dsgen.cli.app.main` stops them from propagating, and logging.config in libraries can disable loggers.
    """
    logger = logging.getLogger("dsgen")
    logger.handlers.clear()
    logger.setLevel(logging.NOTSET)
    logger.propagate, logger.disabled = True, False


@pytest.fixture
def without_numba(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Do as if numba were not installed."""
    for name in [name for name in sys.modules if name.startswith("dsgen.compiled.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "numba", None)
    find_loops.cache_clear()
    yield
    find_loops.cache_clear()


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders `backgrounds` and `foregrounds` with three pictures each."""
    folder = tmp_path_factory.mktemp("pictures")
    for kind in ("backgrounds", "foregrounds"):
        (folder / kind).mkdir()
    for n in range(3):
        Image.fromarray(draw_background(n)).save(folder / "backgrounds" / f"room{n}.png")
        Image.fromarray(draw_cutout(n, width=24 + 6 * n)).save(folder / "foregrounds" / f"person{n}.png")
    return folder


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> Path:
    """A corpus of 3 backgrounds x 3 foregrounds x 2 flips x 4 positions, 48 pixels, with picture files."""
    return make_corpus(tmp_path_factory.mktemp("made") / "corpus", pictures)


@pytest.fixture(scope="session")
def labelled_corpus(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    """The same with labels: a wall that recedes to the right, 1 to 6 m, and the foreground 1 m before it."""
    from dsgen.corpus.corpus import Corpus

    path = tmp_path_factory.mktemp("labelled") / "corpus"
    shutil.copytree(corpus, path)
    opened = Corpus(path)
    _, mask = opened.render(opened.plan)
    wall = np.linspace(1500, 6000, opened.size)[None, None] + 7 * opened.plan["background"][:, None, None]
    depth = np.where(mask > 0, wall - 1000, wall).astype(np.uint16)
    attributes = {"model": "drawn", "weights_sha256": "0" * 64, "label_size": opened.label_size, "complete": True}
    group = zarr.create_group(path / "depth.zarr", attributes=attributes)
    array = group.create_array(
        "depth", shape=depth.shape, chunks=(4, 48, 48), shards=(24, 48, 48), dtype="uint16", fill_value=0
    )
    array[:] = depth
    return path


@pytest.fixture(scope="session")
def room_pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders `backgrounds`, `depths` and `foregrounds`: two rooms with a floor, one without, and five people."""
    return write_room_pictures(tmp_path_factory.mktemp("rooms"))


@pytest.fixture(scope="session")
def floor_corpus(tmp_path_factory: pytest.TempPathFactory, room_pictures: Path) -> Path:
    """A corpus of 1 to 3 people on the floors of these rooms, 3 x 5 x 2 flips, 48 pixels, with looks."""
    looks = {"shadow": 0.5, "match_colours": 0.4, "feather": 1, "blend": "alpha,gaussian,poisson"}
    return make_room_corpus(tmp_path_factory.mktemp("floor") / "corpus", room_pictures, replace(STANDING, **looks))


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network with fixed weights that answers 1 to 9 m."""
    import torch

    from dsgen.depth.networks import DenseDepth

    torch.manual_seed(0)
    network = DenseDepth(ENCODER, 32, norm=True, output="log", input_size=64)
    torch.nn.init.constant_(network.head.bias, 1.0)
    return write_weights(tmp_path_factory.mktemp("weights") / "w.safetensors", network)


@pytest.fixture(scope="session")
def canonical_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network for a camera of 80 pixels that answers 2 m everywhere, whatever it is shown; fed at 64 pixels."""
    import torch

    from dsgen.depth.networks import DenseDepth

    network = DenseDepth(ENCODER, 32, norm=True, output="log", input_size=64, focal_px=80.0)
    torch.nn.init.zeros_(network.head.weight)
    torch.nn.init.constant_(network.head.bias, math.log(2))
    return write_weights(tmp_path_factory.mktemp("weights") / "canonical.safetensors", network)
