"""What happens in a training step and in a validation: the bound, its terms in the log, the optimiser."""

from __future__ import annotations

import math
import time
from collections import deque
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import Timer
from torch import Tensor, nn
from torch.optim import Optimizer

from ndm.bounds import BoundTerms
from ndm.model import NDM
from ndm.training.batches import Batch, seed_of
from ndm.training.options import TrainerOptions, TrainingOptions

__all__ = ["METRICS", "NDMModule", "NonFiniteLoss"]

TERMS = ("diffusion", "prior", "reconstruction")

#: Every number that a training logs. The bound and its terms are in bits per dimension for K-level data, else in nats.
METRICS = (
    "train/total",
    *(f"train/{term}" for term in TERMS),
    "train/auxiliary",
    "train/gradient_norm",
    "train/learning_rate",
    "train/ms_per_step",
    "val/total",
    "val/total_stderr",
    *(f"val/{term}" for term in TERMS),
)


class NonFiniteLoss(RuntimeError):  # noqa: N818 - it reads as what happened
    """A loss or a gradient is NaN or infinite: the model can no longer be trained from here."""


class NDMModule(LightningModule):
    """A model in training. The loss is the whole bound, (total + auxiliary) / (d log 2), averaged over the batch.

    The random numbers of a step are a function of the seed, the step and the device, and those of a validation of the
    seed alone: a resumed run is the same run, and the validation curve moves by what was learned only.

    Args:
        model: the model to train.
        training: how.
        trainer: for how long, which the learning rate depends on.
        seed: of times, noise and dropout.
        timer: tells the time that has passed, where there is a limit on it.
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
        self._validated: list[BoundTerms] = []
        self._due = False  # whether this step is logged: Lightning would ask for the numbers of every step, at a cost
        self._durations: deque[float] = deque(maxlen=self.limits.log_every_n_steps)

    @property
    def unit(self) -> str:
        """What the logged bounds are in."""
        return "nats" if self.model.decoder.levels is None else "bits/dim"

    def _in_unit(self, nats: Tensor, dimensions: int) -> Tensor:
        return nats if self.model.decoder.levels is None else nats / (dimensions * math.log(2))

    # ---- training

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        self._started = time.perf_counter()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        # The global generator, and not one of our own, so that dropout too is a function of the step.
        torch.manual_seed(seed_of(self.seed, self.global_step, self.global_rank))
        x, labels = batch[0], batch[1] if len(batch) == 2 else None
        terms = self.model.bound(x, self.options.steps, labels=labels, check=False)
        loss = (terms.total + terms.auxiliary).mean() / (terms.dimensions * math.log(2))
        if not torch.isfinite(loss):
            raise self._not_finite(terms, f"training step {self.global_step}")
        self._due = (self.global_step + 1) % self.limits.log_every_n_steps == 0
        if self._due:
            self._log_step(terms)
        return loss

    def _log_step(self, terms: BoundTerms) -> None:
        for name in ("total", *TERMS, "auxiliary"):
            value = self._in_unit(getattr(terms, name).detach().mean(), terms.dimensions)
            self.log(f"train/{name}", value, prog_bar=name == "total")
        self.log("train/learning_rate", self.optimizers().param_groups[0]["lr"])  # type: ignore[union-attr]
        self.log("step", float(self.global_step + 1))  # Lightning's own count of a logged step starts at 0

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the gradient's norm. One that is not finite ends the training before it can reach the weights."""
        norm = nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val or math.inf)
        if not torch.isfinite(norm):
            raise NonFiniteLoss(f"the gradient is not finite at training step {self.global_step}")
        if self._due:
            self.log("train/gradient_norm", norm)

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        self._durations.append(time.perf_counter() - self._started)
        if self._due:
            self.log("train/ms_per_step", 1000 * sum(self._durations) / len(self._durations))
        if self.global_step == self.limits.max_steps:
            self.trainer.should_stop = True  # a stop is preceded by a validation, whatever the interval; an end is not

    # ---- validation

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        x, labels = batch[0], batch[1] if len(batch) == 2 else None
        generator = torch.Generator(self.device).manual_seed(seed_of(self.seed, batch_idx))
        terms = self.model.bound(x, self.options.steps, labels=labels, generator=generator, check=False)
        self._validated.append(terms)

    def on_validation_epoch_end(self) -> None:
        batches, self._validated = self._validated, []
        dimensions = batches[0].dimensions
        values = {name: torch.cat([getattr(b, name) for b in batches]) for name in ("total", *TERMS, "auxiliary")}
        terms = BoundTerms(**{name: values[name] for name in (*TERMS, "auxiliary")}, dimensions=dimensions)
        if not torch.isfinite(terms.total).all():
            raise self._not_finite(terms, f"the validation after step {self.global_step}")
        total = self._in_unit(terms.total, dimensions)
        self.log("val/total", total.mean(), prog_bar=True)
        self.log("val/total_stderr", total.std() / math.sqrt(len(total)))
        for name in TERMS:
            self.log(f"val/{name}", self._in_unit(values[name], dimensions).mean())
        self.log("step", float(self.global_step))

    def _not_finite(self, terms: BoundTerms, when: str) -> NonFiniteLoss:
        names = [name for name in (*TERMS, "auxiliary") if not torch.isfinite(getattr(terms, name)).all()]
        return NonFiniteLoss(f"the bound is not finite ({', '.join(names) or 'their sum'}) at {when}")

    # ---- the optimiser

    def configure_optimizers(self) -> Any:
        parameters = [p for p in self.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": self.options.weight_decay},
            # Biases, gains and the schedule's few numbers have a scale that means something: no decay.
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW([g for g in groups if g["params"]], lr=self.options.learning_rate)
        # A function, not a bound method: a scheduler saves the attributes of any other callable.
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self.rate(step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def rate(self, step: int) -> float:
        """The learning rate at a step in units of ``learning_rate``: warm-up, then cosine or constant."""
        rise = min(1.0, (step + 1) / max(self.options.warmup, 1))
        if self.options.rate == "constant":
            return rise
        return rise * (1 + math.cos(math.pi * self._progress(step))) / 2

    def _progress(self, step: int) -> float:
        """The part of the training that is done, 0 to 1, by the steps or by the clock, whichever is farther."""
        by_steps = step / self.limits.max_steps if self.limits.max_steps else 0.0
        by_time = 0.0
        if self.timer is not None and self.limits.max_time:
            by_time = self.timer.time_elapsed() / self.limits.max_time
        return min(1.0, max(by_steps, by_time))
