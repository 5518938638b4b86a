"""The sampler of a model for which none is given."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import ndm
from ndm.inference.sampling import default_sampler
from ndm.networks import ResidualMLP
from tests.inference.gaussians import seeded, small

ODE = ndm.SamplerOptions(method="ode", solver="dpm++2m", steps=32)


def direct(ode: bool) -> ndm.NDM:
    return small(denoiser=ndm.DirectDenoiser(ResidualMLP(2, hidden=8, depth=1, heads=1 + ode), ode=ode))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ODE),
        ({"steps": 7}, ODE.changed(steps=7)),
        ({"solver": "heun", "guidance": 2.0}, ODE.changed(solver="heun", guidance=2.0)),
        ({"method": "ancestral"}, ndm.SamplerOptions()),
        ({"method": "ode", "steps": None}, ndm.SamplerOptions(method="ode", steps=None)),
        ({"eta": 0.5}, ndm.SamplerOptions(eta=0.5)),
    ],
)
def test_a_model_with_an_ode(changes: dict[str, Any], expected: ndm.SamplerOptions) -> None:
    for model in (small(), direct(ode=True)):
        assert default_sampler(model, **changes) == expected


def test_a_model_without_an_ode() -> None:
    assert default_sampler(direct(ode=False)) == ndm.SamplerOptions()
    assert default_sampler(direct(ode=False), steps=7) == ndm.SamplerOptions(steps=7)
    assert ndm.sample(direct(ode=False), 2, (2,)).isfinite().all()


def test_it_is_taken_where_no_option_is_given() -> None:
    model = small()
    expected = ndm.sample(model, 4, (2,), ODE, generator=seeded(0))
    assert torch.equal(ndm.sample(model, 4, (2,), generator=seeded(0)), expected)
    blocks = [torch.cat([x for _, x in ndm.sample_batches(model, 4, (2,), *given)]) for given in ((), (ODE,))]
    assert torch.equal(*blocks)
    one_option = ndm.sample(model, 4, (2,), steps=5, generator=seeded(0))
    assert torch.equal(one_option, ndm.sample(model, 4, (2,), method="ancestral", steps=5, generator=seeded(0)))


def test_another_method_has_its_own_solver() -> None:
    assert ODE.changed(method="sde").solver is None
    assert ODE.changed(method="ancestral").solver is None
    assert ODE.changed(method="sde", solver="dpm++2m").solver == "dpm++2m"
    assert ODE.changed(method="ode").solver == "dpm++2m"
