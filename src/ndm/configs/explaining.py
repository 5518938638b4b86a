"""Convert jsonargparse's multi-line errors about a configuration to one sentence."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Sequence
from typing import Any, NoReturn

from jsonargparse import ArgumentParser
from torch import nn

import ndm.data
import ndm.networks
from ndm.configs.allowing import is_allowed, not_allowed
from ndm.configs.early import nearest
from ndm.data.base import Data
from ndm.method.decoders import Decoder
from ndm.method.denoisers import BaseDenoiser
from ndm.method.latents import Latent
from ndm.method.noise import Noise
from ndm.method.schedules import Schedule
from ndm.method.transforms import Transform
from ndm.method.variances import ReverseVariance
from ndm.networks import Backbone

__all__ = ["UNLISTED", "bare", "class_of", "explain"]

#: Last component of an option's name, and the base class of its values.
BASES: dict[str, type] = {
    "schedule": Schedule,
    "transform": Transform,
    "denoiser": BaseDenoiser,
    "decoder": Decoder,
    "reverse_variance": ReverseVariance,
    "noise": Noise,
    "latent": Latent,
    "net": Backbone,
    "data": Data,
}

#: Options hidden from the help: `ndm train` has its own.
UNLISTED = ("config", "print_config", "print_shtab", "model", "training", "trainer", "model.standardize")


#: The beginnings of what jsonargparse lists among the reasons, and which gives none.
_NO_REASONS = ("Expected a", "Problem with given class_path")


def explain(message: str, parser: ArgumentParser) -> NoReturn:
    """Raise a ValueError that summarizes a jsonargparse error in one sentence.

    The message is parsed; if its format is unknown, the complete message is used on one line.
    """
    if denied := _first(r"Importing '([^']+)' is not allowed", message):
        raise not_allowed(denied)
    inner = re.findall(r'Parser key "([\w.]+)"', message)
    if class_name := _first(r"Expected a dot import path string: (\S+)", message) or _first(
        r"module '[\w.]+' has no attribute '(\w+)'", message
    ):
        known = _class_names(BASES.get(inner[-1].rpartition(".")[2], nn.Module) if inner else nn.Module)
        raise ValueError(f"There is no class {class_name!r} for {_path(inner)}{nearest(class_name, known)}")
    if option := _first(r"Option '([\w.]+)' is not accepted", message):
        owner = re.findall(r"Problem with given class_path '([\w.]+)'", message)
        if owner:
            known = _arguments(owner[-1])
            raise ValueError(f"{bare(owner[-1])} has no argument {option!r}{nearest(option, known)}")
        raise ValueError(f"There is no option {option!r}{nearest(option, _options(parser))}")
    if group := re.search(r"Group '([\w.]+)' does not accept option '([\w.]+)'", message):
        name = f"{group[1]}.{group[2]}"
        raise ValueError(f"There is no option {name!r}{nearest(name, _options(parser))}")
    if option := _first(r"[Uu]nrecognized arguments: --([^\s=]+)", message):
        raise ValueError(f"There is no option {'--' + option!r}{nearest(option, _options(parser), '--')}")
    if missing := _first(r"the following arguments are required: (.+)", message):
        where = f" in {_path(inner)}" if inner else ""
        name = f"{_path(inner)}.{missing}" if inner else missing
        hint = "" if "," in name else f": give it there, or as --{name} VALUE"
        raise ValueError(f"The configuration lacks {missing}{where}{hint}.")
    if wrong := re.search(r"Expected a (.+)\. Got value: (.*)", message):
        raise ValueError(f"{_path(inner)} must be {_type(wrong[1])}, not {wrong[2]!r}.")
    # The value matches none of several types: jsonargparse lists the reasons; the one for None is not informative.
    reasons = [r for r in re.findall(r"^ *- (.+)$", message, re.MULTILINE) if not r.startswith(_NO_REASONS)]
    if not reasons and (sentence := _of_several_types(message, inner)):
        raise ValueError(sentence)
    raise ValueError(" ".join((reasons[0] if reasons else message).split()))


def _of_several_types(message: str, keys: Sequence[str]) -> str:
    """The sentence about a value that is of none of the types of its argument, the innermost one; empty if unknown."""
    inner = message[message.rfind("Parser key") :]
    types, given = re.findall(r"- Expected a ([^\n]+?)\.?$", inner, re.MULTILINE), _first(r"Given value: (.*)", inner)
    types = types[: inner[: inner.find("Given value")].count("- Expected a")]  # those of this argument, and no other
    if not types or given is None or not keys:
        return ""
    return f"{_path(keys)} must be {' or '.join(_type(t) for t in types)}, not {given!r}."


def bare(class_path: Any) -> str:
    """Return the last component of a class path."""
    return str(class_path).rpartition(".")[2]


def class_of(class_path: Any) -> type | None:
    """Return the class for a path, or for the bare name of an ndm class.

    None if there is no such class, or if it is not allowed; a module that is not allowed is not imported.
    """
    module, _, name = str(class_path).rpartition(".")
    if module and not is_allowed(str(class_path)):
        return None
    try:
        places = [importlib.import_module(module)] if module else [ndm.data, ndm.networks, ndm]
    except ImportError:
        return None
    found = next((getattr(place, name) for place in places if hasattr(place, name)), None)
    return found if isinstance(found, type) else None


def _first(pattern: str, text: str) -> str | None:
    match = re.search(pattern, text)
    return match[1] if match else None


def _path(keys: Sequence[str]) -> str:
    return ".".join(keys) or "this"


def _type(description: str) -> str:
    if choices := re.match(r"typing\.Literal\[(.*)\]", description):
        words = choices[1].replace("'", "")
        return f"one of {words}" if "," in words else words
    names = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "a text"}
    names |= {"NoneType": "null", "dict": "names with values, as in '{name: value}'", "list": "a list, as in '[a, b]'"}
    return names.get(_first(r"<class '(\w+)'>", description) or "", f"a {description}")


def _class_names(base: type) -> list[str]:
    """Return the public classes of ndm that derive from a base class."""
    places = (ndm, ndm.networks, ndm.data)
    found = {name: getattr(place, name) for place in places for name in place.__all__}
    return sorted(
        name
        for name, cls in found.items()
        if isinstance(cls, type) and issubclass(cls, base) and cls is not base and name != "NDM" and not _is_base(cls)
    )


def _is_base(cls: type) -> bool:
    """Whether a class is a base class: it has abstract methods, or no constructor but subclasses in ndm."""
    if any(getattr(getattr(cls, name, None), "__isabstractmethod__", False) for name in dir(cls)):
        return True
    derived: list[type] = cls.__subclasses__()
    return "__init__" not in cls.__dict__ and any(c.__module__.startswith("ndm.") for c in derived)


def _arguments(class_path: str) -> list[str]:
    """Return the constructor arguments of a class, including those passed on to its bases."""
    cls = class_of(class_path)
    if cls is None:
        return []
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    signatures = [inspect.signature(c) for c in cls.__mro__ if c.__module__.startswith("ndm.")]
    return list(dict.fromkeys(p.name for s in signatures for p in s.parameters.values() if p.kind not in kinds))


def _options(parser: ArgumentParser) -> list[str]:
    return [a.dest for a in parser._actions if a.dest not in ("help", *UNLISTED) and not a.dest.endswith(".help")]
