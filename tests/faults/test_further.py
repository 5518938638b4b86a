"""Faults of other kinds: launchers, moved and exchanged files, edited tables, closed streams, things that are no files.

In the table at the end they are the rows that begin with "further".
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import ndm.cli
from ndm._internal import distributed
from ndm.training.run import Run

pytestmark = pytest.mark.slow

OPTIONS = [
    "--trainer.max_steps=24",
    "--trainer.val_check_interval=4",
    "--trainer.patience=null",
    "--trainer.accelerator=cpu",
    "--training.base=none",
    "--model.denoiser.net.hidden=16",
]


def write_table(path: Path, seed: int = 0, rows: int = 300) -> Path:
    x = np.random.default_rng(seed).normal(size=(rows, 2)) @ [[1.0, 0.8], [0.0, 0.5]]
    np.savetxt(path, x, delimiter=",", header="a,b", comments="", fmt="%+.6f")
    return path


def train(data: Path, out: Path, *more: str) -> list[str]:
    return ["train", "table", "--data.path", str(data), "--out", str(out), *OPTIONS, *more]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two runs, a and b, of two tables."""
    folder = tmp_path_factory.mktemp("trained")
    for seed, name in enumerate("ab"):
        assert ndm.cli.main(train(write_table(folder / f"{name}.csv", seed), folder / name)) == 0
    return folder


@pytest.fixture
def runs(trained: Path, tmp_path: Path) -> Path:
    """The same, to be spoilt."""
    return Path(shutil.copytree(trained, tmp_path, dirs_exist_ok=True))


def contents(folder: Path) -> dict[str, str]:
    files = (p for p in folder.rglob("*") if p.is_file() and p.name != ".lock")
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def refused(ended: Any, sentence: str) -> bool:
    return ended.code == 2 and ended.said_in_one_line() and re.search(sentence, ended.text) is not None


def score(run: Path, data: Path, out: Path, *more: str) -> list[str]:
    return ["score", str(run), str(data), "--out", str(out), "--no-likelihood", *more]


def begun(process: Any, blocks: Path) -> None:
    """Wait until a scoring has written its first block."""
    while process.running() and not (blocks.exists() and blocks.stat().st_size):
        time.sleep(0.002)


# ---- launchers


@pytest.mark.parametrize("name", ["SLURM_PROCID", "RANK", "LOCAL_RANK"])
def test_a_number_of_a_launcher_is_no_leave_to_overwrite(start: Any, tally: Any, runs: Path, name: str) -> None:
    before = contents(runs / "a")
    ended = start(*train(runs / "b.csv", runs / "a"), before=lambda: os.environ.update({name: "1"})).wait()
    held = refused(ended, "exists; nothing was written") and contents(runs / "a") == before
    ended = start(*train(runs / "b.csv", runs / "new"), before=lambda: os.environ.update({name: "one"})).wait()
    held = held and refused(ended, f"The environment variable {name}=one")
    tally("further: a launcher's number without a launcher", held)
    assert held, ended.text


@pytest.mark.parametrize("number", [None, signal.SIGTERM, signal.SIGINT], ids=["wait", "term", "ctrl-c"])
def test_a_process_whose_others_do_not_come(start: Any, tally: Any, runs: Path, number: int | None) -> None:
    def alone() -> None:
        distributed.PATIENCE = 3.0 if number is None else 60.0
        os.environ.update(WORLD_SIZE="2", RANK="0", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT="29613")

    began = time.monotonic()
    process = start("sample", str(runs / "a"), "--out", str(runs / "x.csv"), before=alone)
    if number is not None:
        process.stop_after(3.0, number)
    ended = process.wait(60)
    held = time.monotonic() - began < 40 and not (runs / "x.csv").exists()
    held = held and (refused(ended, "cannot reach each other") if number is None else ended.code == -number)
    tally("further: the other process of two never comes", held)
    assert held, ended


# ---- runs that were moved, and files of other runs


def test_a_run_that_was_moved_keeps_its_best_model(start: Any, tally: Any, runs: Path) -> None:
    shutil.copytree(runs / "a", runs / "moved")
    for name in ("a", "moved"):
        ended = start("train", "--resume", "--out", str(runs / name), "--trainer.max_steps", "40").wait()
        assert ended.code == 0, ended.text
    one, other = (torch.load(runs / n / "checkpoints" / "best.ckpt", weights_only=True) for n in ("a", "moved"))
    held = one["global_step"] == other["global_step"]
    held = (
        held
        and (runs / "a/model/model.safetensors").read_bytes() == (runs / "moved/model/model.safetensors").read_bytes()
    )
    tally("further: a run is moved and resumed", held)
    assert held


def test_what_is_said_of_the_best_step_counts_earlier_sessions(start: Any, tally: Any, runs: Path) -> None:
    options = ["--trainer.max_steps", "40", "--training.learning_rate", "3"]  # which makes it worse
    ended = start("train", "--resume", "--out", str(runs / "a"), *options).wait()
    best = torch.load(runs / "a/checkpoints/best.ckpt", weights_only=True)["global_step"]
    held = ended.code == 0 and re.search(rf"at step {best} of an earlier session, the best", ended.text) is not None
    tally("further: what is said of the best step after a resumed training", held)
    assert held, ended.text


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("checkpoints/best.ckpt", "best.ckpt belongs to another training"),
        ("checkpoints/last.ckpt", "last.ckpt and .* belong to trainings on different data"),
        ("data.json", "differ from the training data"),
    ],
)
def test_files_of_another_run_are_refused(start: Any, tally: Any, runs: Path, name: str, sentence: str) -> None:
    shutil.copy(runs / "b" / name, runs / "a" / name)
    before = contents(runs / "a")
    ended = start("train", "--resume", "--out", str(runs / "a"), "--trainer.max_steps", "40").wait()
    held = refused(ended, sentence) and contents(runs / "a") == before
    tally("further: a file of another run", held)
    assert held, ended.text


@pytest.mark.parametrize("change", ["model", "columns", "levels", "twice"])
def test_a_model_and_facts_that_are_not_each_others(start: Any, tally: Any, runs: Path, change: str) -> None:
    facts = runs / "a" / "data.json"
    if change == "model":
        shutil.rmtree(runs / "a" / "model")
        shutil.copytree(runs / "b" / "model", runs / "a" / "model")
    else:
        old, new = {
            "columns": ('["a", "b"]', '["b", "a"]'),
            "levels": ('"levels": null', '"levels": 7'),
            "twice": ('["a", "b"]', '["a", "a"]'),
        }[change]
        text = facts.read_text()
        assert old in text
        facts.write_text(text.replace(old, new))
    for words in (["sample", str(runs / "a"), "--out", str(runs / "x.csv")], ["evaluate", str(runs / "a")]):
        ended = start(*words).wait()
        held = refused(ended, "was not trained on the data|two of its columns") and not (runs / "x.csv").exists()
        tally("further: a model and a data.json of two runs, or one that was changed", held)
        assert held, ended.text


# ---- tables that change


def test_a_table_that_changes_while_it_is_scored(start: Any, tally: Any, runs: Path) -> None:
    table, out = write_table(runs / "t.csv", rows=3000), runs / "o.csv"
    process = start(*score(runs / "a", table, out, "--batch-size", "4", "--times", "40"))
    begun(process, runs / "o.csv.partial" / "blocks")
    write_table(table, seed=1, rows=3000)
    ended = process.wait()
    held = refused(ended, "changed during scoring|when scoring began") and not out.exists()
    tally("further: a table changes while it is scored", held)
    assert held, ended.text


def test_a_table_that_changed_with_its_size_and_time_kept(start: Any, tally: Any, runs: Path) -> None:
    table, out = write_table(runs / "t.csv", rows=2000), runs / "o.csv"
    stat = table.stat()
    process = start(*score(runs / "a", table, out, "--batch-size", "4", "--times", "40"))
    begun(process, runs / "o.csv.partial" / "blocks")
    process.stop_after(0)
    process.wait()
    write_table(table, seed=1, rows=2000)
    os.utime(table, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert table.stat().st_size == stat.st_size
    ended = start(*score(runs / "a", table, out, "--batch-size", "4", "--times", "40")).wait()
    held = refused(ended, "another data") and not out.exists()
    tally("further: a table changes between two sessions of a scoring", held)
    assert held, ended.text


def test_a_folder_of_the_users_beside_the_scores(start: Any, tally: Any, runs: Path) -> None:
    kept = runs / "o.csv.partial" / "thesis.txt"
    kept.parent.mkdir()
    kept.write_text("x")
    ended = start(*score(runs / "a", runs / "a.csv", runs / "o.csv")).wait()
    held = refused(ended, r"contains files that ndm did not write \(thesis.txt\)") and kept.read_text() == "x"
    (runs / "p.csv.partial").symlink_to(kept.parent)
    ended = start(*score(runs / "a", runs / "a.csv", runs / "p.csv")).wait()
    held = held and refused(ended, "is not a folder with partial scores") and not (runs / "p.csv").exists()
    tally("further: a folder of the user's where the partial scores go", held)
    assert held, ended.text


def test_a_file_that_appears_where_the_scores_go(start: Any, tally: Any, runs: Path) -> None:
    table, out = write_table(runs / "t.csv", rows=2000), runs / "o.csv"
    process = start(*score(runs / "a", table, out, "--batch-size", "4", "--times", "40"))
    begun(process, runs / "o.csv.partial" / "blocks")
    out.write_text("another program's")
    ended = process.wait()
    held = refused(ended, "was created by another program") and out.read_text() == "another program's"
    out.unlink()
    again = start(*score(runs / "a", table, out, "--batch-size", "4", "--times", "40")).wait()
    held = held and again.code == 0 and out.read_text().count("\n") == 2001
    tally("further: a file appears where the scores go", held)
    assert held, (ended.text, again.text)


# ---- what is no file


@pytest.mark.parametrize("name", ["metrics.csv", "log.txt"])
@pytest.mark.parametrize("kind", ["pipe", "link"])
def test_what_is_no_file_in_a_run(start: Any, tally: Any, runs: Path, name: str, kind: str) -> None:
    file, elsewhere = runs / "a" / name, runs / "elsewhere"
    file.unlink()
    if kind == "pipe":
        os.mkfifo(file)
    else:
        file.symlink_to(elsewhere)
    ended = start("train", "--resume", "--out", str(runs / "a"), "--trainer.max_steps", "40").wait(60)
    held = refused(ended, f"{name} is a (link|named pipe)") and not elsewhere.exists()
    tally("further: a pipe or a link in a run's folder", held)
    assert held, ended.text


@pytest.mark.parametrize("command", ["sample", "report"])
def test_a_pipe_is_not_replaced(start: Any, tally: Any, runs: Path, command: str) -> None:
    out = runs / {"sample": "pipe.csv", "report": "pipe.html"}[command]
    os.mkfifo(out)
    ended = start(command, str(runs / "a"), "--out", str(out), "--overwrite").wait(120)
    held = refused(ended, "is a named pipe") and out.is_fifo()
    tally("further: a pipe is to be overwritten", held)
    assert held, ended.text


# ---- weights that were changed


CHANGES: dict[str, Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]] = {
    "every second in double precision": lambda w: {
        k: v.double() if i % 2 else v for i, (k, v) in enumerate(sorted(w.items()))
    },
    "complex": lambda w: {k: v.to(torch.complex64) for k, v in w.items()},
    "whole numbers": lambda w: {k: v.long() for k, v in w.items()},
    "a tensor that does not belong": lambda w: w | {"schedule.marked": torch.tensor(0.0)},
}


@pytest.mark.parametrize("change", CHANGES)
def test_weights_of_other_types(start: Any, tally: Any, runs: Path, change: str) -> None:
    model = runs / "a" / "model"
    (model / "SHA256SUMS").unlink()
    save_file(CHANGES[change](load_file(model / "model.safetensors")), model / "model.safetensors")
    ended = start("sample", str(runs / "a"), "--out", str(runs / "x.csv")).wait()
    held = refused(ended, "model.safetensors") and not (runs / "x.csv").exists()
    tally("further: weights of other types than were saved", held)
    assert held, ended.text


# ---- arguments and streams


@pytest.mark.parametrize(
    "words",
    [
        ["score", "a", "a.csv", "--out", "o.csv", "--seed", str(2**64)],
        ["score", "a", "a.csv", "--out", "o.csv", "--times", "1" + 30 * "0"],
        ["score", "a", "a.csv", "--out", "o.csv", "--device", "meta"],
        ["sample", "a", "--out", "o.csv", "-n", "1" + 30 * "0"],
        ["sample", "a", "--out", "o.csv", "--device", "meta"],
        ["evaluate", "a", "--seed", "9" * 5000],
    ],
    ids=lambda words: " ".join(words)[:60],
)
def test_numbers_without_bound(start: Any, tally: Any, runs: Path, words: list[str]) -> None:
    ended = start(*words).wait(60)
    held = ended.code == 2 and ended.said_in_one_line() and not (runs / "o.csv").exists()
    tally("further: numbers without bound, and devices that compute nothing", held)
    assert held, ended.text


@pytest.mark.parametrize("stream", ["stdout", "stderr", "ascii"])
def test_streams_that_are_closed_or_lack_letters(start: Any, tally: Any, runs: Path, stream: str) -> None:
    def close() -> None:
        import sys

        if stream == "ascii":
            sys.stdout.reconfigure(encoding="ascii")  # type: ignore[union-attr]
        else:
            setattr(sys, stream, None)

    ended = start(*score(runs / "a", runs / "a.csv", runs / "o.csv"), before=close).wait()
    held = ended.code == 0 and (runs / "o.csv").exists() and "Traceback" not in ended.text
    tally("further: a stream is closed, or lacks letters", held)
    assert held, ended.text


def test_names_do_not_move_the_cursor(start: Any, tally: Any, runs: Path) -> None:
    table = runs / "t.csv"
    table.write_text("\x1b[31mred,x\n1,2\n3,4\n")
    sample = ["sample", str(runs / "a"), "--out", str(runs / "x\ny.csv")]
    for words in (score(runs / "a", table, runs / "o.csv"), sample):
        ended = start(*words).wait()
        held = "\x1b" not in ended.text and "x\ny" not in ended.text and "Traceback" not in ended.text
        tally("further: names with letters for a terminal", held)
        assert held, ended.text


def test_a_terminal_that_is_closed(start: Any, tally: Any, runs: Path) -> None:
    command = ["sample", str(runs / "a"), "-n", "200000", "--out", str(runs / "x.csv"), "--steps", "400"]
    before = sorted(p.name for p in runs.iterdir())
    process = start(*command)
    process.stop_after(1.5, signal.SIGHUP)
    ended = process.wait()
    held = ended.code == 130 and sorted(p.name for p in runs.iterdir()) == before
    tally("further: the terminal is closed while samples are written", held)
    assert held, ended.text


def test_two_runs_of_one_folder_are_one(runs: Path) -> None:
    """The trials above are about runs that work when nothing is done to them."""
    Run(runs / "a").require_model()
    assert ndm.cli.main(["sample", str(runs / "a"), "--out", str(runs / "x.csv"), "-n", "4"]) == 0
