"""Every metadata file that dsgen reads, as targets of the fuzzer, each with what reads it."""

import contextlib
import io
import json
import random
import struct
import zipfile
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image
from support.corpora import ENCODER, draw_background, draw_cutout, make_corpus, write_weights
from support.fuzz import Target, edit_value
from support.runs import make_run

from dsgen.cli import corpus_commands, training_commands
from dsgen.cli.config import read_config
from dsgen.corpus.corpus import Corpus
from dsgen.depth.fit import _read_checkpoint
from dsgen.depth.frames import Frames, read_people
from dsgen.depth.label_folder import label_folder
from dsgen.depth.networks import DenseDepth
from dsgen.depth.weights import load_depth_model
from dsgen.evaluation.predict import predict
from dsgen.integrity.repair import repair
from dsgen.integrity.verify import verify
from dsgen.io.cameras import read_cameras
from dsgen.store.export import pictures as export_pictures
from dsgen.store.export.export import export_store
from dsgen.store.packing import pack
from dsgen.store.picture_source import Pictures
from dsgen.store.reader import Store
from dsgen.training.checkpoint import open_trained
from dsgen.views.info import describe


def flat_depth(images: np.ndarray) -> np.ndarray:
    """Answer two metres everywhere."""
    return np.full(images.shape[:3], 2, np.float32)


def _read_all(folder: Path) -> None:
    store = Store(folder)
    assert len(store.plan) == store.rows
    store.read(0, store.rows)


def _info(folder: Path) -> None:
    describe(folder).table()


def _verify(folder: Path) -> None:
    verify(folder, jobs=1).table()


def _draw(folder: Path) -> None:
    corpus = Corpus(folder)
    corpus.render(corpus.plan[:4])
    if corpus.depth is not None:
        np.asarray(corpus.depth[:4])


def _config(command: Any, name: str, section: str) -> Any:
    _, parameters = command._make_parameters()
    return lambda folder: read_config(folder / name, section, parameters)


def make_targets(root: Path, corpus: Path) -> list[Target]:
    """Make one file of every kind below `root`, from a labelled corpus, and list them as targets."""
    targets: list[Target] = []

    def add(folder: Path, files: str, *readers: Any, edit: Any = None, slow: tuple[Any, ...] = ()) -> None:
        kind = folder.name
        targets.extend(Target(f"{kind}/{file}", folder, file, readers, edit, slow) for file in files.split())

    def pack_again(folder: Path) -> None:
        pack(corpus, folder, shards=2, jobs=1)

    def repair_from(folder: Path) -> None:
        repair(folder, corpus, jobs=1)

    store = root / "store"
    pack(corpus, store, shards=2, jobs=1)
    shard = "shard-00000-of-00002.zarr"
    add(store, "index.json", _info, _read_all, slow=(_verify, pack_again, repair_from))
    add(store, f"{shard}/zarr.json SHA256SUMS", _info, _read_all, slow=(_verify, repair_from))
    add(store, f"{shard}/image/zarr.json", _verify)
    add(
        store,
        f"{shard}/image/c/0/0/0/0 {shard}/depth/c/0/0/0 {shard}/position/c/0 {shard}/background/c/0/0/0/0",
        _read_all,
    )
    zipped, recipe = root / "zipped", root / "recipe"
    pack(corpus, zipped, shards=2, jobs=1, zipped=True)
    pack(corpus, recipe, shards=2, jobs=1, recipe=True)
    add(zipped, f"{shard}.zip", _info, _read_all, edit=_edit_directory, slow=(_verify,))
    add(recipe, f"{shard}/zarr.json {shard}/foreground_shape/c/0/0", _info, _read_all)
    _make_unfinished(root / "unfinished", store)
    add(
        root / "unfinished",
        f"packing/made_from.json packing/block-000000000000.json packing/{shard.replace('00000-', '00001-')}.json",
        pack_again,
    )
    export_store(store, root / "export", jobs=1)
    add(root / "export", "export.json", lambda folder: export_store(store, folder, jobs=1))
    _make_unfinished_export(root / "coco", store)
    record = "exporting/train-00000-of-00001.json"
    add(root / "coco", f"export.json {record}", lambda folder: export_store(store, folder, "coco", jobs=1))

    rooms = root / "rooms"
    rooms.mkdir()
    for n in range(2):
        Image.fromarray(draw_background(n, 48, 64)).save(rooms / f"room{n}.png")
    labels = root / "labels"
    label_folder(rooms, labels, model=flat_depth, kind="metric", file_format="npy")

    def label_again(folder: Path) -> None:
        label_folder(rooms, folder, model=flat_depth, kind="metric", file_format="npy")

    def describe_again(folder: Path) -> None:
        (folder / "depth.csv").unlink()
        label_again(folder)

    add(labels, "depth.json depth.csv", label_again)
    label = next(path for path in labels.rglob("*.npy"))
    add(labels, label.relative_to(labels).as_posix(), describe_again)

    run = make_run(root / "run")
    add(run, "checkpoints/best.pt", open_trained, edit=_edit_checkpoint)
    answers = root / "predictions"
    predict(run, rooms, out=answers, device="cpu")
    add(answers, "predictions.json predictions.csv", lambda folder: predict(run, rooms, out=folder, device="cpu"))

    configs = root / "configs"
    configs.mkdir()
    settings = {"dsgen": "0.1.0", "epochs": 3, "settings": {"sizes": [96, 192], "learning_rate": 0.01, "clip": None}}
    (configs / "config.json").write_text(json.dumps(settings, indent=2))
    (configs / "run.toml").write_text('epochs = 3\nsizes = [96, 192]\n[settings]\nencoder = "resnet18"\nclip = 1.5\n')
    (configs / "corpus.json").write_text(json.dumps({"dsgen": "0.1.0", "parameters": {"size": 48, "positions": 4}}))
    add(configs, "config.json run.toml", _config(training_commands.TRAIN, "config.json", "settings"))
    targets[-1] = Target(
        "configs/run.toml", configs, "run.toml", (_config(training_commands.TRAIN, "run.toml", "settings"),)
    )
    add(configs, "corpus.json", _config(corpus_commands.COMPOSITE, "corpus.json", "parameters"))

    weights = root / "weights"
    weights.mkdir()
    torch.manual_seed(0)
    write_weights(weights / "w.safetensors", DenseDepth(ENCODER, 16, norm=True, output="log", input_size=64))
    add(weights, "w.safetensors", lambda folder: load_depth_model(folder / "w.safetensors"), edit=_edit_safetensors)
    progress = {"settings": {"seed": 0}, "done": 1, "minutes": 0.5}
    torch.save(
        progress | {key: {} for key in ("network", "average", "optimizer", "schedule")}, weights / "w.checkpoint"
    )
    add(
        weights,
        "w.checkpoint",
        lambda folder: _read_checkpoint(folder / "w.checkpoint", {"seed": 0}),
        edit=_edit_checkpoint,
    )

    frames = root / "frames"
    for name in ("rgb", "depth", "people"):
        (frames / name).mkdir(parents=True)
    for n in range(2):
        Image.fromarray(draw_background(n, 32, 32)).save(frames / f"rgb/f{n}.png")
        Image.fromarray(np.full((32, 32), 2000 + n, np.uint16)).save(frames / f"depth/f{n}.png")
    Image.fromarray(draw_cutout(0)).save(frames / "people/p0.png")
    (frames / "frames.csv").write_text("name,room,fov_deg\nf0,a,60\nf1,b,\n")
    (frames / "people.csv").write_text("name,poses\np0,sitting\np1,standing\n")
    add(frames, "frames.csv", Frames)
    add(frames, "people.csv", lambda folder: read_people(folder / "people"))

    cameras = root / "cameras"
    (cameras / "in").mkdir(parents=True)
    for n in range(2):
        Image.fromarray(draw_background(n, 32, 32)).save(cameras / f"in/p{n}.png")
    (cameras / "in.csv").write_text("name,fov_deg\np0,60\np1.png,\n")
    add(cameras, "in.csv", lambda folder: read_cameras(folder / "in", sorted((folder / "in").iterdir()), None, 1))

    pairs = root / "pairs"
    for name in ("images", "depths"):
        (pairs / name).mkdir(parents=True)
    Image.fromarray(draw_background(0, 32, 40)).save(pairs / "images/a.png")
    np.save(pairs / "depths/a.npy", np.full((32, 40), 2, np.float32))
    add(pairs, "depths/a.npy", lambda folder: Pictures(folder / "images", depth_folder=folder / "depths", size=32))
    return targets


def corpus_targets(root: Path, pictures: Path, labelled: Path) -> list[Target]:
    """List the files of a corpus and of its labels."""
    plain = make_corpus(root / "corpus", pictures, pictures=False)
    readers = (_info, _draw, _verify)
    names = ("corpus.json", "plan.npy", "sources.zarr/zarr.json", "sources.zarr/background_48/zarr.json")
    targets = [Target(f"corpus/{name}", plain, name, readers) for name in names]
    labels = ("depth.zarr/zarr.json", "depth.zarr/depth/zarr.json")
    return targets + [Target(f"labelled/{name}", labelled, name, readers) for name in labels]


def _make_unfinished_export(out: Path, store: Path) -> None:
    """Export picture files, and end before the labels are written."""
    stopped = mock.patch.object(export_pictures, "_write_summary", side_effect=KeyboardInterrupt)
    with contextlib.suppress(KeyboardInterrupt), stopped:
        export_store(store, out, "coco", jobs=1)


def _make_unfinished(folder: Path, store: Path) -> None:
    """Make a store that was stopped: one shard sealed, one with all its blocks packed."""
    import shutil

    from dsgen.io.filesystem import LocalFiles
    from dsgen.store.records import BlockRecord, FileEntry, start_records, write_block_record, write_shard_table

    shutil.copytree(store, folder)
    made_from = json.loads((store / "index.json").read_bytes())["made_from"]
    (folder / "index.json").unlink()
    (folder / "SHA256SUMS").unlink()
    first, second = (f"shard-0000{k}-of-00002.zarr" for k in range(2))
    (folder / first / "zarr.json").unlink()
    files = LocalFiles(folder)
    start_records(files, made_from)
    root = json.loads((store / first / "zarr.json").read_bytes())
    blocks = [f"{field}/c/0/0/0" + "/0" * (field == "image") for field in ("image", "mask", "depth")]
    entries = {name: FileEntry.of((folder / first / name).read_bytes()) for name in blocks}
    sums = {name: value for name, value in root["attributes"]["sums"].items() if name != "background"}
    write_block_record(files, 0, BlockRecord(sums, entries))
    below = files.child(second)
    table = {f"{second}/{name}": FileEntry.of(below.read(name)) for name in below.sizes()}
    write_shard_table(files, second, table)


def _edit_checkpoint(content: bytes, rng: random.Random) -> bytes:
    """Change a value that a checkpoint holds, and write it as torch does."""
    saved = edit_value(torch.load(io.BytesIO(content), weights_only=True), rng)
    out = io.BytesIO()
    torch.save(saved, out)
    return out.getvalue()


def _edit_safetensors(content: bytes, rng: random.Random) -> bytes:
    """Change the header of a safetensors file, or the settings of the network in it."""
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    if rng.random() < 0.7:
        settings = edit_value(json.loads(header["__metadata__"]["dsgen_network"]), rng)
        header["__metadata__"]["dsgen_network"] = json.dumps(settings)
    else:
        header = edit_value(header, rng)
    changed = json.dumps(header).encode()
    return struct.pack("<Q", len(changed)) + changed + content[8 + length :]


def _edit_directory(content: bytes, rng: random.Random) -> bytes:
    """Write a zip again with one entry changed: another name, twice, compressed, or other bytes."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as before, zipfile.ZipFile(out, "w") as after:
        chosen = rng.choice(before.namelist())
        for name in before.namelist():
            value, kind = before.read(name), rng.randrange(5) if name == chosen else -1
            renamed = rng.choice(("../" + name, "/" + name, name + "x", "")) if kind == 0 else name
            entry = zipfile.ZipInfo(renamed)
            entry.compress_type = zipfile.ZIP_DEFLATED if kind == 1 else zipfile.ZIP_STORED
            if kind == 2 and name.endswith("zarr.json"):
                value = json.dumps(edit_value(json.loads(value), rng)).encode()
            elif kind == 3:
                value = value[: len(value) // 2]
            entry.extra = b"\x99\x99" + struct.pack("<H", 200) + bytes(200) if kind == 4 else b""
            after.writestr(entry, value)
    return out.getvalue()
