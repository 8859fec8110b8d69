"""How far predicted depth maps are from true ones: two folders in, one table of scores out.

A depth map is a 16-bit grey PNG (times `png_unit_m` = metres) or a two-dimensional float .npy (metres). 0, and in
.npy also nan, infinity and what is negative, means no depth. Maps pair by their path inside the folder, without
ending. Names and headers are all checked before the first map is read; maps are then read a few at a time.
"""

import math
import re
import struct
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from dsgen import metrics
from dsgen.depth.edges import EDGE_METRICS, EDGE_PROTOCOL, edge_scores
from dsgen.errors import DamagedError, DsgenError, InvalidValueError, NotFoundError, raise_all, reason_of
from dsgen.io import images
from dsgen.io.atomic import write_json
from dsgen.io.folders import DEPTH_SUFFIXES, list_files, match_key
from dsgen.parallel.prefetch import prefetch
from dsgen.parallel.progress import progress

METRICS = {
    "abs_rel": "mean of |d - p| / d",
    "sq_rel": "mean of (d - p)^2 / d, in metres",
    "rmse": "root of the mean of (d - p)^2, in metres",
    "rmse_log": "root of the mean of (ln d - ln p)^2",
    "log10": "mean of |log10 d - log10 p|",
    "delta1": "share of pixels with max(d / p, p / d) < 1.25",
    "delta2": "share of pixels with max(d / p, p / d) < 1.25^2 = 1.5625",
    "delta3": "share of pixels with max(d / p, p / d) < 1.25^3 = 1.953125",
}
ASPECT_TOLERANCE = 0.02
EIGEN_SIZE = (480, 640)
EIGEN_CROP = (20, 460, 24, 616)
_LISTED = 5  # problems an error names, and pictures a table shows
_AHEAD = 4  # pairs of maps read before they are wanted
_COLOURS = {0: "grey", 2: "RGB", 3: "palette", 4: "grey and alpha", 6: "RGBA"}

Crop = tuple[int, int, int, int]  # top, bottom, left, right; the end is not part of it


@dataclass(frozen=True)
class _Pair:
    name: str
    prediction: Path
    truth: Path
    prediction_size: tuple[int, int]  # height, width
    truth_size: tuple[int, int]


def scores(
    prediction_m: np.ndarray, truth_m: np.ndarray, *, min_depth_m: float = 0.1, max_depth_m: float = 10.0
) -> dict[str, float]:
    """Score a depth map by every formula in `METRICS`, over the pixels whose truth lies within the two limits.

    Both are of one shape, whichever, and in metres. The prediction is clamped to the limits; where it is 0, negative,
    nan or infinite it counts as `min_depth_m`. Without a pixel that counts every score is nan. All but log10: Eigen,
    Puhrsch and Fergus, NIPS 2014, arXiv 1406.2283, who pool the pixels of all pictures; log10: Saxena, Sun and Ng,
    IEEE TPAMI 31(5), 2009.
    """
    counts = metrics.valid_depth(truth_m, min_depth_m, max_depth_m)
    d, p = truth_m[counts].astype(np.float64), prediction_m[counts].astype(np.float64)
    if not d.size:
        return dict.fromkeys(METRICS, math.nan)
    p = np.where(np.isfinite(p), p, min_depth_m).clip(min_depth_m, max_depth_m)
    ratio = metrics.depth_ratio(p, d)
    log = metrics.log_error(ratio)
    found = {
        "abs_rel": np.mean(metrics.relative_error(p, d)),
        "sq_rel": np.mean(metrics.squared_relative_error(p, d)),
        "rmse": np.sqrt(np.mean(metrics.squared_error(p, d))),
        "rmse_log": np.sqrt(np.mean(np.square(log))),
        "log10": np.mean(log) / math.log(10),
        **{f"delta{power}": np.mean(metrics.within_delta(ratio, power)) for power in (1, 2, 3)},
    }
    return {name: float(value) for name, value in found.items()}


def median_ratio(
    prediction_m: np.ndarray, truth_m: np.ndarray, *, min_depth_m: float = 0.1, max_depth_m: float = 10.0
) -> float:
    """Return median(truth) / median(prediction) over the pixels whose truth counts and whose prediction has depth.

    1 where there is no such pixel.
    """
    counts = metrics.valid_depth(truth_m, min_depth_m, max_depth_m) & np.isfinite(prediction_m) & (prediction_m > 0)
    if not counts.any():
        return 1.0
    return float(np.median(truth_m[counts].astype(np.float64)) / np.median(prediction_m[counts].astype(np.float64)))


@dataclass(frozen=True)
class DepthEvaluation:
    """The result of `evaluate_depth`; `as_dict` is what it writes as JSON.

    `protocol` says in words how the scores were made. `pictures` and `pixels` count what was scored,
    `pixels_without_prediction` the pixels whose prediction is 0, `resized` the predictions that had another size than
    the truth, `truth_sizes` the pictures of every size. `mean` has the mean over pictures of every score, `metric` and
    `median_scaled`; `per_picture` has the same for each. `edges` has the mean of every score of `EDGE_METRICS` over the
    pictures that have a value, None without any, and `pictures_with_edges` counts those whose truth has edges by ratio.
    `empty` names the pictures without a pixel that counts.
    """

    protocol: dict[str, Any]
    pictures: int
    pixels: int
    pixels_without_prediction: int
    resized: int
    truth_sizes: dict[str, int]
    mean: dict[str, dict[str, float]]
    edges: dict[str, float | None]
    pictures_with_edges: int
    empty: list[str]
    per_picture: list[dict[str, Any]]

    def as_dict(self) -> dict[str, Any]:
        """Return all fields by name, of types that JSON can hold."""
        return asdict(self)

    def table(self) -> str:
        """Format both means, the pictures worst by metric delta1, and the protocol as text."""
        worst = sorted(self.per_picture, key=lambda picture: picture["metric"]["delta1"])[:_LISTED]
        rows = [("mean, metric", self.mean["metric"]), ("mean, median-scaled", self.mean["median_scaled"])]
        rows += [(f"worst: {picture['name']}", picture["metric"]) for picture in worst]
        width = max(len(title) for title, _ in rows)
        lines = [" " * width + "".join(f"{metric:>10}" for metric in METRICS)]
        lines += [f"{title:<{width}}" + "".join(f"{row[metric]:>10.4f}" for metric in METRICS) for title, row in rows]
        tally = f"{self.pictures:,} pictures, {self.pixels:,} pixels"
        tally += f", {self.pixels_without_prediction:,} of them without predicted depth"
        if self.empty:
            names = ", ".join(self.empty[:_LISTED]) + (", ..." if len(self.empty) > _LISTED else "")
            tally += f"; left out, no pixel that counts: {len(self.empty):,} ({names})"
        return "\n".join([*lines, tally, self._edge_line(), f"protocol: {self.protocol['summary']}"])

    def _edge_line(self) -> str:
        values = (
            f"{name.removeprefix('edge_')} {'-' if value is None else f'{value:.4f}'}"
            for name, value in self.edges.items()
        )
        return f"edges, {self.pictures_with_edges:,} pictures: {', '.join(values)}"


def evaluate_depth(
    predictions: Path,
    ground_truth: Path,
    *,
    out: Path | None = None,
    min_depth_m: float = 0.1,
    max_depth_m: float = 10.0,
    crop: str | None = None,
    png_unit_m: float = 0.001,
    scale_prediction: float = 1.0,
) -> DepthEvaluation:
    """Score every depth map of a folder against the map of the same name in another, and write the result to `out`.

    Pixels count whose true depth is from `min_depth_m` to `max_depth_m` metres and inside the crop: "eigen", or
    "top,bottom,left,right" in the truth's pixels. One unit of a PNG is `png_unit_m` metres. Predictions are multiplied
    by `scale_prediction`, for maps in another unit. A prediction of another size is resized to the truth's, bilinearly
    with half-pixel centres; pixels without depth are left out of the interpolation. Pictures without a pixel that
    counts are listed under `empty` and are in no mean. The formulas are those of `dsgen.metrics`.

    Raises `NotFoundError` for missing folders and maps, `DamagedError` for files that cannot be read, and
    `SeveralErrors` for all problems of names and sizes at once.

    >>> evaluate_depth(Path("predictions"), Path("truth"), crop="eigen").mean["metric"]["delta1"]  # doctest: +SKIP
    0.711
    """
    _check_settings(min_depth_m, max_depth_m, png_unit_m, scale_prediction)
    window = _parse_crop(crop)
    if out is not None and out.is_dir():
        raise DsgenError(out, "a folder, expected the name of a JSON file to write", "add a file name")
    pairs = _pair(predictions, ground_truth, window)
    limits = {"min_depth_m": min_depth_m, "max_depth_m": max_depth_m}
    pictures: list[dict[str, Any]] = []
    empty: list[str] = []
    with progress("evaluate depth", len(pairs)) as advance:
        for pair, prediction_m, truth_m in prefetch(_read_pairs(pairs, png_unit_m, scale_prediction, window), _AHEAD):
            counts = metrics.valid_depth(truth_m, min_depth_m, max_depth_m)
            p, d = prediction_m[counts], truth_m[counts]
            if d.size:
                ratio = median_ratio(p, d, **limits)
                pictures.append(
                    {
                        "name": pair.name,
                        "pixels": d.size,
                        "pixels_without_prediction": int(np.count_nonzero(p == 0)),
                        "resized_from": list(pair.prediction_size) if pair.prediction_size != pair.truth_size else None,
                        "median_ratio": ratio,
                        "metric": scores(p, d, **limits),
                        "median_scaled": scores(p * ratio, d, **limits),
                        "edges": edge_scores(prediction_m, truth_m, counts),
                    }
                )
            else:
                empty.append(pair.name)
            advance(1)
    if not pictures:
        raise NotFoundError(
            ground_truth,
            f"no pixel of any map lies within {min_depth_m:g}..{max_depth_m:g} m and the crop, expected some",
            f"check the limits, the crop and the PNG unit of {png_unit_m:g} m",
        )
    result = DepthEvaluation(
        protocol=_protocol(predictions, ground_truth, min_depth_m, max_depth_m, crop, png_unit_m, scale_prediction),
        pictures=len(pictures),
        pixels=sum(picture["pixels"] for picture in pictures),
        pixels_without_prediction=sum(picture["pixels_without_prediction"] for picture in pictures),
        resized=sum(pair.prediction_size != pair.truth_size for pair in pairs),
        truth_sizes={f"{h}x{w}": n for (h, w), n in sorted(Counter(pair.truth_size for pair in pairs).items())},
        mean={
            kind: {metric: float(np.mean([picture[kind][metric] for picture in pictures])) for metric in METRICS}
            for kind in ("metric", "median_scaled")
        },
        edges={name: _mean_of(picture["edges"][name] for picture in pictures) for name in EDGE_METRICS},
        pictures_with_edges=sum(picture["edges"]["edge_f"] is not None for picture in pictures),
        empty=empty,
        per_picture=pictures,
    )
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_json(out, result.as_dict())
    return result


def _mean_of(values: Iterable[float | None]) -> float | None:
    """Return the mean of the values that there are, None without any."""
    there = [value for value in values if value is not None]
    return float(np.mean(there)) if there else None


def _check_settings(min_depth_m: float, max_depth_m: float, png_unit_m: float, scale_prediction: float) -> None:
    """Refuse limits and factors that are not positive, finite and in order."""
    if not 0 < min_depth_m < max_depth_m < math.inf:
        raise DsgenError(
            "depth limits", f"got {min_depth_m:g}..{max_depth_m:g} m, expected 0 < least < most, finite", "change one"
        )
    for subject, value in (("PNG unit in metres", png_unit_m), ("scale of predictions", scale_prediction)):
        if not 0 < value < math.inf:
            raise InvalidValueError(subject, f"got {value:g}, expected a finite number above 0", "change it")


def _parse_crop(crop: str | None) -> Crop | str | None:
    """Return None, "eigen", or the four numbers of a crop."""
    if crop is None or crop == "eigen":
        return crop
    if re.fullmatch(r"\s*\d{1,9}\s*(,\s*\d{1,9}\s*){3}", crop, re.ASCII):
        top, bottom, left, right = (int(number) for number in crop.split(","))
        if top < bottom and left < right:
            return top, bottom, left, right
    raise DsgenError(
        "crop",
        f"got {crop!r}, expected 'eigen' or 'top,bottom,left,right' in pixels, top < bottom and left < right",
        "leave it out for whole pictures",
    )


def _crop_for(window: Crop | str | None, size: tuple[int, int]) -> Crop:
    """Return the crop of a truth of this (height, width); "eigen" is in proportion, rounded half up."""
    height, width = size
    if window is None:
        return 0, height, 0, width
    if isinstance(window, str):
        sides = zip(EIGEN_CROP, (height, height, width, width), np.repeat(EIGEN_SIZE, 2).tolist(), strict=True)
        top, bottom, left, right = ((2 * place * side + full) // (2 * full) for place, side, full in sides)
        return top, bottom, left, right
    return window


def _pair(predictions: Path, ground_truth: Path, window: Crop | str | None) -> list[_Pair]:
    """Match the maps of two folders, in order of name; every problem that names and headers show is in one error."""
    predicted, true = _find_maps(predictions), _find_maps(ground_truth)
    errors: list[DsgenError] = []
    for found in (predicted, true):
        for name, paths in found.items():
            if len(paths) > 1:
                files = ", ".join(path.name for path in paths)
                reason = f"{len(paths)} maps for {name!r} ({files}), expected 1"
                errors.append(DsgenError(paths[0].parent, reason, "remove one"))
    sizes: dict[Path, tuple[int, int]] = {}
    for path in (path for found in (predicted, true) for paths in found.values() for path in paths):
        try:
            sizes[path] = _read_size(path)
        except DsgenError as error:
            errors.append(error)
    errors += [
        NotFoundError(predicted[name][0], "no ground truth of that name", "add it or remove the prediction")
        for name in sorted(predicted.keys() - true.keys())
    ]
    errors += [
        NotFoundError(true[name][0], "no prediction of that name", "predict it or remove the ground truth")
        for name in sorted(true.keys() - predicted.keys())
    ]
    pairs: list[_Pair] = []
    for name in sorted(predicted.keys() & true.keys()):
        prediction, truth = predicted[name][0], true[name][0]
        if prediction not in sizes or truth not in sizes:
            continue
        pair = _Pair(name, prediction, truth, sizes[prediction], sizes[truth])
        if mismatch := _size_error(pair, window):
            errors.append(mismatch)
        pairs.append(pair)
    raise_all(errors)
    return pairs


def _find_maps(folder: Path) -> dict[str, list[Path]]:
    """Return the depth maps below a folder by their path in it without ending, in the form in which names match."""
    if not folder.is_dir():
        raise NotFoundError(folder, "no such folder, expected one with .png or .npy depth maps", "check the path")
    found: defaultdict[str, list[Path]] = defaultdict(list)
    for path in list_files(folder, DEPTH_SUFFIXES, below=True, with_answers=True):
        found[match_key(path.relative_to(folder).with_suffix("").as_posix())].append(path)
    if not found:
        raise NotFoundError(folder, "no depth maps, expected .png or .npy files in it or below", "check the path")
    return dict(found)


def _size_error(pair: _Pair, window: Crop | str | None) -> DsgenError | None:
    """Return what is wrong with the shape of a pair, if anything is."""
    (height, width), (true_height, true_width) = pair.prediction_size, pair.truth_size
    if abs(width * true_height - height * true_width) > ASPECT_TOLERANCE * height * true_width:
        return DsgenError(
            pair.prediction,
            f"{height}x{width} (height x width), expected the proportions of the truth's {true_height}x{true_width} "
            f"to {ASPECT_TOLERANCE:.0%}",
            "predict the whole picture",
        )
    _, bottom, _, right = _crop_for(window, pair.truth_size)
    if bottom > true_height or right > true_width:
        return DsgenError(
            pair.truth,
            f"{true_height}x{true_width} (height x width), expected at least {bottom}x{right} for the crop",
            "make the crop smaller",
        )
    return None


def _read_size(path: Path) -> tuple[int, int]:
    """Read (height, width) from a map's header; a file of another kind is a `DsgenError`."""
    if path.suffix.lower() == ".npy":
        height, width = _open_npy(path).shape
        return height, width
    try:
        with path.open("rb") as file:
            head = file.read(26)
    except OSError as error:
        raise DamagedError(
            path, f"cannot be read ({reason_of(error, path)}), expected a PNG file", "replace it"
        ) from error
    if len(head) < 26 or head[:8] != b"\x89PNG\r\n\x1a\n" or head[12:16] != b"IHDR":
        raise DsgenError(path, "not a PNG file, expected a 16-bit grey PNG", "replace it")
    width, height, bits, colour = struct.unpack(">IIBB", head[16:26])
    if bits != 16 or colour != 0:
        kind = _COLOURS.get(colour, f"colour type {colour}")
        raise DsgenError(path, f"{bits}-bit {kind} PNG, expected 16-bit grey", "save depth as uint16")
    if not width or not height:
        raise DsgenError(path, f"{height}x{width} pixels, expected some", "replace it")
    return height, width


def _open_npy(path: Path) -> np.ndarray:
    """Map a .npy file into memory, checked to be (h,w) of floats."""
    try:
        depth: np.ndarray = np.lib.format.open_memmap(path, mode="r")
    except (OSError, ValueError, EOFError) as error:
        reason = f"cannot be read ({reason_of(error, path)}), expected a .npy file of floats"
        raise DamagedError(path, reason, "replace it") from error
    if depth.ndim != 2 or depth.dtype.kind != "f":
        shape = "x".join(map(str, depth.shape))
        raise DsgenError(path, f"{depth.dtype} of shape {shape}, expected two-dimensional float metres", "convert it")
    if not depth.size:
        raise DsgenError(path, f"shape {depth.shape[0]}x{depth.shape[1]}, expected some pixels", "replace it")
    return depth


def _read_depth(path: Path, unit_m: float, png_unit_m: float) -> np.ndarray:
    """Read a map to (h,w) f8 metres, 0 where there is no depth; `unit_m` multiplies either kind of file."""
    if path.suffix.lower() == ".npy":
        depth = np.array(_open_npy(path), np.float64)
    else:
        depth = images.read_depth_png(path).astype(np.float64) * png_unit_m
    return np.where(np.isfinite(depth) & (depth > 0), depth, 0.0) * unit_m


def _read_pairs(
    pairs: list[_Pair], png_unit_m: float, scale_prediction: float, window: Crop | str | None
) -> Iterator[tuple[_Pair, np.ndarray, np.ndarray]]:
    """Yield every pair with its prediction, at the truth's size, and its truth, both cropped."""
    for pair in pairs:
        truth_m = _read_depth(pair.truth, 1.0, png_unit_m)
        prediction_m = resize_depth(_read_depth(pair.prediction, scale_prediction, png_unit_m), *pair.truth_size)
        top, bottom, left, right = _crop_for(window, pair.truth_size)
        yield pair, prediction_m[top:bottom, left:right], truth_m[top:bottom, left:right]


def resize_depth(depth_m: np.ndarray, height: int, width: int) -> np.ndarray:
    """Resize a float map bilinearly, half-pixel centres; 0 marks no depth and lends nothing to its neighbours.

    A pixel has depth where at least half of the bilinear weight falls on pixels that have; theirs is the mean then.
    """
    if depth_m.shape == (height, width):
        return depth_m
    larger: np.ndarray = cv2.resize(depth_m, (width, height), interpolation=cv2.INTER_LINEAR)
    if depth_m.all():
        return larger
    share = cv2.resize((depth_m > 0).astype(depth_m.dtype), (width, height), interpolation=cv2.INTER_LINEAR)
    return np.divide(larger, share, out=np.zeros_like(larger), where=share >= 0.5)


def _protocol(
    predictions: Path,
    ground_truth: Path,
    min_depth_m: float,
    max_depth_m: float,
    crop: str | None,
    png_unit_m: float,
    scale_prediction: float,
) -> dict[str, Any]:
    """Spell out every setting and rule, in words and numbers."""
    limits = f"{min_depth_m:g}..{max_depth_m:g} m"
    top, bottom, left, right = EIGEN_CROP
    if crop is None:
        region = "whole picture"
    elif crop == "eigen":
        region = (
            f"rows {top}:{bottom} and columns {left}:{right} of {EIGEN_SIZE[0]}x{EIGEN_SIZE[1]}, "
            "in proportion and rounded half up at other sizes"
        )
    else:
        region = "rows {}:{} and columns {}:{}".format(*(int(number) for number in crop.split(",")))
    summary = (
        f"d = truth, p = prediction, at the truth's size (p resized bilinearly where it differs); {region}; "
        f"pixels with d in {limits}; p clamped to {limits}, missing p = {min_depth_m:g} m; "
        "median-scaled: p * median(d) / median(p) before the clamp; per picture, then the mean over pictures"
    )
    return {
        "summary": summary,
        "predictions": str(predictions),
        "ground_truth": str(ground_truth),
        "min_depth_m": min_depth_m,
        "max_depth_m": max_depth_m,
        "crop": crop,
        "crop_region": f"{region}; in the truth's pixels, the end of a range is not part of it",
        "png_unit_m": png_unit_m,
        "scale_prediction": scale_prediction,
        "units": (
            f"16-bit PNG values times {png_unit_m:g} and .npy values as they are give metres; "
            f"predictions are multiplied by {scale_prediction:g} besides"
        ),
        "no_depth": "0; in .npy also nan, infinity and negative values",
        "resize": (
            "a prediction of another size is resized to the truth's: bilinear, half-pixel centres, no prefilter "
            "(cv2.INTER_LINEAR); weights are normalised over pixels with depth, and a pixel has none where less than "
            f"half of the weight falls on such; proportions may differ by {ASPECT_TOLERANCE:.0%}"
        ),
        "evaluated_pixels": f"those inside the crop whose truth lies within {limits}, limits included",
        "clamp": f"predictions are clamped to {limits}",
        "missing_predictions": f"an evaluated pixel without predicted depth counts as {min_depth_m:g} m",
        "median_scaling": (
            "p * median(d) / median(p), medians over the evaluated pixels with predicted depth, before the clamp"
        ),
        "averaging": "scores per picture, then the mean over pictures; pictures without an evaluated pixel left out",
        "metrics": dict(METRICS),
        "edges": EDGE_PROTOCOL,
        "edge_metrics": dict(EDGE_METRICS),
    }
