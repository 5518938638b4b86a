"""Configurations from strangers, and the current folder: one sentence, and nothing is imported or run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults import hostile
from tests.faults.hostile import CONFIG, EVIL, aliases, changed, contents, deep, merges
from tests.faults.strangers import EVALUATE, NET, REPORT, RESUME, SAMPLE, endless, listening, pipe

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("counted")]


# ---- configurations

CONFIGURATIONS = {
    "aliases": (aliases(), "expands to more than 50,000 values"),
    "merges": (merges(), "expands to more than 50,000 values"),
    "an anchor in itself": ("model: &a [*a]\n", "anchor &a refers to itself"),
    "deep lists": ("model: " + deep(), "deeper than 60 levels"),
    "deep mappings": ("model: " + deep("{a: "), "deeper than 60 levels"),
    "deep blocks": (deep("- "), "deeper than 60 levels"),
    "deep in a text": (changed(CONFIG, data__init_args__train=deep()), "deeper than 60 levels"),
    "many": ("model: [" + "a, " * 200_000 + "]", "expands to more than 50,000 values"),
    "large": ("# " + "x" * (2 << 20), "larger than 1,048,576 bytes"),
    "a long number": ("seed: " + "1:" * 400_000 + "1\n", "more than 4,300 digits"),
    "an object": ("seed: !!python/object/apply:os.system [touch ran]\n", "is not a configuration"),
    "no such day": ("seed: 2024-99-99\n" + CONFIG, "whole number|cannot be read"),
    "a list as a key": ("? [a]\n: b\n", "is not a configuration"),
    "a wide network": (changed(CONFIG, **{f"{NET}__init_args__hidden": 10**9}), "tensors of more than .*: make it"),
    "a wider network": (changed(CONFIG, **{f"{NET}__init_args__hidden": 10**12}), "make it smaller"),
    "a deep network": (changed(CONFIG, **{f"{NET}__init_args__depth": 10**9}), "more than 20,000 tensors"),
    "a negative network": (changed(CONFIG, **{f"{NET}__init_args__hidden": -8}), "negative dimension .* correct"),
    "many examples": (changed(CONFIG, data__init_args__train=10**12), "give smaller splits"),
    "a foreign class": (changed(CONFIG, data="evilmod.X"), "names evilmod.X, .* --allow evilmod"),
    "a foreign network": (changed(CONFIG, **{f"{NET}__class_path": "evilmod.X"}), "names evilmod.X"),
    "a foreign argument": (
        changed(CONFIG, model__transform={"class_path": "Scale", "init_args": {"a": "evilmod.X"}}), "names evilmod.X"
    ),
    "a function": (
        changed(CONFIG, model__transform={"class_path": "Scale", "init_args": {"a": "ndm.cli.main"}}), "ndm.cli.main"
    ),
    "the system": (
        changed(CONFIG, model__transform={"class_path": "Scale", "init_args": {"a": "os.system"}}), "names os.system"
    ),
    "a reader as data": (
        changed(CONFIG, data={"class_path": "ndm.configs.configuration.read_data", "init_args": {"path": "x.yaml"}}),
        "read_data",
    ),
    "a sentence": (
        changed(CONFIG, training__learning_rate="Option 'a' is not accepted; given class_path 'evilmod.X'"),
        "learning_rate|no option",
    ),
    "a foreign optimum": (CONFIG + "extends: evilmod\n", "no configuration 'evilmod'"),
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_configuration_is_refused(folder: Path, name: str, refused: Callable[..., None]) -> None:
    text, sentence = CONFIGURATIONS[name]
    (folder / "x.yaml").write_text(text)
    (folder / "evilmod.py").write_text(EVIL)
    refused(["train", "x.yaml", "--out", "new"], sentence)


@pytest.mark.parametrize(
    "words",
    [
        ["--data", "evilmod.X"],
        ["--data.class_path=evilmod.X"],
        ["--model.transform", "evilmod.X"],
        ["--model.denoiser.net", "evilmod.X"],
        ["--model.denoiser", "{class_path: Denoiser, init_args: {net: evilmod.X}}"],
        ["--config", "evil.yaml"],
        ["--data.help", "evilmod.X"],
        ["--data", "evil-data.yaml"],
    ],
    ids=" ".join,
)
def test_an_option_imports_nothing(folder: Path, words: list[str], refused: Callable[..., None]) -> None:
    (folder / "x.yaml").write_text(CONFIG)
    (folder / "evil.yaml").write_text(changed(CONFIG, data="evilmod.X"))
    (folder / "evil-data.yaml").write_text("class_path: evilmod.X\n")
    (folder / "evilmod.py").write_text(EVIL)
    refused(["train", "x.yaml", "--out", "new", *words], "names evilmod.X, .* --allow evilmod")


@pytest.mark.parametrize("make", [pipe, endless, listening])
@pytest.mark.parametrize("name", ["x.yaml", "x.csv", "x.parquet"])
def test_what_is_no_regular_file_is_not_read(
    folder: Path, name: str, make: Callable[[Path], None], refused: Callable[..., None]
) -> None:
    make(folder / name)
    words = [name] if name == "x.yaml" else ["table", "--data.path", name]
    refused(["train", *words, "--out", "new"], r"is a (named pipe|device|socket), not a regular file")


# ---- the current folder


def test_nothing_is_imported_from_the_current_folder(folder: Path, counted: list[bool]) -> None:
    for name in ("torch", "yaml", "numpy", "lightning", "jsonargparse", "argparse", "evilmod"):
        (folder / f"{name}.py").write_text(f"open('ran-{name}', 'w').close()\n")
    (folder / "x.yaml").write_text(CONFIG)
    (folder / "evil.yaml").write_text(changed(CONFIG, data="evilmod.X"))
    before = contents(folder)
    found = hostile.program(folder, "train", "x.yaml", "--print_config")
    assert found.returncode == 0, found.stderr
    assert "Pinwheel" in found.stdout
    found = hostile.program(folder, "train", "evil.yaml", "--print_config")
    assert found.returncode == 2
    assert "--allow evilmod" in found.stderr
    assert contents(folder) == before
    counted.append(True)


def test_what_is_allowed_is_found_in_the_current_folder(folder: Path, counted: list[bool]) -> None:
    (folder / "mine.py").write_text("from ndm.data import Pinwheel\nclass Own(Pinwheel):\n    pass\n")
    (folder / "torch.py").write_text(EVIL)
    (folder / "x.yaml").write_text(changed(CONFIG, data__class_path="mine.Own"))
    for words in (["train", "x.yaml", "--out", "run"], EVALUATE, RESUME, SAMPLE, REPORT):
        found = hostile.program(folder, *words, "--allow", "mine")
        assert found.returncode == 0, found.stderr
    assert "mine.Own" in (folder / "new.html").read_text()
    assert not (folder / "ran").exists()
    found = hostile.program(folder, *EVALUATE)
    assert found.returncode == 2
    assert "--allow mine" in found.stderr
    counted.append(True)
