"""The suite of controlled comparisons: what is equal is equal, and a kill loses nothing but the work at hand."""

from __future__ import annotations

import itertools
import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

TINY = {
    "data": "pinwheel", "seeds": [0], "seconds": None, "steps": 12, "turn": 0.01, "batch_size": 16, "width": [24],
    "depth": 1, "warmup": 2, "bounds": [2, 5, None], "times": 2, "examples": 60, "calibration": 100, "share": 0.2,
    "curve_points": 3, "curve_examples": 20, "curve_times": 1,
    "models": {"Identity": {}, "Separable": {"transform": "separable"}, "Neural": {"transform": "neural"}},
}  # fmt: skip


def suite_file(folder: Path, **changes: Any) -> Path:
    """A suite with one short row, whose other fields are those of the suite that is measured."""
    real = yaml.safe_load((BENCHMARKS / "suite.yaml").read_text())
    row = {**TINY, **changes}
    path = folder / "suite.yaml"
    plots = {"steps": ["tiny"], "seconds": ["tiny"], "share": ["tiny"]}
    path.write_text(
        yaml.safe_dump(
            {"defaults": real["defaults"], "data": real["data"], "rows": {"tiny": row}, "plots": plots}, sort_keys=False
        )
    )
    return path


def tiny(folder: Path, **changes: Any) -> Any:
    from suite.settings import read

    return read(suite_file(folder, **changes)).rows["tiny"]


def command(folder: Path, *arguments: str, results: str = "results") -> list[str]:
    places = {"suite": "suite.yaml", "results": results, "work": f"work-{results}"}
    return [*(f"--{option}={folder / name}" for option, name in places.items()), *arguments]


def main(arguments: list[str]) -> int:
    """benchmarks/suite.py, whose name is that of its package."""
    import importlib.util

    spec = importlib.util.spec_from_file_location("suite_command", BENCHMARKS / "suite.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main(arguments)


def figures(folder: Path) -> dict[str, Any]:
    """Every result, without when it was made and how long it took."""
    found = {}
    for file in sorted(folder.glob("tiny--*.json")):
        result = json.loads(file.read_text())
        del result["environment"], result["facts"]["seconds"], result["facts"]["measuring_seconds"]
        result["curve"] = [point[1:] for point in result["curve"]]
        found[file.name] = result
    return found


# ---- equal parameters


@pytest.mark.parametrize("name", ["pinwheel-share", "digits-share", "digits-size", "digits-f", "digits-variance"])
def test_all_models_of_a_row_have_as_many_parameters_as_their_size_says(name: str) -> None:
    from suite.building import build, matched
    from suite.datasets import dataset
    from suite.settings import read

    row = read().rows[name]
    data = dataset(row.data)
    widths = matched(row, data)
    count = {
        e.name: [p.numel() for p in build(e, row, data, widths[e.name]).parameters()] for e in row.models
    }  # fmt: skip
    wanted = sum(count[row.reference.name])
    for entry in row.models:
        assert sum(count[entry.name]) == pytest.approx(entry.size * wanted, rel=0.005)
        in_f = sum(p.numel() for p in build(entry, row, data, widths[entry.name]).transform.parameters())
        share = entry.share if entry.learned else 0
        assert in_f / sum(count[entry.name]) == pytest.approx(share, abs=min(0.0101 + share / 4, 0.0021 + share / 2))


@pytest.mark.parametrize("name", ["pinwheel", "checkerboard-tuned", "table-tuned"])
def test_a_perceptron_gives_up_to_f_what_f_has_and_not_more(name: str) -> None:
    from suite.building import matched
    from suite.datasets import dataset
    from suite.settings import read

    row = read().rows[name]
    for entry, widths in zip(row.models, matched(row, dataset(row.data)).values(), strict=True):
        # The number of parameters goes with the square of the width.
        assert widths.denoiser[0] == pytest.approx(row.width[0] * (1 - entry.share * entry.learned) ** 0.5, rel=0.04)


def test_a_table_of_levels_is_for_data_with_levels(tmp_path: Path) -> None:
    from suite.building import matched
    from suite.datasets import dataset

    row = tiny(tmp_path, models={"Identity": {}, "Levels": {"transform": "separable", "f_network": "table"}})
    with pytest.raises(ValueError, match="Model Levels: a table needs data with levels"):
        matched(row, dataset("pinwheel"))


def test_a_model_that_cannot_be_as_large_is_refused(tmp_path: Path) -> None:
    from suite.building import matched
    from suite.datasets import dataset

    # Told the noise level in 64 numbers, even the narrowest F is larger than that.
    row = tiny(tmp_path, f_embedding=64, models={"Identity": {}, "Neural": {"transform": "neural", "share": 0.1}})
    with pytest.raises(ValueError, match=r"Row tiny, model Neural: .* Change the row's width"):
        matched(row, dataset("pinwheel"))


# ---- equal time, equal steps, equal chance


def contestants(row: Any, seed: int = 0) -> list[Any]:
    from suite.building import build, matched
    from suite.datasets import dataset
    from suite.racing import Contestant

    data = dataset(row.data)
    widths, made = matched(row, data), []
    for entry in row.models:
        torch.manual_seed(seed)
        model = build(entry, row, data, widths[entry.name])
        made.append(Contestant(entry.name, model, entry, row, data.examples("train"), seed))
    return made


def test_every_model_gets_its_seconds_in_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from suite import racing

    models = {"Identity": {}, "Neural": {"transform": "neural"}}
    runners = contestants(tiny(tmp_path, steps=None, seconds=1.5, turn=0.1, models=models))
    # A clock that only steps move, so that the outcome depends on the rule and not on the machine.
    now, order, seconds = [0.0], [], {c.name: 0.0 for c in runners}
    costs = {"Identity": 0.01, "Neural": 0.035}
    monkeypatch.setattr(racing, "time", SimpleNamespace(process_time=lambda: now[0]))
    for c in runners:

        def timed(name: str = c.name, step: Any = c.step) -> None:
            step()
            now[0] += costs[name]
            seconds[name] += costs[name]
            order.append(name)

        c.step = timed
    racing.race(runners, lambda model, entry: (0.0, 0.0))
    for c in runners:
        assert seconds[c.name] == pytest.approx(1.5, abs=costs[c.name] / 2 + 1e-9)
        assert c.seconds == pytest.approx(seconds[c.name])
    # At most fifteen turns each, fewer where steps are long; and no model waits for the end of another.
    turns = [name for name, _ in itertools.groupby(order)]
    assert len(turns) >= 2 * 13
    assert turns[:6] == [c.name for c in runners] * 3


def test_equal_steps_are_compared_at_the_last_step_of_the_grid_that_all_have_reached(tmp_path: Path) -> None:
    from suite.racing import RATIO, common_step, race, weights_at

    runners = contestants(tiny(tmp_path, steps=None, seconds=0.3, turn=0.02))
    seen: dict[tuple[str, int], torch.Tensor] = {}
    for c in runners:

        def noted(c: Any = c, step: Any = c.step) -> None:
            step()
            seen[c.name, c.steps] = c.average.module.denoiser.net.input.weight.detach().clone()

        c.step = noted
    race(runners, lambda model, entry: (0.0, 0.0))
    common, slowest = common_step(runners), min(c.steps for c in runners)
    assert slowest / RATIO - 1 <= common <= slowest
    for c in runners:
        assert torch.equal(weights_at(c, common)["denoiser.net.input.weight"], seen[c.name, common])
        assert not torch.equal(weights_at(c, c.steps)["denoiser.net.input.weight"], seen[c.name, common // 2])


def test_the_models_of_a_seed_see_the_same_batches(tmp_path: Path) -> None:
    row = tiny(tmp_path)
    batches: dict[str, list[torch.Tensor]] = {}
    for c in contestants(row):
        original = c._batch
        c._batch = lambda g, n=c.name, f=original: batches.setdefault(n, []).append(b := f(g)) or b
        c.turn()
    first, *others = batches.values()
    for other in others:
        for a, b in zip(first, other, strict=False):
            assert torch.equal(a, b)


def test_alternating_training_moves_f_in_every_second_step_only(tmp_path: Path) -> None:
    row = tiny(tmp_path, updates="alternating")
    c = contestants(row)[1]
    f, rest = c.model.transform.net.output.weight, c.model.denoiser.net.output.weight
    for step in range(4):
        before = f.detach().clone(), rest.detach().clone()
        c.step()
        moved = [not torch.equal(a, b) for a, b in zip(before, (f, rest), strict=True)]
        assert moved == [step % 2 == 1, step % 2 == 0]


def test_the_end_points_have_a_learning_rate_of_their_own(tmp_path: Path) -> None:
    moved = {}
    for rate in (1.0, 10.0):
        c = contestants(tiny(tmp_path, endpoint_rate=rate))[0]
        c.step()
        moved[rate] = c.model.schedule.end_shifts.detach().abs()
    assert moved[10.0] == pytest.approx(10 * moved[1.0], rel=1e-3)  # Adam's first step is the learning rate


def test_f_has_a_learning_rate_of_its_own(tmp_path: Path) -> None:
    moved = {}
    for rate in (1.0, 0.1):
        c = contestants(tiny(tmp_path, f_rate=rate))[1]
        before = [p.detach().clone() for p in c.model.transform.parameters()]
        c.step()
        moved[rate] = [
            (p.detach() - b).abs().max().item() for p, b in zip(c.model.transform.parameters(), before, strict=True)
        ]
    assert max(moved[1.0]) > 0
    assert moved[0.1] == pytest.approx([m / 10 for m in moved[1.0]], rel=1e-3)


def test_m_is_trained_for_variance_unless_it_is_left_to_the_bound(tmp_path: Path) -> None:
    assert contestants(tiny(tmp_path))[0].model.schedule.minimize_variance
    assert not contestants(tiny(tmp_path, m=None))[0].model.schedule.minimize_variance


# ---- figures


def test_one_pass_measures_every_variance_as_passes_of_their_own_do(tmp_path: Path) -> None:
    from suite.measuring import bounds, calibrated

    from ndm._internal.random import seed_of
    from ndm.method.variances import PosteriorVariance

    c = contestants(tiny(tmp_path))[1]
    for _ in range(3):
        c.step()
    model, x = c.average.module.eval(), c.examples[:30]
    variances = {"posterior": PosteriorVariance(), **calibrated(model, c.examples, 3, 90)}
    found = bounds(model, x, 3, variances, times=20)
    for name, variance in variances.items():
        model.reverse_variance = variance
        generator = torch.Generator().manual_seed(seed_of(0, 0))
        total = torch.zeros(30, dtype=torch.float64)
        for i in range(3):
            u = torch.rand(30, generator=generator, dtype=torch.float64)
            with torch.no_grad():
                total += model.bound(x, 3, times=(i + u) / 3, generator=generator).total.double() / 3
        torch.testing.assert_close(found[name], total, rtol=1e-6, atol=1e-6)
    assert found["isotropic"].mean() < found["posterior"].mean()
    # Calibrated by hand: the mean over the examples is least at the variance that is fitted to them.
    model.uncalibrate().calibrate(c.examples[:30], 3, "isotropic")
    assert model.calibrations["3"].log_ratio == pytest.approx(variances["isotropic"].log_ratio, rel=0.5)


def test_differences_are_paired_by_example() -> None:
    from suite.measuring import compared

    random = np.random.default_rng(0)
    common = random.normal(size=50)
    theirs, ours = common + 0.01 * random.normal(size=50), common - 0.1 + 0.01 * random.normal(size=50)
    parts = {"10/reconstruction": torch.zeros(50), "10/prior": torch.ones(50)}
    (row,) = compared({"10/posterior": torch.from_numpy(ours), **parts}, {"10/posterior": torch.from_numpy(theirs)})
    apart = ours - theirs
    assert row["difference"] == pytest.approx(apart.mean(), abs=1e-6)
    assert row["difference_stderr"] == pytest.approx(apart.std(ddof=1) / 50**0.5, abs=1e-6)
    assert row["stderr"] > 10 * row["difference_stderr"]
    assert (row["steps"], row["variance"], row["prior"]) == (10, "posterior", 1.0)


def test_the_error_over_seeds_has_the_spread_of_the_seeds_and_the_error_over_examples() -> None:
    from suite.measuring import over_seeds

    means, errors = np.array([1.0, 1.2, 1.7]), np.array([0.1, 0.2, 0.3])
    mean, error = over_seeds(list(zip(means, errors, strict=True)))
    assert mean == pytest.approx(means.mean())
    assert error == pytest.approx((means.var(ddof=1) / 3 + (errors**2).mean()) ** 0.5)
    assert over_seeds([(1.0, 0.1)]) == pytest.approx((1.0, 0.1))


# ---- the command


def test_a_suite_that_was_killed_goes_on_and_has_the_figures_it_would_have_had(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suite_file(tmp_path)
    results = tmp_path / "results"
    arguments = [sys.executable, str(BENCHMARKS / "suite.py"), *command(tmp_path)]
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 600  # long, for a busy machine
    while not list(results.glob("tiny--*.json")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = {file: file.stat().st_mtime_ns for file in results.glob("tiny--*.json")}
    assert before

    assert main(command(tmp_path)) == 0
    assert len(figures(results)) == 3
    assert before == {file: file.stat().st_mtime_ns for file in before}, "what was done was done again"
    assert main(command(tmp_path, results="at-once")) == 0
    assert figures(results) == figures(tmp_path / "at-once")
    kept = sorted(file.name for file in (tmp_path / "work-results").glob("*/*"))
    assert set(kept) == {"trained.json", "weights.safetensors"}
    capsys.readouterr()

    assert main(command(tmp_path)) == 0
    assert "done before" in capsys.readouterr().out
    assert main(command(tmp_path, "--list")) == 0
    assert "3 of 3 done" in capsys.readouterr().out
    _table_and_plots_show(results, tmp_path)
    assert main(command(tmp_path, "--plots")) == 0
    assert {file.name for file in results.glob("*.png")} == {f"bound-by-{n}.png" for n in ("steps", "seconds", "share")}


def _table_and_plots_show(results: Path, folder: Path) -> None:
    from suite.figures import markdown
    from suite.figures import results as read_results

    text = markdown("tiny", read_results(results)["tiny"])
    neural = json.loads((results / "tiny--neural--0.json").read_text())
    (row,) = [r for r in neural["at_equal_time"] if r["steps"] is None]
    line = next(line for line in text.splitlines() if line.startswith("| Neural"))
    assert f"{row['value']:.3f} ± {row['stderr']:.3f}" in line
    assert f"{row['difference']:+.3f} ± {row['difference_stderr']:.3f}" in line
    assert f"{neural['facts']['parameters']:,}" in line


def test_results_of_other_settings_are_refused_until_they_are_to_be_made_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suite_file(tmp_path, models={"Identity": {}})
    assert main(command(tmp_path)) == 0
    first = figures(tmp_path / "results")
    assert main(command(tmp_path, "--steps", "9")) == 2
    assert "row.steps 12, now 9" in capsys.readouterr().err
    assert figures(tmp_path / "results") == first
    assert main(command(tmp_path, "--steps", "9", "--redo")) == 0
    (again,) = figures(tmp_path / "results").values()
    assert again["facts"]["steps"] == 9


def test_a_tuning_of_other_settings_is_refused_with_the_field_that_differs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes: dict[str, Any] = {"tune": {"learning_rate": [1e-3]}, "tune_steps": 2, "models": {"Identity": {}}}
    suite_file(tmp_path, m=None, **changes)
    assert main(command(tmp_path)) == 0
    # What was made before a field was there is as what has none in it.
    for file in (tmp_path / "results").glob("*.json"):
        assert '"m": null, ' in file.read_text()
        file.write_text(file.read_text().replace('"m": null, ', ""))
    capsys.readouterr()
    assert main(command(tmp_path)) == 0
    assert "training" not in capsys.readouterr().out
    suite_file(tmp_path, m="variance", **changes)
    assert main(command(tmp_path)) == 2
    assert "with other settings: models[0].m None, now variance. --tune tiny" in capsys.readouterr().err


def test_a_row_that_is_run_again_is_held_against_its_results(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suite_file(tmp_path, tune={"learning_rate": [1e-3]}, tune_steps=2, bounds=[10, None], seeds=[0, 1])
    again = tmp_path / "again"
    assert main(command(tmp_path, "--again", str(again))) == 2
    assert "Row tiny has no results in results to run again: it was not run." in capsys.readouterr().err
    assert not again.exists()
    assert main(command(tmp_path)) == 0
    capsys.readouterr()
    assert main(command(tmp_path, "--steps", "9", "--again", str(again))) == 2
    assert "to run again: row.steps 12, now 9." in capsys.readouterr().err
    assert main(command(tmp_path, "--again", str(tmp_path / "results"))) == 2
    assert "--again needs a folder of its own" in capsys.readouterr().err
    assert not again.exists()

    assert main(command(tmp_path, "--again", str(again))) == 0
    said = capsys.readouterr().out
    assert "tiny, seed 1: training 3 models side by side" in said
    assert (
        "2 seeds. 6 of 6 figures have come out again within 2 combined standard errors; the largest change is 0.0."
        in said
    )
    assert figures(again) == figures(tmp_path / "results")

    file = again / "tiny--neural--1.json"
    changed = json.loads(file.read_text())
    (bound,) = [r for r in changed["at_equal_time"] if r["steps"] is None]
    bound["difference"] += 100 * bound["difference_stderr"]
    file.write_text(json.dumps(changed))
    assert main(command(tmp_path, "--again", str(again), "--seeds", "1")) == 0
    said = capsys.readouterr().out
    assert "1 seed. 5 of 6 figures" in said
    assert "the largest change is 70.7." in said  # 100 errors of one run are 100 / sqrt 2 of the difference of two


def test_tuning_tries_the_same_grid_for_every_model_and_keeps_the_best(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # A learning rate of a thousand takes any model far from everything.
    models = {"Identity": {}, "Separable": {"transform": "separable"}}
    suite_file(tmp_path, tune={"learning_rate": [1e3, 1e-3], "gamma_min": [-8.0]}, tune_steps=20, models=models)
    assert main(command(tmp_path)) == 0
    found = json.loads((tmp_path / "results" / "tuning--tiny.json").read_text())
    assert [t["model"] for t in found["trials"]] == ["Identity"] * 2 + ["Separable"] * 2
    for name in models:
        assert found["chosen"][name] == {"learning_rate": 1e-3, "gamma_min": -8.0}
        result = json.loads((tmp_path / "results" / f"tiny--{name.lower()}--0.json").read_text())
        assert result["settings"]["model"]["learning_rate"] == 1e-3


def test_data_that_are_not_there_are_left_out_with_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suite_file(tmp_path, data="mnist", width=[16, 32, 32], network="unet")
    assert main(command(tmp_path)) == 0
    assert "tiny: left out. mnist needs images: --data FOLDER" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rat": 1.0}, "fields that are not known: learning_rat"),
        ({"seconds": 3.0}, "either seconds or steps"),
        ({"models": {"Identity": {"gat": "sigma"}}}, "fields that are not a model's: gat"),
        ({"models": {"Identity": {"transform": "identical"}}}, "transform must be one of"),
        ({"models": {"Separable": {"transform": "separable"}}}, "the first model is the reference"),
        ({"tune": {"learning_rate": [1.0]}}, "tune_seconds or tune_steps"),
        ({"data": "moons"}, "data must be one of"),
    ],
)
def test_a_suite_that_makes_no_sense_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(tmp_path, **changes)


def test_rows_are_chosen_by_their_names_and_fields() -> None:
    from suite.settings import chosen, read

    rows = list(read().rows.values())
    assert {row.data for row in chosen(rows, only=["data=digits"])} == {"digits"}
    assert [row.name for row in chosen(rows, ["table", "digits"], ["data=table"])] == ["table"]
    with pytest.raises(ValueError, match=f"There is no row digit: the rows are {rows[0].name}, "):
        chosen(rows, ["digit"])
    assert replace(rows[0], seconds=1.0).seconds == 1.0
