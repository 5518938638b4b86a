"""The options of an evaluation."""

from __future__ import annotations

import pytest

from ndm.evaluation import EvaluationOptions


def test_changes_are_fields_or_options_of_the_likelihood() -> None:
    options = EvaluationOptions(split="train", likelihood_options={"probes": 2})
    changed = options.changed(steps=(3,), tolerance=0.1)
    assert (changed.split, changed.steps, options.steps[0]) == ("train", (3,), 10)
    assert changed.likelihood_options == {"probes": 2, "tolerance": 0.1}


def test_a_spacing_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="no spacing 'even'; choose one of time, gamma, optimal"):
        EvaluationOptions(spacing="even")
