"""Stage two: labels for corpora and folders."""

import csv
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import zarr
from conftest import draw_background
from PIL import Image
from safetensors.torch import save_file

from dsgen import depth
from dsgen.corpus import Corpus
from dsgen.depth import label_corpus, label_folder, output_names, view_8bit
from dsgen.devices import pick_device
from dsgen.errors import DsgenError
from dsgen.networks import DenseDepth, to_metres
from dsgen.weights import METADATA, load_depth_model

ENCODER = "mobilenetv4_conv_small_050"


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network with fixed weights that answers 1 to 9 m."""
    torch.manual_seed(0)
    network = DenseDepth(ENCODER, 32, norm=True, output="log", input_size=64)
    torch.nn.init.constant_(network.head.bias, 1.0)
    return write_weights(tmp_path_factory.mktemp("weights") / "w.safetensors", network)


def write_weights(path: Path, network: DenseDepth) -> Path:
    """Write a network as `train-depth` does."""
    state = {name: value.contiguous() for name, value in network.state_dict().items()}
    save_file(state, path, {METADATA: json.dumps(network.config)})
    return path


@pytest.fixture(scope="session")
def labelled(tmp_path_factory: pytest.TempPathFactory, corpus: Path, weights: Path) -> Path:
    """The small corpus, labelled in one undisturbed run."""
    path = tmp_path_factory.mktemp("l") / "corpus"
    shutil.copytree(corpus, path)
    label_corpus(path, weights=weights, device="cpu", batch_size=10, pictures=True, jobs=1)
    return path


def test_labels_are_the_networks_answer_in_millimetres(labelled: Path, weights: Path):
    """Computed again by hand: drawn at the label size, fed at the network's, enlarged, rounded; error 0.5 mm."""
    corpus = Corpus(labelled)
    model = load_depth_model(weights)
    rows = corpus.plan[7:11]
    image, _ = corpus.render(rows, corpus.label_size)
    labeller = depth.Labeller(model, torch.device("cpu"))
    with torch.inference_mode():
        fed = torch.from_numpy(labeller.prepare(image)).permute(0, 3, 1, 2).float() / 255
        raw = F.interpolate(model.network(fed), size=(48, 48), mode="bilinear")
    metres = raw.exp().clamp(0.1, 10)[:, 0].numpy()
    stored = corpus.depth[7:11]
    assert stored.dtype == np.uint16
    assert np.abs(stored / 1000 - metres).max() <= 0.0011
    assert stored.min() >= 100
    assert stored.max() <= 10000


def test_labels_say_what_they_are(labelled: Path, weights: Path):
    """Units, scale, model, weights, sizes; complete; readable as metres by the CF attributes."""
    group = zarr.open_group(labelled / "depth.zarr", mode="r")
    assert group.attrs["complete"] is True
    assert group.attrs["model"] == f"densedepth-{ENCODER}"
    assert len(group.attrs["weights_sha256"]) == 64
    assert group.attrs["network_input"] == [64, 64]
    assert group.attrs["label_size"] == 96
    assert dict(group["depth"].attrs)["scale_factor"] == 0.001
    assert dict(group["depth"].attrs)["units"] == "m"
    assert Corpus(labelled).labelled_rows() == 72


def test_views_have_their_original_names_and_one_scale(labelled: Path):
    """0 to 10 m is 0 to 255 in every picture."""
    corpus = Corpus(labelled)
    path = labelled / "bg_fg_depth" / "bg001" / "bg_001_fg_001_001_depth_map_001.jpeg"
    view = np.asarray(Image.open(path)).astype(int)
    assert np.abs(view - view_8bit(corpus.depth[0]).astype(int)).mean() < 3
    assert len(list((labelled / "bg_fg_depth").rglob("*.jpeg"))) == 72
    assert (labelled / "bg_fg_depth" / "bg003" / "bg_003_fg_003_01_004_depth_map_001.jpeg").exists()
    assert view_8bit(np.array([0, 5000, 10000, 60000], np.uint16)).tolist() == [0, 128, 255, 255]


def test_running_again_labels_nothing(labelled: Path, weights: Path):
    """Finished work is counted, not redone."""
    result = label_corpus(labelled, weights=weights, device="cpu")
    assert (result["labelled"], result["already_there"]) == (0, 72)


def test_killed_and_run_again_ends_with_the_same_labels(tmp_path: Path, corpus: Path, weights: Path, labelled: Path):
    """kill -9 half way; only the blocks that were not finished are made."""
    shutil.copytree(corpus, tmp_path / "c")
    code = (
        "import sys, time; from pathlib import Path; from dsgen import depth, jobs; depth._BLOCK_ROWS = 24;"
        "call = depth.Labeller.__call__;"
        "depth.Labeller.__call__ = lambda *a: (time.sleep(0.2), print('batch', flush=True), call(*a))[-1];"
        "depth.label_corpus(Path(sys.argv[1]), weights=Path(sys.argv[2]), device='cpu', batch_size=10)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "c"), str(weights)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    for _ in range(5):
        process.stdout.readline()
    time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    (tmp_path / "c" / "depth.zarr" / "depth" / "c" / "0" / "0" / "0.77.partial").write_bytes(b"half")
    before = Corpus(tmp_path / "c").labelled_rows()
    assert 0 < before < 72
    assert before % 20 == 0
    result = label_corpus(tmp_path / "c", weights=weights, device="cpu", batch_size=10)
    assert (result["labelled"], result["already_there"]) == (72 - before, before)
    ours, theirs = Corpus(tmp_path / "c").depth[:], Corpus(labelled).depth[:]
    assert np.abs(ours.astype(int) - theirs).max() <= 1  # batches of another shape may round the last bit apart
    assert not list((tmp_path / "c").rglob("*.partial"))


def test_another_network_may_not_go_on(tmp_path: Path, labelled: Path):
    """The error names the hash and what is there."""
    torch.manual_seed(1)
    other = write_weights(tmp_path / "o.safetensors", DenseDepth(ENCODER, 32, norm=True, output="log", input_size=64))
    with pytest.raises(DsgenError, match="labelled with another network: got weights_sha256"):
        label_corpus(labelled, weights=other, device="cpu")


def test_a_depth_that_is_no_number_stops_with_its_row(tmp_path: Path, corpus: Path):
    """Nothing of its block is stored."""
    shutil.copytree(corpus, tmp_path / "c")
    network = DenseDepth(ENCODER, 32, norm=True, output="log", input_size=64)
    torch.nn.init.constant_(network.head.bias, torch.nan)
    bad = write_weights(tmp_path / "w.safetensors", network)
    with pytest.raises(DsgenError, match="row 0: the network's depth is not finite"):
        label_corpus(tmp_path / "c", weights=bad, device="cpu")
    assert Corpus(tmp_path / "c").labelled_rows() == 0


def test_infinity_is_not_clipped_into_a_depth(weights: Path):
    """An answer of plus infinity is refused like one that is no number."""
    model = load_depth_model(weights)
    torch.nn.init.constant_(model.network.head.bias, torch.inf)
    labeller = depth.Labeller(model, torch.device("cpu"))
    assert labeller(np.zeros((1, 64, 64, 3), np.uint8), (48, 48)).isnan().all()


def test_metres_are_clipped_as_published():
    """10 / y between 0.1 and 10 m; a negative y is the minimum."""
    raw = torch.tensor([200.0, 100.0, 5.0, 1.0, 0.5, -3.0])
    assert to_metres(raw, "reciprocal").tolist() == pytest.approx([0.1, 0.1, 2.0, 10.0, 10.0, 0.1])


def test_folder_mode_labels_any_picture_at_its_own_size(tmp_path: Path, weights: Path):
    """Sizes, formats and subfolders are kept; the table has a line for each; bad files are named."""
    (tmp_path / "in" / "deep").mkdir(parents=True)
    Image.fromarray(draw_background(0, 50, 90)).save(tmp_path / "in" / "wide.jpg")
    Image.fromarray(draw_background(1, 130, 40)).convert("L").save(tmp_path / "in" / "deep" / "tall.png")
    (tmp_path / "in" / "bad.png").write_bytes(b"no picture")
    result = label_folder(tmp_path / "in", weights=weights, device="cpu")
    out = tmp_path / "in_depth"
    assert result["labelled"] == 2
    assert len(result["failed"]) == 1
    assert "bad.png" in result["failed"][0]
    millimetres, tall = (cv2.imread(str(out / name), -1) for name in ("wide.png", "deep/tall.png"))
    assert (millimetres.shape, tall.shape) == ((50, 90), (130, 40))
    assert millimetres.dtype == np.uint16
    assert millimetres.max() > 255
    with (out / "depth.csv").open() as file:
        table = {row["picture"]: row for row in csv.DictReader(file)}
    assert float(table["wide.jpg"]["median_m"]) == pytest.approx(np.median(millimetres) / 1000)
    assert "bad.png" in table["bad.png"]["error"]
    assert not list(out.rglob("*.partial"))


def test_pictures_that_share_a_stem_keep_their_ending():
    """a.jpg and a.png do not overwrite each other."""
    names = output_names([Path("a.jpg"), Path("a.png"), Path("b.webp"), Path("s/a.jpg")])
    assert [str(n) for n in names] == ["a.jpg.png", "a.png.png", "b.png", "s/a.png"]


def test_what_is_neither_corpus_nor_pictures_is_refused(tmp_path: Path, weights: Path):
    """Missing and empty folders."""
    with pytest.raises(DsgenError, match="no such folder"):
        label_folder(tmp_path / "nowhere", weights=weights)
    with pytest.raises(DsgenError, match="neither a corpus nor a folder with pictures"):
        label_folder(tmp_path, weights=weights)


def test_weights_are_required_and_must_fit(tmp_path: Path, weights: Path):
    """No labels from random weights; files for another network, damaged or missing ones are refused."""
    with pytest.raises(DsgenError, match="--model: got resnet18, but the bundled weights are for"):
        load_depth_model(None, "resnet18")
    with pytest.raises(DsgenError, match="does not exist"):
        load_depth_model(tmp_path / "none.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"nothing of use")
    with pytest.raises(DsgenError, match="no readable safetensors file"):
        load_depth_model(tmp_path / "bad.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "bare.safetensors")
    with pytest.raises(DsgenError, match="does not say which network it is for; name its timm encoder with --model"):
        load_depth_model(tmp_path / "bare.safetensors")
    with pytest.raises(DsgenError, match="does not fit a DenseDepth of mobilenetv4_conv_small_050"):
        load_depth_model(tmp_path / "bare.safetensors", ENCODER)
    with pytest.raises(DsgenError, match="timm has no feature encoder of that name"):
        load_depth_model(tmp_path / "bare.safetensors", "no_such_network")


def test_bundled_weights_load_and_answer():
    """The default network is there, trained, and sees depth where there is some."""
    model = load_depth_model()
    assert model.name.endswith("-bundled")
    labeller = depth.Labeller(model, torch.device("cpu"))
    image = draw_background(0, 224, 224)[None]
    metres = labeller(labeller.prepare(image), (224, 224)) / 1000
    assert 0.1 <= metres.min() < metres.max() <= 10


@pytest.mark.parametrize("encoder", ["resnet18", "densenet121", ENCODER])
def test_any_encoder_fits_under_the_decoder(encoder: str):
    """Odd sizes too: the answer is half the input's size, rounded as the encoder rounds."""
    network = DenseDepth(encoder, 32).eval()
    with torch.inference_mode():
        assert network(torch.rand(1, 3, 64, 96)).shape == (1, 1, 32, 48)
        assert network(torch.rand(1, 3, 70, 91)).shape[:2] == (1, 1)


def test_devices_are_checked():
    """A missing one is named with those there are."""
    assert pick_device("cpu") == torch.device("cpu")
    with pytest.raises(DsgenError, match="--device: got 'cuda:77', this machine has cpu"):
        pick_device("cuda:77")
    with pytest.raises(DsgenError, match="--device: got 'tpu'"):
        pick_device("tpu")
