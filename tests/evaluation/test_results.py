"""What an evaluation says and saves, whatever its results are."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ndm.evaluation.results import Evaluation, mean_and_error, read_per_example, read_places, rounded


def strictly(text: str) -> Any:
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def with_bound(
    values: Tensor, *, places: Tensor | None = None, unit: str = "nats", steps: int | None = None,
    variance: str | None = None, about: dict[str, Any] | None = None, to: Evaluation | None = None,
) -> Evaluation:  # fmt: skip
    result = to or Evaluation(about={"split": "test", "split_examples": len(values)} | (about or {}))
    places = torch.arange(len(values)) if places is None else places
    result.add(values, places, quantity="bound", steps=steps, variance=variance, unit=unit, kind="a bound")
    return result


def test_examples_without_a_finite_value_are_counted_named_and_left_out(tmp_path: Path) -> None:
    values = torch.tensor([1.0, math.inf, 3.0, math.nan, 5.0], dtype=torch.float64)
    result = with_bound(values, places=torch.tensor([2, 4, 8, 16, 31]))
    row = result.rows[0]
    assert (row["value"], row["examples"], row["not_finite"]) == (3.0, 5, 2)
    assert row["stderr"] == pytest.approx(2 / math.sqrt(3))
    assert row["not_finite_examples"] == [4, 16]
    said = "bound, continuous time: not finite (inf or nan) for 2 of 5 examples, which are excluded: numbers 4, 16 of"
    assert said in result.text()
    assert "5 examples, of which 2 not finite and excluded" in result.quote()
    saved = strictly(result.save(tmp_path / "e.json").read_text())
    assert saved["rows"] == result.rows
    assert read_per_example(tmp_path / "e.npz")["bound, continuous time"].isnan().sum() == 1
    assert read_places(tmp_path / "e.npz")["bound, continuous time"].tolist() == [2, 4, 8, 16, 31]


def test_no_finite_example_is_no_figure(tmp_path: Path) -> None:
    result = with_bound(torch.full((30,), math.inf))
    assert result.rows[0]["value"] is None
    assert result.rows[0]["not_finite"] == 30
    assert len(result.rows[0]["not_finite_examples"]) == 20
    assert result.quote() is None
    assert result.table().splitlines()[1].split()[-4:] == ["-", "±", "-", "nats"]
    assert strictly(result.save(tmp_path / "e.json").read_text())["rows"][0]["value"] is None


def test_one_example_has_no_standard_error(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = with_bound(torch.tensor([2.5]))
    assert result.rows[0]["stderr"] is None
    assert "±      -" in result.table()
    assert "A single example has no standard error." in result.text()
    assert result.quote() == "test: 2.5 nats, bound on -log p in continuous time, 1 example; lower is better"
    assert strictly(result.save(tmp_path / "e.json").read_text())["rows"][0]["stderr"] is None
    assert math.isnan(mean_and_error(torch.tensor([2.5]))[1])


def test_the_sentence_to_quote_is_about_continuous_time_or_the_most_steps() -> None:
    generator = torch.Generator().manual_seed(0)

    def values(mean: float, n: int = 400) -> Tensor:
        x = torch.randn(n, generator=generator, dtype=torch.float64)
        return mean + 0.4 * (x - x.mean()) / x.std()

    result = with_bound(values(2.0), steps=10, variance="posterior", unit="bits/dim", about={"split_examples": 9999})
    with_bound(values(1.9), steps=10, variance="full", unit="bits/dim", to=result)
    with_bound(values(1.0), steps=5, variance="full", unit="bits/dim", to=result)
    assert result.quote() == (
        "test: 1.900 ± 0.020 bits/dim, bound for 10 steps, full reverse variance, 400 random examples of 9,999; "
        "lower is better"
    )
    with_bound(values(1.84), unit="bits/dim", to=result)
    quote = result.quote()
    assert quote == (
        "test: 1.840 ± 0.020 bits/dim, bound in continuous time, 400 random examples of 9,999; lower is better"
    )
    assert result.text().splitlines()[-1] == quote
    assert result.to_dict()["quote"] == quote


def test_of_continuous_data_the_log_likelihood_is_quoted_too() -> None:
    result = with_bound(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    result.add(
        torch.tensor([-1.0, -2.0, -3.0, -3.0]), torch.arange(4), quantity="log-likelihood", steps=None, variance=None,
        unit="nats", kind="density",
    )  # fmt: skip
    assert result.quote() == (
        "test: 2.50 ± 0.65 nats, bound on -log p in continuous time, 4 examples; lower is better. "
        "-2.25 ± 0.48 nats, log-likelihood under the ODE, 4 examples; higher is better"
    )


def test_a_number_is_rounded_to_its_errors_second_digit() -> None:
    assert rounded(31.19, 0.3831) == "31.19 ± 0.38"
    assert rounded(-4.0449, 0.1312) == "-4.04 ± 0.13"
    assert rounded(1.5, math.nan) == "1.5"
