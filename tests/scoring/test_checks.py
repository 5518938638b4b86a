"""What is refused before anything is scored."""

from __future__ import annotations

from pathlib import Path

import pytest

import ndm
from ndm.networks import ResidualMLP
from ndm.scoring import score
from tests.scoring.models import FAST, draw, gaussian, small


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"times": 3}, "even"),
        ({"times": 0}, "even"),
        ({"tolerance": 0.0}, "tolerance"),
        ({"samples": 0}, "samples"),
        ({"probes": 0}, "probes"),
        ({"batch_size": 0}, "batch_size"),
        ({"max_rows": 0}, "max_rows"),
        ({"precision": "16"}, "precision '16'"),
        ({"seed": -1}, "seed"),
    ],
)
def test_options_out_of_range_are_refused(tmp_path: Path, options: dict, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        score(gaussian(), draw(3), tmp_path / "x.csv", **options)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_written_or_scored_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("mine")
    with pytest.raises(FileExistsError, match="exists"):
        score(gaussian(), draw(3), tmp_path / "x.csv")
    with pytest.raises(ValueError, match=r"\.parquet or \.csv"):
        score(gaussian(), draw(3), tmp_path / "x.txt")
    with pytest.raises(FileNotFoundError, match="no folder"):
        score(gaussian(), draw(3), tmp_path / "none" / "x.csv")
    with pytest.raises(ValueError, match="no rows"):
        score(gaussian(), draw(0), tmp_path / "y.csv")
    with pytest.raises(ValueError, match="class-conditional, and the rows have no labels"):
        score(small(classes=3), draw(3), tmp_path / "y.csv")
    direct = ndm.NDM(ndm.LinearSchedule(), ndm.Identity(), ndm.DirectDenoiser(ResidualMLP(3, hidden=4, depth=1)))
    with pytest.raises(ValueError, match="no ODE"):
        score(direct, draw(3), tmp_path / "y.csv")
    score(direct, draw(3), tmp_path / "y.csv", **FAST)
    assert (tmp_path / "x.csv").read_text() == "mine"
