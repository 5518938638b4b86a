"""The numbers of the ODE, against the density of the exact model."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import ndm
from ndm._internal.random import seed_of
from ndm.data import Gaussian, Tensors
from ndm.evaluation.auditing import flow
from ndm.evaluation.auditing.bounds import Part
from ndm.evaluation.auditing.flow import integral, likelihoods
from ndm.evaluation.auditing.options import AuditOptions
from tests.evaluation.models import LOW, Exact, R


@pytest.fixture
def far() -> ndm.NDM:
    """The exact model, to a noise level at which nothing of the data is left."""
    return ndm.NDM(ndm.LinearSchedule(LOW, 13.0), ndm.Identity(), Exact())


def test_the_density_is_that_of_the_exact_model(far: ndm.NDM, gaussian: Gaussian) -> None:
    part = Part.of(gaussian, "test", 12, 0, False)
    (row,) = likelihoods(far, part, AuditOptions(tolerance=1e-3), 1.0)
    normal = torch.distributions.Normal(0.0, math.sqrt(R + math.exp(LOW)))
    truth = -normal.log_prob(part.examples[:]).sum(1)
    assert row.name == "density"
    assert (row.dequantization, row.examples, row.unsolved) == (None, 12, 0)
    assert row.value.value == pytest.approx(truth.mean().item(), abs=2e-3)
    assert row.value.stderr == pytest.approx(truth.std().item() / math.sqrt(12), rel=1e-3)
    assert 0 < row.solver_error < 1e-3


@pytest.mark.slow
def test_pixels_have_every_dequantisation(pixels: ndm.NDM, images: Tensors) -> None:
    part, scale = Part.of(images, "test", 3, 0, False), 1 / (16 * math.log(2))
    found = likelihoods(pixels, part, AuditOptions(samples=2, divergence="exact"), scale)
    assert [row.dequantization for row in found] == ["uniform", "variational", "importance"]
    for row in found:
        truth = ndm.log_likelihood(
            pixels, part.examples[:], dequantization=row.dequantization, samples=2, divergence="exact",
            generator=torch.Generator().manual_seed(seed_of(0, 0)),
        )  # fmt: skip
        assert row.value.value == pytest.approx(truth.bits_per_dim.mean().item(), rel=1e-5)
        assert row.solver_error == pytest.approx(truth.solver_error.mean().item() * scale, rel=1e-3)
    assert found[2].name == "at most, importance-weighted"
    (*_, probed) = likelihoods(pixels, part, AuditOptions(samples=2, probes=1, divergence="hutchinson"), scale)
    assert probed.name == "estimate, not a bound, importance-weighted with probes"


@pytest.mark.parametrize("d", [1, 2])
def test_a_density_integrates_to_one(far: ndm.NDM, d: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(flow.POINTS, d, 65)
    data = Gaussian(features=d, variance=R, train=2000, validation=10, test=10)
    found = integral(far, data, AuditOptions())
    assert abs(found.value - 1) < found.grid_error + found.solver_error + 1e-3
    assert found.grid_error < 1e-3
    assert found.points == 65
    assert found.unsolved == 0
    assert len(found.low) == d


@pytest.mark.slow
def test_a_density_of_three_dimensions_integrates_to_one(far: ndm.NDM) -> None:
    data = Gaussian(features=3, variance=R, train=2000, validation=10, test=10)
    assert integral(far, data, AuditOptions()).value == pytest.approx(1, abs=5e-3)


def test_the_integral_over_a_part_of_the_density_is_its_probability(far: ndm.NDM) -> None:
    data = Tensors(test=torch.linspace(-1, 1, 50)[:, None])
    found = integral(far, data, AuditOptions())
    edge = 1 + flow.MARGIN * 2
    assert found.low == pytest.approx([-edge])
    assert found.high == pytest.approx([edge])
    truth = math.erf(edge / math.sqrt(2 * (R + math.exp(LOW))))
    assert found.value == pytest.approx(truth, abs=2e-3)


def test_a_coarse_grid_says_so(far: ndm.NDM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(flow.POINTS, 1, 5)
    data = Gaussian(features=1, variance=R, train=10, validation=10, test=500)
    found = integral(far, data, AuditOptions())
    assert found.grid_error > abs(found.value - 1)
    assert found.grid_error > 0.02


class Shifted(Exact):
    """The exact model of N(3 label, R)."""

    classes = 2

    def forward(self, z: Tensor, level: ndm.NoiseLevel, labels: Tensor) -> Tensor:
        shift = 3.0 * labels.to(z)[:, None]
        return shift + super().forward(z - level.alpha[:, None] * shift, level)


def test_the_density_of_a_model_with_classes_is_that_of_the_first() -> None:
    model = ndm.NDM(ndm.LinearSchedule(LOW, 13.0), ndm.Identity(), Shifted())
    data = Tensors(test=torch.linspace(-9, -0.5, 50)[:, None])
    found = integral(model, data, AuditOptions())
    assert found.label == 0
    assert found.value > 0.85  # of the second class only 2% lie below 0.35 * 8.5 - 0.5
