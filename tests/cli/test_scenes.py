"""People on floors and composed depth, from the command line to a store; wrong values of their options."""

import json
from pathlib import Path

import pytest
from support.corpora import files

from .conftest import Run, Stages

SMALL = ("--positions", 1, "--size", 48, "--label-size", 96, "--fg-height", 20, "--test-share", 0, "--jobs", 1)


def folders(pictures: Path, depths: bool = True) -> list[object]:
    """The options that name the pictures, and their depth."""
    kinds = ["backgrounds", "foregrounds"]
    found: list[object] = [part for kind in kinds for part in (f"--{kind}", pictures / kind)]
    return [*found, "--background-depths", pictures / "depths"] if depths else found


def test_people_on_floors_from_pictures_to_a_store(run: Run, room_pictures: Path):
    """Composite, depth, pack, verify, info and preview; every result line tells what was done."""
    options = *SMALL, *folders(room_pictures), "--place", "floor", "--people", "1-2", "--fov", 60, "--no-pictures"
    made = run("composite", "c", *options)
    assert made.code == 0, made.err
    assert made.out.startswith("c: 30 composites of 3 backgrounds and 5 foregrounds")
    assert "no floor found in 1 of 3 backgrounds (room2)" in made.err
    before = files(Path("c"))
    assert run("composite", "c", *options).code == 0
    assert files(Path("c")) == before
    labelled = run("depth", "c", "--composed", "--jobs", 1)
    assert labelled.out == "c: 30 depth labels; 30 composed now, 0 already existed\n"
    assert run("depth", "c", "--composed").out == "c: 30 depth labels; 0 composed now, 30 already existed\n"
    packed = run("pack", "c", "--out", "s", "--recipe", "--jobs", 1)
    assert packed.code == 0, packed.err
    assert "with depth" in packed.out
    assert run("verify", "c").code == run("verify", "s", "--corpus", "c").code == 0
    described = run("info", "c", "--json").json
    assert described["composed"]["depth_from"] == {"file": 3}
    assert described["people"]["without_floor"] == ["room2"]
    assert run("info", "s").code == 0
    assert run("preview", "c", "--count", 3).code == run("preview", "s", "--count", 3).code == 0


def test_repair_takes_the_depth_of_backgrounds(run: Run, room_pictures: Path):
    """A lost map comes back."""
    options = *SMALL, *folders(room_pictures), "--place", "floor", "--no-pictures"
    assert run("composite", "c", *options).code == 0
    before = files(Path("c"))
    Path("c/rooms.zarr/depth_48/c/1/0/0").unlink()
    assert run("verify", "c").code == 1
    done = run("repair", "c", *folders(room_pictures))
    assert done.code == 0, done.err
    assert files(Path("c")) == before


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("--place", "ceiling", "expected random or floor"),
        ("--people", "0", "expected 1 to 16, or a range such as 1-3"),
        ("--people", "3-2", "expected 1 to 16"),
        ("--people", "17", "expected 1 to 16"),
        ("--people", "two", "expected 1 to 16"),
        ("--people", "1-", "expected 1 to 16"),
        ("--spread", "metres", "expected area or pixels"),
        ("--min-visible", "1", "expected a share of 0 to below 1"),
        ("--min-visible", "-0.1", "expected a share of 0 to below 1"),
        ("--min-visible", "nan", "expected"),
        ("--without-floor", "stop", "expected random or leave-out"),
        ("--tilt", "181", "expected 0 to 180 degrees"),
        ("--tilt", "-1", "expected 0 to 180 degrees"),
        ("--tilt", "nan", "expected"),
        ("--height-jitter", "1", "expected a share of 0 to below 1"),
        ("--height-jitter", "inf", "expected"),
        ("--shadow", "2", "expected 0 to 1"),
        ("--shadow", "0.5", "expected 0 without --place floor"),
        ("--match-colours", "-1", "expected 0 to 1"),
        ("--feather", "4", "expected 0 to 3 pixels"),
        ("--blend", "cloning", "expected one or several of alpha,gaussian,poisson"),
        ("--blend", "alpha,", "expected one or several of alpha,gaussian,poisson"),
        ("--fg-height", "80-300", "expected 1 to --size 224 pixels, or a range such as 80-160"),
        ("--fg-height", "160-80", "expected 1 to --size 224 pixels"),
        ("--fg-height", "0", "expected 1 to --size 224 pixels"),
        ("--fov", "180", "expected"),
    ],
)
def test_wrong_values_are_told(run: Run, option: str, value: str, told: str):
    """One line that names the option, the value and the rule; nothing is written."""
    done = run("composite", f"{option}={value}")
    assert done.code == 2, done
    assert done.err.startswith(f"error: {option}: got {value}"), done.err
    assert told in done.err
    assert done.err.count("\n") == 1
    assert not Path("corpus").exists()


def test_several_wrong_values_are_told_at_once(run: Run):
    """A line each."""
    done = run("composite", "--people", "0", "--tilt", "-3", "--feather", "9")
    assert done.code == 2
    assert sorted(line.split(":")[0].strip() for line in done.err.splitlines()[1:]) == [
        "--feather",
        "--people",
        "--tilt",
    ]


def test_a_folder_that_lacks_depth_is_told(run: Run, room_pictures: Path, tmp_path: Path):
    """Before anything is written."""
    (tmp_path / "depths").mkdir()
    options = *SMALL, *folders(room_pictures, depths=False), "--place", "floor", "--background-depths", "depths"
    done = run("composite", "c", *options)
    assert (done.code, done.out) == (1, "")
    assert "depths: lacks the depth of 3 of the 3 backgrounds (room0, " in done.err
    assert not Path("c").exists()


def test_no_floor_anywhere_is_told(run: Run, room_pictures: Path, tmp_path: Path):
    """Where those without a floor are left out; no corpus is left that looks finished."""
    import numpy as np

    (tmp_path / "walls").mkdir()
    for n in range(3):
        np.save(tmp_path / f"walls/room{n}.npy", np.full((96, 96), 2.0, np.float32))
    options = *SMALL, *folders(room_pictures, depths=False), "--place", "floor", "--background-depths", "walls"
    done = run("composite", "c", *options, "--without-floor", "leave-out")
    assert done.code == 1
    assert "no background has a floor" in done.err
    assert not Path("c/corpus.json").exists()


def test_packing_composed_depth_that_is_not_known_is_refused(run: Run, corpus: Path):
    """The remedy is the command to run."""
    done = run("pack", corpus, "--composed", "--out", "s")
    assert done.code == 2
    assert done.err.startswith("error: --composed: the depth of the backgrounds of")
    assert done.err.endswith("run dsgen depth --composed first\n")
    assert not Path("s").exists()


def test_depth_beside_a_network_s_is_told(run: Run, stages: Stages):
    """The result line says how to compare and to pack it."""
    from dataclasses import replace

    name = "dsgen.corpus.composed.label_composed"
    stages.results[name] = replace(stages.results[name], beside="densedepth")
    Path("corpus").mkdir()
    Path("corpus/corpus.json").write_text("{}")
    done = run("depth", "--composed")
    assert "the labels of densedepth stay; dsgen info compares both, dsgen pack --composed packs it" in done.out
    assert run("depth", "--composed", "--json").json["beside"] == "densedepth"


def test_parameters_of_a_corpus_make_it_again(run: Run, room_pictures: Path):
    """`--config corpus.json` knows the options of scenes."""
    options = *SMALL, *folders(room_pictures), "--place", "floor", "--people", "1-2", "--no-pictures"
    assert run("composite", "c", *options).code == 0
    again = run("composite", "d", "--config", "c/corpus.json", *folders(room_pictures), "--no-pictures", "--jobs", 1)
    assert again.code == 0, again.err
    assert Path("d/plan.npy").read_bytes() == Path("c/plan.npy").read_bytes()
    one, other = (json.loads(Path(name, "corpus.json").read_bytes()) for name in ("c", "d"))
    assert one == other
