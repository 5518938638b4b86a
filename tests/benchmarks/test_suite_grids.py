"""The bounds of the suite's models at few steps: measured once, told by row, paired with the reference's."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = pytest.mark.usefixtures("_path")

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

TINY = {
    "data": "pinwheel", "seeds": [0, 1], "seconds": None, "steps": 12, "turn": 0.01, "batch_size": 16, "width": [24],
    "depth": 1, "warmup": 2, "bounds": [5], "times": 5, "examples": 60, "calibration": 200, "share": 0.2,
    "curve_points": 1, "curve_examples": 20, "curve_times": 1,
    "models": {"Identity": {}, "Small, direct": {"transform": "separable", "direct": True, "gate": "free"}},
}  # fmt: skip


def main(folder: Path, *arguments: str) -> int:
    spec = importlib.util.spec_from_file_location("suite_command", BENCHMARKS / "suite.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    places = {"suite": "suite.yaml", "results": "results", "work": "work"}
    return module.main([*(f"--{option}={folder / name}" for option, name in places.items()), *arguments])


def suite_file(folder: Path) -> None:
    real = yaml.safe_load((BENCHMARKS / "suite.yaml").read_text())
    found = {"defaults": real["defaults"], "data": real["data"], "rows": {"tiny": TINY}}
    (folder / "suite.yaml").write_text(yaml.safe_dump(found, sort_keys=False))


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, _path: None) -> Path:
    """A folder in which the row was run, and its grids measured."""
    folder = tmp_path_factory.mktemp("suite")
    suite_file(folder)
    assert main(folder, "--grids") == 0  # nothing is there yet
    assert main(folder) == 0
    assert main(folder, "--grids") == 0
    return folder


def result(folder: Path, model: str, seed: int = 0) -> dict[str, Any]:
    return json.loads((folder / "results" / "grids" / f"tiny--{model}--{seed}.json").read_text())


def test_the_best_steps_are_better_than_even_ones(done: Path) -> None:
    for seed in (0, 1):
        for model in ("identity", "small--direct"):
            found = {(f["steps"], f["grid"]): f for f in result(done, model, seed)["figures"]}
            assert set(found) == {(t, grid) for t in (5, 10, 20) for grid in ("even", "best")}
            for t in (5, 10):
                # Chosen by training examples and judged by test examples: not exactly the best there.
                assert found[t, "best"]["value"] < found[t, "even"]["value"] + found[t, "even"]["stderr"] / 4
                gammas = {grid: found[t, grid]["gammas"] for grid in ("even", "best")}
                assert len(gammas["even"]) == len(gammas["best"]) == t + 1
                assert (gammas["even"][0], gammas["even"][-1]) == (gammas["best"][0], gammas["best"][-1])
                assert gammas["even"] != gammas["best"]


def test_even_steps_have_the_bound_of_the_row(done: Path) -> None:
    row = json.loads((done / "results" / "tiny--identity--0.json").read_text())
    (there,) = [r for r in row["at_equal_time"] if (r["steps"], r["variance"]) == (5, "diagonal")]
    (here,) = [f for f in result(done, "identity")["figures"] if (f["steps"], f["grid"]) == (5, "even")]
    # Other noise, and another choice of the examples that the variance is calibrated on.
    assert here["value"] == pytest.approx(there["value"], abs=3 * (here["stderr"] + there["stderr"]))


def test_differences_are_from_the_reference(done: Path) -> None:
    first, second = (result(done, model)["figures"] for model in ("identity", "small--direct"))
    for a, b in zip(first, second, strict=True):
        assert a["difference"] == a["difference_stderr"] == 0
        assert b["difference"] == pytest.approx(b["value"] - a["value"], abs=2e-6)
        assert 0 < b["difference_stderr"] < a["stderr"] + b["stderr"]


def test_nothing_is_done_twice_and_all_is_told(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {file: file.stat().st_mtime_ns for file in (done / "results" / "grids").glob("*.json")}
    assert len(before) == 4
    assert main(done, "--grids", "tiny") == 0
    said = capsys.readouterr().out
    assert said.count("grids done before") == 2
    assert before == {file: file.stat().st_mtime_ns for file in before}
    from suite import gridding

    value, error = gridding.figure([result(done, "small--direct", s) for s in (0, 1)], 10, "best", "difference")
    line = next(line for line in said.splitlines() if line.startswith("| Small, direct"))
    assert f"{value:+.3f} ± {error:.3f}" in line
    assert "### tiny: even and best steps\n\n2 seeds." in said


def test_results_of_other_weights_are_refused_until_they_are_to_be_made_again(
    done: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = done / "results" / "grids" / "tiny--identity--1.json"
    kept = file.read_text()
    changed = json.loads(kept)
    changed["settings"]["grids"]["weights"] = "others"
    file.write_text(json.dumps(changed))
    assert main(done, "--grids", "--seeds", "1") == 2
    assert "grids.weights others, now" in capsys.readouterr().err
    assert main(done, "--grids", "--seeds", "1", "--redo") == 0
    assert json.loads(file.read_text())["figures"] == json.loads(kept)["figures"]


def test_a_row_that_was_not_run_is_left_out_with_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    suite_file(tmp_path)
    assert main(tmp_path, "--grids") == 0
    assert "tiny, seed 0: left out. No weights of these settings are in tiny--0" in capsys.readouterr().out
