"""The average of the weights is validated and saved, and the best weights are kept."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import ndm
from ndm.data import Pinwheel
from ndm.training import NDMModule
from ndm.training.batches import InOrder
from tests.training.runs import checkpoint, column, same


def test_the_average_is_what_is_validated_and_saved(
    train: Any, data: Pinwheel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trajectory: list[dict[str, Tensor]] = []
    hook = NDMModule.on_train_batch_end

    def recording(self: NDMModule, *args: Any) -> None:
        hook(self, *args)
        trajectory.append({k: v.clone() for k, v in self.model.named_parameters()})

    monkeypatch.setattr(NDMModule, "on_train_batch_end", recording)
    out = tmp_path / "run"
    model = train(out, ema=0.9, max_steps=15, keep="last")

    average = trajectory[0]
    for n, weights in enumerate(trajectory[1:], start=1):
        decay = min(0.9, (1 + n) / (10 + n))
        average = {k: decay * average[k] + (1 - decay) * weights[k] for k in average}
    saved = dict(ndm.NDM.from_pretrained(out / "model").named_parameters())
    for name, value in average.items():
        torch.testing.assert_close(saved[name], value, rtol=1e-4, atol=1e-6)
    assert any((saved[k] - trajectory[-1][k]).abs().max() > 1e-4 for k in saved)  # and not the last weights

    # The validation of the saved model is the last one of the curve; that of the last weights is not.
    assert _validation(model, data) == pytest.approx(column(out, "val/total")[-1], abs=1e-5)
    model.load_state_dict({**model.state_dict(), **trajectory[-1]})
    assert abs(_validation(model, data) - column(out, "val/total")[-1]) > 1e-4


def _validation(model: ndm.NDM, data: Pinwheel) -> float:
    module = NDMModule(model).eval()
    with torch.no_grad():
        trainer: Any = SimpleNamespace(global_rank=0, world_size=1)
        for i, batch in enumerate(InOrder(data.validation, None, 1024, trainer, repeats=64)):
            module.validation_step(batch, i)
    return torch.cat([values[:, :3].sum(1) for values, _ in module._validated]).mean().item()


def test_the_best_weights_are_kept_when_asked_for(train: Any, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(out, keep="best", learning_rate=0.3)  # at this rate the bound falls and rises
    curve = column(out, "val/total")
    best = checkpoint(out, "best")
    assert curve.index(min(curve)) < len(curve) - 1, curve
    assert best["global_step"] == 5 * (1 + curve.index(min(curve)))
    weights = {f"model.{k}": v for k, v in ndm.NDM.from_pretrained(out / "model").state_dict().items()}
    assert same(weights, dict(best["state_dict"]))
