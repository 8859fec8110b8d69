"""The page as static files: what is written, what is refused, and that it is continued."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from support.runs import make_run

from dsgen.errors import DsgenError
from dsgen.io import atomic
from dsgen.parallel.locks import LOCK
from dsgen.store.packing import pack
from dsgen.store.reader import Store
from dsgen.views import static
from dsgen.views.static import export_page
from dsgen.views.view import page_files


@pytest.fixture
def store(tmp_path: Path, labelled_corpus: Path) -> Path:
    """A store of the labelled corpus."""
    pack(labelled_corpus, tmp_path / "shards", shards=2, jobs=1)
    return tmp_path / "shards"


def names(folder: Path) -> set[str]:
    """The files of a folder but for the lock."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file() and path.name != LOCK}


def test_a_store_goes_along(store: Path, tmp_path: Path):
    """As a whole, so that it is a store there too; linked, so that it takes no space."""
    result = export_page(store, tmp_path / "page")
    assert result.files == len(names(tmp_path / "page"))
    assert result.already_there == 0
    assert names(tmp_path / "page/data/0") == names(store)
    assert {"index.html", "view.json", "page/main.js", "page/vendor/LICENCES.txt"} <= names(tmp_path / "page")
    image = next(store.glob("*.zarr/image/c/0/0/0/0"))
    assert (tmp_path / "page/data/0" / image.relative_to(store)).samefile(image)
    assert np.array_equal(Store(tmp_path / "page/data/0").read(3, 4)["image"], Store(store).read(3, 4)["image"])
    again = export_page(store, tmp_path / "page")
    assert again.already_there == again.files == result.files


def test_it_is_continued(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """After a kill in the middle, from another disk too; `view.json` comes last."""

    def no_link(*_: object) -> None:
        raise OSError("another disk")

    monkeypatch.setattr(static.os, "link", no_link)
    written = []
    write_one = static._write_one

    def stop_after_ten(target: Path, source: static._Source) -> None:
        if len(written) == 30:
            atomic.partial_path(target).parent.mkdir(parents=True, exist_ok=True)
            atomic.partial_path(target).write_bytes(b"half")
            raise KeyboardInterrupt
        written.append(target)
        write_one(target, source)

    monkeypatch.setattr(static, "_write_one", stop_after_ten)
    with pytest.raises(KeyboardInterrupt):
        export_page(store, tmp_path / "page")
    assert not (tmp_path / "page/view.json").exists()
    monkeypatch.setattr(static, "_write_one", write_one)
    result = export_page(store, tmp_path / "page")
    assert result.already_there == 30
    assert names(tmp_path / "page/data/0") == names(store)
    for name in names(store):
        assert (store / name).read_bytes() == (tmp_path / "page/data/0" / name).read_bytes()
    image = next(store.glob("*.zarr/image/c/0/0/0/0"))
    assert not (tmp_path / "page/data/0" / image.relative_to(store)).samefile(image)


def test_other_files_are_refused_and_left_alone(store: Path, labelled_corpus: Path, tmp_path: Path):
    """A folder with other things in it, a page of another kind, and the export of another store."""
    page = tmp_path / "page"
    page.mkdir()
    (page / "notes.txt").write_text("mine")
    with pytest.raises(
        DsgenError, match=r"has other files in it, the first notes.txt; choose an empty or a new folder"
    ):
        export_page(store, page)
    assert names(page) == {"notes.txt"}
    (page / "notes.txt").rename(page / "index.html")
    with pytest.raises(DsgenError, match=r"the first index.html"):
        export_page(store, page)
    assert (page / "index.html").read_text() == "mine"
    (page / "index.html").unlink()
    export_page(store, page)
    pack(labelled_corpus, tmp_path / "other", shards=2, max_flip_error=None, jobs=1, zipped=True)
    with pytest.raises(DsgenError, match="has other files in it, the first data/0/"):
        export_page(tmp_path / "other", page)
    index = page / "data/0/index.json"
    index.unlink()
    index.write_text("{}")
    with pytest.raises(DsgenError, match=r"index.json: a file of another store, or damaged"):
        export_page(store, page)
    assert index.read_text() == "{}"


def test_what_only_a_server_can_draw_is_refused(floor_corpus: Path, tmp_path: Path):
    """With the command that makes pictures of it."""
    pack(floor_corpus, tmp_path / "recipe", shards=1, recipe=True, jobs=1)
    for path, remedy in (
        (tmp_path / "recipe", "run dsgen pack CORPUS --out"),
        (floor_corpus, "run dsgen pack /.* --out"),
    ):
        with pytest.raises(DsgenError, match=f"has no pictures, dsgen draws them .*; {remedy} STORE"):
            export_page(path, tmp_path / "page")
    assert not (tmp_path / "page").exists()


def test_the_page_alone(store: Path, tmp_path: Path):
    """For a store that is on the web already."""
    result = export_page(store, tmp_path / "page", data_url="https://bucket.example/shards/")
    assert result.files == len(page_files()) + 1
    view = json.loads((tmp_path / "page/view.json").read_text())
    assert view["stores"][0]["data"] == "https://bucket.example/shards/"
    assert not (tmp_path / "page/data").exists()
    with pytest.raises(DsgenError, match="--data-url: got shards, expected an address that begins with https://"):
        export_page(store, tmp_path / "other", data_url="shards")


def test_places_that_cannot_be(store: Path, tmp_path: Path):
    """In the store, around it, a file, a URL."""
    for out in (store, store / "page", store.parent):
        with pytest.raises(DsgenError, match=r"--export: got .* or holds it; choose another folder"):
            export_page(store, out)
    (tmp_path / "apart").mkdir()
    (tmp_path / "apart/file").write_text("")
    with pytest.raises(DsgenError, match="a file, expected a folder"):
        export_page(store, tmp_path / "apart/file")


def test_a_run_goes_along(tmp_path: Path):
    """Its scores and pictures, again when they have changed, and no checkpoint."""
    run = make_run(tmp_path / "run")
    (run / "metrics.csv").write_text("epoch\n1\n")
    export_page(run, tmp_path / "page")
    assert (tmp_path / "page/run/metrics.csv").read_text() == "epoch\n1\n"
    assert not (tmp_path / "page/run/checkpoints").exists()
    (run / "metrics.csv").write_text("epoch\n1\n2\n")
    assert export_page(run, tmp_path / "page").already_there == len(page_files()) + 1
    assert (tmp_path / "page/run/metrics.csv").read_text() == "epoch\n1\n2\n"


def test_the_page_is_in_the_wheel():
    """All of it is below the package, whose files the wheel takes as they are."""
    from dsgen.views.view import PAGE

    package = Path(static.__file__).parent.parent
    assert PAGE.is_relative_to(package)
    ignored = (
        (package.parent / ".gitignore").read_text().splitlines() if (package.parent / ".gitignore").exists() else []
    )
    assert not {"*.js", "vendor", "vendor/", "*.html"} & set(ignored)
    assert shutil.which("git") is None or (PAGE / "vendor/zarrita.js").is_file()
