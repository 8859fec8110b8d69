"""The published Keras weights: files of their exact structure, and a second forward pass in plain numpy.

The layer list below has what the published files have: 617 layers, 347 of them with weights, 864 arrays, 42,816,089
numbers. The numbers themselves are random: kernels small and batch norm statistics as the layers' inputs have them,
variances around the epsilon, so that a wrong epsilon shows.
"""

import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from dsgen.depth.keras import read_keras
from dsgen.depth.networks import DenseDepth, DenseNetEncoder, to_metres
from dsgen.depth.weights import METADATA, ConvertedWeights, convert_weights, load_depth_model
from dsgen.errors import DsgenError

PARAMETERS = 42_816_089
EPSILON = 1.001e-5
Arrays = dict[str, dict[str, np.ndarray]]
Layer = dict[str, Any]


def published_layers(width: int = 1664, activations: int = 1) -> list[Layer]:
    """List the network's layers in order: class, name, settings, the layers before, the shapes of the weights."""
    layers: list[Layer] = []

    def add(kind: str, name: str, before: list[str], weights: dict[str, tuple[int, ...]], **settings: Any) -> str:
        layers.append({"class": kind, "name": name, "before": before, "weights": weights, "settings": settings})
        return name

    def convolve(name: str, before: str, size: int, channels: int, out: int, bias: bool = False) -> str:
        weights = {"kernel": (size, size, channels, out)} | ({"bias": (out,)} if bias else {})
        return add("Conv2D", name, [before], weights, filters=out, activation="linear", use_bias=bias)

    def normalise(name: str, before: str, channels: int) -> str:
        weights = dict.fromkeys(("gamma", "beta", "moving_mean", "moving_variance"), (channels,))
        return add("BatchNormalization", name, [before], weights, axis=3, momentum=0.99, epsilon=EPSILON)

    def rectify(name: str, before: str) -> str:
        return add("Activation", name, [before], {}, activation="relu")

    x = add("InputLayer", "input_1", [], {})
    x = convolve("conv1/conv", add("ZeroPadding2D", "zero_padding2d_1", [x], {}), 7, 3, 64)
    x = first = rectify("conv1/relu", normalise("conv1/bn", x, 64))
    x = pool1 = add("MaxPooling2D", "pool1", [add("ZeroPadding2D", "zero_padding2d_2", [x], {})], {})
    skips, channels = [(pool1, 64), (first, 64)], 64
    for stage, count in enumerate((6, 12, 32, 32), 2):
        for block in range(1, count + 1):
            name = f"conv{stage}_block{block}"
            y = rectify(f"{name}_0_relu", normalise(f"{name}_0_bn", x, channels))
            y = convolve(f"{name}_1_conv", y, 1, channels, 128)
            y = rectify(f"{name}_1_relu", normalise(f"{name}_1_bn", y, 128))
            y = convolve(f"{name}_2_conv", y, 3, 128, 32)
            x = add("Concatenate", f"{name}_concat", [x, y], {}, axis=3)
            channels += 32
        if stage < 5:
            x = rectify(f"pool{stage}_relu", normalise(f"pool{stage}_bn", x, channels))
            x = convolve(f"pool{stage}_conv", x, 1, channels, channels // 2)
            x = add("AveragePooling2D", f"pool{stage}_pool", [x], {})
            channels //= 2
            if stage < 4:
                skips.insert(0, (x, channels))
    x = rectify("relu", normalise("bn", x, channels))
    x = convolve("conv2", x, 1, channels, width, bias=True)
    leaky = 0
    for up, (skip, more) in enumerate(skips, 1):
        out = width // 2
        x = add("BilinearUpSampling2D", f"up{up}_upsampling2d", [x], {}, size=[2, 2])
        x = add("Concatenate", f"up{up}_concat", [x, skip], {}, axis=3)
        for which, wide in (("A", width + more), ("B", out)):
            x = convolve(f"up{up}_conv{which}", x, 3, wide, out, bias=True)
            if which == "B" or activations == 2:
                leaky += 1
                x = add("LeakyReLU", f"leaky_re_lu_{leaky}", [x], {}, alpha=0.20000000298023224)
        width = out
    convolve("conv3", x, 3, width, 1, bias=True)
    return layers


def model_config(layers: list[Layer]) -> dict[str, Any]:
    """What Keras 2 says of a model."""
    described = [
        {
            "class_name": layer["class"],
            "name": layer["name"],
            "config": {"name": layer["name"], "trainable": True} | layer["settings"],
            "inbound_nodes": [[[name, 0, 0, {}] for name in layer["before"]]] if layer["before"] else [],
        }
        for layer in layers
    ]
    return {"class_name": "Model", "config": {"name": "model_1", "layers": described}}


def draw(layers: list[Layer], seed: int) -> Arrays:
    """Random weights: small kernels in the encoder, so that variances are near epsilon, and usual ones after it."""
    rng = np.random.default_rng(seed)
    arrays: Arrays = {}
    for layer in layers:
        decoder = "bias" in layer["weights"]
        for key, shape in layer["weights"].items():
            value = rng.standard_normal(shape, dtype=np.float32)
            if key == "kernel":
                value *= np.float32(np.sqrt(2 / np.prod(shape[:3])) * (1 if decoder else 0.003))
            elif key in ("gamma", "moving_variance"):
                value = 1 + np.abs(value) / 2
            else:
                value *= np.float32(0.1)
            arrays.setdefault(layer["name"], {})[key] = value
    return arrays


def write_keras(path: Path, layers: list[Layer], arrays: Arrays) -> Path:
    """Write a file as Keras 2.2.4 does; lists of names are arrays of bytes, empty ones of float64."""
    with h5py.File(path, "w") as file:
        file.attrs["keras_version"] = b"2.2.4"
        file.attrs["backend"] = b"tensorflow"
        file.attrs["model_config"] = json.dumps(model_config(layers)).encode()
        root = file.create_group("model_weights")
        root.attrs["layer_names"] = np.asarray([layer["name"].encode() for layer in layers])
        for layer in layers:
            group = root.create_group(layer["name"])
            names = [f"{layer['name']}/{key}:0" for key in layer["weights"]]
            group.attrs["weight_names"] = np.asarray([name.encode() for name in names])
            for name, key in zip(names, layer["weights"], strict=True):
                group[name] = arrays[layer["name"]][key]
    return path


# --- the network once more, in numpy, HWC float64


def convolve(x: np.ndarray, weights: dict[str, np.ndarray], stride: int = 1) -> np.ndarray:
    """Correlate (H,W,C) with a kernel HWIO after padding with half its size."""
    kernel = weights["kernel"].astype(float)
    size, _, channels, out = kernel.shape
    padded = np.pad(x, ((size // 2, size // 2), (size // 2, size // 2), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size), (0, 1))[::stride, ::stride]
    columns = windows.transpose(0, 1, 3, 4, 2).reshape(-1, size * size * channels)
    return (columns @ kernel.reshape(-1, out)).reshape(*windows.shape[:2], out) + weights.get("bias", 0.0)


def enlarge(x: np.ndarray) -> np.ndarray:
    """Double (H,W,C) bilinearly with corners on corners."""
    for axis in (0, 1):
        x = np.moveaxis(x, axis, 0)
        at = np.linspace(0, len(x) - 1, 2 * len(x))
        low = np.minimum(at.astype(int), max(len(x) - 2, 0))
        high = np.minimum(low + 1, len(x) - 1)
        share = (at - low)[:, None, None]
        x = np.moveaxis((1 - share) * x[low] + share * x[high], 0, axis)
    return x


def shrink(x: np.ndarray) -> np.ndarray:
    """Halve (H,W,C) by averages."""
    return (x[::2, ::2] + x[1::2, ::2] + x[::2, 1::2] + x[1::2, 1::2]) / 4


def oracle(
    picture: np.ndarray, w: Arrays, activations: int, calibrate: bool = False, epsilon: float = EPSILON
) -> list[np.ndarray]:
    """Answer for a picture (H,W,3): the five taps, then the output; `calibrate` sets statistics to what comes by."""
    rng = np.random.default_rng(5)

    def norm_relu(name: str, x: np.ndarray) -> np.ndarray:
        if calibrate:
            shape = x.shape[-1]
            spread = x.var((0, 1)) * rng.uniform(0.7, 2, shape)
            w[name]["moving_variance"] = np.maximum(spread, 2e-6).astype(np.float32)
            w[name]["moving_mean"] = x.mean((0, 1)).astype(np.float32)
        scale = w[name]["gamma"] / np.sqrt(w[name]["moving_variance"].astype(float) + epsilon)
        return np.maximum((x - w[name]["moving_mean"]) * scale + w[name]["beta"], 0)

    x = norm_relu("conv1/bn", convolve(picture.astype(float), w["conv1/conv"], 2))
    taps = [x]
    padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
    x = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (0, 1))[::2, ::2].max((-2, -1))
    taps.append(x)
    for stage, count in enumerate((6, 12, 32, 32), 2):
        for block in range(1, count + 1):
            name = f"conv{stage}_block{block}"
            y = convolve(norm_relu(f"{name}_0_bn", x), w[f"{name}_1_conv"])
            x = np.concatenate([x, convolve(norm_relu(f"{name}_1_bn", y), w[f"{name}_2_conv"])], axis=2)
        if stage < 5:
            x = shrink(convolve(norm_relu(f"pool{stage}_bn", x), w[f"pool{stage}_conv"]))
            taps.append(x)
    del taps[-1]  # the third transition is no skip
    taps.append(norm_relu("bn", x))
    return [*taps, decode(taps, w, activations)]


def decode(taps: list[np.ndarray], w: Arrays, activations: int) -> np.ndarray:
    """The output that follows from the five taps."""
    x = convolve(taps[-1], w["conv2"])
    for up in range(1, 5):
        x = np.concatenate([enlarge(x), taps[4 - up]], axis=2)
        x = convolve(x, w[f"up{up}_convA"])
        x = np.where(x < 0, 0.2 * x, x) if activations == 2 else x
        x = convolve(x, w[f"up{up}_convB"])
        x = np.where(x < 0, 0.2 * x, x)
    return convolve(x, w["conv3"])


def read_plainly(path: Path) -> Arrays:
    """Read a file's arrays by their own paths."""
    arrays: Arrays = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            twice, key = name.removesuffix(":0").rsplit("/", 1)
            layer = twice[: len(twice) // 2]
            assert twice == f"{layer}/{layer}"
            arrays.setdefault(layer, {})[key] = item[()]

    with h5py.File(path) as file:
        file["model_weights"].visititems(visit)
    return arrays


def picture(height: int, width: int, seed: int = 3) -> np.ndarray:
    """Draw smooth shapes and noise, (H,W,3) in 0..1."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / rng.uniform(3, 20) + y / rng.uniform(3, 20)) for _ in range(3)]
    return (np.stack(waves, 2) * 0.35 + 0.5 + rng.normal(0, 0.05, (height, width, 3))).clip(0, 1).astype(np.float32)


def to_torch(image: np.ndarray) -> torch.Tensor:
    """(H,W,3) as (1,3,H,W)."""
    return torch.from_numpy(image.transpose(2, 0, 1).copy())[None]


def difference(got: torch.Tensor, expected: np.ndarray) -> float:
    """The largest difference of (1,C,H,W) and (H,W,C), relative to the largest value."""
    return float(np.abs(got[0].numpy().transpose(1, 2, 0) - expected).max() / np.abs(expected).max())


@pytest.fixture(scope="session")
def encoder_arrays() -> Arrays:
    """Weights of the published width with calibrated statistics."""
    arrays = draw(published_layers(), 0)
    oracle(picture(96, 96, seed=1), arrays, 1, calibrate=True)
    return arrays


def variant(tmp_path: Path, encoder_arrays: Arrays, width: int, activations: int) -> Path:
    """Write a file of another width over the same encoder."""
    layers = published_layers(width, activations)
    decoder = draw([layer for layer in layers if "bias" in layer["weights"]], 1)
    return write_keras(tmp_path / f"w{width}a{activations}.h5", layers, encoder_arrays | decoder)


@pytest.fixture(scope="session")
def full(tmp_path_factory: pytest.TempPathFactory, encoder_arrays: Arrays) -> Path:
    """A file of the published structure and size."""
    return write_keras(tmp_path_factory.mktemp("keras") / "nyu.h5", published_layers(), encoder_arrays)


@pytest.fixture(scope="session")
def half(tmp_path_factory: pytest.TempPathFactory, encoder_arrays: Arrays) -> Path:
    """What the authors' later source builds: half the width, two activations."""
    return variant(tmp_path_factory.mktemp("keras"), encoder_arrays, 832, 2)


@pytest.fixture(scope="session")
def narrow(tmp_path_factory: pytest.TempPathFactory, encoder_arrays: Arrays) -> Path:
    """A file with hardly any decoder, for what does not need one."""
    return variant(tmp_path_factory.mktemp("keras"), encoder_arrays, 16, 1)


@pytest.fixture(scope="session")
def narrow_read(narrow: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Its settings and its state."""
    return read_keras(narrow)


@pytest.fixture
def copied(tmp_path: Path, narrow: Path) -> Path:
    """A copy of the narrow file, to be spoilt."""
    return Path(shutil.copy(narrow, tmp_path / "copied.h5"))


def test_files_written_here_have_the_published_structure(full: Path):
    """617 layers, 347 with weights, 864 arrays, 42,816,089 numbers, the nesting of slashed names, bytes."""
    with h5py.File(full) as file:
        root = file["model_weights"]
        names = root.attrs["layer_names"]
        listed = [list(root[name.decode()].attrs["weight_names"]) for name in names]
        assert root["conv1/conv/conv1/conv/kernel:0"].shape == (7, 7, 3, 64)
    assert isinstance(names[0], bytes)
    assert (len(names), sum(map(bool, listed)), sum(map(len, listed))) == (617, 347, 864)
    assert sum(value.size for layer in read_plainly(full).values() for value in layer.values()) == PARAMETERS


def test_the_network_is_the_published_one():
    """Parameters and running statistics add up; the up blocks have the published widths."""
    with torch.device("meta"):
        network = DenseDepth("densenet169")
    state = network.state_dict()
    assert sum(value.numel() for name, value in state.items() if not name.endswith("num_batches_tracked")) == PARAMETERS
    convolutions = [state[f"up.{up}.conv_a.weight"].shape[:2] for up in range(4)]
    assert convolutions == [(832, 1920), (416, 960), (208, 480), (104, 272)]


@pytest.mark.parametrize(
    ("name", "channels"),
    [
        ("densenet121", [64, 64, 128, 256, 1024]),
        ("densenet161", [96, 96, 192, 384, 2208]),
        ("densenet201", [64, 64, 128, 256, 1920]),
    ],
)
def test_densenets_are_tapped_where_keras_is(name: str, channels: list[int]):
    """Channels, sizes and the batch norms' settings of the others of the family."""
    encoder = DenseNetEncoder(name).eval()
    with torch.inference_mode():
        taps = encoder(torch.rand(1, 3, 64, 96))
    assert encoder.channels == channels == [tap.shape[1] for tap in taps]
    assert [tuple(tap.shape[-2:]) for tap in taps] == [(64 // n, 96 // n) for n in (2, 4, 8, 16, 32)]
    norms = [module for module in encoder.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert {(norm.eps, norm.momentum) for norm in norms} == {(EPSILON, 0.01)}
    assert all(norm.num_batches_tracked == 0 for norm in norms)


def test_the_published_file_answers_as_plain_numpy(full: Path):
    """Taps and output to 1e-4; epsilon 1e-5 or a second activation would show."""
    model = load_depth_model(full)
    assert (model.name, model.network.config["width"]) == ("densedepth-densenet169", 1664)
    assert (model.network.config["activations"], model.network.config["max_depth_m"]) == (1, 10.0)
    image, arrays = picture(64, 64), read_plainly(full)
    expected = oracle(image, arrays, 1)
    with torch.inference_mode():
        got = [*model.network.encoder(to_torch(image)), model.network(to_torch(image))]
    differences = [difference(ours, theirs) for ours, theirs in zip(got, expected, strict=True)]
    print("relative differences of taps and output:", " ".join(f"{d:.1e}" for d in differences))
    assert max(differences) < 1e-4
    assert difference(got[-1], oracle(image, arrays, 1, epsilon=1e-5)[-1]) > 1e-4
    assert difference(got[-1], decode(expected[:-1], arrays, 2)) > 1e-2


def test_the_later_network_answers_as_plain_numpy(half: Path):
    """Half the width and two activations, read from the file; another shape of picture."""
    config, state = read_keras(half)
    assert (config["width"], config["activations"]) == (832, 2)
    network = DenseDepth(**config).eval()
    network.load_state_dict(state)
    image = picture(32, 64)
    expected = oracle(image, read_plainly(half), 2)
    with torch.inference_mode():
        got = [*network.encoder(to_torch(image)), network(to_torch(image))]
    assert max(difference(ours, theirs) for ours, theirs in zip(got, expected, strict=True)) < 1e-4


@pytest.mark.slow
def test_one_picture_and_eight_agree(full: Path):
    """At two sizes, to float32 rounding."""
    network = load_depth_model(full).network
    for height, width in ((64, 64), (32, 96)):
        batch = torch.cat([to_torch(picture(height, width, seed)) for seed in range(8)])
        with torch.inference_mode():
            together = network(batch)
            alone = torch.cat([network(one[None]) for one in batch])
        assert together.shape == (8, 1, height // 2, width // 2)
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=float(alone.abs().max()) * 1e-5)


def test_every_array_is_used_as_it_is(narrow: Path, narrow_read: tuple[dict[str, Any], dict[str, torch.Tensor]]):
    """Each of the file's 864 is in the state bit for bit, and nothing else is but counters."""
    _, state = narrow_read
    values = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    theirs = [value for layer in read_plainly(narrow).values() for value in layer.values()]
    assert len(values) == len(theirs) == 864
    ours = [value.permute(2, 3, 1, 0) if value.ndim == 4 else value for value in values.values()]
    assert sorted(value.numpy().tobytes() for value in ours) == sorted(value.tobytes() for value in theirs)
    assert all(value.dtype == torch.float32 and value.is_contiguous() for value in values.values())


def test_missing_extra_and_misshapen_arrays_are_refused_by_name(copied: Path):
    """One by one, and then all in one message."""
    with h5py.File(copied, "r+") as file:
        root = file["model_weights"]
        del root["conv4_block9_0_bn/conv4_block9_0_bn/beta:0"]
    with pytest.raises(DsgenError, match=r"1 arrays are missing \(conv4_block9_0_bn/beta\)"):
        read_keras(copied)
    with h5py.File(copied, "r+") as file:
        file["model_weights/conv2/conv2/extra:0"] = np.zeros(3)
    with pytest.raises(DsgenError, match=r"missing.*1 are left over \(conv2/conv2/extra:0\)"):
        read_keras(copied)
    with h5py.File(copied, "r+") as file:
        root = file["model_weights"]
        del root["conv1/conv/conv1/conv/kernel:0"]
        root["conv1/conv/conv1/conv/kernel:0"] = np.zeros((7, 7, 1, 64), np.float32)
    expected = r"missing.*left over.*conv1/conv/kernel: got \(7, 7, 1, 64\), expected \(7, 7, 3, 64\)"
    with pytest.raises(DsgenError, match=expected) as caught:
        load_depth_model(copied)
    assert "\n" not in str(caught.value)


def test_layers_listed_wrongly_are_refused(copied: Path):
    """A weight that is listed but belongs nowhere, a layer twice, a layer that is not listed."""
    with h5py.File(copied, "r+") as file:
        group = file["model_weights/conv1/conv"]
        group.attrs["weight_names"] = [b"conv1/conv/kernel:0", b"conv1/conv/bias:0"]
        group["conv1/conv/bias:0"] = np.zeros(64, np.float32)
    with pytest.raises(DsgenError, match=r"left over \(conv1/conv/bias\)"):
        read_keras(copied)
    with h5py.File(copied, "r+") as file:
        root = file["model_weights"]
        names = list(root.attrs["layer_names"])
        root.attrs["layer_names"] = [*names, b"conv3"]
    with pytest.raises(DsgenError, match="got conv3/conv3/kernel:0, conv3/conv3/bias:0 twice"):
        read_keras(copied)
    with h5py.File(copied, "r+") as file:
        file["model_weights"].attrs["layer_names"] = names[:-1]
    with pytest.raises(DsgenError, match=r"2 arrays are missing \(conv3/kernel, conv3/bias\).*left over"):
        read_keras(copied)


def test_weights_only_files_and_text_attributes_load(
    tmp_path: Path, narrow: Path, narrow_read: tuple[dict[str, Any], dict[str, torch.Tensor]]
):
    """The layers at the root, no model; names as text; a list of names in two parts."""
    with h5py.File(narrow) as file, h5py.File(tmp_path / "weights.h5", "w") as out:
        for name in file["model_weights"]:
            file.copy(f"model_weights/{name}", out)
        names = [name.decode() for name in file["model_weights"].attrs["layer_names"]]
        out.attrs["layer_names0"], out.attrs["layer_names1"] = names[:300], names[300:]
    config, state = read_keras(tmp_path / "weights.h5")
    expected_config, expected = narrow_read
    assert config == expected_config
    assert config["activations"] == 1
    assert all(torch.equal(state[name], value) for name, value in expected.items())
    with h5py.File(tmp_path / "weights.h5", "r+") as out:
        out.attrs["layer_names0"] = [name for name in names[:300] if "leaky" not in name]
        out.attrs["layer_names1"] = [name for name in names[300:] if "leaky" not in name]
    with pytest.raises(DsgenError, match="0 layers named like LeakyReLU, expected 4 or 8"):
        read_keras(tmp_path / "weights.h5")


@pytest.mark.parametrize(
    ("kind", "setting", "value", "message"),
    [
        ("LeakyReLU", "alpha", 0.01, r"leaky_re_lu_1: got slope 0.01, expected 0.2"),
        ("BatchNormalization", "epsilon", 1e-3, "conv1/bn: got epsilon 0.001, expected 1.001e-05"),
        ("Conv2D", "activation", "relu", "conv1/conv: got activation relu, expected linear"),
        ("LeakyReLU", "class_name", "ELU", "got 0 LeakyReLU layers, expected 4 or 8"),
        ("BilinearUpSampling2D", "class_name", "UpSampling2D", "up1_upsampling2d: got UpSampling2D"),
        ("LeakyReLU", "inbound_nodes", [[["up1_convA", 0, 0, {}]]], "got LeakyReLU after .'up1_convA'., expected"),
    ],
)
def test_a_model_that_computes_something_else_is_refused(
    copied: Path, kind: str, setting: str, value: object, message: str
):
    """Arrays fit, but the model says otherwise."""
    with h5py.File(copied, "r+") as file:
        model = json.loads(file.attrs["model_config"])
        for layer in model["config"]["layers"]:
            if layer["class_name"] == kind:
                (layer if setting in layer else layer["config"])[setting] = value
        file.attrs["model_config"] = json.dumps(model)
    with pytest.raises(DsgenError, match=message):
        read_keras(copied)


def test_files_that_cannot_be_read_are_refused(tmp_path: Path, narrow: Path, monkeypatch: pytest.MonkeyPatch):
    """Cut short, of another kind, of Keras 3, a damaged model, or no h5py to read it: one line with a remedy."""
    content = narrow.read_bytes()
    (tmp_path / "cut.h5").write_bytes(content[: len(content) // 2])
    (tmp_path / "head.h5").write_bytes(content[:40])
    (tmp_path / "text.h5").write_text("no weights")
    for name in ("cut.h5", "head.h5", "text.h5"):
        with pytest.raises(DsgenError, match=r"no readable Keras HDF5 file .*; download it again") as caught:
            read_keras(tmp_path / name)
        assert "\n" not in str(caught.value)
    torch.save({"weight": torch.zeros(1)}, tmp_path / "weights.pt")
    with pytest.raises(DsgenError, match=r"weights\.pt: got a file of PyTorch, expected safetensors or Keras 2 HDF5"):
        read_keras(tmp_path / "weights.pt")
    (tmp_path / "new.keras").write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(DsgenError, match=r"got a Keras 3 zip, expected Keras 2 HDF5; .*model\.save"):
        load_depth_model(tmp_path / "new.keras")
    with h5py.File(tmp_path / "bare.h5", "w") as file:
        file.attrs["model_config"] = "{"
    with pytest.raises(DsgenError, match="attribute model_config is damaged"):
        read_keras(tmp_path / "bare.h5")
    with h5py.File(tmp_path / "empty.h5", "w"):
        pass
    with pytest.raises(DsgenError, match="attribute layer_names is missing"):
        read_keras(tmp_path / "empty.h5")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(DsgenError, match=r"needs h5py; pip install 'dsgen\[keras\]'"):
        load_depth_model(narrow)


def test_the_depth_range_is_given_or_in_the_name(tmp_path: Path, narrow: Path):
    """80 m for KITTI, 10 m for the rest, unless said; a wrong encoder or range is refused."""
    kitti = tmp_path / "My-KITTI.h5"
    kitti.symlink_to(narrow)
    assert load_depth_model(kitti).network.config["max_depth_m"] == 80
    assert load_depth_model(kitti, max_depth_m=100.0).network.config["max_depth_m"] == 100
    model = load_depth_model(narrow, "densenet169")
    assert model.network.config["max_depth_m"] == 10
    with pytest.raises(DsgenError, match=r"--model: got resnet18, but .* is for densenet169"):
        load_depth_model(narrow, "resnet18")
    with pytest.raises(DsgenError, match=r"got max_depth_m -3, expected metres above 0\.1"):
        load_depth_model(narrow, max_depth_m=-3)


def test_a_safetensors_file_keeps_its_range(tmp_path: Path):
    """Files from before the setting existed are of 10 m and load; what contradicts a file is refused."""
    old = {"encoder": "resnet18", "width": 16, "norm": True, "output": "log", "input_size": 64}
    network = DenseDepth(**old)
    assert network.config == old | {
        "activations": 2,
        "max_depth_m": 10.0,
        "focal_px": None,
        "full_size": False,
        "normalise": None,
    }
    save_file(network.state_dict(), tmp_path / "old.safetensors", {METADATA: json.dumps(old)})
    save_file(network.state_dict(), tmp_path / "new.safetensors", {METADATA: json.dumps(network.config)})
    for name in ("old.safetensors", "new.safetensors"):
        assert load_depth_model(tmp_path / name).network.config == network.config
        assert load_depth_model(tmp_path / name, max_depth_m=10).network.config == network.config
        with pytest.raises(DsgenError, match=r"--max-depth: got 80 m, but .* is for 10 m; leave it out"):
            load_depth_model(tmp_path / name, max_depth_m=80.0)
    plain = DenseDepth("mobilenetv4_conv_small_050")
    save_file(plain.state_dict(), tmp_path / "bare.safetensors")
    assert (
        load_depth_model(tmp_path / "bare.safetensors", plain.config["encoder"], 80.0).network.config["max_depth_m"]
        == 80
    )


def test_network_settings_are_checked():
    """Activations and the depth range."""
    for activations in (0, 3):
        with pytest.raises(DsgenError, match=f"got activations {activations}, expected 1 or 2"):
            DenseDepth("resnet18", 16, activations=activations)
    for metres in (0, 0.1, float("inf"), float("nan"), True, "far"):
        with pytest.raises(DsgenError, match=f"got max_depth_m '?{metres}'?, expected metres above 0.1"):
            DenseDepth("resnet18", 16, max_depth_m=metres)  # type: ignore[arg-type]


def test_the_range_scales_the_reciprocal():
    """80 / y between 0.1 and 80 m; negative is the minimum, zero the maximum, no number stays none."""
    raw = torch.tensor([1000.0, 8.0, 2.0, 0.5, 0.0, -3.0, torch.nan])
    expected = [0.1, 10.0, 40.0, 80.0, 80.0, 0.1, np.nan]
    assert to_metres(raw, "reciprocal", 80.0).tolist() == pytest.approx(expected, nan_ok=True)
    assert to_metres(torch.tensor([9.0, 3.0]), "log", 80.0).tolist() == pytest.approx([80.0, np.exp(3)])
    network = DenseDepth("resnet18", 16, max_depth_m=80).eval()
    torch.nn.init.zeros_(network.head.weight)
    torch.nn.init.constant_(network.head.bias, 2.0)
    with torch.inference_mode():
        assert network.depth_m(torch.rand(1, 3, 32, 32)).unique().tolist() == [40.0]


def test_converted_weights_answer_the_same(tmp_path: Path, narrow: Path):
    """Bit for bit, with the settings in the file; what it says of itself is so; nothing half written is left."""
    source = tmp_path / "kitti.h5"
    source.symlink_to(narrow)
    out = tmp_path / "deep" / "kitti.safetensors"
    result = convert_weights(source, out)
    model, converted = load_depth_model(source), load_depth_model(out)
    assert result == ConvertedWeights(
        out=out,
        arrays=864,
        parameters=sum(value.size for layer in read_plainly(narrow).values() for value in layer.values()),
        width=16,
        activations=1,
        max_depth_m=80.0,
        sha256=converted.sha256,
    )
    assert converted.network.config == model.network.config
    assert converted.name == model.name == "densedepth-densenet169"
    image = to_torch(picture(32, 32))
    with torch.inference_mode():
        assert torch.equal(model.network(image), converted.network(image))
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_halved_weights_answer_nearly_the_same(tmp_path: Path, weights: Path):
    """Half the bytes of the kernels; from any weights file; depth changes by less than a hundredth."""
    out = tmp_path / "half.safetensors"
    assert convert_weights(weights, out, half=True).sha256 == load_depth_model(out).sha256
    assert out.stat().st_size < 0.6 * weights.stat().st_size
    model, halved = load_depth_model(weights).network, load_depth_model(out).network
    assert halved.config == model.config
    assert {value.dtype for value in halved.state_dict().values()} <= {torch.float32, torch.int64}
    image = to_torch(picture(64, 64))
    with torch.inference_mode():
        assert halved.depth_m(image) == pytest.approx(model.depth_m(image), rel=1e-2)
    with pytest.raises(DsgenError, match="a safetensors file needs no conversion, except with --half"):
        convert_weights(weights, tmp_path / "again.safetensors")


def test_conversion_refuses_and_leaves_nothing(tmp_path: Path, narrow: Path, monkeypatch: pytest.MonkeyPatch):
    """Its own source, a folder, what is no Keras file; an existing result is replaced, whole or not at all."""
    source = Path(shutil.copy(narrow, tmp_path / "w.h5"))
    with pytest.raises(DsgenError, match="is the file to convert"):
        convert_weights(source, tmp_path / "." / "w.h5")
    with pytest.raises(DsgenError, match="is a folder"):
        convert_weights(source, tmp_path)
    with pytest.raises(DsgenError, match=r"no\.h5: no such file"):
        convert_weights(tmp_path / "no.h5", tmp_path / "out.safetensors")
    out = tmp_path / "out.safetensors"
    out.write_bytes(b"old")
    with pytest.raises(DsgenError, match="no HDF5 file, expected Keras weights"):
        convert_weights(out, tmp_path / "again.safetensors")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="disk full"):
            convert_weights(source, out)
    assert out.read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.safetensors", "w.h5"]
    assert convert_weights(source, out, max_depth_m=20.0).max_depth_m == 20
    with safe_open(out, "pt") as file:
        assert json.loads(file.metadata()[METADATA])["max_depth_m"] == 20


_KERAS = '''
import sys
import numpy as np
import tensorflow as tf
import tf_keras
from tf_keras import layers


class BilinearUpSampling2D(layers.Layer):
    """Twice the size, corners on corners."""

    def call(self, x):
        shape = tf.shape(x)
        return tf.compat.v1.image.resize(x, [2 * shape[1], 2 * shape[2]], method="bilinear", align_corners=True)


source, pictures, out = sys.argv[1:]
encoder = tf_keras.applications.DenseNet169(include_top=False, weights=None, input_shape=(None, None, 3))
x, width = layers.Conv2D(1664, 1, name="conv2")(encoder.output), 1664
for up, skip in enumerate(("pool3_pool", "pool2_pool", "pool1", "conv1/relu"), 1):
    width //= 2
    x = BilinearUpSampling2D(name=f"up{up}_upsampling2d")(x)
    x = layers.Concatenate(name=f"up{up}_concat")([x, encoder.get_layer(skip).output])
    x = layers.Conv2D(width, 3, padding="same", name=f"up{up}_convA")(x)
    x = layers.Conv2D(width, 3, padding="same", name=f"up{up}_convB")(x)
    x = layers.LeakyReLU(0.2)(x)
model = tf_keras.Model(encoder.input, layers.Conv2D(1, 3, padding="same", name="conv3")(x))
model.load_weights(source, by_name=True)
print(len(model.layers), len(model.weights), model.count_params())
assert (len(model.layers), len(model.weights), model.count_params()) == (617, 864, 42816089)
model.save(out + ".h5")
np.save(out + ".npy", model.predict(np.load(pictures), verbose=0))
'''


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_answers_as_keras_does(tmp_path: Path, full: Path):
    """Keras' own DenseNet-169 under the decoder, filled from the file, saved by Keras, read again, compared.

    Keras gets an environment of its own, or name a Python that has tf_keras in DSGEN_KERAS_PYTHON.
    """
    python = os.environ.get("DSGEN_KERAS_PYTHON")
    if python is None:
        venv.create(tmp_path / "venv", with_pip=True)
        python = str(tmp_path / "venv" / "bin" / "python")
        subprocess.run([python, "-m", "pip", "install", "-q", "tensorflow", "tf-keras"], check=True)
    images = np.stack([picture(64, 96, seed) for seed in (3, 4)])
    np.save(tmp_path / "pictures.npy", images)
    (tmp_path / "keras.py").write_text(_KERAS)
    command = [python, "keras.py", str(full), "pictures.npy", "out"]
    subprocess.run(command, cwd=tmp_path, check=True, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""})
    expected = np.load(tmp_path / "out.npy")
    network = load_depth_model(tmp_path / "out.h5").network
    ours = load_depth_model(full).network.state_dict()
    assert all(torch.equal(ours[name], value) for name, value in network.state_dict().items())
    with torch.inference_mode():
        got = network(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).permute(0, 2, 3, 1).numpy()
    error = np.abs(got - expected).max() / np.abs(expected).max()
    print(f"relative difference from Keras: {error:.1e}")
    assert error < 1e-4
