"""Pretrained encoders: files of any layout that fits, refusals that name what does not, and normalisation."""

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from dsgen.depth.networks import DenseDepth
from dsgen.encoders import Normalise, fit_channels, input_statistics, load_encoder_weights, weights_sha256
from dsgen.errors import DamagedError, DsgenError, InvalidValueError, NotFoundError

NAME = "lcnet_035"
Arrays = dict[str, Tensor]


@pytest.fixture(scope="module")
def whole() -> Arrays:
    """The state of a whole classification network, with statistics of batch norms that are not those of a new one."""
    torch.manual_seed(3)
    state = timm.create_model(NAME).state_dict()
    for name, value in state.items():
        if name.endswith(("running_mean", "running_var")):
            value.uniform_(0.5, 2)
    return state


def _encoder(name: str = NAME, channels: int = 3) -> nn.Module:
    return timm.create_model(name, features_only=True, in_chans=channels)


def _renamed(state: Arrays) -> Arrays:
    return {f"_x{k}.{name.rsplit('.', 1)[-1]}": value for k, (name, value) in enumerate(state.items())}


LAYOUTS = {
    "as it is": lambda state: state,
    "below state_dict": lambda state: {"epoch": 3, "state_dict": state},
    "below a prefix": lambda state: {"model": {f"module.encoder_q.{name}": value for name, value in state.items()}},
    "beside another part": lambda state: (
        {f"encoder.{name}": value for name, value in state.items()} | {"decoder.conv.weight": torch.zeros(3)}
    ),
    "in another order": lambda state: dict(sorted(state.items())),
    "without its classifier": lambda state: {k: v for k, v in state.items() if not k.startswith("classifier")},
    "with another classifier": lambda state: (
        {k: v for k, v in state.items() if not k.startswith("classifier")} | {"fc.weight": torch.zeros(7, 1280)}
    ),
    "without counters": lambda state: {k: v for k, v in state.items() if not k.endswith("tracked")},
    "renamed": _renamed,
    "renamed, without counters": lambda state: _renamed({k: v for k, v in state.items() if not k.endswith("tracked")}),
    "renamed, without its classifier": lambda state: _renamed(dict(list(state.items())[:-2])),
    "renamed, with other classes": lambda state: _renamed(
        state | {"classifier.weight": torch.zeros(7, 1280), "classifier.bias": torch.zeros(7)}
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_files_of_any_layout_that_fits(whole: Arrays, tmp_path: Path, layout: str):
    """Every array of the encoder is that of timm's network."""
    path = tmp_path / "w.bin"
    torch.save(LAYOUTS[layout](whole), path)
    encoder = _encoder()
    assert load_encoder_weights(encoder, NAME, path) == ("w.bin", weights_sha256(path))
    state = encoder.state_dict()
    assert len(state) > 100
    for name, value in state.items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(value, whole[name]), name


@pytest.mark.parametrize("kind", ["safetensors", "before torch 1.6"])
def test_files_of_any_kind(whole: Arrays, tmp_path: Path, kind: str):
    """Which kind it is, the first bytes say."""
    path = tmp_path / "w.pth"
    if kind == "safetensors":
        save_file(whole, path)
    else:
        torch.save(whole, path, _use_new_zipfile_serialization=False)
    encoder = _encoder()
    load_encoder_weights(encoder, NAME, path)
    assert torch.equal(encoder.state_dict()["conv_stem.weight"], whole["conv_stem.weight"])


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "efficientformerv2_s0"])
def test_feature_encoders_with_names_of_their_own(tmp_path: Path, name: str):
    """timm writes stages_0 for stages.0, or model.stages.0: the answers are those of the whole network."""
    network = timm.create_model(name).eval()
    torch.save(network.state_dict(), tmp_path / "w.pth")
    encoder = _encoder(name).eval()
    load_encoder_weights(encoder, name, tmp_path / "w.pth")
    image = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(encoder(image)[-1], network.forward_intermediates(image)[1][-1])


def test_the_encoder_of_a_depth_network(tmp_path: Path):
    """DenseNets are tapped by an encoder of dsgen's own."""
    state = timm.create_model("densenet121").state_dict()
    torch.save(_renamed(state), tmp_path / "w.pth")
    network = DenseDepth("densenet121", width=64)
    load_encoder_weights(network.encoder, "densenet121", tmp_path / "w.pth")
    for name, value in network.encoder.state_dict().items():
        assert torch.equal(value, state[name])


def _without(state: Arrays, *names: str) -> Arrays:
    return {name: value for name, value in state.items() if name not in names}


REFUSED = {
    "an array is missing": (
        lambda state: _without(state, "bn1.weight"),
        r"its \d+ arrays, for timm's lcnet_035, fits neither by name \(1 missing: bn1.weight\) nor by the order of its "
        r"arrays and their shapes; give weights of lcnet_035, or the --encoder that they are of",
    ),
    "an array is left over": (
        lambda state: state | {"blocks.9.conv.weight": torch.zeros(3)},
        r"\(1 left over: blocks.9",
    ),
    "a shape differs": (lambda state: state | {"bn1.bias": torch.zeros(9)}, r"\(1 of another shape: bn1.bias\)"),
    "whole numbers": (lambda state: state | {"bn1.bias": state["bn1.bias"].int()}, r"another shape: bn1.bias\)"),
    "renamed, in another order": (lambda state: _renamed(dict(sorted(state.items()))), "fits neither by name"),
    "renamed, one missing": (lambda state: _renamed(_without(state, "bn1.bias")), r"nor by the order of its arrays"),
    "not finite": (lambda state: state | {"bn1.bias": state["bn1.bias"] / 0}, r"no finite numbers \(bn1.bias\)"),
    "variances below 0": (lambda state: state | {"bn1.running_var": -state["bn1.bias"] - 1}, "has negative variances"),
    "two that fit": (
        lambda state: {f"{part}.{name}": value for part in ("student", "teacher") for name, value in state.items()},
        r"holds several networks that fit, with student.conv_stem.weight and teacher.conv_stem.weight; save one",
    ),
    "no arrays": (lambda _: {"epoch": 3}, r"holds no arrays by name, expected weights"),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_other_files_are_refused(whole: Arrays, tmp_path: Path, fault: str):
    """In one error that names the option, the file and the arrays; the encoder stays as it was."""
    change, message = REFUSED[fault]
    torch.save(change(whole), tmp_path / "w.pth")
    encoder = _encoder()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    with pytest.raises(InvalidValueError, match=rf"^--encoder-weights: \S*w\.pth .*{message}"):
        load_encoder_weights(encoder, NAME, tmp_path / "w.pth")
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


def test_a_deeper_network_of_the_same_family_is_refused(tmp_path: Path):
    """All of resnet18's arrays are in a resnet34, with the same shapes."""
    torch.save(timm.create_model("resnet34").state_dict(), tmp_path / "w.pth")
    with pytest.raises(InvalidValueError, match=r"for timm's resnet18, fits neither by name \(\d+ left over: layer1.2"):
        load_encoder_weights(_encoder("resnet18"), "resnet18", tmp_path / "w.pth")


def test_files_that_cannot_be_read(tmp_path: Path):
    """One that is not there, one that is none, and a depth network's, whose encoder is fed otherwise."""
    with pytest.raises(NotFoundError, match=r"--encoder-weights: .*w\.pth does not exist, expected a file of weights"):
        load_encoder_weights(_encoder(), NAME, tmp_path / "w.pth")
    for content in (b"", b"text", b"PK\x03\x04 and no more", b"\x09\0\0\0\0\0\0\0{", b"\x80\x02]q\x00."):
        (tmp_path / "w.pth").write_bytes(content)
        with pytest.raises(DamagedError, match=r"w\.pth: .*; give another file of weights"):
            load_encoder_weights(_encoder(), NAME, tmp_path / "w.pth")
    save_file({"encoder.a": torch.zeros(1)}, tmp_path / "d.safetensors", {"dsgen_network": "{}"})
    with pytest.raises(InvalidValueError, match=r"is a depth network of dsgen, whose encoder may see pictures in 0..1"):
        load_encoder_weights(_encoder(), NAME, tmp_path / "d.safetensors")


@pytest.mark.filterwarnings("default")
def test_pretrained_without_weights_or_without_a_network(monkeypatch: pytest.MonkeyPatch):
    """One line that names the weights and says what to do instead."""
    from huggingface_hub import constants

    with pytest.raises(
        InvalidValueError, match="got pretrained, but timm has no weights of lcnet_035; give a file, or"
    ):
        load_encoder_weights(_encoder(), NAME, "pretrained")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("dsgen.encoders._is_cached", lambda _: False)
    with pytest.raises(
        DsgenError,
        match=r"^--encoder-weights pretrained: not in the cache, and http://127.0.0.1:9 cannot be reached .*; connect "
        r"to the internet, or get the weights of timm's lcnet_050.ra2_in1k elsewhere and give the file: "
        r"--encoder-weights FILE$",
    ):
        load_encoder_weights(_encoder("lcnet_050"), "lcnet_050", "pretrained")


def test_pretrained_with_a_network(monkeypatch: pytest.MonkeyPatch):
    """What timm gets is loaded; its hash is that of the arrays, so it is the same every time."""
    network = timm.create_model("lcnet_050")
    monkeypatch.setattr("dsgen.encoders._is_cached", lambda _: True)
    encoder, create = _encoder("lcnet_050"), timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained: network if pretrained else create(name))
    found = [load_encoder_weights(encoder, "lcnet_050", "pretrained") for _ in range(2)]
    assert found[0] == found[1]
    assert found[0][0] == "lcnet_050.ra2_in1k"
    assert torch.equal(encoder.state_dict()["conv_stem.weight"], network.state_dict()["conv_stem.weight"])


def test_statistics_are_those_of_the_name():
    """And of its tag, as they differ."""
    assert input_statistics("tf_efficientnet_lite0") == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert input_statistics("resnet18")[0] == (0.485, 0.456, 0.406)
    assert input_statistics("tf_efficientnet_b0.ap_in1k")[0] == (0.5, 0.5, 0.5)
    with pytest.raises(InvalidValueError, match="a name that timm does not know"):
        input_statistics("hf-hub:timm/resnet18")


def test_normalising():
    """By the formula, and no part of a network's state."""
    normalise = Normalise((0.5, 0.25), (0.5, 0.125))
    found = normalise(torch.tensor([0.75, 0.5]).view(1, 2, 1, 1))
    assert found.flatten().tolist() == [0.5, 2.0]
    assert normalise.state_dict() == {}


def test_first_convolution_for_other_channels():
    """Equal pictures side by side are answered as one is; of grey ones each weight is the sum over the colours."""
    weight, image, grey = torch.randn(4, 3, 3, 3), torch.rand(2, 3, 8, 8), torch.rand(2, 1, 8, 8)
    convolve = torch.nn.functional.conv2d
    once, once_grey = convolve(image, weight), convolve(grey.repeat(1, 3, 1, 1), weight)
    torch.testing.assert_close(convolve(image.repeat(1, 2, 1, 1), fit_channels(weight, 6)), once)
    for pictures in (1, 2):
        torch.testing.assert_close(convolve(grey.repeat(1, pictures, 1, 1), fit_channels(weight, pictures)), once_grey)
    checked = fit_channels(torch.tensor([1.0, 2.0, 4.0]).view(1, 3, 1, 1), 6)
    assert checked.flatten().tolist() == [0.5, 1, 2, 0.5, 1, 2]
