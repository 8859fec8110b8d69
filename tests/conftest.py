"""Small pictures and small corpora that every test may read; none may be written to."""

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import zarr
from PIL import Image

from dsgen.corpus.build import Parameters, composite

if TYPE_CHECKING:
    from dsgen.depth.networks import DenseDepth

# tiny networks gain nothing from threads, and lose much where cores are shared; before torch is first imported
os.environ.setdefault("OMP_NUM_THREADS", "1")

ENCODER = "mobilenetv4_conv_small_050"
SMALL = Parameters(positions=4, size=48, label_size=96, fg_height=20, validation_share=0.34, test_share=0)


def draw_background(seed: int, height: int = 110, width: int = 130) -> np.ndarray:
    """A smooth picture with some noise, (height,width,3) u1."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / rng.uniform(5, 30) + y / rng.uniform(5, 30)) for _ in range(3)]
    return (np.stack(waves, axis=2) * 100 + 128 + rng.normal(0, 3, (height, width, 3))).clip(0, 255).astype(np.uint8)


def draw_cutout(seed: int, height: int = 50, width: int = 30) -> np.ndarray:
    """A blob with soft edges in a transparent margin, (height,width,4) u1."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    radius = np.hypot((y - height / 2) / (height / 2 - 3), (x - width / 2) / (width / 2 - 3))
    alpha = ((1.1 - radius) * 900).clip(0, 255)
    colour = np.broadcast_to(rng.integers(0, 256, 3), (height, width, 3)) + 20 * (x[..., None] % 3)
    return np.dstack([colour.clip(0, 255), alpha]).astype(np.uint8)


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


def make_corpus(folder: Path, sources: Path, **options: object) -> Path:
    """Make a small corpus of the fixture's pictures."""
    composite(folder, sources / "backgrounds", sources / "foregrounds", SMALL, jobs=1, **options)  # type: ignore[arg-type]
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
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network with fixed weights that answers 1 to 9 m."""
    import torch

    from dsgen.depth.networks import DenseDepth

    torch.manual_seed(0)
    network = DenseDepth(ENCODER, 32, norm=True, output="log", input_size=64)
    torch.nn.init.constant_(network.head.bias, 1.0)
    return write_weights(tmp_path_factory.mktemp("weights") / "w.safetensors", network)


def write_weights(path: Path, network: "DenseDepth") -> Path:
    """Write a network as `train-depth` does."""
    from dsgen.depth.weights import save_depth_network

    save_depth_network(network, path)
    return path
