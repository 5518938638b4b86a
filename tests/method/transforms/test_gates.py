"""What each gate promises near the data."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import ndm
from ndm.method.transforms.gates import GATES, gate_named


class Fixed(nn.Module):
    """Blind to the noise level, so that only the gate moves F."""

    def forward(self, x: Tensor, u: Tensor | None = None) -> Tensor:
        return torch.tanh(x) + 2


def displacement(gate: str, gamma: float) -> Tensor:
    x = torch.linspace(-1, 1, 7, dtype=torch.float64)[:, None]
    transform = ndm.Neural(Fixed(), gate=gate)
    return transform(x).displacement(torch.full((7,), gamma, dtype=torch.float64))


@pytest.mark.parametrize(("gate", "power"), [("sigma2", 1.0), ("sigma", 0.5), ("free", 0.0)])
def test_gates_close_as_fast_as_promised(gate: str, power: float) -> None:
    near, far = displacement(gate, -24.0), displacement(gate, -20.0)
    torch.testing.assert_close(far / near, torch.full_like(near, math.exp(4 * power)), rtol=1e-7, atol=0)
    torch.testing.assert_close(displacement(gate, 30.0), torch.tanh(torch.linspace(-1, 1, 7).double())[:, None] + 2)


def test_gates_equal_their_formulas() -> None:
    gamma = torch.linspace(-13.3, 5, 50, dtype=torch.float64)
    sigma2 = 1 / (1 + torch.exp(-gamma))
    expected = {
        "sigma2": sigma2,
        "sigma": sigma2.sqrt(),
        "anchored": sigma2 - sigma2[0],
        "free": torch.ones(50).double(),
    }
    assert expected.keys() == GATES.keys()
    for name, values in expected.items():
        torch.testing.assert_close(gate_named(name)(gamma, -13.3)[0], values, rtol=1e-12, atol=1e-18)


@pytest.mark.parametrize("gate", GATES)
def test_the_derivative_of_a_gate_is_that_of_its_values(gate: str) -> None:
    gamma = torch.linspace(-13.3, 5, 50, dtype=torch.float64, requires_grad=True)
    values, slopes = gate_named(gate)(gamma, -13.3)
    expected = torch.zeros(50).double() if gate == "free" else torch.autograd.grad(values.sum(), gamma)[0]
    torch.testing.assert_close(slopes, expected, rtol=1e-12, atol=1e-18)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "schedule",
    [
        ndm.LinearSchedule(-13.3, 5.0),
        ndm.LinearSchedule(-9.87, 4.0),
        ndm.CosineSchedule(),
        ndm.DDPMSchedule(),
        ndm.OTSchedule(-12.1),
        ndm.LearnedSchedule(-11.7, 3.0),
    ],
    ids=lambda s: type(s).__name__,
)
@pytest.mark.parametrize("separable", [False, True])
def test_anchored_is_the_data_itself_at_gamma_0(schedule, dtype, separable: bool) -> None:
    if separable:
        transform: ndm.Transform = ndm.Separable(Fixed(), terms=1, gate="anchored")
    else:
        transform = ndm.Neural(Fixed(), gate="anchored")
    transform.set_gamma_range(*schedule.end_points())
    for batch in (1, 2, 3, 7, 8, 9, 16, 33, 1000):
        x = torch.randn(batch, 4, dtype=dtype)
        with torch.no_grad():
            gamma_0 = schedule(torch.zeros(batch, dtype=dtype)).gamma
            ends = schedule(torch.tensor([0.0, 1.0], dtype=dtype)).gamma
        for gamma in (gamma_0, ends[0].expand(batch), torch.stack([gamma_0, ends[1].expand(batch)])[0]):
            assert torch.equal(transform(x)(gamma), x)
            assert torch.equal(transform(x).displacement(gamma), torch.zeros_like(x))
        assert (transform(x).displacement(gamma_0 + 8).abs() > 1e-4).all()


def test_an_unknown_gate_is_refused() -> None:
    with pytest.raises(ValueError, match="choose one of sigma2"):
        ndm.Neural(Fixed(), gate="open")
