"""Sharding of the denoiser's network: parameters, gradients and optimiser state are divided among the devices.

This uses PyTorch's fully_shard ("FSDP2"; ZeRO stage 3, arXiv 1910.02054): each device keeps an equal part of every
parameter, and a block of the network is gathered just before it is used. All other parameters (transformation,
schedule, variance) are replicated on every device: the network of F is differentiated in forward mode, which does not
call the hooks that gather a block.

Checkpoints are the same as without sharding: full tensors, gathered by all processes and written by the first. A run
can therefore be resumed with another number of devices, or without sharding.
"""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import ModelParallelStrategy, ParallelStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from ndm._internal.distributed import all_reduce, world_size
from ndm.training.module import NDMModule

__all__ = ["Sharded", "ShardedModule"]

#: Containers whose modules are called individually; a module that is never called cannot be gathered.
CONTAINERS = (nn.ModuleList, nn.ModuleDict)


class ShardedModule(NDMModule):
    """NDMModule whose denoiser network is sharded over the processes. The arguments are those of NDMModule.

    The network is replaced by a sharded copy when training starts, and restored at the end with its initial weights;
    the trained ones are in the last checkpoint.
    """

    @contextmanager
    def prepared(self) -> Iterator[None]:
        net = self.model.denoiser.net
        try:
            with super().prepared(), warnings.catch_warnings():
                # Network outputs are not modified in place here, which would remove the hook on them.
                warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
                yield
        finally:
            self.model.denoiser.net = net

    def _compilable(self) -> list[nn.Module]:
        return [net for net in super()._compilable() if net is not self.model.denoiser.net]  # else by blocks

    def configure_model(self) -> None:
        net = self.model.denoiser.net
        assert isinstance(net, nn.Module)
        if isinstance(net, FSDPModule):
            return
        self._make_equal()
        assert self.device_mesh is not None
        self.model.denoiser.net = _shard(copy.deepcopy(net), self.device_mesh["data_parallel"], self.limits.compile)

    @torch.no_grad()
    def _make_equal(self) -> None:
        """Broadcast the weights of the first process: each process then keeps a part of its own."""
        device = self.trainer.strategy.root_device
        for tensor in itertools.chain(self.parameters(), self.buffers()):
            there = tensor.to(device)
            dist.broadcast(there, src=0)
            tensor.copy_(there)

    @torch.no_grad()
    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Average the gradients of replicated parameters over the processes, once per step; FSDP handles the others."""
        _, whole = _gradients(list(self.parameters()))
        if not whole:
            return
        mean = all_reduce(torch.cat([g.flatten() for g in whole])) / world_size()
        for gradient, value in zip(whole, mean.split([g.numel() for g in whole]), strict=True):
            gradient.copy_(value.view_as(gradient))

    @torch.no_grad()
    def _clip(self, parameters: list[nn.Parameter], largest: float) -> Tensor:
        # As nn.utils.clip_grad_norm_, which does not support mixed sharded and replicated parameters.
        parts, whole = _gradients(parameters)
        square = all_reduce(nn.utils.get_total_norm(parts) ** 2) + nn.utils.get_total_norm(whole) ** 2
        norm = square.sqrt()
        torch._foreach_mul_([*parts, *whole], (largest / (norm + 1e-6)).clamp(max=1))
        return norm


def _gradients(parameters: list[nn.Parameter]) -> tuple[list[Tensor], list[Tensor]]:
    """Return the local shards of sharded gradients and the replicated gradients, for in-place changes."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    parts = [g.to_local() for g in gradients if isinstance(g, DTensor)]
    return parts, [g for g in gradients if not isinstance(g, DTensor)]


def _shard(net: nn.Module, mesh: DeviceMesh, compiled: bool) -> nn.Module:
    """Shard a network in place, block by block, so that one block at a time is gathered."""
    lists = (module for module in net.modules() if isinstance(module, nn.ModuleList))
    listed = [module for module in itertools.chain.from_iterable(lists) if isinstance(module, nn.Module)]  # or None
    blocks = [module for module in listed if not isinstance(module, CONTAINERS) and list(module.parameters())]
    # Innermost first, as fully_shard requires; the first module that shards a parameter manages it.
    for block in [*reversed(list(dict.fromkeys(blocks))), net]:
        if compiled and not any(isinstance(inner, FSDPModule) for inner in block.modules()):
            block.forward = torch.compile(block.forward)  # the hooks run outside the compiled function
        # Reshard after a forward pass: otherwise the next one would use the weights from before the optimiser step or
        # before the swap of the averaged weights.
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
    return net


class Sharded(ModelParallelStrategy):
    """Lightning strategy for sharded models, with the same checkpoints as for unsharded ones.

    Args:
        processes: number of processes.
    """

    def __init__(self, processes: int) -> None:
        super().__init__(data_parallel_size=processes, tensor_parallel_size=1, save_distributed_checkpoint=False)

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Return the full weights on the first process, and an empty dictionary on the others."""
        assert self.lightning_module is not None
        return self._gathered(self.lightning_module.state_dict())

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        assert self.lightning_module is not None
        now = self.lightning_module.state_dict()
        weights = {k: _divided(v, now[k]) if k in now else v for k, v in checkpoint["state_dict"].items()}
        self.lightning_module.load_state_dict(weights, strict=strict)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Return the full optimiser state on the first process, and an empty dictionary on the others."""
        state: dict[str, Any] = ParallelStrategy.optimizer_state(self, optimizer)
        each = {i: self._gathered(values) for i, values in state["state"].items()}
        return {**state, "state": each} if self.is_global_zero else {}

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        states = []
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            each = {i: {k: _divided(v, parameters[i]) for k, v in vs.items()} for i, vs in state["state"].items()}
            states.append({**state, "state": each})
        ParallelStrategy.load_optimizer_state_dict(self, {"optimizer_states": states})

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        # Lightning does not pass weights_only to this method.
        return ParallelStrategy.load_checkpoint(self, checkpoint_path, weights_only=True)

    def _gathered(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Gather full tensors in CPU memory; must be called by all processes."""
        found = {}
        for name, value in values.items():
            whole = value.full_tensor().cpu() if isinstance(value, DTensor) else value
            if self.is_global_zero:
                found[name] = whole
        return found


def _divided(value: Any, like: Any) -> Any:
    """Shard a full tensor like ``like``; return other values, or other shapes (step counts), unchanged."""
    if not isinstance(like, DTensor) or not isinstance(value, Tensor) or value.shape != like.shape:
        return value
    value = value.to(like.to_local().device)
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)  # all have the value
