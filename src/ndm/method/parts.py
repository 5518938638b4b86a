"""The base class of all components: it records its constructor arguments, so that it can be saved and rebuilt.

A model is a tree of parts. Its configuration is the tree of their classes and constructor arguments, in jsonargparse's
format (``class_path`` and ``init_args``), which configuration files use too.
"""

from __future__ import annotations

import copy
import functools
import importlib
import inspect
import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from torch import nn

__all__ = ["Part", "class_path", "current_path", "from_config", "with_defaults"]


class Part(nn.Module):
    """An ``nn.Module`` that records the arguments of its constructor.

    Subclasses write an ordinary ``__init__``. An argument that is a module must be stored under its own name
    (``self.net = net``): the configuration then describes the current module. Numbers and strings stored under their
    own name are also read at their current value.

    Example:
        >>> import ndm
        >>> ndm.LinearSchedule(gamma_min=-10.0).config()
        {'class_path': 'ndm.LinearSchedule', 'init_args': {'gamma_min': -10.0, 'gamma_max': 5.0}}
    """

    _arguments: Mapping[str, Any] = MappingProxyType({})  # for a class without its own constructor
    _kept: Mapping[str, Any] = MappingProxyType({})  # the attributes set by the constructor under the arguments' names

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" not in cls.__dict__:
            return
        init = cls.__dict__["__init__"]
        signature = inspect.signature(init)

        @functools.wraps(init)
        def recording_init(self: Part, *args: Any, **kwargs: Any) -> None:
            outermost = "_arguments" not in self.__dict__  # it is the constructor of the class itself
            if outermost:
                bound = signature.bind(self, *args, **kwargs)
                bound.apply_defaults()
                arguments = dict(list(bound.arguments.items())[1:])
                for parameter in signature.parameters.values():
                    if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                        arguments.update(arguments.pop(parameter.name, {}))
                object.__setattr__(self, "_arguments", {k: _recorded(v) for k, v in arguments.items()})
            init(self, *args, **kwargs)
            if outermost:
                object.__setattr__(self, "_kept", {k: _trace(getattr(self, k, None)) for k in self._arguments})

        cls.__init__ = recording_init  # type: ignore[method-assign, assignment]

    def config(self) -> dict[str, Any]:
        """The part's class and constructor arguments as nested JSON types.

        Raises:
            TypeError: an argument cannot be represented (for example a function, or a module that is not a ``Part``).
        """
        arguments = {k: self._argument_now(k, v) for k, v in self._arguments.items()}
        return {
            "class_path": class_path(type(self)),
            "init_args": {k: _plain(v, f"{type(self).__name__}({k}=...)") for k, v in arguments.items()},
        }

    def _argument_now(self, name: str, recorded: Any) -> Any:
        """The argument that would build the current part, which may have changed since construction."""
        now, then = getattr(self, name, None), self._kept.get(name, _MODULE)
        if recorded is _MODULE or isinstance(now, Part):
            return now
        if then is _MODULE or not isinstance(now, (*_PLAIN, nn.Module)):  # a change cannot be detected
            return recorded
        # A constructor may store another object under the same name, for example a layer built from a rate.
        return recorded if type(_trace(now)) is type(then) and _trace(now) == then else now


#: The types that a configuration stores unchanged.
_PLAIN = (type(None), bool, int, float, str)


def _recorded(argument: Any) -> Any:
    """An argument as it is recorded: modules as a placeholder, lists as copies, since the caller may change them."""
    if isinstance(argument, nn.Module):
        return _MODULE
    return copy.deepcopy(argument) if isinstance(argument, (list, dict)) else argument


def _trace(value: Any) -> Any:
    """What is needed to detect a later change of an attribute: a plain value, or a module's class; else nothing."""
    if isinstance(value, nn.Module):
        return type(value)
    return value if isinstance(value, _PLAIN) else _MODULE


class _Module:
    """A placeholder for an argument that is a module."""

    def __repr__(self) -> str:
        return "<module>"

    def __deepcopy__(self, memo: Any) -> _Module:
        return self

    def __reduce__(self) -> str:
        return "_MODULE"


_MODULE = _Module()


def _plain(value: Any, where: str) -> Any:
    if isinstance(value, Part):
        return value.config()
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, (list, tuple)):
        return [_plain(v, where) for v in value]
    if isinstance(value, Mapping):
        return {str(k): _plain(v, where) for k, v in value.items()}
    raise TypeError(
        f"{where} is a {type(value).__name__}, which cannot be written into a configuration; "
        "use a number, a string or a module derived from ndm.Part."
    )


#: Packages whose public classes are named by the package in a configuration, not by the defining file.
_PUBLIC = ("ndm", "ndm.networks")

#: Module names of earlier versions that configurations may contain; these modules are now in ndm.method.
_MOVED = ("decoders", "denoisers", "mixture", "process", "schedules", "transforms", "variances")


def class_path(cls: type) -> str:
    """The dotted path of a class in a configuration: that of the package that exports it, or else its own."""
    for package in _PUBLIC if cls.__module__.startswith("ndm.") else ():
        if getattr(importlib.import_module(package), cls.__qualname__, None) is cls:
            return f"{package}.{cls.__qualname__}"
    return f"{cls.__module__}.{cls.__qualname__}"


def current_path(path: str) -> str:
    """The current path of a class that had another path in an earlier version; other paths are unchanged.

    Example:
        >>> current_path("ndm.transforms.learned.Separable"), current_path("mine.Separable")
        ('ndm.Separable', 'mine.Separable')
    """
    words = path.split(".")
    if words[0] != "ndm" or len(words) < 3 or words[1] not in _MOVED:
        return path
    public = importlib.import_module("ndm").__all__
    return f"ndm.{words[-1]}" if words[-1] in public else ".".join(["ndm", "method", *words[1:]])


def from_config(config: Mapping[str, Any] | None, allow: Iterable[type[nn.Module] | str] = ()) -> nn.Module:
    """Build the tree of parts that a configuration describes. Only constructors of parts are called.

    Args:
        config: as returned by :meth:`Part.config`.
        allow: the caller's own classes that a configuration may name besides those of ``ndm``, or the names of modules
            with such classes, which are imported when needed.

    Raises:
        ValueError: the configuration names a class that is neither a part of ``ndm`` nor among ``allow``, or gives a
            class arguments that it does not take.
    """
    allow = tuple(allow)
    allowed = {f"{c.__module__}.{c.__qualname__}": c for c in allow if not isinstance(c, str)}
    modules = [name for name in allow if isinstance(name, str)]

    def build(value: Any) -> Any:
        if isinstance(value, Mapping) and "class_path" in value:
            path = value["class_path"]
            cls = allowed[path] if isinstance(path, str) and path in allowed else _named_class(path, modules)
            given = value.get("init_args") or {}
            if not isinstance(given, Mapping):
                raise ValueError(
                    f"The configuration of {path} has init_args that are not names with values: {given!r}."
                )
            arguments = {k: build(v) for k, v in given.items()}
            try:
                inspect.signature(cls).bind(**arguments)
            except TypeError as error:
                raise ValueError(
                    f"The configuration does not fit {path}: {error}. It may come from another version."
                ) from None
            _require_fitting(cls, arguments, path)
            try:
                return cls(**arguments)
            except (ValueError, OSError, ImportError, MemoryError):
                raise
            except Exception as error:  # a constructor may raise anything for an invalid value
                reason = " ".join(str(error).split()) or type(error).__name__
                raise ValueError(f"The configuration does not fit {path}: {reason}.") from error
        if isinstance(value, Mapping):
            return {k: build(v) for k, v in value.items()}
        if isinstance(value, list):
            return [build(v) for v in value]
        return value

    if not (isinstance(config, Mapping) and "class_path" in config):
        raise ValueError("The configuration does not say which class to build: it has no 'class_path'.")
    return build(config)


def with_defaults(config: Any) -> Any:
    """A configuration with the arguments that it leaves out, of the parts of ndm, at their defaults.

    A configuration of an earlier version has no arguments that parts had not yet.

    Example:
        >>> with_defaults({"class_path": "ndm.LinearSchedule", "init_args": {"gamma_min": -7.0}})
        {'class_path': 'ndm.LinearSchedule', 'init_args': {'gamma_min': -7.0, 'gamma_max': 5.0}}
    """
    if isinstance(config, list):
        return [with_defaults(value) for value in config]
    if not isinstance(config, Mapping):
        return config
    filled = {k: with_defaults(v) for k, v in config.items()}
    path, given = config.get("class_path"), filled.get("init_args") or {}
    if not (isinstance(path, str) and path.startswith("ndm.") and isinstance(given, Mapping)):
        return filled
    try:
        parameters = inspect.signature(_named_class(path, ())).parameters.values()
    except ValueError:
        return filled
    defaults = {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
    left_out = {k: list(v) if isinstance(v, tuple) else v for k, v in defaults.items() if k not in given}
    return filled | {"init_args": {**given, **left_out}}


def _require_fitting(cls: type, arguments: Mapping[str, Any], path: str) -> None:
    """Raise an error for arguments whose type does not match the constructor's annotations."""
    try:
        hints = typing.get_type_hints(cls.__init__)  # type: ignore[misc]
    except (NameError, TypeError):  # the annotations cannot be evaluated here
        return
    for name, value in arguments.items():
        if name in hints and not _fits(value, hints[name]):
            raise ValueError(
                f"The configuration does not fit {path}: {name} cannot be {value!r:.60}. It may be damaged, or of "
                "another version."
            )


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value matches a type hint; true for unsupported hints."""
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, one) for one in typing.get_args(hint))
    if origin is typing.Literal:
        return any(value == one and type(value) is type(one) for one in typing.get_args(hint))
    kind = origin or hint
    if not isinstance(kind, type):
        return True
    if isinstance(value, nn.Module):
        return issubclass(kind, nn.Module) or kind in (object, Callable)
    if kind in (int, float, bool):
        if not isinstance(value, (int, float)) or isinstance(value, bool) != (kind is bool):
            return False
        return kind is not int or (math.isfinite(value) and value == int(value))
    if kind in (str, type(None)):
        return isinstance(value, kind)
    if kind in (list, tuple, Sequence):
        return isinstance(value, list)
    return not issubclass(kind, nn.Module)


def _named_class(path: Any, modules: Sequence[str]) -> type[nn.Module]:
    """The class at a path in ndm or in one of the modules. Nothing else is imported."""
    refusal = ValueError(
        f"The configuration names {path!r:.200}, which is not a part of ndm. "
        "If it is your own class and you trust the file, pass it: from_pretrained(path, allow=[YourClass]), or --allow "
        "and the name of its module on the command line."
    )
    if not isinstance(path, str):
        raise refusal
    path = current_path(path)
    theirs = any(path.startswith(f"{name}.") for name in modules)
    if not (theirs or path.startswith("ndm.")):
        raise refusal
    module, _, name = path.rpartition(".")
    try:
        cls = getattr(importlib.import_module(module), name, None)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("ndm"):
            raise refusal from None
        raise ValueError(f"{path} needs the package {error.name!r}: install it and load again.") from None
    if not (isinstance(cls, type) and issubclass(cls, nn.Module if theirs else Part)):
        raise refusal
    return cls
