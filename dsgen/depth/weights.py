"""Where a depth network's weights come from: the bundled file, or one given.

A weights file is safetensors (arrays only, no code is run to read it). Its metadata entry `dsgen_network` holds the
network's configuration as JSON; `dsgen train-depth` writes such files. The published DenseDepth weights, Keras 2
files, are read as they are or converted once; which kind a file is, its first bytes say, not its name.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from dsgen.depth.keras import is_hdf5, is_zip, read_keras
from dsgen.depth.networks import DenseDepth, DepthConfig, check_max_depth, misfits
from dsgen.encoders import DSGEN_NETWORK, weights_sha256
from dsgen.errors import DamagedError, DsgenError, InvalidValueError, NotFoundError, is_system_error, reason_of
from dsgen.io.assets import asset
from dsgen.io.atomic import partial_path, write_bytes
from dsgen.io.json_files import parse_as
from dsgen.units import MAX_DEPTH_M

BUNDLED = "depth/depth.safetensors"
METADATA = DSGEN_NETWORK
KITTI_DEPTH_M = 80.0


@dataclass(frozen=True)
class DepthModel:
    """A depth network with trained weights, in evaluation mode, and what labels made with it must say of it."""

    network: DenseDepth
    name: str
    sha256: str


def load_depth_model(
    path: Path | None = None, encoder: str | None = None, max_depth_m: float | None = None
) -> DepthModel:
    """Load a depth network; without `path`, the bundled one.

    `encoder` is the timm encoder wanted: needed where the file does not say, refused where the file says otherwise,
    and, since a network without trained weights labels nothing, refused without a file for any but the bundled one.
    `max_depth_m` is the depth range the network was trained for, refused likewise where the file says otherwise. A
    Keras file does not say: without it, it is 80 m if the file's name has "kitti" in it, else 10 m.
    """
    bundled = path is None
    path = path or asset(BUNDLED)
    if max_depth_m is not None:
        check_max_depth(max_depth_m)
    if not path.is_file():
        raise NotFoundError(
            "--weights", f"{path} does not exist, expected a safetensors or Keras HDF5 file", "check the path"
        )
    config: dict[str, Any] | None
    if is_hdf5(path) or is_zip(path):
        config, state = read_keras(path)
        config["max_depth_m"] = max_depth_m or (KITTI_DEPTH_M if "kitti" in path.name.lower() else MAX_DEPTH_M)
    else:
        config, state = _read_safetensors(path)
    if config is None and encoder is None:
        raise InvalidValueError(
            "--weights", f"{path} does not say which network it is for", "name its timm encoder with --model"
        )
    if config is None:
        config = {"encoder": encoder, "max_depth_m": max_depth_m or MAX_DEPTH_M}
    elif encoder not in (None, config["encoder"]):
        raise InvalidValueError(
            "--model",
            f"got {encoder}, but {'the bundled weights are' if bundled else f'{path} is'} for {config['encoder']}",
            "give the weights trained for it with --weights",
        )
    settings = config
    try:
        strange = misfits(lambda: DenseDepth(**settings), state)
    except TypeError as error:
        raise InvalidValueError(
            "--weights", f"{path}: unknown network settings {', '.join(config)}", "use the dsgen it was made with"
        ) from error
    _refuse_misfits("--weights", path, str(config["encoder"]), strange)
    network = DenseDepth(**config)
    if max_depth_m not in (None, network.config["max_depth_m"]):
        raise InvalidValueError(
            "--max-depth",
            (
                f"got {max_depth_m:g} m, but {'the bundled weights are' if bundled else f'{path} is'} for "
                f"{network.config['max_depth_m']:g} m"
            ),
            "leave it out",
        )
    network.load_state_dict(state)
    name = f"densedepth-{config['encoder']}" + ("-bundled" if bundled else "")
    return DepthModel(network.eval(), name, weights_sha256(path))


def save_depth_network(network: DenseDepth, out: Path, half: bool = False) -> None:
    """Write a network as a weights file that says which network it is for, whole or not at all.

    With `half` the kernels are written as float16, in half the bytes; what scales and shifts channels stays float32.
    """
    state = {name: value.contiguous() for name, value in network.state_dict().items()}
    if half:
        state = {name: value.half() if value.ndim > 1 else value for name, value in state.items()}
    write_bytes(out, save(state, {METADATA: json.dumps(network.config)}))


@dataclass(frozen=True)
class ConvertedWeights:
    """What `convert_weights` wrote: arrays and parameters of the network, its decoder's width, and the file's hash.

    `activations` is the number of LeakyReLUs in an up block, `max_depth_m` the farthest depth it answers.
    """

    out: Path
    arrays: int
    parameters: int
    width: int
    activations: int
    max_depth_m: float
    sha256: str


def convert_weights(source: Path, out: Path, max_depth_m: float | None = None, half: bool = False) -> ConvertedWeights:
    """Write the network of a Keras file, or with `half` of any weights file, as safetensors, whole or not at all.

    `max_depth_m` is as for `load_depth_model`; the file written records it. `half` is as for `save_depth_network`.
    Raises `NotFoundError` and `DamagedError` for a source that cannot be read.

    >>> convert_weights(Path("nyu.h5"), Path("nyu.safetensors")).parameters  # doctest: +SKIP
    42816089
    """
    if not source.is_file():
        raise NotFoundError(source, "no such file, expected a Keras HDF5 file")
    if not half and not (is_hdf5(source) or is_zip(source)):
        remedy = "a safetensors file needs no conversion, except with --half"
        raise DamagedError(source, "no HDF5 file, expected Keras weights", remedy)
    unfinished = partial_path(out)
    if any(path.exists() and path.samefile(source) for path in (out, unfinished)):
        raise DsgenError(out, "is the file to convert", "give the result another name")
    if out.is_dir():
        raise DsgenError(out, "is a folder, expected a file name for the weights", "add one")
    network = load_depth_model(source, max_depth_m=max_depth_m).network
    out.parent.mkdir(parents=True, exist_ok=True)
    save_depth_network(network, out, half)
    arrays = [value for name, value in network.state_dict().items() if not name.endswith("num_batches_tracked")]
    return ConvertedWeights(
        out=out,
        arrays=len(arrays),
        parameters=sum(value.numel() for value in arrays),
        width=network.config["width"],
        activations=network.config["activations"],
        max_depth_m=network.config["max_depth_m"],
        sha256=weights_sha256(out),
    )


def load_initial(network: DenseDepth, path: Path) -> None:
    """Load the arrays of a weights file, given with `--init`, into a network they must fit.

    A network that answers at full size may begin with the weights of one that answers at half of it.
    """
    if not path.is_file():
        raise NotFoundError("--init", f"{path} does not exist, expected a safetensors file", "check the path")
    _, state = _read_safetensors(path, "--init", "give weights that dsgen train-depth wrote")
    settings = f"{network.config['encoder']}, {network.config['width']} wide"
    remedy = "use the --encoder and --width that it was trained with"
    fresh = {name: value for name, value in network.state_dict().items() if name.startswith("refine.")}
    if not fresh.keys() & state.keys():
        state |= fresh
    _refuse_misfits("--init", path, settings, misfits(lambda: network, state), remedy)
    network.load_state_dict(state)


def _refuse_misfits(
    option: str, path: Path, network: str, strange: list[str], remedy: str = "give the weights trained for it"
) -> None:
    if strange:
        shown = ", ".join(name[:100] for name in strange[:3]) + (", ..." if len(strange) > 3 else "")
        reason = (
            f"{path} does not fit a DenseDepth of {network}: {len(strange)} arrays are missing, left over or of "
            f"another shape ({shown})"
        )
        raise InvalidValueError(option, reason, remedy)


def _read_safetensors(
    path: Path, option: str = "--weights", remedy: str = "replace it"
) -> tuple[dict[str, Any] | None, dict[str, Tensor]]:
    """Read a file's network settings, None where it has none, and its arrays."""
    try:
        with safe_open(path, "pt") as file:
            metadata: Mapping[str, str] = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except Exception as error:  # beside its own errors it raises those of torch, for dtypes that torch does not have
        if is_system_error(error) and not isinstance(error, SafetensorError):
            raise
        reason = f"{path} is no readable safetensors file ({reason_of(error, path)})"
        raise InvalidValueError(option, reason, remedy) from error
    if METADATA not in metadata:
        return None, state
    try:
        return dict(parse_as(DepthConfig, metadata[METADATA].encode(), path)), state
    except DamagedError as error:
        reason = f"{path}: metadata {METADATA!r} is {error.reason}"
        raise InvalidValueError(option, reason, "replace the file") from error
