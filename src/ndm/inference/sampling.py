r"""Samplers: ancestral and DDIM steps of the discrete process, and numerical solvers for the reverse SDE and ODE.

The methods:

    ancestral   z_s ~ N(c z_t + alpha_s gain y_hat, W) from t = 1 to 0 in T steps    (NDM, arXiv 2310.08337, section 3)
    ddim        the same with v = 0, deterministic                                   (Song et al., arXiv 2010.02502)
    ode, sde    the continuous-time reverse process                                  (method, section 5)
"""

from __future__ import annotations

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
from ndm.inference.multistep import multistep_states
from ndm.inference.options import METHODS, MULTISTEP, SamplerOptions, sampler_options
from ndm.inference.reverse import POINTS, followed_at, ode_adaptive, ode_states, sde_by_torchsde, sde_states
from ndm.method.decoding import decode
from ndm.method.guidance import GuidedDenoiser
from ndm.method.mixed_denoiser import MixedDenoiser
from ndm.method.process import Process, frozen

__all__ = ["METHODS", "default_sampler", "sample", "sample_batches"]

#: Steps of :func:`default_sampler` for the ODE.
STEPS = 32

#: A progress bar is shown on a terminal for runs of at least this many steps.
LONG_RUN = 50


@torch.no_grad()
def sample(
    model: Process,
    n: int,
    shape: Sequence[int],
    options: SamplerOptions | None = None,
    *,
    labels: Values | None = None,
    generator: torch.Generator | None = None,
    trajectory: bool = False,
    progress: bool | None = None,
    **changes: Any,
) -> Tensor:
    r"""Draw samples from the model, in the data's original units.

    Args:
        model: the model.
        n: the number of samples, B below.
        shape: the shape of one sample.
        options: the sampler. If neither it nor any of its fields is given, that of
            :func:`ndm.inference.sampling.default_sampler`.
        labels: class labels, (B,), for a conditional denoiser, 0..K-1 for its K classes; for samples without a class
            use ``guidance=-1``. For a model with a latent c, (B, size), for samples given c; by default c is drawn.
        generator: the source of all random numbers; the same seed gives the same samples.
        trajectory: also return all intermediate states, from noise to data.
        progress: show a progress bar; by default for long runs on a terminal.
        changes: fields of ``options`` to replace, such as ``method="ode"`` or ``steps=50``; without ``options`` the
            other fields have the defaults of :class:`~ndm.SamplerOptions`: ancestral sampling, in 100 steps.

    Returns:
        (B, \*shape); with ``trajectory`` (steps + 2, B, \*shape): z at t = 1, ..., t = 0, and finally the decoded
        data. For an adaptive solver there are 100 times, evenly spaced in time, or in gamma if the schedule is clipped.
        The states are z / alpha in the data's units.

    Raises:
        TypeError: there is no option of that name, or ``options`` is something else.
        ValueError: as for :class:`~ndm.SamplerOptions`; or ``n`` is below one; a label is not one of the model's
            classes; guidance is given without labels or for a network without classes; or the precision is not the
            model's.

    Example:
        >>> import ndm
        >>> from ndm.networks import ResidualMLP
        >>> model = ndm.NDM(ndm.LinearSchedule(), ndm.Identity(), ndm.Denoiser(ResidualMLP(2)))
        >>> ndm.sample(model, 10, (2,), method="ode", steps=5).shape
        torch.Size([10, 2])
        >>> ndm.sample(model, 10, (2,), ndm.SamplerOptions(method="ode", steps=5)).shape
        torch.Size([10, 2])
    """
    o = _chosen(model, options, changes, ("labels", "generator", "trajectory", "progress"))
    if n < 1:
        raise ValueError(f"The number of samples must be at least 1, got {n}.")
    if isinstance(model.denoiser, MixedDenoiser) and model.denoiser.given:
        raise ValueError(
            "This model is of some columns given others: give these, by ndm sample --given FILE, or in Python by "
            "ndm.tabular.sample_given or TabularNDM.sample(given=...)."
        )
    labels = None if labels is None else as_tensor(labels, "labels")
    _check_labels(n, labels, o.guidance)
    labels = as_labels(model, labels, n)
    like = state_like(model, n, model.latent_shape(shape), o.dtype)
    if model.latent is not None and labels is None:
        labels = model.latent.prior(n, like, generator)
    z = normal_like(like, generator)
    in_gamma = (o.spacing or _own_spacing(model, o)) == "gamma"
    grid = model.schedule.even_in_gamma(o.steps) if in_gamma and o.steps is not None else None
    with _guided(model, o.guidance), frozen(model):
        states = _states(model, z, o, labels, generator, POINTS if trajectory else 1, grid)
        kept = [z] if trajectory else []
        for state in states if o.has_own_times else _bar(states, o.steps or 0, progress):
            kept = [*kept, state] if trajectory else [state]
        if grid is None and _is_own_process(o) and o.steps is not None:
            grid = model.grid(o.steps)
        elif o.has_own_times and trajectory:
            grid = followed_at(model.schedule, len(kept) - 1, z)
        return _finish(model, kept, trajectory, grid, labels)


def default_sampler(model: Process, **changes: Any) -> SamplerOptions:
    """The default sampler of a model, with some fields replaced.

    It is DPM-Solver++ 2M for the ODE, in 32 steps; or ancestral sampling in 100 steps for a model without an ODE, as
    its reverse process is direct, without a head for E[F | z]. On tables, digits and MNIST the samples of more steps of
    this solver, and of 100 ancestral steps, are no nearer to the test split (benchmarks/steps.py).

    Args:
        model: the model.
        changes: fields to replace. With another method, or a volatility, the other fields have the defaults of
            :class:`~ndm.SamplerOptions`.

    Raises:
        TypeError: a name is not that of a field.
        ValueError: as for :class:`~ndm.SamplerOptions`.
    """
    chosen = changes.get("method") is not None or changes.get("eta") is not None
    own = (
        SamplerOptions(method="ode", solver=MULTISTEP, steps=STEPS)
        if model.has_ode and not chosen
        else SamplerOptions()
    )
    return own.changed(**changes)


def sample_batches(
    model: Process,
    n: int,
    shape: Sequence[int],
    options: SamplerOptions | None = None,
    *,
    seed: int = 0,
    batch_size: int = 256,
    labels: Values | Callable[[slice], Values] | None = None,
    rank: int = 0,
    world_size: int = 1,
    progress: bool | None = None,
    **changes: Any,
) -> Iterator[tuple[slice, Tensor]]:
    r"""Draw many samples in blocks, in one process or distributed over several.

    The n samples are split into blocks of ``batch_size``; the last one may be smaller. The random numbers of block b
    are determined by the seed and b, and process b mod ``world_size`` draws it. Samples therefore do not depend on the
    number of processes, and only one block is in memory.

    Args:
        model: the model.
        n: the total number of samples.
        shape: the shape of one sample.
        options: the sampler. If neither it nor any of its fields is given, that of
            :func:`ndm.inference.sampling.default_sampler`.
        seed: a non-negative integer. The samples depend on it and on ``batch_size``.
        batch_size: the number of samples per block.
        labels: class labels, (n,), of all samples; or a function that returns the labels of a slice.
        rank: the rank of this process, from 0; see :func:`ndm._internal.distributed.rank`.
        world_size: the number of processes.
        progress: show a progress bar for each block; by default for long runs on a terminal.
        changes: fields of ``options`` to replace, such as ``method="ode"`` or ``steps=50``; without ``options`` the
            other fields have the defaults of :class:`~ndm.SamplerOptions`: ancestral sampling, in 100 steps.

    Yields:
        The position of a block among the n samples (a slice), and the block, (B, \*shape).

    Raises:
        TypeError: as for :func:`sample`.
        ValueError: a number is out of range, the number of labels is not n, or as for :func:`sample`.

    Example:
        >>> import ndm
        >>> from ndm.networks import ResidualMLP
        >>> model = ndm.NDM(ndm.LinearSchedule(), ndm.Identity(), ndm.Denoiser(ResidualMLP(2)))
        >>> [(where, x.shape) for where, x in ndm.sample_batches(model, 5, (2,), batch_size=3, steps=2)]
        [(slice(0, 3, None), torch.Size([3, 2])), (slice(3, 5, None), torch.Size([2, 2]))]
    """
    o = _chosen(model, options, changes, ("seed", "batch_size", "labels", "rank", "world_size", "progress"))
    if n < 1 or batch_size < 1 or seed < 0:
        raise ValueError(
            f"n and batch_size must be at least 1 and the seed at least 0, got {n}, {batch_size} and {seed}."
        )
    if not 0 <= rank < world_size:
        raise ValueError(f"rank must be 0 to world_size - 1, got rank={rank} and world_size={world_size}.")
    if not callable(labels):
        labels = None if labels is None else as_tensor(labels, "labels")
        _check_labels(n, labels, o.guidance)
        labels = as_labels(model, labels, n)
        labels = None if labels is None else labels.__getitem__

    def draw(count: int, **arguments: Any) -> Tensor:
        return sample(model, count, shape, o, progress=progress, **arguments)

    return _blocks(draw, n, seed, batch_size, labels, range(rank, -(-n // batch_size), world_size))


def _chosen(
    model: Process, options: SamplerOptions | None, changes: dict[str, Any], keywords: Sequence[str]
) -> SamplerOptions:
    """The given sampler, or that of the model."""
    return default_sampler(model) if options is None and not changes else sampler_options(options, changes, keywords)


def _blocks(
    draw: Callable[..., Tensor],
    n: int,
    seed: int,
    batch_size: int,
    labels: Callable[[slice], Values] | None,
    numbers: Iterable[int],
) -> Iterator[tuple[slice, Tensor]]:
    for block in numbers:
        where = slice(block * batch_size, min(n, (block + 1) * batch_size))
        # Random numbers are drawn on the CPU, so they are the same for every device.
        generator = torch.Generator().manual_seed(seed_of(seed, block))
        some = None if labels is None else labels(where)
        yield where, draw(where.stop - where.start, labels=some, generator=generator)


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
    if labels is not None and labels.shape[:1] != (n,):
        raise ValueError(f"Each of the {n} samples needs one label, got labels of shape {tuple(labels.shape)}.")
    if guidance and labels is None:
        raise ValueError("Guidance needs labels: give the class of each sample.")


def _own_spacing(model: Process, o: SamplerOptions) -> str:
    """The default spacing."""
    if o.has_own_times:
        return "time"
    if o.solver_name == MULTISTEP:
        return "gamma"  # its error depends on the lengths in gamma alone
    if o.method == "ode" and model.noise is not None:
        return "gamma"  # the noise is a function of gamma, which a clipped schedule crosses in few steps
    if _is_own_process(o) and o.steps is not None and model.calibrated(o.steps):
        return "time"  # the model's own steps are used
    return model.schedule.spacing


def _is_own_process(o: SamplerOptions) -> bool:
    """Whether the steps are those of the model's own discrete process, which may be calibrated."""
    return o.method == "ancestral" and o.eta is None


def _finish(model: Process, kept: list[Tensor], trajectory: bool, grid: Tensor | None, labels: Tensor | None) -> Tensor:
    data = model.from_model(decode(model, kept[-1], labels))
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


def _states(
    model: Process,
    z: Tensor,
    o: SamplerOptions,
    labels: Tensor | None,
    generator: torch.Generator | None,
    points: int,
    grid: Tensor | None,
) -> Iterable[Tensor]:
    """The states after each step; ``points`` of them for an adaptive solver of the ODE."""
    if o.method in ("ancestral", "ddim"):
        return _ancestral(model, z, o, labels, generator, grid)
    if o.method == "ode":
        return _ode(model, z, o, labels, points, grid)
    return _sde(model, z, o, labels, generator, grid)


def _ancestral(
    model: Process,
    z: Tensor,
    o: SamplerOptions,
    labels: Tensor | None,
    generator: torch.Generator | None,
    grid: Tensor | None,
) -> Iterator[Tensor]:
    assert o.steps is not None
    eta = 0.0 if o.method == "ddim" else o.eta
    for i in range(o.steps, 0, -1):
        step = model.grid_step(torch.full((z.shape[0],), i, device=z.device), o.steps, z, eta, grid)
        if grid is not None:  # a variance calibrated for T does not apply to these steps
            step = replace(step, steps=None)
        kernel = model.kernel(z, step, labels, override=eta is not None)
        z = kernel.mean if eta == 0 else kernel.sample(normal_like(z, generator))
        yield z


def _ode(
    model: Process, z: Tensor, o: SamplerOptions, labels: Tensor | None, points: int, grid: Tensor | None
) -> Iterable[Tensor]:
    if o.has_own_times:
        return ode_adaptive(model, z, o.rtol, o.atol, labels, points)
    falling = _falling(o.steps, grid, z)
    if o.solver_name == MULTISTEP:
        return multistep_states(model, z, falling, 0.0, labels)
    return ode_states(model, z, falling, o.solver_name, labels)


def _sde(
    model: Process,
    z: Tensor,
    o: SamplerOptions,
    labels: Tensor | None,
    generator: torch.Generator | None,
    grid: Tensor | None,
) -> Iterable[Tensor]:
    if o.has_own_times:
        return sde_by_torchsde(model, z, o.steps, o.solver_name, o.rtol, o.atol, o.eta, labels, generator)
    states = multistep_states if o.solver_name == MULTISTEP else sde_states
    return states(model, z, _falling(o.steps, grid, z), o.eta, labels, generator)


def _falling(steps: int | None, grid: Tensor | None, like: Tensor) -> Tensor:
    """The times of the steps, (T + 1,), from 1 to 0: those of the grid, or evenly spaced."""
    assert steps is not None
    times = torch.arange(steps + 1, dtype=torch.float64) / steps if grid is None else grid
    return times.flip(0).to(like.device)
