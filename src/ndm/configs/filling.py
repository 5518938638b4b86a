"""Arguments of a model's parts that a configuration leaves to the data."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from jsonargparse import Namespace

from ndm.data.base import Data
from ndm.training.automatic import width

__all__ = ["fill_from_data"]


def fill_from_data(model: Any, data: Data) -> None:
    """Set null ``features``, ``channels``, ``shape`` and ``hidden`` of any part from the data.

    The network of a LatentNoise has as many features as the latent has components.

    Args:
        model: the section ``model`` of a configuration, changed in place.
        data: the data.
    """
    noise, latent = model.get("noise"), model.get("latent")
    if noise and latent and str(noise.get("class_path")).endswith("LatentNoise"):
        _fill(noise, "features", lambda: latent.init_args.size)
    _fill(model, "features", lambda: math.prod(data.latent_shape))
    _fill(model, "channels", lambda: data.shape[0])
    _fill(model, "shape", lambda: list(data.latent_shape))
    _fill(model, "hidden", lambda: width(data))


def _fill(part: Any, name: str, value: Callable[[], Any]) -> None:
    """Set a null argument of any part below ``part``; the value is computed only if needed."""
    if not isinstance(part, Namespace):
        return
    for key, below in vars(part).items():
        if key == name and below is None:
            part[key] = value()
        else:
            _fill(below, name, value)
