"""From a model and a data set to a run's folder."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch
import yaml
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

from ndm.data.base import Data
from ndm.model import NDM
from ndm.training.batches import InOrder, Stream
from ndm.training.callbacks import callbacks, timer_for
from ndm.training.metrics import MetricsFile
from ndm.training.module import NDMModule, NonFiniteLoss
from ndm.training.options import TrainerOptions, TrainingOptions
from ndm.training.run import Run, read_checkpoint

__all__ = ["fit"]

logger = logging.getLogger("ndm.training")


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
    progress: bool | None = None,
) -> NDM:
    """Train a model and write everything about it to a folder; see :mod:`ndm.training.run` for what is where.

    Args:
        model: trained in place. Where the data are continuous and want standardising, build it with
            ``standardize=ndm.Standardize.fit(data.train)``; ``training.standardize`` is for the command line only.
        data: the data set, of which the training and the validation split are used.
        out: the folder, which must be new or empty.
        training: how to train.
        trainer: how long, and on what.
        seed: of the order of the data, times, noise and dropout.
        resume: go on from ``out``'s last checkpoint, as if the run had not been interrupted.
        config: the configuration, in YAML, to be kept in the folder; by default, what the arguments tell of it.
        progress: show a bar; by default on a terminal.

    Returns:
        The model, with the averaged weights, in evaluation mode: the one in ``out``/model.

    Raises:
        ValueError: the data do not suit the model, or the run to be resumed is another one.
        FileExistsError: there is something in the folder; nothing was written.
        FileNotFoundError: there is nothing to resume.
        NonFiniteLoss: the loss or its gradient became NaN or infinite; the last checkpoint is from before.
        KeyboardInterrupt: the last checkpoint is kept.
    """
    training, trainer = training or TrainingOptions(), trainer or TrainerOptions()
    run = Run(Path(out))
    config = config or _configuration(model, training, trainer, seed)
    first = _first_step(run, config) if resume else 0
    if not resume:
        run.require_new()
    _check(model, data, training.labels)
    if progress is None:
        progress = sys.stderr.isatty()
    timer = timer_for(trainer.max_time)
    lightning = _lightning_trainer(run, trainer, callbacks(run, training.ema, timer, progress), first, progress)
    module = NDMModule(model, training, trainer, seed, timer)
    first_process = lightning.is_global_zero  # with several devices, one process writes for all
    if first_process:
        run.checkpoints.mkdir(parents=True, exist_ok=True)
        run.config.write_text(config)
        run.write_data(data.shape, data.levels)
    with _quiet(), _journal(run.log, also_to_stderr=not progress) if first_process else contextlib.nullcontext():
        logger.info("%s at step %d in %s", "resumed" if resume else "started", first, run.path)
        if trainer.max_steps is None or first < trainer.max_steps:
            _train(lightning, module, data, run, resume)
        _take_weights(model, run.best if training.keep == "best" else run.last)
        if first_process:
            model.save_pretrained(run.model)
        logger.info("finished: the model is in %s", run.model)
    return model


def _train(trainer: Trainer, module: NDMModule, data: Data, run: Run, resume: bool) -> None:
    options, seed = module.options, module.seed
    seed_everything(seed, verbose=False)
    labels = {split: data.labels(split) if options.labels else None for split in ("train", "validation")}
    stream = Stream(data.train, labels["train"], options.batch_size, seed, trainer)
    validation = InOrder(data.validation, labels["validation"], options.batch_size)
    try:
        with _interruptible(trainer):
            trainer.fit(module, stream, validation, ckpt_path=run.last if resume else None, weights_only=True)
    except NonFiniteLoss as error:
        logger.info("stopped: %s", error)
        raise NonFiniteLoss(_advice(str(error), run, module)) from None


def _lightning_trainer(
    run: Run, options: TrainerOptions, chosen: list[Callback], first: int, progress: bool
) -> Trainer:
    loggers: list[Logger] = [MetricsFile(run.metrics, first)]
    if importlib.util.find_spec("tensorboard"):
        loggers.append(TensorBoardLogger(run.path, name=run.tensorboard.name, version=""))
    try:
        with _quiet():
            return Trainer(
                accelerator=options.accelerator,
                devices=options.devices,
                precision=options.precision,
                gradient_clip_val=options.gradient_clip_val,
                log_every_n_steps=options.log_every_n_steps,
                val_check_interval=options.val_check_interval,
                check_val_every_n_epoch=None,  # the interval counts steps, not parts of an epoch
                max_steps=-1 if options.max_steps is None else options.max_steps,
                max_epochs=-1,
                num_sanity_val_steps=0,
                enable_progress_bar=progress,
                enable_model_summary=False,
                use_distributed_sampler=False,  # the stream of batches sees to that
                logger=loggers,
                callbacks=chosen,
            )
    except (MisconfigurationException, RuntimeError) as error:
        raise ValueError(
            f"trainer.accelerator={options.accelerator} with devices={options.devices} and "
            f"precision={options.precision} cannot be had here: {error}"
        ) from None


# ---- what is checked before anything is written


def _first_step(run: Run, config: str) -> int:
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


def _check(model: NDM, data: Data, labels: bool) -> None:
    for split in ("train", "validation"):
        x = data.split(split)
        if len(x) == 0:
            raise ValueError(f"The {split} split has no examples.")
        try:
            _check_split(model, x)
        except ValueError as error:
            raise ValueError(f"In the {split} split: {error}") from None
        if labels and data.labels(split) is None:
            raise ValueError(f"training.labels is set, but {type(data).__name__} has no labels.")


def _check_split(model: NDM, x: Tensor) -> None:
    model.to_model(x)
    with torch.no_grad():  # one example, so that networks of another shape are found out before a folder is made
        network = getattr(model.denoiser, "net", None)
        labels = torch.zeros(1, dtype=torch.long) if getattr(network, "classes", 0) else None
        model.bound(x[:1], labels=labels)


def _configuration(model: NDM, training: TrainingOptions, trainer: TrainerOptions, seed: int) -> str:
    """The configuration as far as the objects tell it: a data set does not tell its arguments."""
    sections = {
        "seed": seed,
        "model": model.config()["init_args"],
        "training": asdict(training),
        "trainer": asdict(trainer),
    }
    return yaml.safe_dump(sections, sort_keys=False)


# ---- the end of a training


def _take_weights(model: NDM, checkpoint: Path) -> None:
    """Put a checkpoint's averaged weights into the model."""
    if not checkpoint.is_file():
        return
    weights = read_checkpoint(checkpoint)["state_dict"]
    model.load_state_dict({name.removeprefix("model."): value for name, value in weights.items()})
    model.cpu().eval()


def _advice(what: str, run: Run, module: NDMModule) -> str:
    training, trainer = module.options, module.limits
    last = f"the last good checkpoint is {run.last}" if run.last.exists() else "no checkpoint had been written yet"
    clip = "clipping is off" if trainer.gradient_clip_val is None else f"{trainer.gradient_clip_val:g} now"
    return (
        f"Training stopped because {what}: try a lower training.learning_rate ({training.learning_rate:g} now), "
        f"a longer training.warmup ({training.warmup} now) or a lower trainer.gradient_clip_val ({clip}); {last}."
    )


@contextlib.contextmanager
def _interruptible(trainer: Trainer) -> Iterator[None]:
    """Let Ctrl+C be a KeyboardInterrupt again: Lightning makes it an exit, and ignores every further one."""
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


# ---- what is said


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence Lightning's remarks (devices found, workers, tips), which say nothing about this training."""
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


@contextlib.contextmanager
def _journal(path: Path, also_to_stderr: bool) -> Iterator[None]:
    """Write what the training says to a file, and to stderr where no bar is in the way."""
    to_file = logging.FileHandler(path)
    to_file.setFormatter(logging.Formatter("%(asctime)s  %(message)s", "%Y-%m-%d %H:%M:%S"))
    handlers: list[logging.Handler] = [to_file]
    if also_to_stderr:
        to_stderr = logging.StreamHandler()
        to_stderr.setFormatter(logging.Formatter(f"{path.parent.name}: %(message)s"))
        handlers.append(to_stderr)
    level = logger.level
    logger.setLevel(logging.INFO)
    for handler in handlers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        logger.setLevel(level)
        for handler in handlers:
            logger.removeHandler(handler)
            handler.close()
