"""The functions of the noise level, and how well a network can tell them apart."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.polynomial import legendre

from ndm.method.transforms.bases import BASES, basis_named

every_basis = pytest.mark.parametrize("basis", BASES)


def gram(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return values.T @ (weights[:, None] * values)


def quadrature(nodes: int = 600) -> tuple[np.ndarray, np.ndarray]:
    u, weights = legendre.leggauss(nodes)
    return (u + 1) / 2, weights / 2


@pytest.mark.parametrize("terms", [1, 2, 3, 8, 32])
@pytest.mark.parametrize("basis", ["cosine", "legendre"])
def test_orthonormal(basis: str, terms: int) -> None:
    u, weights = quadrature()
    values, _ = basis_named(basis)(torch.from_numpy(u), terms)
    np.testing.assert_allclose(gram(values.numpy(), weights), np.eye(terms), rtol=0, atol=1e-11)


def test_bumps_are_told_apart_for_every_number_of_terms() -> None:
    u, weights = quadrature()
    for terms in range(1, 33):
        values, _ = basis_named("bumps")(torch.from_numpy(u), terms)
        assert np.linalg.cond(gram(values.numpy(), weights)) < 50


def test_monomials_would_not_be() -> None:
    u, weights = quadrature()
    condition = np.linalg.cond(gram(u[:, None] ** np.arange(8), weights))
    assert 1e10 < condition < 2e10


@every_basis
@pytest.mark.parametrize("terms", [1, 2, 3, 7])
@pytest.mark.parametrize("shape", [(4,), (3, 4)])
def test_slopes_equal_finite_differences(basis: str, terms: int, shape: tuple[int, ...]) -> None:
    u, h, f = torch.rand(shape, dtype=torch.float64), 1e-6, basis_named(basis)
    values, slopes = f(u, terms)
    assert values.shape == slopes.shape == (*shape, terms)
    torch.testing.assert_close(slopes, (f(u + h, terms)[0] - f(u - h, terms)[0]) / (2 * h), rtol=1e-6, atol=1e-6)


def test_legendre_equals_numpy() -> None:
    u = torch.linspace(0, 1, 20, dtype=torch.float64)
    values, _ = basis_named("legendre")(u, 6)
    for n in range(6):
        expected = np.sqrt(2 * n + 1) * legendre.Legendre.basis(n)(2 * u.numpy() - 1)
        np.testing.assert_allclose(values[:, n], expected, atol=1e-12)


def test_an_unknown_basis_is_refused() -> None:
    with pytest.raises(ValueError, match="cosine, legendre, bumps"):
        basis_named("powers")
