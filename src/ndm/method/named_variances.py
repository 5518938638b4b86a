"""The reverse variances of DDPM and Improved DDPM, and the names of all that need no arguments."""

from __future__ import annotations

from torch import Tensor

from ndm.method.denoisers import Estimate
from ndm.method.schedules import per_example
from ndm.method.variances import (
    Covariance,
    Diagonal,
    LearnedVariance,
    PosteriorVariance,
    PredictedVariance,
    ReverseVariance,
    Step,
)

__all__ = ["LargeVariance", "RangeVariance", "variance_named"]


class LargeVariance(ReverseVariance):
    """w = sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2: DDPM's beta_t, the "large" variance (arXiv 2006.11239, 3.2).

    With eta = 1, w / v = sigma_t^2 / sigma_s^2 for every schedule. With a noise that the reverse process is given v is
    that of each dimension, and the ratio that of the model's schedule.
    """

    def forward(self, step: Step, estimate: Estimate) -> Covariance:
        return Diagonal(per_example(_log_largest(step), estimate.mean))


class RangeVariance(ReverseVariance):
    """log w between that of the posterior and that of :class:`LargeVariance`, per example and dimension.

    The head of the network is -1 at the first and 1 at the second (Improved DDPM, arXiv 2102.09672, equation 15;
    "learned_range" in its code).
    """

    def forward(self, step: Step, estimate: Estimate) -> Covariance:
        if estimate.log_ratio is None:
            raise ValueError(
                'reverse_variance="range" needs a denoiser whose network returns twice the channels of the data: the '
                "second half interpolates between two log-variances."
            )
        fraction = (estimate.log_ratio + 1) / 2
        return Diagonal(fraction * per_example(_log_largest(step), fraction))


def _log_largest(step: Step) -> Tensor:
    """log(sigma_t^2 / sigma_s^2), (B,)."""
    return 2 * (step.t.sigma.log() - step.s.sigma.log())


_NAMED: dict[str, type[ReverseVariance]] = {
    "posterior": PosteriorVariance,
    "large": LargeVariance,
    "learned": LearnedVariance,
    "predicted": PredictedVariance,
    "range": RangeVariance,
}


def variance_named(name: str) -> ReverseVariance:
    """The reverse variance of an abbreviation.

    Raises:
        ValueError: there is none.
    """
    if name not in _NAMED:
        raise ValueError(f"There is no reverse variance {name!r}; choose one of {', '.join(_NAMED)}.")
    return _NAMED[name]()
