"""``ndm audit``: what it prints and writes, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ndm.cli import main
from ndm.evaluation import audit
from ndm.evaluation.auditing.results import Audit
from tests.cli.commands import Capture, error
from tests.networks.pipelines import N, saved

SMALL = ["--steps", "3", "--times", "4", "--ode", "2", "--no-grid", "--device", "cpu"]


def test_the_numbers_are_printed_and_written(run: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "audit.json"
    assert main(["audit", str(run), *SMALL, "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("Pinwheel, test split: all 16 examples, 4 noise levels of each, seed 0.")
    assert said.err == f"ndm: the audit is in {out}\n"
    written = json.loads(out.read_text())
    assert [(row["steps"], row["variance"]) for row in written["bounds"]] == [
        (3, "posterior"), (3, "calibrated"), (None, None),
    ]  # fmt: skip
    assert " ".join(written["quote"][0].split()[:4]) in said.out
    assert written["integral"] is None
    assert [row["examples"] for row in written["ode"]] == [2]


def test_the_numbers_are_those_of_the_function(run: Path, tmp_path: Path) -> None:
    from ndm.data import Pinwheel
    from ndm.model import NDM
    from ndm.training import Run

    out = tmp_path / "audit.json"
    options = ["--split", "train", "--examples", "10", "--seed", "4", "--lowest-gamma", "-7", "--samples", "2"]
    assert main(["audit", str(run), *SMALL, *options, "--out", str(out)]) == 0
    found = audit(
        NDM.from_pretrained(Run(run).model), Pinwheel(train=64, validation=32, test=16), split="train", steps=(3,),
        examples=10, times=4, ode=2, samples=2, grid=False, seed=4, lowest_gamma=-7.0,
    )  # fmt: skip
    assert json.loads(out.read_text()) == found.to_dict()
    assert "lower ends of the schedule" in found.left_out


def test_a_page_is_written_once(run: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "audit.html"
    command = ["audit", str(run), *SMALL, "--out", str(out)]
    assert main(command) == 0
    page = out.read_text(encoding="utf-8")
    assert page.startswith("<!DOCTYPE html>")
    assert "<title>run – ndm audit</title>" in page
    capsys.readouterr()
    assert "exists; nothing was written: choose another --out, or give --overwrite." in error(capsys, *command)
    assert main([*command, "--overwrite"]) == 0
    assert out.read_text(encoding="utf-8") == page
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.slow
def test_two_processes_find_the_same(run: Path, tmp_path: Path, capsys: Capture) -> None:
    files = [tmp_path / "1.json", tmp_path / "2.json"]
    for n, out in enumerate(files, 1):
        more = ["--batch-size", "5", "--workers", str(n)]
        small = ["--steps", "3", "--times", "4", "--ode", "8", "--device", "cpu"]
        assert main(["audit", str(run), *small, *more, "--out", str(out)]) == 0
    assert files[0].read_bytes() == files[1].read_bytes()


def test_wrong_words_are_one_sentence(run: Path, tmp_path: Path, capsys: Capture) -> None:
    nothing = [
        (["audit"], "required: RUN"),
        (["audit", str(tmp_path / "none")], "There is no run at"),
        (["audit", str(run), "--out", str(tmp_path / "audit.pdf")], "must end in .html or .json"),
        (["audit", str(run), "--out", str(tmp_path / "none" / "audit.json")], "There is no folder"),
        (["audit", str(run), "--examples", "1"], "at least 2 examples"),
        (["audit", str(run), "--steps", "0"], "must be a whole number of at least 1"),
        (["audit", str(run), "--ode", "-1"], "must be a whole number of at least 0"),
        (["audit", str(run), "--lowest-gamma", "low"], "must be a number, got 'low'"),
        (["audit", str(run), "--split", "tset"], "invalid choice: 'tset'"),
        (["audit", str(run), "--tiems", "3"], "did you mean '--times'?"),
        (["audit", str(run), "--data.test", "20"], "The data differ from the training data"),
        (["audit", str(run), "--device", "toaster"], "The device 'toaster' is not available"),
    ]
    for words, sentence in nothing:
        assert sentence in error(capsys, *words)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_the_place_of_the_file(run: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "audit.json"
    out.mkdir()
    assert "exists; nothing was written" in error(capsys, "audit", str(run), "--out", str(out))
    assert main(["audit", str(run), *SMALL, "--out", str(out), "--overwrite"]) == 2
    assert capsys.readouterr().err.startswith("ndm: error: The audit could not be saved in")


def test_what_was_found_is_shown_even_if_it_cannot_be_saved(
    run: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device", "audit.json")

    monkeypatch.setattr(Audit, "save", full)
    assert main(["audit", str(run), *SMALL, "--out", str(tmp_path / "audit.json")]) == 2
    said = capsys.readouterr()
    assert said.out.startswith("Pinwheel")
    assert "could not be saved" in said.err
    assert "No space left on device" in said.err
    assert list(tmp_path.iterdir()) == []


def test_no_finite_bound_is_an_error(run: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    from ndm.evaluation.auditing import bounds

    per_example = bounds.bound_per_example

    def infinite(*arguments: object, **options: object) -> dict[str, torch.Tensor]:
        return {name: values + torch.inf for name, values in per_example(*arguments, **options).items()}

    monkeypatch.setattr(bounds, "bound_per_example", infinite)
    assert main(["audit", str(run), *SMALL]) == 2
    assert "ndm: error: No example has a finite bound" in capsys.readouterr().err


@pytest.mark.slow
def test_an_imported_model_has_the_bound_of_its_steps_and_two_decoders(tmp_path: Path, capsys: Capture) -> None:
    run, out = str(tmp_path / "run"), tmp_path / "audit.json"
    patterns = ["--data", "Patterns", "--data.size", "8", "--data.channels", "3"]
    assert main(["import", str(saved(tmp_path / "pipeline")), "--out", run, *patterns]) == 0
    few = ["--examples", "8", "--times", "4", "--ode", "2", "--samples", "1", "--probes", "1", "--tolerance", "100"]
    assert main(["audit", run, *few, "--device", "cpu", "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    assert found["unit"] == "bits/dim"
    assert {row["steps"] for row in found["bounds"]} == {10, 50, 1000, N - 1, None}
    assert f"the bound for T = {N - 1} with the posterior variance" in found["quote"][0]
    assert f"--steps {N - 1} --variances own --times {N - 1}" in found["quote"][1]
    assert [row["decoder"] for row in found["ends"]][:2] == ["DenoisedDecoder", "DiscretizedDecoder"]
    assert any("in the place of the DenoisedDecoder" in sentence for sentence in found["advice"])


@pytest.mark.slow
def test_a_table_of_any_columns_has_an_audit(mixed: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "audit.json"
    assert main(["audit", str(mixed / "run"), *SMALL, "--examples", "6", "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    assert found["unit"] == "nats"
    assert [row["dequantization"] for row in found["ode"]] == ["variational", "importance"]
    assert {row["decoder"] for row in found["ends"]} == {"MixedDecoder"}
    assert found["integral"] is None
