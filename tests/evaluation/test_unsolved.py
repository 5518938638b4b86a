"""Examples without a finite value, and data that a Gaussian mixture describes better."""

from __future__ import annotations

import math
import warnings

import pytest
import torch

import ndm
from ndm.data import Gaussian, Patterns
from ndm.evaluation import (
    evaluate,
    likelihood_per_example,
)
from ndm.evaluation.baselines import gaussian_mixture
from ndm.evaluation.results import MIXTURE
from ndm.networks import ConvNet
from tests.evaluation.models import Far, R, Sorted


def test_an_example_that_cannot_be_solved_is_counted_and_spoils_no_other(exact: ndm.NDM) -> None:
    options = {"features": 2, "variance": R, "train": 10, "validation": 10, "test": 30}
    result = evaluate(exact, Far(**options), steps=(5, None), variances=("posterior",), tolerance=0.1)
    clean = evaluate(exact, Gaussian(**options), steps=(5, None), variances=("posterior",), tolerance=0.1)
    for row, a, b in zip(result.rows, result.per_example, clean.per_example, strict=True):
        assert row["not_finite"] == 1
        assert row["not_finite_examples"] == [3]
        assert math.isfinite(row["value"])
        others = torch.arange(30) != 3
        torch.testing.assert_close(a[others], b[others], rtol=1e-5, atol=1e-5)
        assert not a[3].isfinite()


def test_what_has_no_finite_path_is_not_a_number_and_no_warning(exact: ndm.NDM) -> None:
    x = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
    far = x.clone()
    far[[3, 17]] = 1e30
    hopeless = torch.arange(20) == 5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        whole, *_ = likelihood_per_example(exact, x, tolerance=0.1)
        found, kind, _ = likelihood_per_example(exact, far, hopeless=hopeless, tolerance=0.1)
        nothing, *_ = likelihood_per_example(exact, far, hopeless=hopeless | True)
    assert kind == "density of the reverse ODE"
    assert found["log_prob"].isnan().nonzero().flatten().tolist() == [3, 5, 17]
    there = found["log_prob"].isfinite()
    torch.testing.assert_close(found["log_prob"][there], whole["log_prob"][there], rtol=0, atol=1e-4)
    assert nothing["log_prob"].isnan().all()


def test_a_gaussian_mixture_is_beside_the_model_and_named_where_it_is_better(exact: ndm.NDM) -> None:
    """The data are two clusters, of which the model, one Gaussian, knows nothing."""
    data = Sorted()
    result = evaluate(exact, data, steps=(None,), times=5, tolerance=0.1, mixture=True)
    i = result.find(MIXTURE)
    assert i is not None
    mixture = gaussian_mixture(data.train, data.validation, seed=0)
    torch.testing.assert_close(result.per_example[i], mixture.log_prob(data.test))
    change = result.per_example[i] - result.per_example[result.find("log-likelihood")]
    comparison = result.about["comparison"]
    assert comparison["difference"] == pytest.approx(change.mean().item())
    assert comparison["stderr"] == pytest.approx(change.std().item() / math.sqrt(600))
    assert comparison["sentence"].startswith(
        f"A Gaussian mixture of {mixture.components} components describes this test split better than the model by "
    )
    assert comparison["sentence"] in result.text()
    # Of data that the model is exact for the mixture is no better.
    right = evaluate(
        exact, Gaussian(features=2, variance=R, train=500, validation=300, test=500), steps=(), tolerance=0.1,
        mixture=True,
    )  # fmt: skip
    assert abs(right.about["comparison"]["difference"]) < 0.1
    assert right.about["comparison"]["sentence"] == ""
    few = Far(features=2, variance=R, train=50, validation=30, test=30)
    far = evaluate(exact, few, steps=(None,), times=2, tolerance=0.1, mixture=True)
    assert [row["not_finite_examples"] for row in far.rows] == [[3], [3], [3]]
    assert "Gaussian mixture: of the examples for which the model's figure is finite, 29" in far.text()
    images = ndm.NDM(ndm.LinearSchedule(), ndm.Identity(), ndm.Denoiser(ConvNet(1, width=8)), ndm.DiscretizedDecoder())
    other = evaluate(images, Patterns(size=8, channels=1, examples=20), steps=(), likelihood=False, mixture=True)
    assert other.rows == []
