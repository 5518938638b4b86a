"""The closed forms of Gaussian data, x ~ N(0, r), through the public API in float64: the bound, and the ODE's density.

python benchmarks/oracles.py [--examples 400000]
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable

import torch
from bench import mean_and_error, save, table
from torch import Tensor, nn

import ndm

R = 1.7


def one(gamma: Tensor) -> Tensor:
    return torch.ones_like(gamma)


def a(gamma: Tensor) -> Tensor:
    return 1 + 0.8 * torch.sigmoid(gamma)


class Exact(nn.Module):
    """E[x | z] for F = scale(gamma) x."""

    def __init__(self, scale: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, z: Tensor, level: ndm.NoiseLevel) -> Tensor:
        alpha, sigma, s = (v[:, None] for v in (level.alpha, level.sigma, self.scale(level.gamma)))
        return alpha * s * R * z / (alpha**2 * s**2 * R + sigma**2)


class BestVolatility(nn.Module):
    """eta^2 = (a / 2 - da) / (a / 2)."""

    def forward(self, gamma: Tensor) -> Tensor:
        slope = 0.8 * torch.sigmoid(gamma) * torch.sigmoid(-gamma)
        return (1 - 2 * slope / a(gamma)).sqrt()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=400_000)
    options = parser.parse_args()
    torch.manual_seed(0)
    x = R**0.5 * torch.randn(options.examples, 1, dtype=torch.float64)
    schedule = ndm.LinearSchedule(-8, 6)
    identity = ndm.NDM(schedule, ndm.Identity(), Exact(one))
    scaled = ndm.NDM(schedule, ndm.Scale(a), Exact(a))
    best = ndm.NDM(schedule, ndm.Scale(a), Exact(a), volatility=BestVolatility())
    cases = [
        ("Identity, continuous", identity, None, 4.263310268688),
        ("Scale, eta = 1", scaled, None, 4.281072534395),
        ("Scale, best eta", best, None, 4.258915463849),
        ("Identity, T = 10, w = v", identity, 10, 8.542634561393),
        ("Identity, T = 100, w = v", identity, 100, 4.538763330653),
        ("Identity, T = 1000, w = v", identity, 1000, 4.289784035388),
    ]
    rows = [measure(name, model, x, steps, truth) for name, model, steps, truth in cases]
    for steps in (1, 10, 100):
        calibrated = ndm.NDM(schedule, ndm.Identity(), Exact(one)).calibrate(x[:20_000], steps)
        rows.append(measure(f"Identity, T = {steps}, calibrated", calibrated, x, steps, 4.263310268688))
    rows += [density(name, f, s) for name, f, s in (("Identity", ndm.Identity(), one), ("Scale", ndm.Scale(a), a))]
    print(table([[r["case"], f"{r['value']:.6f}", f"{r['stderr']:.1e}", f"{r['truth']:.6f}"] for r in rows],
                ["case", "value", "standard error", "closed form"]))  # fmt: skip
    print(save("oracles", rows, vars(options)))


def measure(name: str, model: ndm.NDM, x: Tensor, steps: int | None, truth: float) -> dict:
    value, error = mean_and_error(model.bound(x, steps).diffusion)
    return {"case": f"L_diff, {name}", "value": value, "stderr": error, "truth": truth}


def density(name: str, transform: ndm.Transform, scale: Callable[[Tensor], Tensor]) -> dict:
    """The largest error of the ODE's log-density at points within three standard deviations; gamma_1 = 12."""
    model = ndm.NDM(ndm.LinearSchedule(-8, 12), transform, Exact(scale))
    x = torch.linspace(-3, 3, 13, dtype=torch.float64)[:, None] * R**0.5
    level = model.schedule(x.new_zeros(1))
    variance = scale(level.gamma) ** 2 * R + level.gamma.exp()
    truth = -(x[:, 0] ** 2 / variance + torch.log(2 * math.pi * variance)) / 2
    error = (ndm.log_likelihood(model, x, tolerance=1e-7).log_prob - truth).abs().max().item()
    return {"case": f"ODE log-density, {name}: largest error", "value": error, "stderr": 0.0, "truth": 0.0}


if __name__ == "__main__":
    main()
