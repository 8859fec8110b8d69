"""The manifest of a corpus: its schema, its own hash, and those of earlier versions."""

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.corpora import earlier_manifest

from dsgen.corpus.build import Parameters, composite
from dsgen.corpus.corpus import Corpus
from dsgen.corpus.manifest import MAX_POSITIONS, MAX_SIZE, encode_manifest, parse_manifest, record_heights
from dsgen.errors import DamagedError, DsgenError, InvalidValueError, SeveralErrors
from dsgen.io.people import Person


def test_the_manifest_has_its_own_hash(corpus: Path):
    """It is that of the file with an empty string in its place, as sed and sha256sum compute it."""
    content = (corpus / "corpus.json").read_bytes()
    empty = re.sub(rb'"manifest_sha256": ".*"', b'"manifest_sha256": ""', content)
    assert list(json.loads(content).items())[-1] == ("manifest_sha256", hashlib.sha256(empty).hexdigest())
    assert encode_manifest(parse_manifest(content, "corpus.json")) == content


@pytest.mark.parametrize(
    ("old", "new"), [('"room0"', '"room9"'), ("\n  ", "\n   "), ("validation", "test"), ('": ', '":')]
)
def test_every_change_is_refused(tmp_path: Path, corpus: Path, old: str, new: str):
    """Names, splits, even spaces: the hash of the file is part of every store that is packed from it."""
    path = Path(shutil.copytree(corpus, tmp_path / "c"))
    text = (path / "corpus.json").read_text()
    assert old in text
    (path / "corpus.json").write_text(text.replace(old, new, 1))
    with pytest.raises(DamagedError, match=r"changed or damaged.*; remove it and run dsgen composite with the same"):
        Corpus(path)


def test_manifests_of_earlier_versions_open(tmp_path: Path, corpus: Path):
    """Without a hash of itself, and without those of plan and sources."""
    path = Path(shutil.copytree(corpus, tmp_path / "c"))
    for changes in ({}, {"sha256": None}):
        (path / "corpus.json").write_bytes(earlier_manifest(path, **changes))
        opened = Corpus(path)
        assert (opened.render(opened.plan[:4])[0] == Corpus(corpus).render(opened.plan[:4])[0]).all()


def test_keys_of_later_versions_are_kept(corpus: Path):
    """They are covered by the hash."""
    manifest: Any = parse_manifest((corpus / "corpus.json").read_bytes(), "corpus.json")
    later = manifest | {"groups": [1], "parameters": manifest["parameters"] | {"split_by": "both"}}
    assert parse_manifest(encode_manifest(later), "corpus.json")["parameters"]["split_by"] == "both"  # type: ignore[typeddict-item]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected JSON"),
        (b"[]", "damaged"),
        (b"[" * 200_000, "expected JSON"),
        (b'{"format":' * 200_000, "expected JSON"),
        (b"\xff\xfe", "damaged"),
        (b"null", "damaged"),
        (b'{"format": 1}', "rows is missing"),
        (b'{"format": "1"}', 'format: got "1"'),
        (b'{"format": 3}', "format 3, expected 1 or 2; use the dsgen that made it"),
    ],
)
def test_a_manifest_that_is_none_is_refused(tmp_path: Path, corpus: Path, content: bytes, message: str):
    """One line with the file and a remedy, when it is opened and when the corpus is made again."""
    path = Path(shutil.copytree(corpus, tmp_path / "c"))
    (path / "corpus.json").write_bytes(content)
    for use in (lambda: Corpus(path), lambda: composite(path)):
        with pytest.raises(DsgenError, match=re.escape(message)) as caught:
            use()
        assert str(caught.value).startswith(f"{path / 'corpus.json'}: ")
        assert caught.value.remedy
        assert "\n" not in str(caught.value)


def test_the_schema_has_the_bounds_of_the_parameters(corpus: Path):
    """What `composite` refuses, a manifest cannot hold; what it accepts, it can."""
    manifest: Any = parse_manifest((corpus / "corpus.json").read_bytes(), "corpus.json")
    for name, value in {
        "positions": MAX_POSITIONS + 1,
        "label_size": 97,
        "fg_height": 49,
        "quality": 101,
        "validation_share": 1,
        "test_share": -0.1,
    }.items():
        values = manifest["parameters"] | {name: value}
        with pytest.raises((InvalidValueError, SeveralErrors), match="expected"):
            Parameters(**values).check()
        with pytest.raises(DamagedError):
            parse_manifest(encode_manifest(manifest | {"parameters": values}), "corpus.json")
    largest = {"size": MAX_SIZE, "label_size": MAX_SIZE, "quality": 100, "validation_share": 0}
    Parameters(**(manifest["parameters"] | largest)).check()
    parse_manifest(encode_manifest(manifest | {"parameters": manifest["parameters"] | largest}), "corpus.json")


def test_heights_are_recorded_where_they_are_wanted(corpus: Path):
    """In metres, with where they are from; what is no height or class is refused."""
    manifest: Any = parse_manifest((corpus / "corpus.json").read_bytes(), "corpus.json")
    people = [Person(1.8, "csv", "person"), Person(0.2, "assumed", "person"), Person(3, "csv", "person")]
    record_heights(manifest["foregrounds"], people)
    manifest["foregrounds"][0]["class"] = "chair"
    read = parse_manifest(encode_manifest(manifest), "corpus.json")["foregrounds"]
    assert [(record["height_m"], record["height_from"]) for record in read] == [
        (1.8, "csv"),
        (0.2, "assumed"),
        (3, "csv"),
    ]
    assert read[0]["class"] == "chair"
    for key, value in (("height_m", 0.1), ("height_m", "1.7"), ("height_from", "guess"), ("class", ""), ("class", 1)):
        foreground = manifest["foregrounds"][0] | {key: value}
        with pytest.raises(DamagedError, match=key):
            parse_manifest(encode_manifest(manifest | {"foregrounds": [foreground]}), "corpus.json")
