"""The samples of the suite's models: how they are drawn, counted, judged and told, and that nothing is done twice."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

import ndm
from ndm._internal.random import seed_of
from ndm.data import Digits, Tensors

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

TINY = {
    "data": "pinwheel", "seeds": [0, 1], "seconds": None, "steps": 12, "turn": 0.01, "batch_size": 16, "width": [24],
    "depth": 1, "warmup": 2, "bounds": [2], "times": 1, "examples": 10, "calibration": 60, "share": 0.2,
    "curve_points": 1, "curve_examples": 10, "curve_times": 1,
    "models": {
        "Identity": {}, "Neural": {"transform": "neural"}, "Neural, direct": {"transform": "neural", "direct": True}
    },
}  # fmt: skip

WAYS = ["posterior", "isotropic", "diagonal", "ddim", "ode", "diagonal, in gamma", "ddim, in gamma", "ode, in gamma"]


def suite_file(folder: Path, samples: dict[str, Any] | None = None, **changes: Any) -> Path:
    """A suite with one short row."""
    real = yaml.safe_load((BENCHMARKS / "suite.yaml").read_text())
    found = {
        "defaults": real["defaults"],
        "data": real["data"],
        "rows": {"tiny": {**TINY, **changes}},
        "samples": {
            "rows": ["tiny"],
            "steps": {"pinwheel": [2, 5]},
            "examples": {"pinwheel": 60},
            "gamma": ["pinwheel"],
            **(samples or {}),
        },
    }
    path = folder / "suite.yaml"
    path.write_text(yaml.safe_dump(found, sort_keys=False))
    return path


def main(folder: Path, *arguments: str) -> int:
    """benchmarks/suite.py, whose name is that of its package, on the suite, the results and the work of a folder."""
    import importlib.util

    spec = importlib.util.spec_from_file_location("suite_command", BENCHMARKS / "suite.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    places = {"suite": "suite.yaml", "results": "results", "work": "work"}
    return module.main([*(f"--{option}={folder / name}" for option, name in places.items()), *arguments])


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, _path: None) -> Path:
    """A folder in which the row was run, and its samples drawn."""
    folder = tmp_path_factory.mktemp("suite")
    suite_file(folder)
    assert main(folder) == 0
    assert main(folder, "--samples") == 0
    return folder


def result(folder: Path, model: str, seed: int = 0) -> dict[str, Any]:
    return json.loads((folder / "results" / "samples" / f"tiny--{model}--{seed}.json").read_text())


# ---- drawing


def test_every_way_is_there_with_the_evaluations_that_it_took(done: Path) -> None:
    found = result(done, "neural")["figures"]
    assert [(f["method"], f["steps"]) for f in found] == [(way, t) for t in (2, 5) for way in WAYS]
    for figure in found:
        # Heun's method evaluates twice a step, and five evaluations are not two steps' worth and a half.
        wanted = 2 * (figure["steps"] // 2) if figure["method"].startswith("ode") else figure["steps"]
        assert figure["evaluations"] == wanted
        assert figure["seconds"] >= 0


def test_a_direct_reverse_process_has_neither_ddim_nor_an_ode(done: Path) -> None:
    found = result(done, "neural--direct")
    assert {f["method"] for f in found["figures"]} == {"posterior", "isotropic", "diagonal", "diagonal, in gamma"}
    assert found["facts"]["left_out"] == ["ddim", "ode"]
    assert result(done, "neural")["facts"]["left_out"] == []


@pytest.mark.parametrize(
    ("way", "t"), [("posterior", 2), ("ddim", 5), ("ode", 5), ("ddim, in gamma", 5), ("ode, in gamma", 5)]
)
@pytest.mark.parametrize(("model", "seed"), [("identity", 0), ("neural", 1)])
def test_figures_are_those_of_the_kept_weights(done: Path, model: str, seed: int, way: str, t: int) -> None:
    from suite.building import build, matched
    from suite.datasets import dataset
    from suite.settings import read

    row, data = read(done / "suite.yaml").rows["tiny"], dataset("pinwheel")
    entry = next(e for e in row.models if e.name.lower() == model)
    net = build(entry, row, data, matched(row, data)[entry.name])
    kept = load_file(done / "work" / f"tiny--{seed}" / "weights.safetensors")
    net.load_state_dict({k: kept[f"{model}/time/{k}"] for k, _ in net.named_parameters()}, strict=False)
    options = {"ddim": {"method": "ddim", "steps": t}, "ode": {"method": "ode", "solver": "heun", "steps": t // 2}}
    options |= {f"{name}, in gamma": {**given, "spacing": "gamma"} for name, given in options.items()}
    generator = torch.Generator().manual_seed(seed_of(seed, 0))
    x = ndm.sample(net, 60, (2,), generator=generator, **{"spacing": "time", **options.get(way, {"steps": t})})
    mean, scale = data.train.mean(0), data.train.std(0)
    test, ours = (data.test[:60] - mean) / scale, (x - mean) / scale
    found = next(f for f in result(done, model, seed)["figures"] if (f["method"], f["steps"]) == (way, t))
    sliced = ndm.sliced_wasserstein(test, ours, permutations=0, generator=torch.Generator().manual_seed(0))
    assert found["distances"]["sliced Wasserstein"] == pytest.approx([sliced.value, sliced.stderr], rel=1e-3)
    kernel = ndm.mmd(test, ours, permutations=0)
    assert found["distances"]["MMD²"] == pytest.approx([kernel.value, kernel.stderr], rel=1e-3)


def test_the_reverse_variance_matters_and_is_the_calibrated_one(done: Path) -> None:
    """After twelve steps of training the posterior's variance is far too small at T = 2."""
    found = {f["method"]: f["distances"] for f in result(done, "identity")["figures"] if f["steps"] == 2}
    assert found["isotropic"] != found["posterior"]
    assert found["isotropic"]["MMD²"][0] < found["posterior"]["MMD²"][0]


def test_the_model_keeps_its_variance_and_its_own_is_drawn_as_well(tmp_path: Path) -> None:
    from suite.building import Widths, build
    from suite.datasets import dataset
    from suite.sampling import drawn
    from suite.settings import read

    models = {"Identity": {"variance": "learned"}}
    row, data = read(suite_file(tmp_path, models=models)).rows["tiny"], dataset("pinwheel")
    model = build(row.models[0], row, data, Widths(row.width))
    own = model.reverse_variance
    found = [about["method"] for about, _ in drawn(model, row, data, [2], 5, 0, gamma=True)]
    assert found == [*WAYS[:3], "learned", *WAYS[3:]]
    assert model.reverse_variance is own
    assert not model.calibrations
    assert [about["method"] for about, _ in drawn(model, row, data, [2], 5, 0)] == found[:6]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("suite.sampling.BLOCK", 3)
        assert {about["evaluations"] for about, x in drawn(model, row, data, [2], 5, 0) if len(x) == 5} == {2}
    assert not model.denoiser.net._forward_hooks


# ---- the command


def test_nothing_is_drawn_twice_and_a_lost_file_is_made_again_as_it_was(
    done: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = sorted((done / "results" / "samples").glob("*.json"))
    assert len(files) == 6
    lost, before = files[3], {file: file.stat().st_mtime_ns for file in files}
    figures = [f["distances"] for f in json.loads(lost.read_text())["figures"]]
    lost.unlink()
    assert main(done, "--samples") == 0
    said = capsys.readouterr().out
    assert said.count("samples done before") == 5
    assert all(file.stat().st_mtime_ns == before[file] for file in files if file != lost)
    assert [f["distances"] for f in json.loads(lost.read_text())["figures"]] == figures
    assert not list((done / "results" / "samples").glob(".*"))


def test_the_table_and_the_plot_are_of_the_results(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(done, "--samples", "tiny") == 0
    said = capsys.readouterr().out
    values = [
        next(f for f in result(done, "neural", seed)["figures"] if (f["method"], f["steps"]) == ("ddim", 5))
        for seed in (0, 1)
    ]
    mean = np.mean([v["distances"]["sliced Wasserstein"][0] for v in values])
    line = next(line for line in said.splitlines() if line.startswith("| Neural | ddim |"))
    assert float(line.split("|")[4].split("±")[0]) == pytest.approx(mean, abs=0.05)
    assert "60 samples against 60 test examples, 2 seeds." in said
    assert "Neural, direct has no ddim and no ode" in said
    assert "1000 MMD², difference from Identity" in said
    assert main(done, "--plots") == 0
    assert (done / "results" / "quality-by-steps.png").stat().st_size > 10_000


def test_samples_of_other_settings_are_refused_until_they_are_to_be_made_again(
    done: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = result(done, "identity")
    suite_file(done, samples={"steps": {"pinwheel": [3]}})
    try:
        assert main(done, "--samples", "--seeds", "0") == 2
        assert "samples.steps [2, 5], now [3]. --redo makes it again" in capsys.readouterr().err
        assert result(done, "identity") == before
        other = done / "results" / "samples" / "tiny--identity--1.json"
        kept = other.read_text()
        assert main(done, "--samples", "--seeds", "1", "--redo") == 0
        assert {f["steps"] for f in result(done, "identity", 1)["figures"]} == {3}
        other.write_text(kept)
    finally:
        suite_file(done)
        assert main(done, "--samples", "--redo") == 0


def test_a_row_that_was_not_run_is_left_out_with_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    suite_file(tmp_path)
    assert main(tmp_path, "--samples") == 0
    said = capsys.readouterr().out
    assert (
        "tiny, seed 0: left out. No weights of these settings are in tiny--0 of the work folder: run the row." in said
    )
    suite_file(tmp_path, tune={"learning_rate": [1e-3]}, tune_steps=2)
    assert main(tmp_path, "--samples") == 0
    assert "tiny: left out. It is not tuned" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ({"rows": ["tony"]}, "samples names the row tony, which is not there"),
        ({"examples": {"table": 10}}, "how many examples, pinwheel"),
        ({"steps": {"table": [5]}}, "with what steps, and how many examples, pinwheel"),
        ({"steps": {"pinwheel": [1]}}, "steps and examples must be at least 2"),
        ({"example": 3}, "fields that are not known: example"),
    ],
)
def test_settings_that_make_no_sense_are_refused(tmp_path: Path, samples: dict[str, Any], message: str) -> None:
    from suite.settings import read

    with pytest.raises(ValueError, match=message):
        read(suite_file(tmp_path, samples=samples))


# ---- judging


def test_samples_that_are_not_finite_are_no_figure_and_no_end(done: Path) -> None:
    from suite import jobs, quality
    from suite.datasets import dataset
    from suite.sampling import Sampling, Vectors, sampled
    from suite.settings import read

    row, data = read(done / "suite.yaml").rows["tiny"], dataset("pinwheel")
    trained = jobs.kept(done / "work" / "tiny--0", [job.settings for job in jobs.jobs_of(row, 0, done)])
    broken = jobs.Trained({k: v * math.nan for k, v in trained.weights.items()}, trained.facts)
    how = {"steps": [2], "examples": 20, "features": {}, "weights": ""}
    found = sampled(Sampling(row, row.models[0], 0, done, how), data, broken, Vectors(data, 20))
    assert all(figure["distances"] is None for figure in found["figures"])
    assert "NaN" not in json.dumps(found)
    assert quality.figure([found], "ddim", 2, "MMD²") is None
    assert "| Identity | ddim | - |" in quality.markdown("tiny", {"Identity": [found]})
    # The weights at equal steps are not looked at.
    broken = jobs.Trained(
        {k: v * (math.nan if "/steps/" in k else 1) for k, v in trained.weights.items()}, trained.facts
    )
    found = sampled(Sampling(row, row.models[0], 0, done, how), data, broken, Vectors(data, 20))
    assert all(figure["distances"] for figure in found["figures"])


def test_vectors_are_judged_in_standard_deviations() -> None:
    from suite.sampling import Vectors

    x = torch.randn(400, 3, generator=torch.Generator().manual_seed(0))
    units = torch.tensor([1.0, 1e3, 1e-3])
    plain, other = (Vectors(Tensors(x[:200] * u, test=x[200:300] * u), 80) for u in (1.0, units))
    y = x[300:380] + 0.5
    for name, figure in plain(y).items():
        assert other(y * units)[name] == pytest.approx(figure, rel=1e-4)
    assert plain.compared_with == 80
    assert plain.floor() == plain(x[:80])
    assert plain.floor()["sliced Wasserstein"][0] < plain(y)["sliced Wasserstein"][0]


class Flat:
    """Stands where the classifier does; its features are five pixels."""

    def features_of(self, examples: Tensor) -> Tensor:
        return examples[:].flatten(1)[:, 18:23]


def test_images_are_judged_by_the_frechet_distance_of_the_features() -> None:
    from suite.sampling import Images

    data, generator = Digits(), torch.Generator().manual_seed(0)
    judge = Images(data, 300, Flat())
    y = torch.rand(280, 1, 8, 8, generator=generator) * 2 - 1

    def frechet(a: np.ndarray, b: np.ndarray) -> float:
        root = scipy.linalg.sqrtm(np.cov(a.T) @ np.cov(b.T)).real
        return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root))

    test, ours = (t.flatten(1)[:, 18:23].double().numpy() for t in (data.test, y))
    value, error = judge(y)["FID"]
    assert value == pytest.approx(frechet(test, ours), rel=1e-4)
    assert judge.compared_with == 250  # all there are
    assert judge.floor()["FID"][0] == pytest.approx(
        frechet(test, data.train[:300].flatten(1)[:, 18:23].double().numpy()), rel=1e-3, abs=1e-6
    )
    random = np.random.default_rng(0)  # the bootstrap says the same of the error
    drawn = [frechet(test[random.integers(250, size=250)], ours[random.integers(280, size=280)]) for _ in range(100)]
    assert error == pytest.approx(np.std(drawn), rel=0.5)


# ---- the classifier


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    from suite import classifier

    monkeypatch.setitem(classifier.SETTINGS, "steps", 120)


def test_the_classifier_is_trained_once_and_always_the_same(short: None, tmp_path: Path, monkeypatch) -> None:
    from suite import classifier as module

    data, said = Digits(), []
    state = torch.get_rng_state()
    net, facts = module.classifier("digits", data, tmp_path / "a", said.append)
    again, same = module.classifier("digits", data, tmp_path / "b", said.append)
    assert torch.equal(torch.get_rng_state(), state)
    assert len(said) == 2
    assert facts == same
    x = data.test
    assert torch.equal(net(x), again(x))
    assert facts["accuracy"] == pytest.approx(
        (net(x).argmax(1) == data.labels("test")).double().mean().item(), abs=1e-4
    )
    assert facts["accuracy"] > 0.7
    assert net.features_of(data.examples("test")).shape == (250, 64)
    torch.testing.assert_close(net.head(net.features_of(x)), net(x))

    monkeypatch.setattr(module, "_trained", lambda *_: pytest.fail("it was trained again"))
    kept, as_before = module.classifier("digits", data, tmp_path / "a", said.append)
    assert as_before == facts
    assert torch.equal(kept(x), net(x))


def test_a_classifier_of_other_settings_or_a_damaged_one_is_trained_again(
    short: None, tmp_path: Path, monkeypatch
) -> None:
    from suite import classifier as module

    data = Digits()
    monkeypatch.setitem(module.SETTINGS, "steps", 2)
    _, first = module.classifier("digits", data, tmp_path, lambda _: None)
    monkeypatch.setitem(module.SETTINGS, "steps", 3)
    _, second = module.classifier("digits", data, tmp_path, lambda _: None)
    assert first["digest"] != second["digest"]
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:50])
    assert module.classifier("digits", data, tmp_path, lambda _: None)[1] == second


def test_data_without_labels_have_no_classifier(tmp_path: Path) -> None:
    from suite.classifier import classifier

    with pytest.raises(ValueError, match="nameless has no labels"):
        classifier("nameless", Tensors(torch.zeros(9, 1, 8, 8)), tmp_path)


# ---- averages over seeds


def made_up(model: str, values: dict[int, float | None]) -> list[dict[str, Any]]:
    return [
        {
            "settings": {"seed": seed, "model": {"name": model}},
            "figures": [{"method": "ddim", "steps": 5, "distances": None if v is None else {"FID": [v, 0.1]}}],
        }
        for seed, v in values.items()
    ]


def test_differences_are_paired_by_seed() -> None:
    from suite.quality import difference, figure

    # The seeds differ by whole units, the models by half a unit, give or take a little.
    reference = made_up("Identity", {0: 1.0, 1: 3.0, 2: 9.0})
    ours = made_up("Neural", {2: 8.4, 0: 0.5, 1: 2.6})
    mean, error = difference(ours, reference, "ddim", 5, "FID")
    apart = np.array([-0.5, -0.4, -0.6])
    assert mean == pytest.approx(apart.mean())
    assert error == pytest.approx(apart.std(ddof=1) / math.sqrt(3))
    spread = np.std([1.0, 3.0, 9.0], ddof=1) / math.sqrt(3)
    assert figure(reference, "ddim", 5, "FID") == pytest.approx((13 / 3, math.hypot(spread, 0.1)))
    # Of one seed in common there is no spread: the errors of both.
    assert difference(ours[:1], reference, "ddim", 5, "FID") == pytest.approx((-0.6, math.hypot(0.1, 0.1)))
    assert difference(ours, [], "ddim", 5, "FID") is None
    assert figure(made_up("Neural", {0: 1.0, 1: None}), "ddim", 5, "FID") is None
    assert figure(ours, "ode", 5, "FID") is None


def test_a_figure_is_told_to_the_second_digit_of_its_error() -> None:
    from suite.quality import _told

    assert _told((1.23456, 0.0123), "FID") == "1.235 ± 0.012"
    assert _told((0.00123456, 0.00002), "MMD²") == "1.235 ± 0.020"
    assert _told((12.3, 45.0), "FID", "+") == "+12 ± 45"
    assert _told(None, "FID") == "-"
