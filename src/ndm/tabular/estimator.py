"""A scikit-learn estimator of the density of a table."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ndm.data.kinds import Cells
from ndm.data.mixed import rows_of_numbers
from ndm.method.columns import Column
from ndm.model import NDM
from ndm.tabular.conditional_methods import ConditionalMethods
from ndm.tabular.densities import log_prob, table_of
from ndm.tabular.input import (
    FrameData,
    cells_of_input,
    form_of,
    is_frame,
)
from ndm.tabular.queries import explain, percentiles

try:
    from sklearn.base import BaseEstimator
    from sklearn.exceptions import NotFittedError
    from sklearn.utils.validation import check_array, check_random_state
except ModuleNotFoundError as error:
    raise ImportError("ndm.tabular.TabularNDM needs scikit-learn: pip install scikit-learn.") from error

__all__ = ["TabularNDM"]

#: Keywords of TabularNDM that are fields of the configuration ``table``, and the fields.
FIELDS = {
    "transformation": "model.transform",
    "conditionals": "training.conditionals",
    "steps": "training.steps",
    "learning_rate": "training.learning_rate",
    "transform_rate": "training.transform_rate",
    "endpoint_rate": "training.endpoint_rate",
    "weight_decay": "training.weight_decay",
    "warmup": "training.warmup",
    "rate": "training.rate",
    "beta2": "training.beta2",
    "ema": "training.ema",
    "batch_size": "training.batch_size",
    "curvature": "training.curvature",
    "base": "training.base",
    "keep": "training.keep",
    "max_steps": "trainer.max_steps",
    "max_time": "trainer.max_time",
    "patience": "trainer.patience",
    "accelerator": "trainer.accelerator",
    "precision": "trainer.precision",
    "compile": "trainer.compile",
    "accumulate": "trainer.accumulate",
    "gradient_clip_val": "trainer.gradient_clip_val",
    "val_check_interval": "trainer.val_check_interval",
    "val_examples": "trainer.val_examples",
}


class TabularNDM(ConditionalMethods, BaseEstimator):
    """The density of a table with columns of any kind, by a Neural Diffusion Model (arXiv 2310.08337).

    It follows scikit-learn's conventions: ``fit``, ``score_samples``, ``sample``, ``get_params``, ``clone``. Tables may
    be pandas or Polars DataFrames, Arrow tables, or (n, d) arrays; missing cells are None or NaN.

    The keywords from ``transformation`` on are fields of the configuration ``table`` (``ndm train table --help``); None
    stands for the configuration's own value. Any other field can be set by ``overrides``.

    Args:
        kinds: the kinds of some columns, ``real``, ``whole`` or ``categorical``, which override those found.
        given: names of the columns that are given: the density of the others is conditional on these.
        validation: the share of the rows on which the training is validated and stopped.
        random_state: the seed of the weights, the training and the division of the rows.
        configuration: a shipped configuration, or the path of one.
        overrides: further fields and their values, as ``{"model.denoiser.net.hidden": 256}``.
        verbose: whether to log the training.
        contamination: the share of the rows that ``predict`` without a column takes for abnormal.
        transformation: F, such as ``Identity``.
        conditionals: ``any`` for a network of every conditional, which ``impute``, ``predict`` and conditional draws
            need; ``none`` for the density that is fitted.
        steps: see :class:`ndm.training.TrainingOptions`, as for the keywords up to ``keep``.
        learning_rate: see there.
        transform_rate: see there.
        endpoint_rate: see there.
        weight_decay: see there.
        warmup: see there.
        rate: see there.
        beta2: see there.
        ema: see there.
        batch_size: see there.
        curvature: see there.
        base: see there.
        keep: see there.
        max_steps: see :class:`ndm.training.TrainerOptions`, as for the following keywords.
        max_time: see there; in seconds.
        patience: see there.
        accelerator: see there.
        precision: see there.
        compile: see there.
        accumulate: see there.
        gradient_clip_val: see there.
        val_check_interval: see there.
        val_examples: see there.

    Attributes:
        model_: the fitted :class:`ndm.NDM`.
        lines_: sentences about the columns: their kinds, and which are left out.
        log_: what the training logged.
        n_features_in_: the number of columns of the table.
        feature_names_in_: their names, for tables with names.

    Example:
        >>> import numpy as np
        >>> from ndm.tabular import TabularNDM
        >>> x = np.random.RandomState(0).normal(size=(200, 2))
        >>> model = TabularNDM(max_steps=20, random_state=0).fit(x)
        >>> model.score_samples(x[:3]).shape, model.sample(5, random_state=0).shape
        ((3,), (5, 2))
    """

    def __init__(
        self,
        *,
        kinds: Mapping[str, str] | None = None,
        given: Sequence[str] | None = None,
        validation: float = 0.1,
        random_state: Any = 0,
        configuration: str = "table",
        overrides: Mapping[str, Any] | None = None,
        verbose: bool = False,
        contamination: float = 0.1,
        transformation: str | None = None,
        conditionals: str | None = None,
        steps: int | None = None,
        learning_rate: float | None = None,
        transform_rate: float | None = None,
        endpoint_rate: float | None = None,
        weight_decay: float | None = None,
        warmup: int | None = None,
        rate: str | None = None,
        beta2: float | None = None,
        ema: float | None = None,
        batch_size: int | str | None = None,
        curvature: float | None = None,
        base: str | None = None,
        keep: str | None = None,
        max_steps: int | str | None = None,
        max_time: float | None = None,
        patience: int | None = None,
        accelerator: str | None = None,
        precision: str | None = None,
        compile: bool | None = None,  # noqa: A002 - the field's name
        accumulate: int | None = None,
        gradient_clip_val: float | None = None,
        val_check_interval: int | str | None = None,
        val_examples: int | str | None = None,
    ) -> None:
        own = dict(locals())
        for name in set(own) - {"self", "__class__"}:
            setattr(self, name, own[name])

    # ---- fitting

    def fit(self, X: Any, y: Any = None) -> TabularNDM:
        """Train on a table.

        Args:
            X: a DataFrame, an Arrow table, or an array, (n, d).
            y: ignored.

        Raises:
            ValueError: the table has no column of use, or too few rows; or an argument is out of its range.
        """
        from ndm.configs.configuration import Configuration
        from ndm.training import fit

        cells = self._cells(X, reset=True)
        seed = self._seed(self.random_state)
        data = FrameData(cells, self.validation, seed, self.kinds, self.given or ())
        overrides = ["--data.path", "a table in memory", "--seed", str(seed)]
        for name, field in FIELDS.items():
            if (value := getattr(self, name)) is not None:
                overrides += [f"--{field}", str(value)]
        for field, value in (self.overrides or {}).items():
            overrides += [f"--{field}", str(value)]
        built = Configuration.read(self.configuration, overrides).build(data)
        folder = Path(tempfile.mkdtemp(prefix="ndm-tabular-"))
        try:
            self.model_ = fit(
                built.model, data, folder / "run", built.training, built.trainer, seed=seed, progress=False,
                notes=built.notes, verbose=self.verbose,
            )  # fmt: skip
            log = folder / "run" / "log.txt"
            self.log_ = log.read_text(encoding="utf-8") if log.is_file() else ""
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        self.lines_ = data.lines
        self._form = form_of(X)
        self._validation = data.split("validation").numpy()
        self._cache: dict[str, np.ndarray] = {}
        return self

    @staticmethod
    def _seed(random_state: Any) -> int:
        if isinstance(random_state, (int, np.integer)) and not isinstance(random_state, bool):
            return int(random_state)
        return int(check_random_state(random_state).randint(2**31 - 1))

    def _cells(self, X: Any, reset: bool = False) -> dict[str, Cells | str]:
        """The cells of the columns; with scikit-learn's checks of the number and the names of the features."""
        if not is_frame(X):
            X = check_array(X, dtype=None, ensure_all_finite="allow-nan", ensure_min_samples=1, estimator=self)
        cells = cells_of_input(X, () if reset else self._texts())
        names = np.array(list(cells), dtype=object) if is_frame(X) else None
        if reset:
            self.n_features_in_ = len(cells)
            self.__dict__.pop("feature_names_in_", None)
            if names is not None:
                self.feature_names_in_ = names
        elif names is None:
            if len(cells) != self.n_features_in_:
                raise ValueError(
                    f"X has {len(cells)} features, but {type(self).__name__} is expecting {self.n_features_in_} "
                    "features as input"
                )
            if hasattr(self, "feature_names_in_"):  # an array in the order of the table
                cells = dict(zip(map(str, self.feature_names_in_), cells.values(), strict=True))
        return cells

    def _texts(self) -> frozenset[str]:
        return table_of(self._fitted()).texts

    @property
    def columns_(self) -> tuple[str, ...]:
        """The names of the model's columns, (C,), without those left out."""
        return table_of(self._fitted()).names

    def _fitted(self) -> NDM:
        if not hasattr(self, "model_"):
            raise NotFittedError(f"This {type(self).__name__} is not fitted yet: call fit first.")
        return self.model_

    def _rows(self, X: Any, columns: Sequence[str] | None = None) -> np.ndarray:
        """Rows of numbers, (n, C); NaN in columns other than ``columns``, which need not be in X."""
        encoding = table_of(self._fitted())
        cells = self._cells(X) if columns is None or not is_frame(X) else cells_of_input(X, encoding.texts)
        wanted: Sequence[Column] = [c for c in encoding.table if columns is None or c.name in columns]
        found = rows_of_numbers(wanted, cells, "X")
        rows = np.full((len(found), len(encoding.table)), np.nan)
        rows[:, [encoding.names.index(column.name) for column in wanted]] = found
        return rows

    # ---- densities

    def score_samples(self, X: Any, **options: Any) -> np.ndarray:
        """log p of each row, (n,), in nats: a log-density in the columns' own units; for a table with categories, whole
        numbers or missing cells a lower bound on the log of probability times density (:func:`ndm.tabular.log_prob`).

        Args:
            X: the table.
            options: of :func:`ndm.tabular.log_prob`, such as ``method="bound"``.

        Raises:
            NotFittedError: it is not fitted.
            ValueError: a column is missing or of another type than in training.
        """
        return log_prob(self._fitted(), self._rows(X), **options).values.numpy()

    def score(self, X: Any, y: Any = None) -> float:
        """The mean of :meth:`score_samples`."""
        return float(self.score_samples(X).mean())

    def log_prob(
        self, X: Any, given: Sequence[str] | None = None, wanted: Sequence[str] | None = None, **options: Any
    ) -> np.ndarray:
        """log p(wanted | given) of each row, (n,), in nats; see :func:`ndm.tabular.log_prob`."""
        given, wanted = ([names] if isinstance(names, str) else names for names in (given, wanted))
        known = None if given is None and wanted is None else [*(given or []), *(wanted or self._others(given or ()))]
        return log_prob(self._fitted(), self._rows(X, known), wanted, given, **options).values.numpy()

    def decision_function(self, X: Any) -> np.ndarray:
        """-log p of each row, (n,): higher is more abnormal, as in PyOD (and not as in scikit-learn)."""
        return -self.score_samples(X)

    def percentile(self, X: Any) -> np.ndarray:
        """The conformal p-value of each row among the validation rows, (n,): low for an abnormal row.

        Of rows from the distribution of the table at most a share p has a value of at most p.
        """
        return percentiles(self.score_samples(X), self.validation_scores_)

    @property
    def validation_scores_(self) -> np.ndarray:
        """``score_samples`` of the validation rows, computed once."""
        model = self._fitted()
        if "validation" not in self._cache:
            if len(self._validation) == 0:
                raise ValueError("A model that was loaded has no validation rows, by which to judge others.")
            self._cache["validation"] = log_prob(model, self._validation).values.numpy()
        return self._cache["validation"]

    def explain(self, X: Any, **options: Any) -> Any:
        """How likely each cell is, (n, C), in nats: see :func:`ndm.tabular.explain`. A DataFrame for a table."""
        found, _ = explain(self._fitted(), self._rows(X), **options)
        return self._frame(found.numpy(), self.columns_)

    def _others(self, names: Sequence[str]) -> list[str]:
        return [name for name in self.columns_ if name not in names]

    def _frame(self, values: np.ndarray, names: Sequence[str]) -> Any:
        if self._form == "array":
            return values
        import pandas

        return pandas.DataFrame(values, columns=list(names))

    # ---- files

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the model to a folder, which every ``ndm`` command and :meth:`ndm.NDM.from_pretrained` read."""
        return self._fitted().save_pretrained(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> TabularNDM:
        """Read a model of a table that :meth:`save` or ``ndm train`` has written (RUN/model).

        Raises:
            FileNotFoundError: there is no model.
            ValueError: the model is not of a table.
        """
        own = cls()
        own.model_ = NDM.from_pretrained(path)
        names = table_of(own.model_).names
        own.n_features_in_ = len(names)
        own.feature_names_in_ = np.array(names, dtype=object)
        own.lines_, own.log_, own._form = [], "", "pandas"
        own._validation, own._cache = np.zeros((0, len(names))), {}
        return own

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.string = True
        tags.input_tags.categorical = True
        tags.non_deterministic = False
        tags.target_tags.required = False
        return tags
