"""Models of the hub: without a network one line within seconds, and nothing is asked for what is at hand."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from dsgen.depth import hub
from dsgen.depth.hub import load_from_hub
from dsgen.errors import DsgenError, InvalidValueError, NotFoundError
from dsgen.io import hub as io_hub

pytest.importorskip("transformers")


def never_at_hand(local_only: bool) -> str:
    """Fail as `from_pretrained` does without a cached copy; with the hub, load."""
    if local_only:
        raise OSError("We couldn't connect\nto a cached file")
    return "loaded"


@pytest.fixture
def unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub at a port where nobody listens."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


@pytest.mark.filterwarnings("default")
def test_without_a_network_it_is_one_line(unreachable: None):
    """The hub, the reason and what to do; in seconds."""
    started = time.monotonic()
    with pytest.raises(DsgenError) as error:
        load_from_hub("a/b", never_at_hand)
    assert time.monotonic() - started < 10
    text = str(error.value)
    assert text.startswith("--model hf:a/b: not in the cache, and http://127.0.0.1:9 cannot be reached (")
    assert text.endswith("; connect to it, or download the model elsewhere and give its folder: --model hf:FOLDER")
    assert "\n" not in text


@pytest.mark.filterwarnings("default")
def test_a_hub_that_does_not_answer(unreachable: None, monkeypatch: pytest.MonkeyPatch):
    """As when packets are dropped: the wait has an end, whatever the client does."""
    import huggingface_hub.utils

    def hang() -> None:
        time.sleep(2)

    monkeypatch.setattr(io_hub, "_SECONDS", 0.1)
    monkeypatch.setattr(huggingface_hub.utils, "get_session", hang)
    with pytest.raises(DsgenError, match=r"cannot be reached \(no answer within 0.1 s\)"):
        load_from_hub("a/b", never_at_hand)


def test_offline_by_choice(unreachable: None, monkeypatch: pytest.MonkeyPatch):
    """HF_HUB_OFFLINE is named."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DsgenError, match="not in the cache, and HF_HUB_OFFLINE keeps the hub from being asked; unset"):
        load_from_hub("a/b", never_at_hand)


def test_what_is_at_hand_needs_no_hub(unreachable: None):
    """A cached model is used as it is."""
    asked = []
    assert load_from_hub("a/b", lambda local_only: asked.append(local_only) or "cached") == "cached"
    assert asked == [True]


def test_a_reachable_hub_is_used(monkeypatch: pytest.MonkeyPatch):
    """For what is not at hand."""
    monkeypatch.setattr(hub, "reach_hub", lambda *_: None)
    assert load_from_hub("a/b", never_at_hand) == "loaded"


def test_what_is_no_model(tmp_path: Path, unreachable: None):
    """Folders without one, folders that are not there, names that cannot be: no network is needed to say so."""
    with pytest.raises(InvalidValueError, match=r"no depth-estimation model can be loaded \(the folder has no config"):
        load_from_hub(str(tmp_path), never_at_hand)
    for name in ("", "./nowhere", "../a", "/no/where", "a/b/c"):
        with pytest.raises(NotFoundError, match=f"--model hf:{name}: no such folder, expected one or NAME or ORG"):
            load_from_hub(name, never_at_hand)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InvalidValueError, match=r"can be loaded \(We couldn't connect\); give the folder, or the name"):
        load_from_hub(str(tmp_path), never_at_hand)


@pytest.mark.slow
def test_the_program_without_a_network(tmp_path: Path):
    """Nothing but the error is printed."""
    (tmp_path / "p").mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "p" / "a.png")
    plain = os.environ | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "cache")}
    command = [sys.executable, "-m", "dsgen", "depth", str(tmp_path / "p"), "--model", "hf:a/b"]
    done = subprocess.run(command, env=plain, capture_output=True, text=True)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "p_depth").exists()
