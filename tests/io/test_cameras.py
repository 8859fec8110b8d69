"""Fields of view of the pictures of a folder: a CSV file, EXIF, the option, the assumption."""

import re
from pathlib import Path

import pytest
from PIL import Image
from support.picture_files import lens_exif

from dsgen.errors import DsgenError, InvalidValueError, SeveralErrors
from dsgen.io.cameras import Camera, check_fov, read_cameras
from dsgen.io.picture_files import read_size_and_fov


def picture(path: Path, width: int = 40, height: int = 30, exif: Image.Exif | None = None) -> Path:
    """Write a small grey picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (width, height)).save(path, **({} if exif is None else {"exif": exif.tobytes()}))
    return path


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize(
    ("orientation", "size", "degrees"),
    [(1, (30, 40), 69.39), (6, (40, 30), 54.88), (8, (40, 30), 54.88), (3, (30, 40), 69.39)],
)
def test_26_mm_on_a_turned_and_an_upright_picture(
    tmp_path: Path, ending: str, orientation: int, size: tuple[int, int], degrees: float
):
    """36 mm are along the longer side: 69.4 degrees of a wide picture, 54.9 of one that EXIF turns upright."""
    path = picture(tmp_path / f"a.{ending}", exif=lens_exif(orientation, film_mm=26))
    found, fov_deg = read_size_and_fov(path)
    assert found == size
    assert fov_deg == pytest.approx(degrees, abs=0.01)


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_focal_length_on_a_sensor(tmp_path: Path, orientation: int):
    """5.4 mm with 600 pixels a millimetre, of 4000 pixels scaled down to 40: 3240 of 4000, whichever way up."""
    exif = lens_exif(orientation, mm=(54, 10), plane=(6000, 1), unit=3, taken_width=4000)
    _, fov_deg = read_size_and_fov(picture(tmp_path / "a.jpg", exif=exif))
    assert fov_deg == pytest.approx({1: 63.37, 6: 49.68}[orientation], abs=0.01)
    exif = lens_exif(orientation, mm=(54, 10), plane=(1524, 10))  # 6 a millimetre told by the inch, of the stored 40
    _, again = read_size_and_fov(picture(tmp_path / "b.jpg", exif=exif))
    assert again == pytest.approx(fov_deg)


@pytest.mark.parametrize(
    "tags",
    [
        {},
        {"film_mm": 0},
        {"film_mm": 1},
        {"film_mm": 60000},
        {"mm": (50, 1)},
        {"mm": (0, 0), "plane": (100, 1)},
        {"mm": (50, 1), "plane": (0, 1)},
        {"mm": (50, 1), "plane": (100, 1), "unit": 1},
        {"mm": (5, 1), "plane": (1, 1), "unit": 2},
    ],
)
def test_what_no_lens_has_is_not_believed(tmp_path: Path, tags: dict[str, object]):
    """Zeros, values without a unit, and fields of view that only a fisheye or a telescope has."""
    assert read_size_and_fov(picture(tmp_path / "a.jpg", exif=lens_exif(**tags))) == ((30, 40), None)


def test_damaged_exif_hides_no_picture(tmp_path: Path):
    """The lens is then not known."""
    exif = lens_exif(film_mm=26).tobytes()
    path = tmp_path / "a.jpg"
    Image.new("L", (40, 30)).save(path, exif=exif[:-30])
    size, _ = read_size_and_fov(path)
    assert size == (30, 40)


def test_the_order_of_the_sources(tmp_path: Path):
    """CSV before EXIF before the option before the assumption, each along the width."""
    folder = tmp_path / "in"
    paths = [
        picture(folder / "a.jpg", exif=lens_exif(film_mm=26)),
        picture(folder / "b.jpg", exif=lens_exif(film_mm=26)),
        picture(folder / "c.png"),
        picture(folder / "deep" / "d.png", 30, 40),
    ]
    (folder / "bad.png").write_bytes(b"no picture")
    (tmp_path / "in.csv").write_text("name,fov_deg,more\na,50,x\nb,,y\n")
    assumed = read_cameras(folder, [*paths, folder / "bad.png"], None, 1)
    assert assumed == [
        Camera(30, 40, 50.0, "csv"),
        Camera(30, 40, 69.3903, "exif"),
        Camera(30, 40, 63.0, "assumed"),
        Camera(40, 30, 49.3671, "assumed"),  # upright: 63 degrees along the longer side
        None,
    ]
    given = read_cameras(folder, paths, 70, 1)
    assert [camera.fov_from for camera in given] == ["csv", "exif", "option", "option"]
    assert given[3].fov_deg == 70
    assert given[3].square_fov_deg() == 70
    assert given[2].square_fov_deg() == pytest.approx(55.41, abs=0.01)


def test_names_in_the_file_match_as_elsewhere(tmp_path: Path):
    """Within the folder, with or without ending, in any normalisation; other files that are told are known."""
    folder = tmp_path / "in"
    paths = [picture(folder / name) for name in ("a.jpg", "a.png", "caf\u00e9.png", "deep/x.png")]
    other = picture(folder / "later.png")
    text = "name,fov_deg\na.jpg,50\na.png,51\ncafe\u0301,52\ndeep/x,53\nlater,54\n"
    (tmp_path / "in.csv").write_text("\ufeff" + text, encoding="utf-8")
    assert [camera.fov_deg for camera in read_cameras(folder, paths, None, 1, [other])] == [50, 51, 52, 53]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("c,60", "in.csv: 'c' is no picture of .*in; correct it; name is that of a picture within"),
        (",60", "'' is no picture"),
        ("b,0", "fov_deg of 'b' is 0, expected degrees above 0 and below 180; correct it"),
        ("b,180", "fov_deg of 'b' is 180,"),
        ("b,-5", "fov_deg of 'b' is -5,"),
        ("b,nan", "fov_deg of 'b' is nan,"),
        ("b,wide", "fov_deg of 'b' is wide,"),
        ("b,60\nb.png,60", "'b.png' is there twice; remove one of the lines"),
        ("b,\nb,60", "'b' is there twice"),
        ("a,60", r"'a' is the name of several pictures \(a.jpg, a.png\); add the ending"),
        ("b,60,1", "line 2 has more values than there are columns"),
    ],
)
def test_mistakes_in_the_file_are_named(tmp_path: Path, line: str, message: str):
    """With the value and the rule."""
    paths = [picture(tmp_path / "in" / name) for name in ("a.jpg", "a.png", "b.png")]
    (tmp_path / "in.csv").write_text(f"name,fov_deg\n{line}\n")
    with pytest.raises(DsgenError, match=message):
        read_cameras(tmp_path / "in", paths, None, 1)


def test_mistakes_are_listed_together_and_files_of_others_passed_by(tmp_path: Path):
    """A CSV file without the column is something else, whatever its encoding."""
    paths = [picture(tmp_path / "in" / "a.jpg")]
    listing = tmp_path / "in.csv"
    listing.write_text("name,fov_deg\nx,60\na,200\n")
    with pytest.raises(SeveralErrors, match="2 problems"):
        read_cameras(tmp_path / "in", paths, None, 1)
    listing.write_text("picture,fov_deg\na,60\n")
    with pytest.raises(DsgenError, match="no column name"):
        read_cameras(tmp_path / "in", paths, None, 1)
    for content in (b"Gr\xf6\xdfe;name\n1;2;3\n", b"", b'"', b"name,size\nx,1\n"):
        listing.write_bytes(content)
        assert read_cameras(tmp_path / "in", paths, None, 1)[0].fov_from == "assumed"


@pytest.mark.parametrize("value", [0, 180, -1, float("nan")])
def test_the_option_is_checked(value: float):
    """Above 0 and below 180."""
    with pytest.raises(InvalidValueError, match=re.escape(f"--fov: got {value}, expected degrees above 0 and below")):
        check_fov(value)
    check_fov(None)
    check_fov(60)
