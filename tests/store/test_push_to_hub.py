"""Uploads to the hub: whole, resumed, private unless asked otherwise; every refusal is one line, early."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import yaml
from support.fake_hub import TOKEN, FakeHub, serve
from typer.testing import CliRunner

from dsgen import secrets
from dsgen.cli.app import app
from dsgen.errors import DsgenError, InvalidValueError, MissingPackageError
from dsgen.secrets import hide_secrets
from dsgen.store.export.cards import size_category
from dsgen.store.export.export import export_store
from dsgen.store.packing import pack
from dsgen.store.reader import Store

NAME = "me/rooms"
# of huggingface_hub's own use of its client
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, labelled_corpus: Path) -> Path:
    """72 rows with depth."""
    folder = tmp_path_factory.mktemp("stored")
    pack(labelled_corpus, folder / "store", shards=2, jobs=1)
    return folder / "store"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """An empty hub, and a user who is logged in; large files go as LFS, as where hf_xet is missing."""
    from huggingface_hub import constants

    monkeypatch.setattr(secrets, "_known", set())
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with serve(tmp_path / "hub") as served:
        monkeypatch.setenv("HF_ENDPOINT", served.endpoint)
        yield served


@pytest.fixture
def push(store: Path, tmp_path: Path) -> Callable[..., Any]:
    """Export to `out` in files of 10 rows, and upload."""

    def push(**options: Any) -> Any:
        chosen: dict[str, Any] = {"push_to_hub": NAME, "rows_per_file": 10, "jobs": 1} | options
        return export_store(store, tmp_path / "out", chosen.pop("file_format", "parquet"), **chosen)

    return push


def test_the_folder_is_uploaded_and_read(hub: FakeHub, push: Callable[..., Any], store: Path, tmp_path: Path) -> None:
    """Every file but the lock, to a private repository; `datasets` reads its splits from there as they are here."""
    result = push()
    assert (result.url, result.private) == (f"{hub.endpoint}/datasets/{NAME}", True)
    assert hub.repositories == {NAME: True}
    out = tmp_path / "out"
    local = {p.relative_to(out).as_posix(): p.read_bytes() for p in out.rglob("*") if p.is_file()}
    uploaded = hub.files(NAME)
    assert uploaded == {name: content for name, content in local.items() if "lock" not in name}
    assert len([name for name in uploaded if name.endswith(".parquet")]) == result.files > 3
    loaded = datasets.load_dataset(str(hub.folder / NAME), cache_dir=str(tmp_path / "cache"))
    opened = Store(store)
    assert {split: len(rows) for split, rows in loaded.items()} == result.splits
    for split in result.splits:
        for sample in loaded[split]:
            truth = opened.read(sample["row"], sample["row"] + 1)
            for name in ("image", "mask", "depth"):
                np.testing.assert_array_equal(np.asarray(sample[name]), truth[name][0])


def test_the_card_has_what_the_hub_asks_for(hub: FakeHub, push: Callable[..., Any]) -> None:
    """Licence, tasks and sizes by the names the hub knows, and a path for each split."""
    result = push()
    card = hub.files(NAME)["README.md"].decode()
    told = yaml.safe_load(card.split("---")[1])
    assert told["license"] == "other"
    assert told["license_name"]
    assert told["task_categories"] == ["image-segmentation", "depth-estimation"]
    assert told["size_categories"] == ["n<1K"]
    paths = {each["split"]: each["path"] for each in told["configs"][0]["data_files"]}
    assert paths == {split: f"data/{split}-*.parquet" for split in result.splits}


@pytest.mark.parametrize(
    ("rows", "name"),
    [
        (1, "n<1K"),
        (999, "n<1K"),
        (1000, "1K<n<10K"),
        (99_999, "10K<n<100K"),
        (400_000, "100K<n<1M"),
        (10**8, "100M<n<1B"),
    ],
)
def test_size_categories(rows: int, name: str) -> None:
    """Those of the hub."""
    assert size_category(rows) == name


def test_an_upload_that_failed_continues(hub: FakeHub, push: Callable[..., Any], tmp_path: Path) -> None:
    """Files that arrived are not sent again, nor exported again; a third run sends none."""
    hub.refuse, hub.refuse_after = {"PUT /objects": 400}, 2
    with pytest.raises(DsgenError, match=r"the hub answers 400.*run the same command again, which continues"):
        push()
    arrived = len(hub.objects)
    assert arrived == 2
    assert hub.files(NAME) == {}
    hub.refuse, hub.requests = {}, []
    result = push()
    assert result.exported == 0
    assert hub.count("PUT") == result.files - arrived
    assert len(hub.files(NAME)) == result.files + 2
    hub.requests = []
    assert push().exported == 0
    assert hub.count("PUT") == 0
    assert hub.commits == 1


def test_a_card_that_was_edited_is_uploaded(hub: FakeHub, push: Callable[..., Any], tmp_path: Path) -> None:
    """Users write their licence into it; nothing else is sent."""
    push()
    card = tmp_path / "out/README.md"
    card.write_text(card.read_text().replace("license: other", "license: cc-by-4.0"))
    hub.requests = []
    push()
    assert b"license: cc-by-4.0" in hub.files(NAME)["README.md"]
    assert hub.count("PUT") == 0


def test_public_repositories(hub: FakeHub, push: Callable[..., Any]) -> None:
    """Only if asked for; one that is there must be as it is asked for, before anything is sent."""
    assert push(private=False).private is False
    assert hub.repositories == {NAME: False}
    hub.requests = []
    with pytest.raises(InvalidValueError, match="is public, expected private; add --public, or"):
        push()
    hub.repositories[NAME] = True
    with pytest.raises(
        InvalidValueError, match="is private, expected public, as --public says; leave out --public, or"
    ):
        push(private=False)
    assert not hub.count("POST")


def test_a_repository_with_other_files_is_left_alone(hub: FakeHub, push: Callable[..., Any], tmp_path: Path) -> None:
    """Files of another data set would be read as part of this one."""
    hub.repositories[NAME] = True
    other = hub.folder / NAME / "data/train-00000-of-00001.parquet"
    other.parent.mkdir(parents=True)
    other.write_bytes(b"mine")
    with pytest.raises(InvalidValueError, match=r"holds other files \(data/train-00000-of-00001.parquet\); choose"):
        push()
    assert not hub.count("POST")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("request_refused", "status", "told"),
    [
        ("GET /api/whoami-v2", 401, "the hub does not accept the token; run hf auth login, or set HF_TOKEN"),
        ("POST /api/repos/create", 403, "the token may not write there .*; name a repository of your own account"),
        ("GET /api/datasets", 429, "too many requests .*; wait some minutes, then run the same command again"),
        ("POST /api/repos/create", 500, "the hub answers 500 .*; run the same command again"),
        (f"POST /api/datasets/{NAME}/commit", 404, "not found, or the token may not see it.*; check the name"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_refusals_are_one_line(
    hub: FakeHub, push: Callable[..., Any], tmp_path: Path, request_refused: str, status: int, told: str
) -> None:
    """With what to do; all but the last before anything is exported."""
    hub.refuse = {request_refused: status}
    with pytest.raises(DsgenError, match=f"^{hub.endpoint}/datasets/{NAME}: {told}") as caught:
        push(split="validation")
    assert "\n" not in str(caught.value)
    assert TOKEN not in str(caught.value)
    assert (tmp_path / "out").exists() == ("commit" in request_refused)


def test_a_hub_that_cannot_be_reached(
    hub: FakeHub, push: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a network, or where the user keeps it from being asked."""
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(
        DsgenError, match=r"^http://127\.0\.0\.1:9: cannot be reached \(.*\); check the network and HF_"
    ):
        push()
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DsgenError, match="HF_HUB_OFFLINE: keeps the hub from being asked; unset it"):
        push()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["rooms", "a/b/c", "me/ro oms", "me/", "/rooms", "me/a--b", "me/rooms.git", "x" * 97])
def test_names_are_checked(hub: FakeHub, push: Callable[..., Any], name: str) -> None:
    """Before the hub is asked."""
    with pytest.raises(InvalidValueError, match=r"--push-to-hub: got .*, expected OWNER/NAME"):
        push(push_to_hub=name)
    assert not hub.requests


def test_other_formats_a_missing_token_and_a_missing_library(
    hub: FakeHub, push: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Refused before the store is read."""
    with pytest.raises(InvalidValueError, match="--push-to-hub: not with --format webdataset; add --format parquet"):
        push(file_format="webdataset")
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(DsgenError, match="--push-to-hub: no token of the Hugging Face hub; run hf auth login, or set"):
        push()
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingPackageError, match=r"huggingface_hub: not installed; pip install 'dsgen\[hub\]'"):
        push()
    assert not hub.requests
    assert not (tmp_path / "out").exists()


def test_the_token_is_hidden_everywhere(hub: FakeHub, push: Callable[..., Any]) -> None:
    """Whatever repeats it."""
    push(split="validation")
    assert hide_secrets(f"sent {TOKEN}.") == "sent ***."


def test_the_command(hub: FakeHub, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Says where it was uploaded to; --public alone is refused."""
    out = tmp_path / "out"
    arguments = ["export", str(store), str(out), "--format", "parquet", "--split", "validation", "--jobs", "1"]
    done = CliRunner().invoke(app, [*arguments, "--push-to-hub", NAME, "--public", "-q"])
    assert done.exit_code == 0, done.output
    assert done.output.strip().endswith(f"already existed; uploaded to {hub.endpoint}/datasets/{NAME} (public)")
    told = CliRunner().invoke(app, [*arguments, "--public"])
    assert isinstance(told.exception, InvalidValueError)
    assert str(told.exception) == (
        "--public: not used when nothing is uploaded; leave it out, or add --push-to-hub OWNER/NAME"
    )
