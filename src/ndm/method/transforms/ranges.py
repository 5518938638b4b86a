r"""The range of noise levels that a part maps to [0, 1]."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ndm.method.parts import Part

__all__ = ["DEFAULT_GAMMA_RANGE", "GammaRange"]

#: VDM's end points, for a part without a model.
DEFAULT_GAMMA_RANGE = (-13.3, 5.0)


class GammaRange(Part):
    """A part that uses u = (gamma - low) / (high - low), with (low, high) its ``gamma_range``.

    The range is the given one, or else that of the schedule of the first model that uses the part. It is then fixed:
    the part learns a function of u, which another schedule, or another model that shares the part, must not change. The
    range is saved in the part's configuration.
    """

    _gamma_range: tuple[float, float] | None = None

    def _take_range(self, gamma_range: Sequence[float] | None) -> None:
        """Set the range from the constructor argument, if given.

        Raises:
            ValueError: the range is empty.
        """
        if gamma_range is not None:
            self.gamma_range = gamma_range

    @property
    def gamma_range(self) -> tuple[float, float]:
        """The noise levels mapped to u = 0 and u = 1; VDM's end points until it is set."""
        return DEFAULT_GAMMA_RANGE if self._gamma_range is None else self._gamma_range

    @gamma_range.setter
    def gamma_range(self, gamma_range: Sequence[float]) -> None:
        if not (len(gamma_range) == 2 and gamma_range[0] < gamma_range[1]):
            raise ValueError(f"gamma_range must be (low, high) with low < high, got {gamma_range}.")
        self._gamma_range = (float(gamma_range[0]), float(gamma_range[1]))

    def set_gamma_range(self, gamma_min: float, gamma_max: float) -> None:
        """Set the range to the schedule's end points, unless it is already set."""
        if self._gamma_range is None:
            self.gamma_range = (gamma_min, gamma_max)

    def _argument_now(self, name: str, recorded: Any) -> Any:
        return self._gamma_range if name == "gamma_range" else super()._argument_now(name, recorded)
