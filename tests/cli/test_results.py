"""Results as JSON and as words."""

import io
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from dsgen.cli.results import as_dict, counts, describe_error, megabytes, plural, to_json
from dsgen.errors import DsgenError


@dataclass(frozen=True)
class Result:
    """A stage's result."""

    out: Path
    rows: int


def test_results_of_all_kinds_have_fields():
    """Dataclasses, dicts, and objects with `as_dict`."""

    class Scores:
        def as_dict(self) -> dict[str, int]:
            return {"rows": 3}

    assert as_dict(Result(Path("a"), 3)) == as_dict({"out": Path("a"), "rows": 3}) == {"out": Path("a"), "rows": 3}
    assert as_dict(Scores()) == {"rows": 3}


def test_json_takes_what_results_hold():
    """Paths, tuples, numbers of numpy, and what JSON has no word for."""
    values = {
        "path": Path("a/b"),
        "answers": ("mask", "depth"),
        "count": np.int64(3),
        "share": np.float32(0.5),
        "yes": np.bool_(True),
        "nested": {"nan": math.nan, "list": [math.inf, None, "ü"]},
        1: True,
    }
    text = to_json(values)
    assert "\n" not in text
    assert json.loads(text) == {
        "path": "a/b",
        "answers": ["mask", "depth"],
        "count": 3,
        "share": 0.5,
        "yes": True,
        "nested": {"nan": None, "list": [None, None, "ü"]},
        "1": True,
    }


def test_an_error_is_described_by_its_fields():
    """Its type, and the three things it says."""
    assert describe_error(DsgenError("a.png", "broken", "replace it")) == {
        "type": "DsgenError",
        "what": "a.png",
        "reason": "broken",
        "remedy": "replace it",
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (counts({"train": 1000, "test": 0}), "1,000 train, 0 test"),
        (megabytes(12_345_678), "12.3 MB"),
        (plural(1, "shard"), "1 shard"),
        (plural(1200, "shard"), "1,200 shards"),
    ],
)
def test_words(text: str, expected: str):
    """Thousands have separators, units a name."""
    assert text == expected


@pytest.mark.parametrize(("encoding", "text"), [("utf-8", "caf\u00e9"), ("ascii", "caf\u00e9"), ("utf-8", "caf\udce9")])
def test_any_name_is_json(monkeypatch: pytest.MonkeyPatch, encoding: str, text: str):
    """Whatever stdout can print; bytes that are no text become JSON's escapes."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    line = to_json({"out": Path(text)})
    stream.write(line)
    assert json.loads(line) == {"out": text}
