"""YAML serialization of configurations that round-trips.

A configuration is read by PyYAML and by jsonargparse, which parses more strings as numbers (such as ``1e3`` and
``695e0514``). Strings that either would parse as another type are quoted. If an argument of a class is a string or a
list of strings, unquoted values are read as strings: ``columns: [NO, 400]`` means the columns ``NO`` and ``400``.
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

#: Name of this parser mode in jsonargparse.
MODE = "ndm"

_TextLoader = getattr(yaml, "CBaseLoader", yaml.BaseLoader)


def load(text: str) -> Any:
    """Parse YAML text by jsonargparse's rules.

    Raises:
        ValueError: the text is not valid YAML, or is too large or too deeply nested: see
            :func:`ndm.storage.texts.parse_yaml`.
    """
    check_yaml(text)
    try:
        return get_loader("yaml")(text)
    except (yaml.YAMLError, TypeError, OverflowError) as error:  # a TypeError: a key is not a string
        raise ValueError(not_yaml(error)) from None


def load_texts(text: str) -> Any:
    """Parse YAML text, keeping every number, boolean, date and null as a string."""
    return parse_yaml(text, _TextLoader)


def dump(tree: Any) -> str:
    """Serialize to YAML text that :func:`load` and ``yaml.safe_load`` read back unchanged."""
    text = _dumped(tree, readable=True)
    if not text.isascii() and not (load(text) == tree and parse_yaml(text) == tree):
        return _dumped(tree, readable=False)  # the readers lose some unescaped characters
    return text


def _dumped(tree: Any, readable: bool) -> str:
    return yaml.dump(tree, Dumper=_Dumper, default_flow_style=False, allow_unicode=readable, sort_keys=False)


class _Dumper(yaml.SafeDumper):
    def represent_text(self, text: str) -> yaml.ScalarNode:
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=None if _is_plain(text) else "'")


_Dumper.add_representer(str, _Dumper.represent_text)


@lru_cache(maxsize=4096)
def _is_plain(text: str) -> bool:
    """Whether both readers parse an unquoted string as that string."""
    try:
        return bool(load(text) == text and parse_yaml(text) == text)
    except ValueError:
        return False


set_loader(MODE, load, (ValueError,))
set_dumper(MODE, dump)


def as_written(tree: Any, texts: Any) -> Any:
    """Return the configuration with string arguments as written.

    Args:
        tree: the configuration, from :func:`load`.
        texts: the same, from :func:`load_texts`.
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
    """Whether an argument is a (possibly null) string or list of strings; None if it may be of another type.

    Args:
        class_path: the class, as in a configuration.
        name: the argument.
    """
    cls = class_of(class_path)
    for part in [] if cls is None else cls.__mro__:
        constructor = vars(part).get("__init__")
        try:
            hint = typing.get_type_hints(constructor).get(name) if constructor else None
        except (NameError, TypeError):  # the annotation cannot be resolved here
            hint = None
        if hint is not None:
            united = typing.get_origin(hint) in (typing.Union, types.UnionType)
            kinds = {h for h in (typing.get_args(hint) if united else (hint,)) if h is not type(None)}
            return "text" if kinds == {str} else "texts" if kinds == {list[str]} else None
    return None
