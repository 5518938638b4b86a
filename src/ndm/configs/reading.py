"""Read a configuration file and the files it extends, and apply command-line overrides."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import ndm.networks
from ndm import configs
from ndm.configs.early import nearest, pairs
from ndm.configs.explaining import bare
from ndm.configs.yamltext import as_written, kind_of_text, load, load_texts
from ndm.method.parts import current_path
from ndm.storage.texts import LARGEST_YAML, read_text

__all__ = ["forget_other_classes", "has_section", "import_networks", "read_tree", "take_texts"]

_SECTIONS = ("seed", "model", "data", "training", "trainer", "extends", "tiny", "cpu")


def read_tree(name: str, tiny: bool = False, cpu: bool = False) -> dict[str, Any]:
    """Read the sections of a configuration, including those of the file that it ``extends``.

    Args:
        name: path, or name of a shipped configuration.
        tiny: apply the section ``tiny``.
        cpu: apply the section ``cpu`` if it exists; ignored with ``tiny``.

    Raises:
        ValueError: the file does not exist, cannot be read, or has no section ``tiny``.
    """
    tree, texts = _load(name)
    small, small_texts = tree.pop("tiny", None), texts.pop("tiny", None)
    slow, slow_texts = tree.pop("cpu", None), texts.pop("cpu", None)
    if tiny:
        if small is None:
            raise ValueError(f"The configuration {name} has no section `tiny`; leave --tiny out.")
        tree, texts = _merged(tree, small), _merged(texts, small_texts)
    elif cpu and slow is not None:
        tree, texts = _merged(tree, slow), _merged(texts, slow_texts)
    found: dict[str, Any] = as_written(tree, texts)
    return found


def has_section(name: str, section: str) -> bool:
    """Whether a configuration, or one that it extends, has the given section."""
    return section in _load(name)[0]


def _load(name: str, seen: tuple[Path, ...] = ()) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read the sections of a configuration, as values and as strings.

    Args:
        name: path, or name of a shipped configuration.
        seen: files already read in the chain of ``extends``.
    """
    path = configs.require(name)
    try:
        content = read_text(path, LARGEST_YAML)
        tree, texts = load(content), load_texts(content)
    except ValueError as error:
        raise ValueError(f"{path} is not a configuration: {error}.") from None
    _rename(tree)
    _rename(texts)
    if not isinstance(tree, dict):
        raise ValueError(f"{path} is not a configuration: it must have the sections model, data, training and trainer.")
    for section in tree:
        if section not in _SECTIONS:
            raise ValueError(f"{path} has an unknown section {section!r}{nearest(str(section), _SECTIONS)}")
    for section in ("model", "training", "trainer", "tiny", "cpu"):
        if not isinstance(tree.get(section, {}), dict):
            raise ValueError(f"In {path}, {section} must be a section with fields.")
    base, written = tree.pop("extends", None), texts.pop("extends", None)
    if base is None:
        return tree, texts
    if path in seen:
        raise ValueError(f"{path} extends itself.")
    base = str(written)  # a file name such as 2024 is parsed as a number
    beside = [file for file in (path.parent / base, path.parent / f"{base}.yaml") if file.is_file()]
    under, under_texts = _load(str(beside[0]) if beside else base, (*seen, path))
    return _merged(under, tree), _merged(under_texts, texts)


def _merged(base: Any, over: Any) -> Any:
    """Merge two configurations; a part of another class inherits no arguments."""
    if not (isinstance(base, dict) and isinstance(over, dict)):
        return over
    if "class_path" in over and bare(over["class_path"]) != bare(base.get("class_path")):
        return over
    return {**base, **{key: _merged(base.get(key), value) for key, value in over.items()}}


def import_networks(text: str) -> None:
    """Import the networks named in a text: jsonargparse resolves bare names of imported classes only."""
    for name in ndm.networks.__all__:
        if name in text:
            getattr(ndm.networks, name)


# ---- command-line overrides


def forget_other_classes(tree: dict[str, Any], overrides: Sequence[str]) -> None:
    """Remove the parts that the overrides replace by parts of another class.

    jsonargparse would keep arguments that the new class has too, such as a network that fits the old part.
    """
    for key, value in pairs(overrides):
        container, name = _place(tree, key)
        part = None if container is None else container.get(name)
        if isinstance(part, dict) and "class_path" in part and bare(part["class_path"]) != bare(value):
            assert container is not None
            del container[name]


def take_texts(tree: dict[str, Any], overrides: Sequence[str]) -> list[str]:
    """Apply the overrides of string arguments as typed; return the others.

    jsonargparse would read ``[NO, 400]`` as a boolean and a number, and a path ``a: b`` as a dictionary.

    Raises:
        ValueError: a string is given for a list of strings.
    """
    chosen = {tuple(_words(key)): value for key, value in pairs(overrides)}
    left: list[str] = []
    skip = False
    for option, after in zip_longest(overrides, overrides[1:]):
        if skip:
            skip = False
            continue
        key, equals, value = option.removeprefix("--").partition("=")
        given = value if equals else after
        if option.startswith("--") and given is not None and _take(tree, key, given, chosen):
            skip = not equals
        else:
            left.append(option)
    return left


def _take(tree: dict[str, Any], key: str, value: str, chosen: dict[tuple[str, ...], str]) -> bool:
    """Apply one override if its argument is a string; return whether it was applied."""
    *parent, name = _words(key)
    if not parent:
        return False
    container, part_name = _place(tree, ".".join(parent))
    part = None if container is None else container.get(part_name)
    known = part.get("class_path") if isinstance(part, dict) else part
    class_path = chosen.get(tuple(parent), known)
    kind = kind_of_text(class_path, name)
    if container is None or kind is None or value == "null":  # handled by the parser
        return False
    if not isinstance(part, dict):
        part = container[part_name] = {"class_path": class_path}
    arguments = part.setdefault("init_args", {})
    if kind == "text":
        arguments[name] = value
        return True
    try:
        entries = load_texts(value)
    except ValueError:
        entries = None
    if not isinstance(entries, list) or not all(isinstance(entry, str) for entry in entries):
        if not key.endswith("+"):
            raise ValueError(f"{key} must be a list: write a single value as --{key} '[{value}]'.")
        entries = [value]
    arguments[name] = [*(arguments.get(name) or []), *entries] if key.endswith("+") else entries
    return True


def _rename(node: Any) -> None:
    """Replace class paths of earlier versions of ndm by the current ones."""
    if isinstance(node, list):
        for inner in node:
            _rename(inner)
    elif isinstance(node, dict):
        if isinstance(node.get("class_path"), str):
            node["class_path"] = current_path(node["class_path"])
        for inner in node.values():
            _rename(inner)


def _words(key: str) -> list[str]:
    """Split an option's name at the dots, without the suffix for appending to a list."""
    return [word for word in key.removesuffix("+").split(".") if word != "init_args"]


def _place(tree: dict[str, Any], key: str) -> tuple[dict[str, Any] | None, str]:
    """Return the dictionary and key of an option; the dictionary is None if it does not exist."""
    *path, last = _words(key)
    node: Any = tree
    for word in path:
        node = node.get(word)
        if isinstance(node, dict) and "class_path" in node:
            node = node.setdefault("init_args", {})
        if not isinstance(node, dict):
            return None, last
    return node, last
