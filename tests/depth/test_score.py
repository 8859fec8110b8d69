"""Depth scores against a plain loop over pixels, and what is said about folders that do not match."""

import json
import math
import re
import statistics
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dsgen.depth.score import METRICS, evaluate_depth, median_ratio, resize_depth, scores
from dsgen.errors import DsgenError
from dsgen.io.json_files import read_json


def draw(seed: int, height: int = 12, width: int = 16, holes: float = 0.2) -> np.ndarray:
    """A random map, 0.05..13 m, with holes of 0."""
    rng = np.random.default_rng(seed)
    depth = rng.uniform(0.05, 13, (height, width))
    return np.where(rng.random((height, width)) < holes, 0, depth)


def save(path: Path, depth_m: np.ndarray) -> None:
    """Write a map as its ending says: float32 metres, or uint16 millimetres."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, depth_m.astype(np.float32))
    else:
        Image.fromarray(np.rint(depth_m * 1000).astype(np.uint16)).save(path)


def folders(root: Path, maps: dict[str, tuple[np.ndarray, np.ndarray]]) -> tuple[Path, Path]:
    """Write (prediction, truth) under each name to two folders."""
    for name, (prediction, truth) in maps.items():
        save(root / "pred" / name, prediction)
        save(root / "true" / name, truth)
    return root / "pred", root / "true"


def slow_scores(pairs: list[tuple[float, float]], low: float, high: float) -> dict[str, float]:
    """Score (prediction, truth) pairs that count, one pixel at a time."""
    total = dict.fromkeys(METRICS, 0.0)
    for p, d in pairs:
        p = low if math.isnan(p) or math.isinf(p) else min(max(p, low), high)
        total["abs_rel"] += abs(d - p) / d
        total["sq_rel"] += (d - p) ** 2 / d
        total["rmse"] += (d - p) ** 2
        total["rmse_log"] += (math.log(d) - math.log(p)) ** 2
        total["log10"] += abs(math.log10(d) - math.log10(p))
        for power in (1, 2, 3):
            total[f"delta{power}"] += max(d / p, p / d) < 1.25**power
    mean = {name: value / len(pairs) for name, value in total.items()}
    return mean | {name: math.sqrt(mean[name]) for name in ("rmse", "rmse_log")}


def slow_picture(
    prediction: np.ndarray, truth: np.ndarray, low: float = 0.1, high: float = 10.0
) -> tuple[dict[str, float], dict[str, float], int, int]:
    """Return metric and median-scaled scores, the pixels that count, and those of them without prediction."""
    pairs = []
    for row in range(truth.shape[0]):
        for column in range(truth.shape[1]):
            p, d = float(prediction[row, column]), float(truth[row, column])
            if low <= d <= high:
                pairs.append((p if math.isfinite(p) and p > 0 else 0.0, d))
    seen = [(p, d) for p, d in pairs if p > 0]
    ratio = statistics.median(d for _, d in seen) / statistics.median(p for p, _ in seen)
    scaled = [(p * ratio, d) for p, d in pairs]
    return slow_scores(pairs, low, high), slow_scores(scaled, low, high), len(pairs), len(pairs) - len(seen)


def slow_resize(depth: np.ndarray, height: int, width: int) -> np.ndarray:
    """Interpolate bilinearly between pixel centres, holes left out, one pixel at a time."""
    old_height, old_width = depth.shape
    out = np.zeros((height, width))
    for row in range(height):
        for column in range(width):
            y = min(max((row + 0.5) * old_height / height - 0.5, 0), old_height - 1)
            x = min(max((column + 0.5) * old_width / width - 0.5, 0), old_width - 1)
            total = share = 0.0
            for j in (math.floor(y), math.floor(y) + 1):
                for i in (math.floor(x), math.floor(x) + 1):
                    weight = (1 - abs(y - j)) * (1 - abs(x - i))
                    if weight > 0 and depth[j, i] > 0:
                        total, share = total + weight * depth[j, i], share + weight
            out[row, column] = total / share if share >= 0.5 else 0
    return out


def check(picture: dict[str, Any], expected: tuple[dict[str, float], dict[str, float], int, int]) -> None:
    """Compare a picture's entry with what `slow_picture` found."""
    metric, scaled, pixels, missing = expected
    assert picture["metric"] == pytest.approx(metric, rel=1e-9, abs=1e-12)
    assert picture["median_scaled"] == pytest.approx(scaled, rel=1e-9, abs=1e-12)
    assert (picture["pixels"], picture["pixels_without_prediction"]) == (pixels, missing)


def error_of(*arguments: Any, **options: Any) -> str:
    """Return the message of the `DsgenError` that the call must raise."""
    with pytest.raises(DsgenError) as caught:
        evaluate_depth(*arguments, **options)
    return str(caught.value)


@pytest.mark.parametrize(("low", "high"), [(0.1, 10.0), (1.0, 4.0), (0.001, 80.0)])
def test_scores_equal_a_loop_over_pixels(tmp_path, low, high):
    """Every picture's scores and counts, and their means, are what a plain loop gives, at any limits."""
    maps = {f"room/{n}.npy": (draw(n), draw(100 + n)) for n in range(4)}
    predictions, truth = folders(tmp_path, maps)
    result = evaluate_depth(predictions, truth, min_depth_m=low, max_depth_m=high)
    expected = [
        slow_picture(p.astype(np.float32), d.astype(np.float32), low, high) for _, (p, d) in sorted(maps.items())
    ]
    assert [picture["name"] for picture in result.per_picture] == [f"room/{n}" for n in range(4)]
    for picture, want in zip(result.per_picture, expected, strict=True):
        check(picture, want)
    for kind, place in (("metric", 0), ("median_scaled", 1)):
        for metric in METRICS:
            mean = sum(want[place][metric] for want in expected) / len(expected)
            assert result.mean[kind][metric] == pytest.approx(mean, rel=1e-9)
    assert result.pixels == sum(want[2] for want in expected)
    assert result.pixels_without_prediction == sum(want[3] for want in expected) > 0
    assert result.pictures == 4


def test_scores_of_one_pixel_by_hand():
    """Truth 2 m and prediction 3 m give the numbers of a pocket calculator."""
    found = scores(np.array([3.0]), np.array([2.0]))
    expected = {"abs_rel": 0.5, "sq_rel": 0.5, "rmse": 1.0, "rmse_log": 0.405465, "log10": 0.176091}
    assert found == pytest.approx(expected | {"delta1": 0, "delta2": 1, "delta3": 1}, abs=1e-6)


def test_a_perfect_prediction(tmp_path):
    """The truth itself has no error and every delta 1, with and without median scaling, whatever its holes."""
    predictions, truth = folders(tmp_path, {"a.png": (draw(1), draw(1)), "b.npy": (draw(2), draw(2))})
    result = evaluate_depth(predictions, truth)
    perfect = {name: float(name.startswith("delta")) for name in METRICS}
    assert result.mean == {"metric": perfect, "median_scaled": perfect}
    assert result.pixels_without_prediction == 0


def test_scale_changes_metric_scores_only(tmp_path):
    """Doubling a prediction, in the file or by option, leaves the median-scaled scores and changes the metric ones."""
    p, d = draw(3), draw(4)
    predictions, truth = folders(tmp_path, {"a.npy": (p, d)})
    save(tmp_path / "double" / "a.npy", 2 * p)
    once, twice = evaluate_depth(predictions, truth), evaluate_depth(tmp_path / "double", truth)
    assert twice.mean["median_scaled"] == pytest.approx(once.mean["median_scaled"], rel=1e-12)
    assert twice.mean["metric"]["rmse"] != once.mean["metric"]["rmse"]
    by_option = evaluate_depth(predictions, truth, scale_prediction=2)
    assert by_option.mean == twice.mean
    assert by_option.protocol["scale_prediction"] == 2


def test_limits_clamp_predictions_and_choose_pixels():
    """A truth at a limit counts, one outside does not; a prediction outside scores as the limit does."""
    truth = np.array([0.1, 10.0, 0.0999, 10.001, 0.0, np.nan, np.inf])
    wild = np.array([0.001, 500.0, 7, 7, 7, 7, 7])
    assert scores(wild, truth) == scores(truth, truth)
    assert scores(wild, truth)["abs_rel"] == 0


@pytest.mark.parametrize("hole", [0.0, np.nan, np.inf, -np.inf, -3.0])
def test_missing_predictions_are_punished(tmp_path, hole):
    """A prediction without depth counts as the least depth, is counted, and has no part in the medians."""
    truth = np.full((4, 4), 5.0)
    prediction = truth / 2
    prediction[0] = hole
    predictions, folder = folders(tmp_path, {"a.npy": (prediction, truth)})
    (picture,) = evaluate_depth(predictions, folder).per_picture
    assert picture["pixels_without_prediction"] == 4
    assert picture["median_ratio"] == 2
    assert picture["median_scaled"]["delta3"] == 0.75
    assert picture["median_scaled"]["abs_rel"] == pytest.approx(0.25 * 4.9 / 5)


def test_no_prediction_at_all():
    """Nothing predicted has no median to scale by, and every pixel is wrong."""
    nothing, truth = np.zeros((3, 3)), np.full((3, 3), 2.0)
    assert median_ratio(nothing, truth) == 1
    assert scores(nothing, truth)["delta3"] == 0
    assert all(math.isnan(value) for value in scores(truth, nothing).values())


def test_crops(tmp_path):
    """A crop of four numbers counts its pixels alone, and equals cutting the files."""
    p, d = draw(5), draw(6)
    predictions, truth = folders(tmp_path, {"a.npy": (p, d)})
    result = evaluate_depth(predictions, truth, crop=" 2,9, 3,16")
    check(result.per_picture[0], slow_picture(p.astype(np.float32)[2:9, 3:16], d.astype(np.float32)[2:9, 3:16]))
    assert result.protocol["crop_region"].startswith("rows 2:9 and columns 3:16;")


@pytest.mark.parametrize(
    ("size", "rows", "columns"), [((480, 640), (20, 460), (24, 616)), ((120, 160), (5, 115), (6, 154))]
)
def test_the_eigen_crop(tmp_path, size, rows, columns):
    """Of 480x640 the crop is rows 20:460 and columns 24:616, of a quarter of that a quarter."""
    truth = np.full(size, 3.0)
    prediction = np.full(size, 9.0)
    prediction[rows[0] : rows[1], columns[0] : columns[1]] = 3
    predictions, folder = folders(tmp_path, {"a.png": (prediction, truth)})
    result = evaluate_depth(predictions, folder, crop="eigen")
    assert result.pixels == (rows[1] - rows[0]) * (columns[1] - columns[0])
    assert result.mean["metric"]["rmse"] == 0
    assert evaluate_depth(predictions, folder).mean["metric"]["rmse"] > 0


def test_png_and_npy_mix(tmp_path):
    """Either side may be either format, in any float type or byte order, and the PNG unit is the one given."""
    depth = np.rint(draw(7) * 256) / 256
    for name, path in (("a", "pred"), ("b", "true")):
        (tmp_path / path).mkdir(exist_ok=True)
        Image.fromarray((depth * 256).astype(np.uint16)).save(tmp_path / path / f"{name}.PNG")
    np.save(tmp_path / "true" / "a.npy", np.asfortranarray(depth.astype(">f8")))
    np.save(tmp_path / "pred" / "b.npy", np.where(depth == 0, np.nan, depth).astype(np.float32))
    (tmp_path / "pred" / "readme.txt").write_text("not a map")
    (tmp_path / "true" / "._a.png").write_text("not a map either")
    result = evaluate_depth(tmp_path / "pred", tmp_path / "true", png_unit_m=1 / 256)
    assert result.pictures == 2
    assert result.mean["metric"]["rmse"] == 0
    assert result.mean["metric"]["delta1"] == 1


@pytest.mark.parametrize("size", [(24, 32), (6, 8), (17, 23), (12, 16)])
def test_resizing_equals_a_loop_over_pixels(size):
    """Bilinear with half-pixel centres, larger or smaller, holes lending nothing."""
    for holes in (0, 0.2):
        depth = draw(8, holes=holes)
        np.testing.assert_allclose(resize_depth(depth, *size), slow_resize(depth, *size), rtol=1e-5, atol=1e-5)


def test_predictions_of_another_size(tmp_path):
    """A prediction is brought to the truth's size before it is scored, and the result says so."""
    p, d = draw(9, 6, 8, holes=0.1), draw(10)
    predictions, truth = folders(tmp_path, {"a.npy": (p, d), "b.npy": (d, d)})
    result = evaluate_depth(predictions, truth)
    first, second = result.per_picture
    expected = slow_picture(slow_resize(p.astype(np.float32).astype(np.float64), 12, 16), d.astype(np.float32))
    assert first["metric"] == pytest.approx(expected[0], rel=1e-4)
    assert (first["resized_from"], second["resized_from"], result.resized) == ([6, 8], None, 1)
    assert result.truth_sizes == {"12x16": 2}


def test_proportions_must_agree(tmp_path):
    """Two per cent of difference in proportions is rounding, more is another picture."""
    truth = draw(11, 100, 100)
    folders(tmp_path, {"a.npy": (draw(12, 50, 51), truth)})
    assert evaluate_depth(tmp_path / "pred", tmp_path / "true").pictures == 1
    save(tmp_path / "pred" / "a.npy", draw(12, 50, 52))
    message = error_of(tmp_path / "pred", tmp_path / "true")
    assert re.search(r"pred/a.npy: 50x52 .*expected the proportions of the truth's 100x100 to 2%; predict", message)


def test_subfolders(tmp_path):
    """Maps of one file name in different folders are different maps; the order is that of the names."""
    maps = {name: (draw(n), draw(n + 50)) for n, name in enumerate(("b/x.png", "a/x.png", "a/deep/x.npy", "x.png"))}
    predictions, truth = folders(tmp_path, maps)
    result = evaluate_depth(predictions, truth)
    assert [picture["name"] for picture in result.per_picture] == ["a/deep/x", "a/x", "b/x", "x"]


def test_every_problem_is_in_one_message(tmp_path):
    """Missing partners, two files of one name and files of the wrong kind are reported together, the first 200."""
    good = draw(13)
    predictions, truth = folders(tmp_path, {"a.npy": (good, good), "eight.png": (good, good), "cube.npy": (good, good)})
    save(predictions / "a.png", good)
    Image.fromarray(np.zeros((12, 16), np.uint8)).save(predictions / "eight.png")
    np.save(truth / "cube.npy", np.zeros((12, 16, 1), np.float32))
    save(predictions / "lone.npy", good)
    save(truth / "only.npy", good)
    out = tmp_path / "scores.json"
    message = error_of(predictions, truth, out=out)
    for part in (
        r"^5 problems, nothing was written:\n",
        r"pred: 2 maps for 'a' \(a\.npy, a\.png\), expected 1; remove one",
        r"pred/eight\.png: 8-bit grey PNG, expected 16-bit grey; save depth as uint16",
        r"true/cube\.npy: float32 of shape 12x16x1, expected two-dimensional float metres; convert it",
        r"pred/lone\.npy: no ground truth of that name; add it or remove the prediction",
        r"true/only\.npy: no prediction of that name; predict it or remove the ground truth$",
    ):
        assert re.search(part, message), part
    for n in range(1000):
        (truth / f"z{n}.npy").write_bytes(b"")
    message = error_of(predictions, truth, out=out)
    assert message.startswith("2,005 problems, nothing was written:\n")
    assert message.endswith("\n  ... and 1,805 more")
    assert message.count("\n") == 201
    assert not out.exists()


def write_wrong_file(path: Path, kind: str) -> Path:
    """Write one file that is no depth map."""
    small = np.zeros((12, 16, 3), np.uint8)
    if kind == "rgb":
        Image.fromarray(small).save(path.with_suffix(".png"))
    elif kind == "not png":
        Image.fromarray(small).save(path.with_suffix(".png"), format="JPEG")
    elif kind == "empty png":
        path.with_suffix(".png").write_bytes(b"")
    elif kind == "integers":
        np.save(path, np.ones((12, 16), np.uint16))
    elif kind == "no pixels":
        np.save(path, np.ones((0, 16), np.float32))
    elif kind == "objects":
        np.save(path, np.array([[None]]))
    elif kind == "cut npy":
        np.save(path, np.ones((12, 16), np.float32))
        path.write_bytes(path.read_bytes()[:-1])
    else:
        path.write_bytes(b"")
    return path if path.exists() else path.with_suffix(".png")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("rgb", "8-bit RGB PNG, expected 16-bit grey; save"),
        ("not png", "not a PNG file, expected a 16-bit grey PNG; replace it"),
        ("empty png", "not a PNG file"),
        ("integers", "uint16 of shape 12x16, expected two-dimensional float metres; convert it"),
        ("no pixels", "shape 0x16, expected some pixels; replace it"),
        ("objects", r"cannot be read \(.*\), expected a .npy file of floats; replace it"),
        ("cut npy", r"cannot be read \(.*\), expected a .npy file of floats; replace it"),
        ("empty npy", r"cannot be read \(.*\), expected a .npy file of floats; replace it"),
    ],
)
def test_wrong_files(tmp_path, kind, message):
    """Each kind of file that is no depth map is named with what it is; found before any map is read."""
    (tmp_path / "pred").mkdir()
    path = write_wrong_file(tmp_path / "pred" / "a.npy", kind)
    save(tmp_path / "true" / "a.npy", draw(14))
    assert re.match(re.escape(str(path)) + ": " + message, error_of(tmp_path / "pred", tmp_path / "true"))


def test_a_png_damaged_behind_its_header(tmp_path):
    """What only decoding shows is an error too, and nothing is written."""
    predictions, truth = folders(tmp_path, {"a.png": (draw(15), draw(16))})
    code = (predictions / "a.png").read_bytes()
    (predictions / "a.png").write_bytes(code[: len(code) // 2])
    out = tmp_path / "scores.json"
    message = error_of(predictions, truth, out=out)
    assert re.search(r"pred/a.png: cannot be decoded \(.*\), expected a complete PNG; replace it", message)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pred", "true"]


def test_pictures_without_a_pixel_that_counts(tmp_path):
    """They are in no mean, and named in the result and the table; if all are so, that is an error."""
    p, d, nothing = draw(17), draw(18), np.zeros((12, 16))
    predictions, truth = folders(tmp_path / "some", {"a.npy": (p, d), "void/b.npy": (p, nothing)})
    result = evaluate_depth(predictions, truth)
    assert result.empty == ["void/b"]
    assert result.pictures == len(result.per_picture) == 1
    assert result.mean["metric"] == result.per_picture[0]["metric"]
    assert "left out, no pixel that counts: 1 (void/b)" in result.table()
    predictions, truth = folders(tmp_path / "none", {"b.npy": (p, nothing)})
    assert "no pixel of any map lies within 0.1..10 m and the crop" in error_of(predictions, truth)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_depth_m": 0}, "depth limits: got 0..10 m, expected 0 < least < most, finite"),
        ({"min_depth_m": 10}, "depth limits: got 10..10 m"),
        ({"max_depth_m": math.inf}, "depth limits: got 0.1..inf m"),
        ({"max_depth_m": math.nan}, "depth limits: got 0.1..nan m"),
        ({"png_unit_m": 0}, "PNG unit in metres: got 0, expected a finite number above 0; change it"),
        ({"scale_prediction": -1}, "scale of predictions: got -1, expected a finite number above 0; change it"),
        ({"crop": "garg"}, "crop: got 'garg', expected 'eigen' or 'top,bottom,left,right' in pixels"),
        ({"crop": "1,2,3"}, "crop: got '1,2,3', expected"),
        ({"crop": "5,5,0,9"}, "crop: got '5,5,0,9', expected"),
        ({"crop": "-1,5,0,9"}, "crop: got '-1,5,0,9', expected"),
        ({"crop": "0,13,0,9"}, "true/a.npy: 12x16 (height x width), expected at least 13x9 for the crop"),
    ],
)
def test_settings_are_checked(tmp_path, options, message):
    """Limits, units and crops that make no sense are refused before any map is read."""
    predictions, truth = folders(tmp_path, {"a.npy": (draw(19), draw(20))})
    assert message in error_of(predictions, truth, **options)


def test_folders_are_checked(tmp_path):
    """A folder that is missing or without maps, and a folder where a file is to be written, are refused."""
    predictions, truth = folders(tmp_path, {"a.npy": (draw(21), draw(22))})
    (tmp_path / "bare").mkdir()
    assert "absent: no such folder, expected one with .png or .npy depth maps" in error_of(tmp_path / "absent", truth)
    assert "bare: no depth maps, expected .png or .npy files in it or below" in error_of(predictions, tmp_path / "bare")
    assert "bare: a folder, expected the name of a JSON file" in error_of(predictions, truth, out=tmp_path / "bare")


def test_the_result_is_written(tmp_path, capsys):
    """The JSON file is the result, with every setting of the protocol; progress goes to stderr."""
    predictions, truth = folders(tmp_path, {"a.npy": (draw(23), draw(24))})
    out = tmp_path / "new" / "scores.json"
    result = evaluate_depth(predictions, truth, out=out, crop="1,9,1,9", max_depth_m=8)
    assert read_json(out) == result.as_dict()
    json.dumps(result.as_dict(), allow_nan=False)
    assert [path.name for path in out.parent.iterdir()] == ["scores.json"]
    protocol = result.protocol
    assert (protocol["min_depth_m"], protocol["max_depth_m"], protocol["crop"]) == (0.1, 8, "1,9,1,9")
    assert protocol["metrics"].keys() == METRICS.keys()
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "evaluate depth: 1 of 1" in captured.err


def test_the_table(tmp_path):
    """Both means, the five worst pictures, worst first, and the protocol on the last line; columns line up."""
    truth = np.full((12, 16), 5.0)
    maps = {}
    for n in range(7):
        prediction = truth.copy()
        prediction[:n] = 1
        maps[f"picture{n}.npy"] = (prediction, truth)
    lines = evaluate_depth(*folders(tmp_path, maps)).table().splitlines()
    assert lines[0].split() == list(METRICS)
    assert lines[1].startswith("mean, metric ")
    assert lines[2].startswith("mean, median-scaled ")
    assert [line.split()[1] for line in lines[3:8]] == [f"picture{n}" for n in (6, 5, 4, 3, 2)]
    assert float(lines[3].split()[-3]) == 0.5
    assert len({len(line) for line in lines[:8]}) == 1
    assert lines[8] == "7 pictures, 1,344 pixels, 0 of them without predicted depth"
    assert lines[9].startswith("edges, 0 pictures: precision -, recall -, f -, accuracy -")
    assert lines[10].startswith("protocol: ")
    assert "whole picture; pixels with d in 0.1..10 m" in lines[10]
    assert len(lines) == 11


def test_edges_are_scored_per_picture_and_in_the_mean(tmp_path):
    """Pictures whose truth has no edges are in no mean of edges."""
    flat, step = np.full((60, 80), 2.0), np.full((60, 80), 2.0)
    step[:, 40:] = 4
    pairs = {"a.npy": (flat, flat), "b.npy": (step, step), "c.npy": (flat, step)}
    result = evaluate_depth(*folders(tmp_path, pairs))
    assert result.pictures_with_edges == 2
    assert [picture["edges"]["edge_f"] for picture in result.per_picture] == [None, 1, 0]
    assert result.edges == {
        "edge_precision": 1,
        "edge_recall": 0.5,
        "edge_f": 0.5,
        "edge_accuracy": 5,
        "edge_completeness": 5,
    }


def test_the_module_does_not_need_torch():
    """Importing it loads no torch, so the command starts at once."""
    code = "import sys, dsgen.depth.score; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_maps_match_in_every_spelling(tmp_path):
    """Composed and decomposed accents are one name, in folders too; hidden files and dsgen's own are passed by."""
    composed, apart = (unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD"))
    save(tmp_path / "pred" / composed / f"{composed}.npy", draw(14))
    save(tmp_path / "true" / apart / f"{apart}.npy", draw(14))
    for name in ("._x.png", ".ipynb_checkpoints/x.png"):
        (tmp_path / "pred" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "pred" / name).write_bytes(b"")
    (tmp_path / "pred" / "depth.json").write_text('{"dsgen": "0.1.0"}')
    assert evaluate_depth(tmp_path / "pred", tmp_path / "true").pictures == 1
    save(tmp_path / "pred" / composed / f"{apart}.npy", draw(14))
    assert "2 maps for" in error_of(tmp_path / "pred", tmp_path / "true")
