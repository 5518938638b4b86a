"""Scores against closed forms, the errors they state against their spread, and what a killed process leaves behind."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas
import pyarrow.parquet
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import ndm
from ndm.data import from_levels, part_of
from ndm.method.schedules import NoiseLevel, per_example
from ndm.networks import ResidualMLP, UNet
from ndm.scoring import ExampleRows, ImageRows, TableRows, score
from ndm.scoring.partial import PartialScores
from ndm.scoring.scorer import Scorer

LOW, HIGH, R = -6.0, 8.0, 1.7


class Exact(nn.Module):
    """E[x | z] for x ~ N(0, R I)."""

    def forward(self, z: Tensor, level: NoiseLevel, labels: Tensor | None = None) -> Tensor:
        return per_example(level.alpha * R / (level.alpha**2 * R + level.sigma**2), z) * z


def gaussian(**parts) -> ndm.NDM:
    """The exact model of N(0, R I)."""
    return ndm.NDM(ndm.LinearSchedule(LOW, HIGH), ndm.Identity(), Exact(), **parts)


def bound_of_gaussian(x: Tensor) -> Tensor:
    """E of the bound at x, (B,): the integral over gamma of e^-gamma E |x - x_hat|^2 / 2 has a closed form at fixed x.

    With a = alpha^2 R + sigma^2 the error is (sigma^2 x - alpha sigma R noise) / a, and with u = e^-gamma, both
    variances over a^2 are rational in u.
    """
    d, u0, u1 = x.shape[1], math.exp(-LOW), math.exp(-HIGH)
    square = x.double().square().sum(1)
    # e^-gamma |x - x_hat|^2 dgamma = -(|x|^2 + u R^2 d) / (1 + R u)^2 du
    first = (1 / (1 + R * u1) - 1 / (1 + R * u0)) / R
    second = math.log((1 + R * u0) / (1 + R * u1)) / R**2 + (1 / (1 + R * u0) - 1 / (1 + R * u1)) / R**2
    diffusion = (square * first + R**2 * d * second) / 2
    alpha, sigma = 1 / (1 + math.exp(HIGH)), 1 / (1 + math.exp(-HIGH))  # squared
    prior = (d * sigma + alpha * square - d - d * math.log(sigma)) / 2
    return diffusion + prior + d / 2 * (math.log(2 * math.pi) + LOW + 1)


def log_density_of_gaussian(x: Tensor) -> Tensor:
    """Under the exact denoiser's linear flow: of z_1, standard normal, as in tests/inference/test_likelihood.py."""
    alpha, sigma = ([1 / (1 + math.exp(s * g)) for g in (LOW, HIGH)] for s in (1, -1))
    variance = [a * R + s for a, s in zip(alpha, sigma, strict=True)]
    scale = math.sqrt(variance[0] / variance[1] / alpha[0])
    return torch.distributions.Normal(0.0, scale).log_prob(x.double()).sum(1)


def draw(n: int, d: int = 3) -> Tensor:
    return math.sqrt(R) * torch.randn(n, d, generator=torch.Generator().manual_seed(1))


def small(**arguments) -> ndm.NDM:
    """A model that nobody has trained."""
    torch.manual_seed(0)
    net = ResidualMLP(3, hidden=8, depth=1, embedding=4, zero_init=False, **arguments)
    return ndm.NDM(ndm.LinearSchedule(-4, 5), ndm.Identity(), ndm.Denoiser(net))


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the look at the solver's error, which takes longest of so few rows."""
    monkeypatch.setattr(Scorer, "check", lambda self, x: ("density", None))


# ---- the figures


@pytest.mark.parametrize("ending", ["csv", "parquet"])
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


@pytest.mark.parametrize("levels", [None, 7, 256])
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


@pytest.mark.usefixtures("unchecked")
def test_a_row_without_a_finite_bound_is_not_solved_and_counted_in_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, real, solved = draw(20), ndm.evaluation.per_example.log_likelihood, []
    x[7, 0] = 1e30

    def spy(model: ndm.NDM, x: Tensor, **options):
        solved.append(x)
        return real(model, x, **options)

    monkeypatch.setattr("ndm.evaluation.per_example.log_likelihood", spy)
    scores = score(gaussian(), x, tmp_path / "x.parquet", times=2, tolerance=0.1, progress=False)
    assert torch.cat(solved).abs().max() < 100
    for name in ("nelbo", "log_prob"):
        assert scores.about[name]["not_finite"] == 1
        assert scores.about[name]["not_finite_rows"] == [7]
        assert math.isfinite(scores.about[name]["mean"])
    assert scores.text().count("for 1 of 20 rows, which are excluded: row 7") == 2
    scores.require_finite()
    table = pandas.read_parquet(tmp_path / "x.parquet")
    assert np.flatnonzero(~np.isfinite(table["log_prob"])).tolist() == [7]


def test_where_no_row_is_finite_it_is_said(tmp_path: Path) -> None:
    x = draw(5)
    x[:, 0] = 1e30
    scores = score(gaussian(), x, tmp_path / "x.parquet", times=2, progress=False)
    assert scores.about["nelbo"]["mean"] is None
    assert scores.about["log_prob"]["mean"] is None
    assert "for 5 of 5 rows" in scores.text()
    with pytest.raises(ValueError, match=r"No row has a finite bound; the file .*x.parquet was written"):
        scores.require_finite()
    kept = pyarrow.parquet.read_schema(tmp_path / "x.parquet").metadata[b"ndm"]
    json.loads(kept, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_one_row_has_no_standard_error(tmp_path: Path) -> None:
    scores = score(gaussian(), draw(1), tmp_path / "x.parquet", times=2, tolerance=0.1, progress=False)
    assert scores.about["nelbo"]["stderr"] is None
    assert "± - nats" in scores.text()
    kept = pyarrow.parquet.read_schema(tmp_path / "x.parquet").metadata[b"ndm"]
    json.loads(kept, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


@pytest.mark.parametrize("n", [1, 3, 40])
def test_the_rows_that_are_solved_again_are_random_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n: int
) -> None:
    seen = []
    monkeypatch.setattr(Scorer, "check", lambda self, x: (seen.append(x), ("density", 0.5))[1])
    monkeypatch.setattr("ndm.scoring.scores.CHECKED", 3 * n)
    x = draw(100)
    scores = score(gaussian(), x, tmp_path / "x.csv", times=2, tolerance=1.0, batch_size=16, progress=False)
    torch.testing.assert_close(seen[0], x[part_of(100, n, seed=0)], rtol=0, atol=0)
    assert scores.about["log_prob"]["checked_error"] == 0.5


def test_a_row_that_cannot_be_solved_spoils_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = draw(20)
    x[[3, 17]] = 9.0
    real = ndm.evaluation.per_example.log_likelihood

    def fragile(model: ndm.NDM, x: Tensor, **options):
        result = real(model, x, **options)
        return dataclasses.replace(result, log_prob=result.log_prob.where((x != 9).all(1), math.nan))

    score(gaussian(), x, tmp_path / "whole.csv", times=2, precision="64", progress=False)
    monkeypatch.setattr("ndm.evaluation.per_example.log_likelihood", fragile)
    scores = score(gaussian(), x, tmp_path / "x.csv", times=2, precision="64", progress=False)
    whole, table = pandas.read_csv(tmp_path / "whole.csv"), pandas.read_csv(tmp_path / "x.csv")
    assert np.flatnonzero(table["log_prob"].isna()).tolist() == [3, 17]
    assert np.isfinite(table["nelbo"]).all()
    there = table["log_prob"].notna()
    np.testing.assert_allclose(table["log_prob"][there], whole["log_prob"][there], atol=1e-8)
    assert scores.about["log_prob"]["unsolved"] == 2
    assert "not finite (inf or nan) for 2 of 20 rows, which are excluded: rows 3, 17" in scores.text()
    failing = lambda *a, **o: (_ for _ in ()).throw(RuntimeError("no memory"))  # noqa: E731
    monkeypatch.setattr("ndm.evaluation.per_example.log_likelihood", failing)
    with pytest.raises(RuntimeError, match="no memory"):
        score(gaussian(), x, tmp_path / "y.csv", times=2, progress=False)


@pytest.mark.slow
def test_rows_that_miss_the_tolerance_are_counted(tmp_path: Path) -> None:
    scores = score(small(), 30 * draw(3), tmp_path / "x.csv", times=2, tolerance=1e-9, progress=False)
    table = pandas.read_csv(tmp_path / "x.csv")
    assert scores.about["log_prob"]["missed_tolerance"] == (table["solver_error"] > 1e-9).sum() > 0
    assert "not solved to the tolerance: 3 of 3 rows" in scores.text()


# ---- stopping and going on


FAST = {"times": 2, "likelihood": False, "batch_size": 16, "progress": False}


class Stopping(ExampleRows):
    """Rows that end in an interruption."""

    def blocks(self, size: int, skip: int):
        for i, block in enumerate(super().blocks(size, skip)):
            if i == 3 and size == 16:
                raise KeyboardInterrupt
            yield block


def interrupted(x: Tensor, out: Path, **options) -> Path:
    with pytest.raises(KeyboardInterrupt):
        score(small(), Stopping(x), out, **{**FAST, **options})
    assert not out.exists()
    return out.with_name(out.name + ".partial")


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_what_was_interrupted_is_finished_with_the_same_result(tmp_path: Path, ending: str) -> None:
    x, whole, out = draw(100), tmp_path / f"whole.{ending}", tmp_path / f"x.{ending}"
    options = {"likelihood": True, "tolerance": 0.1}
    score(small(), x, whole, **{**FAST, **options})
    interrupted(x, out, **options)
    interrupted(x, out, **options)  # now at the sixth of seven
    scores = score(small(), x, out, **{**FAST, **options})
    assert scores.about["scored"] == 4
    read = pandas.read_csv if ending == "csv" else pandas.read_parquet
    pandas.testing.assert_frame_equal(read(out), read(whole), check_exact=True)


@pytest.mark.parametrize("damage", ["torn", "flipped", "zeros", "swapped"])
def test_a_damaged_partial_is_gone_on_with_from_before_the_damage(tmp_path: Path, damage: str) -> None:
    x, whole, out = draw(100), tmp_path / "whole.csv", tmp_path / "x.csv"
    score(small(), x, whole, **FAST)
    blocks = interrupted(x, out) / "blocks"
    good, size = blocks.read_bytes(), 16 * 40 + 4
    assert len(good) == 3 * size
    bad = {
        "torn": good[:-7],
        "flipped": good[: size + 9] + bytes([good[size + 9] ^ 1]) + good[size + 10 :],
        "zeros": good[:-size] + bytes(size),
        "swapped": good[size : 2 * size] + good[:size] + good[2 * size :],
    }
    blocks.write_bytes(bad[damage])
    scored = {"torn": 68, "flipped": 84, "zeros": 68, "swapped": 100}[damage]
    assert score(small(), x, out, **FAST).about["scored"] == scored
    assert out.read_bytes() == whole.read_bytes()


def test_only_the_same_settings_go_on(tmp_path: Path) -> None:
    x, out = draw(100), tmp_path / "x.csv"
    folder = interrupted(x, out)
    before = (folder / "blocks").read_bytes()
    for changes, word in (({"times": 4}, r"another times \(2 there, 4 here\)"), ({"seed": 1}, "another seed")):
        with pytest.raises(ValueError, match=word):
            score(small(), x, out, **{**FAST, **changes})
    with pytest.raises(ValueError, match="another data"):
        score(small(), x + 1, out, **FAST)
    with pytest.raises(ValueError, match="another model"):
        score(gaussian(), x, out, **FAST)
    (folder / "settings.json").write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        score(small(), x, out, **FAST)
    (folder / "settings.json").unlink()
    with pytest.raises(ValueError, match="missing"):
        score(small(), x, out, **FAST)
    assert (folder / "blocks").read_bytes() == before
    (folder / "blocks").write_bytes(b"")  # nothing is lost by other settings
    assert score(small(), x, out, **{**FAST, "times": 4}).about["scored"] == 100


def test_data_that_do_not_fit_leave_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="3 features"):
        score(small(), draw(10, d=4), tmp_path / "x.csv", **FAST)
    with pytest.raises(ValueError, match="NaN or infinite"):
        score(small(), draw(10) / 0, tmp_path / "x.csv", **FAST)
    assert not list(tmp_path.iterdir())


def test_a_stop_while_the_partial_is_removed_spoils_no_later_scoring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, x = tmp_path / "x.csv", draw(10)

    def stopped(folder: Path) -> None:
        assert list(folder.iterdir()) == []
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.rmdir", stopped)
        with pytest.raises(KeyboardInterrupt):
            score(small(), x, out, likelihood=False, times=2)
    expected = out.read_bytes()
    out.unlink()
    score(small(), x, out, likelihood=False, times=2)
    assert out.read_bytes() == expected
    assert [p.name for p in tmp_path.iterdir()] == [out.name]


def test_two_processes_do_not_write_to_one_partial(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    settings = {"rows": 10, "batch_size": 5}
    with (
        PartialScores(tmp_path / "p", settings),
        pytest.raises(ValueError, match="Another process"),
        PartialScores(tmp_path / "p", settings),
    ):
        pass


SCRIPT = """
import sys, torch, ndm
from ndm.scoring import TableRows, score
torch.set_num_threads(1)
model = ndm.NDM.from_pretrained(sys.argv[1])
score(model, TableRows(sys.argv[2], (3,)), sys.argv[3], times=20, likelihood=False, batch_size=16, progress=False)
"""


@pytest.mark.slow
def test_a_process_killed_in_the_middle_is_gone_on_with(tmp_path: Path) -> None:
    table, out = tmp_path / "x.csv", tmp_path / "x.parquet"
    pandas.DataFrame(draw(1000).double().numpy(), columns=list("abc")).to_csv(table, index=False)
    model = ndm.NDM.from_pretrained(small().save_pretrained(tmp_path / "model"))
    blocks, of_a_block = tmp_path / "x.parquet.partial" / "blocks", 16 * 40 + 4
    for some in (3, 20):  # twice, the second time with blocks of the first one before
        process = subprocess.Popen([sys.executable, "-c", SCRIPT, tmp_path / "model", table, out])
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and process.poll() is None:
            if blocks.exists() and blocks.stat().st_size > some * of_a_block:
                break
            time.sleep(0.002)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert some * of_a_block < blocks.stat().st_size < 62 * of_a_block
    assert not out.exists()
    options = {"times": 20, "likelihood": False, "batch_size": 16, "progress": False}
    scores = score(model, TableRows(str(table), (3,)), out, **options)
    assert 0 < scores.about["scored"] < 1000 - 20 * 16
    score(model, TableRows(str(table), (3,)), tmp_path / "whole.parquet", **options)
    found, whole = (pandas.read_parquet(path) for path in (out, tmp_path / "whole.parquet"))
    pandas.testing.assert_frame_equal(found, whole, check_exact=True)
    assert not blocks.parent.exists()


@pytest.mark.slow
def test_memory_is_needed_for_a_block_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty times the rows, the same memory; tracemalloc sees numpy's and Python's, in which all rows would be."""
    monkeypatch.setattr("ndm.data.tablefile._AT_ONCE", 2000)
    monkeypatch.setattr("ndm.scoring.writing.WRITTEN", 2000)
    net = ResidualMLP(8, hidden=2, depth=1, embedding=2)
    model = ndm.NDM(ndm.LinearSchedule(-4, 5), ndm.Identity(), ndm.Denoiser(net))
    options = {"times": 2, "likelihood": False, "batch_size": 2000, "progress": False}
    peaks = []
    for n in (2_000, 4_000, 80_000):  # the first to import what is needed
        table = pandas.DataFrame(np.random.default_rng(0).normal(size=(n, 8)))
        table.to_parquet(tmp_path / f"{n}.parquet", row_group_size=2000)
        rows = TableRows(str(tmp_path / f"{n}.parquet"), (8,))
        tracemalloc.start()
        score(model, rows, tmp_path / f"out-{n}.parquet", **options)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] < peaks[1] + 500_000  # the figures alone would be 2.6 MB, the table 5


# ---- rows


def test_a_table_is_scored_in_its_order_and_by_its_names(tmp_path: Path) -> None:
    x = draw(50)
    frame = pandas.DataFrame(x.numpy(), columns=["a", "b", "c"]).assign(name="x", d=1.0)[["c", "d", "name", "b", "a"]]
    frame.to_csv(tmp_path / "x.csv", index=False)
    rows = TableRows(str(tmp_path / "x.csv"), (3,), columns=("a", "b", "c"))
    assert rows.count == 50
    assert [len(b) for b in rows.blocks(20, 5)] == [20, 20, 5]
    torch.testing.assert_close(torch.cat(list(rows.blocks(7, 0))).float(), x)
    score(gaussian(), rows, tmp_path / "x.parquet", tolerance=1e-5, max_rows=33, batch_size=10, progress=False)
    table = pandas.read_parquet(tmp_path / "x.parquet")
    np.testing.assert_allclose(table["log_prob"], log_density_of_gaussian(x[:33]), atol=1e-3)
    with pytest.raises(ValueError, match="no column 'e'"):
        TableRows(str(tmp_path / "x.csv"), (3,), columns=("a", "b", "e"))
    with pytest.raises(ValueError, match=r"expects 3 columns, but .* has 4 numeric columns: c, d, b, a"):
        TableRows(str(tmp_path / "x.csv"), (3,))


def test_a_table_of_levels_is_what_they_stand_for(tmp_path: Path) -> None:
    k = torch.randint(5, (20, 4))
    pandas.DataFrame(k.numpy(), columns=list("abcd")).to_parquet(tmp_path / "x.parquet")
    rows = TableRows(str(tmp_path / "x.parquet"), (1, 2, 2), levels=5)
    torch.testing.assert_close(torch.cat(list(rows.blocks(7, 0))), from_levels(k, 5).reshape(-1, 1, 2, 2))
    with pytest.raises(ValueError, match=r"row \d+, the column .* holds 4, which is not one of"):
        TableRows(str(tmp_path / "x.parquet"), (4,), levels=4)


def test_a_bad_cell_is_found_before_anything_is_scored(tmp_path: Path) -> None:
    pandas.DataFrame(draw(50).numpy(), columns=list("abc")).to_csv(tmp_path / "x.csv", index=False)
    with open(tmp_path / "x.csv", "a") as file:
        file.write("1,,3\n")
    with pytest.raises(ValueError, match="line 52, the column 'b' holds no value"):
        TableRows(str(tmp_path / "x.csv"), (3,), columns=("a", "b", "c"))
    draws = pandas.DataFrame(draw(3000).numpy(), columns=list("abc")).astype("float64")
    draws.iloc[-1, 1] = 1e300
    draws.to_csv(tmp_path / "x.csv", index=False)
    with pytest.raises(ValueError, match=r"line 3001, the column .b. holds 1e\+300, which is larger"):
        TableRows(str(tmp_path / "x.csv"), (3,), columns=("a", "b", "c"))


@pytest.fixture
def images(tmp_path: Path) -> Callable[..., tuple[str, np.ndarray]]:
    pytest.importorskip("datasets")

    def write(split: str = "") -> tuple[str, np.ndarray]:
        pixels = np.random.default_rng(0).integers(0, 256, (7, 4, 4), dtype=np.uint8)
        (tmp_path / "images" / split).mkdir(parents=True, exist_ok=True)
        for i, image in enumerate(pixels):
            Image.fromarray(image).save(tmp_path / "images" / split / f"{i}.png")
        return str(tmp_path / "images"), pixels

    return write


def test_images_are_scored_in_their_order(images: Callable, tmp_path: Path) -> None:
    path, pixels = images()
    rows = ImageRows(path, (1, 4, 4))
    expected = from_levels(torch.from_numpy(pixels.astype(int)), 256)[:, None]
    torch.testing.assert_close(torch.cat(list(rows.blocks(3, 2))), expected[2:], rtol=0, atol=0)
    model = gaussian(decoder=ndm.DiscretizedDecoder(levels=256))
    score(model, rows, tmp_path / "x.csv", times=2, likelihood=False, batch_size=2, progress=False)
    score(model, expected, tmp_path / "y.csv", times=2, likelihood=False, batch_size=2, progress=False)
    assert (tmp_path / "x.csv").read_bytes() == (tmp_path / "y.csv").read_bytes()
    with pytest.raises(ValueError, match="4 x 4 pixels"):
        next(ImageRows(path, (1, 8, 8)).blocks(2, 0))
    assert next(ImageRows(path, (1, 8, 8), size=8).blocks(2, 0)).shape == (2, 1, 8, 8)


def test_of_several_splits_one_is_chosen(images: Callable) -> None:
    images("train")
    path, _ = images("test")
    assert ImageRows(path, (1, 4, 4), split="test").count == 7
    with pytest.raises(ValueError, match="splits train, test: choose one"):
        ImageRows(path, (1, 4, 4))
    with pytest.raises(ValueError, match="no validation split"):
        ImageRows(path, (1, 4, 4), split="validation")


# ---- what is refused


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"times": 3}, "even"),
        ({"times": 0}, "even"),
        ({"tolerance": 0.0}, "tolerance"),
        ({"samples": 0}, "samples"),
        ({"probes": 0}, "probes"),
        ({"batch_size": 0}, "batch_size"),
        ({"max_rows": 0}, "max_rows"),
        ({"precision": "16"}, "precision '16'"),
        ({"seed": -1}, "seed"),
    ],
)
def test_options_out_of_range_are_refused(tmp_path: Path, options: dict, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        score(gaussian(), draw(3), tmp_path / "x.csv", **options)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_written_or_scored_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("mine")
    with pytest.raises(FileExistsError, match="exists"):
        score(gaussian(), draw(3), tmp_path / "x.csv")
    with pytest.raises(ValueError, match=r"\.parquet or \.csv"):
        score(gaussian(), draw(3), tmp_path / "x.txt")
    with pytest.raises(FileNotFoundError, match="no folder"):
        score(gaussian(), draw(3), tmp_path / "none" / "x.csv")
    with pytest.raises(ValueError, match="no rows"):
        score(gaussian(), draw(0), tmp_path / "y.csv")
    with pytest.raises(ValueError, match="Class-conditional"):
        score(small(classes=3), draw(3), tmp_path / "y.csv")
    direct = ndm.NDM(ndm.LinearSchedule(), ndm.Identity(), ndm.DirectDenoiser(ResidualMLP(3, hidden=4, depth=1)))
    with pytest.raises(ValueError, match="no ODE"):
        score(direct, draw(3), tmp_path / "y.csv")
    score(direct, draw(3), tmp_path / "y.csv", **FAST)
    assert (tmp_path / "x.csv").read_text() == "mine"
