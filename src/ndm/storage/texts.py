"""JSON and YAML from files that may be anybody's: regular files only, and no larger or deeper than a limit.

What is refused is refused before it is built in memory. The messages are the ends of sentences, without the file's
name: whoever reads a file knows how to call it.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import stat
from collections.abc import Iterable
from itertools import islice
from typing import Any

__all__ = [
    "TooMuchError",
    "check_yaml",
    "did_you_mean",
    "not_yaml",
    "parse_json",
    "parse_yaml",
    "printable",
    "read_json",
    "read_text",
    "read_yaml",
    "require_regular",
]

#: Bytes of a text, and values in a JSON document: the means and the scales of 100,000 columns are among them.
LARGEST, MOST_VALUES = 1 << 25, 1_000_000

#: Bytes of a YAML document, and nodes in it, those that aliases stand for counted each time.
LARGEST_YAML, MOST_NODES = 1 << 20, 50_000

#: Levels of lists and mappings within each other, in either.
DEEPEST = 60

#: Digits of a number: Python's own limit, which is there because longer ones take a time that grows as their square.
_LONGEST = 4_300
_LONG_NUMBER = re.compile(rf"[-+]?[0-9][0-9_:.]{{{_LONGEST},}}")

_DEEP = f"it is nested deeper than {DEEPEST} levels"


#: Characters of an unknown name, and known names that it is compared with.
_COMPARED, _CANDIDATES = 100, 1_000


def did_you_mean(name: str, known: Iterable[str], otherwise: str, prefix: str = "") -> str:
    """The end of a sentence about an unknown name: the known name nearest to it, or what is said otherwise.

    Example:
        >>> did_you_mean("sampel", ["sample", "score"], "there are sample, score")
        "; did you mean 'sample'?"
        >>> did_you_mean("x", ["sample", "score"], "there are sample, score")
        '; there are sample, score.'
    """
    close = difflib.get_close_matches(name[:_COMPARED], list(islice(known, _CANDIDATES)), n=1)
    return f"; did you mean {prefix + close[0]!r}?" if close else f"; {otherwise}."


def printable(text: str) -> str:
    """A text for a terminal or a line of a log: what would move the cursor or change colours is written as an escape.

    Example:
        >>> printable("red\\x1b[31m\\n")
        'red\\\\x1b[31m\\\\n'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class TooMuchError(ValueError):
    """A text would become too large, or too deep, when it is read."""


def require_regular(path: str | os.PathLike[str]) -> None:
    """Raise a ValueError if a path is neither a regular file nor a link to one: reading it might never end."""
    what = _kind(os.stat(path).st_mode)
    if what is not None:
        raise ValueError(f"{path} is {what} and no file: remove it, or give it another ending.")


def _kind(mode: int) -> str | None:
    """What is no regular file, in words."""
    if stat.S_ISREG(mode):
        return None
    names = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}
    return names.get(stat.S_IFMT(mode), "a device")


def read_text(path: str | os.PathLike[str], largest: int = LARGEST) -> str:
    """The text of a file in UTF-8.

    Args:
        path: the file.
        largest: bytes that it may have.

    Raises:
        ValueError: it is no regular file, is larger, or is not UTF-8.
        OSError: it cannot be read.
    """
    # Opening a pipe would wait for a writer.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with open(descriptor, "rb") as file:
        what = _kind(os.fstat(descriptor).st_mode)
        if what is not None:
            raise ValueError(f"it is {what} and no file")
        data = file.read(largest + 1)
    if len(data) > largest:
        raise TooMuchError(f"it is larger than {largest:,} bytes")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not text in UTF-8: {error}") from None


def read_json(path: str | os.PathLike[str]) -> Any:
    """What a JSON file says.

    Raises:
        ValueError: it is no regular file, not JSON, or too large or too deep.
        OSError: it cannot be read.
    """
    return parse_json(read_text(path))


def parse_json(text: str) -> Any:
    """What a text in JSON says.

    Raises:
        ValueError: it is not JSON, or too large or too deep.
    """
    # Commas and brackets in texts are counted as well: it is a bound.
    if text.count(",") + text.count("[") + text.count("{") > MOST_VALUES:
        raise TooMuchError(f"it has more than {MOST_VALUES:,} values")
    try:
        tree = json.loads(text)
    except RecursionError:
        raise TooMuchError(_DEEP) from None
    except json.JSONDecodeError:
        raise
    except ValueError:
        raise TooMuchError(f"it has a number of more than {_LONGEST:,} digits") from None
    _require_shallow(tree)
    return tree


def _require_shallow(tree: Any) -> None:
    """Raise a ValueError if a tree has more levels than whoever goes through it can bear."""
    level = [tree] if isinstance(tree, (dict, list)) else []
    for _ in range(DEEPEST):
        inside = [node.values() if isinstance(node, dict) else node for node in level]
        level = [node for several in inside for node in several if isinstance(node, (dict, list))]
        if not level:
            return
    raise TooMuchError(_DEEP)


def read_yaml(path: str | os.PathLike[str]) -> Any:
    """What a YAML file says.

    Raises:
        ValueError: it is no regular file, not YAML, or too large or too deep.
        OSError: it cannot be read.
    """
    return parse_yaml(read_text(path, LARGEST_YAML))


def parse_yaml(text: str, loader: Any = None) -> Any:
    """What a text in YAML says.

    Args:
        text: the document.
        loader: a class of PyYAML's; None for its SafeLoader.

    Raises:
        ValueError: it is not YAML, or too large or too deep.
    """
    import yaml

    check_yaml(text)
    try:
        return yaml.load(text, Loader=loader or yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise ValueError(not_yaml(error)) from None
    except (ValueError, TypeError, OverflowError, RecursionError) as error:  # of a date that there is not, among others
        raise ValueError(not_yaml(error)) from None


def check_yaml(text: str) -> None:
    """Go through a YAML document without building it.

    Raises:
        TooMuchError: it is too large or too deep.
        ValueError: it is not YAML.
    """
    import yaml

    if len(text) > LARGEST_YAML:
        raise TooMuchError(f"it is larger than {LARGEST_YAML:,} bytes")
    try:
        _count_nodes(yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
    except yaml.YAMLError as error:
        raise ValueError(not_yaml(error)) from None


def _count_nodes(events: Any) -> None:
    """Count the nodes that a document's events stand for, an alias counting as all that it stands for."""
    import yaml

    sizes: dict[str, int | None] = {}  # of what has a name; None while it is not at its end
    open_nodes: list[tuple[str | None, int]] = []  # their names, and how many nodes there were before them
    count = 0
    for event in events:
        if isinstance(event, yaml.AliasEvent):
            size = sizes.get(event.anchor, 0)
            if size is None:
                raise TooMuchError(f"its anchor &{event.anchor:.20} holds itself")
            count += size
        elif isinstance(event, yaml.ScalarEvent):
            count += 1
            if event.anchor is not None:
                sizes[event.anchor] = 1
            if not event.style and len(event.value) > _LONGEST and _LONG_NUMBER.match(event.value):
                raise TooMuchError(f"it has a number of more than {_LONGEST:,} digits")
        elif isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append((event.anchor, count))
            count += 1
            if event.anchor is not None:
                sizes[event.anchor] = None
            if len(open_nodes) > DEEPEST:
                raise TooMuchError(_DEEP)
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_nodes.pop()
            if anchor is not None:
                sizes[anchor] = count - before
        if count > MOST_NODES:
            raise TooMuchError(f"it stands for more than {MOST_NODES:,} values")


def not_yaml(error: Exception) -> str:
    """What is wrong with a document, by the error that PyYAML has raised."""
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or (str(error) if not mark else "")
    told = ", ".join([*([f"line {mark.line + 1}"] if mark else []), *([f"{problem:.100}"] if problem else [])])
    return f"it is not YAML and cannot be read ({told})" if told else "it is not YAML and cannot be read"
