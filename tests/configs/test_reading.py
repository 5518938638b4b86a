"""Texts in configurations and on the command line are what was written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ndm.configs.allowing import allowing
from ndm.configs.configuration import Configuration, read_data
from ndm.configs.yamltext import kind_of_text
from ndm.data import Table


class Named(Table):
    """A data set of a user's, whose arguments are written in other ways."""

    def __init__(
        self, path: str, names: list[str], title: str | None = None, width: int | str = 3, **options: Any
    ) -> None:
        super().__init__(path, names, **options)


@pytest.mark.parametrize(
    ("typed", "columns"),
    [
        (["--data.columns", "[NO, CO]"], ["NO", "CO"]),
        (["--data.columns=[400, 401]"], ["400", "401"]),
        (["--data.init_args.columns", '["b, in m", 1e3]'], ["b, in m", "1e3"]),
        (["--data.columns+=NO", "--data.columns+=[0x10, ~]"], ["NO", "0x10", "~"]),
        (["--data.columns", "[a]", "--data.columns", "[b]"], ["b"]),
        (["--data.columns", "null"], None),
    ],
)
def test_columns_on_the_command_line_are_texts(typed: list[str], columns: list[str] | None) -> None:
    arguments = Configuration.read("table", ["--data.path", "x", *typed]).values.data.init_args
    assert arguments.columns == columns
    assert arguments.path == "x"
    data = ["--data", "ndm.data.Table", *typed, "--data.path=x"]
    assert Configuration.read("toy", data).values.data.init_args.columns == columns


def test_texts_in_a_file_are_what_is_written(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("extends: table\ndata: {class_path: Table, init_args: {path: 1e3, seed: 3}}\n")
    (tmp_path / "2024.yaml").write_text("extends: base\ndata: {init_args: {columns: [NO, 400, ~]}}\n")
    (tmp_path / "last.yaml").write_text(
        "extends: 2024\ntiny: {data: {class_path: ndm.data.Table, init_args: {path: 0x10}}}\n"
    )
    arguments = Configuration.read(str(tmp_path / "last.yaml")).values.data.init_args
    assert (arguments.path, arguments.columns, arguments.seed) == ("1e3", ["NO", "400", "~"], 3)
    assert Configuration.read(str(tmp_path / "last.yaml"), tiny=True).values.data.init_args.path == "0x10"


def test_a_class_of_the_users_has_texts_too() -> None:
    names = ("path", "names", "title", "width", "levels", "x")
    with allowing([__name__]):
        kinds = {name: kind_of_text(f"{__name__}.Named", name) for name in names}
    assert kinds == {"path": "text", "names": "texts", "title": "text", "width": None, "levels": None, "x": None}
    assert kind_of_text("Table", "columns") == "texts"
    assert kind_of_text("ndm.no.such", "path") is None
    assert kind_of_text("ndm.data.Pinwheel", "train") is None
    assert kind_of_text(f"{__name__}.Named", "path") is None  # it is not allowed


def test_a_list_of_texts_is_asked_for() -> None:
    with pytest.raises(ValueError, match=r"data\.columns must be a list: .* --data\.columns '\[NO\]'"):
        Configuration.read("table", ["--data.path", "x", "--data.columns", "NO"])


def test_a_runs_data_can_be_looked_for_elsewhere(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(Configuration.read("table", ["--data.path", "x", "--data.columns", "[a]"]).text)
    data = read_data(file, ["--data.path", "1e3", "--data.seed=4"])
    assert isinstance(data, Table)
    assert (data.path, data.named, data.seed) == ("1e3", ("a",), 4)
    with pytest.raises(ValueError, match=r"Table has no argument 'pth'; did you mean 'path'"):
        read_data(file, ["--data.pth", "y"])
    with pytest.raises(ValueError, match=r"data\.seed must be a whole number, not 'x'"):
        read_data(file, ["--data.seed", "x"])
