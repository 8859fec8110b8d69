"""The command line: results, exit codes, help, and what is not loaded."""

import logging
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dsgen.cli.app import main

ROOT = Path(__file__).parent.parent.parent


def dsgen(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run the program as a user would."""
    command = [sys.executable, "-c", "from dsgen.cli.app import main; main()", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=200)


@pytest.fixture
def run_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """The same in this process, which need not load torch each time: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[Any, str, str]:
        logger = logging.getLogger("dsgen")
        monkeypatch.setattr(logger, "handlers", [])
        monkeypatch.setattr(logger, "propagate", logger.propagate)
        monkeypatch.setattr(sys, "argv", ["dsgen", *map(str, arguments)])
        with pytest.raises(SystemExit) as leaving:
            main()
        return leaving.value.code, *capfd.readouterr()

    return run


def test_composite_info_and_preview(tmp_path: Path, run_here: Callable[..., Any]):
    """With the bundled pictures and no folder named: three commands, three results on stdout."""
    made = dsgen("composite", "--max-backgrounds", 2, "--max-foregrounds", 2, "--positions", 3, cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    assert made.stdout.startswith("corpus: 24 composites of 2 backgrounds and 2 foregrounds")
    assert made.stdout.count("\n") == 1
    code, told, _ = run_here("info", "corpus")
    assert code == 0
    assert re.search(r"rows +24 = 2 backgrounds x 2 foregrounds x 2 \(mirrored too\) x 3 positions", told)
    assert re.search(r"pictures +complete, 24 drawn", told)
    assert re.search(r"depth +not labelled", told)
    code, shown, _ = run_here("preview", "corpus", "--count", 4)
    assert (code, shown) == (0, "preview.png\n")
    with Image.open(tmp_path / "preview.png") as sheet:
        assert np.asarray(sheet).std() > 10
    assert not list(tmp_path.rglob("*.partial"))


def test_errors_are_one_line_on_stderr_and_exit_1(tmp_path: Path, run_here: Callable[..., Any]):
    """No traceback, nothing on stdout."""
    alone = dsgen("info", "nowhere", cwd=tmp_path)
    assert (alone.returncode, alone.stdout, alone.stderr) == run_here("info", "nowhere")
    for arguments, message in (
        (("depth", "nowhere"), "error: "),
        (("info", "nowhere"), "error: nowhere: no such folder"),
        (("preview", "nowhere"), "error: nowhere: no such folder"),
        (("pack", "nowhere"), "error: nowhere: no corpus"),
        (("train", "nowhere"), "error: nowhere"),
        (("composite", "--positions", 0), "error: --positions: got 0"),
    ):
        code, out, err = run_here(*arguments)
        assert code == 1, (arguments, err)
        assert out == ""
        assert err.startswith(message), (arguments, err)
        assert err.count("\n") == 1, err


def test_usage_errors_exit_2(tmp_path: Path, run_here: Callable[..., Any]):
    """An unknown option, and sizes that are no numbers."""
    assert dsgen("composite", "--no-such-option", cwd=tmp_path).returncode == 2
    code, _, err = run_here("train", "--sizes", "big,bigger")
    assert code == 2
    assert "expected whole numbers" in err


def test_every_option_has_help():
    """No parameter of any command is left unexplained."""
    import typer

    from dsgen.cli.app import app

    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert set(commands) >= {"composite", "depth", "pack", "train", "info", "preview", "train-depth"}
    for name, command in commands.items():
        assert command.help, name
        for parameter in command.params:
            assert parameter.name == "help" or parameter.help, (name, parameter.name)


def test_help_loads_nothing_heavy(tmp_path: Path):
    """`import dsgen` and `--help` load neither torch nor zarr nor cv2."""
    code = (
        "import sys; import dsgen; from dsgen.cli.app import app\n"
        "try: app(['--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'zarr', 'cv2', 'timm', 'matplotlib'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert result.stdout.splitlines()[-1] == "[]"


def test_interrupt_exits_130(tmp_path: Path):
    """Ctrl-C says how to go on."""
    code = (
        "import dsgen.views.info, dsgen.cli.app\n"
        "def stop(path): raise KeyboardInterrupt\n"
        "dsgen.views.info.describe = stop; dsgen.cli.app.main()"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, "info"], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 130
    assert "run the same command again" in result.stderr


def test_the_readme_shows_commands_that_exist():
    """Every `dsgen ...` line and every `make ...` target in the README is one there is."""
    import typer

    from dsgen.cli.app import app

    text = (ROOT / "README.md").read_text()
    blocks = "\n".join(re.findall(r"^    (.*)$", text, flags=re.M))
    used = set(re.findall(r"\bdsgen ([a-z][a-z-]*)", blocks))
    assert used >= {"composite", "depth", "pack", "train", "info", "preview"}
    assert used <= set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.M))
    assert set(re.findall(r"\bmake ([a-z]+)", blocks)) <= targets


@pytest.mark.parametrize("name", ["demo.sh"])
def test_the_demo_script_uses_options_that_exist(name: str):
    """Each command of the demo parses; the demo itself is run by `make demo`."""
    import typer

    from dsgen.cli.app import app

    group = typer.main.get_command(app)
    lines = re.findall(r"^step dsgen (.*)$", (ROOT / "tests/scripts" / name).read_text(), flags=re.M)
    assert len(lines) >= 6
    for line in lines:
        command, *arguments = line.split()
        context = group.commands[command].make_context(command, arguments)  # type: ignore[attr-defined]
        assert context.params
