"""The report on a store: its numbers are those counted otherwise, it loads and runs nothing, the same bytes twice."""

import base64
import io
import re
import shutil
import zipfile
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
import zarr
from PIL import Image
from support.corpora import SMALL, draw_background, draw_cutout

from dsgen.corpus.build import Parameters, composite
from dsgen.corpus.plan import SPLITS
from dsgen.errors import DamagedError, InvalidValueError, NotFoundError
from dsgen.io.assets import asset
from dsgen.io.filesystem import open_files
from dsgen.store.packing import pack, pack_source
from dsgen.store.picture_source import Pictures
from dsgen.store.reader import Store
from dsgen.views import survey as surveying
from dsgen.views.charts import draw_row
from dsgen.views.report import report
from dsgen.views.survey import survey

_VOID = {"meta", "img", "br", "hr", "link", "input"}
HOSTILE = ["a<script>alert(1)<script>", "b&amp;\"quoted\" 'x'", "日本 <b>é {{ 7*7 }}"]


class Page(HTMLParser):
    """A page as read: its text, its tags with their attributes, and what is wrong with its nesting."""

    def __init__(self, path: Path):
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, Any]]] = []
        self.words: list[str] = []
        self.wrong: list[str] = []
        self.open: list[str] = []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        """Note a tag."""
        self.tags.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        """Note one that does not end the last open one."""
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)

    def handle_data(self, data: str) -> None:
        """Note text, but for the style sheet."""
        if self.open[-1:] != ["style"]:
            self.words.append(data)

    @property
    def text(self) -> str:
        """The text, with single spaces."""
        return " ".join(" ".join(self.words).split())

    @property
    def images(self) -> list[tuple[str, bytes, str]]:
        """Kind, content and alternative text of every picture."""
        found = [attributes for tag, attributes in self.tags if tag == "img"]
        parts = [(re.fullmatch(r"data:(image/[a-z+]+);base64,(.*)", each["src"]), each["alt"]) for each in found]
        return [(match[1], base64.b64decode(match[2], validate=True), alt) for match, alt in parts]


def write(store: Path | str, out: Path) -> Page:
    """Write a report and read it, as every test should: it is well-formed, and loads nothing."""
    result = report(store, out)
    assert result.bytes == out.stat().st_size
    page = Page(out)
    assert not page.wrong
    assert not page.open
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in page.tags}
    for _, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "srcset", "data", "poster", "action"):
            assert re.match(r"data:image/|#", attributes.get(name, "#")), attributes
        assert attributes.get("href", "#")[1:] in ["", *ids]
    (style,) = re.findall("<style>(.*?)</style>", page.source, flags=re.S)
    assert "url(" not in style
    assert "@import" not in style
    for kind, content, alt in page.images:
        assert alt
        if kind == "image/svg+xml":
            check_svg(content.decode())
        else:
            assert content[:2] == b"\xff\xd8"
    return page


def check_svg(text: str) -> None:
    """It is XML, refers to itself and to pictures in it alone, and holds no date."""
    for element in ElementTree.fromstring(text).iter():
        assert element.tag.rpartition("}")[2] not in ("script", "metadata", "foreignObject")
        for name, value in element.attrib.items():
            if name.rpartition("}")[2] == "href":
                assert re.match(r"#|data:image/png;base64,", value)
    assert all(target.startswith("#") for target in re.findall(r"url\((.*?)\)", text))


@pytest.fixture(scope="module")
def floor_store(tmp_path_factory: pytest.TempPathFactory, floor_corpus: Path) -> Path:
    """A zipped recipe of people on floors, with composed depth; one room has no floor."""
    folder = tmp_path_factory.mktemp("floors")
    pack(floor_corpus, folder / "people", shards=2, recipe=True, zipped=True, jobs=1)
    return folder / "people"


@pytest.fixture(scope="module")
def pixel_store(tmp_path_factory: pytest.TempPathFactory, labelled_corpus: Path) -> Path:
    """A store of pixels, 72 rows at random places, with the depth of a network."""
    folder = tmp_path_factory.mktemp("pixels")
    pack(labelled_corpus, folder / "pixels", shards=2, jobs=1)
    return folder / "pixels"


@pytest.fixture(scope="module")
def floor_page(tmp_path_factory: pytest.TempPathFactory, floor_store: Path) -> Page:
    """The report on it."""
    return write(floor_store, tmp_path_factory.mktemp("pages") / "r.html")


@pytest.fixture(scope="module")
def pixel_page(tmp_path_factory: pytest.TempPathFactory, pixel_store: Path) -> Page:
    """The report on it."""
    return write(pixel_store, tmp_path_factory.mktemp("pages") / "r.html")


def read_all(path: Path) -> tuple[Store, dict[str, np.ndarray]]:
    """A store and all that it holds."""
    store = Store(path)
    return store, store.read(0, store.rows)


@pytest.mark.parametrize("name", ["floor", "pixel"])
def test_numbers_are_those_counted_otherwise(name: str, request: pytest.FixtureRequest) -> None:
    """Rows, sizes of masks, percentiles of depth, uses of pictures, and where masks are."""
    store, rows = read_all(request.getfixturevalue(f"{name}_store"))
    page, found = request.getfixturevalue(f"{name}_page"), survey(store)
    share = (rows["mask"] > 0).mean(axis=(1, 2))
    np.testing.assert_allclose(found.masks.shares, share)
    np.testing.assert_array_equal(found.masks.where, (rows["mask"] > 0).sum(axis=0))
    assert found.masks.empty == (share == 0).sum()
    low, middle, high = np.percentile(share, (5, 50, 95))
    told = f"the mean mask covers {share.mean():.2%} of the picture; the 5th, 50th and 95th percentile are {low:.2%}, "
    told += f"{middle:.2%} and {high:.2%}."
    assert told.replace("%", " %") in page.text
    known = rows["depth"][rows["depth"] > 0]
    low, middle, high = np.percentile(known, (1, 50, 99), method="inverted_cdf") / 1000
    assert f"percentile of depth are {low:.2f}, {middle:.2f} and {high:.2f} m." in page.text
    assert f"{(rows['depth'] == 0).mean():.2%}".replace("%", " %") + " of pixels have no depth" in page.text
    for split, count in store.splits.items():
        assert count == 0 or f"{split} {count} {count / store.rows:.2%}".replace("%", " %") in page.text
    used = Counter(zip(store.plan["background"].tolist(), store.plan["split"].tolist(), strict=True))
    for number, record in enumerate(store.shards[0].attributes["backgrounds"]):
        counts = [used[number, split] for split in range(len(SPLITS))]
        assert found.backgrounds.rows[number].tolist() == counts
        assert " ".join(map(str, [record["name"], *counts, sum(counts)])) in page.text
    for field, numbers in store.index["statistics"].items():
        mean = " ".join(f"{value:.4f}" for value in numbers["mean"])
        assert f"{field} {mean}" in page.text
    assert store.sha256 in page.text


def test_people_are_counted_in_all_rows(floor_store: Path, floor_page: Page) -> None:
    """How many a row, how far away, which foregrounds, and where their feet are."""
    store, page = Store(floor_store), floor_page
    found, people = survey(store), store.plan["people"]
    placed = people["height"] > 0
    assert found.people.per_row == tuple(np.bincount(placed.sum(axis=1), minlength=store.people + 1).tolist())
    assert f"{placed.sum()} people were placed in {store.rows} rows." in page.text
    for number, rows in enumerate(found.people.per_row):
        assert not rows or f"{number} {rows}" in page.text.partition("people placed in a row")[2]
    counts = np.bincount(people["foreground"][placed], minlength=5)
    assert found.foregrounds.total.tolist() == counts.tolist()
    stands = placed & (people["distance"] > 0)
    assert 0 < found.people.unknown == (placed & ~stands).sum()
    expected = np.histogram(people["distance"][stands], np.arange(0, 65751, 250))[0]
    assert found.people.distances.tolist() == expected.tolist()
    median = np.percentile(people["distance"][stands], 50, method="inverted_cdf") / 1000
    assert f"The median distance is {median:.2f} m." in page.text
    feet = np.zeros((surveying.HEAT_SIDE,) * 2, int)
    below = 0
    for person, box in zip(people[stands], store.boxes[stands], strict=True):
        y = (int(person["top"]) + int(person["height"])) / 64 / store.size
        x = (int(box[0]) + int(box[2]) / 2) / store.size
        below += y >= 1 and box[2] > 0
        if y < 1 and box[2] > 0:
            feet[int(y * len(feet)), int(x * len(feet))] += 1
    np.testing.assert_array_equal(found.people.feet, feet)
    assert found.people.feet_below == below
    assert found.people.rows_without == (~(store.boxes[..., 2] > 0).any(axis=1)).sum()
    assert "In backgrounds without a floor people are at random places" in page.text


def test_every_split_is_shown(pixel_store: Path, pixel_page: Page) -> None:
    """Rows of it and of no other, as they are; the same rows each time."""
    store, page = Store(pixel_store), pixel_page
    found = survey(store)
    assert list(found.shown) == [split for split in SPLITS if store.splits[split]]
    for split, rows in found.shown.items():
        assert len(set(rows)) == min(6, store.splits[split])
        assert {SPLITS[number] for number in store.plan["split"][list(rows)]} == {split}
    alts = [alt for kind, _, alt in page.images if kind == "image/jpeg"]
    assert len(alts) == sum(map(len, found.shown.values()))
    row = found.shown["train"][0]
    rows = {name: values[0] for name, values in store.read(row, row + 1).items()}
    assert f"Row {row}, picture, mask in colour, depth, grey where there is none, mask " in " ".join(alts)
    strip = np.asarray(Image.open(io.BytesIO(base64.b64decode(draw_row(rows, 6.0).partition(",")[2]))))
    assert strip.shape == (48, 3 * 48 + 2 * 4, 3)
    assert np.abs(strip[:, :48].astype(int) - rows["image"]).mean() < 8
    yellow = strip[:, 52:100].astype(int)[rows["mask"] > 0].mean(axis=0)
    assert yellow[0] > yellow[2] + 80


def test_the_same_bytes_twice(floor_store: Path, floor_page: Page, tmp_path: Path) -> None:
    """Whatever the user's settings of matplotlib; an older file is replaced, and nothing is left beside it."""
    out = tmp_path / "r.html"
    out.write_text("an older report")
    with matplotlib.rc_context({"font.size": 20, "axes.facecolor": "red", "svg.fonttype": "path"}):
        report(floor_store, out)
    assert out.read_text(encoding="utf-8") == floor_page.source
    assert [path.name for path in tmp_path.iterdir()] == ["r.html"]


def test_stores_at_urls(pixel_store: Path, pixel_page: Page, tmp_path: Path) -> None:
    """The page is that of the folder; the words of a URL that are secret are not in it."""
    local, remote = open_files(pixel_store), open_files("memory://me:S3CRETpw@report/pixels")
    for name in local.sizes():
        if "lock" not in name:
            remote.write(name, local.read(name))
    page = write("memory://me:S3CRETpw@report/pixels", tmp_path / "remote.html")
    assert page.source == pixel_page.source
    assert "S3CRET" not in page.source


def test_large_stores_are_sampled(pixel_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of pixels a few rows are read, and the page says so; columns are those of all rows."""
    monkeypatch.setattr(surveying, "_MOST_ROWS", 10)
    monkeypatch.setattr(surveying, "_LEAST_ROWS", 10)
    store, rows = read_all(pixel_store)
    page, found = write(pixel_store, tmp_path / "r.html"), survey(store)
    assert len(found.sampled) == len(set(found.sampled.tolist())) == 10
    share = (rows["mask"] > 0).mean(axis=(1, 2))[found.sampled]
    np.testing.assert_allclose(found.masks.shares, share)
    assert found.depths.pixels.sum() == 10 * 48 * 48
    assert found.backgrounds.total.tolist() == [24, 24, 24]
    assert "Of 10 rows chosen at random, the mean mask" in page.text
    assert "Counted were all pixels of 10 rows chosen at random." in page.text


@pytest.mark.parametrize("size", [224, 1024, 4096, 16])
def test_samples_have_a_bounded_number_of_pixels(size: int) -> None:
    """Fewer rows of large pictures, but some."""
    store: Any = type("Store", (), {"size": size})
    rows = surveying._sampled_rows(store)
    assert 24 <= rows <= 1000
    assert rows == 24 or rows * size**2 <= 2**26


def test_hostile_names(tmp_path: Path) -> None:
    """Names of files and folders are shown as they are, and are neither tags, templates nor attributes."""
    for kind in ("backgrounds", "foregrounds"):
        (tmp_path / kind).mkdir()
        for number, name in enumerate(HOSTILE):
            picture = draw_background(number) if kind == "backgrounds" else draw_cutout(number)
            Image.fromarray(picture).save(tmp_path / kind / f"{name}.png")
    small = replace(SMALL, positions=1)
    composite(tmp_path / "corpus", tmp_path / "backgrounds", tmp_path / "foregrounds", small, jobs=1, pictures=False)
    path = tmp_path / 'st"ore<img src=x onerror=alert(1)>'
    pack(tmp_path / "corpus", path, shards=1, jobs=1)
    page = write(path, tmp_path / "r.html")
    assert path.name in page.text
    for name in HOSTILE:
        assert name in page.text
    assert "<b>" not in page.source
    assert "alert(1)<script" not in page.source


@pytest.mark.parametrize("parts", [("images",), ("images", "masks"), ("images", "depths"), ("images", "backgrounds")])
def test_own_pictures(parts: tuple[str, ...], tmp_path: Path) -> None:
    """Whatever they lack is not on the page, nor are foregrounds; what dsgen cannot know is left to be filled in."""
    for part in parts:
        (tmp_path / part).mkdir()
        for n in range(6):
            picture = draw_background(n, 40, 40)
            if part == "masks":
                picture = np.zeros((40, 40), np.uint8)
                picture[10 : 20 + n, 20 : 20 + 3 * n] = 255
            elif part == "depths":
                picture = np.full((40, 40), 1000 + n, np.uint16)
                picture[:4] = 0
            Image.fromarray(picture).save(tmp_path / part / f"frame{n}.png")
    folders = [tmp_path / part if part in parts else None for part in ("images", "masks", "depths", "backgrounds")]
    pack_source(Pictures(*folders, size=32, validation_share=0.3), tmp_path / "own", shards=1, jobs=1)
    page = write(tmp_path / "own", tmp_path / "r.html")
    ids = {attributes["id"] for _, attributes in page.tags if "id" in attributes}
    assert ("masks" in ids, "depth" in ids) == ("masks" in parts, "depths" in parts)
    assert not {"use", "people"} & ids
    assert "6 pictures of 32 x 32 pixels: the centre square" in page.text
    for wrong in ("composite", "pasted on", "foregrounds are", "bundled with dsgen"):
        assert wrong not in page.text
    assert "To be filled in by whoever passes this data set on: licence and authors of the 6 pictures" in page.text
    assert "frame0.png" in page.text
    if "masks" in parts:
        assert "1 mask is empty; it is not in the chart." in page.text
        assert "1 of 6 rows looked at have an empty mask." in page.text
    if "depths" in parts:
        assert "1 was taken for 0.001 m." in page.text


@pytest.mark.parametrize("name", ["store", "recipe"])
def test_stores_of_earlier_versions(name: str, tmp_path: Path) -> None:
    """They lack newer parameters."""
    with zipfile.ZipFile(Path(__file__).parent.parent / "data/earlier/made.zip") as archive:
        archive.extractall(tmp_path)
    page = write(tmp_path / name, tmp_path / "r.html")
    assert "placement at random places" in page.text
    assert "A Python function, support.earlier.wall, estimated it from each composite." in page.text
    assert "people in a picture" not in page.text


def test_a_store_of_layout_1_in_a_folder_of_an_odd_name(pixel_store: Path, tmp_path: Path) -> None:
    """Of versions that wrote no group and no coordinates; control characters, which HTML lacks, are written out."""
    folder = tmp_path / "a\x1b[2Jb"
    shutil.copytree(pixel_store, folder)
    for name in ("zarr.json", "background_name", "foreground_name"):
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    text = write(folder, tmp_path / "r.html").text
    assert "72 composites of 48 x 48 pixels" in text
    assert "a\\x1b[2Jb" in text


def test_bundled_pictures_are_told_from_own(tmp_path: Path) -> None:
    """By their bytes, not their names; their authors are named, and what is own is left to be filled in."""
    for kind in ("backgrounds", "foregrounds"):
        (tmp_path / kind).mkdir()
    shutil.copy(asset("backgrounds") / "bg_0000.jpg", tmp_path / "backgrounds")
    Image.fromarray(draw_background(1, 448, 448)).save(tmp_path / "backgrounds/bg_0001.jpg")
    people = ("fg_004", "fg_006")
    for name in people:
        shutil.copy(asset("foregrounds") / f"{name}.png", tmp_path / "foregrounds")
    parameters = Parameters(positions=1, size=48, label_size=96, fg_height=20, split_by="background", seed=3)
    composite(tmp_path / "c", tmp_path / "backgrounds", tmp_path / "foregrounds", parameters, jobs=1, pictures=False)
    pack(tmp_path / "c", tmp_path / "s", shards=1, jobs=1)
    page = write(tmp_path / "s", tmp_path / "r.html")
    assert "1 of 2 backgrounds is bundled with dsgen. Those are renderings" in page.text
    assert "1 of 2 backgrounds is not dsgen's and not known to it." in page.text
    assert "All 2 foregrounds are bundled with dsgen: rendered figures, not real people." in page.text
    assert "must name their authors" in page.text
    assert "Andrew Kator & Jennifer Legaz" in page.text
    assert "licence and authors of the 1 picture that is not bundled" in page.text


def test_shared_pictures_are_told(tmp_path: Path, pictures: Path) -> None:
    """Where rows are split by the background alone, foregrounds are in several splits; no claim says otherwise."""
    by_background = replace(SMALL, positions=1, split_by="background")
    sources = pictures / "backgrounds", pictures / "foregrounds"
    composite(tmp_path / "c", *sources, by_background, jobs=1, pictures=False)
    pack(tmp_path / "c", tmp_path / "s", shards=1, jobs=1)
    text = write(tmp_path / "s", tmp_path / "r.html").text
    assert "No background is in more than one of train, validation and test." in text
    assert "no foreground" not in text
    assert "3 foregrounds are in more than one of train, validation and test." in text
    assert "None of them is in more than one" in text.partition("Backgrounds 3")[2].partition("Foregrounds 3")[0]
    assert "There is none." in text.partition("How was the depth made?")[2]


def test_rows_left_out_and_one_lonely_row(labelled_corpus: Path, tmp_path: Path) -> None:
    """How many rows left the splits, and why; a store of one picture with an empty mask has its page too."""
    corpus = Path(shutil.copytree(labelled_corpus, tmp_path / "corpus"))
    group = zarr.open_group(corpus / "depth.zarr", mode="r+")
    errors = group.create_array("flip_error", shape=(72,), dtype="float32")
    errors[:] = (np.arange(72) % 3 == 1).astype(np.float32)
    left_out = pack(corpus, tmp_path / "s", shards=1, max_flip_error=0.5, jobs=1).left_out
    text = write(tmp_path / "s", tmp_path / "r.html").text
    assert f"{left_out} rows were left out of the splits for a flip error above 0.5." in text
    assert f"{left_out} rows left the splits because the depth of the row and of its mirror image disagreed" in text
    assert "unused: their pictures are in different splits, or their depth is doubtful." in text
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
        Image.fromarray(np.zeros((20, 20), np.uint8)).save(tmp_path / part / "one.png")
    one = Pictures(tmp_path / "images", tmp_path / "masks", size=16, validation_share=0, test_share=0)
    pack_source(one, tmp_path / "one", shards=1, jobs=1)
    assert "1 picture of 16 x 16 pixels" in write(tmp_path / "one", tmp_path / "r.html").text


def test_what_cannot_be_reported(pixel_store: Path, corpus: Path, tmp_path: Path) -> None:
    """A corpus, nothing, a damaged store, a file of another kind, a folder in the way."""
    with pytest.raises(NotFoundError, match="a corpus, expected a store; run dsgen pack"):
        report(corpus, tmp_path / "r.html")
    with pytest.raises(NotFoundError, match="no such folder, expected a store"):
        report(tmp_path / "nowhere", tmp_path / "r.html")
    with pytest.raises(InvalidValueError, match=r"OUT: got .*r\.pdf, expected a name ending in \.html"):
        report(pixel_store, tmp_path / "r.pdf")
    (tmp_path / "d.html").mkdir()
    with pytest.raises(InvalidValueError, match="is a folder, expected a file"):
        report(pixel_store, tmp_path / "d.html")
    with pytest.raises(NotFoundError, match="no such folder, expected the one for r"):
        report(pixel_store, tmp_path / "nowhere/r.html")
    shutil.copytree(pixel_store, tmp_path / "bad")
    next((tmp_path / "bad").glob("*/mask/c/0/0/0")).write_bytes(b"x" * 100)
    with pytest.raises(DamagedError, match="cannot read mask"):
        report(tmp_path / "bad", tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()
