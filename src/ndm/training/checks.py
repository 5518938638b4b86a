"""Checks before a training writes files: compatibility of model, data and options."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ndm.data import require_labels
from ndm.data.base import Data
from ndm.data.choosing import part_of
from ndm.method.parts import with_defaults
from ndm.model import NDM
from ndm.storage.texts import LARGEST_YAML, parse_yaml, read_text
from ndm.training.callbacks import best_value
from ndm.training.facts import digest_of_facts
from ndm.training.options import TrainingOptions
from ndm.training.reading import read_checkpoint, require_fitting
from ndm.training.run import Run

__all__ = ["check", "first_step", "some_unused"]

#: Number of examples checked before training if the data are not in memory.
CHECKED = 1024

#: Data set arguments that specify the location of the data, not their content.
PLACES = ("path", "cache")


def first_step(run: Run, config: str, data: Data, model: NDM) -> int:
    """Return the step from which a run is resumed.

    Raises:
        FileNotFoundError: there is no checkpoint.
        ValueError: the run has another model, seed or data set, or its checkpoint is damaged.
    """
    run.require_checkpoint()
    _require_same(run, config)
    run.require_same_data(data, "or train on these data from the beginning, with another --out")
    checkpoint = read_checkpoint(run.last)
    require_fitting(checkpoint, model, run.last)
    if checkpoint.get("data", (now := digest_of_facts(run.data))) != now:
        raise ValueError(
            f"{run.last} and {run.data} belong to trainings on different data. Restore the original file, or train "
            "again with another --out."
        )
    _require_own_best(run, checkpoint)
    return int(checkpoint["global_step"])


def _require_own_best(run: Run, last: dict[str, Any]) -> None:
    """Refuse to resume if the best checkpoint, from which the model is made, is missing or belongs to another training.

    A training that was killed between its two checkpoints has a best one that is newer than the last one.
    """
    known = best_value(last)
    if known is None:
        return
    found = read_checkpoint(run.best) if run.best.is_file() else None
    if (
        found is not None
        and found.get("data") == last.get("data")
        and (best_value(found) == known or found["global_step"] >= last["global_step"])
    ):
        return
    what = "is missing" if found is None else "belongs to another training"
    raise ValueError(
        f"{run.best} {what}, but {run.last} records a best validation of {known:.4g}. Restore the original file, or "
        "train again with another --out."
    )


def _require_same(run: Run, config: str) -> None:
    """Raise an error if a run is resumed with another model, other data options, or another seed."""
    if not run.config.is_file():
        return
    try:
        old, new = (dict(parse_yaml(text)) for text in (read_text(run.config, LARGEST_YAML), config))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{run.config} is damaged: {error}.") from None
    for key in ("model", "data", "seed"):
        if key in old and key in new and _comparable(old[key]) != _comparable(new[key]):
            raise _other(run, key)
    for key in ("standardize", "base"):  # these change the model
        then, now = ((tree.get("training") or {}).get(key) for tree in (old, new))
        if None not in (then, now) and then != now:
            raise _other(run, f"training.{key}")


def _other(run: Run, key: str) -> ValueError:
    return ValueError(
        f"{run.path} was trained with another {key}: give its own configuration, {run.config}, or choose another --out."
    )


def _comparable(section: Any) -> Any:
    """Return a section of a configuration without the location of the data, whose contents are compared instead, and
    with the arguments that an earlier version did not have.
    """
    section = with_defaults(section)
    if not (isinstance(section, dict) and isinstance(section.get("init_args"), dict)):
        return section
    return section | {"init_args": {k: v for k, v in section["init_args"].items() if k not in PLACES}}


def check(model: NDM, data: Data, training: TrainingOptions) -> None:
    """Check that a model, a data set and the options are compatible.

    Raises:
        ValueError: they are not.
    """
    _check_levels(model, data)
    _check_classes(model, data, training)
    for split in ("train", "validation"):
        x = data.examples(split)
        if len(x) == 0:
            raise ValueError(f"The {split} split has no examples.")
        try:
            # Data not in memory are checked partly: their values were computed from K levels.
            model.to_model(x if isinstance(x, Tensor) else x[part_of(len(x), CHECKED, seed=0)])
            _try(model, x[:1])
        except ValueError as error:
            raise ValueError(f"In the {split} split: {error}{_levels_advice(model, data)}") from None


def _check_levels(model: NDM, data: Data) -> None:
    """Raise an error if data and decoder differ in K: a density of K levels is unbounded, and has no unit of bits."""
    decoder, levels = model.decoder, data.levels
    if levels is None or decoder.levels == levels:
        return
    if decoder.levels is not None:
        raise ValueError(
            f"The data have K = {levels} levels, but the model's {type(decoder).__name__} has {decoder.levels}: give "
            f"--model.decoder.levels {levels} (levels={levels} in Python)."
        )
    raise ValueError(
        f"The data have K = {levels} levels, but the model's {type(decoder).__name__} is for continuous data: give "
        f"--model.decoder DiscretizedDecoder --model.decoder.levels {levels} "
        f"(decoder=DiscretizedDecoder(levels={levels}) in Python), or leave --data.levels out."
    )


def _levels_advice(model: NDM, data: Data) -> str:
    """Return advice for a K-level decoder that rejects continuous data."""
    levels = model.decoder.levels
    if data.levels is not None or levels is None:
        return ""
    return (
        f" {type(data).__name__} gives continuous values, and the model's {type(model.decoder).__name__} is for "
        f"{levels} levels: give --model.decoder GaussianDecoder, or, of whole numbers 0 ... {levels - 1} in a table, "
        f"--data.levels {levels}."
    )


def _check_classes(model: NDM, data: Data, training: TrainingOptions) -> None:
    """Raise an error if only one of network and training uses classes, or if labels are not valid classes."""
    net = getattr(model.denoiser, "net", None)
    classes = getattr(net, "classes", None)
    if training.label_dropout and not (training.labels and classes):
        raise ValueError("training.label_dropout needs training.labels and a denoiser's network with classes.")
    if classes and not training.labels:
        raise ValueError(
            f"The denoiser's network has {classes} classes, but training.labels is not set: set it, or build the "
            "network without classes."
        )
    if not training.labels:
        return
    if classes == 0:  # a custom network may not have this attribute
        raise ValueError(
            "training.labels is set, but the denoiser's network has no classes: give --model.denoiser.net.classes "
            f"{data.classes or 'K'}."
        )
    for split in ("train", "validation"):
        labels = data.labels(split)
        if labels is None:
            raise ValueError(f"training.labels is set, but {type(data).__name__} has no labels.")
        require_labels(labels, classes or 1 + max(0, int(labels.max())), f"In the {split} split, ")


def _try(model: NDM, x: Tensor, steps: int | None = None) -> Tensor:
    """Compute the bound of one example, to detect a wrong network shape before the folder is created."""
    labels = torch.zeros(1, dtype=torch.long) if model.num_classes else None
    terms = model.bound(x, steps, labels=labels)
    return (terms.total + terms.auxiliary).sum()


def some_unused(model: NDM, data: Data, training: TrainingOptions) -> bool:
    """Whether some parameters get no gradient from the bound (required for distributed training)."""
    with torch.random.fork_rng(devices=[]):
        parameters = [p for p in model.parameters() if p.requires_grad]
        loss = _try(model, data.examples("validation")[:1], training.steps)
        return any(g is None for g in torch.autograd.grad(loss, parameters, allow_unused=True))
