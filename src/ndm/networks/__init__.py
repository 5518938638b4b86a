"""Backbone networks, called as ``net(z, u)`` with u the noise level.

Names are imported lazily, so that the U-Net's library is imported only when needed.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ndm.networks.base import Backbone, LevelFeatures
    from ndm.networks.conv import ConvNet
    from ndm.networks.mlp import ResidualMLP
    from ndm.networks.pretrained import DiffusersUNet
    from ndm.networks.table import LevelTable
    from ndm.networks.transformer import ImageTransformer
    from ndm.networks.unet import UNet

__all__ = [
    "Backbone",
    "ConvNet",
    "DiffusersUNet",
    "ImageTransformer",
    "LevelFeatures",
    "LevelTable",
    "ResidualMLP",
    "UNet",
]

_HOMES = {
    "Backbone": "ndm.networks.base",
    "ConvNet": "ndm.networks.conv",
    "DiffusersUNet": "ndm.networks.pretrained",
    "ImageTransformer": "ndm.networks.transformer",
    "LevelFeatures": "ndm.networks.base",
    "LevelTable": "ndm.networks.table",
    "ResidualMLP": "ndm.networks.mlp",
    "UNet": "ndm.networks.unet",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
