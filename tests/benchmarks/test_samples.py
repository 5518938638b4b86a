"""The samples of benchmarks/samples.py: which are drawn, and how they are judged."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch

import ndm
from ndm.data import Digits, Tensors
from ndm.networks import UNet

pytestmark = pytest.mark.slow


def model(direct: bool) -> ndm.NDM:
    torch.manual_seed(0)
    net = UNet(1, width=4, multipliers=(1,), groups=2)
    denoiser = ndm.DirectDenoiser(net) if direct else ndm.Denoiser(net)
    return ndm.NDM(ndm.LearnedSchedule(), ndm.Identity(), denoiser, ndm.DiscretizedDecoder(17)).eval()


@pytest.mark.parametrize("direct", [False, True])
def test_every_way_that_the_model_has_is_drawn(direct: bool) -> None:
    from samples import drawn

    found = {(method, spacing): x for method, spacing, x in drawn(model(direct), Digits(), 4, 3, 0, 8)}
    methods = ("diagonal",) if direct else ("diagonal", "ddim", "ode")
    assert list(found) == [(method, spacing) for spacing in ("time", "gamma") for method in methods]
    assert all(x.shape == (3, 1, 8, 8) and torch.isfinite(x).all() for x in found.values())


def test_the_distance_is_the_frechet_distance_of_the_features() -> None:
    pytest.importorskip("torchmetrics")
    from samples import fid

    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(60, 4, generator=generator), 1.5 * torch.randn(60, 4, generator=generator) + 1
    x, y = a.double().numpy(), b.double().numpy()
    root = scipy.linalg.sqrtm(np.cov(x.T) @ np.cov(y.T)).real
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(np.cov(x.T) + np.cov(y.T) - 2 * root)
    value, error = fid(b, a)
    assert value == pytest.approx(expected, rel=1e-4)
    assert 0 < error < value


def test_the_classifier_is_always_the_same_and_needs_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    import samples

    monkeypatch.setitem(samples.TRAINING, "steps", 3)
    state = torch.get_rng_state()
    (one, accuracy), (two, _) = samples.classifier(Digits()), samples.classifier(Digits())
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert 0 <= accuracy <= 1
    x = torch.zeros(4, 1, 8, 8)
    with pytest.raises(ValueError, match="no labels"):
        samples.classifier(Tensors(x, x, x))
