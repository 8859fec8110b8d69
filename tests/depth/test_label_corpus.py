"""Stage two: labels for corpora and folders."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import zarr
from PIL import Image
from safetensors.torch import save_file
from support.corpora import ENCODER, SMALL, draw_background, label_files, make_corpus, write_weights

from dsgen.camera import focal_px, fov_deg
from dsgen.corpus import labels
from dsgen.corpus.build import composite
from dsgen.corpus.corpus import Corpus
from dsgen.corpus.depth_views import view_8bit
from dsgen.corpus.plan import SPLITS
from dsgen.corpus.saved_rows import RowLabels, save_rows
from dsgen.depth import label_corpus as label_corpus_module
from dsgen.depth import labellers
from dsgen.depth.label_corpus import label_corpus
from dsgen.depth.labellers import DenseDepthLabeller, Labeller
from dsgen.depth.networks import DenseDepth, fold_batch_norms, to_metres
from dsgen.depth.weights import DepthModel, load_depth_model
from dsgen.errors import DsgenError, InvalidValueError
from dsgen.integrity.repair import repair
from dsgen.integrity.verify import verify
from dsgen.parallel.devices import pick_device
from dsgen.parallel.parts import Part
from dsgen.store.packing import pack
from dsgen.store.reader import Store
from dsgen.views.info import describe


@pytest.fixture(scope="session")
def labelled(tmp_path_factory: pytest.TempPathFactory, corpus: Path, weights: Path) -> Path:
    """The small corpus, labelled in one undisturbed run."""
    path = tmp_path_factory.mktemp("l") / "corpus"
    shutil.copytree(corpus, path)
    label_corpus(path, weights=weights, device="cpu", batch_size=10, pictures=True, jobs=1)
    return path


def test_labels_are_the_networks_answer_in_millimetres(tmp_path: Path, corpus: Path, weights: Path):
    """Computed again by hand: drawn at the label size, fed at the network's, enlarged, rounded; error 0.5 mm."""
    shutil.copytree(corpus, tmp_path / "c")
    label_corpus(tmp_path / "c", weights=weights, device="cpu", precision="float32")
    labelled = Corpus(tmp_path / "c")
    model = load_depth_model(weights)
    rows = labelled.plan[7:11]
    image, _ = labelled.render(rows, labelled.label_size)
    labeller = DenseDepthLabeller(model, torch.device("cpu"))
    with torch.inference_mode():
        fed = labeller.prepare(image).float() / 255
        raw = F.interpolate(model.network(fed), size=(48, 48), mode="bilinear")
    metres = raw.exp().clamp(0.1, 10)[:, 0].numpy()
    stored = labelled.depth[7:11]
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
    assert (result.labelled, result.already_there) == (0, 72)


def test_killed_and_run_again_ends_with_the_same_labels(tmp_path: Path, corpus: Path, weights: Path, labelled: Path):
    """kill -9 half way; only the blocks that were not finished are made."""
    shutil.copytree(corpus, tmp_path / "c")
    code = (
        "import sys, time; from pathlib import Path; import dsgen.depth.label_corpus as depth;"
        "from dsgen.corpus import labels; labels.BLOCK_ROWS = 24;"
        "from dsgen.depth.labellers import Labeller; call = Labeller.submit;"
        "Labeller.submit = lambda *a: (time.sleep(0.2), print('batch', flush=True), call(*a))[-1];"
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
    assert (result.labelled, result.already_there) == (72 - before, before)
    ours, theirs = Corpus(tmp_path / "c").depth[:], Corpus(labelled).depth[:]
    assert np.abs(ours.astype(int) - theirs).max() <= 1  # batches of another shape may round the last bit apart
    assert not list((tmp_path / "c").rglob("*.partial"))


@pytest.mark.parametrize(("interval_s", "check_flip"), [(0.0, True), (1000.0, False)])
def test_an_interrupted_run_keeps_the_rows_it_labelled(
    tmp_path: Path, corpus: Path, weights: Path, monkeypatch: pytest.MonkeyPatch, interval_s: float, check_flip: bool
):
    """Ctrl-C in the middle of a block: only the batch in progress is labelled again, and every byte is the same."""
    options = {"weights": weights, "device": "cpu", "batch_size": 7, "check_flip": check_flip}
    monkeypatch.setattr(label_corpus_module, "_SAVE_INTERVAL_S", interval_s)
    for name in ("whole", "c"):
        shutil.copytree(corpus, tmp_path / name)
    label_corpus(tmp_path / "whole", **options)
    call, calls = Labeller.submit, [0]

    def interrupt(self: Labeller, *arguments: Any) -> Any:
        calls[0] += 1
        if calls[0] % 4 == 0:
            raise KeyboardInterrupt
        return call(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Labeller, "submit", interrupt)
        for done in (3, 6):
            with pytest.raises(KeyboardInterrupt):
                label_corpus(tmp_path / "c", **options)
            assert sum(map(rows_in, (tmp_path / "c/depth.zarr").glob("rows-*.partial"))) == done * 7
            assert not verify(tmp_path / "c", jobs=1).findings
    result = label_corpus(tmp_path / "c", **options)
    assert (result.labelled, result.already_there) == (72 - 42, 42)
    assert label_files(tmp_path / "c") == label_files(tmp_path / "whole")
    assert not list((tmp_path / "c").rglob("*.partial"))


def test_damaged_saved_rows_are_labelled_again(tmp_path: Path, corpus: Path, weights: Path, labelled: Path):
    """Rows are used only if their checksums hold, and only from the first of the block on."""
    shutil.copytree(corpus, tmp_path / "c")
    options = {"weights": weights, "device": "cpu", "batch_size": 10}
    label_corpus(tmp_path / "c", **options)
    whole = label_files(tmp_path / "c")
    opened = labels.Labels(tmp_path / "c/depth.zarr", 72)
    rows = opened.array[0:30]
    (tmp_path / "c/depth.zarr/depth/c/0/0/0").unlink()
    for damage in range(3):
        save_rows(opened, 0, RowLabels(rows, None))
        save_rows(opened, 40, RowLabels(rows[:20], None))
        path = tmp_path / "c/depth.zarr/rows-000000000000-000000000030.partial"
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= damage == 0
        path.write_bytes(content[: len(content) // (1 + (damage == 1))])
        if damage == 2:
            save_rows(opened, 0, RowLabels(rows[:, :-1], None))
        label_corpus(tmp_path / "c", **options)
        assert label_files(tmp_path / "c") == whole
        (tmp_path / "c/depth.zarr/depth/c/0/0/0").unlink()


def rows_in(path: Path) -> int:
    """Count the rows of a file of saved rows by its name."""
    first, last = path.stem.split("-")[1:]
    return int(last) - int(first)


def test_views_of_labels_without_metres_are_refused_before_anything_is_made(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
):
    """The remedy works: the same command with --metric-reference."""
    shutil.copytree(corpus, tmp_path / "c")
    before = sorted((tmp_path / "c").rglob("*"))
    with pytest.raises(InvalidValueError, match=r"--pictures: .* answers no metres; use --metric-reference as well"):
        label_corpus(tmp_path / "c", model=inverse_depth, kind="inverse", device="cpu", pictures=True)
    assert sorted((tmp_path / "c").rglob("*")) == before


def inverse_depth(pictures: np.ndarray) -> np.ndarray:
    """Answer inverse depth: the brightness."""
    return pictures.mean(-1).astype(np.float32) / 255 + 0.1


def test_another_network_may_not_go_on(tmp_path: Path, labelled: Path):
    """The error names the hash and what is there."""
    torch.manual_seed(1)
    other = write_weights(tmp_path / "o.safetensors", DenseDepth(ENCODER, 32, norm=True, output="log", input_size=64))
    with pytest.raises(
        DsgenError, match=r"labelled with another network; .*\n  weights_sha256 \w{64} \(the corpus has \w{64}\)"
    ):
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
    labeller = DenseDepthLabeller(model, torch.device("cpu"))
    answer, _ = labeller(labeller.prepare(np.zeros((1, 64, 64, 3), np.uint8)), (64, 64), (48, 48))
    assert np.isnan(answer).all()


def test_metres_are_clipped_as_published():
    """10 / y between 0.1 and 10 m; a negative y is the minimum."""
    raw = torch.tensor([200.0, 100.0, 5.0, 1.0, 0.5, -3.0])
    assert to_metres(raw, "reciprocal").tolist() == pytest.approx([0.1, 0.1, 2.0, 10.0, 10.0, 0.1])


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
    with pytest.raises(DsgenError, match="got a name that timm does not know"):
        load_depth_model(tmp_path / "bare.safetensors", "no_such_network")


def test_bundled_weights_load_and_answer():
    """The default network is there, trained, and sees depth where there is some."""
    model = load_depth_model()
    assert model.name.endswith("-bundled")
    labeller = DenseDepthLabeller(model, torch.device("cpu"))
    image = draw_background(0, 224, 224)[None]
    metres, _ = labeller(labeller.prepare(image), (224, 224), (224, 224))
    assert 0.1 <= metres.min() < metres.max() <= 10


@pytest.mark.slow
def test_half_precision_keeps_the_bundled_labels(tmp_path: Path):
    """Under bfloat16, as on CUDA, the median relative change of depth is below 0.5 %."""
    network = load_depth_model().network
    image = torch.from_numpy(np.stack([draw_background(n, 224, 224) for n in range(4)])).permute(0, 3, 1, 2) / 255
    with torch.inference_mode():
        whole = network.depth_m(image)
        with torch.autocast("cpu", torch.bfloat16):
            half = network.depth_m(image)
            answer = fold_batch_norms(network)(image)
    assert 0 < ((half - whole).abs() / whole).median() < 0.005
    # answers of bfloat16 itself would be terraces
    assert answer.dtype == torch.float32
    assert (answer != answer.bfloat16()).float().mean() > 0.9


def test_precision_is_a_choice_that_labels_keep(
    tmp_path: Path, corpus: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
):
    """bf16 changes labels a little, float32 is what it says, auto is the faster one, and none is mixed."""
    found = {}
    for precision in ("float32", "bf16"):
        shutil.copytree(corpus, tmp_path / precision)
        label_corpus(tmp_path / precision, weights=weights, device="cpu", precision=precision)
        found[precision] = Corpus(tmp_path / precision).depth[:]
    apart = np.abs(found["bf16"] / found["float32"] - 1)
    assert 0 < apart.mean() < 0.02
    for name in ("bf16", "float32"):
        monkeypatch.setattr(labellers, "faster_precision", lambda *_, name=name: name)
        shutil.copytree(corpus, tmp_path / f"auto-{name}")
        label_corpus(tmp_path / f"auto-{name}", weights=weights, device="cpu")
        assert (Corpus(tmp_path / f"auto-{name}").depth[:] == found[name]).all()
        assert Corpus(tmp_path / f"auto-{name}").depth_attributes["precision"] == name
    with pytest.raises(
        DsgenError,
        match=r"labelled with other options \(--precision\); .*\n  precision float32 \(the corpus has bf16\)$",
    ):
        label_corpus(tmp_path / "bf16", weights=weights, device="cpu", precision="float32")
    with pytest.raises(DsgenError, match="--precision: got 'half', expected auto, float32, bf16, fp16"):
        label_corpus(tmp_path / "bf16", weights=weights, device="cpu", precision="half")


@pytest.mark.parametrize("encoder", ["resnet18", "densenet121", ENCODER])
def test_any_encoder_fits_under_the_decoder(encoder: str):
    """Odd sizes too: the answer is half the input's size, rounded as the encoder rounds."""
    network = DenseDepth(encoder, 32).eval()
    with torch.inference_mode():
        assert network(torch.rand(1, 3, 64, 96)).shape == (1, 1, 32, 48)
        assert network(torch.rand(1, 3, 70, 91)).shape[:2] == (1, 1)


def test_flip_errors_are_stored_and_shown(tmp_path: Path, corpus: Path, weights: Path):
    """One number a row, as computed by hand; `info` shows them; the labels themselves are not changed."""
    shutil.copytree(corpus, tmp_path / "c")
    label_corpus(tmp_path / "c", weights=weights, device="cpu", batch_size=10, check_flip=True)
    opened = Corpus(tmp_path / "c")
    labeller = DenseDepthLabeller(load_depth_model(weights), torch.device("cpu"))
    image, _ = opened.render(opened.plan[30:32], opened.label_size)
    plain, mirrored = (labeller(labeller.prepare(x), (96, 96), (48, 48))[0] for x in (image, image[:, :, ::-1]))
    a, b = plain, mirrored[:, :, ::-1]
    assert opened.flip_error.shape == (72,)
    assert opened.flip_error[30:32] == pytest.approx((2 * abs(a - b) / (a + b)).mean(axis=(1, 2)), rel=1e-4)
    assert np.abs(opened.depth[30:32] / 1000 - a).max() <= 0.0011
    assert "5th, 50th, 95th, 99th percentile" in describe(tmp_path / "c").table()
    with pytest.raises(DsgenError, match=r"flip_checked False \(the corpus has True\)"):
        label_corpus(tmp_path / "c", weights=weights, device="cpu")


def test_auto_follows_the_precision_of_labels_to_resume(
    tmp_path: Path, corpus: Path, weights: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """Where it stands for another one here, a line says so; labels of earlier versions do not say what it stood for."""
    monkeypatch.setattr(labels, "BLOCK_ROWS", 20)
    path = Path(shutil.copytree(corpus, tmp_path / "c"))
    monkeypatch.setattr(labellers, "faster_precision", lambda *_: "bf16")
    label_corpus(path, weights=weights, device="cpu")
    whole = Corpus(path).depth[:]
    monkeypatch.setattr(labellers, "faster_precision", lambda *_: "float32")
    (path / "depth.zarr/depth/c/1/0/0").unlink()
    assert label_corpus(path, weights=weights, device="cpu").labelled == 20
    assert (Corpus(path).depth[:] == whole).all()
    assert "labelled with --precision bf16, continuing with it (auto is float32 here)" in caplog.text
    group = json.loads((path / "depth.zarr/zarr.json").read_text())
    del group["attributes"]["metadata_sha256"]
    group["attributes"]["precision"] = "auto"
    (path / "depth.zarr/zarr.json").write_text(json.dumps(group))
    assert label_corpus(path, weights=weights, device="cpu").labelled == 0
    with pytest.raises(DsgenError, match=r"labelled with other options \(--precision\)"):
        label_corpus(path, weights=weights, device="cpu", precision="bf16")


def test_mirror_average(tmp_path: Path, corpus: Path, weights: Path):
    """The mean of the depth and the un-mirrored depth of the mirror image."""
    shutil.copytree(corpus, tmp_path / "c")
    label_corpus(tmp_path / "c", weights=weights, device="cpu", batch_size=10, average_flip=True)
    opened = Corpus(tmp_path / "c")
    labeller = DenseDepthLabeller(load_depth_model(weights), torch.device("cpu"))
    image, _ = opened.render(opened.plan[5:6], opened.label_size)
    plain, mirrored = (labeller(labeller.prepare(x), (96, 96), (48, 48))[0] for x in (image, image[:, :, ::-1]))
    assert np.abs(opened.depth[5] / 1000 - (plain + mirrored[:, :, ::-1])[0] / 2).max() <= 0.0011


def test_several_devices_share_the_blocks(
    tmp_path: Path, corpus: Path, weights: Path, labelled: Path, monkeypatch: pytest.MonkeyPatch
):
    """Two devices, the same labels as one; the error of one stops both."""
    monkeypatch.setattr(labels, "BLOCK_ROWS", 20)
    shutil.copytree(corpus, tmp_path / "c")
    result = label_corpus(tmp_path / "c", weights=weights, device="cpu,cpu", batch_size=10)
    assert result.device == "cpu, cpu"
    ours, theirs = Corpus(tmp_path / "c").depth[:], Corpus(labelled).depth[:]
    assert np.abs(ours.astype(int) - theirs).max() <= 1
    shutil.rmtree(tmp_path / "c" / "depth.zarr")
    monkeypatch.setattr(
        label_corpus_module, "_check_finite", lambda *_: (_ for _ in ()).throw(DsgenError("row 7", "no"))
    )
    with pytest.raises(DsgenError, match="row 7: no"):
        label_corpus(tmp_path / "c", weights=weights, device="cpu,cpu", batch_size=10)


def test_parts_label_all_in_any_order(tmp_path: Path, corpus: Path, weights: Path, monkeypatch: pytest.MonkeyPatch):
    """The labels are complete with the last part, whichever it is, and byte for byte those of one run."""
    monkeypatch.setattr(labels, "BLOCK_ROWS", 20)
    for name in ("parts", "whole"):
        shutil.copytree(corpus, tmp_path / name)
    options = {"weights": weights, "device": "cpu", "batch_size": 10, "check_flip": True}
    with pytest.raises(DsgenError, match="--pictures: not with --part"):
        label_corpus(tmp_path / "parts", part=Part(1, 2), pictures=True, **options)
    left = []
    for number in (2, 3, 1):
        result = label_corpus(tmp_path / "parts", part=Part(number, 3), **options)
        left.append(result.left)
        assert zarr.open_group(tmp_path / "parts" / "depth.zarr", mode="r").attrs["complete"] is (number == 1)
        assert label_corpus(tmp_path / "parts", part=Part(number, 3), **options).labelled == 0
    assert left == [52, 20, 0]
    label_corpus(tmp_path / "whole", **options)
    assert label_files(tmp_path / "parts") == label_files(tmp_path / "whole")


def test_a_flipped_bit_in_the_labels_is_seen(tmp_path: Path, labelled: Path):
    """Every chunk carries a checksum."""
    shutil.copytree(labelled, tmp_path / "c")
    file = tmp_path / "c" / "depth.zarr" / "depth" / "c" / "0" / "0" / "0"
    content = bytearray(file.read_bytes())
    content[len(content) // 3] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match="checksum"):
        Corpus(tmp_path / "c").depth[:]


def from_brightness(image: np.ndarray) -> np.ndarray:
    """A labeller anyone could write: 1 to 5 m, darker is farther."""
    return 5 - image.mean(axis=3) / 64


def test_a_function_labels_a_corpus(tmp_path: Path, corpus: Path):
    """Its answers become millimetres; its name and source's hash stand in the attributes."""
    shutil.copytree(corpus, tmp_path / "c")
    label_corpus(tmp_path / "c", model=from_brightness, device="cpu")
    opened = Corpus(tmp_path / "c")
    assert opened.depth_attributes["model"] == f"function:{__name__}.from_brightness"
    image, _ = opened.render(opened.plan[:1], opened.label_size)
    assert opened.depth[0].mean() / 1000 == pytest.approx(from_brightness(image).mean(), abs=0.02)


def test_relative_labels_are_not_called_metres(tmp_path: Path, corpus: Path, weights: Path):
    """They are stored as they are, under their own name; packing refuses them; a metric reference makes them metres."""
    shutil.copytree(corpus, tmp_path / "c")
    result = label_corpus(tmp_path / "c", model=from_brightness, kind="inverse", device="cpu")
    opened = Corpus(tmp_path / "c")
    assert result.kind == "inverse"
    assert opened.depth is None
    assert opened.relative.dtype == np.float32
    assert opened.depth_attributes["units"] == "1"
    assert opened.labelled_rows() == 72
    assert "no metres" in describe(tmp_path / "c").table()
    with pytest.raises(
        DsgenError, match=r"whose depth is relative, not in metres; remove it and label with --metric-reference"
    ):
        pack(tmp_path / "c", tmp_path / "s", shards=1)
    with pytest.raises(DsgenError, match="metric_reference densedepth"):
        label_corpus(tmp_path / "c", model=from_brightness, kind="inverse", device="cpu", metric_reference=str(weights))


def test_a_fit_recovers_scale_and_shift(tmp_path: Path, corpus: Path, weights: Path, labelled: Path):
    """Relative answers that are an affine function of the reference's inverse depth come out as its metres."""
    reference = DenseDepthLabeller(load_depth_model(weights), torch.device("cpu"))

    def affine(image: np.ndarray) -> np.ndarray:
        metres, _ = reference(reference.prepare(image), (96, 96), (48, 48))
        return 40 / metres - 3

    shutil.copytree(corpus, tmp_path / "c")
    result = label_corpus(
        tmp_path / "c", model=affine, kind="inverse", device="cpu", metric_reference=str(weights), batch_size=10
    )
    assert result.kind == "metric"
    ours, theirs = Corpus(tmp_path / "c").depth[:], Corpus(labelled).depth[:]
    assert np.abs(ours.astype(int) - theirs).max() <= 3

    def upside_down(image: np.ndarray) -> np.ndarray:
        return -affine(image)

    shutil.rmtree(tmp_path / "c" / "depth.zarr")
    with pytest.raises(DsgenError, match="disagree about what is near"):
        label_corpus(tmp_path / "c", model=upside_down, kind="inverse", device="cpu", metric_reference=str(weights))


def test_rows_with_doubtful_depth_leave_their_split(tmp_path: Path, corpus: Path, weights: Path):
    """They keep their place in the store, in no split, and are counted."""
    shutil.copytree(corpus, tmp_path / "c")
    with pytest.raises(DsgenError, match="holds no flip errors"):
        pack(tmp_path / "c", tmp_path / "s", shards=1, max_flip_error=0.1)
    label_corpus(tmp_path / "c", weights=weights, device="cpu", check_flip=True)
    opened = Corpus(tmp_path / "c")
    limit = float(np.median(opened.flip_error))
    wrong = (opened.flip_error > limit) & (opened.plan["split"] != SPLITS.index("unused"))
    result = pack(tmp_path / "c", tmp_path / "s", shards=1, max_flip_error=limit, jobs=1)
    assert result.left_out == wrong.sum() > 0
    store = Store(tmp_path / "s")
    assert (store.plan["split"][wrong] == SPLITS.index("unused")).all()
    assert store.rows == 72
    assert sum(store.splits.values()) == 72
    assert (np.asarray(Corpus(tmp_path / "c").plan["split"]) == opened.plan["split"]).all()


@pytest.mark.parametrize("encoder", [ENCODER, "resnet18", "densenet121"])
def test_folding_batch_norms_changes_nothing_but_the_time(encoder: str):
    """The same answers to rounding, at any size; the network itself is left alone."""
    torch.manual_seed(0)
    network = DenseDepth(encoder, 32, norm=True).eval()
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.2)
            layer.running_var.uniform_(0.5, 2)
    folded = fold_batch_norms(network)
    remaining = [sum(isinstance(m, torch.nn.BatchNorm2d) for m in n.modules()) for n in (network, folded)]
    assert remaining[1] < remaining[0]
    with torch.inference_mode():
        for size in ((64, 64), (96, 160)):
            image = torch.rand(2, 3, *size)
            assert folded(image) == pytest.approx(network(image), rel=1e-4, abs=1e-5)


def test_rows_are_drawn_no_larger_than_the_network_needs(tmp_path: Path, pictures: Path):
    """A network fed at 32 pixels gets the stored 48; one fed as pictures come, or at 64, gets the label size, 96."""
    opened = Corpus(make_corpus(tmp_path / "c", pictures, pictures=False))

    def side(input_size: int | None) -> int:
        network = DenseDepth(ENCODER, 32, norm=True, output="log", input_size=input_size)
        return label_corpus_module.drawn_size(
            opened, DenseDepthLabeller(DepthModel(network, "n", "0"), torch.device("cpu"))
        )

    assert (side(32), side(64), side(None)) == (48, 96, 96)


def test_devices_are_checked():
    """A missing one is named with those there are."""
    assert pick_device("cpu") == torch.device("cpu")
    with pytest.raises(DsgenError, match="--device: got 'cuda:77', this machine has cpu"):
        pick_device("cuda:77")
    with pytest.raises(DsgenError, match="--device: got 'tpu'"):
        pick_device("tpu")


def attributes_of(corpus: Path) -> dict[str, Any]:
    """The attributes of the labels."""
    return dict(zarr.open_group(corpus / "depth.zarr", mode="r").attrs)


@pytest.fixture
def seen_corpus(tmp_path: Path, pictures: Path) -> Path:
    """A corpus whose first background says its field of view: 90 degrees of the square."""
    shutil.copytree(pictures / "backgrounds", tmp_path / "rooms")
    degrees = fov_deg(focal_px(90, 110), 130)
    (tmp_path / "rooms.csv").write_text(f"name,fov_deg\nroom0,{degrees}\n")
    composite(tmp_path / "seen", tmp_path / "rooms", pictures / "foregrounds", SMALL, jobs=1, pictures=False)
    return tmp_path / "seen"


def test_rows_are_labelled_for_the_cameras_of_their_backgrounds(seen_corpus: Path, canonical_weights: Path):
    """2 m at 80 pixels, all fed at 64: a background of 90 degrees has 32 pixels, so 0.8 m; the others as --fov says."""
    result = label_corpus(seen_corpus, weights=canonical_weights, device="cpu", batch_size=7, check_flip=True)
    assert result.fov_assumed == 2
    opened = Corpus(seen_corpus)
    metres = np.array([0.8, *2 * [2 * focal_px(63, 64) / 80]])
    expected = np.rint(1000 * metres[opened.plan["background"]])
    np.testing.assert_array_equal(opened.depth[:], np.broadcast_to(expected[:, None, None], opened.depth.shape))
    attributes = attributes_of(seen_corpus)
    assert attributes["focal_px"] == 80
    assert attributes["fov_deg"] == [90, 63, 63]
    assert attributes["fov_from"] == {"assumed": 2, "csv": 1}
    assert attributes["network_input"] == [64, 64]
    assert not verify(seen_corpus, jobs=1).findings
    assert label_corpus(seen_corpus, weights=canonical_weights, device="cpu", check_flip=True).labelled == 0
    with pytest.raises(DsgenError, match=r"labelled with other options \(--fov\)") as refused:
        label_corpus(seen_corpus, weights=canonical_weights, device="cpu", check_flip=True, fov_deg=50)
    assert "field of view of 2 backgrounds, the first 50.0 (the corpus has 63.0)" in str(refused.value)
    packed = opened.labels.check_for_packing(48)
    assert (packed["focal_px"], packed["fov_from"]) == (80, {"assumed": 2, "csv": 1})
    assert "fov_deg" not in packed


def test_metadata_of_labels_with_cameras_is_vouched_for_and_restored(seen_corpus: Path, canonical_weights: Path):
    """A changed field of view is seen; lost metadata of an array comes back."""
    label_corpus(seen_corpus, weights=canonical_weights, device="cpu", fov_deg=50)
    array, group = (seen_corpus / "depth.zarr" / name for name in ("depth/zarr.json", "zarr.json"))
    before = array.read_bytes()
    array.unlink()
    repair(seen_corpus)
    assert array.read_bytes() == before
    group.write_text(group.read_text().replace("50.0", "51.0"))
    assert verify(seen_corpus, jobs=1).findings


def test_several_devices_and_parts_know_the_cameras(seen_corpus: Path, canonical_weights: Path):
    """The same labels, however the work is divided."""
    options = {"weights": canonical_weights, "fov_deg": 70, "batch_size": 5}
    label_corpus(seen_corpus, device="cpu", **options)
    whole = label_files(seen_corpus)
    shutil.rmtree(seen_corpus / "depth.zarr")
    for number in (2, 1):
        label_corpus(seen_corpus, device="cpu,cpu", part=Part(number, 2), **options)
    assert label_files(seen_corpus) == whole


def test_a_reference_with_a_canonical_camera_gives_its_metres(tmp_path: Path, seen_corpus: Path, weights: Path):
    """Relative answers are fitted to the metres that the reference has for the camera of each background."""
    plain = load_depth_model(weights).network
    network = DenseDepth(**(plain.config | {"focal_px": 80.0}))
    network.load_state_dict(plain.state_dict())
    reference = write_weights(tmp_path / "w.safetensors", network)
    labeller = DenseDepthLabeller(load_depth_model(reference), torch.device("cpu"))

    def affine(image: np.ndarray) -> np.ndarray:
        metres, _ = labeller(labeller.prepare(image), (96, 96), (48, 48))  # those of the canonical camera
        return 40 / metres - 3

    options = {"device": "cpu", "fov_deg": 75, "precision": "float32"}
    label_corpus(seen_corpus, weights=reference, **options)
    theirs, attributes = Corpus(seen_corpus).depth[:].astype(int), attributes_of(seen_corpus)
    shutil.rmtree(seen_corpus / "depth.zarr")
    label_corpus(seen_corpus, model=affine, kind="inverse", metric_reference=str(reference), **options)
    assert np.abs(Corpus(seen_corpus).depth[:] - theirs).max() <= 3
    assert attributes_of(seen_corpus)["fov_from"] == attributes["fov_from"] == {"csv": 1, "option": 2}


def test_networks_without_a_canonical_camera_record_nothing_of_cameras(seen_corpus: Path, weights: Path):
    """`--fov` is refused, and the attributes are as they were."""
    with pytest.raises(InvalidValueError, match=r"--fov: not used by .* \(no canonical camera\); leave it out"):
        label_corpus(seen_corpus, weights=weights, device="cpu", fov_deg=60)
    assert not (seen_corpus / "depth.zarr").exists()
    assert label_corpus(seen_corpus, weights=weights, device="cpu").fov_assumed == 0
    assert not {"focal_px", "fov_deg", "fov_from"} & attributes_of(seen_corpus).keys()


@pytest.mark.gpu
@pytest.mark.parametrize("options", [{}, {"check_flip": True}, {"metric_reference": "bundled"}])
def test_on_a_gpu_labels_are_those_of_the_cpu(tmp_path: Path, corpus: Path, weights: Path, options: dict[str, Any]):
    """In float32, to a few millimetres in all but a few pixels; interrupted and resumed, the same bytes."""
    chosen: dict[str, Any] = {"weights": weights, "precision": "float32", "batch_size": 10, **options}
    if "metric_reference" in options:
        chosen = {**chosen, "weights": None, "model": inverse_depth, "kind": "inverse"}
    found = {}
    for device in ("cpu", "cuda"):
        path = Path(shutil.copytree(corpus, tmp_path / device))
        assert label_corpus(path, device=device, **chosen).labelled == 72
        found[device] = Corpus(path).depth[:].astype(int)
    assert (np.abs(found["cpu"] - found["cuda"]) <= 5).mean() > 0.999
    whole = label_files(tmp_path / "cuda")
    submit, calls = Labeller.submit, [0]

    def interrupt(self: Labeller, *arguments: Any) -> Any:
        calls[0] += 1
        if calls[0] == 5:
            raise KeyboardInterrupt
        return submit(self, *arguments)

    shutil.rmtree(tmp_path / "cuda" / "depth.zarr")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Labeller, "submit", interrupt)
        with pytest.raises(KeyboardInterrupt):
            label_corpus(tmp_path / "cuda", device="cuda", **chosen)
    assert label_corpus(tmp_path / "cuda", device="cuda", **chosen).already_there > 0
    assert label_files(tmp_path / "cuda") == whole
