"""Results of an evaluation: values, table, sentence to quote, and files."""

from __future__ import annotations

import json
import math
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ndm.storage.atomic import atomic_write
from ndm.storage.memory import TooLargeError, require
from ndm.storage.texts import require_regular

__all__ = [
    "MIXTURE",
    "Evaluation",
    "mean_and_error",
    "read_per_example",
    "read_places",
    "rounded",
    "row_name",
    "strict",
]

#: Quantity of the row with the Gaussian mixture baseline.
MIXTURE = "Gaussian mixture"

#: Maximum number of non-finite examples listed in a row; all values are in the .npz file.
NAMED = 20

#: Prefix of the indices of a row's examples in the .npz file, followed by the row's name.
_PLACES = "places: "


@dataclass
class Evaluation:
    """Results of an evaluation.

    Attributes:
        rows: one per value: ``quantity`` (``bound``, ``log-likelihood``, ``Gaussian mixture``, ``FID`` or ``KID``),
            ``steps`` (None for continuous time), ``variance`` (the reverse variance, None if not applicable), ``value``
            (None if no example is finite), ``stderr`` (None if undefined, as for one example), ``unit``,
            ``reconstruction`` and ``prior`` (terms of a bound, same unit), ``examples``, and ``kind`` (a description).
            If some examples have no finite value, they are excluded from the mean; ``not_finite`` is their number and
            ``not_finite_examples`` the indices of the first 20 in the split. If the ODE solver missed its tolerance for
            some examples, ``missed_tolerance`` is their number.
        about: the data's class and split, ``split_examples`` (size of the split), the number of parameters, the seed;
            and ``comparison`` with a Gaussian mixture, if available: its ``components``, the mean ``difference``
            mixture - model over the examples, in nats, with its ``stderr``, and a ``sentence``, empty unless the
            mixture is better by more than two standard errors.
        per_example: the values of each example, (N,), in the order of the rows; empty if a value is not an average over
            examples.
        places: indices of those examples in the split, int64 (N,), in the order of the rows.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    about: dict[str, Any] = field(default_factory=dict)
    per_example: list[Tensor] = field(default_factory=list)
    places: list[Tensor] = field(default_factory=list)

    def add(self, values: Tensor, places: Tensor, **row: Any) -> None:
        """Add a value that is an average over examples.

        Args:
            values: values of the examples, (N,).
            places: indices of the examples in the split, (N,).
            row: other entries of the row: see :attr:`rows`.
        """
        finite = values.isfinite()
        value, stderr = mean_and_error(values[finite]) if finite.any() else (None, None)
        found = {"value": value, "stderr": stderr, "examples": len(values)} | row
        if not finite.all():
            found |= {"not_finite": int((~finite).sum()), "not_finite_examples": places[~finite][:NAMED].tolist()}
        self.rows.append(strict(found))
        self.per_example.append(values)
        self.places.append(places)

    def to_dict(self) -> dict[str, Any]:
        """``about``, ``quote`` (:meth:`quote`) and ``rows``, in JSON types; non-finite values are None."""
        return strict({"about": self.about, "quote": self.quote(), "rows": self.rows})

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write :meth:`to_dict` as JSON, and the per-example values to a second file.

        The second file has the same name with the suffix .npz. For each row that is an average over examples it
        contains an array, (N,), named by :func:`row_name`, and the indices of the examples in the split, for
        :func:`read_places`, so that two models can be compared on the same examples. Both files are written atomically.

        Args:
            path: path of the JSON file.

        Raises:
            ValueError: the path ends in .npz.
            OSError: the files cannot be written.
        """
        path = Path(path)
        if path.suffix == ".npz":
            raise ValueError(
                f"{path} must end in .json; the values of the examples are written to a .npz file beside it."
            )
        values = {row_name(r): v.numpy() for r, v in zip(self.rows, self.per_example, strict=False) if len(v)}
        values |= {_PLACES + row_name(r): v.numpy() for r, v in zip(self.rows, self.places, strict=False) if len(v)}
        with atomic_write(path.with_suffix(".npz")) as file:
            np.savez_compressed(file, **values)  # type: ignore[arg-type]
        with atomic_write(path) as file:
            file.write((json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n").encode())
        return path

    def find(self, quantity: str, steps: int | None = None, variance: str | None = None) -> int | None:
        """Return the index of the row with this quantity, number of steps and reverse variance, or None."""
        for i, row in enumerate(self.rows):
            if (row["quantity"], row["steps"], row["variance"]) == (quantity, steps, variance):
                return i
        return None

    def text(self) -> str:
        """Return the table, the notes, and the sentence to quote."""
        return "\n".join(part for part in (self.table(), *self.notes(), self.quote()) if part)

    def table(self) -> str:
        """Return the values as a plain-text table."""
        lines = [f"{'quantity':<16} {'steps':>10}  {'reverse variance':<17} {'value':>8}   {'stderr':>6}  unit"]
        for row in self.rows:
            steps = row["steps"] or ("continuous" if row["quantity"] == "bound" else "-")
            average = row["quantity"] not in ("FID", "KID")
            error = f"± {_cell(row['stderr']):>6}" if average else " " * 8
            lines.append(
                f"{row['quantity']:<16} {steps!s:>10}  {row['variance'] or '-':<17} {_cell(row['value']):>8} "
                f"{error}  {row['unit']}"
            )
        return "\n".join(lines)

    def notes(self) -> list[str]:
        """Return notes: examples without a finite value, missing errors, and whether a Gaussian mixture is better."""
        lines = [_not_finite(row, self.about.get("split", "")) for row in self.rows if row.get("not_finite")]
        lines += [
            f"{row_name(row)}: {row['missed_tolerance']:,} of {row['examples']:,} examples are not solved to the "
            f"tolerance; the mean solver_error is {row['solver_error']:.2g} {row['unit']}"
            for row in self.rows
            if row.get("missed_tolerance")
        ]
        if any(_finite_examples(row) == 1 and row["quantity"] not in ("FID", "KID") for row in self.rows):
            lines.append("A single example has no standard error.")
        return lines + [s for s in [self.about.get("comparison", {}).get("sentence")] if s]

    def quote(self) -> str | None:
        """Return a sentence with the main value, its error and unit; None if no value is finite.

        The value is the bound in continuous time, otherwise the lowest bound with the most steps. In nats the
        log-likelihood of the ODE is included.
        """
        known = [row for row in self.rows if row.get("value") is not None]
        bounds = [row for row in known if row["quantity"] == "bound"]
        most = max((row["steps"] or math.inf for row in bounds), default=0)
        bound = min((r for r in bounds if (r["steps"] or math.inf) == most), key=lambda r: r["value"], default=None)
        likelihood = next((row for row in known if row["quantity"] == "log-likelihood"), None)
        fid = next((row for row in known if row["quantity"] == "FID"), None)
        split, said = self.about.get("split", "data"), []
        if bound is not None:
            time = "in continuous time" if bound["steps"] is None else f"for {bound['steps']} steps"
            variance = f", {bound['variance']} reverse variance" if bound["variance"] else ""
            what = "bound" if bound["unit"] == "bits/dim" else "bound on -log p"
            said.append(f"{_with_unit(bound)}, {what} {time}{variance}, {self._examples(bound)}; lower is better")
        if likelihood is not None and (bound is None or likelihood["unit"] != "bits/dim"):
            better = "lower" if likelihood["unit"] == "bits/dim" else "higher"
            lower = "lower bound on the " if likelihood["kind"].startswith("lower bound") else ""
            said.append(
                f"{_with_unit(likelihood)}, {lower}log-likelihood under the ODE, {self._examples(likelihood)}; "
                f"{better} is better"
            )
        if not said and fid is not None:
            said.append(f"FID {fid['value']:.4g}, {fid['kind']}; lower is better")
        return f"{split}: {'. '.join(said)}" if said else None

    def _examples(self, row: Mapping[str, Any]) -> str:
        """Format the number of examples of a row."""
        n, whole = row["examples"], self.about.get("split_examples")
        part = (
            f"{n:,} random example{'s' * (n != 1)} of {whole:,}"
            if whole and whole > n
            else f"{n:,} example{'s' * (n != 1)}"
        )
        return part + (f", of which {row['not_finite']:,} not finite and excluded" if row.get("not_finite") else "")


def _finite_examples(row: Mapping[str, Any]) -> int:
    return int(row.get("examples") or 0) - int(row.get("not_finite") or 0)


def _not_finite(row: Mapping[str, Any], split: str) -> str:
    """Describe the examples without a finite value."""
    n, places = row["not_finite"], row["not_finite_examples"]
    if row["quantity"] == MIXTURE:
        return f"{MIXTURE}: of the examples for which the model's figure is finite, {row['examples'] - n:,}"
    names = ", ".join(map(str, places)) + (", ..." if n > len(places) else "")
    return (
        f"{row_name(row)}: not finite (inf or nan) for {n:,} of {row['examples']:,} examples, which are excluded: "
        f"number{'s' * (n > 1)} {names} of the {split + ' ' if split else ''}split, from 0"
    )


def _cell(number: float | None) -> str:
    """Format a number for the table."""
    if number is None:
        return "-"
    return f"{number:.4f}" if abs(number) < 1e6 else f"{number:.4g}"


def _with_unit(row: Mapping[str, Any]) -> str:
    return f"{rounded(row['value'], row['stderr'])} {row['unit']}"


def strict(value: Any) -> Any:
    """Replace non-finite values, which JSON does not support, by None."""
    if isinstance(value, Mapping):
        return {key: strict(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [strict(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def rounded(value: float, error: float | None, signed: bool = False) -> str:
    """Format a number and its standard error to the error's second digit, with one to four decimals.

    Example:
        >>> rounded(2.08741, 0.0874), rounded(-0.1, None), rounded(0.5, 0.0000012, signed=True)
        ('2.087 ± 0.087', '-0.1', '+0.5000 ± < 0.0001')
    """
    sign = "+" if signed else ""
    if error is None or error != error:
        return f"{value:{sign}.4g}"
    digits = 1
    while digits < 4 and error < 10 ** (1 - digits) * 0.995:
        digits += 1
    shown = f"{error:.{digits}f}" if error >= 0.00005 else "< 0.0001"
    return f"{value:{sign}.{digits}f} ± {shown}"


def row_name(row: Mapping[str, Any]) -> str:
    """Return the name of a row: its quantity, number of steps and reverse variance.

    Example:
        >>> row_name({"quantity": "bound", "steps": 10, "variance": "posterior"})
        'bound, T = 10, posterior'
        >>> row_name({"quantity": "bound", "steps": None, "variance": None})
        'bound, continuous time'
    """
    if row["quantity"] != "bound":
        return str(row["quantity"])
    steps = f"T = {row['steps']}" if row.get("steps") else "continuous time"
    return ", ".join(["bound", steps, *([str(row["variance"])] if row.get("variance") else [])])


def read_per_example(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read the per-example values written by :meth:`Evaluation.save`, by :func:`row_name`; each is (N,).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged.
    """
    found = {name: values for name, values in _arrays(path).items() if not name.startswith(_PLACES)}
    if not all(values.ndim == 1 and values.is_floating_point() for values in found.values()):
        raise ValueError(f"{path} is damaged (a result has no value for each example); evaluate the run again.")
    return found


def read_places(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read the indices in the split of the examples of :func:`read_per_example`, int64 (N,), by :func:`row_name`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged.
    """
    every = _arrays(path)
    found = {name.removeprefix(_PLACES): places for name, places in every.items() if name.startswith(_PLACES)}
    whole = (name in every and p.dtype == torch.long and p.shape == every[name].shape for name, p in found.items())
    if not all(whole):
        raise ValueError(f"{path} is damaged (a result does not list its examples); evaluate the run again.")
    return found


def _arrays(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    try:
        require_regular(path)
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        require(2 * size, f"Unpacking {path}", "remove it, or evaluate the run again")
        with np.load(path, allow_pickle=False) as file:
            return {name: torch.from_numpy(file[name]) for name in file.files}
    except (FileNotFoundError, TooLargeError):
        raise
    except (OSError, ValueError, TypeError, AttributeError, EOFError, MemoryError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is damaged ({error}); evaluate the run again.") from None


def mean_and_error(values: Tensor) -> tuple[float, float]:
    """Return the mean of values, (N,), and its standard error; NaN for a single value."""
    values = values.double()
    error = values.std().item() / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return values.mean().item(), error
