"""The whole job on small pictures, by the commands and with the real stages."""

import json
from pathlib import Path

import pytest

from .conftest import Done, Run

TINY = ("--epochs", 1, "--sizes", 32, "--width", 4, "--batch-size", 4, "--epoch-samples", 8, "--validation-samples", 4)


@pytest.fixture
def work(run: Run) -> Run:
    """Run a command that must succeed, in words and as JSON, which say the same."""

    def work(*arguments: object) -> Done:
        for extra in ((), ("--json",)):
            done = run(*arguments, *extra)
            assert done.code == 0, done.err
            assert done.out.count("\n") == 1, done.out
        assert done.json
        return done

    return work


def test_label(work: Run, run: Run, corpus: Path, pictures: Path, weights: Path):
    """A corpus and a folder; what exists is counted."""
    import shutil

    shutil.copytree(corpus, "c")
    done = work("depth", "c", "--weights", weights, "--device", "cpu", "--jobs", 1)
    assert (done.json["labelled"], done.json["already_there"], done.json["kind"]) == (0, 72, "metric")
    folder = pictures / "backgrounds"
    options = ("--weights", weights, "--device", "cpu", "--out", "labels", "--format", "npy")
    assert work("depth", folder, *options).json["already_there"] == 3
    assert len(list(Path("labels").rglob("*.npy"))) == 3
    scored = run("evaluate-depth", "labels", "labels", "--json")
    assert scored.code == 0, scored.err
    assert scored.json["pictures"] == 3
    assert "delta1" in run("evaluate-depth", "labels", "labels").out


def test_pack_train_and_use(work: Run, run: Run, labelled_corpus: Path):
    """From the store to predictions; a run's own record makes a second run with the same settings."""
    packed = work("pack", labelled_corpus, "--shards", 2, "--jobs", 1)
    assert (packed.json["rows"], packed.json["already_there"], packed.json["finished"]) == (72, 72, True)
    other = run("pack", labelled_corpus, "--shards", 3, "--recipe", "--jobs", 1)
    assert other.code == 1
    assert [line.split(" (")[0] for line in other.err.splitlines()[1:]] == ["  shards 3", "  recipe True"], other.err
    assert work("train", *TINY, "--device", "cpu", "--workers", 0).json["run"] == "run"
    again = run("train", "--run", "two", "--config", "run/config.json", "--device", "cpu", "--workers", 0, "--json")
    assert again.code == 0, again.err
    records = [json.loads(Path(name, "config.json").read_text()) for name in ("run", "two")]
    assert records[0] == records[1]
    assert records[0]["settings"]["epoch_samples"] == 8
    scored = run("evaluate", "run", "shards", "--device", "cpu", "--workers", 0, "--json")
    assert scored.code in (0, 1), scored.err  # eight samples teach little
    assert Path(scored.json["out"], "scores.json").is_file()
    predicted = work("predict", "run", labelled_corpus / "bg_fg/bg001", "--out", "p", "--device", "cpu")
    assert (predicted.json["predicted"], predicted.json["already_there"]) == (0, 24)
    exported = work("export", "shards", "tars", "--split", "train", "--jobs", 1)
    assert exported.json["exported"] == 0 < exported.json["already_there"]
    assert work("verify", "shards", "--corpus", labelled_corpus, "--jobs", 1).json["rows"] == 72
    assert work("repair", "shards", "--corpus", labelled_corpus, "--jobs", 1).json["remaining"] == []
    assert work("preview", "shards", "--count", 1).json["out"] == "preview.png"
    assert run("info", "shards", "--json").json
