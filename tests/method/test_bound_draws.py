"""Passes over the networks, times and noise of the bound."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import ndm
import ndm.method.bounds
from ndm.method.bounds import low_discrepancy
from tests.method.gaussians import f64, gaussian_model, network

# ---- how often the networks are run


class Counting(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.calls = net, 0

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        self.calls += 1
        return self.net(*args, **kwargs)


@pytest.mark.parametrize(
    ("direct", "separable", "steps", "passes"),
    [
        (False, True, 5, 2),  # one pass for x, one for x_hat, whatever is asked of the curve
        (False, True, None, 2),
        (True, True, 5, 1),
        (True, True, None, 1),
        (False, False, 5, 2),
        (False, False, None, 3),  # t with its derivative, the two ends, and x_hat
        (True, False, 5, 1),
        (True, False, None, 2),
    ],
)
def test_passes_over_the_networks(direct: bool, separable: bool, steps: int | None, passes: int) -> None:
    denoiser_net = Counting(network())
    net = Counting(network(heads=4, level=False) if separable else network())
    model = ndm.NDM(
        ndm.LinearSchedule(),
        ndm.Separable(net) if separable else ndm.Neural(net),
        (ndm.DirectDenoiser if direct else ndm.Denoiser)(denoiser_net),
    )
    model.bound(torch.randn(4, 2), steps)
    assert (denoiser_net.calls, net.calls) == (1, passes)


# ---- times and noise


@pytest.mark.parametrize("n", [1, 7, 64])
def test_low_discrepancy_times(n: int) -> None:
    like = torch.empty(0, dtype=torch.float64)
    draws = torch.stack([low_discrepancy(n, like) for _ in range(400)])
    assert (draws >= 0).all()
    assert (draws < 1).all()
    ordered = draws.sort(1).values
    torch.testing.assert_close(ordered.diff(dim=1), f64([[1 / n] * (n - 1)] * 400), rtol=0, atol=1e-12)
    # Each time by itself is uniform: the first example's draws against the uniform distribution (Kolmogorov-Smirnov).
    first, uniform = draws[:, 0].sort().values, (torch.arange(400) + 0.5).double() / 400
    assert (first - uniform).abs().max() < 0.1
    if n > 2:  # a time says nothing of its neighbour's
        assert (draws.diff(dim=1) % 1).std() > 0.2


def test_times_stay_below_one_in_single_precision(monkeypatch) -> None:
    monkeypatch.setattr(torch, "rand", lambda *_, **__: torch.tensor(1 - 1e-12, dtype=torch.float64))
    times = low_discrepancy(4, torch.empty(0))
    assert (times < 1).all()
    assert times.max() > 0.9999
    terms = gaussian_model().bound(torch.ones(1, 1), 1000, times=f64([1 - 1e-12]))
    assert terms.total.isfinite().all()


def test_the_generator_decides_everything() -> None:
    model, x = ndm.NDM(ndm.LinearSchedule(), ndm.Identity(), ndm.Denoiser(network())), torch.randn(9, 2)
    for steps in (None, 10):
        first, again, other = (
            model.bound(x, steps, generator=torch.Generator().manual_seed(seed)).total for seed in (1, 1, 2)
        )
        assert torch.equal(first, again)
        assert not torch.isclose(first, other).any()


def test_the_two_noises_are_independent_and_normal(monkeypatch) -> None:
    drawn, original = [], ndm.method.bounds.normal_like
    monkeypatch.setattr(ndm.method.bounds, "normal_like", lambda *a: drawn.append(original(*a)) or drawn[-1])
    gaussian_model().bound(torch.zeros(4000, 1, dtype=torch.float64))
    moments = torch.cat(drawn, 1).T.cov()
    torch.testing.assert_close(moments, torch.eye(2).double(), rtol=0, atol=0.1)
