"""Samplers of azula, diffusers and ndm: whether their samples are equal, and what a step costs beyond the network.

    python benchmarks/samplers.py --peer FOLDER    # a checkout of probabilists/azula, bec12b8 for the results here

All take the same steps on the same network with the same linear gamma, deterministic (DDIM) and ancestral (DDPM), in
turns, in a new order each round. ``overhead`` is a sampler's CPU time over that of the network alone, less one;
``ratio`` is our time over the peer's. Both are medians over rounds, with the quartiles of the ratio. azula gets a
denoiser and a schedule of its own classes; diffusers its schedulers with the squares of our alphas. ``apart`` is the
largest difference of the samples in float64 from the same random numbers, over the largest number. diffusers' ancestral
sampler adds no noise at the last step and is not compared.
"""

from __future__ import annotations

import argparse
import importlib.util
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import torch
from bench import save
from torch import Tensor, nn

import ndm
from ndm.networks import ResidualMLP, UNet

URL = "probabilists/azula"
GAMMA = (-8.0, 5.0)
ROUNDS = 5
METHODS = ("ddim", "ancestral")

Sampler = Callable[[Tensor], Tensor]


def networks() -> dict[str, tuple[nn.Module, tuple[int, ...], int]]:
    """Name: a random network, the shape of a batch, and the number of steps."""
    torch.manual_seed(0)
    made: dict[str, tuple[nn.Module, tuple[int, ...], int]] = {
        "perceptron, 2": (ResidualMLP(2), (256, 2), 50),
        "perceptron, 2, one row": (ResidualMLP(2), (1, 2), 50),
        "U-Net, 28x28": (UNet(1, width=16, multipliers=(1, 2), groups=8), (8, 1, 28, 28), 20),
    }
    for net, _, _ in made.values():
        for parameter in net.parameters():  # outputs that start from zero
            if not parameter.any():
                nn.init.normal_(parameter, std=0.05)
    return made


def model_of(net: nn.Module) -> ndm.NDM:
    return ndm.NDM(ndm.LinearSchedule(*GAMMA), ndm.Identity(), ndm.Denoiser(net), ndm.GaussianDecoder()).eval()


def alpha_0(like: Tensor) -> Tensor:
    """What our decoder divides z_0 by, and the peers do not."""
    return torch.sigmoid(like.new_tensor(-GAMMA[0])).sqrt()


# ---- the samplers, each from z_1, (B, *shape)


def ours(net: nn.Module, method: str, steps: int) -> Sampler:
    """Ours, which draws z_1 itself: from the random numbers that the others were drawn with."""
    model = model_of(net)

    def run(z: Tensor) -> Tensor:
        return ndm.sample(model, len(z), z.shape[1:], method=method, steps=steps, dtype=z.dtype)

    return run


def network(net: nn.Module, method: str, steps: int) -> Sampler:
    """The network alone, as often."""

    @torch.no_grad()
    def run(z: Tensor) -> Tensor:
        for i in range(steps, 0, -1):
            out = net(z, z.new_full((len(z),), i / steps))
        return out

    return run


def azula(code: SimpleNamespace) -> Callable[[nn.Module, str, int], Sampler]:
    """azula's, with a schedule and a denoiser as its users write them."""

    class Linear(code.noise.Schedule):
        def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
            gamma = GAMMA[0] + (GAMMA[1] - GAMMA[0]) * t
            return torch.sigmoid(-gamma).sqrt(), torch.sigmoid(gamma).sqrt()

    class V(code.denoise.Denoiser):
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net, self.schedule = net, Linear()

        def forward(self, x_t: Tensor, t: Tensor, **_: Any) -> Any:
            alpha, sigma = self.schedule(t)
            # With a linear gamma, t is the noise level in [0, 1].
            return code.denoise.DiracPosterior(mean=alpha * x_t - sigma * self.net(x_t, t.expand(len(x_t))))

    def sampler(net: nn.Module, method: str, steps: int) -> Sampler:
        kind = {"ddim": code.sample.DDIMSampler, "ancestral": code.sample.DDPMSampler}[method]
        denoiser = V(net)

        def run(z: Tensor) -> Tensor:
            return kind(denoiser, steps=steps, silent=True, dtype=z.dtype)(z)

        return run

    return sampler


def diffusers(net: nn.Module, method: str, steps: int) -> Sampler:
    """diffusers', with a loop as in its pipelines."""
    from diffusers import DDIMScheduler, DDPMScheduler

    u = torch.arange(1, steps + 1, dtype=torch.float64) / steps
    squares = torch.sigmoid(-(GAMMA[0] + (GAMMA[1] - GAMMA[0]) * u))
    betas = 1 - squares.numpy() / np.concatenate([[1.0], squares.numpy()[:-1]])
    kind = {"ddim": DDIMScheduler, "ancestral": DDPMScheduler}[method]
    scheduler = kind(num_train_timesteps=steps, trained_betas=betas, clip_sample=False, prediction_type="v_prediction")
    scheduler.final_alpha_cumprod = torch.sigmoid(torch.tensor(-GAMMA[0], dtype=torch.float64))

    @torch.no_grad()
    def run(z: Tensor) -> Tensor:
        scheduler.alphas_cumprod = squares.to(z)
        scheduler.final_alpha_cumprod = scheduler.final_alpha_cumprod.to(z)
        levels = u.to(z)
        scheduler.set_timesteps(steps)
        for t in scheduler.timesteps:
            z = scheduler.step(net(z, levels[t].expand(len(z))), t, z).prev_sample
        return z

    return run


def import_azula(folder: Path) -> SimpleNamespace:
    """The peer's modules that sampling needs; packages that only its own networks need may be missing."""
    if not (folder / "azula" / "sample.py").is_file():
        raise FileNotFoundError(f"There is no azula/sample.py in {folder}: give --peer a checkout of {URL}.")
    sys.path.insert(0, str(folder))
    if "einops" not in sys.modules and importlib.util.find_spec("einops") is None:
        sys.modules |= {name: MagicMock() for name in ("einops", "einops.layers", "einops.layers.torch")}
    return SimpleNamespace(**{n: importlib.import_module(f"azula.{n}") for n in ("sample", "denoise", "noise")})


# ---- measuring


def apart(net: nn.Module, peer: Callable[..., Sampler], method: str, shape: tuple[int, ...], steps: int) -> float:
    """The largest difference of the samples from the same random numbers, over their largest number; in float64."""
    fine, found = net.double(), []
    for make in (ours, peer):
        torch.manual_seed(1)
        # Ours draws the start itself, and then the noise: as the peer does from here on.
        z = torch.randn(shape, dtype=torch.float64) if make is peer else torch.empty(shape, dtype=torch.float64)
        end = make(fine, method, steps)(z)
        found.append(end / alpha_0(end) if make is peer else end)
    net.float()
    return ((found[0] - found[1]).abs().max() / found[0].abs().max()).item()


def timed(samplers: dict[str, Sampler], z: Tensor, rounds: int) -> dict[str, list[float]]:
    """CPU seconds of each in every round."""
    taken: dict[str, list[float]] = {name: [] for name in samplers}
    for turn in range(-1, rounds):  # the round before the first one warms up
        order = list(samplers)
        random.Random(turn).shuffle(order)
        for name in order:
            began = time.process_time()
            samplers[name](z)
            if turn >= 0:
                taken[name].append(time.process_time() - began)
    return taken


def rows(peer: Path, rounds: int) -> Iterator[dict[str, Any]]:
    """A row for each network, method and sampler."""
    peers: dict[str, Callable[[nn.Module, str, int], Sampler]] = {
        "azula": azula(import_azula(peer)), "diffusers": diffusers,
    }  # fmt: skip
    for name, (net, shape, steps) in networks().items():
        net.eval()
        for method in METHODS:
            makers = {"network": network, "ours": ours, **peers}
            samplers = {who: make(net, method, steps) for who, make in makers.items()}
            same = {
                who: apart(net, peer, method, shape, steps)
                for who, peer in peers.items()
                if (who, method) != ("diffusers", "ancestral")
            }
            taken = timed(samplers, torch.randn(shape), rounds)
            for who, times in taken.items():
                row = {"network": name, "batch": shape[0], "steps": steps, "method": method, "who": who}
                row |= {"steps_per_second": steps / statistics.median(times)}
                row["overhead"] = _middle(times, taken["network"])[1] - 1
                if who in peers:
                    row["ratio_quartiles"] = _middle(taken["ours"], times)
                    row["ratio"] = row["ratio_quartiles"][1]
                    row["apart"] = same.get(who)
                yield row


def _middle(times: list[float], of: list[float]) -> list[float]:
    """The quartiles, the median in the middle, of the ratios in each round."""
    return statistics.quantiles((t / o for t, o in zip(times, of, strict=True)), n=4, method="inclusive")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, required=True, help=f"a checkout of {URL}")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = []
    for row in rows(options.peer, options.rounds):
        print(row, flush=True)
        found.append(row)
    sys.argv = ["PEER" if a == str(options.peer) else a for a in sys.argv]
    print(save("samplers", found, {"peer": URL, "rounds": options.rounds}))


if __name__ == "__main__":
    main()
