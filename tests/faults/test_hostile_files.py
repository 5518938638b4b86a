"""Files from strangers: each is refused by one sentence, soon, without much memory, and nothing is written or run."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch


def beside(name: str) -> Any:
    """A module in this folder, which is not among Python's places."""
    spec = importlib.util.spec_from_file_location(f"faults_{name}", Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


hostile = beside("hostile")
CONFIG, EVIL = hostile.CONFIG, hostile.EVIL
aliases, change_json, changed, contents = hostile.aliases, hostile.change_json, hostile.changed, hostile.contents
deep, merges = hostile.deep, hostile.merges

pytestmark = pytest.mark.slow

#: Bytes of memory that a refusal may take, besides what the packages take, and seconds.
MEMORY, SECONDS = 300 << 20, 60

NET = "model__denoiser__init_args__net"


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    started = hostile.Commands(tmp_path_factory.mktemp("scratch"))
    yield started
    started.close()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, commands: Any) -> Path:
    """A run, to be copied."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "toy.yaml").write_text(CONFIG)
    result = commands(folder, "train", "toy.yaml", "--out", "run")
    assert result.code == 0, result.err
    return folder / "run"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    work = tmp_path / "work"
    work.mkdir()
    return work


@pytest.fixture(autouse=True)
def counted(request: pytest.FixtureRequest, tally: Callable[[str, bool], None]) -> Iterator[list[bool]]:
    """Counts each test as a trial, which holds where the test says at its end that it did."""
    held: list[bool] = []
    yield held
    what = request.node.originalname.removeprefix("test_").replace("_", " ")
    tally(f"hostile files: {what}", bool(held))


@pytest.fixture
def refused(commands: Any, folder: Path, counted: list[bool]) -> Callable[..., None]:
    """Sees that a command is refused as it should be."""

    def check(words: list[str], sentence: str, memory: int = MEMORY) -> None:
        before = contents(folder)
        result = commands(folder, *words)
        print(f"{result.seconds:.1f} s, {result.memory / 1e6:.0f} MB: {result.err.strip()[:400]}")
        assert result.code == 2, result.err[-3000:]
        assert "Traceback" not in result.err
        assert len(result.err.splitlines()) == 1, result.err
        assert len(result.err) < 1000
        assert re.search(sentence, result.err), result.err
        assert result.memory < memory
        assert result.seconds < SECONDS
        assert contents(folder) == before
        counted.append(True)

    return check


def pipe(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def endless(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/zero")


def listening(path: Path) -> None:
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as made:
        here = Path.cwd()
        os.chdir(path.parent)  # an address may not be long
        made.bind(path.name)
        os.chdir(here)


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


# ---- the files of a run


def spoil(name: str, text: str) -> Callable[[Path], Any]:
    return lambda run: (run / name).write_text(text)


def in_json(name: str, **values: Any) -> Callable[[Path], Any]:
    return lambda run: change_json(run / name, **values)


def in_config(**parts: Any) -> Callable[[Path], Any]:
    return lambda run: (run / "config.yaml").write_text(changed((run / "config.yaml").read_text(), **parts))


def in_model(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], Any]:
    """Change the model's configuration, and take the checksums away."""

    def spoiled(run: Path) -> None:
        path = run / "model" / "config.json"
        config = json.loads(path.read_text())
        change(config["model"]["init_args"])
        path.write_text(json.dumps(config))
        (run / "model" / "SHA256SUMS").unlink(missing_ok=True)

    return spoiled


def in_checkpoint(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], Any]:
    def spoiled(run: Path) -> None:
        path = run / "checkpoints" / "last.ckpt"
        checkpoint = torch.load(path, weights_only=True)
        change(checkpoint)
        torch.save(checkpoint, path)

    return spoiled


def net_of(parts: dict[str, Any]) -> dict[str, Any]:
    net: dict[str, Any] = parts["denoiser"]["init_args"]["net"]
    return net


EVALUATE = ["evaluate", "run", "--no-likelihood", "--steps", "5"]
SAMPLE = ["sample", "run", "-n", "4", "--steps", "3", "--out", "new.csv"]
SCORE = ["score", "run", "x.csv", "--no-likelihood", "--out", "new.csv"]
REPORT = ["report", "run", "--out", "new.html"]
RESUME = ["train", "--resume", "--out", "run", "--trainer.max_steps", "4"]

RUNS: dict[str, tuple[Callable[[Path], Any], list[str], str]] = {
    "aliases in config.yaml": (spoil("config.yaml", aliases()), EVALUATE, "more than 50,000 values"),
    "depth in config.yaml": (spoil("config.yaml", "data: " + deep()), EVALUATE, "deeper than 60"),
    "aliases, report": (spoil("config.yaml", aliases()), REPORT, "more than 50,000 values"),
    "recursion, report": (spoil("config.yaml", "data: &a [*a]"), REPORT, "refers to itself"),
    "aliases, resume": (spoil("config.yaml", aliases()), RESUME, "more than 50,000 values"),
    "a foreign data set": (in_config(data={"class_path": "evilmod.X"}), EVALUATE, "evilmod.X, .* --allow evilmod"),
    "a foreign data set, resume": (in_config(data={"class_path": "evilmod.X"}), RESUME, "--allow evilmod"),
    "a foreign part": (
        in_model(lambda parts: parts.update(transform={"class_path": "evilmod.X"})), SAMPLE, "not a part of ndm"
    ),
    "depth in config.json": (spoil("model/config.json", deep()), SAMPLE, "deeper than 60"),
    "parts within parts": (
        spoil("model/config.json", '{"ndm_format": 1, "model": ' + '{"a":' * 900 + "1" + "}" * 901), SAMPLE,
        "deeper than 60",
    ),
    "a wide network": (in_model(lambda p: net_of(p)["init_args"].update(hidden=10**9)), SAMPLE, "of a smaller model"),
    "a deep network": (in_model(lambda p: net_of(p)["init_args"].update(depth=10**9)), SAMPLE, "of a smaller model"),
    "classes": (in_model(lambda p: net_of(p)["init_args"].update(classes=10**11)), SAMPLE, "of a smaller model"),
    "a word for a number": (in_model(lambda p: net_of(p)["init_args"].update(hidden="x")), SAMPLE, "does not fit"),
    "a depth below zero": (in_model(lambda p: net_of(p)["init_args"].update(hidden=-4)), SAMPLE, "negative dimension"),
    "a pipe for config.json": (lambda run: pipe(run / "model/config.json"), SAMPLE, "is a named pipe"),
    "shape": (in_json("data.json", shape=[10**12]), SAMPLE, "needs about 260,000 GB of memory"),
    "shape of many": (in_json("data.json", shape=[3, 10**6, 10**6]), REPORT, "of memory"),
    "shape of another": (in_json("data.json", shape=[3]), SAMPLE, "was not trained on the data"),
    "shape below zero": (in_json("data.json", shape=[-1]), SAMPLE, "shape of an example cannot be"),
    "shape of words": (in_json("data.json", shape=["x"]), SCORE, "shape of an example cannot be"),
    "shape of nothing": (in_json("data.json", shape=[]), SAMPLE, "shape of an example cannot be"),
    "a number for a shape": (in_json("data.json", shape=2), SAMPLE, "shape of an example cannot be"),
    "levels": (in_json("data.json", levels="many"), SCORE, "number of levels cannot be"),
    "columns": (in_json("data.json", columns=[1, 2]), SAMPLE, "its columns are not"),
    "splits": (in_json("data.json", splits=[1]), EVALUATE, "splits are not numbers"),
    "a list for data.json": (spoil("data.json", "[]"), EVALUATE, "no JSON object"),
    "depth in data.json": (spoil("data.json", deep()), SAMPLE, "deeper than 60"),
    "many values in data.json": (spoil("data.json", "[" + "[]," * 2_000_000 + "[]]"), SAMPLE, "more than 1,000,000"),
    "a pipe for data.json": (lambda run: pipe(run / "data.json"), SAMPLE, "a named pipe"),
    "zeros for data.json": (lambda run: endless(run / "data.json"), SAMPLE, "a device"),
    "a large data.json": (lambda run: hostile.sparse(run / "data.json"), SAMPLE, "larger than 33,554,432 bytes"),
    "depth in evaluation.json": (spoil("evaluation.json", deep()), REPORT, "deeper than 60"),
    "environment.json": (spoil("environment.json", deep('{"a":')), REPORT, "deeper than 60"),
    "a cell of metrics.csv": (spoil("metrics.csv", "step,x\n1," + "1" * 200_000 + "\n"), REPORT, "field larger"),
    "a large metrics.csv": (lambda run: hostile.sparse(run / "metrics.csv"), REPORT, "larger than"),
    "no checkpoint": (spoil("checkpoints/last.ckpt", "x" * 1000), RESUME, "not a checkpoint"),
    "a packed checkpoint": (lambda run: hostile.packed(run / "checkpoints/last.ckpt"), RESUME, "not a checkpoint"),
    "a checkpoint of words": (in_checkpoint(lambda c: c.update(global_step="x")), RESUME, "not a checkpoint"),
    "a checkpoint without weights": (in_checkpoint(lambda c: c.pop("state_dict")), RESUME, "not a checkpoint"),
    "a checkpoint without loops": (in_checkpoint(lambda c: c.pop("loops")), RESUME, "does not contain loops"),
    "a checkpoint without an optimizer": (
        in_checkpoint(lambda c: c.pop("optimizer_states")), RESUME, "does not contain optimizer_states"
    ),
    "another model's checkpoint": (
        in_checkpoint(lambda c: c["state_dict"].update({"model.x": torch.zeros(2)})), RESUME, "another model"
    ),
    "a checkpoint with a wrong weight": (
        in_checkpoint(lambda c: c["state_dict"].update({next(iter(c["state_dict"])): torch.zeros(2, 3, 4)})), RESUME,
        "another model",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_refused(trained: Path, folder: Path, name: str, refused: Callable[..., None]) -> None:
    spoiled, words, sentence = RUNS[name]
    run = hostile.copy_of(trained, folder)
    (folder / "evilmod.py").write_text(EVIL)
    (folder / "x.csv").write_text("a,b\n1,2\n3,4\n")
    spoiled(run)
    refused(words, sentence)


def test_the_settings_of_a_score_may_be_anything(
    trained: Path, folder: Path, commands: Any, counted: list[bool]
) -> None:
    hostile.copy_of(trained, folder)
    (folder / "x.csv").write_text("a,b\n1,2\n3,4\n")
    (folder / "new.csv.partial").mkdir()
    (folder / "new.csv.partial" / "settings.json").write_text(deep())
    (folder / "new.csv.partial" / "blocks").write_bytes(b"x" * 100)
    result = commands(folder, *SCORE)
    assert result.code in (0, 2)
    assert "Traceback" not in result.err
    counted.append(True)


def test_a_report_says_what_it_did_not_import(trained: Path, folder: Path, commands: Any, counted: list[bool]) -> None:
    run = hostile.copy_of(trained, folder)
    (folder / "evilmod.py").write_text(EVIL)
    in_config(data={"class_path": "evilmod.X"})(run)
    result = commands(folder, *REPORT)
    assert result.code == 0, result.err
    assert "--allow evilmod" in (folder / "new.html").read_text()
    assert not (folder / "ran").exists()
    counted.append(True)


def test_an_evaluation_that_unfolds_is_refused(trained: Path, folder: Path, refused: Callable[..., None]) -> None:
    run = hostile.copy_of(trained, folder)
    (run / "evaluation.json").write_text(json.dumps({"rows": [], "about": {}}))
    hostile.tall_npz(run / "evaluation.npz")
    refused(REPORT, "needs about 34 GB of memory")


def test_a_pickle_is_not_run(trained: Path, folder: Path, refused: Callable[..., None]) -> None:
    run = hostile.copy_of(trained, folder)

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, ("ran",)

    torch.save({"global_step": 1, "state_dict": {}, "x": Evil()}, run / "checkpoints" / "last.ckpt")
    refused(RESUME, "not a checkpoint")
    assert not (folder / "ran").exists()


# ---- tables


def write(make: Callable[[Path], Any], name: str) -> Callable[[Path], str]:
    def written(folder: Path) -> str:
        make(folder / name)
        return name

    return written


TABLES: dict[str, tuple[Callable[[Path], str], str]] = {
    "400,000,000 rows": (write(hostile.tall_parquet, "x.parquet"), "400,000,000 rows of 2 columns, needs about 26 GB"),
    "1,000,000 columns": (write(lambda p: hostile.wide_csv(p, 10**6, 1), "x.csv"), "1,000,000 columns"),
    "200,000 columns": (write(lambda p: hostile.wide_parquet(p, 200_000), "x.parquet"), "columns"),
    "a line without an end": (write(lambda p: hostile.sparse(p), "x.csv"), "it is not a CSV table"),
    "no Parquet": (write(lambda p: hostile.sparse(p), "x.parquet"), "cannot be read as a Parquet file"),
    "an open quote": (write(lambda p: p.write_text('a,b\n1,"2\n' + "3,4\n" * 2_000_000), "x.csv"), "x.csv"),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_refused(folder: Path, name: str, refused: Callable[..., None]) -> None:
    make, sentence = TABLES[name]
    refused(["train", "table", "--data.path", make(folder), "--out", "new"], sentence)


# ---- images

IMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "long": (lambda p: p.write_bytes(hostile.png(2, 8_000_000)), "has 2 x 8,000,000 pixels"),
    "large": (lambda p: p.write_bytes(hostile.png(12_000, 12_000)), "has 12,000 x 12,000 pixels"),
    "larger": (lambda p: p.write_bytes(hostile.png(40_000, 40_000)), "more than 89,478,485 pixels"),
    "a pipe": (pipe, "a named pipe, not a regular file"),
    "zeros": (endless, "a device, not a regular file"),
    "a large file": (lambda p: hostile.sparse(p), "larger than 536,870,912 bytes"),
}


@pytest.mark.parametrize("name", IMAGES)
def test_an_image_is_refused(folder: Path, name: str, refused: Callable[..., None]) -> None:
    make, sentence = IMAGES[name]
    (folder / "pictures").mkdir()
    for i in range(8):
        (folder / "pictures" / f"{i}.png").write_bytes(hostile.png(8, 8))
    make(folder / "pictures" / "9.png")
    words = ["train", "images", "--data.path", "pictures", "--data.size", "8", "--data.validation", "1", "--out", "new"]
    refused(words, sentence, memory=1 << 30)


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
