"""Mixtures of rows with several kinds of columns against closed forms, sums and quadrature."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

import ndm
from ndm.evaluation import table_mixtures
from ndm.evaluation.table_mixtures import Regularisation, TableMixture, table_mixture
from ndm.method.columns import Column, ColumnMap
from ndm.method.mixed_denoiser import outputs_for
from ndm.networks import ResidualMLP

CITY = Column("city", "categorical", ("x", "y", "z"), (50.0, 30.0, 20.0), rest=None, storage="text")
SIZE = Column("size", counts=(100.0,), map=ColumnMap(shift=50.0, scale=20.0))
RENT = Column("rent", counts=(20.0, 80.0), missing=True, map=ColumnMap(power=0.5))
FLOOR = Column("floor", "whole", (60.0,), (40.0, 60.0), rest="grid", low=-20.0, high=60.0, map=ColumnMap(10.0, 8.0))
SEEN = ndm.TableEncoding.of([CITY, SIZE, RENT, FLOOR])


def two() -> TableMixture:
    """A mixture of two components in which the city tells size, rent and floor, and size tells rent."""
    atoms = [
        np.array([[0.8, 0.15, 0.05], [0.1, 0.3, 0.6]]),
        np.ones((2, 1)),
        np.array([[0.1, 0.9], [0.4, 0.6]]),
        np.array([[0.3, 0.7], [0.6, 0.4]]),
    ]
    covariance = np.array([[1.0, 0.8, 0.0], [0.8, 1.0, 0.2], [0.0, 0.2, 1.0]]) / 4
    means = np.array([[-1.0, -1.0, -0.5], [1.5, 0.5, 1.0]])
    return TableMixture(SEEN, np.array([0.6, 0.4]), atoms, means, np.stack([covariance, covariance]), 0)


def drawn(mixture: TableMixture, n: int, seed: int) -> Tensor:
    """Rows of a mixture."""
    random = np.random.default_rng(seed)
    k = random.choice(2, n, p=mixture.weights)
    v = np.stack([random.multivariate_normal(mixture.means[i], mixture.covariances[i]) for i in k])
    rows, place = np.zeros((n, 4)), 0
    for j, column in enumerate(SEEN.table):
        atom = np.array([random.choice(len(column.counts), p=mixture.atoms[j][i]) for i in k])
        if column.rest is None:
            rows[:, j] = atom
            continue
        value = column.map.inverse(torch.from_numpy(v[:, place])).numpy()
        value = np.round(value) if column.rest == "grid" else value
        rows[:, j] = np.where(atom == column.atoms, value, math.nan if column.missing else 60.0)
        place += 1
    return torch.from_numpy(rows)


def test_the_probabilities_of_all_rows_sum_to_one() -> None:
    """By a sum over cities, missing rents and floors, and quadrature over sizes and rents."""
    mixture = two()
    size = torch.linspace(-60, 200, 120, dtype=torch.float64)
    rent = torch.linspace(-8, 14, 121, dtype=torch.float64)
    total = 0.0
    for city, floor in itertools.product(range(3), range(-20, 61, 4)):
        here = torch.tensor([city, 0.0, math.nan, floor], dtype=torch.float64).repeat(len(size), 1)
        here[:, 1] = size
        scale = 1 if floor == 60 else 4  # 60 is an atom; of the other floors every fourth
        total += scale * torch.trapezoid(mixture.log_prob(here).exp(), size).item()
        both = torch.tensor([city, 0.0, 0.0, floor], dtype=torch.float64).repeat(len(size) * len(rent), 1)
        both[:, 1], both[:, 2] = size.repeat_interleave(len(rent)), rent.repeat(len(size))
        density = mixture.log_prob(both).exp().reshape(len(size), len(rent))
        total += scale * torch.trapezoid(torch.trapezoid(density, rent, dim=1), size).item()
    assert total == pytest.approx(1.0, abs=0.01)


def test_the_mixture_that_made_the_rows_is_found() -> None:
    truth = two()
    train, validation, test = (drawn(truth, n, seed) for seed, n in enumerate((3000, 600, 2000)))
    found = table_mixture(SEEN, train, validation)
    gap = found.log_prob(test) - truth.log_prob(test)
    assert abs(gap.mean()) < 0.05
    assert found.components <= 4
    again = table_mixture(SEEN, train, validation)
    assert torch.equal(again.log_prob(test), found.log_prob(test))


def test_one_component_of_complete_values_is_their_normal_distribution() -> None:
    columns = [Column(name, counts=(10.0,)) for name in "abc"]
    random = np.random.default_rng(0)
    rows = random.multivariate_normal([1.0, 2.0, 3.0], np.eye(3) + 0.5, 200)
    found = table_mixtures._fitted(
        ndm.TableEncoding.of(columns),
        table_mixtures.Rows(ndm.TableEncoding.of(columns), torch.tensor(rows)),
        1,
        Regularisation(0.0),
        0,
    )
    normal = torch.distributions.MultivariateNormal(torch.tensor(rows.mean(0)), torch.tensor(np.cov(rows.T, bias=True)))
    torch.testing.assert_close(
        found.log_prob(torch.tensor(rows)), normal.log_prob(torch.tensor(rows)), rtol=1e-5, atol=1e-5
    )


def test_missing_cells_are_marginalised() -> None:
    """With cells that are missing at random the estimate has the likelihood's maximum."""
    columns = [Column("a", counts=(10.0,)), Column("b", counts=(3.0, 7.0), missing=True)]
    random = np.random.default_rng(0)
    rows = random.multivariate_normal([0.0, 1.0], [[1.0, 0.9], [0.9, 1.0]], 400)
    rows[rows[:, 0] > 0.5, 1] = math.nan  # the complete rows alone would be biased
    encoding = ndm.TableEncoding.of(columns)
    found = table_mixtures._fitted(
        encoding, table_mixtures.Rows(encoding, torch.tensor(rows)), 1, Regularisation(0.0), 0
    )
    assert found.means[0] == pytest.approx([0.0, 1.0], abs=0.15)
    assert found.covariances[0] == pytest.approx(np.array([[1.0, 0.9], [0.9, 1.0]]), abs=0.2)
    best = found.log_prob(torch.tensor(rows)).mean()
    for mean, scale in itertools.product(([0.1, 0], [-0.1, 0], [0, 0.1], [0, -0.1], [0, 0]), (0.9, 1.1)):
        other = TableMixture(encoding, found.weights, found.atoms, found.means + mean, found.covariances * scale, 0)
        assert other.log_prob(torch.tensor(rows)).mean() < best


def test_of_few_rows_of_many_independent_columns_covariances_are_shrunk() -> None:
    columns = [Column(f"c{i}", counts=(10.0,)) for i in range(40)]
    encoding = ndm.TableEncoding.of(columns)
    train, validation, test = torch.randn(3, 80, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = table_mixture(encoding, train, validation)
    truth = torch.distributions.Normal(torch.zeros(40), torch.ones(40)).log_prob(test).sum(1)
    assert found.components == 1
    assert (truth - found.log_prob(test)).mean() < 1.0  # the fitted normal distribution of all columns loses 20 nats


def test_shrinkage_keeps_the_variances() -> None:
    S, least = np.array([[2.0, 1.0], [1.0, 1.0]]), np.array([0.0, 0.5])
    for rows, share in ((0.0, 0.0), (5.0, 1 / 3), (math.inf, 1.0)):
        want = np.array([[2.25, 1 - share], [1 - share, 1.5]])
        np.testing.assert_allclose(Regularisation(0.25, rows)(S, 10.0, least), want)


def test_the_base_is_the_mixture() -> None:
    """A network that returns zero has the mixture's -log p as its bound, if the last noise is as wide as a cell."""
    mixture = two()
    layouts, (d,) = SEEN.layouts(), SEEN.latent_shape
    denoiser = ndm.MixedDenoiser(ResidualMLP(d, 8, 1, outputs=outputs_for(layouts)), layouts, base=mixture.base())
    model = ndm.NDM(
        ndm.LinearSchedule(-6.0, 10.0), ndm.Identity(), denoiser, ndm.MixedDecoder(layouts), standardize=SEEN
    ).double()
    rows = drawn(mixture, 4000, seed=5)
    values = torch.stack(
        [model.bound(rows, generator=torch.Generator().manual_seed(seed)).total.detach() for seed in range(10)]
    ).mean(0)
    gap = values + mixture.log_prob(rows)
    assert abs(gap.mean()) < 0.05 + 4 * gap.std() / math.sqrt(len(gap))


def test_a_row_with_an_impossible_cell_has_no_likelihood() -> None:
    rows = drawn(two(), 5, seed=0)
    rows[2, 1] = math.nan  # the column has no missing cells
    found = two().log_prob(rows)
    assert found.isnan().tolist() == [False, False, True, False, False]
    torch.testing.assert_close(found[:2], two().log_prob(rows[:2]))


def test_what_cannot_be_fitted_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = drawn(two(), 10, seed=0)
    with pytest.raises(ValueError, match="got 1 and 10"):
        table_mixture(SEEN, rows[:1], rows)
    with pytest.raises(ValueError, match="got 10 and 0"):
        table_mixture(SEEN, rows, rows[:0])
    monkeypatch.setattr(table_mixtures, "has_mixtures", lambda: False)
    with pytest.raises(ImportError, match="pip install scikit-learn"):
        table_mixture(SEEN, rows, rows)


def test_rows_with_many_patterns_of_absent_values_are_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    columns = [Column(f"c{i}", counts=(3.0, 7.0), missing=True) for i in range(12)]
    rows = torch.randn(800, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows[torch.rand(rows.shape, generator=torch.Generator().manual_seed(1)) < 0.3] = math.nan
    encoding = ndm.TableEncoding.of(columns)
    monkeypatch.setattr(table_mixtures, "OPERATIONS", 1e9)
    some = table_mixtures._some(encoding, rows, 0)
    assert 20 < len(some) <= 100
    assert table_mixtures._cost(some) * table_mixtures.FEW_ITERATIONS <= 1e9


def test_what_is_tried_is_bounded() -> None:
    rows = table_mixtures.Rows(SEEN, drawn(two(), 50, seed=0))
    assert table_mixtures._affordable(rows) == [1, 2, 3]  # 14 parameters a component, at most one per row
