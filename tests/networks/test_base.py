"""What the networks are made of."""

from __future__ import annotations

import torch
from torch import nn
from torch.func import jvp

from ndm.networks import LevelFeatures
from ndm.networks.base import Norm, checkpointed, in_forward_mode, in_full_precision


def test_level_features_are_sines_and_cosines_of_octaves() -> None:
    features = LevelFeatures(octaves=2)(torch.tensor([0.0, 0.25]))
    half = 0.5**0.5
    torch.testing.assert_close(features, torch.tensor([[0.0, 0, 0, 1, 1], [0.25, half, 1, half, 0]]))
    assert LevelFeatures(octaves=3)(torch.rand(4)).shape == (4, LevelFeatures(octaves=3).width)


def test_level_features_are_in_single_precision_at_least() -> None:
    u = torch.tensor([0.3, 0.7], dtype=torch.bfloat16)
    assert torch.equal(LevelFeatures()(u), LevelFeatures()(u.float()))
    assert LevelFeatures()(u.double()).dtype == torch.float64
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(LevelFeatures()(u.float()), LevelFeatures()(u))


def test_norm_is_layer_norm_over_the_last_dimension() -> None:
    norm = Norm(6)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    for shape in [(4, 6), (2, 3, 6)]:
        h = 3 * torch.randn(*shape) + 2
        truth = nn.functional.layer_norm(h, (6,), norm.weight, norm.bias)
        torch.testing.assert_close(norm(h), truth)
        torch.testing.assert_close(norm(h.bfloat16()), norm(h.bfloat16().float()), rtol=0, atol=0)


def test_full_precision_means_that_of_the_weights_whatever_autocast_says() -> None:
    layer, x = nn.Linear(5, 4), torch.randn(3, 5)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
        output = in_full_precision(layer, x)
    assert torch.equal(output, layer(x))


def test_forward_mode_is_seen_at_every_depth() -> None:
    seen = []

    def f(x: torch.Tensor) -> torch.Tensor:
        seen.append(in_forward_mode())
        return x.sin()

    x = torch.randn(3)
    f(x)
    jvp(lambda x: jvp(f, (x,), (x,))[1], (x,), (x,))
    jvp(f, (x,), (x,))
    f(x)
    assert seen == [False, True, True, False]


def test_checkpointed_blocks_are_computed_again_unless_in_forward_mode() -> None:
    calls = []

    def block(x: torch.Tensor) -> torch.Tensor:
        calls.append(x)
        return x.exp().sin()

    x = torch.randn(3, requires_grad=True)
    (gradient,) = torch.autograd.grad(checkpointed(block, x).sum(), x)
    assert len(calls) == 2
    torch.testing.assert_close(gradient, x.exp().cos() * x.exp())
    slope = jvp(lambda x: checkpointed(block, x), (x,), (torch.ones(3),))[1]
    torch.testing.assert_close(slope, gradient)
    torch.autograd.grad(slope.sum(), x)
    assert len(calls) == 3
