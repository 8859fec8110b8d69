"""Options from a file: `--config FILE`, in TOML or JSON, or the record that a run or a corpus keeps of itself.

Names are those of the options, with `-` or `_`; lists stand for values with commas. Options are at the top of the file
or in a section, `[settings]` for a run and `[parameters]` for a corpus, as in the `run/config.json` and `corpus.json`
that dsgen writes. Of such a record only the section is read, and the number of epochs. The command line wins over the
file, and the file over the defaults. Paths are relative to the current folder.
"""

import difflib
import inspect
import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dsgen.errors import DamagedError, InvalidValueError, NotFoundError, option, raise_all, reason_of
from dsgen.io.json_files import parse_json

_RECORD = "dsgen"  # the version that wrote it: only records have it
_OF_RECORDS = ("epochs",)  # what counts of a record beside its section
_RULES = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path"}


def read_config(path: Path, section: str, parameters: Mapping[str, inspect.Parameter]) -> dict[str, Any]:
    """Return values for the parameters of a command by name, as typed on the command line.

    Raises `InvalidValueError` for a file that is neither TOML nor JSON, and for every unknown name and wrong type.
    """
    content = _parse(path)
    inner = content.get(section)
    if isinstance(inner, dict):
        beside = {name: value for name, value in content.items() if name != section}
        if _RECORD in content:
            beside = {name: value for name, value in beside.items() if name in _OF_RECORDS and name in parameters}
        content = beside | inner
    values, errors = {}, []
    for key, value in content.items():
        name = key.replace("-", "_")
        try:
            if name not in parameters:
                raise InvalidValueError(path, f"unknown option {key!r}", _nearest(name, parameters))
            if value is not None:
                values[name] = _typed(path, key, value, parameters[name])
            elif isinstance(parameters[name].default, int):  # "all", which the command line writes as 0
                values[name] = 0
        except InvalidValueError as error:
            errors.append(error)
    raise_all(errors)
    return values


def _parse(path: Path) -> dict[str, Any]:
    readers = {".toml": tomllib.loads, ".json": lambda text: parse_json(text.encode(), path)}
    if path.suffix not in readers:
        raise InvalidValueError("--config", f"got {path}, expected a file that ends in .toml or .json")
    if not path.is_file():
        raise NotFoundError("--config", f"{path}: no such file", "check the path")
    try:
        content = readers[path.suffix](path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, DamagedError, RecursionError) as error:
        kind = path.suffix.removeprefix(".").upper()
        reason = f"{path} cannot be read as {kind} ({reason_of(error, path)})"
        raise InvalidValueError("--config", reason, "correct it") from error
    if not isinstance(content, dict):
        raise InvalidValueError("--config", f"{path} holds no options by name", "correct it")
    return content


def _nearest(name: str, known: Mapping[str, object]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known are {', '.join(sorted(known))}"


def _typed(path: Path, key: str, value: Any, parameter: inspect.Parameter) -> Any:
    """Check the type of a value and turn a list into text with commas."""
    kind = _kind(parameter.annotation)
    if isinstance(value, int) and abs(value) >= 2**63:
        raise InvalidValueError(path, f"{option(key)}: got a number of {value.bit_length()} bits, expected at most 63")
    if kind is str and isinstance(value, list | int) and not isinstance(value, bool) and parameter.default is not None:
        numbers = value if isinstance(value, list) else [value]
        if all(type(number) is int for number in numbers):
            return ",".join(map(str, numbers))
    fits = {
        bool: isinstance(value, bool),
        int: isinstance(value, int) and not isinstance(value, bool),
        float: isinstance(value, int | float) and not isinstance(value, bool),
    }.get(kind, isinstance(value, str))
    if not fits:
        raise InvalidValueError(path, f"{option(key)}: got {value!r}, expected {_RULES.get(kind, 'text')}")
    return value


def _kind(annotation: Any) -> Any:
    """Return the plain type of a parameter that is annotated for typer."""
    if typing.get_origin(annotation) is typing.Annotated:
        annotation = typing.get_args(annotation)[0]
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        annotation = next(kind for kind in typing.get_args(annotation) if kind is not types.NoneType)
    return annotation
