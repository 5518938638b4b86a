"""The acceleration of the reverse ODE against differences and closed forms, the cost of paths against geometry."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

import ndm
from ndm._internal.random import Share
from ndm.method.denoisers import BaseDenoiser
from ndm.method.schedules import per_example
from ndm.networks import ImageTransformer, ResidualMLP

R = 1.7  # the variance of Gaussian data

#: q(t) = alpha^2 R + sigma^2 and its two derivatives, written by hand for each schedule.
Spread = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]


def straight_path(t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return (1 - t) ** 2 * R + t**2, 2 * t - 2 * (1 - t) * R, torch.full_like(t, 2 * R + 2)


def quarter_turn(t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """alpha = cos(pi t / 2), sigma = sin(pi t / 2)."""
    w = math.pi
    return (
        (R + 1) / 2 + (R - 1) / 2 * torch.cos(w * t),
        (1 - R) / 2 * w * torch.sin(w * t),
        ((1 - R) / 2 * w**2 * torch.cos(w * t)),
    )


def linear_gamma(t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """gamma from -6 to 4."""
    s = torch.sigmoid(-6 + 10 * t)
    return R + (1 - R) * s, (1 - R) * 10 * s * (1 - s), (1 - R) * 100 * s * (1 - s) * (1 - 2 * s)


SCHEDULES: dict[str, tuple[Callable[[], ndm.Schedule], Spread]] = {
    "straight path": (ndm.OTSchedule, straight_path),
    "cosine": (partial(ndm.CosineSchedule, offset=0.0), quarter_turn),
    "linear gamma": (partial(ndm.LinearSchedule, -6.0, 4.0), linear_gamma),
}
every_schedule = pytest.mark.parametrize("name", SCHEDULES)


class Exact(nn.Module):
    """E[x | z] of N(0, variance) data under the identity."""

    def __init__(self, variance: float = R) -> None:
        super().__init__()
        self.variance = variance

    def forward(self, z: Tensor, level: ndm.NoiseLevel) -> Tensor:
        alpha, sigma = per_example(level.alpha, z), per_example(level.sigma, z)
        return alpha * self.variance * z / (alpha**2 * self.variance + sigma**2)


def gaussian(name: str, variance: float = R) -> ndm.NDM:
    return ndm.NDM(SCHEDULES[name][0](), ndm.Identity(), Exact(variance))


def second_derivative(q: Tensor, slope: Tensor, bend: Tensor) -> Tensor:
    """Of sqrt(q)."""
    return bend / (2 * q.sqrt()) - slope**2 / (4 * q**1.5)


@every_schedule
def test_the_acceleration_of_gaussian_data(name: str) -> None:
    # The ODE's paths are z_t = const sqrt(q(t)).
    t = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    z = torch.randn(19, 3, dtype=torch.float64)
    q, *derivatives = SCHEDULES[name][1](t)
    expected = z * (second_derivative(q, *derivatives) / q.sqrt())[:, None]
    torch.testing.assert_close(ndm.acceleration(gaussian(name), z, t), expected, rtol=1e-9, atol=1e-9)


@every_schedule
def test_the_mean_of_the_curvature_is_its_integral(name: str) -> None:
    # E z_t^2 = q, so the integrand is the square of the second derivative of sqrt(q).
    n = 200_000
    x = math.sqrt(R) * torch.randn(n, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = ndm.curvature(gaussian(name), x, generator=torch.Generator().manual_seed(1))
    t = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    expected = (second_derivative(*SCHEDULES[name][1](t)) ** 2).mean().item()
    assert found.mean().item() == pytest.approx(expected, abs=4 * found.std().item() / math.sqrt(n))


def test_standard_normal_data_stand_still_where_variance_is_preserved_and_bend_on_the_straight_path() -> None:
    x = torch.randn(100, 2, dtype=torch.float64)
    assert ndm.curvature(gaussian("cosine", variance=1.0), x).max() < 1e-20
    assert ndm.curvature(gaussian("straight path", variance=1.0), x).mean() > 1


def networks(transform: str, schedule: ndm.Schedule | None = None, denoiser: BaseDenoiser | None = None) -> ndm.NDM:
    torch.manual_seed(0)
    net = partial(ResidualMLP, 2, hidden=8, depth=1, embedding=8, zero_init=False)
    made = {
        "identity": ndm.Identity,
        "neural": lambda: ndm.Neural(net(), gate="free"),
        "separable": lambda: ndm.Separable(net(heads=3, level=False), terms=3, gate="free"),
    }[transform]()
    schedule = schedule or ndm.LearnedSchedule(-6.0, 3.0, learn_endpoints=True)
    return ndm.NDM(schedule, made, denoiser or ndm.Denoiser(net())).double()


def direct(**options: int | bool) -> ndm.DirectDenoiser:
    heads = 2 if options else 1
    return ndm.DirectDenoiser(ResidualMLP(2, hidden=8, depth=1, embedding=8, heads=heads, zero_init=False), **options)


MODELS = {
    "identity": lambda: networks("identity"),
    "neural": lambda: networks("neural"),
    "separable": lambda: networks("separable"),
    "neural, straight path": lambda: networks("neural", ndm.OTSchedule()),
    "separable, betas": lambda: networks("separable", ndm.DDPMSchedule()),
    "direct with a head for F": lambda: networks("separable", denoiser=direct(ode=True)),
}
every_model = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)


@every_model
def test_the_acceleration_against_differences(model: Callable[[], ndm.NDM]) -> None:
    process, h = model(), 1e-5
    z, t = torch.randn(9, 2, dtype=torch.float64), torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
    with torch.no_grad():
        f = process.drift(z, t, eta=0.0)
        later, earlier = (process.drift(z + s * f, t + s, eta=0.0) for s in (h, -h))
    expected = (later - earlier) / (2 * h)
    found = ndm.acceleration(process, z, t)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


@every_model
def test_the_gradient_reaches_every_part_and_is_that_of_differences(model: Callable[[], ndm.NDM]) -> None:
    process = model()
    x = torch.randn(7, 2, dtype=torch.float64)

    def penalty() -> Tensor:
        return ndm.curvature(process, x, generator=torch.Generator().manual_seed(3)).mean()

    penalty().backward()
    trained = dict(process.named_parameters())
    assert {n for n, p in trained.items() if p.grad is None or not p.grad.abs().sum() > 0} == set()
    # Along one direction in all parameters: a part that is one percent wrong is seen.
    direction = [torch.randn_like(p) for p in trained.values()]
    found = sum((p.grad * d).sum().item() for p, d in zip(trained.values(), direction, strict=True))
    values = []
    for h in (1e-6, -2e-6):
        with torch.no_grad():
            for p, d in zip(trained.values(), direction, strict=True):
                p += h * d
            values.append(penalty().item())
    assert found == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-4)


def test_the_gradient_reaches_the_state() -> None:
    process = gaussian("straight path")
    z, t = torch.randn(4, 2, dtype=torch.float64, requires_grad=True), torch.full((4,), 0.5, dtype=torch.float64)
    ndm.acceleration(process, z, t).sum().backward()
    q, *derivatives = straight_path(t)
    torch.testing.assert_close(z.grad, (second_derivative(q, *derivatives) / q.sqrt())[:, None].expand(4, 2))


def test_no_graph_is_kept_where_none_is_wanted() -> None:
    process = networks("neural")
    x = torch.randn(5, 2, dtype=torch.float64)
    with torch.no_grad():
        found = ndm.curvature(process, x, generator=torch.Generator().manual_seed(0))
    assert not found.requires_grad
    recorded = ndm.curvature(process, x, generator=torch.Generator().manual_seed(0))
    assert recorded.requires_grad
    assert all(p.grad is None for p in process.parameters())
    torch.testing.assert_close(found, recorded.detach())


@pytest.mark.parametrize("schedule", [ndm.OTSchedule, ndm.CosineSchedule, ndm.DDPMSchedule, ndm.LinearSchedule])
def test_the_ends_of_time_are_finite(schedule: type[ndm.Schedule]) -> None:
    process = networks("separable", schedule()).float()
    x = torch.randn(2, 2)
    found = ndm.curvature(process, x, times=torch.tensor([0.0, 1.0]))
    found.sum().backward()
    assert torch.isfinite(found).all()
    assert all(torch.isfinite(p.grad).all() for p in process.parameters() if p.grad is not None)


def test_attention_has_the_derivatives_that_are_needed() -> None:
    torch.manual_seed(0)
    net = ImageTransformer(channels=1, patch=2, width=16, depth=1, attention_heads=2)
    for p in net.parameters():
        nn.init.normal_(p, std=0.2)
    process = ndm.NDM(ndm.LinearSchedule(-6.0, 3.0), ndm.Identity(), ndm.Denoiser(net)).double()
    z, t, h = torch.randn(3, 1, 4, 4, dtype=torch.float64), torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64), 1e-5
    with torch.no_grad():
        f = process.drift(z, t, eta=0.0)
        later, earlier = (process.drift(z + s * f, t + s, eta=0.0) for s in (h, -h))
    torch.testing.assert_close(ndm.acceleration(process, z, t), (later - earlier) / (2 * h), rtol=1e-4, atol=1e-4)


def test_the_curvature_of_pieces_of_a_batch_is_that_of_the_batch() -> None:
    process = networks("separable")
    x = torch.randn(8, 2, dtype=torch.float64)

    def of(rows: slice) -> Tensor:
        share = Share(torch.Generator().manual_seed(5), rows, len(x))
        return ndm.curvature(process, x[rows], generator=share).detach()

    torch.testing.assert_close(torch.cat([of(slice(0, 3)), of(slice(3, 8))]), of(slice(0, 8)))


def test_a_direct_model_without_an_ode_says_so() -> None:
    with pytest.raises(ValueError, match="ode=True"):
        ndm.curvature(networks("separable", denoiser=direct()), torch.randn(3, 2, dtype=torch.float64))


def test_bad_data_and_times_are_refused() -> None:
    process = gaussian("cosine")
    with pytest.raises(ValueError, match=r"NaN|finite"):
        ndm.curvature(process, torch.full((3, 1), math.nan))
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        ndm.curvature(process, torch.randn(3, 1), times=torch.tensor([0.1, 0.5, 1.1]))


@every_schedule
def test_the_paths_of_gaussian_data(name: str) -> None:
    process = gaussian(name)
    z = torch.randn(6, 2, dtype=torch.float64)
    states = ndm.ode_paths(process, z, 50)
    t = torch.linspace(1, 0, 51, dtype=torch.float64)
    level = process.schedule(t)
    q = level.alpha**2 * R + level.sigma**2  # also where the schedule is clipped
    torch.testing.assert_close(states, states[0] * (q / q[0]).sqrt()[:, None, None], rtol=1e-4, atol=1e-4)
    inside = slice(1, 50)
    torch.testing.assert_close(q[inside], SCHEDULES[name][1](t[inside])[0], rtol=1e-4, atol=0)
    assert torch.equal(states[0], z)


@pytest.mark.parametrize("steps", [1, 2, 10])
def test_the_first_step_of_a_clipped_path_is_not_lost(steps: int) -> None:
    """By Euler's method, with standard normal data on the straight path: (z - x_hat) / t, at the times of the clip."""
    z = torch.ones(1, 1, dtype=torch.float64)
    states = ndm.ode_paths(gaussian("straight path", variance=1.0), z, steps, solver="euler")
    first = 1 / (1 + math.exp(13.3 / 2))
    times = [min(max(i / steps, first), 1 - first) for i in range(steps, -1, -1)]
    expected = [1.0]
    for t, s in pairwise(times):
        y = expected[-1]
        expected.append(y - (t - s) * (y - (1 - t) * y / ((1 - t) ** 2 + t**2)) / t)
    torch.testing.assert_close(states[:, 0, 0], torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=0)


def test_the_cost_of_the_straight_path_of_gaussian_data() -> None:
    """z_t = z sqrt(q(t)) up to the clip: the action by quadrature, and the transport by the ends."""
    z = torch.ones(1, 1, dtype=torch.float64)
    cost = ndm.path_cost(ndm.ode_paths(gaussian("straight path"), z, 400))
    t = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    q, slope, _ = straight_path(t)
    assert cost.action.item() == pytest.approx((slope**2 / (4 * q)).mean().item(), rel=1e-2)
    assert cost.transport.item() == pytest.approx((math.sqrt(R) - 1) ** 2, rel=1e-2)


@pytest.mark.parametrize("at", [0.0, 1.0])
def test_the_acceleration_at_the_very_ends_is_the_limit(at: float) -> None:
    process, z = gaussian("straight path"), torch.ones(1, 2, dtype=torch.float64)
    ends = torch.tensor([at], dtype=torch.float64)
    near = torch.tensor([abs(at - 0.0014)], dtype=torch.float64)
    found, expected = (ndm.acceleration(process, z, t) for t in (ends, near))
    torch.testing.assert_close(found, expected, rtol=0.01, atol=0)


def test_paths_leave_the_model_as_it_was() -> None:
    process = networks("separable").train()
    ndm.ode_paths(process, torch.randn(2, 2, dtype=torch.float64), 3, solver="euler")
    assert process.training
    assert all(p.requires_grad for p in process.parameters())


@pytest.mark.parametrize(("options", "words"), [({"solver": "dopri5"}, "euler"), ({"steps": 0}, "at least 1")])
def test_paths_refuse_what_they_cannot_do(options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ndm.ode_paths(gaussian("cosine"), torch.randn(2, 1), **options)


def test_a_straight_path_at_one_speed_costs_its_length_squared() -> None:
    t = torch.linspace(1, 0, 11, dtype=torch.float64)[:, None, None]
    cost = ndm.path_cost(torch.tensor([[1.0, 2.0], [0.0, 0.0]], dtype=torch.float64) + t * torch.tensor([3.0, 4.0]))
    torch.testing.assert_close(cost.action, torch.full((2,), 25.0, dtype=torch.float64))
    torch.testing.assert_close(cost.transport, cost.action)
    assert cost.straightness.abs().max() < 1e-12


def test_the_cost_of_a_half_circle_and_of_a_change_of_speed() -> None:
    t = torch.linspace(0, 1, 4001, dtype=torch.float64)
    circle = torch.stack([torch.cos(math.pi * t), torch.sin(math.pi * t)], 1)
    speeding = torch.stack([t**2, torch.zeros_like(t)], 1)  # speed 2 t: an action of 4/3 for a distance of 1
    cost = ndm.path_cost(torch.stack([circle, speeding], 1))
    torch.testing.assert_close(cost.action, torch.tensor([math.pi**2, 4 / 3], dtype=torch.float64), rtol=1e-6, atol=0)
    torch.testing.assert_close(cost.transport, torch.tensor([4.0, 1.0], dtype=torch.float64))
    torch.testing.assert_close(
        cost.straightness, torch.tensor([math.pi**2 - 4, 1 / 3], dtype=torch.float64), rtol=1e-5, atol=0
    )


def test_a_path_has_two_ends() -> None:
    with pytest.raises(ValueError, match="at least two"):
        ndm.path_cost(torch.zeros(1, 5, 2))
