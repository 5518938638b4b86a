"""Samples as files: a picture, a table, arrays; and which classes they are drawn from."""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from ndm.model import NDM
from ndm.samples.sinks import SINKS, Content, PictureSink, Sink, Spill
from ndm.storage.atomic import atomic_path, refuse_if_being_written
from ndm.storage.texts import require_regular

__all__ = [
    "FORMATS",
    "SampleFile",
    "class_turns",
    "classes_in_turn",
    "formula_warning",
    "require_place",
    "sample_file",
    "save_samples",
]

#: What a file of samples may end in.
FORMATS = tuple(SINKS)

#: What a program for spreadsheets takes for a formula, at the beginning of a cell, and what may begin a cell for it,
#: which need not separate cells by commas: https://owasp.org/www-community/attacks/CSV_Injection
_FORMULA = re.compile(r"""(^|[,;\t\r\n"'])\s*[=+\-@\uff1d\uff0b\uff0d\uff20]|^[\t\r\n]""")


def require_place(out: Path, overwrite: bool = False) -> None:
    """See that samples can be written, before they are drawn.

    Args:
        out: the file.
        overwrite: it may exist.

    Raises:
        ValueError: its name does not end in one of :data:`FORMATS`, or it is no file.
        OSError: it exists, or nothing can be written beside it.
        ImportError: what writes such files is not installed.
    """
    if out.suffix.lower() not in FORMATS:
        raise ValueError(f"{out} should end in {', '.join(FORMATS[:-1])} or {FORMATS[-1]}, which says what to write.")
    if out.is_dir():
        raise IsADirectoryError(f"{out} is a folder; nothing was written: choose another --out.")
    if out.exists() and not overwrite:
        raise FileExistsError(f"{out} exists; nothing was written: choose another --out, or --overwrite it.")
    if out.exists():
        require_regular(out)
    if not out.parent.is_dir():
        raise FileNotFoundError(f"There is no folder {out.parent} to write {out.name} in.")
    if not os.access(out.parent, os.W_OK):
        raise PermissionError(f"The folder {out.parent} may not be written to, and {out.name} is to be in it.")
    if out.suffix.lower() == ".parquet":
        try:
            importlib.import_module("pyarrow")
        except ModuleNotFoundError:
            raise ImportError("Parquet files need pyarrow: pip install pyarrow.") from None


def formula_warning(out: Path, columns: Sequence[str] | None) -> str | None:
    """A sentence about columns of a CSV file whose names a program for spreadsheets takes for formulas, and may run.

    The names are written as they are. An apostrophe before them, which is the usual remedy, is a part of the name for
    every other program, so that the samples would have other columns than the table; and quotes do not help.

    Args:
        out: the file; others than CSV are not opened by such programs.
        columns: the names of a table's columns.

    Example:
        >>> formula_warning(Path("x.csv"), ["a", "-1", "=1+1", "@b", "c;=d"])
        "x.csv has columns that a program for spreadsheets takes for formulas, and may run: '=1+1', '@b', 'c;=d'; open \
it in another program, or rename them."
    """
    names = [name for name in columns or () if _FORMULA.search(name) and not _is_number(name)]
    if out.suffix.lower() != ".csv" or not names:
        return None
    shown = ", ".join(repr(name if len(name) <= 40 else name[:40] + "...") for name in names[:5])
    return (
        f"{out} has columns that a program for spreadsheets takes for formulas, and may run: {shown}"
        f"{', ...' if len(names) > 5 else ''}; open it in another program, or rename them."
    )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def class_turns(
    model: NDM, label: int | None = None, counts: Sequence[int] | None = None
) -> Callable[[slice], Tensor] | None:
    """What tells the classes to draw samples from: of those in a slice, int64 (n,); None for a model without classes.

    Args:
        model: the model.
        label: the class of all; None for each class in turn that there were examples of.
        counts: how many examples of each class the model was trained on; None if that is not known.

    Raises:
        ValueError: the model has no such class, or was never shown an example of it.
    """
    classes = model.num_classes
    if not classes:
        if label is not None:
            raise ValueError(f"--label {label} is for a model of several classes, and this one was trained without.")
        return None
    known = [k for k in range(classes) if counts is None or (k < len(counts) and counts[k] > 0)] or list(range(classes))
    if label is not None and not 0 <= label < classes:
        raise ValueError(f"--label must be 0 ... {classes - 1}, one of the model's classes, not {label}.")
    if label is not None and label not in known:
        raise ValueError(f"--label {label} has had no training example; there are {', '.join(map(str, known))}.")
    chosen = torch.tensor(known if label is None else [label])
    return lambda where: chosen[torch.arange(where.start, where.stop) % len(chosen)]


def classes_in_turn(model: NDM, n: int, label: int | None = None, counts: Sequence[int] | None = None) -> Tensor | None:
    """The classes to draw n samples from, by :func:`class_turns`: int64 (n,); None for a model without classes.

    Raises:
        ValueError: the model has no such class, or was never shown an example of it.
    """
    turns = class_turns(model, label, counts)
    return None if turns is None else turns(slice(0, n))


class SampleFile:
    """Takes samples, block by block: see :func:`sample_file`.

    Attributes:
        done: how many samples it has taken.
    """

    def __init__(self, out: Path, content: Content, buffer: BinaryIO, spill: Spill) -> None:
        self._out, self._content, self._buffer, self._spill = out, content, buffer, spill
        self._sink: Sink = SINKS[out.suffix.lower()](buffer, content)
        self.done = 0

    def write(self, x: Tensor) -> None:
        """Write the samples that follow.

        Args:
            x: (B, \\*shape), on the CPU.

        Raises:
            OSError: they cannot be written.
        """
        where = slice(self.done, self.done + len(x))
        with self._in_a_sentence():
            self._sink.write(x, where)
        self.done = where.stop

    def finish(self) -> None:
        """Write what is left, and wait until it is on the disk."""
        if self.done != self._content.n:
            raise ValueError(f"{self._content.n} samples were to be written to {self._out}, and there are {self.done}.")
        with self._in_a_sentence():
            self._sink.close()
            self._buffer.flush()
            self._spill.sync()

    def abandon(self) -> None:
        """Let go of everything, without another write."""
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
                f"{self._content.n:,} samples, of which none is kept: free some space or choose another --out; the "
                "same command draws the same samples."
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
) -> Iterator[SampleFile]:
    """A file of samples that is written block by block, in the format that its name asks for.

    In memory there is one block, or a row group of a Parquet file; a picture needs all samples. The file takes its name
    when all samples are in it. After an exception there is nothing of it, and what was there before stays. If its disk
    is full, it goes on in the folder of temporary files, and at the end an exception says where.

    Labels are the last column of a table, ``label``, and the array ``labels`` of a .npz file.

    Args:
        out: the file.
        n: how many samples there will be.
        shape: of one.
        levels: K of a decoder of K levels, whose samples are of these levels.
        numbered: K of data that were read as level numbers: the samples of a table are as it was, with its names.
        columns: the names of a table's columns.
        labels: the classes of the samples in a slice, (n,); None for a model that has none.

    Raises:
        ValueError: it is to be a picture of more samples than it can show.
        FileExistsError: another process is writing it.
        OSError: it cannot be written; the sentence says where the samples are, if they are anywhere.
    """
    if out.suffix.lower() == ".png" and n > (most := PictureSink.most(shape)):
        raise ValueError(
            f"{out} is to be a picture, which shows {most:,} of these samples at most, not {n:,}: give a name that "
            "ends in .npz, or draw fewer."
        )
    content = Content(n, shape, levels, numbered, columns, labels)
    with atomic_path(out) as fresh:
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
) -> None:
    """Write samples that are all there to a :func:`sample_file`.

    Args:
        x: the samples, (N, \\*shape).
        out: the file.
        levels: as there.
        numbered: as there.
        columns: as there.
        labels: the classes that they were drawn from, (N,), of a model that has them.

    Raises:
        OSError: it cannot be written; the sentence says where the samples are, if they are anywhere.
    """
    turns = None if labels is None else labels.__getitem__
    with sample_file(out, len(x), x.shape[1:], levels, numbered, columns, turns) as file:
        file.write(x)
