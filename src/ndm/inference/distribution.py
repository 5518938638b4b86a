"""A model as a distribution with ``log_prob`` and ``sample``, in the manner of ``torch.distributions``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ndm._internal.inputs import Values, as_tensor, precision_of
from ndm.inference.likelihood import log_likelihood
from ndm.inference.sampling import sample
from ndm.method.conditionals import column_numbers, conditional
from ndm.method.encoding import TableEncoding
from ndm.method.process import Process

__all__ = ["ModelDistribution"]


class ModelDistribution:
    r"""The distribution of a model, or of a batch of its conditionals: ``model(condition)``.

    Args:
        model: the model.
        condition: None for the density of the data; class labels, a number or (B,), for a class-conditional model;
            values of the latent of a model with one, (size,) or (B, size); or, for a model of a table, a dictionary
            from given columns to their cells as numbers, (B,) each.

    Attributes:
        batch_shape: () without a condition or for one label, else (B,).
        event_shape: the shape of one example; of a table given some columns, the number of the others.

    Raises:
        ValueError: the model does not know the condition, or the shape of an example is unknown.
    """

    def __init__(self, model: Process, condition: Values | Mapping[str, Values] | None = None) -> None:
        self.model, self.labels = model, None
        self.batch_shape = torch.Size()
        shape = None if model.standardize is None else model.standardize.shape
        if isinstance(condition, Mapping):
            self.model, self.labels, n = _of_columns(model, condition)
            self.batch_shape = torch.Size([n])
            shape = self.model.standardize.shape  # type: ignore[union-attr]
        elif condition is not None:
            labels = as_tensor(condition, "labels")
            width = () if model.latent is None else labels.shape[-1:]
            self.batch_shape = labels.shape[: labels.ndim - len(width)]
            self.labels = labels.reshape(-1, *width)
        self.event_shape = None if not shape else torch.Size(shape)

    def log_prob(self, x: Values, **options: Any) -> Tensor:
        r"""log p(x) or log p(x \| condition), in nats: :func:`ndm.log_likelihood`, for K-level data and for a model
        with a latent a lower bound.

        Args:
            x: (\*batch, \*event_shape); its batch is broadcast with ``batch_shape``.
            options: of :func:`ndm.log_likelihood`.

        Returns:
            The shape of the batch.

        Raises:
            ValueError: as for :func:`ndm.log_likelihood`.
        """
        data = as_tensor(x)
        event = data.shape[1:] if self.event_shape is None else self.event_shape
        batch = torch.broadcast_shapes(data.shape[: data.ndim - len(event)], self.batch_shape)
        rows = data.expand(*batch, *event).reshape(-1, *event)
        return log_likelihood(self.model, rows, labels=self._labels(batch), **options).log_prob.reshape(batch)

    def sample(self, sample_shape: Sequence[int] = (), **options: Any) -> Tensor:
        r"""Samples, (\*sample_shape, \*batch_shape, \*event_shape).

        Args:
            sample_shape: how many, as in ``(100,)``.
            options: of :func:`ndm.sample`; ``shape``, the shape of one example, if the model does not know it.

        Raises:
            ValueError: as for :func:`ndm.sample`.
        """
        shape = tuple(options.pop("shape", self.event_shape) or ())
        if not shape:
            raise ValueError("The model does not know the shape of an example: give it, as in shape=(1, 8, 8).")
        batch = (*sample_shape, *self.batch_shape)
        found = sample(self.model, math.prod(batch), shape, labels=self._labels(batch), **options)
        return found.reshape(*batch, *shape)

    def _labels(self, batch: Sequence[int]) -> Tensor | None:
        if self.labels is None:
            return None
        width = self.labels.shape[1:]
        own = self.labels.reshape((*self.batch_shape, *width))
        return own.expand((*batch, *width)).reshape((-1, *width))

    def __repr__(self) -> str:
        event = None if self.event_shape is None else tuple(self.event_shape)
        return f"ModelDistribution(batch_shape={tuple(self.batch_shape)}, event_shape={event})"


def _of_columns(model: Process, condition: Mapping[str, Values]) -> tuple[Process, Tensor, int]:
    """The model of the other columns, the given codes and values, (B, g), and B."""
    encoding = model.standardize
    if not isinstance(encoding, TableEncoding):
        raise ValueError("A condition on columns is for a model of a table.")
    given = column_numbers(encoding, list(condition))
    others = [i for i in range(len(encoding.table)) if i not in given]
    own = conditional(model, others, given)
    cells = torch.broadcast_tensors(
        *(torch.atleast_1d(as_tensor(v, "given cells").double()) for v in condition.values())
    )
    order = sorted(range(len(given)), key=given.__getitem__)
    rows = torch.stack([cells[i] for i in order], 1)
    labels = encoding.restricted(sorted(given))(rows).to(precision_of(model) or torch.float32)
    return own, labels, len(rows)
