"""The covariance that a calibration chooses for the data."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import ndm
from ndm.method.calibration import error_moments, kinds_of
from ndm.method.coordinates import DATA, Frequencies

SHAPE = (1, 4, 4)


def process() -> ndm.NDM:
    """A model that takes the mean of all data for zero, so that its errors are the data."""
    return ndm.NDM(ndm.LinearSchedule(-6.0, 5.0), ndm.Identity(), lambda z, level: 0 * z).double()


def images(smooth: bool, n: int = 400) -> Tensor:
    """Images with few frequencies, or with few pixels that vary."""
    spread = torch.tensor([2.0, 1.0, 0.1, 0.01]).double().repeat(4).reshape(SHAPE)
    x = spread * torch.randn(n, *SHAPE, generator=torch.Generator().manual_seed(3)).double()
    return Frequencies().back(x) if smooth else x


def fitted(model: ndm.NDM, x: Tensor, covariance: str, **options) -> tuple[str, Tensor, Tensor | None]:
    model.calibrate([x[:300], x[300:]], 4, covariance, generator=torch.Generator().manual_seed(0), **options)
    found = model.calibrations["4"]
    return found.covariance, found.log_ratio, model.grid(4)


@pytest.mark.parametrize(("smooth", "kind"), [(True, "frequency"), (False, "diagonal")])
@pytest.mark.parametrize("spacing", ["time", "gamma", pytest.param("optimal", marks=pytest.mark.slow)])
def test_auto_is_the_better_one_for_images(smooth: bool, kind: str, spacing: str) -> None:
    x = images(smooth)
    model = process()
    chosen, log_ratio, grid = fitted(model, x, "auto", spacing=spacing)
    assert chosen == kind
    bounds = {"auto": model.bound(x, 4, generator=torch.Generator().manual_seed(1)).total.mean().item()}
    for name in ("diagonal", "frequency"):
        _, of_name, own_grid = fitted(model, x, name, spacing=spacing)
        bounds[name] = model.bound(x, 4, generator=torch.Generator().manual_seed(1)).total.mean().item()
        if name == kind and spacing != "optimal":  # whose noise is drawn later
            assert torch.equal(log_ratio, of_name)
            assert grid is own_grid is None or torch.equal(grid, own_grid)
    assert bounds["auto"] < bounds["frequency" if kind == "diagonal" else "diagonal"] - 0.5
    assert bounds["auto"] == pytest.approx(bounds[kind], abs=0.1)


def test_auto_is_isotropic_where_the_variances_would_be_many(monkeypatch) -> None:
    x, most = images(True), 4 * 16
    for number, kind in ((most, "frequency"), (most - 1, "isotropic")):
        monkeypatch.setattr("ndm.method.calibration.MOST_NUMBERS", number)
        assert fitted(process(), x, "auto")[0] == kind


def test_moments_of_an_isotropic_variance_are_of_one_dimension() -> None:
    generators = (torch.Generator().manual_seed(0) for _ in range(2))
    one, every = (
        error_moments(process(), images(True), 3, kinds, generator=generator)[DATA]
        for kinds, generator in zip((("isotropic",), ("isotropic", "diagonal")), generators, strict=True)
    )
    assert one.squares().shape == (3, 1)
    torch.testing.assert_close(one.squares()[:, 0], every.squares().mean(1))


@pytest.mark.parametrize("shape", [(2,), (3, 1, 5), (3, 5, 1), (5, 4)])
def test_auto_is_isotropic_for_other_data(shape: tuple[int, ...]) -> None:
    assert fitted(process(), torch.randn(400, *shape).double(), "auto")[0] == "isotropic"


def test_auto_is_the_default_and_knows_a_noise_in_frequencies() -> None:
    model, x = process(), images(False)
    model.noise = ndm.FrequencyNoise(SHAPE).double()
    assert kinds_of(model, "auto", SHAPE, 4) == ("frequency",)
    _, expected, _ = fitted(model, x, "frequency")
    model.calibrate([x[:300], x[300:]], 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model.calibrations["4"].log_ratio, expected)
    assert expected.shape == (4, 16)
    assert expected.min() > 0


def test_unknown_covariances_are_refused() -> None:
    with pytest.raises(ValueError, match="There is no covariance 'round'; choose one of auto, isotropic, diagonal"):
        process().calibrate(images(True), 4, "round")
    with pytest.raises(ValueError, match=r"rank must be at least 1 and whole, got 2\.5"):
        process().calibrate(images(True), 4, "full", rank=2.5)
    with pytest.raises(ValueError, match=r"one shape, got \(1, 4, 4\) and \(1, 5, 5\)"):
        process().calibrate([images(True), torch.zeros(3, 1, 5, 5)], 4)
    with pytest.raises(ValueError, match=r"whole number, got 2\.5"):
        ndm.FrequencyNoise(SHAPE, bands=2.5)
