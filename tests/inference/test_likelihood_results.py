"""What a log-likelihood reports, what it draws from the generator, and what it refuses."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch import Tensor

import ndm
from ndm.inference.likelihood import log_likelihood
from tests.inference.densities import LOOSE, net, probed, seeded, small


def test_the_standard_error_is_zero_where_nothing_is_random_and_unknown_from_one_sample():
    x = torch.randn(3, 2, dtype=torch.float64)
    discrete = small(2, decoder=ndm.DiscretizedDecoder(levels=2))
    levels = torch.tensor([[-0.5, 0.5], [0.5, 0.5]], dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (log_likelihood(small(), x).stderr == 0).all()
        assert probed(small(), x, probes=1, **LOOSE).stderr.isnan().all()
        for dequantization in ("uniform", "variational", "importance"):
            assert (
                log_likelihood(discrete, levels, dequantization=dequantization, samples=1, **LOOSE).stderr.isnan().all()
            )
            assert (
                log_likelihood(discrete, levels, dequantization=dequantization, samples=2, **LOOSE).stderr > 0
            ).all()


def test_evaluations_are_counted_over_all_solves(monkeypatch):
    model = small(2, decoder=ndm.DiscretizedDecoder(levels=2))
    levels = torch.tensor([[-0.5, 0.5]], dtype=torch.float64)
    calls = []
    model.denoiser.register_forward_pre_hook(lambda *_: calls.append(1))
    model.denoiser.net.register_forward_pre_hook(lambda *_: calls.append(1))
    monkeypatch.setattr("ndm.inference.likelihood.NUMBERS_AT_ONCE", 4)  # two of five samples at a time: three solves
    result = log_likelihood(model, levels, samples=5, **LOOSE)
    assert isinstance(result.nfe, int)
    assert result.nfe == len(calls)
    assert result.nfe > 2 * log_likelihood(model, levels, samples=1, **LOOSE).nfe


def test_what_the_number_is_is_said_in_words():
    levels = torch.tensor([[-0.5, 0.5]], dtype=torch.float64)
    discrete = small(2, decoder=ndm.DiscretizedDecoder(levels=2))
    assert log_likelihood(small(), levels).kind == "density of the reverse ODE"
    kinds = [
        log_likelihood(discrete, levels, dequantization=name, tolerance=1.0).kind
        for name in (None, "uniform", "variational", "importance")
    ]
    assert kinds[0] == kinds[2]
    assert len(set(kinds)) == 3
    assert all("lower bound on log p(x)" in kind for kind in kinds)
    probed = log_likelihood(discrete, levels, divergence="hutchinson", dequantization="importance", tolerance=1.0)
    assert "not a bound" in probed.kind


def test_the_generator_gives_every_random_number():
    model = small(2, decoder=ndm.DiscretizedDecoder(levels=2))
    levels = torch.tensor([[-0.5, 0.5]], dtype=torch.float64)
    state = torch.get_rng_state()

    def draw(seed: int, dequantization: str) -> Tensor:
        return log_likelihood(
            model, levels, divergence="hutchinson", dequantization=dequantization, generator=seeded(seed), **LOOSE
        ).log_prob

    for dequantization in ("uniform", "variational", "importance"):
        assert torch.equal(draw(0, dequantization), draw(0, dequantization))
        assert not torch.equal(draw(0, dequantization), draw(1, dequantization))
    assert torch.equal(torch.get_rng_state(), state)


def test_the_model_is_in_eval_mode_and_its_mode_is_restored():
    model = small(2, denoiser=ndm.Denoiser(net(2, dropout=0.9))).train()
    x = torch.randn(2, 2, dtype=torch.float64)
    first = log_likelihood(model, x).log_prob
    assert model.training
    assert torch.equal(first, log_likelihood(model, x).log_prob)  # no dropout
    model.denoiser.net.input.requires_grad_(False)
    model.denoiser.net.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        log_likelihood(model, x)
    assert model.training
    assert {name for name, p in model.named_parameters() if not p.requires_grad} == {
        "denoiser.net.input.weight",
        "denoiser.net.input.bias",
    }


def test_a_direct_process_needs_its_head_for_f():
    x = torch.randn(2, 2, dtype=torch.float64)
    without = small(2, "neural", denoiser=ndm.DirectDenoiser(net(2)))
    with pytest.raises(ValueError, match=r"DirectDenoiser\(net, ode=True\)"):
        log_likelihood(without, x)
    with_it = small(2, "neural", denoiser=ndm.DirectDenoiser(net(2, heads=2), ode=True))
    assert log_likelihood(with_it, x).log_prob.isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"divergence": "hutchison"}, "no divergence 'hutchison'; choose one of 'auto', 'exact', 'hutchinson'"),
        ({"dequantization": "flow"}, "no dequantization 'flow'; choose one of 'uniform', 'variational', 'importance'"),
        ({"dequantization": "uniform"}, "for K-level data, and this model's decoder is for continuous data"),
        ({"probes": 0}, "must be at least 1, got probes=0"),
        ({"samples": 0}, "must be at least 1, got probes=4, samples=0"),
        ({"x": torch.tensor([[math.nan, 0.0]])}, "NaN or infinite"),
        ({"x": torch.tensor([[0, 1]])}, "continuous data and got integers"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        log_likelihood(**{"model": small(), "x": torch.zeros(1, 2).double(), **arguments})


def test_data_off_the_levels_are_refused():
    with pytest.raises(ValueError, match="do not lie on the decoder's K = 3 levels"):
        log_likelihood(small(1, decoder=ndm.DiscretizedDecoder(levels=3)), torch.full((1, 1), 0.1).double())
