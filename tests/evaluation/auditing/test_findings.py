"""The rules of the sentences: each is said where it applies, and not elsewhere."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from ndm.evaluation.auditing.findings import advice, best, quotable, quote
from ndm.evaluation.auditing.results import Audit, BoundRow, EndRow, Integral, LevelRow, OdeRow, Value

NOISE = torch.tensor([-0.1, 0.1, -0.1, 0.1], dtype=torch.float64)


def row(steps: int | None, variance: str | None, bound: float, **terms: Any) -> BoundRow:
    """A bound of four examples, which differ in the same way in every row."""
    values = {"prior": Value(0.001, 0.0), "reconstruction": Value(0.01, 0.0), "diffusion": Value(bound, 0.1)} | terms
    return BoundRow(steps, variance, Value(bound, 0.1), not_finite=0, per_example=bound + NOISE, **values)


def audit(*bounds: BoundRow, unit: str = "bits/dim", **about: Any) -> Audit:
    known = {
        "split": "test", "examples": 50, "split_examples": 50, "times": 100, "dimensions": 12,
        "own_variance": "posterior", "calibrated_variance": "frequency", "gamma_0": -9.0, "gamma_1": 5.0,
        "steps_of_schedule": None,
    }  # fmt: skip
    return Audit(known | about, unit, [*bounds, row(None, None, 2.0)])


def end(gamma: float, total: float, saving: float, own: bool = False, decoder: str = "DiscretizedDecoder") -> EndRow:
    parts = Value(0.4 * total, 0.01), Value(0.6 * total, 0.01)
    return EndRow(gamma, decoder, own, Value(total, 0.01), *parts, Value(saving, 0.01))


# ---- what to quote


def test_the_bound_in_continuous_time_is_quoted() -> None:
    found = audit(row(10, "posterior", 1.0))
    assert quotable(found) is found.bounds[-1]
    (said,) = quote(found)
    assert said.startswith(
        "Quote: NLL at most 2.00 ± 0.10 bits/dim, the bound in continuous time, which does not depend"
    )
    assert said.endswith("on the reverse variance, test split.")


def test_a_schedule_of_levels_is_quoted_with_its_steps_and_variance() -> None:
    found = audit(row(999, "large", 3.0), row(999, "calibrated", 2.5), steps_of_schedule=999, own_variance="large")
    assert quotable(found) is found.bounds[0]
    first, second = quote(found)
    assert first.startswith("Quote: NLL at most 3.00 ± 0.10 bits/dim, the bound for T = 999 with the large variance")
    assert "With the calibrated variance the bound for T = 999 is 2.50 ± 0.10 bits/dim" in second
    without = audit(row(10, "large", 3.0), steps_of_schedule=999, own_variance="large")
    assert quotable(without) is without.bounds[-1]


@pytest.mark.parametrize(
    ("about", "command"),
    [
        ({}, "ndm evaluate --steps continuous."),
        ({"steps_of_schedule": 999}, "ndm evaluate --steps 999 --variances own --times 999."),
        ({"steps_of_schedule": 999, "times": 999}, "ndm evaluate --steps 999 --variances own."),
    ],
)
def test_a_part_of_the_split_is_not_to_be_quoted(about: dict, command: str) -> None:
    _, said = quote(audit(row(999, "posterior", 3.0), split_examples=10_000, **about))
    assert said.startswith("It is the mean of 50 random examples of 10,000")
    assert said.endswith(command)


def test_nats_and_examples_that_are_left_out() -> None:
    found = audit(unit="nats")
    found.bounds[0] = BoundRow(None, None, *[Value(2.0, 0.1)] * 4, not_finite=3, per_example=NOISE)
    first, second = quote(found)
    assert first.startswith("Quote: -log p at most 2.00 ± 0.10 nats")
    assert second.startswith("3 examples have no finite bound")


def test_the_ode_is_another_model() -> None:
    found = audit()
    kind = "estimate of log p(x), importance-weighted over q(z_0 | x) with Hutchinson's probes: not a bound"
    found.ode = [
        OdeRow("uniform", "lower bound on log p(x), uniform dequantisation", Value(3.1, 0.02), 0.001, 16, 0, 96),
        OdeRow("importance", kind, Value(2.9, 0.02), 0.001, 16, 2, 96),
    ]
    _, ode, importance, missed = quote(found)
    assert ode.startswith(
        "The numbers of the ODE (3.100 ± 0.020, at most, uniform dequantisation; 2.900 ± 0.020, estimate"
    )
    assert "are those of another model" in ode
    assert "do not quote it as a bound" in importance
    assert missed.startswith("The ODE is not solved to the tolerance for 2 of 16 examples")
    found.ode = [OdeRow(None, "density of the reverse ODE", Value(3.1, 0.02), 0.001, 16, 0, 96)]
    assert len(quote(found)) == 2


# ---- what would lower it


def test_nothing_is_advised_without_a_reason() -> None:
    assert advice(audit(row(10, "posterior", 2.0), row(10, "calibrated", 2.0))) == []


def test_a_calibrated_variance_and_more_steps() -> None:
    found = audit(
        row(10, "posterior", 6.0), row(10, "calibrated", 3.5), row(1000, "posterior", 2.001),
        row(1000, "calibrated", 2.0),
    )  # fmt: skip
    assert best(found, 10) is found.bounds[1]
    variance, steps = advice(found)
    assert variance.startswith("The calibrated reverse variance saves 2.5000 ± < 0.0001 bits/dim at T = 10, compared")
    assert variance.endswith('model.calibrate(..., covariance="frequency"), or ndm evaluate --variances frequency.')
    assert steps == ("More steps save 1.5000 ± < 0.0001 bits/dim from T = 10 to T = 1000, each with its best variance.")


def test_a_saving_within_its_error_is_not_named() -> None:
    calibrated = row(10, "calibrated", 1.99)
    unsure = BoundRow(**vars(calibrated) | {"per_example": 1.99 - 5 * NOISE})
    assert advice(audit(row(10, "posterior", 2.0), unsure)) == []
    assert len(advice(audit(row(10, "posterior", 2.0), row(10, "calibrated", 1.99)))) == 1


def test_nats_are_of_the_whole_example() -> None:
    found = audit(row(10, "posterior", 2.1), row(10, "calibrated", 2.0), unit="nats")
    assert advice(found) == []  # 0.1 nats of 12 dimensions
    found.about["dimensions"] = 2
    assert len(advice(found)) == 1


def test_an_end_that_is_too_low_or_too_high() -> None:
    found = audit()
    found.ends = [end(-9, 2.0, 0.0, True), end(-8, 1.8, 0.2), end(-7, 1.7, 0.3), end(-5, 1.9, 0.1)]
    (said,) = advice(found)
    assert said.startswith("gamma_0 = -9 is too low: with -7, the same networks and the DiscretizedDecoder, the bound")
    assert said.endswith("1.700 ± 0.010 bits/dim, 0.300 ± 0.010 bits/dim less.")
    found.ends = found.ends[:3]
    assert advice(found)[0].endswith("less; the best may be further on.")
    found.ends = [end(-9, 2.0, 0.0, True), end(-10, 1.7, 0.3), end(-11, 1.8, 0.2), end(-8, 2.2, -0.2)]
    assert advice(found)[0].startswith("gamma_0 = -9 is too high: with -10")


def test_a_large_reconstruction_that_no_higher_end_lowers() -> None:
    found = audit()
    found.ends = [end(-9, 2.0, 0.0, True), end(-8, 2.3, -0.3), end(-7, 2.6, -0.6)]
    (said,) = advice(found)
    assert said.startswith(
        "The reconstruction is 40% of the bound, and a higher end of the schedule, gamma_0 = -8, costs"
    )
    assert "0.300 ± 0.010 bits/dim: gamma_0 = -9 may be too high" in said
    small = EndRow(-9, "DiscretizedDecoder", True, Value(2.0, 0.01), *[Value(0.01, 0.0)] * 2, Value(0.0, 0.0))
    found.ends[0] = small
    assert advice(found) == []


def test_the_decoders_are_compared_at_the_same_end() -> None:
    found = audit()
    found.ends = [end(-9, 2.0, 0.0, True, "DenoisedDecoder"), end(-9, 2.1, -0.1), end(-8, 2.2, -0.2)]
    (said,) = advice(found)
    assert said.startswith("The DiscretizedDecoder in the place of the DenoisedDecoder costs 0.100 ± 0.010 bits/dim")
    found.ends[1] = end(-9, 1.9, 0.1)
    assert "saves 0.100 ± 0.010 bits/dim" in advice(found)[0]


@pytest.mark.parametrize(
    ("unit", "prior", "said"), [("bits/dim", 0.02, True), ("bits/dim", 0.009, False), ("nats", 0.1, False)]
)
def test_a_prior_above_a_hundredth_per_dimension(unit: str, prior: float, said: bool) -> None:
    found = audit(unit=unit)
    found.bounds[-1] = row(None, None, 2.0, prior=Value(prior, 0.0))
    assert [s.startswith("The prior is") and "gamma_1 = 5 is too low" in s for s in advice(found)] == [True] * said


def test_the_noise_levels_with_most_of_the_diffusion_term() -> None:
    found = audit()
    found.levels = [LevelRow(-9, -6, Value(1.0, 0.1), 0.5), LevelRow(-6, 5, Value(1.0, 0.1), 0.2)]
    assert advice(found)[0].startswith("50% of the diffusion term lies between gamma = -9 and -6")
    found.levels = found.levels[1:]
    assert advice(found) == []


@pytest.mark.parametrize(("value", "grid", "said"), [(1.01, 0.0, 0), (0.9, 0.0, 1), (1.2, 0.0, 1), (0.9, 0.2, 0)])
def test_a_density_that_does_not_integrate_to_one(value: float, grid: float, said: int) -> None:
    found = audit()
    found.integral = Integral(value, grid, 0.001, 9, [-1.0], [1.0], 0)
    assert len(advice(found)) == said


def test_a_single_example_has_no_error_and_no_advice() -> None:
    found = audit(row(10, "posterior", 6.0))
    found.bounds = [BoundRow(**vars(r) | {"per_example": r.per_example[:1]}) for r in found.bounds]
    found.bounds.append(BoundRow(**vars(row(10, "calibrated", 3.0)) | {"per_example": torch.tensor([3.0])}))
    assert math.isfinite(found.bounds[0].total.value)
    assert advice(found) == []
