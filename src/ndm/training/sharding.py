"""The denoiser's network divided among the devices: its parameters, their gradients and the optimiser's state.

It is PyTorch's fully_shard ("FSDP2"; the idea is that of ZeRO, arXiv 1910.02054, stage 3): each device keeps an equal
part of every parameter, and a block of the network is put together just before it is used. What else is learned (the
transformation, the schedule, a variance) stays whole on every device: the network of F is differentiated in forward
mode, which does not pass through the hooks that put a block together.

A checkpoint is the same file as without: whole tensors, gathered by all processes and written by the first. So a run
may go on with another number of devices, or undivided.
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

#: Modules that hold others for a network that calls those one by one; what is never called cannot be put together.
CONTAINERS = (nn.ModuleList, nn.ModuleDict)


class ShardedModule(NDMModule):
    """A model in training whose denoiser's network is divided among the processes. The arguments are NDMModule's.

    The network is replaced by a divided copy as training starts, and put back at the end with the weights that it came
    with: the trained ones are in the last checkpoint.
    """

    @contextmanager
    def prepared(self) -> Iterator[None]:
        net = self.model.denoiser.net
        try:
            with super().prepared(), warnings.catch_warnings():
                # A network's output is not changed in place here, which would lose the hook on it.
                warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
                yield
        finally:
            self.model.denoiser.net = net

    def _compilable(self) -> list[nn.Module]:
        return [net for net in super()._compilable() if net is not self.model.denoiser.net]  # in blocks, when divided

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
        """Give every process the first one's weights: each will keep a part of its own."""
        device = self.trainer.strategy.root_device
        for tensor in itertools.chain(self.parameters(), self.buffers()):
            there = tensor.to(device)
            dist.broadcast(there, src=0)
            tensor.copy_(there)

    @torch.no_grad()
    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Average the gradients of what is whole over the processes, once a step: FSDP sees to the others'."""
        _, whole = _gradients(list(self.parameters()))
        if not whole:
            return
        mean = all_reduce(torch.cat([g.flatten() for g in whole])) / world_size()
        for gradient, value in zip(whole, mean.split([g.numel() for g in whole]), strict=True):
            gradient.copy_(value.view_as(gradient))

    @torch.no_grad()
    def _clip(self, parameters: list[nn.Parameter], largest: float) -> Tensor:
        # As nn.utils.clip_grad_norm_, which does not take parameters of both kinds.
        parts, whole = _gradients(parameters)
        square = all_reduce(nn.utils.get_total_norm(parts) ** 2) + nn.utils.get_total_norm(whole) ** 2
        norm = square.sqrt()
        torch._foreach_mul_([*parts, *whole], (largest / (norm + 1e-6)).clamp(max=1))
        return norm


def _gradients(parameters: list[nn.Parameter]) -> tuple[list[Tensor], list[Tensor]]:
    """This process's parts of the divided gradients, and the whole ones, for changing in place."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    parts = [g.to_local() for g in gradients if isinstance(g, DTensor)]
    return parts, [g for g in gradients if not isinstance(g, DTensor)]


def _shard(net: nn.Module, mesh: DeviceMesh, compiled: bool) -> nn.Module:
    """Divide a network in place, block by block, so that one block at a time is whole."""
    lists = (module for module in net.modules() if isinstance(module, nn.ModuleList))
    listed = [module for module in itertools.chain.from_iterable(lists) if isinstance(module, nn.Module)]  # or None
    blocks = [module for module in listed if not isinstance(module, CONTAINERS) and list(module.parameters())]
    # The innermost first, as fully_shard requires; the first to divide a parameter has it.
    for block in [*reversed(list(dict.fromkeys(blocks))), net]:
        if compiled and not any(isinstance(inner, FSDPModule) for inner in block.modules()):
            block.forward = torch.compile(block.forward)  # without the hooks, which run outside it
        # Not left whole after a forward pass: in the next one it would be what it was before the optimiser's step, or
        # before the averaged weights were put in.
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
    return net


class Sharded(ModelParallelStrategy):
    """Lightning's strategy for divided models, with checkpoints like those of a model that is not.

    Args:
        processes: how many the network is divided among.
    """

    def __init__(self, processes: int) -> None:
        super().__init__(data_parallel_size=processes, tensor_parallel_size=1, save_distributed_checkpoint=False)

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The weights, whole; nothing in other processes than the first."""
        assert self.lightning_module is not None
        return self._gathered(self.lightning_module.state_dict())

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        assert self.lightning_module is not None
        now = self.lightning_module.state_dict()
        weights = {k: _divided(v, now[k]) if k in now else v for k, v in checkpoint["state_dict"].items()}
        self.lightning_module.load_state_dict(weights, strict=strict)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The optimiser's state, whole; nothing in other processes than the first."""
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
        # Lightning does not pass on to here that nothing in the file may be executed.
        return ParallelStrategy.load_checkpoint(self, checkpoint_path, weights_only=True)

    def _gathered(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The same with whole tensors in the computer's memory; all processes have to come here."""
        found = {}
        for name, value in values.items():
            whole = value.full_tensor().cpu() if isinstance(value, DTensor) else value
            if self.is_global_zero:
                found[name] = whole
        return found


def _divided(value: Any, like: Any) -> Any:
    """A whole tensor, divided as ``like`` is; anything else, or of another shape (a count of steps), as it is."""
    if not isinstance(like, DTensor) or not isinstance(value, Tensor) or value.shape != like.shape:
        return value
    value = value.to(like.to_local().device)
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)  # all have read it
