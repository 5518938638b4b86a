"""The reverse ODE and SDE along schedules that are clipped, against flow matching's own velocity and closed forms."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

import ndm
from ndm.inference.reverse import ode_adaptive, ode_states, sde_states
from ndm.method.schedules import NoiseLevel, per_example
from ndm.networks import ResidualMLP

CLIPPED: dict[str, Callable[[], ndm.Schedule]] = {
    "straight path": ndm.OTSchedule,
    "cosine": ndm.CosineSchedule,
    "betas": ndm.DDPMSchedule,
    "clipped early": lambda: ndm.CosineSchedule(gamma_min=-6.0, gamma_max=3.0),
}
every_schedule = pytest.mark.parametrize("name", CLIPPED)

#: Data N(MEAN, diag VARIANCE): the last dimension is hardly more than a point.
MEAN = torch.tensor([2.0, -1.0, 0.5], dtype=torch.float64)
VARIANCE = torch.tensor([0.25, 1e-2, 1e-8], dtype=torch.float64)


class Exact(nn.Module):
    """E[x | z]; a label moves the mean. Counts its calls."""

    calls = 0

    def forward(self, z: Tensor, level: NoiseLevel, labels: Tensor | None = None) -> Tensor:
        self.calls += 1
        alpha, sigma = per_example(level.alpha, z), per_example(level.sigma, z)
        mean = MEAN if labels is None else MEAN + per_example(labels.to(z), z)
        return mean + alpha * VARIANCE * (z - alpha * mean) / (alpha**2 * VARIANCE + sigma**2)


def gaussian(name: str, exact: Exact | None = None) -> ndm.NDM:
    return ndm.NDM(CLIPPED[name](), ndm.Identity(), exact or Exact())


def falling(steps: int) -> Tensor:
    return torch.arange(steps, -1, -1, dtype=torch.float64) / steps


def start(n: int) -> Tensor:
    return torch.randn(n, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def ends(schedule: ndm.Schedule) -> tuple[list[float], list[float]]:
    level = schedule(torch.tensor([0.0, 1.0], dtype=torch.float64))
    return level.alpha.tolist(), level.sigma.tolist()


def flow(schedule: ndm.Schedule, z: Tensor, mean: Tensor = MEAN) -> Tensor:
    """z_0 for z_1 = z: the exact flow is affine."""
    (alpha, alpha_1), (sigma, sigma_1) = ends(schedule)
    stretch = ((alpha**2 * VARIANCE + sigma**2) / (alpha_1**2 * VARIANCE + sigma_1**2)).sqrt()
    return alpha * mean + stretch * (z - alpha_1 * mean)


# ---- the ODE


def x_hat(z: Tensor, t: float) -> Tensor:
    return MEAN + (1 - t) * VARIANCE * (z - (1 - t) * MEAN) / ((1 - t) ** 2 * VARIANCE + t**2)


@pytest.mark.parametrize("solver", ["euler", "heun", "midpoint"])
@pytest.mark.parametrize("steps", [1, 2, 7, 40])
def test_the_straight_path_is_solved_as_by_its_own_velocity(solver, steps):
    """(z - x_hat) / t, at the times of the steps, of which the first and the last are where the schedule is clipped."""
    z = expected = start(5)
    first = 1 / (1 + math.exp(13.3 / 2))
    times = [min(max(i / steps, first), 1 - first) for i in range(steps, -1, -1)]
    for t, s in pairwise(times):
        f = (expected - x_hat(expected, t)) / t
        if solver == "heun":
            y = expected - (t - s) * f
            f = (f + (y - x_hat(y, s)) / s) / 2
        elif solver == "midpoint":
            middle = (t + s) / 2
            y = expected - (t - s) / 2 * f
            f = (y - x_hat(y, middle)) / middle
        expected = expected - (t - s) * f
    *_, found = ode_states(gaussian("straight path"), z, falling(steps), solver)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@every_schedule
def test_eulers_step_is_ddims(name):
    """Whose formula knows no slopes at all."""
    model, z = gaussian(name), start(5)
    expected = ndm.sample(
        model, 5, (3,), method="ddim", steps=6, generator=torch.Generator().manual_seed(0), trajectory=True,
        dtype=torch.float64, spacing="time",
    )[1:-1]  # fmt: skip
    alpha = model.schedule(falling(6)).alpha[1:]
    found = [state / a for state, a in zip(ode_states(model, z, falling(6), "euler"), alpha, strict=True)]
    torch.testing.assert_close(torch.stack(found), expected, rtol=1e-8, atol=1e-8)


@every_schedule
@pytest.mark.parametrize(("solver", "steps", "error"), [("euler", 100, 0.05), ("heun", 20, 0.02), ("rk4", 20, 2e-3)])
def test_few_steps_reach_the_closed_form(name, solver, steps, error):
    """In every direction, those without variance included, where a residue of the noise would be seen."""
    model, z = gaussian(name), start(500)
    *_, found = ode_states(model, z, falling(steps), solver)
    apart = (found - flow(model.schedule, z)).square().mean(0).sqrt()
    assert (apart < error).all()
    assert apart[2] < error / 10


@every_schedule
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_adaptive_steps_reach_the_closed_form_without_effort(name, dtype):
    exact = Exact()
    model, z = gaussian(name, exact), start(4).to(dtype)
    states = ode_adaptive(model, z, 1e-5, 1e-5, points=4)
    torch.testing.assert_close(states[-1].double(), flow(model.schedule, z.double()), rtol=0, atol=2e-3)
    assert 10 < exact.calls < 400
    # The other states lie on the flow as well, at times that are even in gamma.
    level = model.schedule(model.schedule.even_in_gamma(4).flip(0)[1:])
    alpha, sigma = (v.double()[:, None, None] for v in (level.alpha, level.sigma))
    deviations = (alpha**2 * VARIANCE + sigma**2).sqrt()
    whitened = (states.double() - alpha * MEAN) / deviations
    torch.testing.assert_close(whitened, whitened[:1].expand_as(whitened), rtol=0, atol=0.05)


def test_where_the_schedule_stands_still_no_network_is_asked():
    """At 2,000 steps some lie wholly beyond the clip."""
    exact = Exact()
    states = list(ode_states(gaussian("straight path", exact), start(2), falling(2000), "euler"))
    assert len(states) == 2000
    assert torch.equal(states[0], start(2))
    assert 1990 < exact.calls < 2000


@every_schedule
def test_labels_reach_the_denoiser(name):
    model, z = gaussian(name), start(3)
    labels = torch.tensor([0, 10, 20])
    expected = flow(model.schedule, z, MEAN + labels[:, None])
    *_, fixed = ode_states(model, z, falling(50), "rk4", labels)
    adaptive = ode_adaptive(model, z, 1e-6, 1e-6, labels)[-1]
    torch.testing.assert_close(fixed, expected, rtol=0, atol=1e-2)
    torch.testing.assert_close(adaptive, expected, rtol=0, atol=1e-2)


@pytest.mark.parametrize("transform", [pytest.param("neural", marks=pytest.mark.slow), "separable"])
def test_learned_transformations_have_the_ode_of_a_linear_schedule(transform):
    """Whatever the clock, in the limit it is one flow: that of a schedule with slopes, solved in its own time."""
    found = []
    for schedule in (ndm.CosineSchedule(gamma_min=-6.0, gamma_max=3.0), ndm.LinearSchedule(-6.0, 3.0)):
        torch.manual_seed(1)
        f = {
            "neural": lambda: ndm.Neural(ResidualMLP(3, hidden=8, depth=1, zero_init=False), gate="free"),
            "separable": lambda: ndm.Separable(
                ResidualMLP(3, hidden=8, depth=1, heads=2, level=False, zero_init=False), terms=2, gate="free"
            ),
        }[transform]()
        model = ndm.NDM(schedule, f, ndm.Denoiser(ResidualMLP(3, hidden=8, depth=1, zero_init=False))).double()
        with torch.no_grad():
            *_, end = ode_states(model, start(6), falling(60), "rk4")
        found.append(end)
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-3)


# ---- the SDE


def moments(model: ndm.NDM, steps: int, eta: float | None = None, n: int = 5000) -> tuple[Tensor, Tensor]:
    """Mean and deviation of z_0 / alpha_0."""
    generator = torch.Generator().manual_seed(1)
    *_, z = sde_states(model, start(n), falling(steps), eta, None, generator)
    x = z / ends(model.schedule)[0][0]
    return x.mean(0), x.std(0)


@pytest.mark.parametrize("name", ["straight path", "cosine", "betas"])  # whose z_1 is standard normal
@pytest.mark.parametrize("eta", [None, 0.5])
def test_the_sde_leaves_no_noise_of_its_steps(name, eta):
    model = gaussian(name)
    mean, deviation = moments(model, 50, eta)
    expected = (VARIANCE + math.exp(model.schedule.end_points()[0])).sqrt()
    torch.testing.assert_close(mean, MEAN, rtol=0, atol=0.06)
    torch.testing.assert_close(deviation[:2], expected[:2], rtol=0.15, atol=0)
    assert deviation[2] < 1.2 * expected[2]


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_the_sdes_first_step_counts(steps):
    """A single step has the mean of the data; steps that begin where the slope is infinite do not blow up."""
    for name in ("straight path", "cosine", "betas"):
        mean, deviation = moments(gaussian(name), steps)
        torch.testing.assert_close(mean, MEAN, rtol=0, atol=0.15)
        assert deviation.max() < 1


@every_schedule
def test_few_steps_that_are_even_in_gamma_do_not_blow_up(name):
    for solver in (None, "euler"):
        x = ndm.sample(
            gaussian(name), 2000, (3,), method="sde", steps=10 if solver is None else 60, solver=solver,
            dtype=torch.float64, generator=torch.Generator().manual_seed(0),
            spacing="gamma" if solver is None else None,
        )  # fmt: skip
        torch.testing.assert_close(x.mean(0), MEAN, rtol=0, atol=0.25)
        assert x.std(0).max() < 1


def test_the_exact_step_is_exact():
    """One point of data: y is x at every level, so that any number of steps has the marginal of every level."""

    class Point(nn.Module):
        def forward(self, z: Tensor, level: NoiseLevel) -> Tensor:
            return torch.full_like(z, 3.0)

    schedule = ndm.CosineSchedule()
    model = ndm.NDM(schedule, ndm.Identity(), Point())
    z = torch.randn(50_000, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for eta in (0.3, 1.0, 2.0):
        grid = torch.tensor([1.0, 0.4], dtype=torch.float64)
        (end,) = sde_states(model, z, grid, eta, None, torch.Generator().manual_seed(1))
        level = schedule(grid[1:])
        assert end.mean().item() == pytest.approx(3 * level.alpha.item(), abs=0.02)
        assert end.std().item() == pytest.approx(level.sigma.item(), abs=0.02)
