"""Small pictures, corpora and weights, and what is on disk, for tests of every package."""

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dsgen.corpus.build import Parameters, composite
from dsgen.io.json_files import encode_json
from dsgen.parallel.locks import LOCK

if TYPE_CHECKING:
    from dsgen.depth.networks import DenseDepth

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


def make_corpus(folder: Path, sources: Path, **options: object) -> Path:
    """Make a small corpus of the fixture's pictures."""
    composite(folder, sources / "backgrounds", sources / "foregrounds", SMALL, jobs=1, **options)  # type: ignore[arg-type]
    return folder


def write_weights(path: Path, network: "DenseDepth") -> Path:
    """Write a network as `train-depth` does."""
    from dsgen.depth.weights import save_depth_network

    save_depth_network(network, path)
    return path


def earlier_manifest(corpus: Path, **changes: object) -> bytes:
    """The `corpus.json` that versions without a hash of it would have written; None removes a key."""
    content = json.loads((corpus / "corpus.json").read_bytes()) | changes | {"manifest_sha256": None}
    return encode_json({name: value for name, value in content.items() if value is not None})


def files(folder: Path) -> dict[str, bytes]:
    """Every file below a folder but the lock, by relative name."""
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name != LOCK
    }


def label_files(corpus: Path) -> dict[str, bytes]:
    """Every file of the labels."""
    folder = corpus / "depth.zarr"
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def digest(folder: Path) -> dict[str, str]:
    """The hash of every file under a folder but for locks."""
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and not p.name.startswith(LOCK)
    }
