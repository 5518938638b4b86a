"""Lightning's trainer, the processes, and the description of the machine."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import logging
import math
import platform
import warnings
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy, Strategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

import ndm
from ndm.model import NDM
from ndm.training.callbacks import AtomicCheckpoints
from ndm.training.lean import NoProfiler, skip_empty_hooks
from ndm.training.metrics import MetricsFile
from ndm.training.options import TrainerOptions, places
from ndm.training.run import Run

__all__ = ["environment", "lightning_trainer", "processes", "quiet", "sharding_for", "strategy_for"]


def lightning_trainer(
    run: Run, options: TrainerOptions, called: list[Callback], first: int, strategy: str | Strategy
) -> Trainer:
    assert isinstance(options.val_check_interval, int)
    assert options.max_steps != "auto"
    devices, num_nodes = places(options.devices, options.num_nodes)
    loggers: list[Logger] = [MetricsFile(run.metrics, first)]
    if importlib.util.find_spec("tensorboard"):
        loggers.append(TensorBoardLogger(run.path, name=run.tensorboard.name, version=""))
    skip_empty_hooks(called)
    try:
        with quiet():
            return Trainer(
                accelerator=options.accelerator,
                devices=devices,
                num_nodes=num_nodes,
                strategy=strategy,
                plugins=[AtomicCheckpoints()],
                accumulate_grad_batches=options.accumulate,
                precision=options.precision,
                gradient_clip_val=options.gradient_clip_val,
                log_every_n_steps=options.log_every_n_steps,
                val_check_interval=options.val_check_interval * options.accumulate,  # counts batches
                check_val_every_n_epoch=None,  # the interval is in steps, not epochs
                max_steps=-1 if options.max_steps is None else options.max_steps,
                max_epochs=-1,
                num_sanity_val_steps=0,
                enable_progress_bar=False,  # Bar is used instead
                enable_model_summary=False,
                use_distributed_sampler=False,  # Stream distributes the batches
                logger=loggers,
                callbacks=called,
                profiler=NoProfiler(),
            )
    except (MisconfigurationException, RuntimeError) as error:
        raise ValueError(
            f"trainer.accelerator={options.accelerator} with devices={options.devices} and "
            f"precision={options.precision} is not available: {error}"
        ) from None


def processes(options: TrainerOptions) -> int:
    return math.prod(places(options.devices, options.num_nodes))


def strategy_for(options: TrainerOptions, unused: bool) -> str | Strategy:
    if processes(options) == 1:
        return "auto"
    return DDPStrategy(find_unused_parameters=unused, gradient_as_bucket_view=True)


def sharding_for(model: NDM, options: TrainerOptions) -> ModuleType | None:
    """Return :mod:`ndm.training.sharding` if the denoiser's network is sharded over several processes, else None.

    Raises:
        ImportError: the PyTorch version does not support it.
        ValueError: sharding is incompatible with other options or with this denoiser.
    """
    if options.strategy != "fsdp" or processes(options) == 1:
        return None
    if not isinstance(getattr(model.denoiser, "net", None), nn.Module):
        raise ValueError(
            f"trainer.strategy=fsdp shards the denoiser's net, but {type(model.denoiser).__name__} has none: use ddp."
        )
    if options.precision == "64-true":
        raise ValueError("trainer.strategy=fsdp supports the precisions 32-true and bf16-mixed; use ddp for 64-true.")
    if options.channels_last:
        raise ValueError("trainer.channels_last cannot be combined with trainer.strategy=fsdp; choose one of the two.")
    try:
        return importlib.import_module("ndm.training.sharding")
    except ImportError as error:
        raise ImportError(f"trainer.strategy=fsdp needs PyTorch 2.6 or newer, this is {torch.__version__}.") from error


def environment(trainer: Trainer, options: TrainerOptions, command: str | None) -> dict[str, Any]:
    """Describe the machine, without its host name: see :meth:`ndm.training.run.Run.write_environment`."""
    facts = {
        "ndm": ndm.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "device": _name(trainer.strategy.root_device),
        "devices": trainer.world_size,
        "threads": torch.get_num_threads(),
        "precision": options.precision,
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    return facts if command is None else facts | {"command": command}


def _name(device: torch.device) -> str:
    """Return the vendor's name of a device, if known."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type
    with contextlib.suppress(OSError):  # on Linux; contains the name on most processors
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress Lightning's general messages (devices, workers, tips)."""
    names = ("lightning.pytorch", "lightning.fabric")
    before = [logging.getLogger(name).level for name in names]
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning\..*")
            yield
    finally:
        for name, level in zip(names, before, strict=True):
            logging.getLogger(name).setLevel(level)
