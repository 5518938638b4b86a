"""Computation of the scores of a block of rows."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import math
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ndm._internal.random import Drawn, seed_of
from ndm.evaluation.per_example import solved
from ndm.inference.likelihood import calibrate_solver, log_likelihood
from ndm.inference.sampling import sample
from ndm.method.encoding import TableEncoding
from ndm.model import NDM
from ndm.scoring.partial import MEASURED

__all__ = ["Scorer"]

#: Number of model samples for fitting the control variates of the bound, number of sampling steps, and number of groups
#: for the median of the slopes.
SAMPLES, STEPS, GROUPS = 64, 10, 8

#: Minimum number of rows, a power of two, for computing the bound: CPUs process the remainder of a vector differently,
#: with other rounding errors. For rows as large as images, exactly this number is used.
TOGETHER, LARGE, LARGE_TOGETHER = 32, 256, 16


class Scorer:
    """Compute scores of blocks of rows; ``options`` are those of :func:`log_likelihood`."""

    def __init__(
        self, model: NDM, likelihood: bool, times: int, options: dict[str, Any], precision: str, seed: int
    ) -> None:
        self.model = copy.deepcopy(model).double() if precision == "64" else model
        self.likelihood, self.times, self.options = likelihood, times, options
        self.precision, self.seed = precision, seed
        self.slopes: list[float] = []  # one per stratum
        self.kind = ""
        parameter = next(iter(model.parameters()), torch.empty(0))
        self.device = parameter.device
        self.dtype = torch.float64 if precision == "64" else torch.float32

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        """Context manager for evaluation mode and the requested precision of the networks."""
        was_training = self.model.training
        self.model.eval()
        half = self.precision == "bf16"
        try:
            with torch.no_grad(), torch.autocast(self.device.type, torch.bfloat16, enabled=half):
                yield
        finally:
            self.model.train(was_training)

    def __call__(self, job: tuple[int, Tensor, Tensor | None]) -> tuple[np.ndarray, str]:
        """The scores of a block, (n, 5), and the description of its log-likelihood: for worker processes.

        Args:
            job: index of the block, the rows, and their labels.
        """
        with self.at_work():
            return self.measure(*job), self.kind

    def measure(self, block: int, x: Tensor, labels: Tensor | None = None) -> np.ndarray:
        """Compute the scores of a block, (n, 5), in the order of :data:`~ndm.scoring.partial.MEASURED`.

        Args:
            block: its index, which determines the random numbers of log-likelihoods.
            x: the rows, (n, \\*shape).
            labels: their classes, int64 (n,), for a class-conditional model.
        """
        x, labels = self._on_device(x), None if labels is None else labels.to(self.device)
        found = torch.full((len(x), len(MEASURED)), math.nan, dtype=torch.float64)
        found[:, 0], found[:, 1] = self._bound(x, labels)
        if self.likelihood:
            hopeless = ~found[:, 0].isfinite()  # too far from the data to be solved
            found[:, 2:], kind, _ = solved(self.model, x, labels, hopeless, self._generator(block, 1), self.options)
            self.kind = kind or self.kind
        return found.numpy()

    def _on_device(self, x: Tensor) -> Tensor:
        """The rows in the precision of the model; those of a table with an encoding in float64, as they are in it."""
        table = isinstance(self.model.standardize, TableEncoding)
        return x.to(self.device, torch.float64 if table else self.dtype)

    def _generator(self, *numbers: int) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(seed_of(self.seed, *numbers))

    def _bound(self, x: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        """Compute the bound and its standard error, each (n,).

        The random numbers are per row, and the sizes of the pieces ensure that a result does not depend on the other
        rows of the file.
        """
        found, start = [], 0
        for size in _pieces(len(x), large=x[0].numel() >= LARGE and x.device.type == "cpu"):
            rows = torch.arange(start, start + size, device=x.device).clamp(max=len(x) - 1)  # padded with the last one
            found.append(self._bound_of_piece(x[rows], _some(labels, rows)))
            start += size
        mean, error = (torch.cat(part)[: len(x)] for part in zip(*found, strict=True))
        return mean, error

    def _bound_of_piece(self, x: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        """As :meth:`_bound`, for few rows: two noise levels per stratum, which give the variance of the bound."""
        u, noise = self._noise_of(x)
        mean, variance = torch.zeros(2, len(x), dtype=torch.float64)
        for stratum, slope in enumerate(self.slopes):
            pair = []
            for i in (2 * stratum, 2 * stratum + 1):
                total, control = self._draw(x, labels, stratum, u[i], noise[i], check=i == 0)
                pair.append(total - slope * control)
            mean += (pair[0] + pair[1]) / self.times
            variance += (pair[0] - pair[1]) ** 2 / self.times**2
        return mean, variance.sqrt()

    def _noise_of(self, x: Tensor) -> tuple[Tensor, list[list[Tensor]]]:
        """Uniform numbers, (times, n), and the noise of the bound at each time, from the seed and the row.

        The noise is what the bound requests in turn: that of the latent, if there is one, of z_t, and of z_0.
        """
        u = torch.empty(len(x), self.times, dtype=torch.float64)
        shape = self.model.latent_shape(x.shape[1:])
        noise = torch.empty(len(x), self.times, 2, *shape, dtype=self.dtype)
        of_latent = torch.empty(len(x), self.times, self._latent_size, dtype=self.dtype)
        generator, key = torch.Generator(), self.seed.to_bytes(16, "little")
        rows = (
            (x.detach().cpu().to(torch.promote_types(x.dtype, torch.float32)) + 0.0).flatten(1).numpy()
        )  # maps -0 to 0
        for i, row in enumerate(rows):
            digest = hashlib.blake2b(row.tobytes(), digest_size=8, key=key).digest()
            generator.manual_seed(int.from_bytes(digest, "little") >> 1)
            torch.rand(u[i].shape, generator=generator, out=u[i])
            torch.randn(noise[i].shape, generator=generator, out=noise[i])
            torch.randn(of_latent[i].shape, generator=generator, out=of_latent[i])
        parts = zip(of_latent.to(self.device).unbind(1), noise.movedim(0, 2).to(self.device), strict=True)
        return u.T.to(self.device), [self._in_turn(code, two) for code, two in parts]

    @property
    def _latent_size(self) -> int:
        return 0 if self.model.latent is None else self.model.latent.size

    @staticmethod
    def _in_turn(code: Tensor, two: Tensor) -> list[Tensor]:
        """The noise of a time: of the latent, (n, size), if its size is not 0, and of z_t and z_0, (2, n, \\*shape)."""
        return [*([code] if code.shape[1] else []), *two]

    def _draw(
        self, x: Tensor, labels: Tensor | None, stratum: int, u: Tensor, noise: list[Tensor], check: bool
    ) -> tuple[Tensor, Tensor]:
        """Compute the bound at a noise level of a stratum, and a control variate of mean zero, each (n,).

        Near the data eps_hat is small, and the variance of gamma' |eps - eps_hat|^2 / 2 is mostly that of |eps|^2,
        whose mean is known.
        """
        times = 2 * (stratum + u) / self.times
        total = self.model.bound(x, labels=labels, times=times, generator=Drawn(noise), check=check).total
        weight = self.model.schedule(times.to(x)).dgamma / 2
        return total.double().cpu(), (weight * (noise[-2].square() - 1).flatten(1).sum(1)).double().cpu()

    def prepare(self, x: Tensor) -> None:
        """Check some rows, calibrate the solver, and fit the control variates of :meth:`_draw` to samples of the model,
        of all classes in turn.

        The bound remains unbiased, and a row's score does not depend on other rows. The median of the slopes of several
        groups of samples is robust to outliers.

        Raises:
            ValueError: the data do not fit the model.
        """
        x = self._on_device(x)
        self.model.to_model(x)
        classes = self.model.num_classes
        labels = torch.arange(SAMPLES, device=self.device) % classes if classes else None
        self.model.bound(x[:1], labels=_some(labels, slice(1)), times=torch.zeros(1, device=self.device))
        if self.likelihood:
            known = {name: self.options[name] for name in ("divergence", "tolerance")}
            calibration = calibrate_solver(self.model, x[:1], labels=bool(classes), **known)
            self.options = self.options | {"calibration": calibration}
        generator = self._generator(0, 3)
        some = sample(self.model, SAMPLES, x.shape[1:], steps=STEPS, labels=labels, generator=generator, progress=False)
        some = self._on_device(some)
        usable = ~some.isinf().flatten(1).any(1)
        if not isinstance(self.model.standardize, TableEncoding):  # in a table NaN is a missing cell
            usable &= ~some.isnan().flatten(1).any(1)
        some, labels = some[usable], _some(labels, usable)
        for stratum in range(self.times // 2):
            if len(some) < GROUPS:
                self.slopes.append(0.0)
                continue
            pair = []
            for _ in range(2):
                u = torch.rand(len(some), generator=generator, dtype=torch.float64, device=self.device)
                shape = (2, len(some), *self.model.latent_shape(some.shape[1:]))
                two = torch.randn(shape, generator=generator, dtype=self.dtype, device=self.device)
                size = len(some), self._latent_size
                code = torch.randn(size, generator=generator, dtype=self.dtype, device=self.device)
                noise = self._in_turn(code, two)
                pair.append(torch.stack(self._draw(some, labels, stratum, u, noise, check=False)))
            y, control = pair[0] - pair[1]
            products = ((y * control).tensor_split(GROUPS), control.square().tensor_split(GROUPS))
            slopes = torch.stack([a.sum() / b.sum() for a, b in zip(*products, strict=True)])
            slopes = slopes[slopes.isfinite()]
            # Rounded, so that it does not depend on the number of threads.
            self.slopes.append(round(slopes.median().item(), 3) if len(slopes) else 0.0)

    def check(self, x: Tensor, labels: Tensor | None = None) -> tuple[str, float | None]:
        """Return a description of the log-likelihood, and its mean change with finer steps in float64."""
        x, place = self._on_device(x), (0, 2)
        labels = None if labels is None else labels.to(self.device)
        finer = self.options | {"tolerance": self.options["tolerance"] / 100, "calibration": None}
        with warnings.catch_warnings(), contextlib.suppress(RuntimeError):
            warnings.simplefilter("ignore", RuntimeWarning)  # missed tolerances are counted
            rough = log_likelihood(self.model, x, labels=labels, generator=self._generator(*place), **self.options)
            self.kind = rough.kind
            if self.device.type == "mps":  # no float64 support
                return self.kind, None
            model, x = copy.deepcopy(self.model).double(), x.double()
            with torch.autocast(self.device.type, enabled=False):
                if rough.stderr.any():  # random numbers differ in float64, so both must use it
                    rough = log_likelihood(model, x, labels=labels, generator=self._generator(*place), **self.options)
                fine = log_likelihood(model, x, labels=labels, generator=self._generator(*place), **finer)
            change = (rough.log_prob - fine.log_prob).abs()
            change = change[change.isfinite()]
            return self.kind, change.mean().item() if len(change) else None
        return self.kind, None


def _pieces(n: int, large: bool) -> Iterator[int]:
    """Return the sizes of the pieces for n rows; the last may exceed the number of remaining rows."""
    while n > 0:
        size = LARGE_TOGETHER if large else max(TOGETHER, 2 ** (n.bit_length() - 1))
        yield size
        n -= size


def _some(labels: Tensor | None, rows: Tensor | slice) -> Tensor | None:
    return None if labels is None else labels[rows]
