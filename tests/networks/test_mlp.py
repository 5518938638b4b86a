"""What only the perceptron promises."""

from __future__ import annotations

import pytest
import torch

from ndm.networks import ResidualMLP


def test_any_shape_of_the_right_size_will_do() -> None:
    net = ResidualMLP(features=12, hidden=16, heads=2, zero_init=False)
    z, u = torch.randn(3, 12), torch.rand(3)
    flat = net(z, u)
    for shape in [(12,), (3, 4), (3, 2, 2)]:
        output = net(z.reshape(3, *shape), u)
        assert output.shape == (3, 2 * shape[0], *shape[1:])
        assert torch.equal(output.flatten(1), flat)


@pytest.mark.parametrize("shape", [(11,), (3, 5), ()])
def test_examples_of_another_size_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="takes 12 features"):
        ResidualMLP(features=12)(torch.randn(3, *shape), torch.rand(3))


def test_without_a_number_of_features_it_is_refused() -> None:
    with pytest.raises(ValueError, match="number of features"):
        ResidualMLP(None)
