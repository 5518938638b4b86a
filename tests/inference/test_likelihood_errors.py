"""The stated error of a log-likelihood covers the true one, whatever the schedule or the mixture."""

from __future__ import annotations

import copy
import math
import warnings

import pytest
import torch

import ndm
from ndm.inference.likelihood import log_likelihood
from tests.inference.densities import SCHEDULES, Exact, Mixed, bent, density_along_the_ode, seeded, small, truth


@pytest.mark.parametrize(
    "divergence",
    ["exact", pytest.param("hutchinson", marks=pytest.mark.slow)],  # the Jacobian is diagonal: a probe is exact as well
)
@pytest.mark.parametrize("tolerance", [None, 1.0, 1e-4])
@pytest.mark.parametrize("name", SCHEDULES)
def test_the_stated_error_covers_the_true_one_whatever_the_schedule(name, tolerance, divergence):
    """Also where the data have hardly any variance in some directions, and much in others."""
    schedule, variance = SCHEDULES[name](), torch.tensor([1.0, 1e-8, 1e-4, 30.0], dtype=torch.float64)
    model = ndm.NDM(schedule, ndm.Identity(), Exact(torch.zeros(4).double(), variance.diag()))
    gamma_0 = schedule.end_points()[0]
    x = torch.randn(20, 4, dtype=torch.float64, generator=seeded(0)) * (variance + math.exp(gamma_0)).sqrt()
    with torch.no_grad():
        found, expected = (
            log_likelihood(model, x, divergence=divergence, tolerance=tolerance),
            truth(schedule, variance, x),
        )
    error = (found.log_prob - expected).abs()
    assert found.solved.all()
    assert (error <= found.solver_error).all()
    assert (found.solver_error <= (tolerance or 0.04)).all()


def test_schedules_with_the_same_end_points_give_the_same_density():
    """F and the denoiser see gamma alone."""
    x, found = torch.randn(5, 2, dtype=torch.float64, generator=seeded(0)), []
    low, high = -6.0, ndm.DDPMSchedule().end_points()[1]
    for schedule in (
        ndm.LinearSchedule(low, high), ndm.CosineSchedule(0.008, low, high), ndm.DDPMSchedule(gamma_min=low),
        bent(low, high),
    ):  # fmt: skip
        torch.manual_seed(0)
        found.append(log_likelihood(small(transform="separable", schedule=schedule), x, tolerance=1e-3))
        torch.testing.assert_close(found[-1].log_prob, found[0].log_prob, rtol=0, atol=1e-5)
        assert found[-1].nfe == found[0].nfe


@pytest.mark.parametrize("transform", ["identity", pytest.param("separable", marks=pytest.mark.slow)])
def test_the_stated_error_covers_the_true_one_of_networks(transform):
    """Row by row, though errors of either sign may cancel in some of them."""
    model, x = small(3, transform), 2 * torch.randn(200, 3, dtype=torch.float64, generator=seeded(4))
    for p in model.denoiser.parameters():  # rougher than a network is to begin with
        p.data.mul_(1.5)
    exact = log_likelihood(model, x, tolerance=1e-4).log_prob
    for tolerance in (0.3, 0.03):
        found = log_likelihood(model, x, tolerance=tolerance)
        covered = (found.log_prob - exact).abs() <= found.solver_error
        assert covered.double().mean() > 0.99
        assert found.solver_error.mean() < tolerance


MIXTURES = {
    "narrow": ([0.7, 0.3], [0.0, 0.0], [1e-6, 1.0]),
    "two": ([0.5, 0.5], [-1.0, 1.0], [1e-2, 1e-2]),
    "rare": ([0.01, 0.99], [3.0, -0.1], [1e-3, 1.0]),
}


@pytest.mark.parametrize(
    "kind",
    [
        ndm.LinearSchedule,
        pytest.param(ndm.CosineSchedule, marks=pytest.mark.slow),
        ndm.OTSchedule,
        pytest.param(ndm.DDPMSchedule, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("name", ["rare", *(pytest.param(n, marks=pytest.mark.slow) for n in MIXTURES if n != "rare")])
def test_the_solvers_error_is_covered_where_paths_turn_sharply(kind: type[ndm.Schedule], name: str) -> None:
    schedule, mixture = kind(), Mixed(*MIXTURES[name])
    model = ndm.NDM(schedule, ndm.Identity(), mixture).double()
    # Not between two narrow modes, where the share of the mass below a point says too little about it.
    places = [-1.5, -1.1, -0.9, 0.8, 1.3] if name == "two" else [-2.5, -0.03, 0.001, 0.004, 0.012, 0.9, 2.9, 3.1]
    x = torch.tensor(places, dtype=torch.float64)
    expected = torch.tensor([density_along_the_ode(schedule, mixture, value) for value in x.tolist()])
    for tolerance in (1e-2, 1e-5):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # of those that are not solved
            found = log_likelihood(model, x[:, None], tolerance=tolerance)
        assert found.solved.sum() >= len(x) - 3
        assert ((found.log_prob - expected).abs() <= found.solver_error + 1e-8).all()


@pytest.mark.slow
def test_the_stated_error_knows_of_rounding():
    model, x = small().float(), torch.randn(100, 2, generator=seeded(0))
    x[:10] *= 1000
    exact = log_likelihood(small_as(model), x.double(), tolerance=1e-8).log_prob
    found = log_likelihood(model, x, tolerance=1e-3)
    assert ((found.log_prob - exact).abs() <= found.solver_error).double().mean() >= 0.99
    assert ((found.log_prob - exact).abs() > 1e-3)[:10].any()  # some cannot be that exact, and


def small_as(model: ndm.NDM) -> ndm.NDM:
    return copy.deepcopy(model).double()
