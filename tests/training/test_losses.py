"""The objectives: none for a perfect answer, more for a worse one, a way down from a blank one."""

import math

import pytest
import torch

from dsgen.training.losses import DEPTH_LOSSES, MASK_LOSSES, Loss, bce_dice, dissimilarity, l1_ssim, soft_iou

EVERY_MASK_LOSS = pytest.mark.parametrize("loss", MASK_LOSSES.values(), ids=MASK_LOSSES)
EVERY_DEPTH_LOSS = pytest.mark.parametrize("loss", DEPTH_LOSSES.values(), ids=DEPTH_LOSSES)


def scene(count: int = 3, size: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    """Make masks of growing squares and smooth depths in metres."""
    mask = torch.zeros(count, 1, size, size)
    for k in range(count):
        mask[k, 0, 4 : 8 + 3 * k, 5 : 9 + 3 * k] = 1
    slope = torch.linspace(1, 6, size).expand(count, 1, size, size)
    return mask, slope - mask


@EVERY_MASK_LOSS
def test_a_perfect_mask_costs_nothing_and_worse_ones_more(loss: Loss):
    """It vanishes at the truth and grows, for every sample, as an answer leaves it."""
    mask, _ = scene()
    assert loss((mask - 0.5) * 200, mask).shape == (3,)
    assert (loss((mask - 0.5) * 200, mask) < 1e-5).all()
    costs = torch.stack([loss((mask - 0.5) * 2 * sure, mask) for sure in (8, 2, 0, -2)])
    assert (costs.diff(dim=0) > 0).all()


@EVERY_DEPTH_LOSS
def test_a_perfect_depth_costs_nothing_and_worse_ones_more(loss: Loss):
    """It vanishes at the truth and grows, for every sample, as an answer leaves it."""
    _, depth_m = scene()
    assert loss(depth_m / 10, depth_m).shape == (3,)
    assert (loss(depth_m / 10, depth_m) < 1e-5).all()
    costs = torch.stack([loss(depth_m / 10 + off, depth_m) for off in (0, 0.05, 0.2, 0.8)])
    assert (costs.diff(dim=0) > 0).all()


def test_structure_counts_beside_the_mean():
    """Noise that leaves the mean where it is costs more than its L1."""
    _, depth_m = scene()
    off = 0.1 * (torch.rand(depth_m.shape, generator=torch.Generator().manual_seed(0)) - 0.5).sign()
    assert (l1_ssim(depth_m / 10 + off, depth_m) > 0.1 + 0.1).all()


def test_the_formulas():
    """Two pixels by hand: p = 1/2 and 1/2, of which one is foreground; two halves of a wall by hand for L1."""
    logits, mask = torch.zeros(1, 1, 1, 2), torch.tensor([0.0, 1.0]).view(1, 1, 1, 2)
    assert soft_iou(logits, mask).item() == pytest.approx(1 - 0.5 / 1.5)
    assert bce_dice(logits, mask).item() == pytest.approx(math.log(2) + 1 - (2 * 0.5 + 1) / (1 + 1 + 1))
    depth_m = torch.full((1, 1, 24, 24), 2.0)
    raw = depth_m / 10
    raw[..., 12:] = 0.5
    assert (l1_ssim(raw, depth_m) - dissimilarity(raw, depth_m) / 2).item() == pytest.approx(0.3 / 2)


def test_a_blank_mask_is_no_resting_place():
    """However sure of nothing, the foreground's logits are pushed up and cost more than the share of the mask."""
    mask, _ = scene()
    logits = torch.full_like(mask, -4.0, requires_grad=True)
    loss = bce_dice(logits, mask).mean()
    loss.backward()
    assert loss > 0.9
    assert (logits.grad[mask == 1] < 0).all()


def test_small_foregrounds_count_like_large_ones():
    """Missing the smallest of the squares costs the Dice term as much as missing the largest."""
    mask, _ = scene()
    costs = bce_dice(torch.full_like(mask, -100), mask) - MASK_LOSSES["bce"](torch.full_like(mask, -100), mask)
    assert (costs > 0.9).all()
    assert costs.max() - costs.min() < 0.06


def test_nothing_predicted_of_nothing_is_perfect():
    """An empty mask answered by none costs nothing."""
    nothing = torch.zeros(2, 1, 12, 12)
    for loss in MASK_LOSSES.values():
        assert (loss(nothing - 200, nothing) < 1e-5).all()


@EVERY_DEPTH_LOSS
def test_missing_depth_is_left_out(loss: Loss):
    """Pixels without a true depth give no loss and no gradient, and a sample without any costs 0."""
    _, depth_m = scene()
    holes = depth_m.clone()
    holes[:, :, ::3, ::4] = 0
    raw = torch.where(holes > 0, depth_m / 10, 0.9).requires_grad_()
    assert (loss(raw, holes) < 1e-5).all()
    wrong = torch.rand(depth_m.shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
    holes[1] = 0
    costs = loss(wrong, holes)
    costs.sum().backward()
    assert (costs > 0).tolist() == [True, False, True]
    assert (wrong.grad[holes == 0] == 0).all()
    assert (wrong.grad[holes > 0] != 0).any()


def test_an_answer_that_is_no_number_is_not_hidden():
    """Where there is a truth, no loss takes nan for a missing one."""
    mask, depth_m = scene()
    for losses, truth in ((MASK_LOSSES, mask), (DEPTH_LOSSES, depth_m)):
        for loss in losses.values():
            assert loss(torch.full_like(mask, math.nan), truth).isnan().all()


def test_half_precision_answers_are_scored_in_full():
    """Answers of an autocast network give the loss of the same numbers in float32."""
    mask, depth_m = scene()
    answer = torch.randn(mask.shape, generator=torch.Generator().manual_seed(0)).bfloat16()
    for losses, truth in ((MASK_LOSSES, mask), (DEPTH_LOSSES, depth_m)):
        for loss in losses.values():
            assert loss(answer, truth).dtype == torch.float32
            assert torch.equal(loss(answer, truth), loss(answer.float(), truth))
