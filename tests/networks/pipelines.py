"""Small networks of diffusers with outputs that are not zero, and pipelines of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

N = 20
SIZE = 8


def unet(channels: int = 3, heads: int = 1, **options: Any) -> UNet2DModel:
    """An untrained network whose parameters are shaken, in training mode as diffusers builds it."""
    torch.manual_seed(0)
    arguments = {
        "sample_size": SIZE,
        "in_channels": channels,
        "out_channels": heads * channels,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "norm_num_groups": 4,
        "attention_head_dim": 8,
    }
    net = UNet2DModel(**(arguments | options))
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return net


def ddpm(**options: Any) -> DDPMScheduler:
    return DDPMScheduler(**({"num_train_timesteps": N, "beta_start": 1e-3, "beta_end": 0.3} | options))


def saved(folder: Path, net: UNet2DModel | None = None, scheduler: Any = None, **options: Any) -> Path:
    DDPMPipeline(net or unet(), scheduler or ddpm()).save_pretrained(folder, **options)
    return folder


def pixels(count: int = 3, channels: int = 3, seed: int = 5) -> torch.Tensor:
    """Smooth images, 0..255, with both of these values."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, channels, 2, 2, generator=generator)
    fine = torch.nn.functional.interpolate(coarse, size=(SIZE, SIZE), mode="bilinear")
    x = (fine * 255).round().long()
    x[:, :, 0, 0], x[:, :, 0, 1] = 0, 255
    return x
