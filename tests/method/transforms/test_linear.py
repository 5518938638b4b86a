"""Blur against scipy, Scale against itself."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.fft import dctn, idctn
from scipy.linalg import expm
from scipy.ndimage import gaussian_filter

import ndm
from ndm.method.coordinates import cosine_matrix


def blurred(x: torch.Tensor, blur_max: float, gamma: float) -> np.ndarray:
    return ndm.Blur(blur_max)(x)(torch.full((len(x),), gamma, dtype=x.dtype)).numpy()


@pytest.mark.parametrize("gamma", [-9.0, -1.0, 0.7, 6.0])
def test_blur_damps_the_cosine_coefficients(gamma: float) -> None:
    x = torch.randn(2, 3, 6, 9, dtype=torch.float64)
    i, j = np.arange(6)[:, None] / 6, np.arange(9) / 9
    sigma2 = 1 / (1 + math.exp(-gamma))
    damping = np.exp(-(np.pi**2) * (i**2 + j**2) * (2.5**2 / 2) * sigma2**2)
    expected = idctn(damping * dctn(x.numpy(), axes=(2, 3), norm="ortho"), axes=(2, 3), norm="ortho")
    np.testing.assert_allclose(blurred(x, 2.5, gamma), expected, atol=1e-12)


@pytest.mark.parametrize("gamma", [0.0, 2.0, 30.0])
def test_blur_is_a_gaussian_filter_of_blur_max_sigma2_pixels(gamma: float) -> None:
    x = torch.randn(1, 1, 24, 17, dtype=torch.float64)
    deviation = 3.5 / (1 + math.exp(-gamma))
    expected = gaussian_filter(x[0, 0].numpy(), deviation, mode="reflect", truncate=9)
    np.testing.assert_allclose(blurred(x, 3.5, gamma)[0, 0], expected, atol=2e-6)
    assert np.abs(x[0, 0].numpy() - expected).max() > 0.5


def test_blur_of_a_smooth_image_solves_the_heat_equation() -> None:
    # The five-point Laplacian with reflecting borders; on a smooth image it has the continuous one's eigenvalues.
    n, tau = 96, 1.3
    laplacian = np.diag(np.full(n - 1, 1.0), 1) + np.diag(np.full(n - 1, 1.0), -1) - 2 * np.eye(n)
    laplacian[0, 0] = laplacian[-1, -1] = -1
    at = (np.arange(n) + 0.5) / n
    image = np.cos(np.pi * at)[:, None] * (1 + np.cos(2 * np.pi * at)) + np.cos(3 * np.pi * at)[:, None]
    heat = expm(tau * laplacian)
    out = blurred(torch.from_numpy(image)[None, None], math.sqrt(2 * tau), 60.0)[0, 0]
    np.testing.assert_allclose(out, heat @ image @ heat.T, rtol=0, atol=3e-5)
    assert np.abs(out - image).max() > 0.01


def test_the_cosine_matrix_is_orthonormal() -> None:
    for n in (1, 2, 5, 28):
        matrix = cosine_matrix(n)
        torch.testing.assert_close(matrix @ matrix.T, torch.eye(n, dtype=torch.float64), rtol=0, atol=1e-13)


def test_blur_keeps_the_mean_and_refuses_what_is_no_image() -> None:
    x = torch.randn(2, 1, 5, 4, dtype=torch.float64)
    np.testing.assert_allclose(blurred(x, 50.0, 20.0), np.broadcast_to(x.mean((2, 3), True), x.shape), atol=1e-12)
    with pytest.raises(ValueError, match=r"\(B, C, H, W\)"):
        ndm.Blur()(torch.zeros(2, 5))
    with pytest.raises(ValueError, match="blur_max"):
        ndm.Blur(-1.0)


def test_scale_takes_a_function() -> None:
    x, gamma = torch.randn(3, 2, dtype=torch.float64), torch.tensor([-3.0, 0.0, 2.0], dtype=torch.float64)
    f, df = ndm.Scale(lambda gamma: 2 + torch.sin(gamma))(x).with_derivative(gamma)
    torch.testing.assert_close(f, (2 + torch.sin(gamma))[:, None] * x)
    torch.testing.assert_close(df, torch.cos(gamma)[:, None] * x)
