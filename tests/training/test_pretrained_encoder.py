"""The U-Net with a pretrained encoder: what it sees, how a run begins, resumes and goes on, and what comes of it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from support.runs import make_run
from support.scenes import Scenes

from dsgen.encoders import load_encoder_weights, weights_sha256
from dsgen.errors import ConflictError, DamagedError, DsgenError, InvalidValueError
from dsgen.evaluation.onnx import export_onnx
from dsgen.evaluation.predict import predict
from dsgen.training import fit as fit_module
from dsgen.training import report
from dsgen.training.checkpoint import load_network, read_checkpoint
from dsgen.training.fit import TrainResult, fit
from dsgen.training.settings import Settings
from dsgen.training.unet import UNet, luma

ENCODER = "lcnet_050"
IMAGENET = [[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]
CPU = torch.device("cpu")


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A file of the encoder's arrays under other names."""
    torch.manual_seed(5)
    state = timm.create_model(ENCODER).state_dict()
    torch.save(
        {f"_{k}.{name.split('.')[-1]}": value for k, (name, value) in enumerate(state.items())}, tmp_path / "w.pth"
    )
    return tmp_path / "w.pth"


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw neither curves nor sheets, which takes longer than the training."""
    monkeypatch.setattr(fit_module, "draw_curves", lambda *_: None)
    monkeypatch.setattr(report, "draw_sheet", lambda *_: None)


def short(run: Path, epochs: int = 1, init: Path | None = None, **changes: Any) -> TrainResult:
    """Train for a moment, at a rate of almost nothing, which leaves the weights where they began."""
    quick: dict[str, Any] = {"batch_size": (4,), "sizes": (32,), "width": 4, "learning_rate": 1e-9, "encoder": ENCODER}
    settings = Settings(**{**quick, **changes})
    settings.check(epochs, 40)
    return fit(lambda *_: Scenes(4), run, settings, epochs=epochs, device=CPU, init=init)


def first_weight(run: Path) -> torch.Tensor:
    """Return the encoder's first convolution."""
    return load_network(run / "checkpoints/last.pt").state_dict()["encoder.conv_stem.weight"]


@pytest.mark.parametrize(
    ("encoder", "colour"), [("tf_efficientnet_lite0", "rgb"), ("tf_efficientnet_lite0", "grey"), ("resnet10t", "rgb")]
)
def test_two_equal_pictures_are_seen_as_timm_sees_one(tmp_path: Path, colour: str, encoder: str):
    """With its normalisation, at the border too; grey ones of one mean and deviation likewise."""
    torch.manual_seed(1)
    whole = timm.create_model(encoder).eval()
    torch.save(whole.state_dict(), tmp_path / "w.pth")
    expected = timm.get_pretrained_cfg(encoder)
    network = UNet(4, colour=colour, output="half", encoder=encoder, normalise=[expected.mean, expected.std]).eval()
    load_encoder_weights(network.encoder, encoder, tmp_path / "w.pth")
    image = torch.rand(1, 3, 64, 64)
    pair = torch.cat([image, image], 1)
    if colour == "grey":
        pair, image = luma(image).repeat(1, 2, 1, 1), luma(image).repeat(1, 3, 1, 1)
    mean, deviation = (torch.tensor(each).view(1, 3, 1, 1) for each in (expected.mean, expected.std))
    with torch.no_grad():
        wanted = timm.create_model(encoder, features_only=True).eval()
        load_encoder_weights(wanted, encoder, tmp_path / "w.pth")
        for found, feature in zip(network._encode(pair), wanted((image - mean) / deviation), strict=True):
            torch.testing.assert_close(found, feature, rtol=1e-3, atol=1e-4 * float(feature.abs().max()))


def test_normalisation_is_in_the_configuration_and_not_in_the_state():
    """So that the same network comes back from a checkpoint, and networks without it are as they were."""
    network = UNet(4, encoder=ENCODER, normalise=IMAGENET)
    assert network.config["normalise"] == IMAGENET
    assert network.state_dict().keys() == UNet(4, encoder=ENCODER).state_dict().keys()
    assert "normalise" not in UNet(4).config
    for normalise in ([[0.5] * 3, [0.0] * 3], [[0.5], [0.5]], [[0.5] * 3], [[float("nan")] * 3, [1.0] * 3]):
        with pytest.raises(InvalidValueError, match="expected the mean and the deviation, above 0, of R, G and B"):
            UNet(4, encoder=ENCODER, normalise=normalise)
    with pytest.raises(InvalidValueError, match="normalise without an encoder"):
        UNet(4, normalise=IMAGENET)


def test_a_run_begins_with_pretrained_weights_and_resumes_without_the_file(tmp_path: Path, weights: Path):
    """The record has name and hash; a copy elsewhere is the same file, and another file is refused."""
    run, sha256 = tmp_path / "run", weights_sha256(weights)
    stem = next(iter(torch.load(weights, weights_only=True).values()))
    short(run, encoder_weights=str(weights))
    torch.testing.assert_close(first_weight(run), stem.repeat(1, 2, 1, 1) / 2)
    record = json.loads((run / "config.json").read_text())
    assert record["encoder_weights"] == {"name": "w.pth", "sha256": sha256}
    assert read_checkpoint(run / "checkpoints/best.pt")["config"]["normalise"] == IMAGENET

    elsewhere = weights.rename(tmp_path / "moved.pth")
    short(run, 2, encoder_weights=str(weights))  # the file is gone
    short(run, 3, encoder_weights=str(elsewhere))
    other = tmp_path / "other.pth"
    torch.save({"a": torch.zeros(1)}, other)
    with pytest.raises(ConflictError, match=rf"\n  --encoder-weights [0-9a-f]{{64}} \(the run has {sha256}\)$"):
        short(run, 4, encoder_weights=str(other))
    with pytest.raises(ConflictError, match=r"\n  --encoder-weights none \(the run has \S*moved\.pth\)$"):
        short(run, 4)
    assert json.loads((run / "config.json").read_text())["encoder_weights"]["sha256"] == sha256


def test_a_run_goes_on_from_one_with_a_pretrained_encoder(tmp_path: Path, weights: Path):
    """With --init: pictures are normalised as there, although the new run names no weights of an encoder."""
    short(tmp_path / "run", encoder_weights=str(weights))
    short(tmp_path / "polished", init=tmp_path / "run", augment=0.0)
    short(tmp_path / "polished", 2, augment=0.0)
    torch.testing.assert_close(first_weight(tmp_path / "run"), first_weight(tmp_path / "polished"))
    assert load_network(tmp_path / "polished/checkpoints/best.pt").config["normalise"] == IMAGENET
    with pytest.raises(
        InvalidValueError, match=r"--encoder-weights: got \S+ beside --init \S+, which .*; leave one of"
    ):
        short(tmp_path / "both", init=tmp_path / "run", encoder_weights=str(weights))
    assert not (tmp_path / "both").exists()


def test_weights_that_do_not_fit_leave_no_run(tmp_path: Path, weights: Path):
    """Of another encoder, of none, or unreadable."""
    with pytest.raises(InvalidValueError, match=r"^--encoder-weights: \S+w\.pth .* for timm's resnet18, fits neither"):
        short(tmp_path / "run", encoder="resnet18", encoder_weights=str(weights))
    weights.write_bytes(b"no weights")
    with pytest.raises(DamagedError, match="no readable weights"):
        short(tmp_path / "run", encoder_weights=str(weights))
    with pytest.raises(DsgenError, match=r"^--encoder-weights: got \S+, expected it with --encoder, whose weights"):
        short(tmp_path / "run", encoder=None, encoder_weights=str(weights))
    assert not list(tmp_path.glob("run/checkpoints/*"))


def test_a_damaged_normalisation_is_refused(tmp_path: Path):
    """As any damage of a checkpoint."""
    run = make_run(tmp_path / "run", encoder=ENCODER, normalise=IMAGENET)
    path = run / "checkpoints/best.pt"
    for normalise in ("x", [[1.0]], [[0.5] * 3, [-1.0] * 3]):
        saved = torch.load(path, weights_only=True)
        saved["config"]["normalise"] = normalise
        torch.save(saved, path)
        with pytest.raises(DamagedError, match=r"best\.pt"):
            load_network(path)


def test_predictions_see_normalised_pictures(tmp_path: Path):
    """The same weights with and without it answer differently; the answer is the network's own."""
    run = make_run(tmp_path / "run", encoder=ENCODER, normalise=IMAGENET)
    picture = np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "a.png")
    result = predict(run, tmp_path / "a.png", tmp_path / "a.png", tmp_path / "out", device="cpu", file_format="npy")
    assert result.predicted == 1
    network = load_network(run / "checkpoints/best.pt")
    image = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        raw = network(image, image)[1]
        network.normalise = torch.nn.Identity()
        assert not torch.allclose(raw, network(image, image)[1], atol=1e-4)
    np.testing.assert_allclose(np.load(tmp_path / "out/depth/a.npy"), raw[0, 0].numpy() * 10, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("colour", ["rgb", "grey"])
def test_it_can_be_exported(tmp_path: Path, colour: str):
    """The normalisation is in the file."""
    run = make_run(tmp_path / "run", encoder=ENCODER, colour=colour, normalise=IMAGENET)
    assert export_onnx(run, tmp_path / "net.onnx").max_difference["mask_probability"] < 1e-4
