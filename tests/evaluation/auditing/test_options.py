"""Options of an audit that are out of range."""

from __future__ import annotations

import math
from typing import Any

import pytest

from ndm.evaluation import AuditOptions


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("split", "tset", r"There is no split 'tset'; choose one of train, validation, test\."),
        ("examples", 1, r"needs at least 2 examples, got 1\."),
        ("times", 0, r"times must be at least 1, got 0\."),
        ("steps", (10, 0), r"steps\[1\] must be at least 1, got 0\."),
        ("batch_size", -1, r"batch_size must be at least 1, got -1\."),
        ("ode", -1, r"ode must not be negative, got -1\."),
        ("lowest_gamma", math.nan, r"lowest_gamma must be a finite number"),
    ],
)
def test_a_number_out_of_range_is_refused(name: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AuditOptions(**{name: value})


def test_the_defaults_are_in_range() -> None:
    assert AuditOptions(ode=0, steps=(1,)).split == "test"
