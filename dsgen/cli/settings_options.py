"""Options made from the fields of a dataclass of settings, which stays the only owner of their defaults.

The dataclass is named and imported late: `dsgen --help` must not load what its module imports.
"""

import dataclasses
import inspect
import types
import typing
from dataclasses import dataclass
from importlib import import_module
from typing import Annotated, Any

import typer

from dsgen.cli.options import parse_numbers
from dsgen.errors import option


@dataclass(frozen=True)
class FieldsOf:
    """Marks a parameter of a command that stands for one option per field of a dataclass.

    `location` is `module:Class`. The help of an option is the `help` in the metadata of its field.
    """

    location: str

    def load(self) -> Any:
        """Import the dataclass."""
        module, _, name = self.location.partition(":")
        return getattr(import_module(module), name)

    def parameters(self) -> list[inspect.Parameter]:
        """Return a keyword parameter, annotated for typer, for every field."""
        settings = self.load()
        hints = typing.get_type_hints(settings)
        return [self._parameter(each, hints[each.name]) for each in dataclasses.fields(settings)]

    def _parameter(self, each: "dataclasses.Field[Any]", hint: Any) -> inspect.Parameter:
        default, kind = each.default, _kind(hint)
        flag = option(each.name)
        if kind is bool and default:
            flag += f"/--no-{flag.removeprefix('--')}"
        if kind is str and default is not None:
            default = str(default)
        if isinstance(default, tuple):
            kind, default = str, ",".join(map(str, default))
        elif default is None:
            kind = kind | None
        text = _say_default(each.metadata["help"], hint, default)
        return inspect.Parameter(
            each.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=default,
            annotation=Annotated[kind, typer.Option(flag, help=text)],
        )

    def take(self, arguments: dict[str, Any]) -> Any:
        """Take the values of the fields out of a command's arguments and return the settings they make.

        Where a field may be None and its option has a number as the default, 0 stands for None.
        """
        settings = self.load()
        hints = typing.get_type_hints(settings)
        values = {}
        for each in dataclasses.fields(settings):
            value = arguments.pop(each.name)
            if isinstance(each.default, tuple):
                value = parse_numbers(each.name, value)
            elif isinstance(each.default, int) and _kind(hints[each.name]) is str:  # a number or a range
                value = int(value) if value.isdecimal() else value
            elif value == 0 and _is_optional(hints[each.name]) and each.default is not None:
                value = None
            values[each.name] = value
        return settings(**values)


def _say_default(text: str, hint: Any, default: Any) -> str:
    """Add to a help text what typer does not show: that None is the default, or how to ask for it."""
    if not _is_optional(hint):
        return text
    return text.removesuffix(".") + ("; not set by default." if default is None else "; 0 for no limit.")


def _is_optional(hint: Any) -> bool:
    return types.NoneType in typing.get_args(hint)


def _kind(hint: Any) -> Any:
    """Return the type of a field without None; that of a number or a range is text."""
    if str in typing.get_args(hint):
        return str
    if _is_optional(hint):
        return next(kind for kind in typing.get_args(hint) if kind is not types.NoneType)
    return hint
