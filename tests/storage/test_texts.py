"""JSON and YAML within limits: what is refused, and that nothing else is."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ndm.storage import texts
from ndm.storage.texts import (
    TooMuchError,
    check_yaml,
    parse_json,
    parse_yaml,
    read_json,
    read_text,
    read_yaml,
    require_regular,
)

LEAVES = st.one_of(st.none(), st.booleans(), st.integers(-(10**9), 10**9), st.text(max_size=5))
TREES = st.recursive(LEAVES, lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=3), x, max_size=3))


def nodes(tree: Any) -> int:
    """The nodes of a tree, what is shared counted each time."""
    if isinstance(tree, dict):
        return 1 + sum(1 + nodes(value) for value in tree.values())
    return 1 + (sum(map(nodes, tree)) if isinstance(tree, list) else 0)


@given(TREES)
def test_what_is_moderate_is_read_as_by_the_libraries(tree: Any) -> None:
    assert parse_json(json.dumps(tree)) == tree
    assert parse_yaml(yaml.safe_dump(tree)) == tree


@given(st.lists(TREES, min_size=1, max_size=3), st.lists(st.integers(0, 9), max_size=12))
def test_aliases_are_counted_as_what_they_stand_for(parts: list[Any], picks: list[int]) -> None:
    shared = [[part] for part in parts]
    for pick in picks:
        shared.append([shared[pick % len(shared)], shared[-1]])  # PyYAML writes what it has met as an alias
    text = yaml.safe_dump(shared)
    count = nodes(yaml.safe_load(text))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(texts, "MOST_NODES", count)
        check_yaml(text)
        patch.setattr(texts, "MOST_NODES", count - 1)
        with pytest.raises(TooMuchError, match="expands to more than"):
            check_yaml(text)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[" * 100_000, "deeper than 60"),
        ("- " * 100_000, "deeper than 60"),
        ("{a: " * 100_000, "deeper than 60"),
        ("a: &a [*a]", "refers to itself"),
        ("a: &a {b: &b [*a, *b]}", "refers to itself"),
        ("[" + "a," * 200_000 + "]", "more than 50,000"),
        ("x" * (1 << 20) + "x", "larger than"),
        ("1:" * 400_000 + "1", "4,300 digits"),
        ("9" * 5000, "4,300 digits"),
        ("a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 60)), "50,000"),
        ("a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}\n" for i in range(1, 40)), "50,000"),
    ],
    ids=range(11),
)  # fmt: skip
def test_yaml_without_bounds_is_refused_at_once(text: str, why: str) -> None:
    start = time.process_time()
    with pytest.raises(TooMuchError, match=why):
        parse_yaml(text)
    assert time.process_time() - start < 1


@pytest.mark.parametrize("text", ["a: [", "!!python/object/apply:os.system [x]", "2024-99-99", "{[a]: b}", "\0"])
def test_what_is_no_plain_yaml_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not YAML and cannot be read") as refusal:
        parse_yaml(text)
    assert not isinstance(refusal.value, TooMuchError)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[" * 100_000, "deeper than 60"),
        ('{"a":' * 900 + "1" + "}" * 900, "deeper than 60"),
        ("[" + "[]," * 1_000_000 + "[]]", "more than 1,000,000 values"),
        ("1" * 100_000, "4,300 digits"),
        ("{", "Expecting"),
    ],
    ids=range(5),
)
def test_json_without_bounds_is_refused(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        parse_json(text)


def test_the_depth_is_counted_alike() -> None:
    for parse in (parse_json, parse_yaml):
        assert parse("[" * 60 + "]" * 60) is not None
        with pytest.raises(TooMuchError):
            parse("[" * 61 + "]" * 61)


def test_files_are_regular_and_moderate(tmp_path: Path) -> None:
    file = tmp_path / "x"
    file.write_text('{"a": 1}')
    assert read_text(file, 8) == '{"a": 1}'
    assert read_json(file) == read_yaml(file) == {"a": 1}
    with pytest.raises(TooMuchError, match="larger than 7 bytes"):
        read_text(file, 7)
    file.write_bytes(b"\xff")
    with pytest.raises(ValueError, match="not text in UTF-8"):
        read_json(file)
    with pytest.raises(FileNotFoundError):
        read_yaml(tmp_path / "none")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zeros").symlink_to("/dev/zero")
    for name, what in {"pipe": "a named pipe", "zeros": "a device", ".": "a folder"}.items():
        with pytest.raises((ValueError, IsADirectoryError), match=f"{what}|directory"):
            read_text(tmp_path / name)  # without waiting
        with pytest.raises(ValueError, match=f"is {what}, not a regular file"):
            require_regular(tmp_path / name)
