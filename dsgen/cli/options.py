"""Options that several commands share, the check for options that a mode ignores, and parsers of values."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dsgen.errors import InvalidValueError, option, raise_all

if TYPE_CHECKING:
    from dsgen.parallel.parts import Part

Jobs = Annotated[int | None, typer.Option("--jobs", help="Number of worker processes; one per core by default.")]
Device = Annotated[str, typer.Option("--device", help="auto (CUDA, else the CPU), cpu, cuda, cuda:N or mps.")]
Endpoint = Annotated[
    str | None,
    typer.Option(
        "--endpoint", help="Address of the object store; AWS_ENDPOINT_URL or that of the AWS profile by default."
    ),
]
PartOf = Annotated[
    str | None,
    typer.Option("--part", help="Do one part of the work, such as 3/8; the last part to finish completes it."),
]
Backend = Annotated[str, typer.Option("--backend", help="Where the work runs: local (processes) or dask.")]
Scheduler = Annotated[
    str | None, typer.Option("--scheduler", help="With --backend dask: address of the scheduler, tcp://HOST:8786.")
]
Checkpoint = Annotated[str, typer.Option("--checkpoint", help="Checkpoint of the run: best, last, epoch-003, ...")]
Workers = Annotated[int, typer.Option("--workers", help="Number of threads that read ahead.")]
CorpusOrStore = Annotated[str, typer.Argument(metavar="PATH", help="A corpus, or a store in a folder or at a URL.")]
Corpus = Annotated[Path, typer.Argument(metavar="CORPUS", help="The folder of the corpus.")]


def is_given(context: typer.Context, name: str) -> bool:
    """Whether a parameter was given on the command line or in a --config file, rather than left at its default."""
    source = context.get_parameter_source(name)
    return source is not None and source.name != "DEFAULT"


def flag_of(context: typer.Context, name: str) -> str:
    """Return what people type for a parameter: `--format` for `file_format`, `CORPUS` for an argument."""
    for parameter in context.command.params:
        if parameter.name == name:
            if parameter.param_type_name == "argument":
                return name.upper()
            used = parameter.secondary_opts if parameter.secondary_opts and not context.params[name] else parameter.opts
            return max(used, key=len)
    return option(name)


def refuse_ignored(context: typer.Context, when: str, *names: str, remedy: str = "leave it out") -> None:
    """Raise an `InvalidValueError` for each of the parameters that was given although this mode does not use it.

    `when` completes the sentence "not used when ...".
    """
    raise_all(
        InvalidValueError(flag_of(context, name), f"not used when {when}", remedy)
        for name in names
        if is_given(context, name)
    )


def dask_address(context: typer.Context, backend: str, scheduler: str | None) -> str | None:
    """Return the address of the dask scheduler to use, or None for local processes."""
    from dsgen.parallel.dask_cluster import scheduler_address

    if backend == "local":
        refuse_ignored(context, "--backend is local", "scheduler", remedy="leave it out, or add --backend dask")
        return None
    if backend == "dask" and scheduler is None:
        raise InvalidValueError(
            "--backend", "got dask, expected the address of its scheduler too", "add --scheduler tcp://HOST:8786"
        )
    return scheduler_address(backend, scheduler)


def parse_part_of(text: str | None) -> "Part | None":
    """Read the value of `--part`; None is the whole work."""
    from dsgen.parallel.parts import parse_part

    return None if text is None else parse_part(text)


def parse_numbers(name: str, text: str) -> tuple[int, ...]:
    """Read whole numbers with commas between, such as `96,192`, the value of the option of a setting."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        rule = "whole numbers with commas between, like 96,192"
        raise InvalidValueError.expected(name, text, rule) from error
