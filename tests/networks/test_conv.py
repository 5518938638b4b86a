"""What only the stack of convolutions promises."""

from __future__ import annotations

import pytest
import torch

from ndm.networks import ConvNet


@pytest.mark.parametrize(("depth", "kernel", "reach"), [(3, 1, 0), (2, 3, 2), (3, 3, 3), (2, 5, 4)])
def test_output_sees_as_far_as_the_windows_reach(depth: int, kernel: int, reach: int) -> None:
    net = ConvNet(1, depth=depth, kernel=kernel, zero_init=False).double()
    z, u = torch.randn(1, 1, 17, 17, dtype=torch.float64), torch.rand(1, dtype=torch.float64)
    touched = z.clone()
    touched[0, 0, 8, 8] += 1
    rows, columns = torch.where((net(touched, u) - net(z, u))[0, 0].abs() > 1e-9)
    for seen in (rows, columns):
        assert (seen.min().item(), seen.max().item()) == (8 - reach, 8 + reach)


def test_conditions_scale_and_shift_each_channel() -> None:
    net = ConvNet(1, width=3, depth=2, classes=2, level=False, zero_init=False)
    z, labels = torch.randn(2, 1, 4, 4), torch.tensor([0, 2])
    scale, shift = net.modulation(net.embed_class(labels)).chunk(2, dim=1)
    inner = net.input(z) * (1 + scale)[:, :, None, None] + shift[:, :, None, None]
    torch.testing.assert_close(net(z, labels=labels), net.output(inner * torch.sigmoid(inner)))


def test_patches_are_convolutions_of_blocks_and_keep_every_head_in_its_place() -> None:
    """With one pixel to a window a block of 2x2 pixels is seen by its own block of the output, and by no other."""
    net = ConvNet(2, width=5, depth=3, kernel=1, heads=3, patch=2, zero_init=False).double()
    z, u = torch.randn(1, 2, 6, 4, dtype=torch.float64), torch.rand(1, dtype=torch.float64)
    touched = z.clone()
    touched[0, 1, 2, 3] += 1
    changed = (net(touched, u) - net(z, u))[0].abs() > 1e-12
    assert changed.shape == (6, 6, 4)
    assert changed[:, 2:4, 2:4].all()
    assert changed.sum() == 6 * 4


def test_a_patched_net_of_its_own_weights_is_the_identity() -> None:
    net = ConvNet(1, width=4, depth=2, kernel=1, heads=2, level=False, patch=2)
    with torch.no_grad():
        for layer in (net.input, net.output):
            layer.bias.zero_()
        net.input.weight.copy_(torch.eye(4)[..., None, None])
        net.input.bias += 100  # where SiLU is the identity
        net.output.weight.copy_(torch.cat([torch.eye(4), 2 * torch.eye(4)])[..., None, None])
    z = torch.randn(3, 1, 4, 6)
    once, twice = net(z).chunk(2, dim=1)
    torch.testing.assert_close(once, z + 100, rtol=0, atol=1e-4)
    torch.testing.assert_close(twice, 2 * (z + 100), rtol=0, atol=1e-4)


def test_sides_that_the_patches_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="6 x 7, are not divisible by patch=2"):
        ConvNet(1, patch=2)(torch.randn(3, 1, 6, 7), torch.rand(3))
    with pytest.raises(ValueError, match="at least 1, got 0"):
        ConvNet(1, patch=0)


@pytest.mark.parametrize("shape", [(2, 7, 8), (7, 8)])
def test_images_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"takes images \(B, 1, H, W\)"):
        ConvNet(1)(torch.randn(3, *shape), torch.rand(3))


@pytest.mark.parametrize("options", [{"depth": 1}, {"kernel": 2}, {"kernel": 0}], ids=str)
def test_impossible_stacks_are_refused(options: dict) -> None:
    with pytest.raises(ValueError, match=r"depth must be at least 2|kernel must be odd"):
        ConvNet(1, **options)
