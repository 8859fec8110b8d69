"""The READMEs: their snippets run, their commands and links exist, and the first one stays short."""

import gc
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.runs import make_run

CHECKOUT = Path(__file__).parent.parent
READMES = [
    CHECKOUT / "README.md",
    *sorted(CHECKOUT.glob("dsgen/**/README.md")),
    *sorted(CHECKOUT.glob("tests/**/README.md")),
]

# on one core, so that it works without processes: two that each import all of dsgen take longer than the tiny work
PROGRAM = """\
import os, runpy
if __name__ == "__main__":
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
    runpy.run_module("dsgen", run_name="__main__", alter_sys=True)
"""


def fences(readme: Path, language: str) -> list[str]:
    """The fenced blocks of one language; ```sh and ```python run, ```console needs what a test has not."""
    return re.findall(rf"^```{language}\n(.*?)^```$", readme.read_text(), flags=re.M | re.S)


def with_fences(language: str) -> list[Path]:
    """The READMEs that have such blocks."""
    return [readme for readme in READMES if fences(readme, language)]


def named(readme: Path) -> str:
    """A README's name within the checkout."""
    return readme.relative_to(CHECKOUT).as_posix()


@pytest.fixture(scope="module")
def finished_work(tmp_path_factory: pytest.TempPathFactory, labelled_corpus: Path) -> Path:
    """A folder with `corpus`, `shards` and `run`, as after the four commands."""
    from dsgen.store.packing import pack

    folder = tmp_path_factory.mktemp("finished")
    shutil.copytree(labelled_corpus, folder / "corpus")
    pack(folder / "corpus", folder / "shards", shards=2, jobs=1)
    make_run(folder / "run")
    return folder


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset leaves its last file open
@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")  # torchdata with a newer torch
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools with a newer numpy
@pytest.mark.parametrize("readme", with_fences("python"), ids=named)
def test_python_snippets_run(
    readme: Path, finished_work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of a README's snippets, in order, where the four commands have run."""
    folder = Path(shutil.copytree(finished_work, tmp_path / "here"))
    shutil.copytree(folder / "shards", folder / "demo-shards")
    monkeypatch.chdir(folder)
    names: dict[str, object] = {"__name__": "snippet"}
    for snippet in fences(readme, "python"):
        exec(compile(snippet, named(readme), "exec"), names)
    names.clear()
    gc.collect()


def slow_if_first(readme: Path) -> Any:
    """The example of the first README is the whole job, which takes minutes."""
    return pytest.param(readme, marks=pytest.mark.slow if readme.parent == CHECKOUT else (), id=named(readme))


@pytest.mark.parametrize("readme", [slow_if_first(readme) for readme in with_fences("sh")])
def test_shell_snippets_run(readme: Path, finished_work: Path, tmp_path: Path) -> None:
    """All of a README's commands, in order, where the four commands have run."""
    folder = Path(shutil.copytree(finished_work, tmp_path / "here"))
    programs = tmp_path / "bin"
    programs.mkdir()
    program = programs / "dsgen"
    (tmp_path / "program.py").write_text(PROGRAM)
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{tmp_path}/program.py" "$@"\n')
    program.chmod(0o755)
    environment = os.environ | {
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join([str(CHECKOUT), os.environ.get("PYTHONPATH", "")]),
    }
    script = "\n".join(fences(readme, "sh"))
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=230,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


@pytest.mark.parametrize("readme", READMES, ids=named)
def test_commands_exist(readme: Path) -> None:
    """Every `dsgen ...` line parses, every `make ...` is a target."""
    import typer

    from dsgen.cli.app import app

    commands = typer.main.get_command(app).list_commands(None)  # type: ignore[attr-defined]
    blocks = "\n".join(fences(readme, "(?:sh|console)"))
    assert set(re.findall(r"^dsgen ([a-z][a-z-]*)", blocks, flags=re.M)) <= set(commands)
    targets = set(re.findall(r"^([a-z-]+):", (CHECKOUT / "Makefile").read_text(), flags=re.M))
    assert set(re.findall(r"^make ([a-z-]+)", blocks, flags=re.M)) <= targets


@pytest.mark.parametrize("readme", READMES, ids=named)
def test_links_lead_somewhere(readme: Path) -> None:
    """Every relative link is to a file, and every anchor to a heading."""
    for target in re.findall(r"\]\(([^)\s]+)\)", readme.read_text()):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        linked = (readme.parent / path).resolve() if path else readme
        assert linked.exists(), f"{named(readme)}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", linked.read_text(), flags=re.M)
            slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in slugs, f"{named(readme)}: {target}"


def test_the_first_readme_is_short() -> None:
    """What it is, how to begin, where to read on: 8 KB at most."""
    assert len((CHECKOUT / "README.md").read_bytes()) <= 8192
