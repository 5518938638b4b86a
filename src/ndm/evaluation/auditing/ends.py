"""The bound in continuous time with other ends of the schedule, and which of them a model allows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ndm.evaluation.auditing.bounds import Part
from ndm.evaluation.auditing.levels import Profile, reconstructions
from ndm.evaluation.auditing.results import EndRow, value_of
from ndm.method.decoders import Decoder, DiscretizedDecoder, LevelDecoder
from ndm.method.denoisers import Denoiser
from ndm.method.schedules import Schedule
from ndm.method.transforms.ranges import GammaRange
from ndm.model import NDM

__all__ = ["end_rows", "ends_left_out", "known_levels", "lowest_allowed", "possible_ends"]

#: Changes of gamma_0.
CHANGES = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0)


def end_rows(model: NDM, part: Part, p: Profile, ends: Sequence[float], scale: float, **budget: Any) -> list[EndRow]:
    """The bound by end of the schedule: the model's own first, then the others, increasing.

    Args:
        model: the model.
        part: the examples.
        p: their diffusion term by noise level, of which the ends are edges.
        ends: the noise levels, the model's own first.
        scale: one nat in the unit of the results.
        budget: times, seed and batch size of :func:`ndm.evaluation.auditing.levels.reconstructions`.
    """
    own, other = model.decoder, _decoder_elsewhere(model)
    budget |= {"labels": part.labels}
    found = reconstructions(model, part.examples, ends, other, **budget)
    if other is own:
        first, rest = found[:, 0], range(1, len(ends))
    else:
        first, rest = reconstructions(model, part.examples, ends[:1], own, **budget)[:, 0], range(len(ends))
    reference = (p.diffusion(ends[0]) + first + p.prior) * scale

    def row(gamma: float, decoder: Decoder, reconstruction: Tensor) -> EndRow:
        diffusion = p.diffusion(gamma) * scale
        total = diffusion + (reconstruction + p.prior) * scale
        held = total.isfinite()
        whole, decoded, diffused = (
            value_of(torch.where(held, term, torch.nan)) for term in (total, reconstruction * scale, diffusion)
        )
        is_own = decoder is own and gamma == ends[0]
        return EndRow(gamma, type(decoder).__name__, is_own, whole, decoded, diffused, value_of(reference - total))

    rows = [row(ends[i], other, found[:, i]) for i in rest]
    return [row(ends[0], own, first), *sorted(rows, key=lambda r: r.gamma_0)]


def _decoder_elsewhere(model: NDM) -> Decoder:
    """The decoder for other ends of the schedule: the model's own, or for one around the denoised data, whose variance
    is that of the first noise level only, a discretised decoder of the same levels.
    """
    own = model.decoder
    if own.denoised and isinstance(own, LevelDecoder):
        return DiscretizedDecoder(own.levels, ends=own.ends)
    return own


def possible_ends(model: NDM, lowest: float | None) -> list[float]:
    """The noise levels at which the schedule could begin, the model's own first, and none near its end."""
    low, high = model.schedule.end_points()
    others = [low + by for by in CHANGES if low + by < high - 1]
    if lowest is not None and lowest < low:
        others += [low - by for by in CHANGES if low - by > lowest] + [lowest]
    return [low, *sorted(others)]


def ends_left_out(model: NDM) -> str:
    """Why the ends of the schedule cannot be moved with the same networks; empty if they can be."""
    if not known_levels(model):
        return "the schedule does not give its noise level as a function of gamma"
    if model.noise is not None:
        return "the learned noise of the forward process is a function of the schedule's end points"
    states = getattr(model.denoiser, "default_states", None)
    if states is not None and states(1) is not None:
        return "the model is that of some columns given others"
    return ""


def known_levels(model: NDM) -> bool:
    """Whether the schedule's noise level is known as a function of gamma; see :meth:`ndm.Schedule.level_at`."""
    return type(model.schedule).forward is Schedule.forward


def lowest_allowed(model: NDM, asked: float | None) -> tuple[float | None, str]:
    """The lowest noise level at which the networks may be evaluated, None for that of the schedule, and a reason if the
    given one is not possible.
    """
    low = model.schedule.end_points()[0]
    if asked is None or asked >= low:
        return None, ""
    ranges = [part.gamma_range[0] for part in _mapped(model)]
    denoiser = model.denoiser
    if isinstance(denoiser, Denoiser) and denoiser.time in ("t", "index"):
        ranges.append((denoiser.clock or model.schedule).end_points()[0])
    if ranges and max(ranges) > asked + 1e-9:
        return None, (
            f"a part of the model maps the noise levels from {max(ranges):.4g} on to its input, so it cannot be "
            f"evaluated at {asked:.4g}"
        )
    return asked, ""


def _mapped(model: NDM) -> list[GammaRange]:
    """The parts that map the noise levels of a range to [0, 1]."""
    parts = [part for part in (model.transform, model.denoiser, model.volatility) if isinstance(part, GammaRange)]
    return [part for part in parts if not (isinstance(part, Denoiser) and part.time != "u")]
