"""Available memory, and limits on allocations requested by files."""

from __future__ import annotations

import math
import os
import zipfile
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ndm.storage.texts import require_regular

__all__ = ["Allowance", "TooLargeError", "free", "in_words", "require", "require_unpacked"]

#: The largest number of tensors created to build a network; networks with thousands of layers have fewer.
MOST_TENSORS = 20_000


class TooLargeError(ValueError):
    """Raised if more memory is requested than is available, or than the size of a file allows."""


def free() -> float:
    """The bytes of memory available to this process; infinity if unknown.

    This is the minimum of the free memory of the machine, the limit of the control group, and the limit of the process
    (``ulimit -v``).
    """
    return max(0.0, min(_of_the_computer(), _of_the_group(), _of_the_process()))


def _of_the_computer() -> float:
    try:
        with open("/proc/meminfo") as file:
            known = dict(line.split(":", 1) for line in file)
        return 1024 * float(known["MemAvailable"].split()[0])
    except (OSError, KeyError, ValueError):
        pass
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (OSError, ValueError, AttributeError):
        return float("inf")


def _of_the_group() -> float:
    """The memory available within the Linux control group (version 2), as in a container."""
    folder = "/sys/fs/cgroup"
    try:
        with open(f"{folder}/memory.max") as file:
            limit = float(file.read())  # or the string "max"
        with open(f"{folder}/memory.current") as file:
            used = float(file.read())
        with open(f"{folder}/memory.stat") as file:
            cached = next(float(line.split()[1]) for line in file if line.startswith("inactive_file "))
        return limit - used + cached
    except (OSError, ValueError, StopIteration):
        return float("inf")


def _of_the_process() -> float:
    try:
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if limit == resource.RLIM_INFINITY:
            return float("inf")
        with open("/proc/self/statm") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
        return float(limit - used)
    except (ImportError, OSError, ValueError):
        return float("inf")


def require(wanted: float, what: str, advice: str) -> None:
    """Raise an error if more memory is needed than available.

    Args:
        wanted: the number of bytes.
        what: what needs them, the beginning of the message.
        advice: what to do, the end of the message.

    Raises:
        TooLargeError: not enough memory is available.
    """
    there = free()
    if wanted > there:
        raise TooLargeError(
            f"{what} needs about {in_words(wanted)} of memory, but only {in_words(there)} are free: {advice}."
        )


def require_unpacked(path: str | os.PathLike[str]) -> None:
    """Raise an error for a compressed ``torch.save`` file; PyTorch writes uncompressed files.

    Raises:
        ValueError: the file is compressed or is not a ``torch.save`` file.
        OSError: reading fails.
    """
    require_regular(path)
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise ValueError(f"it is not an archive: {error}") from None
    packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
    if packed or sum(entry.file_size for entry in entries) > os.path.getsize(path):
        raise ValueError("it is compressed, or larger when unpacked")


def in_words(count: float) -> str:
    """Format a number of bytes with two digits.

    Example:
        >>> in_words(3.2e9), in_words(4e18), in_words(120)
        ('3.2 GB', '4,000,000,000 GB', '0.00012 MB')
    """
    if count < 1e8:
        return f"{count / 1e6:.2g} MB"
    rounded = float(f"{count / 1e9:.2g}")
    return f"{rounded:.2g} GB" if rounded < 10 else f"{rounded:,.0f} GB"


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
