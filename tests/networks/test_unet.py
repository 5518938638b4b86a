"""What only the U-Net promises."""

from __future__ import annotations

import pytest
import torch
from diffusers.models.attention_processor import Attention
from torch import nn
from torch.func import jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from ndm.networks import UNet


def small(**options) -> UNet:
    return UNet(channels=1, width=8, multipliers=(1, 2), groups=4, zero_init=False, **options).double()


def point() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(3, 1, 8, 8, dtype=torch.float64), torch.rand(3, dtype=torch.float64)


@pytest.mark.parametrize("attention", [False, True])
def test_channels_last_changes_nothing_but_the_layout(attention: bool) -> None:
    net = small(attention=attention)
    (z, u), (dz, du) = point(), point()
    with sdpa_kernel(SDPBackend.MATH):
        output, derivative = jvp(net, (z, u), (dz, du))
        net = net.to(memory_format=torch.channels_last)
        moved = tuple(x.to(memory_format=torch.channels_last) for x in (z, dz))
        output_last, derivative_last = jvp(net, (moved[0], u), (moved[1], du))
        primal = net(moved[0], u)
    torch.testing.assert_close(output_last, output)
    torch.testing.assert_close(derivative_last, derivative)
    torch.testing.assert_close(primal, output)
    torch.testing.assert_close(primal.norm(), output.norm())


@pytest.mark.parametrize("attention", [False, True])
def test_inputs_of_norms_are_copied_in_forward_mode_only(attention: bool) -> None:
    net = small(attention=attention)
    (z, u), (dz, du) = point(), point()
    norm = next(m for m in net.modules() if isinstance(m, nn.GroupNorm))
    seen: list[bool] = []
    (hook,) = norm._forward_pre_hooks.values()
    norm.register_forward_pre_hook(lambda module, inputs: seen.append(hook(module, inputs) is not None))
    net(z, u)
    with sdpa_kernel(SDPBackend.MATH):
        jvp(net, (z, u), (dz, du))
    net(z, u)
    assert seen == [False, True, False]


def test_attention_sits_at_the_lowest_resolution() -> None:
    def count(net: UNet) -> int:
        return sum(isinstance(m, Attention) for m in net.modules())

    assert count(small(attention=False)) == 0
    # One for the way down, one for the middle, and two for the way up, which has one block more.
    assert count(small(attention=True)) == 4


def test_images_of_any_divisible_size_will_do() -> None:
    net = UNet(channels=3, width=8, multipliers=(1, 1, 2), blocks=2)
    for size in [(8, 8), (4, 12)]:
        assert net(torch.randn(2, 3, *size), torch.rand(2)).shape == (2, 3, *size)


@pytest.mark.parametrize("shape", [(1, 7, 8), (1, 8, 7), (2, 8, 8), (8, 8)])
def test_images_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"images \(B, 1, H, W\) with H and W divisible by 2"):
        small()(torch.randn(3, *shape), torch.rand(3))


def test_groups_must_divide_the_channels() -> None:
    with pytest.raises(ValueError, match=r"groups=8 must divide .* \(12, 24\)"):
        UNet(channels=1, width=12)
