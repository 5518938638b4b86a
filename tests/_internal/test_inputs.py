"""Arrays, tables and lists as data, and what is refused by a sentence."""

from __future__ import annotations

import math
import time

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import ndm
from ndm._internal.inputs import as_tensor
from tests._internal.models import WAYS, Exact, bound, calibrated, every_model, every_way, kinds_of_models, model

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
