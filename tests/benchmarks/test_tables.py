"""The comparison on tables: the densities are those of the file's units, errors are right, nothing is done twice."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pandas
import pytest
import scipy.stats
import torch
from torch import Tensor, nn

pytestmark = pytest.mark.slow

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def command() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tables_command", BENCHMARKS / "tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def gaussian(folder: Path, name: str = "set", rows: int = 400) -> dict[str, np.ndarray]:
    """A set of two columns whose scales are far apart, as the three files that a set has."""
    random = np.random.default_rng(0)
    (folder / name).mkdir(parents=True)
    splits = {}
    for split, n in {"train": rows, "validation": rows // 2, "test": 50}.items():
        splits[split] = random.normal(size=(n, 2)) @ [[1e-3, 30.0], [0.0, 40.0]] + [5.0, -1e3]
        pandas.DataFrame(splits[split], columns=["a", "b"]).to_parquet(folder / name / f"{split}.parquet")
    return splits


# ---- the errors


def test_error_over_seeds_is_the_spread_over_new_rows_and_new_seeds() -> None:
    from density.summary import paired

    random, rows, seeds = np.random.default_rng(0), 60, 4

    def measured() -> tuple[float, float]:
        shared, each = random.normal(0.3, 1.0, rows), random.normal(0.0, 0.2, (seeds, 1))
        return paired(shared + each + random.normal(0.0, 0.1, (seeds, rows)))

    found = np.array([measured() for _ in range(800)])
    assert found[:, 0].mean() == pytest.approx(0.3, abs=0.03)
    assert math.sqrt((found[:, 1] ** 2).mean()) == pytest.approx(found[:, 0].std(), rel=0.1)


def test_error_of_one_seed_is_that_of_the_rows() -> None:
    from density.summary import paired

    x = np.random.default_rng(0).normal(size=40)
    assert paired(x[None]) == pytest.approx((x.mean(), scipy.stats.sem(x)))


# ---- the other methods


def test_mixture_of_one_part_is_the_fitted_gaussian(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from density import others

    monkeypatch.setattr(others, "COMPONENTS", (1,))
    monkeypatch.setattr(others, "REGULARISATIONS", (1e-9,))
    splits = gaussian(tmp_path)
    facts, rows = others.gmm(others.Table.read(tmp_path / "set"), seed=0)
    train = splits["train"]
    truth = scipy.stats.multivariate_normal(train.mean(0), np.cov(train.T, bias=True))
    np.testing.assert_allclose(rows["test"], truth.logpdf(splits["test"]), atol=1e-5)
    assert facts["validation"] == pytest.approx(truth.logpdf(splits["validation"]).mean(), abs=1e-5)


def test_mixture_is_the_best_by_validation(tmp_path: Path) -> None:
    """400 rows of one Gaussian do not bear many parts, which fit the training rows better."""
    from density import others

    gaussian(tmp_path)
    data = others.Table.read(tmp_path / "set")
    facts, _ = others.gmm(data, seed=0)
    assert facts["settings"]["components"] <= 3
    assert facts["settings"]["compared"] >= 3 * len(others.REGULARISATIONS)


def test_mixture_of_a_large_table_is_chosen_by_the_first_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from density import others

    monkeypatch.setattr(others, "SMALL", 100)
    gaussian(tmp_path / "data")
    main = command().main
    where = ["--data", str(tmp_path / "data"), "--scratch", str(tmp_path / "rows")]
    main(["gmm", *where, "--sets", "set", "--seeds", "4", "5"])
    first, second = (json.loads((tmp_path / "rows" / "gmm" / f"set-{seed}.json").read_text()) for seed in (4, 5))
    assert first["settings"]["compared"] >= 3 + 2
    assert second["settings"] == first["settings"]
    assert second["settings"]["chosen_by_seed"] == 4
    assert second["seconds"]["all"] >= first["seconds"]["all"] - first["seconds"]["fit"]


class Flow(nn.Module):
    """A Gaussian in the flow's place, whose best parameters are known."""

    def __init__(self, features: int, transforms: int, hidden_features: tuple[int, ...]) -> None:
        super().__init__()
        self.mean, self.factor = nn.Parameter(torch.zeros(features)), nn.Parameter(0.5 * torch.eye(features))

    def forward(self) -> Any:
        factor = self.factor.tril(-1) + self.factor.diagonal().abs().diag()
        return torch.distributions.MultivariateNormal(self.mean, scale_tril=factor)


@pytest.fixture
def zuko(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zuko", SimpleNamespace(flows=SimpleNamespace(NSF=Flow)))


def test_flow_is_fitted_in_the_units_of_the_file(tmp_path: Path, zuko: None) -> None:
    from density import others

    splits = gaussian(tmp_path)
    facts, rows = others.nsf_fit(others.Table.read(tmp_path / "set"), (1, 8), 0.0, seed=0, cap=60.0)
    train = splits["train"]
    truth = scipy.stats.multivariate_normal(train.mean(0), np.cov(train.T, bias=True))
    assert rows["test"].mean() == pytest.approx(truth.logpdf(splits["test"]).mean(), abs=0.1)
    assert facts["validation"] == pytest.approx(rows["validation"].mean())
    assert facts["best_step"] <= facts["steps"]
    assert not facts["capped"]


def test_flow_keeps_the_best_weights_and_ends(tmp_path: Path, zuko: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rate that makes every step worse: the first validation is the best, and patience runs out three times."""
    from density import others

    monkeypatch.setattr(others, "RATE", 30.0)
    monkeypatch.setattr(others, "PATIENCE", 2)
    seen: list[float] = []
    real = others.densities

    def densities(flow: Any, x: Tensor) -> np.ndarray:
        found = real(flow, x)
        if len(x) == 200:
            seen.append(float(found.mean()))
        return found

    monkeypatch.setattr(others, "densities", densities)
    gaussian(tmp_path)
    data = others.Table.read(tmp_path / "set")
    facts, _ = others.nsf_fit(data, (1, 8), 0.0, seed=0, cap=60.0)
    assert facts["validation"] + data.log_scale == pytest.approx(max(seen))
    assert facts["steps"] == 25 * (len(seen) - 1)  # the last one is that of the kept weights
    assert facts["best_step"] == 25 * (1 + int(np.argmax(seen)))


def test_flow_without_time_says_so(tmp_path: Path, zuko: None) -> None:
    from density import others

    gaussian(tmp_path)
    facts, _ = others.nsf_fit(others.Table.read(tmp_path / "set"), (1, 8), 0.0, seed=0, cap=1e-9)
    assert facts["capped"]
    assert facts["steps"] == 75  # a validation for each of the three times


def test_flow_of_a_large_table_is_chosen_by_the_first_seed(
    tmp_path: Path, zuko: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from density import others
    from density.cells import Cells

    monkeypatch.setattr(others, "SMALL", 100)
    monkeypatch.setattr(others, "FEW", 100)
    gaussian(tmp_path)
    data, fits = others.Table.read(tmp_path / "set"), Cells(tmp_path, "fits")
    for seed in (0, 1):
        facts, _ = others.nsf(data, "set", seed, 0, fits, cap=1e-9)
        assert facts["settings"]["chosen_by_seed"] == 0
        assert facts["seconds"]["all"] > facts["seconds"]["fit"]
    assert sorted(key[-2:] for key in fits.finished()) == ["-0", "-0", "-1"]


# ---- ndm


FAKE = """
import csv, pathlib, sys
out = pathlib.Path(sys.argv[sys.argv.index("--out") + 1])
if sys.argv[1] == "train":
    assert sys.argv[2:4] == ["table", "--data.path"]
    out.mkdir()
    (out / "metrics.csv").write_text("step,val/total\\n50,\\n60,3.5\\n120,2.5\\n170,\\n180,2.75\\n")
else:
    assert (pathlib.Path(sys.argv[2]) / "metrics.csv").exists()
    out.write_text("row,nelbo,log_prob\\n0,2.0,-1.5\\n1,3.0,\\n2,4.0,-3.5\\n")
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A source tree whose ``ndm`` writes what is written here."""
    package = tmp_path / "checkout" / "src" / "ndm"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(FAKE)
    return tmp_path / "checkout"


def ndm_cell(tmp_path: Path, checkout: Path, *more: str) -> list[dict[str, Any]]:
    """The lines of the results after a set and a seed of ``checkout``."""
    where = ["--scratch", str(tmp_path / "rows")]
    if not (tmp_path / "data").exists():
        gaussian(tmp_path / "data")
    main = command().main
    options = ["--source", str(checkout), "--name", "fake", "--sets", "set", "--seeds", "3"]
    main(["ndm", "--data", str(tmp_path / "data"), *where, *options, *more])
    main(["summary", *where, "--results", str(tmp_path / "r.jsonl")])
    return [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()][1:]


def test_ndm_is_that_of_the_checkout(tmp_path: Path, checkout: Path) -> None:
    (one,) = ndm_cell(tmp_path, checkout)
    assert (one["mean"], one["bound"], one["unsolved"], one["rows"]) == (-2.5, -3.0, 1, 3)
    assert (one["steps"], one["best_step"], one["validation"], one["last_validation"]) == (180, 120, -2.5, -2.75)
    assert one["seconds"]["all"] == pytest.approx(one["seconds"]["fit"] + one["seconds"]["score"])
    assert 0 < one["seconds"]["fit"] < 30


def test_finished_cells_are_not_done_again(tmp_path: Path, checkout: Path) -> None:
    before = ndm_cell(tmp_path, checkout)
    (checkout / "src" / "ndm" / "__main__.py").write_text("raise SystemExit(1)")
    assert ndm_cell(tmp_path, checkout) == before


def test_command_that_fails_is_shown_and_can_be_repeated(tmp_path: Path, checkout: Path) -> None:
    main = checkout / "src" / "ndm" / "__main__.py"
    main.write_text(FAKE.replace("else:", "else:\n    raise SystemExit('no such thing')"))
    with pytest.raises(SystemExit, match="no such thing"):
        ndm_cell(tmp_path, checkout)
    main.write_text(FAKE)
    assert len(ndm_cell(tmp_path, checkout)) == 1


def test_other_source_needs_another_name(tmp_path: Path, checkout: Path) -> None:
    ndm_cell(tmp_path, checkout)
    cell = tmp_path / "rows" / "fake" / "set-3.json"
    cell.write_text(json.dumps(json.loads(cell.read_text()) | {"commit": "1234567"}))
    with pytest.raises(SystemExit, match="choose another --name"):
        ndm_cell(tmp_path, checkout)


def test_folder_without_the_source_is_refused(tmp_path: Path, checkout: Path) -> None:
    (checkout / "src").rename(checkout / "elsewhere")
    with pytest.raises(SystemExit, match=r"is not what|failed"):
        ndm_cell(tmp_path, checkout)


def test_the_real_commands(tmp_path: Path) -> None:
    """The two commands as they are: their options, their files, and densities in the units of the file."""
    gaussian(tmp_path / "data", rows=400)
    options = "--trainer.max_steps 100 --trainer.val_check_interval 50 --training.batch_size 64"
    (one,) = ndm_cell(tmp_path, BENCHMARKS.parent, "--options", options)
    assert one["steps"] == 100
    assert one["unsolved"] == 0
    # Of x = (1e-3, 30) u + (0, 40) v: log |det| = log(1e-3 * 40).
    assert one["mean"] == pytest.approx(-math.log(2 * math.pi * math.e) - math.log(0.04), abs=0.6)
    assert one["settings"]["command"].startswith("ndm train table --data.path SET --data.kinds numeric --trainer")


# ---- the summary


def test_reference_is_the_better_one_and_differences_are_paired(tmp_path: Path) -> None:
    from density.cells import Cells
    from density.summary import lines

    random = np.random.default_rng(0)
    hard = random.normal(0.0, 10.0, 200)
    facts = {"steps": 5, "seconds": {"fit": 1.0, "all": 2.0}}
    for method, level in {"gmm": 0.0, "nsf": 1.0, "mine": 1.5}.items():
        for seed in (0, 1):
            rows = hard + level + random.normal(0.0, 0.1, 200)
            rows[7 * seed] = math.nan if method == "mine" else rows[7 * seed]
            Cells(tmp_path, method).write(f"stock-{seed}", facts, test=rows)
    found = lines(tmp_path)
    pairs = {one["method"]: one for one in found if "against" in one}
    assert {one["against"] for one in pairs.values()} == {"nsf"}
    assert pairs["mine"]["difference"] == pytest.approx(0.5, abs=0.03)
    assert pairs["gmm"]["difference"] == pytest.approx(-1.0, abs=0.03)
    assert pairs["mine"]["difference_stderr"] < 0.05  # the rows' own spread is 0.7
    assert [one["unsolved"] for one in found if one["method"] == "mine" and "seed" in one] == [1, 1]
