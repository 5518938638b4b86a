"""The samplers against closed forms for Gaussian data, and against diffusers."""

from __future__ import annotations

import math

import pytest
import torch

import ndm
from ndm.inference.sampling import sample
from ndm.networks import ResidualMLP
from tests.inference.gaussians import (
    MEAN,
    SCALES,
    N,
    R,
    ancestral_moments,
    assert_moments,
    data_moments,
    euler_maruyama_moments,
    gaussian,
    level,
    moments,
    seeded,
    small,
)


@pytest.mark.parametrize("name", SCALES)
@pytest.mark.parametrize("steps", [1, 2, 10, 37])
@pytest.mark.parametrize("eta", [None, 0.5])
def test_ancestral_steps_with_the_posterior_variance(name, steps, eta):
    """Exactly as (in)exact as the closed form says: at few steps the samples are too narrow."""
    expected = ancestral_moments(name, steps, 1.0 if eta is None else eta)
    assert_moments(sample(gaussian(name), N, (2,), steps=steps, eta=eta, dtype=torch.float64), expected)


def test_the_posterior_variance_is_too_small_at_few_steps():
    """What the test above compares with: much of the variance is missing at T = 10, and it comes back as T grows."""
    assert ancestral_moments("identity", 10, 1.0)[1] < 0.6 * data_moments("identity")[1]
    assert ancestral_moments("identity", 10_000, 1.0)[1] == pytest.approx(data_moments("identity")[1], rel=2e-3)


@pytest.mark.parametrize("name", SCALES)
@pytest.mark.parametrize("steps", [1, 2, 10])
@pytest.mark.parametrize("covariance", ["isotropic", "diagonal", "full"])
def test_ancestral_steps_with_the_calibrated_variance_are_exact(name, steps, covariance):
    """For Gaussian data the best reverse variance makes every reverse step exact, a single one included."""
    model = gaussian(name)
    x = MEAN + math.sqrt(R) * torch.randn(N, 2, dtype=torch.float64)
    model.calibrate(x, steps=steps, covariance=covariance)
    # The calibration is itself from N examples; a full covariance spends them on each of the two dimensions.
    y = sample(model, N, (2,), steps=steps, dtype=torch.float64)
    assert_moments(y, data_moments(name), bias=4 * R * math.sqrt(2 / N))


@pytest.mark.parametrize("name", SCALES)
@pytest.mark.parametrize("steps", [1, 13])
def test_ddim_is_the_closed_form(name, steps):
    """Without noise the result is linear in z_1 alone: the same numbers, not just the same moments."""
    path = sample(gaussian(name), 5, (2,), method="ddim", steps=steps, trajectory=True, dtype=torch.float64)
    z_1 = path[0] * level(1)[0]
    mean, variance = ancestral_moments(name, steps, 0.0)
    torch.testing.assert_close(path[-1], mean + math.sqrt(variance) * z_1)


@pytest.mark.parametrize("name", SCALES)
@pytest.mark.parametrize(
    ("solver", "steps", "error"),
    [(None, None, 1e-5), (None, 200, 5e-3), ("euler", 1000, 3e-2), ("midpoint", 200, 5e-3), ("rk4", 60, 1e-3)],
)
def test_the_ode_is_the_closed_form(name, solver, steps, error):
    """The exact flow carries z_1 to mu_0 + sqrt(V_0 / V_1) (z_1 - mu_1), example by example."""
    path = sample(
        gaussian(name),
        6,
        (2,),
        method="ode",
        steps=steps,
        solver=solver,
        rtol=1e-7,
        atol=1e-7,
        trajectory=True,
        dtype=torch.float64,
    )
    (mu_0, v_0), (mu_1, v_1), alpha_0 = moments(name, 0.0), moments(name, 1.0), level(0)[0]
    expected = (mu_0 + math.sqrt(v_0 / v_1) * (path[0] * level(1)[0] - mu_1)) / alpha_0
    torch.testing.assert_close(path[-1], expected, rtol=0, atol=error)


@pytest.mark.parametrize("name", SCALES)
@pytest.mark.parametrize("eta", [None, 0.6])
def test_euler_maruyama_has_its_closed_form_moments(name, eta):
    expected = euler_maruyama_moments(name, 100, 1.0 if eta is None else eta)
    assert_moments(sample(gaussian(name), N, (2,), method="sde", steps=100, eta=eta, dtype=torch.float64), expected)


@pytest.mark.parametrize("eta", [1.0, 0.6])
@pytest.mark.parametrize("name", SCALES)
def test_what_euler_maruyama_is_compared_with_tends_to_the_data(name, eta):
    """For every volatility, since the denoiser is exact; so the test above is one of the drift in the method."""
    assert euler_maruyama_moments(name, 20_000, eta) == pytest.approx(data_moments(name), rel=2e-3)


@pytest.mark.parametrize(
    ("solver", "steps"),
    [("euler", 400), *(pytest.param("srk", steps, marks=pytest.mark.slow) for steps in (150, None))],
)
def test_torchsdes_solvers_reach_the_data(solver, steps):
    n = 1000 if steps is None else 5000
    x = sample(
        gaussian("scale"), n, (2,), method="sde", steps=steps, solver=solver, rtol=1e-2, atol=1e-2, dtype=torch.float64
    )
    assert_moments(x, data_moments("scale"), bias=0.05)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("eta", [0.0, 0.7, 1.0])
def test_ddpm_and_ddim_are_those_of_diffusers(prediction, eta):
    """The same network, schedule and noise through the loop of diffusers' DDIMScheduler: the same states on the way."""
    from diffusers import DDIMScheduler

    steps = 8
    scheduler = DDIMScheduler(
        beta_schedule="linear", beta_start=1e-4, beta_end=0.02, prediction_type=prediction,
        clip_sample=False, set_alpha_to_one=False, timestep_spacing="trailing",
    )  # fmt: skip
    scheduler.set_timesteps(steps)
    first = scheduler.alphas_cumprod[0].item()  # where diffusers' last step ends
    parameterization = {"epsilon": "eps", "v_prediction": "v", "sample": "x"}[prediction]
    net = ResidualMLP(3, hidden=16, depth=1, zero_init=False)
    schedule = ndm.DDPMSchedule(gamma_min=math.log((1 - first) / first))
    model = ndm.NDM(schedule, ndm.Identity(), ndm.Denoiser(net, parameterization))
    path = sample(model, 4, (3,), method="ancestral", steps=steps, eta=eta, generator=seeded(3), trajectory=True)

    generator = seeded(3)
    z = torch.randn(4, 3, generator=generator)
    low, high = schedule.end_points()
    for i, timestep in enumerate(scheduler.timesteps.tolist()):
        alpha_squared = scheduler.alphas_cumprod[timestep].double()
        torch.testing.assert_close(path[i], z / alpha_squared.sqrt().float(), rtol=1e-3, atol=1e-3)
        gamma = torch.log((1 - alpha_squared) / alpha_squared)
        with torch.no_grad():
            output = net(z, ((gamma - low) / (high - low)).float().expand(4))
        noise = torch.randn(4, 3, generator=generator) if eta else None
        z = scheduler.step(output, timestep, z, eta=eta, variance_noise=noise).prev_sample
    torch.testing.assert_close(path[-1], z / math.sqrt(first), rtol=1e-3, atol=1e-3)


def test_ancestral_with_eta_zero_is_ddim():
    model = small()
    samples = [
        sample(model, 4, (2,), method=m, steps=10, eta=e, generator=seeded(0))
        for m, e in [("ancestral", 0.0), ("ddim", None)]
    ]
    assert torch.equal(*samples)


def test_another_volatility_than_the_models_does_not_use_its_reverse_variance():
    """With the model's own eta the calibration is used; with another it says nothing about the step."""
    model = small()
    plain = [sample(model, 4, (2,), steps=3, eta=e, generator=seeded(0)) for e in (None, 0.5)]
    model.calibrate(torch.randn(64, 2), steps=3)
    own, other = (sample(model, 4, (2,), steps=3, eta=e, generator=seeded(0)) for e in (None, 0.5))
    assert not torch.allclose(own, plain[0])
    assert torch.equal(other, plain[1])
