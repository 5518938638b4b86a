"""What is written in YAML reads back, by whichever of the two readers."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from ndm.configs.configuration import Configuration, read_data
from ndm.configs.yamltext import dump, load
from ndm.data import Table

#: Texts that one reader or another takes for something else.
TRAPS = [
    "695e0514", "1e3", "1E+3", "1_000", "0x10", "0o17", "0b1", "017", "12:30:45", "1.", ".5", "-.inf", ".nan", "+1",
    "NO", "no", "on", "Off", "y", "true", "False", "~", "null", "Null", "", " ", "a ", " a", "-", "- a", "?", ": ",
    "a: b", "a:", "a #b", "#a", "[a", "[a]", "{a}", "{a: 1}", "*a", "&a", "!a", "@a", "`a", "%a", "|", ">", "'", '"',
    "'a'", '"a"', "a\nb", "a\tb", "\n", "2024-01-01", "2024-01-01 12:00:00", "<<", "=", "---", "...", "\u00e9",
    "\u2028", "\x85", "\ufeff", "\U0001f600", "C:\\data\\x.csv", "a" * 200 + " " + "b" * 200,
]  # fmt: skip

texts = st.one_of(st.sampled_from(TRAPS), st.text(), st.from_regex(r"[-+.0-9eExo_:]+", fullmatch=True))


@given(texts)
def test_a_text_reads_back(text: str) -> None:
    for tree in (text, {"path": text, "columns": [text, text]}, {text: 1}):
        if tree != text:  # no document is a text alone, of which jsonargparse makes exceptions
            assert load(dump(tree)) == tree
        assert yaml.safe_load(dump(tree)) == tree


def test_what_needs_no_quotes_has_none() -> None:
    tree = {
        "class_path": "ndm.data.Table",
        "path": "data/my file \u00e9.csv",
        "rate": 0.0003,
        "columns": None,
        "on": [1, True],
    }
    assert dump(tree) == (
        "class_path: ndm.data.Table\npath: data/my file \u00e9.csv\nrate: 0.0003\ncolumns: null\n'on':\n- 1\n- true\n"
    )


@pytest.mark.slow
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=texts, columns=st.lists(texts, min_size=1, max_size=3))
@example(path="695e0514", columns=["1e3", "NO", "0x10"])
def test_a_configuration_reads_back(tmp_path: Path, path: str, columns: list[str]) -> None:
    assume(path != "null")  # which is no path
    listed = yaml.safe_dump(columns, default_style='"', default_flow_style=True)
    first = Configuration.read("table", ["--data.path", path, "--data.columns", listed])
    file = tmp_path / "config.yaml"
    file.write_text(first.text, encoding="utf-8")
    again = Configuration.read(str(file))
    assert again.text == first.text
    arguments = again.values.data.init_args
    assert (arguments.path, arguments.columns) == (path, columns)
    data = read_data(file)
    assert isinstance(data, Table)
    assert (data.path, data.named) == (path, tuple(columns))
    arguments = yaml.safe_load(first.text)["data"]["init_args"]
    assert (arguments["path"], arguments["columns"]) == (path, columns)
