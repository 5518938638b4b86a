"""Under autocast the networks, and they alone, run in half precision."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ndm
from ndm._internal.precision import residual_path, run_network
from ndm.networks import ConvNet, ResidualMLP


class Spy(ndm.method.parts.Part):
    """A linear network that notes what precision it was called in, and that of a product inside it."""

    def __init__(self, features: int = 4, heads: int = 1) -> None:
        super().__init__()
        self.layer = nn.Linear(features, heads * features)
        self.seen: list[tuple[torch.dtype, torch.dtype]] = []

    def forward(self, z: Tensor, u: Tensor | None = None) -> Tensor:
        output = self.layer(z)
        self.seen.append((z.dtype, output.dtype))
        return output


BFLOAT = torch.autocast("cpu", torch.bfloat16)


def model(**options: Any) -> ndm.NDM:
    torch.manual_seed(0)
    transform = ndm.Separable(Spy(heads=3), terms=3, gate="sigma")
    return ndm.NDM(ndm.LearnedSchedule(-13.3, 5.0), transform, ndm.Denoiser(Spy()), **options)


def test_the_networks_alone_are_in_half_precision() -> None:
    one = model()
    x = torch.randn(8, 4)
    with BFLOAT:
        terms = one.bound(x)
        assert torch.is_autocast_enabled("cpu")  # as it was
        assert (x @ x.T).dtype == torch.bfloat16
    for net in (one.denoiser.net, one.transform.net):
        assert set(net.seen) == {(torch.float32, torch.bfloat16)}
    assert {terms.diffusion.dtype, terms.prior.dtype, terms.reconstruction.dtype} == {torch.float32}
    one.denoiser.net.seen.clear()
    one.bound(x)
    assert one.denoiser.net.seen == [(torch.float32, torch.float32)]


def test_outside_of_autocast_nothing_changes() -> None:
    with residual_path(torch.device("cpu")):
        assert run_network(nn.Linear(2, 2), torch.randn(1, 2)).dtype == torch.float32
    assert run_network(nn.Linear(2, 2).double(), torch.randn(1, 2).double()).dtype == torch.float64


class Rounded(ndm.method.parts.Part):
    """A network whose output is exact in half precision whatever the precision it runs in."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(0.5))

    def forward(self, z: Tensor, u: Tensor | None = None) -> Tensor:
        return (self.gain * torch.sign(z)).to(torch.bfloat16)


def test_the_residual_path_loses_nothing() -> None:
    """With networks that are exact in half precision, the bound is that of single precision to the last place."""
    separable = ndm.Separable(Rounded(), terms=1, gate="sigma")
    one = ndm.NDM(ndm.LinearSchedule(-13.3, 5.0), separable, ndm.Denoiser(Rounded()), ndm.DiscretizedDecoder(256))
    x = one.decoder.encode(torch.randint(256, (64, 1, 4, 4)))
    for steps in (None, 10):
        expected = one.bound(x, steps, generator=torch.Generator().manual_seed(0))
        with BFLOAT:
            found = one.bound(x, steps, generator=torch.Generator().manual_seed(0))
        for name in ("diffusion", "prior", "reconstruction"):
            assert torch.equal(getattr(found, name), getattr(expected, name)), name


@pytest.mark.parametrize("transform", ["Separable", "Neural"])
def test_gradients_samples_and_likelihoods_in_half_precision(transform: str) -> None:
    torch.manual_seed(0)
    f = (
        ndm.Separable(ConvNet(1, width=4, heads=2, level=False), terms=2)
        if transform == "Separable"
        else ndm.Neural(ConvNet(1, width=4))
    )
    one = ndm.NDM(ndm.LinearSchedule(-6.0, 4.0), f, ndm.Denoiser(ConvNet(1, width=8, zero_init=False)))
    x = torch.rand(4, 1, 4, 4) * 2 - 1

    def gradients() -> list[Tensor]:
        one.zero_grad()
        one.bound(x, generator=torch.Generator().manual_seed(0)).total.mean().backward()
        return [p.grad.clone() for p in one.parameters() if p.grad is not None]

    exact = gradients()
    with BFLOAT:
        rough = gradients()
        drawn = ndm.sample(one, 2, (1, 4, 4), steps=3, generator=torch.Generator().manual_seed(0))
        likelihood = ndm.log_likelihood(one, x[:2], probes=1, tolerance=1.0, generator=torch.Generator().manual_seed(0))
    assert drawn.dtype == torch.float32
    other = ndm.sample(one, 2, (1, 4, 4), steps=3, generator=torch.Generator().manual_seed(0))
    assert 0 < (drawn - other).abs().max() < 0.1
    assert torch.isfinite(likelihood.log_prob).all()
    for a, b in zip(exact, rough, strict=True):
        assert (a - b).norm() < 0.1 * a.norm() + 1e-3


def test_a_perceptron_in_half_precision_is_near() -> None:
    torch.manual_seed(0)
    net = ResidualMLP(3, hidden=16, zero_init=False)
    z, u = torch.randn(5, 3), torch.rand(5)
    with BFLOAT:
        rough = net(z, u)
    torch.testing.assert_close(rough.float(), net(z, u), rtol=0.05, atol=0.05)
