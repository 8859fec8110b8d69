"""Labellers: memory that runs out, foreign models, functions, options that contradict."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.corpora import ENCODER, draw_background

from dsgen.corpus.labels import METRIC
from dsgen.depth import labellers
from dsgen.depth.labellers import (
    MOST_FED_PIXELS,
    DenseDepthLabeller,
    FunctionLabeller,
    Labeller,
    LabelOptions,
    PictureError,
    TransformersLabeller,
    make_labellers,
    round_to_millimetres,
    state_sha256,
)
from dsgen.depth.networks import DenseDepth, to_metres
from dsgen.depth.weights import DepthModel, load_depth_model
from dsgen.errors import DsgenError, InvalidValueError
from dsgen.units import to_millimetres

CPU = torch.device("cpu")


class Greedy(Labeller):
    """Has room for three pictures at a time."""

    name, sha256, room = "greedy", "0", 3

    def _answer(self, batch: torch.Tensor, source: Any, shape: Any, scale: Any = None) -> torch.Tensor:  # noqa: ARG002
        """Answer the pictures' mean, or run out of memory."""
        if len(batch) > self.room:
            raise torch.OutOfMemoryError("out of memory")
        return batch.float().mean(dim=(1, 2, 3))[:, None, None].expand(-1, *shape)


def test_batches_shrink_until_they_fit(caplog: pytest.LogCaptureFixture):
    """Ten pictures where three fit: the right answers, in order; what fits is remembered."""
    labeller = Greedy(CPU)
    image = np.arange(10, dtype=np.uint8)[:, None, None, None].repeat(4, 1).repeat(4, 2).repeat(3, 3)
    for _ in range(2):
        depth, error = labeller(labeller.prepare(image), (4, 4), (2, 2))
        assert depth[:, 0, 0].tolist() == list(range(10))
        assert error is None
    assert [record.getMessage() for record in caplog.records] == [
        "--batch-size: 10 do not fit cpu, continuing with 5",
        "--batch-size: 5 do not fit cpu, continuing with 2",
    ]


def test_a_picture_that_does_not_fit_is_an_error(monkeypatch: pytest.MonkeyPatch):
    """Nothing smaller than one picture can be tried."""
    monkeypatch.setattr(Greedy, "room", 0)
    labeller = Greedy(CPU)
    with pytest.raises(DsgenError, match="--device cpu: one picture, fed as 8x4 pixels, does not fit its memory"):
        labeller(labeller.prepare(np.zeros((3, 4, 8, 3), np.uint8)), (4, 8), (4, 8))


def test_the_loss_of_a_device_is_named(monkeypatch: pytest.MonkeyPatch):
    """Not on the CPU, where a RuntimeError is a bug and keeps its traceback."""

    def lost(*_: Any) -> torch.Tensor:
        raise RuntimeError("CUDA error: device lost\nmore")

    labeller = Greedy(CPU)
    monkeypatch.setattr(labeller, "_answer", lost)
    with pytest.raises(RuntimeError, match="device lost"):
        labeller._estimate(torch.zeros(1, 3, 4, 4), (4, 4), (4, 4))
    labeller.device = torch.device("meta")
    with pytest.raises(DsgenError, match=r"failed \(CUDA error: device lost\); finished work is kept"):
        labeller._estimate(torch.zeros(1, 3, 4, 4), (4, 4), (4, 4))


def test_functions_answer_any_size_and_are_checked():
    """A smaller answer is enlarged; one of the wrong shape is refused."""
    small = FunctionLabeller(lambda image: np.full((len(image), 5, 7), 2.0), CPU)
    depth, _ = small(small.prepare(np.zeros((2, 20, 28, 3), np.uint8)), (20, 28), (20, 28))
    assert depth.shape == (2, 20, 28)
    assert (depth == 2).all()
    wrong = FunctionLabeller(lambda image: image, CPU)
    with pytest.raises(DsgenError, match=r"returned shape \(2, 20, 28, 3\) for 2 pictures"):
        wrong(wrong.prepare(np.zeros((2, 20, 28, 3), np.uint8)), (20, 28), (20, 28))


def test_options_that_contradict_are_refused(tmp_path: Path):
    """Weights beside a model that brings its own, kinds of networks whose kind is known."""
    with pytest.raises(DsgenError, match=r"--weights: got .* beside --model"):
        make_labellers(LabelOptions(model="hf:x", weights=tmp_path), [CPU])
    with pytest.raises(DsgenError, match="--kind: got metric, but this network answers metres"):
        make_labellers(LabelOptions(kind="metric"), [CPU])
    with pytest.raises(DsgenError, match="--kind: got 'feet', expected metric or inverse"):
        make_labellers(LabelOptions(model="hf:x", kind="feet"), [CPU])
    with pytest.raises(DsgenError, match="--max-depth, --compile: not for"):
        make_labellers(LabelOptions(model="hf:x", compile_network=True), [CPU])


def test_an_empty_batch_is_refused():
    """Before a network is loaded."""
    with pytest.raises(InvalidValueError, match="--batch-size: got 0, expected 1 or more"):
        make_labellers(LabelOptions(batch_size=0), [CPU])


def tiny_dpt() -> tuple[Any, Any]:
    """A DPT of two thin layers."""
    from transformers import DPTConfig, DPTForDepthEstimation, DPTImageProcessor

    config = DPTConfig(
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=32,
        patch_size=8,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8,
        is_hybrid=False,
    )
    return DPTForDepthEstimation(config), DPTImageProcessor(size={"height": 32, "width": 32})


def tiny_depth_anything(kind: str) -> tuple[Any, Any]:
    """A Depth Anything on a DINOv2 of four thin layers."""
    from transformers import DepthAnythingConfig, DepthAnythingForDepthEstimation, Dinov2Config, DPTImageProcessor

    backbone = Dinov2Config(  # type: ignore[call-arg]
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
        out_features=["stage1", "stage2", "stage3", "stage4"],
        reshape_hidden_states=False,
    )
    config = DepthAnythingConfig(
        backbone_config=backbone,
        reassemble_hidden_size=16,
        patch_size=14,
        neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8,
        head_hidden_size=8,
        depth_estimation_type=kind,
        max_depth=20 if kind == "metric" else 1,
    )
    processor = DPTImageProcessor(size={"height": 28, "width": 28}, ensure_multiple_of=14, keep_aspect_ratio=True)
    return DepthAnythingForDepthEstimation(config), processor


def tiny_glpn() -> tuple[Any, Any]:
    """A GLPN of four thin stages."""
    from transformers import GLPNConfig, GLPNForDepthEstimation, GLPNImageProcessor

    config = GLPNConfig(
        hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], num_attention_heads=[1, 1, 2, 2], decoder_hidden_size=8
    )
    return GLPNForDepthEstimation(config), GLPNImageProcessor()


FAMILIES = {
    "dpt": (tiny_dpt, "inverse"),
    "depth-anything": (lambda: tiny_depth_anything("relative"), "inverse"),
    "depth-anything-metric": (lambda: tiny_depth_anything("metric"), "metric"),
    "glpn": (tiny_glpn, "metric"),
}


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("family", FAMILIES)
def test_any_transformers_model_labels_from_a_folder(tmp_path: Path, family: str):
    """Saved with random weights, loaded by folder: the library's own answer, and the right kind."""
    pytest.importorskip("transformers")
    make, kind = FAMILIES[family]
    torch.manual_seed(0)
    network, processor = make()
    network.eval().save_pretrained(tmp_path / family)
    processor.save_pretrained(tmp_path / family)
    labeller = make_labellers(LabelOptions(model=f"hf:{tmp_path / family}", precision="float32"), [CPU])[0]
    assert isinstance(labeller, TransformersLabeller)
    assert (labeller.kind, labeller.name) == (kind, f"hf:{family}")
    assert labeller.sha256 == state_sha256(network)
    image = np.stack([draw_background(n, 64, 96) for n in range(2)])
    depth, _ = labeller(labeller.prepare(image), (64, 96), (64, 96))
    assert depth.shape == (2, 64, 96)
    with torch.inference_mode():
        for picture, ours in zip(image, depth, strict=True):
            outputs = network(**processor(images=picture, return_tensors="pt"))
            theirs = processor.post_process_depth_estimation(outputs, target_sizes=[(64, 96)])[0]["predicted_depth"]
            assert ours == pytest.approx(theirs.numpy(), rel=1e-3, abs=1e-4)


@pytest.mark.filterwarnings("default")
def test_models_that_cannot_be_loaded_are_one_line(tmp_path: Path):
    """An empty folder; a family that does not say what it answers."""
    pytest.importorskip("transformers")
    with pytest.raises(DsgenError, match="no depth-estimation model can be loaded"):
        make_labellers(LabelOptions(model=f"hf:{tmp_path}"), [CPU])
    network, processor = tiny_dpt()
    network.save_pretrained(tmp_path / "m")
    processor.save_pretrained(tmp_path / "m")
    assert make_labellers(LabelOptions(model=f"hf:{tmp_path / 'm'}", kind="metric"), [CPU])[0].kind == METRIC


@pytest.mark.parametrize("size", [None, 64, 256])
def test_what_is_fed_is_bounded(weights: Path, monkeypatch: pytest.MonkeyPatch, size: int | None):
    """Whatever the size: multiples of 32, at most so many pixels, the proportions kept; usual sizes as they were."""
    labeller = make_labellers(LabelOptions(weights=weights), [CPU])[0]
    assert isinstance(labeller, DenseDepthLabeller)
    monkeypatch.setitem(labeller.config, "input_size", size)
    sides = [1, 2, 3, 4, 7, 10, 33, 100, 480, 640, 1999, 4000, 8000, 16000, 64000]
    for height, width in ((h, w) for h in sides for w in sides if h * w <= 64_000_000):
        if max(height, width) > 4096 * min(height, width):
            with pytest.raises(PictureError, match=f"{width}x{height} pixels, expected one side to be at most 4,096"):
                labeller.feed_shape(height, width)
            continue
        fed_height, fed_width = labeller.feed_shape(height, width)
        assert fed_height % 32 == fed_width % 32 == 0
        assert fed_height * fed_width <= MOST_FED_PIXELS
        if min(fed_height, fed_width) > 32:
            assert fed_height / fed_width == pytest.approx(height / width, rel=32 / min(fed_height, fed_width))
    scale = 1 if size is None else size / 480
    assert labeller.feed_shape(480, 640) == (round(480 * scale / 32) * 32, round(640 * scale / 32) * 32)


def canonical(weights: Path, **options: Any) -> Labeller:
    """A labeller on the CPU, in float32, of a network for a canonical camera."""
    return make_labellers(LabelOptions(weights=weights, precision="float32", **options), [CPU])[0]


@pytest.mark.parametrize(
    ("height", "width", "scale", "fed"),
    [
        (176, 235, 1.0, (192, 256)),  # the proportions count more than the size
        (235, 176, 1.0, (256, 192)),
        (480, 640, 0.4, (192, 256)),
        (224, 224, 1.0, (224, 224)),
        (448, 448, 0.5, (224, 224)),
        (500, 500, 0.5, (256, 256)),
        (3000, 4000, 1.0, (480, 640)),  # a long lens would be fed as it is
        (3000, 4000, 1e-4, (128, 160)),  # nor does a longer one get less
        (64, 64, 100.0, (544, 544)),
        (2160, 3840, 0.1, (224, 384)),
    ],
)
def test_pictures_are_fed_to_the_canonical_camera(
    canonical_weights: Path, height: int, width: int, scale: float, fed: tuple[int, int]
):
    """A picture with a focal length is scaled so that it is 80 pixels, in its proportions, within bounds."""
    assert canonical(canonical_weights).feed_shape(height, width, 80 / scale) == fed


def test_what_the_canonical_camera_is_fed_is_bounded(canonical_weights: Path):
    """Multiples of 32, 128 to a side or more, 640 x 480 pixels at most, proportions within 13 %; thin ones as ever."""
    labeller = canonical(canonical_weights)
    for height in (1, 7, 100, 333, 480, 2000, 8000):
        for width in (3, 40, 224, 375, 640, 1999, 4000):
            thin = max(height, width) > 8 * min(height, width)
            for focal in (1.0, 100.0, 333.3, 1000.0, 50_000.0):
                fed = labeller.feed_shape(height, width, focal)
                assert fed[0] % 32 == fed[1] % 32 == 0
                if thin:
                    assert fed == labeller.feed_shape(height, width)
                    continue
                assert min(fed) >= 128
                assert fed[0] * fed[1] <= 640 * 480
                assert fed[0] / fed[1] == pytest.approx(height / width, rel=0.13)
    assert labeller.feed_shape(7, 7, 80.0) == (128, 128)
    with pytest.raises(PictureError, match="5000x1 pixels, expected one side"):
        labeller.feed_shape(1, 5000, 80.0)


@pytest.mark.parametrize("options", [{}, {"average_flip": True, "check_flip": True}])
def test_metres_are_scaled_back_to_the_pictures_camera(canonical_weights: Path, options: dict[str, Any]):
    """2 m times the focal length as fed over the canonical one, each picture's own, then clipped; exact to rounding."""
    labeller = canonical(canonical_weights, **options)
    image = np.random.default_rng(0).integers(0, 256, (4, 96, 128, 3)).astype(np.uint8)
    focal_px = np.array([80.0, 120.0, 1.0, 4000.0])
    batch = labeller.prepare(image, (192, 256))  # twice as large
    depth, _ = labeller(batch, (96, 128), (96, 128), focal_px)
    assert depth.shape == (4, 96, 128)
    expected = [2 * 160 / 80, 2 * 240 / 80, 0.1, 10.0]
    np.testing.assert_allclose(depth, np.broadcast_to(np.reshape(expected, (4, 1, 1)), depth.shape), rtol=1e-5)
    distorted, _ = labeller(labeller.prepare(image, (192, 192)), (96, 128), (96, 128), focal_px)
    np.testing.assert_allclose(distorted[0], 2 * np.sqrt(2 * 1.5), rtol=1e-5)
    unscaled, _ = labeller(batch, (96, 128), (96, 128))
    np.testing.assert_allclose(unscaled, 2, rtol=1e-5)


def test_batches_that_are_split_keep_each_pictures_camera(canonical_weights: Path, monkeypatch: pytest.MonkeyPatch):
    """Memory for two pictures: the third has its own scale still."""
    labeller = canonical(canonical_weights)
    answer = labeller._answer

    def greedy(batch: torch.Tensor, *others: Any) -> torch.Tensor:
        if len(batch) > 2:
            raise torch.OutOfMemoryError("out of memory")
        return answer(batch, *others)

    monkeypatch.setattr(labeller, "_answer", greedy)
    focal_px = np.array([40.0, 80.0, 120.0, 160.0, 200.0])
    depth, _ = labeller(labeller.prepare(np.zeros((5, 64, 64, 3), np.uint8)), (64, 64), (8, 8), focal_px)
    np.testing.assert_allclose(depth[:, 0, 0], [1, 2, 3, 4, 5], rtol=1e-5)


def test_networks_without_a_canonical_camera_ignore_the_pictures(weights: Path):
    """They answer metres whatever the camera."""
    labeller = canonical(weights)
    image = draw_background(0, 64, 96)[None]
    assert labeller.feed_shape(64, 96, 500.0) == labeller.feed_shape(64, 96)
    plain, _ = labeller(labeller.prepare(image), (64, 96), (64, 96))
    with_camera, _ = labeller(labeller.prepare(image), (64, 96), (64, 96), np.array([500.0]))
    np.testing.assert_array_equal(plain, with_camera)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("family", ["dpt", "depth-anything", "glpn"])
def test_what_transformers_models_are_fed_is_bounded(tmp_path: Path, family: str, monkeypatch: pytest.MonkeyPatch):
    """Large pictures are scaled down before the model's own preprocessing, thin and enlarged ones refused."""
    pytest.importorskip("transformers")
    network, processor = FAMILIES[family][0]()
    network.save_pretrained(tmp_path / "m")
    processor.save_pretrained(tmp_path / "m")
    labeller = make_labellers(LabelOptions(model=f"hf:{tmp_path / 'm'}", precision="float32"), [CPU])[0]
    monkeypatch.setattr(labellers, "MOST_FED_PIXELS", 100 * 100)
    assert labeller.feed_shape(60, 80) == (60, 80)
    height, width = labeller.feed_shape(300, 400)
    assert (height, width) == (86, 115)
    fed = labeller.prepare(np.zeros((1, 300, 400, 3), np.uint8))
    assert fed.shape[-1] * fed.shape[-2] <= 10_000
    depth, _ = labeller(fed, (300, 400), (300, 400))
    assert depth.shape == (1, 300, 400)
    with pytest.raises(PictureError, match="4000x4 pixels, expected one side to be at most 32 times the other; crop"):
        labeller.prepare(np.zeros((1, 4, 4000, 3), np.uint8))
    monkeypatch.setattr(labellers, "MOST_FED_PIXELS", 100)
    if family == "dpt":
        with pytest.raises(PictureError, match="preprocessing makes it 32x32, expected at most 100 pixels"):
            labeller.prepare(np.zeros((1, 60, 80, 3), np.uint8))


@pytest.mark.parametrize(
    "message",
    [
        "DefaultCPUAllocator: can't allocate memory",
        "DefaultCPUAllocator: not enough memory",
        "MPS backend out of memory",
    ],
)
def test_memory_runs_out_on_every_device(message: str, monkeypatch: pytest.MonkeyPatch):
    """CPUs and MPS have no class of error for it; batches shrink all the same."""

    def answer(self: Greedy, batch: torch.Tensor, source: Any, shape: Any, scale: Any) -> torch.Tensor:
        if len(batch) > 2:
            raise RuntimeError(message)
        return torch.zeros(len(batch), *shape)

    monkeypatch.setattr(Greedy, "_answer", answer)
    labeller = Greedy(CPU)
    depth, _ = labeller(labeller.prepare(np.zeros((5, 4, 4, 3), np.uint8)), (4, 4), (4, 4))
    assert depth.shape == (5, 4, 4)
    assert labeller._largest_batch == 2


def test_an_error_of_one_picture_is_not_the_device(monkeypatch: pytest.MonkeyPatch):
    """Shapes that do not fit are raised as they are on every device; a missing operation is the device's."""
    labeller = Greedy(CPU)
    labeller.device = torch.device("mps")
    monkeypatch.setattr(labeller, "_answer", raising(RuntimeError("shape mismatch")))
    with pytest.raises(RuntimeError, match="shape mismatch"):
        labeller._estimate(torch.zeros(1, 3, 4, 4), (4, 4), (4, 4))
    monkeypatch.setattr(labeller, "_answer", raising(NotImplementedError("aten::upsample is not implemented")))
    with pytest.raises(DsgenError, match=r"--device mps: failed \(aten::.*\); finished work is kept, use --device cpu"):
        labeller._estimate(torch.zeros(1, 3, 4, 4), (4, 4), (4, 4))


def raising(error: Exception) -> Any:
    """Return a function that raises."""

    def fail(*_: Any) -> torch.Tensor:
        raise error

    return fail


def test_double_precision_is_not_moved(monkeypatch: pytest.MonkeyPatch):
    """A function may answer float64, which MPS lacks."""
    moved: list[torch.dtype] = []
    to = torch.Tensor.to
    monkeypatch.setattr(
        torch.Tensor, "to", lambda self, *a, **k: (moved.append(self.dtype) if CPU in a else None, to(self, *a, **k))[1]
    )
    labeller = FunctionLabeller(lambda image: np.full(image.shape[:3], 2.0), CPU)
    labeller(labeller.prepare(np.zeros((1, 8, 8, 3), np.uint8)), (8, 8), (8, 8))
    assert moved == [torch.uint8, torch.float32]


def test_auto_is_measured_on_the_network_itself(weights: Path, monkeypatch: pytest.MonkeyPatch):
    """In both precisions, as it is fed; functions are never called for it, and CUDA needs no measuring."""
    seen: list[tuple[str, tuple[int, ...], torch.dtype]] = []

    def faster(run: Any, network: str, fed: tuple[int, ...]) -> str:
        for precision in ("float32", "bf16"):
            run(precision, 2)
        seen.append((network, fed, dtypes[-1]))
        return "bf16"

    monkeypatch.setattr(labellers, "faster_precision", faster)
    labeller = DenseDepthLabeller(load_depth_model(weights), CPU)
    dtypes: list[torch.dtype] = []
    assert labeller.network is not None
    convolution = next(m for m in labeller.network.modules() if isinstance(m, torch.nn.Conv2d))
    convolution.register_forward_hook(lambda _module, _inputs, answer: dtypes.append(answer.dtype))
    assert labeller.pick_precision(96, 128) == "bf16"
    assert seen == [(f"{labeller.name} {labeller.sha256}", (3, 64, 96), torch.bfloat16)]
    assert dtypes == [torch.float32, torch.bfloat16]
    assert FunctionLabeller(lambda _: pytest.fail("called"), CPU).pick_precision(96, 128) == "float32"
    labeller.device = torch.device("mps")
    assert labeller.pick_precision(96, 128) == "float32"


@pytest.mark.parametrize("kind", ["halves", "wide", "random"])
def test_millimetres_are_rounded_as_by_numpy(kind: str):
    """Bit for bit: to even, at least 1, at most 65,535."""
    rng = np.random.default_rng(0)
    metres = {
        "halves": (np.arange(0, 70_000, dtype=np.float32) + 0.5) / 1000,
        "wide": np.array([0, 1e-9, 0.0004, 0.0005, 0.0015, 65.5349, 65.5355, 66, 1e9, 3e35, -1], np.float32),
        "random": rng.uniform(0.05, 12, 100_000).astype(np.float32),
    }[kind]
    rounded = round_to_millimetres(torch.from_numpy(metres)).numpy()
    assert rounded.dtype == np.uint16
    assert (rounded == to_millimetres(metres)).all()


@pytest.mark.parametrize("output", ["log", "reciprocal"])
def test_answers_are_those_of_the_formula(output: str):
    """Bit for bit: enlarged, turned into metres, clipped, and NaN wherever the network's answer is not finite."""
    torch.manual_seed(0)
    network = DenseDepth(ENCODER, 32, norm=True, output=output, input_size=64).eval()
    labeller = DenseDepthLabeller(DepthModel(network, "n", "0"), CPU, check_flip=True, average_flip=True)
    raw = torch.randn(3, 1, 32, 32) * 3 + 1
    raw[0, 0, 3, 5], raw[0, 0, 9, 9], raw[1, 0, 7, 7], raw[2, 0, 1, 1] = torch.inf, -torch.inf, torch.nan, 0
    labeller._run = lambda batch: raw[: len(batch)].clone()
    batch = torch.zeros(3, 3, 64, 64, dtype=torch.uint8)
    for shape in ((48, 48), (32, 32), (20, 31)):
        shrink = shape[0] < 32
        large = F.interpolate(raw, size=shape, mode="bilinear", antialias=shrink)
        expected = torch.where(large.isfinite(), to_metres(large, output, 10.0), torch.nan)[:, 0]
        answered = labeller._answer(batch, (64, 64), shape)
        assert np.array_equal(answered.numpy(), expected.numpy(), equal_nan=True)
        answer = labeller.submit(batch, (64, 64), shape, turn=round_to_millimetres).result()
        assert answer.finite.tolist() == [False, False, True]
        mean = (expected + expected.flip(-1)) / 2
        assert (answer.labels[2] == to_millimetres(mean[2].numpy())).all()
        assert np.isfinite(answer.flip_error).tolist() == [False, False, True]


@pytest.mark.gpu
@pytest.mark.parametrize("options", [{}, {"check_flip": True, "average_flip": True}])
def test_on_a_gpu_answers_are_those_of_the_cpu(weights: Path, options: dict[str, bool]):
    """In float32, to rounding; several batches are submitted before the first answer is asked for."""
    labellers_of = [
        make_labellers(LabelOptions(weights=weights, precision="float32", **options), [torch.device(name)])[0]
        for name in ("cpu", "cuda")
    ]
    images = [np.stack([draw_background(n + k, 64, 96) for n in range(3)]) for k in range(4)]
    answers = []
    for labeller in labellers_of:
        batches = [labeller.pin(labeller.prepare(image)) for image in images]
        pending = [labeller.submit(batch, (64, 96), (64, 96), round_to_millimetres) for batch in batches]
        answers.append([each.result() for each in pending])
    for ours, theirs in zip(*answers, strict=True):
        assert ours.labels.dtype == theirs.labels.dtype == np.uint16
        assert np.abs(ours.labels.astype(int) - theirs.labels).max() <= 5
        assert theirs.finite.all()
        assert (theirs.flip_error is None) == (not options)


@pytest.mark.gpu
def test_what_is_not_finite_is_seen_on_a_gpu(weights: Path):
    """Though millimetres cannot say so."""
    model = load_depth_model(weights)
    torch.nn.init.constant_(model.network.head.bias, torch.inf)
    labeller = DenseDepthLabeller(model, torch.device("cuda"))
    batch = labeller.prepare(np.zeros((2, 64, 64, 3), np.uint8))
    assert not labeller.submit(batch, (64, 64), (48, 48), round_to_millimetres).result().finite.any()
