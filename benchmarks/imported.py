"""The bound of an imported diffusers model against Improved DDPM's own calculation, with the same noise.

A ``UNet2DModel`` is trained on MNIST by a plain loop of diffusers, saved by it, and read by ``ndm.from_diffusers``. All
terms of the bound of some test images are then computed by this package in single precision, and by an implementation
of the calculation of Improved DDPM (tests/networks/improved_diffusion.py) in double precision.

    python benchmarks/imported.py --data FOLDER     # a folder with mnist-train.parquet and mnist-test.parquet
    python benchmarks/imported.py --data FOLDER --model PIPELINE     # one that is trained already
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from bench import mean_and_error, parameters, save
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from suite.datasets import dataset
from torch import Tensor

import ndm
from ndm._internal.random import Drawn
from ndm.data import Data

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.networks.improved_diffusion import GaussianDiffusion

LEVELS, RATE, BATCH, SEED = 1000, 1e-3, 64, 0
NETWORK: dict[str, Any] = {
    "sample_size": 28, "in_channels": 1, "out_channels": 1, "block_out_channels": (16, 32, 32), "layers_per_block": 1,
    "norm_num_groups": 8, "add_attention": False, "down_block_types": ("DownBlock2D",) * 3,
    "up_block_types": ("UpBlock2D",) * 3,
}  # fmt: skip


def pixels_of(x: Tensor) -> Tensor:
    """The pixels 0..255 of images in [-1, 1] at the levels of ndm."""
    return ((x + 1) * 128).floor().long()


def train(data: Data, seconds: float, folder: Path) -> int:
    """Train on DDPM's simple loss for so many CPU seconds, and save the pipeline; returns the number of steps."""
    torch.manual_seed(SEED)
    net, scheduler = UNet2DModel(**NETWORK), DDPMScheduler(LEVELS, variance_type="fixed_small")
    optimizer, images = torch.optim.AdamW(net.parameters(), RATE), pixels_of(data.train)
    began, steps = time.process_time(), 0
    while time.process_time() - began < seconds:
        x = images[torch.randint(len(images), (BATCH,))] / 127.5 - 1
        noise, t = torch.randn_like(x), torch.randint(LEVELS, (BATCH,))
        loss = (net(scheduler.add_noise(x, noise, t), t).sample - noise).square().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        steps += 1
    DDPMPipeline(net, scheduler).save_pretrained(folder)
    return steps


@torch.no_grad()
def compare(folder: Path, x: Tensor) -> dict[str, Any]:
    """The bound of pixels x, integers (B, 1, 28, 28), by both, with the same noise at each of the levels."""
    model, pipeline = ndm.from_diffusers(folder).eval(), DDPMPipeline.from_pretrained(folder)
    about = pipeline.scheduler.config
    theirs = GaussianDiffusion(
        pipeline.scheduler.alphas_cumprod, about.prediction_type, about.variance_type, about.clip_sample, False
    )
    net, pixels = pipeline.unet.double().eval(), x.double() / 127.5 - 1
    steps, scale = LEVELS - 1, 1 / (x[0].numel() * math.log(2))
    expected, generator = theirs.prior(pixels), torch.Generator().manual_seed(SEED)
    found = torch.zeros_like(expected)
    for t in range(LEVELS):
        noise = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        expected += theirs.term(net, pixels, t, noise)
        # Their t = 0 is the decoder, and their t > 0 is this package's step t of N - 1.
        times = torch.full((len(x),), (max(t, 1) - 0.5) / steps)
        terms = model.bound(x, steps, times=times, generator=Drawn([noise, noise]))
        found += (terms.diffusion / steps if t else terms.reconstruction + terms.prior).double() * scale
    return {
        "examples": len(x), "levels": LEVELS, "parameters": parameters(pipeline.unet),
        "ndm": mean_and_error(found), "improved diffusion": mean_and_error(expected),
        "largest relative difference": ((found - expected).abs() / expected).max().item(),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--model", type=Path, metavar="PIPELINE", help="do not train, but read this one")
    parser.add_argument("--seconds", type=float, default=600, help="CPU seconds of training (default: %(default)s)")
    parser.add_argument("--images", type=int, default=16, help="test images (default: %(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    data, trained = dataset("mnist", options.data), {}
    with tempfile.TemporaryDirectory() as folder:
        if options.model is None:
            trained = {"seconds": options.seconds, "steps": train(data, options.seconds, Path(folder))}
        row = compare(options.model or Path(folder), pixels_of(data.test[: options.images]))
    print(row)
    print(save("imported", [row | trained], {"batch_size": BATCH, "learning_rate": RATE, "seed": SEED}))


if __name__ == "__main__":
    main()
