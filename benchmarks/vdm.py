"""The time of a training step of VDM over that of another PyTorch implementation.

The peer is addtt/variational-diffusion-models, which its authors measure at 2.715 bits per dimension on CIFAR-10. Both
models have VDM's U-Net (arXiv 2107.00630, appendix B) of the same width and depth with Fourier features and one
attention in the middle, a fixed linear gamma from -13.3 to 5, and the bound in continuous time on the same random
images of 32 x 32 pixels. A step is the bound, its gradient and Adam's update, in single precision. The models take
turns, in a new order each round; the figure is the median over rounds of the ratio of ours to theirs.
The networks differ in the embedding of gamma: the peer has 1000 positions, this package 5 octaves, and its layers that
see the embedding have a bias.

    python benchmarks/vdm.py --peer FOLDER   # a checkout of the peer, 90a8b59 for the results here
"""

from __future__ import annotations

import argparse
import importlib.util
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import torch
from bench import parameters, save
from torch import Tensor, nn

import ndm
from ndm.networks import UNet

SIDE, CHANNELS, LEVELS, GROUPS, GAMMA_MIN, GAMMA_MAX = 32, 3, 256, 8, -13.3, 5.0
#: (width, blocks on the way down, examples a step).
SETTINGS = [(32, 8, 16), (64, 4, 16)]


class Ours:
    """This package's VDM."""

    def __init__(self, width: int, blocks: int) -> None:
        # The peer's exponents, 5 and 6, are those of sin(2^n 2 pi z).
        self.net = UNet(
            CHANNELS, width, multipliers=(1,), blocks=blocks, attention="middle", fourier=(6, 7), groups=GROUPS
        )
        schedule, decoder = ndm.LinearSchedule(GAMMA_MIN, GAMMA_MAX), ndm.DiscretizedDecoder(LEVELS)
        self.model: nn.Module = ndm.NDM(schedule, ndm.Identity(), ndm.Denoiser(self.net, "eps"), decoder)

    def loss(self, images: Tensor) -> Tensor:
        return self.model.bound(images).bits_per_dim.mean()


class Theirs:
    """The peer's, as its training script builds it."""

    def __init__(self, width: int, blocks: int) -> None:
        from vdm import VDM
        from vdm_unet import UNetVDM

        config = SimpleNamespace(
            embedding_dim=width, n_blocks=blocks, n_attention_heads=1, dropout_prob=0.0, norm_groups=GROUPS,
            input_channels=CHANNELS, use_fourier_features=True, attention_everywhere=False,
            noise_schedule="fixed_linear", gamma_min=GAMMA_MIN, gamma_max=GAMMA_MAX, antithetic_time_sampling=True,
        )  # fmt: skip
        self.net = UNetVDM(config)
        self.model = VDM(self.net, config, image_shape=(CHANNELS, SIDE, SIDE))

    def loss(self, images: Tensor) -> Tensor:
        return self.model(images / (LEVELS - 1))[0]


CANDIDATES: dict[str, Callable[[int, int], Ours | Theirs]] = {"ours": Ours, "theirs": Theirs}


def import_from(peer: Path) -> None:
    """Let the peer's modules be imported; packages that only its training script needs may be missing."""
    if not (peer / "vdm_unet.py").is_file():
        raise SystemExit(f"There is no vdm_unet.py in {peer}: give --peer a checkout of the peer.")
    sys.path.insert(0, str(peer))
    for package, *modules in (["accelerate"], ["torchinfo"], ["torchvision", "torchvision.datasets"]):
        if importlib.util.find_spec(package) is None:
            sys.modules.update({name: MagicMock() for name in (package, *modules)})


def seconds_of_a_step(candidate: Ours | Theirs, optimizer: torch.optim.Optimizer, images: Tensor) -> float:
    start = time.perf_counter()
    optimizer.zero_grad()
    candidate.loss(images).backward()
    optimizer.step()
    return time.perf_counter() - start


def measure(width: int, blocks: int, size: int, rounds: int) -> list[dict]:
    torch.manual_seed(0)
    images = torch.randint(LEVELS, (size, CHANNELS, SIDE, SIDE))
    runs = {name: make(width, blocks) for name, make in CANDIDATES.items()}
    optimizers = {name: torch.optim.Adam(run.model.parameters(), lr=2e-4) for name, run in runs.items()}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(-1, rounds):
        order = list(runs)
        random.Random(turn).shuffle(order)
        for name in order:
            elapsed = seconds_of_a_step(runs[name], optimizers[name], images)
            if turn >= 0:  # the round before the first one warms up
                seconds[name].append(elapsed)
    rows = []
    for name, run in runs.items():
        ratio = statistics.median(t / p for t, p in zip(seconds[name], seconds["theirs"], strict=True))
        row = {"width": width, "blocks": blocks, "batch": size, "model": name, "ratio": ratio}
        rows.append(row | {"parameters": parameters(run.net), "ms": 1e3 * statistics.median(seconds[name])})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, required=True, help="a checkout of addtt/variational-diffusion-models")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    import_from(options.peer)
    rows = []
    for setting in SETTINGS:
        here = measure(*setting, options.rounds)
        print(*here, sep="\n", flush=True)
        rows += here
    sys.argv = ["PEER" if a == str(options.peer) else a for a in sys.argv]  # where it lay here says nothing elsewhere
    print(save("vdm", rows, {"peer": "addtt/variational-diffusion-models", "rounds": options.rounds}))


if __name__ == "__main__":
    main()
