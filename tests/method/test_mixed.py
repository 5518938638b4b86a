"""The bound of mixed tables against closed forms: entropies, quadrature, and sums over all cells."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import ndm
from ndm.method.columns import Column, ColumnMap, codes_of
from ndm.method.schedules import per_example

SIMPLEX = [[1.0, 0.0], [-0.5, math.sqrt(3) / 2], [-0.5, -math.sqrt(3) / 2]]


class Posterior(nn.Module):
    """E[x | z] for codes with weights, the last of which may come with a standard normal value (``rest``)."""

    def __init__(self, codes: list, weights: list, rest: bool = False) -> None:
        super().__init__()
        self.codes, self.weights, self.rest = torch.tensor(codes), torch.tensor(weights), rest

    def forward(self, z: Tensor, level: ndm.NoiseLevel) -> Tensor:
        alpha, sigma = (per_example(a, z) for a in (level.alpha, level.sigma))
        codes = self.codes.to(z)
        m = codes.shape[1]
        logits = self.weights.to(z).log() - ((z[:, None, :m] - alpha[..., None] * codes) ** 2).sum(-1) / (2 * sigma**2)
        if not self.rest:
            return logits.softmax(1) @ codes
        # Without the value the coordinate is noise; with it, it has variance 1.
        noise, value = sigma**2, alpha**2 + sigma**2
        of_atom = -(z[:, m:] ** 2) / (2 * noise) - noise.log() / 2
        of_value = -(z[:, m:] ** 2) / (2 * value) - value.log() / 2
        logits = torch.cat([logits[:, :-1] + of_atom, logits[:, -1:] + of_value], 1)
        p = logits.softmax(1)
        return torch.cat([p @ codes, p[:, -1:] * alpha * z[:, m:]], 1)


def model_of(columns: list, denoiser: nn.Module, gamma_0: float, codes: list | None = None) -> ndm.NDM:
    encoding = ndm.TableEncoding.of(columns)
    layouts = encoding.layouts()
    if codes is not None:
        layouts[0]["codes"] = codes
        encoding._codes = [torch.tensor(codes, dtype=torch.float64)]
    return ndm.NDM(
        ndm.LinearSchedule(gamma_0, 14.0), ndm.Identity(), denoiser, ndm.MixedDecoder(layouts), standardize=encoding
    ).double()


def mean_bound(model: ndm.NDM, rows: Tensor, seed: int = 0) -> ndm.BoundTerms:
    times = (torch.arange(len(rows), dtype=torch.float64) + 0.5) / len(rows)
    times = times[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))]
    return model.bound(rows, times=times, generator=torch.Generator().manual_seed(seed))


N = 2**17


@pytest.mark.parametrize(
    ("gamma_0", "diffusion", "reconstruction"),
    [(-4.0, 1.029652661, 0.0), (-1.0, 0.713444547, 0.316208081), (1.0, 0.156527499, 0.873125129)],
)
def test_the_bound_of_a_categorical_column_is_its_entropy(gamma_0, diffusion, reconstruction):
    pi = [0.5, 0.3, 0.2]
    counts = tuple(p * 1e9 for p in pi)
    column = Column("a", "categorical", ("x", "y", "z"), counts, rest=None, storage="text")
    model = model_of([column], Posterior(SIMPLEX, pi), gamma_0, SIMPLEX)
    rows = torch.tensor([0.0] * 5 + [1.0] * 3 + [2.0] * 2).repeat(N // 10)[:, None]
    terms = mean_bound(model, rows)
    assert terms.diffusion.mean().item() == pytest.approx(diffusion, abs=0.02)
    assert terms.reconstruction.mean().item() == pytest.approx(reconstruction, abs=0.006)
    assert terms.total.mean().item() == pytest.approx(1.029653, abs=0.02)


@pytest.mark.parametrize(
    ("gamma_0", "diffusion", "reconstruction"),
    [(-4.0, 2.0172161, -0.406743), (-8.0, 3.4109811, -1.806743), (-12.0, 4.8108658, -3.206743)],
)
def test_the_bound_of_a_zero_inflated_column_is_near_its_entropy(gamma_0, diffusion, reconstruction):
    column = Column("a", "real", (0.0,), (0.3e9, 0.7e9))
    model = model_of([column], Posterior([[-1.0], [1.0]], [0.3, 0.7], rest=True), gamma_0)
    values = torch.special.ndtri((torch.arange(7 * (N // 10), dtype=torch.float64) + 0.5) / (7 * (N // 10)))
    rows = torch.cat([torch.zeros(3 * (N // 10), dtype=torch.float64), values])[:, None]
    terms = mean_bound(model, rows)
    assert terms.diffusion.mean().item() == pytest.approx(diffusion, abs=0.03)
    assert terms.reconstruction.mean().item() == pytest.approx(reconstruction, abs=0.006)


@pytest.mark.parametrize("power", [0.0, 0.4, 1.0, 1.7, 2.0])
def test_a_map_is_inverted_and_its_slope_is_that_of_a_finite_difference(power):
    column = ColumnMap(3.0, 2.0, power, 0.3, 1.4)
    r = torch.linspace(-40, 40, 81, dtype=torch.float64)
    v = column.forward(r)
    assert torch.allclose(column.inverse(v), r, atol=1e-9)
    slope = (column.forward(r + 1e-5) - column.forward(r - 1e-5)) / 2e-5
    assert torch.allclose(column.log_slope(v), slope.log(), atol=1e-6)


@pytest.mark.parametrize("spec", [{"simplex": 5}, {"compact": 700}, {"line": [-1.0, 0.5, 2.0], "beside": 1}])
def test_codes_are_distinct(spec):
    codes = codes_of(spec)
    assert torch.pdist(codes).min() > 0.1


def test_a_simplex_is_regular_and_of_unit_variance():
    codes = codes_of({"simplex": 6})
    assert codes.shape == (6, 5)
    assert torch.pdist(codes).std() < 1e-12
    assert torch.allclose(codes.mean(0), torch.zeros(5, dtype=torch.float64), atol=1e-12)
    assert torch.allclose(codes.square().mean(0), torch.ones(5, dtype=torch.float64))


GRID = Column("w", "whole", (), (10,), rest="grid", map=ColumnMap(4.0, 3.0, 0.5, 0.1, 0.9), step=0.5, low=0.0, high=9.0)
ATOMS = Column("c", "categorical", ("x", "y", "z"), (5, 3, 2, 1, 1), other=True, missing=True, rest=None)
ZERO = Column("z", "real", (0.0, 7.0), (4, 2, 3, 9), missing=True, map=ColumnMap(2.0, 3.0, 0.3))
LINE = Column("l", "whole", (0.0, 1.0, 2.0, 5.0), (3, 3, 3, 3, 1), missing=True, rest=None)


@pytest.mark.parametrize("gamma_0", [-9.0, -3.0, 0.5])
def test_the_probabilities_of_a_discrete_column_sum_to_one(gamma_0):
    nan = math.nan
    for column, every in ((GRID, torch.arange(0, 9.1, 0.5)), (ATOMS, [0, 1, 2, 3, nan]), (LINE, [0, 1, 2, 5, nan])):
        encoding = ndm.TableEncoding.of([column])
        decoder = ndm.MixedDecoder(encoding.layouts())
        x = encoding(torch.as_tensor(every)[:, None]).double()
        z = torch.full_like(x, 0.7)
        nll = decoder.nll(x, z - x, torch.full((len(x),), gamma_0, dtype=torch.float64))
        assert torch.exp(-nll).sum().item() == pytest.approx(1.0, abs=1e-6)


def test_a_real_column_with_atoms_integrates_to_one():
    encoding = ndm.TableEncoding.of([ZERO])
    decoder = ndm.MixedDecoder(encoding.layouts())
    grid = torch.linspace(-400, 900, 200_001, dtype=torch.float64) + 1e-4
    rows = torch.cat([torch.tensor([0.0, 7.0, math.nan], dtype=torch.float64), grid])[:, None]
    x = encoding(rows)
    z = torch.tensor([0.2, -0.3, 0.4, 0.8], dtype=torch.float64)[: x.shape[1]].expand_as(x)
    log_p = -decoder.nll(x, z - x, torch.full((len(x),), -1.0, dtype=torch.float64)) + encoding.log_det(x)
    p = log_p.exp()
    assert (p[:3].sum() + torch.trapezoid(p[3:], grid)).item() == pytest.approx(1.0, abs=1e-5)


def test_rows_come_back_from_the_codes():
    encoding = ndm.TableEncoding.of([GRID, ATOMS, ZERO, LINE])
    rows = torch.tensor(
        [[0.0, 0, 0.0, 0], [4.5, 3, 7.0, 5], [9.0, math.nan, math.nan, math.nan], [2.0, 2, -3.25, 2]],
        dtype=torch.float64,
    )
    x = encoding(rows)
    assert x.shape == (4, encoding.latent_shape[0])
    assert torch.allclose(encoding.inverse(x.float()), rows, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("seed", range(3))
def test_the_gradient_of_a_cell_is_that_of_a_finite_difference(seed):
    encoding = ndm.TableEncoding.of([GRID])
    decoder = ndm.MixedDecoder(encoding.layouts()).double()
    generator = torch.Generator().manual_seed(seed)
    x = encoding(torch.randint(0, 19, (20, 1), generator=generator) / 2)
    gap = torch.randn(x.shape, generator=generator, dtype=torch.float64).requires_grad_()
    gamma = torch.empty(20, dtype=torch.float64).uniform_(-6, 0, generator=generator).requires_grad_()
    assert torch.autograd.gradcheck(lambda g, c: decoder.nll(x, g, c), (gap, gamma))


def test_a_decoder_of_another_kind_is_refused():
    with pytest.raises(ValueError, match="needs a MixedDecoder"):
        ndm.NDM(
            ndm.LinearSchedule(),
            ndm.Identity(),
            ndm.Denoiser(ndm.networks.ResidualMLP(1)),
            standardize=ndm.TableEncoding.of([ZERO]),
        )


@pytest.mark.parametrize("cells", [[math.nan], [math.inf], [3.0]])
def test_an_impossible_cell_is_refused(cells):
    column = Column("a", "categorical", ("x", "y", "z"), (1, 1, 1), rest=None)
    with pytest.raises(ValueError, match=r"missing cells|infinite|none of its categories"):
        ndm.TableEncoding.of([column])(torch.tensor([cells]))
