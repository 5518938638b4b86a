"""The bound by noise level, against closed forms and against the bound itself."""

from __future__ import annotations

import contextlib
import math
from itertools import pairwise

import pytest
import torch

import ndm
from ndm.data import Gaussian
from ndm.evaluation import bound_per_example, mean_and_error
from ndm.evaluation.auditing.levels import between, profile, reconstructions
from tests.evaluation.models import HIGH, LOW, Exact, R

EDGES = [LOW, -5.0, -2.0, 0.0, 2.5, HIGH]
SMALL = {"times": 20, "batch_size": 500}


def area(low: float, high: float) -> float:
    """The diffusion term of the exact model of two dimensions of N(0, R) from low to high: method, section 7."""
    return math.log((1 + R * math.exp(-low)) / (1 + R * math.exp(-high)))


def near(found: torch.Tensor, truth: float) -> None:
    mean, error = mean_and_error(found)
    assert abs(mean - truth) < 4 * error
    assert error < 0.05 * abs(truth) + 0.01


def test_every_interval_has_the_closed_forms_area(exact: ndm.NDM, gaussian: Gaussian) -> None:
    p = profile(exact, gaussian.examples("test"), EDGES, **SMALL)
    for low, high in pairwise(EDGES):
        near(p.diffusion(low, high), area(low, high))
    near(p.diffusion(-2.0), area(-2.0, HIGH))
    terms = bound_per_example(exact, gaussian.examples("test"), None, times=1)
    torch.testing.assert_close(p.prior, terms["prior"])


@pytest.mark.parametrize("schedule", [ndm.CosineSchedule(gamma_min=LOW, gamma_max=HIGH), ndm.OTSchedule(LOW, HIGH)])
def test_the_schedule_between_its_ends_does_not_matter(schedule: ndm.Schedule, gaussian: Gaussian) -> None:
    model = ndm.NDM(schedule, ndm.Identity(), Exact())
    near(profile(model, gaussian.examples("test"), EDGES, **SMALL).diffusion(LOW), area(LOW, HIGH))


def test_the_area_is_the_bounds_with_learned_noise(gaussian: Gaussian) -> None:
    noise = ndm.DimensionNoise((2,))
    with torch.no_grad():
        for p in noise.parameters():
            p.add_(0.5)
    model = ndm.NDM(ndm.LinearSchedule(LOW, HIGH), ndm.Identity(), Exact(), noise=noise)
    data = gaussian.examples("test")
    direct = bound_per_example(model, data, None, times=20)["diffusion"]
    difference = profile(model, data, EDGES, **SMALL).diffusion(LOW) - direct
    mean, error = mean_and_error(difference)
    assert abs(mean) < 4 * error < 0.5


def test_the_reconstruction_is_that_of_the_end(pixels: ndm.NDM, images) -> None:
    data, ends = images.examples("test"), [LOW, -5.0, -1.0]
    found = reconstructions(pixels, data, ends, pixels.decoder, **SMALL)
    for i, end in enumerate(ends):
        pixels.schedule = ndm.LinearSchedule(end, HIGH)
        truth = bound_per_example(pixels, data, None, times=40)["reconstruction"]
        mean, error = mean_and_error(found[:, i] - truth)
        assert abs(mean) < 4 * error + 1e-6
        assert error < 0.05 * truth.mean() + 0.02


def test_a_schedule_between_two_levels_is_temporary(pixels: ndm.NDM) -> None:
    own = pixels.schedule
    with contextlib.suppress(RuntimeError), between(pixels, -3.0, 1.0):
        assert pixels.schedule.end_points() == (-3.0, 1.0)
        level, truth = pixels.schedule(torch.tensor([0.25])), own.level_at(torch.tensor([-2.0]), torch.tensor([4.0]))
        for name in ("alpha", "sigma", "gamma", "dgamma", "dlog_sigma"):
            torch.testing.assert_close(getattr(level, name), getattr(truth, name))
        raise RuntimeError("stopped")
    assert pixels.schedule is own
    assert dict(pixels.named_children())["schedule"] is own
