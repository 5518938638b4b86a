from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

import ndm
from ndm.networks import ResidualMLP
from ndm.training import NDMModule, TrainerOptions, TrainingOptions


def module(timer: Any = None, max_time: float | None = None, **options: Any) -> NDMModule:
    model = ndm.NDM(ndm.LearnedSchedule(), ndm.Identity(), ndm.Denoiser(ResidualMLP(2, hidden=8, depth=1)))
    return NDMModule(model, TrainingOptions(**options), TrainerOptions(max_steps=100, max_time=max_time), timer=timer)


def test_the_rate_rises_and_falls_to_zero() -> None:
    rate = module(warmup=10).rate
    assert rate(0) == pytest.approx(0.1)
    assert rate(50) == pytest.approx(0.5)
    assert rate(100) == pytest.approx(0.0)
    rates = [rate(step) for step in range(12, 100)]
    assert rates == sorted(rates, reverse=True)


def test_a_constant_rate_stays() -> None:
    rate = module(warmup=10, rate="constant").rate
    assert [rate(step) for step in (0, 4, 9, 50, 100)] == pytest.approx([0.1, 0.5, 1, 1, 1])


def test_the_rate_starts_at_once_without_warmup() -> None:
    assert module(warmup=0, rate="constant").rate(0) == 1


def test_the_clock_can_be_ahead_of_the_steps() -> None:
    rate = module(SimpleNamespace(time_elapsed=lambda: 6.0), max_time=8.0, warmup=0).rate
    assert rate(10) == pytest.approx(0.146447, abs=1e-5)  # three quarters of the time
    assert rate(90) == pytest.approx(0.024472, abs=1e-5)  # but nine tenths of the steps


def test_only_matrices_decay() -> None:
    optimizer = module(weight_decay=0.3).configure_optimizers()["optimizer"]
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    parameters = dict(module().named_parameters())
    assert len(decays) == len(parameters)
    for group in optimizer.param_groups:
        assert all((p.ndim >= 2) == (group["weight_decay"] == 0.3) for p in group["params"])


def test_the_random_numbers_belong_to_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    one = module()
    monkeypatch.setattr(NDMModule, "log", lambda *args, **options: None)
    monkeypatch.setattr(NDMModule, "optimizers", lambda self: SimpleNamespace(param_groups=[{"lr": 0.0}]))
    x = torch.randn(16, 2)

    def loss(step: int, rank: int = 0) -> float:
        monkeypatch.setattr(NDMModule, "global_step", step)
        monkeypatch.setattr(NDMModule, "global_rank", rank)
        torch.rand(step + rank)  # whatever the generator's state was
        return one.training_step([x], 0).item()

    assert loss(3) == loss(3)
    assert loss(3) != loss(4)
    assert loss(3) != loss(3, rank=1)


def test_the_auxiliary_loss_is_trained_and_not_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    net = ResidualMLP(2, hidden=8, depth=1, heads=2, zero_init=False)
    model = ndm.NDM(ndm.LinearSchedule(-5.0, 5.0), ndm.Identity(), ndm.DirectDenoiser(net, ode=True))
    logged: dict[str, Any] = {}
    monkeypatch.setattr(NDMModule, "log", lambda self, name, value, **options: logged.update({name: value}))
    monkeypatch.setattr(NDMModule, "optimizers", lambda self: SimpleNamespace(param_groups=[{"lr": 0.0}]))
    monkeypatch.setattr(NDMModule, "global_step", 0)
    monkeypatch.setattr(NDMModule, "global_rank", 0)
    loss = NDMModule(model, trainer=TrainerOptions(log_every_n_steps=1)).training_step([torch.randn(16, 2)], 0)
    assert logged["train/auxiliary"] > 0
    assert loss.item() == pytest.approx(
        (logged["train/total"] + logged["train/auxiliary"]).item() / (2 * 0.693147), rel=1e-5
    )
    loss.backward()
    last_head = net.output.weight.grad[2:]
    assert (last_head != 0).any()
