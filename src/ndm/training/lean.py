"""Less of what Lightning does in every step besides the step."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext

from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.profilers import Profiler

__all__ = ["NoProfiler", "skip_empty_hooks"]

#: The hooks of a step that most callbacks leave empty.
_HOOKS = (
    "on_train_batch_start",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_train_batch_end",
)

_NOTHING = nullcontext()


class NoProfiler(Profiler):
    """A profiler that measures nothing.

    Lightning enters a profiler about 150 times a step, for each hook of each callback. Its own that measures nothing
    makes a generator each time.
    """

    def start(self, action_name: str) -> None:
        pass

    def stop(self, action_name: str) -> None:
        pass

    def profile(self, action_name: str) -> AbstractContextManager:  # type: ignore[override]
        return _NOTHING


def skip_empty_hooks(owners: Iterable[Callback | LightningModule]) -> None:
    """Remove the empty hooks of a step: Lightning calls only hooks that are callable."""
    for owner in owners:
        base = Callback if isinstance(owner, Callback) else LightningModule
        for hook in _HOOKS:
            if getattr(type(owner), hook) is getattr(base, hook):
                setattr(owner, hook, None)
