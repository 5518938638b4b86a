"""Modules whose classes a configuration may use: ndm, and modules that the user allows by name.

Resolving a class imports its module, which runs the module's code. The list is therefore checked before any import,
both by ndm's own configuration reader and by jsonargparse.
"""

from __future__ import annotations

import importlib.machinery
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from types import ModuleType
from typing import Any

from jsonargparse import Namespace, set_parsing_settings
from jsonargparse._common import parsing_settings  # there is no public API to restore the settings
from torch import nn

from ndm.data.base import Data
from ndm.storage.texts import TooMuchError, check_yaml, require_regular
from ndm.training.options import TrainerOptions, TrainingOptions

__all__ = ["allowing", "as_modules", "find_here", "is_allowed", "not_allowed", "require_classes", "require_harmless"]

#: The modules allowed in the current context.
_ALLOWED: ContextVar[tuple[str, ...]] = ContextVar("allowed", default=("ndm",))

#: Base classes of the ndm classes allowed in a configuration: building others may have side effects.
_KINDS = (nn.Module, Data, TrainingOptions, TrainerOptions)


def as_modules(names: Iterable[str]) -> tuple[str, ...]:
    """Return the names of the allowed modules, without duplicates.

    Raises:
        ValueError: a name is not a valid module name.
    """
    found = tuple(dict.fromkeys(names))
    for name in found:
        if name.endswith(".py") or not all(word.isidentifier() for word in name.split(".")):
            slip = f"; it may be {os.path.basename(name)[:-3]!r}" if name.endswith(".py") else ""
            raise ValueError(
                f"--allow takes the name of a Python module, as in `import`; {name!r} is not such a name{slip}."
            )
        if name.partition(".")[0] == "jsonargparse":
            raise ValueError(
                "--allow jsonargparse is not permitted, because jsonargparse controls which modules are imported."
            )
    return found


@contextmanager
def allowing(modules: Iterable[str] = ()) -> Iterator[None]:
    """Allow configurations to use classes of ndm and of these modules only.

    Args:
        modules: module names; submodules of a package are included.
    """
    allowed = ("ndm", *as_modules(modules))
    before, token = dict(parsing_settings), _ALLOWED.set(allowed)
    try:
        set_parsing_settings(import_path_denylist=["*"], import_path_allowlist=list(allowed))
        yield
    finally:
        _ALLOWED.reset(token)
        parsing_settings.clear()
        parsing_settings.update(before)  # other parsers of the program may have other rules


def is_allowed(path: str) -> bool:
    """Whether a dotted path is in one of the allowed modules."""
    return any(path == name or path.startswith(f"{name}.") for name in _ALLOWED.get())


def not_allowed(path: str) -> ValueError:
    """Return the exception for a class that is not allowed."""
    module = path.rpartition(".")[0] or path
    return ValueError(
        f"The configuration names {path}, which is not a class of ndm. It was not imported, because importing runs its "
        f"code. If you trust it, give --allow {module}."
    )


def require_classes(values: Any) -> None:
    """Raise an error for objects of ndm that are neither parts, data sets nor options: functions would be called.

    Args:
        values: configuration parsed by jsonargparse, before instantiation.

    Raises:
        ValueError: the configuration contains such an object.
    """
    from ndm.configs.explaining import class_of

    waiting = [values]
    while waiting:
        node = waiting.pop()
        inside = vars(node) if isinstance(node, Namespace) else node
        if isinstance(inside, dict):
            path = inside.get("class_path")
            if isinstance(path, str) and path.startswith("ndm."):
                found = class_of(path)
                if found is None or not issubclass(found, _KINDS):
                    raise ValueError(f"The configuration names {path}, which is neither a part nor a data set.")
            waiting += inside.values()
        elif isinstance(inside, (list, tuple)):
            waiting += inside
        elif callable(inside) and str(getattr(inside, "__module__", "")).partition(".")[0] == "ndm":
            raise ValueError(f"The configuration names the function {inside.__module__}.{inside.__qualname__}.")


def require_harmless(tree: Any, overrides: Sequence[str]) -> None:
    """Raise an error for strings that are unsafe for jsonargparse, which parses them as YAML and as file names.

    Args:
        tree: the configuration.
        overrides: command-line overrides.

    Raises:
        ValueError: a string is too large or too deeply nested as YAML, or is the path of a named pipe or similar.
    """
    waiting: list[Any] = [tree, *overrides]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            waiting += [*node, *node.values()]
        elif isinstance(node, list):
            waiting += node
        elif isinstance(node, str):
            _require_harmless(node.partition("=")[2] if node.startswith("--") else node)


def _require_harmless(text: str) -> None:
    try:
        check_yaml(text)
    except TooMuchError as error:
        raise ValueError(f"The text {text[:20]!r} ... cannot be a value of a configuration: {error}.") from None
    except ValueError:
        pass  # not valid YAML: allowed
    if "\0" not in text and os.path.exists(text) and not os.path.isdir(text):
        require_regular(text)


class _Here:
    """Import finder for some modules and their submodules in the current folder, used after all other finders."""

    def __init__(self, names: set[str]) -> None:
        self.names, self.folder = names, os.getcwd()

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if path is not None or name not in self.names:
            return None
        return importlib.machinery.PathFinder.find_spec(name, [self.folder], target)


def find_here(modules: Iterable[str]) -> None:
    """Make these modules importable from the current folder, which is not in ``sys.path``."""
    names = {name.partition(".")[0] for name in as_modules(modules)} - {"ndm"}
    if names:
        sys.meta_path.append(_Here(names))
