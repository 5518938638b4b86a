"""Hutchinson's probes of the divergence: without bias, with an honest standard error."""

from __future__ import annotations

import math

import pytest
import torch

import ndm
from ndm.inference.likelihood import log_likelihood
from ndm.networks import UNet
from tests.inference.densities import LOOSE, probed, small


def test_the_probes_are_unbiased_and_their_standard_error_is_honest():
    """Over many examples the exact value lies within the t interval of the estimate as often as it says, 95%."""
    model, n, probes = small(6), 300, 12
    x = torch.randn(n, 6, dtype=torch.float64)
    exact = log_likelihood(model, x, divergence="exact")
    estimate = probed(model, x, probes)
    error = (estimate.log_prob - exact.log_prob) / estimate.stderr
    inside = (error.abs() < 2.201).double().mean().item()  # the 97.5% quantile of t with 11 degrees of freedom
    assert inside == pytest.approx(0.95, abs=4 * math.sqrt(0.95 * 0.05 / n))
    bias = (estimate.log_prob - exact.log_prob).mean().item()
    assert abs(bias) < 4 * estimate.stderr.square().mean().sqrt().item() / math.sqrt(n)
    assert estimate.stderr.mean() > 1e-3  # there was something to estimate


@pytest.mark.parametrize("transform", ["neural", "separable"])
@pytest.mark.slow
def test_the_probes_see_learned_transformations(transform):
    model = small(4, transform)
    x = torch.randn(64, 4, dtype=torch.float64)
    exact, estimate = log_likelihood(model, x, divergence="exact", **LOOSE), probed(model, x, 8, **LOOSE)
    error = (estimate.log_prob - exact.log_prob).mean().item()
    assert abs(error) < 4 * estimate.stderr.square().mean().sqrt().item() / 8
    assert estimate.stderr.mean() > 1e-3


@pytest.mark.slow
def test_a_unet_with_attention_has_a_likelihood():
    unet = UNet(1, width=8, multipliers=(1,), attention=True, zero_init=False)
    model = ndm.NDM(ndm.LinearSchedule(-4, 4), ndm.Identity(), ndm.Denoiser(unet)).double()
    x = torch.randn(3, 1, 4, 4, dtype=torch.float64)
    exact = log_likelihood(model, x, divergence="exact", tolerance=1e-3)
    estimate = probed(model, x, 48, tolerance=1e-3)
    assert (estimate.stderr > 1e-3).all()
    assert ((estimate.log_prob - exact.log_prob).abs() < 4 * estimate.stderr).all()


def test_auto_is_exact_for_few_dimensions_and_probed_for_many():
    few = log_likelihood(small(3), torch.randn(2, 3, dtype=torch.float64))
    assert few.stderr.tolist() == [0.0, 0.0]
    many = log_likelihood(small(130), torch.randn(2, 130, dtype=torch.float64))
    assert (many.stderr > 0).all()
