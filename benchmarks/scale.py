"""The cost of a pass of the networks of the configurations, from which that of a billion rows or of images follows.

    python benchmarks/scale.py

CPU seconds of one thread per example, the least of five passes in blocks of 1,024 rows or of one image, and the
floating-point operations of a pass.
"""

from __future__ import annotations

import argparse
import time

import torch
from bench import save
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ndm.networks import ResidualMLP, UNet


def networks() -> dict[str, tuple[nn.Module, Tensor]]:
    """The denoisers of the configurations, and a batch of states."""
    rows = {d: ResidualMLP(d, hidden=128 if d < 100 else 256, depth=3) for d in (2, 10, 30, 100)}
    found: dict[str, tuple[nn.Module, Tensor]] = {
        f"table, {d} columns": (net, torch.randn(1024, d)) for d, net in rows.items()
    }
    mnist = UNet(1, width=64, multipliers=(1, 2, 2), blocks=1, attention=True, groups=32)
    cifar10 = UNet(3, width=128, multipliers=(1,), blocks=32, attention="middle", fourier=(7, 8), groups=32)
    celeba = UNet(3, width=128, multipliers=(1, 1, 2, 2, 4, 4), blocks=2, attention=(4,), groups=32)
    images = {"mnist, 28 x 28": (mnist, 1, 28), "cifar10, 32 x 32": (cifar10, 3, 32)}
    images["celebahq256, 256 x 256"] = (celeba, 3, 256)
    return found | {name: (net, torch.randn(1, c, size, size)) for name, (net, c, size) in images.items()}


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    lines = []
    for name, (net, z) in networks().items():
        net.eval().requires_grad_(False)
        u, taken = torch.full((1,), 0.3).expand(len(z)), []
        with FlopCounterMode(display=False) as counter:
            net(z, u)
        for _ in range(5):
            began = time.process_time()
            net(z, u)
            taken.append(time.process_time() - began)
        line = {"network": name, "d": z[0].numel(), "parameters": sum(p.numel() for p in net.parameters())}
        line |= {"gflop": counter.get_total_flops() / len(z) / 1e9, "seconds": min(taken) / len(z)}
        lines.append(line)
        print(line, flush=True)
    print(save("scale", lines, {}))


if __name__ == "__main__":
    main()
