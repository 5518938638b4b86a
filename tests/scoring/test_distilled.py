"""The distilled score: a network fitted to the density of a model, and its measured errors."""

from __future__ import annotations

import math

import pytest
import torch

import ndm
from ndm.data import Data, Table
from ndm.networks import ResidualMLP
from ndm.scoring.distilled import LEVELS, DistilledScore
from ndm.scoring.distilling import check_distillable, distill
from ndm.storage.checkpoints import load_part
from tests.inference.densities import Exact

MEAN, COVARIANCE = torch.tensor([1.0, -2.0]), torch.tensor([[2.0, 0.6], [0.6, 0.5]])


def gaussian(samples: int = 3000) -> tuple[ndm.NDM, torch.Tensor]:
    """A model whose density is a normal distribution, and rows of it."""
    generator = torch.Generator().manual_seed(0)
    rows = MEAN + torch.randn(samples, 2, generator=generator) @ torch.linalg.cholesky(COVARIANCE).T
    model = ndm.NDM(ndm.LinearSchedule(-10.0, 10.0), ndm.Identity(), Exact(MEAN, COVARIANCE), ndm.GaussianDecoder())
    return model.eval(), rows


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    path = tmp_path_factory.mktemp("distilled") / "rows.csv"
    lines = ["a,b", *(f"{a},{b}" for a, b in gaussian()[1].tolist())]
    path.write_text("\n".join(lines) + "\n")
    return Table(str(path), kinds="numeric")


@pytest.fixture(scope="module")
def distilled(data: Data) -> DistilledScore:
    return distill(gaussian()[0], data, rows=4000, steps=300)


@pytest.mark.slow
def test_the_network_finds_the_density_with_the_stated_errors(distilled: DistilledScore) -> None:
    rows = gaussian()[1] + 0.01
    truth = torch.distributions.MultivariateNormal(MEAN, COVARIANCE).log_prob(rows)
    found = distilled(rows)
    error = (found.log_prob - truth).abs()
    assert error.median() < 0.3 < truth.std()
    assert found.errors.isfinite().all()
    assert (error <= found.errors[:, 1]).double().mean() > 0.9
    assert 0.3 < (error <= found.errors[:, 0]).double().mean() < 0.8


@pytest.mark.slow
def test_a_row_far_from_all_others_has_no_known_error(distilled: DistilledScore) -> None:
    found = distilled(torch.tensor([[1.0, -2.0], [1000.0, -2.0]]))
    assert found.errors[0].isfinite().all()
    assert found.errors[1].isinf().all()
    assert found.distance[1] == pytest.approx(999 / math.sqrt(2.0), rel=0.1)


@pytest.mark.slow
def test_errors_do_not_fall_with_the_distance(distilled: DistilledScore) -> None:
    assert (distilled.edges.diff() > 0).all()
    assert (distilled.quantiles.diff(dim=0) >= 0).all()
    assert (distilled.quantiles[:, 0] <= distilled.quantiles[:, 1]).all()


@pytest.mark.slow
def test_the_level_is_a_quantile_of_the_validation_rows(distilled: DistilledScore, data: Data) -> None:
    scores = distilled(data.examples("validation")[torch.arange(len(data.examples("validation")))]).log_prob
    for part in (0.0, 0.013, 0.5, 1.0):
        assert distilled.level(part) == pytest.approx(scores.quantile(part).item(), abs=0.05)
    assert len(distilled.levels) == LEVELS


@pytest.mark.slow
def test_it_is_saved_and_loaded(distilled: DistilledScore, tmp_path) -> None:
    distilled.save_to(tmp_path / "fast")
    again, x = load_part(tmp_path / "fast", DistilledScore), gaussian()[1][:5]
    assert again.model == distilled.model
    assert torch.equal(again(x).log_prob, distilled(x).log_prob)
    assert torch.equal(again(x).errors, distilled(x).errors)


def test_the_errors_are_quantiles_of_the_measured_ones() -> None:
    part = DistilledScore(ResidualMLP(1, hidden=8, depth=1, level=False, outputs=1), "", references=1, bins=2)
    x = torch.linspace(0, 10, 101)[:, None]  # the network's output is zero, and the reference is at zero
    part.set_errors(x, torch.where(x[:, 0] <= 5, 1.0, 3.0))
    torch.testing.assert_close(part.edges, torch.tensor([5.0, 10.0]))
    torch.testing.assert_close(part.quantiles, torch.tensor([[1.0, 1.0], [3.0, 3.0]]))


def test_what_has_no_exact_density_is_refused(data: Data) -> None:
    model = ndm.NDM(
        ndm.LinearSchedule(-10.0, 10.0), ndm.Identity(), ndm.Denoiser(ResidualMLP(2)), ndm.DiscretizedDecoder(4)
    )
    with pytest.raises(ValueError, match="Only a model of a table of real numbers"):
        check_distillable(model)
    with pytest.raises(ValueError, match="Only a model of a table of real numbers"):
        check_distillable(gaussian()[0], given=True)
    with pytest.raises(ValueError, match="Only a model of a table of real numbers"):
        distill(model, data)
