"""Parts of processes in every combination, and a denoiser that guesses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import ndm
from ndm.method.schedules import per_example
from ndm.networks import ResidualMLP

B, SHAPE = 5, (3,)
SCHEDULES = {"variance preserving": ndm.LinearSchedule(-9.0, 4.0), "straight path": ndm.OTSchedule(-9.0, 9.0)}
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
ETAS = (0.0, 0.5, 1.0)


def f64(values) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def times(t: float, n: int = B) -> Tensor:
    return torch.full((n,), t, dtype=torch.float64)


def neural(gate: str = "free") -> ndm.Neural:
    return ndm.Neural(ResidualMLP(3, hidden=8, depth=1, embedding=8, zero_init=False), gate=gate)


def separable() -> ndm.Separable:
    return ndm.Separable(ResidualMLP(3, hidden=8, depth=1, heads=4, level=False, zero_init=False), terms=4)


TRANSFORMS = {"identity": ndm.Identity, "scale": lambda: ndm.Scale(wave), "neural": neural, "separable": separable}
every_transform = pytest.mark.parametrize("make", TRANSFORMS.values(), ids=TRANSFORMS)


def wave(gamma: Tensor) -> Tensor:
    return 1.3 + torch.sin(gamma / 3)


class Guess(nn.Module):
    """Some smooth x_hat(z, gamma)."""

    def forward(self, z: Tensor, level) -> Tensor:
        return torch.tanh(z) * per_example(torch.sigmoid(level.gamma + 1), z) + 0.3


def model(schedule, transform, denoiser: nn.Module | None = None, **options) -> ndm.NDM:
    return ndm.NDM(schedule, transform, denoiser or Guess(), **options).double()


class Exact(nn.Module):
    """The posterior mean of x for x ~ N(0, r) and F = a(gamma) x."""

    def __init__(self, r: float, a) -> None:
        super().__init__()
        self.r, self.a = r, a

    def forward(self, z: Tensor, level) -> Tensor:
        a = self.a(level.gamma)
        return per_example(level.alpha * a * self.r / (level.alpha**2 * a**2 * self.r + level.sigma**2), z) * z


def assert_gradient_is_right(value: Callable[[], Tensor], parameter: Tensor) -> None:
    """The derivative of a value, a number, along a random direction of a parameter is that of finite differences."""
    value().backward()
    assert parameter.grad is not None
    direction = torch.randn_like(parameter)
    slope, values = (parameter.grad * direction).sum().item(), []
    with torch.no_grad():
        for sign in (1, -1):
            parameter.add_(direction, alpha=sign * 1e-5)
            values.append(value().item())
            parameter.sub_(direction, alpha=sign * 1e-5)
    assert abs(slope) > 1e-6
    assert slope == pytest.approx((values[0] - values[1]) / 2e-5, rel=1e-5)


def assert_saved_calibrated_and_sampled(process: ndm.NDM, x: Tensor, path: Path) -> None:
    """A calibration lowers the bound of x, (N, d), and the model that was saved draws the same samples."""
    before = process.bound(x, 10, generator=torch.Generator().manual_seed(0)).total.mean()
    process.calibrate([x], 10, "diagonal", spacing="optimal")
    assert process.bound(x, 10, generator=torch.Generator().manual_seed(0)).total.mean() < before
    process.save_pretrained(path / "model")
    loaded = ndm.NDM.from_pretrained(path / "model")
    for name in ("ancestral", "sde", "ode", "ddim"):
        draws = [
            m.sample(4, x.shape[1:], method=name, steps=10, generator=torch.Generator().manual_seed(0))
            for m in (process, loaded)
        ]
        assert draws[0].isfinite().all()
        torch.testing.assert_close(*draws)
