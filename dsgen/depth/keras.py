"""The published DenseDepth weights, Keras 2 HDF5 files, as the state of a `DenseDepth`.

A file has a group `model_weights` with a group for each layer, or, saved as weights only, the layers at its root. The
attribute `layer_names` lists the layers, each layer's attribute `weight_names` its arrays, and the root's
`model_config`, JSON, what the arrays do not say: the activations. Kernels are HWIO float32. Reading is exact: every
array of the file is used once, every array of the network is filled once, or the file is refused.
"""

import json
import re
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dsgen.depth.networks import KERAS_EPSILON, MAX_WIDTH, SLOPE, DenseDepth
from dsgen.errors import DamagedError, DsgenError, MissingPackageError, is_system_error, reason_of

Arrays = dict[tuple[str, str], Any]  # data sets by layer and name

_ENCODER = "densenet169"
_BLOCKS = (6, 12, 32, 32)
_DEEPEST = 1664
# what Keras calls an array, and what torch does
_CONVOLUTION = {"kernel": "weight", "bias": "bias"}
_NORM = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}


def is_hdf5(path: Path) -> bool:
    """Whether a file starts as HDF5 files do."""
    with path.open("rb") as file:
        return file.read(4) == b"\x89HDF"


def is_zip(path: Path) -> bool:
    """Whether a file starts as zip files do, among them those of Keras 3."""
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def read_keras(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read a Keras 2 DenseDepth file: the settings of a `DenseDepth` (all but its depth range) and its state.

    The width is that of the layer `conv2`; the number of activations is the model's, or, where the file has weights
    only, told from the layers' names. Raises `DsgenError` for a file that is damaged or is not exactly this network.
    """
    try:
        import h5py
    except ImportError as error:
        raise MissingPackageError(path, "reading Keras files needs h5py", "pip install 'dsgen[keras]'") from error
    if is_zip(path):
        with suppress(zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
            if any(name.endswith("data.pkl") for name in archive.namelist()):
                raise DsgenError(path, "got a file of PyTorch, expected safetensors or Keras 2 HDF5", "convert it")
        raise DsgenError(
            path, "got a Keras 3 zip, expected Keras 2 HDF5", "load it in Keras and save it with model.save('name.h5')"
        )
    try:
        with h5py.File(path, "r") as file:
            data_sets = _list_data_sets(path, file)
            root = file.get("model_weights", file)
            model = _attribute(file, "model_config")
            activations = _read_model(path, model) if model else _count_activations(path, _names(root, "layer_names"))
            arrays, left_over = _list_arrays(path, root, data_sets)
            config = _make_config(path, arrays, activations)
            return config, _to_torch(path, config, arrays, left_over)
    except DsgenError:
        raise
    except Exception as error:  # h5py raises errors of any class for damaged files
        if is_system_error(error):
            raise
        reason = f"no readable Keras HDF5 file ({reason_of(error, path)})"
        raise DamagedError(path, reason, "download it again") from error


def _make_config(path: Path, arrays: Arrays, activations: int) -> dict[str, Any]:
    """Return the settings of the network, whose width is that of the layer `conv2`."""
    kernel = arrays.get(("conv2", "kernel"))
    width = kernel.shape[-1] if kernel is not None and len(kernel.shape) == 4 else _DEEPEST
    if not 16 <= width <= MAX_WIDTH or width % 16:
        reason = f"conv2/kernel: got {width} channels out, expected a multiple of 16 up to {MAX_WIDTH}"
        raise DsgenError(path, reason, "give the published file")
    return {
        "encoder": _ENCODER,
        "width": width,
        "norm": False,
        "output": "reciprocal",
        "input_size": None,
        "activations": activations,
    }


def _modules() -> Iterator[tuple[str, str, dict[str, str]]]:
    """Yield every weighted layer of Keras' network with torch's name for it and for its arrays."""
    features = "encoder.features"
    yield "conv1/conv", f"{features}.conv0", _CONVOLUTION
    yield "conv1/bn", f"{features}.norm0", _NORM
    for block, layers in enumerate(_BLOCKS, 1):
        for layer in range(1, layers + 1):
            keras, ours = f"conv{block + 1}_block{layer}", f"{features}.denseblock{block}.denselayer{layer}"
            yield f"{keras}_0_bn", f"{ours}.norm1", _NORM
            yield f"{keras}_1_conv", f"{ours}.conv1", _CONVOLUTION
            yield f"{keras}_1_bn", f"{ours}.norm2", _NORM
            yield f"{keras}_2_conv", f"{ours}.conv2", _CONVOLUTION
        if block < len(_BLOCKS):
            yield f"pool{block + 1}_bn", f"{features}.transition{block}.norm", _NORM
            yield f"pool{block + 1}_conv", f"{features}.transition{block}.conv", _CONVOLUTION
    yield "bn", f"{features}.norm5", _NORM
    yield "conv2", "bottom", _CONVOLUTION
    for up in range(1, 5):
        yield f"up{up}_convA", f"up.{up - 1}.conv_a", _CONVOLUTION
        yield f"up{up}_convB", f"up.{up - 1}.conv_b", _CONVOLUTION
    yield "conv3", "head", _CONVOLUTION


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _attribute(group: Any, name: str) -> str | None:
    return _text(group.attrs[name]) if name in group.attrs else None


def _names(group: Any, name: str) -> list[str]:
    """Read an attribute that is a list of names; Keras splits one over 64 KB into numbered ones."""
    if name in group.attrs:
        return [_text(value) for value in group.attrs[name]]
    parts: list[str] = []
    while f"{name}{len(parts)}" in group.attrs:
        parts.append(f"{name}{len(parts)}")
    if not parts:
        raise KeyError(f"attribute {name} is missing")
    return [_text(value) for part in parts for value in group.attrs[part]]


def _list_data_sets(path: Path, file: Any) -> list[Any]:
    """List all data sets of a file; refuse what would be read from another file, or takes more memory than it says."""
    import h5py

    found, seen, groups = [], set(), [file]
    while groups:
        group = groups.pop()
        for name in group:
            where = f"{group.name.rstrip('/')}/{name}"
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise DamagedError(path, f"{where} is a link, expected an array or a layer", "give the published file")
            item = group[name]
            address = h5py.h5o.get_info(item.id).addr
            if address in seen:
                continue
            seen.add(address)
            if isinstance(item, h5py.Group):
                groups.append(item)
            elif isinstance(item, h5py.Dataset):
                if item.external or item.is_virtual:
                    raise DamagedError(path, f"{where} lies in another file", "give the published file")
                found.append(item)
    return found


def _list_arrays(path: Path, root: Any, data_sets: list[Any]) -> tuple[Arrays, list[str]]:
    """List what the layers list, by layer and array name, and name the data sets that no layer lists."""
    import h5py

    prefix = root.name.rstrip("/") + "/"
    below = [item.name.removeprefix(prefix) for item in data_sets if item.name.startswith(prefix)]
    listed: set[str] = set()
    arrays: Arrays = {}
    twice = []
    for layer in _names(root, "layer_names"):
        if layer not in root:
            continue  # if it has weights, they are found missing
        for weight in _names(root[layer], "weight_names"):
            key = (layer, weight.rsplit("/", 1)[-1].split(":")[0])
            name = f"{layer}/{weight}"
            if name in listed or key in arrays:
                twice.append(name)
            elif isinstance(item := root.get(name), h5py.Dataset):
                listed.add(name)
                arrays[key] = item
    if twice:
        raise DsgenError(path, f"got {_some(twice)} twice, expected every array once", "download it again")
    return arrays, [name for name in below if name not in listed]


def _to_torch(path: Path, config: dict[str, Any], arrays: Arrays, left_over: list[str]) -> dict[str, Tensor]:
    """Rename and transpose the arrays into a network's state; `left_over` grows by those it has no place for.

    An array is read once its shape is known to fit.
    """
    with torch.device("meta"):
        wanted = DenseDepth(**config).state_dict()
    state = {name: torch.zeros((), dtype=v.dtype) for name, v in wanted.items() if name.endswith("num_batches_tracked")}
    missing, wrong = [], []
    for layer, module, names in _modules():
        for keras, ours in names.items():
            target = f"{module}.{ours}"
            if target not in wanted:
                continue  # an encoder's convolution has no bias
            if (layer, keras) not in arrays:
                missing.append(f"{layer}/{keras}")
                continue
            item = arrays.pop((layer, keras))
            shape = tuple(wanted[target].shape)
            expected = (*shape[2:], shape[1], shape[0]) if len(shape) == 4 else shape
            if item.shape != expected:
                wrong.append(f"{layer}/{keras}: got {item.shape}, expected {expected}")
                continue
            array = np.asarray(item[()], dtype=np.float32)
            array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array  # HWIO -> OIHW
            state[target] = torch.from_numpy(np.ascontiguousarray(array))
    left_over = left_over + [f"{layer}/{keras}" for layer, keras in arrays]
    problems = [f"{len(missing)} arrays are missing ({_some(missing)})"] if missing else []
    problems += [f"{len(left_over)} are left over ({_some(left_over)})"] if left_over else []
    problems += [f"{len(wrong)} are of another shape ({_some(wrong, '; ')})"] if wrong else []
    if problems:
        raise DsgenError(path, f"is not DenseDepth over DenseNet-169: {', '.join(problems)}", "give the published file")
    if unfilled := sorted(wanted.keys() - state.keys()):
        raise DsgenError(path, f"nothing fills {_some(unfilled)}", "this timm's DenseNet is not the one dsgen knows")
    return state


def _some(names: list[str], separator: str = ", ") -> str:
    return separator.join(names[:3]) + (f"{separator}..." if len(names) > 3 else "")


def _count_activations(path: Path, names: list[str]) -> int:
    """Tell from a file of weights only, by its layers' names, how many activations an up block has."""
    found = sum("leaky" in name.lower() for name in names)
    if found not in (4, 8):
        raise DsgenError(
            path,
            f"got weights without a model and {found} layers named like LeakyReLU, expected 4 or 8",
            "save the whole model with model.save('name.h5')",
        )
    return found // 4


def _read_model(path: Path, model_config: str) -> int:
    """Check what the arrays do not say and return how many activations an up block has."""
    try:
        layers: list[dict[str, Any]] = json.loads(model_config)["config"]["layers"]
        kinds = [layer["class_name"] for layer in layers]
        settings_of = [dict(layer["config"]) for layer in layers]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedError(
            path, f"attribute model_config is damaged ({reason_of(error)})", "download the file again"
        ) from error
    problems, followed = [], set()
    for layer, kind, settings in zip(layers, kinds, settings_of, strict=True):
        name = settings.get("name", kind)
        if kind == "LeakyReLU":
            slope = settings.get("alpha", settings.get("negative_slope"))
            slope = slope.get("value") if isinstance(slope, dict) else slope
            if slope is None or abs(slope - SLOPE) > 1e-6:
                problems.append(f"{name}: got slope {slope}, expected {SLOPE}")
            followed.update(re.findall(r'"(up\d+_conv[AB])"', json.dumps(layer.get("inbound_nodes"))))
        elif kind == "BatchNormalization" and abs(settings.get("epsilon", 1e-3) - KERAS_EPSILON) > 1e-9:
            problems.append(f"{name}: got epsilon {settings.get('epsilon')}, expected {KERAS_EPSILON}")
        elif kind == "Conv2D" and settings.get("activation", "linear") not in (None, "linear"):
            problems.append(f"{name}: got activation {settings['activation']}, expected linear")
        elif kind == "UpSampling2D":
            problems.append(f"{name}: got UpSampling2D, expected BilinearUpSampling2D, which aligns corners")
    count = kinds.count("LeakyReLU")
    if count not in (4, 8):
        problems.append(f"got {count} LeakyReLU layers, expected 4 or 8, one or two in an up block")
    else:
        expected = {f"up{up}_conv{which}" for up in range(1, 5) for which in ("B" if count == 4 else "AB")}
        if followed != expected:
            problems.append(f"got LeakyReLU after {sorted(followed)}, expected after {sorted(expected)}")
    if problems:
        raise DsgenError(path, f"is not published DenseDepth: {_some(problems, '; ')}", "give the published file")
    return count // 4
