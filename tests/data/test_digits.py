"""The digits: scikit-learn's, once each, on exact levels."""

from __future__ import annotations

import pytest
import torch
from sklearn.datasets import load_digits

from ndm.data import SPLITS, Digits, from_levels


@pytest.fixture(scope="module")
def digits() -> Digits:
    return Digits()


def test_shapes_and_sizes(digits: Digits) -> None:
    assert digits.shape == (1, 8, 8)
    assert digits.levels == 17
    for name, size in zip(SPLITS, (1297, 250, 250), strict=True):
        assert digits.split(name).shape == (size, 1, 8, 8)
        assert digits.split(name).dtype == torch.float32
        assert digits.labels(name).shape == (size,)
        assert digits.labels(name).dtype == torch.int64


def test_every_image_of_the_source_appears_once_with_its_label(digits: Digits) -> None:
    bunch = load_digits()
    theirs = sorted(
        (*image.astype(int).ravel(), label) for image, label in zip(bunch.images, bunch.target, strict=True)
    )
    ours = []
    for name in SPLITS:
        k = ((digits.split(name).double() + 1) * 17 / 2 - 0.5).round().long().flatten(1)
        ours += torch.cat([k, digits.labels(name)[:, None]], dim=1).tolist()
    assert sorted(map(tuple, ours)) == theirs


def test_values_are_exactly_the_levels(digits: Digits) -> None:
    levels = torch.tensor([2 * (k + 0.5) / 17 - 1 for k in range(17)])
    assert torch.equal(digits.train.unique(), levels)


def test_split_is_fixed(digits: Digits) -> None:
    assert torch.equal(digits.test, Digits().test)
    # Read off once and pinned: results on the test split are comparable between versions only while it stays.
    assert digits.labels("test")[:12].tolist() == [1, 0, 5, 6, 6, 8, 0, 7, 0, 4, 2, 6]


def test_labels_are_spread_over_the_splits(digits: Digits) -> None:
    for name in SPLITS:
        shares = digits.labels(name).bincount(minlength=10) / len(digits.labels(name))
        assert shares.min() > 0.05
        assert shares.max() < 0.15


def test_levels_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"must lie in 0 \.\.\. 3, not 1 \.\.\. 4"):
        from_levels(torch.tensor([1, 4]), levels=4)
    with pytest.raises(ValueError, match="must lie in"):
        from_levels(torch.tensor([-1]), levels=4)


def test_levels_may_be_numbered_in_few_bits() -> None:
    k = torch.tensor([0, 255], dtype=torch.uint8)
    assert torch.equal(from_levels(k, levels=256), from_levels(k.long(), levels=256))


def test_unknown_split_is_refused(digits: Digits) -> None:
    with pytest.raises(ValueError, match="no split 'dev'"):
        digits.labels("dev")
