"""Results of commands: a line for people, and the same facts as JSON for scripts."""

import dataclasses
import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dsgen.errors import ConflictError, DsgenError, SeveralErrors
from dsgen.secrets import hide_secrets


@dataclass(frozen=True)
class Reply:
    """The result of a command.

    `text` is printed on stdout for people, its last line the result line; with `--json` it is `values`. `problems`
    and `notes` go to stderr, a line each. `failed` makes the exit code 1.
    """

    text: str
    values: Mapping[str, Any]
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    failed: bool = field(default=False)


def as_dict(result: Any) -> dict[str, Any]:
    """Return the fields of a stage's result by name, whether it is a dataclass or a dict."""
    if hasattr(result, "as_dict"):
        return dict(result.as_dict())
    if dataclasses.is_dataclass(result) and not isinstance(result, type):
        return dataclasses.asdict(result)
    return dict(result)


def to_json(values: Any) -> str:
    """Encode values as one line of JSON.

    Paths become strings, nan and infinity, which JSON lacks, null. Secrets of URLs are hidden, and characters
    that stdout cannot print become JSON's own escapes.
    """
    plain = _plain(values)
    text = json.dumps(plain, allow_nan=False, ensure_ascii=False)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return json.dumps(plain, allow_nan=False)
    return text


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "item"):  # a number of numpy or torch
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, int) else hide_secrets(str(value))


def describe_error(error: DsgenError) -> dict[str, Any]:
    """Return an error as the object that scripts get: type, what, reason and remedy, and the errors it consists of."""
    described: dict[str, Any] = {"type": type(error).__name__, "what": error.what, "reason": error.reason}
    described["remedy"] = error.remedy
    if isinstance(error, ConflictError):
        described["differences"] = [dataclasses.asdict(difference) for difference in error.differences]
    if isinstance(error, SeveralErrors):
        described["errors"] = [describe_error(each) for each in error.errors]
    return described


def counts(numbers: Mapping[str, int]) -> str:
    """Write counts by name in a line: `1,000 train, 100 validation`."""
    return ", ".join(f"{count:,} {name}" for name, count in numbers.items())


def megabytes(nbytes: int) -> str:
    """Write a number of bytes in megabytes."""
    return f"{nbytes / 1e6:,.1f} MB"


def plural(count: int, noun: str) -> str:
    """Write a count with its noun: `1 shard`, `1,200 shards`."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")
