"""What all commands have in common: how they are declared, how they run, and how they report.

A command is a function that calls one stage and returns a `Reply`. Around it are added `--json`, `--verbose` and
`--quiet`, optionally `--endpoint` and `--config`, and one option for every field of a dataclass of settings
(`FieldsOf`). The options are built when the command is run or its own help is shown, so `dsgen --help` stays fast.
"""

import inspect
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, cast, get_args, get_origin

import typer
from typer.core import TyperCommand, TyperGroup

from dsgen.cli.config import read_config
from dsgen.cli.options import Endpoint
from dsgen.cli.results import Reply, to_json
from dsgen.cli.settings_options import FieldsOf
from dsgen.errors import InvalidValueError
from dsgen.secrets import hide_secrets, note_secrets

PROGRESS = "DSGEN_PROGRESS"  # 0 in the environment hides progress, in worker processes too
ENDPOINT = "AWS_ENDPOINT_URL"
HELP_NAMES = {"help_option_names": ["-h", "--help"]}

Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Log more, for debugging.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors and the result only: no progress, no notes.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result, or the error, as one JSON object.")]


@dataclass(frozen=True)
class Command:
    """A command of the program.

    `function` takes the command's own arguments, and a `typer.Context` as `context` if it asks for it; its docstring
    is the help. `examples` are shown below the help. `endpoint` adds `--endpoint`. `config` is the section in which a
    record of dsgen keeps the command's options, which `--config` reads; "" for a command without that option.
    """

    name: str
    function: Callable[..., Reply | None]
    examples: tuple[str, ...] = ()
    endpoint: bool = False
    config: str = ""

    def add_to(self, app: typer.Typer) -> None:
        """Add the command to the program, without its options for now."""

        def unbuilt() -> None:
            raise AssertionError("the group builds a command before it runs it")

        unbuilt.__doc__ = self.function.__doc__
        kind = cast(type[TyperCommand], type("Unbuilt", (_Unbuilt,), {"command": self}))
        app.command(self.name, cls=kind, short_help=_first_line(self.function))(unbuilt)

    def build(self) -> TyperCommand:
        """Return the command with all its options."""
        app = typer.Typer(add_completion=False, rich_markup_mode=None)
        epilog = "\b\nExamples:\n" + "\n".join(f"  {example}" for example in self.examples) if self.examples else None
        app.command(self.name, epilog=epilog, context_settings=HELP_NAMES)(self._make_callback())
        return cast(TyperCommand, typer.main.get_command(app))

    def _make_callback(self) -> Callable[..., None]:
        """Return the function for typer, which sets up what the command runs in, runs it, and prints its reply."""
        wants_context = "context" in inspect.signature(self.function).parameters
        marks, parameters = self._make_parameters()

        def callback(context: typer.Context, **arguments: Any) -> None:
            verbose, quiet, as_json = (arguments.pop(name) for name in ("verbose", "quiet", "as_json"))
            arguments.pop("config", None)
            endpoint = arguments.pop("endpoint", None)
            verbose, quiet = verbose or is_set(context, "verbose"), quiet or is_set(context, "quiet")
            check_verbosity(verbose, quiet)
            with _surroundings(verbose, quiet, endpoint):
                arguments |= {name: mark.take(arguments) for name, mark in marks.items()}
                reply = self.function(**({"context": context} if wants_context else {}), **arguments)
            _answer(reply, as_json, quiet)

        callback.__doc__ = self.function.__doc__
        callback.__signature__ = inspect.Signature(list(parameters.values()))  # type: ignore[attr-defined]
        callback.__annotations__ = {name: parameter.annotation for name, parameter in parameters.items()}
        return callback

    def _make_parameters(self) -> tuple[dict[str, FieldsOf], dict[str, inspect.Parameter]]:
        """Return the parameters that stand for the fields of a dataclass, and all parameters that typer is to see."""
        marks: dict[str, FieldsOf] = {}
        parameters: dict[str, inspect.Parameter] = {}
        for name, parameter in inspect.signature(self.function).parameters.items():
            mark = _mark(parameter)
            if mark is not None:
                marks[name] = mark
                parameters |= {each.name: each for each in mark.parameters()}
            elif name != "context":
                parameters[name] = parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        if self.endpoint:
            parameters["endpoint"] = _keyword("endpoint", Endpoint, None)
        if self.config:
            known = {name: parameter for name, parameter in parameters.items() if not _is_hidden(parameter)}
            parameters["config"] = _keyword("config", _config_option(self.config, known), None)
        for name, annotation in {"as_json": Json, "verbose": Verbose, "quiet": Quiet}.items():
            parameters[name] = _keyword(name, annotation, False)
        context = _keyword("context", typer.Context, inspect.Parameter.empty)
        return marks, {"context": context, **parameters}


class _Unbuilt(TyperCommand):
    """A command with its name and help, and no options yet."""

    command: Command


class Commands(TyperGroup):
    """A group that builds a command when it is named on the command line."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """Find the command that the arguments name, with all its options."""
        name, found, rest = super().resolve_command(ctx, args)
        return name, found.command.build() if isinstance(found, _Unbuilt) else found, rest


def is_set(context: typer.Context, name: str) -> bool:
    """Whether an option of the program itself was given, before the name of the command."""
    return bool(context.find_root().params.get(name))


def check_verbosity(verbose: bool, quiet: bool) -> None:
    """Refuse to be both verbose and quiet."""
    if verbose and quiet:
        raise InvalidValueError("--verbose, --quiet", "got both, expected at most one", "leave one out")


@contextmanager
def _surroundings(verbose: bool, quiet: bool, endpoint: str | None) -> Iterator[None]:
    """Set up what a command runs in, and undo it: what is logged, where the object store is, and what goes to stdout.

    Stages print and log as they like; stdout is kept for the result. The environment reaches worker processes.
    """
    note_secrets(endpoint or os.environ.get(ENDPOINT, ""))
    environment = {ENDPOINT: endpoint, PROGRESS: "0" if quiet else None}
    logger = logging.getLogger("dsgen")
    level = logger.level
    with ExitStack() as stack:
        stack.enter_context(_environment({name: value for name, value in environment.items() if value is not None}))
        stack.enter_context(
            redirect_stdout(
                stack.enter_context(open(os.devnull, "w", encoding="utf-8", errors="replace")) if quiet else sys.stderr
            )
        )
        stack.callback(logger.setLevel, level)
        if verbose or quiet:
            logger.setLevel(logging.DEBUG if verbose else logging.ERROR)
        yield


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _answer(reply: Reply | None, as_json: bool, quiet: bool) -> None:
    """Print the reply of a command; of several processes only the first has one."""
    if reply is None:
        return
    for problem in reply.problems:
        typer.echo(hide_secrets(f"error: {problem}"), err=True)
    if not quiet:
        for note in reply.notes:
            typer.echo(hide_secrets(f"note: {note}"), err=True)
    typer.echo(to_json(reply.values) if as_json else hide_secrets(reply.text))
    if reply.failed:
        raise typer.Exit(1)


def _first_line(function: Callable[..., object]) -> str:
    return (function.__doc__ or "").strip().splitlines()[0]


def _keyword(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _metadata(parameter: inspect.Parameter) -> tuple[Any, ...]:
    return get_args(parameter.annotation)[1:] if get_origin(parameter.annotation) is Annotated else ()


def _mark(parameter: inspect.Parameter) -> FieldsOf | None:
    return next((mark for mark in _metadata(parameter) if isinstance(mark, FieldsOf)), None)


def _is_hidden(parameter: inspect.Parameter) -> bool:
    return any(getattr(mark, "hidden", False) for mark in _metadata(parameter))


def _config_option(section: str, parameters: Mapping[str, inspect.Parameter]) -> Any:
    """Return the option that makes the values of a file the defaults of the command line."""

    def load(context: typer.Context, path: Path | None) -> Path | None:
        if path is not None:
            context.default_map = read_config(path, section, parameters)
        return path

    record = {"settings": "a run's config.json", "parameters": "a corpus's corpus.json"}[section]
    text = f"TOML or JSON file of options, such as {record}; the command line wins over it."
    return Annotated[Path | None, typer.Option("--config", is_eager=True, callback=load, help=text)]
