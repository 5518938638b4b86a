"""Section on the noise schedule, the reverse variance and the volatility."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from markupsafe import Markup
from torch import Tensor

from ndm.method.learned_schedule import LearnedSchedule
from ndm.method.parts import from_config
from ndm.method.schedules import Schedule
from ndm.report.blocks import Entry, Figure, Gallery, Section, Text, minus
from ndm.report.drawing import MUTED, axes, colour, dash, numbers, svg
from ndm.report.findings import Findings
from ndm.report.grouping import legend
from ndm.report.subjects import Subject

__all__ = ["section"]


def section(findings: Sequence[Findings]) -> Section:
    subjects = [f.subject for f in findings]
    part = Section("noise", "Schedule, reverse variance, volatility")
    learned = [s for s in subjects if isinstance(s.model.schedule, LearnedSchedule)]
    part.blocks.append(
        Gallery(
            [Figure(_schedules(subjects), "", "Noise level over time")],
            "γ(t), the log noise-to-signal ratio, from data (t = 0) to noise (t = 1). In continuous time the bound "
            "only depends on the end points, and the path between them affects the speed of learning; at few steps "
            "the bound also depends on the path. "
            + ("Thin grey line: learned schedule before training. " if learned else "No schedule is learned. ")
            + _ends(subjects),
            [*legend(subjects), *([Entry("at the start of training", None)] if learned else [])],
        )
    )
    plain = [f for f in findings if all(max(r) == min(r) == 1 for _, r in f.ratios.values() if r)]
    if plain:
        names, seen = ", ".join(f.subject.name for f in plain), sorted({T for f in plain for T in f.ratios})
        at = f" (evaluated at {' and '.join(f'T = {T}' for T in seen)})" if seen else ""
        has = "has" if len(plain) == 1 else "have"
        part.blocks.append(Text(f"Reverse variance: {names} {has} the posterior's, w = v, at every step{at}."))
    others = [f for f in findings if f not in plain]
    if steps := sorted({T for f in others for T in f.ratios}):
        part.blocks.append(
            Gallery(
                [_ratio_figure([f for f in others if T in f.ratios], T) for T in steps],
                "w / v, the variance of a reverse step over that of the forward posterior, for each of the T steps; "
                "1 is the posterior's. The larger the error of the denoiser in one step, the larger the optimal "
                "ratio. Geometric mean over dimensions and, if the variance is predicted for each example, over "
                "examples.",
                legend([f.subject for f in others]),
            )
        )
    part.blocks += _volatilities(subjects)
    return part


def _ratio_figure(some: Sequence[Findings], T: int) -> Figure:
    said = []
    with axes("γ at the start of the step", "w / v", height=2.8) as (figure, ax):
        for f in some:
            levels, ratios = f.ratios[T]
            s = f.subject
            ax.plot(
                levels, ratios, color=colour(s.index), ls=dash(s.index), marker="o", markersize=2.5 if T < 26 else 0
            )
            said.append(f"{s.name} from {min(ratios):.3g} to {max(ratios):.3g}")
        if max(max(f.ratios[T][1]) for f in some) > 4:
            ax.set_yscale("log")
        body = svg(figure, f"Reverse variance over the posterior's at T = {T}: {'; '.join(said)}.")
    return Figure(body, "", f"Reverse variance, T = {T}")


def _schedules(subjects: Sequence[Subject]) -> Markup:
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    with axes("t", "γ(t)") as (figure, ax):
        for s in subjects:
            schedule = s.model.schedule
            if isinstance(schedule, LearnedSchedule):
                ax.plot(numbers(t), _gamma(_fresh(schedule), t), color=MUTED, ls=(0, (1.5, 1.5)), lw=1)
            ax.plot(numbers(t), _gamma(schedule, t), color=colour(s.index), ls=dash(s.index))
        return svg(figure, f"γ over time. {_ends(subjects)}")


def _fresh(schedule: LearnedSchedule) -> Schedule:
    """Return the untrained schedule."""
    try:
        fresh = from_config(copy.deepcopy(schedule.config()))
    except (TypeError, ValueError):  # a custom class
        return schedule
    assert isinstance(fresh, Schedule)
    return fresh


@torch.no_grad()
def _gamma(schedule: Schedule, t: Tensor) -> np.ndarray:
    device = next((p.device for p in schedule.parameters()), t.device)
    return numbers(schedule.gamma(t.to(device))[0])


def _ends(subjects: Sequence[Subject]) -> str:
    ends = [(s.name, *s.model.schedule.end_points()) for s in subjects]
    return (
        "End points: " + "; ".join(minus(f"{low:.2f} and {high:.2f}") + f" ({name})" for name, low, high in ends) + "."
    )


@torch.no_grad()
def _volatilities(subjects: Sequence[Subject]) -> list[Gallery | Text]:
    found = {}
    for s in subjects:
        gamma = s.levels_of_noise(65)
        found[s.name] = numbers(gamma), numbers(s.model.volatility(gamma.float().to(s.device)))
    if all(np.ptp(eta) < 1e-6 for _, eta in found.values()):
        values = "; ".join(f"{name} {eta[0]:g}" for name, (_, eta) in found.items())
        return [Text(f"The volatility η is constant: {values}. (1 is the paper's and VDM's.)")]
    with axes("γ, log noise-to-signal ratio", "η", height=2.8) as (figure, ax):
        for s in subjects:
            ax.plot(*found[s.name], color=colour(s.index), ls=dash(s.index))
        ax.set_ylim(bottom=0)
        said = "; ".join(f"{name} from {eta.min():.3g} to {eta.max():.3g}" for name, (_, eta) in found.items())
        body = svg(figure, f"The volatility by noise level: {said}.")
    return [
        Gallery(
            [Figure(body, "", "Volatility")],
            "η(γ): noise added by the reverse process, relative to the conventional amount. 1 is optimal if F is the "
            "identity; if F depends on γ, another value may be better. A learned η is trained on the bound.",
            legend(subjects),
        )
    ]
