"""Limits on the tensors created to build a model that a file describes."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ndm.storage.memory import TooLargeError, in_words

__all__ = ["Allowance"]

#: The largest number of tensors created to build a network; networks with thousands of layers have fewer.
MOST_TENSORS = 20_000


class Allowance(TorchFunctionMode):
    """A context in which the tensors created are limited to a number of bytes; larger requests raise an error.

    PyTorch functions with an explicit size are checked before the call, all others afterwards.

    Args:
        most: the largest number of bytes of all tensors.
        what: what requests them, the beginning of the message.
        advice: what to do, the end of the message.

    Raises:
        TooLargeError: if more bytes, or more tensors than a network can have, are requested.
    """

    def __init__(self, most: float, what: str, advice: str) -> None:
        super().__init__()
        self.most, self.what, self.advice = most, what, advice
        self.made, self.tensors = 0, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        told = _size_told(func, args, kwargs)
        if told is not None:
            self._take(told)
        found = func(*args, **kwargs)
        if told is None and isinstance(found, Tensor) and not any(_share(found, value) for value in args):
            self._take(found.nbytes)
        return found

    def _take(self, count: int) -> None:
        self.made += count
        self.tensors += 1
        if self.made > self.most:
            size = f", one of them of {in_words(count)}" if 2 * count > self.most else ""
            raise TooLargeError(f"{self.what} needs tensors of more than {in_words(self.most)}{size}: {self.advice}.")
        if self.tensors > MOST_TENSORS:
            raise TooLargeError(f"{self.what} needs more than {MOST_TENSORS:,} tensors: {self.advice}.")


#: Functions with an explicit size, and the position of that argument.
_BY_SIZE = {torch.empty, torch.zeros, torch.ones, torch.rand, torch.randn}
_BY_ARGUMENT = {torch.full: 0, torch.randint: 2, torch.linspace: 2, torch.eye: 0, torch.randperm: 0}
_NEW = {Tensor.new_empty, Tensor.new_zeros, Tensor.new_ones}


def _size_told(func: Any, args: Any, kwargs: Any) -> int | None:
    """The bytes of the tensor created by a call, or None if its arguments do not determine them."""
    if func in _BY_SIZE:
        size = args or kwargs.get("size", ())
    elif func in _NEW:
        size = args[1:] or kwargs.get("size", ())
    elif func in _BY_ARGUMENT and len(args) > _BY_ARGUMENT[func]:
        size = args[_BY_ARGUMENT[func]]
        size = (size, size) if func is torch.eye else size
    else:
        return None
    if len(size) == 1 if isinstance(size, (list, tuple)) else False:
        size = size[0]
    try:
        count = math.prod(size) if isinstance(size, (list, tuple)) else int(size)
    except (TypeError, ValueError):
        return None
    kind = kwargs.get("dtype") or (args[0].dtype if func in _NEW else torch.get_default_dtype())
    return max(0, count) * kind.itemsize


def _share(found: Tensor, value: Any) -> bool:
    """Whether two values share memory: a view, or the result of an in-place operation."""
    if not isinstance(value, Tensor) or value.layout != torch.strided or found.layout != torch.strided:
        return found is value
    return value.untyped_storage().data_ptr() == found.untyped_storage().data_ptr()
