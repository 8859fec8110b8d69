"""The objectives: none for a perfect answer, more for a worse one, a way down from a blank one."""

import torch

from dsgen.losses import depth_loss, mask_loss


def scene(count: int = 3, size: int = 24) -> tuple[torch.Tensor, torch.Tensor]:
    """Make masks of growing squares and smooth depths in metres."""
    mask = torch.zeros(count, 1, size, size)
    for k in range(count):
        mask[k, 0, 4 : 8 + 3 * k, 5 : 9 + 3 * k] = 1
    slope = torch.linspace(1, 6, size).expand(count, 1, size, size)
    return mask, slope - mask


def test_a_perfect_answer_costs_nothing():
    """Both losses vanish at the truth."""
    mask, depth_m = scene()
    assert mask_loss((mask - 0.5) * 200, mask) < 1e-5
    assert depth_loss(depth_m / 10, depth_m) < 1e-5


def test_worse_answers_cost_more():
    """The losses grow as an answer leaves the truth."""
    mask, depth_m = scene()
    masks = [mask_loss((mask - 0.5) * 2 * sure, mask).item() for sure in (8, 2, 0, -2)]
    depths = [depth_loss(depth_m / 10 + off, depth_m).item() for off in (0, 0.05, 0.2, 0.8)]
    noise = torch.rand(depth_m.shape, generator=torch.Generator().manual_seed(0))
    assert masks == sorted(masks)
    assert depths == sorted(depths)
    assert len({*masks, *depths}) == 8
    # noise that leaves the mean where it is costs more than its L1: the structure counts too
    off = 0.1 * (noise - 0.5).sign()
    assert depth_loss(depth_m / 10 + off, depth_m) > off.abs().mean() + 0.1


def test_a_blank_mask_is_no_resting_place():
    """However sure of nothing, the foreground's logits are pushed up and cost more than the share of the mask."""
    mask, _ = scene()
    logits = torch.full_like(mask, -4.0, requires_grad=True)
    loss = mask_loss(logits, mask)
    loss.backward()
    assert loss > 0.9
    assert (logits.grad[mask == 1] < 0).all()


def test_small_foregrounds_count_like_large_ones():
    """Missing the smallest of the squares costs the Dice term as much as missing the largest."""
    mask, _ = scene()
    costs = []
    for missed in range(3):
        answer = (mask - 0.5) * 200
        answer[missed] = -100
        cross_entropy = torch.nn.functional.binary_cross_entropy_with_logits(answer, mask)
        costs.append((mask_loss(answer, mask) - cross_entropy).item())
    assert max(costs) - min(costs) < 0.03
    assert min(costs) > 0.3


def test_missing_depth_is_left_out():
    """Pixels without a true depth give no loss and no gradient, and a batch of them costs 0."""
    _, depth_m = scene()
    holes = depth_m.clone()
    holes[:, :, ::3, ::4] = 0
    raw = torch.where(holes > 0, depth_m / 10, 0.9).requires_grad_()
    loss = depth_loss(raw, holes)
    assert loss < 1e-5
    wrong = torch.full_like(depth_m, 0.9, requires_grad=True)
    depth_loss(wrong, holes).backward()
    assert (wrong.grad[holes == 0] == 0).all()
    assert (wrong.grad[holes > 0] != 0).any()
    nothing = depth_loss(wrong, torch.zeros_like(depth_m))
    nothing.backward()
    assert nothing == 0


def test_half_precision_answers_are_scored_in_full():
    """Answers of an autocast network give the loss of the same numbers in float32."""
    mask, depth_m = scene()
    draw = torch.Generator().manual_seed(0)
    answer = torch.randn(mask.shape, generator=draw).bfloat16()
    assert mask_loss(answer, mask).dtype == depth_loss(answer, depth_m).dtype == torch.float32
    assert mask_loss(answer, mask) == mask_loss(answer.float(), mask)
    assert depth_loss(answer, depth_m) == depth_loss(answer.float(), depth_m)
