"""The numbers of an audit as JSON."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch

from ndm.evaluation import Audit
from ndm.evaluation.auditing.results import BoundRow, OdeRow, Value, value_of


def small() -> Audit:
    values = [Value(2.0, math.nan), *[Value(1.0, 0.1)] * 3]
    row = BoundRow(None, None, *values, not_finite=0, per_example=torch.tensor([2.0]))
    found = Audit({"split": "test", "seed": 0}, "nats", [row])
    found.ode.append(OdeRow(None, "density of the reverse ODE", Value(1.5, 0.2), math.inf, 1, 1, 96))
    return found


def test_the_numbers_are_json_without_those_of_examples(tmp_path: Path) -> None:
    found = small()
    path = found.save(tmp_path / "audit.json")
    written = json.loads(path.read_text(), parse_constant=lambda name: 1 / 0)
    assert written == found.to_dict()
    (bound,) = written["bounds"]
    assert bound["total"] == {"value": 2.0, "stderr": None}
    assert "per_example" not in bound
    assert written["ode"][0]["solver_error"] is None


def test_a_mean_is_that_of_the_finite_values() -> None:
    found = value_of(torch.tensor([1.0, math.nan, 3.0, math.inf]))
    assert found == Value(2.0, 1.0)
    assert math.isnan(value_of(torch.tensor([math.nan])).value)


def test_rows_are_found_by_steps_and_variance() -> None:
    found = small()
    assert found.find(None) is found.bounds[0]
    assert found.find(10, "posterior") is None
