"""Foreign pictures: paired, checked, packed like a corpus, and read by the same loader."""

import os
import shutil
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.corpora import draw_background

from dsgen.errors import DsgenError
from dsgen.store.loader import Loader
from dsgen.store.packing import pack_source
from dsgen.store.picture_source import Pictures
from dsgen.store.reader import Store


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    """Twelve RGB-D frames of 60x48 with masks and clean backgrounds; depth as PNG and, for one, as npy."""
    found = {part: tmp_path / part for part in ("images", "masks", "depths", "backgrounds")}
    for folder in found.values():
        folder.mkdir()
    for n in range(12):
        Image.fromarray(draw_background(n, 48, 60)).save(found["images"] / f"frame{n:02d}.jpg", quality=95)
        Image.fromarray(draw_background(n + 50, 48, 60)).save(found["backgrounds"] / f"frame{n:02d}.png")
        mask = np.zeros((48, 60), np.uint8)
        mask[10 : 20 + n, 20:30] = 255
        Image.fromarray(mask).save(found["masks"] / f"frame{n:02d}.png")
        metres = np.linspace(0.5, 4 + n / 10, 60)[None].repeat(48, 0)
        metres[:5] = 0
        if n == 3:
            np.save(found["depths"] / "frame03.npy", np.where(metres > 0, metres, np.nan).astype(np.float32))
        else:
            Image.fromarray(np.rint(metres * 1000).astype(np.uint16)).save(found["depths"] / f"frame{n:02d}.png")
    return found


def test_the_whole_way(folders: dict[str, Path], tmp_path: Path) -> None:
    """Packed, read back by row, and by the loader: centre squares, metres from both kinds of file, splits by name."""
    source = Pictures(*folders.values(), size=24, validation_share=0.3, test_share=0)
    pack_source(source, tmp_path / "s", shards=1, jobs=2)
    store = Store(tmp_path / "s")
    assert store.fields == ("image", "mask", "depth", "background")
    assert store.rows == 12
    assert sum(store.splits.values()) == 12
    assert store.splits["validation"] > 0
    got = store.read(0, 12)
    for row in (0, 3, 11):
        expected = np.linspace(0.5, 4 + row / 10, 60)[6:54]
        np.testing.assert_allclose(got["depth"][row, 12] / 1000, expected[::2], atol=0.09)
        assert (got["depth"][row, :2] == 0).all()
        square = draw_background(row, 48, 60)[:, 6:54].reshape(24, 2, 24, 2, 3).mean((1, 3))
        assert abs(got["image"][row] - square).mean() < 4
        clean = draw_background(row + 50, 48, 60)[:, 6:54].reshape(24, 2, 24, 2, 3).mean((1, 3))
        assert abs(got["background"][row] - clean).max() <= 1
        assert set(np.unique(got["mask"][row])) == {0, 255}
    assert got["mask"][11, 5:15, 7:12].all()
    batches = list(Loader(tmp_path / "s", None, 5))
    assert sum(len(batch["row"]) for batch in batches) == 12


def test_images_alone(folders: dict[str, Path], tmp_path: Path) -> None:
    """A field that was not passed is in neither the store nor its batches."""
    pack_source(Pictures(folders["images"], depth_folder=folders["depths"], size=16), tmp_path / "s", shards=1, jobs=1)
    store = Store(tmp_path / "s")
    assert store.fields == ("image", "depth")
    assert list(store.index["statistics"]) == ["image", "depth"]
    batch = next(iter(Loader(tmp_path / "s", None, 4)))
    assert set(batch) == {"image", "depth", "row"}


def test_everything_wrong_is_listed_at_once(folders: dict[str, Path]) -> None:
    """Unpaired, damaged, mis-sized and mis-scaled files are named together."""
    (folders["masks"] / "frame01.png").unlink()
    with pytest.raises(DsgenError, match=r"no mask for 1 of 12 images \(frame01\)"):
        Pictures(*folders.values())
    Image.fromarray(np.ones((48, 60), np.uint8)).save(folders["masks"] / "frame01.png")
    Image.fromarray(np.zeros((48, 61), np.uint16) + 7).save(folders["depths"] / "frame02.png")
    Image.fromarray(np.zeros((48, 60), np.uint8)).save(folders["depths"] / "frame04.png")
    (folders["images"] / "frame05.jpg").write_bytes(b"no picture")
    np.save(folders["depths"] / "frame03.npy", np.zeros((48, 60), np.float32))
    with pytest.raises(DsgenError) as caught:
        Pictures(*folders.values())
    text = str(caught.value)
    assert text.startswith("5 problems")
    for words in (
        "frame01.png: values up to 1, expected a mask of 0 and 255",
        "frame02.png: 61x48 pixels, expected 60x48 like frame02.jpg",
        "frame03.npy: no valid depth",
        "frame04.png: got uint8 (48, 60), expected a 16-bit grey PNG",
        "frame05.jpg",
    ):
        assert words in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 8}, "--size: got 8"),
        ({"png_unit_m": 0}, "--png-unit: got 0"),
        ({"png_unit_m": 0.02}, "expected at most 65.535 m; check --png-unit"),
        ({"validation_share": 0.8, "test_share": 0.3}, "expected 0 or more each, and less than 1 together"),
    ],
)
def test_bad_options(folders: dict[str, Path], options: dict[str, Any], message: str) -> None:
    """Each is named with its rule."""
    with pytest.raises(DsgenError, match=message):
        Pictures(*folders.values(), **options)


def test_other_pictures_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    """A changed picture is another source; the same one is resumed; a recipe is not possible."""
    pack_source(Pictures(*folders.values(), size=16), tmp_path / "s", shards=1, jobs=1)
    assert pack_source(Pictures(*folders.values(), size=16), tmp_path / "s", shards=1, jobs=1).packed == 0
    Image.fromarray(draw_background(99, 48, 60)).save(folders["images"] / "frame00.jpg")
    with pytest.raises(DsgenError, match="pictures sha256"):
        pack_source(Pictures(*folders.values(), size=16), tmp_path / "s", shards=1, jobs=1)
    with pytest.raises(DsgenError, match="--recipe"):
        pack_source(Pictures(*folders.values(), size=16), tmp_path / "t", shards=1, recipe=True, jobs=1)


def test_names_match_in_every_spelling(folders: dict[str, Path], caplog: pytest.LogCaptureFixture) -> None:
    """Composed and decomposed accents, hidden files beside them; two files of one spelling are refused."""
    composed, apart = (unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD"))
    for part, name in (("images", composed), ("masks", apart), ("depths", apart), ("backgrounds", composed)):
        path = next(folders[part].glob("frame05.*"))
        path.rename(path.with_name(name + path.suffix))
        (folders[part] / f"._{name}{path.suffix}").write_bytes(b"Mac OS X")
    (folders["depths"] / "frame04.png").rename(folders["depths"] / "frame04.PNG")
    assert len(Pictures(*folders.values(), size=16).plan) == 12
    assert "skipped" not in caplog.text
    shutil.copy(folders["images"] / f"{composed}.jpg", folders["images"] / f"{apart}.jpg")
    with pytest.raises(DsgenError, match=r"differs from .* only in its extension or Unicode normalisation; rename"):
        Pictures(folders["images"], size=16)


def test_names_that_are_not_utf8(folders: dict[str, Path]) -> None:
    """One line, of images and of what goes with them."""
    for part in ("images", "depths"):
        path = next(folders[part].glob("frame00.*"))
        os.rename(path, os.fsencode(folders[part]) + b"/caf\xe9.png")
        with pytest.raises(DsgenError, match=r"caf\\xe9.png: the name is not UTF-8; rename it$"):
            Pictures(folders["images"], depth_folder=folders["depths"], size=16)
        os.rename(os.fsencode(folders[part]) + b"/caf\xe9.png", path)


def _save(path: Path, picture: np.ndarray, orientation: int | None = None) -> None:
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    Image.fromarray(picture).save(path, exif=exif)


@pytest.mark.parametrize(
    ("height", "width", "turn", "other", "message"),
    [
        (40, 40, 6, None, "m.png: EXIF orientation 1, but m.jpg has 6, so one may be turned against the other"),
        (40, 40, 3, 1, "m.png: EXIF orientation 1, but m.jpg has 3"),
        (40, 60, 3, None, "m.png: EXIF orientation 1, but m.jpg has 3"),
        (40, 60, 6, 8, "m.png: EXIF orientation 8, but m.jpg has 6"),
        (
            40,
            60,
            6,
            None,
            "m.png: 60x40 pixels, expected 40x60 like m.jpg, which its EXIF orientation turns by 90 degrees",
        ),
        (
            40,
            60,
            None,
            6,
            "m.png: 40x60 pixels, expected 60x40 like m.jpg; its own EXIF orientation turns by 90 degrees",
        ),
        (40, 60, None, None, ""),
        (40, 40, 6, 6, ""),
        (40, 60, 8, 8, ""),
    ],
)
@pytest.mark.parametrize("field", ["mask", "depth"])
def test_turned_images_beside_pictures_that_are_not(
    tmp_path: Path, field: str, height: int, width: int, turn: int | None, other: int | None, message: str
) -> None:
    """Refused with the reason wherever one may lie on its side against the other; alike is accepted, and read alike."""
    for folder in ("image", field):
        (tmp_path / folder).mkdir()
    _save(tmp_path / "image" / "m.jpg", draw_background(0, height, width), turn)
    values = np.zeros((height, width), np.uint8 if field == "mask" else np.uint16)
    values[: height // 2, : width // 2] = 255
    _save(tmp_path / field / "m.png", values, other)
    folders = {f"{part}_folder": tmp_path / part for part in ("image", field)}
    if message:
        with pytest.raises(DsgenError) as caught:
            Pictures(**folders, size=16)
        assert f"{tmp_path}/{field}/{message}" in str(caught.value)
    else:
        source = Pictures(**folders, size=16, validation_share=0, test_share=0)
        corner = source.pictures(0, 1)[field][0] > 0
        assert corner[:7, 9:].all() if turn == 6 else corner[9:, :7].all() if turn == 8 else corner[:7, :7].all()


def test_a_turned_image_beside_an_upright_depth_map(tmp_path: Path) -> None:
    """A depth map that was made of the upright image fits it, as sizes that are not square show."""
    for folder in ("image", "depth"):
        (tmp_path / folder).mkdir()
    _save(tmp_path / "image" / "a.jpg", draw_background(0, 40, 60), 6)
    Image.fromarray(np.full((60, 40), 900, np.uint16)).save(tmp_path / "depth" / "a.png")
    source = Pictures(tmp_path / "image", depth_folder=tmp_path / "depth", size=16)
    assert (source.pictures(0, 1)["depth"] == 900).all()


def test_masks_are_read_as_what_they_are(folders: dict[str, Path]) -> None:
    """Palette, 0 and 1, colours and alpha give the same rows; class ids are refused by name."""
    expected = Pictures(*folders.values(), size=24).pictures(0, 12)["mask"]
    for n in range(12):
        path = folders["masks"] / f"frame{n:02d}.png"
        mask = np.asarray(Image.open(path)) // 255
        indexed = Image.fromarray(mask)
        indexed.putpalette([0, 0, 0, 128, 0, 0])
        red, clear = (np.zeros((48, 60, channels), np.uint8) for channels in (3, 4))
        red[..., 0] = clear[..., 3] = mask * 255
        (indexed, Image.fromarray(mask), Image.fromarray(red), Image.fromarray(clear))[n % 4].save(path)
    assert (Pictures(*folders.values(), size=24).pictures(0, 12)["mask"] == expected).all()
    Image.fromarray(np.asarray(Image.open(folders["masks"] / "frame01.png")) * 7).save(folders["masks"] / "frame01.png")
    with pytest.raises(DsgenError, match=r"frame01.png: values 0, 7, expected a mask of 0 and 255, or of 0 and 1"):
        Pictures(*folders.values())
