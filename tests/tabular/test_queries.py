"""Questions to a model of a table: what is kept, what is filled, and what sums to what."""

from __future__ import annotations

import numpy as np
import pandas
import pytest
import torch
from torch import Tensor

import ndm
from ndm._internal.random import seed_of
from ndm.tabular import TabularNDM, explain, impute, log_prob
from ndm.tabular.queries import class_probabilities, percentiles, sample_given

FAST = {"method": "bound", "times": 8}
NAN = float("nan")


def fitted(conditionals: str) -> ndm.NDM:
    rng = np.random.RandomState(0)
    frame = pandas.DataFrame(
        {
            "size": np.where(rng.rand(60) < 0.2, np.nan, rng.normal(size=60)),
            "city": rng.choice(["Rome", "Oslo", "Lima"], 60),
            "rooms": rng.poisson(2, 60),
        }
    )
    own = TabularNDM(max_steps=3, conditionals=conditionals, overrides={"model.denoiser.net.hidden": 16})
    return own.fit(frame).model_


@pytest.fixture(scope="module")
def model() -> ndm.NDM:
    return fitted("any")


@pytest.fixture(scope="module")
def joint() -> ndm.NDM:
    return fitted("none")


@pytest.fixture
def rows() -> Tensor:
    return torch.tensor([[0.3, 0, 2], [NAN, 1, 1], [-1.2, 2, 0], [0.1, 0, 3]], dtype=torch.float64)


# ---- log p


def test_columns_are_given_by_name_or_number(model, rows):
    found = log_prob(model, rows, ["rooms"], ["city", 0], **FAST)
    assert found.values.shape == found.stderr.shape == (4,)
    assert found.values.dtype == torch.float64
    torch.testing.assert_close(found.values, log_prob(model, rows, [2], [0, 1], **FAST).values)
    assert (found.stderr > 0).all()


def test_all_other_columns_are_wanted(model, rows):
    torch.testing.assert_close(
        log_prob(model, rows, given=["size"], **FAST).values,
        log_prob(model, rows, ["city", "rooms"], ["size"], **FAST).values,
    )


def test_columns_that_are_neither_have_no_effect(model, rows):
    other = rows.clone()
    other[:, 0] = 5.0
    found = [log_prob(model, r, ["rooms"], ["city"], **FAST).values for r in (rows, other)]
    torch.testing.assert_close(*found)
    assert not torch.equal(*(log_prob(model, r, ["rooms"], ["size"], **FAST).values for r in (rows, other)))


def test_missing_cells_can_be_left_out(model, rows):
    found = log_prob(model, rows, missing="left out", **FAST)
    assert found.kind.endswith("of the observed cells")
    marginal = log_prob(model, rows[1:2], ["city", "rooms"], [], **FAST).values
    torch.testing.assert_close(found.values[1:2], marginal)
    whole = log_prob(model, rows[[0, 2, 3]], **FAST).values
    torch.testing.assert_close(found.values[[0, 2, 3]], whole, atol=1e-5, rtol=1e-5)


def test_a_row_without_any_observed_cell_has_probability_one(model):
    assert log_prob(model, torch.full((2, 3), NAN), missing="left out", **FAST).values.tolist() == [0, 0]


def test_a_missing_cell_is_a_value_where_training_had_some(model, rows):
    assert log_prob(model, rows, **FAST).values.isfinite().all()
    rows[0, 2] = NAN
    with pytest.raises(ValueError, match="'rooms' has missing cells, and had none in the training"):
        log_prob(model, rows, **FAST)
    assert log_prob(model, rows, missing="left out", **FAST).values.isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"wanted": ["town"]}, "has no column 'town'"),
        ({"wanted": ["size"], "given": ["size"]}, "none of them may be given"),
        ({"missing": "drop"}, 'missing must be "value" or "left out"'),
        ({"method": "exact"}, 'method "auto" or "bound"'),
    ],
)
def test_wrong_arguments_are_refused(model, rows, arguments, words):
    with pytest.raises(ValueError, match=words):
        log_prob(model, rows, **arguments)


def test_rows_of_another_width_are_refused(model):
    with pytest.raises(ValueError, match="must have 3 columns"):
        log_prob(model, torch.zeros(2, 4))


def test_a_model_of_the_joint_alone_has_no_conditionals(joint, rows):
    assert log_prob(joint, rows, **FAST).values.isfinite().all()
    for ask in (
        lambda: log_prob(joint, rows, ["size"], ["city"]),
        lambda: sample_given(joint, rows, ["city"]),
        lambda: impute(joint, rows),
        lambda: class_probabilities(joint, rows, "city"),
    ):
        with pytest.raises(ValueError, match="conditionals"):
            ask()


# ---- samples


def test_given_cells_are_kept(model, rows):
    found = sample_given(model, rows, ["city", "size"], n=3, steps=5)
    assert found.shape == (12, 3)
    torch.testing.assert_close(found[:, :2], rows[:, :2].repeat_interleave(3, 0), equal_nan=True)
    assert found[:, 2].isfinite().all()
    assert set(found[:, 2].tolist()) <= set(model.standardize.table[2].levels)


def test_columns_that_are_not_wanted_are_nan(model, rows):
    found = sample_given(model, rows, ["city"], ["rooms"], steps=5)
    assert found[:, 0].isnan().all()
    assert found[:, 1:].isfinite().all()


def test_samples_of_one_seed_are_equal(model, rows):
    one, same, other = (sample_given(model, rows, ["city"], seed=seed, steps=5) for seed in (0, 0, 1))
    torch.testing.assert_close(one, same, equal_nan=True)
    assert not torch.equal(one.nan_to_num(), other.nan_to_num())


def test_every_hole_is_filled_and_nothing_else_changed(model):
    rows = torch.tensor([[0.5, 1, 2], [NAN, 1, 2], [NAN, NAN, 2], [NAN, NAN, NAN], [0.5, NAN, NAN]])
    found = impute(model, rows, n=20, steps=5)
    assert found.shape == (100, 3)
    assert found.isfinite().all()  # "missing" is a value of the first column, and fills no hole
    repeated = rows.double().repeat_interleave(20, 0)
    seen = ~repeated.isnan()
    torch.testing.assert_close(found[seen], repeated[seen])
    assert found[20:40, 0].unique().numel() > 1


# ---- classes, explanations and percentiles


def test_probabilities_sum_to_one(model, rows):
    city = model.standardize.table[1]
    found = class_probabilities(model, rows, "city")
    assert found.shape == (4, len(city.levels) + city.other)
    torch.testing.assert_close(found.sum(1), torch.ones(4, dtype=torch.float64))
    rows[:, 1] = 2.0  # the column itself is not looked at
    torch.testing.assert_close(class_probabilities(model, rows, 1), found)
    assert class_probabilities(model, rows, "city", []).std(0).max() < 1e-6  # nothing given: all rows alike


def test_shares_of_the_bound_sum_to_it(joint, rows):
    found, kind = explain(joint, rows, times=4, seed=3)
    assert kind == "minus the column's share of the bound"
    assert found.shape == (4, 3)
    generator, total = torch.Generator().manual_seed(seed_of(3, 0)), torch.zeros(4, dtype=torch.float64)
    with torch.no_grad():
        for i in range(4):
            u = (i + torch.rand(4, generator=generator, dtype=torch.float64)) / 4
            total += joint.bound(rows, times=u, generator=generator).total.double() / 4
    torch.testing.assert_close(found.sum(1), -total, rtol=1e-5, atol=1e-4)


def test_explanations_are_conditionals_where_the_model_has_them(model, rows):
    found, kind = explain(model, rows, **FAST)
    assert kind == "log p(column | the others)"
    torch.testing.assert_close(found[:, 1], log_prob(model, rows, ["city"], ["size", "rooms"], **FAST).values)


def test_percentiles_are_shares_of_the_reference():
    rng = np.random.RandomState(0)
    reference, scores = rng.randint(0, 9, 50).astype(float), np.array([-1.0, 3, 3.5, 8, 99])
    expected = [(1 + sum(r <= s for r in reference)) / 51 for s in scores]
    np.testing.assert_allclose(percentiles(scores, reference), expected)
    with_infinite = np.r_[reference, np.inf, -np.inf, np.nan]
    worst = [(2 + 1 + sum(r <= s for r in reference)) / 54 for s in scores]  # NaN counts as -inf
    np.testing.assert_allclose(percentiles(scores, with_infinite), worst)
