"""Writing samples to pictures, tables or arrays, and selection of their classes."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from ndm.method.encoding import TableEncoding
from ndm.model import NDM
from ndm.samples.sinks import SINKS, Content, PictureSink, Sink, Spill
from ndm.storage.atomic import atomic_path, refuse_if_being_written

__all__ = [
    "SampleFile",
    "class_turns",
    "classes_in_turn",
    "formula_warning",
    "not_finite",
    "sample_file",
    "save_samples",
    "table_of",
]

#: Start of a formula in spreadsheet programs, after a cell separator (not only commas):
#: https://owasp.org/www-community/attacks/CSV_Injection
_FORMULA = re.compile(r"""(^|[,;\t\r\n"'])\s*[=+\-@\uff1d\uff0b\uff0d\uff20]|^[\t\r\n]""")


def formula_warning(out: Path, columns: Sequence[str] | None) -> str | None:
    """Return a warning about CSV column names that spreadsheet programs may run as formulas; empty if there are none.

    The names are written unchanged. The usual remedy, a leading apostrophe, is part of the name for all other programs,
    so the columns would differ from those of the table. Quotes do not help.

    Args:
        out: the file; only CSV files are checked.
        columns: column names of a table.

    Example:
        >>> formula_warning(Path("x.csv"), ["a", "-1", "=1+1", "@b", "c;=d"])
        "x.csv has column names that a spreadsheet program may run as formulas: '=1+1', '@b', 'c;=d'; open it in \
another program, or rename them."
    """
    names = [name for name in columns or () if _FORMULA.search(name) and not _is_number(name)]
    if out.suffix.lower() != ".csv" or not names:
        return None
    shown = ", ".join(repr(name if len(name) <= 40 else name[:40] + "...") for name in names[:5])
    return (
        f"{out} has column names that a spreadsheet program may run as formulas: "
        f"{shown}{', ...' if len(names) > 5 else ''}; open it in another program, or rename them."
    )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def table_of(model: NDM) -> TableEncoding | None:
    """Return the columns of a model of a table of several kinds; None for any other model."""
    return model.standardize if isinstance(model.standardize, TableEncoding) else None


def not_finite(x: Tensor, encoding: TableEncoding | None = None) -> int:
    """Count the samples, (B, \\*shape), with NaN or infinite values; NaN may be a missing cell of a table."""
    wrong = ~x.isfinite()
    if encoding is not None:
        holes = torch.tensor([column.missing for column in encoding.table])
        wrong &= ~(x.isnan() & holes)
    return int(wrong.flatten(1).any(1).sum())


def class_turns(
    model: NDM, label: int | None = None, counts: Sequence[int] | None = None
) -> Callable[[slice], Tensor] | None:
    """Return a function from a slice to the classes of its samples, int64 (n,); None for a model without classes.

    Args:
        model: the model.
        label: the class of all samples; None to cycle through the classes with training examples.
        counts: number of training examples per class; None if unknown.

    Raises:
        ValueError: the class does not exist, or has no training examples.
    """
    classes = model.num_classes
    if not classes:
        if label is not None:
            raise ValueError(
                f"--label {label} needs a class-conditional model; this model was trained without classes."
            )
        return None
    known = [k for k in range(classes) if counts is None or (k < len(counts) and counts[k] > 0)] or list(range(classes))
    if label is not None and not 0 <= label < classes:
        raise ValueError(f"--label must be one of the model's classes, 0 ... {classes - 1}, got {label}.")
    if label is not None and label not in known:
        raise ValueError(f"--label {label} had no training examples; choose one of {', '.join(map(str, known))}.")
    chosen = torch.tensor(known if label is None else [label])
    return lambda where: chosen[torch.arange(where.start, where.stop) % len(chosen)]


def classes_in_turn(model: NDM, n: int, label: int | None = None, counts: Sequence[int] | None = None) -> Tensor | None:
    """Return the classes of n samples by :func:`class_turns`: int64 (n,); None for a model without classes.

    Raises:
        ValueError: the class does not exist, or has no training examples.
    """
    turns = class_turns(model, label, counts)
    return None if turns is None else turns(slice(0, n))


class SampleFile:
    """Writer for blocks of samples: see :func:`sample_file`.

    Attributes:
        done: number of samples written.
    """

    def __init__(self, out: Path, content: Content, buffer: BinaryIO, spill: Spill) -> None:
        self._out, self._content, self._buffer, self._spill = out, content, buffer, spill
        self._sink: Sink = SINKS[out.suffix.lower()](buffer, content)
        self.done = 0

    def write(self, x: Tensor) -> None:
        """Write the next samples.

        Args:
            x: (B, \\*shape), on the CPU.

        Raises:
            OSError: writing failed.
        """
        where = slice(self.done, self.done + len(x))
        with self._in_a_sentence():
            self._sink.write(x, where)
        self.done = where.stop

    def finish(self) -> None:
        """Write buffered data, and flush them to the disk."""
        if self.done != self._content.n:
            raise ValueError(f"Expected {self._content.n} samples for {self._out}, got {self.done}.")
        with self._in_a_sentence():
            self._sink.close()
            self._buffer.flush()
            self._spill.sync()

    def abandon(self) -> None:
        """Discard everything without writing."""
        self._spill.abandon()
        with contextlib.suppress(Exception):
            self._sink.close(whole=False)

    @contextlib.contextmanager
    def _in_a_sentence(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = self._spill.error or error
            raise OSError(
                f"{self._out} could not be written ({reason.strerror or reason}) after {self.done:,} of "
                f"{self._content.n:,} samples, and the incomplete file was deleted: free some disk space or choose "
                "another --out; the same command draws the same samples."
            ) from None


@contextlib.contextmanager
def sample_file(
    out: Path,
    n: int,
    shape: Sequence[int],
    levels: int | None = None,
    numbered: int | None = None,
    columns: Sequence[str] | None = None,
    labels: Callable[[slice], Tensor] | None = None,
    replace: bool = True,
    encoding: TableEncoding | None = None,
) -> Iterator[SampleFile]:
    """Context manager that writes samples block by block, in the format given by the file suffix.

    Memory holds one block, or a row group of a Parquet file; a picture needs all samples. The file is written
    atomically: after an exception the previous file, if any, is unchanged. If the disk is full, writing continues in
    the temporary folder, and an exception at the end contains the path.

    Labels are the last column of a table, ``label``, and the array ``labels`` of a .npz file.

    Args:
        out: the file.
        n: number of samples.
        shape: shape of a sample.
        levels: K of a K-level decoder.
        numbered: K if the data were read as level numbers; samples of a table have its original values and names.
        columns: column names of a table.
        labels: function from a slice to the class labels, (n,); None for a model without classes.
        replace: whether an existing file may be replaced.
        encoding: the columns of a table of several kinds, whose samples are rows of numbers, (n, C).

    Raises:
        ValueError: there are too many samples for a picture.
        FileExistsError: another process is writing the file, or it exists and may not be replaced.
        OSError: writing failed; the message contains the path of the samples, if they were saved.
    """
    if out.suffix.lower() == ".png" and n > (most := PictureSink.most(shape)):
        raise ValueError(
            f"{out} is a picture, which can show at most {most:,} of these samples, got {n:,}: choose a name that ends "
            "in .npz, or draw fewer."
        )
    content = Content(n, shape, levels, numbered, columns, labels, encoding)
    with atomic_path(out, replace) as fresh:
        refuse_if_being_written(out, fresh)
        with Spill(fresh, out.name) as spill, io.BufferedWriter(spill, 1 << 16) as buffer:
            file = SampleFile(out, content, buffer, spill)
            try:
                yield file
                file.finish()
            except BaseException:
                file.abandon()
                raise
        if spill.error is not None:
            raise OSError(
                f"{out} could not be written ({spill.error.strerror or spill.error}); the samples are in "
                f"{spill.elsewhere}."
            )


def save_samples(
    x: Tensor,
    out: Path,
    levels: int | None = None,
    numbered: int | None = None,
    columns: Sequence[str] | None = None,
    labels: Tensor | None = None,
    encoding: TableEncoding | None = None,
) -> None:
    """Write a tensor of samples to a :func:`sample_file`.

    Args:
        x: the samples, (N, \\*shape).
        out: the file.
        levels: see :func:`sample_file`.
        numbered: see :func:`sample_file`.
        columns: see :func:`sample_file`.
        labels: the classes of the samples, (N,), if any.
        encoding: see :func:`sample_file`.

    Raises:
        OSError: writing failed; the message contains the path of the samples, if they were saved.
    """
    turns = None if labels is None else labels.__getitem__
    with sample_file(out, len(x), x.shape[1:], levels, numbered, columns, turns, encoding=encoding) as file:
        file.write(x)
