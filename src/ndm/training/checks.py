"""What is looked at before a training writes anything: whether model, data and options suit each other."""

from __future__ import annotations

import torch
import yaml
from torch import Tensor

from ndm.data.base import Data
from ndm.data.choosing import part_of
from ndm.model import NDM
from ndm.training.options import TrainingOptions
from ndm.training.run import Run, read_checkpoint

__all__ = ["check", "first_step", "some_unused"]

#: Examples that are looked at before training, of a data set that is not in memory.
CHECKED = 1024


def first_step(run: Run, config: str) -> int:
    """The step that a run goes on from."""
    run.require_checkpoint()
    _require_same(run, config)
    return int(read_checkpoint(run.last)["global_step"])


def _require_same(run: Run, config: str) -> None:
    """Refuse to resume a run with another model, other data or another seed."""
    if not run.config.is_file():
        return
    old, new = yaml.safe_load(run.config.read_text()), yaml.safe_load(config)
    for key in ("model", "data", "seed"):
        if key in old and key in new and old[key] != new[key]:
            raise ValueError(
                f"{run.path} was trained with another {key} than this one: give the configuration it was started with, "
                f"{run.config}, or choose another --out."
            )


def check(model: NDM, data: Data, training: TrainingOptions) -> None:
    classes = getattr(getattr(model.denoiser, "net", None), "classes", 0)
    if training.label_dropout and not (training.labels and classes):
        raise ValueError("training.label_dropout needs training.labels and a denoiser's network with classes.")
    for split in ("train", "validation"):
        x = data.examples(split)
        if len(x) == 0:
            raise ValueError(f"The {split} split has no examples.")
        try:
            # Of what is not in memory, a part: its values have been made from K levels.
            model.to_model(x if isinstance(x, Tensor) else x[part_of(len(x), CHECKED, seed=0)])
            _try(model, x[:1])
        except ValueError as error:
            raise ValueError(f"In the {split} split: {error}") from None
        if training.labels and data.labels(split) is None:
            raise ValueError(f"training.labels is set, but {type(data).__name__} has no labels.")


def _try(model: NDM, x: Tensor, steps: int | None = None) -> Tensor:
    """The bound of one example: it finds out a network of another shape before a folder is made."""
    network = getattr(model.denoiser, "net", None)
    labels = torch.zeros(1, dtype=torch.long) if getattr(network, "classes", 0) else None
    terms = model.bound(x, steps, labels=labels)
    return (terms.total + terms.auxiliary).sum()


def some_unused(model: NDM, data: Data, training: TrainingOptions) -> bool:
    """Whether the bound leaves some parameters without a gradient, which devices that share one have to know."""
    with torch.random.fork_rng(devices=[]):
        parameters = [p for p in model.parameters() if p.requires_grad]
        loss = _try(model, data.examples("validation")[:1], training.steps)
        return any(g is None for g in torch.autograd.grad(loss, parameters, allow_unused=True))
