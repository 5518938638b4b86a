"""The bound with states, by masks, against that of the conditional as a process of its own, for a learned F."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import ndm
from ndm._internal.random import Drawn
from ndm.method.bounds import bound
from ndm.method.columns import Column, ColumnMap
from ndm.method.conditionals import GIVEN, LEFT_OUT, WANTED, conditional, state_labels, stated
from ndm.method.mixed_denoiser import outputs_for
from ndm.networks import ResidualMLP

COLUMNS = [
    Column("a", "categorical", ("x", "y", "z"), (5, 4, 3), rest=None, storage="text"),
    Column("b", "real", (0.0,), (4, 9), map=ColumnMap(power=0.6)),
    Column("c", "whole", (), (9,), rest="grid", step=0.5, low=0.0, high=9.0),
    Column("d", counts=(9,), map=ColumnMap(2.0, 3.0)),
]
ROWS = 12


def learned() -> ndm.NDM:
    """A model whose F and denoiser have random weights, so that F is far from x."""
    torch.manual_seed(0)
    encoding = ndm.TableEncoding.of(COLUMNS)
    layouts, (d,) = encoding.layouts(), encoding.latent_shape
    f = ResidualMLP(d, 8, 1, heads=2, level=False, embedding=8, zero_init=False)
    net = ResidualMLP(d, 8, 1, embedding=8, outputs=outputs_for(layouts), context=8, zero_init=False)
    return ndm.NDM(
        ndm.LinearSchedule(-7.0, 5.0), ndm.Separable(f, 2, gate="sigma"),
        ndm.MixedDenoiser(net, layouts, conditionals="any"), ndm.MixedDecoder(layouts), standardize=encoding,
    ).double().eval()  # fmt: skip


def rows() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    b = torch.randn(ROWS, generator=generator).double()
    b[:4] = 0.0
    a, c = torch.randint(3, (ROWS,), generator=generator), torch.randint(19, (ROWS,), generator=generator) / 2
    return torch.stack([a.double(), b, c.double(), torch.randn(ROWS, generator=generator).double() + 2], 1)


@pytest.mark.parametrize("steps", [None, 20])
@pytest.mark.parametrize(("wanted", "given"), [([0, 1], [2]), ([1], [0, 2, 3]), ([2, 3], []), ([0], [1, 2, 3])])
def test_both_ways_to_the_bound_of_a_conditional_agree(wanted: list[int], given: list[int], steps: int | None) -> None:
    model, data = learned(), rows()
    encoding = model.standardize
    assert isinstance(encoding, ndm.TableEncoding)
    states = torch.full((ROWS, 4), LEFT_OUT)
    states[:, wanted], states[:, given] = WANTED, GIVEN
    noise = torch.randn(2, ROWS, *encoding.latent_shape, generator=torch.Generator().manual_seed(2)).double()
    times, at = (torch.arange(ROWS) + 0.5) / ROWS, encoding.coordinates(wanted)
    masked = model.bound(data, steps, times=times, generator=Drawn(noise), states=states)

    own = conditional(model, wanted, given)
    labels = encoding(data)[:, encoding.coordinates(given)] if given else None
    some = bound(own, data[:, wanted], steps, labels=labels, times=times, generator=Drawn(noise[..., at]))
    for name in ("diffusion", "prior", "reconstruction"):
        torch.testing.assert_close(getattr(masked, name), getattr(some, name))
    assert masked.diffusion.max() > 0.1  # near the data the term of a category is 0: its evidence decides


def test_the_learned_f_changes_the_bound() -> None:
    model, data = learned(), rows()
    plain = ndm.NDM(model.schedule, ndm.Identity(), model.denoiser, model.decoder, standardize=model.standardize)
    times, noise = (torch.arange(ROWS) + 0.5) / ROWS, torch.randn(2, ROWS, *model.standardize.latent_shape).double()
    found = [m.bound(data, times=times, generator=Drawn(noise)).total for m in (model, plain)]
    assert (found[0] - found[1]).abs().max() > 0.1


def test_the_steps_of_samples_with_states_are_those_of_the_conditional() -> None:
    """From the same z_1, the wanted cells of :func:`stated` are the samples of the conditional."""
    model, data = learned(), rows()
    encoding, wanted, given = model.standardize, [1, 3], [0]
    states = torch.tensor([GIVEN, WANTED, LEFT_OUT, WANTED]).expand(ROWS, 4)
    own, whole = conditional(model, wanted, given), stated(model)
    z = torch.randn(ROWS, *encoding.latent_shape, generator=torch.Generator().manual_seed(3)).double()
    at, t = encoding.coordinates(wanted), torch.full((ROWS,), 0.6, dtype=torch.float64)
    seen = encoding(data)[:, encoding.coordinates(given)]
    drift = whole.drift(z, t, state_labels(encoding, data, states), eta=0.0)[:, at]
    torch.testing.assert_close(drift, own.drift(z[:, at], t, seen, eta=0.0))
    assert drift.abs().max() > 1e-3
