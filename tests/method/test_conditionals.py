"""Conditionals against closed forms: a normal pair, and sums over the cells of a contingency table."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import ndm
from ndm.inference.likelihood import log_likelihood
from ndm.method.columns import Column, codes_of
from ndm.method.conditionals import GIVEN, LEFT_OUT, WANTED, conditional, random_states
from ndm.method.schedules import per_example

N = 2**15
RHO = 0.8


class Pair(nn.Module):
    """v of x_2 given x_1, or of both, for a normal pair of correlation RHO: the exact denoiser of each state."""

    def __init__(self, schedule: ndm.Schedule) -> None:
        super().__init__()
        self.schedule = schedule
        self.none = nn.Parameter(torch.zeros(()))

    def forward(self, z: Tensor, u: Tensor, context: Tensor) -> Tensor:
        low, high = self.schedule.end_points()
        level = self.schedule.level_at((low + u.double() * (high - low)).to(z))
        alpha, sigma = (per_example(a, z) for a in (level.alpha, level.sigma))
        wanted, given = context.bool().chunk(2, 1)
        covariance = torch.tensor([[1.0, RHO], [RHO, 1.0]], dtype=z.dtype).expand(len(z), 2, 2)
        # An observation of x_j: z_j / alpha with variance sigma^2 / alpha^2, exact if given, none if left out.
        noise = torch.where(wanted, (sigma / alpha) ** 2, torch.where(given, 1e-12, 1e12))
        seen = torch.where(wanted, z / alpha, z)
        gain = covariance @ torch.linalg.inv(covariance + torch.diag_embed(noise))
        x_hat = (gain @ seen[..., None])[..., 0]
        return (alpha * z - x_hat) / sigma  # v for alpha^2 + sigma^2 = 1


def pair_model() -> ndm.NDM:
    columns = [Column("a", counts=(1,)), Column("b", counts=(1,))]
    encoding = ndm.TableEncoding.of(columns)
    schedule = ndm.LinearSchedule(-12.0, 12.0)
    denoiser = ndm.MixedDenoiser(Pair(schedule), encoding.layouts(), conditionals="any")
    decoder = ndm.MixedDecoder(encoding.layouts())
    return ndm.NDM(schedule, ndm.Identity(), denoiser, decoder, standardize=encoding).double().eval()


def pairs(n: int) -> Tensor:
    noise = torch.randn(n, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return torch.stack([noise[:, 0], RHO * noise[:, 0] + math.sqrt(1 - RHO**2) * noise[:, 1]], 1)


def exact(rows: Tensor, which: str) -> Tensor:
    """-log p of the pair, of b, or of b given a, (B,)."""
    normal = torch.distributions.Normal
    a, b = rows.T
    given = normal(RHO * a, math.sqrt(1 - RHO**2)).log_prob(b)
    return -{"joint": normal(0.0, 1.0).log_prob(a) + given, "b": normal(0.0, 1.0).log_prob(b), "b|a": given}[which]


STATES = {"joint": [WANTED, WANTED], "b": [LEFT_OUT, WANTED], "b|a": [GIVEN, WANTED]}


@pytest.mark.parametrize("which", STATES)
def test_the_bound_with_states_is_that_of_the_conditional(which):
    model, rows = pair_model(), pairs(N)
    states = torch.tensor(STATES[which]).expand(N, 2)
    times = (torch.randperm(N, generator=torch.Generator().manual_seed(1)) + 0.5) / N
    terms = model.bound(rows, times=times, generator=torch.Generator().manual_seed(2), states=states)
    gap = terms.total - exact(rows, which)
    assert gap.mean().item() == pytest.approx(0.0, abs=4 * gap.std().item() / math.sqrt(N) + 1e-4)


@pytest.mark.parametrize("which", ["b", "b|a"])
def test_the_conditional_is_a_process_of_its_own(which):
    model, rows = pair_model(), pairs(12)
    given = ["a"] if which == "b|a" else []
    own = conditional(model, ["b"], given)
    labels = rows[:, :1] if given else None
    found = log_likelihood(own, rows[:, 1:], labels=labels)
    assert torch.allclose(found.log_prob, -exact(rows, which), atol=6e-3)


def test_samples_of_a_conditional_have_its_mean_and_spread():
    own = pair_model().conditional(["b"], ["a"])
    a = torch.tensor([-1.5, 2.0], dtype=torch.float64).repeat_interleave(2000)[:, None]
    found = ndm.sample(own, 4000, (1,), steps=300, labels=a, generator=torch.Generator().manual_seed(0))
    for part, value in zip(found[:, 0].chunk(2), (-1.5, 2.0), strict=True):
        assert part.mean().item() == pytest.approx(RHO * value, abs=0.06)
        assert part.std().item() == pytest.approx(math.sqrt(1 - RHO**2), abs=0.04)


# ---- a contingency table of 2 x 3 cells, with missing cells in the second column

JOINT = torch.tensor([[0.10, 0.25, 0.05, 0.08], [0.22, 0.04, 0.16, 0.10]], dtype=torch.float64)


class Cells(nn.Module):
    """What the other column says of each atom, from the exact posterior of the table JOINT."""

    def __init__(self, schedule: ndm.Schedule) -> None:
        super().__init__()
        self.schedule = schedule
        self.codes = codes_of({"simplex": 2}), codes_of({"simplex": 4})

    def forward(self, z: Tensor, u: Tensor, context: Tensor) -> Tensor:
        low, high = self.schedule.end_points()
        level = self.schedule.level_at((low + u.double() * (high - low)).to(z))
        wanted, given = context.bool().chunk(2, 1)
        evidence = []
        for j, (codes, part) in enumerate(zip(self.codes, (z[:, :1], z[:, 1:]), strict=True)):
            noisy = -((part[:, None] - level.alpha[:, None, None] * codes) ** 2).sum(-1) / (
                2 * level.sigma[:, None] ** 2
            )
            clean = -1e6 * ((part[:, None] - codes) ** 2).sum(-1)
            none = torch.zeros_like(noisy)
            evidence.append(torch.where(wanted[:, j : j + 1], noisy, torch.where(given[:, j : j + 1], clean, none)))
        out = []
        for j, other in ((0, evidence[1][:, None, :]), (1, evidence[0][:, :, None])):
            logits = torch.logsumexp(JOINT.log() + other, 2 - j)
            own = torch.log(JOINT.sum(1 - j))
            features = self.codes[j]
            out.append((logits - own) @ torch.linalg.pinv(features).T)
        return torch.cat(out, 1)


def table_model(gamma_0: float = -3.0) -> ndm.NDM:
    counts = JOINT * 1e9
    columns = [
        Column("a", "categorical", ("x", "y"), tuple(counts.sum(1).tolist()), rest=None, storage="text"),
        Column("b", "categorical", ("p", "q", "r"), tuple(counts.sum(0).tolist()), missing=True, rest=None),
    ]
    encoding = ndm.TableEncoding.of(columns)
    schedule = ndm.LinearSchedule(gamma_0, 12.0)
    denoiser = ndm.MixedDenoiser(Cells(schedule), encoding.layouts(), conditionals="any")
    model = ndm.NDM(schedule, ndm.Identity(), denoiser, ndm.MixedDecoder(encoding.layouts()), standardize=encoding)
    return model.double().eval()


ROWS = torch.tensor([[float(a), b] for a in range(2) for b in (0.0, 1.0, 2.0, math.nan)], dtype=torch.float64)


@pytest.mark.parametrize(
    ("state", "log_p"),
    [
        ([WANTED, WANTED], JOINT.log().flatten()),
        ([LEFT_OUT, WANTED], JOINT.sum(0).log().repeat(2)),
        ([GIVEN, WANTED], (JOINT / JOINT.sum(1, keepdim=True)).log().flatten()),
        ([WANTED, GIVEN], (JOINT / JOINT.sum(0)).log().flatten()),
    ],
    ids=["joint", "marginal", "b given a", "a given b"],
)
def test_the_bound_of_a_contingency_table_is_above_its_cells(state, log_p):
    model, n = table_model(), 4096
    rows, states = ROWS.repeat_interleave(n, 0), torch.tensor(state).expand(8 * n, 2)
    times = ((torch.arange(n) + 0.5) / n).repeat(8)
    terms = model.bound(rows, times=times, generator=torch.Generator().manual_seed(0), states=states)
    total = terms.total.unflatten(0, (8, n))
    error = total.std(1) / math.sqrt(n)
    assert (total.mean(1) > -log_p - 3 * error).all()
    weights = JOINT.flatten()
    gap = (weights * (total.mean(1) + log_p)).sum().item()
    assert gap == pytest.approx(0.0, abs=0.04)  # the denoiser is exact, so the mean bound is the entropy


@pytest.mark.slow
def test_the_importance_weighted_likelihood_is_that_of_the_cells():
    model = table_model()
    found = log_likelihood(
        model, ROWS, dequantization="importance", samples=100, divergence="exact",
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    gap = found.log_prob - JOINT.log().flatten()
    assert (gap.abs() < 4 * found.stderr + 0.03).all()


# ---- states


def test_random_states_have_a_wanted_column_and_every_kind():
    states = random_states(4000, 5, torch.Generator().manual_seed(0))
    assert (states == WANTED).any(1).all()
    assert 0.38 < (states == WANTED).all(1).double().mean() < 0.46
    assert 0.27 < (((states == GIVEN).sum(1) == 4) & ((states == WANTED).sum(1) == 1)).double().mean() < 0.36
    assert (states == LEFT_OUT).any()


@pytest.mark.parametrize(
    ("wanted", "given", "words"),
    [
        (["c"], [], "no column 'c'"),
        ([], ["a"], "at least one"),
        (["a"], ["a"], "none of them"),
        (["a", "a"], [], "twice"),
    ],
)
def test_a_conditional_of_wrong_columns_is_refused(wanted, given, words):
    with pytest.raises(ValueError, match=words):
        pair_model().conditional(wanted, given)


def test_a_model_without_conditionals_says_so():
    encoding = pair_model().standardize
    net = ndm.networks.ResidualMLP(2, outputs=2)
    model = ndm.NDM(
        ndm.LinearSchedule(), ndm.Identity(), ndm.MixedDenoiser(net, encoding.layouts()),
        ndm.MixedDecoder(encoding.layouts()), standardize=encoding,
    )  # fmt: skip
    with pytest.raises(ValueError, match="was not trained for that conditional"):
        model.conditional(["a"], ["b"])
    assert model.conditional(["a", "b"]) is model
