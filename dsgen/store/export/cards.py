"""The `README.md` of an export: how to read it; for parquet, the dataset card of Hugging Face."""

from typing import Any

import numpy as np

from dsgen import __version__
from dsgen.corpus.labels import COMPOSED
from dsgen.corpus.plan import SPLITS
from dsgen.store.export.instances import TINY_PIXELS, InstanceLabels
from dsgen.store.export.pictures import PictureFiles
from dsgen.store.export.plan import PICTURE_FORMATS, ExportSettings
from dsgen.store.reader import Store

_SOURCES = ["background", "foreground"]
_TASKS = {"mask": "image-segmentation", "depth": "depth-estimation"}
_ABOUT_COLUMNS = {
    "row": "row of the corpus' plan, the same in every export of it",
    "background_number": "background, as numbered in the corpus from 0",
    "foreground": "foreground, as numbered in the corpus from 0",
    "flip": "1 where the foreground is mirrored",
    "position": "number of the place among those of this pair",
    "top": "first row of the foreground, in pixels",
    "left": "first column of the foreground, in pixels",
    "split": "train, validation, test or unused",
    "people": "those of the row: number in `instance`, foreground, flip, box of what is seen in pixels (left, top, "
    "width, height), distance in metres",
}
_TAR_CARD = """# Composites with labels

Foregrounds pasted on backgrounds, {size}x{size} pixels, exported by dsgen {version} from the store whose `index.json`
has the SHA-256 {sha256}.

| split | rows | files |
|---|---|---|
{splits}
{held_out}
| member of a sample | what |
|---|---|
{members}
| `json` | row and columns of the plan, units of the numbers |

The usual decoders of webdataset read all of them{depth}:

    import webdataset

    for sample in webdataset.WebDataset("{files}", shardshuffle=False).decode("rgb8"):
        image = sample["{image}"]
{snippet}
`"rgb8"` gives every picture three channels, masks too; `"pil"`, `"l8"`, `"torchrgb"` and so on work as well.

{licence}"""
_TAR_DEPTH = ", whatever they make of pictures. Depth stays uint16 millimetres, 0 = none"
_PICTURE_CARD = """# Composites with labels of instances

Foregrounds pasted on backgrounds, {size}x{size} pixels, exported by dsgen {version} from the store whose `index.json`
has the SHA-256 {sha256}.

| split | rows | pictures |
|---|---|---|
{splits}
{held_out}
{instances:,} instances of {classes}. {without:,} rows have no visible one. {tiny:,} instances have fewer than
{tiny_pixels} pixels.

{about}
{licence}"""
_ABOUT_COCO = """`labels.json` of each split has the annotations, with exact masks as compressed run lengths. The id of
an image is its row in the corpus. An annotation has `foreground`, its name, `flip`, and `distance_m`, metres along the
optical axis, where it is known.{depth}

    from torchvision.datasets import CocoDetection

    dataset = CocoDetection("{split}/data", "{split}/labels.json")
    image, annotations = dataset[0]
    masks = [dataset.coco.annToMask(annotation) for annotation in annotations]  # (S,S) uint8, 0 or 1
"""
_COCO_DEPTH = """

`depth_file` of an image names its depth, relative to `labels.json`: 16-bit PNG, millimetres, 0 = none."""
_ABOUT_YOLO = """`labels` has a text file for each picture, with a polygon for each instance. Its parts and holes are
joined by bridges without width. ultralytics reads it as it is, given the path of `data.yaml`; it needs both `train` and
`val`:

    from ultralytics import YOLO

    YOLO("yolo11n-seg.pt").train(data="data.yaml")
"""
_LICENCE = """## Licence

That of the backgrounds and foregrounds the composites are made of; name it here before passing them on. Those bundled
with dsgen are CC0, CC BY 3.0 and Apache-2.0: passing on composites of them requires the attribution in dsgen's
`assets/ATTRIBUTION.md`.
"""
_CARD = """---
license: other
license_name: that-of-the-source-pictures
task_categories:{tasks}
size_categories:
  - {magnitude}
tags:
  - synthetic
configs:
  - config_name: default
    data_files:
{configured}
---

# Composites with labels

Foregrounds pasted on backgrounds, {size}x{size} pixels, exported by dsgen {version} from the store whose `index.json`
has the SHA-256 {sha256}.

| split | rows |
|---|---|
{splits}
{held_out}
| column | type | what |
|---|---|---|
{features}
{depth}
{licence}"""
_HELD_OUT_CARD = """
Train, validation and test share neither backgrounds nor foregrounds.
"""
_DEPTH_CARD = """
Depth decodes to whole numbers of millimetres, so that metres are `numpy.asarray(sample["depth"]) / 1000` where it is
not 0.{origin}
"""


def write_card(store: Store, index: dict[str, Any], settings: ExportSettings) -> str:
    """Return the `README.md`; for parquet, what Hugging Face shows and `datasets` reads the splits from.

    `index` is the content of `export.json`.
    """
    if settings.file_format == "webdataset":
        return _write_tar_card(store, index, settings)
    if settings.file_format in PICTURE_FORMATS:
        return _write_picture_card(store, index, settings)
    kinds = settings.kinds
    about = {field: settings.describe(field) for field in settings.fields} | _ABOUT_COLUMNS
    tasks = [task for name, task in _TASKS.items() if name in kinds]
    origin = _tell_origin(store)
    return _CARD.format(
        magnitude=size_category(sum(counts["rows"] for counts in index["splits"].values())),
        tasks="".join(f"\n  - {task}" for task in tasks) or " []",
        configured="\n".join(
            f"      - split: {split}\n        path: data/{split}-*.parquet" for split in index["splits"]
        ),
        size=store.size,
        version=__version__,
        sha256=store.sha256,
        splits="\n".join(f"| {split} | {counts['rows']:,} |" for split, counts in index["splits"].items()),
        held_out=_HELD_OUT_CARD if are_held_out(store.plan) else "",
        features="\n".join(f"| `{name}` | {kind} | {about[name]} |" for name, kind in kinds.items()),
        depth=_DEPTH_CARD.format(origin=origin) if "depth" in kinds else "",
        licence=_LICENCE,
    )


def _tell_origin(store: Store) -> str:
    """Say in a sentence where depth is from; nothing where that is not known."""
    model = (store.index.get("depth") or {}).get("model")
    if not model:
        return ""
    if model == COMPOSED:
        sources = ", ".join(
            f"{count:,} {source}" for source, count in store.index["made_from"].get("rooms", {}).items()
        )
        return f" It follows from the composition: that of the background ({sources}), and the distance of people."
    if "parameters" not in store.index["made_from"]:
        return " It was packed from files."
    return f" It was not measured but estimated, by {model}."


def size_category(rows: int) -> str:
    """Return what the hub calls a data set of so many rows: `n<1K`, `1K<n<10K` and so on.

    >>> size_category(999), size_category(400_000)
    ('n<1K', '100K<n<1M')
    """
    limits = [name for unit in "KMBT" for name in (f"1{unit}", f"10{unit}", f"100{unit}")]
    passed = len(str(max(rows, 1))) - 3
    return f"n<{limits[0]}" if passed < 1 else f"{limits[passed - 1]}<n<{limits[passed]}"


def _write_tar_card(store: Store, index: dict[str, Any], settings: ExportSettings) -> str:
    members = {field: f"{field}.{settings.suffix(field)}" for field in settings.fields}
    used = {field: member for field, member in members.items() if field in ("mask", "depth")}
    what = {"mask": "(S,S,3) uint8, 0 or 255", "depth": "(S,S) uint16 millimetres"}
    return _TAR_CARD.format(
        size=store.size,
        version=__version__,
        sha256=store.sha256,
        splits="\n".join(
            f"| {split} | {counts['rows']:,} | `{counts['files']}` |" for split, counts in index["splits"].items()
        ),
        held_out=_HELD_OUT_CARD if are_held_out(store.plan) else "",
        members="\n".join(f"| `{member}` | {settings.describe(field)} |" for field, member in members.items()),
        files=next(iter(index["splits"].values()))["files"],
        image=members["image"],
        snippet="".join(f'        {field} = sample["{used[field]}"]  # {what[field]}\n' for field in used),
        depth=_TAR_DEPTH if "depth" in members else "",
        licence=_LICENCE,
    )


def _write_picture_card(store: Store, index: dict[str, Any], settings: ExportSettings) -> str:
    files, blocks = PictureFiles(settings), index["blocks"].values()
    depth = _COCO_DEPTH if "depth" in settings.fields else ""
    about = _ABOUT_COCO.format(split=next(iter(index["splits"])), depth=depth)
    return _PICTURE_CARD.format(
        size=store.size,
        version=__version__,
        sha256=store.sha256,
        splits="\n".join(
            f"| {split} | {counts['rows']:,} | `{files.folder('image', split)}` |"
            for split, counts in index["splits"].items()
        ),
        held_out=_HELD_OUT_CARD if are_held_out(store.plan) else "",
        instances=sum(block["instances"] for block in blocks),
        classes=", ".join(f"`{name}`" for name in InstanceLabels(store).classes),
        without=sum(block["rows_without"] for block in blocks),
        tiny=sum(block["tiny_instances"] for block in blocks),
        tiny_pixels=TINY_PIXELS,
        about=_ABOUT_YOLO if settings.file_format == "yolo" else about,
        licence=_LICENCE,
    )


def are_held_out(plan: np.ndarray) -> bool:
    """Say whether every background and foreground is in only one of train, validation and test."""
    used = plan[plan["split"] != SPLITS.index("unused")]
    return all(len(np.unique(used[[name, "split"]])) == len(np.unique(used[name])) for name in _SOURCES)
