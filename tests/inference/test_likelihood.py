"""The likelihood under the reverse ODE against closed forms, quadrature, and itself in exact form."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from scipy.optimize import brentq
from scipy.stats import norm
from torch import Tensor, nn

import ndm
from ndm.inference.divergence import integral
from ndm.inference.likelihood import LogLikelihood, _first_steps, log_likelihood
from ndm.method.schedules import NoiseLevel, per_example
from ndm.networks import ResidualMLP, UNet

TIGHT = {"tolerance": 1e-7}
LEVELS = torch.tensor([-2 / 3, 0.0, 2 / 3], dtype=torch.float64)
LOOSE = {"tolerance": 2e-2}  # where the Monte-Carlo error is larger still


class Mixed(nn.Module):
    """E[x | z] for x of a mixture of normal distributions in one dimension."""

    def __init__(self, weights: list[float], means: list[float], variances: list[float]) -> None:
        super().__init__()
        self.weights, self.means, self.variances = (
            torch.tensor(v, dtype=torch.float64) for v in (weights, means, variances)
        )

    def forward(self, z: Tensor, level: NoiseLevel, labels: Tensor | None = None) -> Tensor:
        alpha, sigma = per_example(level.alpha, z), per_example(level.sigma, z)
        variance = alpha**2 * self.variances + sigma**2
        gap = z - alpha * self.means
        share = torch.softmax(self.weights.log() - variance.log() / 2 - gap**2 / (2 * variance), dim=1)
        return (share * (self.means + alpha * self.variances / variance * gap)).sum(1, keepdim=True)


def density_along_the_ode(schedule: ndm.Schedule, mixture: Mixed, x: float) -> float:
    """log p(x): in one dimension the ODE keeps the order of its paths, and so the share of the mass below each."""
    weights, means, variances = (v.numpy() for v in (mixture.weights, mixture.means, mixture.variances))

    def at(gamma: float) -> tuple[float, np.ndarray, np.ndarray]:
        level = schedule.level_at(torch.tensor([gamma], dtype=torch.float64))
        alpha, sigma = level.alpha.item(), level.sigma.item()
        return alpha, alpha * means, np.sqrt(alpha**2 * variances + sigma**2)

    def total(kind: Callable[..., np.ndarray], z: float, m: np.ndarray, s: np.ndarray) -> float:
        return float(np.logaddexp.reduce(np.log(weights) + kind((z - m) / s)))

    low, high = schedule.end_points()
    (alpha, *first), (_, *last) = at(low), at(high)
    below = total(norm.logcdf, alpha * x, *first) < total(norm.logsf, alpha * x, *first)
    kind = norm.logcdf if below else norm.logsf  # the smaller share is the one that is exact
    share = total(kind, alpha * x, *first)
    end = brentq(lambda z: total(kind, z, *last) - share, -1000, 1000, xtol=1e-13)
    p_first, p_last = (
        float(np.logaddexp.reduce(np.log(weights) + norm.logpdf(z, m, s)))
        for z, (m, s) in ((alpha * x, first), (end, last))
    )
    return norm.logpdf(end) + p_first - p_last + math.log(alpha)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def widening(gamma: Tensor) -> Tensor:
    return 1 + 0.8 * torch.sigmoid(gamma)


class Exact(nn.Module):
    """E[x | z] for x ~ N(mean, covariance) under F = a(gamma) x; one vector per example."""

    def __init__(self, mean: Tensor, covariance: Tensor, a=torch.ones_like) -> None:
        super().__init__()
        self.mean, self.a = mean, a
        self.values, self.vectors = torch.linalg.eigh(covariance)

    def forward(self, z: Tensor, level: NoiseLevel, labels: Tensor | None = None) -> Tensor:
        scale, sigma = per_example(level.alpha * self.a(level.gamma), z), per_example(level.sigma, z)
        mean = self.mean if labels is None else self.mean + per_example(labels.to(z), z)
        shrink = scale * self.values / (scale**2 * self.values + sigma**2)
        return mean + (((z - scale * mean) @ self.vectors) * shrink) @ self.vectors.T


def net(features: int, **arguments) -> ResidualMLP:
    return ResidualMLP(features, **{"hidden": 12, "depth": 1, "embedding": 8, "zero_init": False, **arguments})


def small(features: int = 2, transform: str = "identity", **parts) -> ndm.NDM:
    """A model that nobody has trained, float64."""
    transforms = {
        "identity": ndm.Identity,
        "neural": lambda: ndm.Neural(net(features)),
        "separable": lambda: ndm.Separable(net(features, heads=3, level=False), terms=3),
    }
    parts = {"schedule": ndm.LinearSchedule(-4, 10), "denoiser": ndm.Denoiser(net(features)), **parts}
    return ndm.NDM(transform=transforms[transform](), **parts).double()


# ---- closed forms


@pytest.mark.parametrize("a", [torch.ones_like, widening], ids=["identity", "scale"])
@pytest.mark.parametrize("divergence", ["exact", "hutchinson"])
@pytest.mark.parametrize(("dtype", "tolerance", "error"), [(torch.float64, 1e-7, 1e-5), (torch.float32, 1e-5, 1e-3)])
def test_the_density_of_gaussian_data_is_the_closed_form(a, divergence, dtype, tolerance, error):
    """The exact denoiser's flow is linear: z_0 = mu_0 + sqrt(V_0 / V_1) (z_1 - mu_1), and z_1 is standard normal.

    The field's Jacobian is diagonal here, so that a Rademacher probe is exact as well.
    """
    mean, r, low, high = torch.tensor([0.5, -1.0, 0.0], dtype=dtype), 1.7, -8.0, 4.0
    transform = ndm.Identity() if a is torch.ones_like else ndm.Scale(a)
    model = ndm.NDM(ndm.LinearSchedule(low, high), transform, Exact(mean, r * torch.eye(3, dtype=dtype), a))
    alpha, sigma_squared = ([1 / (1 + math.exp(s * g)) for g in (low, high)] for s in (1, -1))
    factor = [a(torch.tensor(g)).item() * math.sqrt(v) for g, v in zip((low, high), alpha, strict=True)]  # alpha a
    variance = [f**2 * r + v for f, v in zip(factor, sigma_squared, strict=True)]
    stretch = math.sqrt(variance[0] / variance[1])
    truth = torch.distributions.Normal(
        (factor[0] - stretch * factor[1]) * mean / math.sqrt(alpha[0]), stretch / math.sqrt(alpha[0])
    )
    x = mean + 2 * torch.randn(20, 3, dtype=dtype)
    result = log_likelihood(model, x, divergence=divergence, tolerance=tolerance)
    assert result.log_prob.dtype == dtype
    torch.testing.assert_close(result.log_prob, truth.log_prob(x).sum(1), rtol=0, atol=error)


def test_the_density_is_in_the_datas_own_units():
    """Correlated data with units: the density of what the user has, Jacobian included."""
    covariance = torch.tensor([[1.0, 0.6, 0.0], [0.6, 1.0, -0.3], [0.0, -0.3, 1.0]], dtype=torch.float64)
    scale, shift = torch.tensor([100.0, 0.01, 3.0]).double(), torch.tensor([-5.0, 2.0, 0.0]).double()
    model = ndm.NDM(
        ndm.LinearSchedule(-9, 12),
        ndm.Identity(),
        Exact(torch.zeros(3).double(), covariance),
        standardize=ndm.Standardize(shift.tolist(), scale.tolist()),
    )
    truth = torch.distributions.MultivariateNormal(
        shift, scale[:, None] * (covariance + math.exp(-9) * torch.eye(3)) * scale
    )
    data = truth.sample((20,))
    result = log_likelihood(model, data, **TIGHT)
    torch.testing.assert_close(result.log_prob, truth.log_prob(data), rtol=0, atol=1e-4)
    torch.testing.assert_close(result.bits_per_dim, -truth.log_prob(data) / (3 * math.log(2)), rtol=0, atol=1e-4)
    assert result.dimensions == 3


def test_labels_reach_the_denoiser():
    """The label shifts the data's mean, and with it the density."""
    model = ndm.NDM(ndm.LinearSchedule(-9, 26), ndm.Identity(), Exact(torch.zeros(1).double(), torch.eye(1).double()))
    x, labels = torch.randn(6, 1, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 4, 5])
    truth = torch.distributions.Normal(labels.double(), math.sqrt(1 + math.exp(-9)))
    log_prob = log_likelihood(model, x, labels=labels, **TIGHT).log_prob
    torch.testing.assert_close(log_prob, truth.log_prob(x[:, 0]), rtol=0, atol=1e-4)


@pytest.mark.parametrize("transform", ["identity", "neural", "separable"])
def test_the_density_integrates_to_one(transform):
    """Whatever the networks are: for this the divergence must be that of the very field that is integrated.

    In the learned transformations it is a derivative of a derivative.
    """
    model = small(transform=transform, schedule=ndm.LinearSchedule(-2, 10))
    side = torch.linspace(-6, 6, 61, dtype=torch.float64)
    grid = torch.cartesian_prod(side, side)
    density = log_likelihood(model, grid, tolerance=1e-2).log_prob.exp()
    edges = density.reshape(61, 61)
    assert max(edges[[0, -1]].max(), edges[:, [0, -1]].max()) < 1e-5  # nothing beyond the grid
    assert density.sum().item() * 0.2**2 == pytest.approx(1, abs=1e-3)
    # And it is no Gaussian, for which a constant divergence would do.
    weights = density / density.sum()
    centred = grid - weights @ grid
    gaussian = torch.distributions.MultivariateNormal(weights @ grid, (weights[:, None] * centred).T @ centred)
    assert (weights * (density.log() - gaussian.log_prob(grid))).sum() > 0.01


# ---- the solver


@pytest.mark.parametrize("degree", range(6))
@pytest.mark.parametrize("n", [12, 24])
def test_the_quadrature_is_exact_for_polynomials_of_fifth_degree(n, degree):
    t = torch.linspace(0, 1, n + 1, dtype=torch.float64)[:, None, None]
    values = torch.cat([t**degree, 3 - 2 * t**degree], dim=2).expand(n + 1, 4, 2)
    truth = torch.tensor([[1 / (degree + 1)], [3 - 2 / (degree + 1)]], dtype=torch.float64).expand(2, 4)
    torch.testing.assert_close(integral(values), truth, rtol=0, atol=1e-12)


def test_the_quadrature_is_of_seventh_order():
    def error(n: int) -> float:
        t = torch.linspace(0, 1, n + 1, dtype=torch.float64)
        return abs(integral(torch.exp(-3 * t)[:, None, None]).item() - (1 - math.exp(-3)) / 3)

    assert error(24) / error(48) == pytest.approx(2**7, rel=0.2)


def whole(model: ndm.NDM, x: Tensor) -> np.ndarray:
    """log p of points (B, d), by scipy's solver on the state and the divergence together, the latter by differences."""

    def drift(z: np.ndarray, t: float) -> np.ndarray:
        with torch.no_grad():
            time = torch.full((len(z),), t, dtype=torch.float64)
            return model.drift(torch.from_numpy(z), time, eta=0.0).numpy()

    def field(t: float, state: np.ndarray) -> np.ndarray:
        z, step = state.reshape(len(x), -1)[:, :-1], 1e-5
        sides = [step * row for row in np.eye(z.shape[1])]
        growth = sum((drift(z + s, t) - drift(z - s, t)) @ s / (2 * step**2) for s in sides)
        return np.concatenate([drift(z, t), growth[:, None]], axis=1).ravel()

    alpha = model.schedule(torch.zeros(1, dtype=torch.float64)).alpha.item()
    start = np.concatenate([alpha * x.numpy(), np.zeros((len(x), 1))], axis=1).ravel()
    end = solve_ivp(field, (0, 1), start, method="DOP853", rtol=1e-7, atol=1e-8).y[:, -1].reshape(len(x), -1)
    normal = -(end[:, :-1] ** 2 + math.log(2 * math.pi)).sum(1) / 2
    return normal + end[:, -1] + x.shape[1] * math.log(alpha)


@pytest.mark.parametrize(
    ("transform", "tolerance"),
    [("identity", 1.0), ("identity", 1e-4), ("neural", 1e-2), ("separable", 1.0), ("separable", 1e-4)],
)
@pytest.mark.slow
def test_the_density_is_what_another_solver_finds(transform, tolerance):
    """Within about what is said of the error, and that within what was asked for."""
    model, x = small(transform=transform), 2 * torch.randn(4, 2, dtype=torch.float64, generator=seeded(2))
    found = log_likelihood(model, x, tolerance=tolerance)
    error = (found.log_prob - torch.from_numpy(whole(model, x))).abs()
    assert (error < 2 * found.solver_error + 1e-6).all()
    assert (found.solver_error <= tolerance).all()


def test_steps_are_spent_on_the_examples_that_need_them(monkeypatch):
    """The others' answers are those of the first attempt."""
    monkeypatch.setattr("ndm.inference.likelihood._first_steps", lambda tolerance: 12)
    model, x = small(transform="separable"), 3 * torch.randn(8, 2, dtype=torch.float64, generator=seeded(0))
    first = log_likelihood(model, x, tolerance=10.0)
    errors = first.solver_error.sort().values
    tolerance = (errors[4] * errors[5]).sqrt().item()
    batches = []
    model.denoiser.net.register_forward_pre_hook(lambda _, inputs: batches.append(len(inputs[0])))
    found = log_likelihood(model, x, tolerance=tolerance)
    assert (batches[0], batches[first.nfe]) == (8, 3)
    assert found.nfe == len(batches)
    assert (found.solver_error <= tolerance).all()
    enough = first.solver_error <= tolerance
    assert torch.equal(found.log_prob[enough], first.log_prob[enough])
    assert (found.log_prob[~enough] != first.log_prob[~enough]).all()


def test_the_first_attempt_suits_the_tolerance():
    model, x = small(), torch.randn(4, 2, dtype=torch.float64, generator=seeded(0))
    spent = [log_likelihood(model, x, tolerance=tolerance).nfe for tolerance in (10.0, 2e-2, 2e-5)]
    assert spent[0] < spent[1] < spent[2]
    assert _first_steps(1e-2) == 16
    assert _first_steps(1e-2 / 2**6) == 32
    assert (_first_steps(1e-300), _first_steps(1e9)) == (96, 6)


def test_single_precision_is_asked_for_no_more_than_it_can_give():
    model, x = small().float(), torch.randn(4, 2)
    found = log_likelihood(model, x, tolerance=1e-12)
    assert found.nfe < 3000  # some thousand steps more would only add rounding errors
    assert (found.solver_error < 1e-4).all()


@pytest.mark.parametrize("tolerance", [0.0, -1.0, math.nan])
def test_a_tolerance_that_is_none_is_refused(tolerance):
    with pytest.raises(ValueError, match="tolerance must be positive"):
        log_likelihood(small(), torch.randn(1, 2).double(), tolerance=tolerance)


# ---- schedules: clipped, learned, not variance preserving

SCHEDULES = {
    "linear": lambda: ndm.LinearSchedule(-13.3, 13.3),
    "cosine": ndm.CosineSchedule,
    "straight path": ndm.OTSchedule,
    "betas": ndm.DDPMSchedule,
    "learned": lambda: bent(-13.3, 5.0),
    "clipped early": lambda: ndm.CosineSchedule(gamma_min=-9.0, gamma_max=2.0),
}


def bent(low: float, high: float) -> ndm.LearnedSchedule:
    schedule = ndm.LearnedSchedule(low, high)
    with torch.no_grad():
        schedule.logits.add_(torch.linspace(-2, 2, 17))
    return schedule


def truth(schedule: ndm.Schedule, variance: Tensor, x: Tensor) -> Tensor:
    """log p of N(0, diag variance) data: the flow stretches each dimension by the ratio of its deviations."""
    ends = schedule(torch.tensor([0.0, 1.0], dtype=torch.float64))
    (alpha, alpha_1), (sigma, sigma_1) = ends.alpha.tolist(), ends.sigma.tolist()
    before, after = alpha**2 * variance + sigma**2, alpha_1**2 * variance + sigma_1**2
    z_1 = alpha * x * (after / before).sqrt()
    return torch.distributions.Normal(0.0, 1.0).log_prob(z_1).sum(1) + (alpha * (after / before).sqrt()).log().sum()


@pytest.mark.parametrize("divergence", ["exact", "hutchinson"])  # the Jacobian is diagonal: a probe is exact as well
@pytest.mark.parametrize("tolerance", [None, 1.0, 1e-4])
@pytest.mark.parametrize("name", SCHEDULES)
def test_the_stated_error_covers_the_true_one_whatever_the_schedule(name, tolerance, divergence):
    """Also where the data have hardly any variance in some directions, and much in others."""
    schedule, variance = SCHEDULES[name](), torch.tensor([1.0, 1e-8, 1e-4, 30.0], dtype=torch.float64)
    model = ndm.NDM(schedule, ndm.Identity(), Exact(torch.zeros(4).double(), variance.diag()))
    gamma_0 = schedule.end_points()[0]
    x = torch.randn(20, 4, dtype=torch.float64, generator=seeded(0)) * (variance + math.exp(gamma_0)).sqrt()
    with torch.no_grad():
        found, expected = (
            log_likelihood(model, x, divergence=divergence, tolerance=tolerance),
            truth(schedule, variance, x),
        )
    error = (found.log_prob - expected).abs()
    assert found.solved.all()
    assert (error <= found.solver_error).all()
    assert (found.solver_error <= (tolerance or 0.04)).all()


def test_schedules_with_the_same_end_points_give_the_same_density():
    """F and the denoiser see gamma alone."""
    x, found = torch.randn(5, 2, dtype=torch.float64, generator=seeded(0)), []
    low, high = -6.0, ndm.DDPMSchedule().end_points()[1]
    for schedule in (
        ndm.LinearSchedule(low, high), ndm.CosineSchedule(0.008, low, high), ndm.DDPMSchedule(gamma_min=low),
        bent(low, high),
    ):  # fmt: skip
        torch.manual_seed(0)
        found.append(log_likelihood(small(transform="separable", schedule=schedule), x, tolerance=1e-3))
        torch.testing.assert_close(found[-1].log_prob, found[0].log_prob, rtol=0, atol=1e-5)
        assert found[-1].nfe == found[0].nfe


@pytest.mark.parametrize("transform", ["identity", "separable"])
def test_the_stated_error_covers_the_true_one_of_networks(transform):
    """Row by row, though errors of either sign may cancel in some of them."""
    model, x = small(3, transform), 2 * torch.randn(200, 3, dtype=torch.float64, generator=seeded(4))
    for p in model.denoiser.parameters():  # rougher than a network is to begin with
        p.data.mul_(1.5)
    exact = log_likelihood(model, x, tolerance=1e-4).log_prob
    for tolerance in (0.3, 0.03):
        found = log_likelihood(model, x, tolerance=tolerance)
        covered = (found.log_prob - exact).abs() <= found.solver_error
        assert covered.double().mean() > 0.99
        assert found.solver_error.mean() < tolerance


MIXTURES = {
    "narrow": ([0.7, 0.3], [0.0, 0.0], [1e-6, 1.0]),
    "two": ([0.5, 0.5], [-1.0, 1.0], [1e-2, 1e-2]),
    "rare": ([0.01, 0.99], [3.0, -0.1], [1e-3, 1.0]),
}


@pytest.mark.parametrize("kind", [ndm.LinearSchedule, ndm.CosineSchedule, ndm.OTSchedule, ndm.DDPMSchedule])
@pytest.mark.parametrize("name", MIXTURES)
def test_the_solvers_error_is_covered_where_paths_turn_sharply(kind: type[ndm.Schedule], name: str) -> None:
    schedule, mixture = kind(), Mixed(*MIXTURES[name])
    model = ndm.NDM(schedule, ndm.Identity(), mixture).double()
    # Not between two narrow modes, where the share of the mass below a point says too little about it.
    places = [-1.5, -1.1, -0.9, 0.8, 1.3] if name == "two" else [-2.5, -0.03, 0.001, 0.004, 0.012, 0.9, 2.9, 3.1]
    x = torch.tensor(places, dtype=torch.float64)
    expected = torch.tensor([density_along_the_ode(schedule, mixture, value) for value in x.tolist()])
    for tolerance in (1e-2, 1e-5):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # of those that are not solved
            found = log_likelihood(model, x[:, None], tolerance=tolerance)
        assert found.solved.sum() >= len(x) - 3
        assert ((found.log_prob - expected).abs() <= found.solver_error + 1e-8).all()


@pytest.mark.slow
def test_the_stated_error_knows_of_rounding():
    model, x = small().float(), torch.randn(100, 2, generator=seeded(0))
    x[:10] *= 1000
    exact = log_likelihood(small_as(model), x.double(), tolerance=1e-8).log_prob
    found = log_likelihood(model, x, tolerance=1e-3)
    assert ((found.log_prob - exact).abs() <= found.solver_error).double().mean() >= 0.99
    assert ((found.log_prob - exact).abs() > 1e-3)[:10].any()  # some cannot be that exact, and


def small_as(model: ndm.NDM) -> ndm.NDM:
    return copy.deepcopy(model).double()


# ---- what cannot be solved


class Breaks(Exact):
    """Not finite for states beyond 100; keeps the sizes of its batches."""

    def __init__(self, mean: Tensor, covariance: Tensor) -> None:
        super().__init__(mean, covariance)
        self.batches: list[int] = []

    def forward(self, z: Tensor, level: NoiseLevel, labels: Tensor | None = None) -> Tensor:
        self.batches.append(len(z))
        return torch.where(z.abs().amax(1, keepdim=True) > 100, math.nan, super().forward(z, level))


def test_a_row_that_cannot_be_solved_is_found_at_once_and_its_neighbours_are_left_alone():
    exact = Breaks(torch.zeros(2).double(), torch.eye(2).double())
    model = ndm.NDM(ndm.LinearSchedule(-4, 10), ndm.Identity(), exact)
    x = torch.randn(6, 2, dtype=torch.float64, generator=seeded(0))
    clean = log_likelihood(model, x)
    x[2] = 1e6
    exact.batches.clear()
    with pytest.warns(RuntimeWarning, match="nan or -inf for 1 of 6 examples") as caught:
        found = log_likelihood(model, x)
    assert len(caught) == 1
    others = torch.arange(6) != 2
    assert torch.equal(found.log_prob[others], clean.log_prob[others])
    assert torch.equal(found.solver_error[others], clean.solver_error[others])
    assert found.solved.tolist() == others.tolist()
    assert found.log_prob[2].isnan()
    assert found.stderr[2].isnan()
    assert found.solver_error[2].isinf()
    again = exact.batches[clean.nfe :]
    assert set(again) == {1}  # the row by itself, and
    assert len(again) <= 8 * (32 + 64) + 2  # not in 512 steps


def test_a_density_that_the_precision_cannot_hold_is_minus_infinity():
    model = ndm.NDM(ndm.LinearSchedule(-4, 10), ndm.Identity(), Exact(torch.zeros(1), torch.eye(1)))
    x = torch.tensor([[0.3], [1e25]])
    with pytest.warns(RuntimeWarning, match="nan or -inf for 1 of 2 examples"):
        found = log_likelihood(model, x)
    assert found.log_prob.isneginf().tolist() == [False, True]
    assert found.solved.tolist() == [True, False]


def test_a_tolerance_that_is_missed_is_said_and_counted(monkeypatch):
    monkeypatch.setattr("ndm.inference.likelihood.MOST_STEPS", 12)
    model, x = small(transform="separable"), torch.randn(8, 2, dtype=torch.float64, generator=seeded(0))
    monkeypatch.setattr("ndm.inference.likelihood._first_steps", lambda tolerance: 12)
    errors = log_likelihood(model, x, tolerance=10.0).solver_error.sort().values
    tolerance = (errors[4] * errors[5]).sqrt().item()
    with pytest.warns(RuntimeWarning, match=f"tolerance of {tolerance:g} nats for 3 of 8 examples") as caught:
        found = log_likelihood(model, x, tolerance=tolerance)
    assert len(caught) == 1
    assert torch.equal(found.solved, found.solver_error <= tolerance)
    assert found.log_prob.isfinite().all()


def test_every_sample_of_a_row_must_be_solved():
    class Fussy(Exact):
        def forward(self, z: Tensor, level: NoiseLevel, labels: Tensor | None = None) -> Tensor:
            return torch.where(z > 2.0, math.nan, super().forward(z, level))

    exact = Fussy(torch.zeros(1).double(), torch.eye(1).double())
    model = ndm.NDM(ndm.LinearSchedule(0, 10), ndm.Identity(), exact, ndm.DiscretizedDecoder(levels=3))
    with pytest.warns(RuntimeWarning, match="of 3 examples"):
        found = log_likelihood(model, LEVELS[:, None], samples=200, generator=seeded(0), **LOOSE)
    assert not found.solved.all()
    assert torch.equal(found.log_prob.isnan(), ~found.solved)


# ---- Hutchinson's probes


def probed(model: ndm.NDM, x: Tensor, probes: int, **arguments) -> LogLikelihood:
    return log_likelihood(model, x, divergence="hutchinson", probes=probes, generator=seeded(0), **arguments)


def test_the_probes_are_unbiased_and_their_standard_error_is_honest():
    """Over many examples the exact value lies within the t interval of the estimate as often as it says, 95%."""
    model, n, probes = small(6), 300, 12
    x = torch.randn(n, 6, dtype=torch.float64)
    exact = log_likelihood(model, x, divergence="exact")
    estimate = probed(model, x, probes)
    error = (estimate.log_prob - exact.log_prob) / estimate.stderr
    inside = (error.abs() < 2.201).double().mean().item()  # the 97.5% quantile of t with 11 degrees of freedom
    assert inside == pytest.approx(0.95, abs=4 * math.sqrt(0.95 * 0.05 / n))
    bias = (estimate.log_prob - exact.log_prob).mean().item()
    assert abs(bias) < 4 * estimate.stderr.square().mean().sqrt().item() / math.sqrt(n)
    assert estimate.stderr.mean() > 1e-3  # there was something to estimate


@pytest.mark.parametrize("transform", ["neural", "separable"])
@pytest.mark.slow
def test_the_probes_see_learned_transformations(transform):
    model = small(4, transform)
    x = torch.randn(64, 4, dtype=torch.float64)
    exact, estimate = log_likelihood(model, x, divergence="exact", **LOOSE), probed(model, x, 8, **LOOSE)
    error = (estimate.log_prob - exact.log_prob).mean().item()
    assert abs(error) < 4 * estimate.stderr.square().mean().sqrt().item() / 8
    assert estimate.stderr.mean() > 1e-3


@pytest.mark.slow
def test_a_unet_with_attention_has_a_likelihood():
    unet = UNet(1, width=8, multipliers=(1,), attention=True, zero_init=False)
    model = ndm.NDM(ndm.LinearSchedule(-4, 4), ndm.Identity(), ndm.Denoiser(unet)).double()
    x = torch.randn(3, 1, 4, 4, dtype=torch.float64)
    exact = log_likelihood(model, x, divergence="exact", tolerance=1e-3)
    estimate = probed(model, x, 48, tolerance=1e-3)
    assert (estimate.stderr > 1e-3).all()
    assert ((estimate.log_prob - exact.log_prob).abs() < 4 * estimate.stderr).all()


def test_auto_is_exact_for_few_dimensions_and_probed_for_many():
    few = log_likelihood(small(3), torch.randn(2, 3, dtype=torch.float64))
    assert few.stderr.tolist() == [0.0, 0.0]
    many = log_likelihood(small(130), torch.randn(2, 130, dtype=torch.float64))
    assert (many.stderr > 0).all()


# ---- a batch is no more than its examples


@pytest.mark.parametrize("transform", ["identity", "neural", "separable"])
@pytest.mark.slow
def test_an_answer_does_not_depend_on_the_rest_of_the_batch(transform):
    """Not even when the rest is far away, where the field is stiff."""
    model = small(transform=transform)
    company = torch.cat([torch.randn(2, 2), torch.full((1, 2), 300.0)]).double()
    together = log_likelihood(model, company, **LOOSE).log_prob
    alone = torch.cat([log_likelihood(model, row[None], **LOOSE).log_prob for row in company])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-9)


# ---- K-level data: one dimension, three levels, where everything can be had by quadrature


class Quadrature:
    """p(z_0) of a one-dimensional model on a grid, by scipy and dz_1/dz_0 as a difference: no divergence is used."""

    def __init__(self, model: ndm.NDM) -> None:
        self.z = np.linspace(-6, 6, 3001)

        def drift(t: float, z: np.ndarray) -> np.ndarray:
            with torch.no_grad():
                state, time = torch.from_numpy(z)[:, None], torch.full((len(z),), t, dtype=torch.float64)
                return model.drift(state, time, eta=0.0)[:, 0].numpy()

        end = solve_ivp(drift, (0, 1), self.z, method="DOP853", rtol=1e-7, atol=1e-7).y[:, -1]
        self.density = np.exp(-(end**2) / 2) / math.sqrt(2 * math.pi) * np.gradient(end, self.z)
        gamma_0 = model.schedule.gamma(torch.zeros(1, dtype=torch.float64))[0].item()
        self.alpha, self.deviation = math.sqrt(1 / (1 + math.exp(gamma_0))), math.exp(gamma_0 / 2)  # of z_0 / alpha_0

    def integral(self, values: np.ndarray) -> float:
        return float(np.trapezoid(values, self.z))

    def log_decoder(self, x: float) -> np.ndarray:
        """log p(x | z_0) on the grid."""
        logits = -((self.z / self.alpha - LEVELS.numpy()[:, None]) ** 2) / (2 * self.deviation**2)
        here = int(np.argmin(np.abs(LEVELS.numpy() - x)))
        return logits[here] - np.logaddexp.reduce(logits, axis=0)

    def log_p(self, x: float) -> float:
        """The exact log P(x) = log of the integral of p(z_0) p(x | z_0)."""
        return math.log(self.integral(self.density * np.exp(self.log_decoder(x))))

    def variational(self, x: float, f: float) -> float:
        """E log p(z_0) p(x | z_0) / q(z_0 | x) with q = N(alpha_0 f, sigma_0^2)."""
        deviation = self.alpha * self.deviation
        log_q = -(((self.z - self.alpha * f) / deviation) ** 2) / 2 - math.log(deviation * math.sqrt(2 * math.pi))
        return self.integral(np.exp(log_q) * (np.log(self.density) + self.log_decoder(x) - log_q))

    def uniform(self, x: float) -> float:
        """The mean over the cell of log p(x + u) + log(cell)."""
        cell = np.linspace(x - 1 / 3, x + 1 / 3, 2001)
        log_density = np.log(np.interp(self.alpha * cell, self.z, self.density) * self.alpha)
        return float(np.trapezoid(log_density, cell)) * 3 / 2 + math.log(2 / 3)


@pytest.fixture(scope="module", params=["identity", "neural"])
def three_levels(request) -> tuple[ndm.NDM, Quadrature]:
    torch.manual_seed(0)
    # So noisy a z_0 that q(z_0 | x) is as wide as p(z_0), and the importance weights vary little.
    schedule = ndm.LinearSchedule(0, 10)
    model = small(1, request.param, schedule=schedule, decoder=ndm.DiscretizedDecoder(levels=3))
    return model, Quadrature(model)


def test_the_quadrature_is_itself_right(three_levels):
    """The three levels exhaust what there is."""
    _, quadrature = three_levels
    assert quadrature.integral(quadrature.density) == pytest.approx(1, abs=1e-5)
    assert sum(math.exp(quadrature.log_p(x)) for x in LEVELS.tolist()) == pytest.approx(1, abs=1e-5)


def estimated(model: ndm.NDM, dequantization: str | None, samples: int, copies: int) -> tuple[list[float], list[float]]:
    """Each level's estimate, averaged over independent copies in one batch, with its standard error."""
    x = LEVELS.repeat_interleave(copies)[:, None]
    result = log_likelihood(
        model, x, dequantization=dequantization, samples=samples, generator=seeded(1), tolerance=1e-3
    )
    log_prob = result.log_prob.reshape(3, copies)
    return log_prob.mean(1).tolist(), (log_prob.std(1) / math.sqrt(copies)).tolist()


def f_0(model: ndm.NDM, x: float) -> float:
    """F(x, gamma_0)."""
    gamma_0 = model.schedule.gamma(torch.zeros(1, dtype=torch.float64))[0]
    return model.transform(torch.tensor([[x]], dtype=torch.float64))(gamma_0).item()


@pytest.mark.parametrize("dequantization", [None, "variational", "uniform"])
@pytest.mark.slow
def test_the_dequantised_bounds_are_what_they_are_by_quadrature(three_levels, dequantization):
    """None is the variational bound for K-level data."""
    model, quadrature = three_levels
    means, errors = estimated(model, dequantization, samples=2, copies=700)
    for x, mean, error in zip(LEVELS.tolist(), means, errors, strict=True):
        expected = quadrature.uniform(x) if dequantization == "uniform" else quadrature.variational(x, f_0(model, x))
        assert mean == pytest.approx(expected, abs=4 * error + 1e-3)
        assert error < 0.02


@pytest.mark.slow
def test_importance_weights_close_the_gap(three_levels):
    """variational < importance with few samples < with many, which is log P(x): for the mean over the levels."""
    model, quadrature = three_levels
    exact = np.mean([quadrature.log_p(x) for x in LEVELS.tolist()])
    gap = exact - np.mean([quadrature.variational(x, f_0(model, x)) for x in LEVELS.tolist()])
    few, error_few = estimated(model, "importance", samples=4, copies=500)
    many, error_many = estimated(model, "importance", samples=32, copies=40)
    error_few, error_many = (math.hypot(*error) / 3 for error in (error_few, error_many))
    assert error_few < gap / 8
    assert 0.1 * gap < exact - np.mean(few) < 0.9 * gap
    assert np.mean(many) == pytest.approx(exact, abs=0.1 * gap + 3 * error_many)
    assert np.mean(many) > np.mean(few)


def test_one_importance_sample_is_the_variational_bound(three_levels):
    model, _ = three_levels
    x = LEVELS[:, None]
    a, b = (
        log_likelihood(model, x, dequantization=name, samples=1, generator=seeded(5), **LOOSE).log_prob
        for name in ("variational", "importance")
    )
    torch.testing.assert_close(a, b)


@pytest.mark.parametrize("dequantization", ["uniform", "variational", "importance"])
@pytest.mark.slow
def test_the_standard_error_of_dequantisation_is_honest(three_levels, dequantization):
    """It is about the spread that independent repetitions show."""
    model, _ = three_levels
    x = LEVELS.repeat_interleave(100)[:, None]
    result = log_likelihood(model, x, dequantization=dequantization, samples=16, generator=seeded(2), **LOOSE)
    seen = result.log_prob.reshape(3, 100).std(1)
    stated = result.stderr.reshape(3, 100).square().mean(1).sqrt()
    torch.testing.assert_close(stated, seen, rtol=0.3, atol=0)


@pytest.mark.parametrize("dequantization", ["uniform", "variational", "importance"])
def test_samples_may_be_taken_in_portions(dequantization, monkeypatch):
    """How many go through the solver together is a matter of memory: the same draws give the same answer."""
    model = small(1, "separable", decoder=ndm.DiscretizedDecoder(levels=3))
    whole, pieces = [], []
    for results, most in [(whole, 65536), (pieces, 7)]:  # 7: two samples of three examples
        monkeypatch.setattr("ndm.inference.likelihood.NUMBERS_AT_ONCE", most)
        x = LEVELS[:, None]
        results.append(log_likelihood(model, x, dequantization=dequantization, samples=5, generator=seeded(3), **LOOSE))
    torch.testing.assert_close(pieces[0].log_prob, whole[0].log_prob)
    torch.testing.assert_close(pieces[0].stderr, whole[0].stderr)


def test_labels_follow_the_samples(monkeypatch):
    """Every copy of an example keeps its label."""
    exact = Exact(torch.zeros(1).double(), torch.eye(1).double())
    model = ndm.NDM(ndm.LinearSchedule(-4, 10), ndm.Identity(), exact, ndm.DiscretizedDecoder(levels=3))
    results = []
    for most in (65536, 1):
        monkeypatch.setattr("ndm.inference.likelihood.NUMBERS_AT_ONCE", most)
        x, labels = LEVELS[:, None], torch.tensor([0, 1, -2])
        results.append(log_likelihood(model, x, labels=labels, samples=3, generator=seeded(0)).log_prob)
    torch.testing.assert_close(results[0], results[1])


def test_integers_are_put_on_the_levels(three_levels):
    model, _ = three_levels
    values = torch.tensor([[0], [1], [2]])
    a, b = (log_likelihood(model, x, generator=seeded(0), **LOOSE).log_prob for x in (values, LEVELS[:, None]))
    torch.testing.assert_close(a, b.to(a), rtol=1e-2, atol=1e-2)


# ---- what is reported


def test_the_standard_error_is_zero_where_nothing_is_random_and_unknown_from_one_sample():
    x = torch.randn(3, 2, dtype=torch.float64)
    discrete = small(2, decoder=ndm.DiscretizedDecoder(levels=2))
    levels = torch.tensor([[-0.5, 0.5], [0.5, 0.5]], dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (log_likelihood(small(), x).stderr == 0).all()
        assert probed(small(), x, probes=1, **LOOSE).stderr.isnan().all()
        for dequantization in ("uniform", "variational", "importance"):
            assert (
                log_likelihood(discrete, levels, dequantization=dequantization, samples=1, **LOOSE).stderr.isnan().all()
            )
            assert (
                log_likelihood(discrete, levels, dequantization=dequantization, samples=2, **LOOSE).stderr > 0
            ).all()


def test_evaluations_are_counted_over_all_solves(monkeypatch):
    model = small(2, decoder=ndm.DiscretizedDecoder(levels=2))
    levels = torch.tensor([[-0.5, 0.5]], dtype=torch.float64)
    calls = []
    model.denoiser.register_forward_pre_hook(lambda *_: calls.append(1))
    model.denoiser.net.register_forward_pre_hook(lambda *_: calls.append(1))
    monkeypatch.setattr("ndm.inference.likelihood.NUMBERS_AT_ONCE", 4)  # two of five samples at a time: three solves
    result = log_likelihood(model, levels, samples=5, **LOOSE)
    assert isinstance(result.nfe, int)
    assert result.nfe == len(calls)
    assert result.nfe > 2 * log_likelihood(model, levels, samples=1, **LOOSE).nfe


def test_what_the_number_is_is_said_in_words():
    levels = torch.tensor([[-0.5, 0.5]], dtype=torch.float64)
    discrete = small(2, decoder=ndm.DiscretizedDecoder(levels=2))
    assert log_likelihood(small(), levels).kind == "density of the reverse ODE"
    kinds = [
        log_likelihood(discrete, levels, dequantization=name, tolerance=1.0).kind
        for name in (None, "uniform", "variational", "importance")
    ]
    assert kinds[0] == kinds[2]
    assert len(set(kinds)) == 3
    assert all("lower bound on log p(x)" in kind for kind in kinds)
    probed = log_likelihood(discrete, levels, divergence="hutchinson", dequantization="importance", tolerance=1.0)
    assert "not a bound" in probed.kind


def test_the_generator_gives_every_random_number():
    model = small(2, decoder=ndm.DiscretizedDecoder(levels=2))
    levels = torch.tensor([[-0.5, 0.5]], dtype=torch.float64)
    state = torch.get_rng_state()

    def draw(seed: int, dequantization: str) -> Tensor:
        return log_likelihood(
            model, levels, divergence="hutchinson", dequantization=dequantization, generator=seeded(seed), **LOOSE
        ).log_prob

    for dequantization in ("uniform", "variational", "importance"):
        assert torch.equal(draw(0, dequantization), draw(0, dequantization))
        assert not torch.equal(draw(0, dequantization), draw(1, dequantization))
    assert torch.equal(torch.get_rng_state(), state)


def test_the_model_is_in_eval_mode_and_its_mode_is_restored():
    model = small(2, denoiser=ndm.Denoiser(net(2, dropout=0.9))).train()
    x = torch.randn(2, 2, dtype=torch.float64)
    first = log_likelihood(model, x).log_prob
    assert model.training
    assert torch.equal(first, log_likelihood(model, x).log_prob)  # no dropout
    model.denoiser.net.input.requires_grad_(False)
    model.denoiser.net.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        log_likelihood(model, x)
    assert model.training
    assert {name for name, p in model.named_parameters() if not p.requires_grad} == {
        "denoiser.net.input.weight",
        "denoiser.net.input.bias",
    }


def test_a_direct_process_needs_its_head_for_f():
    x = torch.randn(2, 2, dtype=torch.float64)
    without = small(2, "neural", denoiser=ndm.DirectDenoiser(net(2)))
    with pytest.raises(ValueError, match=r"DirectDenoiser\(net, ode=True\)"):
        log_likelihood(without, x)
    with_it = small(2, "neural", denoiser=ndm.DirectDenoiser(net(2, heads=2), ode=True))
    assert log_likelihood(with_it, x).log_prob.isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"divergence": "hutchison"}, "no divergence 'hutchison'; choose one of 'auto', 'exact', 'hutchinson'"),
        ({"dequantization": "flow"}, "no dequantization 'flow'; choose one of 'uniform', 'variational', 'importance'"),
        ({"dequantization": "uniform"}, "for K-level data, and this model's decoder is for continuous data"),
        ({"probes": 0}, "must be at least 1, got probes=0"),
        ({"samples": 0}, "must be at least 1, got probes=4, samples=0"),
        ({"x": torch.tensor([[math.nan, 0.0]])}, "NaN or infinite"),
        ({"x": torch.tensor([[0, 1]])}, "continuous data and got integers"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        log_likelihood(**{"model": small(), "x": torch.zeros(1, 2).double(), **arguments})


def test_data_off_the_levels_are_refused():
    with pytest.raises(ValueError, match="do not lie on the decoder's K = 3 levels"):
        log_likelihood(small(1, decoder=ndm.DiscretizedDecoder(levels=3)), torch.full((1, 1), 0.1).double())


def test_a_transformation_that_moves_the_data_is_scored_through_the_decoder() -> None:
    # x ~ N(0, r), F = a x, exact denoiser: z_0 = alpha_0 a x + sigma_0 noise has variance alpha_0^2 a^2 r + sigma_0^2.
    # The decoder's x given z_0 is N(z_0 / alpha_0, e^gamma_0), so its density is a normal of known variance.
    r, a = 1.7, 1.2

    class Exact(torch.nn.Module):
        def forward(self, z: Tensor, level: ndm.NoiseLevel) -> Tensor:
            alpha, sigma = level.alpha[:, None], level.sigma[:, None]
            return alpha * a * r * z / (alpha**2 * a**2 * r + sigma**2)

    model = ndm.NDM(ndm.LinearSchedule(-1.0, 12.0), ndm.Scale(lambda gamma: torch.full_like(gamma, a)), Exact())
    x = torch.linspace(-2, 2, 5, dtype=torch.float64)[:, None]
    generator = torch.Generator().manual_seed(0)
    result = ndm.log_likelihood(
        model, x, dequantization="importance", samples=4000, tolerance=1e-4, generator=generator
    )
    level = model.schedule(torch.zeros(1, dtype=torch.float64))
    variance = a**2 * r + 2 * torch.exp(level.gamma)
    truth = torch.distributions.Normal(0.0, variance.sqrt()).log_prob(x[:, 0])
    assert ((result.log_prob - truth).abs() < 4 * result.stderr + 1e-3).all()
    assert result.stderr.max() < 0.05
