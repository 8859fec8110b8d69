"""Options that a mode does not use are refused; older spellings; options that commands share."""

from pathlib import Path

import pytest

from .conftest import Run, Stages, changed

HERE = "leave it out"
IMAGES = "leave it out, or add --images FOLDER"
ONNX = ("export", "run", "model.onnx")
REFUSED = [
    ((*ONNX, "--split", "test"), "--split", "a network is exported", HERE),
    ((*ONNX, "--format", "parquet"), "--format", "a network is exported", HERE),
    ((*ONNX, "--image-format", "png"), "--image-format", "a network is exported", HERE),
    ((*ONNX, "--backgrounds"), "--backgrounds", "a network is exported", HERE),
    ((*ONNX, "--no-backgrounds"), "--no-backgrounds", "a network is exported", HERE),
    ((*ONNX, "--rows-per-file", "1000"), "--rows-per-file", "a network is exported", HERE),
    ((*ONNX, "--jobs", "2"), "--jobs", "a network is exported", HERE),
    ((*ONNX, "--endpoint", "http://x"), "--endpoint", "a network is exported", HERE),
    ((*ONNX, "--push-to-hub", "me/x"), "--push-to-hub", "a network is exported", HERE),
    (
        ("export", "s", "t", "--public"),
        "--public",
        "nothing is uploaded",
        "leave it out, or add --push-to-hub OWNER/NAME",
    ),
    (
        ("export", "s", "t", "--private"),
        "--private",
        "nothing is uploaded",
        "leave it out, or add --push-to-hub OWNER/NAME",
    ),
    (("depth", "folder", "--part", "1/2"), "--part", "a folder of pictures is labelled", HERE),
    (("depth", "folder", "--backend", "dask"), "--backend", "a folder of pictures is labelled", HERE),
    (("depth", "folder", "--scheduler", "tcp://x"), "--scheduler", "a folder of pictures is labelled", HERE),
    (("depth", "folder", "--jobs", "2"), "--jobs", "a folder of pictures is labelled", HERE),
    (("depth", "folder", "--check-flip"), "--check-flip", "a folder of pictures is labelled", HERE),
    (
        ("depth", "folder", "--metric-reference", "bundled"),
        "--metric-reference",
        "a folder of pictures is labelled",
        HERE,
    ),
    (("depth", "--out", "x"), "--out", "a corpus is labelled", HERE),
    (("depth", "--format", "npy"), "--format", "a corpus is labelled", HERE),
    (("depth", "--kind", "metric"), "--kind", "--model is not hf:NAME", HERE),
    (("depth", "folder", "--kind", "metric"), "--kind", "--model is not hf:NAME", HERE),
    (("depth", "--model", "hf:x", "--weights", "w"), "--weights", "--model is hf:NAME", HERE),
    (("depth", "--model", "hf:x", "--max-depth", "8"), "--max-depth", "--model is hf:NAME", HERE),
    (("depth", "--model", "hf:x", "--compile"), "--compile", "--model is hf:NAME", HERE),
    (("pack", "--masks", "m"), "--masks", "a corpus is packed", IMAGES),
    (("pack", "--depths", "m"), "--depths", "a corpus is packed", IMAGES),
    (("pack", "--backgrounds", "m"), "--backgrounds", "a corpus is packed", IMAGES),
    (("pack", "--size", "224"), "--size", "a corpus is packed", IMAGES),
    (("pack", "--png-unit", "1"), "--png-unit", "a corpus is packed", IMAGES),
    (("pack", "--validation-share", "0.1"), "--validation-share", "a corpus is packed", IMAGES),
    (("pack", "--test-share", "0.1"), "--test-share", "a corpus is packed", IMAGES),
    (("pack", "--seed", "0"), "--seed", "a corpus is packed", IMAGES),
    (("pack", "--images", "i", "--recipe"), "--recipe", "pictures are packed (--images)", HERE),
    (("pack", "--images", "i", "--max-flip-error", "1"), "--max-flip-error", "pictures are packed (--images)", HERE),
    (("pack", "corpus", "--images", "i"), "CORPUS", "pictures are packed (--images)", HERE),
    (
        ("pack", "--images", "i", "--png-unit", "1"),
        "--png-unit",
        "no --depths are packed",
        "leave it out, or add --depths FOLDER",
    ),
    (("verify", "corpus", "--corpus", "c"), "--corpus", "a corpus is verified", HERE),
    (("repair", "corpus", "--corpus", "c"), "--corpus", "a corpus is repaired", HERE),
    (("repair", "shards", "--backgrounds", "b"), "--backgrounds", "a store is repaired", HERE),
    (("repair", "shards", "--foregrounds", "b"), "--foregrounds", "a store is repaired", HERE),
    (("pack", "--images", "i", "--composed"), "--composed", "pictures are packed (--images)", HERE),
    (("depth", "folder", "--composed"), "--composed", "a folder of pictures is labelled", HERE),
    (("depth", "--background-depths", "d"), "--background-depths", "a network labels (no --composed)", HERE),
    *(
        (("depth", "--composed", *option), option[0], "depth is composed (--composed)", HERE)
        for option in (
            ("--batch-size", "2"),
            ("--compile",),
            ("--precision", "float32"),
            ("--average-flip",),
            ("--check-flip",),
            ("--metric-reference", "bundled"),
            ("--max-depth", "8"),
        )
    ),
    *(
        (
            ("composite", *more, option, "x"),
            option,
            "people are put at random places (--place random)",
            HERE,
        )
        for option in ("--background-depths", "--depth-weights")
        for more in ((), ("--people", "2"))
    ),
    (("composite", "--no-pictures", "--part", "1/2"), "--part", "no pictures are written (--no-pictures)", HERE),
    (("composite", "--no-pictures", "--backend", "dask"), "--backend", "no pictures are written (--no-pictures)", HERE),
    *(
        (
            (command, "--scheduler", "tcp://x:1"),
            "--scheduler",
            "--backend is local",
            "leave it out, or add --backend dask",
        )
        for command in ("composite", "depth", "pack")
    ),
]


@pytest.mark.parametrize(
    ("arguments", "option", "when", "remedy"), REFUSED, ids=[" ".join(case[0]) for case in REFUSED]
)
def test_what_a_mode_ignores_is_refused(
    arguments: tuple[str, ...], option: str, when: str, remedy: str, run: Run, stages: Stages, tmp_path: Path
):
    """Also where it says what is the default; nothing is run."""
    (tmp_path / "folder").mkdir()
    done = run(*arguments)
    assert (done.code, done.out, stages.calls) == (2, "", [])
    assert done.err == f"error: {option}: not used when {when}; {remedy}\n"


def test_what_a_file_gives_is_refused_too(run: Run, stages: Stages, tmp_path: Path):
    """`--config` is no way around."""
    (tmp_path / "c.toml").write_text('pictures = false\npart = "1/2"\n')
    done = run("composite", "--config", "c.toml")
    assert (done.code, stages.calls) == (2, [])
    assert done.err.startswith("error: --part: not used when no pictures are written")


def test_all_that_is_ignored_is_named(run: Run, stages: Stages):
    """In one pass."""
    done = run(*ONNX, "--split", "test", "--jobs", 2)
    assert done.code == 2
    assert [line.split(":")[0].strip() for line in done.err.splitlines()[1:]] == ["--split", "--jobs"]


@pytest.mark.parametrize("command", ["composite", "depth", "pack"])
def test_dask_needs_its_scheduler(command: str, run: Run, stages: Stages):
    """And a backend must be one of the two."""
    assert run(command, "--backend", "dask").err == (
        "error: --backend: got dask, expected the address of its scheduler too; add --scheduler tcp://HOST:8786\n"
    )
    assert run(command, "--backend", "ray").err.startswith("error: --backend: got 'ray', expected local or dask")
    assert stages.calls == []
    assert run(command, "--backend", "dask", "--scheduler", "tcp://x:1").code == 0
    assert stages.only()[1]["cluster"] == "tcp://x:1"


def test_the_older_spelling_of_the_corpus(run: Run, stages: Stages):
    """`composite --corpus X` still works, is not shown, and must not contradict the argument."""
    for arguments in (("--corpus", "mine"), ("mine",), ("mine", "--corpus", "mine")):
        stages.calls.clear()
        assert run("composite", *arguments).code == 0
        assert stages.only()[0][0] == Path("mine")
    done = run("composite", "mine", "--corpus", "yours")
    assert (done.code, done.err) == (2, "error: --corpus: got yours, but CORPUS is mine; leave out --corpus\n")
    assert "--corpus" not in run("composite", "--help").out


@pytest.mark.parametrize(
    ("arguments", "position", "expected"),
    [
        (("composite",), 0, Path("corpus")),
        (("composite", "x"), 0, Path("x")),
        (("depth", "x"), 0, Path("x")),
        (("pack",), 0, ("corpus", Path("corpus"), None, False)),
        (("pack", "x"), 0, ("corpus", Path("x"), None, False)),
        (("pack", "x", "--composed"), 0, ("corpus", Path("x"), None, True)),
        (("train", "x"), 0, "x"),
        (("info",), 0, "corpus"),
        (("info", "x"), 0, "x"),
        (("preview", "x"), 0, "x"),
        (("report",), 0, "shards"),
        (("report", "x"), 0, "x"),
        (("report", "x", "y.html"), 1, Path("y.html")),
        (("verify",), 0, "corpus"),
        (("verify", "x"), 0, "x"),
        (("repair", "x"), 0, "x"),
        (("evaluate", "r", "x"), 1, "x"),
        (("export", "x", "tars"), 0, "x"),
    ],
)
def test_what_is_worked_on_is_an_argument(
    arguments: tuple[str, ...],
    position: int,
    expected: object,
    run: Run,
    stages: Stages,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    """The corpus or store comes right after the command, everywhere."""
    monkeypatch.chdir(tmp_path)
    if arguments == ("depth", "x"):  # which tells a corpus from a folder of pictures
        Path("x").mkdir()
        Path("x/corpus.json").touch()
    done = run(*arguments)
    assert done.code == 0, done.err
    assert stages.only()[0][position] == expected


def test_a_part_is_read(run: Run, stages: Stages):
    """And the result says what the others have still to do."""
    from dsgen.parallel.parts import Part

    stages.results["dsgen.corpus.build.composite"] = changed(stages.results["dsgen.corpus.build.composite"], left=4000)
    done = run("composite", "--part", "3/8")
    assert stages.only()[1]["part"] == Part(3, 8)
    assert done.out.endswith("234 already existed in part 3/8, 4,000 left to other parts\n")
