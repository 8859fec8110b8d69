"""Scores against plain numpy, pixel by pixel, and SSIM against scikit-image."""

import math

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

from dsgen.training import metrics

RNG = np.random.default_rng(5)
LOGITS = RNG.normal(0, 2, (4, 1, 9, 7)).astype(np.float32)
MASKS = (RNG.random((4, 1, 9, 7)) < [[[[0.3]]], [[[0.5]]], [[[0.02]]], [[[0.9]]]]).astype(np.float32)
DEPTHS = RNG.uniform(0.5, 9, (4, 1, 9, 7)).astype(np.float32)
TRUE_DEPTHS = np.where(RNG.random((4, 1, 9, 7)) < 0.3, 0, RNG.uniform(0.2, 12, (4, 1, 9, 7))).astype(np.float32)


def slow_overlap(logits: np.ndarray, truth: np.ndarray) -> tuple[int, int, int]:
    """Count predicted, true, and both, one pixel at a time."""
    pairs = [(a > 0, b == 1) for a, b in zip(logits.ravel().tolist(), truth.ravel().tolist(), strict=True)]
    return sum(a for a, _ in pairs), sum(b for _, b in pairs), sum(a and b for a, b in pairs)


def slow_depths(depth: np.ndarray, truth: np.ndarray) -> list[tuple[float, float]]:
    """List the pairs whose truth lies within 0.1..10 m."""
    pairs = zip(depth.ravel().tolist(), truth.ravel().tolist(), strict=True)
    return [(d, t) for d, t in pairs if 0.1 <= t <= 10]


def oracle(name: str, answer: np.ndarray, truth: np.ndarray) -> float:
    """Compute a score of one sample by its formula, in double precision."""
    if name in ("iou", "dice"):
        predicted, true, both = slow_overlap(answer, truth)
        return both / (predicted + true - both) if name == "iou" else 2 * both / (predicted + true)
    if name == "bce":
        p = 1 / (1 + np.exp(-answer.astype(np.float64)))
        return float(-np.where(truth == 1, np.log(p), np.log(1 - p)).mean())
    pairs = slow_depths(answer, truth)
    terms = {
        "abs_rel": [abs(d - t) / t for d, t in pairs],
        "rmse": [(d - t) ** 2 for d, t in pairs],
        "delta1": [max(d / t, t / d) < 1.25 for d, t in pairs],
    }[name]
    mean = sum(terms) / len(terms)
    return math.sqrt(mean) if name == "rmse" else mean


@pytest.mark.parametrize("name", ["iou", "dice", "bce", "abs_rel", "rmse", "delta1"])
def test_scores_equal_their_formulas(name):
    """Every sample's score is what its formula gives, whatever the other samples are."""
    answer, truth = (LOGITS, MASKS) if name in ("iou", "dice", "bce") else (DEPTHS, TRUE_DEPTHS)
    found = getattr(metrics, name)(torch.from_numpy(answer), torch.from_numpy(truth))
    expected = [oracle(name, a, t) for a, t in zip(answer, truth, strict=True)]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5)


def test_empty_masks():
    """Nothing predicted where nothing is scores 1; anything predicted there, or nothing where something is, 0."""
    nothing, something = torch.full((1, 1, 4, 4), -1.0), torch.full((1, 1, 4, 4), 1.0)
    empty, full = torch.zeros(1, 1, 4, 4), torch.ones(1, 1, 4, 4)
    for score in (metrics.iou, metrics.dice):
        assert score(nothing, empty).tolist() == [1]
        assert score(something, full).tolist() == [1]
        assert score(something, empty).tolist() == score(nothing, full).tolist() == [0]


def test_blind_bce_is_what_the_best_constant_gets():
    """No constant answer has a lower cross-entropy, and the logit of the mask's share reaches it."""
    truth = torch.from_numpy(MASKS)
    floor = metrics.blind_bce(truth)
    constants = torch.linspace(-6, 6, 241)
    reached = torch.stack([metrics.bce(torch.full_like(truth, c.item()), truth) for c in constants]).min(0).values
    assert (reached >= floor - 1e-6).all()
    torch.testing.assert_close(reached, floor, atol=1e-3, rtol=0)
    assert metrics.blind_bce(torch.zeros(1, 1, 3, 3)).tolist() == [0]


def test_depth_outside_the_range_does_not_count():
    """What is predicted where the truth is 0 or beyond 10 m changes no score."""
    truth = torch.from_numpy(TRUE_DEPTHS)
    depth = torch.from_numpy(DEPTHS)
    other = torch.where(metrics.valid_depth(truth), depth, 3.21)
    assert not torch.equal(depth, other)
    for score in (metrics.abs_rel, metrics.rmse, metrics.delta1):
        assert torch.equal(score(depth, truth), score(other, truth))


def test_a_sample_without_depth_scores_nan():
    """No pixel that counts, no score."""
    nowhere = torch.zeros(1, 1, 16, 16)
    assert metrics.abs_rel(nowhere + 1, nowhere).isnan().all()
    assert metrics.ssim(nowhere + 1, nowhere, 10.0, metrics.valid_depth(nowhere)).isnan().all()


@pytest.mark.parametrize("data_range", [1.0, 10.0])
def test_ssim_equals_scikit_image(data_range):
    """With every pixel valid, SSIM is scikit-image's with the settings of the paper."""
    rng = np.random.default_rng(0)
    a = rng.random((3, 1, 24, 31)) * data_range
    b = np.clip(a + rng.normal(0, 0.2 * data_range, a.shape), 0, data_range)
    b[2] = a[2]
    expected = [
        structural_similarity(
            x[0], y[0], data_range=data_range, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        for x, y in zip(a, b, strict=True)
    ]
    found = metrics.ssim(torch.from_numpy(a), torch.from_numpy(b), data_range)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-4)
    np.testing.assert_allclose(found[2].item(), 1, atol=1e-6)


def test_ssim_does_not_see_invalid_pixels():
    """Whatever stands where nothing is known, SSIM is the same, and 1 for an answer right everywhere else."""
    rng = np.random.default_rng(1)
    truth = torch.from_numpy(rng.random((2, 1, 24, 24)).astype(np.float32))
    guess = torch.from_numpy(rng.random((2, 1, 24, 24)).astype(np.float32))
    valid = torch.from_numpy(rng.random((2, 1, 24, 24)) < 0.7)
    wild = torch.where(valid, guess, float("nan"))
    assert torch.equal(metrics.ssim(wild, truth, 1.0, valid), metrics.ssim(guess, truth, 1.0, valid))
    right = metrics.ssim(torch.where(valid, truth, 50.0), truth, 1.0, valid)
    torch.testing.assert_close(right, torch.ones(2))
    assert (metrics.ssim(torch.where(valid, truth, 50.0), truth, 1.0) < 0.5).all()


def test_ssim_is_symmetric():
    """Neither picture is the reference."""
    a, b = torch.from_numpy(DEPTHS).repeat(1, 1, 2, 2), torch.from_numpy(TRUE_DEPTHS).repeat(1, 1, 2, 2)
    torch.testing.assert_close(metrics.ssim(a, b, 10.0), metrics.ssim(b, a, 10.0))
