r"""Samplers: ancestral and DDIM steps of the discrete process, and numerical solvers for the reverse SDE and ODE.

ancestral   z_s ~ N(c z_t + alpha_s gain y_hat, W) from t = 1 to 0 in T steps          (NDM, arXiv 2310.08337, section
3) ddim        the same with v = 0, deterministic                                         (Song et al., arXiv
2010.02502) ode, sde    the continuous-time reverse process                                        (method, section 5)
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from ndm.bounds import normal_like
from ndm.process import Process, at_rest
from ndm.schedules import per_example
from ndm.solvers import FIXED_STEP_ODE, FIXED_STEP_SDE, solve_adaptive, solve_fixed, solve_sde

__all__ = ["METHODS", "sample"]

METHODS = ("ancestral", "ddim", "ode", "sde")

#: A bar is shown on a terminal for runs of at least this many steps.
LONG_RUN = 50


@torch.no_grad()
def sample(
    model: Process,
    n: int,
    shape: Sequence[int],
    method: str = "ancestral",
    steps: int | None = 100,
    *,
    eta: float | None = None,
    solver: str | None = None,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    labels: Tensor | None = None,
    generator: torch.Generator | None = None,
    trajectory: bool = False,
    progress: bool | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    r"""Draw examples from the model, in the data's own units.

    Args:
        model: the model.
        n: how many examples, B below.
        shape: the shape of one.
        method: ``ancestral``, ``ddim``, ``ode`` or ``sde``.
        steps: the number of steps, any number; for ``ode`` and ``sde`` None means an adaptive solver.
        eta: the volatility in place of the model's own; for ``ancestral``, 0 is DDIM. The reverse variance (posterior,
            learned, predicted, calibrated for this T) belongs to the model's own volatility; with another one the noise
            has the posterior's variance.
        solver: ``ode``: ``euler``, ``midpoint``, ``heun``, ``rk4`` (fixed step) or ``dopri5`` (adaptive; the default
            without steps, else ``heun``). ``sde``: ``euler-maruyama`` (default), or torchsde's ``euler`` or ``srk``.
        rtol: relative tolerance of adaptive solvers.
        atol: absolute tolerance of adaptive solvers.
        labels: class labels, (B,), for a conditional denoiser.
        generator: every random number comes from it: the same seed gives the same samples.
        trajectory: return all the states on the way as well, from noise to data.
        progress: show a bar; by default on a terminal, for long runs.
        dtype: the precision of the state; by default that of the model's parameters.

    Returns:
        (B, \\*shape); with ``trajectory`` (steps + 2, B, \\*shape): z at t = 1, ..., t = 0, and last the decoded data.
        An adaptive solver is followed at 100 evenly spaced times. The states are those of z / alpha in the data's
        units.

    Raises:
        ValueError: an unknown method or solver, fewer than one step or example.
    """
    _check(n, method, steps)
    reference = next(iter(model.parameters()), torch.empty(0))
    if dtype is None:
        dtype = reference.dtype
    like = torch.empty(n, *shape, device=reference.device, dtype=dtype)
    labels = None if labels is None else labels.to(like.device)
    z = normal_like(like, generator)
    with at_rest(model):
        if method in ("ancestral", "ddim"):
            assert steps is not None
            eta = 0.0 if method == "ddim" else eta
            states: Iterable[Tensor] = _ancestral(model, z, _bar(steps, progress), steps, eta, labels, generator)
        elif method == "ode":
            states = _ode(model, z, steps, solver, rtol, atol, labels, trajectory, progress)
        else:
            states = _sde(model, z, steps, eta, solver, rtol, atol, labels, generator, progress)
        kept = [z] if trajectory else []
        for state in states:
            kept = [*kept, state] if trajectory else [state]
        return _finish(model, kept, trajectory)


def _check(n: int, method: str, steps: int | None) -> None:
    if method not in METHODS:
        raise ValueError(f"There is no sampling method {method!r}; choose one of {', '.join(METHODS)}.")
    if n < 1:
        raise ValueError(f"The number of samples must be at least 1, got {n}.")
    if steps is None and method in ("ancestral", "ddim"):
        raise ValueError(f"method={method!r} needs a number of steps; only ode and sde have adaptive solvers.")
    if steps is not None and steps < 1:
        raise ValueError(f"The number of steps must be at least 1, got {steps}.")


def _finish(model: Process, kept: list[Tensor], trajectory: bool) -> Tensor:
    n = kept[-1].shape[0]
    data = model.from_model(model.decoder.decode(kept[-1], model.schedule(kept[-1].new_zeros(n))))
    if not trajectory:
        return data
    t = torch.linspace(1, 0, len(kept), dtype=data.dtype, device=data.device)
    alpha = model.schedule(t).alpha
    states = [model.from_model(z / a) for z, a in zip(kept, alpha, strict=True)]
    return torch.stack([*states, data])


def _bar(steps: int, progress: bool | None, description: str = "sampling") -> Iterator[int]:
    """Step numbers steps, ..., 1, with a progress bar where it is wanted."""
    show = (steps >= LONG_RUN and sys.stderr.isatty()) if progress is None else progress
    return iter(tqdm(range(steps, 0, -1), desc=description, disable=not show, leave=False))


def _ancestral(
    model: Process,
    z: Tensor,
    numbers: Iterator[int],
    steps: int,
    eta: float | None,
    labels: Tensor | None,
    generator: torch.Generator | None,
) -> Iterator[Tensor]:
    for i in numbers:
        step = model.grid_step(torch.full((z.shape[0],), i, device=z.device), steps, z, eta)
        kernel = model.kernel(z, step, labels, override=eta is not None)
        z = kernel.mean if eta == 0 else kernel.sample(normal_like(z, generator))
        yield z


def _ode(
    model: Process,
    z: Tensor,
    steps: int | None,
    solver: str | None,
    rtol: float,
    atol: float,
    labels: Tensor | None,
    trajectory: bool,
    progress: bool | None,
) -> Iterable[Tensor]:
    def drift(t: Tensor, state: Tensor) -> Tensor:
        return model.drift(state, t, labels, eta=0.0)

    solver = solver or ("dopri5" if steps is None else "heun")
    if solver == "dopri5":
        return solve_adaptive(drift, z, 1.0, 0.0, rtol, atol, points=100 if trajectory else 1).states
    _known(solver, (*FIXED_STEP_ODE, "dopri5"))
    if steps is None:
        raise ValueError(f"The fixed-step solver {solver!r} needs a number of steps.")
    return solve_fixed(drift, z, _times(_bar(steps, progress), steps, z), solver)


def _sde(
    model: Process,
    z: Tensor,
    steps: int | None,
    eta: float | None,
    solver: str | None,
    rtol: float,
    atol: float,
    labels: Tensor | None,
    generator: torch.Generator | None,
    progress: bool | None,
) -> Iterable[Tensor]:
    def drift(t: Tensor, state: Tensor) -> Tensor:
        return model.drift(state, t, labels, eta)

    def diffusion(t: Tensor) -> Tensor:
        return model.diffusion(t, eta)

    solver = solver or ("srk" if steps is None else "euler-maruyama")
    _known(solver, ("euler-maruyama", *FIXED_STEP_SDE))
    if solver != "euler-maruyama":
        return solve_sde(drift, diffusion, z, steps, solver, rtol, atol, generator)
    if steps is None:
        raise ValueError("The fixed-step solver 'euler-maruyama' needs a number of steps.")
    return _euler_maruyama(drift, diffusion, z, _times(_bar(steps, progress), steps, z), generator)


def _known(solver: str, names: Sequence[str]) -> None:
    if solver not in names:
        raise ValueError(f"There is no solver {solver!r} for this method; choose one of {', '.join(names)}.")


def _times(numbers: Iterator[int], steps: int, like: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """The pairs (t, s) of the steps, each a number."""
    for i in numbers:
        yield like.new_tensor(i / steps), like.new_tensor((i - 1) / steps)


def _euler_maruyama(
    drift: Callable[[Tensor, Tensor], Tensor],
    diffusion: Callable[[Tensor], Tensor],
    z: Tensor,
    times: Iterator[tuple[Tensor, Tensor]],
    generator: torch.Generator | None,
) -> Iterator[Tensor]:
    """z_s = z_t - (t - s) drift + sqrt(t - s) g noise."""
    for t, s in times:
        each = t.expand(z.shape[0])
        noise = normal_like(z, generator)
        z = z - (t - s) * drift(each, z) + per_example(diffusion(each) * (t - s).sqrt(), z) * noise
        yield z
