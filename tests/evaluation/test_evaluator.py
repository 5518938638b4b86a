"""Figures of an evaluation against closed forms, and what it leaves behind."""

from __future__ import annotations

import json
import math
import sys

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor, nn

import ndm
from ndm.data import Digits, Gaussian, Patterns
from ndm.evaluation import (
    bound_per_example,
    evaluate,
    mean_and_error,
    own_variance,
)
from ndm.networks import ConvNet, ResidualMLP, UNet
from tests.evaluation.models import HIGH, LOW, Exact, R, stopped, truth


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


@pytest.mark.slow
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


@pytest.mark.parametrize("spacing", ["time", pytest.param("optimal", marks=pytest.mark.slow)])
def test_every_calibrated_variance_of_images_is_that_of_the_model(spacing: str) -> None:
    torch.manual_seed(0)
    net = UNet(1, width=4, multipliers=(1,), blocks=1, groups=2, zero_init=False)
    model = ndm.NDM(ndm.LinearSchedule(-6, 5), ndm.Identity(), ndm.Denoiser(net), ndm.DiscretizedDecoder(17))
    names = ("posterior", "isotropic", "diagonal", "frequency", "full")
    options = {"steps": (2,), "max_examples": 20, "likelihood": False, "calibration": 400, "spacing": spacing}
    found = {row["variance"]: row["value"] for row in evaluate(model, Digits(), variances=names, **options).rows}
    alone = evaluate(model, Digits(), variances=("frequency",), **options).rows[0]["value"]
    assert set(found) == set(names)
    assert found["frequency"] == pytest.approx(alone, abs=1e-6) or spacing == "optimal"
    assert max(found["frequency"], found["full"]) < found["posterior"]
    chosen = evaluate(model, Digits(), variances=("auto", "posterior", "isotropic"), **options)
    kind = chosen.rows[0]["variance"]
    assert kind in {"diagonal", "frequency"}
    assert [row["variance"] for row in chosen.rows] == [kind, "posterior", "isotropic"]
    both = evaluate(model, Digits(), variances=("diagonal", "frequency"), **options)
    assert chosen.rows[0]["value"] == pytest.approx(min(row["value"] for row in both.rows), abs=0.02)
    again = evaluate(model, Digits(), variances=("auto", kind), **options).rows
    assert [row["variance"] for row in again] == [kind]  # once


def test_the_chosen_variance_of_vectors_is_isotropic(exact: ndm.NDM, gaussian: Gaussian) -> None:
    options = {"steps": (5,), "likelihood": False, "max_examples": 20}
    found = evaluate(exact, gaussian, **options).rows
    assert [row["variance"] for row in found] == ["posterior", "isotropic"]
    assert found == evaluate(exact, gaussian, variances=("posterior", "isotropic"), **options).rows


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


def test_the_unit_follows_the_decoder(exact: ndm.NDM) -> None:
    data = Gaussian(features=2, variance=R, train=10, validation=10, test=10)
    data.levels = 5  # which the decoder knows nothing of
    result = evaluate(exact, data, steps=(None,), tolerance=0.1)
    assert [row["unit"] for row in result.rows] == ["nats", "nats"]
    plain = evaluate(
        exact, Gaussian(features=2, variance=R, train=10, validation=10, test=10), steps=(None,), tolerance=0.1
    )
    assert result.rows == plain.rows


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
    with pytest.raises(ValueError, match="choose one of posterior, own, isotropic, diagonal, frequency, full, auto"):
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
