"""What can be chosen about an evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from torch import nn

from ndm.evaluation.per_example import BLOCK, TIMES
from ndm.method.grids import SPACINGS

__all__ = ["VARIANCES", "EvaluationOptions"]

#: Network evaluations that a calibration may spend.
CALIBRATION_BUDGET = 50_000

#: The reverse variances that a bound can have: the last three are calibrated.
VARIANCES = ("posterior", "own", "isotropic", "diagonal", "full")


@dataclass(frozen=True)
class EvaluationOptions:
    """What is measured by :func:`evaluate`, and how.

    Args:
        split: ``train``, ``validation`` or ``test``.
        steps: the numbers of steps T; None for continuous time, in which the reverse variance plays no part.
        variances: ``posterior``, ``own`` (what the model was trained with), ``isotropic``, ``diagonal``, ``full``.
        spacing: of the steps of bounds with calibrated variances: even in ``time`` or in ``gamma``, or ``optimal``,
            which finds the best ones by 500 of those examples (:mod:`ndm.method.grids`), up to T = 100.
        times: of an example, for a bound with more steps than that or in continuous time.
        calibration: network evaluations per example and step that a calibration may spend: with T steps it is made from
            ``calibration`` / T random training examples.
        likelihood: measure the ODE's log-likelihood as well, where the model has an ODE.
        likelihood_options: for :func:`ndm.log_likelihood`.
        max_examples: take so many random examples of the split only.
        likelihood_examples: take so many of these, at random, for the log-likelihood alone, which costs most.
        quality: how many samples to compare with as many random examples of the split by FID and KID; None for no
            comparison.
        features: for :func:`ndm.evaluation.quality.fid_kid`: ``inception``, a folder, or a network.
        sampling: options for :func:`ndm.sample`, by default ancestral sampling in 250 steps.
        mixture: compare with a Gaussian mixture (:mod:`ndm.evaluation.baselines`) where that can be done: the data are
            vectors and continuous, the model is told no classes, and scikit-learn is installed.
        seed: of every random number, and of which examples are taken.
        batch_size: how many examples at a time.

    Raises:
        ValueError: there is no such spacing.
    """

    split: str = "test"
    steps: Sequence[int | None] = (10, 50, 1000, None)
    variances: Sequence[str] = ("posterior", "own", "isotropic")
    spacing: str = "time"
    times: int = TIMES
    calibration: int = CALIBRATION_BUDGET
    likelihood: bool = True
    likelihood_options: Mapping[str, Any] = field(default_factory=dict)
    max_examples: int | None = None
    likelihood_examples: int | None = None
    quality: int | None = None
    features: str | nn.Module = "inception"
    sampling: Mapping[str, Any] = field(default_factory=dict)
    mixture: bool = False
    seed: int = 0
    batch_size: int = BLOCK

    def __post_init__(self) -> None:
        if self.spacing not in SPACINGS:
            raise ValueError(f"There is no spacing {self.spacing!r}; choose one of {', '.join(SPACINGS)}.")

    def changed(self, **changes: Any) -> EvaluationOptions:
        """The same with other values; what is no field is an option for :func:`ndm.log_likelihood`."""
        names = {f.name for f in fields(self)}
        own = {name: value for name, value in changes.items() if name in names}
        others = {name: value for name, value in changes.items() if name not in names}
        return replace(self, **{"likelihood_options": {**self.likelihood_options, **others}, **own})
