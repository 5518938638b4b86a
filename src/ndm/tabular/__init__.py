"""Densities, conditionals, imputation and samples of tables: functions of a model, and a scikit-learn estimator."""

from typing import TYPE_CHECKING

from ndm._internal.lazy import lazy

if TYPE_CHECKING:
    from ndm.tabular.densities import log_prob
    from ndm.tabular.estimator import TabularNDM
    from ndm.tabular.queries import class_probabilities, explain, impute, percentiles, sample_given

_HOMES = {
    "TabularNDM": "estimator",
    "class_probabilities": "queries",
    "explain": "queries",
    "impute": "queries",
    "log_prob": "densities",
    "percentiles": "queries",
    "sample_given": "queries",
}

__all__ = ["TabularNDM", "class_probabilities", "explain", "impute", "log_prob", "percentiles", "sample_given"]

__getattr__, __dir__ = lazy(__name__, _HOMES)
