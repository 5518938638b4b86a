"""The solver of the likelihood: its quadrature, its steps, and examples that it cannot solve."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import ndm
from ndm.inference.divergence import integral
from ndm.inference.flow import _first_steps
from ndm.inference.likelihood import log_likelihood
from ndm.method.schedules import NoiseLevel
from tests.inference.densities import LEVELS, LOOSE, Exact, seeded, small, whole

# ---- the solver


@pytest.mark.parametrize(("n", "degree"), [(n, d) for n, most in ((12, 1), (24, 3), (48, 5)) for d in range(most + 1)])
def test_the_quadrature_is_exact_for_polynomials_of_the_degree_of_its_differences(n, degree):
    t = torch.linspace(0, 1, n + 1, dtype=torch.float64)[:, None, None]
    values = torch.cat([t**degree, 3 - 2 * t**degree], dim=2).expand(n + 1, 4, 2)
    truth = torch.tensor([[1 / (degree + 1)], [3 - 2 / (degree + 1)]], dtype=torch.float64).expand(2, 4)
    torch.testing.assert_close(integral(values), truth, rtol=0, atol=1e-12)


def test_the_quadrature_is_of_seventh_order():
    def error(n: int) -> float:
        t = torch.linspace(0, 1, n + 1, dtype=torch.float64)
        return abs(integral(torch.exp(-3 * t)[:, None, None]).item() - (1 - math.exp(-3)) / 3)

    assert error(48) / error(96) == pytest.approx(2**7, rel=0.2)


@pytest.mark.parametrize(
    ("transform", "tolerance"),
    [("identity", 1.0), ("identity", 1e-4), ("neural", 1e-2), ("separable", 1.0), ("separable", 1e-4)],
)
@pytest.mark.slow
def test_the_density_is_what_another_solver_finds(transform, tolerance):
    """Within about what is said of the error, and that within what was asked for."""
    model, x = small(transform=transform), 2 * torch.randn(4, 2, dtype=torch.float64, generator=seeded(2))
    found = log_likelihood(model, x, tolerance=tolerance)
    error = (found.log_prob - torch.from_numpy(whole(model, x))).abs()
    assert (error < 2 * found.solver_error + 1e-6).all()
    assert (found.solver_error <= tolerance).all()


def test_steps_are_spent_on_the_examples_that_need_them(monkeypatch):
    """The others' answers are those of the first attempt."""
    monkeypatch.setattr("ndm.inference.flow._first_steps", lambda tolerance: 12)
    model, x = small(transform="separable"), 3 * torch.randn(8, 2, dtype=torch.float64, generator=seeded(0))
    first = log_likelihood(model, x, tolerance=10.0)
    errors = first.solver_error.sort().values
    tolerance = (errors[4] * errors[5]).sqrt().item()
    batches = []
    model.denoiser.net.register_forward_pre_hook(lambda _, inputs: batches.append(len(inputs[0])))
    found = log_likelihood(model, x, tolerance=tolerance)
    assert (batches[0], batches[first.nfe]) == (8, 3)
    assert found.nfe == len(batches)
    assert (found.solver_error <= tolerance).all()
    enough = first.solver_error <= tolerance
    assert torch.equal(found.log_prob[enough], first.log_prob[enough])
    assert (found.log_prob[~enough] != first.log_prob[~enough]).all()


def test_the_first_attempt_suits_the_tolerance():
    model, x = small(), torch.randn(4, 2, dtype=torch.float64, generator=seeded(0))
    spent = [log_likelihood(model, x, tolerance=tolerance).nfe for tolerance in (10.0, 2e-2, 2e-5)]
    assert spent[0] < spent[1] < spent[2]
    assert _first_steps(1e-2) == 16
    assert _first_steps(1e-2 / 2**4) == 32
    assert (_first_steps(1e-300), _first_steps(1e9)) == (96, 8)


def test_single_precision_is_asked_for_no_more_than_it_can_give():
    model, x = small().float(), torch.randn(4, 2)
    found = log_likelihood(model, x, tolerance=1e-12)
    assert found.nfe < 3000  # some thousand steps more would only add rounding errors
    assert (found.solver_error < 1e-4).all()


@pytest.mark.parametrize("tolerance", [0.0, -1.0, math.nan])
def test_a_tolerance_that_is_none_is_refused(tolerance):
    with pytest.raises(ValueError, match="tolerance must be positive"):
        log_likelihood(small(), torch.randn(1, 2).double(), tolerance=tolerance)


# ---- what cannot be solved


class Breaks(Exact):
    """Not finite for states beyond 100; keeps the sizes of its batches."""

    def __init__(self, mean: Tensor, covariance: Tensor) -> None:
        super().__init__(mean, covariance)
        self.batches: list[int] = []

    def forward(self, z: Tensor, level: NoiseLevel, labels: Tensor | None = None) -> Tensor:
        self.batches.append(len(z))
        return torch.where(z.abs().amax(1, keepdim=True) > 100, math.nan, super().forward(z, level))


def test_a_row_that_cannot_be_solved_is_found_at_once_and_its_neighbours_are_left_alone():
    exact = Breaks(torch.zeros(2).double(), torch.eye(2).double())
    model = ndm.NDM(ndm.LinearSchedule(-4, 10), ndm.Identity(), exact)
    x = torch.randn(6, 2, dtype=torch.float64, generator=seeded(0))
    clean = log_likelihood(model, x)
    x[2] = 1e6
    exact.batches.clear()
    with pytest.warns(RuntimeWarning, match="nan or -inf for 1 of 6 examples") as caught:
        found = log_likelihood(model, x)
    assert len(caught) == 1
    others = torch.arange(6) != 2
    assert torch.equal(found.log_prob[others], clean.log_prob[others])
    assert torch.equal(found.solver_error[others], clean.solver_error[others])
    assert found.solved.tolist() == others.tolist()
    assert found.log_prob[2].isnan()
    assert found.stderr[2].isnan()
    assert found.solver_error[2].isinf()
    again = exact.batches[clean.nfe :]
    assert set(again) == {1}  # the row by itself, and
    assert len(again) <= 8 * (32 + 64) + 2  # not in 512 steps


def test_a_density_that_the_precision_cannot_hold_is_minus_infinity():
    model = ndm.NDM(ndm.LinearSchedule(-4, 10), ndm.Identity(), Exact(torch.zeros(1), torch.eye(1)))
    x = torch.tensor([[0.3], [1e25]])
    with pytest.warns(RuntimeWarning, match="nan or -inf for 1 of 2 examples"):
        found = log_likelihood(model, x)
    assert found.log_prob.isneginf().tolist() == [False, True]
    assert found.solved.tolist() == [True, False]


def test_a_tolerance_that_is_missed_is_said_and_counted(monkeypatch):
    monkeypatch.setattr("ndm.inference.flow.MOST_STEPS", 12)
    model, x = small(transform="separable"), torch.randn(8, 2, dtype=torch.float64, generator=seeded(0))
    monkeypatch.setattr("ndm.inference.flow._first_steps", lambda tolerance: 12)
    errors = log_likelihood(model, x, tolerance=10.0).solver_error.sort().values
    tolerance = (errors[4] * errors[5]).sqrt().item()
    with pytest.warns(RuntimeWarning, match=f"tolerance of {tolerance:g} nats for 3 of 8 examples") as caught:
        found = log_likelihood(model, x, tolerance=tolerance)
    assert len(caught) == 1
    assert torch.equal(found.solved, found.solver_error <= tolerance)
    assert found.log_prob.isfinite().all()


def test_every_sample_of_a_row_must_be_solved():
    class Fussy(Exact):
        def forward(self, z: Tensor, level: NoiseLevel, labels: Tensor | None = None) -> Tensor:
            return torch.where(z > 2.0, math.nan, super().forward(z, level))

    exact = Fussy(torch.zeros(1).double(), torch.eye(1).double())
    model = ndm.NDM(ndm.LinearSchedule(0, 10), ndm.Identity(), exact, ndm.DiscretizedDecoder(levels=3))
    with pytest.warns(RuntimeWarning, match="of 3 examples"):
        found = log_likelihood(model, LEVELS[:, None], samples=200, generator=seeded(0), **LOOSE)
    assert not found.solved.all()
    assert torch.equal(found.log_prob.isnan(), ~found.solved)
