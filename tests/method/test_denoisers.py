"""What a denoiser makes of its network's output, and how exactly it forms the residual."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import ndm
import ndm.networks
from ndm.method.denoisers import AUXILIARY_WEIGHT, BareDenoiser, as_denoiser
from ndm.method.schedules import NoiseLevel, per_example

PARAMETERIZATIONS = ("v", "eps", "x", "score", "velocity")
SCHEDULES = {"variance preserving": ndm.LinearSchedule(), "straight path": ndm.OTSchedule()}
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
every_parameterization = pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
DENOISERS = (ndm.Denoiser, ndm.DirectDenoiser)


class Says(nn.Module):
    """A network that gives a fixed answer and remembers the question."""

    def __init__(self, answer: Tensor) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, z: Tensor, u: Tensor, **conditions: Tensor) -> Tensor:
        self.z, self.u, self.conditions = z, u, conditions
        return self.answer


def target(parameterization: str, x: Tensor, noise: Tensor, level: NoiseLevel) -> Tensor:
    alpha, sigma = per_example(level.alpha, x), per_example(level.sigma, x)
    targets = {"v": alpha * noise - sigma * x, "eps": noise, "x": x, "score": -noise / sigma, "velocity": noise - x}
    return targets[parameterization]


def noisy(schedule, shape=(2, 3), dtype=torch.float64, times=(0.01, 0.3, 0.6, 0.9)):
    level = schedule(torch.tensor(times, dtype=dtype))
    x, noise = torch.randn(2, len(times), *shape, dtype=dtype)
    return x, noise, level, per_example(level.alpha, x) * x + per_example(level.sigma, x) * noise


@every_schedule
@every_parameterization
@pytest.mark.parametrize("cls", DENOISERS)
def test_the_true_target_gives_the_data_back(cls, schedule, parameterization: str) -> None:
    x, noise, level, z = noisy(schedule)
    denoiser = cls(Says(target(parameterization, x, noise, level)), parameterization)
    torch.testing.assert_close(denoiser(z, level), x, rtol=1e-10, atol=1e-10)
    residual = denoiser.estimate(z, level).residual(x, torch.zeros_like(x), noise)
    torch.testing.assert_close(residual, torch.zeros_like(x), rtol=0, atol=1e-12)


@every_schedule
@every_parameterization
@pytest.mark.parametrize("cls", DENOISERS)
def test_residual_is_target_minus_estimate(cls, schedule, parameterization: str) -> None:
    x, noise, level, z = noisy(schedule)
    displacement, output = torch.randn_like(x), torch.randn_like(x)
    z = z + per_example(level.alpha, x) * displacement  # z = alpha F(x) + sigma noise
    estimate = cls(Says(output), parameterization).estimate(z, level)
    expected = x - estimate.mean
    torch.testing.assert_close(estimate.residual(x, displacement, noise), expected, rtol=1e-9, atol=1e-9)
    assert expected.abs().max() > 0.1


@every_schedule
@pytest.mark.parametrize("parameterization", ["v", "eps", "score", "velocity"])
def test_residual_is_accurate_near_the_data_where_subtraction_is_not(schedule, parameterization: str) -> None:
    x, noise, level, _ = noisy(schedule, (3, 8, 8), torch.float32, times=(0.0,) * 4)
    assert level.gamma.tolist() == pytest.approx([-13.3] * 4)
    displacement = math.exp(-13.3) * torch.randn_like(x)
    error = 0.03 * torch.randn_like(x)
    output = target(parameterization, x, noise, level) + error
    z = per_example(level.alpha, x) * (x + displacement) + per_example(level.sigma, x) * noise
    estimate = ndm.Denoiser(Says(output), parameterization).estimate(z, level)

    # The same numbers in float64.
    exact_level = level.map(torch.Tensor.double)
    alpha, sigma = per_example(exact_level.alpha, x), per_example(exact_level.sigma, x)
    exact_z = alpha * (x.double() + displacement.double()) + sigma * noise.double()
    exact = x.double() - ndm.Denoiser(Says(output.double()), parameterization)(exact_z, exact_level)

    ours = (estimate.residual(x, displacement, noise).double() - exact).norm()
    subtraction = ((x - estimate.mean).double() - exact).norm()
    assert ours < 1e-4 * exact.norm()
    assert subtraction > 10 * ours


@pytest.mark.parametrize("cls", DENOISERS)
def test_the_network_sees_z_and_the_level_between_0_and_1(cls) -> None:
    x, _, level, z = noisy(ndm.LinearSchedule(-10.0, 6.0), times=(0.0, 0.5, 1.0))
    net = Says(x)
    denoiser = cls(net)
    denoiser.set_gamma_range(-10.0, 6.0)
    denoiser(z, level)
    assert net.z is z
    assert net.u.tolist() == pytest.approx([0, 0.5, 1])
    assert net.conditions == {}
    given = cls(net, gamma_range=(-18, 6))
    given.set_gamma_range(-10.0, 6.0)
    given(z, level)
    assert net.u.tolist() == pytest.approx([1 / 3, 2 / 3, 1])


@pytest.mark.parametrize("wrap", [ndm.Denoiser, ndm.DirectDenoiser, BareDenoiser])
def test_labels_are_handed_to_the_network(wrap) -> None:
    x, _, level, z = noisy(ndm.LinearSchedule())
    net, labels = Says(x), torch.tensor([3, 1, 4, 1])
    wrap(net)(z, level, labels)
    assert net.conditions["labels"] is labels


@pytest.mark.parametrize(
    ("denoiser", "heads"),
    [
        (lambda net: ndm.Denoiser(net), 0),
        (lambda net: ndm.Denoiser(net), 3),
        (lambda net: ndm.DirectDenoiser(net), 3),
        (lambda net: ndm.DirectDenoiser(net, ode=True), 1),
        (lambda net: ndm.DirectDenoiser(net, ode=True), 4),
    ],
)
def test_a_wrong_number_of_channels_is_refused(denoiser, heads: int) -> None:
    _, _, level, z = noisy(ndm.LinearSchedule())
    with pytest.raises(ValueError, match="times the channels of z"):
        denoiser(Says(torch.zeros(4, 2 * heads, 3)))(z, level)
    for wrong in (torch.zeros(4, 3, 3), torch.zeros(4, 2, 4), torch.zeros(3, 2, 3)):
        with pytest.raises(ValueError, match="it returned shape"):
            denoiser(Says(wrong))(z, level)


def test_heads_come_in_the_documented_order() -> None:
    x, _, level, z = noisy(ndm.LinearSchedule())
    first, second, third = torch.randn(3, *x.shape, dtype=x.dtype)
    estimate = ndm.Denoiser(Says(torch.cat([first, second], 1)), "x").estimate(z, level)
    assert torch.equal(estimate.mean, first)
    assert torch.equal(estimate.log_ratio, second)
    assert estimate.transformed is None
    estimate = ndm.DirectDenoiser(Says(torch.cat([first, second, third], 1)), "x", ode=True).estimate(z, level)
    assert torch.equal(estimate.mean, first)
    assert torch.equal(estimate.log_ratio, second)
    assert torch.equal(estimate.transformed, third)
    estimate = ndm.DirectDenoiser(Says(torch.cat([first, second], 1)), "x", ode=True).estimate(z, level)
    assert estimate.log_ratio is None
    assert torch.equal(estimate.transformed, second)


@every_schedule
@every_parameterization
def test_the_regression_of_the_extra_head(schedule, parameterization: str) -> None:
    f, noise, level, z = noisy(schedule)
    f.requires_grad_()
    output = torch.randn(4, 4, 3, dtype=f.dtype, requires_grad=True)
    estimate = ndm.DirectDenoiser(Says(output), parameterization, ode=True).estimate(z, level)
    loss = estimate.transformed_loss(f, noise)
    error = ((f - estimate.transformed) ** 2).sum((1, 2)) / (2 * level.gamma.exp())
    torch.testing.assert_close(loss, AUXILIARY_WEIGHT * error, rtol=1e-8, atol=1e-10)
    loss.sum().backward()
    assert f.grad is None  # the truth is not moved towards the estimate
    assert output.grad[:, :2].abs().max() == 0
    assert output.grad[:, 2:].abs().min() > 0


@pytest.mark.parametrize("cls", DENOISERS)
def test_half_precision_networks_are_read_in_the_precision_of_z(cls) -> None:
    x, _, level, z = noisy(ndm.LinearSchedule(), dtype=torch.float32)
    assert cls(Says(x.bfloat16()))(z, level).dtype == torch.float32


def test_any_module_will_do() -> None:
    x, noise, level, z = noisy(ndm.LinearSchedule())
    x_hat = torch.randn_like(x)
    denoiser = as_denoiser(Says(x_hat))
    estimate = denoiser.estimate(z, level)
    assert torch.equal(denoiser(z, level), x_hat)
    torch.testing.assert_close(estimate.residual(x, torch.ones_like(x), noise), x - x_hat)
    assert as_denoiser(denoiser) is denoiser


@pytest.mark.parametrize("cls", DENOISERS)
def test_bad_arguments_are_refused(cls) -> None:
    with pytest.raises(ValueError, match="choose one of v, eps, x, score, velocity"):
        cls(nn.Identity(), "noise")
    with pytest.raises(ValueError, match="gamma_range"):
        cls(nn.Identity(), gamma_range=(2.0, 1.0))
