"""JSON files read against a schema: what fits stays as it is, what does not is named."""

from typing import Annotated, Any, NotRequired

import pytest
from annotated_types import Ge, Le
from typing_extensions import TypedDict

from dsgen.errors import DamagedError
from dsgen.io.json_files import encode_json, parse_as, parse_json, read_as


class Entry(TypedDict):
    """One entry of the file."""

    name: str


class Content(TypedDict):
    """The file."""

    rows: Annotated[int, Ge(0), Le(100)]
    entries: list[Entry]
    seed: NotRequired[int]


GOOD: dict[str, Any] = {"rows": 3, "entries": [{"name": "a"}, {"name": "b"}], "more": {"kept": [1, None]}}


def test_what_fits_stays_a_dictionary_with_all_its_keys(tmp_path):
    """Keys that the schema does not name are kept."""
    (tmp_path / "file.json").write_bytes(encode_json(GOOD))
    assert read_as(Content, tmp_path / "file.json") == GOOD


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"rows": "3"}, 'rows: got "3", expected a valid integer'),
        ({"rows": True}, "rows: got true, expected a valid integer"),
        ({"rows": 3.0}, "rows: got 3.0, expected a valid integer"),
        ({"rows": -1}, "rows: got -1, expected greater than or equal to 0"),
        ({"rows": 10**30}, "rows: got 1000000000000000000000000000000, expected less than or equal to 100"),
        ({"entries": {"name": "a"}}, "entries: got an object of 1, expected a valid array"),
        ({"entries": [{"name": "a"}, {}]}, "entries.1.name is missing"),
        ({"seed": None}, "seed: got null, expected a valid integer"),
    ],
)
def test_a_value_that_does_not_fit_is_named_with_its_rule(change, named):
    """The message has the key, the value, the rule and the remedy; no type is converted."""
    with pytest.raises(DamagedError) as raised:
        parse_as(Content, encode_json(GOOD | change), "file.json", "make it again")
    assert str(raised.value) == f"file.json: damaged, {named}; make it again"


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 200_000, b'{"rows": 1} x', b"\xff\xfe", b"1e999999x"])
def test_what_is_no_json_is_one_damaged_file(content):
    """Empty, cut, deeply nested, binary: one line that names the file."""
    for parse in (lambda: parse_json(content, "file.json"), lambda: parse_as(Content, content, "file.json")):
        with pytest.raises(DamagedError, match=r"^file\.json: damaged, expected JSON \(.*\); restore it"):
            parse()


@pytest.mark.parametrize("content", [b"[]", b"null", b"7", b'"text"'])
def test_json_of_another_kind_is_refused(content):
    """A list, a number or a text where an object is expected."""
    with pytest.raises(DamagedError, match=r"^file\.json: damaged, content: got .*, expected an object"):
        parse_as(Content, content, "file.json")


def test_many_faults_are_counted():
    """A message names three faults and counts the others."""
    with pytest.raises(DamagedError, match=r"entries\.2\.name is missing and 7 more"):
        parse_as(Content, encode_json(GOOD | {"entries": [{}] * 10}), "file.json")
