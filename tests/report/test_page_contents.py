"""What the page says of runs: bounds, evaluations, differences and what is missing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import ndm
from ndm.data import Pinwheel, part_of
from ndm.evaluation import mean_and_error
from ndm.report import report
from ndm.report.blocks import with_error
from ndm.report.measures import noise_profile
from ndm.report.sections import configuration, evaluation, noise, samples, training
from ndm.report.subjects import subjects
from tests.report.pages import NAME, SVG, Only, parse, section, tables, words


def test_the_bound_is_that_of_the_examples(pages: dict[str, Path], points: Path, baseline: Path) -> None:
    rows = part_of(40, 12, seed=0)
    data = Pinwheel(train=64, validation=32, test=40).test[rows]
    models = [ndm.NDM.from_pretrained(run / "model").eval() for run in (points, baseline)]
    first, second = (noise_profile(model, data, points=8) for model in models)
    found = tables(parse(pages["pair"]))
    terms = found["The bound in continuous time, nats"]
    assert terms[0] == ["", NAME, "baseline"]
    assert terms[1] == ["bound", *(with_error(*mean_and_error(p.total)) for p in (first, second))]
    assert terms[2] == ["of which diffusion", *(with_error(*mean_and_error(p.diffusion)) for p in (first, second))]
    paired = found[f"Difference from {NAME}, paired, nats"]
    assert paired[0] == ["", "baseline"]
    assert paired[1] == ["bound", with_error(*mean_and_error(second.total - first.total), signed=True)]
    # It is not the error of two independent averages.
    assert not paired[1][1].endswith(
        with_error(0, (first.total.var() / 12 + second.total.var() / 12).sqrt().item())[4:]
    )


def test_bits_per_dimension_for_data_of_levels(pages: dict[str, Path]) -> None:
    found = tables(parse(pages["images"]))
    total, *terms = (float(row[1].split(" ")[0]) for row in found["The bound in continuous time, bits/dim"][1:5])
    assert total == pytest.approx(sum(terms), abs=0.01)
    assert "trained on the bound for T = 5 steps" in words(section(parse(pages["images"]), "bound"))


def test_the_evaluation_is_that_of_the_folder(pages: dict[str, Path], points: Path, baseline: Path) -> None:
    one, two = (json.loads((run / "evaluation.json").read_text())["rows"] for run in (points, baseline))
    found = tables(parse(pages["pair"]))["Results of ndm evaluate on the test split"]
    assert found[0] == ["", NAME, "baseline", "unit", "examples", "kind"]
    assert [row[0] for row in found[1:]] == [
        "bound, T = 2, posterior", "bound, T = 2, isotropic", "bound, T = 4, posterior", "bound, T = 4, isotropic",
        "bound, continuous time", "Gaussian mixture",
    ]  # fmt: skip
    assert found[1][1] == with_error(one[0]["value"], one[0]["stderr"])
    assert found[1][2] == with_error(two[0]["value"], two[0]["stderr"])
    assert found[2][2] == "–"  # the second has no such figure
    assert found[1][3:5] == ["nats", "40"]


def test_differences_of_the_same_examples_are_paired(pages: dict[str, Path], points: Path, baseline: Path) -> None:
    one, two = (np.load(run / "evaluation.npz") for run in (points, baseline))
    found = tables(parse(pages["pair"]))[f"Difference from {NAME}, as evaluated, paired"]
    assert found[0] == ["", "baseline", "unit"]
    assert [row[0] for row in found[1:]] == ["bound, T = 2, posterior", "bound, continuous time"]
    for name, difference, unit in found[1:]:
        change = two[name] - one[name]
        error = change.std(ddof=1) / len(change) ** 0.5
        assert difference == with_error(change.mean(), error, signed=True)
        assert unit == "nats"
        assert error < 0.8 * (one[name].var() / 40 + two[name].var() / 40) ** 0.5  # not that of independent averages


def test_differences_of_other_examples_are_not(points: Path, baseline: Path, tmp_path: Path, only: Only) -> None:
    only(evaluation)
    run = Path(shutil.copytree(baseline, tmp_path / "run"))
    written = json.loads((run / "evaluation.json").read_text())
    one, two = json.loads((points / "evaluation.json").read_text())["rows"][-2], written["rows"][-2]
    error = (one["stderr"] ** 2 + two["stderr"] ** 2) ** 0.5
    expected = with_error(two["value"] - one["value"], error, signed=True)

    def shown(n: int) -> dict[str, list[list[str]]]:
        found = tables(parse(report([points, run], tmp_path / f"{n}.html", examples=4, device="cpu")))
        return {title: rows for title, rows in found.items() if title.startswith("Difference")}

    title = f"Difference from {NAME}, as evaluated, "
    for n, (key, value) in enumerate({"seed": 1, "split": "validation"}.items()):
        changed = {**written, "about": {**written["about"], key: value}}
        (run / "evaluation.json").write_text(json.dumps(changed))
        assert shown(n)[title + "unpaired"][2][1] == expected
    # The values of one figure are those of another evaluation: the others are paired all the same.
    changed = [{**row, "value": row["value"] + 1} if row is two else row for row in written["rows"]]
    (run / "evaluation.json").write_text(json.dumps({**written, "rows": changed}))
    found = shown(2)[title.removesuffix(", ")]
    assert "unpaired" not in found[1][1]
    assert found[2][1] == with_error(two["value"] + 1 - one["value"], error, signed=True) + ", unpaired"
    (run / "evaluation.json").write_text(json.dumps(written))
    (run / "evaluation.npz").unlink()
    assert shown(3)[title + "unpaired"][2][1] == expected


def test_three_runs_are_compared_with_the_first(points: Path, baseline: Path, tmp_path: Path, only: Only) -> None:
    only(evaluation)
    third = Path(shutil.copytree(points, tmp_path / "third"))
    out = report([baseline, points, third], tmp_path / "r.html", examples=4, device="cpu")
    found = tables(parse(out))["Difference from baseline, as evaluated, paired"]
    assert found[0] == ["", NAME, "third", "unit"]
    assert [row[0] for row in found[1:]] == ["bound, T = 2, posterior", "bound, continuous time"]
    assert all(row[1] == row[2] for row in found[1:])


def test_a_figure_without_an_error_is_neither_paired_nor_unpaired(
    points: Path, baseline: Path, tmp_path: Path, only: Only
) -> None:
    only(evaluation)
    runs = [Path(shutil.copytree(run, tmp_path / name)) for run, name in ((points, "a"), (baseline, "b"))]
    for value, run in zip((3.25, 1.25), runs, strict=True):
        written = json.loads((run / "evaluation.json").read_text())
        written["rows"].append({**written["rows"][0], "quantity": "FID", "value": value, "stderr": None, "unit": ""})
        (run / "evaluation.json").write_text(json.dumps(written))
    found = tables(parse(report(runs, tmp_path / "r.html", examples=4, device="cpu")))
    assert found["Difference from a, as evaluated, paired"][-1] == ["FID", "−2", "–"]


def test_a_figure_that_is_not_finite_is_a_dash_and_left_out_examples_are_told(
    points: Path, baseline: Path, tmp_path: Path, only: Only
) -> None:
    only(evaluation)
    run = Path(shutil.copytree(points, tmp_path / "a"))
    written = json.loads((run / "evaluation.json").read_text())
    written["rows"][0] |= {"value": None, "stderr": None, "not_finite": 40}
    written["rows"][1] |= {"not_finite": 3}
    (run / "evaluation.json").write_text(json.dumps(written))
    found = tables(parse(report([run, baseline], tmp_path / "r.html", examples=4, device="cpu")))
    rows = found["Results of ndm evaluate on the test split"]
    assert rows[1][1] == "–"
    assert rows[1][4] == "40 (40 not finite) and 40"
    assert rows[2][4] == "40 (3 not finite)"
    differences = next(rows for title, rows in found.items() if title.startswith("Difference"))
    assert differences[1][:2] == ["bound, T = 2, posterior", "–"]


def test_what_differs_is_shown_and_nothing_else(pages: dict[str, Path]) -> None:
    found = tables(parse(pages["pair"]))["What differs in their configurations"]
    assert [row[0] for row in found[1:]] == ["model.transform"]
    assert found[1][1].startswith("ndm.Separable (net ndm.networks.ResidualMLP (features 2, hidden 8,")
    assert found[1][2] == "ndm.Identity"


def test_the_summary_names_the_parts(pages: dict[str, Path], points: Path) -> None:
    found = {row[0]: row[1:] for row in tables(parse(pages["mixed"]))["Runs and main results"]}
    assert found["transformation F"] == [
        "Identity", "Separable (ResidualMLP, terms 2, gate sigma2)", "Neural (ConvNet, gate anchored)"
    ]  # fmt: skip
    assert found["reverse variance"] == ["learned", "posterior", "predicted"]
    assert found["classes"] == ["–", "–", "3"]
    assert found["volatility"] == ["η = 1", "η = 1", "LearnedVolatility"]
    assert found["data"] == ["Table: 4, continuous", "Pinwheel: 2, continuous", "Patterns: 3 × 8 × 8, 256 levels"]
    assert found["of which in F"][0] == "0"
    model = ndm.NDM.from_pretrained(points / "model")
    assert found["parameters"][1] == f"{sum(p.numel() for p in model.parameters()):,}"
    assert found["last validation bound"][2].endswith("bits/dim, T = 5")


def test_runs_of_other_data_are_not_compared(pages: dict[str, Path]) -> None:
    root = parse(pages["mixed"])
    found = tables(root)
    assert not [title for title in found if "paired" in title]
    summary = {row[0]: row[1:] for row in found["Runs and main results"]}
    assert summary["bound in continuous time, evaluated"][0] == summary["bound in continuous time, evaluated"][2] == "–"
    assert "do not all use the same data" in words(section(root, "summary"))
    assert {title for title in found if title.startswith("The bound in")} == {
        "The bound in continuous time, nats", "The bound in continuous time, bits/dim"
    }  # fmt: skip


def test_the_identity_is_called_the_identity(pages: dict[str, Path]) -> None:
    assert "baseline: F(x, γ) = x at every noise level" in words(section(parse(pages["pair"]), "transformation"))
    assert "identity: a conventional" not in words(section(parse(pages["images"]), "transformation"))


def test_a_run_that_was_not_evaluated_says_how(pages: dict[str, Path]) -> None:
    assert "ndm evaluate images" in words(section(parse(pages["images"]), "evaluation"))


def test_what_is_missing_is_said_and_the_rest_is_shown(points: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(points, tmp_path / "run"))
    for name in ("config.yaml", "metrics.csv", "evaluation.json"):
        (run / name).unlink()
    root = parse(report([run], tmp_path / "r.html", device="cpu"))
    assert "no metrics.csv" in words(section(root, "training"))
    assert "no config.yaml" in words(section(root, "bound"))
    assert "F is not shown, because there are no test examples" in words(section(root, "transformation"))
    assert "ndm evaluate run" in words(section(root, "evaluation"))
    assert list(section(root, "samples").iter(SVG + "svg"))
    assert list(section(root, "trajectories").iter(SVG + "svg"))
    assert list(section(root, "noise").iter(SVG + "svg"))


def test_the_environment_and_learned_end_points_are_shown(points: Path, tmp_path: Path, only: Only) -> None:
    run = Path(shutil.copytree(points, tmp_path / "run"))
    (run / "environment.json").write_text(json.dumps({"torch": "9.9", "command": "ndm train <x>", "threads": 2}))
    (run / "metrics.csv").write_text("step,train/gamma_0,val/total\n1,-6,3\n2,-5.5,2\n")
    only(training, configuration)
    root = parse(report([run], tmp_path / "r.html", examples=4, device="cpu"))
    assert tables(root)["Training environment"][1:] == [
        ["torch", "9.9"], ["command", "ndm train <x>"], ["threads", "2"]
    ]  # fmt: skip
    titles = [words(e) for e in section(root, "training").iter("h3")]
    assert "γ₀ in training" in titles
    assert "Bound by steps" in titles
    assert "Bound by seconds" not in titles  # nobody knows them
    assert "γ₁ in training" not in titles


def test_points_of_levels_are_moved_less_than_half_a_level(points: Path) -> None:
    subject = subjects([points], torch.device("cpu"))[0]
    x = torch.tensor([[-0.75, 0.25]]).repeat(500, 1)
    assert (samples._spread(x, subject) == x.numpy()).all()
    subject.levels = 4  # a quarter of a unit is half the way to the next one
    moved = samples._spread(x, subject) - x.numpy()
    assert 0.15 < abs(moved).max() < 0.25
    assert abs(moved.mean()) < 0.02


def test_a_calibrated_and_a_learned_variance_are_drawn(points: Path, table: Path, tmp_path: Path, only: Only) -> None:
    only(noise)
    run = Path(shutil.copytree(points, tmp_path / "run"))
    model = ndm.NDM.from_pretrained(run / "model").eval()
    model.calibrate(torch.randn(30, 2), steps=3).save_pretrained(run / "model")
    root = parse(report([run, table], tmp_path / "r.html", examples=4, device="cpu"))
    titles = [words(e) for e in section(root, "noise").iter("h3")]
    assert titles == ["Noise level over time", *(f"Reverse variance, T = {T}" for T in (3, 10, 100))]


@pytest.mark.slow
def test_a_model_that_has_gone_wrong_is_shown_all_the_same(points: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(points, tmp_path / "run"))
    model = ndm.NDM.from_pretrained(run / "model")
    with torch.no_grad():
        for parameter in (*model.denoiser.parameters(), *model.transform.parameters()):
            parameter.mul_(1e30)
    model.save_pretrained(run / "model")
    (run / "metrics.csv").write_text("step,train/total,val/total,val/total_stderr\n1,inf,nan,nan\n2,nan,3,nan\n")
    root = parse(report([run], tmp_path / "r.html", examples=4, device="cpu"))
    assert tables(root)["The bound in continuous time, nats"][1][1] == "nan"
