"""The schema of a corpus' labels: blocks, chunks, hashes of metadata, and what earlier versions wrote."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from support.damage import delete, flip, linked, put, truncate

from dsgen.corpus.chunks import chunk_rows
from dsgen.corpus.labels import (
    BLOCK_BYTES,
    BLOCK_ROWS,
    FLIP_ERROR,
    METADATA_SHA256,
    LabelAttributes,
    Labels,
    block_file,
    create_labels,
    find_damaged_metadata,
    restored_metadata,
    resume_labels,
)
from dsgen.errors import ConflictError, DamagedError, DsgenError

ROWS, SIZE, POSITIONS = 50, 16, 4
ATTRIBUTES = LabelAttributes(
    model="drawn",
    weights_sha256="0" * 64,
    kind="metric",
    metric_reference=None,
    label_size=32,
    drawn_size=16,
    network_input=(32, 32),
    precision="float32",
    flip_checked=True,
    flip_averaged=False,
    units="mm",
)


def write_all(path: Path) -> Labels:
    """Label every row with its number, the flip error with a hundredth of it."""
    labels = resume_labels(path, ROWS, ATTRIBUTES)
    for start, stop in labels.missing_blocks():
        rows = np.arange(start, stop)
        labels.write_block(start, np.tile(rows[:, None, None], (1, SIZE, SIZE)).astype(np.uint16) + 1, rows / 100)
    assert labels.finish() == 0
    return Labels(path, ROWS)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with complete labels in three blocks, `depth.zarr`; not to be written to."""
    folder = tmp_path_factory.mktemp("labels")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dsgen.corpus.labels.BLOCK_ROWS", 20)
        create_labels(folder / "depth.zarr", ROWS, SIZE, POSITIONS, ATTRIBUTES)
        write_all(folder / "depth.zarr")
    return folder


def test_labels_are_read_as_they_were_written(made: Path):
    """In any range of rows, across blocks; and their flip errors."""
    labels = Labels(made / "depth.zarr", ROWS)
    assert labels.blocks() == [(0, 20), (20, 40), (40, 50)]
    assert labels.array_names == ("depth", FLIP_ERROR)
    for first, last in ((0, 50), (19, 21), (40, 50), (7, 8)):
        assert (labels.read(first, last)[:, 0, 0] == np.arange(first, last) + 1).all()
    assert (labels.read_rows(np.array([3, 44]))[:, 5, 5] == (4, 45)).all()
    assert (labels.read_flip_errors() == (np.arange(ROWS) / 100).astype(np.float32)).all()


@pytest.mark.parametrize("name", ["zarr.json", "depth/zarr.json", "flip_error/zarr.json"])
@pytest.mark.parametrize("damage", [flip, truncate, delete])
def test_damaged_metadata_is_named(tmp_path: Path, made: Path, name: str, damage: Callable[[Path], None]):
    """With a remedy that works: the arrays' metadata can be written again, the attributes of the group cannot."""
    path = linked(made, tmp_path / "c") / "depth.zarr"
    whole = (path / name).read_bytes()
    damage(path / name)
    remedy = f"remove {path} and run dsgen depth again" if name == "zarr.json" else f"run dsgen repair {path.parent}"
    with pytest.raises(DamagedError, match=rf"^{path / name}: .*; {remedy}$"):
        Labels(path, ROWS)
    assert name in find_damaged_metadata(path)
    if name != "zarr.json":
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("dsgen.corpus.labels.BLOCK_ROWS", 20)
            assert restored_metadata(path, ROWS, SIZE, POSITIONS)[name] == whole
        # other rules would give other files, which are not used
        assert "depth/zarr.json" not in restored_metadata(path, ROWS, SIZE, POSITIONS)


@pytest.mark.parametrize("change", [{"model": "other"}, {"units": "m"}, {"flip_checked": False}, {"more": 1}])
def test_changed_attributes_are_refused(tmp_path: Path, made: Path, change: dict[str, Any]):
    """All of them but `complete`, which turns true once."""
    path = Path(shutil.copytree(made, tmp_path / "c")) / "depth.zarr"
    group = zarr.open_group(path, mode="r+")
    group.attrs["complete"] = False
    assert Labels(path, ROWS).attributes["complete"] is False
    group.attrs.update(change)
    with pytest.raises(DamagedError, match="changed or damaged, its attributes differ from their hash"):
        Labels(path, ROWS)


@pytest.mark.parametrize("name", ["depth/c/1/0/0", "flip_error/c/1"])
@pytest.mark.parametrize("damage", [flip, truncate, delete])
def test_damaged_blocks_are_named(tmp_path: Path, made: Path, name: str, damage: Callable[[Path], None]):
    """Other blocks are read; a lost one of complete labels is not read as not labelled."""
    path = linked(made, tmp_path / "c") / "depth.zarr"
    damage(path / name)
    labels = Labels(path, ROWS)
    assert labels.read(40, 50).any()
    read = labels.read_flip_errors if name.startswith(FLIP_ERROR) else lambda: labels.read(0, ROWS)
    with pytest.raises(DamagedError, match=rf"^{path / name}: .*; run dsgen repair {path.parent}$"):
        read()


def test_labels_of_earlier_versions_open(tmp_path: Path, made: Path):
    """Without hashes; but not with an attribute that no version wrote, as one bit may make of the hashes' name."""
    path = Path(shutil.copytree(made, tmp_path / "c")) / "depth.zarr"
    metadata = json.loads((path / "zarr.json").read_text())
    hashes = metadata["attributes"].pop(METADATA_SHA256)
    for kept in (12, 4):  # the oldest have few attributes
        metadata["attributes"] = dict(list(metadata["attributes"].items())[:kept]) | {"complete": True}
        put(path / "zarr.json", json.dumps(metadata).encode())
        labels = Labels(path, ROWS)
        assert not labels.vouched
        assert labels.read(0, ROWS).all()
    metadata["attributes"]["metadata_sha25v"] = hashes
    put(path / "zarr.json", json.dumps(metadata).encode())
    with pytest.raises(DamagedError, match="damaged, holds 'metadata_sha25v', which no dsgen writes"):
        Labels(path, ROWS)


HUGE = 10**11


@pytest.mark.parametrize(
    "change",
    [
        {"shape": [HUGE, SIZE, SIZE]},
        {"shape": [ROWS, HUGE, HUGE]},
        {"shape": []},
        {"shape": ["a"]},
        {"data_type": "object"},
        {"node_type": "group"},
        {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [HUGE, SIZE, SIZE]}}},
        {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [20, HUGE, SIZE]}}},
        {"chunk_grid": []},
        {"codecs": [{"name": "nonsense"}]},
        {"codecs": None},
    ],
)
def test_metadata_without_hashes_is_bounded(tmp_path: Path, made: Path, change: dict[str, Any]):
    """What would fill the memory or is no array of labels is refused before anything is read."""
    path = Path(shutil.copytree(made, tmp_path / "c")) / "depth.zarr"
    group = json.loads((path / "zarr.json").read_text())
    del group["attributes"][METADATA_SHA256]
    put(path / "zarr.json", json.dumps(group).encode())
    put(path / "depth/zarr.json", json.dumps(json.loads((path / "depth/zarr.json").read_text()) | change).encode())
    with pytest.raises(DamagedError, match=rf"^{path}/depth.*; remove {path} and run dsgen depth again$"):
        Labels(path, ROWS).read(0, 1)


@pytest.mark.parametrize("positions", [1, 3, 20, 25, 30, 45, 100])
@pytest.mark.parametrize("size", [48, 224, 1024])
def test_chunks_are_those_of_a_store_and_blocks_are_bounded(tmp_path: Path, positions: int, size: int):
    """So that pack copies them: for every number of positions; a block decodes to 64 MiB at most."""
    for units, nbytes in (("mm", 2), ("1", 4)):
        create_labels(tmp_path / units, 4000, size, positions, replace(ATTRIBUTES, units=units))
        array = Labels(tmp_path / units, 4000).array
        assert array.chunks == (chunk_rows(positions, size), size, size)
        assert array.shards[0] % array.chunks[0] == 0
        assert array.shards[0] <= BLOCK_ROWS
        assert array.shards[0] * size * size * nbytes <= BLOCK_BYTES
    assert Labels(tmp_path / "1", 4000).metric is False


def test_other_attributes_are_refused_in_words(made: Path):
    """Another network is called so; where only options differ, they are named."""
    path = made / "depth.zarr"
    with pytest.raises(ConflictError, match=r"^\S+: labelled with another network; .*\n  model other \(the corpus has"):
        resume_labels(path, ROWS, replace(ATTRIBUTES, model="other", precision="bf16"))
    with pytest.raises(ConflictError, match=r"labelled with other options \(--precision, --check-flip\)"):
        resume_labels(path, ROWS, replace(ATTRIBUTES, precision="bf16", flip_checked=False))


def test_only_complete_depth_is_packed(tmp_path: Path, made: Path):
    """In metres, of the size of the images, of every row; a store records neither hashes nor the unit millimetres."""
    path = linked(made, tmp_path / "c") / "depth.zarr"
    attributes = Labels(path, ROWS).check_for_packing(SIZE)
    expected = {name: value for name, value in ATTRIBUTES.as_dict().items() if name != "units"}
    assert attributes == expected | {"dsgen": attributes["dsgen"]}
    with pytest.raises(DamagedError, match=r"expected uint16 \(50, 32, 32\); remove it and run dsgen depth again"):
        Labels(path, ROWS).check_for_packing(32)
    delete(path / block_file("depth", 0))
    with pytest.raises(DsgenError, match="unfinished, 20 of 50 rows lack depth; run dsgen depth"):
        Labels(path, ROWS).check_for_packing(SIZE)
    create_labels(tmp_path / "r", ROWS, SIZE, POSITIONS, replace(ATTRIBUTES, units="1", kind="inverse"))
    with pytest.raises(DsgenError, match="labelled by drawn, whose depth is relative, not in metres; remove it and"):
        Labels(tmp_path / "r", ROWS).check_for_packing(SIZE)
