"""The comparisons of benchmarks/suite.py: equal parameters, equal budgets, paired differences, and their results."""

from __future__ import annotations

import importlib.util
import json
import math
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml

pytestmark = pytest.mark.slow

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

TINY: dict[str, Any] = {
    "data": {
        "digits": {
            "network": "unet", "depth": 1, "batch_size": 16, "ema": 0.9, "warmup": 2, "examples": 12, "times": 2,
            "calibration": 100, "model": {"gamma_min": -6.0},
        }
    },
    "comparisons": {
        "tiny": {
            "data": "digits", "seconds": 0.2, "seeds": [0], "tune": [1e-3, 2e-3],
            "models": {
                "Identity": {"denoiser": [4, 6]},
                "Levels": {"denoiser": [4, 6], "transform": "separable", "f_network": "table", "direct": True},
            },
        }
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def command(_path: None) -> ModuleType:
    spec = importlib.util.spec_from_file_location("suite_command", BENCHMARKS / "suite.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def arguments(folder: Path, *more: str) -> list[str]:
    (folder / "suite.yaml").write_text(yaml.safe_dump(TINY, sort_keys=False))
    where = {"suite": "suite.yaml", "results": "results.jsonl", "work": "work"}
    return ["tiny", *more, *(part for k, v in where.items() for part in (f"--{k}", str(folder / v)))]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


class Shape:
    """Stands for a data set, of which the models see the shape alone."""

    def __init__(self, shape: tuple[int, ...], levels: int | None) -> None:
        self.shape, self.levels, self.train = shape, levels, torch.randn(20, *shape)


SHAPES = {
    "digits": ((1, 8, 8), 17), "mnist": ((1, 28, 28), 256), "cifar10": ((3, 32, 32), 256),
    "table": ((8,), None), "magic": ((10,), None), "pinwheel": ((2,), None), "checkerboard": ((2,), None),
}  # fmt: skip


def test_models_have_the_parameters_of_the_results() -> None:
    from bench import parameters
    from suite.building import build, check_sizes
    from suite.settings import read

    found = lines(BENCHMARKS / "results" / "suite.jsonl")
    suite = read()
    assert {line["comparison"] for line in found} == set(suite)
    for name, comparison in suite.items():
        models = {m: build(one, comparison, Shape(*SHAPES[comparison.data])) for m, one in comparison.models.items()}
        check_sizes(models, comparison)
        for line in (line for line in found if line["comparison"] == name):
            assert {m: parameters(model) for m, model in models.items()} == {
                m: facts["parameters"] for m, facts in line["models"].items() if m in models
            }


def test_results_are_of_the_settings_seeds_and_budgets_of_the_suite() -> None:
    from suite.settings import Model, read

    found = lines(BENCHMARKS / "results" / "suite.jsonl")
    for name, comparison in read().items():
        here = [line for line in found if line["comparison"] == name]
        assert sorted(line["seed"] for line in here) == sorted(comparison.seeds)
        for line in here:
            assert line["budget"] == {"seconds": comparison.seconds}
            assert line["settings"] == json.loads(json.dumps(comparison.common()))
            for model, settings in comparison.models.items():
                assert Model(**line["models"][model]["settings"]) == settings
            seconds = [facts["seconds"] for facts in line["models"].values()]
            by_steps = any(part in name for part in ("-noise", "-frequency", "-900"))  # of a measured time each
            assert max(seconds) < (1.45 if by_steps else 1.02) * min(seconds)


@pytest.mark.parametrize(("name", "file"), [("mnist", "mnist-*.parquet"), ("magic", "tables/magic")])
def test_data_that_are_not_there_are_one_sentence(name: str, file: str, tmp_path: Path) -> None:
    from suite.datasets import dataset, missing

    assert missing(name, tmp_path) == f"There is no {file} in {tmp_path}."
    assert "--data FOLDER" in (missing(name, None) or "")
    with pytest.raises(FileNotFoundError, match="There is no"):
        dataset(name, tmp_path)


def test_a_real_table_is_read_from_its_folder(tmp_path: Path) -> None:
    from suite.datasets import dataset, missing

    folder = tmp_path / "tables" / "magic"
    folder.mkdir(parents=True)
    for split, rows in {"train": 30, "validation": 20, "test": 10}.items():
        (folder / f"{split}.csv").write_text("a,b\n" + "".join(f"{i}.5,{i * i}\n" for i in range(rows)))
    assert missing("magic", tmp_path) is None
    data = dataset("magic", tmp_path)
    assert (data.shape, data.levels, len(data.train), len(data.validation), len(data.test)) == ((2,), None, 30, 20, 10)


def test_a_gpu_that_is_not_there_is_one_sentence(
    command: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert command.main(arguments(tmp_path, "--device", "cuda")) == 2
    assert capsys.readouterr().err == "suite.py: --device cuda needs an NVIDIA card, and PyTorch finds none.\n"


def test_models_of_another_size_are_refused() -> None:
    from suite.building import build, check_sizes
    from suite.settings import read

    comparison = read()["pinwheel-tuned"]
    data = Shape(*SHAPES["pinwheel"])
    models = {name: build(one, comparison, data) for name, one in comparison.models.items()}
    wide = replace(comparison.models["Identity"], denoiser=(80,))
    with pytest.raises(ValueError, match=r"must have 55,701 to within 0\.5%"):
        check_sizes(models | {"Small, free, direct": build(wide, comparison, data)}, comparison)


def test_a_comparison_is_trained_measured_and_not_done_again(
    command: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(arguments(tmp_path)) == 0
    (line,) = lines(tmp_path / "results.jsonl")
    identity, levels = line["models"].values()
    steps = json.loads((tmp_path / "work" / "tiny--0" / "steps.json").read_text())
    assert steps["value"] == {"Identity": identity["steps"], "Levels": levels["steps"]}
    assert levels["parameters"] - identity["parameters"] == levels["parameters_in_f"] == 34
    ways = [(bound["steps"], bound["variance"]) for bound in levels["bounds"]]
    assert ways == [(10, "posterior"), (10, "diagonal"), (10, "diagonal, best steps"), (None, "-")]
    for ours, theirs in zip(levels["bounds"], identity["bounds"], strict=True):
        assert theirs["difference"] == theirs["difference_stderr"] == 0
        assert ours["difference"] == pytest.approx(ours["value"] - theirs["value"], abs=2e-6)
    assert str(tmp_path) not in (tmp_path / "results.jsonl").read_text()
    capsys.readouterr()
    assert command.main(arguments(tmp_path)) == 0
    assert "has a result" in capsys.readouterr().out
    # The runs stay, so that the same weights are measured; a run of other settings is not taken for them.
    assert command.main(arguments(tmp_path, "--redo")) == 0
    (again,) = lines(tmp_path / "results.jsonl")
    assert [m["bounds"] for m in again["models"].values()] == [m["bounds"] for m in line["models"].values()]
    assert command.main(arguments(tmp_path, "--redo", "--steps", "1")) == 0
    (other,) = lines(tmp_path / "results.jsonl")
    assert [m["steps"] for m in other["models"].values()] == [1, 1]
    assert other["models"]["Identity"]["bounds"] != identity["bounds"]


def test_steps_are_the_same_for_all_models_and_training_is_reproducible(command: ModuleType, tmp_path: Path) -> None:
    found = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        assert command.main(arguments(tmp_path / name, "--steps", "3")) == 0
        (line,) = lines(tmp_path / name / "results.jsonl")
        found.append([(m["steps"], m["bounds"]) for m in line["models"].values()])
        assert line["budget"] == {"steps": 3}
    assert found[0] == found[1]
    assert [steps for steps, _ in found[0]] == [3, 3]


def test_tuning_prints_a_bound_for_each_rate_and_model(
    command: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main(arguments(tmp_path, "--tune", "--steps", "2")) == 0
    header, _, *rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert "Identity" in header
    assert [row.split(" | ")[0] for row in rows] == ["| 0.001", "| 0.002"]
    assert not (tmp_path / "results.jsonl").exists()


def test_seconds_per_step_leave_the_models_as_they_are() -> None:
    from bench import seconds_per_step
    from suite.building import build
    from suite.settings import read

    from ndm.data import Pinwheel

    comparison, data = read()["pinwheel-tuned"], Pinwheel()
    model = build(comparison.models["Identity"], comparison, data)
    before = [p.clone() for p in model.parameters()]
    assert seconds_per_step({"a": (model, data, 8)}, steps=2, rounds=2)["a"] > 0
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_the_error_over_seeds_has_the_spread_of_the_seeds_and_the_error_over_examples() -> None:
    from suite.measuring import over_seeds

    assert over_seeds([(1.0, 0.2)]) == (1.0, 0.2)
    mean, error = over_seeds([(1.0, 0.3), (3.0, 0.4)])
    assert mean == 2.0
    assert error == pytest.approx(math.sqrt((0.09 + 0.16) / 2 + 1.0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": "nothing"}, "data must be one of digits"),
        ({"minutes": 3}, "unknown fields: minutes"),
        ({"models": {"Identity": {}}}, "denoiser"),
    ],
)
def test_a_suite_that_makes_no_sense_is_refused(
    command: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any], message: str
) -> None:
    given = arguments(tmp_path)
    text = yaml.safe_load((tmp_path / "suite.yaml").read_text())
    text["comparisons"]["tiny"] |= change
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump(text))
    assert command.main(given) == 2
    assert message in capsys.readouterr().err


def test_images_that_are_not_there_are_left_out(command: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["mnist-recommended"]) == 0
    assert "--data FOLDER" in capsys.readouterr().out
    assert command.main(["nothing"]) == 2
    assert "There is no comparison nothing" in capsys.readouterr().err
