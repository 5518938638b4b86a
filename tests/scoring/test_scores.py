"""Scores against closed forms, and the errors they state against their spread."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pandas
import pyarrow.parquet
import pytest
import torch
from torch import Tensor

import ndm
from ndm.data import from_levels
from ndm.networks import ResidualMLP, UNet
from ndm.scoring import score
from ndm.scoring.scorer import Scorer
from tests.scoring.models import HIGH, LOW, R, bound_of_gaussian, draw, gaussian, log_density_of_gaussian, small


@pytest.mark.parametrize("ending", [pytest.param("csv", marks=pytest.mark.slow), "parquet"])
def test_the_figures_are_those_of_the_closed_forms(tmp_path: Path, ending: str) -> None:
    x, out = draw(150), tmp_path / f"scores.{ending}"
    scores = score(gaussian(), x, out, batch_size=64, times=40, tolerance=1e-6, progress=False)
    table = pandas.read_csv(out) if ending == "csv" else pandas.read_parquet(out)
    assert list(table) == ["row", "nelbo", "nelbo_stderr", "log_prob", "log_prob_stderr", "solver_error", "kind"]
    assert (table["row"] == np.arange(150)).all()
    np.testing.assert_allclose(table["log_prob"], log_density_of_gaussian(x), atol=5e-4)
    assert (table["log_prob_stderr"] == 0).all()
    assert set(table["kind"]) == {"density of the reverse ODE"}
    deviation = (table["nelbo"] - bound_of_gaussian(x).numpy()) / table["nelbo_stderr"]
    assert abs(deviation.mean()) < 0.3
    assert (deviation.abs() < 2).mean() > 0.85
    about = scores.about
    assert about["nelbo"]["mean"] == pytest.approx(table["nelbo"].mean(), rel=1e-6)
    assert about["nelbo"]["stderr"] == pytest.approx(table["nelbo"].std() / math.sqrt(150), rel=1e-6)
    assert about["nelbo"]["row_stderr"] == pytest.approx(table["nelbo_stderr"].mean(), rel=1e-6)
    assert (about["rows"], about["log_prob"]["unsolved"]) == (150, 0)
    assert about["log_prob"]["solver_error"] < 1e-3
    assert not (tmp_path / f"{out.name}.partial").exists()
    if ending == "parquet":
        kept = json.loads(pyarrow.parquet.read_schema(out).metadata[b"ndm"])
        assert kept["log_prob"] == about["log_prob"]
        assert kept["settings"]["tolerance"] == 1e-6


def test_the_stated_error_of_the_bound_is_its_spread(tmp_path: Path) -> None:
    """Nearly the same row many times, since equal ones are given equal noise: the spread of its bounds is what they
    state, and stratification has made it smaller.
    """
    x = draw(1) + 1e-5 * draw(600)
    found = {}
    for times in (2, 16):
        score(gaussian(), x, tmp_path / f"{times}.csv", times=times, likelihood=False, progress=False)
        table = pandas.read_csv(tmp_path / f"{times}.csv")
        stated = math.sqrt((table["nelbo_stderr"] ** 2).mean())
        assert stated == pytest.approx(table["nelbo"].std(), rel=0.15)
        assert table["nelbo"].mean() == pytest.approx(bound_of_gaussian(x)[0].item(), abs=4 * stated / math.sqrt(600))
        found[times] = stated
    assert found[16] < 0.9 * found[2] / math.sqrt(8)


def test_the_control_variate_lowers_the_error_and_moves_no_mean(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, found = draw(400), {}
    for slope in (None, 0.0, 1.0):
        if slope is not None:
            monkeypatch.setattr(Scorer, "prepare", lambda self, x, slope=slope: self.slopes.extend([slope] * 10))
        scores = score(gaussian(), x, tmp_path / f"{slope}.csv", times=20, likelihood=False, progress=False)
        found[slope] = scores.about["nelbo"]["row_stderr"]
        error = found[slope] / math.sqrt(400)
        assert scores.about["nelbo"]["mean"] == pytest.approx(bound_of_gaussian(x).mean().item(), abs=4 * error)
    assert found[None] < 0.7 * min(found[0.0], found[1.0])


def test_levels_have_bits_and_a_stated_error(tmp_path: Path) -> None:
    k = torch.randint(4, (40, 3), generator=torch.Generator().manual_seed(0))
    model = gaussian(decoder=ndm.DiscretizedDecoder(levels=4))
    score(model, from_levels(k, 4), tmp_path / "x.parquet", times=4, tolerance=1e-4, samples=8, progress=False)
    table = pandas.read_parquet(tmp_path / "x.parquet")
    np.testing.assert_allclose(table["bits_per_dim"], -table["log_prob"] / 3 / math.log(2))
    assert (table["log_prob_stderr"] > 0).all()
    assert "variational" in table["kind"][0] or "z_0 from q" in table["kind"][0]
    score(model, from_levels(k, 4), tmp_path / "y.csv", times=4, likelihood=False, progress=False)
    other = pandas.read_csv(tmp_path / "y.csv")
    assert list(other) == ["row", "nelbo", "nelbo_stderr", "bits_per_dim"]
    np.testing.assert_allclose(other["bits_per_dim"], other["nelbo"] / 3 / math.log(2), rtol=1e-6)
    np.testing.assert_allclose(other["nelbo"], table["nelbo"], rtol=1e-6)


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")
def test_the_precision_is_the_one_asked_for_and_the_model_is_left_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, model, seen, found = draw(6), small().train(), [], {}
    real = ndm.evaluation.per_example.log_likelihood

    def spy(model: ndm.NDM, x: Tensor, **options):
        seen.append((x.dtype, next(model.parameters()).dtype, torch.is_autocast_enabled("cpu")))
        return real(model, x, **options)

    monkeypatch.setattr("ndm.evaluation.per_example.log_likelihood", spy)
    for precision in ("32", "64", "bf16"):
        out = tmp_path / f"{precision}.parquet"
        score(model, x, out, precision=precision, tolerance=1e-3, times=2, progress=False)
        found[precision] = pandas.read_parquet(out)["log_prob"]
    single, double = torch.float32, torch.float64
    assert seen == [(single, single, False), (double, double, False), (single, single, True)]
    errors = [(found[name] - found["64"]).abs().max() for name in ("32", "bf16")]
    assert 0 < errors[0] < 1e-3 < errors[1] < 1
    assert next(model.parameters()).dtype == single
    assert all(p.requires_grad for p in model.parameters())


def test_dropout_is_off_and_every_row_has_noise_of_its_own(tmp_path: Path) -> None:
    x, found = draw(1) + 1e-5 * draw(20), {}
    for mode in (True, False):
        model = small(dropout=0.5).train(mode)
        score(model, x, tmp_path / f"{mode}.csv", times=2, likelihood=False, batch_size=10, progress=False)
        assert model.training is mode
        found[mode] = pandas.read_csv(tmp_path / f"{mode}.csv")["nelbo"]
    assert (found[True] == found[False]).all()
    assert len(set(found[True])) == 20
    assert found[True].std() > 0.01  # the rows alone would make less than 1e-3 of it


def wide(levels: int | None = None) -> ndm.NDM:
    """A model whose networks are as wide as those in use, with random weights."""
    torch.manual_seed(0)
    net, transform = (ResidualMLP(3, hidden=64, depth=2, zero_init=False) for _ in range(2))
    decoder = None if levels is None else ndm.DiscretizedDecoder(levels)
    return ndm.NDM(ndm.LinearSchedule(-6, 5), ndm.Neural(transform), ndm.Denoiser(net), decoder)


@pytest.mark.parametrize("levels", [None, pytest.param(7, marks=pytest.mark.slow), 256])
def test_the_bound_of_a_row_is_its_own_to_the_last_bit(tmp_path: Path, levels: int | None) -> None:
    """Whatever stands beside it in the file, wherever it stands, and however large the blocks are."""
    model, x, count = wide(levels), draw(90), iter(range(100))
    if levels:
        x = from_levels(torch.randint(levels, (90, 3), generator=torch.Generator().manual_seed(0)), levels)
    if levels == 256:  # images
        torch.manual_seed(0)
        net = UNet(1, width=8, multipliers=(1,), zero_init=False)
        model = ndm.NDM(ndm.LinearSchedule(-6, 5), ndm.Identity(), ndm.Denoiser(net), ndm.DiscretizedDecoder())
        x = from_levels(torch.randint(256, (20, 1, 16, 16), generator=torch.Generator().manual_seed(0)), 256)

    def nelbo(x: Tensor, **options) -> np.ndarray:
        out = tmp_path / f"{next(count)}.parquet"
        score(model, x, out, likelihood=False, times=2, progress=False, **options)
        return pandas.read_parquet(out)[["nelbo", "nelbo_stderr"]].to_numpy()

    whole = nelbo(x)
    for size in (7, 16, 64) if levels != 256 else (7,):
        np.testing.assert_array_equal(nelbo(x, batch_size=size), whole)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(2))
    np.testing.assert_array_equal(nelbo(x[order]), whole[order.numpy()])
    np.testing.assert_array_equal(nelbo(x[11:14]), whole[11:14])
    np.testing.assert_array_equal(nelbo(x[11:12]), whole[11:12])
    if levels is None:
        far = x.clone()
        far[10, 1], far[50, 0] = -1e3, 1e25
        changed = nelbo(far)
        others = np.delete(np.arange(90), [10, 50])
        np.testing.assert_array_equal(changed[others], whole[others])
        assert changed[10, 0] > 1e4
        assert not np.isfinite(changed[50, 0])
    assert (nelbo(x, seed=1) != whole).any(1).all()


@pytest.mark.slow
def test_a_row_of_a_model_with_a_latent_has_its_own_noise(tmp_path: Path) -> None:
    torch.manual_seed(0)
    denoiser = ndm.Denoiser(ResidualMLP(3, hidden=16, depth=1, latent=2, zero_init=False))
    encoder = ResidualMLP(3, hidden=16, depth=1, level=False, outputs=4, zero_init=False)
    noise = ndm.LatentNoise(ResidualMLP(2, hidden=16, depth=1, level=False, outputs=9, zero_init=False), (3,))
    parts = ndm.LinearSchedule(-6, 5), ndm.Identity(), denoiser
    model, x = ndm.NDM(*parts, noise=noise, latent=ndm.GaussianLatent(encoder, 2)), draw(40)
    found = []
    for i, rows in enumerate((x, x[10:13])):
        score(model, rows, tmp_path / f"{i}.csv", times=40, progress=False)
        found.append(pandas.read_csv(tmp_path / f"{i}.csv"))
    np.testing.assert_array_equal(found[0]["nelbo"][10:13], found[1]["nelbo"])
    with torch.no_grad():
        expected = torch.stack([model.bound(x).total for _ in range(400)]).mean(0)
    gap = (found[0]["nelbo"] - expected.numpy()) / found[0]["nelbo_stderr"]
    assert gap.abs().mean() < 2
    assert found[0]["log_prob"].notna().all()


def test_what_helps_the_bound_is_found_on_samples_of_the_model() -> None:
    """The slopes are those of least squares for the model's data, and no row that is scored has a part in them."""
    found = []
    for x in (draw(50), 1e3 * draw(50)):
        scorer = Scorer(gaussian(), False, 20, {}, "32", 0)
        with scorer.at_work():
            scorer.prepare(x)
        found.append(scorer.slopes)
    assert found[0] == found[1]
    # eps - eps_hat = (u R eps - sqrt(u R) xi) / (1 + u R) with xi standard normal and u = e^-gamma: its square has the
    # covariance 2 (u R / (1 + u R))^2 with eps^2, of which the variance is 2.
    gamma = LOW + (HIGH - LOW) * (np.arange(10) + 0.5) / 10
    u = np.exp(-gamma)
    assert np.abs(np.array(found[0]) - (R * u / (1 + R * u)) ** 2).max() < 0.15
    assert found[0][0] == pytest.approx(1.0, abs=0.03)
    assert abs(found[0][-1]) < 0.03
