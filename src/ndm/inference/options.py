"""Options of the samplers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from ndm._internal.inputs import check_steps
from ndm.inference.solvers import FIXED_STEP_ODE, FIXED_STEP_SDE
from ndm.storage.texts import did_you_mean

__all__ = ["METHODS", "MULTISTEP", "SPACINGS", "SamplerOptions", "sampler_options"]

METHODS = ("ancestral", "ddim", "ode", "sde")

#: The variables in which steps can be even.
SPACINGS = ("time", "gamma")

#: The name of the solver of :mod:`ndm.inference.multistep`.
MULTISTEP = "dpm++2m"

#: The solvers of the methods that have any, and those of them that do not take the times of the steps.
_SOLVERS = {"ode": (*FIXED_STEP_ODE, MULTISTEP, "dopri5"), "sde": ("euler-maruyama", MULTISTEP, *FIXED_STEP_SDE)}
_ADAPTIVE = {"ode": ("dopri5",), "sde": FIXED_STEP_SDE}


@dataclass(frozen=True)
class SamplerOptions:
    r"""Options of :func:`ndm.sample`.

    Args:
        method: ``ancestral`` (section 3 of NDM, arXiv 2310.08337), ``ddim`` (Song et al., arXiv 2010.02502), ``ode`` or
            ``sde`` (the continuous-time reverse process; Song et al., arXiv 2011.13456).
        steps: the number of steps, at least 1; for ``ode`` and ``sde`` None means an adaptive solver.
        eta: the volatility, without unit; by default the model's own. For ``ancestral``, 0 is DDIM. The reverse
            variance (posterior, learned, predicted, calibrated for this T) applies to the model's own volatility; with
            another one the noise has the posterior's variance.
        solver: ``ode``: ``euler``, ``midpoint``, ``heun``, ``rk4`` (fixed step), ``dpm++2m`` (DPM-Solver++ 2M; Lu et
            al., arXiv 2211.01095) or ``dopri5`` (adaptive; the default without steps, else ``heun``). ``sde``:
            ``euler-maruyama`` (default), ``dpm++2m`` (SDE-DPM-Solver++ 2M), or torchsde's ``euler`` or ``srk`` (the
            default without steps). The other methods have none. A step of ``dpm++2m`` evaluates the network once
            (:mod:`ndm.inference.multistep`). For a clipped schedule the other fixed-step solvers of the ODE follow
            flow matching's path, and some steps of ``euler-maruyama`` are exact steps for a constant estimate
            (:mod:`ndm.inference.reverse`).
        rtol: relative tolerance of one step of an adaptive solver.
        atol: absolute tolerance of one step of an adaptive solver, in the model's units: standardised data.
        guidance: the weight w of classifier-free guidance (Ho and Salimans, arXiv 2207.12598), see
            :class:`~ndm.GuidedDenoiser`; None and 0 mean no guidance. It doubles the cost of a network pass.
        spacing: the spacing of the steps: even in ``time``, or even in ``gamma`` = log(sigma^2 / alpha^2). By default,
            ancestral steps are those of the model's calibration for this T, if there is one; otherwise the schedule
            sets the default (:attr:`ndm.Schedule.spacing`): ``gamma`` for a :class:`~ndm.LearnedSchedule` trained in
            continuous time, ``time`` for all others. For ``dpm++2m`` it is always ``gamma``, the variable of its
            extrapolation. With ``time`` ancestral samples come from the model whose T-step bound is
            ``model.bound(x, T)``, including its calibration if there is one. With ``gamma`` a variance calibrated for
            this T is not used, because it applies only to its own steps; ``model.calibrate(data, steps=T,
            spacing="gamma")`` calibrates for these steps. For the ODE and SDE solvers, the spacing sets the end points
            of the steps. The integration variable is time or, for a clipped schedule, that of
            :mod:`ndm.inference.reverse`; for ``dpm++2m`` it is gamma.
        dtype: the precision of the state; by default that of the model's networks. It must be that one if they have
            weights.

    Raises:
        ValueError: the method, solver or spacing is unknown; ``steps`` is not a whole number of at least one, or is
            missing for a method or solver with fixed steps; eta is negative, not finite, or given for a method without
            noise; a solver is given for a method without one; a tolerance is negative or not finite; or
            ``spacing="gamma"`` is given for an adaptive solver.

    Example:
        >>> import ndm
        >>> options = ndm.SamplerOptions(method="ode", steps=20, solver="rk4")
        >>> options.changed(steps=40).steps
        40
    """

    method: str = "ancestral"
    steps: int | None = 100
    eta: float | None = None
    solver: str | None = None
    rtol: float = 1e-5
    atol: float = 1e-5
    guidance: float | None = None
    spacing: str | None = None
    dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"There is no sampling method {self.method!r}; choose one of {', '.join(METHODS)}.")
        if self.steps is not None:
            check_steps(self.steps)
        elif self.method not in _SOLVERS:
            raise ValueError(f"method={self.method!r} needs a number of steps; only ode and sde have adaptive solvers.")
        self._check_eta()
        self._check_spacing()
        self._check_solver()

    @property
    def solver_name(self) -> str:
        """The solver of ``ode`` or ``sde``, with its default."""
        if self.method == "ode":
            return self.solver or ("dopri5" if self.steps is None else "heun")
        return self.solver or ("srk" if self.steps is None else "euler-maruyama")

    @property
    def has_own_times(self) -> bool:
        """Whether the solver does not take the times of the steps: it is adaptive, or one of torchsde's."""
        return self.steps is None or self.solver in _ADAPTIVE.get(self.method, ())

    def changed(self, **changes: Any) -> SamplerOptions:
        """Return a copy with other values. With another method the solver is its default, if none is given.

        Raises:
            TypeError: a name is not that of a field.
            ValueError: as for the class.
        """
        return sampler_options(self, changes)

    def _check_eta(self) -> None:
        if self.eta is None:
            return
        if self.method not in ("ancestral", "sde"):
            raise ValueError(
                f"eta, the volatility, is for the methods ancestral and sde; leave it out with {self.method!r}."
            )
        if not 0 <= self.eta < math.inf:
            raise ValueError(f"eta must be a finite number of at least 0, got {self.eta}.")

    def _check_spacing(self) -> None:
        if self.spacing not in (None, *SPACINGS):
            raise ValueError(f"There is no spacing {self.spacing!r} of the steps; choose one of {', '.join(SPACINGS)}.")
        if self.spacing == "gamma" and self.has_own_times:
            solver = "an adaptive solver" if self.steps is None else f"the solver {self.solver!r}"
            raise ValueError(f"spacing='gamma' cannot be used with {solver}, which sets its own steps; leave it out.")

    def _check_solver(self) -> None:
        if not all(0 <= tolerance < math.inf for tolerance in (self.rtol, self.atol)):
            raise ValueError(f"rtol and atol must be finite and at least 0, got rtol={self.rtol}, atol={self.atol}.")
        known, name = _SOLVERS.get(self.method), self.solver_name
        if known is None:
            if self.solver is not None:
                raise ValueError(f"A solver is for the methods ode and sde; leave it out with {self.method!r}.")
            return
        if name not in known:
            raise ValueError(f"There is no solver {name!r} for this method; choose one of {', '.join(known)}.")
        if self.steps is None and name not in _ADAPTIVE[self.method]:
            raise ValueError(f"The fixed-step solver {name!r} needs a number of steps.")


def sampler_options(
    options: SamplerOptions | None, changes: Mapping[str, Any], keywords: Sequence[str] = ()
) -> SamplerOptions:
    """Options with some fields replaced. With another method the solver is its default, if none is given.

    Args:
        options: the options; None for the defaults.
        changes: values by field.
        keywords: further arguments of the caller, for the message about an unknown name.

    Raises:
        TypeError: ``options`` is something else, or a name is not that of a field.
        ValueError: as for :class:`SamplerOptions`.
    """
    if not isinstance(options, (SamplerOptions, type(None))):
        raise TypeError(f"options must be SamplerOptions, got {options!r:.60}; give single options by name: method=.")
    known = [f.name for f in fields(SamplerOptions)]
    for name in changes:
        if name not in known:
            end = did_you_mean(name, [*known, *keywords], f"there are {', '.join(known)}")
            raise TypeError(f"There is no sampling option {name!r}{end}")
    if options is not None and changes.get("method", options.method) != options.method:
        changes = {"solver": None, **changes}
    return replace(options or SamplerOptions(), **changes)
