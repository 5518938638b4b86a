"""The solvers against closed forms, and the reason why the adaptive one steps each example by itself."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torchdiffeq import odeint

from ndm.inference.solvers import FIXED_STEP_ODE, FIXED_STEP_SDE, solve_adaptive, solve_fixed, solve_sde

SLOW, STIFF = 1.0, 200.0


def turning(rates: Tensor):
    """dz/dt = rate (-z_2, z_1): a circle run through at an angular velocity of each example's own; B = len(rates)."""

    def drift(t: Tensor, z: Tensor) -> Tensor:
        return rates[:, None] * torch.stack([-z[:, 1], z[:, 0]], dim=1)

    return drift


def turned(z: Tensor, angle: Tensor) -> Tensor:
    """The exact solution of :func:`turning` after the given angles, (..., B)."""
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([cos * z[:, 0] - sin * z[:, 1], sin * z[:, 0] + cos * z[:, 1]], dim=-1)


def alone_and_in_company(solve) -> tuple[Tensor, Tensor]:
    """The slow example's answer by itself, and beside a stiff one."""
    z = torch.tensor([[1.0, 0.0], [0.3, -0.7]], dtype=torch.float64)
    rates = torch.tensor([SLOW, STIFF], dtype=torch.float64)
    return solve(turning(rates[:1]), z[:1])[0], solve(turning(rates), z)[0]


# ---- adaptive steps


def test_a_stiff_neighbour_does_not_change_an_examples_answer():
    """The evidence for torchode: the same tolerances, the same answer up to the rounding of sums."""
    alone, accompanied = alone_and_in_company(lambda f, z: solve_adaptive(f, z, 0.0, 1.0, 1e-5, 1e-5).states[-1])
    torch.testing.assert_close(accompanied, alone, rtol=0, atol=1e-13)


def test_with_a_shared_step_a_stiff_neighbour_does_change_it():
    """The evidence against the obvious alternative, torchdiffeq's dopri5, whose examples share a step size."""
    times = torch.tensor([0.0, 1.0], dtype=torch.float64)
    alone, accompanied = alone_and_in_company(lambda f, z: odeint(f, z, times, rtol=1e-5, atol=1e-5)[-1])
    assert (alone - accompanied).abs().max() > 1e-6


def test_only_the_stiff_example_takes_many_steps():
    z = torch.tensor([[1.0, 0.0], [0.3, -0.7]], dtype=torch.float64)
    solution = solve_adaptive(turning(torch.tensor([SLOW, STIFF]).double()), z, 0.0, 1.0, 1e-5, 1e-5)
    assert solution.steps[1] > 10 * solution.steps[0]
    assert isinstance(solution.evaluations, int)
    assert solution.evaluations >= 6 * solution.steps[1]  # Dormand and Prince's method has six new stages a step


@pytest.mark.parametrize(("start", "stop"), [(0.0, 1.0), (1.0, 0.0), (0.25, 0.75)])
@pytest.mark.parametrize(("dtype", "tolerance", "error"), [(torch.float64, 1e-9, 1e-7), (torch.float32, 1e-5, 5e-4)])
def test_adaptive_is_as_accurate_as_asked_in_both_directions(start, stop, dtype, tolerance, error):
    """Every example, those that finished early included: their neighbour goes on for hundreds of steps."""
    rates = torch.tensor([SLOW, 0.0, 40.0, 3.0], dtype=dtype)
    z = torch.randn(4, 2, dtype=dtype)
    end = solve_adaptive(turning(rates), z, start, stop, tolerance, tolerance).states[-1]
    assert end.dtype == dtype
    torch.testing.assert_close(end, turned(z, rates * (stop - start)), rtol=0, atol=error)


def test_time_reaches_the_drift_per_example_and_stays_within_the_interval():
    """dz/dt = a cos(a t): z = sin(a t). A schedule is only defined between 0 and 1, also for examples that are done."""
    rates = torch.tensor([0.5, 50.0, 3.0], dtype=torch.float64)
    seen = []

    def drift(t: Tensor, z: Tensor) -> Tensor:
        assert t.shape == (3,)
        seen.append(t.clone())
        return (rates * torch.cos(rates * t))[:, None, None].expand_as(z)

    z = torch.zeros(3, 2, 2, dtype=torch.float64)
    end = solve_adaptive(drift, z, 1.0, 0.0, 1e-8, 1e-8).states[-1]
    torch.testing.assert_close(end, -torch.sin(rates)[:, None, None].expand_as(z), rtol=0, atol=1e-6)
    times = torch.stack(seen)
    assert times.min() >= 0
    assert times.max() <= 1


@pytest.mark.parametrize(("start", "stop"), [(0.0, 1.0), (1.0, 0.0)])
def test_the_path_is_followed_at_evenly_spaced_times(start, stop):
    rates = torch.tensor([SLOW, 25.0], dtype=torch.float64)
    z = torch.randn(2, 2, dtype=torch.float64)
    path = solve_adaptive(turning(rates), z, start, stop, 1e-9, 1e-9, points=7).states
    assert path.shape == (7, 2, 2)
    elapsed = (stop - start) * torch.arange(1, 8, dtype=torch.float64) / 7
    torch.testing.assert_close(path, turned(z, elapsed[:, None] * rates), rtol=0, atol=1e-5)
    end = solve_adaptive(turning(rates), z, start, stop, 1e-9, 1e-9).states[-1]
    torch.testing.assert_close(path[-1], end, rtol=0, atol=1e-9)


def test_giving_up_is_said_in_a_sentence():
    z = torch.ones(1, 2)
    with pytest.raises(RuntimeError, match=r"failed \(limit: 5 steps, rtol=1e-05, atol=1e-06\)"):
        solve_adaptive(turning(torch.tensor([STIFF])), z, 0.0, 1.0, 1e-5, 1e-6, max_steps=5)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_drift_that_is_not_finite_is_given_up_on(value):
    def drift(t: Tensor, z: Tensor) -> Tensor:
        return torch.where(t[:, None] > 0.5, value, 1.0) * torch.ones_like(z)

    with pytest.raises(RuntimeError, match="too stiff or not finite"):
        solve_adaptive(drift, torch.zeros(2, 1), 0.0, 1.0, 1e-5, 1e-5, max_steps=200)


# ---- fixed steps


def grid(start: float, stop: float, steps: int):
    times = torch.linspace(start, stop, steps + 1, dtype=torch.float64)
    return pairwise(times)


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("midpoint", 2), ("heun", 2), ("rk4", 4)])
@pytest.mark.parametrize(("start", "stop"), [(0.0, 1.0), (1.0, 0.0)])
def test_fixed_steps_converge_at_the_methods_order(method, order, start, stop):
    """dz/dt = t z has the solution z exp((stop^2 - start^2) / 2); halving the steps divides the error by 2^order."""

    def error(steps: int) -> float:
        z = torch.ones(2, 3, dtype=torch.float64)
        states = list(solve_fixed(lambda t, y: t[:, None] * y, z, grid(start, stop, steps), method))
        assert len(states) == steps
        return (states[-1] - math.exp((stop**2 - start**2) / 2)).abs().max().item()

    assert math.log2(error(16) / error(32)) == pytest.approx(order, abs=0.25)


def test_every_fixed_step_method_has_its_order_tested():
    assert set(FIXED_STEP_ODE) == {"euler", "midpoint", "heun", "rk4"}


# ---- stochastic equations


@pytest.mark.parametrize(("method", "steps"), [("euler", 200), ("srk", 50), ("srk", None)])
def test_an_ornstein_uhlenbeck_process_has_its_moments(method, steps):
    """From t = 1 to 0, dz = 2 (z - 3) dt + (1 + t) dw forgets z_1 = 5: with tau = 1 - t,

    E z = 3 + 2 e^{-2}, and var z = integral_0^1 e^{-4 (1 - tau)} (2 - tau)^2 dtau.
    """
    tau = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    variance = (torch.exp(-4 * (1 - tau)) * (2 - tau) ** 2).mean().item()
    n = 4000
    states = solve_sde(
        lambda t, z: 2 * (z - 3),
        lambda t, z: 1 + t,
        torch.full((n, 1, 2), 5.0, dtype=torch.float64),
        steps, method, 1e-2, 1e-2, torch.Generator().manual_seed(1),
    )  # fmt: skip
    assert states.shape == (steps or 100, n, 1, 2)
    z = states[-1].flatten()
    assert z.mean().item() == pytest.approx(3 + 2 * math.exp(-2), abs=4 * math.sqrt(variance / z.numel()) + 0.005)
    assert z.var().item() == pytest.approx(variance, rel=4 * math.sqrt(2 / z.numel()) + 0.01)


@pytest.mark.parametrize("method", FIXED_STEP_SDE)
def test_the_brownian_path_is_the_generators(method):
    def end(seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return solve_sde(
            lambda t, z: z, lambda t, z: torch.ones_like(t), torch.zeros(3, 2), 10, method, 1e-3, 1e-3, generator
        )

    before = torch.get_rng_state()
    assert torch.equal(end(0), end(0))
    assert not torch.equal(end(0), end(1))
    assert torch.equal(torch.get_rng_state(), before)
