"""Available memory, and refusals of what does not fit in it. Nothing here needs PyTorch."""

from __future__ import annotations

import os
import zipfile

from ndm.storage.texts import require_regular

__all__ = ["TooLargeError", "free", "in_words", "require", "require_unpacked"]


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
