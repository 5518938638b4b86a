"""How often networks are run, and derivatives through attention."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import ndm


class Counting(nn.Module):
    def __init__(self, terms: int = 1) -> None:
        super().__init__()
        self.terms, self.calls, self.levels = terms, 0, []

    def forward(self, x: Tensor, u: Tensor | None = None) -> Tensor:
        self.calls += 1
        self.levels.append(u)
        return torch.cat([torch.sin((k + 1) * x) for k in range(self.terms)], dim=1)


def test_separable_runs_its_network_once_per_x() -> None:
    net = Counting(terms=4)
    curve = ndm.Separable(net, terms=4)(torch.randn(6, 3))
    curve(torch.rand(6))
    curve(torch.rand(9, 6))
    curve.with_derivative(torch.rand(5, 6))
    assert net.calls == 1
    assert net.levels == [None]


def test_neural_runs_its_network_once_per_call() -> None:
    net = Counting()
    curve = ndm.Neural(net)(torch.randn(6, 3))
    assert net.calls == 0
    for points in ((6,), (9, 6)):
        for ask in (curve, curve.displacement, curve.with_derivative):
            before = net.calls
            ask(torch.rand(points))
            assert net.calls == before + 1


def test_the_network_sees_the_noise_level_between_0_and_1() -> None:
    net = Counting()
    transform = ndm.Neural(net, gamma_range=(-10.0, 6.0))
    transform(torch.randn(3, 2))(torch.tensor([-10.0, -2.0, 6.0]))
    assert net.levels[0].tolist() == [0.0, 0.5, 1.0]


def test_separable_equals_its_formula() -> None:
    x, gamma = torch.randn(4, 3, dtype=torch.float64), torch.tensor([-8.0, -3.0, 0.0, 4.0], dtype=torch.float64)
    u = (gamma + 13.3) / 18.3
    expected = x + torch.sigmoid(gamma)[:, None] * (
        torch.sin(x)
        + 2**0.5 * torch.cos(torch.pi * u)[:, None] * torch.sin(2 * x)
        + 2**0.5 * torch.cos(2 * torch.pi * u)[:, None] * torch.sin(3 * x)
    )
    torch.testing.assert_close(ndm.Separable(Counting(3), terms=3)(x)(gamma), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("terms", [1, 3])
def test_separable_refuses_another_number_of_channels(terms: int) -> None:
    with pytest.raises(ValueError, match=r"terms=2"):
        ndm.Separable(Counting(terms), terms=2)(torch.zeros(5, 3))
    with pytest.raises(ValueError, match="at least one term"):
        ndm.Separable(Counting(), terms=0)


class Attentive(nn.Module):
    """Attention among an image's pixels, the noise level in the queries."""

    def __init__(self, channels: int = 2, width: int = 4) -> None:
        super().__init__()
        self.qkv = nn.Linear(channels, 3 * width)
        self.level = nn.Linear(1, width)
        self.out = nn.Linear(width, channels)

    def forward(self, x: Tensor, u: Tensor) -> Tensor:
        q, k, v = self.qkv(x.flatten(2).mT).chunk(3, dim=-1)
        q = q + self.level(torch.sin(3 * u)[:, None])[:, None]
        h = nn.functional.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
        return self.out(h).mT.reshape(x.shape)


def kernels() -> list[bool]:
    cuda = torch.backends.cuda
    return [cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled(), cuda.math_sdp_enabled()]


def test_the_derivative_through_attention_equals_finite_differences() -> None:
    transform = ndm.Neural(Attentive().double())
    x, gamma = torch.randn(5, 2, 3, 3, dtype=torch.float64), torch.linspace(-6, 4, 5, dtype=torch.float64)
    before, h = kernels(), 1e-5
    assert all(before)
    curve = transform(x)
    _, derivative = curve.with_derivative(gamma)
    assert kernels() == before
    torch.testing.assert_close(derivative, (curve(gamma + h) - curve(gamma - h)) / (2 * h), rtol=1e-6, atol=1e-9)

    p, value = transform.net.level.weight, lambda: curve.with_derivative(gamma)[1].square().sum()
    value().backward()
    with torch.no_grad():
        p[1, 0] += h
        high = value()
        p[1, 0] -= 2 * h
        low = value()
    assert p.grad[1, 0].item() == pytest.approx(((high - low) / (2 * h)).item(), rel=1e-5)


def test_fused_kernels_are_switched_on_again_after_an_error() -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor, u: Tensor) -> Tensor:
            raise RuntimeError("broken")

    before = kernels()
    with pytest.raises(RuntimeError, match="broken"):
        ndm.Neural(Broken())(torch.zeros(2, 2)).with_derivative(torch.zeros(2))
    assert kernels() == before
