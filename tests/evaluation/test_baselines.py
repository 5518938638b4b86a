"""Gaussian mixtures against closed forms and against scikit-learn itself."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
import torch
from sklearn.mixture import GaussianMixture as Reference
from torch import Tensor
from torch.distributions import MultivariateNormal

from ndm.evaluation import baselines
from ndm.evaluation.baselines import gaussian_mixture


def clusters(n: int, seed: int, centres: Tensor, scale: float = 1.0) -> Tensor:
    """Standard normal points around each of the centres in turn, (n, d), all of it times a scale."""
    generator = torch.Generator().manual_seed(seed)
    around = torch.randn(n, centres.shape[1], generator=generator)
    return scale * (centres[torch.arange(n) % len(centres)] + around)


CENTRES = torch.tensor([[0.0, 0.0], [12.0, 0.0], [0.0, 12.0]])


def test_of_gaussian_data_it_is_their_density_in_their_own_units() -> None:
    covariance = torch.tensor([[4.0, 1.2], [1.2, 1.0]], dtype=torch.float64)
    scale = torch.tensor([1.0, 1e4], dtype=torch.float64)
    normal = MultivariateNormal(torch.tensor([50.0, -3.0], dtype=torch.float64), covariance)
    torch.manual_seed(0)
    x = normal.sample((6000,))
    mixture = gaussian_mixture(scale * x[:3000], scale * x[3000:4000])
    test = x[4000:]
    truth = normal.log_prob(test) - math.log(1e4)
    found = mixture.log_prob(scale * test)
    assert mixture.components == 1
    # What 5 fitted numbers cost on average: 5 / 2N nats.
    assert 0 <= (truth - found).mean() < 5 * 5 / (2 * 3000)
    assert (truth - found).abs().mean() < 0.06


def test_the_number_of_components_is_found() -> None:
    mixture = gaussian_mixture(clusters(1500, 0, CENTRES), clusters(600, 1, CENTRES))
    assert mixture.components == 3
    test = clusters(600, 2, CENTRES)
    apart = torch.cdist(test.double(), CENTRES.double()).square()
    truth = torch.logsumexp(-apart / 2, 1) - math.log(3) - math.log(2 * math.pi)
    assert (truth - mixture.log_prob(test)).mean().abs() < 0.03


def test_it_is_scikit_learns() -> None:
    train, validation, test = (clusters(400, seed, CENTRES, scale=3.0).double() for seed in range(3))
    mixture = gaussian_mixture(train, validation, seed=5)
    mean, std = train.mean(0), train.std(0, correction=0)
    reference = Reference(mixture.components, reg_covar=mixture.regularisation, max_iter=200, random_state=5)
    reference.fit(((train - mean) / std).numpy())
    expected = reference.score_samples(((test - mean) / std).numpy()) - std.log().sum().item()
    np.testing.assert_allclose(mixture.log_prob(test).numpy(), expected, rtol=1e-9)
    np.testing.assert_array_equal(gaussian_mixture(train, validation, seed=5).log_prob(test), mixture.log_prob(test))


def test_few_rows_of_many_columns_are_held_by_the_stronger_regularisation() -> None:
    torch.manual_seed(0)
    basis = torch.randn(3, 30)
    x = torch.randn(400, 3) @ basis + 0.1 * torch.randn(400, 30)
    mixture = gaussian_mixture(x[:25], x[25:100])
    assert mixture.regularisation == baselines.STRONGER
    weaker = Reference(1, reg_covar=1e-6).fit(x[:25].double().numpy())
    assert mixture.log_prob(x[100:]).mean() > weaker.score(x[100:].double().numpy()) + 10


def test_of_few_rows_of_many_independent_columns_it_is_their_product() -> None:
    train, validation, test = torch.randn(3, 80, 40, generator=torch.Generator().manual_seed(0))
    found = gaussian_mixture(train, validation)
    truth = torch.distributions.Normal(torch.zeros(40), torch.ones(40)).log_prob(test).sum(1)
    assert (truth - found.log_prob(test)).mean() < 1.0  # the fitted normal distribution of all columns loses 20 nats
    assert found.covariances.shape == (1, 40, 40)
    assert (found.covariances[0] == np.diag(np.diag(found.covariances[0]))).all()


def test_far_and_constant_and_half_precision_values() -> None:
    x = clusters(300, 0, CENTRES).half()
    mixture = gaussian_mixture(x[:200], x[200:])
    rows = torch.tensor([[0.0, 0.0], [1e20, 0.0], [math.inf, 0.0], [math.nan, 0.0]])
    found = mixture.log_prob(rows)
    assert found.dtype == torch.float64
    assert math.isfinite(found[0])
    assert found[1] < -1e30
    assert not found[2:].isfinite().any()
    constant = torch.cat([x.float(), torch.full((300, 1), 7.0)], 1)
    assert gaussian_mixture(constant[:200], constant[200:]).log_prob(constant[200:]).isfinite().all()


def test_of_many_rows_a_random_part_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sorted rows, of which the first ones are one cluster only."""
    monkeypatch.setattr(baselines, "ROWS", 200)
    train, validation = (
        torch.cat([clusters(1000, 2 * i + j, centre[None]) for i, centre in enumerate(CENTRES)]) for j in range(2)
    )
    mixture = gaussian_mixture(train, validation)
    assert mixture.rows == 200
    assert mixture.log_prob(CENTRES).min() > -4


def test_what_is_tried_is_bounded() -> None:
    assert baselines._affordable(20_000, 256) == [1]
    assert baselines._affordable(5, 2) == [1]
    assert baselines._affordable(25, 2) == [1, 2, 3, 4]  # six numbers each
    assert baselines._affordable(4000, 9) == list(baselines.COMPONENTS)


def test_what_cannot_be_fitted_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(10, 3)
    with pytest.raises(ValueError, match="NaN or infinite"):
        gaussian_mixture(x / 0, x)
    with pytest.raises(ValueError, match="two training rows and a validation row, got 1 and 10"):
        gaussian_mixture(x[:1], x)
    with pytest.raises(ValueError, match="got 3 and 2"):
        gaussian_mixture(x, x[:, :2])
    with pytest.raises(ValueError, match="shape"):
        gaussian_mixture(x[:, None], x[:, None])
    with pytest.raises(ValueError, match="fitted to 3 columns, got 2"):
        gaussian_mixture(x, x).log_prob(x[:, :2])
    monkeypatch.setitem(sys.modules, "sklearn.mixture", None)
    assert not baselines.has_mixtures()
    with pytest.raises(ImportError, match="pip install scikit-learn"):
        gaussian_mixture(x, x)
