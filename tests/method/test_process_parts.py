"""Volatility, standardization, parts that do not fit together, and the drift at the ends of a schedule."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.autograd.functional import jacobian

import ndm
from ndm.method.process import Process
from ndm.method.schedules import per_example
from ndm.networks import ResidualMLP
from tests.method.processes import f64, model, neural

# ---- volatility


def test_learned_volatility_starts_at_one_and_equals_its_formula() -> None:
    volatility = ndm.LearnedVolatility(terms=3).double()
    gamma = f64([-20.0, -8.0, -5.0, 4.0, 9.0])
    volatility.set_gamma_range(-8.0, 4.0)
    assert torch.equal(volatility(gamma), torch.ones_like(gamma))
    with torch.no_grad():
        volatility.coefficients.copy_(f64([0.2, -0.5, 0.3]))
    u = np.clip((gamma.numpy() + 8) / 12, 0, 1)
    log = 0.2 + math.sqrt(2) * (-0.5 * np.cos(np.pi * u) + 0.3 * np.cos(2 * np.pi * u))
    np.testing.assert_allclose(volatility(gamma).detach(), np.exp(log), rtol=1e-9)


@pytest.mark.parametrize("eta", [0.0, -1.0, math.inf, math.nan])
def test_a_volatility_that_is_not_positive_is_refused(eta: float) -> None:
    with pytest.raises(ValueError, match="volatility must be positive"):
        model(ndm.LinearSchedule(), ndm.Identity(), volatility=eta)


# ---- data in their own units


def test_standardize_and_its_jacobian() -> None:
    data = torch.randn(500, 2, 2, dtype=torch.float64) * f64([[2.0, 0.1], [30.0, 1.0]]) + 5
    part = ndm.Standardize.fit(data)
    x = part(data)
    torch.testing.assert_close(x.mean(0), torch.zeros(2, 2).double(), rtol=0, atol=1e-12)
    torch.testing.assert_close(x.std(0), torch.ones(2, 2).double())
    torch.testing.assert_close(part.inverse(x), data)
    matrix = jacobian(lambda d: part(d.reshape(1, 2, 2)).flatten(), data[0].flatten())
    torch.testing.assert_close(part.log_det(x), torch.linalg.slogdet(matrix).logabsdet)
    scalar = ndm.Standardize(1.0, 4.0)
    assert scalar.log_det(x).item() == pytest.approx(-4 * math.log(4))


@pytest.mark.parametrize("scale", [0.0, -1.0, [1.0, 0.0], math.nan])
def test_a_scale_that_is_not_positive_is_refused(scale) -> None:
    with pytest.raises(ValueError, match="scale must be positive"):
        ndm.Standardize(0.0, scale)


def test_data_to_the_model_and_back() -> None:
    process = model(ndm.LinearSchedule(), ndm.Identity(), standardize=ndm.Standardize([1.0, 2.0], [3.0, 4.0]))
    data = f64([[4.0, 2.0], [1.0, 10.0]])
    x = process.to_model(data)
    torch.testing.assert_close(x, f64([[1.0, 0.0], [0.0, 2.0]]))
    torch.testing.assert_close(process.from_model(x), data)
    assert process.log_det(x).item() == pytest.approx(-math.log(12))
    torch.testing.assert_close(process.to_model(data.long()), x)  # whole numbers are numbers in their own units
    with pytest.raises(ValueError, match="integers"):
        model(ndm.LinearSchedule(), ndm.Identity()).to_model(torch.ones(2, 2, dtype=torch.long))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_integers_come_in_the_precision_of_the_model(dtype) -> None:
    net = ResidualMLP(3, hidden=8, depth=1)
    process = ndm.NDM(ndm.LinearSchedule(), ndm.Identity(), ndm.Denoiser(net), ndm.DiscretizedDecoder(256)).to(dtype)
    x = process.to_model(torch.tensor([[0, 255, 7]], dtype=torch.uint8))
    assert x.dtype == dtype
    assert x[0].tolist() == [-255 / 256, 255 / 256, -241 / 256]
    with pytest.raises(ValueError, match="half precision"):
        process.bfloat16().to_model(torch.tensor([[0, 255, 7]]))


# ---- parts that do not fit


def test_parts_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="anchored"):
        model(ndm.LearnedSchedule(learn_endpoints=True), neural("anchored"))
    with pytest.raises(ValueError, match="standardize"):
        model(
            ndm.LinearSchedule(),
            ndm.Identity(),
            decoder=ndm.DiscretizedDecoder(4),
            standardize=ndm.Standardize(0.0, 1.0),
        )
    with pytest.raises(ValueError, match="choose one of posterior, large, learned, predicted, range"):
        model(ndm.LinearSchedule(), ndm.Identity(), reverse_variance="small")


def test_parts_are_told_the_schedules_range() -> None:
    net = ResidualMLP(3, hidden=8, depth=1)
    process = model(
        ndm.CosineSchedule(gamma_min=-7.0, gamma_max=6.0),
        neural(),
        ndm.Denoiser(net),
        reverse_variance="learned",
        volatility=ndm.LearnedVolatility(),
    )
    for part in (process.transform, process.denoiser, process.reverse_variance, process.volatility):
        assert part.gamma_range == (-7.0, 6.0)


@pytest.mark.parametrize("schedule", [ndm.OTSchedule(), ndm.CosineSchedule(), ndm.DDPMSchedule()])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_the_drift_at_the_ends_of_a_clipped_schedule_is_the_limit_from_the_inside(schedule, eta):
    """Of which a solver's first step is made; where the schedule stands still there is none."""

    class Shrunk(torch.nn.Module):
        def forward(self, z, level):
            return 2 + 0.3 * per_example(level.alpha, z) * z

    process = Process(schedule, ndm.Identity(), Shrunk())
    z = torch.tensor([[1.0], [1.0]], dtype=torch.float64)
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    first, last = schedule.even_in_gamma(1).tolist()
    near = torch.tensor([first * 1.001 if first else 0.0, 1 - (1 - last) * 1.001], dtype=torch.float64)
    for found, expected in (
        (process.drift(z, ends, eta=eta), process.drift(z, near, eta=eta)),
        (process.diffusion(z, ends, eta=eta), process.diffusion(z, near, eta=eta)),
    ):
        torch.testing.assert_close(found, expected, rtol=0.01, atol=0)
        if eta:
            assert (found != 0).all()
    if last < 0.9999:  # and not just by rounding
        still = torch.full((2,), (1 + last) / 2, dtype=torch.float64)
        assert (process.drift(z, still, eta=eta) == 0).all()


def test_the_straight_paths_drift_at_its_end_is_flow_matchings():
    """(z - x_hat) / t at t = 1, up to the clip."""

    class Exact(torch.nn.Module):
        def forward(self, z, level):
            alpha, sigma = per_example(level.alpha, z), per_example(level.sigma, z)
            return 2 + alpha * 0.25 * (z - 2 * alpha) / (alpha**2 * 0.25 + sigma**2)

    process, z = Process(ndm.OTSchedule(), ndm.Identity(), Exact()), torch.tensor([[1.0]])
    assert process.drift(z, torch.ones(1), eta=0.0).item() == pytest.approx(-1.0, abs=2e-3)
