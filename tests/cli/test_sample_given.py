"""Samples of some columns given others by the command."""

from __future__ import annotations

from pathlib import Path

import pandas

from ndm.cli import main
from tests.cli.commands import Capture, error


def test_samples_for_each_row_of_a_table(mixed: Path, tmp_path: Path, capsys: Capture) -> None:
    known, out = tmp_path / "known.csv", tmp_path / "s.csv"
    known.write_text("kind,more,rooms\nhut,1,3\n,2,4\nflat,3,\n")
    command = ["sample", str(mixed / "run"), "--given", str(known), "-n", "4", "--steps", "3", "--out", str(out)]
    assert main(command) == 0
    drawn = pandas.read_csv(out)
    assert list(drawn) == ["price", "rooms", "kind", "built"]
    assert len(drawn) == 12
    assert drawn["kind"].fillna("").tolist() == ["hut"] * 4 + [""] * 4 + ["flat"] * 4
    assert drawn["rooms"][:8].tolist() == [3] * 4 + [4] * 4
    assert drawn["rooms"][8:].isna().all()
    assert drawn["price"][:4].nunique() > 1
    said = capsys.readouterr().err
    assert "columns that are not in the model and are not used: more" in said
    assert "'rooms' has 1 missing cells, and had none in the training" in said
    assert f"12 samples of price, built are in {out}, 4 for each row of {known}" in said
    assert "give --overwrite" in error(capsys, *command)
    assert main([*command, "--overwrite", "--seed", "1"]) == 0
    assert pandas.read_csv(out)["price"].tolist() != drawn["price"].tolist()
    assert main([*command, "--overwrite"]) == 0
    pandas.testing.assert_frame_equal(pandas.read_csv(out), drawn)


def test_other_methods_and_formats(mixed: Path, tmp_path: Path) -> None:
    (tmp_path / "known.csv").write_text("built\n2020-01-03\n")
    out = tmp_path / "s.parquet"
    command = ["sample", str(mixed / "run"), "--given", str(tmp_path / "known.csv"), "--out", str(out)]
    assert main([*command, "--steps", "3", "--method", "ddim"]) == 0
    drawn = pandas.read_parquet(out)
    assert len(drawn) == 1
    assert str(drawn["built"][0]) == "2020-01-03"


def test_what_cannot_be_given_is_refused(mixed: Path, table: Path, run: Path, tmp_path: Path, capsys: Capture) -> None:
    known = tmp_path / "known.csv"

    def refused(text: str, *options: str, model: Path = mixed / "run", out: str = "s.csv") -> str:
        known.write_text(text)
        return error(capsys, "sample", str(model), "--given", str(known), "--out", str(tmp_path / out), *options)

    assert "has no column of the model, whose columns are price, rooms" in refused("a,b\n1,2\n")
    assert "nothing to sample" in refused("price,rooms,kind,built\n1,2,hut,2020-01-01\n")
    assert "has no rows" in refused("rooms\n")
    assert "is empty" in refused("")
    assert "holds text such as 'many'" in refused("rooms\nmany\n")
    assert "must end in .csv or .parquet" in refused("rooms\n1\n", out="s.png")
    assert "--label needs" in refused("rooms\n1\n", "--label", "1")
    assert "label dropout" in refused("rooms\n1\n", "--guidance", "1")
    assert "eta must be" in refused("rooms\n1\n", "--eta", "nan")
    assert "--training.conditionals any" in refused("a\n1\n", model=table / "run")
    assert "is not of a table" in refused("a\n1\n", model=run)
    assert [file.name for file in tmp_path.iterdir()] == ["known.csv"]
