from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

import ndm
from ndm.networks import ResidualMLP
from ndm.training import NDMModule, TrainerOptions, TrainingOptions
from ndm.training.batches import Batch


def whole_batch(x: torch.Tensor) -> Batch:
    return Batch(x, None, slice(0, len(x)), len(x))


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


def test_f_and_the_end_points_have_learning_rates_of_their_own() -> None:
    schedule = ndm.LearnedSchedule(learn_endpoints=True)
    transform = ndm.Separable(ResidualMLP(2, hidden=8, depth=1, heads=4, level=False))
    model = ndm.NDM(schedule, transform, ndm.Denoiser(ResidualMLP(2, hidden=8, depth=1)))
    options = TrainingOptions(learning_rate=0.02, transform_rate=0.5, endpoint_rate=0.1, warmup=0, rate="constant")
    one = NDMModule(model, options, TrainerOptions(max_steps=10))
    optimizer = one.configure_optimizers()["optimizer"]
    assert optimizer.param_groups[0]["lr"] == 0.02
    before = [p.detach().clone() for p in one.parameters()]
    for p in one.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()  # Adam's first step is the learning rate
    in_f = {id(p) for p in transform.parameters()}
    for p, old in zip(one.parameters(), before, strict=True):
        rate = 0.01 if id(p) in in_f else 0.002 if p is schedule.end_shifts else 0.02
        torch.testing.assert_close(old - p, torch.full_like(p, rate), rtol=1e-3, atol=1e-6)


def test_the_random_numbers_belong_to_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    one = module()
    monkeypatch.setattr(NDMModule, "trainer", SimpleNamespace(world_size=1))
    monkeypatch.setattr(NDMModule, "log", lambda *args, **options: None)
    monkeypatch.setattr(NDMModule, "optimizers", lambda self: SimpleNamespace(param_groups=[{"lr": 0.0}]))
    x = torch.randn(16, 2)

    def loss(step: int) -> float:
        monkeypatch.setattr(NDMModule, "global_step", step)
        torch.rand(step)  # whatever the generator's state was
        return one.training_step(whole_batch(x), 0).item()

    assert loss(3) == loss(3)
    assert loss(3) != loss(4)


def test_the_noise_of_a_batch_is_the_same_however_it_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    one = module()
    monkeypatch.setattr(NDMModule, "trainer", SimpleNamespace(world_size=1))
    monkeypatch.setattr(NDMModule, "log", lambda *args, **options: None)
    monkeypatch.setattr(NDMModule, "global_step", 3)
    x = torch.randn(16, 2)
    whole = one.training_step(whole_batch(x), 0)
    parts = [one.training_step(Batch(x[rows], None, rows, 16), 0) for rows in (slice(0, 16, 2), slice(1, 16, 2))]
    assert (sum(parts) / 2).item() == pytest.approx(whole.item(), rel=1e-6)


def test_some_labels_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    net = ResidualMLP(2, hidden=8, depth=1, classes=5)
    model = ndm.NDM(ndm.LinearSchedule(), ndm.Identity(), ndm.Denoiser(net))
    one = NDMModule(model, TrainingOptions(labels=True, label_dropout=0.25), TrainerOptions())
    seen: list[torch.Tensor] = []
    bound = model.bound
    monkeypatch.setattr(NDMModule, "trainer", SimpleNamespace(world_size=1))
    monkeypatch.setattr(NDMModule, "log", lambda *args, **options: None)
    monkeypatch.setattr(NDMModule, "global_step", 0)
    monkeypatch.setattr(
        ndm.NDM, "bound", lambda self, *a, labels, **o: seen.append(labels) or bound(*a, labels=labels, **o)
    )
    one.training_step(Batch(torch.randn(4000, 2), torch.arange(4000) % 5, slice(0, 4000), 4000), 0)
    none = seen[0] == 5
    assert none.double().mean().item() == pytest.approx(0.25, abs=0.03)
    assert torch.equal(seen[0][~none], (torch.arange(4000) % 5)[~none])


def test_the_auxiliary_loss_is_trained_and_not_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    net = ResidualMLP(2, hidden=8, depth=1, heads=2, zero_init=False)
    model = ndm.NDM(ndm.LinearSchedule(-5.0, 5.0), ndm.Identity(), ndm.DirectDenoiser(net, ode=True))
    logged: dict[str, Any] = {}
    monkeypatch.setattr(NDMModule, "trainer", SimpleNamespace(world_size=1))
    monkeypatch.setattr(NDMModule, "log", lambda self, name, value, **options: logged.update({name: value}))
    monkeypatch.setattr(NDMModule, "optimizers", lambda self: SimpleNamespace(param_groups=[{"lr": 0.0}]))
    monkeypatch.setattr(NDMModule, "global_step", 0)
    loss = NDMModule(model, trainer=TrainerOptions(log_every_n_steps=1)).training_step(
        whole_batch(torch.randn(16, 2)), 0
    )
    assert logged["train/auxiliary"] > 0
    assert loss.item() == pytest.approx(
        (logged["train/total"] + logged["train/auxiliary"]).item() / (2 * 0.693147), rel=1e-5
    )
    loss.backward()
    last_head = net.output.weight.grad[2:]
    assert (last_head != 0).any()


def test_the_curvature_is_weighed_and_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    logged: dict[str, Any] = {}
    monkeypatch.setattr(NDMModule, "trainer", SimpleNamespace(world_size=1))
    monkeypatch.setattr(NDMModule, "log", lambda self, name, value, **options: logged.update({name: value}))
    monkeypatch.setattr(NDMModule, "optimizers", lambda self: SimpleNamespace(param_groups=[{"lr": 0.0}]))
    monkeypatch.setattr(NDMModule, "global_step", 0)
    net = ResidualMLP(2, hidden=8, depth=1, zero_init=False)
    model = ndm.NDM(ndm.LinearSchedule(-5.0, 5.0), ndm.Identity(), ndm.Denoiser(net))
    batch, losses = whole_batch(torch.randn(16, 2)), {}
    for weight in (0.0, 0.5):
        logged.clear()
        one = NDMModule(model, TrainingOptions(curvature=weight), TrainerOptions(log_every_n_steps=1))
        losses[weight] = one.training_step(batch, 0)
        assert ("train/curvature" in logged) is (weight > 0)
    bend = logged["train/curvature"].item()
    assert bend > 0
    assert (losses[0.5] - losses[0.0]).item() == pytest.approx(0.5 * bend / (2 * 0.693147), rel=1e-4)
    # What is reported as the bound is the bound.
    assert logged["train/total"].item() == pytest.approx(losses[0.0].item() * 2 * 0.693147, rel=1e-5)
    losses[0.5].backward()
    assert all(p.grad is not None for p in net.parameters())


def test_the_curvature_needs_an_ode_and_second_derivatives() -> None:
    nets = [ResidualMLP(2, hidden=8, depth=1, heads=heads) for heads in (1, 2)]
    direct, whole = (
        ndm.NDM(ndm.LinearSchedule(), ndm.Identity(), ndm.DirectDenoiser(net, ode=ode))
        for net, ode in zip(nets, (False, True), strict=True)
    )
    with pytest.raises(ValueError, match="ode=True"):
        NDMModule(direct, TrainingOptions(curvature=0.1))
    NDMModule(direct, TrainingOptions())
    NDMModule(whole, TrainingOptions(curvature=0.1))
    with pytest.raises(ValueError, match=r"trainer\.compile"):
        NDMModule(whole, TrainingOptions(curvature=0.1), TrainerOptions(compile=True))


@pytest.mark.parametrize(("steps", "expected"), [(None, {"denoiser"}), (10, {"denoiser", "transform"})])
def test_networks_are_compiled_while_training_where_reverse_mode_is_enough(
    monkeypatch: pytest.MonkeyPatch, steps: int | None, expected: set[str]
) -> None:
    called: set[str] = set()

    def compiled(forward: Any) -> Any:
        name = "denoiser" if forward.__self__ is model.denoiser.net else "transform"
        return lambda *args, **options: called.add(name) or forward(*args, **options)

    monkeypatch.setattr(torch, "compile", compiled)
    nets = [ResidualMLP(2, hidden=8, depth=1) for _ in range(2)]
    model = ndm.NDM(ndm.LinearSchedule(-5.0, 5.0), ndm.Neural(nets[0]), ndm.Denoiser(nets[1]))
    one = NDMModule(model, TrainingOptions(steps=steps), TrainerOptions(compile=True))
    before = list(model.state_dict())

    def bound_in_training() -> None:
        with one.prepared():
            assert list(model.state_dict()) == before
            model.bound(torch.randn(4, 2), steps)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bound_in_training()
    assert called == expected
    called.clear()
    model.bound(torch.randn(4, 2), steps)
    assert not called
    assert not any("forward" in vars(module) for module in model.modules())


def test_nothing_is_compiled_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", None)
    with module().prepared():
        pass


def test_the_groups_do_not_mix_the_denoisers_network_with_the_rest() -> None:
    one = module()
    network = {id(p) for p in one.model.denoiser.net.parameters()}
    groups = one.configure_optimizers()["optimizer"].param_groups
    assert all(len({id(p) in network for p in group["params"]}) == 1 for group in groups)
