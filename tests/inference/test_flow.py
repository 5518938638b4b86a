"""The solver's calibration, and Jacobians of networks in the divergence."""

from __future__ import annotations

import pytest
import torch

import ndm
from ndm._internal.jacobians import whole_jacobians
from ndm.inference import flow
from ndm.inference.likelihood import calibrate_solver, log_likelihood
from ndm.networks import ResidualMLP
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


@pytest.mark.parametrize("transform", ["identity", "separable", "neural"])
def test_the_density_is_the_same_by_jacobians_and_by_backward_passes(transform, monkeypatch):
    model, x = small(3, transform), torch.randn(5, 3, dtype=torch.float64)
    pushed = []
    monkeypatch.setattr(
        ResidualMLP, "with_jacobian", lambda *args, own=ResidualMLP.with_jacobian: pushed.append(1) or own(*args)
    )
    found = log_likelihood(model, x, tolerance=10.0)
    assert pushed
    monkeypatch.setattr(ResidualMLP, "_is_fixed", lambda *_: False)
    expected = log_likelihood(model, x, tolerance=10.0)
    torch.testing.assert_close(found.log_prob, expected.log_prob, rtol=0, atol=1e-10)
    torch.testing.assert_close(found.solver_error, expected.solver_error, rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize("depth", [0, 2])
@pytest.mark.parametrize("level", [False, True])
def test_a_perceptrons_jacobian_is_that_of_backward_passes(level, depth, heads, monkeypatch):
    monkeypatch.setattr("ndm.networks.mlp.AT_ONCE", 2 * 6 * 9)  # two directions at a time
    net = ResidualMLP(5, hidden=9, depth=depth, heads=heads, level=level, zero_init=False).double().eval()
    net.requires_grad_(False)
    x, conditions = torch.randn(6, 5, dtype=torch.float64), ()
    if level:
        conditions = (torch.tensor([0.3], dtype=torch.float64).expand(6),)

    def derivative() -> tuple[torch.Tensor, torch.Tensor]:
        z = x.clone().requires_grad_()
        output = net(z, *conditions)
        rows = [torch.autograd.grad(one.sum(), z, retain_graph=True)[0] for one in output.unbind(1)]
        return output.detach(), torch.stack(rows)

    output, expected = derivative()
    with whole_jacobians():
        same, found = derivative()
    torch.testing.assert_close(same, output)
    torch.testing.assert_close(found, expected)


def test_a_network_with_a_noise_level_for_each_example_takes_backward_passes():
    net = ResidualMLP(2, hidden=8, depth=1, zero_init=False).double().eval().requires_grad_(False)
    z, u = torch.randn(4, 2, dtype=torch.float64, requires_grad=True), torch.rand(4, dtype=torch.float64)
    with whole_jacobians():
        found = torch.autograd.grad(net(z, u).sum(), z)[0]
    torch.testing.assert_close(found, torch.autograd.grad(net(z, u).sum(), z)[0], rtol=0, atol=0)


def test_a_shared_noise_level_is_embedded_once():
    model, seen = small(2), []
    model.denoiser.net.embed_level.register_forward_hook(lambda _, inputs, output: seen.append(len(output)))
    z, gamma = torch.randn(7, 2, dtype=torch.float64), torch.tensor(-1.0, dtype=torch.float64)
    shared = model.drift_at(z, model.schedule.level_at(gamma.expand(7)), eta=0.0)
    own = model.drift_at(z, model.schedule.level_at(gamma.repeat(7)), eta=0.0)
    assert seen == [1, 7]
    torch.testing.assert_close(shared, own)
