"""The bound with other ends of the schedule, against closed forms and against models that have these ends."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

import ndm
from ndm.data import Gaussian, Tensors
from ndm.evaluation import bound_per_example, mean_and_error
from ndm.evaluation.auditing.bounds import Part
from ndm.evaluation.auditing.ends import CHANGES, end_rows, ends_left_out, lowest_allowed, possible_ends
from ndm.evaluation.auditing.levels import profile
from ndm.evaluation.auditing.results import EndRow
from tests.evaluation.models import HIGH, LOW, Exact, R

SMALL = {"times": 30, "seed": 0, "batch_size": 500}


def rows(model: ndm.NDM, data, ends: list[float], scale: float = 1.0) -> list[EndRow]:
    part = Part.of(data, "test", None, 0, False)
    edges = sorted({*ends, model.schedule.end_points()[1]})
    return end_rows(model, part, profile(model, part.examples, edges, **SMALL), ends, scale, **SMALL)


def truth(low: float) -> float:
    """The bound of two dimensions of N(0, R) from a noise level on: method, sections 3 and 7."""
    diffusion = math.log((1 + R * math.exp(-low)) / (1 + R * math.exp(-HIGH)))
    sigma_squared = 1 / (1 + math.exp(-HIGH))
    prior = sigma_squared + (1 - sigma_squared) * R - 1 - math.log(sigma_squared)
    return diffusion + prior + math.log(2 * math.pi) + low + 1


def test_every_end_has_the_closed_forms_bound(exact: ndm.NDM, gaussian: Gaussian) -> None:
    found = rows(exact, gaussian, [LOW, -7.0, -4.0, 0.0])
    assert [(r.gamma_0, r.own) for r in found] == [(LOW, True), (-7.0, False), (-4.0, False), (0.0, False)]
    for row in found:
        assert abs(row.total.value - truth(row.gamma_0)) < 4 * row.total.stderr < 0.5
        assert abs(row.saving.value - (truth(LOW) - truth(row.gamma_0))) < 4 * row.saving.stderr + 1e-9
    assert found[0].saving == (0.0, 0.0)
    assert found[3].reconstruction.value == pytest.approx(math.log(2 * math.pi) + 1, abs=1e-5)


def test_lower_ends_have_the_closed_forms_bound_as_well(gaussian: Gaussian) -> None:
    model = ndm.NDM(ndm.LinearSchedule(-2.0, HIGH), ndm.Identity(), Exact())
    assert lowest_allowed(model, -6.0) == (-6.0, "")
    found = rows(model, gaussian, [-2.0, -6.0, -4.0])
    assert [r.gamma_0 for r in found] == [-2.0, -6.0, -4.0]
    for row in found:
        assert abs(row.total.value - truth(row.gamma_0)) < 4 * row.total.stderr < 0.5


def test_an_end_of_pixels_is_the_model_with_this_schedule(pixels: ndm.NDM, images: Tensors) -> None:
    scale = 1 / (16 * math.log(2))
    for row in rows(pixels, images, [LOW, -6.0, -3.0], scale):
        other = ndm.NDM(ndm.LinearSchedule(row.gamma_0, HIGH), ndm.Identity(), pixels.denoiser, pixels.decoder)
        terms = bound_per_example(other, images.examples("test"), None, times=60)
        for name in ("total", "reconstruction", "diffusion"):
            mean, error = mean_and_error(terms[name] * scale)
            found = getattr(row, name)
            assert abs(found.value - mean) < 4 * math.hypot(error, found.stderr) + 1e-6, name


def test_a_denoised_decoder_is_compared_with_a_discretised_one(images: Tensors) -> None:
    torch.manual_seed(0)
    decoder = ndm.DenoisedDecoder(16, log_variance=-4.0, ends=False)
    model = ndm.NDM(ndm.LinearSchedule(LOW, HIGH), ndm.Identity(), Exact3(), decoder)
    found = rows(model, images, [LOW, -6.0])
    assert [(r.gamma_0, r.decoder, r.own) for r in found] == [
        (LOW, "DenoisedDecoder", True), (LOW, "DiscretizedDecoder", False), (-6.0, "DiscretizedDecoder", False),
    ]  # fmt: skip
    for row, other in zip(found, (decoder, ndm.DiscretizedDecoder(16), None), strict=True):
        if other is not None:
            model.decoder = other
            truth = bound_per_example(model, images.examples("test"), None, times=40)["reconstruction"]
            mean, error = mean_and_error(truth)
            assert abs(row.reconstruction.value - mean) < 4 * math.hypot(error, row.reconstruction.stderr) + 1e-4
    gain = found[0].total.value - found[1].total.value
    assert found[1].saving.value == pytest.approx(gain)


class Exact3(torch.nn.Module):
    """A denoiser of images: the posterior mean of N(0, 1/3)."""

    def forward(self, z: Tensor, level: ndm.NoiseLevel) -> Tensor:
        alpha, sigma = level.alpha[:, None, None, None], level.sigma[:, None, None, None]
        return alpha * z / (alpha**2 + 3 * sigma**2)


# ---- which ends are possible


def test_ends_are_raised_and_only_lowered_if_it_is_allowed(exact: ndm.NDM) -> None:
    assert possible_ends(exact, None) == [LOW, *(LOW + by for by in CHANGES)]
    lower = possible_ends(exact, LOW - 1.2)
    assert lower[0] == LOW
    assert [g for g in lower if g < LOW] == [LOW - 1.2, LOW - 1.0, LOW - 0.5]
    narrow = ndm.NDM(ndm.LinearSchedule(-2.0, 0.0), ndm.Identity(), Exact())
    assert possible_ends(narrow, None) == [-2.0, -1.5]


@pytest.mark.parametrize(
    ("options", "asked", "allowed"),
    [
        ({"gamma_range": (-12.0, 5.0)}, -10.0, True),
        ({"gamma_range": (-12.0, 5.0)}, -13.0, False),
        ({}, -10.0, False),  # the range is that of the schedule
        ({"time": "sigma"}, -10.0, True),
        ({"time": "gamma"}, -10.0, True),
        ({"time": "t"}, -10.0, False),
        ({"time": "t", "clock": ndm.LinearSchedule(-11.0, 5.0)}, -10.0, True),
    ],
)
def test_lower_ends_need_networks_that_know_them(options: dict, asked: float, allowed: bool) -> None:
    denoiser = ndm.Denoiser(lambda z, u: z, "v", **options)
    model = ndm.NDM(ndm.LinearSchedule(LOW, 5.0), ndm.Identity(), denoiser)
    lowest, reason = lowest_allowed(model, asked)
    assert (lowest == asked, reason == "") == (allowed, allowed)
    assert lowest_allowed(model, None) == lowest_allowed(model, LOW + 1) == (None, "")


def test_a_transformation_must_know_them_as_well(exact: ndm.NDM) -> None:
    from ndm.networks import ResidualMLP

    exact.transform = ndm.Neural(ResidualMLP(2, hidden=4))
    lowest, reason = lowest_allowed(exact, -10.0)
    assert lowest is None
    assert reason.startswith("a part of the model maps the noise levels from -8 on")


def test_models_whose_parts_hold_the_end_are_left_out(exact: ndm.NDM) -> None:
    assert ends_left_out(exact) == ""
    noisy = ndm.NDM(ndm.LinearSchedule(), ndm.Identity(), Exact(), noise=ndm.DimensionNoise((2,)))
    assert "learned noise" in ends_left_out(noisy)
    given = SimpleNamespace(
        noise=None, schedule=exact.schedule, denoiser=SimpleNamespace(default_states=lambda n: torch.zeros(n, 2))
    )
    assert "given others" in ends_left_out(given)  # type: ignore[arg-type]
