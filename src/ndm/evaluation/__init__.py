"""Evaluation of a model on a data set: bounds, likelihoods and sample quality, with standard errors."""

from typing import TYPE_CHECKING

from ndm._internal.lazy import lazy

if TYPE_CHECKING:
    from ndm.evaluation.auditing.auditor import audit
    from ndm.evaluation.auditing.options import AuditOptions
    from ndm.evaluation.auditing.results import Audit
    from ndm.evaluation.calibration import own_variance
    from ndm.evaluation.evaluator import evaluate
    from ndm.evaluation.options import EvaluationOptions
    from ndm.evaluation.per_example import bound_per_example, likelihood_per_example
    from ndm.evaluation.results import Evaluation, mean_and_error, read_per_example, read_places, row_name

_HOMES = {
    "Audit": "auditing.results",
    "AuditOptions": "auditing.options",
    "Evaluation": "results",
    "EvaluationOptions": "options",
    "audit": "auditing.auditor",
    "bound_per_example": "per_example",
    "evaluate": "evaluator",
    "likelihood_per_example": "per_example",
    "mean_and_error": "results",
    "own_variance": "calibration",
    "read_per_example": "results",
    "read_places": "results",
    "row_name": "results",
}

__all__ = [
    "Audit",
    "AuditOptions",
    "Evaluation",
    "EvaluationOptions",
    "audit",
    "bound_per_example",
    "evaluate",
    "likelihood_per_example",
    "mean_and_error",
    "own_variance",
    "read_per_example",
    "read_places",
    "row_name",
]

__getattr__, __dir__ = lazy(__name__, _HOMES)
