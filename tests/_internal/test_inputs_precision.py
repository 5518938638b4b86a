"""What comes in is computed in the precision of the model."""

from __future__ import annotations

import pytest
import torch

import ndm
from tests._internal.models import (
    ANY,
    HALF,
    WAYS,
    Exact,
    bound,
    every_model,
    every_way,
    kinds_of_models,
    model,
    net,
    seeded,
)


@every_way
@every_model
@pytest.mark.parametrize("dtype", HALF)
def test_half_precision_is_computed_in_single(way, name: str, dtype) -> None:
    """At VDM's end points, where float16 gives infinite totals."""
    m, x = kinds_of_models()[name], torch.randn(9, 2).to(dtype)
    found, expected = way(m, x), way(m, x.float())
    assert found.isfinite().all()
    assert found.dtype == expected.dtype != dtype
    assert torch.equal(found, expected)


@every_way
@every_model
def test_other_precisions_are_converted_to_the_models(way, name: str) -> None:
    m, x = kinds_of_models()[name], torch.randn(9, 2)
    if name == "without weights":  # the precision of the data is all that there is
        assert bound(m, x.double()).dtype == torch.float64
        return
    # Own units are standardised before the conversion, which rounds a little differently.
    tolerance = {"rtol": 1e-4, "atol": 1e-4} if name == "standardized" else {"rtol": 0, "atol": 0}
    torch.testing.assert_close(way(m, x.double()), way(m, x), **tolerance)
    m = m.double()
    assert torch.equal(way(m, x.double()), way(m, x)) or name == "standardized"
    assert bound(m, x).dtype == torch.float64


def test_own_units_lose_nothing_to_single_precision() -> None:
    """A column of times in seconds since 1970, which float32 rounds to two minutes."""
    moments = 1.7e9 + 10 * torch.randn(500, 2, dtype=torch.float64)
    m = model(standardize=ndm.Standardize.fit(moments))
    x = m.to_model(moments)
    assert x.dtype == torch.float32
    expected = (moments - moments.mean(0)) / moments.std(0)
    torch.testing.assert_close(x, expected.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", HALF)
def test_levels_in_half_precision(dtype) -> None:
    m = model(decoder=ndm.DiscretizedDecoder(16))
    x = m.decoder.encode(torch.randint(16, (9, 2)))
    assert torch.equal(x.to(dtype).float(), x)  # they can be written in half precision
    for dequantization in ("uniform", "variational", "importance"):
        found, expected = (
            ndm.log_likelihood(m, y, dequantization=dequantization, tolerance=ANY, generator=seeded()).log_prob
            for y in (x.to(dtype), x)
        )
        assert torch.equal(found, expected)
    assert torch.equal(bound(m, x.to(dtype)), bound(m, x))


@pytest.mark.parametrize("dtype", HALF)
def test_states_and_samples_in_half_precision(dtype) -> None:
    m, z = model(), torch.randn(5, 2).to(dtype)
    assert torch.equal(ndm.ode_paths(m, z, 4), ndm.ode_paths(m, z.float(), 4))
    t = torch.full((5,), 0.5)
    assert torch.equal(ndm.acceleration(m, z, t.to(dtype)), ndm.acceleration(m, z.float(), t))
    far = 300 * torch.stack([z, -z])  # whose squares float16 does not hold
    assert torch.equal(ndm.path_cost(far).action, ndm.path_cost(far.float()).action)
    x, y = torch.randn(2, 30, 2)
    found, expected = (ndm.mmd(a, b, permutations=0).value for a, b in ((x.to(dtype), y), (x.to(dtype).float(), y)))
    assert found == expected


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("how", ["to", "half", "part"])
def test_weights_in_half_precision_are_refused(dtype, how: str) -> None:
    m, x = model(), torch.randn(3, 2)
    if how == "part":
        m = ndm.NDM(ndm.LinearSchedule(), ndm.Separable(net(heads=4, level=False)).to(dtype), Exact())
    else:
        m = m.to(dtype) if how == "to" else (m.half() if dtype == torch.float16 else m.bfloat16())
    for data in (x, x.to(dtype)):
        for way in WAYS.values():
            with pytest.raises(ValueError, match=r"half precision .*model.float.*autocast"):
                way(m, data)
    with pytest.raises(ValueError, match="half precision"):
        ndm.sample(m, 2, (2,), steps=2)
    assert bound(m.float(), x).isfinite().all()


def test_samples_have_the_precision_of_the_model() -> None:
    for dtype, other in ((torch.float32, torch.float64), (torch.float64, torch.float32)):
        m = model().to(dtype)
        assert ndm.sample(m, 2, (2,), steps=2).dtype == dtype
        assert torch.equal(
            ndm.sample(m, 2, (2,), steps=2, generator=seeded(), dtype=dtype),
            ndm.sample(m, 2, (2,), steps=2, generator=seeded()),
        )
        with pytest.raises(ValueError, match=f"model's weights, {dtype}.* convert the samples"):
            ndm.sample(m, 2, (2,), steps=2, dtype=other)
    for m in (model(), ndm.NDM(ndm.LinearSchedule(), ndm.Identity(), Exact())):
        for dtype in (*HALF, torch.int64):
            with pytest.raises(ValueError, match="float32 or float64"):
                ndm.sample(m, 2, (2,), steps=2, dtype=dtype)
    exact = ndm.NDM(ndm.LearnedSchedule(), ndm.Identity(), Exact())
    assert ndm.sample(exact, 2, (2,), steps=2, dtype=torch.float64).dtype == torch.float64
