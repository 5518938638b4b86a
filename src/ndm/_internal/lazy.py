"""Lazy import of public names (PEP 562)."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["lazy"]


def lazy(package: str, homes: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The ``__getattr__`` and ``__dir__`` of a package whose public names are defined in its submodules.

    Args:
        package: the name of the package.
        homes: the module of each public name, relative to the package.
    """

    def getattribute(name: str) -> Any:
        module = sys.modules[package]
        if name in homes:
            value = getattr(importlib.import_module(f"{package}.{homes[name]}"), name)
            setattr(module, name, value)
            return value
        if not name.startswith("_") and importlib.util.find_spec(f"{package}.{name}") is not None:
            return importlib.import_module(f"{package}.{name}")  # as in ndm.networks.UNet
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    def directory() -> list[str]:
        return sorted([*homes, *(name for name in vars(sys.modules[package]) if name == "__version__")])

    return getattribute, directory
