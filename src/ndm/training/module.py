"""What happens in a training step and in a validation: the bound, its terms in the log, the optimiser."""

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
from ndm.method.transforms import Neural
from ndm.model import NDM
from ndm.training.batches import DROPOUT, NOISE, VALIDATION, Batch, InOrder
from ndm.training.options import TrainerOptions, TrainingOptions

__all__ = ["METRICS", "NDMModule", "NonFiniteLoss", "Validation", "with_error"]

TERMS = ("diffusion", "prior", "reconstruction")

#: Every number that a training logs. The bound and its terms are in bits per dimension for K-level data, else in nats.
METRICS = (
    "train/total",
    *(f"train/{term}" for term in TERMS),
    "train/auxiliary",
    "train/curvature",  # the penalty without its weight, where it is trained on
    "train/gradient_norm",
    "train/learning_rate",
    "train/gamma_0",  # the schedule's end points after the step, where they are learned
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
        step: after which step.
        totals: (N,), in :attr:`NDMModule.unit`.
    """

    step: int
    totals: Tensor

    @property
    def error(self) -> float:
        """The standard error of the mean; NaN of one example."""
        return self.totals.std().item() / math.sqrt(len(self.totals)) if len(self.totals) > 1 else math.nan

    def below(self, other: Validation) -> tuple[float, float]:
        """How much lower this validation's mean is than another's, and the standard error of the paired difference.

        The times and the noise of both are the same, so that the difference is far less noisy than either mean.
        """
        gain = other.totals - self.totals
        error = gain.std() / math.sqrt(len(gain)) if len(gain) > 1 else gain.new_tensor(math.nan)
        return gain.mean().item(), error.item()


def with_error(value: float, error: float, digits: int) -> str:
    """A figure and its standard error, which is left out where there is none."""
    return f"{value:.{digits}f}" + ("" if math.isnan(error) else f" +- {error:.{digits}f}")


class NonFiniteLoss(RuntimeError):  # noqa: N818 - it reads as what happened
    """A loss or a gradient is NaN or infinite: the model can no longer be trained from here."""


class NDMModule(LightningModule):
    """A model in training. The loss is the whole bound, (total + auxiliary) / (d log 2), averaged over the batch.

    With ``training.curvature`` it is (total + auxiliary + weight * curvature) / (d log 2); see :func:`ndm.curvature`.

    The times and the noise of a step are a function of the seed and the step, and those of a validation of the seed
    alone: a resumed run is the same run, one on other devices is the same but for rounding (and for dropout, whose
    numbers belong to the device), and the validation curve moves by what was learned only.

    Args:
        model: the model to train.
        training: how.
        trainer: for how long, which the learning rate depends on.
        seed: of times, noise and dropout.
        timer: tells the time that has passed, where there is a limit on it.

    Raises:
        ValueError: ``training.curvature`` is asked of a model without an ODE, or of networks that are compiled or
            divided.
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
        self._check_curvature()
        self._validated: list[tuple[Tensor, Tensor]] = []  # values of the terms and the places of the examples
        self._pieces: list[dict[str, Tensor]] = []  # the terms of what has been seen of the batch of a step
        self._due = False  # whether this step is logged: Lightning would ask for the numbers of every step, at a cost
        self.validations: list[Validation] = []  # of this session, in their order
        self._durations: deque[float] = deque(maxlen=self.limits.log_every_n_steps * self.limits.accumulate)

    def _check_curvature(self) -> None:
        if not self.options.curvature:
            return
        if not self.model.has_ode:
            raise ValueError(
                "training.curvature is about the paths of the reverse ODE, and a DirectDenoiser has one only with "
                "ode=True, whose network has one more head; set it, or use Denoiser."
            )
        if self.limits.compile or self.limits.strategy == "fsdp":
            raise ValueError(
                "training.curvature needs second derivatives of the networks, which compiled networks do not have and "
                "divided ones were not tried with; leave out trainer.compile and trainer.strategy=fsdp."
            )

    @property
    def unit(self) -> str:
        """What the logged bounds are in."""
        return "nats" if self.model.decoder.levels is None else "bits/dim"

    def _in_unit(self, nats: Tensor, dimensions: int) -> Tensor:
        return nats if self.model.decoder.levels is None else nats / (dimensions * math.log(2))

    # ---- before and after

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """Have the networks compiled, where that is asked for, and at the end as they were."""
        with ExitStack() as undo:
            for net in self._compilable() if self.limits.compile else []:
                undo.enter_context(_compiled(net))
            yield

    def _compilable(self) -> list[nn.Module]:
        """The networks that are differentiated in reverse mode alone."""
        transform = self.model.transform
        in_forward_mode = isinstance(transform, Neural) and self.options.steps is None
        parts = [self.model.denoiser, *([] if in_forward_mode else [transform])]
        nets = [getattr(part, "net", None) for part in parts]
        return [net for net in nets if isinstance(net, nn.Module)]

    # ---- training

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        self._started = time.perf_counter()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        # The global generator is dropout's alone. Its numbers belong to the share: that of a batch is not known here.
        torch.manual_seed(seed_of(self.seed, DROPOUT, self.global_step, batch.rows.start))
        generator = self._generator(NOISE, self.global_step)
        share = Share(generator, batch.rows, batch.total)
        labels = self._some_forgotten(batch.labels, share)
        terms = self.model.bound(batch.x, self.options.steps, labels=labels, generator=share, check=False)
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

    def _generator(self, *numbers: int) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(seed_of(self.seed, *numbers))

    def _some_forgotten(self, labels: Tensor | None, share: Share) -> Tensor | None:
        """The labels, some of them replaced by that for "no class", for classifier-free guidance (arXiv 2207.12598)."""
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
        self.log("step", float(self.global_step + 1))  # Lightning's own count of a logged step starts at 0

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the gradient's norm. One that is not finite ends the training before it can reach the weights."""
        # The optimiser has a list of the parameters; to go through all modules for them takes time in a step.
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = self._clip(parameters, gradient_clip_val or math.inf)
        # The one look at a number of a step: each makes the computer wait for the device.
        if not torch.isfinite(norm):
            raise NonFiniteLoss(self._what_is_not_finite() + f" at training step {self.global_step}")
        if self._due:
            self.log("train/gradient_norm", norm)

    def _clip(self, parameters: list[nn.Parameter], largest: float) -> Tensor:
        """Shrink the gradient to the largest norm where it is above, and return the norm that it had."""
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
            self.trainer.should_stop = True  # a stop is preceded by a validation, whatever the interval; an end is not

    # ---- validation

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        share = Share(self._generator(VALIDATION, batch_idx), batch.rows, batch.total)
        places = torch.arange(batch.start, batch.start + batch.total)[batch.rows]
        if len(places) == 0:  # an example lent so that all devices call the networks
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
        # Where the denoiser's network is divided among devices, its parameters cannot be updated in one call with those
        # that are not. The groups are the same where it is whole, so that a run can go on either way.
        network = {id(p) for p in getattr(self.model.denoiser, "net", nn.Identity()).parameters()}
        # And they are the same whatever the rates are, so that a run can go on with others.
        own = {id(p): "transform" for p in self.model.transform.parameters()}
        own |= {id(p): "end points" for p in self.model.schedule.endpoint_parameters()}
        rates = {"": 1.0, "transform": self.options.transform_rate, "end points": self.options.endpoint_rate}
        groups: list[dict[str, Any]] = []
        for divided, (kind, rate) in itertools.product((True, False), rates.items()):
            parameters = [
                p
                for p in self.parameters()
                if p.requires_grad and (id(p) in network) is divided and own.get(id(p), "") == kind
            ]
            matrices = [p for p in parameters if p.ndim >= 2]
            # Biases, gains and the schedule's few numbers have a scale that means something: no decay.
            others = [p for p in parameters if p.ndim < 2]
            here = {"lr": self.options.learning_rate * rate}
            groups.append({"params": matrices, "weight_decay": self.options.weight_decay, **here})
            groups.append({"params": others, "weight_decay": 0.0, **here})
        groups = [g for g in groups if g["params"]]
        betas = (0.9, self.options.beta2)
        self._asked = [{"lr": g["lr"], "weight_decay": g["weight_decay"], "betas": betas} for g in groups]
        optimizer = torch.optim.AdamW(
            groups,
            lr=self.options.learning_rate,
            betas=betas,
            fused=True if self.device.type in ("cpu", "cuda") else None,
        )
        # A function, not a bound method: a scheduler saves the attributes of any other callable.
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self.rate(step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_train_start(self) -> None:
        """Put this session's rates, decay and betas in place of those that came with a checkpoint."""
        optimizer, scheduler = self.optimizers(), self.lr_schedulers()
        now = self.rate(self.global_step)
        for group, asked in zip(optimizer.param_groups, self._asked, strict=True):  # type: ignore[union-attr]
            group.update(asked, lr=asked["lr"] * now, initial_lr=asked["lr"])
        scheduler.base_lrs = [asked["lr"] for asked in self._asked]  # type: ignore[union-attr]

    def rate(self, step: int) -> float:
        """The learning rate at a step in units of ``learning_rate``: warm-up, then cosine or constant."""
        rise = min(1.0, (step + 1) / max(self.options.warmup, 1))
        if self.options.rate == "constant":
            return rise
        return rise * (1 + math.cos(math.pi * self._progress(step))) / 2

    def _progress(self, step: int) -> float:
        """The part of the training that is done, 0 to 1, by the steps or by the clock, whichever is farther."""
        most = self.limits.max_steps
        by_steps = step / most if isinstance(most, int) else 0.0
        by_time = 0.0
        if self.timer is not None and self.limits.max_time:
            by_time = self.timer.time_elapsed() / self.limits.max_time
        return min(1.0, max(by_steps, by_time))


@contextmanager
def _compiled(net: nn.Module) -> Iterator[None]:
    """Let a network run compiled; at the end it is itself again, for what cannot be: derivatives in forward mode.

    An instance's ``forward`` hides that of its class, and is taken away again. (``nn.Module.compile`` is for good.)
    """
    net.forward = torch.compile(net.forward)
    try:
        yield
    finally:
        del net.forward


def _peak_memory(device: torch.device) -> int:
    """Bytes: what PyTorch has taken of a GPU at most, or what the process has had of the computer's memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return 0  # its standard library does not tell
    resource = importlib.import_module("resource")
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
