"""The mixture that a model of a table is compared with."""

from __future__ import annotations

from ndm.data.base import Data
from ndm.data.choosing import part_of
from ndm.evaluation import baselines, table_mixtures
from ndm.evaluation.baselines import ROWS, GaussianMixture, gaussian_mixture, has_mixtures
from ndm.evaluation.table_mixtures import TableMixture, table_mixture
from ndm.method.encoding import TableEncoding
from ndm.model import NDM

__all__ = ["fit_mixture", "has_mixture"]


def has_mixture(model: NDM, data: Data) -> bool:
    """Whether a mixture is comparable: continuous vectors, or rows of a table, without given columns.

    It needs scikit-learn, two training examples and a validation example, and at most 256 columns, or 64 of several
    kinds.
    """
    if data.given or len(data.shape) != 1 or not has_mixtures():
        return False
    if model.decoder.discrete and not _of_several_kinds(model):
        return False
    if data.shape[0] > (table_mixtures.COLUMNS if _of_several_kinds(model) else baselines.COLUMNS):
        return False
    try:
        return len(data.examples("train")) > 1 and len(data.examples("validation")) > 0
    except ValueError:  # there is no such split
        return False


def fit_mixture(model: NDM, data: Data, seed: int) -> GaussianMixture | TableMixture:
    """The mixture with the highest log p of the validation split: of a table with the columns of the model."""
    examples = (data.examples(name) for name in ("train", "validation"))
    train, validation = (x[part_of(len(x), ROWS, seed)] for x in examples)
    if _of_several_kinds(model):
        assert isinstance(model.standardize, TableEncoding)
        return table_mixture(model.standardize, train, validation, seed)
    return gaussian_mixture(train, validation, seed)


def _of_several_kinds(model: NDM) -> bool:
    return isinstance(model.standardize, TableEncoding) and model.standardize.discrete
