r"""Denoisers: estimate the data, or the combination y needed by the reverse process, from z_t and its noise level.

A network is called as net(z, u) with u the noise level mapped to [0, 1], or another function of it. A denoiser
interprets its output in a parameterisation (:mod:`ndm.method.readings`) and, for the bound, computes the residual
between the target and the estimate without subtracting two nearly equal numbers (method, section 6): at gamma = -13.3
an error of one unit in the last place of a float32 x would otherwise be amplified by e^{-gamma} = 6e5.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ndm._internal.precision import run_network
from ndm.method.mixture import MixtureBase
from ndm.method.parts import Part
from ndm.method.readings import PATHS, READINGS, Clipped, FunctionNetwork, Network, Reading, on_path
from ndm.method.schedules import NoiseLevel, Schedule
from ndm.method.transforms.curve import unit_interval
from ndm.method.transforms.ranges import GammaRange

__all__ = [
    "BareDenoiser",
    "BaseDenoiser",
    "Denoiser",
    "DirectDenoiser",
    "Estimate",
    "as_denoiser",
]


@dataclass(frozen=True)
class Estimate:
    """The output of a denoiser for z_t. Tensors are (B, \\*shape).

    Attributes:
        mean: x_hat; for a direct denoiser the estimate of y, the combination of F needed by the reverse process.
        residual: (target, displacement, noise) -> target - mean, where z = alpha (target + displacement) + sigma noise.
        log_ratio: the head for the reverse variance, if the network has one: log(w / v), the log-ratio of predicted and
            posterior variance, or what the model's reverse variance reads.
        transformed: the estimate of F(x, gamma_t), if a direct denoiser has that head.
        transformed_loss: (F, noise) -> (B,), the regression loss of that head.
    """

    mean: Tensor
    residual: Callable[[Tensor, Tensor, Tensor], Tensor]
    log_ratio: Tensor | None = None
    transformed: Tensor | None = None
    transformed_loss: Callable[[Tensor, Tensor], Tensor] | None = None


class BaseDenoiser(Part):
    """Base class of denoisers. ``denoiser(z, level)`` is the mean; :meth:`estimate` returns all estimates."""

    #: Whether the denoiser estimates y, the combination of F needed by the reverse process, instead of x.
    direct = False

    @property
    def conditional(self) -> bool:
        """Whether some columns of a table may be given."""
        return False

    @abstractmethod
    def estimate(self, z: Tensor, level: NoiseLevel, labels: Tensor | None = None) -> Estimate:
        """Run the network once.

        Args:
            z: (B, \\*shape).
            level: the noise level of z, fields (B,).
            labels: class labels, (B,), passed to the network; None for an unconditional one.
        """

    def forward(self, z: Tensor, level: NoiseLevel, labels: Tensor | None = None) -> Tensor:
        """x_hat(z, gamma), (B, \\*shape)."""
        return self.estimate(z, level, labels).mean

    def set_gamma_range(self, gamma_min: float, gamma_max: float) -> None:
        """Set the schedule's end points. Denoisers that do not need them ignore the call."""

    def set_schedule(self, schedule: Schedule) -> None:
        """Set the model's schedule. Denoisers that do not need it ignore the call.

        Raises:
            ValueError: the denoiser does not fit the schedule.
        """

    def check_schedule(self, schedule: Schedule) -> None:
        """Raise a ValueError unless :meth:`set_schedule` can be called with the schedule."""


class _NetworkDenoiser(GammaRange, BaseDenoiser):
    """A denoiser with a network, a parameterisation, and a number for the noise level."""

    path = "own"

    def __init__(
        self,
        net: Network,
        parameterization: str,
        gamma_range: tuple[float, float] | None,
        base: MixtureBase | None,
    ) -> None:
        super().__init__()
        if parameterization not in READINGS:
            raise ValueError(f"There is no parameterization {parameterization!r}; choose one of {', '.join(READINGS)}.")
        if not callable(net):
            raise ValueError(f"The network of a denoiser must be a module or a function, got {net!r:.60}.")
        self.net = net if isinstance(net, nn.Module) else FunctionNetwork(net)
        self.parameterization = parameterization
        self.base: MixtureBase | None = None
        if base is not None:
            self.start_from(base)
        self._take_range(gamma_range)

    def start_from(self, base: MixtureBase) -> None:
        """Set the base.

        Raises:
            ValueError: the base has no estimate in this parameterisation.
        """
        if self.parameterization not in ("v", "eps", "x") or self.path != "own":
            raise ValueError('A base is for the parameterizations v, eps and x with path="own"; leave base out.')
        self.base = base

    def _number(self, level: NoiseLevel) -> Tensor:
        """The number that the network receives for a noise level on its path, (B,)."""
        return unit_interval(level.gamma, self.gamma_range)

    def _heads(self, z: Tensor, level: NoiseLevel, labels: Tensor | None, allowed: tuple[int, ...]) -> list[Tensor]:
        """The network's output split into heads, each (B, \\*shape), in the precision of z."""
        u = self._number(level)
        if level.shared:
            u = u[:1].expand(len(z))
        output = run_network(self.net, z, u, **({} if labels is None else {"labels": labels}))
        heads = output.shape[1] // z.shape[1]
        if output.shape != (z.shape[0], heads * z.shape[1], *z.shape[2:]) or heads not in allowed:
            raise ValueError(
                f"The denoiser's network must return {' or '.join(map(str, allowed))} times the channels of z, "
                f"shape {tuple(z.shape)}; it returned shape {tuple(output.shape)}."
            )
        return list(output.chunk(heads, dim=1))

    def _read(self, output: Tensor, z: Tensor, level: NoiseLevel) -> Reading:
        if self.base is not None:
            output = output + self.base(z, level, self.parameterization)
        return READINGS[self.parameterization](output, z, level)


TIMES = ("u", "gamma", "sigma", "t", "index")


class Denoiser(_NetworkDenoiser):
    """x_hat(z, gamma) from a network and a parameterisation.

    Args:
        net: called as net(z, u), z (B, \\*shape), u (B,) in [0, 1]; with class labels as net(z, u, labels=labels). It
            returns (B, \\*shape), or twice the channels: the second half is then log(w / v), the log-ratio of reverse
            and posterior variance per example and dimension, used with ``reverse_variance="predicted"``. A function
            that is not a module is accepted; a model with one cannot be saved.
        parameterization: what the network predicts: ``v`` (Salimans and Ho, arXiv 2202.00512), ``eps`` (DDPM), ``x``,
            ``score`` (the gradient of the log-density of the network's input), or ``velocity`` (noise - x, the target
            of flow matching and rectified flow with data at t = 0).
        gamma_range: the noise levels mapped to u = 0 and u = 1; by default the end points of the schedule of the first
            model that uses the denoiser.
        base: a module whose output is added to the network's; None for no base.
        time: the second argument of the network: ``u``, gamma mapped to [0, 1]; ``gamma``; ``sigma``, the standard
            deviation of the noise in its input (EDM's sigma with ``path="ve"``, flow matching's t with ``path="ot"``);
            ``t``, the time of the schedule; or ``index``, 0..N-1, the index of a :class:`ndm.TableSchedule`'s noise
            level, which is fractional between two of them.
        path: the path of the network's input: ``own``, z as it is; ``vp``, ``ve`` or ``ot``, z times the factor for
            which alpha^2 + sigma^2 = 1, alpha = 1 or alpha + sigma = 1. The output is read on the same path.
        clip: the largest absolute value of x_hat, beyond which it is clipped; None for no limit.
        clock: the schedule of ``time="t"`` and ``time="index"``; by default that of the model, which then cannot be
            replaced.

    Raises:
        ValueError: the parameterisation, the time or the path is unknown, the range is empty, ``clip`` is not positive,
            a base is combined with another path or parameterisation than it has, or the network returns another shape.

    Example:
        >>> import torch, ndm
        >>> edm = ndm.Denoiser(lambda x, sigma: x / (1 + sigma[:, None] ** 2), "x", time="sigma", path="ve")
        >>> ndm.NDM(ndm.LinearSchedule(), ndm.Identity(), edm).bound(torch.randn(5, 2)).total.shape
        torch.Size([5])
    """

    _of_model: tuple[Schedule, ...] = ()  # in a tuple, so that it is not a submodule

    def __init__(
        self,
        net: Network,
        parameterization: str = "v",
        gamma_range: tuple[float, float] | None = None,
        base: MixtureBase | None = None,
        time: str = "u",
        path: str = "own",
        clip: float | None = None,
        clock: Schedule | None = None,
    ) -> None:
        for value, name, known in ((time, "time", TIMES), (path, "path", PATHS)):
            if value not in known:
                raise ValueError(f"There is no {name} {value!r} of a denoiser; choose one of {', '.join(known)}.")
        if clip is not None and not 0 < clip < math.inf:
            raise ValueError(f"clip must be a positive number or None, got {clip}.")
        object.__setattr__(self, "path", path)  # read by start_from
        super().__init__(net, parameterization, gamma_range, base)
        self.time = time
        self.path = path
        self.clip = clip
        self.clock = clock
        if clock is not None:
            self._require_index(clock)

    def set_schedule(self, schedule: Schedule) -> None:
        self.check_schedule(schedule)
        if self.clock is None and self.time in ("t", "index"):
            self._of_model = (schedule,)

    def check_schedule(self, schedule: Schedule) -> None:
        if self.clock is not None or self.time not in ("t", "index"):
            return
        self._require_index(schedule)
        if self._of_model and self._of_model[0] is not schedule:
            raise ValueError(
                f"The denoiser's network receives the {self.time} of its first model's schedule: for a model with "
                "another schedule create a new denoiser, with clock= for the schedule that the network was trained on."
            )

    def _require_index(self, schedule: Schedule) -> None:
        if self.time == "index" and schedule.last_index is None:
            raise ValueError(
                f'time="index" is for a TableSchedule, not for a {type(schedule).__name__}; use time="t", and clock= '
                "for the schedule that the network was trained on."
            )

    def _number(self, level: NoiseLevel) -> Tensor:
        if self.time in ("t", "index"):
            clock = self.clock or (self._of_model[0] if self._of_model else None)
            if clock is None:
                raise ValueError(f'time="{self.time}" needs a schedule: use the denoiser in a model, or give clock=.')
            t = clock.time_at(level.gamma)
            return t if self.time == "t" else t * (clock.last_index or 1)
        return {"gamma": level.gamma, "sigma": level.sigma}.get(self.time, super()._number(level))

    def estimate(self, z: Tensor, level: NoiseLevel, labels: Tensor | None = None) -> Estimate:
        z, level = on_path(self.path, z, level)
        heads = self._heads(z, level, labels, allowed=(1, 2))
        reading = self._read(heads[0], z, level)
        if self.clip is not None:
            reading = Clipped(reading, self.clip)
        return Estimate(reading.mean(), reading.residual, log_ratio=heads[1] if len(heads) == 2 else None)


#: The weight of the regression loss of the head for E[F | z]. The head's own weights have no other gradient, and Adam
#: normalises it, so they learn equally fast at any weight. The shared weights are trained mainly by the bound.
AUXILIARY_WEIGHT = 1e-3


class DirectDenoiser(_NetworkDenoiser):
    """A direct reverse process (DiffEnc, arXiv 2310.19789, section 4): the network predicts y, and F(x_hat) is not
    needed.

    y is the combination of F needed by the reverse process, F - dF/dgamma in continuous time with eta = 1. The
    network's output is interpreted as if the target were F(x, gamma_t), which differs from y by the slope of F alone.

    Such a model has an SDE but no ODE, which also needs F. With ``ode=True`` the network has an additional last head
    for E[F | z]. It is trained by a separate regression loss (``BoundTerms.auxiliary``), which is not part of the
    bound. Its gradient also reaches the weights shared by the heads, and F through z. The loss is therefore weighted by
    1/1000: an optimiser that normalises gradients, such as Adam, still trains the head, and the effect on other weights
    is small.

    Args:
        net: as for :class:`Denoiser`; one more head with ``ode``.
        parameterization: see :class:`Denoiser`.
        gamma_range: see :class:`Denoiser`.
        ode: whether the network has the head for E[F | z].
        base: as for :class:`Denoiser`; both estimates start from it.

    Raises:
        ValueError: as for :class:`Denoiser`.
    """

    direct = True

    def __init__(
        self,
        net: nn.Module,
        parameterization: str = "v",
        gamma_range: tuple[float, float] | None = None,
        ode: bool = False,
        base: MixtureBase | None = None,
    ) -> None:
        super().__init__(net, parameterization, gamma_range, base)
        self.ode = ode

    def estimate(self, z: Tensor, level: NoiseLevel, labels: Tensor | None = None) -> Estimate:
        heads = self._heads(z, level, labels, allowed=(2, 3) if self.ode else (1, 2))
        last = self._read(heads.pop(), z, level) if self.ode else None
        reading = self._read(heads[0], z, level)

        def transformed_loss(transformed: Tensor, noise: Tensor) -> Tensor:
            assert last is not None
            gap = last.residual(transformed.detach(), torch.zeros_like(noise), noise)
            # In units of sigma / alpha all noise levels have equal weight, as in DDPM's simple loss.
            return AUXILIARY_WEIGHT * ((gap * last.alpha / last.sigma) ** 2).flatten(1).sum(1) / 2

        return Estimate(
            mean=reading.mean(),
            residual=reading.residual,
            log_ratio=heads[1] if len(heads) == 2 else None,
            transformed=last.mean() if last else None,
            transformed_loss=transformed_loss if last else None,
        )


class BareDenoiser(BaseDenoiser):
    """Any module called as denoiser(z, level) -> x_hat, (B, \\*shape), for example an exact posterior mean.

    Args:
        module: the module. With class labels it is called as module(z, level, labels=labels).
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def estimate(self, z: Tensor, level: NoiseLevel, labels: Tensor | None = None) -> Estimate:
        x_hat = run_network(self.module, z, level, **({} if labels is None else {"labels": labels}))
        return Estimate(mean=x_hat, residual=lambda target, displacement, noise: target - x_hat)


def as_denoiser(module: nn.Module) -> BaseDenoiser:
    """The module itself if it is a denoiser, else wrapped as one."""
    return module if isinstance(module, BaseDenoiser) else BareDenoiser(module)
