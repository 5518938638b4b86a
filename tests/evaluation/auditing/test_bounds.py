"""The bound by term: the numbers of an evaluation, and the closed forms."""

from __future__ import annotations

import math

import pytest
import torch

import ndm
from ndm.data import Gaussian, Tensors
from ndm.evaluation import evaluate
from ndm.evaluation.auditing.bounds import Part, bounds
from ndm.method.coordinates import Frequencies
from tests.evaluation.models import LOW, truth

SMALL = {"calibration": 2000, "scale": 1.0, "times": 8, "seed": 3, "batch_size": 250}


def test_the_numbers_are_those_of_an_evaluation(exact: ndm.NDM, gaussian: Gaussian) -> None:
    part = Part.of(gaussian, "test", 300, 3, False)
    found, kind = bounds(exact, gaussian, part, [4, 20], **SMALL)
    assert kind == "isotropic"
    assert [(r.steps, r.variance) for r in found] == [
        (4, "posterior"), (4, "calibrated"), (20, "posterior"), (20, "calibrated"), (None, None),
    ]  # fmt: skip
    truth = evaluate(
        exact, gaussian, steps=(4, 20, None), variances=("posterior", "isotropic"), likelihood=False, times=8, seed=3,
        max_examples=300, calibration=2000,
    )  # fmt: skip
    for row, other in zip(found, truth.rows, strict=True):
        assert (row.steps, row.total.value, row.total.stderr) == (other["steps"], other["value"], other["stderr"])
        assert row.prior.value == pytest.approx(other["prior"])
        assert row.reconstruction.value == pytest.approx(other["reconstruction"])
        terms = row.prior.value + row.reconstruction.value + row.diffusion.value
        assert terms == pytest.approx(row.total.value)


def test_the_bound_is_the_closed_form(exact: ndm.NDM, gaussian: Gaussian) -> None:
    part = Part.of(gaussian, "test", None, 0, False)
    for row in bounds(exact, gaussian, part, [10], **SMALL | {"calibration": 20000})[0]:
        known = truth(row.steps, row.variance == "calibrated")
        assert abs(row.total.value - known) < 4 * row.total.stderr + 0.005
        assert row.reconstruction.value == pytest.approx(math.log(2 * math.pi) + LOW + 1, abs=1e-4)


def test_the_models_own_variance_and_no_training_split(gaussian: Gaussian) -> None:
    from ndm.networks import ResidualMLP

    model = ndm.NDM(ndm.LinearSchedule(), ndm.Identity(), ndm.Denoiser(ResidualMLP(2, hidden=4)), None, "learned")
    data = Tensors(test=gaussian.test[:20])
    found, kind = bounds(model, data, Part.of(data, "test", None, 0, False), [2], **SMALL)
    assert kind is None
    assert [(r.steps, r.variance) for r in found] == [(2, "posterior"), (2, "learned"), (None, None)]


def test_examples_without_a_finite_bound_are_left_out_and_counted(exact: ndm.NDM, gaussian: Gaussian) -> None:
    x = gaussian.test[:20].clone()
    x[3] = 1e30
    data = Tensors(test=x)
    row = bounds(exact, data, Part.of(data, "test", None, 0, False), [], **SMALL)[0][-1]
    assert row.not_finite == 1
    assert torch.isnan(row.per_example).nonzero().tolist() == [[3]]
    assert abs(row.total.value) < 20


@pytest.mark.parametrize("kind", ["diagonal", "frequency"])
def test_the_calibrated_variance_of_images_is_the_better_one(kind: str) -> None:
    """Pixels of very different variances, or smooth images."""
    sizes = torch.linspace(0.05, 2.0, 16).reshape(1, 4, 4)
    x = sizes * torch.randn(600, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    x = x if kind == "diagonal" else Frequencies().back(x)
    data = Tensors(train=x[:500], test=x[500:])
    model = ndm.NDM(ndm.LinearSchedule(-6.0, 5.0), ndm.Identity(), lambda z, level: 0 * z)
    rows, found = bounds(model, data, Part.of(data, "test", None, 0, False), [5, 9], **SMALL | {"calibration": 2500})
    assert found == kind
    totals = {(row.steps, row.variance): row.total.value for row in rows}
    assert totals[5, "calibrated"] < totals[5, "posterior"] - 1
