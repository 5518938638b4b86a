"""The audit as a whole: what it measures by default, what it leaves out, and that it changes nothing."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

import ndm
from ndm.data import Gaussian, Tensors
from ndm.evaluation import Audit, AuditOptions, audit
from ndm.evaluation.auditing import auditor
from ndm.networks import ResidualMLP
from tests.evaluation.models import HIGH, LOW, Exact

SMALL = {"steps": (4,), "examples": 40, "times": 4, "ode": 3, "grid": False}


@pytest.fixture(scope="module")
def found() -> Audit:
    model = ndm.NDM(ndm.LinearSchedule(LOW, HIGH), ndm.Identity(), Exact())
    return audit(model, Gaussian(variance=1.7, train=200, validation=10, test=100), **SMALL | {"grid": True})


def test_every_part_is_measured(found: Audit) -> None:
    assert found.unit == "nats"
    assert [(row.steps, row.variance) for row in found.bounds] == [(4, "posterior"), (4, "calibrated"), (None, None)]
    assert [(row.low, row.high) for row in found.levels][::9] == [(LOW, -6.6), (pytest.approx(4.6), HIGH)]
    assert sum(row.share for row in found.levels) == pytest.approx(1)
    assert sum(row.diffusion.value for row in found.levels) == pytest.approx(found.ends[0].diffusion.value)
    assert len(found.ends) == 7
    assert [row.examples for row in found.ode] == [3]
    assert found.integral is not None
    assert found.left_out == {}
    assert found.warnings == []
    assert found.quote[0].startswith("Quote: -log p at most")
    assert found.about["examples"] == 40
    assert found.about["split_examples"] == 100


def test_the_bounds_agree_with_each_other(found: Audit) -> None:
    continuous = found.find(None)
    assert continuous is not None
    difference = continuous.total.value - found.ends[0].total.value
    assert abs(difference) < 4 * (continuous.total.stderr + found.ends[0].total.stderr)


def test_the_model_is_not_changed_and_the_result_is_repeated(exact: ndm.NDM, gaussian: Gaussian) -> None:
    exact.calibrate(gaussian.train[:50], 4)
    exact.train()
    before, schedule = copy.deepcopy(exact.state_dict()), exact.schedule
    first, second = (audit(exact, gaussian, **SMALL) for _ in range(2))
    assert exact.training
    assert exact.schedule is schedule
    assert exact.calibrated(4)
    assert list(before) == list(exact.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(before.values(), exact.state_dict().values(), strict=True))
    assert first.to_dict() == second.to_dict()
    assert audit(exact, gaussian, **SMALL, seed=1).to_dict() != first.to_dict()


def test_no_network_is_evaluated_outside_of_the_schedule(gaussian: Gaussian) -> None:
    seen: list[Tensor] = []

    class Watched(Exact):
        def forward(self, z: Tensor, level: ndm.NoiseLevel) -> Tensor:
            seen.append(torch.stack([level.gamma.min(), level.gamma.max()]))
            return super().forward(z, level)

    model = ndm.NDM(ndm.LinearSchedule(LOW, HIGH), ndm.Identity(), Watched())
    audit(model, gaussian, **SMALL)
    every = torch.stack(seen)
    assert every.min() >= LOW - 1e-5
    assert every.max() <= HIGH + 1e-5
    seen.clear()
    audit(model, gaussian, **SMALL, lowest_gamma=LOW - 1)
    assert LOW - 1 - 1e-5 <= torch.stack(seen).min() < LOW - 0.5


def test_pixels_are_in_bits_and_have_dequantisations(pixels: ndm.NDM, images: Tensors) -> None:
    found = audit(pixels, images, **SMALL | {"samples": 1, "probes": 1})
    assert found.unit == "bits/dim"
    assert [row.dequantization for row in found.ode] == ["uniform", "variational", "importance"]
    continuous = found.find(None)
    assert continuous is not None
    direct = torch.cat([pixels.bound(images.test).bits_per_dim for _ in range(20)])
    assert abs(continuous.total.value - direct.mean().item()) < 5 * continuous.total.stderr


def test_a_model_without_an_ode_leaves_it_out_and_says_so(gaussian: Gaussian) -> None:
    direct = ndm.DirectDenoiser(ResidualMLP(2, hidden=4))
    found = audit(ndm.NDM(ndm.LinearSchedule(), ndm.Identity(), direct), gaussian, **SMALL | {"grid": True})
    assert found.ode == []
    assert found.integral is None
    assert found.left_out["ODE"] == "the denoiser is direct and has no head for F, so the model has no ODE"
    direct = ndm.DirectDenoiser(ResidualMLP(2, hidden=4, heads=2), ode=True)
    noise = ndm.LearnedNoise(ResidualMLP(2, hidden=4, heads=3, level=False))
    noisy = ndm.NDM(ndm.LinearSchedule(), ndm.Identity(), direct, noise=noise)
    assert "direct and has a noise of x" in audit(noisy, gaussian, **SMALL).left_out["ODE"]


def test_parts_that_are_not_asked_for_or_not_possible(exact: ndm.NDM, gaussian: Gaussian) -> None:
    found = audit(exact, Tensors(test=gaussian.test[:20]), **SMALL | {"ode": 0})
    assert set(found.left_out) == {"ODE", "calibrated variance"}
    noisy = ndm.NDM(ndm.LinearSchedule(), ndm.Identity(), Exact(), noise=ndm.DimensionNoise((2,)))
    found = audit(noisy, gaussian, **SMALL)
    assert set(found.left_out) == {"schedule's end"}
    assert (len(found.levels), found.ends) == (10, [])

    class Own(ndm.LinearSchedule):
        def forward(self, t: Tensor) -> ndm.NoiseLevel:
            return super().forward(t)

    found = audit(ndm.NDM(Own(), ndm.Identity(), Exact()), gaussian, **SMALL | {"grid": True})
    assert set(found.left_out) == {"part by noise level", "ODE"}
    assert found.integral is None
    assert found.levels == found.ends == []


def test_a_schedule_of_levels_has_the_bound_of_its_steps() -> None:
    model = ndm.NDM(ndm.TableSchedule([0.99, 0.9, 0.5, 0.1, 0.02]), ndm.Identity(), Exact())
    found = audit(model, Gaussian(train=200, test=100), **SMALL | {"steps": None, "ode": 0})
    assert sorted({row.steps for row in found.bounds if row.steps}) == [4, 10, 50, 1000]
    assert "for T = 4 with the posterior variance" in found.quote[0]


def test_a_large_network_has_fewer_examples(gaussian: Gaussian, monkeypatch: pytest.MonkeyPatch) -> None:
    model = ndm.NDM(ndm.LinearSchedule(), ndm.Identity(), ndm.Denoiser(ResidualMLP(2, hidden=8)))
    options = {"steps": (2,), "grid": False}
    each = auditor.cost(model, (2,)) * auditor._evaluations((2,), 100)
    sizes = {}
    for affordable in (0.0, 20.0, 1e9):
        monkeypatch.setitem(auditor.BUDGET, "cpu", affordable * each)
        work = auditor._Work.of(model, gaussian, AuditOptions(**options))
        sizes[affordable] = (len(work.part.examples), work.times, work.ode)
    assert sizes[0.0] == (8, 10, 0)
    assert sizes[20.0][0] == 20
    assert sizes[1e9] == (1000, 100, 16)
    monkeypatch.setitem(auditor.BUDGET, "cpu", 0.0)
    assert "large" in audit(model, gaussian, **options).left_out["ODE"]


def test_classes_need_labels() -> None:
    model = ndm.NDM(ndm.LinearSchedule(), ndm.Identity(), ndm.Denoiser(ResidualMLP(2, hidden=4, classes=3)))
    x, y = torch.randn(30, 2), torch.arange(30) % 3
    with pytest.raises(ValueError, match="no labels"):
        audit(model, Tensors(train=x, test=x), **SMALL)
    data = Tensors(train=x, test=x, labels={"train": y, "test": y})
    assert len(audit(model, data, **SMALL).ode) == 1


def test_unknown_options_are_refused(exact: ndm.NDM, gaussian: Gaussian) -> None:
    with pytest.raises(TypeError, match="nonsense"):
        audit(exact, gaussian, nonsense=3)
