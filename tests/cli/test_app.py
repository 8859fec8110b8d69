"""The program: what it loads, its help, its version, its completion, and its commands in the README and the demo."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from dsgen import __version__
from dsgen.cli.app import COMMANDS, WEIGHTS_COMMANDS, app
from dsgen.cli.command import Command

from .conftest import Run, Stages

ROOT = Path(__file__).parent.parent.parent
ALL = [*COMMANDS, *WEIGHTS_COMMANDS]
by_name = pytest.mark.parametrize("command", ALL, ids=lambda command: command.name)


def words(command: Command) -> list[str]:
    """What is typed to name a command."""
    return ["weights", command.name] if command in WEIGHTS_COMMANDS else [command.name]


def parse(arguments: list[str]) -> dict[str, Any]:
    """Return the values that a command would be run with."""
    group = typer.main.get_command(app)
    context = typer.Context(group)  # type: ignore[arg-type]
    while hasattr(group, "resolve_command"):
        name, group, arguments = group.resolve_command(context, arguments)
    return group.make_context(name, arguments).params  # type: ignore[arg-type]


def test_help_loads_nothing_heavy(tmp_path: Path):
    """`import dsgen` and `--help` load neither torch nor zarr nor cv2."""
    code = (
        "import sys; import dsgen; from dsgen.cli.app import app\n"
        "try: app(['--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'zarr', 'cv2', 'timm', 'matplotlib', 'numpy'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert result.stdout.splitlines()[-1] == "[]"
    assert "composite" in result.stdout


def test_help_names_every_command_in_the_order_of_the_work(run: Run):
    """Without arguments the help is shown too, as a usage error."""
    shown = run("--help")
    assert (shown.code, shown.err) == (0, "")
    listed = re.findall(r"^  ([a-z-]+)  ", shown.out.partition("Commands:")[2], flags=re.M)
    assert listed == [*(command.name for command in COMMANDS), "weights"]
    assert run("-h").out == shown.out
    bare = run()
    assert (bare.code, bare.out) == (2, "")
    assert "Commands:" in bare.err
    for code in ("0 ", "1 ", "2 ", "130 "):
        assert re.search(rf"^    {code} +\w", shown.out, flags=re.M)


@by_name
def test_every_command_and_option_has_help(command: Command, run: Run):
    """`-h` and `--help` are the same; every parameter is explained, and its default shown."""
    shown = run(*words(command), "-h")
    assert (shown.code, shown.err) == (0, "")
    assert shown.out == run(*words(command), "--help").out
    for parameter in command.build().params:
        assert parameter.help, parameter.name  # type: ignore[attr-defined]
    for flags in ("-q, --quiet", "-v, --verbose", "--json", "-h, --help"):
        assert f"\n  {flags} " in shown.out
    assert set(command.examples) <= {line.strip() for line in shown.out.partition("Examples:")[2].splitlines()}
    assert command.examples


@by_name
def test_help_fits_a_narrow_terminal(command: Command, run: Run, monkeypatch: pytest.MonkeyPatch):
    """No line is longer than 60 columns."""
    monkeypatch.setenv("COLUMNS", "60")
    for arguments in ((*words(command), "--help"), ("--help",)):
        shown = run(*arguments)
        assert max(map(len, shown.out.splitlines())) <= 60, shown.out


@by_name
def test_the_examples_run(command: Command, run: Run, stages: Stages, tmp_path: Path):
    """Every example in the help, with stages that only note that they were called."""
    (tmp_path / "holiday-pictures").mkdir()
    for folder, record in (("corpus", "corpus.json"), ("run", "config.json")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / record).write_text("{}")
    for example in command.examples:
        program, *arguments = example.split()
        stages.calls.clear()
        done = run(*arguments)
        assert program == "dsgen"
        assert done.code == 0, (example, done.err)
        assert len(stages.calls) == 1


def test_version(run: Run):
    """`-V` and `--version`."""
    assert run("-V").out == run("--version").out == f"dsgen {__version__}\n"


def test_the_package_runs_as_a_module(tmp_path: Path):
    """`python -m dsgen`, which is what torchrun starts."""
    command = [sys.executable, "-m", "dsgen", "-V"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert result.stdout == f"dsgen {__version__}\n"


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("ev", {"evaluate", "evaluate-depth"}),
        ("train --learning", {"--learning-rate"}),
        ("pack --max", {"--max-flip-error"}),
    ],
)
def test_the_shell_completes(typed: str, completed: set[str], run: Run, monkeypatch: pytest.MonkeyPatch):
    """Commands and options, also those made from settings; `--install-completion` sets it up."""
    monkeypatch.setenv("_DSGEN_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", f"dsgen {typed}")
    monkeypatch.setenv("COMP_CWORD", str(len(typed.split())))
    assert set(run().out.split()) == completed
    monkeypatch.delenv("_DSGEN_COMPLETE")
    assert "--install-completion" in run("--help").out


def test_the_demo_script_uses_options_that_exist():
    """Each command of the demo parses; the demo itself is run by `make demo`."""
    lines = re.findall(r"^step dsgen (.*)$", (ROOT / "tests/scripts/demo.sh").read_text(), flags=re.M)
    assert len(lines) >= 6
    for line in lines:
        assert parse(line.split())
