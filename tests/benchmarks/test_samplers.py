"""The samplers of other packages, as benchmarks/samplers.py calls them, take the same steps as ours."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

pytestmark = pytest.mark.slow


def small() -> nn.Module:
    from ndm.networks import ResidualMLP

    torch.manual_seed(0)
    return ResidualMLP(2, hidden=16, depth=1, zero_init=False).eval()


def test_diffusers_takes_the_same_steps() -> None:
    pytest.importorskip("diffusers")
    from samplers import apart, diffusers

    assert apart(small(), diffusers, "ddim", (20, 2), 7) < 1e-12
    # The figure can tell samplers apart: diffusers' ancestral one adds no noise at its last step.
    assert apart(small(), diffusers, "ancestral", (20, 2), 7) > 1e-4


class _Steps:
    """What azula's samplers are, in few words."""

    noisy = False

    def __init__(self, denoiser: Any, steps: int, silent: bool, dtype: torch.dtype) -> None:
        self.denoiser, self.times = denoiser, torch.linspace(1, 0, steps + 1, dtype=dtype)

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        for t, s in itertools.pairwise(self.times):
            (alpha_t, sigma_t), (alpha_s, sigma_s) = self.denoiser.schedule(t), self.denoiser.schedule(s)
            x_hat = self.denoiser(x, t).mean
            eps_hat = (x - alpha_t * x_hat) / sigma_t
            new = (sigma_s / sigma_t) ** 2 * (sigma_t**2 - (alpha_t / alpha_s * sigma_s) ** 2) if self.noisy else 0 * t
            x = alpha_s * x_hat + (sigma_s**2 - new).sqrt() * eps_hat
            if self.noisy:
                x = x + new.sqrt() * torch.randn_like(x)
        return x


class _NoisySteps(_Steps):
    noisy = True


@pytest.mark.parametrize("method", ["ddim", "ancestral"])
def test_azulas_denoiser_and_schedule_are_ours(method: str) -> None:
    from samplers import apart, azula

    code = SimpleNamespace(
        noise=SimpleNamespace(Schedule=object),
        denoise=SimpleNamespace(Denoiser=nn.Module, DiracPosterior=SimpleNamespace),
        sample=SimpleNamespace(DDIMSampler=_Steps, DDPMSampler=_NoisySteps),
    )
    assert apart(small(), azula(code), method, (20, 2), 7) < 1e-12


def test_the_network_alone_is_called_once_a_step() -> None:
    from samplers import network

    levels = []

    def net(z: Tensor, u: Tensor) -> Tensor:
        levels.append(u[0].item())
        return z

    network(net, "ddim", 4)(torch.zeros(3, 2))  # type: ignore[arg-type]
    assert levels == [1.0, 0.75, 0.5, 0.25]


def test_a_missing_peer_is_one_sentence(tmp_path: Path) -> None:
    from samplers import import_azula

    with pytest.raises(FileNotFoundError, match=r"There is no azula/sample\.py"):
        import_azula(tmp_path)
