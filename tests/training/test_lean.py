"""Hooks and profiles that Lightning leaves out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader

from ndm.training.lean import NoProfiler, skip_empty_hooks


class Counting(Callback):
    """Counts the steps, and leaves the other hooks empty."""

    steps = 0

    def on_train_batch_end(self, *_: Any) -> None:
        self.steps += 1


class Line(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Linear(1, 1)
        self.ended = False

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        return self.net(batch).mean()

    def on_after_backward(self) -> None:
        self.ended = True

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.mark.filterwarnings("ignore")
def test_hooks_that_are_not_empty_are_called() -> None:
    counting, line = Counting(), Line()
    skip_empty_hooks([counting, line])
    assert counting.on_train_batch_start is None
    assert line.on_train_batch_start is None
    silent: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    silent["enable_checkpointing"] = False
    trainer = Trainer(accelerator="cpu", max_steps=3, callbacks=[counting], profiler=NoProfiler(), **silent)
    trainer.fit(line, DataLoader(torch.ones(10, 1), batch_size=2))
    assert counting.steps == 3
    assert line.ended
