"""Evaluation: scores against a plain loop over pixels, trivial answers, breakdowns, and refusals."""

import csv
import json
import math
import statistics
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from support.runs import make_run
from support.single_precision import SinglePrecision
from torch import Tensor
from typer.testing import CliRunner

from dsgen.cli.app import app
from dsgen.corpus import layout
from dsgen.errors import DsgenError
from dsgen.evaluation.background_depth import MEDIAN_ROWS, BackgroundDepth, median_of_labels
from dsgen.evaluation.evaluate import EvaluationResult, evaluate
from dsgen.evaluation.scores import (
    BACKGROUND,
    BLANK,
    MASK_SCORES,
    MEAN,
    NETWORK,
    SCORES,
    boundary,
    depth_scores,
    mask_scores,
)
from dsgen.store.packing import pack
from dsgen.store.reader import Store
from dsgen.training.checkpoint import Trained, open_trained


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, labelled_corpus: Path) -> Path:
    """A store of 72 rows, 8 of them in validation, 48 pixels; none may write to it."""
    out = tmp_path_factory.mktemp("evaluated") / "store"
    pack(labelled_corpus, out, shards=2, jobs=1)
    return out


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, store: Path) -> Path:
    """A run whose network takes about half of all pixels for foreground."""
    folder = tmp_path_factory.mktemp("run")
    trained = open_trained(make_run(folder))
    sample = Store(store).read(0, 1)
    pictures = [torch.from_numpy(sample[name]).permute(0, 3, 1, 2) / 255 for name in ("background", "image")]
    middle = trained.answer(*pictures)[0].median().item()
    return make_run(folder, mask_bias=-middle)


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory: pytest.TempPathFactory, run: Path, store: Path) -> EvaluationResult:
    """All rows of the store, scored at their own size."""
    return evaluate(run, store, split="all", out=tmp_path_factory.mktemp("evaluation"), device="cpu", workers=0)


def rows_of(result: EvaluationResult) -> list[dict[str, float]]:
    """Read rows.csv; an empty cell is nan."""
    with (result.out / "rows.csv").open(newline="") as file:
        return [{name: float(value or "nan") for name, value in row.items()} for row in csv.DictReader(file)]


def slow_mask_scores(predicted: np.ndarray, true: np.ndarray) -> dict[str, float]:
    """Score a mask one pixel at a time."""
    both = either = p = t = 0
    for a, b in zip(predicted.ravel().tolist(), true.ravel().tolist(), strict=True):
        both, either, p, t = both + (a and b), either + (a or b), p + a, t + b
    if not either:
        return dict.fromkeys(("iou", "dice", "precision", "recall"), 1.0)
    return {
        "iou": both / either,
        "dice": 2 * both / (p + t),
        "precision": both / p if p else 0.0,
        "recall": both / t if t else 0.0,
    }


def slow_depth_scores(depth_m: np.ndarray, truth_m: np.ndarray) -> dict[str, float]:
    """Score a depth map one pixel at a time."""
    count = absolute = square = 0.0
    near = [0, 0, 0]
    for d, t in zip(depth_m.ravel().tolist(), truth_m.ravel().tolist(), strict=True):
        if not 0.1 <= t <= 10:
            continue
        d = min(max(d, 0.1), 10)
        count, absolute, square = count + 1, absolute + abs(d - t) / t, square + (d - t) ** 2
        near = [n + (max(d / t, t / d) < 1.25 ** (k + 1)) for k, n in enumerate(near)]
    if not count:
        return dict.fromkeys(("abs_rel", "rmse_m", "delta1", "delta2", "delta3"), math.nan)
    shares = {f"delta{k + 1}": n / count for k, n in enumerate(near)}
    return {"abs_rel": absolute / count, "rmse_m": math.sqrt(square / count), **shares}


@pytest.mark.parametrize("seed", range(4))
def test_scores_equal_a_loop_over_pixels(seed: int):
    """Masks that cover any share, empty ones too, and depths with holes and outside the limits."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, 1, 13, 17, generator=generator) - seed + 1
    truth = (torch.rand(3, 1, 13, 17, generator=generator) < 0.3).float()
    truth[1] = 0
    logits[2 if seed else 1] = -1
    depth_m = torch.rand(3, 1, 13, 17, generator=generator) * 13 - 0.5
    truth_m = torch.rand(3, 1, 13, 17, generator=generator) * 12 * (torch.rand(3, 1, 13, 17, generator=generator) < 0.8)
    truth_m[2] = 0
    masks, depths = mask_scores(logits, truth), depth_scores(depth_m, truth_m, truth)
    for k in range(3):
        expected = slow_mask_scores(logits[k].numpy() > 0, truth[k].numpy() > 0)
        expected |= slow_depth_scores(depth_m[k].numpy(), truth_m[k].numpy())
        inside = slow_depth_scores(depth_m[k].numpy(), (truth_m[k] * truth[k]).numpy())
        expected |= {f"foreground_{name}": inside[name] for name in ("abs_rel", "delta1")}
        found = {name: values[k].item() for name, values in {**masks, **depths}.items()}
        assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-5, nan_ok=True)


@pytest.mark.parametrize("shape", [(48, 48), (96, 33), (200, 300)])
def test_the_boundary_is_what_erosion_takes_away(shape: tuple[int, int]):
    """As in Boundary IoU: the mask minus its erosion by steps of one pixel, with the border outside."""
    rng = np.random.default_rng(3)
    mask = (cv2.GaussianBlur(rng.random(shape), (0, 0), 4) > 0.5).astype(np.uint8)
    mask[:10] = 1
    reach = max(1, round(0.02 * math.hypot(*shape)))
    eroded = cv2.erode(np.pad(mask, 1), np.ones((3, 3), np.uint8), iterations=reach)[1:-1, 1:-1]
    found = boundary(torch.from_numpy(mask).float()[None, None])[0, 0].numpy()
    np.testing.assert_array_equal(found, mask - eroded)
    assert 0 < found.sum() < mask.sum()


def test_rows_score_what_their_pixels_say(evaluation: EvaluationResult, run: Path, store: Path):
    """rows.csv agrees, row by row, with the network's answer scored one pixel at a time; means are means of rows."""
    opened, trained = Store(store), open_trained(run)
    listed = rows_of(evaluation)
    assert [row["row"] for row in listed] == list(range(opened.rows))
    for number in (0, 31, 71):
        sample = opened.read(number, number + 1)
        pictures = [
            torch.from_numpy(sample[name]).permute(0, 3, 1, 2).float() / 255 for name in ("background", "image")
        ]
        logits, depth_m = trained.answer(*pictures)
        expected = slow_mask_scores(logits.numpy() > 0, sample["mask"] > 127)
        expected |= slow_depth_scores(depth_m.numpy(), sample["depth"] / 1000)
        inside = slow_depth_scores(depth_m.numpy(), sample["depth"] / 1000 * (sample["mask"] > 127))
        expected |= {f"foreground_{name}": inside[name] for name in ("abs_rel", "delta1")}
        expected["mask_share"] = (sample["mask"] > 127).mean()
        assert {name: listed[number][name] for name in expected} == pytest.approx(expected, rel=1e-4)
    for name, mean in evaluation.scores["scores"][NETWORK].items():
        assert mean == pytest.approx(statistics.fmean(row[name] for row in listed), rel=1e-4)
    assert set(evaluation.scores["scores"][NETWORK]) == set(SCORES)


def test_trivial_answers(evaluation: EvaluationResult, store: Path):
    """Blank masks score 0; the mean and the background's depth equal those of a loop over the store's labels."""
    opened = Store(store)
    samples = opened.read(0, opened.rows)
    depth_m = samples["depth"] / 1000
    assert evaluation.scores["scores"][BLANK] == dict.fromkeys(MASK_SCORES, 0.0)
    mean = depth_m[depth_m > 0].mean()
    expected = [slow_depth_scores(np.full_like(truth, mean), truth)["abs_rel"] for truth in depth_m]
    assert evaluation.scores["scores"][MEAN]["abs_rel"] == pytest.approx(statistics.fmean(expected), rel=1e-4)
    known = {
        number: np.median(depth_m[opened.plan["background"] == number], axis=0)
        for number in np.unique(opened.plan["background"]).tolist()
    }
    expected = [
        slow_depth_scores(known[number], truth)["rmse_m"]
        for number, truth in zip(opened.plan["background"].tolist(), depth_m, strict=True)
    ]
    assert evaluation.scores["scores"][BACKGROUND]["rmse_m"] == pytest.approx(statistics.fmean(expected), rel=1e-4)
    about = evaluation.scores["protocol"]["trivial_answers"][BACKGROUND]
    assert (about["backgrounds"], about["fewest_rows"], about["most_rows"]) == (3, 24, 24)


def test_the_background_shows_where_persons_stand_elsewhere(store: Path):
    """The median over rows is the wall as it was drawn, without a trace of the foreground 1 m before it."""
    opened = Store(store)
    wall = np.linspace(1500, 6000, opened.size)[None] + 7 * np.arange(3)[:, None, None]
    found = BackgroundDepth(opened)(np.arange(3))[:, 0].numpy()
    # 24 rows of persons who cover a fifth of the height: somewhere more than half of them may overlap
    assert (np.abs(found - wall.astype(np.uint16) / 1000) < 1e-3).mean() > 0.95


def test_medians_leave_out_labels_that_are_none():
    """Each pixel is the median of its labels other than 0, and 0 where all are 0."""
    rng = np.random.default_rng(0)
    for count in (1, 2, 5, 8):
        labels = (rng.integers(1, 9999, (count, 6, 7)) * (rng.random((count, 6, 7)) < 0.6)).astype(np.uint16)
        found = median_of_labels(labels)
        for pixel in np.ndindex(6, 7):
            known = [int(label) for label in labels[(slice(None), *pixel)] if label]
            assert found[pixel] == (statistics.median(known) if known else 0)


def test_few_rows_make_no_background(store: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A background with too few rows has no score, and the protocol counts it."""
    monkeypatch.setattr("dsgen.evaluation.background_depth.LEAST_MEDIAN_ROWS", 25)
    result = evaluate(run, store, out=tmp_path, device="cpu", workers=0)
    assert set(result.scores["scores"][BACKGROUND].values()) == {None}
    assert result.scores["protocol"]["trivial_answers"][BACKGROUND]["backgrounds_with_too_few_rows"] == 1
    assert MEDIAN_ROWS % 2 == 1


def test_groups_hold_every_row_once(evaluation: EvaluationResult, store: Path):
    """Backgrounds, foregrounds and mask shares each partition the rows, with their means; the worst come first."""
    plan, listed = Store(store).plan, rows_of(evaluation)
    for kind, name in (
        ("background", layout.background_name),
        ("foreground", lambda n: layout.foreground_name(n, False)),
    ):
        with (evaluation.out / f"{kind}s.csv").open(newline="") as file:
            groups = list(csv.DictReader(file))
        assert sum(int(group["rows"]) for group in groups) == len(plan)
        for number in np.unique(plan[kind]).tolist():
            (group,) = (group for group in groups if group[kind] == name(number))
            for score in ("iou", "rmse_m"):
                mean = statistics.fmean(row[score] for row in listed if row[kind] == number)
                assert float(group[score]) == pytest.approx(mean, rel=1e-4)
        ious = [float(group["iou"]) for group in groups]
        assert ious == sorted(ious)
        assert evaluation.scores[f"by_{kind}"]["worst"][0][kind] == groups[0][kind]
        assert evaluation.scores[f"by_{kind}"]["best"][0][kind] == groups[-1][kind]
    shares = evaluation.scores["by_mask_share"]
    assert sum(entry["rows"] for entry in shares) == len(plan)
    for entry in shares:
        members = [row for row in listed if entry["above"] < row["mask_share"] <= entry["up_to"]]
        assert entry["rows"] == len(members)
        if members:
            assert entry["dice"] == pytest.approx(statistics.fmean(row["dice"] for row in members), rel=1e-4)


def test_the_worst_rows_are_named_and_drawn(evaluation: EvaluationResult):
    """The thirty-two rows with the lowest IoU, in order, with the names of their composites, and a picture of them."""
    ordered = sorted(rows_of(evaluation), key=lambda row: row["iou"])[:32]
    worst = evaluation.scores["worst"]
    assert [entry["iou"] for entry in worst] == pytest.approx([row["iou"] for row in ordered], rel=1e-4)
    first = worst[0]
    listed = rows_of(evaluation)[first["row"]]
    background, foreground = (int(listed[name]) for name in ("background", "foreground"))
    expected = layout.composite_name(background, foreground, bool(listed["flip"]), int(listed["position"]))
    assert first["composite"] == expected
    with Image.open(evaluation.out / "worst.png") as sheet:
        pixels = np.asarray(sheet.convert("RGB"))
    lines = 16
    assert pixels.shape[0] > lines * 160
    for k in range(lines):  # every line shows something, left and right
        line = pixels[40 + 180 * k : 40 + 180 * (k + 1)]
        assert line[:, : line.shape[1] // 2].std() > 20
        assert line[:, line.shape[1] // 2 :].std() > 20


def test_what_is_written(evaluation: EvaluationResult):
    """Five whole files; the JSON equals the result, has no nan, and spells out the protocol."""
    out = evaluation.out
    assert sorted(path.name for path in out.iterdir()) == [
        "backgrounds.csv",
        "foregrounds.csv",
        "rows.csv",
        "scores.json",
        "worst.png",
    ]
    read = json.loads((out / "scores.json").read_text(), parse_constant=pytest.fail)
    assert read == evaluation.scores
    protocol = read["protocol"]
    assert (protocol["split"], protocol["size"], protocol["scored_size"], protocol["rows"]) == ("all", 48, 48, 72)
    assert protocol["alignment"].startswith("none")
    assert protocol["max_depth_m"] == 10
    text = evaluation.table()
    for part in ("split all", "72 of 72 rows", "48x48", "0.1..10 m", "probability above 0.5", "mean over rows"):
        assert part in text.splitlines()[-1]
    for answer in (NETWORK, BLANK, MEAN, BACKGROUND):
        assert f"\n{answer}" in text


def test_splits_and_samples(run: Path, store: Path, tmp_path: Path, evaluation: EvaluationResult):
    """A split has the scores it has among all rows; a sample of it is the same each time, in order."""
    whole = {row["row"]: row for row in rows_of(evaluation)}
    split = evaluate(run, store, out=tmp_path / "a", device="cpu", batch_size=3, workers=0)
    listed = rows_of(split)
    assert [row["row"] for row in listed] == np.flatnonzero(Store(store).plan["split"] == 1).tolist()
    for row in listed:
        assert row == pytest.approx(whole[row["row"]], rel=1e-4)
    samples = [evaluate(run, store, out=tmp_path / n, split="train", samples=5, device="cpu", workers=0) for n in "bc"]
    assert rows_of(samples[0]) == rows_of(samples[1])
    numbers = [row["row"] for row in rows_of(samples[0])]
    assert len(numbers) == 5
    assert numbers == sorted(numbers)
    assert len({whole[number]["background"] for number in numbers}) + len({whole[n]["foreground"] for n in numbers}) > 2
    assert "5 of " in samples[0].scores["protocol"]["summary"]


def test_half_size_answers_are_scored_at_their_size(store: Path, tmp_path: Path):
    """A network with answers at half the size is scored at that size, and the protocol says so."""
    result = evaluate(make_run(tmp_path, output="half"), store, size=32, device="cpu", workers=0)
    assert result.out == tmp_path / "evaluation-validation-32"
    assert result.scores["protocol"]["scored_size"] == 16
    assert "scored at the network's output, 16x16" in result.table()
    assert "shrunk by antialiased averaging" in result.table()
    assert 0 <= result.scores["scores"][NETWORK]["iou"] <= 1


def test_without_depth_masks_are_scored(run: Path, corpus: Path, store: Path, tmp_path: Path):
    """A store without depth gives mask scores only, and so does a network without depth."""
    pack(corpus, tmp_path / "store", shards=1, jobs=1)
    result = evaluate(run, tmp_path / "store", out=tmp_path / "a", device="cpu", workers=0)
    assert set(result.scores["scores"]) == {NETWORK, BLANK}
    assert set(result.scores["scores"][NETWORK]) == set(MASK_SCORES)
    assert "abs rel" not in result.table()
    maskless = evaluate(make_run(tmp_path / "run", depth=False), store, out=tmp_path / "b", device="cpu", workers=0)
    assert set(maskless.scores["scores"][NETWORK]) == set(MASK_SCORES)
    assert maskless.scores["scores"][MEAN]["abs_rel"] > 0


def test_stores_without_masks_and_backgrounds(run: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Without masks only depth is scored, and the worst rows are those with the largest relative error."""
    from dsgen.store.loader import Loader

    batches, read = Loader.__iter__, Store.read
    left_out = ("mask", "background")
    monkeypatch.setattr(
        Loader, "__iter__", lambda self: ({n: v for n, v in b.items() if n not in left_out} for b in batches(self))
    )
    monkeypatch.setattr(
        Store, "read", lambda self, a, b: {n: v for n, v in read(self, a, b).items() if n not in left_out}
    )
    result = evaluate(run, store, out=tmp_path, device="cpu", workers=0)
    assert set(result.scores["scores"]) == {NETWORK, MEAN}
    assert set(result.scores["scores"][NETWORK]) == {"abs_rel", "rmse_m", "delta1", "delta2", "delta3", "ssim"}
    errors = [entry["abs_rel"] for entry in result.scores["worst"]]
    assert errors == sorted(errors, reverse=True)
    assert not result.blank
    assert result.table().splitlines()[0].split()[:2] == ["abs", "rel"]


def answer_by_difference(self: Trained, background: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
    """Answer foreground where image and background differ, and 3 m everywhere."""
    different = (image - background).abs().amax(1, keepdim=True)
    return different - 0.5 / 255, torch.full_like(different, 3.0)


def answer_nothing(self: Trained, background: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
    """Answer no foreground, and 3 m everywhere."""
    return torch.full_like(image[:, :1], -1.0), torch.full_like(image[:, :1], 3.0)


@pytest.mark.parametrize(("answer", "code"), [(answer_by_difference, 0), (answer_nothing, 1)])
def test_blank_masks_are_called_out(
    answer: Any, code: int, run: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The command warns and exits with 1 where the masks are no better than empty ones; good masks pass."""
    monkeypatch.setattr(Trained, "answer", answer)
    out = tmp_path / "e"
    done = CliRunner().invoke(app, ["evaluate", str(run), str(store), "--out", str(out), "--workers", "0"])
    assert done.exit_code == code, done.output
    assert ("the masks are blank: IoU 0.000" in done.output) == bool(code)
    scores = json.loads((out / "scores.json").read_text())
    assert scores["blank"] == bool(code)
    assert scores["scores"][NETWORK]["iou"] > 0.6 or code  # edges are soft, and a difference is no mask
    assert done.output.splitlines()[-1] == f"{out}: scores.json, rows.csv, backgrounds.csv, foregrounds.csv, worst.png"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "tests"}, "--split: got tests, expected one of train, validation, test, unused, all"),
        ({"split": "test"}, "no rows in split 'test'"),
        ({"size": 96}, "--size: got 96, expected 32 to 48"),
        ({"size": 16}, "--size: got 16, expected 32 to 48"),
        ({"samples": 0}, "--samples: got 0, expected 1 or more"),
        ({"checkpoint": "last"}, "--checkpoint: got last, expected one of best"),
    ],
)
def test_invalid_arguments_are_refused(run: Path, store: Path, tmp_path: Path, options: dict[str, Any], message: str):
    """Each error names the value and the rule, and nothing is written."""
    with pytest.raises(DsgenError, match=message):
        evaluate(run, store, out=tmp_path / "out", device="cpu", **options)
    assert not (tmp_path / "out").exists()


def test_runs_and_stores_that_are_none(run: Path, store: Path, tmp_path: Path):
    """A folder without checkpoints, a damaged checkpoint, an unfinished store, a run for larger pictures."""
    with pytest.raises(DsgenError, match="expected a run"):
        evaluate(tmp_path, store, device="cpu")
    with pytest.raises(DsgenError, match=f"{tmp_path}: .*expected a store"):
        evaluate(run, tmp_path, device="cpu")
    with pytest.raises(DsgenError, match="--size: got 192, the run's, expected 32 to 48"):
        evaluate(make_run(tmp_path / "large", size=192), store, device="cpu")
    (tmp_path / "large/checkpoints/best.pt").write_bytes(b"nothing")
    with pytest.raises(DsgenError, match="damaged"):
        evaluate(tmp_path / "large", store, device="cpu")


def test_evaluation_needs_no_double_precision(run: Path, store: Path, tmp_path: Path, evaluation: EvaluationResult):
    """On a device that has neither it nor unsigned 16-bit numbers, such as MPS."""
    with SinglePrecision():
        scored = evaluate(run, store, out=tmp_path / "out", device="cpu", split="all")
    assert scored.scores == evaluation.scores
