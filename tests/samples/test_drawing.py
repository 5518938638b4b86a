"""Samples that are drawn by worker processes."""

from __future__ import annotations

import pytest
import torch

import ndm
from ndm.networks import ResidualMLP
from ndm.samples import class_turns
from ndm.samples.drawing import draw_by_workers


@pytest.mark.slow
def test_samples_are_those_of_one_process() -> None:
    torch.manual_seed(0)
    net = ResidualMLP(2, hidden=8, depth=1, classes=3, zero_init=False)
    model = ndm.NDM(ndm.LinearSchedule(), ndm.Identity(), ndm.Denoiser(net))
    options, labels = ndm.SamplerOptions(steps=3), class_turns(model)
    alone = ndm.sample_batches(model, 17, (2,), options, seed=1, batch_size=5, labels=labels)
    found = draw_by_workers(2, model, 17, (2,), options, seed=1, batch_size=5, labels=labels)
    for (_, expected), x in zip(alone, found, strict=True):
        assert torch.equal(x, expected)
