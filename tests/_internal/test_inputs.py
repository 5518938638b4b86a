"""The door: what comes in is computed in the model's precision, and what cannot be computed is said in a sentence."""

from __future__ import annotations

import math
import time

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import ndm
from ndm._internal.inputs import as_tensor, check_labels
from ndm.method.bounds import error_moments
from ndm.method.grids import pair_moments
from ndm.networks import ResidualMLP

#: A tolerance that the fewest steps meet.
ANY = 1e9

HALF = [torch.float16, torch.bfloat16]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def net(**options) -> ResidualMLP:
    return ResidualMLP(2, hidden=8, depth=1, embedding=8, zero_init=False, **options)


def model(classes: int = 0, **options) -> ndm.NDM:
    return ndm.NDM(ndm.LinearSchedule(-13.3, 5.0), ndm.Identity(), ndm.Denoiser(net(classes=classes)), **options)


class Exact(nn.Module):
    """E[x | z] for standard normal x; it has no weights."""

    def forward(self, z: Tensor, level: ndm.NoiseLevel) -> Tensor:
        return level.alpha[:, None] * z


def bound(m: ndm.NDM, x, steps: int | None = 10, **options) -> Tensor:
    return m.bound(x, steps, generator=seeded(), **options).total.detach()


def calibrated(m: ndm.NDM, x) -> Tensor:
    return ndm.method.bounds.calibrate(m, x, 3, "diagonal", generator=seeded()).log_ratio


WAYS = {
    "bound": bound,
    "continuous": lambda m, x: bound(m, x, None),
    "unchecked": lambda m, x: bound(m, x, check=False),
    "likelihood": lambda m, x: ndm.log_likelihood(m, x, tolerance=ANY, generator=seeded()).log_prob,
    "variational": lambda m, x: (
        ndm.log_likelihood(m, x, dequantization="variational", tolerance=ANY, generator=seeded()).log_prob
    ),
    "calibrate": calibrated,
    "moments": lambda m, x: error_moments(m, x, 3, generator=seeded()).squares(),
    "pairs": lambda m, x: pair_moments(m, x, 4, generator=seeded()).squares(),
    "grid": lambda m, x: ndm.optimal_grid(m, x, 2, candidates=6, generator=seeded()),
    "curvature": lambda m, x: ndm.curvature(m, x, generator=seeded()),
    "to_model": lambda m, x: m.to_model(x),
}
every_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)


def kinds_of_models() -> dict[str, ndm.NDM]:
    torch.manual_seed(0)
    return {
        "plain": model(),
        "standardized": model(standardize=ndm.Standardize([1.0, -2.0], [3.0, 0.1])),
        "neural": ndm.NDM(ndm.LinearSchedule(), ndm.Neural(net()), ndm.Denoiser(net())),
        "without weights": ndm.NDM(ndm.LinearSchedule(-13.3, 5.0), ndm.Identity(), Exact()),
    }


every_model = pytest.mark.parametrize("name", list(kinds_of_models()))


# ---- precision


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


# ---- arrays, tables, lists


@every_way
@every_model
def test_arrays_and_tables_are_data(way, name: str) -> None:
    m, x = kinds_of_models()[name], torch.randn(9, 2, dtype=torch.float64)
    expected = way(m, x)
    array = x.numpy()
    big_endian = array.astype(">f8")
    for data in (
        array,
        big_endian,
        array[::-1][::-1],
        np.asfortranarray(array),
        pd.DataFrame(array, columns=["a", "b"]),
    ):
        assert torch.equal(way(m, data), expected)


def test_lists_are_data() -> None:
    m, x = model(), [[0.5, 1.0], [2.0, -3.0]]
    for data in (x, tuple(map(tuple, x)), [torch.tensor(row) for row in x]):
        assert torch.equal(bound(m, data), bound(m, torch.tensor(x)))
    assert torch.equal(bound(m, x, times=[0.25, 0.5]), bound(m, x, times=torch.tensor([0.25, 0.5])))


def test_batches_may_be_arrays() -> None:
    m, x = model(), np.random.default_rng(0).standard_normal((12, 2))
    whole = calibrated(m, x)
    for batches in ([x[:5], x[5:]], [torch.from_numpy(x[:5]), pd.DataFrame(x[5:])], [(x[:5],), [x[5:], None]]):
        assert calibrated(m, batches).shape == whole.shape
    with pytest.raises(ValueError, match=r"pass data\.train"):
        m.calibrate(ndm.Identity(), 3)
    with pytest.raises(ValueError, match="got dict"):
        m.calibrate({"x": x}, 3)
    grid = [0, 0.3, 1]
    for given in (grid, np.array(grid)):
        assert m.calibrate(x, 2, spacing=given).grid(2).tolist() == grid


def test_whole_numbers_are_levels_or_own_units() -> None:
    whole = torch.randint(16, (9, 2))
    levels, own = model(decoder=ndm.DiscretizedDecoder(16)), model(standardize=ndm.Standardize(7.5, 4.0))
    for data in (whole, whole.to(torch.uint8), whole.numpy().astype(np.uint16), pd.DataFrame(whole.numpy())):
        assert torch.equal(bound(levels, data), bound(levels, whole))
        torch.testing.assert_close(bound(own, data), bound(own, whole.float()))
        with pytest.raises(ValueError, match="continuous data and got integers"):
            bound(model(), data)


def test_tables_of_mixed_columns() -> None:
    m = model()
    table = pd.DataFrame({"a": [0.5, 2.0], "b": pd.array([1, 3], dtype="Int64")})
    assert torch.equal(bound(m, table), bound(m, torch.tensor([[0.5, 1.0], [2.0, 3.0]])))
    with pytest.raises(ValueError, match="non-numeric column 'c'"):
        bound(m, table.assign(c=["x", "y"]).drop(columns="b"))
    with pytest.raises(ValueError, match="NaN or infinite"):
        bound(m, table.assign(b=pd.array([1, None], dtype="Int64")))


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ("abc", "must be a tensor, an array, a table"),
        (None, "must be a tensor, an array, a table"),
        (b"abc", "must be a tensor, an array, a table"),
        ({"a": [1.0]}, "must be a tensor, an array, a table"),
        (np.array([["a", "b"]]), "must be numbers, got text"),
        (np.array([["a", 1.0]], dtype=object), "with other values"),
        (np.array([["2020-01-01"]], dtype="datetime64[D]"), "got dates"),
        (np.ones((2, 2), complex), "complex"),
        (torch.ones(2, 2, dtype=torch.complex64), "real numbers"),
        (torch.eye(2).to_sparse(), "dense"),
        ([[1.0, 2.0], [3.0]], "equal lengths"),
        (object(), "with other values"),
        (torch.zeros(0, 2), "batch is empty"),
        (np.zeros((0, 2)), "batch is empty"),
        (pd.DataFrame({"a": [], "b": []}), "batch is empty"),
        (torch.zeros(3, 0), "batch is empty"),
        (torch.zeros(2), r"pass a single example as x\[None\]"),
        (torch.tensor(1.0), r"pass a single example as x\[None\]"),
        (pd.Series([1.0, 2.0]), r"pass a single example as x\[None\]"),
        (torch.zeros(3, 5), "2 features"),
        (torch.full((3, 2), 1e39, dtype=torch.float64), "NaN or infinite"),
        (torch.full((3, 2), math.nan, dtype=torch.float16), "NaN or infinite"),
    ],
)
def test_what_is_no_batch_is_said_in_a_sentence(data, sentence: str) -> None:
    m = model()
    ways = [WAYS[k] for k in ("bound", "likelihood", "moments", "pairs", "curvature")]
    for way in ways:
        with pytest.raises(ValueError, match=sentence):
            way(m, data)
    if not (data is None or isinstance(data, (str, bytes, dict, list)) or type(data) is object):
        with pytest.raises(ValueError, match=sentence):
            m.calibrate(data, 3)


def test_standardised_data_have_one_shape() -> None:
    m = model(standardize=ndm.Standardize([1.0, -2.0], [3.0, 0.1]))
    for shape in ((3, 1), (3, 3), (3, 2, 1)):
        with pytest.raises(ValueError, match=r"expects examples of shape \(2,\)"):
            bound(m, torch.zeros(shape))
    channels = ndm.Standardize([[[1.0]], [[2.0]]], 2.0)  # of images, a mean a channel
    images = torch.randn(4, 2, 3, 3)
    image_model = ndm.NDM(ndm.LinearSchedule(), ndm.Identity(), Says(images), standardize=channels)
    assert bound(image_model, images).isfinite().all()


class Says(nn.Module):
    def __init__(self, like: Tensor) -> None:
        super().__init__()
        self.like = like

    def forward(self, z: Tensor, level: ndm.NoiseLevel) -> Tensor:
        return torch.zeros_like(z)


def test_standardize_fits_anything_that_is_data() -> None:
    x = torch.randn(40, 2, dtype=torch.float64) * 3 + 1
    expected = ndm.Standardize.fit(x)
    for data in (x.numpy(), pd.DataFrame(x.numpy()), x.tolist()):
        assert ndm.Standardize.fit(data).config() == expected.config()
    half = x.half()
    assert ndm.Standardize.fit(half).config() == ndm.Standardize.fit(half.double()).config()
    assert torch.equal(expected(half), expected(half.float()))
    assert torch.equal(expected(x.numpy()), expected(x))
    assert ndm.Standardize.fit(torch.tensor([[1, 5], [3, 9]])).mean == [2.0, 7.0]
    for data, sentence in (
        (x[:1], "at least 2 examples"),
        (x[:0], "batch is empty"),
        (x[:, 0], r"x\[:, None\]"),
        (x.where(x > 0, math.nan), "NaN"),
        (torch.ones(5, 2), "constant"),
    ):
        with pytest.raises(ValueError, match=sentence):
            ndm.Standardize.fit(data)


def test_a_calibration_is_for_examples_of_one_shape() -> None:
    m = ndm.NDM(ndm.LinearSchedule(), ndm.Identity(), Exact())
    for covariance in ("diagonal", "full"):
        m.calibrate(torch.randn(20, 3), 4, covariance)
        with pytest.raises(ValueError, match=r"calibrated for examples of shape \(3,\), not \(2,\)"):
            m.bound(torch.randn(5, 2), 4)
    m.calibrate(torch.randn(20, 3), 4, "isotropic").bound(torch.randn(5, 2), 4)


@pytest.mark.parametrize("steps", [2.5, "10", True, 10.0])
def test_steps_are_a_whole_number(steps) -> None:
    m, x = model(), torch.randn(3, 2)
    for way in (m.bound, m.calibrate):
        with pytest.raises(ValueError, match="whole number"):
            way(x, steps)
    assert m.bound(x, np.int64(3)).total.shape == (3,)


def test_times_are_one_an_example() -> None:
    for times in (torch.zeros(2), 0.5, [0.1, 0.2, 1.0], np.zeros((3, 1))):
        with pytest.raises(ValueError, match=r"times must be 3 numbers in \[0, 1\)"):
            model().bound(torch.randn(3, 2), times=times)


def test_the_shape_of_a_sample_is_a_tuple() -> None:
    for shape in (2, (2.0,), (0,), ("2",)):
        with pytest.raises(ValueError, match="tuple of integers"):
            ndm.sample(model(), 3, shape, steps=2)
    with pytest.raises(ValueError, match="2 features"):
        ndm.sample(model(), 3, (3,), steps=2)


# ---- labels

LABELLED = {
    "bound": lambda m, x, y: bound(m, x, labels=y),
    "likelihood": lambda m, x, y: ndm.log_likelihood(m, x, labels=y, tolerance=ANY, generator=seeded()).log_prob,
    "calibrate": lambda m, x, y: calibrated(m, [(x, y)]),
    "grid": lambda m, x, y: ndm.optimal_grid(m, [(x, y)], 2, candidates=6, generator=seeded()),
    "curvature": lambda m, x, y: ndm.curvature(m, x, labels=y, generator=seeded()),
    "sample": lambda m, x, y: ndm.sample(m, len(x), (2,), steps=3, labels=y, generator=seeded()),
    "guided": lambda m, x, y: ndm.sample(m, len(x), (2,), steps=3, labels=y, guidance=1.0, generator=seeded()),
    "batches": lambda m, x, y: torch.cat(
        [b for _, b in ndm.sample_batches(m, len(x), (2,), steps=3, labels=y, batch_size=2)]
    ),
    "paths": lambda m, x, y: ndm.ode_paths(m, x, 3, labels=y),
}
every_labelled = pytest.mark.parametrize("way", LABELLED.values(), ids=LABELLED)


@every_labelled
def test_labels_may_come_in_many_forms(way) -> None:
    m, x, y = model(classes=3), torch.randn(4, 2), [0, 2, 1, 2]
    expected = way(m, x, torch.tensor(y))
    same = [y, tuple(y), np.array(y), pd.Series(y), torch.tensor(y, dtype=torch.uint8), torch.tensor(y).float()]
    for labels in same:
        assert torch.equal(way(m, x, labels), expected)


@every_labelled
@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        ([0, 1, 2, 3], r"must be 0 \.\.\. 2, .*got 0 \.\.\. 3"),  # 3 stands for no class
        ([1, 2, 3, 4], r"got 1 \.\.\. 4"),
        ([0, 1, -1, 0], r"got -1 \.\.\. 1; -1 and nan often stand for a missing label"),
        ([0, 1, 200, 0], r"got 0 \.\.\. 200"),
        ([0.0, 1.0, math.nan, 0.0], "missing label"),
        ([0.0, 1.5, 1.0, 0.0], "must be integers from 0 to 2"),
        (["a", "b", "a", "c"], "labels must be numbers, got text"),
        ([0, 1], "needs one label"),
        ([[0], [1], [2], [0]], "needs one label"),
        (1, "needs one label"),
    ],
)
def test_labels_that_are_none_are_said_in_a_sentence(way, labels, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        way(model(classes=3), torch.randn(4, 2), labels)


def test_labels_of_a_network_that_says_nothing_of_classes_are_handed_on() -> None:
    m = ndm.NDM(ndm.LinearSchedule(), ndm.Identity(), Shifted())
    found, other = (bound(m, torch.zeros(3, 2), labels=y) for y in ([-1.5, 0.0, 20.0], [0.0, 0.0, 0.0]))
    assert torch.equal(found, bound(m, torch.zeros(3, 2), labels=torch.tensor([-1.5, 0.0, 20.0])))
    assert (found == other).tolist() == [False, True, False]


class Shifted(nn.Module):
    """The label itself for an estimate."""

    def forward(self, z: Tensor, level: ndm.NoiseLevel, labels: Tensor) -> Tensor:
        return labels.to(z)[:, None].expand_as(z)


def test_check_labels_gives_integers() -> None:
    assert check_labels(torch.tensor([2.0, 0.0]), 3).dtype == torch.long


def test_no_class_can_be_trained_on_without_the_check() -> None:
    m, x = model(classes=3), torch.randn(4, 2)
    assert bound(m, x, labels=torch.full((4,), 3), check=False).isfinite().all()


# ---- what the door costs


def test_a_tensor_passes_as_it_is() -> None:
    m, x = model(), torch.randn(4, 2)
    assert as_tensor(x) is x
    assert m.to_model(x, check=False) is x
    assert np.shares_memory(as_tensor(array := np.zeros((2, 2))).numpy(), array)


def test_the_door_takes_no_time_in_training(monkeypatch) -> None:
    """Without the check no value is looked at, and the rest is a matter of microseconds."""
    m, x, y = model(classes=3), torch.randn(4, 2), torch.zeros(4, dtype=torch.long)
    for name in ("isfinite", "min", "max"):
        monkeypatch.setattr(Tensor, name, None, raising=False)
    monkeypatch.setattr(torch, "isfinite", None)
    m.to_model(x, check=False)
    ndm._internal.inputs.as_labels(m, y, 4, check=False)
    fastest = math.inf
    for _ in range(20):
        start = time.perf_counter()
        for _ in range(20):
            m.to_model(x, check=False)
            ndm._internal.inputs.as_labels(m, y, 4, check=False)
        fastest = min(fastest, (time.perf_counter() - start) / 20)
    assert fastest < 1e-3
