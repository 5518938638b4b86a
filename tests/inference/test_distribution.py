"""A model as a distribution: shapes, and the values of the functions it stands for."""

from __future__ import annotations

import pytest
import torch

import ndm
from ndm.method.columns import Column
from ndm.method.mixed_denoiser import outputs_for
from ndm.networks import ResidualMLP


def vectors(classes: int = 0) -> ndm.NDM:
    net = ResidualMLP(2, 8, 1, embedding=8, classes=classes, zero_init=False)
    standardize = ndm.Standardize([1.0, 2.0], [1.0, 3.0])
    return ndm.NDM(ndm.LinearSchedule(), ndm.Identity(), ndm.Denoiser(net), standardize=standardize).eval()


def table() -> ndm.NDM:
    encoding = ndm.TableEncoding.of([Column(name, counts=(1,)) for name in "abc"])
    layouts = encoding.layouts()
    net = ResidualMLP(3, 8, 1, embedding=8, outputs=outputs_for(layouts), context=6, zero_init=False)
    denoiser = ndm.MixedDenoiser(net, layouts, conditionals="any")
    decoder = ndm.MixedDecoder(layouts)
    return ndm.NDM(ndm.LinearSchedule(), ndm.Identity(), denoiser, decoder, standardize=encoding).eval()


def test_without_a_condition_it_is_the_density_of_the_data():
    model, x = vectors(), torch.randn(6, 2)
    own = model()
    assert own.batch_shape == ()
    assert own.event_shape == (2,)
    assert torch.equal(own.log_prob(x), ndm.log_likelihood(model, x).log_prob)
    assert own.log_prob(x.reshape(2, 3, 2)).shape == (2, 3)
    assert own.sample((4, 5), steps=2).shape == (4, 5, 2)


def test_a_latent_is_a_condition_of_its_own_width():
    net = ResidualMLP(2, 8, 1, embedding=8, latent=4, zero_init=False)
    latent = ndm.GaussianLatent(ResidualMLP(2, 8, 1, level=False, outputs=8), 4)
    standardize = ndm.Standardize([1.0, 2.0], [1.0, 3.0])
    parts = ndm.LinearSchedule(), ndm.Identity(), ndm.Denoiser(net)
    model, x, code = (
        ndm.NDM(*parts, standardize=standardize, latent=latent).eval(),
        torch.randn(5, 2),
        torch.randn(5, 4),
    )
    assert model(code).batch_shape == (5,)
    assert torch.equal(model(code).log_prob(x), ndm.log_likelihood(model, x, labels=code).log_prob)
    assert model(code).sample((3,), steps=2).shape == (3, 5, 2)
    assert model(code[0]).batch_shape == ()
    assert model(code[0]).log_prob(x).shape == (5,)
    assert model().log_prob(x).shape == (5,)


def test_labels_are_a_batch():
    model, x = vectors(classes=3), torch.randn(2, 2)
    own = model([0, 2])
    assert own.sample((4,), steps=2).shape == (4, 2, 2)
    assert torch.equal(own.log_prob(x), ndm.log_likelihood(model, x, labels=[0, 2]).log_prob)
    assert model(1).sample((3,), steps=2).shape == (3, 2)
    assert model(1).log_prob(x).shape == (2,)


def test_given_columns_are_a_batch():
    model = table()
    own = model({"c": [0.5, -1.0], "a": 2.0})
    assert own.batch_shape == (2,)
    assert own.event_shape == (1,)
    assert own.sample((7,), steps=2).shape == (7, 2, 1)
    part = model.conditional(["b"], ["a", "c"])
    labels = torch.tensor([[2.0, 0.5], [2.0, -1.0]])
    b = torch.tensor([[0.1], [0.2]])
    assert torch.allclose(own.log_prob(b), ndm.log_likelihood(part, b, labels=labels).log_prob)


def test_a_condition_that_the_model_does_not_know_is_refused():
    with pytest.raises(ValueError, match="for a model of a table"):
        vectors()({"a": 1.0})
    with pytest.raises(ValueError, match="no column 'z'"):
        table()({"z": 1.0})
    with pytest.raises(ValueError, match="does not know the shape"):
        ndm.NDM(ndm.LinearSchedule(), ndm.Identity(), ndm.Denoiser(ResidualMLP(2)))().sample((2,))
