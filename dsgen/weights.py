"""Where a depth network's weights come from: the bundled file, or one given.

A weights file is safetensors (arrays only, no code is run to read it). Its metadata entry `dsgen_network` holds the
network's configuration as JSON; `dsgen train-depth` writes such files.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from dsgen import layout
from dsgen.errors import DsgenError
from dsgen.networks import DenseDepth

BUNDLED = "depth/depth.safetensors"
METADATA = "dsgen_network"


@dataclass(frozen=True)
class DepthModel:
    """A depth network with trained weights, in evaluation mode, and what labels made with it must say of it."""

    network: DenseDepth
    name: str
    sha256: str


def load_depth_model(path: Path | None = None, encoder: str | None = None) -> DepthModel:
    """Load a depth network; without `path`, the bundled one.

    `encoder` is the timm encoder wanted: needed where the file does not say, refused where the file says otherwise,
    and, since a network without trained weights labels nothing, refused without a file for any but the bundled one.
    """
    bundled = path is None
    path = path or layout.asset(BUNDLED)
    if not path.is_file():
        raise DsgenError(f"--weights: {path} does not exist, expected a safetensors file")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError) as error:
        raise DsgenError(f"--weights: {path} is no readable safetensors file ({error}); replace it") from error
    try:
        config = json.loads(metadata[METADATA]) if METADATA in metadata else None
    except ValueError as error:
        raise DsgenError(f"--weights: {path}: metadata {METADATA!r} is damaged ({error}); replace the file") from error
    if config is None and encoder is None:
        raise DsgenError(f"--weights: {path} does not say which network it is for; name its timm encoder with --model")
    if config is None:
        config = {"encoder": encoder}
    elif encoder not in (None, config["encoder"]):
        raise DsgenError(
            f"--model: got {encoder}, but {'the bundled weights are' if bundled else f'{path} is'} for "
            f"{config['encoder']}; give the weights trained for it with --weights"
        )
    try:
        network = DenseDepth(**config)
    except TypeError as error:
        raise DsgenError(
            f"--weights: {path}: unknown network settings {config}; use the dsgen it was made with"
        ) from error
    wanted = network.state_dict()
    strange = sorted(wanted.keys() ^ state.keys()) or sorted(n for n in wanted if wanted[n].shape != state[n].shape)
    if strange:
        shown = ", ".join(strange[:3]) + (", ..." if len(strange) > 3 else "")
        raise DsgenError(
            f"--weights: {path} does not fit a DenseDepth of {config['encoder']}: {len(strange)} arrays are missing, "
            f"left over or of another shape ({shown}); give the weights trained for it"
        )
    network.load_state_dict(state)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    name = f"densedepth-{config['encoder']}" + ("-bundled" if bundled else "")
    return DepthModel(network.eval(), name, digest)
