"""Sampling: bars, precision, modes, and arguments that are refused."""

from __future__ import annotations

import warnings

import pytest
import torch

import ndm
from ndm.inference.sampling import sample
from ndm.networks import ResidualMLP
from tests.inference.gaussians import EVERY_WAY, gaussian, seeded, small


@pytest.mark.parametrize(("method", "steps"), [("ancestral", 6), ("ddim", 6), ("ode", 6), ("sde", 6)])
def test_a_bar_is_shown_where_it_is_asked_for_and_only_there(method, steps, capsys):
    sample(small(), 2, (2,), method=method, steps=steps, progress=True)
    assert "sampling" in capsys.readouterr().err
    for progress in (False, None):  # None: nobody watches a file
        sample(small(), 2, (2,), method=method, steps=60, progress=progress)
        assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar_for_long_runs(capsys, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    sample(small(), 2, (2,), steps=49)
    assert "sampling" not in capsys.readouterr().err
    sample(small(), 2, (2,), steps=50)
    assert "sampling" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"steps": 0}, "number of steps must be at least 1, got 0"),
        ({"steps": -3, "method": "ode"}, "number of steps must be at least 1, got -3"),
        ({"n": 0}, "number of samples must be at least 1, got 0"),
        ({"method": "langevin"}, "no sampling method 'langevin'; choose one of ancestral, ddim, ode, sde"),
        ({"steps": None}, "'ancestral' needs a number of steps"),
        ({"steps": None, "method": "ddim"}, "'ddim' needs a number of steps"),
        ({"spacing": "log"}, "no spacing 'log' of the steps; choose one of time, gamma"),
        ({"spacing": "gamma", "method": "ode", "steps": None}, "gamma' cannot be used with an adaptive solver"),
        ({"spacing": "gamma", "method": "sde", "solver": "srk"}, "cannot be used with the solver 'srk'"),
        ({"method": "ode", "solver": "rk5"}, "no solver 'rk5'.*euler, midpoint, heun, rk4, .*dopri5"),
        ({"method": "sde", "solver": "heun"}, "no solver 'heun'.*euler-maruyama, .*euler, srk"),
        ({"method": "ode", "solver": "heun", "steps": None}, "'heun' needs a number of steps"),
        ({"method": "sde", "solver": "euler-maruyama", "steps": None}, "'euler-maruyama' needs a number of steps"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence(arguments, sentence):
    model = small().train()
    with pytest.raises(ValueError, match=sentence):
        sample(**{"model": model, "n": 2, "shape": (2,), "steps": 3, **arguments})
    assert model.training


@pytest.mark.parametrize("training", [True, False])
def test_samples_are_drawn_in_eval_mode_and_the_mode_is_restored(training):
    model = small(denoiser=ndm.Denoiser(ResidualMLP(2, hidden=8, dropout=0.9, zero_init=False))).train(training)
    seen = []
    model.denoiser.register_forward_pre_hook(lambda m, _: seen.append(m.training))
    model.denoiser.net.register_forward_pre_hook(lambda m, _: seen.append(m.training))
    x = sample(model, 2, (2,), steps=2, generator=seeded(0))
    assert seen
    assert not any(seen)
    assert model.training == training
    assert all(m.training == training for m in model.modules())
    assert not x.requires_grad


def test_the_precision_is_the_parameters_or_the_one_asked_for():
    model = small()
    assert sample(model, 1, (2,), steps=2).dtype == torch.float32
    assert sample(model.double(), 1, (2,), steps=2).dtype == torch.float64
    assert sample(gaussian(), 1, (2,), steps=2, dtype=torch.float64).dtype == torch.float64


def test_nothing_warns():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for method, steps, solver in EVERY_WAY:
            sample(small(), 2, (2,), method=method, steps=steps, solver=solver, rtol=1e-2, atol=1e-2)
