"""Options of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from torch import nn

from ndm.evaluation.per_example import BLOCK, TIMES
from ndm.inference.options import SamplerOptions
from ndm.method.calibration import AUTO
from ndm.method.grids import SPACINGS
from ndm.method.variances import COVARIANCES

__all__ = ["VARIANCES", "EvaluationOptions"]

#: Maximum number of network evaluations of a calibration.
CALIBRATION_BUDGET = 50_000

#: Reverse variances of a bound; the last five are calibrated.
VARIANCES = ("posterior", "own", *COVARIANCES, AUTO)


@dataclass(frozen=True)
class EvaluationOptions:
    """Options of :func:`evaluate`.

    Args:
        split: ``train``, ``validation`` or ``test``.
        steps: numbers of steps T; None for continuous time, which does not depend on the reverse variance.
        variances: ``posterior``, ``own`` (the model's), ``isotropic``, ``diagonal``, ``frequency`` (for images),
            ``full``; ``auto`` for the better one of ``diagonal`` and ``frequency`` for images, and ``isotropic`` for
            other data.
        spacing: spacing of the steps for calibrated variances: uniform in ``time`` or in ``gamma``, or ``optimal``,
            which is computed from 500 of those examples (:mod:`ndm.method.grids`), up to T = 100.
        times: times per example, for a bound with more steps than that or in continuous time.
        calibration: maximum number of network evaluations of a calibration: with T steps, ``calibration`` / T random
            training examples are used.
        likelihood: also compute the log-likelihood, if the model has an ODE.
        likelihood_options: options of :func:`ndm.log_likelihood`.
        max_examples: number of random examples of the split to use; None for all.
        likelihood_examples: number of these, at random, for the log-likelihood, which is the most expensive.
        quality: number of samples, and of random examples of the split, for FID and KID; None to skip.
        features: features for :func:`ndm.evaluation.quality.fid_kid`: ``inception``, a folder, or a network.
        sampling: the sampler for ``quality``; or a mapping with the fields to change in the default, ancestral sampling
            in 250 steps.
        mixture: compare with a mixture (:mod:`ndm.evaluation.baselines`, :mod:`ndm.evaluation.table_mixtures`), if the
            data are continuous vectors or rows of a table, the model has no classes, and scikit-learn is installed.
        seed: seed of all random numbers and subsets.
        batch_size: batch size.

    Raises:
        TypeError: ``sampling`` has a name that is not a field of :class:`ndm.SamplerOptions`.
        ValueError: the spacing is unknown, or as for :class:`ndm.SamplerOptions`.
    """

    split: str = "test"
    steps: Sequence[int | None] = (10, 50, 1000, None)
    variances: Sequence[str] = ("posterior", "own", AUTO)
    spacing: str = "time"
    times: int = TIMES
    calibration: int = CALIBRATION_BUDGET
    likelihood: bool = True
    likelihood_options: Mapping[str, Any] = field(default_factory=dict)
    max_examples: int | None = None
    likelihood_examples: int | None = None
    quality: int | None = None
    features: str | nn.Module = "inception"
    sampling: SamplerOptions | Mapping[str, Any] = field(default_factory=dict)
    mixture: bool = False
    seed: int = 0
    batch_size: int = BLOCK

    def __post_init__(self) -> None:
        if self.spacing not in SPACINGS:
            raise ValueError(f"There is no spacing {self.spacing!r}; choose one of {', '.join(SPACINGS)}.")
        _ = self.sampler  # raises an error if it is wrong

    @property
    def sampler(self) -> SamplerOptions:
        """``sampling`` with its defaults."""
        if isinstance(self.sampling, SamplerOptions):
            return self.sampling
        return SamplerOptions(steps=250).changed(**self.sampling)

    def changed(self, **changes: Any) -> EvaluationOptions:
        """Return a copy with other values; names that are not fields are options of :func:`ndm.log_likelihood`."""
        names = {f.name for f in fields(self)}
        own = {name: value for name, value in changes.items() if name in names}
        others = {name: value for name, value in changes.items() if name not in names}
        return replace(self, **{"likelihood_options": {**self.likelihood_options, **others}, **own})
