"""Configurations as YAML, such that what was written reads back as it was.

Two programs read a configuration: PyYAML, and jsonargparse, to which more texts are numbers (``1e3`` and ``695e0514``
among them). A text that either would take for something else is written in quotes. And where the argument of a class
is a text, or a list of texts, what a user has written without quotes is that text: ``columns: [NO, 400]`` names the
columns ``NO`` and ``400``.
"""

from __future__ import annotations

import types
import typing
from functools import lru_cache
from typing import Any, Literal

import yaml
from jsonargparse import get_loader, set_dumper, set_loader

from ndm.configs.explaining import class_of
from ndm.storage.texts import check_yaml, not_yaml, parse_yaml

__all__ = ["MODE", "as_written", "dump", "kind_of_text", "load", "load_texts"]

#: What jsonargparse calls this way of reading and writing.
MODE = "ndm"

_TextLoader = getattr(yaml, "CBaseLoader", yaml.BaseLoader)


def load(text: str) -> Any:
    """What a text in YAML says, as jsonargparse understands it.

    Raises:
        ValueError: it is not YAML, or too large or too deep: see :func:`ndm.storage.texts.parse_yaml`.
    """
    check_yaml(text)
    try:
        return get_loader("yaml")(text)
    except (yaml.YAMLError, TypeError, OverflowError) as error:  # a key that is no text is a TypeError
        raise ValueError(not_yaml(error)) from None


def load_texts(text: str) -> Any:
    """The same, with every number, truth value, date and null as the text that stands there."""
    return parse_yaml(text, _TextLoader)


def dump(tree: Any) -> str:
    """A text in YAML that says it, of which :func:`load` and ``yaml.safe_load`` make the same again."""
    text = _dumped(tree, readable=True)
    if not text.isascii() and not (load(text) == tree and parse_yaml(text) == tree):
        return _dumped(tree, readable=False)  # among letters that need no escape are signs that the readers lose
    return text


def _dumped(tree: Any, readable: bool) -> str:
    return yaml.dump(tree, Dumper=_Dumper, default_flow_style=False, allow_unicode=readable, sort_keys=False)


class _Dumper(yaml.SafeDumper):
    def represent_text(self, text: str) -> yaml.ScalarNode:
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=None if _is_plain(text) else "'")


_Dumper.add_representer(str, _Dumper.represent_text)


@lru_cache(maxsize=4096)
def _is_plain(text: str) -> bool:
    """Whether a text without quotes is that text, to both readers."""
    try:
        return bool(load(text) == text and parse_yaml(text) == text)
    except ValueError:
        return False


set_loader(MODE, load, (ValueError,))
set_dumper(MODE, dump)


def as_written(tree: Any, texts: Any) -> Any:
    """A configuration whose arguments that are texts are what was written.

    Args:
        tree: the configuration, by :func:`load`.
        texts: the same by :func:`load_texts`.
    """
    if isinstance(tree, list) and isinstance(texts, list) and len(tree) == len(texts):
        return [as_written(*both) for both in zip(tree, texts, strict=True)]
    if not (isinstance(tree, dict) and isinstance(texts, dict)):
        return tree
    found = {key: as_written(value, texts.get(key)) for key, value in tree.items()}
    arguments = found.get("init_args")
    if "class_path" in found and isinstance(arguments, dict):
        for name, value in arguments.items():
            written = texts.get("init_args", {}).get(name)
            kind = None if value is None else kind_of_text(found["class_path"], name)
            if (kind == "text" and isinstance(written, str)) or (kind == "texts" and _is_texts(written)):
                arguments[name] = written
    return found


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(entry, str) for entry in value)


def kind_of_text(class_path: Any, name: str) -> Literal["text", "texts"] | None:
    """Whether an argument of a class is a text, or a list of texts, and perhaps null; None if it may be anything else.

    Args:
        class_path: the class, as a configuration names it.
        name: the argument.
    """
    cls = class_of(class_path)
    for part in [] if cls is None else cls.__mro__:
        constructor = vars(part).get("__init__")
        try:
            hint = typing.get_type_hints(constructor).get(name) if constructor else None
        except (NameError, TypeError):  # what is written there has no value here
            hint = None
        if hint is not None:
            united = typing.get_origin(hint) in (typing.Union, types.UnionType)
            kinds = {h for h in (typing.get_args(hint) if united else (hint,)) if h is not type(None)}
            return "text" if kinds == {str} else "texts" if kinds == {list[str]} else None
    return None
