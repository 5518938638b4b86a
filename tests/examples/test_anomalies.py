"""The benchmark of anomaly detection: its outliers, its area under the curve, and that it goes on where it was."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def anomalies() -> ModuleType:
    """benchmarks/anomalies.py, which imports its neighbours by their bare names."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        import anomalies

    return anomalies


@pytest.fixture
def scores() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    return random.normal(0, 1, 80).round(1), random.normal(0.8, 1.5, 50).round(1)  # rounded, so that some are equal


class TestArea:
    def test_is_scikit_learns(self, anomalies: ModuleType, scores: tuple[np.ndarray, np.ndarray]) -> None:
        inliers, outliers = scores
        auc, _ = anomalies.area(anomalies.placements(inliers, outliers))
        expected = roc_auc_score(np.repeat([0, 1], [80, 50]), np.concatenate(scores))
        assert auc == pytest.approx(expected, abs=1e-12)

    def test_error_is_the_spread_over_new_rows(self, anomalies: ModuleType) -> None:
        random = np.random.default_rng(0)
        found = [
            anomalies.area(anomalies.placements(random.normal(0, 1, 60), random.normal(1, 1, 40))) for _ in range(800)
        ]
        areas, errors = np.array(found).T
        assert errors.mean() == pytest.approx(areas.std(), rel=0.08)  # the spread itself is known to 2.5%

    def test_of_a_difference_takes_account_of_the_same_rows(self, anomalies: ModuleType) -> None:
        random = np.random.default_rng(0)
        found = []
        for _ in range(500):  # of more rows than above, for DeLong's error is a little large with few
            inliers, outliers = random.normal(0, 1, 240), random.normal(1, 1, 160)
            noisy = inliers + random.normal(0, 0.3, 240), outliers + random.normal(0, 0.3, 160)
            scores = {"Identity": np.concatenate([inliers, outliers]), "NDM": np.concatenate(noisy)}
            inlier = np.arange(400) < 240
            row = next(r for r in anomalies.measured(scores, inlier, ~inlier) if r["method"] == "NDM")
            found.append((row["difference"], row["difference_stderr"], row["stderr"]))
        difference, error, own = np.array(found).T
        assert error.mean() == pytest.approx(difference.std(), rel=0.1)
        assert error.mean() < own.mean() / 2


class TestOutliers:
    def test_swapped_rows_differ_in_one_column_which_is_as_usual(self, anomalies: ModuleType) -> None:
        random = np.random.default_rng(0)
        others = random.normal(size=(500, 8))
        rows = random.normal(size=(400, 8))
        found = anomalies.outliers("swapped", rows, others, random)
        assert ((found != rows).sum(1) == 1).all()
        changed = found != rows
        assert set(found[changed]) <= set(others.flatten())
        assert [set(found[changed[:, i], i]) <= set(others[:, i]) for i in range(8)] == [True] * 8

    def test_shifted_rows_have_moved_by_half_a_deviation_in_one_column(self, anomalies: ModuleType) -> None:
        random = np.random.default_rng(0)
        others = random.normal(size=(500, 8)) * np.arange(1, 9)
        rows = random.normal(size=(400, 8))
        moved = anomalies.outliers("shifted", rows, others, random) - rows
        assert ((np.abs(moved) > 1e-9).sum(1) == 1).all()
        assert np.allclose(np.abs(moved).max(0), 0.5 * others.std(0))

    def test_contaminate_the_share_that_is_asked_for(self, anomalies: ModuleType) -> None:
        mixture = anomalies.Mixture()
        clean, rows = mixture.sample(3000, 5), anomalies.contaminated(mixture, 3000, 0.02, 5)
        assert ((rows != clean).any(1)).sum() == 60
        assert (anomalies.contaminated(mixture, 100, 0.0, 5) == mixture.sample(100, 5)).all()

    def test_a_class_is_in_no_split_and_all_of_it_is_outside(self, anomalies: ModuleType) -> None:
        from sklearn.datasets import load_digits

        data = anomalies.Without(3)
        assert not any((data.labels(split) == 3).any() for split in ("train", "validation", "test"))
        count = int((load_digits().target == 3).sum())
        assert len(data.outliers()) == count
        assert sum(len(data.split(s)) for s in ("train", "validation", "test")) == 1797 - count


@pytest.mark.slow
def test_goes_on_where_it_was(tmp_path: Path) -> None:
    out = tmp_path / "found.jsonl"
    command = [sys.executable, BENCHMARKS / "anomalies.py", "--tiny", "--seeds", "0", "--out", out, "--digits"]

    def rows(*digits: str) -> list[dict]:
        subprocess.run([*command, *digits], check=True, capture_output=True)
        return [json.loads(line) for line in out.read_text().splitlines()][1:]

    first = rows("1")
    assert len({(r["data"], r.get("training"), r.get("held_out")) for r in first}) == 3
    second = rows("1", "2")
    assert second[: len(first)] == first
    assert {r["held_out"] for r in second[len(first) :]} == {2}
    other = subprocess.run([*command, "1", "--seconds", "3"], check=False, capture_output=True, text=True)
    assert other.returncode == 0  # the seconds of --tiny are its own
    whole = [c for c in command if c != "--tiny"]
    refused = subprocess.run([*whole, "1"], check=False, capture_output=True, text=True)
    assert refused.returncode == 1
    assert "other settings" in refused.stderr
