r"""Samplers: ancestral and DDIM steps of the discrete process, and numerical solvers for the reverse SDE and ODE.

The methods:

    ancestral   z_s ~ N(c z_t + alpha_s gain y_hat, W) from t = 1 to 0 in T steps    (NDM, arXiv 2310.08337, section 3)
    ddim        the same with v = 0, deterministic                                   (Song et al., arXiv 2010.02502)
    ode, sde    the continuous-time reverse process                                  (method, section 5)
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ndm._internal.inputs import Values, as_labels, as_tensor, state_like
from ndm._internal.random import normal_like, seed_of
from ndm.inference.reverse import POINTS, followed_at, ode_adaptive, ode_states, sde_by_torchsde, sde_states
from ndm.inference.solvers import FIXED_STEP_ODE, FIXED_STEP_SDE
from ndm.method.denoisers import GuidedDenoiser
from ndm.method.process import Process, frozen

__all__ = ["METHODS", "sample", "sample_batches"]

METHODS = ("ancestral", "ddim", "ode", "sde")

#: The variables in which steps can be even.
SPACINGS = ("time", "gamma")

#: A progress bar is shown on a terminal for runs of at least this many steps.
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
    labels: Values | None = None,
    guidance: float | None = None,
    generator: torch.Generator | None = None,
    spacing: str | None = None,
    trajectory: bool = False,
    progress: bool | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    r"""Draw samples from the model, in the data's original units.

    Args:
        model: the model.
        n: the number of samples, B below.
        shape: the shape of one sample.
        method: ``ancestral``, ``ddim``, ``ode`` or ``sde``.
        steps: the number of steps, at least 1; for ``ode`` and ``sde`` None means an adaptive solver.
        eta: the volatility; by default the model's own. For ``ancestral``, 0 is DDIM. The reverse variance (posterior,
            learned, predicted, calibrated for this T) applies to the model's own volatility; with another one the noise
            has the posterior's variance.
        solver: ``ode``: ``euler``, ``midpoint``, ``heun``, ``rk4`` (fixed step) or ``dopri5`` (adaptive; the default
            without steps, else ``heun``). ``sde``: ``euler-maruyama`` (default), or torchsde's ``euler`` or ``srk``.
            For a clipped schedule the ODE is solved on flow matching's path, and some steps of ``euler-maruyama`` are
            exact steps for a constant estimate (:mod:`ndm.inference.reverse`).
        rtol: relative tolerance of adaptive solvers.
        atol: absolute tolerance of adaptive solvers.
        labels: class labels, (B,), for a conditional denoiser, 0..K-1 for its K classes; for samples without a class
            use ``guidance=-1``.
        guidance: the weight w of classifier-free guidance, see :class:`~ndm.method.denoisers.GuidedDenoiser`; None and
            0 mean no guidance. It doubles the cost of a network pass.
        generator: the source of all random numbers; the same seed gives the same samples.
        spacing: the spacing of the steps: even in ``time``, or even in ``gamma`` = log(sigma^2 / alpha^2). By default,
            ancestral steps are those of the model's calibration for this T, if there is one; otherwise the schedule
            sets the default (:attr:`ndm.Schedule.spacing`): ``gamma`` for a :class:`~ndm.LearnedSchedule` trained in
            continuous time, ``time`` for all others. With ``time`` ancestral samples come from the model whose T-step
            bound is ``model.bound(x, T)``, including its calibration if there is one. With ``gamma`` a variance
            calibrated for this T is not used, because it applies only to its own steps; ``model.calibrate(data,
            steps=T, spacing="gamma")`` calibrates for these steps. For the ODE and SDE solvers, the spacing sets the
            end points of the steps. The integration variable is time or, for a clipped schedule, that of
            :mod:`ndm.inference.reverse`.
        trajectory: also return all intermediate states, from noise to data.
        progress: show a progress bar; by default for long runs on a terminal.
        dtype: the precision of the state; by default that of the model's networks. It must be that one if they have
            weights.

    Returns:
        (B, \\*shape); with ``trajectory`` (steps + 2, B, \\*shape): z at t = 1, ..., t = 0, and finally the decoded
        data. For an adaptive solver there are 100 times, evenly spaced in time, or in gamma if the schedule is clipped.
        The states are z / alpha in the data's units.

    Raises:
        ValueError: the method, solver or spacing is unknown; ``steps`` or ``n`` is below one; eta is negative, not
            finite, or given for a method without noise; a spacing is given for an adaptive solver; a label is not one
            of the model's classes; guidance is given without labels or for a network without classes; or the precision
            is not the model's.
    """
    _check(n, method, steps)
    _check_eta(eta, method)
    _check_spacing(spacing, method, steps, solver)
    labels = None if labels is None else as_tensor(labels, "labels")
    _check_labels(n, labels, guidance)
    labels = as_labels(model, labels, n)
    like = state_like(model, n, model.latent_shape(shape), dtype)
    z = normal_like(like, generator)
    if spacing is None:
        spacing = _own_spacing(model, method, steps, eta, solver)
    grid = model.schedule.even_in_gamma(steps) if spacing == "gamma" and steps is not None else None
    with _guided(model, guidance), frozen(model):
        if method in ("ancestral", "ddim"):
            assert steps is not None
            eta = 0.0 if method == "ddim" else eta
            states: Iterable[Tensor] = _ancestral(model, z, steps, eta, labels, generator, grid)
        elif method == "ode":
            states = _ode(model, z, steps, solver, rtol, atol, labels, trajectory, grid)
        else:
            states = _sde(model, z, steps, eta, solver, rtol, atol, labels, generator, grid)
        own = _chooses_steps(method, steps, solver)
        kept = [z] if trajectory else []
        for state in states if own else _bar(states, steps or 0, progress):
            kept = [*kept, state] if trajectory else [state]
        if grid is None and method == "ancestral" and eta is None and steps is not None:
            grid = model.grid(steps)
        elif own and trajectory:
            grid = followed_at(model.schedule, len(kept) - 1, z)
        return _finish(model, kept, trajectory, grid)


def sample_batches(
    model: Process,
    n: int,
    shape: Sequence[int],
    *,
    seed: int = 0,
    batch_size: int = 256,
    labels: Values | Callable[[slice], Values] | None = None,
    rank: int = 0,
    world_size: int = 1,
    **options: Any,
) -> Iterator[tuple[slice, Tensor]]:
    r"""Draw many samples in blocks, in one process or distributed over several.

    The n samples are split into blocks of ``batch_size``; the last one may be smaller. The random numbers of block b
    are determined by the seed and b, and process b mod ``world_size`` draws it. Samples therefore do not depend on the
    number of processes, and only one block is in memory.

    Args:
        model: the model.
        n: the total number of samples.
        shape: the shape of one sample.
        seed: a non-negative integer. The samples depend on it and on ``batch_size``.
        batch_size: the number of samples per block.
        labels: class labels, (n,), of all samples; or a function that returns the labels of a slice.
        rank: the rank of this process, from 0; see :func:`ndm._internal.distributed.rank`.
        world_size: the number of processes.
        options: arguments of :func:`sample`: ``method``, ``steps``, ``guidance``, ...

    Yields:
        The position of a block among the n samples (a slice), and the block, (B, \*shape).

    Raises:
        ValueError: a number is out of range, or the number of labels is not n.

    Example:
        >>> import ndm
        >>> from ndm.networks import ResidualMLP
        >>> model = ndm.NDM(ndm.LinearSchedule(), ndm.Identity(), ndm.Denoiser(ResidualMLP(2)))
        >>> [(where, x.shape) for where, x in ndm.sample_batches(model, 5, (2,), batch_size=3, steps=2)]
        [(slice(0, 3, None), torch.Size([3, 2])), (slice(3, 5, None), torch.Size([2, 2]))]
    """
    if n < 1 or batch_size < 1 or seed < 0:
        raise ValueError(
            f"n and batch_size must be at least 1 and the seed at least 0, got {n}, {batch_size} and {seed}."
        )
    if not 0 <= rank < world_size:
        raise ValueError(f"rank must be 0 to world_size - 1, got rank={rank} and world_size={world_size}.")
    if not callable(labels):
        labels = None if labels is None else as_tensor(labels, "labels")
        _check_labels(n, labels, options.get("guidance"))
        labels = as_labels(model, labels, n)
        labels = None if labels is None else labels.__getitem__
    return _blocks(model, n, shape, seed, batch_size, labels, range(rank, -(-n // batch_size), world_size), options)


def _blocks(
    model: Process,
    n: int,
    shape: Sequence[int],
    seed: int,
    batch_size: int,
    labels: Callable[[slice], Values] | None,
    numbers: Iterable[int],
    options: dict[str, Any],
) -> Iterator[tuple[slice, Tensor]]:
    for block in numbers:
        where = slice(block * batch_size, min(n, (block + 1) * batch_size))
        # Random numbers are drawn on the CPU, so they are the same for every device.
        generator = torch.Generator().manual_seed(seed_of(seed, block))
        some = None if labels is None else labels(where)
        yield where, sample(model, where.stop - where.start, shape, labels=some, generator=generator, **options)


@contextmanager
def _guided(model: Process, weight: float | None) -> Iterator[None]:
    """Temporarily replace the model's denoiser by a guided one."""
    own = model.denoiser
    if weight:
        model.denoiser = GuidedDenoiser(own, weight)
    try:
        yield
    finally:
        model.denoiser = own


def _check_labels(n: int, labels: Tensor | None, guidance: float | None) -> None:
    if labels is not None and len(labels) != n:
        raise ValueError(f"Each of the {n} samples needs one label, got labels of shape {tuple(labels.shape)}.")
    if guidance and labels is None:
        raise ValueError("Guidance needs labels: which class each sample is to be guided to.")


def _check(n: int, method: str, steps: int | None) -> None:
    if method not in METHODS:
        raise ValueError(f"There is no sampling method {method!r}; choose one of {', '.join(METHODS)}.")
    if n < 1:
        raise ValueError(f"The number of samples must be at least 1, got {n}.")
    if steps is None and method in ("ancestral", "ddim"):
        raise ValueError(f"method={method!r} needs a number of steps; only ode and sde have adaptive solvers.")
    if steps is not None and steps < 1:
        raise ValueError(f"The number of steps must be at least 1, got {steps}.")


def _check_eta(eta: float | None, method: str) -> None:
    if eta is None:
        return
    if method not in ("ancestral", "sde"):
        raise ValueError(f"eta, the volatility, is for the methods ancestral and sde; leave it out with {method!r}.")
    if not 0 <= eta < math.inf:
        raise ValueError(f"eta must be a finite number of at least 0, got {eta}.")


def _chooses_steps(method: str, steps: int | None, solver: str | None) -> bool:
    """Whether the solver is adaptive."""
    return steps is None or solver in {"ode": ("dopri5",), "sde": FIXED_STEP_SDE}.get(method, ())


def _own_spacing(model: Process, method: str, steps: int | None, eta: float | None, solver: str | None) -> str:
    """The default spacing."""
    if _chooses_steps(method, steps, solver):
        return "time"
    if method == "ancestral" and eta is None and steps is not None and model.calibrated(steps):
        return "time"  # the model's own steps are used
    return model.schedule.spacing


def _check_spacing(spacing: str | None, method: str, steps: int | None, solver: str | None) -> None:
    if spacing not in (None, *SPACINGS):
        raise ValueError(f"There is no spacing {spacing!r} of the steps; choose one of {', '.join(SPACINGS)}.")
    if spacing == "gamma" and _chooses_steps(method, steps, solver):
        raise ValueError(
            'spacing="gamma" is for a given number of steps: '
            f"{'without one' if steps is None else f'the solver {solver!r}'} the steps are the solver's own."
        )


def _finish(model: Process, kept: list[Tensor], trajectory: bool, grid: Tensor | None) -> Tensor:
    n = kept[-1].shape[0]
    data = model.from_model(model.decoder.decode(kept[-1], model.schedule(kept[-1].new_zeros(n))))
    if not trajectory:
        return data
    t = torch.linspace(1, 0, len(kept), dtype=data.dtype, device=data.device) if grid is None else grid.flip(0).to(data)
    alpha = model.schedule(t).alpha
    states = [model.from_model(z / a) for z, a in zip(kept, alpha, strict=True)]
    return torch.stack([*states, data])


def _bar(states: Iterable[Tensor], steps: int, progress: bool | None) -> Iterable[Tensor]:
    """Yield the states after each step, with a progress bar if enabled."""
    show = (steps >= LONG_RUN and sys.stderr.isatty()) if progress is None else progress
    return tqdm(states, total=steps, desc="sampling", disable=not show, leave=False)


def _ancestral(
    model: Process,
    z: Tensor,
    steps: int,
    eta: float | None,
    labels: Tensor | None,
    generator: torch.Generator | None,
    grid: Tensor | None,
) -> Iterator[Tensor]:
    for i in range(steps, 0, -1):
        step = model.grid_step(torch.full((z.shape[0],), i, device=z.device), steps, z, eta, grid)
        if grid is not None:  # a variance calibrated for T does not apply to these steps
            step = replace(step, steps=None)
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
    grid: Tensor | None,
) -> Iterable[Tensor]:
    solver = solver or ("dopri5" if steps is None else "heun")
    if solver == "dopri5":
        return ode_adaptive(model, z, rtol, atol, labels, POINTS if trajectory else 1)
    _known(solver, (*FIXED_STEP_ODE, "dopri5"))
    if steps is None:
        raise ValueError(f"The fixed-step solver {solver!r} needs a number of steps.")
    return ode_states(model, z, _falling(steps, grid, z), solver, labels)


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
    grid: Tensor | None,
) -> Iterable[Tensor]:
    solver = solver or ("srk" if steps is None else "euler-maruyama")
    _known(solver, ("euler-maruyama", *FIXED_STEP_SDE))
    if solver != "euler-maruyama":
        return sde_by_torchsde(model, z, steps, solver, rtol, atol, eta, labels, generator)
    if steps is None:
        raise ValueError("The fixed-step solver 'euler-maruyama' needs a number of steps.")
    return sde_states(model, z, _falling(steps, grid, z), eta, labels, generator)


def _known(solver: str, names: Sequence[str]) -> None:
    if solver not in names:
        raise ValueError(f"There is no solver {solver!r} for this method; choose one of {', '.join(names)}.")


def _falling(steps: int, grid: Tensor | None, like: Tensor) -> Tensor:
    """The times of the steps, (T + 1,), from 1 to 0: those of the grid, or evenly spaced."""
    times = torch.arange(steps + 1, dtype=torch.float64) / steps if grid is None else grid
    return times.flip(0).to(like.device)
