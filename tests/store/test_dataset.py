"""StoreDataset: the loader's values by index, in any process, and what transforms.v2 makes of them."""

import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.corpora import draw_background
from torch.utils.data import DataLoader
from torchvision import tv_tensors
from torchvision.transforms import v2

from dsgen.errors import DsgenError, InvalidValueError, MissingPackageError, NotFoundError
from dsgen.store.dataset import StoreDataset
from dsgen.store.loader import Loader
from dsgen.store.packing import pack, pack_source
from dsgen.store.picture_source import Pictures
from dsgen.store.reader import Shard, Store

pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


def by_row(batches: Any) -> dict[int, dict[str, torch.Tensor]]:
    """The samples of batches, by row."""
    return {
        int(row): {name: values[i] for name, values in batch.items() if name != "row"}
        for batch in batches
        for i, row in enumerate(batch["row"])
    }


@pytest.mark.parametrize("split", ["train", "validation", "unused", None])
def test_values_are_those_of_the_loader(three_shards: Path, split: str | None) -> None:
    """Every sample of a split, in the order of the rows, with the documented shapes and types."""
    exact, floats = by_row(Loader(three_shards, split, 9)), by_row(Loader(three_shards, split, 9, floats=True))
    dataset = StoreDataset(three_shards, split)
    assert [dataset[i]["row"] for i in range(len(dataset))] == sorted(exact)
    for i in range(len(dataset)):
        sample = dataset[i]
        row = sample.pop("row")
        assert type(row) is int
        assert {name: (tuple(values.shape), values.dtype) for name, values in sample.items()} == {
            "image": ((3, 48, 48), torch.uint8),
            "mask": ((1, 48, 48), torch.uint8),
            "depth": ((1, 48, 48), torch.float32),
            "background": ((3, 48, 48), torch.uint8),
        }
        for name in ("image", "background"):
            assert torch.equal(sample[name], exact[row][name].permute(2, 0, 1))
        for name in ("mask", "depth"):
            assert torch.equal(sample[name].float(), floats[row][name])


def test_inrngs(three_shards: Path) -> None:
    """Negative ones count from the end; beyond either end is an IndexError, so that iteration ends."""
    dataset = StoreDataset(three_shards, "validation")
    count = len(dataset)
    assert dataset[-1]["row"] == dataset[count - 1]["row"]
    assert dataset[-count]["row"] == dataset[np.int64(0)]["row"] == dataset[torch.tensor(0)]["row"]
    assert len(list(dataset)) == count  # type: ignore[call-overload]
    for index in (count, -count - 1):
        with pytest.raises(IndexError, match=f"sample {index} of a split with {count} samples"):
            dataset[index]
    with pytest.raises(TypeError):
        dataset[0.5]  # type: ignore[index]


@pytest.mark.parametrize(
    ("workers", "context"), [(0, None), (2, "fork"), pytest.param(2, "spawn", marks=pytest.mark.slow)]
)
def test_shuffled_in_a_data_loader(three_shards: Path, workers: int, context: str | None) -> None:
    """Every sample once, also in workers of a parent that has read before."""
    dataset = StoreDataset(three_shards, None)
    expected = {row: dataset[row] for row in range(72)}
    batches: DataLoader[Any] = DataLoader(
        dataset, batch_size=32, shuffle=True, num_workers=workers, multiprocessing_context=context
    )
    shapes = {name: tuple(values.shape) for name, values in next(iter(batches)).items()}
    assert shapes == {
        "image": (32, 3, 48, 48),
        "mask": (32, 1, 48, 48),
        "depth": (32, 1, 48, 48),
        "background": (32, 3, 48, 48),
        "row": (32,),
    }
    seen = by_row(batches)
    assert sorted(seen) == list(range(72))
    for row, sample in seen.items():
        assert all(torch.equal(values, expected[row][name]) for name, values in sample.items())


@pytest.mark.parametrize("tensors", ["torch", "tv_tensors"])
def test_can_be_pickled(three_shards: Path, tensors: str) -> None:
    """With what it has cached left behind."""
    dataset = StoreDataset(three_shards, "train", tensors=tensors)
    dataset[0]
    pickled = pickle.dumps(dataset)
    assert len(pickled) < 5000
    copy = pickle.loads(pickled)
    assert all(torch.equal(torch.as_tensor(copy[3][name]), dataset[3][name]) for name in ("image", "mask", "depth"))


@pytest.mark.parametrize("options", [{"recipe": True}, {"zipped": True}])
def test_recipes_and_zip_files(
    tmp_path: Path, labelled_corpus: Path, three_shards: Path, options: dict[str, bool]
) -> None:
    """The same samples, in a worker too."""
    pack(labelled_corpus, tmp_path / "s", shards=3, jobs=1, **options)  # type: ignore[arg-type]
    expected = StoreDataset(three_shards, None)
    seen = by_row(DataLoader(StoreDataset(tmp_path / "s", None), batch_size=7, num_workers=1))
    assert len(seen) == 72
    for row, sample in seen.items():
        assert all(torch.equal(values, expected[row][name]) for name, values in sample.items())


def test_store_at_a_url(three_shards: Path) -> None:
    """The same samples from behind fsspec."""
    import fsspec

    fs = fsspec.filesystem("memory")
    fs.put(f"{three_shards}/", "/dataset/shards/", recursive=True)
    try:
        remote, local = StoreDataset("memory://dataset/shards", None), StoreDataset(three_shards, None)
        for row in (0, 30, 71):
            assert all(torch.equal(remote[row][name], local[row][name]) for name in local.fields)
    finally:
        fs.rm("/dataset", recursive=True)


def test_fields_that_a_store_lacks_are_absent(tmp_path: Path, corpus: Path) -> None:
    """No labels, no depth; of bare images nothing but these."""
    pack(corpus, tmp_path / "unlabelled", shards=1, jobs=1)
    assert set(StoreDataset(tmp_path / "unlabelled")[0]) == {"image", "mask", "background", "row"}
    (tmp_path / "images").mkdir()
    for n in range(12):
        Image.fromarray(draw_background(n, 32, 32)).save(tmp_path / "images" / f"{n:02d}.png")
    pack_source(Pictures(tmp_path / "images", size=32), tmp_path / "s", shards=1, jobs=1)
    dataset = StoreDataset(tmp_path / "s", None)
    expected = Store(tmp_path / "s").read(0, 12)["image"]
    assert set(dataset[0]) == {"image", "row"}
    assert all((dataset[i]["image"].permute(1, 2, 0).numpy() == expected[i]).all() for i in range(12))


def count_reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Note every read of a chunk from now on."""
    reads: list[int] = []
    original = Shard.samples

    def counted(self: Shard, start: int, *more: Any) -> dict[str, np.ndarray]:
        reads.append(start)
        return original(self, start, *more)

    monkeypatch.setattr(Shard, "samples", counted)
    return reads


def test_each_chunk_is_decoded_once_in_order(many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with the smallest cache, which keeps the newest chunk."""
    for cache_mb in (0, 64):
        dataset = StoreDataset(many, None, cache_mb=cache_mb)
        reads = count_reads(monkeypatch)
        for i in range(len(dataset)):
            dataset[i]
        assert len(reads) == 48
        monkeypatch.undo()


def test_samples_are_their_own(three_shards: Path) -> None:
    """Writing into a sample changes no other, nor the cache."""
    dataset = StoreDataset(three_shards, None)
    before = {name: dataset[4][name].clone() for name in dataset.fields}
    for name in dataset.fields:
        dataset[4][name].zero_()
    assert all(torch.equal(dataset[4][name], before[name]) for name in dataset.fields)


def test_transform_gets_and_returns_anything(three_shards: Path) -> None:
    """The whole dict goes in; what comes out is the sample."""
    dataset = StoreDataset(three_shards, "train", lambda sample: (sample["row"], sorted(sample)))
    assert dataset[0] == (int(dataset.rows[0]), ["background", "depth", "image", "mask", "row"])


@pytest.fixture(scope="module")
def sample(three_shards: Path) -> dict[str, Any]:
    """A sample of tv_tensors."""
    return StoreDataset(three_shards, "train", tensors="tv_tensors")[5]


def test_tv_tensors_have_the_same_values(three_shards: Path, sample: dict[str, Any]) -> None:
    """Images are Image; mask and depth are Mask, depth in float32."""
    plain = StoreDataset(three_shards, "train")[5]
    kinds = {
        "image": tv_tensors.Image,
        "background": tv_tensors.Image,
        "mask": tv_tensors.Mask,
        "depth": tv_tensors.Mask,
    }
    assert {name: type(values) for name, values in sample.items()} == kinds | {"row": int}
    for name in kinds:
        assert sample[name].dtype == plain[name].dtype
        assert torch.equal(sample[name].as_subclass(torch.Tensor), plain[name])


def test_geometric_transforms_move_all_alike(sample: dict[str, Any]) -> None:
    """A flip and a crop of all four fields are those of each by itself."""
    flipped = v2.RandomHorizontalFlip(p=1)(sample)
    for name in ("image", "background", "mask", "depth"):
        assert torch.equal(flipped[name], sample[name].flip(-1))
    cropped = v2.RandomCrop(20)(sample)
    whole = sample["image"].unfold(1, 20, 1).unfold(2, 20, 1)
    equal = (whole == cropped["image"][:, None, None]).all(dim=(0, 3, 4))
    top, left = equal.nonzero()[0].tolist()
    for name in ("image", "background", "mask", "depth"):
        assert torch.equal(cropped[name], sample[name][:, top : top + 20, left : left + 20])
    assert flipped["row"] == cropped["row"] == sample["row"]


def test_mask_and_depth_are_not_interpolated(sample: dict[str, Any]) -> None:
    """Resized and rotated they have no new values, and depth stays float32 metres."""
    for transform in (v2.Resize(37), v2.RandomRotation((30, 30)), v2.RandomResizedCrop(31)):
        moved = transform(sample)
        assert moved["depth"].dtype == torch.float32
        for name in ("mask", "depth"):
            assert set(moved[name].unique().tolist()) <= {0.0, *sample[name].unique().tolist()}


def test_colour_transforms_change_images_only(sample: dict[str, Any]) -> None:
    """Jitter, and conversion to normalised floats, leave mask and depth as they are."""
    jittered = v2.ColorJitter(brightness=(0.5, 0.5))(sample)
    types = {tv_tensors.Image: torch.float32, "others": None}
    normalised = v2.Compose([v2.ToDtype(types, scale=True), v2.Normalize([0.5] * 3, [0.5] * 3)])(sample)
    for changed in (jittered, normalised):
        assert all(not torch.equal(changed[name], sample[name]) for name in ("image", "background"))
        assert all(torch.equal(changed[name], sample[name]) for name in ("mask", "depth"))
        assert changed["depth"].dtype == torch.float32


def test_bad_arguments(three_shards: Path, tmp_path: Path) -> None:
    """Each is refused by name, value and rule."""
    with pytest.raises(InvalidValueError, match="--split: got trian, expected one of train, validation"):
        StoreDataset(three_shards, "trian")
    with pytest.raises(DsgenError, match=r"no rows in split 'test' \(.*0 test"):
        StoreDataset(three_shards, "test")
    with pytest.raises(InvalidValueError, match="--tensors: got numpy, expected torch or tv_tensors"):
        StoreDataset(three_shards, tensors="numpy")
    with pytest.raises(NotFoundError, match="an empty folder, expected a store"):
        StoreDataset(tmp_path)


def test_without_torchvision(three_shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain tensors need nothing; tv_tensors name the package."""
    monkeypatch.setitem(sys.modules, "torchvision.tv_tensors", None)
    assert len(StoreDataset(three_shards)) > 0
    with pytest.raises(MissingPackageError, match="torchvision: not installed; pip install torchvision"):
        StoreDataset(three_shards, tensors="tv_tensors")
