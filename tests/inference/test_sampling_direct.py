"""Sampling from a direct reverse process, and the volatility it is sampled with."""

from __future__ import annotations

import pytest
import torch

import ndm
from ndm.inference.sampling import sample
from ndm.networks import ResidualMLP
from tests.inference.gaussians import Direct, gaussian, one, seeded, small, widening


@pytest.mark.parametrize(("method", "eta"), [("sde", None), ("sde", 0.5), ("ode", None)])
def test_a_direct_process_with_the_exact_estimate_is_the_same_process(method, eta):
    """The same random numbers, the same samples; the ODE and another eta need the head for F."""
    through_x_hat = gaussian("scale")
    direct = gaussian("scale", denoiser=Direct(widening, ode=method == "ode" or eta is not None))
    samples = [
        sample(m, 3, (2,), method=method, steps=20, eta=eta, generator=seeded(0), dtype=torch.float64)
        for m in (through_x_hat, direct)
    ]
    torch.testing.assert_close(samples[1], samples[0], rtol=1e-9, atol=1e-9)


def test_a_direct_process_has_ancestral_steps():
    """For the identity y is x, and the steps are those through x_hat."""
    samples = [
        sample(m, 3, (2,), method="ancestral", steps=7, generator=seeded(0), dtype=torch.float64)
        for m in (gaussian(), gaussian(denoiser=Direct(one, ode=False)))
    ]
    torch.testing.assert_close(samples[1], samples[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("method", "eta"), [("ode", None), ("ddim", None), ("ancestral", 0.5), ("sde", 0.5)])
def test_a_direct_process_without_an_estimate_of_f_refuses_in_a_sentence(method, eta):
    model = small(denoiser=ndm.DirectDenoiser(ResidualMLP(2, hidden=8, depth=1)))
    with pytest.raises(ValueError, match=r'DirectDenoiser\(net, ode=True\).*sample with method="sde" or "ancestral"'):
        sample(model, 2, (2,), method=method, steps=3, eta=eta)


@pytest.mark.parametrize("method", ["ancestral", "ddim", "ode", "sde"])
@pytest.mark.parametrize("eta", [-1.0, float("nan"), float("inf")])
def test_a_volatility_that_is_none_is_refused(method, eta):
    with pytest.raises(ValueError, match="eta"):
        sample(small(), 2, (2,), method=method, steps=3, eta=eta)


@pytest.mark.parametrize("method", ["ddim", "ode"])
def test_a_method_without_noise_has_no_volatility(method):
    with pytest.raises(ValueError, match=f"for the methods ancestral and sde; leave it out with '{method}'"):
        sample(small(), 2, (2,), method=method, steps=3, eta=1.0)
