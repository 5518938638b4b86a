"""The solver's calibration, and noise levels that all rows share."""

from __future__ import annotations

import pytest
import torch

import ndm
from ndm.inference import flow
from ndm.inference.likelihood import calibrate_solver, log_likelihood
from tests.inference.densities import small


def rough() -> ndm.NDM:
    """A small model in two dimensions whose error is well above rounding."""
    torch.manual_seed(0)
    model = small()
    for parameter in model.denoiser.parameters():
        parameter.data.mul_(1.3)
    return model


def test_a_calibration_covers_the_error_on_other_samples_of_the_model():
    model, like = rough(), torch.zeros(1, 2, dtype=torch.float64)
    calibration = calibrate_solver(model, like, tolerance=0.05)
    assert set(calibration.factors) == {8, 10, 12, 16}
    solver = flow.Flow(model, None, 0, 0.05)
    with torch.no_grad():
        z = solver.samples(torch.randn(200, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1)), 32)
        fine = solver.solve(z, None, None, 96)[0][0]
        for steps, factor in calibration.factors.items():
            found, apart = solver.solve(z, None, None, steps)
            error = (found[0] - fine - calibration.shifts[steps]).abs()
            assert error.mean() <= 1.2 * (found[0] - fine).abs().mean()
            assert (error <= factor * apart).double().mean() >= 0.9
            assert factor * apart.median() < 40 * error.median()


def test_a_calibration_does_not_depend_on_the_rows_and_is_used():
    model = rough()
    calibration = calibrate_solver(model, torch.zeros(1, 2, dtype=torch.float64))
    assert calibration == calibrate_solver(model, torch.full((3, 2), 7.0, dtype=torch.float64))
    x = torch.randn(20, 2, dtype=torch.float64)
    only = flow.SolverCalibration(first=8, factors={8: 0.01}, shifts={8: 0.5})
    found, plain = log_likelihood(model, x, tolerance=10.0, calibration=only), log_likelihood(model, x, tolerance=10.0)
    torch.testing.assert_close(found.log_prob + 0.5, plain.log_prob)  # both in 8 steps
    assert [only.factor(steps) for steps in (6, 8, 16)] == [flow.FACTOR, 0.01, 0.01]
    assert flow.SolverCalibration().factor(16) == flow.FACTOR
    rounding = flow.ROUNDING * torch.finfo(torch.float64).eps * (found.log_prob.abs() + 2)
    torch.testing.assert_close(60 * (found.solver_error - rounding), plain.solver_error - rounding)


def test_what_cannot_be_calibrated_has_no_calibration():
    assert calibrate_solver(small(3), torch.zeros(1, 3).double(), divergence="hutchinson") is None
    assert calibrate_solver(small(130), torch.zeros(1, 130).double()) is None
    assert calibrate_solver(small(3), torch.zeros(1, 3).double(), labels=True) is None
    with pytest.raises(ValueError, match="There is no divergence 'trace'"):
        calibrate_solver(small(3), torch.zeros(1, 3).double(), divergence="trace")


def test_a_shared_noise_level_is_embedded_once():
    model, seen = small(2), []
    model.denoiser.net.embed_level.register_forward_hook(lambda _, inputs, output: seen.append(len(output)))
    z, gamma = torch.randn(7, 2, dtype=torch.float64), torch.tensor(-1.0, dtype=torch.float64)
    shared = model.drift_at(z, model.schedule.level_at(gamma.expand(7)), eta=0.0)
    own = model.drift_at(z, model.schedule.level_at(gamma.repeat(7)), eta=0.0)
    assert seen == [1, 7]
    torch.testing.assert_close(shared, own)
