"""Checks of command-line overrides that need no PyTorch, and the help, so that a wrong word is answered at once.

They find unknown options, and values of the sections ``training`` and ``trainer`` that are of another type or out of
range. Everything else is left to the parser of :mod:`ndm.configs.configuration`, whose sentences these are.
"""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal, Union

from ndm.storage.texts import did_you_mean
from ndm.training.options import TrainerOptions, TrainingOptions

__all__ = ["CLASSES", "HELP", "OPTIONS", "check_overrides", "known_classes", "nearest", "pairs"]

#: The text of `ndm train --help`, written by ``python -m ndm.configs.helptext``.
HELP = Path(__file__).with_name("help.txt")

_SECTIONS: dict[str, type] = {"training": TrainingOptions, "trainer": TrainerOptions}

_PARTS = ("schedule", "transform", "denoiser", "decoder", "reverse_variance", "volatility", "noise", "latent")

#: Options with a class as their value, whose arguments are options too.
_WITH_ARGUMENTS = (*(f"model.{part}" for part in _PARTS), "data")

#: The options whose classes the help lists, and base classes among them.
CLASSES, _BASES = ("data", *(f"model.{part}" for part in _PARTS if part != "volatility")), ("Toy",)

#: All options of `ndm train` that have a place in a configuration.
OPTIONS = (
    "seed",
    *_WITH_ARGUMENTS,
    *(f"{section}.{field.name}" for section, cls in _SECTIONS.items() for field in fields(cls)),
)

#: Options that are handled elsewhere.
_OTHERS = ("config", "help", "print_config", "print_shtab", "model", "model.standardize", "training", "trainer")

#: Maximum number of names listed in an error message.
_LISTED = 24

_NUMBER = re.compile(r"-?\d+(\.\d*)?([eE][+-]?\d+)?")
_WORD = re.compile(r"[A-Za-z_]\w*")

#: Words that YAML does not read as a text.
_NO_TEXTS = ("null", "nan", "inf", "true", "false", "yes", "no", "on", "off")


def check_overrides(overrides: Sequence[str], others: bool = False) -> None:
    """Raise an error for an unknown option or a wrong value, as far as this can be told without the classes.

    Args:
        overrides: ``--a.b value`` or ``--a.b=value``, as on the command line.
        others: whether classes of other packages are allowed.

    Raises:
        ValueError: there is no such option or class, or the value of an option is of another type or out of range.
    """
    found: dict[str, dict[str, Any]] = {section: {} for section in _SECTIONS}
    for key, value in pairs(overrides):
        name = key.removesuffix("+")
        if not _is_known(name):
            raise ValueError(f"There is no option {'--' + key!r}{nearest(key, OPTIONS, '--')}")
        section, _, field = name.partition(".")
        if section in _SECTIONS and field:
            kinds = _kinds(typing.get_type_hints(_SECTIONS[section])[field])
            _check_word(key, value, kinds)
            if (number := _number(value, kinds)) is not None:
                found[section][field] = number
        elif name == "seed":
            _check_word(key, value, (int,))
        elif name in CLASSES and not others:
            _check_class(name, value)
    for section, numbers in found.items():
        _SECTIONS[section](**numbers)  # refuses numbers out of range


def _check_class(name: str, value: str) -> None:
    """Refuse the name of a class that is none of ndm."""
    if value[:1].isupper() and _WORD.fullmatch(value) and value not in (known := known_classes(name)):
        raise ValueError(f"There is no class {value!r} for {name}{nearest(value, known)}")


def known_classes(option: str) -> list[str]:
    """The public classes that are values of an option, such as ``model.transform``, by the stored help."""
    _, _, rest = HELP.read_text(encoding="utf-8").partition(f"\n  --{option} ")
    about = " ".join(rest.partition("\n  --")[0].split())
    _, found, names = about.partition("known subclasses: ")
    assert found, f"the help does not list the classes of {option}"
    paths = [path.rpartition(".") for path in names.partition(")")[0].split(", ")[1:]]  # the first is the base class
    return sorted(name for module, _, name in paths if module in ("ndm", "ndm.data") and name not in _BASES)


def _is_known(name: str) -> bool:
    inside = any(name.startswith(f"{option}.") for option in _WITH_ARGUMENTS)
    return name in OPTIONS or name in _OTHERS or inside or name.endswith(".help")


def _kinds(hint: Any) -> tuple[Any, ...]:
    """The types of which a value may be: a class, None or a Literal."""
    united = typing.get_origin(hint) in (Union, types.UnionType)
    return typing.get_args(hint) if united else (hint,)


def _check_word(key: str, value: str, kinds: Sequence[Any]) -> None:
    """Refuse a word where a number, a truth or another word is wanted."""
    words = [word for kind in kinds if typing.get_origin(kind) is Literal for word in typing.get_args(kind)]
    if str in kinds or value in words or value.lower() in _NO_TEXTS or not _WORD.fullmatch(value):
        return
    raise ValueError(f"{key} must be {' or '.join(map(_name, kinds))}, not {value!r}.")


def _name(kind: Any) -> str:
    if typing.get_origin(kind) is Literal:
        words = ", ".join(typing.get_args(kind))
        return f"one of {words}" if "," in words else words
    return {int: "a whole number", float: "a number", bool: "true or false"}.get(kind, "null")


def _number(value: str, kinds: Sequence[Any]) -> float | None:
    if not _NUMBER.fullmatch(value):
        return None
    if float in kinds:
        return float(value)
    return int(value) if int in kinds and value.lstrip("-").isdecimal() else None


def pairs(overrides: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Return the (name, value) pairs of ``--a.b value`` and ``--a.b=value``."""
    for option, following in zip_longest(overrides, overrides[1:], fillvalue=""):
        if option.startswith("--"):
            key, equals, value = option[2:].partition("=")
            yield key, value if equals else following


def nearest(name: str, known: Iterable[str], prefix: str = "") -> str:
    """Return the end of an error message about an unknown name: close matches, or all valid names."""
    known = list(known)
    listed = f"there are {', '.join(known)}" if len(known) <= _LISTED else "see `ndm train --help`"
    return did_you_mean(name, known, listed, prefix)
