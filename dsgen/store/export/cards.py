"""The dataset card of a parquet export, its `README.md`."""

from typing import Any

import numpy as np

from dsgen import __version__
from dsgen.corpus.plan import SPLITS
from dsgen.store.export.plan import ExportSettings
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
}
_CARD = """---
license: other
license_name: that-of-the-source-pictures
task_categories:{tasks}
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
## Licence

That of the backgrounds and foregrounds the composites are made of; name it here before passing them on. Those bundled
with dsgen are CC0, CC BY 3.0 and Apache-2.0: passing on composites of them requires the attribution in dsgen's
`assets/ATTRIBUTION.md`.
"""
_HELD_OUT_CARD = """
Train, validation and test share neither backgrounds nor foregrounds.
"""
_DEPTH_CARD = """
Depth decodes to whole numbers of millimetres, so that metres are `numpy.asarray(sample["depth"]) / 1000` where it is
not 0.{origin}
"""


def write_card(store: Store, index: dict[str, Any], settings: ExportSettings) -> str:
    """Return the dataset card that Hugging Face shows, and that `datasets` reads the splits from.

    `index` is the content of `export.json`.
    """
    kinds = settings.kinds
    about = {field: settings.describe(field) for field in settings.fields} | _ABOUT_COLUMNS
    tasks = [task for name, task in _TASKS.items() if name in kinds]
    model = (store.index.get("depth") or {}).get("model")
    origin = f" It was not measured but estimated, by {model}." if model else ""
    return _CARD.format(
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
    )


def are_held_out(plan: np.ndarray) -> bool:
    """Say whether every background and foreground is in only one of train, validation and test."""
    used = plan[plan["split"] != SPLITS.index("unused")]
    return all(len(np.unique(used[[name, "split"]])) == len(np.unique(used[name])) for name in _SOURCES)
