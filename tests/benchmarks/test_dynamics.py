"""The measures of benchmarks/dynamics.py on what is known, and that models side by side are apart."""

from __future__ import annotations

import math
from pathlib import Path
from types import ModuleType

import pytest
import torch
from scipy.stats import norm

import ndm

pytestmark = pytest.mark.slow

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def dynamics(_path: None) -> ModuleType:
    """The script as a module."""
    import dynamics as module

    return module


def test_a_mixture_against_scipy(dynamics: ModuleType) -> None:
    mixture = dynamics.LINE["uneven"]
    u = torch.linspace(0.001, 0.999, 200, dtype=torch.float64)
    x = mixture.quantile(u)
    cdf = 0.3 * norm.cdf(x.numpy(), -2.0, 0.5) + 0.7 * norm.cdf(x.numpy(), 1.0, 0.25)
    assert abs(cdf - u.numpy()).max() < 1e-9
    sample = mixture.sample(200_000, torch.Generator().manual_seed(0))[:, 0].double()
    assert (mixture.cdf(sample).sort().values - torch.linspace(0, 1, 200_000)).abs().max() < 0.005
    density = 0.3 * norm.pdf(sample.numpy(), -2.0, 0.5) + 0.7 * norm.pdf(sample.numpy(), 1.0, 0.25)
    surprise = -torch.from_numpy(density).log()
    assert mixture.entropy == pytest.approx(surprise.mean().item(), abs=4 * surprise.std().item() / math.sqrt(200_000))


def test_models_side_by_side_see_nothing_of_each_other(dynamics: ModuleType) -> None:
    torch.manual_seed(0)
    model = dynamics.build(dynamics.RECIPES[0], 3, 2)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    x = torch.randn(30, 2)
    loss = model.bound(x, generator=torch.Generator().manual_seed(1)).total
    loss = loss + ndm.curvature(model, x, generator=torch.Generator().manual_seed(2))
    loss[1::3].sum().backward()
    for p in model.parameters():
        assert p.grad is not None
        assert (p.grad[[0, 2]] == 0).all()
        assert (p.grad[1] != 0).any()


def test_each_model_is_clipped_by_itself(dynamics: ModuleType) -> None:
    model = dynamics.build(dynamics.RECIPES[0], 2, 1)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    next(model.parameters()).grad[0] = 100.0
    next(model.parameters()).grad[1].view(-1)[0] = 0.5
    dynamics._clip(model, 2)
    norms = [math.sqrt(sum((p.grad[r] ** 2).sum().item() for p in model.parameters())) for r in range(2)]
    assert norms == pytest.approx([dynamics.CLIP, 0.5])


def test_a_perfect_map_has_no_error(dynamics: ModuleType) -> None:
    mixture = dynamics.LINE["apart"]
    u = (torch.arange(200, dtype=torch.float64) + 0.5) / 200
    exact = mixture.quantile(u)
    assert dynamics._distance(exact[:, None].float(), mixture, u) < 1e-6
    assert dynamics._distance(exact[:, None].float() + 0.25, mixture, u) == pytest.approx(0.25, abs=1e-6)


def test_a_row_is_kept_and_not_trained_again(
    dynamics: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"EXAMPLES": 40, "TIMES": 1, "POOL": 60, "FINE": 3, "FEW": (1,)}.items():
        monkeypatch.setattr(dynamics, name, value)
    recipe = dynamics.RECIPES[0]
    for family, cases in dynamics.FAMILIES.items():
        options = {"seconds": 1e9, "work": tmp_path / "work", "most": 2, "points": 40}
        rows = dynamics.run(family, recipe, **options)
        assert len(rows) == len(cases) * len(dynamics.SEEDS)
        assert all(row["steps"] == 2 and math.isfinite(row["nelbo"]) for row in rows)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(dynamics, "train", None)
            assert dynamics.run(family, recipe, **options) == rows
