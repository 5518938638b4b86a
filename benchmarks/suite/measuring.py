"""Bounds of a trained model with every reverse variance at once, for each example; and differences between models."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from bench import mean_and_error
from torch import Tensor

import ndm
from ndm._internal.random import seed_of
from ndm.data import Data, Examples
from ndm.evaluation import own_variance
from ndm.method.bounds import calibrated_variance, error_moments
from ndm.method.denoisers import Estimate
from ndm.method.variances import Covariance, Moments, PosteriorVariance, ReverseVariance, Step
from suite.settings import Row

CALIBRATED = ("isotropic", "diagonal")

#: Examples that are measured at a time.
BLOCK = 250

#: Seeds of the times and the noise: the same for every model and every training.
TEST, VALIDATION, CALIBRATION = range(3)


class _Together(Covariance):
    """Several covariances of the same steps: the network's error is needed once for all."""

    def __init__(self, each: Mapping[str, Covariance]) -> None:
        self.each = each
        self.found: dict[str, Tensor] = {}

    def kl(self, e: Tensor) -> Tensor:
        self.found = {name: covariance.kl(e) for name, covariance in self.each.items()}
        return next(iter(self.found.values()))

    def colour(self, noise: Tensor) -> Tensor:
        raise NotImplementedError("It is for measuring bounds.")


class _All(ReverseVariance):
    def __init__(self, variances: Mapping[str, ReverseVariance]) -> None:
        super().__init__()
        self.variances = torch.nn.ModuleDict(dict(variances))
        self.last = _Together({})

    def forward(self, step: Step, estimate: Estimate) -> Covariance:
        self.last = _Together({name: variance(step, estimate) for name, variance in self.variances.items()})
        return self.last


@torch.no_grad()
def bounds(
    model: ndm.NDM,
    x: Tensor,
    steps: int | None,
    variances: Mapping[str, ReverseVariance],
    times: int,
    stream: int = TEST,
) -> dict[str, Tensor]:
    """The bound of each example with each reverse variance, and those parts of it that have nothing to do with it.

    As :func:`ndm.evaluation.bound_per_example`, but by one pass over the networks for all variances.

    Args:
        model: the model, in evaluation mode.
        x: (N, \\*shape).
        steps: T, or None for continuous time, for which there is one bound, called ``-``.
        variances: by name.
        times: of an example, where not every step is looked at.
        stream: of the times and the noise.

    Returns:
        ``reconstruction``, ``prior`` and the bounds by the names of the variances, each (N,), in nats, in float64.
    """
    repeats = steps if steps is not None and steps <= times else times
    own, together = model.reverse_variance, _All(variances)
    columns: dict[str, list[Tensor]] = {}
    try:
        model.reverse_variance = together
        for block, part in enumerate(x.split(BLOCK)):
            # Not of T, so that a bound of many steps and that in continuous time are of the same times and noise.
            generator = torch.Generator().manual_seed(seed_of(stream, block))
            sums: dict[str, Tensor] = {}
            for r in range(repeats):
                u = torch.rand(len(part), generator=generator, dtype=torch.float64)
                terms = model.bound(part, steps, times=(r + u) / repeats, generator=generator, check=r == 0)
                here = {"reconstruction": terms.reconstruction, "prior": terms.prior}
                if steps is None:
                    here["-"] = terms.total
                else:
                    rest = terms.prior + terms.reconstruction
                    here |= {name: steps * kl + rest for name, kl in together.last.found.items()}
                for name, values in here.items():
                    sums[name] = sums.get(name, 0) + values.double() / repeats
            for name, values in sums.items():
                columns.setdefault(name, []).append(values)
    finally:
        model.reverse_variance = own
    return {name: torch.cat(values) for name, values in columns.items()}


def calibrated(model: ndm.NDM, train: Examples, steps: int, budget: int) -> dict[str, ReverseVariance]:
    """The calibrated variances for T steps, both from one pass over the first ``budget`` / T training examples."""
    x = train[: max(1, budget // steps)]
    moments = Moments(steps, x[0].numel(), full=False)
    for block, part in enumerate(x.split(BLOCK)):
        generator = torch.Generator().manual_seed(seed_of(CALIBRATION, steps, block))
        moments = moments + error_moments(model, part, steps, generator=generator)
    found: dict[str, ReverseVariance] = {}
    for name in CALIBRATED:
        variance = calibrated_variance(model, x[:1], steps, name)
        variance.fit(moments)
        found[name] = variance
    return found


def scale(data: Data) -> float:
    """What a bound in nats is multiplied by: bits per dimension for K-level data."""
    return 1.0 if data.levels is None else 1 / (math.prod(data.shape) * math.log(2))


def unit(data: Data) -> str:
    return "nats" if data.levels is None else "bits/dim"


def measure(model: ndm.NDM, row: Row, data: Data) -> dict[str, Tensor]:
    """Every bound of the row on the test split, (N,) each, in the data's unit, by the key ``STEPS/VARIANCE``.

    Variances are ``posterior``, ``isotropic``, ``diagonal`` and, where that is another one, the model's own. With them
    come ``STEPS/reconstruction`` and ``STEPS/prior``.
    """
    model.eval()
    x, found = data.examples("test")[: row.examples], {}
    for steps in row.bounds:
        variances: dict[str, ReverseVariance] = {}
        if steps is not None:
            variances = {"posterior": PosteriorVariance()} | calibrated(
                model, data.examples("train"), steps, row.calibration
            )
            variances[own_variance(model)] = model.reverse_variance
        for name, values in bounds(model, x, steps, variances, row.times).items():
            found[f"{steps or 'continuous'}/{name}"] = values * scale(data)
    return found


def validate(model: ndm.NDM, row: Row, data: Data, steps: int | None, examples: int, times: int) -> tuple[float, float]:
    """The mean and standard error of the bound that the model was trained on, over validation examples."""
    x = data.examples("validation")[:examples]
    found = bounds(model.eval(), x, steps, {"own": model.reverse_variance}, times, VALIDATION)
    return mean_and_error(found["-" if steps is None else "own"] * scale(data))


def compared(found: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    """One object per bound: its mean and standard error, and the same of the difference from the reference's.

    Differences are taken example by example: two models' bounds on the same image vary together, and their difference
    is known better than either. A bound with the model's own variance that the reference lacks is compared with the
    reference's with the diagonal one, the best that can be had after training.
    """
    rows = []
    for key, values in found.items():
        steps, name = key.split("/")
        if name in ("reconstruction", "prior"):
            continue
        value, error = mean_and_error(values)
        other = reference[key] if key in reference else reference[f"{steps}/diagonal"]
        difference, difference_error = mean_and_error(values - other)
        rows.append(
            {
                "steps": None if steps == "continuous" else int(steps),
                "variance": name,
                **_rounded({"value": value, "stderr": error}),
                **_rounded({k: found[f"{steps}/{k}"].mean().item() for k in ("reconstruction", "prior")}),
                **_rounded({"difference": difference, "difference_stderr": difference_error}),
            }
        )
    return rows


def over_seeds(of_seeds: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The mean over seeds of figures (mean, standard error over examples), and its standard error.

    error^2 = s^2 / S + mean_s(e_s^2): s^2 is the variance between the S seeds, of the trainings, and e_s the error over
    the examples in seed s. The examples are the same for all seeds, so that their part does not become less by
    averaging over seeds. Of one seed there is the examples' part alone.
    """
    means, errors = zip(*of_seeds, strict=True)
    mean, between = mean_and_error(means)
    examples = sum(e**2 for e in errors) / len(errors)
    return mean, math.sqrt(examples + (between**2 if len(means) > 1 else 0.0))


def _rounded(figures: Mapping[str, float]) -> dict[str, float]:
    """To six decimals, which is far below any error here, and keeps the files small."""
    return {name: round(value, 6) for name, value in figures.items()}
