"""Labellers: memory that runs out, foreign models, functions, options that contradict."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.corpora import draw_background

from dsgen.corpus.labels import METRIC
from dsgen.depth.labellers import (
    FunctionLabeller,
    Labeller,
    LabelOptions,
    TransformersLabeller,
    make_labellers,
    state_sha256,
)
from dsgen.errors import DsgenError, InvalidValueError

CPU = torch.device("cpu")


class Greedy(Labeller):
    """Has room for three pictures at a time."""

    name, sha256, room = "greedy", "0", 3

    def _answer(self, batch: torch.Tensor, source: Any, shape: Any) -> torch.Tensor:  # noqa: ARG002
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
