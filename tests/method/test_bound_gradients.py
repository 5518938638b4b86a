"""Gradients of the bound reach every parameter, and training finds the best parts."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import ndm
import ndm.method.bounds
from ndm.networks import ResidualMLP
from tests.method.gaussians import gaussian_model, network


def everything_learned(transform: str, direct: bool, decoder: ndm.Decoder, minimize_variance: bool = True) -> ndm.NDM:
    make = {
        "neural": lambda: ndm.Neural(network()),
        "separable": lambda: ndm.Separable(network(heads=4, level=False), terms=4),
    }[transform]
    denoiser = ndm.DirectDenoiser(network(heads=3), ode=True) if direct else ndm.Denoiser(network(heads=2))
    return ndm.NDM(
        ndm.LearnedSchedule(-6.0, 4.0, learn_endpoints=True, minimize_variance=minimize_variance),
        make(),
        denoiser,
        decoder,
        reverse_variance="predicted",
        volatility=ndm.LearnedVolatility(3),
    ).double()


@pytest.mark.parametrize("steps", [None, 5])
@pytest.mark.parametrize("decoder", [ndm.GaussianDecoder(), ndm.DiscretizedDecoder(16)], ids=["gaussian", "levels"])
@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("transform", ["neural", "separable"])
def test_gradients_reach_every_parameter_and_are_right(transform, direct, decoder, steps: int | None) -> None:
    model = everything_learned(transform, direct, decoder, minimize_variance=False)
    x = ndm.DiscretizedDecoder(16).encode(torch.randint(16, (8, 2)), torch.float64)

    def loss() -> Tensor:
        terms = model.bound(x, steps, generator=torch.Generator().manual_seed(5))
        return terms.total.mean()

    loss().backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        assert p.grad.isfinite().all(), name
        expected = p.grad.clone()
        if name == "denoiser.net.output.weight" or name == "denoiser.net.output.bias":
            # The variance's head is of no use in continuous time, and the bound does not train the head for E[F | z].
            rows, expected = p.grad.reshape(-1, 2, *p.shape[1:]).flatten(1).abs().sum(1), None
            assert rows[0] > 0
            assert (rows[1] > 0) == (steps is not None)
            assert not direct or rows[2] == 0
        if expected is not None:
            assert expected.abs().max() > 0, name

    # Along one random direction the slope is that of the bound's values.
    parameters = list(model.parameters())
    direction = [torch.randn_like(p) * 0.1 for p in parameters]
    slope = sum((p.grad * v).sum() for p, v in zip(parameters, direction, strict=True)).item()
    h, values = 1e-5, []
    for move in (h, -2 * h):
        with torch.no_grad():
            for p, v in zip(parameters, direction, strict=True):
                p += move * v
            values.append(loss().item())
    assert slope == pytest.approx((values[0] - values[1]) / (2 * h), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("steps", [None, 5])
@pytest.mark.parametrize("transform", ["neural", "separable"])
def test_in_continuous_time_the_schedule_between_its_ends_is_trained_for_variance(transform, steps: int | None) -> None:
    torch.manual_seed(3)
    model = everything_learned(transform, True, ndm.DiscretizedDecoder(16))
    x = ndm.DiscretizedDecoder(16).encode(torch.randint(16, (8, 2)), torch.float64)

    def gradients(of) -> dict[str, Tensor]:
        model.zero_grad()
        terms = model.bound(x, steps, generator=torch.Generator().manual_seed(5))
        of(terms).backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    found = gradients(lambda terms: terms.total.mean())
    model.schedule.minimize_variance = False
    expected = gradients(lambda terms: terms.total.mean())
    if steps is None:
        half_the_square = gradients(lambda terms: (terms.diffusion**2 / (2 * terms.dimensions)).mean())
        assert (half_the_square["schedule.logits"] - expected["schedule.logits"]).abs().max() > 1e-3
        expected["schedule.logits"] = half_the_square["schedule.logits"]
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-9, atol=1e-12, msg=name)


class Blind(nn.Module):
    """Estimates x as zero, so that the integrand of the bound is gamma' e^{-gamma} |x|^2 / 2."""

    def forward(self, z: Tensor, level: ndm.NoiseLevel) -> Tensor:
        return torch.zeros_like(z)


def test_a_schedule_trained_for_variance_comes_near_the_best_there_is() -> None:
    # E_t[(gamma' l(gamma))^2] is smallest where gamma' l is constant: it is then the square of the integral of l.
    low, high = -2.0, 2.0
    best = (math.exp(-low) - math.exp(-high)) ** 2 / 4
    schedule = ndm.LearnedSchedule(low, high)
    model = ndm.NDM(schedule, ndm.Identity(), ndm.Denoiser(Blind(), parameterization="x"))
    x, times = torch.ones(512, 1), torch.arange(512) / 512

    def second_moment() -> float:
        with torch.no_grad():
            return model.bound(x, times=times).diffusion.square().mean().item()

    linear = (high - low) * (math.exp(-2 * low) - math.exp(-2 * high)) / 8
    with torch.no_grad():
        schedule.logits[0] += 30
    assert second_moment() == pytest.approx(linear, rel=0.02)
    with torch.no_grad():
        schedule.logits[0] -= 30
    optimizer = torch.optim.Adam(schedule.parameters(), lr=0.05)
    for _ in range(400):
        optimizer.zero_grad()
        model.bound(x, times=times).total.mean().backward()
        optimizer.step()
    assert best <= second_moment() < 1.1 * best < linear / 1.8


@pytest.mark.parametrize("steps", [1, 5, None])
def test_the_learned_variance_is_trained_in_discrete_time(steps: int | None) -> None:
    model = ndm.NDM(
        ndm.LinearSchedule(), ndm.Identity(), ndm.Denoiser(network()), reverse_variance=ndm.LearnedVariance(knots=4)
    )
    model.bound(torch.randn(64, 2), steps).total.sum().backward()
    gradient = model.reverse_variance.shift.grad
    if steps is None:
        assert gradient is None
    else:
        assert gradient.abs().max() > 0


def test_the_head_for_f_learns_its_closed_form_however_small_the_weight_of_its_loss() -> None:
    model = ndm.NDM(
        ndm.LinearSchedule(-4, 4), ndm.Identity(), ndm.DirectDenoiser(ResidualMLP(1, 32, 1, heads=2), ode=True)
    )
    optimizer, generator = torch.optim.Adam(model.parameters(), lr=1e-2), torch.Generator().manual_seed(0)
    for _ in range(300):
        terms = model.bound(torch.randn(256, 1, generator=generator), generator=generator)
        optimizer.zero_grad()
        (terms.total + terms.auxiliary).mean().backward()
        optimizer.step()
    level = model.schedule(torch.linspace(0.1, 0.9, 200))
    z = torch.randn(200, 1, generator=generator)  # x ~ N(0, 1) and a variance-preserving schedule: so is z
    with torch.no_grad():
        f_hat = model.denoiser.estimate(z, level).transformed
    exact = level.alpha[:, None] * z  # E[x | z]
    assert (f_hat - exact).square().mean() < 0.01


def test_the_auxiliary_loss_trains_the_head_for_f() -> None:
    model = ndm.NDM(ndm.LinearSchedule(), ndm.Neural(network()), ndm.DirectDenoiser(network(heads=2), ode=True))
    terms = model.bound(torch.randn(16, 2))
    assert terms.auxiliary.shape == (16,)
    assert (terms.auxiliary > 0).all()
    terms.auxiliary.sum().backward()
    rows = model.denoiser.net.output.weight.grad.reshape(2, 2, -1).abs().sum((1, 2))
    assert rows[0] == 0
    assert rows[1] > 0
    assert (gaussian_model().bound(torch.randn(3, 1).double()).auxiliary == 0).all()
