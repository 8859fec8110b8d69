"""`--json`: one object on stdout, whatever happens, and nothing else there."""

import json
from pathlib import Path

import pytest

from dsgen.cli.results import as_dict
from dsgen.integrity.findings import Finding, RepairResult, VerifyReport

from .conftest import Run, Stages

REPORTING = [
    ("composite",),
    ("depth",),
    ("depth", "pictures"),
    ("evaluate-depth", "predicted", "truth"),
    ("pack",),
    ("pack", "--images", "rgb"),
    ("export", "shards", "tars"),
    ("export", "run", "model.onnx"),
    ("train",),
    ("evaluate",),
    ("predict", "run", "shots"),
    ("info",),
    ("preview",),
    ("report",),
    ("view", "shards", "--export", "page"),
    ("verify",),
    ("repair", "shards"),
    ("train-depth", "frames"),
    ("weights", "convert", "nyu.h5", "nyu.safetensors"),
]


@pytest.mark.parametrize("arguments", REPORTING, ids=" ".join)
def test_every_command_reports_one_object(arguments: tuple[str, ...], run: Run, stages: Stages, tmp_path: Path):
    """Its facts are those of the stage's result; what a stage prints goes elsewhere."""
    (tmp_path / "pictures").mkdir()
    done = run(*arguments, "--json")
    assert done.code == 0, done.err
    ((stage, _, _),) = stages.calls
    assert f"{stage} is at work" in done.err
    for name, value in json.loads(json.dumps(as_dict(stages.results[stage]), default=str)).items():
        assert done.json[name] == (None if value != value else value), name
    assert done.json


def test_numbers_stay_numbers(run: Run):
    """Of the real thing: a small corpus."""
    done = run(
        "composite", "small", "--positions", 1, "--max-backgrounds", 2, "--max-foregrounds", 1, "--jobs", 1, "--json"
    )
    assert done.code == 0, done.err
    assert done.json["corpus"] == "small"
    assert (done.json["rows"], done.json["drawn"], sum(done.json["splits"].values())) == (4, 4, 4)
    told = run("info", "small", "--json").json
    assert (told["path"], told["rows"]) == ("small", 4)
    assert run("preview", "small", "--count", 2, "--json").json == {"out": "preview.png", "rows": [2, 3]}
    assert run("verify", "small", "--json", "--jobs", 1).json["findings"] == []


def test_findings_are_objects(run: Run, stages: Stages):
    """Of `verify`, and what `repair` could not put right; the exit code says that there are some."""
    report = VerifyReport("shards", "store", (Finding("a/b", "missing"),), ("a note",))
    stages.results["dsgen.integrity.verify.verify"] = report
    stages.results["dsgen.integrity.repair.repair"] = RepairResult("shards", 1, after=report)
    for arguments, name in ((("verify", "shards"), "findings"), (("repair", "shards"), "remaining")):
        done = run(*arguments, "--json")
        assert done.code == 1
        assert done.json[name] == [{"file": "a/b", "what": "missing"}]


@pytest.mark.parametrize(
    ("arguments", "code", "error"),
    [
        (
            ("info", "nowhere"),
            1,
            {
                "type": "NotFoundError",
                "what": "nowhere",
                "reason": "no such folder, expected a corpus or a store",
            },
        ),
        (
            ("composite", "--positions", 0),
            2,
            {"type": "InvalidValueError", "what": "--positions", "reason": "got 0, expected 1 to 65535", "remedy": ""},
        ),
        (("composite", "--positions", "many"), 2, {"type": "UsageError", "what": "--positions"}),
        (("composite", "--bogus"), 2, {"type": "UsageError", "what": "--bogus"}),
        (("predict", "run"), 2, {"type": "UsageError", "remedy": "see dsgen predict --help"}),
        (("nonsense",), 2, {"type": "UsageError", "what": "dsgen", "remedy": "see dsgen --help"}),
    ],
)
def test_errors_are_objects(arguments: tuple[object, ...], code: int, error: dict[str, str], run: Run):
    """On stdout; people still find the message on stderr."""
    done = run(*arguments, "--json")
    assert done.code == code
    assert list(done.json) == ["error"]
    described = done.json["error"]
    assert {"type", "what", "reason", "remedy"} == set(described)
    assert described.items() >= error.items()
    assert done.err
    plain = run(*arguments)
    assert (plain.code, plain.out, plain.err) == (code, "", done.err)


def test_errors_within_errors(run: Run, corpus: Path):
    """Several errors are listed, and so are the differences of a conflict."""
    several = run("composite", "--positions", 0, "--quality", 0, "--json")
    assert several.code == 2
    assert [each["what"] for each in several.json["error"]["errors"]] == ["--positions", "--quality"]
    other = run("composite", corpus, "--config", corpus / "corpus.json", "--seed", 7, "--json")
    assert other.code == 1
    assert {"name": "--seed", "now": 7, "was": 0} in other.json["error"]["differences"]


def test_an_interrupt_is_an_object(run: Run, monkeypatch: pytest.MonkeyPatch):
    """Exit code 130, and how to resume."""

    def stop(path: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("dsgen.views.info.describe", stop)
    done = run("info", "--json")
    assert (done.code, done.json["error"]["type"]) == (130, "Interrupted")
    assert done.json["error"]["remedy"] == "run the same command again to resume"
