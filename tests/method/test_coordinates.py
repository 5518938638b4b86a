"""The cosine transform of images, against SciPy's."""

from __future__ import annotations

import pytest
import torch
from scipy.fft import dctn, idctn

from ndm.method.coordinates import DATA, Frequencies


@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 5, 2), (2, 1, 3)])
def test_frequencies_are_the_orthonormal_cosine_transform(shape: tuple[int, ...]) -> None:
    x = torch.randn(4, *shape, dtype=torch.float64)
    found = Frequencies().into(x)
    torch.testing.assert_close(found, torch.from_numpy(dctn(x.numpy(), axes=(1, 2, 3), norm="ortho")))
    torch.testing.assert_close(Frequencies().back(found), x)
    torch.testing.assert_close(Frequencies().back(x), torch.from_numpy(idctn(x.numpy(), axes=(1, 2, 3), norm="ortho")))


def test_three_channels_become_their_mean_and_two_differences() -> None:
    grey = torch.full((1, 3, 2, 2), 0.5)
    found = Frequencies().into(grey)
    assert found[0, 0, 0, 0] == pytest.approx(0.5 * 12**0.5)
    found[0, 0, 0, 0] = 0
    assert found.abs().max() < 1e-6


def test_the_coordinates_of_the_data_change_nothing() -> None:
    x = torch.randn(2, 3)
    assert DATA.into(x) is DATA.back(x) is x
