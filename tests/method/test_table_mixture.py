"""The base of tables with columns of several kinds against sums over all atoms and components."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

import ndm
from ndm.method.columns import Column, ColumnMap, codes_of
from ndm.method.mixed_denoiser import outputs_for
from ndm.networks import ResidualMLP

D = torch.float64
CITY = Column("city", "categorical", ("x", "y", "z"), (5.0, 3.0, 2.0), rest=None, storage="text")
ROOMS = Column("rooms", "whole", (1.0, 2.0, 3.0, 4.0), (4.0, 3.0, 2.0, 1.0), rest=None)
SIZE = Column("size", counts=(10.0,))
RENT = Column("rent", counts=(10.0,), map=ColumnMap(power=0.5))
GARDEN = Column("garden", levels=(0.0,), counts=(3.0, 7.0))
BUILT = Column("built", counts=(2.0, 8.0), missing=True)
EVERY = [CITY, SIZE, GARDEN, ROOMS, BUILT, RENT]


class Mixture:
    """Parameters of a mixture of K components over some columns, at random."""

    def __init__(self, columns: list[Column], components: int = 3, seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        self.columns = columns
        self.weights = random.dirichlet(np.full(components, 3.0))
        self.atoms = [random.dirichlet(np.ones(len(c.counts)), components) for c in columns]
        d = sum(c.rest is not None for c in columns)
        self.means = random.normal(size=(components, d))
        roots = random.normal(size=(components, d, d)) / 2
        self.covariances = roots @ roots.swapaxes(1, 2) + 0.1 * np.eye(d)

    def base(self) -> ndm.TableMixtureBase:
        base = ndm.TableMixtureBase(
            [len(c.counts) for c in self.columns], [c.rest is not None for c in self.columns], None, len(self.weights)
        ).to(D)
        return base.set(self.weights, self.atoms, self.means, self.covariances)

    def posterior_mean(self, z: Tensor, alpha: float, sigma: float) -> Tensor:
        """E[x | z] of one z, (d,), by a sum over components and atoms; values are integrated in closed form."""
        total, mean = [], []
        for k, states in itertools.product(
            range(len(self.weights)), itertools.product(*(range(len(c.counts)) for c in self.columns))
        ):
            log_p, x, at, place = math.log(self.weights[k]), torch.zeros_like(z), 0, 0
            there, where, absent = [], [], []
            for i, (column, state) in enumerate(zip(self.columns, states, strict=True)):
                codes = codes_of(column.codes).to(z)
                log_p += math.log(self.atoms[i][k, state])
                x[at : at + codes.shape[1]] = codes[state]
                log_p -= ((z[at : at + codes.shape[1]] - alpha * codes[state]) ** 2).sum().item() / (2 * sigma**2)
                at += codes.shape[1]
                if column.rest is not None:
                    if state == column.atoms:
                        there.append(place)
                        where.append(at)
                    else:
                        absent.append(at)
                    place, at = place + 1, at + 1
            for one in absent:
                log_p -= z[one].item() ** 2 / (2 * sigma**2) + math.log(sigma)
            if there:
                m, S = torch.tensor(self.means[k][there]), torch.tensor(self.covariances[k][np.ix_(there, there)])
                C = alpha**2 * S + sigma**2 * torch.eye(len(there), dtype=D)
                away = z[where] - alpha * m
                log_p -= (away @ torch.linalg.solve(C, away)).item() / 2 + torch.logdet(C).item() / 2
                x[where] = m + alpha * S @ torch.linalg.solve(C, away)
            total.append(log_p)
            mean.append(x)
        p = torch.softmax(torch.tensor(total, dtype=D), 0)
        return (p[:, None] * torch.stack(mean)).sum(0)


def untrained(mixture: Mixture) -> tuple[ndm.MixedDenoiser, ndm.TableEncoding]:
    encoding = ndm.TableEncoding.of(mixture.columns)
    layouts, (d,) = encoding.layouts(), encoding.latent_shape
    net = ResidualMLP(d, 8, 1, embedding=8, outputs=outputs_for(layouts))
    return ndm.MixedDenoiser(net, layouts, gamma_range=(-9.0, 5.0), base=mixture.base()).to(D), encoding


def noisy_rows(mixture: Mixture, encoding: ndm.TableEncoding, gamma: float, n: int) -> tuple[Tensor, ndm.NoiseLevel]:
    random = torch.Generator().manual_seed(1)
    rows = torch.randn(n, len(mixture.columns), generator=random, dtype=D)
    for i, column in enumerate(mixture.columns):
        if column.rest is None:
            rows[:, i] = torch.randint(len(column.levels), (n,), generator=random) + (column.kind == "whole")
    rows[::3, [c.name == "garden" for c in mixture.columns]] = 0.0
    rows[::4, [c.name == "built" for c in mixture.columns]] = math.nan
    level = ndm.LinearSchedule(gamma, gamma + 1)(torch.zeros(n, dtype=D))
    x = encoding(rows)
    return level.alpha[:, None] * x + level.sigma[:, None] * torch.randn(x.shape, generator=random, dtype=D), level


@pytest.mark.parametrize(
    ("columns", "gamma"),
    [([CITY, SIZE, ROOMS, RENT], gamma) for gamma in (-7.0, -1.0, 0.5, 3.0)]
    + [([CITY, ROOMS], 0.0), ([SIZE, RENT], 0.0), (EVERY, -7.0), (EVERY, -5.0)],
)
def test_an_untrained_denoiser_is_the_posterior_mean(columns: list[Column], gamma: float) -> None:
    mixture = Mixture(columns)
    denoiser, encoding = untrained(mixture)
    z, level = noisy_rows(mixture, encoding, gamma, 8)
    found = denoiser(z, level)
    for row, own in zip(z, found, strict=True):
        want = mixture.posterior_mean(row, level.alpha[0].item(), level.sigma[0].item())
        torch.testing.assert_close(own, want, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_where_a_value_may_be_absent_the_estimate_is_near_the_posterior_mean() -> None:
    """Between certain and unknown the precision of such a value is an approximation."""
    mixture = Mixture(EVERY)
    denoiser, encoding = untrained(mixture)
    z, level = noisy_rows(mixture, encoding, 0.0, 48)
    want = torch.stack([mixture.posterior_mean(row, level.alpha[0].item(), level.sigma[0].item()) for row in z])
    own, plain = denoiser(z, level), z.new_zeros(z.shape)
    assert (own - want).square().mean() < 0.04 * (want - plain).square().mean()


@pytest.mark.parametrize("seed", [0, 1])
def test_gradients_are_those_of_finite_differences(seed: int) -> None:
    mixture = Mixture(EVERY, seed=seed)
    denoiser, encoding = untrained(mixture)
    z, level = noisy_rows(mixture, encoding, -1.0, 3)
    assert torch.autograd.gradcheck(lambda z: denoiser(z, level), z.requires_grad_())


def test_an_atom_that_is_excluded_has_probability_zero() -> None:
    mixture = Mixture(EVERY)
    denoiser, encoding = untrained(mixture)
    z, level = noisy_rows(mixture, encoding, 0.0, 5)
    without = denoiser.without({0: 1, 4: 0})
    assert (without.probabilities(z, level)[0][:, 1] == 0).all()
    assert (without.probabilities(z, level)[4][:, 0] == 0).all()
    assert without(z, level).isfinite().all()
    assert (denoiser.probabilities(z, level)[0][:, 1] > 0).all()


def test_what_does_not_fit_is_refused() -> None:
    mixture = Mixture([CITY, SIZE])
    layouts = ndm.TableEncoding.of([CITY, SIZE]).layouts()
    net = ResidualMLP(3, 8, 1, outputs=outputs_for(layouts), context=4)
    with pytest.raises(ValueError, match="joint density only"):
        ndm.MixedDenoiser(net, layouts, conditionals="any", base=mixture.base())
    with pytest.raises(ValueError, match="joint density only"):
        ndm.MixedDenoiser(net, layouts, given=[0], base=mixture.base())
    with pytest.raises(ValueError, match="other columns"):
        ndm.MixedDenoiser(net, layouts, base=Mixture([CITY, ROOMS]).base())
    with pytest.raises(ValueError, match="positive"):
        ndm.TableMixtureBase([0, 2], [True, False])
    with pytest.raises(ValueError, match="3, 2 and 3 columns"):
        ndm.TableMixtureBase([1, 2, 2], [True, False])
