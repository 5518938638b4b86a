"""Classifier-free guidance of every kind of denoiser."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import ndm
import ndm.networks
from ndm.method.denoisers import BareDenoiser
from ndm.method.guidance import GuidedDenoiser
from ndm.method.schedules import per_example
from tests.method.test_denoisers import Says, every_parameterization, every_schedule, noisy


class ByClass(nn.Module):
    """Another answer for each label, one of them for "no class"; counts its calls."""

    def __init__(self, classes: int, heads: int, x: Tensor) -> None:
        super().__init__()
        self.classes = classes
        self.answers = torch.randn(classes + 1, heads * x.shape[1], *x.shape[2:], dtype=x.dtype)
        self.calls = 0

    def forward(self, z: Tensor, u: Tensor, labels: Tensor) -> Tensor:
        self.calls += 1
        assert len(u) == len(z) == len(labels)
        return self.answers[labels] * (1 + per_example(u, z)) + z.repeat(1, self.answers.shape[1] // z.shape[1], 1)


LABELS = torch.tensor([0, 2, 1, 1])
NO_CLASS = torch.full((4,), 3)


@every_schedule
@every_parameterization
@pytest.mark.parametrize("weight", [-1.0, 0.0, 0.5, 4.0])
def test_guidance_is_that_of_what_the_network_predicts(schedule, parameterization: str, weight: float) -> None:
    """The paper guides eps; here x_hat is guided, and it comes to the same in every parameterisation."""
    x, _, level, z = noisy(schedule)
    net = ByClass(3, 1, x)
    denoiser = ndm.Denoiser(net, parameterization)
    u = (level.gamma + 13.3) / 18.3
    output = (1 + weight) * net(z, u, LABELS) - weight * net(z, u, NO_CLASS)
    expected = ndm.Denoiser(Says(output), parameterization)(z, level)
    net.calls = 0
    guided = GuidedDenoiser(denoiser, weight)(z, level, LABELS)
    assert net.calls == 1  # both in one batch
    torch.testing.assert_close(guided, expected, rtol=1e-9, atol=1e-9)
    if weight in (0.0, -1.0):
        torch.testing.assert_close(guided, denoiser(z, level, LABELS if weight == 0 else NO_CLASS))


def test_guidance_of_the_other_heads() -> None:
    x, _, level, z = noisy(ndm.LinearSchedule())
    denoiser = ndm.DirectDenoiser(ByClass(3, 3, x), "x", ode=True)
    guided = GuidedDenoiser(denoiser, 2.0).estimate(z, level, LABELS)
    conditional, none = denoiser.estimate(z, level, LABELS), denoiser.estimate(z, level, NO_CLASS)
    torch.testing.assert_close(guided.mean, 3 * conditional.mean - 2 * none.mean)
    torch.testing.assert_close(guided.transformed, 3 * conditional.transformed - 2 * none.transformed)
    assert torch.equal(guided.log_ratio, conditional.log_ratio)
    assert guided.transformed_loss is None
    assert GuidedDenoiser(denoiser, 2.0).direct
    assert not GuidedDenoiser(ndm.Denoiser(ByClass(3, 1, x)), 2.0).direct


def test_a_guided_model_has_no_bound() -> None:
    x, noise, level, z = noisy(ndm.LinearSchedule())
    guided = GuidedDenoiser(ndm.Denoiser(ByClass(3, 1, x)), 1.0)
    with pytest.raises(ValueError, match="no bound"):
        guided.estimate(z, level, LABELS).residual(x, torch.zeros_like(x), noise)
    with pytest.raises(ValueError, match="no bound"):
        ndm.NDM(ndm.LinearSchedule(), ndm.Identity(), guided).bound(x, labels=LABELS)


def test_a_guided_denoiser_is_a_part_like_any_other() -> None:
    net = ndm.networks.ResidualMLP(2, hidden=8, depth=1, classes=3, zero_init=False)
    model = ndm.NDM(ndm.LinearSchedule(-7.0, 3.0), ndm.Identity(), GuidedDenoiser(ndm.Denoiser(net), 1.5))
    assert model.denoiser.denoiser.gamma_range == (-7.0, 3.0)
    config = model.denoiser.config()["init_args"]
    assert (config["weight"], config["classes"]) == (1.5, None)
    assert ndm.method.parts.from_config(model.config()).denoiser.classes == 3


def test_guidance_needs_classes_and_labels() -> None:
    x, _, level, z = noisy(ndm.LinearSchedule())
    for denoiser in (ndm.Denoiser(Says(x)), BareDenoiser(Says(x)), ndm.Denoiser(ndm.networks.ResidualMLP(2))):
        with pytest.raises(ValueError, match="classes=K"):
            GuidedDenoiser(denoiser, 1.0)
    says = GuidedDenoiser(BareDenoiser(Says(torch.cat([x, x]))), 1.0, classes=7)
    says(z, level, LABELS)
    assert says.denoiser.module.conditions["labels"].tolist() == [0, 2, 1, 1, 7, 7, 7, 7]
    with pytest.raises(ValueError, match="needs labels"):
        says(z, level)
    with pytest.raises(ValueError, match="finite"):
        GuidedDenoiser(says.denoiser, math.nan, classes=7)


def test_a_network_without_a_label_for_no_class_is_refused() -> None:
    net = ByClass(3, 1, torch.randn(4, 2, 3))
    net.knows_no_class = False
    with pytest.raises(ValueError, match="also trained without a class"):
        GuidedDenoiser(ndm.Denoiser(net), 1.0)
