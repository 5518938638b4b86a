"""Guidance: of Gaussians in closed form, of networks with classes, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import ndm
from ndm.inference.sampling import sample, sample_batches
from ndm.networks import ResidualMLP
from tests.inference.gaussians import QUICK_WAYS, SCALES, Direct, Exact, gaussian, seeded, small, widening


def knows(classes: int, denoiser: nn.Module) -> nn.Module:
    denoiser.classes = classes
    return denoiser


@pytest.mark.parametrize(("method", "steps", "solver"), QUICK_WAYS)
@pytest.mark.parametrize("kind", ["identity", "scale", "direct"])
def test_guidance_of_gaussians_moves_their_mean(kind, method, steps, solver):
    """x_hat is affine in the class's mean: guided from mean k + K to k + c by w it is that of the mean between."""
    if kind == "direct":
        model = gaussian("scale", denoiser=Direct(widening, ode=True))
        model.denoiser.net = knows(4, nn.Identity())
    else:
        model = gaussian(kind, denoiser=knows(4, Exact(SCALES[kind])))
    common = {"shape": (2,), "method": method, "steps": steps, "solver": solver, "rtol": 1e-8, "atol": 1e-8}
    labels, w = torch.tensor([0.0, 1.0, 3.0]).double(), 0.7
    parts = dict(model.named_modules())
    x = sample(model, 3, labels=labels, guidance=w, generator=seeded(0), dtype=torch.float64, **common)
    mean = (1 + w) * labels - w * 4
    getattr(model.denoiser, "net", getattr(model.denoiser, "module", None)).classes = 0  # any number is a label now
    expected = sample(model, 3, labels=mean, generator=seeded(0), dtype=torch.float64, **common)
    torch.testing.assert_close(x, expected, rtol=1e-5, atol=1e-5)
    assert dict(model.named_modules()) == parts  # and the model is as it was


def test_guidance_of_a_network_with_classes():
    model = small(denoiser=ndm.Denoiser(ResidualMLP(2, hidden=8, depth=1, classes=3, zero_init=False))).train()
    labels = torch.tensor([0, 1, 2])

    def draw(guidance: float | None, labels: Tensor = labels) -> Tensor:
        return sample(model, 3, (2,), steps=5, labels=labels, guidance=guidance, generator=seeded(0))

    torch.testing.assert_close(draw(0.0), draw(None))
    with pytest.raises(ValueError, match=r"labels must be 0 \.\.\. 2"):
        draw(None, torch.full((3,), 3))  # what stands for no class is no class
    none, model.denoiser.net.classes = draw(-1.0), 4
    torch.testing.assert_close(none, draw(None, torch.full((3,), 3)))
    model.denoiser.net.classes = 3
    assert (draw(2.0) - draw(None)).abs().max() > 1e-3
    assert model.training
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    ("classes", "arguments", "sentence"),
    [
        (3, {"guidance": 1.0}, "Guidance needs labels"),
        (0, {"guidance": 1.0, "labels": torch.tensor([0, 1])}, "build it with classes=K"),
        (3, {"guidance": math.inf, "labels": torch.tensor([0, 1])}, "finite"),
        (3, {"labels": torch.tensor([0, 1, 2])}, "Each of the 2 samples needs one label"),
        (3, {"labels": torch.tensor(1)}, "Each of the 2 samples needs one label"),
    ],
)
def test_guidance_that_cannot_be_is_said_in_a_sentence(classes, arguments, sentence):
    model = small(denoiser=ndm.Denoiser(ResidualMLP(2, hidden=8, depth=1, classes=classes)))
    own = model.denoiser
    for draw in (sample, lambda *a, **o: list(sample_batches(*a, **o))):
        with pytest.raises(ValueError, match=sentence):
            draw(model, 2, (2,), steps=3, **arguments)
        assert model.denoiser is own
