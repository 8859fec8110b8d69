"""Export of picture files: readers of COCO and of polygons get the masks of the store, to the pixel."""

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml
from PIL import Image
from pyarrow import parquet
from pycocotools import mask as coco_masks
from pycocotools.coco import COCO
from support.corpora import SMALL, draw_background, draw_cutout, files
from torchvision.datasets import CocoDetection, wrap_dataset_for_transforms_v2
from typer.testing import CliRunner

from dsgen.cli.app import app
from dsgen.corpus.build import composite
from dsgen.corpus.plan import DTYPE, SPLITS
from dsgen.errors import ConflictError, DamagedError, DsgenError, InvalidValueError, MissingPackageError
from dsgen.io.json_files import read_json
from dsgen.store.export import pictures, samples
from dsgen.store.export.export import export_store
from dsgen.store.export.instances import InstanceLabels
from dsgen.store.export.outlines import outline
from dsgen.store.packing import pack, pack_source
from dsgen.store.picture_source import Pictures
from dsgen.store.reader import Store

# pycocotools' decoder, compiled for an older numpy
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

FORMATS = ("coco", "yolo")
YOLO_FOLDERS = {"train": "train", "validation": "val", "test": "test", "unused": "unused"}


@pytest.fixture(scope="module")
def store(three_shards: Path) -> Path:
    """72 rows in three shards, with depth, of 48 pixels."""
    return three_shards


@pytest.fixture
def opened(store: Path) -> Store:
    """The same, opened."""
    return Store(store)


def split_rows(store: Store, split: str) -> list[int]:
    """The rows of a split, in order."""
    return np.flatnonzero(store.plan["split"] == SPLITS.index(split)).tolist()


def filled(store: Store) -> list[str]:
    """The splits that have rows."""
    return [split for split, rows in store.splits.items() if rows]


def as_picture(path: Path) -> np.ndarray:
    """A picture file as an array."""
    return np.asarray(Image.open(path))


def read_polygons(path: Path, size: int) -> list[tuple[int, np.ndarray]]:
    """The lines of a label file: class, and points in pixels."""
    lines = [line.split() for line in path.read_text().splitlines()]
    return [(int(line[0]), np.array(line[1:], float).reshape(-1, 2) * size) for line in lines]


def fill_exactly(points: np.ndarray, size: int) -> np.ndarray:
    """What pycocotools makes of a polygon."""
    codes = coco_masks.frPyObjects([points.ravel().tolist()], size, size)
    return coco_masks.decode(coco_masks.merge(codes)).astype(bool)


def fill_whole_pixels(points: np.ndarray, size: int) -> np.ndarray:
    """What ultralytics makes of a polygon: coordinates are cut to whole pixels, and the outline is drawn."""
    mask = np.zeros((size, size), np.uint8)
    cv2.fillPoly(mask, [points.astype(np.int32)], 1)
    return mask.astype(bool)


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    """Intersection over union."""
    return float((one & other).sum() / (one | other).sum())


def test_pycocotools_reads_every_mask(tmp_path: Path, opened: Store, capsys: pytest.CaptureFixture[str]) -> None:
    """Masks, boxes and areas are those of the store; names and flips those of the plan."""
    result = export_store(opened.path, tmp_path / "out", "coco", split="all", jobs=1)
    assert (result.rows, result.exported, result.instances, result.rows_without) == (72, 72, 72, 0)
    names = {
        kind: [one["name"] for one in opened.shards[0].attributes[kind]] for kind in ("backgrounds", "foregrounds")
    }
    seen = []
    for split in filled(opened):
        coco = COCO(str(tmp_path / "out" / split / "labels.json"))
        assert coco.loadCats(coco.getCatIds()) == [{"id": 1, "name": "person"}]
        assert coco.getImgIds() == split_rows(opened, split)
        for row in coco.getImgIds():
            truth = {name: values[0] for name, values in opened.read(row, row + 1).items()}
            (image,) = coco.loadImgs(row)
            assert (image["width"], image["height"], image["row"]) == (48, 48, row)
            assert image["background"] == names["backgrounds"][opened.plan["background"][row]]
            (annotation,) = coco.loadAnns(coco.getAnnIds(row))
            np.testing.assert_array_equal(coco.annToMask(annotation) * 255, truth["mask"])
            assert annotation["area"] == (truth["mask"] > 0).sum() == coco_masks.area(annotation["segmentation"])
            assert annotation["bbox"] == coco_masks.toBbox(annotation["segmentation"]).tolist()
            assert annotation["foreground"] == names["foregrounds"][opened.plan["foreground"][row]]
            assert annotation["flip"] == opened.plan["flip"][row]
            assert "distance_m" not in annotation
            folder = tmp_path / "out" / split
            np.testing.assert_array_equal(as_picture(folder / "data" / image["file_name"]), truth["image"])
            np.testing.assert_array_equal(as_picture(folder / image["depth_file"]), truth["depth"])
            seen.append(annotation["id"])
    assert len(set(seen)) == 72
    assert min(seen) > 0
    capsys.readouterr()


def test_torchvision_reads_it(tmp_path: Path, opened: Store, capsys: pytest.CaptureFixture[str]) -> None:
    """`CocoDetection` gives every picture with its annotations, and the wrapper for transforms their masks."""
    export_store(opened.path, tmp_path / "out", "coco", split="train", jobs=1)
    assert not (tmp_path / "out" / "validation").exists()
    dataset = CocoDetection(tmp_path / "out/train/data", tmp_path / "out/train/labels.json")
    rows = split_rows(opened, "train")
    assert len(dataset) == len(rows)
    for (image, annotations), row in zip(dataset, rows, strict=True):
        truth = opened.read(row, row + 1)
        np.testing.assert_array_equal(np.asarray(image), truth["image"][0])
        np.testing.assert_array_equal(dataset.coco.annToMask(annotations[0]), truth["mask"][0] > 0)
    _, target = wrap_dataset_for_transforms_v2(dataset, target_keys=("boxes", "labels", "masks"))[0]
    np.testing.assert_array_equal(target["masks"][0], opened.read(rows[0], rows[0] + 1)["mask"][0] > 0)
    assert target["labels"].tolist() == [1]
    assert target["boxes"].shape == (1, 4)
    capsys.readouterr()


@pytest.mark.filterwarnings("ignore")
def test_ultralytics_reads_it(tmp_path: Path, opened: Store) -> None:
    """If it is installed: masks, boxes and classes of every picture, by the dataset that it trains on."""
    pytest.importorskip("ultralytics")
    from ultralytics.data.dataset import YOLODataset
    from ultralytics.data.utils import check_det_dataset, polygon2mask

    export_store(opened.path, tmp_path / "out", "yolo", jobs=1)
    index = check_det_dataset(str(tmp_path / "out/data.yaml"), autodownload=False)
    assert index["names"] == {0: "person"}
    dataset = YOLODataset(img_path=index["train"], data=index, task="segment", imgsz=48, augment=False)
    assert len(dataset) == len(split_rows(opened, "train"))
    for label in dataset.labels:
        row = int(Path(label["im_file"]).stem)
        mask = opened.read(row, row + 1)["mask"][0] > 0
        (points,) = label["segments"]
        np.testing.assert_array_equal(polygon2mask((48, 48), [(points * 48).ravel()]) > 0, mask)
        rows, columns = np.nonzero(mask)
        corners = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        box = np.array([*(corners[:2] + corners[2:]) / 2, *(corners[2:] - corners[:2])])
        np.testing.assert_allclose(label["bboxes"][0] * 48, box, atol=0.04)
        assert label["cls"].tolist() == [[0]]


@pytest.mark.filterwarnings("ignore")
def test_fiftyone_reads_it(tmp_path: Path, opened: Store) -> None:
    """If it is installed: the importer of its COCODetectionDataset gives every mask."""
    coco = pytest.importorskip("fiftyone.utils.coco")
    export_store(opened.path, tmp_path / "out", "coco", jobs=1)
    importer = coco.COCODetectionDatasetImporter(dataset_dir=str(tmp_path / "out/train"), label_types="segmentations")
    with importer:
        pictures = list(importer)
    assert len(pictures) == len(split_rows(opened, "train"))
    for path, _, label in pictures:
        row = int(Path(path).stem)
        (detection,) = label.detections
        left, top = (round(share * 48) for share in detection.bounding_box[:2])
        mask = np.zeros((48, 48), bool)
        mask[top : top + detection.mask.shape[0], left : left + detection.mask.shape[1]] = detection.mask
        np.testing.assert_array_equal(mask, opened.read(row, row + 1)["mask"][0] > 0)
        assert (detection.label, detection["flip"]) == ("person", opened.plan["flip"][row])


def test_polygons_have_the_pixels_of_the_masks(tmp_path: Path, opened: Store) -> None:
    """However a reader fills them; folders and classes are those that data.yaml names."""
    result = export_store(opened.path, tmp_path / "out", "yolo", split="all", jobs=1)
    assert result.instances == 72
    index = yaml.safe_load((tmp_path / "out/data.yaml").read_text())
    assert index["names"] == {0: "person"}
    assert set(index) == {"names", *(YOLO_FOLDERS[split] for split in filled(opened))}
    for split in filled(opened):
        folder = tmp_path / "out" / index[YOLO_FOLDERS[split]]
        assert sorted(int(path.stem) for path in folder.iterdir()) == split_rows(opened, split)
        for picture in folder.iterdir():
            row = int(picture.stem)
            truth = opened.read(row, row + 1)
            np.testing.assert_array_equal(as_picture(picture), truth["image"][0])
            label = tmp_path / "out/labels" / YOLO_FOLDERS[split] / f"{picture.stem}.txt"
            ((number, points),) = read_polygons(label, 48)
            assert number == 0
            assert len(points) >= 4
            for fill in (fill_exactly, fill_whole_pixels):
                np.testing.assert_array_equal(fill(points, 48), truth["mask"][0] > 0)


def draw(*boxes: tuple[int, int, int, int], holes: tuple[tuple[int, int, int, int], ...] = ()) -> np.ndarray:
    """A mask of boxes: left, top, right, bottom."""
    mask = np.zeros((40, 40), np.uint8)
    for value, group in ((1, boxes), (0, holes)):
        for left, top, right, bottom in group:
            mask[top:bottom, left:right] = value
    return mask


MASKS = {
    "a pixel": draw((7, 3, 8, 4)),
    "a column": draw((7, 3, 8, 20)),
    "everything": draw((0, 0, 40, 40)),
    "a hole": draw((5, 5, 30, 30), holes=((10, 10, 15, 15),)),
    "holes of a pixel": draw((5, 5, 30, 30), holes=((10, 10, 11, 11), (11, 11, 12, 12), (20, 20, 21, 21))),
    "touching corners": np.eye(40, dtype=np.uint8),
    "a part in a hole": draw((5, 5, 30, 30), holes=((10, 10, 25, 25),)) | draw((14, 14, 18, 18)),
    "two parts": draw((5, 2, 20, 10), (6, 18, 19, 39)),
    "three parts": draw((5, 2, 30, 10), (6, 18, 14, 39), (20, 18, 28, 39)),
}


@pytest.mark.parametrize("name", MASKS)
def test_outline(name: str) -> None:
    """Filled, the one polygon has the pixels of the mask, holes and parts included, and its bounds."""
    mask = MASKS[name] > 0
    points = outline(MASKS[name])
    np.testing.assert_array_equal(fill_exactly(points, 40), mask)
    rows, columns = np.nonzero(mask)
    np.testing.assert_allclose(points.min(axis=0), (columns.min(), rows.min()), atol=0.02)
    np.testing.assert_allclose(points.max(axis=0), (columns.max() + 1, rows.max() + 1), atol=0.02)
    drawn = fill_whole_pixels(points, 40)
    assert not (mask & ~drawn).any()
    assert (drawn & ~mask).sum() <= (16 if "part" in name else 0)  # bridges between parts are drawn as lines


def test_outline_of_any_mask() -> None:
    """Of blobs with many parts and holes too."""
    rng = np.random.default_rng(0)
    for blur in (1, 2, 4):
        mask = cv2.GaussianBlur(rng.random((60, 60)), (0, 0), blur) > 0.5
        np.testing.assert_array_equal(fill_exactly(outline(mask), 60), mask)


def test_people_of_usual_size(tmp_path: Path) -> None:
    """At 224 pixels, with a body that furniture cuts in two, readers that draw bridges are right within 3 %."""
    cutout = cv2.resize(draw_cutout(0, 200, 90)[..., 3], (45, 130))
    mask = np.zeros((224, 224), bool)
    mask[60:190, 80:125] = cutout >= 128
    mask[120:140] = False
    points = outline(mask)
    assert fill_exactly(points, 224).tolist() == mask.tolist()
    assert overlap(fill_whole_pixels(points, 224), mask) >= 0.97


class Crowd:
    """What the export reads of a store whose rows have up to three people of two classes."""

    def __init__(self, store: Store, monkeypatch: pytest.MonkeyPatch):
        self.people = np.dtype([("foreground", "<u4"), ("flip", "u1"), ("height", "<u4"), ("distance", "<u2")])
        self.plan = np.zeros(store.rows, [*DTYPE.descr, ("people", self.people, (3,))])
        for name in DTYPE.names:
            self.plan[name] = store.plan[name]
        self.plan["people"]["foreground"] = [2, 0, 1]
        self.plan["people"]["flip"] = [0, 1, 0]
        self.plan["people"]["height"] = 640
        self.plan["people"]["distance"] = [2500, 0, 4125]
        self.numbers = np.zeros((store.rows, store.size, store.size), np.uint8)
        self.numbers[:, 5:40, 3:20] = 1
        self.numbers[:, 20:28, 3:20] = 0  # something stands before the first
        self.numbers[::2, 8:45, 18:30] = 3
        self.numbers[::3, 40, 40:43] = 2
        self.numbers[5] = 0
        self.records = [dict(one) for one in store.shards[0].attributes["foregrounds"]]
        for record, kind in zip(self.records, ("person", "chair", None), strict=True):
            record |= {"class": kind} if kind else {}
        crowd, read, find = self, Store.read, Store.__init__

        def read_with_numbers(self: Store, first: int, last: int) -> dict[str, np.ndarray]:
            return read(self, first, last) | {"instance": crowd.numbers[first:last]}

        def open_with_people(self: Store, path: Path | str) -> None:
            find(self, path)
            self.fields = (*self.fields, "instance")
            self.shards[0].attributes["foregrounds"] = crowd.records

        monkeypatch.setattr(Store, "read", read_with_numbers)
        monkeypatch.setattr(Store, "__init__", open_with_people)
        monkeypatch.setattr(Store, "plan", self.plan)
        samples.open_store.cache_clear()
        samples.split_rows.cache_clear()


@pytest.fixture
def crowd(store: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Give the store several people a row."""
    yield Crowd(Store(store), monkeypatch)
    samples.open_store.cache_clear()
    samples.split_rows.cache_clear()


def test_several_people_in_coco(tmp_path: Path, store: Path, crowd: Crowd, capsys: pytest.CaptureFixture[str]) -> None:
    """An annotation each, with its class, foreground and distance; categories are in alphabetical order."""
    result = export_store(store, tmp_path / "out", "coco", split="all", jobs=1)
    present = [np.unique(numbers[numbers > 0]).tolist() for numbers in crowd.numbers]
    assert result.instances == sum(map(len, present))
    assert result.tiny_instances == sum(2 in numbers for numbers in present)
    assert result.rows_without == 1
    names = [record["name"] for record in crowd.records]
    expected = {
        1: {"category_id": 2, "foreground": names[2], "flip": 0, "distance_m": 2.5},
        2: {"category_id": 2, "foreground": names[0], "flip": 1},
        3: {"category_id": 1, "foreground": names[1], "flip": 0, "distance_m": 4.125},
    }
    for split in filled(Store(store)):
        coco = COCO(str(tmp_path / "out" / split / "labels.json"))
        assert coco.loadCats(coco.getCatIds()) == [{"id": 1, "name": "chair"}, {"id": 2, "name": "person"}]
        for row in coco.getImgIds():
            annotations = coco.loadAnns(coco.getAnnIds(row))
            assert [annotation["id"] - 256 * row for annotation in annotations] == present[row]
            for number, annotation in zip(present[row], annotations, strict=True):
                np.testing.assert_array_equal(coco.annToMask(annotation), crowd.numbers[row] == number)
                found = {name: annotation[name] for name in ("category_id", "foreground", "flip")}
                known = {"distance_m": annotation["distance_m"]} if "distance_m" in annotation else {}
                assert found | known == expected[number]
    capsys.readouterr()


def test_several_people_in_yolo(tmp_path: Path, store: Path, crowd: Crowd) -> None:
    """A line each, however small; one that is cut in two is one polygon; a picture without any has an empty file."""
    export_store(store, tmp_path / "out", "yolo", split="all", jobs=1)
    names = yaml.safe_load((tmp_path / "out/data.yaml").read_text())["names"]
    assert names == {0: "chair", 1: "person"}
    labels = sorted((tmp_path / "out/labels").rglob("*.txt"))
    assert len(labels) == 72
    for label in labels:
        numbers = crowd.numbers[int(label.stem)]
        polygons = read_polygons(label, 48)
        present = np.unique(numbers[numbers > 0]).tolist()
        assert [number for number, _ in polygons] == [{1: 1, 2: 1, 3: 0}[number] for number in present]
        for number, (_, points) in zip(present, polygons, strict=True):
            np.testing.assert_array_equal(fill_exactly(points, 48), numbers == number)


def test_several_people_in_tar_files_and_parquet(tmp_path: Path, store: Path, crowd: Crowd) -> None:
    """The numbers of the people are one more picture; the columns are those of any corpus."""
    export_store(store, tmp_path / "tar", split="train", jobs=1)
    row = split_rows(Store(store), "train")[0]
    with tarfile.open(tmp_path / "tar/train-00000-of-00001.tar") as archive:
        code = archive.extractfile(f"{row:09d}.instance.png").read()
        columns = json.load(archive.extractfile(f"{row:09d}.json"))
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(code))), crowd.numbers[row])
    assert (columns["row"], columns["foreground"]) == (row, crowd.plan["foreground"][row])
    assert "instance.png" in (tmp_path / "tar/README.md").read_text()
    export_store(store, tmp_path / "parquet", "parquet", split="train", jobs=1)
    table = parquet.read_table(tmp_path / "parquet/data/train-00000-of-00001.parquet")
    code = table["instance"][0].as_py()["bytes"]
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(code))), crowd.numbers[row])


def test_a_corpus_of_several_people(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From sub-folders of foregrounds to masks that pycocotools decodes, all of them real."""
    for name in ("backgrounds", "foregrounds/person", "foregrounds/chair"):
        (tmp_path / name).mkdir(parents=True)
    for number in range(2):
        Image.fromarray(draw_background(number)).save(tmp_path / f"backgrounds/room{number}.png")
        Image.fromarray(draw_cutout(number)).save(tmp_path / f"foregrounds/person/somebody{number}.png")
    Image.fromarray(draw_cutout(2)).save(tmp_path / "foregrounds/chair/stool.png")
    parameters = replace(SMALL, people="1-3", validation_share=0)
    folders = (tmp_path / "backgrounds", tmp_path / "foregrounds")
    composite(tmp_path / "corpus", *folders, parameters, jobs=1, pictures=False)
    pack(tmp_path / "corpus", tmp_path / "store", shards=1, jobs=1)
    opened = Store(tmp_path / "store")
    assert "instance" in opened.fields
    result = export_store(opened.path, tmp_path / "out", "coco", jobs=1)
    coco = COCO(str(tmp_path / "out/train/labels.json"))
    categories = {category["id"]: category["name"] for category in coco.loadCats(coco.getCatIds())}
    assert categories == {1: "chair", 2: "person"}
    seen = 0
    for row in coco.getImgIds():
        numbers = opened.read(row, row + 1)["instance"][0]
        for annotation in coco.loadAnns(coco.getAnnIds(row)):
            number = annotation["id"] - 256 * row
            np.testing.assert_array_equal(coco.annToMask(annotation), numbers == number)
            assert (annotation["foreground"] == "chair/stool") == (categories[annotation["category_id"]] == "chair")
            seen += 1
        assert len(coco.getAnnIds(row)) == len(np.unique(numbers[numbers > 0]))
    assert seen == result.instances > opened.rows
    capsys.readouterr()


def test_numbers_beyond_the_plan_are_damage(tmp_path: Path, store: Path, crowd: Crowd) -> None:
    """No annotation is made up for them."""
    crowd.numbers[0, 0, 0] = 4
    with pytest.raises(DamagedError, match="row 0 has instance 4, expected at most 3; run dsgen repair"):
        export_store(store, tmp_path / "out", "coco", split="all", jobs=1)


@pytest.mark.parametrize("file_format", FORMATS)
def test_own_pictures(tmp_path: Path, file_format: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A mask is one instance of the class foreground, an empty one is none; the pictures' names are kept."""
    for kind in ("rgb", "masks"):
        (tmp_path / kind).mkdir()
    for number in range(4):
        Image.fromarray(draw_background(number, 48, 48)).save(tmp_path / f"rgb/scene{number}.png")
        mask = np.zeros((48, 48), np.uint8)
        mask[10 : 10 + 6 * number, 10:20] = 255
        Image.fromarray(mask).save(tmp_path / f"masks/scene{number}.png")
    source = Pictures(tmp_path / "rgb", tmp_path / "masks", None, None, 48, 0.001, 0.0, 0.0, 0)
    pack_source(source, tmp_path / "store", shards=1, jobs=1)
    result = export_store(tmp_path / "store", tmp_path / "out", file_format, jobs=1)
    assert (result.rows, result.instances, result.rows_without) == (4, 3, 1)
    if file_format == "coco":
        labels = read_json(tmp_path / "out/train/labels.json")
        assert labels["categories"] == [{"id": 1, "name": "foreground"}]
        assert [image["picture"] for image in labels["images"]] == [f"scene{number}.png" for number in range(4)]
        assert [annotation["area"] for annotation in labels["annotations"]] == [60, 120, 180]
    else:
        texts = [path.read_text() for path in sorted((tmp_path / "out/labels/train").iterdir())]
        assert [bool(text) for text in texts] == [False, True, True, True]
    pack_source(
        Pictures(tmp_path / "rgb", None, None, None, 48, 0.001, 0.0, 0.0, 0), tmp_path / "bare", shards=1, jobs=1
    )
    with pytest.raises(InvalidValueError, match=r"--format: .* has no masks; use webdataset or parquet"):
        export_store(tmp_path / "bare", tmp_path / "none", file_format, jobs=1)
    assert not (tmp_path / "none").exists()


def test_workers_do_not_show(tmp_path: Path, store: Path) -> None:
    """One worker and three write the same bytes, card and index included."""
    for name, jobs in (("one", 1), ("three", 3)):
        export_store(store, tmp_path / name, "coco", rows_per_file=5, jobs=jobs)
    one = files(tmp_path / "one")
    assert one == files(tmp_path / "three")
    assert not [name for name in one if "unused" in name or "exporting" in name or ".partial" in name]
    assert not (tmp_path / "one/exporting").exists()


def test_jpeg(tmp_path: Path, opened: Store, capsys: pytest.CaptureFixture[str]) -> None:
    """Pictures are near, labels exact, and the names agree."""
    export_store(opened.path, tmp_path / "coco", "coco", image_format="jpeg", jobs=1)
    export_store(opened.path, tmp_path / "yolo", "yolo", image_format="jpeg", jobs=1)
    dataset = CocoDetection(tmp_path / "coco/train/data", tmp_path / "coco/train/labels.json")
    row = dataset.ids[0]
    truth = opened.read(row, row + 1)
    assert np.abs(np.asarray(dataset[0][0]).astype(int) - truth["image"][0]).mean() < 8
    np.testing.assert_array_equal(dataset.coco.annToMask(dataset[0][1][0]), truth["mask"][0] > 0)
    assert (tmp_path / f"yolo/images/train/{row:09d}.jpg").read_bytes()[:2] == b"\xff\xd8"
    capsys.readouterr()


KILLED = """
import os, signal, sys
from pathlib import Path
from dsgen.store.export import export, pictures

def rows_then_kill(*arguments):
    for row in rows(*arguments):
        global left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        yield row

def no_labels(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)

rows, left = pictures.read_rows, int(sys.argv[4])
pictures._check_space = lambda *arguments: None
pictures.read_rows = rows_then_kill
if left > 72:
    pictures._write_summary = no_labels
export.export_store(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], split="all", rows_per_file=5, jobs=1)
"""


@pytest.mark.parametrize(("file_format", "after"), [("coco", 33), ("coco", 100), ("yolo", 33)])
def test_killed_process_continues(tmp_path: Path, store: Path, file_format: str, after: int) -> None:
    """After kill -9 in the middle of a block, or before the labels, the next run makes what is missing."""
    export_store(store, tmp_path / "whole", file_format, split="all", rows_per_file=5, jobs=1)
    arguments = [str(store), str(tmp_path / "out"), file_format, str(after)]
    process = subprocess.run([sys.executable, "-c", KILLED, *arguments], capture_output=True, timeout=100)
    assert process.returncode == -signal.SIGKILL, process.stderr
    left = files(tmp_path / "out")
    assert json.loads(left["export.json"])["complete"] is False
    assert not {"README.md", "data.yaml", "train/labels.json"} & set(left)
    result = export_store(store, tmp_path / "out", file_format, split="all", rows_per_file=5, jobs=1)
    assert result.already_there == pytest.approx(min(after, 72), abs=8)
    assert result.already_there + result.exported == 72
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def lose_picture(out: Path) -> None:
    """Remove a picture."""
    sorted(out.rglob("*.png"))[3].unlink()


def cut_picture(out: Path) -> None:
    """Lose the end of a picture."""
    path = sorted(out.rglob("*.png"))[3]
    path.write_bytes(path.read_bytes()[:-1])


def lose_labels(out: Path) -> None:
    """Remove what is made of all blocks."""
    for path in (out / "train/labels.json", out / "data.yaml"):
        path.unlink(missing_ok=True)


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize("damage", [lose_picture, cut_picture, lose_labels])
def test_what_is_lost_is_made_again(
    tmp_path: Path, store: Path, file_format: str, damage: Callable[[Path], None]
) -> None:
    """A second run does nothing; one after some damage makes that part again, and the bytes are the same."""
    out = tmp_path / "out"
    export_store(store, out, file_format, rows_per_file=5, jobs=1)
    before, stamp = files(out), (out / "export.json").stat().st_mtime_ns
    assert export_store(store, out, file_format, rows_per_file=5, jobs=1).exported == 0
    assert (out / "export.json").stat().st_mtime_ns == stamp
    damage(out)
    again = export_store(store, out, file_format, rows_per_file=5, jobs=1)
    if damage is lose_labels:  # the annotations of a split are in the records of its blocks, which are gone
        assert again.exported == (Store(store).splits["train"] if file_format == "coco" else 0)
    else:
        assert again.exported == 5
    assert files(out) == before


@pytest.mark.parametrize("file_format", FORMATS)
def test_a_kill_during_repair(tmp_path: Path, store: Path, file_format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was whole before is not made again after it."""
    out = tmp_path / "out"
    export_store(store, out, file_format, rows_per_file=5, jobs=1)
    before = files(out)
    lose_picture(out)
    with monkeypatch.context() as patched:
        patched.setattr(pictures, "run_blocks", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            export_store(store, out, file_format, rows_per_file=5, jobs=1)
    assert read_json(out / "export.json")["complete"] is False
    assert export_store(store, out, file_format, rows_per_file=5, jobs=1).exported == 5
    assert files(out) == before


def test_a_damaged_record_is_refused(tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No wrong annotation comes of it; once it is removed, its block is written again."""
    out, whole = tmp_path / "out", tmp_path / "whole"
    export_store(store, whole, "coco", rows_per_file=5, jobs=1)
    with monkeypatch.context() as patched:
        patched.setattr(pictures, "_write_summary", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            export_store(store, out, "coco", rows_per_file=5, jobs=1)
    record = next(iter(sorted((out / "exporting").iterdir())))
    record.write_text(record.read_text().replace('"area": ', '"area": 1', 1))
    with pytest.raises(DamagedError, match=r"differs from the hash in it; remove it and export again"):
        export_store(store, out, "coco", rows_per_file=5, jobs=1)
    record.unlink()
    assert export_store(store, out, "coco", rows_per_file=5, jobs=1).exported == 5
    assert files(out) == files(whole)


CONFLICTS: list[tuple[dict[str, Any], str]] = [
    ({"image_format": "jpeg"}, r"\n  image_format jpeg \(the export has png\)"),
    ({"rows_per_file": 9}, r"\n  rows_per_file 9 \(the export has 1000\)"),
    ({"split": "train"}, r"\n  splits train \(the export has train,validation\)$"),
    ({"file_format": "parquet"}, r"\n  format parquet \(the export has coco\)"),
    ({"file_format": "yolo"}, r"\n  format yolo \(the export has coco\)"),
]


@pytest.mark.parametrize(("options", "message"), CONFLICTS)
def test_conflicts(tmp_path: Path, store: Path, options: dict[str, Any], message: str) -> None:
    """What differs is named, and nothing is touched."""
    out = tmp_path / "out"
    export_store(store, out, "coco", jobs=1)
    before = files(out)
    with pytest.raises(ConflictError, match=message):
        export_store(store, out, **({"file_format": "coco", "jobs": 1} | options))
    assert files(out) == before


def test_other_files_are_refused(tmp_path: Path, store: Path) -> None:
    """The user's own beside the export's; what ultralytics leaves is not."""
    out = tmp_path / "out"
    export_store(store, out, "yolo", jobs=1)
    (out / "labels/train.cache").write_bytes(b"of ultralytics")
    assert export_store(store, out, "yolo", jobs=1).exported == 0
    (out / "images/train/holiday.jpg").write_bytes(b"mine")
    with pytest.raises(InvalidValueError, match=r"holds other files \(images/train/holiday.jpg\)"):
        export_store(store, out, "yolo", jobs=1)


def test_refused_options(tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Backgrounds have no place; coco needs a package, yolo does not; nothing is written."""
    for file_format in FORMATS:
        with pytest.raises(InvalidValueError, match=f"--backgrounds: not part of --format {file_format}; leave it out"):
            export_store(store, tmp_path / "out", file_format, backgrounds=True, jobs=1)
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(MissingPackageError, match=r"pycocotools: not installed; pip install 'dsgen\[coco\]'"):
        export_store(store, tmp_path / "out", "coco", jobs=1)
    assert not (tmp_path / "out").exists()
    assert export_store(store, tmp_path / "out", "yolo", jobs=1).exported > 0


def test_a_full_disk_is_refused(tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is written; too few free inodes as well."""
    usage = pictures.shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(pictures.shutil, "disk_usage", lambda _: usage._replace(free=1000))
        with pytest.raises(DsgenError, match=r"rows need about 0.0 GB, 0.0 GB are free; .* or as jpeg"):
            export_store(store, tmp_path / "out", "coco", jobs=1)
    assert not (tmp_path / "out").exists()
    real = os.statvfs

    class FewFiles:
        f_favail = 3

        def __getattr__(self, name: str) -> Any:
            return getattr(real(tmp_path), name)

    with monkeypatch.context() as patched:
        patched.setattr(pictures.os, "statvfs", lambda _: FewFiles())
        with pytest.raises(DsgenError, match=r"files needed, the file system has space for 3; choose another folder"):
            export_store(store, tmp_path / "out", "yolo", jobs=1)
    assert not (tmp_path / "out").exists()


def test_the_readme_of_coco_runs(
    tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its snippet reads the pictures beside it."""
    export_store(store, tmp_path / "out", "coco", jobs=1)
    monkeypatch.chdir(tmp_path / "out")
    text = Path("README.md").read_text()
    names: dict[str, Any] = {}
    exec("\n".join(line[4:] for line in text.splitlines() if line.startswith("    ")), names)
    assert names["masks"][0].shape == (48, 48)
    assert "40 instances of `person`. 0 rows have no visible one." in text
    assert "depth_file" in text
    capsys.readouterr()


def test_command(tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line on stdout, which counts the instances."""
    monkeypatch.chdir(tmp_path)
    command = ["export", str(store), "out", "--format", "yolo", "--split", "validation", "--jobs", "1"]
    made, again = (CliRunner().invoke(app, command).stdout for _ in range(2))
    rows = Store(store).splits["validation"]
    assert made.startswith(f"out: {rows} rows ({rows} validation) in {2 * rows + 1} yolo files, ")
    assert made.endswith(f" MB, {rows} instances; {rows} exported now, 0 already existed\n")
    assert again.endswith(f"0 exported now, {rows} already existed\n")


def test_command_tells_what_is_tiny_or_missing(
    tmp_path: Path, store: Path, crowd: Crowd, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that nothing is lost without a word."""
    monkeypatch.chdir(tmp_path)
    command = ["export", str(store), "out", "--format", "coco", "--split", "all", "--jobs", "1"]
    told = CliRunner().invoke(app, command).stdout
    tiny = sum((numbers == 2).any() for numbers in crowd.numbers)
    assert f" instances (1 row without any, {tiny} smaller than 16 pixels); 72 exported now" in told


def test_class_names_are_those_of_the_whole_store(store: Path, crowd: Crowd) -> None:
    """So that numbers agree between splits."""
    assert InstanceLabels(Store(store)).classes == ["chair", "person"]
