"""Sampling steps that are even in gamma, and the spacing where none is given."""

from __future__ import annotations

import pytest
import torch

import ndm
from ndm.inference.sampling import sample
from tests.inference.gaussians import seeded, small


def curved(**parts) -> ndm.NDM:
    """The same network as small() has, with a schedule that is not linear between the same end points."""
    torch.manual_seed(1)
    model = small(**parts)
    model.schedule = ndm.CosineSchedule(gamma_min=-6, gamma_max=4)
    return model


def straight(**parts) -> ndm.NDM:
    torch.manual_seed(1)
    return small(**parts)


@pytest.mark.parametrize(("method", "eta"), [("ancestral", None), ("ancestral", 0.5), ("ddim", None)])
def test_even_in_gamma_the_schedule_does_not_matter(method, eta):
    """The discrete process knows noise levels alone, so its steps are those of a schedule that is linear in gamma."""
    options = {"n": 4, "shape": (2,), "method": method, "steps": 5, "eta": eta, "trajectory": True}
    found, in_time = (
        sample(curved(), **options, spacing=spacing, generator=seeded(0)) for spacing in ("gamma", "time")
    )
    expected = sample(straight(), **options, generator=seeded(0))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(in_time, expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(
    ("method", "solver"),
    [
        ("ode", "euler"),
        pytest.param("ode", "dpm++2m", marks=pytest.mark.slow),
        pytest.param("ode", "heun", marks=pytest.mark.slow),
        ("sde", None),
    ],
)
def test_the_solvers_steps_are_even_in_gamma(method, solver):
    """The noise levels that the network is asked at, and in the limit the solution of a linear schedule's ODE."""
    model, seen = curved(), []
    model.denoiser.net.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1][0].item()))
    sample(model, 4, (2,), method=method, steps=6, solver=solver, spacing="gamma", generator=seeded(0))
    gamma = -6 + 10 * torch.tensor(seen, dtype=torch.float64)  # of the network's level, 0 to 1
    expected = torch.linspace(4, -6, 7, dtype=torch.float64)
    gaps = (gamma[:, None] - expected[None]).abs().min(dim=1)
    assert (gaps.values < 1e-4).all()  # times are float32
    assert set(gaps.indices.tolist()) >= set(range(6))
    if method == "ode":
        many = [
            sample(m, 4, (2,), method="ode", steps=1000, solver=solver, spacing=s, generator=seeded(0))
            for m, s in ((curved(), "gamma"), (straight(), "time"))
        ]
        torch.testing.assert_close(*many, rtol=0.01, atol=0.01)


def test_a_calibration_for_other_steps_is_left_alone():
    model, options = curved(), {"steps": 4, "spacing": "gamma"}
    plain = sample(model, 4, (2,), **options, generator=seeded(0))
    model.calibrate(torch.randn(64, 2), steps=4)
    assert torch.equal(sample(model, 4, (2,), **options, generator=seeded(0)), plain)


def test_a_calibration_for_steps_that_are_even_in_gamma():
    x = torch.randn(64, 2, generator=seeded(2))
    found, expected = curved(), straight()
    found.calibrate(x, steps=4, spacing="gamma", generator=seeded(3))
    expected.calibrate(x, steps=4, generator=seeded(3))
    samples = [sample(m, 4, (2,), steps=4, generator=seeded(0)) for m in (found, expected)]
    torch.testing.assert_close(*samples, rtol=1e-4, atol=1e-4)
    times = (torch.arange(64) % 4 + 0.5) / 4
    bounds = [m.bound(x, 4, times=times, generator=seeded(4)).total for m in (found, expected)]
    torch.testing.assert_close(*bounds, rtol=1e-4, atol=1e-4)


def learned(**options) -> ndm.NDM:
    """The network of small(), with a learned schedule that is not linear."""
    model = straight()
    model.schedule = ndm.LearnedSchedule(-6, 4, **options)
    with torch.no_grad():
        model.schedule.logits.copy_(torch.linspace(-3, 3, 17))
    return model


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"eta": 0.5},
        {"method": "ddim"},
        {"method": "ode"},
        {"method": "sde"},
        {"method": "ode", "solver": "euler"},
    ],
)
@pytest.mark.parametrize(
    ("model", "own", "other"),
    [
        (learned(), "gamma", "time"),
        (learned(minimize_variance=False), "time", "gamma"),
        (curved(), "time", "gamma"),
    ],
    ids=["trained for variance", "trained by the bound", "fixed"],
)
def test_where_no_spacing_is_given_it_is_the_schedules_own(model, own, other, options):
    found, expected, different = (
        sample(model, 4, (2,), steps=5, **options, **spacing, generator=seeded(0))
        for spacing in ({}, {"spacing": own}, {"spacing": other})
    )
    assert torch.equal(found, expected)
    assert not torch.allclose(found, different, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", ["ode", "sde"])
def test_the_multistep_solver_takes_steps_that_are_even_in_gamma(method):
    found, expected, different = (
        sample(curved(), 4, (2,), steps=5, method=method, solver="dpm++2m", **spacing, generator=seeded(0))
        for spacing in ({}, {"spacing": "gamma"}, {"spacing": "time"})
    )
    assert torch.equal(found, expected)
    assert not torch.allclose(found, different, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("method", "solver"), [("ode", None), ("ode", "dopri5"), ("sde", "srk")])
def test_a_solver_that_chooses_its_steps_needs_no_spacing(method, solver):
    steps = None if method == "ode" else 4
    assert sample(learned(), 4, (2,), method=method, steps=steps, solver=solver, generator=seeded(0)).isfinite().all()


def test_where_no_spacing_is_given_a_calibration_has_its_own_steps():
    x, model = torch.randn(64, 2, generator=seeded(2)), learned()
    without = sample(model, 4, (2,), steps=4, generator=seeded(0))
    model.calibrate(x, steps=4, generator=seeded(3))  # in even steps of time
    assert torch.equal(
        sample(model, 4, (2,), steps=4, generator=seeded(0)),
        sample(model, 4, (2,), steps=4, spacing="time", generator=seeded(0)),
    )
    # What the calibration says nothing about: another volatility, and another number of steps.
    for options in ({"method": "ddim", "steps": 4}, {"steps": 5}):
        assert torch.equal(
            sample(model, 4, (2,), **options, generator=seeded(0)),
            sample(model, 4, (2,), **options, spacing="gamma", generator=seeded(0)),
        )
    assert torch.equal(sample(model.uncalibrate(), 4, (2,), steps=4, generator=seeded(0)), without)
