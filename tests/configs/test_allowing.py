"""A class that is not allowed is not imported, wherever a configuration or an option may name it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonargparse import ArgumentParser

from ndm.cli import main
from ndm.configs.allowing import allowing, as_modules, find_here, is_allowed
from ndm.configs.configuration import Configuration, read_data
from ndm.configs.explaining import class_of
from ndm.data import Data, Pinwheel

CONFIG = Configuration.read("toy").text

OWN = """
from ndm.data import Pinwheel

class Own(Pinwheel):
    pass
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module that can be imported, with a data set in it; it is forgotten afterwards."""
    name = f"own_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    yield name
    sys.modules.pop(name, None)


def changed(path: Path, **parts: Any) -> str:
    tree = yaml.safe_load(CONFIG)
    for section, value in parts.items():
        *above, last = section.split("__")
        node = tree
        for name in above:
            node = node[name]
        node[last] = value
    path.write_text(yaml.safe_dump(tree))
    return str(path)


PLACES = {
    "data": {"data": {"class_path": "OWN.Own"}},
    "a word": {"data": "OWN.Own"},
    "a part": {"model__transform": {"class_path": "OWN.Own"}},
    "a network": {"model__denoiser__init_args__net": {"class_path": "OWN.Own", "init_args": {"path": "x"}}},
    "an argument": {"model__transform": {"class_path": "Scale", "init_args": {"a": "OWN.Own"}}},
    "a variance": {"model__reverse_variance": {"class_path": "OWN.Own"}},
    "a volatility": {"model__volatility": {"class_path": "OWN.Own"}},
    "what init_args hold": {"data": {"class_path": "Pinwheel", "init_args": {"train": {"class_path": "OWN.Own"}}}},
}


def put(value: Any, name: str) -> Any:
    if isinstance(value, dict):
        return {key: put(inner, name) for key, inner in value.items()}
    return value.replace("OWN", name) if isinstance(value, str) else value


@pytest.mark.parametrize("place", PLACES)
def test_a_configuration_imports_nothing(own: str, tmp_path: Path, place: str) -> None:
    file = changed(tmp_path / "x.yaml", **put(PLACES[place], own))
    with pytest.raises(ValueError, match=rf"names {own}\.Own, .* not imported.* --allow {own}\.$|whole number"):
        Configuration.read(file)
    assert own not in sys.modules


@pytest.mark.parametrize(
    "words",
    [
        ["--data", "OWN.Own"],
        ["--data=OWN.Own"],
        ["--data.class_path", "OWN.Own"],
        ["--data", "{class_path: OWN.Own}"],
        ["--data", "OWN.Own", "--data.path", "x"],
        ["--model.transform", "OWN.Own"],
        ["--model.volatility", "{class_path: OWN.Own}"],
        ["--config", "other.yaml"],
        ["--data", "section.yaml"],
    ],
    ids=" ".join,
)
def test_an_option_imports_nothing(own: str, tmp_path: Path, words: list[str]) -> None:
    changed(tmp_path / "other.yaml", data={"class_path": f"{own}.Own"})
    (tmp_path / "section.yaml").write_text(f"class_path: {own}.Own\n")
    with pytest.raises(ValueError, match=rf"names {own}\.Own, .* --allow {own}\.$"):
        Configuration.read("toy", [word.replace("OWN", own) for word in words])
    with pytest.raises(ValueError, match=rf"names {own}\.Own"):
        Configuration.help(["--data.help", f"{own}.Own"])
    assert own not in sys.modules


def test_what_is_allowed_is_built(own: str, tmp_path: Path) -> None:
    file = changed(tmp_path / "x.yaml", data={"class_path": f"{own}.Own", "init_args": {"train": 9}})
    data = Configuration.read(file, allow=[own]).build().data
    assert type(data).__name__ == "Own"
    assert len(data.train) == 9
    assert type(read_data(Path(file), ["--data.train", "7"], allow=[own])).__name__ == "Own"
    assert isinstance(Configuration.read("toy", ["--data", f"{own}.Own"], allow=[f"{own}.Own"]).build().data, Pinwheel)
    with pytest.raises(ValueError, match="not a class of ndm"):
        read_data(Path(file))


def test_an_error_cannot_be_made_to_import(own: str) -> None:
    """The sentences about errors take jsonargparse's apart, in which values stand."""
    value = f"Option 'a' is not accepted. Problem with given class_path '{own}.Own'"
    with pytest.raises(ValueError, match=r"'a'|learning_rate"):
        Configuration.read("toy", ["--training.learning_rate", value])
    assert own not in sys.modules


@pytest.mark.parametrize(
    ("section", "value"),
    [
        ("data", {"class_path": "ndm.configs.configuration.read_data", "init_args": {"path": "x.yaml"}}),
        ("data", {"class_path": "ndm.data.cache.ArrayFile", "init_args": {"path": "x.npy"}}),
        ("data", {"class_path": "ndm.data.files.os.system"}),
        ("model__transform", {"class_path": "Scale", "init_args": {"a": "ndm.cli.main"}}),
        ("model__transform", {"class_path": "Scale", "init_args": {"a": "ndm.method.schedules.per_example"}}),
        ("model__transform", {"class_path": "Scale", "init_args": {"a": "os.system"}}),
    ],
)
def test_ndm_has_more_in_it_than_may_be_named(tmp_path: Path, section: str, value: Any) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        Configuration.read(changed(tmp_path / "x.yaml", **{section: value}))
    assert [file.name for file in tmp_path.iterdir()] == ["x.yaml"]


def test_a_name_stands_for_what_is_in_it() -> None:
    assert is_allowed("ndm.data.Table")
    assert not is_allowed("mine.X")
    with allowing(["mine", "other.sub"]):
        assert is_allowed("mine.X")
        assert is_allowed("mine.deep.X")
        assert is_allowed("other.sub.X")
        assert not is_allowed("mine2.X")
        assert not is_allowed("other.X")
    assert not is_allowed("mine.X")
    assert not is_allowed("ndmx.X")


@pytest.mark.parametrize("name", ["mine.py", "./mine", "a b", "", "jsonargparse.x"])
def test_what_is_no_module_cannot_be_allowed(name: str) -> None:
    with pytest.raises(ValueError, match="allow"):
        as_modules([name])


def test_other_parsers_keep_their_rule(own: str) -> None:
    Configuration.read("toy")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Data, "data")
    assert parser.parse_args([f"--data={own}.Own"]).data.class_path == f"{own}.Own"


def test_a_module_is_found_here_by_its_name_alone(
    own: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place not in ("", str(tmp_path))])
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    (tmp_path / "beside.py").write_text("")
    assert class_of(f"{own}.Own") is None
    find_here([own])
    with allowing([own, "beside"]):
        assert class_of(f"{own}.Own") is not None
        assert class_of("beside.X") is None
    assert "beside" not in sys.modules
    file = changed(tmp_path / "x.yaml", data={"class_path": f"{own}.Own"})
    assert main(["train", file, "--print_config", "--allow", own]) == 0
    assert f"{own}.Own" in capsys.readouterr().out
    assert main(["train", file, "--print_config"]) == 2


@pytest.mark.parametrize("text", ["[" * 100_000, "- " * 10_000, "a: &a [*a]"], ids=["list", "block", "alias"])
def test_texts_that_would_unfold_do_not_reach_jsonargparse(tmp_path: Path, text: str) -> None:
    """It reads values as YAML by a loader of its own, which ends with the process."""
    with pytest.raises(ValueError, match="cannot be a value of a configuration"):
        Configuration.read(changed(tmp_path / "x.yaml", seed=text))
    with pytest.raises(ValueError, match="cannot be a value of a configuration"):
        Configuration.read("toy", ["--training.learning_rate", text])
