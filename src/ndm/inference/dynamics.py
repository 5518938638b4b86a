r"""The paths of the reverse ODE: their acceleration, a penalty on it, and their cost.

Along a path of the ODE that generates data, dz/dt = f(z, t) (method, section 5), the acceleration is

    d/dt f(z_t, t) = df/dt + (df/dz) f.

It is zero for straight paths with constant speed, for which one step of Euler's method is exact. Training on bound +
weight E \|d/dt f\|^2 with z_t ~ q(z_t | x), which needs no simulation of paths, favours an F and a denoiser with such
paths (this is the penalty of NFDM, arXiv 2404.12940).

Paths are straight *with respect to the model's time t*: on another schedule the same states have another speed, and the
penalty differs.

With D = z_1 - z_0 the cost of the paths has two parts,

    integral of E \|f\|^2 dt  =  E \|D\|^2  +  integral of E \|f - D\|^2 dt.

The first is the transport cost of the pairs (z_0, z_1), at least W_2^2 of the two distributions. The second is the
straightness of rectified flow (arXiv 2209.03003), zero for straight paths. Dynamic optimal transport minimises both,
and the sum is then W_2^2 (Benamou and Brenier, Numerische Mathematik 84, 2000). In one dimension paths do not cross, so
the first part is W_2^2 for every model and only the second can be reduced.
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
from ndm.method.latents import given_latent
from ndm.method.process import Process, frozen
from ndm.method.schedules import per_example

__all__ = ["PathCost", "acceleration", "curvature", "ode_paths", "path_cost"]


def acceleration(process: Process, z: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
    r"""d/dt f(z_t, t) = df/dt + (df/dz) f along the path of the reverse ODE through z at time t.

    Computed exactly by one forward-mode derivative along (f, 1), with that of ``Neural``'s dF/dgamma nested in it. Two
    reverse-mode derivatives would be faster for small networks, but a loss adds a third, which is wrong for PyTorch's
    layer normalisation (pytorch issue 175754). Both networks must satisfy the requirements of ``Neural``: a
    forward-mode derivative of every operation, and no ``nn.LayerNorm``. Fused attention is replaced by plain attention.

    If gradients are enabled, they flow to all parts of the model, and to z if it requires them.

    Args:
        process: the model.
        z: the state in the model's units, (B, \\*shape).
        t: (B,), in [0, 1]. The ODE is constant where the schedule is clipped; t = 0 and t = 1 mean the first and the
            last time at which it is not.
        labels: class labels, (B,).

    Returns:
        (B, \\*shape), in the model's units per squared unit of t.

    Raises:
        ValueError: the model has no ODE, because its reverse process is direct, without a head for E[F | z].
    """

    z, t = as_numbers(process, z), as_numbers(process, t, "times")

    def velocity(state: Tensor, time: Tensor) -> Tensor:
        return process.drift(state, time, labels, eta=0.0)

    recorded = torch.is_grad_enabled()
    # Otherwise SiLU's forward-mode derivative cannot be differentiated again in forward mode.
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
    r"""``|d/dt f(z_t, t)|^2`` of the reverse ODE at one z_t ~ q(z_t | x) per example: a penalty for training.

    Its mean is an unbiased estimate of the integral over t of E ``|d/dt f|^2``. It measures how much the ODE's paths
    bend or change speed in t, in the model's units, including changes of speed due to the schedule. It is more
    expensive than the bound.

    Args:
        process: the model.
        data: (B, \\*shape), as for :func:`ndm.method.bounds.bound`.
        labels: class labels, (B,).
        times: times in [0, 1], (B,); by default low-discrepancy random times.
        generator: for the times and the noise; or a :class:`~ndm._internal.random.Share` of one.
        check: check for NaN, infinite and off-level values.

    Returns:
        (B,), with gradients if they are enabled.

    Raises:
        ValueError: the model has no ODE, a time is outside [0, 1], or the data are invalid.

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
        # At the ends some schedules are infinite before clipping, so their derivatives are undefined.
        tiny = torch.finfo(t.dtype).eps
        t = t.clamp(tiny, 1 - tiny)
        labels, _ = given_latent(process, x, labels, generator)
        mean, std = process.marginal(x, t, labels)
        std = per_example(std, x) if process.noise is None else std
        z = mean + process.coordinates.back(std * normal_like(x, generator))
        return (acceleration(process, z, t, labels) ** 2).flatten(1).sum(1)


@torch.no_grad()
def ode_paths(
    process: Process, z: Tensor, steps: int = 100, *, solver: str = "rk4", labels: Values | None = None
) -> Tensor:
    r"""The states of the reverse ODE from noise to data, in the model's units.

    (:func:`ndm.sample` with ``trajectory=True`` returns z / alpha, in the data's units.)

    Args:
        process: the model.
        z: the states at t = 1, (B, \*shape).
        steps: the number of steps, evenly spaced in t. For a clipped schedule the end points of the steps are the same,
            and the steps are those of :mod:`ndm.inference.reverse`.
        solver: ``euler``, ``midpoint``, ``heun`` or ``rk4``.
        labels: class labels, (B,).

    Returns:
        (steps + 1, B, \*shape), at t = 1, 1 - 1/steps, ..., 0.

    Raises:
        ValueError: the solver is unknown, ``steps`` is below one, or the model has no ODE.
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
    """The cost of paths, each (B,).

    Attributes:
        action: the integral of ``|dz/dt|^2`` dt.
        transport: ``|z_1 - z_0|^2``.
    """

    action: Tensor
    transport: Tensor

    @property
    def straightness(self) -> Tensor:
        """The integral of ``|dz/dt - (z_1 - z_0)|^2`` dt = action - transport, (B,); zero for straight paths."""
        return self.action - self.transport


def path_cost(states: Tensor) -> PathCost:
    r"""The cost of paths that are linear between states at evenly spaced times.

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
