"""The program run in this process, as a user would run it, and stages that do nothing but say they did."""

import dataclasses
import json
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dsgen.cli.app import main
from dsgen.corpus.build import CompositeResult
from dsgen.corpus.composed import ComposedResult
from dsgen.depth.fit import TrainDepthResult
from dsgen.depth.label_corpus import LabelResult
from dsgen.depth.label_folder import FolderLabelResult
from dsgen.depth.score import DepthEvaluation
from dsgen.depth.weights import ConvertedWeights
from dsgen.evaluation.evaluate import EvaluationResult
from dsgen.evaluation.onnx import OnnxResult
from dsgen.evaluation.predict import PredictResult
from dsgen.store.export.export import ExportResult
from dsgen.store.packing import PackResult
from dsgen.training.fit import TrainResult
from dsgen.views.info import CorpusInfo
from dsgen.views.preview import PreviewResult
from dsgen.views.report import ReportResult
from dsgen.views.static import StaticPage


@dataclass(frozen=True)
class Done:
    """What a run of the program left: its exit code, and what it printed."""

    code: Any
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The one JSON object on stdout."""
        assert self.out.count("\n") == 1, self.out
        return json.loads(self.out)


Run = Callable[..., Done]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run the program in an empty folder; this process need not load torch each time."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")

    def run(*arguments: object) -> Done:
        logger = logging.getLogger("dsgen")
        monkeypatch.setattr(logger, "handlers", [])
        monkeypatch.setattr(logger, "propagate", logger.propagate)
        monkeypatch.setattr(sys, "argv", ["dsgen", *map(str, arguments)])
        with pytest.raises(SystemExit) as leaving:
            main()
        return Done(leaving.value.code, *capfd.readouterr())

    return run


SPLITS = {"train": 1000, "validation": 200, "test": 0, "unused": 34}
BEST = {"epoch": 3.0, "size": 192.0, "iou": 0.9, "zero_iou": 0.0, "dice": 0.95, "bce": 0.01}
LABELS: dict[str, Any] = {
    "labelled": 1200,
    "already_there": 34,
    "model": "DenseDepth",
    "device": "cpu",
    "fov_assumed": 0,
}
# what the stages answer, by module and name
RESULTS: dict[str, Any] = {
    "dsgen.corpus.build.composite": CompositeResult(
        corpus=Path("corpus"),
        rows=1234,
        backgrounds=1,
        foregrounds=2,
        drawn=1000,
        already_there=234,
        left=0,
        splits=SPLITS,
    ),
    "dsgen.depth.label_corpus.label_corpus": LabelResult(
        corpus=Path("corpus"),
        rows=1234,
        left=0,
        pictures_per_second=1234.5,
        kind="metric",
        **LABELS,
    ),
    "dsgen.corpus.composed.label_composed": ComposedResult(
        corpus=Path("corpus"), rows=1234, labelled=1200, already_there=34, left=0
    ),
    "dsgen.depth.label_folder.label_folder": FolderLabelResult(folder=Path("in"), out=Path("out"), failed=(), **LABELS),
    "dsgen.store.packing.pack_source": PackResult(
        store="shards",
        rows=1234,
        packed=1000,
        already_there=234,
        finished=True,
        shards=6,
        depth=True,
        left_out=12,
        bytes=12_345_678,
        image_bytes_per_row=10_915,
        splits=SPLITS,
    ),
    "dsgen.store.export.export.export_store": ExportResult(
        out="tars",
        format="webdataset",
        rows=1200,
        files=2,
        exported=1000,
        already_there=200,
        bytes=12_345_678,
        splits={"train": 1000, "validation": 200},
    ),
    "dsgen.evaluation.onnx.export_onnx": OnnxResult(
        out=Path("model.onnx"),
        bytes=8_700_000,
        opset=18,
        checkpoint=Path("run/checkpoints/best.pt"),
        max_difference={"mask_probability": 1e-6, "depth_m": 2e-5},
        compared_on=4,
        torch="2",
        onnx="1",
        onnxruntime="1",
    ),
    "dsgen.training.fit.train": TrainResult(run=Path("run"), best=BEST, learnt_masks=True, epochs=10),
    "dsgen.evaluation.evaluate.evaluate": EvaluationResult(
        out=Path("run/evaluation"),
        run=Path("run"),
        store="shards",
        split="validation",
        size=192,
        rows=200,
        scores={},
        blank=False,
    ),
    "dsgen.evaluation.predict.predict": PredictResult(
        out=Path("shots_predictions"),
        answers=("mask", "depth"),
        predicted=1200,
        already_there=34,
        failed=(),
        checkpoint=Path("run/checkpoints/best.pt"),
        size=192,
        device="cpu",
    ),
    "dsgen.depth.score.evaluate_depth": DepthEvaluation(
        protocol={},
        pictures=15,
        pixels=1000,
        pixels_without_prediction=0,
        resized=0,
        truth_sizes={"480x640": 15},
        mean={"metric": {"delta1": 0.5}},
        edges={"edge_f": 0.5, "edge_accuracy": None},
        pictures_with_edges=15,
        empty=[],
        per_picture=[],
    ),
    "dsgen.depth.fit.train_depth": TrainDepthResult(Path("depth.safetensors"), {"abs_rel": 0.1234, "delta1": 0.5}, {}),
    "dsgen.depth.weights.convert_weights": ConvertedWeights(
        out=Path("nyu.safetensors"),
        activations=2,
        arrays=123,
        parameters=42_816_089,
        width=1664,
        max_depth_m=10.0,
        sha256="0123456789abcdef",
    ),
    "dsgen.views.info.describe": CorpusInfo(
        path="corpus",
        format=1,
        dsgen="0.1.0",
        rows=1234,
        backgrounds=1,
        foregrounds=2,
        positions=20,
        flip=True,
        size=224,
        label_size=448,
        fg_height=110,
        seed=0,
        splits=SPLITS,
        drawn_rows=1234,
        depth=None,
        flip_error=None,
    ),
    "dsgen.views.preview.preview": PreviewResult(Path("preview.png"), (3, 7)),
    "dsgen.views.report.report": ReportResult(Path("report.html"), 1_234_567, "shards", 400_000, 1000),
    "dsgen.views.static.export_page": StaticPage(Path("page"), files=1234, bytes=12_345_678, already_there=34),
    "dsgen.views.view.view": None,
}


@dataclass
class Stages:
    """Stages that only note their arguments; `results` is what they return."""

    results: dict[str, Any]
    calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]]

    def only(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of the one call there was."""
        ((_, arguments, options),) = self.calls
        return arguments, options


def changed(result: Any, **values: Any) -> Any:
    """The result of a stage, with other values in some of its fields."""
    return dataclasses.replace(result, **values) if dataclasses.is_dataclass(result) else result | values


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> Stages:
    """Put stages that do nothing, and print as they should not, in place of all others."""
    from dsgen.integrity.findings import RepairResult, VerifyReport

    checks = {
        "dsgen.integrity.verify.verify": VerifyReport("shards", "store", files=10, bytes=10**6, seconds=0.5),
        "dsgen.integrity.repair.repair": RepairResult("shards", 1, replaced=("a",)),
    }
    stages = Stages({**RESULTS, **checks}, [])

    def stage(name: str) -> Callable[..., Any]:
        def work(*arguments: Any, **options: Any) -> Any:
            print(f"{name} is at work")
            stages.calls.append((name, arguments, options))
            return stages.results[name]

        return work

    for name in stages.results:
        monkeypatch.setattr(name, stage(name))
    for name in ("dsgen.evaluation.evaluate.EvaluationResult.table", "dsgen.depth.score.DepthEvaluation.table"):
        monkeypatch.setattr(name, lambda _: "a table")
    monkeypatch.setattr(CorpusInfo, "table", lambda _: "a table")
    monkeypatch.setattr("dsgen.integrity.verify.is_store", lambda path: path != "corpus")
    monkeypatch.setattr(
        "dsgen.store.corpus_source.CorpusSource", lambda *arguments, composed: ("corpus", *arguments, composed)
    )
    monkeypatch.setattr("dsgen.store.picture_source.Pictures", lambda *arguments: ("pictures", *arguments))
    return stages
