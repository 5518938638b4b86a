"""Section on the bound: the diffusion term by noise level, and the three terms."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from ndm.evaluation import mean_and_error
from ndm.report.blocks import Figure, Gallery, Section, Table, Text, minus, with_error
from ndm.report.drawing import INK, MUTED, axes, colour, dash, numbers, svg
from ndm.report.findings import TERMS, Findings
from ndm.report.grouping import about, groups, legend
from ndm.report.measures import Profile

__all__ = ["section"]


def section(findings: Sequence[Findings]) -> Section:
    subjects = [f.subject for f in findings]
    part = Section("bound", "Where the bound is spent")
    for s in subjects:
        if s.lacking:
            part.blocks.append(
                Text(f"There is no figure for {s.name}, because its test examples are not available: {s.lacking}")
            )
        elif (steps := s.training_steps_of_bound()) is not None:
            part.blocks.append(
                Text(
                    f"{s.name} was trained on the bound for T = {steps} steps. The bound shown here is in continuous "
                    "time, for which it was not trained."
                )
            )
    for group in groups(subjects):
        measured = [f for f in findings if f.subject in group and f.profile is not None]
        if not measured:
            continue
        unit, n = group[0].unit, len(measured[0].profile.total)  # type: ignore[union-attr]
        part.blocks += [
            Gallery(
                [
                    Figure(_density(measured), "", f"{unit} per unit of γ{about(group, subjects)}"),
                    Figure(_bars(measured), "", f"The three terms, {unit}"),
                ],
                "First figure: density of the diffusion term over γ, the log noise-to-signal ratio (data left, noise "
                "right). The area under a line is the diffusion term; the band is one standard error. The denoiser (or "
                "F) has the largest loss where a line is high. If a line is high at its left end, a lower γ₀ would "
                "move cost between diffusion and reconstruction. Second figure: the three terms. Diffusion is the cost "
                "of the reverse process; reconstruction, of decoding the least noisy state; prior, of the information "
                f"on the data left in the noise. Measured on {n} test examples, in continuous time.",
                legend([f.subject for f in measured]),
            ),
            _terms(measured),
        ]
    return part


def _density(measured: Sequence[Findings]) -> Markup:
    with axes("γ, log noise-to-signal ratio", f"{measured[0].subject.unit} per unit of γ") as (figure, ax):
        said = []
        for f in measured:
            p, s = f.profile, f.subject
            assert p is not None
            density = numbers(p.density * s.nat)
            mean, error = density.mean(0), density.std(0, ddof=1) / math.sqrt(len(density)) if len(density) > 1 else 0.0
            x = numbers(p.centres)
            ax.plot(x, mean, color=colour(s.index), ls=dash(s.index))
            ax.fill_between(x, mean - error, mean + error, color=colour(s.index), alpha=0.2, lw=0)
            said.append(f"{s.name} is highest, {mean.max():.3g}, at γ = {x[mean.argmax()]:.1f}")
        ax.set_ylim(bottom=0)
        return svg(figure, f"The diffusion term's density over the noise level: {'; '.join(said)}.")


def _bars(measured: Sequence[Findings]) -> Markup:
    terms = [term for term in TERMS if term != "total"]
    with axes("", measured[0].subject.unit, height=3.0) as (figure, ax):
        width = 0.8 / len(measured)
        said = []
        for k, f in enumerate(measured):
            found = [mean_and_error(getattr(f.profile, term) * f.subject.nat) for term in terms]
            at = np.arange(len(terms)) + (k - (len(measured) - 1) / 2) * width
            ink, line = colour(f.subject.index), dash(f.subject.index)
            ax.bar(at, [v for v, _ in found], 0.86 * width, facecolor=(ink, 0.6), edgecolor=ink, linestyle=line, lw=1.3)
            ax.errorbar(at, [v for v, _ in found], [e for _, e in found], fmt="none", ecolor=INK, elinewidth=0.9)
            said.append(
                f"{f.subject.name}: " + ", ".join(f"{t} {v:.3g}" for t, (v, _) in zip(terms, found, strict=True))
            )
        ax.axhline(0, color=MUTED, lw=0.7)
        ax.set_xticks(range(len(terms)), terms)
        ax.tick_params(axis="x", length=0)
        return svg(figure, f"The terms of the bound. {'; '.join(said)}.")


def _terms(measured: Sequence[Findings]) -> Table:
    rows = []
    for term in TERMS:
        cells = [with_error(*mean_and_error(getattr(f.profile, term) * f.subject.nat)) for f in measured]
        rows.append([TERMS[term], *cells])
    rows.append(["noise levels, γ₀ to γ₁", *(_range(f.profile) for f in measured)])
    rows.append(["half of the diffusion term lies below γ =", *(minus(f"{_median(f.profile):.2f}") for f in measured)])
    subjects = [f.subject for f in measured]
    return Table(
        f"The bound in continuous time, {subjects[0].unit}",
        ["", *(s.name for s in subjects)],
        rows,
        "",
        [None, *(s.index for s in subjects)],
    )


def _range(profile: Profile | None) -> str:
    assert profile is not None
    return minus(f"{profile.edges[0]:.2f} to {profile.edges[-1]:.2f}")


def _median(profile: Profile | None) -> float:
    """Return gamma at which the integral of the density reaches half of its value."""
    assert profile is not None
    whole = np.concatenate([[0.0], numbers((profile.density.mean(0) * profile.widths).cumsum(0))])
    return float(np.interp(whole[-1] / 2, whole, numbers(profile.edges)))
