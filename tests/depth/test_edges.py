"""Scores of depth edges, on maps whose edges are known."""

import time

import cv2
import numpy as np
import pytest

from dsgen.depth.edges import EDGE_METRICS, edge_scores

ALL = np.ones((120, 160), bool)  # tolerance 1 pixel


def step(column=80, near=1.0, far=3.0, shape=(120, 160)):
    """Return a map with one vertical step."""
    depth = np.full(shape, far)
    depth[:, :column] = near
    return depth


@pytest.mark.parametrize("factor", [1.0, 0.3, 7.0])
def test_a_perfect_prediction_is_perfect_at_any_scale(factor):
    """A factor on the depth changes no score."""
    assert edge_scores(step() * factor, step(), ALL) == {
        "edge_precision": 1,
        "edge_recall": 1,
        "edge_f": 1,
        "edge_accuracy": 0,
        "edge_completeness": 0,
    }


def test_a_blurred_step_loses_recall():
    """A slope of less than 10 % a pixel is no edge."""
    found = edge_scores(cv2.GaussianBlur(step(), (0, 0), 20), step(), ALL)
    assert found["edge_precision"] is None
    assert (found["edge_recall"], found["edge_f"]) == (0, 0)
    assert (found["edge_accuracy"], found["edge_completeness"]) == (10, 10)


@pytest.mark.parametrize(("shape", "shift", "expected"), [((120, 160), 1, 1), ((120, 160), 3, 0), ((480, 640), 2, 1)])
def test_a_shifted_edge_counts_within_the_tolerance(shape, shift, expected):
    """The tolerance is 1 pixel at 160x120 and 2 at 640x480; distances are the shift."""
    found = edge_scores(step(80 + shift, shape=shape), step(shape=shape), np.ones(shape, bool))
    assert found["edge_precision"] == found["edge_recall"] == found["edge_f"] == expected
    assert found["edge_accuracy"] == found["edge_completeness"] == pytest.approx(shift, abs=0.01)


def test_a_shift_of_three_is_outside_at_full_size():
    """2 pixels at 640x480 do not reach 3."""
    shape = (480, 640)
    assert edge_scores(step(83, shape=shape), step(shape=shape), np.ones(shape, bool))["edge_f"] == 0


def test_an_invented_edge_loses_precision():
    """Half of the edge pixels are wrong; all true ones are found."""
    prediction = step()
    prediction[:, :20] = 0.5
    found = edge_scores(prediction, step(), ALL)
    assert (found["edge_precision"], found["edge_recall"]) == (0.5, 1)
    assert found["edge_f"] == pytest.approx(2 / 3)


def test_holes_make_no_edges():
    """Holes of the truth, of the prediction, and pixels that do not count are no edges on flat ground."""
    truth, prediction, counts = np.full((120, 160), 2.0), np.full((120, 160), 2.0), ALL.copy()
    truth[20:40, 20:40] = 0
    prediction[60:80, 60:80] = 0
    prediction[90:95, 90:95] = np.nan
    counts[100:110] = False
    assert edge_scores(prediction, truth, counts) == dict.fromkeys(EDGE_METRICS)
    with_step = step()
    with_step[30:60, 20:40] = 0
    assert edge_scores(step(), with_step, ALL)["edge_f"] == 1
    assert edge_scores(with_step, step(), ALL)["edge_f"] == 1


def test_a_predicted_edge_beside_a_hole_is_not_judged():
    """Where the sensor has a hole along an outline, the edge predicted there is neither right nor wrong."""
    truth = step()
    truth[:60, 78:83] = 0
    prediction = step()
    prediction[:58, 78:] = 3
    assert edge_scores(prediction, truth, ALL)["edge_precision"] == 1
    assert edge_scores(prediction, step(), ALL)["edge_precision"] < 0.6


def test_it_is_fast():
    """A map of 640x480 takes far less than its reading."""
    truth = step(shape=(480, 640))
    truth[100:150, 100:400] = 0
    counts = truth > 0
    taken = []
    for _ in range(5):
        start = time.perf_counter()
        edge_scores(step(shape=(480, 640)), truth, counts)
        taken.append(time.perf_counter() - start)
    print(f"{min(taken) * 1000:.1f} ms")
    assert min(taken) < 0.2
