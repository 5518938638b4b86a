"""What a run's folder says about its data and its labels."""

from __future__ import annotations

from pathlib import Path

import pytest

from ndm.configs.recorded import label_dropout, looked_for, read_run_data
from ndm.data import Pinwheel
from ndm.training import Run

CONFIG = "data: {class_path: ndm.data.Pinwheel, init_args: {train: 9, validation: 4, test: 2}}\n"


def test_a_runs_data_are_read_and_recognised(tmp_path: Path) -> None:
    run = Run(tmp_path / "run")
    run.begin(CONFIG, Pinwheel(train=9, validation=4, test=2))
    data = read_run_data(run)
    assert isinstance(data, Pinwheel)
    assert len(data.train) == 9
    with pytest.raises(ValueError, match=r"10 train.* or give --other-data to evaluate on these"):
        read_run_data(run, ["--data.train", "10"])
    assert len(read_run_data(run, ["--data.train", "10"], other=True).train) == 10


def test_a_path_that_leads_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = Run(Path("run"))
    run.path.mkdir()
    run.config.write_text("data: {class_path: Table, init_args: {path: x.csv}}\n")
    with pytest.raises(FileNotFoundError, match=r"comes from run/config\.yaml and is relative to"):
        read_run_data(run)
    with pytest.raises(FileNotFoundError, match=r"matches y\.csv: check its spelling\.$"):  # which was typed
        read_run_data(run, ["--data.path", "y.csv"])
    run.config.write_text("data: {class_path: Table, init_args: {path: /nowhere/x.csv}}\n")
    with pytest.raises(FileNotFoundError, match=r"comes from run/config\.yaml: give the new path with --data\.path"):
        read_run_data(run)
    run.config.write_text("data: Pinwheel\n")
    with pytest.raises(FileNotFoundError, match=r"^of something else$"), looked_for(run):
        raise FileNotFoundError("of something else")


@pytest.mark.parametrize(
    ("text", "share"), [("training: {label_dropout: 0.1}", 0.1), ("training: {}", None), ("[", None), ("3", None)]
)
def test_label_dropout_is_found(tmp_path: Path, text: str, share: float | None) -> None:
    run = Run(tmp_path)
    assert label_dropout(run) is None
    run.config.write_text(text)
    assert label_dropout(run) == share
