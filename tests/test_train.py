"""Training: learns, resumes to the same bits, refuses what it cannot do, and cries when it learns nothing."""

import csv
import logging
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dsgen import metrics
from dsgen import train as training
from dsgen.errors import DsgenError
from dsgen.train import Trainer, fit, load_network, prepare, read_checkpoint, sizes_by_epoch

CPU = torch.device("cpu")
SETTINGS = {
    "batch_size": 4,
    "sizes": [32],
    "seed": 0,
    "learning_rate": 5e-3,
    "width": 4,
    "dropout": 0.0,
    "epoch_samples": None,
    "validation_samples": None,
}


class Scenes:
    """A loader of made-up scenes in memory: a disc of one colour before a smooth wall."""

    def __init__(self, rows: int = 8, size: int = 40, seed: int = 0, depth: bool = True, blank: bool = False):
        rng = np.random.default_rng(seed)
        y, x = np.mgrid[:size, :size]
        self.rows, self.size, self.has_depth, self.sha256 = rows, size, depth, f"scenes {rows} {size} {seed} {depth}"
        self.batch_size, self._epoch, self.dies_at = 4, 0, math.inf
        self.samples = []
        for row in range(rows):
            wall = 128 + 60 * np.sin(x[..., None] / rng.uniform(3, 9, 3) + y[..., None] / rng.uniform(3, 9, 3))
            centre, radius = rng.uniform(12, size - 12, 2), rng.uniform(6, 11)
            disc = np.hypot(y - centre[0], x - centre[1]) < (0 if blank else radius)
            image = np.where(disc[..., None], rng.integers(0, 256, 3), wall)
            sample = {
                "background": torch.from_numpy(wall.astype(np.uint8)),
                "image": torch.from_numpy(image.astype(np.uint8)),
                "mask": torch.from_numpy(np.where(disc, 255, 0).astype(np.uint8)),
                "row": torch.tensor(row),
            }
            if depth:
                sample["depth"] = torch.from_numpy(np.where(disc, 1500, 2000 + 60 * x).astype(np.uint16))
            self.samples.append(sample)

    def set_epoch(self, epoch: int) -> None:
        """As the real loader: the order follows from the epoch."""
        self._epoch = epoch

    def __iter__(self):
        order = np.random.default_rng(self._epoch).permutation(self.rows)
        for start in range(0, self.rows, self.batch_size):
            if self._epoch == self.dies_at and start:
                raise KeyboardInterrupt
            chosen = [self.samples[k] for k in order[start : start + self.batch_size]]
            yield {name: torch.stack([sample[name] for sample in chosen]) for name in chosen[0]}


def short(run: Path, *, epochs: int = 1, scenes: Scenes | None = None, **settings) -> dict[str, float]:
    """Train for a moment."""
    return fit(scenes or Scenes(), Scenes(4, seed=9), run, epochs=epochs, settings={**SETTINGS, **settings}, device=CPU)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one epoch; none may write to it."""
    run = tmp_path_factory.mktemp("finished") / "run"
    short(run)
    return run


def table(run: Path) -> list[dict[str, str]]:
    """Read metrics.csv, without the seconds."""
    with (run / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def same(a: object, b: object) -> bool:
    """Compare nested checkpoints bit for bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a if k != "seconds")
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b or (a != a and b != b)


def test_killed_and_resumed_equals_undisturbed(tmp_path, monkeypatch):
    """A run killed within an epoch and started again ends at the same bits, growing pictures and dropout included."""
    monkeypatch.setattr(training, "draw_curves", lambda *_: None)
    monkeypatch.setattr(training, "draw_predictions", lambda *_: None)
    settings = {"sizes": [32, 40], "dropout": 0.1}
    short(tmp_path / "whole", epochs=3, **settings)
    doomed = Scenes()
    doomed.dies_at = 1
    with pytest.raises(KeyboardInterrupt):
        short(tmp_path / "killed", epochs=3, scenes=doomed, **settings)
    assert len(table(tmp_path / "killed")) == 1
    torch.manual_seed(12345)
    short(tmp_path / "killed", epochs=3, **settings)
    for name in ("epoch-001", "epoch-002", "epoch-003", "best", "last"):
        whole, killed = (read_checkpoint(tmp_path / run / f"checkpoints/{name}.pt") for run in ("whole", "killed"))
        assert same(whole, killed), name
    assert table(tmp_path / "whole") == table(tmp_path / "killed")
    assert [row["size"] for row in table(tmp_path / "whole")] == ["32", "32", "40"]


def test_seeds_decide(tmp_path, finished):
    """The same seed gives the same network, another seed another."""
    short(tmp_path / "again")
    short(tmp_path / "other", seed=1)
    first, again, other = (
        read_checkpoint(run / "checkpoints/last.pt")["network"]
        for run in (finished, tmp_path / "again", tmp_path / "other")
    )
    assert same(first, again)
    assert not same(first, other)


def test_overfits_a_batch(tmp_path):
    """Four samples seen again and again are learnt: mask IoU above 0.9, and depth much nearer than at first."""
    scenes = Scenes(4)
    trainer = Trainer({**SETTINGS, "width": 8}, "", CPU)
    first = training.evaluate(trainer.network, scenes, 32, CPU)
    batch = prepare(next(iter(scenes)), 32, CPU)
    trainer.network.train()
    for _ in range(60):
        logits, raw = trainer.network(batch[0], batch[1])
        trainer.optimizer.zero_grad()
        training.total_loss(logits, raw, batch[2], batch[3]).backward()
        trainer.optimizer.step()
    assert metrics.iou(logits, batch[2]).min() > 0.9
    after = training.evaluate(trainer.network, scenes, 32, CPU)
    assert after["iou"] > 0.9 > first["iou"]
    assert after["abs_rel"] < first["abs_rel"] / 2


def test_a_run_leaves_what_it_promises(finished):
    """Checkpoints, a table with every score, two pictures, and no half-written file."""
    names = sorted(path.relative_to(finished).as_posix() for path in finished.rglob("*") if path.is_file())
    assert names == [
        ".dsgen.lock",
        *(f"checkpoints/{name}.pt" for name in ("best", "epoch-001", "last")),
        *("curves.png", "metrics.csv", "predictions.png"),
    ]
    (row,) = table(finished)
    assert row["epoch"] == "1"
    assert row["samples"] == "8"
    assert all(math.isfinite(float(value)) for value in row.values())
    assert float(row["zero_iou"]) == 0
    for name in ("curves.png", "predictions.png"):
        with Image.open(finished / name) as picture:
            assert len(np.unique(np.asarray(picture.convert("L")))) > 20


def test_a_finished_run_is_left_alone(tmp_path):
    """Asked for no more epochs a run gives its scores at once; asked for more it goes on."""
    first = short(tmp_path)
    written = (tmp_path / "checkpoints/last.pt").stat().st_mtime_ns
    assert short(tmp_path) == first
    assert (tmp_path / "checkpoints/last.pt").stat().st_mtime_ns == written
    short(tmp_path, epochs=2)
    assert [row["epoch"] for row in table(tmp_path)] == ["1", "2"]


def test_the_trained_network_can_be_loaded(finished):
    """The network in best.pt scores what the table says."""
    network = load_network(finished / "checkpoints/best.pt", "cpu")
    assert not network.training
    scores = training.evaluate(network, Scenes(4, seed=9), 32, CPU)
    assert f"{scores['iou']:.6g}" == table(finished)[0]["iou"]


def test_without_depth_the_mask_is_trained_alone(tmp_path, caplog):
    """A store without depth is said to be one, its depth columns are empty, and its depth branch stays as it was."""
    scenes, held_out = Scenes(depth=False), Scenes(4, seed=9, depth=False)
    scores = fit(scenes, held_out, tmp_path, epochs=1, settings=SETTINGS, device=CPU)
    assert "no depth" in caplog.text
    assert "abs_rel" not in scores
    (row,) = table(tmp_path)
    assert row["abs_rel"] == row["rmse_m"] == row["delta1"] == row["ssim"] == ""
    assert float(row["iou"]) >= 0
    trained = load_network(tmp_path / "checkpoints/last.pt", "cpu")
    assert torch.equal(trained.depth.head.weight, Trainer(SETTINGS, "", CPU).network.depth.head.weight)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("seed", 1, "seed was 0, now 1; use the same, or another --run"),
        ("learning_rate", 1e-4, "learning-rate was 0.005, now 0.0001"),
        ("sizes", [32, 40], "sizes was 32, now 32,40"),
        ("batch_size", 2, "batch-size was 4, now 2"),
    ],
)
def test_other_settings_do_not_go_on(finished, name, value, message):
    """Going on with another setting is refused with the setting and both values."""
    with pytest.raises(DsgenError, match=message):
        short(finished, epochs=2, **{name: value})


def test_another_store_does_not_go_on(finished):
    """Going on with another store is refused."""
    with pytest.raises(DsgenError, match="store was scenes 8 40 0 True, now scenes 12 40 0 True"):
        short(finished, epochs=2, scenes=Scenes(12))


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", "half", "foreign", "empty"])
def test_damaged_and_foreign_checkpoints_are_refused(tmp_path, finished, content):
    """A file that is no whole checkpoint of ours is named, not tripped over."""
    path = tmp_path / "checkpoints/last.pt"
    path.parent.mkdir()
    whole = (finished / "checkpoints/last.pt").read_bytes()
    if content == "foreign":
        torch.save({"weights": torch.zeros(3)}, path)
    elif content == "empty":
        torch.save({**read_checkpoint(finished / "checkpoints/last.pt"), "training": {}}, path)
    else:
        path.write_bytes(whole[: len(whole) // 2] if content == "half" else content)
    with pytest.raises(DsgenError, match=r"last\.pt: (damaged checkpoint|not a checkpoint)"):
        short(tmp_path, epochs=2)


def test_a_missing_checkpoint_is_an_error(tmp_path):
    """Loading what is not there says so."""
    with pytest.raises(DsgenError, match="no such checkpoint"):
        load_network(tmp_path / "best.pt", "cpu")


def test_a_loss_that_is_no_number_stops_the_run(tmp_path, monkeypatch):
    """It stops with the epoch and the rows, and leaves no checkpoint of it."""
    monkeypatch.setattr(training, "mask_loss", lambda logits, _: logits.sum() * float("nan"))
    with pytest.raises(DsgenError, match=r"the loss is nan in epoch 1, rows \d, \d, \d, \d;"):
        short(tmp_path)
    assert not list(tmp_path.rglob("*.pt"))


def test_blank_masks_raise_the_alarm(tmp_path, monkeypatch, caplog):
    """A network that answers nothing everywhere is called out after every epoch and at the end; a good one is not."""
    monkeypatch.setattr(training, "mask_loss", lambda logits, _: (logits + 5).square().mean())
    short(tmp_path, epochs=2, learning_rate=0.1)
    errors = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert [message.split(".")[0] for message in errors[:2]] == [f"epoch {n}: THE MASKS ARE BLANK" for n in (1, 2)]
    assert "NO MASKS WERE LEARNT" in errors[2]
    assert len(errors) == 3
    assert not training.is_blank({"iou": 0.5, "zero_iou": 0.0})
    assert training.is_blank({"iou": math.nan, "zero_iou": 0.0})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sizes": [96]}, "--sizes: got 96, expected at most 40"),
        ({"sizes": [40, 32]}, "--sizes: got 40,32, expected pixels from 32 up, each larger"),
        ({"sizes": [16]}, "--sizes: got 16, expected pixels from 32"),
        ({"sizes": []}, "--sizes: got"),
        ({"learning_rate": 0}, "--learning-rate: got 0, expected above 0"),
        ({"dropout": 1.0}, "--dropout: got 1"),
        ({"epoch_samples": 0}, "--epoch-samples: got 0, expected 1 or more"),
        ({"epochs": 0}, "--epochs: got 0, expected 1 or more"),
    ],
)
def test_settings_that_cannot_be_are_refused(tmp_path, settings, message):
    """Each is named with its value and the rule, before anything is written."""
    with pytest.raises(DsgenError, match=message):
        short(tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists()


def test_epochs_are_divided_over_sizes():
    """Every size comes, in order, in proportion to what an epoch of it costs."""
    assert sizes_by_epoch(10, (96, 192)) == [96] * 8 + [192] * 2
    assert sizes_by_epoch(1, (96, 192)) == [96]
    assert sizes_by_epoch(3, (96, 100, 224)) == [96, 100, 224]
    for epochs in range(1, 30):
        for sizes in ((96,), (96, 192), (64, 96, 224), (200, 208, 216, 224)):
            schedule = sizes_by_epoch(epochs, sizes)
            assert len(schedule) == epochs
            assert schedule == sorted(schedule)
            assert sorted(set(schedule)) == list(sizes[:epochs])


def test_the_rate_halves_on_a_plateau_and_when_pictures_grow():
    """Three epochs without gain halve the rate; larger pictures do too, and start the count afresh."""
    scenes = Scenes(4)
    for sizes, expected in (([32] * 4, [1, 1, 1, 0.5]), ([32, 32, 40, 40, 40], [1, 1, 0.5, 0.5, 0.5])):
        trainer = Trainer(SETTINGS, "", CPU)
        trainer.scheduler.step(0.0)
        for size in sizes:
            trainer.run_epoch(scenes, scenes, size, 4, lambda *_, **__: None)
        rates = [past["learning_rate"] / SETTINGS["learning_rate"] for past in trainer.history]
        assert rates == pytest.approx(expected)


def test_prepare_keeps_what_the_numbers_mean():
    """Pictures in 0..1 that keep their mean, masks of 0 and 1, depths in metres that all occur in the truth."""
    batch = next(iter(Scenes(4)))
    batch["depth"][:, ::5] = 0
    background, image, mask, depth_m = prepare(batch, 32, CPU)
    assert background.shape == image.shape == (4, 3, 32, 32)
    assert mask.shape == depth_m.shape == (4, 1, 32, 32)
    torch.testing.assert_close(image.mean((2, 3)), batch["image"].float().mean((1, 2)) / 255, atol=0.01, rtol=0)
    assert set(mask.unique().tolist()) == {0.0, 1.0}
    assert mask.mean().item() == pytest.approx(batch["mask"].float().mean().item() / 255, abs=0.01)
    assert set(depth_m.unique().tolist()) <= set((batch["depth"].float() / 1000).unique().tolist())
    assert (depth_m == 0).any()
    untouched = prepare(batch, 40, CPU)
    assert torch.equal(untouched[1].mul(255).round().byte().permute(0, 2, 3, 1), batch["image"])
    assert torch.equal(untouched[3][:, 0].mul(1000).round().int(), batch["depth"].int())


def test_jitter_leaves_the_difference_to_the_foreground():
    """Where image and background were equal they stay so, and mask and depth are mirrored along."""
    parts = prepare(next(iter(Scenes(4))), 40, CPU)
    background, image, mask, depth_m = training.jitter(*parts, torch.Generator().manual_seed(3))
    assert (background == image).all(1, keepdim=True)[mask == 0].all()
    assert not torch.equal(image, parts[1])
    mirrored = [not torch.equal(a, b) for a, b in zip(mask, parts[2], strict=True)]
    assert any(mirrored)
    assert not all(mirrored)
    for k, flip in enumerate(mirrored):
        assert torch.equal(depth_m[k], parts[3][k].flip(2) if flip else parts[3][k])


def test_an_epoch_can_be_cut_short():
    """`take` gives exactly as many samples as asked, or all."""
    assert [len(batch["row"]) for batch in training.take(Scenes(10), 6)] == [4, 2]
    assert [len(batch["row"]) for batch in training.take(Scenes(10), 99)] == [4, 4, 2]
    assert [len(batch["row"]) for batch in training.take(Scenes(10), None)] == [4, 4, 2]
