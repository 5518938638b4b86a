"""Figures of an evaluation against closed forms, and what it leaves behind."""

from __future__ import annotations

import json
import math
import os
import sys
import warnings
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor, nn

import ndm
from ndm.data import Data, Digits, Gaussian, Patterns, part_of
from ndm.evaluation import (
    Evaluation,
    bound_per_example,
    evaluate,
    likelihood_per_example,
    mean_and_error,
    own_variance,
    read_per_example,
    read_places,
)
from ndm.evaluation.baselines import gaussian_mixture
from ndm.evaluation.results import MIXTURE
from ndm.networks import ConvNet, ResidualMLP

R = 1.7
LOW, HIGH = -8.0, 6.0


class Exact(nn.Module):
    """E[x | z] for x ~ N(0, R I) and F = x."""

    def forward(self, z: Tensor, level: ndm.NoiseLevel) -> Tensor:
        alpha, sigma = level.alpha[:, None], level.sigma[:, None]
        return alpha * R * z / (alpha**2 * R + sigma**2)


@pytest.fixture
def exact() -> ndm.NDM:
    return ndm.NDM(ndm.LinearSchedule(LOW, HIGH), ndm.Identity(), Exact())


@pytest.fixture(scope="module")
def gaussian() -> Gaussian:
    return Gaussian(features=2, variance=R, train=3000, validation=10, test=3000)


def truth(steps: int | None, best: bool) -> float:
    """E of the bound on two dimensions of N(0, R), in nats: method, sections 3 and 7, by the sum over the steps."""

    def sigmoid(g: float) -> float:
        return 1 / (1 + math.exp(-g))

    def error(g: float) -> float:
        """E|x - x_hat|^2 at noise level g."""
        return R * sigmoid(g) / (sigmoid(-g) * R + sigmoid(g))

    if steps is None or best:
        diffusion = math.log((1 + R * math.exp(-LOW)) / (1 + R * math.exp(-HIGH))) / 2
    else:
        gammas = [LOW + (HIGH - LOW) * i / steps for i in range(steps + 1)]
        pairs = pairwise(gammas)
        diffusion = sum((math.exp(-s) - math.exp(-t)) * error(t) / 2 for s, t in pairs)
    prior = (sigmoid(HIGH) + sigmoid(-HIGH) * R - 1 - math.log(sigmoid(HIGH))) / 2
    reconstruction = (math.log(2 * math.pi) + LOW + 1) / 2
    return 2 * (diffusion + prior + reconstruction)


def test_the_figures_are_the_closed_forms(exact: ndm.NDM, gaussian: Gaussian) -> None:
    result = evaluate(exact, gaussian, steps=(1, 10, None), variances=("posterior", "isotropic", "full"))
    assert len(result.rows) == 3 + 3 + 1 + 1
    for row in result.rows:
        if row["quantity"] == "bound":
            expected = truth(row["steps"], best=row["variance"] != "posterior")
            assert abs(row["value"] - expected) < 4 * row["stderr"] + 0.01, row
            assert 0 < row["stderr"] < 0.1 * abs(expected), row
        else:
            # log N(x; 0, R + e^LOW) is what the exact flow gives, and on average minus its entropy.
            assert abs(row["value"] + gaussian.entropy) < 4 * row["stderr"] + 1e-2
        assert row["unit"] == "nats"
    assert (
        result.rows[result.find("bound", 10, "posterior")]["value"] > 1.5 + result.rows[result.find("bound")]["value"]
    )


def test_the_best_grid_lowers_the_bound_of_calibrated_variances_alone() -> None:
    torch.manual_seed(0)
    model = ndm.NDM(ndm.LinearSchedule(LOW, HIGH), ndm.Identity(), ndm.Denoiser(ResidualMLP(2, 32, 1)))
    data, options = Gaussian(features=2, variance=R, train=800, validation=10, test=500), {"likelihood": False}
    even, best, in_gamma = (
        evaluate(model, data, steps=(5, 200), variances=("posterior", "isotropic"), times=5, spacing=grid, **options)
        for grid in ("time", "optimal", "gamma")
    )
    for steps, variance in ((5, "posterior"), (200, "posterior"), (200, "isotropic")):  # 200 steps are too many
        i = even.find("bound", steps, variance)
        assert even.rows[i] == best.rows[i]
    i = even.find("bound", 5, "isotropic")
    assert best.rows[i]["value"] < even.rows[i]["value"] - 0.05
    assert best.rows[i]["kind"] == "upper bound on -log p(x), 5 steps, optimal spacing"
    # In a linear schedule steps that are even in time are even in gamma.
    assert in_gamma.rows[i]["kind"] == "upper bound on -log p(x), 5 steps, gamma spacing"
    assert in_gamma.rows[i]["value"] == pytest.approx(even.rows[i]["value"], rel=1e-5)
    with pytest.raises(ValueError, match="no spacing 'best'; choose one of time, gamma, optimal"):
        evaluate(model, data, steps=(5,), spacing="best")


def test_every_step_of_a_short_grid_is_evaluated(exact: ndm.NDM) -> None:
    seen: list[Tensor] = []
    estimate = exact.denoiser.estimate

    def spy(z: Tensor, level: ndm.NoiseLevel, labels: Tensor | None = None) -> ndm.Estimate:
        seen.append(level.gamma)
        return estimate(z, level, labels)

    exact.denoiser.estimate = spy  # type: ignore[method-assign]
    bound_per_example(exact, torch.randn(3, 2), 4)
    grid = LOW + (HIGH - LOW) * torch.arange(1, 5) / 4
    torch.testing.assert_close(torch.stack(seen), grid[:, None].expand(4, 3))


def test_the_terms_add_up(exact: ndm.NDM) -> None:
    terms = bound_per_example(exact, torch.randn(5, 2), 10)
    torch.testing.assert_close(terms["total"], terms["diffusion"] + terms["prior"] + terms["reconstruction"])
    assert all(v.shape == (5,) for v in terms.values())


def test_the_model_is_left_as_it_was(exact: ndm.NDM, gaussian: Gaussian) -> None:
    exact.train().calibrate(gaussian.train[:100], 5, "diagonal")
    before = exact.calibrations["5"]
    variance = exact.reverse_variance
    evaluate(exact, gaussian, steps=(5, 2), variances=("posterior", "isotropic"), likelihood=False, max_examples=20)
    assert exact.training
    assert dict(exact.calibrations.items()) == {"5": before}
    assert exact.reverse_variance is variance


def test_a_variance_of_its_own_is_named_and_used(gaussian: Gaussian) -> None:
    model = ndm.NDM(ndm.LinearSchedule(LOW, HIGH), ndm.Identity(), Exact(), reverse_variance="learned")
    with torch.no_grad():
        model.reverse_variance.shift.fill_(-2.0)  # nearly the posterior's
    assert own_variance(model) == "learned"
    rows = evaluate(model, gaussian, steps=(3,), variances=("own", "posterior"), likelihood=False).rows
    assert [r["variance"] for r in rows] == ["learned", "posterior"]
    assert rows[0]["value"] == pytest.approx(rows[1]["value"], rel=1e-4)
    with torch.no_grad():
        model.reverse_variance.shift.fill_(0.0)
    other = evaluate(model, gaussian, steps=(3,), variances=("own", "posterior"), likelihood=False).rows
    assert other[1]["value"] == rows[1]["value"]
    assert other[0]["value"] < rows[0]["value"] - 0.1


def test_images_are_in_bits_per_dimension_and_conditions_reach_the_network() -> None:
    net = ResidualMLP(64, hidden=16, depth=1, classes=10)
    model = ndm.NDM(ndm.LinearSchedule(-6, 5), ndm.Identity(), ndm.Denoiser(net), ndm.DiscretizedDecoder(17))
    result = evaluate(model, Digits(), steps=(2,), variances=("own",), max_examples=10, likelihood_examples=3,
                      divergence="hutchinson", probes=1, samples=2, tolerance=1.0)  # fmt: skip
    bound, likelihood = result.rows
    assert bound["unit"] == likelihood["unit"] == "bits/dim"
    assert (bound["examples"], likelihood["examples"]) == (10, 3)
    assert 1 < likelihood["value"] < 20  # a code length: positive, as the bound's
    # an untrained network predicts v = 0: its bound is known to be large, and log2 17 is what guessing costs
    assert bound["value"] > math.log2(17)


def test_a_direct_process_without_an_ode_has_no_likelihood(gaussian: Gaussian) -> None:
    model = ndm.NDM(ndm.LinearSchedule(), ndm.Identity(), ndm.DirectDenoiser(ResidualMLP(2, hidden=8, depth=1)))
    result = evaluate(model, gaussian, steps=(2,), variances=("own",), max_examples=10)
    assert [r["quantity"] for r in result.rows] == ["bound"]


def test_the_table_and_the_file_hold_the_rows(exact: ndm.NDM, gaussian: Gaussian, tmp_path) -> None:
    result = evaluate(exact, gaussian, steps=(2, None), variances=("posterior",), likelihood=False, max_examples=50)
    lines = result.table().splitlines()
    assert len(lines) == 3
    assert f"{result.rows[0]['value']:.4f} ± {result.rows[0]['stderr']:.4f}" in lines[1]
    assert "continuous" in lines[2]
    saved = json.loads(result.save(tmp_path / "evaluation.json").read_text())
    assert saved["rows"] == result.rows
    assert saved["about"]["split"] == "test"


def some(value: float = 0.0) -> Evaluation:
    """Two figures of three examples, and one that is no average over examples."""
    rows = [
        {"quantity": "bound", "steps": 10, "variance": "posterior"},
        {"quantity": "log-likelihood", "steps": None, "variance": None},
        {"quantity": "FID", "steps": 250, "variance": None},
    ]
    values = [torch.tensor([1.0, 2.0, value], dtype=torch.float64), torch.tensor([3.0, 4.0, 5.0]), torch.empty(0)]
    return Evaluation(rows, {"split": "test"}, values)


def test_the_values_of_examples_lie_beside_the_figures(exact: ndm.NDM, gaussian: Gaussian, tmp_path: Path) -> None:
    result = evaluate(exact, gaussian, steps=(2, None), variances=("posterior",), max_examples=20, tolerance=0.1)
    result.save(tmp_path / "evaluation.json")
    assert sorted(os.listdir(tmp_path)) == ["evaluation.json", "evaluation.npz"]
    found = read_per_example(tmp_path / "evaluation.npz")
    assert list(found) == ["bound, T = 2, posterior", "bound, continuous time", "log-likelihood"]
    for row, values, kept in zip(result.rows, result.per_example, found.values(), strict=True):
        assert torch.equal(values, kept)
        assert kept.mean().item() == row["value"]
        assert len(kept) == row["examples"] == 20


def test_a_figure_without_examples_has_no_values(tmp_path: Path) -> None:
    some().save(tmp_path / "e.json")
    assert list(read_per_example(tmp_path / "e.npz")) == ["bound, T = 10, posterior", "log-likelihood"]
    Evaluation().save(tmp_path / "e.json")  # nothing of another evaluation is left
    assert read_per_example(tmp_path / "e.npz") == {}


def test_both_files_are_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    some().save(tmp_path / "e.json")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(file, **values) -> None:
        file.write(b"some of it")
        raise OSError("the disk is full")

    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(OSError, match="full"):
        some(1.0).save(tmp_path / "e.json")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    with pytest.raises(ValueError, match=r"must end in \.json"):
        some().save(tmp_path / "e.npz")


def test_a_damaged_file_of_values_is_said_to_be_one(tmp_path: Path) -> None:
    path = some().save(tmp_path / "e.json").with_suffix(".npz")
    whole = path.read_bytes()
    for text in (b"", b"nonsense", whole[:-40], whole[:100]):
        path.write_bytes(text)
        with pytest.raises(ValueError, match=r"damaged .*; evaluate the run again"):
            read_per_example(path)
    for wrong in (np.array([None]), np.array(["a"]), np.ones((2, 2)), np.arange(3)):
        np.savez_compressed(path, x=wrong)  # the first of these is a pickle
        with pytest.raises(ValueError, match="damaged"):
            read_per_example(path)
    for places in (np.arange(2), np.arange(3.0)):
        np.savez_compressed(path, **{"x": np.ones(3), "places: x": places})
        assert read_per_example(path)["x"].tolist() == [1, 1, 1]
        with pytest.raises(ValueError, match="damaged"):
            read_places(path)
    with pytest.raises(FileNotFoundError):
        read_per_example(tmp_path / "none.npz")


class Sorted(Data):
    """Points around two centres far apart, first all of the one, then all of the other; labels alike."""

    shape, levels = (2,), None

    def __init__(self, n: int = 600) -> None:
        self.n = n

    def _split(self, name: str) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(["train", "validation", "test"].index(name))
        x = torch.randn(self.n, 2, generator=generator)
        labels = (torch.arange(self.n) >= self.n // 4).long()
        return x * (1 + 4 * labels[:, None]), labels


@pytest.mark.parametrize("what", ["bound", "log-likelihood", "calibration", "grid"])
def test_a_part_of_sorted_data_stands_for_the_whole(what: str) -> None:
    """The first quarter is of variance 1, the rest of 25, and the model is that of variance R."""
    model, data = ndm.NDM(ndm.LinearSchedule(LOW, HIGH), ndm.Identity(), Exact()), Sorted()
    options: dict = {"steps": (5,), "variances": ("isotropic",), "likelihood": False, "times": 5, "spacing": "time"}
    options |= {"grid": {"spacing": "optimal"}, "bound": {"steps": (None,)}}.get(what, {})
    part: dict = {"max_examples": 100}
    if what == "log-likelihood":
        options |= {"steps": (), "likelihood": True}
        part = {"likelihood_examples": 100}
    elif what != "bound":
        part = {"calibration": 5 * 100}
    whole, some = evaluate(model, data, **options), evaluate(model, data, **options, **part)
    for a, b in zip(whole.rows, some.rows, strict=True):
        assert abs(a["value"] - b["value"]) < 4 * math.hypot(a["stderr"], b["stderr"]), (a, b)
    again, other = evaluate(model, data, **options, **part), evaluate(model, data, seed=1, **options, **part)
    assert again.rows == some.rows
    assert other.rows != some.rows
    if "calibration" not in part:
        places, kept = some.places[0], some.per_example[0]
        assert len(places) == len(kept) == 100
        assert torch.equal(places, part_of(600, 100, seed=0))
        assert not torch.equal(other.places[0], places)
        labels = data.labels("test")[places]
        assert (kept[labels == 1].mean() - kept[labels == 0].mean()).abs() > 4  # each value is that of its place


def test_the_calibration_of_sorted_data_is_of_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    real = ndm.evaluation.calibration.error_moments

    def spy(model: ndm.NDM, x: Tensor, *others, **more):
        seen.append(x)
        return real(model, x, *others, **more)

    monkeypatch.setattr("ndm.evaluation.calibration.error_moments", spy)
    model = ndm.NDM(ndm.LinearSchedule(LOW, HIGH), ndm.Identity(), Exact())
    evaluate(model, Sorted(), steps=(5,), variances=("full",), likelihood=False, max_examples=5, calibration=500)
    x = torch.cat(seen)
    assert len(x) == 100
    far = (x.norm(dim=1) > 4).double().mean().item()  # of the wide ones 0.73 are, of the narrow ones almost none
    assert far == pytest.approx(0.75 * 0.73, abs=4 * 0.05)


def test_the_samples_are_compared_with_a_random_part(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    class Spy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x)
            return x.flatten(1)

    model, data = ndm.NDM(ndm.LinearSchedule(LOW, HIGH), ndm.Identity(), Exact()), Sorted()
    evaluate(model, data, steps=(), likelihood=False, quality=50, features=Spy(), sampling={"steps": 2})
    torch.testing.assert_close(seen[0], data.test[part_of(600, 50, seed=0)], rtol=0, atol=0)


def test_the_unit_follows_the_decoder(exact: ndm.NDM) -> None:
    data = Gaussian(features=2, variance=R, train=10, validation=10, test=10)
    data.levels = 5  # which the decoder knows nothing of
    result = evaluate(exact, data, steps=(None,), tolerance=0.1)
    assert [row["unit"] for row in result.rows] == ["nats", "nats"]
    plain = evaluate(
        exact, Gaussian(features=2, variance=R, train=10, validation=10, test=10), steps=(None,), tolerance=0.1
    )
    assert result.rows == plain.rows


class Far(Gaussian):
    """Test examples of which number 3 is too far away for float32."""

    def _split(self, name: str):
        x, labels = super()._split(name)
        if name == "test":
            x = x.clone()
            x[3, 1] = 1e30
        return x, labels


def test_an_example_that_cannot_be_solved_is_counted_and_spoils_no_other(exact: ndm.NDM) -> None:
    options = {"features": 2, "variance": R, "train": 10, "validation": 10, "test": 30}
    result = evaluate(exact, Far(**options), steps=(5, None), variances=("posterior",), tolerance=0.1)
    clean = evaluate(exact, Gaussian(**options), steps=(5, None), variances=("posterior",), tolerance=0.1)
    for row, a, b in zip(result.rows, result.per_example, clean.per_example, strict=True):
        assert row["not_finite"] == 1
        assert row["not_finite_examples"] == [3]
        assert math.isfinite(row["value"])
        others = torch.arange(30) != 3
        torch.testing.assert_close(a[others], b[others], rtol=1e-5, atol=1e-5)
        assert not a[3].isfinite()


def test_what_has_no_finite_path_is_not_a_number_and_no_warning(exact: ndm.NDM) -> None:
    x = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
    far = x.clone()
    far[[3, 17]] = 1e30
    hopeless = torch.arange(20) == 5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        whole, *_ = likelihood_per_example(exact, x, tolerance=0.1)
        found, kind, _ = likelihood_per_example(exact, far, hopeless=hopeless, tolerance=0.1)
        nothing, *_ = likelihood_per_example(exact, far, hopeless=hopeless | True)
    assert kind == "density of the reverse ODE"
    assert found["log_prob"].isnan().nonzero().flatten().tolist() == [3, 5, 17]
    there = found["log_prob"].isfinite()
    torch.testing.assert_close(found["log_prob"][there], whole["log_prob"][there], rtol=0, atol=1e-4)
    assert nothing["log_prob"].isnan().all()


def test_a_gaussian_mixture_is_beside_the_model_and_named_where_it_is_better(exact: ndm.NDM) -> None:
    """The data are two clusters, of which the model, one Gaussian, knows nothing."""
    data = Sorted()
    result = evaluate(exact, data, steps=(None,), times=5, tolerance=0.1, mixture=True)
    i = result.find(MIXTURE)
    assert i is not None
    mixture = gaussian_mixture(data.train, data.validation, seed=0)
    torch.testing.assert_close(result.per_example[i], mixture.log_prob(data.test))
    change = result.per_example[i] - result.per_example[result.find("log-likelihood")]
    comparison = result.about["comparison"]
    assert comparison["difference"] == pytest.approx(change.mean().item())
    assert comparison["stderr"] == pytest.approx(change.std().item() / math.sqrt(600))
    assert comparison["sentence"].startswith(
        f"A Gaussian mixture of {mixture.components} components describes this test split better than the model by "
    )
    assert comparison["sentence"] in result.text()
    # Of data that the model is exact for the mixture is no better.
    right = evaluate(
        exact, Gaussian(features=2, variance=R, train=500, validation=300, test=500), steps=(), tolerance=0.1,
        mixture=True,
    )  # fmt: skip
    assert abs(right.about["comparison"]["difference"]) < 0.1
    assert right.about["comparison"]["sentence"] == ""
    few = Far(features=2, variance=R, train=50, validation=30, test=30)
    far = evaluate(exact, few, steps=(None,), times=2, tolerance=0.1, mixture=True)
    assert [row["not_finite_examples"] for row in far.rows] == [[3], [3], [3]]
    assert "Gaussian mixture: of the examples for which the model's figure is finite, 29" in far.text()
    images = ndm.NDM(ndm.LinearSchedule(), ndm.Identity(), ndm.Denoiser(ConvNet(1, width=8)), ndm.DiscretizedDecoder())
    other = evaluate(images, Patterns(size=8, channels=1, examples=20), steps=(), likelihood=False, mixture=True)
    assert other.rows == []


@pytest.mark.parametrize(
    ("progress", "terminal", "shown"),
    [(None, False, False), (None, True, True), (True, False, True), (False, True, False)],
)
def test_a_bar_is_shown_on_a_terminal_or_as_wanted(
    exact: ndm.NDM, gaussian: Gaussian, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    progress: bool | None, terminal: bool, shown: bool,
) -> None:  # fmt: skip
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    evaluate(exact, gaussian, steps=(2,), variances=("posterior",), likelihood=False, max_examples=2, progress=progress)
    assert ("evaluating" in capsys.readouterr().err) is shown


def test_wrong_names_are_refused(exact: ndm.NDM, gaussian: Gaussian) -> None:
    with pytest.raises(ValueError, match="choose one of posterior, own, isotropic, diagonal, full"):
        evaluate(exact, gaussian, steps=(2,), variances=("isotropc",), likelihood=False)
    with pytest.raises(ValueError, match="tset"):
        evaluate(exact, gaussian, split="tset")


def test_mean_and_error() -> None:
    mean, error = mean_and_error(torch.tensor([1.0, 2.0, 4.0, 5.0]))
    assert mean == 3.0
    assert error == pytest.approx(math.sqrt(10 / 3) / 2)


class Means(nn.Module):
    """Features of an image: the means of its quarters."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)


def test_the_quality_of_samples() -> None:
    torch.manual_seed(0)
    model = ndm.NDM(
        ndm.LinearSchedule(-6, 5), ndm.Identity(), ndm.Denoiser(ConvNet(1, width=8)), ndm.DiscretizedDecoder(256)
    )
    data = Patterns(size=8, channels=1, examples=160)
    result = evaluate(
        model, data, steps=(), likelihood=False, quality=60, features=Means(), sampling={"steps": 4}, batch_size=25
    )
    fid, kid = result.rows
    assert [row["quantity"] for row in result.rows] == ["FID", "KID"]
    assert fid["steps"] == 4
    assert fid["kind"] == "60 samples, 40 examples, features of Means"

    drawn = torch.cat([x for _, x in ndm.sample_batches(model, 60, data.shape, batch_size=25, steps=4)])
    real, generated = (Means()(x).double().numpy() for x in (data.test, drawn))
    moments = [(f.mean(0), np.cov(f.T)) for f in (real, generated)]
    (m, s), (n, t) = moments
    expected = ((m - n) ** 2).sum() + np.trace(s + t - 2 * scipy.linalg.sqrtm(s @ t).real)
    assert fid["value"] == pytest.approx(expected, rel=1e-4)
    assert fid["stderr"] is None
    assert math.isfinite(kid["value"])
    lines = result.table().splitlines()
    assert lines[1].split()[:2] == ["FID", "4"]
    assert "±" not in lines[1]


def test_the_mode_is_restored_after_an_exception(
    exact: ndm.NDM, gaussian: Gaussian, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact.train()
    monkeypatch.setattr("ndm.evaluation.evaluator._add_bounds", stopped)
    with pytest.raises(RuntimeError, match="stopped"):
        evaluate(exact, gaussian, steps=(2,), variances=("posterior",), likelihood=False)
    assert exact.training


def stopped(*arguments: object) -> None:
    raise RuntimeError("stopped")
