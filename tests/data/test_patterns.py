"""Synthetic images: reproducible, of many levels, and of classes that can be told apart."""

from __future__ import annotations

import pytest
import torch

from ndm.data import SPLITS, Patterns


@pytest.mark.parametrize("channels", [1, 3])
def test_shapes_and_sizes(channels: int) -> None:
    data = Patterns(size=12, channels=channels, examples=40, classes=4)
    assert data.shape == (channels, 12, 12)
    assert data.levels == 256
    for name, size in zip(SPLITS, (40, 10, 10), strict=True):
        assert len(data.examples(name)) == size
        assert data.split(name).shape == (size, channels, 12, 12)
        assert data.split(name).dtype == torch.float32
        assert data.labels(name).bincount(minlength=4).min() >= size // 4


def test_values_are_exact_levels_and_use_their_range() -> None:
    x = Patterns(size=16, examples=64).train.double()
    k = (x + 1) * 128 - 0.5
    assert torch.equal(k, k.round())
    assert k.min() >= 0
    assert k.max() <= 255
    assert len(k.unique()) > 200


def test_same_arguments_same_images() -> None:
    data, again, other = (
        Patterns(size=8, examples=16),
        Patterns(size=8, examples=32),
        Patterns(size=8, examples=16, seed=1),
    )
    assert torch.equal(data.train, Patterns(size=8, examples=16).train)
    assert not torch.equal(data.train, other.train)
    assert not torch.equal(data.validation, data.test)
    assert torch.equal(data.test, Patterns(size=8, examples=17).test)  # whatever the size of the training split
    assert len(again.test) == 8


def test_classes_can_be_learned() -> None:
    """The nearest mean tells the classes of images that it has not seen, far better than chance."""
    data = Patterns(size=16, examples=400, classes=5)
    means = torch.stack([data.train[data.labels("train") == c].mean(0) for c in range(5)])
    nearest = torch.cdist(data.test.flatten(1), means.flatten(1)).argmin(1)
    assert (nearest == data.labels("test")).float().mean() > 0.9


def test_images_of_a_class_differ() -> None:
    data = Patterns(size=16, examples=100, classes=2)
    of_one_class = data.train[data.labels("train") == 0]
    assert torch.pdist(of_one_class.flatten(1)).min() > 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"size": 0}, "size must be positive, not 0"),
        ({"examples": 0}, "examples must be positive"),
        ({"classes": -1}, "classes must be positive"),
        ({"channels": 2}, r"channels must be 1 \(grey\) or 3 \(colour\), not 2"),
        ({"seed": -1}, "seed must not be negative"),
    ],
)
def test_refusals_say_why(arguments: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Patterns(**arguments)
