"""LightningModule: training and validation steps, logged terms of the bound, optimiser."""

from __future__ import annotations

import importlib
import itertools
import math
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import Timer
from torch import Tensor, nn
from torch.optim import Optimizer

from ndm._internal.distributed import all_gather
from ndm._internal.random import Share, seed_of
from ndm.inference.dynamics import curvature
from ndm.method.conditionals import random_states
from ndm.method.mixed_denoiser import MixedDenoiser
from ndm.method.noise import DimensionNoise
from ndm.method.transforms import Neural
from ndm.model import NDM
from ndm.training.batches import DROPOUT, NOISE, VALIDATION, Batch, InOrder
from ndm.training.lean import skip_empty_hooks
from ndm.training.options import TrainerOptions, TrainingOptions

__all__ = ["METRICS", "NDMModule", "NonFiniteLoss", "Validation", "with_error"]

TERMS = ("diffusion", "prior", "reconstruction")

#: All logged metrics. The bound and its terms are in bits per dimension for K-level data, else in nats.
METRICS = (
    "train/total",
    *(f"train/{term}" for term in TERMS),
    "train/auxiliary",
    "train/curvature",  # unweighted penalty, if used
    "train/gradient_norm",
    "train/learning_rate",
    "train/gamma_0",  # end points of the schedule after the step, if learned
    "train/gamma_1",
    "train/ms_per_step",
    "train/examples_per_second",
    "train/memory_gib",
    "val/total",
    "val/total_stderr",
    *(f"val/{term}" for term in TERMS),
)


class Validation(NamedTuple):
    """The bound of every validation example.

    Attributes:
        step: the training step.
        totals: bound of each example, (N,), in :attr:`NDMModule.unit`.
    """

    step: int
    totals: Tensor

    @property
    def error(self) -> float:
        """The standard error of the mean; NaN for one example."""
        return self.totals.std().item() / math.sqrt(len(self.totals)) if len(self.totals) > 1 else math.nan

    def below(self, other: Validation) -> tuple[float, float]:
        """Return how much lower this mean is than another, and the standard error of the paired difference.

        Both use the same times and noise, so the difference is much less noisy than either mean.
        """
        gain = other.totals - self.totals
        error = gain.std() / math.sqrt(len(gain)) if len(gain) > 1 else gain.new_tensor(math.nan)
        return gain.mean().item(), error.item()


def with_error(value: float, error: float, digits: int) -> str:
    """Format a value with its standard error, if available."""
    return f"{value:.{digits}f}" + ("" if math.isnan(error) else f" +- {error:.{digits}f}")


class NonFiniteLoss(RuntimeError):  # noqa: N818 - the name states the problem
    """The loss or the gradient is NaN or infinite, so training cannot continue."""


class NDMModule(LightningModule):
    """LightningModule of a model. The loss is the bound, (total + auxiliary) / (d log 2), averaged over the batch.

    With ``training.curvature`` it is (total + auxiliary + weight * curvature) / (d log 2); see :func:`ndm.curvature`.

    The times and the noise of a step depend only on the seed and the step, and those of a validation only on the seed.
    A resumed run therefore gives the same results. A run on other devices differs only by rounding (and by dropout,
    whose random numbers depend on the device). The validation curve only changes through learning.

    Args:
        model: the model to train.
        training: training options.
        trainer: trainer options; the learning rate depends on the length.
        seed: seed of times, noise and dropout.
        timer: provides the elapsed time, if it is limited.

    Raises:
        ValueError: ``training.curvature`` is used with a model without ODE, or with compiled or sharded networks.
    """

    def __init__(
        self,
        model: NDM,
        training: TrainingOptions | None = None,
        trainer: TrainerOptions | None = None,
        seed: int = 0,
        timer: Timer | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.options = training or TrainingOptions()
        self.limits = trainer or TrainerOptions()
        self.seed = seed
        self.timer = timer
        skip_empty_hooks([self])
        self._check_curvature()
        self._validated: list[tuple[Tensor, Tensor]] = []  # values of the terms, indices of the examples
        self._pieces: list[dict[str, Tensor]] = []  # terms of the processed pieces of the current batch
        self._due = False  # whether this step is logged: reading the values in every step would be slow
        self.validations: list[Validation] = []  # of this session, in order
        self._durations: deque[float] = deque(maxlen=self.limits.log_every_n_steps * self.limits.accumulate)

    def _check_curvature(self) -> None:
        if not self.options.curvature:
            return
        if not self.model.has_ode:
            raise ValueError(
                "training.curvature needs a reverse ODE, which a DirectDenoiser only has with ode=True, one more "
                "head of its network and no noise of x: change these, or use Denoiser."
            )
        if self.limits.compile or self.limits.strategy == "fsdp":
            raise ValueError(
                "training.curvature needs second derivatives, which compiled networks do not support and which are "
                "untested for sharded networks: leave out trainer.compile and trainer.strategy=fsdp."
            )

    @property
    def unit(self) -> str:
        """Unit of the logged bounds."""
        return "nats" if self.model.decoder.levels is None else "bits/dim"

    def _in_unit(self, nats: Tensor, dimensions: int) -> Tensor:
        return nats if self.model.decoder.levels is None else nats / (dimensions * math.log(2))

    # ---- before and after

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """Compile the networks if requested, and restore them at the end."""
        with ExitStack() as undo:
            for net in self._compilable() if self.limits.compile else []:
                undo.enter_context(_compiled(net))
            yield

    def _compilable(self) -> list[nn.Module]:
        """Return the networks that only need reverse-mode derivatives."""
        transform = self.model.transform
        in_forward_mode = isinstance(transform, Neural) and self.options.steps is None
        parts = [self.model.denoiser, *([] if in_forward_mode else [transform])]
        nets = [getattr(part, "net", None) for part in parts]
        return [net for net in nets if isinstance(net, nn.Module)]

    # ---- training

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        self._started = time.perf_counter()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        # Only dropout uses the global generator. It is seeded per share.
        self._seed_dropout(seed_of(self.seed, DROPOUT, self.global_step, batch.rows.start))
        generator = self._generator(NOISE, self.global_step)
        share = Share(generator, batch.rows, batch.total)
        labels = self._some_forgotten(batch.labels, share)
        states = self._random_states(batch, share)
        terms = self.model.bound(
            batch.x, self.options.steps, labels=labels, generator=share, check=False, states=states
        )
        loss = (terms.total + terms.auxiliary).mean() / (terms.dimensions * math.log(2))
        values = {name: getattr(terms, name).detach() for name in (*TERMS, "auxiliary")}
        if self.options.curvature:
            bend = curvature(self.model, batch.x, labels=labels, generator=share, check=False)
            loss = loss + self.options.curvature * bend.mean() / (terms.dimensions * math.log(2))
            values["curvature"] = bend.detach()
        self._due = (self.global_step + 1) % self.limits.log_every_n_steps == 0
        self._pieces.append(values)
        if len(self._pieces) == self.limits.accumulate and self._due:
            self._log_step(terms.dimensions)
        return loss

    def _seed_dropout(self, seed: int) -> None:
        if self.device.type == "cpu":  # torch.manual_seed also formats three stack traces, for devices not in use
            torch.default_generator.manual_seed(seed)
        else:
            torch.manual_seed(seed)

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        if batch.x.device == device:
            return batch
        labels = None if batch.labels is None else batch.labels.to(device, non_blocking=True)
        return batch._replace(x=batch.x.to(device, non_blocking=True), labels=labels)

    def _generator(self, *numbers: int) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(seed_of(self.seed, *numbers))

    def _random_states(self, batch: Batch, share: Share) -> Tensor | None:
        """Random states of the columns, (B, C), if the network is trained for every conditional."""
        denoiser = self.model.denoiser
        if not (isinstance(denoiser, MixedDenoiser) and denoiser.conditionals == "any"):
            return None
        return random_states(share.total, len(denoiser.parts), share.generator)[share.rows].to(batch.x.device)

    def _some_forgotten(self, labels: Tensor | None, share: Share) -> Tensor | None:
        """Replace some labels by the "no class" label, for classifier-free guidance (arXiv 2207.12598)."""
        if labels is None or not self.options.label_dropout:
            return labels
        u = torch.rand(share.total, generator=share.generator, device=share.generator.device)[share.rows]
        none = torch.full_like(labels, self.model.denoiser.net.classes)  # type: ignore[union-attr, arg-type]
        return torch.where(u.to(labels.device) < self.options.label_dropout, none, labels)

    def _log_step(self, dimensions: int) -> None:
        parts = {name: torch.cat([piece[name] for piece in self._pieces]) for name in self._pieces[0]}
        parts["total"] = sum((parts[name] for name in TERMS), torch.zeros(()).to(parts["auxiliary"]))
        for name, values in parts.items():
            value = values.mean() if name == "curvature" else self._in_unit(values.mean(), dimensions)
            self.log(f"train/{name}", value, prog_bar=name == "total", sync_dist=self.trainer.world_size > 1)
        self.log("train/learning_rate", self.optimizers().param_groups[0]["lr"])  # type: ignore[union-attr]
        self.log("step", float(self.global_step + 1))  # Lightning counts logged steps from 0

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the norm of the gradient; a non-finite norm ends the training before the weights are updated."""
        # The optimiser has a list of the parameters; iterating over all modules in each step is slow.
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = self._clip(parameters, gradient_clip_val or math.inf)
        # The only device synchronization in a step.
        if not torch.isfinite(norm):
            raise NonFiniteLoss(self._what_is_not_finite() + f" at training step {self.global_step}")
        if self._due:
            self.log("train/gradient_norm", norm)

    def _clip(self, parameters: list[nn.Parameter], largest: float) -> Tensor:
        """Scale the gradient down to the maximum norm, and return its norm before."""
        return nn.utils.clip_grad_norm_(parameters, largest)

    def _what_is_not_finite(self) -> str:
        names = [n for n in self._pieces[0] if not all(torch.isfinite(p[n]).all() for p in self._pieces)]
        if names == ["curvature"]:
            return "the curvature is not finite"
        return f"the bound is not finite ({', '.join(names)})" if names else "the gradient is not finite"

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        self._durations.append(time.perf_counter() - self._started)
        if len(self._pieces) < self.limits.accumulate:
            return
        self._pieces.clear()
        if self._due:
            seconds = self.limits.accumulate * sum(self._durations) / len(self._durations)
            self.log("train/ms_per_step", 1000 * seconds)
            self.log("train/examples_per_second", batch.total / seconds)
            self.log("train/memory_gib", _peak_memory(self.device) / 2**30)
            if getattr(self.model.schedule, "learn_endpoints", False):
                for name, gamma in zip(("gamma_0", "gamma_1"), self.model.schedule.end_points(), strict=True):
                    self.log(f"train/{name}", gamma)
        if self.global_step == self.limits.max_steps:
            self.trainer.should_stop = True  # unlike the regular end, a stop triggers a validation

    # ---- validation

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        share = Share(self._generator(VALIDATION, batch_idx), batch.rows, batch.total)
        places = torch.arange(batch.start, batch.start + batch.total)[batch.rows]
        if len(places) == 0:  # a placeholder example, so that all devices call the networks
            share = Share(share.generator, slice(0, 1), batch.total)
        terms = self.model.bound(batch.x, self.options.steps, labels=batch.labels, generator=share, check=False)
        values = torch.stack([getattr(terms, name) for name in (*TERMS, "auxiliary")], dim=1)
        self._validated.append((values[: len(places)], places))
        self._dimensions = terms.dimensions

    def on_validation_epoch_end(self) -> None:
        values, places = (torch.cat(pieces) for pieces in zip(*self._validated, strict=True))
        self._validated.clear()
        loader = self.trainer.val_dataloaders
        assert isinstance(loader, InOrder)
        values = self._in_unit(all_gather(values, places, len(loader.places)), self._dimensions)
        values = values.unflatten(0, (loader.repeats, -1)).mean(0)
        total = values[:, : len(TERMS)].sum(1)
        if not torch.isfinite(values).all():
            finite = torch.isfinite(values).all(0).tolist()
            names = [name for name, good in zip((*TERMS, "auxiliary"), finite, strict=True) if not good]
            raise NonFiniteLoss(
                f"the bound is not finite ({', '.join(names)}) at the validation after step {self.global_step}"
            )
        self.log("val/total", total.mean(), prog_bar=True)
        validation = Validation(self.global_step, total.cpu())
        if len(total) > 1:
            self.log("val/total_stderr", validation.error)
        for name, mean in zip(TERMS, values.mean(0), strict=False):
            self.log(f"val/{name}", mean)
        self.log("step", float(self.global_step))
        self.validations.append(validation)

    # ---- the optimiser

    def configure_optimizers(self) -> Any:
        # Sharded and unsharded parameters cannot be updated in one call. The groups are the same without sharding, so
        # that a run can be resumed either way.
        network = {id(p) for p in getattr(self.model.denoiser, "net", nn.Identity()).parameters()}
        # They do not depend on the learning rates, so that a run can be resumed with others.
        noise = self.model.noise
        path = (part for part in (self.model.transform, noise, self.model.latent) if part is not None)
        own = {id(p): "transform" for part in path for p in part.parameters()}
        of_schedules = {id(p) for p in noise.parameters()} if isinstance(noise, DimensionNoise) else set()
        own |= {id(p): "end points" for p in self.model.schedule.endpoint_parameters()}
        rates = {"": 1.0, "transform": self.options.transform_rate, "end points": self.options.endpoint_rate}
        groups: list[dict[str, Any]] = []
        for divided, (kind, rate) in itertools.product((True, False), rates.items()):
            parameters = [
                p
                for p in self.parameters()
                if p.requires_grad and (id(p) in network) is divided and own.get(id(p), "") == kind
            ]
            # No decay for biases, gains and the parameters of the schedules: their scale is meaningful.
            matrices = [p for p in parameters if p.ndim >= 2 and id(p) not in of_schedules]
            others = [p for p in parameters if p.ndim < 2 or id(p) in of_schedules]
            here = {"lr": self.options.learning_rate * rate}
            for some, decay in ((matrices, self.options.weight_decay), (others, 0.0)):
                groups.append({"params": some, "weight_decay": decay, **here})
        groups, betas = [g for g in groups if g["params"]], (0.9, self.options.beta2)
        self._asked = [{"lr": g["lr"], "weight_decay": g["weight_decay"], "betas": betas} for g in groups]
        optimizer = torch.optim.AdamW(
            groups,
            lr=self.options.learning_rate,
            betas=betas,
            fused=True if self.device.type in ("cpu", "cuda") else None,
        )
        # A function, not a bound method: schedulers save the attributes of other callables.
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self.rate(step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_train_start(self) -> None:
        """Replace the rates, decay and betas of the checkpoint by those of this session."""
        optimizer, scheduler = self.optimizers(), self.lr_schedulers()
        now = self.rate(self.global_step)
        for group, asked in zip(optimizer.param_groups, self._asked, strict=True):  # type: ignore[union-attr]
            group.update(asked, lr=asked["lr"] * now, initial_lr=asked["lr"])
        scheduler.base_lrs = [asked["lr"] for asked in self._asked]  # type: ignore[union-attr]

    def rate(self, step: int) -> float:
        """Learning rate at a step in units of ``learning_rate``: warm-up, then cosine or constant."""
        rise = min(1.0, (step + 1) / max(self.options.warmup, 1))
        if self.options.rate == "constant":
            return rise
        return rise * (1 + math.cos(math.pi * self._progress(step))) / 2

    def _progress(self, step: int) -> float:
        """Completed fraction of the training, 0 to 1: the maximum over steps and time."""
        most = self.limits.max_steps
        by_steps = step / most if isinstance(most, int) else 0.0
        by_time = 0.0
        if self.timer is not None and self.limits.max_time:
            by_time = self.timer.time_elapsed() / self.limits.max_time
        return min(1.0, max(by_steps, by_time))


@contextmanager
def _compiled(net: nn.Module) -> Iterator[None]:
    """Compile a network, and restore it at the end: forward-mode derivatives do not support compilation.

    The compiled ``forward`` is an instance attribute that is removed again. (``nn.Module.compile`` is permanent.)
    """
    net.forward = torch.compile(net.forward)
    try:
        yield
    finally:
        del net.forward


def _peak_memory(device: torch.device) -> int:
    """Peak memory in bytes: GPU memory allocated by PyTorch, or resident memory of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return 0  # not available in its standard library
    resource = importlib.import_module("resource")
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
