"""What only the table of levels promises."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.func import jvp

import ndm
from ndm.networks import ConvNet, LevelTable


def filled(levels: int, **options) -> LevelTable:
    net = LevelTable(levels, **options).double()
    torch.nn.init.normal_(net.values)
    return net


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_a_level_is_given_its_own_numbers(levels: int) -> None:
    net = filled(levels, heads=3)
    index = torch.randint(levels, (4, 2, 5))
    found = net(ndm.DiscretizedDecoder(levels).encode(index).double())
    for head in range(3):
        expected = net.values[index, head]  # the heads are stacked along the channels
        torch.testing.assert_close(found[:, 2 * head : 2 * head + 2], expected, rtol=0, atol=1e-6 * levels)


def test_between_levels_it_is_numpys_interpolation_and_beyond_them_constant() -> None:
    net, x = filled(9), torch.linspace(-1.5, 1.5, 301, dtype=torch.float64)
    places = (2 * np.arange(9) + 1) / 9 - 1
    expected = np.interp(x.numpy(), places, net.values[:, 0].detach().numpy())
    np.testing.assert_allclose(net(x[None])[0].detach().numpy(), expected, atol=1e-12)


def test_slope_is_that_of_finite_differences() -> None:
    net, x = filled(9), torch.tensor([[-0.93, -0.2, 0.03, 0.71, 1.2]], dtype=torch.float64)
    _, slope = jvp(net, (x,), (torch.ones_like(x),))
    torch.testing.assert_close(slope, (net(x + 1e-6) - net(x - 1e-6)) / 2e-6, rtol=1e-6, atol=1e-8)


def test_channels_may_have_tables_of_their_own() -> None:
    own, x = filled(5, channels=3, heads=2), torch.rand(2, 3, 4, 4, dtype=torch.float64) * 2 - 1
    for channel in range(3):
        shared = LevelTable(5, heads=2).double()
        shared.values.data = own.values[5 * channel : 5 * channel + 5].detach()
        torch.testing.assert_close(own(x)[:, [channel, 3 + channel]], shared(x[:, [channel]]))


def test_another_network_is_added() -> None:
    net = LevelTable(9, heads=2, beside=ConvNet(1, width=3, heads=2, level=False, zero_init=False)).double()
    torch.nn.init.normal_(net.values)
    x = torch.rand(2, 1, 4, 4, dtype=torch.float64)
    alone = LevelTable(9, heads=2).double()
    alone.values = net.values
    torch.testing.assert_close(net(x), alone(x) + net.beside(x))


def test_it_comes_back_from_a_file_with_what_is_beside_it(tmp_path) -> None:
    net = filled(17, heads=2, beside=ConvNet(1, width=3, heads=2, level=False, zero_init=False)).float()
    denoiser = ndm.DirectDenoiser(ConvNet(1))
    model = ndm.NDM(ndm.LinearSchedule(), ndm.Separable(net, terms=2), denoiser, ndm.DiscretizedDecoder(17))
    model.save_pretrained(tmp_path / "model")
    x = torch.rand(2, 1, 4, 4)
    torch.testing.assert_close(ndm.NDM.from_pretrained(tmp_path / "model").transform.net(x), net(x))


@pytest.mark.parametrize(
    ("options", "x", "message"),
    [
        ({"levels": 1}, None, "levels must be at least 2"),
        ({"channels": 3}, torch.zeros(2, 1, 4, 4), "tables for 3 channels, not for 1"),
    ],
)
def test_what_does_not_fit_is_refused(options, x, message) -> None:
    with pytest.raises(ValueError, match=message):
        LevelTable(**options)(x)


def test_a_noise_level_is_refused() -> None:
    with pytest.raises(ValueError, match="level=False"):
        LevelTable(9)(torch.zeros(2, 1, 4, 4), torch.zeros(2))
