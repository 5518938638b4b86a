r"""Conversion of user arguments to tensors in the precision and on the device of the model.

Data and labels may be tensors of any precision, NumPy arrays, pandas or Polars tables, or nested lists. They are
converted to tensors with at least float32: the bound weights errors by e^{-gamma}, up to 6e5, but half precision has
three digits and float16 a maximum of 65,504 (see :mod:`ndm._internal.precision`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = [
    "Values",
    "as_labels",
    "as_numbers",
    "as_tensor",
    "at_least_single",
    "check_examples",
    "check_labels",
    "check_steps",
    "device_of",
    "known_classes",
    "network_of",
    "precision_of",
    "state_like",
]

#: Accepted in place of a tensor: a NumPy array, a DataFrame, or nested lists of numbers.
Values = Any

#: Precisions too low for the bound.
_HALF = (torch.float16, torch.bfloat16)


def as_tensor(values: Values, what: str = "data") -> Tensor:
    """Convert tensors, NumPy arrays, DataFrames or nested lists to a numeric tensor of the same shape and precision.

    Args:
        values: the numbers.
        what: the name of the values in messages, a plural.

    Raises:
        ValueError: the type is not supported, the values are text or complex numbers, or the lists are ragged.

    Example:
        >>> as_tensor([[0.5, 1.0], [2.0, 3.0]]).shape
        torch.Size([2, 2])
        >>> as_tensor(np.arange(3, dtype=np.float32))
        tensor([0., 1., 2.])
    """
    if isinstance(values, Tensor):
        if values.is_complex() or values.layout != torch.strided:
            raise ValueError(f"The {what} must be real numbers in a dense tensor, got {values.dtype}, {values.layout}.")
        return values
    array = _as_array(values, what)
    if array.dtype.kind not in "fiub":
        raise ValueError(f"The {what} must be numbers, got {_kind_of(array)}.")
    if array.dtype.kind == "f" and array.dtype.itemsize > 8:
        array = array.astype(np.float64)
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:
        array = array.astype(np.int64)  # PyTorch supports few operations on unsigned types
    if array.dtype.byteorder not in "=|" or not array.flags.writeable or min(array.strides, default=0) < 0:
        array = np.array(array, dtype=array.dtype.newbyteorder("="))
    return torch.from_numpy(array)


def _as_array(values: Values, what: str) -> np.ndarray:
    if hasattr(values, "columns") and hasattr(values, "to_numpy"):
        return _table(values, what)
    if isinstance(values, (str, bytes, dict)) or values is None:
        raise ValueError(f"The {what} must be a tensor, an array, a table or lists of numbers, got {values!r:.60}.")
    if isinstance(values, Sequence) and any(isinstance(v, Tensor) for v in values):
        values = [v.detach().cpu().numpy() if isinstance(v, Tensor) else v for v in values]
    try:
        array = np.asarray(values)
    except (ValueError, TypeError):  # raised by NumPy for ragged lists
        raise ValueError(f"The {what} must be numbers in lists of equal lengths.") from None
    if array.dtype != object:
        return array
    return _numbers(array, what, f"are a {type(values).__name__} with other values")


def _table(values: Any, what: str) -> np.ndarray:
    """A DataFrame's values, (rows, columns): integers if all columns are."""
    array = np.asarray(values.to_numpy())
    if array.dtype != object and array.dtype.kind in "fiub":
        return array
    columns = [(str(name), np.asarray(values[name].to_numpy())) for name in values.columns]
    found = [_numbers(column, what, f"have a non-numeric column {name!r}") for name, column in columns]
    return np.stack(found, 1) if found else np.zeros((len(array), 0))


def _numbers(array: np.ndarray, what: str, complaint: str) -> np.ndarray:
    """Convert an object array to numbers; missing values become NaN."""
    if array.dtype.kind in "fiub":
        return array
    if array.dtype == object and not any(isinstance(v, (str, bytes)) for v in array.flat):
        missing = np.array([v is None or type(v).__name__ == "NAType" for v in array.flat]).reshape(array.shape)
        try:
            return np.where(missing, np.nan, array).astype(np.float64)
        except (ValueError, TypeError):
            pass
    raise ValueError(f"The {what} must be numbers, but {complaint}: remove these values or convert them to numbers.")


def _kind_of(array: np.ndarray) -> str:
    kinds = {"U": "text", "S": "text", "T": "text", "c": "complex numbers", "M": "dates", "m": "durations"}
    return kinds.get(array.dtype.kind, f"of NumPy's type {array.dtype}")


def at_least_single(x: Tensor) -> Tensor:
    """Convert half precision to single precision; other tensors are unchanged."""
    return x.float() if x.dtype in _HALF else x


def precision_of(model: Any) -> torch.dtype | None:
    """The precision of a model's denoiser network, or else of its transformation's; None if neither has weights.

    Raises:
        ValueError: the weights are in half precision.
    """
    for part in (model.denoiser, model.transform):
        for weight in part.parameters():
            if weight.is_floating_point():
                if weight.dtype in _HALF:
                    raise ValueError(
                        f"The model's weights have half precision ({weight.dtype}), which is too low for the bound and "
                        "the samplers: convert them with model.float(), and use torch.autocast to run only the "
                        "networks in bfloat16 (--precision bf16 on the command line)."
                    )
                return weight.dtype
    return None


def device_of(model: Any) -> torch.device | None:
    """The device of a model; None if it has neither parameters nor buffers."""
    for tensors in (model.denoiser.parameters(), model.parameters(), model.buffers()):
        for tensor in tensors:
            return tensor.device
    return None


def as_numbers(model: Any, values: Values, what: str = "states") -> Tensor:
    """Convert values to a floating-point tensor in the precision and on the device of a model.

    Raises:
        ValueError: the values are not numbers, or the model's weights are in half precision.
    """
    x = as_tensor(values, what)
    x = at_least_single(x) if x.is_floating_point() else x.to(torch.get_default_dtype())
    return x.to(device_of(model), precision_of(model) or x.dtype)


def state_like(model: Any, n: int, shape: Sequence[int], dtype: torch.dtype | None = None) -> Tensor:
    """An empty tensor, (n, \\*shape), on the device and in the precision of a model's samples.

    Args:
        model: the model.
        n: the number of samples.
        shape: the shape of one sample.
        dtype: the precision; None for the model's.

    Raises:
        ValueError: the precision is not the model's or below single precision, or the shape is invalid.
    """
    own = precision_of(model)
    if dtype is None:
        first = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.get_default_dtype())
        dtype = own or torch.promote_types(first, torch.float32)
    elif dtype in _HALF or not dtype.is_floating_point:
        raise ValueError(f"Samples can be drawn in float32 or float64, not in {dtype}: convert them afterwards.")
    elif own is not None and dtype != own:
        raise ValueError(
            f"The samples have the dtype of the model's weights, {own}, not {dtype}: convert the samples afterwards, "
            "or the model first with model.double() or model.float()."
        )
    if isinstance(shape, int) or not all(isinstance(side, (int, np.integer)) and side > 0 for side in shape):
        raise ValueError(
            f"The shape of an example must be a tuple of integers, such as (2,) or (1, 28, 28), got {shape!r}."
        )
    return torch.empty(n, *shape, dtype=dtype, device=device_of(model))


def check_examples(data: Tensor, shape: tuple[int, ...] | None = None) -> None:
    """Raise a ValueError unless data is a batch of at least one example, (B, \\*shape).

    Args:
        data: the batch.
        shape: the shape of one example, or one that broadcasts to it; None if unknown.
    """
    if data.ndim < 2:
        raise ValueError(
            f"The data must be a batch of examples, (B, *shape), got shape {tuple(data.shape)}: pass a single example "
            "as x[None], and scalar examples as x[:, None]."
        )
    if 0 in data.shape:
        raise ValueError(f"The batch is empty: its shape is {tuple(data.shape)}; give at least one example.")
    if shape and not _fits(tuple(data.shape[1:]), shape):
        raise ValueError(f"The model expects examples of shape {shape}, got shape {tuple(data.shape[1:])}.")


def _fits(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    """Whether ``to`` broadcasts to ``shape``."""
    return len(to) <= len(shape) and all(b in (1, a) for a, b in zip(shape[::-1], to[::-1], strict=False))


def check_steps(steps: Any) -> None:
    """Raise a ValueError unless ``steps`` is an integer of at least 1."""
    if isinstance(steps, bool) or not isinstance(steps, (int, np.integer)):
        raise ValueError(f"The number of steps must be a whole number, got {steps!r}.")
    if steps < 1:
        raise ValueError(f"The number of steps must be at least 1, got {steps}.")


# ---- labels


def network_of(denoiser: nn.Module) -> nn.Module:
    """The network of a denoiser; the denoiser itself if it is one."""
    return getattr(denoiser, "net", getattr(denoiser, "module", denoiser))


def known_classes(denoiser: nn.Module) -> int:
    """K, the number of classes of a denoiser's network; 0 for an unconditional network."""
    return int(getattr(network_of(denoiser), "classes", 0) or 0)


def as_labels(model: Any, labels: Values | None, n: int, check: bool = True) -> Tensor | None:
    """Class labels as a tensor, (n,), on the model's device; integers if the denoiser's network has classes.

    Given columns of a table, (n, columns), and the latent of a model, (n, size), take the place of the labels.

    Args:
        model: the model.
        labels: a tensor, an array, a list; None for none.
        n: the number of examples.
        check: validate their number and their values.

    Raises:
        ValueError: there are not n of them, or one is not among 0 ... K - 1. (K means "no class" and is used only by
            training and guidance; for samples without a class use ``guidance=-1``.)
    """
    if labels is None or (not check and isinstance(labels, Tensor)):
        return labels
    found = as_tensor(labels, "labels")
    given = getattr(model.denoiser, "given_size", None)
    if given is not None:  # a conditional of a table, of which the given columns take the place of the labels
        if found.shape != (n, given):
            raise ValueError(f"The given columns of {n} rows have the shape {(n, given)}, not {tuple(found.shape)}.")
        return found.to(device_of(model), precision_of(model) or found.dtype)
    if model.latent is not None:
        size = model.latent.size
        if found.shape != (n, size):
            raise ValueError(
                f"This model has no classes, but a latent: labels are {n} values of it, of shape {(n, size)}, not "
                f"{tuple(found.shape)}."
            )
        if not found.isfinite().all():
            raise ValueError("The values of the latent must be finite numbers.")
        return found.to(device_of(model), precision_of(model) or found.dtype)
    if found.shape != (n,):
        raise ValueError(f"Each of the {n} examples needs one label, got labels of shape {tuple(found.shape)}.")
    classes = known_classes(model.denoiser)
    if classes:
        found = check_labels(found, classes)
    return found.to(device_of(model))


def check_labels(labels: Tensor, classes: int) -> Tensor:
    """Labels, (n,), as integers.

    Raises:
        ValueError: a label is not among 0 ... ``classes`` - 1.
    """
    low, high = labels.min().item(), labels.max().item()
    if not (low >= 0 and high < classes):  # also true for nan
        missing = "; -1 and nan often stand for a missing label" if low == -1 or low != low else ""
        raise ValueError(
            f"The labels must be 0 ... {classes - 1}, because the network has {classes} classes; got {low:g} ... "
            f"{high:g}{missing}."
        )
    whole = labels.long()
    if labels.is_floating_point() and not (whole == labels).all():
        raise ValueError(f"The labels must be integers from 0 to {classes - 1}, got non-integer values.")
    return whole
