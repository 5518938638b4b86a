"""Results of an audit: the numbers, and their text and JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from ndm.evaluation.results import mean_and_error, strict
from ndm.storage.atomic import atomic_write

__all__ = ["Audit", "BoundRow", "EndRow", "Integral", "LevelRow", "OdeRow", "Value", "value_of"]


class Value(NamedTuple):
    """A mean over examples and its standard error (NaN for one example), in the unit of the audit."""

    value: float
    stderr: float


def value_of(values: Tensor) -> Value:
    """The mean of the finite values of (N,), and its standard error; NaN if there is none."""
    finite = values[values.isfinite()]
    return Value(*mean_and_error(finite)) if len(finite) else Value(float("nan"), float("nan"))


@dataclass(frozen=True, eq=False)
class BoundRow:
    """The bound by term.

    Attributes:
        steps: T; None for continuous time.
        variance: the reverse variance: posterior, the name of the model's own, or calibrated; None in continuous time.
        total: the bound.
        prior: prior term.
        reconstruction: reconstruction term.
        diffusion: diffusion term.
        not_finite: number of examples without a finite bound, which are left out of all values.
        per_example: the bound of each example, (N,).
    """

    steps: int | None
    variance: str | None
    total: Value
    prior: Value
    reconstruction: Value
    diffusion: Value
    not_finite: int
    per_example: Tensor


@dataclass(frozen=True)
class LevelRow:
    """The diffusion term in continuous time between two noise levels, ``low`` and ``high``, and its share."""

    low: float
    high: float
    diffusion: Value
    share: float


@dataclass(frozen=True)
class EndRow:
    """The bound in continuous time with another end of the schedule, with the same networks.

    Attributes:
        gamma_0: the lowest noise level.
        decoder: the name of the decoder's class.
        own: whether both are the model's.
        total: the bound.
        reconstruction: reconstruction term.
        diffusion: diffusion term.
        saving: the model's own bound minus this one, by example.
    """

    gamma_0: float
    decoder: str
    own: bool
    total: Value
    reconstruction: Value
    diffusion: Value
    saving: Value


@dataclass(frozen=True)
class OdeRow:
    """The likelihood under the ODE.

    Attributes:
        dequantization: uniform, variational, importance; None for a density.
        kind: description of the number.
        value: -log p, in the unit of the audit.
        solver_error: mean stated error of the solver, in the same unit.
        examples: number of examples.
        unsolved: number of examples that are not solved to the tolerance, or not at all.
        nfe: number of drift evaluations.
    """

    dequantization: str | None
    kind: str
    value: Value
    solver_error: float
    examples: int
    unsolved: int
    nfe: int

    @property
    def name(self) -> str:
        """What -log p is, in short."""
        if self.dequantization is None:
            return "at most, latent from q(c | x)" if self.kind.startswith("lower bound") else "density"
        way = "importance-weighted" if self.dequantization == "importance" else f"{self.dequantization} dequantisation"
        return f"estimate, not a bound, {way} with probes" if "not a bound" in self.kind else f"at most, {way}"


@dataclass(frozen=True)
class Integral:
    """The integral of the ODE's density over a grid that covers the data.

    Attributes:
        value: the integral, which is 1 for a grid that covers the density and resolves it.
        grid_error: the difference from the integral over every second point of the grid.
        solver_error: the density's average of the stated error of the solver, relative.
        points: number of points of each axis.
        low: lower ends of the axes.
        high: upper ends of the axes.
        unsolved: number of points at which the density could not be computed, where it is taken as 0.
        label: class label of the density; None for a model without classes.
    """

    value: float
    grid_error: float
    solver_error: float
    points: int
    low: Sequence[float]
    high: Sequence[float]
    unsolved: int
    label: int | None = None


@dataclass(eq=False)
class Audit:
    """What the likelihood of a model is made of.

    Attributes:
        about: data, split, ``split_examples``, ``examples``, ``times``, ``dimensions``, decoder, ``gamma_0``,
            ``gamma_1``, ``own_variance``, ``calibrated_variance`` (its kind, or None), ``steps_of_schedule`` (N - 1 of
            a schedule of N levels, or None), seed.
        unit: ``bits/dim`` for K-level data, else ``nats`` (of the whole example).
        bounds: the bound by number of steps and variance.
        levels: the diffusion term by noise level.
        ends: the bound by end of the schedule, the model's own first; empty if it is left out.
        ode: the likelihood under the ODE, by dequantisation.
        integral: of the ODE's density over a grid; None if it is left out.
        comparisons: savings by name, from differences by example.
        left_out: why parts are left out, by part.
        warnings: sentences about known traps.
        quote: sentences that say what to quote.
        advice: sentences that say what would lower the number.
    """

    about: dict[str, Any]
    unit: str
    bounds: list[BoundRow] = field(default_factory=list)
    levels: list[LevelRow] = field(default_factory=list)
    ends: list[EndRow] = field(default_factory=list)
    ode: list[OdeRow] = field(default_factory=list)
    integral: Integral | None = None
    left_out: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    quote: list[str] = field(default_factory=list)
    advice: list[str] = field(default_factory=list)

    def find(self, steps: int | None, variance: str | None = None) -> BoundRow | None:
        """The bound with this number of steps and variance, or None."""
        return next((r for r in self.bounds if (r.steps, r.variance) == (steps, variance)), None)

    def to_dict(self) -> dict[str, Any]:
        """The numbers and sentences in JSON types, without those of single examples; non-finite numbers are None."""
        found = asdict(self)
        for row in found["bounds"]:
            del row["per_example"]
        return _plain(found)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write :meth:`to_dict` as JSON, atomically; a file of that name is replaced.

        Raises:
            OSError: the file cannot be written.
        """
        path = Path(path)
        with atomic_write(path) as file:
            file.write((json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n").encode())
        return path

    def text(self) -> str:
        """The page as plain text."""
        from ndm.evaluation.auditing.tables import plain_text

        return plain_text(self)


def _plain(value: Any) -> Any:
    """JSON types: a :class:`Value` becomes a mapping of its fields."""
    if isinstance(value, Value):
        return strict(value._asdict())
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return strict(value)
