"""JSON files of corpora and stores: indented, with the keys in the order given, and checked against a schema when read.

A schema is a `TypedDict`, whose keys may be `NotRequired` and whose values may have bounds, as in
`Annotated[int, Ge(1), Le(65535)]`. Each stands beside what writes the file. What was read stays a dictionary, and keys
that the schema does not name are kept.
"""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import TypeAdapter, ValidationError

from dsgen.errors import DamagedError
from dsgen.io.regular_files import regular

T = TypeVar("T")
_REMEDY = "restore it or recreate it"
_SHOWN = 3  # faults that a message names
_SHOWN_LENGTH = 60  # characters of a value that a message shows


def encode_json(value: Any) -> bytes:
    """Encode JSON as in every file of a corpus or store: indented, UTF-8, with the keys in the order given."""
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def read_json(path: Path) -> Any:
    """Read a JSON file without a schema; raise `DamagedError` if it does not parse."""
    return parse_json(regular(path).read_bytes(), path)


def parse_json(content: bytes, name: Path | str) -> Any:
    """Parse JSON without a schema; raise `DamagedError` with the file's `name` if it does not parse."""
    return parse_as(Any, content, name)


def read_as(schema: type[T], path: Path, remedy: str = _REMEDY) -> T:
    """Read a JSON file of a schema; raises as `parse_as`."""
    return parse_as(schema, regular(path).read_bytes(), path, remedy)


def parse_as(schema: type[T], content: bytes, name: Path | str, remedy: str = _REMEDY) -> T:
    """Parse JSON of a schema.

    Raises `DamagedError` with the file's `name`, the keys at fault and `remedy` if it does not parse or does not fit.
    No type is converted to another, keys stay in the order of the file, and nesting is bounded.
    """
    try:
        _adapter(schema).validate_json(content, strict=True, extra="allow")
        value: T = _adapter(Any).validate_json(content)  # pydantic puts the keys of the schema first
    except ValidationError as error:
        raise DamagedError(name, _describe(error), remedy) from None
    return value


def check_as(schema: type[T], value: Any, name: Path | str, remedy: str = _REMEDY) -> T:
    """Check what was read already, such as a part of a JSON file; raises as `parse_as`."""
    try:
        _adapter(schema).validate_python(value, strict=True, extra="allow")
    except ValidationError as error:
        raise DamagedError(name, _describe(error), remedy) from None
    return cast(T, value)


_adapter: Callable[[Any], TypeAdapter[Any]] = cache(TypeAdapter)


def _describe(error: ValidationError) -> str:
    """Say what is wrong in a line: `damaged, rows: got "x", expected a valid integer`."""
    faults = []
    for fault in error.errors(include_url=False, include_context=False)[:_SHOWN]:
        if fault["type"] == "json_invalid":
            return f"damaged, expected JSON ({fault['msg'].removeprefix('Invalid JSON: ')})"
        where = ".".join(map(str, fault["loc"])) or "content"
        rule = fault["msg"].removeprefix("Input should be ")
        if fault["type"] == "missing":
            faults.append(f"{where} is missing")
        else:
            faults.append(f"{where}: got {_shorten(fault['input'])}, expected {rule}")
    more = error.error_count() - len(faults)
    return "damaged, " + ", ".join(faults) + (f" and {more:,} more" if more > 0 else "")


def _shorten(value: Any) -> str:
    if isinstance(value, dict | list):
        return f"{'an object' if isinstance(value, dict) else 'an array'} of {len(value):,}"
    if isinstance(value, int) and value.bit_length() > 8 * _SHOWN_LENGTH:  # Python refuses to write very long numbers
        return f"a number of {value.bit_length():,} bits"
    if not isinstance(value, str | int | float | None):
        return f"a {type(value).__name__}"
    text = json.dumps(value[: 2 * _SHOWN_LENGTH] if isinstance(value, str) else value, ensure_ascii=False)
    return text if len(text) <= _SHOWN_LENGTH else text[:_SHOWN_LENGTH] + "..."
