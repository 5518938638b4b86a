"""The methods of the estimator that draw samples and predict columns."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ndm.inference.sampling import default_sampler
from ndm.method.conditionals import column_numbers
from ndm.model import NDM
from ndm.tabular.calibration import quantiles as quantiles_of
from ndm.tabular.densities import table_of
from ndm.tabular.input import cells_of_input, in_the_form_of, in_the_type_of, names_of_levels
from ndm.tabular.queries import class_probabilities, impute, sample_given

__all__ = ["ConditionalMethods"]


class ConditionalMethods:
    """Samples, imputation and predictions of :class:`ndm.tabular.TabularNDM`."""

    model_: NDM
    contamination: float
    _form: str

    @property
    @abstractmethod
    def columns_(self) -> tuple[str, ...]:
        """The names of the model's columns."""

    @abstractmethod
    def _fitted(self) -> NDM: ...

    @abstractmethod
    def _rows(self, X: Any, columns: Sequence[str] | None = None) -> np.ndarray: ...

    @abstractmethod
    def _others(self, names: Sequence[str]) -> list[str]: ...

    @abstractmethod
    def _frame(self, values: np.ndarray, names: Sequence[str]) -> Any: ...

    @staticmethod
    @abstractmethod
    def _seed(random_state: Any) -> int: ...

    @abstractmethod
    def percentile(self, X: Any) -> np.ndarray:
        """The conformal p-value of each row, (n,)."""

    def sample(
        self, n: int = 1, random_state: Any = None, given: Any = None, steps: int | None = None, **options: Any
    ) -> Any:
        """n rows of the distribution, or n for each row of ``given``.

        Args:
            n: the number of rows.
            random_state: the seed.
            given: a table of some columns, on which the others are conditional.
            steps: sampling steps; by default those of :func:`ndm.inference.sampling.default_sampler`.
            options: of :func:`ndm.sample`.

        Returns:
            What was fitted: a DataFrame, an Arrow table, or an array.
        """
        model, seed = self._fitted(), self._seed(random_state)
        if given is None:
            generator = torch.Generator().manual_seed(seed)
            sampler = default_sampler(model, **options, **({} if steps is None else {"steps": steps}))
            rows = model.sample(n, options=sampler, generator=generator, progress=False).double().numpy()
        else:
            names = [name for name in cells_of_input(given) if name in self.columns_]
            if not names:
                raise ValueError(f"given has none of the model's columns: {', '.join(self.columns_[:20])}.")
            rows = sample_given(model, self._rows(given, names), names, n=n, seed=seed, steps=steps, **options).numpy()
        return in_the_form_of(self._form, table_of(model).table, rows)

    def impute(self, X: Any, n: int = 1, random_state: Any = 0, **options: Any) -> Any:
        """The table with its missing cells filled, n times for each row: see :func:`ndm.tabular.impute`."""
        found = impute(self._fitted(), self._rows(X), n=n, seed=self._seed(random_state), **options)
        return in_the_form_of(self._form, table_of(self.model_).table, found.numpy())

    def predict(
        self,
        X: Any,
        column: str | None = None,
        quantiles: Sequence[float] | None = None,
        *,
        n: int = 200,
        random_state: Any = 0,
        steps: int | None = None,
    ) -> Any:
        """A column given all others; or, without a column, which rows are abnormal.

        Args:
            X: the table; the column itself need not be in it.
            column: its name. None marks the rows whose :meth:`percentile` is at most ``contamination`` with 1, all
                others with 0, as in PyOD.
            quantiles: which quantiles to return, each in (0, 1); by default the mean, or the most likely category.
            n: the number of conditional samples that quantiles and means are computed from.
            random_state: the seed of the samples.
            steps: sampling steps; by default those of :func:`ndm.inference.sampling.default_sampler`.

        Returns:
            (n,), or with quantiles (n, q).

        Raises:
            ValueError: the column is unknown, quantiles of a category are asked for, or the model has no conditionals.
        """
        names = self.columns_
        if column is None:
            return (self.percentile(X) <= self.contamination).astype(int)
        if column not in names:
            raise ValueError(f"The model has no column {column!r}: its columns are {', '.join(names[:20])}.")
        spec = table_of(self.model_).table[names.index(column)]
        if spec.kind == "categorical":
            if quantiles is not None:
                raise ValueError(
                    f"The column {column!r} has categories, which have no quantiles: see class_probabilities."
                )
            places = self._probabilities(X, column).argmax(1)
            if spec.storage == "text" or spec.other:
                return np.array(names_of_levels(spec), dtype=object)[places]
            return in_the_type_of(spec, np.array(spec.levels, float))[places]
        drawn = self._draws(X, column, n, self._seed(random_state), steps)
        found = drawn.mean(1) if quantiles is None else quantiles_of(drawn, quantiles)
        return in_the_type_of(spec, found)

    def class_probabilities(self, X: Any, column: str) -> Any:
        """The probability of each level of a column given all others, (n, K); see
        :func:`ndm.tabular.class_probabilities`."""
        encoding = table_of(self._fitted())
        (place,) = column_numbers(encoding, [column])
        return self._frame(self._probabilities(X, column), names_of_levels(encoding.table[place]))

    def draws(self, X: Any, column: str, n: int = 200, random_state: Any = 0, steps: int | None = None) -> np.ndarray:
        """n samples of a column given all others for each row, (m, n), as numbers."""
        return self._draws(X, column, n, self._seed(random_state), steps)

    def _draws(self, X: Any, column: str, n: int, seed: int, steps: int | None) -> np.ndarray:
        others = self._others([column])
        rows = self._rows(X, others)
        found = sample_given(self._fitted(), rows, others, [column], n=n, seed=seed, steps=steps, present=True)
        return found[:, self.columns_.index(column)].reshape(len(rows), n).numpy()

    def _probabilities(self, X: Any, column: str) -> np.ndarray:
        return class_probabilities(self._fitted(), self._rows(X, self._others([column])), column).numpy()
