"""Columns of a table: matching of names, detection of row counters, and checks for columns without a useful density."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ndm.storage.texts import parse_yaml

__all__ = [
    "as_names",
    "check_column",
    "counts_rows",
    "dependent_columns",
    "far_values",
    "few_values",
    "is_counter",
    "kinds_line",
    "some",
    "twice_in",
]

#: The largest rounding error in single precision, relative to a column's standard deviation.
_ROUNDING = 1e-3

_COMPARED, _DEPENDENT = 500, 1e-9  # the largest number of columns, and the smallest eigenvalue of their correlations
_FEW, _OFTEN = 20, 10  # this many values, each this often on average, count as discrete
_LOOKED_AT = 10_000

#: The smallest range of nine tenths of the values, in units of that of a normal distribution with the column's standard
#: deviation; and the number of standard deviations from which a value is far.
_SPREAD, _FAR = 0.2, 40.0
_ALONE = 10.0  # times the range of nine tenths of the other values: the distance from which a value is an outlier
_NORMAL = 3.2897  # standard deviations between the 5% and the 95% quantile of a normal distribution

#: The name pandas gives to a column without a name, such as an index written to a file and read back.
_UNNAMED = re.compile(r"Unnamed: \d+([._]\w+)*")

_NAMED = 12  # the largest number of columns named in a line
_LONG = 200  # characters of a name: YAML reads no longer one as a number or a date


# ---- names of columns


def as_names(named: Sequence[Any], names: Sequence[str], path: str) -> tuple[str, ...]:
    """The columns' names as texts, if YAML has converted them (NO to False, 400 to a number).

    Args:
        named: the given names, as texts or as converted by YAML.
        names: the names in the table.
        path: the table, for messages.

    Raises:
        ValueError: a given value matches none of the names, or several.

    Example:
        >>> as_names([False, 400, "O3"], ["NO", "400", "O3"], "air.csv")
        ('NO', '400', 'O3')
    """
    return tuple(given if isinstance(given, str) else _meant(given, names, path) for given in named)


def _meant(given: Any, names: Sequence[str], path: str) -> str:
    meant = [name for name in names if _stands_for(given, name)]
    if len(meant) == 1:
        return meant[0]
    quoted = meant[0] if meant else str(given)
    which = f"may be any of {some(meant)}" if meant else f"is none of {some(names)}"
    raise ValueError(
        f"columns contains {given!r}, which YAML has read as a {type(given).__name__}; it {which} of {path}: write "
        f"names in quotes, as in --data.columns '[\"{quoted}\"]'."
    )


def _stands_for(given: Any, name: str) -> bool:
    """Whether YAML may have converted the name to this value."""
    if given == _read_as_yaml(name) and type(given) is type(_read_as_yaml(name)):
        return True
    if isinstance(given, float):  # YAML dialects differ, for example for 1e3
        try:
            return float(name) == given
        except ValueError:
            return False
    return str(given) == name


def _read_as_yaml(name: str) -> Any:
    if len(name) > _LONG:
        return name
    try:
        return parse_yaml(name)
    except (ValueError, ModuleNotFoundError):
        return name


# ---- counters


def is_counter(name: str) -> bool:
    """Whether the name is that of a pandas index written to a file and read back: "Unnamed: 0"."""
    return _UNNAMED.fullmatch(name) is not None


def counts_rows(column: np.ndarray, in_order: bool = False) -> bool:
    """Whether a column, (n,), contains n consecutive integers, each once.

    Args:
        column: the values.
        in_order: require that they increase by one from row to row.
    """
    if len(column) == 0 or not np.isfinite(column).all():
        return False
    return bool((np.diff(column if in_order else np.sort(column)) == 1).all() and column[0] == np.floor(column[0]))


# ---- columns without a useful density


def check_column(name: str, column: np.ndarray, path: str) -> None:
    """Raise an error for a column without a learnable density.

    Args:
        name: the column's name.
        column: its values in the training split, float64 (n,).
        path: the table, for messages.

    Raises:
        ValueError: the column is constant, or loses too much in single precision.
    """
    if column.min() == column.max():
        raise ValueError(
            f"The column {name!r} of {path} is constant in the training split ({column[0]:g}), so it has no density: "
            "select the other columns with --data.columns (columns=)."
        )
    with np.errstate(over="ignore"):
        lost = np.abs(column - column.astype(np.float32)).max()
    spread = column.std()
    if not lost <= _ROUNDING * spread:
        raise ValueError(
            f"The column {name!r} of {path} has values near {column.mean():.3g} with a spread of {spread:.3g}, and "
            f"float32 would round them by up to {lost:.2g}: subtract an offset, or use another unit."
        )


def few_values(columns: Mapping[str, np.ndarray]) -> list[str]:
    """A sentence about the columns with few distinct values, if any.

    Args:
        columns: the columns' values in the training split by name, each (n,).
    """
    few = {name: np.unique(x[:_LOOKED_AT]).size for name, x in columns.items()}
    few = {name: n for name, n in few.items() if n <= _FEW and n * _OFTEN <= len(columns[name][:_LOOKED_AT])}
    if not few:
        return []
    if len(few) == 1:
        ((name, n),) = few.items()
        which, out = f"the column {name!r} has only {n} distinct values", "it"
    else:
        which = f"the columns {', '.join(f'{name!r} ({n} values)' for name, n in few.items())} have few distinct values"
        out = "them"
    advice = (
        f"leave {out} out with --data.columns (columns=), or give --data.levels (levels=) if all columns are integers"
    )
    return [f"{which}, so the likelihood is unbounded: {advice}"]


def dependent_columns(columns: Mapping[str, np.ndarray]) -> list[str]:
    """A sentence about linearly dependent columns, if any.

    Args:
        columns: the columns' values in the training split by name, each (n,).
    """
    d, n = len(columns), len(next(iter(columns.values())))
    if not 2 <= d <= _COMPARED or n <= d:  # with few rows all columns are dependent
        return []
    correlation = np.corrcoef(np.stack(list(columns.values())))
    values, vectors = np.linalg.eigh(correlation)
    if values[0] > _DEPENDENT:
        return []
    weights = np.abs(vectors[:, 0])
    names = [repr(name) for name, weight in zip(columns, weights, strict=True) if weight > weights.max() / 100]
    which = f"one of the columns {some(names)} is a linear function of the others"
    return [f"{which}, so the likelihood is unbounded: leave one out with --data.columns (columns=)"]


def far_values(name: str, column: np.ndarray) -> Iterator[str]:
    """A sentence if outliers are so far away that the other values have little spread after standardisation.

    Models standardise by mean and standard deviation, which a single value of -9999 can dominate. Quantiles are robust
    and measure the spread of the other values.

    Args:
        name: the column's name.
        column: its values in all splits, float64 (n,); outliers in the validation split also affect training.
    """
    mean, deviation = column.mean(), column.std()
    if deviation == 0:
        return
    for extreme in (column.min(), column.max()):
        others = column[column != extreme]
        if 2 * len(others) < len(column):
            continue
        low, high = np.quantile(others, [0.05, 0.95])
        alone = np.abs(others - extreme).min() > _ALONE * (high - low) > 0
        even = high - low >= _SPREAD * _NORMAL * others.std()  # else it is part of a long tail
        if alone and even:
            yield (
                f"the column {name!r} holds {extreme:g} in {len(column) - len(others):,} of {len(column):,} rows, far "
                f"from all other values, 90% of which lie in {low:.4g} ... {high:.4g} ({(high - low) / deviation:.2g} "
                "standard deviations): correct these cells, or remove their rows"
            )
            return
    low, high = np.quantile(column, [0.05, 0.95])
    z = (column - mean) / deviation
    farthest = int(np.abs(z).argmax())
    if low == high or ((high - low) / deviation >= _SPREAD * _NORMAL and abs(z[farthest]) < _FAR):
        return
    advice = "take the logarithm of the column" if column.min() > 0 else "transform the column"
    yield (
        f"the column {name!r} has a long tail: the {'largest' if z[farthest] > 0 else 'smallest'} value, "
        f"{column[farthest]:g}, is {abs(z[farthest]):.0f} standard deviations from the mean, and 90% of the values lie "
        f"within {(high - low) / deviation:.2g} (3.3 for a normal distribution): {advice}, correct these values, or "
        "leave the column out with --data.columns (columns=)"
    )


# ---- contents of columns


def kinds_line(columns: Sequence[str], rows: np.ndarray) -> str:
    """A line about the columns, and which of them contain only integers; rows (n, d)."""
    is_whole = [bool((column == np.floor(column)).all()) for column in rows.T]
    whole = [name for name, yes in zip(columns, is_whole, strict=True) if yes]
    real = [name for name, yes in zip(columns, is_whole, strict=True) if not yes]
    kinds = [f"{len(k):,} {what} ({some(k)})" for k, what in ((real, "real"), (whole, "of whole numbers")) if k]
    return f"columns: {', '.join(kinds)}"


def some(names: Sequence[str]) -> str:
    """The first names of a list, as text."""
    return ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")


def twice_in(names: Sequence[str]) -> str | None:
    """The first duplicate name."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None
