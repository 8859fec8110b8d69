"""Making a corpus: the same bytes whatever happens, resumed where it stopped, refused where it does not fit."""

import doctest
import json
import math
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from support.corpora import SMALL, digest, earlier_manifest
from support.picture_files import lens_exif

from dsgen.corpus.build import Parameters, composite
from dsgen.corpus.corpus import Corpus
from dsgen.errors import BusyError, ConflictError, DsgenError, InvalidValueError, NotFoundError
from dsgen.integrity.repair import repair
from dsgen.integrity.verify import verify
from dsgen.parallel.locks import exclusive_lock
from dsgen.store.packing import pack
from dsgen.views.info import describe


def test_the_manifest_tells_it_all(corpus: Path):
    """Parameters, counts and, for every picture, file, hash and side."""
    manifest = json.loads((corpus / "corpus.json").read_text())
    assert manifest["rows"] == 72
    assert sum(manifest["splits"].values()) == 72
    assert manifest["parameters"]["seed"] == 0
    assert len(manifest["backgrounds"][0]["sha256"]) == 64
    assert {entry["split"] for entry in manifest["backgrounds"]} == {"train", "validation"}


def test_any_number_of_workers_makes_the_same_bytes(tmp_path: Path, pictures: Path, corpus: Path):
    """Three processes equal one."""
    composite(tmp_path / "c", pictures / "backgrounds", pictures / "foregrounds", SMALL, jobs=3)
    assert digest(tmp_path / "c") == digest(corpus)


def test_the_example_of_the_docstring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """It runs, and gives what it says."""
    monkeypatch.chdir(tmp_path)
    (example,) = doctest.DocTestFinder().find(composite, "composite", globs={})
    assert doctest.DocTestRunner().run(example) == (0, 3)
    assert (tmp_path / "corpus" / "bg_fg" / "bg002").is_dir()


def test_running_again_does_nothing_and_what_is_lost_is_drawn_again(tmp_path: Path, corpus: Path, pictures: Path):
    """A lost folder comes back; finished ones are not touched."""
    shutil.copytree(corpus, tmp_path / "c")
    folders = pictures / "backgrounds", pictures / "foregrounds"
    assert composite(tmp_path / "c", *folders, SMALL, jobs=1).drawn == 0
    shutil.rmtree(tmp_path / "c" / "bg_fg_mask" / "bg002")
    before = (tmp_path / "c" / "bg_fg" / "bg001").stat().st_mtime_ns
    assert composite(tmp_path / "c", *folders, SMALL, jobs=1).drawn == 24
    assert (tmp_path / "c" / "bg_fg" / "bg001").stat().st_mtime_ns == before
    assert digest(tmp_path / "c") == digest(corpus)


def test_killed_at_any_moment_and_run_again_ends_with_the_same_bytes(tmp_path: Path, corpus: Path, pictures: Path):
    """kill -9 at six moments spread over a run."""
    code = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1]); from support.corpora import SMALL;"
        "from dsgen.corpus import pictures as p; from dsgen.corpus.build import composite; write = p._write;"
        "p._write = lambda *a: (__import__('time').sleep(0.003), write(*a));"
        "print('ready', flush=True);"
        "folders = [Path(sys.argv[3]) / kind for kind in ('backgrounds', 'foregrounds')];"
        "composite(Path(sys.argv[2]), *folders, SMALL, jobs=1)"
    )
    for moment in (0.0, 0.03, 0.1, 0.2, 0.3, 0.4):
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(Path(__file__).parent.parent), str(tmp_path / "c"), str(pictures)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(moment)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    composite(tmp_path / "c", pictures / "backgrounds", pictures / "foregrounds", SMALL, jobs=2)
    made = {name: value for name, value in digest(tmp_path / "c").items() if ".partial" not in name}
    assert made == digest(corpus)
    assert set(digest(tmp_path / "c")) == set(made)


def test_what_a_kill_can_leave_is_no_stranger(tmp_path: Path, corpus: Path, pictures: Path):
    """Every unfinished file or folder dsgen writes is taken for its own and done again."""
    (tmp_path / "c" / "sources.zarr.partial").mkdir(parents=True)
    for name in ("corpus.json.partial", "plan.npy.partial", "plan.npy"):
        (tmp_path / "c" / name).write_bytes(b"half")
    composite(tmp_path / "c", pictures / "backgrounds", pictures / "foregrounds", SMALL, jobs=1)
    assert digest(tmp_path / "c") == digest(corpus)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"positions": 5}, "--positions 5 .the corpus has 4."),
        ({"seed": 7}, "--seed 7 .the corpus has 0."),
        ({"flip": False}, "--flip False .the corpus has True."),
    ],
)
def test_other_parameters_are_refused(corpus: Path, pictures: Path, change: dict, message: str):
    """The error names the parameter and both values."""
    with pytest.raises(ConflictError, match=message):
        composite(corpus, pictures / "backgrounds", pictures / "foregrounds", replace(SMALL, **change), jobs=1)


def test_other_pictures_are_refused(corpus: Path, pictures: Path):
    """Fewer foregrounds than the corpus was made from."""
    with pytest.raises(ConflictError, match=r"\n  foregrounds 2 \(the corpus has 3; different: person2.png\)$"):
        composite(corpus, pictures / "backgrounds", pictures / "foregrounds", SMALL, max_foregrounds=2, jobs=1)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (Parameters(positions=0), "--positions: got 0, expected 1 to 65535"),
        (Parameters(label_size=300), "--label-size: got 300, expected a multiple of --size 224"),
        (Parameters(fg_height=225), "--fg-height: got 225, expected 1 to --size 224"),
        (Parameters(quality=0), "--quality: got 0"),
        (Parameters(validation_share=0.6, test_share=0.5), "--test-share: got 0.5"),
    ],
)
def test_impossible_parameters_are_refused(tmp_path: Path, parameters: Parameters, message: str):
    """Name, value and rule."""
    with pytest.raises(InvalidValueError, match=message):
        composite(tmp_path / "c", parameters=parameters)


def test_folders_that_will_not_do_are_refused(tmp_path: Path, pictures: Path):
    """Missing, empty, or a corpus folder with other things in it."""
    with pytest.raises(NotFoundError, match="is no folder"):
        composite(tmp_path / "c", tmp_path / "nowhere", pictures / "foregrounds", SMALL)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidValueError, match="has no pictures"):
        composite(tmp_path / "c", pictures / "backgrounds", tmp_path / "empty", SMALL)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("")
    with pytest.raises(InvalidValueError, match=r"holds other files \(thesis.tex\)"):
        composite(tmp_path / "mine", pictures / "backgrounds", pictures / "foregrounds", SMALL)
    with pytest.raises(InvalidValueError, match="--jobs: got 0"):
        composite(tmp_path / "c", pictures / "backgrounds", pictures / "foregrounds", SMALL, jobs=0)


def test_a_second_run_in_the_same_folder_is_refused(tmp_path: Path, pictures: Path):
    """While one dsgen writes, another says so and leaves."""
    with exclusive_lock(tmp_path / "c"), pytest.raises(BusyError, match="another dsgen is writing here"):
        composite(tmp_path / "c", pictures / "backgrounds", pictures / "foregrounds", SMALL)


def test_impossible_values_are_one_line_each():
    """No rule fails on what another rule refuses, and nobody is told they gave a default."""
    for name, value in (
        ("size", 0),
        ("size", -1),
        ("size", 8),
        ("label_size", 0),
        ("label_size", 448 * 10**6),
        ("positions", 65536),
        ("fg_height", 0),
        ("validation_share", math.nan),
        ("validation_share", math.inf),
        ("test_share", math.nan),
        ("test_share", -math.inf),
        ("split_by", "rooms"),
    ):
        with pytest.raises(InvalidValueError, match=f"^--{name.replace('_', '-')}: got {value}, expected"):
            Parameters(**{name: value}).check()
    with pytest.raises(InvalidValueError, match="--fg-height: got 110, the default, expected 1 to --size 64"):
        Parameters(size=64).check()


def test_too_many_rows_are_refused_before_any_is_drawn(tmp_path: Path, pictures: Path):
    """The product of all numbers counts."""
    folders = pictures / "backgrounds", pictures / "foregrounds"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dsgen.corpus.build.MAX_ROWS", 71)
        with pytest.raises(InvalidValueError, match=r"x 2 \(mirrored too\) x 4 positions make 72 rows"):
            composite(tmp_path / "c", *folders, SMALL, jobs=1)
    assert not (tmp_path / "c").exists()


def test_without_rows_to_validate_with_a_warning_says_so(tmp_path: Path, pictures: Path, caplog):
    """With what would help."""
    folders = pictures / "backgrounds", pictures / "foregrounds"
    composite(tmp_path / "c", *folders, SMALL, max_backgrounds=1, jobs=1, pictures=False)
    assert "no row to validate with" in caplog.text
    assert "use more pictures, or --split-by foreground" in caplog.text


def test_corpora_of_earlier_versions_resume(tmp_path: Path, pictures: Path):
    """They record neither what decides the split nor that unused rows are skipped."""
    folders = pictures / "backgrounds", pictures / "foregrounds"
    composite(tmp_path / "c", *folders, SMALL, jobs=1, pictures=False)
    recorded = Corpus(tmp_path / "c").manifest["parameters"]
    parameters = {name: value for name, value in recorded.items() if name not in ("split_by", "skip_unused")}
    (tmp_path / "c/corpus.json").write_bytes(earlier_manifest(tmp_path / "c", parameters=parameters))
    assert composite(tmp_path / "c", *folders, SMALL, jobs=1).drawn == 72
    with pytest.raises(ConflictError, match=r"--skip-unused True \(the corpus has False\)"):
        composite(tmp_path / "c", *folders, replace(SMALL, skip_unused=True), jobs=1)


def test_a_corpus_without_unused_rows_goes_through_every_stage(tmp_path: Path, pictures: Path):
    """Its pictures are those of its plan; it is verified, repaired, packed, and its pixels agree with the store's."""
    folders, path = (pictures / "backgrounds", pictures / "foregrounds"), tmp_path / "c"
    made = composite(path, *folders, replace(SMALL, skip_unused=True), jobs=1)
    assert made.splits["unused"] == 0
    assert made.drawn == made.rows == sum(made.splits.values()) < 72
    assert len(list(path.glob("bg_fg/*/*.jpeg"))) == made.rows
    assert not verify(path, jobs=1).findings
    victim = sorted(path.glob("bg_fg/*/*.jpeg"))[-1]
    content = victim.read_bytes()
    victim.unlink()
    assert not repair(path, backgrounds=folders[0], foregrounds=folders[1], jobs=1).remaining
    assert victim.read_bytes() == content
    assert describe(path).drawn_rows == made.rows
    packed = pack(path, tmp_path / "s", jobs=1)
    assert packed.rows == made.rows
    assert packed.shards == -(-made.rows // 20)
    assert not verify(tmp_path / "s", path, jobs=1).findings


def test_verify_refuses_another_number_of_positions_at_once(tmp_path: Path, pictures: Path):
    """Before it draws a plan of that size."""
    composite(tmp_path / "c", pictures / "backgrounds", pictures / "foregrounds", SMALL, jobs=1, pictures=False)
    parameters = {**Corpus(tmp_path / "c").manifest["parameters"], "positions": 65535}
    (tmp_path / "c/corpus.json").write_bytes(earlier_manifest(tmp_path / "c", parameters=parameters))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dsgen.integrity.check_corpus.plan_rows", lambda *_, **__: pytest.fail("drawn"))
        (finding,) = verify(tmp_path / "c", jobs=1).findings
    assert "72 rows, expected 1,179,630 as pictures and parameters say" in finding.what


def views(corpus: Path) -> list[tuple[float | None, str | None]]:
    """The fields of view that a manifest records, and where they are from."""
    backgrounds = json.loads((corpus / "corpus.json").read_bytes())["backgrounds"]
    return [(entry.get("fov_deg"), entry.get("fov_from")) for entry in backgrounds]


def test_the_fields_of_view_of_the_squares_are_recorded(tmp_path: Path, pictures: Path, caplog):
    """From a CSV file beside the folder, EXIF and the option: of 130 x 110 pixels the centre 110 are used."""
    rooms = tmp_path / "rooms"
    shutil.copytree(pictures / "backgrounds", rooms)
    with Image.open(rooms / "room1.png") as image:
        image.save(rooms / "room1.png", exif=lens_exif(film_mm=26))
    (tmp_path / "rooms.csv").write_text("name,fov_deg\nroom0,70\nroom2,\n")

    def make(name: str, **options: object) -> list[tuple[float | None, str | None]]:
        composite(tmp_path / name, rooms, pictures / "foregrounds", SMALL, jobs=1, pictures=False, **options)
        return views(tmp_path / name)

    assert make("c") == [(61.2921, "csv"), (60.7234, "exif"), (None, None)]
    assert make("c") == make("c")
    assert not verify(tmp_path / "c", jobs=1).findings
    assert make("d", fov_deg=60)[2] == (52.0735, "option")
    assert make("one", fov_deg=60, max_backgrounds=1) == [(61.2921, "csv")]
    with pytest.raises(ConflictError, match=r"field of view of room2.png none \(the corpus has 52.0735\)"):
        make("d")
    (tmp_path / "rooms.csv").write_text("name,fov_deg\nroom0,71\n")
    with pytest.raises(ConflictError, match=r"field of view of room0\.png"):
        make("c")
    (tmp_path / "rooms.csv").write_text("name,fov_deg\nroom7,71\n")
    with pytest.raises(DsgenError, match="'room7' is no picture of"):
        make("e")
    assert not (tmp_path / "e").exists()
    with pytest.raises(InvalidValueError, match="--fov: got 181, expected degrees above 0 and below 180"):
        make("e", fov_deg=181)
    assert "fields of view" not in caplog.text


def test_a_corpus_without_fields_of_view_stays_as_it_is(tmp_path: Path, pictures: Path, caplog):
    """Nothing is recorded that is not known; what is known later is not taken in silence."""
    sources = pictures / "backgrounds", pictures / "foregrounds"
    composite(tmp_path / "c", *sources, SMALL, jobs=1, pictures=False)
    before = (tmp_path / "c" / "corpus.json").read_bytes()
    assert b"fov" not in before
    composite(tmp_path / "c", *sources, SMALL, jobs=1, pictures=False, fov_deg=60)
    assert (tmp_path / "c" / "corpus.json").read_bytes() == before
    assert "does not record the fields of view of its backgrounds, though they are known" in caplog.text


def test_the_bundled_backgrounds_say_their_fields_of_view(tmp_path: Path):
    """As `assets/backgrounds.csv` has them."""
    composite(tmp_path / "c", max_backgrounds=2, max_foregrounds=2, jobs=1, pictures=False)
    assert views(tmp_path / "c") == [(61.764, "csv"), (70.101, "csv")]
