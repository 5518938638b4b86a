r"""The paths of the reverse ODE: their acceleration, a penalty on it, and what they cost.

Along a path of the ODE that generates data, dz/dt = f(z, t) (method, section 5), the acceleration is

    d/dt f(z_t, t) = df/dt + (df/dz) f.

It is zero where paths are straight and run at one speed, and then one step of Euler's method is exact. Training on
bound + weight E \|d/dt f\|^2, with z_t ~ q(z_t | x) and so without simulating a path, looks for an F and a denoiser
with such paths (NFDM, arXiv 2404.12940, has this penalty).

Straight means straight *in the model's own time t*: the same states run through on another schedule are at another
speed, and the penalty is another one.

With D = z_1 - z_0 the cost of the paths has two parts,

    integral of E \|f\|^2 dt  =  E \|D\|^2  +  integral of E \|f - D\|^2 dt.

The first is the transport cost of the pairs (z_0, z_1), at least W_2^2 of the two distributions. The second is the
straightness of rectified flow (arXiv 2209.03003), zero for straight paths. Dynamic optimal transport is where both
are as small as they can be, and the sum is W_2^2 (Benamou and Brenier, Numerische Mathematik 84, 2000). On a line no
paths cross, so that the first part is W_2^2 for every model and only the second is to be won.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from ndm._internal.inputs import Values, as_labels, as_numbers, as_tensor, at_least_single
from ndm._internal.precision import residual_path
from ndm._internal.random import Randomness, low_discrepancy, normal_like
from ndm.inference.reverse import ode_states
from ndm.inference.solvers import FIXED_STEP_ODE
from ndm.method.process import Process, frozen
from ndm.method.schedules import per_example

__all__ = ["PathCost", "acceleration", "curvature", "ode_paths", "path_cost"]


def acceleration(process: Process, z: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
    r"""d/dt f(z_t, t) = df/dt + (df/dz) f along the path of the reverse ODE through z at time t.

    Exact, by one forward-mode derivative along (f, 1); that of ``Neural``'s dF/dgamma is nested in it. Two derivatives
    in reverse mode would do as well, and take less time with small networks, but a loss adds a third, which PyTorch's
    layer normalisation gets wrong (pytorch issue 175754). What ``Neural`` asks of its network, this asks of both: a
    forward-mode derivative of every operation, and no ``nn.LayerNorm``. Fused attention is replaced by its plain form.

    Where gradients are recorded, those of the result reach all parts of the model, and z if it asks for them.

    Args:
        process: the model.
        z: the state in the model's units, (B, \\*shape).
        t: (B,), in [0, 1]. Where a schedule is clipped the ODE stands still; t = 0 and t = 1 themselves stand for the
            first and the last time at which it moves.
        labels: class labels, (B,).

    Returns:
        (B, \\*shape), in the model's units per squared unit of t.

    Raises:
        ValueError: the model has no ODE: its reverse process is direct, without a head for E[F | z].
    """

    z, t = as_numbers(process, z), as_numbers(process, t, "times")

    def velocity(state: Tensor, time: Tensor) -> Tensor:
        return process.drift(state, time, labels, eta=0.0)

    recorded = torch.is_grad_enabled()
    # Without it SiLU's forward-mode derivative is one that has no forward-mode derivative of its own.
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        found = jvp(velocity, (z, t), (velocity(z, t), torch.ones_like(t)))[1]
    return found if recorded else found.detach()


def curvature(
    process: Process,
    data: Values,
    *,
    labels: Values | None = None,
    times: Tensor | None = None,
    generator: Randomness = None,
    check: bool = True,
) -> Tensor:
    r"""``|d/dt f(z_t, t)|^2`` of the reverse ODE at one z_t ~ q(z_t | x) of each example: a penalty to train with.

    Its mean is an unbiased estimate of the integral over t of E ``|d/dt f|^2``. It says how much the ODE's paths bend
    or change speed in t, in the model's units: a schedule's own choice of speed counts. It costs more than the bound
    does.

    Args:
        process: the model.
        data: (B, \\*shape), as for :func:`ndm.method.bounds.bound`.
        labels: class labels, (B,).
        times: times in [0, 1], (B,), in place of low-discrepancy random ones.
        generator: for the times and the noise; or a :class:`~ndm._internal.random.Share` of one.
        check: look for NaN, infinite and off-level values first.

    Returns:
        (B,), with gradients where they are recorded.

    Raises:
        ValueError: the model has no ODE, a time is outside [0, 1], or the data do not pass the check.

    Example:
        >>> import torch, ndm
        >>> from ndm.networks import ResidualMLP
        >>> net = ResidualMLP(2, heads=4, level=False)
        >>> model = ndm.NDM(
        ...     ndm.LinearSchedule(-8.0, 5.0), ndm.Separable(net, gate="free"), ndm.Denoiser(ResidualMLP(2))
        ... )
        >>> x = torch.randn(16, 2)
        >>> (model.bound(x).total + 0.01 * ndm.curvature(model, x)).mean().backward()
    """
    if times is not None and not ((times >= 0) & (times <= 1)).all():
        raise ValueError("The times must lie in [0, 1].")
    x = process.to_model(data, check)
    labels = as_labels(process, labels, len(x), check)
    with residual_path(x.device):
        t = low_discrepancy(x.shape[0], x, generator) if times is None else times.to(x)
        # At the very ends some schedules are infinite before they are clipped, and their derivatives undefined.
        tiny = torch.finfo(t.dtype).eps
        t = t.clamp(tiny, 1 - tiny)
        mean, sigma = process.marginal(x, t)
        z = mean + per_example(sigma, x) * normal_like(x, generator)
        return (acceleration(process, z, t, labels) ** 2).flatten(1).sum(1)


@torch.no_grad()
def ode_paths(
    process: Process, z: Tensor, steps: int = 100, *, solver: str = "rk4", labels: Values | None = None
) -> Tensor:
    r"""The states of the reverse ODE on the way from noise to data, in the model's units.

    (:func:`ndm.sample` with ``trajectory=True`` has z / alpha, in the data's units.)

    Args:
        process: the model.
        z: the states at t = 1, (B, \*shape).
        steps: the number of steps, evenly spaced in t. Where a schedule is clipped the steps end there as well, and
            are taken as :mod:`ndm.inference.reverse` says.
        solver: ``euler``, ``midpoint``, ``heun`` or ``rk4``.
        labels: class labels, (B,).

    Returns:
        (steps + 1, B, \*shape), at t = 1, 1 - 1/steps, ..., 0.

    Raises:
        ValueError: there is no such solver, fewer than one step, or the model has no ODE.
    """
    if solver not in FIXED_STEP_ODE:
        raise ValueError(f"There is no fixed-step solver {solver!r}; choose one of {', '.join(FIXED_STEP_ODE)}.")
    if steps < 1:
        raise ValueError(f"The number of steps must be at least 1, got {steps}.")
    z = as_numbers(process, z)
    labels = as_labels(process, labels, len(z))
    grid = torch.arange(steps, -1, -1, dtype=torch.float64, device=z.device) / steps
    with frozen(process):
        return torch.stack([z, *ode_states(process, z, grid, solver, labels)])


@dataclass(frozen=True)
class PathCost:
    """What paths cost, each (B,).

    Attributes:
        action: the integral of ``|dz/dt|^2`` dt.
        transport: ``|z_1 - z_0|^2``.
    """

    action: Tensor
    transport: Tensor

    @property
    def straightness(self) -> Tensor:
        """The integral of ``|dz/dt - (z_1 - z_0)|^2`` dt, (B,), the difference of the two; zero for straight paths."""
        return self.action - self.transport


def path_cost(states: Tensor) -> PathCost:
    r"""The cost of paths given by their states at evenly spaced times, between which they are taken to be straight.

    Args:
        states: (steps + 1, B, \*shape), from t = 1 to 0 or from 0 to 1.

    Raises:
        ValueError: there are fewer than two states.
    """
    states = at_least_single(as_tensor(states, "states"))
    if len(states) < 2:
        raise ValueError(f"A path needs at least two states, got {len(states)}.")
    pieces = (states[1:] - states[:-1]).flatten(2)
    whole = (states[-1] - states[0]).flatten(1)
    return PathCost(action=(pieces**2).sum(2).sum(0) * len(pieces), transport=(whole**2).sum(1))
