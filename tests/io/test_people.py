"""Heights and classes of cut-outs: the CSV file beside the folder, poses, the assumption, sub-folders."""

import csv
from pathlib import Path

import pytest

from dsgen.errors import DsgenError, SeveralErrors
from dsgen.io.assets import asset
from dsgen.io.people import Person, read_people


def people(folder: Path, *names: str) -> list[Path]:
    """Write empty files; only their names matter."""
    paths = [folder / name for name in names]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return paths


def test_the_order_of_the_sources(tmp_path: Path):
    """The column before the pose before the assumption; an empty cell says nothing."""
    paths = people(tmp_path / "in", "a.png", "b.png", "c.png", "d.png", "e.png")
    (tmp_path / "in.csv").write_text("name,height_m,poses\na,1.85,sit\nb,,Sitting\nc.png,,sit+stand\nd,,\n")
    assert read_people(tmp_path / "in", paths) == [
        Person(1.85, "csv", "person"),
        Person(1.3, "assumed", "person"),
        Person(1.7, "assumed", "person"),
        Person(1.7, "assumed", "person"),
        Person(1.7, "assumed", "person"),
    ]


def test_a_table_of_either_column_is_enough(tmp_path: Path):
    """And `pose` says as much as `poses`."""
    paths = people(tmp_path / "in", "a.png", "b.png")
    (tmp_path / "in.csv").write_text("name,pose\na,sit+sit\n")
    assert [person.height_m for person in read_people(tmp_path / "in", paths)] == [1.3, 1.7]
    (tmp_path / "in.csv").write_text("name,height_m\na,0.2\nb,3\n")
    assert [person.height_m for person in read_people(tmp_path / "in", paths)] == [0.2, 3.0]


def test_the_folders_own_table_comes_first_and_others_are_passed_by(tmp_path: Path):
    """`people.csv` is read where none is named like the folder or that one says nothing of people."""
    paths = people(tmp_path / "in", "a.png")
    assert read_people(tmp_path / "in", paths) == [Person(1.7, "assumed", "person")]
    (tmp_path / "people.csv").write_text("name,height_m\na,1.6\n")
    (tmp_path / "in.csv").write_bytes(b"Gr\xf6\xdfe;name\n1;2;3\n")
    assert read_people(tmp_path / "in", paths) == [Person(1.6, "csv", "person")]
    (tmp_path / "in.csv").write_text("name,height_m\na,1.5\n")
    assert read_people(tmp_path / "in", paths) == [Person(1.5, "csv", "person")]


def test_names_match_as_elsewhere(tmp_path: Path):
    """Within the folder, with or without ending, in any normalisation; other files that are told are known."""
    paths = people(tmp_path / "in", "a.jpg", "a.png", "caf\u00e9.png", "deep/x.png")
    text = "name,height_m\na.jpg,1\na.png,1.1\ncafe\u0301,1.2\ndeep/x,1.3\nlater,1.4\n"
    (tmp_path / "in.csv").write_text("\ufeff" + text, encoding="utf-8")
    found = read_people(tmp_path / "in", paths, [tmp_path / "in" / "later.png"])
    assert [person.height_m for person in found] == [1, 1.1, 1.2, 1.3]
    assert [person.label for person in found] == ["person", "person", "person", "deep"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("c,1.7", "in.csv: 'c' is no picture of .*in; correct it; name is that of a picture within"),
        ("b,0.19", "height_m of 'b' is 0.19, expected metres from 0.2 to 3; correct it"),
        ("b,170", "height_m of 'b' is 170, expected metres from 0.2 to 3"),
        ("b,nan", "height_m of 'b' is nan,"),
        ("b,inf", "height_m of 'b' is inf,"),
        ("b,1.7 m", "height_m of 'b' is 1.7 m,"),
        ('b,"1,7"', "height_m of 'b' is 1,7,"),
        ("b,1.7\nb.png,1.7", "'b.png' is there twice; remove one of the lines"),
        ("a,1.7", r"'a' is the name of several pictures \(a.jpg, a.png\); add the ending"),
        ("b,1.7,1", "line 2 has more values than there are columns"),
    ],
)
def test_mistakes_in_the_file_are_named(tmp_path: Path, line: str, message: str):
    """With the value and the rule."""
    paths = people(tmp_path / "in", "a.jpg", "a.png", "b.png")
    (tmp_path / "in.csv").write_text(f"name,height_m\n{line}\n")
    with pytest.raises(DsgenError, match=message):
        read_people(tmp_path / "in", paths)


def test_mistakes_are_listed_together(tmp_path: Path):
    """Those of a table that other folders share have a remedy that does not touch it."""
    paths = people(tmp_path / "in", "a.jpg")
    (tmp_path / "people.csv").write_text("name,height_m\nx,1.7\na,200\n")
    with pytest.raises(SeveralErrors, match="2 problems") as error:
        read_people(tmp_path / "in", paths)
    assert f"or describe its pictures in {tmp_path / 'in.csv'}, which is read instead" in str(error.value)
    (tmp_path / "people.csv").write_text("picture,height_m\na,1.7\n")
    with pytest.raises(DsgenError, match="no column name"):
        read_people(tmp_path / "in", paths)


def test_assumed_heights_of_other_classes_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """A chair is not 1.7 m high; of people nothing is said."""
    paths = people(tmp_path / "in", "chair/a.png", "chair/b.png", "person/a.png")
    (tmp_path / "in.csv").write_text("name,height_m\nchair/a,0.9\n")
    assert read_people(tmp_path / "in", paths) == [
        Person(0.9, "csv", "chair"),
        Person(1.7, "assumed", "chair"),
        Person(1.7, "assumed", "person"),
    ]
    assert "in: taken to be 1.7 m high, as a person is: chair/b.png; give their heights in the column" in caplog.text


def test_the_bundled_people_have_heights():
    """Each of the 100: 1.3 where they sit, else those of adults; the assumption by pose is near."""
    folder = asset("foregrounds")
    paths = sorted(folder.iterdir())
    found = read_people(folder, paths)
    with (folder.parent / "people.csv").open() as file:
        poses = {row["name"]: row["poses"] for row in csv.DictReader(file)}
    assert len(found) == len(poses) == 100
    for path, person in zip(paths, found, strict=True):
        assert person.height_from == "csv"
        if "sit" in poses[path.stem]:
            assert person.height_m == 1.3
        else:
            assert 1.5 <= person.height_m <= 2.0
