"""One estimate of the data, told by networks of every parameterisation, path and time, is one model."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import ndm
from ndm.method.mixture import MixtureBase
from ndm.method.readings import PATHS, READINGS
from ndm.method.schedules import per_example

SCHEDULE = ndm.LinearSchedule(-9.0, 6.0)


def x_hat(z: Tensor, gamma: Tensor) -> Tensor:
    """Some estimate of x from z on the variance-preserving path, so that it can be told on any other one."""
    return torch.tanh(1.3 * z) * per_example(torch.sigmoid(-gamma / 2), z) + 0.1


def levels(path: str, gamma: Tensor) -> tuple[Tensor, Tensor]:
    ratio = torch.exp(gamma / 2)  # sigma / alpha
    alpha = {"vp": (1 + ratio**2) ** -0.5, "own": (1 + ratio**2) ** -0.5, "ve": 1 + 0 * ratio, "ot": 1 / (1 + ratio)}
    return alpha[path], ratio * alpha[path]


def network(parameterization: str, path: str):
    """The network of a denoiser with time="gamma" that gives x_hat, by the definition of the parameterisation."""

    def net(z: Tensor, gamma: Tensor) -> Tensor:
        alpha, sigma = (per_example(a, z) for a in levels(path, gamma))
        x = x_hat(z * per_example(levels("vp", gamma)[0], z) / alpha, gamma)
        noise = (z - alpha * x) / sigma
        return {
            "v": alpha * noise - sigma * x, "eps": noise, "x": x, "score": -noise / sigma, "velocity": noise - x
        }[parameterization]  # fmt: skip

    return net


def bound(model: ndm.NDM, x: Tensor, steps: int | None = None) -> Tensor:
    return model.bound(x, steps, generator=torch.Generator().manual_seed(1)).total


def model(*arguments, schedule: ndm.Schedule = SCHEDULE, **options) -> ndm.NDM:
    return ndm.NDM(schedule, ndm.Identity(), ndm.Denoiser(*arguments, **options))


class Bare(nn.Module):
    def forward(self, z: Tensor, level) -> Tensor:
        return x_hat(z, level.gamma)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("parameterization", READINGS)
@pytest.mark.parametrize("steps", [None, 7])
def test_every_reading_of_an_estimate_has_the_same_bound(parameterization: str, path: str, steps) -> None:
    x = torch.randn(6, 3, dtype=torch.float64)
    expected = bound(ndm.NDM(SCHEDULE, ndm.Identity(), Bare()), x, steps)
    read = model(network(parameterization, path), parameterization, time="gamma", path=path)
    torch.testing.assert_close(bound(read, x, steps), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("parameterization", "path"), [("score", "ve"), ("velocity", "ot"), ("x", "ve")])
def test_the_likelihood_and_samples_are_those_of_the_estimate(parameterization: str, path: str) -> None:
    x = torch.randn(4, 2, dtype=torch.float64)
    plain = ndm.NDM(SCHEDULE, ndm.Identity(), Bare())
    read = model(network(parameterization, path), parameterization, time="gamma", path=path)
    torch.testing.assert_close(read.log_prob(x, tolerance=1.0), plain.log_prob(x, tolerance=1.0), rtol=1e-6, atol=1e-6)
    drawn = [
        ndm.sample(m, 3, (2,), steps=5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
        for m in (read, plain)
    ]
    torch.testing.assert_close(*drawn, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("path", ["vp", *(pytest.param(name, marks=pytest.mark.slow) for name in ("ve", "ot"))])
def test_a_network_can_be_used_under_a_schedule_on_another_path(path: str) -> None:
    x = torch.randn(4, 2, dtype=torch.float64)
    schedule = ndm.OTSchedule(-9.0, 6.0)
    own = model(network("velocity", "ot"), "velocity", time="gamma", schedule=schedule)  # z as it is
    read = model(network("eps", path), "eps", time="gamma", path=path, schedule=schedule)
    torch.testing.assert_close(read.log_prob(x, tolerance=1.0), own.log_prob(x, tolerance=1.0), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("time", "path", "expected"),
    [
        ("gamma", "own", lambda g: g),
        ("u", "own", lambda g: (g + 9) / 15),
        ("sigma", "own", lambda g: 1 / (1 + math.exp(-g)) ** 0.5),
        ("sigma", "ve", lambda g: math.exp(g / 2)),
        ("sigma", "ot", lambda g: 1 / (1 + math.exp(-g / 2))),
        ("t", "own", lambda g: (g + 9) / 15),
    ],
)
def test_the_network_receives_the_number_of_its_time(time: str, path: str, expected) -> None:
    seen = []

    def net(z: Tensor, number: Tensor) -> Tensor:
        seen.append((z, number))
        return z

    built = model(net, "x", time=time, path=path)
    gamma, z = torch.tensor([-9.0, -2.0, 6.0], dtype=torch.float64), torch.randn(3, 2, dtype=torch.float64)
    built.denoiser(z, SCHEDULE.level_at(gamma))
    assert seen[0][1].tolist() == pytest.approx([expected(g) for g in gamma.tolist()], rel=1e-12)
    alpha = levels(path, gamma)[0] / levels("own", gamma)[0]
    torch.testing.assert_close(seen[0][0], alpha[:, None] * z)


@pytest.mark.parametrize("clip", [0.4, 5.0])
def test_an_estimate_beyond_the_clip_is_clipped_and_so_is_its_residual(clip: float) -> None:
    level = SCHEDULE(torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64))
    x, noise, displacement, eps = torch.randn(4, 3, 8, dtype=torch.float64)
    z = per_example(level.alpha, x) * (x + displacement) + per_example(level.sigma, x) * noise
    estimate = ndm.Denoiser(lambda z, u: eps, "eps", clip=clip).estimate(z, level)
    free = ndm.Denoiser(lambda z, u: eps, "eps")(z, level)
    torch.testing.assert_close(estimate.mean, free.clamp(-clip, clip))
    torch.testing.assert_close(estimate.residual(x, displacement, noise), x - estimate.mean)
    assert (free.abs() > clip).any()


# ---- the time of a schedule


def test_time_t_is_that_of_the_clock_whatever_the_models_schedule_is() -> None:
    clock, seen = ndm.CosineSchedule(), []
    built = model(lambda z, t: seen.append(t) or z, "x", time="t", clock=clock)
    gamma = torch.tensor([-6.0, 1.0, 5.0], dtype=torch.float64)
    built.denoiser(torch.randn(3, 2, dtype=torch.float64), SCHEDULE.level_at(gamma))
    torch.testing.assert_close(clock(seen[0]).gamma, gamma, rtol=1e-9, atol=1e-9)
    built.schedule = ndm.LinearSchedule(-5.0, 5.0)  # allowed: the network's time is the clock's


def test_a_network_keeps_the_schedule_of_its_time() -> None:
    built = model(lambda z, t: z, "x", time="t")
    with pytest.raises(ValueError, match="the t of its first model's schedule"):
        built.schedule = ndm.LinearSchedule(-5.0, 5.0)
    assert built.schedule is SCHEDULE
    with pytest.raises(ValueError, match="needs a schedule"):
        ndm.Denoiser(lambda z, t: z, time="t")(torch.randn(1, 2), SCHEDULE(torch.tensor([0.5])))
    with pytest.raises(ValueError, match='time="index" is for a TableSchedule, not for a LinearSchedule'):
        model(lambda z, t: z, time="index")


def test_the_gradient_of_a_learned_schedules_time_is_that_of_the_time_itself() -> None:
    schedule = ndm.LearnedSchedule(-9.0, 6.0)
    built = model(lambda z, t: z * t[:, None], "x", time="t", schedule=schedule)
    t = torch.tensor([0.2, 0.7], requires_grad=True)
    found = built.denoiser._number(schedule(t))
    torch.testing.assert_close(found, t)
    found.sum().backward()
    torch.testing.assert_close(t.grad, torch.ones(2), rtol=1e-4, atol=1e-4)
    assert schedule.logits.grad is None or schedule.logits.grad.abs().max() < 1e-4


def test_a_model_with_a_schedules_time_is_saved_and_copied(tmp_path) -> None:
    import copy

    from ndm.networks import ResidualMLP

    x = torch.randn(5, 2)
    for clock in (None, ndm.CosineSchedule()):
        net = ResidualMLP(2, hidden=8, depth=1, zero_init=False)
        built = model(net, "velocity", time="t", path="ot", clip=3.0, clock=clock)
        built.save_pretrained(tmp_path / "model")
        loaded = ndm.NDM.from_pretrained(tmp_path / "model")
        for other in (loaded, copy.deepcopy(built)):
            torch.testing.assert_close(bound(other, x), bound(built, x))


# ---- refusals


def test_a_model_of_a_function_cannot_be_saved(tmp_path) -> None:
    with pytest.raises(TypeError, match=r"Denoiser\(net=...\) is a function"):
        model(lambda z, u: z).save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"time": "sgma"}, "There is no time 'sgma' of a denoiser"),
        ({"path": "edm"}, "There is no path 'edm' of a denoiser"),
        ({"clip": 0.0}, "clip must be a positive number"),
        ({"base": MixtureBase(2), "parameterization": "score"}, "A base is for the parameterizations v, eps and x"),
        ({"base": MixtureBase(2), "path": "ve"}, "A base is for the parameterizations v, eps and x"),
        ({"net": 3}, "must be a module or a function"),
    ],
)
def test_bad_arguments_are_refused(options, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ndm.Denoiser(**({"net": nn.Identity()} | options))
