"""The estimator of a small model of a mixed table: shapes, types and scikit-learn's conventions."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

import ndm
from ndm.tabular import TabularNDM

SMALL: dict[str, Any] = {"max_steps": 30, "overrides": {"model.denoiser.net.hidden": 16}}
FAST = {"method": "bound", "times": 8}


def table(n: int = 90, seed: int = 0) -> pandas.DataFrame:
    rng = np.random.RandomState(seed)
    frame = pandas.DataFrame(
        {
            "size": rng.normal(size=n),
            "city": rng.choice(["Rome", "Oslo", "Lima"], n),
            "flag": rng.rand(n) < 0.3,
            "day": pandas.to_datetime("2020-01-01") + pandas.to_timedelta(rng.randint(60, size=n), "D"),
        }
    )
    frame.loc[rng.rand(n) < 0.15, "size"] = np.nan
    return frame


@pytest.fixture(scope="module")
def model() -> TabularNDM:
    return TabularNDM(conditionals="any", **SMALL).fit(table())


@pytest.fixture(scope="module")
def plain() -> TabularNDM:
    """A model of an array, without conditionals."""
    return TabularNDM(**SMALL).fit(np.random.RandomState(0).normal(size=(60, 2)))


ROWS = table()[:5]


def test_the_columns_are_found(model):
    assert model.columns_ == ("size", "city", "flag", "day")
    assert list(model.feature_names_in_) == list(model.columns_)
    assert model.n_features_in_ == 4
    assert "categorical columns: city (3 categories), flag (2 values)" in model.lines_
    assert any("days from 2020-01-0" in line or "day (" in line for line in model.lines_)


# ---- densities


def test_scores_are_log_densities_of_rows(plain):
    x = np.random.RandomState(1).normal(size=(4, 2))
    scores = plain.score_samples(x)
    assert scores.shape == (4,)
    assert np.isfinite(scores).all()
    assert plain.score(x) == pytest.approx(scores.mean())
    np.testing.assert_array_equal(plain.decision_function(x), -scores)
    np.testing.assert_allclose(plain.log_prob(x), scores)


def test_the_score_of_a_row_does_not_depend_on_the_others(model):
    every = model.log_prob(ROWS[:3], ["city", "day"], ["flag"], samples=1, tolerance=1e-2)
    np.testing.assert_allclose(
        model.log_prob(ROWS[1:2], ["city", "day"], ["flag"], samples=1, tolerance=1e-2), every[1:2], rtol=1e-3
    )
    every = model.class_probabilities(ROWS, "city")
    np.testing.assert_allclose(model.class_probabilities(ROWS[3:4], "city"), every[3:4], rtol=1e-4)


@pytest.mark.slow
def test_percentiles_and_abnormal_rows(plain):
    scores = plain.validation_scores_
    assert scores.shape == (6,)
    x = np.array([[0.0, 0.0], [40.0, 40.0]])
    p = plain.percentile(x)
    assert p[1] == pytest.approx(1 / 7)
    own = plain.score_samples(x)
    np.testing.assert_allclose(p, [(1 + (scores <= s).sum()) / 7 for s in own])
    np.testing.assert_array_equal(plain.predict(x), (p <= plain.contamination).astype(int))


def test_conditional_log_probabilities(model):
    found = model.log_prob(ROWS, given=["city"], wanted="flag", **FAST)
    np.testing.assert_array_equal(found, model.log_prob(ROWS[["flag", "city"]], "city", ["flag"], **FAST))
    assert np.isfinite(model.log_prob(ROWS, missing="left out", **FAST)).all()


def test_explanations_have_the_form_of_the_table(model, plain):
    found = model.explain(ROWS, **FAST)
    assert list(found.columns) == list(model.columns_)
    assert found.shape == (5, 4)
    assert plain.explain(np.zeros((2, 2)), times=8).shape == (2, 2)


# ---- samples


def test_samples_have_the_types_of_the_table(model):
    found = model.sample(6, random_state=0, steps=5)
    assert list(found.columns) == list(model.columns_)
    assert [found[name].dtype.kind for name in ("size", "flag", "day")] == ["f", "b", "M"]
    assert set(found["city"]) <= {"Rome", "Oslo", "Lima", "(other)"}
    assert (found["day"] == found["day"].dt.normalize()).all()  # whole days, as in the table
    pandas.testing.assert_frame_equal(found, model.sample(6, random_state=0, steps=5))


def test_samples_of_an_array_are_an_array(plain):
    found = plain.sample(5, random_state=0, steps=5)
    assert isinstance(found, np.ndarray)
    assert found.shape == (5, 2)


def test_samples_given_some_columns(model):
    found = model.sample(2, given=ROWS[["city", "day"]], random_state=0, steps=5)
    assert len(found) == 10
    assert found["city"].tolist() == ROWS["city"].repeat(2).tolist()
    assert found["day"].tolist() == ROWS["day"].repeat(2).tolist()
    with pytest.raises(ValueError, match="given has none of the model's columns: size, city"):
        model.sample(given=ROWS[["city"]].rename(columns={"city": "town"}))


def test_missing_cells_are_filled_and_others_kept(model):
    rows = ROWS.assign(city=[None, "Oslo", "Rome", None, "Lima"], size=[np.nan, 1.0, np.nan, 2.0, 3.0])
    found = model.impute(rows, steps=5)
    assert not found.isna().any().any()
    for name in rows:
        seen = rows[name].notna()
        assert found.loc[seen, name].tolist() == rows.loc[seen, name].tolist()
    assert len(model.impute(rows, n=3, steps=5)) == 15


def test_predictions_have_the_type_of_the_column(model):
    assert set(model.predict(ROWS.drop(columns="city"), "city")) <= {"Rome", "Oslo", "Lima", "(other)"}
    assert model.predict(ROWS, "flag").dtype == bool
    assert model.predict(ROWS, "day", n=4, steps=5).dtype.kind == "M"
    assert model.predict(ROWS, "size", n=4, steps=5).shape == (5,)
    found = model.predict(ROWS, "size", [1 / 3, 2 / 3], n=8, steps=5)
    drawn = np.sort(model.draws(ROWS, "size", n=8, steps=5))
    assert drawn.shape == (5, 8)
    np.testing.assert_allclose(found, drawn[:, [2, 5]], rtol=1e-6)  # the ranks p (n + 1) = 3 and 6


def test_probabilities_of_classes(model):
    found = model.class_probabilities(ROWS, "city")
    assert list(found.columns) == [*model.model_.standardize.table[1].levels, "(other)"]
    np.testing.assert_allclose(found.sum(axis=1), 1)
    assert list(model.class_probabilities(ROWS, "flag").columns) == ["False", "True"]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m: m.predict(ROWS, "cty"), "has no column 'cty'"),
        (lambda m: m.predict(ROWS, "city", [0.5]), "no quantiles"),
        (lambda m: m.class_probabilities(ROWS, "cty"), "has no column 'cty'"),
        (lambda m: m.class_probabilities(ROWS, "size"), "no list of levels"),
        (lambda m: m.log_prob(ROWS, given=["cty"]), "has no column 'cty'"),
        (lambda m: m.log_prob(ROWS, given="city", wanted="city"), "none of them may be given"),
        (lambda m: m.log_prob(ROWS, missing="drop"), "missing must be"),
        (lambda m: m.score_samples(ROWS.drop(columns="city")), "X has no column 'city', which the model needs"),
        (lambda m: m.score_samples(ROWS.to_numpy()[:, :2]), "X has 2 features, but TabularNDM is expecting 4"),
        (lambda m: m.score_samples(ROWS.assign(size="big")), "'size' holds text such as 'big'"),
        (lambda m: m.score_samples(ROWS.assign(size=ROWS["day"])), "'size' holds dates"),
        (lambda m: m.score_samples(ROWS.assign(day=1.5)), "'day' holds numbers, and held dates"),
        (lambda m: m.score_samples(ROWS.assign(size=np.inf)), "'size' of X holds infinite values"),
        (lambda m: m.score_samples(ROWS.assign(flag=None)), "'flag' has missing cells"),
    ],
)
def test_a_wrong_question_is_refused(model, call, words):
    with pytest.raises(ValueError, match=words):
        call(model)


def test_columns_are_found_by_name_in_any_order(model):
    expected = model.score_samples(ROWS, **FAST)
    other = ROWS[ROWS.columns[::-1]].assign(more=1)
    np.testing.assert_array_equal(model.score_samples(other, **FAST), expected)
    np.testing.assert_array_equal(model.score_samples(ROWS.to_numpy(), **FAST), expected)


@pytest.mark.slow
def test_an_unknown_category_is_other(model):
    many = {"method": "bound", "times": 64}
    assert model.score_samples(ROWS.assign(city="Quito"), **many).mean() < model.score_samples(ROWS, **many).mean()


# ---- scikit-learn


def test_parameters_and_clones(model):
    assert model.get_params()["max_steps"] == 30
    other = clone(model)
    assert other.get_params() == model.get_params()
    assert other.set_params(max_steps=7).max_steps == 7
    with pytest.raises(NotFittedError, match="call fit first"):
        other.score_samples(ROWS)


def test_a_fitted_model_is_pickled(model, tmp_path: Path):
    expected = model.score_samples(ROWS, **FAST)
    joblib.dump(model, tmp_path / "model.joblib")
    for other in (pickle.loads(pickle.dumps(model)), joblib.load(tmp_path / "model.joblib")):
        np.testing.assert_array_equal(other.score_samples(ROWS, **FAST), expected)
        assert other.columns_ == model.columns_


def test_a_fitted_model_is_saved(model, tmp_path: Path):
    expected = model.score_samples(ROWS, **FAST)
    other = TabularNDM.load(model.save(tmp_path / "model"))
    np.testing.assert_array_equal(other.score_samples(ROWS, **FAST), expected)
    assert list(other.sample(2, random_state=0, steps=5).columns) == list(model.columns_)
    with pytest.raises(ValueError, match="no validation rows"):
        _ = other.validation_scores_
    assert ndm.NDM.from_pretrained(tmp_path / "model").standardize.names == model.columns_


@pytest.mark.slow
def test_a_pipeline():
    x = np.random.RandomState(0).normal(5, 3, size=(40, 2))
    own = make_pipeline(StandardScaler(), TabularNDM(max_steps=2, overrides=SMALL["overrides"])).fit(x)
    assert own.score_samples(x[:3]).shape == (3,)


@pytest.mark.parametrize(
    ("arguments", "frame", "words"),
    [
        ({}, table(2), "n_samples = 2 rows, and training and validation need at least 3"),
        ({}, pandas.DataFrame(), "n_samples = 0"),
        ({}, pandas.DataFrame({"a": [1] * 40}), "no column to learn from; left out: a [(]constant, 1"),
        ({}, pandas.DataFrame(np.ones((9, 2)), columns=["a", "a"]), "Duplicate column names"),
        ({"given": ["cty"]}, table(), "did you mean 'city'"),
        ({"kinds": {"cty": "real"}}, table(), "did you mean 'city'"),
        ({"validation": 2}, table(), "validation is a share"),
    ],
)
def test_a_wrong_table_is_refused(arguments, frame, words):
    with pytest.raises(ValueError, match=words):
        TabularNDM(max_steps=1, **arguments).fit(frame)


@pytest.mark.slow
def test_the_checks_of_scikit_learn():
    check_estimator(TabularNDM(max_steps=2, overrides={"model.denoiser.net.hidden": 8}))
