"""Training of a model on a data set, with output to a run folder."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything

from ndm.data.base import Data
from ndm.data.choosing import part_of
from ndm.model import NDM
from ndm.training.automatic import resolve
from ndm.training.batches import InOrder, Stream
from ndm.training.callbacks import Pictures, callbacks, timer_for
from ndm.training.checks import check, first_step, some_unused
from ndm.training.devices import environment, lightning_trainer, processes, quiet, sharding_for, strategy_for
from ndm.training.ending import finish
from ndm.training.facts import digest_of_facts
from ndm.training.module import NDMModule, NonFiniteLoss
from ndm.training.options import TrainerOptions, TrainingOptions, is_later_process
from ndm.training.progress import log_to
from ndm.training.reading import read_checkpoint
from ndm.training.run import Run

__all__ = ["fit"]

logger = logging.getLogger("ndm.training")

#: Evaluations of the bound per validation: fewer vectors, or images, are repeated.
ENOUGH, ENOUGH_IMAGES, MOST_REPEATS = 4096, 128, 64

#: Minimum validation batch size for vectors.
VECTORS_AT_ONCE = 1024


def fit(
    model: NDM,
    data: Data,
    out: str | os.PathLike[str],
    training: TrainingOptions | None = None,
    trainer: TrainerOptions | None = None,
    *,
    seed: int = 0,
    resume: bool = False,
    config: str | None = None,
    command: str | None = None,
    progress: bool | None = None,
    notes: Sequence[str] = (),
    verbose: bool = True,
) -> NDM:
    """Train a model and write the results to a folder; see :mod:`ndm.training.run` for its layout.

    Args:
        model: trained in place; in discrete time its schedule is set accordingly, permanently. To standardize
            continuous data, build it with ``standardize=ndm.Standardize.fit(data.train)``; ``training.standardize`` is
            for the command line only.
        data: the data set; the training and the validation split are used.
        out: the run folder, which must be new or empty, or contain a training that stopped before its first checkpoint.
        training: training options.
        trainer: trainer options.
        seed: seed of the order of the data, times, noise and dropout.
        resume: resume from the last checkpoint in ``out``, as if the run had not been interrupted.
        config: the configuration, in YAML, to store in the folder; by default derived from the arguments.
        command: the command line, if any, to store in the folder.
        progress: show a progress bar; by default on a terminal.
        notes: additional messages to log at the start.
        verbose: also write the log to stderr.

    Returns:
        The model in evaluation mode with the averaged weights, as saved in ``out``/model.

    Raises:
        ValueError: the data do not fit the model, or the run to resume has other settings.
        FileExistsError: the folder is not empty; nothing was written.
        FileNotFoundError: there is nothing to resume.
        NonFiniteLoss: the loss or its gradient became NaN or infinite; the last checkpoint is from an earlier step.
        KeyboardInterrupt: the training was stopped by Ctrl-C or SIGTERM; the checkpoint and the model of that step are
            saved.
    """
    training, trainer, chosen = resolve(training or TrainingOptions(), trainer or TrainerOptions(), data)
    if training.steps is not None:
        model.schedule.train_in_steps()
    run = Run(Path(out))
    config = config or _configuration(model, training, trainer, seed)
    first = first_step(run, config, data, model) if resume else 0
    if not resume:
        run.require_new(later=is_later_process(trainer.devices, trainer.num_nodes))
    check(model, data, training)
    lightning, module, stream = _prepared(model, data, run, training, trainer, seed, first, progress)
    goes_on = not isinstance(trainer.max_steps, int) or first < trainer.max_steps
    first_process = lightning.is_global_zero  # only the first process writes files
    lock: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
    if first_process:
        lock = run.begin(config, data, resume)
        if goes_on:
            run.write_environment(environment(lightning, trainer, command), resumed=resume)
        elif resume:
            run.write_config(config)
    with lock, quiet(), log_to(run.log, verbose) if first_process else contextlib.nullcontext():
        for line in [] if resume else [*data.summary(), *notes, chosen]:
            if line:
                logger.info("%s", line)
        logger.info("%s at step %d in %s", "resumed" if resume else "started", first, run.path)
        logger.info("%s", _sizes(model))
        if goes_on:
            try:
                _train(lightning, module, stream, run, config if resume else None)
            except KeyboardInterrupt:
                if first_process and run.last.is_file():
                    _keep(model, training, run, data)
                    logger.info(
                        "stopped at step %d; resume with: %s", read_checkpoint(run.last)["global_step"], run.resume
                    )
                raise
        else:
            logger.info("it already has %d steps; increase trainer.max_steps to train longer", first)
        _keep(model, training, run, data, write=first_process)
        if first_process:
            finish(model, data, run, module, training, trainer, seed, as_command=command is not None)
    return model


def _prepared(
    model: NDM,
    data: Data,
    run: Run,
    training: TrainingOptions,
    trainer: TrainerOptions,
    seed: int,
    first: int,
    progress: bool | None,
) -> tuple[Trainer, NDMModule, Stream]:
    """Create Lightning's trainer, the LightningModule, and the batches."""
    sharding = sharding_for(model, trainer)
    timer = timer_for(trainer.max_time)
    pictures = Pictures(run, data, trainer.pictures_every, seed) if trainer.pictures_every else None
    shown = sys.stderr.isatty() if progress is None else progress
    called = callbacks(run, training.ema, training.warmup, trainer, timer, shown, pictures)
    unused = some_unused(model, data, training)
    strategy = sharding.Sharded(processes(trainer)) if sharding else strategy_for(trainer, unused)
    lightning = lightning_trainer(run, trainer, called, first, strategy)
    assert isinstance(training.batch_size, int)
    stream = Stream(data, training.batch_size, seed, lightning, training.labels, trainer.accumulate)
    kind = sharding.ShardedModule if sharding else NDMModule
    return lightning, kind(model, training, trainer, seed, timer), stream


def _keep(model: NDM, training: TrainingOptions, run: Run, data: Data, write: bool = True) -> None:
    """Load the selected weights into the model, and save the model in the run folder."""
    _take_weights(model, run.best if training.keep == "best" and run.best.is_file() else run.last)
    if write:
        model.save_pretrained(run.model, card={"shape": list(data.shape), "data": digest_of_facts(run.data)})


def _train(trainer: Trainer, module: NDMModule, stream: Stream, run: Run, resumed: str | None) -> None:
    """Train from the beginning, or from the last checkpoint with the configuration ``resumed``."""
    options, limits = module.options, module.limits
    seed_everything(module.seed, verbose=False)
    if limits.precision == "64-true":
        module.double()  # before Lightning, which loads the checkpoint first
    if limits.channels_last:
        module.to(memory_format=torch.channels_last)
    validation = _validation(stream, options, limits, trainer)
    begun = _Begun(run, resumed)
    trainer.callbacks.append(begun)  # type: ignore[attr-defined]
    try:
        with module.prepared(), _interruptible(trainer):
            trainer.fit(module, stream, validation, ckpt_path=None if resumed is None else run.last, weights_only=True)
    except NonFiniteLoss as error:
        logger.info("stopped: %s", error)
        raise NonFiniteLoss(_advice(str(error), run, module)) from None
    except (KeyError, IndexError, AttributeError, TypeError, ValueError, RuntimeError) as error:
        if begun.begun or resumed is None:
            raise
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{run.last} cannot be resumed, because it does not fit this training: {reason}.") from error


class _Begun(Callback):
    """Records that a training has started, and then writes the configuration of a resumed one.

    Before that, loading the checkpoint may still fail.
    """

    def __init__(self, run: Run, resumed: str | None) -> None:
        self.run, self.resumed, self.begun = run, resumed, False

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["data"] = digest_of_facts(self.run.data)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.begun = True
        if self.resumed is not None and trainer.is_global_zero:
            self.run.write_config(self.resumed)


def _validation(stream: Stream, options: TrainingOptions, limits: TrainerOptions, trainer: Trainer) -> InOrder:
    """Create the validation batches: all examples, or a fixed random part; small sets of vectors are repeated."""
    examples = stream.data.examples("validation")
    labels = stream.data.labels("validation") if options.labels else None
    part, count = None, len(examples)
    if limits.val_examples is not None:
        assert isinstance(limits.val_examples, int)
        part = part_of(count, limits.val_examples, stream.seed)
        count = len(part)
    enough = ENOUGH if len(stream.data.shape) == 1 else ENOUGH_IMAGES
    repeats = max(1, min(MOST_REPEATS, math.ceil(enough / count)))
    batch = max(stream.batch_size, VECTORS_AT_ONCE) if len(stream.data.shape) == 1 else stream.batch_size
    return InOrder(examples, labels, batch, trainer, part, repeats)


def _sizes(model: NDM) -> str:
    """Describe the number of parameters of the model and of its parts."""
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    parts = ", ".join(f"{name} {count:,}" for name, count in counts.items() if count)
    return f"parameters: {sum(counts.values()):,} ({parts})"


def _configuration(model: NDM, training: TrainingOptions, trainer: TrainerOptions, seed: int) -> str:
    """Derive the configuration from the objects; the arguments of a data set are not known."""
    sections = {
        "seed": seed,
        "model": model.config()["init_args"],
        "training": asdict(training),
        "trainer": asdict(trainer),
    }
    return yaml.safe_dump(sections, sort_keys=False)


# ---- the end of a training


def _take_weights(model: NDM, checkpoint: Path) -> None:
    """Load the averaged weights of a checkpoint into the model."""
    if not checkpoint.is_file():
        return
    weights = read_checkpoint(checkpoint)["state_dict"]
    try:
        model.load_state_dict({name.removeprefix("model."): value for name, value in weights.items()})
    except RuntimeError as error:
        raise ValueError(f"{checkpoint} belongs to another model: {' '.join(str(error).split())[:300]}") from None
    model.cpu().eval()


def _advice(what: str, run: Run, module: NDMModule) -> str:
    training, trainer = module.options, module.limits
    last = f"the last good checkpoint is {run.last}" if run.last.exists() else "no checkpoint had been written yet"
    clip = "clipping is off" if trainer.gradient_clip_val is None else f"currently {trainer.gradient_clip_val:g}"
    return (
        f"Training stopped because {what}: use a lower training.learning_rate (currently {training.learning_rate:g}), "
        f"a longer training.warmup (currently {training.warmup}) or a lower trainer.gradient_clip_val ({clip}); {last}."
    )


@contextlib.contextmanager
def _interruptible(trainer: Trainer) -> Iterator[None]:
    """Raise KeyboardInterrupt on Ctrl+C: Lightning converts it to an exit and ignores further ones."""
    in_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit:
        if trainer.interrupted:
            raise KeyboardInterrupt from None
        raise
    finally:
        if in_main:
            signal.signal(signal.SIGINT, handler)


# ---- messages
