"""The line that each command ends with: one line, thousands separated, units named."""

from pathlib import Path
from typing import Any

import pytest

from dsgen.store.packing import PackResult

from .conftest import Run, Stages, changed

SPLITS = "1,000 train, 200 validation, 0 test, 34 unused"
LINES = [
    (
        ("composite",),
        f"corpus: 1,234 composites of 1 background and 2 foregrounds ({SPLITS}, 3% of all: their two pictures are in "
        "different splits, see --skip-unused and --split-by); 1,000 drawn now, 234 already existed",
    ),
    (
        ("depth",),
        "corpus: 1,234 depth labels; 1,200 labelled now at 1,234.5 images/s by DenseDepth on cpu, 34 already existed",
    ),
    (("depth", "pictures"), "out: 1,200 pictures labelled now by DenseDepth, 34 already existed, 0 failed"),
    (
        ("pack",),
        "shards: 1,234 rows in 6 shards, with depth, 12.3 MB (10,915 image bytes a row); 1,000 packed now, "
        "234 already existed",
    ),
    (
        ("pack", "--recipe", "--max-flip-error", "0.2"),
        "shards: 1,234 rows in 6 shards, with depth, 12.3 MB (a recipe), 12 left out of the splits; 1,000 packed now, "
        "234 already existed",
    ),
    (
        ("export", "shards", "tars"),
        "tars: 1,200 rows (1,000 train, 200 validation) in 2 webdataset files, 12.3 MB; 1,000 exported now, "
        "200 already existed",
    ),
    (
        ("export", "run", "model.onnx"),
        "model.onnx: 8.7 MB, opset 18, from run/checkpoints/best.pt; differs from torch by at most mask_probability "
        "1e-06, depth_m 2e-05 on 4 batches (torch 2, onnx 1, onnxruntime 1)",
    ),
    (
        ("train",),
        "run: best epoch 3, unseen backgrounds and foregrounds at 192 px: mask IoU 0.900 (all-zero 0.000), Dice 0.950, "
        "BCE 0.0100",
    ),
    (
        ("predict", "run", "shots"),
        "shots_predictions: mask and depth of 1,200 pictures predicted at 192 px, 34 already existed, 0 failed "
        "(run/checkpoints/best.pt)",
    ),
    (("evaluate",), "run/evaluation: scores.json, rows.csv, backgrounds.csv, foregrounds.csv, worst.png"),
    (("preview",), "preview.png"),
    (("report",), "report.html: 400,000 rows of shards, pixels of 1,000 counted, 1.2 MB"),
    (
        ("view", "shards", "--export", "page"),
        "page: 1,234 files, 12.3 MB, 34 already existed; put the folder on a web server or into a bucket",
    ),
    (("train-depth", "frames"), "depth.safetensors: scores on held-out rooms: abs_rel 0.1234, delta1 0.5"),
    (
        ("weights", "convert", "nyu.h5", "nyu.safetensors"),
        "nyu.safetensors: 42,816,089 parameters in 123 arrays, for depths up to 10 m, SHA-256 0123456789ab",
    ),
    (("verify", "shards"), "shards: no findings; 10 files, 1.0 MB read in 0.5 s (0.00 GB/s)"),
]


@pytest.mark.parametrize(("arguments", "line"), LINES, ids=[" ".join(case[0]) for case in LINES])
def test_result_line(arguments: tuple[str, ...], line: str, run: Run, stages: Stages, tmp_path: Path):
    """It is the last on stdout, and but for tables the only one."""
    (tmp_path / "pictures").mkdir()
    done = run(*arguments, "-q")
    assert (done.code, done.err) == (0, ""), done.err
    assert done.out == ("a table\n" if arguments == ("evaluate",) else "") + line + "\n"


def change(stages: Stages, name: str, **values: Any) -> None:
    """Let a stage answer otherwise."""
    stages.results[name] = changed(stages.results[name], **values)


def test_labels_without_metres(run: Run, stages: Stages):
    """They are called what they are, and a run that had nothing to do has no rate."""
    name = "dsgen.depth.label_corpus.label_corpus"
    change(stages, name, kind="inverse", labelled=0, pictures_per_second=None)
    assert run("depth").out == (
        "corpus: 1,234 relative labels (inverse depth, not in metres); 0 labelled now by DenseDepth on cpu, "
        "34 already existed\n"
    )


def test_a_store_that_other_parts_finish(run: Run, stages: Stages):
    """The line says so, and the facts that are not known yet are null."""
    stages.results["dsgen.store.packing.pack_source"] = PackResult("shards", rows=10, packed=1000, finished=False)
    done = run("pack", "--part", "1/2")
    assert done.out == "shards: 1,000 rows packed now; other parts are not finished yet\n"
    told = run("pack", "--part", "1/2", "--json").json
    assert (told["finished"], told["shards"]) == (False, None)


def test_one_process_of_several_speaks(run: Run, stages: Stages, monkeypatch: pytest.MonkeyPatch):
    """Under torchrun the others print nothing."""
    monkeypatch.setattr("dsgen.training.ranks.is_first", lambda: False)
    done = run("train", "-q")
    assert (done.code, done.out) == (0, "")


def test_the_bundled_pictures(run: Run):
    """The real thing, with no folder named: three commands, three results on stdout."""
    made = run("composite", "--max-backgrounds", 2, "--max-foregrounds", 2, "--positions", 3, "--jobs", 1)
    assert made.code == 0, made.err
    assert made.out.startswith("corpus: 24 composites of 2 backgrounds and 2 foregrounds")
    assert made.out.count("\n") == 1
    told = run("info", "corpus")
    assert told.code == 0
    assert "24" in told.out
    shown = run("preview", "corpus", "--count", 4)
    assert (shown.code, shown.out) == (0, "preview.png\n")
    assert Path("preview.png").stat().st_size > 1000
    assert not list(Path().rglob("*.partial"))
