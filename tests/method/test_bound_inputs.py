"""Labels and units of the bound, what is refused, and the calibration."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import ndm
from ndm.method.calibration import calibrate
from tests.method.gaussians import f64, network


def test_labels_reach_the_denoiser() -> None:
    net = network(classes=3)
    model = ndm.NDM(ndm.LinearSchedule(), ndm.Identity(), ndm.Denoiser(net))
    x, values = torch.randn(6, 2), []
    for label in (0, 1, 2):
        labels = torch.full((6,), label)
        values.append(model.bound(x, 10, labels=labels, generator=torch.Generator().manual_seed(0)).diffusion)
    assert not torch.isclose(values[0], values[1]).any()
    assert not torch.isclose(values[1], values[2]).any()
    with pytest.raises(ValueError, match="labels"):
        model.bound(x, 10)
    model.calibrate([(x, torch.zeros(6, dtype=torch.long))], 3)
    assert model.bound(x, 3, labels=torch.zeros(6, dtype=torch.long)).total.isfinite().all()


def test_bits_per_dimension() -> None:
    model = ndm.NDM(ndm.LinearSchedule(), ndm.Identity(), ndm.Denoiser(network(12)), ndm.DiscretizedDecoder(256))
    terms = model.bound(torch.randint(256, (5, 3, 2, 2), dtype=torch.uint8), 10)
    expected = (terms.diffusion + terms.prior + terms.reconstruction) / (12 * math.log(2))
    torch.testing.assert_close(terms.bits_per_dim, expected)
    assert terms.dimensions == 12


def test_the_bound_is_in_the_datas_own_units() -> None:
    denoiser = ndm.Denoiser(network())
    x = torch.randn(7, 2, dtype=torch.float64)
    bounds = []
    for standardize, data in (
        (None, x),
        (ndm.Standardize([1.0, -2.0], [4.0, 0.5]), x * f64([4.0, 0.5]) + f64([1.0, -2.0])),
    ):
        model = ndm.NDM(ndm.LinearSchedule(), ndm.Identity(), denoiser, standardize=standardize).double()
        bounds.append(model.bound(data, 10, generator=torch.Generator().manual_seed(0)).total)
    torch.testing.assert_close(bounds[1], bounds[0] + math.log(4.0 * 0.5))  # -log p(data) = -log p(x) + log scale


def levels_model() -> ndm.NDM:
    return ndm.NDM(ndm.LinearSchedule(), ndm.Identity(), ndm.Denoiser(network()), ndm.DiscretizedDecoder(4))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (torch.tensor([[math.nan, 0.25]]), "NaN"),
        (torch.tensor([[0.25, math.inf]]), "NaN or infinite"),
        (torch.tensor([[0.25, 0.3]]), "do not lie on"),
        (torch.tensor([[0, 4]]), "K = 4 levels"),
        (torch.tensor([[-1, 3]]), "K = 4 levels"),
    ],
)
def test_bad_data_are_refused(data: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        levels_model().bound(data)
    with pytest.raises(ValueError, match=message):
        levels_model().calibrate([data], 2)


def test_other_mistakes_are_refused() -> None:
    model, data = levels_model(), torch.tensor([[0, 3]])
    for steps in (0, -3):
        with pytest.raises(ValueError, match="steps must be at least 1"):
            model.bound(data, steps)
        with pytest.raises(ValueError, match="steps must be at least 1"):
            model.calibrate([data], steps)
    for time in (1.0, -0.1, math.nan):
        with pytest.raises(ValueError, match=r"\[0, 1\)"):
            model.bound(data, 5, times=torch.tensor([time]))
    with pytest.raises(ValueError, match="at least one batch"):
        model.calibrate([], 5)
    with pytest.raises(ValueError, match="choose one of auto, isotropic"):
        model.calibrate([data], 5, "round")
    model.bound(torch.tensor([[0.3, 0.3]]), check=False)


def test_calibration_sees_every_batch_and_leaves_the_model_alone(noise) -> None:
    model = ndm.NDM(ndm.LinearSchedule(-6.0, 4.0), ndm.Identity(), ndm.Denoiser(network())).double()
    x = torch.randn(12, 2, dtype=torch.float64)
    noise(torch.ones(1, 2))  # the same for every example, however they are grouped
    whole = calibrate(model, x, 4, "diagonal")
    batches = calibrate(model, [x[:5], (x[5:6],), [x[6:], None]], 4, "diagonal")
    torch.testing.assert_close(whole.log_ratio, batches.log_ratio)
    assert whole.log_ratio.dtype == torch.float64
    assert (whole.log_ratio > 0).all()
    assert not model.calibrations
    assert all(p.grad is None for p in model.parameters())
    assert not whole.log_ratio.requires_grad
