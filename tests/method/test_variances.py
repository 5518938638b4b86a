"""Covariances against torch.distributions, and the calibrated ones against every other of their kind."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

import ndm
from ndm.method.calibration import error_moments
from ndm.method.coordinates import DATA, FREQUENCIES, Frequencies
from ndm.method.denoisers import Estimate
from ndm.method.variances import Covariance, Diagonal, LowRank, Moments, Step

B, D = 4, 6


def f64(values: list) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def orthonormal(*shape: int) -> Tensor:
    return torch.linalg.qr(torch.randn(*shape).double()).Q


def low_rank(rank: int) -> LowRank:
    basis = orthonormal(3, D, D)[:, :rank]
    rest = torch.zeros(3) if rank == D else torch.randn(3)
    return LowRank(torch.tensor([2, 0, 2, 1]), basis, torch.randn(3, rank).double(), rest.double())


COVARIANCES = {
    "posterior": lambda: Diagonal(torch.zeros(()).double()),
    "isotropic": lambda: Diagonal(torch.randn(B, 1).double()),
    "diagonal": lambda: Diagonal(torch.randn(1, D).double()),
    "predicted": lambda: Diagonal(torch.randn(B, D).double()),
    "full": lambda: low_rank(D),
    "low rank": lambda: low_rank(2),
}
every_covariance = pytest.mark.parametrize("make", COVARIANCES.values(), ids=COVARIANCES)


def matrices(covariance: Covariance) -> Tensor:
    """W / v of each example, (B, D, D), from the definitions."""
    if isinstance(covariance, Diagonal):
        return torch.diag_embed(covariance.log_ratio.expand(B, D).exp())
    out = []
    for i in covariance.index.tolist():
        inside = covariance.basis[i].T @ covariance.basis[i]
        stretched = covariance.basis[i].T @ torch.diag(covariance.log_ratio[i].exp()) @ covariance.basis[i]
        out.append(stretched + covariance.rest[i].exp() * (torch.eye(D).double() - inside))
    return torch.stack(out)


@every_covariance
@pytest.mark.parametrize("shape", [(D,), (2, 3)])
def test_kl_equals_torch_distributions(make, shape) -> None:
    covariance, v = make(), f64([0.3, 1e-3, 2.0, 0.7])
    if isinstance(covariance, Diagonal) and covariance.log_ratio.ndim:
        reshaped = covariance.log_ratio.reshape(
            -1, *(shape if covariance.log_ratio.shape[1] == D else [1] * len(shape))
        )
        covariance, flat = Diagonal(reshaped), covariance
    else:
        flat = covariance
    true, predicted = torch.randn(2, B, D).double() * v.sqrt()[:, None]
    e = ((true - predicted) / v.sqrt()[:, None]).reshape(B, *shape)
    q = MultivariateNormal(true, v[:, None, None] * torch.eye(D).double())
    p = MultivariateNormal(predicted, v[:, None, None] * matrices(flat))
    torch.testing.assert_close(covariance.kl(e), kl_divergence(q, p), rtol=1e-9, atol=1e-9)


@every_covariance
def test_coloured_noise_has_the_covariance(make) -> None:
    covariance = make()
    # Colouring is linear in the noise: its matrix, row by row.
    rows = torch.stack([covariance.apply_sqrt(e.expand(B, D)) for e in torch.eye(D).double()], 1)
    torch.testing.assert_close(rows.mT @ rows, matrices(covariance), rtol=1e-9, atol=1e-9)


def test_a_low_rank_covariance_keeps_the_shape_of_images() -> None:
    covariance = low_rank(2)
    noise = torch.randn(B, 2, 3).double()
    torch.testing.assert_close(covariance.apply_sqrt(noise).flatten(1), covariance.apply_sqrt(noise.flatten(1)))


def test_frequencies_are_those_of_the_cosine_transform() -> None:
    log_ratio, shape = torch.randn(1, 1, 2, 3).double(), (1, 2, 3)
    covariance, turn = Diagonal(log_ratio, Frequencies()), Frequencies().into(torch.eye(D).double().reshape(D, *shape))
    turn = turn.flatten(1).T  # V^T
    expected = turn.T @ torch.diag(log_ratio.flatten().exp()) @ turn
    rows = covariance.apply_sqrt(torch.eye(D).double().reshape(D, *shape)).flatten(1)
    torch.testing.assert_close(rows.T @ rows, expected)
    e, one = torch.randn(B, D).double(), torch.eye(D).double()
    q, p = MultivariateNormal(e, one), MultivariateNormal(torch.zeros_like(e), expected)
    torch.testing.assert_close(covariance.kl(e.reshape(B, *shape)), kl_divergence(q, p))


# ---- calibration: optimal among its kind, on the data it was made from


def errors(steps: int = 3, n: int = 40) -> Tensor:
    return torch.randn(steps, n, D).double() @ torch.randn(steps, D, D).double()


def fitted(covariance: str, e: Tensor, rank: int | None = None) -> ndm.CalibratedVariance:
    moments = Moments(len(e), D, full=covariance == "full")
    for i, rows in enumerate(e):
        moments.add(i, rows[:13])
        moments.add(i, rows[13:])
    variance = ndm.CalibratedVariance(len(e), covariance, (D,), rank).double()
    variance.fit(moments)
    return variance


def cost(variance: ndm.CalibratedVariance, e: Tensor) -> np.ndarray:
    """Mean KL at each step."""
    steps, n, _ = e.shape
    out = []
    for i in range(steps):
        step = step_number(i + 1, steps, n)
        with torch.no_grad():
            out.append(variance(step, Estimate(torch.zeros(n, D).double(), residual=None)).kl(e[i]).mean().item())
    return np.array(out)


def step_number(index: int, steps: int, n: int) -> Step:
    schedule, index = ndm.LinearSchedule(), torch.full((n,), index)
    t = index.double() / steps
    return Step.between(schedule(t - 1 / steps), schedule(t), torch.ones(n).double(), index, steps)


KINDS = [("isotropic", None), ("diagonal", None), ("full", None), ("full", 2), ("full", 5)]


@pytest.mark.parametrize(("covariance", "rank"), KINDS)
def test_calibration_costs_what_theory_says(covariance: str, rank: int | None) -> None:
    e = errors()
    second = (e.mT @ e / e.shape[1]).numpy()
    diagonal = np.einsum("tkk->tk", second)
    if covariance == "isotropic":
        expected = D / 2 * np.log1p(diagonal.mean(1))
    elif covariance == "diagonal":
        expected = np.log1p(diagonal).sum(1) / 2
    else:
        values = np.linalg.eigvalsh(second)[:, ::-1]
        kept, rest = values[:, : rank or D], values[:, rank or D :]
        outside = rest.shape[1] * np.log1p(rest.mean(1)) if rest.shape[1] else 0
        expected = (np.log1p(kept).sum(1) + outside) / 2
    np.testing.assert_allclose(cost(fitted(covariance, e, rank), e), expected, rtol=1e-9)


@pytest.mark.parametrize(("covariance", "rank"), KINDS)
def test_any_other_variance_costs_more(covariance: str, rank: int | None) -> None:
    e = errors()
    variance = fitted(covariance, e, rank)
    best = cost(variance, e)
    for name, buffer in variance.named_buffers():
        if name == "rest" and variance.rank == D:
            continue
        for entry, by in itertools.product(range(buffer[0].numel() if name != "basis" else 1), (-0.1, 0.1)):
            kept = buffer.clone()
            if name == "basis":  # turn the space a little
                turn = torch.linalg.matrix_exp(by * (lambda a: a - a.T)(torch.randn(D, D).double()))
                buffer.copy_(buffer @ turn)
            else:
                buffer.reshape(len(e), -1)[:, entry] += by
            assert (cost(variance, e) > best + 1e-6).all(), (name, entry)
            buffer.copy_(kept)


def test_more_freedom_costs_less() -> None:
    e = errors()
    costs = [cost(fitted(*kind), e) for kind in [("isotropic", e), ("full", e, 2), ("full", e, 4), ("full", e)]]
    assert all((a > b).all() for a, b in itertools.pairwise(costs))
    assert (cost(fitted("diagonal", e), e) > costs[-1]).all()


def images(n: int = 300) -> tuple[ndm.NDM, Tensor]:
    """A model that knows the mean of smooth images only, and such images."""
    process = ndm.NDM(ndm.LinearSchedule(-6.0, 5.0), ndm.Identity(), lambda z, level: 0 * z).double()
    smooth = torch.linspace(0.1, 2.0, 12).double().flip(0).reshape(1, 3, 4)
    return process, Frequencies().back(smooth * torch.randn(n, 1, 3, 4).double())


def test_frequencies_are_calibrated_on_the_errors_in_their_coordinates() -> None:
    process, x = images()
    found = error_moments(process, x, 3, ("full", "frequency"), generator=torch.Generator().manual_seed(0))
    full, own = found[DATA], found[FREQUENCIES]
    turn = Frequencies().into(torch.eye(12).double().reshape(12, 1, 3, 4)).flatten(1).T
    for i in range(3):
        torch.testing.assert_close(own.squares()[i], (turn @ full.matrix(i) @ turn.T).diagonal())


@pytest.mark.parametrize("spacing", ["time", pytest.param("optimal", marks=pytest.mark.slow)])
def test_frequencies_cost_less_where_the_errors_are_smooth(spacing: str) -> None:
    process, x = images()
    costs = {}
    for name in ("isotropic", "diagonal", "frequency", "full"):
        process.calibrate([x], 4, name, spacing=spacing, generator=torch.Generator().manual_seed(0))
        costs[name] = process.bound(x, 4, generator=torch.Generator().manual_seed(1)).total.mean().item()
    assert costs["frequency"] < costs["diagonal"] - 0.5
    assert costs["frequency"] < costs["isotropic"] - 0.5
    assert costs["frequency"] == pytest.approx(costs["full"], abs=0.3)


@pytest.mark.slow
def test_of_a_process_in_frequencies_diagonal_and_frequency_are_the_same() -> None:
    process, x = images()
    process.noise = ndm.FrequencyNoise((1, 3, 4)).double()
    found = [
        process.calibrate([x], 4, name, spacing="optimal", generator=torch.Generator().manual_seed(0))
        .bound(x, 4, generator=torch.Generator().manual_seed(1))
        .total
        for name in ("diagonal", "frequency")
    ]
    torch.testing.assert_close(*found)


def test_calibrated_variances_refuse_what_they_are_not_for() -> None:
    variance = ndm.CalibratedVariance(5, "isotropic", (D,))
    with pytest.raises(ValueError, match="calibrated for 5 steps, not for 7"):
        variance(step_number(1, 7, 2), Estimate(torch.zeros(2, D), residual=None))
    with pytest.raises(ValueError, match=r'"frequency" is for images, .*, not examples of shape \(6,\)'):
        ndm.CalibratedVariance(5, "frequency", (D,))
    for arguments in ((5, "round"), (0, "full"), (5, "full", (D,), 0), (5, "full", (D,), -1)):
        with pytest.raises(ValueError, match=r"covariance|steps"):
            ndm.CalibratedVariance(*arguments)


# ---- the step


@pytest.mark.parametrize("schedule", [ndm.LinearSchedule(-8, 4), ndm.OTSchedule(-8, 4)])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_a_step_equals_the_formulas(schedule, eta: float) -> None:
    s, t = schedule(f64([0.2, 0.5])), schedule(f64([0.3, 0.9]))
    step = Step.between(s, t, torch.full((2,), eta).double(), torch.tensor([1, 2]), None)
    ratio = t.alpha / s.alpha
    v = eta**2 * (t.sigma**2 - ratio**2 * s.sigma**2) * s.sigma**2 / t.sigma**2
    c = (s.sigma**2 - v).sqrt() / t.sigma
    torch.testing.assert_close(step.v, v, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(step.c, c, rtol=1e-10, atol=0)
    torch.testing.assert_close(s.alpha * step.gain, s.alpha - c * t.alpha, rtol=1e-10, atol=0)
    if eta == 1:
        torch.testing.assert_close(c, ratio * s.sigma**2 / t.sigma**2, rtol=1e-10, atol=0)
    if eta > 0:
        torch.testing.assert_close(step.scale, (s.alpha - c * t.alpha) / v.sqrt(), rtol=1e-10, atol=0)


def test_a_large_volatility_is_limited_by_the_variance_of_z_s() -> None:
    schedule = ndm.LinearSchedule(-8, 4)
    s, t = schedule(f64([0.2])), schedule(f64([0.9]))
    step = Step.between(s, t, torch.full((1,), 3.0).double(), torch.tensor([1]), None)
    assert 0 < 1 - (step.v / s.sigma**2).item() < 1e-5
    assert step.c.isfinite().all()
    assert step.c >= 0


def test_an_empty_step_is_finite_and_costs_nothing() -> None:
    level = ndm.OTSchedule()(f64([0.9995]))
    step = Step.between(level, level, torch.ones(1).double(), torch.tensor([1]), None)
    assert (step.v, step.gain, step.scale, step.c) == (0, 0, 0, 1)


# ---- learned


def test_learned_variance_equals_its_formula() -> None:
    variance = ndm.LearnedVariance(knots=3).double()
    variance.set_gamma_range(-8.0, 4.0)
    with torch.no_grad():
        variance.shift.copy_(f64([-3.0, 1.0, 2.0]) / variance.UNIT)
    gamma = f64([-20.0, -8.0, -5.0, -2.0, 1.0, 4.0, 9.0])
    expected = f64([-3.0, -3.0, -1.0, 1.0, 1.5, 2.0, 2.0]).exp() / (1 + gamma.exp())
    torch.testing.assert_close(variance.kappa(gamma), expected, rtol=1e-12, atol=0)

    schedule = ndm.LinearSchedule(-8.0, 4.0)
    s, t = schedule(f64([0.1, 0.5])), schedule(f64([0.25, 1.0]))
    step = Step.between(s, t, torch.ones(2).double(), torch.tensor([1, 2]), None)
    covariance = variance(step, Estimate(torch.zeros(2, D).double(), residual=None))
    ratio = [1 + (math.exp(12 * 0.15) - 1) * math.exp(-1) / (1 + math.exp(-5)),
             1 + (math.exp(12 * 0.5) - 1) * math.exp(2) / (1 + math.exp(4))]  # fmt: skip
    torch.testing.assert_close(covariance.log_ratio.exp().flatten(), f64(ratio), rtol=1e-10, atol=0)
    with pytest.raises(ValueError, match="at least 2 knots"):
        ndm.LearnedVariance(knots=1)


def test_learned_variance_tends_to_the_posterior_for_small_steps() -> None:
    variance = ndm.LearnedVariance()
    ratios = []
    for steps in (10, 100, 1000):
        step = step_number(steps // 2, steps, 1)
        covariance = variance.double()(step, Estimate(torch.zeros(1, D).double(), residual=None))
        ratios.append(covariance.log_ratio.item())
    assert ratios[0] > 5 * ratios[1] > 25 * ratios[2] > 0


def test_predicted_variance_needs_its_head() -> None:
    step, mean = step_number(1, 5, B), torch.zeros(B, D)
    with pytest.raises(ValueError, match="twice the channels"):
        ndm.PredictedVariance()(step, Estimate(mean, residual=None))
    head = torch.randn(B, D)
    assert torch.equal(ndm.PredictedVariance()(step, Estimate(mean, None, log_ratio=head)).log_ratio, head)
