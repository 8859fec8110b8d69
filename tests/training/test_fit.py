"""Training: learns, resumes to the same bits, refuses what it cannot do, and warns when it learns nothing."""

import csv
import json
import logging
import math
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.scenes import Scenes
from support.single_precision import SinglePrecision
from torch import Tensor

from dsgen.averaging import update_ema
from dsgen.errors import ConflictError, DsgenError, InvalidValueError
from dsgen.store.packing import pack
from dsgen.training import fit as fit_module
from dsgen.training import losses, metrics, report
from dsgen.training import trainer as trainer_module
from dsgen.training.batches import prepare
from dsgen.training.checkpoint import load_initial_weights, load_network, read_checkpoint
from dsgen.training.fit import TrainResult, fit, train
from dsgen.training.schedule import learning_rate, should_stop_early, sizes_by_epoch
from dsgen.training.settings import Settings
from dsgen.training.trainer import Trainer
from dsgen.training.validation import SCORES, validate

CPU = torch.device("cpu")
QUICK = {"batch_size": (4,), "sizes": (32,), "width": 4, "validation_samples": None}
HELD_OUT = 4


def settings(**changes: Any) -> Settings:
    """Small ones."""
    return Settings(**{**QUICK, **changes})


def short(
    run: Path,
    *,
    epochs: int = 1,
    rows: int = 8,
    at: tuple[int, int] | None = None,
    happens: Callable[[], None] | None = None,
    fields: tuple[str, ...] = ("image", "mask", "depth", "background"),
    options: dict[str, Any] | None = None,
    **changes: Any,
) -> TrainResult:
    """Train for a moment; `happens` happens at a batch of an epoch, both counted from 0."""

    def open_batches(split: str, batch_size: int) -> Scenes:
        if split == "validation":
            return Scenes(HELD_OUT, seed=9, fields=fields, batch_size=batch_size)
        scenes = Scenes(rows, fields=fields, batch_size=batch_size)
        if at is not None:
            scenes.at, scenes.happens = at, happens
        return scenes

    return fit(open_batches, run, settings(**changes), epochs=epochs, device=CPU, **(options or {}))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one epoch; none may write to it."""
    run = tmp_path_factory.mktemp("finished") / "run"
    short(run)
    return run


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw neither curves nor sheets, which takes longer than the training."""
    monkeypatch.setattr(fit_module, "draw_curves", lambda *_: None)
    monkeypatch.setattr(report, "draw_sheet", lambda *_: None)


def table(run: Path) -> list[dict[str, str]]:
    """Read metrics.csv, without the times."""
    with (run / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [{name: row[name] for name in row if name not in ("seconds", "images_per_second")} for row in rows]


def same(a: Any, b: Any) -> bool:
    """Compare nested checkpoints bit for bit, but for times."""
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a if k not in ("seconds", "images_per_second"))
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b or (a != a and b != b)


def assert_same_runs(one: Path, other: Path) -> None:
    """Two runs left the same checkpoints and the same table."""
    names = sorted(path.name for path in (one / "checkpoints").iterdir())
    assert names == sorted(path.name for path in (other / "checkpoints").iterdir())
    for name in names:
        assert same(*(read_checkpoint(run / "checkpoints" / name) for run in (one, other))), name
    assert table(one) == table(other)


class Killed(BaseException):
    """Ends a run at once: none of its code gets to see it."""


def die() -> None:
    """End as by SIGKILL, as far as the files go."""
    raise Killed


VARIED = {"sizes": (32, 40), "dropout": 0.1, "batch_size": (3, 2), "schedule": "cosine", "warm_up": 0.5, "clip": 1.0}


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize(
    "changes",
    [VARIED, pytest.param({"optimizer": "sgd", "average": False, "precision": "bf16"}, marks=pytest.mark.slow)],
)
def test_killed_and_resumed_equals_undisturbed(tmp_path: Path, changes: dict[str, Any]):
    """Killed at any batch, with checkpoints at any time, a run ends at the same bits."""
    short(tmp_path / "whole", epochs=2, **changes)
    for at, minutes in (((0, 1), 0), ((1, 1), 1e6)):
        torch.manual_seed(12345)
        with pytest.raises(Killed):
            short(tmp_path / "killed", epochs=2, at=at, happens=die, options={"save_every": minutes}, **changes)
        saved = read_checkpoint(tmp_path / "killed/checkpoints/last.pt")
        assert len(saved["history"]) == at[0]
        assert saved["place"] is None if minutes else saved["place"]["step"] == 1
    short(tmp_path / "killed", epochs=2, **changes)
    assert_same_runs(tmp_path / "whole", tmp_path / "killed")
    assert len(table(tmp_path / "whole")) == 2


@pytest.mark.usefixtures("no_pictures")
def test_an_interrupted_run_saves_and_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """Ctrl-C and SIGTERM end a run between steps with a checkpoint, and the run goes on from the very step."""
    short(tmp_path / "whole", rows=16)
    for steps, number in ((2, signal.SIGINT), (3, signal.SIGTERM)):
        before = signal.getsignal(number)
        with pytest.raises(KeyboardInterrupt):
            short(
                tmp_path / "run", rows=16, at=(0, steps - 1), happens=lambda number=number: signal.raise_signal(number)
            )
        assert signal.getsignal(number) is before
        assert f"{tmp_path / 'run'}: stopping as requested, the checkpoint is written" in caplog.text
        saved = read_checkpoint(tmp_path / "run/checkpoints/last.pt")
        assert saved["history"] == []
        assert saved["place"]["step"] == saved["steps"] == steps
    short(tmp_path / "run", rows=16)
    assert_same_runs(tmp_path / "whole", tmp_path / "run")


@pytest.mark.usefixtures("no_pictures")
def test_an_interrupt_while_scoring_saves_the_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Ctrl-C between an epoch's last step and its scores: the steps are not done again, and nothing else differs."""
    short(tmp_path / "whole", epochs=2)

    def interrupted(*arguments: Any, **options: Any) -> dict[str, float]:
        signal.raise_signal(signal.SIGINT)
        return validate(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(trainer_module, "validate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            short(tmp_path / "run", epochs=2)
    assert read_checkpoint(tmp_path / "run/checkpoints/last.pt")["place"]["samples"] == 8
    short(tmp_path / "run", epochs=2)
    assert_same_runs(tmp_path / "whole", tmp_path / "run")


def test_the_second_interrupt_does_not_wait(tmp_path: Path):
    """Who presses Ctrl-C twice is out at once."""

    def twice() -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        short(tmp_path, at=(0, 1), happens=twice)
    assert not list(tmp_path.rglob("*.pt"))


@pytest.mark.slow
def test_kills_at_random_moments_change_nothing(tmp_path: Path, labelled_corpus: Path):
    """A process killed again and again, whatever it is doing, ends at the bits of one left alone."""
    store = tmp_path / "shards"
    pack(labelled_corpus, store, shards=2, jobs=1)
    command = [sys.executable, "-m", "dsgen", "train", str(store), "--epochs", "4", "--sizes", "32,48", "--width", "4"]
    command += ["--batch-size", "2", "--save-every", "0", "--device", "cpu", "--dropout", "0.1"]
    subprocess.run([*command, "--run", str(tmp_path / "whole")], capture_output=True, timeout=300, check=False)
    last = tmp_path / "killed/checkpoints/last.pt"

    def written() -> int:
        return last.stat().st_mtime_ns if last.exists() else 0

    chance = random.Random(0)
    for _ in range(6):
        before = written()
        started = subprocess.Popen([*command, "--run", str(tmp_path / "killed")], stderr=subprocess.DEVNULL)
        while written() == before:
            assert started.poll() is None
            time.sleep(0.005)
        time.sleep(chance.uniform(0, 0.6))
        started.kill()
        assert started.wait() == -signal.SIGKILL
    subprocess.run([*command, "--run", str(tmp_path / "killed")], capture_output=True, timeout=300, check=False)
    assert_same_runs(tmp_path / "whole", tmp_path / "killed")
    assert len(table(tmp_path / "whole")) == 4


# without the last dashes torchrun takes --run for an abbreviation of an option of its own
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "dsgen", "--")


def run_two(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run `dsgen train` in two processes as a user would."""
    command = [*TORCHRUN, "train", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=200)


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_two_processes_train_as_one(tmp_path: Path, labelled_corpus: Path):
    """With gloo on the CPU losses and scores are those of one process within rounding; one writes and says one line.

    The steps are small, and not Adam's, which makes whole ones of rounding errors where a gradient is zero.
    """
    store = tmp_path / "shards"
    pack(labelled_corpus, store, shards=2, jobs=1)
    options = {"epoch_samples": 21, "batch_size": (8,), "width": 4, "sizes": (32,), "validation_samples": 7}
    options |= {"precision": "float32"}
    train(store, tmp_path / "one", Settings(**options, optimizer="sgd", learning_rate=1e-3), epochs=2, device="cpu")
    quick = ("--epoch-samples", 21, "--batch-size", 8, "--width", 4, "--sizes", 32, "--validation-samples", 7)
    sgd = ("--optimizer", "sgd", "--learning-rate", 1e-3, "--precision", "float32", "--tensorboard")
    result = run_two(store, "--run", tmp_path / "two", "--epochs", 2, "--device", "cpu", *quick, *sgd)
    assert re.fullmatch(
        rf"{tmp_path / 'two'}: best epoch \d, unseen .* at 32 px: mask IoU .* \(all-zero .*\), "
        r"Dice .*; depth AbsRel .*, delta1 .* \(mean depth 0\.\d+\), SSIM .*\n",
        result.stdout,
    ), result
    assert list((tmp_path / "two/tensorboard").iterdir())
    config = json.loads((tmp_path / "two/config.json").read_text())
    assert config["processes"] == 2
    assert config["settings"]["sizes"] == [32]
    one, two = table(tmp_path / "one"), table(tmp_path / "two")
    assert len(one) == len(two) == 2
    for ours, theirs in zip(one, two, strict=True):
        for name in ours:
            assert float(theirs[name]) == pytest.approx(float(ours[name]), rel=2e-5), name


@pytest.mark.slow
def test_two_processes_fail_together_and_stop_together(tmp_path: Path, labelled_corpus: Path):
    """Bad settings are one error for all; Ctrl-C leaves a checkpoint, from which one process can go on."""
    store = tmp_path / "shards"
    pack(labelled_corpus, store, shards=2, jobs=1)
    refused = run_two(store, "--run", tmp_path / "run", "--batch-size", 7, "--device", "cpu")
    assert refused.returncode != 0
    assert "--batch-size: got 7, expected 2 or more, a multiple of the processes" in refused.stderr
    assert not (tmp_path / "run").exists()

    arguments = ["train", str(store), "--run", str(tmp_path / "run"), "--epochs", "50", "--save-every", "0"]
    arguments += ["--sizes", "32", "--width", "4", "--batch-size", "4", "--device", "cpu"]
    started = subprocess.Popen(
        [*TORCHRUN, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    while not (tmp_path / "run/metrics.csv").exists():
        assert started.poll() is None, started.communicate()
        time.sleep(0.05)
    os.killpg(started.pid, signal.SIGINT)
    _, errors = started.communicate(timeout=60)
    assert b"stopping as requested, the checkpoint is written" in errors
    steps = read_checkpoint(tmp_path / "run/checkpoints/last.pt")["steps"]
    resumed = short_of(store, tmp_path / "run", epochs=len(table(tmp_path / "run")) + 1)
    assert resumed.best["epoch"] >= 1
    assert read_checkpoint(tmp_path / "run/checkpoints/last.pt")["steps"] > steps


BAD_STEP = """
import sys
from pathlib import Path
from dsgen.training import fit, trainer
from dsgen.training.interrupts import Autosave
from dsgen.training.settings import Settings

steps, forward = [0], trainer.Trainer.forward

def spoil(self, *arguments):
    steps[0] += 1
    loss, report = forward(self, *arguments)
    report[0] *= float("nan") if steps[0] == 3 else 1
    return loss, report

trainer.Trainer.forward = spoil
is_due = lambda self: self.rank == 0 and steps[0] == int(sys.argv[3])
fit.Autosave = type("Clock", (Autosave,), {"due": is_due, "rank": int(__import__("os").environ["RANK"])})
options = Settings(sizes=(32,), width=4, batch_size=(4,))
fit.train(sys.argv[1], Path(sys.argv[2]), options, epochs=1, device="cpu")
"""


@pytest.mark.slow
def test_the_first_of_two_processes_decides_when_to_save(tmp_path: Path, labelled_corpus: Path):
    """Whenever its clock says so, a loss that is not a number ends both processes; neither waits for the other."""
    pack(labelled_corpus, tmp_path / "shards", shards=2, jobs=1)
    (tmp_path / "bad.py").write_text(BAD_STEP)
    torchrun = [*TORCHRUN[: TORCHRUN.index("-m", 2)], str(tmp_path / "bad.py")]
    for due in (2, 3):
        done = subprocess.run(
            [*torchrun, str(tmp_path / "shards"), str(tmp_path / f"run{due}"), str(due)],
            capture_output=True,
            text=True,
            timeout=120,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        )
        assert done.returncode != 0
        # torchrun ends the other process as soon as one has failed
        said = set(re.findall(r"\w+Error: .* the loss is nan in epoch 1, step 3, rows [\d, ]+", done.stderr))
        assert len(said) == 1, done.stderr
        assert (tmp_path / f"run{due}/bad-batch.npz").exists()


def test_a_run_is_not_mixed_with_anything_else(tmp_path: Path, labelled_corpus: Path):
    """A store, a corpus, an export and a file are refused before anything is written."""
    pack(labelled_corpus, tmp_path / "shards", shards=2, jobs=1)
    (tmp_path / "file").write_text("")
    (tmp_path / "export").mkdir()
    (tmp_path / "export/export.json").write_text("{}")
    for name, said in (("shards", "a store"), ("export", "an export"), ("file", "is a file")):
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(InvalidValueError, match=rf"--run: .*{name}.*{said}"):
            train(tmp_path / "shards", tmp_path / name, device="cpu")
        assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(InvalidValueError, match=r"--run: .* a corpus"):
        train(tmp_path / "shards", labelled_corpus, device="cpu")


def short_of(store: Path, run: Path, epochs: int) -> TrainResult:
    """Resume the run of the test above in this process."""
    options = {"sizes": (32,), "width": 4, "batch_size": (4,), "epoch_samples": 20_000}
    return train(store, run, Settings(**options), epochs=epochs, device="cpu")


@pytest.mark.usefixtures("no_pictures")
def test_seeds_decide(tmp_path: Path, finished: Path):
    """The same seed gives the same network, another seed another."""
    short(tmp_path / "again")
    short(tmp_path / "other", seed=1)
    first, again, other = (
        read_checkpoint(run / "checkpoints/last.pt")["network"]
        for run in (finished, tmp_path / "again", tmp_path / "other")
    )
    assert same(first, again)
    assert not same(first, other)


def test_overfits_a_batch():
    """Four samples seen again and again are learnt: mask IoU above 0.9, and depth much nearer than at first."""
    scenes = Scenes(4)
    trainer = Trainer(settings(width=8, augment=0.0), scenes.fields, "", CPU)
    first = validate(trainer.network, scenes, 32, CPU)
    trainer.network.train()
    scenes.set_epoch(0)
    batch = next(iter(scenes))
    for step in range(80):
        trainer.step(batch, 32, step, trainer.settings.learning_rate)
    after = validate(trainer.averaged, scenes, 32, CPU)
    assert after["iou"] > 0.9 > first["iou"]
    assert after["abs_rel"] < first["abs_rel"] / 2


@pytest.mark.parametrize(
    "changes",
    [
        {"colour": "grey", "output": "half", "blocks": "separate"},
        {"mask_loss": "iou", "depth_loss": "ssim", "augment": 0.0, "average": False, "dropout": 0.2},
        pytest.param(
            {"encoder": "resnet18", "sizes": (40,), "weight_decay": 0.01, "optimizer": "adamw", "schedule": "constant"},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_variants_train_and_load(tmp_path: Path, changes: dict[str, Any]):
    """Other networks and losses give finite scores, and checkpoints from which the same network comes back."""
    scores = short(tmp_path, **changes).best
    assert all(math.isfinite(value) for value in scores.values())
    network = load_network(tmp_path / "checkpoints/best.pt")
    wanted = settings(**changes)
    assert network.config == wanted.network()
    assert validate(network, Scenes(HELD_OUT, seed=9), wanted.sizes[0], CPU)["iou"] == scores["iou"]


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_every_optimizer_goes_down(optimizer: str):
    """A few steps on one batch lower its loss, with decay and clipping too."""
    scenes = Scenes(4)
    changes = {"optimizer": optimizer, "weight_decay": 1e-3, "clip": 1.0, "augment": 0.0, "learning_rate": 0.01}
    trainer = Trainer(settings(**changes), scenes.fields, "", CPU)
    batch = next(iter(scenes))
    found = [trainer.step(batch, 32, step, 0.01)[0][0].item() for step in range(6)]
    assert found[-1] < found[0] - 0.02


def test_a_run_leaves_what_it_promises(finished: Path):
    """Checkpoints, a table with every score, pictures, the configuration, and no half-written file."""
    names = sorted(path.relative_to(finished).as_posix() for path in finished.rglob("*") if path.is_file())
    assert names == [
        ".dsgen.lock",
        *(f"checkpoints/{name}.pt" for name in ("best", "epoch-001", "last")),
        *("config.json", "curves.png", "metrics.csv", "predictions/epoch-001.png"),
    ]
    (row,) = table(finished)
    assert row["epoch"] == "1"
    assert row["samples"] == "8"
    assert row.pop("mean_depth_abs_rel") == row.pop("mean_depth_delta1") == ""  # none was given
    assert all(math.isfinite(float(value)) for value in row.values())
    assert float(row["zero_iou"]) == 0
    for name in ("curves.png", "predictions/epoch-001.png"):
        with Image.open(finished / name) as picture:
            assert len(np.unique(np.asarray(picture.convert("L")))) > 20


@pytest.mark.usefixtures("no_pictures")
def test_a_finished_run_is_left_alone(tmp_path: Path):
    """Asked for no more epochs a run gives its scores at once; asked for more it goes on."""
    first = short(tmp_path)
    written = (tmp_path / "checkpoints/last.pt").stat().st_mtime_ns
    assert short(tmp_path) == first
    assert (tmp_path / "checkpoints/last.pt").stat().st_mtime_ns == written
    short(tmp_path, epochs=2)
    assert [row["epoch"] for row in table(tmp_path)] == ["1", "2"]


def test_the_trained_network_can_be_loaded(finished: Path):
    """The network in best.pt scores what the table says."""
    network = load_network(finished / "checkpoints/best.pt", "cpu")
    assert not network.training
    scores = validate(network, Scenes(HELD_OUT, seed=9), 32, CPU)
    assert f"{scores['iou']:.6g}" == table(finished)[0]["iou"]


def test_scores_are_means_over_samples(finished: Path):
    """Of any batch size, with trivial answers beside them: each sample scored by itself gives the same mean."""
    network = load_network(finished / "checkpoints/best.pt", "cpu")
    scores = {
        size: validate(network, Scenes(5, seed=3, batch_size=size), 32, CPU, mean_depth_m=2.5) for size in (1, 2, 5)
    }
    for size in (1, 2):
        assert scores[size] == pytest.approx(scores[5], abs=1e-5)
    _, _, mask, depth_m = prepare(next(iter(Scenes(5, seed=3, batch_size=5))), 32, CPU)
    assert scores[5]["mean_depth_abs_rel"] == pytest.approx(((depth_m - 2.5).abs() / depth_m).mean().item(), rel=1e-4)
    near = torch.maximum(depth_m / 2.5, 2.5 / depth_m) < 1.25
    assert scores[5]["mean_depth_delta1"] == pytest.approx(near.float().mean().item(), rel=1e-4)
    assert scores[5]["blind_bce"] == pytest.approx(metrics.blind_bce(mask).mean().item(), rel=1e-5)


@pytest.mark.parametrize("missing", ["depth", "mask", "background", "mask background"])
def test_what_a_store_lacks_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture, missing: str):
    """The head without a truth stays as it was and its scores are empty; without backgrounds zeros are fed."""
    fields = tuple(part for part in ("image", "mask", "depth", "background") if part not in missing.split())
    scores = short(tmp_path, fields=fields, options={"mean_depth_m": 3.0}).best
    assert f"the store has no {' and no '.join(sorted(missing.split()))}: " in caplog.text
    (row,) = table(tmp_path)
    for part, names in (("depth", ("abs_rel", "mean_depth_delta1", "ssim")), ("mask", ("iou", "zero_iou", "bce"))):
        for name in names:
            assert (row[name] == "") == (part in missing) == (name not in scores), name
    trained = load_network(tmp_path / "checkpoints/last.pt", "cpu")
    torch.manual_seed(0)
    fresh = Trainer(settings(), fields, "", CPU).network
    for part in ("depth", "mask"):
        head = f"{part}.head.weight"
        assert torch.equal(trained.state_dict()[head], fresh.state_dict()[head]) == (part in missing)
    fed = Trainer(settings(), fields, "", CPU).augmented(next(iter(Scenes(4, fields=fields))), 32, torch.Generator())
    assert (fed[0] == 0).all() == ("background" in missing)
    assert (fed[1] > 0).flatten(1).any(1).all()
    assert not fit_module.is_blank(scores) or "mask" in fields


def test_augmentation_leaves_the_surroundings_where_there_are_no_backgrounds():
    """No sample is black around its foreground, as it would be if zeros were taken for the background."""
    fields = ("image", "mask")
    trainer = Trainer(settings(), fields, "", CPU)
    batch = next(iter(Scenes(64, fields=fields, batch_size=64)))
    _, image, inside, _ = trainer.augmented(batch, 32, torch.Generator().manual_seed(1))
    assert inside is not None
    around = (image * (1 - inside)).flatten(1).mean(1)
    assert around.min() > 0.02


def test_a_store_without_truth_is_refused(tmp_path: Path):
    """There is nothing to learn from pictures alone."""
    with pytest.raises(DsgenError, match="got neither masks nor depth"):
        short(tmp_path / "run", fields=("image", "background"))
    assert not (tmp_path / "run").exists()


def test_other_settings_do_not_go_on(finished: Path):
    """Going on with other settings or another store is refused, and every difference is named with both values."""
    with pytest.raises(DsgenError) as caught:
        short(finished, epochs=2, rows=12, seed=1, learning_rate=1e-4, sizes=(32, 40), batch_size=(2,), encoder="x" * 0)
    assert str(caught.value) == (
        f"{finished}: the run was started with other settings; use the same settings, or another --run\n"
        "  --seed 1 (the run has 0)\n"
        "  --sizes 32,40 (the run has 32)\n"
        "  --batch-size 2 (the run has 4)\n"
        "  --encoder  (the run has none)\n"
        "  --learning-rate 0.0001 (the run has 0.005)"
    )


def test_another_store_does_not_go_on(finished: Path):
    """Going on with another store is refused."""
    other = Scenes(6, seed=2)
    with pytest.raises(ConflictError, match=r"store scenes 6 40 2 \(the run has scenes 4 40 9\)$"):
        fit(lambda *_: other, finished, settings(), epochs=2, device=CPU)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", "half", "foreign", "empty"])
def test_damaged_and_foreign_checkpoints_are_refused(tmp_path: Path, finished: Path, content: bytes | str):
    """A file that is no whole checkpoint of ours is named, not tripped over."""
    path = tmp_path / "checkpoints/last.pt"
    path.parent.mkdir()
    whole = (finished / "checkpoints/last.pt").read_bytes()
    if content == "foreign":
        torch.save({"weights": torch.zeros(3)}, path)
    elif content == "empty":
        torch.save({**read_checkpoint(finished / "checkpoints/last.pt"), "training": {}}, path)
    else:
        path.write_bytes(whole[: len(whole) // 2] if isinstance(content, str) else content)
    with pytest.raises(DsgenError, match=r"last\.pt: (damaged checkpoint|not a checkpoint)"):
        short(tmp_path, epochs=2)


def test_a_missing_checkpoint_is_an_error(tmp_path: Path):
    """Loading what is not there says so."""
    with pytest.raises(DsgenError, match="no such checkpoint"):
        load_network(tmp_path / "best.pt", "cpu")


@pytest.mark.slow
def test_a_run_begins_with_the_weights_of_another(tmp_path: Path, finished: Path):
    """They are the other's best; the run goes on with and without naming it again, and not with others."""
    best, run = finished / "checkpoints/best.pt", tmp_path / "run"
    trainer = Trainer(settings(seed=5), Scenes(4).fields, "", CPU)
    load_initial_weights(trainer, best)
    wanted = read_checkpoint(best)["network"]
    for network in (trainer.network, trainer.averaged):
        assert all(torch.equal(value, wanted[name]) for name, value in network.state_dict().items())
    # a rate of almost nothing leaves the weights where they began
    changes: dict[str, Any] = {"learning_rate": 1e-9, "seed": 5}
    short(run, **changes, options={"init": finished})
    begun = load_network(run / "checkpoints/last.pt").state_dict()
    torch.testing.assert_close(begun["depth.head.weight"], wanted["depth.head.weight"])
    assert json.loads((run / "config.json").read_text())["init_sha256"] == trainer.init_sha256
    short(run, epochs=2, **changes, options={"init": best})
    short(run, epochs=3, **changes)
    with pytest.raises(DsgenError, match=r"other settings; .*\n  --init [0-9a-f]{64} \(the run has [0-9a-f]{64}\)$"):
        short(run, epochs=4, **changes, options={"init": run})
    with pytest.raises(DsgenError, match=r"other settings; .*\n  --init [0-9a-f]{64} \(the run has none\)$"):
        short(finished, epochs=2, options={"init": run})


def test_weights_to_begin_with_are_of_the_same_network(tmp_path: Path, finished: Path):
    """Those of another are refused with the difference, and what is no run or checkpoint is named."""
    for init, message in {
        finished: r"--init: .*best\.pt has another network; use .*\n  --width 6 \(the checkpoint has 4\)$",
        tmp_path: "expected a run",
        tmp_path / "best.pt": "no such checkpoint",
        finished / "config.json": "damaged checkpoint",
    }.items():
        with pytest.raises(DsgenError, match=message):
            short(tmp_path / "run", width=6, options={"init": init})
        assert not (tmp_path / "run").exists()


def test_a_loss_that_is_no_number_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """It stops with epoch, step and rows, leaves the batch to be looked at, and no checkpoint."""
    monkeypatch.setitem(losses.MASK_LOSSES, "bce-dice", lambda logits, _: logits.flatten(1).sum(1) * float("nan"))
    with pytest.raises(
        DsgenError, match=r"the loss is nan in epoch 1, step 1, rows \d, \d, \d, \d; look at this batch in .*\.npz"
    ):
        short(tmp_path)
    assert not list(tmp_path.rglob("*.pt"))
    with np.load(tmp_path / "bad-batch.npz") as saved:
        scenes = Scenes()
        for k, row in enumerate(saved["row"]):
            for name in scenes.fields:
                assert np.array_equal(saved[name][k], scenes.samples[row][name].numpy())
    with Image.open(tmp_path / "bad-batch.png") as picture:
        assert np.asarray(picture).std() > 10


def test_a_batch_too_large_says_what_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Where the memory does not do for a step, halves are tried, and the error names the first that fits."""
    forward, most = trainer_module.UNet.forward, 3

    def small(network: trainer_module.UNet, background: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
        if len(image) > most:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes")
        return forward(network, background, image)

    monkeypatch.setattr(trainer_module.UNet, "forward", small)
    too_large = "--batch-size: got 8, too large at 32 px for the memory of cpu "
    with pytest.raises(DsgenError, match=rf"{too_large}.*; a step of 2 fits$"):
        short(tmp_path / "run", batch_size=(8,))
    most = 0
    with pytest.raises(DsgenError, match=rf"{too_large}.*; not even one sample fits, use smaller --sizes"):
        short(tmp_path / "run", batch_size=(8,))
    monkeypatch.setattr(trainer_module.UNet, "forward", lambda *_: (_ for _ in ()).throw(RuntimeError("another error")))
    with pytest.raises(RuntimeError, match="another error"):
        short(tmp_path / "other")


def test_blank_masks_are_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    """Masks that are empty everywhere are warned of once, and at the end with what to do; good ones are not."""
    monkeypatch.setitem(losses.MASK_LOSSES, "bce-dice", lambda logits, _: (logits + 5).square().flatten(1).mean(1))
    result = short(tmp_path, epochs=3, learning_rate=0.1)
    assert (result.run, result.learnt_masks, result.epochs) == (tmp_path, False, 3)
    first, last = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert first.startswith("epoch 1: the masks are no better than blank ones so far (validation mask IoU 0.000, ")
    assert last.startswith(f"{tmp_path}: the masks of the best epoch are no better than blank ones")
    assert "train longer, lower --learning-rate, and look at predictions/" in last
    assert not fit_module.is_blank({"iou": 0.5, "zero_iou": 0.0})
    assert fit_module.is_blank({"iou": math.nan, "zero_iou": 0.0})
    assert not fit_module.is_blank({"delta1": 0.5})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sizes": (96,)}, "--sizes: got 96, expected at most 40"),
        ({"sizes": (40, 32)}, "--sizes: got 40,32, expected pixels from 32 up, each larger"),
        ({"sizes": (16,)}, "--sizes: got 16, expected pixels from 32"),
        ({"sizes": ()}, "--sizes: got"),
        ({"batch_size": (4, 4)}, "--batch-size: got 4,4, expected one number, or one for each size"),
        ({"batch_size": (0,)}, "--batch-size: got 0, expected 1 or more"),
        ({"learning_rate": 0}, "--learning-rate: got 0, expected above 0"),
        ({"dropout": 1.0}, "--dropout: got 1"),
        ({"epoch_samples": 0}, "--epoch-samples: got 0, expected 1 or more"),
        ({"optimizer": "lion"}, "--optimizer: got lion, expected one of adam, adamw, sgd"),
        ({"clip": 0.0}, "--clip: got 0.0, expected above 0"),
        ({"warm_up": -1.0}, "--warm-up: got -1.0"),
        ({"early_stop": 0}, "--early-stop: got 0"),
        ({"depth_loss": "l2"}, "--depth-loss: got l2, expected one of l1-ssim, ssim"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes: dict[str, Any], message: str):
    """Each is named with its value and the rule."""
    with pytest.raises(DsgenError, match=f"^{re.escape(message)}"):
        settings(**changes).check(epochs=1, store_size=40)


def test_all_bad_settings_are_named_at_once():
    """Not one by one."""
    with pytest.raises(
        DsgenError, match=r"^3 problems, nothing was written:\n  --epochs: .*\n  --seed: .*\n  --width: "
    ):
        settings(seed=-1, width=0).check(epochs=0, store_size=40)


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


def past(losses_by_size: list[tuple[int, float]]) -> list[dict[str, float]]:
    """Make a history of sizes and losses."""
    return [{"size": size, "validation_loss": loss} for size, loss in losses_by_size]


def test_the_rate_halves_on_a_plateau_and_when_pictures_grow():
    """As PyTorch's scheduler does it; larger pictures halve it too, and start the count afresh."""
    chance = np.random.default_rng(0)
    found = 1.0 * np.maximum.accumulate(chance.random(40))[::-1] + 0.3 * chance.random(40)
    given = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    reference = torch.optim.lr_scheduler.ReduceLROnPlateau(given, factor=0.5, patience=2, threshold=1e-3)
    wanted = Settings(learning_rate=1.0)
    for k, loss in enumerate(found):
        history = past([(96, value) for value in found[:k]])
        assert learning_rate(wanted, history, [96] * 99, 0.5) == given.param_groups[0]["lr"]
        reference.step(loss)
    assert given.param_groups[0]["lr"] < 0.1
    grown = past([(96, 1.0), (96, 0.9), (96, 0.9), (96, 0.9), (192, 2.0), (192, 1.9)])
    rates = [learning_rate(wanted, grown[:k], [96] * 4 + [192] * 3, 0) for k in range(7)]
    assert rates == [1.0, 1.0, 1.0, 1.0, 0.5, 0.5, 0.5]


def test_schedules():
    """A warm-up rises in a line, cosine falls in half a wave over the work, not the epochs; constant stays."""
    cosine = Settings(learning_rate=2.0, schedule="cosine", warm_up=0.5)
    history = past([(96, 1.0)] * 10)
    assert learning_rate(cosine, [], [96] * 10, 0.25) == pytest.approx(2.0 * 0.5, rel=1e-2)
    assert learning_rate(cosine, history[:5], [96] * 10, 0.0) == pytest.approx(1.0)
    assert learning_rate(cosine, history[:9], [96] * 10, 1.0) == pytest.approx(0.0, abs=1e-9)
    growing = sizes_by_epoch(10, (96, 192))
    assert learning_rate(cosine, past([(96, 1.0)] * 8), growing, 0.0) == pytest.approx(1.0)
    assert learning_rate(Settings(schedule="constant"), history, [192] * 20, 0.3) == Settings().learning_rate


@pytest.mark.usefixtures("no_pictures")
def test_early_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """It counts epochs without gain at the last size, and a run that has stopped stays stopped."""
    stopping = Settings(sizes=(32, 40), early_stop=2)
    assert not should_stop_early(stopping, past([(32, 1.0)] * 9))
    assert not should_stop_early(stopping, past([(40, 1.0), (40, 1.0)]))
    assert should_stop_early(stopping, past([(32, 0.1), (40, 1.0), (40, 1.0), (40, 1.0)]))
    assert not should_stop_early(stopping, past([(40, 1.0), (40, 1.0), (40, 0.9)]))
    assert not should_stop_early(Settings(sizes=(40,)), past([(40, 1.0)] * 9))
    monkeypatch.setattr(trainer_module, "validate", lambda *_, **__: dict.fromkeys(SCORES, 1.0))
    for _ in range(2):
        short(tmp_path, epochs=9, early_stop=2)
        assert len(table(tmp_path)) == 3


def test_the_average_follows_the_weights():
    """The first step is taken over whole, later ones by a share that falls to a hundredth."""
    network, averaged = torch.nn.BatchNorm2d(2), torch.nn.BatchNorm2d(2)
    with torch.no_grad():
        network.weight.fill_(3.0)
    network.num_batches_tracked += 7
    update_ema(averaged, network, 1)
    assert averaged.weight.tolist() == [3.0, 3.0]
    assert averaged.num_batches_tracked == 7
    with torch.no_grad():
        network.weight.fill_(4.0)
    update_ema(averaged, network, 10_000)
    assert averaged.weight.tolist() == pytest.approx([3.01, 3.01])


@pytest.mark.slow
def test_a_compiled_network_learns_and_resumes(tmp_path: Path):
    """torch.compile changes no checkpoint's names, and a run goes on to the same bits."""
    short(tmp_path / "whole", epochs=2, compile=True)
    with pytest.raises(Killed):
        short(tmp_path / "killed", epochs=2, compile=True, at=(1, 1), happens=die, options={"save_every": 0})
    short(tmp_path / "killed", epochs=2, compile=True)
    assert_same_runs(tmp_path / "whole", tmp_path / "killed")
    load_network(tmp_path / "whole/checkpoints/best.pt")


@pytest.mark.usefixtures("no_pictures")
def test_training_needs_no_double_precision(tmp_path: Path):
    """On a device that has neither it nor unsigned 16-bit numbers, such as MPS."""
    with SinglePrecision():
        short(tmp_path / "run")
