"""Time and memory of a training step with a learned transformation, over those of Identity.

There are two comparisons. At an equal denoiser, F comes on top. At equal total parameters, the denoiser has as many
parameters less as F has. F is a plain network of three layers with about 7% of the model's
parameters, or one of the denoiser's kind with half of them. A step is the bound, its gradient and Adam's update. The
models take turns, step by step, in a new order each round, so that all meet the same machine; the figure is the median
over rounds of the ratio to Identity in the same round. Memory is the peak of what torch holds in a step, parameters and
Adam's state included, as torch's profiler records it.

    python benchmarks/cost.py [--settings mlp-2 mlp-64 unet-8 unet-28] [--rounds 15]
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from bench import parameters, save
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import ndm
from ndm.networks import ResidualMLP, UNet

TERMS, SHARES = 4, (0.07, 0.5)
TIMES = {"T = 10": 10, "continuous": None}

#: (width, heads, level) -> network.
Factory = Callable[[int, int, bool], nn.Module]


class Perceptron(nn.Module):
    """Three linear layers; the noise level is one more input."""

    def __init__(self, features: int, width: int, heads: int, level: bool) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(features + level, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(),
            nn.Linear(width, heads * features),
        )  # fmt: skip

    def forward(self, x: Tensor, u: Tensor | None = None) -> Tensor:
        return self.layers(x if u is None else torch.cat([x, u[:, None]], dim=1))


class Dense(Perceptron):
    """The perceptron on images, flattened: many parameters for its arithmetic, where a convolution has few."""

    def forward(self, x: Tensor, u: Tensor | None = None) -> Tensor:
        return super().forward(x.flatten(1), u).reshape(len(x), -1, *x.shape[2:])


class Convolutions(nn.Module):
    """Three convolutions; the noise level is one more channel."""

    def __init__(self, channels: int, width: int, heads: int, level: bool) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels + level, width, 3, padding=1), nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1), nn.SiLU(),
            nn.Conv2d(width, heads * channels, 3, padding=1),
        )  # fmt: skip

    def forward(self, x: Tensor, u: Tensor | None = None) -> Tensor:
        level = [] if u is None else [u[:, None, None, None].expand(-1, 1, *x.shape[2:])]
        return self.layers(torch.cat([x, *level], dim=1))


@dataclass
class Setting:
    """What is modelled, by networks of what kind: ``plain`` is the small one; widths are multiples of ``unit``."""

    shape: tuple[int, ...]
    batch: int
    levels: int | None
    width: int
    unit: int
    net: Factory
    plain: Factory

    def kind(self, share: float) -> Factory:
        """F's kind of network."""
        return self.plain if share < 0.2 else self.net


def mlp(features: int, width: int) -> Setting:
    return Setting(
        (features,), 256, None, width, 8,
        net=lambda width, heads, level: ResidualMLP(features, width, 3, heads, level),
        plain=lambda width, heads, level: Perceptron(features, width, heads, level),
    )  # fmt: skip


def unet(side: int, batch: int, levels: int, multipliers: tuple[int, ...]) -> Setting:
    return Setting(
        (1, side, side), batch, levels, 32, 1,
        net=lambda width, heads, level: UNet(1, width, multipliers, heads=heads, level=level, groups=1),
        plain=lambda width, heads, level: Convolutions(1, width, heads, level),
    )  # fmt: skip


SETTINGS = {
    "mlp-2": mlp(2, 128),
    "mlp-64": mlp(64, 256),
    "unet-8": unet(8, 64, 17, (1, 2)),
    "unet-8, dense F": replace(
        unet(8, 64, 17, (1, 2)), plain=lambda width, heads, level: Dense(64, width, heads, level)
    ),
    "unet-28": unet(28, 16, 256, (1, 2, 2)),
}


@dataclass
class Candidate:
    """One model: ``equal`` is what it has in common with Identity's, ``share`` what F has of the parameters."""

    name: str
    equal: str
    share: float
    total: int
    model: ndm.NDM


def candidates(setting: Setting) -> list[Candidate]:
    """Identity first, then every other one."""
    identity = build(setting, "Identity", setting.net(setting.width, 1, True), None)
    total = parameters(identity)
    found = [Candidate("Identity", "", 0.0, total, identity)]
    for equal in ("total", "denoiser"):
        for share in SHARES:
            for name in ("Separable", "Neural", "Separable, direct", "Neural, direct"):
                model = build(setting, name, *networks(setting, name, equal, share, total))
                here = parameters(model)
                found.append(Candidate(name, equal, parameters(model.transform) / here, here, model))
    return found


def build(setting: Setting, name: str, denoiser: nn.Module, net: nn.Module | None) -> ndm.NDM:
    transforms = {
        "Identity": ndm.Identity,
        "Neural": lambda: ndm.Neural(net),
        "Separable": lambda: ndm.Separable(net, TERMS),
    }
    return ndm.NDM(
        ndm.LinearSchedule(),
        transforms[name.split(",")[0]](),
        (ndm.DirectDenoiser if "direct" in name else ndm.Denoiser)(denoiser),
        ndm.GaussianDecoder() if setting.levels is None else ndm.DiscretizedDecoder(setting.levels),
    )


def networks(setting: Setting, name: str, equal: str, share: float, total: int) -> tuple[nn.Module, nn.Module]:
    """The denoiser's network and F's: near the share, and with ``total`` parameters if that is what is equal."""
    heads, level = (TERMS, False) if name.startswith("Separable") else (1, True)

    def denoiser(width: int) -> nn.Module:
        return setting.net(width, 1, True)

    def transform(width: int) -> nn.Module:
        return setting.kind(share)(width, heads, level)

    unit = setting.unit if setting.kind(share) is setting.net else 1
    if equal == "denoiser":
        return denoiser(setting.width), transform(nearest(transform, total * share / (1 - share), unit))
    # The denoiser is as wide as its share allows, but narrower than Identity's, and F completes it.
    width = min(nearest(denoiser, total * (1 - share), setting.unit), setting.width - setting.unit)
    return denoiser(width), transform(nearest(transform, total - size(denoiser, width), unit))


def nearest(net: Callable[[int], nn.Module], wanted: float, unit: int) -> int:
    """The width, a multiple of ``unit``, whose number of parameters is nearest to the one wanted."""
    width = unit
    while size(net, width) < wanted:
        width += unit
    return min((max(width - unit, unit), width), key=lambda w: abs(size(net, w) - wanted))


def size(net: Callable[[int], nn.Module], width: int) -> int:
    with torch.device("meta"):  # no numbers, only their number
        return parameters(net(width))


def batch(setting: Setting) -> Tensor:
    if setting.levels is None:
        return torch.randn(setting.batch, *setting.shape)
    return torch.randint(setting.levels, (setting.batch, *setting.shape))


class Training:
    """One model's training step."""

    def __init__(self, model: ndm.NDM, data: Tensor, steps: int | None) -> None:
        self.model, self.data, self.steps = model, data, steps
        self.optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)

    def step(self) -> None:
        self.optimizer.zero_grad()
        self.model.bound(self.data, self.steps).bits_per_dim.mean().backward()
        self.optimizer.step()

    def seconds(self) -> float:
        start = time.perf_counter()
        self.step()
        return time.perf_counter() - start

    def peak_bytes(self) -> int:
        """The most memory that torch holds during a step, over what stays: parameters and the optimiser's state."""
        self.step()
        self.optimizer.zero_grad()
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            self.step()
        changes = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
        held = peak = 0
        for event in sorted(changes, key=lambda e: e.start_ns()):
            held += event.nbytes()
            peak = max(peak, held)
        return peak + sum(v.numel() * v.element_size() for v in self.kept())

    def kept(self) -> list[Tensor]:
        """The tensors that stay from step to step."""
        states = [v for state in self.optimizer.state.values() for v in state.values() if torch.is_tensor(v)]
        return list(self.model.parameters()) + states


def measure(setting: Setting, rounds: int, seed: int = 0) -> list[dict]:
    torch.manual_seed(seed)
    data, found = batch(setting), candidates(setting)
    rows = [{"model": c.name, "equal": c.equal, "share": c.share, "parameters": c.total, "times": {}} for c in found]
    for label, steps in TIMES.items():
        runs = [Training(c.model, data, steps) for c in found]
        memory = [run.peak_bytes() for run in runs]
        seconds: list[list[float]] = [[] for _ in runs]
        for _ in range(rounds):
            order = list(range(len(runs)))
            random.Random(seed).shuffle(order)
            seed += 1
            for i in order:
                seconds[i].append(runs[i].seconds())
        for row, times, peak in zip(rows, seconds, memory, strict=True):
            row["times"][label] = {
                "ms": 1e3 * statistics.median(times),
                "ratio": statistics.median(t / base for t, base in zip(times, seconds[0], strict=True)),
                "peak_mib": peak / 2**20,
                "memory_ratio": peak / memory[0],
            }
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    for name in options.settings:
        setting = SETTINGS[name]
        for row in measure(setting, options.rounds):
            print({"setting": name, **row}, flush=True)
            rows.append({"setting": name, **row})
    print(save("cost", rows, vars(options)))


if __name__ == "__main__":
    main()
