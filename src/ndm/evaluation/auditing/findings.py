"""The sentences of an audit: what to quote, and what would lower the number. Each function states its rule."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

from ndm.evaluation.auditing.bounds import CALIBRATED
from ndm.evaluation.auditing.results import Audit, BoundRow, EndRow, Value, value_of
from ndm.evaluation.results import rounded

__all__ = ["advice", "best", "quotable", "quote"]

#: The smallest difference that is worth a sentence: in bits per dimension, and in nats per dimension.
LEAST = {"bits/dim": 0.005, "nats": 0.01}

#: The largest prior, per dimension, of a schedule that ends in noise.
PRIOR = 0.01

#: The share of the bound from which a reconstruction term is large.
RECONSTRUCTION = 0.05

#: The largest difference of the integral of a density from 1, beyond the errors of the grid and the solver.
INTEGRAL = 0.02


def quotable(audit: Audit) -> BoundRow | None:
    """The bound to quote: for a schedule of N noise levels that of T = N - 1 with the model's own variance, as DDPM
    has it; else that in continuous time.
    """
    steps = audit.about.get("steps_of_schedule")
    row = None if steps is None else audit.find(steps, audit.about["own_variance"])
    return row or audit.find(None)


def best(audit: Audit, steps: int | None) -> BoundRow | None:
    """The lowest bound with this number of steps."""
    rows = [row for row in audit.bounds if row.steps == steps]
    return min(rows, key=lambda row: row.total.value, default=None)


def quote(audit: Audit) -> list[str]:
    """What to quote."""
    return [*_bound_to_quote(audit), *_of_the_ode(audit)]


def advice(audit: Audit) -> list[str]:
    """What would lower the number."""
    found = [_variance(audit), _steps(audit), *_end(audit), _prior(audit), _level(audit), _integral(audit)]
    return [sentence for sentence in found if sentence]


# ---- what to quote


def _bound_to_quote(audit: Audit) -> Iterator[str]:
    row, about = quotable(audit), audit.about
    if row is None:
        return
    if row.steps is None:
        how = "in continuous time, which does not depend on the reverse variance"
    else:
        how = f"for T = {row.steps} with the {row.variance} variance"
    what = "NLL" if audit.unit == "bits/dim" else "-log p"
    yield f"Quote: {what} at most {_with_unit(audit, row.total)}, the bound {how}, {about['split']} split."
    if about["examples"] < about["split_examples"]:
        yield (
            f"It is the mean of {about['examples']:,} random examples of {about['split_examples']:,}: compute the "
            f"number to quote on the whole split, by ndm evaluate{_arguments(row, about)}."
        )
    lower = row.steps is not None and best(audit, row.steps)
    if lower and lower is not row and _matters(audit, _saving(row, lower)):
        yield (
            f"With the {lower.variance} variance the bound for T = {row.steps} is {_with_unit(audit, lower.total)}: if "
            "it is quoted, the variance must be named."
        )
    if row.not_finite:
        yield f"{row.not_finite:,} examples have no finite bound and are left out; their number must be quoted as well."


def _arguments(row: BoundRow, about: Mapping[str, Any]) -> str:
    """The arguments of ndm evaluate for this bound alone, with every step."""
    if row.steps is None:
        return " --steps continuous"
    return f" --steps {row.steps} --variances own" + (f" --times {row.steps}" if row.steps > about["times"] else "")


def _of_the_ode(audit: Audit) -> Iterator[str]:
    """The numbers of the ODE are always said to be of another model."""
    if not audit.ode:
        return
    said = [f"{rounded(*row.value)}, {row.name}" for row in audit.ode]
    yield (
        f"The numbers of the ODE ({'; '.join(said)}; {audit.unit}) are those of another model, the flow with the same "
        "network: they are no tighter values of the bound, and are compared only with those of other ODEs."
    )
    if any("not a bound" in row.kind for row in audit.ode):
        yield "The importance-weighted number with probes is biased to the better side: do not quote it as a bound."
    missed = [row for row in audit.ode if row.unsolved]
    if missed:
        yield (
            f"The ODE is not solved to the tolerance for {missed[0].unsolved} of {missed[0].examples} examples: the "
            f"mean error of the solver is {missed[0].solver_error:.2g} {audit.unit}."
        )


# ---- what would lower it


def _variance(audit: Audit) -> str:
    """The calibrated variance is named for every T at which it saves something."""
    said = []
    for row in audit.bounds:
        if row.variance != CALIBRATED:
            continue
        own = audit.find(row.steps, audit.about["own_variance"])
        saving = _saving(own, row) if own is not None else Value(0.0, 0.0)
        if _matters(audit, saving):
            said.append(f"{_with_unit(audit, saving)} at T = {row.steps}")
    if not said:
        return ""
    own = audit.about["own_variance"]
    kind = audit.about["calibrated_variance"]
    return (
        f"The calibrated reverse variance saves {_listed(said)}, compared with the {own} one: "
        f'model.calibrate(..., covariance="{kind}"), or ndm evaluate --variances {kind}.'
    )


def _steps(audit: Audit) -> str:
    """Each larger number of steps is named if it saves something, with the best variance of each."""
    steps = sorted({row.steps for row in audit.bounds if row.steps is not None})
    rows = [row for row in (best(audit, t) for t in [*steps, None]) if row is not None]
    said = []
    for few, many in pairwise(rows):
        saving = _saving(few, many)
        if _matters(audit, saving):
            to = "continuous time" if many.steps is None else f"T = {many.steps}"
            said.append(f"{_with_unit(audit, saving)} from T = {few.steps} to {to}")
    return f"More steps save {_listed(said)}, each with its best variance." if said else ""


def _end(audit: Audit) -> Iterator[str]:
    """The schedule's end: the best one evaluated, if it saves something; else whether the reconstruction is large and
    a higher end costs something, so that a lower one may save.
    """
    own = next((row for row in audit.ends if row.own), None)
    if own is None:
        return
    others = [row for row in audit.ends if not row.own]
    yield from _decoder(audit, own, others)
    moved = [row for row in others if row.gamma_0 != own.gamma_0]
    gain = max(moved, key=lambda row: row.saving.value, default=None)
    looked_at = [row.gamma_0 for row in audit.ends]
    if gain is not None and _matters(audit, gain.saving):
        further = "; the best may be further on" if gain.gamma_0 in (min(looked_at), max(looked_at)) else ""
        low = "low" if gain.gamma_0 > own.gamma_0 else "high"
        yield (
            f"gamma_0 = {own.gamma_0:.4g} is too {low}: with {gain.gamma_0:.4g}, the same networks and the "
            f"{gain.decoder}, the bound in continuous time is {_with_unit(audit, gain.total)}, "
            f"{_with_unit(audit, gain.saving)} less{further}."
        )
        return
    higher = [row for row in moved if row.gamma_0 > own.gamma_0 and row.decoder == own.decoder]
    nearest = min(higher, key=lambda row: row.gamma_0, default=None)
    if nearest is None or not _matters(audit, Value(-nearest.saving.value, nearest.saving.stderr)):
        return
    share = own.reconstruction.value / own.total.value if own.total.value else 0.0
    if audit.unit == "bits/dim" and share < RECONSTRUCTION:
        return
    large = f"The reconstruction is {share:.0%} of the bound, and a" if audit.unit == "bits/dim" else "A"
    yield (
        f"{large} higher end of the schedule, gamma_0 = {nearest.gamma_0:.4g}, costs "
        f"{rounded(-nearest.saving.value, nearest.saving.stderr)} {audit.unit}: gamma_0 = {own.gamma_0:.4g} may be too "
        "high. A lower one needs networks that were trained there."
    )


def _decoder(audit: Audit, own: EndRow, others: list[EndRow]) -> Iterator[str]:
    """The discretised decoder in the place of the denoised one, with the same end."""
    same = next((row for row in others if row.gamma_0 == own.gamma_0), None)
    if same is None:
        return
    verb = "saves" if same.saving.value > 0 else "costs"
    yield (
        f"The {same.decoder} in the place of the {own.decoder} {verb} "
        f"{rounded(abs(same.saving.value), same.saving.stderr)} {audit.unit} with the same gamma_0, in continuous time."
    )


def _prior(audit: Audit) -> str:
    """The prior is above 0.01 per dimension."""
    row = audit.find(None)
    of_latent = bool(audit.about.get("latent"))  # a part of the prior is the divergence of the latent
    if row is None or row.prior.value <= PRIOR * _dimensions(audit) or of_latent:
        return ""
    return (
        f"The prior is {_with_unit(audit, row.prior)}: gamma_1 = {audit.about['gamma_1']:.4g} is too low, since the "
        "last noise level still has information on the data. A higher one needs networks that were trained there."
    )


def _level(audit: Audit) -> str:
    """The interval of noise levels with the largest part of the diffusion term, if it is above a quarter."""
    row = max(audit.levels, key=lambda r: r.share, default=None)
    if row is None or not 0.25 < row.share <= 1:
        return ""
    return (
        f"{row.share:.0%} of the diffusion term lies between gamma = {row.low:.4g} and {row.high:.4g}: a better "
        "network at these noise levels lowers the bound most."
    )


def _integral(audit: Audit) -> str:
    """The integral of the density differs from 1 by more than its errors and 2%."""
    found = audit.integral
    if found is None or abs(found.value - 1) <= INTEGRAL + found.grid_error + found.solver_error * found.value:
        return ""
    return (
        f"The density of the ODE integrates to {found.value:.4g} over the grid, and not to 1: it has peaks that are "
        "narrower than the grid, parts outside of it, or errors of the solver. Do not quote it before this is clear."
    )


def _saving(before: BoundRow, after: BoundRow) -> Value:
    """The mean difference by example, with its standard error."""
    return value_of(before.per_example - after.per_example)


def _matters(audit: Audit, saving: Value) -> bool:
    """Whether a saving is above two standard errors and worth a sentence."""
    return saving.value > 2 * saving.stderr and saving.value > LEAST[audit.unit] * _dimensions(audit)


def _dimensions(audit: Audit) -> int:
    """The number of dimensions in the unit of the audit: nats are of the whole example."""
    return 1 if audit.unit == "bits/dim" else audit.about["dimensions"]


def _with_unit(audit: Audit, value: Value) -> str:
    return f"{rounded(*value)} {audit.unit}"


def _listed(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
