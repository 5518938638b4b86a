"""The options of a sampler."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

import ndm
from ndm.evaluation import EvaluationOptions
from ndm.inference.options import METHODS
from ndm.inference.solvers import FIXED_STEP_ODE
from ndm.networks import ResidualMLP


def small() -> ndm.NDM:
    torch.manual_seed(0)
    net = ResidualMLP(2, hidden=8, depth=1, zero_init=False)
    return ndm.NDM(ndm.LinearSchedule(), ndm.Identity(), ndm.Denoiser(net), standardize=ndm.Standardize([0, 0], [1, 1]))


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"method": "langevin"}, "no sampling method 'langevin'; choose one of ancestral, ddim, ode, sde"),
        ({"steps": 0}, "number of steps must be at least 1, got 0"),
        ({"steps": 2.5}, r"number of steps must be a whole number, got 2\.5"),
        ({"steps": None}, "'ancestral' needs a number of steps"),
        ({"eta": -1.0}, "eta must be a finite number"),
        ({"eta": math.nan}, "eta must be a finite number"),
        ({"method": "ddim", "eta": 0.0}, "eta, the volatility, is for the methods ancestral and sde"),
        ({"spacing": "log"}, "no spacing 'log' of the steps; choose one of time, gamma"),
        ({"method": "ode", "solver": "dopri5", "spacing": "gamma"}, "cannot be used with the solver 'dopri5'"),
        ({"method": "sde", "steps": None, "spacing": "gamma"}, "cannot be used with an adaptive solver"),
        ({"method": "ode", "solver": "srk"}, r"no solver 'srk'.*euler, midpoint, heun, rk4, dpm\+\+2m, dopri5"),
        ({"solver": "dpm++2m"}, "A solver is for the methods ode and sde; leave it out with 'ancestral'"),
        ({"method": "sde", "solver": "dpm++2m", "steps": None}, r"'dpm\+\+2m' needs a number of steps"),
        ({"method": "ode", "solver": "rk4", "steps": None}, "'rk4' needs a number of steps"),
        ({"rtol": -1e-3}, r"rtol and atol must be finite and at least 0, got rtol=-0\.001"),
        ({"atol": math.inf}, "rtol and atol must be finite and at least 0"),
    ],
)
def test_wrong_values_are_refused_where_they_are_given(fields: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        ndm.SamplerOptions(**fields)
    with pytest.raises(ValueError, match=sentence):
        ndm.SamplerOptions().changed(**fields)
    with pytest.raises(ValueError, match=sentence):
        EvaluationOptions(sampling={"steps": 100, **fields})


@pytest.mark.filterwarnings("ignore:Numerical solution is not guaranteed")  # torchsde's adaptive euler
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("steps", [None, 5])
@pytest.mark.parametrize("solver", [None, *FIXED_STEP_ODE, "dpm++2m", "dopri5", "euler-maruyama", "srk"])
def test_every_accepted_combination_samples(method: str, steps: int | None, solver: str | None) -> None:
    try:
        options = ndm.SamplerOptions(method=method, steps=steps, solver=solver, rtol=1e-1, atol=1e-1)
    except ValueError:
        return
    x = ndm.sample(small(), 2, (2,), options, generator=seeded())
    assert x.isfinite().all()


def test_options_and_keywords_give_the_same_samples() -> None:
    model, options = small(), ndm.SamplerOptions(method="sde", steps=7, eta=0.5)
    expected = ndm.sample(model, 4, (2,), method="sde", steps=7, eta=0.5, generator=seeded())
    assert torch.equal(ndm.sample(model, 4, (2,), options, generator=seeded()), expected)
    assert torch.equal(model.sample(4, options=options, generator=seeded()), expected)
    changed = ndm.sample(model, 4, (2,), options, steps=3, generator=seeded())
    assert not torch.equal(changed, expected)
    assert torch.equal(changed, ndm.sample(model, 4, (2,), options.changed(steps=3), generator=seeded()))

    def blocks(*given: object, **keywords: object) -> Tensor:
        return torch.cat([x for _, x in ndm.sample_batches(model, 5, (2,), *given, batch_size=2, **keywords)])

    assert torch.equal(blocks(options), blocks(method="sde", steps=7, eta=0.5))


def test_options_cannot_be_changed_in_place() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        ndm.SamplerOptions().steps = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("keywords", "sentence"),
    [
        ({"step": 3}, "no sampling option 'step'; did you mean 'steps'"),
        ({"label": [0, 1]}, "no sampling option 'label'; did you mean 'labels'"),
        ({"quite_other": 3}, "no sampling option 'quite_other'; there are method, steps, eta, solver, "),
        ({"options": "ode"}, r"options must be SamplerOptions, got 'ode'; .*method="),
    ],
)
def test_an_unknown_keyword_names_the_nearest_one(keywords: dict[str, object], sentence: str) -> None:
    for draw in (ndm.sample, ndm.sample_batches, small().sample.__func__):  # type: ignore[attr-defined]
        with pytest.raises(TypeError, match=sentence):
            draw(small(), 2, (2,), **keywords)


def test_the_sampler_of_an_evaluation() -> None:
    assert EvaluationOptions().sampler == ndm.SamplerOptions(steps=250)
    assert EvaluationOptions(sampling={"method": "ddim"}).sampler == ndm.SamplerOptions(method="ddim", steps=250)
    options = ndm.SamplerOptions(method="ode", steps=None)
    assert EvaluationOptions(sampling=options).sampler is options
    assert EvaluationOptions().changed(sampling=options).sampler is options
    with pytest.raises(TypeError, match="no sampling option 'setps'; did you mean 'steps'"):
        EvaluationOptions(sampling={"setps": 3})
