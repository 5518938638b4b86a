"""Reading of JSON and YAML from untrusted files: regular files only, with limits on size and depth.

Limits are checked before objects are created. Error messages are the ends of sentences without the file's name, which
the caller adds.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import stat
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
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
    "require_free",
    "require_regular",
]

#: The largest size of a text in bytes, and number of values in a JSON document; enough for the means and scales of
#: 100,000 columns.
LARGEST, MOST_VALUES = 1 << 25, 1_000_000

#: The largest size of a YAML document in bytes, and number of nodes, with aliases expanded.
LARGEST_YAML, MOST_NODES = 1 << 20, 50_000

#: The largest nesting depth of lists and mappings in JSON and YAML.
DEEPEST = 60

#: The largest number of digits: Python's limit, since the time to parse a number grows quadratically.
_LONGEST = 4_300
_LONG_NUMBER = re.compile(rf"[-+]?[0-9][0-9_:.]{{{_LONGEST},}}")

_DEEP = f"it is nested deeper than {DEEPEST} levels"


#: The largest length of an unknown name, and number of known names it is compared with.
_COMPARED, _CANDIDATES = 100, 1_000


def did_you_mean(name: str, known: Iterable[str], otherwise: str, prefix: str = "") -> str:
    """The end of a message about an unknown name: the most similar known name, or else ``otherwise``.

    Example:
        >>> did_you_mean("sampel", ["sample", "score"], "there are sample, score")
        "; did you mean 'sample'?"
        >>> did_you_mean("x", ["sample", "score"], "there are sample, score")
        '; there are sample, score.'
    """
    close = difflib.get_close_matches(name[:_COMPARED], list(islice(known, _CANDIDATES)), n=1)
    return f"; did you mean {prefix + close[0]!r}?" if close else f"; {otherwise}."


def printable(text: str) -> str:
    """Escape control characters in a text for a terminal or a log.

    Example:
        >>> printable("red\\x1b[31m\\n")
        'red\\\\x1b[31m\\\\n'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class TooMuchError(ValueError):
    """Raised if a text would become too large or too deep when parsed."""


def require_regular(path: str | os.PathLike[str]) -> None:
    """Raise a ValueError unless a path is a regular file or a link to one; reading others might never end."""
    what = _kind(os.stat(path).st_mode)
    if what is not None:
        raise ValueError(f"{path} is {what}, not a regular file: remove it, or rename it.")


def require_free(out: Path, overwrite: bool) -> None:
    """Check that an output file can be written, before it is computed.

    Args:
        out: the file.
        overwrite: whether an existing file may be replaced.

    Raises:
        OSError: it exists and may not be replaced, or its folder does not exist.
        ValueError: it is a device, a pipe or a socket.
    """
    if out.exists() and not overwrite:
        raise FileExistsError(f"{out} exists; nothing was written: choose another --out, or give --overwrite.")
    if out.exists() and not out.is_dir():
        require_regular(out)
    if not out.parent.is_dir():
        raise FileNotFoundError(f"There is no folder {out.parent} to write {out.name} in.")


def _kind(mode: int) -> str | None:
    """The kind of a file that is not a regular file, as text."""
    if stat.S_ISREG(mode):
        return None
    names = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}
    return names.get(stat.S_IFMT(mode), "a device")


def read_text(path: str | os.PathLike[str], largest: int = LARGEST) -> str:
    """Read a UTF-8 text file.

    Args:
        path: the file.
        largest: the largest size in bytes.

    Raises:
        ValueError: the file is not a regular file, too large, or not UTF-8.
        OSError: reading fails.
    """
    # Opening a pipe would block until there is a writer.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with open(descriptor, "rb") as file:
        what = _kind(os.fstat(descriptor).st_mode)
        if what is not None:
            raise ValueError(f"it is {what}, not a regular file")
        data = file.read(largest + 1)
    if len(data) > largest:
        raise TooMuchError(f"it is larger than {largest:,} bytes")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not text in UTF-8: {error}") from None


def read_json(path: str | os.PathLike[str]) -> Any:
    """Parse a JSON file.

    Raises:
        ValueError: the file is not a regular file, not JSON, or too large or too deep.
        OSError: reading fails.
    """
    return parse_json(read_text(path))


def parse_json(text: str) -> Any:
    """Parse a JSON text.

    Raises:
        ValueError: the text is not JSON, or too large or too deep.
    """
    # An upper bound, since commas and brackets in strings are also counted.
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
    """Raise a ValueError if a tree is too deep to be traversed."""
    level = [tree] if isinstance(tree, (dict, list)) else []
    for _ in range(DEEPEST):
        inside = [node.values() if isinstance(node, dict) else node for node in level]
        level = [node for several in inside for node in several if isinstance(node, (dict, list))]
        if not level:
            return
    raise TooMuchError(_DEEP)


def read_yaml(path: str | os.PathLike[str]) -> Any:
    """Parse a YAML file.

    Raises:
        ValueError: the file is not a regular file, not YAML, or too large or too deep.
        OSError: reading fails.
    """
    return parse_yaml(read_text(path, LARGEST_YAML))


def parse_yaml(text: str, loader: Any = None) -> Any:
    """Parse a YAML text.

    Args:
        text: the document.
        loader: a PyYAML loader class; None for SafeLoader.

    Raises:
        ValueError: the text is not YAML, or too large or too deep.
    """
    import yaml

    check_yaml(text)
    try:
        return yaml.load(text, Loader=loader or yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise ValueError(not_yaml(error)) from None
    except (ValueError, TypeError, OverflowError, RecursionError) as error:  # for example an invalid date
        raise ValueError(not_yaml(error)) from None


def check_yaml(text: str) -> None:
    """Check a YAML document without constructing it.

    Raises:
        TooMuchError: the document is too large or too deep.
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
    """Count the nodes of a document with aliases expanded."""
    import yaml

    sizes: dict[str, int | None] = {}  # by anchor; None until the node is complete
    open_nodes: list[tuple[str | None, int]] = []  # their anchors, and the number of nodes before them
    count = 0
    for event in events:
        if isinstance(event, yaml.AliasEvent):
            size = sizes.get(event.anchor, 0)
            if size is None:
                raise TooMuchError(f"its anchor &{event.anchor:.20} refers to itself")
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
            raise TooMuchError(f"it expands to more than {MOST_NODES:,} values")


def not_yaml(error: Exception) -> str:
    """Describe an error raised by PyYAML."""
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or (str(error) if not mark else "")
    told = ", ".join([*([f"line {mark.line + 1}"] if mark else []), *([f"{problem:.100}"] if problem else [])])
    return f"it is not YAML and cannot be read ({told})" if told else "it is not YAML and cannot be read"
