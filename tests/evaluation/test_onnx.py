"""ONNX: the file gives the network's answers at any batch and size, and says what they mean; or it is not written."""

import builtins
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from support.runs import make_run

from dsgen.errors import DsgenError
from dsgen.evaluation import onnx as exporting
from dsgen.evaluation.onnx import export_onnx, parity_shapes, random_pictures
from dsgen.training.checkpoint import open_trained


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A run, its ONNX file, and the result of the export."""
    folder = tmp_path_factory.mktemp("exported")
    run = make_run(folder / "run")
    result = export_onnx(run, folder / "models/net.onnx")
    return {"run": run, "file": folder / "models/net.onnx", "result": result}


def answers(path: Path, background: torch.Tensor, image: torch.Tensor) -> dict[str, np.ndarray]:
    """Return the answers of ONNX Runtime, by output."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    found = session.run(names, {"background": background.numpy(), "image": image.numpy()})
    return dict(zip(names, found, strict=True))


@pytest.mark.parametrize("shape", [(1, 48, 48), (4, 33, 61), (2, 17, 129), (1, 192, 256), (3, 7, 5)])
def test_the_file_answers_as_the_network(exported: dict[str, Any], shape: tuple[int, int, int]):
    """At batches and sizes it was neither traced nor checked at, including odd and small ones."""
    background, image = random_pictures(*shape, seed=9)
    logits, depth_m = open_trained(exported["run"]).answer(background, image)
    found = answers(exported["file"], background, image)
    assert list(found) == ["mask_probability", "depth_m"]
    np.testing.assert_allclose(found["mask_probability"], logits.sigmoid().numpy(), atol=1e-5)
    np.testing.assert_allclose(found["depth_m"], depth_m.numpy(), atol=1e-4)
    assert depth_m.std() > 1e-3  # not all clipped


def test_the_file_says_what_it_is(exported: dict[str, Any]):
    """Names, types, dynamic dimensions and metadata; it is valid, self-contained, and holds no local path."""
    content = exported["file"].read_bytes()
    model = onnx.load_from_string(content)
    onnx.checker.check_model(model, full_check=True)
    for value, channels in (*((v, 3) for v in model.graph.input), *((v, 1) for v in model.graph.output)):
        kind = value.type.tensor_type
        assert kind.elem_type == onnx.TensorProto.FLOAT
        sides = [side.dim_param or side.dim_value for side in kind.shape.dim]
        assert sides == ["batch", channels, "height", "width"]
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert metadata["checkpoint_sha256"] == open_trained(exported["run"]).sha256
    assert metadata["trained_size"] == "48"
    assert metadata["depth_m"] == "depth in metres, 0.1..10"
    assert "0..1" in metadata["inputs"]
    assert model.opset_import[0].version == 18
    for part in (b"site-packages", b".py", str(Path.cwd()).encode()):
        assert part not in content


def test_the_result_has_differences_and_versions(exported: dict[str, Any]):
    """The differences found, and the versions they were found with, as fields and in the summary."""
    result = exported["result"]
    assert list(result.max_difference) == ["mask_probability", "depth_m"]
    assert 0 <= result.max_difference["mask_probability"] < 1e-5
    assert 0 <= result.max_difference["depth_m"] < 1e-4
    assert result.onnxruntime == onnxruntime.__version__
    assert result.out == exported["file"]
    assert result.bytes == exported["file"].stat().st_size
    assert result.compared_on == len(parity_shapes(48)) >= 4
    assert result.summary().startswith(f"{exported['file']}: ")
    assert f"onnxruntime {onnxruntime.__version__}" in result.summary()
    assert any(height % 2 and width % 2 for _, height, width in parity_shapes(48))
    assert len({batch for batch, _, _ in parity_shapes(48)}) > 1


def test_another_answer_is_refused(exported: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The file of another network, one of another shape, and a damaged file are errors, and nothing is written."""
    content = exported["file"].read_bytes()
    out = tmp_path / "net.onnx"
    out.write_bytes(b"an older one")
    monkeypatch.setattr(exporting, "_encode", lambda *_: content)
    with pytest.raises(DsgenError, match=r"mask_probability of ONNX Runtime differs by .*, expected at most 0.0001"):
        export_onnx(make_run(tmp_path / "other", mask_bias=1.0), out)
    with pytest.raises(DsgenError, match=r"mask_probability of ONNX Runtime is .*, expected \(1, 1, 24, 24\)"):
        export_onnx(make_run(tmp_path / "half", output="half"), out)
    monkeypatch.setattr(exporting, "_encode", lambda *_: content[:1000])
    with pytest.raises(DsgenError, match="ONNX Runtime fails on 1x3x48x48"):
        export_onnx(exported["run"], out)
    assert out.read_bytes() == b"an older one"
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["net.onnx"]


def test_not_a_number_is_no_parity(exported: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A network that answers nan is refused, even where both agree on it."""
    monkeypatch.setattr(exporting, "_compare", lambda *_: [float("nan"), 0.0])
    monkeypatch.setattr(exporting, "_encode", lambda *_: b"")
    with pytest.raises(DsgenError, match="differs by nan"):
        export_onnx(exported["run"], tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("missing", ["onnx", "onnxruntime", "onnxscript"])
def test_missing_packages(exported: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str):
    """Each is named with the extra that installs it."""
    original = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.split(".")[0] == missing:
            raise ModuleNotFoundError(f"No module named {missing!r}", name=missing)
        return original(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(DsgenError, match=rf"{missing}: not installed; pip install 'dsgen\[onnx\]'"):
        export_onnx(exported["run"], tmp_path / "net.onnx")


def test_invalid_arguments_are_refused(exported: dict[str, Any], tmp_path: Path):
    """Another ending, a folder without a run, opsets that do not exist."""
    for opset in (17, 999):
        with pytest.raises(DsgenError, match=rf"opset: got {opset}, expected 18 to \d+; leave it out for 18"):
            export_onnx(exported["run"], tmp_path / "net.onnx", opset=opset)
    with pytest.raises(DsgenError, match=r"net\.pb: expected a name that ends in \.onnx"):
        export_onnx(exported["run"], tmp_path / "net.pb")
    with pytest.raises(DsgenError, match="expected a run"):
        export_onnx(tmp_path, tmp_path / "net.onnx")


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"output": "half", "colour": "grey"},
        {"blocks": "separate"},
        {"encoder": "resnet18"},
        {"encoder": "mobilenetv4_conv_small", "output": "half"},
        {"encoder": "convnext_atto"},
    ],
)
def test_every_variant_can_be_exported(tmp_path: Path, options: dict[str, Any]):
    """Grey, half size, separate blocks and timm's encoders, at sizes that are not multiples of anything."""
    run = make_run(tmp_path / "run", **options)
    result = export_onnx(run, tmp_path / "net.onnx")
    assert result.max_difference["mask_probability"] < 1e-5
    background, image = random_pictures(2, 67, 101, seed=1)
    logits, depth_m = open_trained(run).answer(background, image)
    found = answers(tmp_path / "net.onnx", background, image)
    np.testing.assert_allclose(found["mask_probability"], logits.sigmoid().numpy(), atol=1e-5)
    np.testing.assert_allclose(found["depth_m"], depth_m.numpy(), atol=1e-4)


@pytest.mark.slow
def test_without_trained_depth_the_file_has_a_mask_only(tmp_path: Path):
    """An output that was not trained is left out, and the same run gives the same bytes."""
    run = make_run(tmp_path / "run", depth=False)
    export_onnx(run, tmp_path / "a.onnx")
    export_onnx(run, tmp_path / "b.onnx")
    assert list(answers(tmp_path / "a.onnx", *random_pictures(1, 48, 48, seed=0))) == ["mask_probability"]
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
