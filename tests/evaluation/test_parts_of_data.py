"""Figures of a part of sorted data stand for all of them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import ndm
from ndm.data import part_of
from ndm.evaluation import evaluate
from tests.evaluation.models import HIGH, LOW, Exact, Sorted


@pytest.mark.parametrize("what", ["bound", "log-likelihood", "calibration", "grid"])
def test_a_part_of_sorted_data_stands_for_the_whole(what: str) -> None:
    """The first quarter is of variance 1, the rest of 25, and the model is that of variance R."""
    model, data = ndm.NDM(ndm.LinearSchedule(LOW, HIGH), ndm.Identity(), Exact()), Sorted()
    options: dict = {"steps": (5,), "variances": ("isotropic",), "likelihood": False, "times": 5, "spacing": "time"}
    options |= {"grid": {"spacing": "optimal"}, "bound": {"steps": (None,)}}.get(what, {})
    part: dict = {"max_examples": 100}
    if what == "log-likelihood":
        options |= {"steps": (), "likelihood": True}
        part = {"likelihood_examples": 100}
    elif what != "bound":
        part = {"calibration": 5 * 100}
    whole, some = evaluate(model, data, **options), evaluate(model, data, **options, **part)
    for a, b in zip(whole.rows, some.rows, strict=True):
        assert abs(a["value"] - b["value"]) < 4 * math.hypot(a["stderr"], b["stderr"]), (a, b)
    again, other = evaluate(model, data, **options, **part), evaluate(model, data, seed=1, **options, **part)
    assert again.rows == some.rows
    assert other.rows != some.rows
    if "calibration" not in part:
        places, kept = some.places[0], some.per_example[0]
        assert len(places) == len(kept) == 100
        assert torch.equal(places, part_of(600, 100, seed=0))
        assert not torch.equal(other.places[0], places)
        labels = data.labels("test")[places]
        assert (kept[labels == 1].mean() - kept[labels == 0].mean()).abs() > 4  # each value is that of its place


def test_the_calibration_of_sorted_data_is_of_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    real = ndm.evaluation.calibration.error_moments

    def spy(model: ndm.NDM, x: Tensor, *others, **more):
        seen.append(x)
        return real(model, x, *others, **more)

    monkeypatch.setattr("ndm.evaluation.calibration.error_moments", spy)
    model = ndm.NDM(ndm.LinearSchedule(LOW, HIGH), ndm.Identity(), Exact())
    evaluate(model, Sorted(), steps=(5,), variances=("full",), likelihood=False, max_examples=5, calibration=500)
    x = torch.cat(seen)
    assert len(x) == 100
    far = (x.norm(dim=1) > 4).double().mean().item()  # of the wide ones 0.73 are, of the narrow ones almost none
    assert far == pytest.approx(0.75 * 0.73, abs=4 * 0.05)


def test_the_samples_are_compared_with_a_random_part(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    class Spy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x)
            return x.flatten(1)

    model, data = ndm.NDM(ndm.LinearSchedule(LOW, HIGH), ndm.Identity(), Exact()), Sorted()
    evaluate(model, data, steps=(), likelihood=False, quality=50, features=Spy(), sampling={"steps": 2})
    torch.testing.assert_close(seen[0], data.test[part_of(600, 50, seed=0)], rtol=0, atol=0)
