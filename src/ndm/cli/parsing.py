"""Command-line parsing: a parser that raises exceptions, and argument types."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from typing import Any, NoReturn

from ndm.storage.texts import did_you_mean

__all__ = [
    "Parser",
    "at_least",
    "natural",
    "positive",
    "seed",
    "share",
    "steps",
    "tolerance",
    "without_data",
    "workers",
]


#: Upper limit of integer options.
MOST = 1_000_000_000

#: Upper limit of worker processes.
MOST_WORKERS = 256


class Parser(argparse.ArgumentParser):
    """Argument parser that raises exceptions and suggests the closest valid option."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        known, unknown = self.parse_known_args(args, namespace)
        for option in unknown:
            options = [o for action in self._actions for o in action.option_strings]
            end = did_you_mean(option, options, f"there are {', '.join(options)}")
            raise ValueError(f"{self.prog} has no option {option.partition('=')[0]!r}{end}")
        return known

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{self.prog}: {message}; see `{self.prog} --help`.")


def without_data(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split arguments into those without and with the prefix --data., which argparse would misread."""
    left: list[str] = []
    data: list[str] = []
    for argument in arguments:
        follows = len(data) > 0 and len(data) % 2 == 1
        if follows:
            data.append(argument)
        elif argument.startswith("--data."):
            data += argument.split("=", 1)
        else:
            left.append(argument)
    if len(data) % 2:
        raise ValueError(f"{data[-1]} needs a value.")
    return left, data


def steps(text: str) -> int | None:
    return None if text == "continuous" else positive(text)


def positive(text: str) -> int:
    return at_least(1, text)


def natural(text: str) -> int:
    return at_least(0, text)


def tolerance(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a positive number, got {text!r}")
    return value


def share(text: str) -> float:
    """Parse a number between 0 and 1, without these."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"must be a number between 0 and 1, got {text[:40]!r}")
    return value


def at_least(low: int, text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = low - 1
    if value < low:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least {low}, got {text[:40]!r}")
    if value > MOST:
        raise argparse.ArgumentTypeError(f"must be at most {MOST:,}, got {text[:40]!r}")
    return value


def workers(text: str) -> int:
    """Parse a number of worker processes, which is limited so that a typing error does not stop the computer."""
    value = positive(text)
    if value > MOST_WORKERS:
        raise argparse.ArgumentTypeError(f"must be at most {MOST_WORKERS}, got {text!r}; use torchrun for more")
    return value


def seed(text: str) -> int:
    """Parse a seed that is valid for every random number generator."""
    value = int(text) if text.isdecimal() and len(text) < 20 else -1
    if not 0 <= value < 2**63:
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 to 2^63 - 1, got {text[:40]!r}")
    return value
