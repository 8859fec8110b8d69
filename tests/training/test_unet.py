"""The two-headed U-Net: its size, the sizes it takes, and what reaches what."""

import pytest
import torch

from dsgen.training.unet import UNet, unet_metres


def pictures(height: int, width: int, count: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Make a random background and a random image."""
    draw = torch.Generator().manual_seed(0)
    return (
        torch.rand(count, 3, height, width, generator=draw),
        torch.rand(count, 3, height, width, generator=draw),
    )


def test_has_the_parameters_of_the_original():
    """At width 16 there are 2,161,666 parameters, most of them in two equal branches."""
    network = UNet()
    count = {name: sum(p.numel() for p in child.parameters()) for name, child in network.named_children()}
    assert sum(count.values()) == 2_161_666
    assert count["mask"] == count["depth"] > 100 * count["first"]


@pytest.mark.parametrize(("height", "width"), [(96, 96), (97, 65), (31, 33), (224, 16), (7, 1)])
def test_any_size_comes_back_as_it_went_in(height, width):
    """Mask and depth have the pictures' height and width, odd, long or tiny."""
    network = UNet(width=4).eval()
    with torch.no_grad():
        mask, depth = network(*pictures(height, width, 2))
    assert mask.shape == depth.shape == (2, 1, height, width)
    assert mask.isfinite().all()
    assert depth.isfinite().all()


def test_both_inputs_reach_both_answers():
    """A change of the background alone, or of the image alone, changes mask and depth."""
    torch.manual_seed(0)
    network = UNet(width=4).eval()
    background, image = pictures(32, 32)
    with torch.no_grad():
        before = network(background, image)
        for after in (network(1 - background, image), network(background, 1 - image)):
            assert all((a - b).abs().max() > 1e-4 for a, b in zip(after, before, strict=True))


@pytest.mark.parametrize(("answer", "reached", "spared"), [(0, "mask", "depth"), (1, "depth", "mask")])
def test_an_answer_trains_its_branch_and_the_shared_block(answer, reached, spared):
    """Every weight of the shared block and of the answer's own branch gets a gradient, the other branch none."""
    network = UNet(width=4)
    network(*pictures(32, 32, 2))[answer].square().mean().backward()
    for child in ("first", reached):
        weights = [p for name, p in getattr(network, child).named_parameters() if p.ndim == 4]
        assert weights
        assert all(p.grad is not None and p.grad.abs().max() > 0 for p in weights)
    assert all(p.grad is None for p in getattr(network, spared).parameters())


def test_dropout_adds_no_parameters_and_rests_when_predicting():
    """Dropout changes answers in training, none in evaluation."""
    network = UNet(width=4, dropout=0.5)
    assert [p.shape for p in network.parameters()] == [p.shape for p in UNet(width=4).parameters()]
    inputs = pictures(32, 32, 2)
    with torch.no_grad():
        assert not torch.equal(network(*inputs)[0], network(*inputs)[0])
        network.eval()
        assert torch.equal(network(*inputs)[0], network(*inputs)[0])


def test_raw_depth_counts_tens_of_metres():
    """Raw 0.25 is 2.5 m; what lies outside 0.1..10 m is clipped."""
    metres = unet_metres(torch.tensor([0.25, -1.0, 0.0, 7.0]))
    torch.testing.assert_close(metres, torch.tensor([2.5, 0.1, 0.1, 10.0]))
