r"""Numerical solvers with a common signature: dz/dt = drift(t, z), t (B,), z (B, \*shape).

torchdiffeq is used for fixed steps, torchode for adaptive steps, and torchsde for stochastic equations. torchode uses a
separate step size for each example, so results do not depend on the rest of the batch. torchdiffeq's adaptive solvers
share one step size, so a stiff example changes the results of the others (see tests/inference/test_solvers.py).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["FIXED_STEP_ODE", "FIXED_STEP_SDE", "Solution", "solve_adaptive", "solve_fixed", "solve_sde"]

Drift = Callable[[Tensor, Tensor], Tensor]

#: Solver names of this package to those of torchdiffeq.
FIXED_STEP_ODE = {"euler": "euler", "midpoint": "midpoint", "heun": "heun2", "rk4": "rk4"}

#: torchsde's solvers for Ito equations.
FIXED_STEP_SDE = ("euler", "srk")


@dataclass(frozen=True)
class Solution:
    """The result of an adaptive solver.

    Attributes:
        states: z at each of the requested times, (P, B, \\*shape), the last one at the end.
        evaluations: the number of drift evaluations.
        steps: the number of steps of each example, (B,).
    """

    states: Tensor
    evaluations: int
    steps: Tensor


def solve_adaptive(
    drift: Drift,
    z: Tensor,
    start: float,
    stop: float,
    rtol: float,
    atol: float,
    points: int | Tensor = 1,
    max_steps: int = 10000,
) -> Solution:
    """Dormand and Prince's fifth-order method, with a separate step size for each example.

    Args:
        drift: (t, z) -> dz/dt.
        z: the state at ``start``, (B, \\*shape).
        start: the first time.
        stop: the last time, before or after ``start``.
        rtol: relative tolerance of one step.
        atol: absolute tolerance of one step.
        points: the number of evenly spaced times, including ``stop`` but not ``start``, at which to return the state;
            or these times, (P,), ``stop`` last.
        max_steps: the largest number of steps.

    Raises:
        RuntimeError: the solver failed; the message says why.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecation of torch.jit.script, irrelevant to users
        import torchode  # slow to import; needed only for likelihoods and adaptive sampling

    shape = z.shape
    term = torchode.ODETerm(lambda t, y: drift(t, y.reshape(shape)).reshape(y.shape))
    controller = torchode.IntegralController(atol=atol, rtol=rtol, term=term)
    solver = torchode.AutoDiffAdjoint(torchode.Dopri5(term=term), controller, max_steps=max_steps)
    if isinstance(points, int):
        points = torch.linspace(start, stop, points + 1, dtype=z.dtype, device=z.device)[1:]
    problem = torchode.InitialValueProblem(
        y0=z.flatten(1),
        t_start=torch.full((shape[0],), start, dtype=z.dtype, device=z.device),
        t_end=torch.full((shape[0],), stop, dtype=z.dtype, device=z.device),
        t_eval=points.expand(shape[0], len(points)) if len(points) > 1 else None,
    )
    solution = solver.solve(problem)
    if (solution.status != 0).any() or not torch.isfinite(solution.ys).all():
        raise RuntimeError(
            f"The adaptive ODE solver failed (limit: {max_steps} steps, rtol={rtol}, atol={atol}), because the model's "
            "vector field is too stiff or not finite. Increase the tolerances, use float64, or train longer."
        )
    return Solution(
        states=solution.ys.transpose(0, 1).reshape(-1, *shape),
        evaluations=int(solution.stats["n_f_evals"].max()),
        steps=solution.stats["n_steps"],
    )


def solve_fixed(drift: Drift, z: Tensor, times: Iterator[tuple[Tensor, Tensor]], method: str) -> Iterator[Tensor]:
    """One step of a fixed-step method for each pair (t, s) of ``times``; yields the states, unchanged where t = s.

    Args:
        drift: (t, z) -> dz/dt.
        z: the state at the first t, (B, \\*shape).
        times: pairs of numbers.
        method: a key of :data:`FIXED_STEP_ODE`.
    """
    from torchdiffeq import odeint

    for t, s in times:
        if t != s:
            z = odeint(
                lambda at, y: drift(at.expand(y.shape[0]), y), z, torch.stack([t, s]), method=FIXED_STEP_ODE[method]
            )[-1]
        yield z


def solve_sde(
    drift: Drift,
    diffusion: Callable[[Tensor, Tensor], Tensor],
    z: Tensor,
    steps: int | None,
    method: str,
    rtol: float,
    atol: float,
    generator: torch.Generator | None,
) -> Tensor:
    """Solve dz = drift dt + g dw from t = 1 to 0 with torchsde.

    Args:
        drift: (t, z) -> dz/dt.
        diffusion: (t, z) -> g, (B,) or (B, \\*shape).
        z: the state at t = 1, (B, \\*shape).
        steps: the number of steps; None for adaptive ones.
        method: one of :data:`FIXED_STEP_SDE`.
        rtol: relative tolerance of adaptive steps.
        atol: absolute tolerance of adaptive steps.
        generator: seeds the Brownian path.

    Returns:
        The states, (steps, B, \\*shape), or 100 of them with adaptive steps.
    """
    import torchsde

    shape, rows = z.shape, z.shape[0]

    class Reverse(torch.nn.Module):
        """The equation in tau = 1 - t, since torchsde integrates forward in time."""

        noise_type, sde_type = "diagonal", "ito"

        def f(self, tau: Tensor, y: Tensor) -> Tensor:
            return -drift((1 - tau).expand(rows), y.reshape(shape)).reshape(y.shape)

        def g(self, tau: Tensor, y: Tensor) -> Tensor:
            return diffusion((1 - tau).expand(rows), y.reshape(shape)).reshape(rows, -1).expand_as(y)

    device = z.device if generator is None else generator.device
    entropy = int(torch.randint(2**31, (), generator=generator, device=device))
    times = torch.linspace(0, 1, (steps or 100) + 1, dtype=z.dtype, device=z.device)
    path = torchsde.BrownianInterval(
        t0=0.0, t1=1.0, size=z.flatten(1).shape, dtype=z.dtype, device=z.device, entropy=entropy,
        levy_area_approximation="space-time" if method == "srk" else "none",
    )  # fmt: skip
    states = torchsde.sdeint(
        Reverse(), z.flatten(1), times, bm=path, method=method, dt=1 / (steps or 100),
        adaptive=steps is None, rtol=rtol, atol=atol,
    )  # fmt: skip
    return states[1:].reshape(-1, *shape)
