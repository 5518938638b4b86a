"""Whose classes a configuration may name: those of ndm, and of modules that the user allows by their names.

To name a class is to import its module, and to import a module is to run it. So this is decided before anything is
imported, here for ndm's own reading of configurations, and by the same list in jsonargparse.
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
from jsonargparse._common import parsing_settings  # which has no other way back
from torch import nn

from ndm.data import Data
from ndm.storage.texts import TooMuchError, check_yaml, require_regular
from ndm.training import TrainerOptions, TrainingOptions

__all__ = ["allowing", "as_modules", "find_here", "is_allowed", "not_allowed", "require_classes", "require_harmless"]

#: The modules that are allowed where a configuration is being read.
_ALLOWED: ContextVar[tuple[str, ...]] = ContextVar("allowed", default=("ndm",))

#: What a class of ndm in a configuration is one of: others may do more than to be built.
_KINDS = (nn.Module, Data, TrainingOptions, TrainerOptions)


def as_modules(names: Iterable[str]) -> tuple[str, ...]:
    """The names of modules that a user allows, each once.

    Raises:
        ValueError: one is not the name of a module.
    """
    found = tuple(dict.fromkeys(names))
    for name in found:
        if name.endswith(".py") or not all(word.isidentifier() for word in name.split(".")):
            slip = f"; it may be {os.path.basename(name)[:-3]!r}" if name.endswith(".py") else ""
            raise ValueError(f"--allow takes the name of a Python module, as in `import`, and {name!r} is none{slip}.")
        if name.partition(".")[0] == "jsonargparse":
            raise ValueError("jsonargparse, which decides what may be imported, cannot be allowed itself.")
    return found


@contextmanager
def allowing(modules: Iterable[str] = ()) -> Iterator[None]:
    """Let configurations name classes of ndm, and of these modules, and no others.

    Args:
        modules: their names; what is in a package of that name is allowed with it.
    """
    allowed = ("ndm", *as_modules(modules))
    before, token = dict(parsing_settings), _ALLOWED.set(allowed)
    try:
        set_parsing_settings(import_path_denylist=["*"], import_path_allowlist=list(allowed))
        yield
    finally:
        _ALLOWED.reset(token)
        parsing_settings.clear()
        parsing_settings.update(before)  # another parser of the program may have a rule of its own


def is_allowed(path: str) -> bool:
    """Whether a dotted path is in one of the modules that are allowed."""
    return any(path == name or path.startswith(f"{name}.") for name in _ALLOWED.get())


def not_allowed(path: str) -> ValueError:
    """What to raise for a class that was not imported."""
    module = path.rpartition(".")[0] or path
    return ValueError(
        f"The configuration names {path}, which is not a class of ndm, and it was not imported, since that would run "
        f"it. If you trust it, allow it: --allow {module}."
    )


def require_classes(values: Any) -> None:
    """Refuse what is neither a part, a data set nor options, though it is of ndm: a function would be called.

    Args:
        values: a configuration as jsonargparse has parsed it, before anything is built.

    Raises:
        ValueError: there is such a thing.
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
    """Refuse texts that jsonargparse had better not see: it reads a value as YAML, and as a file of that name.

    Args:
        tree: a configuration.
        overrides: of a command line.

    Raises:
        ValueError: a text would be too large or too deep as YAML, or is the path of a named pipe or the like.
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
        pass  # a text need not be YAML
    if "\0" not in text and os.path.exists(text) and not os.path.isdir(text):
        require_regular(text)


class _Here:
    """Finds some modules in the current folder, and their parts with them; no others, and after all other places."""

    def __init__(self, names: set[str]) -> None:
        self.names, self.folder = names, os.getcwd()

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if path is not None or name not in self.names:
            return None
        return importlib.machinery.PathFinder.find_spec(name, [self.folder], target)


def find_here(modules: Iterable[str]) -> None:
    """Let these modules be found in the current folder too, from now on; it is not among Python's places itself."""
    names = {name.partition(".")[0] for name in as_modules(modules)} - {"ndm"}
    if names:
        sys.meta_path.append(_Here(names))
