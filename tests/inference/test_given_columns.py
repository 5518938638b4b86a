"""The likelihood of a model that was trained for some columns given others."""

from __future__ import annotations

import torch

import ndm
from ndm.method.columns import Column, ColumnMap
from ndm.method.conditionals import conditional
from ndm.method.encoding import TableEncoding
from ndm.method.mixed_denoiser import outputs_for
from ndm.networks import ResidualMLP


def model_of(given: list[int] | None) -> ndm.NDM:
    columns = [Column(name, counts=(10,), map=ColumnMap(shift, 2.0)) for name, shift in (("a", 1.0), ("b", -3.0))]
    encoding = TableEncoding.of(columns)
    layouts = encoding.layouts()
    torch.manual_seed(0)
    net = ResidualMLP(2, hidden=8, depth=1, outputs=outputs_for(layouts), zero_init=False)
    return ndm.NDM(
        ndm.LinearSchedule(-6.0, 5.0),
        ndm.Identity(),
        ndm.MixedDenoiser(net, layouts, given=given),
        ndm.MixedDecoder(layouts),
        standardize=encoding,
    ).eval()


def test_it_is_that_of_the_other_columns() -> None:
    model, rows = model_of([0]), torch.randn(5, 2, generator=torch.Generator().manual_seed(1))
    own = conditional(model, ["b"], ["a"])
    labels = model.standardize.restricted([0])(rows[:, :1]).float()
    expected = ndm.log_likelihood(own, rows[:, 1:], labels=labels)
    found = ndm.log_likelihood(model, rows)
    assert torch.equal(found.log_prob, expected.log_prob)
    other = ndm.log_likelihood(model, rows + torch.tensor([0.5, 0.0]))
    assert not torch.allclose(found.log_prob, other.log_prob, atol=1e-3)


def test_a_model_of_all_columns_is_left_alone() -> None:
    model, rows = model_of(None), torch.randn(3, 2, generator=torch.Generator().manual_seed(1))
    assert ndm.log_likelihood(model, rows).dimensions == 2
