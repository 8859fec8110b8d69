"""Annotations in the format of COCO: exact masks as compressed run lengths.

    train/data/000000123.png     a picture, by its row
    train/depth/000000123.png    16-bit PNG, millimetres, 0 = none, if the store has depth
    train/labels.json            info, licenses, categories, images, annotations

The id of an image is its row, that of an annotation 256 times the row plus the number of the instance. Both are the
same in every export of a store, and no id of an annotation is 0, which pycocotools takes for none.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dsgen import __version__
from dsgen.errors import MissingPackageError
from dsgen.io.atomic import write_file
from dsgen.store.export.instances import Instance, InstanceLabels
from dsgen.store.reader import Store

LABELS_JSON = "labels.json"
_IDS_OF_A_ROW = 256


def import_masks() -> Any:
    """Return the module `pycocotools.mask`; raise `MissingPackageError` without it."""
    try:
        from pycocotools import mask
    except ImportError as error:
        raise MissingPackageError("pycocotools", "not installed", "pip install 'dsgen[coco]'") from error
    return mask


def describe_image(labels: InstanceLabels, row: int, size: int, files: dict[str, str]) -> dict[str, Any]:
    """Return the entry of an image. `files` are those of the row by kind, relative to the folder of `labels.json`."""
    entry = {"id": row, "file_name": Path(files["image"]).name, "width": size, "height": size, "row": row}
    depth = {"depth_file": files["depth"]} if "depth" in files else {}
    return entry | labels.about_picture(row) | depth


def describe_instance(row: int, instance: Instance) -> dict[str, Any]:
    """Return the annotation of an instance."""
    code = import_masks().encode(np.asfortranarray(instance.mask))
    return {
        "id": _IDS_OF_A_ROW * row + instance.number,
        "image_id": row,
        "category_id": instance.category + 1,
        "segmentation": {"size": list(code["size"]), "counts": code["counts"].decode("ascii")},
        "bbox": list(instance.box),
        "area": instance.area,
        "iscrowd": 0,
        **instance.about,
    }


def write_labels(path: Path, store: Store, split: str, units: dict[str, str], records: Any) -> None:
    """Write the `labels.json` of a split. `records()` iterates over the records of its blocks, in order.

    Each has `images` and `annotations`; one record is in memory at a time.
    """
    info = {
        "description": f"Composites with labels, split {split}",
        "version": __version__,
        "store_sha256": store.sha256,
        "units": units,
    }
    categories = [{"id": number, "name": name} for number, name in enumerate(InstanceLabels(store).classes, 1)]
    head = {"info": info, "licenses": [], "categories": categories}
    with write_file(path) as stream:
        stream.write(json.dumps(head, ensure_ascii=False)[:-1].encode())
        for name in ("images", "annotations"):
            stream.write(f',\n"{name}": ['.encode())
            stream.writelines(_entries(records(), name))
            stream.write(b"\n]")
        stream.write(b"}\n")


def _entries(records: Iterator[dict[str, Any]], name: str) -> Iterator[bytes]:
    """Yield the entries of a list, one a line, with what separates them."""
    separator = "\n"
    for record in records:
        for entry in record[name]:
            yield f"{separator}{json.dumps(entry, ensure_ascii=False)}".encode()
            separator = ",\n"
