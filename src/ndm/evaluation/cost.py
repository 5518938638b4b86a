"""The cost of a model, in floating-point operations."""

from __future__ import annotations

import torch
from torch import Tensor

from ndm.method.process import frozen
from ndm.method.steps import DiscreteStep
from ndm.model import NDM

__all__ = ["cost"]


@torch.no_grad()
def cost(model: NDM, shape: tuple[int, ...], labels: Tensor | None = None) -> float:
    """Count the floating-point operations of one reverse step of one example."""
    from torch.utils.flop_counter import FlopCounterMode  # loads PyTorch's compiler, which makes a temporary folder

    like = next(iter(model.parameters()), torch.empty(0))
    z = torch.zeros(1, *model.latent_shape(shape), device=like.device, dtype=like.dtype)
    t = z.new_tensor([0.5])
    with FlopCounterMode(display=False) as counter, frozen(model):
        stride = DiscreteStep(model.step(t * 0.8, t, t.long(), None))
        if model.latent is not None:
            labels = model.latent.prior(1, z)
        model.y_hat(z, model.denoiser.estimate(z, stride.level, labels), stride, labels)
    return float(counter.get_total_flops())
