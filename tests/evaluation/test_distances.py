"""Distances of samples against scipy, sums over pairs and closed forms; and their errors against repetition."""

from __future__ import annotations

import importlib.util
import json
import math
import sys

import numpy as np
import pytest
import scipy.spatial
import scipy.stats
import torch
from torch import Tensor

from ndm.evaluation import distances
from ndm.evaluation.distances import SampleDistance, mmd, sliced_wasserstein


def normal(n: int, d: int = 2, seed: int = 0, std: float = 1.0, mean: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return mean + std * torch.randn(n, d, generator=generator, dtype=torch.float64)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gaussian_mmd(d: int, a: float, b: float, shift: float, scale: float) -> float:
    """MMD^2 of N(0, a^2 I) and N(shift, b^2 I) with the mean of the five kernels: each expectation is an integral over
    a Gaussian."""

    def expected(width: float, variance: float, squared: float) -> float:
        total = width**2 + variance
        return (width**2 / total) ** (d / 2) * math.exp(-squared / (2 * total))

    found = [
        expected(w, 2 * a**2, 0) + expected(w, 2 * b**2, 0) - 2 * expected(w, a**2 + b**2, d * shift**2)
        for w in (scale / 4, scale / 2, scale, 2 * scale, 4 * scale)
    ]
    return float(np.mean(found))


# ---- sliced Wasserstein


@pytest.mark.parametrize(("n", "m"), [(50, 50), (30, 47), (4, 100), (60, 40)])
def test_on_a_line_it_is_the_wasserstein_distance(n: int, m: int) -> None:
    x, y = normal(n, 1), normal(m, 1, seed=1, std=2.0, mean=0.3)
    found = sliced_wasserstein(x, y, p=1, permutations=0)
    assert found.value == pytest.approx(scipy.stats.wasserstein_distance(x[:, 0].numpy(), y[:, 0].numpy()), rel=1e-12)
    # Every example as often as the other sample has examples: then both are equally many, and sorting pairs them.
    pairs = np.sort(np.repeat(x[:, 0].numpy(), m)) - np.sort(np.repeat(y[:, 0].numpy(), n))
    for p in (2, 3.5):
        found = sliced_wasserstein(x, y, p=p, permutations=0)
        assert found.value == pytest.approx(float((np.abs(pairs) ** p).mean() ** (1 / p)), rel=1e-12)


def test_it_is_the_mean_over_directions_of_scipys_distance() -> None:
    x, y, found = normal(40, 3), normal(30, 3, seed=1, mean=0.4), []
    directions = torch.randn(7, 3, generator=seeded(5), dtype=torch.float64)
    for direction in directions / directions.norm(dim=1, keepdim=True):
        found.append(scipy.stats.wasserstein_distance((x @ direction).numpy(), (y @ direction).numpy()))
    ours = sliced_wasserstein(x, y, p=1, projections=7, permutations=0, generator=seeded(5))
    assert ours.value == pytest.approx(np.mean(found), rel=1e-12)


@pytest.mark.parametrize(("d", "std", "mean"), [(2, 1.0, 1.0), (8, 1.5, 0.0), (8, 0.7, 0.5)])
def test_of_gaussians_it_has_a_closed_form(d: int, std: float, mean: float) -> None:
    # A projection of N(m, s^2 I) is normal with the same s, and its mean is m's component, of mean square |m|^2 / d.
    found = sliced_wasserstein(normal(4000, d), normal(3000, d, 1, std, mean), permutations=0, generator=seeded())
    wanted = math.sqrt(mean**2 + (std - 1) ** 2)
    assert found.value == pytest.approx(wanted, abs=3 * found.stderr)
    assert found.stderr < 0.1 * wanted


# ---- MMD


def test_the_kernel_distance_is_the_sum_over_pairs() -> None:
    x, y = normal(17, 3), normal(12, 3, seed=1, mean=0.5)

    def k(a: Tensor, b: Tensor) -> float:
        squared = float(((a - b) ** 2).sum())
        return float(np.mean([math.exp(-squared / (2 * (1.3 * w) ** 2)) for w in (0.25, 0.5, 1, 2, 4)]))

    within = [np.mean([k(a, b) for i, a in enumerate(z) for j, b in enumerate(z) if i != j]) for z in (x, y)]
    wanted = sum(within) - 2 * np.mean([k(a, b) for a in x for b in y])
    assert mmd(x, y, scale=1.3, permutations=0).value == pytest.approx(wanted, rel=1e-10)


@pytest.mark.parametrize(("d", "std", "mean"), [(2, 1.0, 0.5), (8, 1.3, 0.0)])
def test_of_gaussians_the_kernel_distance_has_a_closed_form(d: int, std: float, mean: float) -> None:
    found = mmd(normal(2500, d), normal(2000, d, 1, std, mean), scale=1.5, permutations=0)
    wanted = gaussian_mmd(d, 1.0, std, mean, 1.5)
    assert found.value == pytest.approx(wanted, abs=3 * found.stderr)
    assert found.stderr < 0.15 * wanted


def test_the_scale_is_the_median_distance_of_the_reference() -> None:
    x, y = normal(60), normal(50, seed=1, mean=3)
    gaps = scipy.spatial.distance.pdist(x.numpy())
    low, high = np.quantile(gaps, [0.499, 0.501], method="nearest")
    found = mmd(x, y, permutations=0).value
    bounds = sorted(mmd(x, y, scale=float(s), permutations=0).value for s in (low, high))
    assert bounds[0] <= found <= bounds[1]
    assert mmd(x * 1e3, y * 1e3, permutations=0).value == pytest.approx(found, rel=1e-9)


# ---- errors, and what samples of one distribution give


@pytest.mark.parametrize("shift", [0.4, 1.0])
@pytest.mark.parametrize("name", ["sliced_wasserstein", "mmd"])
def test_the_standard_error_is_the_spread_over_repetitions(name: str, shift: float) -> None:
    options = {"sliced_wasserstein": {"projections": 30}, "mmd": {"scale": 1.5}}[name]
    found = []
    for i in range(60):
        x, y = normal(150, seed=2 * i), normal(100, seed=2 * i + 1, std=1.2, mean=shift)
        found.append(getattr(distances, name)(x, y, permutations=0, generator=seeded(i), **options))
    spread = np.std([f.value for f in found], ddof=1)
    assert np.sqrt(np.mean([f.stderr**2 for f in found])) == pytest.approx(spread, rel=0.25)


def test_the_kernel_distance_is_zero_on_average_and_the_other_one_is_not() -> None:
    kernel, sliced = [], []
    for i in range(80):
        x, y = normal(40, seed=2 * i), normal(30, seed=2 * i + 1)
        kernel.append(mmd(x, y, permutations=0).value)
        sliced.append(sliced_wasserstein(x, y, projections=20, permutations=0, generator=seeded()).value)
    assert abs(np.mean(kernel)) < 3 * np.std(kernel) / math.sqrt(80)
    assert min(kernel) < 0 < min(sliced)


@pytest.mark.parametrize("name", ["sliced_wasserstein", "mmd"])
def test_random_divisions_say_what_samples_of_one_distribution_give(name: str) -> None:
    distance = getattr(distances, name)
    options = {"sliced_wasserstein": {"projections": 20}, "mmd": {"scale": 1.5}}[name]
    fresh = []
    for i in range(150):
        x, y = normal(60, seed=2 * i + 10), normal(45, seed=2 * i + 11)
        fresh.append(distance(x, y, permutations=0, generator=seeded(), **options).value)
    found = []  # over several pairs, for the divisions of one keep to its examples
    for i in range(15):
        x, y = normal(60, seed=2 * i + 500), normal(45, seed=2 * i + 501)
        found.append(distance(x, y, permutations=40, generator=seeded(i), **options))
    error = np.std(fresh)
    assert np.mean([f.same for f in found]) == pytest.approx(np.mean(fresh), abs=0.4 * error)
    assert np.mean([f.level for f in found]) == pytest.approx(np.quantile(fresh, 0.95), abs=0.7 * error)
    apart = distance(normal(60, seed=2), normal(45, seed=3, mean=1.0), permutations=40, generator=seeded(), **options)
    assert apart.p_value == 1 / 41
    assert apart.value > apart.level > apart.same


def test_half_of_the_chances_are_below_one_half() -> None:
    chances = []
    for i in range(60):
        x, y = normal(25, seed=2 * i), normal(20, seed=2 * i + 1)
        chances.append(mmd(x, y, permutations=39, generator=seeded(i)).p_value)
    assert np.mean(chances) == pytest.approx(0.5, abs=4 * math.sqrt(1 / 12 / 60))


# ---- the rest


def test_blocks_change_nothing_but_the_rounding(monkeypatch) -> None:
    x, y = normal(60, 3), normal(45, 3, seed=1)
    whole = [f(x, y, permutations=5, generator=seeded()) for f in (sliced_wasserstein, mmd)]
    monkeypatch.setattr(distances, "NUMBERS_AT_ONCE", 1000)
    parts = [f(x, y, permutations=5, generator=seeded()) for f in (sliced_wasserstein, mmd)]
    for a, b in zip(whole, parts, strict=True):
        assert list(a.to_dict().values()) == pytest.approx(list(b.to_dict().values()), rel=1e-9)


def test_images_are_rows_and_the_generator_decides_everything() -> None:
    x, y = normal(30, 12).float(), normal(25, 12, seed=1).float()
    for f in (sliced_wasserstein, mmd):
        flat = f(x, y, permutations=5, generator=seeded())
        state = torch.get_rng_state()
        assert f(x.view(30, 3, 2, 2), y.view(25, 3, 2, 2), permutations=5, generator=seeded()) == flat
        assert torch.equal(torch.get_rng_state(), state)
        assert (flat.examples_x, flat.examples_y) == (30, 25)
        assert SampleDistance(**json.loads(json.dumps(flat.to_dict()))) == flat
    other = sliced_wasserstein(x, y, permutations=0, generator=seeded(1))
    assert other.value != sliced_wasserstein(x, y, permutations=0, generator=seeded()).value
    assert (other.same, other.level, other.p_value) == (None, None, None)


def test_far_from_the_origin_no_digits_are_lost() -> None:
    x, y = normal(60), normal(45, seed=1)
    for f in (sliced_wasserstein, mmd):
        here, far = (f(x + s, y + s, permutations=0, generator=seeded()).value for s in (0.0, 1e7))
        assert far == pytest.approx(here, rel=1e-6)


@pytest.mark.parametrize(
    ("x", "y", "options", "sentence"),
    [
        (normal(9), normal(9, 3), {}, r"got \(9, 2\) and \(9, 3\)"),
        (normal(9)[:, 0], normal(9)[:, 0], {}, "must have shapes"),
        (normal(3), normal(9), {}, "at least 4 examples, got 3 and 9"),
        (normal(9), normal(9) * torch.nan, {}, "NaN or infinite"),
        (normal(9), normal(9), {"permutations": -1}, "at least 0, got -1"),
    ],
)
def test_what_cannot_be_compared_is_said_in_a_sentence(x: Tensor, y: Tensor, options, sentence: str) -> None:
    for f in (sliced_wasserstein, mmd):
        with pytest.raises(ValueError, match=sentence):
            f(x, y, **options)


def test_numbers_out_of_their_range_are_refused() -> None:
    for options in ({"projections": 0}, {"p": 0.5}, {"p": math.inf}):
        with pytest.raises(ValueError, match="projections must be at least 1 and p at least 1"):
            sliced_wasserstein(normal(9), normal(9), **options)
    with pytest.raises(ValueError, match="scale must be positive"):
        mmd(normal(9), normal(9), scale=0.0)
    with pytest.raises(ValueError, match="most examples of x are equal, pass scale="):
        mmd(torch.zeros(9, 2), normal(9))


def test_it_needs_no_torchmetrics(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    spec = importlib.util.spec_from_file_location("other_distances", distances.__file__)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    x, y = normal(9), normal(9, seed=1)
    assert module.mmd(x, y, permutations=0).to_dict() == mmd(x, y, permutations=0).to_dict()
