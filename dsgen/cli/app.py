"""The program `dsgen`: its commands, what happens to errors, and its exit codes.

Results go to stdout, progress, notes and errors to stderr. With `--json` stdout holds exactly one JSON object: the
result, or `{"error": {"type", "what", "reason", "remedy"}}`, beside the error for people on stderr.
"""

import io
import logging
import re
import signal
import sys
import threading
import traceback
import warnings
from types import TracebackType
from typing import Annotated, Any, NoReturn

import typer

from dsgen import __version__
from dsgen.cli import corpus_commands, depth_commands, store_commands, training_commands, view_commands
from dsgen.cli.command import HELP_NAMES, Commands, Quiet, Verbose, check_verbosity
from dsgen.cli.results import describe_error, to_json
from dsgen.errors import (
    DsgenError,
    InvalidValueError,
    NotFoundError,
    SeveralErrors,
    explain_system_error,
    reason_of,
    remedy_of,
)
from dsgen.parallel.signals import exit_code as signal_exit_code
from dsgen.parallel.signals import name_of, raise_on_signals, stopped_by
from dsgen.parallel.signals import remedy as signal_remedy
from dsgen.secrets import hide_secrets, note_secrets

FAILED, WRONG_USAGE, INTERRUPTED = 1, 2, 130
_SYSTEM_LIBRARY = re.compile(r"(lib[^/:\s]+\.so[.\d]*): cannot open shared object file")
_NUMBERS = {"valid integer": "a whole number", "valid number": "a number"}  # by what typer says

COMMANDS = (
    corpus_commands.COMPOSITE,
    depth_commands.DEPTH,
    store_commands.PACK,
    training_commands.TRAIN,
    training_commands.EVALUATE,
    training_commands.PREDICT,
    store_commands.EXPORT,
    corpus_commands.INFO,
    corpus_commands.PREVIEW,
    corpus_commands.REPORT,
    view_commands.VIEW,
    store_commands.VERIFY,
    store_commands.REPAIR,
    depth_commands.EVALUATE_DEPTH,
    depth_commands.TRAIN_DEPTH,
)
WEIGHTS_COMMANDS = (depth_commands.CONVERT,)

EPILOG = """\b
The whole job, with the bundled pictures:
  dsgen composite
  dsgen depth
  dsgen pack
  dsgen train

\b
Exit codes:
  0    done
  1    the work failed, or found something wrong
  2    a wrong option or option value
  130  interrupted; run the same command again to resume
  143  terminated (SIGTERM); resumes in the same way

With --json, stdout is one JSON object: the result, or {"error": {"type": ..., "what": ..., "reason": ...,
"remedy": ...}}. The exit code tells them apart. Messages for people always go to stderr.

Options of train and composite may come from a file: --config run.toml. The command line wins over the file, the
file over the defaults.
"""

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings=HELP_NAMES,
    help="Make pictures labelled with masks and depth, pack them into Zarr, and train networks on them.",
    epilog=EPILOG,
)
weights_app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings=HELP_NAMES,
    help="Convert weights of depth networks.",
)


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"dsgen {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[  # noqa: ARG001 - its callback does the work
        bool,
        typer.Option("--version", "-V", callback=_show_version, is_eager=True, help="Show the version and exit."),
    ] = False,
    verbose: Verbose = False,
    quiet: Quiet = False,
) -> None:
    check_verbosity(verbose, quiet)


for _command in COMMANDS:
    _command.add_to(app)
for _command in WEIGHTS_COMMANDS:
    _command.add_to(weights_app)
app.add_typer(weights_app, name="weights")


def main() -> NoReturn:
    """Run the program: report what a user can put right in a few lines, and exit with the right code."""
    for word in sys.argv[1:]:
        note_secrets(word.partition("=")[2] if word.startswith("-") else word)
    _log_to_stderr()
    _print_any_name()
    sys.excepthook = _show_bug
    threading.excepthook = _show_bug_of_thread
    try:
        with raise_on_signals():
            code = _run()
    except Exception:
        if stopped_by() is None:
            raise
        code = INTERRUPTED  # what fails after a signal, such as a worker process that it ended too, fails by it
    if code == INTERRUPTED:
        number = stopped_by() or signal.SIGINT
        said = name_of(number)
        _fail_with(said.capitalize(), said, "", signal_remedy(), signal_exit_code(number), prefix="")
    sys.exit(code if isinstance(code, int) else 0)


def _run() -> Any:
    """Run the command that the command line names; return its exit code, or `INTERRUPTED` after a signal."""
    try:
        return app(prog_name="dsgen", standalone_mode=False)
    except (typer.Abort, KeyboardInterrupt) as error:  # which of them depends on the version of typer
        if isinstance(error.__cause__, EOFError):  # of a file that ends too early, which typer takes for Ctrl-D
            raise error.__cause__ from None
        return INTERRUPTED
    except Exception as error:
        if stopped_by() is not None and not isinstance(error, DsgenError):
            raise
        _report(error)


def _report(error: Exception) -> NoReturn:
    """Report an error that a user can put right, and exit; raise any other."""
    if isinstance(error, DsgenError):
        _fail(f"error: {error}", describe_error(error), exit_code(error))
    library = _SYSTEM_LIBRARY.match(str(error)) if isinstance(error, ImportError) else None
    if library is not None:
        remedy = "install the package of your system that holds it"
        if library[1].startswith(("libGL", "libglib", "libgthread")):  # those that OpenCV loads
            remedy = "on Debian or Ubuntu: apt-get install libgl1 libglib2.0-0"
        _fail_with("ImportError", library[1], "this system library is missing", remedy, FAILED)
    if isinstance(error, OSError):
        what, reason, remedy = explain_system_error(error, _stage())
        _fail_with(type(error).__name__, what, reason, remedy, FAILED)
    if isinstance(error, MemoryError):
        reason = f"not enough memory ({reason_of(error)})"
        _fail_with(type(error).__name__, _stage(), reason, remedy_of(error), FAILED)
    if _is_usage_error(error):
        _fail_usage(error)
    raise error


def _stage() -> str:
    """Return the command that the command line names, as one types it: `dsgen composite`."""
    names = {command.name for command in (*COMMANDS, *WEIGHTS_COMMANDS)}
    return " ".join(["dsgen", *[word for word in sys.argv[1:] if word in names][:1]])


def _show_bug(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print the traceback of a bug, without the secrets of URLs in it."""
    print(hide_secrets("".join(traceback.format_exception(kind, error, trace))), file=sys.stderr, end="")


def _show_bug_of_thread(failed: threading.ExceptHookArgs) -> None:
    """Print the traceback of a bug in a thread; what fails in one after a signal, such as joblib's, fails by it."""
    if stopped_by() is None and failed.exc_value is not None:
        _show_bug(failed.exc_type, failed.exc_value, failed.exc_traceback)


def exit_code(error: DsgenError) -> int:
    """Return 2 for a wrong value of an option, several of them, or an option that names nothing; else 1."""
    if isinstance(error, SeveralErrors):
        return WRONG_USAGE if all(exit_code(each) == WRONG_USAGE for each in error.errors) else FAILED
    about_option = isinstance(error, NotFoundError) and error.what.startswith("-")
    return WRONG_USAGE if about_option or isinstance(error, InvalidValueError) else FAILED


def _log_to_stderr() -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
        logging.addLevelName(level, logging.getLevelName(level).lower())
    logger = logging.getLogger("dsgen")
    logger.addHandler(handler)
    logger.propagate = False
    # zarr leaves reads behind when one of them finds damage, and asyncio complains of them at the end
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)


def _print_any_name() -> None:
    """Let names be printed that the terminal's encoding lacks, as escapes, rather than end a command with an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _is_usage_error(error: Exception) -> bool:
    """Whether typer refuses the command line; its class has moved between versions of typer, its methods have not."""
    return hasattr(error, "format_message") and hasattr(error, "show") and hasattr(error, "exit_code")


def _fail_usage(error: Any) -> NoReturn:
    error.message = hide_secrets(getattr(error, "message", ""))
    parameter = getattr(error, "param", None)
    name = getattr(error, "option_name", None) or (max(parameter.opts, key=len) if parameter is not None else "")
    what = name or (error.ctx.command_path if getattr(error, "ctx", None) is not None else "dsgen")
    remedy = f"see {error.ctx.command_path} --help" if getattr(error, "ctx", None) is not None else ""
    reason = error.format_message()
    expected = next((ours for theirs, ours in _NUMBERS.items() if theirs in reason), None)
    value = _value_given(parameter.opts) if expected and parameter is not None else None
    text = ""
    if value is None:
        error.show()
    else:
        reason = f"got {value}, expected {expected}"
        text = f"error: {DsgenError(what, reason, remedy)}"
    described = {"type": "UsageError", "what": what, "reason": reason, "remedy": remedy}
    _fail(text, described, error.exit_code)


def _value_given(flags: list[str]) -> str | None:
    """Return the last value that the command line gives to an option, which typer's own message leaves out."""
    words = sys.argv[1:]
    for k in range(len(words) - 1, -1, -1):
        flag, assigned, value = words[k].partition("=")
        if flag in flags:
            return value if assigned else next(iter(words[k + 1 :]), None)
    return None


def _fail_with(kind: str, what: str, reason: str, remedy: str, code: int, prefix: str = "error: ") -> NoReturn:
    text = f"{prefix}{DsgenError(what, reason, remedy)}"
    _fail(text, {"type": kind, "what": str(what), "reason": reason, "remedy": remedy}, code)


def _fail(text: str, described: dict[str, Any], code: int) -> NoReturn:
    """Report an error on stderr, with --json as an object on stdout too, and exit."""
    if text:
        typer.echo(text, err=True)
    if "--json" in sys.argv[1:]:
        typer.echo(to_json({"error": described}))
    sys.exit(code)
