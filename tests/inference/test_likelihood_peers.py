"""Networks of other libraries: their likelihoods, sampler steps and conventions against ours.

The libraries are optional: pip install flow_matching torchcfm azula k-diffusion. A test is skipped without its library.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torchdiffeq import odeint

import ndm

ENDS = (-9.0, 9.0)


class Perceptron(nn.Module):
    """A random network of a state and a number, (B, d), (B,) or () -> (B, d)."""

    def __init__(self, d: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(d + 1, 32), nn.SiLU(), nn.Linear(32, 32), nn.SiLU(), nn.Linear(32, d))
        self.double()

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.layers(torch.cat([x, t.expand(len(x))[:, None]], 1))


def log_normal(z: Tensor) -> Tensor:
    return -(z.square() + math.log(2 * math.pi)).sum(1) / 2


def flow_times() -> tuple[float, float]:
    """The times of flow matching, 1 at the data, at the ends of the schedule."""
    return tuple(1 / (1 + math.exp(gamma / 2)) for gamma in ENDS)  # 1 - sigmoid(gamma / 2)


def velocity_model(net) -> ndm.NDM:
    denoiser = ndm.Denoiser(net, "velocity", time="sigma", path="ot")
    return ndm.NDM(ndm.OTSchedule(*ENDS), ndm.Identity(), denoiser).double()


def test_the_likelihood_of_a_velocity_field_is_that_of_flow_matching() -> None:
    solver = pytest.importorskip("flow_matching.solver")
    net, x = Perceptron(3), torch.randn(6, 3, dtype=torch.float64)
    first, last = flow_times()

    def stretched(x: Tensor, t: Tensor) -> Tensor:  # their times are from 1 to 0
        return (first - last) * net(x, last + (first - last) * t)

    _, theirs = solver.ODESolver(stretched).compute_likelihood(
        first * x, log_normal, method="dopri5", step_size=None, atol=1e-9, rtol=1e-9, exact_divergence=True,
        time_grid=torch.tensor([1.0, 0.0], dtype=torch.float64),
    )  # fmt: skip
    ours = ndm.log_likelihood(velocity_model(lambda z, t: -net(z, 1 - t)), x, tolerance=1e-6).log_prob
    torch.testing.assert_close(ours, theirs.detach() + 3 * math.log(first), rtol=0, atol=1e-6)


def test_the_likelihood_of_a_network_of_torchcfm() -> None:
    """torchcfm's network and path, with the trace of its Jacobian integrated by torchdiffeq, as its examples do."""
    cfm, models = pytest.importorskip("torchcfm"), pytest.importorskip("torchcfm.models")
    torch.manual_seed(0)
    net = models.MLP(dim=2, time_varying=True).double()

    def velocity(t: Tensor, x: Tensor) -> Tensor:
        return net(torch.cat([x, t.expand(len(x))[:, None]], 1))

    noise, x = torch.randn(5, 2, dtype=torch.float64), torch.randn(5, 2, dtype=torch.float64)
    t, state, target = cfm.ConditionalFlowMatcher(sigma=0.0).sample_location_and_conditional_flow(noise, x)
    torch.testing.assert_close(state, t[:, None] * x + (1 - t[:, None]) * noise)
    torch.testing.assert_close(-target, noise - x)  # minus their velocity is ours, of time 1 - t

    def augmented(t: Tensor, states: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        def single(row: Tensor) -> Tensor:
            return velocity(t, row[None])[0]

        trace = torch.func.vmap(torch.func.jacrev(single))(states[0]).diagonal(dim1=1, dim2=2).sum(1)
        return velocity(t, states[0]), -trace

    first, last = flow_times()
    start = (first * x, torch.zeros(5, dtype=torch.float64))
    grid = torch.tensor([first, last], dtype=torch.float64)
    states, change = odeint(augmented, start, grid, rtol=1e-6, atol=1e-7)  # its times are in float32
    theirs = log_normal(states[-1]) - change[-1] + 2 * math.log(first)
    ours = ndm.log_likelihood(velocity_model(lambda z, t: -velocity(1 - t, z)), x, tolerance=1e-4).log_prob
    torch.testing.assert_close(ours, theirs.detach(), rtol=0, atol=1e-3)  # its activation has kinks


def test_the_likelihood_of_a_denoiser_is_that_of_k_diffusion() -> None:
    """In one dimension its random probe gives the exact divergence. It is of x with noise of sigma_min."""
    sampling = pytest.importorskip("k_diffusion.sampling")
    net, x = Perceptron(1), torch.randn(7, 1, dtype=torch.float64)
    low, high = 0.02, 50.0

    def denoiser(noisy: Tensor, sigma: Tensor) -> Tensor:
        return noisy / (1 + sigma[:, None] ** 2) + net(noisy / (1 + sigma[:, None] ** 2).sqrt(), sigma.log() / 4)

    theirs, _ = sampling.log_likelihood(denoiser, x, low, high, atol=1e-9, rtol=1e-9)
    schedule = ndm.LinearSchedule(2 * math.log(low), 2 * math.log(high))
    model = ndm.NDM(schedule, ndm.Identity(), ndm.Denoiser(denoiser, "x", time="sigma", path="ve")).double()
    ours = ndm.log_likelihood(model, x, tolerance=1e-5).log_prob
    # Their prior is N(0, sigma_max^2) of x + noise, ours N(0, 1) of alpha (x + noise), with alpha^2 (1 + sigma^2) = 1:
    # the same within a factor of 1 + 1 / sigma_max^2 in the variance.
    torch.testing.assert_close(ours, theirs.detach(), rtol=0, atol=2 / high**2)


def test_a_denoiser_of_azula_gives_the_same_ddim_samples() -> None:
    denoise, noise = pytest.importorskip("azula.denoise"), pytest.importorskip("azula.noise")
    sampling = pytest.importorskip("azula.sample")
    low, high, steps = 0.01, 20.0, 12
    theirs = denoise.SimpleDenoiser(Perceptron(2), noise.VESchedule(low, high)).double()
    net = ndm.Denoiser(lambda x, t: theirs(x, t).mean, "x", time="t", path="ve")
    schedule = ndm.LinearSchedule(2 * math.log(low), 2 * math.log(high))
    model = ndm.NDM(schedule, ndm.Identity(), net).double()
    generator = torch.Generator().manual_seed(0)
    found = model.sample(9, (2,), method="ddim", steps=steps, generator=generator, dtype=torch.float64)
    z = torch.randn(9, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    start = z * (1 + high**2) ** 0.5  # z / alpha_1
    expected = sampling.DDIMSampler(theirs, eta=0.0, steps=steps, silent=True)(start)
    torch.testing.assert_close(found, expected.detach(), rtol=1e-6, atol=1e-7)  # its times are in float32
