r"""Every row of a data set scored by a model: the bound and the log-likelihood, each with its error, in a file.

For data of any number of rows. They are read, scored and written down a block at a time, so that memory is needed for
a block, and a run that was killed goes on where it was: OUT.partial/blocks holds what is done, each block with a
checksum. What a row gets depends on the settings and on its place, and on nothing that happened in between.
"""

from __future__ import annotations

import contextlib
import copy
import csv
import hashlib
import importlib
import json
import logging
import math
import os
import shutil
import struct
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ndm.data.base import Examples, from_levels
from ndm.data.sources import find_source
from ndm.data.table import TableFile
from ndm.likelihood import TOLERANCE, log_likelihood
from ndm.model import NDM
from ndm.noise import normal_like, seed_of

__all__ = ["PRECISIONS", "ExampleRows", "ImageRows", "Rows", "Scores", "TableRows", "score"]

logger = logging.getLogger("ndm.scoring")

PRECISIONS = ("32", "bf16", "64")

#: Formats, by the file's ending.
FORMATS = (".parquet", ".csv")

#: Rows in a block: at most so many, and at most so many numbers.
ROWS, NUMBERS = 1024, 2**18

#: Numbers in the rows whose likelihood is computed once more, to see what the solver's tolerance has cost.
CHECKED = 128

#: Rows that are written at a time, a row group of a Parquet file.
WRITTEN = 65_536

#: Draws from which the bound's control variates are fitted, at least.
PREPARED = 64

_MEASURED = ("nelbo", "nelbo_stderr", "log_prob", "log_prob_stderr", "solver_error")

_LAYOUT = 2  # of the partial folder: to be counted up when what is in it changes its meaning


# ---- rows to be scored


@runtime_checkable
class Rows(Protocol):
    """Examples that are read one after another.

    Attributes:
        count: how many there are.
    """

    count: int

    def blocks(self, size: int, skip: int) -> Iterator[Tensor]:
        """The examples from number ``skip`` on, ``size`` at a time, (n, \\*shape)."""
        ...

    def identity(self) -> dict[str, Any]:
        """What tells these rows from others, made of JSON's types."""
        ...


class ExampleRows:
    """A tensor's rows, or a split's of a data set.

    Args:
        examples: (N, \\*shape).
    """

    def __init__(self, examples: Examples) -> None:
        self.examples = examples
        self.count = len(examples)

    def blocks(self, size: int, skip: int) -> Iterator[Tensor]:
        for start in range(skip, self.count, size):
            yield self.examples[start : min(start + size, self.count)]

    def identity(self) -> dict[str, Any]:
        checksum = 0
        for block in self.blocks(ROWS, 0):
            checksum = zlib.crc32(block.cpu().contiguous().numpy().tobytes(), checksum)
        return {"examples": self.count, "checksum": checksum}


class TableRows:
    """The rows of a CSV or Parquet file, all of which are looked at before the first is scored.

    Args:
        path: the file.
        shape: of an example; the table has as many columns as that has entries.
        columns: which, and in what order; None for all that hold numbers.
        levels: K, if the columns hold whole numbers 0 ... K - 1.

    Raises:
        ValueError: the file has other columns, or is not as :class:`~ndm.data.table.TableFile` wants it, or is empty.
        FileNotFoundError: there is no such file.
    """

    def __init__(
        self, path: str, shape: Sequence[int], columns: Sequence[str] | None = None, levels: int | None = None
    ) -> None:
        self.file = TableFile(path)
        self.shape, self.levels = tuple(shape), levels
        self.columns = self.file.choose(columns)
        if len(self.columns) != math.prod(self.shape):
            raise ValueError(
                f"The model is of {math.prod(self.shape)} numbers a row, and {path} has {len(self.columns)} columns "
                f"of numbers: {', '.join(self.columns)}."
            )
        self.count = self.file.check(self.columns, levels)
        if self.count == 0:
            raise ValueError(f"{path} has no rows to score.")

    def blocks(self, size: int, skip: int) -> Iterator[Tensor]:
        for piece in self.file.pieces(self.columns, size, skip, self.levels):
            values = torch.from_numpy(piece)
            x = values if self.levels is None else from_levels(values.long(), self.levels)
            yield x.reshape(-1, *self.shape)

    def identity(self) -> dict[str, Any]:
        stat = self.file.path.stat()
        return {"table": str(self.file.path.resolve()), "bytes": stat.st_size, "changed": stat.st_mtime_ns} | {
            "columns": list(self.columns)
        }


class ImageRows:
    """The images of a source, in its order, decoded as they are needed: see :class:`ndm.data.Images`.

    Args:
        path: as for Images.
        shape: of the model's images, (C, H, W).
        size: what the images are resized to; None for images that are of the shape already.
        channels: 1 or 3 to make all images grey or coloured; None for images that are so already.
        split: which of the source's splits; None if it has one.
        background: the colour that images are put on where they are transparent; None to refuse such images.

    Raises:
        ValueError: the source has no such split or several, or is damaged; and later, an image is of another shape.
        FileNotFoundError: there is nothing of that path or name.
    """

    def __init__(
        self,
        path: str,
        shape: Sequence[int],
        size: int | None = None,
        channels: int | None = None,
        split: str | None = None,
        background: str | None = "white",
    ) -> None:
        self.path, self.shape, self.size, self.channels = path, tuple(shape), size, channels
        self.background = background
        self.source = find_source(path)
        splits = self.source.load(False, None, None)
        if split is None and len(splits) > 1:
            raise ValueError(f"{path} has the splits {', '.join(splits)}: choose one.")
        self.split = split or next(iter(splits))
        if self.split not in splits:
            raise ValueError(f"{path} has no {self.split} split: it has {', '.join(splits)}.")
        self.rows = splits[self.split]
        if not self.rows.count:
            raise ValueError(f"There are no images in {self.rows.where}.")
        self.count: int = self.rows.count

    def blocks(self, size: int, skip: int) -> Iterator[Tensor]:
        from ndm.data.building import Decoder, name_of
        from ndm.data.pixels import from_pixels

        row = skip
        with Decoder(self.size, self.channels, self.shape, self.background) as decoder:
            for cells, _ in self.rows.skip(skip).pieces(size):
                names = [name_of(cell, f"in row {row + i}", self.rows) for i, cell in enumerate(cells)]
                yield from_pixels(torch.from_numpy(decoder(cells, names)))
                row += len(cells)

    def identity(self) -> dict[str, Any]:
        return {
            "images": self.source.fingerprint(),
            "split": self.split,
            "shape": [self.size, self.channels, self.background],
        }


# ---- scoring


@dataclass(frozen=True)
class Scores:
    """What was written.

    Attributes:
        path: the file.
        about: ``rows``, and of ``nelbo`` and ``log_prob`` each the ``mean``, its ``stderr`` over the rows, and
            ``row_stderr``, the mean of the rows' own standard errors (nats); of ``log_prob`` also ``kind`` in words,
            ``unsolved``, the number of rows whose equation the solver gave up, ``solver_error``, the mean of the rows'
            own, and ``checked_error``, the mean difference that a hundredth of the tolerance and double precision made
            to the first rows; and ``seconds``, of this session, for ``scored`` rows.
    """

    path: Path
    about: dict[str, Any]

    def text(self) -> str:
        """The same in a few lines."""
        about, lines = self.about, []
        for name, what in (("nelbo", "bound on -log p"), ("log_prob", "log p")):
            if name not in about:
                continue
            part = about[name]
            error = "no random part" if part["row_stderr"] == 0 else f"a row's own error {part['row_stderr']:.2g}"
            lines.append(f"{what:<16} {part['mean']:>12.5f} ± {part['stderr']:.5f} nats, {error}")
        if "log_prob" in about:
            part = about["log_prob"]
            lines.append(f"{'':<16} {part['kind']}")
            lines.append(f"{'':<16} half the solver's steps change a row by {part['solver_error']:.1g} on average")
            if part["checked_error"] is not None:
                many = "many more steps in double precision change the first rows by"
                lines.append(f"{'':<16} {many} {part['checked_error']:.1g}")
            if part["unsolved"]:
                lines.append(f"{'':<16} {part['unsolved']} rows could not be solved, and are nan")
        if about["scored"]:
            lines.append(f"{about['scored']:,} rows in {about['seconds']:.1f} s")
        return "\n".join(lines)


def score(
    model: NDM,
    data: Rows | Examples,
    out: str | os.PathLike[str],
    *,
    likelihood: bool = True,
    times: int = 20,
    tolerance: float | None = None,
    samples: int = 4,
    probes: int = 4,
    precision: str = "32",
    batch_size: int | None = None,
    max_rows: int | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> Scores:
    r"""Write a file with a line for every row of the data, in their order.

    Its columns are ``row``, from 0; ``nelbo`` and ``nelbo_stderr``, the bound on -log p in continuous time, with the
    noise's square for a control variate; ``log_prob`` and ``log_prob_stderr``, the log-likelihood under the reverse
    ODE, whose meaning is in ``kind``; ``solver_error``, how far half as many of the solver's steps are away; all in
    nats, the standard errors being those of what is random in each row's own figure. (The bound's comes of ``times`` /
    2 differences and is itself uncertain: with 20 times the mean lies within two of it for nine rows of ten.) For
    K-level data also ``bits_per_dim``, of the log-likelihood, or of the bound where there is none.

    If the process is killed, the same call goes on from OUT.partial, and the file will be the same.

    Args:
        model: the model, which must be on the device to compute on, and is left as it was.
        data: the rows.
        out: the file to write, .parquet or .csv.
        likelihood: compute the log-likelihood as well, which takes longest.
        times: noise levels per row for the bound, an even number: two in each of ``times`` / 2 strata.
        tolerance: nats, of the ODE solver: see :func:`ndm.log_likelihood`.
        samples: of z_0, for K-level data.
        probes: for the divergence, where it is not exact: in more than 16 dimensions.
        precision: ``32``, ``bf16`` (of the networks alone) or ``64``.
        batch_size: rows in a block. Another number means other random numbers.
        max_rows: score the first so many rows only.
        seed: of every random number.
        progress: show a bar; by default on a terminal.

    Raises:
        ValueError: an argument is out of range, the data do not fit the model, or OUT.partial is of other settings.
        FileExistsError: OUT exists.
        FileNotFoundError: there is no folder to write in.
        ImportError: pyarrow is not installed, for a .parquet file.
    """
    out = Path(out)
    _check_out(out)
    _check_options(times, tolerance, samples, probes, precision, batch_size, max_rows, seed)
    _check_model(model, likelihood)
    rows = data if isinstance(data, Rows) else ExampleRows(data)
    count = rows.count if max_rows is None else min(rows.count, max_rows)
    first = next(rows.blocks(1, 0), None)
    if first is None:
        raise ValueError("There are no rows to score.")
    size = batch_size or max(1, min(ROWS, NUMBERS // first.numel()))
    if tolerance is None:
        tolerance = TOLERANCE * first.numel()
    options = {"tolerance": tolerance, "samples": samples, "probes": probes}
    scorer = _Scorer(model, likelihood, times, options, precision, seed)
    settings = {
        "layout": _LAYOUT, "model": _fingerprint(model), "data": rows.identity(), "rows": count, "batch_size": size,
        "likelihood": likelihood, "times": times, "tolerance": tolerance, "samples": samples, "probes": probes,
        "precision": precision, "seed": seed,
    }  # fmt: skip
    with scorer.at_work():
        scorer.prepare(next(rows.blocks(size, 0)))  # which also finds out whether the data fit the model
    with scorer.at_work(), _Journal(out.with_name(out.name + ".partial"), settings) as journal:
        began, done = time.monotonic(), journal.rows
        if done:
            logger.info("%d rows of %d had been scored: going on from there", done, count)
        hidden = None if progress is None else not progress
        with tqdm(total=count, initial=done, desc="scoring", unit="row", disable=hidden) as bar:
            # Also the last block is read whole, for whatever the first rows are, their noise is that of the block.
            for x in rows.blocks(size, done) if done < count else ():
                journal.append(scorer.measure(x, journal.blocks)[: count - journal.rows])
                bar.update(min(len(x), count - bar.n))
                if journal.rows >= count:
                    break
        if journal.rows < count:
            raise ValueError(f"The data have {journal.rows} rows, and had {count} before: have they changed?")
        seconds = time.monotonic() - began
        some = min(count, max(1, CHECKED // first.numel()))
        kind, checked = scorer.check(next(rows.blocks(some, 0))) if likelihood else (None, None)
        about = _summary(journal, kind, checked)
        about |= {"scored": count - done, "seconds": seconds}
        bits = None if model.decoder.levels is None else 1 / (first.numel() * math.log(2))
        _write(out, journal, about | {"settings": settings}, bits)
        journal.remove()
    return Scores(out, about)


class _Scorer:
    """Scores blocks of rows; ``options`` are those of :func:`log_likelihood`."""

    def __init__(
        self, model: NDM, likelihood: bool, times: int, options: dict[str, Any], precision: str, seed: int
    ) -> None:
        self.model = copy.deepcopy(model).double() if precision == "64" else model
        self.likelihood, self.times, self.options = likelihood, times, options
        self.precision, self.seed = precision, seed
        self.slopes: list[float] = []  # one for each stratum
        self.kind = ""
        parameter = next(iter(model.parameters()), torch.empty(0))
        self.device = parameter.device
        self.dtype = torch.float64 if precision == "64" else torch.float32

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """The model in evaluation mode, and the networks in the precision that was asked for."""
        was_training = self.model.training
        self.model.eval()
        half = self.precision == "bf16"
        try:
            with torch.no_grad(), torch.autocast(self.device.type, torch.bfloat16, enabled=half):
                yield
        finally:
            self.model.train(was_training)

    def measure(self, x: Tensor, block: int) -> np.ndarray:
        """The figures of a block's rows, (n, 5), in the order of :data:`_MEASURED`."""
        x = x.to(self.device, self.dtype)
        found = torch.full((len(x), len(_MEASURED)), math.nan, dtype=torch.float64)
        found[:, 0], found[:, 1] = self._bound(x, self._generator(block, 0))
        if self.likelihood:
            found[:, 2:] = self._log_prob(x, (block, 1))
        return found.numpy()

    def _generator(self, *numbers: int) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(seed_of(self.seed, *numbers))

    def _bound(self, x: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The bound and its standard error, each (n,): two noise levels from every stratum, which tell its variance."""
        mean, variance = torch.zeros(2, len(x), dtype=torch.float64)
        for stratum, slope in enumerate(self.slopes):
            pair = []
            for again in range(2):
                total, control = self._draw(x, stratum, generator, check=stratum == again == 0)
                pair.append(total - slope * control)
            mean += (pair[0] + pair[1]) / self.times
            variance += (pair[0] - pair[1]) ** 2 / self.times**2
        return mean, variance.sqrt()

    def _draw(self, x: Tensor, stratum: int, generator: torch.Generator, check: bool) -> tuple[Tensor, Tensor]:
        """The bound at a noise level of a stratum, and a number of mean zero that goes with it, each (n,).

        Near the data eps_hat is small, and what varies in gamma' |eps - eps_hat|^2 / 2 is mostly |eps|^2, of which the
        mean is known. That eps is the first that the bound draws is made use of; if it were not, the number would be of
        no use, but do no harm.
        """
        u = torch.rand(len(x), generator=generator, dtype=torch.float64, device=self.device)
        times = 2 * (stratum + u) / self.times
        eps = normal_like(x, generator.clone_state())
        total = self.model.bound(x, times=times, generator=generator, check=check).total
        weight = self.model.schedule(times.to(x)).dgamma / 2
        return total.double().cpu(), (weight * (eps.square() - 1).flatten(1).sum(1)).double().cpu()

    def prepare(self, x: Tensor) -> None:
        """Find how much of the variates of :meth:`_draw` to subtract, from some rows with random numbers of their own.

        So nothing is lost of the bound's being unbiased, and the rows that are scored share nothing but these numbers.
        """
        x = x.to(self.device, self.dtype)
        x = x.repeat(-(-PREPARED // len(x)), *[1] * (x.ndim - 1))
        generator = self._generator(0, 3)
        for stratum in range(self.times // 2):
            (y, control), (other_y, other_control) = (self._draw(x, stratum, generator, i == 0) for i in range(2))
            y, control = y - other_y, control - other_control
            self.slopes.append(((y * control).sum() / control.square().sum()).nan_to_num().item())

    def _log_prob(self, x: Tensor, place: tuple[int, ...]) -> Tensor:
        """The log-likelihood, its standard error and the solver's, (n, 3); nan for rows that cannot be solved."""
        try:
            result = log_likelihood(self.model, x, generator=self._generator(*place), **self.options)
        except RuntimeError as error:
            if "solver gave up" not in str(error):  # out of memory, for one
                raise
            if len(x) == 1:
                return torch.full((1, 3), math.nan, dtype=torch.float64)
            return torch.cat([self._log_prob(half, (*place, i)) for i, half in enumerate(x.tensor_split(2))])
        self.kind = result.kind
        return torch.stack([result.log_prob, result.stderr, result.solver_error], dim=1).double().cpu()

    def check(self, x: Tensor) -> tuple[str, float | None]:
        """What the log-likelihood is in words, and how much finer steps in float64 change it on average."""
        x, place = x.to(self.device, self.dtype), (0, 2)
        finer = self.options | {"tolerance": self.options["tolerance"] / 100}
        try:
            rough = log_likelihood(self.model, x, generator=self._generator(*place), **self.options)
            self.kind = rough.kind
            if self.device.type == "mps":  # which has no float64
                return self.kind, None
            model, x = copy.deepcopy(self.model).double(), x.double()
            with torch.autocast(self.device.type, enabled=False):
                if rough.stderr.any():  # float64 has random numbers of its own, so that both must be in it
                    rough = log_likelihood(model, x, generator=self._generator(*place), **self.options)
                fine = log_likelihood(model, x, generator=self._generator(*place), **finer)
        except RuntimeError:
            return self.kind, None
        return self.kind, (rough.log_prob - fine.log_prob).abs().mean().item()


def _fingerprint(model: NDM) -> str:
    """A checksum of the model's configuration and numbers."""
    try:
        description = json.dumps(model.config())
    except TypeError:  # it has a module in it that is no part
        description = f"{model}{model.standardize and model.standardize.config()}"
    found = hashlib.sha256(description.encode())
    for name, value in model.state_dict().items():
        found.update(name.encode())
        found.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


# ---- what is checked before time is spent


def _check_out(out: Path) -> None:
    if out.suffix not in FORMATS:
        raise ValueError(f"{out} should end in {' or '.join(FORMATS)}, which says what to write.")
    if out.exists():
        raise FileExistsError(f"{out} exists; nothing was written: choose another --out.")
    if not out.parent.is_dir():
        raise FileNotFoundError(f"There is no folder {out.parent} to write {out.name} in.")
    if out.suffix == ".parquet":
        try:
            importlib.import_module("pyarrow")
        except ModuleNotFoundError:
            raise ImportError("Parquet files need pyarrow: pip install 'ndm[tables]'.") from None


def _check_options(
    times: int,
    tolerance: float | None,
    samples: int,
    probes: int,
    precision: str,
    size: int | None,
    rows: int | None,
    seed: int,
) -> None:
    if times < 2 or times % 2:
        raise ValueError(f"times must be an even number of at least 2, not {times}: noise levels are taken in pairs.")
    if tolerance is not None and not 0 < tolerance < math.inf:
        raise ValueError(f"tolerance must be a positive number, not {tolerance}.")
    for name, value in {
        "samples": samples,
        "probes": probes,
        "batch_size": size,
        "max_rows": rows,
    }.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}.")
    if precision not in PRECISIONS:
        raise ValueError(f"There is no precision {precision!r}; choose one of {', '.join(PRECISIONS)}.")
    if seed < 0:
        raise ValueError(f"The seed must not be negative, as {seed} is.")


def _check_model(model: NDM, likelihood: bool) -> None:
    if getattr(getattr(model.denoiser, "net", None), "classes", 0):
        raise ValueError("This model is told the class of each row, which cannot be given here: evaluate it instead.")
    if likelihood and model.denoiser.direct and not getattr(model.denoiser, "ode", False):
        raise ValueError(
            "This model's reverse process is direct and has no ODE, so no likelihood but the bound: "
            "leave the likelihood out (--no-likelihood)."
        )


# ---- what is kept while it is not finished


class _Journal:
    """The folder OUT.partial: the settings, and the blocks that are done, each followed by a checksum.

    A block that was being written when the process died has no right checksum, and is cut off with all that follows.

    Attributes:
        rows: how many are done.
        blocks: how many blocks that is.

    Raises:
        ValueError: the folder is of other settings, or of another process that is at work.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.folder, self.settings = folder, settings
        self.path = folder / "blocks"
        self.rows = self.blocks = 0

    def __enter__(self) -> _Journal:
        self.folder.mkdir(exist_ok=True)
        self._file = open(self.path, "ab+")
        try:
            _lock(self._file, self.folder)
            self._claim(empty=self.path.stat().st_size == 0)
        except ValueError:
            self._file.close()
            raise
        for values in self.read():
            self._count(values)
        end = self._end()
        if self.path.stat().st_size > end:
            logger.warning("%s ends in a block that is not whole, or damaged: scoring goes on before it", self.path)
            self._file.truncate(end)
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def append(self, values: np.ndarray) -> None:
        """Write a block, (n, 5), so that it is there whatever happens next."""
        data = np.ascontiguousarray(values, "<f8").tobytes()
        self._file.write(data + self._checksum(data, self.blocks))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._count(values)

    def read(self) -> Iterator[np.ndarray]:
        """The blocks that are done, one after another, up to the first that is not right."""
        size, total = self.settings["batch_size"], self.settings["rows"]
        with open(self.path, "rb") as file:
            for block, start in enumerate(range(0, total, size)):
                n = min(size, total - start)
                data = file.read(8 * n * len(_MEASURED))
                if file.read(4) != self._checksum(data, block):
                    return
                yield np.frombuffer(data, "<f8").reshape(n, len(_MEASURED))

    def remove(self) -> None:
        """Delete the folder: it has served its purpose."""
        self._file.close()
        shutil.rmtree(self.folder)

    def _claim(self, empty: bool) -> None:
        """Write the settings down where nothing is done yet, or see that they are those that are written."""
        path = self.folder / "settings.json"
        if empty:
            new = path.with_suffix(".new")
            new.write_text(json.dumps(self.settings, indent=2) + "\n")
            os.replace(new, path)
            return
        try:
            old = dict(json.loads(path.read_text()))
        except (OSError, ValueError, TypeError):
            raise self._other("its settings.json is missing or damaged") from None
        new_settings = json.loads(json.dumps(self.settings))
        for name, value in new_settings.items():
            if old.get(name) != value:
                short = "" if name in ("model", "data") else f": {old.get(name)} there, {value} here"
                raise self._other(f"it is of another {name}{short}")

    def _other(self, what: str) -> ValueError:
        return ValueError(
            f"{self.folder} cannot be gone on with, {what}: score as it was begun, choose another --out, or delete it."
        )

    def _count(self, values: np.ndarray) -> None:
        self.rows += len(values)
        self.blocks += 1

    def _end(self) -> int:
        """Where the blocks that are done end in the file."""
        return 8 * len(_MEASURED) * self.rows + 4 * self.blocks

    @staticmethod
    def _checksum(data: bytes, block: int) -> bytes:
        return struct.pack("<I", zlib.crc32(data, block))


def _lock(file: Any, folder: Path) -> None:
    """Let no other process write to the file; where there are no such locks, hope for the best."""
    try:
        import fcntl
    except ModuleNotFoundError:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise ValueError(f"Another process is at work in {folder}: wait for it, or choose another --out.") from None


# ---- the end


class _Mean:
    """Mean and standard error of numbers that come in blocks; those that are nan are counted and left out."""

    def __init__(self) -> None:
        self.count = self.missing = 0
        self.mean = self.squares = 0.0

    def add(self, values: np.ndarray) -> None:
        there = values[~np.isnan(values)]
        self.missing += len(values) - len(there)
        if len(there) == 0:
            return
        count, mean = len(there), float(there.mean())
        total, shift = self.count + count, mean - self.mean  # Chan et al., 1979
        self.squares += float(((there - mean) ** 2).sum()) + shift**2 * self.count * count / total
        self.mean += shift * count / total
        self.count = total

    @property
    def stderr(self) -> float:
        return math.sqrt(self.squares / (self.count - 1) / self.count) if self.count > 1 else math.nan


def _summary(journal: _Journal, kind: str | None, checked: float | None) -> dict[str, Any]:
    means = {name: _Mean() for name in _MEASURED}
    for block in journal.read():
        for name, values in zip(_MEASURED, block.T, strict=True):
            means[name].add(values)

    def part(name: str) -> dict[str, Any]:
        found, own = means[name], means[name + "_stderr"]
        return {"mean": found.mean, "stderr": found.stderr, "row_stderr": own.mean if own.count else math.nan}

    about: dict[str, Any] = {"rows": journal.rows, "nelbo": part("nelbo")}
    if kind is not None:
        solver = means["solver_error"]
        more = {"kind": kind, "unsolved": means["log_prob"].missing, "checked_error": checked}
        more["solver_error"] = solver.mean if solver.count else math.nan
        about["log_prob"] = part("log_prob") | more
    return about


def _write(out: Path, journal: _Journal, about: dict[str, Any], bits: float | None) -> None:
    """Put the blocks together in one file, which comes to its place when it is whole."""
    new = journal.folder / out.name
    columns = _columns(journal, about, bits)
    if out.suffix == ".csv":
        with open(new, "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            for i, block in enumerate(columns):
                if i == 0:
                    writer.writerow(block)
                writer.writerows(zip(*(_texts(values) for values in block.values()), strict=True))
    else:
        _write_parquet(new, columns, {"ndm": json.dumps(about)})
    with open(new, "rb+") as file:
        os.fsync(file.fileno())
    os.replace(new, out)


def _columns(journal: _Journal, about: dict[str, Any], bits: float | None) -> Iterator[dict[str, np.ndarray]]:
    """The file's columns, block by block."""
    names = _MEASURED if "log_prob" in about else _MEASURED[:2]
    row = 0
    for block in _joined(journal.read()):
        found: dict[str, np.ndarray] = {"row": np.arange(row, row + len(block))}
        found |= {name: block[:, i] for i, name in enumerate(names)}
        if bits is not None:
            found["bits_per_dim"] = bits * (-found["log_prob"] if "log_prob" in found else found["nelbo"])
        if "log_prob" in about:
            found["kind"] = np.full(len(block), about["log_prob"]["kind"], dtype=object)
        yield found
        row += len(block)


def _joined(blocks: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """Blocks put together to larger ones, of which files are better made."""
    waiting: list[np.ndarray] = []
    for block in blocks:
        waiting.append(block)
        if sum(map(len, waiting)) >= WRITTEN:
            yield np.concatenate(waiting)
            waiting = []
    if waiting:
        yield np.concatenate(waiting)


def _texts(values: np.ndarray) -> list[str]:
    return [f"{v:.9g}" for v in values] if values.dtype.kind == "f" else [str(v) for v in values]


def _write_parquet(path: Path, blocks: Iterator[dict[str, np.ndarray]], metadata: dict[str, str]) -> None:
    import pyarrow as pa
    from pyarrow.parquet import ParquetWriter

    with contextlib.ExitStack() as stack:
        writer = None
        for block in blocks:
            table = pa.table(block).replace_schema_metadata(metadata)
            if writer is None:
                writer = stack.enter_context(ParquetWriter(path, table.schema))
            writer.write_table(table)
