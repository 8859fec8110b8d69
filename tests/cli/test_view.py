"""`dsgen view`: the address is said once it answers, and the browser opened where there is one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .conftest import Run


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is shown, and which addresses are opened; nothing is served."""
    seen: list[Any] = []

    def view(path: str, ready: Callable[[str], None], *, port: int = 0) -> None:
        seen.append((path, port))
        ready("http://127.0.0.1:4711/")
        raise KeyboardInterrupt

    monkeypatch.setattr("dsgen.views.view.view", view)
    monkeypatch.setattr("dsgen.views.view.webbrowser.open", lambda address: seen.append(address) or True)
    monkeypatch.setenv("DISPLAY", ":0")
    return seen


def test_the_address_is_the_result(run: Run, shown: list[Any]):
    """On stdout, also with `--quiet`; the browser opens it; Ctrl-C is no failure."""
    done = run("view", "corpus", "--port", 8000)
    assert (done.code, done.out, done.err) == (0, "corpus: http://127.0.0.1:4711/\n", "")
    assert shown == [("corpus", 8000), "http://127.0.0.1:4711/"]
    assert run("view", "-q").out == "shards: http://127.0.0.1:4711/\n"


def test_the_address_as_json(run: Run, shown: list[Any]):
    """For scripts."""
    assert run("view", "--no-browser", "--json").json == {"path": "shards", "url": "http://127.0.0.1:4711/"}
    assert shown == [("shards", 0)]


def test_without_a_screen(run: Run, shown: list[Any], monkeypatch: pytest.MonkeyPatch):
    """No browser is started in the terminal."""
    monkeypatch.delenv("DISPLAY")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    done = run("view", "shards")
    assert done.out == "shards: http://127.0.0.1:4711/\n"
    assert done.err == "note: no browser was opened; open the address in one. Ctrl-C ends the server\n"
    assert shown == [("shards", 0)]


def test_a_used_port(run: Run, corpus: Path):
    """Is a wrong value of an option."""
    from dsgen.views.server import listen

    with listen(0) as listening:
        port = listening.getsockname()[1]
        done = run("view", corpus, "--port", port)
    assert done.code == 2
    assert done.err.startswith(f"error: --port: got {port}, which cannot be used (Address already in use")
