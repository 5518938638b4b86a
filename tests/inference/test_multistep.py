"""DPM-Solver++ 2M and its stochastic form, against diffusers and closed forms."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

import ndm
from ndm.inference.multistep import multistep_states
from ndm.inference.reverse import ode_states
from ndm.inference.sampling import sample
from ndm.method.schedules import NoiseLevel
from ndm.networks import ResidualMLP
from tests.inference.gaussians import (
    SCALES,
    Direct,
    Exact,
    a_of,
    assert_moments,
    data_moments,
    gaussian,
    level,
    moments,
    seeded,
    small,
)


def falling(steps: int) -> Tensor:
    return torch.arange(steps, -1, -1, dtype=torch.float64) / steps


def start(n: int, d: int = 2) -> Tensor:
    return torch.randn(n, d, dtype=torch.float64, generator=seeded(0))


@pytest.mark.parametrize(("spacing", "lower_order_final"), [("time", True), ("gamma", False)])
@pytest.mark.parametrize(
    ("method", "algorithm"), [("ode", "dpmsolver++"), ("sde", "sde-dpmsolver++")], ids=["ode", "sde"]
)
def test_the_states_are_those_of_diffusers(method: str, algorithm: str, spacing: str, lower_order_final: bool) -> None:
    """The same network, noise levels and noise. In even times only the last step is twice as long as the one before."""
    scheduling = pytest.importorskip("diffusers").DPMSolverMultistepScheduler
    steps, schedule = 9, ndm.CosineSchedule(gamma_min=-8.0, gamma_max=5.0)
    net = ResidualMLP(3, hidden=16, depth=1, zero_init=False).eval()
    model = ndm.NDM(schedule, ndm.Identity(), ndm.Denoiser(net))
    options = {"method": method, "solver": "dpm++2m", "steps": steps, "spacing": spacing}
    path = sample(model, 4, (3,), **options, generator=seeded(3), trajectory=True)

    gamma = schedule.gamma(schedule.even_in_gamma(steps).flip(0) if spacing == "gamma" else falling(steps))[0]
    scheduler = scheduling(
        algorithm_type=algorithm, solver_order=2, prediction_type="v_prediction", final_sigmas_type="sigma_min",
        lower_order_final=lower_order_final,
    )  # fmt: skip
    scheduler.set_timesteps(steps)
    scheduler.sigmas = torch.exp(gamma / 2)
    generator = seeded(3)
    z = torch.randn(4, 3, generator=generator)
    for i, timestep in enumerate(scheduler.timesteps):
        with torch.no_grad():
            output = net(z, ((gamma[i] + 8) / 13).float().expand(4))
        noise = torch.randn(4, 3, generator=generator) if method == "sde" else None
        z = scheduler.step(output, timestep, z, variance_noise=noise).prev_sample
        alpha = torch.sigmoid(-gamma[i + 1]).sqrt().float()
        torch.testing.assert_close(path[i + 1], z / alpha, rtol=2e-5, atol=2e-5)


def exact(name: str, z: Tensor) -> Tensor:
    """z_0 of the ODE from z_1 = z."""
    (mean_0, variance_0), (mean_1, variance_1) = moments(name, 0.0), moments(name, 1.0)
    return mean_0 + math.sqrt(variance_0 / variance_1) * (z - mean_1)


@pytest.mark.parametrize("direct", [False, True], ids=["through x_hat", "direct"])
@pytest.mark.parametrize("name", SCALES)
def test_the_error_falls_with_the_square_of_the_steps(name: str, direct: bool) -> None:
    model = gaussian(name, denoiser=Direct(SCALES[name], ode=True)) if direct else gaussian(name)
    z, errors = start(50), []
    for steps in (80, 160):
        *_, found = multistep_states(model, z, falling(steps), 0.0)
        errors.append((found - exact(name, z)).square().mean().sqrt().item())
    assert errors[0] < 2.5e-3
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.05)


@pytest.mark.parametrize("schedule", [ndm.OTSchedule(), ndm.CosineSchedule(), ndm.DDPMSchedule()])
def test_a_long_last_step_does_no_harm(schedule: ndm.Schedule) -> None:
    """The last step of even times, from which the line through two short ones would lead far away."""
    model = ndm.NDM(schedule, ndm.Identity(), Exact())
    z, (end,) = start(200), schedule(torch.zeros(1, dtype=torch.float64)).alpha
    *_, fine = multistep_states(model, z, schedule.even_in_gamma(400).flip(0), 0.0)
    *_, found = multistep_states(model, z, falling(20), 0.0)
    assert ((found - fine) / end).square().mean().sqrt() < 0.05


@pytest.mark.parametrize("transform", ["neural", "separable"])
def test_the_ode_of_a_learned_transformation_is_that_of_the_slopes(transform: str) -> None:
    """Runge and Kutta's method knows dF/dgamma; this one knows F at both ends of each step."""
    torch.manual_seed(1)
    f = {
        "neural": lambda: ndm.Neural(ResidualMLP(3, hidden=8, depth=1, zero_init=False), gate="free"),
        "separable": lambda: ndm.Separable(
            ResidualMLP(3, hidden=8, depth=1, heads=2, level=False, zero_init=False), terms=2, gate="free"
        ),
    }[transform]()
    denoiser = ndm.Denoiser(ResidualMLP(3, hidden=8, depth=1, zero_init=False))
    model, z, errors = ndm.NDM(ndm.LinearSchedule(-6.0, 3.0), f, denoiser).double().eval(), start(6, 3), []
    with torch.no_grad():
        *_, expected = ode_states(model, z, falling(60), "rk4")
        for steps in (20, 40):
            *_, found = multistep_states(model, z, falling(steps), 0.0)
            errors.append((found - expected).abs().max().item())
    assert errors[1] < 0.02
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.25)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("name", SCALES)
def test_a_single_point_has_the_marginal_of_every_level(name: str, eta: float) -> None:
    """x_hat is constant, so that every step is exact for every F and every volatility."""

    class Point(nn.Module):
        def forward(self, z: Tensor, level: NoiseLevel, labels: Tensor | None = None) -> Tensor:
            return torch.full_like(z, 3.0)

    (alpha_1, sigma_1, gamma_1), times = level(1.0), torch.tensor([1.0, 0.7, 0.6], dtype=torch.float64)
    z = 3 * alpha_1 * a_of(name, gamma_1) + sigma_1 * start(20_000, 1)
    states = multistep_states(gaussian(name, denoiser=Point()), z, times, eta, generator=seeded(1))
    for t, state in zip(times[1:].tolist(), states, strict=True):
        alpha, sigma, gamma = level(t)
        assert_moments(state, (3 * alpha * a_of(name, gamma), sigma**2))


@pytest.mark.parametrize("eta", [None, 0.6])
@pytest.mark.parametrize("name", SCALES)
def test_the_sde_reaches_the_data(name: str, eta: float | None) -> None:
    x = sample(
        gaussian(name), 20_000, (1,), method="sde", solver="dpm++2m", steps=60, eta=eta, dtype=torch.float64,
        generator=seeded(2),
    )  # fmt: skip
    assert_moments(x, data_moments(name), bias=0.02)


@pytest.mark.parametrize(("method", "first"), [("ode", {"method": "ddim"}), ("sde", {"method": "ancestral"})])
def test_the_first_step_is_ddims_and_ddpms(method: str, first: dict[str, str]) -> None:
    model = small()
    found, expected = (
        sample(model, 4, (2,), steps=5, trajectory=True, generator=seeded(0), dtype=torch.float32, **options)[1]
        for options in ({"method": method, "solver": "dpm++2m"}, first)
    )
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_a_step_evaluates_the_network_once_and_a_step_of_no_length_not_at_all() -> None:
    model, levels = small(), []
    model.schedule = ndm.CosineSchedule(gamma_min=-2.0, gamma_max=4.0)  # clipped up to t = 0.2
    model.denoiser.net.register_forward_pre_hook(lambda _, inputs: levels.append(inputs[1][0].item()))
    with torch.no_grad():
        states = list(multistep_states(model, start(2).float(), falling(20), 0.0))
    assert len(states) == 20
    assert 14 < len(levels) < 19
    assert all(a > b for a, b in pairwise(levels))
    assert torch.equal(states[-1], states[-2])
