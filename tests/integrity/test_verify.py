"""Verify and repair as commands: what they accept and refuse, locks, and how findings are shown."""

import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from support.damage import flip, linked
from typer.testing import CliRunner

from dsgen.cli.app import app
from dsgen.corpus.corpus import Corpus
from dsgen.errors import DsgenError
from dsgen.integrity.findings import RepairLog, ReportBuilder
from dsgen.integrity.repair import repair
from dsgen.integrity.verify import verify
from dsgen.parallel.locks import LOCK, exclusive_lock
from dsgen.store.layout import shard_name
from dsgen.store.reader import Store


def test_a_second_writer_is_refused(tmp_path: Path, viewed: Path, stores: Path, labelled_corpus: Path) -> None:
    """Repair refuses while dsgen composite, depth or pack runs here as one of several parts."""
    path, shards = linked(viewed, tmp_path / "c"), linked(stores / "folder", tmp_path / "s")
    flip(path / "bg/bg001.jpeg")
    flip(shards / shard_name(0, 2) / "row/c/0")
    for target, stages in ((path, ("composite", "depth")), (shards, ("pack",))):
        for stage in stages:
            with (
                exclusive_lock(target, f"{LOCK}-{stage}-1-of-2"),
                pytest.raises(DsgenError, match=rf"{stage} --part.* at work here"),
            ):
                repair(target, labelled_corpus, jobs=1)


def test_commands_report_and_exit(tmp_path: Path, stores: Path, labelled_corpus: Path) -> None:
    """A table and one line of result; exit code 1 while there are findings, and 0 once they are repaired."""
    path = linked(stores / "folder", tmp_path / "s")
    runner = CliRunner()
    good = runner.invoke(app, ["verify", str(path), "--fast", "--jobs", "1"])
    assert (good.exit_code, good.stdout.count("\n")) == (0, 1)
    assert "no findings" in good.stdout
    flip(path / shard_name(0, 2) / "mask/c/0/0/0")
    bad = runner.invoke(app, ["verify", str(path), "--fast", "--jobs", "1"])
    assert bad.exit_code == 1
    assert "its hash differs" in bad.stdout
    assert "1 finding" in bad.stdout.splitlines()[-1]
    done = runner.invoke(app, ["repair", str(path), "--corpus", str(labelled_corpus), "--jobs", "1"])
    assert (done.exit_code, done.stdout) == (
        0,
        f"{shard_name(0, 2)}/mask/c/0/0/0  recreated\n{path}: 1 finding; 1 recreated, 0 removed; no findings left\n",
    )
    assert "nothing to repair" in runner.invoke(app, ["repair", str(path)]).stdout


def test_summaries_count_findings() -> None:
    """Findings, and how many of them are missing files; what a repair did, and what it left."""
    report = ReportBuilder("s", "store")
    assert report.build(seconds=1).summary() == "s: no findings; 0 files, 0.0 MB read in 1.0 s (0.00 GB/s)"
    report.find("a/1", "missing")
    assert report.build(seconds=1).summary().startswith("s: 1 finding (1 file or folder missing); 0 files")
    report.find("a/2", "missing")
    report.find("a/3", "empty")
    built = report.build(seconds=1)
    assert built.summary().startswith("s: 3 findings (2 files or folders missing); 0 files")
    assert json.loads(json.dumps(asdict(built)))["findings"][2] == {"file": "a/3", "what": "empty"}
    log = RepairLog("s", 4, replaced=["a/1", "b"], removed=["c"])
    assert log.build(built).summary() == (
        "s: 4 findings; 1 recreated, 1 removed; 3 findings (2 files or folders missing) left"
    )
    assert RepairLog("s").build().summary() == "s: no findings, nothing to repair"


def test_long_tables_are_cut() -> None:
    """The first two hundred lines in order of name, then the number of the others."""
    report = ReportBuilder("s", "store")
    for number in reversed(range(300)):
        report.find(f"part/{number:03d}", "missing")
    lines = report.build(seconds=1).table().splitlines()
    assert len(lines) == 202
    assert lines[1].split() == ["part", "part/000", "missing"]
    assert lines[-1] == "... and 100 more"


def test_neither_corpus_nor_store_is_refused(tmp_path: Path, corpus: Path, stores: Path) -> None:
    """A missing folder, a file, an empty folder, a shard, an unfinished store, a corpus compared with a corpus."""
    for location, what in (
        (tmp_path / "none", "no such folder, expected a corpus or a store"),
        (corpus / "plan.npy", "a file, expected a corpus or a store"),
        (
            stores / "folder" / shard_name(0, 2),
            f"one shard of a store, expected a corpus or a store; pass {stores / 'folder'}",
        ),
        (tmp_path, f"an empty folder, expected a corpus or a store; run dsgen composite {tmp_path} for a corpus"),
    ):
        with pytest.raises(DsgenError, match=what):
            verify(location)
    (tmp_path / "packing").mkdir()
    with pytest.raises(DsgenError, match=r"an unfinished store .*; run dsgen pack"):
        verify(tmp_path)
    with pytest.raises(DsgenError, match="is a corpus itself"):
        verify(corpus, corpus)
    (tmp_path / "packing").rmdir()
    (tmp_path / "sources.zarr.partial").mkdir()
    assert "the corpus is unfinished" in verify(tmp_path).notes[0]


@pytest.mark.parametrize("kind", ["folder", "pipe", "loop", "dangling", "device"])
@pytest.mark.parametrize("name", ["corpus.json", "plan.npy", "depth.zarr/zarr.json", "bg/bg001.jpeg"])
def test_what_stands_in_the_place_of_a_file_is_a_finding(viewed: Path, tmp_path: Path, name: str, kind: str) -> None:
    """Nothing that only has the name of a file is opened: a pipe would be waited for, a device read without end."""
    corpus = tmp_path / "corpus"
    shutil.copytree(viewed, corpus)
    path = corpus / name
    path.unlink()
    make = {"folder": path.mkdir, "pipe": lambda: os.mkfifo(path), "loop": lambda: path.symlink_to(path.name)}
    make |= {"dangling": lambda: path.symlink_to("nothing"), "device": lambda: path.symlink_to("/dev/zero")}
    make[kind]()
    assert verify(corpus, jobs=1).findings
    if not name.startswith("bg"):
        with pytest.raises(DsgenError, match=r"not a file|missing"):
            np.asarray(Corpus(corpus).depth[:1])
    if name == "plan.npy":
        assert repair(corpus, jobs=1).replaced == ("plan.npy",)


def test_odd_entries_of_corpora_and_stores_are_findings(viewed: Path, stores: Path, tmp_path: Path) -> None:
    """Loops, pipes and names that are not UTF-8 are extra files, not errors."""
    corpus, store = tmp_path / "corpus", tmp_path / "store"
    shutil.copytree(viewed, corpus)
    shutil.copytree(stores / "folder", store)
    for folder in (corpus / "bg", store / shard_name(0, 2)):
        (folder / "loop").symlink_to("loop")
        os.mkfifo(folder / "pipe")
        with open(os.fsencode(folder) + b"/l\xe9", "wb"):
            pass
    for place in (corpus, store):
        found = [finding.file for finding in verify(place, jobs=1).findings]
        assert len(found) >= 3, found


def test_an_index_that_links_to_itself_is_no_store(stores: Path, tmp_path: Path) -> None:
    """A link in a loop is no file to any reader."""
    store = tmp_path / "store"
    shutil.copytree(stores / "folder", store)
    (store / "index.json").unlink()
    (store / "index.json").symlink_to("index.json")
    assert [finding.file for finding in verify(store, jobs=1).findings] == ["index.json"]
    with pytest.raises(DsgenError, match="unfinished store"):
        Store(store)
