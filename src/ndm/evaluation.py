r"""A model on a data set: the bound at several numbers of steps and reverse variances, the ODE likelihood, with errors.

Bits per dimension for K-level data, nats for continuous data (a differential entropy's unit). Every standard error is
over the examples of the split, so it holds the split's size as well as the noise of the estimate.
"""

from __future__ import annotations

import json
import math
import os
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from ndm.bounds import calibrated_variance, error_moments
from ndm.data import Data
from ndm.data.base import Examples
from ndm.distributed import everywhere, is_first, mine, rank, summed, world_size
from ndm.grids import GRIDS, candidates_for, gamma_grid, grid_from, pair_moments
from ndm.likelihood import log_likelihood
from ndm.model import NDM
from ndm.noise import seed_of
from ndm.sampling import sample_batches
from ndm.variances import CalibratedVariance, Moments, PosteriorVariance

__all__ = [
    "Evaluation",
    "bound_per_example",
    "evaluate",
    "likelihood_per_example",
    "mean_and_error",
    "read_per_example",
    "row_name",
]

#: Times per example where the number of steps is larger than this, or infinite; otherwise every step is evaluated.
TIMES = 100

#: Examples that are measured at a time, and that a process gets at a time where several share the work.
BLOCK = 250

#: Network evaluations that a calibration may spend.
CALIBRATION_BUDGET = 50_000

#: The largest number of steps that an optimal grid is looked for: there is little left to win beyond, and the pairs of
#: times that have to be looked at are four times as many for twice the steps.
LARGEST_GRID = 100

#: Examples that an optimal grid is chosen by.
GRID_EXAMPLES = 500


@dataclass
class Evaluation:
    """What was measured.

    Attributes:
        rows: one per figure: ``quantity`` (``bound``, ``log-likelihood``, ``FID`` or ``KID``), ``steps`` (None for
            continuous time), ``variance`` (the reverse variance, None where it plays no part), ``value``, ``stderr``
            (None where there is none), ``unit``,
            ``reconstruction`` and ``prior`` (those parts of a bound, same unit), ``examples``, and ``kind`` in words.
        about: the data's class and split, the number of parameters, the seed.
        per_example: the same figures for each example, (N,), in the order of the rows; empty where a figure is not an
            average over examples.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    about: dict[str, Any] = field(default_factory=dict)
    per_example: list[Tensor] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """``about`` and ``rows``, in JSON's types."""
        return {"about": self.about, "rows": self.rows}

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write :meth:`to_dict` as JSON, and the values of single examples beside it.

        These are in the file of the same name that ends in .npz: of each row that is an average over examples an array,
        (N,), under its :func:`row_name`. With them the figures of two models can be compared on the same examples.
        Each file is written whole or not at all.

        Args:
            path: of the JSON file.

        Raises:
            ValueError: the path ends in .npz.
        """
        path = Path(path)
        if path.suffix == ".npz":
            raise ValueError(f"{path} is to be a JSON file; the values of single examples go to a .npz beside it.")
        values = {row_name(r): v.numpy() for r, v in zip(self.rows, self.per_example, strict=False) if len(v)}
        with written_whole(path.with_suffix(".npz")) as file:
            np.savez_compressed(file, **values)  # type: ignore[arg-type]
        with written_whole(path) as file:
            file.write((json.dumps(self.to_dict(), indent=2) + "\n").encode())
        return path

    def find(self, quantity: str, steps: int | None = None, variance: str | None = None) -> int | None:
        """The number of the row with this quantity, number of steps and reverse variance; None if there is none."""
        for i, row in enumerate(self.rows):
            if (row["quantity"], row["steps"], row["variance"]) == (quantity, steps, variance):
                return i
        return None

    def table(self) -> str:
        """The figures as a table of plain text."""
        lines = [f"{'quantity':<15} {'steps':>10}  {'reverse variance':<17} {'value':>8}   {'stderr':>6}  unit"]
        for row in self.rows:
            steps = row["steps"] or ("continuous" if row["quantity"] == "bound" else "-")
            error = " " * 8 if row["stderr"] is None else f"± {row['stderr']:>6.4f}"
            lines.append(
                f"{row['quantity']:<15} {steps!s:>10}  {row['variance'] or '-':<17} {row['value']:>8.4f} {error}  "
                f"{row['unit']}"
            )
        return "\n".join(lines)


def row_name(row: Mapping[str, Any]) -> str:
    """What the values of a row's examples are called: its quantity, number of steps and reverse variance.

    Example:
        >>> row_name({"quantity": "bound", "steps": 10, "variance": "posterior"})
        'bound, T = 10, posterior'
        >>> row_name({"quantity": "bound", "steps": None, "variance": None})
        'bound, continuous time'
    """
    if row["quantity"] != "bound":
        return str(row["quantity"])
    steps = f"T = {row['steps']}" if row.get("steps") else "continuous time"
    return ", ".join(["bound", steps, *([str(row["variance"])] if row.get("variance") else [])])


def read_per_example(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The values of single examples that :meth:`Evaluation.save` has written, by :func:`row_name`; each is (N,).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {name: torch.from_numpy(file[name]) for name in file.files}
    except FileNotFoundError:
        raise
    except (OSError, ValueError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is damaged ({error}); evaluate the run again.") from None
    if not all(values.ndim == 1 and values.is_floating_point() for values in found.values()):
        raise ValueError(f"{path} is damaged (a figure has no number for each example); evaluate the run again.")
    return found


@contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """A file beside ``path`` that takes its place when all has been written to it; after an error it is removed."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with fresh.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)


def mean_and_error(values: Tensor) -> tuple[float, float]:
    """The mean of values, (N,), and its standard error; NaN for a single one."""
    values = values.double()
    return values.mean().item(), values.std().item() / math.sqrt(len(values))


@torch.no_grad()
def bound_per_example(
    model: NDM,
    data: Examples,
    steps: int | None,
    *,
    labels: Tensor | None = None,
    seed: int = 0,
    batch_size: int = BLOCK,
    times: int = TIMES,
) -> dict[str, Tensor]:
    """The bound's terms for each example, averaged over its steps: all T of them up to ``times``, else so many
    stratified times.

    The work is shared among the processes of :mod:`ndm.distributed`. What an example gets depends on the seed and on
    its place alone, not on how many processes there are.

    Args:
        model: the model.
        data: (N, \\*shape), a tensor or what gives one by rows.
        steps: T, or None for continuous time.
        labels: class labels, (N,).
        seed: of times and noise.
        batch_size: how many examples at a time; another number means other noise.
        times: the number of times, where not every step is evaluated.

    Returns:
        ``total``, ``diffusion``, ``prior`` and ``reconstruction``, each (N,), in nats, in float64.
    """
    names = ("total", "diffusion", "prior", "reconstruction")
    repeats = steps if steps is not None and steps <= times else times
    device = device_of(model)

    def measure(block: int, x: Tensor, y: Tensor | None) -> Tensor:
        generator = torch.Generator(device).manual_seed(seed_of(seed, block))
        sums = torch.zeros(len(x), len(names), dtype=torch.float64, device=device)
        for r in range(repeats):
            u = torch.rand(len(x), generator=generator, dtype=torch.float64, device=device)
            terms = model.bound(x, steps, labels=y, times=(r + u) / repeats, generator=generator, check=r == 0)
            sums += torch.stack([getattr(terms, name).double() for name in names], dim=1)
        return (sums / repeats).cpu()

    found = _block_by_block(measure, data, labels, batch_size, device, columns=len(names))
    return dict(zip(names, found.unbind(1), strict=True))


def likelihood_per_example(
    model: NDM, data: Examples, *, labels: Tensor | None = None, seed: int = 0, batch_size: int = BLOCK, **options: Any
) -> tuple[dict[str, Tensor], str, int]:
    """``log_prob`` and ``solver_error``, (N,) in nats, what they are in words, and the evaluations of the drift: see
    :func:`ndm.log_likelihood`.

    The work is shared as that of :func:`bound_per_example` is; its arguments mean the same.
    """
    device, evaluations, kinds = device_of(model), torch.zeros(1), [""]

    def measure(block: int, x: Tensor, y: Tensor | None) -> Tensor:
        generator = torch.Generator(device).manual_seed(seed_of(seed, block))
        result = log_likelihood(model, x, labels=y, generator=generator, **options)
        evaluations.add_(result.nfe)
        kinds[0] = result.kind
        return torch.stack([result.log_prob, result.solver_error], dim=1).double().cpu()

    found = _block_by_block(measure, data, labels, batch_size, device, columns=2)
    return {"log_prob": found[:, 0], "solver_error": found[:, 1]}, kinds[0], int(summed(evaluations).item())


def device_of(model: NDM) -> torch.device:
    """The device that the model's parameters are on."""
    return next(iter(model.parameters()), torch.empty(0)).device


def _block_by_block(
    measure: Callable[[int, Tensor, Tensor | None], Tensor],
    data: Examples,
    labels: Tensor | None,
    batch_size: int,
    device: torch.device,
    columns: int,
) -> Tensor:
    """What ``measure`` makes of each block of examples, shared among the processes: (N, columns), float64."""
    n = len(data)
    values, places = [torch.zeros(0, columns, dtype=torch.float64)], [torch.zeros(0, dtype=torch.long)]
    for block in mine(-(-n // batch_size)):
        rows = slice(block * batch_size, min((block + 1) * batch_size, n))
        y = None if labels is None else labels[rows].to(device)
        values.append(measure(block, data[rows].to(device), y))
        places.append(torch.arange(n)[rows])
    return everywhere(torch.cat(values), torch.cat(places), n)


class _First:
    """The first examples of a split."""

    def __init__(self, examples: Examples, n: int | None) -> None:
        self.examples = examples
        self.n = len(examples) if n is None else min(n, len(examples))

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, rows: Tensor | slice) -> Tensor:
        return self.examples[slice(*rows.indices(self.n)) if isinstance(rows, slice) else rows]


@contextmanager
def _variance(model: NDM, name: str, steps: int | None, calibrated: CalibratedVariance | None) -> Iterator[None]:
    """The model with the reverse variance ``name`` for the time being."""
    own, calibrations = model.reverse_variance, dict(model.calibrations.items())
    try:
        model.uncalibrate()
        if name == "posterior":
            model.reverse_variance = PosteriorVariance()
        elif calibrated is not None:
            model.calibrations[str(steps)] = calibrated
        yield
    finally:
        model.reverse_variance = own
        model.uncalibrate()
        model.calibrations.update(calibrations)


def _calibrated(
    model: NDM, part: _First, labels: Tensor | None, steps: int, names: Sequence[str], seed: int, grid: Tensor | None
) -> dict[str, CalibratedVariance]:
    """The best reverse variances of these kinds for T steps, even ones or those of a grid, from one pass over some
    examples, shared among the processes.
    """
    variances = {
        name: calibrated_variance(model, part[:1].to(device_of(model)), steps, name, grid=grid) for name in names
    }
    if not variances:
        return variances

    def found(x: Tensor, y: Tensor | None, generator: torch.Generator) -> Moments:
        return error_moments(model, x, steps, "full" in names, labels=y, generator=generator, grid=grid)

    moments = _moments(model, part, labels, seed, found)
    for variance in variances.values():
        variance.fit(moments)
    return variances


def _best_grid(
    model: NDM, part: _First, labels: Tensor | None, steps: int, names: Sequence[str], seed: int
) -> Tensor | None:
    """The best grid of T steps for reverse variances of these kinds; None, for even steps, where there are too many."""
    if not names or steps > LARGEST_GRID:
        return None
    covariance = "isotropic" if set(names) <= {"isotropic"} else "diagonal"
    candidates = candidates_for(steps)

    def found(x: Tensor, y: Tensor | None, generator: torch.Generator) -> Moments:
        return pair_moments(model, x, candidates, covariance, labels=y, generator=generator)

    moments = _moments(model, _First(part, GRID_EXAMPLES), labels, seed, found)
    return grid_from(moments, part[:1].numel(), candidates, steps, covariance)


def _moments(
    model: NDM,
    part: _First,
    labels: Tensor | None,
    seed: int,
    found: Callable[[Tensor, Tensor | None, torch.Generator], Moments],
) -> Moments:
    """The moments that are found in each block of some examples, added up, the blocks shared among the processes."""
    device, moments = device_of(model), None
    with _variance(model, "posterior", None, None):  # which has no part in the errors
        for block in mine(-(-len(part) // BLOCK)):
            rows = slice(block * BLOCK, (block + 1) * BLOCK)
            y = None if labels is None else labels[: len(part)][rows].to(device)
            here = found(part[rows].to(device), y, torch.Generator(device).manual_seed(seed_of(seed, block)))
            moments = here if moments is None else moments + here
    if moments is None:  # there are more processes than blocks: take part in the sum, with nothing
        moments = found(part[:1].to(device), None if labels is None else labels[:1].to(device), torch.Generator(device))
        moments.count, moments.sums = torch.zeros_like(moments.count), torch.zeros_like(moments.sums)
    moments.count, moments.sums = summed(moments.count), summed(moments.sums)
    return moments


def own_variance(model: NDM) -> str:
    """The name of the model's own reverse variance: posterior, learned, predicted, or a class name."""
    name = type(model.reverse_variance).__name__
    return name.removesuffix("Variance").lower() if name.endswith("Variance") else name


def evaluate(
    model: NDM,
    data: Data,
    split: str = "test",
    steps: Sequence[int | None] = (10, 50, 1000, None),
    covariances: Sequence[str] = ("posterior", "own", "isotropic"),
    likelihood: bool = True,
    max_examples: int | None = None,
    likelihood_examples: int | None = None,
    seed: int = 0,
    progress: bool | None = None,
    batch_size: int = BLOCK,
    times: int = TIMES,
    calibration: int = CALIBRATION_BUDGET,
    grid: str = "even",
    quality: int | None = None,
    features: str | nn.Module = "inception",
    sampling: Mapping[str, Any] | None = None,
    **likelihood_options: Any,
) -> Evaluation:
    """Measure a model on one split of a data set.

    Several processes (torchrun; :func:`ndm.distributed.together`) share the work, and all of them return the same.

    Args:
        model: the model; left as it was.
        data: the data set; calibrations use its training split, without which it need not have one.
        split: ``train``, ``validation`` or ``test``.
        steps: the numbers of steps T; None for continuous time, in which the reverse variance plays no part.
        covariances: ``posterior``, ``own`` (what the model was trained with), ``isotropic``, ``diagonal``, ``full``.
        likelihood: measure the ODE's log-likelihood as well, where the model has an ODE.
        max_examples: take the first so many of the split only.
        likelihood_examples: likewise, for the log-likelihood alone, which costs most.
        seed: of every random number.
        progress: show a bar; by default on a terminal.
        batch_size: how many examples at a time.
        times: of an example, for a bound with more steps than that or in continuous time.
        calibration: network evaluations per example and step that a calibration may spend: with T steps it is made from
            the first ``calibration`` / T training examples.
        grid: the steps of bounds with calibrated variances: ``even`` in time, even in ``gamma``, or ``optimal``, which
            finds the best ones by the first 500 of those examples (:mod:`ndm.grids`), up to T = 100.
        quality: how many samples to compare with the split's first examples by FID and KID; None for no comparison.
        features: for :func:`ndm.quality.fid_kid`: ``inception``, a folder, or a network.
        sampling: options for :func:`ndm.sample`, by default ancestral sampling in 250 steps.
        likelihood_options: for :func:`ndm.log_likelihood`.

    Raises:
        ValueError: the data do not fit the model, or there is no such grid.
    """
    if grid not in GRIDS:
        raise ValueError(f"There is no grid {grid!r}; choose one of {', '.join(GRIDS)}.")
    x, conditional = _First(data.examples(split), max_examples), _conditional(model)
    labels = _labels(data, split, len(x)) if conditional else None
    names = list(dict.fromkeys(own_variance(model) if c == "own" else c for c in covariances))
    fitted = [name for name in names if name not in ("posterior", own_variance(model))]
    train = data.examples("train") if fitted and any(steps) else None
    train_labels = _labels(data, "train", None) if conditional and train is not None else None
    scale, unit = (1 / (math.prod(data.shape) * math.log(2)), "bits/dim") if data.levels else (1.0, "nats")
    about = {"data": type(data).__name__, "split": split, "seed": seed}
    result = Evaluation(about=about | {"parameters": sum(p.numel() for p in model.parameters())})
    was_training = model.training
    model.eval()
    show = is_first() and (sys.stderr.isatty() if progress is None else progress)
    count = sum(len(names) if t is not None else 1 for t in steps) + likelihood + (quality is not None)
    bar = tqdm(total=count, desc="evaluating", disable=not show, leave=False)
    for t in steps:
        calibrated = {}
        if t is not None and train is not None:
            part = _First(train, max(1, calibration // t))
            times_of_steps = None
            if grid == "gamma":
                times_of_steps = gamma_grid(model, t)
            elif grid == "optimal":
                times_of_steps = _best_grid(model, part, train_labels, t, fitted, seed)
            calibrated = _calibrated(model, part, train_labels, t, fitted, seed, times_of_steps)
        for name in names if t is not None else [None]:
            with _variance(model, name or own_variance(model), t, calibrated.get(name or "")):
                terms = bound_per_example(model, x, t, labels=labels, seed=seed, batch_size=batch_size, times=times)
            kind = f"upper bound on -log p(x), {'continuous time' if t is None else f'{t} steps'}"
            chosen = calibrated.get(name or "")
            kind += f", {grid} grid" if chosen is not None and chosen.grid is not None else ""
            extra = {n: terms[n].mean().item() * scale for n in ("reconstruction", "prior")}
            _add(result, "bound", t, name, terms["total"] * scale, unit, kind, extra)
            bar.update()
    if likelihood and not (model.denoiser.direct and not getattr(model.denoiser, "ode", False)):
        some = _First(x, likelihood_examples)
        found, kind, nfe = likelihood_per_example(
            model,
            some,
            labels=None if labels is None else labels[: len(some)],
            seed=seed,
            batch_size=batch_size,
            **likelihood_options,
        )
        # In bits per dimension the customary sign is that of a code length, as for the bound.
        values = -found["log_prob"] * scale if data.levels else found["log_prob"]
        extra = {"nfe": nfe, "solver_error": found["solver_error"].mean().item() * scale}
        _add(result, "log-likelihood", None, None, values, unit, kind, extra)
        bar.update()
    if quality is not None:
        _add_quality(
            result, model, data, split, quality, features, {"steps": 250, **(sampling or {})}, seed, batch_size
        )
        bar.update()
    bar.close()
    model.train(was_training)
    return result


def _add_quality(
    result: Evaluation,
    model: NDM,
    data: Data,
    split: str,
    n: int,
    features: str | nn.Module,
    sampling: dict[str, Any],
    seed: int,
    batch_size: int,
) -> None:
    from ndm.quality import fid_kid  # it needs torchmetrics

    device, real = device_of(model), _First(data.examples(split), n)
    blocks = [slice(b * batch_size, (b + 1) * batch_size) for b in mine(-(-len(real) // batch_size))]
    labels = _labels(data, split, len(real)) if _conditional(model) else None
    if labels is not None:  # as many samples of each class as there are examples
        labels = labels[torch.arange(n) % len(labels)]
    draw = sample_batches(
        model, n, data.shape, seed=seed, batch_size=batch_size, labels=labels,
        rank=rank(), world_size=world_size(), progress=False, **sampling,
    )  # fmt: skip
    scores = fid_kid(
        (real[rows].to(device) for rows in blocks), (x for _, x in draw), features, seed=seed, device=device
    )
    kind = f"{n} samples, {len(real)} examples, features of {scores.features}"
    common = {"steps": sampling["steps"], "variance": None, "unit": "", "examples": n, "kind": kind}
    result.rows.append({"quantity": "FID", "value": scores.fid, "stderr": None} | common)
    # KID's subsets overlap: their spread is not the error of the mean.
    result.rows.append({"quantity": "KID", "value": scores.kid, "stderr": None, "spread": scores.kid_std} | common)
    result.per_example += [torch.empty(0), torch.empty(0)]


def _labels(data: Data, split: str, n: int | None) -> Tensor | None:
    labels = data.labels(split)
    return None if labels is None else labels[:n]


def _conditional(model: NDM) -> bool:
    """Whether the denoiser's network takes class labels."""
    return bool(getattr(getattr(model.denoiser, "net", None), "classes", 0))


def _add(
    result: Evaluation,
    quantity: str,
    steps: int | None,
    variance: str | None,
    values: Tensor,
    unit: str,
    kind: str,
    extra: dict[str, Any],
) -> None:
    value, stderr = mean_and_error(values)
    row = {"quantity": quantity, "steps": steps, "variance": variance, "value": value, "stderr": stderr, "unit": unit}
    result.rows.append(row | {"examples": len(values), "kind": kind} | extra)
    result.per_example.append(values)
