"""`--config`: options from TOML, JSON, and the records that runs and corpora keep."""

import json
from pathlib import Path
from typing import Any

import pytest

from .conftest import Run, Stages


def settings(stages: Stages) -> Any:
    """The settings that training was called with."""
    return stages.only()[0][2]


def test_options_come_from_toml(run: Run, stages: Stages, tmp_path: Path):
    """At the top of the file or in its section, with `-` or `_`; lists stand for values with commas."""
    (tmp_path / "run.toml").write_text(
        'store = "other"\nepochs = 3\nsave-every = 1\ntensorboard = true\n'
        '[settings]\nsizes = [32, 64]\nbatch_size = 4\nlearning-rate = 0.01\naverage = false\ncolour = "grey"\n'
    )
    assert run("train", "--config", "run.toml").code == 0
    (store, folder, chosen), options = stages.only()
    assert (store, folder) == ("other", Path("run"))
    assert (options["epochs"], options["save_every"], options["show_in_tensorboard"]) == (3, 1.0, True)
    assert (chosen.sizes, chosen.batch_size, chosen.learning_rate) == ((32, 64), (4,), 0.01)
    assert (chosen.average, chosen.colour) == (False, "grey")
    assert chosen.width == 16


def test_the_command_line_wins(run: Run, stages: Stages, tmp_path: Path):
    """Over the file, wherever `--config` stands; the file wins over the defaults."""
    (tmp_path / "run.json").write_text(json.dumps({"epochs": 3, "width": 8, "average": False}))
    assert run("train", "--epochs", 5, "--config", "run.json", "--average").code == 0
    assert stages.only()[1]["epochs"] == 5
    assert (settings(stages).width, settings(stages).average) == (8, True)


def test_a_runs_record_can_be_given_back(run: Run, stages: Stages, tmp_path: Path):
    """All its settings and its epochs, those that mean "all" or "none" too; the rest of it says what happened."""
    from dsgen.training.settings import Settings

    was = Settings(seed=3, sizes=(64,), batch_size=(2,), validation_samples=None, clip=1.5, encoder="resnet10t")
    record = {
        "dsgen": "0.1.0",
        "torch": "2.9",
        "settings": was.as_dict(),
        "epochs": 4,
        "sizes_by_epoch": [64, 64, 64, 64],
        "device": "cuda:0",
        "processes": 2,
        "parameters": 2161666,
        "init_sha256": None,
    }
    (tmp_path / "config.json").write_text(json.dumps(record))
    assert run("train", "--config", "config.json").code == 0
    assert settings(stages) == was
    assert (stages.only()[1]["epochs"], stages.only()[1]["device"]) == (4, "auto")


def test_a_corpus_record_can_be_given_back(run: Run, pictures: Path, corpus: Path):
    """Its parameters: with the same pictures the same corpus comes out, and is found to be there."""
    folders = ("--backgrounds", pictures / "backgrounds", "--foregrounds", pictures / "foregrounds")
    done = run("composite", "again", "--config", corpus / "corpus.json", *folders, "--jobs", 1)
    assert done.code == 0, done.err
    assert Path("again/plan.npy").read_bytes() == (corpus / "plan.npy").read_bytes()
    again = run("composite", "again", "--config", "again/corpus.json", *folders, "--jobs", 1)
    assert "; 0 drawn now, 72 already existed" in again.out


def test_composite_takes_toml(run: Run, stages: Stages, tmp_path: Path):
    """Its section has the name it has in `corpus.json`."""
    (tmp_path / "c.toml").write_text(
        'corpus = "mine"\nmax_backgrounds = 2\npictures = false\n'
        "[parameters]\nsize = 64\nlabel_size = 128\nflip = false\n"
    )
    assert run("composite", "--config", "c.toml", "--label-size", 192).code == 0
    (corpus, _, _, parameters), options = stages.only()
    assert corpus == Path("mine")
    assert (parameters.size, parameters.label_size, parameters.flip) == (64, 192, False)
    assert (options["max_backgrounds"], options["pictures"]) == (2, False)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("c.toml", "epohcs = 3", "c.toml: unknown option 'epohcs'; did you mean 'epochs'?"),
        (
            "c.toml",
            "[settings]\nlearning_rat = 1.0",
            "c.toml: unknown option 'learning_rat'; did you mean 'learning_rate'?",
        ),
        ("c.toml", "qqqqqq = 3", "c.toml: unknown option 'qqqqqq'; known are "),
        ("c.toml", "json = true", "c.toml: unknown option 'json'"),
        ("c.toml", 'epochs = "3"', "c.toml: --epochs: got '3', expected a whole number"),
        ("c.toml", "epochs = 3.5", "c.toml: --epochs: got 3.5, expected a whole number"),
        ("c.toml", "epochs = true", "c.toml: --epochs: got True, expected a whole number"),
        ("c.toml", "tensorboard = 1", "c.toml: --tensorboard: got 1, expected true or false"),
        ("c.toml", 'learning_rate = "x"', "c.toml: --learning-rate: got 'x', expected a number"),
        ("c.toml", "run = 3", "c.toml: --run: got 3, expected a path"),
        ("c.toml", "sizes = [1.5]", "c.toml: --sizes: got [1.5], expected text"),
        ("c.toml", 'sizes = "a,b"', "--sizes: got a,b, expected whole numbers"),
        ("c.toml", "epochs = ", "--config: c.toml cannot be read as TOML ("),
        ("c.json", "{", "--config: c.json cannot be read as JSON ("),
        ("c.json", "[1]", "--config: c.json holds no options by name; correct it"),
        ("c.yaml", "epochs: 3", "--config: got c.yaml, expected a file that ends in .toml or .json"),
    ],
)
def test_what_is_wrong_with_a_file(name: str, text: str, message: str, run: Run, stages: Stages, tmp_path: Path):
    """Exit code 2, and a line that says what was expected; nothing is run."""
    (tmp_path / name).write_text(text)
    done = run("train", "--config", name)
    assert (done.code, done.out, stages.calls) == (2, "", [])
    assert done.err.startswith(f"error: {message}"), done.err
    assert done.err.count("\n") == 1


def test_all_that_is_wrong_is_listed(run: Run, tmp_path: Path):
    """In one pass."""
    (tmp_path / "c.toml").write_text("epohcs = 3\nwidth = false\n")
    done = run("train", "--config", "c.toml")
    assert (done.code, done.err.count("\n")) == (2, 3)


def test_a_missing_file(run: Run):
    """It is the option that names nothing."""
    done = run("composite", "--config", "nowhere.toml")
    assert (done.code, done.err) == (2, "error: --config: nowhere.toml: no such file; check the path\n")


def test_help_says_what_wins(run: Run):
    """In the help of the option and of the program."""
    for arguments in (("train", "--help"), ("composite", "--help"), ("--help",)):
        assert "command line wins over" in " ".join(run(*arguments).out.split()), arguments
