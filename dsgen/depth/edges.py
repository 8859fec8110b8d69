"""How sharp a depth map is: its edges against those of the true map, in ways that no factor on the depth changes.

Maps are (h,w) metres; 0, negative, nan and infinity mean no depth. `counts` (h,w) marks the pixels that are scored;
what lies outside it makes no edges.
"""

import math

import cv2
import numpy as np

EDGE_METRICS = {
    "edge_precision": "share of predicted edge pixels that have a true one within the tolerance",
    "edge_recall": "share of true edge pixels that have a predicted one within the tolerance",
    "edge_f": "2 * precision * recall / (precision + recall)",
    "edge_accuracy": "mean distance of predicted Canny edges to true ones, over those nearer than 10 pixels, in pixels",
    "edge_completeness": "mean distance of true Canny edges to predicted ones, at most 10 each, in pixels",
}
EDGE_RATIO = 1.10
TOLERANCE = 0.0025  # of the diagonal: 2 pixels at 640x480
FARTHEST = 10.0  # pixels
_CANNY_SIGMA = math.sqrt(2)
_CANNY_LOW, _CANNY_HIGH = 0.1, 0.2
_STEPS = 4000  # of a Sobel derivative of 1, which is at most 4, in 16 bits
EDGE_PROTOCOL = (
    f"precision, recall and F: an edge pixel is one with a 4-neighbour more than {EDGE_RATIO:g} times as far, both "
    f"evaluated and with depth; the tolerance is {TOLERANCE:.2%} of the evaluated region's diagonal, rounded, at "
    "least 1 pixel; predicted edges without a true one, but within the tolerance of a pixel whose truth is missing or "
    "outside the limits, are left out; without predicted edges precision is null and F 0. "
    "Accuracy and completeness (after iBims-1, arXiv 1805.01328): "
    f"Canny edges of (depth - least) / (most - least), sigma sqrt 2, thresholds {_CANNY_LOW:g} and {_CANNY_HIGH:g} of "
    "the 3x3 Sobel gradient, pixels without depth filled from the nearest and their edges dropped; "
    "distances by 5x5 chamfer; "
    f"{FARTHEST:g} pixels where no predicted edge is near. Null where the truth has no such edges; means over the "
    "pictures that have a value"
)


def edge_scores(prediction_m: np.ndarray, truth_m: np.ndarray, counts: np.ndarray) -> dict[str, float | None]:
    """Score the edges of a depth map by every entry of `EDGE_METRICS`; None is a score that has no value.

    Edges by ratio follow Depth Pro, arXiv 2410.02073, with one ratio; accuracy and completeness follow iBims-1, Koch
    et al., arXiv 1805.01328. `EDGE_PROTOCOL` states the rules.
    """
    prediction_m, truth_m = prediction_m.astype(np.float32), truth_m.astype(np.float32)
    counts = counts & _has_depth(truth_m)
    predicted = counts & _has_depth(prediction_m)
    return {
        **_score_ratio_edges(prediction_m, predicted, truth_m, counts),
        **_score_canny_edges(prediction_m, predicted, truth_m, counts),
    }


def ratio_edges(depth_m: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return (h,w) bool: pixels with a 4-neighbour more than `EDGE_RATIO` times as far, where both count.

    >>> ratio_edges(np.array([[1.0, 1.0, 1.2]]), np.ones((1, 3), bool)).tolist()
    [[False, True, False]]
    """
    edges = np.zeros(depth_m.shape, bool)
    for axis in (0, 1):
        depth, valid, found = (each.swapaxes(0, axis) for each in (depth_m, counts, edges))
        both = valid[1:] & valid[:-1]
        found[:-1] |= both & (depth[1:] > EDGE_RATIO * depth[:-1])
        found[1:] |= both & (depth[:-1] > EDGE_RATIO * depth[1:])
    return edges


def canny_edges(depth_m: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return (h,w) bool: Canny edges of the depth, scaled to 0..1 over the pixels that count."""
    if not counts.any():
        return np.zeros(depth_m.shape, bool)
    depth = _fill(depth_m.astype(np.float32), counts)
    least, most = float(depth.min()), float(depth.max())
    if most <= least:
        return np.zeros(depth_m.shape, bool)
    smooth = cv2.GaussianBlur((depth - least) / (most - least), (0, 0), _CANNY_SIGMA)
    x, y = ((cv2.Sobel(smooth, cv2.CV_32F, *way) * _STEPS).astype(np.int16) for way in ((1, 0), (0, 1)))
    found = cv2.Canny(x, y, _CANNY_LOW * _STEPS, _CANNY_HIGH * _STEPS, L2gradient=True)
    return (found > 0) & counts


def _has_depth(depth_m: np.ndarray) -> np.ndarray:
    return np.isfinite(depth_m) & (depth_m > 0)


def _fill(depth: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Give the pixels that do not count the depth of the nearest that does."""
    if counts.all():
        return depth
    _, nearest = cv2.distanceTransformWithLabels(
        (~counts).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    by_label = np.zeros(int(nearest.max()) + 1, depth.dtype)
    by_label[nearest[counts]] = depth[counts]
    return by_label[nearest]


def _distance_to(marked: np.ndarray) -> np.ndarray:
    """Return how many pixels the nearest marked pixel is away; infinity without any."""
    if not marked.any():
        return np.full(marked.shape, np.inf, np.float32)
    return cv2.distanceTransform((~marked).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5)


def _score_ratio_edges(
    prediction_m: np.ndarray, predicted: np.ndarray, truth_m: np.ndarray, counts: np.ndarray
) -> dict[str, float | None]:
    found, true = ratio_edges(prediction_m, predicted), ratio_edges(truth_m, counts)
    if not true.any():
        return {"edge_precision": None, "edge_recall": None, "edge_f": None}
    tolerance = max(1, round(TOLERANCE * math.hypot(*truth_m.shape)))
    right = found & (_distance_to(true) <= tolerance)
    wrong = found & ~right & (_distance_to(~counts) > tolerance)
    judged = int(np.count_nonzero(right)) + int(np.count_nonzero(wrong))
    precision = float(np.count_nonzero(right) / judged) if judged else None
    recall = float(np.mean(_distance_to(found)[true] <= tolerance))
    total = (precision or 0.0) + recall
    return {
        "edge_precision": precision,
        "edge_recall": recall,
        "edge_f": 2 * (precision or 0.0) * recall / total if total else 0.0,
    }


def _score_canny_edges(
    prediction_m: np.ndarray, predicted: np.ndarray, truth_m: np.ndarray, counts: np.ndarray
) -> dict[str, float | None]:
    found, true = canny_edges(prediction_m, predicted), canny_edges(truth_m, counts)
    if not true.any():
        return {"edge_accuracy": None, "edge_completeness": None}
    distances = _distance_to(true)[found]
    near = distances[distances < FARTHEST]
    return {
        "edge_accuracy": float(near.mean()) if near.size else FARTHEST,
        "edge_completeness": float(np.minimum(_distance_to(found)[true], FARTHEST).mean()),
    }
