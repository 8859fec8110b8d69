"""Weights that others made: no name in them reaches a hub or a folder, no number in them takes memory."""

import json
import resource
from pathlib import Path

import h5py
import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from support.corpora import ENCODER

from dsgen.depth.keras import read_keras
from dsgen.depth.networks import DenseDepth
from dsgen.depth.weights import METADATA, load_depth_model, load_initial
from dsgen.encoders import check_encoder
from dsgen.errors import DamagedError, DsgenError, InvalidValueError
from dsgen.training.unet import UNet

ELSEWHERE = [
    "hf-hub:timm/resnet18.a1_in1k",
    "hf_hub:timm/resnet18",
    "local-dir:/tmp",
    "timm/resnet18",
    "../resnet18",
    "resnet18.hf-hub:x/y",
    "resnet18.no_such_tag",
    "hf-hub:densenet121",
    "densenet121/../x",
    "",
]


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail if timm or a hub's library is asked for anything that is not its own."""
    import huggingface_hub

    def reached(*names: object, **_: object) -> None:
        raise AssertionError(f"reached for {names}")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", reached)
    for module in (timm.models._hub, timm.models._factory, timm.models._builder):
        for name in (
            "load_model_config_from_hf",
            "load_model_config_from_path",
            "load_state_dict_from_hf",
            "hf_hub_download",
        ):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, reached)


def _weights(path: Path, settings: object) -> Path:
    text = settings if isinstance(settings, str) else json.dumps(settings)
    save_file({"a": torch.zeros(1)}, path, {METADATA: text})
    return path


@pytest.mark.usefixtures("no_hub")
@pytest.mark.parametrize("name", ELSEWHERE)
def test_only_architectures_of_timm_are_made(tmp_path: Path, name: str):
    """In a weights file, for a depth network and for a U-Net."""
    with pytest.raises(DsgenError, match=r"got a name that timm does not know, expected one (like|listed)"):
        load_depth_model(_weights(tmp_path / "w.safetensors", {"encoder": name, "width": 64}))
    for make in (lambda: DenseDepth(name), lambda: check_encoder(name)):
        with pytest.raises(InvalidValueError, match="got a name that timm does not know"):
            make()
    if name:
        with pytest.raises(InvalidValueError, match="got a name that timm does not know"):
            UNet(encoder=name)


@pytest.mark.usefixtures("no_hub")
def test_names_of_timm_are_accepted_with_and_without_a_tag():
    """A tag says which pretrained weights a name means; none are loaded."""
    check_encoder("resnet18")
    check_encoder("resnet18.a1_in1k")


@pytest.mark.parametrize(
    "settings",
    [
        [1],
        "[" * 100_000,
        "nothing",
        {},
        {"encoder": 3},
        {"encoder": None},
        {"encoder": ENCODER, "width": -16},
        {"encoder": ENCODER, "width": 0},
        {"encoder": ENCODER, "width": 10**9},
        {"encoder": ENCODER, "width": 10**30},
        {"encoder": ENCODER, "width": "64"},
        {"encoder": ENCODER, "width": 8192},
        {"encoder": ENCODER, "norm": "yes"},
        {"encoder": ENCODER, "output": "metres"},
        {"encoder": ENCODER, "activations": 7},
        {"encoder": ENCODER, "input_size": 10**9},
        {"encoder": ENCODER, "max_depth_m": "far"},
        {"encoder": ENCODER, "more": 1},
        {"encoder": "vit_giant_patch14_dinov2"},
    ],
)
def test_odd_settings_are_refused(tmp_path: Path, settings: object):
    """Of another type, out of range, unknown, or of a network that the file's arrays are not for; in little memory."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DsgenError, match=r"w\.safetensors|got (output|activations|max_depth_m)") as caught:
        load_depth_model(_weights(tmp_path / "w.safetensors", settings))
    assert len(str(caught.value).splitlines()) == 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000  # kB


def test_initial_weights_of_another_network_are_refused(tmp_path: Path):
    """As are files that are none."""
    network = DenseDepth(ENCODER, 32, norm=True)
    with pytest.raises(InvalidValueError, match=r"--init: .*w\.safetensors does not fit a DenseDepth"):
        load_initial(network, _weights(tmp_path / "w.safetensors", {"encoder": ENCODER}))
    (tmp_path / "w.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(InvalidValueError, match=r"--init: .*no readable safetensors file"):
        load_initial(network, tmp_path / "w.safetensors")


def _keras(path: Path) -> h5py.File:
    file = h5py.File(path, "w")
    file.create_group("model_weights").attrs["layer_names"] = np.array([b"conv2", b"leaky"] + [b"leaky1"] * 3)
    layer = file.create_group("model_weights/conv2")
    layer.attrs["weight_names"] = np.array([b"kernel:0"])
    return file


def test_keras_files_that_point_elsewhere_are_refused(tmp_path: Path):
    """By a link to another file, a soft link, data kept in another file, or a view of other files."""
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["x"] = np.zeros((1, 1, 1664, 1664), np.float32)
    with _keras(tmp_path / "link.h5") as file:
        file["model_weights/conv2/kernel:0"] = h5py.ExternalLink("secret.h5", "/x")
    with _keras(tmp_path / "soft.h5") as file:
        file["model_weights/conv2/kernel:0"] = h5py.SoftLink("/model_weights")
    (tmp_path / "raw").write_bytes(bytes(64))
    with _keras(tmp_path / "raw.h5") as file:
        external = [(str(tmp_path / "raw"), 0, 64)]
        file.create_dataset("model_weights/conv2/kernel:0", (4, 4), "f4", external=external)
    with _keras(tmp_path / "view.h5") as file:
        layout = h5py.VirtualLayout((1, 1, 1664, 1664), "f4")
        layout[:] = h5py.VirtualSource(tmp_path / "secret.h5", "x", (1, 1, 1664, 1664))
        file.create_virtual_dataset("model_weights/conv2/kernel:0", layout)
    for name in ("link", "soft"):
        with pytest.raises(DamagedError, match=r"kernel:0 is a link, expected an array or a layer"):
            read_keras(tmp_path / f"{name}.h5")
    for name in ("raw", "view"):
        with pytest.raises(DamagedError, match=r"kernel:0 lies in another file"):
            read_keras(tmp_path / f"{name}.h5")


@pytest.mark.parametrize("shape", [(1, 1, 1664, 10**8), (1, 1, 10**6, 1664), (10**11,)])
def test_keras_arrays_of_terabytes_are_refused_unread(tmp_path: Path, shape: tuple[int, ...]):
    """HDF5 needs no space for values that nobody wrote; a reader does."""
    with _keras(tmp_path / "huge.h5") as file:
        chunks = tuple(min(side, 64) for side in shape)
        file.create_dataset("model_weights/conv2/kernel:0", shape, "f4", chunks=chunks)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DsgenError, match=r"huge\.h5"):
        read_keras(tmp_path / "huge.h5")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000  # kB
